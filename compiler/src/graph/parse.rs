//! Reads the text form of [`print`](super::print) back.
//!
//! The parser checks what text alone can say wrong: words, brackets, names that don't exist in their region or exist
//! twice. Whether operands fit their op is the verifier's question.

use super::print::{pairs_name, phase_name};
use super::shape::{composite_name, dtype_name};
use super::{
    Attention, Axis, BinaryOp, Bound, CompareOp, Composite, CompositeKind, DType, Graph, Init, Loop,
    LossHead, Name, Op, OpId, OpNode, Origin, Output, Pairs, Phase, ReduceOp, Region, RegionId, SpecLine,
    Type, UnaryOp, Update, Value, ValueId,
};
use std::collections::BTreeMap;
use std::fmt;

/// Blocks inside blocks beyond this are refused, so that no text can exhaust the stack.
pub const NESTING_MAX: usize = 64;

/// More elements than this in one type are refused, so that sizes never overflow.
const NUMEL_MAX: u64 = 1 << 50;

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// 1-based line.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// One sentence.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ParseError {}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads one graph.
///
/// # Errors
/// The first place where the text is not a graph, with line and column.
pub fn parse(text: &str) -> Result<Graph> {
    let tokens = tokenize(text)?;
    let mut parser = Parser { tokens, at: 0, graph: Graph::new(""), scopes: Vec::new() };
    parser.graph()?;
    Ok(parser.graph)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A bare word or number: letters, digits, `_`, `.`, and a sign or exponent of a number.
    Word(String),
    Quoted(String),
    /// `%`, `@`, `=`, `:`, `,`, `[`, `]`, `{`, `}`, `(`, `)`, `->`.
    Punct(&'static str),
    /// A trailing comment's text.
    Comment(String),
    Newline,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{w}`"),
            Token::Quoted(q) => write!(f, "{q:?}"),
            Token::Punct(p) => write!(f, "`{p}`"),
            Token::Comment(_) => f.write_str("a comment"),
            Token::Newline => f.write_str("the end of the line"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

struct Spot {
    token: Token,
    line: usize,
    column: usize,
}

const PUNCTUATION: [&str; 12] = ["->", "%", "@", "=", ":", ",", "[", "]", "{", "}", "(", ")"];

/// Splits the text. Empty lines and lines of comment alone vanish.
fn tokenize(text: &str) -> Result<Vec<Spot>> {
    let mut out: Vec<Spot> = Vec::new();
    let mut end = (1, 1);
    for (i, raw) in text.lines().enumerate() {
        let line = i + 1;
        let chars: Vec<char> = raw.chars().collect();
        end = (line, chars.len() + 1);
        let before = out.len();
        tokenize_line(&chars, line, &mut out)?;
        if out.len() == before + 1 && matches!(out[before].token, Token::Comment(_)) {
            out.pop();
        }
        if out.len() > before {
            out.push(Spot { token: Token::Newline, line, column: chars.len() + 1 });
        }
    }
    out.push(Spot { token: Token::End, line: end.0, column: end.1 });
    Ok(out)
}

fn tokenize_line(chars: &[char], line: usize, out: &mut Vec<Spot>) -> Result<()> {
    let mut i = 0;
    while i < chars.len() {
        let column = i + 1;
        let rest = &chars[i..];
        let (token, length) = if chars[i].is_whitespace() {
            i += 1;
            continue;
        } else if rest.starts_with(&['/', '/']) {
            (Token::Comment(rest[2..].iter().collect::<String>().trim().to_string()), rest.len())
        } else if chars[i] == '"' {
            quoted_token(rest).map_err(|message| ParseError { line, column, message })?
        } else if let Some(p) = PUNCTUATION.iter().find(|p| starts_with(rest, p)) {
            (Token::Punct(p), p.chars().count())
        } else {
            let length = word_length(rest);
            if length == 0 {
                let message = format!("unexpected character {:?}", chars[i]);
                return Err(ParseError { line, column, message });
            }
            (Token::Word(rest[..length].iter().collect()), length)
        };
        out.push(Spot { token, line, column });
        i += length;
    }
    Ok(())
}

fn starts_with(chars: &[char], text: &str) -> bool {
    text.chars().enumerate().all(|(i, c)| chars.get(i) == Some(&c))
}

/// Length of the word or number at the start; a `-` belongs to a number only, in front or in its exponent.
fn word_length(chars: &[char]) -> usize {
    let mut n = usize::from(chars[0] == '-');
    let numeric = n == 1 || chars[0].is_ascii_digit();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    while n < chars.len() {
        let exponent_sign = numeric && chars[n] == '-' && chars[n - 1] == 'e';
        if !is_word(chars[n]) && !exponent_sign {
            break;
        }
        n += 1;
    }
    if n == 1 && chars[0] == '-' { 0 } else { n }
}

fn quoted_token(chars: &[char]) -> std::result::Result<(Token, usize), String> {
    let mut text = String::new();
    let mut i = 1;
    while i < chars.len() {
        match chars[i] {
            '"' => return Ok((Token::Quoted(text), i + 1)),
            '\\' => {
                match chars.get(i + 1) {
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('"' | '\\')) => text.push(*c),
                    _ => return Err("an escape is one of \\n, \\r, \\\" and \\\\".into()),
                }
                i += 2;
            }
            c => {
                text.push(c);
                i += 1;
            }
        }
    }
    Err("a quoted name is not closed on its line".into())
}

struct Parser {
    tokens: Vec<Spot>,
    at: usize,
    graph: Graph,
    /// Values of each open region, innermost last.
    scopes: Vec<BTreeMap<Name, ValueId>>,
}

/// What an argument or `yield` line of a block begins with.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Index,
    Carry,
    Stacked,
    Invariant,
    Sum,
    Plain,
}

/// A block as read.
struct Block {
    region: RegionId,
    operands: Vec<ValueId>,
    args: Vec<Role>,
    yields: Vec<Role>,
    /// Types written on the `yield` lines.
    types: Vec<Type>,
    score: Option<RegionId>,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        self.error_at(self.at, message)
    }

    fn error_at<T>(&self, at: usize, message: impl Into<String>) -> Result<T> {
        let spot = &self.tokens[at];
        Err(ParseError { line: spot.line, column: spot.column, message: message.into() })
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn accept(&mut self, punct: &str) -> bool {
        let found = matches!(self.peek(), Token::Punct(p) if *p == punct);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, punct: &str) -> Result<()> {
        if self.accept(punct) {
            Ok(())
        } else {
            self.error(format!("expected `{punct}`, found {}", self.peek()))
        }
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.sees_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn sees_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w == word)
    }

    fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.accept_word(word) {
            Ok(())
        } else {
            self.error(format!("expected `{word}`, found {}", self.peek()))
        }
    }

    fn newline(&mut self) -> Result<()> {
        match self.peek() {
            Token::Newline | Token::End => {
                self.advance();
                Ok(())
            }
            other => self.error(format!("expected the end of the line, found {other}")),
        }
    }

    /// A bare or quoted name.
    fn name(&mut self, what: &str) -> Result<Name> {
        match self.peek().clone() {
            Token::Word(w) if !w.starts_with(['-', '.']) => {
                self.advance();
                Ok(w.into())
            }
            Token::Quoted(q) => {
                self.advance();
                Ok(q.into())
            }
            other => self.error(format!("expected {what}, found {other}")),
        }
    }

    fn names(&mut self, what: &str) -> Result<Vec<Name>> {
        let mut names = vec![self.name(what)?];
        while self.accept(",") {
            names.push(self.name(what)?);
        }
        Ok(names)
    }

    fn quoted(&mut self, what: &str) -> Result<Name> {
        match self.peek().clone() {
            Token::Quoted(q) => {
                self.advance();
                Ok(q.into())
            }
            other => self.error(format!("expected {what} in quotes, found {other}")),
        }
    }

    fn integer(&mut self, what: &str) -> Result<u64> {
        if let Token::Word(w) = self.peek()
            && let Ok(n) = w.parse::<u64>()
        {
            self.advance();
            return Ok(n);
        }
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    /// A whole number ≥ 1 and not absurdly large.
    fn size(&mut self, what: &str) -> Result<u64> {
        let at = self.at;
        match self.integer(what)? {
            0 => self.error_at(at, format!("{what} is at least 1")),
            n if n > NUMEL_MAX => self.error_at(at, format!("{what} is at most 2^50")),
            n => Ok(n),
        }
    }

    fn float(&mut self) -> Result<f64> {
        if let Token::Word(w) = self.peek() {
            let numeric = w.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            let x = match w.as_str() {
                "inf" => Some(f64::INFINITY),
                "-inf" => Some(f64::NEG_INFINITY),
                "nan" => Some(f64::NAN),
                w if numeric => w.parse().ok(),
                _ => None,
            };
            if let Some(x) = x {
                self.advance();
                return Ok(x);
            }
        }
        self.error(format!("expected a number, found {}", self.peek()))
    }

    fn ty(&mut self) -> Result<Type> {
        let at = self.at;
        let word = self.name("an element type")?;
        let Some(dtype) = DTYPES.into_iter().find(|d| dtype_name(*d) == word.as_str()) else {
            return self.error_at(at, format!("`{word}` is not an element type"));
        };
        self.expect("[")?;
        let mut axes: Vec<Axis> = Vec::new();
        while !self.accept("]") {
            if !axes.is_empty() {
                self.expect(",")?;
            }
            let at = self.at;
            let name = self.name("an axis")?;
            self.expect("=")?;
            let size = self.size("an axis's size")?;
            if axes.iter().any(|a| a.name == name) {
                return self.error_at(at, format!("axis {name} appears twice"));
            }
            axes.push(Axis { name, size });
        }
        let numel = axes.iter().try_fold(1u64, |n, a| n.checked_mul(a.size));
        if numel.is_none_or(|n| n > NUMEL_MAX) {
            return self.error_at(at, "a tensor has at most 2^50 elements");
        }
        Ok(Type { dtype, axes })
    }

    /// `%name`, to be looked up in the region `up` levels out.
    fn value(&mut self, up: usize) -> Result<ValueId> {
        let at = self.at;
        self.expect("%")?;
        let name = self.name("a value's name")?;
        let scope = &self.scopes[self.scopes.len() - 1 - up];
        match scope.get(&name) {
            Some(id) => Ok(*id),
            None if self.scopes.iter().any(|s| s.contains_key(&name)) => self.error_at(
                at,
                format!("%{name} belongs to another region; values come into a region through its arguments"),
            ),
            None => self.error_at(at, format!("%{name} is not defined before this line")),
        }
    }

    fn values(&mut self) -> Result<Vec<ValueId>> {
        let mut values = Vec::new();
        if matches!(self.peek(), Token::Punct("%")) {
            values.push(self.value(0)?);
            while self.accept(",") {
                values.push(self.value(0)?);
            }
        }
        Ok(values)
    }

    /// Names of new values; they are defined with [`Parser::define`] once their types are known.
    fn new_names(&mut self) -> Result<Vec<(usize, Name)>> {
        let mut names = Vec::new();
        loop {
            let at = self.at;
            self.expect("%")?;
            names.push((at, self.name("a value's name")?));
            if !self.accept(",") {
                return Ok(names);
            }
        }
    }

    fn define(&mut self, at: usize, name: Name, ty: Type) -> Result<ValueId> {
        if self.graph.name_counts.contains_key(&name) {
            return self.error_at(at, format!("%{name} is defined twice"));
        }
        self.graph.name_counts.insert(name.clone(), 1);
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(Value { name: name.clone(), ty });
        self.scopes.last_mut().expect("a region is open").insert(name, id);
        Ok(id)
    }

    fn graph(&mut self) -> Result<()> {
        self.expect_word("graph")?;
        self.expect("@")?;
        self.graph.name = self.name("the graph's name")?;
        self.expect("{")?;
        self.newline()?;
        self.scopes.push(BTreeMap::new());
        let body = self.graph.body;
        while !self.accept("}") {
            if self.accept_word("return") {
                self.output(body)?;
            } else if self.graph.outputs.is_empty() {
                self.op(body)?;
            } else {
                return self.error(format!("expected `return` or `}}`, found {}", self.peek()));
            }
        }
        self.newline()?;
        match self.peek() {
            Token::End => Ok(()),
            other => self.error(format!("expected the end of the text after the graph, found {other}")),
        }
    }

    fn output(&mut self, body: RegionId) -> Result<()> {
        let output = if self.accept_word("store") {
            Output::Store(self.quoted("the tensor's path")?)
        } else {
            Output::Report(self.name("what is returned")?)
        };
        self.expect("=")?;
        let value = self.value(0)?;
        self.graph.regions[body.index()].results.push(value);
        self.graph.outputs.push(output);
        self.newline()
    }

    fn op(&mut self, region: RegionId) -> Result<()> {
        if !matches!(self.peek(), Token::Punct("%")) {
            return self.error(format!("expected an op, `%result = …`, found {}", self.peek()));
        }
        let results = self.new_names()?;
        self.expect("=")?;
        let at = self.at;
        let mnemonic = self.name("an op")?;
        let (op, operands, types, origin) =
            if let Some(kind) = BLOCKS.iter().find(|b| **b == mnemonic.as_str()) {
                self.block_op(kind)?
            } else {
                let (op, operands) = self.plain_op(at, &mnemonic, &results[0].1)?;
                self.expect(":")?;
                let mut types = vec![self.ty()?];
                while self.accept(",") {
                    types.push(self.ty()?);
                }
                let origin = self.origin()?;
                self.newline()?;
                (op, operands, types, origin)
            };
        if types.len() != results.len() {
            return self
                .error_at(at, format!("{} results are named, {} have types", results.len(), types.len()));
        }
        let mut ids = Vec::new();
        for ((at, name), ty) in results.into_iter().zip(types) {
            ids.push(self.define(at, name, ty)?);
        }
        let id = OpId(self.graph.ops.len() as u32);
        self.graph.ops.push(OpNode { op, operands, results: ids, origin });
        self.graph.regions[region.index()].ops.push(id);
        Ok(())
    }

    /// An op without a region, up to its type.
    fn plain_op(&mut self, at: usize, mnemonic: &str, result: &Name) -> Result<(Op, Vec<ValueId>)> {
        let source = match mnemonic {
            "input" => Some(self.input(result)?),
            "param" => Some(self.param()?),
            "state" => {
                let param = self.quoted("the parameter's path")?;
                Some(Op::State { param, kind: self.name("the state's kind")? })
            }
            "scalar" => {
                let key = self.quoted("the key")?;
                self.expect("=")?;
                Some(Op::Scalar { key, default: self.float()? })
            }
            "const" => Some(Op::Const(self.float()?)),
            "index" => Some(Op::Index { axis: self.name("an axis")? }),
            _ => None,
        };
        if let Some(op) = source {
            return Ok((op, Vec::new()));
        }
        let operands = self.values()?;
        let op = match mnemonic {
            "select" => Op::Select,
            "cast" => Op::Cast,
            "broadcast" => Op::Broadcast,
            "rename" => self.rename()?,
            "dot" if self.accept_word("over") => Op::Dot { over: self.names("an axis")? },
            "dot" => Op::Dot { over: Vec::new() },
            "gather" => Op::Gather { axis: self.along()? },
            "scatter_add" => Op::ScatterAdd { axis: self.along()? },
            "rotate_pairs" => Op::RotatePairs { axis: self.along()?, pairs: self.pairs()? },
            _ => match element_op(mnemonic) {
                Some(Op::Reduce { op, .. }) => {
                    self.expect_word("over")?;
                    Op::Reduce { op, axes: self.names("an axis")? }
                }
                Some(op) => op,
                None => return self.error_at(at, format!("`{mnemonic}` is not an op")),
            },
        };
        Ok((op, operands))
    }

    fn input(&mut self, result: &Name) -> Result<Op> {
        let name = match self.peek() {
            Token::Quoted(_) => self.quoted("the input's name")?,
            _ => result.clone(),
        };
        let bound = if self.accept_word("below") { self.integer("the bound of the ids")? } else { 0 };
        Ok(Op::Input { name, bound })
    }

    fn param(&mut self) -> Result<Op> {
        let path = self.quoted("the parameter's path")?;
        self.expect("=")?;
        let at = self.at;
        let kind = self.name("an init")?;
        self.expect("(")?;
        let first = self.float()?;
        let init = match kind.as_str() {
            "constant" => Init::Constant(first),
            "normal" => Init::Normal { std: first },
            "uniform" => {
                self.expect(",")?;
                Init::Uniform { low: first, high: self.float()? }
            }
            _ => {
                return self
                    .error_at(at, format!("`{kind}` is not an init; use constant, normal or uniform"));
            }
        };
        self.expect(")")?;
        Ok(Op::Param { path, init })
    }

    fn rename(&mut self) -> Result<Op> {
        self.expect_word("as")?;
        let mut pairs = Vec::new();
        loop {
            let from = self.name("an axis")?;
            self.expect("->")?;
            pairs.push((from, self.name("an axis")?));
            if !self.accept(",") {
                return Ok(Op::Rename { pairs });
            }
        }
    }

    fn along(&mut self) -> Result<Name> {
        self.expect_word("along")?;
        self.name("an axis")
    }

    fn pairs(&mut self) -> Result<Pairs> {
        for pairs in [Pairs::Half, Pairs::Interleaved] {
            if self.accept_word(pairs_name(pairs)) {
                return Ok(pairs);
            }
        }
        self.error(format!("expected `half` or `interleaved`, found {}", self.peek()))
    }

    /// An op with a region, whole.
    fn block_op(&mut self, mnemonic: &str) -> Result<(Op, Vec<ValueId>, Vec<Type>, Origin)> {
        enum Header {
            Loop { axis: Name, trip: u64, block: Option<u64>, reverse: bool },
            Composite(CompositeKind),
            Update { param: Name, states: Vec<Name> },
        }
        let header = match mnemonic {
            "loop" => {
                let axis = self.name("the loop's axis")?;
                self.expect("=")?;
                let trip = self.size("the number of iterations")?;
                let block = if self.accept_word("block") {
                    self.expect("=")?;
                    Some(self.size("the block's size")?)
                } else {
                    None
                };
                Header::Loop { axis, trip, block, reverse: self.accept_word("reverse") }
            }
            "update" => {
                let param = self.quoted("the parameter's path")?;
                let states =
                    if self.accept_word("states") { self.names("a state's kind")? } else { Vec::new() };
                Header::Update { param, states }
            }
            _ => Header::Composite(self.composite(mnemonic)?),
        };
        self.expect("{")?;
        let origin = self.origin()?;
        self.newline()?;
        let with_score = matches!(
            header,
            Header::Composite(CompositeKind::Attention(_) | CompositeKind::AttentionGrad(_))
        );
        let is_loop = matches!(header, Header::Loop { .. });
        let block = self.block(is_loop, with_score)?;
        let op = match header {
            Header::Loop { axis, trip, block: width, reverse } => {
                let count = |roles: &[Role], role| roles.iter().filter(|r| **r == role).count();
                Op::Loop(Loop {
                    axis,
                    trip,
                    block: width,
                    reverse,
                    carries: count(&block.args, Role::Carry),
                    stacked: count(&block.args, Role::Stacked),
                    stacked_outs: count(&block.yields, Role::Stacked),
                    body: block.region,
                })
            }
            Header::Composite(kind) => {
                let kind = match (kind, block.score) {
                    (CompositeKind::Attention(a), Some(score)) => {
                        CompositeKind::Attention(Attention { score, ..a })
                    }
                    (CompositeKind::AttentionGrad(a), Some(score)) => {
                        CompositeKind::AttentionGrad(Attention { score, ..a })
                    }
                    (other, _) => other,
                };
                Op::Composite(Composite { kind, meaning: block.region })
            }
            Header::Update { param, states } => Op::Update(Update { param, states, body: block.region }),
        };
        Ok((op, block.operands, block.types, origin))
    }

    fn composite(&mut self, mnemonic: &str) -> Result<CompositeKind> {
        let kind = match mnemonic {
            "softmax" => CompositeKind::Softmax { axis: self.along()? },
            "cross_entropy" => CompositeKind::CrossEntropy { axis: self.along()? },
            "rms_norm" => CompositeKind::RmsNorm { axis: self.along()?, eps: self.attribute("eps")? },
            "layer_norm" => CompositeKind::LayerNorm { axis: self.along()?, eps: self.attribute("eps")? },
            "rope" => CompositeKind::Rope {
                axis: self.along()?,
                theta: self.attribute("theta")?,
                pairs: self.pairs()?,
            },
            "attention" => CompositeKind::Attention(self.attention()?),
            "attention_grad" => CompositeKind::AttentionGrad(self.attention()?),
            _ => {
                let vocab = self.along()?;
                self.expect_word("over")?;
                let over = self.names("an axis")?;
                let chunks = if self.accept_word("chunks") { self.chunks()? } else { Vec::new() };
                CompositeKind::LossHead(LossHead { over, vocab, chunks })
            }
        };
        debug_assert_eq!(composite_name(&kind), mnemonic);
        Ok(kind)
    }

    fn chunks(&mut self) -> Result<Vec<(Name, u64)>> {
        let mut chunks = Vec::new();
        loop {
            let axis = self.name("a chunked axis")?;
            self.expect("=")?;
            chunks.push((axis, self.size("the chunk's size")?));
            if !self.accept(",") {
                return Ok(chunks);
            }
        }
    }

    fn attribute(&mut self, key: &str) -> Result<f64> {
        self.expect_word(key)?;
        self.expect("=")?;
        self.float()
    }

    fn attention(&mut self) -> Result<Attention> {
        self.expect_word("query")?;
        let query = self.name("the query axis")?;
        self.expect_word("key")?;
        let key = self.name("the key axis")?;
        let bound = if self.accept_word("full") {
            Bound::Full
        } else if self.accept_word("causal") {
            Bound::Causal
        } else {
            self.expect_word("window")?;
            self.expect("=")?;
            Bound::Window(self.size("the window")?)
        };
        self.expect_word("over")?;
        // The score region is read with the block.
        Ok(Attention { query, key, over: self.names("an axis")?, bound, score: RegionId(0) })
    }

    /// A block up to and with its closing brace.
    fn block(&mut self, is_loop: bool, with_score: bool) -> Result<Block> {
        if self.scopes.len() > NESTING_MAX {
            return self.error(format!("blocks nest deeper than {NESTING_MAX}"));
        }
        let region = RegionId(self.graph.regions.len() as u32);
        self.graph.regions.push(Region::default());
        self.scopes.push(BTreeMap::new());
        let mut block = Block {
            region,
            operands: Vec::new(),
            args: Vec::new(),
            yields: Vec::new(),
            types: Vec::new(),
            score: None,
        };
        while let Some(role) = self.arg_role(is_loop) {
            self.argument(&mut block, role)?;
        }
        if is_loop && block.args.first() != Some(&Role::Index) {
            return self.error("a loop's block begins with its index, `index %i : i32[]`");
        }
        while matches!(self.peek(), Token::Punct("%")) {
            self.op(region)?;
        }
        while self.accept_word("yield") {
            self.yielded(&mut block, is_loop)?;
        }
        let carries = |roles: &[Role]| roles.iter().filter(|r| **r == Role::Carry).count();
        if carries(&block.args) != carries(&block.yields) {
            return self.error("a loop yields as many carries as come in");
        }
        self.scopes.pop();
        if with_score {
            self.expect_word("score")?;
            self.expect("{")?;
            self.newline()?;
            block.score = Some(self.score()?);
        }
        self.expect("}")?;
        self.newline()?;
        Ok(block)
    }

    /// The role word of an argument line, if the next line is one.
    fn arg_role(&mut self, is_loop: bool) -> Option<Role> {
        let roles: &[(&str, Role)] = if is_loop {
            &[
                ("index", Role::Index),
                ("carry", Role::Carry),
                ("stacked", Role::Stacked),
                ("invariant", Role::Invariant),
            ]
        } else {
            &[("arg", Role::Plain)]
        };
        roles.iter().find(|(word, _)| self.accept_word(word)).map(|(_, role)| *role)
    }

    fn argument(&mut self, block: &mut Block, role: Role) -> Result<()> {
        let order = [Role::Index, Role::Carry, Role::Stacked, Role::Invariant];
        let rank = |role| order.iter().position(|r| *r == role);
        let last = block.args.last().copied();
        if last.is_some_and(|l| rank(l) > rank(role)) || (last.is_some() && role == Role::Index) {
            return self.error("arguments come in the order index, carry, stacked, invariant");
        }
        let at = self.at;
        self.expect("%")?;
        let name = self.name("an argument's name")?;
        if role != Role::Index {
            self.expect("=")?;
            let operand = self.value(1)?;
            block.operands.push(operand);
        }
        self.expect(":")?;
        let ty = self.ty()?;
        self.newline()?;
        let id = self.define(at, name, ty)?;
        self.graph.regions[block.region.index()].args.push(id);
        block.args.push(role);
        Ok(())
    }

    fn yielded(&mut self, block: &mut Block, is_loop: bool) -> Result<()> {
        let roles = [("carry", Role::Carry), ("stacked", Role::Stacked), ("sum", Role::Sum)];
        let role = if !is_loop {
            Role::Plain
        } else if let Some((_, role)) = roles.iter().find(|(word, _)| self.accept_word(word)) {
            *role
        } else {
            return self.error(format!("expected `carry`, `stacked` or `sum`, found {}", self.peek()));
        };
        let rank = |role| roles.iter().position(|r| r.1 == role);
        if block.yields.last().is_some_and(|l| rank(*l) > rank(role)) {
            return self.error("yields come in the order carry, stacked, sum");
        }
        let value = self.value(0)?;
        self.expect(":")?;
        let ty = self.ty()?;
        self.newline()?;
        self.graph.regions[block.region.index()].results.push(value);
        block.yields.push(role);
        block.types.push(ty);
        Ok(())
    }

    /// A score region: arguments without operands, ops, one yield.
    fn score(&mut self) -> Result<RegionId> {
        let region = RegionId(self.graph.regions.len() as u32);
        self.graph.regions.push(Region::default());
        self.scopes.push(BTreeMap::new());
        while self.accept_word("arg") {
            let at = self.at;
            self.expect("%")?;
            let name = self.name("an argument's name")?;
            self.expect(":")?;
            let ty = self.ty()?;
            self.newline()?;
            let id = self.define(at, name, ty)?;
            self.graph.regions[region.index()].args.push(id);
        }
        while matches!(self.peek(), Token::Punct("%")) {
            self.op(region)?;
        }
        while self.accept_word("yield") {
            let value = self.value(0)?;
            self.expect(":")?;
            let at = self.at;
            if self.ty()? != *self.graph.ty(value) {
                return self.error_at(at, "the yielded value has another type");
            }
            self.newline()?;
            self.graph.regions[region.index()].results.push(value);
        }
        self.scopes.pop();
        self.expect("}")?;
        self.newline()?;
        Ok(region)
    }

    /// A trailing comment: `file:line`, block path and phase, each optional.
    fn origin(&mut self) -> Result<Origin> {
        let Token::Comment(text) = self.peek().clone() else { return Ok(Origin::default()) };
        match read_origin(&text) {
            Some(origin) => {
                self.advance();
                Ok(origin)
            }
            None => self.error(
                "a trailing comment says `file:line block.path phase`; other notes stand on their own line",
            ),
        }
    }
}

fn read_origin(text: &str) -> Option<Origin> {
    let mut origin = Origin::default();
    let mut parts = origin_parts(text)?;
    if parts.is_empty() {
        return None;
    }
    if let Some((file, Some(line))) = parts.first() {
        origin.line = SpecLine { file: file.as_str().into(), line: *line };
        parts.remove(0);
    }
    let phases = [Phase::Forward, Phase::BackwardInput, Phase::BackwardWeight, Phase::Update];
    // A quoted path carries a mark that keeps it from reading as a phase.
    if let Some((word, None)) = parts.last()
        && let Some(phase) = phases.into_iter().find(|p| phase_name(*p) == word)
    {
        origin.phase = phase;
        parts.pop();
    }
    match parts.as_slice() {
        [] => Some(origin),
        [(path, None)] => {
            origin.path = path.strip_prefix('"').unwrap_or(path).into();
            Some(origin)
        }
        _ => None,
    }
}

/// Splits an origin at blanks outside quotes; each part with its `:line`, if it has one. A quoted part keeps one leading
/// quote as a mark.
fn origin_parts(text: &str) -> Option<Vec<(String, Option<u32>)>> {
    let chars: Vec<char> = text.chars().collect();
    let mut parts = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        if chars[i].is_whitespace() {
            i += 1;
            continue;
        }
        let mut word = String::new();
        let mut is_quoted = false;
        if chars[i] == '"' {
            let (token, length) = quoted_token(&chars[i..]).ok()?;
            if let Token::Quoted(q) = token {
                word = q;
            }
            is_quoted = true;
            i += length;
        } else {
            while i < chars.len() && !chars[i].is_whitespace() && chars[i] != ':' {
                word.push(chars[i]);
                i += 1;
            }
        }
        if i < chars.len() && chars[i] == ':' {
            let digits: String = chars[i + 1..].iter().take_while(|c| c.is_ascii_digit()).collect();
            i += 1 + digits.len();
            parts.push((word, Some(digits.parse().ok()?)));
        } else {
            parts.push((if is_quoted { format!("\"{word}") } else { word }, None));
        }
        if i < chars.len() && !chars[i].is_whitespace() {
            return None;
        }
    }
    Some(parts)
}

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];

/// Mnemonics of ops that open a block.
const BLOCKS: [&str; 10] = [
    "loop",
    "update",
    "softmax",
    "cross_entropy",
    "rms_norm",
    "layer_norm",
    "rope",
    "attention",
    "attention_grad",
    "loss_head",
];

/// Unary functions.
pub(crate) const UNARY: [UnaryOp; 13] = [
    UnaryOp::Neg,
    UnaryOp::Abs,
    UnaryOp::Exp,
    UnaryOp::Log,
    UnaryOp::Sqrt,
    UnaryOp::Rsqrt,
    UnaryOp::Tanh,
    UnaryOp::Sigmoid,
    UnaryOp::Sin,
    UnaryOp::Cos,
    UnaryOp::Erf,
    UnaryOp::Floor,
    UnaryOp::Not,
];

/// Binary functions.
pub(crate) const BINARY: [BinaryOp; 10] = [
    BinaryOp::Add,
    BinaryOp::Sub,
    BinaryOp::Mul,
    BinaryOp::Div,
    BinaryOp::Rem,
    BinaryOp::Max,
    BinaryOp::Min,
    BinaryOp::Pow,
    BinaryOp::And,
    BinaryOp::Or,
];

/// Comparisons.
pub(crate) const COMPARE: [CompareOp; 6] =
    [CompareOp::Eq, CompareOp::Ne, CompareOp::Lt, CompareOp::Le, CompareOp::Gt, CompareOp::Ge];

/// Element-wise functions, comparisons and reductions by mnemonic; a reduction comes without its axes.
fn element_op(mnemonic: &str) -> Option<Op> {
    let unary = UNARY.into_iter().map(Op::Unary);
    let binary = BINARY.into_iter().map(Op::Binary);
    let compare = COMPARE.into_iter().map(Op::Compare);
    let reduce = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]
        .into_iter()
        .map(|op| Op::Reduce { op, axes: Vec::new() });
    unary.chain(binary).chain(compare).chain(reduce).find(|op| super::shape::op_name(op) == mnemonic)
}
