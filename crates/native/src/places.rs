//! Where the copies of the pages of one mapping are.
//!
//! Kept only for pages that were looked at: programs reserve mappings of terabytes and touch some pages of them
//! (address sanitizers, virtual machines, garbage collectors).

use std::collections::BTreeMap;

use cpr_kernel::memory::PAGE;

/// Not copied: the process has no page of its own there.
pub const NONE: u64 = 0;
/// Copied and found to be zeros. (No data lie at the header's place.)
pub const ZEROS: u64 = 1;
/// Could not be read while the job ran, or was not looked at.
pub const UNKNOWN: u64 = 2;
/// In an earlier image that is not to be referred to.
pub const ELSEWHERE: u64 = 3;

/// Pages kept together.
const TABLE: u64 = 512;

type Table = [u64; TABLE as usize];

/// For each page, by its number in the mapping, where its last copy is: a position in the image or one of the values
/// above.
#[derive(Debug)]
pub struct Places {
    /// What holds of pages without a table.
    rest: u64,
    tables: BTreeMap<u64, Box<Table>>,
}

impl Places {
    /// `rest` for all pages.
    pub fn new(rest: u64) -> Self {
        Places {
            rest,
            tables: BTreeMap::new(),
        }
    }

    /// Notes `count` pages from `first` on that are all `place`.
    pub fn fill(&mut self, first: u64, count: u64, place: u64) {
        self.set(first, count, &|_| place);
    }

    /// Notes `count` pages from `first` on, whose copies lie one after the other from `offset` on.
    pub fn note(&mut self, first: u64, count: u64, offset: u64) {
        self.set(first, count, &|page| offset + (page - first) * PAGE);
    }

    fn set(&mut self, first: u64, count: u64, place: &dyn Fn(u64) -> u64) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let to = end.min((at / TABLE + 1) * TABLE);
            let table = self
                .tables
                .entry(at / TABLE)
                .or_insert_with(|| Box::new([self.rest; TABLE as usize]));
            for page in at..to {
                table[(page % TABLE) as usize] = place(page);
            }
            at = to;
        }
    }

    /// Forgets all of them.
    pub fn forget(&mut self) {
        *self = Places::new(UNKNOWN);
    }

    /// How many pages from `first` on, and before `end`, are alike, and what the first one is. Copies are alike where
    /// they lie one after the other.
    pub fn run(&self, first: u64, end: u64) -> (u64, u64) {
        let found = self.tables.get(&(first / TABLE));
        let place = found.map_or(self.rest, |table| table[(first % TABLE) as usize]);
        let step = if place > ELSEWHERE { PAGE } else { 0 };
        let mut at = first;
        while at < end {
            let Some((&index, table)) = self.tables.range(at / TABLE..).next() else {
                // Nothing but the rest.
                return (if place == self.rest { end } else { at } - first, place);
            };
            if index > at / TABLE {
                if place != self.rest {
                    break;
                }
                at = end.min(index * TABLE);
                continue;
            }
            let to = end.min((index + 1) * TABLE);
            let alike = |page: &u64| table[(page % TABLE) as usize] == place + step * (page - first);
            let length = (at..to).take_while(alike).count() as u64;
            let whole = length == to - at;
            at += length;
            if !whole {
                break;
            }
        }
        (at - first, place)
    }

    /// The next run of pages that are `place`, which is not what all others are, from `first` on: where it begins and
    /// how long it is.
    pub fn next(&self, first: u64, place: u64) -> Option<(u64, u64)> {
        let mut pages = self.tables.range(first / TABLE..).flat_map(|(index, table)| {
            let numbered = (index * TABLE..).zip(table.iter());
            numbered.filter(|(page, found)| *page >= first && **found == place)
        });
        let (start, _) = pages.next()?;
        let following = pages
            .zip(start + 1..)
            .take_while(|((page, _), expected)| page == expected);
        Some((start, 1 + following.count() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_of_terabytes_takes_memory_for_what_is_known_of_it_only() {
        let all = (2 << 40) / PAGE;
        let mut places = Places::new(UNKNOWN);
        places.note(all / 2 - 3, 700, 1 << 20);
        places.fill(all / 2 + 697, 1, ZEROS);
        assert_eq!(places.run(0, all), (all / 2 - 3, UNKNOWN));
        assert_eq!(places.run(all / 2 - 3, all), (700, 1 << 20));
        assert_eq!(places.run(all / 2, all), (697, (1 << 20) + 3 * PAGE));
        assert_eq!(places.run(all / 2, all / 2 + 5), (5, (1 << 20) + 3 * PAGE));
        assert_eq!(places.run(all / 2 + 697, all), (1, ZEROS));
        assert_eq!(places.run(all / 2 + 698, all), (all / 2 - 698, UNKNOWN));
        assert!(places.tables.len() <= 3);
        places.forget();
        assert_eq!(places.run(0, all), (all, UNKNOWN));
    }

    #[test]
    fn copies_in_two_places_are_not_alike() {
        let mut places = Places::new(NONE);
        places.note(0, 2, 40 * PAGE);
        places.note(2, 2, 60 * PAGE);
        places.note(4, 1, 41 * PAGE);
        assert_eq!(places.run(0, 9), (2, 40 * PAGE));
        assert_eq!(places.run(2, 9), (2, 60 * PAGE));
        assert_eq!(places.run(4, 9), (1, 41 * PAGE));
        assert_eq!(places.run(5, 9), (4, NONE));
    }

    #[test]
    fn runs_of_one_kind_are_found_across_tables() {
        let mut places = Places::new(UNKNOWN);
        places.fill(510, 5, ELSEWHERE);
        places.fill(9000, 1, ELSEWHERE);
        places.fill(9001, 1, ZEROS);
        assert_eq!(places.next(0, ELSEWHERE), Some((510, 5)));
        assert_eq!(places.next(512, ELSEWHERE), Some((512, 3)));
        assert_eq!(places.next(515, ELSEWHERE), Some((9000, 1)));
        assert_eq!(places.next(9001, ELSEWHERE), None);
    }
}
