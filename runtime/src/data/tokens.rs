//! Tokens in files: raw bytes, or shards of 16- or 32-bit ids, seen as one long sequence.
//!
//! Shards are little-endian. The header, if there is one, is that of llm.c: 256 32-bit words, word 0 the magic number,
//! word 1 the version, word 2 the number of tokens.

use std::path::{Path, PathBuf};

use super::files::FileBytes;
use crate::failure::Failure;

const HEADER_BYTES: usize = 1024;
/// llm.c, GPT-2 tokens: version 1, 16 bits each.
const MAGIC_U16: u32 = 20_240_520;
/// llm.c, Llama 3 tokens: version 7, 32 bits each.
const MAGIC_U32: u32 = 20_240_801;

/// Bytes per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The token is the byte.
    One = 1,
    /// Unsigned 16-bit.
    Two = 2,
    /// Unsigned 32-bit.
    Four = 4,
}

/// One file of tokens.
pub struct TokenFile {
    path: PathBuf,
    bytes: FileBytes,
    /// Bytes before the first token.
    header: usize,
    width: Width,
    count: u64,
}

impl TokenFile {
    /// A file that is tokens from its first byte to its last.
    ///
    /// # Errors
    /// Its length is not a multiple of the width.
    pub fn whole(path: &Path, bytes: FileBytes, width: Width) -> Result<TokenFile, Failure> {
        if !bytes.len().is_multiple_of(width as usize) {
            return Err(Failure::failed(format!(
                "error: {} is not a file of {}-byte tokens: its length is {} bytes",
                path.display(),
                width as usize,
                bytes.len()
            )));
        }
        let count = (bytes.len() / width as usize) as u64;
        Ok(TokenFile { path: path.to_owned(), bytes, header: 0, width, count })
    }

    /// A shard with an llm.c header, which then fixes the width, or without one.
    ///
    /// # Errors
    /// The header promises another number of tokens than the file holds, or a version this reader does not know.
    pub fn shard(path: &Path, bytes: FileBytes, headerless: Width) -> Result<TokenFile, Failure> {
        let (width, version) = match word(&bytes, 0) {
            Some(MAGIC_U16) if bytes.len() >= HEADER_BYTES => (Width::Two, 1),
            Some(MAGIC_U32) if bytes.len() >= HEADER_BYTES => (Width::Four, 7),
            _ => return TokenFile::whole(path, bytes, headerless),
        };
        let (found_version, promised) =
            (word(&bytes, 1).unwrap_or(0), u64::from(word(&bytes, 2).unwrap_or(0)));
        if found_version != version {
            return Err(Failure::failed(format!(
                "error: {} has a token header of version {found_version}; version {version} is supported",
                path.display()
            )));
        }
        let held = (bytes.len() - HEADER_BYTES) as u64;
        if promised * width as u64 != held {
            return Err(Failure::failed(format!(
                "error: {} is cut short or overlong: its header promises {promised} tokens of {} bytes, {held} bytes follow",
                path.display(),
                width as u64
            )));
        }
        Ok(TokenFile { path: path.to_owned(), bytes, header: HEADER_BYTES, width, count: promised })
    }

    /// Byte offset of token `index` in the file.
    fn offset(&self, index: u64) -> usize {
        self.header + index as usize * self.width as usize
    }

    /// Copies tokens `first..` into `out`; the file holds them all.
    fn read(&self, first: u64, out: &mut [u32]) {
        let from = self.offset(first);
        let bytes = &self.bytes[from..from + out.len() * self.width as usize];
        match self.width {
            Width::One => {
                for (token, &byte) in out.iter_mut().zip(bytes) {
                    *token = u32::from(byte);
                }
            }
            Width::Two => {
                for (token, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *token = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
                }
            }
            Width::Four => {
                for (token, four) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *token = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                }
            }
        }
    }
}

/// 32-bit word `index` of a file.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let four = bytes.get(index * 4..index * 4 + 4)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// Files read as one sequence, in the given order.
pub struct Tokens {
    files: Vec<TokenFile>,
    /// Position of the first token of each file.
    starts: Vec<u64>,
    count: u64,
}

impl Tokens {
    /// Joins files; empty ones are left out.
    pub fn new(files: Vec<TokenFile>) -> Tokens {
        let files: Vec<TokenFile> = files.into_iter().filter(|f| f.count > 0).collect();
        let mut count = 0;
        let mut starts = Vec::with_capacity(files.len());
        for file in &files {
            starts.push(count);
            count += file.count;
        }
        Tokens { files, starts, count }
    }

