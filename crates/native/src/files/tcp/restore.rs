//! Making connections again.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_image::model::{Bytes, InetSocket, InetState, NetworkId, PeerEnd, SocketOption, TcpConnection};
use cpr_kernel::inet::{self as kernel, Queue, Repair, plain};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use super::{IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE, SEND, SOCKET, TCP, TCP_REPAIR_WINDOW, TCP_TIMESTAMP};
use crate::files::inet::{LOCAL_LIMIT, STREAM, Sockets, address, describe, in_use};
use crate::files::meet::vanish_on_close;
use crate::files::sockopt::{self, Enlarged, Phase};
use crate::files::{ports, segment};
use crate::networks::Networks;

const HAS_WINDOW_SCALE: u8 = 4;
const HAS_SACK: u8 = 2;
/// TCPI_OPT_*.
const HAS_TIMESTAMPS: u8 = 1;
const OPT_TIMESTAMP: u32 = 8;
const OPT_SACK_PERMITTED: u32 = 4;
const OPT_WINDOW: u32 = 3;
/// TCP options by their codes in a header.
const OPT_MSS: u32 = 2;

/// Sockets as they are being made.
pub(in crate::files) struct Builder<'a> {
    pub(super) sockets: &'a [InetSocket],
    pub(super) networks: &'a Networks,
    pub(super) ends: Vec<Option<OwnedFd>>,
    pub(super) temporary: Vec<Option<OwnedFd>>,
    /// How many TCP sockets have a port.
    sharers: HashMap<Port, usize>,
    /// What the last connection was accepted from.
    listener: Option<Listener<'a>>,
}

/// A socket that listens where accepted sockets are to be, while connections are made: as long as those that come one
/// after the other are alike. The kernel compares each one that begins to listen with all that have its port.
struct Listener<'a> {
    socket: OwnedFd,
    network: Option<NetworkId>,
    family: i32,
    at: SocketAddr,
    options: &'a [SocketOption],
}

/// Network and port.
type Port = (Option<NetworkId>, Option<u16>);

fn port(socket: &InetSocket) -> Port {
    (socket.network, socket.local.as_ref().map(|local| local.port))
}

/// A connection of two new sockets: one that listened, and one that connected.
pub(super) struct Pair {
    pub(super) accepted: OwnedFd,
    pub(super) client: OwnedFd,
}

impl<'a> Builder<'a> {
    pub(in crate::files) fn new(sockets: &'a [InetSocket], networks: &'a Networks) -> Self {
        let nothing = || sockets.iter().map(|_| None).collect();
        let mut sharers = HashMap::new();
        for socket in sockets.iter().filter(|socket| socket.kind == STREAM) {
            *sharers.entry(port(socket)).or_default() += 1;
        }
        Builder {
            sockets,
            networks,
            ends: nothing(),
            temporary: nothing(),
            sharers,
            listener: None,
        }
    }

    pub(in crate::files) fn is_made(&self, index: usize) -> bool {
        let waits = matches!(
            self.sockets[index].state,
            InetState::Waiting { .. } | InetState::Connecting { .. }
        );
        self.ends[index].is_some() || waits
    }

    pub(in crate::files) fn add(&mut self, index: usize, end: OwnedFd) {
        self.ends[index] = Some(end);
    }

    pub(in crate::files) fn finish(self) -> Result<Sockets> {
        let ends: Option<Vec<Arc<OwnedFd>>> = self.ends.into_iter().map(|end| end.map(Arc::new)).collect();
        let ends = ends.ok_or_else(|| Error::new(ErrorKind::Internal, "a socket was not made"))?;
        Ok(Sockets {
            ends,
            temporary: self.temporary,
        })
    }

