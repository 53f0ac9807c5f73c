//! The formulas as specs write them, and near misses.

use super::*;
use crate::testing::after_pass;

#[test]
fn recognise_norms_finds_rms_norm_with_factors_either_way_round() {
    let text = "graph @f {
        %x = input : f32[b=2, d=3]
        %w = input : f32[d=3]
        %sq = mul %x, %x : f32[b=2, d=3]
        %sum = reduce_sum %sq over d : f32[b=2]
        %n = const 3.0 : f32[]
        %mean = div %sum, %n : f32[b=2]
        %eps = const 1e-5 : f32[]
        %me = add %eps, %mean : f32[b=2]
        %r = rsqrt %me : f32[b=2]
        %xr = mul %r, %x : f32[b=2, d=3]
        %y = mul %w, %xr : f32[b=2, d=3]
        return y = %y
    }";
    check_pass!(|g| recognise(g, &[]), text, @"
        graph @f {
          %x = input : f32[b=2, d=3]
          %w = input : f32[d=3]
          %y, %norm.1 = rms_norm along d eps=1e-5 {
            arg %x.1 = %x : f32[b=2, d=3]
            arg %w.1 = %w : f32[d=3]
            %t = mul %x.1, %x.1 : f32[b=2, d=3]
            %t.1 = reduce_sum %t over d : f32[b=2]
            %c = const 3.0 : f32[]
            %t.2 = div %t.1, %c : f32[b=2]
            %c.1 = const 1e-5 : f32[]
            %t.3 = add %t.2, %c.1 : f32[b=2]
            %t.4 = rsqrt %t.3 : f32[b=2]
            %t.5 = mul %x.1, %t.4 : f32[b=2, d=3]
            %t.6 = mul %t.5, %w.1 : f32[b=2, d=3]
            yield %t.6 : f32[b=2, d=3]
            yield %t.4 : f32[b=2]
          }
          return y = %y
        }
    ");
    assert!(!after_pass(|g| recognise(g, &["rms_norm".into()]), text).contains("rms_norm"));
}

#[test]
fn recognise_norms_leaves_a_mean_by_another_number_alone() {
    let text = "graph @f {
        %x = input : f32[b=2, d=3]
        %w = input : f32[d=3]
        %sq = mul %x, %x : f32[b=2, d=3]
        %sum = reduce_sum %sq over d : f32[b=2]
        %n = const 4.0 : f32[]
        %mean = div %sum, %n : f32[b=2]
        %eps = const 1e-5 : f32[]
        %me = add %mean, %eps : f32[b=2]
        %r = rsqrt %me : f32[b=2]
        %xr = mul %x, %r : f32[b=2, d=3]
        %y = mul %xr, %w : f32[b=2, d=3]
        return y = %y
    }";
    assert!(!after_pass(recognise_norms, text).contains("rms_norm"));
}

#[test]
fn recognise_norms_finds_layer_norm() {
    check_pass!(|g| recognise(g, &[]), "graph @f {
        %x = input : f32[b=2, d=3]
        %w = input : f32[d=3]
        %bias = input : f32[d=3]
        %n = const 3.0 : f32[]
        %sum = reduce_sum %x over d : f32[b=2]
        %mean = div %sum, %n : f32[b=2]
        %c = sub %x, %mean : f32[b=2, d=3]
        %sq = mul %c, %c : f32[b=2, d=3]
        %sqsum = reduce_sum %sq over d : f32[b=2]
        %var = div %sqsum, %n : f32[b=2]
        %eps = const 1e-5 : f32[]
        %ve = add %var, %eps : f32[b=2]
        %r = rsqrt %ve : f32[b=2]
        %cr = mul %c, %r : f32[b=2, d=3]
        %cw = mul %cr, %w : f32[b=2, d=3]
        %y = add %cw, %bias : f32[b=2, d=3]
        return y = %y
    }", @"
        graph @f {
          %x = input : f32[b=2, d=3]
          %w = input : f32[d=3]
          %bias = input : f32[d=3]
          %y, %norm.1, %norm.2 = layer_norm along d eps=1e-5 {
            arg %x.1 = %x : f32[b=2, d=3]
            arg %w.1 = %w : f32[d=3]
            arg %b = %bias : f32[d=3]
            %t = reduce_sum %x.1 over d : f32[b=2]
            %c.1 = const 3.0 : f32[]
            %t.1 = div %t, %c.1 : f32[b=2]
            %t.2 = sub %x.1, %t.1 : f32[b=2, d=3]
            %t.3 = mul %t.2, %t.2 : f32[b=2, d=3]
            %t.4 = reduce_sum %t.3 over d : f32[b=2]
            %c.2 = const 3.0 : f32[]
            %t.5 = div %t.4, %c.2 : f32[b=2]
            %c.3 = const 1e-5 : f32[]
            %t.6 = add %t.5, %c.3 : f32[b=2]
            %t.7 = rsqrt %t.6 : f32[b=2]
            %t.8 = mul %t.2, %t.7 : f32[b=2, d=3]
            %t.9 = mul %t.8, %w.1 : f32[b=2, d=3]
            %t.10 = add %t.9, %b : f32[b=2, d=3]
            yield %t.10 : f32[b=2, d=3]
            yield %t.1 : f32[b=2]
            yield %t.7 : f32[b=2]
          }
          return y = %y
        }
    ");
}

