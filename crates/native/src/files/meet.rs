//! Connections to other jobs that are restarted together: each restarter makes its ends, and they find each other.
//!
//! One end listens where it did, the other connects, as whoever restarts them all has said. Before anything else both
//! show that they know the secret of this restart, so that a stranger who comes first gets nothing and is nobody. Then
//! each tells the other what its program had received and not read, and the other writes it again: a queue is filled
//! from the other end only. Nobody reads more than was told, so that what is written again stays where the program will
//! find it.
//!
//! All connections of a job are made at once, by one loop that waits for all of them: whoever waits for one would keep
//! others waiting.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::{InetSocket, InetState};
use cpr_kernel::inet::{self as kernel, plain};
use cpr_types::{Connection, ConnectionEnd, Context, Error, ErrorKind, Links, Renewal, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::inet::{STREAM, address, describe, endpoint, in_use};
use super::ports;
use super::sockopt::{self, Enlarged, Phase};
use super::tcp::{IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE, share_port};
use crate::networks::Networks;

/// How long all may take to find each other. Others may have more to make before they come to it.
const LIMIT: Duration = Duration::from_secs(300);
/// How long a port may be somebody else's: that of a connection that has just ended is free again after a second.
const FREE: Duration = Duration::from_secs(4);
/// How much longer the kernel may keep the two addresses of a connection that has ended (TIME_WAIT, 60 s); they are free
/// after a second only within a machine, or where net.ipv4.tcp_tw_reuse is 1.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// When a connection is tried again that was refused.
const AGAIN: Duration = Duration::from_millis(20);
/// How long whoever is at the other end may take to show who it is. It does so at once; one that does not is a stranger
/// who has the other end's address, and gives way to it.
const UNPROVEN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 20 });
/// A proof is a keyed hash.
const PROOF: usize = 32;
/// Before what was not read comes its length.
const HEADER: usize = 8;
/// Most that was not read, bytes: a socket's buffer holds less.
const MOST: u64 = 1 << 30;
/// Most connections that wait for a listening socket of ours.
const BACKLOG: i32 = 128;

/// What is known of jobs that are restarted together with this one.
#[derive(Debug)]
pub struct Meeting<'a> {
    /// How to find them.
    pub links: &'a Links,
    /// Readable or hung up when there is no use in waiting any longer.
    pub abandoned: Option<OwnedFd>,
}

/// The connections of an image to other jobs.
///
/// # Errors
/// [`ErrorKind::Damaged`] for an address that is none.
pub fn channels(sockets: &[InetSocket]) -> Result<Vec<ConnectionEnd>> {
    let ends = sockets.iter().filter_map(|socket| {
        let connection = connection(socket)?;
        let shares_port = sockopt::number(&socket.options, libc::SOL_SOCKET, libc::SO_REUSEADDR) != 0;
        Some(connection.map(|connection| ConnectionEnd {
            connection,
            shares_port,
            traffic: None,
        }))
    });
    ends.collect()
}

fn connection(socket: &InetSocket) -> Option<Result<Connection>> {
    let (InetState::Channel { remote }, Some(local)) = (&socket.state, &socket.local) else {
        return None;
    };
    let plain = |endpoint| address(endpoint).map(plain);
    Some(plain(local).and_then(|local| {
        Ok(Connection {
            local,
            remote: plain(remote)?,
        })
    }))
}

/// Where listening sockets are to be bound whose address the job had on the machine it was saved on.
pub(super) fn new_addresses(sockets: &[InetSocket], meeting: Option<&Meeting<'_>>) -> Result<HashMap<IpAddr, IpAddr>> {
    let mut found = HashMap::new();
    for connection in sockets.iter().filter_map(connection) {
        if let Some(renewal) = meeting.and_then(|meeting| connection.as_ref().ok().and_then(|c| meeting.links.find(*c)))
        {
            found.insert(renewal.former.local.ip(), renewal.now.local.ip());
        }
    }
    Ok(found)
}

/// An image's socket with its address on this machine.
pub(super) fn moved(socket: &InetSocket, addresses: &HashMap<IpAddr, IpAddr>) -> Result<Option<InetSocket>> {
    let (InetState::Listening { .. }, Some(local)) = (&socket.state, &socket.local) else {
        return Ok(None);
    };
    let local = plain(address(local)?);
    let new = addresses.get(&local.ip()).filter(|new| **new != local.ip());
    Ok(new.map(|new| InetSocket {
        local: Some(endpoint(in_family(SocketAddr::new(*new, local.port()), socket.family))),
        ..socket.clone()
    }))
}

