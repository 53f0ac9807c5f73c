//! Simplifies iteration spaces: drops dimensions of one element and merges neighbours that every operand walks as one.

/// One dimension with the strides of all operands along it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Number of elements.
    pub size: u64,
    /// Stride of each operand.
    pub strides: Vec<u64>,
    /// The spec's dimension if its index is read; such a dimension is never merged.
    pub pinned: Option<usize>,
}

/// The dimensions `range` of a space. `strides[o]` are operand `o`'s over all of `dims`; `is_pinned(d)` says that the
/// index along `d` is read. Dimensions of one element disappear.
pub fn dims_of(
    dims: &[u64],
    range: std::ops::Range<usize>,
    strides: &[&[u64]],
    is_pinned: &dyn Fn(usize) -> bool,
) -> Vec<Dim> {
    range
        .filter(|&d| dims[d] != 1)
        .map(|d| Dim {
            size: dims[d],
            strides: strides.iter().map(|s| s[d]).collect(),
            pinned: is_pinned(d).then_some(d),
        })
        .collect()
}

/// Merges neighbours `(outer, inner)` wherever `outer stride = inner stride · inner size` for all operands.
pub fn merge(dims: Vec<Dim>) -> Vec<Dim> {
    let mut merged: Vec<Dim> = Vec::new();
    for dim in dims {
        match merged.last_mut() {
            Some(outer) if can_merge(outer, &dim) => {
                outer.size *= dim.size;
                outer.strides = dim.strides;
            }
            _ => merged.push(dim),
        }
    }
    merged
}

fn can_merge(outer: &Dim, inner: &Dim) -> bool {
    let walks_on = outer.strides.iter().zip(&inner.strides).all(|(o, i)| *o == i * inner.size);
    outer.pinned.is_none() && inner.pinned.is_none() && walks_on
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(dims: &[u64], strides: &[&[u64]], pinned: &[usize]) -> Vec<(u64, Vec<u64>)> {
        let dims = dims_of(dims, 0..dims.len(), strides, &|d| pinned.contains(&d));
        merge(dims).into_iter().map(|d| (d.size, d.strides)).collect()
    }

    #[test]
    fn merge_joins_what_all_operands_walk_as_one() {
        assert_eq!(space(&[2, 1, 3, 4], &[&[12, 9, 4, 1]], &[]), [(24, vec![1])]);
        assert_eq!(space(&[2, 3, 4], &[&[12, 4, 1], &[0, 4, 1]], &[]), [(2, vec![12, 0]), (12, vec![1, 1])]);
        assert_eq!(space(&[2, 3], &[&[0, 0]], &[]), [(6, vec![0])]);
    }

    #[test]
    fn merge_keeps_dimensions_whose_index_is_read() {
        assert_eq!(space(&[2, 3], &[&[3, 1]], &[1]), [(2, vec![3]), (3, vec![1])]);
    }
}