/// Attention written out; `MASK` makes `%mask` from `%seq` and `%pos`.
const ATTENTION: &str = "graph @f {
    %q = input : f32[seq=4, kv=2, group=2, hd=3]
    %k0 = input : f32[seq=4, kv=2, hd=3]
    %v0 = input : f32[seq=4, kv=2, hd=3]
    %doc = input below 2 : i32[seq=4]
    %k = rename %k0 as seq -> pos : f32[pos=4, kv=2, hd=3]
    %v = rename %v0 as seq -> pos : f32[pos=4, kv=2, hd=3]
    %pos = index pos : i32[pos=4]
    %seq = index seq : i32[seq=4]
    MASK
    %s = dot %q, %k over hd : f32[seq=4, kv=2, group=2, pos=4]
    %c = const 2.0 : f32[]
    %t = div %s, %c : f32[seq=4, kv=2, group=2, pos=4]
    %lowest = const -inf : f32[]
    %z = select %mask, %t, %lowest : f32[seq=4, pos=4, kv=2, group=2]
    %p = softmax along pos {
      arg %a = %z : f32[seq=4, pos=4, kv=2, group=2]
      %max = reduce_max %a over pos : f32[seq=4, kv=2, group=2]
      %d = sub %a, %max : f32[seq=4, pos=4, kv=2, group=2]
      %e = exp %d : f32[seq=4, pos=4, kv=2, group=2]
      %sum = reduce_sum %e over pos : f32[seq=4, kv=2, group=2]
      %r = div %e, %sum : f32[seq=4, pos=4, kv=2, group=2]
      yield %r : f32[seq=4, pos=4, kv=2, group=2]
    }
    %o = dot %p, %v over pos : f32[seq=4, kv=2, group=2, hd=3]
    return o = %o
}";

fn with_mask(mask: &str) -> String {
    after_pass(|g| recognise(g, &[]), &ATTENTION.replace("MASK", mask))
}

