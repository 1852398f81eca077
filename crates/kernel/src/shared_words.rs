//! A file mapped as shared words, for programs that watch each other without a system call.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags};

/// The first [`SharedWords::COUNT`] 64-bit words of a file, mapped shared.
#[derive(Debug)]
pub struct SharedWords {
    words: &'static [AtomicU64; SharedWords::COUNT],
}

impl SharedWords {
    /// How many words there are: one page.
    pub const COUNT: usize = 512;

    /// Maps the beginning of a file that is open for reading and writing, which is made long enough first.
    pub fn map(file: &File) -> io::Result<SharedWords> {
        let length = Self::COUNT * size_of::<AtomicU64>();
        if file.metadata()?.len() < length as u64 {
            file.set_len(length as u64)?;
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint places the mapping where nothing else is.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        }?;
        // SAFETY: the address is page-aligned and maps `length` bytes; it is unmapped only on drop, and no reference to
        // the words outlives `self` (`words` hands them out for its lifetime). Every bit pattern is a value, and other
        // processes' writes are seen through atomic loads only.
        let words = unsafe { &*address.cast::<[AtomicU64; Self::COUNT]>() };
        Ok(SharedWords { words })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64; Self::COUNT] {
        self.words
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let length = Self::COUNT * size_of::<AtomicU64>();
        // SAFETY: `map` made a mapping of this address and length, and nobody else unmaps it or has a reference left.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast_mut().cast(), length) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_of_a_file_are_one_memory() {
        let file = tempfile::tempfile().unwrap();
        let one = SharedWords::map(&file).unwrap();
        let other = SharedWords::map(&file).unwrap();
        one.words()[511].store(7, Ordering::Release);
        assert_eq!(other.words()[511].load(Ordering::Acquire), 7);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(SharedWords::map(&file).is_err());
    }
}
