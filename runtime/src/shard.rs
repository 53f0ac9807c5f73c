//! Which elements of a tensor one rank holds, and how they move between memory cut in different ways.
//!
//! An axis of `size` elements is cut into `blocks` equal blocks, each block into `parts` equal chunks, one per rank along the
//! mesh axes of its split; a rank holds the chunk of its `index` of every block, in order:
//! ```text
//! size 12, blocks 2, parts 3      global   0 1|2 3|4 5‖6 7|8 9|10 11
//! index 1                         local        0 1         2 3
//! ```
//! An axis that would not split evenly is made longer by elements that belong to no tensor: a rank has room for them at the end of
//! its part, where they stay zero, and no index leads to them.
//!
//! Everything that addresses tensors by global index is made of two iterations: [`Runs`], the contiguous pieces of one part in
//! the whole tensor, and [`Overlap`], the pieces two parts have in common.

use std::ops::Range;

use crate::abi::{AxisSplit, MeshAxisInfo};

/// One axis of a tensor as one rank holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisPart {
    /// Elements of all ranks together.
    pub size: u64,
    /// Elements of padding after them.
    pub pad: u64,
    /// Blocks the axis is cut into.
    pub blocks: u64,
    /// Chunks of each block; 1: the rank holds the whole axis.
    pub parts: u64,
    /// Which chunk of each block the rank holds.
    pub index: u64,
}

impl AxisPart {
    /// An axis that is not split.
    pub fn whole(size: u64) -> AxisPart {
        AxisPart { size, pad: 0, blocks: 1, parts: 1, index: 0 }
    }

    /// Elements the rank has room for, with its share of the padding.
    pub fn local(&self) -> u64 {
        (self.size + self.pad) / self.parts
    }

    /// Global index of an element the rank has room for; [`AxisPart::size`] or more in the padding.
    pub fn global(&self, local: u64) -> u64 {
        let chunk = self.chunk();
        if chunk == 0 {
            return 0;
        }
        ((local / chunk) * self.parts + self.index) * chunk + local % chunk
    }

    /// Where the rank holds an element, if it does.
    pub fn local_of(&self, global: u64) -> Option<u64> {
        let chunk = self.chunk();
        let nth = global.checked_div(chunk)?;
        (nth % self.parts == self.index).then_some(nth / self.parts * chunk + global % chunk)
    }

    /// Elements of one chunk.
    fn chunk(&self) -> u64 {
        (self.size + self.pad) / (self.blocks * self.parts)
    }

    /// Whether the rank holds all of the axis and nothing else.
    fn is_whole(&self) -> bool {
        self.parts == 1 && self.pad == 0
    }
}

/// One rank's part of a tensor. Its buffer is row-major in [`Part::local_shape`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// One per axis of the tensor.
    pub axes: Vec<AxisPart>,
}

impl Part {
    /// All of a tensor.
    pub fn whole(shape: &[u64]) -> Part {
        Part { axes: shape.iter().copied().map(AxisPart::whole).collect() }
    }

    /// The part of the rank at `coordinates` of the mesh. The split is one that [`check`] accepts.
    pub fn of(shape: &[u64], split: &[AxisSplit], mesh: &[MeshAxisInfo], coordinates: &[u64]) -> Part {
        let mut part = Part::whole(shape);
        for cut in split {
            let axis = &mut part.axes[cut.axis as usize];
            (axis.blocks, axis.pad) = (cut.blocks, cut.pad);
            for &m in &cut.mesh {
                let size = mesh[m as usize].size;
                axis.parts *= size;
                axis.index = axis.index * size + coordinates[m as usize];
            }
        }
        part
    }

    /// Size of each axis of the rank's buffer.
    pub fn local_shape(&self) -> Vec<u64> {
        self.axes.iter().map(AxisPart::local).collect()
    }

    /// Elements the rank's buffer has room for.
    pub fn elements(&self) -> u64 {
        self.axes.iter().map(AxisPart::local).product()
    }

