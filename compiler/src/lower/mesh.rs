//! What the runtime must know of the mesh, and of tensors that lie on it.

use crate::fuse::Buffer;
use crate::graph::{Graph, Mesh, Name};
use mlc_codegen::abi::{AxisSplit, MeshAxisInfo};

/// The axes of a mesh; none for one rank.
pub fn axes(mesh: Option<&Mesh>) -> Vec<MeshAxisInfo> {
    let axis = |a: &crate::graph::MeshAxis| MeshAxisInfo {
        name: a.name.to_string(),
        size: a.size,
        over_nodes: a.over_nodes,
    };
    mesh.map_or_else(Vec::new, |mesh| mesh.axes.iter().map(axis).collect())
}

/// Position of a mesh axis.
///
/// # Panics
/// The mesh lacks it, which the graph's verifier has seen to.
pub fn index(mesh: &Mesh, axis: &Name) -> u32 {
    mesh.axes.iter().position(|a| a.name == *axis).expect("an axis of the mesh") as u32
}

/// A tensor of all ranks together.
pub struct Whole {
    /// Size of each axis.
    pub shape: Vec<u64>,
    /// Axes that are split.
    pub split: Vec<AxisSplit>,
}

impl Whole {
    /// What a buffer is a rank's part of, its first `skip` axes apart.
    pub fn of(buffer: &Buffer, skip: usize, graph: &Graph) -> Whole {
        let mesh = &graph.mesh;
        let mut whole = Whole { shape: Vec::new(), split: Vec::new() };
        for (i, axis) in buffer.axes[skip..].iter().enumerate() {
            let split = buffer.sharding.split.get(&axis.name);
            let size = axis.size * split.map_or(1, |s| mesh.ways(&s.over));
            let pad = match graph.padding.get(&axis.name) {
                Some((real, padded)) if *padded == size => padded - real,
                _ => 0,
            };
            whole.shape.push(size - pad);
            if split.is_some() || pad > 0 {
                whole.split.push(AxisSplit {
                    axis: i as u32,
                    mesh: split.iter().flat_map(|s| &s.over).map(|name| index(mesh, name)).collect(),
                    blocks: split.map_or(1, |s| s.blocks),
                    pad,
                });
            }
        }
        whole
    }
}
