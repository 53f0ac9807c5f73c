//! Collectives on the operands of all ranks.

use super::array::Array;
use super::number::Number;
use super::ops;
use super::regions::Ranks;
use crate::graph::{BinaryOp, Collective, CollectiveKind, CollectivePart, DType, Mesh, Name, ReduceOp, Type};

/// One part of a collective; `ty` is the type of its result on one rank.
pub(super) fn run<N: Number>(
    c: &Collective,
    part: &CollectivePart,
    mesh: &Mesh,
    operands: &Ranks<N>,
    ty: &Type,
) -> Ranks<N> {
    let sent: Ranks<N> = operands.iter().map(|x| on_the_wire(x, c.wire)).collect();
    let mut results: Vec<Option<Array<N>>> = vec![None; operands.len()];
    for rank in 0..mesh.ranks() {
        // Every group once, at its first rank.
        if results[rank as usize].is_some() {
            continue;
        }
        let group: Vec<usize> = mesh.group(rank, &c.over).into_iter().map(|r| r as usize).collect();
        let members: Vec<&Array<N>> = group.iter().map(|r| &sent[*r]).collect();
        for (member, result) in group.iter().zip(in_group(c.kind, part, &members, ty)) {
            results[*member] = Some(result);
        }
    }
    results.into_iter().map(|r| r.expect("every rank is in a group")).collect()
}

/// The result of each member of a group, whose operands are given in the order of positions.
fn in_group<N: Number>(
    kind: CollectiveKind,
    part: &CollectivePart,
    members: &[&Array<N>],
    ty: &Type,
) -> Vec<Array<N>> {
    let axis = |name: &Option<Name>| name.clone().expect("checked by the shape rule");
    let block = |x: &Array<N>, at: usize, split: &Name| {
        let width = x.ty.size_of(split).expect("checked by the shape rule") / members.len() as u64;
        x.slice(split, at * width as usize, Some(width))
    };
    match kind {
        CollectiveKind::AllGather => vec![end_to_end(members, &axis(&part.join), ty); members.len()],
        CollectiveKind::AllReduce(op) => vec![reduced(op, members).viewed_as(ty); members.len()],
        CollectiveKind::ReduceScatter(op) => {
            let (split, whole) = (axis(&part.split), reduced(op, members));
            (0..members.len()).map(|at| block(&whole, at, &split).viewed_as(ty)).collect()
        }
        CollectiveKind::AllToAll => {
            let (split, join) = (axis(&part.split), axis(&part.join));
            let one = |at| {
                let blocks: Vec<Array<N>> = members.iter().map(|x| block(x, at, &split)).collect();
                end_to_end(&blocks.iter().collect::<Vec<_>>(), &join, ty)
            };
            (0..members.len()).map(one).collect()
        }
    }
}

fn end_to_end<N: Number>(pieces: &[&Array<N>], join: &Name, ty: &Type) -> Array<N> {
    ops::concat(ty, &vec![join.clone(); pieces.len()], join, pieces)
}

/// What arrives of a tensor that travels in another element type.
fn on_the_wire<N: Number>(x: &Array<N>, wire: Option<DType>) -> Array<N> {
    match wire {
        Some(wire) if wire != x.ty.dtype => ops::cast(&x.ty, &ops::cast(&x.ty.with_dtype(wire), x)),
        _ => x.clone(),
    }
}

/// The reduction over members in their order, in f32 if the elements are shorter; every step is rounded, as adding one
/// received block after the other does.
fn reduced<N: Number>(op: ReduceOp, members: &[&Array<N>]) -> Array<N> {
    let by = match op {
        ReduceOp::Sum => BinaryOp::Add,
        ReduceOp::Max => BinaryOp::Max,
        ReduceOp::Min => BinaryOp::Min,
    };
    let ty = &members[0].ty;
    let wide = ty.with_dtype(if ty.dtype == DType::Bf16 { DType::F32 } else { ty.dtype });
    let first = ops::cast(&wide, members[0]);
    let all =
        members[1..].iter().fold(first, |so_far, x| ops::binary(&wide, by, &so_far, &ops::cast(&wide, x)));
    ops::cast(ty, &all)
}
