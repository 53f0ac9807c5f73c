//! Loops, and where their carried values live.
//!
//! A kernel written for wide vectors may carry more pieces than there are registers. Handed from one iteration to the next
//! as values they would all be copied at the end of each, from stack to stack. So where there are that many, a carried
//! value that only the op uses that makes its successor (a sum) stays in one place of the frame: the op loads it, and
//! its result is stored over it.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{self, InstBuilder, StackSlot, StackSlotData, StackSlotKind};

use super::kernel::{Emitter, arguments, memory, n_pieces, piece_type};
use crate::kir::{Block, For, Inst, Kernel, Op, Type, Value};

/// Carried pieces that are left in registers.
const MOST_IN_REGISTERS: usize = 12;

/// Bytes of a piece in the frame.
const PIECE_BYTES: i32 = 16;

/// A carried value of a loop that lives in the frame.
struct Resident {
    /// Which of the carried values.
    index: usize,
    /// The op of the body that uses it and makes its successor.
    inst: usize,
    slot: StackSlot,
}

/// How often each value of a kernel is an operand or a yield.
pub(super) fn uses(kernel: &Kernel) -> Vec<u32> {
    let mut counts = vec![0; kernel.types.len()];
    count_block(&kernel.body, &mut |value| counts[value.0 as usize] += 1);
    counts
}

fn count_block(block: &Block, f: &mut dyn FnMut(Value)) {
    for inst in &block.insts {
        count_operands(inst, f);
        if let Op::For(l) = &inst.op {
            count_block(&l.body, f);
        }
        if let Op::If(i) = &inst.op {
            count_block(&i.then, f);
            count_block(&i.otherwise, f);
        }
    }
    block.yields.iter().for_each(|&value| f(value));
}

/// Calls `f` on the operands of an op, not on what its blocks use.
fn count_operands(inst: &Inst, f: &mut dyn FnMut(Value)) {
    match &inst.op {
        Op::For(l) => [l.lo, l.hi, l.step].iter().chain(&l.init).for_each(|&value| f(value)),
        Op::If(i) => f(i.condition),
        op => op.clone().for_each_operand_mut(&mut |value| f(*value)),
    }
}

impl Emitter<'_> {
    /// The condition is tested at the end. What is left of the range is compared with the step without a sign, so that a
    /// bound near the largest integer ends the loop too.
    pub(super) fn for_loop(&mut self, l: &For, results: &[Value]) {
        let residents = self.residents(l);
        let is_passed = |i: &usize| !residents.iter().any(|r| r.index == *i);
        let passed: Vec<usize> = (0..l.carried.len()).filter(is_passed).collect();
        let of = |values: &[Value]| -> Vec<Value> { passed.iter().map(|&i| values[i]).collect() };
        let (lo, hi, step) = (self.scalar(l.lo), self.scalar(l.hi), self.scalar(l.step));
        let types = self.types(&of(&l.carried));
        let (body, mut params) = self.place(&[&[Type::I64], &types[..]].concat());
        let (after, finals) = self.place(&types);

        for resident in &residents {
            self.keep(resident, l.init[resident.index]);
        }
        let init = self.flat(&of(&l.init));
        let enter = arguments(std::iter::once(lo).chain(init.iter().copied()));
        let any = self.b.ins().icmp(IntCC::SignedLessThan, lo, hi);
        self.b.ins().brif(any, body, &enter, after, &arguments(init));

        self.b.switch_to_block(body);
        let var = params.remove(0);
        let at = var[0];
        self.define(l.var, var);
        for (value, pieces) in of(&l.carried).into_iter().zip(params) {
            self.define(value, pieces);
        }
        for (i, inst) in l.body.insts.iter().enumerate() {
            for resident in residents.iter().filter(|r| r.inst == i) {
                self.take(resident, l.carried[resident.index]);
            }
            self.inst(inst);
            for resident in residents.iter().filter(|r| r.inst == i) {
                self.keep(resident, l.body.yields[resident.index]);
            }
        }
        let next = self.flat(&of(&l.body.yields));
        let left = self.b.ins().isub(hi, at);
        let more = self.b.ins().icmp(IntCC::UnsignedGreaterThan, left, step);
        let at = self.b.ins().iadd(at, step);
        let again = arguments(std::iter::once(at).chain(next.iter().copied()));
        self.b.ins().brif(more, body, &again, after, &arguments(next));

        self.b.switch_to_block(after);
        for (value, pieces) in of(results).into_iter().zip(finals) {
            self.define(value, pieces);
        }
        for resident in &residents {
            self.take(resident, results[resident.index]);
        }
    }

    /// The carried values of a loop that stay in the frame.
    fn residents(&mut self, l: &For) -> Vec<Resident> {
        let pieces: usize = l.carried.iter().map(|&value| n_pieces(self.ty(value))).sum();
        if pieces <= MOST_IN_REGISTERS {
            return Vec::new();
        }
        let mut residents = Vec::new();
        for (index, &value) in l.carried.iter().enumerate() {
            let next = l.body.yields[index];
            let made_by = |inst: &Inst| inst.results == [next] && !matches!(inst.op, Op::For(_) | Op::If(_));
            let Some(inst) = l.body.insts.iter().position(made_by) else { continue };
            let mut here = 0;
            count_operands(&l.body.insts[inst], &mut |operand| here += u32::from(operand == value));
            if !self.ty(value).is_vector() || here != self.uses[value.0 as usize] {
                continue;
            }
            let bytes = PIECE_BYTES as u32 * n_pieces(self.ty(value)) as u32;
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4);
            residents.push(Resident { index, inst, slot: self.b.create_sized_stack_slot(data) });
        }
        residents
    }

    /// Stores a value in the place of a carried one.
    fn keep(&mut self, resident: &Resident, value: Value) {
        let address = self.b.ins().stack_addr(I64, resident.slot, 0);
        for (i, piece) in self.pieces(value).into_iter().enumerate() {
            self.b.ins().store(memory().with_aligned(), piece, address, PIECE_BYTES * i as i32);
        }
    }

    /// Loads a value from the place of a carried one.
    fn take(&mut self, resident: &Resident, value: Value) {
        let ty = piece_type(self.ty(value));
        let address = self.b.ins().stack_addr(I64, resident.slot, 0);
        let n = n_pieces(self.ty(value));
        let load = |i: usize| -> ir::Value {
            self.b.ins().load(ty, memory().with_aligned(), address, PIECE_BYTES * i as i32)
        };
        let pieces = (0..n).map(load).collect();
        self.define(value, pieces);
    }
}
