//! The places of a source file that can be changed, and what else could stand there.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Names of which one stands for another, in both directions.
const SWAPS: &[(&str, &str)] = &[
    ("add", "sub"),
    ("mul", "div"),
    ("any", "all"),
    ("min", "max"),
    ("first", "last"),
    ("is_some", "is_none"),
    ("is_ok", "is_err"),
    ("skip", "take"),
];

/// Methods whose answer is turned around.
const PREDICATES: &[&str] = &["contains", "is_empty", "has", "contains_key", "same_as", "same_axes"];

/// Variants that may be mistaken for each other, each for the next.
const VARIANTS: &[(&str, &[&str])] = &[
    (
        "UnaryOp",
        &["Neg", "Abs", "Exp", "Log", "Sqrt", "Rsqrt", "Tanh", "Sigmoid", "Sin", "Cos", "Erf", "Floor"],
    ),
    ("BinaryOp", &["Add", "Sub", "Mul", "Div", "Max", "Min"]),
    ("CompareOp", &["Lt", "Le", "Gt", "Ge", "Eq", "Ne"]),
    ("ReduceOp", &["Sum", "Max", "Min"]),
    ("Phase", &["Forward", "BackwardInput", "BackwardWeight", "Update"]),
];

/// Calls that are passed over with their arguments: what is changed there changes a message, a name for people or the speed,
/// never a result.
const MESSAGES_AND_HINTS: &[&str] =
    &["error", "expect", "fail", "map_err", "ok_or_else", "set_name", "with_capacity"];

/// A place with its other texts.
pub struct Place {
    /// Byte where it begins.
    pub start: usize,
    /// Byte behind its end.
    pub end: usize,
    /// Line where it begins, from 1.
    pub line: usize,
    /// (text, what was changed) of each mutant.
    pub others: Vec<(String, String)>,
}

/// Finds the places of one file.
struct Finder<'a> {
    text: &'a str,
    places: Vec<Place>,
}

impl Finder<'_> {
    fn of(&self, node: &impl Spanned) -> &str {
        &self.text[node.span().byte_range()]
    }

    fn place(&mut self, node: &impl Spanned, others: Vec<(String, String)>) {
        let range = node.span().byte_range();
        let line = node.span().start().line;
        if !others.is_empty() {
            self.places.push(Place { start: range.start, end: range.end, line, others });
        }
    }

    fn binary(&mut self, e: &syn::ExprBinary) {
        use syn::BinOp::*;
        let new: &[&str] = match e.op {
            Add(_) => &["-"],
            Sub(_) => &["+"],
            Mul(_) => &["/"],
            Div(_) => &["*"],
            Rem(_) => &["/"],
            And(_) => &["||"],
            Or(_) => &["&&"],
            Eq(_) => &["!="],
            Ne(_) => &["=="],
            Lt(_) => &["<=", ">="],
            Le(_) => &["<", ">"],
            Gt(_) => &[">=", "<="],
            Ge(_) => &[">", "<"],
            _ => &[],
        };
        let (left, old, right) =
            (self.of(&e.left).to_string(), self.of(&e.op).to_string(), self.of(&e.right).to_string());
        let others =
            new.iter().map(|op| (format!("({left}) {op} ({right})"), format!("`{old}` → `{op}`"))).collect();
        self.place(e, others);
    }

    fn method(&mut self, e: &syn::ExprMethodCall) {
        let name = e.method.to_string();
        let swap = SWAPS.iter().find_map(|(a, b)| match () {
            () if *a == name => Some(*b),
            () if *b == name => Some(*a),
            () => None,
        });
        let text = self.of(e).to_string();
        if let Some(new) = swap {
            let at = e.method.span().byte_range().start - e.span().byte_range().start;
            let changed = format!("{}{new}{}", &text[..at], &text[at + name.len()..]);
            self.place(e, vec![(changed, format!("`.{name}` → `.{new}`"))]);
        } else if PREDICATES.contains(&name.as_str()) {
            self.place(e, vec![(format!("!({text})"), format!("`.{name}` → not"))]);
        }
    }

    fn variant(&mut self, e: &syn::ExprPath) {
        let segments: Vec<String> = e.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let [name, variant] = &segments[..] else { return };
        let Some((_, variants)) = VARIANTS.iter().find(|(n, _)| n == name) else { return };
        let Some(at) = variants.iter().position(|v| v == variant) else { return };
        let next = variants[(at + 1) % variants.len()];
        self.place(e, vec![(format!("{name}::{next}"), format!("`{variant}` → `{next}`"))]);
    }

    fn literal(&mut self, e: &syn::ExprLit) {
        let text = self.of(e).to_string();
        let others = match &e.lit {
            syn::Lit::Int(n) if n.suffix().is_empty() => match n.base10_parse::<u64>() {
                Ok(n) => vec![((n + 1).to_string(), format!("`{text}` → `{}`", n + 1))],
                Err(_) => vec![],
            },
            syn::Lit::Float(_) => vec![(format!("({text} + 1.0)"), format!("`{text}` → `{text} + 1`"))],
            syn::Lit::Bool(b) => vec![((!b.value).to_string(), format!("`{text}` → `{}`", !b.value))],
            _ => vec![],
        };
        self.place(e, others);
    }
}

