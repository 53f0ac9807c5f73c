//! The object cache: files named by the hash of what they were made from, written atomically.
//!
//! An entry is the blake3 hash of the object, then the object; a torn or altered entry is not found. Nothing is ever
//! changed in place, so any number of builds may share a cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Hash of the sources of the code generator: another version never finds this one's objects.
pub const CODEGEN_VERSION: &str = env!("MLC_CODEGEN_VERSION");

const HASH_BYTES: usize = 32;

/// A folder of objects, or nothing.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// A cache in this folder, made on first use; `None` keeps nothing.
    pub fn new(folder: Option<PathBuf>) -> Cache {
        Cache { folder }
    }

    /// `$MLC_CACHE`, else `$XDG_CACHE_HOME/mlc`, else `~/.cache/mlc`, else nothing. An empty `$MLC_CACHE` is nothing.
    pub fn default_folder() -> Option<PathBuf> {
        if let Some(folder) = std::env::var_os("MLC_CACHE") {
            return Some(PathBuf::from(folder)).filter(|f| !f.as_os_str().is_empty());
        }
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        base.map(|b| b.join("mlc"))
    }

    /// The folder, if objects are kept.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The key of an object: a hash of the code generator's version and of the parts.
    pub fn key(parts: &[&[u8]]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(CODEGEN_VERSION.as_bytes());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex().to_string()
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let (first, rest) = key.split_at_checked(2)?;
        Some(self.folder.as_ref()?.join("objects").join(first).join(rest))
    }

    /// The object of a key, if it is there and whole.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key)?).ok()?;
        if bytes.len() < HASH_BYTES {
            return None;
        }
        let object = bytes.split_off(HASH_BYTES);
        (blake3::hash(&object).as_bytes()[..] == bytes[..]).then_some(object)
    }

    /// Keeps an object. A cache that cannot be written to is no error: the next build is slower.
    pub fn put(&self, key: &str, object: &[u8]) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(path) = self.path(key) else { return };
        let Some(folder) = path.parent() else { return };
        if fs::create_dir_all(folder).is_err() {
            return;
        }
        let temporary =
            folder.join(format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut bytes = blake3::hash(object).as_bytes().to_vec();
        bytes.extend_from_slice(object);
        if fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mlc-cache-test-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn cache_gives_back_what_was_put() {
        let cache = Cache::new(Some(folder("round")));
        let key = Cache::key(&[b"kernel", b"target"]);
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"object");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"object"[..]));
        fs::remove_dir_all(cache.folder().unwrap()).unwrap();
    }

    #[test]
    fn cache_does_not_find_a_torn_entry() {
        let cache = Cache::new(Some(folder("torn")));
        let key = Cache::key(&[b"kernel"]);
        cache.put(&key, b"a longer object");
        let path = cache.path(&key).unwrap();
        let bytes = fs::read(&path).unwrap();
        for len in [0, 31, 32, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(cache.get(&key), None, "{len} bytes");
        }
        fs::remove_dir_all(cache.folder().unwrap()).unwrap();
    }

    #[test]
    fn cache_key_keeps_parts_apart() {
        assert_ne!(Cache::key(&[b"ab", b"c"]), Cache::key(&[b"a", b"bc"]));
    }
}
