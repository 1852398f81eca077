//! inotify(7): the watches, with their numbers.
//!
//! The kernel tells which inode is watched, not by what path. Root opens it by its handle; others find it among the
//! directories the job works in, or else by going through the file system. Unread events cannot be looked at without
//! taking them: the program is given some time to take them ([`wait_until_read`]), and what it leaves is refused.
//!
//! Opening and making files at restart causes events like anything else: [`discard_events`] has to be called last.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, Bytes, InotifyWatch, Object, OpenFile, SavedFileId};
use cpr_kernel::event;
use cpr_kernel::proc::{self, FdInfoKind, Mount};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::inotify::CreateFlags;
use rustix::fs::{Mode, OFlags};

use super::eventfd::is_nonblocking;
use super::{Description, RestoreContext, SaveContext, Target, get};

/// What a link of /proc/PID/fd to an inotify descriptor says.
const LINK: &[u8] = b"anon_inode:inotify";

/// How long the file system is gone through for watched files; the job stands still meanwhile.
const WALK_PATIENCE: Duration = Duration::from_secs(2);

/// How often the queues of a running program are looked at while it is given time to read them.
const LOOK: Duration = Duration::from_millis(1);

/// The inotify descriptors of running processes; those that cannot be looked at are left out.
pub fn queues(pids: impl IntoIterator<Item = i32>) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for pid in pids {
        let Ok(proc) = proc::ProcDir::open_living(pid) else {
            continue;
        };
        let fds = proc.descriptors().unwrap_or_default().into_iter();
        let mut fds = fds
            .filter(|&fd| proc.fd_link(fd).is_ok_and(|link| link == LINK))
            .peekable();
        if fds.peek().is_some()
            && let Ok(Some(target)) = Target::open(pid)
        {
            found.extend(fds.filter_map(|fd| get(&target, fd).ok()));
        }
    }
    found
}

/// Whether nothing is left to be read in any of these queues.
pub fn all_are_read(queues: &[OwnedFd]) -> bool {
    let is_read = |queue: &OwnedFd| rustix::io::ioctl_fionread(queue).is_ok_and(|bytes| bytes == 0);
    queues.iter().all(is_read)
}

/// Waits for a program that runs to read all of its queues, until `deadline`. Tells whether it has.
pub fn wait_until_read(queues: &[OwnedFd], deadline: Instant) -> bool {
    // Nothing tells when a queue becomes empty.
    while !all_are_read(queues) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

/// Saves the watches.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when events are queued, or when the path of a watch cannot be found.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let FdInfoKind::Inotify(watches) = &description.info.kind else {
        return Err(Error::new(
            ErrorKind::Internal,
            format!("{}: no inotify descriptor", description.label()),
        ));
    };
    let queued = rustix::io::ioctl_fionread(&description.handle)
        .map_err(std::io::Error::from)
        .context(|| format!("{}: look at the inotify queue", description.label()))?;
    if queued > 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: {queued} bytes of unread inotify events", description.label()),
        )
        .with_hint("try again when the program has read its inotify events"));
    }
    let mounts = context
        .targets
        .iter()
        .find(|target| target.pid == description.pid)
        .or(context.targets.first())
        .map(|target| target.proc.mountinfo())
        .transpose()
        .context(|| format!("{}: list the mounts", description.label()))?
        .unwrap_or_default();
    Ok(Object::Inotify {
        watches: save_watches(watches, &mounts, context, &description.label())?,
        queued: Bytes::default(),
    })
}

/// What watches are on: paths, and files without names that the job has open.
///
/// # Errors
/// As [`resolve`].
pub(super) fn save_watches(
    watches: &[proc::InotifyWatch],
    mounts: &[Mount],
    context: &SaveContext<'_>,
    label: &str,
) -> Result<Vec<InotifyWatch>> {
    // Deleted files have no path, but the job can have them open.
    let (open, others): (Vec<_>, Vec<_>) = watches
        .iter()
        .cloned()
        .partition(|watch| open_file(watch, context).is_some());
    let mut watches = resolve(&others, mounts, &|| places(context), label)?;
    if let Some(watch) = watches.iter().find(|watch| context.views.hides(&watch.path.0)) {
        let text = format!("{label}: it watches {}, in what the job has mounted", watch.path);
        return Err(Error::new(ErrorKind::Unsupported, text).with_hint("mount it before the job is started"));
    }
    watches.extend(open.iter().filter_map(|watch| {
        Some(InotifyWatch {
            wd: watch.wd,
            mask: watch.mask,
            path: ByteString::default(),
            saved: Some(open_file(watch, context)?),
        })
    }));
    Ok(watches)
}

