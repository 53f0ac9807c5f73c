//! Which part of which tensor the files of a checkpoint hold.
//!
//! Every rank writes the parts it owns, so that the rank a file is from and how a tensor was split say what of the tensor is in
//! the file. That is as little to record for many ranks as for few.

use std::collections::BTreeMap;

use super::manifest::{Manifest, SplitTensor};
use crate::abi::MeshAxisInfo;
use crate::mesh::Mesh;
use crate::shard::{self, Overlap, Part};

/// The layout of one checkpoint.
pub struct Layout<'m> {
    axes: &'m [MeshAxisInfo],
    mesh: Mesh,
    /// By logical name; what is not here is whole, in a file of rank 0.
    split: BTreeMap<String, &'m SplitTensor>,
}

/// Elements that are in the file of one rank and wanted here.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Whose file.
    pub rank: u64,
    /// What of the tensor is in it.
    pub part: Part,
    /// Where the wanted elements lie, in the file and here.
    pub overlap: Overlap,
}

impl<'m> Layout<'m> {
    /// The layout a manifest describes.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn of(manifest: &'m Manifest) -> Result<Layout<'m>, String> {
        let ranks = manifest.mesh.iter().try_fold(1u64, |ranks, axis| ranks.checked_mul(axis.size));
        if ranks.is_none_or(|ranks| ranks == 0) {
            return Err("its mesh has an impossible number of ranks".to_owned());
        }
        let mut split = BTreeMap::new();
        for tensor in &manifest.split {
            shard::check(&tensor.shape, &tensor.split, &manifest.mesh)
                .map_err(|why| format!("it describes {} wrongly: {why}", tensor.path))?;
            for layer in 0..tensor.layers.unwrap_or(1) {
                split.insert(tensor.path.replace("{i}", &layer.to_string()), tensor);
            }
        }
        Ok(Layout { axes: &manifest.mesh, mesh: Mesh::new(&manifest.mesh), split })
    }

    /// How tensor `name` was split; `None` if it was not.
    pub fn split(&self, name: &str) -> Option<&'m SplitTensor> {
        self.split.get(name).copied()
    }

    /// The pieces that together are `wanted`, of a tensor of `shape` that was split like `split`.
    pub fn pieces(&self, shape: &[u64], split: Option<&SplitTensor>, wanted: &Part) -> Vec<Piece> {
        let split = split.map_or(&[][..], |tensor| &tensor.split);
        let over: Vec<u32> = split.iter().flat_map(|cut| cut.mesh.iter().copied()).collect();
        let owners = self.mesh.group(0, &over);
        let piece = |rank: usize| {
            let part = Part::of(shape, split, self.axes, &self.mesh.coordinates(rank));
            let overlap = Overlap::of(&part, wanted)?;
            Some(Piece { rank: rank as u64, part, overlap })
        };
        owners.into_iter().filter_map(piece).collect()
    }
}
