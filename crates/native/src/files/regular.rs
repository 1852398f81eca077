//! What is reached by a path: regular files, directories, stateless devices, files of /proc.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cpr_image::model::{
    ByteString, DevicePlugin, FileContent, Manifest, MountNamespaceId, Object, OpenFile, RegularFile, SavedFileId,
    SavedFileKind,
};
use cpr_kernel::proc::{Mount, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SealFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::saved::UNKNOWN;
use super::{Description, RestoreContext, SaveContext, SavedFiles, kind};
use crate::views::{Views, deleted_kind};

const SYSFS_MAGIC: u64 = 0x6265_6572;
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const DEBUGFS_MAGIC: u64 = 0x6462_6720;
const TRACEFS_MAGIC: u64 = 0x7472_6163;

/// What the kernel adds to the path of what has been deleted.
const DELETED: &[u8] = b" (deleted)";

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// Whether the path /proc shows for a description still leads to what is open.
fn has_path(description: &Description, views: &Views) -> Result<bool> {
    let Description { link, stat, view, .. } = description;
    match views.lstat(*view, link) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) || is_proc(description)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
        Err(error) => Err(error).context(|| format!("{}: look for it under its path", description.label())),
    }
}

/// Whether it is the top of the /proc that the job's processes see. Where root saves a user's job it has mounted
/// another one, of the same PID namespace.
fn is_proc(description: &Description) -> bool {
    let Description { link, stat, view, .. } = description;
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let is_top = |mount: &Mount| {
        let seen = mount.mount_point == *link && mount.root == b"/" && mount.fs_type == b"proc";
        seen && mount.dev == device
    };
    // The first process is there, and may see more.
    let mut mounts = [description.pid, 1]
        .into_iter()
        .filter_map(|pid| ProcDir::open_living(pid).ok()?.mountinfo().ok());
    view.is_none() && link == b"/proc" && mounts.any(|mounts| mounts.iter().any(is_top))
}

fn described(stat: &Stat, link: &[u8]) -> RegularFile {
    RegularFile {
        path: ByteString(link.to_vec()),
        size: stat.st_size as u64,
        mtime_ns: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_mtime_nsec as i64),
        mode: stat.st_mode & 0o7777,
    }
}

/// Saves a regular file: by name, or with its contents where no name leads to it any more.
///
/// # Errors
/// A deleted file cannot be read.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let Description { link, stat, view, .. } = description;
    let named = stat.st_nlink > 0 && has_path(description, &context.views)?;
    let is_ours = || {
        let ours = context.views.lstat(None, link);
        ours.is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (stat.st_dev, stat.st_ino))
    };
    let has_rule = context.policies.verdict(link).is_some();
    if named && view.is_some() && !(has_rule && is_ours()) {
        if has_rule {
            let text = format!(
                "{}: --file is about a file that only a mount namespace of the job's own has at this path",
                description.label()
            );
            return Err(Error::new(ErrorKind::Unsupported, text)
                .with_hint("what is in a file system in memory is saved without it"));
        }
        return Ok(Object::Regular(described(stat, link)));
    }
    if named {
        let handle = description.handle.as_fd();
        context
            .policies
            .note(link, stat, handle, &mut context.saved)
            .context(|| description.label())?;
        if !context.policies.is_anonymous(link) {
            return Ok(Object::Regular(described(stat, link)));
        }
    }
    if stat.st_nlink > 0 && !named {
        let other = match view {
            None => other_name(link, stat.st_ino),
            Some(view) => context.views.other_name(*view, &former(link).0, stat.st_ino),
        };
        if let Some(other) = other {
            return Ok(Object::Regular(described(stat, &other)));
        }
        // What others write to it, or read from it, would be another file after a restart.
        if kind::writable(description.info.flags) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: the file is open for writing, and no name of it is in the directory it was opened in, nor above",
                    description.label()
                ),
            )
            .with_hint("give it back a name in that directory (ln), or close it before the checkpoint"));
        }
    }
    let kind = deleted_kind(*view, former(link));
    context
        .saved
        .intern_descriptor(stat, description.handle.as_fd(), kind, &description.label())
        .map(Object::Saved)
}

