//! Runs a kernel, bit for bit as the machine does (up to NaN payloads), with every access checked.
//!
//! A kernel is first resolved to steps whose operands are positions in one flat register file, a word per lane; then the
//! steps are run. Both are kept in [`Interpreter`], so a kernel that runs often is resolved once.

use mlc_runtime::abi::DType;

use super::print::inst_line;
use super::{At, BinaryOp, Block, CompareOp, Elem, Inst, Kernel, Mem, Op, ReduceOp, Type, UnaryOp, Value};

/// Where a buffer of the launch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Index into the memory spaces given to [`Interpreter::run`].
    pub space: usize,
    /// Byte offset of element 0.
    pub offset: u64,
}

/// A kernel ready to run.
#[derive(Debug)]
pub struct Interpreter {
    steps: Vec<Step>,
    registers: Vec<u64>,
    params: Vec<Slot>,
    regions: Vec<Region>,
    n_buffers: usize,
    scratch_bytes: u64,
    /// Text of the ops that touch memory.
    lines: Vec<String>,
}

type Slot = u32;

#[derive(Clone, Debug)]
struct Region {
    name: String,
    dtype: DType,
    len: u64,
    /// Of scratch pieces, within scratch.
    offset: u64,
}

/// An [`Op`] with slots for values. `n` is the number of lanes.
#[derive(Debug)]
enum Step {
    Unary {
        op: UnaryOp,
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
    },
    Binary {
        op: BinaryOp,
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    Fma {
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Compare {
        op: CompareOp,
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    Select {
        per_lane: bool,
        n: u32,
        to: Slot,
        c: Slot,
        a: Slot,
        b: Slot,
    },
    Convert {
        from: Elem,
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
    },
    Copy {
        n: u32,
        to: Slot,
        a: Slot,
    },
    Splat {
        n: u32,
        to: Slot,
        a: Slot,
    },
    Insert {
        n: u32,
        to: Slot,
        a: Slot,
        s: Slot,
        lane: u32,
    },
    Shuffle {
        to: Slot,
        from: Vec<Slot>,
    },
    Reduce {
        op: ReduceOp,
        elem: Elem,
        n: u32,
        to: Slot,
        a: Slot,
    },
    Load {
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        to: Slot,
        line: u32,
    },
    Gather {
        region: u32,
        wide: bool,
        indices: Slot,
        count: Option<Slot>,
        n: u32,
        to: Slot,
        line: u32,
    },
    Store {
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        value: Slot,
        line: u32,
    },
    For {
        var: Slot,
        lo: Slot,
        hi: Slot,
        step: Slot,
        enter: Moves,
        body: Vec<Step>,
        next: Moves,
        leave: Moves,
    },
    If {
        condition: Slot,
        then: Vec<Step>,
        then_moves: Moves,
        otherwise: Vec<Step>,
        otherwise_moves: Moves,
    },
}

/// Parallel assignments `(to, from, lanes)`.
#[derive(Debug, Default)]
struct Moves {
    list: Vec<(Slot, Slot, u32)>,
    /// Whether a source is also a destination of another.
    overlap: bool,
}

impl Moves {
    fn new(list: Vec<(Slot, Slot, u32)>) -> Moves {
        let overlap = list.iter().enumerate().any(|(i, a)| list.iter().skip(i + 1).any(|b| b.1 == a.0));
        Moves { list, overlap }
    }

    fn run(&self, registers: &mut [u64], spare: &mut Vec<u64>) {
        if !self.overlap {
            for &(to, from, n) in &self.list {
                registers.copy_within(from as usize..(from + n) as usize, to as usize);
            }
            return;
        }
        spare.clear();
        for &(_, from, n) in &self.list {
            spare.extend_from_slice(&registers[from as usize..(from + n) as usize]);
        }
        let mut next = 0;
        for &(to, _, n) in &self.list {
            registers[to as usize..(to + n) as usize].copy_from_slice(&spare[next..next + n as usize]);
            next += n as usize;
        }
    }
}

impl Interpreter {
    /// Resolves a kernel.
    ///
    /// # Errors
    /// The kernel does not verify.
    pub fn new(kernel: &Kernel) -> Result<Interpreter, String> {
        super::verify(kernel).map_err(|errors| format!("invalid kernel: {}", errors.join("; ")))?;
        let mut slots = Vec::with_capacity(kernel.types.len());
        let mut total = 0u32;
        for ty in &kernel.types {
            slots.push(total);
            total += ty.lanes;
        }
        let region = |name: &str, dtype, len, offset| Region { name: name.to_string(), dtype, len, offset };
        let mut regions: Vec<Region> =
            kernel.buffers.iter().map(|b| region(&b.name, b.dtype, b.len, 0)).collect();
        for (i, s) in kernel.scratch.iter().enumerate() {
            regions.push(region(&s.name, s.dtype, s.len, kernel.scratch_offset(i as u32)));
        }
        let mut resolver = Resolver { kernel, slots, registers: vec![0; total as usize], lines: Vec::new() };
        let steps = resolver.block(&kernel.body);
        let params = kernel.params.iter().map(|&p| resolver.slot(p)).collect();
        Ok(Interpreter {
            steps,
            registers: resolver.registers,
            params,
            regions,
            n_buffers: kernel.buffers.len(),
            scratch_bytes: kernel.scratch_bytes(),
            lines: resolver.lines,
        })
    }

    /// Computes tiles `tiles.start..tiles.end`. Scratch starts as all ones (NaN, −1), unlike what a kernel may rely on.
    ///
    /// # Errors
    /// A wrong number of buffers or scalars, or an access outside its buffer, scratch piece or memory space, with the op.
    pub fn run(
        &mut self,
        spaces: &mut [Vec<u8>],
        buffers: &[Binding],
        scalars: &[i64],
        tiles: std::ops::Range<i64>,
    ) -> Result<(), String> {
        if buffers.len() != self.n_buffers || scalars.len() + 2 != self.params.len() {
            return Err(format!(
                "the kernel takes {} buffers and {} scalars, not {} and {}",
                self.n_buffers,
                self.params.len() - 2,
                buffers.len(),
                scalars.len()
            ));
        }
        for (&slot, &value) in self.params.iter().zip([tiles.start, tiles.end].iter().chain(scalars)) {
            self.registers[slot as usize] = value as u64;
        }
        let mut machine = Machine {
            registers: &mut self.registers,
            spaces,
            buffers,
            scratch: vec![0xff; self.scratch_bytes as usize],
            regions: &self.regions,
            lines: &self.lines,
            spare: Vec::new(),
        };
        machine.steps(&self.steps)
    }
}

/// Runs a kernel whose buffers are separate arrays of bytes; the simplest form of [`Interpreter::run`].
///
/// # Errors
/// As there.
pub fn interpret(
    kernel: &Kernel,
    buffers: &mut [Vec<u8>],
    scalars: &[i64],
    tiles: std::ops::Range<i64>,
) -> Result<(), String> {
    let bindings: Vec<Binding> = (0..buffers.len()).map(|space| Binding { space, offset: 0 }).collect();
    Interpreter::new(kernel)?.run(buffers, &bindings, scalars, tiles)
}

// ---- resolving

struct Resolver<'a> {
    kernel: &'a Kernel,
    slots: Vec<Slot>,
    registers: Vec<u64>,
    lines: Vec<String>,
}

impl Resolver<'_> {
    fn slot(&self, value: Value) -> Slot {
        self.slots[value.0 as usize]
    }

    fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    fn moves(&self, to: &[Value], from: &[Value]) -> Moves {
        Moves::new(
            to.iter().zip(from).map(|(&t, &f)| (self.slot(t), self.slot(f), self.ty(t).lanes)).collect(),
        )
    }

    fn region(&self, mem: Mem) -> u32 {
        match mem {
            Mem::Buffer(i) => i,
            Mem::Scratch(i) => self.kernel.buffers.len() as u32 + i,
        }
    }

    fn line(&mut self, inst: &Inst) -> u32 {
        self.lines.push(inst_line(self.kernel, inst));
        self.lines.len() as u32 - 1
    }

    fn block(&mut self, block: &Block) -> Vec<Step> {
        block.insts.iter().filter_map(|inst| self.inst(inst)).collect()
    }

    /// Constants become initial register contents: nothing else ever writes their slots.
    fn constant(&mut self, to: Value, lane: impl Fn(u64) -> u64) {
        let (slot, n) = (self.slot(to) as usize, self.ty(to).lanes as usize);
        for (i, register) in self.registers[slot..slot + n].iter_mut().enumerate() {
            *register = lane(i as u64);
        }
    }

    fn inst(&mut self, inst: &Inst) -> Option<Step> {
        let first = inst.results.first().copied();
        let (to, n) = first.map_or((0, 0), |v| (self.slot(v), self.ty(v).lanes));
        Some(match &inst.op {
            Op::Const(_, bits) => {
                self.constant(first?, |_| *bits);
                return None;
            }
            Op::Iota(_) => {
                self.constant(first?, |lane| lane);
                return None;
            }
            Op::Unary(op, a) => Step::Unary { op: *op, elem: self.ty(*a).elem, n, to, a: self.slot(*a) },
            Op::Binary(op, a, b) => {
                Step::Binary { op: *op, elem: self.ty(*a).elem, n, to, a: self.slot(*a), b: self.slot(*b) }
            }
            Op::Fma(a, b, c) => Step::Fma {
                elem: self.ty(*a).elem,
                n,
                to,
                a: self.slot(*a),
                b: self.slot(*b),
                c: self.slot(*c),
            },
            Op::Compare(op, a, b) => {
                Step::Compare { op: *op, elem: self.ty(*a).elem, n, to, a: self.slot(*a), b: self.slot(*b) }
            }
            Op::Select(c, a, b) => Step::Select {
                per_lane: self.ty(*c).is_vector(),
                n,
                to,
                c: self.slot(*c),
                a: self.slot(*a),
                b: self.slot(*b),
            },
            Op::Convert(ty, a) => {
                Step::Convert { from: self.ty(*a).elem, elem: ty.elem, n, to, a: self.slot(*a) }
            }
            Op::Bitcast(_, a) => Step::Copy { n, to, a: self.slot(*a) },
            Op::Splat(_, a) => Step::Splat { n, to, a: self.slot(*a) },
            Op::Extract(a, lane) => Step::Copy { n, to, a: self.slot(*a) + lane },
            Op::Insert(a, s, lane) => Step::Insert { n, to, a: self.slot(*a), s: self.slot(*s), lane: *lane },
            Op::Shuffle(a, b, lanes) => {
                let width = self.ty(*a).lanes;
                let pick = |&l: &u32| if l < width { self.slot(*a) + l } else { self.slot(*b) + l - width };
                Step::Shuffle { to, from: lanes.iter().map(pick).collect() }
            }
            Op::Reduce(op, a) => {
                let ty = self.ty(*a);
                Step::Reduce { op: *op, elem: ty.elem, n: ty.lanes, to, a: self.slot(*a) }
            }
            Op::Load { at, count, .. } => {
                let (region, index, stride) = self.at(at);
                Step::Load {
                    region,
                    index,
                    stride,
                    count: count.map(|c| self.slot(c)),
                    n,
                    to,
                    line: self.line(inst),
                }
            }
            Op::Gather { mem, indices, count } => Step::Gather {
                region: self.region(*mem),
                wide: self.ty(*indices).elem == Elem::I64,
                indices: self.slot(*indices),
                count: count.map(|c| self.slot(c)),
                n,
                to,
                line: self.line(inst),
            },
            Op::Store { at, value, count } => {
                let (region, index, stride) = self.at(at);
                let (n, count) = (self.ty(*value).lanes, count.map(|c| self.slot(c)));
                Step::Store {
                    region,
                    index,
                    stride,
                    count,
                    n,
                    value: self.slot(*value),
                    line: self.line(inst),
                }
            }
            Op::For(l) => Step::For {
                var: self.slot(l.var),
                lo: self.slot(l.lo),
                hi: self.slot(l.hi),
                step: self.slot(l.step),
                enter: self.moves(&l.carried, &l.init),
                body: self.block(&l.body),
                next: self.moves(&l.carried, &l.body.yields),
                leave: self.moves(&inst.results, &l.carried),
            },
            Op::If(i) => Step::If {
                condition: self.slot(i.condition),
                then: self.block(&i.then),
                then_moves: self.moves(&inst.results, &i.then.yields),
                otherwise: self.block(&i.otherwise),
                otherwise_moves: self.moves(&inst.results, &i.otherwise.yields),
            },
        })
    }

    fn at(&self, at: &At) -> (u32, Slot, Option<Slot>) {
        (self.region(at.mem), self.slot(at.index), at.stride.map(|s| self.slot(s)))
    }
}

// ---- running

struct Machine<'a> {
    registers: &'a mut [u64],
    spaces: &'a mut [Vec<u8>],
    buffers: &'a [Binding],
    scratch: Vec<u8>,
    regions: &'a [Region],
    lines: &'a [String],
    spare: Vec<u64>,
}

