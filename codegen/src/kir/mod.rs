//! KIR, the kernel IR: what one kernel does on one thread, down to registers, for no machine in particular.
//!
//! A [`Kernel`] is one function with the convention [`KernelFn`](mlc_runtime::abi::KernelFn): it computes the tiles
//! `tile_begin..tile_end` of its launch from statically sized buffers, using per-thread scratch. Its body is structured
//! ([`Op::For`], [`Op::If`]; no jumps) and in single-assignment form; values are scalars or vectors of a fixed number
//! of lanes.
//!
//! KIR fixes every bit of the result. Nothing is reassociated and nothing is contracted: a fused multiply-add is written
//! [`Op::Fma`], a reduction over lanes is the tree of [`Op::Reduce`]. All integer ops are total. The one freedom is the
//! payload and sign of a NaN, which no kernel may make visible except through [`UnaryOp::RoundBf16`] and bf16 stores,
//! where it is canonical. So the interpreter and the machine agree bit for bit.
//!
//! ```text
//! kernel {
//!   buffer x: read f32[1000]
//!   buffer y: write f32[1000]
//!   tiles 8 (%0, %1)
//!   %2 = const i64 0
//!   %3 = const i64 125
//!   %4 = const i64 1
//!   %5 = const f32 2
//!   for %6 = %0 to %1 step %4 {
//!     %7 = mul i64 %6, %3
//!     for %8 = %2 to %3 step %4 {
//!       %9 = add i64 %7, %8
//!       %10 = load f32 x[%9]
//!       %11 = mul f32 %10, %5
//!       store y[%9], %11
//!     }
//!   }
//! }
//! ```

mod builder;
pub mod interpret;
mod ops;
mod parse;
mod print;
mod renumber;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

use mlc_runtime::abi::DType;

pub use builder::Builder;
pub use ops::{BinaryOp, CompareOp, ReduceOp, UnaryOp};
pub use parse::parse;
pub use print::dtype_name;
pub use verify::verify;

/// Most lanes a vector may have.
pub const MAX_LANES: u32 = 128;

/// Type of one lane of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Elem {
    /// A truth value.
    I1,
    /// 32-bit integer, two's complement.
    I32,
    /// 64-bit integer, two's complement; all indices.
    I64,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl Elem {
    /// Every lane type.
    pub const ALL: [Elem; 5] = [Elem::I1, Elem::I32, Elem::I64, Elem::F32, Elem::F64];

    /// What an element of type `dtype` in memory becomes in a register: bf16 is widened to f32, a bool is an `i1`.
    pub const fn of_memory(dtype: DType) -> Elem {
        match dtype {
            DType::F32 | DType::Bf16 => Elem::F32,
            DType::F64 => Elem::F64,
            DType::I32 => Elem::I32,
            DType::I64 => Elem::I64,
            DType::Bool => Elem::I1,
        }
    }

    /// Whether this is F32 or F64.
    pub const fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F64)
    }

    /// Width in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Elem::I1 => 1,
            Elem::I32 | Elem::F32 => 32,
            Elem::I64 | Elem::F64 => 64,
        }
    }

    /// Text form.
    pub const fn name(self) -> &'static str {
        match self {
            Elem::I1 => "i1",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
        }
    }
}

/// Type of a value: `lanes` lanes of `elem`. One lane is a scalar; there is no vector of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type {
    /// Type of each lane.
    pub elem: Elem,
    /// 1 for a scalar, at most [`MAX_LANES`].
    pub lanes: u32,
}

impl Type {
    /// Scalar `i1`.
    pub const I1: Type = Type::scalar(Elem::I1);
    /// Scalar `i32`.
    pub const I32: Type = Type::scalar(Elem::I32);
    /// Scalar `i64`.
    pub const I64: Type = Type::scalar(Elem::I64);
    /// Scalar `f32`.
    pub const F32: Type = Type::scalar(Elem::F32);
    /// Scalar `f64`.
    pub const F64: Type = Type::scalar(Elem::F64);

    /// One lane.
    pub const fn scalar(elem: Elem) -> Type {
        Type { elem, lanes: 1 }
    }

    /// `lanes` lanes.
    pub const fn vector(elem: Elem, lanes: u32) -> Type {
        Type { elem, lanes }
    }

    /// The same number of lanes of another element type.
    pub const fn with_elem(self, elem: Elem) -> Type {
        Type { elem, lanes: self.lanes }
    }

    /// Whether there is more than one lane.
    pub const fn is_vector(self) -> bool {
        self.lanes > 1
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.elem.name())?;
        if self.is_vector() { write!(f, "x{}", self.lanes) } else { Ok(()) }
    }
}

