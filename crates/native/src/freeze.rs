//! Stopping a whole process tree with ptrace, and letting it go again.
//!
//! A [`Frozen`] tree is complete: every thread of every process of it is stopped, so none can start another. Dropping
//! it lets everything go on as if nothing had happened.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_kernel::arch::{self, Registers};
use cpr_kernel::batch::{Batch, Outcome};
use cpr_kernel::memory::{Memory, Pagemap};
use cpr_kernel::proc::{self, MapEntry, ProcDir, Stat, Status};
use cpr_kernel::process::{self, LiftedLimit, PidFd};
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_kernel::remote::{self, Arena, Deferred, INJECTION_MASK, Runner};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::concealed::{self, Caller, Concealed};

/// Kernel-internal results of interrupted system calls (<linux/errno.h>).
const ERESTARTSYS: i64 = -512;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -4;

/// With at most this many threads, the time each fell asleep is read just before it is stopped (tens of microseconds
/// each); with more, relative timeouts start anew after a restart. The same holds, for each process, for where in the
/// kernel they sleep: with more, that is looked at for those of which nothing else tells.
const SLEEPERS: usize = 64;

/// How long a thread that is woken from a call may take to sleep in it again.
const SETTLING: Duration = Duration::from_millis(50);

/// How long a thread that does not stop is waited for before it is asked whether it waits for a child it has
/// stopped with: vfork(2).
const VFORK_PATIENCE: Duration = Duration::from_millis(50);

/// How long a process of which only the main thread has ended may take to end wholly: on a loaded machine the others
/// have to be given a processor first.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// How threads of a job are attached to: they live on when we die.
const ATTACHED: SeizeOptions = SeizeOptions {
    kill_on_exit: false,
    follow: false,
};

/// A stopped thread.
#[derive(Debug)]
pub struct Thread {
    /// Its tracer handle.
    pub tracee: Tracee,
    /// Registers as they were when it stopped.
    pub registers: Registers,
    /// Blocked signals as they were.
    pub mask: u64,
    /// When it last went to sleep, on the scheduler's clock; read before it was woken by the stop.
    pub asleep_since: Option<u64>,
    /// Kernel function it slept in before it was attached to (/proc/TID/wchan), if any.
    pub asleep_in: Option<String>,
    /// It was made to run system calls for us, so registers and mask have to be put back.
    injected: bool,
    /// Its last stop was a system-call exit.
    in_syscall_exit: bool,
    deferred: Deferred,
}

/// A stopped process, or a zombie.
#[derive(Debug)]
pub struct Process {
    /// PID.
    pub pid: i32,
    /// Its /proc directory.
    pub proc: ProcDir,
    /// /proc/PID/stat at the stop.
    pub stat: Stat,
    /// /proc/PID/status at the stop.
    pub status: Status,
    /// Threads, the leader first; none for a zombie.
    pub threads: Vec<Thread>,
    /// Memory and page table; none for a zombie.
    pub space: Option<Space>,
    /// The job-control signal it was stopped by before we came.
    pub stopped_by: Option<i32>,
    /// Where nobody may look at the process but for the time of this stop: what it was.
    pub concealed: Option<Concealed>,
}

/// The address space of a stopped process.
#[derive(Debug)]
pub struct Space {
    /// /proc/PID/mem.
    pub memory: Memory,
    /// /proc/PID/pagemap.
    pub pagemap: Pagemap,
    /// /proc/PID/maps at the stop.
    pub maps: Vec<MapEntry>,
    /// A `syscall` instruction.
    pub instruction: u64,
    /// Where batches run, while there is one.
    pub arena: Option<Arena>,
}

/// A stopped process tree.
#[derive(Debug)]
pub struct Frozen {
    /// Processes, every parent before its children.
    pub processes: Vec<Process>,
    /// When the first thread was asked to stop.
    pub since: Instant,
    /// Which processes these are.
    pub scope: Scope,
    deadline: Instant,
}

/// Which processes belong to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// This process and its descendants.
    Tree(i32),
    /// All descendants of the PID namespace's init, which itself stays out.
    Namespace,
    /// Everything in this POSIX session, with all descendants.
    Session(i32),
}

/// What is checkpointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Which processes belong to the job.
    pub members: Members,
    /// Our parent, where it asks for the checkpoint from inside the job: it has to go on and waits for us.
    pub requester: Option<i32>,
}

impl Scope {
    /// The process that asks from inside the job, if there is one.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub fn requester(self) -> Result<Option<i32>> {
        let Some(pid) = self.live_requester() else {
            return Ok(None);
        };
        Ok(everybody(self.members)?.contains(&pid).then_some(pid))
    }

    /// A requester that has ended is our parent no longer, and its number may be anybody's.
    fn live_requester(self) -> Option<i32> {
        let parent = i32::try_from(std::os::unix::process::parent_id()).ok();
        self.requester.filter(|pid| Some(*pid) == parent)
    }
}