impl Machine<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(step)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            &Step::Unary { op, elem, n, to, a } => self.lanes1(n, to, a, unary_fn(op, elem)),
            &Step::Binary { op, elem, n, to, a, b } => self.binary(op, elem, n, to, a, b),
            &Step::Fma { elem, n, to, a, b, c } => self.fma(elem, n, to, a, b, c),
            &Step::Compare { op, elem, n, to, a, b } => {
                let compare = compare_fn(op, elem);
                self.lanes2(n, to, a, b, |x, y| compare(x, y) as u64);
            }
            &Step::Select { per_lane, n, to, c, a, b } => {
                for i in 0..n {
                    let condition = self.registers[(c + if per_lane { i } else { 0 }) as usize] & 1 == 1;
                    self.registers[(to + i) as usize] =
                        self.registers[(if condition { a } else { b } + i) as usize];
                }
            }
            &Step::Convert { from, elem, n, to, a } => self.lanes1(n, to, a, convert_fn(from, elem)),
            &Step::Copy { n, to, a } => self.registers.copy_within(a as usize..(a + n) as usize, to as usize),
            &Step::Splat { n, to, a } => {
                let value = self.registers[a as usize];
                self.registers[to as usize..(to + n) as usize].fill(value);
            }
            &Step::Insert { n, to, a, s, lane } => {
                self.registers.copy_within(a as usize..(a + n) as usize, to as usize);
                self.registers[(to + lane) as usize] = self.registers[s as usize];
            }
            Step::Shuffle { to, from } => {
                for (i, &slot) in from.iter().enumerate() {
                    self.registers[*to as usize + i] = self.registers[slot as usize];
                }
            }
            &Step::Reduce { op, elem, n, to, a } => self.reduce(op, elem, n, to, a),
            &Step::Load { region, index, stride, count, n, to, line } => {
                self.load(region, index, stride, count, n, to, line)?;
            }
            &Step::Gather { region, wide, indices, count, n, to, line } => {
                let active = self.active(count, n);
                for i in 0..n {
                    let word = self.registers[(indices + i) as usize];
                    let index = if wide { word as i64 } else { word as i32 as i64 };
                    self.registers[(to + i) as usize] =
                        if i < active { self.read(region, index, line)? } else { 0 };
                }
            }
            &Step::Store { region, index, stride, count, n, value, line } => {
                self.store(region, index, stride, count, n, value, line)?;
            }
            Step::For { var, lo, hi, step, enter, body, next, leave } => {
                let mut i = self.registers[*lo as usize] as i64;
                let hi = self.registers[*hi as usize] as i64;
                let step = self.registers[*step as usize] as i64;
                enter.run(self.registers, &mut self.spare);
                while i < hi {
                    self.registers[*var as usize] = i as u64;
                    self.steps(body)?;
                    next.run(self.registers, &mut self.spare);
                    let Some(following) = i.checked_add(step) else { break };
                    i = following;
                }
                leave.run(self.registers, &mut self.spare);
            }
            Step::If { condition, then, then_moves, otherwise, otherwise_moves } => {
                let taken = self.registers[*condition as usize] & 1 == 1;
                let (steps, moves) = if taken { (then, then_moves) } else { (otherwise, otherwise_moves) };
                self.steps(steps)?;
                moves.run(self.registers, &mut self.spare);
            }
        }
        Ok(())
    }

    fn lanes1(&mut self, n: u32, to: Slot, a: Slot, f: impl Fn(u64) -> u64) {
        for i in 0..n {
            self.registers[(to + i) as usize] = f(self.registers[(a + i) as usize]);
        }
    }

    #[inline(always)]
    fn lanes2(&mut self, n: u32, to: Slot, a: Slot, b: Slot, f: impl Fn(u64, u64) -> u64) {
        for i in 0..n {
            self.registers[(to + i) as usize] =
                f(self.registers[(a + i) as usize], self.registers[(b + i) as usize]);
        }
    }

    /// The commonest ops get a loop of their own, the others go through a function pointer.
    fn binary(&mut self, op: BinaryOp, elem: Elem, n: u32, to: Slot, a: Slot, b: Slot) {
        match (op, elem) {
            (BinaryOp::Add, Elem::I64) => self.lanes2(n, to, a, b, u64::wrapping_add),
            (BinaryOp::Mul, Elem::I64) => self.lanes2(n, to, a, b, u64::wrapping_mul),
            (BinaryOp::Add, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) + f32_of(y))),
            (BinaryOp::Sub, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) - f32_of(y))),
            (BinaryOp::Mul, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) * f32_of(y))),
            (op, elem) => self.lanes2(n, to, a, b, binary_fn(op, elem)),
        }
    }

    fn fma(&mut self, elem: Elem, n: u32, to: Slot, a: Slot, b: Slot, c: Slot) {
        for i in 0..n {
            let [x, y, z] = [a, b, c].map(|slot| self.registers[(slot + i) as usize]);
            self.registers[(to + i) as usize] = match elem {
                Elem::F64 => f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits(),
                Elem::F32 | Elem::I1 | Elem::I32 | Elem::I64 => {
                    word32(f32_of(x).mul_add(f32_of(y), f32_of(z)))
                }
            };
        }
    }

    fn reduce(&mut self, op: ReduceOp, elem: Elem, n: u32, to: Slot, a: Slot) {
        let f = binary_fn(op.binary(), elem);
        let mut lanes = std::mem::take(&mut self.spare);
        lanes.clear();
        lanes.extend_from_slice(&self.registers[a as usize..(a + n) as usize]);
        while lanes.len() > 1 {
            let half = lanes.len().next_power_of_two() / 2;
            for i in half..lanes.len() {
                lanes[i - half] = f(lanes[i - half], lanes[i]);
            }
            lanes.truncate(half);
        }
        self.registers[to as usize] = lanes[0];
        self.spare = lanes;
    }

    /// How many of `n` lanes touch memory.
    fn active(&self, count: Option<Slot>, n: u32) -> u32 {
        count.map_or(n, |slot| (self.registers[slot as usize] as i64).clamp(0, n as i64) as u32)
    }

    fn load(
        &mut self,
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        to: Slot,
        line: u32,
    ) -> Result<(), String> {
        let base = self.registers[index as usize] as i64;
        let stride = stride.map_or(1, |s| self.registers[s as usize] as i64);
        let active = self.active(count, n);
        for i in 0..n {
            let word = if i < active { self.read(region, at_lane(base, stride, i), line)? } else { 0 };
            self.registers[(to + i) as usize] = word;
        }
        Ok(())
    }

    fn store(
        &mut self,
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        value: Slot,
        line: u32,
    ) -> Result<(), String> {
        let base = self.registers[index as usize] as i64;
        let stride = stride.map_or(1, |s| self.registers[s as usize] as i64);
        for i in 0..self.active(count, n) {
            let word = self.registers[(value + i) as usize];
            self.write(region, at_lane(base, stride, i), word, line)?;
        }
        Ok(())
    }

    /// The bytes from element `index` of a region on.
    #[inline(always)]
    fn bytes(&mut self, region: u32, index: i64, line: u32) -> Result<&mut [u8], String> {
        let r = &self.regions[region as usize];
        if index < 0 || index as u64 >= r.len {
            return Err(format!(
                "index {index} is outside `{}`, which has {} elements, in `{}`",
                r.name, r.len, self.lines[line as usize]
            ));
        }
        let (memory, base) = match self.buffers.get(region as usize) {
            Some(binding) => (self.spaces.get_mut(binding.space).map(Vec::as_mut_slice), binding.offset),
            None => (Some(self.scratch.as_mut_slice()), r.offset),
        };
        let (start, size) = (base + index as u64 * r.dtype.bytes(), r.dtype.bytes());
        memory.and_then(|m| m.get_mut(start as usize..(start + size) as usize)).ok_or_else(|| {
            format!(
                "`{}` reaches beyond its memory space at index {index}, in `{}`",
                r.name, self.lines[line as usize]
            )
        })
    }

    #[inline(always)]
    fn read(&mut self, region: u32, index: i64, line: u32) -> Result<u64, String> {
        let dtype = self.regions[region as usize].dtype;
        let bytes = self.bytes(region, index, line)?;
        Ok(match dtype {
            DType::F32 | DType::I32 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as u64,
            DType::Bf16 => (u16::from_le_bytes([bytes[0], bytes[1]]) as u64) << 16,
            DType::Bool => (bytes[0] != 0) as u64,
            DType::F64 | DType::I64 => u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ]),
        })
    }

    #[inline(always)]
    fn write(&mut self, region: u32, index: i64, word: u64, line: u32) -> Result<(), String> {
        let dtype = self.regions[region as usize].dtype;
        let bytes = self.bytes(region, index, line)?;
        match dtype {
            DType::F32 | DType::I32 => bytes.copy_from_slice(&(word as u32).to_le_bytes()),
            DType::Bf16 => bytes.copy_from_slice(&((round_bf16(word as u32) >> 16) as u16).to_le_bytes()),
            DType::Bool => bytes[0] = word as u8 & 1,
            DType::F64 | DType::I64 => bytes.copy_from_slice(&word.to_le_bytes()),
        }
        Ok(())
    }
}

