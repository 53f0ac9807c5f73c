//! Hostile input: every limit has an error of its own, and nothing panics or exhausts the stack.

use super::check::{LLAMA, LLAMA70B, check_text};
use super::samples;
use crate::spec::diagnostic::render_all;
use crate::spec::{SourceMap, parse, print};

/// The code of the first error of a file.
fn first_code(text: &str) -> String {
    let error = check_text(text, &[]).err().unwrap_or_default();
    error.split(['[', ']']).nth(1).unwrap_or("none").to_string()
}

#[test]
fn limits_refuse_a_file_that_is_too_long() {
    let text = format!("spec 1\n{}", "# filler\n".repeat(parse::MAX_FILE_BYTES / 9 + 1));
    assert_eq!(first_code(&text), "E0104");
}

#[test]
fn limits_refuse_blocks_that_multiply_without_end() {
    let mut blocks = String::from("    block F0(x[n]) -> [n] { x * 2 }\n");
    for i in 1..=24 {
        blocks += &format!("    block F{i}(x[n]) -> [n] {{ F{0}@a(x) + F{0}@b(x) }}\n", i - 1);
    }
    let text =
        format!("spec 1\nmodel M {{\n    size n = 4\n    input x[n]\n{blocks}    loss mean[n](F24(x))\n}}\n");
    assert_eq!(first_code(&text), "E0104");
}

#[test]
fn limits_refuse_deep_chains_of_blocks() {
    let mut blocks = String::from("    block F0(x[n]) -> [n] { x * 2 }\n");
    for i in 1..=200 {
        blocks += &format!("    block F{i}(x[n]) -> [n] {{ F{}(x) }}\n", i - 1);
    }
    let text = format!(
        "spec 1\nmodel M {{\n    size n = 4\n    input x[n]\n{blocks}    loss mean[n](F200(x))\n}}\n"
    );
    assert_eq!(first_code(&text), "E0103");
}

#[test]
fn limits_hold_at_the_edge_on_a_small_stack() {
    // Brackets up to the limit around a chain of operators up to the limit, inside blocks up to the limit.
    let inner = format!("{}x{}{}", "(".repeat(60), " + x".repeat(60), ")".repeat(60));
    let mut blocks = format!("    block F0(x[n]) -> [n] {{ {inner} }}\n");
    for i in 1..=20 {
        blocks += &format!("    block F{i}(x[n]) -> [n] {{ exp(F{}(x)) }}\n", i - 1);
    }
    let text =
        format!("spec 1\nmodel M {{\n    size n = 4\n    input x[n]\n{blocks}    loss mean[n](F20(x))\n}}\n");
    let run =
        std::thread::Builder::new().stack_size(2 << 20).spawn(move || check_text(&text, &[]).map(|_| ()));
    let outcome = run.expect("a thread").join().expect("no overflow");
    assert_eq!(outcome, Ok(()));
}

#[test]
fn limits_refuse_sums_of_sizes_beyond_64_bits() {
    let text =
        "spec 1\nmodel M {\n    size a = 18446744073709551615\n    input x[a]\n    loss mean[a](x)\n}\n";
    assert_eq!(first_code(text), "E0308");
    let text = "spec 1\nmodel M {\n    size a = 9999999999 * 9999999999 * 9999999999 * 9999999999\n    input x[a]\n    loss mean[a](x)\n}\n";
    assert_eq!(first_code(text), "E0308");
}

#[test]
fn limits_show_the_first_hundred_messages_of_one_kind() {
    let text = |n: usize| format!("spec 1\nmodel M {{\n{}}}\n", "const a = 1\n".repeat(n));
    let messages = |n| check_text(&text(n), &[]).err().unwrap_or_default();
    assert_eq!(messages(101).matches("error[E0202]").count(), 100);
    let many = messages(3001);
    assert_eq!(many.matches("error[E0202]: `a` is defined twice").count(), 100);
    assert!(many.contains("error[E0202]: … and 2900 more of E0202"), "{many}");
}

/// A generator that is good enough to mutate text: splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Cuts, doubles, swaps and inserts pieces of a text.
fn mutate(text: &str, random: &mut Random) -> String {
    const PIECES: [&str; 24] = [
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "..",
        "->",
        "<->",
        "@",
        "=",
        ",",
        "\n",
        "\"",
        "#",
        "-",
        "not ",
        "1e999",
        "0",
        "é",
        "as [a: b]",
        "repeat[2](",
        "size q = 3\n",
        "with { a = 1 }",
    ];
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..1 + random.below(4) {
        let at = random.below(chars.len() + 1);
        let end = (at + random.below(12)).min(chars.len());
        match random.below(4) {
            0 => drop(chars.drain(at..end)),
            1 => {
                let piece: Vec<char> = chars[at..end].to_vec();
                chars.splice(at..at, piece);
            }
            2 => drop(chars.splice(at..at, PIECES[random.below(PIECES.len())].chars())),
            _ => {
                let other = random.below(chars.len() + 1);
                if at < chars.len() && other < chars.len() {
                    chars.swap(at, other);
                }
            }
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mutated_specs_never_panic_and_what_parses_prints_the_same_twice() {
    // More rounds for a long search: MLC_MUTATIONS=100000.
    let rounds = std::env::var("MLC_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let seeds = [LLAMA, LLAMA70B, samples::LLAMA, samples::RUN];
    let mut random = Random(rounds as u64);
    let (mut parsed, mut checked) = (0, 0);
    for round in 0..rounds {
        let text = mutate(seeds[round % seeds.len()], &mut random);
        let mut sources = SourceMap::new();
        let id = sources.add("main.spec", text.as_str());
        match parse::parse(&sources, id) {
            Ok(file) => {
                parsed += 1;
                let once = print::print(&file, &text);
                let again = sources.add("again.spec", once.as_str());
                let file = parse::parse(&sources, again).unwrap_or_else(|d| {
                    panic!("printed text does not parse:\n{}\nfrom:\n{text}", render_all(&d, &sources, false))
                });
                assert_eq!(once, print::print(&file, &once), "from:\n{text}");
            }
            Err(found) => assert!(!render_all(&found, &sources, false).is_empty()),
        }
        checked += usize::from(check_text(&text, &[]).is_ok());
    }
    assert!(
        parsed > 50 && checked > 5,
        "the mutations are too wild to test anything: {parsed} parsed, {checked} checked"
    );
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(2);
    for _ in 0..300 {
        let length = random.below(200);
        let bytes: Vec<u8> = (0..length).map(|_| (random.next() >> 20) as u8).collect();
        let text = format!("spec 1\n{}", String::from_utf8_lossy(&bytes));
        let _ = check_text(&text, &[]);
    }
}