/// PIDs of the job, every parent before its children; without us, and without who asks.
///
/// # Errors
/// [`ErrorKind::Gone`] when the root is not there.
pub fn members(scope: Scope) -> Result<Vec<i32>> {
    let own = std::process::id() as i32;
    let requester = scope.live_requester();
    let mut all = everybody(scope.members)?;
    all.retain(|&pid| pid != own && Some(pid) != requester);
    Ok(all)
}

fn everybody(members: Members) -> Result<Vec<i32>> {
    match members {
        Members::Tree(root) => descendants(root),
        Members::Namespace => inhabitants(),
        Members::Session(sid) => session(sid),
    }
}

/// The processes of a session and all below them. Zombies that a process outside has to wait for are left to it.
fn session(sid: i32) -> Result<Vec<i32>> {
    let mut parents: HashMap<i32, i32> = HashMap::new();
    let mut inside: Vec<i32> = Vec::new();
    for pid in cpr_kernel::proc::pids().context(|| "list /proc")? {
        if let Ok(stat) = proc::stat_of(pid) {
            parents.insert(pid, stat.ppid);
            if stat.session == sid && !is_zombie(&stat) {
                inside.push(pid);
            }
        }
    }
    if inside.is_empty() {
        return Err(Error::new(ErrorKind::Gone, format!("session {sid} has no process")));
    }
    // Nobody can be below himself, but what was read one after the other may say so.
    let is_root = |pid: &i32| parents.get(pid).is_none_or(|parent| !inside.contains(parent));
    let mut all: Vec<i32> = inside.iter().copied().filter(is_root).collect();
    all.sort_unstable();
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        next += 1;
        let mut children: Vec<i32> = parents
            .iter()
            .filter(|(child, parent)| **parent == pid && !all.contains(child))
            .map(|(child, _)| *child)
            .collect();
        children.sort_unstable();
        all.extend(children);
    }
    Ok(all)
}

/// A process and all below it, found downwards.
fn descendants(root: i32) -> Result<Vec<i32>> {
    let mut all = vec![root];
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        next += 1;
        match ProcDir::open(pid).and_then(|dir| dir.children()) {
            Ok(children) => all.extend(children),
            Err(error) if pid == root => {
                return Err(Error::new(ErrorKind::Gone, format!("process {pid} does not exist")).with_source(error));
            }
            // It ended meanwhile.
            Err(_) => {}
        }
    }
    Ok(all)
}

/// All processes of our PID namespace that descend from its init. Found by listing and not from parent to child: an
/// orphan that gets a new parent meanwhile must not be missed.
fn inhabitants() -> Result<Vec<i32>> {
    let pids = cpr_kernel::proc::pids().context(|| "list /proc")?;
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids {
        if let Ok(stat) = proc::stat_of(pid) {
            children.entry(stat.ppid).or_default().push(pid);
        }
    }
    let mut all = vec![1];
    let mut next = 0;
    while next < all.len() {
        all.extend(children.remove(&all[next]).unwrap_or_default());
        next += 1;
    }
    // Processes from outside have no parent here (0); a parent that died between two looks is as good as init.
    let strangers: Vec<i32> = children.remove(&0).unwrap_or_default();
    let mut lost: Vec<i32> = children
        .into_iter()
        .filter(|(parent, _)| !strangers.contains(parent))
        .flat_map(|(_, orphans)| orphans)
        .collect();
    lost.sort_unstable();
    all.extend(lost);
    all.remove(0);
    Ok(all)
}

/// Why a process whose main thread is dead cannot be saved; none for others, and for those that are wholly dead.
pub fn without_leader(pid: i32) -> Option<String> {
    let stat = proc::stat_of(pid).ok()?;
    (is_zombie(&stat) && stat.num_threads > 1).then(|| "its main thread has ended while others run".to_owned())
}

/// The same as [`without_leader`] for a process that nobody has stopped: one whose main thread is only the first to end
/// of all is waited for.
pub fn runs_without_leader(pid: i32) -> Option<String> {
    let reason = without_leader(pid)?;
    let ended = PidFd::open(pid).and_then(|process| process.has_ended(LEADER_PATIENCE));
    // An error: it is gone already.
    matches!(ended, Ok(false)).then_some(reason)
}

fn is_zombie(stat: &Stat) -> bool {
    stat.state == b'Z'
}

/// What a job is stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To read its state.
    Save,
    /// To have its processes make a system call or two: of sleeping threads it need not be known what they sleep in.
    Call,
}

