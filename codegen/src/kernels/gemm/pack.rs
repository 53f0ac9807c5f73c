//! Packing: from an operand of any strides to panels in the order the register tile reads them.
//!
//! A panel of width `W` holds, for each k in order, `W` neighbours along the operand's own dimension; those beyond its
//! edge are 0.

use crate::kir::{At, Builder, CompareOp, Mem, Type, Value};

/// What is packed.
pub struct Panels {
    /// Region of the operand.
    pub from: Mem,
    /// Its first element.
    pub at: Value,
    /// Elements between neighbours along the panel's width.
    pub stride: u64,
    /// Elements between neighbours along k.
    pub stride_k: u64,
    /// Width of a panel.
    pub width: u64,
    /// Lanes of a vector.
    pub lanes: u32,
}

/// How much, and where to.
pub struct Packing {
    /// Elements along k.
    pub depth: Value,
    /// The largest `depth` there is, known while building.
    pub max_depth: u64,
    /// Elements of the operand along the width, over all panels.
    pub count: Value,
    /// Scratch region; vectors may be stored up to `lanes · width` elements past the panel's end.
    pub to: Mem,
}

/// Packs all panels that hold `packing.count` elements, one after the other from the start of the scratch region.
pub fn pack_all(b: &mut Builder, panels: &Panels, packing: &Packing, is_whole: bool) {
    let n = super::panels(b, packing.count, panels.width);
    let zero = b.index(0);
    b.for_each(zero, n, 1, |b, j| {
        let start = b.mul_const(j, panels.width as i64);
        let to = b.mul_const(j, (panels.width * packing.max_depth) as i64);
        pack(b, panels, packing, start, to, is_whole);
    });
}

/// Packs the panel that starts at `start` along the width, to element `to` of the scratch region. `is_whole`: no panel
/// of the operand is cut by its edge.
pub fn pack(b: &mut Builder, panels: &Panels, packing: &Packing, start: Value, to: Value, is_whole: bool) {
    let offset = b.mul_const(start, panels.stride as i64);
    let at = b.add(panels.at, offset);
    let left = b.sub(packing.count, start);
    let panel = Panel { panels, packing, at, to };
    if is_whole {
        return panel.pack(b, None);
    }
    if panels.stride_k != 1 || panels.stride == 1 {
        let width = b.index(panels.width);
        let valid = b.min(left, width);
        return panel.pack(b, Some(valid));
    }
    // The transposing pack pays for every row that may be missing, so whole panels get their own code.
    let width = b.index(panels.width);
    let is_full = b.compare(CompareOp::Ge, left, width);
    b.if_else(
        is_full,
        |b| {
            panel.pack(b, None);
            Vec::new()
        },
        |b| {
            panel.pack(b, Some(left));
            Vec::new()
        },
    );
}

struct Panel<'a> {
    panels: &'a Panels,
    packing: &'a Packing,
    at: Value,
    to: Value,
}