/// Saves a memfd with its contents and seals.
///
/// # Errors
/// It cannot be read.
pub fn save_memfd(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let name = description.link.strip_prefix(b"/memfd:").unwrap_or(&description.link);
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    let seals = match rustix::fs::fcntl_get_seals(&description.handle) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => SealFlags::SEAL,
        Err(error) => return Err(io(error)).context(|| format!("{}: get the seals", description.label())),
    };
    let kind = if name == super::saved::SHARED_ANONYMOUS_NAME {
        SavedFileKind::SharedAnonymous
    } else {
        SavedFileKind::Memfd {
            name: ByteString(name.to_vec()),
            seals: seals.bits(),
        }
    };
    context
        .saved
        .intern_descriptor(
            &description.stat,
            description.handle.as_fd(),
            kind,
            &description.label(),
        )
        .map(Object::Saved)
}

/// Where a deleted object was, from what the kernel shows.
fn former(link: &[u8]) -> ByteString {
    ByteString(link.strip_suffix(DELETED).unwrap_or(link).to_vec())
}

/// The process that has ended, and the path below its entry in /proc, that something is open on.
pub fn dead_process(link: &[u8]) -> Option<(i32, ByteString)> {
    let path = former(link);
    let rest = path.0.strip_prefix(b"/proc/")?;
    let end = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    let process = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let below = rest.get(end + 1..).unwrap_or_default().to_vec();
    let dead = link.ends_with(DELETED) || !Path::new(&format!("/proc/{process}")).exists();
    dead.then_some((process, ByteString(below)))
}

/// Whether something is open of a process that has ended which every process has.
pub(super) fn is_of_dead(link: &[u8]) -> bool {
    dead_process(link).is_some_and(|(_, path)| every_process_has(&path.0))
}

/// Whether a path below /proc/PID is one that every process has: what there is of others depends on its descriptors and
/// its memory.
fn every_process_has(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let below = match parts[..] {
        [b"task", _, ref of_thread @ ..] => of_thread,
        ref all => all,
    };
    !matches!(below, [b"fd" | b"fdinfo" | b"map_files", _, ..])
}

/// Whether a file below /proc/PID is of a thread that has ended, of a process that lives.
fn is_of_ended_thread(pid: i32, path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/');
    let tid = (parts.next() == Some(b"task")).then(|| parts.next()).flatten();
    let tid = tid.and_then(|tid| std::str::from_utf8(tid).ok());
    tid.is_some_and(|tid| !Path::new(&format!("/proc/{pid}/task/{tid}")).exists())
}

/// The working directory (`cwd`) or root directory (`root`) of a stopped process as a saved file, if it has been
/// deleted. That of a process that has ended, in /proc, is as good as that: programs that want to see no files go
/// there.
///
/// # Errors
/// It cannot be looked at.
pub fn save_deleted_directory(
    proc: &ProcDir,
    name: &str,
    view: Option<MountNamespaceId>,
    saved: &mut SavedFiles,
) -> Result<Option<SavedFileId>> {
    const PROC_MAGIC: u64 = 0x9fa0;
    let what = || format!("look at the {name} directory of process {}", proc.pid());
    let look = |name: &str| {
        rustix::fs::statat(proc, name, AtFlags::empty())
            .map_err(io)
            .context(what)
    };
    let (mut stat, root) = (look(name)?, look("root")?);
    let link = proc.read_link(name).context(what)?;
    let path = former(&link);
    if stat.st_nlink == 0 {
        let path = within_reach(view, path);
        return Ok(Some(
            saved.intern_empty(&stat, SavedFileKind::DeletedDirectory { path }),
        ));
    }
    let is_root = (stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino);
    if !(is_root || link.ends_with(DELETED)) || dead_process(&link).is_none() {
        return Ok(None);
    }
    let directory = proc.open_file(name, OFlags::PATH).context(what)?;
    let system = rustix::fs::fstatfs(&directory).map_err(io).context(what)?;
    if system.f_type as u64 != PROC_MAGIC {
        return Ok(None);
    }
    // It belongs to nobody.
    (stat.st_mode, stat.st_uid, stat.st_gid) = (0o500, UNKNOWN, UNKNOWN);
    let path = ByteString(b"/tmp/gone".to_vec());
    Ok(Some(
        saved.intern_empty(&stat, SavedFileKind::DeletedDirectory { path }),
    ))
}

