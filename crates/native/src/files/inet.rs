//! IP sockets: addresses, datagrams waiting to be read. What is special to connections is in [`super::tcp`].
//!
//! Saving takes two steps. [`save`] only notes a socket; [`finish`], once all are known, finds out who is connected
//! with whom and looks at the queues, taking nothing from them.
//!
//! Restoring takes two steps, too: [`Sockets::create`] makes, binds and connects all sockets, [`Sockets::fill`] puts
//! back what waited to be read and sets the options that would be in the way before.
//!
//! Datagrams are put back by sending them again on this machine from the address they came from. Where that is another
//! machine's it takes a privilege (IP_TRANSPARENT), so who lacks it cannot checkpoint such a queue. Times and other
//! ancillary data of a datagram are those of the second sending. An error that waits at a datagram socket (such as
//! "connection refused" for an earlier one) is not kept.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_image::model::{Bytes, Datagram, Endpoint, InetSocket, InetSocketId, InetState, NetworkId, Object, OpenFile};
use cpr_kernel::inet::{self as kernel, TcpInfo, plain};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::fs::OFlags;

use super::drain::Channels;
use super::meet::{self, Meeting};
use super::sockopt::{self, Phase};
use super::{Description, RestoreContext, SaveContext, multicast, netlink, ports, tcp};
use crate::networks::Networks;

pub(super) const STREAM: i32 = libc::SOCK_STREAM;
const DGRAM: i32 = libc::SOCK_DGRAM;
const RAW: i32 = libc::SOCK_RAW;
const SO_TYPE: i32 = 3;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;
const SO_MEMINFO: i32 = 55;
const UDP_ENCAP: i32 = 100;
/// How long datagrams that were sent may take to leave.
const LEAVING: Duration = Duration::from_millis(10);
const IP_TRANSPARENT: i32 = 19;
const IPV6_TRANSPARENT: i32 = 75;

/// Longest wait for something that takes place within this machine.
pub(super) const LOCAL_LIMIT: Duration = Duration::from_secs(10);

/// A socket noted.
#[derive(Debug)]
pub(super) struct Entry {
    pub handle: Arc<OwnedFd>,
    pub network: Option<NetworkId>,
    /// Process, descriptor and object, for messages.
    pub label: String,
    pub family: i32,
    pub kind: i32,
    pub protocol: i32,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    /// Of a TCP socket.
    pub info: TcpInfo,
}

/// Sockets noted so far.
#[derive(Debug, Default)]
pub struct SaveState {
    entries: Vec<Entry>,
}

/// Domain, type and protocol of a socket.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn identity(handle: BorrowedFd<'_>) -> Result<(i32, i32, i32)> {
    let ask = |option| kernel::number(handle, libc::SOL_SOCKET, option).context(|| "ask for the type of a socket");
    Ok((ask(SO_DOMAIN)?, ask(SO_TYPE)?, ask(SO_PROTOCOL)?))
}

impl Entry {
    pub(super) fn look(handle: Arc<OwnedFd>, label: String, networks: &Networks) -> Result<Entry> {
        let what = || format!("{label}: look at the socket");
        let network = networks.of_socket(handle.as_fd(), &label)?;
        sockopt::refuse_filter(handle.as_fd(), &label)?;
        let (family, kind, protocol) = identity(handle.as_fd()).context(what)?;
        let info = match kind {
            STREAM => kernel::tcp_info(handle.as_fd()).context(what)?,
            _ => TcpInfo::default(),
        };
        let local = rustix::net::getsockname(&handle)
            .map_err(std::io::Error::from)
            .context(what)?;
        let local = SocketAddr::try_from(local).ok();
        let remote = match rustix::net::getpeername(&handle) {
            Ok(remote) => remote.and_then(|remote| SocketAddr::try_from(remote).ok()),
            // A connection that has ended still knows its addresses.
            Err(rustix::io::Errno::NOTCONN) if kind == STREAM => kernel::last_peer(handle.as_fd()),
            Err(rustix::io::Errno::NOTCONN) => None,
            Err(error) => return Err(std::io::Error::from(error)).context(what),
        };
        // The port of a raw socket is its protocol.
        let local = local.filter(|local| !local.ip().is_unspecified() || (local.port() != 0 && kind != RAW));
        Ok(Entry {
            handle,
            network,
            label,
            family,
            kind,
            protocol,
            local,
            remote,
            info,
        })
    }

