//! The text form of a graph.
//!
//! One line per op, standing alone: results, mnemonic, operands, attributes, type, and where it comes from. An op with a
//! region is a block: its region's arguments come first, one line each, then the ops, then one `yield` line per result.
//!
//! ```text
//! graph @mlp {
//!   %x = input : f32[batch=32, d=512]  // mlp.spec:3 forward
//!   %w = param "w" = normal(0.02) : f32[d=512, ff=2048]  // mlp.spec:4 forward
//!   %y = dot %x, %w over d : f32[batch=32, ff=2048]  // mlp.spec:9 layer.mlp forward
//!   %z, %s = loop layer=4 {  // mlp.spec:12 layer forward
//!     index %i : i32[]
//!     carry %h = %y : f32[batch=32, ff=2048]
//!     stacked %g = %gain : f32[ff=2048]
//!     invariant %c = %half : f32[]
//!     …
//!     yield carry %h2 : f32[batch=32, ff=2048]
//!     yield sum %l : f32[]
//!   }
//!   return loss_sum = %s
//!   return store "w" = %w.new
//! }
//! ```
//! The type on an argument line is the argument's (one slice of a stacked operand), the type on a `yield` line is that of
//! the op's result (the whole stack). Names that are not plain words are quoted: `%"q'"`. An op with the default origin
//! has no comment. [`parse`](super::parse::parse) reads all of it back.

use super::custom::Argument;
use super::shape::{dtype_name, op_name};
use super::{
    Attention, Axis, Bound, CollectivePart, Composite, CompositeKind, DType, Graph, Init, Loop, Mesh,
    MeshAxis, MeshOp, Name, Op, OpId, OpNode, Origin, Output, Pairs, Phase, RegionId, Sharding, Type, Update,
    Value, ValueId,
};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

/// The graph's text, ending in a newline.
pub fn print(graph: &Graph) -> String {
    print_lines(graph).text
}

/// A graph's text with the line (from 0) of each thing in it.
pub struct Lines {
    /// The text.
    pub text: String,
    /// Header line of each op.
    pub ops: BTreeMap<OpId, usize>,
    /// Line of each argument of a region, by (region, position).
    pub args: BTreeMap<(RegionId, usize), usize>,
    /// Line of each result of a region, by (region, position).
    pub results: BTreeMap<(RegionId, usize), usize>,
}

/// As [`print`], and remembers the lines. Works on ill-formed graphs too, so that the verifier can show them.
pub fn print_lines(graph: &Graph) -> Lines {
    let lines =
        Lines { text: String::new(), ops: BTreeMap::new(), args: BTreeMap::new(), results: BTreeMap::new() };
    let mut printer = Printer { graph, lines, line: 0, open: Vec::new() };
    printer.graph();
    printer.lines
}

/// The text of a type: `f32[batch=32, d=512]`, a scalar `f32[]`.
pub fn type_text(ty: &Type) -> String {
    let axes: Vec<String> = ty.axes.iter().map(|a| format!("{}={}", word(&a.name), a.size)).collect();
    format!("{}[{}]", dtype_name(ty.dtype), axes.join(", "))
}

/// A float as the shortest text that reads back to the same bits; `inf`, `-inf` and `nan` by name.
pub fn float_text(x: f64) -> String {
    if x.is_nan() { "nan".into() } else { format!("{x:?}") }
}

/// Whether a name needs no quotes.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        && !name.starts_with('.')
}

/// Phase as in text.
pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Forward => "forward",
        Phase::BackwardInput => "backward_input",
        Phase::BackwardWeight => "backward_weight",
        Phase::Update => "update",
    }
}

/// Pair layout as in text.
pub(super) fn pairs_name(pairs: Pairs) -> &'static str {
    match pairs {
        Pairs::Half => "half",
        Pairs::Interleaved => "interleaved",
    }
}

