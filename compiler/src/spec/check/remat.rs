//! `train.remat`: which values of which repeats its rules name.
//!
//! A rule's glob is matched with the paths of named values and of block instances inside repeats: nothing else is saved
//! per iteration. Where the text gives one value several names (an argument, `q = F@f(x)`), each of them names it.

use super::run::{hits_nothing, part_of_repeat};
use super::values::operands;
use crate::spec::checked::*;
use crate::spec::decode::Decoded;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::glob::{Hit, hit};

/// The typed key, with every rule's values.
pub fn remat(keys: &Decoded, model: &Model, found: &mut Vec<Diagnostic>) -> Remat {
    let preset = match keys.text("remat") {
        Some("none") => RematPreset::None,
        Some("full") => RematPreset::Full,
        Some("dots") => RematPreset::Dots,
        Some("attn") => RematPreset::Attn,
        Some(_) | None => RematPreset::Auto,
    };
    let Some(section) = keys.section("remat") else { return Remat { preset, rules: vec![] } };
    let named = Names::of(model);
    let rules = section.globs.iter().map(|glob| RematRule {
        action: match glob.verb {
            "keep" => RematAction::Keep,
            "offload" => RematAction::Offload,
            _ => RematAction::Recompute,
        },
        glob: glob.glob.clone(),
        values: named.hit(glob, found),
        span: glob.span,
    });
    Remat { preset, rules: rules.collect() }
}

/// A value as the graph will know it: made by this block, under the last name it was given.
struct Made {
    block: String,
    name: Option<String>,
}

/// Something a rule can name.
struct Named {
    path: String,
    repeats: Vec<RepeatDim>,
    what: What,
}

enum What {
    /// A block instance, hence all that is computed in it.
    Instance,
    /// A position in `Names::made`.
    Value(usize),
}

/// All names inside repeats.
#[derive(Default)]
struct Names {
    named: Vec<Named>,
    made: Vec<Made>,
    /// What the values in scope are; sources have none.
    scope: Vec<(ValueId, usize)>,
    repeats: Vec<RepeatDim>,
}

impl Names {
    fn of(model: &Model) -> Names {
        let mut names = Names::default();
        names.statements(&model.body, "");
        names.expr(&model.loss.value, "");
        names
    }

    fn add(&mut self, path: String, what: What) {
        if !self.repeats.is_empty() {
            self.named.push(Named { path, repeats: self.repeats.clone(), what });
        }
    }

    fn made(&mut self, block: &str, name: Option<&str>) -> usize {
        self.made.push(Made { block: block.to_string(), name: name.map(str::to_string) });
        self.made.len() - 1
    }

    fn statements(&mut self, body: &[Statement], block: &str) {
        for statement in body {
            match statement {
                Statement::Let(l) => {
                    let made = self.expr(&l.expr, block);
                    let Some(made) = made else { continue };
                    // A plain alias leaves the value its name.
                    if !matches!(l.expr.kind, ExprKind::Value(_)) {
                        self.made[made].name = Some(l.name.clone());
                    }
                    self.scope.push((l.value, made));
                    self.add(l.path.clone(), What::Value(made));
                }
                Statement::Aux(a) => {
                    self.expr(&a.expr, block);
                }
            }
        }
    }

    /// What the expression's value is made as; `None` for what a loop does not compute.
    fn expr(&mut self, e: &Expr, block: &str) -> Option<usize> {
        match &e.kind {
            ExprKind::Const(_) | ExprKind::Param(_) => None,
            ExprKind::Value(id) => self.scope.iter().rev().find(|(v, _)| v == id).map(|(_, made)| *made),
            ExprKind::Call(instance, args) => {
                let args: Vec<Option<usize>> = args.iter().map(|a| self.expr(a, block)).collect();
                self.instance(instance, &args)
            }
            ExprKind::Repeat(r) => {
                self.expr(&r.init, block);
                for invariant in &r.invariants {
                    self.expr(invariant, block);
                }
                self.repeats.push(r.dim.clone());
                let carry = self.made(&r.body.path, r.body.args.first().map(|a| a.name.as_str()));
                self.instance(&r.body, &[Some(carry)]);
                self.repeats.pop();
                Some(self.made(block, None))
            }
            _ => {
                for operand in operands(e) {
                    self.expr(operand, block);
                }
                Some(self.made(block, None))
            }
        }
    }

    fn instance(&mut self, instance: &Instance, args: &[Option<usize>]) -> Option<usize> {
        self.add(instance.path.clone(), What::Instance);
        for (arg, made) in instance.args.iter().zip(args) {
            if let Some(made) = made {
                self.scope.push((arg.value, *made));
                self.add(format!("{}.{}", instance.path, arg.name), What::Value(*made));
            }
        }
        self.statements(&instance.body, &instance.path);
        self.expr(&instance.result, &instance.path)
    }

    /// What a glob hits; reports one that hits nothing, or single iterations.
    fn hit(&self, glob: &crate::spec::decode::GlobField, found: &mut Vec<Diagnostic>) -> Vec<RematValue> {
        let mut values = vec![];
        for named in &self.named {
            match hit(&glob.glob, &named.path, &named.repeats) {
                Hit::No => {}
                Hit::Part => {
                    let repeat = named.repeats.last();
                    found.push(part_of_repeat(&glob.glob, &named.path, repeat, glob.span));
                    return vec![];
                }
                Hit::Whole => values.extend(self.value(named)),
            }
        }
        if values.is_empty() {
            let known = self.named.iter().filter(|n| self.value(n).is_some()).map(|n| n.path.as_str());
            let nothing = hits_nothing(&glob.glob, "value of a repeat", known, glob.span);
            found
                .push(nothing.meaning("what is saved for the backward pass are values computed in a repeat"));
        }
        values
    }

    fn value(&self, named: &Named) -> Option<RematValue> {
        match named.what {
            What::Instance => Some(RematValue { block: named.path.clone(), name: None }),
            What::Value(made) => {
                let made = &self.made[made];
                made.name
                    .as_ref()
                    .map(|name| RematValue { block: made.block.clone(), name: Some(name.clone()) })
            }
        }
    }
}
