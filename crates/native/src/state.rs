//! What a stopped process and its threads are, apart from memory and descriptors.

use std::collections::HashMap;
use std::time::Instant;

use cpr_image::model::{
    Accounting, ByteString, Bytes, Cpu, Directories, EndedLeader, IntervalTimer, Limit, MemoryLayout, MemoryPolicy,
    PosixTimer, Process as Saved, ProcessState, Rseq, Scheduling, Seccomp, SeccompFilter, SignalAction,
    Thread as SavedThread, TimedSleep,
};
use cpr_kernel::batch::{Arg, Batch, CallId, OutId, Outcome};
use cpr_kernel::proc::{ProcDir, Stat, Status, Timer, TimerNotify, TimerTarget};
use cpr_kernel::{process, scheduling};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::thread::CpuSet;

use crate::beside::{beside, each};
use crate::blockers::{self, Home};
use crate::freeze::{self, Process, credentials, interrupts, loaded_number};
use crate::{confined, keyrings, memory_policies};

/// The scheduler's clock of the processor where it is furthest behind, nanoseconds. Each has its own, which leaves out
/// time that other virtual machines have had; which one a thread fell asleep by is not known. A sleep may last longer
/// by the difference, and must not be shorter than was asked.
fn slowest_clock() -> Option<u64> {
    let own = ProcDir::open(std::process::id() as i32).ok()?;
    let now = || cpr_kernel::process::clock_ns(rustix::time::ClockId::Monotonic);
    let allowed = rustix::thread::sched_getaffinity(None).ok()?;
    let mut behind: Option<u64> = None;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        // A processor that has just been taken away is no thread's any more.
        if rustix::thread::sched_setaffinity(None, &one).is_ok()
            && let Ok(Some(clock)) = own.sched_exec_start_ns()
        {
            let lag = now().wrapping_sub(clock);
            behind = Some(behind.map_or(lag, |most| if (lag.wrapping_sub(most) as i64) > 0 { lag } else { most }));
        }
    }
    let _ = rustix::thread::sched_setaffinity(None, &allowed);
    Some(now().wrapping_sub(behind?))
}

/// With so many threads in a job, a thread of ours looks at them while others are asked.
const MANY: usize = 8;
/// Size of the kernel's `struct sigaction`.
const SIGACTION_SIZE: usize = 32;
/// Asks what a process has registered for (<linux/membarrier.h>, Linux 6.3).
const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 1 << 9;
/// IOPRIO_WHO_PROCESS.
const IOPRIO_WHO_PROCESS: i32 = 1;
/// Linux 6.3.
const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_GET_SPECULATION_CTRL: i32 = 52;
/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
const SPECULATION: [i32; 3] = [0, 1, 2];
const ARCH_GET_CPUID: i32 = 0x1011;
/// PR_TSC_SIGSEGV.
const TSC_REFUSED: u32 = 2;
/// PR_MCE_KILL_DEFAULT.
const MACHINE_CHECK_DEFAULT: u64 = 2;
/// Bytes of a mask of memory nodes: 1024, as many as a kernel can be built for.
const NODE_MASK_SIZE: usize = 128;
/// Clock ticks per second of /proc (USER_HZ).
const TICK_NS: u64 = 10_000_000;

fn unsupported(pid: i32, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("process {pid}: {what}"))
}

/// Everything about `processes` but memory and descriptors. Maps an arena in each; zombies have little of all this.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for state that cannot be saved, by name.
pub fn save(processes: &mut [Process], home: &Home, deadline: Instant) -> Result<Vec<(Saved, MemoryLayout)>> {
    let seen: Vec<Seen> = processes.iter().map(Seen::of).collect();
    let threads: usize = seen.iter().map(|process| process.threads.len()).sum();
    let (outside, inside) = beside(
        // What runs other code than ours is refused before it is asked to do anything.
        threads >= MANY && seen.iter().all(|process| process.is_native),
        || {
            let all = each(MANY, &seen, |process| Outside::look(process, home))?;
            all.into_iter().collect::<Result<Vec<Outside>>>()
        },
        || Inside::ask(processes, deadline),
    )?;
    let answers = outside?.into_iter().zip(inside?);
    processes
        .iter()
        .zip(answers)
        .map(|(process, (outside, inside))| combine(process, outside, inside))
        .collect()
}

/// A stopped process, as far as who looks at it from outside has to know it.
struct Seen {
    pid: i32,
    stat: Stat,
    status: Status,
    /// With what is known of those that were looked at before they all stood still.
    threads: Vec<(i32, Option<Status>)>,
    ended_leader: Option<EndedLeader>,
    stopped_by: Option<i32>,
    is_native: bool,
}

