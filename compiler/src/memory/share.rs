//! Lets an element-wise kernel write its result over an operand that ends with it.
//!
//! Safe where operand and result are whole buffers of one element type and one order of axes, made in the same region, and
//! the kernel reads the operand at the very index it writes (no rotated pairs). The two buffers then are one block whose
//! life is the union of theirs.

use super::lifetimes::{Life, Lives};
use super::pack::Block;
use crate::fuse::{BufferId, Class, Fused, Group, Item, Kind, View};
use crate::graph::Space;

/// Which buffers are one.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    owner: Vec<BufferId>,
}

impl Shared {
    /// The buffer that stands for the block `b` is in.
    pub fn owner(&self, b: BufferId) -> BufferId {
        self.owner[b.0 as usize]
    }

    /// Blocks of a space to pack: everything that is neither persistent nor an input or output.
    pub fn blocks(&self, fused: &Fused, lives: &Lives, space: Space) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for (i, buffer) in fused.buffers.iter().enumerate() {
            let id = BufferId(i as u32);
            let Some(life) = lives.of[i] else { continue };
            if !is_packed(&buffer.class) || buffer.space != space {
                continue;
            }
            let owner = self.owner(id);
            match blocks.iter_mut().find(|b| b.id == owner) {
                Some(block) => {
                    block.life =
                        Life { from: block.life.from.min(life.from), to: block.life.to.max(life.to) };
                    block.bytes = block.bytes.max(super::aligned(buffer.bytes()));
                }
                None => blocks.push(Block { id: owner, life, bytes: super::aligned(buffer.bytes()) }),
            }
        }
        blocks
    }
}

/// Whether a class is packed by lifetime.
pub fn is_packed(class: &Class) -> bool {
    match class {
        Class::Carry | Class::Stack | Class::Sum | Class::Received | Class::Staging | Class::Temporary => {
            true
        }
        Class::Param { .. }
        | Class::State { .. }
        | Class::Scalar { .. }
        | Class::Input { .. }
        | Class::Output { .. } => false,
    }
}

/// Finds the pairs.
pub fn share(fused: &Fused, lives: &Lives) -> Shared {
    let mut shared = Shared { owner: (0..fused.buffers.len() as u32).map(BufferId).collect() };
    let mut time = 0;
    walk(fused, &fused.body, lives, &mut time, &mut shared);
    shared
}

fn walk(fused: &Fused, items: &[Item], lives: &Lives, time: &mut usize, shared: &mut Shared) {
    for item in items {
        match item {
            Item::Group(id) => {
                share_in(fused, fused.group(*id), lives, *time, shared);
                *time += 1;
            }
            Item::Start(_) | Item::Done(_) | Item::Turned { .. } => *time += 1,
            Item::Loop { body, .. } => walk(fused, body, lives, time, shared),
        }
    }
}

fn share_in(fused: &Fused, group: &Group, lives: &Lives, now: usize, shared: &mut Shared) {
    let Kind::Loops { paired: None, reads, .. } = &group.kind else { return };
    let mut taken: Vec<BufferId> = group.writes.iter().map(|w| w.view.buffer).collect();
    for write in group.writes.iter().filter(|w| !w.accumulate) {
        let out = write.view.buffer;
        let starts_here = lives.of[out.0 as usize].is_some_and(|l| l.from == now);
        if !starts_here || !whole_temporary(fused, &write.view) {
            continue;
        }
        let found = reads.iter().find_map(|v| {
            let view = fused.views.get(v)?;
            let ends_here = lives.of[view.buffer.0 as usize].is_some_and(|l| l.to == now);
            let once =
                reads.iter().filter(|r| fused.views.get(r).is_some_and(|x| x.buffer == view.buffer)).count()
                    == 1;
            (ends_here
                && once
                && !taken.contains(&view.buffer)
                && whole_temporary(fused, view)
                && same_shape(fused, view, &write.view))
            .then_some(view.buffer)
        });
        if let Some(operand) = found {
            taken.push(operand);
            let owner = shared.owner(operand);
            for o in &mut shared.owner {
                if *o == out {
                    *o = owner;
                }
            }
        }
    }
}

fn whole_temporary(fused: &Fused, view: &View) -> bool {
    let buffer = fused.buffer(view.buffer);
    matches!(buffer.class, Class::Temporary | Class::Received)
        && buffer.ring.is_none()
        && view.slots.is_empty()
        && view.numel() == buffer.numel()
}

/// The same axes under the same names in the same physical order, of one element type, made in one region.
fn same_shape(fused: &Fused, a: &View, b: &View) -> bool {
    let (x, y) = (fused.buffer(a.buffer), fused.buffer(b.buffer));
    x.dtype == y.dtype && x.space == y.space && x.home == y.home && a.physical_order(x) == b.physical_order(y)
}
