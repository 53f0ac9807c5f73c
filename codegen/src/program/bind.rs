//! One iteration of a loop by itself: the steps with the loop's variable at one value.

use super::{Address, CollectiveStep, Launch, LoopVar, ScalarArg, Step};

/// The steps when `var` is `index`; what is within other iterations is left out.
pub fn bind(steps: &[Step], var: LoopVar, index: u64) -> Vec<Step> {
    let mut bound = Vec::new();
    for step in steps {
        match step {
            Step::Launch(launch) => bound.push(Step::Launch(bound_launch(launch, var, index))),
            Step::Collective(c) => {
                let buffers = c.buffers.iter().map(|a| bound_address(a, var, index)).collect();
                bound.push(Step::Collective(CollectiveStep { buffers, ..c.clone() }));
            }
            Step::Loop { var: own, trip, reverse, body } => {
                let body = bind(body, var, index);
                bound.push(Step::Loop { var: *own, trip: *trip, reverse: *reverse, body });
            }
            Step::Within { var: of, from, below, body } if *of == var => {
                if (*from..*below).contains(&index) {
                    bound.extend(bind(body, var, index));
                }
            }
            Step::Within { var: of, from, below, body } => {
                let body = bind(body, var, index);
                bound.push(Step::Within { var: *of, from: *from, below: *below, body });
            }
        }
    }
    bound
}

fn bound_launch(launch: &Launch, var: LoopVar, index: u64) -> Launch {
    let scalar = |s: &ScalarArg| match *s {
        ScalarArg::Loop(v, factor, offset) if v == var => {
            ScalarArg::Const((index as i64).wrapping_mul(factor).wrapping_add(offset))
        }
        ScalarArg::Loop(..) | ScalarArg::Const(_) => *s,
    };
    Launch {
        buffers: launch.buffers.iter().map(|a| bound_address(a, var, index)).collect(),
        scalars: launch.scalars.iter().map(scalar).collect(),
        ..launch.clone()
    }
}

fn bound_address(address: &Address, var: LoopVar, index: u64) -> Address {
    let (of_var, strides): (Vec<_>, Vec<_>) = address.strides.iter().copied().partition(|s| s.var == var);
    let offset = of_var.iter().fold(address.offset, |sum, s| sum.wrapping_add(s.at(index)));
    Address { offset, strides, ..address.clone() }
}
