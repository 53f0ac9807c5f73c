use crate::pipeline::tests::train_messages;

/// Two values over one axis that rules split over the same mesh axes in another order: no exchange of parts leads from one
/// to the other, since there is nothing to take them to pieces along.
fn model(more: &str) -> String {
    format!(
        "spec 1
model M {{
    size n = 64
    size batch = run, seq = run
    input x[batch, seq]
    block Scale(v[n]) -> [n] {{
        v * 2
    }}
    param w[n] = normal(1)
    a = tanh(w)
    b = Scale@scale(a)
    z[batch, seq] = x * sum[n](b)
    loss mean[batch, seq](z)
}}
mesh {{ p = 8, q = 8 }}
shard {{
    params \"w\": n -> p, q
    values \"a\": n -> p, q
    values \"b\": n -> q, p
{more}}}
train {{ steps = 1, batch = 4, seq = 4, data = synthetic(), optimizer = sgd {{ lr = 1 }} }}
"
    )
}

#[test]
fn replication_is_refused_with_both_shardings_and_a_way_out() {
    insta::assert_snapshot!(train_messages(&model("")), @r#"
error[E0418]: bringing `scale.t` from (n: p q) to (n: q p) would gather it whole on the way
 --> m.spec:7:9
  |
7 |         v * 2
  |         ^^^^^ this value
  |
  = note: each rank would send 252 bytes, where moving its parts should take 8: all_gather over p q along n: 252 bytes, then whole; local_part over q p along n: 0 bytes, then n: q p
  = help: split the same axes over the same mesh axes in the same order on both sides
  = help: or allow it, in `shard`: `allow_replicate "scale"`

error[E0418]: bringing `scale.a.grad` from (n: q p) to (n: p q) would gather it whole on the way
 --> m.spec:7:9
  |
7 |         v * 2
  |         ^^^^^ this value
  |
  = note: each rank would send 252 bytes, where moving its parts should take 8: all_gather over q p along n: 252 bytes, then whole; local_part over p q along n: 0 bytes, then n: p q
  = help: split the same axes over the same mesh axes in the same order on both sides
  = help: or allow it, in `shard`: `allow_replicate "scale"`
"#);
}

#[test]
fn replication_is_allowed_by_path_of_the_value_or_of_what_is_around_it() {
    for glob in ["scale", "**", "s*"] {
        let allowed = model(&format!("    allow_replicate \"{glob}\"\n"));
        assert_eq!(train_messages(&allowed), "", "{glob}");
    }
    assert_ne!(train_messages(&model("    allow_replicate \"a\"\n")), "");
}
