//! Sizes of the register tile and the cache blocks, from the shape and the target.

use crate::target::Target;

/// Longest block along k: a panel of `MR × KC` then takes about half of L1.
const MAX_DEPTH: u64 = 384;
/// Sides a tile may have, about. Wide tiles pack less per product, small ones spread over threads.
const SIDES: [u64; 6] = [384, 288, 192, 144, 96, 48];
/// Numbers of threads the tiles shall spread over.
const THREADS: [u64; 3] = [2, 4, 8];

/// Most panels of b that rows of a are read in place for; more are worth packing the rows.
const PANELS_IN_PLACE: u64 = 3;

/// How the operands lie in memory, as far as it matters for packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// Whether packing rows of a transposes.
    pub transposes_rows: bool,
    /// Whether packing columns of b transposes.
    pub transposes_columns: bool,
    /// Whether register tiles may read rows of a where they lie, one element at a time: they are contiguous along k, of
    /// the type of the sums, and do not all fall into one set of L1.
    pub rows_in_place: bool,
}

impl Layouts {
    /// Relative time of a tile per element along k: register tiles do two vectors of multiply-adds in a cycle, a pack
    /// takes about half a cycle per element, being bound by the latency of the last-level cache (measured on AMD Zen 5).
    fn time(&self, blocks: &Blocks, lanes: u64) -> u64 {
        let pack = |transposes: bool, n: u64| if transposes { 150 * n } else { 100 * n };
        let rows = if blocks.packs_rows {
            pack(self.transposes_rows, blocks.tile_rows)
        } else {
            50 * blocks.tile_rows
        };
        let columns = pack(self.transposes_columns, blocks.tile_columns);
        blocks.tile_rows * blocks.tile_columns * 120 / lanes + rows + columns
    }
}

/// Block sizes in elements. Tiles are whole numbers of register tiles; the last of each kind may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of the register tile.
    pub mr: u64,
    /// Columns of the register tile, a multiple of the lanes.
    pub nr: u64,
    /// Elements of a block along k.
    pub kc: u64,
    /// Blocks along k.
    pub n_k: u64,
    /// Rows of a tile.
    pub tile_rows: u64,
    /// Columns of a tile.
    pub tile_columns: u64,
    /// Tiles along the rows.
    pub n_rows: u64,
    /// Tiles along the columns.
    pub n_columns: u64,
    /// Whether rows of a are packed, or read in place.
    pub packs_rows: bool,
}

impl Blocks {
    /// Chooses for a product of `m × n × k` elements of `bytes` bytes.
    pub fn choose(
        m: u64,
        n: u64,
        k: u64,
        lanes: u64,
        bytes: u64,
        layouts: Layouts,
        target: &Target,
    ) -> Blocks {
        let (mr, vectors) = register_tile(m, n, lanes, target);
        let nr = vectors * lanes;
        let max_depth = MAX_DEPTH * 4 / bytes;
        let kc = k.div_ceil(k.div_ceil(max_depth).max(1)).max(1);
        // The packed block of b takes at most six tenths of L2.
        let fits = (target.l2_bytes * 6 / 10 / (kc * bytes)).max(nr);
        let sides = || SIDES.into_iter();
        let all = sides().flat_map(|rows| sides().map(move |columns| (rows, columns)));
        let split_into = |&(rows, columns): &(u64, u64)| {
            let (tile_rows, n_rows) = split(m, rows, mr);
            let (tile_columns, n_columns) = split(n, columns.min(fits), nr);
            let packs_rows = !layouts.rows_in_place || m % mr != 0 || tile_columns > PANELS_IN_PLACE * nr;
            let n_k = k.div_ceil(kc);
            Blocks { mr, nr, kc, n_k, tile_rows, tile_columns, n_rows, n_columns, packs_rows }
        };
        // The time of the busiest thread, over numbers of threads; the first of equals, which has the largest tiles.
        let time = |blocks: &Blocks| -> u64 {
            let tile = layouts.time(blocks, lanes);
            THREADS.iter().map(|t| (blocks.n_rows * blocks.n_columns).div_ceil(*t) * tile * t).sum()
        };
        let all: Vec<Blocks> = all.map(|s| split_into(&s)).collect();
        let mut best = all[0];
        for blocks in all {
            if time(&blocks) < time(&best) {
                best = blocks;
            }
        }
        best
    }

    /// Whether no panel along a dimension of this size is cut.
    pub fn tile_rows_are_whole(&self, size: u64) -> bool {
        size % self.mr == 0
    }

