//! The shortest path from one sharding to another.

use super::{Move, Step, element_bytes};
use crate::graph::{DType, Mesh, Name, ReduceOp, Sharding, Split, Type};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// How a value lies, as far as it may change: mesh axes are numbers in [`Problem::mesh_axes`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct State {
    /// Per tensor axis the mesh axes it is split over behind those that stay.
    lists: Vec<Vec<usize>>,
    /// Mesh axes that are still to be reduced, ascending.
    partial: Vec<usize>,
}

impl State {
    fn is_split_over(&self, m: usize) -> bool {
        self.lists.iter().any(|list| list.contains(&m))
    }
}

/// A tensor axis.
struct TensorAxis {
    name: Name,
    /// Elements of a rank when it is split over nothing but `kept`.
    size: u64,
    /// The split that stays as it is.
    kept: Vec<Name>,
    /// Blocks of the split that stays.
    blocks: u64,
}

struct Problem<'a> {
    mesh: &'a Mesh,
    /// Mesh axes that change, in the order of the mesh.
    mesh_axes: Vec<Name>,
    /// Their sizes.
    ways: Vec<u64>,
    /// What reduces those that are partial at first.
    ops: Vec<Option<ReduceOp>>,
    /// Partial axes that stay.
    kept_partial: BTreeMap<Name, ReduceOp>,
    axes: Vec<TensorAxis>,
    element: u64,
    target: State,
}

/// More states than this are not looked at: it takes four mesh axes that change places or more.
const STATES_MAX: usize = 4096;

/// Groups larger than this do not permute: the program would grow by an op for each piece.
const PERMUTE_MAX: u64 = 64;

/// The steps of the cheapest path: fewest bytes, then fewest collectives. Source of the search: Hart, Nilsson, Raphael 1968
/// (A*), the bound being that a rank must be sent what its part grows by.
pub(super) fn shortest(
    from: &Sharding,
    to: &Sharding,
    ty: &Type,
    mesh: &Mesh,
    wire: Option<DType>,
) -> Result<Vec<Step>, String> {
    let (problem, start) = Problem::new(from, to, ty, mesh, wire)?;
    let end = problem.local_bytes(&problem.target);
    let bound = |state: &State| end.saturating_sub(problem.local_bytes(state));
    let mut best: BTreeMap<State, (u64, u64)> = BTreeMap::from([(start.clone(), (0, 0))]);
    let mut came: BTreeMap<State, (State, Move, u64)> = BTreeMap::new();
    // The counter makes the order total: of equal paths the one found first.
    let mut counter = 0u64;
    let mut heap = BinaryHeap::from([Reverse(((bound(&start), 0u64), counter, start.clone()))]);
    while let Some(Reverse((reached, _, state))) = heap.pop() {
        if state == problem.target {
            return Ok(problem.path(&came, &start));
        }
        let cost = best[&state];
        if (cost.0 + bound(&state), cost.1) < reached {
            continue;
        }
        if best.len() > STATES_MAX {
            break;
        }
        for (next, action, bytes) in problem.neighbours(&state) {
            let total = (cost.0 + bytes, cost.1 + action.collectives());
            if best.get(&next).is_none_or(|known| total < *known) {
                best.insert(next.clone(), total);
                counter += 1;
                heap.push(Reverse(((total.0 + bound(&next), total.1), counter, next.clone())));
                came.insert(next, (state.clone(), action, bytes));
            }
        }
    }
    problem.replicating(start)
}

/// The plan without a search, see [`Problem::replicating`].
#[cfg(test)]
pub(super) fn replicating(
    from: &Sharding,
    to: &Sharding,
    ty: &Type,
    mesh: &Mesh,
) -> Result<Vec<Step>, String> {
    let (problem, start) = Problem::new(from, to, ty, mesh, None)?;
    problem.replicating(start)
}

