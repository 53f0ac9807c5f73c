//! Text to syntax tree.
//!
//! 1. Measure bracket nesting and refuse text nested beyond [`MAX_NESTING`], so that neither the grammar's
//!    recursion nor any later walk over the tree can exhaust the stack.
//! 2. Run the grammar (`grammar.pest`).
//! 3. Build the tree from the grammar's pairs; operators get their precedence here.

use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::Pair;

use super::ast::*;
use super::codes;
use super::diagnostic::Diagnostic;
use super::source::{SourceId, SourceMap, Span};

#[allow(missing_docs, reason = "the derive macro makes one undocumented item per grammar rule")]
mod grammar {
    /// The parser that `grammar.pest` describes.
    #[derive(pest_derive::Parser)]
    #[grammar = "spec/grammar.pest"]
    pub struct Grammar;
}
use grammar::{Grammar, Rule};

/// Deepest nesting of brackets.
pub const MAX_NESTING: usize = 64;
/// Deepest nesting of one expression, counting brackets and operators; a chain of n `+` counts as n deep.
pub const MAX_DEPTH: usize = 128;
/// Longest file in bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Parses one source.
///
/// # Errors
/// The first syntax error of each top-level item, or a named limit.
pub fn parse(sources: &SourceMap, id: SourceId) -> Result<File, Vec<Diagnostic>> {
    let text = sources.get(id).map_or("", |s| s.text.as_str());
    limits(id, text).map_err(|d| vec![d])?;
    let mut build = Build { source: id, base: 0, depth: 0, errors: vec![] };
    let pairs = match Grammar::parse(Rule::file, text) {
        Ok(pairs) => pairs,
        Err(error) => return Err(vec![syntax_error(id, text, 0, &error)]),
    };
    let mut file = build.file(first(pairs));
    file.comments = comments(text);
    if build.errors.is_empty() { Ok(file) } else { Err(build.errors) }
}

/// Parses the text of one `--set`: the dotted key and its value.
///
/// # Errors
/// A syntax error.
pub fn parse_set(sources: &SourceMap, id: SourceId) -> Result<(Ident, Value), Vec<Diagnostic>> {
    let text = sources.get(id).map_or("", |s| s.text.as_str());
    limits(id, text).map_err(|d| vec![d])?;
    let mut build = Build { source: id, base: 0, depth: 0, errors: vec![] };
    match Grammar::parse(Rule::set_line, text) {
        Err(error) => {
            Err(vec![syntax_error(id, text, 0, &error).help("an override reads `train.steps=100`")])
        }
        Ok(pairs) => {
            let mut parts = Parts::of(first(pairs));
            let parsed = (build.ident(parts.take()), build.value(parts.take()));
            if build.errors.is_empty() { Ok(parsed) } else { Err(build.errors) }
        }
    }
}

/// Refuses a text that is too long or nested too deeply.
fn limits(id: SourceId, text: &str) -> Result<(), Diagnostic> {
    if text.len() > MAX_FILE_BYTES {
        let title = format!("the file is larger than the limit of {} MiB", MAX_FILE_BYTES >> 20);
        return Err(Diagnostic::error(codes::TOO_LARGE, title));
    }
    let mut depth = 0usize;
    for (at, c) in code_chars(text) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth > MAX_NESTING {
            let span = Span { source: id, start: at as u32, end: at as u32 + 1 };
            let title = format!("brackets are nested deeper than the limit: {MAX_NESTING}");
            return Err(Diagnostic::error(codes::NESTING, title)
                .at(span, "this one is too deep")
                .help("give inner parts names of their own"));
        }
    }
    Ok(())
}

/// The characters of a text that are neither in strings nor in comments, with their byte offsets.
fn code_chars(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut in_string, mut in_comment, mut escaped) = (false, false, false);
    text.char_indices().filter(move |&(_, c)| {
        if c == '\n' {
            (in_string, in_comment, escaped) = (false, false, false);
            return true;
        }
        if in_comment {
            return false;
        }
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            return false;
        }
        in_string = c == '"';
        in_comment = c == '#';
        !in_string && !in_comment
    })
}