/// Where a deleted directory is made again: where it was, if that is of the job's own mount namespace, which is there
/// when it is made.
fn within_reach(view: Option<MountNamespaceId>, path: ByteString) -> ByteString {
    match view {
        None => path,
        Some(_) => {
            let name = path.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            ByteString([b"/tmp/", name].concat())
        }
    }
}

/// Another name of a file in the directory it was in, or in one above; links are mostly made beside what they are links
/// to.
pub fn other_name(link: &[u8], inode: u64) -> Option<Vec<u8>> {
    let path = former(link);
    let above = path.as_path().ancestors().skip(1);
    let mut there = above
        .filter_map(|directory| Some((directory, rustix::fs::stat(directory).ok()?.st_dev)))
        .peekable();
    let (_, device) = *there.peek()?;
    there
        .take_while(|(_, other)| *other == device)
        .find_map(|(directory, _)| name_in(directory, device, inode))
}

fn name_in(parent: &Path, device: u64, inode: u64) -> Option<Vec<u8>> {
    /// Directories with more entries are not searched.
    const MOST: usize = 100_000;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty()).ok()?;
    let entries = rustix::fs::Dir::new(directory).ok()?;
    for entry in entries.take(MOST) {
        let entry = entry.ok()?;
        if entry.ino() != inode {
            continue;
        }
        let full = parent.join(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
        if rustix::fs::lstat(&full).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode)) {
            return Some(full.as_os_str().as_bytes().to_vec());
        }
    }
    None
}

/// Saves a directory.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that has been replaced.
pub fn save_directory(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    if !has_path(description, &context.views)? {
        if description.stat.st_nlink == 0 {
            let path = within_reach(description.view, former(&description.link));
            let kind = SavedFileKind::DeletedDirectory { path };
            return Ok(Object::Saved(context.saved.intern_empty(&description.stat, kind)));
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: the directory has been deleted or replaced", description.label()),
        ));
    }
    Ok(Object::Directory {
        path: ByteString(description.link.clone()),
    })
}

/// Saves a descriptor opened with O_PATH. The type of the file is kept among the mode bits.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when no path leads to it any more.
pub fn save_path(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let Description { link, stat, view, .. } = description;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return save_directory(description, context);
    }
    if !has_path(description, &context.views)? && stat.st_nlink == 0 {
        let path = former(link);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return save(description, context),
            FileType::Symlink if view.is_none() => {
                let target = rustix::fs::readlinkat(&description.handle, "", Vec::new())
                    .map_err(io)
                    .context(|| format!("{}: read the link", description.label()))?;
                let target = ByteString(target.into_bytes());
                let kind = SavedFileKind::DeletedLink { path, target };
                return Ok(Object::Saved(context.saved.intern_empty(stat, kind)));
            }
            _ => {}
        }
    }
    if !has_path(description, &context.views)? {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{}: O_PATH of a file that has been deleted or replaced",
                description.label()
            ),
        ));
    }
    Ok(Object::Regular(RegularFile {
        mode: stat.st_mode,
        ..described(stat, link)
    }))
}

/// Saves a device that keeps no state, or whose state a plug-in has saved.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when its node is gone.
pub fn save_device(
    description: &Description,
    plugin: Option<DevicePlugin>,
    context: &mut SaveContext<'_>,
) -> Result<Object> {
    if plugin.is_none()
        && let Some(deleted) = super::device::save_deleted(description)
    {
        return Ok(deleted);
    }
    let there = context.views.stat(description.view, &description.link);
    if !there.is_ok_and(|there| there.st_rdev == description.stat.st_rdev) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: the device node has been deleted or replaced", description.label()),
        ));
    }
    Ok(Object::Device {
        path: ByteString(description.link.clone()),
        rdev: description.stat.st_rdev,
        node: None,
        plugin,
    })
}

