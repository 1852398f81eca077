//! Reading UNIX sockets and what waits in them.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cpr_image::model::{
    ByteString, Bytes, MountNamespaceId, NetworkId, Object, SocketId, SocketMessage, SocketState, UnixSocket,
};
use cpr_kernel::socket::{self as kernel, SocketInfo};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Dir, FileType, OFlags, Stat};

use super::{DGRAM, NUMBERS, SEQPACKET, SO_PEEK_OFF, SO_RCVBUF, SO_RCVTIMEO, SO_SNDBUF, SO_SNDTIMEO, STREAM};
use crate::files::unix_infos::UnixInfos;
use crate::files::unix_names::{file_path, full_path, is_of_process, is_path, show};
use crate::files::{Description, SaveContext};
use crate::networks::Networks;
use crate::views::Views;

/// First guess at the size of a datagram.
const DATAGRAM: usize = 256 << 10;

/// Sockets noted so far.
#[derive(Debug, Default)]
pub struct SaveState {
    pub(super) entries: Vec<Entry>,
    pub(super) by_inode: HashMap<u32, SocketId>,
    pub(super) infos: UnixInfos,
    /// Directories of what processes have open that have bound sockets by paths below /proc.
    pub(super) directories: BTreeSet<PathBuf>,
    pub(super) files: SocketFiles,
}

/// What is in directories of sockets: file names by inode number. They are read only for files that have another name
/// than the one that was bound.
#[derive(Debug, Default)]
pub(super) struct SocketFiles(RefCell<HashMap<Directory, HashMap<u32, ByteString>>>);

/// A directory: the mount namespace that the path is of, and the path.
type Directory = (Option<MountNamespaceId>, PathBuf);

impl SocketFiles {
    /// The name of the file with this inode number in a directory.
    fn name(&self, view: Option<MountNamespaceId>, directory: &Path, inode: u32, views: &Views) -> Option<ByteString> {
        let mut known = self.0.borrow_mut();
        let names = known.entry((view, directory.to_owned())).or_insert_with(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = views.open(view, directory.as_os_str().as_bytes(), flags).ok();
            let entries = opened
                .and_then(|opened| Dir::read_from(opened).ok())
                .into_iter()
                .flatten();
            let sockets = entries
                .flatten()
                .filter(|entry| matches!(entry.file_type(), FileType::Socket | FileType::Unknown));
            sockets
                .map(|entry| (entry.ino() as u32, ByteString(entry.file_name().to_bytes().to_vec())))
                .collect()
        });
        names.get(&inode).cloned()
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) handle: Arc<OwnedFd>,
    pub(super) inode: u32,
    pub(super) network: Option<NetworkId>,
    /// Process and descriptor, for messages.
    pub(super) label: String,
    /// Working directory of the process it was found in.
    pub(super) cwd: PathBuf,
    /// What that process's paths are of.
    pub(super) view: Option<MountNamespaceId>,
}

impl SaveState {
    /// Notes a socket; the same one gets the same number again. `label` says where it was found, `place` is the working
    /// directory of that process and the mount namespace that its paths are of, where that is not the job's own.
    ///
    /// # Errors
    /// Asking for its inode number fails.
    pub fn note(
        &mut self,
        handle: &Arc<OwnedFd>,
        label: &str,
        place: (&Path, Option<MountNamespaceId>),
        networks: &Networks,
    ) -> Result<SocketId> {
        let (cwd, view) = place;
        let stat = rustix::fs::fstat(handle)
            .map_err(std::io::Error::from)
            .context(|| format!("{label}: look at the UNIX socket"))?;
        let inode = stat.st_ino as u32; // sockfs numbers have 32 bits, as sock_diag's have
        if let Some(id) = self.by_inode.get(&inode) {
            return Ok(*id);
        }
        let id = SocketId(self.entries.len() as u32);
        self.entries.push(Entry {
            handle: Arc::clone(handle),
            inode,
            network: match networks.visits().is_empty() {
                true => None,
                false => networks.of_socket(handle.as_fd(), label)?,
            },
            label: label.to_owned(),
            cwd: cwd.to_owned(),
            view,
        });
        self.by_inode.insert(inode, id);
        Ok(id)
    }

    /// Where a socket was found.
    pub fn label(&self, id: SocketId) -> &str {
        self.entries.get(id.index()).map_or("", |entry| &entry.label)
    }

