//! fanotify(7): groups with their marks on files, mounts and file systems.
//!
//! The kernel tells which inode a mark is on as it does for inotify, and a path is found in the same way
//! ([`inotify::resolve`]); a mount is told by its number, a file system by its device. Groups that decide whether
//! others may go on (permission events) are refused: nobody would answer while their job is stopped.
//!
//! Unread events cannot be looked at without taking them. Those of marks on files are refused, as inotify's are. With a
//! mark on a mount or a file system a group hears of everything that is opened there, by whoever takes the checkpoint,
//! too, so that there are always some: a restarted job hears of what happens after the restart.
//!
//! Opening and making files at restart causes events like anything else: [`discard_events`] has to be called last.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cpr_image::model::{ByteString, Fanotify, FanotifyMark, FanotifyMarkKind, InotifyWatch, Object};
use cpr_kernel::event;
use cpr_kernel::proc::{self, FanotifyObject, FdInfoKind, Mount, parse_fanotify};
use cpr_kernel::process::Without;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::kind::Kind;
use super::{Description, RestoreContext, SaveContext, inotify};

/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM and FAN_PRE_ACCESS.
const PERMISSION: u64 = 0x1_0000 | 0x2_0000 | 0x4_0000 | 0x10_0000;
/// FAN_MARK_*
const ADD: u32 = 1;
const MOUNT: u32 = 0x10;
const FILE_SYSTEM: u32 = 0x100;
const IGNORED_MASK: u32 = 0x20;
const SURVIVES_MODIFY: u32 = 0x40;
const EVICTABLE: u32 = 0x200;
const IGNORE: u32 = 0x400;
/// Most events thrown away.
const DISCARDED: usize = 1 << 16;

/// Whether a group can be saved, by the lines of fdinfo.
pub(super) fn kind(lines: &[u8]) -> Kind {
    let unsupported = |reason: &str, hint: Option<&str>| Kind::Unsupported(reason.to_owned(), hint.map(str::to_owned));
    let Ok(group) = parse_fanotify(lines) else {
        return unsupported("fanotify of a kind that is not known", None);
    };
    if group.marks.iter().any(|mark| mark.on == FanotifyObject::Other) {
        return unsupported("a fanotify mark of a kind that is not known", None);
    }
    if group
        .marks
        .iter()
        .any(|mark| (mark.mask | mark.ignored_mask) & PERMISSION != 0)
    {
        return unsupported(
            "fanotify that permits or denies (permission events) is not supported",
            Some("remove these marks before the checkpoint"),
        );
    }
    Kind::Fanotify
}

/// Saves the marks.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when events of marks on files are queued, or when what is marked cannot be found.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let label = description.label();
    let FdInfoKind::Fanotify(lines) = &description.info.kind else {
        return Err(Error::new(ErrorKind::Internal, format!("{label}: no fanotify group")));
    };
    let group = parse_fanotify(lines).context(|| format!("{label}: read its marks"))?;
    let is_inode = |mark: &proc::FanotifyMark| matches!(mark.on, FanotifyObject::Inode(_));
    let queued = rustix::io::ioctl_fionread(&description.handle)
        .map_err(std::io::Error::from)
        .context(|| format!("{label}: look at its queue"))?;
    if queued > 0 && group.marks.iter().all(is_inode) {
        let text = format!("{label}: {queued} bytes of unread fanotify events");
        return Err(Error::new(ErrorKind::Unsupported, text)
            .with_hint("try again when the program has read its fanotify events")
            .passing());
    }
    let holder = context.targets.iter().find(|target| target.pid == description.pid);
    let mounts = holder
        .or(context.targets.first())
        .map(|target| target.proc.mountinfo())
        .transpose()
        .context(|| format!("{label}: list the mounts"))?
        .unwrap_or_default();
    if context.apart.contains_key(&description.pid) && !group.marks.iter().all(is_inode) {
        let text = format!("{label}: a mark on a mount or file system of a mount namespace of the job's own");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let mut marks = Vec::new();
    for mark in &group.marks {
        let (kind, watch) = match &mark.on {
            FanotifyObject::Inode(inode) => {
                let watch = inotify::save_watches(std::slice::from_ref(inode), &mounts, context, &label)?.pop();
                (FanotifyMarkKind::Inode, watch)
            }
            FanotifyObject::Mount(number) => {
                let found = mounts.iter().find(|mount| mount.id == *number as i32);
                // Its path leads to it unless another is mounted there, too.
                let top = |point: &[u8]| {
                    mounts
                        .iter()
                        .rev()
                        .find(|mount| mount.mount_point == point)
                        .map(|top| top.id)
                };
                let found = found.filter(|mount| top(&mount.mount_point) == Some(mount.id));
                (FanotifyMarkKind::Mount, found.map(at_mount))
            }
            FanotifyObject::FileSystem(device) => {
                let found = mounts.iter().find(|mount| mount.dev == *device);
                (FanotifyMarkKind::FileSystem, found.map(at_mount))
            }
            FanotifyObject::Other => (FanotifyMarkKind::Inode, None),
        };
        let watch = watch.ok_or_else(|| {
            let text = format!("{label}: a mark is on a mount that the job does not see");
            Error::new(ErrorKind::Unsupported, text)
        })?;
        marks.push(FanotifyMark {
            kind,
            path: watch.path,
            saved: watch.saved,
            flags: mark.flags,
            mask: mark.mask,
            ignored_mask: mark.ignored_mask,
        });
    }
    Ok(Object::Fanotify(Fanotify {
        flags: group.flags,
        event_flags: group.event_flags,
        marks,
    }))
}

