//! What a plan comes to, as data and as one page of HTML that needs no network: the predicted step on the machine's lanes, memory
//! over the step, how every parameter lies and by which rule, and every collective with its price and the reason for its place.
//!
//! The page is `report/page.html` with the data in its place; what it draws is what [`data`] holds.

use crate::cost::Target;
use crate::graph::{CollectiveKind, MeshOp, Op};
use crate::lower::groups_of_ops;
use crate::memory::EntryPlan;
use crate::memory::report::over_time;
use crate::pipeline::Compiled;
use crate::spec::checked::{Param, Spec};
use crate::spec::{SourceMap, placement};
use crate::timeline::{Predicted, predict};
use mlc_codegen::abi::OpInfo;
use mlc_codegen::abi::trace::{Kind, lanes};
use serde_json::{Value, json};

/// Spans of a page's timeline.
const SPANS: usize = 4000;
/// Tensors named at the peak.
const OWNERS: usize = 20;

/// The data of a report. All times are predicted, in seconds of one rank, for `machine`; all bytes are exact, of one rank.
///
/// `model`, `parameters`, `ranks`, `tokens` of a step; `machine`; `step` with `seconds`, `compute`, `exposed`, `flops` and
/// `utilisation`; `lanes` and `spans`, each `[op, lane, kind, begin, end, folded iterations]`; `ops`; `memory`; `collectives`;
/// `layout` as [`placement::json`], with the shapes of parameters in `shapes`.
pub fn data(spec: &Spec, sources: &SourceMap, compiled: &Compiled, machine: &Target) -> Value {
    let program = &compiled.program;
    let step = predict(&program.info.ops, &program.entries[0].body, SPANS);
    let entry = &program.info.entries[0];
    let ranks = program.info.mesh.iter().map(|axis| axis.size).product::<u64>();
    json!({
        "model": spec.model.name,
        "parameters": spec.model.parameter_count(),
        "ranks": ranks,
        "tokens": entry.batch * entry.seq,
        "machine": { "name": machine.name, "what": machine.what, "sources": machine.sources, "memory": machine.device.memory },
        "step": totals(&step, entry.flops, machine),
        "lanes": lanes(&program.info.ops),
        "spans": spans(&step, &program.info.ops),
        "ops": ops(&step, &program.info.ops),
        "memory": memory(compiled),
        "collectives": collectives(&compiled.plan.entries[0], &step, &program.info.ops),
        "layout": spec.layout.as_ref().map(|l| placement::json(l, &spec.model, spec.train.as_ref(), sources)),
        "shapes": spec.model.params.iter().map(shape).collect::<Vec<_>>(),
    })
}

/// The page.
pub fn html(data: &Value) -> String {
    // Inside a script element a `<` can begin what ends the data, or hides its end.
    let text = data.to_string().replace('<', "\\u003c");
    include_str!("report/page.html").replace("@DATA@", &text)
}

fn totals(step: &Predicted, flops: u64, machine: &Target) -> Value {
    let under_way: f64 = step.ops.iter().map(|op| op.seconds).sum::<f64>() - step.compute;
    json!({
        "seconds": step.seconds,
        "compute": step.compute,
        "collectives": under_way,
        "exposed": step.ops.iter().map(|op| op.exposed).sum::<f64>(),
        "flops": flops,
        "utilisation": flops as f64 / step.seconds / machine.device.peak.most(),
    })
}

fn spans(step: &Predicted, ops: &[OpInfo]) -> Vec<Value> {
    let lanes = lanes(ops);
    let lane = |op: u32, kind: Kind| match kind {
        Kind::Transfer => lanes.iter().position(|lane| *lane == ops[op as usize].link).unwrap_or(0),
        Kind::Kernel | Kind::Start | Kind::Wait | Kind::Folded(_) => 0,
    };
    let folded = |kind: Kind| if let Kind::Folded(n) = kind { n } else { 0 };
    let seen = step.timeline.spans.iter().filter(|span| span.end > span.begin);
    seen.map(|s| json!([s.op, lane(s.op, s.kind), s.kind.word(), s.begin, s.end, folded(s.kind)])).collect()
}

fn ops(step: &Predicted, ops: &[OpInfo]) -> Vec<Value> {
    let of_entry = step.ops.iter().rposition(|op| op.times > 0).map_or(0, |last| last + 1);
    let all = ops.iter().zip(&step.ops).take(of_entry);
    all.map(|(op, total)| {
        json!({ "name": op.label(), "path": op.path, "line": op.line, "bytes": op.bytes, "flops": op.flops,
            "seconds": op.seconds, "times": total.times, "link": op.link })
    })
    .collect()
}

fn memory(compiled: &Compiled) -> Value {
    let report = &compiled.plan.report;
    let over = over_time(&compiled.plan.entries[0]);
    let owners = report.owners.iter().take(OWNERS).map(|o| {
        json!({ "name": o.name, "class": o.class, "path": o.path, "line": o.line, "shape": o.shape, "bytes": o.bytes })
    });
    let loops = over
        .loops
        .iter()
        .map(|(axis, trip, from, to)| json!({ "axis": axis, "trip": trip, "from": from, "to": to }));
    json!({
        "arena": report.arena_bytes,
        "host": report.host_bytes,
        "lost": report.lost_bytes,
        "classes": over.classes,
        "launches": over.launches,
        "loops": loops.collect::<Vec<_>>(),
        "owners": owners.collect::<Vec<_>>(),
    })
}

fn collectives(entry: &EntryPlan, step: &Predicted, ops: &[OpInfo]) -> Vec<Value> {
    let schedule = &entry.schedule;
    let groups = groups_of_ops(&schedule.fused.body);
    let row = |(i, group): (usize, &crate::fuse::GroupId)| {
        let crate::fuse::Kind::Collective { op, .. } = schedule.fused.group(*group).kind else { return None };
        let Op::Mesh(MeshOp::Collective(c)) = &schedule.fused.graph.op(op).op else { return None };
        let total = step.ops[i];
        let decision = schedule.decisions.iter().find(|d| d.group == *group);
        Some(json!({
            "op": i,
            "kind": word(c.kind),
            "over": c.over.iter().map(|axis| axis.as_str()).collect::<Vec<_>>(),
            "ranks": schedule.fused.graph.mesh.ways(&c.over),
            "link": ops[i].link,
            "path": ops[i].path,
            "line": ops[i].line,
            "cause": c.cause.as_str(),
            "bytes": ops[i].bytes,
            "times": total.times,
            "seconds": total.seconds,
            "exposed": total.exposed,
            "reason": decision.map(|d| d.reason.as_str()),
        }))
    };
    groups.iter().enumerate().filter_map(row).collect()
}

/// What a collective is called.
fn word(kind: CollectiveKind) -> &'static str {
    match kind {
        CollectiveKind::AllGather => "all-gather",
        CollectiveKind::ReduceScatter(_) => "reduce-scatter",
        CollectiveKind::AllReduce(_) => "all-reduce",
        CollectiveKind::AllToAll => "all-to-all",
    }
}

fn shape(param: &Param) -> Value {
    let axes: Vec<Value> = param.axes().map(|a| json!([a.name, a.size])).collect();
    json!({ "path": param.path, "axes": axes, "elements": param.elements() })
}

#[cfg(test)]
mod tests;
