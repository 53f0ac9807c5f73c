//! Starts and dones of collectives in pairs, and nobody between the two of a pair who meddles.
//!
//! One walk over a loop's body with the loop's variable left open covers all iterations, each of which ends what it starts. A
//! loop with something [`Within`](Step::Within) some of its iterations may hand collectives on: its iterations are walked one
//! by one, each with its value of the variable, as part of the body the loop is in.

use super::{Around, Verifier, touched};
use crate::program::bind::bind;
use crate::program::{CollectiveStage, CollectiveStep, Entry, LoopVar, Step};

/// The collectives begun and not done.
#[derive(Default)]
struct Open {
    steps: Vec<CollectiveStep>,
    /// Those before this one are of bodies further out.
    outside: usize,
}

impl Verifier<'_> {
    pub(super) fn pairs(&mut self, entry: &Entry) {
        let place = format!("entry {}", entry.name);
        let mesh = self.program.info.mesh.iter().map(|a| a.size).collect();
        let mut around = Around { loops: Vec::new(), mesh };
        self.closed(&place, &entry.body, &mut around, &mut Open::default());
    }

    /// A body that ends what it starts.
    fn closed(&mut self, place: &str, steps: &[Step], around: &mut Around, open: &mut Open) {
        let outside = std::mem::replace(&mut open.outside, open.steps.len());
        self.pairs_in(place, steps, around, open);
        for step in open.steps.split_off(open.outside) {
            let message = format!("collective {} is started and not done in the same body", step.collective);
            self.fail_once(place, message);
        }
        open.outside = outside;
    }

    fn pairs_in(&mut self, place: &str, steps: &[Step], around: &mut Around, open: &mut Open) {
        for step in steps {
            match step {
                Step::Launch(launch) => {
                    let kernel = &self.program.kernels[launch.kernel as usize];
                    let touched = touched(launch, &self.kernels[launch.kernel as usize]);
                    let messages = self.meddling(&touched, around, &open.steps);
                    let place = format!("{place}, launch of {}", kernel.name);
                    messages.into_iter().for_each(|m| self.fail_once(&place, m));
                }
                Step::Collective(step) => self.pair(place, step, around, open),
                Step::Within { body, .. } => self.pairs_in(place, body, around, open),
                Step::Loop { var, trip, reverse, body } if hands_on(body, *var) => {
                    for i in 0..*trip {
                        let index = if *reverse { trip - 1 - i } else { i };
                        self.pairs_in(place, &bind(body, *var, index), around, open);
                    }
                }
                Step::Loop { var, trip, body, reverse: _ } => {
                    around.loops.push((*var, 0..*trip));
                    self.closed(place, body, around, open);
                    around.loops.pop();
                }
            }
        }
    }

    fn pair(&mut self, place: &str, step: &CollectiveStep, around: &Around, open: &mut Open) {
        let place = format!("{place}, collective {}", step.collective);
        match step.stage {
            CollectiveStage::Done => {
                let same = |s: &CollectiveStep| {
                    s.op == step.op && s.collective == step.collective && s.buffers == step.buffers
                };
                match open.steps[open.outside..].iter().position(same) {
                    Some(at) => drop(open.steps.remove(open.outside + at)),
                    None => {
                        self.fail_once(&place, "is done but not started before in the same body".to_string());
                    }
                }
            }
            CollectiveStage::Start => {
                let touched = self.collectives[step.collective as usize].touched(&step.buffers);
                let messages = self.meddling(&touched, around, &open.steps);
                messages.into_iter().for_each(|m| self.fail_once(&place, m));
                open.steps.push(step.clone());
            }
        }
    }

    /// The iterations of a loop have the same mistakes.
    fn fail_once(&mut self, place: &str, message: String) {
        let text = format!("{place}: {message}");
        if !self.errors.contains(&text) {
            self.errors.push(text);
        }
    }
}

/// Whether a loop's body has something within some of its iterations only.
fn hands_on(body: &[Step], var: LoopVar) -> bool {
    body.iter().any(|step| match step {
        Step::Launch(_) | Step::Collective(_) => false,
        Step::Within { var: of, body, .. } => *of == var || hands_on(body, var),
        Step::Loop { body, .. } => hands_on(body, var),
    })
}
