//! Finding pages that an image has already.
//!
//! A page is known by a hash of 128 bits under a secret drawn for each image. Nobody can make two pages with the same
//! one without knowing the secret, and by chance it does not happen, so that contents need not be compared (an image
//! that goes into a pipe could not be read back).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use cpr_types::{Error, ErrorKind, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::format::{MAX_DATA, PAGE};

/// Bytes of the secret: as many as the default secret of XXH3 has.
const SECRET: usize = 192;
/// Pages in one generation: as many as a table has room for that has 2^19 places, of 21 bytes each. With two of them, at
/// most 21 MiB are used for what was seen last (3.5 GiB of distinct pages).
const GENERATION: usize = (1 << 19) / 8 * 7;

/// The keys are hashes already.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used: keys write one number only.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// By the number of the page in the image, which takes half the room of its position.
type Positions = HashMap<PageHash, u32, BuildHasherDefault<Low>>;

/// By what a page is known, in pieces that need no room around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHash([u32; 4]);

impl PageHash {
    fn of(page: &[u8], secret: &[u8; SECRET]) -> Self {
        let hash = xxh3_128_with_secret(page, secret);
        PageHash([0, 32, 64, 96].map(|shift| (hash >> shift) as u32))
    }
}

impl Hash for PageHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.0[0]) | u64::from(self.0[1]) << 32);
    }
}

/// The number of the page at this position.
fn number(offset: u64) -> u32 {
    const { assert!(MAX_DATA / PAGE < u32::MAX as u64) };
    (offset / PAGE) as u32
}

fn position(number: u32) -> u64 {
    u64::from(number) * PAGE
}

/// Hashes pages for one index, so that several threads can do it.
#[derive(Clone)]
pub struct PageHasher([u8; SECRET]);

impl PageHasher {
    /// The hash of one page.
    pub fn hash(&self, page: &[u8]) -> PageHash {
        PageHash::of(page, &self.0)
    }
}

/// Positions in an image by contents, of the pages that were appended last.
pub struct PageIndex {
    secret: [u8; SECRET],
    new: Positions,
    old: Positions,
}

impl PageIndex {
    /// An empty one, for about so many pages.
    ///
    /// # Errors
    /// The kernel has no random bytes to give.
    pub fn new(expected: u64) -> Result<Self> {
        let expected = usize::try_from(expected).unwrap_or(usize::MAX).min(GENERATION);
        let mut secret = [0; SECRET];
        match getrandom(&mut secret[..], GetRandomFlags::empty()) {
            Ok(SECRET) => {}
            // Up to 256 bytes come whole (random(4)).
            Ok(_) => return Err(Error::new(ErrorKind::Io, "get random bytes: too few came")),
            Err(error) => {
                return Err(Error::new(ErrorKind::Io, "get random bytes").with_source(std::io::Error::from(error)));
            }
        }
        Ok(PageIndex {
            secret,
            new: Positions::with_capacity_and_hasher(expected, BuildHasherDefault::default()),
            old: Positions::default(),
        })
    }

    /// What hashes pages for this index.
    pub fn hasher(&self) -> PageHasher {
        PageHasher(self.secret)
    }

    /// Notes pages that lie one after another from `offset` on, unless one of them is known: then none is noted.
    /// Returns whether they were. Pages that are equal among themselves count as new.
    pub fn note_new(&mut self, hashes: &[PageHash], offset: u64) -> bool {
        self.turn();
        let end = offset + hashes.len() as u64 * PAGE;
        for (count, (hash, fresh)) in hashes.iter().zip((offset..).step_by(PAGE as usize)).enumerate() {
            let is_known = match self.new.entry(*hash) {
                Entry::Occupied(known) => !(offset..end).contains(&position(*known.get())),
                Entry::Vacant(place) => {
                    let is_known = !self.old.is_empty() && self.old.contains_key(hash);
                    if !is_known {
                        place.insert(number(fresh));
                    }
                    is_known
                }
            };
            if is_known {
                // What has been noted lies at `offset` or behind it, as nothing did before.
                for hash in &hashes[..count] {
                    self.new.remove(hash);
                }
                return false;
            }
        }
        true
    }

    fn turn(&mut self) {
        if self.new.len() >= GENERATION {
            // Room for all at once: a table that grows is there twice meanwhile.
            let next = Positions::with_capacity_and_hasher(GENERATION, BuildHasherDefault::default());
            self.old = std::mem::replace(&mut self.new, next);
        }
    }

    /// Where a page with these contents is; if there is none, `offset` is noted for it, which is that of a page.
    pub fn find_or_note(&mut self, page: &[u8], offset: u64) -> Option<u64> {
        let hash = PageHash::of(page, &self.secret);
        self.turn();
        // One look: each is for a place in memory that no cache has.
        let place = match self.new.entry(hash) {
            Entry::Occupied(known) => return Some(position(*known.get())),
            Entry::Vacant(place) => place,
        };
        let known = if self.old.is_empty() {
            None
        } else {
            self.old.get(&hash).copied()
        };
        place.insert(known.unwrap_or(number(offset)));
        known.map(position)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_again_for_a_generation_at_least() {
        let mut index = PageIndex::new(0).unwrap();
        let page = |number: u64| number.to_ne_bytes().repeat(512);
        assert_eq!(index.find_or_note(&page(7), 4096), None);
        assert_eq!(index.find_or_note(&page(8), 8192), None);
        assert_eq!(index.find_or_note(&page(7), 12288), Some(4096));
        for number in 100..100 + GENERATION as u64 {
            index.find_or_note(&number.to_ne_bytes(), number * PAGE);
        }
        assert_eq!(index.find_or_note(&page(8), 4096), Some(8192));
        assert!(index.new.len() + index.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn pages_are_noted_together_or_not_at_all() {
        let mut index = PageIndex::new(0).unwrap();
        let page = |number: u64| number.to_ne_bytes().repeat(512);
        let hasher = index.hasher();
        let hashes = |numbers: [u64; 3]| numbers.map(|number| hasher.hash(&page(number)));
        assert!(index.note_new(&hashes([1, 2, 2]), 4096));
        assert!(!index.note_new(&hashes([3, 4, 2]), 16384));
        assert_eq!(index.find_or_note(&page(4), 20480), None);
        assert_eq!(index.find_or_note(&page(2), 24576), Some(8192));
        assert!(!index.note_new(&hashes([5, 6, 4]), 24576));
    }
}
