//! Attaching to the threads of a job while they run, so that the stop itself is short.

use std::collections::{HashMap, HashSet};

use cpr_kernel::proc::{self, ProcDir};
use cpr_kernel::ptrace::Tracee;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::ATTACHED;
use super::ends::Ends;
use super::members::{Members, Scope};
use super::stop::{Purpose, SLEEPERS};

/// How often a thread may refuse to be attached to before that is believed.
const TRIES: u32 = 5;

/// A thread that is attached to.
#[derive(Debug, Clone)]
pub(super) struct Seized {
    pub(super) pid: i32,
    pub(super) tracee: Tracee,
    /// When it fell asleep, as its scheduling record counts it.
    pub(super) asleep_since: Option<u64>,
    /// The kernel's function that it slept in.
    pub(super) asleep_in: Option<String>,
}

impl Seized {
    pub(super) fn new(pid: i32, tracee: Tracee) -> Self {
        Seized {
            pid,
            tracee,
            asleep_since: None,
            asleep_in: None,
        }
    }
}

/// All threads that are attached to.
#[derive(Debug, Default)]
pub(super) struct Attached {
    threads: HashMap<i32, Seized>,
    /// Their numbers in the order in which they were attached to.
    order: Vec<i32>,
    /// Processes of which no main thread could be attached to: it has ended.
    dead: HashSet<i32>,
}

impl Attached {
    /// Numbers of all threads, those that were attached to first before the others.
    pub(super) fn tids(&self) -> &[i32] {
        &self.order
    }

    /// All threads with their numbers.
    pub(super) fn threads(&self) -> impl Iterator<Item = (i32, &Seized)> {
        self.threads.iter().map(|(tid, thread)| (*tid, thread))
    }

    pub(super) fn get(&self, tid: i32) -> Option<&Seized> {
        self.threads.get(&tid)
    }

    pub(super) fn get_mut(&mut self, tid: i32) -> Option<&mut Seized> {
        self.threads.get_mut(&tid)
    }

    /// How much is known; it grows with whoever comes, and with whoever is seen to have ended.
    pub(super) fn known(&self) -> usize {
        self.order.len() + self.dead.len()
    }

    fn add(&mut self, thread: Seized) {
        let tid = thread.tracee.tid();
        self.order.push(tid);
        self.threads.insert(tid, thread);
    }

    /// Takes a main thread anew whose number another thread has got since: the same where we are attached to that one,
    /// and otherwise to be attached to.
    pub(super) fn take_anew(&mut self, pid: i32) {
        self.order.retain(|tid| *tid != pid);
        self.threads.remove(&pid);
        if is_ours(pid) {
            self.add(Seized::new(pid, Tracee::born(pid)));
        }
    }

    /// Attaches to all threads of a process that it has now.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it is traced already, [`ErrorKind::Denied`] when the caller may not trace it.
    pub(super) fn attach(&mut self, pid: i32, purpose: Purpose<'_>) -> Result<()> {
        self.attach_to_threads(pid, purpose)?;
        if !self.threads.contains_key(&pid) {
            self.dead.insert(pid);
        }
        Ok(())
    }

    fn attach_to_threads(&mut self, pid: i32, purpose: Purpose<'_>) -> Result<()> {
        let Ok(dir) = ProcDir::open(pid) else {
            return Ok(());
        };
        let mut tries = 0;
        let mut ends = None;
        loop {
            let mut added = false;
            let Ok(tasks) = dir.tasks() else {
                return Ok(());
            };
            let few = purpose.is_save() && tasks.len() <= SLEEPERS;
            let first = tasks.first().copied();
            for tid in tasks {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                // The kernel's own for io_uring: a stop would interrupt what it does, and the program be told of that.
                if tid != pid && dir.is_io_thread(tid).unwrap_or(false) {
                    continue;
                }
                // With the first of several, nobody waits for us yet.
                if first != Some(tid) && ends.is_none() {
                    let others = self.threads().filter(|(_, thread)| thread.pid == pid);
                    ends = Some(Ends::see(others.map(|(tid, _)| tid).collect())?);
                }
                match Tracee::seize(tid, ATTACHED) {
                    Ok(tracee) => {
                        let mut thread = Seized::new(pid, tracee);
                        thread.asleep_in = few.then(|| dir.task_wchan(tid).ok().flatten()).flatten();
                        self.add(thread);
                        ends.iter().for_each(|ends| ends.of(tid));
                        added = true;
                    }
                    Err(error) => match why_not(&dir, pid, tid)? {
                        Skip::Yes => {}
                        // A main thread is dead for a moment when another thread replaces it by execve(2).
                        Skip::No if error.raw_os_error() == Some(libc::EPERM) && tries < TRIES => {
                            tries += 1;
                            added = true;
                        }
                        Skip::No => {
                            return Err(error)
                                .context(|| format!("attach to thread {tid} of process {pid}"))
                                .map_err(explained);
                        }
                    },
                }
            }
            if !added {
                return Ok(());
            }
        }
    }

