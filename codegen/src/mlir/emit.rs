//! KIR as MLIR text: one module with one exported function of the ABI's kernel convention.
//!
//! Dialects `arith`, `vector` and `scf`, with loads, stores and the intrinsics whose bits matter taken straight from the
//! `llvm` dialect, so that no pass decides what they become. Addresses are `llvm.getelementptr` on plain pointers: there
//! are no memref descriptors anywhere. No op carries a fast-math flag.
//!
//! The exported function reads the base pointers and calls an inner one whose pointer arguments are `noalias`, which is
//! what [`Buffer`](crate::kir::Buffer) promises. LLVM inlines it and keeps the promise as alias scopes.

use std::fmt::Write;

use mlc_runtime::abi::DType;

use crate::kir::{
    At, BinaryOp, Block, CompareOp, Elem, For, If, Inst, Kernel, Mem, Op, ReduceOp, Type, UnaryOp, Value,
};

/// The MLIR module of a kernel; its function is called `symbol`.
///
/// The kernel must verify.
pub fn emit(kernel: &Kernel, symbol: &str) -> String {
    let mut emitter = Emitter { kernel, text: String::new(), depth: 1, temporaries: 0 };
    emitter.text.push_str("module {\n");
    emitter.inner_function();
    emitter.exported_function(symbol);
    emitter.text.push_str("}\n");
    emitter.text
}

struct Emitter<'a> {
    kernel: &'a Kernel,
    text: String,
    depth: usize,
    temporaries: u32,
}

/// MLIR type of a value.
fn mlir_type(ty: Type) -> String {
    if ty.is_vector() {
        format!("vector<{}x{}>", ty.lanes, ty.elem.name())
    } else {
        ty.elem.name().to_string()
    }
}

/// MLIR type of `lanes` elements as they lie in memory.
fn memory_type(dtype: DType, lanes: u32) -> String {
    let elem = match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "i16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "i8",
    };
    if lanes > 1 { format!("vector<{lanes}x{elem}>") } else { elem.to_string() }
}