impl Seen {
    fn of(process: &Process) -> Self {
        Seen {
            pid: process.pid,
            stat: process.stat.clone(),
            status: process.status.clone(),
            threads: process.threads.iter().map(seen_before).collect(),
            ended_leader: process.ended_leader.clone(),
            stopped_by: process.stopped_by,
            is_native: process.threads.iter().all(|thread| thread.registers.is_native()),
        }
    }
}

fn seen_before(thread: &freeze::Thread) -> (i32, Option<Status>) {
    let told = thread.told.as_ref();
    (thread.tracee.tid(), told.map(|told| told.status.clone()))
}

/// What /proc tells of a process.
struct Outside {
    saved: Saved,
    layout: MemoryLayout,
    tasks: Vec<Task>,
}

impl Outside {
    fn look(process: &Seen, home: &Home) -> Result<Outside> {
        let Seen { pid, stat, status, .. } = process;
        let pid = *pid;
        let mut saved = Saved {
            pid,
            ppid: stat.ppid,
            pgid: stat.pgrp,
            sid: stat.session,
            ..Saved::default()
        };
        if process.threads.is_empty() {
            saved.state = ProcessState::Zombie(stat.exit_code);
            return Ok(Outside {
                saved,
                layout: MemoryLayout::default(),
                tasks: Vec::new(),
            });
        }
        let proc = ProcDir::open_living(pid).context(|| format!("open /proc/{pid}"))?;
        let auxv = proc.auxv().context(|| format!("read /proc/{pid}/auxv"))?;
        if let Some((object, reason)) = blockers::of_known(&proc, status, Some(&auxv), home)
            .into_iter()
            .find(|(object, _)| object != "tracer")
        {
            return Err(unsupported(pid, &format!("{object}: {reason}")));
        }
        if !process.is_native {
            return Err(unsupported(pid, "it runs 32-bit code"));
        }
        saved.ended_leader.clone_from(&process.ended_leader);
        if let Some(signal) = process.stopped_by {
            saved.state = ProcessState::Stopped(signal);
        }
        saved.umask = status.umask.unwrap_or(0o22);
        saved.thp_disabled = status.thp_enabled == Some(false);
        let file = |name: &str| proc.read(name).context(|| format!("read /proc/{pid}/{name}"));
        let number = |name: &str| -> Result<i64> {
            let text = String::from_utf8_lossy(&file(name)?).trim().to_owned();
            Ok(text.parse().unwrap_or(0))
        };
        saved.oom_score_adj = number("oom_score_adj")? as i32;
        let login = String::from_utf8_lossy(&file("loginuid").unwrap_or_default())
            .trim()
            .parse();
        saved.login_user = login.ok().filter(|user| *user != u32::MAX);
        if saved.sid == pid {
            saved.autogroup_nice = autogroup_nice(&file("autogroup").unwrap_or_default());
        }
        let filter = file("coredump_filter").unwrap_or_default();
        saved.coredump_filter = u32::from_str_radix(String::from_utf8_lossy(&filter).trim(), 16).unwrap_or(0x33);
        saved.cwd = working_directory(&proc)?;
        saved.root = link(&proc, "root")?;
        saved.limits = proc
            .limits()
            .context(|| format!("read /proc/{pid}/limits"))?
            .into_iter()
            .map(|l| Limit {
                resource: l.resource,
                soft: l.soft,
                hard: l.hard,
            })
            .collect();
        saved.accounting = accounting(&proc, stat, status.vm_hwm_kib);
        let layout = MemoryLayout {
            start_code: stat.start_code,
            end_code: stat.end_code,
            start_data: stat.start_data,
            end_data: stat.end_data,
            start_brk: stat.start_brk,
            brk: 0,
            start_stack: stat.start_stack,
            arg_start: stat.arg_start,
            arg_end: stat.arg_end,
            env_start: stat.env_start,
            env_end: stat.env_end,
            auxv: Bytes(auxv),
        };
        let tasks = process
            .threads
            .iter()
            .map(|(tid, seen)| Task::look(&proc, status, *tid, seen.as_ref()));
        Ok(Outside {
            saved,
            layout,
            tasks: tasks.collect::<Result<Vec<Task>>>()?,
        })
    }
}

/// What a process and its threads tell when they are asked themselves.
struct Inside {
    /// Only what [`in_process`] fills in.
    saved: Saved,
    brk: u64,
    first: (Questions, Outcome),
    others: (Questions, Vec<Outcome>),
}