impl<'a> Problem<'a> {
    fn new(
        from: &Sharding,
        to: &Sharding,
        ty: &Type,
        mesh: &'a Mesh,
        wire: Option<DType>,
    ) -> Result<(Problem<'a>, State), String> {
        let mut axes = Vec::new();
        for axis in &ty.axes {
            let (a, b) = (from.split.get(&axis.name), to.split.get(&axis.name));
            let blocks = |s: Option<&Split>| s.map_or(1, |s| s.blocks);
            if a != b && blocks(a).max(blocks(b)) > 1 {
                return Err(format!(
                    "turning `{from}` into `{to}` changes how {} is split in blocks, which only the loop that takes the \
                     blocks can do",
                    axis.name
                ));
            }
            let (a, b) = (from.over(&axis.name), to.over(&axis.name));
            let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
            let kept = a[..same].to_vec();
            let size = axis.size / mesh.ways(&kept);
            let blocks = blocks(from.split.get(&axis.name));
            axes.push(TensorAxis { name: axis.name.clone(), size, kept, blocks });
        }
        let rest = |s: &Sharding| -> Vec<Vec<Name>> {
            axes.iter().map(|axis| s.over(&axis.name)[axis.kept.len()..].to_vec()).collect()
        };
        let (a, b) = (rest(from), rest(to));
        let changes = |m: &Name| {
            a.iter().chain(&b).any(|list| list.contains(m))
                || (from.partial.contains_key(m) && !to.partial.contains_key(m))
        };
        let mesh_axes: Vec<Name> = mesh.axes.iter().map(|m| m.name.clone()).filter(|m| changes(m)).collect();
        let number = |m: &Name| mesh_axes.iter().position(|x| x == m).expect("collected above");
        let numbers = |lists: &[Vec<Name>]| lists.iter().map(|l| l.iter().map(number).collect()).collect();
        let partial = (0..mesh_axes.len()).filter(|m| from.partial.contains_key(&mesh_axes[*m])).collect();
        let start = State { lists: numbers(&a), partial };
        let target = State { lists: numbers(&b), partial: Vec::new() };
        let problem = Problem {
            mesh,
            ways: mesh_axes.iter().map(|m| mesh.size_of(m)).collect(),
            ops: mesh_axes.iter().map(|m| from.partial.get(m).copied()).collect(),
            kept_partial: to.partial.clone(),
            axes,
            element: element_bytes(ty, wire),
            target,
            mesh_axes,
        };
        Ok((problem, start))
    }

    fn path(&self, came: &BTreeMap<State, (State, Move, u64)>, start: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut at = &self.target;
        while at != start {
            let (before, action, bytes) = &came[at];
            steps.push(Step { action: action.clone(), after: self.sharding(at), bytes: *bytes });
            at = before;
        }
        steps.reverse();
        joined_cuts(steps)
    }

    fn sharding(&self, state: &State) -> Sharding {
        let mut sharding = Sharding { split: BTreeMap::new(), partial: self.kept_partial.clone() };
        for (axis, list) in self.axes.iter().zip(&state.lists) {
            let over: Vec<Name> = axis.kept.iter().cloned().chain(self.names(list)).collect();
            if !over.is_empty() {
                sharding.split.insert(axis.name.clone(), Split { over, blocks: axis.blocks });
            }
        }
        for m in &state.partial {
            sharding.partial.insert(self.mesh_axes[*m].clone(), self.ops[*m].expect("partial at first"));
        }
        sharding
    }

    fn names(&self, list: &[usize]) -> Vec<Name> {
        list.iter().map(|m| self.mesh_axes[*m].clone()).collect()
    }

    fn ranks(&self, list: &[usize]) -> u64 {
        list.iter().map(|m| self.ways[*m]).product()
    }

    /// Elements of a rank along a tensor axis.
    fn size(&self, state: &State, axis: usize) -> u64 {
        self.axes[axis].size / self.ranks(&state.lists[axis])
    }

    fn local_bytes(&self, state: &State) -> u64 {
        (0..self.axes.len()).map(|axis| self.size(state, axis)).product::<u64>() * self.element
    }

