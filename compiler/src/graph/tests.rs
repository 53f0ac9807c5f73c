//! Tests of the text form, the verifier and the passes.

use super::parse::parse;
use super::print::print;
use super::verify::{Stage, verify};
use super::{Op, OpId, RegionId, ValueId};

const EVERYTHING: &str = r#"graph @all {
  %tokens = input below 8 : i32[batch=2, seq=4]  // a.spec:3 forward
  %"odd name" = input "x" : f32[seq=4]  // "my model.spec":4 forward
  %table = param "layer.{i}.w" = normal(0.02) : f32[layer=3, vocab=8, d=4]  // a.spec:5 layer forward
  %b = param "b" = uniform(-0.1, 1e-5) : f32[d=4]  // :7 forward
  %m = state "b" m : f32[d=4]  // update
  %lr = scalar "train.optimizer.lr" = 0.0003 : f64[]
  %minus = const -inf : f32[]
  %seq = index seq : i32[seq=4]
  %e = exp %b : f32[d=4]  // "forward" forward
  %s = add %b, %e : f32[d=4]
  %c = le %b, %e : bool[d=4]
  %w = select %c, %b, %e : f32[d=4]
  %g = cast %w : bf16[d=4]
  %r = broadcast %w : f32[layer=3, d=4]
  %q = rename %r as layer -> k, d -> "odd axis" : f32[k=3, "odd axis"=4]
  %z = reduce_max %r over layer, d : f32[]
  %o = dot %b, %e : f32[d=4]
  %p = dot %b, %r over d : f32[layer=3]
  %rot = rotate_pairs %b along d interleaved : f32[d=4]
  %part = slice %r along d -> "odd axis" at 1 : f32[layer=3, "odd axis"=2]
  %whole = concat %part, %r along "odd axis", d -> d : f32[layer=3, d=6]
  %h, %stack, %sum = loop layer=3 reverse {  // a.spec:9 layer backward_input
    index %i : i32[]
    carry %x = %b : f32[d=4]
    stacked %t = %table : f32[vocab=8, d=4]
    invariant %ids = %tokens : i32[batch=2, seq=4]
    %look = gather %t, %ids along vocab : f32[batch=2, seq=4, d=4]
    %back = scatter_add %look, %ids along vocab : f32[vocab=8, d=4]
    %l = reduce_sum %look over batch, seq : f32[d=4]
    %y = add %x, %l : f32[d=4]
    yield carry %y : f32[d=4]
    yield stacked %back : f32[layer=3, vocab=8, d=4]
    yield sum %l : f32[d=4]
  }
  %n = softmax along d {
    arg %v = %h : f32[d=4]
    %v.max = reduce_max %v over d : f32[]
    %v.sub = sub %v, %v.max : f32[d=4]
    %v.exp = exp %v.sub : f32[d=4]
    %v.sum = reduce_sum %v.exp over d : f32[]
    %v.out = div %v.exp, %v.sum : f32[d=4]
    yield %v.out : f32[d=4]
  }
  %b.new, %m.new = update "b" states m {  // update
    arg %u.p = %b : f32[d=4]
    arg %u.g = %n : f32[d=4]
    arg %u.m = %m : f32[d=4]
    %u.q = sub %u.p, %u.g : f32[d=4]
    yield %u.q : f32[d=4]
    yield %u.g : f32[d=4]
  }
  return loss_sum = %z
  return "store" = %z
  return store "b" = %b.new
  return store "b.m" = %m.new
}
"#;

#[test]
fn print_gives_back_what_parse_read() {
    let graph = parse(EVERYTHING).unwrap();
    assert_eq!(print(&graph), EVERYTHING);
    assert_eq!(parse(&print(&graph)).unwrap(), graph);
}

