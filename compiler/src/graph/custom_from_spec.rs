//! A block that a kernel of the user's own computes: one composite whose meaning is the block.

use super::custom::{Argument, Function, RESULT, functions, memref, substituted};
use super::from_spec::{Walk, params_of};
use super::{Composite, CompositeKind, Custom, Name, Op, Type, ValueId};
use crate::spec::checked::{Constraint, CustomKernel, Instance, Let, ParamId, Statement};
use crate::spec::{Diagnostic, codes};
use std::collections::{BTreeMap, BTreeSet};

/// A meaning says what is computed, not where.
static UNCONSTRAINED: BTreeMap<String, Constraint> = BTreeMap::new();

/// An argument that the functions of a file may have, with its type in the order of the spec.
struct Known {
    name: String,
    ty: Type,
}

impl Walk<'_> {
    /// The composite in the place of an instance; its results are the block's and the residuals that `@forward` writes.
    pub(super) fn custom(&mut self, kernel: &CustomKernel, instance: &Instance, args: &[ValueId]) -> ValueId {
        let mut params = BTreeSet::new();
        params_of(instance, &mut params);
        let params: Vec<ParamId> = params.into_iter().collect();
        let found = functions(&kernel.text).and_then(|found| {
            let forward = found.iter().find(|f| f.name == "forward").cloned();
            forward.map(|f| (f, found)).ok_or_else(|| "there is no `func.func @forward`".to_string())
        });
        if self.random.is_some() && self.draws(&instance.body, &[&instance.result]) {
            let why = "the block draws random numbers, which a kernel has no part in".to_string();
            return self.refused(kernel, instance, args, why);
        }
        let (forward, functions) = match found {
            Ok(found) => found,
            Err(why) => return self.refused(kernel, instance, args, why),
        };
        let operands: Vec<ValueId> =
            args.iter().copied().chain(params.iter().map(|p| self.params[p])).collect();
        let operand_names = self.operand_names(instance, &params);
        self.no_constraint_inside(kernel, instance);
        let outer = (std::mem::take(&mut self.values), self.params.clone());
        let constraints = std::mem::replace(&mut self.constraints, &UNCONSTRAINED);
        let region_args: Vec<(Name, Type)> = operand_names
            .iter()
            .zip(&operands)
            .map(|(name, v)| (Name::from(name.as_str()), self.b.ty(*v).clone()))
            .collect();
        let (_, inside) = self.b.open(&region_args);
        for (param, value) in params.iter().zip(&inside[args.len()..]) {
            self.params.insert(*param, *value);
        }
        let result = self.written_out(instance, &inside[..args.len()]);
        let residuals = residuals(&forward, &operand_names, instance);
        let kept: Vec<ValueId> =
            residuals.iter().flatten().filter_map(|l| self.values.get(&l.value).copied()).collect();
        let mut results = vec![result];
        results.extend(&kept);
        let result_types: Vec<Type> = results.iter().map(|v| self.b.ty(*v).clone()).collect();
        let meaning = self.b.close(results);
        (self.values, self.params) = outer;
        self.constraints = constraints;

        let mut arguments = Vec::new();
        for ((name, value), declared) in
            operand_names.iter().zip(&operands).zip(self.orders(instance, &params))
        {
            arguments
                .push(Argument { name: name.as_str().into(), axes: ordered(self.b.ty(*value), &declared) });
        }
        let out_order: Vec<Name> = instance.result.ty.axes.iter().map(|a| a.name.as_str().into()).collect();
        arguments.push(Argument { name: RESULT.into(), axes: ordered(&result_types[0], &out_order) });
        for (l, ty) in residuals.iter().flatten().zip(&result_types[1..]) {
            let order: Vec<Name> = l.expr.ty.axes.iter().map(|a| a.name.as_str().into()).collect();
            arguments.push(Argument { name: l.name.as_str().into(), axes: ordered(ty, &order) });
        }
        let types = operands.iter().map(|v| self.b.ty(*v).clone()).chain(result_types);
        let known: Vec<Known> = arguments
            .iter()
            .zip(types)
            .map(|(argument, ty)| Known { name: argument.name.to_string(), ty: argument.ordered(&ty) })
            .collect();
        for error in unfit(&functions, &known, operands.len()) {
            self.errors.push(about(kernel, error));
        }
        self.at(kernel.span);
        let custom = Custom {
            file: kernel.file.as_str().into(),
            source: kernel.text.as_str().into(),
            function: "forward".into(),
            arguments,
        };
        let op = Op::Composite(Composite { kind: CompositeKind::Custom(custom), meaning });
        self.b.op(op, &operands, None, &instance.block.to_lowercase())[0]
    }

    fn refused(
        &mut self,
        kernel: &CustomKernel,
        instance: &Instance,
        args: &[ValueId],
        why: String,
    ) -> ValueId {
        self.errors.push(about(kernel, why));
        self.written_out(instance, args)
    }

    /// Arguments by their names in the block, parameters by their paths inside it.
    fn operand_names(&self, instance: &Instance, params: &[ParamId]) -> Vec<String> {
        let inside = |path: &str| {
            let rest = path.strip_prefix(instance.path.as_str()).unwrap_or(path);
            rest.trim_start_matches('.').to_string()
        };
        let args = instance.args.iter().map(|a| a.name.clone());
        args.chain(params.iter().map(|p| inside(&self.model.param(*p).path))).collect()
    }

    /// Axes of the operands in the order of the spec.
    fn orders(&self, instance: &Instance, params: &[ParamId]) -> Vec<Vec<Name>> {
        let args = instance.args.iter().map(|a| a.ty.axes.iter().map(|x| x.name.as_str().into()).collect());
        let of = |p: &ParamId| self.model.param(*p).axes().map(|x| x.name.as_str().into()).collect();
        args.chain(params.iter().map(of)).collect()
    }
}