    /// Whether a tensor axis can be split further over these mesh axes.
    fn can_split(&self, state: &State, axis: usize, over: &[usize]) -> bool {
        self.axes[axis].blocks == 1 && self.size(state, axis).is_multiple_of(self.ranks(over))
    }

    /// All moves from a state.
    fn neighbours(&self, state: &State) -> Vec<(State, Move, u64)> {
        if let Some(cut) = self.cut_in_place(state) {
            return vec![cut];
        }
        let mut found = Vec::new();
        self.all_reduces(state, &mut found);
        self.reduce_scatters(state, &mut found);
        self.cuts(state, &mut found);
        self.permutes(state, &mut found);
        self.moves_of_suffixes(state, &mut found);
        let local = self.local_bytes(state);
        let with_bytes = |(next, action, ranks): (State, Move, u64)| {
            let bytes = action.bytes(local, ranks);
            (next, action, bytes)
        };
        found.into_iter().map(with_bytes).collect()
    }

    /// What ends whole is reduced at once, by operation.
    fn all_reduces(&self, state: &State, found: &mut Vec<(State, Move, u64)>) {
        for op in [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min] {
            let ends_whole = |m: &&usize| self.ops[**m] == Some(op) && !self.target.is_split_over(**m);
            let over: Vec<usize> = state.partial.iter().filter(ends_whole).copied().collect();
            if !over.is_empty() {
                let partial = state.partial.iter().filter(|m| !over.contains(m)).copied().collect();
                let next = State { lists: state.lists.clone(), partial };
                found.push((next, Move::AllReduce { op, over: self.names(&over) }, self.ranks(&over)));
            }
        }
    }

    /// What ends split is reduced onto any axis; several mesh axes at once if they follow each other in the target.
    fn reduce_scatters(&self, state: &State, found: &mut Vec<(State, Move, u64)>) {
        for list in &self.target.lists {
            for first in 0..list.len() {
                for end in first + 1..=list.len() {
                    let over = &list[first..end];
                    let op = self.ops[over[0]];
                    let fits = |m: &usize| state.partial.contains(m) && self.ops[*m] == op;
                    if !over.iter().all(fits) {
                        break;
                    }
                    let Some(op) = op else { break };
                    for axis in 0..self.axes.len() {
                        if self.can_split(state, axis, over) {
                            let mut next = state.clone();
                            next.lists[axis].extend(over);
                            next.partial.retain(|m| !over.contains(m));
                            let (name, over) = (self.axes[axis].name.clone(), over.to_vec());
                            let ranks = self.ranks(&over);
                            let action = Move::ReduceScatter { op, axis: name, over: self.names(&over) };
                            found.push((next, action, ranks));
                        }
                    }
                }
            }
        }
    }

    /// A cut that the target has at just this place: it makes everything after it smaller, so nothing else comes first.
    fn cut_in_place(&self, state: &State) -> Option<(State, Move, u64)> {
        let mut wanted = self.target.lists.iter().zip(&state.lists).enumerate();
        wanted.find_map(|(axis, (target, list))| {
            let m = *target.get(list.len()).filter(|_| target.starts_with(list))?;
            let free = !state.is_split_over(m) && !state.partial.contains(&m);
            (free && self.can_split(state, axis, &[m])).then(|| self.cut(state, axis, m))
        })
    }

    fn cut(&self, state: &State, axis: usize, m: usize) -> (State, Move, u64) {
        let mut next = state.clone();
        next.lists[axis].push(m);
        let action = Move::Cut { axis: self.axes[axis].name.clone(), over: self.names(&[m]) };
        (next, action, 0)
    }

    /// Cuts elsewhere, of what the target splits.
    fn cuts(&self, state: &State, found: &mut Vec<(State, Move, u64)>) {
        for m in 0..self.mesh_axes.len() {
            let free = !state.is_split_over(m) && !state.partial.contains(&m);
            if free && self.target.is_split_over(m) {
                let axes = (0..self.axes.len()).filter(|axis| self.can_split(state, *axis, &[m]));
                found.extend(axes.map(|axis| self.cut(state, axis, m)));
            }
        }
    }

