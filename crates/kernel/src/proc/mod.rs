//! Reading `/proc`: the only place in GridCPR that opens or parses anything below it.
//!
//! [`ProcDir`] holds an open `/proc/PID` directory, so that everything read through it belongs to one process. Once
//! that process has been reaped every read fails with `ESRCH` or `ENOENT`, even if its PID is in use again.
//!
//! The parsers are public functions of the submodules and take the text as an argument. They accept any bytes: text
//! which does not have the expected form gives [`io::ErrorKind::InvalidData`], with the file and line in the message.
//! Errors of system calls are passed on with their error number.
//!
//! Process numbers are those of the PID namespace of the `/proc` mount; users and groups are those of the reader's user
//! namespace.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};

pub mod cgroup;
pub mod fanotify;
pub mod fdinfo;
pub mod io_uring;
pub mod limits;
pub mod maps;
pub mod mountinfo;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod task;
pub mod timers;

pub use cgroup::Cgroup;
pub use fanotify::{FanotifyGroup, FanotifyMark, FanotifyObject, parse_fanotify};
pub use fdinfo::{EpollWatch, FdInfo, FdInfoKind, InotifyWatch, LockKind, LockLine};
pub use limits::Limit;
pub use maps::{MapEntry, MapKind, VmFlags};
pub use mountinfo::{Mount, MountTable};
pub use stat::Stat;
pub use status::Status;
pub use sysvipc::{SysvObject, SysvQueue, SysvSegment, SysvSemaphores};
pub use task::IoCounters;
pub use timers::{Timer, TimerNotify, TimerTarget};

/// An open `/proc/PID` (or `/proc/PID/task/TID`) directory.
///
/// It stays bound to that process or thread even if the number is reused.
#[derive(Debug)]
pub struct ProcDir {
    dir: OwnedFd,
    pid: i32,
    acting: i32,
    path: String,
}

impl ProcDir {
    /// Opens `/proc/PID`.
    pub fn open(pid: i32) -> io::Result<Self> {
        Self::open_path(pid, format!("/proc/{}", positive(pid)?))
    }

    /// Opens the directory of a process that may go on without its main thread: /proc/TID of another thread then, which
    /// shows what threads have in common, and /proc/PID no longer (proc(5)). [`ProcDir::stat`] and [`ProcDir::status`]
    /// have the process's number, name and start.
    pub fn open_living(pid: i32) -> io::Result<Self> {
        let acting = acting(pid);
        let dir = Self::open_path(acting, format!("/proc/{}", positive(acting)?))?;
        Ok(Self { pid, ..dir })
    }

    /// Opens `/proc/PID/task/TID`; [`ProcDir::pid`] is then the thread's number.
    pub fn open_task(pid: i32, tid: i32) -> io::Result<Self> {
        Self::open_path(tid, format!("/proc/{}/task/{}", positive(pid)?, positive(tid)?))
    }

    fn open_path(pid: i32, path: String) -> io::Result<Self> {
        let dir = rustix::fs::openat(
            CWD,
            path.as_str(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            dir,
            pid,
            acting: pid,
            path,
        })
    }

    /// The number of the thread that acts for the process where a system call wants one that lives: the main thread's,
    /// unless that has ended ([`ProcDir::open_living`]).
    pub fn acting(&self) -> i32 {
        self.acting
    }

    /// The number this directory was opened with.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Opens `name` below the directory, always with `O_CLOEXEC`. Magic links are followed unless `flags` forbids it.
    pub fn open_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let name = relative(name)?;
        Ok(rustix::fs::openat(
            &self.dir,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Reads the whole of `name`.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_all(self.open_file(name, OFlags::RDONLY)?)
    }

    /// Inode numbers of the netlink sockets in the process's network namespace that hold messages nobody has read.
    pub fn unread_netlink_sockets(&self) -> io::Result<Vec<u64>> {
        let text = self.read("net/netlink")?;
        let text = String::from_utf8_lossy(&text);
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        let inode = |line: &str| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let held: u64 = fields.get(4)?.parse().ok()?;
            fields.get(9)?.parse().ok().filter(|_| held > 0)
        };
        Ok(text.lines().filter_map(inode).collect())
    }

