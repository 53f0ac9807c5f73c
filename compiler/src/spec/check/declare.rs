//! Inputs and parameters.

use super::model::Checker;
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Expr as AstExpr, ExprKind as AstKind};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};

impl Checker<'_> {
    pub(super) fn input(&mut self, scope: &mut Scope, input: &ast::Input) -> Option<Input> {
        let axes = match &input.dims {
            Some(dims) => self.plain_dims(scope, dims),
            None => Some(vec![]),
        };
        let elem = self.elem_type(scope, input.elem.as_ref());
        let (Some(axes), Some((elem, bound))) = (axes, elem) else {
            self.define(scope, &input.name, Binding::Poison);
            return None;
        };
        self.check_numel(&axes, input.span);
        let (value, ty) = (self.new_value(), Type { elem, axes });
        self.define(scope, &input.name, Binding::Value(value, ty.clone()));
        Some(Input { name: input.name.name.clone(), value, ty, bound, span: input.name.span })
    }

    pub(super) fn elem_type(
        &mut self,
        scope: &Scope,
        e: Option<&ast::ElemType>,
    ) -> Option<(Elem, Option<u64>)> {
        let Some(e) = e else { return Some((Elem::Real, None)) };
        match e.name.name.as_str() {
            "ids" => match &e.bound {
                Some(bound) => Some((Elem::Int, Some(self.size_value(scope, bound)?))),
                None => {
                    self.report(
                        Diagnostic::error(codes::ARGUMENTS, "ids need the size they index")
                            .at(e.name.span, "expected `ids<vocab>`"),
                    );
                    None
                }
            },
            "real" => Some((Elem::Real, None)),
            "int" => Some((Elem::Int, None)),
            "bool" => Some((Elem::Bool, None)),
            other => {
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown element type: `{other}`"))
                        .at(e.name.span, "expected `ids<…>`, `int`, `bool` or `real`");
                if let Some(near) = nearest(other, ["ids", "int", "bool", "real"]) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                } else if ["f32", "bf16", "f16", "f64"].contains(&other) {
                    diagnostic =
                        diagnostic.help("widths are chosen by `precision` in the run, not in the model");
                }
                self.report(diagnostic);
                None
            }
        }
    }

    pub(super) fn param_statement(&mut self, scope: &mut Scope, statement: &ast::Params) {
        let init = self.init(scope, &statement.init);
        for p in &statement.params {
            let inputs = self.axes(scope, &p.inputs);
            let outputs = self.axes(scope, p.outputs.as_deref().unwrap_or_default());
            let (Some(inputs), Some(outputs), Some(init)) = (inputs, outputs, init) else {
                self.define(scope, &p.name, Binding::Poison);
                continue;
            };
            if let Some(both) = outputs.iter().find(|a| inputs.iter().any(|b| b.name == a.name)) {
                let title = format!("the axis `{}` appears twice", both.name);
                self.report(
                    Diagnostic::error(codes::AXIS_TWICE, title)
                        .at(p.span, "on both sides of the arrow")
                        .help(format!(
                            "declare a second size with another name, such as `{}_out`",
                            both.name
                        )),
                );
                self.define(scope, &p.name, Binding::Poison);
                continue;
            }
            let axes: Vec<Axis> = inputs.iter().chain(&outputs).cloned().collect();
            let stacked: Vec<Axis> =
                self.repeats.iter().map(|r| r.axis.clone()).chain(axes.iter().cloned()).collect();
            self.check_numel(&stacked, p.span);
            let id = ParamId(self.params.len() as u32);
            let path = scope.path_of(&p.name.name);
            self.params.push(Param {
                path,
                repeats: self.repeats.clone(),
                inputs,
                outputs,
                init,
                span: p.name.span,
            });
            self.define(scope, &p.name, Binding::Param(id, Type { elem: Elem::Real, axes }));
        }
    }

    /// `ones`, `zeros`, `normal(std)`, `uniform(low, high)`, `constant(c)`.
    pub(super) fn init(&mut self, scope: &mut Scope, e: &AstExpr) -> Option<Init> {
        const KNOWN: [&str; 5] = ["ones", "zeros", "normal", "uniform", "constant"];
        let AstKind::Ref(r) = &e.kind else {
            self.error(
                codes::KIND,
                "not an initial value",
                e.span,
                "expected `ones`, `zeros`, `normal(std)`, …",
            );
            return None;
        };
        let name = r.path.name.as_str();
        let args = r.args.as_deref().unwrap_or_default();
        let wanted = match name {
            "ones" | "zeros" => 0,
            "normal" | "constant" => 1,
            "uniform" => 2,
            _ => {
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown initial value: `{name}`")).at(
                        r.path.span,
                        "expected `ones`, `zeros`, `normal(std)`, `uniform(low, high)` or `constant(c)`",
                    );
                if let Some(near) = nearest(name, KNOWN) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                self.report(diagnostic);
                return None;
            }
        };
        if args.len() != wanted || args.iter().any(|a| a.name.is_some()) {
            let title = format!("`{name}` takes {wanted} numbers, found {}", args.len());
            self.error(codes::ARGUMENTS, title, e.span, "");
            return None;
        }
        let mut numbers = vec![];
        for arg in args {
            numbers.push(self.constant_value(scope, &arg.value)?);
        }
        Some(match name {
            "ones" => Init::Constant(1.0),
            "zeros" => Init::Constant(0.0),
            "normal" if numbers[0] < 0.0 => {
                self.error(codes::RANGE, "a standard deviation can't be negative", args[0].value.span, "");
                return None;
            }
            "normal" => Init::Normal { std: numbers[0] },
            "uniform" if numbers[0] >= numbers[1] => {
                self.error(codes::RANGE, "the lower bound is not below the upper one", e.span, "");
                return None;
            }
            "uniform" => Init::Uniform { low: numbers[0], high: numbers[1] },
            _ => Init::Constant(numbers[0]),
        })
    }
}
