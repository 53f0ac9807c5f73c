//! The data of a report is consistent, and the page holds it.

use super::*;
use crate::pipeline::tests::spec;
use crate::pipeline::{Identity, Runner, compile};

/// Eight ranks with the layout of the large model.
const SMALL: &[&str] = &[
    "mesh.data=2",
    "mesh.fsdp=2",
    "mesh.tensor=2",
    "Llama.d=64",
    "Llama.ff=128",
    "Llama.layers=6",
    "Llama.group=2",
    "Llama.hd=8",
    "Llama.vocab=256",
    "train.seq=64",
    "train.batch=8",
];

/// The report of a spec of the repository for an H100.
fn report(path: &str, sets: &[&str]) -> (Compiled, Value) {
    let (spec, sources) = spec(path, sets);
    let machine = Target::named("h100").unwrap();
    let mut runner = Runner::default().on(machine.clone());
    let compiled = compile(&spec, &sources, &Identity::default(), &mut runner).unwrap();
    let data = data(&spec, &sources, &compiled, &machine);
    (compiled, data)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

#[test]
fn report_holds_one_step_on_lanes_that_never_overlap() {
    let (_, data) = report("specs/llama405b.spec", SMALL);
    let lanes = list(&data["lanes"]).len();
    let mut ends = vec![0.0; lanes];
    assert!(lanes > 1, "a run over several ranks sends: {}", data["lanes"]);
    for lane in 0..lanes {
        for span in list(&data["spans"]).iter().filter(|span| span[1] == lane) {
            let (begin, end) = (number(&span[3]), number(&span[4]));
            assert!(begin >= ends[lane] && end > begin, "{span} begins before {}", ends[lane]);
            ends[lane] = end;
        }
    }
    // Every moment of lane 0 is computing or waiting.
    let step = &data["step"];
    let sum = number(&step["compute"]) + number(&step["exposed"]);
    assert!((sum - number(&step["seconds"])).abs() < 1e-9 * sum, "{step}");
    assert!(number(&step["utilisation"]) > 0.0 && number(&step["utilisation"]) < 1.0);
}

#[test]
fn report_accounts_for_every_collective() {
    let (compiled, data) = report("specs/llama405b.spec", SMALL);
    let rows = list(&data["collectives"]);
    let starts =
        compiled.program.info.ops.iter().zip(list(&data["ops"])).filter(|(op, _)| !op.link.is_empty());
    assert_eq!(rows.len(), starts.count());
    for row in rows {
        assert!(
            number(&row["bytes"]) > 0.0 && row["cause"].as_str().is_some_and(|text| !text.is_empty()),
            "{row}"
        );
        assert!(row["reason"].as_str().is_some_and(|text| !text.is_empty()), "{row}");
    }
    let all: f64 = rows.iter().map(|row| number(&row["seconds"])).sum();
    assert!((all - number(&data["step"]["collectives"])).abs() < 1e-9 * all.max(1e-9));
    // One may wait for another on the same link, but all together no longer than they are under way.
    let exposed: f64 = rows.iter().map(|row| number(&row["exposed"])).sum();
    assert!(exposed > 0.0 && exposed <= all * (1.0 + 1e-9), "{exposed} of {all}");
}

/// The fullest launch is what the plan calls the peak: the arena less what is lost between buffers.
#[test]
fn report_of_memory_reaches_the_peak_of_the_plan() {
    for (path, sets) in [("specs/llama405b.spec", SMALL), ("specs/tiny.spec", &[])] {
        let (compiled, data) = report(path, sets);
        let sums =
            list(&data["memory"]["launches"]).iter().map(|row| list(row).iter().map(number).sum::<f64>());
        let fullest = sums.fold(0.0, f64::max);
        let classes: u64 = compiled.plan.report.classes.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(fullest as u64, classes, "{path}");
        assert!(fullest as u64 <= compiled.plan.arena_bytes);
        let n = list(&data["memory"]["launches"]).len();
        for l in list(&data["memory"]["loops"]) {
            assert!(number(&l["from"]) <= number(&l["to"]) && number(&l["to"]) < n as f64, "{l} of {n}");
        }
    }
}

#[test]
fn page_holds_the_data_and_needs_no_network() {
    let (_, mut data) = report("specs/tiny.spec", &[]);
    data["model"] = "</script><b>".into();
    let page = html(&data);
    let after = page.split("id=\"data\">").nth(1).unwrap();
    let text = after.split("</script>").next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), data);
    assert_eq!(page.matches("</script>").count(), 2);
    assert!(!page.contains("@DATA@"));
    let own = page.replace(text, "");
    for word in ["http:", "https:", "src=", "href=", "@import", "url(//"] {
        assert!(!own.contains(word), "{word}");
    }
    // Whatever the script writes to is there.
    for id in own.split("$('").skip(1).map(|rest| rest.split('\'').next().unwrap()) {
        assert!(own.contains(&format!("id=\"{id}\"")), "{id}");
    }
    for key in own.split("D.").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next()) {
        assert!(data.get(key).is_some() || key.is_empty(), "the page reads `{key}`, which the data lacks");
    }
}
