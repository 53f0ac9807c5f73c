//! Small graphs as text, before and after.

use crate::autodiff::differentiate::differentiate;
use crate::autodiff::hoist_invariants::hoist_invariants;
use crate::graph::passes::eliminate_dead;
use crate::graph::{Builder, Graph, Output};

/// Adds the gradients of the first result as reports.
fn gradients(graph: Graph) -> Graph {
    let done = differentiate(graph, 0).unwrap();
    let mut b = Builder::resume(done.graph);
    for g in &done.gradients {
        b.output(Output::Report(format!("grad.{}", g.param).into()), g.gradient);
    }
    eliminate_dead(b.finish())
}

#[test]
fn differentiate_turns_a_product_into_two() {
    check_pass!(gradients, "graph @f {
        %x = input : f32[s=2, d=3]  // f.spec:1 forward
        %w = param \"w\" = normal(1) : f32[d=3, k=2]  // f.spec:2 forward
        %u = param \"u\" = normal(1) : f32[k=2]  // f.spec:2 forward
        %y = dot %x, %w over d : f32[s=2, k=2]  // f.spec:3 mlp forward
        %h = tanh %y : f32[s=2, k=2]  // f.spec:4 mlp forward
        %z = dot %h, %u over k : f32[s=2]  // f.spec:5 mlp forward
        %loss = reduce_sum %z over s : f32[]  // f.spec:6 forward
        return loss_sum = %loss
    }", @r#"
    graph @f {
      %x = input : f32[s=2, d=3]  // f.spec:1 forward
      %w = param "w" = normal(1.0) : f32[d=3, k=2]  // f.spec:2 forward
      %u = param "u" = normal(1.0) : f32[k=2]  // f.spec:2 forward
      %y = dot %x, %w over d : f32[s=2, k=2]  // f.spec:3 mlp forward
      %h = tanh %y : f32[s=2, k=2]  // f.spec:4 mlp forward
      %z = dot %h, %u over k : f32[s=2]  // f.spec:5 mlp forward
      %loss = reduce_sum %z over s : f32[]  // f.spec:6 forward
      %loss.grad = const 1.0 : f32[]  // backward_input
      %z.grad = broadcast %loss.grad : f32[s=2]  // f.spec:6 backward_input
      %h.grad = dot %z.grad, %u : f32[s=2, k=2]  // f.spec:5 mlp backward_input
      %u.grad = dot %z.grad, %h over s : f32[k=2]  // f.spec:5 mlp backward_weight
      %t.3 = mul %h, %h : f32[s=2, k=2]  // f.spec:4 mlp backward_input
      %c.1 = const 1.0 : f32[]  // f.spec:4 mlp backward_input
      %t.4 = sub %c.1, %t.3 : f32[s=2, k=2]  // f.spec:4 mlp backward_input
      %y.grad = mul %h.grad, %t.4 : f32[s=2, k=2]  // f.spec:4 mlp backward_input
      %w.grad = dot %y.grad, %x over s : f32[d=3, k=2]  // f.spec:3 mlp backward_weight
      return loss_sum = %loss
      return grad.w = %w.grad
      return grad.u = %u.grad
    }
    "#);
}

