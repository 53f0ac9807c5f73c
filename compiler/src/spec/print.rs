//! The canonical text of a syntax tree: what `mlc fmt` writes.
//!
//! Four blanks per level, one statement a line, a section on one line if it fits, else in the rows of the text, comments kept before or behind what
//! they stood at, single blank lines kept. Printing, parsing and printing again gives the same text.

use super::ast::*;
use super::source::Span;

/// Longest line the printer leaves in one piece.
pub const WIDTH: usize = 110;

/// The canonical text of a file; `text` is what it was parsed from.
pub fn print(file: &File, text: &str) -> String {
    let mut p = Printer { out: String::new(), level: 0, text, comments: &file.comments };
    p.comments_before(file.items.first().map_or(file.span.end, |i| i.span().start).min(version_end(text)));
    p.line(&format!("spec {}", file.version));
    p.trailing(version_end(text));
    for item in &file.items {
        p.gap(item.span());
        p.item(item);
        p.trailing(item.span().end);
    }
    p.comments_before(u32::MAX);
    p.out
}

/// One item in canonical form, without comments.
pub fn item(item: &Item) -> String {
    let mut p = Printer { out: String::new(), level: 0, text: "", comments: &[] };
    p.item(item);
    p.out
}

/// One statement in canonical form, without comments.
pub fn statement(statement: &Statement) -> String {
    let mut p = Printer { out: String::new(), level: 0, text: "", comments: &[] };
    p.statement(statement);
    p.out
}

/// One value in canonical form, on one line.
pub fn value(value: &Value) -> String {
    match &value.kind {
        ValueKind::Number(n, None) => n.text.clone(),
        ValueKind::Number(n, Some(unit)) => format!("{} {}", n.text, unit.name),
        ValueKind::Range(a, b) => format!("{}..{}", a.text, b.text),
        ValueKind::Text(t) => quote(t),
        ValueKind::Tuple(items) => format!("({})", values(items)),
        ValueKind::List(items) => format!("[{}]", values(items)),
        ValueKind::Section(s) => section(s),
        ValueKind::Chain(items) => items.iter().map(self::value).collect::<Vec<_>>().join(" then "),
        ValueKind::Over(inner, axis) => format!("{} over {}", self::value(inner), axis.name),
        ValueKind::Tagged { tag, args, section: body } => {
            let args = args.as_ref().map(|a| format!("({})", join(a, value_arg))).unwrap_or_default();
            let body = body.as_ref().map(|s| format!(" {}", section(s))).unwrap_or_default();
            format!("{}{args}{body}", tag.name)
        }
    }
}

/// One expression in canonical form.
pub fn expr(expr: &Expr) -> String {
    match &expr.kind {
        ExprKind::Number(n) => n.text.clone(),
        ExprKind::Text(t) => quote(t),
        ExprKind::Paren(inner) => format!("({})", self::expr(inner)),
        ExprKind::List(items) => format!("[{}]", join(items, self::expr)),
        ExprKind::Ref(r) => reference(r),
        ExprKind::Unary(UnaryOp::Neg, inner) => format!("-{}", self::expr(inner)),
        ExprKind::Unary(UnaryOp::Not, inner) => format!("not {}", self::expr(inner)),
        ExprKind::Binary(op, a, b) => format!("{} {} {}", self::expr(a), op.symbol(), self::expr(b)),
        ExprKind::Rename(inner, pairs) => {
            let pairs = join(pairs, |(from, to)| format!("{}: {}", from.name, to.name));
            format!("{} as [{pairs}]", self::expr(inner))
        }
    }
}

/// A string with quotes and escapes.
pub fn quote(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
    format!("\"{escaped}\"")
}

fn join<T>(items: &[T], print: impl Fn(&T) -> String) -> String {
    items.iter().map(print).collect::<Vec<_>>().join(", ")
}

fn values(items: &[Value]) -> String {
    join(items, value)
}

fn value_arg(arg: &ValueArg) -> String {
    let name = arg.name.as_ref().map(|n| format!("{} = ", n.name)).unwrap_or_default();
    name + &value(&arg.value)
}