#[test]
fn recognise_attention_finds_causal_attention() {
    let text = ATTENTION.replace("MASK", "%mask = le %pos, %seq : bool[seq=4, pos=4]");
    check_pass!(|g| recognise(g, &[]), &text, @"
        graph @f {
          %q = input : f32[seq=4, kv=2, group=2, hd=3]
          %k0 = input : f32[seq=4, kv=2, hd=3]
          %v0 = input : f32[seq=4, kv=2, hd=3]
          %k = rename %k0 as seq -> pos : f32[pos=4, kv=2, hd=3]
          %v = rename %v0 as seq -> pos : f32[pos=4, kv=2, hd=3]
          %o, %attn.1 = attention query seq key pos causal over hd {
            arg %q.1 = %q : f32[seq=4, kv=2, group=2, hd=3]
            arg %k.1 = %k : f32[pos=4, kv=2, hd=3]
            arg %v.1 = %v : f32[pos=4, kv=2, hd=3]
            %t.2 = dot %q.1, %k.1 over hd : f32[seq=4, kv=2, group=2, pos=4]
            %seq.2 = index seq : i32[seq=4]
            %pos.2 = index pos : i32[pos=4]
            %mask.2 = le %pos.2, %seq.2 : bool[seq=4, pos=4]
            %c.2 = const 2.0 : f32[]
            %t.3 = div %t.2, %c.2 : f32[seq=4, kv=2, group=2, pos=4]
            %lowest.2 = const -inf : f32[]
            %z.2 = select %mask.2, %t.3, %lowest.2 : f32[seq=4, kv=2, group=2, pos=4]
            %t.4 = reduce_max %z.2 over pos : f32[seq=4, kv=2, group=2]
            %c.3 = const -inf : f32[]
            %c.4 = const 0.0 : f32[]
            %t.5 = eq %t.4, %c.3 : bool[seq=4, kv=2, group=2]
            %t.6 = select %t.5, %c.4, %t.4 : f32[seq=4, kv=2, group=2]
            %t.7 = sub %z.2, %t.6 : f32[seq=4, kv=2, group=2, pos=4]
            %t.8 = exp %t.7 : f32[seq=4, kv=2, group=2, pos=4]
            %t.9 = reduce_sum %t.8 over pos : f32[seq=4, kv=2, group=2]
            %c.5 = const 0.0 : f32[]
            %c.6 = const 1.0 : f32[]
            %t.10 = eq %t.9, %c.5 : bool[seq=4, kv=2, group=2]
            %t.11 = select %t.10, %c.6, %t.9 : f32[seq=4, kv=2, group=2]
            %t.12 = div %t.8, %t.11 : f32[seq=4, kv=2, group=2, pos=4]
            %o.1 = dot %t.12, %v.1 over pos : f32[seq=4, kv=2, group=2, hd=3]
            %t.13 = log %t.9 : f32[seq=4, kv=2, group=2]
            %t.14 = add %t.6, %t.13 : f32[seq=4, kv=2, group=2]
            yield %o.1 : f32[seq=4, kv=2, group=2, hd=3]
            yield %t.14 : f32[seq=4, kv=2, group=2]
            score {
              arg %s.1 : f32[]
              arg %seq.1 : i32[]
              arg %pos.1 : i32[]
              %mask.1 = le %pos.1, %seq.1 : bool[]
              %c.1 = const 2.0 : f32[]
              %t.1 = div %s.1, %c.1 : f32[]
              %lowest.1 = const -inf : f32[]
              %z.1 = select %mask.1, %t.1, %lowest.1 : f32[]
              yield %z.1 : f32[]
            }
          }
          return o = %o
        }
    ");
    assert!(!after_pass(|g| recognise(g, &["attention".into()]), &text).contains("attention"));
}

#[test]
fn recognise_attention_bounds_windows() {
    let windowed = with_mask(
        "%causal = ge %seq, %pos : bool[seq=4, pos=4]
         %far = sub %seq, %pos : i32[seq=4, pos=4]
         %three = const 3 : i32[]
         %near = lt %far, %three : bool[seq=4, pos=4]
         %mask = and %near, %causal : bool[seq=4, pos=4]",
    );
    assert!(windowed.contains("attention query seq key pos window=3 over hd"), "{windowed}");
    let from_the_other_side = with_mask(
        "%causal = le %pos, %seq : bool[seq=4, pos=4]
         %two = const 2 : i32[]
         %first = sub %seq, %two : i32[seq=4]
         %near = ge %pos, %first : bool[pos=4, seq=4]
         %mask = and %causal, %near : bool[seq=4, pos=4]",
    );
    assert!(from_the_other_side.contains("window=3 over hd"), "{from_the_other_side}");
}

#[test]
fn recognise_attention_takes_document_ids_as_extras_and_claims_no_bound_for_them() {
    let documents = with_mask(
        "%doc.k = rename %doc as seq -> pos : i32[pos=4]
         %mask = eq %doc, %doc.k : bool[seq=4, pos=4]",
    );
    // No position is read, so the query axis is the one the keys were renamed from.
    assert!(documents.contains("attention query seq key pos full over hd"), "{documents}");
    assert_eq!(documents.matches("arg %extra").count(), 4, "{documents}");
}

#[test]
fn recognise_attention_takes_a_bias_as_an_extra() {
    let biased = ATTENTION
        .replace("MASK", "%mask = le %pos, %seq : bool[seq=4, pos=4]\n%bias = param \"bias\" = normal(1.0) : f32[seq=4, pos=4]")
        .replace(
            "%t = div %s, %c",
            "%t0 = div %s, %c : f32[seq=4, kv=2, group=2, pos=4]\n%t = add %t0, %bias",
        );
    let after = after_pass(|g| recognise(g, &[]), &biased);
    assert!(after.contains("attention query seq key pos causal over hd"), "{after}");
    assert!(after.contains("= %bias : f32[seq=4, pos=4]"), "{after}");
}

/// The bound found for scores written otherwise: `lines` make `%z` from `%s`.
fn bound_of(lines: &str) -> String {
    let (head, rest) = ATTENTION.split_once("MASK").expect("has a mask");
    let (product, rest) = rest.split_once("%c = const").expect("has a scale");
    let (_, tail) = rest.split_once("%p = softmax").expect("has a softmax");
    let causal = "%causal = le %pos, %seq : bool[seq=4, pos=4]\n%lowest = const -inf : f32[]";
    let text = format!("{head}{causal}{product}{lines}\n%p = softmax{tail}");
    let after = after_pass(|g| recognise(g, &[]), &text);
    let (_, rest) = after.split_once("attention query seq key pos ").unwrap_or_else(|| panic!("{after}"));
    rest.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn recognise_attention_derives_the_bound_however_the_mask_is_written() {
    let z = "f32[seq=4, pos=4, kv=2, group=2]";
    // Mask before scale.
    let text = format!(
        "%held = select %causal, %s, %lowest : {z}\n%c = const 2.0 : f32[]\n%z = div %held, %c : {z}"
    );
    assert_eq!(bound_of(&text), "causal");
    // An additive mask.
    let text = format!(
        "%later = gt %pos, %seq : bool[seq=4, pos=4]
         %zero = const 0.0 : f32[]
         %mask = select %later, %lowest, %zero : f32[seq=4, pos=4]
         %z = add %mask, %s : {z}"
    );
    assert_eq!(bound_of(&text), "causal");
    // A negated condition around a soft cap.
    let text = format!(
        "%later = not %causal : bool[seq=4, pos=4]
         %t = tanh %s : f32[seq=4, kv=2, group=2, pos=4]
         %z = select %later, %lowest, %t : {z}"
    );
    assert_eq!(bound_of(&text), "causal");
    // Up to the next key but one: none of the bounds a kernel knows.
    let ahead = |n: u64| {
        format!(
            "%n = const {n} : i32[]
             %next = add %seq, %n : i32[seq=4]
             %seen = lt %pos, %next : bool[seq=4, pos=4]
             %z = select %seen, %s, %lowest : {z}"
        )
    };
    assert_eq!(bound_of(&ahead(1)), "causal");
    assert_eq!(bound_of(&ahead(2)), "full");
    // Nested choices, one of which is the window.
    let text = format!(
        "%two = const 2 : i32[]
         %far = sub %seq, %pos : i32[seq=4, pos=4]
         %near = lt %far, %two : bool[seq=4, pos=4]
         %held = select %near, %s, %lowest : {z}
         %z = select %causal, %held, %lowest : {z}"
    );
    assert_eq!(bound_of(&text), "window=2");
    // Near on both sides.
    let text = format!(
        "%two = const 2 : i32[]
         %far = sub %seq, %pos : i32[seq=4, pos=4]
         %near = lt %far, %two : bool[seq=4, pos=4]
         %z = select %near, %s, %lowest : {z}"
    );
    assert_eq!(bound_of(&text), "full");
}

/// Near misses after recognition.
fn misses(text: &str) -> Vec<String> {
    near_misses(&recognise(crate::testing::graph(text), &[]), &[]).into_iter().map(|m| m.message).collect()
}

#[test]
fn near_misses_tell_why_a_softmax_is_no_attention() {
    let good = ATTENTION.replace("MASK", "%mask = le %pos, %seq : bool[seq=4, pos=4]");
    assert!(misses(&good).is_empty());
    let two = good.replace(
        "%t = div %s, %c",
        "%s2 = dot %q, %k over hd : f32[seq=4, kv=2, group=2, pos=4]
         %s3 = mul %s, %s2 : f32[seq=4, kv=2, group=2, pos=4]
         %t = div %s3, %c",
    );
    let why = "softmax over pos is not recognised as attention: the scores are made from the products %s and %s2, which \
               have to be added up before anything else is done to them";
    assert_eq!(misses(&two), [why]);
}

#[test]
fn near_misses_tell_why_a_loss_is_not_chunked() {
    assert!(misses(HEAD).is_empty());
    let prefix = "cross_entropy over vocab is not computed in chunks of tokens: ";
    let reason = |from: &str, to: &str| misses(&HEAD.replace(from, to)).concat().replace(prefix, "");
    let end = "return loss_sum = %loss";
    let logits = reason(end, "return loss_sum = %loss\nreturn logits = %logits");
    assert_eq!(logits, "the logits %logits are used elsewhere too");
    let tokens = reason(end, "return loss_sum = %loss\nreturn ce = %ce");
    assert_eq!(tokens, "the loss of single tokens is used, not only its sum over all");
    let rows = reason(
        "%loss = reduce_sum %we over batch, seq : f32[]",
        "%loss = reduce_max %we over batch, seq : f32[]",
    );
    assert_eq!(rows, "the loss of single tokens is used, not only its sum over all");
}

#[test]
fn near_misses_tell_of_a_norm_without_a_gain() {
    let text = "graph @f {
        %x = input : f32[seq=3, d=4]
        %xx = mul %x, %x : f32[seq=3, d=4]
        %sum = reduce_sum %xx over d : f32[seq=3]
        %n = const 4.0 : f32[]
        %mean = div %sum, %n : f32[seq=3]
        %eps = const 1e-5 : f32[]
        %ms = add %mean, %eps : f32[seq=3]
        %r = rsqrt %ms : f32[seq=3]
        %y = mul %x, %r : f32[seq=3, d=4]
        return y = %y
    }";
    let why = "x · rsqrt(mean(x·x) + eps) is not recognised as rms_norm: no gain multiplies it";
    assert_eq!(misses(text), [why]);
}

const HEAD: &str = "graph @f {
    %x = input : f32[batch=2, seq=3, d=4]
    %w = input : f32[d=4, vocab=5]
    %targets = input below 5 : i32[batch=2, seq=3]
    %weight = input : f32[batch=2, seq=3]
    %logits = dot %x, %w over d : f32[batch=2, seq=3, vocab=5]
    %ce, %lse = cross_entropy along vocab {
      arg %z = %logits : f32[batch=2, seq=3, vocab=5]
      arg %y = %targets : i32[batch=2, seq=3]
      %e = exp %z : f32[batch=2, seq=3, vocab=5]
      %s = reduce_sum %e over vocab : f32[batch=2, seq=3]
      %n = log %s : f32[batch=2, seq=3]
      %g = gather %z, %y along vocab : f32[batch=2, seq=3]
      %o = sub %n, %g : f32[batch=2, seq=3]
      yield %o : f32[batch=2, seq=3]
      yield %n : f32[batch=2, seq=3]
    }
    %we = mul %ce, %weight : f32[batch=2, seq=3]
    %loss = reduce_sum %we over batch, seq : f32[]
    return loss_sum = %loss
}";

