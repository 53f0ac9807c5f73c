//! Text of a [`Fused`], for `mlc emit --stage fused` and snapshots.
//!
//! ```text
//! buffer b3 %h temporaries f32[batch=2, seq=8, d=4] 256 B
//! gemm g5: dot add  %x @b1[batch, seq, d] %w @b2[d, ff] -> %h @b3[batch, seq, ff]
//! ```

use super::{At, Fused, Group, GroupId, Item, Kind, Turn, View};
use crate::graph::{Name, Op, Space, ValueId, shape};
use std::fmt::Write as _;

impl Fused {
    /// The whole text: buffers, then the tree of loops and groups.
    pub fn text(&self) -> String {
        let mut out = format!("fused @{} {{\n", self.graph.name);
        for (i, b) in self.buffers.iter().enumerate() {
            let axes: Vec<String> = b.axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
            let home = b.home.map_or_else(String::new, |l| format!(" in loop{}", l.0));
            let host = if b.space == Space::Host { " on the host" } else { "" };
            let _ = writeln!(
                out,
                "  buffer b{i} %{} {}{home}{host} {}[{}] {} B",
                b.name,
                b.class.word(),
                shape::dtype_name(b.dtype),
                axes.join(", "),
                b.bytes()
            );
            if let Some(ring) = b.ring {
                let _ = writeln!(out, "    {} slots for the iterations of loop{}", ring.slots, ring.of.0);
            }
        }
        self.items(&self.body, 1, &mut out);
        out.push_str("}\n");
        out
    }

    fn items(&self, items: &[Item], depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        for item in items {
            match item {
                Item::Group(id) => {
                    let _ = writeln!(out, "{pad}{}", self.group_text(*id));
                }
                Item::Start(id) => {
                    let _ = writeln!(out, "{pad}start {}", self.group_text(*id));
                }
                Item::Done(id) => {
                    let _ = writeln!(out, "{pad}done g{}", id.0);
                }
                Item::Turned { of, turn, item } => {
                    let which = match turn {
                        Turn::By(n) => format!("{n:+}"),
                        Turn::At(n) => format!(" iteration {n}"),
                    };
                    let _ = write!(out, "{pad}(loop{}{which}) ", of.0);
                    let mut text = String::new();
                    self.items(std::slice::from_ref(item), 0, &mut text);
                    out.push_str(&text);
                }
                Item::Loop { id, op, trip, reverse, body } => {
                    let axis = match &self.graph.op(*op).op {
                        Op::Loop(l) => l.axis.clone(),
                        _ => Name::from("?"),
                    };
                    let reverse = if *reverse { " reverse" } else { "" };
                    let _ = writeln!(out, "{pad}loop{} {axis}={trip}{reverse} {{", id.0);
                    self.items(body, depth + 1, out);
                    let _ = writeln!(out, "{pad}}}");
                }
            }
        }
    }

    /// One line of text for a group.
    pub fn group_text(&self, id: GroupId) -> String {
        let group = self.group(id);
        let mut text = format!("{} g{}:", kind_name(&group.kind), id.0);
        for op in &group.ops {
            let _ = write!(text, " {}", shape::op_name(&self.graph.op(*op).op));
        }
        if let Kind::Loops { kept, reduced, paired, .. } = &group.kind {
            let list = |axes: &[crate::graph::Axis]| {
                axes.iter().map(|a| a.name.to_string()).collect::<Vec<_>>().join(", ")
            };
            let _ = write!(text, " over [{}]", list(kept));
            if !reduced.is_empty() {
                let _ = write!(text, " reduce [{}]", list(reduced));
            }
            if let Some((axis, _)) = paired {
                let _ = write!(text, " pairs of {axis}");
            }
        }
        for (name, view) in self.named_reads(group) {
            let _ = write!(text, "  {name} {}", self.view_text(&view));
        }
        text.push_str("  ->");
        for w in &group.writes {
            let name = match (w.value, &group.kind) {
                (Some(v), _) => format!("%{}", self.graph.value_name(v)),
                (None, Kind::Fill) => "0".to_string(),
                (None, _) => format!("%{}", self.buffer(w.view.buffer).name),
            };
            let add = if w.accumulate { " +=" } else { "" };
            let _ = write!(text, "  {name}{add} {}", self.view_text(&w.view));
        }
        let line = &group.origin.line;
        if line.line > 0 {
            let _ = write!(text, "  // {}:{} {}", line.file, line.line, group.origin.path);
        }
        text
    }

    fn named_reads(&self, group: &Group) -> Vec<(String, View)> {
        let named = |v: &ValueId| (format!("%{}", self.graph.value_name(*v)), self.views[v].clone());
        match &group.kind {
            Kind::Loops { reads, .. } => {
                reads.iter().filter(|v| !self.indices.contains_key(v)).map(named).collect()
            }
            Kind::Copy { from } => vec![(format!("%{}", self.buffer(from.buffer).name), from.clone())],
            Kind::Fill => Vec::new(),
            Kind::Gemm { dot, a, b, extras } => {
                let operands = &self.graph.op(*dot).operands;
                let mut all = vec![
                    (format!("%{}", self.graph.value_name(operands[0])), a.clone()),
                    (format!("%{}", self.graph.value_name(operands[1])), b.clone()),
                ];
                all.extend(extras.iter().map(named));
                all
            }
            Kind::Gather { op }
            | Kind::Scatter { op }
            | Kind::Scan { op }
            | Kind::Attention { op }
            | Kind::AttentionGrad { op, .. }
            | Kind::Collective { op, .. } => self.graph.op(*op).operands.iter().map(named).collect(),
            Kind::Custom { op } => super::custom_reads(&self.graph, *op).iter().map(named).collect(),
        }
    }

    fn view_text(&self, view: &View) -> String {
        let buffer = self.buffer(view.buffer);
        let mut axes: Vec<String> =
            view.physical_order(buffer).into_iter().map(|a| a.name.to_string()).collect();
        for slot in &view.slots {
            let at = match &slot.at {
                At::Fixed(n) => n.to_string(),
                At::Loop { var, width: 1 } => format!("loop{}", var.0),
                At::Loop { var, width } => format!("loop{}*{width}", var.0),
                At::Rank { axis, width: 1 } => format!("{axis}"),
                At::Rank { axis, width } => format!("{axis}*{width}"),
            };
            axes.push(format!("{}@{at}", slot.axis));
        }
        format!("b{}[{}]", view.buffer.0, axes.join(", "))
    }
}

/// Word for a kind.
pub fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Loops { reduced, .. } if reduced.is_empty() => "map",
        Kind::Loops { .. } => "rows",
        Kind::Copy { .. } => "copy",
        Kind::Fill => "fill",
        Kind::Gemm { .. } => "gemm",
        Kind::Gather { .. } => "gather",
        Kind::Scatter { .. } => "scatter",
        Kind::Scan { .. } => "scan",
        Kind::Attention { .. } => "attention",
        Kind::AttentionGrad { .. } => "attention_grad",
        Kind::Custom { .. } => "custom",
        Kind::Collective { .. } => "collective",
    }
}
