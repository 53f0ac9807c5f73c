//! Lays iterations of a loop out in a row.
//!
//! ```text
//! loop i in 0..n { launch(base + i·s) }   by 2:   loop i in 0..n/2 { launch(base + i·2s); launch(base + s + i·2s) }
//! ```
//! 1. The body is copied once per iteration laid out, last first where the loop counts down.
//! 2. In copy `j` of `k`, what moves with the loop moves `k` times as far per iteration, from `j` iterations on.
//! 3. Loops inside a copy get variables of their own.
//!
//! Terminates: one walk over the steps. The launches are the same, with the same addresses, in the same order.

use super::{Address, LoopStride, LoopVar, ScalarArg, Step};

/// Unrolls the loops of an entry for which `by` gives more than 1: a divisor of the loop's iterations. A loop that
/// something follows around a ring of slots, or that has steps within some iterations only, stays as it is.
pub fn unroll(steps: &[Step], by: &dyn Fn(LoopVar) -> u64) -> Vec<Step> {
    let mut unroller = Unroller { by, next: 1 + last_var(steps) };
    unroller.steps(steps)
}

struct Unroller<'a> {
    by: &'a dyn Fn(LoopVar) -> u64,
    /// The next free loop variable.
    next: u32,
}

impl Unroller<'_> {
    fn steps(&mut self, steps: &[Step]) -> Vec<Step> {
        steps.iter().map(|step| self.step(step)).collect()
    }

    fn step(&mut self, step: &Step) -> Step {
        let Step::Loop { var, trip, reverse, body } = step else { return step.clone() };
        let (var, trip, reverse) = (*var, *trip, *reverse);
        let k = (self.by)(var);
        let body = self.steps(body);
        if k <= 1 || !trip.is_multiple_of(k) || body.iter().any(|step| goes_round(step, var)) {
            return Step::Loop { var, trip, reverse, body };
        }
        let mut copies = Vec::new();
        for at in 0..k {
            let j = if reverse { k - 1 - at } else { at };
            for step in &body {
                let copy = if at == 0 { step.clone() } else { self.renamed(step) };
                copies.push(moved(copy, var, k, j));
            }
        }
        Step::Loop { var, trip: trip / k, reverse, body: copies }
    }

    /// A copy whose own loops have new variables.
    fn renamed(&mut self, step: &Step) -> Step {
        let Step::Loop { var, trip, reverse, body } = step else { return step.clone() };
        let new = LoopVar(self.next);
        self.next += 1;
        let body = body.iter().map(|step| with_var(self.renamed(step), *var, new)).collect();
        Step::Loop { var: new, trip: *trip, reverse: *reverse, body }
    }
}

fn last_var(steps: &[Step]) -> u32 {
    let of = |step: &Step| match step {
        Step::Launch(_) | Step::Collective(_) => 0,
        Step::Loop { var, body, .. } => var.0.max(last_var(body)),
        Step::Within { body, .. } => last_var(body),
    };
    steps.iter().map(of).max().unwrap_or(0)
}

/// Whether an address takes the variable modulo a number of slots, or a step is within some of its values.
fn goes_round(step: &Step, var: LoopVar) -> bool {
    let round =
        |buffers: &[Address]| buffers.iter().flat_map(|a| &a.strides).any(|s| s.var == var && s.slots > 0);
    match step {
        Step::Launch(launch) => round(&launch.buffers),
        Step::Collective(collective) => round(&collective.buffers),
        Step::Loop { body, .. } => body.iter().any(|step| goes_round(step, var)),
        Step::Within { var: of, body, .. } => *of == var || body.iter().any(|step| goes_round(step, var)),
    }
}

/// The step with every stride of `var` and every scalar that follows it changed.
fn each_argument(
    step: Step,
    var: LoopVar,
    stride: &dyn Fn(&mut LoopStride) -> u64,
    scalar: &dyn Fn(&mut LoopVar, &mut i64, &mut i64),
) -> Step {
    let inside = |body: Vec<Step>| -> Vec<Step> {
        body.into_iter().map(|step| each_argument(step, var, stride, scalar)).collect()
    };
    let addresses = |buffers: &mut [Address]| {
        for address in buffers {
            for s in address.strides.iter_mut().filter(|s| s.var == var) {
                address.offset += stride(s);
            }
        }
    };
    match step {
        Step::Launch(mut launch) => {
            addresses(&mut launch.buffers);
            for argument in &mut launch.scalars {
                if let ScalarArg::Loop(v, factor, offset) = argument
                    && *v == var
                {
                    scalar(v, factor, offset);
                }
            }
            Step::Launch(launch)
        }
        Step::Collective(mut collective) => {
            addresses(&mut collective.buffers);
            Step::Collective(collective)
        }
        Step::Loop { var: own, trip, reverse, body } => {
            Step::Loop { var: own, trip, reverse, body: inside(body) }
        }
        Step::Within { var: of, from, below, body } => {
            Step::Within { var: of, from, below, body: inside(body) }
        }
    }
}

