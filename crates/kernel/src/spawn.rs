//! New processes: forking a closure (into new namespaces), running a program, and signals read from a descriptor.
//!
//! [`fork`] is safe because it refuses to work in a process of several threads: in the copy of a single-threaded
//! process no lock is held by a thread that is not there.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Namespaces a new process gets for itself, or that are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// User namespace.
    pub user: bool,
    /// PID namespace.
    pub pid: bool,
    /// Mount namespace.
    pub mount: bool,
    /// IPC namespace: System V objects and POSIX message queues.
    pub ipc: bool,
}

impl Namespaces {
    /// None new.
    pub const NONE: Namespaces = Namespaces {
        user: false,
        pid: false,
        mount: false,
        ipc: false,
    };

    /// The `CLONE_NEW*` flags.
    pub(crate) fn flags(self) -> libc::c_int {
        let mut flags = 0;
        if self.user {
            flags |= libc::CLONE_NEWUSER;
        }
        if self.pid {
            flags |= libc::CLONE_NEWPID;
        }
        if self.mount {
            flags |= libc::CLONE_NEWNS;
        }
        if self.ipc {
            flags |= libc::CLONE_NEWIPC;
        }
        flags
    }
}

/// A child made by [`fork`].
#[derive(Debug)]
pub struct Child {
    /// Its PID in our PID namespace.
    pub pid: i32,
    /// A descriptor of it; readable once it has ended. Close-on-exec.
    pub pidfd: OwnedFd,
}

/// Exit code of a child whose closure panicked.
pub const PANIC_CODE: i32 = 70;

/// Address of the thread ID the C library keeps for this thread, which the kernel then sets in the child.
fn thread_id_address() -> u64 {
    if !cfg!(target_env = "gnu") {
        return 0;
    }
    let mut address: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: PR_GET_TID_ADDRESS writes one pointer to the address given, which is that of a local pointer.
    let rc = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &mut address as *mut *mut libc::c_int, 0, 0, 0) };
    if rc == 0 { address as u64 } else { 0 }
}

/// <linux/sched.h>; it does not fit into the type that the C library's other flags have.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Number of threads of this process.
fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Forks; the child runs `child` in the namespaces asked for and exits with its value, without running destructors or
/// exit handlers. Fails with `EDEADLK` where this process has more than one thread.
pub fn fork(namespaces: Namespaces, child: impl FnOnce() -> i32) -> io::Result<Child> {
    fork_into(namespaces, None, child)
}

/// The same, with the child born in a control group of version 2, given by its directory (CLONE_INTO_CGROUP): nothing
/// of it is ever outside.
///
/// # Errors
/// As [`fork`]; those of the group are EACCES, EBUSY, ENODEV and EOPNOTSUPP (clone(2)).
pub fn fork_into(
    namespaces: Namespaces,
    group: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = namespaces.flags() as u64 | libc::CLONE_PIDFD as u64;
    let tid = thread_id_address();
    if tid != 0 {
        flags |= (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;
    }
    // SAFETY: clone_args is a structure of integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = &mut pidfd as *mut libc::c_int as u64;
    args.child_tid = tid;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child runs on a copy of this stack and of
    // all memory. The process has one thread (checked above, and only this thread could start another), so no lock is
    // left held in the copy. `pidfd` outlives the call; `tid`, if any, is the C library's own field for the ID of
    // this thread, which fork(3) sets in the same way.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &mut args as *mut libc::clone_args,
            size_of::<libc::clone_args>(),
        )
    };
    match rc {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANIC_CODE);
            // SAFETY: _exit ends the process and touches no memory of it.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Child {
            pid: pid as i32,
            // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Replaces this process by the program `argv[0]`, looked up in `PATH`, with the current environment and these
/// variables. Returns only on failure.
pub fn exec<S: AsRef<OsStr>>(argv: &[S], variables: &[(&str, &OsStr)]) -> io::Error {
    let strings: Result<Vec<CString>, _> = argv.iter().map(|a| CString::new(a.as_ref().as_bytes())).collect();
    let Ok(strings) = strings else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let Some(program) = strings.first() else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let mut pointers: Vec<*const libc::c_char> = strings.iter().map(|s| s.as_ptr()).collect();
    pointers.push(std::ptr::null());
    for (name, value) in variables {
        let (Ok(name), Ok(value)) = (CString::new(*name), CString::new(value.as_bytes())) else {
            return io::Error::from_raw_os_error(libc::EINVAL);
        };
        // SAFETY: both are NUL-terminated strings, which setenv copies; a process about to exec has no thread that
        // reads the environment meanwhile.
        if unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) } != 0 {
            return io::Error::last_os_error();
        }
    }
    // SAFETY: `pointers` is a null-terminated array of NUL-terminated strings that live until after the call.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Makes `fd` standard stream `stream` (0, 1 or 2) of this process.