fn at_mount(mount: &Mount) -> InotifyWatch {
    InotifyWatch {
        wd: 0,
        mask: 0,
        path: ByteString(mount.mount_point.clone()),
        saved: None,
    }
}

/// Makes a group with the same marks.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when what is marked is missing, [`ErrorKind::Denied`] for what takes CAP_SYS_ADMIN.
pub fn restore(group: &Fanotify, context: &RestoreContext<'_>) -> Result<OwnedFd> {
    const CAP_SYS_ADMIN: u64 = 21;
    // What a user's image asks for is made with a user's rights.
    let given_up = if context.roots_own { 0 } else { 1 << CAP_SYS_ADMIN };
    let _modest = Without::capabilities(given_up).context(|| "give capabilities up")?;
    make(group, &context.saved)
}

/// Makes a group with the same marks; `saved` are the saved files of the image.
///
/// # Errors
/// As [`restore`].
pub fn make(group: &Fanotify, saved: &[OwnedFd]) -> Result<OwnedFd> {
    let fd = event::fanotify_init(group.flags, group.event_flags)
        .context(|| "make a fanotify group")
        .map_err(|e| match e.kind() {
            ErrorKind::Denied => e.with_hint("such a group takes CAP_SYS_ADMIN: restart as root"),
            _ => e,
        })?;
    // The kernel shows the newest first.
    for mark in group.marks.iter().rev() {
        let what = || format!("mark {} with fanotify", mark.path);
        let path = match mark.saved {
            None => mark.path.0.clone(),
            Some(id) => {
                let file = saved.get(id.index());
                let file = file.ok_or_else(|| Error::new(ErrorKind::Damaged, "the image has no such saved file"))?;
                format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes()
            }
        };
        let on = match mark.kind {
            FanotifyMarkKind::Inode => 0,
            FanotifyMarkKind::Mount => MOUNT,
            FanotifyMarkKind::FileSystem => FILE_SYSTEM,
        };
        let add = |flags: u32, mask: u64| {
            event::fanotify_mark(fd.as_fd(), ADD | on | flags | mark.flags & EVICTABLE, mask, &path)
                .context(what)
                .map_err(|e| match e.kind() {
                    ErrorKind::NotFound => e.with_kind(ErrorKind::Incompatible),
                    ErrorKind::Denied => e.with_hint("such a mark takes CAP_SYS_ADMIN: restart as root"),
                    _ => e,
                })
        };
        if mark.mask != 0 {
            add(0, mark.mask)?;
        }
        if mark.ignored_mask != 0 {
            let ignored = if mark.flags & IGNORE != 0 { IGNORE } else { IGNORED_MASK };
            add(ignored | mark.flags & SURVIVES_MODIFY, mark.ignored_mask)?;
        }
    }
    Ok(fd)
}

/// Throws away the events that restart itself has caused.
///
/// # Errors
/// The group cannot be read.
pub fn discard_events(group: BorrowedFd<'_>) -> Result<()> {
    let mut left = DISCARDED;
    while left > 0
        && rustix::io::ioctl_fionread(group)
            .map_err(std::io::Error::from)
            .context(|| "look at a fanotify queue")?
            > 0
    {
        let gone = event::discard_fanotify(group).context(|| "empty a fanotify queue")?;
        left = left.saturating_sub(gone.max(1));
    }
    Ok(())
}
