//! Arithmetic: what each op of KIR is in the `arith` dialect, with the cases that dialect leaves open closed.

use super::{Emitter, compare_op, constant, extract, mlir_type, shuffle};
use crate::kir::{BinaryOp, CompareOp, Elem, ReduceOp, Type, UnaryOp, Value};

impl Emitter<'_> {
    pub(super) fn unary(&mut self, op: UnaryOp, a: &str, ty: Type) -> String {
        let t = mlir_type(ty);
        let intrinsic = |name: &str| format!("llvm.intr.{name}({a}) : ({t}) -> {t}");
        match op {
            UnaryOp::Neg if ty.elem.is_float() => format!("arith.negf {a} : {t}"),
            UnaryOp::Neg => {
                let zero = self.temporary(constant(ty, 0));
                format!("arith.subi {zero}, {a} : {t}")
            }
            UnaryOp::Abs if ty.elem.is_float() => intrinsic("fabs"),
            UnaryOp::Abs => format!("\"llvm.intr.abs\"({a}) <{{is_int_min_poison = false}}> : ({t}) -> {t}"),
            UnaryOp::Not => {
                let ones = self.temporary(constant(ty, u64::MAX >> (64 - ty.elem.bits())));
                format!("arith.xori {a}, {ones} : {t}")
            }
            UnaryOp::Sqrt => intrinsic("sqrt"),
            UnaryOp::Floor => intrinsic("floor"),
            UnaryOp::Ceil => intrinsic("ceil"),
            UnaryOp::Trunc => intrinsic("trunc"),
            UnaryOp::RoundEven => intrinsic("roundeven"),
            UnaryOp::RoundBf16 => {
                let bits = self.bf16_bits(a, ty);
                format!("arith.bitcast {bits} : {} to {t}", mlir_type(ty.with_elem(Elem::I32)))
            }
        }
    }

    /// Bits of an f32 value rounded to bf16, low half zero: add half a unit (and one more if the last kept bit is set),
    /// drop the low half; NaN becomes 0x7fc00000.
    pub(super) fn bf16_bits(&mut self, a: &str, ty: Type) -> String {
        let int = ty.with_elem(Elem::I32);
        let (t, ti) = (mlir_type(ty), mlir_type(int));
        let bits = self.temporary(format!("arith.bitcast {a} : {t} to {ti}"));
        let sixteen = self.temporary(constant(int, 16));
        let one = self.temporary(constant(int, 1));
        let half = self.temporary(constant(int, 0x7fff));
        let high = self.temporary(constant(int, 0xffff_0000));
        let nan = self.temporary(constant(int, 0x7fc0_0000));
        let kept = self.temporary(format!("arith.shrui {bits}, {sixteen} : {ti}"));
        let odd = self.temporary(format!("arith.andi {kept}, {one} : {ti}"));
        let bias = self.temporary(format!("arith.addi {odd}, {half} : {ti}"));
        let sum = self.temporary(format!("arith.addi {bits}, {bias} : {ti}"));
        let rounded = self.temporary(format!("arith.andi {sum}, {high} : {ti}"));
        let is_nan = self.temporary(format!("arith.cmpf uno, {a}, {a} : {t}"));
        let condition =
            if ty.is_vector() { format!("{}, ", mlir_type(ty.with_elem(Elem::I1))) } else { String::new() };
        self.temporary(format!("arith.select {is_nan}, {nan}, {rounded} : {condition}{ti}"))
    }

    pub(super) fn binary(&mut self, op: BinaryOp, a: &str, b: &str, ty: Type) -> String {
        let t = mlir_type(ty);
        let float = ty.elem.is_float();
        let plain = |name: &str| format!("arith.{name} {a}, {b} : {t}");
        match op {
            BinaryOp::Add => plain(if float { "addf" } else { "addi" }),
            BinaryOp::Sub => plain(if float { "subf" } else { "subi" }),
            BinaryOp::Mul => plain(if float { "mulf" } else { "muli" }),
            BinaryOp::Div if float => plain("divf"),
            BinaryOp::Div | BinaryOp::Rem => self.divide(op, a, b, ty),
            BinaryOp::Min => plain(if float { "minimumf" } else { "minsi" }),
            BinaryOp::Max => plain(if float { "maximumf" } else { "maxsi" }),
            BinaryOp::And => plain("andi"),
            BinaryOp::Or => plain("ori"),
            BinaryOp::Xor => plain("xori"),
            BinaryOp::Shl => self.shift("shli", a, b, ty),
            BinaryOp::ShrU => self.shift("shrui", a, b, ty),
            BinaryOp::ShrS => self.shift("shrsi", a, b, ty),
        }
    }

    /// Total division: divisors 0 and −1, which LLVM leaves undefined or may trap on, are replaced by 1, and the
    /// quotient corrected. The remainder by 1 is 0, as wanted for both. Constant divisors make all of it fold away.
    pub(super) fn divide(&mut self, op: BinaryOp, a: &str, b: &str, ty: Type) -> String {
        let t = mlir_type(ty);
        let condition =
            if ty.is_vector() { format!("{}, ", mlir_type(ty.with_elem(Elem::I1))) } else { String::new() };
        let zero = self.temporary(constant(ty, 0));
        let one = self.temporary(constant(ty, 1));
        let minus_one = self.temporary(constant(ty, u64::MAX >> (64 - ty.elem.bits())));
        let by_zero = self.temporary(format!("arith.cmpi eq, {b}, {zero} : {t}"));
        let by_minus_one = self.temporary(format!("arith.cmpi eq, {b}, {minus_one} : {t}"));
        let special = self.temporary(format!(
            "arith.ori {by_zero}, {by_minus_one} : {}",
            mlir_type(ty.with_elem(Elem::I1))
        ));
        let divisor = self.temporary(format!("arith.select {special}, {one}, {b} : {condition}{t}"));
        if op == BinaryOp::Rem {
            return format!("arith.remsi {a}, {divisor} : {t}");
        }
        let quotient = self.temporary(format!("arith.divsi {a}, {divisor} : {t}"));
        let negated = self.temporary(format!("arith.subi {zero}, {a} : {t}"));
        let quotient =
            self.temporary(format!("arith.select {by_minus_one}, {negated}, {quotient} : {condition}{t}"));
        format!("arith.select {by_zero}, {zero}, {quotient} : {condition}{t}")
    }

    pub(super) fn shift(&mut self, name: &str, a: &str, b: &str, ty: Type) -> String {
        let mask = self.temporary(constant(ty, ty.elem.bits() as u64 - 1));
        let amount = self.temporary(format!("arith.andi {b}, {mask} : {}", mlir_type(ty)));
        format!("arith.{name} {a}, {amount} : {}", mlir_type(ty))
    }

    pub(super) fn convert(&mut self, a: &str, from: Type, to: Type) -> String {
        let (f, t) = (mlir_type(from), mlir_type(to));
        let cast = |name: &str| format!("arith.{name} {a} : {f} to {t}");
        match (from.elem, to.elem) {
            (Elem::F32, Elem::F64) => cast("extf"),
            (Elem::F64, Elem::F32) => cast("truncf"),
            (Elem::F32 | Elem::F64, Elem::I32 | Elem::I64) => {
                // The dialect has an op of this name, which does not translate on vectors.
                let suffix = format!("{}.{}", overload(to), overload(from));
                format!("llvm.call_intrinsic \"llvm.fptosi.sat.{suffix}\"({a}) : ({f}) -> {t}")
            }
            (Elem::I32 | Elem::I64, Elem::F32 | Elem::F64) => cast("sitofp"),
            (Elem::I1, Elem::F32 | Elem::F64) => cast("uitofp"),
            (Elem::I1, Elem::I32 | Elem::I64) => cast("extui"),
            (Elem::I32, Elem::I64) => cast("extsi"),
            (Elem::I64, Elem::I32) => cast("trunci"),
            (Elem::F32 | Elem::F64 | Elem::I32 | Elem::I64, Elem::I1) => {
                let zero = self.temporary(constant(from, 0));
                format!("{} {a}, {zero} : {f}", compare_op(CompareOp::Ne, from.elem))
            }
            // The verifier refuses conversions to the same type.
            (Elem::I1, Elem::I1)
            | (Elem::I32, Elem::I32)
            | (Elem::I64, Elem::I64)
            | (Elem::F32, Elem::F32)
            | (Elem::F64, Elem::F64) => cast("bitcast"),
        }
    }

    /// The tree of [`Op::Reduce`], on halves of vectors as long as there are any.
    pub(super) fn reduce(&mut self, op: ReduceOp, a: Value) -> String {
        let mut ty = self.ty(a);
        let mut name = self.name(a);
        while ty.lanes > 2 {
            let half = ty.lanes.next_power_of_two() / 2;
            let low: Vec<u32> = (0..half).collect();
            let high: Vec<u32> = (half..2 * half).map(|l| if l < ty.lanes { l } else { 0 }).collect();
            let halved = Type::vector(ty.elem, half);
            let low = self.temporary(shuffle(&name, &name, &low, ty));
            let high = self.temporary(shuffle(&name, &name, &high, ty));
            let text = self.binary(op.binary(), &low, &high, halved);
            name = self.temporary(text);
            let combined = ty.lanes - half;
            if combined < half {
                let keep: Vec<u32> = (0..half).map(|l| if l < combined { l } else { half + l }).collect();
                name = self.temporary(shuffle(&name, &low, &keep, halved));
            }
            ty = halved;
        }
        let first = self.temporary(extract(&name, 0, ty));
        let second = self.temporary(extract(&name, 1, ty));
        self.binary(op.binary(), &first, &second, Type::scalar(ty.elem))
    }
}

/// A type in the name of an overloaded LLVM intrinsic.
fn overload(ty: Type) -> String {
    let vector = if ty.is_vector() { format!("v{}", ty.lanes) } else { String::new() };
    format!("{vector}{}{}", if ty.elem.is_float() { "f" } else { "i" }, ty.elem.bits())
}
