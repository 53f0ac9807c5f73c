//! Runs a kernel, bit for bit as the machine does (up to NaN payloads), with every access checked.
//!
//! A kernel is first resolved to steps whose operands are positions in one flat register file, a word per lane; then the
//! steps are run. Both are kept in [`Interpreter`], so a kernel that runs often is resolved once.

mod machine;
mod resolve;
mod word;

use mlc_runtime::abi::DType;

use self::machine::Machine;
use self::resolve::Resolver;
use super::{BinaryOp, CompareOp, Elem, Kernel, ReduceOp, UnaryOp};

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
