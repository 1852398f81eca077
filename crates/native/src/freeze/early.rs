//! Threads that are asleep are stopped before the others.
//!
//! Of a program with many threads most wait for something. To stop one of them, and to have it say what only it can say,
//! takes tens of microseconds, in which nobody has to stand still who has something to do. So these are stopped and
//! asked first, and the stop of the job begins with those that run.
//!
//! Whether a thread sleeps is a guess: it has not run for some milliseconds. Where the guess is wrong it stands still for
//! longer than it had to. What others may change of a thread that stands still is looked at again later.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use cpr_kernel::arch::Registers;
use cpr_kernel::batch::{Batch, Outcome};
use cpr_kernel::proc::{ProcDir, Status};
use cpr_kernel::ptrace::{RseqConfiguration, Tracee};
use cpr_kernel::remote::Deferred;
use cpr_types::{Context, Result};

use super::Purpose;
use super::attach::Attached;
use super::process::{Process, Space, Thread};
use super::stop::{SLEEPERS, Stopped, wait_stopped};
use crate::files;

/// How long a thread has not run that is taken to be asleep. Each is looked at twice, so far apart.
const ASLEEP: Duration = Duration::from_millis(5);
/// How long threads that were taken to be asleep may take to stop before the others are stopped as well.
const PATIENCE: Duration = Duration::from_millis(50);
/// Room for what threads are asked at the same time, bytes.
const ROOM: u64 = 256 << 10;

/// What a thread has told before the others were stopped.
#[derive(Debug)]
pub struct Told {
    /// Answers to the batch of [`Purpose::Save`].
    pub answers: Outcome,
    /// Vector registers, as [`Tracee::extended`] gives them.
    pub extended: Vec<u8>,
    /// Restartable sequences.
    pub rseq: RseqConfiguration,
    /// Its /proc status. Its name may be another one by now.
    pub status: Status,
}

/// A thread that was stopped early.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) registers: Registers,
    pub(super) mask: u64,
    pub(super) deferred: Deferred,
    pub(super) told: Option<Told>,
}

/// What has been stopped before the others.
#[derive(Debug, Default)]
pub(super) struct EarlyStop {
    /// Who was asked to stop.
    pub(super) asked: HashSet<i32>,
    /// Who stands still, or has ended.
    pub(super) stopped: HashMap<i32, Stopped>,
    /// More of those that stand still.
    pub(super) threads: HashMap<i32, Early>,
}

/// Stops the sleeping threads of processes that have many, and asks them. All threads must be attached to.
///
/// # Errors
/// As for the stop of any thread; where only what a thread would tell cannot be had, it is asked like the others later.
pub(super) fn stop(purpose: Purpose<'_>, attached: &Attached, deadline: Instant) -> Result<EarlyStop> {
    let mut early = EarlyStop::default();
    let mut threads: HashMap<i32, Vec<Tracee>> = HashMap::new();
    for (_, thread) in attached.threads() {
        threads.entry(thread.pid).or_default().push(thread.tracee);
    }
    threads.retain(|_, tracees| tracees.len() > SLEEPERS);
    for (pid, tracees) in threads {
        let Some(mut process) = suited(pid) else { continue };
        let Some(asleep) = asleep(&process, tracees) else {
            continue;
        };
        for tracee in &asleep {
            // ESRCH: it ended; the wait tells.
            early.asked.insert(tracee.tid());
            let _ = tracee.interrupt();
        }
        let soon = deadline.min(Instant::now() + PATIENCE);
        for tracee in asleep {
            match wait_stopped(pid, tracee, soon) {
                Ok(result) => {
                    early.stopped.insert(tracee.tid(), result);
                    if let Stopped::Here { group: None } = result
                        && let (Ok(registers), Ok(mask)) = (tracee.registers(), tracee.signal_mask())
                    {
                        process.threads.push(Thread::early(tracee, registers, mask));
                    }
                }
                Err(error) if error.kind() == cpr_types::ErrorKind::TimedOut => {}
                Err(error) => return Err(error),
            }
        }
        let told = match purpose {
            Purpose::Save(questions) if !process.threads.is_empty() => ask(&mut process, questions, deadline)?,
            _ => Vec::new(),
        };
        let mut told = told.into_iter();
        for thread in process.threads {
            let one = Early {
                registers: thread.registers,
                mask: thread.mask,
                deferred: thread.deferred,
                told: told.next().flatten(),
            };
            early.threads.insert(thread.tracee.tid(), one);
        }
    }
    Ok(early)
}

