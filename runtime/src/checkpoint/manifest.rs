//! `manifest.json`: what a checkpoint says about itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Version of the layout of a checkpoint folder.
pub const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const MANIFEST_HASH: &str = "manifest.blake3";

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
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

/// One file of tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Name in the folder.
    pub file: String,
    /// Length.
    pub bytes: u64,
    /// Hash of the whole file, in hex.
    pub blake3: String,
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
        if manifest.format != FORMAT {
            return Err(format!("it has format {}, this binary reads format {FORMAT}", manifest.format));
        }
        Ok(manifest)
    }
}