impl Inside {
    /// Asks all processes at the same time; zombies tell nothing.
    fn ask(processes: &mut [Process], deadline: Instant) -> Result<Vec<Option<Inside>>> {
        let has_landlock = cpr_kernel::witness::has_landlock();
        let mut living: Vec<&mut Process> = processes.iter_mut().filter(|p| !p.threads.is_empty()).collect();
        let mut asked = Vec::with_capacity(living.len());
        let mut batches = Vec::with_capacity(living.len());
        for process in &living {
            // The first thread is asked everything at once.
            let mut batch = Batch::new();
            asked.push(OfFirst::ask(process, has_landlock, &mut batch)?);
            batches.push(batch);
        }
        freeze::map_arenas(&mut living, 64 * 1024, deadline)?;
        let outcomes = freeze::run_each(&mut living, &batches, deadline)?;
        let mut answers = HashMap::with_capacity(living.len());
        for ((process, asked), outcome) in living.into_iter().zip(asked).zip(outcomes) {
            answers.insert(process.pid, asked.note(process, outcome, deadline)?);
        }
        Ok(processes.iter().map(|process| answers.remove(&process.pid)).collect())
    }

    /// What thread number `index` answered, and where.
    fn answers(&self, index: usize) -> Option<(&Questions, &Outcome)> {
        match index.checked_sub(1) {
            None => Some((&self.first.0, &self.first.1)),
            Some(index) => self.others.1.get(index).map(|outcome| (&self.others.0, outcome)),
        }
    }
}

fn combine(process: &Process, outside: Outside, inside: Option<Inside>) -> Result<(Saved, MemoryLayout)> {
    let Outside {
        mut saved,
        mut layout,
        tasks,
    } = outside;
    let Some(mut inside) = inside else {
        return Ok((saved, layout));
    };
    layout.brk = inside.brk;
    let own = std::mem::take(&mut inside.saved);
    saved.pending_signals = own.pending_signals;
    saved.signal_actions = own.signal_actions;
    saved.interval_timers = own.interval_timers;
    saved.posix_timers = own.posix_timers;
    saved.dumpable = own.dumpable;
    saved.child_subreaper = own.child_subreaper;
    saved.membarrier = own.membarrier;
    saved.personality = own.personality;
    saved.memory_deny_write_execute = own.memory_deny_write_execute;
    saved.memory_merge = own.memory_merge;
    let shared: Vec<[u8; 128]> = saved
        .pending_signals
        .iter()
        .filter_map(|info| info.0.as_slice().try_into().ok())
        .collect();
    for (index, task) in tasks.into_iter().enumerate() {
        let Some((asked, outcome)) = inside.answers(index) else {
            break;
        };
        let thread = thread_state(process, index, &shared, asked, outcome, task)?;
        saved.threads.push(thread);
    }
    Ok((saved, layout))
}

/// What /proc tells of a thread.
struct Task {
    status: Status,
    directories: Option<Directories>,
}

impl Task {
    /// `of_process`: the status of the process, which is that of its main thread. `seen`: that of the thread, which has
    /// done nothing since it was read.
    fn look(proc: &ProcDir, of_process: &Status, tid: i32, seen: Option<&Status>) -> Result<Task> {
        let what = || format!("read the status of thread {tid}");
        let status = match seen {
            // Others may have given it another name, or a filter together with all threads.
            Some(seen) if of_process.seccomp == 0 => Status {
                name: proc.task_name(tid).context(what)?,
                ..seen.clone()
            },
            _ if tid == proc.pid() && tid == proc.acting() => of_process.clone(),
            _ => proc.task_status(tid).context(what)?,
        };
        let directories = own_directories(proc, tid, status.umask)?;
        Ok(Task { status, directories })
    }
}

fn link(proc: &ProcDir, name: &str) -> Result<ByteString> {
    match proc.read_link(name) {
        Ok(path) => Ok(ByteString(path)),
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
            let reason = format!("the path of its {name} has more than 4095 bytes, and the kernel shows none of those");
            Err(unsupported(proc.pid(), &reason))
        }
        error => error
            .map(ByteString)
            .context(|| format!("read /proc/{}/{name}", proc.pid())),
    }
}

