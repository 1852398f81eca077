//! Reading and writing another process's memory, and finding out which of its pages hold data.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

/// Page size of the architecture, bytes.
pub const PAGE: u64 = 4096;

/// A process's memory: /proc/PID/mem, bound to the address space it had when it was opened.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of the process whose /proc/PID directory is `process`. Needs ptrace access.
    pub fn open(process: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = rustix::fs::openat(process, "mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Memory { file: File::from(fd) })
    }

    /// A second handle of the same memory.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Memory {
            file: self.file.try_clone()?,
        })
    }

    /// Reads exactly `buffer.len()` bytes at `address`, whatever the page protection.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, address)
    }

    /// Reads as [`Memory::read`] does memory of process `pid` that may be read, in two thirds of the time. Pins the
    /// pages: those that it shares with another process since fork(2) are copied for that (FAULT_FLAG_UNSHARE, Linux
    /// 5.19), and the process grows. See [`Pagemap::are_exclusive`].
    ///
    /// # Errors
    /// As [`Memory::read`], and where the memory is not or no longer that of the process, or may not be read.
    pub fn read_pinned(&self, pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        read_of(pid, address, buffer)?;
        // A number may be another process's by now, and a process another program's: this memory is gone then.
        self.file.read_exact_at(&mut [0], address)
    }

    /// Writes all of `bytes` at `address`, whatever the page protection.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, address)
    }

    /// Reads a 64-bit word.
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut raw = [0u8; 8];
        self.read(address, &mut raw)?;
        Ok(u64::from_ne_bytes(raw))
    }
}

/// Reads exactly `buffer.len()` bytes of memory of process `pid` that may be read (process_vm_readv(2)). Unlike
/// [`Memory::open`] it asks for no right to a file of /proc, only for ptrace access.
///
/// # Errors
/// The process does not exist, may not be traced, or has no such memory.
pub fn read_of(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: buffer.len(),
    };
    // SAFETY: the kernel writes at most iov_len bytes to `buffer`, which `local` describes and which outlives the call;
    // `remote` is an address of the other process that is not used here.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if got as usize != buffer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// What the kernel says of a run of pages: PAGE_IS_* of <linux/fs.h>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PAGE_IS_* bits.
    pub categories: u64,
}

/// The page is tracked by asynchronous write protection.
pub const PAGE_WPALLOWED: u64 = 1;
/// The page was written since it was last write-protected.
pub const PAGE_WRITTEN: u64 = 1 << 1;
/// The page belongs to a file (or shared memory).
pub const PAGE_FILE: u64 = 1 << 2;
/// The page is in memory.
pub const PAGE_PRESENT: u64 = 1 << 3;
/// The page is swapped out.
pub const PAGE_SWAPPED: u64 = 1 << 4;
/// The page is the shared zero page.
pub const PAGE_PFNZERO: u64 = 1 << 5;
/// The page is part of a huge page.
pub const PAGE_HUGE: u64 = 1 << 6;
/// The page is guarded (MADV_GUARD_INSTALL).
pub const PAGE_GUARD: u64 = 1 << 8;

/// A process's page table: /proc/PID/pagemap.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
}

/// `struct pm_scan_arg` of <linux/fs.h>.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// PAGEMAP_SCAN: _IOWR('f', 16, struct pm_scan_arg), Linux 6.7.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

const _: () = assert!(size_of::<ScanArgument>() == 0x60 && size_of::<ScanRegion>() == 24);

/// Which pages [`Pagemap::scan`] reports, and whether it write-protects them again.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanFilter {
    /// All of these bits are set …
    pub all: u64,
    /// … none of these …
    pub none: u64,
    /// … and, if not zero, at least one of these.
    pub any: u64,
    /// Write-protect what is reported, in the same step. `all` must have [`PAGE_WPALLOWED`] in it, so that mappings
    /// that are not tracked are passed over.
    pub protect: bool,
    /// Report only whether pages were written: with `all` set to [`PAGE_WRITTEN`] and nothing else, the kernel has a
    /// way to do that which is ten times as fast.
    pub written_only: bool,
}

