//! Copies of matrix-product operands whose contracted axes can't be walked with one stride.
//!
//! A kernel can put leftover rows, columns and batches into batch dimensions, but the contracted dimension is one. Where
//! the two operands disagree, the smaller one is copied into the other's order; where neither is contiguous, both are. A
//! copy serves all products of its region that need the same one.

use super::gemm_dims::{GemmDims, over};
use super::{
    Buffer, BufferId, Class, FuseError, Fused, Group, GroupId, Item, Kind, LoopId, Result, View, Write,
};
use crate::graph::{Axis, Name, Sharding, Space, Type, shape};

/// See the module's text.
///
/// # Errors
/// A product whose contracted axes stay apart even after copying.
pub fn insert_relayouts(fused: &mut Fused) -> Result<()> {
    let body = std::mem::take(&mut fused.body);
    fused.body = region(fused, body, None)?;
    Ok(())
}

/// A copy made in the region being walked.
struct Copied {
    from: View,
    order: Vec<Name>,
    to: View,
}

fn region(fused: &mut Fused, items: Vec<Item>, home: Option<LoopId>) -> Result<Vec<Item>> {
    let mut out = Vec::new();
    let mut copied: Vec<Copied> = Vec::new();
    for item in items {
        match item {
            Item::Loop { id, op, trip, reverse, body } => {
                let body = region(fused, body, Some(id))?;
                forget_overwritten(fused, &body, &mut copied);
                out.push(Item::Loop { id, op, trip, reverse, body });
            }
            Item::Group(id) => {
                straighten(fused, id, home, &mut copied, &mut out)?;
                forget_overwritten(fused, &[Item::Group(id)], &mut copied);
                out.push(Item::Group(id));
            }
            Item::Start(_) | Item::Done(_) | Item::Turned { .. } => out.push(item),
        }
    }
    Ok(out)
}

/// Copies of buffers that the items write to are out of date.
fn forget_overwritten(fused: &Fused, items: &[Item], copied: &mut Vec<Copied>) {
    for item in items {
        match item {
            Item::Loop { body, .. } => forget_overwritten(fused, body, copied),
            Item::Turned { item, .. } => forget_overwritten(fused, std::slice::from_ref(item), copied),
            Item::Group(id) | Item::Start(id) | Item::Done(id) => {
                let writes = &fused.group(*id).writes;
                copied.retain(|c| writes.iter().all(|w| w.view.buffer != c.from.buffer));
            }
        }
    }
}

fn straighten(
    fused: &mut Fused,
    id: GroupId,
    home: Option<LoopId>,
    copied: &mut Vec<Copied>,
    out: &mut Vec<Item>,
) -> Result<()> {
    let group = fused.group(id).clone();
    let Kind::Gemm { dot, a, b, extras } = &group.kind else { return Ok(()) };
    let is_straight = |fused: &Fused, a: &View, b: &View| {
        let kind = Kind::Gemm { dot: *dot, a: a.clone(), b: b.clone(), extras: extras.clone() };
        GemmDims::of(fused, &kind, &group.writes[0]).is_some_and(|d| d.k.len() <= 1)
    };
    if is_straight(fused, a, b) {
        return Ok(());
    }
    let over = over(fused, *dot);
    let order = |fused: &Fused, v: &View| -> Vec<Name> {
        let order = v.physical_order(fused.buffer(v.buffer));
        order.into_iter().filter(|x| over.contains(&x.name)).map(|x| x.name).collect()
    };
    let (a_order, b_order) = (order(fused, a), order(fused, b));
    let a_first = a.numel() <= b.numel();
    // One copy in the other's order, the smaller operand's first; then both.
    let attempts: [(bool, bool, &[Name]); 3] = if a_first {
        [(true, false, &b_order), (false, true, &a_order), (true, true, &b_order)]
    } else {
        [(false, true, &a_order), (true, false, &b_order), (true, true, &a_order)]
    };
    for (copy_a, copy_b, k_order) in attempts {
        let buffers = fused.buffers.len();
        let x = if copy_a { dense(fused, a, k_order, home, &group, copied) } else { a.clone() };
        let y = if copy_b { dense(fused, b, k_order, home, &group, copied) } else { b.clone() };
        if !is_straight(fused, &x, &y) {
            fused.buffers.truncate(buffers);
            continue;
        }
        for (from, to, wanted) in [(a, &x, copy_a), (b, &y, copy_b)] {
            if wanted && to.buffer.0 as usize >= buffers {
                copied.push(Copied { from: from.clone(), order: k_order.to_vec(), to: to.clone() });
                let copy = GroupId(fused.groups.len() as u32);
                fused.groups.push(Group {
                    kind: Kind::Copy { from: from.clone() },
                    ops: Vec::new(),
                    writes: vec![Write { value: None, view: to.clone(), accumulate: false }],
                    origin: group.origin.clone(),
                });
                out.push(Item::Group(copy));
            }
        }
        fused.groups[id.0 as usize].kind = Kind::Gemm { dot: *dot, a: x, b: y, extras: extras.clone() };
        return Ok(());
    }
    Err(FuseError {
        op: shape::op_name(&fused.graph.op(*dot).op),
        origin: group.origin.clone(),
        message: format!("the contracted axes {over:?} can't be brought into one order"),
    })
}

/// The view of a dense copy of `v`: other axes outside in their order, contracted ones inside in `k_order`.
fn dense(
    fused: &mut Fused,
    v: &View,
    k_order: &[Name],
    home: Option<LoopId>,
    group: &Group,
    copied: &[Copied],
) -> View {
    if let Some(c) = copied.iter().find(|c| c.from == *v && c.order == k_order) {
        return c.to.clone();
    }
    let source = fused.buffer(v.buffer).clone();
    let physical = v.physical_order(&source);
    // Keep what was innermost innermost: copying is then a walk, not a transposition.
    let k_inner = physical.last().is_none_or(|a| k_order.contains(&a.name));
    let others: Vec<Axis> = physical.iter().filter(|a| !k_order.contains(&a.name)).cloned().collect();
    let contracted: Vec<Axis> =
        k_order.iter().filter_map(|n| physical.iter().find(|a| a.name == *n).cloned()).collect();
    let axes = if k_inner { [others, contracted].concat() } else { [contracted, others].concat() };
    let id = BufferId(fused.buffers.len() as u32);
    let ty = Type::new(source.dtype, axes.clone());
    fused.buffers.push(Buffer {
        name: format!("{}.relayout", source.name).into(),
        dtype: source.dtype,
        pinned: axes.len(),
        axes,
        class: Class::Temporary,
        home,
        space: Space::Device,
        sharding: Sharding::whole(),
        origin: group.origin.clone(),
        ring: None,
    });
    View::whole(id, &ty)
}
