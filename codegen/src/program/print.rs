//! The step program as text, for people: `mlc emit --stage program`.

use std::fmt::{self, Display, Write};

use super::{Address, KernelSpec, Launch, Operand, Program, ScalarArg, Step};
use crate::kir::dtype_name;

impl Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {} {{", self.info.model)?;
        for (i, space) in self.info.spaces.iter().enumerate() {
            writeln!(f, "  space {i} {}: {} bytes", space.name, space.bytes)?;
        }
        for kernel in &self.kernels {
            writeln!(f, "  kernel {} = {}", kernel.name, summary(&kernel.spec))?;
            for u in kernel.spec.uses() {
                writeln!(
                    f,
                    "    {} {}",
                    if u.writes { "write" } else { "read " },
                    operand(u.operand, &u.dims)
                )?;
            }
        }
        for entry in &self.entries {
            writeln!(f, "  entry {} {{", entry.name)?;
            self.steps(f, &entry.body, 2)?;
            writeln!(f, "  }}")?;
        }
        f.write_str("}\n")
    }
}

impl Program {
    fn steps(&self, f: &mut dyn Write, steps: &[Step], depth: usize) -> fmt::Result {
        for step in steps {
            let indent = 2 * depth;
            match step {
                Step::Launch(launch) => {
                    let op = self.info.ops.get(launch.op as usize);
                    let place = op.map_or_else(String::new, |op| format!("  // {} {}", op.path, op.line));
                    writeln!(f, "{:indent$}{}{place}", "", self.launch(launch))?;
                }
                Step::Loop { var, trip, reverse, body } => {
                    let down = if *reverse { " reverse" } else { "" };
                    writeln!(f, "{:indent$}loop i{} < {trip}{down} {{", "", var.0)?;
                    self.steps(f, body, depth + 1)?;
                    writeln!(f, "{:indent$}}}", "")?;
                }
            }
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> String {
        let kernel = self.kernels.get(launch.kernel as usize).map_or("?", |k| k.name.as_str());
        let mut arguments: Vec<String> = launch.buffers.iter().map(address).collect();
        arguments.extend(launch.scalars.iter().map(|s| match s {
            ScalarArg::Const(value) => value.to_string(),
            ScalarArg::Loop(var, factor, 0) => format!("{factor}*i{}", var.0),
            ScalarArg::Loop(var, factor, offset) => format!("{factor}*i{}+{offset}", var.0),
        }));
        format!("{kernel}({})", arguments.join(", "))
    }
}

/// `space:offset`, plus a term for each loop it moves with.
fn address(a: &Address) -> String {
    let mut text = format!("{}:{}", a.space, a.offset);
    for s in &a.strides {
        let slots = if s.slots > 0 { format!("%{}", s.slots) } else { String::new() };
        let _ = write!(text, "+{}*i{}{slots}", s.bytes, s.var.0);
    }
    text
}

/// Buffer number, element type and offset, then size and stride of each dimension.
fn operand(o: &Operand, dims: &[u64]) -> String {
    let dims: Vec<String> = dims.iter().zip(&o.strides).map(|(d, s)| format!("{d}:{s}")).collect();
    let offset = if o.offset > 0 { format!("+{}", o.offset) } else { String::new() };
    format!("b{}{offset} {}[{}]", o.buffer, dtype_name(o.dtype), dims.join(", "))
}

/// What a spec computes, in a few words.
fn summary(spec: &KernelSpec) -> String {
    match spec {
        KernelSpec::Map(s) => format!("map over {:?}, {} ops", s.dims, s.region.ops.len()),
        KernelSpec::Rows(s) => {
            format!("rows over {:?}, last {} reduced, {} ops", s.dims, s.reduced, s.region.ops.len())
        }
        KernelSpec::Gemm(s) => {
            let accumulate = if s.accumulate { ", accumulating" } else { "" };
            let epilogue = s
                .epilogue
                .as_ref()
                .map_or_else(String::new, |r| format!(", epilogue of {} ops", r.ops.len()));
            format!("gemm {:?} m={} n={} k={}{accumulate}{epilogue}", s.batch, s.m, s.n, s.k)
        }
        KernelSpec::Attention(s) => format!("attention {}", shape(&s.shape)),
        KernelSpec::AttentionGrad(s) => format!("attention_grad {:?} {}", s.part, shape(&s.shape)),
        KernelSpec::Gather(s) => format!("gather over {:?} from axis of {}", s.dims, s.axis_size),
        KernelSpec::Custom(s) => format!("custom @{} of {}", s.function, s.file),
        KernelSpec::Scatter(s) => format!("scatter over {:?} to axis of {}", s.dims, s.axis_size),
        KernelSpec::Scan(s) => format!("running sum over {:?} along the last", s.dims),
    }
}

fn shape(s: &super::AttentionShape) -> String {
    format!("{:?} group={} sq={} sk={} hd={} hv={} {:?}", s.batch, s.group, s.sq, s.sk, s.hd, s.hv, s.bound)
}
