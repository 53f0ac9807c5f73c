//! The syntax tree of a spec file: exactly what was written, with the place of every word.
//!
//! Nothing here knows what a name means. `parse.rs` builds the tree, `print.rs` writes it back in the one
//! canonical form, `resolve.rs` and the checkers give it meaning.

use super::source::Span;

/// A word with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Ident {
    /// The word itself; a dotted path keeps its dots.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

/// A quoted string with its place (the span includes the quotes).
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// The string without quotes and with escapes undone.
    pub value: String,
    /// Where it stands, quotes included.
    pub span: Span,
}

/// One comment, kept for the printer.
#[derive(Clone, Debug, PartialEq)]
pub struct Comment {
    /// Byte offset of the `#`.
    pub start: u32,
    /// True if nothing but blanks stands before it on its line.
    pub own_line: bool,
    /// The text, `#` included, without the end of line.
    pub text: String,
}

/// A whole file.
#[derive(Clone, Debug)]
pub struct File {
    /// `spec 1`.
    pub version: u64,
    /// Everything after the version line, in order.
    pub items: Vec<Item>,
    /// All comments in order of position.
    pub comments: Vec<Comment>,
    /// Overrides given with `--set`, in order; not part of the text.
    pub overrides: Vec<Override>,
    /// The whole file.
    pub span: Span,
}

/// A `--set Model.key=value`, kept beside the file it changes.
#[derive(Clone, Debug)]
pub struct Override {
    /// The model whose size or constant is set.
    pub model: Ident,
    /// The size or constant.
    pub key: Ident,
    /// Its new value.
    pub value: Value,
}

/// A top-level item.
#[derive(Clone, Debug)]
pub enum Item {
    /// `use "llama.spec" as Llama with { layers = 4 }`
    Use(Use),
    /// `model Llama { … }`
    Model(Model),
    /// A block outside any model, for use by every model of the file.
    Block(Block),
    /// `mesh`, `store`, `train`, `pipeline` or `lower` with its section.
    Section(SectionItem),
    /// `shard { … }`
    Shard(Shard),
    /// `freeze "**" except "**.lora*"`
    Freeze(Freeze),
    /// `adapter lora { … }`
    Adapter(Adapter),
    /// `target cpu { … }`
    Target(Target),
    /// `kernel "k.mlir" for std.Attend@core`
    Kernel(Kernel),
}

/// `use "file" as Name with { key = value }`
#[derive(Clone, Debug)]
pub struct Use {
    /// The file path, or a dotted name of a shipped spec.
    pub path: Text,
    /// True if the path was written as a dotted name, without quotes.
    pub dotted: bool,
    /// The name it is known by here.
    pub alias: Option<Ident>,
    /// Sizes and constants replaced.
    pub with: Option<Section>,
    /// The whole item.
    pub span: Span,
}

/// `mesh { … }` and its like.
#[derive(Clone, Debug)]
pub struct SectionItem {
    /// `mesh`, `store`, `train`, `pipeline` or `lower`.
    pub kind: Ident,
    /// Its contents.
    pub section: Section,
}

/// `freeze "a", "b" except "c"`
#[derive(Clone, Debug)]
pub struct Freeze {
    /// Globs of frozen parameters.
    pub globs: Vec<Text>,
    /// Globs of parameters that stay trainable.
    pub except: Vec<Text>,
    /// The whole item.
    pub span: Span,
}

/// `adapter lora { rank = 32, on = "**.wq" }`
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Which kind of adapter.
    pub kind: Ident,
    /// Its keys.
    pub section: Section,
}

/// `target cuda "h100x512" { arch = sm_90a }`
#[derive(Clone, Debug)]
pub struct Target {
    /// `cpu` or `cuda`.
    pub kind: Ident,
    /// A name for this target, so that one spec may have many.
    pub label: Option<Text>,
    /// Its keys and its `with { … }` overrides.
    pub section: Section,
    /// The whole item.
    pub span: Span,
}

/// `kernel "k.mlir" for std.Attend@core`
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The file with the kernel.
    pub file: Text,
    /// What it implements.
    pub subject: Expr,
    /// The whole item.
    pub span: Span,
}

/// `shard { … }`
#[derive(Clone, Debug)]
pub struct Shard {
    /// The rules in order; a later one wins.
    pub rules: Vec<ShardRule>,
    /// Its keys, and entries with a glob.
    pub keys: Section,
    /// The whole item.
    pub span: Span,
}

