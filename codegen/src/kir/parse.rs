//! Reads the text form of a kernel. Types of results follow from the ops, as in the builder; the verifier checks them.

use mlc_runtime::abi::DType;

use super::print::dtype_name;
use super::{
    Access, At, BinaryOp, Block, Buffer, CompareOp, Elem, For, If, Inst, Kernel, Mem, Op, ReduceOp, Scratch,
    Type, UnaryOp, Value,
};

/// Deepest nesting of loops and conditionals the parser accepts.
const MAX_DEPTH: usize = 64;

/// Most values a text may name, so that a stray `%4000000000` does not ask for memory.
const MAX_VALUES: u32 = 1 << 24;

/// Parses one kernel.
///
/// # Errors
/// `line N: …` for the first thing that is not KIR.
pub fn parse(text: &str) -> Result<Kernel, String> {
    let tokens = tokenize(text)?;
    let kernel = Kernel {
        buffers: Vec::new(),
        scratch: Vec::new(),
        tiles: 0,
        params: Vec::new(),
        types: Vec::new(),
        body: Block::default(),
    };
    let mut parser = Parser { tokens, next: 0, kernel, defined: Vec::new() };
    parser.kernel()?;
    Ok(parser.kernel)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Names, ops, types, numbers.
    Word(String),
    Value(Value),
    Punct(char),
    End,
}

fn tokenize(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let line = line.split("//").next().unwrap_or_default();
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
            let len = match first {
                '{' | '}' | '(' | ')' | '[' | ']' | ',' | ':' | '=' => 1,
                '%' => 1 + rest[1..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - 1),
                c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                c => return Err(format!("line {number}: unexpected character `{c}`")),
            };
            let word = &rest[..len];
            tokens.push((
                number,
                match first {
                    '%' => {
                        let id: u32 = word[1..]
                            .parse()
                            .map_err(|_| format!("line {number}: `{word}` is not a value"))?;
                        if id >= MAX_VALUES {
                            return Err(format!("line {number}: value number too large: {word}"));
                        }
                        Token::Value(Value(id))
                    }
                    c if is_word(c) => Token::Word(word.to_string()),
                    c => Token::Punct(c),
                },
            ));
            rest = rest[len..].trim_start();
        }
    }
    tokens.push((text.lines().count().max(1), Token::End));
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    kernel: Kernel,
    defined: Vec<bool>,
}

