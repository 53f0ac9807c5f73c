//! Strict mode: what the rules leave to price, or to propagation, is a conflict.
//!
//! Of the forward pass every move that sends bytes has to be asked for: parameters go from where they rest to where the rules
//! by axis use them, values to where a rule by axis, role or path says they lie, and terms are summed. An op whose operands
//! can't meet without another move is a conflict, with what it could do, cheapest first; so is a loop that wants a value
//! elsewhere for no rule's sake. Cutting a value that every rank holds sends nothing and is free. The backward pass follows from
//! the forward pass: it is not looked at, since nothing in a spec can name its values.
//!
//! Source: the explicit mode of JAX's sharding in types (docs.jax.dev, "Explicit sharding"), where an op on operands that lie
//! differently is an error too.

use super::choose::{Assignment, Seen, choices, implied, moved_bytes};
use super::factors::Factor;
use super::insert_reshards::Walk;
use super::{glob_of, path_of};
use crate::cost::product_flops;
use crate::graph::{Name, OpId, OpNode, Origin, Phase, Sharding, ValueId, stem};
use std::collections::BTreeSet;

/// A move of the forward pass that no rule asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// Where: the op that wants a value elsewhere.
    pub at: Origin,
    /// What.
    pub title: String,
    /// What could be done instead, cheapest first.
    pub choices: Vec<String>,
    /// What to write.
    pub help: Vec<String>,
}

/// Choices shown of one conflict.
const SHOWN: usize = 3;

/// A value that would be sent.
#[derive(PartialEq)]
struct Sent {
    value: ValueId,
    from: Sharding,
    to: Sharding,
    bytes: u64,
    parameter: bool,
}

impl Walk<'_> {
    /// Notes what an op wants moved.
    pub(super) fn contended(
        &mut self,
        id: OpId,
        node: &OpNode,
        factors: &[Factor],
        taken: &[Name],
        assignment: &Assignment,
    ) {
        if !self.rules.strict || node.origin.phase != Phase::Forward {
            return;
        }
        let (operands, results) = self.seen(node);
        let sent = self.sent(node, factors, assignment, &operands);
        if sent.is_empty() {
            return;
        }
        let flops = product_flops(self.from, id);
        let all = choices(self.rules, taken, factors, &operands, &results, flops);
        let mut seen: Vec<Vec<Sent>> = Vec::new();
        for choice in all {
            let sent = self.sent(node, factors, &choice, &operands);
            if seen.len() < SHOWN && !seen.contains(&sent) {
                seen.push(sent);
            }
        }
        let title = format!("{} takes values that do not lie as it needs them", super::op_of(node));
        let choices = seen.iter().map(|sent| self.words(sent)).collect();
        let help: BTreeSet<String> = sent.iter().map(|sent| self.fix(sent)).collect();
        let help = help.into_iter().collect();
        self.note(Conflict { at: node.origin.clone(), title, choices, help });
    }

    /// Notes a value that a loop wants moved to `to` where no rule of `ruled` says so.
    pub(super) fn placed(&mut self, new: ValueId, to: &Sharding, ruled: ValueId, why: &str) {
        if !self.rules.strict || self.b.origin.phase != Phase::Forward || self.indices.contains_key(&new) {
            return;
        }
        let from = self.lies(new).reduced();
        let closed = &self.targets.closed[ruled.index()];
        let axes = from.split.keys().chain(to.split.keys());
        let open = axes.filter(|axis| from.over(axis) != to.over(axis)).any(|axis| !closed.contains(axis));
        let bytes = moved_bytes(self.b.ty(new), &self.rules.mesh, &from, &to.reduced()).ceil() as u64;
        if open && bytes > 0 {
            let sent = Sent { value: new, from, to: to.reduced(), bytes, parameter: false };
            let title = format!("`{}` does not lie as it is needed: {why}", self.path(&sent));
            let (choices, help) = (vec![self.words(std::slice::from_ref(&sent))], vec![self.fix(&sent)]);
            self.note(Conflict { at: self.b.origin.clone(), title, choices, help });
        }
    }

    fn note(&mut self, conflict: Conflict) {
        if !self.conflicts.contains(&conflict) {
            self.conflicts.push(conflict);
        }
    }

    /// Operands that an assignment sends, but for sums.
    fn sent(
        &self,
        node: &OpNode,
        factors: &[Factor],
        assignment: &Assignment,
        seen: &[Seen<'_>],
    ) -> Vec<Sent> {
        let mut all = Vec::new();
        for (i, (v, seen)) in node.operands.iter().zip(seen).enumerate() {
            let value = self.map[v];
            if self.indices.contains_key(&value) {
                continue;
            }
            let mut from = seen.lies.reduced();
            if seen.resting {
                from = Sharding::whole();
                seen.offers.iter().for_each(|(axis, over)| from.set(axis, over.clone()));
            }
            let to = implied(factors, assignment, |f| f.operands[i].clone());
            let bytes = moved_bytes(seen.ty, &self.rules.mesh, &from, &to).ceil() as u64;
            if bytes > 0 {
                all.push(Sent { value, from, to, bytes, parameter: seen.resting });
            }
        }
        all
    }

    /// The path by which rules name a value, or else what it is called.
    fn path(&self, sent: &Sent) -> String {
        let name = self.b.graph.value_name(sent.value);
        if sent.parameter {
            let flat = |path: &Name| path.replace('.', "_").replace(['{', '}'], "");
            let known = self.rules.params.keys().find(|path| flat(path) == stem(name));
            return known.map_or(name.as_str(), Name::as_str).to_string();
        }
        self.named(sent.value).unwrap_or_else(|| match self.made.get(&sent.value) {
            Some(origin) => path_of(origin, name),
            None => stem(name).to_string(),
        })
    }

    /// The path of a value that rules can name: as the block calls it that uses it, or that makes it.
    fn named(&self, value: ValueId) -> Option<String> {
        let name = self.b.graph.value_name(value);
        let origins = [Some(&self.b.origin), self.made.get(&value)];
        let mut paths = origins.into_iter().flatten().map(|origin| path_of(origin, name));
        paths.find(|path| self.rules.paths.contains(path))
    }

    fn words(&self, sent: &[Sent]) -> String {
        let one = |s: &Sent| format!("`{}` from ({}) to ({}), {} bytes", self.path(s), s.from, s.to, s.bytes);
        if sent.is_empty() {
            return "nothing moves, and ranks repeat each other's work".into();
        }
        sent.iter().map(one).collect::<Vec<_>>().join(" and ")
    }

    /// The rule that would ask for the move.
    fn fix(&self, sent: &Sent) -> String {
        if sent.parameter {
            let path = self.path(sent);
            return format!("where the parameter `{path}` is used rules by axis hold: change one of them");
        }
        let axes: BTreeSet<&Name> = sent.from.split.keys().chain(sent.to.split.keys()).collect();
        let differing = axes.into_iter().filter(|axis| sent.from.over(axis) != sent.to.over(axis));
        let over = |axis: &Name| match sent.to.over(axis) {
            [] => "none".to_string(),
            over => over.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
        };
        let named = self.named(sent.value);
        let path = glob_of(named.as_deref().unwrap_or("y"));
        let rules = differing.map(|axis| format!("`values \"{path}\": {axis} -> {}`", over(axis)));
        let rules = rules.collect::<Vec<_>>().join(" and ");
        match named {
            Some(_) => format!("say so: {rules}"),
            None => format!("give the value a name, such as `y = …`, and say so by its path: {rules}"),
        }
    }
}

#[cfg(test)]
mod tests;
