//! The bytes of a file: mapped when it is large, read when it is small.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use memmap2::Mmap;

use crate::failure::Failure;

/// Below this a file is read: a corpus may be many thousand small files, and mappings are a limited resource.
const MAP_FROM_BYTES: u64 = 1 << 20;

/// The content of one file.
pub enum FileBytes {
    /// In memory.
    Read(Vec<u8>),
    /// Mapped. A file that shrinks while it is mapped kills the process; data files are taken as fixed.
    Mapped(Mmap),
}

impl FileBytes {
    /// Opens a regular file, or reads a pipe to its end.
    ///
    /// # Errors
    /// It cannot be read, or is a directory or a device: reading one may never end.
    pub fn open(path: &Path) -> Result<FileBytes, Failure> {
        let failed = |e: std::io::Error| Failure::io("read", path, e);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
            return Err(Failure::failed(format!("error: {} is a device, not a file", path.display())));
        }
        let length = metadata.len();
        if length < MAP_FROM_BYTES {
            return std::fs::read(path).map(FileBytes::Read).map_err(failed);
        }
        // SAFETY: the mapping is read-only and private to us; see `Mapped` for what happens when the file shrinks.
        unsafe { Mmap::map(&file) }.map(FileBytes::Mapped).map_err(failed)
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> FileBytes {
        FileBytes::Read(bytes)
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Read(bytes) => bytes,
            FileBytes::Mapped(map) => map,
        }
    }
}