/// All comments of a text.
fn comments(text: &str) -> Vec<Comment> {
    let mut found = vec![];
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(at) = comment_start(line) {
            found.push(Comment {
                start: (line_start + at) as u32,
                own_line: line[..at].trim().is_empty(),
                text: line[at..].trim_end().to_string(),
            });
        }
        line_start += line.len();
    }
    found
}

/// Offset of the `#` that starts a comment on this line.
fn comment_start(line: &str) -> Option<usize> {
    let (mut in_string, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            '#' if !in_string => return Some(at),
            '"' if !escaped => in_string = !in_string,
            _ => {}
        }
        escaped = in_string && !escaped && c == '\\';
    }
    None
}

/// Cuts blanks and comments off the end. A rule that ends in an optional part covers those in front of the absent part.
fn without_trailing_blanks(text: &str) -> &str {
    let mut text = text.trim_end();
    loop {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        match comment_start(&text[line..]) {
            Some(at) => text = text[..line + at].trim_end(),
            None => return text,
        }
    }
}

// ---- syntax errors ---------------------------------------------------------------------------------------------

fn syntax_error(id: SourceId, text: &str, base: u32, error: &pest::error::Error<Rule>) -> Diagnostic {
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

// ---- building the tree -------------------------------------------------------------------------------------------

/// Any rule that is only punctuation or a keyword; the builder never needs to see it.
fn is_noise(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::p_open
            | Rule::p_close
            | Rule::p_eq
            | Rule::p_arrow
            | Rule::p_both
            | Rule::p_lparen
            | Rule::p_rparen
            | Rule::p_lbrack
            | Rule::p_rbrack
            | Rule::p_colon
            | Rule::k_spec
            | Rule::k_use
            | Rule::k_as
            | Rule::k_with
            | Rule::k_model
            | Rule::k_size
            | Rule::k_const
            | Rule::k_input
            | Rule::k_param
            | Rule::k_block
            | Rule::k_loss
            | Rule::k_aux
            | Rule::k_names
            | Rule::k_manual
            | Rule::k_kernel
            | Rule::k_lower
            | Rule::k_for
            | Rule::k_shard
            | Rule::k_freeze
            | Rule::k_except
            | Rule::k_adapter
            | Rule::k_target
            | Rule::k_over
            | Rule::k_then
            | Rule::k_concat
            | Rule::EOI
    )
}

/// The meaningful children of a pair, taken in order.
struct Parts<'i> {
    rest: std::vec::IntoIter<Pair<'i, Rule>>,
}

impl<'i> Parts<'i> {
    fn of(pair: Pair<'i, Rule>) -> Self {
        let kept: Vec<_> = pair.into_inner().filter(|p| !is_noise(p.as_rule())).collect();
        Parts { rest: kept.into_iter() }
    }

    /// The next child, which the grammar guarantees.
    fn take(&mut self) -> Pair<'i, Rule> {
        self.rest.next().expect("the grammar guarantees this part")
    }

    /// The next child if it is of this rule.
    fn take_if(&mut self, rule: Rule) -> Option<Pair<'i, Rule>> {
        if self.rest.as_slice().first()?.as_rule() == rule { self.rest.next() } else { None }
    }
}

fn first<'i>(mut pairs: pest::iterators::Pairs<'i, Rule>) -> Pair<'i, Rule> {
    pairs.next().expect("a successful parse has one pair")
}

struct Build {
    source: SourceId,
    /// Offset of the parsed text in its source; not 0 inside a string.
    base: u32,
    /// Depth of the expression being built.
    depth: usize,
    errors: Vec<Diagnostic>,
}