impl Pagemap {
    /// Opens the page table of the process whose /proc/PID directory is `process`.
    pub fn open(process: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = rustix::fs::openat(process, "pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Pagemap { fd })
    }

    /// Appends the runs of matching pages in `start..end` to `regions`, in ascending order.
    ///
    /// On kernels without PAGEMAP_SCAN (before 6.7) the page table is read word by word instead; write protection is
    /// then not available ([`io::ErrorKind::Unsupported`]).
    pub fn scan(&self, start: u64, end: u64, filter: ScanFilter, regions: &mut Vec<PageRegion>) -> io::Result<()> {
        /// PM_SCAN_WP_MATCHING. The flag that makes an untracked mapping an error is not used: the kernel would have
        /// protected pages by then without telling which.
        const PROTECT: u64 = 1;
        /// As many as the kernel collects in one go. With room for more it may report where it was when it emptied its
        /// own buffer for the last time, instead of where it stopped (do_pagemap_scan in fs/proc/task_mmu.c).
        const REGIONS: usize = 512;
        let room = REGIONS.min(((end.saturating_sub(start)) / PAGE).max(1) as usize);
        let mut buffer = vec![ScanRegion::default(); room];
        let mut at = start;
        while at < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: if filter.protect { PROTECT } else { 0 },
                start: at,
                end,
                vec: buffer.as_mut_ptr() as u64,
                vec_len: buffer.len() as u64,
                category_inverted: filter.none,
                category_mask: filter.all | filter.none,
                category_anyof_mask: filter.any,
                return_mask: if filter.written_only { PAGE_WRITTEN } else { 0x1ff },
                ..ScanArgument::default()
            };
            // SAFETY: `argument` is a complete pm_scan_arg whose vec/vec_len describe `buffer`; the kernel writes at
            // most vec_len regions and updates the argument, both of which outlive the call.
            let got = unsafe { libc::ioctl(self.fd.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if got < 0 {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOTTY) if !filter.protect => self.scan_words(at, end, filter, regions),
                    Some(libc::ENOTTY) => Err(io::ErrorKind::Unsupported.into()),
                    _ => Err(error),
                };
            }
            regions.extend(buffer[..(got as usize).min(buffer.len())].iter().map(|r| PageRegion {
                start: r.start,
                end: r.end,
                categories: r.categories,
            }));
            // The kernel stops before `end` only when the vector is full.
            if (got as usize) < room || argument.walk_end <= at {
                break;
            }
            at = argument.walk_end;
        }
        Ok(())
    }

    /// The same for a filter that asks for written pages, in far less time where most were not written: the kernel is
    /// fast at telling which may have been, and only these are looked at closely. `mapped`: so many bytes of the range
    /// are mapped at most.
    ///
    /// # Errors
    /// As for [`Pagemap::scan`].
    pub fn scan_written(
        &self,
        (start, end): (u64, u64),
        mapped: u64,
        filter: ScanFilter,
        regions: &mut Vec<PageRegion>,
    ) -> io::Result<()> {
        let fast = ScanFilter {
            all: PAGE_WRITTEN,
            written_only: true,
            ..ScanFilter::default()
        };
        let mut written = Vec::new();
        self.scan(start, end, fast, &mut written)?;
        self.scan_among(&written, (start, end), mapped, filter, regions)
    }

    /// The same again where the fast look was had already: `written` is what it told of `start..end`.
    ///
    /// # Errors
    /// As for [`Pagemap::scan`].
    pub fn scan_among(
        &self,
        written: &[PageRegion],
        (start, end): (u64, u64),
        mapped: u64,
        filter: ScanFilter,
        regions: &mut Vec<PageRegion>,
    ) -> io::Result<()> {
        /// Pages that a look at all passes in the time that a look at one run takes.
        const PAGES_A_LOOK: u64 = 32;
        if written.len() as u64 > mapped / PAGE / PAGES_A_LOOK {
            return self.scan(start, end, filter, regions);
        }
        for run in written {
            self.scan(run.start, run.end, filter, regions)?;
        }
        Ok(())
    }

    /// Whether all pages from `start` to `end` are in memory and mapped by this process only.
    pub fn are_exclusive(&self, start: u64, end: u64) -> io::Result<bool> {
        /// Words read at a time.
        const WORDS: usize = 256;
        /// In memory, and mapped only here.
        const EXCLUSIVE: u64 = 1 << 63 | 1 << 56;
        let mut words = [0u8; WORDS * 8];
        let mut at = start;
        while at < end {
            let pages = ((end - at).div_ceil(PAGE) as usize).min(WORDS);
            let got = rustix::io::pread(self.fd.as_fd(), &mut words[..pages * 8], at / PAGE * 8)?;
            let exclusive = |word: &[u8]| {
                let mut raw = [0u8; 8];
                raw.copy_from_slice(word);
                u64::from_ne_bytes(raw) & EXCLUSIVE == EXCLUSIVE
            };
            if got != pages * 8 || !words[..got].chunks_exact(8).all(exclusive) {
                return Ok(false);
            }
            at += pages as u64 * PAGE;
        }
        Ok(true)
    }

    /// Whether the page at `address` is in memory or swapped out.
    pub fn has(&self, address: u64) -> io::Result<bool> {
        let mut word = [0u8; 8];
        let got = rustix::io::pread(self.fd.as_fd(), &mut word, address / PAGE * 8)?;
        Ok(got == word.len() && u64::from_ne_bytes(word) >> 62 != 0)
    }

    /// Whether writes to the mapping at `address` are tracked by asynchronous write protection.
    pub fn is_tracked(&self, address: u64) -> io::Result<bool> {
        let filter = ScanFilter {
            any: PAGE_WPALLOWED,
            ..ScanFilter::default()
        };
        let mut regions = Vec::new();
        self.scan(address, address + PAGE, filter, &mut regions)?;
        Ok(!regions.is_empty())
    }

    /// [`Pagemap::scan`] for older kernels: see Documentation/admin-guide/mm/pagemap.rst. Zero pages and huge pages are
    /// not told apart there.
    fn scan_words(&self, start: u64, end: u64, filter: ScanFilter, regions: &mut Vec<PageRegion>) -> io::Result<()> {
        let mut words = vec![0u8; 8 * 4096];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE).min(4096) as usize;
            let chunk = &mut words[..pages * 8];
            let got = rustix::io::pread(self.fd.as_fd(), &mut *chunk, at / PAGE * 8)?;
            if got == 0 {
                break;
            }
            for word in chunk[..got].chunks_exact(8) {
                let mut raw = [0u8; 8];
                raw.copy_from_slice(word);
                let bits = u64::from_ne_bytes(raw);
                let mut categories = 0;
                for (bit, category) in [
                    (63, PAGE_PRESENT),
                    (62, PAGE_SWAPPED),
                    (61, PAGE_FILE),
                    (58, PAGE_GUARD),
                ] {
                    if bits >> bit & 1 == 1 {
                        categories |= category;
                    }
                }
                let wanted = categories & filter.all == filter.all
                    && categories & filter.none == 0
                    && (filter.any == 0 || categories & filter.any != 0);
                if wanted {
                    match regions.last_mut() {
                        Some(last) if last.end == at && last.categories == categories => last.end += PAGE,
                        _ => regions.push(PageRegion {
                            start: at,
                            end: at + PAGE,
                            categories,
                        }),
                    }
                }
                at += PAGE;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, ProtFlags};

    #[test]
    fn scan_finds_touched_pages_and_not_the_zero_page() {
        let dir = rustix::fs::open("/proc/self", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let pagemap = Pagemap::open(dir.as_fd()).unwrap();
        let memory = Memory::open(dir.as_fd()).unwrap();
        let length = 64 * PAGE as usize;
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice, used only in this test.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap() as u64;
        memory.write(base + 3 * PAGE, b"x").unwrap();
        memory.write(base + 4 * PAGE, b"y").unwrap();
        memory.write(base + 9 * PAGE, b"z").unwrap();
        // SAFETY: reads one byte of the mapping made above: maps the shared zero page there.
        let _ = unsafe { std::ptr::read_volatile((base + 20 * PAGE) as *const u8) };
        let mut regions = Vec::new();
        let filter = ScanFilter {
            none: PAGE_FILE | PAGE_PFNZERO,
            any: PAGE_PRESENT | PAGE_SWAPPED,
            ..ScanFilter::default()
        };
        pagemap.scan(base, base + length as u64, filter, &mut regions).unwrap();
        let pages: Vec<(u64, u64)> = regions
            .iter()
            .map(|r| ((r.start - base) / PAGE, (r.end - base) / PAGE))
            .collect();
        assert_eq!(pages, [(3, 5), (9, 10)]);
    }

    #[test]
    fn scan_reports_every_page_once_however_many_regions_there_are() {
        let dir = rustix::fs::open("/proc/self", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let pagemap = Pagemap::open(dir.as_fd()).unwrap();
        let memory = Memory::open(dir.as_fd()).unwrap();
        // Around what one call and the kernel's own buffer hold.
        for count in [100, 511, 512, 513, 700, 1023, 1024, 1025, 1600, 3000] {
            let length = 2 * count * PAGE as usize;
            // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice, used only in this test.
            let base = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    length,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            }
            .unwrap();
            let start = base as u64;
            let expected: Vec<u64> = (0..count as u64).map(|number| start + 2 * number * PAGE).collect();
            for at in &expected {
                memory.write(*at, b"x").unwrap();
            }
            let mut regions = Vec::new();
            let filter = ScanFilter {
                none: PAGE_FILE | PAGE_PFNZERO,
                any: PAGE_PRESENT | PAGE_SWAPPED,
                ..ScanFilter::default()
            };
            pagemap
                .scan(start, start + length as u64, filter, &mut regions)
                .unwrap();
            let found: Vec<u64> = regions.iter().map(|region| region.start).collect();
            assert!(found == expected, "{count} regions: {} found", found.len());
            assert!(regions.iter().all(|region| region.end == region.start + PAGE));
            // SAFETY: the mapping made above, which nothing refers to any more.
            unsafe { rustix::mm::munmap(base, length) }.unwrap();
        }
    }
}
