//! Which ends of connections belong together, and what is known of the other one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use cpr_image::model::NetworkId;
use cpr_kernel::inet::{self as kernel, TcpDiag, plain, state};
use cpr_types::{Connection, Context, Result};
use rustix::event::PollFlags;

use super::TCP;
use crate::TcpPolicy;
use crate::files::drain::Channels;
use crate::files::inet::{Entry, STREAM};
use crate::files::netlink;
use crate::files::socket::IPPROTO_MPTCP;
use crate::networks::Networks;

const TCP_ULP: i32 = 31;

/// What a TCP socket is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::files) enum Link {
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
pub(super) fn has_finished(state: u8) -> bool {
    [state::FIN_WAIT1, state::FIN_WAIT2, state::CLOSING, state::LAST_ACK].contains(&state)
}

/// Whether the side with this state has received the other side's end.
pub(super) fn knows_end(state: u8) -> bool {
    [state::CLOSE_WAIT, state::LAST_ACK, state::CLOSING].contains(&state)
}

/// Finds out what all TCP sockets are connected to; others are [`Link::Fresh`].
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what cannot be saved under this policy.
pub(in crate::files) fn links(
    entries: &[Entry],
    policy: TcpPolicy,
    channels: Option<&Channels>,
    networks: &Networks,
) -> Result<Vec<Link>> {
    let streams = Streams::of(entries);
    let all = entries.iter().enumerate().map(|(index, entry)| match entry.kind {
        STREAM => networks.within(entry.network, || link(index, &streams, policy, channels)),
        _ => Ok(Link::Fresh),
    });
    all.collect()
}

/// The TCP sockets of a job by what others find them by.
#[derive(Debug)]
pub(in crate::files) struct Streams<'a> {
    entries: &'a [Entry],
    /// Positions by own address and other one, the first first.
    by_addresses: HashMap<(SocketAddr, SocketAddr), Vec<usize>>,
    /// Positions of listening sockets by network and port, the first first.
    listening: HashMap<(Option<NetworkId>, u16), Vec<usize>>,
}

impl<'a> Streams<'a> {
    pub(in crate::files) fn of(entries: &'a [Entry]) -> Self {
        let mut streams = Streams {
            entries,
            by_addresses: HashMap::new(),
            listening: HashMap::new(),
        };
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.kind == STREAM) {
            if let Some(addresses) = addresses(entry) {
                streams.by_addresses.entry(addresses).or_default().push(index);
            }
            if let (state::LISTEN, Some(local)) = (entry.info.state, entry.local) {
                let at = (entry.network, local.port());
                streams.listening.entry(at).or_default().push(index);
            }
        }
        streams
    }

    /// Those with these addresses, whatever network they are in.
    fn with_addresses(&self, local: SocketAddr, remote: SocketAddr) -> &[usize] {
        self.by_addresses.get(&(local, remote)).map_or(&[], Vec::as_slice)
    }

    /// Those in the network of `entry` that have its addresses the other way round.
    fn reversed(&self, entry: &Entry, local: SocketAddr, remote: SocketAddr) -> impl Iterator<Item = usize> {
        let network = entry.network;
        let found = self.with_addresses(remote, local).iter().copied();
        found.filter(move |other| self.entries[*other].network == network)
    }

    /// The other end of a connection: in the same network or, where the address is not one of that, in another one, if
    /// there can be no doubt which two belong together.
    fn other_end(&self, entry: &Entry, local: SocketAddr, remote: SocketAddr) -> Option<usize> {
        if let Some(index) = self.reversed(entry, local, remote).next() {
            return Some(index);
        }
        if kernel::is_local(remote.ip()) {
            return None;
        }
        match (self.with_addresses(remote, local), self.with_addresses(local, remote)) {
            ([other], [_]) => Some(*other),
            _ => None,
        }
    }

    /// The listening socket of the job from which a connection waits to be accepted.
    fn waits_for(&self, entry: &Entry) -> Option<usize> {
        let (_, remote) = addresses(entry)?;
        let at_port = self.listening.get(&(entry.network, remote.port()))?;
        let listens = |other: &&usize| {
            self.entries[**other].local.is_some_and(|local| {
                let ip = plain(local).ip();
                ip == remote.ip() || (ip.is_unspecified() && (ip.is_ipv6() || remote.is_ipv4()))
            })
        };
        let listener = at_port.iter().find(listens)?;
        let other = reverse(entry).ok()??;
        let waits = other.inode == 0
            && !has_finished(other.state)
            && other.state != state::TIME_WAIT
            && entry.info.state != state::SYN_SENT;
        waits.then_some(*listener)
    }

    /// How many connections of the job wait to be accepted from the listening socket at this position.
    fn waiting_for(&self, listener: usize) -> usize {
        let streams = self.entries.iter().filter(|entry| entry.kind == STREAM);
        streams.filter(|entry| self.waits_for(entry) == Some(listener)).count()
    }
}

/// What one TCP socket is connected to, in whose network this thread is.
///
/// # Errors
/// As [`links`].
pub(in crate::files) fn link(
    index: usize,
    streams: &Streams<'_>,
    policy: TcpPolicy,
    channels: Option<&Channels>,
) -> Result<Link> {
    let entry = &streams.entries[index];
    let handle = entry.handle.as_fd();
    let again = "try again a little later";
    // Multipath TCP is one of them.
    if entry.protocol != IPPROTO_MPTCP
        && kernel::option(handle, TCP, TCP_ULP).is_ok_and(|name| name.first().is_some_and(|b| *b != 0))
    {
        return Err(entry.refuse("has a protocol such as TLS in the kernel, which is not supported", ""));
    }
    let ready = netlink::ready(handle).context(|| format!("{}: poll it", entry.label))?;
    match entry.info.state {
        state::LISTEN => {
            let waiting = entry.info.waiting as usize;
            if waiting > 0 && policy != TcpPolicy::Close && waiting > streams.waiting_for(index) {
                return Err(entry.not_now(
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
                    let mut others = streams.reversed(entry, local, remote);
                    others.find(|other| has_ended(&streams.entries[*other]))
                });
            return Ok(other
                .filter(|other| *other != index)
                .map_or(Link::Ended { reset }, Link::Inner));
        }
        state::CLOSE => return Ok(Link::Fresh),
        state::SYN_SENT if entry.remote.is_some() => return Ok(Link::Connecting),
        state::SYN_SENT | state::SYN_RECV if policy != TcpPolicy::Close => {
            return Err(entry.not_now("is being connected", again));
        }
        _ => {}
    }
    if ready.contains(PollFlags::PRI) {
        return Err(entry.not_now("holds out-of-band data", again));
    }
    let Some((local, remote)) = addresses(entry) else {
        return Err(entry.not_now("is about to end", again));
    };
    if local != remote
        && let Some(peer) = streams.other_end(entry, local, remote)
    {
        return Ok(Link::Inner(peer));
    }
    let connection = Connection { local, remote };
    if entry.network.is_none() && channels.is_some_and(|channels| channels.has(connection)) {
        return Ok(Link::Channel);
    }
    if let Some(listener) = streams.waits_for(entry) {
        let other = reverse(entry)?;
        if other.is_some_and(|other| other.receive_queue > 0) || kernel::unacknowledged(handle).is_ok_and(|n| n > 1) {
            return Err(entry.not_now(
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
            return Err(entry.not_now("was closed by the other side with data still under way", again));
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
