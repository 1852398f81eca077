//! Open files, and the files whose contents are in an image.

use serde::{Deserialize, Serialize};

use super::{
    ByteString, Bytes, Extent, FileId, InetSocketId, IoUringId, MountNamespaceId, NetlinkSocket, PacketSocketId,
    PipeId, PosixQueueId, SavedFileId, SocketId, TerminalId,
};

/// An open file description (`struct file`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// O_* access mode and status flags as F_GETFL gives them, without O_CLOEXEC.
    pub flags: i32,
    /// File offset; zero where the object has none.
    #[serde(default)]
    pub position: u64,
    /// F_SETOWN_EX and F_SETSIG, where set.
    #[serde(default)]
    pub owner: Option<FileOwner>,
    /// flock(2) lock or lease-free lock held by the description.
    #[serde(default)]
    pub flock: Option<FlockKind>,
    /// The process that called flock(2) or took the lease; zero if not known.
    #[serde(default)]
    pub locker: i32,
    /// Lease (fcntl F_SETLEASE) of this description.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// Open-file-description locks (F_OFD_SETLK): exclusive, start, length.
    #[serde(default)]
    pub ofd_locks: Vec<(bool, u64, u64)>,
    /// The mount namespace that its path is of, where that is not the job's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// What is open.
    pub object: Object,
}

/// flock(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum FlockKind {
    Shared,
    Exclusive,
}

/// A lease on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// A write lease, as opposed to a read lease.
    pub exclusive: bool,
    /// What it has to become, where somebody waits for it to be given up.
    #[serde(default)]
    pub breaking: Option<LeaseTarget>,
}

/// What a lease that is being broken has to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseTarget {
    /// A read lease.
    Read,
    /// None.
    None,
}

/// fcntl F_SETOWN_EX, F_SETSIG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// Identifier.
    pub id: i32,
    /// F_SETSIG signal.
    pub signal: i32,
}

/// What a plug-in has saved of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlugin {
    /// Its name.
    pub name: String,
    /// What it has said; it alone knows what that means.
    pub state: String,
}

/// The kernel object behind an open file description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// A regular file with a name.
    Regular(RegularFile),
    /// A directory.
    Directory {
        /// Absolute path.
        path: ByteString,
    },
    /// A file whose contents the image carries: deleted, or a memfd.
    Saved(SavedFileId),
    /// One end of a pipe; the access mode in `flags` says which.
    Pipe(PipeId),
    /// A FIFO, by name.
    Fifo(Fifo),
    /// A character device that keeps no state (null, zero, full, random, urandom, tty), or one of a plug-in.
    Device {
        /// Path it was opened by.
        path: ByteString,
        /// Device number, makedev(3).
        rdev: u64,
        /// Mode, owner and group of a node whose name is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<(u32, u32, u32)>,
        /// Who has saved its state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plugin: Option<DevicePlugin>,
    },
    /// A file below /proc/PID of a process in the image, or of /proc itself.
    Proc {
        /// The process, none for a file that belongs to no process (such as /proc/meminfo).
        pid: Option<i32>,
        /// Path below /proc/PID/, or below /proc/.
        path: ByteString,
    },
    /// The same of a process that had ended and been waited for, or of a thread that had ended.
    DeadProc {
        /// The process.
        pid: i32,
        /// Path below /proc/PID/; empty for the directory itself.
        path: ByteString,
    },
    /// eventfd(2).
    EventFd {
        /// Counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// timerfd(2).
    TimerFd {
        /// Clock ID.
        clock: i32,
        /// Expirations not yet read.
        ticks: u64,
        /// TFD_TIMER_* flags of timerfd_settime.
        settime_flags: i32,
        /// Time left, nanoseconds; zero when disarmed.
        value_ns: u64,
        /// Period, nanoseconds.
        interval_ns: u64,
    },
    /// signalfd(2).
    SignalFd {
        /// Signals accepted, bit n-1 for signal n.
        mask: u64,
    },
    /// epoll(7).
    Epoll {
        /// Registered descriptors.
        targets: Vec<EpollTarget>,
    },
    /// inotify(7).
    Inotify {
        /// Watches.
        watches: Vec<InotifyWatch>,
        /// Events queued and not read, as read(2) would return them.
        queued: Bytes,
    },
    /// pidfd_open(2) of a process in the image.
    PidFd {
        /// The process.
        pid: i32,
    },
    /// pidfd_open(2) of a process that had ended and been waited for.
    DeadPidFd {
        /// Descriptors of the same process have the same number.
        process: u64,
    },
    /// A UNIX socket.
    Socket(SocketId),
    /// An IP socket: TCP, UDP, ping or raw.
    InetSocket(InetSocketId),
    /// A netlink socket whose queue was empty.
    NetlinkSocket(NetlinkSocket),
    /// A packet socket.
    PacketSocket(PacketSocketId),
    /// A fanotify(7) group.
    Fanotify(Fanotify),
    /// An io_uring(7) instance.
    IoUring(IoUringId),
    /// The slave side of a pseudo-terminal.
    TerminalSlave(TerminalId),
    /// The master side of a pseudo-terminal.
    TerminalMaster(TerminalId),
    /// A POSIX message queue.
    MessageQueue(PosixQueueId),
    /// A standard stream (0, 1 or 2) that belongs to whoever started the job: its terminal or a pipe to outside.
    /// Restart puts the stream of whoever restarts in its place (LBNL-3.9.8.1.3, LBNL-3.9.8.1.4).
    Inherited {
        /// 0, 1 or 2.
        stream: i32,
    },
}