    /// The target of the symbolic (or magic) link `name`.
    pub fn read_link(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.dir, relative(name)?, Vec::new())?.into_bytes())
    }

    /// Reads the whole of `name`, which the kernel writes in one go ([`read_record`]).
    fn record(&self, name: &str) -> io::Result<Vec<u8>> {
        read_record(self.open_file(name, OFlags::RDONLY)?)
    }

    /// `/proc/PID/stat`.
    pub fn stat(&self) -> io::Result<Stat> {
        let stat = stat::parse(&self.label("stat"), &self.record("stat")?)?;
        if self.acting == self.pid {
            return Ok(stat);
        }
        let main = stat_of(self.pid)?;
        Ok(Stat {
            pid: main.pid,
            comm: main.comm,
            starttime: main.starttime,
            ..stat
        })
    }

    /// `/proc/PID/status`.
    pub fn status(&self) -> io::Result<Status> {
        let status = status::parse(&self.label("status"), &self.record("status")?)?;
        if self.acting == self.pid {
            return Ok(status);
        }
        let main = status_of(self.pid)?;
        Ok(Status {
            pid: main.pid,
            name: main.name,
            ns_pid: main.ns_pid,
            ..status
        })
    }

    /// `/proc/PID/task/TID/status`.
    pub fn task_status(&self, tid: i32) -> io::Result<Status> {
        let name = format!("task/{tid}/status");
        status::parse(&self.label(&name), &self.record(&name)?)
    }

    /// `/proc/PID/maps`, in address order. Empty for a process without an address space.
    pub fn maps(&self) -> io::Result<Vec<MapEntry>> {
        maps::parse(&self.label("maps"), &self.read("maps")?)
    }

    /// The `VmFlags:` of every mapping, from `/proc/PID/smaps`. The kernel walks all page tables to make this file.
    pub fn smaps_flags(&self) -> io::Result<Vec<VmFlags>> {
        maps::parse_smaps_flags(&self.label("smaps"), &self.read("smaps")?)
    }

    /// Size of the pages of the mapping that starts at `start`, bytes, from `/proc/PID/smaps`; none if there is no such
    /// one.
    pub fn page_size_at(&self, start: u64) -> io::Result<Option<u64>> {
        maps::parse_page_size(&self.label("smaps"), &self.read("smaps")?, start)
    }

    /// All resource limits, from `/proc/PID/limits`, in kernel order.
    pub fn limits(&self) -> io::Result<Vec<Limit>> {
        limits::parse(&self.label("limits"), &self.read("limits")?)
    }

    /// The POSIX timers, from `/proc/PID/timers`, sorted by number.
    pub fn timers(&self) -> io::Result<Vec<Timer>> {
        timers::parse(&self.label("timers"), &self.read("timers")?)
    }

    /// The raw auxiliary vector the program was started with. `ESRCH` for a process without an address space.
    pub fn auxv(&self) -> io::Result<Vec<u8>> {
        self.read("auxv")
    }

    /// The mounts of the process's mount namespace that its root can see.
    pub fn mountinfo(&self) -> io::Result<Vec<Mount>> {
        mountinfo::parse(&self.label("mountinfo"), &self.read("mountinfo")?)
    }

    /// The same, to be read again and again. It outlives the process.
    pub fn mount_table(&self) -> io::Result<MountTable> {
        let file = self.open_file("mountinfo", OFlags::RDONLY)?;
        Ok(MountTable::new(file, self.label("mountinfo")))
    }

    /// The control groups, one for each hierarchy; none where the kernel has no control groups.
    pub fn cgroups(&self) -> io::Result<Vec<Cgroup>> {
        match self.read("cgroup") {
            Ok(text) => Ok(cgroup::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.read("stat").map(|_| Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Numbers of the threads, sorted.
    pub fn tasks(&self) -> io::Result<Vec<i32>> {
        self.numbers("task")
    }

    /// Whether a thread is one that the kernel has made for io_uring: it runs nothing of the program's.
    pub fn is_io_thread(&self, tid: i32) -> io::Result<bool> {
        /// <linux/sched.h> since Linux 5.12, when these became threads of their process.
        const PF_IO_WORKER: u32 = 0x10;
        // It gets its name when it first runs, and its flags before anybody sees it.
        let name = format!("task/{tid}/stat");
        let flags = stat::parse(&self.label(&name), &self.read(&name)?)?.flags;
        Ok(flags & PF_IO_WORKER != 0)
    }

    /// What the kernel tells of the io_uring instance behind descriptor `fd`; none where it is busy with it.
    pub fn io_uring(&self, fd: i32) -> io::Result<Option<io_uring::IoUring>> {
        Ok(io_uring::parse(&self.read(&format!("fdinfo/{fd}"))?))
    }

    /// Numbers of the child processes of all threads, sorted.
    ///
    /// Complete only while neither the threads nor the children run. Where the kernel lacks the `children` files
    /// (`CONFIG_PROC_CHILDREN`), or there are more threads than processes, all of `/proc` is searched for processes with
    /// this parent.
    pub fn children(&self) -> io::Result<Vec<i32>> {
        task::children(self)
    }

    /// Numbers of the open descriptors, sorted.
    pub fn descriptors(&self) -> io::Result<Vec<i32>> {
        self.numbers("fd")
    }

    /// `/proc/PID/fdinfo/FD`.
    ///
    /// An epoll or inotify descriptor that watches nothing has no line of its own; it is told by the link's text.
    pub fn fdinfo(&self, fd: i32) -> io::Result<FdInfo> {
        let name = format!("fdinfo/{fd}");
        let mut info = fdinfo::parse(&self.label(&name), &self.read(&name)?)?;
        if info.kind == FdInfoKind::Other {
            match self.fd_link(fd)?.as_slice() {
                b"anon_inode:[eventpoll]" => info.kind = FdInfoKind::Epoll(Vec::new()),
                b"anon_inode:inotify" | b"anon_inode:[inotify]" => info.kind = FdInfoKind::Inotify(Vec::new()),
                _ => {}
            }
        }
        Ok(info)
    }

    /// The text of the link `/proc/PID/fd/FD`.
    pub fn fd_link(&self, fd: i32) -> io::Result<Vec<u8>> {
        self.read_link(&format!("fd/{fd}"))
    }

    /// `stat` of the open file behind descriptor `fd`; works for deleted and unnamed files as well.
    pub fn fd_stat(&self, fd: i32) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::statat(&self.dir, format!("fd/{fd}"), AtFlags::empty())?)
    }

    /// `stat` of what the magic link `name` (`cwd`, `root`, `exe`) leads to; works for what has been deleted as well.
    pub fn link_stat(&self, name: &str) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::statat(&self.dir, relative(name)?, AtFlags::empty())?)
    }

    /// Input and output done so far, from `/proc/PID/io`. Needs ptrace access.
    pub fn io(&self) -> io::Result<IoCounters> {
        task::parse_io(&self.label("io"), &self.read("io")?)
    }

    /// When the task was last put on a processor, in nanoseconds of the scheduler's clock: `se.exec_start` of
    /// `/proc/PID/sched`. `None` where the kernel does not offer it.
    pub fn sched_exec_start_ns(&self) -> io::Result<Option<u64>> {
        match self.record("sched") {
            Ok(text) => task::parse_exec_start(&self.label("sched"), &text),
            // Without the scheduler's debug files only `sched` is missing, not the process.
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.read("stat").map(|_| None),
            Err(e) => Err(e),
        }
    }

    /// How often one of the process's threads has been put on a processor, from its `schedstat`
    /// (Documentation/scheduler/sched-stats.rst). Not there where the kernel keeps no such record.
    pub fn task_runs(&self, tid: i32) -> io::Result<u64> {
        let name = format!("task/{tid}/schedstat");
        task::parse_runs(&self.label(&name), &self.record(&name)?)
    }

    /// The name of one of the process's threads.
    pub fn task_name(&self, tid: i32) -> io::Result<Vec<u8>> {
        let mut name = self.record(&format!("task/{tid}/comm"))?;
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        Ok(name)
    }

    /// The kernel function the task sleeps in, from `wchan`; `None` for one that runs, or where it is kept secret.
    pub fn wchan(&self) -> io::Result<Option<String>> {
        Ok(wait_channel(&self.record("wchan")?))
    }

    /// The same of one of the process's threads.
    pub fn task_wchan(&self, tid: i32) -> io::Result<Option<String>> {
        Ok(wait_channel(&self.record(&format!("task/{tid}/wchan"))?))
    }

    /// The number of the system call that one of the process's threads sleeps in, from `syscall`; `None` for one that
    /// runs, or that is in none.
    pub fn task_syscall(&self, tid: i32) -> io::Result<Option<i64>> {
        Ok(sleeping_call(&self.record(&format!("task/{tid}/syscall"))?))
    }

    fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn numbers(&self, name: &str) -> io::Result<Vec<i32>> {
        numbers(self.open_file(name, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }
}

fn wait_channel(text: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(text).into_owned();
    Some(name).filter(|name| !name.is_empty() && name != "0")
}

/// The first word of `syscall`: a number, -1 outside of any call, or `running`.
fn sleeping_call(text: &[u8]) -> Option<i64> {
    let number = text.split(u8::is_ascii_whitespace).next()?;
    let number: i64 = str::from_utf8(number).ok()?.parse().ok()?;
    Some(number).filter(|number| *number >= 0)
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The thread that shows what a process has, and acts for it ([`ProcDir::open_living`]): the main thread, or another one
/// where that has ended; the main thread's number, too, where none is left.
pub fn acting(pid: i32) -> i32 {
    // Of all that lives only a zombie and a thread of the kernel have no program.
    let program = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new());
    if program != Err(rustix::io::Errno::NOENT) {
        return pid;
    }
    let lives = |tid: &i32| {
        let stat = ProcDir::open_task(pid, *tid).and_then(|task| task.stat());
        stat.is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
    };
    let threads = ProcDir::open(pid).and_then(|proc| proc.tasks()).unwrap_or_default();
    threads.into_iter().find(lives).unwrap_or(pid)
}

/// `/proc/PID/stat` of a process that only one look is taken at: without opening its directory first.
pub fn stat_of(pid: i32) -> io::Result<Stat> {
    stat::parse(&format!("/proc/{pid}/stat"), &record_of(pid, "stat")?)
}

/// `/proc/PID/status`, as [`stat_of`].
pub fn status_of(pid: i32) -> io::Result<Status> {
    status::parse(&format!("/proc/{pid}/status"), &record_of(pid, "status")?)
}

/// `/proc/PID/NAME` as a whole, for a file that the kernel writes in one go (`stat`, `status`).
pub fn record_of(pid: i32, name: &str) -> io::Result<Vec<u8>> {
    let path = format!("/proc/{}/{}", positive(pid)?, relative(name)?);
    read_record(rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The number that the youngest process or thread of our PID namespace got (the end of /proc/loadavg).
pub fn last_pid() -> io::Result<i32> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let last = text
        .split_ascii_whitespace()
        .last()
        .and_then(|number| number.parse().ok());
    last.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/loadavg has no process number"))
}

/// All process numbers in `/proc`, sorted.
pub fn pids() -> io::Result<Vec<i32>> {
    numbers(rustix::fs::openat(
        CWD,
        "/proc",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The names of a directory that are numbers, sorted.
fn numbers(dir: OwnedFd) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in Dir::new(dir)? {
        found.extend(decimal::<i32>(entry?.file_name().to_bytes()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn read_all(file: impl AsFd) -> io::Result<Vec<u8>> {
    read_until(file, |_| false)
}

/// Reads a file that the kernel writes in one go when it is first read (`single_open` in fs/seq_file.c): a read that
/// leaves room was the last one, and none has to tell that there is no more.
fn read_record(file: impl AsFd) -> io::Result<Vec<u8>> {
    read_until(file, |got| got < BUFFER)
}

/// Bytes read at a time.
const BUFFER: usize = 16 * 1024;

fn read_until(file: impl AsFd, is_last: impl Fn(usize) -> bool) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = [0u8; BUFFER];
    loop {
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer))?;
        text.extend_from_slice(&buffer[..got]);
        if got == 0 || is_last(got) {
            return Ok(text);
        }
    }
}

fn positive(id: i32) -> io::Result<i32> {
    if id > 0 {
        return Ok(id);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{id} is not a process number"),
    ))
}

/// Refuses names that would leave the process's directory.
fn relative(name: &str) -> io::Result<&str> {
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a name below /proc/PID"),
        ));
    }
    Ok(name)
}

/// A place in a file of `/proc`, for error messages.
#[derive(Clone, Copy)]
struct At<'a> {
    file: &'a str,
    line: usize,
}

