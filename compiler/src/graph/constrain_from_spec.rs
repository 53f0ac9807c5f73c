//! What rules for roles and values say of the values of a graph.

use super::from_spec::Walk;
use super::{MeshOp, Name, Op, ValueId};
use crate::spec::checked::{Constraint, CustomKernel, Instance};
use crate::spec::{Diagnostic, codes};
use std::collections::BTreeMap;

impl Walk<'_> {
    /// The value, split as the rules for this path say; the value itself if they say nothing. The new op carries the place
    /// of the rule.
    pub(super) fn constrained(&mut self, value: ValueId, path: &str) -> ValueId {
        let Some(constraint) = self.constraints.get(path) else { return value };
        let op = Op::Mesh(MeshOp::Constrain { split: split(constraint) });
        let span = constraint.span;
        if self.made_by(value, &op) {
            return value;
        }
        self.at(span);
        let name = self.b.graph.value_name(value).clone();
        self.b.one(op, &[value], None, &name)
    }

    /// Whether the value is what the same op of the open region gives: a value that goes by two paths.
    fn made_by(&self, value: ValueId, op: &Op) -> bool {
        let region = self.b.graph.region(self.b.current());
        let maker =
            region.ops.iter().rev().map(|id| self.b.graph.op(*id)).find(|n| n.results.contains(&value));
        maker.is_some_and(|node| node.op == *op)
    }

    /// Reports rules for values inside a block that a kernel of the user's own computes.
    pub(super) fn no_constraint_inside(&mut self, kernel: &CustomKernel, instance: &Instance) {
        let inside = format!("{}.", instance.path);
        let is_argument = |path: &str| instance.args.iter().any(|a| path == format!("{inside}{}", a.name));
        for (path, constraint) in self.constraints {
            if path.starts_with(&inside) && !is_argument(path) {
                let title = format!("no rule can split `{path}`: a kernel of your own computes it inside");
                self.errors.push(
                    Diagnostic::error(codes::NOT_AVAILABLE, title)
                        .at(constraint.span, "this rule")
                        .and(kernel.span, "this kernel"),
                );
            }
        }
    }
}

fn split(constraint: &Constraint) -> BTreeMap<Name, Vec<Name>> {
    let names = |over: &Vec<String>| over.iter().map(|name| name.as_str().into()).collect();
    constraint.split.iter().map(|(axis, over)| (axis.as_str().into(), names(over))).collect()
}

#[cfg(test)]
mod tests {
    use crate::graph::Graph;
    use crate::graph::from_spec::{Entry, from_spec};
    use crate::graph::print::print;
    use crate::graph::recognise::{near_misses, recognise};
    use crate::graph::verify::{Stage, verify};
    use crate::spec::diagnostic::render_all;
    use crate::spec::{MemoryLoader, SourceMap, check};
    use crate::testing::{assert_same_numbers, with_gradients};

    const SIZES: &str = "layers = 2, vocab = 16, d = 8, ff = 12, kv = 2, group = 2, hd = 4";

    /// The graph of an entry of a small Llama under these rules, recognised, or all that is wrong with it.
    fn built(entry: Entry, rules: &str, more: &[(&str, &str)]) -> Result<Graph, String> {
        let text = format!(
            "spec 1\nuse \"llama.spec\" as Llama with {{ {SIZES} }}\nmesh {{ data = 2, tensor = 2 }}\nshard {{\n    batch -> data\n    kv, ff, vocab -> tensor\n    params \"**.norm*.w\": d -> none\n{rules}}}\ntrain {{ steps = 1, batch = 4, seq = 6, data = synthetic(), optimizer = sgd {{ lr = 1 }} }}\n"
        );
        let llama = include_str!("../../../specs/llama.spec");
        let mut files = vec![("m.spec".into(), text), ("llama.spec".into(), llama.into())];
        for (name, text) in more {
            files.retain(|(n, _): &(String, String)| n != name);
            files.push((name.to_string(), text.to_string()));
        }
        let mut sources = SourceMap::new();
        let checked = check(&mut sources, &MemoryLoader { files }, "m.spec", &[]);
        let (spec, _) = checked.unwrap_or_else(|found| panic!("{}", render_all(&found, &sources, false)));
        let graph =
            from_spec(&spec.model, entry, 4, &sources).map_err(|e| render_all(&e, &sources, false))?;
        verify(&graph, Stage::Graph).unwrap_or_else(|e| panic!("{e}"));
        let graph = recognise(graph, &spec.model.lower_reference);
        verify(&graph, Stage::Graph).unwrap_or_else(|e| panic!("recognised: {e}"));
        Ok(graph)
    }

