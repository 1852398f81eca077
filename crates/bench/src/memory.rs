//! What is in a victim's memory: pages whose content follows from their place, so that a victim can tell whether each
//! is still what it was.

use cpr_types::{Error, ErrorKind, Result};

/// Words in a page.
const WORDS: usize = 512;
/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// One page in so many is incompressible where the others are not.
const ONE_IN: u64 = 10;
/// The odd constant of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What kind of pages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// Every page is different and incompressible.
    Random,
    /// Nine in ten pages are zeros that were written, the others random.
    Zero,
    /// Nine in ten pages have the same incompressible content, the others different ones.
    Equal,
}

/// The memory of one process.
#[derive(Debug)]
pub struct Memory {
    /// The pages, and before and after them what makes them start where pages of the machine do.
    all: Vec<u64>,
    /// Where the first page begins.
    first: usize,
    pages: usize,
    content: Content,
    /// Which process of the victim this is.
    process: u64,
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn word(seed: u64, index: usize) -> u64 {
    mix(seed.wrapping_add(STEP.wrapping_mul(index as u64)))
}

fn fill(page: &mut [u64], seed: u64) {
    page[0] = seed;
    for (index, place) in page.iter_mut().enumerate().skip(1) {
        *place = word(seed, index);
    }
}

impl Memory {
    /// Allocates and fills the memory of process number `process`.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn fill(bytes: u64, content: Content, process: u64) -> Result<Memory> {
        let pages = (bytes / PAGE_BYTES) as usize;
        let mut all = Vec::new();
        all.try_reserve_exact((pages + 1) * WORDS).map_err(|error| {
            Error::new(ErrorKind::NoSpace, format!("get {bytes} bytes of memory")).with_source(error)
        })?;
        // Not zero, so that every page is written and really there.
        all.resize((pages + 1) * WORDS, 1);
        let misplaced = all.as_ptr().addr() / size_of::<u64>() % WORDS;
        let mut memory = Memory {
            all,
            first: (WORDS - misplaced) % WORDS,
            pages,
            content,
            process,
        };
        for page in 0..pages {
            let seed = memory.seed(page, 0);
            let words = memory.page(page);
            if seed == 0 { words.fill(0) } else { fill(words, seed) }
        }
        Ok(memory)
    }

    fn page(&mut self, page: usize) -> &mut [u64] {
        &mut self.all[self.first + page * WORDS..][..WORDS]
    }

    fn words(&self) -> &[u64] {
        &self.all[self.first..][..self.pages * WORDS]
    }

    /// A copy of all its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words().iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// First word of a page: where it is, and how often it was rewritten (20 bits).
    fn seed(&self, page: usize, generation: u64) -> u64 {
        let own = (generation & 0xf_ffff) << 44 | self.process << 32 | (page as u64 + 1);
        let is_plain = !(page as u64).is_multiple_of(ONE_IN) && generation == 0;
        match self.content {
            Content::Zero if is_plain => 0,
            Content::Equal if is_plain => STEP,
            _ => own,
        }
    }

    /// Gives a page new, random content.
    pub fn rewrite(&mut self, page: usize) {
        let old = self.page(page)[0];
        // A page of zeros or equal content has no generation yet.
        let generation = if old == 0 || old == STEP { 1 } else { (old >> 44) + 1 };
        // Never back to the first one, which is what a restart from nothing would show.
        let generation = if generation > 0xf_ffff { 1 } else { generation };
        let seed = self.seed(page, generation);
        fill(self.page(page), seed);
    }

    /// How many pages are not what they have to be.
    pub fn wrong_pages(&self) -> u64 {
        let is_wrong = |page: usize, words: &[u64]| {
            let seed = words[0];
            let expected = match seed {
                0 | STEP => self.seed(page, 0),
                _ => self.seed(page, seed >> 44),
            };
            seed != expected
                || words
                    .iter()
                    .enumerate()
                    .skip(1)
                    .any(|(index, &found)| found != if seed == 0 { 0 } else { word(seed, index) })
        };
        let pages = self.words().chunks_exact(WORDS).enumerate();
        pages.filter(|(page, words)| is_wrong(*page, words)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_or_page_is_seen() {
        for content in [Content::Random, Content::Zero, Content::Equal] {
            let mut memory = Memory::fill(40 * PAGE_BYTES, content, 3).unwrap();
            assert_eq!((memory.pages(), memory.wrong_pages()), (40, 0));
            for page in [0, 5, 10, 5] {
                memory.rewrite(page);
            }
            assert_eq!(memory.wrong_pages(), 0, "{content:?}");
            memory.page(7)[100] ^= 1;
            assert_eq!(memory.wrong_pages(), 1, "{content:?}");
            let other = memory.page(10).to_vec();
            memory.page(0).copy_from_slice(&other);
            assert_eq!(memory.wrong_pages(), 2, "{content:?}: a page at another's place");
        }
    }

    #[test]
    fn nine_in_ten_pages_are_alike_where_they_should_be() {
        let memory = Memory::fill(100 * PAGE_BYTES, Content::Equal, 0).unwrap();
        let mut pages: Vec<&[u64]> = memory.words().chunks(WORDS).collect();
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), 11);
        let memory = Memory::fill(100 * PAGE_BYTES, Content::Zero, 0).unwrap();
        let zero = memory
            .words()
            .chunks(WORDS)
            .filter(|page| page.iter().all(|w| *w == 0))
            .count();
        assert_eq!(zero, 90);
    }
}
