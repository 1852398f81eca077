//! On which memory nodes the pages of mappings shall be: mbind(2).
//!
//! Only the process can ask (get_mempolicy(2) with MPOL_F_ADDR), mapping by mapping. Of shared memory whose parts have
//! policies of their own, a mapping gets that of its first page.

use std::time::Instant;

use cpr_image::model::{AddressSpace, Bytes, MemoryPolicy};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::proc::{MapEntry, MapKind};
use cpr_types::{Error, ErrorKind, Result};

use crate::freeze::Process;

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

/// The policies of the mappings of a stopped process that have one: first addresses, in ascending order.
///
/// # Errors
/// The process cannot be asked.
pub fn read(process: &mut Process, deadline: Instant) -> Result<Vec<(u64, MemoryPolicy)>> {
    let starts: Vec<u64> = match &process.space {
        Some(space) => space
            .maps
            .iter()
            .filter(|map| can_have(map))
            .map(|map| map.start)
            .collect(),
        None => return Ok(Vec::new()),
    };
    let mut bound = Vec::new();
    for starts in starts.chunks(QUESTIONS) {
        let mut batch = Batch::new();
        let (modes, modes_out) = batch.out(4 * starts.len());
        let Arg::Data(base) = modes else {
            return Err(Error::new(ErrorKind::Internal, "no output buffer"));
        };
        for (index, start) in starts.iter().enumerate() {
            let place = Arg::Data(base + 4 * index);
            let arguments = [place, Arg::from(0), Arg::from(0), (*start).into(), MPOL_F_ADDR.into()];
            batch.call(libc::SYS_get_mempolicy, &arguments);
        }
        let outcome = process.run(0, &batch, deadline)?;
        let mode = |index: usize| outcome.word32(modes_out, 4 * index);
        bound.extend(
            starts
                .iter()
                .enumerate()
                .filter(|(index, _)| mode(*index) != 0)
                .map(|(_, start)| *start),
        );
    }
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
