//! TCP connections: with both ends in the job, with one end closed, and to the outside.
//!
//! A connection within the job is made again by connecting the same two addresses on this machine, and what either side
//! had not read yet is sent again. That takes no privilege, and sequence numbers do not matter to anybody. A connection
//! to the outside is refused, or saved as one that was reset, or continued with TCP_REPAIR, as [`TcpPolicy`] says. One
//! to a job that is saved in the same stop is emptied by [`super::drain`] and made again by [`super::meet`].
//!
//! What was written and has not arrived (the reader's buffer is full) can be seen in repair mode only, which takes
//! CAP_NET_ADMIN over the network namespace. Who lacks it cannot checkpoint a connection with such data.
//!
//! Limits: a connection that has ended, and whose other end is not in the job, keeps neither its addresses nor its
//! error (which becomes ECONNRESET); window sizes and congestion state are those of a new connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::{Bytes, InetSocket, InetSocketId, InetState, NetworkId, PeerEnd, TcpConnection};
use cpr_kernel::inet::{self as kernel, Queue, Repair, TcpDiag, plain, state};
use cpr_types::{Connection, Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use super::drain::Channels;
use super::inet::{Entry, LOCAL_LIMIT, STREAM, Sockets, address, describe, endpoint, in_use};
use super::sockopt::{self, Enlarged, Phase};
use super::{SaveContext, netlink, ports, segment};
use crate::TcpPolicy;
use crate::networks::Networks;

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const TCP_QUICKACK: i32 = 12;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const TCP_ULP: i32 = 31;
/// TCP options by their codes in a header.
const OPT_MSS: u32 = 2;
const OPT_WINDOW: u32 = 3;
const OPT_SACK_PERMITTED: u32 = 4;
const OPT_TIMESTAMP: u32 = 8;
/// TCPI_OPT_*.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_WINDOW_SCALE: u8 = 4;
/// IP_LOCAL_PORT_RANGE (Linux 6.3).
pub(super) const IP_LOCAL_PORT_RANGE: i32 = 51;
pub(super) const IP_BIND_ADDRESS_NO_PORT: i32 = 24;

/// shutdown(2) of the receiving and of the sending side.
pub(super) const RECEIVE: u32 = 1;
pub(super) const SEND: u32 = 2;

/// How long data may be on their way within this machine while the job is stopped.
const ARRIVAL: Duration = Duration::from_millis(300);
/// Looks at a queue that changes meanwhile.
const LOOKS: usize = 20;

/// What a TCP socket is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing, and never was.
    Fresh,
    Listening,
    /// The socket at this position.
    Inner(usize),
    /// Somebody who has not answered yet.
    Connecting,
    /// It waits to be accepted from the listening socket at this position.
    Waiting(usize),
    /// Another job that is saved in the same stop.
    Channel,
    /// Nobody any more: the other side has closed.
    PeerClosed,
    /// It has ended in both directions, with an error or without.
    Ended {
        reset: bool,
    },
    /// Somebody outside.
    Outside,
}

/// Whether the side with this state has sent its end.
fn has_finished(state: u8) -> bool {
    [state::FIN_WAIT1, state::FIN_WAIT2, state::CLOSING, state::LAST_ACK].contains(&state)
}

/// Whether the side with this state has received the other side's end.
fn knows_end(state: u8) -> bool {
    [state::CLOSE_WAIT, state::LAST_ACK, state::CLOSING].contains(&state)
}

/// Finds out what all TCP sockets are connected to; others are [`Link::Fresh`].
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what cannot be saved under this policy.
pub(super) fn links(
    entries: &[Entry],
    policy: TcpPolicy,
    channels: Option<&Channels>,
    networks: &Networks,
) -> Result<Vec<Link>> {
    let all = (0..entries.len()).map(|index| match entries[index].kind {
        STREAM => networks.within(entries[index].network, || link(index, entries, policy, channels)),
        _ => Ok(Link::Fresh),
    });
    all.collect()
}

