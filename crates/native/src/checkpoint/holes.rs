//! Which pages there are of shared memory that can only be read through a process.
//!
//! Nobody but root may open shared anonymous memory, or a deleted file in memory that no descriptor is open on. Reading
//! it through a mapping makes a page of every hole, so that memory of which little is used would be filled up with zeros.
//! mincore(2), made by the process, tells which pages there are.

use std::ops::Range;
use std::time::Instant;

use cpr_kernel::batch::Batch;
use cpr_kernel::memory::PAGE;
use cpr_types::Result;

use crate::files::SavedFiles;
use crate::freeze::{Frozen, Process};

/// Smaller ranges are just read, in bytes.
const WORTHWHILE: u64 = 1 << 20;
/// Pages asked about at a time; a byte for each fits an arena.
const QUESTIONS: u64 = 32 << 10;

/// Has processes tell which pages there are of what is to be read through them.
///
/// # Errors
/// A process cannot be made to ask.
pub(super) fn find(frozen: &mut Frozen, saved: &mut SavedFiles, deadline: Instant) -> Result<()> {
    // A page that was swapped out is not told from a hole.
    let machine = rustix::system::sysinfo();
    if machine.totalswap != machine.freeswap {
        return Ok(());
    }
    for (pid, address, length) in saved.read_through_mappings() {
        let process = frozen.processes.iter_mut().find(|process| process.pid == pid);
        if let Some(process) = process.filter(|_| length >= WORTHWHILE)
            && let Some(pages) = present(process, address, length, deadline)?
        {
            saved.note_present(pid, address, pages);
        }
    }
    Ok(())
}

/// Where there are pages, as ranges of bytes from `address`; none where the kernel does not tell.
fn present(process: &mut Process, address: u64, length: u64, deadline: Instant) -> Result<Option<Vec<Range<u64>>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut start = 0;
    while start < length {
        let pages = (length - start).div_ceil(PAGE).min(QUESTIONS);
        let mut batch = Batch::new();
        let (vector, answers) = batch.out(pages as usize);
        let call = batch.call(
            libc::SYS_mincore,
            &[(address + start).into(), (pages * PAGE).into(), vector],
        );
        let outcome = process.run(0, &batch, deadline)?;
        if outcome.result(call).is_err() {
            return Ok(None);
        }
        for (index, answer) in outcome.output(answers).iter().enumerate() {
            let at = start + index as u64 * PAGE;
            match found.last_mut() {
                _ if answer & 1 == 0 => {}
                Some(last) if last.end == at => last.end = at + PAGE,
                _ => found.push(at..at + PAGE),
            }
        }
        start += pages * PAGE;
    }
    Ok(Some(found))
}