#[test]
fn differentiate_runs_a_loop_backwards_over_saved_values() {
    check_pass!(gradients, "graph @f {
        %x = param \"x\" = normal(1) : f32[d=2]  // f.spec:1 forward
        %w = param \"layer.{i}.w\" = normal(1) : f32[layer=3, d=2]  // f.spec:2 forward
        %h = loop layer=3 {  // f.spec:3 layer forward
          index %i : i32[]
          carry %c = %x : f32[d=2]
          stacked %v = %w : f32[d=2]
          %p = mul %c, %v : f32[d=2]  // f.spec:3 layer forward
          %t = tanh %p : f32[d=2]  // f.spec:4 layer forward
          yield carry %t : f32[d=2]
        }
        %loss = reduce_sum %h over d : f32[]  // f.spec:5 forward
        return loss_sum = %loss
    }", @r#"
    graph @f {
      %x = param "x" = normal(1.0) : f32[d=2]  // f.spec:1 forward
      %w = param "layer.{i}.w" = normal(1.0) : f32[layer=3, d=2]  // f.spec:2 forward
      %h, %t.saved, %c.saved = loop layer=3 {  // f.spec:3 layer forward
        index %i : i32[]
        carry %c = %x : f32[d=2]
        stacked %v = %w : f32[d=2]
        %p = mul %c, %v : f32[d=2]  // f.spec:3 layer forward
        %t = tanh %p : f32[d=2]  // f.spec:4 layer forward
        yield carry %t : f32[d=2]
        yield stacked %t : f32[layer=3, d=2]
        yield stacked %c : f32[layer=3, d=2]
      }
      %loss = reduce_sum %h over d : f32[]  // f.spec:5 forward
      %loss.grad = const 1.0 : f32[]  // backward_input
      %h.grad = broadcast %loss.grad : f32[d=2]  // f.spec:5 backward_weight
      %x.grad, %w.grad = loop layer=3 reverse {  // f.spec:3 layer backward_input
        index %i.1 : i32[]
        carry %t.grad = %h.grad : f32[d=2]
        stacked %t.saved.1 = %t.saved : f32[d=2]
        stacked %w.1 = %w : f32[d=2]
        stacked %c.saved.1 = %c.saved : f32[d=2]
        %t.2 = mul %t.saved.1, %t.saved.1 : f32[d=2]  // f.spec:4 layer backward_weight
        %c.2 = const 1.0 : f32[]  // f.spec:4 layer backward_weight
        %t.3 = sub %c.2, %t.2 : f32[d=2]  // f.spec:4 layer backward_weight
        %p.grad = mul %t.grad, %t.3 : f32[d=2]  // f.spec:4 layer backward_weight
        %c.grad.1 = mul %p.grad, %w.1 : f32[d=2]  // f.spec:3 layer backward_weight
        %v.grad = mul %p.grad, %c.saved.1 : f32[d=2]  // f.spec:3 layer backward_weight
        yield carry %c.grad.1 : f32[d=2]
        yield stacked %v.grad : f32[layer=3, d=2]
      }
      return loss_sum = %loss
      return grad.x = %x.grad
      return "grad.layer.{i}.w" = %w.grad
    }
    "#);
}

#[test]
fn hoist_invariants_moves_sines_and_leaves_masks() {
    check_pass!(hoist_invariants, "graph @f {
        %x = input : f32[s=3, d=2]
        %h = loop layer=3 {
          index %i : i32[]
          carry %c = %x : f32[s=3, d=2]
          %at = index s : i32[s=3]
          %one = const 1 : i32[]
          %first = ge %at, %one : bool[s=3]
          %angle = cast %at : f32[s=3]
          %sin = sin %angle : f32[s=3]
          %twice = add %sin, %sin : f32[s=3]
          %turned = mul %c, %twice : f32[s=3, d=2]
          %y = select %first, %turned, %c : f32[s=3, d=2]
          yield carry %y : f32[s=3, d=2]
        }
        return h = %h
    }", @"
    graph @f {
      %x = input : f32[s=3, d=2]
      %at.1 = index s : i32[s=3]
      %angle.1 = cast %at.1 : f32[s=3]
      %sin.1 = sin %angle.1 : f32[s=3]
      %twice.1 = add %sin.1, %sin.1 : f32[s=3]
      %h = loop layer=3 {
        index %i : i32[]
        carry %c = %x : f32[s=3, d=2]
        invariant %twice = %twice.1 : f32[s=3]
        %at = index s : i32[s=3]
        %one = const 1 : i32[]
        %first = ge %at, %one : bool[s=3]
        %turned = mul %c, %twice : f32[s=3, d=2]
        %y = select %first, %turned, %c : f32[s=3, d=2]
        yield carry %y : f32[s=3, d=2]
      }
      return h = %h
    }
    ");
}
