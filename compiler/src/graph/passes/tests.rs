//! One test per fact of a pass: text before, text after, same numbers.

use super::*;

#[test]
fn eliminate_dead_drops_ops_and_sources_nothing_needs() {
    check_pass!(eliminate_dead, "graph @f {
        %x = input : f32[d=2]
        %unused = input : f32[d=2]
        %y = exp %x : f32[d=2]
        %z = add %y, %unused : f32[d=2]
        return y = %y
    }", @"
        graph @f {
          %x = input : f32[d=2]
          %y = exp %x : f32[d=2]
          return y = %y
        }
    ");
}

#[test]
fn eliminate_dead_drops_loop_results_with_what_feeds_only_them() {
    check_pass!(eliminate_dead, "graph @f {
        %x = input : f32[d=2]
        %w = input : f32[layer=3, d=2]
        %v = input : f32[layer=3, d=2]
        %h, %k, %s, %t = loop layer=3 {
          index %i : i32[]
          carry %c = %x : f32[d=2]
          carry %e = %x : f32[d=2]
          stacked %a = %w : f32[d=2]
          stacked %b = %v : f32[d=2]
          %c2 = add %c, %a : f32[d=2]
          %e2 = mul %e, %b : f32[d=2]
          yield carry %c2 : f32[d=2]
          yield carry %e2 : f32[d=2]
          yield stacked %e2 : f32[layer=3, d=2]
          yield sum %c2 : f32[d=2]
        }
        return h = %h
        return t = %t
    }", @"
        graph @f {
          %x = input : f32[d=2]
          %w = input : f32[layer=3, d=2]
          %h, %t = loop layer=3 {
            index %i : i32[]
            carry %c = %x : f32[d=2]
            stacked %a = %w : f32[d=2]
            %c2 = add %c, %a : f32[d=2]
            yield carry %c2 : f32[d=2]
            yield sum %c2 : f32[d=2]
          }
          return h = %h
          return t = %t
        }
    ");
}

#[test]
fn eliminate_dead_keeps_a_carry_that_feeds_another() {
    check_pass!(eliminate_dead, "graph @f {
        %x = input : f32[]
        %h, %k = loop layer=3 {
          index %i : i32[]
          carry %c = %x : f32[]
          carry %e = %x : f32[]
          %c2 = add %c, %e : f32[]
          %e2 = mul %e, %e : f32[]
          yield carry %c2 : f32[]
          yield carry %e2 : f32[]
        }
        return h = %h
    }", @"
        graph @f {
          %x = input : f32[]
          %h, %k = loop layer=3 {
            index %i : i32[]
            carry %c = %x : f32[]
            carry %e = %x : f32[]
            %c2 = add %c, %e : f32[]
            %e2 = mul %e, %e : f32[]
            yield carry %c2 : f32[]
            yield carry %e2 : f32[]
          }
          return h = %h
        }
    ");
}

#[test]
fn expand_composites_puts_the_meaning_in_place_and_keeps_the_names() {
    check_pass!(expand_composites, "graph @f {
        %x = input : f32[b=2, d=3]
        %p = softmax along d {  // m.spec:4 layer.attn forward
          arg %a = %x : f32[b=2, d=3]
          %e = exp %a : f32[b=2, d=3]
          %s = reduce_sum %e over d : f32[b=2]
          %q = div %e, %s : f32[b=2, d=3]
          yield %q : f32[b=2, d=3]
        }
        %y = mul %p, %x : f32[b=2, d=3]
        return y = %y
    }", @"
        graph @f {
          %x = input : f32[b=2, d=3]
          %e = exp %x : f32[b=2, d=3]  // m.spec:4 layer.attn forward
          %s = reduce_sum %e over d : f32[b=2]  // m.spec:4 layer.attn forward
          %p = div %e, %s : f32[b=2, d=3]  // m.spec:4 layer.attn forward
          %y = mul %p, %x : f32[b=2, d=3]
          return y = %y
        }
    ");
}