    /// The part as contiguous pieces of the whole tensor.
    pub fn runs(&self) -> Runs {
        let inner_axes = self.axes.iter().rev().take_while(|axis| axis.is_whole()).count();
        let (outer, inner) = self.axes.split_at(self.axes.len() - inner_axes);
        let inner: u64 = inner.iter().map(|axis| axis.size).product();
        let Some((last, outer)) = outer.split_last() else {
            return Runs { outer: Vec::new(), last: AxisPart::whole(1), inner, count: u64::from(inner > 0) };
        };
        let rows: u64 = outer.iter().map(AxisPart::local).product();
        let count = if last.chunk() * inner == 0 { 0 } else { rows * last.blocks };
        Runs { outer: outer.to_vec(), last: *last, inner, count }
    }
}

/// Elements of one rank's buffer for a tensor that is split like this.
pub fn local_elements(shape: &[u64], split: &[AxisSplit], mesh: &[MeshAxisInfo]) -> u64 {
    Part::of(shape, split, mesh, &vec![0; mesh.len()]).elements()
}

/// Whether the rank is the one that speaks for its part: the lowest of those that hold the same.
pub fn is_owner(split: &[AxisSplit], coordinates: &[u64]) -> bool {
    let splits = |axis: usize| split.iter().any(|cut| cut.mesh.contains(&(axis as u32)));
    coordinates.iter().enumerate().all(|(axis, &coordinate)| coordinate == 0 || splits(axis))
}

/// Whether `split` cuts `shape` into equal parts and uses every mesh axis once at most.
///
/// # Errors
/// What is wrong, in a few words.
pub fn check(shape: &[u64], split: &[AxisSplit], mesh: &[MeshAxisInfo]) -> Result<(), String> {
    let mut used = Vec::new();
    for (i, cut) in split.iter().enumerate() {
        let Some(&size) = shape.get(cut.axis as usize) else {
            return Err(format!("axis {} is split, there are {}", cut.axis, shape.len()));
        };
        if split[..i].iter().any(|other| other.axis == cut.axis) {
            return Err(format!("axis {} is split twice", cut.axis));
        }
        let mut parts = cut.blocks;
        for &m in &cut.mesh {
            let Some(axis) = mesh.get(m as usize) else {
                return Err(format!("it is split over axis {m} of the mesh, which has {}", mesh.len()));
            };
            if used.contains(&m) {
                return Err(format!("it is split twice over `{}`", axis.name));
            }
            used.push(m);
            parts = parts.saturating_mul(axis.size);
        }
        let padded = size.checked_add(cut.pad).filter(|padded| parts > 0 && padded.is_multiple_of(parts));
        if padded.is_none() {
            let pad = if cut.pad > 0 { format!(" and {} of padding", cut.pad) } else { String::new() };
            return Err(format!("axis {} of {size} elements{pad} is cut into {parts} parts", cut.axis));
        }
    }
    Ok(())
}

/// The contiguous pieces of one part, in the order of the rank's buffer. There is room for the same number of elements in all,
/// so that piece `r` begins at `r * length` of the buffer; those at the end of a padded axis hold fewer, or none.
#[derive(Clone, Debug)]
pub struct Runs {
    outer: Vec<AxisPart>,
    /// The innermost axis that is not whole.
    last: AxisPart,
    /// Elements of everything inside `last`.
    inner: u64,
    count: u64,
}

impl Runs {
    /// Number of pieces.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Elements that a piece has room for.
    pub fn length(&self) -> u64 {
        self.last.chunk() * self.inner
    }

    /// Where piece `run` begins in the whole tensor, row-major, and how many elements it holds; `None` if none.
    pub fn global(&self, run: u64) -> Option<(u64, u64)> {
        let mut rest = run / self.last.blocks;
        let first = self.last.global(run % self.last.blocks * self.last.chunk());
        let held = self.last.chunk().min(self.last.size.checked_sub(first)?);
        let mut offset = first * self.inner;
        let mut stride = self.last.size * self.inner;
        for axis in self.outer.iter().rev() {
            let index = axis.global(rest % axis.local());
            if index >= axis.size {
                return None;
            }
            offset += index * stride;
            rest /= axis.local();
            stride *= axis.size;
        }
        (held > 0).then_some((offset, held * self.inner))
    }

