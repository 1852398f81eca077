//! UNIX sockets: names, connections, queued messages with the descriptors in them, waiting connections.
//!
//! Saving takes two steps. [`save`] only notes a socket; [`finish`], once all descriptors are known, looks at the
//! queues (which may bring more descriptors to light) and finds out who is connected with whom.
//!
//! Restoring takes two steps, too. [`Sockets::create`] makes all sockets, binds and connects them; [`Sockets::fill`]
//! puts the messages back when all open files exist, since messages can carry any of them.
//!
//! Limits: SO_PEERCRED and the credentials of queued messages name the process that restarts the job, with the right
//! user. An empty datagram that was looked at by one checkpoint is passed over by the next, which is how SO_PEEK_OFF
//! works.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cpr_image::model::{
    ByteString, Bytes, FileId, MountNamespaceId, NetworkId, Object, OpenFile, SocketId, SocketMessage, SocketState,
    UnixSocket,
};
use cpr_kernel::socket::{self as kernel, SocketInfo};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{FileType, OFlags, Stat};

use super::unix_infos::UnixInfos;
use super::unix_names::{Hidden, HiddenFiles, Reach, bind, full_path, is_path, show, stranger};
use super::{Description, RestoreContext, SaveContext};
use crate::networks::Networks;
use crate::views::Views;

const STREAM: i32 = 1;
pub(super) const DGRAM: i32 = 2;
const SEQPACKET: i32 = 5;

// Options of level SOL_SOCKET, <asm-generic/socket.h>.
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_PASSCRED: i32 = 16;
const SO_RCVLOWAT: i32 = 18;
const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;
const SO_TIMESTAMP: i32 = 29;
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
const SO_PASSSEC: i32 = 34;
const SO_TIMESTAMPNS: i32 = 35;
const SO_PEEK_OFF: i32 = 42;
const SO_PASSPIDFD: i32 = 76;

/// Options that are plain numbers and only worth saving when they differ from a new socket's value.
const NUMBERS: [(i32, i32); 7] = [
    (SO_PASSCRED, 0),
    (SO_PASSSEC, 0),
    (SO_PASSPIDFD, 0),
    (SO_RCVLOWAT, 1),
    (SO_TIMESTAMP, 0),
    (SO_TIMESTAMPNS, 0),
    (SO_PEEK_OFF, -1),
];

/// Send buffer while queues are being filled.
const FILL_BUFFER: i32 = 64 << 20;
/// First guess at the size of a datagram.
const DATAGRAM: usize = 256 << 10;

/// Sockets noted so far.
#[derive(Debug, Default)]
pub struct SaveState {
    entries: Vec<Entry>,
    by_inode: HashMap<u32, SocketId>,
    infos: UnixInfos,
}

#[derive(Debug)]
struct Entry {
    handle: OwnedFd,
    inode: u32,
    network: Option<NetworkId>,
    /// Process and descriptor, for messages.
    label: String,
    /// Working directory of the process it was found in.
    cwd: PathBuf,
    /// What that process's paths are of.
    view: Option<MountNamespaceId>,
}

impl SaveState {
    /// Notes a socket; the same one gets the same number again. `label` says where it was found, `place` is the working
    /// directory of that process and the mount namespace that its paths are of, where that is not the job's own.
    ///
    /// # Errors
    /// Copying the descriptor or asking for its inode number fails.
    pub fn note(
        &mut self,
        handle: BorrowedFd<'_>,
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
            handle: handle
                .try_clone_to_owned()
                .context(|| format!("{label}: copy the descriptor of the UNIX socket"))?,
            inode,
            network: match networks.visits().is_empty() {
                true => None,
                false => networks.of_socket(handle, label)?,
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

    fn info(&self, entry: &Entry, networks: &Networks) -> Result<SocketInfo> {
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
                entry.image(info, state, views)
            })
            .collect()
    }