fn word(name: &str) -> String {
    if is_plain(name) { name.to_string() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn words(names: &[Name]) -> String {
    names.iter().map(|n| word(n)).collect::<Vec<_>>().join(", ")
}

fn init_text(init: &Init) -> String {
    match init {
        Init::Constant(c) => format!("constant({})", float_text(*c)),
        Init::Normal { std } => format!("normal({})", float_text(*std)),
        Init::Uniform { low, high } => format!("uniform({}, {})", float_text(*low), float_text(*high)),
    }
}

fn origin_text(origin: &Origin) -> Option<String> {
    if *origin == Origin::default() {
        return None;
    }
    let mut parts = Vec::new();
    if !origin.line.file.is_empty() || origin.line.line != 0 {
        let file = if origin.line.file.is_empty() { String::new() } else { file_text(&origin.line.file) };
        parts.push(format!("{file}:{}", origin.line.line));
    }
    if !origin.path.is_empty() {
        parts.push(path_text(&origin.path));
    }
    parts.push(phase_name(origin.phase).into());
    Some(parts.join(" "))
}

fn file_text(file: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./+".contains(c);
    if file.chars().all(plain) { file.to_string() } else { quoted(file) }
}

fn path_text(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.{}".contains(c);
    let is_phase = [Phase::Forward, Phase::BackwardInput, Phase::BackwardWeight, Phase::Update]
        .map(phase_name)
        .contains(&path);
    if path.chars().all(plain) && !is_phase { path.to_string() } else { quoted(path) }
}

/// What stands before an argument of a region.
fn arg_role(op: &Op, i: usize) -> &'static str {
    match op {
        Op::Loop(_) if i == 0 => "index",
        Op::Loop(l) if i <= l.carries => "carry",
        Op::Loop(l) if i <= l.carries + l.stacked => "stacked",
        Op::Loop(_) => "invariant",
        _ => "arg",
    }
}

/// What stands between `yield` and a result of a region.
fn yield_role(op: &Op, i: usize) -> &'static str {
    match op {
        Op::Loop(l) if i < l.carries => "carry ",
        Op::Loop(l) if i < l.carries + l.stacked_outs => "stacked ",
        Op::Loop(_) => "sum ",
        _ => "",
    }
}

struct Printer<'a> {
    graph: &'a Graph,
    lines: Lines,
    line: usize,
    /// Regions being printed; one of them again inside itself is not followed.
    open: Vec<RegionId>,
}

