//! Builds kernels op by op; what kernel templates are written with.
//!
//! Loops and conditionals take closures, so the nesting of the Rust code is the nesting of the kernel. Constants are
//! made once per kernel and stand at its head. Integer arithmetic on constants is done while building, so that index
//! expressions with known parts stay short. A template that builds something ill-typed is a mistake of ours; the
//! verifier reports it.

use std::collections::BTreeMap;

use mlc_runtime::abi::DType;

use super::{
    Access, At, BinaryOp, Block, Buffer, CompareOp, Elem, For, If, Inst, Kernel, Mem, Op, ReduceOp, Scratch,
    Type, UnaryOp, Value,
};

/// A kernel under construction.
#[derive(Debug)]
pub struct Builder {
    kernel: Kernel,
    constants: BTreeMap<(Type, u64), Value>,
    constant_bits: BTreeMap<Value, u64>,
    open: Vec<Vec<Inst>>,
}

impl Builder {
    /// A kernel of `tiles` tiles with `n_scalars` scalar arguments and an empty body.
    pub fn new(tiles: u64, n_scalars: usize) -> Builder {
        let kernel = Kernel {
            buffers: Vec::new(),
            scratch: Vec::new(),
            tiles,
            params: (0..2 + n_scalars as u32).map(Value).collect(),
            types: vec![Type::I64; 2 + n_scalars],
            body: Block::default(),
        };
        Builder { kernel, constants: BTreeMap::new(), constant_bits: BTreeMap::new(), open: vec![Vec::new()] }
    }

    /// Closes the kernel: constants first, values numbered in the order of the text.
    pub fn finish(mut self) -> Kernel {
        let body = self.open.pop().unwrap_or_default();
        debug_assert!(self.open.is_empty(), "finish inside a loop");
        let mut insts: Vec<Inst> = (self.constants.iter().map(|(&(ty, bits), &v)| (v, ty, bits)))
            .map(|(v, ty, bits)| Inst { results: vec![v], op: Op::Const(ty, bits) })
            .collect();
        insts.sort_by_key(|inst| inst.results[0]);
        insts.extend(body);
        self.kernel.body = Block { insts, yields: Vec::new() };
        super::renumber::renumber(self.kernel)
    }

    /// Declares the next buffer of the launch. The name is made unique if it is taken.
    pub fn buffer(&mut self, name: &str, dtype: DType, len: u64, access: Access) -> Mem {
        let name = self.unique(name);
        self.kernel.buffers.push(Buffer { name, dtype, len, access });
        Mem::Buffer(self.kernel.buffers.len() as u32 - 1)
    }

    /// Declares scratch memory. The name is made unique if it is taken.
    pub fn scratch(&mut self, name: &str, dtype: DType, len: u64) -> Mem {
        let name = self.unique(name);
        self.kernel.scratch.push(Scratch { name, dtype, len });
        Mem::Scratch(self.kernel.scratch.len() as u32 - 1)
    }

