//! What models mean: types, broadcasting, instances.

use std::fmt::Write as _;

use super::check::{LLAMA, checked};
use super::samples;
use crate::spec::checked::{Elem, Expr, ExprKind, Instance, Statement, Type};

/// `real[batch=8, d=4]`
fn show(ty: &Type) -> String {
    let elem = match ty.elem {
        Elem::Real => "real",
        Elem::Int => "int",
        Elem::Bool => "bool",
    };
    let axes: Vec<String> = ty.axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
    format!("{elem}[{}]", axes.join(", "))
}

/// Every named value with its type, in order, calls indented below the statement that makes them.
fn dump(body: &[Statement], level: usize, out: &mut String) {
    for statement in body {
        match statement {
            Statement::Let(l) => {
                let role = l.role.as_ref().map(|r| format!(" role {r}")).unwrap_or_default();
                let _ = writeln!(out, "{}{}: {}{role}", "  ".repeat(level), l.path, show(&l.expr.ty));
                instances(&l.expr, level + 1, out);
            }
            Statement::Aux(a) => {
                let _ = writeln!(out, "{}aux {}: {}", "  ".repeat(level), a.path, show(&a.expr.ty));
            }
        }
    }
}

fn instances(e: &Expr, level: usize, out: &mut String) {
    match &e.kind {
        ExprKind::Call(i, args) => {
            args.iter().for_each(|a| instances(a, level, out));
            instance("call", i, level, out);
        }
        ExprKind::Repeat(r) => {
            instances(&r.init, level, out);
            instance(&format!("repeat[{}={}]", r.dim.axis.name, r.dim.axis.size), &r.body, level, out);
        }
        ExprKind::Binary(_, a, b) | ExprKind::Dot(_, a, b) => {
            instances(a, level, out);
            instances(b, level, out);
        }
        _ => {}
    }
}

fn instance(how: &str, i: &Instance, level: usize, out: &mut String) {
    let args: Vec<String> = i.args.iter().map(|a| format!("{}: {}", a.name, show(&a.ty))).collect();
    let indent = "  ".repeat(level);
    let _ = writeln!(
        out,
        "{indent}{how} {} as {}({}) -> {}",
        i.block,
        i.path,
        args.join(", "),
        show(&i.result.ty)
    );
    dump(&i.body, level + 1, out);
    instances(&i.result, level + 1, out);
}

/// All values of a model with their types.
fn types(text: &str) -> String {
    let spec = checked(text, &[]);
    let mut out = String::new();
    dump(&spec.model.body, 0, &mut out);
    let _ = writeln!(out, "loss: {}", show(&spec.model.loss.value.ty));
    out
}

/// A model around these statements.
fn model(statements: &str) -> String {
    format!(
        "spec 1\nmodel M {{\nsize b = 4, n = 8, m = 6\ninput x[b, n]\ninput y[b, m]\ninput ids: ids<n>[b]\n{statements}\nloss mean[b, n](x)\n}}\n"
    )
}

#[test]
fn types_of_every_value_of_llama() {
    insta::assert_snapshot!(types(LLAMA));
}

#[test]
fn the_model_of_the_sample_checks() {
    let names = samples::LLAMA.find("  names hf").expect("the sample has a table");
    let text = format!("{}}}\n", &samples::LLAMA[..names]);
    assert_eq!(checked(&text, &[]).model.parameter_count(), 70_553_706_496);
}

#[test]
fn types_follow_the_rules_of_broadcasting() {
    let text = model(
        "scaled = x * 2
         shifted[b, n, m] = x * y
         product = dot[b](x, y)
         picked = gather[n](x as [b: c], ids)
         whole = index[n] / 2
         half = index[n] * 0.5
         odd = index[n] + 1 == 3
         renamed = x as [n: k, b: c]
         largest = max[n](x)
         top = max(x, 0)
         attended = std.Attend[n, k, m](shifted, shifted as [n: k], shifted as [n: k], causal = true)",
    );
    insta::assert_snapshot!(types(&text));
}

#[test]
fn generic_blocks_get_the_axes_of_each_use() {
    let text = model(
        "block Norm[a](x[.., a]) -> [.., a] {
            param w[a] = ones
            s = mean[a](x * x)
            x * rsqrt(s) * w
        }
        u = Norm[n]@first(x)
        v = Norm[m]@second(y)",
    );
    insta::assert_snapshot!(types(&text));
}

#[test]
fn constants_differ_per_iteration_where_a_list_is_given() {
    let text = model(
        "block Layer(x[b, n], window, scale = 2) -> [b, n] {
            param w[n] = ones
            where(index[n] < window, x * w * scale, x)
        }
        z = repeat[4](Layer@layer, x, window = [4, none], scale = [3, 3])",
    );
    let spec = checked(&text, &[]);
    let Statement::Let(z) = &spec.model.body[0] else { panic!("z is a let") };
    let ExprKind::Repeat(repeat) = &z.expr.kind else { panic!("z is a repeat") };
    // The list of equal constants is a constant.
    let cycled: Vec<(&str, &[f64])> =
        repeat.cycled.iter().map(|c| (c.name.as_str(), c.values.as_slice())).collect();
    assert_eq!(cycled, [("window", [4.0, f64::INFINITY, 4.0, f64::INFINITY].as_slice())]);
    assert_eq!(repeat.dim.axis.name, "layer");
}

#[test]
fn nested_repeats_name_their_iterations_apart() {
    let text = model(
        "block Inner(x[b, n]) -> [b, n] {
            param w[n] = ones
            x * w
        }
        block Outer(x[b, n]) -> [b, n] {
            repeat[3](Inner@inner, x)
        }
        z = repeat[2](Outer@outer, x)",
    );
    let spec = checked(&text, &[]);
    let param = &spec.model.params[0];
    assert_eq!(param.path, "outer.{i}.inner.{j}.w");
    assert_eq!(param.elements(), 2 * 3 * 8);
}

#[test]
fn auxiliary_losses_are_found_inside_repeats() {
    let text = model(
        "block Layer(x[b, n]) -> [b, n] {
            aux extent = 0.1 * mean[b, n](x * x)
            x * 2
        }
        z = repeat[2](Layer@layer, x)",
    );
    assert!(types(&text).contains("aux layer.{i}.extent: real[]"));
}

#[test]
fn blocks_of_other_files_are_called_under_their_alias() {
    use crate::spec::{MemoryLoader, SourceMap, check, diagnostic::render_all};
    let library = "spec 1\nblock Scale[a](x[.., a]) -> [.., a] {\n    param w[a] = ones\n    x * w\n}\n";
    let main = "spec 1\nuse std.scale as scale\nmodel M {\n    size b = 4, n = 8\n    input x[b, n]\n    z = scale.Scale[n](x)\n    loss mean[b, n](z)\n}\n";
    let files = [("dir/main.spec", main), ("dir/std/scale.spec", library)];
    let loader = MemoryLoader { files: files.map(|(n, t)| (n.to_string(), t.to_string())).to_vec() };
    let mut sources = SourceMap::new();
    let (spec, _) = check(&mut sources, &loader, "dir/main.spec", &[])
        .unwrap_or_else(|d| panic!("{}", render_all(&d, &sources, false)));
    assert_eq!(spec.model.params[0].path, "scale.w");
}
