//! Tests of the text form, the verifier and the passes.

use super::parse::parse;
use super::print::print;

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
