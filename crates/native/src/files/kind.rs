//! What kind of object a descriptor is open on, told from what /proc shows of it.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use cpr_kernel::proc::{self, FdInfo, FdInfoKind, LockKind, ProcDir};
use cpr_types::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags, Stat};

use super::unix_infos::UnixInfos;
use super::{fanotify, socket, terminal};
use crate::networks::Networks;
use crate::views::{TerminalSystem, Views};

const PROC_MAGIC: u64 = 0x9fa0;
const MQUEUE_MAGIC: u64 = 0x1980_0202;
const NSFS_MAGIC: u64 = 0x6e73_6673;
const SECRETMEM_MAGIC: u64 = 0x5345_434d;
pub(super) const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Kinds of objects that are treated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file, which may have been deleted.
    Regular,
    /// memfd_create(2).
    Memfd,
    /// A directory.
    Directory,
    /// Something below /proc: the process it belongs to, and the rest of the path.
    Proc(Option<i32>, Vec<u8>),
    /// A descriptor opened with O_PATH.
    Path,
    /// pipe(2).
    Pipe,
    /// A FIFO with a name.
    Fifo,
    /// A character device without state.
    Device,
    /// Any other: why it cannot be saved where no plug-in knows it.
    OtherDevice(String),
    /// /dev/tty.
    ControllingTerminal,
    /// Either side of a terminal.
    Terminal(terminal::Side),
    /// Any socket.
    Socket,
    /// Any of these.
    EventFd,
    TimerFd,
    SignalFd,
    Epoll,
    Inotify,
    Fanotify,
    IoUring,
    PidFd,
    MessageQueue,
    /// What no checkpoint can save: why, and what to do.
    Unsupported(String, Option<String>),
}

fn unsupported(reason: &str, hint: &str) -> Kind {
    Kind::Unsupported(reason.to_owned(), (!hint.is_empty()).then(|| hint.to_owned()))
}

/// Status flags of a description, without FD_CLOEXEC of the descriptor.
pub(super) fn flags(info: &FdInfo) -> i32 {
    info.flags & !(OFlags::CLOEXEC.bits() as i32)
}

/// Whether O_PATH is among `flags`.
pub(super) fn is_path(flags: i32) -> bool {
    OFlags::from_bits_retain(flags as u32).contains(OFlags::PATH)
}

/// Whether a descriptor with these flags can be read.
pub(super) fn readable(flags: i32) -> bool {
    matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR) && !is_path(flags)
}

/// Whether a descriptor with these flags can be written.
pub(super) fn writable(flags: i32) -> bool {
    matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR) && !is_path(flags)
}

/// Tells what descriptor `fd` of process `pid` is.
pub(super) fn classify(pid: i32, fd: i32, link: &[u8], info: &FdInfo, stat: &Stat) -> Kind {
    match info.kind {
        FdInfoKind::EventFd { .. } => return Kind::EventFd,
        FdInfoKind::TimerFd { .. } => return Kind::TimerFd,
        FdInfoKind::SignalFd { .. } => return Kind::SignalFd,
        FdInfoKind::Epoll(_) => return Kind::Epoll,
        FdInfoKind::Inotify(_) => return Kind::Inotify,
        FdInfoKind::PidFd { .. } => return Kind::PidFd,
        FdInfoKind::Fanotify(ref lines) => return fanotify::kind(lines),
        FdInfoKind::Tty { .. } | FdInfoKind::Other => {}
    }
    if let Some(other) = info.locks.iter().find(|lock| !is_lock(lock.kind)) {
        return unsupported(&format!("a {} on it cannot be saved", name(other.kind)), "");
    }
    if let Some(name) = link.strip_prefix(b"anon_inode:") {
        return anonymous(&String::from_utf8_lossy(name));
    }
    let absolute = link.starts_with(b"/");
    if is_path(info.flags) {
        if !absolute {
            return unsupported("O_PATH of an object without a path", "");
        }
        // Of a process that has ended there is no path any more.
        return match super::dead_process(link).and_then(|_| proc_path(pid, fd, link)) {
            Some((Some(pid), path)) => Kind::Proc(Some(pid), path),
            _ => Kind::Path,
        };
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory | FileType::Symlink if !absolute => {
            if file_system(pid, fd) == Some(NSFS_MAGIC) {
                own_namespace(pid, link).unwrap_or_else(|| unsupported("a namespace is held open", ""))
            } else {
                unsupported("the file has no path in the job's file system", "")
            }
        }
        FileType::RegularFile if link.starts_with(b"/memfd:") && link.ends_with(b" (deleted)") => Kind::Memfd,
        FileType::RegularFile | FileType::Directory if of_another_proc(pid, fd, link, stat) => {
            unsupported("a file of a /proc of another PID namespace", "")
        }
        FileType::RegularFile => regular(pid, fd, link),
        FileType::Directory => match proc_path(pid, fd, link) {
            Some((Some(pid), path)) => Kind::Proc(Some(pid), path),
            _ => Kind::Directory,
        },
        FileType::Fifo if absolute => Kind::Fifo,
        FileType::Fifo => Kind::Pipe,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => device(stat.st_rdev),
        FileType::BlockDevice => unsupported(
            "block devices are not supported",
            "use a file system on it, or close it before the checkpoint",
        ),
        _ => unsupported("this kind of file is not known", ""),
    }
}

