//! Numbers values in the order in which the text defines them, so that equal kernels have equal texts.

use super::{Block, Inst, Kernel, Op, Type, Value};

/// Renumbers every value; parameters keep `%0`, `%1`, …
pub(super) fn renumber(mut kernel: Kernel) -> Kernel {
    let mut map =
        Renumbering { new: vec![None; kernel.types.len()], old_types: kernel.types, types: Vec::new() };
    for param in &mut kernel.params {
        map.define(param);
    }
    map.block(&mut kernel.body);
    kernel.types = map.types;
    kernel
}

struct Renumbering {
    new: Vec<Option<Value>>,
    old_types: Vec<Type>,
    types: Vec<Type>,
}

impl Renumbering {
    fn define(&mut self, value: &mut Value) {
        let new = Value(self.types.len() as u32);
        self.types.push(self.old_types[value.0 as usize]);
        self.new[value.0 as usize] = Some(new);
        *value = new;
    }

    /// An undefined operand gets a number that no definition has; the verifier then names it.
    fn operand(&mut self, value: &mut Value) {
        *value = self.new[value.0 as usize].unwrap_or(Value(u32::MAX));
    }

    fn block(&mut self, block: &mut Block) {
        for inst in &mut block.insts {
            self.inst(inst);
        }
        for value in &mut block.yields {
            self.operand(value);
        }
    }

    fn inst(&mut self, inst: &mut Inst) {
        inst.op.for_each_operand_mut(&mut |v| self.operand(v));
        match &mut inst.op {
            Op::For(f) => {
                inst.results.iter_mut().for_each(|v| self.define(v));
                self.define(&mut f.var);
                f.carried.iter_mut().for_each(|v| self.define(v));
                self.block(&mut f.body);
            }
            Op::If(i) => {
                inst.results.iter_mut().for_each(|v| self.define(v));
                self.block(&mut i.then);
                self.block(&mut i.otherwise);
            }
            Op::Const(..)
            | Op::Iota(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Fma(..)
            | Op::Compare(..)
            | Op::Select(..)
            | Op::Convert(..)
            | Op::Bitcast(..)
            | Op::Splat(..)
            | Op::Extract(..)
            | Op::Insert(..)
            | Op::Shuffle(..)
            | Op::Reduce(..)
            | Op::Load { .. }
            | Op::Gather { .. }
            | Op::Store { .. } => inst.results.iter_mut().for_each(|v| self.define(v)),
        }
    }
}
