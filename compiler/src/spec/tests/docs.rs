//! The language reference: its examples check, its tables are those of the schema.

use super::check::check_text;
use crate::spec::schema;

const PAGE: &str = include_str!("../../../../docs/spec-language.md");

/// A model around the statements of an example.
fn in_model(statements: &str) -> String {
    let loss = if statements.contains("loss ") { "" } else { "loss mean[b, n](x)\n" };
    format!(
        "spec 1\nmodel M {{\nsize b = 4, n = 8, m = 6\ninput x[b, n]\ninput y[b, m]\n{statements}{loss}}}\n"
    )
}

#[test]
fn docs_examples_check() {
    let mut seen = 0;
    for (number, part) in PAGE.split("\n```").enumerate().filter(|(_, p)| p.starts_with("spec")) {
        let (tag, text) = part.split_once('\n').expect("a code block has a first line");
        let text = format!("{text}\n");
        let file = match tag.trim() {
            "spec" => text,
            "spec model" => in_model(&text),
            "spec run" => format!("spec 1\nuse \"llama.spec\" as Llama with {{ layers = 32 }}\n{text}"),
            other => panic!("unknown kind of example: {other}"),
        };
        seen += 1;
        if let Err(messages) = check_text(&file, &[]) {
            panic!("example {number} of docs/spec-language.md:\n{file}\n{messages}");
        }
    }
    assert!(seen >= 15, "found only {seen} examples");
}

#[test]
fn docs_tables_are_those_of_the_schema() {
    let table = schema::reference();
    assert!(PAGE.contains(table.trim()), "docs/spec-language.md lacks these tables:\n{table}");
}

#[test]
fn docs_name_every_function() {
    for name in crate::spec::check::FUNCTIONS {
        assert!(PAGE.contains(name), "docs/spec-language.md does not mention `{name}`");
    }
}
