//! Loops over layers that hand collectives on, in whole models: a fully sharded Llama.

use super::{CompileError, Compiled, Identity, Runner, compile};
use crate::fuse::{Fused, Item, Kind, Turn};
use crate::graph::{CollectiveKind, MeshOp, Op};
use crate::schedule::Schedule;
use crate::spec::checked::Spec;
use crate::spec::{MemoryLoader, SourceMap, check};

const LLAMA: &str = include_str!("../../../specs/llama.spec");

fn spec(layers: u64, microbatch: u64) -> (Spec, SourceMap) {
    let run = format!(
        "spec 1
        use \"llama.spec\" as Llama with {{
            vocab = 4096, d = 1024, ff = 2816, layers = {layers}, kv = 4, group = 2, hd = 128, theta = 1e4 }}
        mesh {{ fsdp = 4 over nodes }}
        shard {{
            batch -> fsdp
            params \"**\": d -> fsdp
        }}
        train {{
            steps = 10, batch = 8 sequences, microbatch = {microbatch}, seq = 1024, data = synthetic
            precision = bf16, optimizer = adamw {{ lr = 1e-3 }}
        }}"
    );
    let files = vec![("llama.spec".into(), LLAMA.into()), ("run.spec".into(), run)];
    let mut sources = SourceMap::new();
    let checked = check(&mut sources, &MemoryLoader { files }, "run.spec", &[]);
    let (spec, _) = checked
        .unwrap_or_else(|errors| panic!("{}", crate::spec::diagnostic::render_all(&errors, &sources, false)));
    (spec, sources)
}

fn compiled(layers: u64, microbatch: u64, limit: Option<u64>) -> Result<Compiled, CompileError> {
    let (mut spec, sources) = spec(layers, microbatch);
    spec.target.memory_bytes = limit;
    compile(&spec, &sources, &Identity::default(), &mut Runner::default())
}

/// The schedule of the training step.
fn train(compiled: &Compiled) -> &Schedule {
    &compiled.plan.entries[0].schedule
}

fn is_gather(fused: &Fused, item: &Item) -> bool {
    let Item::Start(id) = item else { return false };
    let Kind::Collective { op, .. } = fused.group(*id).kind else { return false };
    matches!(&fused.graph.op(op).op, Op::Mesh(MeshOp::Collective(c)) if c.kind == CollectiveKind::AllGather)
}

/// Gathers that start in a loop over layers for a later one, by direction of the loop.
fn early_gathers(fused: &Fused, items: &[Item], reverse: bool) -> usize {
    let of = |item: &Item| match item {
        Item::Loop { reverse: down, body, .. } => {
            let early = |item: &&Item| match item {
                Item::Turned { turn: Turn::By(1..), item, .. } => is_gather(fused, item),
                Item::Turned { .. } | Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Loop { .. } => {
                    false
                }
            };
            let here = if *down == reverse { body.iter().filter(early).count() } else { 0 };
            here + early_gathers(fused, body, reverse)
        }
        Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => 0,
    };
    items.iter().map(of).sum()
}

#[test]
fn prefetch_gathers_the_next_layer_on_the_way_there_and_back() {
    // Accumulated over microbatches or not.
    for microbatch in [1, 2] {
        let compiled = compiled(8, microbatch, None).unwrap_or_else(|e| panic!("{e:?}"));
        let schedule = train(&compiled);
        let (all, exposed) = schedule.communication();
        assert!(schedule.ahead >= 1, "{}", schedule.text());
        for reverse in [false, true] {
            let found = early_gathers(&schedule.fused, &schedule.fused.body, reverse);
            assert!(found >= 1, "reverse {reverse}\n{}", schedule.fused.text());
        }
        assert!(exposed < 0.75 * schedule.exposed_alone, "{exposed} of {all}\n{}", schedule.text());
    }
}

#[test]
fn prefetch_gives_way_to_memory() {
    let free = compiled(8, 2, None).unwrap_or_else(|e| panic!("{e:?}"));
    assert!(train(&free).note.is_none());
    let tight = compiled(8, 2, Some(free.plan.arena_bytes - 1)).unwrap_or_else(|e| panic!("{e:?}"));
    assert!(tight.plan.arena_bytes < free.plan.arena_bytes);
    let (before, after) = (train(&free), train(&tight));
    assert!(after.ahead < before.ahead);
    assert!(after.communication().1 > before.communication().1);
    assert!(after.text().contains("does not fit in `target.memory`"), "{}", after.text());
    // What it takes without is the least: below, nothing helps.
    let refused = compiled(8, 2, Some(1 << 20));
    assert!(matches!(refused, Err(CompileError::Memory(_))));
}

#[test]
fn prefetch_is_as_long_for_any_number_of_layers() {
    let lines = |layers| {
        let compiled = compiled(layers, 2, None).unwrap_or_else(|e| panic!("{e:?}"));
        (train(&compiled).ahead, compiled.program.info.ops.len())
    };
    assert_eq!(lines(8), lines(80));
}