#[test]
fn expand_composites_reaches_into_loops_and_nested_meanings() {
    check_pass!(expand_composites, "graph @f {
        %x = input : f32[t=4, d=3]
        %w = input : f32[d=3, v=5]
        %ids = input below 5 : i32[t=4]
        %l = loop t=2 block=2 {
          index %i : i32[]
          stacked %xc = %x : f32[t=2, d=3]
          stacked %idc = %ids : i32[t=2]
          invariant %wc = %w : f32[d=3, v=5]
          %loss = loss_head along v over d chunks t=2 {
            arg %hx = %xc : f32[t=2, d=3]
            arg %hw = %wc : f32[d=3, v=5]
            arg %ht = %idc : i32[t=2]
            %logits = dot %hx, %hw over d : f32[t=2, v=5]
            %ce, %lse = cross_entropy along v {
              arg %z = %logits : f32[t=2, v=5]
              arg %y = %ht : i32[t=2]
              %e = exp %z : f32[t=2, v=5]
              %s = reduce_sum %e over v : f32[t=2]
              %n = log %s : f32[t=2]
              %g = gather %z, %y along v : f32[t=2]
              %o = sub %n, %g : f32[t=2]
              yield %o : f32[t=2]
              yield %n : f32[t=2]
            }
            %r = reduce_sum %ce over t : f32[]
            yield %r : f32[]
          }
          yield sum %loss : f32[]
        }
        return loss_sum = %l
    }", @"
        graph @f {
          %x = input : f32[t=4, d=3]
          %w = input : f32[d=3, v=5]
          %ids = input below 5 : i32[t=4]
          %l = loop t=2 block=2 {
            index %i : i32[]
            stacked %xc = %x : f32[t=2, d=3]
            stacked %idc = %ids : i32[t=2]
            invariant %wc = %w : f32[d=3, v=5]
            %logits = dot %xc, %wc over d : f32[t=2, v=5]
            %e = exp %logits : f32[t=2, v=5]
            %s = reduce_sum %e over v : f32[t=2]
            %lse = log %s : f32[t=2]
            %g = gather %logits, %idc along v : f32[t=2]
            %ce = sub %lse, %g : f32[t=2]
            %loss = reduce_sum %ce over t : f32[]
            yield sum %loss : f32[]
          }
          return loss_sum = %l
        }
    ");
}

#[test]
fn expand_composites_leaves_attention_to_its_kernel() {
    let text = "graph @f {
        %q = input : f32[s=3, d=2]
        %k = input : f32[t=3, d=2]
        %v = input : f32[t=3, d=2]
        %o, %lse = attention query s key t full over d {
          arg %aq = %q : f32[s=3, d=2]
          arg %ak = %k : f32[t=3, d=2]
          arg %av = %v : f32[t=3, d=2]
          %z = dot %aq, %ak over d : f32[s=3, t=3]
          %e = exp %z : f32[s=3, t=3]
          %n = reduce_sum %e over t : f32[s=3]
          %p = div %e, %n : f32[s=3, t=3]
          %r = dot %p, %av over t : f32[s=3, d=2]
          %l = log %n : f32[s=3]
          yield %r : f32[s=3, d=2]
          yield %l : f32[s=3]
          score {
            arg %sc : f32[]
            arg %qi : i32[]
            arg %ki : i32[]
            yield %sc : f32[]
          }
        }
        return o = %o
    }";
    assert_eq!(crate::testing::after_pass(expand_composites, text).matches("attention").count(), 1);
    check_pass!(expand_all_composites, text, @"
        graph @f {
          %q = input : f32[s=3, d=2]
          %k = input : f32[t=3, d=2]
          %v = input : f32[t=3, d=2]
          %z = dot %q, %k over d : f32[s=3, t=3]
          %e = exp %z : f32[s=3, t=3]
          %n = reduce_sum %e over t : f32[s=3]
          %p = div %e, %n : f32[s=3, t=3]
          %o = dot %p, %v over t : f32[s=3, d=2]
          %lse = log %n : f32[s=3]
          return o = %o
        }
    ");
}

#[test]
fn expand_composites_hands_an_operand_through() {
    check_pass!(expand_composites, "graph @f {
        %x = input : f32[d=3]
        %p = softmax along d {
          arg %a = %x : f32[d=3]
          yield %a : f32[d=3]
        }
        return y = %p
    }", @"
        graph @f {
          %x = input : f32[d=3]
          return y = %x
        }
    ");
}

#[test]
fn fold_constants_computes_scalars() {
    check_pass!(fold_constants, "graph @f {
        %x = input : f32[d=3]
        %a = const 8.0 : f32[]
        %r = rsqrt %a : f32[]
        %b = const 2 : i32[]
        %c = const 7 : i32[]
        %q = div %c, %b : i32[]
        %qf = cast %q : f32[]
        %l = lt %q, %c : bool[]
        %s = select %l, %r, %qf : f32[]
        %y = mul %x, %s : f32[d=3]
        return y = %y
    }", @"
        graph @f {
          %x = input : f32[d=3]
          %a = const 8.0 : f32[]
          %r = const 0.35355339059327373 : f32[]
          %b = const 2 : i32[]
          %c = const 7 : i32[]
          %q = const 3 : i32[]
          %qf = const 3.0 : f32[]
          %l = const 1 : bool[]
          %y = mul %x, %r : f32[d=3]
          return y = %y
        }
    ");
}