/// `params "**": d -> fsdp`
#[derive(Clone, Debug)]
pub struct ShardRule {
    /// What the rule speaks of.
    pub scope: ShardScope,
    /// Each choice is a rule of its own; a choice of several names splits their product.
    pub choices: Vec<AxisChoice>,
    /// Mesh axes, or `none` alone.
    pub mesh_axes: Vec<Ident>,
    /// The whole rule.
    pub span: Span,
}

/// The tensors a shard rule speaks of.
#[derive(Clone, Debug)]
pub enum ShardScope {
    /// Every tensor that has the axis.
    Every,
    /// Values with this role.
    Role(Ident),
    /// Parameters whose path matches.
    Params(Text),
    /// Values whose path matches.
    Values(Text),
}

/// `vocab`, or `(kv group)`.
#[derive(Clone, Debug)]
pub struct AxisChoice {
    /// One name, or several whose product is split.
    pub axes: Vec<Ident>,
    /// True if written in parentheses.
    pub joint: bool,
    /// The whole choice.
    pub span: Span,
}

/// `{ key = value, … }`
#[derive(Clone, Debug)]
pub struct Section {
    /// The entries in order.
    pub entries: Vec<Entry>,
    /// Braces included.
    pub span: Span,
}

/// One entry of a section.
#[derive(Clone, Debug)]
pub enum Entry {
    /// `steps = 500k`, `mesh.tensor = 4`
    Assign {
        /// The key, dots included.
        key: Ident,
        /// Its value.
        value: Value,
    },
    /// `params "**.norm*.w" { decay = 0 }`, `params "**.router": f32`, `keep "layer.*.attn"`
    Glob {
        /// The word before the string.
        verb: Ident,
        /// The glob.
        glob: Text,
        /// `except "…"`.
        except: Option<Text>,
        /// What holds for what the glob hits.
        value: Option<Value>,
    },
    /// `0.7 parquet("web/*.parquet")`
    Weighted {
        /// The weight.
        weight: Number,
        /// What is weighted.
        value: Value,
    },
    /// `with { mesh.tensor = 4 }`
    With(Section),
}

/// A value of a section.
#[derive(Clone, Debug)]
pub struct Value {
    /// What it is.
    pub kind: ValueKind,
    /// Where it stands.
    pub span: Span,
}

/// The forms of a value.
#[derive(Clone, Debug)]
pub enum ValueKind {
    /// `500k`, `-1`, `1024 sequences`
    Number(Number, Option<Ident>),
    /// `100..102`
    Range(Number, Number),
    /// `"ckpt"`
    Text(String),
    /// `(0.9, 0.95)`
    Tuple(Vec<Value>),
    /// `[4096, none]`
    List(Vec<Value>),
    /// `{ every = 500 }`
    Section(Section),
    /// `bf16`, `tokens("a.bin", dtype = u16)`, `adamw { lr = 1e-4 }`
    Tagged {
        /// The word.
        tag: Ident,
        /// Arguments in parentheses, if there were any.
        args: Option<Vec<ValueArg>>,
        /// The section that follows, if there is one.
        section: Option<Section>,
    },
    /// `warmup(2000) then cosine(to = 3e-5)`
    Chain(Vec<Value>),
    /// `auto(1..64) over nodes`
    Over(Box<Value>, Ident),
}

/// `dtype = u16`, or a value alone.
#[derive(Clone, Debug)]
pub struct ValueArg {
    /// The name, if given by name.
    pub name: Option<Ident>,
    /// The value.
    pub value: Value,
}

/// A number as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// Its value with the multiplier of its suffix applied (`500k` is 500000, `80GiB` bytes, `2h` seconds).
    pub value: f64,
    /// The exact value if it is a whole number below 2^64.
    pub integer: Option<u64>,
    /// What the suffix says it counts.
    pub unit: Unit,
    /// The text, for the printer; a leading minus included.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// What a number's suffix says it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// No unit: a bare number, or one with `k`, `M`, `G`, `T`, `Ki`, `Mi`, `Gi`, `Ti`.
    One,
    /// `B`, `KB`, `KiB`, …
    Bytes,
    /// `ms`, `s`, `min`, `h`, `d`; the value is in seconds.
    Seconds,
}

/// `model Llama { … }`
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name.
    pub name: Ident,
    /// Its statements.
    pub body: Body,
    /// The whole item.
    pub span: Span,
}

/// `block Norm[a](x[.., a], eps = 1e-5) -> [.., a] { … }`
#[derive(Clone, Debug)]
pub struct Block {
    /// Its name.
    pub name: Ident,
    /// Axes it is generic over.
    pub generics: Vec<Ident>,
    /// Its arguments.
    pub formals: Vec<Formal>,
    /// Axes of its result.
    pub result: Dims,
    /// Its statements.
    pub body: Body,
    /// The whole block.
    pub span: Span,
}