impl Build {
    fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let length = without_trailing_blanks(span.as_str()).len() as u32;
        let start = self.base + span.start() as u32;
        Span { source: self.source, start, end: start + length }
    }

    fn ident(&self, pair: Pair<'_, Rule>) -> Ident {
        Ident { name: pair.as_str().to_string(), span: self.span(&pair) }
    }

    fn idents(&self, pair: Pair<'_, Rule>) -> Vec<Ident> {
        Parts::of(pair).rest.map(|p| self.ident(p)).collect()
    }

    fn text(&self, pair: Pair<'_, Rule>) -> Text {
        let span = self.span(&pair);
        let raw = Parts::of(pair).take().as_str().to_string();
        Text { value: unescape(&raw), span }
    }

    fn texts(&self, pair: Pair<'_, Rule>) -> Vec<Text> {
        Parts::of(pair).rest.map(|p| self.text(p)).collect()
    }

    fn number(&mut self, pair: Pair<'_, Rule>, negative: bool) -> Number {
        let span = self.span(&pair);
        match read_number(pair.as_str(), negative, span) {
            Ok(number) => number,
            Err(reason) => {
                let title = format!("not a usable number: `{}`", pair.as_str());
                self.errors.push(Diagnostic::error(codes::NUMBER, title).at(span, reason));
                let text = pair.as_str().to_string();
                Number { value: 1.0, integer: Some(1), unit: Unit::One, text, span }
            }
        }
    }

    // ---- items

    fn file(&mut self, pair: Pair<'_, Rule>) -> File {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let version = self.version(parts.take());
        let items = parts.rest.map(|p| self.item(p)).collect();
        File { version, items, comments: vec![], overrides: vec![], span }
    }

    fn version(&mut self, pair: Pair<'_, Rule>) -> u64 {
        let number = Parts::of(pair).take();
        let number = self.number(number, false);
        if number.integer != Some(1) {
            let title = format!("unknown version of the language: {}", number.text);
            self.errors.push(
                Diagnostic::error(codes::VERSION, title).at(number.span, "this compiler knows version 1"),
            );
        }
        number.integer.unwrap_or(0)
    }

    fn item(&mut self, pair: Pair<'_, Rule>) -> Item {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::use_item => Item::Use(self.use_item(pair)),
            Rule::model => {
                let mut parts = Parts::of(pair);
                let name = self.ident(parts.take());
                Item::Model(Model { name, body: self.body(parts.take()), span })
            }
            Rule::block => Item::Block(self.block(pair)),
            Rule::shard => {
                let rules = Parts::of(pair).rest.map(|p| self.shard_rule(p)).collect();
                Item::Shard(Shard { rules, span })
            }
            Rule::freeze => {
                let mut parts = Parts::of(pair);
                let globs = self.texts(parts.take());
                let except = parts.take_if(Rule::strings).map(|p| self.texts(p)).unwrap_or_default();
                Item::Freeze(Freeze { globs, except, span })
            }
            Rule::adapter => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                Item::Adapter(Adapter { kind, section: self.section(parts.take()) })
            }
            Rule::target => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                let label = parts.take_if(Rule::string).map(|p| self.text(p));
                let none = Section { entries: vec![], span: kind.span };
                let section = parts.take_if(Rule::section).map_or(none, |p| self.section(p));
                Item::Target(Target { kind, label, section, span })
            }
            Rule::kernel => Item::Kernel(self.kernel(pair)),
            _ => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                Item::Section(SectionItem { kind, section: self.section(parts.take()) })
            }
        }
    }

    fn use_item(&mut self, pair: Pair<'_, Rule>) -> Use {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let dotted =
            parts.take_if(Rule::path).map(|p| Text { value: p.as_str().to_string(), span: self.span(&p) });
        let is_dotted = dotted.is_some();
        let path = dotted.unwrap_or_else(|| self.text(parts.take()));
        let alias = parts.take_if(Rule::ident).map(|p| self.ident(p));
        let with = parts.take_if(Rule::section).map(|p| self.section(p));
        Use { path, dotted: is_dotted, alias, with, span }
    }

    fn kernel(&mut self, pair: Pair<'_, Rule>) -> Kernel {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let file = self.text(parts.take());
        Kernel { file, subject: self.reference(parts.take()), span }
    }

    fn shard_rule(&mut self, pair: Pair<'_, Rule>) -> ShardRule {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let scope = parts.take_if(Rule::shard_scope).map_or(ShardScope::Every, |p| {
            let mut inner = p.into_inner();
            let word = first_rule(&mut inner);
            let subject = first_rule(&mut inner);
            match word.as_rule() {
                Rule::k_role => ShardScope::Role(self.ident(subject)),
                Rule::k_params => ShardScope::Params(self.text(subject)),
                _ => ShardScope::Values(self.text(subject)),
            }
        });
        let mut choices = vec![];
        while let Some(p) = parts.take_if(Rule::axis_choice) {
            let span = self.span(&p);
            let inner = Parts::of(p).take();
            let joint = inner.as_rule() == Rule::joint_axes;
            let axes = if joint { self.idents(inner) } else { vec![self.ident(inner)] };
            choices.push(AxisChoice { axes, joint, span });
        }
        let mesh_axes = parts.rest.map(|p| self.ident(p)).collect();
        ShardRule { scope, choices, mesh_axes, span }
    }

    // ---- sections

    fn section(&mut self, pair: Pair<'_, Rule>) -> Section {
        let span = self.span(&pair);
        let entries = Parts::of(pair).rest.map(|p| self.entry(p)).collect();
        Section { entries, span }
    }

    fn entry(&mut self, pair: Pair<'_, Rule>) -> Entry {
        let rule = pair.as_rule();
        let mut parts = Parts::of(pair);
        match rule {
            Rule::with_entry => Entry::With(self.section(parts.take())),
            Rule::glob_entry => {
                let verb = self.ident(parts.take());
                let glob = self.text(parts.take());
                let except = parts.take_if(Rule::string).map(|p| self.text(p));
                let value = parts.rest.next().map(|p| self.value(p));
                Entry::Glob { verb, glob, except, value }
            }
            Rule::weighted => {
                let weight = parts.take();
                Entry::Weighted { weight: self.number(weight, false), value: self.value(parts.take()) }
            }
            _ => {
                let key = self.ident(parts.take());
                Entry::Assign { key, value: self.value(parts.take()) }
            }
        }
    }

    fn value(&mut self, pair: Pair<'_, Rule>) -> Value {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::value => return self.whole_value(pair),
            Rule::numeric => self.numeric(pair),
            Rule::string => ValueKind::Text(self.text(pair).value),
            Rule::tuple => ValueKind::Tuple(Parts::of(pair).rest.map(|p| self.value(p)).collect()),
            Rule::list => ValueKind::List(Parts::of(pair).rest.map(|p| self.value(p)).collect()),
            Rule::section => ValueKind::Section(self.section(pair)),
            _ => self.tagged(pair),
        };
        Value { kind, span }
    }

    fn whole_value(&mut self, pair: Pair<'_, Rule>) -> Value {
        let span = self.span(&pair);
        let mut terms = vec![];
        let mut over = None;
        for part in Parts::of(pair).rest {
            if part.as_rule() == Rule::word {
                over = Some(self.ident(part));
            } else {
                terms.push(self.value(part));
            }
        }
        let value = if terms.len() == 1 {
            terms.remove(0)
        } else {
            let span = terms[0].span.to(terms[terms.len() - 1].span);
            Value { kind: ValueKind::Chain(terms), span }
        };
        match over {
            Some(axis) => Value { kind: ValueKind::Over(Box::new(value), axis), span },
            None => value,
        }
    }

    fn numeric(&mut self, pair: Pair<'_, Rule>) -> ValueKind {
        let mut parts = Parts::of(pair);
        let negative = parts.take_if(Rule::neg);
        let mut number = {
            let number = parts.take();
            self.number(number, negative.is_some())
        };
        if let Some(sign) = negative {
            number.span = self.span(&sign).to(number.span);
        }
        if let Some(to) = parts.take_if(Rule::range_to) {
            let end = Parts::of(to).take();
            let end = self.number(end, false);
            return ValueKind::Range(number, end);
        }
        ValueKind::Number(number, parts.take_if(Rule::unit).map(|p| self.ident(p)))
    }

    fn tagged(&mut self, pair: Pair<'_, Rule>) -> ValueKind {
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let tag = self.ident(head.take());
        let args = head.take_if(Rule::value_args).map(|p| {
            Parts::of(p)
                .rest
                .map(|p| {
                    let mut arg = Parts::of(p);
                    let name = arg.take_if(Rule::key).map(|p| self.ident(p));
                    ValueArg { name, value: self.value(arg.take()) }
                })
                .collect()
        });
        let section = parts.take_if(Rule::section).map(|p| self.section(p));
        ValueKind::Tagged { tag, args, section }
    }

    // ---- models

    fn body(&mut self, pair: Pair<'_, Rule>) -> Body {
        let span = self.span(&pair);
        let statements = Parts::of(pair).rest.map(|p| self.statement(p)).collect();
        Body { statements, span }
    }

    fn block(&mut self, pair: Pair<'_, Rule>) -> Block {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let name = self.ident(head.take());
        let generics = head.take_if(Rule::generics).map(|p| self.idents(p)).unwrap_or_default();
        let formals = Parts::of(parts.take()).rest.map(|p| self.formal(p)).collect();
        let result = self.dims(parts.take());
        let body = self.body(parts.take());
        Block { name, generics, formals, result, body, span }
    }

    fn formal(&mut self, pair: Pair<'_, Rule>) -> Formal {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let elem = parts.take_if(Rule::elem_type).map(|p| self.elem_type(p));
        let dims = parts.take_if(Rule::dims).map(|p| self.dims(p));
        let default = parts.take_if(Rule::default).map(|p| self.expr(Parts::of(p).take()));
        Formal { name, elem, dims, default, span }
    }

    fn elem_type(&mut self, pair: Pair<'_, Rule>) -> ElemType {
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let bound = parts.take_if(Rule::bound).map(|p| self.expr(Parts::of(p).take()));
        ElemType { name, bound }
    }

    fn dims(&self, pair: Pair<'_, Rule>) -> Dims {
        let span = self.span(&pair);
        let dims = Parts::of(pair)
            .rest
            .map(|p| {
                let inner = Parts::of(p).take();
                match inner.as_rule() {
                    Rule::leading => Dim::Leading(self.span(&inner)),
                    _ => Dim::Axis(self.ident(inner)),
                }
            })
            .collect();
        Dims { dims, span }
    }

    fn statement(&mut self, pair: Pair<'_, Rule>) -> Statement {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::sizes => Statement::Sizes(self.bindings(pair), span),
            Rule::consts => Statement::Consts(self.bindings(pair), span),
            Rule::input => Statement::Input(self.input(pair)),
            Rule::params => Statement::Params(self.params(pair)),
            Rule::block => Statement::Block(self.block(pair)),
            Rule::loss => Statement::Loss(self.expr(Parts::of(pair).take()), span),
            Rule::aux => {
                let mut parts = Parts::of(pair);
                let name = self.ident(parts.take());
                Statement::Aux(Binding { name, value: self.expr(parts.take()) }, span)
            }
            Rule::names => Statement::Names(self.names(pair)),
            Rule::manual => {
                let mut parts = Parts::of(pair);
                let mesh_axes = self.idents(Parts::of(parts.take()).take());
                Statement::Manual(Manual { mesh_axes, body: self.body(parts.take()), span })
            }
            Rule::kernel => Statement::Kernel(self.kernel(pair)),
            Rule::lower => {
                let kind = Ident { name: "lower".into(), span: Span { end: span.start + 5, ..span } };
                Statement::Lower(SectionItem { kind, section: self.section(Parts::of(pair).take()) })
            }
            Rule::let_stmt => Statement::Let(self.let_stmt(pair)),
            _ => {
                let mut parts = Parts::of(pair);
                let value = self.expr(parts.take());
                let role = parts.take_if(Rule::role).map(|p| self.role(p));
                Statement::Yield(Yield { value, role })
            }
        }
    }

    fn bindings(&mut self, pair: Pair<'_, Rule>) -> Vec<Binding> {
        Parts::of(pair)
            .rest
            .map(|p| {
                let mut parts = Parts::of(p);
                let name = self.ident(parts.take());
                Binding { name, value: self.expr(parts.take()) }
            })
            .collect()
    }

    fn input(&mut self, pair: Pair<'_, Rule>) -> Input {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let elem = parts.take_if(Rule::elem_type).map(|p| self.elem_type(p));
        let dims = parts.take_if(Rule::dims).map(|p| self.dims(p));
        Input { name, elem, dims, span }
    }

    fn params(&mut self, pair: Pair<'_, Rule>) -> Params {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut params = vec![];
        while let Some(p) = parts.take_if(Rule::param) {
            params.push(self.param(p));
        }
        Params { params, init: self.expr(parts.take()), span }
    }

    fn param(&self, pair: Pair<'_, Rule>) -> Param {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let mut dims = Parts::of(parts.take());
        let inputs = dims.take_if(Rule::axis_names).map(|p| self.idents(p)).unwrap_or_default();
        let outputs = dims
            .take_if(Rule::out_axes)
            .map(|p| Parts::of(p).take_if(Rule::axis_names).map(|p| self.idents(p)).unwrap_or_default());
        Param { name, inputs, outputs, span }
    }

    fn let_stmt(&mut self, pair: Pair<'_, Rule>) -> Let {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let name = self.ident(head.take());
        let dims = head.take_if(Rule::dims).map(|p| self.dims(p));
        let value = self.expr(parts.take());
        let role = parts.take_if(Rule::role).map(|p| self.role(p));
        Let { name, dims, value, role, span }
    }

    fn role(&self, pair: Pair<'_, Rule>) -> Ident {
        let word = pair.into_inner().find(|p| p.as_rule() == Rule::word).expect("a role has a word");
        self.ident(word)
    }

    fn names(&mut self, pair: Pair<'_, Rule>) -> Names {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let table = self.ident(parts.take());
        let rules = parts.rest.map(|p| self.name_rule(p)).collect();
        Names { table, rules, span }
    }

    fn name_rule(&mut self, pair: Pair<'_, Rule>) -> NameRule {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let logical = self.pattern(parts.take());
        let foreign = self.pattern(parts.take());
        let layout = parts.take_if(Rule::layout).map(|p| self.layout(p));
        NameRule { logical, foreign, layout, span }
    }

    fn pattern(&mut self, pair: Pair<'_, Rule>) -> Pattern {
        let inner = Parts::of(pair.clone()).take();
        let base = self.base + inner.as_span().start() as u32;
        let text = self.text(pair);
        let parts = match Grammar::parse(Rule::name_pattern, inner.as_str()) {
            Ok(pairs) => {
                let mut build = Build { source: self.source, base, depth: 0, errors: vec![] };
                let parts = Parts::of(first(pairs)).rest.map(|p| build.pattern_part(p)).collect();
                self.errors.append(&mut build.errors);
                parts
            }
            Err(error) => {
                self.errors.push(syntax_error(self.source, inner.as_str(), base, &error));
                vec![]
            }
        };
        Pattern { parts, text }
    }

    fn pattern_part(&mut self, pair: Pair<'_, Rule>) -> PatternPart {
        match pair.as_rule() {
            Rule::pattern_hole => PatternPart::Hole(self.expr(Parts::of(pair).take())),
            Rule::pattern_choice => {
                PatternPart::Choice(Parts::of(pair).rest.map(|p| p.as_str().to_string()).collect())
            }
            _ => PatternPart::Text(pair.as_str().to_string()),
        }
    }

    fn layout(&self, pair: Pair<'_, Rule>) -> Layout {
        let span = self.span(&pair);
        let dims = Parts::of(pair)
            .rest
            .map(|p| {
                let inner = Parts::of(p).take();
                match inner.as_rule() {
                    Rule::concat => {
                        LayoutDim::Concat(Parts::of(inner).rest.map(|p| self.idents(p)).collect())
                    }
                    Rule::joint_axes => LayoutDim::Axes(self.idents(inner)),
                    _ => LayoutDim::Axes(vec![self.ident(inner)]),
                }
            })
            .collect();
        Layout { dims, span }
    }

    // ---- expressions

    /// `operand (operator operand)*`: precedence climbing over the flat list.
    fn expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let parts: Vec<_> = Parts::of(pair).rest.collect();
        let levels = 1 + parts.len() / 2;
        self.depth += levels;
        let expr =
            if self.depth > MAX_DEPTH { self.too_deep(span) } else { self.operators_and_operands(parts) };
        self.depth -= levels;
        expr
    }

    /// Reports an expression beyond the limit, once, and stands a number in for it.
    fn too_deep(&mut self, span: Span) -> Expr {
        if !self.errors.iter().any(|e| e.code == codes::NESTING) {
            let title = format!("the expression is nested deeper than the limit: {MAX_DEPTH}");
            self.errors.push(
                Diagnostic::error(codes::NESTING, title)
                    .at(span, "counting brackets and operators")
                    .help("name parts of it with lines of their own"),
            );
        }
        let number = Number { value: 1.0, integer: Some(1), unit: Unit::One, text: "1".into(), span };
        Expr { kind: ExprKind::Number(number), span }
    }

    fn operators_and_operands(&mut self, parts: Vec<Pair<'_, Rule>>) -> Expr {
        let mut operands = vec![];
        let mut operators = vec![];
        for part in parts {
            match binary_op(part.as_rule()) {
                Some(op) => operators.push((op, self.span(&part))),
                None => operands.push(self.operand(part)),
            }
        }
        let mut rest = Climb { operands: operands.into_iter(), operators: operators.into_iter().peekable() };
        let first = rest.operands.next().expect("an expression has an operand");
        self.climb(first, &mut rest, 0)
    }

    fn climb(&mut self, mut left: Expr, rest: &mut Climb, lowest: u8) -> Expr {
        while let Some(&(op, op_span)) = rest.operators.peek() {
            if op.precedence() < lowest.max(1) {
                break;
            }
            rest.operators.next();
            let mut right = rest.operands.next().expect("an operator has a right operand");
            while let Some(&(following, _)) = rest.operators.peek() {
                if following.precedence() <= op.precedence() {
                    break;
                }
                right = self.climb(right, rest, following.precedence());
            }
            if op.compares() && matches!(&left.kind, ExprKind::Binary(inner, ..) if inner.compares()) {
                self.errors.push(
                    Diagnostic::error(codes::SYNTAX, "comparisons do not chain")
                        .at(op_span, "a second comparison")
                        .help("write `a < b and b < c`"),
                );
            }
            let span = left.span.to(right.span);
            left = Expr { kind: ExprKind::Binary(op, Box::new(left), Box::new(right)), span };
        }
        left
    }

    fn operand(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut signs = vec![];
        let mut parts = Parts::of(pair);
        let primary = loop {
            let part = parts.take();
            match part.as_rule() {
                Rule::neg => signs.push((UnaryOp::Neg, self.span(&part))),
                Rule::k_not => signs.push((UnaryOp::Not, self.span(&part))),
                _ => break part,
            }
        };
        let mut value = self.primary(primary);
        if let Some(rename) = parts.take_if(Rule::rename) {
            let pairs = Parts::of(rename).rest.map(|p| {
                let mut pair = Parts::of(p);
                (self.ident(pair.take()), self.ident(pair.take()))
            });
            let pairs = pairs.collect();
            let span = Span { start: value.span.start, ..span };
            value = Expr { kind: ExprKind::Rename(Box::new(value), pairs), span };
        }
        if signs.len() > MAX_NESTING {
            let title = format!("more signs before one operand than the limit: {MAX_NESTING}");
            self.errors.push(Diagnostic::error(codes::NESTING, title).at(span, "this operand"));
            return value;
        }
        for (op, sign) in signs.into_iter().rev() {
            let span = sign.to(value.span);
            value = Expr { kind: ExprKind::Unary(op, Box::new(value)), span };
        }
        value
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::number => ExprKind::Number(self.number(pair, false)),
            Rule::string => ExprKind::Text(self.text(pair).value),
            Rule::paren => ExprKind::Paren(Box::new(self.expr(Parts::of(pair).take()))),
            Rule::expr_list => ExprKind::List(Parts::of(pair).rest.map(|p| self.expr(p)).collect()),
            _ => return self.reference(pair),
        };
        Expr { kind, span }
    }

    fn reference(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let path = self.ident(parts.take());
        let axes = parts.take_if(Rule::ref_axes).map(|p| Parts::of(p).rest.map(|p| self.expr(p)).collect());
        let instance = parts.take_if(Rule::instance).map(|p| self.ident(Parts::of(p).take()));
        let args = parts.take_if(Rule::args).map(|p| {
            let args = Parts::of(p).rest.map(|p| {
                let mut arg = Parts::of(p);
                let name = arg.take_if(Rule::ident).map(|p| self.ident(p));
                Arg { name, value: self.expr(arg.take()) }
            });
            args.collect()
        });
        let reference = Reference { path, axes, instance, args };
        Expr { kind: ExprKind::Ref(Box::new(reference)), span }
    }
}