    /// Attaches to processes that have come since, the youngest first and without looking at anything else before: a
    /// process that only lives until it has started the next one has ended by the time that all have been looked at.
    /// Everybody in the job's own PID namespace who came not from outside is the job's; elsewhere orphans are not.
    ///
    /// # Errors
    /// As [`Attached::attach`].
    pub(super) fn catch(&mut self, scope: Scope, purpose: Purpose<'_>) -> Result<()> {
        if !matches!(scope.members, Members::Namespace) {
            return Ok(());
        }
        let spared = [Some(1), Some(std::process::id() as i32), scope.live_requester()];
        let look = proc::stat_of;
        let pids = proc::pids().context(|| "list /proc")?;
        for pid in pids.into_iter().rev() {
            if self.threads.contains_key(&pid) || self.dead.contains(&pid) || spared.contains(&Some(pid)) {
                continue;
            }
            let Some(stat) = look(pid).ok().filter(|stat| !stat.is_zombie()) else {
                self.dead.insert(pid);
                continue;
            };
            let has_known_parent = stat.ppid == 1 || self.threads.contains_key(&stat.ppid);
            if stat.ppid == 0 || !has_known_parent && look(stat.ppid).is_ok_and(|parent| parent.ppid == 0) {
                continue;
            }
            if let Ok(tracee) = Tracee::seize(pid, ATTACHED) {
                // Before it starts another one. ESRCH: it has ended.
                let _ = tracee.interrupt();
                self.add(Seized::new(pid, tracee));
            }
            self.attach_to_threads(pid, purpose)?;
        }
        Ok(())
    }
}

fn explained(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Denied => error.with_hint(
            "a process that is another user's, or lets nobody look at it (prctl PR_SET_DUMPABLE), can be saved by root only",
        ),
        _ => error,
    }
}

/// Whether we are attached to the thread of this number.
fn is_ours(tid: i32) -> bool {
    proc::status_of(tid).is_ok_and(|status| status.tracer_pid == std::process::id() as i32)
}

pub(super) enum Skip {
    Yes,
    No,
}

/// Tells why a thread cannot be attached to: ended and dead ones do not matter.
pub(super) fn why_not(dir: &ProcDir, pid: i32, tid: i32) -> Result<Skip> {
    let Ok(status) = ProcDir::open_task(pid, tid).and_then(|task| task.status()) else {
        return Ok(Skip::Yes);
    };
    // A main thread that has ended is held by us until the others have.
    let ours = status.tracer_pid == std::process::id() as i32;
    if status.tracer_pid != 0 && !ours {
        return Err(traced(pid, status.tracer_pid));
    }
    if ours || dir.stat().is_ok_and(|stat| stat.is_zombie()) {
        return Ok(Skip::Yes);
    }
    let task = ProcDir::open_task(pid, tid).and_then(|task| task.stat());
    Ok(match task {
        // The main thread may be the first to end.
        Ok(stat) if matches!(stat.state, b'Z' | b'X') => Skip::Yes,
        Err(_) => Skip::Yes,
        _ => Skip::No,
    })
}

/// The error for a process that has a tracer (LBNL-2.2.4B.23).
pub fn traced(pid: i32, tracer: i32) -> Error {
    let name = ProcDir::open(tracer)
        .and_then(|dir| dir.stat())
        .map(|stat| String::from_utf8_lossy(&stat.comm).into_owned())
        .unwrap_or_else(|_| "outside this PID namespace".to_owned());
    Error::new(
        ErrorKind::Unsupported,
        format!("process {pid} is being traced by process {tracer} ({name})"),
    )
    .with_hint("detach the debugger or tracer first")
}
