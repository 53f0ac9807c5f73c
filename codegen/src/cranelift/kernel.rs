//! A kernel as one Cranelift function of the ABI's kernel convention: its frame and its structure.

use cranelift_codegen::ir::types::{F32, F32X4, F64, F64X2, I8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{self, AbiParam, Block as Place, BlockArg, InstBuilder, MemFlagsData, StackSlot};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module};
use cranelift_object::ObjectModule;

use super::loops::uses;
use super::object;
use crate::kir::{Block, Elem, If, Inst, Kernel, Mem, Op, Type, Value};
use crate::target::Target;

/// A KIR value in Cranelift's registers: a scalar is one value, of a lane each for `i1` (`I8`, 0 or 1), `i32`, `i64`,
/// `f32`, `f64`; a vector is as many 128-bit pieces as hold its lanes. An `i1` in a vector is an `I32` lane of all zeros
/// or all ones. What the last piece holds beyond the last lane is anything.
pub(super) type Pieces = Vec<ir::Value>;

/// The object of a kernel; its function is called `symbol`.
///
/// # Errors
/// The kernel does not verify, or Cranelift refuses it, which is a mistake of ours.
pub fn kernel_object(kernel: &Kernel, symbol: &str, target: &Target) -> Result<Vec<u8>, String> {
    let (mut module, mut context) = function(kernel, target)?;
    let failed = |e: &dyn std::fmt::Display| format!("Cranelift does not accept the kernel: {e}");
    let id =
        module.declare_function(symbol, Linkage::Export, &context.func.signature).map_err(|e| failed(&e))?;
    module.define_function(id, &mut context).map_err(|e| format!("{}: {e:?}", failed(&e)))?;
    module.finish().emit().map_err(|e| failed(&e))
}

/// The Cranelift IR of a kernel, as it is given to Cranelift.
///
/// # Errors
/// As [`kernel_object`].
pub fn kernel_clif(kernel: &Kernel, target: &Target) -> Result<String, String> {
    Ok(function(kernel, target)?.1.func.to_string())
}

fn function(kernel: &Kernel, target: &Target) -> Result<(ObjectModule, cranelift_codegen::Context), String> {
    crate::kir::verify(kernel).map_err(|errors| format!("the kernel is not valid: {}", errors.join("; ")))?;
    let module = object(target, "kernel")?;
    let mut context = module.make_context();
    let words = [I64, I64, I64, I64, I64].map(AbiParam::new);
    context.func.signature.params.extend(words);
    let mut shared = FunctionBuilderContext::new();
    let mut emitter = Emitter::new(kernel, FunctionBuilder::new(&mut context.func, &mut shared));
    emitter.enter();
    emitter.block(&kernel.body);
    emitter.b.ins().return_(&[]);
    emitter.b.seal_all_blocks();
    emitter.b.finalize(module.target_config());
    Ok((module, context))
}

pub(super) struct Emitter<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) b: FunctionBuilder<'a>,
    /// By KIR value; empty where none has been defined yet.
    pub(super) values: Vec<Pieces>,
    /// By KIR value: the scalar that every lane of a vector is, if that is known.
    pub(super) uniform: Vec<Option<Uniform>>,
    /// By KIR value: how many operands and yields it is.
    pub(super) uses: Vec<u32>,
    /// Base addresses of buffers, then of scratch pieces.
    bases: Vec<ir::Value>,
    /// Room for the lanes of one masked access.
    pub(super) lanes_slot: Option<StackSlot>,
    /// Room for the element indices of one masked gather.
    pub(super) indices_slot: Option<StackSlot>,
}

/// What all lanes of a vector are.
#[derive(Clone, Copy)]
pub(super) enum Uniform {
    Bits(u64),
    Value(ir::Value),
}

/// Type of one lane in a register of its own.
pub(super) fn lane_type(elem: Elem) -> ir::Type {
    match elem {
        Elem::I1 => I8,
        Elem::I32 => I32,
        Elem::I64 => I64,
        Elem::F32 => F32,
        Elem::F64 => F64,
    }
}

