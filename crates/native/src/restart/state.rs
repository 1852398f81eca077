//! Giving a process its state back, and letting it go.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{Manifest, MappingKind, Process, ProcessState, SavedFileId};
use cpr_kernel::arch::Registers;
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::memory::PAGE;
use cpr_kernel::process::{self, PidFd};
use cpr_kernel::ptrace::Tracee;
use cpr_kernel::remote::{self, Deferred};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::filters::When;
use super::identity::Rights;
use super::opened::place_descriptors;
use super::space::Sources;
use super::stub::Workshop;
use super::terminals::with_descriptor;
use super::{address_space, filters, identity, leader, living, space, stub, timers};
use crate::files;
use crate::freeze;

/// Linux 6.3.
const PR_SET_MDWE: i32 = 65;
/// Linux 6.4.
const PR_SET_MEMORY_MERGE: i32 = 67;
/// Signals that are queued at a time: any number may be pending, and the memory for what a stub does is bounded.
const TOGETHER: usize = 256;

/// What is left to do for a process when everything else is in place.
pub(super) struct Plan {
    /// The handles of the threads that are to live with their final registers, the first thread first.
    pub(super) threads: Vec<(Tracee, Registers)>,
    /// When their system call filters come.
    pub(super) filters: When,
}

/// Has a process enter its directories and take over its executable, the vdso and the bounds of its memory. Needs
/// descriptors of ours, so comes before any process, which may share its table, gets its own.
pub(super) fn enter(
    workshop: &Workshop,
    manifest: &Manifest,
    process: &Process,
    sources: &Sources<'_>,
    rights: Rights,
) -> Result<()> {
    let pid = process.pid;
    let what = || format!("restore process {pid}");
    let space = address_space(manifest, process)?;
    // The executable's descriptor is still open now, and the vdso is needed no more by its parking place.
    let mut batch = Batch::new();
    batch.must(libc::SYS_umask, &[process.umask.into()], "set the umask");
    // Directories are entered with the rights of the image's owner.
    // In a user namespace of its own it is who it was already.
    let owned = rights.privileged && process.user_namespace.is_none();
    let owner = owned.then_some(manifest.checkpoint.owner_uid);
    let number = |id: Option<SavedFileId>| {
        let missing = || Error::new(ErrorKind::Damaged, format!("process {pid} has no directory"));
        id.map(|id| sources.saved.get(id.index()).map(stub::number).ok_or_else(missing))
            .transpose()
    };
    let (cwd, root) = (number(process.cwd_saved)?, number(process.root_saved)?);
    identity::enter((&process.cwd, cwd), (&process.root, root), owner, &mut batch);
    space::finish(workshop, space, sources, &mut batch)?;
    workshop.run(pid, &batch).context(what).map(drop)
}

/// Gives a process its login user, which it can set itself only. Who lacks CAP_AUDIT_CONTROL keeps the restarter's.
pub(super) fn log_in(workshop: &Workshop, pid: i32, user: u32) {
    let Ok(file) = std::fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/loginuid"))
    else {
        return;
    };
    let _ = with_descriptor(workshop, pid, file.as_fd(), |batch, fd| {
        let text = user.to_string();
        let length = text.len();
        let text = batch.data(text.as_bytes());
        batch.call(libc::SYS_write, &[fd.into(), text, length.into()]);
    });
}

/// Gives a process its descriptors.
pub(super) fn place(workshop: &Workshop, process: &Process, opened: &[Arc<OwnedFd>]) -> Result<()> {
    match process.shares_descriptors {
        true => Ok(()),
        false => place_descriptors(workshop, process, opened).context(|| format!("restore process {}", process.pid)),
    }
}