/// The last name of a called path or method.
fn callee(e: &syn::Expr) -> Option<String> {
    match e {
        syn::Expr::MethodCall(m) => Some(m.method.to_string()),
        syn::Expr::Call(c) => match &*c.func {
            syn::Expr::Path(p) => p.path.segments.last().map(|s| s.ident.to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn is_message_or_hint(e: &syn::Expr) -> bool {
    callee(e).is_some_and(|name| MESSAGES_AND_HINTS.contains(&name.as_str()))
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_expr(&mut self, e: &'ast syn::Expr) {
        if is_message_or_hint(e) {
            if let syn::Expr::MethodCall(m) = e {
                self.visit_expr(&m.receiver);
            }
            return;
        }
        match e {
            syn::Expr::Binary(b) if !has_let(e) => self.binary(b),
            syn::Expr::Unary(u) if matches!(u.op, syn::UnOp::Not(_)) && turns_around(&u.expr) => {}
            syn::Expr::Unary(u) if matches!(u.op, syn::UnOp::Not(_) | syn::UnOp::Neg(_)) => {
                let (inner, op) = (self.of(&u.expr).to_string(), self.of(&u.op).to_string());
                self.place(e, vec![(inner, format!("`{op}` → nothing"))]);
            }
            syn::Expr::MethodCall(m) => self.method(m),
            syn::Expr::Path(p) => self.variant(p),
            syn::Expr::Lit(l) => self.literal(l),
            syn::Expr::If(i) if !has_let(&i.cond) && !turns_around(&i.cond) => {
                let condition = self.of(&i.cond).to_string();
                self.place(&*i.cond, vec![(format!("!({condition})"), "condition → not".into())]);
            }
            _ => {}
        }
        visit::visit_expr(self, e);
    }

    fn visit_stmt(&mut self, s: &'ast syn::Stmt) {
        if let syn::Stmt::Expr(e @ (syn::Expr::MethodCall(_) | syn::Expr::Assign(_)), Some(_)) = s
            && !is_message_or_hint(e)
        {
            self.place(e, vec![("()".into(), "statement → nothing".into())]);
        }
        visit::visit_stmt(self, s);
    }

    /// The elements of a `vec!` and what `matches!` looks at are code like any other; all other macros write messages.
    fn visit_macro(&mut self, m: &'ast syn::Macro) {
        use syn::parse::Parser;
        let elements = syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        let copies = |input: syn::parse::ParseStream| {
            let (value, _, count): (syn::Expr, syn::Token![;], syn::Expr) =
                (input.parse()?, input.parse()?, input.parse()?);
            Ok(vec![value, count])
        };
        let looked_at = |input: syn::parse::ParseStream| {
            let value: syn::Expr = input.parse()?;
            input.parse::<proc_macro2::TokenStream>()?;
            Ok(vec![value])
        };
        let found = if m.path.is_ident("vec") {
            let elements = elements.parse2(m.tokens.clone()).map(|list| list.into_iter().collect());
            elements.or_else(|_| copies.parse2(m.tokens.clone()))
        } else if m.path.is_ident("matches") {
            looked_at.parse2(m.tokens.clone())
        } else {
            return;
        };
        for e in found.expect("the sources parse") {
            Finder::visit_expr(self, &e);
        }
    }

    /// How a thing is shown is no rule.
    fn visit_item_impl(&mut self, i: &'ast syn::ItemImpl) {
        let shows =
            |(_, path, _): &(_, syn::Path, _)| path.segments.last().is_some_and(|s| s.ident == "Display");
        if !i.trait_.as_ref().is_some_and(shows) {
            visit::visit_item_impl(self, i);
        }
    }

    fn visit_item_mod(&mut self, m: &'ast syn::ItemMod) {
        if !m.attrs.iter().any(|a| a.path().is_ident("cfg")) {
            visit::visit_item_mod(self, m);
        }
    }

    // Constants, patterns, types and attributes hold no code that runs.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}

/// Whether a mutant of the expression itself already gives the opposite, so that a `!` before it would be the same again.
fn turns_around(e: &syn::Expr) -> bool {
    use syn::BinOp::*;
    match e {
        syn::Expr::Binary(b) => matches!(b.op, Eq(_) | Ne(_) | Lt(_) | Le(_) | Gt(_) | Ge(_)),
        syn::Expr::Unary(u) => matches!(u.op, syn::UnOp::Not(_)),
        syn::Expr::MethodCall(m) => {
            let name = m.method.to_string();
            PREDICATES.contains(&name.as_str())
                || ["is_some", "is_none", "is_ok", "is_err"].contains(&name.as_str())
        }
        syn::Expr::Paren(p) => turns_around(&p.expr),
        _ => false,
    }
}

/// Whether an expression holds a `let` of a condition, which can't stand in a `match`.
fn has_let(e: &syn::Expr) -> bool {
    struct Lets(bool);
    impl<'ast> Visit<'ast> for Lets {
        fn visit_expr_let(&mut self, _: &'ast syn::ExprLet) {
            self.0 = true;
        }
    }
    let mut lets = Lets(false);
    lets.visit_expr(e);
    lets.0
}

/// The places of a file, outer before inner.
pub fn places(text: &str) -> Vec<Place> {
    let file = syn::parse_file(text).expect("the sources parse");
    let mut finder = Finder { text, places: Vec::new() };
    finder.visit_file(&file);
    let mut places = finder.places;
    places.sort_by_key(|p| (p.start, std::cmp::Reverse(p.end)));
    // Two changes of one expression share a place.
    places.dedup_by(|b, a| {
        let same = (a.start, a.end) == (b.start, b.end);
        if same {
            a.others.append(&mut b.others);
        }
        same
    });
    places
}
