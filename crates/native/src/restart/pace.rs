//! Which pages memory is filled with fastest, found out while it is filled.
//!
//! A huge page takes one page fault instead of 512. But where free memory is in small pieces the kernel has to put one
//! together first, and in a virtual machine whose free huge pages were given back to its host (free page reporting) the
//! host has to find the memory again; then small pages come several times as fast.

use std::time::Duration;

use super::huge::{HUGE, STAGING};

/// Sizes of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// Huge ones, as far as there are any.
    Huge,
    /// Those of the last level of the page table.
    Small,
}

impl PageSize {
    fn other(self) -> Self {
        match self {
            PageSize::Huge => PageSize::Small,
            PageSize::Small => PageSize::Huge,
        }
    }
}

/// Nanoseconds for a MiB in which huge pages are as good as can be: nothing else is tried.
const GOOD: u64 = 400_000;
/// Every so many pieces the one that was slower is tried again.
const AGAIN: u32 = 8;

/// What is known so far.
#[derive(Debug, Default)]
pub struct Pace {
    /// Nanoseconds a MiB takes with huge and small pages, as measured last.
    huge: Option<u64>,
    small: Option<u64>,
    /// Pieces so far.
    pieces: u32,
}

impl Pace {
    /// With which pages to fill the next piece of memory, and how many bytes at most.
    pub fn next(&self) -> (PageSize, u64) {
        let length = (HUGE << (self.pieces / 2).min(16)).min(STAGING);
        match (self.huge, self.small) {
            (None, _) => (PageSize::Huge, length),
            (Some(..=GOOD), _) => (PageSize::Huge, length),
            (Some(_), None) => (PageSize::Small, length),
            (Some(huge), Some(small)) => {
                let best = if small < huge { PageSize::Small } else { PageSize::Huge };
                match self.pieces % AGAIN {
                    0 => (best.other(), HUGE),
                    _ => (best, length),
                }
            }
        }
    }

    /// Notes how long a piece took.
    pub fn note(&mut self, pages: PageSize, bytes: u64, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let rate = nanoseconds / (bytes >> 20).max(1);
        match pages {
            PageSize::Huge => self.huge = Some(rate),
            PageSize::Small => self.small = Some(rate),
        }
        self.pieces = self.pieces.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes filled with huge and with small pages, of `all` MiB, where a MiB takes as many microseconds as given.
    fn fill(pace: &mut Pace, all: u64, micros: impl Fn(PageSize) -> u64) -> (u64, u64) {
        let (mut huge, mut small) = (0, 0);
        while huge + small < all << 20 {
            let (pages, length) = pace.next();
            let sum = match pages {
                PageSize::Huge => &mut huge,
                PageSize::Small => &mut small,
            };
            *sum += length;
            pace.note(pages, length, Duration::from_micros(micros(pages) * (length >> 20)));
        }
        (huge >> 20, small >> 20)
    }

    /// The same with as many microseconds for a MiB of huge and of small pages.
    fn fill_at(pace: &mut Pace, all: u64, huge: u64, small: u64) -> (u64, u64) {
        fill(pace, all, |pages| if pages == PageSize::Huge { huge } else { small })
    }

    #[test]
    fn most_is_filled_with_the_pages_that_come_faster() {
        assert_eq!(
            fill_at(&mut Pace::default(), 1022, 300, 200).1,
            0,
            "good is good enough"
        );
        let (huge, small) = fill_at(&mut Pace::default(), 1024, 600, 800);
        assert!(small < 32, "{huge} {small}");
        let (huge, small) = fill_at(&mut Pace::default(), 1024, 8000, 2500);
        assert!(huge < 32, "{huge} {small}");
    }

    #[test]
    fn what_was_slower_is_chosen_when_it_has_become_faster() {
        let mut pace = Pace::default();
        fill_at(&mut pace, 512, 8000, 2500);
        let (huge, small) = fill_at(&mut pace, 2048, 400, 2500);
        assert!(huge > small, "{huge} {small}");
        // And at once where the one that was faster gets slower than the other was.
        let (huge, small) = fill_at(&mut pace, 256, 9000, 2500);
        assert!(huge < small, "{huge} {small}");
    }

    #[test]
    fn a_little_memory_is_filled_with_huge_pages_first() {
        assert_eq!(Pace::default().next(), (PageSize::Huge, HUGE));
    }
}