/// Copy `j` of `k`.
fn moved(step: Step, var: LoopVar, k: u64, j: u64) -> Step {
    let stride = |s: &mut LoopStride| {
        let from = s.bytes * j;
        s.bytes *= k;
        from
    };
    each_argument(step, var, &stride, &|_, factor, offset| {
        *offset += *factor * j as i64;
        *factor *= k as i64;
    })
}

fn with_var(step: Step, old: LoopVar, new: LoopVar) -> Step {
    let stride = |s: &mut LoopStride| {
        s.var = new;
        0
    };
    match each_argument(step, old, &stride, &|var, _, _| *var = new) {
        Step::Within { var, from, below, body } if var == old => Step::Within { var: new, from, below, body },
        step @ (Step::Launch(_) | Step::Collective(_) | Step::Loop { .. } | Step::Within { .. }) => step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Address, CollectiveStage, CollectiveStep, Launch, LoopStride};

    fn address(vars: &[u32]) -> Address {
        let strides =
            vars.iter().map(|v| LoopStride { var: LoopVar(*v), bytes: 4, slots: 0, ahead: 0 }).collect();
        Address { space: 0, offset: 64, strides, ranks: Vec::new() }
    }

    fn start(vars: &[u32]) -> Step {
        let stage = CollectiveStage::Start;
        Step::Collective(CollectiveStep { op: 0, collective: 0, stage, buffers: vec![address(vars)] })
    }

    fn launch(vars: &[u32]) -> Step {
        Step::Launch(Launch {
            op: 0,
            kernel: 0,
            stream: 0,
            buffers: vec![address(vars)],
            scalars: vars.iter().map(|v| ScalarArg::Loop(LoopVar(*v), 3, 1)).collect(),
        })
    }

    fn around(var: u32, trip: u64, reverse: bool, body: Vec<Step>) -> Step {
        Step::Loop { var: LoopVar(var), trip, reverse, body }
    }

    /// Offsets and scalars of all launches in the order they run.
    fn trace(steps: &[Step], vars: &mut Vec<(LoopVar, u64)>, out: &mut Vec<(u64, Vec<i64>)>) {
        let value = |vars: &[(LoopVar, u64)], var: LoopVar| {
            vars.iter().rev().find(|(v, _)| *v == var).expect("the loop is around").1
        };
        let offset = |vars: &[(LoopVar, u64)], a: &Address| {
            a.strides.iter().fold(a.offset, |o, s| o + s.at(value(vars, s.var)))
        };
        for step in steps {
            match step {
                Step::Collective(c) => out.push((offset(vars, &c.buffers[0]), Vec::new())),
                Step::Launch(l) => {
                    let offset = offset(vars, &l.buffers[0]);
                    let scalars = l.scalars.iter().map(|s| match s {
                        ScalarArg::Const(c) => *c,
                        ScalarArg::Loop(v, factor, plus) => value(vars, *v) as i64 * factor + plus,
                    });
                    out.push((offset, scalars.collect()));
                }
                Step::Within { var, from, below, body } => {
                    if (*from..*below).contains(&value(vars, *var)) {
                        trace(body, vars, out);
                    }
                }
                Step::Loop { var, trip, reverse, body } => {
                    for i in 0..*trip {
                        vars.push((*var, if *reverse { trip - 1 - i } else { i }));
                        trace(body, vars, out);
                        vars.pop();
                    }
                }
            }
        }
    }

    #[test]
    fn unroll_runs_the_same_launches_in_the_same_order() {
        for reverse in [false, true] {
            let inner = around(2, 2, !reverse, vec![launch(&[1, 2])]);
            let steps = vec![around(1, 6, reverse, vec![launch(&[1]), start(&[1]), inner, launch(&[])])];
            for (outer, inner) in [(1, 1), (2, 1), (3, 2), (6, 2)] {
                let by = |var: LoopVar| if var.0 == 1 { outer } else { inner };
                let unrolled = unroll(&steps, &by);
                let (mut expected, mut got) = (Vec::new(), Vec::new());
                trace(&steps, &mut Vec::new(), &mut expected);
                trace(&unrolled, &mut Vec::new(), &mut got);
                assert_eq!(expected, got, "{outer}, {inner}, reverse {reverse}");
                let Step::Loop { trip, body, .. } = &unrolled[0] else { panic!("the loop stays a loop") };
                assert_eq!((*trip, body.len() as u64), (6 / outer, 4 * outer));
            }
        }
    }

    #[test]
    fn unroll_leaves_rings_and_what_does_not_divide() {
        let mut ring = launch(&[1]);
        if let Step::Launch(l) = &mut ring {
            l.buffers[0].strides[0].slots = 2;
        }
        let steps = vec![around(1, 6, false, vec![ring]), around(2, 5, false, vec![launch(&[2])])];
        assert_eq!(unroll(&steps, &|_| 2), steps);
    }
}
