//! The little of ELF that tests ask about: does this executable need a loader?

/// Whether the executable runs without a program interpreter, that is, without a loader and shared libraries.
///
/// # Panics
/// `bytes` is no 64-bit little-endian ELF file.
pub fn is_static(bytes: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file");
    let table = u64_at(bytes, 32) as usize;
    let (size, count) = (u16_at(bytes, 54) as usize, u16_at(bytes, 56) as usize);
    (0..count).map(|i| u32_at(bytes, table + i * size)).all(|kind| kind != INTERPRETER)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
