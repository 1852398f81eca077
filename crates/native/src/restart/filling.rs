//! Filling the memory of processes from outside, with page data in the instant in which they were verified: each piece
//! of the image is read once, and hashed and copied while it is in a processor's cache, by a thread for each processor.
//!
//! Pages are put with userfaultfd(2): the kernel copies them into new ones without clearing these before, and without a
//! page fault for each. The process must not touch that memory meanwhile, nor must the kernel for it.
//!
//! Equal pages are in an image once. Where many of them lie one after the other they are put together, and after all
//! else, since a single thread verifies the piece of the image that has them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Manifest, Mapping};
use cpr_kernel::demand_paging::{self, DemandPager};
use cpr_kernel::memory::Memory;
use cpr_types::{Context, Result};

use super::lazy;
use super::stub::Workshop;
use crate::beside::each;
use crate::sink::{PAGE_SIZE, PIECE};
use crate::userfault;

/// Processes with less page data of this kind, bytes, fill their memory themselves: that is done sooner than a
/// descriptor is made.
const LEAST: u64 = 16 << 20;
/// Most equal pages that one thread puts before it asks for more, bytes.
const SHARE: usize = 32 << 20;

/// Whether the pages of a mapping can come from outside. One that asks for huge pages gets them when the process itself
/// touches it.
pub(super) fn is_apart(mapping: &Mapping) -> bool {
    lazy::is_lazy(mapping) && !mapping.flags.iter().any(|flag| flag == "hg")
}

/// Those of some address spaces, by their numbers, that have enough pages for it.
pub(super) fn worth_it(manifest: &Manifest, mut spaces: HashSet<usize>) -> HashSet<usize> {
    let length = |space: &AddressSpace| -> u64 {
        let extents = space.mappings.iter().filter(|m| is_apart(m)).flat_map(|m| &m.extents);
        extents.map(|extent| extent.length).sum()
    };
    spaces.retain(|index| {
        manifest
            .address_spaces
            .get(*index)
            .is_some_and(|space| length(space) >= LEAST)
    });
    spaces
}

/// A process whose memory is filled.
#[derive(Debug)]
struct Target {
    pid: i32,
    memory: Memory,
    /// None where the kernel gives none.
    filler: Option<DemandPager>,
}

/// Where a piece of the image goes.
#[derive(Debug)]
struct Place {
    /// Number of the process.
    target: usize,
    start: u64,
    /// Whether the descriptor is for that memory.
    is_watched: bool,
    /// How often it is there, one behind the other; more than once for single pages only.
    times: usize,
}

/// What is to be filled.
#[derive(Debug, Default)]
pub(super) struct Filling {
    targets: Vec<Target>,
    /// Position in the image and length.
    pieces: Vec<(u64, u64)>,
    /// Where each goes.
    places: Vec<Place>,
}

impl Filling {
    /// Adds the mappings of a stub that [`is_apart`] tells of. They are mapped, and empty.
    ///
    /// # Errors
    /// The stub cannot be worked with.
    pub(super) fn add(&mut self, workshop: &Workshop, pid: i32, space: &AddressSpace) -> Result<()> {
        let (open, set_up) = (demand_paging::open_still_calls, demand_paging::setup_still_calls);
        let made = userfault::make(pid, open, set_up, |batch| workshop.run(pid, batch));
        let filler = made.ok().map(DemandPager::from);
        let memory = workshop.stub(pid)?.memory.try_clone();
        let memory = memory.context(|| format!("copy the descriptor of the memory of process {pid}"))?;
        let number = self.targets.len();
        for mapping in space.mappings.iter().filter(|mapping| is_apart(mapping)) {
            let register = |filler: &DemandPager| filler.register(mapping.start, mapping.end).is_ok();
            let is_watched = filler.as_ref().is_some_and(register);
            for extent in &mapping.extents {
                self.add_piece((extent.offset, extent.length), number, extent.start, is_watched);
            }
        }
        self.targets.push(Target { pid, memory, filler });
        Ok(())
    }

    fn add_piece(&mut self, piece: (u64, u64), target: usize, start: u64, is_watched: bool) {
        let is_page = piece.1 == PAGE_SIZE as u64;
        if let Some(last) = self.places.last_mut().filter(|_| is_page)
            && self.pieces.last() == Some(&piece)
            && (last.target, last.is_watched) == (target, is_watched)
            && last.start + (last.times * PAGE_SIZE) as u64 == start
        {
            last.times += 1;
            return;
        }
        self.pieces.push(piece);
        self.places.push(Place {
            target,
            start,
            is_watched,
            times: 1,
        });
    }

    /// Verifies all page data of the image and fills what is to be filled. It is all the process's own then.
    ///
    /// # Errors
    /// [`cpr_types::ErrorKind::Damaged`] for page data that are altered; no memory is left.
    pub(super) fn run(self, image: &Image) -> Result<()> {
        let Filling {
            targets,
            pieces,
            places,
        } = &self;
        let repeated: Mutex<Vec<Repeated>> = Mutex::default();
        image.verify_and_take(pieces, &|piece, done, pages| {
            let &Place {
                target,
                start,
                is_watched,
                times,
            } = &places[piece];
            match times * pages.len() {
                _ if times == 1 => targets[target].put(start + done, pages, is_watched),
                length if length <= PIECE => targets[target].put(start, &pages.repeat(times), is_watched),
                length => {
                    let mut repeated = repeated.lock().unwrap_or_else(PoisonError::into_inner);
                    repeated.extend((0..length).step_by(SHARE).map(|from| Repeated {
                        piece,
                        page: pages.to_vec(),
                        from,
                        length: SHARE.min(length - from),
                    }));
                    Ok(())
                }
            }
        })?;
        let repeated = repeated.into_inner().unwrap_or_else(PoisonError::into_inner);
        let done = each(2, &repeated, |part| {
            let place = &places[part.piece];
            part.put(&targets[place.target], place)
        })?;
        done.into_iter().collect()
    }
}

/// A part of memory in which all pages are equal, and were verified.
#[derive(Debug)]
struct Repeated {
    piece: usize,
    page: Vec<u8>,
    /// How far into it, bytes.
    from: usize,
    length: usize,
}

impl Repeated {
    fn put(&self, target: &Target, place: &Place) -> Result<()> {
        let pages = self.page.repeat(PIECE / PAGE_SIZE);
        for at in (0..self.length).step_by(PIECE) {
            let pages = &pages[..PIECE.min(self.length - at)];
            target.put(place.start + (self.from + at) as u64, pages, place.is_watched)?;
        }
        Ok(())
    }
}

impl Target {
    /// Puts whole pages where none are; to memory that the descriptor is not for they are written as by a debugger.
    fn put(&self, start: u64, pages: &[u8], is_watched: bool) -> Result<()> {
        let what = || format!("fill memory at {start:#x} of process {}", self.pid);
        let Some(filler) = self.filler.as_ref().filter(|_| is_watched) else {
            return self.memory.write(start, pages).context(what);
        };
        let mut done = 0;
        while done < pages.len() as u64 {
            let (more, result) = filler.copy(start + done, &pages[done as usize..]);
            done += more;
            match result {
                // The kernel says so after a part, and why with the next one.
                Err(error) if more == 0 || error.raw_os_error() != Some(libc::EAGAIN) => {
                    return Err(error).context(what);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