/// What one TCP socket is connected to, in whose network this thread is.
///
/// # Errors
/// As [`links`].
pub(super) fn link(index: usize, entries: &[Entry], policy: TcpPolicy, channels: Option<&Channels>) -> Result<Link> {
    let entry = &entries[index];
    let handle = entry.handle.as_fd();
    let again = "try again a little later";
    if kernel::option(handle, TCP, TCP_ULP).is_ok_and(|name| name.first().is_some_and(|b| *b != 0)) {
        return Err(entry.refuse("has a protocol such as TLS in the kernel, which is not supported", ""));
    }
    let ready = netlink::ready(handle).context(|| format!("{}: poll it", entry.label))?;
    match entry.info.state {
        state::LISTEN => {
            let waiting = entries
                .iter()
                .filter(|other| other.kind == STREAM && waits_for(other, entries) == Some(index))
                .count();
            if entry.info.waiting as usize > waiting && policy != TcpPolicy::Close {
                return Err(entry.refuse(
                    "has a waiting connection from outside the job",
                    "try again when the program has accepted it; --tcp close drops it",
                ));
            }
            return Ok(Link::Listening);
        }
        state::CLOSE if ready.contains(PollFlags::RDHUP) => {
            let reset = ready.contains(PollFlags::ERR);
            // Both ends are in the job, and neither sends any more.
            let other = (!reset)
                .then(|| addresses(entry))
                .flatten()
                .and_then(|(local, remote)| {
                    entries
                        .iter()
                        .position(|other| is_reverse(other, entry, local, remote) && has_ended(other))
                });
            return Ok(other
                .filter(|other| *other != index)
                .map_or(Link::Ended { reset }, Link::Inner));
        }
        state::CLOSE => return Ok(Link::Fresh),
        state::SYN_SENT if entry.remote.is_some() => return Ok(Link::Connecting),
        state::SYN_SENT | state::SYN_RECV if policy != TcpPolicy::Close => {
            return Err(entry.refuse("is being connected", again));
        }
        _ => {}
    }
    if ready.contains(PollFlags::PRI) {
        return Err(entry.refuse("holds out-of-band data", again));
    }
    let Some((local, remote)) = addresses(entry) else {
        return Err(entry.refuse("is about to end", again));
    };
    if local != remote
        && let Some(peer) = other_end(entry, entries, local, remote)
    {
        return Ok(Link::Inner(peer));
    }
    let connection = Connection { local, remote };
    if entry.network.is_none() && channels.is_some_and(|channels| channels.has(connection)) {
        return Ok(Link::Channel);
    }
    if let Some(listener) = waits_for(entry, entries) {
        let other = reverse(entry)?;
        if other.is_some_and(|other| other.receive_queue > 0) || kernel::unacknowledged(handle).is_ok_and(|n| n > 1) {
            return Err(entry.refuse(
                "has sent data before being accepted",
                "try again when the program has accepted the connection",
            ));
        }
        return Ok(Link::Waiting(listener));
    }
    if kernel::is_local(remote.ip()) && local != remote {
        let gone = match reverse(entry)? {
            None => knows_end(entry.info.state),
            Some(other) => other.inode == 0 && has_finished(other.state) || other.state == state::TIME_WAIT,
        };
        if gone && !knows_end(entry.info.state) {
            return Err(entry.refuse("was closed by the other side with data still under way", again));
        }
        if gone {
            return Ok(Link::PeerClosed);
        }
    }
    // Before the job is stopped nobody knows where it leads.
    let may_be_channel = channels.is_some_and(|channels| !channels.are_known());
    if policy == TcpPolicy::Refuse && !may_be_channel {
        return Err(entry.refuse(
            "whose other end is outside the job",
            "--tcp close saves it as a connection that was reset; --tcp keep continues it, as far as the network allows",
        ));
    }
    Ok(Link::Outside)
}

/// Whether a connection has ended in both directions, without an error that its owner does not know yet.
fn has_ended(entry: &Entry) -> bool {
    let ready = netlink::ready(entry.handle.as_fd()).unwrap_or(PollFlags::ERR);
    entry.kind == STREAM
        && entry.info.state == state::CLOSE
        && ready.contains(PollFlags::RDHUP)
        && !ready.contains(PollFlags::ERR)
}

