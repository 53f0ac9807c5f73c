//! Finds and loads a checkpoint.
//!
//! Nothing is copied before all ranks have found it valid (see [`reader`](super::reader)), so that a damaged checkpoint never
//! leaves a half-loaded model, and all ranks load the same one.

use std::path::Path;

use super::manifest::Manifest;
use super::reader::{Checkpoint, Share};
use super::store::Store;
use crate::failure::Failure;
use crate::rank::Rank;
use crate::settings::Resume;

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Loaded {
    /// Its manifest.
    pub manifest: Manifest,
    /// What the person at the keyboard should know: newer checkpoints skipped and why, a differing program.
    pub notes: Vec<String>,
}

/// Loads the checkpoint `resume` asks for into the rank; `None` when there is none to load and none was demanded.
/// `otherwise` says what the command can do without a valid one. All ranks call it, and all get the same.
///
/// # Errors
/// The demanded checkpoint is missing or not valid, or there are checkpoints and none is valid.
pub fn load(
    rank: &mut Rank,
    store: &Store,
    resume: Resume,
    otherwise: &str,
) -> Result<Option<Loaded>, Failure> {
    let steps = match resume {
        Resume::Never => return Ok(None),
        Resume::Auto => steps(rank, store)?,
        Resume::Step(step) => vec![step],
    };
    let mut notes = Vec::new();
    for &step in &steps {
        let path = store.path(step);
        match load_one(rank, &path, step)? {
            Ok(manifest) => {
                if manifest.fingerprint != rank.program.info.fingerprint {
                    notes.push(format!(
                        "note: {} was written by another build of the program; its tensors are the same",
                        path.display()
                    ));
                }
                return Ok(Some(Loaded { manifest, notes }));
            }
            Err(why) => notes.push(format!("note: skipped {}: {why}", path.display())),
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    let advice = match resume {
        Resume::Step(_) => available(&self::steps(rank, store)?),
        Resume::Auto | Resume::Never => otherwise.to_owned(),
    };
    let reasons: Vec<String> = notes.iter().map(|n| n.replacen("note: skipped ", "  ", 1)).collect();
    Err(Failure::failed(format!(
        "error: no valid checkpoint in {}\n{}\n{advice}",
        store.folder().display(),
        reasons.join("\n")
    )))
}

/// The steps that rank 0 finds in the store, newest first: others may see a shared folder later.
fn steps(rank: &Rank, store: &Store) -> Result<Vec<u64>, Failure> {
    let world = rank.world();
    let mine = if world.is_first() { store.steps()? } else { Vec::new() };
    let bytes: Vec<u8> = mine.iter().flat_map(|step| step.to_le_bytes()).collect();
    let all = world.broadcast(0, &bytes)?;
    Ok(all.as_chunks::<8>().0.iter().map(|step| u64::from_le_bytes(*step)).collect())
}

fn available(steps: &[u64]) -> String {
    let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
    format!(
        "There are checkpoints of these steps: {}",
        if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
    )
}

/// Loads one checkpoint, if all ranks find it valid; else the reason of the first that does not.
fn load_one(rank: &mut Rank, folder: &Path, step: u64) -> Result<Result<Manifest, String>, Failure> {
    let (program, world) = (rank.program, rank.world());
    let share = Share { rank: world.rank(), ranks: world.ranks() };
    let part = |tensor: &crate::abi::TensorInfo| rank.part(&tensor.shape, &tensor.split);
    let opened = Checkpoint::open(rank.pool(), program, folder, step, share, part);
    let reasons = world.all_gather(opened.as_ref().err().map_or(&[][..], |why| why.as_bytes()))?;
    if let Some(why) = reasons.iter().find(|why| !why.is_empty()) {
        return Ok(Err(String::from_utf8_lossy(why).into_owned()));
    }
    let targets: Vec<usize> =
        program.logical_tensors().iter().map(|t| rank.address(t.place) as usize).collect();
    Ok(opened.map(|checkpoint| {
        // SAFETY: these are the buffers of the parts asked for above, disjoint and inside their spaces, and the rank is borrowed
        // exclusively.
        unsafe { checkpoint.copy(rank.pool(), &targets) };
        checkpoint.manifest
    }))
}