    /// The pieces of elements `range` of the rank's buffer, the first and the last cut short: `(local, global, length)`. What is
    /// between them is padding.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
        let length = self.length().max(1);
        (range.start / length..range.end.div_ceil(length)).filter_map(move |run| {
            let (global, held) = self.global(run)?;
            let first = run * length;
            let (begin, end) = (first.max(range.start), (first + held).min(range.end));
            (begin < end).then(|| (begin, global + (begin - first), end - begin))
        })
    }

    /// All pieces: `(local, global, length)`.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.within(0..self.count * self.length())
    }
}

/// What two parts of the same tensor have in common.
#[derive(Clone, Debug)]
pub struct Overlap {
    axes: Vec<AxisOverlap>,
}

/// The common elements along one axis.
#[derive(Clone, Debug)]
struct AxisOverlap {
    segments: Vec<Segment>,
    /// Distance between neighbours in the buffer read from and in the one written to, in elements.
    from_stride: u64,
    to_stride: u64,
}

/// Neighbours on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: u64,
    to: u64,
    length: u64,
}

impl Overlap {
    /// Compares two parts; `None` if they have no element in common.
    pub fn of(from: &Part, to: &Part) -> Option<Overlap> {
        let mut axes: Vec<AxisOverlap> = Vec::new();
        let (mut from_stride, mut to_stride) = (1, 1);
        for (a, b) in from.axes.iter().zip(&to.axes).rev() {
            let segments = common(a, b);
            if segments.is_empty() {
                return None;
            }
            // Axes inside that are whole on both sides make one long axis with this one.
            match axes.last_mut() {
                Some(inner) if inner.is_whole(from_stride, to_stride) => {
                    let scale = inner.segments[0].length;
                    let scaled = |s: &Segment| Segment {
                        from: s.from * scale,
                        to: s.to * scale,
                        length: s.length * scale,
                    };
                    inner.segments = segments.iter().map(scaled).collect();
                }
                _ => axes.push(AxisOverlap { segments, from_stride, to_stride }),
            }
            from_stride *= a.local();
            to_stride *= b.local();
        }
        axes.reverse();
        Some(Overlap { axes })
    }

    /// Calls `copy(from, to, length)` for every contiguous piece, in elements of the two buffers.
    pub fn for_each(&self, mut copy: impl FnMut(u64, u64, u64)) {
        visit(&self.axes, 0, 0, &mut copy);
    }
}

impl AxisOverlap {
    /// Whether the axis, up to whose next one there are so many elements, is common from its first element to its last.
    fn is_whole(&self, from_elements: u64, to_elements: u64) -> bool {
        let [segment] = self.segments.as_slice() else { return false };
        segment.length * self.from_stride == from_elements && segment.length * self.to_stride == to_elements
    }
}

/// The innermost axis has stride 1 on both sides.
fn visit(axes: &[AxisOverlap], from: u64, to: u64, copy: &mut impl FnMut(u64, u64, u64)) {
    let Some((axis, inner)) = axes.split_first() else { return copy(from, to, 1) };
    for segment in &axis.segments {
        let (from, to) = (from + segment.from * axis.from_stride, to + segment.to * axis.to_stride);
        if inner.is_empty() {
            copy(from, to, segment.length);
            continue;
        }
        for i in 0..segment.length {
            visit(inner, from + i * axis.from_stride, to + i * axis.to_stride, copy);
        }
    }
}