/// Saves /dev/tty: as the terminal behind it where the job has that open, too.
///
/// # Errors
/// None now; for the sake of its siblings.
pub fn save_controlling_terminal(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let device = cpr_kernel::fd::terminal_device(description.handle.as_fd());
    let view = context.apart.get(&description.pid).copied();
    match device.ok().and_then(|device| context.terminal_state.find(device, view)) {
        Some(id) => Ok(Object::TerminalSlave(id)),
        None => save_device(description, None, context),
    }
}

/// Refuses a file of /proc/pressure or of a control group through which a trigger was set (PSI): the kernel tells nobody
/// which. Without one, poll(2) says that there is an error.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where there is one.
pub(super) fn refuse_trigger(link: &[u8], flags: i32, handle: BorrowedFd<'_>, label: &str) -> Result<()> {
    let is_pressure = link.starts_with(b"/proc/pressure/") || (link.ends_with(b".pressure") && is_pseudo(handle));
    if !is_pressure || !kind::writable(flags) {
        return Ok(());
    }
    let ready = super::netlink::ready(handle).context(|| format!("{label}: poll it"))?;
    match ready.contains(rustix::event::PollFlags::ERR) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{label}: a trigger for pressure stall information is not supported"),
        )
        .with_hint("close the file before the checkpoint, and set the trigger again")),
    }
}

/// Saves a file of /proc.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it belongs to a process outside the job, or to none any more and is one that not every
/// process has.
pub fn save_proc(
    description: &Description,
    pid: Option<i32>,
    path: &[u8],
    context: &mut SaveContext<'_>,
) -> Result<Object> {
    let label = || description.label();
    // Init is always there.
    let other = pid.filter(|pid| *pid != 1 && !context.targets.iter().any(|target| target.pid == *pid));
    let ended_thread = pid.filter(|pid| is_of_ended_thread(*pid, path));
    let dead = match ended_thread {
        Some(pid) => Some((pid, ByteString(path.to_vec()))),
        None => other.and_then(|_| dead_process(&description.link)),
    };
    if let Some((pid, path)) = dead {
        if every_process_has(&path.0) {
            return Ok(Object::DeadProc { pid, path });
        }
        let text = format!("{}: it is of a process or thread that has ended", label());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if let Some(pid) = other {
        let text = format!("{}: process {pid} is not part of the job", label());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(Object::Proc {
        pid,
        path: ByteString(path.to_vec()),
    })
}

/// A path of an image, and the mount namespace it is of.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    views: &'a Views,
    view: Option<MountNamespaceId>,
    path: &'a ByteString,
}

impl<'a> Place<'a> {
    fn of(file: &OpenFile, path: &'a ByteString, views: &'a Views) -> Place<'a> {
        let view = file.mount_namespace;
        Place { views, view, path }
    }

    fn open(self, flags: OFlags) -> Result<OwnedFd> {
        let opened = self.views.open(self.view, &self.path.0, flags);
        opened.context(|| format!("open {}", self.path))
    }

    /// Opens it without doing anything to it, not following a symbolic link at its end.
    fn locate(self) -> Result<(OwnedFd, Stat)> {
        let what = || format!("look at {}", self.path);
        let node = self.open(OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| match e.kind() {
            ErrorKind::NotFound => e.with_kind(ErrorKind::Incompatible).with_hint("put the file back"),
            _ => e,
        })?;
        let stat = rustix::fs::fstat(&node).map_err(io).context(what)?;
        Ok((node, stat))
    }

    /// Opens what `node` (opened with O_PATH) is with the saved flags. The flags become exactly those saved.
    fn open_node(self, node: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        let never = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC;
        let flags = (OFlags::from_bits_retain(flags as u32) - never) | OFlags::CLOEXEC | OFlags::NOCTTY;
        if flags.contains(OFlags::NOFOLLOW) {
            return self.open(flags);
        }
        // A magic link, which O_NOFOLLOW (one more flag to be seen by the program) would refuse.
        rustix::fs::open(format!("/proc/self/fd/{}", node.as_raw_fd()), flags, Mode::empty())
            .map_err(io)
            .context(|| format!("open {}", self.path))
    }

    /// Opens with O_PATH what `node` was opened on, with exactly the saved flags.
    fn open_path(self, node: OwnedFd, kind: FileType, flags: i32) -> Result<OwnedFd> {
        let flags = OFlags::from_bits_retain(flags as u32) & (OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY);
        if flags == OFlags::PATH | OFlags::NOFOLLOW || kind == FileType::Symlink {
            return Ok(node);
        }
        self.open(flags)
    }
}