/// The deleted file that a watch is on, if the image has it.
fn open_file(watch: &proc::InotifyWatch, context: &SaveContext<'_>) -> Option<SavedFileId> {
    let (major, minor) = watch.sdev;
    context.saved.known(rustix::fs::makedev(major, minor), watch.ino)
}

/// Directories and files the job works with, nearest first.
fn places(context: &SaveContext<'_>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    let path = |bytes: Vec<u8>| PathBuf::from(std::ffi::OsStr::from_bytes(&bytes));
    for target in context.targets {
        places.extend(target.proc.read_link("cwd").map(path));
    }
    for target in context.targets {
        for fd in target.proc.descriptors().unwrap_or_default() {
            let link = target.proc.fd_link(fd).map(path).unwrap_or_default();
            if link.is_absolute() {
                places.extend(link.parent().map(Path::to_owned));
                places.push(link);
            }
        }
        let environment = target.proc.read("environ").unwrap_or_default();
        for variable in environment.split(|&b| b == 0) {
            for name in [&b"HOME="[..], b"TMPDIR=", b"XDG_RUNTIME_DIR=", b"XDG_CONFIG_HOME="] {
                places.extend(variable.strip_prefix(name).map(|value| path(value.to_vec())));
            }
        }
    }
    places.extend(["/tmp", "/dev/shm", "/var/tmp", "/etc", "/run", "/var/log"].map(PathBuf::from));
    places
}

/// Finds the paths of watches: by handle on `mounts`, else by a search that begins at `places`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when one is not found.
pub fn resolve(
    watches: &[proc::InotifyWatch],
    mounts: &[Mount],
    places: &dyn Fn() -> Vec<PathBuf>,
    label: &str,
) -> Result<Vec<InotifyWatch>> {
    let mut paths: Vec<Option<PathBuf>> = watches.iter().map(|watch| by_handle(watch, mounts)).collect();
    if paths.iter().any(Option::is_none) {
        search(watches, &mut paths, places(), mounts);
    }
    watches
        .iter()
        .zip(paths)
        .map(|(watch, path)| {
            let path = path.ok_or_else(|| {
                let (major, minor) = watch.sdev;
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{label}: watch {} is on inode {} of device {major}:{minor}, whose path is not known",
                        watch.wd, watch.ino
                    ),
                )
                .with_hint("checkpoint as root, or keep the watched directory open or as working directory")
            })?;
            Ok(InotifyWatch {
                wd: watch.wd,
                mask: watch.mask,
                path: ByteString(path.into_os_string().as_bytes().to_vec()),
                saved: None,
            })
        })
        .collect()
}

/// Opens the inode by its handle, which takes CAP_DAC_READ_SEARCH, and reads its path from /proc.
fn by_handle(watch: &proc::InotifyWatch, mounts: &[Mount]) -> Option<PathBuf> {
    if watch.f_handle.is_empty() {
        return None;
    }
    mounts.iter().filter(|mount| mount.dev == watch.sdev).find_map(|mount| {
        let point = Path::new(std::ffi::OsStr::from_bytes(&mount.mount_point));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let on = rustix::fs::open(point, flags, Mode::empty()).ok()?;
        let file = event::open_handle(on.as_fd(), watch.fhandle_type, &watch.f_handle).ok()?;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).ok()?;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(link.as_bytes()));
        // Also refuses what is deleted or lies outside the mount.
        is_watched(&path, watch).then_some(path)
    })
}

/// Whether `path` leads to the watched inode.
fn is_watched(path: &Path, watch: &proc::InotifyWatch) -> bool {
    const BTRFS: i64 = 0x9123_683E;
    const OVERLAY: i64 = 0x794C_7630;
    let Ok(stat) = rustix::fs::stat(path) else {
        return false;
    };
    if stat.st_ino != watch.ino {
        return false;
    }
    if (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) == watch.sdev {
        return true;
    }
    // These show another device number in stat than the kernel uses for itself.
    rustix::fs::statfs(path).is_ok_and(|fs| [BTRFS, OVERLAY].contains(&fs.f_type))
}

/// The watches that no path is known of yet, and where it is to go.
struct Wanted<'a> {
    watches: &'a [proc::InotifyWatch],
    paths: &'a mut [Option<PathBuf>],
}