/// An argument of a block.
#[derive(Clone, Debug)]
pub struct Formal {
    /// Its name.
    pub name: Ident,
    /// `: ids<vocab>`
    pub elem: Option<ElemType>,
    /// Its axes; none for a constant.
    pub dims: Option<Dims>,
    /// `= 1e-5`
    pub default: Option<Expr>,
    /// The whole argument.
    pub span: Span,
}

/// `ids<vocab>`, `bool`
#[derive(Clone, Debug)]
pub struct ElemType {
    /// The word.
    pub name: Ident,
    /// What stands between `<` and `>`.
    pub bound: Option<Expr>,
}

/// `[.., a, b]`
#[derive(Clone, Debug)]
pub struct Dims {
    /// The axes in order.
    pub dims: Vec<Dim>,
    /// Brackets included.
    pub span: Span,
}

/// One entry of `[.., a, b]`.
#[derive(Clone, Debug)]
pub enum Dim {
    /// `..`: any leading axes.
    Leading(Span),
    /// A named axis.
    Axis(Ident),
}

/// Statements between braces.
#[derive(Clone, Debug)]
pub struct Body {
    /// The statements in order.
    pub statements: Vec<Statement>,
    /// Braces included.
    pub span: Span,
}

/// `name = expression`
#[derive(Clone, Debug)]
pub struct Binding {
    /// The name.
    pub name: Ident,
    /// Its value.
    pub value: Expr,
}

/// A statement of a model or a block.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `size d = 8192, ff = 28672`
    Sizes(Vec<Binding>, Span),
    /// `const theta = 5e5`
    Consts(Vec<Binding>, Span),
    /// `input tokens: ids<vocab>[batch, seq]`
    Input(Input),
    /// `param wq[d -> kv, hd] = normal(std)`
    Params(Params),
    /// A block.
    Block(Block),
    /// `loss mean[batch, seq](…)`
    Loss(Expr, Span),
    /// `aux balance = …`
    Aux(Binding, Span),
    /// `names hf { … }`
    Names(Names),
    /// `manual[tensor] { … }`
    Manual(Manual),
    /// `kernel "k.mlir" for …`
    Kernel(Kernel),
    /// `lower { attention = reference }`
    Lower(SectionItem),
    /// `mask[seq, pos] = …`
    Let(Let),
    /// The value of the block: an expression on its own.
    Yield(Yield),
}

/// `input tokens: ids<vocab>[batch, seq]`
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name.
    pub name: Ident,
    /// Its element type; real numbers if not given.
    pub elem: Option<ElemType>,
    /// Its axes; a scalar if not given.
    pub dims: Option<Dims>,
    /// The whole statement.
    pub span: Span,
}

/// `param a[x -> y], b[y] = init`
#[derive(Clone, Debug)]
pub struct Params {
    /// The parameters.
    pub params: Vec<Param>,
    /// The init they share.
    pub init: Expr,
    /// The whole statement.
    pub span: Span,
}

/// `wq[d -> kv, hd]`
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: Ident,
    /// Axes before the arrow, or all of them if there is no arrow.
    pub inputs: Vec<Ident>,
    /// Axes after the arrow.
    pub outputs: Option<Vec<Ident>>,
    /// The whole declaration.
    pub span: Span,
}

/// `manual[tensor] { … }`
#[derive(Clone, Debug)]
pub struct Manual {
    /// Mesh axes handled by hand.
    pub mesh_axes: Vec<Ident>,
    /// Its statements.
    pub body: Body,
    /// The whole statement.
    pub span: Span,
}

/// `h[batch, d] = x + y role residual`
#[derive(Clone, Debug)]
pub struct Let {
    /// The name it defines.
    pub name: Ident,
    /// Result axes, if annotated.
    pub dims: Option<Dims>,
    /// Its value.
    pub value: Expr,
    /// Its role, if given.
    pub role: Option<Ident>,
    /// The whole statement.
    pub span: Span,
}

/// An expression on its own, with its role.
#[derive(Clone, Debug)]
pub struct Yield {
    /// The expression.
    pub value: Expr,
    /// Its role, if given.
    pub role: Option<Ident>,
}

/// `names hf { … }`
#[derive(Clone, Debug)]
pub struct Names {
    /// The table's name.
    pub table: Ident,
    /// Its rules.
    pub rules: Vec<NameRule>,
    /// The whole table.
    pub span: Span,
}