#[test]
fn fold_constants_drops_ops_that_change_nothing() {
    check_pass!(fold_constants, "graph @f {
        %x = input : f32[d=3]
        %one = const 1.0 : f32[]
        %a = mul %one, %x : f32[d=3]
        %b = cast %a : f32[d=3]
        %c = neg %b : f32[d=3]
        %d = neg %c : f32[d=3]
        %e = rename %d as d -> d : f32[d=3]
        %f = broadcast %e : f32[d=3]
        return y = %f
    }", @"
        graph @f {
          %x = input : f32[d=3]
          %one = const 1.0 : f32[]
          %c = neg %x : f32[d=3]
          return y = %x
        }
    ");
}

#[test]
fn fold_constants_keeps_what_rounds_or_broadcasts() {
    check_pass!(fold_constants, "graph @f {
        %x = input : f32[d=3]
        %s = input : f32[]
        %third = const 0.3 : f32[]
        %narrow = cast %third : bf16[]
        %wide = cast %third : f64[]
        %zero = const 0.0 : f32[]
        %a = add %x, %zero : f32[d=3]
        %b = mul %a, %zero : f32[d=3]
        return y = %b
        return n = %narrow
        return w = %wide
    }", @"
        graph @f {
          %x = input : f32[d=3]
          %s = input : f32[]
          %third = const 0.3 : f32[]
          %narrow = cast %third : bf16[]
          %wide = cast %third : f64[]
          %zero = const 0.0 : f32[]
          %a = add %x, %zero : f32[d=3]
          %b = mul %a, %zero : f32[d=3]
          return y = %b
          return n = %narrow
          return w = %wide
        }
    ");
}

#[test]
fn share_common_computes_equal_ops_once_per_region() {
    check_pass!(share_common, "graph @f {
        %x = input : f32[d=3]
        %a = exp %x : f32[d=3]
        %b = exp %x : f32[d=3]
        %c = add %a, %b : f32[d=3]
        %d = add %b, %a : f32[d=3]
        %y = mul %c, %d : f32[d=3]
        %l = loop n=2 {
          index %i : i32[]
          invariant %v = %x : f32[d=3]
          %e = exp %v : f32[d=3]
          %f = exp %v : f32[d=3]
          %g = sub %e, %f : f32[d=3]
          yield sum %g : f32[d=3]
        }
        return y = %y
        return l = %l
    }", @"
        graph @f {
          %x = input : f32[d=3]
          %a = exp %x : f32[d=3]
          %c = add %a, %a : f32[d=3]
          %y = mul %c, %c : f32[d=3]
          %l = loop n=2 {
            index %i : i32[]
            invariant %v = %x : f32[d=3]
            %e = exp %v : f32[d=3]
            %g = sub %e, %e : f32[d=3]
            yield sum %g : f32[d=3]
          }
          return y = %y
          return l = %l
        }
    ");
}

#[test]
fn share_common_tells_constants_and_result_axes_apart() {
    check_pass!(share_common, "graph @f {
        %x = input : f32[a=2, b=3]
        %p = const 0.0 : f32[]
        %n = const -0.0 : f32[]
        %q = const 0.0 : f32[]
        %u = div %x, %p : f32[a=2, b=3]
        %v = div %x, %n : f32[a=2, b=3]
        %w = div %x, %q : f32[b=3, a=2]
        return u = %u
        return v = %v
        return w = %w
    }", @"
        graph @f {
          %x = input : f32[a=2, b=3]
          %p = const 0.0 : f32[]
          %n = const -0.0 : f32[]
          %u = div %x, %p : f32[a=2, b=3]
          %v = div %x, %n : f32[a=2, b=3]
          %w = div %x, %p : f32[b=3, a=2]
          return u = %u
          return v = %v
          return w = %w
        }
    ");
}