/// What is left of a flat list of operands and operators.
struct Climb {
    operands: std::vec::IntoIter<Expr>,
    operators: std::iter::Peekable<std::vec::IntoIter<(BinaryOp, Span)>>,
}

fn first_rule<'i>(pairs: &mut pest::iterators::Pairs<'i, Rule>) -> Pair<'i, Rule> {
    pairs.find(|p| p.as_rule() != Rule::p_colon).expect("the grammar guarantees this part")
}

fn binary_op(rule: Rule) -> Option<BinaryOp> {
    Some(match rule {
        Rule::op_le => BinaryOp::Le,
        Rule::op_ge => BinaryOp::Ge,
        Rule::op_eq => BinaryOp::Eq,
        Rule::op_ne => BinaryOp::Ne,
        Rule::op_lt => BinaryOp::Lt,
        Rule::op_gt => BinaryOp::Gt,
        Rule::op_add => BinaryOp::Add,
        Rule::op_sub => BinaryOp::Sub,
        Rule::op_mul => BinaryOp::Mul,
        Rule::op_div => BinaryOp::Div,
        Rule::op_and => BinaryOp::And,
        Rule::op_or => BinaryOp::Or,
        _ => return None,
    })
}

fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => {}
            },
            (c, false) => text.push(c),
        }
    }
    text
}