fn section(section: &Section) -> String {
    if section.entries.is_empty() { "{}".into() } else { format!("{{ {} }}", join(&section.entries, entry)) }
}

fn entry(entry: &Entry) -> String {
    match entry {
        Entry::Assign { key, value: v } => format!("{} = {}", key.name, value(v)),
        Entry::Weighted { weight, value: v } => format!("{} {}", weight.text, value(v)),
        Entry::With(s) => format!("with {}", section(s)),
        Entry::Glob { .. } => {
            let (head, value_part) = glob_entry(entry);
            head + &value_part.map_or(String::new(), |v| match &v.kind {
                ValueKind::Section(_) => format!(" {}", value(v)),
                _ => format!(": {}", value(v)),
            })
        }
    }
}

/// `params "**" except "x"`, and what follows.
fn glob_entry(entry: &Entry) -> (String, Option<&Value>) {
    let Entry::Glob { verb, glob, except, value } = entry else { return (String::new(), None) };
    let except = except.as_ref().map(|e| format!(" except {}", quote(&e.value))).unwrap_or_default();
    (format!("{} {}{except}", verb.name, quote(&glob.value)), value.as_ref())
}

fn reference(r: &Reference) -> String {
    let axes = r.axes.as_ref().map(|a| format!("[{}]", join(a, expr))).unwrap_or_default();
    let instance = r.instance.as_ref().map(|i| format!("@{}", i.name)).unwrap_or_default();
    let args = r.args.as_ref().map(|args| {
        let arg =
            |a: &Arg| a.name.as_ref().map(|n| format!("{} = ", n.name)).unwrap_or_default() + &expr(&a.value);
        format!("({})", join(args, arg))
    });
    format!("{}{axes}{instance}{}", r.path.name, args.unwrap_or_default())
}

fn dims(d: &Dims) -> String {
    let dim = |d: &Dim| match d {
        Dim::Leading(_) => "..".to_string(),
        Dim::Axis(a) => a.name.clone(),
    };
    format!("[{}]", join(&d.dims, dim))
}

fn elem_type(e: &ElemType) -> String {
    let bound = e.bound.as_ref().map(|b| format!("<{}>", expr(b))).unwrap_or_default();
    format!(": {}{bound}", e.name.name)
}

fn names(idents: &[Ident]) -> String {
    join(idents, |i| i.name.clone())
}

fn param(p: &Param) -> String {
    let outputs = p.outputs.as_ref().map(|o| format!(" -> {}", names(o)));
    format!("{}[{}{}]", p.name.name, names(&p.inputs), outputs.unwrap_or_default())
}

fn formal(f: &Formal) -> String {
    let elem = f.elem.as_ref().map(elem_type).unwrap_or_default();
    let axes = f.dims.as_ref().map(dims).unwrap_or_default();
    let default = f.default.as_ref().map(|d| format!(" = {}", expr(d))).unwrap_or_default();
    format!("{}{elem}{axes}{default}", f.name.name)
}

fn role(role: &Option<Ident>) -> String {
    role.as_ref().map(|r| format!(" role {}", r.name)).unwrap_or_default()
}

fn layout(l: &Layout) -> String {
    let spaced = |axes: &[Ident]| axes.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(" ");
    let dim = |d: &LayoutDim| match d {
        LayoutDim::Axes(axes) if axes.len() == 1 => axes[0].name.clone(),
        LayoutDim::Axes(axes) => format!("({})", spaced(axes)),
        LayoutDim::Concat(parts) => format!("concat({})", join(parts, |p| spaced(p))),
    };
    format!("[{}]", join(&l.dims, dim))
}

/// `params "**": d -> fsdp`
pub fn shard_rule(rule: &ShardRule) -> String {
    let scope = match &rule.scope {
        ShardScope::Every => String::new(),
        ShardScope::Role(r) => format!("role {}: ", r.name),
        ShardScope::Params(g) => format!("params {}: ", quote(&g.value)),
        ShardScope::Values(g) => format!("values {}: ", quote(&g.value)),
    };
    let choice = |c: &AxisChoice| {
        let axes = c.axes.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(" ");
        if c.joint { format!("({axes})") } else { axes }
    };
    format!("{scope}{} -> {}", join(&rule.choices, choice), names(&rule.mesh_axes))
}

