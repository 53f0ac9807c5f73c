//! One golden text for each error of the language.
//!
//! Each test holds the smallest file that raises the error; its snapshot is the message as the user reads it. A test also
//! says which code must be among the messages, so that a snapshot accepted by mistake still fails.

use super::check::{LLAMA, LLAMA70B};
use crate::spec::diagnostic::render_all;
use crate::spec::{MemoryLoader, SourceMap, check_for};

/// The messages for `main.spec`, and the codes among them.
fn messages(
    text: &str,
    sets: &[&str],
    beside: &[(&str, &str)],
    devices: Option<u64>,
) -> (String, Vec<&'static str>) {
    let mut sources = SourceMap::new();
    let mut files = vec![("main.spec".to_string(), text.to_string()), ("llama.spec".into(), LLAMA.into())];
    files.extend(beside.iter().map(|(n, t)| (n.to_string(), t.to_string())));
    let loader = MemoryLoader { files };
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let found = match check_for(&mut sources, &loader, "main.spec", &sets, devices) {
        Ok((_, found)) | Err(found) => found,
    };
    (render_all(&found, &sources, false), found.iter().map(|d| d.code.id).collect())
}

/// A model around these statements, with sizes b, n, m and inputs x[b, n], y[b, m], ids[b].
fn model(statements: &str) -> String {
    let lines: Vec<String> = statements.trim_matches('\n').lines().map(|l| format!("    {l}")).collect();
    format!(
        "spec 1\nmodel M {{\n    size b = 4, n = 8, m = 6\n    input x[b, n]\n    input y[b, m]\n    input ids: ids<n>[b]\n{}\n}}\n",
        lines.join("\n")
    )
}

/// A run of the shipped Llama around these lines.
fn run(lines: &str) -> String {
    format!("spec 1\nuse \"llama.spec\" as Llama with {{ layers = 4 }}\n{}", lines.trim_start_matches('\n'))
}

/// A complete `train` section with these lines in it.
fn train(lines: &str) -> String {
    run(&format!(
        "train {{\n    steps = 100, batch = 8, seq = 16, data = synthetic()\n    optimizer = adamw {{ lr = 1e-3 }}\n{}\n}}\n",
        lines.trim_matches('\n')
    ))
}

/// A model over a real input, with a run.
fn with_run(statements: &str, sizes: &str) -> String {
    let lines: Vec<String> = statements.lines().map(|l| format!("    {l}")).collect();
    format!(
        "spec 1\nmodel M {{\n    size batch = run, seq = run{sizes}\n    input x[batch, seq]\n{}\n}}\ntrain {{ steps = 1, batch = 1, seq = 16, data = synthetic(), optimizer = sgd {{ lr = 1 }} }}\n",
        lines.join("\n")
    )
}

/// Attention over its own input with these options.
fn attend(options: &str) -> String {
    let text = format!(
        "param k[seq, hd] = ones\nq[batch, seq, hd] = x * k\nr = k as [seq: pos]\nm[seq, pos] = index[pos] <= index[seq]\no = std.Attend[seq, pos, hd](q, r, r, {options})\nloss mean[batch, seq, hd](o)"
    );
    with_run(&text, ", hd = 4")
}

macro_rules! golden {
    ($($name:ident: $code:literal, $text:expr $(, sets $sets:expr)? $(, beside $beside:expr)? $(, devices $devices:literal)?;)*) => {$(
        #[test]
        fn $name() {
            let (mut sets, mut beside): (&[&str], &[(&str, &str)]) = (&[], &[]);
            let mut devices: Option<u64> = None;
            let _ = (&mut sets, &mut beside, &mut devices);
            $(sets = &$sets;)?
            $(beside = &$beside;)?
            $(devices = Some($devices);)?
            let (text, codes) = messages(&$text, sets, beside, devices);
            assert!(codes.contains(&$code), "expected {} among {codes:?}:\n{text}", $code);
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "errors" }, {
                insta::assert_snapshot!(concat!($code, "_", stringify!($name)), text);
            });
        }
    )*};
}

const LOSS: &str = "loss mean[b](sum[n](x))";

