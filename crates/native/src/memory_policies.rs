//! On which memory nodes the pages of mappings shall be: mbind(2).
//!
//! Only the process can ask (get_mempolicy(2) with MPOL_F_ADDR), mapping by mapping. Of shared memory whose parts have
//! policies of their own, a mapping gets that of its first page.

use std::time::Instant;

use cpr_image::model::{AddressSpace, Bytes, MemoryPolicy};
use cpr_kernel::batch::{Arg, Batch, OutId, Outcome};
use cpr_kernel::proc::{MapEntry, MapKind};
use cpr_types::{Error, ErrorKind, Result};

use crate::freeze::{Process, Space};

const MPOL_F_ADDR: u32 = 1 << 1;
/// Bytes of a mask of memory nodes: 1024, as many as a kernel can be built for.
const NODE_MASK_SIZE: usize = 128;
/// Questions asked at a time, which fit an arena.
const QUESTIONS: usize = 64;

/// Whether a mapping can have a policy that counts for something.
fn can_have(map: &MapEntry) -> bool {
    match map.kind() {
        MapKind::Vdso | MapKind::Vvar | MapKind::VvarVclock | MapKind::Vsyscall => false,
        // What is only read is in the page cache, where no policy of a mapping counts.
        MapKind::File => map.write,
        _ => true,
    }
}

/// Which mappings are asked about, and where the answers are.
pub struct Asked {
    starts: Vec<u64>,
    modes: OutId,
}

fn starts(space: &Space) -> Vec<u64> {
    let maps = space.maps.iter().filter(|map| can_have(map));
    maps.map(|map| map.start).collect()
}

/// Adds the questions which mappings have a policy; none where there are too many to be asked about with other things.
///
/// # Errors
/// None but of our own making.
pub fn ask(space: &Space, batch: &mut Batch) -> Result<Option<Asked>> {
    let starts = starts(space);
    match starts.len() <= QUESTIONS {
        true => Asked::about(starts, batch).map(Some),
        false => Ok(None),
    }
}

impl Asked {
    fn about(starts: Vec<u64>, batch: &mut Batch) -> Result<Self> {
        let (place, modes) = batch.out(4 * starts.len());
        let Arg::Data(base) = place else {
            return Err(Error::new(ErrorKind::Internal, "no output buffer"));
        };
        for (index, start) in starts.iter().enumerate() {
            let place = Arg::Data(base + 4 * index);
            let arguments = [place, Arg::from(0), Arg::from(0), (*start).into(), MPOL_F_ADDR.into()];
            batch.call(libc::SYS_get_mempolicy, &arguments);
        }
        Ok(Asked { starts, modes })
    }

    /// The first addresses of the mappings that have a policy.
    pub fn bound(self, outcome: &Outcome) -> Vec<u64> {
        let mode = |index: usize| outcome.word32(self.modes, 4 * index);
        let starts = self.starts.iter().enumerate();
        starts
            .filter(|(index, _)| mode(*index) != 0)
            .map(|(_, start)| *start)
            .collect()
    }
}

/// The policies of the mappings of a stopped process that have one: first addresses, in ascending order.
///
/// # Errors
/// The process cannot be asked.
pub fn read(process: &mut Process, deadline: Instant) -> Result<Vec<(u64, MemoryPolicy)>> {
    let bound = match (process.bound.take(), &process.space) {
        (Some(bound), _) => bound,
        (None, None) => return Ok(Vec::new()),
        (None, Some(space)) => {
            let starts = starts(space);
            let mut bound = Vec::new();
            for starts in starts.chunks(QUESTIONS) {
                let mut batch = Batch::new();
                let asked = Asked::about(starts.to_vec(), &mut batch)?;
                bound.extend(asked.bound(&process.run(0, &batch, deadline)?));
            }
            bound
        }
    };
    let mut found = Vec::with_capacity(bound.len());
    for start in bound {
        let mut batch = Batch::new();
        let (mode, mode_out) = batch.out(8);
        let (nodes, nodes_out) = batch.out(NODE_MASK_SIZE);
        let size = Arg::from(NODE_MASK_SIZE * 8);
        let asked = batch.call(
            libc::SYS_get_mempolicy,
            &[mode, nodes, size, start.into(), MPOL_F_ADDR.into()],
        );
        let outcome = process.run(0, &batch, deadline)?;
        if outcome.result(asked).is_ok() {
            let policy = MemoryPolicy {
                mode: outcome.word32(mode_out, 0),
                nodes: Bytes(outcome.output(nodes_out).to_vec()),
            };
            found.push((start, policy));
        }
    }
    Ok(found)
}

/// Puts policies to the mappings of the image that they are of.
pub fn note(space: &mut AddressSpace, policies: Vec<(u64, MemoryPolicy)>) {
    for (start, policy) in policies {
        if let Ok(at) = space.mappings.binary_search_by_key(&start, |mapping| mapping.start)
            && let Some(mapping) = space.mappings.get_mut(at)
        {
            mapping.policy = Some(policy);
        }
    }
}
