//! Shape rules: the result types of every op, as one table.

use super::{
    Axis, CollectiveKind, CollectivePart, DType, Graph, Loop, MeshOp, Name, Op, ReduceOp, Space, Type,
    UnaryOp, ValueId,
};
use std::fmt;

/// Why operands don't fit an op.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeError {
    /// One sentence with the values involved.
    pub message: String,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ShapeError {}

type Result<T> = std::result::Result<T, ShapeError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(ShapeError { message: message.into() })
}

/// The result types of `op` on these operands. `given` is the type written by the user or required by the op; where the
/// types follow from the operands it may be absent, and if present must agree.
///
/// # Errors
/// The operands don't fit; the message names axes and sizes.
pub fn infer(graph: &Graph, op: &Op, operands: &[ValueId], given: Option<&Type>) -> Result<Vec<Type>> {
    let types: Vec<&Type> = operands.iter().map(|v| graph.ty(*v)).collect();
    let arity = |n: usize| -> Result<()> {
        if types.len() == n {
            Ok(())
        } else {
            fail(format!("{} takes {n} operands, got {}", op_name(op), types.len()))
        }
    };
    let required = || match given {
        Some(t) => Ok(t.clone()),
        None => fail(format!("{} needs its result type", op_name(op))),
    };
    match op {
        Op::Input { .. } | Op::Param { .. } | Op::State { .. } => {
            arity(0)?;
            Ok(vec![required()?])
        }
        Op::Scalar { .. } => {
            arity(0)?;
            agree(given, Type::scalar(DType::F64), op)
        }
        Op::Const(_) => {
            arity(0)?;
            let ty = required()?;
            if ty.axes.is_empty() { Ok(vec![ty]) } else { fail("a constant is a scalar; broadcast it") }
        }
        Op::Index { axis } => {
            arity(0)?;
            let ty = required()?;
            if ty.dtype == DType::I32 && ty.axes.len() == 1 && ty.has(axis) {
                Ok(vec![ty])
            } else {
                fail(format!("index {axis} has type i32[{axis}=…], not {}", show(&ty)))
            }
        }
        Op::Unary(unary) => {
            arity(1)?;
            let want_bool = *unary == UnaryOp::Not;
            if want_bool != (types[0].dtype == DType::Bool) {
                return fail(format!("{} does not work on {}", op_name(op), show(types[0])));
            }
            agree(given, types[0].clone(), op)
        }
        Op::Binary(_) => {
            arity(2)?;
            same_dtype(op, &types)?;
            elementwise(op, types[0].dtype, &types, given)
        }
        Op::Compare(_) => {
            arity(2)?;
            same_dtype(op, &types)?;
            elementwise(op, DType::Bool, &types, given)
        }
        Op::Select => {
            arity(3)?;
            if types[0].dtype != DType::Bool {
                return fail(format!("select takes a bool first, got {}", show(types[0])));
            }
            same_dtype(op, &types[1..])?;
            elementwise(op, types[1].dtype, &types, given)
        }
        Op::Cast => {
            arity(1)?;
            let ty = required()?;
            if ty.same_axes(types[0]) { Ok(vec![ty]) } else { fail("cast keeps all axes") }
        }
        Op::Broadcast => {
            arity(1)?;
            let ty = required()?;
            match types[0].axes.iter().find(|a| !ty.axes.contains(a)) {
                _ if ty.dtype != types[0].dtype => fail("broadcast keeps the element type"),
                Some(a) => fail(format!("broadcast to {} would lose axis {}={}", show(&ty), a.name, a.size)),
                None => Ok(vec![ty]),
            }
        }
        Op::Rename { pairs } => {
            arity(1)?;
            agree(given, rename(types[0], pairs)?, op)
        }
        Op::Reduce { op: reduction, axes } => {
            arity(1)?;
            for a in axes {
                if !types[0].has(a) {
                    return fail(format!("{} has no axis {a} to reduce", show(types[0])));
                }
            }
            let dtype = match reduction {
                ReduceOp::Sum => sum_dtype(types[0].dtype),
                ReduceOp::Max | ReduceOp::Min => types[0].dtype,
            };
            agree(given, types[0].without(axes).with_dtype(dtype), op)
        }
        Op::Dot { over } => {
            arity(2)?;
            same_dtype(op, &types)?;
            dot(types[0], types[1], over, given)
        }
        Op::Gather { axis } => {
            arity(2)?;
            gather(types[0], types[1], axis, given)
        }
        Op::ScatterAdd { axis } => {
            arity(2)?;
            let ty = required()?;
            let back = gather(&ty, types[1], axis, None)?;
            if back[0].same_as(types[0]) {
                Ok(vec![ty])
            } else {
                fail(format!(
                    "scatter into {} takes updates {}, got {}",
                    show(&ty),
                    show(&back[0]),
                    show(types[0])
                ))
            }
        }
        Op::CumSum { axis, .. } => {
            arity(1)?;
            match types[0].has(axis) {
                true => agree(given, types[0].clone(), op),
                false => fail(format!("{} has no axis {axis} to sum along", show(types[0]))),
            }
        }
        Op::RotatePairs { axis, .. } => {
            arity(1)?;
            match types[0].size_of(axis) {
                Some(n) if n % 2 == 0 => agree(given, types[0].clone(), op),
                Some(n) => fail(format!("axis {axis}={n} has odd size and can't be paired")),
                None => fail(format!("{} has no axis {axis}", show(types[0]))),
            }
        }
        Op::Transfer { .. } => {
            arity(1)?;
            agree(given, types[0].clone(), op)
        }
        Op::Mesh(mesh_op) => mesh_types(graph, op, mesh_op, &types, given),
        Op::Slice { from, to, at } => {
            arity(1)?;
            slice_along(types[0], from, to, *at, required()?)
        }
        Op::Concat { parts, axis } => {
            same_dtype(op, &types)?;
            agree(given, concat(&types, parts, axis)?, op)
        }
        Op::Loop(l) => loop_types(graph, l, &types),
        Op::Composite(c) => region_types(graph, c.meaning, &types),
        Op::Update(u) => region_types(graph, u.body, &types),
    }
}