fn at_lane(base: i64, stride: i64, lane: u32) -> i64 {
    base.wrapping_add(stride.wrapping_mul(lane as i64))
}

// ---- ops on words; an F32 or I32 lane is the low half of its word, the high half being 0

fn f32_of(word: u64) -> f32 {
    f32::from_bits(word as u32)
}

fn word32(x: f32) -> u64 {
    x.to_bits() as u64
}

fn i32_word(x: i32) -> u64 {
    x as u32 as u64
}

/// Bits of an f32 rounded to bf16.
fn round_bf16(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fc0_0000;
    }
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

fn unary_fn(op: UnaryOp, elem: Elem) -> fn(u64) -> u64 {
    match (elem, op) {
        (Elem::F32, UnaryOp::Neg) => |x| x ^ 0x8000_0000,
        (Elem::F32, UnaryOp::Abs) => |x| x & 0x7fff_ffff,
        (Elem::F32, UnaryOp::Sqrt) => |x| word32(f32_of(x).sqrt()),
        (Elem::F32, UnaryOp::Floor) => |x| word32(f32_of(x).floor()),
        (Elem::F32, UnaryOp::Ceil) => |x| word32(f32_of(x).ceil()),
        (Elem::F32, UnaryOp::Trunc) => |x| word32(f32_of(x).trunc()),
        (Elem::F32, UnaryOp::RoundEven) => |x| word32(f32_of(x).round_ties_even()),
        (Elem::F32, UnaryOp::RoundBf16) => |x| round_bf16(x as u32) as u64,
        (Elem::F64, UnaryOp::Neg) => |x| x ^ (1 << 63),
        (Elem::F64, UnaryOp::Abs) => |x| x & !(1 << 63),
        (Elem::F64, UnaryOp::Sqrt) => |x| f64::from_bits(x).sqrt().to_bits(),
        (Elem::F64, UnaryOp::Floor) => |x| f64::from_bits(x).floor().to_bits(),
        (Elem::F64, UnaryOp::Ceil) => |x| f64::from_bits(x).ceil().to_bits(),
        (Elem::F64, UnaryOp::Trunc) => |x| f64::from_bits(x).trunc().to_bits(),
        (Elem::F64, UnaryOp::RoundEven) => |x| f64::from_bits(x).round_ties_even().to_bits(),
        (Elem::I32, UnaryOp::Neg) => |x| i32_word((x as i32).wrapping_neg()),
        (Elem::I32, UnaryOp::Abs) => |x| i32_word((x as i32).wrapping_abs()),
        (Elem::I32, UnaryOp::Not) => |x| i32_word(!(x as i32)),
        (Elem::I64, UnaryOp::Neg) => |x| (x as i64).wrapping_neg() as u64,
        (Elem::I64, UnaryOp::Abs) => |x| (x as i64).wrapping_abs() as u64,
        (Elem::I64, UnaryOp::Not) => |x| !x,
        (Elem::I1, UnaryOp::Not) => |x| x ^ 1,
        // Refused by the verifier, which has run.
        (Elem::F32, UnaryOp::Not)
        | (Elem::F64, UnaryOp::Not | UnaryOp::RoundBf16)
        | (
            Elem::I32 | Elem::I64,
            UnaryOp::Sqrt
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::RoundBf16,
        )
        | (
            Elem::I1,
            UnaryOp::Neg
            | UnaryOp::Abs
            | UnaryOp::Sqrt
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::RoundBf16,
        ) => |x| x,
    }
}

