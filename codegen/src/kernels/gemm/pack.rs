//! Packing: from an operand of any strides to panels in the order the register tile reads them.
//!
//! A panel of width `W` holds, for each k in order, `W` neighbours along the operand's own dimension; those beyond its
//! edge are 0.

use crate::kernels::buffers::offset_by;
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
    /// Scratch region, at least [`packed_len`] long.
    pub to: Mem,
    /// First element there.
    pub to_at: Value,
}

impl Panels {
    /// Whether vectors run along k in memory, so that packing transposes.
    fn is_transposing(&self) -> bool {
        self.stride != 1 && self.stride_k == 1
    }

    /// Elements from one packed panel to the next. A vector stored past the end of a panel must not meet the next one.
    pub fn panel_len(&self, max_depth: u64) -> u64 {
        panel_len(self.width, max_depth, self.lanes)
    }
}

/// Elements a packed panel takes in scratch.
pub fn panel_len(width: u64, max_depth: u64, lanes: u32) -> u64 {
    let lanes = u64::from(lanes);
    width * max_depth + if width % lanes == 0 { 0 } else { lanes }
}

/// Scratch elements for the panels of `count` elements; also room for the rows a transposing pack stores in excess.
pub fn packed_len(count: u64, width: u64, max_depth: u64, lanes: u32) -> u64 {
    count.div_ceil(width) * panel_len(width, max_depth, lanes) + u64::from(lanes) * width
}

/// Packs all panels that hold `packing.count` elements, one after the other from `packing.to_at` on.
/// `is_whole`: none is cut by the operand's edge.
pub fn pack_all(b: &mut Builder, panels: &Panels, packing: &Packing, is_whole: bool) {
    let zero = b.index(0);
    let width = b.index(panels.width);
    let n_whole = b.div(packing.count, width);
    if panels.is_transposing() {
        b.for_each(zero, n_whole, 1, |b, j| Panel::at(b, panels, packing, j).transpose(b, None));
    } else {
        copy_whole(b, panels, packing, n_whole);
    }
    if is_whole {
        return;
    }
    let whole = b.mul(n_whole, width);
    let is_left = b.compare(CompareOp::Lt, whole, packing.count);
    b.if_then(is_left, |b| {
        let valid = b.sub(packing.count, whole);
        let panel = Panel::at(b, panels, packing, n_whole);
        if panels.is_transposing() { panel.transpose(b, Some(valid)) } else { panel.copy(b, valid) }
    });
}

/// One k after the other, all whole panels of it: memory is read in the order it lies when the operand is contiguous
/// along its own dimension. A vector stored beyond a panel's width is overwritten by the next k.
fn copy_whole(b: &mut Builder, p: &Panels, packing: &Packing, n: Value) {
    let lanes = u64::from(p.lanes);
    let zero = b.index(0);
    b.for_each(zero, packing.depth, 1, |b, k| {
        let from = offset_by(b, p.at, &[(k, p.stride_k)]);
        let to = offset_by(b, packing.to_at, &[(k, p.width)]);
        b.for_each(zero, n, 1, |b, j| {
            let from = offset_by(b, from, &[(j, p.width * p.stride)]);
            let to = offset_by(b, to, &[(j, p.panel_len(packing.max_depth))]);
            for first in (0..p.width).step_by(p.lanes as usize) {
                let count = (p.width - first < lanes).then(|| b.index(p.width - first));
                p.copy_vector(b, packing, from, to, first, count);
            }
        });
    });
}

impl Panels {
    /// Elements `first..` of the width at one k.
    fn copy_vector(
        &self,
        b: &mut Builder,
        packing: &Packing,
        from: Value,
        to: Value,
        first: u64,
        count: Option<Value>,
    ) {
        let index = b.add_const(from, (first * self.stride) as i64);
        let stride = (self.stride != 1).then(|| b.index(self.stride));
        let value = b.load_at(At { mem: self.from, index, stride }, self.lanes, count);
        let index = b.add_const(to, first as i64);
        b.store(packing.to, index, value);
    }
}

/// One panel.
struct Panel<'a> {
    panels: &'a Panels,
    packing: &'a Packing,
    at: Value,
    to: Value,
}

impl<'a> Panel<'a> {
    fn at(b: &mut Builder, panels: &'a Panels, packing: &'a Packing, j: Value) -> Panel<'a> {
        let at = offset_by(b, panels.at, &[(j, panels.width * panels.stride)]);
        let to = offset_by(b, packing.to_at, &[(j, panels.panel_len(packing.max_depth))]);
        Panel { panels, packing, at, to }
    }

    /// The last panel, of which `valid` elements along the width exist.
    fn copy(&self, b: &mut Builder, valid: Value) {
        let p = self.panels;
        let lanes = u64::from(p.lanes);
        let zero = b.index(0);
        let counts: Vec<Value> = (0..p.width)
            .step_by(p.lanes as usize)
            .map(|first| {
                let left = b.add_const(valid, -(first as i64));
                let left = b.max(left, zero);
                let most = b.index(lanes.min(p.width - first));
                b.min(left, most)
            })
            .collect();
        b.for_each(zero, self.packing.depth, 1, |b, k| {
            let from = offset_by(b, self.at, &[(k, p.stride_k)]);
            let to = offset_by(b, self.to, &[(k, p.width)]);
            for (v, &count) in (0..).zip(&counts) {
                p.copy_vector(b, self.packing, from, to, v * lanes, Some(count));
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
