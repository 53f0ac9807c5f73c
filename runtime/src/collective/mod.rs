//! The program's collectives: what a rank does when its step function starts one and when it waits for it.
//!
//! ```text
//! CollectiveFn ── Collectives ─┬─ direct.rs    ranks of one process read each other's memory
//!                              └─ messages.rs  other ranks: packed messages over an engine
//!                  plan.rs  group, boxes      walk.rs  strided boxes      element.rs  copies, conversions, reductions
//! ```
//! Both ways give the same bits: reductions always run over the ranks of the group in their order, starting with the first
//! one's element, in f32 for f32 and bfloat16, and are rounded once at the end. Where f32 travels as bfloat16 every
//! contribution is rounded, a rank's own too, so that all ranks get the same; results of an all-reduce are not rounded.

pub mod direct;
pub mod element;
pub mod messages;
pub mod plan;
#[cfg(test)]
mod tests;
pub mod walk;

use std::time::{Duration, Instant};

use crate::abi::{OpInfo, ProgramInfo};
use crate::device::pool::Pool;
use crate::engine::{TAGS, Waited};
use crate::failure::{Exit, Failure};
use crate::mesh::Mesh;
use crate::world::{CONTROL_TAG, FaultKind, World};
use messages::{Exchange, Tickets};
use plan::Plan;

/// Where in the run a collective is, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// 0-based step.
    pub step: u64,
    /// The line of the op table.
    pub op: Option<&'a OpInfo>,
}

/// A rank's collectives.
pub struct Collectives {
    world: World,
    plans: Vec<Plan>,
    /// Number of the next collective to start. The same on all ranks, because all start the same ones in the same order.
    next: u64,
    open: Vec<Open>,
}

/// A collective between start and done.
struct Open {
    collective: usize,
    number: u64,
    buffers: Vec<*mut u8>,
    tickets: Tickets,
}

impl Collectives {
    /// The collectives of a checked program for one rank.
    pub fn new(info: &ProgramInfo, world: World) -> Collectives {
        let mesh = Mesh::new(&info.mesh);
        let plan = |collective| Plan::new(info, &mesh, collective, world.rank());
        Collectives { plans: info.collectives.iter().map(plan).collect(), world, next: 0, open: Vec::new() }
    }

    /// The ranks this one belongs to.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Starts a collective: packs on the threads of `pool` and sends, and returns.
    ///
    /// # Errors
    /// Only an acted fault.
    ///
    /// # Safety
    /// As [`CollectiveFn`](crate::abi::CollectiveFn) says.
    pub unsafe fn start(
        &mut self,
        pool: &Pool,
        collective: usize,
        buffers: *const *mut u8,
    ) -> Result<(), Failure> {
        let number = self.next;
        self.next += 1;
        self.act_fault(number)?;
        let plan = &self.plans[collective];
        // SAFETY: by this function's contract.
        let buffers = unsafe { std::slice::from_raw_parts(buffers, 2 * plan.parts.len() + 1) }.to_vec();
        let mut tickets = Vec::new();
        match self.world.engine().threads() {
            Some(threads) => threads.enter(number, &buffers, &plan.group),
            // SAFETY: by this function's contract.
            None => tickets = unsafe { self.exchange(pool, plan, number, &buffers).start() },
        }
        self.open.push(Open { collective, number, buffers, tickets });
        Ok(())
    }

    /// Waits for the oldest start of a collective with these buffers and completes it.
    ///
    /// # Errors
    /// Another rank does not come; then this rank has left the others.
    ///
    /// # Safety
    /// As [`CollectiveFn`](crate::abi::CollectiveFn) says.
    pub unsafe fn done(
        &mut self,
        pool: &Pool,
        collective: usize,
        buffers: *const *mut u8,
        moment: Moment<'_>,
    ) -> Result<(), Failure> {
        let plan = &self.plans[collective];
        // SAFETY: by this function's contract.
        let buffers = unsafe { std::slice::from_raw_parts(buffers, 2 * plan.parts.len() + 1) };
        let Some(at) = self.open.iter().position(|o| o.collective == collective && o.buffers == buffers)
        else {
            return Err(Failure::failed(format!(
                "error: this binary is damaged: {} is waited for and has not been started",
                describe(plan, moment)
            )));
        };
        let open = self.open.remove(at);
        let clock = Instant::now();
        let limit = self.world.options().watchdog;
        let late = |(waited, missing): (Waited, Vec<usize>)| {
            self.world.engine().leave();
            self.report(plan, moment, clock.elapsed(), &waited, &missing)
        };
        // SAFETY: by this function's contract.
        unsafe {
            match self.world.engine().threads() {
                Some(threads) => {
                    let reading = threads.read(open.number, &plan.group, limit).map_err(late)?;
                    direct::exchange(pool, plan, &reading, buffers);
                    drop(reading);
                    threads.finish(open.number, limit).map_err(late)
                }
                None => self
                    .exchange(pool, plan, open.number, buffers)
                    .finish(&open.tickets, &mut |tickets| self.wait(tickets, clock, limit).map_err(late)),
            }
        }
    }