/// Opens `path` of the job's own mount namespace without doing anything to it, not following a symbolic link at its
/// end.
pub(super) fn locate(path: &ByteString) -> Result<(OwnedFd, Stat)> {
    let views = &Views::default();
    Place {
        views,
        view: None,
        path,
    }
    .locate()
}

pub(super) fn changed(path: &ByteString, was: &str) -> Error {
    Error::new(
        ErrorKind::Incompatible,
        format!("{path} was {was} and is another kind of file now"),
    )
}

/// Opens what `node` (opened with O_PATH) is with the saved flags. The flags become exactly those saved.
pub(super) fn open_node(node: BorrowedFd<'_>, path: &ByteString, flags: i32) -> Result<OwnedFd> {
    let views = &Views::default();
    Place {
        views,
        view: None,
        path,
    }
    .open_node(node, flags)
}

/// Moves the offset of a file that has one.
fn set_position(fd: BorrowedFd<'_>, path: &ByteString, position: u64) -> Result<()> {
    if position == 0 {
        return Ok(());
    }
    rustix::fs::seek(fd, SeekFrom::Start(position))
        .map_err(io)
        .context(|| format!("go to offset {position} of {path}"))
        .map(drop)
}

/// Opens a regular file, or whatever was open with O_PATH.
///
/// A file that has grown since is cut back later, by [`super::Changes`], if the job writes to it.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when the file is missing, of another kind, or of a size the job cannot go on with.
pub fn restore(file: &OpenFile, regular: &RegularFile, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let path = &regular.path;
    // Policies are about files of the job's own mount namespace.
    let policy = context.policies.get(path).copied();
    let policy = policy.filter(|_| file.mount_namespace.is_none());
    if let Some(id) = policy.and_then(|policy| policy.saved)
        && !kind::is_path(file.flags)
    {
        return restore_saved(file, id, path, context);
    }
    let place = Place::of(file, path, &context.views);
    let (node, stat) = place.locate()?;
    let now = FileType::from_raw_mode(stat.st_mode);
    if kind::is_path(file.flags) {
        if now != FileType::from_raw_mode(regular.mode) {
            return Err(changed(path, "something else"));
        }
        return place.open_path(node, now, file.flags);
    }
    if now != FileType::RegularFile {
        return Err(changed(path, "a regular file"));
    }
    let size = stat.st_size as u64;
    let content = policy.map_or(FileContent::Default, |policy| policy.content);
    // The others have been looked at, or may have changed.
    if content == FileContent::Default && !is_pseudo(node.as_fd()) && size != regular.size {
        let may_grow = kind::writable(file.flags)
            || file.mount_namespace.is_none() && context.written.contains(path)
            || policy.is_some_and(|policy| policy.truncate.is_some());
        if size < regular.size || !may_grow {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("{path} has {size} bytes now and had {} at the checkpoint", regular.size),
            )
            .with_hint("put the file back as it was"));
        }
    }
    let fd = place.open_node(node.as_fd(), file.flags)?;
    let position = if content == FileContent::Append {
        size
    } else {
        file.position
    };
    set_position(fd.as_fd(), path, position)?;
    Ok(fd)
}

/// Paths of files of the job's own mount namespace that it has open for writing.
pub(super) fn written(manifest: &Manifest) -> std::collections::HashSet<ByteString> {
    let open_for_writing = |file: &OpenFile| match &file.object {
        Object::Regular(regular) if kind::writable(file.flags) && file.mount_namespace.is_none() => {
            Some(regular.path.clone())
        }
        _ => None,
    };
    manifest.files.iter().filter_map(open_for_writing).collect()
}

