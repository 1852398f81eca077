//! What eventfd, timerfd, signalfd, epoll, inotify and fanotify descriptors need beyond the ordinary calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// signalfd4(2) with a new descriptor; bit n-1 of `mask` for signal n. The result is close-on-exec.
pub fn signalfd(mask: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | if nonblocking { libc::SFD_NONBLOCK } else { 0 };
    let new: libc::c_int = -1;
    // SAFETY: the kernel reads an 8-byte signal set, the size passed, from `mask`, which lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, new, &mask, size_of::<u64>(), flags) };
    let fd = checked(fd as libc::c_int)?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One registration with an epoll set.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    /// What is registered.
    pub file: BorrowedFd<'a>,
    /// The descriptor number it is registered under.
    pub number: i32,
    /// EPOLL* bits.
    pub events: u32,
    /// What epoll_wait(2) gives back.
    pub data: u64,
}

/// Registers files with an epoll set under any descriptor numbers, whatever has these here: in a thread with a table of
/// descriptors of its own, which ends.
///
/// # Errors
/// The thread cannot be started, or the kernel takes no registration.
pub fn register_under_numbers(set: BorrowedFd<'_>, registrations: &[Registration<'_>]) -> io::Result<()> {
    let work = || -> io::Result<()> {
        // SAFETY: the thread has been started for this, and from here on uses descriptors by number only: those that
        // are owned elsewhere are not closed by it, since the table is its own.
        checked(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        for registration in registrations {
            let number = registration.number;
            // SAFETY: F_DUPFD and dup2 take numbers; what they put into this table nobody else knows.
            let (set, file) = unsafe {
                let above = number.saturating_add(1);
                let set = checked(libc::fcntl(set.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above))?;
                let file = checked(libc::fcntl(registration.file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above))?;
                (set, file)
            };
            let mut event = libc::epoll_event {
                events: registration.events,
                u64: registration.data,
            };
            // What the number stands for in this table is not needed any more, unless it is to be registered later.
            // SAFETY: numbers again, of this thread's own table.
            let kept = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, number.saturating_add(1)) };
            // SAFETY: dup2 takes numbers; epoll_ctl reads `event`, which lives through the call.
            unsafe {
                checked(libc::dup2(file, number))?;
                checked(libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, number, &raw mut event))?;
                if kept >= 0 {
                    checked(libc::dup2(kept, number))?;
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// TFD_IOC_SET_TICKS: how many expirations the next read reports. Zero is refused by the kernel.
pub fn set_timer_ticks(timer: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400; // _IOW('T', 0, __u64)
    // SAFETY: the request reads one u64, and `ticks` is one.
    checked(unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &ticks) }).map(drop)
}

/// INOTIFY_IOC_SETNEXTWD: the watch descriptor the next new watch gets.
pub fn set_next_watch(inotify: BorrowedFd<'_>, wd: i32) -> io::Result<()> {
    const INOTIFY_IOC_SETNEXTWD: libc::Ioctl = 0x4004_4900; // _IOW('I', 0, __s32)
    // SAFETY: the request takes the number itself as its argument and touches no memory.
    checked(unsafe { libc::ioctl(inotify.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, libc::c_long::from(wd)) }).map(drop)
}

/// inotify_add_watch(2) with the mask as the kernel shows it.
pub fn add_watch(inotify: BorrowedFd<'_>, path: &[u8], mask: u32) -> io::Result<i32> {
    let path = CString::new(path)?;
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    checked(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })
}

