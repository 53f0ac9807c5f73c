//! A sharded graph becomes what one rank computes.
//!
//! Types become those of a rank's parts, reshards collectives, and what an op knows about places along a split axis is told
//! apart: an index counts from where the rank's part begins, a gather or scatter along a split axis leaves out the ids of
//! other parts. Where a part begins follows from the rank's coordinates, the run-time scalars `mesh.AXIS`, which are read in
//! the body and handed on into regions. Everything else is the same op on smaller tensors: that is what the factors say.
//!
//! What always holds: names of values, the order of ops and how values lie stay; the graph depends on sizes of the mesh, not
//! on a rank; its number of ops does not depend on sizes at all.
//!
//! Source: Xu et al. 2021 (GSPMD, arXiv:2105.04663), §4.

use super::reshard::{Options, lower_with};
use crate::graph::shape::show;
use crate::graph::{
    BinaryOp, Builder, Composite, DType, Graph, Loop, MeshOp, Name, Op, OpId, OpNode, Region, RegionId,
    Split, Type, Update, ValueId,
};
use crate::sharding::check::{check, check_ops};
use crate::sharding::factors::{FactorKind, factors};
use std::collections::{BTreeMap, BTreeSet};

/// What every rank of the graph's mesh computes, from a graph at stage sharded.
///
/// # Errors
/// The graph is not one: the first things [`check`] finds. Or it splits something this pass can't: a message that names it.
pub fn partition(graph: &Graph) -> Result<Graph, String> {
    partition_with(graph, &Options::default())
}

/// As [`partition`], with what is asked of every reshard.
///
/// # Errors
/// As [`partition`].
pub fn partition_with(graph: &Graph, options: &Options) -> Result<Graph, String> {
    refuse(&check(graph))?;
    localise(graph, options)
}

/// As [`partition`], but results may lie in any way.
///
/// # Errors
/// As [`partition`].
pub fn partition_open(graph: &Graph) -> Result<Graph, String> {
    refuse(&check_ops(graph))?;
    localise(graph, &Options::default())
}

fn refuse(found: &[crate::graph::verify::Violation]) -> Result<(), String> {
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = found.iter().take(3).map(|v| v.message.as_str()).collect();
    let more = if found.len() > 3 { format!(" and {} more", found.len() - 3) } else { String::new() };
    Err(format!("values do not lie as ops need them: {}{more}", shown.join("; ")))
}

fn localise(graph: &Graph, options: &Options) -> Result<Graph, String> {
    let mut b = Builder::resume(graph.clone());
    let mut pass = Partition { from: graph, options, b: &mut b };
    let body = graph.body;
    pass.types(body)?;
    let mut here = Here::default();
    for axis in pass.needed(body) {
        here.coordinates.insert(axis, None);
    }
    pass.region(body, here)?;
    Ok(b.finish())
}

/// What is known inside the region being rewritten.
#[derive(Default)]
struct Here {
    /// i32[] coordinate along each mesh axis the region needs; in the body made when first needed.
    coordinates: BTreeMap<Name, Option<ValueId>>,
    /// First element of a rank's part, i32[], by mesh axes and elements of a part.
    bases: BTreeMap<(Vec<Name>, u64), ValueId>,
    /// What stands for a value now.
    replaced: BTreeMap<ValueId, ValueId>,
}

struct Partition<'a> {
    from: &'a Graph,
    options: &'a Options,
    b: &'a mut Builder,
}