/// The number at the end of `/autogroup-123 nice 5`; zero where there are no autogroups.
fn autogroup_nice(text: &[u8]) -> i32 {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace()
        .next_back()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// The working directory's path, also where it has been deleted.
fn working_directory(proc: &ProcDir) -> Result<ByteString> {
    let path = link(proc, "cwd")?;
    let Some(former) = path.0.strip_suffix(b" (deleted)") else {
        return Ok(path);
    };
    // That of a process that has ended, in /proc, is not deleted: an empty one takes its place.
    if blockers::is_deleted(proc, "cwd") || crate::files::dead_process(&path.0).is_some() {
        return Ok(ByteString(former.to_vec()));
    }
    // A name may end like that.
    if path.as_path().exists() {
        return Ok(path);
    }
    Err(unsupported(
        proc.pid(),
        &format!("its working directory {path} is gone"),
    ))
}

/// What a thread has that does not share the process's directories.
fn own_directories(proc: &ProcDir, tid: i32, umask: Option<u32>) -> Result<Option<Directories>> {
    let (pid, acting) = (proc.pid(), proc.acting());
    if tid == acting || process::shares(process::KCMP_FS, acting, tid) != Some(false) {
        return Ok(None);
    }
    let task = &ProcDir::open_task(pid, tid).context(|| format!("open /proc/{pid}/task/{tid}"))?;
    if ["cwd", "root"].iter().any(|name| blockers::is_deleted(task, name)) {
        return Err(unsupported(
            pid,
            &format!("the working directory of thread {tid} was deleted"),
        ));
    }
    Ok(Some(Directories {
        cwd: link(task, "cwd")?,
        root: link(task, "root")?,
        umask: umask.unwrap_or(0o22),
    }))
}

/// System call filters of a thread.
fn seccomp(pid: i32, thread: &crate::freeze::Thread, mode: u32) -> Result<Seccomp> {
    /// BPF_RET | BPF_K with SECCOMP_RET_USER_NOTIF.
    const RETURN: u16 = 0x06;
    const USER_NOTIFICATION: u32 = 0x7fc0;
    match mode {
        0 => return Ok(Seccomp::Off),
        1 => return Ok(Seccomp::Strict),
        _ => {}
    }
    let tid = thread.tracee.tid();
    let filters = thread
        .tracee
        .seccomp_filters()
        .context(|| format!("read the system call filters of thread {tid}"))?;
    let notifies = |instruction: &[u8]| {
        u16::from_ne_bytes([instruction[0], instruction[1]]) == RETURN
            && u32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]) >> 16
                == USER_NOTIFICATION
    };
    if filters.iter().any(|(_, program)| program.chunks_exact(8).any(notifies)) {
        return Err(unsupported(
            pid,
            "a seccomp filter asks another process about system calls (user notification)",
        ));
    }
    let filter = |(flags, program)| SeccompFilter {
        flags,
        program: Bytes(program),
    };
    Ok(Seccomp::Filters(filters.into_iter().map(filter).collect()))
}

fn pending(signals: Vec<[u8; 128]>) -> Vec<Bytes> {
    signals.into_iter().map(|info| Bytes(info.to_vec())).collect()
}

fn accounting(proc: &ProcDir, stat: &cpr_kernel::proc::Stat, peak_rss_kib: u64) -> Accounting {
    let io = proc.io().ok();
    let boot = process::clock_ns(rustix::time::ClockId::Boottime);
    Accounting {
        user_ns: stat.utime * TICK_NS,
        system_ns: stat.stime * TICK_NS,
        children_user_ns: stat.cutime * TICK_NS,
        children_system_ns: stat.cstime * TICK_NS,
        minor_faults: stat.minflt,
        major_faults: stat.majflt,
        read_bytes: io.as_ref().map_or(0, |io| io.read_bytes),
        write_bytes: io.as_ref().map_or(0, |io| io.write_bytes),
        peak_rss_kib,
        elapsed_ns: boot.saturating_sub(stat.starttime * TICK_NS),
    }
}

/// What the first thread of a process is asked.
struct OfFirst {
    saved: Saved,
    timers: Vec<Timer>,
    of_process: OfProcess,
    policies: Option<memory_policies::Asked>,
    looks: Option<confined::Question>,
    of_thread: Questions,
}

impl OfFirst {
    fn ask(process: &Process, has_landlock: bool, batch: &mut Batch) -> Result<Self> {
        let pid = process.pid;
        let signals = process
            .threads
            .first()
            .map(|leader| leader.tracee.pending_signals(true));
        let signals = signals.transpose().context(|| format!("read signals of {pid}"))?;
        let timers = process.proc.timers().context(|| format!("read /proc/{pid}/timers"))?;
        let of_process = OfProcess::ask(batch, &timers)?;
        let policies = match &process.space {
            Some(space) => memory_policies::ask(space, batch)?,
            None => None,
        };
        Ok(OfFirst {
            saved: Saved {
                pending_signals: pending(signals.unwrap_or_default()),
                ..Saved::default()
            },
            timers,
            of_process,
            policies,
            looks: confined::ask(has_landlock, batch),
            of_thread: questions(batch),
        })
    }