/// A gradient that is handed on as its sum of squares and used up by the update.
#[test]
fn sink_updates_puts_the_update_into_the_loop_that_makes_the_gradient() {
    check_pass!(sink_updates, r#"graph @f {
        %x = input : f32[d=2]
        %w = param "layer.{i}.w" = constant(1.0) : f32[layer=4, d=2]
        %h, %g = loop layer=4 reverse {
          index %i : i32[]
          carry %c = %x : f32[d=2]
          stacked %v = %w : f32[d=2]
          %y = mul %c, %v : f32[d=2]
          yield carry %y : f32[d=2]
          yield stacked %c : f32[layer=4, d=2]
        }
        %square = mul %g, %g : f32[layer=4, d=2]
        %squares = reduce_sum %square over d : f32[layer=4]
        %norm = reduce_sum %squares over layer : f32[]
        %m = state "layer.{i}.w" m : f32[layer=4, d=2]
        %lr = scalar "train.optimizer.lr" = 0.1 : f64[]
        %rate = cast %lr : f32[]
        %w.new, %m.new = update "layer.{i}.w" states m {
          arg %p = %w : f32[layer=4, d=2]
          arg %grad = %g : f32[layer=4, d=2]
          arg %n = %m : f32[layer=4, d=2]
          arg %r = %rate : f32[]
          %n.new = add %n, %grad : f32[layer=4, d=2]
          %mean = reduce_sum %n.new over d : f32[layer=4]
          %part = mul %n.new, %r : f32[layer=4, d=2]
          %step = mul %part, %mean : f32[layer=4, d=2]
          %p.new = sub %p, %step : f32[layer=4, d=2]
          yield %p.new : f32[layer=4, d=2]
          yield %n.new : f32[layer=4, d=2]
        }
        return h = %h
        return norm = %norm
        return store "layer.{i}.w" = %w.new
        return store "layer.{i}.w.m" = %m.new
    }"#, @r#"
        graph @f {
          %x = input : f32[d=2]
          %w = param "layer.{i}.w" = constant(1.0) : f32[layer=4, d=2]
          %m = state "layer.{i}.w" m : f32[layer=4, d=2]
          %lr = scalar "train.optimizer.lr" = 0.1 : f64[]
          %rate = cast %lr : f32[]
          %h, %squares, %w.new, %m.new = loop layer=4 reverse {
            index %i : i32[]
            carry %c = %x : f32[d=2]
            stacked %v = %w : f32[d=2]
            stacked %m.1 = %m : f32[d=2]
            invariant %rate.1 = %rate : f32[]
            %y = mul %c, %v : f32[d=2]
            %square.1 = mul %c, %c : f32[d=2]
            %squares.1 = reduce_sum %square.1 over d : f32[]
            %w.new.1, %m.new.1 = update "layer.{i}.w" states m {
              arg %p = %v : f32[d=2]
              arg %grad = %c : f32[d=2]
              arg %n = %m.1 : f32[d=2]
              arg %r = %rate.1 : f32[]
              %n.new = add %n, %grad : f32[d=2]
              %mean = reduce_sum %n.new over d : f32[]
              %part = mul %n.new, %r : f32[d=2]
              %step = mul %part, %mean : f32[d=2]
              %p.new = sub %p, %step : f32[d=2]
              yield %p.new : f32[d=2]
              yield %n.new : f32[d=2]
            }
            yield carry %y : f32[d=2]
            yield stacked %squares.1 : f32[layer=4]
            yield stacked %w.new.1 : f32[layer=4, d=2]
            yield stacked %m.new.1 : f32[layer=4, d=2]
          }
          %norm = reduce_sum %squares over layer : f32[]
          return h = %h
          return norm = %norm
          return store "layer.{i}.w" = %w.new
          return store "layer.{i}.w.m" = %m.new
        }
    "#);
}

#[test]
fn sink_updates_leaves_what_needs_the_whole_result() {
    let unchanged = "graph @f {
  %x = input : f32[d=2]
  %w = param \"layer.{i}.w\" = constant(1.0) : f32[layer=4, d=2]
  %h, %g = loop layer=4 {
    index %i : i32[]
    carry %c = %x : f32[d=2]
    stacked %v = %w : f32[d=2]
    %y = mul %c, %v : f32[d=2]
    yield carry %y : f32[d=2]
    yield stacked %c : f32[layer=4, d=2]
  }
  %norm = reduce_sum %g over layer, d : f32[]
  %w.new = update \"layer.{i}.w\" {
    arg %p = %w : f32[layer=4, d=2]
    arg %grad = %g : f32[layer=4, d=2]
    arg %n = %norm : f32[]
    %part = mul %grad, %n : f32[layer=4, d=2]
    %p.new = sub %p, %part : f32[layer=4, d=2]
    yield %p.new : f32[layer=4, d=2]
  }
  return h = %h
  return store \"layer.{i}.w\" = %w.new
}
";
    assert_eq!(crate::testing::after_pass(sink_updates, unchanged), unchanged);
}