/// The other end of a connection: in the same network or, where the address is not one of that, in another one, if
/// there can be no doubt which two belong together.
fn other_end(entry: &Entry, entries: &[Entry], local: SocketAddr, remote: SocketAddr) -> Option<usize> {
    let streams = || entries.iter().enumerate().filter(|(_, other)| other.kind == STREAM);
    if let Some((index, _)) = streams().find(|(_, other)| is_reverse(other, entry, local, remote)) {
        return Some(index);
    }
    if kernel::is_local(remote.ip()) {
        return None;
    }
    let mut others = streams().filter(|(_, other)| addresses(other) == Some((remote, local)));
    let alike = streams().filter(|(_, other)| addresses(other) == Some((local, remote)));
    let (index, _) = others.next()?;
    (others.next().is_none() && alike.count() == 1).then_some(index)
}

/// Whether a socket has the addresses of another one in its network the other way round.
fn is_reverse(one: &Entry, other: &Entry, local: SocketAddr, remote: SocketAddr) -> bool {
    one.network == other.network && addresses(one) == Some((remote, local))
}

fn addresses(entry: &Entry) -> Option<(SocketAddr, SocketAddr)> {
    Some((plain(entry.local?), plain(entry.remote?)))
}

/// The other end of a connection within this machine.
fn reverse(entry: &Entry) -> Result<Option<TcpDiag>> {
    let Some((local, remote)) = addresses(entry) else {
        return Ok(None);
    };
    kernel::tcp_diag(remote, local)
        .context(|| format!("{}: ask the kernel about the other end", entry.label))
        .map_err(|e| e.with_hint("the kernel needs CONFIG_INET_DIAG"))
}

/// The listening socket of the job from which a connection waits to be accepted.
fn waits_for(entry: &Entry, entries: &[Entry]) -> Option<usize> {
    let (_, remote) = addresses(entry)?;
    let listens = |other: &Entry| {
        other.info.state == state::LISTEN
            && other.network == entry.network
            && other.local.is_some_and(|local| {
                let local = plain(local);
                local.port() == remote.port()
                    && (local.ip() == remote.ip()
                        || (local.ip().is_unspecified() && (local.is_ipv6() || remote.is_ipv4())))
            })
    };
    let listener = entries.iter().position(listens)?;
    let other = reverse(entry).ok()??;
    let waits = other.inode == 0
        && !has_finished(other.state)
        && other.state != state::TIME_WAIT
        && entry.info.state != state::SYN_SENT;
    waits.then_some(listener)
}

/// What happens to a socket of a job that is ended by its checkpoint, just before that.
#[derive(Debug)]
pub struct Ending {
    handle: OwnedFd,
    /// Nothing is sent; else both ends of the connection vanish at once, and leave the ports free.
    silent: bool,
}

impl Ending {
    /// Prepares the socket for the death of its owners. Our own descriptor of it is closed when this is dropped.
    pub fn prepare(&self) {
        // What fails here costs a minute's wait for the ports, or tells the other side of the end.
        if self.silent {
            if let Ok(repair) = Repair::enter(self.handle.as_fd()) {
                repair.keep();
            }
        } else {
            let now = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
            let _ = kernel::set_option(self.handle.as_fd(), SOCKET, libc::SO_LINGER, &now);
        }
    }
}

/// A connection that takes no packets while it is being saved and until its job has ended.
#[derive(Debug)]
pub struct Deaf(OwnedFd);

impl Deaf {
    fn make(handle: BorrowedFd<'_>) -> Result<Deaf> {
        let handle = handle
            .try_clone_to_owned()
            .context(|| "copy the descriptor of a connection")?;
        kernel::drop_incoming(handle.as_fd()).context(|| "keep packets from a connection")?;
        Ok(Deaf(handle))
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        // SO_DETACH_FILTER of what was attached above. On a connection that is closed it does not matter.
        let _ = kernel::set_number(self.0.as_fd(), SOCKET, libc::SO_DETACH_FILTER, 0);
    }
}

