//! Arithmetic, piece by piece; what Cranelift has on scalars only is taken apart into lanes.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{I32X4, I64X2};
use cranelift_codegen::ir::{self, InstBuilder};

use super::kernel::{Emitter, Pieces, Uniform, lanes_per_piece, n_pieces, vector_type};
use crate::kir::{BinaryOp, CompareOp, Elem, Type, UnaryOp, Value};

impl Emitter<'_> {
    // ---- one operand

    pub(super) fn unary(&mut self, op: UnaryOp, a: Value) -> Pieces {
        let (elem, pieces) = (self.ty(a).elem, self.pieces(a));
        pieces.into_iter().map(|x| self.unary_piece(op, elem, x)).collect()
    }

    fn unary_piece(&mut self, op: UnaryOp, elem: Elem, x: ir::Value) -> ir::Value {
        match op {
            UnaryOp::Neg if elem.is_float() => self.b.ins().fneg(x),
            UnaryOp::Neg => self.b.ins().ineg(x),
            UnaryOp::Abs if elem.is_float() => self.b.ins().fabs(x),
            UnaryOp::Abs => self.b.ins().iabs(x),
            UnaryOp::Not => {
                let ones = self.same(elem, u64::MAX >> (64 - elem.bits()), x);
                self.b.ins().bxor(x, ones)
            }
            UnaryOp::Sqrt => self.b.ins().sqrt(x),
            UnaryOp::Floor => self.b.ins().floor(x),
            UnaryOp::Ceil => self.b.ins().ceil(x),
            UnaryOp::Trunc => self.b.ins().trunc(x),
            UnaryOp::RoundEven => self.b.ins().nearest(x),
            UnaryOp::RoundBf16 => {
                let float = self.b.func.dfg.value_type(x);
                let bits = self.bf16_bits(x);
                self.cast(float, bits)
            }
        }
    }

    /// Bits of an f32 scalar or piece rounded to bf16, low half zero: add half a unit (and one more if the last kept bit
    /// is set), drop the low half; NaN becomes 0x7fc00000.
    pub(super) fn bf16_bits(&mut self, x: ir::Value) -> ir::Value {
        let int = if self.b.func.dfg.value_type(x).is_vector() { I32X4 } else { ir::types::I32 };
        let bits = self.cast(int, x);
        let [one, half, high, nan] =
            [1, 0x7fff, 0xffff_0000, 0x7fc0_0000].map(|c| self.same(Elem::I32, c, x));
        let kept = self.b.ins().ushr_imm_u(bits, 16);
        let odd = self.b.ins().band(kept, one);
        let bias = self.b.ins().iadd(odd, half);
        let sum = self.b.ins().iadd(bits, bias);
        let rounded = self.b.ins().band(sum, high);
        let is_nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        if int.is_vector() {
            self.b.ins().bitselect(is_nan, nan, rounded)
        } else {
            self.b.ins().select(is_nan, nan, rounded)
        }
    }

    // ---- two operands

    pub(super) fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Pieces {
        let ty = self.ty(a);
        if ty.is_vector() {
            match op {
                BinaryOp::Div | BinaryOp::Rem if !ty.elem.is_float() => return self.by_lane(op, a, b),
                BinaryOp::Shl | BinaryOp::ShrU | BinaryOp::ShrS => return self.shift(op, a, b),
                BinaryOp::Div
                | BinaryOp::Rem
                | BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Mul
                | BinaryOp::Min
                | BinaryOp::Max
                | BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::Xor => {}
            }
        }
        let (left, right) = (self.pieces(a), self.pieces(b));
        left.into_iter().zip(right).map(|(x, y)| self.binary_piece(op, ty.elem, x, y)).collect()
    }

    /// An op on vectors of which Cranelift has the scalar form only.
    fn by_lane(&mut self, op: BinaryOp, a: Value, b: Value) -> Pieces {
        let ty = self.ty(a);
        let (left, right) = (self.pieces(a), self.pieces(b));
        let (left, right) = (self.lanes(&left, ty), self.lanes(&right, ty));
        let each = |(x, y)| self.binary_piece(op, ty.elem, x, y);
        let lanes: Vec<ir::Value> = left.into_iter().zip(right).map(each).collect();
        self.join(ty, &lanes)
    }

    /// Cranelift shifts all lanes of a vector by one amount.
    fn shift(&mut self, op: BinaryOp, a: Value, b: Value) -> Pieces {
        let elem = self.ty(a).elem;
        let amount = match self.uniform[b.0 as usize] {
            Some(Uniform::Bits(bits)) => self.lane_constant(elem, bits),
            Some(Uniform::Value(amount)) => amount,
            None => return self.by_lane(op, a, b),
        };
        let pieces = self.pieces(a);
        pieces.into_iter().map(|x| self.binary_piece(op, elem, x, amount)).collect()
    }

    /// The op on scalars or pieces. Shifts take a scalar amount, and count it modulo the width, as Cranelift does;
    /// division of integers takes scalars.
    pub(super) fn binary_piece(&mut self, op: BinaryOp, elem: Elem, x: ir::Value, y: ir::Value) -> ir::Value {
        let float = elem.is_float();
        match op {
            BinaryOp::Add if float => self.b.ins().fadd(x, y),
            BinaryOp::Sub if float => self.b.ins().fsub(x, y),
            BinaryOp::Mul if float => self.b.ins().fmul(x, y),
            BinaryOp::Div if float => self.b.ins().fdiv(x, y),
            BinaryOp::Min if float => self.b.ins().fmin(x, y),
            BinaryOp::Max if float => self.b.ins().fmax(x, y),
            BinaryOp::Add => self.b.ins().iadd(x, y),
            BinaryOp::Sub => self.b.ins().isub(x, y),
            BinaryOp::Mul => self.b.ins().imul(x, y),
            BinaryOp::Div | BinaryOp::Rem => self.divide(op, elem, x, y),
            BinaryOp::Min => self.b.ins().smin(x, y),
            BinaryOp::Max => self.b.ins().smax(x, y),
            BinaryOp::And => self.b.ins().band(x, y),
            BinaryOp::Or => self.b.ins().bor(x, y),
            BinaryOp::Xor => self.b.ins().bxor(x, y),
            BinaryOp::Shl => self.b.ins().ishl(x, y),
            BinaryOp::ShrU => self.b.ins().ushr(x, y),
            BinaryOp::ShrS => self.b.ins().sshr(x, y),
        }
    }

    /// Total division of integer scalars: divisors 0 and −1, on which the machine's division traps, are replaced by 1,
    /// and the quotient corrected. The remainder by 1 is 0, as wanted for both.
    fn divide(&mut self, op: BinaryOp, elem: Elem, x: ir::Value, y: ir::Value) -> ir::Value {
        let [zero, one, minus_one] =
            [0, 1, u64::MAX >> (64 - elem.bits())].map(|c| self.lane_constant(elem, c));
        let by_zero = self.b.ins().icmp(IntCC::Equal, y, zero);
        let by_minus_one = self.b.ins().icmp(IntCC::Equal, y, minus_one);
        let special = self.b.ins().bor(by_zero, by_minus_one);
        let divisor = self.b.ins().select(special, one, y);
        if op == BinaryOp::Rem {
            return self.b.ins().srem(x, divisor);
        }
        let quotient = self.b.ins().sdiv(x, divisor);
        let negated = self.b.ins().ineg(x);
        let quotient = self.b.ins().select(by_minus_one, negated, quotient);
        self.b.ins().select(by_zero, zero, quotient)
    }

    // ---- truth values

    pub(super) fn compare(&mut self, op: CompareOp, a: Value, b: Value) -> Pieces {
        let (ty, left, right) = (self.ty(a), self.pieces(a), self.pieces(b));
        let pairs = left.into_iter().zip(right);
        let found: Pieces = pairs.map(|(x, y)| self.compare_piece(op, ty.elem, x, y)).collect();
        self.narrow_masks(ty, found)
    }

    /// `I8` of scalars, masks as wide as the lanes of pieces.
    pub(super) fn compare_piece(
        &mut self,
        op: CompareOp,
        elem: Elem,
        x: ir::Value,
        y: ir::Value,
    ) -> ir::Value {
        let (int, float) = match op {
            CompareOp::Eq => (IntCC::Equal, FloatCC::Equal),
            // "Unordered or not equal".
            CompareOp::Ne => (IntCC::NotEqual, FloatCC::NotEqual),
            CompareOp::Lt => (IntCC::SignedLessThan, FloatCC::LessThan),
            CompareOp::Le => (IntCC::SignedLessThanOrEqual, FloatCC::LessThanOrEqual),
            CompareOp::Gt => (IntCC::SignedGreaterThan, FloatCC::GreaterThan),
            CompareOp::Ge => (IntCC::SignedGreaterThanOrEqual, FloatCC::GreaterThanOrEqual),
        };
        if elem.is_float() { self.b.ins().fcmp(float, x, y) } else { self.b.ins().icmp(int, x, y) }
    }

    /// The `i1` value of comparisons on values of type `ty`: two masks of two 64-bit lanes become one of four.
    pub(super) fn narrow_masks(&mut self, ty: Type, masks: Pieces) -> Pieces {
        if !ty.is_vector() || lanes_per_piece(ty.elem) == 4 {
            return masks;
        }
        let masks: Pieces = masks.into_iter().map(|mask| self.cast(I32X4, mask)).collect();
        let lane = |i: usize| (masks[(i / 2).min(masks.len() - 1)], 2 * (i as u32 % 2));
        let pieces = 0..n_pieces(ty.with_elem(Elem::I1));
        pieces.map(|p| self.gather_lanes(Elem::I1, &[0, 1, 2, 3].map(|l| lane(4 * p + l)))).collect()
    }

    /// The masks of an `i1` vector, as wide as the lanes of type `elem` and in its pieces.
    pub(super) fn masks_for(&mut self, elem: Elem, lanes: u32, masks: Pieces) -> Pieces {
        if lanes_per_piece(elem) == 4 {
            return masks;
        }
        let widen = |p: usize| match p % 2 {
            0 => self.b.ins().swiden_low(masks[p / 2]),
            _ => self.b.ins().swiden_high(masks[p / 2]),
        };
        let wide: Pieces = (0..n_pieces(Type::vector(elem, lanes))).map(widen).collect();
        debug_assert!(wide.iter().all(|&w| self.b.func.dfg.value_type(w) == I64X2));
        wide
    }

    pub(super) fn select(&mut self, c: Value, a: Value, b: Value) -> Pieces {
        let (ty, left, right) = (self.ty(a), self.pieces(a), self.pieces(b));
        let pairs = left.into_iter().zip(right);
        if !self.ty(c).is_vector() {
            let condition = self.scalar(c);
            return pairs.map(|(x, y)| self.b.ins().select(condition, x, y)).collect();
        }
        let masks = self.pieces(c);
        let masks = self.masks_for(ty.elem, ty.lanes, masks);
        let each = |((x, y), mask)| {
            let mask = self.cast(vector_type(ty.elem), mask);
            self.b.ins().bitselect(mask, x, y)
        };
        pairs.zip(masks).map(each).collect()
    }
}
