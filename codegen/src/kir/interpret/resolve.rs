//! Resolves a kernel to steps: every operand a position in the register file.

use super::{Moves, Slot, Step};
use crate::kir::print::inst_line;
use crate::kir::{At, Block, Elem, Inst, Kernel, Mem, Op, Type, Value};

pub(super) struct Resolver<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) slots: Vec<Slot>,
    pub(super) registers: Vec<u64>,
    pub(super) lines: Vec<String>,
}

impl Resolver<'_> {
    pub(super) fn slot(&self, value: Value) -> Slot {
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

    pub(super) fn block(&mut self, block: &Block) -> Vec<Step> {
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