fn is_lock(kind: LockKind) -> bool {
    matches!(
        kind,
        LockKind::Posix | LockKind::Ofd | LockKind::Flock | LockKind::Lease
    )
}

fn name(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Delegation => "delegation",
        _ => "lock of an unknown kind",
    }
}

fn anonymous(name: &str) -> Kind {
    match name.trim_matches(['[', ']']) {
        "io_uring" => Kind::IoUring,
        "perf_event" => unsupported(
            "performance counters are not supported",
            "profile it after the checkpoint",
        ),
        "userfaultfd" => unsupported("userfaultfd is not supported", ""),
        kvm if kvm.starts_with("kvm-") => unsupported(
            "virtual machines are not supported",
            "save the machine with its monitor's own means",
        ),
        bpf if bpf.starts_with("bpf") => unsupported("BPF objects are not supported", ""),
        other => Kind::Unsupported(format!("kernel objects of kind {other} are not supported"), None),
    }
}

/// A namespace that the process is in itself, as its file in /proc.
fn own_namespace(pid: i32, link: &[u8]) -> Option<Kind> {
    let name = &link[..link.iter().position(|&b| b == b':')?];
    let path = [b"ns/", name].concat();
    let full = [format!("/proc/{}/", proc::acting(pid)).as_bytes(), path.as_slice()].concat();
    let own = rustix::fs::readlink(std::ffi::OsStr::from_bytes(&full), Vec::new()).ok()?;
    (own.as_bytes() == link).then_some(Kind::Proc(Some(pid), path))
}

/// `f_type` of the file system of an open file.
fn file_system(pid: i32, fd: i32) -> Option<u64> {
    let statfs = rustix::fs::statfs(format!("/proc/{}/fd/{fd}", proc::acting(pid))).ok()?;
    Some(statfs.f_type as u32 as u64)
}

/// Whether a file is of a /proc that is none of those of the job's own mount namespace, nor of ours.
fn of_another_proc(pid: i32, fd: i32, link: &[u8], stat: &Stat) -> bool {
    if !link.starts_with(b"/proc") || file_system(pid, fd) != Some(PROC_MAGIC) {
        return false;
    }
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let has_it = |viewer: i32| {
        let mounts = ProcDir::open(viewer).and_then(|proc| proc.mountinfo());
        let mut mounts = mounts.unwrap_or_default().into_iter();
        mounts.any(|mount| mount.fs_type == b"proc" && mount.dev == device)
    };
    ![1, std::process::id() as i32].into_iter().any(has_it)
}

/// The process and path of a file of the /proc that is mounted at /proc.
fn proc_path(pid: i32, fd: i32, link: &[u8]) -> Option<(Option<i32>, Vec<u8>)> {
    // The entry of a process that has ended.
    let link = super::dead_process(link)
        .and(link.strip_suffix(b" (deleted)"))
        .unwrap_or(link);
    let rest = link.strip_prefix(b"/proc/")?;
    if file_system(pid, fd) != Some(PROC_MAGIC) {
        return None;
    }
    let end = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    let owner = std::str::from_utf8(&rest[..end])
        .ok()
        .and_then(|text| text.parse().ok());
    match owner {
        Some(owner) => Some((Some(owner), rest.get(end + 1..).unwrap_or_default().to_vec())),
        None => Some((None, rest.to_vec())),
    }
}

fn regular(pid: i32, fd: i32, link: &[u8]) -> Kind {
    if let Some((owner, path)) = proc_path(pid, fd, link) {
        return Kind::Proc(owner, path);
    }
    match file_system(pid, fd) {
        Some(PROC_MAGIC) => unsupported("a file of a /proc that is not mounted at /proc", ""),
        Some(MQUEUE_MAGIC) => Kind::MessageQueue,
        Some(SECRETMEM_MAGIC) => unsupported("secret memory cannot be read", ""),
        _ => Kind::Regular,
    }
}