    /// Whether it has a peer.
    pub(super) fn is_connected(&self) -> bool {
        self.remote.is_some()
    }

    /// The socket in words.
    pub(super) fn name(&self) -> String {
        let kind = match (self.kind, self.protocol) {
            (STREAM, super::socket::IPPROTO_MPTCP) => "multipath TCP socket",
            (STREAM, _) => "TCP socket",
            (DGRAM, libc::IPPROTO_UDP) => "UDP socket",
            (DGRAM, libc::IPPROTO_UDPLITE) => "UDP-Lite socket",
            (DGRAM, _) => "ping socket",
            _ => "raw IP socket",
        };
        match (self.local, self.remote) {
            (Some(local), Some(remote)) => format!("{kind} {}, connected to {}", plain(local), plain(remote)),
            (Some(local), None) => format!("{kind} {}", plain(local)),
            _ => kind.to_owned(),
        }
    }

    pub(super) fn refuse(&self, why: &str, hint: &str) -> Error {
        let text = format!("{}: the {} {why}", self.label, self.name());
        Error::new(ErrorKind::Unsupported, text).with_hint(hint)
    }

    /// Refuses what passes by itself when the program goes on.
    pub(super) fn not_now(&self, why: &str, hint: &str) -> Error {
        self.refuse(why, hint).passing()
    }

    /// The image of the socket as far as it is the same for all kinds.
    pub(super) fn image(&self, state: InetState) -> Result<InetSocket> {
        let handle = self.handle.as_fd();
        let new = sockopt::new_socket(self.family, self.kind, self.protocol)?;
        let connected = !matches!(state, InetState::Unconnected | InetState::Listening { .. });
        let options =
            sockopt::save(handle, new.as_fd(), connected).context(|| format!("{}: read its options", self.label))?;
        Ok(InetSocket {
            network: self.network,
            family: self.family,
            kind: self.kind,
            protocol: self.protocol,
            state,
            local: self.local.map(endpoint),
            options,
            received: Bytes::default(),
            queue: Vec::new(),
            multicast: Vec::new(),
            shutdown: 0,
        })
    }
}

/// An address as the image has it.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    let (bytes, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().octets().to_vec(), 0),
        SocketAddr::V6(v6) => (v6.ip().octets().to_vec(), v6.scope_id()),
    };
    Endpoint {
        address: Bytes(bytes),
        port: address.port(),
        scope,
    }
}

/// An address of the image.
///
/// # Errors
/// [`ErrorKind::Damaged`] for one of another length than any address has.
pub(super) fn address(endpoint: &Endpoint) -> Result<SocketAddr> {
    let bytes = endpoint.address.0.as_slice();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(SocketAddr::new(IpAddr::from(v4), endpoint.port));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(SocketAddrV6::new(v6.into(), endpoint.port, 0, endpoint.scope).into()),
        Err(_) => Err(Error::new(
            ErrorKind::Damaged,
            "an address of the image has a wrong length",
        )),
    }
}

/// EADDRINUSE is a port held by somebody else.
pub(super) fn in_use(error: Error) -> Error {
    use std::error::Error as _;
    let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(libc::EADDRINUSE) => error.with_kind(ErrorKind::InUse).with_hint(
            "end what uses the port, or restart in a network namespace of its own; a port of a connection that has \
             just ended is free again after a minute",
        ),
        Some(libc::EADDRNOTAVAIL) => error
            .with_kind(ErrorKind::Incompatible)
            .with_hint("this machine does not have the address"),
        _ => error,
    }
}