    /// Makes everything that is or was connected.
    pub(in crate::files) fn connections(&mut self) -> Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            let what = || describe(index, socket);
            if !matches!(socket.state, InetState::Inner { .. }) {
                self.listener = None;
            }
            match &socket.state {
                InetState::Inner { peer, .. } if peer.index() > index => {
                    self.pair(index, peer.index()).context(what)?;
                }
                InetState::PeerClosed { remote } => {
                    let remote = address(remote)?;
                    let pair = self.closed_pair(index, remote).context(what)?;
                    (self.ends[index], self.temporary[index]) = (Some(pair.client), Some(pair.accepted));
                }
                InetState::Ended { .. } => {
                    let anywhere = SocketAddr::new(kernel::loopback(socket.family), 0);
                    let at = Place(self.networks, socket.network, socket.family, ports::SHORT);
                    let pair =
                        connect((at, anywhere), (at, None, anywhere.ip()), &[], &socket.options).context(what)?;
                    (self.ends[index], self.temporary[index]) = (Some(pair.client), Some(pair.accepted));
                }
                InetState::Outer(connection) => {
                    let end = continue_outer(socket, connection, self.networks).context(what)?;
                    self.ends[index] = Some(end);
                }
                _ => {}
            }
        }
        self.listener = None;
        Ok(())
    }

    pub(super) fn local(&self, index: usize) -> Result<SocketAddr> {
        match &self.sockets[index].local {
            Some(local) => address(local),
            None => Err(Error::new(
                ErrorKind::Damaged,
                "a connection of the image has no address",
            )),
        }
    }

    /// How likely a socket got its port by listening rather than by connecting.
    pub(super) fn sharers(&self, index: usize) -> usize {
        let port = port(&self.sockets[index]);
        self.sharers.get(&port).copied().unwrap_or_default()
    }

    pub(super) fn pair(&mut self, one: usize, other: usize) -> Result<()> {
        let (server, client) = if self.sharers(other) >= self.sharers(one) {
            (other, one)
        } else {
            (one, other)
        };
        let mut tried = (server, client, self.connect_pair(server, client, ports::SHORT));
        let in_use = |tried: &Result<Pair>| tried.as_ref().is_err_and(|error| error.kind() == ErrorKind::InUse);
        if in_use(&tried.2) {
            // A port that a client had may be one that cannot be listened at.
            let turned = self.connect_pair(client, server, ports::SHORT);
            tried = match turned {
                Ok(pair) => (client, server, Ok(pair)),
                Err(_) => (server, client, self.connect_pair(server, client, ports::LONG)),
            };
        }
        let (server, client, pair) = (tried.0, tried.1, tried.2?);
        (self.ends[server], self.ends[client]) = (Some(pair.accepted), Some(pair.client));
        Ok(())
    }

    pub(super) fn connect_pair(&mut self, server: usize, client: usize, patience: Duration) -> Result<Pair> {
        let sockets = self.sockets;
        let (at, from) = (&sockets[server], &sockets[client]);
        let InetState::Inner { remote, .. } = &from.state else {
            return Err(Error::new(ErrorKind::Internal, "not a connection"));
        };
        let place = |socket: &InetSocket| Place(self.networks, socket.network, socket.family, patience);
        let (at_place, from_place) = (place(at), place(from));
        let address_there = self.local(server)?;
        let client = (from_place, Some(self.local(client)?), address(remote)?.ip());
        let alike = |listener: &Listener<'_>| {
            (listener.network, listener.family, listener.at) == (at.network, at.family, address_there)
                && listener.options == at.options
        };
        let listener = match self.listener.take().filter(alike) {
            Some(listener) => listener,
            None => Listener {
                socket: listen(at_place, address_there, &at.options)?,
                network: at.network,
                family: at.family,
                at: address_there,
                options: &at.options,
            },
        };
        let pair = connect_through(listener.socket.as_fd(), address_there, client, &from.options)?;
        self.listener = Some(listener);
        Ok(pair)
    }

    pub(super) fn closed_pair(&self, index: usize, remote: SocketAddr) -> Result<Pair> {
        let socket = &self.sockets[index];
        let local = self.local(index)?;
        let place = Place(self.networks, socket.network, socket.family, ports::SHORT);
        let made = connect((place, remote), (place, Some(local), remote.ip()), &[], &socket.options);
        match made {
            Err(error) if error.kind() == ErrorKind::InUse => {
                let turned = connect((place, local), (place, Some(remote), local.ip()), &socket.options, &[])
                    .map_err(|_| error)?;
                Ok(Pair {
                    client: turned.accepted,
                    accepted: turned.client,
                })
            }
            other => other,
        }
    }

    /// Connects those that wait to be accepted, and begins with those that wait for an answer.
    pub(in crate::files) fn waiting(&mut self) -> Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            let place = Place(self.networks, socket.network, socket.family, ports::SHORT);
            if let InetState::Connecting { remote } = &socket.state {
                let what = || describe(index, socket);
                self.ends[index] = Some(begin_to_connect(socket, address(remote)?, place).context(what)?);
            }
            if let InetState::Waiting { remote, .. } = &socket.state {
                let what = || describe(index, socket);
                let local = Some(self.local(index)?);
                let end = client(place, local, address(remote)?, &socket.options).context(what)?;
                self.ends[index] = Some(end);
            }
        }
        Ok(())
    }
}