/// A regular file with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct RegularFile {
    /// Absolute path.
    pub path: ByteString,
    /// Size at checkpoint, bytes.
    pub size: u64,
    /// Modification time at checkpoint, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Mode bits.
    pub mode: u32,
}

/// What becomes of a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum FileContent {
    /// As for files without a policy.
    #[default]
    Default,
    /// They must be the same at restart.
    Check,
    /// They may have changed.
    Nocheck,
    /// They may have changed; the job goes on at the end.
    Append,
    /// They are in the image, and are put back in place at restart.
    BackupRestore,
    /// They are in the image; a restarted job has them as a file without name.
    BackupAnonymous,
}

/// How one file is treated, and what it was like at the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct FilePolicy {
    /// Absolute path.
    pub path: ByteString,
    /// What becomes of the contents.
    pub content: FileContent,
    /// Whether the file gets its saved length at restart; none as for files without a policy.
    pub truncate: Option<bool>,
    /// Size at checkpoint, bytes.
    pub size: u64,
    /// Modification time at checkpoint, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// BLAKE3 hash of the contents, with `check`; else empty.
    pub hash: Bytes,
    /// The contents, with `backup-restore`.
    pub saved: Option<SavedFileId>,
}

/// A named pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fifo {
    /// Absolute path.
    pub path: ByteString,
    /// Mode, owner and group, to create it again if it is missing (LBNL-3.9.6.1.4).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Its contents.
    pub pipe: PipeId,
    /// It is open for reading, and nobody has opened it for writing since: there is no end of it yet (EPOLLHUP).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unwritten: bool,
}

/// One registration in an epoll set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// Descriptor number used at registration.
    pub fd: i32,
    /// Open file description registered.
    pub file: FileId,
    /// EPOLL* events and flags.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// One inotify watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// IN_* mask.
    pub mask: u32,
    /// Path watched; of a deleted file where it was.
    pub path: ByteString,
    /// A deleted file that the job has open.
    pub saved: Option<SavedFileId>,
}

/// A fanotify group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanotify {
    /// FAN_* of fanotify_init(2).
    pub flags: u32,
    /// O_* of descriptors that come with events.
    #[serde(default)]
    pub event_flags: u32,
    /// What is watched.
    #[serde(default)]
    pub marks: Vec<FanotifyMark>,
}