/// A value: parameter, loop variable, carried value or result of an op. Defined once per kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u32);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A memory region of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mem {
    /// Index into [`Kernel::buffers`], which is the number of the launch's address.
    Buffer(u32),
    /// Index into [`Kernel::scratch`].
    Scratch(u32),
}

/// How a kernel uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Only loads.
    Read,
    /// Only stores.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Text form.
    pub const fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "read_write",
        }
    }

    /// Whether loads are allowed.
    pub const fn reads(self) -> bool {
        !matches!(self, Access::Write)
    }

    /// Whether stores are allowed.
    pub const fn writes(self) -> bool {
        !matches!(self, Access::Read)
    }
}

/// A buffer of the launch. Different buffers of a kernel do not overlap unless every one of the overlapping is only
/// read; in-place kernels name one buffer twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Unique among buffers and scratch; a letter, then letters, digits or `_`.
    pub name: String,
    /// Element type in memory.
    pub dtype: DType,
    /// Elements from the launch's address on that the kernel may touch.
    pub len: u64,
    /// Loads, stores or both.
    pub access: Access,
}

/// A piece of the thread's scratch memory, aligned to 64 bytes. Undefined when the kernel starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Unique among buffers and scratch.
    pub name: String,
    /// Element type in memory.
    pub dtype: DType,
    /// Elements.
    pub len: u64,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Buffers in the order of the launch's addresses.
    pub buffers: Vec<Buffer>,
    /// Scratch pieces, laid out one after the other (see [`Kernel::scratch_offset`]).
    pub scratch: Vec<Scratch>,
    /// Tiles of a launch, ≥ 1: the runtime splits `0..tiles` over threads in any way.
    pub tiles: u64,
    /// Parameters, all `i64`: tile begin, tile end, then the launch's scalars.
    pub params: Vec<Value>,
    /// Type of every value, indexed by [`Value`].
    pub types: Vec<Type>,
    /// What it does.
    pub body: Block,
}

impl Kernel {
    /// Type of a value.
    pub fn ty(&self, value: Value) -> Type {
        self.types[value.0 as usize]
    }

    /// Name, element type and length of a memory region.
    pub fn mem(&self, mem: Mem) -> (&str, DType, u64) {
        match mem {
            Mem::Buffer(i) => {
                let b = &self.buffers[i as usize];
                (&b.name, b.dtype, b.len)
            }
            Mem::Scratch(i) => {
                let s = &self.scratch[i as usize];
                (&s.name, s.dtype, s.len)
            }
        }
    }

    /// Byte offset of scratch piece `index` from the thread's scratch base; a multiple of 64.
    pub fn scratch_offset(&self, index: u32) -> u64 {
        self.scratch[..index as usize].iter().map(|s| (s.len * s.dtype.bytes()).next_multiple_of(64)).sum()
    }

    /// Bytes of scratch one thread needs.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_offset(self.scratch.len() as u32)
    }

    /// Number of scalar arguments.
    pub fn n_scalars(&self) -> usize {
        self.params.len() - 2
    }
}

/// A list of ops, and the values it hands to the op that owns it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// In order.
    pub insts: Vec<Inst>,
    /// Next values of the carried values (`for`), results (`if`), nothing (kernel body).
    pub yields: Vec<Value>,
}

/// An op and the values it defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Inst {
    /// None for stores, one for most, any number for `for` and `if`.
    pub results: Vec<Value>,
    /// The op.
    pub op: Op,
}

/// Where a load or store touches memory: element `index + lane · stride` of `mem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The region.
    pub mem: Mem,
    /// Element index of lane 0, `i64`.
    pub index: Value,
    /// Elements between lanes, `i64`; `None` is 1.
    pub stride: Option<Value>,
}

