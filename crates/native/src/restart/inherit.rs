//! Memory that a process shares with its parent since fork(2).
//!
//! Pages that a child has not written to since it was born are its parent's, one copy for both. They are shared again
//! by giving the parent its memory before the child is born; here is decided which of the child's mappings are the
//! parent's, and in which pages they differ. It knows the image only, and changes nothing.

use cpr_image::model::{AddressSpace, Extent, Mapping, MappingKind};
use cpr_types::Result;

use crate::sink::{PAGE_SIZE, PageSource};

/// Bytes compared at a time.
const CHUNK: usize = 1 << 20;
/// Flags of mappings that fork(2) does not hand down as they are, or that forbid what has to be done to them.
const APART: [&str; 5] = ["dc", "wf", "lo", "lf", "sl"];

/// What makes an inherited mapping the child's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Pages to be read from the image.
    pub fills: Vec<Extent>,
    /// Ranges in which the parent has pages and the child none: address and length.
    pub drops: Vec<(u64, u64)>,
}

/// The parent's mapping that a child's mapping was born as.
pub fn origin<'a>(parent: &'a AddressSpace, child: &Mapping) -> Option<&'a Mapping> {
    let is_private = matches!(
        child.kind,
        MappingKind::Anonymous | MappingKind::Stack | MappingKind::PrivateFile(_) | MappingKind::PrivateSaved(_)
    );
    let index = parent.mappings.binary_search_by_key(&child.start, |m| m.start).ok()?;
    let found = parent.mappings.get(index)?;
    let same = is_private
        && (found.end, found.offset, &found.kind, &found.flags) == (child.end, child.offset, &child.kind, &child.flags)
        && found.guards.is_empty()
        && child.guards.is_empty()
        && !child.flags.iter().any(|flag| APART.contains(&flag.as_str()));
    same.then_some(found)
}

/// Whether a child may have pages in common with its parent. A sealed mapping of the parent's would stay in the child.
pub fn is_worth_it(parent: &AddressSpace, child: &AddressSpace) -> bool {
    let overlaps = |found: &Mapping, mapping: &Mapping| {
        let shared = |e: &Extent| {
            overlapping(&found.extents, e.start, e.start + e.length)
                .next()
                .is_some()
        };
        mapping.extents.iter().any(shared)
    };
    !parent.mappings.iter().any(|m| m.flags.iter().any(|flag| flag == "sl"))
        && child
            .mappings
            .iter()
            .any(|mapping| origin(parent, mapping).is_some_and(|found| overlaps(found, mapping)))
}

/// Compares the pages of a mapping of the parent with those of the same mapping of the child.
///
/// # Errors
/// The image cannot be read.
pub fn differences(parent: &Mapping, child: &Mapping, source: &dyn PageSource) -> Result<Differences> {
    let mut found = Differences::default();
    for extent in &child.extents {
        let end = extent.start + extent.length;
        let mut at = extent.start;
        let own = |at: u64| extent.offset + (at - extent.start);
        for other in overlapping(&parent.extents, extent.start, end) {
            let (from, to) = (other.start.max(at), (other.start + other.length).min(end));
            fill(&mut found.fills, at, from, own(at));
            let theirs = other.offset + (from - other.start);
            compare(&mut found.fills, from, to, own(from), theirs, source)?;
            at = to;
        }
        fill(&mut found.fills, at, end, own(at));
    }
    for extent in &parent.extents {
        let end = extent.start + extent.length;
        let mut at = extent.start;
        for other in overlapping(&child.extents, extent.start, end) {
            if other.start > at {
                found.drops.push((at, other.start - at));
            }
            at = at.max(other.start + other.length);
        }
        if at < end {
            found.drops.push((at, end - at));
        }
    }
    Ok(found)
}

/// The extents that have pages between two addresses; extents are in the order of their addresses.
fn overlapping(extents: &[Extent], start: u64, end: u64) -> impl Iterator<Item = &Extent> {
    let first = extents.partition_point(|e| e.start + e.length <= start);
    extents[first..].iter().take_while(move |e| e.start < end)
}

fn fill(fills: &mut Vec<Extent>, from: u64, to: u64, offset: u64) {
    if from >= to {
        return;
    }
    match fills.last_mut() {
        Some(last) if last.start + last.length == from && last.offset + last.length == offset => {
            last.length += to - from;
        }
        _ => fills.push(Extent {
            start: from,
            length: to - from,
            offset,
        }),
    }
}

/// Adds the pages between two addresses that differ in their data, which are at these offsets in the image.
fn compare(fills: &mut Vec<Extent>, from: u64, to: u64, own: u64, theirs: u64, source: &dyn PageSource) -> Result<()> {
    if own == theirs {
        return Ok(());
    }
    let mut buffers = [Vec::new(), Vec::new()];
    let mut done = 0;
    while from + done < to {
        let length = (to - from - done).min(CHUNK as u64);
        for (buffer, offset) in buffers.iter_mut().zip([own, theirs]) {
            buffer.resize(length as usize, 0);
            source.read(offset + done, buffer)?;
        }
        let [one, other] = &buffers;
        for (index, (one, other)) in one.chunks(PAGE_SIZE).zip(other.chunks(PAGE_SIZE)).enumerate() {
            let at = done + (index * PAGE_SIZE) as u64;
            if one != other {
                fill(fills, from + at, from + at + one.len() as u64, own + at);
            }
        }
        done += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Page N is filled with the byte at position N.
    struct Pages(Vec<u8>);

    impl PageSource for Pages {
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = self.0[(offset as usize + index) / PAGE_SIZE];
            }
            Ok(())
        }
    }

    fn extent(start: u64, pages: u64, offset: u64) -> Extent {
        let page = PAGE_SIZE as u64;
        Extent {
            start: start * page,
            length: pages * page,
            offset: offset * page,
        }
    }

    fn mapping(extents: Vec<Extent>) -> Mapping {
        Mapping {
            start: 0,
            end: 100 * PAGE_SIZE as u64,
            protection: 3,
            kind: MappingKind::Anonymous,
            offset: 0,
            flags: Vec::new(),
            extents,
            guards: Vec::new(),
            policy: None,
        }
    }

    #[test]
    fn only_what_differs_is_read_or_dropped() {
        // Pages 0 to 5 of the image are the parent's, 6 to 11 the child's.
        let source = Pages(vec![1, 2, 3, 4, 5, 6, 1, 9, 3, 7, 8, 6]);
        let parent = mapping(vec![extent(10, 4, 0), extent(20, 2, 4)]);
        // Pages 10 to 12 (one changed), 14 and 15 new, 21 as it was; 13 and 20 are gone.
        let child = mapping(vec![extent(10, 3, 6), extent(14, 2, 9), extent(21, 1, 11)]);
        let page = PAGE_SIZE as u64;
        let found = differences(&parent, &child, &source).unwrap();
        assert_eq!(found.fills, [extent(11, 1, 7), extent(14, 2, 9)]);
        assert_eq!(found.drops, [(13 * page, page), (20 * page, page)]);
        assert_eq!(differences(&parent, &parent, &source).unwrap(), Differences::default());
        let space = |mapping: &Mapping| AddressSpace {
            mappings: vec![mapping.clone()],
            ..AddressSpace::default()
        };
        assert!(is_worth_it(&space(&parent), &space(&child)));
        let apart = Mapping {
            flags: vec!["wf".to_owned()],
            ..child
        };
        assert!(!is_worth_it(&space(&parent), &space(&apart)));
    }
}
