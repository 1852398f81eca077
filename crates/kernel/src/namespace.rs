//! User, PID, mount and IPC namespaces: setting a new one up from inside, and joining those of another process.

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::spawn::Namespaces;

/// Whether this process has CAP_SYS_ADMIN in its user namespace, and so may make namespaces without a new user
/// namespace.
pub fn is_admin() -> bool {
    has_capability(rustix::thread::CapabilitySet::SYS_ADMIN)
}

/// Whether this process may choose the PIDs of new processes (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
pub fn may_choose_pids() -> bool {
    is_admin() || has_capability(rustix::thread::CapabilitySet::CHECKPOINT_RESTORE)
}

/// Whether this process has CAP_SYS_ADMIN in the first user namespace: power over the machine and not only over
/// namespaces of its own.
pub fn is_admin_of_machine() -> bool {
    /// PROC_USER_INIT_INO of <linux/proc_ns.h>, fixed.
    const FIRST: u64 = 0xEFFF_FFFD;
    is_admin() && rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == FIRST)
}

fn has_capability(capability: rustix::thread::CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Maps `uid` and `gid` to themselves in the new user namespace this process is in, and nothing else.
pub fn map_only(uid: u32, gid: u32) -> io::Result<()> {
    // One write each: the kernel takes a map only whole.
    let write = |path: &str, text: String| OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
    write("/proc/self/setgroups", "deny".to_string())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all strings are NUL-terminated and outlive the call; `kind` may be null where the flags need no type.
    let rc = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, std::ptr::null()) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Keeps mounts made here from showing in the namespace we came from; mounts made there still arrive here.
pub fn make_mounts_slave() -> io::Result<()> {
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_SLAVE)
}

/// Mounts a `/proc` of our own PID namespace over the present one.
pub fn mount_proc() -> io::Result<()> {
    mount(
        c"proc",
        c"/proc",
        Some(c"proc"),
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
    )
}

/// Mounts the file system of our IPC namespace's POSIX message queues at `/dev/mqueue`.
pub fn mount_mqueue() -> io::Result<()> {
    mount(
        c"mqueue",
        c"/dev/mqueue",
        Some(c"mqueue"),
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
    )
}

/// Moves this process into a new mount namespace. It must have one thread.
pub fn new_mount_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS gives this thread a mount namespace (and file system information) of its own; no memory or
    // descriptor changes.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Joins namespaces of the process behind `fd`, a pidfd, or the one namespace that it is. A joined PID namespace is