    /// Notes the answers, and asks the other threads.
    fn note(self, process: &mut Process, outcome: Outcome, deadline: Instant) -> Result<Inside> {
        let mut saved = self.saved;
        let brk = self.of_process.note(process, &self.timers, &outcome, &mut saved);
        process.bound = self.policies.map(|policies| policies.bound(&outcome));
        process.is_kept_from_us = self.looks.map(|looks| looks.is_kept_from(&outcome));
        let mut batch = Batch::new();
        let others = questions(&mut batch);
        let is_asked = |index: usize, thread: &freeze::Thread| index != 0 && thread.told.is_none();
        let mut asked = process.run_where(is_asked, &batch, deadline)?.into_iter();
        let threads = process.threads.iter_mut().skip(1);
        let outcomes: Vec<Outcome> = threads
            .filter_map(|thread| match thread.told.as_mut() {
                Some(told) => Some(std::mem::take(&mut told.answers)),
                None => asked.next(),
            })
            .collect();
        let of_others = outcomes.iter().map(|outcome| (others.keyrings, outcome));
        let answers: Vec<_> = std::iter::once((self.of_thread.keyrings, &outcome))
            .chain(of_others)
            .collect();
        keyrings::refuse(process, &answers, deadline)?;
        Ok(Inside {
            saved,
            brk,
            first: (self.of_thread, outcome),
            others: (others, outcomes),
        })
    }
}

/// What only a process itself can ask the kernel: where the answers are.
struct OfProcess {
    actions: OutId,
    interval: Vec<OutId>,
    posix: Vec<(OutId, CallId)>,
    brk: CallId,
    dumpable: CallId,
    reaper: OutId,
    write_execute: CallId,
    merge: CallId,
    barriers: CallId,
    personality: CallId,
}

impl OfProcess {
    fn ask(batch: &mut Batch, timers: &[Timer]) -> Result<Self> {
        let (actions, actions_out) = batch.out(SIGACTION_SIZE * 64);
        let Arg::Data(base) = actions else {
            return Err(Error::new(ErrorKind::Internal, "no output buffer"));
        };
        for signal in 1..=64usize {
            let place = Arg::Data(base + (signal - 1) * SIGACTION_SIZE);
            batch.must(
                libc::SYS_rt_sigaction,
                &[Arg::from(signal), Arg::from(0), place, Arg::from(8)],
                format!("ask for the action of signal {signal}"),
            );
        }
        let interval: Vec<_> = (0..3)
            .map(|which: i32| {
                let (place, out) = batch.out(32);
                batch.must(libc::SYS_getitimer, &[which.into(), place], "ask for an interval timer");
                out
            })
            .collect();
        let posix: Vec<_> = timers
            .iter()
            .map(|timer| {
                let (place, out) = batch.out(32);
                batch.must(libc::SYS_timer_gettime, &[timer.id.into(), place], "ask for a timer");
                let overrun = batch.call(libc::SYS_timer_getoverrun, &[timer.id.into()]);
                (out, overrun)
            })
            .collect();
        let brk = batch.must(libc::SYS_brk, &[Arg::from(0)], "ask for the end of the heap");
        let dumpable = batch.call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()]);
        let (reaper, reaper_out) = batch.out(8);
        batch.call(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER.into(), reaper]);
        let write_execute = batch.call(libc::SYS_prctl, &[PR_GET_MDWE.into()]);
        let merge = batch.call(libc::SYS_prctl, &[PR_GET_MEMORY_MERGE.into()]);
        let barriers = batch.call(
            libc::SYS_membarrier,
            &[MEMBARRIER_CMD_GET_REGISTRATIONS.into(), Arg::from(0), Arg::from(0)],
        );
        let personality = batch.call(libc::SYS_personality, &[Arg::from(0xffff_ffffu32)]);
        Ok(OfProcess {
            actions: actions_out,
            interval,
            posix,
            brk,
            dumpable,
            reaper: reaper_out,
            write_execute,
            merge,
            barriers,
            personality,
        })
    }

    /// Notes the answers; gives the end of the process's heap.
    fn note(self, process: &Process, timers: &[Timer], outcome: &Outcome, saved: &mut Saved) -> u64 {
        for signal in 1..=64i32 {
            let at = (signal as usize - 1) * SIGACTION_SIZE;
            // The traps of our own have made it the default.
            let ignored = signal == libc::SIGTRAP && process.ignores_traps();
            let action = SignalAction {
                signal,
                handler: if ignored {
                    libc::SIG_IGN as u64
                } else {
                    outcome.word(self.actions, at)
                },
                flags: outcome.word(self.actions, at + 8),
                restorer: outcome.word(self.actions, at + 16),
                mask: outcome.word(self.actions, at + 24),
            };
            if action.handler != 0 || action.flags != 0 {
                saved.signal_actions.push(action);
            }
        }
        for (which, out) in self.interval.into_iter().enumerate() {
            let micros = |at| outcome.word(out, at) * 1_000_000 + outcome.word(out, at + 8);
            saved.interval_timers.push(IntervalTimer {
                which: which as i32,
                interval_us: micros(0),
                value_us: micros(16),
            });
        }
        for (timer, (out, overrun)) in timers.iter().zip(self.posix) {
            let nanos = |at| outcome.word(out, at) * 1_000_000_000 + outcome.word(out, at + 8);
            let (thread_flag, thread) = match timer.target {
                TimerTarget::Thread(tid) => (libc::SIGEV_THREAD_ID, tid),
                TimerTarget::Process(_) => (0, 0),
            };
            let notify = match timer.notify {
                TimerNotify::None => libc::SIGEV_NONE,
                TimerNotify::Signal => libc::SIGEV_SIGNAL,
                TimerNotify::Thread => libc::SIGEV_THREAD,
            } | thread_flag;
            saved.posix_timers.push(PosixTimer {
                id: timer.id,
                clock: timer.clock,
                notify,
                signal: timer.signal,
                value: timer.value,
                thread,
                interval_ns: nanos(0),
                value_ns: nanos(16),
                overrun: outcome.raw(overrun) as i32,
            });
        }
        saved.dumpable = match process.concealed {
            Some(concealed) => concealed.dumpable,
            None => outcome.result(self.dumpable).unwrap_or(1) as u32,
        };
        saved.child_subreaper = outcome.word32(self.reaper, 0) != 0;
        // Linux 6.3 tells; an older kernel's processes start without.
        saved.membarrier = outcome.result(self.barriers).unwrap_or(0) as u32;
        saved.personality = outcome.result(self.personality).unwrap_or(0);
        saved.memory_deny_write_execute = outcome.result(self.write_execute).unwrap_or(0) as u32;
        saved.memory_merge = outcome.result(self.merge).is_ok_and(|on| on == 1);
        outcome.raw(self.brk) as u64
    }
}

