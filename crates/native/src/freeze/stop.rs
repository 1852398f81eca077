//! Stopping all threads of a job.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, Credentials, EndedLeader};
use cpr_kernel::arch;
use cpr_kernel::batch::Batch;
use cpr_kernel::proc::{self, ProcDir, Stat, Status};
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_kernel::remote::Deferred;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::early::{self, Early};
use super::ends::Ends;
use super::members::{Members, Scope, is_without_leader, members};
use super::process::{Process, Space, Thread};
use super::{ATTACHED, EINTR, ERESTARTSYS, Frozen};
use crate::beside::each;

/// How long a thread that does not stop is waited for before it is asked whether it waits for a child it has
/// stopped with: vfork(2).
const VFORK_PATIENCE: Duration = Duration::from_millis(50);
/// With at most this many threads, the time each fell asleep is read just before it is stopped (tens of microseconds
/// each); with more, relative timeouts start anew after a restart. The same holds, for each process, for where in the
/// kernel they sleep: with more, that is looked at for those of which nothing else tells.
pub(super) const SLEEPERS: usize = 64;

/// How often a thread may refuse to be attached to before that is believed.
const TRIES: u32 = 5;
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
    fn is_save(self) -> bool {
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
    let mut seized: HashMap<i32, Seized> = HashMap::new();
    let mut order: Vec<i32> = Vec::new();
    let mut dead: HashSet<i32> = HashSet::new();
    // All threads are attached while they run, so that the stop itself is short.
    for pid in members(scope)? {
        seize_process(pid, purpose, &mut seized, &mut order)?;
    }
    let deadline = Instant::now() + timeout;
    let mut stopped: HashMap<i32, Stopped> = HashMap::new();
    // Who was asked to stop and has not gone on since.
    let mut asked: HashSet<i32> = HashSet::new();
    let mut early = early::stop(purpose, &seized, &mut asked, &mut stopped, deadline)?;
    let since = Instant::now();
    let mut patience = VFORK_PATIENCE;
    let all = loop {
        let mut pending: Vec<i32> = order.iter().copied().filter(|tid| !stopped.contains_key(tid)).collect();
        let few = purpose.is_save() && pending.len() <= SLEEPERS;
        for tid in &pending {
            if let Some(thread) = seized.get_mut(tid) {
                if few && let Ok(dir) = ProcDir::open_task(thread.pid, *tid) {
                    thread.asleep_since = dir.sched_exec_start_ns().ok().flatten();
                }
                // ESRCH: it ended; the wait below tells.
                if asked.insert(*tid) {
                    let _ = thread.tracee.interrupt();
                }
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
        // Whoever ends the others is late until it is seen that they have ended.
        if !late.is_empty() {
            see_ends(&seized, &mut stopped, &mut asked, deadline)?;
        }
        if late.iter().any(|&(tid, pid, _)| in_vfork(pid, tid)) {
            // A thread in vfork(2) cannot stop before its child has called exec, and we have stopped the child.
            still = None;
            let here: Vec<i32> = stopped
                .extract_if(|_, s| matches!(s, Stopped::Here { group: None }))
                .map(|(tid, _)| tid)
                .collect();
            for tid in here {
                asked.remove(&tid);
                early.remove(&tid);
                match run_on(Tracee::born(tid)) {
                    // Those that went on before it have ended it: the next wait tells.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other.context(|| format!("let thread {tid} go on"))?,
                }
            }
        }
        // The child may be late itself: it stops now, and has to go on once more.
        let until = deadline.min(Instant::now() + patience);
        for (tid, pid, tracee) in late {
            match wait_stopped(pid, tracee, until) {
                Ok(result) => drop(stopped.insert(tid, result)),
                Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < deadline => {
                    patience = VFORK_PATIENCE.max(Instant::now() - since);
                }
                Err(error) => return Err(error),
            }
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
            see_ends(&seized, &mut stopped, &mut asked, deadline)?;
            let alive = look_again(&all, &mut seized, &mut order, &mut stopped, &mut asked);
            if !alive && order.iter().all(|tid| stopped.contains_key(tid)) {
                break all;
            }
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
    early.retain(|tid, _| matches!(stopped.get(tid), Some(Stopped::Here { .. })));
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
    let listed = all
        .into_iter()
        .map(|pid| (pid, threads.remove(&pid).unwrap_or_default()));
    let listed: Vec<(i32, Vec<i32>)> = listed.collect();
    let looks = each(MANY, &listed, |(pid, tids)| Look::at(*pid, tids, &stopped))?;
    for ((pid, tids), look) in listed.into_iter().zip(looks) {
        let process = describe(pid, &seized, tids, look, &stopped, &mut early, deadline)?;
        frozen.processes.extend(process);
    }
    if purpose.is_save() {
        for process in &mut frozen.processes {
            process.settle_restarts(deadline)?;
        }
    }
    Ok(frozen)
}

/// Sees the end of threads that stood still and were ended all the same, by another one that ends the program or replaces
/// it: nobody else is told, and the other one waits for that. The end of a main thread is told after that of all others,
/// or another thread has its number then: it is not stopped any more.
///
/// # Errors
/// [`ErrorKind::TimedOut`] for one that does not end until `deadline`.
fn see_ends(
    seized: &HashMap<i32, Seized>,
    stopped: &mut HashMap<i32, Stopped>,
    asked: &mut HashSet<i32>,
    deadline: Instant,
) -> Result<()> {
    for (tid, thread) in seized {
        let is_here = matches!(stopped.get(tid), Some(Stopped::Here { .. }));
        let was_ended = |error: std::io::Error| error.raw_os_error() == Some(libc::ESRCH);
        if !is_here || !thread.tracee.signal_mask().is_err_and(was_ended) {
            continue;
        }
        if *tid == thread.pid {
            stopped.remove(tid);
            asked.remove(tid);
        } else {
            stopped.insert(*tid, wait_stopped(thread.pid, thread.tracee, deadline)?);
        }
    }
    Ok(())
}

/// Tells whether there is a process that is alive though no thread of it stands still. A thread that replaces its program
/// by execve(2) gets the number of the main thread, which we are not told of. Where we were attached to it, there is a
/// thread of that number to be stopped; else one to be attached to.
fn look_again(
    all: &[i32],
    seized: &mut HashMap<i32, Seized>,
    order: &mut Vec<i32>,
    stopped: &mut HashMap<i32, Stopped>,
    asked: &mut HashSet<i32>,
) -> bool {
    let is_here = |stopped: &HashMap<i32, Stopped>, tid: &i32| matches!(stopped.get(tid), Some(Stopped::Here { .. }));
    let mut is_alive = false;
    for &pid in all {
        if is_here(stopped, &pid) {
            continue;
        }
        match proc::stat_of(pid) {
            Ok(stat) if stat.is_zombie() || stat.state == b'X' => {}
            // Its main thread has ended.
            Ok(stat) if stat.state == b'Z' => {
                let stands = |(tid, thread): (&i32, &Seized)| thread.pid == pid && is_here(stopped, tid);
                is_alive |= !seized.iter().any(stands);
            }
            Ok(_) => {
                is_alive = true;
                stopped.remove(&pid);
                asked.remove(&pid);
                order.retain(|tid| *tid != pid);
                seized.remove(&pid);
                if is_ours(pid) {
                    order.push(pid);
                    seized.insert(pid, Seized::new(pid, Tracee::born(pid)));
                }
            }
            Err(_) => {}
        }
    }
    is_alive
}

/// Whether we are attached to the thread of this number.
fn is_ours(tid: i32) -> bool {
    proc::status_of(tid).is_ok_and(|status| status.tracer_pid == std::process::id() as i32)
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

/// Attaches to processes that have come since, the youngest first and without looking at anything else before: a
/// process that only lives until it has started the next one has ended by the time that all have been looked at.
/// Everybody in the job's own PID namespace who came not from outside is the job's; elsewhere orphans are not.
pub(super) fn catch(
    scope: Scope,
    purpose: Purpose<'_>,
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
        let Some(stat) = look(pid).ok().filter(|stat| !stat.is_zombie()) else {
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
            seized.insert(pid, Seized::new(pid, tracee));
            order.push(pid);
        }
        seize_process(pid, purpose, seized, order)?;
    }
    Ok(())
}

/// A thread that is attached to.
#[derive(Debug, Clone)]
pub(super) struct Seized {
    pub(super) pid: i32,
    pub(super) tracee: Tracee,
    pub(super) asleep_since: Option<u64>,
    pub(super) asleep_in: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Stopped {
    Here {
        group: Option<i32>,
    },
    /// It has ended, or another thread has replaced the program.
    Gone,
}

impl Seized {
    fn new(pid: i32, tracee: Tracee) -> Self {
        Seized {
            pid,
            tracee,
            asleep_since: None,
            asleep_in: None,
        }
    }
}

pub(super) fn seize_process(
    pid: i32,
    purpose: Purpose<'_>,
    seized: &mut HashMap<i32, Seized>,
    order: &mut Vec<i32>,
) -> Result<()> {
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
            if seized.contains_key(&tid) {
                continue;
            }
            // The kernel's own for io_uring: a stop would interrupt what it does, and the program be told of that.
            if tid != pid && dir.is_io_thread(tid).unwrap_or(false) {
                continue;
            }
            // With the first of several, nobody waits for us yet.
            if first != Some(tid) && ends.is_none() {
                let others = seized.iter().filter(|(_, thread)| thread.pid == pid);
                ends = Some(Ends::see(others.map(|(tid, _)| *tid).collect())?);
            }
            match Tracee::seize(tid, ATTACHED) {
                Ok(tracee) => {
                    let mut thread = Seized::new(pid, tracee);
                    thread.asleep_in = few.then(|| dir.task_wchan(tid).ok().flatten()).flatten();
                    seized.insert(tid, thread);
                    order.push(tid);
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

/// What anybody may see of a process that is stopped, or dead.
struct Look {
    proc: ProcDir,
    stat: Stat,
    status: Status,
    space: Result<Space>,
}

impl Look {
    fn at(pid: i32, tids: &[i32], stopped: &HashMap<i32, Stopped>) -> Result<Look> {
        let leads = matches!(stopped.get(&pid), Some(Stopped::Here { .. }));
        let proc = match leads || tids.is_empty() {
            true => ProcDir::open(pid),
            false => ProcDir::open_living(pid),
        };
        let proc = proc.context(|| format!("open /proc/{pid}"))?;
        let stat = proc.stat().context(|| format!("read /proc/{pid}/stat"))?;
        let status = proc.status().context(|| format!("read /proc/{pid}/status"))?;
        let is_here = |tid: &i32| matches!(stopped.get(tid), Some(Stopped::Here { .. }));
        let space = match tids.iter().any(is_here) {
            true => Space::open(&proc),
            false => Err(Error::new(ErrorKind::Gone, format!("process {pid} has ended"))),
        };
        Ok(Look {
            proc,
            stat,
            status,
            space,
        })
    }
}

/// Everything about a process that is stopped, or dead, with these threads; none for one that was dead already, and has
/// been reaped meanwhile by a parent outside the job.
fn describe(
    pid: i32,
    seized: &HashMap<i32, Seized>,
    mut tids: Vec<i32>,
    look: Result<Look>,
    stopped: &HashMap<i32, Stopped>,
    early: &mut HashMap<i32, Early>,
    deadline: Instant,
) -> Result<Option<Process>> {
    let leads = matches!(stopped.get(&pid), Some(Stopped::Here { .. }));
    let Look {
        proc,
        stat,
        status,
        space,
    } = match look {
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
        if let Some(early) = early.remove(&tid) {
            threads.push(Thread {
                deferred: early.deferred,
                told: early.told,
                ..Thread::early(tracee, early.registers, early.mask)
            });
            continue;
        }
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
            is_early: false,
            told: None,
        });
    }
    let ended_leader = match threads.is_empty() || leads {
        true => None,
        false => Some(ended_leader(pid)?),
    };
    let mut process = Process {
        ended_leader,
        pid,
        proc,
        stat,
        status,
        threads,
        space: None,
        stopped_by,
        concealed: None,
        bound: None,
        is_kept_from_us: None,
    };
    process.take_space(space, deadline)?;
    Ok(Some(process))
}

/// What is left of the main thread of a process that others of it have outlived.
fn ended_leader(pid: i32) -> Result<EndedLeader> {
    let what = || format!("look at the main thread of process {pid}, which has ended");
    let task = ProcDir::open_task(pid, pid).context(what)?;
    let (stat, status) = (task.stat().context(what)?, task.status().context(what)?);
    Ok(EndedLeader {
        // A signal would have ended all threads.
        exit_code: (stat.exit_code >> 8 & 0xff) as u8,
        // Of securebits only a living thread tells.
        credentials: credentials(&status, 0),
        name: ByteString(status.name),
    })
}

/// Users, groups and capabilities of a thread.
pub fn credentials(status: &Status, securebits: u32) -> Credentials {
    Credentials {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        effective: status.cap_effective,
        permitted: status.cap_permitted,
        inheritable: status.cap_inheritable,
        bounding: status.cap_bounding,
        ambient: status.cap_ambient,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}
