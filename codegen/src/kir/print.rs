//! The text form of a kernel. [`parse`](super::parse) reads it back to the same kernel.

use std::fmt::{self, Display, Write};

use mlc_runtime::abi::DType;

use super::{At, Block, Elem, Inst, Kernel, Mem, Op, ReduceOp, Type, Value};

/// Name of a memory element type.
pub const fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "bf16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "bool",
    }
}

impl ReduceOp {
    /// Text form.
    pub const fn name(self) -> &'static str {
        self.binary().name()
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kernel {\n")?;
        for b in &self.buffers {
            writeln!(f, "  buffer {}: {} {}[{}]", b.name, b.access.name(), dtype_name(b.dtype), b.len)?;
        }
        for s in &self.scratch {
            writeln!(f, "  scratch {}: {}[{}]", s.name, dtype_name(s.dtype), s.len)?;
        }
        writeln!(f, "  tiles {} ({})", self.tiles, list(&self.params))?;
        Printer { kernel: self }.block(f, &self.body, 1)?;
        f.write_str("}\n")
    }
}

/// The text of one op on one line (a loop's or conditional's first line), for messages.
pub(super) fn inst_line(kernel: &Kernel, inst: &Inst) -> String {
    let mut text = String::new();
    let _ = Printer { kernel }.inst(&mut text, inst, 0);
    text.lines().next().unwrap_or_default().to_string()
}

fn list(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
}

/// The value of a constant's lane as text that gives the same bits when read.
fn constant(ty: Type, bits: u64) -> String {
    match ty.elem {
        Elem::I1 => (bits & 1 == 1).to_string(),
        Elem::I32 => (bits as u32 as i32).to_string(),
        Elem::I64 => (bits as i64).to_string(),
        Elem::F32 => {
            let x = f32::from_bits(bits as u32);
            if x.is_nan() { format!("0x{:08x}", bits as u32) } else { format!("{x:?}") }
        }
        Elem::F64 => {
            let x = f64::from_bits(bits);
            if x.is_nan() { format!("0x{bits:016x}") } else { format!("{x:?}") }
        }
    }
}

struct Printer<'a> {
    kernel: &'a Kernel,
}

impl Printer<'_> {
    fn block(&self, f: &mut dyn Write, block: &Block, depth: usize) -> fmt::Result {
        for inst in &block.insts {
            self.inst(f, inst, depth)?;
        }
        if !block.yields.is_empty() {
            writeln!(f, "{:w$}yield {}", "", list(&block.yields), w = 2 * depth)?;
        }
        Ok(())
    }

    fn ty(&self, value: Value) -> String {
        self.kernel.types.get(value.0 as usize).map_or_else(|| "?".to_string(), Type::to_string)
    }

    fn mem(&self, mem: Mem) -> &str {
        let name = match mem {
            Mem::Buffer(i) => self.kernel.buffers.get(i as usize).map(|b| &b.name),
            Mem::Scratch(i) => self.kernel.scratch.get(i as usize).map(|s| &s.name),
        };
        name.map_or("?", String::as_str)
    }

    fn at(&self, at: &At) -> String {
        let stride = at.stride.map_or_else(String::new, |s| format!(" by {s}"));
        format!("{}[{}{stride}]", self.mem(at.mem), at.index)
    }

    fn inst(&self, f: &mut dyn Write, inst: &Inst, depth: usize) -> fmt::Result {
        write!(f, "{:w$}", "", w = 2 * depth)?;
        if !inst.results.is_empty() {
            write!(f, "{} = ", list(&inst.results))?;
        }
        let masked = |count: &Option<Value>| count.map_or_else(String::new, |c| format!(" first {c}"));
        let result = || inst.results.first().map_or_else(|| "?".to_string(), |&v| self.ty(v));
        match &inst.op {
            Op::Const(ty, bits) => writeln!(f, "const {ty} {}", constant(*ty, *bits)),
            Op::Iota(ty) => writeln!(f, "iota {ty}"),
            Op::Unary(op, a) => writeln!(f, "{} {} {a}", op.name(), self.ty(*a)),
            Op::Binary(op, a, b) => writeln!(f, "{} {} {a}, {b}", op.name(), self.ty(*a)),
            Op::Fma(a, b, c) => writeln!(f, "fma {} {a}, {b}, {c}", self.ty(*a)),
            Op::Compare(op, a, b) => writeln!(f, "cmp_{} {} {a}, {b}", op.name(), self.ty(*a)),
            Op::Select(c, a, b) => writeln!(f, "select {} {c}, {a}, {b}", self.ty(*a)),
            Op::Convert(ty, a) => writeln!(f, "convert {ty} {a}"),
            Op::Bitcast(ty, a) => writeln!(f, "bitcast {ty} {a}"),
            Op::Splat(ty, a) => writeln!(f, "splat {ty} {a}"),
            Op::Extract(a, lane) => writeln!(f, "extract {} {a}, {lane}", result()),
            Op::Insert(a, s, lane) => writeln!(f, "insert {} {a}, {s}, {lane}", self.ty(*a)),
            Op::Shuffle(a, b, lanes) => {
                let lanes: Vec<String> = lanes.iter().map(u32::to_string).collect();
                writeln!(f, "shuffle {} {a}, {b} [{}]", result(), lanes.join(", "))
            }
            Op::Reduce(op, a) => writeln!(f, "reduce_{} {} {a}", op.name(), result()),
            Op::Load { at, count, .. } => writeln!(f, "load {} {}{}", result(), self.at(at), masked(count)),
            Op::Gather { mem, indices, count } => {
                writeln!(f, "gather {} {}[{indices}]{}", result(), self.mem(*mem), masked(count))
            }
            Op::Store { at, value, count } => writeln!(f, "store {}, {value}{}", self.at(at), masked(count)),
            Op::For(l) => {
                write!(f, "for {} = {} to {} step {} ", l.var, l.lo, l.hi, l.step)?;
                if !l.carried.is_empty() {
                    let pairs: Vec<String> =
                        l.carried.iter().zip(&l.init).map(|(c, i)| format!("{c} = {i}")).collect();
                    write!(f, "carry ({}) ", pairs.join(", "))?;
                }
                writeln!(f, "{{")?;
                self.block(f, &l.body, depth + 1)?;
                writeln!(f, "{:w$}}}", "", w = 2 * depth)
            }
            Op::If(i) => {
                writeln!(f, "if {} {{", i.condition)?;
                self.block(f, &i.then, depth + 1)?;
                if !i.otherwise.insts.is_empty() || !i.otherwise.yields.is_empty() {
                    writeln!(f, "{:w$}}} else {{", "", w = 2 * depth)?;
                    self.block(f, &i.otherwise, depth + 1)?;
                }
                writeln!(f, "{:w$}}}", "", w = 2 * depth)
            }
        }
    }
}
