//! Steps of a plan as ops of one rank's program.

use super::{Move, Options, Step, on_wire, plan};
use crate::graph::shape::show;
use crate::graph::{
    Axis, Builder, Collective, CollectiveKind, CollectivePart, DType, MeshOp, Name, Op, Sharding, Type,
    ValueId,
};

/// Emits what turns `x`, a rank's part of a value of the whole type `global` lying as `from`, into its part lying as `to`; the
/// result carries `to` as its sharding. `cause` says why, for people. The mesh is that of the builder's graph.
///
/// # Errors
/// As [`plan`]; and `x` is no part of such a value.
pub fn lower(
    b: &mut Builder,
    x: ValueId,
    from: &Sharding,
    to: &Sharding,
    global: &Type,
    cause: &Name,
) -> Result<ValueId, String> {
    lower_with(b, x, from, to, global, cause, &Options::default())
}

/// As [`lower`], with options.
///
/// # Errors
/// As [`lower`].
pub fn lower_with(
    b: &mut Builder,
    x: ValueId,
    from: &Sharding,
    to: &Sharding,
    global: &Type,
    cause: &Name,
    options: &Options,
) -> Result<ValueId, String> {
    let steps = plan(from, to, global, &b.graph.mesh, options)?;
    let local = from.local(global, &b.graph.mesh)?;
    if !b.ty(x).same_as(&local) {
        return Err(format!(
            "a part of {} lying as `{from}` is {}, not {}",
            show(global),
            show(&local),
            show(b.ty(x))
        ));
    }
    // What has been summed is not rounded again.
    let sums = steps.iter().any(|step| step.action.reduces());
    Ok(steps.iter().fold(x, |x, step| {
        let wire = options.wire.filter(|_| !sums || step.action.reduces());
        emit(b, x, step, cause, wire)
    }))
}

fn emit(b: &mut Builder, x: ValueId, step: &Step, cause: &Name, wire: Option<DType>) -> ValueId {
    let wire = on_wire(b.ty(x).dtype, wire);
    let send =
        |b: &mut Builder, x: ValueId, kind, over: &[Name], split: Option<&Name>, join: Option<&Name>| {
            let parts = vec![CollectivePart { split: split.cloned(), join: join.cloned() }];
            let collective = Collective { kind, over: over.to_vec(), parts, wire, cause: cause.clone() };
            let result = b.one(Op::Mesh(MeshOp::Collective(collective)), &[x], None, "t");
            lay(b, result, &step.after);
            result
        };
    match &step.action {
        Move::Cut { axis, over } => {
            let op = MeshOp::LocalPart { axis: axis.clone(), over: over.clone() };
            let result = b.one(Op::Mesh(op), &[x], None, "t");
            lay(b, result, &step.after);
            result
        }
        Move::AllReduce { op, over } => send(b, x, CollectiveKind::AllReduce(*op), over, None, None),
        Move::ReduceScatter { op, axis, over } => {
            send(b, x, CollectiveKind::ReduceScatter(*op), over, Some(axis), None)
        }
        Move::AllToAll { from, to, over } => send(b, x, CollectiveKind::AllToAll, over, Some(to), Some(from)),
        Move::AllGather { axis, over } => send(b, x, CollectiveKind::AllGather, over, None, Some(axis)),
        Move::Permute { over, pieces, source } => {
            // Position p now holds piece p of every part, in the order of positions; it sends each position the piece of the
            // part that position wants.
            let taken = send(b, x, CollectiveKind::AllToAll, over, Some(pieces), Some(pieces));
            let ordered = reorder(b, taken, pieces, source, &step.after);
            send(b, ordered, CollectiveKind::AllToAll, over, Some(pieces), Some(pieces))
        }
    }
}

/// `x` in equal blocks along an axis, block `source[i]` at place i.
fn reorder(b: &mut Builder, x: ValueId, axis: &Name, source: &[usize], sharding: &Sharding) -> ValueId {
    let mut ty = b.ty(x).clone();
    let at = ty.position(axis).expect("the axis was split");
    let width = ty.axes[at].size / source.len() as u64;
    ty.axes[at] = Axis::new(axis, width);
    let block = |b: &mut Builder, i: usize| {
        let op = Op::Slice { from: axis.clone(), to: axis.clone(), at: i as u64 * width };
        let slice = b.one(op, &[x], Some(ty.clone()), "t");
        lay(b, slice, sharding);
        slice
    };
    let blocks: Vec<ValueId> = source.iter().map(|i| block(b, *i)).collect();
    let op = Op::Concat { parts: vec![axis.clone(); source.len()], axis: axis.clone() };
    let result = b.one(op, &blocks, None, "t");
    lay(b, result, sharding);
    result
}

fn lay(b: &mut Builder, value: ValueId, sharding: &Sharding) {
    b.graph.values[value.index()].sharding = sharding.clone();
}
