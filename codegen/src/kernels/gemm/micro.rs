//! The register tile.

use crate::kir::{Builder, Elem, Mem, Type, Value};

/// `mr × vectors·lanes` sums over a block along k.
#[derive(Clone, Copy, Debug)]
pub struct Micro {
    /// Rows.
    pub mr: u64,
    /// Vectors per row.
    pub vectors: u64,
    /// Lanes of a vector.
    pub lanes: u32,
    /// Type of the sums.
    pub elem: Elem,
    /// Left operand, read one element at a time.
    pub left: Mem,
    /// Elements between its rows, and along k: `(1, mr)` for a packed panel.
    pub left_strides: (u64, u64),
    /// Packed panels of the right operand, each `[depth, vectors·lanes]`.
    pub right: Mem,
}

impl Micro {
    /// Columns.
    pub fn nr(&self) -> u64 {
        self.vectors * u64::from(self.lanes)
    }

    /// The sums of rows in order, vectors of a row in order.
    pub fn multiply(&self, b: &mut Builder, left_at: Value, right_at: Value, depth: Value) -> Vec<Value> {
        let zero_sum = b.const_float(Type::vector(self.elem, self.lanes), 0.0);
        let init = vec![zero_sum; (self.mr * self.vectors) as usize];
        let zero = b.index(0);
        b.for_carried(zero, depth, 1, &init, |b, k, sums| {
            let left = b.mul_const(k, self.left_strides.1 as i64);
            let left = b.add(left_at, left);
            let right = b.mul_const(k, self.nr() as i64);
            let right = b.add(right_at, right);
            let columns: Vec<Value> = (0..self.vectors)
                .map(|v| {
                    let at = b.add_const(right, (v * u64::from(self.lanes)) as i64);
                    b.load(self.right, at, self.lanes)
                })
                .collect();
            let mut next = Vec::with_capacity(sums.len());
            for (i, row) in (0..).zip(sums.chunks(self.vectors as usize)) {
                let at = b.add_const(left, (i * self.left_strides.0) as i64);
                let x = b.load(self.left, at, 1);
                let x = b.splat(x, self.lanes);
                next.extend(row.iter().zip(&columns).map(|(&sum, &y)| b.fma(x, y, sum)));
            }
            next
        })
    }
}
