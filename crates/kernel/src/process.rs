//! Creating, naming, signalling and limiting processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A process held by a descriptor: stays bound to it even if its PID is reused.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

impl PidFd {
    /// pidfd_open(2) of a process (thread-group leader).
    pub fn open(pid: i32) -> io::Result<Self> {
        Self::open_with(pid, 0)
    }

    /// The same of a single thread, whose descriptors pidfd_getfd(2) gives where its main thread has ended.
    ///
    /// # Errors
    /// EINVAL before Linux 6.9.
    pub fn open_thread(tid: i32) -> io::Result<Self> {
        /// PIDFD_THREAD of <linux/pidfd.h>.
        const THREAD: i32 = libc::O_EXCL;
        Self::open_with(tid, THREAD)
    }

    fn open_with(pid: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(PidFd { fd, pid })
    }

    /// The PID in our PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The descriptor; readable when the process has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
    }

    /// Whether the whole process, all threads of it, has ended, or does so within `patience`.
    pub fn has_ended(&self, patience: std::time::Duration) -> io::Result<bool> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let left =
                rustix::time::Timespec::try_from(left).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let mut polled = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }

    /// pidfd_send_signal(2). Signal 0 only checks for existence and permission.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self`, the siginfo pointer is null, the rest are numbers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// `struct clone_args` of <linux/sched.h>, first version with set_tid (Linux 5.5).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct CloneArguments {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
}

/// Size of [`CloneArguments`] in bytes.
pub const CLONE_ARGUMENTS_SIZE: usize = size_of::<CloneArguments>();

const _: () = assert!(CLONE_ARGUMENTS_SIZE == 80);

impl CloneArguments {
    /// The kernel's byte layout, without `set_tid` (which needs an address).
    pub fn to_bytes(&self) -> Vec<u8> {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
        ]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect()
    }
}

/// clone3(2) of a child that does nothing but wait to be taken over with ptrace, with these PIDs: that in the innermost
/// PID namespace it is in first, ours last; none for any. `new_namespace`: it is the first process of a new PID
/// namespace.
///
/// The child dies with the calling thread (PR_SET_PDEATHSIG).
///
/// # Errors
/// EEXIST when the PID, or a process group or session of that number, exists; EPERM without CAP_CHECKPOINT_RESTORE
/// in the PID namespace's user namespace.
pub fn spawn_stub(pids: &[i32], new_namespace: bool) -> io::Result<i32> {
    // In a PID namespace that we are not in, we have no number.
    let parent = match pids.len() {
        0 | 1 => i64::from(std::process::id()),
        _ => 0,
    };
    let arguments = CloneArguments {
        flags: if new_namespace { libc::CLONE_NEWPID as u64 } else { 0 },
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if pids.is_empty() { 0 } else { pids.as_ptr() as u64 },
        set_tid_size: pids.len() as u64,
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM the child gets a copy of our memory and continues here on its own copy of this stack.
    // It makes only raw system calls, so no lock that another thread of ours may have held is touched. `arguments`
    // and `pids` live through the call.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, CLONE_ARGUMENTS_SIZE) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: raw system calls with number arguments only; pause returns only for signals, and the loop ends
            // with the process alone, so nothing of the parent's state but a number is ever used in the child.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                // A parent that died before the call above sends nothing any more.
                if libc::syscall(libc::SYS_getppid) != parent {
                    libc::syscall(libc::SYS_exit_group, 1);
                }
                loop {
                    libc::syscall(libc::SYS_pause);
                }
            }
        }
        pid => Ok(pid as i32),
    }
}

/// A child that does nothing but be in a user namespace; it ends when this is dropped.
#[derive(Debug)]
pub struct Settler {
    /// Its PID.
    pub pid: i32,
    process: PidFd,
}

