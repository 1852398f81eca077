//! Binding to ports that connections which have ended still hold.
//!
//! TCP remembers a connection for a minute after its end, at the side that closed first (TIME-WAIT). Where that socket
//! had no SO_REUSEADDR, nobody can be bound to its port meanwhile, whatever options the new socket has: Open MPI's
//! ranks connect to each other both at once, close one of the two connections, and have SO_REUSEADDR off. A job that
//! has lived for less than that minute, or an earlier one with the same ports, leaves such remainders.
//!
//! They are kept for packets that come late. Where both ends were on this machine there are none, and the remainder
//! goes when its other end is heard of once more: it answers a new connection's first packet with an acknowledgement of
//! the old one, which is answered with a reset, which ends it (RFC 1337). That takes no privilege, but where both ends
//! have closed at once, and hold both ports: then whoever lacks CAP_NET_ADMIN waits for the minute to pass.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use cpr_image::model::NetworkId;
use cpr_kernel::inet::{self as kernel, plain, state};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::inet::STREAM;
use super::tcp::{IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE};
use crate::networks::Networks;

/// How long it may take to end remainders: one that has come about within the last second takes that second.
pub(super) const SHORT: Duration = Duration::from_secs(3);
/// How long they stay by themselves (TCP_TIMEWAIT_LEN), and a little more.
pub(super) const LONG: Duration = Duration::from_secs(65);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one of them may take to go.
const EACH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// Binds a TCP socket of a network to an address; ends what connections within this machine have left at the port, or
/// waits for its end as long as `patience` says.
///
/// # Errors
/// Of bind(2): the address is not of this machine, or somebody else's.
pub(super) fn bind(
    socket: BorrowedFd<'_>,
    local: &SocketAddr,
    (networks, network): (&Networks, Option<NetworkId>),
    patience: Duration,
) -> std::io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::net::bind(socket, local) {
            Err(Errno::ADDRINUSE) if local.port() != 0 && Instant::now() < deadline => {
                let freed = networks.within(network, || free(local.port()));
                // Why nothing could be freed is of no use to anybody who asked for the port.
                if !freed.unwrap_or(false) {
                    return Err(Errno::ADDRINUSE.into());
                }
                if rustix::net::bind(socket, local).is_ok() {
                    return Ok(());
                }
                std::thread::sleep(PAUSE);
            }
            bound => return bound.map_err(std::io::Error::from),
        }
    }
}

/// Ends what connections within this machine have left at a port of this thread's network: whether there was anything,
/// and nobody listens there.
///
/// # Errors
/// The kernel does not list sockets.
fn free(port: u16) -> Result<bool> {
    let found = kernel::tcp_at_port(port).context(|| format!("list the sockets of port {port}"))?;
    if found.iter().any(|socket| socket.state == state::LISTEN) {
        return Ok(false);
    }
    let mut any = false;
    for ended in found.iter().filter(|socket| socket.state == state::TIME_WAIT) {
        let (local, remote) = (plain(ended.local), plain(ended.remote));
        if kernel::is_local(local.ip()) && kernel::is_local(remote.ip()) {
            any = true;
            // It may have gone meanwhile, or go at the next try.
            let ways = [Way::Bound, Way::Chosen, Way::Forced];
            let _ = ways.into_iter().any(|way| end(remote, local, way).is_ok());
        }
    }
    Ok(any)
}

/// How a port is had that may be held itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By bind(2).
    Bound,
    /// The kernel chooses it when it connects, from a range of one.
    Chosen,
    /// By bind(2) in repair mode, which nothing is in the way of. It takes CAP_NET_ADMIN.
    Forced,
}

/// Has the other end of a connection that has ended be heard of once more: `from` it `to` what is left.
fn end(from: SocketAddr, to: SocketAddr, way: Way) -> Result<()> {
    let what = || format!("end what is left of a connection from {from} to {to}");
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = kernel::create(family, STREAM, 0).context(what)?;
    let handle = socket.as_fd();
    let set = |level, option, value| kernel::set_number(handle, level, option, value).context(what);
    let mut source = from;
    let mut repair = None;
    set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if way == Way::Forced {
        repair = Some(kernel::Repair::enter(handle).context(what)?);
    }
    if way == Way::Chosen {
        set(libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
        let range = u32::from(from.port()) | u32::from(from.port()) << 16;
        set(libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range as i32)?;
        source.set_port(0);
    }
    rustix::net::bind(&socket, &source)
        .map_err(std::io::Error::from)
        .context(what)?;
    drop(repair);
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => {}
        Err(error) => return Err(std::io::Error::from(error)).context(what),
    }
    // It is refused as soon as the remainder has gone.
    let mut fds = [PollFd::from_borrowed_fd(handle, PollFlags::OUT)];
    match rustix::event::poll(&mut fds, Some(&EACH))
        .map_err(std::io::Error::from)
        .context(what)?
    {
        0 => Err(Error::new(ErrorKind::TimedOut, what())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    fn socket(reuse: bool) -> OwnedFd {
        let new = kernel::create(libc::AF_INET, STREAM, 0).unwrap();
        kernel::set_number(new.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(reuse)).unwrap();
        new
    }

    /// A port of which a connection's server side has closed first.
    fn left_behind(keep_listening: bool) -> (SocketAddr, Option<TcpListener>) {
        let listener = socket(false);
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let listener = TcpListener::from(listener);
        let at = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        listener.set_nonblocking(false).unwrap();
        drop(listener.accept().unwrap());
        // Its end has come; ours follows.
        assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        drop(client);
        (at, keep_listening.then_some(listener))
    }

    #[test]
    fn a_port_that_an_ended_connection_holds_is_free_at_once() {
        let (at, _) = left_behind(false);
        let taken = rustix::net::bind(socket(true), &at);
        assert_eq!(taken, Err(Errno::ADDRINUSE), "else there is nothing to show");
        let networks = Networks::home();
        bind(socket(true).as_fd(), &at, (&networks, None), SHORT).unwrap();
        assert!(!free(at.port()).unwrap(), "nothing is left");
    }

    #[test]
    fn a_port_where_somebody_listens_is_left_alone() {
        let (at, listener) = left_behind(true);
        let error = bind(socket(true).as_fd(), &at, (&Networks::home(), None), SHORT).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "no connection came");
    }
}
