//! The order of axes of every buffer whose order is free.
//!
//! Local search: all buffers start in the order of their value's type. Buffer by buffer, every candidate order (those that
//! would let a neighbouring product collapse its dimensions, and those of the other operands of its groups) is priced by
//! the groups that touch the buffer; the cheapest stays, the earlier one on ties. Two sweeps, so that a choice made early
//! sees those made later. Prices are bytes moved beyond one pass over each operand.

use super::collective;
use super::gemm_dims::{GemmDims, over};
use super::{Buffer, BufferId, Fused, Group, Kind, View};
use crate::graph::{Axis, CompositeKind, Name, Op, OpId};
use std::collections::{BTreeMap, BTreeSet};

const SWEEPS: usize = 2;

/// See the module's text.
pub fn choose_layouts(fused: &mut Fused) {
    let mut touching: BTreeMap<BufferId, Vec<usize>> = BTreeMap::new();
    for (i, group) in fused.groups.iter().enumerate() {
        for view in all_views(fused, group) {
            let list = touching.entry(view.buffer).or_default();
            if list.last() != Some(&i) {
                list.push(i);
            }
        }
    }
    for _ in 0..SWEEPS {
        for i in 0..fused.buffers.len() {
            let id = BufferId(i as u32);
            let pinned = fused.buffers[i].pinned;
            if pinned >= fused.buffers[i].axes.len() || fused.buffers[i].axes.len() < 2 {
                continue;
            }
            if let Some(groups) = touching.get(&id) {
                let best = best_order(fused, id, groups);
                fused.buffers[i].axes = best;
            }
        }
    }
}

fn best_order(fused: &mut Fused, id: BufferId, groups: &[usize]) -> Vec<Axis> {
    let start = fused.buffer(id).axes.clone();
    let mut orders = vec![start.clone()];
    for &g in groups {
        for order in candidates(fused, &fused.groups[g], id) {
            if !orders.contains(&order) {
                orders.push(order);
            }
        }
    }
    let mut best = (u64::MAX, start);
    for order in orders {
        fused.buffers[id.0 as usize].axes = order.clone();
        let price = groups.iter().map(|&g| price(fused, &fused.groups[g])).sum();
        if price < best.0 {
            best = (price, order);
        }
    }
    best.1
}

/// Every view a group reads or writes.
fn all_views(fused: &Fused, group: &Group) -> Vec<View> {
    let mut views = fused.reads(group);
    views.extend(group.writes.iter().map(|w| w.view.clone()));
    views
}

/// A full order of the buffer's axes from a preferred order of (some of) them; the pinned ones stay in front.
fn completed(buffer: &Buffer, preferred: &[Name]) -> Vec<Axis> {
    let mut axes: Vec<Axis> = buffer.axes[..buffer.pinned].to_vec();
    let rest = || buffer.axes[buffer.pinned..].iter();
    axes.extend(rest().filter(|a| !preferred.contains(&a.name)).cloned());
    for name in preferred {
        axes.extend(rest().filter(|a| a.name == *name).cloned());
    }
    axes
}

