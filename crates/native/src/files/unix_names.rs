//! Names of UNIX sockets: what they are bound to, and how to bind them to it again.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cpr_image::model::{ByteString, MountNamespaceId, NetworkId, SocketState, UnixSocket};
use cpr_kernel::process::FileIdentity;
use cpr_kernel::socket as kernel;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::unix::{DGRAM, new_socket_in};
use crate::networks::Networks;
use crate::views::Views;

/// A name in words: abstract names with an `@`.
pub(super) fn show(name: &[u8]) -> String {
    match name {
        [0, rest @ ..] => format!("@{}", String::from_utf8_lossy(rest)),
        path => String::from_utf8_lossy(path).into_owned(),
    }
}

pub(super) fn is_path(name: &[u8]) -> bool {
    matches!(name.first(), Some(byte) if *byte != 0)
}

/// Whether this is a path below /proc: it led to a file somewhere else while a descriptor was open, as programs that
/// want a short path have it.
pub(super) fn is_of_process(name: &[u8]) -> bool {
    name.starts_with(b"/proc/")
}

pub(super) fn full_path(directory: &[u8], name: &[u8]) -> PathBuf {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    Path::new(std::ffi::OsStr::from_bytes(directory)).join(name)
}

/// Where a socket's file is that was bound to `name`; `file_name` where it is called otherwise now.
pub(super) fn file_path(directory: &[u8], name: &[u8], file_name: &ByteString) -> PathBuf {
    let path = full_path(directory, name);
    match file_name.is_empty() {
        true => path,
        false => path.with_file_name(std::ffi::OsStr::from_bytes(&file_name.0)),
    }
}

/// A socket's file that exists only while sockets are restored, with the directories made for it.
#[derive(Debug)]
pub(super) struct Hidden {
    file: PathBuf,
    directories: Vec<PathBuf>,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What cannot be removed stays behind as an unused file; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.file);
        for directory in self.directories.iter().rev() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Such files, the last of which goes first: it may be in a directory that was made for an earlier one.
#[derive(Debug, Default)]
pub(super) struct HiddenFiles(pub(super) Vec<Hidden>);

impl HiddenFiles {
    pub(super) fn remove(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for HiddenFiles {
    fn drop(&mut self) {
        self.remove();
    }
}

/// How to connect to a bound socket: by its abstract name, or by its file through the directory.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) address: Vec<u8>,
    _directory: Option<OwnedFd>,
}

/// A name nobody else has while we run.
fn unique_name() -> OsString {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(".cpr-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// A datagram socket with the name of a sender that is not in the image, or without name.
pub(super) fn stranger(
    name: &[u8],
    network: Option<NetworkId>,
    networks: &Networks,
) -> Result<(OwnedFd, Option<Hidden>)> {
    let socket = new_socket_in(network, DGRAM, networks)?;
    if name.is_empty() {
        return Ok((socket, None));
    }
    let image = UnixSocket {
        network: None,
        kind: DGRAM,
        state: SocketState::Unconnected,
        address: ByteString(name.to_vec()),
        mount_namespace: None,
        bind_directory: ByteString::default(),
        shutdown: 0,
        options: Vec::new(),
        queue: Vec::new(),
        node: None,
        file_name: ByteString::default(),
    };
    let (_, hidden) = bind(socket.as_fd(), &image, &Views::default())?;
    Ok((socket, hidden))
}

/// Binds a socket to its name, and makes its file as it was. A name without a file is bound to a file that is hidden
/// and removed in the end.
pub(super) fn bind(end: BorrowedFd<'_>, socket: &UnixSocket, views: &Views) -> Result<(Reach, Option<Hidden>)> {
    let name = socket.address.0.as_slice();
    let what = || format!("bind UNIX socket {}", show(name));
    if !is_path(name) {
        kernel::bind(end, name).context(what).map_err(in_use)?;
        let reach = Reach {
            address: name.to_vec(),
            _directory: None,
        };
        return Ok((reach, None));
    }
    match socket.node {
        Some(node) if is_of_process(name) && !socket.bind_directory.0.is_empty() => {
            bind_elsewhere(end, socket, node, views)
                .context(what)
                .map(|reach| (reach, None))
        }
        Some(node) => bind_visible(end, socket, node, views)
            .context(what)
            .map(|reach| (reach, None)),
        None => bind_hidden(end, name)
            .context(what)
            .map(|(reach, hidden)| (reach, Some(hidden))),
    }
}

/// Whether an error of a system call is this one.
fn has_errno(error: &Error, number: i32) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
    cause.and_then(std::io::Error::raw_os_error) == Some(number)
}

/// EADDRINUSE is an identifier held by somebody else.
fn in_use(error: Error) -> Error {
    if has_errno(&error, libc::EADDRINUSE) {
        error
            .with_kind(ErrorKind::InUse)
            .with_hint("another process has this name; end it, or restart in a network namespace of its own")
    } else {
        error
    }
}

/// The directory of `path`, opened, and how to name the socket in it whatever the length of the path.
fn reach(view: Option<MountNamespaceId>, path: &Path, views: &Views) -> Result<(OwnedFd, OsString, Reach)> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = path
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("{} names no file", path.display())))?
        .to_owned();
    let directory = views
        .open(view, parent.as_os_str().as_bytes(), OFlags::PATH | OFlags::DIRECTORY)
        .context(|| format!("open directory {}", parent.display()))
        .map_err(|e| {
            if e.kind() == ErrorKind::NotFound {
                e.with_kind(ErrorKind::Incompatible)
            } else {
                e
            }
        })?;
    let keep = directory.try_clone().context(|| "copy a descriptor")?;
    let mut address = format!("/proc/self/fd/{}/", keep.as_raw_fd()).into_bytes();
    address.extend_from_slice(file.as_bytes());
    let reach = Reach {
        address,
        _directory: Some(keep),
    };
    Ok((directory, file, reach))
}

