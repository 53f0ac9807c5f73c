//! Two strided boxes of the same sizes, visited together in row-major order.

/// How to visit two boxes side by side: as few loops as their strides allow, around runs that are as long as possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Sizes and both strides of the loops around the runs, the slowest first.
    outer: Vec<(usize, [usize; 2])>,
    /// Elements of a run.
    len: usize,
    /// From one element of a run to the next, in both boxes.
    steps: [usize; 2],
}

/// One run: where it begins in both boxes, how many elements it has, and its strides; all in elements.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First elements.
    pub at: [usize; 2],
    /// Number of elements.
    pub len: usize,
    /// Strides.
    pub steps: [usize; 2],
}

/// Strides of a box of these sizes that lies in one piece.
pub fn packed(dims: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

impl Walk {
    /// Boxes of `dims` elements with strides `a` and `b`.
    pub fn new(dims: &[u64], a: &[u64], b: &[u64]) -> Walk {
        let mut loops: Vec<(usize, [usize; 2])> = Vec::new();
        for ((&size, &a), &b) in dims.iter().zip(a).zip(b) {
            let (size, strides) = (size as usize, [a as usize, b as usize]);
            match loops.last_mut() {
                _ if size == 1 => {}
                Some((outer, [x, y])) if *x == size * strides[0] && *y == size * strides[1] => {
                    (*outer, *x, *y) = (*outer * size, strides[0], strides[1]);
                }
                Some(_) | None => loops.push((size, strides)),
            }
        }
        let (len, steps) = loops.pop().unwrap_or((1, [1, 1]));
        Walk { outer: loops, len, steps }
    }

    /// Whether both boxes lie in one piece.
    pub fn is_contiguous(&self) -> bool {
        self.outer.is_empty() && self.steps == [1, 1]
    }

    /// Number of elements of a box.
    pub fn elements(&self) -> usize {
        self.outer.iter().map(|(size, _)| size).product::<usize>() * self.len
    }

    /// The `k`-th of `n` pieces that have about the same number of elements, every element being in one; and where it begins in
    /// both boxes. The widest loop is cut.
    pub fn piece(&self, k: usize, n: usize) -> (Walk, [usize; 2]) {
        let mut piece = self.clone();
        let widest = piece.outer.iter_mut().max_by_key(|(size, _)| *size);
        let (size, strides) = match widest {
            Some((size, strides)) if *size >= self.len => (size, *strides),
            Some(_) | None => (&mut piece.len, self.steps),
        };
        let (begin, end) = (*size * k / n, *size * (k + 1) / n);
        *size = end - begin;
        (piece, strides.map(|stride| stride * begin))
    }

    /// Visits all runs in row-major order.
    pub fn each(&self, mut visit: impl FnMut(Run)) {
        if self.len == 0 || self.outer.iter().any(|(size, _)| *size == 0) {
            return;
        }
        let mut index = vec![0; self.outer.len()];
        let mut at = [0, 0];
        loop {
            visit(Run { at, len: self.len, steps: self.steps });
            let mut axis = self.outer.len();
            loop {
                let Some(next) = axis.checked_sub(1) else { return };
                axis = next;
                let (size, strides) = self.outer[axis];
                index[axis] += 1;
                at = [at[0] + strides[0], at[1] + strides[1]];
                if index[axis] < size {
                    break;
                }
                index[axis] = 0;
                at = [at[0] - size * strides[0], at[1] - size * strides[1]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(walk: &Walk) -> Vec<[usize; 2]> {
        let mut all = Vec::new();
        walk.each(|run| {
            all.extend((0..run.len).map(|i| [run.at[0] + i * run.steps[0], run.at[1] + i * run.steps[1]]));
        });
        all
    }

    #[test]
    fn walk_visits_every_element_in_order() {
        let dims = [2, 3, 1, 4];
        let (a, b) = ([40, 8, 99, 2], [1, 8, 7, 2]);
        let mut expected = Vec::new();
        for i in 0..2 {
            for j in 0..3 {
                for k in 0..4 {
                    expected.push([i * 40 + j * 8 + k * 2, i + j * 8 + k * 2]);
                }
            }
        }
        assert_eq!(pairs(&Walk::new(&dims, &a, &b)), expected);
    }

    #[test]
    fn walk_merges_loops_where_both_boxes_allow_it() {
        let dims = [4, 5, 6];
        let whole = packed(&dims);
        assert_eq!(whole, [30, 6, 1]);
        assert!(Walk::new(&dims, &whole, &whole).is_contiguous());
        let rows = Walk::new(&dims, &[60, 6, 1], &whole);
        assert_eq!((rows.outer.len(), rows.len), (1, 30));
        assert!(!rows.is_contiguous());
    }

    #[test]
    fn walk_pieces_have_every_element_once() {
        for (dims, a) in
            [([7, 3], [3, 1]), ([2, 50], [60, 1]), ([2, 50], [1, 2]), ([1, 1], [1, 1]), ([0, 4], [4, 1])]
        {
            let walk = Walk::new(&dims, &a, &packed(&dims));
            for n in [1, 2, 3, 9] {
                let mut all = Vec::new();
                for k in 0..n {
                    let (piece, [x, y]) = walk.piece(k, n);
                    all.extend(pairs(&piece).into_iter().map(|[i, j]| [i + x, j + y]));
                }
                all.sort_unstable();
                let mut whole = pairs(&walk);
                whole.sort_unstable();
                assert_eq!(all, whole, "{dims:?} in {n}");
                assert_eq!(all.len(), walk.elements());
            }
        }
    }

    #[test]
    fn walk_knows_scalars_and_empty_boxes() {
        assert_eq!(pairs(&Walk::new(&[], &[], &[])), [[0, 0]]);
        assert!(pairs(&Walk::new(&[3, 0], &[1, 1], &[1, 1])).is_empty());
        assert!(pairs(&Walk::new(&[0, 3], &[3, 1], &[3, 1])).is_empty());
    }
}
