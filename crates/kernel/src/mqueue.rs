//! POSIX message queues of the IPC namespace this process is in.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// Attributes of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Most messages it holds.
    pub max_messages: i64,
    /// Most bytes in a message.
    pub message_size: i64,
    /// Messages in it now.
    pub messages: i64,
}

/// The kernel's `struct mq_attr`.
#[repr(C)]
#[derive(Default)]
struct RawAttributes {
    flags: libc::c_long,
    max_messages: libc::c_long,
    message_size: libc::c_long,
    messages: libc::c_long,
    reserved: [libc::c_long; 4],
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

/// Makes a queue, open for both directions. `name` is without the slash of mq_open(3).
pub fn create(name: &[u8], max_messages: i64, message_size: i64) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let attributes = RawAttributes {
        max_messages,
        message_size,
        ..RawAttributes::default()
    };
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the name is NUL-terminated and the attributes a whole `struct mq_attr`; both outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, &attributes) };
    checked(fd).map(owned)
}

/// Takes a queue's name away.
pub fn unlink(name: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    checked(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// Attributes of an open queue.
pub fn attributes(queue: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut raw = RawAttributes::default();
    let none: *const RawAttributes = std::ptr::null();
    // SAFETY: with no new attributes the call only fills `raw`.
    checked(unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), none, &mut raw) })?;
    Ok(Attributes {
        max_messages: raw.max_messages,
        message_size: raw.message_size,
        messages: raw.messages,
    })
}

/// Appends a message; `EAGAIN` when there is no room and `queue` does not block.
pub fn send(queue: BorrowedFd<'_>, priority: u32, data: &[u8]) -> io::Result<()> {
    let forever: *const libc::timespec = std::ptr::null();
    // SAFETY: `data` is readable memory of that length; a null time means no limit.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            data.as_ptr(),
            data.len(),
            priority,
            forever,
        )
    };
    checked(result).map(drop)
}

/// The queues' file system of our IPC namespace, mounted nowhere: names are opened below the descriptor.
pub fn file_system() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    let nothing: *const libc::c_char = std::ptr::null();
    // SAFETY: the name is NUL-terminated.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), FSOPEN_CLOEXEC) };
    let context = checked(context).map(owned)?;
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value.
    let made = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            nothing,
            nothing,
            0,
        )
    };
    checked(made)?;
    // SAFETY: fsmount takes three numbers.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) };
    // fsmount gives an O_PATH descriptor, which cannot be listed.
    let mount = checked(mount).map(owned)?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, ".", flags, rustix::fs::Mode::empty())?)
}

/// Memory that a helper process shares with us.
struct Shared {
    address: *mut u8,
    length: usize,
}