    /// As [`Blocks::tile_rows_are_whole`] for columns.
    pub fn tile_columns_are_whole(&self, size: u64) -> bool {
        size % self.nr == 0
    }
}

/// Equal parts of about `wanted`, each a multiple of `unit`: (size of a part, number of parts).
fn split(size: u64, wanted: u64, unit: u64) -> (u64, u64) {
    let parts = size.div_ceil(wanted.max(1)).max(1);
    let part = size.div_ceil(parts).next_multiple_of(unit);
    (part, size.div_ceil(part).max(1))
}

/// Rows and vectors of the register tile: the shape that computes the fewest elements beyond the edges, among those
/// whose accumulators, vectors of b and one broadcast fit the registers. The percentage is what a shape loses beside the
/// square-ish one: tall tiles load a broadcast for nearly every multiply-add, wide ones stream more of b from L2.
pub fn register_tile(m: u64, n: u64, lanes: u64, target: &Target) -> (u64, u64) {
    let accumulators = u64::from(target.vector_registers) * 3 / 4;
    let shapes = [(2, 100), (3, 101), (4, 103), (1, 106), (8, 108)]
        .map(|(vectors, percent)| (accumulators / vectors, vectors, percent));
    let few_rows = [1, 2, 4].map(|rows| (rows, (accumulators / rows).min(8), 100));
    let computed = |&(mr, vectors, percent): &(u64, u64, u64)| {
        m.next_multiple_of(mr) * n.next_multiple_of(vectors * lanes) * percent
    };
    let all = shapes.into_iter().chain(few_rows.into_iter().filter(|&(rows, ..)| m <= rows));
    let (mr, vectors, _) = all.min_by_key(computed).expect("there are shapes");
    (mr, vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{X86_64_V3, X86_64_V4};

    const COPIES: Layouts =
        Layouts { transposes_rows: false, transposes_columns: false, rows_in_place: false };

    #[test]
    fn gemm_blocks_of_large_products_use_the_square_tile() {
        let blocks = Blocks::choose(2048, 768, 288, 16, 4, COPIES, &X86_64_V4);
        assert_eq!((blocks.mr, blocks.nr, blocks.n_k), (12, 32, 1));
        assert!(blocks.n_rows * blocks.n_columns >= 8);
        let blocks = Blocks::choose(1024, 1024, 1024, 8, 4, COPIES, &X86_64_V3);
        assert_eq!((blocks.mr, blocks.nr), (6, 16));
    }

    #[test]
    fn gemm_blocks_pack_rows_that_many_columns_read() {
        let layouts = Layouts { transposes_rows: true, transposes_columns: false, rows_in_place: true };
        assert!(!Blocks::choose(128, 288, 32_000, 16, 4, layouts, &X86_64_V4).packs_rows);
        assert!(!Blocks::choose(960, 48, 64, 16, 4, layouts, &X86_64_V4).packs_rows);
        assert!(Blocks::choose(961, 48, 64, 16, 4, layouts, &X86_64_V4).packs_rows);
        assert!(Blocks::choose(960, 48, 64, 16, 4, COPIES, &X86_64_V4).packs_rows);
    }

    #[test]
    fn gemm_blocks_fit_narrow_results() {
        assert_eq!(Blocks::choose(960, 48, 64, 16, 4, COPIES, &X86_64_V4).nr, 48);
        assert_eq!(Blocks::choose(960, 16, 64, 16, 4, COPIES, &X86_64_V4).nr, 16);
        assert_eq!(Blocks::choose(1, 4096, 64, 16, 4, COPIES, &X86_64_V4).mr, 1);
    }

    #[test]
    fn gemm_blocks_cover_every_size() {
        for target in [&X86_64_V3, &X86_64_V4] {
            for m in [1, 5, 12, 13, 500] {
                for n in [1, 16, 33, 1000] {
                    for k in [1, 383, 385, 2000] {
                        let b = Blocks::choose(m, n, k, u64::from(target.f32_lanes()), 4, COPIES, target);
                        assert!(b.tile_rows * b.n_rows >= m && b.tile_rows * (b.n_rows - 1) < m);
                        assert!(b.tile_columns * b.n_columns >= n && b.tile_columns * (b.n_columns - 1) < n);
                        assert!(b.kc * b.n_k >= k && b.kc * (b.n_k - 1) < k);
                        assert!(b.tile_rows % b.mr == 0 && b.tile_columns % b.nr == 0);
                    }
                }
            }
        }
    }
}
