//! Reading connections.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cpr_image::model::{Bytes, InetSocket, InetSocketId, InetState, PeerEnd, TcpConnection};
use cpr_kernel::inet::{self as kernel, Queue, Repair, state};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;

use super::arrival::Arrival;
use super::links::{Link, has_finished, knows_end};
use super::{RECEIVE, SEND, SOCKET, TCP, TCP_REPAIR_WINDOW, TCP_TIMESTAMP};
use crate::TcpPolicy;
use crate::files::inet::{Entry, endpoint};
use crate::files::meet::vanish_on_close;
use crate::files::sockopt;
use crate::files::{SaveContext, inet, netlink};

/// Looks at a queue that changes meanwhile.
const LOOKS: usize = 20;
/// How long data may be on their way within this machine while the job is stopped.
const ARRIVAL: Duration = Duration::from_millis(300);
/// How long a sender may be waited for that tries again by itself.
const LATEST: Duration = Duration::from_secs(15);
/// How often it is looked at then.
const LOOK: Duration = Duration::from_millis(1);
const TCP_QUICKACK: i32 = 12;

/// What happens to a socket of a job that is ended by its checkpoint, just before that.
#[derive(Debug)]
pub struct Ending {
    pub(super) handle: Arc<OwnedFd>,
    /// Nothing is sent; else both ends of the connection vanish at once, and leave the ports free.
    pub(super) silent: bool,
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
            let _ = vanish_on_close(self.handle.as_fd(), true);
        }
    }
}

/// A connection that takes no packets while it is being saved and until its job has ended.
#[derive(Debug)]
pub struct Deaf(OwnedFd);

impl Deaf {
    pub(super) fn make(handle: BorrowedFd<'_>) -> Result<Deaf> {
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
pub(in crate::files) fn save(
    entry: &Entry,
    link: &Link,
    entries: &[Entry],
    context: &mut SaveContext<'_>,
) -> Result<InetSocket> {
    let handle = entry.handle.as_fd();
    let what = || format!("{}: save the {}", entry.label, entry.name());
    let remote = entry
        .remote
        .map(endpoint)
        .ok_or_else(|| entry.not_now("is about to end", "try again"));
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
                return Err(entry.not_now("has written data that have not arrived", "try again"));
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
        let handle = Arc::clone(&entry.handle);
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
pub(super) fn peek(entry: &Entry) -> Result<Vec<u8>> {
    let handle = entry.handle.as_fd();
    let total = cpr_kernel::socket::queued(handle).context(|| "ask for the length of its queue")?;
    let data = peek_first(handle, total)?;
    if data.len() < total {
        return Err(Error::new(ErrorKind::Unsupported, "it holds out-of-band data")
            .with_hint("try again when the program has read it")
            .passing());
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
pub(super) fn receive_all(reader: &Entry, writer: &Entry) -> Result<Vec<u8>> {
    for _ in 0..LOOKS {
        if let Some(data) = try_receive_all(reader, writer)? {
            return Ok(data);
        }
    }
    Err(reader.not_now("receives data faster than can be saved", "try again"))
}

/// Tries once; none when something arrived meanwhile.
pub(super) fn try_receive_all(reader: &Entry, writer: &Entry) -> Result<Option<Vec<u8>>> {
    let handle = writer.handle.as_fd();
    // Whatever arrived is acknowledged now rather than later.
    let _ = kernel::set_number(reader.handle.as_fd(), TCP, TCP_QUICKACK, 1);
    let unacknowledged = || kernel::unacknowledged(handle).context(|| "ask for the length of the send queue");
    let (mut enlarged, mut arrival) = (false, Arrival::within(ARRIVAL, LATEST));
    loop {
        let pending = unacknowledged()?;
        if pending == 0 {
            let data = peek(reader)?;
            return Ok((unacknowledged()? == 0).then_some(data));
        }
        match Repair::enter(handle) {
            Ok(repair) => return look_under_way(reader, writer, &repair),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error).context(|| "look at the send queue"),
        }
        // Without that privilege they have to arrive.
        make_room(reader.handle.as_fd(), &mut enlarged).context(|| format!("{}: make room", reader.label))?;
        let again = || kernel::sends_again_after(handle).context(|| "ask when they are sent again");
        if !arrival.is_near(pending, again)? {
            return Err(writer.not_now(
                "has written data for which the reader has no room, and seeing them takes CAP_NET_ADMIN",
                "try again when the program has read them, or raise the sysctl net.ipv4.tcp_rmem",
            ));
        }
        std::thread::sleep(LOOK);
    }
}

/// Enlarges a receive buffer that is half full, unless it is `enlarged` already, and lets the other side know at once
/// rather than when it asks: looking at a queue has the kernel tell where there is much more room than it has told
/// before. It stays large, for what is in it.
pub(in crate::files) fn make_room(handle: BorrowedFd<'_>, enlarged: &mut bool) -> Result<()> {
    let size = kernel::number(handle, SOCKET, libc::SO_RCVBUF).context(|| "ask for its size")?;
    let held = inet::held(handle).context(|| "ask how full it is")?;
    if !*enlarged && held as usize * 2 > size as usize {
        let sizes = sockopt::enlarge_buffers(handle)?;
        sockopt::shrink_send_buffer(handle, &sizes)?;
        *enlarged = true;
    }
    let queued = cpr_kernel::socket::queued(handle).context(|| "ask for the length of its queue")?;
    peek_first(handle, queued.min(1)).map(drop)
}

pub(super) fn look_under_way(reader: &Entry, writer: &Entry, sending: &Repair<'_>) -> Result<Option<Vec<u8>>> {
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
pub(super) fn outer(entry: &Entry) -> Result<(TcpConnection, Vec<u8>)> {
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