pub fn set_standard_stream(fd: BorrowedFd<'_>, stream: i32) -> io::Result<()> {
    if !(0..=2).contains(&stream) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: dup2 onto 0, 1 or 2 replaces a standard stream, which no OwnedFd owns by convention; `fd` is open.
    let rc = unsafe { libc::dup2(fd.as_raw_fd(), stream) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Marks every descriptor from 3 on close-on-exec.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag of descriptors; it closes none.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A signal mask of a thread.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// The signals named.
    pub fn of(signals: &[i32]) -> SignalMask {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset writes a whole sigset_t to the address given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised it.
        let mut set = unsafe { set.assume_init() };
        for &signal in signals {
            // SAFETY: `set` is an initialised signal set; an impossible number is refused and changes nothing.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        SignalMask(set)
    }
}

fn change_mask(how: libc::c_int, set: Option<&SignalMask>) -> io::Result<SignalMask> {
    let mut old = SignalMask::of(&[]);
    let new = set.map_or(std::ptr::null(), |s| &s.0 as *const libc::sigset_t);
    // SAFETY: `new` is null or an initialised set and `old` a writable one; both outlive the call.
    let rc = unsafe { libc::pthread_sigmask(how, new, &mut old.0) };
    if rc == 0 {
        Ok(old)
    } else {
        Err(io::Error::from_raw_os_error(rc))
    }
}

/// Blocks `signals` in this thread; gives the mask from before.
pub fn block_signals(signals: &[i32]) -> io::Result<SignalMask> {
    change_mask(libc::SIG_BLOCK, Some(&SignalMask::of(signals)))
}

/// The mask of this thread.
pub fn signal_mask() -> io::Result<SignalMask> {
    change_mask(libc::SIG_BLOCK, None)
}

/// Sets the mask of this thread.
pub fn set_signal_mask(mask: &SignalMask) -> io::Result<()> {
    change_mask(libc::SIG_SETMASK, Some(mask)).map(drop)
}

/// Sets a signal to its default action.
pub fn default_signal(signal: i32) -> io::Result<()> {
    set_action(signal, libc::SIG_DFL)
}

/// Ignores a signal.
pub fn ignore_signal(signal: i32) -> io::Result<()> {
    set_action(signal, libc::SIG_IGN)
}

fn set_action(signal: i32, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
    let old = unsafe { libc::signal(signal, action) };
    if old == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether this process ignores a signal.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is a structure of integers and pointers that may all be zero; with a null new action the call
    // only writes the old one to it.
    let (rc, old) = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut old), old)
    };
    rc == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// A non-blocking, close-on-exec descriptor that becomes readable when one of `signals` (which must be blocked) is
/// pending.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let mask = SignalMask::of(signals);
    // SAFETY: the mask is initialised and outlives the call.
    let fd = unsafe { libc::signalfd(-1, &mask.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A signal taken from a [`signal_fd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedSignal {
    /// Number.
    pub signal: i32,
    /// Sent by the kernel (a terminal, a timer) rather than by a process.
    pub from_kernel: bool,
    /// PID of the sender, where a process sent it.
    pub sender: i32,
}

/// Takes the next pending signal, if there is one.
pub fn read_signal(fd: BorrowedFd<'_>) -> io::Result<Option<ReceivedSignal>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    loop {
        // SAFETY: `info` is writable memory of `size` bytes.
        let n = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if n == size as isize {
            // SAFETY: the read has filled all of it, and every bit pattern is a value of this structure of integers.
            let info = unsafe { info.assume_init() };
            return Ok(Some(ReceivedSignal {
                signal: info.ssi_signo as i32,
                from_kernel: info.ssi_code == libc::SI_KERNEL,
                sender: info.ssi_pid as i32,
            }));
        }
        if n >= 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Sends a signal through a pidfd; signal 0 only asks whether that is allowed and the process exists.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: with a null siginfo pidfd_send_signal reads no memory.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fork_refuses_threads() {
        // The test harness runs this in a thread beside the main one.
        let error = fork(Namespaces::NONE, || 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDEADLK));
    }

    #[test]
    fn signals_are_read() {
        let old = block_signals(&[libc::SIGUSR2]).unwrap();
        let fd = signal_fd(&[libc::SIGUSR2]).unwrap();
        use std::os::fd::AsFd;
        assert_eq!(read_signal(fd.as_fd()).unwrap(), None);
        // SAFETY: sends a blocked signal to this very thread.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        let got = read_signal(fd.as_fd()).unwrap().unwrap();
        assert_eq!((got.signal, got.from_kernel), (libc::SIGUSR2, false));
        set_signal_mask(&old).unwrap();
    }
}
