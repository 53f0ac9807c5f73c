//! Walks through an entry's steps on all ranks of the mesh at once: every rank makes a step before any makes the next.

use std::collections::BTreeMap;

use super::exchange::{Exchange, Group};
use super::{Address, CollectiveStage, CollectiveStep, Entry, Launch, LoopVar, Program, ScalarArg, Step};
use crate::abi::MeshAxisInfo;

/// The memory spaces of one rank.
pub type Spaces<'s> = &'s mut [Vec<u8>];

/// Where the walk is, as one rank sees it.
#[derive(Clone, Debug)]
pub struct Here {
    vars: BTreeMap<LoopVar, u64>,
    coordinates: Vec<u64>,
}

impl Here {
    /// Byte offset in the address's space. The verifier has seen that its loops are around and its axes there.
    pub fn offset(&self, address: &Address) -> u64 {
        let looped = address.strides.iter().fold(address.offset, |sum, stride| {
            sum + stride.at(self.vars.get(&stride.var).copied().unwrap_or(0))
        });
        address.ranks.iter().fold(looped, |sum, stride| {
            sum + stride.bytes * self.coordinates.get(stride.axis as usize).copied().unwrap_or(0)
        })
    }

    /// Value of a scalar argument.
    pub fn scalar(&self, scalar: ScalarArg) -> i64 {
        match scalar {
            ScalarArg::Const(value) => value,
            ScalarArg::Loop(var, factor, offset) => {
                let index = self.vars.get(&var).copied().unwrap_or(0) as i64;
                index.wrapping_mul(factor).wrapping_add(offset)
            }
        }
    }
}

/// Runs one launch on one rank's spaces.
pub type OnRank<'l> = dyn FnMut(&Launch, &Here, &mut [Vec<u8>]) -> Result<(), String> + 'l;

/// Runs an entry on the spaces of all ranks, in order of their numbers.
///
/// # Errors
/// There are not as many ranks as the mesh has; a launch's own; a collective's send buffer changes between start and done.
pub fn run(
    program: &Program,
    entry: &Entry,
    ranks: &mut [Spaces<'_>],
    launch: &mut OnRank<'_>,
) -> Result<(), String> {
    let mesh = &program.info.mesh;
    let n: u64 = mesh.iter().map(|a| a.size).product();
    if n != ranks.len() as u64 {
        return Err(format!("the program runs on {n} ranks, not on {}", ranks.len()));
    }
    let here =
        (0..n).map(|rank| Here { vars: BTreeMap::new(), coordinates: coordinates(mesh, rank) }).collect();
    Walk { program, ranks, here, launch, open: Vec::new() }.steps(&entry.body)
}

/// Coordinates of a rank.
pub fn coordinates(mesh: &[MeshAxisInfo], rank: u64) -> Vec<u64> {
    let mut rest = rank;
    let mut at: Vec<u64> = mesh
        .iter()
        .rev()
        .map(|axis| {
            let coordinate = rest % axis.size;
            rest /= axis.size;
            coordinate
        })
        .collect();
    at.reverse();
    at
}

/// The groups of ranks that differ in the axes `over` only, each in order of the place in it.
pub fn groups(mesh: &[MeshAxisInfo], over: &[u32]) -> Vec<Group> {
    let mut groups: BTreeMap<Vec<u64>, Vec<(u64, usize)>> = BTreeMap::new();
    for rank in 0..mesh.iter().map(|a| a.size).product() {
        let mut rest = coordinates(mesh, rank);
        let place = over.iter().fold(0, |place, axis| {
            let axis = *axis as usize;
            place * mesh[axis].size + std::mem::take(&mut rest[axis])
        });
        groups.entry(rest).or_default().push((place, rank as usize));
    }
    let in_order = |mut ranks: Vec<(u64, usize)>| {
        ranks.sort_unstable();
        ranks.into_iter().map(|(_, rank)| rank).collect()
    };
    groups.into_values().map(in_order).collect()
}

struct Walk<'w, 's, 'l> {
    program: &'w Program,
    ranks: &'w mut [Spaces<'s>],
    /// By rank.
    here: Vec<Here>,
    launch: &'w mut OnRank<'l>,
    /// Collectives begun and not done.
    open: Vec<Exchange>,
}

impl Walk<'_, '_, '_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Launch(launch) => {
                    for (here, spaces) in self.here.iter().zip(self.ranks.iter_mut()) {
                        (self.launch)(launch, here, spaces)?;
                    }
                }
                Step::Collective(collective) => self.collective(collective)?,
                Step::Within { var, from, below, body } => {
                    // The same on all ranks.
                    let index = self.here.first().and_then(|here| here.vars.get(var)).copied().unwrap_or(0);
                    if (*from..*below).contains(&index) {
                        self.steps(body)?;
                    }
                }
                Step::Loop { var, trip, reverse, body } => {
                    for i in 0..*trip {
                        let index = if *reverse { trip - 1 - i } else { i };
                        self.here.iter_mut().for_each(|here| {
                            here.vars.insert(*var, index);
                        });
                        self.steps(body)?;
                    }
                    self.here.iter_mut().for_each(|here| {
                        here.vars.remove(var);
                    });
                }
            }
        }
        Ok(())
    }

    fn collective(&mut self, step: &CollectiveStep) -> Result<(), String> {
        let place = |here: &Here| -> Vec<(usize, u64)> {
            step.buffers.iter().map(|a| (a.space as usize, here.offset(a))).collect()
        };
        let places: Vec<Vec<(usize, u64)>> = self.here.iter().map(place).collect();
        let info = &self.program.info.collectives[step.collective as usize];
        let groups = groups(&self.program.info.mesh, &info.mesh);
        match step.stage {
            CollectiveStage::Start => {
                let begun = Exchange::start(step.collective, info, groups, places, self.ranks);
                self.open.push(begun);
                Ok(())
            }
            CollectiveStage::Done => {
                let same = |e: &Exchange| e.collective == step.collective && e.places == places;
                let at = self.open.iter().position(same);
                let begun = at.ok_or_else(|| format!("collective {} has not begun", step.collective))?;
                self.open.remove(begun).done(info, self.ranks)
            }
        }
    }
}