/// Notes an IP socket; [`finish`] saves it.
///
/// # Errors
/// The socket cannot be looked at, or is in another network namespace.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let label = description.label();
    let entries = &mut context.inet_state.entries;
    entries.push(Entry::look(Arc::clone(&description.handle), label, context.networks)?);
    Ok(Object::InetSocket(InetSocketId(entries.len() as u32 - 1)))
}

/// Saves all sockets noted. All processes must be stopped.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what cannot be restored.
pub fn finish(context: &mut SaveContext<'_>) -> Result<()> {
    let entries = std::mem::take(&mut context.inet_state.entries);
    let networks = context.networks;
    let links = tcp::links(&entries, context.tcp, context.channels.as_ref(), networks)?;
    for (entry, link) in entries.iter().zip(&links) {
        let saved = networks.within(entry.network, || match entry.kind {
            STREAM => tcp::save(entry, link, &entries, context),
            _ => save_datagrams(entry, &entries),
        })?;
        context.inet_sockets.push(saved);
    }
    Ok(())
}

/// Everything that makes the sockets impossible to save, as far as it shows while the job runs.
pub(super) fn blockers(
    entries: &[Entry],
    policy: crate::TcpPolicy,
    channels: Option<&Channels>,
    networks: &Networks,
) -> Vec<(usize, Error)> {
    let mut found = Vec::new();
    let streams = tcp::Streams::of(entries);
    for (index, entry) in entries.iter().enumerate() {
        let checked = networks.within(entry.network, || match entry.kind {
            STREAM => tcp::link(index, &streams, policy, channels).map(drop),
            _ => refuse_datagrams(entry),
        });
        if let Err(error) = checked {
            found.push((index, error));
        }
    }
    found
}

fn refuse_datagrams(entry: &Entry) -> Result<()> {
    let handle = entry.handle.as_fd();
    if matches!(kernel::number(handle, libc::IPPROTO_UDP, UDP_ENCAP), Ok(kind) if kind != 0) {
        return Err(entry.refuse("carries a tunnel, which is not supported", super::socket::HINT));
    }
    Ok(())
}

