//! The derivative of a block that a kernel of the user's own computes.
//!
//! What it means is the derivative of the block's meaning. If the file has an `@backward`, that computes it, from the operands,
//! the result and what `@forward` kept; if not, the meaning is computed again and differentiated.

use super::AutodiffError;
use super::differentiate::pullback;
use super::rules::Cotangents;
use super::tape::Tape;
use crate::graph::custom::{Argument, Function, functions};
use crate::graph::{
    Builder, Composite, CompositeKind, Custom, Graph, Name, Op, OpNode, Output, RegionId, ValueId,
};

/// Cotangents of the operands.
pub(super) fn pull(
    t: &mut Tape,
    custom: &Custom,
    composite: &Composite,
    node: &OpNode,
    g: ValueId,
) -> Result<Cotangents, AutodiffError> {
    let backward = functions(&custom.source)
        .map_err(|why| t.error(format!("{}: {why}", custom.file)))?
        .into_iter()
        .find(|f| f.name == "backward");
    let mut values =
        node.operands.iter().map(|v| t.primal(*v)).collect::<Result<Vec<ValueId>, AutodiffError>>()?;
    let n = values.len();
    let wanted: Vec<usize> = match &backward {
        None => (0..n).filter(|i| t.activity.varied(node.operands[*i])).collect(),
        Some(f) => written(t, f, custom, node)?,
    };
    let (gradient, region) = gradient_of(&t.b.graph, composite.meaning, &wanted)?;
    let gradients = match &backward {
        None => {
            values.push(g);
            t.b.inline(&gradient, region, &values)
        }
        Some(f) => {
            let mut arguments = custom.arguments[..n].to_vec();
            // The result and the residuals, if the function reads them.
            for (argument, result) in custom.arguments[n..].iter().zip(&node.results) {
                if has(f, &argument.name) {
                    values.push(t.primal(*result)?);
                    arguments.push(argument.clone());
                }
            }
            values.push(g);
            arguments.push(gradient_argument(&custom.arguments[n]));
            arguments.extend(wanted.iter().map(|i| gradient_argument(&custom.arguments[*i])));
            let kind = Custom { function: "backward".into(), arguments, ..custom.clone() };
            let names: Vec<String> = kind.arguments.iter().map(|a| a.name.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            t.b.composite(CompositeKind::Custom(kind), &values, &names, "grad", |b, args| {
                let mut inner = args[..n].to_vec();
                inner.extend(args.last());
                b.inline(&gradient, region, &inner)
            })
        }
    };
    let mut cotangents = vec![None; n];
    for (i, gradient) in wanted.into_iter().zip(gradients) {
        cotangents[i] = t.towards(node.operands[i], |_| gradient);
    }
    Ok(cotangents)
}

fn has(function: &Function, name: &str) -> bool {
    function.arguments.iter().any(|(n, _)| n == name)
}

fn gradient_argument(of: &Argument) -> Argument {
    Argument { name: format!("d_{}", of.name).into(), axes: of.axes.clone() }
}

/// Operands whose gradient `@backward` writes; those that are needed must be among them.
fn written(t: &Tape, f: &Function, custom: &Custom, node: &OpNode) -> Result<Vec<usize>, AutodiffError> {
    let mut wanted = Vec::new();
    for (i, operand) in node.operands.iter().enumerate() {
        let name = format!("d_{}", custom.arguments[i].name);
        if has(f, &name) {
            wanted.push(i);
        } else if t.activity.varied(*operand) {
            let message =
                format!("{}: `@backward` has no argument `%{name}`, which training needs", custom.file);
            return Err(t.error(message));
        }
    }
    Ok(wanted)
}

/// The gradient of a region's first result: a region of (arguments.., cotangent) -> gradients of the wanted arguments.
fn gradient_of(
    from: &Graph,
    meaning: RegionId,
    wanted: &[usize],
) -> Result<(Graph, RegionId), AutodiffError> {
    let source = from.region(meaning);
    let mut b = Builder::new("custom");
    let mut sources: Vec<(Name, ValueId)> = Vec::new();
    let types = source.args.iter().chain(&source.results[..1]).map(|v| from.ty(*v).clone());
    for (i, ty) in types.enumerate() {
        let name = format!("operand{i}");
        sources.push((name.as_str().into(), b.input(&name, ty, 0)));
    }
    let values: Vec<ValueId> = sources.iter().map(|(_, v)| *v).collect();
    let cotangent = values[values.len() - 1];
    let results = b.inline(from, meaning, &values[..values.len() - 1]);
    b.output(Output::Report("out".into()), results[0]);
    // A result of the graph, so that nothing takes it for dead before it is used.
    b.output(Output::Report("cotangent".into()), cotangent);
    let wanted: Vec<ValueId> = wanted.iter().map(|i| values[*i]).collect();
    let (graph, gradients) = pullback(b.finish(), &wanted, |b| {
        let results = &b.graph.region(b.graph.body).results;
        vec![(results[0], results[1])]
    })?;
    let mut b = Builder::resume(graph);
    let mut filled = Vec::new();
    for (gradient, value) in gradients.into_iter().zip(&wanted) {
        filled.push(gradient.unwrap_or_else(|| {
            let ty = b.ty(*value).clone();
            let zero = b.constant(ty.dtype, 0.0);
            b.broadcast(zero, &ty)
        }));
    }
    Ok(as_region(b.finish(), &sources, filled))
}

/// The body as a region whose arguments are the sources.
fn as_region(mut graph: Graph, sources: &[(Name, ValueId)], results: Vec<ValueId>) -> (Graph, RegionId) {
    let body = graph.body;
    let find = |graph: &Graph, name: &Name| {
        let ops = graph.region(body).ops.iter().map(|op| graph.op(*op));
        ops.into_iter().find_map(|node| match &node.op {
            Op::Input { name: n, .. } if n == name => Some(node.results[0]),
            _ => None,
        })
    };
    let mut args = Vec::new();
    for (name, value) in sources {
        // One that nothing reads may be gone; its value still stands for the argument.
        args.push(find(&graph, name).unwrap_or(*value));
    }
    let is_source = |graph: &Graph, op| matches!(graph.op(op).op, Op::Input { .. });
    let ops = graph.region(body).ops.iter().copied().filter(|op| !is_source(&graph, *op)).collect();
    let region = &mut graph.regions[body.index()];
    region.args = args;
    region.ops = ops;
    region.results = results;
    (graph, body)
}