impl At<'_> {
    fn bad(self, what: impl Display) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: line {}: {what}", self.file, self.line),
        )
    }

    /// `value`, or an error that says which field is missing or malformed.
    fn need<T>(self, value: Option<T>, field: &str) -> io::Result<T> {
        value.ok_or_else(|| self.bad(format_args!("no valid {field}")))
    }

    fn decimal<T: FromStr>(self, value: &[u8], field: &str) -> io::Result<T> {
        self.need(decimal(value), field)
    }

    fn hex<T: TryFrom<u64>>(self, value: &[u8], field: &str) -> io::Result<T> {
        self.need(hex(value), field)
    }
}

/// The lines of `text` without their newlines, with their places.
fn lines<'a>(file: &'a str, text: &'a [u8]) -> impl Iterator<Item = (At<'a>, &'a [u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let count = if text.is_empty() { 0 } else { usize::MAX };
    text.split(|&b| b == b'\n')
        .take(count)
        .enumerate()
        .map(move |(i, line)| (At { file, line: i + 1 }, line))
}

/// The words of `line`, separated by any number of blanks.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty())
}

fn decimal<T: FromStr>(text: &[u8]) -> Option<T> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if !digits.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn radix<T: TryFrom<u64>>(text: &[u8], radix: u32) -> Option<T> {
    if !text.first()?.is_ascii_hexdigit() {
        return None;
    }
    T::try_from(u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()?).ok()
}