/// Element type of a sum of terms of this type: sums of bf16 come out in f32, and only a cast makes them shorter.
pub fn sum_dtype(dtype: DType) -> DType {
    match dtype {
        DType::Bf16 => DType::F32,
        DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::Bool => dtype,
    }
}

/// A slice has the operand's axes with `from` as a part of it called `to`.
fn slice_along(x: &Type, from: &Name, to: &Name, at: u64, given: Type) -> Result<Vec<Type>> {
    let (Some(whole), Some(part)) = (x.size_of(from), given.size_of(to)) else {
        return fail(format!("slice along {from} -> {to} of {} can't be {}", show(x), show(&given)));
    };
    if at.checked_add(part).is_none_or(|end| end > whole) {
        return fail(format!("slice takes {part} elements at {at} of {from}={whole}"));
    }
    let rest = given.without(std::slice::from_ref(to));
    if rest.dtype == x.dtype && rest.same_axes(&x.without(std::slice::from_ref(from))) {
        Ok(vec![given])
    } else {
        fail(format!("slice of {} keeps its other axes, not {}", show(x), show(&given)))
    }
}

/// The first operand's axes with its part replaced by the whole axis.
fn concat(types: &[&Type], parts: &[Name], axis: &Name) -> Result<Type> {
    if types.is_empty() || types.len() != parts.len() {
        return fail(format!("concat takes one axis per operand, got {} and {}", parts.len(), types.len()));
    }
    let mut size = 0u64;
    let rest = types[0].without(&parts[..1]);
    for (ty, part) in types.iter().zip(parts) {
        let Some(n) = ty.size_of(part) else {
            return fail(format!("concat along {part}, which {} lacks", show(ty)));
        };
        size = size.saturating_add(n);
        if !ty.without(std::slice::from_ref(part)).same_axes(&rest) {
            return fail(format!("concat of {} and {}: other axes differ", show(types[0]), show(ty)));
        }
    }
    let mut whole = types[0].clone();
    for a in &mut whole.axes {
        if a.name == parts[0] {
            *a = Axis::new(axis, size);
        }
    }
    if rest.has(axis) {
        return fail(format!("concat would have the axis {axis} twice"));
    }
    Ok(whole)
}

/// Text of a type, as in the graph's text form.
pub fn show(ty: &Type) -> String {
    let axes: Vec<String> = ty.axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
    format!("{}[{}]", dtype_name(ty.dtype), axes.join(", "))
}

/// Name of an element type in text.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "bf16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "bool",
    }
}