impl Wanted<'_> {
    fn is_on(&self, device: (u32, u32)) -> bool {
        let mut all = self.watches.iter().zip(&*self.paths);
        all.any(|(watch, path)| path.is_none() && watch.sdev == device)
    }

    fn all_are_found(&self) -> bool {
        self.paths.iter().all(Option::is_some)
    }

    /// Takes `path` for those watches that it leads to, if their inode can be `number`.
    fn offer(&mut self, path: &Path, number: Option<u64>) {
        for (watch, slot) in self.watches.iter().zip(self.paths.iter_mut()) {
            if slot.is_none() && number.is_none_or(|number| number == watch.ino) && is_watched(path, watch) {
                *slot = Some(path.to_owned());
            }
        }
    }

    /// Goes through what is below `roots`, directories near to them first, but not into those that `covered` names.
    fn walk(&mut self, roots: impl IntoIterator<Item = PathBuf>, covered: &HashSet<PathBuf>, deadline: Instant) {
        let mut left: VecDeque<PathBuf> = roots.into_iter().collect();
        let mut seen: HashSet<PathBuf> = left.iter().cloned().collect();
        while let Some(directory) = left.pop_front() {
            if self.all_are_found() || Instant::now() > deadline {
                return;
            }
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                // The number is in the directory; only where it fits is the file looked at.
                self.offer(&path, Some(entry.ino()));
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && !covered.contains(&path)
                    && seen.insert(path.clone())
                {
                    left.push_back(path);
                }
            }
        }
    }
}

/// Looks for the watched inodes at `places` and above, then below, and then everywhere in their file systems.
fn search(watches: &[proc::InotifyWatch], paths: &mut [Option<PathBuf>], places: Vec<PathBuf>, mounts: &[Mount]) {
    let mount_point = |mount: &Mount| PathBuf::from(std::ffi::OsStr::from_bytes(&mount.mount_point));
    let begun = Instant::now();
    let mut wanted = Wanted { watches, paths };
    for path in places.iter().flat_map(|place| place.ancestors()) {
        wanted.offer(path, None);
    }
    for mount in mounts {
        if wanted.is_on(mount.dev) {
            wanted.offer(&mount_point(mount), None);
        }
    }
    let covered: HashSet<PathBuf> = mounts.iter().map(mount_point).collect();
    wanted.walk(places, &covered, begun + WALK_PATIENCE / 2);
    let roots = mounts.iter().filter(|mount| wanted.is_on(mount.dev)).map(mount_point);
    let roots: Vec<PathBuf> = roots.collect();
    wanted.walk(roots, &covered, begun + WALK_PATIENCE);
}

/// Makes an inotify descriptor with the same watches.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when a watched path is missing.
pub fn restore(file: &OpenFile, watches: &[InotifyWatch], context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    make(watches, &context.saved, is_nonblocking(file))
}

/// Makes an inotify descriptor with the same watches; `saved` are the saved files of the image.
///
/// # Errors
/// As [`restore`].
pub fn make(watches: &[InotifyWatch], saved: &[OwnedFd], nonblocking: bool) -> Result<OwnedFd> {
    let mut flags = CreateFlags::CLOEXEC;
    flags.set(CreateFlags::NONBLOCK, nonblocking);
    let fd = rustix::fs::inotify::init(flags)
        .map_err(std::io::Error::from)
        .context(|| "make an inotify descriptor")?;
    let mut watches: Vec<&InotifyWatch> = watches.iter().collect();
    watches.sort_by_key(|watch| watch.wd);
    for watch in watches {
        let what = || format!("watch {} with inotify", watch.path);
        event::set_next_watch(fd.as_fd(), watch.wd)
            .context(what)
            .map_err(|e| e.with_hint("the kernel needs CONFIG_CHECKPOINT_RESTORE"))?;
        let path = match watch.saved {
            None => watch.path.0.clone(),
            Some(id) => {
                let file = saved.get(id.index());
                let file = file.ok_or_else(|| Error::new(ErrorKind::Damaged, "the image has no such saved file"))?;
                format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes()
            }
        };
        let wd = event::add_watch(fd.as_fd(), &path, watch.mask)
            .context(what)
            .map_err(|e| {
                if e.kind() == ErrorKind::NotFound {
                    e.with_kind(ErrorKind::Incompatible)
                } else {
                    e
                }
            })?;
        if wd != watch.wd {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("{}: it got number {wd} instead of {}", what(), watch.wd),
            ));
        }
    }
    Ok(fd)
}

/// Throws away the events that restart itself has caused.
///
/// # Errors
/// The descriptor cannot be read.
pub fn discard_events(inotify: BorrowedFd<'_>) -> Result<()> {
    let io = std::io::Error::from;
    let mut buffer = vec![0u8; 64 << 10];
    while rustix::io::ioctl_fionread(inotify)
        .map_err(io)
        .context(|| "look at an inotify queue")?
        > 0
    {
        rustix::io::read(inotify, &mut buffer)
            .map_err(io)
            .context(|| "empty an inotify queue")?;
    }
    Ok(())
}
