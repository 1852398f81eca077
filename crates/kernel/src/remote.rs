//! Making system calls in a stopped process.
//!
//! A single call is made at a `syscall` instruction the process already has (in its vdso), by one PTRACE_SINGLESTEP or
//! between two PTRACE_SYSCALL stops; nothing is written to the process. Many calls are made by the interpreter in an
//! *arena*, a private mapping that the first single call makes and the last one removes.
//!
//! The caller has to have blocked all signals but SIGTRAP in the thread ([`Tracee::set_signal_mask`]) and to put
//! registers and mask back afterwards.
//!
//! A trap, of a single step or at the end of a batch, makes the kernel set the action of an ignored SIGTRAP to the
//! default (force_sig_info_to_task in kernel/signal.c): [`ignore_traps`] puts it back.

use std::io;
use std::time::Instant;

use crate::arch::{self, ENTRY_SIZE, Registers, SYSCALL_INSTRUCTION};
use crate::batch::{Batch, CallFailed, Outcome};
use crate::memory::{Memory, PAGE};
use crate::ptrace::{EVENT_EXIT, SeizeOptions, Stop, Tracee};

/// All signals blocked but SIGTRAP, the mask under which a tracee makes our calls.
pub const INJECTION_MASK: u64 = !(1 << (libc::SIGTRAP - 1));

/// Bytes of the arena before the first batch: the interpreter's code.
const CODE_SIZE: u64 = PAGE;

/// A private mapping in a stopped process that holds the interpreter and one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arena {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Signals that arrived while we worked and have to be delivered when the thread goes on (only those that cannot be
/// blocked).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Deferred {
    /// SIGSTOP arrived.
    pub stop: bool,
    /// The signal that was about to end the program: the kernel hands it out though it is blocked, and only once.
    pub end: Option<i32>,
}

/// A thread that is to run a batch.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The thread, in a stop.
    pub tracee: Tracee,
    /// Its registers, for those that the interpreter does not set.
    pub base: &'a Registers,
    /// Where signals that arrive meanwhile are noted.
    pub deferred: &'a mut Deferred,
}

/// Offset of a `syscall` instruction within `code`.
pub fn find_syscall_instruction(code: &[u8]) -> Option<u64> {
    code.windows(SYSCALL_INSTRUCTION.len())
        .position(|w| w == SYSCALL_INSTRUCTION)
        .map(|at| at as u64)
}

/// Makes one system call in `tracee` at `instruction`, starting from the registers `base`.
///
/// # Errors
/// The call's own error, or a failure to control the tracee ([`io::ErrorKind::TimedOut`] when it does not come back by
/// `deadline`, ESRCH when it died).
pub fn syscall(
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    number: i64,
    arguments: [u64; 6],
    deadline: Instant,
    deferred: &mut Deferred,
) -> io::Result<u64> {
    tracee.set_registers(&base.for_syscall(instruction, number, arguments))?;
    for _ in 0..2 {
        tracee.to_syscall()?;
        expect(tracee, Stop::Syscall, deadline, deferred, Tracee::to_syscall)?;
    }
    result_of(tracee)
}

/// The same by a single step, which is one stop instead of two.
///
/// # Errors
/// As for [`syscall`].
pub fn step(
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    number: i64,
    arguments: [u64; 6],
    deadline: Instant,
    deferred: &mut Deferred,
) -> io::Result<u64> {
    start_step(tracee, base, instruction, number, arguments)?;
    finish_step(tracee, deadline, deferred)
}

/// Has [`step`] begun, and does not wait.
///
/// # Errors
/// The tracee cannot be controlled; nothing is to be waited for then.
pub fn start_step(
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    number: i64,
    arguments: [u64; 6],
) -> io::Result<()> {
    tracee.set_registers(&base.for_syscall(instruction, number, arguments))?;
    tracee.step()
}

/// Waits for what [`start_step`] has begun.
///
/// # Errors
/// As for [`syscall`].
pub fn finish_step(tracee: Tracee, deadline: Instant, deferred: &mut Deferred) -> io::Result<u64> {
    expect(tracee, Stop::Signal(libc::SIGTRAP), deadline, deferred, Tracee::step)?;
    result_of(tracee)
}

fn result_of(tracee: Tracee) -> io::Result<u64> {
    let result = tracee.registers()?.syscall_result();
    if (-4095..0).contains(&result) {
        Err(io::Error::from_raw_os_error(-result as i32))
    } else {
        Ok(result as u64)
    }
}