/// Whether a character device keeps no state.
pub(super) fn is_stateless(rdev: u64) -> bool {
    matches!(
        (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
        (1, 3 | 5 | 7 | 8 | 9)
    )
}

fn device(rdev: u64) -> Kind {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    if is_stateless(rdev) {
        return Kind::Device;
    }
    if (major, minor) == (5, 0) {
        return Kind::ControllingTerminal;
    }
    if let Some(side) = terminal::side(rdev) {
        return Kind::Terminal(side);
    }
    let what = match (major, minor) {
        (10, 232) => "virtual machines are not supported",
        (10, 200) => "network tunnels are not supported",
        (10, 229) => "serving a FUSE file system is not supported",
        (195 | 226 | 234..=254 | 510..=511, _) => "this device is not supported (graphics and accelerators are not)",
        _ => "this device is not supported",
    };
    Kind::OtherDevice(format!("{what} (device number {major}:{minor})"))
}

/// Which ends of pipes, terminals and sockets are open in the tree.
#[derive(Debug, Default)]
pub(super) struct Ends {
    readers: HashSet<(u64, u64)>,
    writers: HashSet<(u64, u64)>,
    /// By file system, where that is not the job's own, and number.
    masters: HashSet<(Option<TerminalSystem>, u32)>,
    sockets: HashSet<u32>,
    infos: UnixInfos,
}

impl Ends {
    /// Counts a descriptor.
    pub fn add(&mut self, kind: &Kind, info: &FdInfo, stat: &Stat, views: &Views) {
        match kind {
            Kind::Pipe => {
                if readable(info.flags) {
                    self.readers.insert((stat.st_dev, stat.st_ino));
                }
                if writable(info.flags) {
                    self.writers.insert((stat.st_dev, stat.st_ino));
                }
            }
            Kind::Terminal(terminal::Side::Master) => {
                if let FdInfoKind::Tty { index } = info.kind {
                    self.masters.insert((views.terminals(stat.st_dev), index as u32));
                }
            }
            Kind::Socket => {
                self.sockets.insert(stat.st_ino as u32);
            }
            _ => {}
        }
    }

    /// Counts the ends of pipes that process `pid` has open, as far as it can be looked at: where it cannot, they lead
    /// out of the job.
    pub fn add_pipes_of(&mut self, pid: i32) {
        let Ok(proc) = ProcDir::open_living(pid) else { return };
        for fd in proc.descriptors().unwrap_or_default() {
            let (Ok(link), Ok(info), Ok(stat)) = (proc.fd_link(fd), proc.fdinfo(fd), proc.fd_stat(fd)) else {
                continue;
            };
            let kind = classify(pid, fd, &link, &info, &stat);
            if kind == Kind::Pipe {
                self.add(&kind, &info, &stat, &Views::default());
            }
        }
    }

    /// Whether a terminal's master is outside the tree.
    pub fn is_external_terminal(&self, side: terminal::Side, system: Option<TerminalSystem>) -> bool {
        match side {
            terminal::Side::Master => false,
            terminal::Side::Slave(index) => !self.masters.contains(&(system, index)),
            terminal::Side::Line(_) => true,
        }
    }

    /// Whether only one kind of end of a pipe is in the tree, so that the other may be outside.
    pub fn is_one_sided(&self, stat: &Stat) -> bool {
        let key = (stat.st_dev, stat.st_ino);
        self.readers.contains(&key) != self.writers.contains(&key)
    }

    /// Whether a pipe leads out of the tree: one end is in it, the other is open somewhere else.
    ///
    /// # Errors
    /// The pipe cannot be polled.
    pub fn is_external_pipe(&self, flags: i32, stat: &Stat, handle: BorrowedFd<'_>) -> Result<bool> {
        if !self.is_one_sided(stat) {
            return Ok(false);
        }
        let gone = if readable(flags) {
            PollFlags::HUP
        } else {
            PollFlags::ERR
        };
        Ok(!poll(handle)?.contains(gone))
    }

    /// Whether a socket leads out of the tree: a connection to outside, or a family that is not supported.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_external_socket(&self, stat: &Stat, handle: BorrowedFd<'_>, networks: &Networks) -> Result<bool> {
        let class = socket::classify(handle).context(|| "ask for the family of a socket")?;
        match class {
            socket::Class::Unix => {}
            // Whether both ends of a connection are in the tree shows later; as a standard stream it hardly is.
            socket::Class::Inet => return Ok(rustix::net::getpeername(handle).is_ok()),
            socket::Class::Netlink | socket::Class::Packet => return Ok(false),
            socket::Class::Other(_) => return Ok(true),
        }
        let info = self.infos.of(None, stat.st_ino as u32, networks)?;
        let peer = info.and_then(|info| info.peer);
        Ok(peer.is_some_and(|peer| peer != 0 && !self.sockets.contains(&peer)))
    }
}

fn poll(handle: BorrowedFd<'_>) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(handle, PollFlags::IN | PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now))
        .map_err(std::io::Error::from)
        .context(|| "poll a pipe")?;
    Ok(fds[0].revents())
}

/// The standard streams of the root process, to recognise other descriptors on the same objects.
#[derive(Debug, Default)]
pub(super) struct Streams([Option<Identity>; 3]);

#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Inode(u64, u64),
    Device(u64),
}

fn identity(stat: &Stat) -> Identity {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Identity::Device(stat.st_rdev),
        _ => Identity::Inode(stat.st_dev, stat.st_ino),
    }
}

impl Streams {
    /// Notes descriptor `fd` of the root process.
    pub fn note(&mut self, fd: i32, stat: &Stat) {
        if let Some(slot) = usize::try_from(fd).ok().and_then(|fd| self.0.get_mut(fd)) {
            *slot = Some(identity(stat));
        }
    }

    /// The standard stream that is the same object as descriptor `fd`: the one of that number, else the first.
    pub fn find(&self, fd: i32, stat: &Stat) -> Option<i32> {
        let wanted = Some(identity(stat));
        let same = |stream: &i32| usize::try_from(*stream).is_ok_and(|n| self.0.get(n) == Some(&wanted));
        [fd, 0, 1, 2].into_iter().find(same)
    }
}