fn bind_at(end: BorrowedFd<'_>, name: &[u8], directory: &Path, root: Option<BorrowedFd<'_>>) -> Result<()> {
    if let Some(root) = root {
        let directory = if name.starts_with(b"/") {
            Path::new("/")
        } else {
            directory
        };
        kernel::bind_below(end, name, root, directory).context(|| "bind in a mount namespace of the job's own")
    } else if name.starts_with(b"/") {
        kernel::bind(end, name).context(|| "bind")
    } else {
        kernel::bind_in(end, name, directory).context(|| format!("bind in {}", directory.display()))
    }
    .map_err(in_use)
}

fn bind_visible(end: BorrowedFd<'_>, socket: &UnixSocket, node: (u32, u32, u32), views: &Views) -> Result<Reach> {
    let path = file_path(&socket.bind_directory.0, &socket.address.0, &socket.file_name);
    let (directory, file, reach) = reach(socket.mount_namespace, &path, views)?;
    let io = std::io::Error::from;
    let before = rustix::fs::fstat(&directory)
        .map_err(io)
        .context(|| format!("look at the directory of {}", path.display()))?;
    let root = match socket.mount_namespace {
        None => None,
        Some(view) => {
            let missing = || Error::new(ErrorKind::Damaged, "there is no such mount namespace");
            Some(views.root(view).ok_or_else(missing)?)
        }
    };
    let placeholder = rustix::fs::statat(&directory, &file, AtFlags::SYMLINK_NOFOLLOW).ok();
    if let Some(stat) = &placeholder {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("{} exists and is no socket", path.display()),
            )
            .with_hint("move it away"));
        }
        if kernel::in_use(&reach.address, socket.kind).context(|| format!("look at {}", path.display()))? {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("{} belongs to a running process", path.display()),
            )
            .with_hint("end that process first"));
        }
        rustix::fs::unlinkat(&directory, &file, AtFlags::empty())
            .map_err(io)
            .context(|| format!("remove the unused socket file {}", path.display()))?;
    }
    let (mode, uid, gid) = node;
    let bind = || bind_at(end, &socket.address.0, socket.bind_directory.as_path(), root);
    let aside = match full_path(&socket.bind_directory.0, &socket.address.0).file_name() {
        Some(name) if name != file => Some(Aside::make(&directory, name)?),
        _ => None,
    };
    match bind() {
        // Our user may not be one of those that the file system knows.
        Err(error) if root.is_some() && has_errno(&error, libc::EOVERFLOW) => {
            let _identity = FileIdentity::assume(uid, gid);
            bind()
        }
        other => other,
    }?;
    if let Some(aside) = aside {
        aside.put_back(&file)?;
    }
    let stat = rustix::fs::statat(&directory, &file, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io)
        .context(|| format!("look at {}", path.display()))?;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(&directory, &file, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io)
            .context(|| format!("give {} to user {uid} and group {gid}", path.display()))?;
    }
    rustix::fs::chmodat(&directory, &file, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
        .map_err(io)
        .context(|| format!("set the mode of {}", path.display()))?;
    if root.is_some() {
        // The file was there, and so was all else in the directory.
        let own = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let node = placeholder.map(|stat| (Path::new(&own).join(&file), stat));
        for (path, stat) in node.into_iter().chain([(PathBuf::from(&own), before)]) {
            rustix::fs::utimensat(rustix::fs::CWD, &path, &super::times_of(&stat), AtFlags::empty())
                .map_err(io)
                .context(|| format!("set the times of {}", path.display()))?;
        }
    }
    Ok(reach)
}

