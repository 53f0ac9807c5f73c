//! What holds of every kernel:
//! * buffers and scratch have unique, well-formed names and at least one element; there is at least one tile;
//! * every value is defined once, before its uses, in the same block or one around it;
//! * operand and result types are those of the op's documentation; lane numbers exist;
//! * the step of a loop is a positive constant; carried values, their initial values and the yields agree in number and
//!   type, as do the two sides of a conditional and its results;
//! * only readable buffers are loaded from and only writable ones stored to.
//!
//! Bounds of loads and stores depend on data; the interpreter checks them.

use std::collections::BTreeSet;

use super::print::inst_line;
use super::{At, Block, Elem, Inst, Kernel, MAX_LANES, Mem, Op, Type, Value};

/// Checks a kernel and returns every violation, each with the line of KIR it is in. An error here is a mistake in the
/// compiler.
///
/// # Errors
/// All violations, in the order of the text.
pub fn verify(kernel: &Kernel) -> Result<(), Vec<String>> {
    let mut verifier = Verifier {
        kernel,
        visible: vec![false; kernel.types.len()],
        defined: vec![false; kernel.types.len()],
        constants: BTreeSet::new(),
        line: String::new(),
        errors: Vec::new(),
    };
    verifier.declarations();
    for &param in &kernel.params {
        verifier.define(param, Type::I64);
    }
    verifier.block(&kernel.body);
    if !kernel.body.yields.is_empty() {
        verifier.line = "kernel".to_string();
        verifier.fail("the body of a kernel yields nothing");
    }
    if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    /// Values in scope here.
    visible: Vec<bool>,
    /// Values defined anywhere so far.
    defined: Vec<bool>,
    /// Positive integer constants.
    constants: BTreeSet<Value>,
    line: String,
    errors: Vec<String>,
}

