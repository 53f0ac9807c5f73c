//! Tests of the passes on the smallest graphs, and of presets and rules on whole models.

use super::{Report, offload_residuals, recompute_residuals, rematerialise};
use crate::autodiff::config::Microbatch;
use crate::autodiff::from_spec::train_config;
use crate::autodiff::training_step;
use crate::graph::Graph;
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::recognise::recognise;
use crate::graph::verify::{Stage, verify};
use crate::interpret::{Mode, run, sample_environment};
use crate::spec::checked::{Remat, RematAction, RematPreset, RematRule, RematValue};
use crate::spec::{MemoryLoader, SourceMap, Span, check};

/// Rules on values, without a spec: (action, block, name).
fn rules(list: &[(RematAction, &str, Option<&str>)]) -> Remat {
    let rule = |(action, block, name): &(RematAction, &str, Option<&str>)| RematRule {
        action: *action,
        glob: name.map_or(block.to_string(), |name| format!("{block}.{name}")),
        values: vec![RematValue { block: block.to_string(), name: name.map(str::to_string) }],
        span: Span::NONE,
    };
    Remat { preset: RematPreset::Auto, rules: list.iter().map(rule).collect() }
}

fn preset(preset: RematPreset) -> Remat {
    Remat { preset, rules: Vec::new() }
}

const PRESETS: [RematPreset; 5] =
    [RematPreset::Auto, RematPreset::None, RematPreset::Full, RematPreset::Dots, RematPreset::Attn];

/// Two layers y = x + act(x·w)·v with what their gradient needs: the product, its sigmoid, and their product.
const LAYERS: &str = "graph @f {
    %x = input : f32[seq=3, d=4]
    %w = input : f32[layers=2, d=4, e=5]
    %v = input : f32[layers=2, d=4, e=5]
    %y, %g.saved, %s.saved, %a.saved, %x.saved = loop layers=2 {
      index %i : i32[]
      carry %xi = %x : f32[seq=3, d=4]
      stacked %wi = %w : f32[d=4, e=5]
      stacked %vi = %v : f32[d=4, e=5]
      %g = dot %xi, %wi over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
      %s = sigmoid %g : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
      %a = mul %g, %s : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
      %o = dot %a, %vi over e : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
      %h = add %xi, %o : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
      yield carry %h : f32[seq=3, d=4]
      yield stacked %g : f32[layers=2, seq=3, e=5]
      yield stacked %s : f32[layers=2, seq=3, e=5]
      yield stacked %a : f32[layers=2, seq=3, e=5]
      yield stacked %xi : f32[layers=2, seq=3, d=4]
    }
    %dx, %dw, %dv = loop layers=2 reverse {
      index %j : i32[]
      carry %dy = %y : f32[seq=3, d=4]
      stacked %gj = %g.saved : f32[seq=3, e=5]
      stacked %sj = %s.saved : f32[seq=3, e=5]
      stacked %aj = %a.saved : f32[seq=3, e=5]
      stacked %xj = %x.saved : f32[seq=3, d=4]
      stacked %wj = %w : f32[d=4, e=5]
      stacked %vj = %v : f32[d=4, e=5]
      %dvj = dot %dy, %aj over seq : f32[d=4, e=5]  // m.spec:5 layer.{i} backward_weight
      %da = dot %dy, %vj over d : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
      %ds = mul %da, %sj : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
      %dg = mul %ds, %gj : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
      %dwj = dot %xj, %dg over seq : f32[d=4, e=5]  // m.spec:2 layer.{i} backward_weight
      %dxj = dot %dg, %wj over e : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
      yield carry %dxj : f32[seq=3, d=4]
      yield stacked %dwj : f32[layers=2, d=4, e=5]
      yield stacked %dvj : f32[layers=2, d=4, e=5]
    }
    return dx = %dx
    return dw = %dw
    return dv = %dv
}";

