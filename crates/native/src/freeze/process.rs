//! A stopped process and its threads.

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cpr_image::model::EndedLeader;
use cpr_kernel::arch::{self, Registers};
use cpr_kernel::batch::{Batch, CallFailed, Outcome};
use cpr_kernel::memory::{Memory, Pagemap};
use cpr_kernel::proc::{MapEntry, ProcDir, Stat, Status};
use cpr_kernel::process::{self, LiftedLimit};
use cpr_kernel::ptrace::{Stop, Tracee};
use cpr_kernel::remote::{self, Arena, Deferred, INJECTION_MASK, Runner};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::early::Told;
use super::stop::{Stopped, wait_stopped};
use super::{ATTACHED, EINTR, ERESTARTSYS};
use crate::concealed::{self, Caller, Concealed};

/// How long a thread that is woken from a call may take to sleep in it again.
const SETTLING: Duration = Duration::from_millis(50);
const ERESTART_RESTARTBLOCK: i64 = -516;
const ERESTARTNOHAND: i64 = -514;

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
    pub(super) injected: bool,
    /// Its last stop was a system-call exit.
    pub(super) in_syscall_exit: bool,
    pub(super) deferred: Deferred,
    /// It was stopped before the others, and goes on after them.
    pub(super) is_early: bool,
    /// What it has told by then.
    pub told: Option<Told>,
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
    /// Its leader, where that has ended while others go on.
    pub ended_leader: Option<EndedLeader>,
    /// Threads, the leader first unless it has ended; none for a zombie.
    pub threads: Vec<Thread>,
    /// Memory and page table; none for a zombie.
    pub space: Option<Space>,
    /// The job-control signal it was stopped by before we came.
    pub stopped_by: Option<i32>,
    /// Where nobody may look at the process but for the time of this stop: what it was.
    pub concealed: Option<Concealed>,
    /// First addresses of the mappings that have a memory policy, where it was asked for them.
    pub bound: Option<Vec<u64>>,
    /// Whether it may not look at us, where it was asked ([`crate::confined`]).
    pub is_kept_from_us: Option<Option<bool>>,
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
    /// A thread that was stopped before the others.
    pub(super) fn early(tracee: Tracee, registers: Registers, mask: u64) -> Self {
        Thread {
            tracee,
            registers,
            mask,
            asleep_since: None,
            asleep_in: None,
            injected: false,
            in_syscall_exit: false,
            deferred: Deferred::default(),
            is_early: true,
            told: None,
        }
    }

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
    pub(super) fn shows_eintr(&self) -> bool {
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
    pub(super) fn restarts_unknown_call(&self, memory: &Memory) -> bool {
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
    pub(super) fn prepare(&mut self, pid: i32, of_process: bool) -> Result<()> {
        if !self.injected {
            let tid = self.tracee.tid();
            // It would be delivered as soon as we unblock it, and be lost.
            for shared in [false, true].into_iter().filter(|shared| of_process || !shared) {
                let pending = has_pending(pid, self.tracee, shared, !(1 << (libc::SIGTRAP - 1)));
                if pending.context(|| format!("read the signals of thread {tid}"))? {
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
    pub(super) fn caller(&mut self, pid: i32, deadline: Instant) -> Result<Caller<'_>> {
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
    pub(super) fn put_back(&mut self, deadline: Instant) -> std::io::Result<()> {
        self.deferred.stop |= park(self.tracee, deadline)?;
        self.give_back()
    }

    /// Gives a thread back its registers and signal mask, where it is not in the exit of a system call that it made for
    /// us.
    pub(super) fn give_back(&mut self) -> std::io::Result<()> {
        self.tracee.set_signal_mask(self.mask)?;
        self.tracee.set_registers(&self.registers)?;
        (self.injected, self.in_syscall_exit) = (false, false);
        Ok(())
    }
}

impl Process {
    /// Takes the address space of a process that has one, as it could be opened or not. One that lets nobody look at it
    /// is made accessible first.
    pub(super) fn take_space(&mut self, opened: Result<Space>, deadline: Instant) -> Result<()> {
        if self.threads.is_empty() {
            return Ok(());
        }
        self.space = match opened {
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

    pub(super) fn reveal(&mut self, deadline: Instant) -> Result<()> {
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
    pub(super) fn conceal(&mut self, deadline: Instant) -> Result<()> {
        let pid = self.pid;
        match (self.concealed.take(), self.threads.first_mut()) {
            (Some(concealed), Some(thread)) => thread.caller(pid, deadline)?.conceal(concealed, pid),
            _ => Ok(()),
        }
    }

    /// A thread may not have run since a stop before this one, and so not be asleep again in the call the kernel is to
    /// restart. Nothing would tell then which call that is: each such thread is let go until it sleeps.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], which passes, where a thread that was let go has ended its process. Others as ptrace(2).
    pub(super) fn settle_restarts(&mut self, deadline: Instant) -> Result<()> {
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
                    thread.told = None;
                    thread.registers = tracee.registers().context(what)?;
                    thread.mask = tracee.signal_mask().context(what)?;
                }
                Stopped::Gone => ended.push(index),
            }
        }
        for index in ended.into_iter().rev() {
            self.threads.remove(index);
        }
        let has_first = |thread: &Thread| thread.tracee.tid() == self.proc.acting();
        if !self.threads.first().is_some_and(has_first) {
            return Err(Error::new(ErrorKind::Gone, format!("process {pid} has ended")).passing());
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
                    "the program has as much memory as its limits let it have (ulimit -v, -d): raise them with prlimit(1), \
                     or checkpoint with CAP_SYS_RESOURCE, which root has unless it was taken away, as in many containers",
                ),
                _ => error,
            }
        })?;
        space.arena = Some(arena);
        Ok(())
    }

    /// Keeps the arena from processes that are forked while it is there.
    pub(super) fn keep_arena_from_children(&mut self, deadline: Instant) -> Result<()> {
        let Some(arena) = self.space.as_ref().and_then(|space| space.arena) else {
            return Ok(());
        };
        let advice = [arena.address, arena.length, libc::MADV_DONTFORK as u64, 0, 0, 0];
        let kept = self.call(libc::SYS_madvise, advice, deadline)?;
        kept.map(drop)
            .context(|| format!("keep our page in process {} from its children", self.pid))
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
        self.run_where(|index, _| indices.contains(&index), batch, deadline)
    }

    /// The same in each thread of which `is_one` is true.
    pub fn run_where(
        &mut self,
        is_one: impl Fn(usize, &Thread) -> bool,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Vec<Outcome>> {
        let pid = self.pid;
        let internal = || Error::new(ErrorKind::Internal, format!("process {pid} has no arena"));
        let space = self.space.as_ref().ok_or_else(internal)?;
        let arena = space.arena.ok_or_else(internal)?;
        let mut runners = Vec::with_capacity(self.threads.len());
        let threads = self.threads.iter_mut().enumerate();
        for (at, (_, thread)) in threads.filter(|(index, thread)| is_one(*index, thread)).enumerate() {
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
            .map_err(|error| failed(pid, error))
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
        // After a trap there is no system call that the thread would have to be taken out of.
        thread.in_syscall_exit = ignores_traps;
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
            !ignores_traps,
            deadline,
            &mut thread.deferred,
        );
        put_back.and(unmapped.context(|| format!("unmap our page from process {pid}")))
    }
}

/// The error of a batch in a process.
pub(super) fn failed(pid: i32, failed: CallFailed) -> Error {
    let kind = ErrorKind::of_io(&failed.error);
    Error::new(kind, format!("process {pid}: {}", failed.what)).with_source(failed.error)
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

/// Whether one of these signals would interrupt a system call of a thread with this mask.
pub fn interrupts(pending: &[[u8; 128]], mask: u64) -> bool {
    pending.iter().any(|info| {
        let mut raw = [0u8; 4];
        raw.copy_from_slice(&info[..4]);
        let signal = i32::from_ne_bytes(raw);
        (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 0
    })
}

/// Whether a signal is pending for a stopped thread, or if `shared` for its process, that is not in `mask`. Of many only
/// the first are looked at one by one: others of the job may run already and send more, faster than they can be read.
fn has_pending(pid: i32, tracee: Tracee, shared: bool, mask: u64) -> std::io::Result<bool> {
    let (first, no_others) = tracee.first_pending_signals(shared)?;
    if no_others || interrupts(&first, mask) {
        return Ok(interrupts(&first, mask));
    }
    let status = ProcDir::open_task(pid, tracee.tid())?.status()?;
    let pending = if shared {
        status.shared_pending
    } else {
        status.sig_pending
    };
    Ok(pending & !mask != 0)
}

/// Gives a thread back what it had. Tells whether a SIGSTOP came for it meanwhile.
pub(super) fn put_right(pid: i32, thread: &Thread, deadline: Instant) -> std::io::Result<bool> {
    let tracee = thread.tracee;
    let comes = |shared| has_pending(pid, tracee, shared, thread.mask).unwrap_or(false);
    let pending = thread.shows_eintr() && (comes(false) || comes(true));
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