#[test]
fn parse_says_where_a_text_goes_wrong() {
    let cases = [
        ("graph @f {\n  %x = exp %y : f32[]\n}\n", "2:12: %y is not defined before this line"),
        ("graph @f {\n  %x = nope : f32[]\n}\n", "2:8: `nope` is not an op"),
        ("graph @f {\n  %x = input : f33[]\n}\n", "2:16: `f33` is not an element type"),
        ("graph @f {\n  %x = input : f32[d=0]\n}\n", "2:22: an axis's size is at least 1"),
        ("graph @f {\n  %x = input : f32[d=4, d=4]\n}\n", "2:25: axis d appears twice"),
        (
            "graph @f {\n  %x = input : f32[d=9999999999, e=9999999999]\n}\n",
            "2:16: a tensor has at most 2^50 elements",
        ),
        ("graph @f {\n  %x = const one : f32[]\n}\n", "2:14: expected a number, found `one`"),
        ("graph @f {\n", "1:11: expected an op, `%result = …`, found the end of the text"),
        ("graph @f {\n  %x = input : f32[]\n  %x = input : f32[]\n}\n", "3:3: %x is defined twice"),
        (
            "graph @f {\n  %x = input : f32[]  // once upon a time\n}\n",
            "2:23: a trailing comment says `file:line block.path phase`; other notes stand on their own line",
        ),
        (
            "graph @f {\n  %x = input : f32[d=2]\n  %y = loop d=2 {\n    index %i : i32[]\n    %z = exp %x : f32[d=2]\n",
            "5:14: %x belongs to another region; values come into a region through its arguments",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn parse_survives_mangled_text() {
    // Cuts, repeats and overwrites at pseudo-random places (a linear congruential generator, fixed seed).
    let mut seed = 1u64;
    let mut next = |bound: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % bound
    };
    let source: Vec<char> = EVERYTHING.chars().collect();
    let mut read = 0;
    for _ in 0..1500 {
        let mut text = source.clone();
        for _ in 0..1 + next(3) {
            let (at, other) = (next(text.len()), next(text.len()));
            match next(3) {
                0 => drop(text.drain(at..(at + next(40)).min(source.len().min(text.len())).max(at))),
                1 => text[at] = ['%', '{', '}', '"', '-', '9', ':', 'é'][next(8)],
                _ => {
                    let piece: Vec<char> = text[other..(other + 30).min(text.len())].to_vec();
                    text.splice(at..at, piece);
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(graph) = parse(&text) {
            let printed = print(&graph);
            assert_eq!(print(&parse(&printed).unwrap()), printed);
            read += 1;
        }
    }
    assert!(read > 10, "the mangling is too rough to reach what lies behind the parser: {read}");
}

#[test]
fn parse_refuses_endless_nesting() {
    let mut text = String::from("graph @f {\n");
    for i in 0..1000 {
        text += &format!("%x{i} = loop d=1 {{\nindex %i{i} : i32[]\n");
    }
    assert!(parse(&text).unwrap_err().message.contains("nest deeper"));
}

#[test]
fn verify_refuses_operands_and_types_that_do_not_fit() {
    check_refuses!("graph @f {
        %x = input : f32[d=4]
        %y = input : f32[e=4]
        %n = input : i32[d=4]
        %a = add %x, %y : f32[d=4]
        %b = add %x, %n : f32[d=4]
        %c = exp %n : i32[d=4]
        %d = dot %x, %y over d : f32[e=4]
        %e = reduce_sum %x over e : f32[]
        %f = pow %x, %x : f32[d=4]
        %g = rotate_pairs %x along e half : f32[d=4]
        %h = mul %x, %x : f32[d=5]
        return y = %a
    }", @"
        graph @f {
          %x = input : f32[d=4]
          %y = input : f32[e=4]
          %n = input : i32[d=4]
          %a = add %x, %y : f32[d=4]
          ; error: add gives f32[d=4, e=4], not f32[d=4]
          %b = add %x, %n : f32[d=4]
          ; error: add mixes f32[d=4] and i32[d=4]
          %c = exp %n : i32[d=4]
          ; error: exp does not work on i32
          %d = dot %x, %y over d : f32[e=4]
          ; error: contraction axis d is missing on the right side, f32[e=4]
          %e = reduce_sum %x over e : f32[]
          ; error: f32[d=4] has no axis e to reduce
          %f = pow %x, %x : f32[d=4]
          ; error: pow does not work on f32
          %g = rotate_pairs %x along e half : f32[d=4]
          ; error: f32[d=4] has no axis e
          %h = mul %x, %x : f32[d=5]
          ; error: mul gives f32[d=4], not f32[d=5]
          return y = %a
        }
    ");
}

#[test]
fn verify_refuses_parts_that_do_not_fit() {
    check_refuses!("graph @f {
        %x = input : f32[m=2, d=4]
        %y = input : f32[m=3, e=2]
        %n = input : i32[m=2, e=2]
        %a = slice %x along d -> e at 3 : f32[m=2, e=2]
        %b = slice %x along e -> d at 0 : f32[m=2, d=2]
        %c = slice %x along d -> e at 0 : f32[m=3, e=2]
        %d = concat %x, %y along d, e -> w : f32[m=2, w=6]
        %e = concat %x, %n along d, e -> w : f32[m=2, w=6]
        %f = concat %x, %x along d, d -> m : f32[m=8]
        %g = concat %x, %x along d -> w : f32[m=2, w=8]
        return y = %a
    }", @"
        graph @f {
          %x = input : f32[m=2, d=4]
          %y = input : f32[m=3, e=2]
          %n = input : i32[m=2, e=2]
          %a = slice %x along d -> e at 3 : f32[m=2, e=2]
          ; error: slice takes 2 elements at 3 of d=4
          %b = slice %x along e -> d at 0 : f32[m=2, d=2]
          ; error: slice along e -> d of f32[m=2, d=4] can't be f32[m=2, d=2]
          %c = slice %x along d -> e at 0 : f32[m=3, e=2]
          ; error: slice of f32[m=2, d=4] keeps its other axes, not f32[m=3, e=2]
          %d = concat %x, %y along d, e -> w : f32[m=2, w=6]
          ; error: concat of f32[m=2, d=4] and f32[m=3, e=2]: other axes differ
          %e = concat %x, %n along d, e -> w : f32[m=2, w=6]
          ; error: concat mixes f32[m=2, d=4] and i32[m=2, e=2]
          %f = concat %x, %x along d, d -> m : f32[m=8]
          ; error: concat would have the axis m twice
          %g = concat %x, %x along d -> w : f32[m=2, w=8]
          ; error: concat takes one axis per operand, got 1 and 2
          return y = %a
        }
    ");
}

#[test]
fn verify_refuses_loops_whose_body_does_not_fit() {
    check_refuses!("graph @f {
        %x = input : f32[d=4]
        %w = input : f32[layer=3, d=4]
        %a = loop layer=2 {
          index %i : i32[]
          stacked %s = %w : f32[d=4]
          yield sum %s : f32[d=4]
        }
        %b = loop layer=3 {
          index %j : f32[]
          invariant %t = %x : f32[d=4]
          yield sum %t : f32[d=4]
        }
        %c = loop layer=3 {
          index %k : i32[]
          carry %u = %x : f32[d=4]
          %v = reduce_sum %u over d : f32[]
          yield carry %v : f32[d=4]
        }
        %e = loop layer=3 {
          index %l : i32[]
          %m = input : f32[d=4]
          yield stacked %m : f32[layer=2, d=4]
        }
        return y = %a
    }", @"
        graph @f {
          %x = input : f32[d=4]
          %w = input : f32[layer=3, d=4]
          %a = loop layer=2 {
          ; error: the loop runs over layer=2, a stacked operand is f32[layer=3, d=4]
            index %i : i32[]
            stacked %s = %w : f32[d=4]
            yield sum %s : f32[d=4]
          }
          %b = loop layer=3 {
          ; error: argument %j is f32[], got i32[]
          ; error: a loop's region begins with its index, i32[]
            index %j : f32[]
            invariant %t = %x : f32[d=4]
            yield sum %t : f32[d=4]
          }
          %c = loop layer=3 {
          ; error: carry 0 goes in as f32[d=4] and comes out as f32[]
            index %k : i32[]
            carry %u = %x : f32[d=4]
            %v = reduce_sum %u over d : f32[]
            yield carry %v : f32[d=4]
          }
          %e = loop layer=3 {
          ; error: %e is f32[layer=3, d=4], not f32[layer=2, d=4]
            index %l : i32[]
            %m = input : f32[d=4]
            ; error: input stands in the body only
            yield stacked %m : f32[layer=2, d=4]
          }
          return y = %a
        }
    ");
}

#[test]
fn verify_refuses_sources_read_twice_and_states_without_parameters() {
    check_refuses!("graph @f {
        %x = input \"x\" : f32[d=4]
        %y = input \"x\" : f32[d=4]
        %ids = input below 9 : f32[d=4]
        %m = state \"w\" m : f32[d=4]
        %w = param \"w\" = normal(0.02) : f32[d=4]
        %v = state \"w\" v : f32[d=5]
        %n = exp %ids : f32[d=4]
        %s = reduce_sum %n over d : f32[]
        return y = %x
        return y = %y
        return store \"w\" = %s
    }", @r#"
        graph @f {
          %x = input : f32[d=4]
          %y = input "x" : f32[d=4]
          ; error: input x is read by two ops
          %ids = input below 9 : f32[d=4]
          ; error: ids are i32, not f32[d=4]
          %m = state "w" m : f32[d=4]
          ; error: the parameter w is not defined before its state
          %w = param "w" = normal(0.02) : f32[d=4]
          %v = state "w" v : f32[d=5]
          ; error: the parameter w is f32[d=4]
          %n = exp %ids : f32[d=4]
          %s = reduce_sum %n over d : f32[]
          return y = %x
          return y = %y
          ; error: Report(y) is returned twice
          return store "w" = %s
          ; error: w is f32[d=4], what is stored f32[]
        }
    "#);
}

#[test]
fn verify_refuses_composites_and_updates_of_the_wrong_form() {
    check_refuses!("graph @f {
        %x = input : f32[d=4]
        %a = softmax along e {
          arg %b = %x : f32[d=4]
          yield %b : f32[d=4]
        }
        %c, %c2 = rope along d theta=10000.0 half {
          arg %d = %x : f32[d=4]
          yield %d : f32[d=4]
          yield %d : f32[d=4]
        }
        %e = update \"w\" {
          arg %f = %x : f32[d=4]
          arg %g = %x : f32[d=4]
          %h = reduce_sum %g over d : f32[]
          yield %h : f32[]
        }
        %o, %lse = attention query s key d full over d {
          arg %q = %x : f32[d=4]
          arg %k = %x : f32[d=4]
          arg %v = %x : f32[d=4]
          yield %q : f32[d=4]
          yield %k : f32[d=4]
          score {
            arg %sc : f32[d=4]
            arg %qi : i32[]
            %sr = reduce_sum %sc over d : f32[]
            yield %sr : f32[]
          }
        }
        return y = %a
    }", @r#"
        graph @f {
          %x = input : f32[d=4]
          %a = softmax along e {
          ; error: f32[d=4] has no axis e
            arg %b = %x : f32[d=4]
            yield %b : f32[d=4]
          }
          %c, %c2 = rope along d theta=10000.0 half {
          ; error: rope has 1 operands and 2 results
            arg %d = %x : f32[d=4]
            yield %d : f32[d=4]
            yield %d : f32[d=4]
          }
          %e = update "w" {
          ; error: an update turns f32[d=4] into f32[]
            arg %f = %x : f32[d=4]
            arg %g = %x : f32[d=4]
            %h = reduce_sum %g over d : f32[]
            yield %h : f32[]
          }
          %o, %lse = attention query s key d full over d {
          ; error: f32[d=4] has no axis s
          ; error: the score region takes [F32, I32] and gives 1, not [F32, I32, I32] and 1
            arg %q = %x : f32[d=4]
            arg %k = %x : f32[d=4]
            arg %v = %x : f32[d=4]
            yield %q : f32[d=4]
            yield %k : f32[d=4]
            score {
              arg %sc : f32[d=4]
              ; error: a score region is a function of scalars
              arg %qi : i32[]
              %sr = reduce_sum %sc over d : f32[]
              ; error: reduce_sum is not element-wise
              yield %sr : f32[]
            }
          }
          return y = %a
        }
    "#);
}

#[test]
fn verify_holds_each_stage_to_its_ops() {
    let text = "graph @f {
        %w = param \"w\" = normal(0.02) : f32[d=4]
        %m = state \"w\" m : f32[d=4]
        %p = softmax along d {  // m.spec:1 backward_input
          arg %a = %w : f32[d=4]
          yield %a : f32[d=4]
        }
        return y = %p
    }";
    check_refuses!(Stage::Graph, text, @r#"
        graph @f {
          %w = param "w" = normal(0.02) : f32[d=4]
          %m = state "w" m : f32[d=4]
          ; error: state does not appear at stage graph
          %p = softmax along d {  // m.spec:1 backward_input
          ; error: every op at stage graph is of phase forward
            arg %a = %w : f32[d=4]
            yield %a : f32[d=4]
          }
          return y = %p
        }
    "#);
    check_refuses!(Stage::Fused, text, @r#"
        graph @f {
          %w = param "w" = normal(0.02) : f32[d=4]
          %m = state "w" m : f32[d=4]
          %p = softmax along d {  // m.spec:1 backward_input
          ; error: softmax does not appear at stage fused
            arg %a = %w : f32[d=4]
            yield %a : f32[d=4]
          }
          return y = %p
        }
    "#);
    verify(&parse(text).unwrap(), Stage::Training).unwrap();
}

#[test]
fn verify_survives_ids_that_point_nowhere() {
    let good = parse(EVERYTHING).unwrap();
    verify(&good, Stage::Any).unwrap();
    for i in 0..good.ops.len() {
        let mut graph = good.clone();
        graph.ops[i].operands.push(ValueId(99_999));
        assert!(verify(&graph, Stage::Any).is_err(), "operand of op {i}");
        let mut graph = good.clone();
        graph.ops[i].results = vec![ValueId(99_999)];
        assert!(verify(&graph, Stage::Any).is_err(), "result of op {i}");
        let mut graph = good.clone();
        graph.ops[i].results = good.ops[(i + 1) % good.ops.len()].results.clone();
        assert!(verify(&graph, Stage::Any).is_err(), "doubled results of op {i}");
    }
    for i in 0..good.regions.len() {
        let mut graph = good.clone();
        graph.regions[i].ops.push(OpId(99_999));
        assert!(verify(&graph, Stage::Any).is_err(), "op of region {i}");
    }
    let mut graph = good.clone();
    let update = graph.ops.iter().position(|o| matches!(o.op, Op::Update(_))).unwrap();
    let Op::Update(u) = &mut graph.ops[update].op else { unreachable!("found above") };
    u.body = RegionId(0);
    assert!(verify(&graph, Stage::Any).unwrap_err().to_string().contains("belongs to two ops"));
}

#[test]
fn a_taken_name_gets_the_next_number_of_its_stem() {
    let mut graph = crate::graph::Graph::new("f");
    let mut add = |name: &str| {
        let id = graph.add_value(name, crate::graph::Type::scalar(crate::graph::DType::F32));
        graph.value_name(id).to_string()
    };
    let names: Vec<String> = ["h", "h", "h.1", "h.1", "h.7", "h", "k.2", "k.2", "k"].map(&mut add).into();
    assert_eq!(names, ["h", "h.1", "h.2", "h.3", "h.7", "h.4", "k.2", "k.1", "k.3"]);
}

#[test]
fn the_graphs_of_the_manual_verify_print_as_they_stand_and_run() {
    let manual = include_str!("../../../docs/graph-text.md");
    let texts: Vec<&str> =
        manual.split("```graph\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(texts.len(), 2);
    for text in texts {
        let graph = crate::testing::graph(text);
        assert_eq!(print(&graph), text);
        let environment = crate::interpret::sample_environment(&graph, 0);
        let outputs = crate::interpret::run(&graph, &environment, crate::interpret::Mode::F64).unwrap();
        assert_eq!(outputs.0.len(), graph.outputs.len());
    }
    assert!(manual.contains("; error: add mixes f32[batch=2, d=4] and i32[batch=2]"));
}