#[test]
fn recompute_residuals_saves_what_cannot_be_computed_again() {
    check_pass!(recompute_residuals, LAYERS, @"
        graph @f {
          %x = input : f32[seq=3, d=4]
          %w = input : f32[layers=2, d=4, e=5]
          %v = input : f32[layers=2, d=4, e=5]
          %y, %g.saved, %s.saved, %a.saved, %x.saved = loop layers=2 {
            index %i : i32[]
            carry %xi = %x : f32[seq=3, d=4]
            stacked %wi = %w : f32[d=4, e=5]
            stacked %vi = %v : f32[d=4, e=5]
            %g = dot %xi, %wi over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
            %s = sigmoid %g : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
            %a = mul %g, %s : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
            %o = dot %a, %vi over e : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            %h = add %xi, %o : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            yield carry %h : f32[seq=3, d=4]
            yield stacked %g : f32[layers=2, seq=3, e=5]
            yield stacked %s : f32[layers=2, seq=3, e=5]
            yield stacked %a : f32[layers=2, seq=3, e=5]
            yield stacked %xi : f32[layers=2, seq=3, d=4]
          }
          %dx, %dw, %dv = loop layers=2 reverse {
            index %j : i32[]
            carry %dy = %y : f32[seq=3, d=4]
            stacked %gj = %g.saved : f32[seq=3, e=5]
            stacked %xj = %x.saved : f32[seq=3, d=4]
            stacked %wj = %w : f32[d=4, e=5]
            stacked %vj = %v : f32[d=4, e=5]
            %s.1 = sigmoid %gj : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp backward_input
            %a.1 = mul %gj, %s.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp backward_input
            %dvj = dot %dy, %a.1 over seq : f32[d=4, e=5]  // m.spec:5 layer.{i} backward_weight
            %da = dot %dy, %vj over d : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
            %ds = mul %da, %s.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dg = mul %ds, %gj : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dwj = dot %xj, %dg over seq : f32[d=4, e=5]  // m.spec:2 layer.{i} backward_weight
            %dxj = dot %dg, %wj over e : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
            yield carry %dxj : f32[seq=3, d=4]
            yield stacked %dwj : f32[layers=2, d=4, e=5]
            yield stacked %dvj : f32[layers=2, d=4, e=5]
          }
          return dx = %dx
          return dw = %dw
          return dv = %dv
        }
    ");
}

#[test]
fn rematerialise_computes_a_layer_again_from_its_input() {
    check_pass!(|g| rematerialise(g, &preset(RematPreset::Full)).0, LAYERS, @"
        graph @f {
          %x = input : f32[seq=3, d=4]
          %w = input : f32[layers=2, d=4, e=5]
          %v = input : f32[layers=2, d=4, e=5]
          %y, %x.saved = loop layers=2 {
            index %i : i32[]
            carry %xi = %x : f32[seq=3, d=4]
            stacked %wi = %w : f32[d=4, e=5]
            stacked %vi = %v : f32[d=4, e=5]
            %g = dot %xi, %wi over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
            %s = sigmoid %g : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
            %a = mul %g, %s : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
            %o = dot %a, %vi over e : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            %h = add %xi, %o : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            yield carry %h : f32[seq=3, d=4]
            yield stacked %xi : f32[layers=2, seq=3, d=4]
          }
          %dx, %dw, %dv = loop layers=2 reverse {
            index %j : i32[]
            carry %dy = %y : f32[seq=3, d=4]
            stacked %xj = %x.saved : f32[seq=3, d=4]
            stacked %wj = %w : f32[d=4, e=5]
            stacked %vj = %v : f32[d=4, e=5]
            %g.1 = dot %xj, %wj over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp backward_input
            %s.1 = sigmoid %g.1 : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp backward_input
            %a.1 = mul %g.1, %s.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp backward_input
            %dvj = dot %dy, %a.1 over seq : f32[d=4, e=5]  // m.spec:5 layer.{i} backward_weight
            %da = dot %dy, %vj over d : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
            %ds = mul %da, %s.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dg = mul %ds, %g.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dwj = dot %xj, %dg over seq : f32[d=4, e=5]  // m.spec:2 layer.{i} backward_weight
            %dxj = dot %dg, %wj over e : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
            yield carry %dxj : f32[seq=3, d=4]
            yield stacked %dwj : f32[layers=2, d=4, e=5]
            yield stacked %dvj : f32[layers=2, d=4, e=5]
          }
          return dx = %dx
          return dw = %dw
          return dv = %dv
        }
    ");
}

#[test]
fn rematerialise_keeps_what_a_later_rule_names_and_saves_it_if_it_was_not() {
    let remat = rules(&[
        (RematAction::Recompute, "layer.{i}", None),
        (RematAction::Keep, "layer.{i}.mlp", Some("a")),
    ]);
    check_pass!(|g| rematerialise(g, &remat).0, LAYERS, @"
        graph @f {
          %x = input : f32[seq=3, d=4]
          %w = input : f32[layers=2, d=4, e=5]
          %v = input : f32[layers=2, d=4, e=5]
          %y, %a.saved, %x.saved = loop layers=2 {
            index %i : i32[]
            carry %xi = %x : f32[seq=3, d=4]
            stacked %wi = %w : f32[d=4, e=5]
            stacked %vi = %v : f32[d=4, e=5]
            %g = dot %xi, %wi over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
            %s = sigmoid %g : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
            %a = mul %g, %s : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
            %o = dot %a, %vi over e : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            %h = add %xi, %o : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            yield carry %h : f32[seq=3, d=4]
            yield stacked %a : f32[layers=2, seq=3, e=5]
            yield stacked %xi : f32[layers=2, seq=3, d=4]
          }
          %dx, %dw, %dv = loop layers=2 reverse {
            index %j : i32[]
            carry %dy = %y : f32[seq=3, d=4]
            stacked %aj = %a.saved : f32[seq=3, e=5]
            stacked %xj = %x.saved : f32[seq=3, d=4]
            stacked %wj = %w : f32[d=4, e=5]
            stacked %vj = %v : f32[d=4, e=5]
            %dvj = dot %dy, %aj over seq : f32[d=4, e=5]  // m.spec:5 layer.{i} backward_weight
            %da = dot %dy, %vj over d : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
            %g.1 = dot %xj, %wj over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp backward_input
            %s.1 = sigmoid %g.1 : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp backward_input
            %ds = mul %da, %s.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dg = mul %ds, %g.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dwj = dot %xj, %dg over seq : f32[d=4, e=5]  // m.spec:2 layer.{i} backward_weight
            %dxj = dot %dg, %wj over e : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
            yield carry %dxj : f32[seq=3, d=4]
            yield stacked %dwj : f32[layers=2, d=4, e=5]
            yield stacked %dvj : f32[layers=2, d=4, e=5]
          }
          return dx = %dx
          return dw = %dw
          return dv = %dv
        }
    ");
}

#[test]
fn rematerialise_leaves_everything_saved_without_a_preset() {
    let graph = crate::testing::graph(LAYERS);
    let (after, report) = rematerialise(graph.clone(), &preset(RematPreset::None));
    assert_eq!(crate::graph::print::print(&after), crate::graph::print::print(&graph));
    assert_eq!((report.asked_bytes, report.kept_bytes, report.flops), (456, 456, 0));
}

#[test]
fn offload_residuals_copies_to_the_host_and_back() {
    check_pass!(|g| crate::graph::passes::eliminate_dead(offload_residuals(g)), LAYERS, @"
        graph @f {
          %x = input : f32[seq=3, d=4]
          %w = input : f32[layers=2, d=4, e=5]
          %v = input : f32[layers=2, d=4, e=5]
          %y, %g.saved, %s.saved, %a.saved, %x.saved = loop layers=2 {
            index %i : i32[]
            carry %xi = %x : f32[seq=3, d=4]
            stacked %wi = %w : f32[d=4, e=5]
            stacked %vi = %v : f32[d=4, e=5]
            %xi.host = to_host %xi : f32[seq=3, d=4]
            %g = dot %xi, %wi over d : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
            %g.host = to_host %g : f32[seq=3, e=5]  // m.spec:2 layer.{i}.mlp forward
            %s = sigmoid %g : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
            %s.host = to_host %s : f32[seq=3, e=5]  // m.spec:3 layer.{i}.mlp forward
            %a = mul %g, %s : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
            %a.host = to_host %a : f32[seq=3, e=5]  // m.spec:4 layer.{i}.mlp forward
            %o = dot %a, %vi over e : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            %h = add %xi, %o : f32[seq=3, d=4]  // m.spec:5 layer.{i} forward
            yield carry %h : f32[seq=3, d=4]
            yield stacked %g.host : f32[layers=2, seq=3, e=5]
            yield stacked %s.host : f32[layers=2, seq=3, e=5]
            yield stacked %a.host : f32[layers=2, seq=3, e=5]
            yield stacked %xi.host : f32[layers=2, seq=3, d=4]
          }
          %dx, %dw, %dv = loop layers=2 reverse {
            index %j : i32[]
            carry %dy = %y : f32[seq=3, d=4]
            stacked %gj = %g.saved : f32[seq=3, e=5]
            stacked %sj = %s.saved : f32[seq=3, e=5]
            stacked %aj = %a.saved : f32[seq=3, e=5]
            stacked %xj = %x.saved : f32[seq=3, d=4]
            stacked %wj = %w : f32[d=4, e=5]
            stacked %vj = %v : f32[d=4, e=5]
            %aj.1 = to_device %aj : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
            %dvj = dot %dy, %aj.1 over seq : f32[d=4, e=5]  // m.spec:5 layer.{i} backward_weight
            %da = dot %dy, %vj over d : f32[seq=3, e=5]  // m.spec:5 layer.{i} backward_input
            %sj.1 = to_device %sj : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %ds = mul %da, %sj.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %gj.1 = to_device %gj : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %dg = mul %ds, %gj.1 : f32[seq=3, e=5]  // m.spec:4 layer.{i} backward_input
            %xj.1 = to_device %xj : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
            %dwj = dot %xj.1, %dg over seq : f32[d=4, e=5]  // m.spec:2 layer.{i} backward_weight
            %dxj = dot %dg, %wj over e : f32[seq=3, d=4]  // m.spec:2 layer.{i} backward_input
            yield carry %dxj : f32[seq=3, d=4]
            yield stacked %dwj : f32[layers=2, d=4, e=5]
            yield stacked %dvj : f32[layers=2, d=4, e=5]
          }
          return dx = %dx
          return dw = %dw
          return dv = %dv
        }
    ");
}

#[test]
fn verify_refuses_to_compute_on_what_lies_in_the_host_memory() {
    check_refuses!("graph @f {
        %x = input : f32[n=2, d=3]
        %h = to_host %x : f32[n=2, d=3]
        %y = exp %h : f32[n=2, d=3]
        %s = loop n=2 {
          index %i : i32[]
          stacked %a = %h : f32[d=3]
          %b = to_device %a : f32[d=3]
          %c = add %a, %b : f32[d=3]
          yield sum %c : f32[d=3]
        }
        return y = %y
        return s = %s
        return h = %h
    }", @"
        graph @f {
          %x = input : f32[n=2, d=3]
          %h = to_host %x : f32[n=2, d=3]
          %y = exp %h : f32[n=2, d=3]
          ; error: %h lies in the host's memory; `to_device` brings it back
          %s = loop n=2 {
            index %i : i32[]
            stacked %a = %h : f32[d=3]
            %b = to_device %a : f32[d=3]
            %c = add %a, %b : f32[d=3]
            ; error: %a lies in the host's memory; `to_device` brings it back
            yield sum %c : f32[d=3]
          }
          return y = %y
          return s = %s
          return h = %h
          ; error: a result lies in the host's memory
        }
    ");
}

const BLOCKS: &str = "
  block Norm[a](x[.., a], eps = 1e-5) -> [.., a] {
    param w[a] = ones
    x * rsqrt(mean[a](x * x) + eps) * w
  }
  block Attention(x[batch, seq, d]) -> [batch, seq, d] {
    param wq[d -> kv, group, hd], wk[d -> kv, hd], wv[d -> kv, hd] = normal(0.3)
    param wo[kv, group, hd -> d] = normal(0.3)
    q = rope[hd](dot[d](x, wq), at = index[seq], theta = 1e4, pairs = half)
    k = rope[hd](dot[d](x, wk), at = index[seq], theta = 1e4, pairs = half) as [seq: pos]
    v = dot[d](x, wv)                                                 as [seq: pos]
    mask[seq, pos] = index[pos] <= index[seq]
    p = softmax[pos](where(mask, dot[hd](q, k) / sqrt(hd), -inf))
    dot[kv, group, hd](dot[pos](p, v), wo)
  }
";

/// A small Llama: two layers of attention and a gated unit.
const LLAMA: &str = "
  block FeedForward(x[.., d]) -> [.., d] {
    param gate[d -> ff], up[d -> ff], down[ff -> d] = normal(0.3)
    dot[ff](silu(dot[d](x, gate)) * dot[d](x, up), down)
  }
  block Layer(x[batch, seq, d]) -> [batch, seq, d] {
    h = x + Attention@attn(Norm[d]@norm1(x))
    h + FeedForward@mlp(Norm[d]@norm2(h))
  }
  param embed[vocab, d], head[d -> vocab] = normal(0.3)
  x = repeat[layers](Layer@layer, gather[vocab](embed, tokens))
  logits[batch, seq, vocab] = dot[d](Norm[d]@norm(x), head)
";

/// As GPT: layer norm, biases, learned positions, an exact GELU, a tied head, and a repeat in a repeat.
const GPT: &str = "
  block Biased(x[.., d]) -> [.., d] {
    param up[d -> ff], down[ff -> d] = normal(0.3)
    param b[ff] = normal(0.3)
    param c[d] = normal(0.3)
    u = gelu(dot[d](x, up) + b)
    dot[ff](u, down) + c
  }
  block Inner(y[batch, seq, d]) -> [batch, seq, d] {
    param s[d], t[d] = ones
    z = layer_norm[d](y, s, t)
    y + Biased@mlp(z)
  }
  block Layer(x[batch, seq, d]) -> [batch, seq, d] {
    h = x + Attention@attn(Norm[d]@norm1(x))
    tanh(repeat[deep](Inner@inner, h)) + h
  }
  param embed[vocab, d], places[seq, d] = normal(0.3)
  x = repeat[layers](Layer@layer, gather[vocab](embed, tokens) + places)
  logits[batch, seq, vocab] = dot[d](x, embed)
";

/// A file with the model and a run with this `remat`.
fn file(model: &str, remat: &str) -> String {
    let deep = if model == GPT { ", deep = 3" } else { "" };
    format!(
        "spec 1\nmodel M {{
  size vocab = 11, d = 6, ff = 10, layers = 2, kv = 2, group = 2, hd = 4{deep}
  size batch = run, seq = run
  input tokens: ids<vocab>[batch, seq]
  input targets: ids<vocab>[batch, seq]
{BLOCKS}{model}  loss mean[batch, seq](cross_entropy[vocab](logits, targets))
}}
train {{ steps = 2, batch = 4, seq = 5, microbatch = 2, data = synthetic(), optimizer = sgd {{ lr = 0.1 }}{remat} }}
"
    )
}

/// The training graph of a file with the choices of its `remat`.
fn training(text: &str, reference: bool) -> Result<(Graph, Remat), String> {
    let mut sources = SourceMap::new();
    let loader = MemoryLoader { files: vec![("m.spec".into(), text.into())] };
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[])
        .map_err(|e| crate::spec::diagnostic::render_all(&e, &sources, false))?;
    let train = spec.train.expect("the file has a run");
    let forward = from_spec(&spec.model, Entry::Train, train.batch, &sources).expect("it lowers");
    let forward = if reference { forward } else { recognise(forward, &[]) };
    let mut config = train_config(&spec.model, &train);
    config.microbatch = Some(Microbatch { axis: "batch".into(), size: train.microbatch });
    Ok((training_step(forward, &config).expect("it differentiates"), train.remat))
}

/// Runs before and after on the same numbers: every output is the same to the bit, in f64 and in f32.
fn same_bits(graph: &Graph, remat: &Remat) -> Report {
    let (after, report) = rematerialise(graph.clone(), remat);
    verify(&after, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    let environment = sample_environment(graph, 7);
    for mode in [Mode::F64, Mode::F32] {
        let expected = run(graph, &environment, mode).expect("it runs");
        let got = run(&after, &environment, mode).expect("it runs");
        assert_eq!(expected, got, "{mode:?}");
    }
    report
}

#[test]
fn rematerialise_changes_no_bit_of_whole_models_under_any_preset() {
    for (name, model) in [("llama", LLAMA), ("gpt", GPT)] {
        for reference in [false, true] {
            let (graph, _) = training(&file(model, ""), reference).unwrap();
            let kept: Vec<u64> = PRESETS.map(|p| same_bits(&graph, &preset(p)).kept_bytes).to_vec();
            println!("{name}, reference {reference}: {kept:?}");
            let [auto, none, full, dots, attn] = kept[..] else { unreachable!() };
            assert!(full < dots && dots < auto && auto < none && attn <= auto, "{name}: {kept:?}");
        }
    }
}

/// Roundings to bf16 and masks are made again from the same numbers, so they are the same.
#[test]
fn rematerialise_changes_no_bit_with_dropout_and_bf16() {
    let dropping = LLAMA
        .replace("x + Attention@attn(Norm[d]@norm1(x))", "x + dropout(Attention@attn(Norm[d]@norm1(x)), 0.1)")
        .replace(
            "h + FeedForward@mlp(Norm[d]@norm2(h))",
            "h + dropout(FeedForward@mlp(Norm[d]@norm2(h)), 0.2)",
        );
    assert_eq!(dropping.matches("dropout").count(), 2);
    let (graph, _) = training(&file(&dropping, ", precision = bf16"), false).unwrap();
    let text = crate::graph::print::print(&graph);
    assert!(text.contains("threefry") && text.contains("bf16["), "{text}");
    let kept: Vec<u64> = PRESETS.map(|p| same_bits(&graph, &preset(p)).kept_bytes).to_vec();
    let [auto, none, full, dots, attn] = kept[..] else { unreachable!() };
    assert!(full < dots && full < auto && auto < none && dots < none && attn <= auto, "{kept:?}");
    let offloaded = same_bits(&graph, &rules(&[(RematAction::Offload, "layer.{i}", None)]));
    assert!(offloaded.kept_bytes < auto, "{offloaded}");
}

/// The rules of a file on its own model, and what they come to.
fn ruled(model: &str, remat: &str) -> String {
    let (graph, remat) =
        training(&file(model, &format!(", remat = {{ {remat} }}")), false).unwrap_or_else(|e| panic!("{e}"));
    same_bits(&graph, &remat).to_string()
}

#[test]
fn rematerialise_follows_the_rules_of_a_file() {
    let reports = [
        ruled(LLAMA, "recompute \"layer.*\""),
        ruled(LLAMA, "recompute \"layer.*\", keep \"layer.*.attn\", offload \"layer.*.x\""),
        ruled(LLAMA, "offload \"layer.*.attn.(q|k|v)\", offload \"**.h\", recompute \"layer.*.mlp\""),
        ruled(GPT, "recompute \"layer.*.inner.*.mlp.u\", offload \"**.y\""),
    ];
    insta::assert_snapshot!(reports.join("\n"), @r#"
        saved for the backward pass: 480 B of 10.0 KiB, 40.3 kFLOP more a step
          recompute "layer.*": 9.5 KiB computed again for 40.3 kFLOP
          otherwise: 480 B saved
             480 B  %x f32[layers=2, batch=2, seq=5, d=6]

        saved for the backward pass: 4.5 KiB of 10.0 KiB and 480 B in the host's memory, 9.6 kFLOP more a step
          recompute "layer.*": 5.5 KiB computed again for 9.6 kFLOP
          keep "layer.*.attn": 4.5 KiB saved
          offload "layer.*.x": 480 B in the host's memory
           1.2 KiB  %q f32[layers=2, batch=2, seq=5, kv=2, group=2, hd=4]  m.spec:15  layer.{i}.attn
           1.2 KiB  %t.52 f32[layers=2, batch=2, seq=5, kv=2, group=2, hd=4]  m.spec:20  layer.{i}.attn
             640 B  %rope.1 f32[layers=2, batch=2, seq=5, kv=2, hd=4]  m.spec:16  layer.{i}.attn
             640 B  %t.37 f32[layers=2, batch=2, seq=5, kv=2, hd=4]  m.spec:17  layer.{i}.attn
             480 B  %t.53 f32[layers=2, batch=2, seq=5, d=6]  m.spec:20  layer.{i}.attn

        saved for the backward pass: 2.2 KiB of 10.0 KiB and 3.0 KiB in the host's memory, 9.6 kFLOP more a step
          offload "layer.*.attn.(q|k|v)": 2.5 KiB in the host's memory
          offload "**.h": 480 B in the host's memory
          recompute "layer.*.mlp": 3.9 KiB computed again for 9.6 kFLOP
          otherwise: 960 B computed again for 0 FLOP, 2.2 KiB saved
           1.2 KiB  %q f32[layers=2, batch=2, seq=5, kv=2, group=2, hd=4] (host)  m.spec:15  layer.{i}.attn
           1.2 KiB  %t.52 f32[layers=2, batch=2, seq=5, kv=2, group=2, hd=4]  m.spec:20  layer.{i}.attn
             640 B  %rope.1 f32[layers=2, batch=2, seq=5, kv=2, hd=4] (host)  m.spec:16  layer.{i}.attn
             640 B  %t.37 f32[layers=2, batch=2, seq=5, kv=2, hd=4] (host)  m.spec:17  layer.{i}.attn
             480 B  %h f32[layers=2, batch=2, seq=5, d=6] (host)  m.spec:28  layer.{i}

        saved for the backward pass: 14.0 KiB of 18.2 KiB and 1.4 KiB in the host's memory, 36.5 kFLOP more a step
          recompute "layer.*.inner.*.mlp.u": 2.3 KiB computed again for 36.5 kFLOP
          offload "**.y": 1.4 KiB in the host's memory
          otherwise: 480 B computed again for 0 FLOP, 14.0 KiB saved
           2.3 KiB  %t.69.saved f32[layers=2, deep=3, batch=2, seq=5, ff=10]  m.spec:37  layer.{i}
           2.3 KiB  %t.71.saved f32[layers=2, deep=3, batch=2, seq=5, ff=10]  m.spec:37  layer.{i}
           2.3 KiB  %t.72.saved f32[layers=2, deep=3, batch=2, seq=5, ff=10]  m.spec:37  layer.{i}
           1.4 KiB  %y.saved f32[layers=2, deep=3, batch=2, seq=5, d=6] (host)  m.spec:37  layer.{i}
           1.4 KiB  %z.saved f32[layers=2, deep=3, batch=2, seq=5, d=6]  m.spec:37  layer.{i}
    "#);
}

#[test]
fn rematerialise_names_values_by_every_name_they_have() {
    // The argument of `mlp` is what `z` is.
    let by = |name: &str| ruled(GPT, &format!("keep \"{name}\"")).replace(name, "");
    let (as_value, as_argument) = (by("layer.*.inner.*.z"), by("layer.*.inner.*.mlp.x"));
    assert!(as_value.contains("keep \"\": 1.4 KiB saved"), "{as_value}");
    assert_eq!(as_value, as_argument);
}

#[test]
fn rematerialise_rules_that_hit_nothing_or_part_of_a_repeat_are_refused() {
    let refused =
        |remat: &str| training(&file(LLAMA, &format!(", remat = {{ {remat} }}")), false).unwrap_err();
    let errors =
        [refused("recompute \"layer.*.atn.q\""), refused("keep \"logits\""), refused("keep \"layer.1.h\"")];
    insta::assert_snapshot!(errors.join("\n"), @r#"
        error[E0406]: the glob hits no value of a repeat: `layer.*.atn.q`
          --> m.spec:36:126
           |
        36 | ...optimizer = sgd { lr = 0.1 }, remat = { recompute "layer.*.atn.q" } }
           |                                                      ^^^^^^^^^^^^^^^ hits nothing
           |
           = note: what is saved for the backward pass are values computed in a repeat
           = help: nearest: layer.{i}.attn.q, layer.{i}.attn.k, layer.{i}.attn.p

        error[E0406]: the glob hits no value of a repeat: `logits`
          --> m.spec:36:121
           |
        36 | train { steps = 2, batch = 4, seq = 5, microbatch = 2, data = synthetic(), optimizer = sgd { lr = 0.1 }, remat = { keep "logits" } }
           |                                                                                                                         ^^^^^^^^ hits nothing
           |
           = note: what is saved for the backward pass are values computed in a repeat
           = help: nearest: layer.{i}, layer.{i}.attn, layer.{i}.norm1

        error[E0407]: the rule hits single iterations of `layer.{i}.h`
          --> m.spec:36:121
           |
        36 | train { steps = 2, batch = 4, seq = 5, microbatch = 2, data = synthetic(), optimizer = sgd { lr = 0.1 }, remat = { keep "layer.1.h" } }
           |                                                                                                                         ^^^^^^^^^^^ `layer.1.h` names some of 2
           |
           = note: all iterations of a repeat share one compiled body
           = help: give each pair its own body, `repeat[layers / 2](Pair@pair, x)`, or cycle a constant, `window = [4096, none]`
    "#);
}

#[test]
fn rematerialise_by_attn_computes_scores_again_where_attention_is_written_out() {
    let (graph, _) = training(&file(LLAMA, ""), true).unwrap();
    let report = same_bits(&graph, &preset(RematPreset::Attn));
    let over_pairs = |ty: &str| ty.contains("pos=") && ty.contains("seq=");
    assert!(report.stacks.iter().all(|s| !over_pairs(&s.ty)), "{report}");
    // The scores alone are computed again: 2·hd operations per pair of positions, batch, head and iteration.
    let (batch, heads, pairs, iterations, hd) = (2, 2 * 2, 5 * 5, 2 * 2, 4);
    assert_eq!(report.flops, 2 * hd * batch * heads * pairs * iterations, "{report}");
}
