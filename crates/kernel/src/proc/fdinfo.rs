//! `/proc/PID/fdinfo/FD`.

use std::io;

use super::{At, decimal, hex, kernel_dev, lines, octal, split_once, words};

/// The contents of `/proc/PID/fdinfo/FD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// File position. Written as a signed number, for the few files that use the whole range of 64 bits.
    pub pos: u64,
    /// Access mode, status flags and `O_CLOEXEC`.
    pub flags: i32,
    /// Number of the mount, 0 for internal ones on some kernels.
    pub mnt_id: i32,
    /// Inode number; `None` before Linux 5.14.
    pub ino: Option<u64>,
    /// Locks held through this descriptor by this process (POSIX) or this open file (others).
    pub locks: Vec<LockLine>,
    /// For a Unix socket: the number of descriptors in messages that wait in its receive queue.
    pub scm_fds: Option<u32>,
    /// What the kernel tells about special kinds of descriptors.
    pub kind: FdInfoKind,
}

/// The part of `fdinfo` that depends on the kind of descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FdInfoKind {
    /// eventfd(2)
    EventFd {
        /// The counter.
        count: u64,
        /// Number of the object, unique in the system; `None` on old kernels.
        id: Option<i32>,
        /// Whether it was made with `EFD_SEMAPHORE`; `None` before Linux 6.5, which does not tell.
        semaphore: Option<bool>,
    },
    /// timerfd_create(2)
    TimerFd {
        /// The clock.
        clock: i32,
        /// Expirations not yet read.
        ticks: u64,
        /// The flags of the last timerfd_settime(2).
        settime_flags: i32,
        /// Time until the next expiration in nanoseconds, 0 if disarmed.
        it_value_ns: u64,
        /// The interval in nanoseconds, 0 if it expires once.
        it_interval_ns: u64,
    },
    /// signalfd(2)
    SignalFd {
        /// The signals it accepts; bit 0 is signal 1.
        mask: u64,
    },
    /// epoll_create(2), with what it watches. The parser finds it only if there is something.
    Epoll(Vec<EpollWatch>),
    /// inotify_init(2), with what it watches. The parser finds it only if there is something.
    Inotify(Vec<InotifyWatch>),
    /// pidfd_open(2)
    PidFd {
        /// The process; -1 once it has been waited for, 0 if it is in no PID namespace of the `/proc` mount.
        pid: i32,
        /// The same in each PID namespace, from that of the `/proc` mount inwards.
        ns_pid: Vec<i32>,
    },
    /// The controlling side of a pseudo-terminal.
    Tty {
        /// Number of the terminal in `/dev/pts`.
        index: i32,
    },
    /// fanotify_init(2): the lines as they are.
    Fanotify(Vec<u8>),
    /// Nothing this code knows.
    Other,
}

/// A descriptor registered with epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollWatch {
    /// Number the descriptor had when it was added; it may be closed or another file now.
    pub tfd: i32,
    /// Events and flags. With `EPOLLONESHOT` only the flags are left after an event.
    pub events: u32,
    /// The program's data.
    pub data: u64,
    /// File position of the target.
    pub pos: u64,
    /// Inode number of the target.
    pub ino: u64,
    /// Major and minor device number of the target's file system.
    pub sdev: (u32, u32),
}

/// A watch of inotify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode number of the target.
    pub ino: u64,
    /// Major and minor device number of the target's file system.
    pub sdev: (u32, u32),
    /// Events and flags.
    pub mask: u32,
    /// Always 0 with inotify.
    pub ignored_mask: u32,
    /// Length of the file handle; 0 if the file system has none.
    pub fhandle_bytes: u32,
    /// Type of the file handle.
    pub fhandle_type: i32,
    /// The file handle, for open_by_handle_at(2).
    pub f_handle: Vec<u8>,
}