/// What a thread is asked: where the answers are.
struct Questions {
    alternate_stack: OutId,
    tid_address: OutId,
    death_signal: OutId,
    slack: CallId,
    securebits: CallId,
    robust_list: OutId,
    robust_length: OutId,
    schedule: OutId,
    affinity: OutId,
    affinity_length: CallId,
    io_priority: CallId,
    policed: CallId,
    policy: OutId,
    nodes: OutId,
    tsc: OutId,
    cpuid: CallId,
    machine_check: CallId,
    io_flusher: CallId,
    speculation: Vec<CallId>,
    keyrings: keyrings::Asked,
}

/// What each thread of a job is asked but the first of each process: [`freeze::Purpose::Save`].
pub fn questions_of_threads() -> Batch {
    let mut batch = Batch::new();
    questions(&mut batch);
    batch
}

fn questions(batch: &mut Batch) -> Questions {
    let (stack, stack_out) = batch.out(24);
    batch.must(
        libc::SYS_sigaltstack,
        &[Arg::from(0), stack],
        "ask for the signal stack",
    );
    let (tid_address, tid_address_out) = batch.out(8);
    batch.must(
        libc::SYS_prctl,
        &[libc::PR_GET_TID_ADDRESS.into(), tid_address],
        "ask for the thread-ID address",
    );
    let (death, death_out) = batch.out(8);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG.into(), death]);
    let slack = batch.call(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK.into()]);
    let securebits = batch.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]);
    let (robust, robust_out) = batch.out(8);
    let (robust_length, robust_length_out) = batch.out(8);
    batch.call(libc::SYS_get_robust_list, &[Arg::from(0), robust, robust_length]);
    let (schedule, schedule_out) = batch.out(scheduling::ATTRIBUTES_SIZE);
    batch.must(
        libc::SYS_sched_getattr,
        &[Arg::from(0), schedule, scheduling::ATTRIBUTES_SIZE.into(), Arg::from(0)],
        "ask for the scheduling policy",
    );
    let (affinity, affinity_out) = batch.out(scheduling::MASK_SIZE);
    let mask_length = batch.must(
        libc::SYS_sched_getaffinity,
        &[Arg::from(0), scheduling::MASK_SIZE.into(), affinity],
        "ask for the CPU affinity",
    );
    let io_priority = batch.call(libc::SYS_ioprio_get, &[IOPRIO_WHO_PROCESS.into(), Arg::from(0)]);
    let (policy, policy_out) = batch.out(8);
    let (nodes, nodes_out) = batch.out(NODE_MASK_SIZE);
    let policed = batch.call(
        libc::SYS_get_mempolicy,
        &[policy, nodes, (NODE_MASK_SIZE * 8).into(), Arg::from(0), Arg::from(0)],
    );
    let (tsc, tsc_out) = batch.out(8);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_TSC.into(), tsc]);
    let cpuid = batch.call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID.into()]);
    let machine_check = batch.call(libc::SYS_prctl, &[libc::PR_MCE_KILL_GET.into()]);
    let io_flusher = batch.call(libc::SYS_prctl, &[PR_GET_IO_FLUSHER.into()]);
    let speculation: Vec<_> = SPECULATION
        .iter()
        .map(|which| batch.call(libc::SYS_prctl, &[PR_GET_SPECULATION_CTRL.into(), (*which).into()]))
        .collect();
    let keyrings = keyrings::ask(batch);
    Questions {
        alternate_stack: stack_out,
        tid_address: tid_address_out,
        death_signal: death_out,
        slack,
        securebits,
        robust_list: robust_out,
        robust_length: robust_length_out,
        schedule: schedule_out,
        affinity: affinity_out,
        affinity_length: mask_length,
        io_priority,
        policed,
        policy: policy_out,
        nodes: nodes_out,
        tsc: tsc_out,
        cpuid,
        machine_check,
        io_flusher,
        speculation,
        keyrings,
    }
}