/// An address as a socket of a family has it.
fn in_family(at: SocketAddr, family: i32) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(v4) if family == libc::AF_INET6 => SocketAddr::new(v4.to_ipv6_mapped().into(), at.port()),
        _ => at,
    }
}

/// A connection that is being made.
struct Making<'a> {
    index: usize,
    socket: &'a InetSocket,
    renewal: &'a Renewal,
    stage: Stage,
}

enum Stage {
    /// The other end is to come.
    Awaited,
    /// To be tried at this time.
    Idle(Instant),
    /// connect(2) is under way.
    Connecting(OwnedFd),
    /// It is there.
    Talking(Talk),
    Done(OwnedFd),
}

/// What both ends say to each other.
struct Talk {
    end: OwnedFd,
    enlarged: Enlarged,
    /// Since when it is there.
    since: Instant,
    proven: bool,
    heard: Vec<u8>,
    /// What the other end wants to have again; none until its length is known.
    wanted: Option<usize>,
    to_say: Vec<u8>,
    said: usize,
    /// It has been given what it wants again.
    returned: bool,
}

/// Makes the connections of an image to other jobs; gives them with their positions.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where one leads to a job that is not restarted with this one; [`ErrorKind::TimedOut`]
/// and [`ErrorKind::Cancelled`] where the other does not come; [`ErrorKind::InUse`] for a port that is taken.
pub(super) fn meet(sockets: &[InetSocket], meeting: Option<&Meeting<'_>>) -> Result<Vec<(usize, OwnedFd)>> {
    let mut all = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        let Some(connection) = connection(socket) else { continue };
        let connection = connection.context(|| describe(index, socket))?;
        let renewal = meeting.and_then(|meeting| meeting.links.find(connection));
        let renewal = renewal.ok_or_else(|| {
            let text = format!(
                "{} is connected to {}, of a job that is not restarted with this one",
                describe(index, socket),
                connection.remote
            );
            Error::new(ErrorKind::Incompatible, text).with_hint("restart all jobs that were saved together")
        })?;
        let stage = match renewal.listens {
            true => Stage::Awaited,
            false => Stage::Idle(Instant::now()),
        };
        all.push(Making {
            index,
            socket,
            renewal,
            stage,
        });
    }
    let Some(meeting) = meeting.filter(|_| !all.is_empty()) else {
        return Ok(Vec::new());
    };
    let deadline = Instant::now() + LIMIT;
    let free = Instant::now() + FREE;
    let listeners = listen(&all, free, meeting)?;
    loop {
        let now = Instant::now();
        for one in &mut all {
            one.step(meeting.links, now, free).context(|| one.describe())?;
        }
        if all.iter().all(|one| matches!(one.stage, Stage::Done(_))) {
            break;
        }
        if now > deadline {
            let late = all.iter().find(|one| !matches!(one.stage, Stage::Done(_)));
            let text = late.map(Making::describe).unwrap_or_default();
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("{text}: the other end is not there in time"),
            )
            .with_hint("a packet filter may be in the way, or net.ipv4.tcp_rmem be smaller than it was"));
        }
        pause(&all, &listeners, deadline, meeting)?;
        for listener in &listeners {
            accept(listener, &mut all)?;
        }
    }
    let done = all.into_iter().filter_map(|one| match one.stage {
        Stage::Done(end) => Some((one.index, end)),
        _ => None,
    });
    Ok(done.collect())
}

