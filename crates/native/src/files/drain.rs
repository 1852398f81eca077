//! TCP connections to other jobs that are saved in the same stop: they are emptied before anything is saved.
//!
//! When all jobs stand still nobody writes any more, so that what was written only has to arrive. A receiver whose
//! buffer is full gets a larger one for that time; nothing is taken from anybody, and whoever dies meanwhile harms
//! nobody. What has arrived is in one place then, the receiver's queue, and is saved with the receiver.
//!
//! This needs no engine and no privilege: it works on copies of the descriptors.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cpr_kernel::inet::{self as kernel, plain, state};
use cpr_types::{Connection, ConnectionEnd, Context, Error, ErrorKind, Result, Traffic};

use super::tcp::Arrival;
use super::{Target, inet, save, socket, tcp};

/// How long it may take until something more arrives. Jobs on other hosts may be told later to make room.
const PROGRESS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// The same where a sender tries again by itself: less than all of them have for this step (`step_s` of a grid).
const LATEST: Duration = Duration::from_secs(45);

/// Which connections lead to jobs that are saved in the same stop. It is known when all of them stand still.
#[derive(Debug, Clone, Default)]
pub struct Channels(Arc<OnceLock<HashSet<Connection>>>);

impl Channels {
    /// Tells which they are; only the first time counts.
    pub fn tell(&self, connections: &[Connection]) {
        // Whoever tells it tells it once.
        let _ = self.0.set(connections.iter().copied().collect());
    }

    pub(super) fn are_known(&self) -> bool {
        self.0.get().is_some()
    }

    pub(super) fn has(&self, connection: Connection) -> bool {
        self.0.get().is_some_and(|known| known.contains(&connection))
    }
}

/// A connection of a stopped process.
#[derive(Debug)]
struct End {
    label: String,
    handle: OwnedFd,
    end: ConnectionEnd,
    /// It has got a larger receive buffer.
    enlarged: bool,
}

/// TCP connections of stopped processes that lead to others.
#[derive(Debug)]
pub struct Outward(Vec<End>);

impl Outward {
    /// How often queues are looked at, and room is to be made.
    pub const LOOK: Duration = Duration::from_millis(1);

    /// Looks at these processes, which must be stopped. Connections in network namespaces that a job has made are left
    /// out.
    ///
    /// # Errors
    /// A descriptor cannot be looked at.
    pub fn of(pids: &[i32]) -> Result<Outward> {
        let home = kernel::create(libc::AF_INET, libc::SOCK_DGRAM, 0).context(|| "make a socket")?;
        let home = kernel::network_cookie(home.as_fd()).context(|| "ask for our network namespace")?;
        let mut found: Vec<End> = Vec::new();
        let mut known = HashSet::new();
        for pid in pids {
            let Some(target) = Target::open(*pid)? else { continue };
            let what = || format!("look at the descriptors of process {pid}");
            for fd in target.proc.descriptors().context(what)? {
                if !target.proc.fd_link(fd).context(what)?.starts_with(b"socket:") {
                    continue;
                }
                let handle = save::get(&target, fd)?;
                let inode = rustix::fs::fstat(&handle).map_err(std::io::Error::from).context(what)?;
                if !known.insert(inode.st_ino) || kernel::network_cookie(handle.as_fd()).ok() != Some(home) {
                    continue;
                }
                if let Some(end) = look(handle.as_fd()) {
                    let label = format!("process {pid}, descriptor {fd}");
                    let enlarged = false;
                    found.push(End {
                        label,
                        handle,
                        end,
                        enlarged,
                    });
                }
            }
        }
        let all: HashSet<Connection> = found.iter().map(|end| end.end.connection).collect();
        found.retain(|end| !all.contains(&end.end.connection.reversed()));
        Ok(Outward(found))
    }

    /// What they are.
    pub fn ends(&self) -> Vec<ConnectionEnd> {
        self.0.iter().map(|end| end.end).collect()
    }

