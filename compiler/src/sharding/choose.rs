//! How one op is split: which of its factors each mesh axis goes to.
//!
//! Every mesh axis that splits an operand or is wanted of a result may go to one of the factors it splits there, or to none.
//! All assignments are priced in seconds of the machine: moving operands and results, and work that ranks repeat. The cheapest
//! wins, the first of equal ones. Two things are dear, since the rules mean otherwise: gathering a parameter over mesh
//! axes that split it where it is used, and taking a by-axis split off an activation. Latencies are left out: small collectives
//! are joined later.

use super::factors::Factor;
use super::rules::{Rules, Splits};
use crate::cost::{Target, link};
use crate::graph::{DType, Mesh, Name, ReduceOp, Sharding, Split, Type};
use std::collections::BTreeMap;

/// An operand or a result as the choice sees it.
pub struct Seen<'a> {
    /// Type of all ranks together.
    pub ty: &'a Type,
    /// An operand: as it lies. A result: as it should lie.
    pub lies: Sharding,
    /// Lists the choice may use; those of `lies`, except for parameters, which are split as rules say where they are used.
    pub offers: Splits,
    /// An operand that is a parameter.
    pub resting: bool,
    /// An operand's axes that are split by by-axis rules; a result's that any rule decides.
    pub ruled: Vec<Name>,
}

/// Lists of mesh axes, one per factor.
pub type Assignment = Vec<Vec<Name>>;

/// More assignments than this are not tried.
const TRIED_MAX: usize = 4096;
/// What a byte taken off a parameter's use costs, in times of moving it. Ten times [`OFF_RULE`], so that where the two contend the
/// activations move unless the parameter is small beside them: experts stay where they are, their router does not.
const OFF_PARAMETER: f64 = 1e4;
/// What a byte taken off a by-axis split costs.
const OFF_RULE: f64 = 1e3;
/// Part of a result's move that counts where no rule asks for it: the next op may take it as it is.
const OPEN: f64 = 0.5;

/// The cheapest assignment of the mesh axes that are not `taken`.
pub fn choose(
    rules: &Rules,
    taken: &[Name],
    factors: &[Factor],
    operands: &[Seen],
    results: &[Seen],
    flops: u128,
) -> Assignment {
    let mut best: Option<(f64, Assignment)> = None;
    for_each(rules, taken, factors, operands, results, flops, &mut |cost, assignment| {
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, assignment));
        }
    });
    best.map_or_else(|| vec![Vec::new(); factors.len()], |(_, assignment)| assignment)
}

/// All that [`choose`] chooses from, cheapest first.
pub fn choices(
    rules: &Rules,
    taken: &[Name],
    factors: &[Factor],
    operands: &[Seen],
    results: &[Seen],
    flops: u128,
) -> Vec<Assignment> {
    let mut all = Vec::new();
    for_each(rules, taken, factors, operands, results, flops, &mut |cost, assignment| {
        all.push((cost, assignment));
    });
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    all.into_iter().map(|(_, assignment)| assignment).collect()
}

/// Every assignment tried, with its cost.
fn for_each(
    rules: &Rules,
    taken: &[Name],
    factors: &[Factor],
    operands: &[Seen],
    results: &[Seen],
    flops: u128,
    visit: &mut dyn FnMut(f64, Assignment),
) {
    let mesh = &rules.mesh;
    let wishes = wishes(factors, operands, results);
    let options: Vec<(Name, Vec<Option<usize>>)> = mesh
        .axes
        .iter()
        .filter(|axis| !taken.contains(&axis.name))
        .filter_map(|axis| {
            let wanted = |f: &usize| wishes[*f].iter().any(|list| list.contains(&axis.name));
            let may: Vec<Option<usize>> = (0..factors.len()).filter(wanted).map(Some).collect();
            (!may.is_empty()).then(|| (axis.name.clone(), may.into_iter().chain([None]).collect()))
        })
        .collect();
    let count = options.iter().map(|(_, may)| may.len()).product::<usize>();
    for number in 0..count.min(TRIED_MAX) {
        let mut rest = number;
        let mut taken: Vec<Vec<Name>> = vec![Vec::new(); factors.len()];
        for (axis, may) in &options {
            if let Some(f) = may[rest % may.len()] {
                taken[f].push(axis.clone());
            }
            rest /= may.len();
        }
        let Some(assignment) = ordered(mesh, factors, &wishes, taken) else { continue };
        visit(cost(rules, factors, &assignment, operands, results, flops), assignment);
    }
}

/// The lists operands and results have for each factor.
fn wishes(factors: &[Factor], operands: &[Seen], results: &[Seen]) -> Vec<Vec<Vec<Name>>> {
    let of = |factor: &Factor| {
        if !factor.splits() {
            return Vec::new();
        }
        let places = factor.operands.iter().zip(operands).chain(factor.results.iter().zip(results));
        places.filter_map(|(axis, seen)| seen.offers.get(axis.as_ref()?).cloned()).collect()
    };
    factors.iter().map(of).collect()
}

/// Puts the mesh axes of each factor in an order somebody has; `None` if the sizes don't divide.
fn ordered(
    mesh: &Mesh,
    factors: &[Factor],
    wishes: &[Vec<Vec<Name>>],
    taken: Vec<Vec<Name>>,
) -> Option<Assignment> {
    let mut all = Vec::new();
    for ((factor, wishes), taken) in factors.iter().zip(wishes).zip(taken) {
        if !factor.size.is_multiple_of(mesh.ways(&taken) * factor.grain) {
            return None;
        }
        let within =
            |list: &Vec<Name>| list.iter().filter(|m| taken.contains(m)).cloned().collect::<Vec<_>>();
        let best = wishes
            .iter()
            .map(within)
            .fold(Vec::new(), |best: Vec<Name>, next| if next.len() > best.len() { next } else { best });
        let missing: Vec<Name> = taken.into_iter().filter(|m| !best.contains(m)).collect();
        all.push(best.into_iter().chain(missing).collect());
    }
    Some(all)
}