    fn exchange<'a>(
        &'a self,
        pool: &'a Pool,
        plan: &'a Plan,
        number: u64,
        buffers: &'a [*mut u8],
    ) -> Exchange<'a> {
        let tag = CONTROL_TAG + 1 + (number % u64::from(TAGS - CONTROL_TAG - 1)) as u32;
        Exchange { plan, pool, engine: self.world.engine(), tag, buffers }
    }

    /// Waits for all messages, until `limit` after `clock`; the error names all ranks that are missing.
    fn wait(&self, tickets: &Tickets, clock: Instant, limit: Duration) -> Result<(), (Waited, Vec<usize>)> {
        let engine = self.world.engine();
        let mut worst = Waited::Done;
        let mut missing = Vec::new();
        for &(rank, ticket) in tickets {
            match engine.wait(ticket, limit.saturating_sub(clock.elapsed())) {
                Waited::Done => {}
                Waited::Late if matches!(worst, Waited::Lost(_)) => missing.push(rank),
                waited @ (Waited::Late | Waited::Lost(_)) => {
                    let is_lost = matches!(waited, Waited::Lost(_));
                    worst = waited;
                    missing.push(rank);
                    if is_lost {
                        break;
                    }
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if worst == Waited::Done { Ok(()) } else { Err((worst, missing)) }
    }

    /// What to tell people when ranks do not come.
    fn report(
        &self,
        plan: &Plan,
        moment: Moment<'_>,
        time: Duration,
        waited: &Waited,
        missing: &[usize],
    ) -> Failure {
        let me = format!("rank {} of {}", self.world.rank(), self.world.ranks());
        let what = describe(plan, moment);
        let message = match waited {
            Waited::Lost(gone) if gone.is_empty() => format!(
                "error: the exchange between ranks broke while {me} waited in {what}: {}",
                self.world.engine().trouble().unwrap_or_default()
            ),
            Waited::Lost(gone) => {
                format!("error: {} ended while {me} waited in {what}", ranks_have(gone, "has", "have"))
            }
            Waited::Late | Waited::Done => format!(
                "error: {me} waited {:.1} s in {what}\n  {} not arrived.\nA rank hangs, or is much slower than the others: \
                 --watchdog SECONDS gives it more time.",
                time.as_secs_f64(),
                ranks_have(missing, "has", "have")
            ),
        };
        Failure { exit: Exit::Lost, message }
    }

    fn act_fault(&self, number: u64) -> Result<(), Failure> {
        let fault = self.world.options().fault;
        let Some(fault) = fault.filter(|f| f.rank == self.world.rank() && f.collective == number) else {
            return Ok(());
        };
        let engine = self.world.engine();
        match fault.kind {
            FaultKind::Stall => {
                while !engine.any_left() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            FaultKind::Death => engine.die(),
        }
        engine.leave();
        Err(Failure::failed(format!("error: rank {} ended on purpose ({fault:?})", self.world.rank())))
    }
}

/// `step 17, layer.attn (llama.spec:41): all_gather over tensor`.
fn describe(plan: &Plan, moment: Moment<'_>) -> String {
    let op = moment.op.map_or(String::new(), |op| format!("{} ({}): ", op.path, op.line));
    format!("step {}, {op}{}", moment.step, plan.label)
}

/// `rank 3 has`, `ranks 1, 3 have`.
fn ranks_have(ranks: &[usize], has: &str, have: &str) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match names.as_slice() {
        [one] => format!("rank {one} {has}"),
        all => format!("ranks {} {have}", all.join(", ")),
    }
}