/// Binds a socket whose file is not where its name says: below a root directory in which there is such a path, in the
/// directory that the file goes to.
fn bind_elsewhere(end: BorrowedFd<'_>, socket: &UnixSocket, node: (u32, u32, u32), views: &Views) -> Result<Reach> {
    let name = Path::new(std::ffi::OsStr::from_bytes(&socket.address.0));
    let file = name
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("{} names no file", name.display())))?;
    let path = socket.bind_directory.as_path().join(file);
    let (directory, file, reach) = reach(socket.mount_namespace, &path, views)?;
    match rustix::fs::statat(&directory, &file, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            let text = format!("{} exists and is no socket", path.display());
            return Err(Error::new(ErrorKind::Incompatible, text).with_hint("move it away"));
        }
        Ok(_) if kernel::in_use(&reach.address, socket.kind).context(|| format!("look at {}", path.display()))? => {
            let text = format!("{} belongs to a running process", path.display());
            return Err(Error::new(ErrorKind::InUse, text).with_hint("end that process first"));
        }
        _ => {}
    }
    let own = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let top = own.join(unique_name());
    let inner = top.join(name.strip_prefix("/").unwrap_or(name));
    let made = make_directories(inner.parent().unwrap_or(&top))?;
    let what = || format!("make {}", path.display());
    let bound = rustix::fs::open(&top, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(std::io::Error::from)
        .context(what)
        .and_then(|root| bind_at(end, &socket.address.0, Path::new("/"), Some(root.as_fd())))
        .and_then(|()| {
            let (mode, uid, gid) = node;
            std::os::unix::fs::lchown(&inner, Some(uid), Some(gid)).context(what)?;
            std::fs::set_permissions(&inner, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))
                .context(what)?;
            std::fs::rename(&inner, own.join(&file)).context(what)
        });
    if bound.is_err() {
        let _ = std::fs::remove_file(&inner);
    }
    for directory in made.iter().rev() {
        std::fs::remove_dir(directory).context(|| format!("remove {} again", directory.display()))?;
    }
    bound.map(|()| reach)
}

/// The name that a socket is bound to before its file gets another one. What has that name steps aside for a moment.
struct Aside<'a> {
    directory: &'a OwnedFd,
    name: OsString,
    other: Option<OsString>,
}

impl<'a> Aside<'a> {
    fn make(directory: &'a OwnedFd, name: &std::ffi::OsStr) -> Result<Self> {
        let other = unique_name();
        let moved = match rustix::fs::renameat(directory, name, directory, &other) {
            Ok(()) => true,
            Err(rustix::io::Errno::NOENT) => false,
            Err(error) => {
                let error = std::io::Error::from(error);
                return Err(error).context(|| format!("have {} step aside", name.to_string_lossy()));
            }
        };
        Ok(Aside {
            directory,
            name: name.to_owned(),
            other: moved.then_some(other),
        })
    }

    /// Gives the socket's file its name.
    fn put_back(self, file: &OsString) -> Result<()> {
        let what = || format!("rename {} to {}", self.name.to_string_lossy(), file.to_string_lossy());
        rustix::fs::renameat(self.directory, &self.name, self.directory, file)
            .map_err(std::io::Error::from)
            .context(what)
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(other) = &self.other {
            // A file that cannot get its name back keeps the other; there is nobody left to tell.
            let _ = rustix::fs::renameat(self.directory, other, self.directory, &self.name);
        }
    }
}

/// Makes `directory` and what is missing above it; gives what was made, outermost first.
fn make_directories(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<PathBuf> = directory
        .ancestors()
        .take_while(|d| !d.as_os_str().is_empty() && !d.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    for directory in &missing {
        std::fs::create_dir(directory).context(|| format!("make directory {} for a while", directory.display()))?;
    }
    Ok(missing)
}

fn bind_hidden(end: BorrowedFd<'_>, name: &[u8]) -> Result<(Reach, Hidden)> {
    let relative = !name.starts_with(b"/");
    let base = if relative {
        std::env::temp_dir().join(unique_name())
    } else {
        PathBuf::new()
    };
    let path = full_path(base.as_os_str().as_bytes(), name);
    if relative && path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::new(
            ErrorKind::Incompatible,
            "its file is gone, and the name is relative to a directory that is not known",
        ));
    }
    let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut hidden = Hidden {
        file: parent.join(unique_name()),
        directories: Vec::new(),
    };
    hidden.directories = make_directories(&parent)?;
    // Somebody else's file of that name steps aside for a moment.
    let aside = parent.join(unique_name());
    let moved = std::fs::rename(&path, &aside).is_ok();
    let bound = bind_at(end, name, &base, None)
        .and_then(|()| std::fs::rename(&path, &hidden.file).context(|| format!("hide {}", path.display())));
    if moved {
        std::fs::rename(&aside, &path).context(|| format!("rename {} back", aside.display()))?;
    }
    bound?;
    let (_, _, reach) = reach(None, &hidden.file, &Views::default())?;
    Ok((reach, hidden))
}