/// The axes of a type, those of `declared` first and in that order.
fn ordered(ty: &Type, declared: &[Name]) -> Vec<Name> {
    let mut axes: Vec<Name> = declared.iter().filter(|a| ty.has(a)).cloned().collect();
    axes.extend(ty.names().into_iter().filter(|a| !declared.contains(a)));
    axes
}

/// The named values of the block that `@forward` writes besides its result; `None` for a name the block does not have.
fn residuals<'i>(forward: &Function, operands: &[String], instance: &'i Instance) -> Vec<Option<&'i Let>> {
    let others = forward.arguments.iter().filter(|(name, _)| name != RESULT && !operands.contains(name));
    let named = |name: &String| {
        instance.body.iter().find_map(|s| match s {
            Statement::Let(l) if l.name == *name => Some(l),
            Statement::Let(_) | Statement::Aux(_) => None,
        })
    };
    others.map(|(name, _)| named(name)).collect()
}

/// What of the functions' arguments does not fit; the first `operands` of the known ones are read by `@forward`.
fn unfit(functions: &[Function], known: &[Known], operands: usize) -> Vec<String> {
    let sizes: BTreeMap<String, u64> =
        known.iter().flat_map(|k| &k.ty.axes).map(|a| (a.name.to_string(), a.size)).collect();
    let mut errors = Vec::new();
    for function in functions.iter().filter(|f| f.name == "forward" || f.name == "backward") {
        let backward = function.name == "backward";
        let type_of = |name: &str| -> Option<&Type> {
            let gradient = name.strip_prefix("d_").filter(|_| backward);
            let of = |name: &str, among: &[Known]| among.iter().position(|k| k.name == name);
            match gradient {
                Some(rest) => of(rest, &known[..=operands]).map(|i| &known[i].ty),
                None => of(name, known).map(|i| &known[i].ty),
            }
        };
        for (name, ty) in &function.arguments {
            let what = format!("`%{name}` of `@{}`", function.name);
            match (type_of(name), substituted(ty, &sizes)) {
                (_, Err(why)) => errors.push(format!("{what}: {why}")),
                (None, _) => {
                    let names: Vec<&str> = known.iter().map(|k| k.name.as_str()).collect();
                    errors.push(format!("{what} is nothing of the block, which has {}", names.join(", ")));
                }
                (Some(wanted), Ok(given)) if given != memref(wanted) => {
                    errors.push(format!("{what} is {given}, the block's is {}", memref(wanted)));
                }
                (Some(_), Ok(_)) => {}
            }
        }
        let has = |name: &str| function.arguments.iter().any(|(n, _)| n == name);
        if !backward && !has(RESULT) {
            errors.push(format!("`@forward` has no argument `%{RESULT}` to write the result to"));
        }
    }
    errors
}

fn about(kernel: &CustomKernel, why: String) -> Diagnostic {
    Diagnostic::error(codes::CUSTOM_KERNEL, format!("{}: {why}", kernel.file)).at(kernel.span, "this kernel")
}