impl Verifier<'_> {
    fn fail(&mut self, message: impl std::fmt::Display) {
        self.errors.push(format!("{message}, in `{}`", self.line));
    }

    fn check(&mut self, ok: bool, message: &str) {
        if !ok {
            self.fail(message);
        }
    }

    fn declarations(&mut self) {
        self.line = "kernel".to_string();
        self.check(self.kernel.tiles >= 1, "a kernel has at least one tile");
        self.check(self.kernel.params.len() >= 2, "tile begin and tile end are parameters");
        let mut names = BTreeSet::new();
        let kernel = self.kernel;
        let buffers = kernel.buffers.iter().map(|b| (&b.name, b.dtype, b.len));
        for (name, dtype, len) in buffers.chain(kernel.scratch.iter().map(|s| (&s.name, s.dtype, s.len))) {
            let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !well_formed || !names.insert(name) {
                self.fail(format!("`{name}` is not a unique name of letters, digits and _"));
            }
            if len == 0 || len.checked_mul(dtype.bytes()).is_none_or(|b| b > i64::MAX as u64 / 4) {
                self.fail(format!("`{name}` has an impossible length: {len}"));
            }
        }
    }

    fn define(&mut self, value: Value, ty: Type) {
        let index = value.0 as usize;
        if index >= self.defined.len() {
            self.fail(format!("{value} has no type"));
            return;
        }
        if self.defined[index] {
            self.fail(format!("{value} is defined twice"));
        }
        let found = self.kernel.types[index];
        if found != ty {
            self.fail(format!("{value} should be {ty}, is {found}"));
        }
        if ty.lanes == 0 || ty.lanes > MAX_LANES {
            self.fail(format!("{value} has {} lanes; 1 to {MAX_LANES} are possible", ty.lanes));
        }
        self.defined[index] = true;
        self.visible[index] = true;
    }

    /// Type of an operand, `None` (and an error) if it is not in scope.
    fn operand(&mut self, value: Value) -> Option<Type> {
        if self.visible.get(value.0 as usize) == Some(&true) {
            return Some(self.kernel.ty(value));
        }
        self.fail(format!("{value} is not defined here"));
        None
    }

    fn expect(&mut self, value: Value, ty: Type) {
        if let Some(found) = self.operand(value)
            && found != ty
        {
            self.fail(format!("{value} should be {ty}, is {found}"));
        }
    }

    /// A nested block: what it defines goes out of scope with it.
    fn scope(&mut self, block: &Block, before: &mut dyn FnMut(&mut Self)) {
        let visible = self.visible.clone();
        before(self);
        self.block(block);
        self.visible = visible;
    }

    fn block(&mut self, block: &Block) {
        for inst in &block.insts {
            self.line = inst_line(self.kernel, inst);
            let types = self.inst(inst);
            self.line = inst_line(self.kernel, inst);
            if let Some(types) = types {
                if types.len() != inst.results.len() {
                    self.fail(format!(
                        "the op has {} results, {} are named",
                        types.len(),
                        inst.results.len()
                    ));
                }
                for (&value, ty) in inst.results.iter().zip(types) {
                    self.define(value, ty);
                }
            } else {
                // The op is wrong already; give its results their stated types so that the rest is still checked.
                for &value in &inst.results {
                    if let Some(&ty) = self.kernel.types.get(value.0 as usize) {
                        self.define(value, ty);
                    }
                }
            }
        }
        for &value in &block.yields {
            self.line = format!("yield {value}");
            self.operand(value);
        }
    }

    /// Types of the results, `None` when they cannot be told.
    fn inst(&mut self, inst: &Inst) -> Option<Vec<Type>> {
        let one = |ty: Type| Some(vec![ty]);
        match &inst.op {
            Op::Const(ty, bits) => {
                let width = ty.elem.bits();
                self.check(width == 64 || bits >> width == 0, "the constant has bits beyond its type");
                let positive = match ty.elem {
                    Elem::I64 => *bits as i64 > 0,
                    Elem::I1 | Elem::I32 | Elem::F32 | Elem::F64 => false,
                };
                if positive {
                    self.constants.extend(&inst.results);
                }
                one(*ty)
            }
            Op::Iota(ty) => {
                self.check(
                    matches!(ty.elem, Elem::I32 | Elem::I64) && ty.is_vector(),
                    "iota is a vector of integers",
                );
                one(*ty)
            }
            Op::Unary(op, a) => {
                let ty = self.operand(*a)?;
                self.check(op.accepts(ty.elem), "the op is not defined on this type");
                one(ty)
            }
            Op::Binary(op, a, b) => {
                let ty = self.operand(*a)?;
                self.expect(*b, ty);
                self.check(op.accepts(ty.elem), "the op is not defined on this type");
                one(ty)
            }
            Op::Fma(a, b, c) => {
                let ty = self.operand(*a)?;
                self.expect(*b, ty);
                self.expect(*c, ty);
                self.check(ty.elem.is_float(), "the op is not defined on this type");
                one(ty)
            }
            Op::Compare(op, a, b) => {
                let ty = self.operand(*a)?;
                self.expect(*b, ty);
                self.check(op.accepts(ty.elem), "the op is not defined on this type");
                one(ty.with_elem(Elem::I1))
            }
            Op::Select(c, a, b) => {
                let condition = self.operand(*c);
                let ty = self.operand(*a)?;
                self.expect(*b, ty);
                let fits = condition.is_none_or(|c| c == Type::I1 || c == ty.with_elem(Elem::I1));
                self.check(fits, "the condition is an i1, or one per lane");
                one(ty)
            }
            Op::Convert(ty, a) => {
                let from = self.operand(*a)?;
                self.check(from.lanes == ty.lanes, "a conversion keeps the number of lanes");
                self.check(from.elem != ty.elem, "a conversion changes the type");
                one(*ty)
            }
            Op::Bitcast(ty, a) => {
                let from = self.operand(*a)?;
                let fits =
                    from.lanes == ty.lanes && from.elem.bits() == ty.elem.bits() && from.elem != ty.elem;
                self.check(fits, "a bitcast keeps lanes and bits and changes the type");
                one(*ty)
            }
            Op::Splat(ty, a) => {
                self.expect(*a, Type::scalar(ty.elem));
                self.check(ty.is_vector(), "splat gives a vector");
                one(*ty)
            }
            Op::Extract(a, lane) => {
                let ty = self.operand(*a)?;
                self.check(ty.is_vector() && *lane < ty.lanes, "there is no such lane");
                one(Type::scalar(ty.elem))
            }
            Op::Insert(a, s, lane) => {
                let ty = self.operand(*a)?;
                self.expect(*s, Type::scalar(ty.elem));
                self.check(ty.is_vector() && *lane < ty.lanes, "there is no such lane");
                one(ty)
            }
            Op::Shuffle(a, b, lanes) => {
                let ty = self.operand(*a)?;
                self.expect(*b, ty);
                self.check(ty.is_vector() && lanes.len() > 1, "shuffle takes vectors and gives a vector");
                self.check(lanes.iter().all(|&l| l < 2 * ty.lanes), "there is no such lane");
                one(Type::vector(ty.elem, lanes.len() as u32))
            }
            Op::Reduce(op, a) => {
                let ty = self.operand(*a)?;
                self.check(ty.is_vector(), "reduce takes a vector");
                self.check(op.binary().accepts(ty.elem), "the op is not defined on this type");
                one(Type::scalar(ty.elem))
            }
            Op::Load { at, lanes, count } => {
                let elem = self.at(at, false)?;
                self.lanes_touched(at, *lanes, count);
                one(Type::vector(elem, *lanes))
            }
            Op::Gather { mem, indices, count } => {
                let elem = self.mem(*mem, false)?;
                let ty = self.operand(*indices)?;
                let fits = ty.is_vector() && matches!(ty.elem, Elem::I32 | Elem::I64);
                self.check(fits, "indices are a vector of integers");
                count.iter().for_each(|&c| self.expect(c, Type::I64));
                one(Type::vector(elem, ty.lanes))
            }
            Op::Store { at, value, count } => {
                let elem = self.at(at, true)?;
                let ty = self.operand(*value)?;
                self.check(ty.elem == elem, "the value does not have the element type of the region");
                self.lanes_touched(at, ty.lanes, count);
                Some(Vec::new())
            }
            Op::For(_) => self.for_loop(inst),
            Op::If(_) => self.conditional(inst),
        }
    }

    fn mem(&mut self, mem: Mem, store: bool) -> Option<Elem> {
        let known = match mem {
            Mem::Buffer(i) => (i as usize) < self.kernel.buffers.len(),
            Mem::Scratch(i) => (i as usize) < self.kernel.scratch.len(),
        };
        if !known {
            self.fail("there is no such region");
            return None;
        }
        if let Mem::Buffer(i) = mem {
            let access = self.kernel.buffers[i as usize].access;
            self.check(!store || access.writes(), "the buffer is only read");
            self.check(store || access.reads(), "the buffer is only written");
        }
        Some(Elem::of_memory(self.kernel.mem(mem).1))
    }

    fn at(&mut self, at: &At, store: bool) -> Option<Elem> {
        self.expect(at.index, Type::I64);
        at.stride.iter().for_each(|&s| self.expect(s, Type::I64));
        self.mem(at.mem, store)
    }

    fn lanes_touched(&mut self, at: &At, lanes: u32, count: &Option<Value>) {
        self.check(lanes > 1 || at.stride.is_none(), "a scalar has no stride");
        count.iter().for_each(|&c| self.expect(c, Type::I64));
    }

    fn for_loop(&mut self, inst: &Inst) -> Option<Vec<Type>> {
        let Op::For(l) = &inst.op else { return None };
        for bound in [l.lo, l.hi, l.step] {
            self.expect(bound, Type::I64);
        }
        if !self.constants.contains(&l.step) {
            self.fail("the step is not a positive constant");
        }
        let types: Vec<Option<Type>> = l.init.iter().map(|&v| self.operand(v)).collect();
        let numbers_agree = l.carried.len() == l.init.len() && l.body.yields.len() == l.init.len();
        self.check(numbers_agree, "carried values, initial values and yields differ in number");
        let line = self.line.clone();
        self.scope(&l.body, &mut |v| {
            v.define(l.var, Type::I64);
            for (&value, ty) in l.carried.iter().zip(&types) {
                v.define(value, ty.unwrap_or(v.kernel.ty(value)));
            }
        });
        self.line = line;
        for (&value, ty) in l.body.yields.iter().zip(&types) {
            self.yields(value, *ty);
        }
        types.into_iter().collect()
    }

    fn yields(&mut self, value: Value, ty: Option<Type>) {
        if let (Some(ty), Some(&found)) = (ty, self.kernel.types.get(value.0 as usize))
            && ty != found
        {
            self.fail(format!("the yielded {value} should be {ty}, is {found}"));
        }
    }

    fn conditional(&mut self, inst: &Inst) -> Option<Vec<Type>> {
        let Op::If(i) = &inst.op else { return None };
        self.expect(i.condition, Type::I1);
        let line = self.line.clone();
        self.scope(&i.then, &mut |_| {});
        self.scope(&i.otherwise, &mut |_| {});
        self.line = line;
        self.check(
            i.then.yields.len() == i.otherwise.yields.len(),
            "the two sides yield different numbers of values",
        );
        let types: Vec<Type> = i
            .then
            .yields
            .iter()
            .map(|v| self.kernel.types.get(v.0 as usize).copied())
            .collect::<Option<_>>()?;
        for (&value, &ty) in i.otherwise.yields.iter().zip(&types) {
            self.yields(value, Some(ty));
        }
        Some(types)
    }
}