impl Parser {
    // ---- tokens

    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].1.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn error<T>(&self, message: impl std::fmt::Display) -> Result<T, String> {
        // The offending token has just been taken.
        let line = self.tokens[self.next.saturating_sub(1)].0;
        Err(format!("line {line}: {message}"))
    }

    fn punct(&mut self, c: char) -> Result<(), String> {
        match self.take() {
            Token::Punct(found) if found == c => Ok(()),
            found => self.error(format!("expected `{c}`, found {}", describe(&found))),
        }
    }

    fn is_punct(&self, c: char) -> bool {
        *self.peek() == Token::Punct(c)
    }

    fn word(&mut self) -> Result<String, String> {
        match self.take() {
            Token::Word(word) => Ok(word),
            found => self.error(format!("expected a name, found {}", describe(&found))),
        }
    }

    fn keyword(&mut self, expected: &str) -> Result<(), String> {
        match self.take() {
            Token::Word(word) if word == expected => Ok(()),
            found => self.error(format!("expected `{expected}`, found {}", describe(&found))),
        }
    }

    fn is_keyword(&self, expected: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word == expected)
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let word = self.word()?;
        word.parse().or_else(|_| self.error(format!("expected a number, found `{word}`")))
    }

    fn comma(&mut self) -> Result<(), String> {
        self.punct(',')
    }

    // ---- values and types

    /// A use.
    fn value(&mut self) -> Result<Value, String> {
        match self.take() {
            Token::Value(v) if self.defined.get(v.0 as usize) == Some(&true) => Ok(v),
            Token::Value(v) => self.error(format!("{v} is used before it is defined")),
            found => self.error(format!("expected a value, found {}", describe(&found))),
        }
    }

    /// A value about to be defined.
    fn new_value(&mut self) -> Result<Value, String> {
        match self.take() {
            Token::Value(v) => Ok(v),
            found => self.error(format!("expected a new value, found {}", describe(&found))),
        }
    }

    fn define(&mut self, value: Value, ty: Type) -> Result<(), String> {
        let index = value.0 as usize;
        if self.defined.len() <= index {
            self.defined.resize(index + 1, false);
            self.kernel.types.resize(index + 1, Type::I64);
        }
        if self.defined[index] {
            return self.error(format!("{value} is defined twice"));
        }
        self.defined[index] = true;
        self.kernel.types[index] = ty;
        Ok(())
    }

    fn elem_and_lanes(&mut self) -> Result<Type, String> {
        let word = self.word()?;
        for elem in Elem::ALL {
            if let Some(rest) = word.strip_prefix(elem.name()) {
                if rest.is_empty() {
                    return Ok(Type::scalar(elem));
                }
                if let Some(Ok(lanes)) = rest.strip_prefix('x').map(str::parse::<u32>)
                    && lanes > 1
                {
                    return Ok(Type::vector(elem, lanes));
                }
            }
        }
        self.error(format!("`{word}` is not a type"))
    }

    fn mem(&mut self) -> Result<Mem, String> {
        let name = self.word()?;
        let buffer = self.kernel.buffers.iter().position(|b| b.name == name);
        let scratch = self.kernel.scratch.iter().position(|s| s.name == name);
        match (buffer, scratch) {
            (Some(i), _) => Ok(Mem::Buffer(i as u32)),
            (None, Some(i)) => Ok(Mem::Scratch(i as u32)),
            (None, None) => self.error(format!("no buffer or scratch is called `{name}`")),
        }
    }

    fn at(&mut self) -> Result<At, String> {
        let mem = self.mem()?;
        self.punct('[')?;
        let index = self.value()?;
        let stride = if self.is_keyword("by") {
            self.take();
            Some(self.value()?)
        } else {
            None
        };
        self.punct(']')?;
        Ok(At { mem, index, stride })
    }

    fn count(&mut self) -> Result<Option<Value>, String> {
        if !self.is_keyword("first") {
            return Ok(None);
        }
        self.take();
        Ok(Some(self.value()?))
    }

    // ---- declarations

    fn kernel(&mut self) -> Result<(), String> {
        self.keyword("kernel")?;
        self.punct('{')?;
        while self.is_keyword("buffer") || self.is_keyword("scratch") {
            self.declaration()?;
        }
        self.keyword("tiles")?;
        self.kernel.tiles = self.number()?;
        self.punct('(')?;
        loop {
            let param = self.new_value()?;
            self.define(param, Type::I64)?;
            self.kernel.params.push(param);
            if !self.is_punct(',') {
                break;
            }
            self.take();
        }
        self.punct(')')?;
        if self.kernel.params.len() < 2 {
            return self.error("a kernel has at least two parameters: tile begin and tile end");
        }
        self.kernel.body = self.block(0)?;
        self.punct('}')?;
        match self.take() {
            Token::End => Ok(()),
            found => self.error(format!("expected the end, found {}", describe(&found))),
        }
    }

    fn declaration(&mut self) -> Result<(), String> {
        let kind = self.word()?;
        let name = self.word()?;
        self.punct(':')?;
        let access = if kind == "buffer" {
            let word = self.word()?;
            let all = [Access::Read, Access::Write, Access::ReadWrite];
            match all.into_iter().find(|a| a.name() == word) {
                Some(access) => access,
                None => return self.error(format!("expected read, write or read_write, found `{word}`")),
            }
        } else {
            Access::ReadWrite
        };
        let word = self.word()?;
        let all = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];
        let Some(dtype) = all.into_iter().find(|&d| dtype_name(d) == word) else {
            return self.error(format!("`{word}` is not an element type"));
        };
        self.punct('[')?;
        let len = self.number()?;
        self.punct(']')?;
        if kind == "buffer" {
            self.kernel.buffers.push(Buffer { name, dtype, len, access });
        } else {
            self.kernel.scratch.push(Scratch { name, dtype, len });
        }
        Ok(())
    }

    // ---- code

    fn block(&mut self, depth: usize) -> Result<Block, String> {
        if depth > MAX_DEPTH {
            return self.error(format!("nested more than {MAX_DEPTH} deep"));
        }
        let mut block = Block::default();
        loop {
            if self.is_punct('}') {
                return Ok(block);
            }
            if self.is_keyword("yield") {
                self.take();
                block.yields.push(self.value()?);
                while self.is_punct(',') {
                    self.take();
                    block.yields.push(self.value()?);
                }
                return Ok(block);
            }
            let inst = self.inst(depth)?;
            block.insts.push(inst);
        }
    }

    fn inst(&mut self, depth: usize) -> Result<Inst, String> {
        let mut results = Vec::new();
        if matches!(self.peek(), Token::Value(_)) {
            results.push(self.new_value()?);
            while self.is_punct(',') {
                self.take();
                results.push(self.new_value()?);
            }
            self.punct('=')?;
        }
        let name = self.word()?;
        let (op, types) = match name.as_str() {
            "for" => self.for_loop(depth)?,
            "if" => self.conditional(depth)?,
            "store" => (self.store()?, Vec::new()),
            _ => {
                let (op, ty) = self.simple(&name)?;
                (op, vec![ty])
            }
        };
        if results.len() != types.len() {
            return self.error(format!("`{name}` has {} results, {} are named", types.len(), results.len()));
        }
        for (&value, ty) in results.iter().zip(types) {
            self.define(value, ty)?;
        }
        Ok(Inst { results, op })
    }

    /// Ops with one result: `name type operands`. The type is that of the result, except that comparisons, `insert` and
    /// the like state their operand's.
    fn simple(&mut self, name: &str) -> Result<(Op, Type), String> {
        let ty = self.elem_and_lanes()?;
        if let Some(op) = UnaryOp::ALL.into_iter().find(|op| op.name() == name) {
            return Ok((Op::Unary(op, self.value()?), ty));
        }
        if let Some(op) = BinaryOp::ALL.into_iter().find(|op| op.name() == name) {
            let (a, b) = self.two()?;
            return Ok((Op::Binary(op, a, b), ty));
        }
        if let Some(op) = CompareOp::ALL.into_iter().find(|op| name.strip_prefix("cmp_") == Some(op.name())) {
            let (a, b) = self.two()?;
            return Ok((Op::Compare(op, a, b), ty.with_elem(Elem::I1)));
        }
        if let Some(op) = ReduceOp::ALL.into_iter().find(|op| name.strip_prefix("reduce_") == Some(op.name()))
        {
            return Ok((Op::Reduce(op, self.value()?), ty));
        }
        let op = match name {
            "const" => Op::Const(ty, self.constant(ty)?),
            "iota" => Op::Iota(ty),
            "fma" => {
                let (a, b, c) = self.three()?;
                Op::Fma(a, b, c)
            }
            "select" => {
                let (c, a, b) = self.three()?;
                Op::Select(c, a, b)
            }
            "convert" => Op::Convert(ty, self.value()?),
            "bitcast" => Op::Bitcast(ty, self.value()?),
            "splat" => Op::Splat(ty, self.value()?),
            "extract" => {
                let a = self.value()?;
                self.comma()?;
                Op::Extract(a, self.number()?)
            }
            "insert" => {
                let (a, s) = self.two()?;
                self.comma()?;
                Op::Insert(a, s, self.number()?)
            }
            "shuffle" => {
                let (a, b) = self.two()?;
                Op::Shuffle(a, b, self.lanes()?)
            }
            "load" => Op::Load { at: self.at()?, lanes: ty.lanes, count: self.count()? },
            "gather" => {
                let mem = self.mem()?;
                self.punct('[')?;
                let indices = self.value()?;
                self.punct(']')?;
                Op::Gather { mem, indices, count: self.count()? }
            }
            _ => return self.error(format!("unknown op `{name}`")),
        };
        Ok((op, ty))
    }

    fn two(&mut self) -> Result<(Value, Value), String> {
        let a = self.value()?;
        self.comma()?;
        Ok((a, self.value()?))
    }

    fn three(&mut self) -> Result<(Value, Value, Value), String> {
        let (a, b) = self.two()?;
        self.comma()?;
        Ok((a, b, self.value()?))
    }

    fn lanes(&mut self) -> Result<Vec<u32>, String> {
        self.punct('[')?;
        let mut lanes = vec![self.number()?];
        while self.is_punct(',') {
            self.take();
            lanes.push(self.number()?);
        }
        self.punct(']')?;
        Ok(lanes)
    }

    fn constant(&mut self, ty: Type) -> Result<u64, String> {
        let word = self.word()?;
        let hex = word.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16).ok());
        let bits = match (ty.elem, hex) {
            (Elem::F32 | Elem::F64, Some(bits)) => bits,
            (Elem::F32, None) => word.parse::<f32>().ok().map(|x| x.to_bits() as u64),
            (Elem::F64, None) => word.parse::<f64>().ok().map(f64::to_bits),
            (Elem::I1, _) => word.parse::<bool>().ok().map(u64::from),
            (Elem::I32, _) => word.parse::<i32>().ok().map(|x| x as u32 as u64),
            (Elem::I64, _) => word.parse::<i64>().ok().map(|x| x as u64),
        };
        match bits {
            Some(bits) if ty.elem != Elem::F32 || bits >> 32 == 0 => Ok(bits),
            _ => self.error(format!("`{word}` is not a constant of type {ty}")),
        }
    }

    fn store(&mut self) -> Result<Op, String> {
        let at = self.at()?;
        self.comma()?;
        let value = self.value()?;
        Ok(Op::Store { at, value, count: self.count()? })
    }

    fn for_loop(&mut self, depth: usize) -> Result<(Op, Vec<Type>), String> {
        let var = self.new_value()?;
        self.punct('=')?;
        let lo = self.value()?;
        self.keyword("to")?;
        let hi = self.value()?;
        self.keyword("step")?;
        let step = self.value()?;
        let (mut carried, mut init) = (Vec::new(), Vec::new());
        if self.is_keyword("carry") {
            self.take();
            self.punct('(')?;
            loop {
                carried.push(self.new_value()?);
                self.punct('=')?;
                init.push(self.value()?);
                if !self.is_punct(',') {
                    break;
                }
                self.take();
            }
            self.punct(')')?;
        }
        let types: Vec<Type> = init.iter().map(|&v| self.kernel.ty(v)).collect();
        self.define(var, Type::I64)?;
        for (&value, &ty) in carried.iter().zip(&types) {
            self.define(value, ty)?;
        }
        self.punct('{')?;
        let body = self.block(depth + 1)?;
        self.punct('}')?;
        Ok((Op::For(Box::new(For { var, lo, hi, step, carried, init, body })), types))
    }

    fn conditional(&mut self, depth: usize) -> Result<(Op, Vec<Type>), String> {
        let condition = self.value()?;
        self.punct('{')?;
        let then = self.block(depth + 1)?;
        self.punct('}')?;
        let otherwise = if self.is_keyword("else") {
            self.take();
            self.punct('{')?;
            let block = self.block(depth + 1)?;
            self.punct('}')?;
            block
        } else {
            Block::default()
        };
        let types = then.yields.iter().map(|&v| self.kernel.ty(v)).collect();
        Ok((Op::If(Box::new(If { condition, then, otherwise })), types))
    }
}

fn describe(token: &Token) -> String {
    match token {
        Token::Word(word) => format!("`{word}`"),
        Token::Value(value) => format!("`{value}`"),
        Token::Punct(c) => format!("`{c}`"),
        Token::End => "the end of the text".to_string(),
    }
}
