//! Looking into a mount namespace, and copies of single mounts (open_tree(2)).

use std::ffi::{CStr, CString};
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

/// A copy of a mount in a mount namespace, the one with number `id` at `path` there, without what is mounted on it.
/// Reading from the copy changes no times of access, where that can be had. One that something is mounted over is
/// uncovered in a copy of the namespace.
///
/// # Errors
/// `ESTALE` where no such mount is there; as [`look`], and what open_tree(2) gives; what covers it cannot be unmounted,
/// since the namespace belongs to another user namespace than ours.
pub fn copy(namespace: BorrowedFd<'_>, path: &[u8], id: i32) -> io::Result<File> {
    within(namespace, |task| {
        let on = open_below(root()?.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW);
        let on = match on {
            Ok(on) if mount_of(&on)? == id => on,
            _ => uncover(task, id)?,
        };
        let copy = match clone(&on) {
            // It cannot be mounted elsewhere (MS_UNBINDABLE), but its like in a copy of the namespace can.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => clone(&uncover(task, id)?)?,
            other => other?,
        };
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

/// A copy of the mount that something open is the root of.
fn clone(on: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the path is an empty string that lives as long as the program; the call gives a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, on.as_raw_fd(), c"".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens the root of a mount that others lie over, in a copy of the mount namespace that this thread is in: it goes
/// there, and unmounts them.
fn uncover(task: &ProcDir, id: i32) -> io::Result<OwnedFd> {
    let stale = || io::Error::from_raw_os_error(libc::ESTALE);
    let mounts = task.mountinfo()?;
    let find = |id: i32| mounts.iter().find(|mount| mount.id == id);
    // The mount and those it lies on, the root first.
    let mut chain = vec![find(id).ok_or_else(stale)?];
    while let Some(parent) = chain
        .last()
        .and_then(|last| find(last.parent).filter(|parent| parent.id != last.id))
    {
        if chain.len() > mounts.len() {
            return Err(stale());
        }
        chain.push(parent);
    }
    chain.reverse();
    crate::namespace::new_mount_namespace()?;
    propagate(c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    let mut at: Option<i32> = None;
    for (depth, original) in chain.iter().enumerate() {
        let point = original.mount_point.as_slice();
        // Its like in the copy: no two lie at one place of the same mount.
        let copies = task.mountinfo()?;
        let is_root = |mount: &Mount| mount.parent == mount.id || !copies.iter().any(|other| other.id == mount.parent);
        let like = copies.iter().find(|mount| match at {
            None => is_root(mount),
            Some(parent) => mount.parent == parent && mount.mount_point == point && mount.id != parent,
        });
        let like = like.ok_or_else(stale)?.id;
        at = Some(like);
        let last = depth + 1 == chain.len();
        let next = chain.get(depth + 1).map(|next| next.mount_point.as_slice());
        // What lies over all of it, or over a directory on the way to the next, has to go.
        let in_the_way = |mount: &&Mount| {
            let leads = |to: &[u8]| is_within(to, &mount.mount_point);
            let further = next.is_some_and(|next| leads(next) && mount.mount_point != next);
            mount.parent == like
                && mount.id != like
                && (mount.mount_point == point && (last || next != Some(point)) || further)
        };
        let mut covering: Vec<&Mount> = copies.iter().filter(in_the_way).collect();
        // One that lies further down is seen once those above it are gone.
        covering.sort_by_key(|mount| mount.mount_point.len());
        for mount in covering {
            let place = std::ffi::CString::new(mount.mount_point.clone())?;
            // The one that is seen there is the topmost; the one in the way goes last.
            loop {
                let seen = open_below(root()?.as_fd(), &mount.mount_point, OFlags::PATH | OFlags::NOFOLLOW)?;
                let seen = mount_of(&seen)?;
                // SAFETY: the string is NUL-terminated; nothing but this thread's copy of the namespace changes.
                let rc = unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
                if rc < 0 {
                    return Err(io::Error::last_os_error());
                }
                if seen == mount.id {
                    break;
                }
            }
        }
    }
    let path = chain.last().map_or(&b"/"[..], |mount| mount.mount_point.as_slice());
    let on = open_below(root()?.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW)?;
    match at == Some(mount_of(&on)?) {
        true => Ok(on),
        false => Err(stale()),
    }
}

/// Whether a path is that of a directory, or of something in it.
fn is_within(path: &[u8], directory: &[u8]) -> bool {
    let rest = path.strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Sets what mounts at a path show of others (MS_PRIVATE and the like).
fn propagate(path: &std::ffi::CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated, and the kernel ignores the other pointers for these flags.
    let rc = unsafe {
        libc::mount(
            std::ptr::null(),
            path.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What a mount shows of what is mounted elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nothing.
    Private,
    /// It begins a group of mounts that show each other's, of which it is the first.
    Shared,
    /// It goes on to show what is mounted in the group it was in, and shows its own there no more.
    Slave,
}

/// Sets that of one mount, which may be in any mount namespace that we have power over.
///
/// # Errors
/// What mount(2) gives.
pub fn set_propagation(mount: BorrowedFd<'_>, to: Propagation) -> io::Result<()> {
    let path = std::ffi::CString::new(format!("/proc/thread-self/fd/{}", mount.as_raw_fd()))?;
    let flags = match to {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
    };
    propagate(&path, flags)
}

/// Has a private mount be in the group that another one of the same file system is in, and follow what that follows.
///
/// # Errors
/// `EINVAL` where that shows less of the file system, or is in no group; otherwise what move_mount(2) gives.
pub fn join_group(mount: BorrowedFd<'_>, of: BorrowedFd<'_>) -> io::Result<()> {
    /// MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH and MOVE_MOUNT_SET_GROUP.
    const FLAGS: libc::c_uint = 4 | 0x40 | 0x100;
    let (from, to) = (of.as_raw_fd(), mount.as_raw_fd());
    // SAFETY: both paths are empty strings that live as long as the program; no memory or descriptor changes.
    let rc = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), FLAGS) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A new mount of a file system, mounted nowhere, opened with O_PATH: of this type and with these options, of which some
/// have no value.
///
/// # Errors
/// What fsopen(2), fsconfig(2) and fsmount(2) give.
pub fn detached(kind: &CStr, options: &[(CString, Option<CString>)]) -> io::Result<OwnedFd> {
    const FSCONFIG_SET_FLAG: libc::c_uint = 0;
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const CLOEXEC: libc::c_uint = 1;
    let made = |fd: libc::c_long| match fd {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, and nobody else owns it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    };
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let context = made(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let configure = |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        let fd = context.as_raw_fd();
        // SAFETY: key and value are NUL-terminated strings that outlive the call, or null where the command takes none.
        match unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) } {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    let none = std::ptr::null();
    for (key, value) in options {
        match value {
            Some(value) => configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?,
            None => configure(FSCONFIG_SET_FLAG, key.as_ptr(), none)?,
        }
    }
    configure(FSCONFIG_CMD_CREATE, none, none)?;
    // SAFETY: the call takes numbers only.
    made(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })
}

/// Device number (major, minor) of the sysfs that shows the network namespace this thread is in.
///
/// # Errors
/// The kernel lets us mount none.
pub fn device_of_sysfs() -> io::Result<(u32, u32)> {
    let device = rustix::fs::fstat(detached(c"sysfs", &[])?)?.st_dev;
    Ok((rustix::fs::major(device), rustix::fs::minor(device)))
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