/// Type of one piece of a vector.
pub(super) fn vector_type(elem: Elem) -> ir::Type {
    match elem {
        Elem::I1 | Elem::I32 => I32X4,
        Elem::I64 => I64X2,
        Elem::F32 => F32X4,
        Elem::F64 => F64X2,
    }
}

/// Lanes of one piece of a vector.
pub(super) fn lanes_per_piece(elem: Elem) -> u32 {
    vector_type(elem).lane_count()
}

/// Type of every piece of a value.
pub(super) fn piece_type(ty: Type) -> ir::Type {
    if ty.is_vector() { vector_type(ty.elem) } else { lane_type(ty.elem) }
}

/// Pieces of a value.
pub(super) fn n_pieces(ty: Type) -> usize {
    if ty.is_vector() { ty.lanes.div_ceil(lanes_per_piece(ty.elem)) as usize } else { 1 }
}

/// What loads and stores may assume: addresses are inside their buffers, and aligned to their elements only.
pub(super) fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

pub(super) fn arguments(values: impl IntoIterator<Item = ir::Value>) -> Vec<BlockArg> {
    values.into_iter().map(BlockArg::Value).collect()
}

impl<'a> Emitter<'a> {
    fn new(kernel: &'a Kernel, b: FunctionBuilder<'a>) -> Emitter<'a> {
        Emitter {
            kernel,
            b,
            values: vec![Pieces::new(); kernel.types.len()],
            uniform: vec![None; kernel.types.len()],
            uses: uses(kernel),
            bases: Vec::new(),
            lanes_slot: None,
            indices_slot: None,
        }
    }

    /// Parameters and base addresses.
    fn enter(&mut self) {
        let entry = self.b.create_block();
        self.b.append_block_params_for_function_params(entry);
        self.b.switch_to_block(entry);
        let [buffers, scalars, begin, end, scratch] = [0, 1, 2, 3, 4].map(|i| self.b.block_params(entry)[i]);
        let word = memory().with_aligned();
        for i in 0..self.kernel.buffers.len() {
            self.bases.push(self.b.ins().load(I64, word, buffers, 8 * i as i32));
        }
        for i in 0..self.kernel.scratch.len() {
            let offset = self.kernel.scratch_offset(i as u32) as i64;
            self.bases.push(self.b.ins().iadd_imm_s(scratch, offset));
        }
        let mut params = vec![begin, end];
        for i in 0..self.kernel.n_scalars() {
            params.push(self.b.ins().load(I64, word, scalars, 8 * i as i32));
        }
        for (&param, value) in self.kernel.params.iter().zip(params) {
            self.define(param, vec![value]);
        }
    }

    pub(super) fn base(&self, mem: Mem) -> ir::Value {
        match mem {
            Mem::Buffer(i) => self.bases[i as usize],
            Mem::Scratch(i) => self.bases[self.kernel.buffers.len() + i as usize],
        }
    }

    pub(super) fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    pub(super) fn define(&mut self, value: Value, pieces: Pieces) {
        self.values[value.0 as usize] = pieces;
    }

    /// The pieces of a KIR value.
    pub(super) fn pieces(&self, value: Value) -> Pieces {
        self.values[value.0 as usize].clone()
    }

    /// A scalar KIR value.
    pub(super) fn scalar(&self, value: Value) -> ir::Value {
        self.values[value.0 as usize][0]
    }

    pub(super) fn block(&mut self, block: &Block) {
        for inst in &block.insts {
            self.inst(inst);
        }
    }

    pub(super) fn inst(&mut self, inst: &Inst) {
        match (&inst.op, inst.results.first()) {
            (Op::Store { at, value, count }, _) => self.store(at, *value, *count),
            (Op::For(l), _) => self.for_loop(l, &inst.results),
            (Op::If(i), _) => self.conditional(i, &inst.results),
            (op, Some(&result)) => {
                let pieces = self.expression(op, self.ty(result));
                self.uniform[result.0 as usize] = self.uniform_of(op);
                self.define(result, pieces);
            }
            // The verifier gives every other op one result.
            (_, None) => {}
        }
    }

    fn uniform_of(&self, op: &Op) -> Option<Uniform> {
        match op {
            Op::Const(_, bits) => Some(Uniform::Bits(*bits)),
            Op::Splat(_, a) => Some(Uniform::Value(self.scalar(*a))),
            Op::Iota(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Fma(..)
            | Op::Compare(..)
            | Op::Select(..)
            | Op::Convert(..)
            | Op::Bitcast(..)
            | Op::Extract(..)
            | Op::Insert(..)
            | Op::Shuffle(..)
            | Op::Reduce(..)
            | Op::Load { .. }
            | Op::Gather { .. }
            | Op::Store { .. }
            | Op::For(_)
            | Op::If(_) => None,
        }
    }

    /// The result of an op that has one and no blocks.
    fn expression(&mut self, op: &Op, ty: Type) -> Pieces {
        match op {
            Op::Const(ty, bits) => self.constant(*ty, *bits),
            Op::Iota(ty) => self.iota(*ty),
            Op::Unary(op, a) => self.unary(*op, *a),
            Op::Binary(op, a, b) => self.binary(*op, *a, *b),
            Op::Fma(a, b, c) => {
                let operands = [*a, *b, *c].map(|v| self.pieces(v));
                let each = |i: usize| self.b.ins().fma(operands[0][i], operands[1][i], operands[2][i]);
                (0..n_pieces(ty)).map(each).collect()
            }
            Op::Compare(op, a, b) => self.compare(*op, *a, *b),
            Op::Select(c, a, b) => self.select(*c, *a, *b),
            Op::Convert(to, a) => self.convert(*to, *a),
            Op::Bitcast(to, a) => {
                let pieces = self.pieces(*a);
                pieces.into_iter().map(|p| self.cast(piece_type(*to), p)).collect()
            }
            Op::Splat(to, a) => self.splat(*to, self.scalar(*a)),
            Op::Extract(a, lane) => {
                let pieces = self.pieces(*a);
                vec![self.lane(&pieces, self.ty(*a), *lane)]
            }
            Op::Insert(a, s, lane) => self.insert(*a, *s, *lane),
            Op::Shuffle(a, b, lanes) => self.shuffle(*a, *b, lanes),
            Op::Reduce(op, a) => vec![self.reduce(*op, *a)],
            Op::Load { at, lanes, count } => self.load(at, *lanes, *count),
            Op::Gather { mem, indices, count } => self.gather(*mem, *indices, *count),
            // Handled by the caller.
            Op::Store { .. } | Op::For(_) | Op::If(_) => Pieces::new(),
        }
    }

    // ---- structure

    /// A block with a parameter for every piece of values of these types.
    pub(super) fn place(&mut self, types: &[Type]) -> (Place, Vec<Pieces>) {
        let place = self.b.create_block();
        let params = |&ty: &Type| {
            (0..n_pieces(ty)).map(|_| self.b.append_block_param(place, piece_type(ty))).collect()
        };
        let params = types.iter().map(params).collect();
        (place, params)
    }

    pub(super) fn flat(&self, values: &[Value]) -> Vec<ir::Value> {
        values.iter().flat_map(|v| self.values[v.0 as usize].iter().copied()).collect()
    }

    pub(super) fn types(&self, values: &[Value]) -> Vec<Type> {
        values.iter().map(|&v| self.ty(v)).collect()
    }

    fn conditional(&mut self, i: &If, results: &[Value]) {
        let (then, _) = self.place(&[]);
        let (otherwise, _) = self.place(&[]);
        let types = self.types(results);
        let (after, finals) = self.place(&types);
        let condition = self.scalar(i.condition);
        self.b.ins().brif(condition, then, &[], otherwise, &[]);
        for (place, block) in [(then, &i.then), (otherwise, &i.otherwise)] {
            self.b.switch_to_block(place);
            self.block(block);
            let yields = arguments(self.flat(&block.yields));
            self.b.ins().jump(after, &yields);
        }
        self.b.switch_to_block(after);
        for (&value, pieces) in results.iter().zip(finals) {
            self.define(value, pieces);
        }
    }
}