/// `"layer.{i}.attn.wq" <-> "model.layers.{i}.q.weight" as [(kv group hd), d]`
#[derive(Clone, Debug)]
pub struct NameRule {
    /// The logical path.
    pub logical: Pattern,
    /// The foreign name.
    pub foreign: Pattern,
    /// The foreign tensor's shape in terms of our axes; ours if not given.
    pub layout: Option<Layout>,
    /// The whole rule.
    pub span: Span,
}

/// A name with holes.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Its parts in order.
    pub parts: Vec<PatternPart>,
    /// The string as written.
    pub text: Text,
}

/// One part of a name with holes.
#[derive(Clone, Debug)]
pub enum PatternPart {
    /// Plain characters.
    Text(String),
    /// `{2*i+1}`
    Hole(Expr),
    /// `(wq|wk|wv)`: several tensors, in this order.
    Choice(Vec<String>),
}

/// `[(kv group hd), d]`
#[derive(Clone, Debug)]
pub struct Layout {
    /// The foreign tensor's dimensions, outermost first.
    pub dims: Vec<LayoutDim>,
    /// Brackets included.
    pub span: Span,
}

/// One dimension of a foreign tensor.
#[derive(Clone, Debug)]
pub enum LayoutDim {
    /// One of our axes, or the product of several, outermost first.
    Axes(Vec<Ident>),
    /// Parts laid end to end, one per fused tensor; each is a product of axes.
    Concat(Vec<Vec<Ident>>),
}

/// An expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// The forms of an expression.
#[derive(Clone, Debug)]
pub enum ExprKind {
    /// A number.
    Number(Number),
    /// A string (kernel options only).
    Text(String),
    /// `(x)`; kept so that the text prints as written.
    Paren(Box<Expr>),
    /// `[4096, none]`
    List(Vec<Expr>),
    /// A name, a call, or a named block.
    Ref(Box<Reference>),
    /// `-x`, `not x`
    Unary(UnaryOp, Box<Expr>),
    /// `x + y`
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `x as [seq: pos]`
    Rename(Box<Expr>, Vec<(Ident, Ident)>),
}

/// `Norm[d]@norm1(x, eps = 1e-6)`, any part after the name left out.
#[derive(Clone, Debug)]
pub struct Reference {
    /// `x`, `std.Attend`
    pub path: Ident,
    /// What stands in brackets.
    pub axes: Option<Vec<Expr>>,
    /// `@norm1`
    pub instance: Option<Ident>,
    /// What stands in parentheses.
    pub args: Option<Vec<Arg>>,
}

/// `eps = 1e-6`, or an expression alone.
#[derive(Clone, Debug)]
pub struct Arg {
    /// The name, if given by name.
    pub name: Option<Ident>,
    /// The value.
    pub value: Expr,
}

/// Operators of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-`
    Neg,
    /// `not`
    Not,
}

/// Operators of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `and`
    And,
    /// `or`
    Or,
}

impl BinaryOp {
    /// The operator as written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
        }
    }

    /// How tightly it binds; a larger number binds tighter.
    pub fn precedence(self) -> u8 {
        match self {
            BinaryOp::Or => 1,
            BinaryOp::And => 2,
            BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge | BinaryOp::Eq | BinaryOp::Ne => 3,
            BinaryOp::Add | BinaryOp::Sub => 4,
            BinaryOp::Mul | BinaryOp::Div => 5,
        }
    }

    /// True for the six comparisons, which do not chain.
    pub fn compares(self) -> bool {
        self.precedence() == 3
    }
}

impl Item {
    /// The whole item.
    pub fn span(&self) -> Span {
        match self {
            Item::Use(u) => u.span,
            Item::Model(m) => m.span,
            Item::Block(b) => b.span,
            Item::Section(s) => s.kind.span.to(s.section.span),
            Item::Shard(s) => s.span,
            Item::Freeze(f) => f.span,
            Item::Adapter(a) => a.kind.span.to(a.section.span),
            Item::Target(t) => t.span,
            Item::Kernel(k) => k.span,
        }
    }
}

impl Statement {
    /// The whole statement.
    pub fn span(&self) -> Span {
        match self {
            Statement::Sizes(_, span) | Statement::Consts(_, span) => *span,
            Statement::Loss(_, span) | Statement::Aux(_, span) => *span,
            Statement::Input(i) => i.span,
            Statement::Params(p) => p.span,
            Statement::Block(b) => b.span,
            Statement::Names(n) => n.span,
            Statement::Manual(m) => m.span,
            Statement::Kernel(k) => k.span,
            Statement::Lower(l) => l.kind.span.to(l.section.span),
            Statement::Let(l) => l.span,
            Statement::Yield(y) => y.role.as_ref().map_or(y.value.span, |r| y.value.span.to(r.span)),
        }
    }
}
