//! Stopping all threads of a job.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_kernel::arch;
use cpr_kernel::batch::Batch;
use cpr_kernel::proc::{self, ProcDir};
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::attach::{Attached, Skip, why_not};
use super::describe::{Look, describe};
use super::early::{self, Early};
use super::members::{Scope, is_without_leader, members};
use super::{EINTR, ERESTARTSYS, Frozen};
use crate::beside::each;

/// How long a thread that does not stop is waited for before it is asked whether it waits for a child it has
/// stopped with: vfork(2).
const VFORK_PATIENCE: Duration = Duration::from_millis(50);
/// With at most this many threads, the time each fell asleep is read just before it is stopped (tens of microseconds
/// each); with more, relative timeouts start anew after a restart. The same holds, for each process, for where in the
/// kernel they sleep: with more, that is looked at for those of which nothing else tells.
pub(super) const SLEEPERS: usize = 64;

/// So many processes are looked at with a thread for each processor.
const MANY: usize = 8;

/// What a job is stopped for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// To read its state. Sleeping threads may be asked this before the others are stopped ([`Thread::told`]).
    Save(&'a Batch),
    /// To have its processes make a system call or two: of sleeping threads it need not be known what they sleep in.
    Call,
}

impl Purpose<'_> {
    pub(super) fn is_save(self) -> bool {
        matches!(self, Purpose::Save(_))
    }
}

/// Stops all processes of `scope`. The calling thread becomes their tracer and must have SIGCHLD blocked.
///
/// Sleeping threads of a process with many are stopped first; the stop begins with the others.
///
/// Where they start others meanwhile, `group`, a control group of version 2 that holds them all, is frozen until all
/// are stopped: nobody in it starts another then (cgroups(7); XGCP-PG-7). To a program it is as if it was not.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when a process is traced already, [`ErrorKind::TimedOut`] when a thread does not stop in
/// `timeout` (it is named), [`ErrorKind::Denied`] when the caller may not trace one.
pub fn freeze(scope: Scope, purpose: Purpose<'_>, timeout: Duration, group: Option<&Path>) -> Result<Frozen> {
    let mut still: Option<Still> = None;
    let mut attached = Attached::default();
    for pid in members(scope)? {
        attached.attach(pid, purpose)?;
    }
    let deadline = Instant::now() + timeout;
    let early = early::stop(purpose, &attached, deadline)?;
    let mut stopping = Stopping {
        purpose,
        attached,
        asked: early.asked,
        stopped: early.stopped,
        early: early.threads,
        since: Instant::now(),
        deadline,
        patience: VFORK_PATIENCE,
    };
    let all = loop {
        if !stopping.stop_all(&mut still)? {
            continue;
        }
        if let Some(all) = stopping.find_others(scope)? {
            break all;
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "stop the job: it starts new processes faster than they stop",
            )
            .with_hint("raise --timeout"));
        }
        if still.is_none() {
            still = group.and_then(Still::keep);
        }
    };
    // All are stopped by us now, and have to be able to run for us.
    drop(still);
    stopping.describe(scope, all)
}

/// The stop of a job while it is being made.
struct Stopping<'a> {
    purpose: Purpose<'a>,
    attached: Attached,
    /// Who was asked to stop and has not gone on since.
    asked: HashSet<i32>,
    stopped: HashMap<i32, Stopped>,
    /// Those of them that were stopped before the others.
    early: HashMap<i32, Early>,
    since: Instant,
    deadline: Instant,
    /// How long whoever is late is waited for.
    patience: Duration,
}

