//! The ways specs write attention and the loss, and nearly do.

use super::near_misses;
use crate::graph::print::print;
use crate::graph::{Graph, Output};
use crate::interpret::{Mode, run, sample_environment};
use crate::lower::attend_tests::trains;
use crate::lower::simulate;
use crate::testing::{assert_same_numbers, graph_of_spec, with_gradients};
use mlc_codegen::program::InterpretedProgram;
use mlc_codegen::target::X86_64_V4;

/// One layer of attention that gives `y` from x.
const MODEL: &str = "spec 1
model M {
    size batch = 2, seq = 5, d = 4, kv = 2, group = 2, hd = 3, nope = 2, turn = 2, heads = 4
    input x[batch, seq, d]
    input segment: ids<2>[batch, seq]
    param wq[d -> kv, group, hd], wk[d -> kv, hd], wv[d -> kv, hd], wo[kv, group, hd -> d] = normal(0.5)
    param qn[d -> heads, nope], qr[d -> heads, turn], kn[d -> heads, nope], kr[d -> turn] = normal(0.5)
    param wh[d -> heads, hd], vo[heads, hd -> d], table[kv, seq] = normal(0.5)
    q = dot[d](x, wq)
    k = dot[d](x, wk) as [seq: pos]
    v = dot[d](x, wv) as [seq: pos]
    causal[seq, pos] = index[pos] <= index[seq]
    s = dot[hd](q, k) / sqrt(hd)
    BODY
    loss mean[batch, seq, d](y * y)
    LOWER
}
";

/// The output of grouped heads.
const OUT: &str = "\n    y = dot[kv, group, hd](o, wo)";

/// The graph, or with recognition turned off.
fn model(body: &str, lower: &str) -> Graph {
    // Indented lines so that statements of several lines stay statements.
    graph_of_spec(&MODEL.replace("BODY", body).replace("LOWER", lower))
}

const OFF: &str = "lower { attention = reference, softmax = reference }";

/// Ways to write attention that are recognised.
fn forms() -> Vec<(&'static str, String)> {
    let grouped = |name, text: &str| (name, format!("{text}{OUT}"));
    vec![
        grouped("masked scores", "p = softmax[pos](where(causal, s, -inf))\n    o = dot[pos](p, v)"),
        grouped("additive mask", "o = dot[pos](softmax[pos](s + where(causal, 0, -inf)), v)"),
        grouped(
            "scaled queries, negated mask",
            "later[seq, pos] = index[pos] > index[seq]
    t = dot[hd](q * (1 / sqrt(hd)), k)
    o = dot[pos](v, softmax[pos](where(later, -inf, t)))",
        ),
        grouped(
            "soft cap, window, segments, one index for both",
            "at = index[seq]
    theirs = at as [seq: pos]
    near[seq, pos] = at - theirs < 2
    packed[batch, seq, pos] = (segment as [seq: pos]) == segment and theirs <= at and near
    o = dot[pos](softmax[pos](where(packed, 5 * tanh(s / 5), -inf)), v)",
        ),
        grouped(
            "softmax of exponentials",
            "z[batch, kv, group, seq, pos] = where(causal, s, -inf)
    e = exp(z - max[pos](z))
    o = dot[pos](e / sum[pos](e), v)",
        ),
        grouped(
            "exponentials without a maximum, written twice",
            "z[batch, kv, group, seq, pos] = where(causal, s, -inf)
    o = dot[pos](exp(z) * (1 / sum[pos](exp(z))), v)",
        ),
        grouped(
            "normalised after the values",
            "z[batch, kv, group, seq, pos] = where(causal, s, -inf)
    e = exp(z - max[pos](z))
    o = dot[pos](e, v) / sum[pos](e)",
        ),
        grouped(
            "learned bias and no mask",
            "bias = table as [seq: pos]
    o = dot[pos](softmax[pos](s + bias), v)",
        ),
        (
            "keys and values repeated for their queries",
            "own = index[heads] / group
    kk = gather[kv](k, own)
    vv = gather[kv](v, own)
    t = dot[hd](dot[d](x, wh), kk)
    o = dot[pos](softmax[pos](where(causal, t, -inf)), vv)
    y = dot[heads, hd](o, vo)"
                .into(),
        ),
        (
            "heads without and with positions",
            "ks = dot[d](x, kn) as [seq: pos]
    ps = rope[turn](dot[d](x, kr), at = index[seq], theta = 100, pairs = half) as [seq: pos]
    qs = rope[turn](dot[d](x, qr), at = index[seq], theta = 100, pairs = half)
    t = (dot[nope](dot[d](x, qn), ks) + dot[turn](qs, ps)) / sqrt(nope + turn)
    vv = dot[d](x, wh) as [seq: pos]
    o = dot[pos](softmax[pos](where(causal, t, -inf)), vv)
    y = dot[heads, hd](o, vo)"
                .into(),
        ),
        (
            "queries renamed instead of keys",
            "qq = dot[d](x, wq) as [seq: at]
    kk = dot[d](x, wk)
    vv = dot[d](x, wv)
    seen[at, seq] = index[seq] <= index[at]
    o = dot[seq](softmax[seq](where(seen, dot[hd](qq, kk), -inf)), vv) as [at: seq]
    y = dot[kv, group, hd](o, wo)"
                .into(),
        ),
    ]
}