fn candidates(fused: &Fused, group: &Group, id: BufferId) -> Vec<Vec<Axis>> {
    let buffer = fused.buffer(id);
    let views = all_views(fused, group);
    let mine: Vec<&View> = views.iter().filter(|v| v.buffer == id).collect();
    let order_of = |v: &View| -> Vec<Name> {
        v.physical_order(fused.buffer(v.buffer)).into_iter().map(|a| a.name).collect()
    };
    let mut orders = Vec::new();
    for view in &mine {
        let to_buffer = |names: &[Name]| -> Vec<Name> {
            names
                .iter()
                .filter_map(|n| view.axes.iter().find(|a| a.name == *n).map(|a| a.of.clone()))
                .collect()
        };
        match &group.kind {
            Kind::Gemm { dot, a, b, .. } => {
                let over = over(fused, *dot);
                let c = &group.writes[0].view;
                let [oa, ob, oc] = [a, b, c].map(order_of);
                let pick = |from: &[Name], keep: &dyn Fn(&Name) -> bool| -> Vec<Name> {
                    from.iter().filter(|n| keep(n)).cloned().collect()
                };
                let batch = |n: &Name| !over.contains(n) && a.size(n).is_some() && b.size(n).is_some();
                let in_m = |n: &Name| a.size(n).is_some() && b.size(n).is_none();
                let in_n = |n: &Name| b.size(n).is_some() && a.size(n).is_none();
                let in_k = |n: &Name| over.contains(n);
                let joined = |parts: [Vec<Name>; 3]| to_buffer(&parts.concat());
                // As the left operand, the right one, the result; the other two decide the order within each role.
                orders.push(joined([pick(&oc, &batch), pick(&oc, &in_m), pick(&ob, &in_k)]));
                orders.push(joined([pick(&oc, &batch), pick(&ob, &in_k), pick(&oc, &in_m)]));
                orders.push(joined([pick(&oc, &batch), pick(&oa, &in_k), pick(&oc, &in_n)]));
                orders.push(joined([pick(&oc, &batch), pick(&oc, &in_n), pick(&oa, &in_k)]));
                orders.push(joined([pick(&oa, &batch), pick(&oa, &in_m), pick(&ob, &in_n)]));
            }
            Kind::Loops { .. }
            | Kind::Copy { .. }
            | Kind::Fill
            | Kind::Gather { .. }
            | Kind::Scatter { .. }
            | Kind::Scan { .. }
            | Kind::Attention { .. }
            | Kind::AttentionGrad { .. } => {
                for other in views.iter().filter(|v| v.buffer != id) {
                    orders.push(to_buffer(&order_of(other)));
                }
            }
            Kind::Collective { op, .. } => {
                let pairs = collective::pairs(fused, group, *op);
                for (part, sent, received) in pairs.iter().filter(|(_, s, r)| s == *view || r == *view) {
                    let order = order_of(if sent == *view { received } else { sent });
                    orders.push(to_buffer(&order));
                    // With the axis that is cut or grows outermost, every box is one run of bytes.
                    for axis in [&part.split, &part.join].into_iter().flatten() {
                        let rest = order.iter().filter(|n| *n != axis).cloned();
                        let first: Vec<Name> = std::iter::once(axis.clone()).chain(rest).collect();
                        orders.push(to_buffer(&first));
                    }
                }
            }
            Kind::Custom { op } => {
                let asked = custom_orders(fused, group, *op);
                orders.extend(asked.iter().filter(|(v, _)| v == *view).map(|(_, order)| to_buffer(order)));
            }
        }
    }
    let mut full: Vec<Vec<Axis>> = Vec::new();
    for order in orders {
        let axes = completed(buffer, &order);
        if !full.contains(&axes) {
            full.push(axes);
        }
    }
    full
}

fn bytes(fused: &Fused, view: &View) -> u64 {
    view.numel() * fused.buffer(view.buffer).dtype.bytes()
}