/// End of the version line's content, so that a comment behind it stays there.
fn version_end(text: &str) -> u32 {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let code = line.split('#').next().unwrap_or("").trim_end();
        if !code.is_empty() {
            return (at + code.len()) as u32;
        }
        at += line.len();
    }
    at as u32
}

struct Printer<'a> {
    out: String,
    level: usize,
    text: &'a str,
    /// Comments not yet printed.
    comments: &'a [Comment],
}

impl Printer<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(&"    ".repeat(self.level));
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// Adds to the line printed last.
    fn behind(&mut self, text: &str) {
        self.out.pop();
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// Prints comments that stand before a place, each on its own line.
    fn comments_before(&mut self, place: u32) {
        while let Some((comment, rest)) = self.comments.split_first()
            && comment.start < place
        {
            self.blank_line(comment.start);
            self.line(&comment.text);
            self.comments = rest;
        }
    }

    /// Prints the comment that stands behind a place on the same line, with nothing but punctuation between.
    fn trailing(&mut self, place: u32) {
        let near = |t: &str| t.chars().all(|c| matches!(c, ' ' | '\t' | '\r' | ',' | ';' | '{' | '}'));
        if let Some((comment, rest)) = self.comments.split_first()
            && comment.start >= place
            && self.text.get(place as usize..comment.start as usize).is_some_and(near)
        {
            self.behind(&format!("  {}", comment.text));
            self.comments = rest;
        }
    }

    /// A blank line if the text has one before this place; never two, never behind an opening brace.
    fn blank_line(&mut self, start: u32) {
        let before = self.text.get(..start as usize).unwrap_or("");
        let blank = before.trim_end_matches([' ', '\t', '\r']).ends_with("\n\n")
            || before.trim_end_matches([' ', '\t', '\r']).ends_with("\n\r\n");
        if blank && !self.out.is_empty() && !self.out.ends_with("\n\n") && !self.out.trim_end().ends_with('{')
        {
            self.out.push('\n');
        }
    }

    /// What goes before something that starts here: comments and a blank line.
    fn gap(&mut self, span: Span) {
        self.comments_before(span.start);
        self.blank_line(span.start);
    }

    fn has_comment_inside(&self, span: Span) -> bool {
        self.comments.iter().any(|c| span.start <= c.start && c.start < span.end)
    }

    fn open(&mut self, head: &str, span: Span) {
        self.line(&format!("{head}{{"));
        self.trailing(span.start);
        self.level += 1;
    }

    fn close(&mut self, span: Span) {
        self.comments_before(span.end);
        self.level -= 1;
        self.line("}");
    }

    // ---- items

    fn item(&mut self, item: &Item) {
        match item {
            Item::Use(u) => {
                let path = if u.dotted { u.path.value.clone() } else { quote(&u.path.value) };
                let alias = u.alias.as_ref().map(|a| format!(" as {}", a.name)).unwrap_or_default();
                match &u.with {
                    None => self.line(&format!("use {path}{alias}")),
                    Some(with) => self.section(&format!("use {path}{alias} with "), with),
                }
            }
            Item::Model(m) => self.body(&format!("model {} ", m.name.name), &m.body),
            Item::Block(b) => self.block(b),
            Item::Section(s) => self.section(&format!("{} ", s.kind.name), &s.section),
            Item::Shard(s) => {
                let open = Span { start: s.span.start + 6, ..s.span };
                self.open("shard ", open);
                let (mut rules, mut entries) = (s.rules.iter().peekable(), s.keys.entries.iter().peekable());
                loop {
                    let entry = entries.peek().map(|e| entry_span(e));
                    let before = |rule: &&ShardRule| entry.is_none_or(|e| rule.span.start < e.start);
                    let span = match rules.next_if(|rule| before(rule)) {
                        Some(rule) => {
                            self.gap(rule.span);
                            self.line(&shard_rule(rule));
                            rule.span
                        }
                        None => {
                            let Some(entry) = entries.next() else { break };
                            self.gap(entry_span(entry));
                            self.entry(entry);
                            entry_span(entry)
                        }
                    };
                    self.trailing(span.end);
                }
                self.close(s.span);
            }
            Item::Freeze(f) => {
                let globs = |g: &[Text]| join(g, |t| quote(&t.value));
                let except =
                    if f.except.is_empty() { String::new() } else { format!(" except {}", globs(&f.except)) };
                self.line(&format!("freeze {}{except}", globs(&f.globs)));
            }
            Item::Adapter(a) => self.section(&format!("adapter {} ", a.kind.name), &a.section),
            Item::Target(t) => {
                let label = t.label.as_ref().map(|l| format!(" {}", quote(&l.value))).unwrap_or_default();
                let head = format!("target {}{label}", t.kind.name);
                if t.section.entries.is_empty() {
                    self.line(&head);
                } else {
                    self.section(&format!("{head} "), &t.section);
                }
            }
            Item::Kernel(k) => self.kernel(k),
        }
    }

    fn kernel(&mut self, k: &Kernel) {
        self.line(&format!("kernel {} for {}", quote(&k.file.value), expr(&k.subject)));
    }

    // ---- sections

    /// `head { … }` on one line if it fits; else entries that share a line in the text go on sharing it as far as they fit.
    fn section(&mut self, head: &str, s: &Section) {
        let flat = section(s);
        if !self.has_comment_inside(s.span) && self.level * 4 + head.len() + flat.len() <= WIDTH {
            self.line(&format!("{head}{flat}"));
            return;
        }
        self.open(head, s.span);
        let mut entries = &s.entries[..];
        while let Some(first) = entries.first() {
            let (row, rest) = entries.split_at(self.row(entries));
            self.gap(entry_span(first));
            match row {
                [one] => self.entry(one),
                row => self.line(&join(row, entry)),
            }
            self.trailing(entry_span(row.last().unwrap_or(first)).end);
            entries = rest;
        }
        self.close(s.span);
    }

    /// How many of the entries stand on one line: those that do so in the text, have no comment, and fit; at least one.
    fn row(&self, entries: &[Entry]) -> usize {
        let mut width = self.level * 4;
        for (i, e) in entries.iter().enumerate() {
            let span = entry_span(e);
            width += entry(e).len() + 2;
            let on_row = i == 0 || {
                let gap = self.text.get(entry_span(&entries[i - 1]).end as usize..span.start as usize);
                gap.is_some_and(|gap| !gap.contains(['\n', '#']))
            };
            if !on_row || width - 2 > WIDTH || self.has_comment_inside(span) {
                return i.max(1);
            }
        }
        entries.len()
    }

    fn entry(&mut self, e: &Entry) {
        match e {
            Entry::With(s) => self.section("with ", s),
            Entry::Assign { key, value } => self.value(&format!("{} = ", key.name), value),
            Entry::Weighted { weight, value } => self.value(&format!("{} ", weight.text), value),
            Entry::Glob { .. } => match glob_entry(e) {
                (head, None) => self.line(&head),
                (head, Some(v)) if matches!(v.kind, ValueKind::Section(_)) => {
                    self.value(&format!("{head} "), v)
                }
                (head, Some(v)) => self.value(&format!("{head}: "), v),
            },
        }
    }

    fn value(&mut self, head: &str, v: &Value) {
        match &v.kind {
            ValueKind::Section(s) => self.section(head, s),
            ValueKind::Tagged { tag, args, section: Some(s) } => {
                let args = args.as_ref().map(|a| format!("({})", join(a, value_arg))).unwrap_or_default();
                self.section(&format!("{head}{}{args} ", tag.name), s);
            }
            _ => self.line(&format!("{head}{}", value(v))),
        }
    }

    // ---- models

    fn body(&mut self, head: &str, body: &Body) {
        if body.statements.is_empty() && !self.has_comment_inside(body.span) {
            self.line(&format!("{head}{{}}"));
            return;
        }
        self.open(head, body.span);
        for statement in &body.statements {
            let span = statement.span();
            self.gap(span);
            self.statement(statement);
            self.trailing(span.end);
        }
        self.close(body.span);
    }

    fn block(&mut self, b: &Block) {
        let generics =
            if b.generics.is_empty() { String::new() } else { format!("[{}]", names(&b.generics)) };
        let formals = join(&b.formals, formal);
        self.body(&format!("block {}{generics}({formals}) -> {} ", b.name.name, dims(&b.result)), &b.body);
    }

    /// `head a, b, c`, broken after commas where it does not fit.
    fn list(&mut self, head: &str, items: &[String], tail: &str) {
        let indent = " ".repeat(head.len());
        let mut line = head.to_string();
        for (i, item) in items.iter().enumerate() {
            let last = i + 1 == items.len();
            let piece = if last { format!("{item}{tail}") } else { format!("{item},") };
            let starts = line.trim().len() == head.trim().len() || line.trim().is_empty();
            if !starts && self.level * 4 + line.len() + 1 + piece.len() > WIDTH {
                self.line(line.trim_end());
                line = indent.clone();
            }
            line.push_str(&piece);
            line.push(' ');
        }
        self.line(line.trim_end());
    }

    fn statement(&mut self, statement: &Statement) {
        let binding = |b: &Binding| format!("{} = {}", b.name.name, expr(&b.value));
        match statement {
            Statement::Sizes(b, _) => self.list("size ", &b.iter().map(binding).collect::<Vec<_>>(), ""),
            Statement::Consts(b, _) => self.list("const ", &b.iter().map(binding).collect::<Vec<_>>(), ""),
            Statement::Input(i) => {
                let elem = i.elem.as_ref().map(elem_type).unwrap_or_default();
                let axes = i.dims.as_ref().map(dims).unwrap_or_default();
                self.line(&format!("input {}{elem}{axes}", i.name.name));
            }
            Statement::Params(p) => {
                let items: Vec<_> = p.params.iter().map(param).collect();
                self.list("param ", &items, &format!(" = {}", expr(&p.init)));
            }
            Statement::Block(b) => self.block(b),
            Statement::Loss(e, _) => self.line(&format!("loss {}", expr(e))),
            Statement::Aux(b, _) => self.line(&format!("aux {}", binding(b))),
            Statement::Names(n) => self.names(n),
            Statement::Manual(m) => self.body(&format!("manual[{}] ", names(&m.mesh_axes)), &m.body),
            Statement::Kernel(k) => self.kernel(k),
            Statement::Lower(l) => self.section("lower ", &l.section),
            Statement::Let(l) => {
                let axes = l.dims.as_ref().map(dims).unwrap_or_default();
                self.line(&format!("{}{axes} = {}{}", l.name.name, expr(&l.value), role(&l.role)));
            }
            Statement::Yield(y) => self.line(&format!("{}{}", expr(&y.value), role(&y.role))),
        }
    }

    fn names(&mut self, n: &Names) {
        let brace = self.text.get(n.span.start as usize..).and_then(|t| t.find('{')).unwrap_or(0) as u32;
        self.open(&format!("names {} ", n.table.name), Span { start: n.span.start + brace, ..n.span });
        for rule in &n.rules {
            self.gap(rule.span);
            let layout = rule.layout.as_ref().map(|l| format!(" as {}", layout(l))).unwrap_or_default();
            let logical = quote(&rule.logical.text.value);
            self.line(&format!("{logical} <-> {}{layout}", quote(&rule.foreign.text.value)));
            self.trailing(rule.span.end);
        }
        self.close(n.span);
    }
}

fn entry_span(entry: &Entry) -> Span {
    match entry {
        Entry::Assign { key, value } => key.span.to(value.span),
        Entry::Weighted { weight, value } => weight.span.to(value.span),
        // `with` itself stands before its section, on the same line.
        Entry::With(s) => Span { start: s.span.start.saturating_sub(5), ..s.span },
        Entry::Glob { verb, glob, except, value } => {
            let end = value.as_ref().map(|v| v.span).or(except.as_ref().map(|e| e.span)).unwrap_or(glob.span);
            verb.span.to(end)
        }
    }
}