/// Stops all processes of `scope`. The calling thread becomes their tracer and must have SIGCHLD blocked.
///
/// Where they start others meanwhile, `group`, a control group of version 2 that holds them all, is frozen until all are
/// stopped: nobody in it starts another then (cgroups(7); XGCP-PG-7). To a program it is as if it was not.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when a process is traced already, [`ErrorKind::TimedOut`] when a thread does not stop in
/// `timeout` (it is named), [`ErrorKind::Denied`] when the caller may not trace one.
pub fn freeze(scope: Scope, purpose: Purpose, timeout: Duration, group: Option<&Path>) -> Result<Frozen> {
    let mut still: Option<Still> = None;
    let mut seized: HashMap<i32, Seized> = HashMap::new();
    let mut order: Vec<i32> = Vec::new();
    let mut dead: HashSet<i32> = HashSet::new();
    // All threads are attached while they run, so that the stop itself is short.
    for pid in members(scope)? {
        seize_process(pid, purpose, &mut seized, &mut order)?;
    }
    let since = Instant::now();
    let deadline = since + timeout;
    let mut stopped: HashMap<i32, Stopped> = HashMap::new();
    let all = loop {
        let mut pending: Vec<i32> = order.iter().copied().filter(|tid| !stopped.contains_key(tid)).collect();
        let few = purpose == Purpose::Save && pending.len() <= SLEEPERS;
        for tid in &pending {
            if let Some(thread) = seized.get_mut(tid) {
                if few && let Ok(dir) = ProcDir::open_task(thread.pid, *tid) {
                    thread.asleep_since = dir.sched_exec_start_ns().ok().flatten();
                }
                // ESRCH: it ended; the wait below tells.
                let _ = thread.tracee.interrupt();
            }
        }
        let mut late: Vec<(i32, i32, Tracee)> = Vec::new();
        for tid in pending.drain(..) {
            let Some(&Seized { pid, tracee, .. }) = seized.get(&tid) else {
                continue;
            };
            let soon = deadline.min(Instant::now() + VFORK_PATIENCE);
            match wait_stopped(pid, tracee, soon) {
                Ok(result) => drop(stopped.insert(tid, result)),
                Err(error) if error.kind() == ErrorKind::TimedOut => late.push((tid, pid, tracee)),
                Err(error) => return Err(error),
            }
        }
        if late.iter().any(|&(_, pid, _)| in_vfork(pid)) {
            // A thread in vfork(2) cannot stop before its child has called exec, and we have stopped the child.
            still = None;
            let here: Vec<i32> = stopped
                .extract_if(|_, s| matches!(s, Stopped::Here { group: None }))
                .map(|(tid, _)| tid)
                .collect();
            for tid in here {
                run_on(Tracee::born(tid)).context(|| format!("let thread {tid} go on"))?;
            }
        }
        for (tid, pid, tracee) in late {
            let result = wait_stopped(pid, tracee, deadline)?;
            stopped.insert(tid, result);
        }
        if order.iter().any(|tid| !stopped.contains_key(tid)) {
            continue;
        }
        // Everything known stands still: whatever else there is was started meanwhile. One that has ended may have
        // started another one before, after that could have been seen.
        let known = order.len() + dead.len();
        catch(scope, purpose, &mut seized, &mut order, &mut dead)?;
        let all = members(scope)?;
        for &pid in &all {
            seize_process(pid, purpose, &mut seized, &mut order)?;
            if !seized.contains_key(&pid) {
                dead.insert(pid);
            }
        }
        if order.len() + dead.len() == known {
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
    let mut frozen = Frozen {
        processes: Vec::new(),
        since,
        scope,
        deadline,
    };
    let mut threads: HashMap<i32, Vec<i32>> = HashMap::new();
    for tid in &order {
        if let Some(thread) = seized.get(tid) {
            threads.entry(thread.pid).or_default().push(*tid);
        }
    }
    for pid in all {
        let process = describe(
            pid,
            &seized,
            threads.remove(&pid).unwrap_or_default(),
            &stopped,
            deadline,
        )?;
        frozen.processes.extend(process);
    }
    if purpose == Purpose::Save {
        for process in &mut frozen.processes {
            process.settle_restarts(deadline)?;
        }
    }
    Ok(frozen)
}

/// A control group that is frozen, until it is dropped.
#[derive(Debug)]
struct Still {
    switch: File,
}

impl Still {
    /// Freezes a group; none where that cannot be done, and the stop has to do without. It is not waited for: who has not
    /// come so far starts nobody all the same (kernel/cgroup/freezer.c).
    fn keep(group: &Path) -> Option<Still> {
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

/// Attaches to processes that have come since, the youngest first and without looking at anything else before: a process
/// that only lives until it has started the next one has ended by the time that all have been looked at. Everybody in
/// the job's own PID namespace who came not from outside is the job's; elsewhere orphans are not.
fn catch(
    scope: Scope,
    purpose: Purpose,
    seized: &mut HashMap<i32, Seized>,
    order: &mut Vec<i32>,
    dead: &mut HashSet<i32>,
) -> Result<()> {
    if !matches!(scope.members, Members::Namespace) {
        return Ok(());
    }
    let spared = [Some(1), Some(std::process::id() as i32), scope.live_requester()];
    let look = proc::stat_of;
    let pids = cpr_kernel::proc::pids().context(|| "list /proc")?;
    for pid in pids.into_iter().rev() {
        if seized.contains_key(&pid) || dead.contains(&pid) || spared.contains(&Some(pid)) {
            continue;
        }
        let Some(stat) = look(pid).ok().filter(|stat| !is_zombie(stat)) else {
            dead.insert(pid);
            continue;
        };
        let has_known_parent = stat.ppid == 1 || seized.contains_key(&stat.ppid);
        if stat.ppid == 0 || !has_known_parent && look(stat.ppid).is_ok_and(|parent| parent.ppid == 0) {
            continue;
        }
        if let Ok(tracee) = Tracee::seize(pid, ATTACHED) {
            // Before it starts another one. ESRCH: it has ended.
            let _ = tracee.interrupt();
            let thread = Seized {
                pid,
                tracee,
                asleep_since: None,
                asleep_in: None,
            };
            seized.insert(pid, thread);
            order.push(pid);
        }
        seize_process(pid, purpose, seized, order)?;
    }
    Ok(())
}

/// A thread that is attached to.
#[derive(Debug, Clone)]
struct Seized {
    pid: i32,
    tracee: Tracee,
    asleep_since: Option<u64>,
    asleep_in: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Stopped {
    Here { group: Option<i32> },
    Gone,
}

fn seize_process(pid: i32, purpose: Purpose, seized: &mut HashMap<i32, Seized>, order: &mut Vec<i32>) -> Result<()> {
    let Ok(dir) = ProcDir::open(pid) else {
        return Ok(());
    };
    loop {
        let mut added = false;
        let Ok(tasks) = dir.tasks() else {
            return Ok(());
        };
        let few = purpose == Purpose::Save && tasks.len() <= SLEEPERS;
        for tid in tasks {
            if seized.contains_key(&tid) {
                continue;
            }
            match Tracee::seize(tid, ATTACHED) {
                Ok(tracee) => {
                    let asleep_in = few.then(|| dir.task_wchan(tid).ok().flatten()).flatten();
                    let thread = Seized {
                        pid,
                        tracee,
                        asleep_since: None,
                        asleep_in,
                    };
                    seized.insert(tid, thread);
                    order.push(tid);
                    added = true;
                }
                Err(error) => match why_not(&dir, pid, tid)? {
                    Skip::Yes => {}
                    Skip::No => {
                        return Err(error)
                            .context(|| format!("attach to thread {tid} of process {pid}"))
                            .map_err(|error| match error.kind() {
                                ErrorKind::Denied => error.with_hint(
                                    "a process that is another user's, or lets nobody look at it (prctl PR_SET_DUMPABLE), \
                                     can be saved by root only",
                                ),
                                _ => error,
                            });
                    }
                },
            }
        }
        if !added {
            return Ok(());
        }
    }
}

enum Skip {
    Yes,
    No,
}

/// Tells why a thread cannot be attached to: ended and dead ones do not matter.
fn why_not(dir: &ProcDir, pid: i32, tid: i32) -> Result<Skip> {
    let Ok(status) = ProcDir::open_task(pid, tid).and_then(|task| task.status()) else {
        return Ok(Skip::Yes);
    };
    if status.tracer_pid != 0 {
        return Err(traced(pid, status.tracer_pid));
    }
    if dir.stat().is_ok_and(|stat| is_zombie(&stat)) {
        // The first thread of all may be the first to end.
        return match runs_without_leader(pid) {
            None => Ok(Skip::Yes),
            Some(reason) => Err(Error::new(ErrorKind::Unsupported, format!("process {pid}: {reason}"))),
        };
    }
    let task = ProcDir::open_task(pid, tid).and_then(|task| task.stat());
    Ok(match task {
        Ok(stat) if matches!(stat.state, b'Z' | b'X') && tid != pid => Skip::Yes,
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

fn wait_stopped(pid: i32, tracee: Tracee, deadline: Instant) -> Result<Stopped> {
    let tid = tracee.tid();
    loop {
        let stop = match tracee.wait(deadline) {
            Ok(stop) => stop,
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

/// Whether a process has a child that still runs in its memory.
fn in_vfork(pid: i32) -> bool {
    let children = ProcDir::open(pid).and_then(|dir| dir.children()).unwrap_or_default();
    children
        .into_iter()
        .any(|child| cpr_kernel::process::shares(cpr_kernel::process::KCMP_VM, pid, child) == Some(true))
}

/// Lets a thread that was stopped and not touched go on, still attached to.
fn run_on(tracee: Tracee) -> std::io::Result<()> {
    restart_call(tracee)?;
    tracee.cont(0)
}

/// Makes a system call that only our stop has ended with EINTR start again.
fn restart_call(tracee: Tracee) -> std::io::Result<()> {
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

/// Everything about a process that is stopped, or dead, with these threads; none for one that was dead already, and has been reaped
/// meanwhile by a parent outside the job.
fn describe(
    pid: i32,
    seized: &HashMap<i32, Seized>,
    mut tids: Vec<i32>,
    stopped: &HashMap<i32, Stopped>,
    deadline: Instant,
) -> Result<Option<Process>> {
    let look = || -> Result<(ProcDir, Stat, Status)> {
        let proc = ProcDir::open(pid).context(|| format!("open /proc/{pid}"))?;
        let stat = proc.stat().context(|| format!("read /proc/{pid}/stat"))?;
        let status = proc.status().context(|| format!("read /proc/{pid}/status"))?;
        Ok((proc, stat, status))
    };
    let (proc, stat, status) = match look() {
        Ok(found) => found,
        Err(_)
            if !tids
                .iter()
                .any(|tid| matches!(stopped.get(tid), Some(Stopped::Here { .. }))) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut threads = Vec::new();
    let mut stopped_by = None;
    tids.sort_by_key(|&tid| (tid != pid, tid));
    for tid in tids {
        let Some(Stopped::Here { group }) = stopped.get(&tid) else {
            continue;
        };
        let Some(Seized {
            tracee,
            asleep_since,
            asleep_in,
            ..
        }) = seized.get(&tid).cloned()
        else {
            continue;
        };
        stopped_by = stopped_by.or(*group);
        let registers = tracee
            .registers()
            .context(|| format!("read the registers of thread {tid}"))?;
        let mask = tracee
            .signal_mask()
            .context(|| format!("read the signal mask of thread {tid}"))?;
        threads.push(Thread {
            tracee,
            registers,
            mask,
            asleep_since,
            asleep_in,
            injected: false,
            in_syscall_exit: false,
            deferred: Deferred::default(),
        });
    }
    if !threads.is_empty()
        && let Some(reason) = without_leader(pid)
    {
        return Err(Error::new(ErrorKind::Unsupported, format!("process {pid}: {reason}")));
    }
    let mut process = Process {
        pid,
        proc,
        stat,
        status,
        threads,
        space: None,
        stopped_by,
        concealed: None,
    };
    process.open_space(deadline)?;
    Ok(Some(process))
}

impl Space {
    /// Opens the address space of the stopped process `proc`.
    pub fn open(proc: &ProcDir) -> Result<Self> {
        let pid = proc.pid();
        let memory = Memory::open(proc.as_fd()).context(|| format!("open /proc/{pid}/mem"))?;
        let pagemap = Pagemap::open(proc.as_fd()).context(|| format!("open /proc/{pid}/pagemap"))?;
        let maps = proc.maps().context(|| format!("read /proc/{pid}/maps"))?;
        let mut instruction = None;
        let executable = |m: &&MapEntry| m.exec && m.read;
        let vdso = maps.iter().find(|m| m.path == b"[vdso]");
        for map in vdso.into_iter().chain(maps.iter().filter(executable)) {
            let length = (map.end - map.start).min(1 << 20) as usize;
            let mut code = vec![0u8; length];
            if memory.read(map.start, &mut code).is_ok()
                && let Some(at) = remote::find_syscall_instruction(&code)
            {
                instruction = Some(map.start + at);
                break;
            }
        }
        let instruction = instruction.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("process {pid}: no system call instruction found in its memory"),
            )
        })?;
        Ok(Space {
            memory,
            pagemap,
            maps,
            instruction,
            arena: None,
        })
    }
}

impl Thread {
    /// The registers the thread goes on with: an interrupted system call that would show EINTR to the program only
    /// because of our stop is made to start again (kernel.md section 6; LBNL-3.7.1.3).
    pub fn resumed_registers(&self, pending: bool) -> Registers {
        let mut registers = self.registers;
        if self.shows_eintr() && !pending {
            registers.set_syscall_result(ERESTARTSYS);
        }
        registers
    }

    /// Whether the thread is about to see that a system call was interrupted that is not made again by itself.
    fn shows_eintr(&self) -> bool {
        let number = self.registers.interrupted_syscall();
        self.registers.syscall_result() == EINTR && number.is_some_and(arch::is_eintr_only)
    }

    /// The registers a new process goes on with: a relative timeout that only the old process's kernel state knew
    /// starts anew (unless it is primed with the remaining time).
    pub fn image_registers(&self, pending: bool) -> Registers {
        let mut registers = self.resumed_registers(pending);
        if registers.interrupted_syscall().is_some() && registers.syscall_result() == ERESTART_RESTARTBLOCK {
            registers.set_syscall_result(ERESTARTNOHAND);
        }
        registers
    }

    /// Whether the kernel restarts a call for the thread, or is about to, and nothing tells which.
    fn restarts_unknown_call(&self, memory: &Memory) -> bool {
        let Some(number) = self.registers.interrupted_syscall() else {
            let mut code = [0u8; arch::SYSCALL_INSTRUCTION.len()];
            return self.registers.syscall_result() == libc::SYS_restart_syscall
                && memory.read(self.registers.program_counter(), &mut code).is_ok()
                && code == arch::SYSCALL_INSTRUCTION;
        };
        number == libc::SYS_restart_syscall
            && self.has_restart_block()
            && self.asleep_in.is_none()
            && loaded_number(memory, self.registers.program_counter()).is_none()
    }

    /// Whether the thread was in a system call whose timeout only the kernel knows.
    pub fn has_restart_block(&self) -> bool {
        self.registers.interrupted_syscall().is_some() && self.registers.syscall_result() == ERESTART_RESTARTBLOCK
    }

    /// Blocks all signals but SIGTRAP, and suspends system call filters, so that the thread can make calls for us. Only
    /// one thread of a process needs to look at the signals `of_process`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a thread with filters that we may not suspend: they could kill it.
    fn prepare(&mut self, pid: i32, of_process: bool) -> Result<()> {
        if !self.injected {
            let tid = self.tracee.tid();
            // It would be delivered as soon as we unblock it, and be lost.
            for shared in [false, true].into_iter().filter(|shared| of_process || !shared) {
                let pending = self.tracee.pending_signals(shared);
                let pending = pending.context(|| format!("read the signals of thread {tid}"))?;
                if interrupts(&pending, !(1 << (libc::SIGTRAP - 1))) {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("thread {tid} has not taken a SIGTRAP yet that was sent to it"),
                    )
                    .with_hint("try again; a program that blocks SIGTRAP has to take it first"));
                }
            }
            // It would be handed our calls, and lose its handler: their signal is blocked while they are made.
            if self.tracee.dispatches_calls().unwrap_or(false) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("process {pid}: thread {tid} has its system calls handed to itself"),
                )
                .with_hint("start the program without prctl(PR_SET_SYSCALL_USER_DISPATCH)"));
            }
            if let Err(error) = self.tracee.suspend_seccomp(ATTACHED) {
                let status = ProcDir::open_task(pid, tid)
                    .and_then(|task| task.status())
                    .context(|| format!("read the status of thread {tid}"))?;
                if status.seccomp != 0 {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("process {pid}: {}", crate::blockers::FILTERED),
                    )
                    .with_source(error)
                    .with_hint(crate::blockers::FILTERED_HINT));
                }
            }
            self.tracee
                .set_signal_mask(INJECTION_MASK)
                .context(|| format!("block the signals of thread {}", self.tracee.tid()))?;
            self.injected = true;
        }
        Ok(())
    }
}

impl Thread {
    /// The thread as one that makes single system calls for us.
    fn caller(&mut self, pid: i32, deadline: Instant) -> Result<Caller<'_>> {
        self.prepare(pid, true)?;
        self.in_syscall_exit = true;
        Ok(Caller {
            tracee: self.tracee,
            registers: &self.registers,
            deferred: &mut self.deferred,
            deadline,
        })
    }

    /// Makes of a thread that has made calls for us one that has not.
    fn put_back(&mut self, deadline: Instant) -> std::io::Result<()> {
        self.deferred.stop |= park(self.tracee, deadline)?;
        self.tracee.set_signal_mask(self.mask)?;
        self.tracee.set_registers(&self.registers)?;
        (self.injected, self.in_syscall_exit) = (false, false);
        Ok(())
    }
}

impl Process {
    /// Opens the address space, of a process that has one. One that lets nobody look at it is made accessible first.
    fn open_space(&mut self, deadline: Instant) -> Result<()> {
        if self.threads.is_empty() {
            return Ok(());
        }
        self.space = match Space::open(&self.proc) {
            Err(error) if error.kind() == ErrorKind::Denied && concealed::may_reveal(&self.proc) => {
                self.reveal(deadline)?;
                let opened = Space::open(&self.proc);
                if opened.is_err() {
                    self.conceal(deadline)?;
                }
                Some(opened?)
            }
            opened => Some(opened?),
        };
        Ok(())
    }

    fn reveal(&mut self, deadline: Instant) -> Result<()> {
        let pid = self.pid;
        if let Some(thread) = self.threads.first_mut() {
            self.concealed = Some(thread.caller(pid, deadline)?.reveal(&self.proc)?);
            thread
                .put_back(deadline)
                .context(|| format!("put process {pid} back"))?;
        }
        Ok(())
    }

    /// Makes a process that was made accessible what it was.
    fn conceal(&mut self, deadline: Instant) -> Result<()> {
        let pid = self.pid;
        match (self.concealed.take(), self.threads.first_mut()) {
            (Some(concealed), Some(thread)) => thread.caller(pid, deadline)?.conceal(concealed, pid),
            _ => Ok(()),
        }
    }

    /// A thread may not have run since a stop before this one, and so not be asleep again in the call the kernel is to
    /// restart. Nothing would tell then which call that is: each such thread is let go until it sleeps.
    fn settle_restarts(&mut self, deadline: Instant) -> Result<()> {
        let pid = self.pid;
        let Some(space) = self.space.as_ref().filter(|_| self.stopped_by.is_none()) else {
            return Ok(());
        };
        let mut ended = Vec::new();
        for (index, thread) in self.threads.iter_mut().enumerate() {
            if !thread.restarts_unknown_call(&space.memory) {
                continue;
            }
            let (tracee, tid) = (thread.tracee, thread.tracee.tid());
            let what = || format!("let thread {tid} of process {pid} go back to sleep");
            let task = ProcDir::open_task(pid, tid).context(what)?;
            tracee.cont(0).context(what)?;
            let until = deadline.min(Instant::now() + SETTLING);
            while thread.asleep_in.is_none() && Instant::now() < until {
                std::thread::yield_now();
                thread.asleep_in = task.wchan().ok().flatten();
            }
            // ESRCH: it ended; the wait tells.
            let _ = tracee.interrupt();
            match wait_stopped(pid, tracee, deadline)? {
                Stopped::Here { group } => {
                    self.stopped_by = self.stopped_by.or(group);
                    thread.registers = tracee.registers().context(what)?;
                    thread.mask = tracee.signal_mask().context(what)?;
                }
                Stopped::Gone => ended.push(index),
            }
        }
        for index in ended.into_iter().rev() {
            self.threads.remove(index);
        }
        if self.threads.first().is_none_or(|thread| thread.tracee.tid() != pid) {
            return Err(Error::new(ErrorKind::Gone, format!("process {pid} has ended")));
        }
        Ok(())
    }

    /// Maps an arena for batches of up to `capacity` bytes.
    pub fn map_arena(&mut self, capacity: u64, deadline: Instant) -> Result<()> {
        let pid = self.pid;
        let (Some(thread), Some(space)) = (self.threads.first_mut(), self.space.as_mut()) else {
            return Ok(());
        };
        thread.prepare(pid, true)?;
        thread.in_syscall_exit = false;
        let mut map = || {
            Arena::map(
                thread.tracee,
                &thread.registers,
                space.instruction,
                &space.memory,
                0,
                capacity,
                deadline,
                &mut thread.deferred,
            )
        };
        let mut mapped = map();
        if mapped
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM))
        {
            // The program may have as much as its limits let it have. What is mapped stays when they are back.
            let limits = [libc::RLIMIT_AS, libc::RLIMIT_DATA];
            let _lifted = limits.map(|resource| LiftedLimit::lift(pid, resource));
            mapped = map();
        }
        let arena = mapped.context(|| format!("map a page in process {pid}")).map_err(|error| {
            match error.kind() {
                ErrorKind::NoSpace => error.with_hint(
                    "the program has as much memory as its limits let it have (ulimit -v, -d), which root can lift for the \
                     time of the checkpoint",
                ),
                _ => error,
            }
        })?;
        space.arena = Some(arena);
        Ok(())
    }

    /// Makes one system call in the first thread, without an arena.
    pub fn call(&mut self, number: i64, arguments: [u64; 6], deadline: Instant) -> Result<std::io::Result<u64>> {
        let (pid, ignores_traps) = (self.pid, self.ignores_traps());
        let (Some(thread), Some(space)) = (self.threads.first_mut(), self.space.as_ref()) else {
            return Err(Error::new(ErrorKind::Internal, format!("process {pid} has no threads")));
        };
        thread.prepare(pid, true)?;
        thread.in_syscall_exit = ignores_traps;
        let call = if ignores_traps { remote::syscall } else { remote::step };
        Ok(call(
            thread.tracee,
            &thread.registers,
            space.instruction,
            number,
            arguments,
            deadline,
            &mut thread.deferred,
        ))
    }

    /// Whether the program ignores SIGTRAP. The traps that we set off make its action the default until
    /// [`Process::unmap_arena`].
    pub fn ignores_traps(&self) -> bool {
        self.status.sig_ignored >> (libc::SIGTRAP - 1) & 1 != 0
    }

    /// Runs a batch in thread number `index`.
    pub fn run(&mut self, index: usize, batch: &Batch, deadline: Instant) -> Result<Outcome> {
        let pid = self.pid;
        let mut outcomes = self.run_in(index..index + 1, batch, deadline)?;
        outcomes
            .pop()
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("process {pid} has no thread {index}")))
    }

    /// Runs a batch in each of these threads, several at the same time; gives the outcomes in their order.
    pub fn run_in(&mut self, indices: Range<usize>, batch: &Batch, deadline: Instant) -> Result<Vec<Outcome>> {
        let pid = self.pid;
        let internal = || Error::new(ErrorKind::Internal, format!("process {pid} has no arena"));
        let threads = self.threads.get_mut(indices).ok_or_else(internal)?;
        let space = self.space.as_ref().ok_or_else(internal)?;
        let arena = space.arena.ok_or_else(internal)?;
        let mut runners = Vec::with_capacity(threads.len());
        for (at, thread) in threads.iter_mut().enumerate() {
            thread.prepare(pid, at == 0)?;
            thread.in_syscall_exit = false;
            runners.push(Runner {
                tracee: thread.tracee,
                base: &thread.registers,
                deferred: &mut thread.deferred,
            });
        }
        arena
            .run_in_each(&mut runners, &space.memory, batch, deadline)
            .map_err(|failed| {
                let kind = ErrorKind::of_io(&failed.error);
                Error::new(kind, format!("process {pid}: {}", failed.what)).with_source(failed.error)
            })
    }

    /// Removes the arena.
    pub fn unmap_arena(&mut self, deadline: Instant) -> Result<()> {
        let (pid, ignores_traps) = (self.pid, self.ignores_traps());
        let (Some(thread), Some(space)) = (self.threads.first_mut(), self.space.as_mut()) else {
            return Ok(());
        };
        let Some(arena) = space.arena.take() else {
            return Ok(());
        };
        thread.in_syscall_exit = true;
        let put_back = if ignores_traps {
            remote::ignore_traps(
                thread.tracee,
                &thread.registers,
                space.instruction,
                arena,
                &space.memory,
                deadline,
                &mut thread.deferred,
            )
            .context(|| format!("make process {pid} ignore SIGTRAP again"))
        } else {
            Ok(())
        };
        let unmapped = arena.unmap(
            thread.tracee,
            &thread.registers,
            space.instruction,
            deadline,
            &mut thread.deferred,
        );
        put_back.and(unmapped.context(|| format!("unmap our page from process {pid}")))
    }
}

