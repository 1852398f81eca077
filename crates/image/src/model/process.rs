//! Processes and threads.

use serde::{Deserialize, Serialize};

use super::{
    AddressSpaceId, ByteString, Bytes, CgroupNamespaceId, FileId, HostNamesId, IpcNamespaceId, MountNamespaceId,
    NetworkId, PidNamespaceId, SavedFileId, TerminalId, TimeNamespaceId, UserNamespaceId,
};

/// What a process was doing when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// Running or blocked in a system call.
    #[default]
    Running,
    /// Stopped by this job-control signal.
    Stopped(i32),
    /// Dead and not yet waited for; the wait(2) status.
    Zombie(i32),
}

/// One process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Process {
    /// PID in the job's PID namespace.
    pub pid: i32,
    /// Parent; for the root process and for orphans a PID that is not in the image.
    pub ppid: i32,
    /// Process group; may name a group without leader, or (0 or a foreign number) one outside the job.
    pub pgid: i32,
    /// Session; like `pgid`.
    pub sid: i32,
    /// State.
    pub state: ProcessState,
    /// Threads, the leader first unless it has ended. Empty for a zombie.
    pub threads: Vec<Thread>,
    /// The leader where it has ended while other threads go on, as after pthread_exit(3) in main().
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_leader: Option<EndedLeader>,
    /// Memory; none for a zombie.
    pub address_space: Option<AddressSpaceId>,
    /// Open descriptors in ascending order.
    pub descriptors: Vec<Descriptor>,
    /// It shares its parent's table of descriptors (CLONE_FILES); `descriptors` is empty then.
    pub shares_descriptors: bool,
    /// Working directory.
    pub cwd: ByteString,
    /// The working directory where it has been deleted: an empty one, made again and removed. `cwd` then has
    /// its former path.
    pub cwd_saved: Option<SavedFileId>,
    /// Root directory.
    pub root: ByteString,
    /// The root directory where nothing is in it any more: an empty one, made again and removed. `root` then has its
    /// former path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_saved: Option<SavedFileId>,
    /// The namespace for host names it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_names: Option<HostNamesId>,
    /// The time namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_namespace: Option<TimeNamespaceId>,
    /// The time namespace that processes which it makes will be in, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_namespace_of_children: Option<TimeNamespaceId>,
    /// The network namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// The IPC namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc_namespace: Option<IpcNamespaceId>,
    /// The cgroup namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_namespace: Option<CgroupNamespaceId>,
    /// The PID namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<PidNamespaceId>,
    /// The PID namespace that its children are born into, where that is not its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace_of_children: Option<PidNamespaceId>,
    /// The mount namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// The user namespace it is in, where that is not the job's. Its credentials are those that the job's sees, but for
    /// its capabilities, which are over its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespaceId>,
    /// File mode creation mask.
    pub umask: u32,
    /// The sixteen resource limits in the kernel's order.
    pub limits: Vec<Limit>,
    /// Signal actions that are not the default.
    pub signal_actions: Vec<SignalAction>,
    /// siginfo_t (128 bytes) of signals pending for the whole process.
    pub pending_signals: Vec<Bytes>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub interval_timers: Vec<IntervalTimer>,
    /// timer_create(2) timers.
    pub posix_timers: Vec<PosixTimer>,
    /// POSIX record locks (fcntl F_SETLK) held by the process.
    pub posix_locks: Vec<PosixLock>,
    /// prctl(PR_SET_DUMPABLE).
    pub dumpable: u32,
    /// prctl(PR_SET_CHILD_SUBREAPER).
    pub child_subreaper: bool,
    /// Kinds of membarrier(2) the process has registered for: a sum of MEMBARRIER_CMD_REGISTER_*.
    pub membarrier: u32,
    /// prctl(PR_SET_THP_DISABLE).
    pub thp_disabled: bool,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/PID/loginuid; none where no user has logged in.
    pub login_user: Option<u32>,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// personality(2).
    pub personality: u64,
    /// prctl(PR_SET_MDWE).
    pub memory_deny_write_execute: u32,
    /// prctl(PR_SET_MEMORY_MERGE).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub memory_merge: bool,
    /// Nice value of the session's autogroup; only of session leaders.
    pub autogroup_nice: i32,
    /// Whether the process has a controlling terminal, and which.
    pub controlling_terminal: Option<TerminalId>,
    /// Resources used so far (LBNL-3.9.7.1.1); informational, accounting restarts from zero.
    pub accounting: Accounting,
}

impl Process {
    /// The credentials of all its threads, and of a leader that has ended.
    pub fn credentials(&self) -> impl Iterator<Item = &Credentials> {
        let ended = self.ended_leader.iter().map(|leader| &leader.credentials);
        self.threads.iter().map(|thread| &thread.credentials).chain(ended)
    }
}

/// What is left of a thread-group leader that has ended before its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct EndedLeader {
    /// Its exit code (_exit(2)). Before Linux 5.17 it becomes that of the process, since then the last thread's does.
    pub exit_code: u8,
    /// /proc/PID/comm.
    pub name: ByteString,
    /// Whose signals the process takes.
    pub credentials: Credentials,
}