    fn graph(rules: &str) -> Graph {
        built(Entry::Train, rules, &[]).unwrap_or_else(|e| panic!("{e}"))
    }

    /// What the graph says of values: name and split.
    fn said(graph: &Graph) -> Vec<String> {
        let text = print(graph);
        let lines = text.lines().filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = constrain %")?;
            let (_, rest) = rest.split_once(" to ")?;
            Some(format!("{name}: {}", rest.split(" : ").next().unwrap_or(rest)))
        });
        lines.collect()
    }

    /// Rules at the seams of Megatron's parallelism, and beyond.
    const SEAMS: &str = "    role residual: seq -> tensor\n    values \"layer.*.attn.(q|k|v)\": kv -> tensor\n    values \"layer.*.(attn|mlp).x\": seq -> none\n    values \"tokens\": seq -> none\n    values \"x\": seq -> none\n";

    #[test]
    fn rules_for_values_stand_where_the_values_are_made() {
        insta::assert_snapshot!(said(&graph(SEAMS)).join("\n"), @r#"
%tokens.1: seq -> none
%t.8: seq -> none
%q: kv -> tensor
%k: kv -> tensor
%v: kv -> tensor
%h: seq -> tensor
%t.66: seq -> none
%t.74: seq -> tensor
%x.6: seq -> none
"#);
    }

    #[test]
    fn rules_for_values_change_no_number_and_hide_no_formula() {
        let (plain, ruled) = (graph(""), graph(SEAMS));
        assert!(said(&plain).is_empty());
        assert_eq!(near_misses(&ruled, &[]), []);
        let text = print(&ruled);
        for formula in ["attention", "rms_norm", "loss_head"] {
            let count = |text: &str| text.matches(&format!(" = {formula} ")).count();
            assert!(count(&text) > 0 && count(&text) == count(&print(&plain)), "{formula}\n{text}");
        }
        assert_same_numbers(&plain, &ruled);
        assert_same_numbers(&with_gradients(plain), &with_gradients(ruled));
    }

    #[test]
    fn rules_for_values_hold_in_every_entry() {
        for entry in [Entry::Eval, Entry::Logits] {
            let graph = built(entry, SEAMS, &[]).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(said(&graph), said(&self::graph(SEAMS)), "{entry:?}");
        }
    }

    #[test]
    fn near_misses_say_which_rule_splits_the_inside_of_a_formula() {
        let inside = "    values \"layer.*.attn.p\": kv -> tensor\n    values \"logits\": vocab -> tensor\n";
        let misses: Vec<String> = near_misses(&graph(inside), &[]).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(misses.join("\n"), @r#"
llama.spec:38: cross_entropy over vocab is not computed in chunks of tokens: the logits %logits are not a product
m.spec:8: attention is not recognised: this rule splits `p`, which is inside of it; split what goes in or comes out
m.spec:9: loss_head is not recognised: this rule splits `logits`, which is inside of it; split what goes in or comes out
"#);
        assert_eq!(near_misses(&graph(inside), &["attention".into(), "loss_head".into()]), []);
    }

    #[test]
    fn rules_for_values_inside_a_kernel_are_an_error() {
        let llama = include_str!("../../../specs/llama.spec")
            .replace(
                "    block FeedForward",
                "    kernel \"k.mlir\" for FeedForward@mlp\n    block FeedForward",
            )
            .replace("    dot[ff](silu(", "    u = dot[d](x, up)\n        dot[ff](silu(")
            .replace(" * dot[d](x, up), down)", " * u, down)");
        let kernel = "func.func @forward(%x: memref<4x6x8xf32>, %gate: memref<8x12xf32>, %up: memref<8x12xf32>, %down: memref<12x8xf32>, %out: memref<4x6x8xf32>) {\n  return\n}\n";
        let of = |path: &str| {
            let rules = format!("    values \"{path}\": seq -> none\n");
            built(Entry::Train, &rules, &[("llama.spec", &llama), ("k.mlir", kernel)])
        };
        for path in ["layer.*.mlp", "layer.*.mlp.x"] {
            let graph = of(path).unwrap_or_else(|e| panic!("{e}"));
            assert!(print(&graph).contains(" = custom "), "{}", print(&graph));
            assert_eq!(said(&graph).len(), 1, "{path}");
        }
        insta::assert_snapshot!(of("layer.*.mlp.u").expect_err("an error"), @r#"
error[E0207]: no rule can split `layer.{i}.mlp.u`: a kernel of your own computes it inside
  --> m.spec:8:5
   |
 8 |     values "layer.*.mlp.u": seq -> none
   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ this rule
   |
  ::: llama.spec:26:5
   |
26 |     kernel "k.mlir" for FeedForward@mlp
   |     ----------------------------------- this kernel
"#);
    }
}