    /// Number of sockets noted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn info(&self, entry: &Entry, networks: &Networks) -> Result<SocketInfo> {
        self.infos
            .of(entry.network, entry.inode, networks)
            .context(|| entry.label.clone())
            .map_err(|e| e.with_hint("the kernel needs CONFIG_UNIX_DIAG"))?
            .ok_or_else(|| {
                let text = format!(
                    "{}: UNIX socket {} is in another network namespace",
                    entry.label, entry.inode
                );
                Error::new(ErrorKind::Unsupported, text)
            })
    }

    /// Looks at the queue of a socket, leaving it as it is.
    ///
    /// # Errors
    /// Peeking fails, or the queue holds what cannot be seen that way.
    pub fn queue(&self, id: SocketId, networks: &Networks) -> Result<Vec<Queued>> {
        let Some(entry) = self.entries.get(id.index()) else {
            return Ok(Vec::new());
        };
        let info = self.info(entry, networks)?;
        if info.state == kernel::STATE_LISTENING {
            return Ok(Vec::new());
        }
        let handle = entry.handle.as_fd();
        let what = || format!("{}: read the queue of the UNIX socket", entry.label);
        let before = kernel::option(handle, SO_PEEK_OFF).context(what)?;
        let result = if info.kind == STREAM {
            peek_stream(handle, &entry.label)
        } else {
            peek_datagrams(handle, info.kind == SEQPACKET)
        };
        // The job's own peek offset, whatever happened.
        let restored = kernel::set_option(handle, SO_PEEK_OFF, before);
        let messages = result.context(what)?;
        restored.context(what)?;
        Ok(messages)
    }

    /// The images of all sockets, without their queues.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a connection to outside and for connections that wait to be accepted and already
    /// carry data.
    pub fn resolve(&self, networks: &Networks, views: &Views) -> Result<Vec<UnixSocket>> {
        let infos = self.entries.iter().map(|entry| self.info(entry, networks));
        let infos: Vec<SocketInfo> = infos.collect::<Result<_>>()?;
        let mut waiting: HashMap<u32, SocketId> = HashMap::new();
        let mut listeners: HashMap<usize, Vec<SocketId>> = HashMap::new();
        for (index, (entry, info)) in self.entries.iter().zip(&infos).enumerate() {
            if info.state != kernel::STATE_LISTENING {
                continue;
            }
            let mut pending = Vec::new();
            for client in &info.pending {
                let refuse = |why: &str| {
                    Error::new(
                        ErrorKind::Unsupported,
                        format!("{}: {} {why}", entry.label, describe(info)),
                    )
                    .with_hint("try again when the program has accepted the connection")
                    .passing()
                };
                let id = match (*client, self.by_inode.get(client)) {
                    (0, _) => return Err(refuse("has a waiting connection whose client is gone")),
                    (_, None) => return Err(refuse("has a waiting connection from outside the job")),
                    (_, Some(id)) => *id,
                };
                if infos.get(id.index()).is_some_and(|client| client.send_queue != 0) {
                    return Err(refuse("has a waiting connection with data in it"));
                }
                waiting.insert(*client, SocketId(index as u32));
                pending.push(id);
            }
            listeners.insert(index, pending);
        }
        self.entries
            .iter()
            .zip(&infos)
            .enumerate()
            .map(|(index, (entry, info))| {
                let state = match listeners.remove(&index) {
                    Some(pending) => SocketState::Listening {
                        backlog: info.send_queue,
                        pending,
                    },
                    None => self.peer_state(entry, info, &waiting)?,
                };
                entry.image(info, state, views, self)
            })
            .collect()
    }

    pub(super) fn peer_state(
        &self,
        entry: &Entry,
        info: &SocketInfo,
        waiting: &HashMap<u32, SocketId>,
    ) -> Result<SocketState> {
        let outside = |what: &str| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{}: {} {what} outside the job", entry.label, describe(info)),
            )
            .with_hint("checkpoint both sides together, or let the program close the connection first")
        };
        match info.peer {
            None => Ok(SocketState::Unconnected),
            Some(0) => match waiting.get(&entry.inode) {
                Some(listener) => Ok(SocketState::Connected(*listener)),
                None if info.kind == DGRAM || info.shutdown == 3 => Ok(SocketState::PeerClosed),
                None => Err(outside("waits to be accepted by a process")),
            },
            Some(peer) => match self.by_inode.get(&peer) {
                Some(id) => Ok(SocketState::Connected(*id)),
                None => Err(outside("is connected to a process")),
            },
        }
    }
}