/// Whether a file's size means nothing because the kernel makes its contents.
pub(super) fn is_pseudo(fd: BorrowedFd<'_>) -> bool {
    const MAGIC: [u64; 5] = [SYSFS_MAGIC, CGROUP_MAGIC, CGROUP2_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC];
    rustix::fs::fstatfs(fd).is_ok_and(|statfs| MAGIC.contains(&(statfs.f_type as u32 as u64)))
}

/// Opens a directory.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when it is missing.
pub fn restore_directory(file: &OpenFile, path: &ByteString, views: &Views) -> Result<OwnedFd> {
    let place = Place::of(file, path, views);
    let (node, stat) = place.locate()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(changed(path, "a directory"));
    }
    if kind::is_path(file.flags) {
        return place.open_path(node, FileType::Directory, file.flags);
    }
    let fd = place.open_node(node.as_fd(), file.flags)?;
    set_position(fd.as_fd(), path, file.position)?;
    Ok(fd)
}

/// Opens a device; /dev/tty is the terminal that the restart was given.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when it is missing or another device.
pub fn restore_device(
    file: &OpenFile,
    path: &ByteString,
    rdev: u64,
    context: &mut RestoreContext<'_>,
) -> Result<OwnedFd> {
    if rdev == rustix::fs::makedev(5, 0) {
        let Some(terminal) = context.terminal else {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("{path} is open, which needs a terminal"),
            )
            .with_hint("restart it on a terminal or with -t"));
        };
        return open_node(terminal.as_fd(), path, file.flags & !libc::O_NOFOLLOW);
    }
    let place = Place::of(file, path, &context.views);
    let (node, stat) = place.locate()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rdev {
        return Err(changed(
            path,
            &format!("device {}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)),
        ));
    }
    place.open_node(node.as_fd(), file.flags)
}

/// Opens a file of /proc, of the process that has the number now.
///
/// # Errors
/// It does not exist or cannot be opened.
pub fn restore_proc(file: &OpenFile, pid: Option<i32>, path: &ByteString) -> Result<OwnedFd> {
    let mut full = b"/proc/".to_vec();
    if let Some(pid) = pid {
        full.extend_from_slice(format!("{pid}/").as_bytes());
    }
    full.extend_from_slice(&path.0);
    let full = ByteString(full);
    let flags = (OFlags::from_bits_retain(file.flags as u32) - (OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC))
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    let fd = rustix::fs::open(full.as_path(), flags, Mode::empty())
        .map_err(io)
        .context(|| format!("open {full}"))?;
    set_position(fd.as_fd(), &full, file.position)?;
    Ok(fd)
}

/// Opens a file of /proc of a process that is no more: one that is made for it, and ends at once.
///
/// # Errors
/// No process can be made, or it has no such file.
pub fn restore_dead_proc(file: &OpenFile, path: &ByteString) -> Result<OwnedFd> {
    let fd = cpr_kernel::process::open_of_dead_process(&path.0, file.flags)
        .context(|| format!("open /proc/PID/{path} of a process that ends at once"))?;
    set_position(fd.as_fd(), path, file.position)?;
    Ok(fd)
}

/// Opens a saved file.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the image has none of that number.
pub fn restore_saved(
    file: &OpenFile,
    id: SavedFileId,
    name: &ByteString,
    context: &mut RestoreContext<'_>,
) -> Result<OwnedFd> {
    let damaged = || Error::new(ErrorKind::Damaged, format!("the image has no saved file {}", id.0));
    let fd = context.saved.get(id.index()).ok_or_else(damaged)?;
    let image = context.manifest.saved_files.get(id.index()).ok_or_else(damaged)?;
    let what = || format!("open {name}");
    let both = file.flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDWR;
    // A memfd can be executed only while nothing but its first description is open for writing.
    let first = matches!(image.kind, SavedFileKind::Memfd { .. }) && both && context.memfds_given.insert(id);
    let fd = if first || matches!(image.kind, SavedFileKind::DeletedLink { .. }) {
        fd.try_clone().context(what)?
    } else {
        super::saved::open_saved(fd.as_fd(), file.flags).context(what)?
    };
    set_position(fd.as_fd(), name, file.position)?;
    Ok(fd)
}