/// Statements that make `z` from tokens x and gates g.
fn routed(statements: &str) -> String {
    format!(
        "spec 1\nmodel M {{\nsize batch = 2, s = 6, e = 4, n = 3, m = 5\ninput x[batch, s, n]\ninput g[batch, s, e]\ninput y[m]\n{statements}\nloss mean[batch, s](sum[n](z) + sum[m](y))\n}}\n"
    )
}

golden! {
    // ---- syntax and limits
    syntax_error: "E0101", "spec 1\nmodel M {\n    size d = = 4\n}\n";
    syntax_unclosed_brace: "E0101", "spec 1\nmodel M {\n    size d = 4\n";
    syntax_bad_section: "E0101", "spec 1\ntrain { steps 100 }\n";
    syntax_line_broken_before_operator: "E0101", model("z = x\n  + x\nloss mean[b, n](z)");
    syntax_keyword_as_name: "E0101", model("loss = x");
    keyword_as_axis: "E0101", model("z[size] = x");
    comparisons_do_not_chain: "E0101", model("z = 1 < x < 2");
    syntax_errors_of_every_item: "E0101", "spec 1\nmodel M {\n    size d = = 4\n}\ntrain {\n    steps 100\n}\nmesh { data = 8\nshard { d -> data }\ntarget cpu { memory = }\n";
    version_missing: "E0102", "model M {}\n";
    version_unknown: "E0102", "spec 2\nmodel M {}\n";
    nesting_too_deep: "E0103", model(&format!("z = {}x{}", "(".repeat(80), ")".repeat(80)));
    operators_too_many: "E0103", model(&format!("z = x{}", " + x".repeat(300)));
    number_with_unit_in_model: "E0105", model("z = x * 2GiB\nloss mean[b, n](z)");
    number_with_unknown_suffix: "E0105", model("z = x * 2Q\nloss mean[b, n](z)");
    kernel_file_missing: "E0106", model(&format!("kernel \"swiglu.mlri\" for F\n{LOSS}")), beside [("swiglu.mlir", "")];
    kernel_computes_nothing: "E0406", model("block F(x[b, n]) -> [b, n] {\n    x * 2\n}\nkernel \"k.mlir\" for F@mpl\nloss mean[b, n](F@mlp(x))"), beside [("k.mlir", "")];
    kernel_for_an_expression: "E0205", model(&format!("kernel \"k.mlir\" for F(x)\n{LOSS}")), beside [("k.mlir", "")];
    kernel_in_a_block: "E0108", model("block F(x[b, n]) -> [b, n] {\n    kernel \"k.mlir\" for F\n    x * 2\n}\nloss mean[b, n](F(x))"), beside [("k.mlir", "")];
    file_missing: "E0106", "spec 1\nuse \"lama.spec\" as Llama\n";
    use_cycle: "E0107", "spec 1\nuse \"a.spec\" as A\n", beside [("a.spec", "spec 1\nuse \"main.spec\" as B\n")];
    loss_in_block: "E0108", model(&format!("block F(x[b, n]) -> [b, n] {{\n    loss mean[b, n](x)\n    x\n}}\n{LOSS}"));
    value_not_last: "E0108", model(&format!("block F(x[b, n]) -> [b, n] {{\n    x * 2\n    h = x\n}}\n{LOSS}"));
    expression_without_name: "E0108", model(&format!("x * 2\n{LOSS}"));

    // ---- names
    unknown_name: "E0201", model("width = sum[n](x)\nloss mean[b](widht)");
    unknown_axis: "E0201", model("loss mean[b](sum[nn](x))");
    unknown_function: "E0201", model("loss mean[b](sum[n](sigmiod(x)))");
    blocks_are_closed: "E0201", model("block F(x[b, n]) -> [b, n] {\n    x * y\n}\nloss mean[b, n](F(x))");
    duplicate_definition: "E0202", model(&format!("z = x\nz = x * 2\n{LOSS}"));
    aux_twice: "E0202", model(&format!("block F(x[b, n]) -> [b, n] {{\n    aux extent = mean[b, n](x)\n    aux extent = mean[b, n](x * x)\n    x\n}}\nz = F(x)\n{LOSS}"));
    aux_logged_already: "E0202", model(&format!("aux lr = mean[b, n](x)\n{LOSS}"));
    duplicate_instance: "E0202", model("block F(x[b, n]) -> [b, n] {\n    param w[n] = ones\n    x * w\n}\nloss mean[b, n](F(F(x)))");
    unused_size: "E0203", "spec 1\nmodel M {\n    size b = 4, bb = 8\n    input x[b]\n    loss mean[b](x)\n}\n";
    block_recursion: "E0204", model("block F(x[b, n]) -> [b, n] {\n    G(x)\n}\nblock G(x[b, n]) -> [b, n] {\n    F(x) + 1\n}\nloss mean[b, n](F(x))");
    argument_missing: "E0205", model("loss mean[b](dot[n](x))");
    argument_unknown: "E0205", model("block F(x[b, n], eps = 1e-5) -> [b, n] {\n    x + eps\n}\nloss mean[b, n](F(x, esp = 1))");
    argument_not_constant: "E0205", model("param w[n] = normal(x)\nloss mean[b, n](x * w)");
    generic_axis_missing: "E0205", model("block F[a](x[.., a]) -> [.., a] {\n    x\n}\nloss mean[b, n](F(x))");
    block_as_value: "E0206", model("block F(x[b, n]) -> [b, n] {\n    x\n}\nloss mean[b, n](F + x)");
    list_as_value: "E0206", model("loss mean[b, n](x * [1, 2])");
    function_not_available: "E0207", model("loss mean[b, n](all_gather(x, n))");

    positions_beyond_table: "E0404", model("param table[m] = normal(1)\nloss mean[b, n](x * gather[m](table, index[n]))");

    std_file_missing: "E0106", "spec 1\nuse \"std/attentoin.spec\"\n";
    rope_scaling_unknown: "E0205", model("loss mean[b, n](rope[n](x, at = 1 * index[b], theta = 1e4, pairs = half, scaling = yarn(8)))");
    rope_scaling_range: "E0404", model("loss mean[b, n](rope[n](x, index[b], 1e4, half, llama3(8, low = 4, high = 1, original = 64)))");
    size_function_unknown: "E0308", "spec 1\nmodel M {\n    size b = ceil(7 / 2)\n    input x[b]\n    loss mean[b](x)\n}\n";
    size_round_up_arguments: "E0205", "spec 1\nmodel M {\n    size b = round_up(7 / 2)\n    input x[b]\n    loss mean[b](x)\n}\n";

    // ---- axes
    slice_beyond_its_axis: "E0404", model("loss mean[b, m](slice[n, m](x, at = 3))");
    slice_axis_twice: "E0311", model("z[b, n, m] = x * y\nloss mean[b, m](sum[n](slice[n, m](z)))");
    concat_without_axes: "E0205", model("loss mean[b](sum[m](concat[m](x, y)))");
    concat_of_another_size: "E0302", model("size all = 13\nloss mean[b, all](concat[all](n = x, m = y))");
    concat_part_missing: "E0301", model("loss mean[b](sum[all](concat[all](m = x, m = y)))");
    concat_union: "E0305", model("param v[n, m] = ones\nloss mean[b](sum[all](concat[all](n = x, m = v)))");
    axis_not_in_operand: "E0301", model("loss mean[b](sum[m](x))");
    argument_lacks_axis: "E0301", model("block F(x[.., n]) -> [.., n] {\n    x\n}\nloss mean[b, m](F(y))");
    size_mismatch: "E0302", model("loss mean[b](sum[n](x + y as [m: n]))");
    contraction_missing: "E0303", model("param w[m -> n] = ones\nz = dot[n](x, y)\nloss mean[b](sum[m](z * 0 + y) + sum[m](dot[n](x, w)))");
    output_has_extra_axis: "E0304", model("block F(x[b, n]) -> [b] {\n    x * 2\n}\nloss mean[b](F(x))");
    union_without_annotation: "E0305", model("z = x * y\nloss mean[b, n, m](z)");
    output_lacks_axis: "E0306", model("z[b, n, m] = x\nloss mean[b, n, m](z)");
    element_type: "E0307", model("loss mean[b, n](where(x, 1, 0))");
    size_division: "E0308", "spec 1\nmodel M {\n    size b = 4, n = b / 3\n    input x[b, n]\n    loss mean[b, n](x)\n}\n";
    size_zero: "E0308", "spec 1\nmodel M {\n    size b = 0\n    input x[b]\n    loss mean[b](x)\n}\n";
    numel_overflow: "E0309", "spec 1\nmodel M {\n    size b = 4, p = 16777216, q = 33554432, r = 16777216\n    input x[b]\n    param w[p, q, r] = zeros\n    loss mean[b](x + sum[p, q, r](w))\n}\n";
    carry_mismatch: "E0310", model("param w[n -> m] = ones\nblock F(x[b, n]) -> [b, m] {\n    param v[n -> m] = ones\n    dot[n](x, v)\n}\nloss mean[b, m](repeat[3](F@f, x) + dot[n](x, w))");
    axis_twice: "E0311", model("param w[n -> n] = ones\nloss mean[b, n](x)");
    loss_missing: "E0312", model("z = x");
    loss_twice: "E0312", model(&format!("{LOSS}\n{LOSS}"));
    loss_axes: "E0312", model("loss mean[b](x)");
    loss_form: "E0312", model("loss sum[b, n](x)");
    cycle_length: "E0313", model("block F(x[b, n], s) -> [b, n] {\n    x * s\n}\nloss mean[b, n](repeat[4](F@f, x, s = [1, 2, 3]))");

    attend_mask_axis: "E0301", attend("mask = x > 0, bias = k");
    attend_mask_of_numbers: "E0307", attend("mask = where(m, 1.0, 0.0)");
    attend_window_empty: "E0404", attend("causal = true, window = 0");
    attend_soft_cap_sign: "E0404", attend("soft_cap = -30");

    // ---- runs
    unknown_key: "E0401", train("    chekpoint = { every = 5 }");
    unknown_key_inside: "E0401", train("    log = { evry = 5 }");
    unknown_key_elsewhere: "E0401", train("    clip = 1.0");
    unknown_size_in_with: "E0401", "spec 1\nuse \"llama.spec\" as Llama with { layer = 4 }\n";
    value_type: "E0402", train("    seed = \"one\"");
    value_word: "E0402", train("    precision = { matmul = bf61 }");
    optimizer_unknown: "E0402", run("train { steps = 1, batch = 1, seq = 16, data = synthetic(), optimizer = adam { lr = 1 } }\n");
    muon_of_a_vector: "E0402", run("train {\n    steps = 1, batch = 1, seq = 16, data = synthetic()\n    optimizer = muon { lr = 1, params \"**.wq\" { rule = otherwise }, params \"embed\" { rule = muon } }\n}\n");
    group_key_of_another_rule: "E0401", run("train {\n    steps = 1, batch = 1, seq = 16, data = synthetic()\n    optimizer = sgd { lr = 1, params \"embed\" { betas = (0.8, 0.9) } }\n}\n");
    decay_by_unknown: "E0402", run("train { steps = 1, batch = 1, seq = 16, data = synthetic(), optimizer = lion { lr = 1, decay_by = gradient } }\n");
    freeze_hits_nothing: "E0406", train("") + "freeze \"embed\" except \"lora\"\n";
    freeze_part_of_repeat: "E0407", train("") + "freeze \"layer.0.**\"\n";
    freeze_everything: "E0404", train("") + "freeze \"embed\"\nfreeze \"**\"\n";
    adapter_not_available: "E0207", train("") + "adapter lora { rank = 4, on = \"**.wq\" }\n";
    target_cuda_not_available: "E0207", train("") + "target cuda { arch = sm_90a }\n";
    precision_glob: "E0406", train("    precision = { matmul = bf16, params \"**.router\": f32 }");
    rounding_of_nothing: "E0108", train("    precision = { rounding = stochastic }");
    precision_word: "E0402", train("    precision = bf61");
    pack_without_use: "E0205", train("    pack = documents(end = 0)");
    pack_without_end: "E0403", train("    pack = documents");
    missing_key: "E0403", run("train { steps = 1, batch = 1, seq = 16, data = synthetic() }\n");
    dropout_rate: "E0404", model("loss mean[b, n](dropout(x, 1.5))");
    value_range: "E0404", train("    eval = { data = synthetic(), batches = 0 }");
    schedule_too_long: "E0404", train("    schedule = warmup(200)");
    batch_does_not_divide: "E0405", train("    microbatch = 3");
    tokens_do_not_divide: "E0405", run("train { steps = 1, batch = 100 tokens, seq = 16, data = synthetic(), optimizer = sgd { lr = 1 } }\n");
    glob_hits_nothing: "E0406", run("train {\n    steps = 1, batch = 1, seq = 16, data = synthetic()\n    optimizer = sgd { lr = 1, params \"**.nrom*.w\" { decay = 0 } }\n}\n");
    rule_hits_part_of_repeat: "E0407", run("train {\n    steps = 1, batch = 1, seq = 16, data = synthetic()\n    optimizer = sgd { lr = 1, params \"layer.3.**\" { decay = 0 } }\n}\n");
    parameter_untouched: "E0408", run("mesh { tensor = 2 }\nshard {\n    ff -> tensor\n}\n");
    axis_indivisible: "E0409", run("mesh { tensor = 5 }\nshard {\n    kv, seq -> tensor\n    d -> none\n}\n");
    mesh_axis_twice: "E0411", run("mesh { tensor = 2 }\nshard {\n    ff, d -> tensor\n    vocab -> none\n}\n");
    mesh_axis_unknown: "E0201", run("mesh { tensor = 2 }\nshard {\n    ff -> tenser\n}\n");
    mesh_axis_twice_on_a_value: "E0411", run("mesh { tensor = 2 }\nshard {\n    ff, vocab -> tensor\n    role residual: seq -> tensor\n    values \"layer.*.h\": d -> tensor\n    d -> none\n    values \"layer.*\": d -> tensor\n}\n");
    shard_key: "E0401", run("mesh { tensor = 2 }\nshard {\n    mod = strict\n    ff, vocab -> tensor\n    d -> none\n}\n");
    shard_mode: "E0402", run("mesh { tensor = 2 }\nshard {\n    mode = careful\n    ff, vocab -> tensor\n    d -> none\n}\n");
    replicate_nothing: "E0406", run("mesh { tensor = 2 }\nshard {\n    allow_replicate \"layer.*.attention\"\n    ff, vocab -> tensor\n    d -> none\n}\n");
    mesh_axis_twice_at_rest: "E0411", run("mesh { tensor = 2 }\nshard {\n    ff, vocab -> tensor\n    params \"**\": d -> tensor\n}\n");
    mesh_axis_splits_one_axis_twice: "E0411", run("mesh { tensor = 2 }\nshard {\n    ff -> tensor, tensor\n    d -> none\n}\n");
    mesh_product: "E0410", run("mesh { data = 4, tensor = 2 }\nshard {\n    batch -> data\n    d -> none\n    ff -> tensor\n}\n"), devices 16;
    mesh_auto_out_of_range: "E0410", run("mesh { data = auto(1..4) over nodes, tensor = 2 }\nshard {\n    batch -> data\n    d -> none\n    ff -> tensor\n}\n"), devices 16;
    mesh_auto_not_whole: "E0410", run("mesh { data = auto, tensor = 8 }\nshard {\n    batch -> data\n    d -> none\n    ff -> tensor\n}\n"), devices 12;
    mesh_auto_twice: "E0410", run("mesh { data = auto(1..2), tensor = auto(1..4) }\nshard {\n    batch -> data\n    d -> none\n    ff -> tensor\n}\n"), devices 16;
    devices_without_mesh: "E0410", train(""), devices 8;
    mesh_axis_called_none: "E0108", run("mesh { none = 2 }\n");
    mesh_size: "E0402", run("mesh { data = 2.5, tensor = auto(4..2), stage = 2 stages }\n");
    mesh_order_lacks_an_axis: "E0402", run("mesh { data = 2, tensor = 2, order = [tensor] }\n");
    mesh_order_unknown_axis: "E0402", run("mesh { data = 2, tensor = 2, order = [tensor, dat] }\n");
    mesh_order_twice: "E0402", run("mesh { data = 2, tensor = 2, order = [tensor, data, tensor] }\n");
    mesh_order_form: "E0402", run("mesh { data = 2, tensor = 2, order = rows }\n");
    pipeline_axis_in_a_rule: "E0206", run("mesh { stage = 2 pipeline }\nshard {\n    ff -> stage\n    d -> none\n}\n");
    shard_batch_jointly: "E0108", run("mesh { data = 2 }\nshard {\n    (batch seq) -> data\n    d -> none\n}\n");
    shard_joint_indivisible: "E0409", run("mesh { tensor = 48 }\nshard {\n    (kv group) -> tensor\n    d -> none\n}\n");
    shard_cuts_do_not_nest: "E0409", run("mesh { tensor = 12 }\nshard {\n    (kv vocab) -> tensor\n    (group ff) -> tensor\n    d -> none\n}\n"), sets ["Llama.kv=4", "Llama.group=6"];
    shard_axis_twice: "E0311", run("mesh { tensor = 2 }\nshard {\n    (kv kv) -> tensor\n    d -> none\n}\n");
    shard_axis_of_nothing_named: "E0406", run("mesh { tensor = 2 }\nshard {\n    role residual: ff -> tensor\n    d -> none\n}\n");
    shard_role_unknown: "E0406", run("mesh { tensor = 2 }\nshard {\n    role resid: seq -> tensor\n    d -> none\n}\n");
    shard_params_hit_nothing: "E0406", run("mesh { tensor = 2 }\nshard {\n    params \"**.wx\": d -> tensor\n    d -> none\n}\n");
    shard_values_hit_nothing: "E0406", run("mesh { tensor = 2 }\nshard {\n    values \"layer.*.hh\": seq -> tensor\n    d -> none\n}\n");
    shard_params_part_of_repeat: "E0407", run("mesh { tensor = 2 }\nshard {\n    params \"layer.3.**\": d -> tensor\n    d -> none\n}\n");
    shard_values_part_of_repeat: "E0407", run("mesh { tensor = 2 }\nshard {\n    values \"layer.3.h\": seq -> tensor\n    d -> none\n}\n");
    batch_does_not_divide_over_data_shards: "E0405", train("    microbatch = 2") + "mesh { data = 8 }\nshard {\n    batch -> data\n    d -> none\n}\n";
    batch_smaller_than_data_shards: "E0405", train("") + "mesh { data = 3 }\nshard {\n    batch -> data\n    d -> none\n}\n";
    shard_settings_without_mesh: "E0408", train("") + "shard {\n    mode = strict\n}\n";
    mesh_order_without_axes: "E0402", train("") + "mesh { order = [data] }\n";
    store_without_mesh: "E0408", train("") + "store { params = whole }\n";
    mesh_without_rules: "E0408", train("") + "mesh { data = 2 }\n";
    // ---- mixture of experts
    route_one_axis: "E0205", routed("r = route[e](g)\nz = combine(dispatch(x, r), r)");
    route_too_many_choices: "E0404", routed("r = route[s, e](g, k = 5)\nz = combine(dispatch(x, r), r)");
    route_capacity: "E0404", routed("r = route[s, e](g, k = 2, capacity = 0)\nz = combine(dispatch(x, r), r)");
    route_as_value: "E0206", routed("r = route[s, e](g)\nz = x * r");
    route_expected: "E0206", routed("r = route[s, e](g)\nz = combine(dispatch(x, g), r)");
    route_of_the_batch: "E0205", routed("r = route[batch, e](g)\nz = combine(dispatch(x, r), r)");
    route_in_an_expression: "E0108", routed("z = x * sum[e](route[s, e](g))");
    route_axis_missing: "E0301", routed("r = route[n, e](g)\nz = combine(dispatch(x, r), r)");
    route_row_sizes: "E0302", routed("r = route[s, e](g)\nq = route[s, e](g, tile = 4)\nz = combine(dispatch(x, r), r) + combine(dispatch(x, q), q)");
    route_choice_by_other_axes: "E0304", routed("r = route[s, e](g, select = x)\nz = combine(dispatch(x, r), r)");
    combine_before_dispatch: "E0301", routed("r = route[s, e](g, k = 2, capacity = 1)\nz = combine(x, r)");
    dot_by_without_experts: "E0301", routed("param w[n -> m] = ones\nr = route[s, e](g)\nz = combine(dot[n](dispatch(x, r), w, by = r), r)");
    load_balance_axis: "E0301", routed("r = route[s, e](g)\naux even = load_balance[n](r)\nz = combine(dispatch(x, r), r)");
    names_incomplete: "E0412", model("param w[n] = ones\nparam v[n] = ones\nloss mean[b, n](x * w * v)\nnames hf {\n    \"w\" <-> \"model.w\"\n}");
    names_twice: "E0413", model("param w[n] = ones\nloss mean[b, n](x * w)\nnames hf {\n    \"w\" <-> \"a\"\n    \"w\" <-> \"b\"\n}");
    names_layout: "E0413", model("param w[n -> m] = ones\nloss mean[b, m](dot[n](x, w))\nnames hf {\n    \"w\" <-> \"a\" as [m]\n}");
    names_unknown_path: "E0406", model("param weight[n] = ones\nloss mean[b, n](x * weight)\nnames hf {\n    \"wieght\" <-> \"a\"\n}");
    model_missing: "E0414", "spec 1\nmesh { data = 2 }\n";
    model_choice: "E0414", "spec 1\nuse \"llama.spec\" as A\nuse \"llama.spec\" as B\n";
    vocabulary_too_small: "E0415", "spec 1\nuse \"llama.spec\" as Llama with { vocab = 128 }\ntrain { steps = 1, batch = 1, seq = 16, data = bytes(\"a.txt\"), optimizer = sgd { lr = 1 } }\n";

    // ---- overrides
    set_unknown_model: "E0416", run(""), sets ["Lama.layers=4"];
    set_unknown_size: "E0401", run(""), sets ["Llama.leyers=4"];
    set_unknown_key: "E0401", train(""), sets ["train.optimizer.rl=1"];
    set_wrong_type: "E0402", train(""), sets ["train.steps=many"];
    set_unknown_target_key: "E0401", train(""), sets ["target.bogus=1"];
    set_unknown_arch: "E0402", train(""), sets ["target.arch=nonsense"];
    arch_unknown: "E0402", train("") + "target cpu { arch = x86-64-v5 }\n";
    set_inside_schedule: "E0416", train(""), sets ["train.schedule.warmup.steps=5"];
    set_syntax: "E0101", train(""), sets ["train.steps"];

    // ---- all errors of a file
    all_errors_are_reported: "E0301", model("a = sum[m](x)\nc = widht + 1\nparam w[nn] = ones\nz = x * y\nloss mean[b](sum[n](x) + a)");
}

#[test]
fn every_error_that_the_front_end_can_raise_has_a_golden_text() {
    // Raised where a kernel meets its block, and where values meet ops.
    let elsewhere = ["E0417", "E0418", "E0419"];
    // Limits that take megabytes of text to reach; tested in `limits.rs`.
    let limits = ["E0104"];
    let notes = ["N0001", "N0002", "N0003", "N0004", "N0005", "N0006", "N0007"];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/spec/tests/errors");
    let files: Vec<String> = std::fs::read_dir(folder)
        .expect("goldens")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .collect();
    for code in crate::spec::codes::ALL {
        let listed = [&elsewhere[..], &limits, &notes].iter().any(|l| l.contains(&code.id));
        assert!(listed || files.iter().any(|f| f.starts_with(code.id)), "no golden for {}", code.id);
    }
}

#[test]
fn the_shipped_specs_check_without_a_message() {
    let (text, _) = messages(LLAMA70B, &[], &[], None);
    assert_eq!(text, "");
}