/// Mnemonic of an op in text.
pub fn op_name(op: &Op) -> String {
    match op {
        Op::Input { .. } => "input".into(),
        Op::Param { .. } => "param".into(),
        Op::State { .. } => "state".into(),
        Op::Scalar { .. } => "scalar".into(),
        Op::Const(_) => "const".into(),
        Op::Index { .. } => "index".into(),
        Op::Unary(u) => format!("{u:?}").to_lowercase(),
        Op::Binary(b) => format!("{b:?}").to_lowercase(),
        Op::Compare(c) => format!("{c:?}").to_lowercase(),
        Op::Select => "select".into(),
        Op::Cast => "cast".into(),
        Op::Broadcast => "broadcast".into(),
        Op::Rename { .. } => "rename".into(),
        Op::Reduce { op, .. } => format!("reduce_{}", format!("{op:?}").to_lowercase()),
        Op::Dot { .. } => "dot".into(),
        Op::Gather { .. } => "gather".into(),
        Op::ScatterAdd { .. } => "scatter_add".into(),
        Op::CumSum { .. } => "cumsum".into(),
        Op::RotatePairs { .. } => "rotate_pairs".into(),
        Op::Transfer { to: Space::Device } => "to_device".into(),
        Op::Transfer { to: Space::Host } => "to_host".into(),
        Op::Mesh(mesh_op) => mesh_op_name(mesh_op),
        Op::Slice { .. } => "slice".into(),
        Op::Concat { .. } => "concat".into(),
        Op::Loop(_) => "loop".into(),
        Op::Composite(c) => composite_name(&c.kind).into(),
        Op::Update(_) => "update".into(),
    }
}

fn mesh_op_name(op: &MeshOp) -> String {
    match op {
        MeshOp::Constrain { .. } => "constrain".into(),
        MeshOp::Reshard { .. } => "reshard".into(),
        MeshOp::LocalPart { .. } => "local_part".into(),
        MeshOp::Collective(c) => match c.kind {
            CollectiveKind::AllGather => "all_gather".into(),
            CollectiveKind::ReduceScatter(op) => format!("reduce_scatter_{}", op.name()),
            CollectiveKind::AllReduce(op) => format!("all_reduce_{}", op.name()),
            CollectiveKind::AllToAll => "all_to_all".into(),
        },
    }
}

/// Types of what concerns several ranks; those of collectives are one rank's.
fn mesh_types(
    graph: &Graph,
    op: &Op,
    mesh_op: &MeshOp,
    types: &[&Type],
    given: Option<&Type>,
) -> Result<Vec<Type>> {
    match mesh_op {
        MeshOp::Constrain { .. } | MeshOp::Reshard { .. } => match types {
            [ty] => agree(given, (*ty).clone(), op),
            _ => fail(format!("{} takes 1 operand, got {}", op_name(op), types.len())),
        },
        MeshOp::LocalPart { axis, over } => match types {
            [ty] => agree(given, cut(ty, axis, graph.mesh.ways(over))?, op),
            _ => fail(format!("local_part takes 1 operand, got {}", types.len())),
        },
        MeshOp::Collective(c) if c.parts.len() != types.len() || types.is_empty() => {
            fail(format!("{} has axes for {} operands, got {}", op_name(op), c.parts.len(), types.len()))
        }
        MeshOp::Collective(c) => {
            let ways = graph.mesh.ways(&c.over);
            let (splits, joins) = match c.kind {
                CollectiveKind::AllGather => (false, true),
                CollectiveKind::ReduceScatter(_) => (true, false),
                CollectiveKind::AllReduce(_) => (false, false),
                CollectiveKind::AllToAll => (true, true),
            };
            let one = |(ty, part): (&&Type, &CollectivePart)| {
                if part.split.is_some() != splits || part.join.is_some() != joins {
                    return fail(format!("{} has other axes than its kind", op_name(op)));
                }
                let mut ty = (*ty).clone();
                if let Some(axis) = &part.split {
                    ty = cut(&ty, axis, ways)?;
                }
                match &part.join {
                    Some(join) => grown(&ty, join, ways),
                    None => Ok(ty),
                }
            };
            types.iter().zip(&c.parts).map(one).collect()
        }
    }
}

/// The type with one axis `ways` times shorter.
fn cut(ty: &Type, axis: &Name, ways: u64) -> Result<Type> {
    resized(ty, axis, |size| {
        if size % ways == 0 {
            Ok(size / ways)
        } else {
            fail(format!("axis {axis}={size} does not split {ways} ways"))
        }
    })
}

/// The type with one axis `ways` times longer.
fn grown(ty: &Type, axis: &Name, ways: u64) -> Result<Type> {
    resized(ty, axis, |size| Ok(size * ways))
}

fn resized(ty: &Type, axis: &Name, size: impl Fn(u64) -> Result<u64>) -> Result<Type> {
    let Some(at) = ty.position(axis) else { return fail(format!("{} has no axis {axis}", show(ty))) };
    let mut ty = ty.clone();
    ty.axes[at].size = size(ty.axes[at].size)?;
    Ok(ty)
}