impl Stopping<'_> {
    /// Stops all threads that are attached to, and tells whether that is done. Where one of them waits for its child, all
    /// have to go on once more, and a control group that is kept still as well.
    fn stop_all(&mut self, still: &mut Option<Still>) -> Result<bool> {
        let running = |tid: &i32| !self.stopped.contains_key(tid);
        let pending: Vec<i32> = self.attached.tids().iter().copied().filter(running).collect();
        let few = self.purpose.is_save() && pending.len() <= SLEEPERS;
        for tid in &pending {
            if let Some(thread) = self.attached.get_mut(*tid) {
                if few && let Ok(dir) = ProcDir::open_task(thread.pid, *tid) {
                    thread.asleep_since = dir.sched_exec_start_ns().ok().flatten();
                }
                // ESRCH: it ended; the wait below tells.
                if self.asked.insert(*tid) {
                    let _ = thread.tracee.interrupt();
                }
            }
        }
        let mut late: Vec<(i32, Tracee)> = Vec::new();
        for tid in pending {
            let Some(thread) = self.attached.get(tid) else {
                continue;
            };
            let soon = self.deadline.min(Instant::now() + VFORK_PATIENCE);
            match wait_stopped(thread.pid, thread.tracee, soon) {
                Ok(result) => drop(self.stopped.insert(tid, result)),
                Err(error) if error.kind() == ErrorKind::TimedOut => late.push((thread.pid, thread.tracee)),
                Err(error) => return Err(error),
            }
        }
        // Whoever ends the others is late until it is seen that they have ended.
        if !late.is_empty() {
            self.see_ends()?;
        }
        if late.iter().any(|(pid, tracee)| in_vfork(*pid, tracee.tid())) {
            // A thread in vfork(2) cannot stop before its child has called exec, and we have stopped the child.
            *still = None;
            self.run_on()?;
        }
        // The child may be late itself: it stops now, and has to go on once more.
        let until = self.deadline.min(Instant::now() + self.patience);
        for (pid, tracee) in late {
            match wait_stopped(pid, tracee, until) {
                Ok(result) => drop(self.stopped.insert(tracee.tid(), result)),
                Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < self.deadline => {
                    self.patience = VFORK_PATIENCE.max(self.since.elapsed());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.is_complete())
    }

    /// Whether every thread that is attached to stands still, or is gone.
    fn is_complete(&self) -> bool {
        self.attached.tids().iter().all(|tid| self.stopped.contains_key(tid))
    }

    fn is_here(&self, tid: i32) -> bool {
        matches!(self.stopped.get(&tid), Some(Stopped::Here { .. }))
    }

    /// Lets those that stand still go on, still attached to. Who was stopped by a signal stays.
    fn run_on(&mut self) -> Result<()> {
        let here = self
            .stopped
            .extract_if(|_, stopped| matches!(stopped, Stopped::Here { group: None }));
        let here: Vec<i32> = here.map(|(tid, _)| tid).collect();
        for tid in here {
            self.asked.remove(&tid);
            self.early.remove(&tid);
            match run_on(Tracee::born(tid)) {
                // Those that went on before it have ended it: the next wait tells.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.context(|| format!("let thread {tid} go on"))?,
            }
        }
        Ok(())
    }

    /// Everything known stands still: whatever else there is was started meanwhile, and is attached to. One that has ended
    /// may have started another one before, after that could have been seen. Gives the processes of the job where there
    /// is nothing new.
    fn find_others(&mut self, scope: Scope) -> Result<Option<Vec<i32>>> {
        let known = self.attached.known();
        self.attached.catch(scope, self.purpose)?;
        let all = members(scope)?;
        for &pid in &all {
            self.attached.attach(pid, self.purpose)?;
        }
        if self.attached.known() != known {
            return Ok(None);
        }
        self.see_ends()?;
        let is_alive = self.look_again(&all);
        Ok((!is_alive && self.is_complete()).then_some(all))
    }

    /// Sees the end of threads that stood still and were ended all the same, by another one that ends the program or
    /// replaces it: nobody else is told, and the other one waits for that. The end of a main thread is told after that of
    /// all others, or another thread has its number then: it is not stopped any more.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] for one that does not end in time.
    fn see_ends(&mut self) -> Result<()> {
        for (tid, thread) in self.attached.threads() {
            let was_ended = |error: std::io::Error| error.raw_os_error() == Some(libc::ESRCH);
            if !self.is_here(tid) || !thread.tracee.signal_mask().is_err_and(was_ended) {
                continue;
            }
            if tid == thread.pid {
                self.stopped.remove(&tid);
                self.asked.remove(&tid);
            } else {
                let ended = wait_stopped(thread.pid, thread.tracee, self.deadline)?;
                self.stopped.insert(tid, ended);
            }
        }
        Ok(())
    }

    /// Tells whether there is a process that is alive though no thread of it stands still. A thread that replaces its
    /// program by execve(2) gets the number of the main thread, which we are not told of.
    fn look_again(&mut self, all: &[i32]) -> bool {
        let mut is_alive = false;
        for &pid in all {
            if self.is_here(pid) {
                continue;
            }
            match proc::stat_of(pid) {
                Ok(stat) if stat.is_zombie() || stat.state == b'X' => {}
                // Its main thread has ended.
                Ok(stat) if stat.state == b'Z' => {
                    let mut threads = self.attached.threads().filter(|(_, thread)| thread.pid == pid);
                    is_alive |= !threads.any(|(tid, _)| self.is_here(tid));
                }
                Ok(_) => {
                    is_alive = true;
                    self.stopped.remove(&pid);
                    self.asked.remove(&pid);
                    self.attached.take_anew(pid);
                }
                Err(_) => {}
            }
        }
        is_alive
    }

    /// Everything about all processes.
    fn describe(mut self, scope: Scope, all: Vec<i32>) -> Result<Frozen> {
        let mut frozen = Frozen {
            processes: Vec::new(),
            since: self.since,
            scope,
            deadline: self.deadline,
        };
        let mut threads: HashMap<i32, Vec<i32>> = HashMap::new();
        for (tid, thread) in self.attached.threads() {
            threads.entry(thread.pid).or_default().push(tid);
        }
        let listed = all
            .into_iter()
            .map(|pid| (pid, threads.remove(&pid).unwrap_or_default()));
        let listed: Vec<(i32, Vec<i32>)> = listed.collect();
        let looks = each(MANY, &listed, |(pid, tids)| Look::at(*pid, tids, &self.stopped))?;
        for ((pid, tids), look) in listed.into_iter().zip(looks) {
            let (stopped, early) = (&self.stopped, &mut self.early);
            let process = describe(pid, &self.attached, tids, look, stopped, early, self.deadline)?;
            frozen.processes.extend(process);
        }
        if self.purpose.is_save() {
            for process in &mut frozen.processes {
                process.settle_restarts(self.deadline)?;
            }
        }
        Ok(frozen)
    }
}

/// A control group that is frozen, until it is dropped.
#[derive(Debug)]
pub(super) struct Still {
    pub(super) switch: File,
}

impl Still {
    /// Freezes a group; none where that cannot be done, and the stop has to do without. It is not waited for: who has
    /// not come so far starts nobody all the same (kernel/cgroup/freezer.c).
    pub(super) fn keep(group: &Path) -> Option<Still> {
        let mut switch = File::options().write(true).open(group.join("cgroup.freeze")).ok()?;
        switch.write_all(b"1").ok()?;
        Some(Still { switch })
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // It was written to a moment ago; and who waits for us thaws it where we could not.
        let _ = self.switch.write_all(b"0");
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Stopped {
    Here {
        group: Option<i32>,
    },
    /// It has ended, or another thread has replaced the program.
    Gone,
}

pub(super) fn wait_stopped(pid: i32, tracee: Tracee, deadline: Instant) -> Result<Stopped> {
    let tid = tracee.tid();
    loop {
        let stop = match tracee.wait(deadline) {
            Ok(stop) => stop,
            // A main thread that has ended before it stopped: its end is told when all have ended.
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut && tid == pid && is_without_leader(pid) => {
                return Ok(Stopped::Gone);
            }
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                let state = ProcDir::open_task(pid, tid)
                    .and_then(|t| t.stat())
                    .map(|s| s.state as char);
                let doing = match state {
                    Ok('D') => " (it sleeps uninterruptibly, perhaps on a device, a dead file server, or in vfork)",
                    _ => "",
                };
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("stop thread {tid} of process {pid}{doing}"),
                )
                .with_source(error)
                .with_hint("raise --timeout, or try again later"));
            }
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Stopped::Gone),
            Err(error) => return Err(error).context(|| format!("wait for thread {tid} of process {pid}")),
        };
        match stop {
            Stop::Interrupted(signal) => {
                let group = (signal != libc::SIGTRAP).then_some(signal);
                return Ok(Stopped::Here { group });
            }
            Stop::Exited(_) | Stop::Killed(_) => return Ok(Stopped::Gone),
            // Any stop clears the request for another (ptrace_stop in kernel/signal.c): it is made again.
            Stop::Signal(signal) => tracee.interrupt().and_then(|()| tracee.cont(signal)),
            Stop::Event(_) | Stop::Syscall => tracee.interrupt().and_then(|()| tracee.cont(0)),
        }
        .or_else(|error| {
            if error.raw_os_error() == Some(libc::ESRCH) {
                Ok(())
            } else {
                Err(error)
            }
        })
        .context(|| format!("let thread {tid} of process {pid} take a signal"))?;
    }
}

