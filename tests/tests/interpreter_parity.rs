//! The graph interpreter in f64 beside PyTorch in f64, from the same weights on the same tokens (`tests/parity/README.md`).

use mlc::interpret::Mode;
use mlc_tests::parity::{Inputs, Record, distance};
use mlc_tests::training::Training;

/// Both sides round at 1e-16 and follow the same equations; 1e-9 leaves room for a hundred steps to amplify that and none for
/// another epsilon, schedule or clipping rule.
fn is_pytorchs_within_1e_9(model: &str) {
    let record = Record::read(model);
    let exact = record.exact();
    let spec = format!("tests/models/{model}/{model}.spec");
    let mut training = Training::new(&spec, &Inputs::new(model, &record.settings));
    let (mut worst_loss, mut worst_norm) = (0.0, 0.0);
    for (step, (loss, norm)) in exact.loss.iter().zip(&exact.grad_norm).enumerate() {
        let (our_loss, our_norm) = training.step(Mode::F64);
        worst_loss = f64::max(worst_loss, distance(&[our_loss], &[*loss]));
        worst_norm = f64::max(worst_norm, distance(&[our_norm], &[*norm]));
        assert!(worst_loss <= 1e-9, "step {step}: loss {our_loss}, PyTorch {loss}");
        assert!(worst_norm <= 1e-9, "step {step}: gradient norm {our_norm}, PyTorch {norm}");
    }
    println!(
        "{model}, {} steps: losses within {worst_loss:.1e}, gradient norms within {worst_norm:.1e}",
        exact.loss.len()
    );
}

#[test]
fn gqa_in_f64_is_pytorchs_within_1e_9_for_100_steps() {
    is_pytorchs_within_1e_9("gqa");
}

#[test]
fn mla_in_f64_is_pytorchs_within_1e_9_for_50_steps() {
    is_pytorchs_within_1e_9("mla");
}

#[test]
fn mixtral_in_f64_is_pytorchs_within_1e_9_for_50_steps() {
    is_pytorchs_within_1e_9("mixtral");
}

#[test]
fn glam_in_f64_is_pytorchs_within_1e_9_for_50_steps() {
    is_pytorchs_within_1e_9("glam");
}