/// A socket whose connect(2) is under way.
pub(super) fn begin_to_connect(socket: &InetSocket, remote: SocketAddr, place: Place<'_>) -> Result<OwnedFd> {
    let what = || format!("connect to {remote}");
    let end = place.socket()?;
    sockopt::set(end.as_fd(), &socket.options, Phase::Early, 0)?;
    if let Some(local) = &socket.local {
        share_port(end.as_fd())?;
        place
            .bind(end.as_fd(), &address(local)?)
            .context(what)
            .map_err(in_use)?;
    }
    blocking(end.as_fd(), false)?;
    match rustix::net::connect(&end, &remote) {
        // What the answer is, the program asks itself.
        Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::CONNREFUSED) => Ok(end),
        Err(error) => Err(io::Error::from(error)).context(what).map_err(in_use),
    }
}

pub(super) fn blocking(end: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flags = if on { OFlags::empty() } else { OFlags::NONBLOCK };
    rustix::fs::fcntl_setfl(end, flags)
        .map_err(io::Error::from)
        .context(|| "set the flags of a socket")
}

pub(in crate::files) fn share_port(end: BorrowedFd<'_>) -> Result<()> {
    kernel::set_number(end, SOCKET, libc::SO_REUSEADDR, 1).context(|| "share the port")
}

/// Where TCP sockets are made: one of these networks (none is this thread's own), and the address family; how long one
/// may wait for a port that an ended connection holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a>(&'a Networks, Option<NetworkId>, i32, Duration);

impl Place<'_> {
    pub(super) fn socket(&self) -> Result<OwnedFd> {
        self.0.socket(self.1, self.2, STREAM, 0)
    }

    pub(super) fn bind(&self, end: BorrowedFd<'_>, to: &SocketAddr) -> io::Result<()> {
        ports::bind(end, to, (self.0, self.1), self.3)
    }
}