/// Resources used before the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Accounting {
    pub user_ns: u64,
    pub system_ns: u64,
    pub children_user_ns: u64,
    pub children_system_ns: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub peak_rss_kib: u64,
    /// Nanoseconds from the start of the process to the checkpoint.
    pub elapsed_ns: u64,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Thread {
    /// Thread ID.
    pub tid: i32,
    /// /proc/PID/task/TID/comm.
    pub name: ByteString,
    /// Processor state, with interrupted system calls already set up to be restarted.
    pub cpu: Cpu,
    /// How the interrupted system call goes on.
    pub sleep: Option<TimedSleep>,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked_signals: u64,
    /// siginfo_t of signals pending for this thread.
    pub pending_signals: Vec<Bytes>,
    /// sigaltstack(2): address, flags, size.
    pub alternate_stack: (u64, i32, u64),
    /// set_robust_list(2): head and length.
    pub robust_list: (u64, u64),
    /// set_tid_address(2).
    pub clear_child_tid: u64,
    /// Restartable-sequence registration; none if not registered.
    pub rseq: Option<Rseq>,
    /// Scheduling.
    pub scheduling: Scheduling,
    /// prctl(PR_SET_PDEATHSIG).
    pub parent_death_signal: i32,
    /// prctl(PR_SET_TIMERSLACK), nanoseconds.
    pub timer_slack_ns: u64,
    /// Credentials.
    pub credentials: Credentials,
    /// Working directory, root and umask of a thread that does not share its process's.
    pub directories: Option<Directories>,
    /// System calls it may make.
    pub seccomp: Seccomp,
    /// set_mempolicy(2): where its new pages go.
    pub memory_policy: MemoryPolicy,
    /// prctl(PR_SET_TSC, PR_TSC_SIGSEGV): reading the time-stamp counter is refused.
    pub tsc_refused: bool,
    /// arch_prctl(ARCH_SET_CPUID, 0): the CPUID instruction is refused.
    pub cpuid_refused: bool,
    /// prctl(PR_MCE_KILL): 0 late, 1 early; none where it is the machine's.
    pub machine_check_policy: Option<u32>,
    /// prctl(PR_SET_IO_FLUSHER).
    pub io_flusher: bool,
    /// prctl(PR_GET_SPECULATION_CTRL) of store bypass, indirect branches and L1D flush, in this order.
    pub speculation: Vec<u32>,
}

/// Where paths begin, and the file mode creation mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Directories {
    /// Working directory.
    pub cwd: ByteString,
    /// Root directory.
    pub root: ByteString,
    /// File mode creation mask.
    pub umask: u32,
}

/// seccomp(2) of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// All calls.
    #[default]
    Off,
    /// SECCOMP_MODE_STRICT: only read, write, _exit and rt_sigreturn.
    Strict,
    /// Filters, the first installed first.
    Filters(Vec<SeccompFilter>),
}

/// One seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SeccompFilter {
    /// SECCOMP_FILTER_FLAG_* it was installed with, as far as they last.
    pub flags: u64,
    /// Array of `struct sock_filter`, 8 bytes each.
    pub program: Bytes,
}

/// set_mempolicy(2), mbind(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_* flags; zero is the default.
    pub mode: u32,
    /// Mask of memory nodes.
    pub nodes: Bytes,
}

/// A relative-timeout system call that had this much time left when the thread was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TimedSleep {
    /// System call number.
    pub syscall: i64,
    /// Time left in nanoseconds.
    pub remaining_ns: u64,
}

/// Processor state of a thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Cpu {
    /// NT_PRSTATUS register set: `struct user_regs_struct`.
    pub general: Bytes,
    /// NT_X86_XSTATE register set: XSAVE area in standard format, without the zeros at its end.
    pub extended: Bytes,
    /// Program counter, for listings.
    pub program_counter: u64,
    /// Stack pointer, for listings.
    pub stack_pointer: u64,
}

/// Restartable sequences, rseq(2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// sched_getattr(2), affinity, nice and I/O priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Scheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub io_priority: i32,
    /// CPU mask as sched_getaffinity(2) gives it.
    pub affinity: Bytes,
}

/// Identity and privileges of a thread (LBNL-3.9.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Credentials {
    /// Real, effective, saved, file-system user ID.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system group ID.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets as bit masks.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient set.
    pub ambient: u64,
    /// prctl(PR_GET_SECUREBITS).
    pub securebits: u32,
    /// prctl(PR_GET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
}

/// A file descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// Open file description.
    pub file: FileId,
    /// FD_CLOEXEC.
    #[serde(default)]
    pub close_on_exec: bool,
}

/// A resource limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Limit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// The kernel's `struct sigaction` for one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SignalAction {
    pub signal: i32,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// setitimer(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct IntervalTimer {
    /// ITIMER_REAL (0), ITIMER_VIRTUAL (1), ITIMER_PROF (2).
    pub which: i32,
    /// Time left in microseconds; zero when disarmed.
    pub value_us: u64,
    /// Period in microseconds.
    pub interval_us: u64,
}

/// A timer_create(2) timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PosixTimer {
    /// Kernel timer ID.
    pub id: i32,
    /// Clock ID as the kernel has it (CPU clocks are negative numbers holding a PID).
    pub clock: i32,
    /// SIGEV_SIGNAL (0), SIGEV_NONE (1) or SIGEV_SIGNAL|SIGEV_THREAD_ID (4).
    pub notify: i32,
    /// Signal sent.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread notified with SIGEV_THREAD_ID.
    pub thread: i32,
    /// Time left, nanoseconds; zero when disarmed.
    pub value_ns: u64,
    /// Period, nanoseconds.
    pub interval_ns: u64,
    /// Overrun count at checkpoint (informational).
    pub overrun: i32,
}

/// A POSIX record lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PosixLock {
    /// A descriptor of the process open on the locked file.
    pub fd: i32,
    /// Exclusive (F_WRLCK) rather than shared (F_RDLCK).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Number of bytes; zero is to the end of file.
    pub length: u64,
}
