//! Stopping a whole process tree with ptrace, and letting it go again.
//!
//! A [`Frozen`] tree is complete: every thread of every process of it is stopped, so none can start another. Dropping
//! it lets everything go on as if nothing had happened.

mod attach;
mod describe;
mod early;
mod ends;
mod members;
mod process;
mod stop;
mod together;

use std::time::{Duration, Instant};

use cpr_kernel::process::PidFd;
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_types::{Context, Error, ErrorKind, Result};

use process::put_right;

pub use attach::traced;
pub use describe::credentials;
pub use members::{Members, Scope, members};
pub use process::{Process, Space, Thread, interrupts, loaded_number, park};
pub use stop::{Purpose, freeze, nudge};
pub use together::{call_each, map_arenas, run_each};

/// Kernel-internal results of interrupted system calls (<linux/errno.h>).
const ERESTARTSYS: i64 = -512;
const EINTR: i64 = -4;
/// How threads of a job are attached to: they live on when we die.
const ATTACHED: SeizeOptions = SeizeOptions {
    kill_on_exit: false,
    follow: false,
};

/// A stopped process tree.
#[derive(Debug)]
pub struct Frozen {
    /// Processes, every parent before its children.
    pub processes: Vec<Process>,
    /// When the first thread was asked to stop that was not taken to be asleep.
    pub since: Instant,
    /// Which processes these are.
    pub scope: Scope,
    deadline: Instant,
}

impl Frozen {
    /// When waiting for a stopped thread has to end.
    pub fn deadline(&self) -> Instant {
        self.deadline.max(Instant::now() + Duration::from_secs(10))
    }

    /// Lets everything go on. Returns the first failure; the rest is let go all the same.
    pub fn resume(&mut self) -> Result<()> {
        self.let_go(false)
    }

    /// The same, but all processes are stopped by SIGSTOP before they have done anything.
    pub fn resume_stopped(&mut self) -> Result<()> {
        self.let_go(true)
    }

    fn let_go(&mut self, stopped: bool) -> Result<()> {
        let deadline = self.deadline();
        let mut first: Result<()> = Ok(());
        let mut dying = Vec::new();
        let unmapped = together::unmap_arenas(&mut self.processes, deadline);
        for process in &mut self.processes {
            first = first.and(process.conceal(deadline));
        }
        first = first.and(unmapped);
        let mut note = |result: std::io::Result<()>, tracee: Tracee| match result {
            // Those let go before it have ended it already, by exit_group(2), execve(2) or SIGKILL.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => dying.push(tracee),
            result => {
                let result = result.context(|| format!("let thread {} go on", tracee.tid()));
                if first.is_ok() {
                    first = result;
                }
            }
        };
        // Those that were stopped last go on first.
        for process in &self.processes {
            let mut stop = stopped && !process.threads.is_empty();
            let mut threads: Vec<&Thread> = Vec::with_capacity(process.threads.len());
            for thread in process.threads.iter().filter(|thread| !thread.is_early) {
                let result = put_right(process.pid, thread, deadline).map(|came| stop |= came);
                note(result, thread.tracee);
                threads.push(thread);
            }
            // One that came while it was held was taken away from it.
            if stop && let Some(leader) = process.threads.first() {
                note(stop_again(process.pid), leader.tracee);
            }
            for thread in threads {
                note(thread.tracee.detach(0), thread.tracee);
            }
        }
        for process in self.processes.drain(..) {
            let mut stop = false;
            for thread in process.threads.iter().filter(|thread| thread.is_early) {
                let result = put_right(process.pid, thread, deadline).map(|came| stop |= came);
                note(result.and_then(|()| thread.tracee.detach(0)), thread.tracee);
            }
            if stop && let Some(leader) = process.threads.first() {
                note(stop_again(process.pid), leader.tracee);
            }
        }
        let ended = see_end(&dying, deadline);
        first.and(ended)
    }

    /// Sends SIGKILL to everything, children last so that nobody is told of a death first.
    pub fn kill(mut self) -> Result<()> {
        let mut first: Result<()> = Ok(());
        let mut killed = Vec::new();
        for process in self.processes.drain(..) {
            if process.threads.is_empty() {
                continue;
            }
            let result = PidFd::open(process.pid)
                .and_then(|fd| fd.signal(libc::SIGKILL))
                .context(|| format!("kill process {}", process.pid));
            killed.push(process);
            if first.is_ok() {
                first = result;
            }
        }
        // As the tracer we are told of each thread's end; wait, so that PIDs and locks are free afterwards. All are looked
        // at again and again: the last thread of the first process of a PID namespace ends when nobody is left in it,
        // and all others are there until we have seen their end.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut left: Vec<Tracee> = killed.iter().rev().flat_map(threads_last_first).collect();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|tracee| match cpr_kernel::ptrace::poll(tracee.tid()) {
                Ok(Some((_, Stop::Exited(_) | Stop::Killed(_)))) | Err(_) => false,
                Ok(Some(_)) => {
                    let _ = tracee.cont(0);
                    true
                }
                Ok(None) => true,
            });
            let remaining = deadline.saturating_duration_since(Instant::now());
            if let Some(tracee) = left.first().filter(|_| left.len() == before) {
                if remaining.is_zero() {
                    break;
                }
                // Whoever ends wakes us.
                let soon = Instant::now() + remaining.min(Duration::from_millis(20));
                match tracee.wait(soon) {
                    Ok(Stop::Exited(_) | Stop::Killed(_)) => {
                        left.remove(0);
                    }
                    Ok(_) => {
                        let _ = tracee.cont(0);
                    }
                    Err(_) => {}
                }
            }
        }
        first
    }
}

/// Sends a process SIGSTOP.
fn stop_again(pid: i32) -> std::io::Result<()> {
    PidFd::open(pid).and_then(|fd| fd.signal(libc::SIGSTOP))
}

/// The threads of a process, the first one last.
fn threads_last_first(process: &Process) -> impl Iterator<Item = Tracee> + '_ {
    process.threads.iter().rev().map(|thread| thread.tracee)
}

/// Sees the end of threads that were killed while they were held. Nobody else is told of it before; a process's first
/// thread is the last to be reported.
fn see_end(dying: &[Tracee], deadline: Instant) -> Result<()> {
    let mut left: Vec<Tracee> = dying.to_vec();
    while !left.is_empty() {
        let mut waiting = Vec::new();
        for &tracee in left.iter().rev() {
            match cpr_kernel::ptrace::poll(tracee.tid()) {
                Ok(Some((_, Stop::Exited(_) | Stop::Killed(_)))) => {}
                // ECHILD: seen already, or another thread's execve(2) has its number now.
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {}
                Err(error) => return Err(error).context(|| format!("see thread {} end", tracee.tid())),
                Ok(Some(_)) => {
                    let _ = tracee.detach(0);
                    waiting.push(tracee);
                }
                Ok(None) => waiting.push(tracee),
            }
        }
        if Instant::now() > deadline {
            let tids: Vec<String> = waiting.iter().map(|tracee| tracee.tid().to_string()).collect();
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "see the end of threads that were killed in the stop: {}",
                    tids.join(", ")
                ),
            ));
        }
        waiting.reverse();
        left = waiting;
        if !left.is_empty() {
            std::thread::yield_now();
        }
    }
    Ok(())
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nothing can be reported from here; whoever wants to know calls resume().
        let _ = self.resume();
    }
}