/// IEEE 754-2019 minimum or maximum.
macro_rules! extremum {
    ($name:ident, $float:ty, $wins:tt, $zero:ident) => {
        fn $name(a: $float, b: $float) -> $float {
            if a.is_nan() || b.is_nan() {
                <$float>::NAN
            } else if a == b {
                if a.$zero() { a } else { b }
            } else if a $wins b {
                a
            } else {
                b
            }
        }
    };
}

extremum!(min32, f32, <, is_sign_negative);
extremum!(max32, f32, >, is_sign_positive);
extremum!(min64, f64, <, is_sign_negative);
extremum!(max64, f64, >, is_sign_positive);

fn binary_fn(op: BinaryOp, elem: Elem) -> fn(u64, u64) -> u64 {
    match (elem, op) {
        (Elem::F32, BinaryOp::Add) => |a, b| word32(f32_of(a) + f32_of(b)),
        (Elem::F32, BinaryOp::Sub) => |a, b| word32(f32_of(a) - f32_of(b)),
        (Elem::F32, BinaryOp::Mul) => |a, b| word32(f32_of(a) * f32_of(b)),
        (Elem::F32, BinaryOp::Div) => |a, b| word32(f32_of(a) / f32_of(b)),
        (Elem::F32, BinaryOp::Min) => |a, b| word32(min32(f32_of(a), f32_of(b))),
        (Elem::F32, BinaryOp::Max) => |a, b| word32(max32(f32_of(a), f32_of(b))),
        (Elem::F64, BinaryOp::Add) => |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Sub) => |a, b| (f64::from_bits(a) - f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Mul) => |a, b| (f64::from_bits(a) * f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Div) => |a, b| (f64::from_bits(a) / f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Min) => |a, b| min64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Max) => |a, b| max64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        (Elem::I32, BinaryOp::Add) => |a, b| i32_word((a as i32).wrapping_add(b as i32)),
        (Elem::I32, BinaryOp::Sub) => |a, b| i32_word((a as i32).wrapping_sub(b as i32)),
        (Elem::I32, BinaryOp::Mul) => |a, b| i32_word((a as i32).wrapping_mul(b as i32)),
        (Elem::I32, BinaryOp::Div) => {
            |a, b| if b == 0 { 0 } else { i32_word((a as i32).wrapping_div(b as i32)) }
        }
        (Elem::I32, BinaryOp::Rem) => {
            |a, b| if b == 0 { 0 } else { i32_word((a as i32).wrapping_rem(b as i32)) }
        }
        (Elem::I32, BinaryOp::Min) => |a, b| i32_word((a as i32).min(b as i32)),
        (Elem::I32, BinaryOp::Max) => |a, b| i32_word((a as i32).max(b as i32)),
        (Elem::I32, BinaryOp::Shl) => |a, b| (a as u32).wrapping_shl(b as u32) as u64,
        (Elem::I32, BinaryOp::ShrU) => |a, b| (a as u32).wrapping_shr(b as u32) as u64,
        (Elem::I32, BinaryOp::ShrS) => |a, b| i32_word((a as i32).wrapping_shr(b as u32)),
        (Elem::I64, BinaryOp::Add) => u64::wrapping_add,
        (Elem::I64, BinaryOp::Sub) => u64::wrapping_sub,
        (Elem::I64, BinaryOp::Mul) => u64::wrapping_mul,
        (Elem::I64, BinaryOp::Div) => {
            |a, b| if b == 0 { 0 } else { (a as i64).wrapping_div(b as i64) as u64 }
        }
        (Elem::I64, BinaryOp::Rem) => {
            |a, b| if b == 0 { 0 } else { (a as i64).wrapping_rem(b as i64) as u64 }
        }
        (Elem::I64, BinaryOp::Min) => |a, b| (a as i64).min(b as i64) as u64,
        (Elem::I64, BinaryOp::Max) => |a, b| (a as i64).max(b as i64) as u64,
        (Elem::I64, BinaryOp::Shl) => |a, b| a.wrapping_shl(b as u32),
        (Elem::I64, BinaryOp::ShrU) => |a, b| a.wrapping_shr(b as u32),
        (Elem::I64, BinaryOp::ShrS) => |a, b| (a as i64).wrapping_shr(b as u32) as u64,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::And) => |a, b| a & b,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::Or) => |a, b| a | b,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::Xor) => |a, b| a ^ b,
        // Refused by the verifier, which has run.
        (
            Elem::F32 | Elem::F64,
            BinaryOp::Rem
            | BinaryOp::And
            | BinaryOp::Or
            | BinaryOp::Xor
            | BinaryOp::Shl
            | BinaryOp::ShrU
            | BinaryOp::ShrS,
        )
        | (
            Elem::I1,
            BinaryOp::Add
            | BinaryOp::Sub
            | BinaryOp::Mul
            | BinaryOp::Div
            | BinaryOp::Rem
            | BinaryOp::Min
            | BinaryOp::Max
            | BinaryOp::Shl
            | BinaryOp::ShrU
            | BinaryOp::ShrS,
        ) => |a, _| a,
    }
}