    /// Number of tokens.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether every token is a byte.
    pub fn is_bytes(&self) -> bool {
        self.files.iter().all(|f| f.width == Width::One)
    }

    /// Copies the tokens from `position` on into `out`; `position + out.len()` must not exceed the count.
    pub fn read(&self, position: u64, out: &mut [u32]) {
        let mut position = position;
        let mut rest = out;
        let mut index = self.file_of(position);
        while !rest.is_empty() {
            let Some(file) = self.files.get(index) else { return };
            let first = position - self.starts[index];
            let take = rest.len().min((file.count - first) as usize);
            let (now, later) = rest.split_at_mut(take);
            file.read(first, now);
            rest = later;
            position += take as u64;
            index += 1;
        }
    }

    /// `FILE, token T (byte B)` of a position.
    pub fn locate(&self, position: u64) -> String {
        let index = self.file_of(position);
        match self.files.get(index) {
            Some(file) => {
                let token = position - self.starts[index];
                format!("{}, token {token} (byte {})", file.path.display(), file.offset(token))
            }
            None => format!("token {position}"),
        }
    }

    /// Every file must hold a whole number of records.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn require_whole_records(&self, record: u64) -> Result<(), Failure> {
        match self.files.iter().find(|f| !f.count.is_multiple_of(record)) {
            None => Ok(()),
            Some(file) => Err(Failure::failed(format!(
                "error: {} does not hold whole records: {} tokens, {record} (seq + 1) per record",
                file.path.display(),
                file.count
            ))),
        }
    }

    fn file_of(&self, position: u64) -> usize {
        self.starts.partition_point(|&start| start <= position).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: u32, version: u32, count: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [magic, version, count].iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }

    fn shard(bytes: Vec<u8>, width: Width) -> Result<TokenFile, Failure> {
        TokenFile::shard(Path::new("x.bin"), bytes.into(), width)
    }

    fn all(file: TokenFile) -> Vec<u32> {
        let tokens = Tokens::new(vec![file]);
        let mut out = vec![0; tokens.count() as usize];
        tokens.read(0, &mut out);
        out
    }

    #[test]
    fn shard_reads_both_headers_and_none() {
        let mut two = header(MAGIC_U16, 1, 3);
        two.extend([1u16, 2, 65535].iter().flat_map(|t| t.to_le_bytes()));
        assert_eq!(all(shard(two, Width::Four).unwrap()), [1, 2, 65535]);
        let mut four = header(MAGIC_U32, 7, 2);
        four.extend([70_000u32, 9].iter().flat_map(|t| t.to_le_bytes()));
        assert_eq!(all(shard(four, Width::Two).unwrap()), [70_000, 9]);
        assert_eq!(all(shard(vec![1, 0, 2, 0], Width::Two).unwrap()), [1, 2]);
        assert_eq!(all(shard(vec![1, 0, 2, 0], Width::Four).unwrap()), [0x0002_0001]);
    }

    #[test]
    fn shard_refuses_wrong_counts_versions_and_lengths() {
        let message = |bytes| shard(bytes, Width::Two).err().unwrap().message;
        assert!(message(header(MAGIC_U16, 1, 1)).contains("promises 1 tokens of 2 bytes, 0 bytes follow"));
        assert!(message(header(MAGIC_U16, 2, 0)).contains("version 2"));
        assert!(message(vec![1, 2, 3]).contains("3 bytes"));
    }

    #[test]
    fn read_crosses_files_and_locate_names_them() {
        let file = |name: &str, bytes: &[u8]| {
            TokenFile::whole(Path::new(name), bytes.to_vec().into(), Width::One).unwrap()
        };
        let tokens =
            Tokens::new(vec![file("a", b"he"), file("empty", b""), file("b", b"llo"), file("c", b"!")]);
        let mut out = [0; 5];
        tokens.read(1, &mut out);
        assert_eq!(out.map(|t| t as u8 as char), ['e', 'l', 'l', 'o', '!']);
        assert_eq!(tokens.locate(3), "b, token 1 (byte 1)");
        assert!(
            tokens.require_whole_records(2).unwrap_err().message.contains(" b does not hold whole records")
        );
    }
}