/// Extra bytes a group moves under the present orders.
fn price(fused: &Fused, group: &Group) -> u64 {
    match &group.kind {
        Kind::Gemm { a, b, .. } => {
            let write = &group.writes[0];
            let Some(dims) = GemmDims::of(fused, &group.kind, write) else { return 0 };
            let (a, b, c) = (bytes(fused, a), bytes(fused, b), bytes(fused, &write.view));
            // An operand whose contracted axes don't collapse is copied: read, written, read.
            let relayout = if dims.k.len() > 1 { 3 * a.min(b) } else { 0 };
            // Leftover dimensions become a batch: the other operand is packed once per entry.
            let left = (dims.m.len().max(1) - 1 + dims.n.len().max(1) - 1) as u64;
            let unit = |list: [&[super::gemm_dims::Dim]; 2], operand: usize| {
                list.iter().any(|l| l.last().is_none_or(|d| d.strides[operand] == 1))
            };
            let strided = [
                if unit([&dims.m, &dims.k], 0) { 0 } else { 2 * a },
                if unit([&dims.k, &dims.n], 1) { 0 } else { 2 * b },
                if unit([&dims.n, &dims.n], 2) { 0 } else { 2 * c },
            ];
            relayout + left * (a + b + c) / 4 + strided.iter().sum::<u64>()
        }
        Kind::Loops { reduced, .. } => price_loops(fused, group, reduced),
        Kind::Copy { .. } => price_loops(fused, group, &[]),
        Kind::Fill => 0,
        Kind::Gather { op } | Kind::Scatter { op } | Kind::Scan { op } => {
            // Rows are copied or added whole: the axis walked along should not be innermost.
            let axis = match &fused.graph.op(*op).op {
                Op::Gather { axis } | Op::ScatterAdd { axis } | Op::CumSum { axis, .. } => axis.clone(),
                _ => return 0,
            };
            let innermost_is =
                |v: &View| v.physical_order(fused.buffer(v.buffer)).last().is_some_and(|a| a.name == axis);
            let base = all_views(fused, group)
                .iter()
                .filter(|v| innermost_is(v))
                .map(|v| 4 * bytes(fused, v))
                .sum::<u64>();
            base + price_loops(fused, group, &[])
        }
        Kind::Collective { op, .. } => {
            let price = |(part, sent, received): &(_, View, View)| {
                let run = collective::Boxes::of(fused, *op, part, sent, received).run();
                let bytes = bytes(fused, sent);
                // Elements one by one cost as much as a copy there and back, short runs less.
                if run == 1 && sent.numel() > 1 { 2 * bytes } else { bytes / run.min(1 << 20) }
            };
            collective::pairs(fused, group, *op).iter().map(price).sum()
        }
        Kind::Custom { op } => {
            // An argument in another order is copied: read, written, read.
            let asked = custom_orders(fused, group, *op);
            let copied = |(view, order): &&(View, Vec<Name>)| {
                let here = view.physical_order(fused.buffer(view.buffer));
                !here.iter().map(|a| &a.name).eq(order)
            };
            asked.iter().filter(copied).map(|(view, _)| 3 * bytes(fused, view)).sum()
        }
        Kind::Attention { op } | Kind::AttentionGrad { op, .. } => {
            let Op::Composite(c) = &fused.graph.op(*op).op else { return 0 };
            let (CompositeKind::Attention(attention) | CompositeKind::AttentionGrad(attention)) = &c.kind
            else {
                return 0;
            };
            // Heads are read along the head dimension.
            let walks_positions = |v: &View| {
                v.axes.len() > 2
                    && v.physical_order(fused.buffer(v.buffer))
                        .last()
                        .is_some_and(|a| a.name == attention.query || a.name == attention.key)
            };
            all_views(fused, group).iter().filter(|v| walks_positions(v)).map(|v| 4 * bytes(fused, v)).sum()
        }
    }
}

/// The arguments of a custom kernel with the order of axes each is declared in.
fn custom_orders(fused: &Fused, group: &Group, op: OpId) -> Vec<(View, Vec<Name>)> {
    let node = fused.graph.op(op);
    let Op::Composite(c) = &node.op else { return Vec::new() };
    let CompositeKind::Custom(custom) = &c.kind else { return Vec::new() };
    let n = node.operands.len();
    let view = |i: usize| match node.operands.get(i) {
        Some(operand) => fused.views[operand].clone(),
        None => group.writes[i - n].view.clone(),
    };
    let bound = custom.bound().unwrap_or_default().into_iter();
    bound.map(|i| (view(i), custom.arguments[i].axes.clone())).collect()
}

/// Operands should be walked in one order: the innermost axis of the largest one, and with reductions over the last axes
/// those should be innermost.
fn price_loops(fused: &Fused, group: &Group, reduced: &[Axis]) -> u64 {
    let views = all_views(fused, group);
    let most = views.iter().map(View::numel).max().unwrap_or(1);
    let full: Vec<&View> = views.iter().filter(|v| v.numel() * 2 > most && v.axes.len() > 1).collect();
    let orders: Vec<Vec<Axis>> = full
        .iter()
        .map(|v| {
            let mut order = v.physical_order(fused.buffer(v.buffer));
            order.retain(|a| a.size > 1);
            order
        })
        .collect();
    let votes: BTreeSet<&Axis> = orders.iter().filter_map(|o| o.last()).collect();
    // The innermost axis most bytes agree on.
    let weight = |axis: &Axis| -> u64 {
        orders.iter().zip(&full).filter(|(o, _)| o.last() == Some(axis)).map(|(_, v)| bytes(fused, v)).sum()
    };
    let Some(inner) = votes.iter().max_by_key(|a| weight(a)) else { return 0 };
    let inner_reduced = reduced.iter().any(|r| r == *inner);
    let mut price = 0;
    for (order, view) in orders.iter().zip(&full) {
        if order.last() != Some(inner) {
            price += 2 * bytes(fused, view);
        } else if Some(order) != orders.first() {
            // Same innermost axis, another order outside: no harm but for collapsing.
            price += bytes(fused, view) / 16;
        }
        if inner_reduced {
            let tail = &order[order.len().saturating_sub(reduced.len())..];
            if !tail.iter().all(|a| reduced.contains(a)) {
                price += bytes(fused, view) / 8;
            }
        }
    }
    price
}