impl Printer<'_> {
    fn emit(&mut self, text: &str) {
        let indent = "  ".repeat(self.open.len());
        let _ = writeln!(self.lines.text, "{indent}{text}");
        self.line += 1;
    }

    fn graph(&mut self) {
        let graph = self.graph;
        self.emit(&format!("graph @{}{} {{", word(&graph.name), mesh_text(&graph.mesh)));
        self.open.push(graph.body);
        self.ops(graph.body);
        let results = graph.regions.get(graph.body.index()).map(|r| r.results.clone()).unwrap_or_default();
        for (i, value) in results.iter().enumerate() {
            let target = match graph.outputs.get(i) {
                Some(Output::Report(name)) => format!("{} = ", report_word(name)),
                Some(Output::Store(name)) => format!("store {} = ", quoted(name)),
                None => String::new(),
            };
            self.lines.results.insert((graph.body, i), self.line);
            self.emit(&format!("return {target}{}", self.value(*value)));
        }
        self.open.pop();
        self.emit("}");
    }

    fn ops(&mut self, region: RegionId) {
        let graph = self.graph;
        let Some(region) = graph.regions.get(region.index()) else { return };
        for &id in &region.ops {
            match graph.ops.get(id.index()) {
                Some(node) => self.op(id, node),
                None => self.emit(&format!("{id} (no such op)")),
            }
        }
    }

    fn op(&mut self, id: OpId, node: &OpNode) {
        self.lines.ops.insert(id, self.line);
        let results: Vec<String> = node.results.iter().map(|v| self.value(*v)).collect();
        let results = if results.is_empty() { String::new() } else { format!("{} = ", results.join(", ")) };
        let comment = origin_text(&node.origin).map(|o| format!("  // {o}")).unwrap_or_default();
        let line = format!("{results}{}", self.body(node));
        match self.block_of(&node.op) {
            None => {
                let types: Vec<String> = node.results.iter().map(|v| self.ty(*v)).collect();
                self.emit(&format!("{line} : {}{comment}", types.join(", ")));
            }
            Some((region, score)) => {
                self.emit(&format!("{line} {{{comment}"));
                self.block(node, region, &node.results);
                if let Some(score) = score {
                    self.open.push(region);
                    self.emit("score {");
                    let plain = OpNode { op: Op::Select, operands: vec![], ..node.clone() };
                    self.block(&plain, score, &[]);
                    self.emit("}");
                    self.open.pop();
                }
                self.emit("}");
            }
        }
    }

    /// The region of an op and its score region.
    fn block_of(&self, op: &Op) -> Option<(RegionId, Option<RegionId>)> {
        let regions = self.graph.regions_of(op);
        regions.first().map(|first| (*first, regions.get(1).copied()))
    }

    /// Arguments, ops and yields of a region. `results` are the op's: their types stand on the `yield` lines; where there
    /// are none, the yielded values' own types do.
    fn block(&mut self, node: &OpNode, id: RegionId, results: &[ValueId]) {
        let graph = self.graph;
        let looped = self.open.contains(&id);
        self.open.push(id);
        match graph.regions.get(id.index()) {
            _ if looped => self.emit(&format!("({id} contains itself)")),
            None => self.emit(&format!("({id}: no such region)")),
            Some(region) => {
                for (i, arg) in region.args.iter().enumerate() {
                    self.lines.args.insert((id, i), self.line);
                    let operand = match node.op {
                        Op::Loop(_) => i.checked_sub(1).and_then(|i| node.operands.get(i)),
                        _ => node.operands.get(i),
                    };
                    let from = operand.map(|v| format!(" = {}", self.value(*v))).unwrap_or_default();
                    let role = arg_role(&node.op, i);
                    self.emit(&format!("{role} {}{from} : {}", self.value(*arg), self.ty(*arg)));
                }
                self.ops(id);
                for (i, value) in region.results.iter().enumerate() {
                    self.lines.results.insert((id, i), self.line);
                    let ty = self.ty(*results.get(i).unwrap_or(value));
                    let role = yield_role(&node.op, i);
                    self.emit(&format!("yield {role}{} : {ty}", self.value(*value)));
                }
            }
        }
        self.open.pop();
    }

    /// Whole numbers of integer types have no point.
    fn constant_text(&self, node: &OpNode, value: f64) -> String {
        let ty = node.results.first().and_then(|v| self.graph.values.get(v.index())).map(|v| v.ty.dtype);
        let is_int = matches!(ty, Some(DType::I32 | DType::I64 | DType::Bool));
        let whole = value as i64;
        if is_int && (whole as f64).to_bits() == value.to_bits() {
            whole.to_string()
        } else {
            float_text(value)
        }
    }

    fn value(&self, id: ValueId) -> String {
        match self.graph.values.get(id.index()) {
            Some(value) => format!("%{}", word(&value.name)),
            None => format!("%({id}: no such value)"),
        }
    }

    fn ty(&self, id: ValueId) -> String {
        self.graph.values.get(id.index()).map(placed_text).unwrap_or_default()
    }

    /// Mnemonic, operands and attributes.
    fn body(&self, node: &OpNode) -> String {
        let operands = node.operands.iter().map(|v| self.value(*v)).collect::<Vec<_>>().join(", ");
        let name = op_name(&node.op);
        let plain = if operands.is_empty() { name.clone() } else { format!("{name} {operands}") };
        match &node.op {
            Op::Input { name, bound } => {
                let own = node.results.first().and_then(|v| self.graph.values.get(v.index()));
                let called = match own {
                    Some(value) if value.name == *name => String::new(),
                    _ => format!(" {}", quoted(name)),
                };
                let below = if *bound == 0 { String::new() } else { format!(" below {bound}") };
                format!("input{called}{below}")
            }
            Op::Param { path, init } => format!("param {} = {}", quoted(path), init_text(init)),
            Op::State { param, kind } => format!("state {} {}", quoted(param), word(kind)),
            Op::Scalar { key, default } => format!("scalar {} = {}", quoted(key), float_text(*default)),
            Op::Const(value) => format!("const {}", self.constant_text(node, *value)),
            Op::Index { axis } => format!("index {}", word(axis)),
            Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Transfer { .. } => plain,
            Op::Mesh(op) => format!("{plain}{}", mesh_op_text(op)),
            Op::Rename { pairs } => {
                let pairs: Vec<String> =
                    pairs.iter().map(|(from, to)| format!("{} -> {}", word(from), word(to))).collect();
                format!("{plain} as {}", pairs.join(", "))
            }
            Op::Reduce { axes, .. } => format!("{plain} over {}", words(axes)),
            Op::Dot { over } if over.is_empty() => plain,
            Op::Dot { over } => format!("{plain} over {}", words(over)),
            Op::CumSum { axis, exclusive, reverse } => {
                let exclusive = if *exclusive { " exclusive" } else { "" };
                let reverse = if *reverse { " reverse" } else { "" };
                format!("{plain} along {}{exclusive}{reverse}", word(axis))
            }
            Op::Gather { axis } | Op::ScatterAdd { axis } => format!("{plain} along {}", word(axis)),
            Op::RotatePairs { axis, pairs } => format!("{plain} along {} {}", word(axis), pairs_name(*pairs)),
            Op::Slice { from, to, at } => format!("{plain} along {} -> {} at {at}", word(from), word(to)),
            Op::Concat { parts, axis } => format!("{plain} along {} -> {}", words(parts), word(axis)),
            Op::Loop(l) => loop_text(l),
            Op::Composite(c) => composite_text(c),
            Op::Update(u) => update_text(u),
        }
    }
}

