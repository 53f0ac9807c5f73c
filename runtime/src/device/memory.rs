//! Memory of one space: a single anonymous mapping, aligned for huge pages, that lives as long as the rank.

use crate::abi::SpaceInfo;
use crate::device::pool::Pool;
use crate::failure::Failure;

/// Size and alignment of a huge page of x86-64.
const HUGE_PAGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// Refuses what this machine or its control group can never give, before the kernel would end the process in the middle
/// of a step. Where the system does not tell its limits (no `/proc`), nothing is refused.
///
/// # Errors
/// Exit code 4.
pub fn check_limits(bytes: u64) -> Result<(), Failure> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let installed = installed_bytes(&read("/proc/meminfo")).map(|limit| (limit, "this machine has"));
    let group = read("/sys/fs/cgroup/memory.max")
        .trim()
        .parse()
        .ok()
        .map(|limit| (limit, "its control group allows"));
    match [installed, group].into_iter().flatten().min() {
        Some((limit, who)) if bytes > limit => Err(Failure::machine(format!(
            "error: this program needs {bytes} bytes of memory, {who} {limit}\nUse a smaller batch or microbatch, or a \
             larger machine."
        ))),
        _ => Ok(()),
    }
}

/// Memory and swap of a machine, from the text of `/proc/meminfo`.
fn installed_bytes(meminfo: &str) -> Option<u64> {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kilobytes("MemTotal:")? + kilobytes("SwapTotal:").unwrap_or(0)) * 1024)
}

/// One memory space. Its content is shared with generated code and with all threads, so that only raw pointers come out.
pub struct Memory {
    mapping: *mut u8,
    mapped_bytes: usize,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that belongs to no thread; who writes where is decided by the users of `base`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Reserves a space. All bytes are zero.
    ///
    /// # Errors
    /// Exit code 4 when the machine does not grant the memory.
    pub fn reserve(space: &SpaceInfo) -> Result<Memory, Failure> {
        let refused = |why: String| {
            Failure::machine(format!(
                "error: cannot reserve {} bytes of memory for the `{}` space: {why}",
                space.bytes, space.name
            ))
        };
        let bytes = usize::try_from(space.bytes).map_err(|e| refused(e.to_string()))?.max(1);
        let mapped_bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .and_then(|b| b.checked_add(HUGE_PAGE_BYTES))
            .ok_or_else(|| refused("more than the address space".to_owned()))?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(refused(std::io::Error::last_os_error().to_string()));
        }
        let mapping = mapping.cast::<u8>();
        // SAFETY: the mapping is a huge page longer than needed, so that the aligned range lies inside it.
        let base = unsafe { mapping.add(mapping.align_offset(HUGE_PAGE_BYTES)) };
        // SAFETY: the range belongs to the mapping above. Advice may be refused (no huge pages); nothing depends on it.
        unsafe { libc::madvise(base.cast(), bytes.next_multiple_of(PAGE_BYTES), libc::MADV_HUGEPAGE) };
        Ok(Memory { mapping, mapped_bytes, base, bytes })
    }

    /// Has the threads of `pool` touch each its part, so that pages lie near the cores that will use them and the step
    /// takes no page faults.
    pub fn first_touch(&self, pool: &Pool) {
        let pages = self.bytes.div_ceil(HUGE_PAGE_BYTES);
        let base = self.base as usize;
        let bytes = self.bytes;
        pool.run(pages as i64, &|begin, end, _thread| {
            let stop = bytes.min(end as usize * HUGE_PAGE_BYTES);
            for offset in (begin as usize * HUGE_PAGE_BYTES..stop).step_by(PAGE_BYTES) {
                // SAFETY: `offset` lies inside the mapping, and each huge page belongs to one thread.
                unsafe { std::ptr::write_volatile((base + offset) as *mut u8, 0) };
            }
        });
    }

    /// First byte, aligned to 2 MiB.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `reserve`; the rank that handed out pointers is going away.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_gives_aligned_zeroed_memory() {
        let space = SpaceInfo { name: "device".to_owned(), bytes: (5 << 20) + 3 };
        let memory = Memory::reserve(&space).unwrap();
        memory.first_touch(&Pool::new(2, false).unwrap());
        assert_eq!(memory.base() as usize % HUGE_PAGE_BYTES, 0);
        // SAFETY: the space is mapped and nobody else writes it.
        let bytes = unsafe { std::slice::from_raw_parts(memory.base(), memory.bytes()) };
        assert!(bytes.len() == (5 << 20) + 3 && bytes.iter().all(|&b| b == 0));
    }

    #[test]
    fn check_limits_refuses_more_than_is_installed() {
        assert_eq!(
            installed_bytes("MemTotal:   1000 kB\nMemFree: 5 kB\nSwapTotal:  24 kB\n"),
            Some(1024 * 1024)
        );
        assert_eq!(installed_bytes(""), None);
        assert_eq!(check_limits(4096), Ok(()));
        assert!(check_limits(u64::MAX).unwrap_err().message.starts_with("error: this program needs "));
    }

    #[test]
    fn reserve_refuses_what_no_machine_has() {
        let space = SpaceInfo { name: "device".to_owned(), bytes: u64::MAX / 2 };
        let message = Memory::reserve(&space).err().unwrap().message;
        assert!(message.contains("`device` space"), "{message}");
    }
}
