//! KIR as MLIR text: one module with one exported function of the ABI's kernel convention.
//!
//! Dialects `arith`, `vector` and `scf`, with loads, stores and the intrinsics whose bits matter taken straight from the
//! `llvm` dialect, so that no pass decides what they become. Addresses are `llvm.getelementptr` on plain pointers: there
//! are no memref descriptors anywhere. No op carries a fast-math flag.
//!
//! The exported function reads the base pointers and calls an inner one whose pointer arguments are `noalias`, which is
//! what [`Buffer`](crate::kir::Buffer) promises. LLVM inlines it and keeps the promise as alias scopes.

mod arithmetic;
mod memory;

use std::fmt::Write;

use crate::kir::{Block, CompareOp, Elem, For, If, Inst, Kernel, Mem, Op, Type, Value};

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