    fn unique(&self, name: &str) -> String {
        let taken = |n: &str| {
            self.kernel.buffers.iter().any(|b| b.name == n) || self.kernel.scratch.iter().any(|s| s.name == n)
        };
        if !taken(name) {
            return name.to_string();
        }
        (1..).map(|i| format!("{name}_{i}")).find(|n| !taken(n)).unwrap_or_default()
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Register type of one element of a region.
    pub fn elem(&self, mem: Mem) -> Elem {
        Elem::of_memory(self.kernel.mem(mem).1)
    }

    /// First tile to compute.
    pub fn tile_begin(&self) -> Value {
        self.kernel.params[0]
    }

    /// End of the tiles to compute.
    pub fn tile_end(&self) -> Value {
        self.kernel.params[1]
    }

    /// The i-th scalar argument, `i64`.
    pub fn scalar(&self, index: usize) -> Value {
        self.kernel.params[2 + index]
    }

    /// The value if it is a constant integer (its lanes', if a vector).
    pub fn known(&self, value: Value) -> Option<i64> {
        let bits = *self.constant_bits.get(&value)?;
        match self.ty(value).elem {
            Elem::I1 => Some((bits & 1) as i64),
            Elem::I32 => Some(bits as u32 as i32 as i64),
            Elem::I64 => Some(bits as i64),
            Elem::F32 | Elem::F64 => None,
        }
    }

    fn value(&mut self, ty: Type) -> Value {
        self.kernel.types.push(ty);
        Value(self.kernel.types.len() as u32 - 1)
    }

    fn push(&mut self, ty: Type, op: Op) -> Value {
        let value = self.value(ty);
        self.emit(Inst { results: vec![value], op });
        value
    }

    fn emit(&mut self, inst: Inst) {
        if let Some(block) = self.open.last_mut() {
            block.push(inst);
        }
    }

    // ---- constants

    /// A constant from the bit pattern of one lane.
    pub fn const_bits(&mut self, ty: Type, bits: u64) -> Value {
        let bits = match ty.elem.bits() {
            64 => bits,
            width => bits & ((1 << width) - 1),
        };
        if let Some(&value) = self.constants.get(&(ty, bits)) {
            return value;
        }
        let value = self.value(ty);
        self.constants.insert((ty, bits), value);
        self.constant_bits.insert(value, bits);
        value
    }

    /// An `i64`, as indices are.
    pub fn index(&mut self, value: u64) -> Value {
        self.const_bits(Type::I64, value)
    }

    /// An `i64`.
    pub fn i64(&mut self, value: i64) -> Value {
        self.const_bits(Type::I64, value as u64)
    }

    /// A scalar `i1`.
    pub fn bool(&mut self, value: bool) -> Value {
        self.const_bits(Type::I1, value as u64)
    }

    /// A constant integer of any integer type, in every lane.
    pub fn const_int(&mut self, ty: Type, value: i64) -> Value {
        self.const_bits(ty, value as u64)
    }

    /// A constant float in every lane; rounded to nearest if the type is F32.
    pub fn const_float(&mut self, ty: Type, value: f64) -> Value {
        let bits = match ty.elem {
            Elem::F32 => (value as f32).to_bits() as u64,
            Elem::F64 | Elem::I1 | Elem::I32 | Elem::I64 => value.to_bits(),
        };
        self.const_bits(ty, bits)
    }

    /// Any number in every lane, converted to the lane type (truncated for integers, `!= 0` for `i1`).
    pub fn constant(&mut self, ty: Type, value: f64) -> Value {
        match ty.elem {
            Elem::F32 | Elem::F64 => self.const_float(ty, value),
            Elem::I1 => self.const_bits(ty, (value != 0.0) as u64),
            Elem::I32 => self.const_int(ty, value as i32 as i64),
            Elem::I64 => self.const_int(ty, value as i64),
        }
    }

    /// Lane `i` holds `i`.
    pub fn iota(&mut self, elem: Elem, lanes: u32) -> Value {
        let ty = Type::vector(elem, lanes);
        if lanes == 1 { self.const_bits(ty, 0) } else { self.push(ty, Op::Iota(ty)) }
    }

    // ---- arithmetic

    /// Any op on one operand.
    pub fn unary(&mut self, op: UnaryOp, a: Value) -> Value {
        self.push(self.ty(a), Op::Unary(op, a))
    }

    /// Any op on two operands. Integer sums and products of constants, and x + 0, x − 0, x · 1, are folded.
    pub fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Value {
        let ty = self.ty(a);
        if let Some(folded) = self.fold(op, a, b) {
            return folded;
        }
        self.push(ty, Op::Binary(op, a, b))
    }

    fn fold(&mut self, op: BinaryOp, a: Value, b: Value) -> Option<Value> {
        let ty = self.ty(a);
        if ty != self.ty(b) || !matches!(ty.elem, Elem::I32 | Elem::I64) {
            return None;
        }
        match (op, self.known(a), self.known(b)) {
            (BinaryOp::Add, Some(x), Some(y)) => Some(self.const_int(ty, x.wrapping_add(y))),
            (BinaryOp::Sub, Some(x), Some(y)) => Some(self.const_int(ty, x.wrapping_sub(y))),
            (BinaryOp::Mul, Some(x), Some(y)) => Some(self.const_int(ty, x.wrapping_mul(y))),
            (BinaryOp::Add, Some(0), None) => Some(b),
            (BinaryOp::Mul, Some(1), None) => Some(b),
            (BinaryOp::Add | BinaryOp::Sub, None, Some(0)) => Some(a),
            (BinaryOp::Mul | BinaryOp::Div, None, Some(1)) => Some(a),
            (BinaryOp::Mul, Some(0), None) => Some(a),
            (BinaryOp::Mul, None, Some(0)) => Some(b),
            _ => None,
        }
    }

    /// a + b.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Add, a, b)
    }

