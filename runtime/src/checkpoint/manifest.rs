//! `manifest.json`: what a checkpoint says about itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::abi::{AxisSplit, MeshAxisInfo};

/// Version of the layout of a checkpoint folder that one rank wrote: all tensors are whole.
pub const FORMAT: u32 = 1;
/// Version of one that several ranks wrote: it says which tensors are split, and each file is from one rank.
pub const FORMAT_OF_RANKS: u32 = 2;
const MANIFEST: &str = "manifest.json";
const MANIFEST_HASH: &str = "manifest.blake3";

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] or [`FORMAT_OF_RANKS`].
    pub format: u32,
    /// Version of the runtime that wrote it.
    pub mlc: String,
    /// Model name.
    pub model: String,
    /// Fingerprint of the program that wrote it.
    pub fingerprint: String,
    /// Steps done.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Where the data stood.
    pub data: DataPosition,
    /// Run-time keys and their values.
    pub keys: BTreeMap<String, String>,
    /// The expanded spec.
    pub spec: String,
    /// The mesh of the ranks that wrote it; empty for one rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mesh: Vec<MeshAxisInfo>,
    /// The tensors that were split over ranks. A file of a rank holds the parts of them that the rank owned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<SplitTensor>,
    /// The other files.
    pub shards: Vec<ShardFile>,
}

/// Position in the data. Informative: the next sample follows from the step alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// The source as the command line names it.
    pub source: String,
    /// Tokens it held; 0 when synthetic.
    pub tokens: u64,
    /// Samples drawn.
    pub samples: u64,
}

/// A tensor that was split, or one that is repeated over layers and every layer's slice was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitTensor {
    /// As [`TensorInfo::path`](crate::abi::TensorInfo::path).
    pub path: String,
    /// Number of layers, or `None` outside a repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<u64>,
    /// Axis sizes of all ranks together.
    pub shape: Vec<u64>,
    /// How it was split over [`Manifest::mesh`].
    pub split: Vec<AxisSplit>,
}

/// One file of tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Name in the folder.
    pub file: String,
    /// Length.
    pub bytes: u64,
    /// Hash of the whole file, in hex.
    pub blake3: String,
    /// The rank that wrote it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rank: u64,
}

fn is_zero(rank: &u64) -> bool {
    *rank == 0
}

impl Manifest {
    /// The texts of `manifest.json` and `manifest.blake3`, with their names.
    pub fn files(&self) -> [(&'static str, String); 2] {
        // A tree of strings and numbers always has a JSON form.
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        let hash = format!("{}\n", blake3::hash(text.as_bytes()).to_hex());
        [(MANIFEST, text), (MANIFEST_HASH, hash)]
    }

    /// Reads and checks the manifest of a checkpoint folder.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn read(folder: &Path) -> Result<Manifest, String> {
        let text = |name: &str| {
            std::fs::read_to_string(folder.join(name)).map_err(|e| format!("{name} cannot be read: {e}"))
        };
        let (manifest, hash) = (text(MANIFEST)?, text(MANIFEST_HASH)?);
        if blake3::hash(manifest.as_bytes()).to_hex().as_str() != hash.trim() {
            return Err(format!("{MANIFEST} does not match its hash"));
        }
        let manifest: Manifest =
            serde_json::from_str(&manifest).map_err(|e| format!("{MANIFEST} does not parse: {e}"))?;
        if ![FORMAT, FORMAT_OF_RANKS].contains(&manifest.format) {
            return Err(format!(
                "it has format {}, this binary reads formats {FORMAT} and {FORMAT_OF_RANKS}",
                manifest.format
            ));
        }
        Ok(manifest)
    }
}