/// The process, without threads, where its threads can be stopped early and asked.
fn suited(pid: i32) -> Option<Process> {
    let proc = ProcDir::open_living(pid).ok()?;
    let (stat, status) = (proc.stat().ok()?, proc.status().ok()?);
    let space = Space::open(&proc).ok()?;
    let mut process = Process {
        pid,
        proc,
        stat,
        status,
        ended_leader: None,
        threads: Vec::new(),
        space: None,
        stopped_by: None,
        concealed: None,
        bound: None,
        is_kept_from_us: None,
    };
    // A filter may be put on all threads at once by any of them. A trap changes the action of an ignored SIGTRAP, which
    // the others could notice. What waits for a request of io_uring would be told of it too early.
    let is_suited =
        process.status.seccomp == 0 && !process.ignores_traps() && !space.maps.iter().any(files::io_uring::is_mapping);
    process.space = Some(space);
    is_suited.then_some(process)
}

/// Those of these threads that have not run for a moment, where that can be seen: without the one that acts for the
/// process, which is asked more.
fn asleep(process: &Process, tracees: Vec<Tracee>) -> Option<Vec<Tracee>> {
    let runs = |tracee: &Tracee| process.proc.task_runs(tracee.tid()).ok();
    let begun = Instant::now();
    let before: Vec<(Tracee, Option<u64>)> = tracees.into_iter().map(|tracee| (tracee, runs(&tracee))).collect();
    before.first()?.1?;
    std::thread::sleep(ASLEEP.saturating_sub(begun.elapsed()));
    let has_slept = |(tracee, before): &(Tracee, Option<u64>)| before.is_some() && runs(tracee) == *before;
    let others = before
        .into_iter()
        .filter(|(tracee, _)| tracee.tid() != process.proc.acting());
    Some(others.filter(has_slept).map(|(tracee, _)| tracee).collect())
}

/// Has these threads say what they are asked, and looks at them. They stand there as before afterwards. None where it
/// cannot be had.
///
/// # Errors
/// The process cannot be put back.
fn ask(process: &mut Process, questions: &Batch, deadline: Instant) -> Result<Vec<Option<Told>>> {
    let answers = process
        .map_arena(ROOM, deadline)
        .and_then(|()| process.keep_arena_from_children(deadline))
        .and_then(|()| process.run_in(0..process.threads.len(), questions, deadline));
    let unmapped = process.unmap_arena(deadline);
    let gone = |error: &std::io::Error| error.raw_os_error() == Some(libc::ESRCH);
    let mut is_there = true;
    for thread in &mut process.threads {
        match thread.give_back() {
            Err(error) if gone(&error) => is_there = false,
            result => result.context(|| format!("put thread {} back", thread.tracee.tid()))?,
        }
    }
    if is_there {
        unmapped?;
    }
    let Ok(answers) = answers else {
        return Ok(Vec::new());
    };
    let look = |(thread, answers): (&Thread, Outcome)| {
        let tracee = thread.tracee;
        Some(Told {
            answers,
            extended: tracee.extended().ok()?,
            rseq: tracee.rseq().unwrap_or_default(),
            status: process.proc.task_status(tracee.tid()).ok()?,
        })
    };
    Ok(process.threads.iter().zip(answers).map(look).collect())
}
