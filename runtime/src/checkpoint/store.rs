//! The folder of checkpoints: which steps are there, and all renaming and deleting.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

const PREFIX: &str = "step-";
const WRITING: &str = ".tmp-write-";
const DELETING: &str = ".tmp-delete-";

/// A checkpoint folder.
pub struct Store {
    folder: PathBuf,
    /// Holds the lock of a writer until dropped.
    _lock: Option<File>,
}

impl Store {
    /// Looks at a folder without changing it; it need not exist.
    pub fn read_only(folder: &Path) -> Store {
        Store { folder: folder.to_owned(), _lock: None }
    }

    /// Makes the folder if needed, takes its lock, and removes what an interrupted run left half written.
    ///
    /// # Errors
    /// The folder cannot be made, or another training holds it.
    pub fn for_writing(folder: &Path) -> Result<Store, Failure> {
        std::fs::create_dir_all(folder).map_err(|e| Failure::io("make folder", folder, e))?;
        let lock = folder.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(|e| Failure::io("write", &lock, e))?;
        // SAFETY: a system call on an open descriptor.
        let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
        // Some network file systems have no locks; then nothing can be said about others.
        if !locked && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock {
            return Err(Failure::failed(format!(
                "error: another training is using {}\nGive this one a folder of its own with --out.",
                folder.display()
            )));
        }
        let store = Store { folder: folder.to_owned(), _lock: Some(file) };
        for name in store.names()?.iter().filter(|n| n.starts_with(WRITING) || n.starts_with(DELETING)) {
            let path = folder.join(name);
            std::fs::remove_dir_all(&path).map_err(|e| Failure::io("remove", &path, e))?;
        }
        Ok(store)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps with a checkpoint, newest first. Whether they are valid shows when they are loaded.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, Failure> {
        let mut steps: Vec<u64> = self
            .names()?
            .iter()
            .filter_map(|name| name.strip_prefix(PREFIX).and_then(|digits| digits.parse().ok()))
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Folder of one checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:08}"))
    }

    /// Folder in which the checkpoint of `step` is written.
    pub fn unfinished(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{WRITING}{step:08}"))
    }

    /// Makes [`Store::unfinished`] an empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(&self, step: u64) -> Result<(), Failure> {
        let path = self.unfinished(step);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|e| Failure::io("remove", &path, e))?;
        }
        std::fs::create_dir(&path).map_err(|e| Failure::io("make folder", &path, e))
    }

    /// Gives a completely written folder its name, replacing an older checkpoint of that step.
    ///
    /// # Errors
    /// It cannot be synced or renamed.
    pub fn commit(&self, written: &Path, step: u64) -> Result<(), Failure> {
        sync_folder(written)?;
        self.remove(step)?;
        rename(written, &self.path(step))?;
        sync_folder(&self.folder)
    }

    /// Deletes a checkpoint. It loses its name first, so that no half-deleted one is ever found.
    ///
    /// # Errors
    /// It cannot be renamed or deleted.
    pub fn remove(&self, step: u64) -> Result<(), Failure> {
        let path = self.path(step);
        if !path.exists() {
            return Ok(());
        }
        let doomed = self.folder.join(format!("{DELETING}{step:08}"));
        rename(&path, &doomed)?;
        std::fs::remove_dir_all(&doomed).map_err(|e| Failure::io("remove", &doomed, e))
    }

    /// Deletes all checkpoints but the newest `keep` (0 = all) and those at multiples of `keep_every` (0 = none).
    ///
    /// # Errors
    /// As for [`Store::remove`].
    pub fn prune(&self, keep: u64, keep_every: u64) -> Result<(), Failure> {
        if keep == 0 {
            return Ok(());
        }
        for step in self.steps()?.into_iter().skip(keep as usize) {
            if keep_every == 0 || !step.is_multiple_of(keep_every) {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    /// Sets aside all checkpoints after `step`: the run that starts there writes another history, and a later start must
    /// not pick up the old one. Returns their steps.
    ///
    /// # Errors
    /// One cannot be renamed.
    pub fn supersede_after(&self, step: Option<u64>) -> Result<Vec<u64>, Failure> {
        let later: Vec<u64> =
            self.steps()?.into_iter().filter(|s| step.is_none_or(|step| *s > step)).collect();
        for &old in &later {
            let name = |n: u32| {
                let suffix = if n == 0 { String::new() } else { format!(".{n}") };
                self.folder.join(format!("superseded-{PREFIX}{old:08}{suffix}"))
            };
            let free = (0..).map(name).find(|path| !path.exists());
            if let Some(free) = free {
                rename(&self.path(old), &free)?;
            }
        }
        Ok(later)
    }

    fn names(&self) -> Result<Vec<String>, Failure> {
        let failed = |e: std::io::Error| Failure::io("read folder", &self.folder, e);
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Makes names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), Failure> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Failure::io("sync", folder, e))
}

fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::rename(from, to).map_err(|e| Failure::io("rename to", to, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(steps: &[u64]) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::for_writing(root.path()).unwrap();
        for &step in steps {
            std::fs::create_dir(store.path(step)).unwrap();
        }
        (root, store)
    }

    #[test]
    fn prune_keeps_the_newest_and_the_milestones() {
        let (_root, store) = store(&[10, 20, 30, 40, 50, 60]);
        store.prune(2, 20).unwrap();
        assert_eq!(store.steps().unwrap(), [60, 50, 40, 20]);
        store.prune(0, 0).unwrap();
        assert_eq!(store.steps().unwrap().len(), 4);
        store.prune(1, 0).unwrap();
        assert_eq!(store.steps().unwrap(), [60]);
    }

    #[test]
    fn for_writing_removes_leftovers_and_locks() {
        let (root, store) = store(&[10]);
        store.begin(20).unwrap();
        let unfinished = store.unfinished(20);
        std::fs::write(unfinished.join("00001.safetensors"), "half").unwrap();
        let refused = Store::for_writing(root.path()).err().unwrap();
        assert!(refused.message.contains("another training"), "{refused}");
        drop(store);
        let store = Store::for_writing(root.path()).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(store.steps().unwrap(), [10]);
    }

    #[test]
    fn supersede_after_hides_another_history() {
        let (_root, store) = store(&[10, 20, 30]);
        assert_eq!(store.supersede_after(Some(10)).unwrap(), [30, 20]);
        assert_eq!(store.steps().unwrap(), [10]);
        std::fs::create_dir(store.path(20)).unwrap();
        assert_eq!(store.supersede_after(None).unwrap(), [20, 10]);
        assert!(store.steps().unwrap().is_empty());
        assert!(store.folder().join("superseded-step-00000020.1").is_dir());
    }
}