impl Settler {
    /// Sends one there. It must be ours to enter.
    ///
    /// # Errors
    /// What setns(2) gives.
    pub fn send(user_namespace: std::os::fd::BorrowedFd<'_>) -> io::Result<Settler> {
        use std::os::fd::AsRawFd;
        let (told, tell) = io::pipe()?;
        let (namespace, word) = (user_namespace.as_raw_fd(), tell.as_raw_fd());
        let arguments = CloneArguments {
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArguments::default()
        };
        // SAFETY: as in `spawn_stub`.
        let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, CLONE_ARGUMENTS_SIZE) };
        if child == 0 {
            // SAFETY: raw system calls with numbers and the address of a local variable only, in a copy of our memory;
            // the descriptors are open in the copy of our table. The loop ends with the process alone.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                let rc = libc::syscall(libc::SYS_setns, namespace, libc::CLONE_NEWUSER);
                let error = if rc < 0 { *libc::__errno_location() } else { 0 };
                libc::syscall(libc::SYS_write, word, &raw const error, size_of::<i32>());
                if error != 0 {
                    libc::syscall(libc::SYS_exit_group, 1);
                }
                loop {
                    libc::syscall(libc::SYS_pause);
                }
            }
        }
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(tell);
        let pid = child as i32;
        // We have not waited for it, so that the number is its own.
        let settler = Settler {
            pid,
            process: PidFd::open(pid)?,
        };
        let mut answer = [0u8; 4];
        io::Read::read_exact(&mut &told, &mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(settler),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = end_passing(self.pid, &self.process);
    }
}

/// Sends SIGKILL to every other process of the PID namespace whose first process the caller is.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] when the caller is not PID 1.
pub fn kill_all_others() -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // SAFETY: kill(2) takes two numbers and touches no memory. With -1 it signals all processes that can be, which for
    // PID 1 of a namespace are those of the namespace, but not PID 1 itself.
    let result = unsafe { libc::kill(-1, libc::SIGKILL) };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// A pidfd of a process that has ended and been waited for.
///
/// # Errors
/// No process can be made.
pub fn dead_process() -> io::Result<OwnedFd> {
    let (pid, fd) = passing_process()?;
    end_passing(pid, &fd)?;
    fd.fd().try_clone_to_owned()
}

/// What `path` below /proc/PID was of a process that has ended and been waited for, opened with some of `flags`. Of
/// whatever thread it is in `path` (`task/TID`), it is one of the only thread's.
///
/// # Errors
/// No process can be made, or it has no such file.
pub fn open_of_dead_process(path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let (pid, fd) = passing_process()?;
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let thread = pid.to_string();
    if let [b"task", tid, ..] = &mut parts[..] {
        *tid = thread.as_bytes();
    }
    let full = [format!("/proc/{pid}/").as_bytes(), &parts.join(&b'/')].concat();
    use rustix::fs::OFlags;
    let kept = OFlags::ACCMODE | OFlags::PATH | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = OFlags::CLOEXEC | (OFlags::from_bits_retain(flags as u32) & kept);
    let opened = rustix::fs::open(full.as_slice(), flags, rustix::fs::Mode::empty());
    end_passing(pid, &fd)?;
    Ok(opened?)
}

fn passing_process() -> io::Result<(i32, PidFd)> {
    let pid = spawn_stub(&[], false)?;
    Ok((pid, PidFd::open(pid)?))
}

pub(crate) fn end_passing(pid: i32, fd: &PidFd) -> io::Result<()> {
    fd.signal(libc::SIGKILL)?;
    let raw = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(raw), rustix::process::WaitOptions::empty()))?;
    Ok(())
}

/// Raises our soft limit on descriptors to the hard limit and returns the old pair.
pub fn raise_descriptor_limit() -> io::Result<(u64, u64)> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let old = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: old.maximum,
            maximum: old.maximum,
        },
    )?;
    Ok((old.current.unwrap_or(u64::MAX), old.maximum.unwrap_or(u64::MAX)))
}

