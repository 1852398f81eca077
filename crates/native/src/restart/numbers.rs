//! Numbers that a job needs back and somebody else has: of processes, threads, process groups and sessions, which all
//! are PIDs to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use cpr_image::model::Manifest;
use cpr_kernel::proc::{ProcDir, pids};
use cpr_kernel::process::scatter_numbers;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::plan::{self, Step};

const HINT: &str = "end what uses it, or restart in a PID namespace of its own with --namespace always";

/// Who uses a number.
#[derive(Debug, Clone, Copy)]
enum User {
    Itself,
    Session(i32),
    Group(i32),
}

impl User {
    fn error(self, number: i32) -> Error {
        let reason = match self {
            User::Itself => format!("PID {number} is in use"),
            User::Session(by) => format!("session {number} is in use: process {by} is in it"),
            User::Group(by) => format!("process group {number} is in use: process {by} is in it"),
        };
        Error::new(ErrorKind::InUse, reason).with_hint(HINT)
    }
}

/// Sessions and groups of the processes here, by number. A session is told before its group of the same number.
fn joined() -> io::Result<BTreeMap<i32, User>> {
    let mut found = BTreeMap::new();
    for pid in pids()? {
        let Ok(stat) = ProcDir::open(pid).and_then(|dir| dir.stat()) else {
            continue;
        };
        found.insert(stat.session, User::Session(pid));
        found.entry(stat.pgrp).or_insert(User::Group(pid));
    }
    Ok(found)
}

/// How long what has ended may take to be reaped.
const BURIAL: Duration = Duration::from_secs(10);
/// The kernel tells nobody but the parent when a process is reaped, so it is looked for again after this time.
const LOOK: Duration = Duration::from_millis(10);

/// Waits for processes that have ended, and still have numbers that the job needs, to be reaped: where a job has been
/// ended just before, its orphans are init's to reap. Who lives is not waited for.
///
/// # Errors
/// As [`plan::of`]; the processes here cannot be listed.
pub fn await_burials(manifest: &Manifest) -> Result<()> {
    let needed: BTreeSet<i32> = needed(manifest)?.into_iter().map(|(_, number)| number).collect();
    let until = Instant::now() + BURIAL;
    let is_held = || -> io::Result<bool> {
        let stats = pids()?
            .into_iter()
            .filter_map(|pid| ProcDir::open(pid).ok()?.stat().ok());
        let dead = stats.into_iter().filter(|stat| matches!(stat.state, b'Z' | b'X'));
        let mut numbers = dead.flat_map(|stat| [stat.pid, stat.pgrp, stat.session]);
        Ok(numbers.any(|number| needed.contains(&number)))
    };
    while is_held().context(|| "list processes")? && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// By how much the first number that a restarted job gives away exceeds those it has, at least, and how many there are
/// to choose from: what has ended shortly before the checkpoint had such numbers, and programs may remember them.
const GAP: u32 = 2000;
const GAPS: u32 = 10_000;
/// The greatest number that every host has, and the one that the kernel begins with again.
const GREATEST: u32 = 32_767;
const LEAST: u32 = 300;

/// Has the numbers of new processes go on somewhere beyond those of the job, in a PID namespace of its own. All that it
/// needs must be taken. Where they cannot be set they begin with the least that is free.
pub fn go_on(manifest: &Manifest) -> Result<()> {
    let highest = needed(manifest)?.into_iter().map(|(_, number)| number).max();
    scatter_numbers(|random| following(highest.unwrap_or(1).unsigned_abs(), random));
    Ok(())
}

fn following(highest: u32, random: u32) -> u32 {
    let last = highest.saturating_add(GAP + random % GAPS);
    match highest <= GREATEST && last > GREATEST {
        true => LEAST + (last - GREATEST),
        false => last,
    }
}

/// The numbers that the job needs, each with the process that needs it.
fn needed(manifest: &Manifest) -> Result<Vec<(i32, i32)>> {
    let steps = plan::of(manifest)?;
    let made = steps.into_iter().filter_map(|step| match step {
        Step::Create { pid, .. } => Some((pid, pid)),
        _ => None,
    });
    let threads = manifest.processes.iter().flat_map(|process| {
        let tids = process.threads.iter().map(|thread| thread.tid);
        tids.filter(|tid| *tid != process.pid).map(|tid| (process.pid, tid))
    });
    Ok(made.chain(threads).collect())
}

/// Why there can be no process with number `number` (LBNL-3.9.5.2.3, LBNL-3.9.5.3.5, LBNL-3.9.5.4.2).
pub fn refusal(number: i32, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => {
            let user = ProcDir::open(number).map(|_| User::Itself).ok();
            let user = user.or_else(|| joined().ok()?.get(&number).copied());
            user.map_or_else(
                // It may have ended since.
                || {
                    let reason = format!("PID {number} is in use, as a process, thread, process group or session");
                    Error::new(ErrorKind::InUse, reason).with_hint(HINT)
                },
                |user| user.error(number),
            )
            .with_source(error)
        }
        Some(libc::EPERM) => Error::new(ErrorKind::Denied, format!("make a process with PID {number}"))
            .with_hint("it takes CAP_CHECKPOINT_RESTORE, or --namespace always")
            .with_source(error),
        _ => Error::new(ErrorKind::of_io(&error), format!("make a process with PID {number}")).with_source(error),
    }
}

/// All numbers the job needs that are in use: the process that needs it, the number, and by whom.
///
/// # Errors
/// As [`plan::of`]; the processes here cannot be listed.
pub fn in_use(manifest: &Manifest) -> Result<Vec<(i32, i32, Error)>> {
    let joined = joined().context(|| "list processes")?;
    let found = needed(manifest)?
        .into_iter()
        .filter_map(|(pid, number)| {
            let user = ProcDir::open(number).map(|_| User::Itself).ok();
            let user = user.or_else(|| joined.get(&number).copied())?;
            Some((pid, number, user.error(number)))
        })
        .collect();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_beyond_those_of_the_job() {
        assert_eq!(following(5, 0), 2005);
        assert_eq!(following(20_000, 10_001), 22_001);
        assert_eq!(following(GREATEST, 0), LEAST + GAP);
        assert_eq!(following(1_000_000, 7), 1_002_007);
    }
}