/// Listens wherever another end is awaited.
fn listen(all: &[Making<'_>], free: Instant, meeting: &Meeting<'_>) -> Result<Vec<OwnedFd>> {
    let mut listeners: HashMap<(SocketAddr, i32), OwnedFd> = HashMap::new();
    let home = Networks::home();
    for one in all.iter().filter(|one| one.renewal.listens) {
        let at = one.renewal.now.local;
        if listeners.contains_key(&(at, one.socket.family)) {
            continue;
        }
        let what = || format!("listen at {at} for another job of the set");
        let listener = loop {
            let attempt = || -> Result<OwnedFd> {
                let new = sockopt::new_socket(one.socket.family, STREAM, 0)?;
                sockopt::set(new.as_fd(), &one.socket.options, Phase::Early, 0)?;
                share_port(new.as_fd())?;
                ports::bind(
                    new.as_fd(),
                    &in_family(at, one.socket.family),
                    (&home, None),
                    ports::SHORT,
                )
                .and_then(|()| Ok(rustix::net::listen(&new, BACKLOG)?))
                .context(what)?;
                rustix::io::ioctl_fionbio(&new, true)
                    .map_err(io::Error::from)
                    .context(what)?;
                Ok(new)
            };
            match attempt().map_err(in_use) {
                // A connection that has just ended still has it.
                Err(error) if error.kind() == ErrorKind::InUse && Instant::now() < free => {
                    rest(AGAIN, meeting)?;
                }
                result => break result?,
            }
        };
        listeners.insert((at, one.socket.family), listener);
    }
    Ok(listeners.into_values().collect())
}

/// Takes connections from whom they are awaited; others are closed at once.
fn accept(listener: &OwnedFd, all: &mut [Making<'_>]) -> Result<()> {
    let what = || "accept the connection of another job of the set";
    let at = rustix::net::getsockname(listener)
        .map_err(io::Error::from)
        .context(what)?;
    let at = plain(SocketAddr::try_from(at).map_err(io::Error::from).context(what)?);
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (accepted, peer) = match rustix::net::acceptfrom_with(listener, flags) {
            Ok(accepted) => accepted,
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => return Err(io::Error::from(error)).context(what),
        };
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(plain);
        let awaited = all.iter_mut().find(|one| {
            matches!(one.stage, Stage::Awaited) && one.renewal.now.local == at && Some(one.renewal.now.remote) == peer
        });
        if let Some(one) = awaited {
            one.stage = Stage::Talking(Talk::new(accepted, Vec::new())?);
        }
    }
}

/// Waits until something happens.
fn pause(all: &[Making<'_>], listeners: &[OwnedFd], deadline: Instant, meeting: &Meeting<'_>) -> Result<()> {
    let mut next = deadline;
    let mut polled: Vec<PollFd<'_>> = listeners.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    for one in all {
        match &one.stage {
            Stage::Idle(at) => next = next.min(*at),
            Stage::Connecting(end) => polled.push(PollFd::new(end, PollFlags::OUT)),
            Stage::Talking(talk) => {
                if !talk.proven {
                    next = next.min(talk.since + UNPROVEN);
                }
                let mut wanted = PollFlags::empty();
                if talk.hears() {
                    wanted |= PollFlags::IN;
                }
                if talk.said < talk.to_say.len() {
                    wanted |= PollFlags::OUT;
                }
                if wanted.is_empty() {
                    // What the other side gives back is seen by looking.
                    next = next.min(Instant::now() + AGAIN);
                } else {
                    polled.push(PollFd::new(&talk.end, wanted));
                }
            }
            Stage::Awaited | Stage::Done(_) => {}
        }
    }
    poll(polled, next.saturating_duration_since(Instant::now()), meeting)
}

fn rest(time: Duration, meeting: &Meeting<'_>) -> Result<()> {
    poll(Vec::new(), time, meeting)
}

fn poll<'a>(mut polled: Vec<PollFd<'a>>, time: Duration, meeting: &'a Meeting<'_>) -> Result<()> {
    let what = || "wait for the other jobs of the set";
    let watched = meeting.abandoned.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
    let is_watched = watched.is_some();
    polled.extend(watched);
    let time = Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    match rustix::event::poll(&mut polled, Some(&time)) {
        Err(rustix::io::Errno::INTR) => return Ok(()),
        result => result.map_err(io::Error::from).context(what)?,
    };
    match polled.last() {
        Some(last) if is_watched && !last.revents().is_empty() => Err(Error::new(
            ErrorKind::Cancelled,
            "one of the jobs that are restarted with this one is not there",
        )),
        _ => Ok(()),
    }
}