/// that of children made from now on.
pub fn join(fd: BorrowedFd<'_>, which: Namespaces) -> io::Result<()> {
    // SAFETY: setns changes namespaces of this thread; it touches no memory and no descriptor.
    let rc = unsafe { libc::setns(fd.as_raw_fd(), which.flags()) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Identity (device and inode) of a namespace of a process: `user`, `pid`, `mnt` or `ipc`; for `self`, of this process.
pub fn identity(pid: &str, kind: &str) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(format!("/proc/{pid}/ns/{kind}"))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The namespace around a PID or user namespace.
///
/// # Errors
/// `EPERM` where that is outside our own.
pub fn parent(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// NS_GET_PARENT of <linux/nsfs.h>.
    const NS_GET_PARENT: libc::c_ulong = 0xb702;
    related(namespace, NS_GET_PARENT)
}

/// The user namespace that a namespace belongs to.
///
/// # Errors
/// `EPERM` where that is outside our own.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// NS_GET_USERNS of <linux/nsfs.h>.
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    related(namespace, NS_GET_USERNS)
}

/// The user who has made a user namespace, by the number that our own has for him.
pub fn maker(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    /// NS_GET_OWNER_UID of <linux/nsfs.h>.
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
    let mut uid: libc::uid_t = 0;
    // SAFETY: this request of nsfs writes one uid_t to the address given, which is that of a local one.
    let rc = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(uid)
}

fn related(namespace: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<OwnedFd> {
    // SAFETY: the requests of nsfs given here take no argument and give a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A kind of namespace that any thread can go into by itself, whatever the others of its process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// System V objects and POSIX message queues.
    Ipc,
    /// Interfaces, addresses, ports.
    Network,
    /// What is seen as the root of control groups.
    Cgroup,
}

impl Place {
    /// Its CLONE_NEW* flag.
    pub fn flag(self) -> libc::c_int {
        match self {
            Place::Ipc => libc::CLONE_NEWIPC,
            Place::Network => libc::CLONE_NEWNET,
            Place::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }

    /// Its file below /proc/PID/ns.
    pub fn file(self) -> &'static str {
        match self {
            Place::Ipc => "ipc",
            Place::Network => "net",
            Place::Cgroup => "cgroup",
        }
    }

    /// The namespace this thread is in.
    pub fn here(self) -> io::Result<std::fs::File> {
        std::fs::File::open(format!("/proc/thread-self/ns/{}", self.file()))
    }

    /// Moves this thread into a namespace.
    pub fn enter(self, namespace: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: setns changes a namespace of this thread only; it touches no memory and no descriptor.
        let rc = unsafe { libc::setns(namespace.as_raw_fd(), self.flag()) };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Moves this thread into a new namespace.
    pub fn leave(self) -> io::Result<()> {
        // SAFETY: these flags give this thread a namespace of its own; no memory or descriptor changes.
        let rc = unsafe { libc::unshare(self.flag()) };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// Brings the loopback interface of our network namespace up, and with it its addresses.
pub fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is a structure of integers and a union of such, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq at the address given, which is that of a local one that outlives the call.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Moves this process into a new network namespace, with no interface but a loopback that is down. It must have one
/// thread.
pub fn leave_network() -> io::Result<()> {
    Place::Network.leave()
}

/// MOUNT_ATTR_RDONLY of mount_setattr(2).
const ATTRIBUTE_READ_ONLY: u64 = 1;

/// Makes the mount at `path` read-only or writable; `below`: with all mounts below it.
pub fn set_read_only(path: &CStr, read_only: bool, below: bool) -> io::Result<()> {
    // struct mount_attr: set, clear, propagation, user namespace.
    let attributes: [u64; 4] = match read_only {
        true => [ATTRIBUTE_READ_ONLY, 0, 0, 0],
        false => [0, ATTRIBUTE_READ_ONLY, 0, 0],
    };
    let flags = if below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and the kernel reads exactly the size given of `attributes`; both outlive the
    // call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Mounts an empty file system in memory at `path`.
pub fn mount_memory(path: &CStr) -> io::Result<()> {
    mount(c"none", path, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)
}

/// Mounts a file system over the directory `lower` that shows what is in it, and takes all changes into the directory
/// `upper`; `work` is an empty directory beside `upper`. Both are names relative to the working directory.
pub fn mount_overlay(lower: BorrowedFd<'_>, upper: &str, work: &str) -> io::Result<()> {
    let place = CString::new(format!("/proc/self/fd/{}", lower.as_raw_fd()))?;
    let options = CString::new(format!(
        "lowerdir=/proc/self/fd/{},upperdir={upper},workdir={work}",
        lower.as_raw_fd()
    ))?;
    // SAFETY: all strings are NUL-terminated and outlive the call; overlayfs takes its data as such a string.
    let rc = unsafe {
        libc::mount(
            c"overlay".as_ptr(),
            place.as_ptr(),
            c"overlay".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            options.as_ptr().cast(),
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Shows what is mounted at `from`, with all mounts below it, at the directory or file `to`, too.
pub fn bind(from: BorrowedFd<'_>, to: &CStr) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", from.as_raw_fd()))?;
    mount(&from, to, None, libc::MS_BIND | libc::MS_REC)
}

/// Takes the mount at `path` out of sight; it lives on as long as something in it is in use.
pub fn detach_mount(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let rc = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