/// The common elements of two parts of one axis, in order.
fn common(a: &AxisPart, b: &AxisPart) -> Vec<Segment> {
    let chunks = |axis: &AxisPart| {
        // A whole axis is one chunk, however many blocks it is said to have.
        if axis.parts == 1 { (axis.size + axis.pad, 1) } else { (axis.chunk(), axis.blocks) }
    };
    let ((a_chunk, a_count), (b_chunk, b_count)) = (chunks(a), chunks(b));
    let (mut i, mut j) = (0, 0);
    let mut segments: Vec<Segment> = Vec::new();
    while i < a_count && j < b_count {
        let (a_first, b_first) = ((i * a.parts + a.index) * a_chunk, (j * b.parts + b.index) * b_chunk);
        let (a_end, b_end) = (a_first + a_chunk, b_first + b_chunk);
        let (begin, end) = (a_first.max(b_first), a_end.min(b_end).min(a.size));
        if begin < end {
            let next = Segment {
                from: i * a_chunk + (begin - a_first),
                to: j * b_chunk + (begin - b_first),
                length: end - begin,
            };
            match segments.last_mut() {
                Some(s) if s.from + s.length == next.from && s.to + s.length == next.to => {
                    s.length += next.length
                }
                _ => segments.push(next),
            }
        }
        if a_end <= b_end {
            i += 1;
        }
        if b_end <= a_end {
            j += 1;
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn axis(name: &str, size: u64) -> MeshAxisInfo {
        MeshAxisInfo { name: name.to_owned(), size, over_nodes: false }
    }

    /// Coordinates of all ranks, the first axis slowest.
    fn ranks(mesh: &[MeshAxisInfo]) -> Vec<Vec<u64>> {
        let mut all = vec![Vec::new()];
        for axis in mesh {
            all =
                all.iter().flat_map(|c| (0..axis.size).map(move |i| [c.as_slice(), &[i]].concat())).collect();
        }
        all
    }

    /// A drawn case: a mesh of up to three axes, a shape, and splits of it that fit.
    struct Case {
        mesh: Vec<MeshAxisInfo>,
        shape: Vec<u64>,
        splits: [Vec<AxisSplit>; 2],
    }

    fn case(seed: u64) -> Case {
        let stream = Stream::new(seed, "shard");
        let mut at = 0;
        let mut draw = |below: u64| {
            at += 1;
            stream.word(at) % below
        };
        let mesh: Vec<MeshAxisInfo> =
            (0..1 + draw(3)).map(|i| axis(["dp", "fsdp", "tensor"][i as usize], 1 + draw(3))).collect();
        let axes = draw(4);
        let mut split = || -> Vec<AxisSplit> {
            let mut split: Vec<AxisSplit> = Vec::new();
            // The last mesh axis may come first: the order is that of the split.
            for m in (0..mesh.len() as u32).rev() {
                let to = draw(axes + 1) as u32;
                match split.iter_mut().find(|cut| cut.axis == to) {
                    _ if u64::from(to) == axes => {}
                    Some(cut) => cut.mesh.push(m),
                    None => split.push(AxisSplit { axis: to, mesh: vec![m], blocks: 1 + draw(3), pad: 0 }),
                }
            }
            split
        };
        let mut splits = [split(), split()];
        let parts = |split: &[AxisSplit], a: u64| -> u64 {
            let cut = split.iter().find(|cut| u64::from(cut.axis) == a);
            cut.map_or(1, |cut| cut.blocks * cut.mesh.iter().map(|&m| mesh[m as usize].size).product::<u64>())
        };
        // A multiple of both numbers of parts; sometimes nothing at all.
        let mut shape: Vec<u64> = (0..axes)
            .map(|a| {
                parts(&splits[0], a)
                    * parts(&splits[1], a)
                    * if seed % 17 == 0 { draw(3) } else { 1 + draw(2) }
            })
            .collect();
        // Shorter axes, which each split pads in its own way.
        for (a, size) in shape.iter_mut().enumerate().filter(|_| seed % 3 == 0) {
            *size -= draw(*size + 1).min(size.saturating_sub(1));
            for split in &mut splits {
                let parts = parts(split, a as u64);
                if let Some(cut) = split.iter_mut().find(|cut| cut.axis as usize == a) {
                    cut.pad = size.next_multiple_of(parts) - *size + parts * draw(2);
                }
            }
        }
        Case { mesh, shape, splits }
    }

    /// A rank's buffer by the definition: the global index of every element of it, or none for padding.
    fn buffer(
        shape: &[u64],
        split: &[AxisSplit],
        mesh: &[MeshAxisInfo],
        coordinates: &[u64],
    ) -> Vec<Option<u64>> {
        let mine = |a: usize| -> Vec<u64> {
            let Some(cut) = split.iter().find(|cut| cut.axis as usize == a) else {
                return (0..shape[a]).collect();
            };
            let block = (shape[a] + cut.pad) / cut.blocks;
            let is_mine = |i: &u64| {
                let (mut left, mut rest) = (block, i % block);
                cut.mesh.iter().all(|&m| {
                    left /= mesh[m as usize].size;
                    let chunk = rest / left;
                    rest %= left;
                    chunk == coordinates[m as usize]
                })
            };
            (0..shape[a] + cut.pad).filter(is_mine).collect()
        };
        let mut all = vec![Some(0)];
        for (a, &size) in shape.iter().enumerate() {
            let mine = mine(a);
            let next = |index: Option<u64>, i: u64| index.filter(|_| i < size).map(|index| index * size + i);
            all = all.iter().flat_map(|&index| mine.iter().map(move |&i| next(index, i))).collect();
        }
        all
    }

    /// The same from the pieces.
    fn listed(part: &Part) -> Vec<Option<u64>> {
        let mut all = vec![None; part.elements() as usize];
        for (local, global, length) in part.runs().all() {
            for i in 0..length {
                assert_eq!(all[(local + i) as usize].replace(global + i), None);
            }
        }
        all
    }

    #[test]
    fn runs_are_the_elements_of_the_part_in_order() {
        let mut padded = 0;
        for Case { mesh, shape, splits } in (0..600).map(case) {
            for (split, coordinates) in
                splits.iter().flat_map(|s| ranks(&mesh).into_iter().map(move |c| (s, c)))
            {
                assert_eq!(check(&shape, split, &mesh), Ok(()));
                let part = Part::of(&shape, split, &mesh, &coordinates);
                let expected = buffer(&shape, split, &mesh, &coordinates);
                assert_eq!(listed(&part), expected, "{shape:?} {split:?} {coordinates:?}");
                assert_eq!(local_elements(&shape, split, &mesh), expected.len() as u64);
                padded += usize::from(expected.contains(&None));
            }
        }
        assert!(padded > 300, "{padded}");
    }

    #[test]
    fn runs_within_a_range_are_those_elements() {
        for (seed, Case { mesh, shape, splits }) in (0..200).map(|seed| (seed, case(seed))) {
            let last = ranks(&mesh).pop().unwrap();
            let part = Part::of(&shape, &splits[0], &mesh, &last);
            let whole = listed(&part);
            let begin = seed * 7 % (whole.len() as u64 + 1);
            let end = begin + seed * 5 % (whole.len() as u64 - begin + 1);
            let mut found = vec![None; (end - begin) as usize];
            for (local, global, length) in part.runs().within(begin..end) {
                for i in 0..length {
                    found[(local + i - begin) as usize] = Some(global + i);
                }
            }
            assert_eq!(found, whole[begin as usize..end as usize]);
        }
    }

    #[test]
    fn owners_hold_every_element_exactly_once() {
        for Case { mesh, shape, splits } in (0..600).map(case) {
            for split in &splits {
                let owners = ranks(&mesh).into_iter().filter(|c| is_owner(split, c));
                let mut all: Vec<u64> =
                    owners.flat_map(|c| listed(&Part::of(&shape, split, &mesh, &c))).flatten().collect();
                all.sort_unstable();
                assert_eq!(all, (0..shape.iter().product()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_owner_is_the_lowest_rank_that_holds_its_part() {
        let Case { mesh, shape, splits } = case(3);
        for split in &splits {
            let all = ranks(&mesh);
            let parts: Vec<Part> = all.iter().map(|c| Part::of(&shape, split, &mesh, c)).collect();
            for (rank, coordinates) in all.iter().enumerate() {
                let lowest = parts.iter().position(|part| *part == parts[rank]);
                assert_eq!(is_owner(split, coordinates), lowest == Some(rank));
            }
        }
    }

    #[test]
    fn overlap_moves_exactly_the_common_elements() {
        for Case { mesh, shape, splits } in (0..600).map(case) {
            let part = |s: usize, c: &[u64]| Part::of(&shape, &splits[s], &mesh, c);
            let pairs =
                ranks(&mesh).into_iter().flat_map(|a| ranks(&mesh).into_iter().map(move |b| (a.clone(), b)));
            for (a, b) in pairs {
                let (from, to) = (part(0, &a), part(1, &b));
                let (sent, wanted) = (listed(&from), listed(&to));
                let mut got = vec![None; wanted.len()];
                if let Some(overlap) = Overlap::of(&from, &to) {
                    overlap.for_each(|from, to, length| {
                        for i in 0..length {
                            let slot = &mut got[(to + i) as usize];
                            let element = sent[(from + i) as usize];
                            assert!(element.is_some(), "padding is moved");
                            assert_eq!(std::mem::replace(slot, element), None, "written twice");
                        }
                    });
                }
                let expected: Vec<_> = wanted.iter().map(|g| g.filter(|_| sent.contains(g))).collect();
                assert_eq!(got, expected, "{shape:?} {splits:?} {a:?} {b:?}");
            }
        }
    }

    /// The number of pieces decides the speed: what is contiguous on both sides is one piece.
    #[test]
    fn overlap_joins_what_is_contiguous() {
        let pieces = |from: &Part, to: &Part| {
            let mut count = 0;
            Overlap::of(from, to).unwrap().for_each(|_, _, _| count += 1);
            count
        };
        let mesh = [axis("fsdp", 4)];
        let split = |axis| [AxisSplit { axis, mesh: vec![0], blocks: 1, pad: 0 }];
        let (whole, rows) = (Part::whole(&[8, 6, 8]), Part::of(&[8, 6, 8], &split(0), &mesh, &[1]));
        let columns = Part::of(&[8, 6, 8], &split(2), &mesh, &[1]);
        assert_eq!([pieces(&whole, &whole), pieces(&whole, &rows), pieces(&rows, &rows)], [1; 3]);
        assert_eq!([pieces(&whole, &columns), pieces(&columns, &rows)], [48, 12]);
        assert_eq!(pieces(&columns, &columns), 1);
    }

    #[test]
    fn axis_parts_invert() {
        let part = AxisPart { size: 12, pad: 0, blocks: 2, parts: 3, index: 1 };
        assert_eq!((0..4).map(|i| part.global(i)).collect::<Vec<_>>(), [2, 3, 8, 9]);
        let found: Vec<_> = (0..12).filter_map(|g| part.local_of(g).map(|l| (l, g))).collect();
        assert_eq!(found, [(0, 2), (1, 3), (2, 8), (3, 9)]);
    }

    #[test]
    fn check_says_what_does_not_fit() {
        let mesh = [axis("dp", 2), axis("tensor", 3)];
        let cut = |axis, mesh: &[u32], blocks| AxisSplit { axis, mesh: mesh.to_vec(), blocks, pad: 0 };
        for (split, why) in [
            (vec![cut(2, &[0], 1)], "axis 2 is split, there are 2"),
            (vec![cut(0, &[0], 1), cut(0, &[1], 1)], "axis 0 is split twice"),
            (vec![cut(0, &[2], 1)], "split over axis 2 of the mesh, which has 2"),
            (vec![cut(0, &[0], 1), cut(1, &[0], 1)], "split twice over `dp`"),
            (vec![cut(0, &[1], 1)], "axis 0 of 4 elements is cut into 3 parts"),
            (vec![cut(1, &[1, 0], 2)], "axis 1 of 6 elements is cut into 12 parts"),
            (vec![cut(1, &[], 0)], "axis 1 of 6 elements is cut into 0 parts"),
        ] {
            assert!(check(&[4, 6], &split, &mesh).unwrap_err().contains(why), "{split:?}");
        }
    }
}