/// Gives a process that has its descriptors its threads and kernel state.
pub(super) fn rebuild(
    workshop: &mut Workshop,
    manifest: &Manifest,
    process: &Process,
    opened: &[Arc<OwnedFd>],
    rights: Rights,
) -> Result<Plan> {
    let pid = process.pid;
    // In a user namespace of its own it is who it was already.
    let owned = rights.privileged && process.user_namespace.is_none();
    let owner = owned.then_some(manifest.checkpoint.owner_uid);
    let what = || format!("restore process {pid}");
    let mut batch = Batch::new();
    files::finish(process, manifest, &mut batch)?;
    if !batch.is_empty() {
        workshop.run(pid, &batch).map_err(in_use).context(what)?;
    }
    files::break_leases(process, manifest, opened).context(what)?;
    write_proc(process)?;
    let mut batch = Batch::new();
    signals_and_timers(workshop, process, &mut batch)?;
    limits(process, &mut batch)?;
    workshop.run(pid, &batch).context(what)?;
    let handles: Vec<(Tracee, Registers)> = {
        let stub = workshop.stub(pid)?;
        std::iter::once((stub.tracee, stub.base))
            .chain(stub.threads.iter().copied())
            .skip(usize::from(process.ended_leader.is_some()))
            .collect()
    };
    let mut plan = Plan {
        threads: Vec::new(),
        filters: When::Now,
    };
    for (index, (thread, (tracee, base))) in process.threads.iter().zip(handles).enumerate() {
        let stub = workshop.stub(pid)?;
        let mut run = |batch: &Batch| workshop.run_thread(stub, tracee, &base, batch).map(drop);
        if filters::install(process, index, tracee, rights, &mut run).context(what)? == When::Last {
            plan.filters = When::Last;
        }
        let mut batch = Batch::new();
        if let Some(own) = &thread.directories {
            identity::directories(own, owner, &mut batch);
        }
        let numbers = [workshop.seen(pid, pid)?, workshop.seen(pid, thread.tid)?];
        identity::thread(thread, &mut batch);
        for some in thread.pending_signals.chunks(TOGETHER) {
            identity::signals(some, numbers, &mut batch);
            if thread.pending_signals.len() > TOGETHER {
                run(&std::mem::take(&mut batch)).context(what)?;
            }
        }
        identity::credentials(thread, process, rights, &mut batch);
        if leader::is_to_end(manifest, process.ppid) {
            batch.call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), Arg::from(0)]);
        }
        workshop.run_thread(stub, tracee, &base, &batch).context(what)?;
        workshop.robust.note(manifest, process, thread);
        let registers = Registers::from_bytes(&thread.cpu.general.0)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("thread {} has no registers", thread.tid)))?;
        plan.threads.push((tracee, registers));
    }
    leader::rebuild(workshop, process, rights, plan.filters).context(what)?;
    Ok(plan)
}

/// EAGAIN of a lock means that somebody else has it.
pub(super) fn in_use(error: Error) -> Error {
    if error.kind() == ErrorKind::Busy {
        error
            .with_kind(ErrorKind::InUse)
            .with_hint("another process holds the lock; end it, then restart")
    } else {
        error
    }
}

/// What is set through /proc, by us.
pub(super) fn write_proc(process: &Process) -> Result<()> {
    let pid = process.pid;
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{pid}/{name}"), text);
    write("coredump_filter", format!("{:#x}", process.coredump_filter))
        .context(|| format!("set the core dump filter of process {pid}"))?;
    if process.autogroup_nice != 0 {
        // Raising the priority takes CAP_SYS_NICE.
        let _ = write("autogroup", process.autogroup_nice.to_string());
    }
    // Lowering it takes CAP_SYS_RESOURCE; who lacks it keeps the restarter's.
    let _ = write("oom_score_adj", process.oom_score_adj.to_string());
    Ok(())
}

