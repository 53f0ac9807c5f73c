//! Ops that hold a region: loops, composites and updates.

use super::{NESTING_MAX, Parser, Result, Token};
use crate::graph::custom::{Argument, Custom};
use crate::graph::shape::composite_name;
use crate::graph::{
    Attention, Axis, Bound, Composite, CompositeKind, Loop, LossHead, Name, Op, Origin, Region, RegionId,
    RopeScaling, Sharding, Type, Update, ValueId,
};
use std::collections::BTreeMap;

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
    types: Vec<(Type, Sharding)>,
    score: Option<RegionId>,
}

impl Parser {
    /// An op with a region, whole.
    pub(super) fn block_op(
        &mut self,
        mnemonic: &str,
    ) -> Result<(Op, Vec<ValueId>, Vec<(Type, Sharding)>, Origin)> {
        enum Header {
            Loop { axis: Name, trip: u64, block: Option<u64>, reverse: bool, microbatches: bool },
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
                let reverse = self.accept_word("reverse");
                let microbatches = self.accept_word("microbatches");
                Header::Loop { axis, trip, block, reverse, microbatches }
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
            Header::Loop { axis, trip, block: width, reverse, microbatches } => {
                let count = |roles: &[Role], role| roles.iter().filter(|r| **r == role).count();
                Op::Loop(Loop {
                    axis,
                    trip,
                    block: width,
                    reverse,
                    microbatches,
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

    fn rope_scaling(&mut self) -> Result<RopeScaling> {
        Ok(RopeScaling {
            factor: self.attribute("factor")?,
            low: self.attribute("low")?,
            high: self.attribute("high")?,
            original: self.attribute("original")?,
        })
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
                scaling: if self.accept_word("stretched") { Some(self.rope_scaling()?) } else { None },
            },
            "attention" => CompositeKind::Attention(self.attention()?),
            "attention_grad" => CompositeKind::AttentionGrad(self.attention()?),
            "custom" => CompositeKind::Custom(self.custom()?),
            "grouped_dot" => {
                let group = self.along()?;
                let (row, tile) = self.packing()?;
                self.expect_word("over")?;
                CompositeKind::GroupedDot { group, over: self.names("an axis")?, row, tile }
            }
            "grouped_outer" => {
                let group = self.along()?;
                self.expect("=")?;
                let group = Axis::new(group, self.size("the number of groups")?);
                let (row, tile) = self.packing()?;
                CompositeKind::GroupedOuter { group, row, tile }
            }
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

    fn custom(&mut self) -> Result<Custom> {
        let file = self.quoted("the kernel's file")?;
        let function = self.name("the kernel's function")?;
        let mut arguments = Vec::new();
        loop {
            let name = self.name("an argument")?;
            self.expect("[")?;
            let axes = if self.accept("]") { Vec::new() } else { self.names("an axis")? };
            if !axes.is_empty() {
                self.expect("]")?;
            }
            arguments.push(Argument { name, axes });
            if !self.accept(",") {
                break;
            }
        }
        self.expect_word("source")?;
        let source = self.quoted("the kernel's text")?;
        Ok(Custom { file, source, function, arguments })
    }

    fn packing(&mut self) -> Result<(Name, u64)> {
        self.expect_word("rows")?;
        let row = self.name("the packed axis")?;
        self.expect_word("tile")?;
        self.expect("=")?;
        Ok((row, self.size("the tile's rows")?))
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

    fn extras(&mut self) -> Result<Vec<usize>> {
        let mut places = Vec::new();
        loop {
            places.push(self.integer("the place of an extra")? as usize);
            if !self.accept(",") {
                return Ok(places);
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
        let over = self.names("an axis")?;
        let learned = if self.accept_word("learned") { self.extras()? } else { Vec::new() };
        // The score region is read with the block.
        Ok(Attention { query, key, over, bound, learned, score: RegionId(0) })
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
            if self.ty()?.0 != *self.graph.ty(value) {
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
}
