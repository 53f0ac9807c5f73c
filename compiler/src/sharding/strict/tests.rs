use crate::pipeline::tests::train_messages;

/// A residual stream of two layers with rules for tensor parallelism, its stream split along the sequence, and more lines.
fn model(rules: &str) -> String {
    format!(
        "spec 1
model M {{
    size vocab = 8, d = 4, ff = 8, layers = 2
    size batch = run, seq = run
    input tokens: ids<vocab>[batch, seq]
    input targets: ids<vocab>[batch, seq]
    block Mlp(x[batch, seq, d]) -> [batch, seq, d] {{
        param up[d -> ff], down[ff -> d] = normal(1)
        y = tanh(dot[d](x, up))
        dot[ff](y, down)
    }}
    block Layer(x[batch, seq, d]) -> [batch, seq, d] {{
        x + Mlp@mlp(x)  role residual
    }}
    param embed[vocab, d], head[d -> vocab] = normal(1)
    x = repeat[layers](Layer@layer, gather[vocab](embed, tokens))
    loss mean[batch, seq](cross_entropy[vocab](dot[d](x, head), targets))
}}
mesh {{ data = 2, tensor = 2 }}
shard {{
    mode = strict
    batch -> data
    ff -> tensor
    params \"*\": d -> none
    role residual: seq -> tensor
{rules}}}
train {{ steps = 1, batch = 4, seq = 4, data = synthetic(), optimizer = sgd {{ lr = 1 }} }}
"
    )
}

#[test]
fn strict_lists_the_choices_of_an_op_whose_operands_do_not_meet() {
    insta::assert_snapshot!(train_messages(&model("")), @r#"
error[E0419]: dot of layer.{i}.mlp takes values that do not lie as it needs them
 --> m.spec:9:9
  |
9 |         y = tanh(dot[d](x, up))
  |         ^^^^^^^^^^^^^^^^^^^^^^^ no rule says what moves
  |
  = note: choices, cheapest first: `layer.{i}.mlp.x` from (batch: data, seq: tensor) to (batch: data), 64 bytes; or `layer.{i}.mlp.x` from (batch: data, seq: tensor) to (whole), 192 bytes; or `layer.{i}.mlp.up` from (ff: tensor) to (whole), 64 bytes
  = help: say so: `values "layer.*.mlp.x": seq -> none`
  = help: or leave it to the cheapest choice: `mode = auto` in `shard`
"#);
}

#[test]
fn strict_takes_what_rules_ask_for() {
    let ruled = model("    values \"layer.*.mlp.x\": seq -> none\n");
    assert_eq!(train_messages(&ruled), "");
    // Nothing contends where the stream stays whole.
    let whole = model("").replace("    role residual: seq -> tensor\n", "");
    assert_eq!(train_messages(&whole), "");
    // Parameters at rest are gathered because a rule says where they rest.
    let resting = whole.replace("    params \"*\": d -> none\n", "    params \"**\": d -> data\n");
    assert_eq!(train_messages(&resting), "");
}

#[test]
fn strict_is_off_unless_asked_for() {
    assert_eq!(train_messages(&model("").replace("mode = strict", "mode = auto")), "");
    assert_eq!(train_messages(&model("").replace("    mode = strict\n", "")), "");
}

#[test]
fn strict_leaves_no_value_to_two_rules_by_axis() {
    let two = model("    seq -> tensor\n").replace("    role residual: seq -> tensor\n", "");
    assert_eq!(train_messages(&two.replace("mode = strict", "mode = auto")), "");
    insta::assert_snapshot!(train_messages(&two), @r#"
error[E0411]: the mesh axis `tensor` would split two axes of `layer.{i}.mlp.y`: `ff` and `seq`
  --> m.spec:25:5
   |
23 |     ff -> tensor
   |     ------------ and by this one
24 |     params "*": d -> none
25 |     seq -> tensor
   |     ^^^^^^^^^^^^^ by this rule
   |
   = help: exempt one: `values "layer.{i}.mlp.y": seq -> none`
"#);
}
