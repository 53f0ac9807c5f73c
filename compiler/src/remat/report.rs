//! What rematerialisation saves and costs.
//!
//! Bytes are those of the stacks that loops of the forward pass fill for loops of the backward pass, over all
//! iterations. The stacks of a loop inside such a loop are temporaries of an iteration and not among them.

use super::decide::{Choice, Decisions};
use super::recompute_residuals::Work;
use super::residuals::{loop_of, residuals};
use crate::graph::print::type_text;
use crate::graph::{Graph, RegionId, ValueId};
use crate::spec::checked::{Remat, RematAction, RematPreset};
use crate::units;
use std::collections::BTreeSet;
use std::fmt;

/// How many stacks a report names.
const NAMED: usize = 5;

/// A value saved for the backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Name of the value in the loop's body.
    pub name: String,
    /// Block path of the op that makes it.
    pub path: String,
    /// Spec line, `file:line`; empty if made by the compiler.
    pub line: String,
    /// Type of the stack, in text.
    pub ty: String,
    /// Bytes of the stack.
    pub bytes: u64,
    /// Whether it lies in the host's memory.
    pub offloaded: bool,
    /// Position of the rule that decided it.
    pub rule: Option<usize>,
    inner: ValueId,
}

/// What one rule does.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RuleReport {
    /// The rule as written; `remat = full` for a preset, `otherwise` for what no rule names.
    pub text: String,
    /// Bytes the backward pass asked for and computes again instead.
    pub recomputed_bytes: u64,
    /// Bytes saved where the computation runs.
    pub kept_bytes: u64,
    /// Bytes saved in the host's memory.
    pub offloaded_bytes: u64,
    /// Floating-point operations of products added to a step.
    pub flops: u128,
}

/// What rematerialisation does to a training step.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Report {
    /// Bytes the backward pass asks for.
    pub asked_bytes: u64,
    /// Bytes saved where the computation runs.
    pub kept_bytes: u64,
    /// Bytes saved in the host's memory.
    pub offloaded_bytes: u64,
    /// Floating-point operations of products added to a step.
    pub flops: u128,
    /// The rules in order, then what holds for the rest.
    pub rules: Vec<RuleReport>,
    /// The largest stacks that are left, largest first.
    pub stacks: Vec<Stack>,
}

impl Report {
    /// Compares the stacks before and after.
    pub fn new(remat: &Remat, before: &[Stack], after: Vec<Stack>, work: &Work) -> Report {
        let mut rules: Vec<RuleReport> = remat
            .rules
            .iter()
            .map(|rule| RuleReport {
                text: format!("{} \"{}\"", word(rule.action), rule.glob),
                ..RuleReport::default()
            })
            .collect();
        let rest = match remat.preset {
            RematPreset::Auto => "otherwise",
            RematPreset::None => "remat = none",
            RematPreset::Full => "remat = full",
            RematPreset::Dots => "remat = dots",
            RematPreset::Attn => "remat = attn",
        };
        rules.push(RuleReport { text: rest.into(), ..RuleReport::default() });
        let last = rules.len() - 1;
        let left: BTreeSet<ValueId> = after.iter().map(|s| s.inner).collect();
        for stack in before.iter().filter(|s| !left.contains(&s.inner)) {
            rules[stack.rule.unwrap_or(last)].recomputed_bytes += stack.bytes;
        }
        for stack in &after {
            let rule = &mut rules[stack.rule.unwrap_or(last)];
            let bytes = if stack.offloaded { &mut rule.offloaded_bytes } else { &mut rule.kept_bytes };
            *bytes += stack.bytes;
        }
        for (rule, flops) in work {
            rules[rule.unwrap_or(last)].flops += flops;
        }
        let mut report = Report {
            asked_bytes: before.iter().map(|s| s.bytes).sum(),
            kept_bytes: rules.iter().map(|r| r.kept_bytes).sum(),
            offloaded_bytes: rules.iter().map(|r| r.offloaded_bytes).sum(),
            flops: work.values().sum(),
            rules,
            stacks: after,
        };
        report.stacks.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        report.stacks.truncate(NAMED);
        report
    }
}

fn word(action: RematAction) -> &'static str {
    match action {
        RematAction::Recompute => "recompute",
        RematAction::Keep => "keep",
        RematAction::Offload => "offload",
    }
}

/// The stacks of a training graph, in order.
pub fn stacks(graph: &Graph, decisions: &Decisions) -> Vec<Stack> {
    let mut found = Vec::new();
    collect(graph, graph.body, decisions, &mut found);
    found
}

fn collect(graph: &Graph, region: RegionId, decisions: &Decisions, found: &mut Vec<Stack>) {
    let mut inside = BTreeSet::new();
    for op in graph.region(region).ops.clone() {
        let Some(l) = loop_of(graph, op) else { continue };
        let definitions = graph.definitions(l.body);
        let saved = residuals(graph, region, op);
        for residual in &saved {
            inside.insert(op);
            inside.extend(&residual.users);
            let made_by = definitions.get(&residual.inner).map(|op| &graph.op(*op).origin);
            let decision = decisions.get(&residual.inner);
            let line = made_by.map(|o| &o.line).filter(|line| line.line > 0);
            found.push(Stack {
                name: graph.value_name(residual.inner).to_string(),
                path: made_by.map_or(String::new(), |o| o.path.to_string()),
                line: line.map_or(String::new(), |line| format!("{}:{}", line.file, line.line)),
                ty: type_text(graph.ty(residual.stack)),
                bytes: graph.ty(residual.stack).bytes(),
                offloaded: decision.is_some_and(|d| d.choice == Choice::Offload),
                rule: decision.and_then(|d| d.rule),
                inner: residual.inner,
            });
        }
    }
    for op in &graph.region(region).ops {
        if let Some(l) = loop_of(graph, *op).filter(|_| !inside.contains(op)) {
            collect(graph, l.body, decisions, found);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, kept) = (units::bytes(self.asked_bytes), units::bytes(self.kept_bytes));
        write!(f, "saved for the backward pass: {kept} of {asked}")?;
        if self.offloaded_bytes > 0 {
            write!(f, " and {} in the host's memory", units::bytes(self.offloaded_bytes))?;
        }
        writeln!(f, ", {} more a step", units::flops(self.flops))?;
        for rule in &self.rules {
            let silent = [rule.recomputed_bytes, rule.kept_bytes, rule.offloaded_bytes] == [0; 3];
            if silent && rule.text == "otherwise" {
                continue;
            }
            let mut parts = Vec::new();
            if rule.recomputed_bytes > 0 || rule.flops > 0 {
                let bytes = units::bytes(rule.recomputed_bytes);
                parts.push(format!("{bytes} computed again for {}", units::flops(rule.flops)));
            }
            if rule.kept_bytes > 0 {
                parts.push(format!("{} saved", units::bytes(rule.kept_bytes)));
            }
            if rule.offloaded_bytes > 0 {
                parts.push(format!("{} in the host's memory", units::bytes(rule.offloaded_bytes)));
            }
            if parts.is_empty() {
                parts.push("nothing the backward pass asks for".into());
            }
            writeln!(f, "  {}: {}", rule.text, parts.join(", "))?;
        }
        for stack in &self.stacks {
            let host = if stack.offloaded { " (host)" } else { "" };
            write!(f, "{:>10}  %{} {}{host}", units::bytes(stack.bytes), stack.name, stack.ty)?;
            for place in [&stack.line, &stack.path].into_iter().filter(|p| !p.is_empty()) {
                write!(f, "  {place}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