/// Our own resource limit number `resource`: soft and hard, `u64::MAX` for unlimited.
pub fn limit(resource: u32) -> io::Result<(u64, u64)> {
    let limit = exchange_limit(0, resource, None)?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// A resource limit of a process that is lifted until dropped.
#[derive(Debug)]
pub struct LiftedLimit {
    pid: i32,
    resource: u32,
    before: libc::rlimit64,
}

impl LiftedLimit {
    /// Lifts limit number `resource` of process `pid`: both for who has CAP_SYS_RESOURCE, else the soft one up to the
    /// hard.
    ///
    /// # Errors
    /// There is no such process, it is another user's, or the limit is as high as it can be.
    pub fn lift(pid: i32, resource: u32) -> io::Result<Self> {
        let before = exchange_limit(pid, resource, None)?;
        let unlimited = libc::rlimit64 {
            rlim_cur: libc::RLIM64_INFINITY,
            rlim_max: libc::RLIM64_INFINITY,
        };
        let lifted = LiftedLimit { pid, resource, before };
        if exchange_limit(pid, resource, Some(&unlimited)).is_ok() {
            return Ok(lifted);
        }
        if before.rlim_cur == before.rlim_max {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let soft = libc::rlimit64 {
            rlim_cur: before.rlim_max,
            ..before
        };
        exchange_limit(pid, resource, Some(&soft))?;
        Ok(lifted)
    }
}

impl Drop for LiftedLimit {
    fn drop(&mut self) {
        // To what it was, it can always be set back; only a process that is gone has none.
        let _ = exchange_limit(self.pid, self.resource, Some(&self.before));
    }
}

fn exchange_limit(pid: i32, resource: u32, new: Option<&libc::rlimit64>) -> io::Result<libc::rlimit64> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `old` is a valid place for the old limit; `new` is null or a valid new one, and outlives the call.
    let result = unsafe { libc::prlimit64(pid, resource, new, &mut old) };
    if result == 0 {
        Ok(old)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a signal to one thread of a process (tgkill(2)).
///
/// # Errors
/// There is no such thread, or it may not be sent signals.
pub fn signal_thread_of(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the calling thread's effective user and group for file access (setfsuid(2), setfsgid(2)) until dropped.
///
/// While it exists, files are opened with that user's rights. Does nothing useful without CAP_SETUID.
#[derive(Debug)]
pub struct FileIdentity {
    uid: u32,
    gid: u32,
}

impl FileIdentity {
    /// Takes on the identity.
    pub fn assume(uid: u32, gid: u32) -> Self {
        // SAFETY: both calls take a number and change only credentials of the calling thread; they report the old one.
        unsafe {
            let gid = libc::syscall(libc::SYS_setfsgid, gid) as u32;
            let uid = libc::syscall(libc::SYS_setfsuid, uid) as u32;
            FileIdentity { uid, gid }
        }
    }
}

impl Drop for FileIdentity {
    fn drop(&mut self) {
        // SAFETY: as in `assume`.
        unsafe {
            libc::syscall(libc::SYS_setfsuid, self.uid);
            libc::syscall(libc::SYS_setfsgid, self.gid);
        }
    }
}

/// The capability sets of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// capget(2) of the calling thread.
pub fn capabilities() -> io::Result<CapabilitySets> {
    let header: [u32; 2] = [CAPABILITY_VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: version 3 headers ask for two elements of three u32 each, which `data` holds.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut data) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapabilitySets {
        effective: join(data[0], data[3]),
        permitted: join(data[1], data[4]),
        inheritable: join(data[2], data[5]),
    })
}

/// _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Bytes for capset(2): header (8 bytes) and data (24 bytes).
pub fn capset_arguments(sets: CapabilitySets) -> (Vec<u8>, Vec<u8>) {
    let header = [CAPABILITY_VERSION_3, 0];
    let data = [
        sets.effective as u32,
        sets.permitted as u32,
        sets.inheritable as u32,
        (sets.effective >> 32) as u32,
        (sets.permitted >> 32) as u32,
        (sets.inheritable >> 32) as u32,
    ];
    let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    (bytes(&header), bytes(&data))
}

/// CAP_CHECKPOINT_RESTORE.
pub const CAP_CHECKPOINT_RESTORE: u32 = 40;
/// CAP_SYS_ADMIN.
pub const CAP_SYS_ADMIN: u32 = 21;
/// CAP_SETUID.
pub const CAP_SETUID: u32 = 7;
/// CAP_NET_BIND_SERVICE.
pub const CAP_NET_BIND_SERVICE: u32 = 10;
/// CAP_NET_ADMIN.
pub const CAP_NET_ADMIN: u32 = 12;
/// CAP_NET_RAW.
pub const CAP_NET_RAW: u32 = 13;

/// While it lives the calling thread does without some of its effective capabilities.
#[derive(Debug)]
pub struct Without(u64);

impl Without {
    /// Gives the capabilities in `mask` up for a while.
    pub fn capabilities(mask: u64) -> io::Result<Self> {
        let mut sets = capabilities()?;
        let given_up = sets.effective & mask;
        sets.effective &= !mask;
        set_capabilities(sets)?;
        Ok(Without(given_up))
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        // They are permitted still, so neither call can fail.
        if let Ok(mut sets) = capabilities() {
            sets.effective |= self.0;
            let _ = set_capabilities(sets);
        }
    }
}

fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let (header, data) = capset_arguments(sets);
    // SAFETY: header and data have the lengths that version 3 asks for, and the kernel only reads them (the header is
    // written to where its version is unknown, which it is not).
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// kcmp(2): whether two processes share a resource (KCMP_* type). `None` when the kernel cannot tell.
pub fn shares(kind: i32, one: i32, other: i32) -> Option<bool> {
    // SAFETY: five numbers.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, one, other, kind, 0, 0) };
    (result >= 0).then_some(result == 0)
}

/// kcmp(2): how two processes' resources of a KCMP_* type compare. `Equal` is the same one; the order is arbitrary but
/// consistent, so that it can be sorted by.
pub fn compare(kind: i32, one: i32, other: i32) -> io::Result<std::cmp::Ordering> {
    // SAFETY: five numbers; the types that take a pointer are not among those this module names.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, kind, 0, 0) } {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        2 => Ok(std::cmp::Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::Error::other("kcmp(2) gives no order")),
    }
}

/// KCMP_VM of <linux/kcmp.h>.
pub const KCMP_VM: i32 = 1;
/// KCMP_FILES.
pub const KCMP_FILES: i32 = 2;
/// KCMP_FS.
pub const KCMP_FS: i32 = 3;
/// KCMP_SIGHAND.
pub const KCMP_SIGHAND: i32 = 4;

/// Clock reading in nanoseconds.
pub fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Processor time that all threads of a process have used so far, those that have ended included, nanoseconds.
pub fn cpu_time_ns(pid: i32) -> io::Result<u64> {
    let mut clock = 0;
    // SAFETY: `clock` is a writable clockid_t that outlives the call.
    let rc = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec that outlives the call; a clock of a process that has ended is an error.
    if unsafe { libc::clock_gettime(clock, &mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// XCR0: the XSAVE components the kernel enabled, read from an XSAVE area as ptrace gives it (sw_reserved bytes).
pub fn xstate_features(area: &[u8]) -> u64 {
    // Documentation/arch/x86: bytes 464..472 of the legacy region hold XCR0 in ptrace's copy.
    let mut raw = [0u8; 8];
    if let Some(bytes) = area.get(464..472) {
        raw.copy_from_slice(bytes);
    }
    u64::from_ne_bytes(raw)
}

/// Of prctl(2): has timer_create(2) take the number of the timer from where it stores it (Linux 6.16).
pub const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// Whether a process can choose the numbers of its timers.
pub fn may_choose_timer_numbers() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS_GET: libc::c_ulong = 2;
    // SAFETY: asks for a switch of this process; no memory is passed.
    let on = unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0) };
    on >= 0
}

/// Has the numbers of new processes of our PID namespace go on somewhere: behind what `choose` makes of a random number.
/// Where that cannot be set (/proc/sys/kernel/ns_last_pid), or there is no random number, they go on as they would.
pub fn scatter_numbers(choose: impl FnOnce(u32) -> u32) {
    let mut random = [0; 4];
    let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    if got.is_ok_and(|got| got == random.len()) {
        let last = choose(u32::from_ne_bytes(random));
        let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string());
    }
}