/// Saves a TCP socket.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for data that cannot be seen, [`ErrorKind::Denied`] for a connection to outside without
/// the privilege to continue it.
pub(super) fn save(entry: &Entry, link: &Link, entries: &[Entry], context: &mut SaveContext<'_>) -> Result<InetSocket> {
    let handle = entry.handle.as_fd();
    let what = || format!("{}: save the {}", entry.label, entry.name());
    let remote = entry
        .remote
        .map(endpoint)
        .ok_or_else(|| entry.refuse("is about to end", "try again"));
    let mut shutdown = 0;
    let ready = netlink::ready(handle).context(what)?;
    let ended = entry.info.state == state::CLOSE && ready.contains(PollFlags::RDHUP);
    if has_finished(entry.info.state) || ended {
        shutdown |= SEND;
    }
    if ready.contains(PollFlags::RDHUP) && !knows_end(entry.info.state) && !ended {
        shutdown |= RECEIVE;
    }
    let mut silent = false;
    let (state, received) = match *link {
        Link::Fresh => (InetState::Unconnected, Vec::new()),
        Link::Listening => {
            let backlog = entry.info.backlog;
            (InetState::Listening { backlog }, Vec::new())
        }
        Link::Connecting => (InetState::Connecting { remote: remote? }, Vec::new()),
        Link::Waiting(listener) => {
            let listener = InetSocketId(listener as u32);
            let remote = remote?;
            (InetState::Waiting { listener, remote }, Vec::new())
        }
        Link::Inner(peer) => {
            let received = receive_all(entry, &entries[peer]).context(what)?;
            let peer = InetSocketId(peer as u32);
            let remote = remote?;
            (InetState::Inner { peer, remote }, received)
        }
        Link::Channel => {
            if kernel::unacknowledged(handle).context(what)? > 0 {
                return Err(entry.refuse("has written data that have not arrived", "try again"));
            }
            (InetState::Channel { remote: remote? }, peek(entry).context(what)?)
        }
        Link::PeerClosed => (InetState::PeerClosed { remote: remote? }, peek(entry).context(what)?),
        Link::Ended { reset } => (InetState::Ended { reset }, peek(entry).context(what)?),
        Link::Outside if context.tcp == TcpPolicy::Keep => {
            silent = true;
            if kernel::filter(handle).context(what)?.is_some() {
                return Err(entry.refuse("to outside has a filter program, which is not supported", ""));
            }
            let deaf = context.ends_job.then(|| Deaf::make(handle)).transpose().context(what)?;
            let (connection, received) = outer(entry).context(what)?;
            context.deaf.extend(deaf);
            (InetState::Outer(Box::new(connection)), received)
        }
        Link::Outside => (InetState::Ended { reset: true }, peek(entry).context(what)?),
    };
    let ends = match *link {
        Link::Inner(_) | Link::Channel | Link::PeerClosed | Link::Waiting(_) => true,
        Link::Outside => silent,
        _ => false,
    };
    if ends && context.ends_job {
        let handle = entry.handle.try_clone().context(what)?;
        context.endings.push(Ending { handle, silent });
    }
    let mut image = entry.image(state)?;
    image.received = Bytes(received);
    image.shutdown = shutdown;
    if silent {
        sockopt::forget_filter(&mut image.options);
    }
    if matches!(link, Link::Ended { .. }) || (*link == Link::Outside && !silent) {
        // Of a connection that is no more the address is not needed, and might be somebody else's by then.
        (image.local, image.shutdown) = (None, 0);
    }
    Ok(image)
}

/// Everything in the receive queue, taking nothing.
fn peek(entry: &Entry) -> Result<Vec<u8>> {
    let handle = entry.handle.as_fd();
    let total = cpr_kernel::socket::queued(handle).context(|| "ask for the length of its queue")?;
    let data = peek_first(handle, total)?;
    if data.len() < total {
        return Err(Error::new(ErrorKind::Unsupported, "it holds out-of-band data")
            .with_hint("try again when the program has read it"));
    }
    Ok(data)
}

/// So much from the beginning of the receive queue, taking nothing.
pub(super) fn peek_first(handle: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    let set = |offset: i32| match kernel::set_number(handle, SOCKET, libc::SO_PEEK_OFF, offset) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other.context(|| "set the peek offset"),
    };
    let before = kernel::number(handle, SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    if before >= 0 {
        set(-1)?;
    }
    let result = kernel::peek_stream(handle, length).context(|| "look at its queue");
    if before >= 0 {
        set(before)?;
    }
    result
}