/// Multiplier and unit of a number's suffix.
fn suffix_meaning(suffix: &str) -> Option<(f64, Unit)> {
    const KI: f64 = 1024.0;
    Some(match suffix {
        "" => (1.0, Unit::One),
        "k" => (1e3, Unit::One),
        "M" => (1e6, Unit::One),
        "G" => (1e9, Unit::One),
        "T" => (1e12, Unit::One),
        "Ki" => (KI, Unit::One),
        "Mi" => (KI * KI, Unit::One),
        "Gi" => (KI * KI * KI, Unit::One),
        "Ti" => (KI * KI * KI * KI, Unit::One),
        "B" => (1.0, Unit::Bytes),
        "KB" => (1e3, Unit::Bytes),
        "MB" => (1e6, Unit::Bytes),
        "GB" => (1e9, Unit::Bytes),
        "TB" => (1e12, Unit::Bytes),
        "KiB" => (KI, Unit::Bytes),
        "MiB" => (KI * KI, Unit::Bytes),
        "GiB" => (KI * KI * KI, Unit::Bytes),
        "TiB" => (KI * KI * KI * KI, Unit::Bytes),
        "ms" => (1e-3, Unit::Seconds),
        "s" => (1.0, Unit::Seconds),
        "min" => (60.0, Unit::Seconds),
        "h" => (3600.0, Unit::Seconds),
        "d" => (86400.0, Unit::Seconds),
        _ => return None,
    })
}