    /// The way there always is: all terms are reduced, all parts gathered, and cut again.
    fn replicating(&self, start: State) -> Result<Vec<Step>, String> {
        let mut steps: Vec<Step> = Vec::new();
        let mut state = start;
        let mut go = |state: &mut State, (next, action, ranks): (State, Move, u64)| {
            let bytes = action.bytes(self.local_bytes(state), ranks);
            *state = next;
            steps.push(Step { action, after: self.sharding(state), bytes });
        };
        while let Some(first) = state.partial.first() {
            let op = self.ops[*first].expect("partial at first");
            let (over, partial): (Vec<usize>, Vec<usize>) =
                state.partial.iter().partition(|m| self.ops[**m] == Some(op));
            let next = State { lists: state.lists.clone(), partial };
            go(&mut state, (next, Move::AllReduce { op, over: self.names(&over) }, self.ranks(&over)));
        }
        for axis in 0..self.axes.len() {
            let over = state.lists[axis].clone();
            if !over.is_empty() {
                let mut next = state.clone();
                next.lists[axis].clear();
                let action = Move::AllGather { axis: self.axes[axis].name.clone(), over: self.names(&over) };
                go(&mut state, (next, action, self.ranks(&over)));
            }
        }
        while let Some(cut) = self.cut_in_place(&state) {
            go(&mut state, cut);
        }
        assert_eq!(state, self.target, "both shardings fit the type");
        Ok(joined_cuts(steps))
    }

    /// All-to-alls and all-gathers: the last mesh axes of a list make the finest parts, and go first.
    fn moves_of_suffixes(&self, state: &State, found: &mut Vec<(State, Move, u64)>) {
        let suffixes: Vec<(usize, usize)> = state
            .lists
            .iter()
            .enumerate()
            .flat_map(|(x, l)| (0..l.len()).rev().map(move |k| (x, k)))
            .collect();
        for &(from, keep) in &suffixes {
            let over = &state.lists[from][keep..];
            for to in (0..self.axes.len()).filter(|to| *to != from) {
                if self.can_split(state, to, over) {
                    let mut next = state.clone();
                    next.lists[from].truncate(keep);
                    next.lists[to].extend(over);
                    let name = |axis: usize| self.axes[axis].name.clone();
                    let action = Move::AllToAll { from: name(from), to: name(to), over: self.names(over) };
                    found.push((next, action, self.ranks(over)));
                }
            }
        }
        for &(axis, keep) in &suffixes {
            let over = &state.lists[axis][keep..];
            let mut next = state.clone();
            next.lists[axis].truncate(keep);
            let action = Move::AllGather { axis: self.axes[axis].name.clone(), over: self.names(over) };
            found.push((next, action, self.ranks(over)));
        }
    }

    /// Exchanges of whole parts, to states from which cutting and gathering lead on to the target.
    fn permutes(&self, state: &State, found: &mut Vec<(State, Move, u64)>) {
        let mut lists = Vec::new();
        self.arrangements(state, &mut lists, &mut |lists| {
            let next = State { lists: lists.to_vec(), partial: state.partial.clone() };
            if next != *state
                && let Some((action, ranks)) = self.permute(state, &next)
            {
                found.push((next, action, ranks));
            }
        });
    }

    /// All ways to split every tensor axis in as many parts as in `state`, along the target's list.
    fn arrangements(
        &self,
        state: &State,
        lists: &mut Vec<Vec<usize>>,
        visit: &mut impl FnMut(&[Vec<usize>]),
    ) {
        let axis = lists.len();
        if axis == self.axes.len() {
            return visit(lists);
        }
        let wanted = self.ranks(&state.lists[axis]);
        let mut candidates = Vec::new();
        self.lists_along(&self.target.lists[axis], wanted, &mut Vec::new(), &mut candidates);
        for candidate in candidates {
            let taken = |m: &usize| state.partial.contains(m) || lists.iter().any(|list| list.contains(m));
            if !candidate.iter().any(taken) {
                lists.push(candidate);
                self.arrangements(state, lists, visit);
                lists.pop();
            }
        }
    }

