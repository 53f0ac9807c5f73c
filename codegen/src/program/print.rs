//! The step program as text, for people: `mlc emit --stage program`.

use std::fmt::{self, Display, Write};

use super::{
    Address, CollectiveStage, CollectiveStep, KernelSpec, Launch, Operand, Program, ScalarArg, Step,
};
use crate::abi::{CollectiveInfo, CollectiveKind, Reduction};
use crate::kir::dtype_name;

impl Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {} {{", self.info.model)?;
        for (i, space) in self.info.spaces.iter().enumerate() {
            writeln!(f, "  space {i} {}: {} bytes", space.name, space.bytes)?;
        }
        if !self.info.mesh.is_empty() {
            let axes: Vec<String> = self.info.mesh.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
            writeln!(f, "  mesh {}", axes.join(", "))?;
        }
        for (i, info) in self.info.collectives.iter().enumerate() {
            self.collective(f, i, info)?;
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
                    let place = self.place(launch.op);
                    writeln!(f, "{:indent$}{}{place}", "", self.launch(launch))?;
                }
                Step::Collective(step) => {
                    let place = self.place(step.op);
                    writeln!(f, "{:indent$}{}{place}", "", collective_step(step))?;
                }
                Step::Within { var, from, below, body } => {
                    writeln!(f, "{:indent$}within i{} {from}..{below} {{", "", var.0)?;
                    self.steps(f, body, depth + 1)?;
                    writeln!(f, "{:indent$}}}", "")?;
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

    /// Where an op comes from.
    fn place(&self, op: u32) -> String {
        let op = self.info.ops.get(op as usize);
        op.map_or_else(String::new, |op| format!("  // {} {}", op.path, op.line))
    }

    /// Kind, group and staging; then for each part element types, sizes with both strides, and both distances of blocks.
    fn collective(&self, f: &mut dyn Write, i: usize, info: &CollectiveInfo) -> fmt::Result {
        let axis = |m: &u32| self.info.mesh.get(*m as usize).map_or("?", |a| a.name.as_str());
        let over: Vec<&str> = info.mesh.iter().map(axis).collect();
        let (kind, over) = (kind_name(info.kind), over.join(" "));
        writeln!(f, "  collective {i} = {kind} over {over}, {} bytes of staging", info.staging_bytes)?;
        for p in &info.parts {
            let wire = if p.wire == p.dtype { String::new() } else { format!(" as {}", dtype_name(p.wire)) };
            let strides = p.send.iter().zip(&p.recv);
            let dims: Vec<String> =
                p.dims.iter().zip(strides).map(|(d, (s, r))| format!("{d}:{s}->{r}")).collect();
            let (dtype, dims) = (dtype_name(p.dtype), dims.join(", "));
            writeln!(f, "    {dtype}{wire}[{dims}] blocks {}->{}", p.send_block, p.recv_block)?;
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

fn collective_step(step: &CollectiveStep) -> String {
    let stage = match step.stage {
        CollectiveStage::Start => "start",
        CollectiveStage::Done => "done",
    };
    let buffers: Vec<String> = step.buffers.iter().map(address).collect();
    format!("{stage} {}({})", step.collective, buffers.join(", "))
}

/// A collective's kind as text; reductions say what they do.
pub fn kind_name(kind: CollectiveKind) -> &'static str {
    use Reduction::{Max, Min, Sum};
    match kind {
        CollectiveKind::AllGather => "all_gather",
        CollectiveKind::ReduceScatter(Sum) => "reduce_scatter_sum",
        CollectiveKind::ReduceScatter(Max) => "reduce_scatter_max",
        CollectiveKind::ReduceScatter(Min) => "reduce_scatter_min",
        CollectiveKind::AllReduce(Sum) => "all_reduce_sum",
        CollectiveKind::AllReduce(Max) => "all_reduce_max",
        CollectiveKind::AllReduce(Min) => "all_reduce_min",
        CollectiveKind::AllToAll => "all_to_all",
    }
}

/// `space:offset`, plus a term for each loop and each coordinate it moves with.
fn address(a: &Address) -> String {
    let mut text = format!("{}:{}", a.space, a.offset);
    for s in &a.strides {
        let slots = if s.slots > 0 { format!("%{}", s.slots) } else { String::new() };
        let index = match s.ahead {
            0 => format!("i{}", s.var.0),
            n => format!("(i{}{n:+})", s.var.0),
        };
        let _ = write!(text, "+{}*{index}{slots}", s.bytes);
    }
    for s in &a.ranks {
        let _ = write!(text, "+{}*r{}", s.bytes, s.axis);
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