/// What `reader` has not read: its queue, and what `writer` wrote that has not arrived there.
fn receive_all(reader: &Entry, writer: &Entry) -> Result<Vec<u8>> {
    for _ in 0..LOOKS {
        if let Some(data) = try_receive_all(reader, writer)? {
            return Ok(data);
        }
    }
    Err(reader.refuse("receives data faster than can be saved", "try again"))
}

/// Tries once; none when something arrived meanwhile.
fn try_receive_all(reader: &Entry, writer: &Entry) -> Result<Option<Vec<u8>>> {
    let handle = writer.handle.as_fd();
    // Whatever arrived is acknowledged now rather than later.
    let _ = kernel::set_number(reader.handle.as_fd(), TCP, TCP_QUICKACK, 1);
    let unacknowledged = || kernel::unacknowledged(handle).context(|| "ask for the length of the send queue");
    let deadline = Instant::now() + ARRIVAL;
    loop {
        if unacknowledged()? == 0 {
            let data = peek(reader)?;
            return Ok((unacknowledged()? == 0).then_some(data));
        }
        match Repair::enter(handle) {
            Ok(repair) => return look_under_way(reader, writer, &repair),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error).context(|| "look at the send queue"),
        }
        if Instant::now() > deadline {
            return Err(writer.refuse(
                "has written data for which the reader has no room, and seeing them takes CAP_NET_ADMIN",
                "try again when the program has read them",
            ));
        }
        std::thread::yield_now();
    }
}

fn look_under_way(reader: &Entry, writer: &Entry, sending: &Repair<'_>) -> Result<Option<Vec<u8>>> {
    let what = || "look at data under way";
    let next = || {
        Repair::enter(reader.handle.as_fd())
            .and_then(|repair| repair.sequence(Queue::Receive))
            .context(what)
    };
    let expected = next()?;
    let written = sending.sequence(Queue::Send).context(what)?;
    let pending = kernel::unacknowledged(writer.handle.as_fd()).context(what)?;
    let missing = written.wrapping_sub(expected) as usize;
    // The end counts as one, and is the last to arrive.
    let end = usize::from(missing > 0 && has_finished(writer.info.state));
    let mut sent = sending.peek_sent(pending.saturating_sub(end)).context(what)?;
    let mut data = peek(reader)?;
    if next()? != expected {
        return Ok(None);
    }
    let missing = missing.saturating_sub(end);
    let Some(from) = sent.len().checked_sub(missing) else {
        return Ok(None);
    };
    data.extend(sent.split_off(from));
    Ok(Some(data))
}

/// A connection to outside, with what was received and not read.
fn outer(entry: &Entry) -> Result<(TcpConnection, Vec<u8>)> {
    let handle = entry.handle.as_fd();
    let remote = entry
        .remote
        .map(endpoint)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "not connected"))?;
    let what = || "look at the connection";
    let repair = Repair::enter(handle).context(|| "keep the connection").map_err(|e| {
        e.with_hint("--tcp keep takes CAP_NET_ADMIN over the network namespace; --tcp close takes no privilege")
    })?;
    let finished = has_finished(entry.info.state);
    let pending = kernel::unacknowledged(handle).context(what)?;
    // An end of ours that was acknowledged is in the queue no more, but it is in the sequence numbers.
    let end = usize::from(finished && pending > 0);
    let send_queue = repair.peek_sent(pending - end).context(what)?;
    let unsent = kernel::unsent(handle).context(what)?.saturating_sub(end);
    let send_sequence = repair
        .sequence(Queue::Send)
        .context(what)?
        .wrapping_sub(u32::from(finished));
    let peer_end = match entry.info.state {
        state::CLOSING => PeerEnd::Crossed,
        other if knows_end(other) => PeerEnd::First,
        _ => PeerEnd::Open,
    };
    let receive_sequence = repair
        .sequence(Queue::Receive)
        .context(what)?
        .wrapping_sub(u32::from(peer_end != PeerEnd::Open));
    let mut window = [0u8; 20];
    kernel::option_with(handle, TCP, TCP_REPAIR_WINDOW, &mut window).context(what)?;
    let max_segment = kernel::number(handle, TCP, libc::TCP_MAXSEG).context(what)?;
    let timestamp = kernel::number(handle, TCP, TCP_TIMESTAMP).context(what)?;
    drop(repair);
    let received = peek(entry)?;
    let mut words = [0u32; 5];
    for (word, bytes) in words.iter_mut().zip(window.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // rcv_wup, the last sequence number acknowledged, may count the end, too.
    if peer_end != PeerEnd::Open && words[4] == receive_sequence.wrapping_add(1) {
        words[4] = receive_sequence;
    }
    let connection = TcpConnection {
        remote,
        send_sequence,
        receive_sequence,
        send_queue: Bytes(send_queue),
        unsent: unsent as u32,
        options: u32::from(entry.info.options),
        send_scale: u32::from(entry.info.send_scale),
        receive_scale: u32::from(entry.info.receive_scale),
        max_segment: max_segment as u32,
        timestamp: timestamp as u32,
        window: words,
        peer_end,
    };
    Ok((connection, received))
}

