//! Losses of compiled trainings beside those of PyTorch and JAX, from the same weights on the same tokens (`tests/parity/README.md`).

use mlc_tests::harness::{Scratch, build, steps, succeed, train};
use mlc_tests::parity::{Inputs, Record, distance};

/// Builds `tests/models/{model}/{model}.spec` with these overrides, trains it from the parity inputs and returns the losses.
fn losses(model: &str, record: &Record, sets: &[&str]) -> Vec<f64> {
    let folder = Scratch::new(&format!("parity-{model}"));
    let (weights, tokens) = Inputs::new(model, &record.settings).write(model, folder.path());
    let binary = folder.join(model);
    build(&format!("tests/models/{model}/{model}.spec"), &binary, sets);
    let data = format!("records:{}", tokens.display());
    let mut command = train(&binary, folder.path(), &["--data", &data, "--checkpoint-every", "never"]);
    succeed(command.arg("--init").arg(&weights));
    let losses: Vec<f64> = steps(&folder.join("metrics.jsonl")).iter().map(|step| step.loss).collect();
    assert_eq!(losses.len(), record.settings.steps);
    losses
}

/// 5e-5 is how far the farthest of the other correct implementations in `tests/parity/README.md` is from PyTorch eager.
/// Ten steps and the weights take 20 s on two cores and 2.1 GiB.
#[test]
fn t1_losses_are_as_near_to_pytorchs_as_those_of_its_peers() {
    let record = Record::read("t1");
    let ours = losses("t1", &record, &[]);
    for theirs in record.f32_runs() {
        let off = distance(&ours, &theirs.loss);
        println!("t1 f32: {off:.2e} from PyTorch with {} threads", theirs.threads);
        assert!(off <= 5e-5, "{off:.2e}\nours {ours:?}\ntheirs {:?}", theirs.loss);
    }
}

#[test]
fn t2_losses_are_pytorchs_within_2e_5() {
    let record = Record::read("t2");
    let ours = losses("t2", &record, &[]);
    for theirs in record.f32_runs() {
        let off = distance(&ours, &theirs.loss);
        println!("t2 f32: {off:.2e} from PyTorch with {} threads", theirs.threads);
        assert!(off <= 2e-5, "{off:.2e}\nours {ours:?}\ntheirs {:?}", theirs.loss);
    }
}

/// The losses of a compiled training are no farther from PyTorch's f64 than twice what PyTorch's own f32 is.
fn are_as_near_to_exact_as_twice_pytorchs(model: &str) {
    let record = Record::read(model);
    let exact = &record.exact().loss;
    let allowed = 2.0 * record.f32_runs().map(|run| distance(&run.loss, exact)).fold(0.0, f64::max);
    let off = distance(&losses(model, &record, &[]), exact);
    println!("{model} f32: {off:.2e} from f64, {allowed:.2e} allowed");
    assert!(off <= allowed, "{off:.2e} from PyTorch's f64, {allowed:.2e} allowed");
}

#[test]
fn gqa_losses_are_as_near_to_exact_as_twice_pytorchs() {
    are_as_near_to_exact_as_twice_pytorchs("gqa");
}

#[test]
fn mla_losses_are_as_near_to_exact_as_twice_pytorchs() {
    are_as_near_to_exact_as_twice_pytorchs("mla");
}

#[test]
fn mixtral_losses_are_as_near_to_exact_as_twice_pytorchs() {
    are_as_near_to_exact_as_twice_pytorchs("mixtral");
}

#[test]
fn glam_losses_are_as_near_to_exact_as_twice_pytorchs() {
    are_as_near_to_exact_as_twice_pytorchs("glam");
}

/// The farthest ours may be from f64 is what PyTorch's and JAX's bf16 are at theirs.
fn bf16_is_no_farther_than_the_peers(model: &str) {
    let record = Record::read(model);
    let exact = &record.exact().loss;
    let peers: Vec<f64> = record.bf16_runs().map(|run| distance(&run.loss, exact)).collect();
    let allowed = peers.iter().copied().fold(0.0, f64::max);
    let ours = losses(model, &record, &["train.precision=bf16"]);
    let off = distance(&ours, exact);
    println!("{model} bf16: {off:.2e} from f64, the peers {peers:?}");
    assert!(off > 1e-6, "{off:.2e}: nothing was rounded to bf16");
    assert!(off <= allowed, "{off:.2e} from f64, {allowed:.2e} allowed\nours {ours:?}\nexact {exact:?}");
}

#[test]
fn t2_in_bf16_is_no_farther_from_exact_than_pytorch_and_jax() {
    bf16_is_no_farther_than_the_peers("t2");
}

#[test]
fn gqa_in_bf16_is_no_farther_from_exact_than_pytorch_and_jax() {
    bf16_is_no_farther_than_the_peers("gqa");
}

/// Most steps of an update are shorter than half the spacing of bf16. Rounded to nearest they are lost, rounded at random they add up.
#[test]
fn gqa_at_rest_in_bf16_needs_rounding_at_random() {
    let record = Record::read("gqa");
    let exact = &record.exact().loss;
    let off = |rounding: &str| {
        let roles = "params = bf16, matmul = bf16, stored = bf16";
        let set = format!("train.precision={{ {roles}, rounding = {rounding} }}");
        distance(&losses("gqa", &record, &[&set]), exact)
    };
    let (nearest, at_random) = (off("nearest"), off("stochastic"));
    println!(
        "gqa at rest in bf16: {nearest:.1e} from f64 with nearest, {at_random:.1e} with stochastic rounding"
    );
    assert!(at_random < 0.005 && nearest > 10.0 * at_random, "{nearest:.1e}, {at_random:.1e}");
}