    /// a − b.
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Sub, a, b)
    }

    /// a · b.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Mul, a, b)
    }

    /// a / b.
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Div, a, b)
    }

    /// Remainder, integers.
    pub fn rem(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Rem, a, b)
    }

    /// The smaller.
    pub fn min(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Min, a, b)
    }

    /// The larger.
    pub fn max(&mut self, a: Value, b: Value) -> Value {
        self.binary(BinaryOp::Max, a, b)
    }

    /// a · b + c, rounded once.
    pub fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.push(self.ty(a), Op::Fma(a, b, c))
    }

    /// `index + constant`, an `i64`.
    pub fn add_const(&mut self, index: Value, constant: i64) -> Value {
        let ty = self.ty(index);
        let constant = self.const_int(ty, constant);
        self.add(index, constant)
    }

    /// `index · constant`, an `i64`.
    pub fn mul_const(&mut self, index: Value, constant: i64) -> Value {
        let ty = self.ty(index);
        let constant = self.const_int(ty, constant);
        self.mul(index, constant)
    }

    /// Compares two values.
    pub fn compare(&mut self, op: CompareOp, a: Value, b: Value) -> Value {
        self.push(self.ty(a).with_elem(Elem::I1), Op::Compare(op, a, b))
    }

    /// `if condition { a } else { b }`.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        self.push(self.ty(a), Op::Select(condition, a, b))
    }

    /// Converts each lane; nothing if the type is already right.
    pub fn convert(&mut self, elem: Elem, a: Value) -> Value {
        let ty = self.ty(a).with_elem(elem);
        if ty == self.ty(a) { a } else { self.push(ty, Op::Convert(ty, a)) }
    }

    /// Keeps the bits, changes the lane type.
    pub fn bitcast(&mut self, elem: Elem, a: Value) -> Value {
        let ty = self.ty(a).with_elem(elem);
        if ty == self.ty(a) { a } else { self.push(ty, Op::Bitcast(ty, a)) }
    }

    // ---- lanes

    /// The scalar `a` in each of `lanes` lanes; `a` itself if `lanes` is 1. A constant gives a constant.
    pub fn splat(&mut self, a: Value, lanes: u32) -> Value {
        let ty = Type::vector(self.ty(a).elem, lanes);
        if lanes == 1 {
            return a;
        }
        match self.constant_bits.get(&a) {
            Some(&bits) => self.const_bits(ty, bits),
            None => self.push(ty, Op::Splat(ty, a)),
        }
    }

    /// One lane.
    pub fn extract(&mut self, a: Value, lane: u32) -> Value {
        self.push(Type::scalar(self.ty(a).elem), Op::Extract(a, lane))
    }

    /// Replaces one lane.
    pub fn insert(&mut self, a: Value, scalar: Value, lane: u32) -> Value {
        self.push(self.ty(a), Op::Insert(a, scalar, lane))
    }

    /// Picks lanes from the concatenation of `a` and `b`.
    pub fn shuffle(&mut self, a: Value, b: Value, lanes: &[u32]) -> Value {
        let ty = Type::vector(self.ty(a).elem, lanes.len() as u32);
        self.push(ty, Op::Shuffle(a, b, lanes.to_vec()))
    }

    /// Combines all lanes by the fixed tree of [`Op::Reduce`]; a scalar is itself.
    pub fn reduce(&mut self, op: ReduceOp, a: Value) -> Value {
        let ty = self.ty(a);
        if ty.is_vector() { self.push(Type::scalar(ty.elem), Op::Reduce(op, a)) } else { a }
    }

    // ---- memory

    /// Loads `lanes` neighbouring elements, a scalar if 1.
    pub fn load(&mut self, mem: Mem, index: Value, lanes: u32) -> Value {
        self.load_at(At { mem, index, stride: None }, lanes, None)
    }

    /// Loads the first `count` of `lanes` neighbouring elements, the rest being 0.
    pub fn load_masked(&mut self, mem: Mem, index: Value, lanes: u32, count: Value) -> Value {
        self.load_at(At { mem, index, stride: None }, lanes, Some(count))
    }

    /// Loads `lanes` elements that lie `stride` elements apart.
    pub fn load_strided(&mut self, mem: Mem, index: Value, stride: Value, lanes: u32) -> Value {
        self.load_at(At { mem, index, stride: Some(stride) }, lanes, None)
    }

    /// Any load.
    pub fn load_at(&mut self, at: At, lanes: u32, count: Option<Value>) -> Value {
        let ty = Type::vector(self.elem(at.mem), lanes);
        self.push(ty, Op::Load { at, lanes, count })
    }

    /// Loads element `indices[i]` into lane `i`, for the first `count` lanes if given.
    pub fn gather(&mut self, mem: Mem, indices: Value, count: Option<Value>) -> Value {
        let ty = Type::vector(self.elem(mem), self.ty(indices).lanes);
        self.push(ty, Op::Gather { mem, indices, count })
    }

    /// Stores all lanes to neighbouring elements.
    pub fn store(&mut self, mem: Mem, index: Value, value: Value) {
        self.store_at(At { mem, index, stride: None }, value, None);
    }

    /// Stores the first `count` lanes.
    pub fn store_masked(&mut self, mem: Mem, index: Value, value: Value, count: Value) {
        self.store_at(At { mem, index, stride: None }, value, Some(count));
    }

    /// Stores lanes to elements that lie `stride` elements apart.
    pub fn store_strided(&mut self, mem: Mem, index: Value, stride: Value, value: Value) {
        self.store_at(At { mem, index, stride: Some(stride) }, value, None);
    }

    /// Any store.
    pub fn store_at(&mut self, at: At, value: Value, count: Option<Value>) {
        self.emit(Inst { results: Vec::new(), op: Op::Store { at, value, count } });
    }

    // ---- structure

    /// `for var in lo..hi step step` with carried values: the closure gets the variable and the carried values and gives
    /// their next values. Returns them after the last iteration.
    pub fn for_carried(
        &mut self,
        lo: Value,
        hi: Value,
        step: i64,
        init: &[Value],
        body: impl FnOnce(&mut Builder, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let step = self.i64(step);
        let var = self.value(Type::I64);
        let carried: Vec<Value> = init.iter().map(|&v| self.value(self.ty(v))).collect();
        self.open.push(Vec::new());
        let yields = body(self, var, &carried);
        let insts = self.open.pop().unwrap_or_default();
        let results: Vec<Value> = init.iter().map(|&v| self.value(self.ty(v))).collect();
        let op = Op::For(Box::new(For {
            var,
            lo,
            hi,
            step,
            carried,
            init: init.to_vec(),
            body: Block { insts, yields },
        }));
        self.emit(Inst { results: results.clone(), op });
        results
    }

    /// `for var in lo..hi step step` without carried values.
    pub fn for_each(&mut self, lo: Value, hi: Value, step: i64, body: impl FnOnce(&mut Builder, Value)) {
        self.for_carried(lo, hi, step, &[], |b, var, _| {
            body(b, var);
            Vec::new()
        });
    }

    /// `for var in 0..n` with constant `n`; a loop of one iteration is its body with `var` = 0, one of none is nothing.
    pub fn for_range(&mut self, n: u64, body: impl FnOnce(&mut Builder, Value)) {
        let zero = self.index(0);
        match n {
            0 => {}
            1 => body(self, zero),
            _ => {
                let hi = self.index(n);
                self.for_each(zero, hi, 1, body);
            }
        }
    }

    /// The loop over the tiles to compute, the usual outermost loop of a kernel.
    pub fn for_tiles(&mut self, body: impl FnOnce(&mut Builder, Value)) {
        let (begin, end) = (self.tile_begin(), self.tile_end());
        self.for_each(begin, end, 1, body);
    }

    /// `if condition { then } else { otherwise }`; both closures give as many values of the same types, which are
    /// returned.
    pub fn if_else(
        &mut self,
        condition: Value,
        then: impl FnOnce(&mut Builder) -> Vec<Value>,
        otherwise: impl FnOnce(&mut Builder) -> Vec<Value>,
    ) -> Vec<Value> {
        let then = self.block(then);
        let otherwise = self.block(otherwise);
        let results: Vec<Value> = then.yields.iter().map(|&v| self.value(self.ty(v))).collect();
        self.emit(Inst { results: results.clone(), op: Op::If(Box::new(If { condition, then, otherwise })) });
        results
    }

    /// `if condition { then }`.
    pub fn if_then(&mut self, condition: Value, then: impl FnOnce(&mut Builder)) {
        self.if_else(
            condition,
            |b| {
                then(b);
                Vec::new()
            },
            |_| Vec::new(),
        );
    }

    fn block(&mut self, body: impl FnOnce(&mut Builder) -> Vec<Value>) -> Block {
        self.open.push(Vec::new());
        let yields = body(self);
        Block { insts: self.open.pop().unwrap_or_default(), yields }
    }
}