/// What kind of lock a [`LockLine`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2) `F_SETLK`: belongs to the process.
    Posix,
    /// fcntl(2) `F_OFD_SETLK`: belongs to the open file.
    Ofd,
    /// flock(2): belongs to the open file.
    Flock,
    /// fcntl(2) `F_SETLEASE`.
    Lease,
    /// A delegation of the NFS server.
    Delegation,
    /// Any other word.
    Unknown,
}

/// One `lock:` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockLine {
    /// Number of the line.
    pub id: u64,
    /// Kind of lock.
    pub kind: LockKind,
    /// A write lock, as opposed to a read lock.
    pub exclusive: bool,
    /// A lease that is being broken; `exclusive` and `unlock` then tell what it is to become.
    pub breaking: bool,
    /// A lease that is to be given up altogether.
    pub unlock: bool,
    /// The process that took the lock; -1 for [`LockKind::Ofd`].
    pub pid: i32,
    /// Major and minor device number of the file system.
    pub dev: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` if the lock extends to the end of the file, wherever that is.
    pub end: Option<u64>,
}

/// Parses `/proc/PID/fdinfo/FD`.
///
/// Lines of unknown kinds are skipped. Only the kernel's own text decides about the kind, so that epoll and inotify
/// descriptors without watches are [`FdInfoKind::Other`]; [`super::ProcDir::fdinfo`] mends that.
pub fn parse(file: &str, text: &[u8]) -> io::Result<FdInfo> {
    let mut last = At { file, line: 1 };
    let (mut pos, mut flags, mut mnt_id, mut ino) = (None, None, None, None);
    let mut locks = Vec::new();
    let mut scm_fds = None;
    let mut kind = Found::Other;
    for (at, line) in lines(file, text) {
        last = at;
        if line.starts_with(b"inotify ") {
            kind.inotify()
                .ok_or_else(|| at.bad("lines of two kinds"))?
                .push(inotify(at, line)?);
            continue;
        }
        if line.starts_with(b"fanotify ") {
            let lines = kind.fanotify().ok_or_else(|| at.bad("lines of two kinds"))?;
            lines.extend_from_slice(line);
            lines.push(b'\n');
            continue;
        }
        let Some((key, value)) = split_once(line, b':') else {
            continue;
        };
        let value = value.trim_ascii();
        match (key, &mut kind) {
            // Only the first of each is the kernel's; a driver may add what it likes.
            (b"pos", _) if pos.is_none() => pos = Some(position(at, value)?),
            (b"flags", _) if flags.is_none() => flags = Some(at.need(octal(value), "flags")?),
            (b"mnt_id", _) if mnt_id.is_none() => mnt_id = Some(at.decimal(value, "mnt_id")?),
            (b"ino", _) if ino.is_none() => ino = Some(at.decimal(value, "ino")?),
            (b"lock", _) => locks.push(at.need(lock(value), "lock")?),
            (b"scm_fds", Found::Other) => scm_fds = Some(at.decimal(value, "scm_fds")?),
            (b"eventfd-count", Found::Other) => {
                kind = Found::Event {
                    count: at.hex(value, "eventfd-count")?,
                    id: None,
                    semaphore: None,
                };
            }
            (b"eventfd-id", Found::Event { id, .. }) => *id = Some(at.decimal(value, "eventfd-id")?),
            (b"eventfd-semaphore", Found::Event { semaphore, .. }) => {
                *semaphore = Some(at.decimal::<u8>(value, "eventfd-semaphore")? != 0);
            }
            (b"clockid", Found::Other) => {
                kind = Found::Timer(TimerFields {
                    clock: at.decimal(value, "clockid")?,
                    ..TimerFields::default()
                });
            }
            (b"ticks", Found::Timer(timer)) => timer.ticks = Some(at.decimal(value, "ticks")?),
            (b"settime flags", Found::Timer(timer)) => timer.flags = Some(at.need(octal(value), "settime flags")?),
            (b"it_value", Found::Timer(timer)) => timer.value = Some(at.need(nanoseconds(value), "it_value")?),
            (b"it_interval", Found::Timer(timer)) => {
                timer.interval = Some(at.need(nanoseconds(value), "it_interval")?);
            }
            (b"sigmask", Found::Other) => {
                let mask = hex(value).filter(|_| value.len() == 16);
                kind = Found::Done(FdInfoKind::SignalFd {
                    mask: at.need(mask, "sigmask")?,
                });
            }
            (b"tfd", Found::Other) => kind = Found::Epoll(vec![epoll(at, line)?]),
            (b"tfd", Found::Epoll(watches)) => watches.push(epoll(at, line)?),
            (b"Pid", Found::Other) => {
                kind = Found::Pid {
                    pid: at.decimal(value, "Pid")?,
                    ns_pid: None,
                }
            }
            (b"NSpid", Found::Pid { ns_pid, .. }) => {
                *ns_pid = Some(
                    words(value)
                        .map(|word| at.decimal(word, "NSpid"))
                        .collect::<io::Result<_>>()?,
                );
            }
            (b"tty-index", Found::Other) => {
                kind = Found::Done(FdInfoKind::Tty {
                    index: at.decimal(value, "tty-index")?,
                });
            }
            _ => {}
        }
    }
    Ok(FdInfo {
        pos: last.need(pos, "pos")?,
        flags: last.need(flags, "flags")?,
        mnt_id: last.need(mnt_id, "mnt_id")?,
        ino,
        locks,
        scm_fds,
        kind: kind.finish(last)?,
    })
}

/// What has been found about the kind so far.
enum Found {
    Other,
    Event {
        count: u64,
        id: Option<i32>,
        semaphore: Option<bool>,
    },
    Timer(TimerFields),
    Epoll(Vec<EpollWatch>),
    Inotify(Vec<InotifyWatch>),
    Fanotify(Vec<u8>),
    Pid {
        pid: i32,
        ns_pid: Option<Vec<i32>>,
    },
    Done(FdInfoKind),
}

#[derive(Default)]
struct TimerFields {
    clock: i32,
    ticks: Option<u64>,
    flags: Option<i32>,
    value: Option<u64>,
    interval: Option<u64>,
}

impl Found {
    fn inotify(&mut self) -> Option<&mut Vec<InotifyWatch>> {
        if let Self::Other = self {
            *self = Self::Inotify(Vec::new());
        }
        if let Self::Inotify(watches) = self {
            Some(watches)
        } else {
            None
        }
    }

    fn fanotify(&mut self) -> Option<&mut Vec<u8>> {
        if let Self::Other = self {
            *self = Self::Fanotify(Vec::new());
        }
        if let Self::Fanotify(lines) = self {
            Some(lines)
        } else {
            None
        }
    }

    fn finish(self, last: At<'_>) -> io::Result<FdInfoKind> {
        Ok(match self {
            Self::Other => FdInfoKind::Other,
            Self::Event { count, id, semaphore } => FdInfoKind::EventFd { count, id, semaphore },
            Self::Timer(timer) => FdInfoKind::TimerFd {
                clock: timer.clock,
                ticks: last.need(timer.ticks, "ticks")?,
                settime_flags: last.need(timer.flags, "settime flags")?,
                it_value_ns: last.need(timer.value, "it_value")?,
                it_interval_ns: last.need(timer.interval, "it_interval")?,
            },
            Self::Epoll(watches) => FdInfoKind::Epoll(watches),
            Self::Inotify(watches) => FdInfoKind::Inotify(watches),
            Self::Fanotify(lines) => FdInfoKind::Fanotify(lines),
            // A kernel without PID namespaces has the one list that can be.
            Self::Pid { pid, ns_pid } => FdInfoKind::PidFd {
                pid,
                ns_pid: ns_pid.unwrap_or_else(|| vec![pid]),
            },
            Self::Done(kind) => kind,
        })
    }
}

/// A file position, which the kernel writes as a signed number.
fn position(at: At<'_>, text: &[u8]) -> io::Result<u64> {
    at.decimal::<i64>(text, "pos").map(|pos| pos as u64)
}

/// The value after `key` (which ends in a colon) in a line such as `tfd:  4 events: 19`.
fn member<'a>(line: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let key = key.as_bytes();
    let starts = |at: usize| at == 0 || line[at - 1] == b' ';
    let at = line
        .windows(key.len())
        .enumerate()
        .find(|&(at, part)| part == key && starts(at))?
        .0;
    words(&line[at + key.len()..]).next()
}

fn member_hex<T: TryFrom<u64>>(at: At<'_>, line: &[u8], key: &str) -> io::Result<T> {
    at.need(member(line, key).and_then(hex), key)
}

fn epoll(at: At<'_>, line: &[u8]) -> io::Result<EpollWatch> {
    Ok(EpollWatch {
        tfd: at.need(member(line, "tfd:").and_then(decimal), "tfd:")?,
        events: member_hex(at, line, "events:")?,
        data: member_hex(at, line, "data:")?,
        pos: position(at, member(line, "pos:").unwrap_or_default())?,
        ino: member_hex(at, line, "ino:")?,
        sdev: kernel_dev(member_hex(at, line, "sdev:")?),
    })
}

fn inotify(at: At<'_>, line: &[u8]) -> io::Result<InotifyWatch> {
    let mut watch = InotifyWatch {
        wd: member_hex(at, line, "wd:")?,
        ino: member_hex(at, line, "ino:")?,
        sdev: kernel_dev(member_hex(at, line, "sdev:")?),
        mask: member_hex(at, line, "mask:")?,
        ignored_mask: member_hex(at, line, "ignored_mask:")?,
        fhandle_bytes: 0,
        fhandle_type: 0,
        f_handle: Vec::new(),
    };
    if member(line, "fhandle-bytes:").is_some() {
        watch.fhandle_bytes = member_hex(at, line, "fhandle-bytes:")?;
        watch.fhandle_type = member_hex(at, line, "fhandle-type:")?;
        let digits = member(line, "f_handle:").unwrap_or_default();
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| hex(pair).filter(|_| pair.len() == 2))
            .collect();
        let whole = |bytes: &Vec<u8>| u32::try_from(bytes.len()) == Ok(watch.fhandle_bytes);
        watch.f_handle = at.need(bytes.filter(whole), "f_handle")?;
    }
    Ok(watch)
}

/// The text after `lock:`, such as `1: POSIX  ADVISORY  WRITE 5272 fe:00:1001 5 14`.
fn lock(text: &[u8]) -> Option<LockLine> {
    let mut fields = words(text);
    let id = decimal(fields.next()?.strip_suffix(b":")?)?;
    let kind = match fields.next()? {
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"FLOCK" => LockKind::Flock,
        b"LEASE" => LockKind::Lease,
        b"DELEG" => LockKind::Delegation,
        _ => LockKind::Unknown,
    };
    let breaking = fields.next()? == b"BREAKING";
    let (exclusive, unlock) = match fields.next()? {
        b"WRITE" => (true, false),
        b"READ" => (false, false),
        b"UNLCK" => (false, true),
        _ => return None,
    };
    let pid = decimal(fields.next()?)?;
    let (dev, inode) = match fields.next()? {
        b"<none>:0" => ((0, 0), 0),
        place => {
            let (major, place) = split_once(place, b':')?;
            let (minor, inode) = split_once(place, b':')?;
            ((hex(major)?, hex(minor)?), decimal(inode)?)
        }
    };
    let start = decimal(fields.next()?)?;
    let end = match fields.next()? {
        b"EOF" => None,
        end => Some(decimal(end)?),
    };
    Some(LockLine {
        id,
        kind,
        exclusive,
        breaking,
        unlock,
        pid,
        dev,
        inode,
        start,
        end,
    })
}

/// `(seconds, nanoseconds)` as nanoseconds.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let (seconds, part) = split_once(text.strip_prefix(b"(")?.strip_suffix(b")")?, b',')?;
    let part: u64 = decimal(part.trim_ascii())?;
    decimal::<u64>(seconds)?
        .checked_mul(1_000_000_000)?
        .checked_add(part)
        .filter(|_| part < 1_000_000_000)
}