/// Mnemonic of a composite.
pub fn composite_name(kind: &super::CompositeKind) -> &'static str {
    use super::CompositeKind as K;
    match kind {
        K::Softmax { .. } => "softmax",
        K::RmsNorm { .. } => "rms_norm",
        K::LayerNorm { .. } => "layer_norm",
        K::Rope { .. } => "rope",
        K::CrossEntropy { .. } => "cross_entropy",
        K::Attention(_) => "attention",
        K::AttentionGrad(_) => "attention_grad",
        K::LossHead(_) => "loss_head",
        K::Custom(_) => "custom",
        K::GroupedDot { .. } => "grouped_dot",
        K::GroupedOuter { .. } => "grouped_outer",
    }
}

/// All axes of the types in order of first appearance.
///
/// An axis that appears with two sizes keeps the first; the element-wise rule reports it.
pub fn union_type(dtype: DType, types: &[&Type]) -> Type {
    let mut axes: Vec<Axis> = Vec::new();
    for axis in types.iter().flat_map(|t| &t.axes) {
        if !axes.iter().any(|a| a.name == axis.name) {
            axes.push(axis.clone());
        }
    }
    Type::new(dtype, axes)
}

fn agree(given: Option<&Type>, inferred: Type, op: &Op) -> Result<Vec<Type>> {
    match given {
        None => Ok(vec![inferred]),
        // The given order of axes wins: it is what the user wrote.
        Some(t) if t.same_as(&inferred) => Ok(vec![t.clone()]),
        Some(t) => fail(format!("{} gives {}, not {}", op_name(op), show(&inferred), show(t))),
    }
}

fn same_dtype(op: &Op, types: &[&Type]) -> Result<()> {
    match types.windows(2).find(|w| w[0].dtype != w[1].dtype) {
        None => Ok(()),
        Some(w) => fail(format!("{} mixes {} and {}", op_name(op), show(w[0]), show(w[1]))),
    }
}

fn sizes_agree(types: &[&Type]) -> Result<()> {
    for (i, a) in types.iter().enumerate() {
        for b in &types[i + 1..] {
            for axis in &a.axes {
                if let Some(size) = b.size_of(&axis.name)
                    && size != axis.size
                {
                    return fail(format!(
                        "axis {} is {} in one operand and {size} in another",
                        axis.name, axis.size
                    ));
                }
            }
        }
    }
    Ok(())
}

fn elementwise(op: &Op, dtype: DType, types: &[&Type], given: Option<&Type>) -> Result<Vec<Type>> {
    sizes_agree(types)?;
    let union = union_type(dtype, types);
    if let Some(t) = given {
        return agree(Some(t), union, op);
    }
    // Without an annotation one operand must already have every axis.
    if types.iter().any(|t| t.axes.len() == union.axes.len()) {
        Ok(vec![union])
    } else {
        let shown: Vec<String> = types.iter().map(|t| show(t)).collect();
        fail(format!(
            "{} of {} is a union of axes and needs its result type",
            op_name(op),
            shown.join(" and ")
        ))
    }
}

fn rename(ty: &Type, pairs: &[(Name, Name)]) -> Result<Type> {
    let mut axes = ty.axes.clone();
    for (from, to) in pairs {
        match ty.position(from) {
            Some(i) => axes[i].name = to.clone(),
            None => return fail(format!("{} has no axis {from} to rename", show(ty))),
        }
    }
    for (i, a) in axes.iter().enumerate() {
        if axes[i + 1..].iter().any(|b| b.name == a.name) {
            return fail(format!("renaming gives axis {} twice", a.name));
        }
    }
    Ok(Type::new(ty.dtype, axes))
}

fn dot(a: &Type, b: &Type, over: &[Name], given: Option<&Type>) -> Result<Vec<Type>> {
    sizes_agree(&[a, b])?;
    for axis in over {
        for (side, ty) in [("left", a), ("right", b)] {
            if !ty.has(axis) {
                return fail(format!("contraction axis {axis} is missing on the {side} side, {}", show(ty)));
            }
        }
    }
    let union = union_type(sum_dtype(a.dtype), &[a, b]).without(over);
    agree(given, union, &Op::Dot { over: over.to_vec() })
}

