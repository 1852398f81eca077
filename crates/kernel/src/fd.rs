//! What there is to ask and set about open file descriptions beyond the ordinary calls.

use std::cmp::Ordering;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Most descriptors that are sent at a time; the kernel allows 253 (SCM_MAX_FD).
pub const SENT_TOGETHER: usize = 100;

/// Sends a byte through a UNIX socket, with up to [`SENT_TOGETHER`] descriptors. Never waits.
///
/// # Errors
/// EAGAIN where the other side is behind, EPIPE where it is closed, [`io::ErrorKind::InvalidInput`] for more
/// descriptors.
pub fn send_descriptors(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_TOGETHER))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &[IoSlice::new(b"+")], &mut control, flags))?;
    Ok(())
}

/// Has a descriptor of ours be open on what another one is open on; it keeps its number, and is closed on exec.
pub fn replace(fd: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: dup3 touches no memory. The number stays open the whole time, so that whoever owns it goes on doing so.
    let rc = unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// kcmp(2) with KCMP_FILE: how two descriptors' open file descriptions compare. `Equal` is the same description; the
/// order is arbitrary but consistent, so that it can be sorted by.
pub fn compare_files(pid: i32, fd: i32, other_pid: i32, other_fd: i32) -> io::Result<Ordering> {
    const KCMP_FILE: libc::c_int = 0;
    kcmp(pid, other_pid, KCMP_FILE, fd, other_fd)
}

/// kcmp(2) with KCMP_FILES: how two tasks' descriptor tables compare, as in [`compare_files`].
pub fn compare_tables(pid: i32, other_pid: i32) -> io::Result<Ordering> {
    const KCMP_FILES: libc::c_int = 2;
    kcmp(pid, other_pid, KCMP_FILES, 0, 0)
}

fn kcmp(pid: i32, other_pid: i32, kind: libc::c_int, index: i32, other_index: i32) -> io::Result<Ordering> {
    let (index, other_index) = (index as libc::c_ulong, other_index as libc::c_ulong);
    // SAFETY: with these two kinds kcmp takes five numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pid, other_pid, kind, index, other_index) };
    match checked(result as libc::c_int)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::other("kcmp(2) gives no order")),
    }
}

/// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP, and who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// Thread, process or process group; zero for none.
    pub id: i32,
}

/// The kernel's `struct f_owner_ex`.
#[repr(C)]
struct OwnerEx {
    kind: libc::c_int,
    id: libc::pid_t,
}

const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;
const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;

/// F_GETOWN_EX: who gets signals about the file.
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<Owner> {
    let mut raw = OwnerEx { kind: 0, id: 0 };
    // SAFETY: F_GETOWN_EX stores one struct f_owner_ex, which `raw` is laid out as.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &mut raw) })?;
    Ok(Owner {
        kind: raw.kind,
        id: raw.id,
    })
}

/// F_SETOWN_EX.
pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    let raw = OwnerEx {
        kind: owner.kind,
        id: owner.id,
    };
    // SAFETY: F_SETOWN_EX reads one struct f_owner_ex, which `raw` is laid out as.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw) }).map(drop)
}

/// F_GETSIG: the signal sent instead of SIGIO; zero for SIGIO.
pub fn owner_signal(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GETSIG takes no argument.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// F_SETSIG.
pub fn set_owner_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: F_SETSIG takes a number.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// A record lock: `length` zero is to the end of the file, wherever that is.
fn record_lock(exclusive: bool, start: u64, length: u64) -> libc::flock {
    // SAFETY: struct flock is numbers only, for which all zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = (if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }) as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start as libc::off_t;
    lock.l_len = length as libc::off_t;
    lock
}

/// F_OFD_SETLK: takes a record lock for the open file description, without waiting.
pub fn lock_description(fd: BorrowedFd<'_>, exclusive: bool, start: u64, length: u64) -> io::Result<()> {
    const F_OFD_SETLK: libc::c_int = 37;
    let lock = record_lock(exclusive, start, length);
    // SAFETY: F_OFD_SETLK reads one struct flock, and `lock` is one with l_pid zero, as required.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_OFD_SETLK, &lock) }).map(drop)
}

/// The kernel's `struct flock`, for F_SETLK.
pub fn record_lock_bytes(exclusive: bool, start: u64, length: u64) -> Vec<u8> {
    let lock = record_lock(exclusive, start, length);
    let mut bytes = vec![0u8; size_of::<libc::flock>()];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(std::mem::offset_of!(libc::flock, l_type), &lock.l_type.to_ne_bytes());
    put(
        std::mem::offset_of!(libc::flock, l_whence),
        &lock.l_whence.to_ne_bytes(),
    );
    put(std::mem::offset_of!(libc::flock, l_start), &lock.l_start.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_len), &lock.l_len.to_ne_bytes());
    bytes
}

/// TIOCGDEV: the device number of the terminal behind a descriptor, also behind one of /dev/tty, in the encoding that
/// /proc/PID/stat has.
pub fn terminal_device(fd: BorrowedFd<'_>) -> io::Result<i32> {
    const TIOCGDEV: libc::Ioctl = 0x8004_5432; // _IOR('T', 0x32, unsigned int)
    let mut device: libc::c_uint = 0;
    // SAFETY: TIOCGDEV stores one unsigned int, and `device` is one.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCGDEV, &mut device) })?;
    Ok(device as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn descriptions_compare() {
        let (one, other) = std::io::pipe().unwrap();
        let same = one.try_clone().unwrap();
        let pid = std::process::id() as i32;
        let compare = |a: i32, b: i32| compare_files(pid, a, pid, b).unwrap();
        assert_eq!(compare(one.as_raw_fd(), same.as_raw_fd()), Ordering::Equal);
        let order = compare(one.as_raw_fd(), other.as_raw_fd());
        assert_ne!(order, Ordering::Equal);
        assert_eq!(compare(other.as_raw_fd(), one.as_raw_fd()), order.reverse());
        assert_eq!(compare_tables(pid, pid).unwrap(), Ordering::Equal);
    }

    #[test]
    fn owners_and_signals() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let wanted = Owner {
            kind: 1,
            id: std::process::id() as i32,
        };
        set_owner(reader.as_fd(), wanted).unwrap();
        set_owner_signal(reader.as_fd(), libc::SIGUSR1).unwrap();
        assert_eq!(owner(reader.as_fd()).unwrap(), wanted);
        assert_eq!(owner_signal(reader.as_fd()).unwrap(), libc::SIGUSR1);
    }

    #[test]
    fn description_locks_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let again = std::fs::File::options()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap();
        lock_description(file.as_file().as_fd(), true, 10, 5).unwrap();
        assert!(lock_description(again.as_fd(), false, 14, 0).is_err());
        lock_description(again.as_fd(), true, 15, 0).unwrap();
        assert_eq!(record_lock_bytes(true, 3, 4).len(), size_of::<libc::flock>());
    }
}
