//! The mesh of a program: ranks, their coordinates, and the groups that collectives run in.

use crate::abi::MeshAxisInfo;

/// A box of ranks, numbered row-major, the first axis slowest. Without axes it is one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    sizes: Vec<u64>,
}

impl Mesh {
    /// The mesh of [`ProgramInfo::mesh`](crate::abi::ProgramInfo::mesh).
    pub fn new(axes: &[MeshAxisInfo]) -> Mesh {
        Mesh { sizes: axes.iter().map(|axis| axis.size).collect() }
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.sizes.iter().product::<u64>() as usize
    }

    /// Coordinates of a rank, one per axis.
    pub fn coordinates(&self, rank: usize) -> Vec<u64> {
        let mut rest = rank as u64;
        let mut coordinates = vec![0; self.sizes.len()];
        for (at, size) in coordinates.iter_mut().zip(&self.sizes).rev() {
            *at = rest % size;
            rest /= size;
        }
        coordinates
    }

    /// The rank at coordinates.
    pub fn rank_at(&self, coordinates: &[u64]) -> usize {
        self.sizes.iter().zip(coordinates).fold(0, |rank, (size, at)| rank * size + at) as usize
    }

    /// Number of ranks of a group over `axes`, indices of the mesh's axes.
    pub fn ways(&self, axes: &[u32]) -> usize {
        axes.iter().map(|&axis| self.sizes[axis as usize]).product::<u64>() as usize
    }

    /// The place of a rank in its group over `axes`: row-major over those axes in their order.
    pub fn position(&self, rank: usize, axes: &[u32]) -> usize {
        let coordinates = self.coordinates(rank);
        let row_major = |place, &axis: &u32| place * self.sizes[axis as usize] + coordinates[axis as usize];
        axes.iter().fold(0, row_major) as usize
    }

    /// The ranks that differ from `rank` in `axes` only, by their [`Mesh::position`].
    pub fn group(&self, rank: usize, axes: &[u32]) -> Vec<usize> {
        let mut coordinates = self.coordinates(rank);
        let member = |place: usize| {
            let mut rest = place as u64;
            for &axis in axes.iter().rev() {
                coordinates[axis as usize] = rest % self.sizes[axis as usize];
                rest /= self.sizes[axis as usize];
            }
            self.rank_at(&coordinates)
        };
        (0..self.ways(axes)).map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(sizes: &[u64]) -> Mesh {
        Mesh { sizes: sizes.to_vec() }
    }

    #[test]
    fn mesh_numbers_ranks_row_major() {
        let mesh = mesh(&[2, 3, 4]);
        assert_eq!(mesh.ranks(), 24);
        assert_eq!(mesh.coordinates(23), [1, 2, 3]);
        assert_eq!(mesh.coordinates(5), [0, 1, 1]);
        for rank in 0..24 {
            assert_eq!(mesh.rank_at(&mesh.coordinates(rank)), rank);
        }
        assert_eq!(Mesh::new(&[]).ranks(), 1);
    }

    #[test]
    fn mesh_groups_are_in_order_of_position() {
        let mesh = mesh(&[2, 3, 4]);
        assert_eq!(mesh.group(5, &[2, 0]), [4, 16, 5, 17, 6, 18, 7, 19]);
        for rank in 0..24 {
            for axes in [&[2, 0][..], &[1], &[0, 1, 2], &[]] {
                let group = mesh.group(rank, axes);
                assert_eq!(group[mesh.position(rank, axes)], rank);
                assert!(group.iter().all(|&member| mesh.group(member, axes) == group));
            }
        }
    }
}
