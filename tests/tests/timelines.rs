//! Timelines of a step: predicted by `mlc plan`, measured by the binary, the same ops in both; and figures measured for the prediction.

use mlc_tests::harness::{Scratch, build_file, mlc, succeed, train};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Two ranks, fully sharded, with two microbatches.
fn spec(folder: &Scratch) -> std::path::PathBuf {
    let path = folder.join("run.spec");
    let llama = mlc_tests::harness::root().join("specs/llama.spec");
    let text = format!(
        "spec 1\nuse \"{}\" as Llama with {{ vocab = 256, d = 32, ff = 64, layers = 3, kv = 2, group = 2, hd = 8 }}\n\
         mesh {{ fsdp = 2 }}\nshard {{\n    batch -> fsdp\n    params \"**\": d -> fsdp\n}}\n\
         train {{ steps = 9, batch = 4 sequences, microbatch = 1, seq = 16, data = synthetic\n optimizer = adamw {{ lr = 1e-3 }} }}\n",
        llama.display()
    );
    std::fs::write(&path, text).expect("the temporary folder is writable");
    path
}

/// The complete events of a trace file.
fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all = file["traceEvents"].as_array().expect("a trace has events").clone();
    all.into_iter().filter(|event| event["ph"] == "X").collect()
}

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("{event} has no {key}"))
}

/// Name, category and op of the events of a process.
fn names(events: &[Value], process: &Value) -> BTreeSet<(String, String, u64)> {
    let of = events.iter().filter(|e| e["pid"] == *process && e["cat"] != "folded");
    let text = |v: &Value| v.as_str().expect("a text").to_string();
    of.map(|e| (text(&e["name"]), text(&e["cat"]), e["args"]["op"].as_u64().expect("an op"))).collect()
}

/// In a lane, an event ends before the next begins; times are rounded to nanoseconds.
fn assert_lanes_are_in_order(events: &[Value]) {
    let mut lanes: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for event in events {
        let lane = lanes.entry((event["pid"].to_string(), event["tid"].to_string())).or_default();
        let begin = number(event, "ts");
        assert!(number(event, "dur") >= 0.0 && begin >= 0.0, "{event}");
        lane.push((begin, begin + number(event, "dur")));
    }
    for (lane, mut spans) in lanes {
        spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for pair in spans.windows(2) {
            assert!(pair[1].0 >= pair[0].1 - 0.002, "lane {lane:?}: {pair:?}");
        }
    }
}

#[test]
fn predicted_and_measured_timelines_name_the_same_ops() {
    let folder = Scratch::new("timelines");
    let (spec, binary) = (spec(&folder), folder.join("run"));
    let (measured, predicted) = (folder.join("measured.json"), folder.join("both.json"));
    build_file(&spec, &binary, &[]);
    let trace = format!("--trace={}:2", measured.display());
    succeed(&mut train(&binary, &folder.join("out"), &["--steps", "4", "--ranks", "2", &trace]));
    let mut plan = Command::new(mlc());
    plan.arg("plan").arg(&spec).arg("--trace").arg(&predicted).arg("--beside").arg(&measured);
    let (printed, _) = succeed(&mut plan);
    assert!(printed.contains("predicted for cpu") && printed.contains("on each of 2 ranks"), "{printed}");

    let (alone, both) = (events(&measured), events(&predicted));
    assert_eq!(both.iter().filter(|e| e["pid"] == 0 || e["pid"] == 1).count(), alone.len());
    let ours =
        both.iter().find(|e| e["pid"] != 0 && e["pid"] != 1).expect("a predicted event")["pid"].clone();
    let expected = names(&both, &ours);
    assert!(expected.iter().any(|(_, cat, _)| cat == "collective"), "{expected:?}");
    for rank in [0, 1] {
        assert_eq!(names(&alone, &rank.into()), expected, "rank {rank}");
    }
    assert_lanes_are_in_order(&both);
    // Of every rank two steps, with as many events each as are predicted.
    let count = |events: &[Value], pid: &Value, step: u64| {
        events.iter().filter(|e| e["pid"] == *pid && e["args"]["step"] == step).count()
    };
    for rank in [0, 1] {
        for step in [1, 2] {
            assert_eq!(count(&alone, &rank.into(), step), count(&both, &ours, 0), "rank {rank}, step {step}");
        }
    }
    // Some line of the model is named; a collective is started before its wait ends, and is under way in between.
    assert!(
        alone.iter().any(|e| e["args"]["line"].as_str().is_some_and(|line| line.contains("llama.spec:")))
    );
    for pid in [Value::from(0), Value::from(1), ours] {
        assert_transfers_lie_between_start_and_wait(&both, &pid);
    }
}

fn assert_transfers_lie_between_start_and_wait(events: &[Value], pid: &Value) {
    let mut started: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut ended: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut under_way: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for event in events.iter().filter(|e| e["pid"] == *pid) {
        let op = event["args"]["op"].as_u64().expect("an op");
        let (begin, end) = (number(event, "ts"), number(event, "ts") + number(event, "dur"));
        match event["cat"].as_str() {
            Some("start") => started.entry(op).or_default().push(begin),
            Some("wait") => ended.entry(op).or_default().push(end),
            Some("collective") => under_way.entry(op).or_default().push((begin, end)),
            _ => {}
        }
    }
    assert!(!under_way.is_empty());
    for (op, transfers) in under_way {
        assert_eq!((started[&op].len(), ended[&op].len()), (transfers.len(), transfers.len()), "op {op}");
        for ((begin, end), (start, wait)) in transfers.iter().zip(started[&op].iter().zip(&ended[&op])) {
            assert!(
                *begin >= start - 0.002 && *end <= wait + 0.002 && begin <= end,
                "op {op}: {begin} to {end}"
            );
        }
    }
}

#[test]
fn calibrate_writes_figures_that_plan_takes() {
    let folder = Scratch::new("calibrate");
    let file = folder.join("here.json");
    let mut calibrate = Command::new(mlc());
    calibrate.args(["calibrate", "--quick", "-o"]).arg(&file);
    let (_, progress) = succeed(&mut calibrate);
    for part in ["1/4", "2/4", "3/4", "4/4"] {
        assert!(progress.contains(part), "{progress}");
    }
    let text = std::fs::read_to_string(&file).expect("it was written");
    let target: Value = serde_json::from_str(&text).expect("it is JSON");
    for figure in [
        "/device/bandwidth",
        "/device/peak/f32",
        "/device/peak/bf16",
        "/device/launch",
        "/node/alpha",
        "/node/bandwidth",
        "/device/memory",
    ] {
        let value = target.pointer(figure).and_then(Value::as_f64);
        assert!(value.is_some_and(|value| value > 0.0), "{figure} in {text}");
    }
    let mut plan = Command::new(mlc());
    plan.arg("plan").arg(spec(&folder)).arg("--target").arg(&file);
    let (printed, _) = succeed(&mut plan);
    assert!(printed.contains("predicted for here"), "{printed}");
    let output = Command::new(mlc())
        .arg("plan")
        .arg(spec(&folder))
        .args(["--target", "abacus"])
        .output()
        .expect("mlc starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("there is no target abacus; there are cpu, h100, v5p"), "{error}");
}