/// Whether a thread waits for its child to call exec or end (vfork(2), CLONE_VFORK), whether or not that is in its memory.
fn in_vfork(pid: i32, tid: i32) -> bool {
    let call = ProcDir::open(pid).and_then(|process| process.task_syscall(tid));
    call.is_ok_and(|call| call.is_some_and(arch::may_wait_for_child))
}

/// Lets a thread that was stopped and not touched go on, still attached to.
pub(super) fn run_on(tracee: Tracee) -> std::io::Result<()> {
    restart_call(tracee)?;
    tracee.cont(0)
}

/// Makes a system call that only our stop has ended with EINTR start again.
pub(super) fn restart_call(tracee: Tracee) -> std::io::Result<()> {
    let mut registers = tracee.registers()?;
    if let Some(number) = registers.interrupted_syscall()
        && registers.syscall_result() == EINTR
        && arch::is_eintr_only(number)
    {
        registers.set_syscall_result(ERESTARTSYS);
        tracee.set_registers(&registers)?;
    }
    Ok(())
}

/// Stops a running thread for an instant. A futex wait in it starts again, and so looks at its word anew. A thread that
/// has ended is nothing to complain of.
///
/// # Errors
/// [`ErrorKind::TimedOut`] when it does not stop until `deadline`, [`ErrorKind::Denied`] without the right to trace it.
pub fn nudge(pid: i32, tid: i32, deadline: Instant) -> Result<()> {
    let Ok(dir) = ProcDir::open(pid) else {
        return Ok(());
    };
    let gone = |error: &std::io::Error| error.raw_os_error() == Some(libc::ESRCH);
    let what = || format!("stop thread {tid} of process {pid} for an instant");
    let options = SeizeOptions {
        kill_on_exit: false,
        follow: false,
    };
    let tracee = match Tracee::seize(tid, options) {
        Ok(tracee) => tracee,
        Err(error) => match why_not(&dir, pid, tid)? {
            Skip::Yes => return Ok(()),
            Skip::No => return Err(error).context(what),
        },
    };
    match tracee.interrupt() {
        Err(error) if gone(&error) => return Ok(()),
        result => result.context(what)?,
    }
    match wait_stopped(pid, tracee, deadline)? {
        Stopped::Gone => Ok(()),
        Stopped::Here { .. } => match restart_call(tracee).and_then(|()| tracee.detach(0)) {
            Err(error) if gone(&error) => Ok(()),
            result => result.context(what),
        },
    }
}
