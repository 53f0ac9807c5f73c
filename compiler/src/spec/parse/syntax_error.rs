//! Syntax errors in plain words: what was found, what could have stood there.

use pest::error::{ErrorVariant, InputLocation};

use super::Rule;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::{SourceId, Span};

/// Words that can't be names; the grammar's `keyword`.
const KEYWORDS: [&str; 32] = [
    "spec", "use", "as", "with", "model", "size", "const", "input", "param", "block", "role", "loss", "aux",
    "names", "manual", "kernel", "for", "lower", "mesh", "shard", "store", "train", "pipeline", "freeze",
    "except", "adapter", "target", "over", "then", "and", "or", "not",
];

/// A syntax error of the grammar as a message; `base` is where `text` starts in its source.
pub(super) fn syntax_error(
    id: SourceId,
    text: &str,
    base: u32,
    error: &pest::error::Error<Rule>,
) -> Diagnostic {
    let at = match error.location {
        InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
    };
    let found = text.get(at..).unwrap_or("");
    let length = match found.chars().next() {
        None => 0,
        Some(c) if c.is_alphanumeric() || c == '_' => {
            found.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(found.len())
        }
        Some(c) => c.len_utf8(),
    };
    let span = Span { source: id, start: base + at as u32, end: base + (at + length) as u32 };
    let shown = match &found[..length] {
        "" => "end of the text".to_string(),
        "\n" => "end of the line".to_string(),
        other => format!("`{other}`"),
    };
    let expected = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => expectations(positives),
        ErrorVariant::CustomError { message } => {
            return Diagnostic::error(codes::NESTING, "the text is nested too deeply to be read")
                .at(span, message.clone());
        }
    };
    if expected == ["`spec`"] {
        return Diagnostic::error(codes::VERSION, "the version line is missing")
            .at(span, "expected `spec 1`")
            .help("start the file with the line `spec 1`");
    }
    let diagnostic = Diagnostic::error(codes::SYNTAX, format!("unexpected {shown}"));
    if expected.is_empty() {
        return diagnostic.at(span, "not expected here");
    }
    let diagnostic = diagnostic.at(span, format!("expected {}", join_or(&expected)));
    let wants_name = expected.contains(&"a name") || expected.contains(&"an axis name");
    if wants_name && KEYWORDS.contains(&&found[..length]) {
        return diagnostic.help(format!("{shown} is a word of the language; choose another name"));
    }
    let starts_line = text[..at].rsplit('\n').next().is_some_and(|line| line.trim().is_empty()) && at > 0;
    if starts_line && found.starts_with(['+', '*', '/', '<', '>', ')', ']', '.']) {
        return diagnostic
            .help("a line can be broken after an operator, a comma or an opening bracket, not before one");
    }
    diagnostic
}

/// `a`, `a or b`, `a, b or c`.
fn join_or(items: &[&str]) -> String {
    match items {
        [] => String::new(),
        [one] => one.to_string(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// What the grammar would have accepted, in plain words, each once, in order of first mention.
fn expectations(rules: &[Rule]) -> Vec<&'static str> {
    let mut words = vec![];
    for rule in rules {
        if let Some(word) = rule_name(*rule)
            && !words.contains(&word)
        {
            words.push(word);
        }
    }
    // A place where an operator may stand can also end the statement: the operators say enough.
    if words.len() > 6 {
        words.truncate(6);
    }
    words
}

/// The plain name of a grammar rule; `None` for rules that only group others.
fn rule_name(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::p_open => "`{`",
        Rule::p_close => "`}`",
        Rule::p_eq => "`=`",
        Rule::p_arrow | Rule::out_axes => "`->`",
        Rule::p_both => "`<->`",
        Rule::p_lparen | Rule::args | Rule::formals | Rule::value_args => "`(`",
        Rule::p_rparen => "`)`",
        Rule::p_lbrack
        | Rule::dims
        | Rule::param_dims
        | Rule::ref_axes
        | Rule::generics
        | Rule::axis_list => "`[`",
        Rule::p_rbrack => "`]`",
        Rule::p_colon | Rule::elem_type => "`:`",
        Rule::bound => "`<`",
        Rule::k_spec | Rule::version => "`spec`",
        Rule::k_use => "`use`",
        Rule::k_as | Rule::rename => "`as`",
        Rule::k_with => "`with`",
        Rule::k_model => "`model`",
        Rule::k_for => "`for`",
        Rule::k_except => "`except`",
        Rule::k_over => "`over`",
        Rule::k_then => "`then`",
        Rule::role | Rule::k_role => "`role`",
        Rule::number | Rule::numeric => "a number",
        Rule::string | Rule::string_text | Rule::strings => "a quoted string",
        Rule::ident | Rule::path | Rule::word | Rule::param | Rule::binding | Rule::axis_names => "a name",
        Rule::key | Rule::assign | Rule::entry => "a key",
        Rule::expr
        | Rule::operand
        | Rule::neg
        | Rule::k_not
        | Rule::paren
        | Rule::expr_list
        | Rule::reference
        | Rule::sum
        | Rule::yield_stmt
        | Rule::arg => "an expression",
        Rule::value
        | Rule::term
        | Rule::tuple
        | Rule::list
        | Rule::tagged
        | Rule::tagged_head
        | Rule::value_word
        | Rule::value_arg => "a value",
        Rule::instance => "`@`",
        Rule::unit => "a unit",
        Rule::range_to => "`..`",
        Rule::dim | Rule::leading => "an axis name",
        Rule::op_le | Rule::op_ge | Rule::op_eq | Rule::op_ne | Rule::op_lt | Rule::op_gt => "an operator",
        Rule::op_add | Rule::op_sub | Rule::op_mul | Rule::op_div | Rule::op_and | Rule::op_or => {
            "an operator"
        }
        Rule::section => "`{`",
        Rule::body => "`{`",
        Rule::sizes | Rule::consts | Rule::input | Rule::params | Rule::block | Rule::loss | Rule::aux => {
            "a statement"
        }
        Rule::names | Rule::manual | Rule::kernel | Rule::lower | Rule::let_stmt | Rule::let_name => {
            "a statement"
        }
        Rule::k_size | Rule::k_const | Rule::k_input | Rule::k_param | Rule::k_block | Rule::k_loss => {
            "a statement"
        }
        Rule::k_aux | Rule::k_names | Rule::k_manual | Rule::k_kernel | Rule::k_lower => "a statement",
        Rule::use_item | Rule::model | Rule::shard | Rule::freeze | Rule::adapter | Rule::target => "an item",
        Rule::section_item | Rule::section_kind => "an item",
        Rule::k_shard | Rule::k_freeze | Rule::k_adapter | Rule::k_target => "an item",
        Rule::EOI => "the end of the text",
        Rule::axis_choice | Rule::joint_axes => "an axis name",
        Rule::shard_rule | Rule::shard_scope => "a sharding rule",
        Rule::name_rule => "a quoted string",
        Rule::default => "`=`",
        _ => return None,
    })
}
