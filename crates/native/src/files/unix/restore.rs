//! Making UNIX sockets again.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{FileId, NetworkId, OpenFile, SocketId, SocketState, UnixSocket};
use cpr_kernel::socket as kernel;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use super::{DGRAM, NUMBERS, SEQPACKET, SO_RCVBUF, SO_RCVTIMEO, SO_SNDBUF, SO_SNDTIMEO, STREAM, label};
use crate::files::RestoreContext;
use crate::files::unix_names::{Hidden, HiddenFiles, Reach, bind, is_path, stranger};
use crate::networks::Networks;
use crate::views::Views;

/// Send buffer while queues are being filled.
const FILL_BUFFER: i32 = 64 << 20;
const SO_RCVBUFFORCE: i32 = 33;
const SO_SNDBUFFORCE: i32 = 32;

/// Opens a socket made by [`Sockets::create`].
///
/// # Errors
/// As [`Sockets::open`].
pub fn restore(file: &OpenFile, id: SocketId, context: &mut RestoreContext<'_>) -> Result<Arc<OwnedFd>> {
    match &context.sockets {
        Some(sockets) => sockets.open(id, file.flags),
        None => Err(Error::new(
            ErrorKind::Internal,
            "sockets are opened before they are made",
        )),
    }
}

/// The sockets of an image, made again.
#[derive(Debug)]
pub struct Sockets {
    pub(super) ends: Vec<Arc<OwnedFd>>,
    /// Stand-ins for peers that were closed.
    pub(super) temporary: Vec<Option<OwnedFd>>,
    /// The peer a socket has had since it was made.
    pub(super) paired: Vec<Option<usize>>,
    pub(super) reach: Vec<Option<Reach>>,
    pub(super) hidden: HiddenFiles,
}

pub(super) struct Builder<'a> {
    pub(super) sockets: &'a [UnixSocket],
    /// Where a socket is made is where it is.
    pub(super) networks: &'a Networks,
    /// Where the paths that they are bound to are.
    pub(super) views: &'a Views,
    pub(super) ends: Vec<Option<OwnedFd>>,
    pub(super) temporary: Vec<Option<OwnedFd>>,
    pub(super) paired: Vec<Option<usize>>,
    pub(super) reach: Vec<Option<Reach>>,
    pub(super) hidden: HiddenFiles,
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
            ends: builder.ends.into_iter().flatten().map(Arc::new).collect(),
            temporary: builder.temporary,
            paired: builder.paired,
            reach: builder.reach,
            hidden: builder.hidden,
        })
    }

    /// The descriptor of a socket, for its open file.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when there is no such socket.
    pub fn open(&self, id: SocketId, flags: i32) -> Result<Arc<OwnedFd>> {
        let end = self
            .ends
            .get(id.index())
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("the image has no UNIX socket {}", id.0)))?;
        let what = || format!("open UNIX socket {}", id.0);
        let flags = OFlags::from_bits_retain(flags as u32) & OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(end, flags)
            .map_err(std::io::Error::from)
            .context(what)?;
        Ok(Arc::clone(end))
    }

    /// Puts the messages back and does what must come after: `files` are all open files of the image.
    ///
    /// # Errors
    /// A queue does not take its messages, or an option cannot be set.
    pub fn fill(mut self, sockets: &[UnixSocket], files: &[Arc<OwnedFd>], networks: &Networks) -> Result<()> {
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

    pub(super) fn fill_queue(
        &self,
        index: usize,
        sockets: &[UnixSocket],
        files: &[Arc<OwnedFd>],
        networks: &Networks,
    ) -> Result<()> {
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
    pub(super) fn connect_datagram(&self, index: usize, sockets: &[UnixSocket], done: &mut [bool]) -> Result<()> {
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
    pub(super) fn listeners(&mut self) -> Result<()> {
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
    pub(super) fn connections(&mut self) -> Result<()> {
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
    pub(super) fn waiting(&mut self) -> Result<()> {
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

    pub(super) fn datagrams(&mut self) -> Result<()> {
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
    pub(super) fn bind_end(&mut self, index: usize) -> Result<()> {
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

    pub(super) fn bind(&mut self, end: BorrowedFd<'_>, index: usize) -> Result<Reach> {
        let (reach, hidden) = bind(end, &self.sockets[index], self.views)?;
        self.hidden.0.extend(hidden);
        Ok(reach)
    }
}

pub(super) fn is_listening(socket: &UnixSocket) -> bool {
    matches!(socket.state, SocketState::Listening { .. })
}

/// Kind, network and address. Names that are paths are the same in all networks.
pub(super) type Name<'a> = (i32, Option<NetworkId>, &'a [u8]);

pub(super) fn name_key(socket: &UnixSocket) -> Name<'_> {
    let name = socket.address.0.as_slice();
    (socket.kind, socket.network.filter(|_| !is_path(name)), name)
}

/// Whether a socket can be named by another one.
pub(super) fn in_reach(socket: &UnixSocket, from: &UnixSocket) -> bool {
    is_path(&socket.address.0) || socket.network == from.network
}

pub(super) fn contradiction(index: usize, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("UNIX socket {index} of the image {what}"))
}

pub(super) fn no_file(id: FileId) -> Error {
    Error::new(ErrorKind::Damaged, format!("the image has no open file {}", id.0))
}

/// Makes a socket of the kind that one is, where that is.
pub(super) fn new_socket(like: &UnixSocket, networks: &Networks) -> Result<OwnedFd> {
    new_socket_in(like.network, like.kind, networks)
}

pub(in crate::files) fn new_socket_in(network: Option<NetworkId>, kind: i32, networks: &Networks) -> Result<OwnedFd> {
    networks.within(network, || kernel::create(kind).context(|| "make a UNIX socket"))
}

pub(super) fn new_pair(like: &UnixSocket, networks: &Networks) -> Result<(OwnedFd, OwnedFd)> {
    networks.within(like.network, || {
        kernel::pair(like.kind).context(|| "make a pair of UNIX sockets")
    })
}

/// Checks what the rest relies on.
pub(super) fn validate(sockets: &[UnixSocket]) -> Result<()> {
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
pub(super) fn send_all(
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

pub(super) fn set_options(end: BorrowedFd<'_>, socket: &UnixSocket) -> Result<()> {
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