pub(super) fn signals_and_timers(workshop: &Workshop, process: &Process, batch: &mut Batch) -> Result<()> {
    // Signals that came while we built (of children that died) are none of the job's.
    let all = batch.data(&u64::MAX.to_ne_bytes());
    let now = batch.data(&[0u8; 16]);
    for _ in 0..64 {
        batch.call(libc::SYS_rt_sigtimedwait, &[all, Arg::from(0), now, Arg::from(8)]);
    }
    for signal in 1..=64i32 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let saved = process.signal_actions.iter().find(|a| a.signal == signal);
        let mut raw = [0u8; 32];
        if let Some(action) = saved {
            let words = [action.handler, action.flags, action.restorer, action.mask];
            for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
                slot.copy_from_slice(&word.to_ne_bytes());
            }
        }
        // Ours go on with SIGTRAP at its default until the end.
        if signal == libc::SIGTRAP {
            continue;
        }
        let action = batch.data(&raw);
        batch.must(
            libc::SYS_rt_sigaction,
            &[signal.into(), action, Arg::from(0), Arg::from(8)],
            format!("set the action of signal {signal}"),
        );
    }
    let own = workshop.seen(process.pid, process.pid)?;
    for some in process.pending_signals.chunks(TOGETHER) {
        for info in some {
            let signal = identity::signal_of(&info.0);
            let info = batch.data(&info.0);
            batch.must(
                libc::SYS_rt_sigqueueinfo,
                &[own.into(), signal.into(), info],
                format!("queue signal {signal}"),
            );
        }
        if process.pending_signals.len() > TOGETHER {
            workshop.run(process.pid, &std::mem::take(batch))?;
        }
    }
    if process.child_subreaper {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), Arg::from(1)]);
    }
    if process.thp_disabled {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_THP_DISABLE.into(), Arg::from(1)]);
    }
    if process.memory_merge {
        // A kernel without KSM (or before 6.4) merges nothing.
        let five = [
            PR_SET_MEMORY_MERGE.into(),
            Arg::from(1),
            Arg::from(0),
            Arg::from(0),
            Arg::from(0),
        ];
        batch.call(libc::SYS_prctl, &five);
    }
    for bit in (0..32)
        .map(|shift| 1u32 << shift)
        .filter(|bit| process.membarrier & bit != 0)
    {
        batch.must(
            libc::SYS_membarrier,
            &[bit.into(), Arg::from(0), Arg::from(0)],
            format!("register for memory barriers of kind {bit:#x}"),
        );
    }
    batch.call(libc::SYS_personality, &[process.personality.into()]);
    if process.memory_deny_write_execute != 0 {
        batch.must(
            libc::SYS_prctl,
            &[
                PR_SET_MDWE.into(),
                process.memory_deny_write_execute.into(),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ],
            "refuse memory that is writable and executable (Linux 6.3)",
        );
    }
    for timer in &process.interval_timers {
        // A periodic timer whose signal is pending stands still until the signal is taken. Here it fires at once, into
        // the same pending signal; all signals are blocked.
        let value_us = if timer.which == libc::ITIMER_REAL && timer.value_us == 0 && timer.interval_us != 0 {
            1
        } else {
            timer.value_us
        };
        let mut raw = [0u8; 32];
        let words = [
            timer.interval_us / 1_000_000,
            timer.interval_us % 1_000_000,
            value_us / 1_000_000,
            value_us % 1_000_000,
        ];
        for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        let value = batch.data(&raw);
        batch.must(
            libc::SYS_setitimer,
            &[timer.which.into(), value, Arg::from(0)],
            "set an interval timer",
        );
    }
    timers::restore(workshop, process, batch)
}

/// Resource limits, none above the restarter's own (LBNL-3.9.7.2.3).
pub(super) fn limits(process: &Process, batch: &mut Batch) -> Result<()> {
    for limit in &process.limits {
        let (_, most) = process::limit(limit.resource).context(|| "ask for a limit")?;
        let hard = limit.hard.min(most);
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&limit.soft.min(hard).to_ne_bytes());
        raw[8..].copy_from_slice(&hard.to_ne_bytes());
        let value = batch.data(&raw);
        batch.must(
            libc::SYS_prlimit64,
            &[Arg::from(0), limit.resource.into(), value, Arg::from(0)],
            format!("set resource limit {}", limit.resource),
        );
    }
    Ok(())
}

