//! What is done for a checkpoint while the job runs: copying, so that the stop is short.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cpr_kernel::proc::ProcDir;
use cpr_types::{Error, ErrorKind, Result};

use super::request::{After, CheckpointRequest, Method};
use crate::beside::{beside, each};
use crate::freeze::{self, Purpose, Scope};
use crate::libraries::{Keep, Libraries};
use crate::live::{self, Basis, Copied, Earlier, Known};
use crate::memory::FlagTable;
use crate::pipeline::Pipeline;
use crate::restart::available_memory;
use crate::{cgroups, files, snapshot};

/// A process with less memory than this, bytes, is copied while it stands still, unless later images are to refer to
/// its pages: to find out what it has written since a copy was made takes as long.
const SMALL: u64 = 512 << 10;
/// So many processes are looked at with a thread for each processor.
const MANY: usize = 8;
/// Flags of mappings that were read longer ago are read again.
const FRESH: Duration = Duration::from_millis(50);
/// What copying memory of a stopped job is taken to reach where it was not measured, bytes a second.
const UNMEASURED_RATE: u64 = 1 << 30;
/// Bytes of memory that each process has for itself.
pub(super) struct Resident(HashMap<i32, u64>);

impl Resident {
    pub(super) fn of(scope: Scope) -> Result<Self> {
        let mut own = HashMap::new();
        for pid in freeze::members(scope)? {
            if let Ok(status) = cpr_kernel::proc::status_of(cpr_kernel::proc::acting(pid)) {
                own.insert(pid, status.rss_own_kib * 1024);
            }
        }
        Ok(Resident(own))
    }

    pub(super) fn all(&self) -> u64 {
        self.0.values().sum()
    }

    /// That of processes of which no copy has been made.
    pub(super) fn without(&self, copied: &[Copied]) -> u64 {
        let is_copied = |pid: &i32| copied.iter().any(|copied| copied.pid() == *pid);
        let rest = self.0.iter().filter(|(pid, _)| !is_copied(pid));
        rest.map(|(_, bytes)| bytes).sum()
    }

    /// Whether the stop is shorter where processes are forked in it, and what is `left` is read from the copies.
    pub(super) fn is_worth_snapshots(&self, root: i32, left: u64, rate: u64) -> bool {
        // The job must not die of what a checkpoint takes: neither of the machine's limit nor of its own.
        let room = || {
            let own = ProcDir::open_living(root)
                .ok()
                .and_then(|proc| cgroups::memory_left(&proc))?;
            Some(available_memory()?.min(own))
        };
        snapshot::pays(left, rate, self.all(), self.0.len(), room())
    }
}

/// What an image refers to, and the processes that were tracked since an earlier one.
pub(super) fn take_up(earlier: Option<Earlier>, basis: Basis) -> (Known, Vec<Copied>) {
    let Some(earlier) = earlier else {
        return (Known::default(), Vec::new());
    };
    let known = Known::new(&earlier, basis);
    let mut copied = live::take_up(earlier.processes);
    live::register(&mut copied, &known);
    match copied.is_empty() {
        true => (Known::default(), copied),
        false => (known, copied),
    }
}

/// Programs and libraries that are saved with the job.
pub(super) fn early_libraries(scope: Scope, keep: Keep, writer: &mut Pipeline<'_, '_>) -> Result<Libraries> {
    let mut libraries = Libraries::new(keep);
    if keep != Keep::default() {
        for pid in freeze::members(scope)? {
            if let Ok(proc) = ProcDir::open_living(pid) {
                libraries.save_early(&proc, writer)?;
            }
        }
    }
    Ok(libraries)
}

/// How copying the running job went.
pub(super) struct Running {
    pub(super) method: Method,
    /// How fast was copied, bytes a second.
    pub(super) rate: u64,
    /// About what was written since, bytes.
    pub(super) written: u64,
    /// How long the job stood still for it, nanoseconds.
    pub(super) first_stop_ns: u64,
    /// The flags of all mappings, where they were read beside it.
    flags: Option<(FlagTable, Instant)>,
}

impl Running {
    /// The flags of all mappings, as they are just before the stop: those that were read beside the copying, where that
    /// is not long ago and no mapping has come since. `anew`: they are read now.
    pub(super) fn flags(&mut self, scope: Scope, anew: bool) -> Result<FlagTable> {
        match self.flags.take() {
            Some((flags, since)) if !anew && since.elapsed() < FRESH && knows_all(&flags, scope)? => Ok(flags),
            _ => flags_of(scope),
        }
    }
}