/// The first line and the score region of the attention in a text.
fn attention_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(" = attention ")?;
    let (head, rest) = rest.split_once(" {")?;
    let (_, rest) = rest.split_once("score {\n")?;
    let (score, _) = rest.split_once("}\n")?;
    let lines: Vec<&str> =
        score.lines().map(|line| line.split("  //").next().unwrap_or(line).trim()).collect();
    Some(format!("{head}\n    {}\n", lines.join("\n    ").trim_end()))
}

#[test]
fn recognise_attention_in_every_form() {
    let mut found = String::new();
    for (name, body) in forms() {
        let (plain, whole) = (model(&body, OFF), model(&body, ""));
        assert_eq!(attention_in(&print(&plain)), None, "{name}: recognition is off");
        let text = print(&whole);
        let attention = attention_in(&text).unwrap_or_else(|| panic!("{name}:\n{text}"));
        found.push_str(&format!("{name}:\n  {attention}"));
        assert_eq!(near_misses(&whole, &[]), [], "{name}");
        assert_same_numbers(&plain, &whole);
        assert_same_numbers(&with_gradients(plain), &with_gradients(whole));
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "goldens" }, {
        insta::assert_snapshot!("attention", found);
    });
}

#[test]
fn recognised_attention_of_every_form_trains() {
    for (_, body) in forms() {
        trains(&model(&body, ""));
    }
}

#[test]
fn unrecognised_attention_trains() {
    for (_, body) in &forms()[3..5] {
        trains(&model(body, OFF));
    }
}

#[test]
fn queries_without_keys_give_zero_and_pass_no_gradient() {
    // The first query sees nothing; a loss of it alone depends on nothing.
    let first = "first[batch, seq, kv, group, hd] = where(index[seq] == 0, o, 0)
    y = dot[kv, group, hd](first, wo)";
    for body in [
        format!(
            "before[seq, pos] = index[pos] < index[seq]
    o = dot[pos](softmax[pos](where(before, s, -inf)), v)
    {first}"
        ),
        format!(
            "before[seq, pos] = index[pos] < index[seq]
    bias = table as [seq: pos]
    o = std.Attend[seq, pos, hd](q, k, v, mask = before, bias = bias)
    {first}"
        ),
    ] {
        for lower in ["", OFF] {
            let graph = with_gradients(model(&body, lower));
            let environment = sample_environment(&graph, 3);
            let expected = run(&graph, &environment, Mode::F64).unwrap();
            let program = simulate::program(&graph).unwrap();
            let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap();
            let found =
                simulate::run_with(&program, &graph, &environment, &mut |s| kernels.run("train", s)).unwrap();
            for (output, tensor) in expected.0.iter().chain(&found.0) {
                let weight = matches!(output, Output::Report(name) if name.as_str() == "loss_weight");
                assert!(weight || tensor.as_floats().iter().all(|x| *x == 0.0), "{output:?}: {tensor:?}");
            }
        }
    }
}

/// Nearly attention.
fn near() -> Vec<String> {
    let grouped = |text: &str| format!("{text}{OUT}");
    vec![
        grouped("p = softmax[pos](s * dot[hd](q * q, k))\n    o = dot[pos](p, v)"),
        grouped("p = softmax[pos](where(causal, s, -inf))\n    half = p * 0.5\n    o = dot[pos](half, v)"),
        grouped(
            "p = softmax[pos](where(causal, s, -inf))
    o[batch, kv, group, seq, hd] = dot[pos, kv](p, v) * sum[seq](table)",
        ),
        grouped("kk = k * 2\n    o = dot[pos](softmax[pos](dot[hd](q, kk)), v)"),
        grouped(
            "t[batch, kv, group, seq, pos] = s + dot[d](x as [seq: pos], x as [seq: pos])
    o = dot[pos](softmax[pos](t * dot[hd](q, k)), v)",
        ),
        grouped("o = dot[pos](softmax[pos](where(causal, s, index[group])), v)"),
        "kk = dot[d](x, kn) as [seq: pos, nope: turn]
    t = dot[turn](dot[d](x, qr), kk)
    u = dot[pos](softmax[pos](where(causal, t, -inf)), v)
    y = dot[kv, hd](sum[heads](u), sum[group](wo))"
            .into(),
    ]
}