    /// Makes room for what is on its way to these processes. To be called every [`Outward::LOOK`] when they have been drained
    /// until all others are, too: what those have written can come later than all that was written here has arrived.
    ///
    /// # Errors
    /// A receive buffer cannot be looked at.
    pub fn make_room(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|end| {
            tcp::make_room(end.handle.as_fd(), &mut end.enlarged)
                .context(|| format!("{}: make room for what is on its way", end.label))
        })
    }

    /// Waits until all that was written into these has arrived, and forgets the others. The other ends must be drained
    /// at the same time. A receive buffer that had to be enlarged stays so, for what is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the other end has no room for what was written.
    pub fn drain(&mut self, which: &[Connection]) -> Result<()> {
        let wanted: HashSet<Connection> = which.iter().copied().collect();
        self.0.retain(|end| wanted.contains(&end.end.connection));
        let mut arrival = Arrival::within(PROGRESS, LATEST);
        loop {
            self.make_room()?;
            let mut now = 0;
            let mut late = None;
            for (index, end) in self.0.iter().enumerate() {
                let queued = kernel::unacknowledged(end.handle.as_fd());
                let queued = queued.context(|| format!("{}: ask for the length of the send queue", end.label))?;
                if queued > 0 {
                    now += queued;
                    late = Some(index);
                }
            }
            let Some(late) = late.and_then(|index| self.0.get(index)) else {
                return Ok(());
            };
            if !arrival.is_near(now, || first_to_send_again(&self.0))? {
                let (label, Connection { local, remote }) = (&late.label, late.end.connection);
                let text = format!(
                    "{label}: the TCP socket {local}, connected to {remote}, has written data for which the other end has no room",
                );
                return Err(Error::new(ErrorKind::Unsupported, text)
                    .with_hint("try again when the program has read them, or raise the sysctl net.ipv4.tcp_rmem"));
            }
            std::thread::sleep(Outward::LOOK);
        }
    }
}

/// After how long the first of them sends again, of those that have something to send and room for it.
fn first_to_send_again(ends: &[End]) -> Result<Option<Duration>> {
    let mut first = None;
    for end in ends {
        let again = kernel::sends_again_after(end.handle.as_fd());
        let again = again.context(|| format!("{}: ask when it sends again", end.label))?;
        first = first.into_iter().chain(again).min();
    }
    Ok(first)
}

/// The end of a connection, if a socket is one.
fn look(handle: BorrowedFd<'_>) -> Option<ConnectionEnd> {
    if socket::classify(handle).ok()? != socket::Class::Inet || inet::identity(handle).ok()?.1 != inet::STREAM {
        return None;
    }
    let connected = [
        state::ESTABLISHED,
        state::FIN_WAIT1,
        state::FIN_WAIT2,
        state::CLOSE_WAIT,
        state::CLOSING,
        state::LAST_ACK,
    ];
    let info = kernel::tcp_info(handle).ok()?;
    if !connected.contains(&info.state) {
        return None;
    }
    let local = rustix::net::getsockname(handle).ok()?;
    let remote = rustix::net::getpeername(handle).ok()??;
    let shares_port = kernel::number(handle, libc::SOL_SOCKET, libc::SO_REUSEADDR).ok()? != 0;
    Some(ConnectionEnd {
        connection: Connection {
            local: plain(SocketAddr::try_from(local).ok()?),
            remote: plain(SocketAddr::try_from(remote).ok()?),
        },
        shares_port,
        traffic: Some(Traffic {
            written: info.written,
            received: info.received,
        }),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    #[test]
    fn a_sender_whose_segments_were_thrown_away_and_which_tries_again_later_and_later_is_waited_for() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut receiver = listener.accept().unwrap().0;
        sender.set_nonblocking(true).unwrap();
        // The receiver has promised more room than it has then, and has something that it does not read.
        let buffer = |size| kernel::set_number(receiver.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, size).unwrap();
        buffer(1 << 20);
        let mut written = (&sender).write(&[1; 50_000]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while cpr_kernel::socket::queued(receiver.as_fd()).unwrap() < written {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Outward::LOOK);
        }
        buffer(1);
        while let Ok(more) = (&sender).write(&[1; 50_000]) {
            written += more;
        }
        // It has just tried again, and will not do so for longer than is waited for without a reason.
        let timer = || {
            let info = kernel::option(sender.as_fd(), libc::IPPROTO_TCP, 11).unwrap();
            let number = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap());
            assert!(number(24) > 0, "segments are on their way");
            (
                Duration::from_micros(number(8).into()),
                Duration::from_millis(number(44).into()),
            )
        };
        while !matches!(timer(), (all, since) if all > PROGRESS * 3 / 2 && since < all / 8) {
            assert!(Instant::now() < deadline, "{:?}", timer());
            std::thread::sleep(Outward::LOOK);
        }
        let end = |socket: &TcpStream| End {
            label: "a socket".into(),
            handle: socket.as_fd().try_clone_to_owned().unwrap(),
            end: look(socket.as_fd()).unwrap(),
            enlarged: false,
        };
        let mut ends = Outward(vec![end(&sender), end(&receiver)]);
        let which: Vec<Connection> = ends.ends().iter().map(|end| end.connection).collect();
        ends.drain(&which).unwrap();
        assert_eq!(cpr_kernel::socket::queued(receiver.as_fd()).unwrap(), written);
        drop((ends, sender));
        let mut all = Vec::new();
        receiver.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), written);
    }
}