/// How operand or result `i` lies under an assignment, nothing partial.
pub fn implied(
    factors: &[Factor],
    assignment: &Assignment,
    axis_in: impl Fn(&Factor) -> Option<Name>,
) -> Sharding {
    let mut sharding = Sharding::whole();
    for (factor, over) in factors.iter().zip(assignment) {
        if let Some(axis) = axis_in(factor).filter(|_| !over.is_empty()) {
            sharding.split.insert(axis, Split { over: over.clone(), blocks: 1 });
        }
    }
    sharding
}

/// What is still to be reduced of a result: over which mesh axes, and how.
pub fn partial_of(factors: &[Factor], assignment: &Assignment, result: usize) -> BTreeMap<Name, ReduceOp> {
    let mut partial = BTreeMap::new();
    for (factor, over) in factors.iter().zip(assignment) {
        if let Some(op) = factor.partial[result] {
            partial.extend(over.iter().map(|m| (m.clone(), op)));
        }
    }
    partial
}

/// Predicted seconds, what is dear counted so many times.
fn cost(
    Rules { mesh, machine, .. }: &Rules,
    factors: &[Factor],
    assignment: &Assignment,
    operands: &[Seen],
    results: &[Seen],
    flops: u128,
) -> f64 {
    let mut cost = 0.0;
    for (i, seen) in operands.iter().enumerate() {
        let needed = implied(factors, assignment, |f| f.operands[i].clone());
        let from = if seen.resting {
            // Gathering it from rest is the same whatever is chosen.
            let offered =
                |(axis, over): (&Name, &Vec<Name>)| (axis.clone(), Split { over: over.clone(), blocks: 1 });
            Sharding { split: seen.offers.iter().map(offered).collect(), partial: BTreeMap::new() }
        } else {
            seen.lies.clone()
        };
        let moved = moving(machine, seen.ty, mesh, &from, &needed);
        cost += moved;
        let taken_off = from.split.iter().any(|(axis, split)| {
            (seen.resting || seen.ruled.contains(axis)) && !needed.over(axis).starts_with(&split.over)
        });
        if taken_off {
            cost +=
                moved.max(1.0 / machine.node.bandwidth) * if seen.resting { OFF_PARAMETER } else { OFF_RULE };
        }
    }
    for (i, seen) in results.iter().enumerate() {
        let mut natural = implied(factors, assignment, |f| f.results[i].clone());
        natural.partial = partial_of(factors, assignment, i);
        let asked =
            !natural.partial.is_empty() || seen.ruled.iter().any(|a| natural.over(a) != seen.lies.over(a));
        cost += moving(machine, seen.ty, mesh, &natural, &seen.lies) * if asked { 1.0 } else { OPEN };
        let ways: u64 = natural.split.values().map(|s| mesh.ways(&s.over)).product();
        cost += seen.ty.bytes() as f64 / ways as f64 / machine.device.bandwidth;
    }
    let ways: u64 = assignment.iter().map(|over| mesh.ways(over)).product();
    let dtype = operands.first().map_or(DType::F32, |seen| seen.ty.dtype);
    cost + flops as f64 / ways as f64 / machine.device.rate(dtype)
}

/// Seconds to bring a tensor from one sharding to another by the best sequence of collectives, without latencies.
fn moving(machine: &Target, ty: &Type, mesh: &Mesh, from: &Sharding, to: &Sharding) -> f64 {
    let per_byte = |axis: &Name| 1.0 / link(machine, mesh, std::slice::from_ref(axis)).bandwidth();
    sent(ty, mesh, from, to, &per_byte)
}

/// Bytes each rank sends for that.
pub fn moved_bytes(ty: &Type, mesh: &Mesh, from: &Sharding, to: &Sharding) -> f64 {
    sent(ty, mesh, from, to, &|_| 1.0)
}

/// The sum over mesh axes of the bytes sent along them, each at its price.
fn sent(ty: &Type, mesh: &Mesh, from: &Sharding, to: &Sharding, per_byte: &dyn Fn(&Name) -> f64) -> f64 {
    if from == to {
        return 0.0;
    }
    let ways = |s: &Sharding| s.split.values().map(|split| mesh.ways(&split.over)).product::<u64>() as f64;
    // Price of sending the others' shares of so many bytes along a mesh axis.
    let share = |bytes: f64, axis: &Name| {
        let n = mesh.size_of(axis) as f64;
        bytes * (n - 1.0) / n * per_byte(axis)
    };
    let mut held = ty.bytes() as f64 / ways(from);
    let mut sum = 0.0;
    for m in from.partial.keys() {
        if to.uses(m) {
            sum += share(held, m);
            held /= mesh.size_of(m) as f64;
        } else {
            sum += 2.0 * share(held, m);
        }
    }
    for (axis, m) in to.split.iter().flat_map(|(a, s)| s.over.iter().map(move |m| (a, m))) {
        match from.axis_of(m) {
            Some(other) if other != axis => sum += share(held, m),
            Some(_) => {}
            None if from.partial.contains_key(m) => {}
            // A slice of what is there.
            None => held /= mesh.size_of(m) as f64,
        }
    }
    for m in from.split.values().flat_map(|s| &s.over).filter(|m| !to.uses(m)) {
        held *= mesh.size_of(m) as f64;
        sum += share(held, m);
    }
    sum
}