impl Entry {
    /// The file that the socket is bound to, and the mount namespace it was found in. What two of them show counts as
    /// the job's own.
    pub(super) fn find(
        &self,
        path: &Path,
        info: &SocketInfo,
        views: &Views,
    ) -> Option<(Option<MountNamespaceId>, Stat)> {
        let places = [None, self.view];
        let places = &places[..if self.view.is_some() { 2 } else { 1 }];
        let look = |view: Option<MountNamespaceId>| {
            let stat = views.stat(view, path.as_os_str().as_bytes()).ok()?;
            let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
            (is_socket && stat.st_ino as u32 == info.file_inode).then_some((view, stat))
        };
        let found: Vec<_> = places.iter().filter_map(|view| look(*view)).collect();
        let device = |stat: &Stat| (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let exact = found.iter().find(|(_, stat)| device(stat) == info.file_device);
        // Some file systems tell programs of other devices than the kernel.
        exact.or(found.first()).copied()
    }

    /// The name that the file has now which was bound as `path`, and what [`Entry::find`] says of it.
    fn find_renamed(
        &self,
        path: &Path,
        info: &SocketInfo,
        views: &Views,
        files: &SocketFiles,
    ) -> Option<(ByteString, (Option<MountNamespaceId>, Stat))> {
        let directory = path.parent()?;
        let views_of_it = [Some(None), self.view.map(Some)];
        views_of_it.into_iter().flatten().find_map(|view| {
            let name = files.name(view, directory, info.file_inode, views)?;
            let path = file_path(directory.as_os_str().as_bytes(), b"-", &name);
            Some((name, self.find(&path, info, views)?))
        })
    }

    /// `all` knows where its file may be, too, and what its file may be called now.
    pub(super) fn image(
        &self,
        info: &SocketInfo,
        state: SocketState,
        views: &Views,
        all: &SaveState,
    ) -> Result<UnixSocket> {
        let handle = self.handle.as_fd();
        let what = || format!("{}: read the settings of the UNIX socket", self.label);
        let address = kernel::name(handle).context(what)?;
        let mut bind_directory = Vec::new();
        let (mut node, mut mount_namespace, mut file_name) = (None, None, ByteString::default());
        if is_path(&address) {
            if !address.starts_with(b"/") {
                bind_directory = self.cwd.as_os_str().as_bytes().to_vec();
            }
            let path = full_path(&bind_directory, &address);
            let found = self.find(&path, info, views).or_else(|| {
                let renamed = || self.find_renamed(&path, info, views, &all.files);
                let (name, found) = (!is_of_process(&address)).then(renamed)??;
                file_name = name;
                Some(found)
            });
            if let Some((view, stat)) = found {
                (node, mount_namespace) = (Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)), view);
            }
            if node.is_none() {
                // Deleted, or the process went elsewhere after binding; only the name can be kept.
                bind_directory.clear();
            }
            if let Some(name) = Path::new(OsStr::from_bytes(&address))
                .file_name()
                .filter(|_| is_of_process(&address))
            {
                let found = all
                    .directories
                    .iter()
                    .find_map(|directory| Some((directory, self.find(&directory.join(name), info, views)?)));
                if let Some((directory, (view, stat))) = found {
                    (node, mount_namespace) = (Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)), view);
                    bind_directory = directory.as_os_str().as_bytes().to_vec();
                }
            }
        }
        let mut options = Vec::new();
        for (option, default) in NUMBERS {
            match kernel::option(handle, option) {
                Ok(value) if value != default => options.push((option, i64::from(value))),
                Ok(_) => {}
                // SO_PASSPIDFD and SO_PASSSEC do not exist everywhere.
                Err(error) if matches!(error.raw_os_error(), Some(92 | 95)) => {}
                Err(error) => return Err(error).context(what),
            }
        }
        for option in [SO_SNDBUF, SO_RCVBUF] {
            // The kernel doubles what it is given.
            let value = kernel::option(handle, option).context(what)?;
            options.push((option, i64::from(value / 2)));
        }
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            let value = kernel::timeout(handle, option).context(what)?;
            if value != 0 {
                options.push((option, value));
            }
        }
        Ok(UnixSocket {
            network: self.network,
            kind: info.kind,
            state,
            address: ByteString(address),
            mount_namespace,
            bind_directory: ByteString(bind_directory),
            shutdown: u32::from(info.shutdown),
            options,
            queue: Vec::new(),
            node,
            file_name,
        })
    }
}

/// Notes a UNIX socket; [`finish`] saves it.
///
/// # Errors
/// The socket cannot be looked at.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    use std::os::unix::ffi::OsStringExt;
    let target = context.targets.iter().find(|target| target.pid == description.pid);
    let cwd = target
        .and_then(|target| target.proc.read_link("cwd").ok())
        .unwrap_or_default();
    let name = kernel::name(description.handle.as_fd()).unwrap_or_default();
    if let Some(target) = target.filter(|_| is_of_process(&name)) {
        let links = target.proc.descriptors().unwrap_or_default().into_iter();
        let paths = links
            .filter_map(|fd| target.proc.fd_link(fd).ok())
            .map(OsString::from_vec);
        for path in paths.map(PathBuf::from).filter(|path| path.is_absolute()) {
            let directories = &mut context.socket_state.directories;
            directories.extend(path.parent().map(Path::to_owned));
            directories.insert(path);
        }
    }
    context
        .socket_state
        .note(
            &description.handle,
            &description.label(),
            (
                Path::new(&OsString::from_vec(cwd)),
                context.apart.get(&description.pid).copied(),
            ),
            context.networks,
        )
        .map(Object::Socket)
}

