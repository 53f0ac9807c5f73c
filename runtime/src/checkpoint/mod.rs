//! Checkpoints: everything needed to continue a run with the same bits, in files other tools can read.
//!
//! ```text
//! ckpt/
//!   step-00000500/           after 500 steps
//!     manifest.json          what this is: format, model, fingerprint, step, seed, data, keys, spec, files and their hashes
//!     manifest.blake3        hash of manifest.json
//!     00001.safetensors      parameters and optimizer states by logical name, one tensor per layer's slice, about 1 GiB a file
//!     rank-00003-00001.safetensors   of several ranks instead: the parts that rank 3 owns, the lowest of those that hold them
//!   .lock                    held while a training uses the folder
//!   .tmp-write-…, .tmp-delete-…   unfinished; removed at the next start
//!   superseded-step-…        of a history that was abandoned (`--resume never` or an earlier STEP), or damaged
//! ```
//! A checkpoint appears under its name only when it is complete and on disk: its files are written and synced in a
//! folder of another name, which is then renamed. Killing the process at any instant leaves either the whole checkpoint
//! or none. With several ranks the first one makes the folder, all write their files, and the first one adds the
//! manifest and renames when all have. What is in it addresses elements by logical index, so that any layout and any mesh can
//! load it: the manifest says how each tensor was cut into parts, and a rank reads those pieces of them that it holds itself.

pub mod export;
pub mod layout;
pub mod load;
pub mod manifest;
pub mod reader;
pub mod save;
pub mod shard;
pub mod store;
pub mod weights;