/// fanotify_init(2) with flags as the kernel shows them. The result is close-on-exec, whatever they say.
pub fn fanotify_init(flags: u32, event_flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: fanotify_init(2) takes numbers only.
    let fd = checked(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// fanotify_mark(2) of a path.
pub fn fanotify_mark(group: BorrowedFd<'_>, flags: u32, mask: u64, path: &[u8]) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    checked(unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) }).map(drop)
}

/// Reads events of a fanotify group that has some, and closes the descriptors that come with them. How many there were.
pub fn discard_fanotify(group: BorrowedFd<'_>) -> io::Result<usize> {
    /// Bytes of `struct fanotify_event_metadata`, and where its descriptor is.
    const METADATA: usize = 24;
    const DESCRIPTOR: usize = 16;
    let mut buffer = vec![0u8; 4096];
    let length = rustix::io::read(group, buffer.as_mut_slice())?;
    let mut rest = buffer.get(..length).unwrap_or_default();
    let mut count = 0;
    while let Some(metadata) = rest.first_chunk::<METADATA>() {
        let word = |at: usize| u32::from_ne_bytes([metadata[at], metadata[at + 1], metadata[at + 2], metadata[at + 3]]);
        let fd = word(DESCRIPTOR) as libc::c_int;
        if fd >= 0 {
            // SAFETY: the kernel just made this descriptor for whoever reads the event, which is us alone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        count += 1;
        rest = rest.get((word(0) as usize).max(METADATA)..).unwrap_or_default();
    }
    Ok(count)
}

/// open_by_handle_at(2) with O_PATH: the file of `handle` on the file system that `mount` is on.
pub fn open_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    // struct file_handle: u32 handle_bytes, int handle_type, then the handle. u64 elements keep it aligned.
    let mut raw = vec![0u64; (8 + handle.len()).div_ceil(8)];
    let words = [handle.len() as u32, kind as u32];
    raw[0] = u64::from_ne_bytes({
        let mut first = [0u8; 8];
        first[..4].copy_from_slice(&words[0].to_ne_bytes());
        first[4..].copy_from_slice(&words[1].to_ne_bytes());
        first
    });
    for (slot, chunk) in raw[1..].iter_mut().zip(handle.chunks(8)) {
        let mut bytes = [0u8; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *slot = u64::from_ne_bytes(bytes);
    }
    // SAFETY: `raw` holds a struct file_handle whose handle_bytes is no longer than what follows it, and the call only
    // reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            raw.as_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let fd = checked(fd as libc::c_int)?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether descriptor `fd` of process `pid` is the open file description that `epoll` has registered under number
/// `registered`, the one with `offset` registrations of that number before it (kcmp(2), KCMP_EPOLL_TFD).
pub fn is_registered(pid: i32, fd: i32, epoll: BorrowedFd<'_>, registered: i32, offset: u32) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: libc::c_int = 7;
    #[repr(C)]
    struct EpollSlot {
        epoll: u32,
        registered: u32,
        offset: u32,
    }
    let slot = EpollSlot {
        epoll: epoll.as_raw_fd() as u32,
        registered: registered as u32,
        offset,
    };
    let own = std::process::id() as libc::c_int;
    // SAFETY: for KCMP_EPOLL_TFD the kernel reads one struct kcmp_epoll_slot, which `slot` is laid out as.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pid, own, KCMP_EPOLL_TFD, fd, &slot as *const EpollSlot) };
    checked(result as libc::c_int).map(|order| order == 0)
}

/// The kernel's `struct epoll_event`.
pub fn epoll_event(events: u32, data: u64) -> Vec<u8> {
    let mut bytes = events.to_ne_bytes().to_vec();
    if !cfg!(target_arch = "x86_64") {
        bytes.extend_from_slice(&[0; 4]); // packed on x86-64 only
    }
    bytes.extend_from_slice(&data.to_ne_bytes());
    bytes
}

/// EPOLL_CTL_ADD of the caller's own descriptor `fd`.
pub fn epoll_add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event, and `event` is one.
    checked(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn kcmp_tells_registered_descriptions_apart() {
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let (one, other) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        epoll_add(epoll.as_fd(), one.0.as_fd(), libc::EPOLLIN as u32, 5).unwrap();
        let pid = std::process::id() as i32;
        let same = rustix::io::dup(&one.0).unwrap();
        let tfd = one.0.as_raw_fd();
        assert!(is_registered(pid, tfd, epoll.as_fd(), tfd, 0).unwrap());
        assert!(is_registered(pid, same.as_raw_fd(), epoll.as_fd(), tfd, 0).unwrap());
        assert!(!is_registered(pid, other.0.as_raw_fd(), epoll.as_fd(), tfd, 0).unwrap());
        assert!(is_registered(pid, tfd, epoll.as_fd(), tfd, 1).is_err());
        assert_eq!(epoll_event(1, 2).len(), size_of::<libc::epoll_event>());
    }

    #[test]
    fn signals_and_ticks() {
        let fd = signalfd(1 << (libc::SIGUSR1 - 1), true).unwrap();
        assert_eq!(rustix::io::read(&fd, &mut [0u8; 128]), Err(rustix::io::Errno::AGAIN));
        let timer = rustix::time::timerfd_create(
            rustix::time::TimerfdClockId::Monotonic,
            rustix::time::TimerfdFlags::CLOEXEC,
        )
        .unwrap();
        set_timer_ticks(timer.as_fd(), 7).unwrap();
        let mut ticks = [0u8; 8];
        rustix::io::read(&timer, &mut ticks).unwrap();
        assert_eq!(u64::from_ne_bytes(ticks), 7);
    }

    #[test]
    fn watches_get_the_numbers_asked_for() {
        let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        set_next_watch(inotify.as_fd(), 41).unwrap();
        assert_eq!(add_watch(inotify.as_fd(), b"/tmp", libc::IN_CREATE).unwrap(), 41);
    }
}