/// Removes the arena and gives all threads their registers and masks: the process is as it was, but stopped.
pub(super) fn prepare(workshop: &Workshop, manifest: &Manifest, process: &Process, plan: &mut Plan) -> Result<()> {
    let pid = process.pid;
    let what = || format!("finish process {pid}");
    let stub = workshop.stub(pid)?;
    let instruction = final_instruction(workshop, process, stub)?;
    let mut deferred = Deferred::default();
    let space = address_space(manifest, process)?;
    let comes_last = plan.filters == When::Last;
    let leads = process.ended_leader.is_none();
    for (index, (thread, (tracee, registers))) in process.threads.iter().zip(&mut plan.threads).enumerate() {
        if let Some(sleep) = &thread.sleep
            && prime(workshop, stub, *tracee, instruction, sleep)?
        {
            // The kernel knows the rest of the sleep: let it restart that.
            registers.set_syscall_result(-516);
        }
        // It has ended by now, and nobody is to be told.
        if thread.parent_death_signal != 0 && leader::is_to_end(manifest, process.ppid) {
            let base = tracee.registers().context(what)?;
            let signal = thread.parent_death_signal as u64;
            let arguments = [libc::PR_SET_PDEATHSIG as u64, signal, 0, 0, 0, 0];
            let (deadline, number) = (workshop.deadline, libc::SYS_prctl);
            remote::syscall(*tracee, &base, instruction, number, arguments, deadline, &mut deferred).context(what)?;
        }
        if index == 0 {
            continue;
        }
        if comes_last {
            let base = tracee.registers().context(what)?;
            filters::install_last(workshop, process, index, *tracee, &base, instruction, space).context(what)?;
        }
        set_thread(*tracee, thread, registers).context(what)?;
    }
    let trap = process.signal_actions.iter().find(|a| a.signal == libc::SIGTRAP);
    if let Some(action) = trap {
        let words = [action.handler, action.flags, action.restorer, action.mask];
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let place = workshop.arena.address + PAGE;
        stub.memory.write(place, &raw).context(what)?;
        remote::syscall(
            stub.tracee,
            &stub.base,
            instruction,
            libc::SYS_rt_sigaction,
            [libc::SIGTRAP as u64, place, 0, 8, 0, 0],
            workshop.deadline,
            &mut deferred,
        )
        .context(|| "set the action of signal 5")?;
    }
    workshop
        .arena
        .unmap(
            stub.tracee,
            &stub.base,
            instruction,
            false,
            workshop.deadline,
            &mut deferred,
        )
        .context(what)?;
    if process.dumpable != 1 {
        // What only root may read (2) cannot be set by anybody.
        remote::syscall(
            stub.tracee,
            &stub.base,
            instruction,
            libc::SYS_prctl,
            [libc::PR_SET_DUMPABLE as u64, 0, 0, 0, 0, 0],
            workshop.deadline,
            &mut deferred,
        )
        .context(|| format!("make process {pid} inaccessible again"))?;
    }
    leader::end(workshop, process, instruction, plan.filters).context(what)?;
    if let (Some(thread), Some((tracee, registers))) = (process.threads.first(), plan.threads.first()) {
        if comes_last {
            let base = if leads {
                stub.base
            } else {
                tracee.registers().context(what)?
            };
            filters::install_last(workshop, process, 0, *tracee, &base, instruction, space).context(what)?;
        }
        freeze::park(*tracee, workshop.deadline).context(what)?;
        set_thread(*tracee, thread, registers).context(what)?;
    }
    Ok(())
}

pub(super) fn set_thread(
    tracee: Tracee,
    thread: &cpr_image::model::Thread,
    registers: &Registers,
) -> std::io::Result<()> {
    let mut registers = *registers;
    registers.sanitize().map_err(std::io::Error::other)?;
    if !thread.cpu.extended.0.is_empty() {
        tracee.set_extended(&thread.cpu.extended.0)?;
    }
    tracee.set_registers(&registers)?;
    tracee.set_signal_mask(thread.blocked_signals)
}