impl Partition<'_> {
    /// Sets the types of a region's values, and of the regions inside, to those of one rank.
    fn types(&mut self, id: RegionId) -> Result<(), String> {
        let from = self.from;
        let region = from.region(id);
        for arg in &region.args {
            self.local_type(*arg)?;
        }
        for op in &region.ops {
            let node = from.op(*op);
            for result in &node.results {
                self.local_type(*result)?;
            }
            match &node.op {
                Op::Loop(Loop { body, .. }) | Op::Update(Update { body, .. }) => self.types(*body)?,
                Op::Composite(Composite { meaning, .. }) => {
                    let args = node.operands.iter().map(|v| self.b.ty(*v).clone()).collect::<Vec<_>>();
                    self.meaning(*meaning, &args)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn local_type(&mut self, value: ValueId) -> Result<(), String> {
        let local = self.from.sharding(value).local(self.from.ty(value), &self.from.mesh);
        let ty = local.map_err(|e| format!("%{}: {e}", self.from.value_name(value)))?;
        self.b.graph.values[value.index()].ty = ty;
        Ok(())
    }

    /// The types in a composite's meaning, on arguments of these local types. They follow from the factors of its ops; an
    /// axis made inside is as long as that axis of the arguments.
    fn meaning(&mut self, id: RegionId, args: &[Type]) -> Result<(), String> {
        let from = self.from;
        let region = from.region(id);
        let mut sizes: BTreeMap<Name, Option<(u64, u64)>> = BTreeMap::new();
        for (arg, ty) in region.args.iter().zip(args) {
            for axis in &from.ty(*arg).axes {
                let local = ty.size_of(&axis.name).map(|local| (axis.size, local));
                let entry = sizes.entry(axis.name.clone()).or_insert(local);
                if *entry != local {
                    *entry = None;
                }
            }
            self.b.graph.values[arg.index()].ty = ty.clone();
        }
        for op in &region.ops {
            self.meaning_op(*op, &sizes)?;
        }
        Ok(())
    }

    fn meaning_op(&mut self, op: OpId, sizes: &BTreeMap<Name, Option<(u64, u64)>>) -> Result<(), String> {
        let from = self.from;
        let node = from.op(op);
        let same_place = matches!(node.op, Op::Mesh(MeshOp::Reshard { .. }));
        let factors = factors(from, op);
        for (i, result) in node.results.iter().enumerate() {
            let mut ty = from.ty(*result).clone();
            for axis in &mut ty.axes {
                let factor = factors.iter().find(|f| f.results[i].as_ref() == Some(&axis.name));
                let passed = factor.filter(|f| f.kind == FactorKind::Pass).and_then(|f| {
                    let mut ends = node.operands.iter().zip(&f.operands);
                    ends.find_map(|(v, name)| self.b.ty(*v).size_of(name.as_ref()?))
                });
                let made = factor.filter(|f| f.kind == FactorKind::Made).and_then(|_| {
                    let (global, local) = (*sizes.get(&axis.name)?)?;
                    (global == axis.size).then_some(local)
                });
                let kept = same_place.then(|| self.b.ty(node.operands[0]).size_of(&axis.name)).flatten();
                if let Some(size) = passed.or(made).or(kept) {
                    if size != axis.size && matches!(node.op, Op::Index { .. }) {
                        return Err(format!("positions along {} are split inside a composite", axis.name));
                    }
                    axis.size = size;
                }
            }
            self.b.graph.values[result.index()].ty = ty;
        }
        match &node.op {
            Op::Composite(Composite { meaning, .. }) => {
                let args = node.operands.iter().map(|v| self.b.ty(*v).clone()).collect::<Vec<_>>();
                self.meaning(*meaning, &args)
            }
            Op::Loop(_) | Op::Update(_) => Err("a loop inside a composite can't be split".into()),
            _ => Ok(()),
        }
    }

    /// Mesh axes whose coordinate a region needs.
    fn needed(&self, id: RegionId) -> BTreeSet<Name> {
        let from = self.from;
        let mut axes = BTreeSet::new();
        for node in from.region(id).ops.iter().map(|op| from.op(*op)) {
            if let Some((_, split)) = self.placed(node) {
                axes.extend(split.over.iter().cloned());
            }
            if let Op::Loop(Loop { body, .. }) | Op::Update(Update { body, .. }) = &node.op {
                axes.extend(self.needed(*body));
            }
        }
        axes
    }

    /// The split axis along which an op knows places, with the value that has it.
    fn placed(&self, node: &OpNode) -> Option<((ValueId, Name), &Split)> {
        let (value, axis) = match &node.op {
            Op::Index { axis } | Op::ScatterAdd { axis } => (node.results[0], axis),
            Op::Gather { axis } => (node.operands[0], axis),
            _ => return None,
        };
        Some(((value, axis.clone()), self.from.sharding(value).split.get(axis)?))
    }

    /// Rewrites the ops of a region.
    fn region(&mut self, id: RegionId, mut here: Here) -> Result<(), String> {
        let Region { ops, results, .. } = self.from.region(id).clone();
        self.b.graph.regions[id.index()].ops.clear();
        self.b.reopen(id);
        for op in ops {
            for operand in &mut self.b.graph.ops[op.index()].operands {
                *operand = *here.replaced.get(operand).unwrap_or(operand);
            }
            self.b.origin = self.from.op(op).origin.clone();
            self.op(op, id, &mut here)?;
        }
        self.b.leave();
        self.b.graph.regions[id.index()].results =
            results.iter().map(|v| *here.replaced.get(v).unwrap_or(v)).collect();
        Ok(())
    }

    fn op(&mut self, op: OpId, region: RegionId, here: &mut Here) -> Result<(), String> {
        let node = self.from.op(op);
        match &node.op {
            Op::Mesh(MeshOp::Reshard { cause, wire, may_replicate }) => {
                let operand = self.b.graph.op(op).operands[0];
                let allow_replicate = *may_replicate || self.options.allow_replicate;
                let options = Options { wire: wire.or(self.options.wire), allow_replicate };
                let [from, to] = [node.operands[0], node.results[0]].map(|v| self.from.sharding(v).clone());
                let global = self.from.ty(node.results[0]);
                let there = lower_with(self.b, operand, &from, &to, global, cause, &options)?;
                if there == operand {
                    here.replaced.insert(node.results[0], there);
                } else {
                    self.stand_in(node.results[0], there, here);
                }
                return Ok(());
            }
            Op::Loop(_) | Op::Update(_) => self.entered(op, node, here)?,
            Op::Composite(Composite { meaning, .. }) => self.flatten_reshards(*meaning),
            _ => {}
        }
        let Some(((value, axis), split)) = self.placed(node) else {
            self.b.graph.regions[region.index()].ops.push(op);
            return Ok(());
        };
        let split = split.clone();
        if let Op::Index { .. } = node.op {
            self.b.graph.regions[region.index()].ops.push(op);
            let shifted = self.positions(value, &axis, &split, here)?;
            self.stand_in(value, shifted, here);
            return Ok(());
        }
        if split.blocks > 1 {
            let name = self.from.value_name(value);
            return Err(format!(
                "%{name} is looked up along {axis}, which is split in {} blocks",
                split.blocks
            ));
        }
        let part = self.size(value, &axis);
        let base = self.base(&split.over, part, here)?;
        let ids = self.b.graph.op(op).operands[1];
        let local = self.b.binary(BinaryOp::Sub, ids, base);
        self.b.graph.values[local.index()].sharding = self.b.graph.sharding(ids).clone();
        self.b.graph.ops[op.index()].operands[1] = local;
        self.b.graph.regions[region.index()].ops.push(op);
        Ok(())
    }

    fn size(&self, value: ValueId, axis: &Name) -> u64 {
        self.b.ty(value).size_of(axis).expect("the axis is split, so it is there")
    }

    /// From here on `new` is what `old` was, under its name.
    fn stand_in(&mut self, old: ValueId, new: ValueId, here: &mut Here) {
        here.replaced.insert(old, new);
        self.b.graph.values[new.index()].sharding = self.from.sharding(old).clone();
        self.b.graph.swap_names(old, new);
    }

    /// Global positions of the elements a rank has, from the index along its part.
    fn positions(
        &mut self,
        local: ValueId,
        axis: &Name,
        split: &Split,
        here: &mut Here,
    ) -> Result<ValueId, String> {
        let size = self.size(local, axis);
        if split.blocks == 1 {
            let base = self.base(&split.over, size, here)?;
            return Ok(self.b.binary(BinaryOp::Add, local, base));
        }
        // Element i of the rank's part lies in block i / part, at i mod part of the rank's part of the block.
        let part = size / split.blocks;
        let block = part * self.from.mesh.ways(&split.over);
        let base = self.base(&split.over, part, here)?;
        let [part, block] = [part, block].map(|n| self.b.constant(DType::I32, n as f64));
        let number = self.b.binary(BinaryOp::Div, local, part);
        let within = self.b.binary(BinaryOp::Rem, local, part);
        let start = self.b.mul(number, block);
        let position = self.b.add(start, within);
        Ok(self.b.binary(BinaryOp::Add, position, base))
    }

    /// First element of this rank's part of an axis cut into parts of `part` elements.
    fn base(&mut self, over: &[Name], part: u64, here: &mut Here) -> Result<ValueId, String> {
        if i32::try_from(part * self.from.mesh.ways(over)).is_err() {
            return Err(format!("an axis of {} parts of {part} is too long", self.from.mesh.ways(over)));
        }
        let key = (over.to_vec(), part);
        if let Some(base) = here.bases.get(&key) {
            return Ok(*base);
        }
        let mut position: Option<ValueId> = None;
        for axis in over {
            let coordinate = self.coordinate(axis, here);
            position = Some(match position {
                None => coordinate,
                Some(before) => {
                    let ways = self.b.constant(DType::I32, self.from.mesh.size_of(axis) as f64);
                    let before = self.b.mul(before, ways);
                    self.b.add(before, coordinate)
                }
            });
        }
        let part = self.b.constant(DType::I32, part as f64);
        let base = self.b.mul(position.expect("a split axis is split over something"), part);
        self.b.set_name(base, "base");
        here.bases.insert(key, base);
        Ok(base)
    }

    fn coordinate(&mut self, axis: &Name, here: &mut Here) -> ValueId {
        if let Some(known) = here.coordinates.get(axis).copied().flatten() {
            return known;
        }
        let key = Name::from(format!("mesh.{axis}"));
        let scalar = self.b.one(Op::Scalar { key: key.clone(), default: 0.0 }, &[], None, &key);
        let coordinate = self.b.cast(scalar, DType::I32);
        here.coordinates.insert(axis.clone(), Some(coordinate));
        coordinate
    }

    /// A loop or an update: its region gets the coordinates it needs, and a loop blocks of its own size.
    fn entered(&mut self, op: OpId, node: &OpNode, here: &mut Here) -> Result<(), String> {
        let body = match &node.op {
            Op::Loop(l) => l.body,
            Op::Update(u) => u.body,
            _ => return Ok(()),
        };
        let mut inside = Here::default();
        for axis in self.needed(body) {
            let outer = self.coordinate(&axis, here);
            self.b.graph.ops[op.index()].operands.push(outer);
            let name = format!("mesh.{axis}");
            let arg = self.b.graph.add_value(&name, Type::scalar(DType::I32));
            self.b.graph.regions[body.index()].args.push(arg);
            inside.coordinates.insert(axis, Some(arg));
        }
        if let Op::Loop(l) = &node.op
            && l.block.is_some()
        {
            self.local_block(op, node, l)?;
        }
        self.region(body, inside)
    }

    /// The number of elements that one rank's slices have.
    fn local_block(&mut self, op: OpId, node: &OpNode, l: &Loop) -> Result<(), String> {
        let outs = node.results[l.carries..].iter().take(l.stacked_outs);
        let mut stacked = node.operands[l.carries..].iter().take(l.stacked).chain(outs);
        let Some(first) = stacked.next() else { return Ok(()) };
        let size = self.size(*first, &l.axis);
        if !size.is_multiple_of(l.trip) {
            let shown = show(self.b.ty(*first));
            return Err(format!("a loop of {} turns over {} does not divide {shown}", l.trip, l.axis));
        }
        if let Op::Loop(local) = &mut self.b.graph.ops[op.index()].op {
            local.block = Some(size / l.trip);
        }
        Ok(())
    }

    /// Takes reshards out of a composite's meaning: what it means of a rank's operands moves nothing.
    fn flatten_reshards(&mut self, id: RegionId) {
        let Region { ops, results, .. } = self.from.region(id).clone();
        let mut replaced: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut kept = Vec::new();
        for op in ops {
            for operand in &mut self.b.graph.ops[op.index()].operands {
                *operand = *replaced.get(operand).unwrap_or(operand);
            }
            let node = self.b.graph.op(op);
            match &node.op {
                Op::Mesh(MeshOp::Reshard { .. }) => {
                    replaced.insert(node.results[0], node.operands[0]);
                }
                Op::Composite(Composite { meaning, .. }) => {
                    let meaning = *meaning;
                    self.flatten_reshards(meaning);
                    kept.push(op);
                }
                _ => kept.push(op),
            }
        }
        let region = &mut self.b.graph.regions[id.index()];
        region.ops = kept;
        region.results = results.iter().map(|v| *replaced.get(v).unwrap_or(v)).collect();
    }
}

#[cfg(test)]
mod tests;