fn compare_fn(op: CompareOp, elem: Elem) -> fn(u64, u64) -> bool {
    /// One function per comparison, for a way of reading words.
    macro_rules! compare {
        ($read:expr) => {
            match op {
                CompareOp::Eq => |a, b| $read(a) == $read(b),
                CompareOp::Ne => |a, b| $read(a) != $read(b),
                CompareOp::Lt => |a, b| $read(a) < $read(b),
                CompareOp::Le => |a, b| $read(a) <= $read(b),
                CompareOp::Gt => |a, b| $read(a) > $read(b),
                CompareOp::Ge => |a, b| $read(a) >= $read(b),
            }
        };
    }
    match elem {
        Elem::F32 => compare!(f32_of),
        Elem::F64 => compare!(f64::from_bits),
        Elem::I32 => compare!(|x| x as i32),
        Elem::I64 => compare!(|x| x as i64),
        Elem::I1 => compare!(|x| x & 1),
    }
}

fn convert_fn(from: Elem, to: Elem) -> fn(u64) -> u64 {
    match (from, to) {
        (Elem::F32, Elem::F64) => |x| (f32_of(x) as f64).to_bits(),
        (Elem::F32, Elem::I32) => |x| i32_word(f32_of(x) as i32),
        (Elem::F32, Elem::I64) => |x| f32_of(x) as i64 as u64,
        (Elem::F32, Elem::I1) => |x| (f32_of(x) != 0.0) as u64,
        (Elem::F64, Elem::F32) => |x| word32(f64::from_bits(x) as f32),
        (Elem::F64, Elem::I32) => |x| i32_word(f64::from_bits(x) as i32),
        (Elem::F64, Elem::I64) => |x| f64::from_bits(x) as i64 as u64,
        (Elem::F64, Elem::I1) => |x| (f64::from_bits(x) != 0.0) as u64,
        (Elem::I32, Elem::F32) => |x| word32(x as i32 as f32),
        (Elem::I32, Elem::F64) => |x| (x as i32 as f64).to_bits(),
        (Elem::I32, Elem::I64) => |x| x as i32 as i64 as u64,
        (Elem::I64, Elem::F32) => |x| word32(x as i64 as f32),
        (Elem::I64, Elem::F64) => |x| (x as i64 as f64).to_bits(),
        (Elem::I64, Elem::I32) => |x| x as u32 as u64,
        (Elem::I32 | Elem::I64, Elem::I1) => |x| (x != 0) as u64,
        (Elem::I1, Elem::F32) => |x| word32((x & 1) as f32),
        (Elem::I1, Elem::F64) => |x| ((x & 1) as f64).to_bits(),
        (Elem::I1, Elem::I32 | Elem::I64) => |x| x & 1,
        (Elem::F32, Elem::F32) | (Elem::F64, Elem::F64) | (Elem::I32, Elem::I32) | (Elem::I64, Elem::I64) => {
            |x| x
        }
        (Elem::I1, Elem::I1) => |x| x,
    }
}