/// A `syscall` instruction in the finished process: in its vdso, or wherever its own code has one.
pub(super) fn final_instruction(workshop: &Workshop, process: &Process, stub: &stub::Stub) -> Result<u64> {
    let parked = workshop.parked.iter().find(|p| p.kind == MappingKind::Vdso);
    let offset = parked.map_or(0, |p| workshop.instruction() - p.address);
    let proc = cpr_kernel::proc::ProcDir::open(process.pid).context(|| "open /proc")?;
    let maps = proc.maps().context(|| "read the mappings")?;
    if let Some(vdso) = maps.iter().find(|m| m.path == b"[vdso]") {
        return Ok(vdso.start + offset);
    }
    for map in maps.iter().filter(|m| m.exec && m.start != workshop.arena.address) {
        let mut code = vec![0u8; (map.end - map.start).min(1 << 20) as usize];
        if stub.memory.read(map.start, &mut code).is_ok()
            && let Some(at) = remote::find_syscall_instruction(&code)
        {
            return Ok(map.start + at);
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("process {}: no system call instruction found", process.pid),
    ))
}

/// Starts the rest of a sleep in the new process and interrupts it, so that the kernel holds its end time.
pub(super) fn prime(
    workshop: &Workshop,
    stub: &stub::Stub,
    tracee: Tracee,
    instruction: u64,
    sleep: &cpr_image::model::TimedSleep,
) -> Result<bool> {
    if ![libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&sleep.syscall) {
        return Ok(false);
    }
    let what = || format!("start the sleep of thread {}", tracee.tid());
    let place = workshop.arena.address + PAGE;
    let mut time = [0u8; 16];
    time[..8].copy_from_slice(&(sleep.remaining_ns / 1_000_000_000).to_ne_bytes());
    time[8..].copy_from_slice(&(sleep.remaining_ns % 1_000_000_000).to_ne_bytes());
    stub.memory.write(place, &time).context(what)?;
    let base = tracee.registers().context(what)?;
    remote::sleep(tracee, &base, instruction, place, workshop.deadline).context(what)
}

/// The signal to stop a process with, so that its parent is told the same one as before. SIGSTOP where that one would
/// not stop it: it is caught, ignored, blocked, or the kernel ignores it in a process group without a shell.
pub(super) fn stop_signal(manifest: &Manifest, process: &Process, signal: i32) -> i32 {
    let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
        && !process
            .signal_actions
            .iter()
            .any(|action| action.signal == signal && action.handler != 0)
        && process
            .threads
            .iter()
            .any(|thread| thread.blocked_signals >> (signal - 1) & 1 == 0);
    let all = &manifest.processes;
    let has_shell = all.iter().filter(|member| member.pgid == process.pgid).any(|member| {
        all.iter()
            .any(|parent| parent.pid == member.ppid && parent.pgid != member.pgid && parent.sid == member.sid)
    });
    if stops && has_shell { signal } else { libc::SIGSTOP }
}

/// Lets every thread of every process go.
pub(super) fn let_go(workshop: &mut Workshop, manifest: &Manifest, plans: Vec<Plan>) -> Result<()> {
    // From here on nothing may fail half way: all are complete and need only be detached.
    for process in living(manifest) {
        if let ProcessState::Stopped(signal) = process.state {
            PidFd::open(process.pid)
                .and_then(|fd| fd.signal(stop_signal(manifest, process, signal)))
                .context(|| format!("stop process {}", process.pid))?;
        }
    }
    for plan in &plans {
        for (tracee, _) in &plan.threads {
            match tracee.detach(0) {
                // Those let go before it have ended the process already.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.context(|| format!("let thread {} go", tracee.tid()))?,
            }
        }
    }
    workshop.release();
    Ok(())
}