/// Sockets as they are being made.
pub(super) struct Builder<'a> {
    sockets: &'a [InetSocket],
    networks: &'a Networks,
    ends: Vec<Option<OwnedFd>>,
    temporary: Vec<Option<OwnedFd>>,
}

/// A connection of two new sockets: one that listened, and one that connected.
struct Pair {
    accepted: OwnedFd,
    client: OwnedFd,
}

impl<'a> Builder<'a> {
    pub(super) fn new(sockets: &'a [InetSocket], networks: &'a Networks) -> Self {
        let nothing = || sockets.iter().map(|_| None).collect();
        Builder {
            sockets,
            networks,
            ends: nothing(),
            temporary: nothing(),
        }
    }

    pub(super) fn is_made(&self, index: usize) -> bool {
        let waits = matches!(
            self.sockets[index].state,
            InetState::Waiting { .. } | InetState::Connecting { .. }
        );
        self.ends[index].is_some() || waits
    }

    pub(super) fn add(&mut self, index: usize, end: OwnedFd) {
        self.ends[index] = Some(end);
    }

    pub(super) fn finish(self) -> Result<Sockets> {
        let ends: Option<Vec<OwnedFd>> = self.ends.into_iter().collect();
        let ends = ends.ok_or_else(|| Error::new(ErrorKind::Internal, "a socket was not made"))?;
        Ok(Sockets {
            ends,
            temporary: self.temporary,
        })
    }