/// One mark of a fanotify group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanotifyMark {
    /// What it is on.
    pub kind: FanotifyMarkKind,
    /// Path of that; of a deleted file where it was, of a mount or file system where it is mounted.
    pub path: ByteString,
    /// A deleted file that the job has open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<SavedFileId>,
    /// FAN_MARK_* that say how it is treated.
    #[serde(default)]
    pub flags: u32,
    /// Events that are wanted, FAN_*.
    #[serde(default)]
    pub mask: u64,
    /// Events that are not.
    #[serde(default)]
    pub ignored_mask: u64,
}

/// What a fanotify mark is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FanotifyMarkKind {
    /// A file or directory.
    Inode,
    /// A mount.
    Mount,
    /// A file system.
    FileSystem,
}

/// A file whose contents are in the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedFile {
    /// How to make it again.
    pub kind: SavedFileKind,
    /// Size in bytes.
    pub size: u64,
    /// Mode bits.
    #[serde(default)]
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
    /// Saved ranges: file offsets. Ranges without extent are holes.
    #[serde(default)]
    pub extents: Vec<Extent>,
    /// Time of the last modification, nanoseconds since 1970.
    #[serde(default)]
    pub mtime_ns: Option<i64>,
    /// Size of the explicit huge pages it consists of (MAP_HUGETLB, MFD_HUGETLB), bytes; 0 for ordinary pages.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub huge_pages: u64,
}

/// Kinds of [`SavedFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedFileKind {
    /// A file that was deleted while open or mapped; where it was.
    Deleted {
        /// Former absolute path; its directory must exist.
        path: ByteString,
    },
    /// A deleted directory; empty.
    DeletedDirectory {
        /// Where it was.
        path: ByteString,
    },
    /// A deleted symbolic link, open with O_PATH.
    DeletedLink {
        /// Where it was.
        path: ByteString,
        /// What it says.
        target: ByteString,
    },
    /// memfd_create(2).
    Memfd {
        /// Name without the `memfd:` prefix.
        name: ByteString,
        /// F_ADD_SEALS seals.
        seals: u32,
    },
    /// Shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS).
    SharedAnonymous,
    /// A file of /dev/shm: shm_open(3), sem_open(3).
    SharedMemory {
        /// Absolute path.
        path: ByteString,
    },
    /// A file with a name, which is put back in its place at restart.
    Backup {
        /// Absolute path; its directory must exist.
        path: ByteString,
    },
}

/// A pipe's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Pipe {
    /// Capacity in bytes (F_GETPIPE_SZ).
    pub capacity: u32,
    /// Queued data; one element per packet for an O_DIRECT pipe, else a single element or none.
    pub data: Vec<Bytes>,
}

/// A pseudo-terminal, or the terminal the job was started on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Terminal {
    /// Number below /dev/pts.
    pub index: u32,
    /// The file system of terminals it is of, where that is not the job's own /dev/pts: a mount namespace, and what is
    /// mounted there (an index into its `tree`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<(MountNamespaceId, u32)>,
    /// Of a console or a serial line: where it is, and its device number. It is opened where restart has no terminal.
    pub line: Option<(ByteString, u64)>,
    /// The master side is outside the job: restart supplies a terminal.
    pub external: bool,
    /// `struct termios2`.
    pub attributes: Bytes,
    /// Rows, columns, horizontal and vertical pixels.
    pub window: (u16, u16, u16, u16),
    /// Session whose controlling terminal it is; zero if none or not of the job.
    pub session: i32,
    /// Foreground process group.
    pub foreground_group: i32,
    /// TIOCGPTLCK.
    pub locked: bool,
    /// TIOCGPKT packet mode.
    pub packet_mode: bool,
    /// The job has the master alone, and the slave has been open and was closed: reading the master fails.
    pub slave_closed: bool,
    /// The master has been closed: the slaves that are open are dead.
    pub hung_up: bool,
    /// TIOCGEXCL.
    pub exclusive: bool,
    /// Typed and not yet read by the slave.
    pub input: Bytes,
    /// Written by the slave and not yet read by the master.
    pub output: Bytes,
    /// Mode, owner and group of the slave's node.
    pub node: (u32, u32, u32),
}
