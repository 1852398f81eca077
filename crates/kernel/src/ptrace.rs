//! ptrace(2): stopping threads and reading and writing their processor and signal state.
//!
//! All calls on a [`Tracee`] must come from the OS thread that seized it; the kernel refuses others with ESRCH.
//! Waits are bounded by a deadline. SIGCHLD must be blocked in the calling thread ([`block_child_signals`]), so that a
//! wait can sleep on it.

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::arch::{EXTENDED_MAX, EXTENDED_MIN, NT_EXTENDED, REGISTERS_SIZE, Registers};

/// The largest interval a wait sleeps before it looks again, whatever the notifications say.
const RECHECK: Duration = Duration::from_millis(20);

/// PTRACE_EVENT_STOP of <linux/ptrace.h>.
const EVENT_STOP: i32 = 128;

/// PTRACE_EVENT_EXIT.
pub const EVENT_EXIT: i32 = libc::PTRACE_EVENT_EXIT;

/// PTRACE_O_SUSPEND_SECCOMP.
const SUSPEND_SECCOMP: i32 = 1 << 21;

/// A seized thread. Dropping it does nothing; the kernel detaches all tracees when the tracer thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tracee {
    tid: i32,
}

/// Why a wait on a tracee returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_EVENT_STOP: by PTRACE_INTERRUPT, at birth of an auto-attached thread, or in a group stop by this signal.
    Interrupted(i32),
    /// Another PTRACE_EVENT_* (fork, clone, exec, exit).
    Event(i32),
    /// About to receive a signal.
    Signal(i32),
    /// Entry or exit of a system call (PTRACE_SYSCALL).
    Syscall,
    /// Exited with this status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

/// Options for [`Tracee::seize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeizeOptions {
    /// Kill the tracee when the tracer dies: for the half-built processes of a restart.
    pub kill_on_exit: bool,
    /// Attach to new children and threads automatically.
    pub follow: bool,
}

impl SeizeOptions {
    fn flags(self) -> i32 {
        let mut flags = libc::PTRACE_O_TRACESYSGOOD;
        if self.kill_on_exit {
            flags |= libc::PTRACE_O_EXITKILL;
        }
        if self.follow {
            flags |= libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
        }
        flags
    }
}

/// PTRACE_GET_RSEQ_CONFIGURATION.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RseqConfiguration {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
    pub padding: u32,
}

/// How often a stop is looked for before its signal is waited for.
const EAGER_LOOKS: usize = 8;

/// Size of the kernel's siginfo_t.
pub const SIGINFO_SIZE: usize = 128;

fn request(request: u32, tid: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: only requests whose `data` is a number, or null, come here (callers in this module), so the kernel
    // neither reads nor writes our memory.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Blocks SIGCHLD in the calling thread so that the waits of this module are woken by it. Call it before other threads
/// start, or in a thread of its own.
pub fn block_child_signals() -> io::Result<()> {
    let set = child_signal_set();
    // SAFETY: `set` is an initialised signal set and the old set is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

fn child_signal_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set fully before sigaddset and the read of it; both get a valid pointer.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        set
    }
}

fn wait_for_child_signal(limit: Duration) {
    let set = child_signal_set();
    let timeout = libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: set and timeout are initialised and outlive the call; no siginfo is asked for. Any outcome (signal,
    // EAGAIN, EINTR) is fine: the caller looks at its children again.
    unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &timeout) };
}

/// waitpid(2) without blocking, for traced threads and children of any kind; `None` when nothing happened.
pub fn poll(tid: i32) -> io::Result<Option<(i32, Stop)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let got = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
    match got {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some((pid, decode(status)))),
    }
}

/// Sees the end of a traced thread, if it has ended: nobody is told of it again. Any thread of the tracer's process may ask.
/// Tells whether it has.
///
/// # Errors
/// ECHILD where its end was seen already.
pub fn see_end(tid: i32) -> io::Result<bool> {
    // A tracer is told of stops, too, whatever it asks for (wait_task_stopped in kernel/exit.c): they are left for others.
    let code = wait_for_end(tid, libc::WNOWAIT)?;
    let has_ended = matches!(code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    if has_ended {
        wait_for_end(tid, 0)?;
    }
    Ok(has_ended)
}

/// waitid(2) without blocking; gives its code, 0 where there is nothing to tell.
fn wait_for_end(tid: i32, more: i32) -> io::Result<i32> {
    // SAFETY: siginfo_t is plain data, for which zeros are a value; without anything to tell they stay.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL | more;
    // SAFETY: `info` is a valid place for the result and outlives the call.
    if unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.si_code)
}

fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Killed(libc::WTERMSIG(status));
    }
    let signal = (status >> 8) & 0xff;
    let event = status >> 16;
    match event {
        0 if signal == (libc::SIGTRAP | 0x80) => Stop::Syscall,
        0 => Stop::Signal(signal),
        EVENT_STOP => Stop::Interrupted(signal),
        other => Stop::Event(other),
    }
}

impl Tracee {
    /// PTRACE_SEIZE: attaches without stopping.
    pub fn seize(tid: i32, options: SeizeOptions) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, tid, 0, options.flags() as usize)?;
        Ok(Tracee { tid })
    }

    /// Replaces the options of the stopped thread.
    pub fn set_options(self, options: SeizeOptions) -> io::Result<()> {
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, options.flags() as usize).map(drop)
    }

    /// Has the stopped thread stop once more, at [`Stop::Event`] with [`EVENT_EXIT`], on its way out. `suspended`: its
    /// filters are suspended, and stay so. Other options become these.
    pub fn stop_at_exit(self, options: SeizeOptions, suspended: bool) -> io::Result<()> {
        let suspend = if suspended { SUSPEND_SECCOMP } else { 0 };
        let flags = options.flags() | libc::PTRACE_O_TRACEEXIT | suspend;
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, flags as usize).map(drop)
    }

    /// Suspends the seccomp filters of the stopped thread for as long as it is attached to. To be asked for only while
    /// nothing but calls of ours run in it. Other options become these.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN in the first user namespace, or when the caller itself is filtered.
    pub fn suspend_seccomp(self, options: SeizeOptions) -> io::Result<()> {
        let flags = options.flags() | SUSPEND_SECCOMP;
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, flags as usize).map(drop)
    }

    /// Seccomp filters of the stopped thread, the first installed first: flags and instructions of 8 bytes.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN in the first user namespace, EINVAL for a thread without filters.
    pub fn seccomp_filters(self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        const SECCOMP_GET_FILTER: u32 = 0x420c;
        const SECCOMP_GET_METADATA: u32 = 0x420d;
        /// Instructions a filter can have (BPF_MAXINSNS).
        const MOST: usize = 4096;
        let mut filters = Vec::new();
        loop {
            let index = filters.len();
            let mut program = vec![0u8; MOST * 8];
            // SAFETY: the kernel writes at most BPF_MAXINSNS instructions of 8 bytes to `program`.
            let got = unsafe { libc::ptrace(SECCOMP_GET_FILTER, self.tid, index, program.as_mut_ptr()) };
            if got == -1 {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::ENOENT) => Ok(filters),
                    _ => Err(error),
                };
            }
            program.truncate(got as usize * 8);
            // struct seccomp_metadata: index, flags.
            let mut metadata = [index as u64, 0];
            // SAFETY: the kernel reads and writes the 16 bytes announced by the address argument.
            let got = unsafe {
                libc::ptrace(
                    SECCOMP_GET_METADATA,
                    self.tid,
                    size_of_val(&metadata),
                    metadata.as_mut_ptr(),
                )
            };
            if got == -1 {
                return Err(io::Error::last_os_error());
            }
            filters.push((metadata[1], program));
        }
    }

    /// A thread the kernel attached automatically at its birth.
    pub fn born(tid: i32) -> Self {
        Tracee { tid }
    }

    /// Thread ID.
    pub fn tid(self) -> i32 {
        self.tid
    }

    /// PTRACE_INTERRUPT: asks the thread to stop; wait for [`Stop::Interrupted`].
    pub fn interrupt(self) -> io::Result<()> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map(drop)
    }

    /// PTRACE_CONT, delivering `signal` (0 for none).
    pub fn cont(self, signal: i32) -> io::Result<()> {
        request(libc::PTRACE_CONT, self.tid, 0, signal as usize).map(drop)
    }

    /// PTRACE_SYSCALL: runs to the next entry or exit of a system call.
    pub fn to_syscall(self) -> io::Result<()> {
        request(libc::PTRACE_SYSCALL, self.tid, 0, 0).map(drop)
    }

    /// PTRACE_SINGLESTEP: runs one instruction, or one system call with its instruction; wait for [`Stop::Signal`] with
    /// SIGTRAP. The kernel sets the action of an ignored SIGTRAP to the default by it.
    pub fn step(self) -> io::Result<()> {
        request(libc::PTRACE_SINGLESTEP, self.tid, 0, 0).map(drop)
    }

    /// PTRACE_DETACH, delivering `signal` (0 for none).
    pub fn detach(self, signal: i32) -> io::Result<()> {
        request(libc::PTRACE_DETACH, self.tid, 0, signal as usize).map(drop)
    }

    /// Waits until the thread stops or ends, at most until `deadline` (then [`io::ErrorKind::TimedOut`]).
    pub fn wait(self, deadline: Instant) -> io::Result<Stop> {
        // Most stops are a few microseconds away: less than it takes to fall asleep and be woken.
        for _ in 0..EAGER_LOOKS {
            if let Some((_, stop)) = poll(self.tid)? {
                return Ok(stop);
            }
            std::thread::yield_now();
        }
        loop {
            if let Some((_, stop)) = poll(self.tid)? {
                return Ok(stop);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait_for_child_signal(left.min(RECHECK));
        }
    }

    /// Waits until the thread stands still by PTRACE_INTERRUPT or at its birth, and lets it go on past other stops.
    ///
    /// # Errors
    /// As [`Tracee::wait`]; ESRCH when it ends.
    pub fn wait_interrupted(self, deadline: Instant) -> io::Result<()> {
        loop {
            match self.wait(deadline)? {
                Stop::Interrupted(_) => return Ok(()),
                Stop::Exited(_) | Stop::Killed(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                Stop::Signal(_) | Stop::Event(_) | Stop::Syscall => self.cont(0)?,
            }
        }
    }

    /// General registers.
    pub fn registers(self) -> io::Result<Registers> {
        let bytes = self.register_set(libc::NT_PRSTATUS as u32, REGISTERS_SIZE)?;
        Registers::from_bytes(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Sets the general registers.
    pub fn set_registers(self, registers: &Registers) -> io::Result<()> {
        self.set_register_set(libc::NT_PRSTATUS as u32, &registers.to_bytes())
    }

    /// Floating-point, vector and further extended state, in the XSAVE standard format, without the zeros at its end:
    /// most of it belongs to registers that few programs use.
    pub fn extended(self) -> io::Result<Vec<u8>> {
        let mut area = self.whole_extended()?;
        let used = area.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        area.truncate(used.max(EXTENDED_MIN).next_multiple_of(8));
        area.shrink_to_fit();
        Ok(area)
    }

    /// Sets the extended state; what `area` does not reach is zero.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where this processor has less of it.
    pub fn set_extended(self, area: &[u8]) -> io::Result<()> {
        // The kernel takes the whole area only, as long as it is on this machine.
        let mut whole = self.whole_extended()?;
        if area.len() > whole.len() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (used, rest) = whole.split_at_mut(area.len());
        used.copy_from_slice(area);
        rest.fill(0);
        self.set_register_set(NT_EXTENDED, &whole)
    }

    fn whole_extended(self) -> io::Result<Vec<u8>> {
        /// It is as long for every thread of the machine.
        static LENGTH: OnceLock<usize> = OnceLock::new();
        let area = self.register_set(NT_EXTENDED, LENGTH.get().copied().unwrap_or(EXTENDED_MAX))?;
        LENGTH.get_or_init(|| area.len());
        Ok(area)
    }

    fn register_set(self, kind: u32, size: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; size];
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: `vector` describes `buffer`, which the kernel fills with at most iov_len bytes and which lives
        // through the call; the kernel shortens iov_len to what it wrote.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, self.tid, kind as usize, &raw mut vector) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        buffer.truncate(vector.iov_len);
        Ok(buffer)
    }

    fn set_register_set(self, kind: u32, bytes: &[u8]) -> io::Result<()> {
        let mut vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: PTRACE_SETREGSET only reads the iov_len bytes at iov_base, which `bytes` keeps alive; the cast to
        // a mutable pointer is what struct iovec asks for.
        let result = unsafe { libc::ptrace(libc::PTRACE_SETREGSET, self.tid, kind as usize, &raw mut vector) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Blocked signals (the mask to be restored after sigsuspend and its kin), bit n-1 for signal n.
    pub fn signal_mask(self) -> io::Result<u64> {
        let mut mask = 0u64;
        // SAFETY: the kernel writes the 8 bytes announced by the address argument to `mask`.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, self.tid, 8usize, &raw mut mask) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(mask)
        }
    }

    /// Sets the blocked signals.
    pub fn set_signal_mask(self, mask: u64) -> io::Result<()> {
        // SAFETY: the kernel reads the 8 bytes announced by the address argument from `mask`.
        let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, self.tid, 8usize, &raw const mask) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Details of the signal that a thread is about to get, in a [`Stop::Signal`].
    pub fn signal_details(self) -> io::Result<[u8; SIGINFO_SIZE]> {
        let mut details = [0u8; SIGINFO_SIZE];
        // SAFETY: the kernel writes one siginfo_t of 128 bytes, the length of `details`.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, self.tid, 0usize, &raw mut details) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(details)
        }
    }

    /// Details of pending signals, oldest first, without taking them: of the process if `shared`, else of the thread.
    /// The kernel counts them from the first for each: with n of them it takes n * n steps.
    pub fn pending_signals(self, shared: bool) -> io::Result<Vec<[u8; SIGINFO_SIZE]>> {
        let mut all = Vec::new();
        loop {
            let (some, last) = self.some_pending_signals(shared, all.len())?;
            all.extend(some);
            if last {
                return Ok(all);
            }
        }
    }

    /// The first of them, at most 32, and whether there are no others.
    pub fn first_pending_signals(self, shared: bool) -> io::Result<(Vec<[u8; SIGINFO_SIZE]>, bool)> {
        self.some_pending_signals(shared, 0)
    }

    fn some_pending_signals(self, shared: bool, from: usize) -> io::Result<(Vec<[u8; SIGINFO_SIZE]>, bool)> {
        const BATCH: usize = 32;
        #[repr(C)]
        struct PeekArguments {
            offset: u64,
            flags: u32,
            count: i32,
        }
        let mut buffer = [[0u8; SIGINFO_SIZE]; BATCH];
        let arguments = PeekArguments {
            offset: from as u64,
            flags: u32::from(shared),
            count: BATCH as i32,
        };
        // SAFETY: the kernel reads `arguments` and writes at most `count` siginfo_t of 128 bytes to `buffer`, which has
        // room for BATCH of them.
        let got = unsafe {
            libc::ptrace(
                libc::PTRACE_PEEKSIGINFO,
                self.tid,
                &raw const arguments,
                &raw mut buffer,
            )
        };
        if got == -1 {
            return Err(io::Error::last_os_error());
        }
        let got = (got as usize).min(BATCH);
        Ok((buffer[..got].to_vec(), got < BATCH))
    }

    /// Restartable-sequence registration; all zero when there is none.
    pub fn rseq(self) -> io::Result<RseqConfiguration> {
        /// PTRACE_GET_RSEQ_CONFIGURATION of <linux/ptrace.h>.
        const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
        let mut configuration = RseqConfiguration::default();
        // SAFETY: the kernel writes at most the number of bytes given as address argument, the struct's size.
        let result = unsafe {
            libc::ptrace(
                GET_RSEQ_CONFIGURATION,
                self.tid,
                size_of::<RseqConfiguration>(),
                &raw mut configuration,
            )
        };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(configuration)
        }
    }

    /// Whether the thread has system calls of its own handed to it (prctl PR_SET_SYSCALL_USER_DISPATCH).
    ///
    /// # Errors
    /// The thread is not stopped, or the kernel does not tell (before Linux 6.4).
    pub fn dispatches_calls(self) -> io::Result<bool> {
        /// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG of <linux/ptrace.h>, and its struct ptrace_sud_config.
        const GET_DISPATCH: u32 = 0x4211;
        #[repr(C)]
        #[derive(Default)]
        struct Dispatch {
            mode: u64,
            selector: u64,
            offset: u64,
            length: u64,
        }
        let mut dispatch = Dispatch::default();
        // SAFETY: the kernel writes the number of bytes given as address argument, the struct's size.
        let result = unsafe { libc::ptrace(GET_DISPATCH, self.tid, size_of::<Dispatch>(), &raw mut dispatch) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(dispatch.mode != 0)
        }
    }

    /// PTRACE_GETEVENTMSG: the PID of the child after a fork or clone event.
    pub fn event_message(self) -> io::Result<u64> {
        let mut message = 0u64;
        // SAFETY: the kernel writes one unsigned long to `message`.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, self.tid, 0usize, &raw mut message) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(message)
        }
    }
}