fn thread_state(
    process: &Process,
    index: usize,
    shared: &[[u8; 128]],
    asked: &Questions,
    outcome: &Outcome,
    task: Task,
) -> Result<SavedThread> {
    let pid = process.pid;
    let thread = &process.threads[index];
    let tid = thread.tracee.tid();
    let status = task.status;
    let own = thread
        .tracee
        .pending_signals(false)
        .context(|| format!("read the signals of thread {tid}"))?;
    let (extended, rseq) = match &thread.told {
        Some(told) => (told.extended.clone(), told.rseq),
        None => {
            let extended = thread.tracee.extended();
            let extended = extended.context(|| format!("read the vector registers of thread {tid}"))?;
            (extended, thread.tracee.rseq().unwrap_or_default())
        }
    };
    let interrupted = interrupts(&own, thread.mask) || interrupts(shared, thread.mask);
    let mut registers = thread.image_registers(interrupted);
    let mut sleep = None;
    if thread.has_restart_block() {
        match timed_sleep(process, index) {
            Some(found) => {
                registers.orig_rax = found.syscall as u64;
                sleep = (found.remaining_ns != u64::MAX).then_some(found);
            }
            None if registers.orig_rax == libc::SYS_restart_syscall as u64 => {
                // Nothing tells which call it was: the program sees EINTR (LBNL-3.7.1.4).
                registers.set_syscall_result(-i64::from(libc::EINTR));
            }
            None => {}
        }
    }
    // A critical section makes no system calls.
    if rseq.address != 0 && thread.registers.interrupted_syscall().is_none() {
        abort_critical_section(process, rseq.address, &mut registers)?;
    }
    let length = outcome.result(asked.affinity_length).unwrap_or(0);
    let length = length.min(scheduling::MASK_SIZE as u64) as usize;
    let securebits = outcome.result(asked.securebits).unwrap_or(0) as u32;
    let credentials = credentials(&status, securebits);
    Ok(SavedThread {
        tid,
        name: ByteString(status.name),
        cpu: Cpu {
            general: Bytes(registers.to_bytes()),
            extended: Bytes(extended),
            program_counter: registers.program_counter(),
            stack_pointer: registers.stack_pointer(),
        },
        sleep,
        blocked_signals: process.threads[index].mask,
        pending_signals: pending(own),
        alternate_stack: (
            outcome.word(asked.alternate_stack, 0),
            outcome.word32(asked.alternate_stack, 8) as i32,
            outcome.word(asked.alternate_stack, 16),
        ),
        robust_list: (outcome.word(asked.robust_list, 0), outcome.word(asked.robust_length, 0)),
        clear_child_tid: outcome.word(asked.tid_address, 0),
        rseq: (rseq.address != 0).then_some(Rseq {
            address: rseq.address,
            size: rseq.size,
            signature: rseq.signature,
            flags: rseq.flags,
        }),
        scheduling: match &thread.told {
            Some(_) => scheduling_of(tid).context(|| format!("ask how thread {tid} is scheduled"))?,
            None => scheduling(
                outcome.output(asked.schedule),
                outcome.raw(asked.io_priority) as i32,
                outcome.output(asked.affinity)[..length].to_vec(),
            ),
        },
        parent_death_signal: outcome.word32(asked.death_signal, 0) as i32,
        timer_slack_ns: outcome.result(asked.slack).unwrap_or(50_000),
        credentials,
        directories: task.directories,
        seccomp: seccomp(pid, thread, status.seccomp)?,
        memory_policy: match outcome.result(asked.policed) {
            Ok(_) if outcome.word32(asked.policy, 0) != 0 => MemoryPolicy {
                mode: outcome.word32(asked.policy, 0),
                nodes: Bytes(outcome.output(asked.nodes).to_vec()),
            },
            _ => MemoryPolicy::default(),
        },
        tsc_refused: outcome.word32(asked.tsc, 0) == TSC_REFUSED,
        cpuid_refused: outcome.result(asked.cpuid).is_ok_and(|on| on == 0),
        machine_check_policy: outcome
            .result(asked.machine_check)
            .ok()
            .filter(|policy| *policy != MACHINE_CHECK_DEFAULT)
            .map(|policy| policy as u32),
        io_flusher: outcome.result(asked.io_flusher).is_ok_and(|on| on == 1),
        speculation: asked
            .speculation
            .iter()
            .map(|&call| outcome.result(call).unwrap_or(0) as u32)
            .collect(),
    })
}