/// ` on data=2 over nodes, tensor=4`; nothing for one rank.
fn mesh_text(mesh: &Mesh) -> String {
    if mesh.axes.is_empty() {
        return String::new();
    }
    let axis = |a: &MeshAxis| {
        format!("{}={}{}", word(&a.name), a.size, if a.over_nodes { " over nodes" } else { "" })
    };
    format!(" on {}", mesh.axes.iter().map(axis).collect::<Vec<_>>().join(", "))
}

/// A value's type with how it lies on the mesh.
fn placed_text(value: &Value) -> String {
    let Sharding { split, partial } = &value.sharding;
    if value.sharding.is_whole() {
        return type_text(&value.ty);
    }
    let axis = |a: &Axis| {
        let on: String =
            split.get(&a.name).into_iter().flat_map(|s| &s.over).map(|m| format!(" @{}", word(m))).collect();
        let blocks = split.get(&a.name).filter(|s| s.blocks > 1).map(|s| format!(" in {}", s.blocks));
        format!("{}={}{on}{}", word(&a.name), a.size, blocks.unwrap_or_default())
    };
    let axes: Vec<String> = value.ty.axes.iter().map(axis).collect();
    let terms: Vec<String> = partial.iter().map(|(m, op)| format!("{} {}", op.name(), word(m))).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" partial({})", terms.join(", ")) };
    format!("{}[{}]{terms}", dtype_name(value.ty.dtype), axes.join(", "))
}