/// Saves all sockets noted: queues, whose descriptors may be new open files or even sockets, then connections. All
/// processes must be stopped.
///
/// # Errors
/// As [`SaveState::queue`] and [`SaveState::resolve`], and what saving a file in flight gives.
pub fn finish(context: &mut SaveContext<'_>) -> Result<()> {
    let mut queues: Vec<Vec<SocketMessage>> = Vec::new();
    while queues.len() < context.socket_state.len() {
        let id = SocketId(queues.len() as u32);
        let mut queue = Vec::new();
        for message in context.socket_state.queue(id, context.networks)? {
            let mut files = Vec::with_capacity(message.rights.len());
            for fd in message.rights {
                files.push(
                    context
                        .intern_description(fd)
                        .context(|| format!("{}: save a file in flight", context.socket_state.label(id)))?,
                );
            }
            queue.push(SocketMessage {
                data: Bytes(message.data),
                files,
                sender: ByteString(message.sender),
            });
        }
        queues.push(queue);
    }
    context.sockets = context.socket_state.resolve(context.networks, &context.views)?;
    for (socket, queue) in context.sockets.iter_mut().zip(queues) {
        socket.queue = queue;
    }
    Ok(())
}

/// A message in a queue, with descriptors for the files it carries.
#[derive(Debug, Default)]
pub struct Queued {
    /// Contents.
    pub data: Vec<u8>,
    /// Files carried.
    pub rights: Vec<OwnedFd>,
    /// Sender's name.
    pub sender: Vec<u8>,
}

/// The whole queue of a stream. A piece with descriptors begins exactly where the program that wrote it began.
pub(super) fn peek_stream(handle: BorrowedFd<'_>, label: &str) -> Result<Vec<Queued>> {
    let total = kernel::queued(handle).context(|| "get its length")?;
    let seek = |offset: usize| -> Result<()> {
        let offset = i32::try_from(offset).map_err(|_| Error::new(ErrorKind::Unsupported, "2 GiB or more in it"))?;
        kernel::set_option(handle, SO_PEEK_OFF, offset).context(|| "set the peek offset")
    };
    let mut messages = Vec::new();
    let mut offset = 0;
    while offset < total {
        seek(offset)?;
        let message = kernel::peek(handle, total - offset).context(|| "peek")?;
        let Some(message) = message.filter(|m| !m.data.is_empty()) else {
            break;
        };
        let length = message.data.len();
        if message.rights.is_empty() {
            messages.push(Queued {
                data: message.data,
                ..Queued::default()
            });
        } else {
            // A read stops after a piece with descriptors but not before it: find where the last piece begins.
            seek(offset)?;
            let begin = kernel::peek_whole_pieces(handle, length - 1).context(|| "look for pieces")?;
            let mut data = message.data;
            let piece = data.split_off(begin);
            if !data.is_empty() {
                messages.push(Queued {
                    data,
                    ..Queued::default()
                });
            }
            messages.push(Queued {
                data: piece,
                rights: message.rights,
                ..Queued::default()
            });
        }
        offset += length;
    }
    if offset != total {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{label}: the UNIX socket holds out-of-band data"),
        ));
    }
    Ok(messages)
}

pub(super) fn peek_datagrams(handle: BorrowedFd<'_>, can_end: bool) -> Result<Vec<Queued>> {
    let mut messages = Vec::new();
    let mut offset: i32 = 0;
    let mut size = DATAGRAM;
    kernel::set_option(handle, SO_PEEK_OFF, 0).context(|| "set the peek offset")?;
    loop {
        let message = match kernel::peek(handle, size) {
            Ok(Some(message)) => message,
            Ok(None) => break,
            // A SOCK_SEQPACKET socket that was never connected has no queue.
            Err(error) if can_end && error.raw_os_error() == Some(libc::ENOTCONN) => break,
            Err(error) => return Err(error).context(|| "peek"),
        };
        if message.length > size {
            size = message.length;
            kernel::set_option(handle, SO_PEEK_OFF, offset).context(|| "set the peek offset")?;
            continue;
        }
        if message.data.is_empty() && can_end {
            break; // the end of a shut SOCK_SEQPACKET socket
        }
        offset = i32::try_from(message.data.len())
            .ok()
            .and_then(|n| offset.checked_add(n))
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "2 GiB or more in it"))?;
        messages.push(Queued {
            data: message.data,
            rights: message.rights,
            sender: message.sender,
        });
    }
    Ok(messages)
}

/// A socket in words.
pub(super) fn describe(info: &SocketInfo) -> String {
    if info.name.is_empty() {
        "a UNIX socket".to_owned()
    } else {
        format!("UNIX socket {}", show(&info.name))
    }
}