/// How a thread is scheduled, whom others may have set since it was asked.
fn scheduling_of(tid: i32) -> std::io::Result<Scheduling> {
    let attributes = scheduling::attributes(tid)?;
    let priority = scheduling::io_priority(tid)?;
    Ok(scheduling(&attributes, priority, scheduling::affinity(tid)?))
}

/// Of `struct sched_attr`, an I/O priority and a mask of processors.
fn scheduling(attributes: &[u8], io_priority: i32, affinity: Vec<u8>) -> Scheduling {
    let word32 = |at: usize| {
        let bytes = attributes.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    let word = |at: usize| u64::from(word32(at)) | u64::from(word32(at + 4)) << 32;
    Scheduling {
        policy: word32(4),
        flags: word(8),
        nice: word32(16) as i32,
        priority: word32(20),
        runtime: word(24),
        deadline: word(32),
        period: word(40),
        io_priority: io_priority.max(0),
        affinity: Bytes(affinity),
    }
}

/// Finds out which call with a relative timeout a thread was stopped in, and how much of the timeout is left.
/// `remaining_ns` is `u64::MAX` where the call is known and the time is not.
fn timed_sleep(process: &Process, index: usize) -> Option<TimedSleep> {
    let thread = process.threads.get(index)?;
    let memory = &process.space.as_ref()?.memory;
    let registers = &thread.registers;
    let mut number = registers.interrupted_syscall()?;
    if number == libc::SYS_restart_syscall {
        // A stop before this one made the kernel restart the call under another number; the program's own is in the
        // instruction that loaded it.
        number = match loaded_number(memory, registers.program_counter()) {
            Some(number) => number,
            None => restarted_call(thread)?,
        };
    }
    let arguments = registers.syscall_arguments();
    let timespec = |address: u64| -> Option<u64> {
        let seconds = memory.read_u64(address).ok()?;
        let nanos = memory.read_u64(address.checked_add(8)?).ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
    };
    let slept = || -> Option<u64> {
        let since = thread.asleep_since?;
        Some(slowest_clock()?.saturating_sub(since))
    };
    let left = |asked: Option<u64>| -> u64 {
        match (asked, slept()) {
            (Some(asked), Some(slept)) => asked.saturating_sub(slept),
            _ => u64::MAX,
        }
    };
    let remaining_ns = match number {
        // The kernel has stored what is left where the program asked for it.
        libc::SYS_nanosleep if arguments[1] != 0 => timespec(arguments[1])?,
        libc::SYS_nanosleep => left(timespec(arguments[0])),
        libc::SYS_clock_nanosleep if arguments[3] != 0 => timespec(arguments[3])?,
        libc::SYS_clock_nanosleep => left(timespec(arguments[2])),
        libc::SYS_poll | libc::SYS_futex => u64::MAX,
        _ => return None,
    };
    Some(TimedSleep {
        syscall: number,
        remaining_ns,
    })
}

/// Which call `restart_syscall` stands for, by where the thread slept in the kernel: poll, futex and the two sleeps are
/// all there are. Libraries that pass the number of the call in a register (musl, `syscall(3)`) leave no other trace.
fn restarted_call(thread: &crate::freeze::Thread) -> Option<i64> {
    /// Clock numbers are below this, pointers above it.
    const CLOCKS: u64 = 4096;
    let place = thread.asleep_in.as_deref()?;
    Some(if place.contains("poll") {
        libc::SYS_poll
    } else if place.contains("futex") {
        libc::SYS_futex
    } else if thread.registers.syscall_arguments()[0] < CLOCKS {
        libc::SYS_clock_nanosleep
    } else {
        libc::SYS_nanosleep
    })
}

/// A thread stopped inside a restartable sequence goes on at its abort handler, as after any preemption.
fn abort_critical_section(process: &Process, rseq: u64, registers: &mut cpr_kernel::arch::Registers) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    let what = || format!("read the restartable sequence of process {}", process.pid);
    let section = space.memory.read_u64(rseq + 8).context(what)?;
    if section == 0 {
        return Ok(());
    }
    let start = space.memory.read_u64(section + 8).context(what)?;
    let length = space.memory.read_u64(section + 16).context(what)?;
    let abort = space.memory.read_u64(section + 24).context(what)?;
    if registers.rip.wrapping_sub(start) < length {
        registers.rip = abort;
    }
    Ok(())
}