    fn peer_state(&self, entry: &Entry, info: &SocketInfo, waiting: &HashMap<u32, SocketId>) -> Result<SocketState> {
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
    /// The file that the socket is bound to, and the mount namespace it was found in. What two of them show counts as the
    /// job's own.
    fn find(&self, path: &Path, info: &SocketInfo, views: &Views) -> Option<(Option<MountNamespaceId>, Stat)> {
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

    fn image(&self, info: &SocketInfo, state: SocketState, views: &Views) -> Result<UnixSocket> {
        let handle = self.handle.as_fd();
        let what = || format!("{}: read the settings of the UNIX socket", self.label);
        let address = kernel::name(handle).context(what)?;
        let mut bind_directory = Vec::new();
        let (mut node, mut mount_namespace) = (None, None);
        if is_path(&address) {
            if !address.starts_with(b"/") {
                bind_directory = self.cwd.as_os_str().as_bytes().to_vec();
            }
            if let Some((view, stat)) = self.find(&full_path(&bind_directory, &address), info, views) {
                (node, mount_namespace) = (Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)), view);
            }
            if node.is_none() {
                // Deleted, or the process went elsewhere after binding; only the name can be kept.
                bind_directory.clear();
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
    context
        .socket_state
        .note(
            description.handle.as_fd(),
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

/// Opens a socket made by [`Sockets::create`].
///
/// # Errors
/// As [`Sockets::open`].
pub fn restore(file: &OpenFile, id: SocketId, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    match &context.sockets {
        Some(sockets) => sockets.open(id, file.flags),
        None => Err(Error::new(
            ErrorKind::Internal,
            "sockets are opened before they are made",
        )),
    }
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
fn peek_stream(handle: BorrowedFd<'_>, label: &str) -> Result<Vec<Queued>> {
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

fn peek_datagrams(handle: BorrowedFd<'_>, can_end: bool) -> Result<Vec<Queued>> {
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
fn describe(info: &SocketInfo) -> String {
    if info.name.is_empty() {
        "a UNIX socket".to_owned()
    } else {
        format!("UNIX socket {}", show(&info.name))
    }
}

/// The sockets of an image, made again.
#[derive(Debug)]
pub struct Sockets {
    ends: Vec<OwnedFd>,
    /// Stand-ins for peers that were closed.
    temporary: Vec<Option<OwnedFd>>,
    /// The peer a socket has had since it was made.
    paired: Vec<Option<usize>>,
    reach: Vec<Option<Reach>>,
    hidden: HiddenFiles,
}

struct Builder<'a> {
    sockets: &'a [UnixSocket],
    /// Where a socket is made is where it is.
    networks: &'a Networks,
    /// Where the paths that they are bound to are.
    views: &'a Views,
    ends: Vec<Option<OwnedFd>>,
    temporary: Vec<Option<OwnedFd>>,
    paired: Vec<Option<usize>>,
    reach: Vec<Option<Reach>>,
    hidden: HiddenFiles,
}

impl Sockets {
    /// Makes, binds and connects all sockets.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when a name is taken, [`ErrorKind::Damaged`] when the image contradicts itself.
    pub fn create(sockets: &[UnixSocket], networks: &Networks, views: &Views) -> Result<Sockets> {
        validate(sockets)?;
        let count = sockets.len();
        let mut builder = Builder {
            sockets,
            networks,
            views,
            ends: (0..count).map(|_| None).collect(),
            temporary: (0..count).map(|_| None).collect(),
            paired: vec![None; count],
            reach: (0..count).map(|_| None).collect(),
            hidden: HiddenFiles::default(),
        };
        builder.listeners()?;
        builder.connections()?;
        builder.waiting()?;
        builder.datagrams()?;
        for (index, socket) in sockets.iter().enumerate() {
            if builder.ends[index].is_none() {
                builder.ends[index] = Some(new_socket(socket, networks)?);
            }
            builder.bind_end(index)?;
        }
        Ok(Sockets {
            ends: builder.ends.into_iter().flatten().collect(),
            temporary: builder.temporary,
            paired: builder.paired,
            reach: builder.reach,
            hidden: builder.hidden,
        })
    }

    /// A new descriptor for a socket.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when there is no such socket.
    pub fn open(&self, id: SocketId, flags: i32) -> Result<OwnedFd> {
        let end = self
            .ends
            .get(id.index())
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("the image has no UNIX socket {}", id.0)))?;
        let what = || format!("open UNIX socket {}", id.0);
        let flags = OFlags::from_bits_retain(flags as u32) & OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(end, flags)
            .map_err(std::io::Error::from)
            .context(what)?;
        end.try_clone().context(what)
    }

    /// Puts the messages back and does what must come after: `files` are all open files of the image.
    ///
    /// # Errors
    /// A queue does not take its messages, or an option cannot be set.
    pub fn fill(mut self, sockets: &[UnixSocket], files: &[OwnedFd], networks: &Networks) -> Result<()> {
        for (index, socket) in sockets.iter().enumerate() {
            self.fill_queue(index, sockets, files, networks)
                .context(|| format!("put back the messages queued at {}", label(index, socket)))?;
        }
        let mut done = vec![false; sockets.len()];
        for index in 0..sockets.len() {
            self.connect_datagram(index, sockets, &mut done)?;
        }
        for (end, socket) in self.ends.iter().zip(sockets) {
            if socket.state != SocketState::PeerClosed {
                kernel::shutdown(end.as_fd(), socket.shutdown).context(|| "shut a UNIX socket down")?;
            } else if socket.kind == DGRAM {
                kernel::shutdown(end.as_fd(), socket.shutdown).context(|| "shut a UNIX socket down")?;
            }
        }
        self.temporary.clear();
        for (index, (end, socket)) in self.ends.iter().zip(sockets).enumerate() {
            if let SocketState::Listening { backlog, .. } = &socket.state {
                kernel::listen(end.as_fd(), *backlog).context(|| format!("listen on {}", label(index, socket)))?;
            }
            set_options(end.as_fd(), socket).context(|| format!("set options of {}", label(index, socket)))?;
        }
        self.hidden.remove();
        Ok(())
    }

    fn fill_queue(&self, index: usize, sockets: &[UnixSocket], files: &[OwnedFd], networks: &Networks) -> Result<()> {
        let socket = &sockets[index];
        let mut strangers: HashMap<&[u8], (OwnedFd, Option<Hidden>)> = HashMap::new();
        for message in &socket.queue {
            let rights: Vec<BorrowedFd<'_>> = message
                .files
                .iter()
                .map(|id| files.get(id.index()).map(AsFd::as_fd).ok_or_else(|| no_file(*id)))
                .collect::<Result<_>>()?;
            let peer = match (&socket.state, self.paired[index]) {
                (_, Some(peer)) => Some(self.ends[peer].as_fd()),
                (SocketState::PeerClosed, _) => self.temporary[index].as_ref().map(AsFd::as_fd),
                _ => None,
            };
            if socket.kind != DGRAM {
                let peer = peer.ok_or_else(|| Error::new(ErrorKind::Damaged, "it has no peer to have sent them"))?;
                send_all(peer, &message.data.0, &rights, socket.kind == STREAM, None)?;
                continue;
            }
            let sender = message.sender.0.as_slice();
            let known = sockets
                .iter()
                .position(|s| !sender.is_empty() && s.kind == DGRAM && s.address.0 == sender && in_reach(s, socket));
            let from = match (known, peer) {
                (Some(known), _) => self.ends[known].as_fd(),
                (None, Some(peer)) if sender.is_empty() => peer,
                _ => {
                    if !strangers.contains_key(sender) {
                        // Senders that are not in the image are made for the moment.
                        strangers.insert(sender, stranger(sender, socket.network, networks)?);
                    }
                    strangers[sender].0.as_fd()
                }
            };
            // The one peer needs no name, and a socket without name can have messages of its peer only.
            let direct = match (known, peer) {
                (Some(known), Some(_)) => self.paired[known] == Some(index),
                (None, Some(_)) => sender.is_empty(),
                _ => false,
            };
            let to = match (&self.reach[index], direct) {
                (_, true) => None,
                (Some(reach), _) => Some(reach.address.as_slice()),
                (None, _) => return Err(Error::new(ErrorKind::Damaged, "it has neither a name nor a peer")),
            };
            send_all(from, &message.data.0, &rights, false, to)?;
        }
        Ok(())
    }

    /// Connects a datagram socket by name, after those that are connected to it: a connected socket takes no others.
    fn connect_datagram(&self, index: usize, sockets: &[UnixSocket], done: &mut [bool]) -> Result<()> {
        let mut order = vec![index];
        let mut at = 0;
        while at < order.len() {
            let target = order[at];
            for (other, socket) in sockets.iter().enumerate() {
                let to_target = socket.state == SocketState::Connected(SocketId(target as u32));
                if socket.kind == DGRAM && to_target && !order.contains(&other) && !done[other] {
                    order.push(other);
                }
            }
            at += 1;
        }
        for index in order.into_iter().rev() {
            let socket = &sockets[index];
            if std::mem::replace(&mut done[index], true) || socket.kind != DGRAM {
                continue;
            }
            let what = || format!("connect {}", label(index, socket));
            match &socket.state {
                SocketState::Connected(peer) if self.paired[index] != Some(peer.index()) => {
                    let reach = self.reach[peer.index()]
                        .as_ref()
                        .ok_or_else(|| Error::new(ErrorKind::Damaged, "its peer has no name"))
                        .context(what)?;
                    kernel::connect(self.ends[index].as_fd(), &reach.address).context(what)?;
                }
                SocketState::Unconnected if self.paired[index].is_some() => {
                    kernel::disconnect(self.ends[index].as_fd()).context(what)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Builder<'_> {
    fn listeners(&mut self) -> Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            if matches!(socket.state, SocketState::Listening { .. }) {
                self.ends[index] = Some(new_socket(socket, self.networks)?);
                self.bind_end(index)?;
                if let Some(end) = &self.ends[index] {
                    // The real backlog comes last.
                    kernel::listen(end.as_fd(), u16::MAX.into())
                        .context(|| format!("listen on {}", label(index, socket)))?;
                }
            }
        }
        Ok(())
    }

    /// Streams and sequenced packets that are connected or were.
    fn connections(&mut self) -> Result<()> {
        let sockets = self.sockets;
        let mut all: Vec<(usize, Option<usize>)> = Vec::new();
        for (index, socket) in sockets.iter().enumerate().filter(|(_, s)| s.kind != DGRAM) {
            match &socket.state {
                SocketState::PeerClosed => all.push((index, None)),
                SocketState::Connected(peer) if peer.index() > index && !is_listening(&sockets[peer.index()]) => {
                    all.push((index, Some(peer.index())));
                }
                _ => {}
            }
        }
        // Accepted sockets have the name of the socket they came from, so several can have the same.
        let mut named: HashMap<Name<'_>, usize> = HashMap::new();
        for index in all.iter().flat_map(|(a, b)| [Some(*a), *b]).flatten() {
            *named.entry(name_key(&sockets[index])).or_default() += 1;
        }
        let real: HashMap<Name<'_>, usize> = sockets
            .iter()
            .enumerate()
            .filter(|(_, s)| is_listening(s))
            .map(|(index, s)| (name_key(s), index))
            .collect();
        let mut gone: HashMap<Name<'_>, (OwnedFd, Reach)> = HashMap::new();
        for (one, other) in all {
            // An accepted connection is in the network of who has connected.
            let network = sockets[one].network;
            let ends = [Some(one), other];
            let named_end = |wanted: &dyn Fn(&UnixSocket) -> bool| {
                ends.into_iter()
                    .flatten()
                    .find(|i| !sockets[*i].address.0.is_empty() && wanted(&sockets[*i]))
            };
            let server = named_end(&|s| real.contains_key(&name_key(s)))
                .or_else(|| named_end(&|s| named.get(&name_key(s)).is_some_and(|n| *n > 1)));
            let (first, second) = match server {
                None => new_pair(&sockets[one], self.networks)?,
                Some(server) => {
                    let key = name_key(&sockets[server]);
                    let what = || format!("connect {}", label(server, &sockets[server]));
                    if !real.contains_key(&key) && !gone.contains_key(&key) {
                        let listener = new_socket_in(network, sockets[server].kind, self.networks)?;
                        let reach = self.bind(listener.as_fd(), server)?;
                        kernel::listen(listener.as_fd(), u16::MAX.into()).context(what)?;
                        gone.insert(key, (listener, reach));
                    }
                    let (listener, address) = match real.get(&key) {
                        Some(index) => (self.ends[*index].as_ref(), self.reach[*index].as_ref()),
                        None => (gone.get(&key).map(|g| &g.0), gone.get(&key).map(|g| &g.1)),
                    };
                    let (Some(listener), Some(address)) = (listener, address) else {
                        return Err(contradiction(server, "listens without a name"));
                    };
                    let client = new_socket_in(network, sockets[server].kind, self.networks)?;
                    kernel::connect(client.as_fd(), &address.address).context(what)?;
                    let accepted = kernel::accept(listener.as_fd()).context(what)?;
                    if server == one {
                        (accepted, client)
                    } else {
                        (client, accepted)
                    }
                }
            };
            self.ends[one] = Some(first);
            match other {
                Some(other) => {
                    self.ends[other] = Some(second);
                    self.paired[one] = Some(other);
                    self.paired[other] = Some(one);
                }
                None => self.temporary[one] = Some(second),
            }
            for end in ends.into_iter().flatten().filter(|end| Some(*end) != server) {
                self.bind_end(end)?;
            }
        }
        Ok(())
    }

    /// Connections that wait to be accepted.
    fn waiting(&mut self) -> Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            let SocketState::Listening { pending, .. } = &socket.state else {
                continue;
            };
            for client in pending {
                let network = self.sockets.get(client.index()).and_then(|client| client.network);
                let end = new_socket_in(network, socket.kind, self.networks)?;
                self.ends[client.index()] = Some(end);
                self.bind_end(client.index())?;
                let (Some(end), Some(reach)) = (&self.ends[client.index()], &self.reach[index]) else {
                    return Err(contradiction(index, "listens without a name"));
                };
                kernel::connect(end.as_fd(), &reach.address)
                    .context(|| format!("connect to {}", label(index, socket)))?;
            }
        }
        Ok(())
    }

    fn datagrams(&mut self) -> Result<()> {
        let sockets = self.sockets;
        // Peers without a name can only have been made with socketpair(2). Those with names are connected when the
        // queues are filled, since a connected socket takes messages of its peer only. Pairs that still are ones come
        // first.
        for mutual in [true, false] {
            for (index, socket) in sockets.iter().enumerate().filter(|(_, s)| s.kind == DGRAM) {
                let SocketState::Connected(peer) = &socket.state else {
                    continue;
                };
                let peer = peer.index();
                let back = sockets[peer].state == SocketState::Connected(SocketId(index as u32));
                let nameless = sockets[peer].address.0.is_empty() || (back && socket.address.0.is_empty());
                if nameless
                    && back == mutual
                    && peer != index
                    && self.ends[index].is_none()
                    && self.ends[peer].is_none()
                {
                    let (one, other) = new_pair(socket, self.networks)?;
                    (self.ends[index], self.ends[peer]) = (Some(one), Some(other));
                    (self.paired[index], self.paired[peer]) = (Some(peer), Some(index));
                }
            }
        }
        for (index, socket) in sockets.iter().enumerate() {
            if socket.kind == DGRAM && socket.state == SocketState::PeerClosed {
                let (one, other) = new_pair(socket, self.networks)?;
                (self.ends[index], self.temporary[index]) = (Some(one), Some(other));
            }
        }
        Ok(())
    }

    /// Binds a socket that has a name and is not bound yet.
    fn bind_end(&mut self, index: usize) -> Result<()> {
        let Some(end) = self.ends[index].as_ref().and_then(|end| end.try_clone().ok()) else {
            return Ok(());
        };
        let socket = &self.sockets[index];
        let bound = kernel::name(end.as_fd()).context(|| format!("look at {}", label(index, socket)))?;
        if socket.address.0.is_empty() || !bound.is_empty() {
            return Ok(());
        }
        self.reach[index] = Some(self.bind(end.as_fd(), index)?);
        Ok(())
    }

    fn bind(&mut self, end: BorrowedFd<'_>, index: usize) -> Result<Reach> {
        let (reach, hidden) = bind(end, &self.sockets[index], self.views)?;
        self.hidden.0.extend(hidden);
        Ok(reach)
    }
}

fn is_listening(socket: &UnixSocket) -> bool {
    matches!(socket.state, SocketState::Listening { .. })
}

/// Kind, network and address. Names that are paths are the same in all networks.
type Name<'a> = (i32, Option<NetworkId>, &'a [u8]);

fn name_key(socket: &UnixSocket) -> Name<'_> {
    let name = socket.address.0.as_slice();
    (socket.kind, socket.network.filter(|_| !is_path(name)), name)
}

/// Whether a socket can be named by another one.
fn in_reach(socket: &UnixSocket, from: &UnixSocket) -> bool {
    is_path(&socket.address.0) || socket.network == from.network
}

fn label(index: usize, socket: &UnixSocket) -> String {
    if socket.address.0.is_empty() {
        format!("UNIX socket {index}")
    } else {
        format!("UNIX socket {index} ({})", show(&socket.address.0))
    }
}

fn contradiction(index: usize, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("UNIX socket {index} of the image {what}"))
}

fn no_file(id: FileId) -> Error {
    Error::new(ErrorKind::Damaged, format!("the image has no open file {}", id.0))
}

/// Makes a socket of the kind that one is, where that is.
fn new_socket(like: &UnixSocket, networks: &Networks) -> Result<OwnedFd> {
    new_socket_in(like.network, like.kind, networks)
}

pub(super) fn new_socket_in(network: Option<NetworkId>, kind: i32, networks: &Networks) -> Result<OwnedFd> {
    networks.within(network, || kernel::create(kind).context(|| "make a UNIX socket"))
}

fn new_pair(like: &UnixSocket, networks: &Networks) -> Result<(OwnedFd, OwnedFd)> {
    networks.within(like.network, || {
        kernel::pair(like.kind).context(|| "make a pair of UNIX sockets")
    })
}

/// Checks what the rest relies on.
fn validate(sockets: &[UnixSocket]) -> Result<()> {
    for (index, socket) in sockets.iter().enumerate() {
        let this = SocketId(index as u32);
        if ![STREAM, DGRAM, SEQPACKET].contains(&socket.kind) {
            return Err(contradiction(index, "has an unknown type"));
        }
        if socket.address.0.len() > 108 {
            return Err(contradiction(index, "has too long a name"));
        }
        match &socket.state {
            SocketState::Connected(peer) => {
                let other = sockets
                    .get(peer.index())
                    .ok_or_else(|| contradiction(index, "is connected to one that is missing"))?;
                let agreed = match &other.state {
                    SocketState::Connected(back) => *back == this && *peer != this,
                    SocketState::Listening { pending, .. } => {
                        pending.iter().filter(|client| **client == this).count() == 1
                    }
                    _ => false,
                };
                if other.kind != socket.kind || (socket.kind != DGRAM && !agreed) {
                    return Err(contradiction(index, "is connected to one that is not connected to it"));
                }
            }
            SocketState::Listening { pending, .. } => {
                let agreed = pending.iter().all(|c| {
                    sockets
                        .get(c.index())
                        .is_some_and(|c| c.state == SocketState::Connected(this))
                });
                if !agreed || socket.kind == DGRAM {
                    return Err(contradiction(index, "cannot listen"));
                }
            }
            SocketState::Unconnected | SocketState::PeerClosed => {}
        }
    }
    Ok(())
}

/// Sends one message, or, on a stream, all bytes however many calls it takes.
fn send_all(
    from: BorrowedFd<'_>,
    data: &[u8],
    rights: &[BorrowedFd<'_>],
    stream: bool,
    to: Option<&[u8]>,
) -> Result<()> {
    // Forcing takes a capability; otherwise as much as the system allows.
    if kernel::set_option(from, SO_SNDBUFFORCE, FILL_BUFFER).is_err() {
        let _ = kernel::set_option(from, SO_SNDBUF, FILL_BUFFER);
    }
    let send = |data: &[u8], rights: &[BorrowedFd<'_>]| {
        kernel::send(from, data, rights, to)
            .context(|| format!("send {} bytes and {} descriptors", data.len(), rights.len()))
            .map_err(|e| {
                let hint = "raise the sysctls net.core.wmem_max and net.unix.max_dgram_qlen";
                if e.kind() == ErrorKind::Busy {
                    e.with_kind(ErrorKind::Incompatible).with_hint(hint)
                } else {
                    e
                }
            })
    };
    let mut sent = send(data, rights)?;
    while stream && sent < data.len() {
        sent += send(&data[sent..], &[])?;
    }
    Ok(())
}

fn set_options(end: BorrowedFd<'_>, socket: &UnixSocket) -> Result<()> {
    let saved = |wanted: i32| socket.options.iter().find(|(option, _)| *option == wanted).map(|o| o.1);
    // Sizes are hints: more than the system allows is not given. They were enlarged for filling.
    for (option, force) in [(SO_SNDBUF, SO_SNDBUFFORCE), (SO_RCVBUF, SO_RCVBUFFORCE)] {
        if let Some(size) = saved(option).and_then(|v| i32::try_from(v).ok())
            && kernel::set_option(end, force, size).is_err()
        {
            let _ = kernel::set_option(end, option, size);
        }
    }
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
        if let Some(time) = saved(option) {
            kernel::set_timeout(end, option, time).context(|| format!("set timeout {option}"))?;
        }
    }
    for (option, _) in NUMBERS {
        if let Some(value) = saved(option).and_then(|v| i32::try_from(v).ok()) {
            kernel::set_option(end, option, value).context(|| format!("set option {option}"))?;
        }
    }
    Ok(())
}