impl Emitter<'_> {
    // ---- text

    fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.text, "{:w$}{}", "", text.as_ref(), w = 2 * self.depth);
    }

    /// Emits `%tN = text` and returns `%tN`.
    fn temporary(&mut self, text: impl AsRef<str>) -> String {
        let name = format!("%t{}", self.temporaries);
        self.temporaries += 1;
        self.line(format!("{name} = {}", text.as_ref()));
        name
    }

    fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Name of a KIR value.
    fn name(&self, value: Value) -> String {
        format!("%v{}", value.0)
    }

    fn names(&self, values: &[Value]) -> String {
        values.iter().map(|&v| self.name(v)).collect::<Vec<_>>().join(", ")
    }

    fn types(&self, values: &[Value]) -> String {
        values.iter().map(|&v| mlir_type(self.ty(v))).collect::<Vec<_>>().join(", ")
    }

    fn pointer(&self, mem: Mem) -> String {
        match mem {
            Mem::Buffer(i) => format!("%buffer{i}"),
            Mem::Scratch(i) => format!("%scratch{i}"),
        }
    }

    // ---- functions

    /// Names and types of the inner function's pointer arguments.
    fn pointers(&self) -> Vec<String> {
        let buffers = (0..self.kernel.buffers.len() as u32).map(Mem::Buffer);
        let scratch = (0..self.kernel.scratch.len() as u32).map(Mem::Scratch);
        buffers.chain(scratch).map(|mem| self.pointer(mem)).collect()
    }

    fn inner_function(&mut self) {
        let mut args: Vec<String> = Vec::new();
        for (i, buffer) in self.kernel.buffers.iter().enumerate() {
            let readonly = if buffer.access.writes() { "" } else { ", llvm.readonly" };
            args.push(format!("%buffer{i}: !llvm.ptr {{llvm.noalias, llvm.nocapture{readonly}}}"));
        }
        for i in 0..self.kernel.scratch.len() {
            args.push(format!(
                "%scratch{i}: !llvm.ptr {{llvm.noalias, llvm.nocapture, llvm.align = 64 : i64}}"
            ));
        }
        args.extend(self.kernel.params.iter().map(|&p| format!("{}: i64", self.name(p))));
        self.line(format!("llvm.func internal @tiles({}) attributes {{always_inline}} {{", args.join(", ")));
        self.depth += 1;
        self.block(&self.kernel.body);
        self.line("llvm.return");
        self.depth -= 1;
        self.line("}");
    }

    fn exported_function(&mut self, symbol: &str) {
        self.line(format!(
            "llvm.func @{symbol}(%buffers: !llvm.ptr, %scalars: !llvm.ptr, %begin: i64, %end: i64, %scratch: !llvm.ptr) {{"
        ));
        self.depth += 1;
        for i in 0..self.kernel.buffers.len() {
            let address = self.temporary(format!(
                "llvm.getelementptr inbounds %buffers[{i}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr"
            ));
            self.line(format!("%buffer{i} = llvm.load {address} : !llvm.ptr -> !llvm.ptr"));
        }
        for i in 0..self.kernel.scratch.len() {
            let offset = self.kernel.scratch_offset(i as u32);
            self.line(format!(
                "%scratch{i} = llvm.getelementptr inbounds %scratch[{offset}] : (!llvm.ptr) -> !llvm.ptr, i8"
            ));
        }
        let mut args = self.pointers();
        let mut types = vec!["!llvm.ptr".to_string(); args.len()];
        args.extend(["%begin".to_string(), "%end".to_string()]);
        for i in 0..self.kernel.n_scalars() {
            let address = self.temporary(format!(
                "llvm.getelementptr inbounds %scalars[{i}] : (!llvm.ptr) -> !llvm.ptr, i64"
            ));
            args.push(self.temporary(format!("llvm.load {address} : !llvm.ptr -> i64")));
        }
        types.resize(args.len(), "i64".to_string());
        self.line(format!("llvm.call @tiles({}) : ({}) -> ()", args.join(", "), types.join(", ")));
        self.line("llvm.return");
        self.depth -= 1;
        self.line("}");
    }

    // ---- code

    fn block(&mut self, block: &Block) {
        for inst in &block.insts {
            self.inst(inst);
        }
    }

    fn inst(&mut self, inst: &Inst) {
        let result = inst.results.first().map(|&v| (self.name(v), self.ty(v)));
        match (&inst.op, result) {
            (Op::Store { at, value, count }, _) => self.store(at, *value, *count),
            (Op::For(l), _) => self.for_loop(l, &inst.results),
            (Op::If(i), _) => self.conditional(i, &inst.results),
            (op, Some((name, ty))) => {
                let text = self.expression(op, ty);
                self.line(format!("{name} = {text}"));
            }
            // The verifier gives every other op one result.
            (_, None) => {}
        }
    }

    /// The op whose result is the KIR result, after emitting what it needs.
    fn expression(&mut self, op: &Op, ty: Type) -> String {
        match op {
            Op::Const(ty, bits) => constant(*ty, *bits),
            Op::Iota(ty) => iota(*ty),
            Op::Unary(op, a) => {
                let a = self.name(*a);
                self.unary(*op, &a, ty)
            }
            Op::Binary(op, a, b) => {
                let (a, b) = (self.name(*a), self.name(*b));
                self.binary(*op, &a, &b, ty)
            }
            Op::Fma(a, b, c) => {
                let args = self.names(&[*a, *b, *c]);
                let t = mlir_type(ty);
                format!("llvm.intr.fma({args}) : ({t}, {t}, {t}) -> {t}")
            }
            Op::Compare(op, a, b) => {
                let t = self.ty(*a);
                format!("{} {} : {}", compare_op(*op, t.elem), self.names(&[*a, *b]), mlir_type(t))
            }
            Op::Select(c, a, b) => {
                let condition = if self.ty(*c).is_vector() {
                    format!("{}, ", mlir_type(self.ty(*c)))
                } else {
                    String::new()
                };
                format!("arith.select {} : {condition}{}", self.names(&[*c, *a, *b]), mlir_type(ty))
            }
            Op::Convert(to, a) => {
                let (a, from) = (self.name(*a), self.ty(*a));
                self.convert(&a, from, *to)
            }
            Op::Bitcast(to, a) => {
                format!("arith.bitcast {} : {} to {}", self.name(*a), mlir_type(self.ty(*a)), mlir_type(*to))
            }
            Op::Splat(to, a) => broadcast(&self.name(*a), *to),
            Op::Extract(a, lane) => extract(&self.name(*a), *lane, self.ty(*a)),
            Op::Insert(a, s, lane) => format!(
                "vector.insert {}, {}[{lane}] : {} into {}",
                self.name(*s),
                self.name(*a),
                ty.elem.name(),
                mlir_type(ty)
            ),
            Op::Shuffle(a, b, lanes) => shuffle(&self.name(*a), &self.name(*b), lanes, self.ty(*a)),
            Op::Reduce(op, a) => self.reduce(*op, *a),
            Op::Load { at, lanes, count } => self.load(at, *lanes, *count),
            Op::Gather { mem, indices, count } => self.gather_op(*mem, *indices, *count),
            // Handled by the caller.
            Op::Store { .. } | Op::For(_) | Op::If(_) => String::new(),
        }
    }

    fn unary(&mut self, op: UnaryOp, a: &str, ty: Type) -> String {
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
    fn bf16_bits(&mut self, a: &str, ty: Type) -> String {
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

    fn binary(&mut self, op: BinaryOp, a: &str, b: &str, ty: Type) -> String {
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
    fn divide(&mut self, op: BinaryOp, a: &str, b: &str, ty: Type) -> String {
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

    fn shift(&mut self, name: &str, a: &str, b: &str, ty: Type) -> String {
        let mask = self.temporary(constant(ty, ty.elem.bits() as u64 - 1));
        let amount = self.temporary(format!("arith.andi {b}, {mask} : {}", mlir_type(ty)));
        format!("arith.{name} {a}, {amount} : {}", mlir_type(ty))
    }

    fn convert(&mut self, a: &str, from: Type, to: Type) -> String {
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
    fn reduce(&mut self, op: ReduceOp, a: Value) -> String {
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

    // ---- memory

    fn address(&mut self, mem: Mem, index: &str) -> String {
        let memory = memory_type(self.kernel.mem(mem).1, 1);
        let base = self.pointer(mem);
        self.temporary(format!(
            "llvm.getelementptr inbounds {base}[{index}] : (!llvm.ptr, i64) -> !llvm.ptr, {memory}"
        ))
    }

    /// One address per lane.
    fn addresses(&mut self, mem: Mem, indices: &str, ty: Type) -> String {
        let memory = memory_type(self.kernel.mem(mem).1, 1);
        let base = self.pointer(mem);
        self.temporary(format!(
            "llvm.getelementptr inbounds {base}[{indices}] : (!llvm.ptr, {}) -> {}, {memory}",
            mlir_type(ty),
            pointers(ty.lanes)
        ))
    }

    fn strided_addresses(&mut self, at: &At, stride: Value, lanes: u32) -> String {
        let ty = Type::vector(Elem::I64, lanes);
        let t = mlir_type(ty);
        let base = self.temporary(broadcast(&self.name(at.index), ty));
        let step = self.temporary(broadcast(&self.name(stride), ty));
        let lane = self.temporary(iota(ty));
        let offset = self.temporary(format!("arith.muli {lane}, {step} : {t}"));
        let indices = self.temporary(format!("arith.addi {base}, {offset} : {t}"));
        self.addresses(at.mem, &indices, ty)
    }

    /// Lanes below `count`, or all.
    fn mask(&mut self, count: Option<Value>, lanes: u32) -> String {
        let mask = Type::vector(Elem::I1, lanes);
        let Some(count) = count else { return self.temporary(constant(mask, 1)) };
        let int = Type::vector(Elem::I32, lanes);
        let most = self.temporary(constant(Type::I64, lanes as u64));
        let zero = self.temporary(constant(Type::I64, 0));
        let count = self.temporary(format!("arith.minsi {}, {most} : i64", self.name(count)));
        let count = self.temporary(format!("arith.maxsi {count}, {zero} : i64"));
        let count = self.temporary(format!("arith.trunci {count} : i64 to i32"));
        let counts = self.temporary(broadcast(&count, int));
        let lane = self.temporary(iota(int));
        self.temporary(format!("arith.cmpi slt, {lane}, {counts} : {}", mlir_type(int)))
    }

    fn load(&mut self, at: &At, lanes: u32, count: Option<Value>) -> String {
        let dtype = self.kernel.mem(at.mem).1;
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        if let Some(stride) = at.stride {
            let addresses = self.strided_addresses(at, stride, lanes);
            return self.gather(dtype, &addresses, lanes, count);
        }
        let index = self.name(at.index);
        let loaded = match count {
            None => {
                let address = self.address(at.mem, &index);
                format!("llvm.load {address} {{alignment = {align} : i64}} : !llvm.ptr -> {memory}")
            }
            Some(count) if lanes == 1 => self.scalar_load_if(at.mem, &index, count),
            Some(_) => {
                let address = self.address(at.mem, &index);
                let mask = self.mask(count, lanes);
                let zero = self.temporary(memory_zero(dtype, lanes));
                format!(
                    "llvm.intr.masked.load {address}, {mask}, {zero} {{alignment = {align} : i32}} : \
                     (!llvm.ptr, vector<{lanes}xi1>, {memory}) -> {memory}"
                )
            }
        };
        self.widen_loaded(dtype, loaded, lanes)
    }

    fn scalar_load_if(&mut self, mem: Mem, index: &str, count: Value) -> String {
        let dtype = self.kernel.mem(mem).1;
        let (memory, align) = (memory_type(dtype, 1), dtype.bytes());
        let any = self.positive(count);
        let name = self.temporary(format!("scf.if {any} -> ({memory}) {{"));
        self.depth += 1;
        let address = self.address(mem, index);
        let loaded = self
            .temporary(format!("llvm.load {address} {{alignment = {align} : i64}} : !llvm.ptr -> {memory}"));
        self.line(format!("scf.yield {loaded} : {memory}"));
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        let zero = self.temporary(memory_zero(dtype, 1));
        self.line(format!("scf.yield {zero} : {memory}"));
        self.depth -= 1;
        self.line("}");
        // An op that gives the value its final name.
        format!("llvm.freeze {name} : {memory}")
    }

    fn positive(&mut self, count: Value) -> String {
        let zero = self.temporary(constant(Type::I64, 0));
        self.temporary(format!("arith.cmpi sgt, {}, {zero} : i64", self.name(count)))
    }

    fn gather_op(&mut self, mem: Mem, indices: Value, count: Option<Value>) -> String {
        let ty = self.ty(indices);
        let addresses = self.addresses(mem, &self.name(indices), ty);
        self.gather(self.kernel.mem(mem).1, &addresses, ty.lanes, count)
    }

    fn gather(&mut self, dtype: DType, addresses: &str, lanes: u32, count: Option<Value>) -> String {
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        let mask = self.mask(count, lanes);
        let zero = self.temporary(memory_zero(dtype, lanes));
        let loaded = format!(
            "llvm.intr.masked.gather {addresses}, {mask}, {zero} {{alignment = {align} : i32}} : \
             ({}, vector<{lanes}xi1>, {memory}) -> {memory}",
            pointers(lanes)
        );
        self.widen_loaded(dtype, loaded, lanes)
    }

    /// What was loaded, as a register value.
    fn widen_loaded(&mut self, dtype: DType, loaded: String, lanes: u32) -> String {
        let memory = memory_type(dtype, lanes);
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => loaded,
            DType::Bool => {
                let loaded = self.temporary(loaded);
                let zero = self.temporary(memory_zero(dtype, lanes));
                format!("arith.cmpi ne, {loaded}, {zero} : {memory}")
            }
            DType::Bf16 => {
                let int = Type::vector(Elem::I32, lanes);
                let t = mlir_type(int);
                let loaded = self.temporary(loaded);
                let wide = self.temporary(format!("arith.extui {loaded} : {memory} to {t}"));
                let sixteen = self.temporary(constant(int, 16));
                let bits = self.temporary(format!("arith.shli {wide}, {sixteen} : {t}"));
                format!("arith.bitcast {bits} : {t} to {}", mlir_type(int.with_elem(Elem::F32)))
            }
        }
    }

    /// A register value as it is stored.
    fn narrow_stored(&mut self, dtype: DType, value: Value) -> String {
        let (name, ty) = (self.name(value), self.ty(value));
        let memory = memory_type(dtype, ty.lanes);
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => name,
            DType::Bool => self.temporary(format!("arith.extui {name} : {} to {memory}", mlir_type(ty))),
            DType::Bf16 => {
                let int = ty.with_elem(Elem::I32);
                let t = mlir_type(int);
                let bits = self.bf16_bits(&name, ty);
                let sixteen = self.temporary(constant(int, 16));
                let high = self.temporary(format!("arith.shrui {bits}, {sixteen} : {t}"));
                self.temporary(format!("arith.trunci {high} : {t} to {memory}"))
            }
        }
    }

    fn store(&mut self, at: &At, value: Value, count: Option<Value>) {
        let dtype = self.kernel.mem(at.mem).1;
        let lanes = self.ty(value).lanes;
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        let stored = self.narrow_stored(dtype, value);
        let index = self.name(at.index);
        match (at.stride, count) {
            (Some(stride), count) => {
                let addresses = self.strided_addresses(at, stride, lanes);
                let mask = self.mask(count, lanes);
                self.line(format!(
                    "llvm.intr.masked.scatter {stored}, {addresses}, {mask} {{alignment = {align} : i32}} : \
                     {memory}, vector<{lanes}xi1> into {}",
                    pointers(lanes)
                ));
            }
            (None, None) => {
                let address = self.address(at.mem, &index);
                self.line(format!(
                    "llvm.store {stored}, {address} {{alignment = {align} : i64}} : {memory}, !llvm.ptr"
                ));
            }
            (None, Some(count)) if lanes == 1 => {
                let any = self.positive(count);
                self.line(format!("scf.if {any} {{"));
                self.depth += 1;
                let address = self.address(at.mem, &index);
                self.line(format!(
                    "llvm.store {stored}, {address} {{alignment = {align} : i64}} : {memory}, !llvm.ptr"
                ));
                self.depth -= 1;
                self.line("}");
            }
            (None, Some(_)) => {
                let address = self.address(at.mem, &index);
                let mask = self.mask(count, lanes);
                self.line(format!(
                    "llvm.intr.masked.store {stored}, {address}, {mask} {{alignment = {align} : i32}} : \
                     {memory}, vector<{lanes}xi1> into !llvm.ptr"
                ));
            }
        }
    }

    // ---- structure

    fn for_loop(&mut self, l: &For, results: &[Value]) {
        let header = format!(
            "scf.for {} = {} to {} step {}",
            self.name(l.var),
            self.name(l.lo),
            self.name(l.hi),
            self.name(l.step)
        );
        if results.is_empty() {
            self.line(format!("{header} : i64 {{"));
        } else {
            let pairs: Vec<String> = l
                .carried
                .iter()
                .zip(&l.init)
                .map(|(&c, &i)| format!("{} = {}", self.name(c), self.name(i)))
                .collect();
            self.line(format!(
                "{} = {header} iter_args({}) -> ({}) : i64 {{",
                self.names(results),
                pairs.join(", "),
                self.types(results)
            ));
        }
        self.nested(&l.body);
        self.line("}");
    }

    fn conditional(&mut self, i: &If, results: &[Value]) {
        let condition = self.name(i.condition);
        if results.is_empty() {
            self.line(format!("scf.if {condition} {{"));
        } else {
            self.line(format!(
                "{} = scf.if {condition} -> ({}) {{",
                self.names(results),
                self.types(results)
            ));
        }
        self.nested(&i.then);
        if !i.otherwise.insts.is_empty() || !i.otherwise.yields.is_empty() {
            self.line("} else {");
            self.nested(&i.otherwise);
        }
        self.line("}");
    }

    fn nested(&mut self, block: &Block) {
        self.depth += 1;
        self.block(block);
        if !block.yields.is_empty() {
            self.line(format!("scf.yield {} : {}", self.names(&block.yields), self.types(&block.yields)));
        }
        self.depth -= 1;
    }
}

/// A type in the name of an overloaded LLVM intrinsic.
fn overload(ty: Type) -> String {
    let vector = if ty.is_vector() { format!("v{}", ty.lanes) } else { String::new() };
    format!("{vector}{}{}", if ty.elem.is_float() { "f" } else { "i" }, ty.elem.bits())
}

fn pointers(lanes: u32) -> String {
    format!("vector<{lanes}x!llvm.ptr>")
}

fn constant(ty: Type, bits: u64) -> String {
    let t = mlir_type(ty);
    let lane = match ty.elem {
        Elem::I1 => (bits & 1 == 1).to_string(),
        Elem::I32 => (bits as u32 as i32).to_string(),
        Elem::I64 => (bits as i64).to_string(),
        Elem::F32 => format!("0x{bits:08X}"),
        Elem::F64 => format!("0x{bits:016X}"),
    };
    match (ty.is_vector(), ty.elem) {
        (true, _) => format!("arith.constant dense<{lane}> : {t}"),
        (false, Elem::I1) => format!("arith.constant {lane}"),
        (false, _) => format!("arith.constant {lane} : {t}"),
    }
}

/// Zeros as they lie in memory.
fn memory_zero(dtype: DType, lanes: u32) -> String {
    let zero = if matches!(dtype, DType::F32 | DType::F64) { "0.0" } else { "0" };
    let t = memory_type(dtype, lanes);
    if lanes > 1 {
        format!("arith.constant dense<{zero}> : {t}")
    } else {
        format!("arith.constant {zero} : {t}")
    }
}

fn iota(ty: Type) -> String {
    let lanes: Vec<String> = (0..ty.lanes).map(|l| l.to_string()).collect();
    format!("arith.constant dense<[{}]> : {}", lanes.join(", "), mlir_type(ty))
}

fn broadcast(a: &str, ty: Type) -> String {
    format!("vector.broadcast {a} : {} to {}", ty.elem.name(), mlir_type(ty))
}

fn extract(a: &str, lane: u32, ty: Type) -> String {
    format!("vector.extract {a}[{lane}] : {} from {}", ty.elem.name(), mlir_type(ty))
}

fn shuffle(a: &str, b: &str, lanes: &[u32], ty: Type) -> String {
    let lanes: Vec<String> = lanes.iter().map(u32::to_string).collect();
    format!("vector.shuffle {a}, {b} [{}] : {}, {}", lanes.join(", "), mlir_type(ty), mlir_type(ty))
}

fn compare_op(op: CompareOp, elem: Elem) -> String {
    let float = elem.is_float();
    let predicate = match op {
        CompareOp::Eq if float => "oeq",
        CompareOp::Ne if float => "une",
        CompareOp::Lt if float => "olt",
        CompareOp::Le if float => "ole",
        CompareOp::Gt if float => "ogt",
        CompareOp::Ge if float => "oge",
        CompareOp::Eq => "eq",
        CompareOp::Ne => "ne",
        CompareOp::Lt => "slt",
        CompareOp::Le => "sle",
        CompareOp::Gt => "sgt",
        CompareOp::Ge => "sge",
    };
    format!("arith.{} {predicate},", if float { "cmpf" } else { "cmpi" })
}