#[test]
fn near_misses_say_what_keeps_a_formula_from_being_attention() {
    let mut found = String::new();
    for body in near() {
        let graph = model(&body, "");
        for miss in near_misses(&graph, &[]) {
            found.push_str(&format!("{miss}\n"));
        }
        assert!(near_misses(&graph, &["attention".into()]).is_empty(), "recognition is off");
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "goldens" }, {
        insta::assert_snapshot!("near_attention", found);
    });
}

/// A head over a vocabulary; `LOSS` is the loss per token.
const HEAD: &str = "spec 1
model M {
    size batch = 2, seq = 5, d = 4, vocab = 7
    input x[batch, seq, d]
    input targets: ids<vocab>[batch, seq]
    param head[d -> vocab] = normal(0.5)
    logits = dot[d](x, head)
    hit[batch, seq, vocab] = index[vocab] == targets
    hot = where(hit, 1, 0)
    top = max[vocab](logits)
    total = sum[vocab](exp(logits))
    LOSS
    loss mean[batch, seq](l)
    LOWER
}
";

fn head(loss: &str, lower: &str) -> Graph {
    graph_of_spec(&HEAD.replace("LOSS", loss).replace("LOWER", lower))
}

#[test]
fn recognise_cross_entropy_in_every_form() {
    let plain = head(
        "l = log(total) - gather[vocab](logits, targets)",
        "lower { loss_head = reference, softmax = reference }",
    );
    assert!(!print(&plain).contains("loss_head"));
    for form in [
        "l = cross_entropy[vocab](logits, targets)",
        "l = log(total) - gather[vocab](logits, targets)",
        "l = -(gather[vocab](logits, targets) - log(total))",
        "l = top + log(sum[vocab](exp(logits - top))) - gather[vocab](logits, targets)",
        "low = logits - top\n    l = log(sum[vocab](exp(low))) - gather[vocab](low, targets)",
        "l = -log(gather[vocab](softmax[vocab](logits), targets))",
        "l = -gather[vocab](log(softmax[vocab](logits)), targets)",
        "l = -1 * gather[vocab](logits - log(total), targets)",
        "l = 0 - gather[vocab](log(exp(logits) / total), targets)",
        "low = logits - top\n    l = -gather[vocab](low - log(sum[vocab](exp(low))), targets)",
        "l = -sum[vocab](hot * log(softmax[vocab](logits)))",
        "l = -sum[vocab](where(hit, logits - log(total), 0))",
        "l = log(total) - dot[vocab](hot, logits)",
        "l = log(total) - sum[vocab](logits * hot)",
        "l = -log(sum[vocab](hot * softmax[vocab](logits)))",
    ] {
        let graph = head(form, "");
        let text = print(&graph);
        assert!(text.contains("loss_head along vocab over d"), "{form}\n{text}");
        assert_eq!(near_misses(&graph, &[]), [], "{form}");
        assert_same_numbers(&plain, &graph);
        assert_same_numbers(&with_gradients(plain.clone()), &with_gradients(graph));
    }
}

#[test]
fn near_misses_say_what_keeps_a_formula_from_being_a_cross_entropy() {
    let mut found = String::new();
    for form in [
        "l = log(total) - gather[vocab](logits, targets) * 0.9",
        // No target, no loss of classes: no note.
        "l = top + log(sum[vocab](exp(logits - top)))",
        "l = cross_entropy[vocab](30 * tanh(logits / 30), targets)",
        "l = cross_entropy[vocab](logits, targets) + 0.1 * log(total)",
    ] {
        let graph = head(form, "");
        assert!(!print(&graph).contains("loss_head"), "{form}");
        for miss in near_misses(&graph, &[]) {
            found.push_str(&format!("{miss}\n"));
        }
        assert!(near_misses(&graph, &["loss_head".into()]).is_empty(), "recognition is off");
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "goldens" }, {
        insta::assert_snapshot!("near_cross_entropy", found);
    });
}