fn hex<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    radix(text, 16)
}

fn octal<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    radix(text, 8)
}

/// `text` before and after the first `separator`.
fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Splits a device number as the kernel keeps it internally: 12 bits major, 20 bits minor.
fn kernel_dev(dev: u32) -> (u32, u32) {
    (dev >> 20, dev & 0xf_ffff)
}

/// Replaces every `\ooo` for which `accept` holds by the byte it stands for.
fn unescape(text: &[u8], accept: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if byte == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0')).filter(|&code| accept(code))
            }
            _ => None,
        };
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

/// The System V shared memory segments of our IPC namespace.
pub fn sysv_segments() -> io::Result<Vec<SysvSegment>> {
    let path = "/proc/sysvipc/shm";
    sysvipc::parse_segments(path, &std::fs::read(path)?)
}

/// The System V semaphore sets of our IPC namespace.
pub fn sysv_semaphores() -> io::Result<Vec<SysvSemaphores>> {
    let path = "/proc/sysvipc/sem";
    sysvipc::parse_semaphores(path, &std::fs::read(path)?)
}

/// The System V message queues of our IPC namespace.
pub fn sysv_queues() -> io::Result<Vec<SysvQueue>> {
    let path = "/proc/sysvipc/msg";
    sysvipc::parse_queues(path, &std::fs::read(path)?)
}

/// The `flags` of the first processor in `/proc/cpuinfo`.
pub fn cpu_flags() -> io::Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    Ok(line.map_or_else(Vec::new, |(_, flags)| {
        flags.split_whitespace().map(str::to_owned).collect()
    }))
}
