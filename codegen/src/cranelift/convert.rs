//! Conversions between lane types.

use cranelift_codegen::ir::types::{F32, F32X4, F64, F64X2, I32, I32X4, I64};
use cranelift_codegen::ir::{self, InstBuilder};

use super::kernel::{Emitter, Pieces, lane_type, n_pieces, vector_type};
use crate::kir::{CompareOp, Elem, Type, Value};

impl Emitter<'_> {
    pub(super) fn convert(&mut self, to: Type, a: Value) -> Pieces {
        let (from, pieces) = (self.ty(a), self.pieces(a));
        if !to.is_vector() {
            return vec![self.convert_lane(from.elem, to.elem, pieces[0])];
        }
        match (from.elem, to.elem) {
            (_, Elem::I1) => {
                let each = |x| {
                    let zero = self.piece_of(from.elem, 0);
                    self.compare_piece(CompareOp::Ne, from.elem, x, zero)
                };
                let masks = pieces.into_iter().map(each).collect();
                self.narrow_masks(from, masks)
            }
            (Elem::I1, _) => self.numbers_of(to, pieces),
            (Elem::F32, Elem::F64) => self.widen(to, pieces, |e, low| e.b.ins().fvpromote_low(low)),
            (Elem::I32, Elem::I64) => self.widen(to, pieces, |e, low| e.b.ins().swiden_low(low)),
            (Elem::I32, Elem::F64) => self.widen(to, pieces, |e, low| {
                let wide = e.b.ins().swiden_low(low);
                e.b.ins().fcvt_from_sint(F64X2, wide)
            }),
            (Elem::F64, Elem::F32) => {
                let halves: Pieces = pieces.into_iter().map(|x| self.b.ins().fvdemote(x)).collect();
                self.pair_up(to, halves, |lane| lane)
            }
            (Elem::I64, Elem::I32) => {
                let words: Pieces = pieces.into_iter().map(|x| self.cast(I32X4, x)).collect();
                self.pair_up(to, words, |lane| 2 * lane)
            }
            (Elem::I32, Elem::F32) => {
                pieces.into_iter().map(|x| self.b.ins().fcvt_from_sint(F32X4, x)).collect()
            }
            (Elem::F32, Elem::I32) => {
                pieces.into_iter().map(|x| self.b.ins().fcvt_to_sint_sat(I32X4, x)).collect()
            }
            // What Cranelift has on scalars only; the verifier refuses conversions to the same type.
            (Elem::F32 | Elem::F64, Elem::I64)
            | (Elem::F64, Elem::I32)
            | (Elem::I64, Elem::F32 | Elem::F64)
            | (Elem::F32, Elem::F32)
            | (Elem::F64, Elem::F64)
            | (Elem::I32, Elem::I32)
            | (Elem::I64, Elem::I64) => {
                let lanes = self.lanes(&pieces, from);
                let each = |x| self.convert_lane(from.elem, to.elem, x);
                let lanes: Vec<ir::Value> = lanes.into_iter().map(each).collect();
                self.join(to, &lanes)
            }
        }
    }

    /// Four lanes of 32 bits to two pieces of two, by what makes one of the first two lanes of a piece.
    fn widen(&mut self, to: Type, pieces: Pieces, low: impl Fn(&mut Self, ir::Value) -> ir::Value) -> Pieces {
        let each = |p: usize| {
            let piece = pieces[p / 2];
            let elem = if self.b.func.dfg.value_type(piece) == F32X4 { Elem::F32 } else { Elem::I32 };
            let half = if p % 2 == 0 { piece } else { self.gather_lanes(elem, &[(piece, 2), (piece, 3)]) };
            low(self, half)
        };
        (0..n_pieces(to)).map(each).collect()
    }

    /// Two lanes (at `place(0)` and `place(1)`) of each of two pieces to one piece of four lanes.
    fn pair_up(&mut self, to: Type, halves: Pieces, place: impl Fn(u32) -> u32) -> Pieces {
        let lane = |i: usize| (halves[(i / 2).min(halves.len() - 1)], place(i as u32 % 2));
        let pieces = 0..n_pieces(to);
        pieces.map(|p| self.gather_lanes(to.elem, &[0, 1, 2, 3].map(|l| lane(4 * p + l)))).collect()
    }

    /// 0 or 1 of a vector of `i1`: the bits of 1 where the mask is set.
    fn numbers_of(&mut self, to: Type, masks: Pieces) -> Pieces {
        let one = match to.elem {
            Elem::I1 | Elem::I32 | Elem::I64 => 1,
            Elem::F32 => 1f32.to_bits() as u64,
            Elem::F64 => 1f64.to_bits(),
        };
        let masks = self.masks_for(to.elem, to.lanes, masks);
        let each = |mask| {
            let mask = self.cast(vector_type(to.elem), mask);
            let one = self.piece_of(to.elem, one);
            self.b.ins().band(mask, one)
        };
        masks.into_iter().map(each).collect()
    }

    fn convert_lane(&mut self, from: Elem, to: Elem, x: ir::Value) -> ir::Value {
        match (from, to) {
            (Elem::F32, Elem::F64) => self.b.ins().fpromote(F64, x),
            (Elem::F64, Elem::F32) => self.b.ins().fdemote(F32, x),
            (Elem::F32 | Elem::F64, Elem::I32 | Elem::I64) => self.b.ins().fcvt_to_sint_sat(lane_type(to), x),
            (Elem::I32 | Elem::I64, Elem::F32 | Elem::F64) => self.b.ins().fcvt_from_sint(lane_type(to), x),
            (Elem::I1, Elem::F32 | Elem::F64) => {
                let word = self.b.ins().uextend(I32, x);
                self.b.ins().fcvt_from_sint(lane_type(to), word)
            }
            (Elem::I1, Elem::I32 | Elem::I64) => self.b.ins().uextend(lane_type(to), x),
            (Elem::I32, Elem::I64) => self.b.ins().sextend(I64, x),
            (Elem::I64, Elem::I32) => self.b.ins().ireduce(I32, x),
            (Elem::F32 | Elem::F64, Elem::I1) => {
                let zero = self.lane_constant(from, 0);
                self.compare_piece(CompareOp::Ne, from, x, zero)
            }
            (Elem::I32 | Elem::I64, Elem::I1) => self.not_zero(x),
            // The verifier refuses conversions to the same type.
            (Elem::I1, Elem::I1)
            | (Elem::I32, Elem::I32)
            | (Elem::I64, Elem::I64)
            | (Elem::F32, Elem::F32)
            | (Elem::F64, Elem::F64) => x,
        }
    }
}