#[test]
fn recognise_loss_head_finds_a_weighted_cross_entropy_of_a_product() {
    check_pass!(|g| recognise(g, &[]), HEAD, @"
        graph @f {
          %x = input : f32[batch=2, seq=3, d=4]
          %w = input : f32[d=4, vocab=5]
          %targets = input below 5 : i32[batch=2, seq=3]
          %weight = input : f32[batch=2, seq=3]
          %loss = loss_head along vocab over d {
            arg %x.1 = %x : f32[batch=2, seq=3, d=4]
            arg %w.1 = %w : f32[d=4, vocab=5]
            arg %targets.1 = %targets : i32[batch=2, seq=3]
            arg %weight.1 = %weight : f32[batch=2, seq=3]
            %t = dot %x.1, %w.1 over d : f32[batch=2, seq=3, vocab=5]
            %ce.0, %ce.1 = cross_entropy along vocab {
              arg %logits.1 = %t : f32[batch=2, seq=3, vocab=5]
              arg %targets.2 = %targets.1 : i32[batch=2, seq=3]
              %t.1 = reduce_max %logits.1 over vocab : f32[batch=2, seq=3]
              %c = const -inf : f32[]
              %c.1 = const 0.0 : f32[]
              %t.2 = eq %t.1, %c : bool[batch=2, seq=3]
              %t.3 = select %t.2, %c.1, %t.1 : f32[batch=2, seq=3]
              %t.4 = sub %logits.1, %t.3 : f32[batch=2, seq=3, vocab=5]
              %t.5 = exp %t.4 : f32[batch=2, seq=3, vocab=5]
              %t.6 = reduce_sum %t.5 over vocab : f32[batch=2, seq=3]
              %t.7 = log %t.6 : f32[batch=2, seq=3]
              %t.8 = add %t.3, %t.7 : f32[batch=2, seq=3]
              %picked = gather %logits.1, %targets.2 along vocab : f32[batch=2, seq=3]
              %t.9 = sub %t.8, %picked : f32[batch=2, seq=3]
              yield %t.9 : f32[batch=2, seq=3]
              yield %t.8 : f32[batch=2, seq=3]
            }
            %t.10 = mul %ce.0, %weight.1 : f32[batch=2, seq=3]
            %t.11 = reduce_sum %t.10 over batch, seq : f32[]
            yield %t.11 : f32[]
          }
          return loss_sum = %loss
        }
    ");
}

#[test]
fn recognise_loss_head_leaves_logits_that_are_used_elsewhere() {
    for other in ["logits", "lse"] {
        let text = HEAD.replace("return", &format!("return other = %{other}\n    return"));
        assert!(!after_pass(recognise_loss_head, &text).contains("loss_head"), "{text}");
    }
}