/// Puts a stopped thread into a state in which the kernel acts on `-ERESTART*` results when it runs on: a
/// PTRACE_EVENT_STOP, and not the exit of a system call we made. Tells whether SIGSTOP arrived meanwhile.
pub fn park(tracee: Tracee, deadline: Instant) -> std::io::Result<bool> {
    let mut stopped = false;
    loop {
        tracee.interrupt()?;
        tracee.cont(0)?;
        match tracee.wait(deadline)? {
            Stop::Interrupted(_) => return Ok(stopped),
            Stop::Exited(_) | Stop::Killed(_) => return Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
            Stop::Signal(signal) => stopped |= signal == libc::SIGSTOP,
            Stop::Event(_) | Stop::Syscall => {}
        }
    }
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
        for process in &mut self.processes {
            let unmapped = process.unmap_arena(deadline);
            let result = process.conceal(deadline).and(unmapped);
            if first.is_ok() {
                first = result;
            }
        }
        for process in self.processes.drain(..) {
            let shared = process.threads.first().map(|t| t.tracee.pending_signals(true));
            let shared = shared.and_then(std::io::Result::ok).unwrap_or_default();
            let mut stop = stopped && !process.threads.is_empty();
            let mut note = |result: std::io::Result<()>, thread: &Thread| {
                let result = result.context(|| format!("let thread {} go on", thread.tracee.tid()));
                if first.is_ok() {
                    first = result;
                }
            };
            for thread in &process.threads {
                let result = put_right(process.pid, thread, &shared, deadline).map(|came| stop |= came);
                note(result, thread);
            }
            // One that came while it was held was taken away from it.
            if stop && let Some(leader) = process.threads.first() {
                note(PidFd::open(process.pid).and_then(|fd| fd.signal(libc::SIGSTOP)), leader);
            }
            for thread in &process.threads {
                note(thread.tracee.detach(0), thread);
            }
        }
        first
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
        // As the tracer we are told of each thread's end; wait, so that PIDs and locks are free afterwards.
        // Children first: the first process of a PID namespace ends when nobody is left in it.
        let deadline = Instant::now() + Duration::from_secs(10);
        for process in killed.iter().rev() {
            for thread in process.threads.iter().rev() {
                while let Ok(stop) = thread.tracee.wait(deadline) {
                    if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                        break;
                    }
                    let _ = thread.tracee.cont(0);
                }
            }
        }
        first
    }
}