fn gather(table: &Type, ids: &Type, axis: &Name, given: Option<&Type>) -> Result<Vec<Type>> {
    if ids.dtype != DType::I32 {
        return fail(format!("ids are i32, got {}", show(ids)));
    }
    if !table.has(axis) {
        return fail(format!("{} has no axis {axis} to look up in", show(table)));
    }
    if ids.has(axis) {
        return fail(format!("ids {} have the looked-up axis {axis}", show(ids)));
    }
    let rest = table.without(std::slice::from_ref(axis));
    sizes_agree(&[ids, &rest])?;
    agree(given, union_type(table.dtype, &[ids, &rest]), &Op::Gather { axis: axis.clone() })
}

fn region_types(graph: &Graph, region: super::RegionId, operands: &[&Type]) -> Result<Vec<Type>> {
    let region = graph.region(region);
    expect_args(graph, &region.args, operands)?;
    Ok(region.results.iter().map(|v| graph.ty(*v).clone()).collect())
}

fn expect_args(graph: &Graph, args: &[ValueId], operands: &[&Type]) -> Result<()> {
    if args.len() != operands.len() {
        return fail(format!("the region takes {} arguments, got {}", args.len(), operands.len()));
    }
    for (arg, ty) in args.iter().zip(operands) {
        if !graph.ty(*arg).same_as(ty) {
            return fail(format!(
                "argument %{} is {}, got {}",
                graph.value_name(*arg),
                show(graph.ty(*arg)),
                show(ty)
            ));
        }
    }
    Ok(())
}

/// The type of one slice of a stacked operand.
///
/// # Errors
/// The type lacks the axis or has another size.
pub fn slice_type(l: &Loop, ty: &Type) -> Result<Type> {
    let want = l.trip * l.block.unwrap_or(1);
    match (ty.size_of(&l.axis), l.block) {
        (Some(size), _) if size != want => {
            fail(format!("the loop runs over {}={want}, a stacked operand is {}", l.axis, show(ty)))
        }
        (Some(_), None) => Ok(ty.without(std::slice::from_ref(&l.axis))),
        (Some(_), Some(block)) => {
            let mut sliced = ty.clone();
            let i = ty.position(&l.axis).expect("checked above");
            sliced.axes[i].size = block;
            Ok(sliced)
        }
        (None, _) => fail(format!("the stacked operand {} lacks the loop's axis {}", show(ty), l.axis)),
    }
}

/// The type of a stacked out, from the type of its slice.
///
/// # Errors
/// A blocked loop's slice lacks the axis or has another block size; an unblocked loop's slice has the axis.
pub fn stacked_type(l: &Loop, slice: &Type) -> Result<Type> {
    match (l.block, slice.position(&l.axis)) {
        (None, None) => {
            let mut axes = vec![Axis::new(&l.axis, l.trip)];
            axes.extend(slice.axes.iter().cloned());
            Ok(Type::new(slice.dtype, axes))
        }
        (Some(block), Some(i)) if slice.axes[i].size == block => {
            let mut ty = slice.clone();
            ty.axes[i].size = block * l.trip;
            Ok(ty)
        }
        _ => fail(format!("a slice {} can't be stacked along {}", show(slice), l.axis)),
    }
}

fn loop_types(graph: &Graph, l: &Loop, operands: &[&Type]) -> Result<Vec<Type>> {
    let body = graph.region(l.body);
    if l.trip == 0 {
        return fail("a loop runs at least once");
    }
    if operands.len() < l.carries + l.stacked || body.results.len() < l.carries + l.stacked_outs {
        return fail("the loop has fewer operands or results than carries and stacked values");
    }
    let index = Type::scalar(DType::I32);
    let slices: Vec<Type> =
        operands[l.carries..l.carries + l.stacked].iter().map(|t| slice_type(l, t)).collect::<Result<_>>()?;
    let mut expected = vec![&index];
    expected.extend(&operands[..l.carries]);
    expected.extend(&slices);
    expected.extend(&operands[l.carries + l.stacked..]);
    expect_args(graph, &body.args, &expected)?;
    let results: Vec<&Type> = body.results.iter().map(|v| graph.ty(*v)).collect();
    for (i, (out, into)) in results.iter().zip(operands).take(l.carries).enumerate() {
        if !out.same_as(into) {
            return fail(format!("carry {i} goes in as {} and comes out as {}", show(into), show(out)));
        }
    }
    let mut types: Vec<Type> = operands[..l.carries].iter().map(|t| (*t).clone()).collect();
    for slice in &results[l.carries..l.carries + l.stacked_outs] {
        types.push(stacked_type(l, slice)?);
    }
    types.extend(results[l.carries + l.stacked_outs..].iter().map(|t| (*t).clone()));
    Ok(types)
}