impl Making<'_> {
    fn describe(&self) -> String {
        let Connection { local, remote } = self.renewal.now;
        format!(
            "{}: make the connection from {local} to {remote} of another job again",
            describe(self.index, self.socket)
        )
    }

    /// Does what can be done without waiting.
    fn step(&mut self, links: &Links, now: Instant, free: Instant) -> Result<()> {
        let renewal = self.renewal;
        loop {
            self.stage = match std::mem::replace(&mut self.stage, Stage::Awaited) {
                Stage::Idle(at) if at <= now => match self.connect(now, free)? {
                    Some(end) => Stage::Connecting(end),
                    None => Stage::Idle(now + AGAIN),
                },
                Stage::Connecting(end) => match is_connected(end.as_fd())? {
                    Some(true) => {
                        self.settle(end.as_fd())?;
                        Stage::Talking(Talk::new(end, proof(links, &renewal.former, false).to_vec())?)
                    }
                    Some(false) => Stage::Idle(now + AGAIN),
                    None => {
                        self.stage = Stage::Connecting(end);
                        return Ok(());
                    }
                },
                Stage::Talking(mut talk) => match talk.step(links, renewal, &self.socket.received.0) {
                    Ok(true) => Stage::Done(talk.end),
                    Ok(false) if talk.proven || talk.since.elapsed() < UNPROVEN => {
                        self.stage = Stage::Talking(talk);
                        return Ok(());
                    }
                    // Nobody may keep the other end out by saying nothing.
                    Ok(false) if renewal.listens => Stage::Awaited,
                    Ok(false) => Stage::Idle(now + AGAIN),
                    // It was a stranger, or the other end is not ready yet.
                    Err(_) if !talk.proven && renewal.listens => Stage::Awaited,
                    Err(_) if !talk.proven => Stage::Idle(now + AGAIN),
                    Err(error) => return Err(error),
                },
                other => {
                    self.stage = other;
                    return Ok(());
                }
            };
        }
    }

    /// Takes back what chose the port.
    fn settle(&self, end: BorrowedFd<'_>) -> Result<()> {
        let own = sockopt::number(&self.socket.options, libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
        for (option, value) in [(IP_LOCAL_PORT_RANGE, 0), (IP_BIND_ADDRESS_NO_PORT, own)] {
            kernel::set_number(end, libc::IPPROTO_IP, option, value).context(|| "take back the choice of the port")?;
        }
        Ok(())
    }

    /// Begins to connect; none where the port is not free yet, which it is to be until `free`.
    fn connect(&self, now: Instant, free: Instant) -> Result<Option<OwnedFd>> {
        let Connection { local, remote } = self.renewal.now;
        let (local, remote) = (
            in_family(local, self.socket.family),
            in_family(remote, self.socket.family),
        );
        // A port that is bound is shared with listening sockets; one that the kernel chooses, of this one, with
        // connections that have just ended.
        let mut last = None;
        for bound in [true, false] {
            let end = sockopt::new_socket(self.socket.family, STREAM, 0)?;
            sockopt::set(end.as_fd(), &self.socket.options, Phase::Early, 0)?;
            rustix::io::ioctl_fionbio(&end, true)
                .map_err(io::Error::from)
                .context(|| "set the flags of a socket")?;
            let mut from = local;
            if bound {
                share_port(end.as_fd())?;
            } else {
                let range = u32::from(from.port()) | u32::from(from.port()) << 16;
                let choose =
                    kernel::set_number(end.as_fd(), libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1).and_then(|()| {
                        kernel::set_number(end.as_fd(), libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range as i32)
                    });
                choose.context(|| "choose the port")?;
                from.set_port(0);
            }
            let begun = rustix::net::bind(&end, &from).and_then(|()| rustix::net::connect(&end, &remote));
            match begun {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) if is_at(end.as_fd(), local)? => return Ok(Some(end)),
                // The port is outside the range for clients.
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => last = Some(rustix::io::Errno::ADDRINUSE),
                Err(rustix::io::Errno::CONNREFUSED) => return Ok(None),
                Err(error) => last = Some(error),
            }
        }
        match last {
            // Whatever has it may be about to end.
            Some(rustix::io::Errno::ADDRINUSE) if now < free && kernel::is_local(local.ip()) => Ok(None),
            // There was such a connection just now.
            Some(rustix::io::Errno::ADDRNOTAVAIL) if now < free + FORGOTTEN && kernel::is_local(local.ip()) => Ok(None),
            Some(error) => Err(io::Error::from(error))
                .context(|| format!("connect from {local} to {remote}"))
                .map_err(in_use),
            None => Ok(None),
        }
    }
}

/// Whether a socket has this port.
fn is_at(end: BorrowedFd<'_>, wanted: SocketAddr) -> Result<bool> {
    let what = || "ask for the port of a socket";
    let name = rustix::net::getsockname(end).map_err(io::Error::from).context(what)?;
    let name = SocketAddr::try_from(name).map_err(io::Error::from).context(what)?;
    Ok(name.port() == wanted.port())
}

