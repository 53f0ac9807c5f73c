//! Tree to canonical text.

use super::samples;
use crate::spec::diagnostic::render_all;
use crate::spec::{SourceMap, parse, print};

/// The canonical form of a text.
fn printed(text: &str) -> String {
    let mut sources = SourceMap::new();
    let id = sources.add("test.spec", text);
    let file = parse::parse(&sources, id).unwrap_or_else(|d| panic!("{}", render_all(&d, &sources, false)));
    print::print(&file, text)
}

/// The tree without places, for comparison.
fn tree(text: &str) -> String {
    let mut sources = SourceMap::new();
    let id = sources.add("test.spec", text);
    let file = parse::parse(&sources, id).unwrap_or_else(|d| panic!("{}", render_all(&d, &sources, false)));
    let mut out = String::new();
    let mut rest = format!("{:#?}", file.items);
    while let Some(at) = rest.find("<0:") {
        out.push_str(&rest[..at]);
        let end = rest[at..].find('>').expect("a span closes");
        rest.replace_range(..at + end + 1, "");
    }
    out + &rest
}

#[test]
fn print_then_parse_then_print_is_identity_on_the_samples() {
    for text in [samples::LLAMA, samples::RUN] {
        let once = printed(text);
        assert_eq!(once, printed(&once));
        assert_eq!(tree(text), tree(&once), "printing changed the tree");
        let comments = |t: &str| t.matches('#').count();
        assert_eq!(comments(text), comments(&once), "a comment got lost");
    }
}

/// Keys and globs of `shard` stand anywhere between its rules, and stay there.
#[test]
fn print_leaves_keys_of_shard_where_they_stand() {
    let text = "spec 1\nmesh { data = 2 }\nshard {\n    # how\n    mode = strict  # at once\n    batch -> data\n\n    allow_replicate \"layer.*\"\n    seq -> none\n}\n";
    assert_eq!(printed(text), text);
}

#[test]
fn print_is_canonical_for_the_model_sample() {
    insta::assert_snapshot!(printed(samples::LLAMA));
}

#[test]
fn print_is_canonical_for_the_run_sample() {
    insta::assert_snapshot!(printed(samples::RUN));
}