impl Shared {
    fn new(length: usize) -> io::Result<Shared> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = address.cast();
        Ok(Shared { address, length })
    }

    fn word(&self, at: usize) -> u64 {
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&self.bytes(at, 8));
        u64::from_ne_bytes(raw)
    }

    fn bytes(&self, at: usize, length: usize) -> Vec<u8> {
        let mut copy = vec![0; length];
        assert!(at.checked_add(length).is_some_and(|end| end <= self.length));
        // SAFETY: the range lies in the mapping (asserted), and the helper has ended when it is read.
        unsafe { std::ptr::copy_nonoverlapping(self.address.add(at), copy.as_mut_ptr(), length) };
        copy
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new` and nothing refers to it any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// Bytes before the slots: how many messages were taken out, and how many put back.
const HEADER: usize = 16;
/// Bytes before the data of a slot: length and priority.
const SLOT_HEADER: usize = 16;

/// All messages of a queue, in the order they would be received, with their priorities. Nobody else may use the queue
/// meanwhile.
///
/// The kernel lets nobody look at a message without taking it out. That is done by a helper process that blocks all
/// signals, and takes all messages out and puts them back with nothing in between: the death of this process does not
/// disturb it. Should it be killed itself, this process puts the messages back. `queue` must be open for both
/// directions and not block.
pub fn peek_all(queue: BorrowedFd<'_>, deadline: Instant) -> io::Result<Vec<(u32, Vec<u8>)>> {
    let Attributes {
        message_size, messages, ..
    } = attributes(queue)?;
    let (count, size) = (messages.max(0) as usize, message_size.max(0) as usize);
    if count == 0 {
        return Ok(Vec::new());
    }
    let slot = SLOT_HEADER + size.next_multiple_of(8);
    let length = slot.checked_mul(count).and_then(|n| n.checked_add(HEADER));
    let shared = Shared::new(length.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?)?;
    let fd = queue.as_raw_fd();
    let helper = fork_helper(fd, shared.address, count, slot, size)?;
    await_helper(helper, deadline)?;
    let (taken, returned) = (shared.word(0) as usize, shared.word(8) as usize);
    let mut found = Vec::with_capacity(taken);
    for index in 0..taken.min(count) {
        let at = HEADER + index * slot;
        let length = (shared.word(at) as usize).min(size);
        found.push((shared.word(at + 8) as u32, shared.bytes(at + SLOT_HEADER, length)));
    }
    for (priority, data) in found.iter().skip(returned) {
        send(queue, *priority, data)?;
    }
    if found.len() != count {
        return Err(io::Error::other("the queue changed while it was read"));
    }
    Ok(found)
}

/// Starts the helper of [`peek_all`]; gives its PID.
fn fork_helper(fd: i32, memory: *mut u8, count: usize, slot: usize, size: usize) -> io::Result<i32> {
    // SAFETY: a sigset_t of integers may be all zeroes; sigfillset and pthread_sigmask write to locals only.
    let old = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        old
    };
    // SAFETY: a fork by the raw call; the child makes nothing but system calls on memory that was set up before, so
    // locks that another thread of ours held do not matter to it. It has a copy of this stack and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: `memory` is a mapping of HEADER + count * slot bytes, shared with the parent, which reads it only
        // after our end. All ranges below lie in it: index < count, and data of at most `size` bytes follow a slot's
        // header. Words are aligned: slots are multiples of eight.
        unsafe {
            let forever: *const libc::timespec = std::ptr::null();
            let mut taken = 0;
            while taken < count {
                let at = memory.add(HEADER + taken * slot);
                let priority = at.add(8);
                let data = at.add(SLOT_HEADER);
                let n = libc::syscall(libc::SYS_mq_timedreceive, fd, data, size, priority, forever);
                if n < 0 {
                    break;
                }
                at.cast::<u64>().write_volatile(n as u64);
                taken += 1;
                memory.cast::<u64>().write_volatile(taken as u64);
            }
            for index in 0..taken {
                let at = memory.add(HEADER + index * slot);
                let (length, priority) = (
                    at.cast::<u64>().read_volatile(),
                    at.add(8).cast::<u32>().read_volatile(),
                );
                let data = at.add(SLOT_HEADER);
                if libc::syscall(libc::SYS_mq_timedsend, fd, data, length, priority, forever) < 0 {
                    break;
                }
                memory.add(8).cast::<u64>().write_volatile(index as u64 + 1);
            }
            libc::_exit(0);
        }
    }
    let result = checked(pid);
    // SAFETY: puts back the mask read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    result.map(|pid| pid as i32)
}

/// Waits for the helper; at the deadline it is left alone, for it must finish what it does.
fn await_helper(pid: i32, deadline: Instant) -> io::Result<()> {
    // SAFETY: pidfd_open takes two numbers; the child was not waited for, so the PID is its own.
    let pidfd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(owned)?;
    let mut fds = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&mut fds, 1, left.min(60_000) as libc::c_int) } {
            0 if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            n if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                return Err(io::Error::last_os_error());
            }
            1 => break,
            _ => {}
        }
    }
    let mut status = 0;
    // SAFETY: waits for our own child and writes its status to a local.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn all_messages_are_seen_and_stay_in_their_order() {
        let name = format!("cpr-test-{}", std::process::id());
        let queue = create(name.as_bytes(), 5, 100).unwrap();
        unlink(name.as_bytes()).unwrap();
        for (priority, text) in [(1, "a"), (7, "b"), (1, "c"), (7, ""), (0, "e")] {
            send(queue.as_fd(), priority, text.as_bytes()).unwrap();
        }
        let wanted: Vec<(u32, Vec<u8>)> = [(7, "b"), (7, ""), (1, "a"), (1, "c"), (0, "e")]
            .map(|(priority, text)| (priority, text.as_bytes().to_vec()))
            .to_vec();
        for _ in 0..2 {
            let deadline = Instant::now() + Duration::from_secs(60);
            assert_eq!(peek_all(queue.as_fd(), deadline).unwrap(), wanted);
        }
        let opened = rustix::fs::open(
            format!("/proc/self/fd/{}", queue.as_raw_fd()),
            rustix::fs::OFlags::RDWR,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(attributes(opened.unwrap().as_fd()).unwrap().messages, 5);
    }
}