/// Attributes of an op between ranks.
fn mesh_op_text(op: &MeshOp) -> String {
    let spaced = |names: &[Name]| names.iter().map(|n| word(n)).collect::<Vec<_>>().join(" ");
    let because =
        |cause: &Name| if cause.is_empty() { String::new() } else { format!(" because {}", quoted(cause)) };
    let wired = |wire: Option<DType>| wire.map(|d| format!(" wire {}", dtype_name(d))).unwrap_or_default();
    match op {
        MeshOp::Constrain { split } => {
            let one = |(axis, over): (&Name, &Vec<Name>)| {
                format!("{} -> {}", word(axis), if over.is_empty() { "none".into() } else { spaced(over) })
            };
            format!(" to {}", split.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        MeshOp::Reshard { cause, wire, may_replicate } => {
            let may = if *may_replicate { " may replicate" } else { "" };
            wired(*wire) + may + &because(cause)
        }
        MeshOp::LocalPart { axis, over } => format!(" along {} over {}", word(axis), spaced(over)),
        MeshOp::Collective(c) => {
            let axes = |key: &str, of: fn(&CollectivePart) -> &Option<Name>| {
                let names: Vec<String> =
                    c.parts.iter().filter_map(|p| of(p).as_ref()).map(|n| word(n)).collect();
                if names.is_empty() { String::new() } else { format!(" {key} {}", names.join(", ")) }
            };
            let (split, join) = (axes("split", |p| &p.split), axes("join", |p| &p.join));
            format!(" over {}{split}{join}{}{}", spaced(&c.over), wired(c.wire), because(&c.cause))
        }
    }
}

/// A report's name; `store` is quoted because it is a keyword there.
fn report_word(name: &str) -> String {
    if name == "store" { quoted(name) } else { word(name) }
}

fn loop_text(l: &Loop) -> String {
    let block = l.block.map(|b| format!(" block={b}")).unwrap_or_default();
    let reverse = if l.reverse { " reverse" } else { "" };
    let micro = if l.microbatches { " microbatches" } else { "" };
    format!("loop {}={}{block}{reverse}{micro}", word(&l.axis), l.trip)
}

fn composite_text(c: &Composite) -> String {
    let name = super::shape::composite_name(&c.kind);
    match &c.kind {
        CompositeKind::Softmax { axis } | CompositeKind::CrossEntropy { axis } => {
            format!("{name} along {}", word(axis))
        }
        CompositeKind::RmsNorm { axis, eps } | CompositeKind::LayerNorm { axis, eps } => {
            format!("{name} along {} eps={}", word(axis), float_text(*eps))
        }
        CompositeKind::Rope { axis, theta, pairs, scaling } => {
            let scaling = scaling.map_or(String::new(), |s| {
                let [factor, low, high, original] = [s.factor, s.low, s.high, s.original].map(float_text);
                format!(" stretched factor={factor} low={low} high={high} original={original}")
            });
            format!(
                "{name} along {} theta={} {}{scaling}",
                word(axis),
                float_text(*theta),
                pairs_name(*pairs)
            )
        }
        CompositeKind::Attention(a) | CompositeKind::AttentionGrad(a) => attention_text(name, a),
        CompositeKind::LossHead(h) => {
            let chunks: Vec<String> = h.chunks.iter().map(|(a, n)| format!("{}={n}", word(a))).collect();
            let chunks =
                if chunks.is_empty() { String::new() } else { format!(" chunks {}", chunks.join(", ")) };
            format!("{name} along {} over {}{chunks}", word(&h.vocab), words(&h.over))
        }
        CompositeKind::Custom(k) => {
            let argument = |a: &Argument| format!("{} [{}]", word(&a.name), words(&a.axes));
            let arguments: Vec<String> = k.arguments.iter().map(argument).collect();
            let (file, function) = (quoted(&k.file), word(&k.function));
            format!("{name} {file} {function} {} source {}", arguments.join(", "), quoted(&k.source))
        }
        CompositeKind::GroupedDot { group, over, row, tile } => {
            format!("{name} along {} rows {} tile={tile} over {}", word(group), word(row), words(over))
        }
        CompositeKind::GroupedOuter { group, row, tile } => {
            format!("{name} along {}={} rows {} tile={tile}", word(&group.name), group.size, word(row))
        }
    }
}

fn attention_text(name: &str, a: &Attention) -> String {
    let bound = match a.bound {
        Bound::Full => "full".to_string(),
        Bound::Causal => "causal".to_string(),
        Bound::Window(n) => format!("window={n}"),
    };
    let places: Vec<String> = a.learned.iter().map(usize::to_string).collect();
    let learned = if places.is_empty() { String::new() } else { format!(" learned {}", places.join(", ")) };
    format!("{name} query {} key {} {bound} over {}{learned}", word(&a.query), word(&a.key), words(&a.over))
}

fn update_text(u: &Update) -> String {
    let states = if u.states.is_empty() { String::new() } else { format!(" states {}", words(&u.states)) };
    format!("update {}{states}", quoted(&u.param))
}