/// Whether one of these signals would interrupt a system call of a thread with this mask.
pub fn interrupts(pending: &[[u8; 128]], mask: u64) -> bool {
    pending.iter().any(|info| {
        let mut raw = [0u8; 4];
        raw.copy_from_slice(&info[..4]);
        let signal = i32::from_ne_bytes(raw);
        (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 0
    })
}

/// Gives a thread back what it had. Tells whether a SIGSTOP came for it meanwhile.
fn put_right(pid: i32, thread: &Thread, shared: &[[u8; 128]], deadline: Instant) -> std::io::Result<bool> {
    let tracee = thread.tracee;
    let pending = thread.shows_eintr() && {
        let own = tracee.pending_signals(false).unwrap_or_default();
        interrupts(shared, thread.mask) || interrupts(&own, thread.mask)
    };
    let registers = thread.resumed_registers(pending);
    let mut stop = thread.deferred.stop;
    if thread.injected {
        if thread.in_syscall_exit {
            stop |= park(tracee, deadline)?;
        }
        tracee.set_signal_mask(thread.mask)?;
    }
    if thread.injected || registers != thread.registers {
        tracee.set_registers(&registers)?;
    }
    if let Some(signal) = thread.deferred.end {
        process::signal_thread_of(pid, tracee.tid(), signal)?;
    }
    Ok(stop)
}

/// The number of a system call that returns to `counter`, where the instruction before it loads it as a constant:
/// mov eax, imm32; syscall.
pub fn loaded_number(memory: &Memory, counter: u64) -> Option<i64> {
    let mut code = [0u8; 7];
    memory.read(counter.checked_sub(7)?, &mut code).ok()?;
    (code[0] == 0xb8 && code[5..] == arch::SYSCALL_INSTRUCTION)
        .then(|| i64::from(u32::from_ne_bytes([code[1], code[2], code[3], code[4]])))
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nothing can be reported from here; whoever wants to know calls resume().
        let _ = self.resume();
    }
}
