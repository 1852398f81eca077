//! Filling the memory of processes from outside, with page data in the instant in which they were verified: each piece
//! of the image is read once, and hashed and copied while it is in a processor's cache, by a thread for each processor.
//!
//! Pages are put with userfaultfd(2): the kernel copies them into new ones without clearing these before, and without a
//! page fault for each. The process must not touch that memory meanwhile, nor must the kernel for it.

use std::collections::HashSet;

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Manifest, Mapping};
use cpr_kernel::demand_paging::{self, DemandPager};
use cpr_kernel::memory::Memory;
use cpr_types::{Context, Result};

use super::lazy;
use super::stub::Workshop;
use crate::userfault;

/// Processes with less page data of this kind, bytes, fill their memory themselves: that is done sooner than a
/// descriptor is made.
const LEAST: u64 = 16 << 20;

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

/// What is to be filled.
#[derive(Debug, Default)]
pub(super) struct Filling {
    targets: Vec<Target>,
    /// Position in the image and length.
    pieces: Vec<(u64, u64)>,
    /// Where each goes: number of the process, address, and whether the descriptor is for that memory.
    places: Vec<(usize, u64, bool)>,
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
                self.pieces.push((extent.offset, extent.length));
                self.places.push((number, extent.start, is_watched));
            }
        }
        self.targets.push(Target { pid, memory, filler });
        Ok(())
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
        image.verify_and_take(pieces, &|piece, done, pages| {
            let (target, start, is_watched) = places[piece];
            targets[target].put(start + done, pages, is_watched)
        })
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