    /// Makes everything that is or was connected.
    pub(super) fn connections(&mut self) -> Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            let what = || describe(index, socket);
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
        Ok(())
    }

    fn local(&self, index: usize) -> Result<SocketAddr> {
        match &self.sockets[index].local {
            Some(local) => address(local),
            None => Err(Error::new(
                ErrorKind::Damaged,
                "a connection of the image has no address",
            )),
        }
    }

    /// How likely a socket got its port by listening rather than by connecting.
    fn sharers(&self, index: usize) -> usize {
        let port = |s: &InetSocket| (s.network, s.local.as_ref().map(|l| l.port));
        let wanted = port(&self.sockets[index]);
        let same = |s: &&InetSocket| s.kind == STREAM && port(s) == wanted;
        self.sockets.iter().filter(same).count()
    }

    fn pair(&mut self, one: usize, other: usize) -> Result<()> {
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

    fn connect_pair(&self, server: usize, client: usize, patience: Duration) -> Result<Pair> {
        let (at, from) = (&self.sockets[server], &self.sockets[client]);
        let InetState::Inner { remote, .. } = &from.state else {
            return Err(Error::new(ErrorKind::Internal, "not a connection"));
        };
        let place = |socket: &InetSocket| Place(self.networks, socket.network, socket.family, patience);
        connect(
            (place(at), self.local(server)?),
            (place(from), Some(self.local(client)?), address(remote)?.ip()),
            &at.options,
            &from.options,
        )
    }

    fn closed_pair(&self, index: usize, remote: SocketAddr) -> Result<Pair> {
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
    pub(super) fn waiting(&mut self) -> Result<()> {
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
fn begin_to_connect(socket: &InetSocket, remote: SocketAddr, place: Place<'_>) -> Result<OwnedFd> {
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

fn blocking(end: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flags = if on { OFlags::empty() } else { OFlags::NONBLOCK };
    rustix::fs::fcntl_setfl(end, flags)
        .map_err(io::Error::from)
        .context(|| "set the flags of a socket")
}

pub(super) fn share_port(end: BorrowedFd<'_>) -> Result<()> {
    kernel::set_number(end, SOCKET, libc::SO_REUSEADDR, 1).context(|| "share the port")
}

/// Where TCP sockets are made: one of these networks (none is this thread's own), and the address family; how long one
/// may wait for a port that an ended connection holds.
#[derive(Debug, Clone, Copy)]
struct Place<'a>(&'a Networks, Option<NetworkId>, i32, Duration);

impl Place<'_> {
    fn socket(&self) -> Result<OwnedFd> {
        self.0.socket(self.1, self.2, STREAM, 0)
    }

    fn bind(&self, end: BorrowedFd<'_>, to: &SocketAddr) -> io::Result<()> {
        ports::bind(end, to, (self.0, self.1), self.3)
    }
}

/// Makes a connection within this machine: between `at`, a place and address to listen at, and a client at a place,
/// from an address, which sees the other end at an address.
fn connect(
    at: (Place<'_>, SocketAddr),
    from: (Place<'_>, Option<SocketAddr>, std::net::IpAddr),
    server_options: &[cpr_image::model::SocketOption],
    client_options: &[cpr_image::model::SocketOption],
) -> Result<Pair> {
    let listener = at.0.socket()?;
    sockopt::set(listener.as_fd(), server_options, Phase::Early, 0)?;
    share_port(listener.as_fd())?;
    let what = || format!("connect within this machine to {}", at.1);
    at.0.bind(listener.as_fd(), &at.1).context(what).map_err(in_use)?;
    rustix::net::listen(&listener, 16)
        .map_err(io::Error::from)
        .context(what)
        .map_err(in_use)?;
    let name = rustix::net::getsockname(&listener)
        .map_err(io::Error::from)
        .context(what)?;
    let port = SocketAddr::try_from(name)
        .map_err(io::Error::from)
        .context(what)?
        .port();
    let mut to = SocketAddr::new(from.2, port);
    if let (SocketAddr::V6(to), SocketAddr::V6(at)) = (&mut to, at.1) {
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
        wait(listener.as_fd(), PollFlags::IN, deadline).context(what)?;
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let (accepted, peer) = rustix::net::acceptfrom_with(&listener, flags)
            .map_err(io::Error::from)
            .context(what)?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(plain);
        if peer == Some(own) {
            return Ok(Pair { accepted, client });
        }
    }
}

/// A socket of a family connected from an address (if it matters) to a local one.
fn client(
    place: Place<'_>,
    from: Option<SocketAddr>,
    to: SocketAddr,
    options: &[cpr_image::model::SocketOption],
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
fn wait(socket: BorrowedFd<'_>, wanted: PollFlags, deadline: Instant) -> Result<()> {
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
fn send_all(socket: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
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
fn delivered(socket: BorrowedFd<'_>) -> Result<()> {
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
pub(super) fn shut_down(end: BorrowedFd<'_>, mask: u32) -> Result<()> {
    match cpr_kernel::socket::shutdown(end, mask) {
        // The other side has ended already; of sockets without connections the kernel says so when it is done.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other.context(|| "shut a connection down"),
    }
}

/// Puts back what was received and not read, shuts down what was shut down, and gives every socket its own settings
/// back that were changed for its making.
pub(super) fn fill(made: &mut Sockets, sockets: &[InetSocket], networks: &Networks) -> Result<()> {
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
                let now = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
                kernel::set_option(peer.as_fd(), SOCKET, libc::SO_LINGER, &now).context(what)?;
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
fn end_of_peer(
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
fn continue_outer(socket: &InetSocket, connection: &TcpConnection, networks: &Networks) -> Result<OwnedFd> {
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