impl Panel<'_> {
    /// `valid`: elements along the width that exist, if fewer than the width may.
    fn pack(&self, b: &mut Builder, valid: Option<Value>) {
        if self.panels.stride != 1 && self.panels.stride_k == 1 {
            self.transpose(b, valid);
        } else {
            self.copy(b, valid);
        }
    }

    /// One k after the other: vectors along the width. A vector stored beyond the panel's width is overwritten by the
    /// next k.
    fn copy(&self, b: &mut Builder, valid: Option<Value>) {
        let p = self.panels;
        let lanes = u64::from(p.lanes);
        let zero = b.index(0);
        let none = b.index(0);
        let counts: Vec<Option<Value>> = (0..p.width.div_ceil(lanes))
            .map(|v| {
                let most = b.index(lanes.min(p.width - v * lanes));
                match valid {
                    None if p.width - v * lanes >= lanes => None,
                    None => Some(most),
                    Some(valid) => {
                        let left = b.add_const(valid, -((v * lanes) as i64));
                        let left = b.max(left, none);
                        Some(b.min(left, most))
                    }
                }
            })
            .collect();
        b.for_each(zero, self.packing.depth, 1, |b, k| {
            let from = b.mul_const(k, p.stride_k as i64);
            let from = b.add(self.at, from);
            let to = b.mul_const(k, p.width as i64);
            let to = b.add(self.to, to);
            for (v, &count) in (0..).zip(&counts) {
                let index = b.add_const(from, (v * lanes * p.stride) as i64);
                let stride = (p.stride != 1).then(|| b.index(p.stride));
                let value = b.load_at(At { mem: p.from, index, stride }, p.lanes, count);
                let index = b.add_const(to, (v * lanes) as i64);
                b.store(self.packing.to, index, value);
            }
        });
    }

    /// Squares of `lanes × lanes`, transposed in registers.
    fn transpose(&self, b: &mut Builder, valid: Option<Value>) {
        let p = self.panels;
        let lanes = u64::from(p.lanes);
        let zero = b.index(0);
        let has_tail = self.packing.max_depth % lanes != 0 || b.known(self.packing.depth).is_none();
        b.for_each(zero, self.packing.depth, lanes as i64, |b, k| {
            let depth = has_tail.then(|| {
                let left = b.sub(self.packing.depth, k);
                let most = b.index(lanes);
                b.min(left, most)
            });
            for first in (0..p.width).step_by(lanes as usize) {
                let n = lanes.min(p.width - first);
                let rows = self.rows(b, k, first, n, depth, valid);
                let columns = transpose(b, &rows);
                let to = b.mul_const(k, p.width as i64);
                let to = b.add(self.to, to);
                for (j, column) in (0..).zip(columns) {
                    let index = b.add_const(to, (j * p.width + first) as i64);
                    // A vector beyond the width is overwritten by the next k, unless another square has been there.
                    let count = (n < lanes && p.width > lanes).then(|| b.index(n));
                    b.store_at(At { mem: self.packing.to, index, stride: None }, column, count);
                }
            }
        });
    }

    /// `lanes` vectors along k, of `first..first + n` along the width; zeros beyond.
    fn rows(
        &self,
        b: &mut Builder,
        k: Value,
        first: u64,
        n: u64,
        depth: Option<Value>,
        valid: Option<Value>,
    ) -> Vec<Value> {
        let p = self.panels;
        let elem = b.elem(p.from);
        let empty = b.const_float(Type::vector(elem, p.lanes), 0.0);
        (0..u64::from(p.lanes))
            .map(|i| {
                if i >= n {
                    return empty;
                }
                let from = b.add(self.at, k);
                let index = b.add_const(from, ((first + i) * p.stride) as i64);
                let count = valid.map_or(depth, |valid| {
                    let row = b.index(first + i);
                    let exists = b.compare(CompareOp::Lt, row, valid);
                    let most = depth.unwrap_or_else(|| b.index(u64::from(p.lanes)));
                    let none = b.index(0);
                    Some(b.select(exists, most, none))
                });
                b.load_at(At { mem: p.from, index, stride: None }, p.lanes, count)
            })
            .collect()
    }
}

/// Transposes a square of as many vectors as lanes, in log₂ steps that each swap blocks of `h` lanes between vectors
/// `h` apart.
pub fn transpose(b: &mut Builder, rows: &[Value]) -> Vec<Value> {
    let lanes = rows.len() as u32;
    let mut rows = rows.to_vec();
    let mut h = lanes / 2;
    while h > 0 {
        let low: Vec<u32> = (0..lanes).map(|l| if l & h == 0 { l } else { lanes + l - h }).collect();
        let high: Vec<u32> = (0..lanes).map(|l| if l & h == 0 { l + h } else { lanes + l }).collect();
        for i in (0..lanes).filter(|i| i & h == 0) {
            let (x, y) = (rows[i as usize], rows[(i + h) as usize]);
            rows[i as usize] = b.shuffle(x, y, &low);
            rows[(i + h) as usize] = b.shuffle(x, y, &high);
        }
        h /= 2;
    }
    rows
}