/// Whether connect(2) has succeeded or failed; none while it is under way.
fn is_connected(end: BorrowedFd<'_>) -> Result<Option<bool>> {
    let what = || "wait for a connection";
    let mut polled = [PollFd::from_borrowed_fd(end, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut polled, Some(&now)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
        result => result.map_err(io::Error::from).context(what)?,
    };
    let result = rustix::net::sockopt::socket_error(end);
    Ok(Some(result.map_err(io::Error::from).context(what)?.is_ok()))
}

/// Whether both ends of a connection are gone at once when this one is closed (SO_LINGER).
pub(in crate::files) fn vanish_on_close(end: BorrowedFd<'_>, vanishes: bool) -> Result<()> {
    let value = [i32::from(vanishes).to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    kernel::set_option(end, libc::SOL_SOCKET, libc::SO_LINGER, &value).context(|| "say how a connection is to end")
}

/// Shows that its maker knows the secret of this restart: of one end of one connection.
fn proof(links: &Links, former: &Connection, listens: bool) -> [u8; PROOF] {
    let mut hash = blake3::Hasher::new_keyed(&links.secret);
    let text = format!("gridcpr channel {listens} {} {}", former.local, former.remote);
    hash.update(text.as_bytes());
    *hash.finalize().as_bytes()
}

impl Talk {
    fn new(end: OwnedFd, to_say: Vec<u8>) -> Result<Talk> {
        // Where it comes to nothing, nothing is to be left of it that keeps the addresses for a minute.
        vanish_on_close(end.as_fd(), true)?;
        // What is given back has to fit in.
        let enlarged = sockopt::enlarge_buffers(end.as_fd())?;
        Ok(Talk {
            end,
            enlarged,
            since: Instant::now(),
            proven: false,
            heard: Vec::new(),
            wanted: None,
            to_say,
            said: 0,
            returned: false,
        })
    }

    /// How much more is to be heard before it is known what comes then.
    fn missing(&self) -> usize {
        let whole = match (self.proven, self.wanted) {
            (false, _) => PROOF,
            (true, None) => HEADER,
            (true, Some(wanted)) => wanted,
        };
        whole.saturating_sub(self.heard.len())
    }

    fn hears(&self) -> bool {
        !self.returned && self.missing() > 0
    }

    /// Does what can be done without waiting; whether all is said and done. `unread` is what its own program had not
    /// read.
    fn step(&mut self, links: &Links, renewal: &Renewal, unread: &[u8]) -> Result<bool> {
        loop {
            let mut moved = self.say()?;
            while self.hears() && self.hear()? {
                moved = true;
            }
            if !self.returned && self.missing() == 0 {
                self.understand(links, renewal, unread)?;
                moved = true;
            }
            if !moved {
                break;
            }
        }
        if !self.returned || self.said < self.to_say.len() {
            return Ok(false);
        }
        let back = cpr_kernel::socket::queued(self.end.as_fd()).context(|| "look at the queue")?;
        if back < unread.len() {
            return Ok(false);
        }
        match unread.is_empty() {
            true => sockopt::shrink_buffers(self.end.as_fd(), &self.enlarged)?,
            false => sockopt::shrink_send_buffer(self.end.as_fd(), &self.enlarged)?,
        }
        vanish_on_close(self.end.as_fd(), false)?;
        Ok(true)
    }

    /// Something is there as a whole.
    fn understand(&mut self, links: &Links, renewal: &Renewal, unread: &[u8]) -> Result<()> {
        if !self.proven {
            let expected = proof(links, &renewal.former.reversed(), !renewal.listens);
            let shown: [u8; PROOF] = self.heard.as_slice().try_into().unwrap_or_default();
            // This comparison takes the same time whatever differs.
            if blake3::Hash::from_bytes(expected) != blake3::Hash::from_bytes(shown) {
                return Err(Error::new(ErrorKind::Denied, "a stranger is at the other end"));
            }
            self.proven = true;
            if renewal.listens {
                self.to_say.extend(proof(links, &renewal.former, true));
            }
            self.to_say.extend((unread.len() as u64).to_be_bytes());
            self.to_say.extend(unread);
        } else if self.wanted.is_none() {
            let length = u64::from_be_bytes(self.heard.as_slice().try_into().unwrap_or_default());
            if length > MOST {
                let text = format!("the other end has {length} bytes that were not read");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            self.wanted = Some(length as usize);
        } else {
            // What the other side is told comes first.
            self.to_say.append(&mut self.heard);
            self.returned = true;
        }
        self.heard.clear();
        Ok(())
    }

    /// Whether something was said.
    fn say(&mut self) -> Result<bool> {
        let before = self.said;
        while self.said < self.to_say.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.end, &self.to_say[self.said..], flags) {
                Ok(sent) => self.said += sent,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context(|| "send to the other end"),
            }
        }
        Ok(self.said > before)
    }

    /// Whether something was heard.
    fn hear(&mut self) -> Result<bool> {
        let mut chunk = vec![0u8; self.missing().min(1 << 18)];
        loop {
            match rustix::net::recv(&self.end, chunk.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Error::new(ErrorKind::Gone, "the other end has gone")),
                Ok((_, got)) => {
                    self.heard.extend_from_slice(&chunk[..got]);
                    return Ok(true);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context(|| "hear from the other end"),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cpr_image::model::Bytes;
    use std::net::{Ipv4Addr, TcpListener};

    fn local(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// A port that nobody has.
    fn free_port() -> u16 {
        TcpListener::bind(local(0)).unwrap().local_addr().unwrap().port()
    }

    fn end(from: SocketAddr, to: SocketAddr, received: &[u8]) -> InetSocket {
        InetSocket {
            network: None,
            family: libc::AF_INET,
            kind: STREAM,
            protocol: 0,
            state: InetState::Channel { remote: endpoint(to) },
            local: Some(endpoint(from)),
            options: Vec::new(),
            received: Bytes(received.to_vec()),
            queue: Vec::new(),
            multicast: Vec::new(),
            shutdown: 0,
        }
    }

    /// Two ends, which of them listens first, and how they find each other.
    fn pair(received: [&[u8]; 2]) -> ([InetSocket; 2], Links) {
        let mut ports = [free_port(), free_port()];
        ports.sort_unstable();
        let [one, other] = ports.map(local);
        let sockets = [end(one, other, received[0]), end(other, one, received[1])];
        let ends = channels(&sockets).unwrap();
        let links = Links {
            secret: [7; 32],
            renewals: Renewal::of(ends[0], ends[1], ends[0].connection).to_vec(),
        };
        (sockets, links)
    }

    #[test]
    fn a_stranger_at_the_address_of_the_other_end_who_says_nothing_gives_way_to_it() {
        let (sockets, links) = pair([b"one", b"other"]);
        let listens = links.renewals.iter().position(|renewal| renewal.listens).unwrap();
        let (at, from) = (links.renewals[listens].now.local, links.renewals[listens].now.remote);
        let make = |socket: InetSocket| {
            let links = links.clone();
            std::thread::spawn(move || {
                let meeting = Meeting {
                    links: &links,
                    abandoned: None,
                };
                meet(std::slice::from_ref(&socket), Some(&meeting))
            })
        };
        let awaits = make(sockets[listens].clone());
        // It comes first, from the very address.
        let stranger = loop {
            let new =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
            rustix::net::bind(&new, &from).unwrap();
            if rustix::net::connect(&new, &at).is_ok() {
                break std::net::TcpStream::from(new);
            }
            std::thread::yield_now();
        };
        let mut nothing = [0; 1];
        stranger.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let ended = io::Read::read(&mut &stranger, &mut nothing);
        let reset = ended
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        assert!(reset, "it has got something, or keeps the addresses: {ended:?}");
        drop(stranger);
        let comes = make(sockets[1 - listens].clone());
        let ends = [awaits, comes].map(|end| end.join().unwrap().unwrap());
        for made in &ends {
            assert_eq!(made.len(), 1);
            let linger = kernel::option(made[0].1.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER).unwrap();
            assert_eq!(linger, [0; 8], "it ends as any other does");
        }
    }

    #[test]
    fn nobody_waits_for_what_was_given_up_or_has_no_other_end() {
        let ([one, _], links) = pair([b"", b""]);
        let alone = meet(std::slice::from_ref(&one), None).unwrap_err();
        assert_eq!(alone.kind(), ErrorKind::Incompatible);
        let (hears, says) = rustix::pipe::pipe().unwrap();
        drop(says);
        let meeting = Meeting {
            links: &links,
            abandoned: Some(hears),
        };
        let given_up = meet(std::slice::from_ref(&one), Some(&meeting)).unwrap_err();
        assert_eq!(given_up.kind(), ErrorKind::Cancelled);
        let taken = TcpListener::bind(links.renewals[0].now.local).unwrap();
        let meeting = Meeting {
            links: &links,
            abandoned: None,
        };
        let in_use = meet(std::slice::from_ref(&one), Some(&meeting)).unwrap_err();
        assert_eq!(in_use.kind(), ErrorKind::InUse);
        drop(taken);
    }
}