/// Where the suffix of a number begins. An `e` belongs to the number if digits follow it.
fn suffix_start(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_ascii_alphabetic()) {
        let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-')) && is_digit(at + 2);
        if !matches!(c, 'e' | 'E') || !(is_digit(at + 1) || signed) {
            return at;
        }
    }
    text.len()
}

/// Reads a number as the grammar lets it through.
fn read_number(text: &str, negative: bool, span: Span) -> Result<Number, &'static str> {
    // An exponent's `e` is followed by a digit or sign; no suffix starts with `e`, so the split is clear.
    let is_suffix =
        |(at, c): (usize, char)| (c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')).then_some(at);
    let split = text.char_indices().find_map(is_suffix).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let digits = digits.replace('_', "");
    let unknown = "unknown suffix: expected k, M, G, T, Ki, Mi, Gi, Ti, a unit of bytes (B … TiB) or of time (ms, s, min, h, d)";
    let (multiplier, unit) = suffix_meaning(suffix).ok_or(unknown)?;
    let base: f64 = digits.parse().map_err(|_| "not a number")?;
    let value = base * multiplier;
    if !value.is_finite() {
        return Err("too large for a number");
    }
    // Whole numbers keep all 64 bits: a seed may need them.
    let exact = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(multiplier as u64));
    let whole = multiplier >= 1.0 && value.fract() == 0.0 && value < 9.0e15;
    let integer = match (negative, exact) {
        (true, _) if value != 0.0 => None,
        (_, Some(exact)) if multiplier >= 1.0 => Some(exact),
        _ => whole.then_some(value as u64),
    };
    let sign = if negative { "-" } else { "" };
    let value = if negative { -value } else { value };
    Ok(Number { value, integer, unit, text: format!("{sign}{text}"), span })
}
