//! Reads the text form of [`print`](super::print) back.
//!
//! The parser checks what text alone can say wrong: words, brackets, names that don't exist in their region or exist
//! twice. Whether operands fit their op is the verifier's question.

mod blocks;
mod mesh;
mod origin;
mod tokens;
mod words;

use super::print::pairs_name;
use super::shape::dtype_name;
use super::{
    Axis, DType, Graph, Init, Mesh, MeshAxis, Name, Op, OpId, OpNode, Output, Pairs, ReduceOp, RegionId,
    Sharding, Space, Split, Type, Value, ValueId,
};
use mesh::collective_kind;
use std::collections::BTreeMap;
use std::fmt;
use tokens::{Spot, Token, tokenize};
use words::{BLOCKS, DTYPES, element_op};

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

struct Parser {
    tokens: Vec<Spot>,
    at: usize,
    graph: Graph,
    /// Values of each open region, innermost last.
    scopes: Vec<BTreeMap<Name, ValueId>>,
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

    /// A type with how it lies on the mesh: `f32[batch=8 @data @fsdp, d=4 @tensor in 2] partial(sum ep)`.
    fn ty(&mut self) -> Result<(Type, Sharding)> {
        let at = self.at;
        let dtype = self.dtype()?;
        self.expect("[")?;
        let mut axes: Vec<Axis> = Vec::new();
        let mut sharding = Sharding::whole();
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
            let mut over = Vec::new();
            while self.accept("@") {
                over.push(self.name("a mesh axis")?);
            }
            if !over.is_empty() {
                let blocks = if self.accept_word("in") { self.size("the number of blocks")? } else { 1 };
                sharding.split.insert(name.clone(), Split { over, blocks });
            }
            axes.push(Axis { name, size });
        }
        let numel = axes.iter().try_fold(1u64, |n, a| n.checked_mul(a.size));
        if numel.is_none_or(|n| n > NUMEL_MAX) {
            return self.error_at(at, "a tensor has at most 2^50 elements");
        }
        if self.accept_word("partial") {
            self.expect("(")?;
            loop {
                let op = self.reduction()?;
                sharding.partial.insert(self.name("a mesh axis")?, op);
                if !self.accept(",") {
                    break;
                }
            }
            self.expect(")")?;
        }
        Ok((Type { dtype, axes }, sharding))
    }

    /// `sum`, `max` or `min`.
    fn reduction(&mut self) -> Result<ReduceOp> {
        let at = self.at;
        let word = self.name("a reduction")?;
        match [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min].into_iter().find(|op| op.name() == word.as_str())
        {
            Some(op) => Ok(op),
            None => self.error_at(at, format!("`{word}` is not a reduction; use sum, max or min")),
        }
    }

    fn dtype(&mut self) -> Result<DType> {
        let at = self.at;
        let word = self.name("an element type")?;
        match DTYPES.into_iter().find(|d| dtype_name(*d) == word.as_str()) {
            Some(dtype) => Ok(dtype),
            None => self.error_at(at, format!("`{word}` is not an element type")),
        }
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

    fn define(&mut self, at: usize, name: Name, (ty, sharding): (Type, Sharding)) -> Result<ValueId> {
        if self.graph.name_counts.contains_key(&name) {
            return self.error_at(at, format!("%{name} is defined twice"));
        }
        self.graph.name_counts.insert(name.clone(), 1);
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(Value { name: name.clone(), ty, sharding });
        self.scopes.last_mut().expect("a region is open").insert(name, id);
        Ok(id)
    }

    fn graph(&mut self) -> Result<()> {
        self.expect_word("graph")?;
        self.expect("@")?;
        self.graph.name = self.name("the graph's name")?;
        if self.accept_word("on") {
            self.graph.mesh = self.mesh()?;
        }
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

    /// `data=2 over nodes, tensor=4`
    fn mesh(&mut self) -> Result<Mesh> {
        let mut axes: Vec<MeshAxis> = Vec::new();
        loop {
            let at = self.at;
            let name = self.name("a mesh axis")?;
            self.expect("=")?;
            let size = self.size("a mesh axis's size")?;
            let over_nodes = self.accept_word("over");
            if over_nodes {
                self.expect_word("nodes")?;
            }
            if axes.iter().any(|a| a.name == name) {
                return self.error_at(at, format!("the mesh axis {name} appears twice"));
            }
            axes.push(MeshAxis { name, size, over_nodes });
            if !self.accept(",") {
                return Ok(Mesh { axes });
            }
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
            "to_device" => Op::Transfer { to: Space::Device },
            "to_host" => Op::Transfer { to: Space::Host },
            "rename" => self.rename()?,
            "constrain" => Op::Mesh(self.constrain()?),
            "reshard" => Op::Mesh(self.reshard()?),
            "local_part" => Op::Mesh(self.local_part()?),
            "dot" if self.accept_word("over") => Op::Dot { over: self.names("an axis")? },
            "dot" => Op::Dot { over: Vec::new() },
            "gather" => Op::Gather { axis: self.along()? },
            "scatter_add" => Op::ScatterAdd { axis: self.along()? },
            "cumsum" => Op::CumSum {
                axis: self.along()?,
                exclusive: self.accept_word("exclusive"),
                reverse: self.accept_word("reverse"),
            },
            "rotate_pairs" => Op::RotatePairs { axis: self.along()?, pairs: self.pairs()? },
            "slice" => {
                let from = self.along()?;
                self.expect("->")?;
                let to = self.name("an axis")?;
                self.expect_word("at")?;
                Op::Slice { from, to, at: self.integer("the first element")? }
            }
            "concat" => {
                self.expect_word("along")?;
                let parts = self.names("an axis")?;
                self.expect("->")?;
                Op::Concat { parts, axis: self.name("an axis")? }
            }
            _ if collective_kind(mnemonic).is_some() => Op::Mesh(self.collective(mnemonic, operands.len())?),
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
}
