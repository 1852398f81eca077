//! Looking into a mount namespace, and copies of single mounts (open_tree(2)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};

use crate::proc::{Mount, ProcDir};

/// OPEN_TREE_CLONE of <linux/mount.h>.
const OPEN_TREE_CLONE: libc::c_uint = 1;
/// MOUNT_ATTR_NOATIME and MOUNT_ATTR_NODIRATIME; MOUNT_ATTR__ATIME, all that NOATIME is one of.
const UNTOUCHED: u64 = 0x10 | 0x80;
const TIMES: u64 = 0x70;

/// Does something in a mount namespace, by a thread that lives no longer. It must be ours to enter (CAP_SYS_ADMIN over
/// it). `act` is given the thread's directory in our own /proc: the one in there is whatever was mounted.
///
/// # Errors
/// What setns(2), the start of the thread and `act` give.
fn within<T: Send>(namespace: BorrowedFd<'_>, act: impl FnOnce(&ProcDir) -> io::Result<T> + Send) -> io::Result<T> {
    let own = std::process::id() as i32;
    let visit = move || {
        let task = ProcDir::open_task(own, rustix::thread::gettid().as_raw_nonzero().get())?;
        // SAFETY: both calls change only what this thread alone has from then on: its directories and its mount
        // namespace; no memory or descriptor changes.
        let rc = unsafe {
            match libc::unshare(libc::CLONE_FS) {
                0 => libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS),
                error => error,
            }
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        act(&task)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cpr-visit".to_owned());
        let result = thread.spawn_scoped(scope, visit)?.join();
        result.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

fn root() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/", flags, Mode::empty())?)
}

/// The root directory of a mount namespace (with O_PATH), and all that is mounted in it.
///
/// # Errors
/// It is not ours to enter, or no thread can be started.
pub fn look(namespace: BorrowedFd<'_>) -> io::Result<(OwnedFd, Vec<Mount>)> {
    within(namespace, |task| Ok((root()?, task.mountinfo()?)))
}

/// Opens `path` as a process whose root directory is `root` would, through symbolic links, too, but for those of /proc.
///
/// # Errors
/// What openat2(2) gives.
pub fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// The number that mountinfo has for the mount that something open lies on.
///
/// # Errors
/// What statx(2) gives.
pub fn mount_of(file: impl AsFd) -> io::Result<i32> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    i32::try_from(found.stx_mnt_id).map_err(io::Error::other)
}

/// A copy of the mount that `path` leads to in a mount namespace, without what is mounted on it. Its number there must
/// be `id`. Reading from the copy changes no times of access, where that can be had.
///
/// # Errors
/// `ESTALE` where another mount is there; otherwise as [`look`], and what open_tree(2) gives.
pub fn copy(namespace: BorrowedFd<'_>, path: &[u8], id: i32) -> io::Result<File> {
    within(namespace, |_| {
        let on = open_below(root()?.as_fd(), path, OFlags::PATH)?;
        if mount_of(&on)? != id {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
        // SAFETY: the path is an empty string that lives as long as the program; the call gives a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, on.as_raw_fd(), c"".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, and nobody else owns it.
        let copy = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // struct mount_attr: set, clear, propagation, user namespace.
        let attributes: [u64; 4] = [UNTOUCHED, TIMES, 0, 0];
        // SAFETY: the kernel reads exactly the size given of `attributes`, and a string that is NUL-terminated. Where
        // it refuses (the owner of the mount has locked its times), nothing is changed.
        unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                copy.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&copy, ".", flags, Mode::empty())?.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_shows_its_root_and_mounts() {
        let own = File::open("/proc/self/ns/mnt").unwrap();
        if !crate::namespace::is_admin() {
            assert_eq!(look(own.as_fd()).unwrap_err().raw_os_error(), Some(libc::EPERM));
            return;
        }
        let (root, mounts) = look(own.as_fd()).unwrap();
        let shell = open_below(root.as_fd(), b"/bin/sh", OFlags::PATH).unwrap();
        let id = mount_of(&shell).unwrap();
        assert!(mounts.iter().any(|mount| mount.id == id), "{id} of {mounts:?}");
    }
}