    /// Lists of `ways` in all that begin like `target`, or go on behind it with axes that no list of the target has.
    fn lists_along(&self, target: &[usize], ways: u64, list: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
        if ways == 1 {
            found.push(list.clone());
            return;
        }
        let next: Vec<usize> = match target.get(list.len()) {
            Some(m) => vec![*m],
            None => {
                (0..self.ways.len()).filter(|m| !list.contains(m) && !self.target.is_split_over(*m)).collect()
            }
        };
        for m in next {
            if self.ways[m] > 1 && ways.is_multiple_of(self.ways[m]) {
                list.push(m);
                self.lists_along(target, ways / self.ways[m], list, found);
                list.pop();
            }
        }
    }

    /// The exchange between two states with the same parts, if some axis can be taken to as many pieces.
    fn permute(&self, before: &State, after: &State) -> Option<(Move, u64)> {
        let mut group: Vec<usize> = Vec::new();
        for (a, b) in before.lists.iter().zip(&after.lists) {
            let (a, b) = without_common_ends(a, b);
            group.extend(a.iter().chain(b));
        }
        group.sort_unstable();
        group.dedup();
        let ranks = self.ranks(&group);
        if ranks > PERMUTE_MAX {
            return None;
        }
        let pieces = (0..self.axes.len()).find(|axis| self.size(before, *axis).is_multiple_of(ranks))?;
        let source = self.sources(&group, before, after);
        let action =
            Move::Permute { over: self.names(&group), pieces: self.axes[pieces].name.clone(), source };
        Some((action, ranks))
    }

    /// By position in a group: whose part it gets. Of the ranks that want a part, and those that have it, the first goes with
    /// the first; one that has what it wants keeps it.
    fn sources(&self, group: &[usize], before: &State, after: &State) -> Vec<usize> {
        let over = self.names(group);
        let members = self.mesh.group(0, &over);
        let part = |state: &State, rank: u64| -> Vec<u64> {
            state.lists.iter().map(|list| self.mesh.position(rank, &self.names(list))).collect()
        };
        let has: Vec<Vec<u64>> = members.iter().map(|r| part(before, *r)).collect();
        let wants: Vec<Vec<u64>> = members.iter().map(|r| part(after, *r)).collect();
        let mut source: Vec<Option<usize>> =
            (0..members.len()).map(|i| (has[i] == wants[i]).then_some(i)).collect();
        let mut given: Vec<bool> = source.iter().map(Option::is_some).collect();
        for i in 0..members.len() {
            if source[i].is_none() {
                let from = (0..members.len()).find(|j| !given[*j] && has[*j] == wants[i]);
                let from = from.expect("equally many ranks have a part and want it");
                given[from] = true;
                source[i] = Some(from);
            }
        }
        source.into_iter().map(|s| s.expect("set above")).collect()
    }
}

/// Two lists without what they begin and end with alike; both split in equally many parts.
fn without_common_ends<'l>(a: &'l [usize], b: &'l [usize]) -> (&'l [usize], &'l [usize]) {
    let front = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[front..], &b[front..]);
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    (&a[..a.len() - back], &b[..b.len() - back])
}

/// Cuts of one axis that follow each other become one.
fn joined_cuts(steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::new();
    for step in steps {
        if let Move::Cut { axis, over } = &step.action
            && let Some(Step { action: Move::Cut { axis: last, over: all }, after, .. }) = joined.last_mut()
            && last == axis
        {
            all.extend(over.iter().cloned());
            *after = step.after;
        } else {
            joined.push(step);
        }
    }
    joined
}