/// Makes the process ignore SIGTRAP, as it did before a trap of ours; the rest of the action is still what it was.
///
/// # Errors
/// As for [`syscall`].
pub fn ignore_traps(
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    arena: Arena,
    memory: &Memory,
    deadline: Instant,
    deferred: &mut Deferred,
) -> io::Result<()> {
    // A kernel's struct sigaction begins with the handler.
    let action = arena.address + CODE_SIZE;
    let mut change = |new: u64, old: u64| {
        let arguments = [libc::SIGTRAP as u64, new, old, size_of::<u64>() as u64, 0, 0];
        let number = libc::SYS_rt_sigaction;
        syscall(tracee, base, instruction, number, arguments, deadline, deferred)
    };
    change(0, action)?;
    memory.write(action, &(libc::SIG_IGN as u64).to_ne_bytes())?;
    change(action, 0).map(drop)
}

/// Starts nanosleep(2) of the `struct timespec` at `place` in `tracee` and interrupts it, so that the kernel's restart
/// block holds its end. Gives false when the time was over before it could be interrupted.
pub fn sleep(tracee: Tracee, base: &Registers, instruction: u64, place: u64, deadline: Instant) -> io::Result<bool> {
    tracee.set_registers(&base.for_syscall(instruction, libc::SYS_nanosleep, [place, 0, 0, 0, 0, 0]))?;
    let mut deferred = Deferred::default();
    tracee.to_syscall()?;
    expect(tracee, Stop::Syscall, deadline, &mut deferred, Tracee::to_syscall)?;
    tracee.to_syscall()?;
    tracee.interrupt()?;
    // Depending on where it is caught: at the exit of the call, or in the stop we asked for. Any stop clears the
    // request for another, so it is made again.
    loop {
        match tracee.wait(deadline)? {
            Stop::Interrupted(_) => break,
            Stop::Exited(_) | Stop::Killed(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Stop::Syscall | Stop::Signal(_) | Stop::Event(_) => {
                tracee.interrupt()?;
                tracee.cont(0)?;
            }
        }
    }
    // -ERESTART_RESTARTBLOCK
    Ok(tracee.registers()?.syscall_result() == -516)
}

/// Ends a stopped thread, and not its process, with this exit code, and is no longer its tracer. Nothing of its memory is
/// touched: what it has registered with set_tid_address(2) and the like has to be given up before. `suspended`: its
/// seccomp filters are.
///
/// # Errors
/// The thread does not come to its end until `deadline`.
pub fn end_thread(
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    code: i32,
    suspended: bool,
    deadline: Instant,
) -> io::Result<()> {
    let options = SeizeOptions {
        kill_on_exit: true,
        follow: false,
    };
    tracee.stop_at_exit(options, suspended)?;
    tracee.set_signal_mask(u64::MAX)?;
    tracee.set_registers(&base.for_syscall(instruction, libc::SYS_exit, [code as u64, 0, 0, 0, 0, 0]))?;
    tracee.cont(0)?;
    loop {
        match tracee.wait(deadline)? {
            Stop::Event(EVENT_EXIT) => return tracee.detach(0),
            Stop::Exited(_) | Stop::Killed(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Stop::Interrupted(_) | Stop::Signal(_) | Stop::Syscall | Stop::Event(_) => tracee.cont(0)?,
        }
    }
}

/// Signals that the kernel sends for faults that come again when the program goes on where it was.
const FAULT_SIGNALS: [i32; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// What a signal of [`FAULT_SIGNALS`] is that arrives while we work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// For a fault of the program's from before it was stopped. The kernel hands it out with our own trap though it is
    /// blocked (dequeue_synchronous_signal in kernel/signal.c). It may be dropped: the program has yet to go on where
    /// it faulted, and does so again.
    Again,
    /// The same, or that of a signal that could not be delivered (force_fatal_sig): the program ends either way.
    Ends,
    /// What we have the thread do has faulted, or somebody has sent the signal.
    Other,
}

fn fault_of(signal: i32, tracee: Tracee) -> Fault {
    // A siginfo_t has signal, errno and code, and for these, at 16, the address. Codes of faults are small. SI_KERNEL
    // comes without an address: of what no page is to blame for (a privileged instruction, an address that is none),
    // and of a signal that could not be delivered. For the latter the kernel sets the action to the default first.
    const SI_KERNEL: i32 = 0x80;
    if !FAULT_SIGNALS.contains(&signal) {
        return Fault::Other;
    }
    let (Ok(details), Ok(registers)) = (tracee.signal_details(), tracee.registers()) else {
        return Fault::Other;
    };
    let code = details[8..12].try_into().map_or(0, i32::from_ne_bytes);
    let address = details[16..24].try_into().map_or(0, u64::from_ne_bytes);
    match code {
        // What we have it do may fault, too: then it stands there.
        1..SI_KERNEL if address != registers.program_counter() => Fault::Again,
        SI_KERNEL => match crate::proc::status_of(tracee.tid()) {
            Ok(status) if status.sig_caught >> (signal - 1) & 1 != 0 => Fault::Again,
            _ => Fault::Ends,
        },
        _ => Fault::Other,
    }
}

/// Waits for `wanted`, letting the thread go on (with `go_on`) past stops that have nothing to do with us.
fn expect(
    tracee: Tracee,
    wanted: Stop,
    deadline: Instant,
    deferred: &mut Deferred,
    go_on: impl Fn(Tracee) -> io::Result<()>,
) -> io::Result<()> {
    let mut faults = 0;
    let mut refused = None;
    loop {
        match tracee.wait(deadline)? {
            stop if stop == wanted => return refused.map_or(Ok(()), Err),
            Stop::Exited(_) | Stop::Killed(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Stop::Signal(libc::SIGSTOP) => {
                deferred.stop = true;
                go_on(tracee)?;
            }
            Stop::Signal(libc::SIGSYS) => {
                return Err(io::Error::other(
                    "the program answers system calls itself (seccomp, or prctl PR_SET_SYSCALL_USER_DISPATCH), also those \
                     that are made in it for us, which is not supported",
                ));
            }
            Stop::Signal(signal) => {
                let fault = match faults < FAULT_SIGNALS.len() {
                    true => fault_of(signal, tracee),
                    false => Fault::Other,
                };
                if fault == Fault::Ends {
                    deferred.end = Some(signal);
                }
                if fault != Fault::Other {
                    faults += 1;
                    go_on(tracee)?;
                    continue;
                }
                let error = io::Error::other(format!(
                    "the process got signal {signal} while it made a system call for us"
                ));
                // Our trap may be behind it: left there, it would end the program.
                if refused.is_some() || wanted != Stop::Signal(libc::SIGTRAP) {
                    return Err(error);
                }
                refused = Some(error);
                go_on(tracee)?;
            }
            Stop::Interrupted(_) | Stop::Event(_) | Stop::Syscall => go_on(tracee)?,
        }
    }
}

impl Arena {
    /// Room for batches.
    pub fn capacity(&self) -> usize {
        self.length.saturating_sub(CODE_SIZE) as usize
    }

    /// Maps an arena of at least `capacity` bytes for batches at `address` (which must be free) or, if that is zero,
    /// wherever the kernel likes, and writes the interpreter to it. Traps the thread.
    #[allow(clippy::too_many_arguments)]
    pub fn map(
        tracee: Tracee,
        base: &Registers,
        instruction: u64,
        memory: &Memory,
        address: u64,
        capacity: u64,
        deadline: Instant,
        deferred: &mut Deferred,
    ) -> io::Result<Self> {
        let length = Self::length_for(capacity);
        let mut whole = Self::map_call(length);
        if address != 0 {
            whole[0] = address;
            whole[3] |= libc::MAP_FIXED_NOREPLACE as u64;
        }
        let mut map =
            |arguments: [u64; 6]| step(tracee, base, instruction, libc::SYS_mmap, arguments, deadline, deferred);
        let address = map(whole)?;
        map(Self::code_call(address))?;
        let arena = Arena { address, length };
        arena.place_interpreter(memory)?;
        Ok(arena)
    }

    /// Length of an arena for batches of so many bytes.
    pub fn length_for(capacity: u64) -> u64 {
        CODE_SIZE + capacity.next_multiple_of(PAGE)
    }

    /// Arguments of the mmap(2) that maps an arena of this length wherever the kernel likes.
    pub fn map_call(length: u64) -> [u64; 6] {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        [0, length, protection as u64, flags as u64, u64::MAX, 0]
    }

    /// Arguments of the mmap(2) that makes room for the interpreter in an arena at this address. No page is both
    /// writable and executable: security policies and PR_SET_MDWE refuse that. We write through /proc/PID/mem, which
    /// does not ask.
    pub fn code_call(address: u64) -> [u64; 6] {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        [address, CODE_SIZE, protection as u64, flags as u64, u64::MAX, 0]
    }

    /// Writes the interpreter to its place.
    pub fn place_interpreter(self, memory: &Memory) -> io::Result<()> {
        memory.write(self.address, arch::interpreter())
    }

    /// Removes the arena again, by a system call that traps the thread or, in two stops instead of one, does not.
    pub fn unmap(
        self,
        tracee: Tracee,
        base: &Registers,
        instruction: u64,
        may_trap: bool,
        deadline: Instant,
        deferred: &mut Deferred,
    ) -> io::Result<()> {
        let call = if may_trap { step } else { syscall };
        let arguments = [self.address, self.length, 0, 0, 0, 0];
        let number = libc::SYS_munmap;
        call(tracee, base, instruction, number, arguments, deadline, deferred).map(drop)
    }

    /// Starts `batch` in `tracee` and does not wait: for a thread that ends itself, or until [`Arena::finish`].
    pub fn start(self, tracee: Tracee, base: &Registers, memory: &Memory, batch: &Batch) -> io::Result<()> {
        if batch.size() > self.capacity() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let entries = self.address + CODE_SIZE;
        memory.write(entries, &batch.layout(entries))?;
        tracee.set_registers(&base.for_interpreter(self.address, entries, batch.len() as u64))?;
        tracee.cont(0)
    }

    /// Runs `batch` in `tracee`, a thread of the process the arena is mapped in.
    ///
    /// # Errors
    /// [`CallFailed`] with what was being done, for a call that had to succeed or for the batch as a whole.
    pub fn run(
        self,
        tracee: Tracee,
        base: &Registers,
        memory: &Memory,
        batch: &Batch,
        deadline: Instant,
        deferred: &mut Deferred,
    ) -> Result<Outcome, CallFailed> {
        let mut runner = [Runner { tracee, base, deferred }];
        let mut outcomes = self.run_in_each(&mut runner, memory, batch, deadline)?;
        outcomes.pop().ok_or_else(|| CallFailed {
            what: format!("run {} system calls in thread {}", batch.len(), tracee.tid()),
            error: io::ErrorKind::UnexpectedEof.into(),
        })
    }

    /// Waits for the end of a batch that was started.
    ///
    /// # Errors
    /// As for [`Arena::run`].
    pub fn finish(
        self,
        tracee: Tracee,
        memory: &Memory,
        batch: &Batch,
        deadline: Instant,
        deferred: &mut Deferred,
    ) -> Result<Outcome, CallFailed> {
        let count = batch.len() as u64;
        let mut bytes = vec![0; batch.size()];
        let ended = expect(tracee, Stop::Signal(libc::SIGTRAP), deadline, deferred, |t| t.cont(0))
            .and_then(|()| tracee.registers())
            .and_then(|registers| memory.read(self.address + CODE_SIZE, &mut bytes).map(|()| registers));
        let registers = ended.map_err(|error| CallFailed {
            what: format!("run {count} system calls in thread {}", tracee.tid()),
            error,
        })?;
        let done = count.saturating_sub(registers.interpreter_rest()) as usize;
        batch.collect(&bytes, done)
    }

    /// Runs `batch` in each of several threads of the process the arena is mapped in, in as many at the same time as
    /// there is room for. Gives the outcomes in the order of the threads.
    ///
    /// # Errors
    /// The first [`CallFailed`]. No thread runs any more then, unless it cannot be controlled.
    pub fn run_in_each(
        self,
        runners: &mut [Runner<'_>],
        memory: &Memory,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, CallFailed> {
        let control = |tracee: Tracee, error: io::Error| CallFailed {
            what: format!("run {} system calls in thread {}", batch.len(), tracee.tid()),
            error,
        };
        let size = batch.size().next_multiple_of(ENTRY_SIZE);
        let room = self.capacity() / size.max(1);
        let count = batch.len() as u64;
        let mut outcomes = Vec::with_capacity(runners.len());
        if let Some(runner) = runners.first()
            && room == 0
        {
            return Err(control(runner.tracee, io::ErrorKind::OutOfMemory.into()));
        }
        let first_entry = self.address + CODE_SIZE;
        for window in runners.chunks_mut(room.max(1)) {
            let Some(first) = window.first().map(|runner| runner.tracee) else {
                continue;
            };
            let mut bytes = Vec::with_capacity(size * window.len());
            for slot in 0..window.len() {
                bytes.extend(batch.layout(first_entry + (slot * size) as u64));
                bytes.resize((slot + 1) * size, 0);
            }
            memory
                .write(first_entry, &bytes)
                .map_err(|error| control(first, error))?;
            let mut failed: Option<CallFailed> = None;
            let mut started = 0;
            for (slot, runner) in window.iter().enumerate() {
                let entries = first_entry + (slot * size) as u64;
                let registers = runner.base.for_interpreter(self.address, entries, count);
                let result = runner
                    .tracee
                    .set_registers(&registers)
                    .and_then(|()| runner.tracee.cont(0));
                if let Err(error) = result {
                    failed = Some(control(runner.tracee, error));
                    break;
                }
                started += 1;
            }
            let mut rests = Vec::with_capacity(started);
            for Runner { tracee, deferred, .. } in &mut window[..started] {
                let tracee = *tracee;
                let rest = expect(tracee, Stop::Signal(libc::SIGTRAP), deadline, deferred, |t| t.cont(0))
                    .and_then(|()| tracee.registers());
                match rest {
                    Ok(registers) => rests.push(registers.interpreter_rest()),
                    Err(error) => {
                        rests.push(count);
                        failed.get_or_insert(control(tracee, error));
                    }
                }
            }
            if let Some(failed) = failed {
                return Err(failed);
            }
            memory
                .read(first_entry, &mut bytes)
                .map_err(|error| control(first, error))?;
            for (slot, rest) in rests.into_iter().enumerate() {
                let done = count.saturating_sub(rest) as usize;
                outcomes.push(batch.collect(&bytes[slot * size..slot * size + batch.size()], done)?);
            }
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Arg;
    use crate::proc::ProcDir;
    use crate::ptrace::{SeizeOptions, block_child_signals};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn a_batch_runs_in_another_process_and_leaves_no_trace() {
        block_child_signals().unwrap();
        let mut child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(10);
        let process = ProcDir::open(pid).unwrap();
        // exec is done when the command line is sleep's
        while !process.read("cmdline").unwrap().starts_with(b"sleep") {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let options = SeizeOptions {
            kill_on_exit: false,
            follow: false,
        };
        let tracee = Tracee::seize(pid, options).unwrap();
        tracee.interrupt().unwrap();
        assert!(matches!(tracee.wait(deadline).unwrap(), Stop::Interrupted(_)));
        let before = process.read("maps").unwrap();
        let saved = tracee.registers().unwrap();
        let mask = tracee.signal_mask().unwrap();
        tracee.set_signal_mask(INJECTION_MASK).unwrap();
        let memory = Memory::open(process.as_fd()).unwrap();
        let vdso = process
            .maps()
            .unwrap()
            .into_iter()
            .find(|m| m.path == b"[vdso]")
            .unwrap();
        let mut code = vec![0; (vdso.end - vdso.start) as usize];
        memory.read(vdso.start, &mut code).unwrap();
        let instruction = vdso.start + find_syscall_instruction(&code).unwrap();
        let mut deferred = Deferred::default();
        let arena = Arena::map(
            tracee,
            &saved,
            instruction,
            &memory,
            0,
            1 << 16,
            deadline,
            &mut deferred,
        )
        .unwrap();
        let mut batch = Batch::new();
        let getpid = batch.must(libc::SYS_getpid, &[], "get the pid");
        let (address, out) = batch.out(4096);
        let path = batch.string(b"/");
        batch.must(libc::SYS_chdir, &[path], "change directory");
        let length = batch.must(libc::SYS_getcwd, &[address, Arg::from(4096)], "get the directory");
        batch.call(libc::SYS_kill, &[Arg::Result(getpid), Arg::from(0)]);
        let outcome = arena
            .run(tracee, &saved, &memory, &batch, deadline, &mut deferred)
            .unwrap();
        assert_eq!(outcome.result(getpid).unwrap(), pid as u64);
        assert_eq!(&outcome.output(out)[..outcome.result(length).unwrap() as usize], b"/\0");
        let mut failing = Batch::new();
        failing.must(libc::SYS_close, &[Arg::from(-1)], "close nothing");
        failing.must(libc::SYS_exit_group, &[Arg::from(3)], "exit");
        let error = arena
            .run(tracee, &saved, &memory, &failing, deadline, &mut deferred)
            .unwrap_err();
        assert_eq!(
            (error.what.as_str(), error.error.raw_os_error()),
            ("close nothing", Some(libc::EBADF))
        );
        arena
            .unmap(tracee, &saved, instruction, false, deadline, &mut deferred)
            .unwrap();
        tracee.set_signal_mask(mask).unwrap();
        tracee.set_registers(&saved).unwrap();
        assert_eq!(process.read("maps").unwrap(), before);
        tracee.detach(0).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