/// One op. `T` below is any type unless said otherwise; lanes are independent.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `-> T`. Every lane has this bit pattern (for `i1` 0 or 1), the low bits of the word.
    Const(Type, u64),
    /// `-> T`. Lane `i` is `i`; T a vector of `i32` or `i64`.
    Iota(Type),
    /// `T -> T`, see [`UnaryOp`].
    Unary(UnaryOp, Value),
    /// `T, T -> T`, see [`BinaryOp`].
    Binary(BinaryOp, Value, Value),
    /// `T, T, T -> T`, floats: `a·b + c` rounded once.
    Fma(Value, Value, Value),
    /// `T, T -> i1 lanes`, see [`CompareOp`].
    Compare(CompareOp, Value, Value),
    /// `i1, T, T -> T` with a scalar condition or one of as many lanes as T: `if c { a } else { b }`.
    Select(Value, Value, Value),
    /// `S -> T`, same lanes. Float to integer truncates toward zero and saturates, NaN gives 0. Integer to float and f64
    /// to f32 round to nearest even. i64 to i32 keeps the low bits. To `i1`: `x != 0`. From `i1`: 0 or 1.
    Convert(Type, Value),
    /// `S -> T`, same lanes and bits per lane; the bits as they are.
    Bitcast(Type, Value),
    /// `scalar -> T`, the same in each lane.
    Splat(Type, Value),
    /// `T -> scalar`: one lane.
    Extract(Value, u32),
    /// `T, scalar -> T`: replaces one lane.
    Insert(Value, Value, u32),
    /// `T, T -> lanes.len() lanes`: lane `i` is lane `lanes[i]` of the concatenation of the two.
    Shuffle(Value, Value, Vec<u32>),
    /// `T -> scalar` by this tree: while `n > 1` lanes are left, `h` being the largest power of two below `n`, lane `i`
    /// becomes `lane i (op) lane i + h` for every `i < n - h`; then `n = h`.
    Reduce(ReduceOp, Value),
    /// `-> T`, the register type of the region with `lanes` lanes. With `count` (`i64`) only lanes `< count` touch
    /// memory, the others are 0.
    Load {
        /// Where.
        at: At,
        /// 1 for a scalar.
        lanes: u32,
        /// Active lanes.
        count: Option<Value>,
    },
    /// `i32 or i64 lanes -> T`: lane `i` is element `indices[i]` of `mem`; `count` as for [`Op::Load`].
    Gather {
        /// The region.
        mem: Mem,
        /// Element indices.
        indices: Value,
        /// Active lanes.
        count: Option<Value>,
    },
    /// Stores lanes (`< count`) of `value`, whose element type is the region's register type; f32 to a bf16 region is
    /// rounded as by [`UnaryOp::RoundBf16`]. Lanes are written in order, should a stride make them meet.
    Store {
        /// Where.
        at: At,
        /// What.
        value: Value,
        /// Active lanes.
        count: Option<Value>,
    },
    /// Runs `body` for `var` = lo, lo + step, … while `var < hi`.
    For(Box<For>),
    /// Runs one of two blocks; results are what it yields.
    If(Box<If>),
}

/// A counted loop with carried values. Its results are the carried values after the last iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct For {
    /// Loop variable, `i64`.
    pub var: Value,
    /// First value, `i64`.
    pub lo: Value,
    /// Bound, `i64`.
    pub hi: Value,
    /// Increment, `i64`, a constant ≥ 1.
    pub step: Value,
    /// Carried values as the body sees them.
    pub carried: Vec<Value>,
    /// Their values before the first iteration.
    pub init: Vec<Value>,
    /// Yields the next carried values.
    pub body: Block,
}

/// A conditional.
#[derive(Clone, Debug, PartialEq)]
pub struct If {
    /// Scalar `i1`.
    pub condition: Value,
    /// Run if true.
    pub then: Block,
    /// Run if false; yields as many values of the same types.
    pub otherwise: Block,
}

impl Op {
    /// Calls `f` on every value the op itself uses, in the order of the text; blocks inside are not entered.
    pub fn for_each_operand_mut(&mut self, f: &mut dyn FnMut(&mut Value)) {
        match self {
            Op::Const(..) | Op::Iota(_) => {}
            Op::Unary(_, a)
            | Op::Convert(_, a)
            | Op::Bitcast(_, a)
            | Op::Splat(_, a)
            | Op::Extract(a, _)
            | Op::Reduce(_, a) => f(a),
            Op::Binary(_, a, b) | Op::Compare(_, a, b) | Op::Insert(a, b, _) | Op::Shuffle(a, b, _) => {
                f(a);
                f(b);
            }
            Op::Fma(a, b, c) | Op::Select(a, b, c) => {
                f(a);
                f(b);
                f(c);
            }
            Op::Load { at, count, .. } => {
                f(&mut at.index);
                at.stride.iter_mut().for_each(&mut *f);
                count.iter_mut().for_each(f);
            }
            Op::Gather { indices, count, .. } => {
                f(indices);
                count.iter_mut().for_each(f);
            }
            Op::Store { at, value, count } => {
                f(&mut at.index);
                at.stride.iter_mut().for_each(&mut *f);
                f(value);
                count.iter_mut().for_each(f);
            }
            Op::For(l) => {
                f(&mut l.lo);
                f(&mut l.hi);
                f(&mut l.step);
                l.init.iter_mut().for_each(f);
            }
            Op::If(i) => f(&mut i.condition),
        }
    }
}