fn save_datagrams(entry: &Entry, entries: &[Entry]) -> Result<InetSocket> {
    refuse_datagrams(entry)?;
    let handle = entry.handle.as_fd();
    let what = || format!("{}: read the queue of the {}", entry.label, entry.name());
    let again = "try again a little later";
    // Ping sockets hold nothing back.
    if is_udp(entry) && kernel::unacknowledged(handle).context(what)? > 0 {
        if holds_back(entry).context(what)? {
            return Err(entry.not_now("holds back data that it has not sent yet", again));
        }
        // What is on its way out leaves at once, unless the next machine does not say where it is: that is sent or lost
        // without the program.
        let deadline = Instant::now() + LEAVING;
        while kernel::unacknowledged(handle).context(what)? > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
    let found = netlink::ready(handle).context(what)?;
    let mut queue = Vec::new();
    if found.contains(PollFlags::IN) && found.contains(PollFlags::ERR) {
        return Err(entry.not_now("has unread data and an error that the program does not know yet", again));
    }
    if found.contains(PollFlags::IN) {
        refuse_queue(entry, entries)?;
        for datagram in peek_all(handle).context(what)? {
            let sender = datagram
                .sender
                .ok_or_else(|| entry.not_now("has data from an unknown sender", again))?;
            if !kernel::is_local(plain(sender).ip()) && !may_forge(plain(sender).ip()) {
                return Err(entry.not_now(
                    "has unread data from another machine, and putting it back takes CAP_NET_ADMIN",
                    again,
                ));
            }
            queue.push(Datagram {
                data: Bytes(datagram.data),
                sender: endpoint(sender),
            });
        }
    }
    let state = match entry.remote {
        Some(remote) => InetState::Associated {
            remote: endpoint(remote),
        },
        None => InetState::Unconnected,
    };
    let mut image = entry.image(state)?;
    image.queue = queue;
    image.multicast = multicast::memberships(handle, entry.family).context(|| entry.label.clone())?;
    image.shutdown = match (found.contains(PollFlags::RDHUP), found.contains(PollFlags::HUP)) {
        (_, true) => tcp::RECEIVE | tcp::SEND,
        (true, false) => tcp::RECEIVE,
        // Of a socket that is not connected it is not known. Other kinds than UDP have other errors.
        (false, false) if entry.is_connected() && is_udp(entry) && kernel::sends_no_more(handle).context(what)? => {
            tcp::SEND
        }
        (false, false) => 0,
    };
    Ok(image)
}

/// Whether a UDP socket has part of a datagram that the program sends only when it has added to it (UDP_CORK, MSG_MORE).
///
/// The kernel adds nothing to that part when it is asked to, whatever the address is. Without one it refuses an address
/// that has no port.
fn holds_back(entry: &Entry) -> std::io::Result<bool> {
    use rustix::net::SendFlags;
    let nowhere: SocketAddr = match entry.family {
        libc::AF_INET6 => (Ipv6Addr::LOCALHOST, 0).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    match rustix::net::sendto(&entry.handle, &[], SendFlags::MORE | SendFlags::DONTWAIT, &nowhere) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_udp(entry: &Entry) -> bool {
    entry.kind == DGRAM && [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&entry.protocol)
}

/// Refuses queues that could not be filled by sending.
fn refuse_queue(entry: &Entry, entries: &[Entry]) -> Result<()> {
    let again = "try again when the program has read them";
    let Some(local) = entry.local.filter(|_| is_udp(entry)) else {
        return Err(entry.not_now("holds packets that were not read", again));
    };
    let device = kernel::option(entry.handle.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    if device.is_ok_and(|name| !name.is_empty()) {
        return Err(entry.not_now("is bound to a device and holds packets that were not read", again));
    }
    let ip = plain(local).ip();
    if !ip.is_unspecified() && !kernel::is_local(ip) {
        return Err(entry.not_now(
            "is bound to a group or broadcast address and holds packets that were not read",
            again,
        ));
    }
    let sharing = |other: &&Entry| {
        (other.network, other.protocol) == (entry.network, entry.protocol)
            && other.local.is_some_and(|other| other.port() == local.port())
    };
    if entries.iter().filter(sharing).count() > 1 {
        return Err(entry.not_now("shares its port and holds packets that were not read", again));
    }
    Ok(())
}

/// Whether we may send from an address of another machine.
fn may_forge(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    kernel::create(family, DGRAM, 0).is_ok_and(|socket| forge(socket.as_fd(), ip).is_ok())
}

fn forge(socket: BorrowedFd<'_>, ip: IpAddr) -> std::io::Result<()> {
    match ip {
        IpAddr::V4(_) => kernel::set_number(socket, libc::IPPROTO_IP, IP_TRANSPARENT, 1),
        IpAddr::V6(_) => kernel::set_number(socket, libc::IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
    }
}

/// All datagrams in a queue, taking none.
fn peek_all(handle: BorrowedFd<'_>) -> Result<Vec<kernel::Datagram>> {
    let set = |offset: i32| {
        kernel::set_number(handle, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset).context(|| "set the peek offset")
    };
    let before = kernel::number(handle, libc::SOL_SOCKET, libc::SO_PEEK_OFF).context(|| "ask for the peek offset")?;
    set(0)?;
    let mut found = Vec::new();
    let result = loop {
        match kernel::peek_datagram(handle) {
            Ok(Some(datagram)) => found.push(datagram),
            Ok(None) => break Ok(found),
            Err(error) => break Err(error),
        }
    };
    // The job's own peek offset, whatever happened.
    set(before)?;
    result.context(|| "peek")
}

/// Whether a socket is one of TCP.
pub(super) fn is_tcp(handle: BorrowedFd<'_>) -> bool {
    let families = [libc::AF_INET, libc::AF_INET6];
    identity(handle).is_ok_and(|(family, kind, protocol)| {
        families.contains(&family) && kind == STREAM && protocol == libc::IPPROTO_TCP
    })
}

/// The sockets of an image, made again.
#[derive(Debug)]
pub struct Sockets {
    pub(super) ends: Vec<Arc<OwnedFd>>,
    /// The other ends of connections whose peer has closed.
    pub(super) temporary: Vec<Option<OwnedFd>>,
}

impl Sockets {
    /// Makes, binds and connects all sockets; `meeting` is with the jobs that connections of the image lead to.
    ///
    /// # Errors
    /// As [`meet::meet`];
    /// [`ErrorKind::InUse`] when a port is taken, [`ErrorKind::Incompatible`] when this machine lacks an address,
    /// [`ErrorKind::Denied`] for what takes a privilege.
    pub fn create(sockets: &[InetSocket], networks: &Networks, meeting: Option<&Meeting<'_>>) -> Result<Sockets> {
        let shared_ports = shared_ports(sockets);
        let addresses = meet::new_addresses(sockets, meeting)?;
        let mut builder = tcp::Builder::new(sockets, networks);
        // Connections come before listening sockets, which nobody else shall find until they are complete.
        builder.connections()?;
        for (index, end) in meet::meet(sockets, meeting)? {
            builder.add(index, end);
        }
        for (index, socket) in sockets.iter().enumerate() {
            if builder.is_made(index) {
                continue;
            }
            let moved = match socket.network {
                None => meet::moved(socket, &addresses)?,
                Some(_) => None,
            };
            let socket = moved.as_ref().unwrap_or(socket);
            let shares_port = port_of(socket).is_some_and(|port| shared_ports.contains(&port));
            let end = make(socket, shares_port, networks).context(|| describe(index, socket))?;
            builder.add(index, end);
        }
        builder.waiting()?;
        builder.finish()
    }

    /// The descriptor of a socket, for its open file.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when there is no such socket.
    pub fn open(&self, id: InetSocketId, flags: i32) -> Result<Arc<OwnedFd>> {
        let end = self
            .ends
            .get(id.index())
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("the image has no IP socket {}", id.0)))?;
        let what = || format!("open IP socket {}", id.0);
        let flags = OFlags::from_bits_retain(flags as u32) & OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(end, flags)
            .map_err(std::io::Error::from)
            .context(what)?;
        Ok(Arc::clone(end))
    }

    /// Puts back what waited to be read, and sets the remaining options. Says what is lost.
    ///
    /// # Errors
    /// A queue does not take what it held, or an option cannot be set.
    pub fn fill(mut self, sockets: &[InetSocket], networks: &Networks) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        tcp::fill(&mut self, sockets, networks)?;
        for (index, (end, socket)) in self.ends.iter().zip(sockets).enumerate() {
            if !socket.queue.is_empty() {
                let lost = networks
                    .within(socket.network, || self.fill_datagrams(end.as_fd(), socket, sockets))
                    .context(|| format!("put back the datagrams of {}", describe(index, socket)))?;
                if lost > 0 {
                    let of = describe(index, socket);
                    let why = "the addresses of their senders are in use";
                    notes.push(format!("unread messages of {of} are lost ({lost}): {why}"));
                }
            }
        }
        let shared_ports = shared_ports(sockets);
        for (index, (end, socket)) in self.ends.iter().zip(sockets).enumerate() {
            let what = || describe(index, socket);
            if let InetState::Associated { remote } = &socket.state {
                rustix::net::connect(end, &address(remote)?)
                    .map_err(std::io::Error::from)
                    .context(what)?;
            }
            if socket.kind != STREAM && socket.shutdown != 0 {
                tcp::shut_down(end.as_fd(), socket.shutdown).context(what)?;
            }
            sockopt::set(end.as_fd(), &socket.options, Phase::Late, socket.received.0.len()).context(what)?;
            multicast::join(end.as_fd(), &socket.multicast).context(what)?;
            if port_of(socket).is_some_and(|port| shared_ports.contains(&port)) {
                let own = sockopt::number(&socket.options, libc::SOL_SOCKET, libc::SO_REUSEPORT);
                kernel::set_number(end.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, own).context(what)?;
            }
        }
        Ok(notes)
    }

    /// Gives how many are lost, since others have the addresses of those who sent them.
    fn fill_datagrams(&self, end: BorrowedFd<'_>, socket: &InetSocket, sockets: &[InetSocket]) -> Result<usize> {
        let Some(local) = &socket.local else {
            return Err(Error::new(ErrorKind::Damaged, "it has no address"));
        };
        let local = plain(address(local)?);
        let enlarged = sockopt::enlarge_buffers(end)?;
        let mut lost = 0;
        for datagram in &socket.queue {
            let sender = plain(address(&datagram.sender)?);
            let what = || format!("send {} bytes again from {sender}", datagram.data.0.len());
            let mut ip = local.ip();
            if ip.is_unspecified() {
                ip = if kernel::is_local(sender.ip()) {
                    sender.ip()
                } else {
                    kernel::loopback(if sender.is_ipv4() {
                        libc::AF_INET
                    } else {
                        libc::AF_INET6
                    })
                };
            }
            let to = SocketAddr::new(ip, local.port());
            // A socket of the job that has the address, or one for the moment.
            let known = sockets.iter().position(|s| {
                let same = |e: &Endpoint| {
                    address(e).is_ok_and(|a| {
                        let a = plain(a);
                        a.port() == sender.port() && (a.ip() == sender.ip() || a.ip().is_unspecified())
                    })
                };
                s.kind == DGRAM
                    && (s.network, s.protocol) == (socket.network, socket.protocol)
                    && s.local.as_ref().is_some_and(same)
                    && (s.family == libc::AF_INET) == sender.is_ipv4()
            });
            let passing;
            let from = match known {
                Some(known) => self.ends[known].as_fd(),
                None => {
                    let family = if sender.is_ipv4() {
                        libc::AF_INET
                    } else {
                        libc::AF_INET6
                    };
                    passing = kernel::create(family, DGRAM, socket.protocol).context(what)?;
                    if !kernel::is_local(sender.ip()) {
                        forge(passing.as_fd(), sender.ip()).context(what)?;
                    }
                    kernel::set_number(passing.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).context(what)?;
                    match rustix::net::bind(&passing, &sender) {
                        Ok(()) => passing.as_fd(),
                        // Whoever has sent it goes on already, here or in a job beside this one. Datagrams may be lost.
                        Err(rustix::io::Errno::ADDRINUSE) => {
                            lost += 1;
                            continue;
                        }
                        Err(error) => return Err(std::io::Error::from(error)).context(what),
                    }
                }
            };
            let before = held(end).context(what)?;
            rustix::net::sendto(from, &datagram.data.0, rustix::net::SendFlags::empty(), &to)
                .map_err(std::io::Error::from)
                .context(what)?;
            let deadline = Instant::now() + LOCAL_LIMIT;
            while held(end).context(what)? == before {
                if Instant::now() > deadline {
                    return Err(Error::new(ErrorKind::Incompatible, "it did not arrive").with_hint(
                        "a filter on this machine may be in the way, or net.core.rmem_max be smaller than it was",
                    ))
                    .context(what);
                }
                std::thread::yield_now();
            }
        }
        sockopt::shrink_buffers(end, &enlarged)?;
        Ok(lost)
    }
}

/// Memory that a socket's receive queue takes, from SO_MEMINFO.
pub(super) fn held(socket: BorrowedFd<'_>) -> std::io::Result<u32> {
    let info = kernel::option(socket, libc::SOL_SOCKET, SO_MEMINFO)?;
    let first = info.first_chunk::<4>().ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(u32::from_ne_bytes(*first))
}

/// A socket of the image in words.
pub(super) fn describe(index: usize, socket: &InetSocket) -> String {
    let kind = match socket.kind {
        STREAM => "TCP",
        DGRAM => "datagram",
        _ => "raw IP",
    };
    match socket.local.as_ref().map(address) {
        Some(Ok(local)) => format!("{kind} socket {index} ({})", plain(local)),
        _ => format!("{kind} socket {index}"),
    }
}

/// Network, kind, protocol and port.
type Port = (Option<NetworkId>, i32, i32, u16);

fn port_of(socket: &InetSocket) -> Option<Port> {
    let local = address(socket.local.as_ref()?).ok()?;
    (local.port() != 0).then_some((socket.network, socket.kind, socket.protocol, local.port()))
}

/// Ports that several sockets of the image have, and that one of them shares with SO_REUSEPORT. (The option counts when
/// a socket is bound; it may be another one later.)
fn shared_ports(sockets: &[InetSocket]) -> HashSet<Port> {
    let mut counts: HashMap<Port, (usize, bool)> = HashMap::new();
    for socket in sockets {
        if let Some(port) = port_of(socket) {
            let (count, shared) = counts.entry(port).or_default();
            *count += 1;
            *shared |= sockopt::number(&socket.options, libc::SOL_SOCKET, libc::SO_REUSEPORT) != 0;
        }
    }
    let several = counts.into_iter().filter(|(_, (count, shared))| *count > 1 && *shared);
    several.map(|(port, _)| port).collect()
}

/// Makes and binds a socket that has no connection, and listens; `shares_port`: another one has its port, too.
fn make(socket: &InetSocket, shares_port: bool, networks: &Networks) -> Result<OwnedFd> {
    let new = networks.socket(socket.network, socket.family, socket.kind, socket.protocol)?;
    sockopt::set(new.as_fd(), &socket.options, Phase::Early, 0)?;
    if socket.kind == STREAM {
        // Its connections have the port already. The program's own setting comes last.
        kernel::set_number(new.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).context(|| "share the port")?;
    }
    if shares_port {
        // One of them had this only while the port was taken. Here, too, the program's own setting comes last.
        kernel::set_number(new.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).context(|| "share the port")?;
    }
    if let Some(local) = &socket.local {
        let mut local = address(local)?;
        if socket.kind == RAW {
            local.set_port(0);
        }
        let bind = || match socket.kind {
            STREAM => ports::bind(new.as_fd(), &local, (networks, socket.network), ports::LONG),
            _ => rustix::net::bind(&new, &local).map_err(std::io::Error::from),
        };
        let mut bound = bind();
        if bound
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL))
        {
            // It had been bound with IP_FREEBIND, which it may have given up since.
            let own = sockopt::number(&socket.options, libc::IPPROTO_IP, libc::IP_FREEBIND);
            kernel::set_number(new.as_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, 1).context(|| "set IP_FREEBIND")?;
            bound = bind();
            kernel::set_number(new.as_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, own).context(|| "set IP_FREEBIND")?;
        }
        bound.context(|| format!("bind to {local}")).map_err(in_use)?;
    }
    if let InetState::Listening { backlog } = socket.state {
        rustix::net::listen(&new, i32::try_from(backlog).unwrap_or(i32::MAX))
            .map_err(std::io::Error::from)
            .context(|| "listen")
            .map_err(in_use)?;
    }
    Ok(new)
}

/// Opens a socket made by [`Sockets::create`].
///
/// # Errors
/// As [`Sockets::open`].
pub fn restore(file: &OpenFile, id: InetSocketId, context: &mut RestoreContext<'_>) -> Result<Arc<OwnedFd>> {
    match &context.inet_sockets {
        Some(sockets) => sockets.open(id, file.flags),
        None => Err(Error::new(
            ErrorKind::Internal,
            "sockets are opened before they are made",
        )),
    }
}