/// Makes a connection within this machine: between `at`, a place and address to listen at, and a client at a place,
/// from an address, which sees the other end at an address.
pub(super) fn connect(
    at: (Place<'_>, SocketAddr),
    from: (Place<'_>, Option<SocketAddr>, std::net::IpAddr),
    server_options: &[SocketOption],
    client_options: &[SocketOption],
) -> Result<Pair> {
    let listener = listen(at.0, at.1, server_options)?;
    connect_through(listener.as_fd(), at.1, from, client_options)
}

/// A socket that listens at an address, with the options of those that are accepted from it.
fn listen(place: Place<'_>, at: SocketAddr, options: &[SocketOption]) -> Result<OwnedFd> {
    let listener = place.socket()?;
    sockopt::set(listener.as_fd(), options, Phase::Early, 0)?;
    share_port(listener.as_fd())?;
    let what = || format!("connect within this machine to {at}");
    place.bind(listener.as_fd(), &at).context(what).map_err(in_use)?;
    rustix::net::listen(&listener, 16)
        .map_err(io::Error::from)
        .context(what)
        .map_err(in_use)?;
    Ok(listener)
}

/// Makes a connection to a socket that listens at an address, as [`connect`].
fn connect_through(
    listener: BorrowedFd<'_>,
    at: SocketAddr,
    from: (Place<'_>, Option<SocketAddr>, std::net::IpAddr),
    client_options: &[SocketOption],
) -> Result<Pair> {
    let what = || format!("connect within this machine to {at}");
    let name = rustix::net::getsockname(listener)
        .map_err(io::Error::from)
        .context(what)?;
    let port = SocketAddr::try_from(name)
        .map_err(io::Error::from)
        .context(what)?
        .port();
    let mut to = SocketAddr::new(from.2, port);
    if let (SocketAddr::V6(to), SocketAddr::V6(at)) = (&mut to, at) {
        to.set_scope_id(at.scope_id());
    }
    let client = client(from.0, from.1, to, client_options)?;
    let own = rustix::net::getsockname(&client)
        .map_err(io::Error::from)
        .context(what)?;
    let own = plain(SocketAddr::try_from(own).map_err(io::Error::from).context(what)?);
    // Somebody else may have found the port meanwhile: such a connection is dropped, as if we had not been there yet.
    let deadline = Instant::now() + LOCAL_LIMIT;
    loop {
        wait(listener, PollFlags::IN, deadline).context(what)?;
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let (accepted, peer) = rustix::net::acceptfrom_with(listener, flags)
            .map_err(io::Error::from)
            .context(what)?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(plain);
        if peer == Some(own) {
            return Ok(Pair { accepted, client });
        }
    }
}

/// A socket of a family connected from an address (if it matters) to a local one.
pub(super) fn client(
    place: Place<'_>,
    from: Option<SocketAddr>,
    to: SocketAddr,
    options: &[SocketOption],
) -> Result<OwnedFd> {
    let what = || match from {
        Some(from) => format!("connect from {from} to {to}"),
        None => format!("connect to {to}"),
    };
    let attempt = |bound: bool| -> Result<OwnedFd> {
        let end = place.socket()?;
        sockopt::set(end.as_fd(), options, Phase::Early, 0)?;
        if let Some(mut from) = from {
            if bound {
                share_port(end.as_fd())?;
            } else {
                // The kernel chooses the port when it connects, from a range of one. It shares a port that other
                // clients have, and can use one again whose last connection has just ended.
                let range = u32::from(from.port()) | u32::from(from.port()) << 16;
                kernel::set_number(end.as_fd(), libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1).context(what)?;
                kernel::set_number(end.as_fd(), libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range as i32).context(what)?;
                from.set_port(0);
            }
            place.bind(end.as_fd(), &from).context(what)?;
        }
        kernel::limit_blocking(end.as_fd(), LOCAL_LIMIT).context(what)?;
        blocking(end.as_fd(), true)?;
        rustix::net::connect(&end, &to).map_err(io::Error::from).context(what)?;
        blocking(end.as_fd(), false)?;
        kernel::limit_blocking(end.as_fd(), Duration::ZERO).context(what)?;
        if let Some(from) = from.filter(|_| !bound) {
            for (option, none) in [(IP_LOCAL_PORT_RANGE, 0), (IP_BIND_ADDRESS_NO_PORT, 0)] {
                kernel::set_number(end.as_fd(), libc::IPPROTO_IP, option, none).context(what)?;
            }
            let name = rustix::net::getsockname(&end).map_err(io::Error::from).context(what)?;
            if SocketAddr::try_from(name).map(|name| name.port()) != Ok(from.port()) {
                return Err(Error::new(
                    ErrorKind::InUse,
                    "the port is outside the range for clients",
                ))
                .context(what);
            }
        }
        Ok(end)
    };
    if from.is_none() {
        return attempt(true);
    }
    // A connection that has just ended keeps its ports from being used again for a second.
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        match attempt(false).or_else(|_| attempt(true)) {
            Ok(end) => return Ok(end),
            Err(error) if Instant::now() > deadline => return Err(in_use(error)),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Waits until a socket is ready.
pub(super) fn wait(socket: BorrowedFd<'_>, wanted: PollFlags, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(socket, wanted)];
    let ready = rustix::event::poll(&mut fds, Some(&left))
        .map_err(io::Error::from)
        .context(|| "wait for a socket")?;
    if ready == 0 {
        return Err(
            Error::new(ErrorKind::TimedOut, "a connection within this machine is stuck")
                .with_hint("a packet filter on this machine may be in the way"),
        );
    }
    Ok(())
}

/// Sends all of `data` to a peer that does not read.
pub(super) fn send_all(socket: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    let what = || "send what was not read again";
    let deadline = Instant::now() + LOCAL_LIMIT;
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    while !data.is_empty() {
        match rustix::net::send(socket, data, flags) {
            Ok(sent) => data = &data[sent..],
            Err(rustix::io::Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)
                .context(what)
                .map_err(|e| e.with_hint("raise the sysctls net.core.wmem_max and net.core.rmem_max"))?,
            Err(error) => return Err(io::Error::from(error)).context(what),
        }
    }
    Ok(())
}

/// Waits until everything that was sent within this machine has arrived.
pub(super) fn delivered(socket: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + LOCAL_LIMIT;
    while kernel::unacknowledged(socket).context(|| "ask for the length of the send queue")? > 0 {
        if Instant::now() > deadline {
            return Err(
                Error::new(ErrorKind::Incompatible, "there is no room for what was not read")
                    .with_hint("raise the sysctls net.core.wmem_max and net.core.rmem_max"),
            );
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Shuts down the sides of the mask; of a socket that is not connected, too.
pub(in crate::files) fn shut_down(end: BorrowedFd<'_>, mask: u32) -> Result<()> {
    match cpr_kernel::socket::shutdown(end, mask) {
        // The other side has ended already; of sockets without connections the kernel says so when it is done.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other.context(|| "shut a connection down"),
    }
}

/// Puts back what was received and not read, shuts down what was shut down, and gives every socket its own settings
/// back that were changed for its making.
pub(in crate::files) fn fill(made: &mut Sockets, sockets: &[InetSocket], networks: &Networks) -> Result<()> {
    let mut enlarged: Vec<Option<Enlarged>> = Vec::new();
    for (end, socket) in made.ends.iter().zip(sockets) {
        let busy = matches!(
            socket.state,
            InetState::Inner { .. } | InetState::PeerClosed { .. } | InetState::Ended { .. }
        );
        let saved = busy.then(|| sockopt::enlarge_buffers(end.as_fd())).transpose()?;
        enlarged.push(saved);
    }
    for (index, socket) in sockets.iter().enumerate() {
        let what = || format!("put back the data of {}", describe(index, socket));
        let data = &socket.received.0;
        match (&socket.state, &made.temporary[index]) {
            (InetState::Inner { peer, .. }, _) => {
                let peer = made.ends.get(peer.index());
                let peer = peer.ok_or_else(|| Error::new(ErrorKind::Damaged, "its peer is missing"))?;
                send_all(peer.as_fd(), data).context(what)?;
            }
            (_, Some(peer)) => {
                sockopt::enlarge_buffers(peer.as_fd())?;
                send_all(peer.as_fd(), data).context(what)?;
                delivered(peer.as_fd()).context(what)?;
            }
            _ => {}
        }
    }
    for (index, socket) in sockets.iter().enumerate() {
        let end = made.ends[index].as_fd();
        let what = || describe(index, socket);
        let peer = made.temporary[index].take();
        match (&socket.state, peer) {
            (InetState::Ended { reset: true }, Some(peer)) => {
                vanish_on_close(peer.as_fd(), true).context(what)?;
                drop(peer);
            }
            (InetState::Ended { reset: false }, Some(peer)) => {
                shut_down(peer.as_fd(), SEND).context(what)?;
                wait(end, PollFlags::RDHUP, Instant::now() + LOCAL_LIMIT).context(what)?;
                shut_down(end, SEND).context(what)?;
                drop(peer);
            }
            (InetState::PeerClosed { .. }, Some(peer)) => {
                drop(peer);
                wait(end, PollFlags::RDHUP, Instant::now() + LOCAL_LIMIT).context(what)?;
                shut_down(end, socket.shutdown).context(what)?;
            }
            (InetState::Outer(connection), _) => {
                let hear = || end_of_peer(end, socket, connection, networks).context(|| "repeat the other side's end");
                match connection.peer_end {
                    PeerEnd::First => hear().context(what)?,
                    PeerEnd::Open | PeerEnd::Crossed => {}
                }
                shut_down(end, socket.shutdown).context(what)?;
                if connection.peer_end == PeerEnd::Crossed {
                    hear().context(what)?;
                }
            }
            (InetState::Inner { .. } | InetState::Channel { .. }, _) => {
                shut_down(end, socket.shutdown).context(what)?;
            }
            _ => {}
        }
    }
    for ((end, socket), enlarged) in made.ends.iter().zip(sockets).zip(&enlarged) {
        if let Some(enlarged) = enlarged {
            sockopt::shrink_buffers(end.as_fd(), enlarged)?;
        }
        if socket.kind == STREAM {
            let reuse = sockopt::number(&socket.options, SOCKET, libc::SO_REUSEADDR);
            kernel::set_number(end.as_fd(), SOCKET, libc::SO_REUSEADDR, reuse).context(|| "set SO_REUSEADDR")?;
        }
    }
    Ok(())
}

/// Lets a connection to outside hear once more that the other side has ended: that side's segment, sent by this machine
/// to itself. The other side gets an acknowledgement that it has had before.
pub(super) fn end_of_peer(
    end: BorrowedFd<'_>,
    socket: &InetSocket,
    connection: &TcpConnection,
    networks: &Networks,
) -> Result<()> {
    let damaged = || Error::new(ErrorKind::Damaged, "it has no address");
    let local = plain(address(socket.local.as_ref().ok_or_else(damaged)?)?);
    let remote = plain(address(&connection.remote)?);
    let sent = connection.send_queue.0.len() as u32;
    let window = connection.window[1].checked_shr(connection.send_scale).unwrap_or(0);
    let end_segment = segment::Segment {
        from: remote,
        to: local,
        sequence: connection.receive_sequence,
        acknowledged: connection.send_sequence.wrapping_sub(sent),
        window: u16::try_from(window).unwrap_or(u16::MAX),
    };
    let packet = end_segment.packet().ok_or_else(damaged)?;
    let what = || "send a packet as the other side";
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let raw = networks
        .socket(socket.network, family, libc::SOCK_RAW, libc::IPPROTO_RAW)
        .context(what)
        .map_err(|e| e.with_hint("it takes CAP_NET_RAW over the network namespace"))?;
    let mut to = local;
    to.set_port(0);
    rustix::net::sendto(&raw, &packet, rustix::net::SendFlags::empty(), &to)
        .map_err(io::Error::from)
        .context(what)?;
    wait(end, PollFlags::RDHUP, Instant::now() + LOCAL_LIMIT)
}

/// Makes a connection to outside as if it had never been gone. The other side is told nothing.
pub(super) fn continue_outer(socket: &InetSocket, connection: &TcpConnection, networks: &Networks) -> Result<OwnedFd> {
    let what = || "continue the connection";
    let Some(local) = &socket.local else {
        return Err(Error::new(ErrorKind::Damaged, "it has no address"));
    };
    let (local, remote) = (address(local)?, address(&connection.remote)?);
    let end = Place(networks, socket.network, socket.family, ports::SHORT).socket()?;
    let handle = end.as_fd();
    sockopt::set(handle, &socket.options, Phase::Early, 0)?;
    let repair = Repair::enter(handle)
        .context(what)
        .map_err(|e| e.with_hint("it takes CAP_NET_ADMIN over the network namespace"))?;
    let enlarged = sockopt::enlarge_buffers(handle)?;
    let length = |bytes: &Bytes| bytes.0.len() as u32;
    let send = connection.send_sequence.wrapping_sub(length(&connection.send_queue));
    let receive = connection.receive_sequence.wrapping_sub(length(&socket.received));
    repair.set_sequence(Queue::Send, send).context(what)?;
    repair.set_sequence(Queue::Receive, receive).context(what)?;
    rustix::net::bind(&end, &local)
        .map_err(io::Error::from)
        .context(|| format!("bind to {local}"))
        .map_err(in_use)?;
    rustix::net::connect(&end, &remote)
        .map_err(io::Error::from)
        .context(|| format!("continue the connection to {remote}"))
        .map_err(in_use)?;
    let mut options = vec![(OPT_MSS, connection.max_segment)];
    if connection.options & u32::from(HAS_WINDOW_SCALE) != 0 {
        options.push((OPT_WINDOW, connection.send_scale | connection.receive_scale << 16));
    }
    if connection.options & u32::from(HAS_SACK) != 0 {
        options.push((OPT_SACK_PERMITTED, 0));
    }
    if connection.options & u32::from(HAS_TIMESTAMPS) != 0 {
        options.push((OPT_TIMESTAMP, 0));
    }
    repair.set_options(&options).context(what)?;
    kernel::set_number(handle, TCP, TCP_TIMESTAMP, connection.timestamp as i32).context(what)?;
    repair.put(Queue::Receive, &socket.received.0).context(what)?;
    let sent = connection
        .send_queue
        .0
        .len()
        .checked_sub(connection.unsent as usize)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, "more is unsent than was written"))?;
    let (sent, unsent) = connection.send_queue.0.split_at(sent);
    repair.put(Queue::Send, sent).context(what)?;
    let window: Vec<u8> = connection.window.iter().flat_map(|word| word.to_ne_bytes()).collect();
    kernel::set_option(handle, TCP, TCP_REPAIR_WINDOW, &window).context(what)?;
    drop(repair);
    send_all(handle, unsent)?;
    sockopt::shrink_buffers(handle, &enlarged)?;
    Ok(end)
}