/// Copies a job that goes on, all but what it writes in the last moments. Of others nothing is copied.
pub(super) fn copy_running(
    scope: Scope,
    request: &CheckpointRequest,
    resident: &Resident,
    known: &Known,
    copied: &mut Vec<Copied>,
    writer: &mut Pipeline<'_, '_>,
) -> Result<Running> {
    let mut running = Running {
        method: Method::Stop,
        rate: UNMEASURED_RATE,
        written: 0,
        first_stop_ns: 0,
        flags: None,
    };
    if request.after != After::Continue && !request.live && copied.is_empty() {
        return Ok(running);
    }
    writer.enter("copy")?;
    let is_large = |pid: i32| request.keep_tracking || resident.0.get(&pid).is_none_or(|bytes| *bytes >= SMALL);
    let is_new = |pid: i32| !copied.iter().any(|copied| copied.pid() == pid) && is_large(pid) && lives(pid);
    let all = freeze::members(scope)?;
    // One that waits in io_uring_enter(2) for requests that it has just submitted would be told of them early.
    if all.iter().any(|pid| is_new(*pid)) && !all.iter().any(|pid| has_rings(*pid)) {
        let mut frozen = freeze::freeze(scope, Purpose::Call, request.stop_timeout, request.group.as_deref())?;
        let deadline = frozen.deadline();
        live::track(&mut frozen, copied, is_large, deadline);
        frozen.resume()?;
        running.first_stop_ns = frozen.since.elapsed().as_nanos() as u64;
        live::register(copied, known);
    }
    if !copied.is_empty() {
        // Reading the flags takes as long as an increment does, in which little is copied; copying all takes longer
        // than they can be believed.
        let rounds = match known.ancestors.is_empty() {
            true => live::copy_while_running(copied, writer)?,
            false => {
                let since = Instant::now();
                let (flags, rounds) = beside(true, || flags_of(scope), || live::copy_while_running(copied, writer))?;
                running.flags = Some((flags?, since));
                rounds?
            }
        };
        if rounds.settled {
            running.method = Method::Live;
        }
        running.rate = rounds.rate;
        running.written = rounds.left;
    }
    writer.drain()?;
    Ok(running)
}

/// The flags of all mappings. Read when all are tracked, because tracking joins mappings that were apart.
fn flags_of(scope: Scope) -> Result<FlagTable> {
    let mut flags = FlagTable::default();
    let pids = freeze::members(scope)?;
    let read = |pid: &i32| ProcDir::open_living(*pid).and_then(|proc| proc.smaps_flags());
    for (pid, mappings) in pids.iter().zip(each(MANY, &pids, read)?) {
        flags.note(*pid, mappings.unwrap_or_default());
    }
    Ok(flags)
}

/// Whether the flags of all mappings that there are now are known.
fn knows_all(flags: &FlagTable, scope: Scope) -> Result<bool> {
    let maps = |pid: i32| ProcDir::open_living(pid).and_then(|proc| proc.maps());
    let knows = |pid: i32| maps(pid).is_ok_and(|maps| maps.iter().all(|map| flags.has(pid, map)));
    Ok(freeze::members(scope)?.into_iter().all(knows))
}

/// Whether anything of a job lives, as far as that can be seen.
pub(super) fn has_living(scope: Scope) -> bool {
    match freeze::members(scope) {
        Ok(members) => members.iter().any(|pid| lives(*pid)),
        Err(error) => error.kind() != ErrorKind::Gone,
    }
}

/// The error of a job that has ended: whatever was being done could not be done because of that.
pub(super) fn ended_meanwhile(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Usage | ErrorKind::NoSpace | ErrorKind::Cancelled => error,
        _ => Error::new(ErrorKind::Gone, "the job ended while it was being saved").with_source(error),
    }
}

fn lives(pid: i32) -> bool {
    cpr_kernel::proc::stat_of(pid).is_ok_and(|stat| !stat.is_zombie())
}

/// Whether a process has an io_uring instance.
fn has_rings(pid: i32) -> bool {
    let maps = ProcDir::open(pid).and_then(|proc| proc.maps());
    maps.is_ok_and(|maps| maps.iter().any(files::io_uring::is_mapping))
}
