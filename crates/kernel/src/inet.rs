//! IP and netlink sockets from outside: options as raw bytes, TCP_INFO, TCP_REPAIR, inet_diag.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::netlink::Netlink;
use crate::socket::{INVALID, SOCK_DIAG_BY_FAMILY, checked, diagnose, u32_at};

/// Bytes of a `struct sock_filter`.
const INSTRUCTION: usize = 8;

/// TCP_ESTABLISHED and the other states of TCP_INFO and inet_diag, <net/tcp_states.h>.
pub mod state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Most bytes of any option.
const OPTION_MAX: usize = 4096;

/// SO_NETNS_COOKIE (Linux 5.14).
const SO_NETNS_COOKIE: i32 = 71;
const SO_PEERNAME: i32 = 28;
const TCP_INFO: i32 = 11;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
/// TCP_REPAIR_OFF_NO_WP: the socket leaves repair mode without sending a window probe.
const REPAIR_OFF_QUIET: i32 = -1;
/// <linux/sockios.h>
const SIOCOUTQ: libc::c_ulong = 0x5411;
const SIOCOUTQNSD: libc::c_ulong = 0x894B;

/// An option of any level as the kernel gives it.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; OPTION_MAX];
    let mut length = OPTION_MAX as libc::socklen_t;
    // SAFETY: the kernel stores at most `length` bytes, the size of `value`.
    checked(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length) })?;
    value.truncate(length as usize);
    Ok(value)
}

/// An option of which the kernel reads a part before it answers: `value` is both.
pub fn option_with(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads and stores at most `length` bytes, the size of `value`.
    checked(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length) })
        .map(drop)
}

/// Sets an option of any level.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads at most `length` bytes, the size of `value`.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// Sets an integer option of any level.
pub fn set_number(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// An integer option of any level.
pub fn number(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let value = option(socket, level, name)?;
    match value.as_slice() {
        [one] => Ok(i32::from(*one)),
        other => u32_at(other, 0).map(|n| n as i32),
    }
}

/// A socket of any family, non-blocking and close-on-exec.
pub fn create(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes numbers only.
    let fd = checked(unsafe { libc::socket(family, kind | flags, protocol) })?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Number of the network namespace a socket belongs to.
pub fn network_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = [0u8; 8];
    option_with(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// SIOCGSKNS: the network namespace a socket belongs to, which takes CAP_NET_ADMIN over it.
pub fn network_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::Ioctl = 0x894C;
    // SAFETY: the request takes no argument and makes a descriptor.
    let fd = checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets how long connect(2), send(2) and recv(2) may block.
pub fn limit_blocking(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX);
    crate::socket::set_timeout(socket, libc::SO_SNDTIMEO, microseconds)?;
    crate::socket::set_timeout(socket, libc::SO_RCVTIMEO, microseconds)
}

fn queue_ioctl(socket: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: both requests store one int, the size of `value`, which lives through the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut value) })?;
    Ok(value.max(0) as usize)
}

/// SIOCOUTQ: of TCP, sequence numbers (bytes, and one for a FIN) that the peer has not acknowledged; of others, memory
/// taken by what was not sent yet.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    queue_ioctl(socket, SIOCOUTQ)
}

/// SIOCOUTQNSD: of TCP, sequence numbers that were not sent yet.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    queue_ioctl(socket, SIOCOUTQNSD)
}

/// What of TCP_INFO is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// One of [`state`].
    pub state: u8,
    /// TCPI_OPT_*: 1 timestamps, 2 selective acknowledgements, 4 window scaling.
    pub options: u8,
    /// Shift of the windows the peer announces.
    pub send_scale: u8,
    /// Shift of the windows announced to the peer.
    pub receive_scale: u8,
    /// For a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// For a listening socket: how many may wait.
    pub backlog: u32,
    /// Bytes written since the connection was made, each once, whether or not they have been sent so far.
    pub written: u64,
    /// Bytes received since then, whether or not they have been read.
    pub received: u64,
}

/// Asks for TCP_INFO.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let info = option(socket, libc::IPPROTO_TCP, TCP_INFO)?;
    let byte = |at: usize| info.get(at).copied().ok_or(INVALID);
    // Not there in kernels before 4.19, which count less.
    let long = |at: usize| {
        info.get(at..at + 8)
            .map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    };
    let unsent = u64::from(u32_at(&info, 144).unwrap_or(0));
    let (sent, again) = (long(200), long(208));
    // The end that the other side has announced counts as a byte.
    let ended = [state::CLOSE_WAIT, state::LAST_ACK, state::CLOSING].contains(&byte(0)?);
    Ok(TcpInfo {
        state: byte(0)?,
        options: byte(5)?,
        send_scale: byte(6)? & 15,
        receive_scale: byte(6)? >> 4,
        waiting: u32_at(&info, 24)?,
        backlog: u32_at(&info, 28)?,
        written: sent.saturating_sub(again).saturating_add(unsent),
        received: long(128).saturating_sub(u64::from(ended)),
    })
}

/// After how long a TCP socket sends again what has not been acknowledged and what the other end has room for: the rest
/// of its retransmission timer. None where there is nothing like that, and in kernels before 5.4.
///
/// # Errors
/// The kernel refuses to tell.
pub fn sends_again_after(socket: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
    let info = option(socket, libc::IPPROTO_TCP, TCP_INFO)?;
    // tcpi_rto, tcpi_unacked, tcpi_last_data_sent and tcpi_snd_wnd.
    let (timer_us, unacknowledged, sent_ms) = (u32_at(&info, 8)?, u32_at(&info, 24)?, u32_at(&info, 44)?);
    let window = u32_at(&info, 228).unwrap_or(0);
    let rest = Duration::from_micros(timer_us.into()).saturating_sub(Duration::from_millis(sent_ms.into()));
    Ok((unacknowledged > 0 && window > 0).then_some(rest))
}

/// A queue of a TCP socket in repair mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Received and not read.
    Receive,
    /// Written and not acknowledged.
    Send,
}

/// A TCP socket in repair mode (CAP_NET_ADMIN over its network namespace), out of it again when dropped.
#[derive(Debug)]
pub struct Repair<'a> {
    socket: BorrowedFd<'a>,
    /// SO_REUSEADDR, which leaving repair mode forgets.
    reuse: i32,
}

impl<'a> Repair<'a> {
    /// Enters repair mode.
    pub fn enter(socket: BorrowedFd<'a>) -> io::Result<Self> {
        let reuse = number(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        set_number(socket, libc::IPPROTO_TCP, TCP_REPAIR, 1)?;
        Ok(Repair { socket, reuse })
    }

    /// Leaves the socket in repair mode: closing it then sends nothing.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    fn choose(&self, queue: Option<Queue>) -> io::Result<()> {
        let number = match queue {
            None => 0,
            Some(Queue::Receive) => 1,
            Some(Queue::Send) => 2,
        };
        set_number(self.socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, number)
    }

    /// The sequence number after the last byte of a queue.
    pub fn sequence(&self, queue: Queue) -> io::Result<u32> {
        self.choose(Some(queue))?;
        let sequence = number(self.socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ)? as u32;
        self.choose(None)?;
        Ok(sequence)
    }

    /// Sets the sequence number a queue begins with; before connecting.
    pub fn set_sequence(&self, queue: Queue, sequence: u32) -> io::Result<()> {
        self.choose(Some(queue))?;
        set_number(self.socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, sequence as i32)?;
        self.choose(None)
    }

    /// Copies the first `length` bytes of the send queue.
    pub fn peek_sent(&self, length: usize) -> io::Result<Vec<u8>> {
        self.choose(Some(Queue::Send))?;
        let copied = peek_stream(self.socket, length);
        self.choose(None)?;
        copied
    }

    /// Puts bytes into a queue as if they had come or been sent already.
    pub fn put(&self, queue: Queue, mut data: &[u8]) -> io::Result<()> {
        self.choose(Some(queue))?;
        while !data.is_empty() {
            let piece = &data[..data.len().min(32 << 10)];
            let sent = rustix::net::send(self.socket, piece, rustix::net::SendFlags::empty())?;
            data = &data[sent..];
        }
        self.choose(None)
    }

    /// TCP_REPAIR_OPTIONS: option codes (as in a TCP header) with their values, for a connected socket.
    pub fn set_options(&self, options: &[(u32, u32)]) -> io::Result<()> {
        let bytes: Vec<u8> = options
            .iter()
            .flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
            .collect();
        set_option(self.socket, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // Who could enter repair mode can leave it; there is nobody to tell otherwise.
        let _ = set_number(self.socket, libc::IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_QUIET);
        let _ = set_number(self.socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.reuse);
    }
}

/// Copies up to `length` bytes of a stream's queue without taking them.
pub fn peek_stream(socket: BorrowedFd<'_>, length: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0u8; length];
    if length == 0 {
        return Ok(data);
    }
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    let (_, got) = rustix::net::recv(socket, data.as_mut_slice(), flags)?;
    data.truncate(got);
    Ok(data)
}

/// A datagram in a receive queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Contents.
    pub data: Vec<u8>,
    /// Sender.
    pub sender: Option<SocketAddr>,
}

/// Looks at the next datagram from SO_PEEK_OFF on without taking it; none if there is no more.
pub fn peek_datagram(socket: BorrowedFd<'_>) -> io::Result<Option<Datagram>> {
    let mut data = vec![0u8; 64 << 10];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::TRUNC;
    match rustix::net::recvfrom(socket, data.as_mut_slice(), flags) {
        Ok((_, length, sender)) => {
            data.truncate(length);
            Ok(Some(Datagram {
                data,
                sender: sender.and_then(|s| SocketAddr::try_from(s).ok()),
            }))
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the sending side of a connected datagram socket is shut down, which the kernel tells nowhere: a datagram
/// whose contents cannot be read fails with EPIPE where it is, and with EFAULT where it is not. Nothing is sent.
pub fn sends_no_more(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let nowhere = std::ptr::without_provenance::<libc::c_void>(1);
    // SAFETY: the kernel copies from the address with faults handled; page zero is never mapped here.
    let sent = unsafe { libc::send(socket.as_raw_fd(), nowhere, 1, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    match io::Error::last_os_error() {
        _ if sent >= 0 => Err(INVALID.into()),
        error if error.raw_os_error() == Some(libc::EPIPE) => Ok(true),
        error if error.raw_os_error() == Some(libc::EFAULT) => Ok(false),
        error => Err(error),
    }
}

/// SO_ATTACH_FILTER of a program that drops everything that comes in, unseen and unacknowledged.
pub fn drop_incoming(socket: BorrowedFd<'_>) -> io::Result<()> {
    // One instruction, BPF_RET | BPF_K, of zero bytes.
    attach_filter(socket, &[0x06, 0, 0, 0, 0, 0, 0, 0])
}

/// Attaches a classic filter, given as `struct sock_filter`s.
pub fn attach_filter(socket: BorrowedFd<'_>, code: &[u8]) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let instruction = |bytes: &[u8]| {
        let [code0, code1, jt, jf, k @ ..] = <[u8; INSTRUCTION]>::try_from(bytes).ok()?;
        let code = u16::from_ne_bytes([code0, code1]);
        let k = u32::from_ne_bytes(k);
        Some(libc::sock_filter { code, jt, jf, k })
    };
    let code: Option<Vec<libc::sock_filter>> = code.chunks(INSTRUCTION).map(instruction).collect();
    let mut code = code.ok_or_else(invalid)?;
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).map_err(|_| invalid())?,
        filter: code.as_mut_ptr(),
    };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: `program` describes `code`, as many instructions as it says; both live through the call, which copies
    // them.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    })
    .map(drop)
}

/// The classic filter attached to a socket, as `struct sock_filter`s; EACCES for one of another kind.
pub fn filter(socket: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let get = |code: *mut libc::c_void, length: &mut libc::socklen_t| {
        // SAFETY: the kernel stores at most `length` instructions at `code`, for which both callers below have room
        // (the first has none and says so), and their number in `length`.
        checked(unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER, // SO_GET_FILTER
                code,
                length,
            )
        })
    };
    let mut length: libc::socklen_t = 0;
    get(std::ptr::null_mut(), &mut length)?;
    if length == 0 {
        return Ok(None);
    }
    let mut code = vec![0u8; length as usize * INSTRUCTION];
    // Fails with EINVAL when the program is a longer one by now.
    get(code.as_mut_ptr().cast(), &mut length)?;
    code.truncate(length as usize * INSTRUCTION);
    Ok(Some(code))
}

/// What inet_diag says of a TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpDiag {
    /// One of [`state`].
    pub state: u8,
    /// Bytes received and not read.
    pub receive_queue: u32,
    /// Inode number; 0 for one that no process has a descriptor for: not accepted yet, or closed.
    pub inode: u32,
}

/// An IPv4 address in its IPv6 form as IPv4: how the kernel matches addresses.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// SO_PEERNAME: what the socket is connected to, or (of TCP) was until its connection ended; none if neither.
pub fn last_peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    // The kernel refuses a buffer that is longer than the address: of a sockaddr_in6, or of a sockaddr_in.
    let mut long = [0u8; size_of::<libc::sockaddr_in6>()];
    let mut short = [0u8; size_of::<libc::sockaddr_in>()];
    let name = match option_with(socket, libc::SOL_SOCKET, SO_PEERNAME, &mut long) {
        Ok(()) => long.as_slice(),
        Err(_) => {
            option_with(socket, libc::SOL_SOCKET, SO_PEERNAME, &mut short).ok()?;
            short.as_slice()
        }
    };
    let family = u16::from_ne_bytes(*name.first_chunk::<2>()?);
    let port = u16::from_be_bytes([*name.get(2)?, *name.get(3)?]);
    match i32::from(family) {
        libc::AF_INET => Some(SocketAddr::new(IpAddr::from(*name.get(4..)?.first_chunk::<4>()?), port)),
        libc::AF_INET6 => {
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk::<4>()?);
            Some(SocketAddrV6::new((*name.get(8..)?.first_chunk::<16>()?).into(), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Asks for the TCP socket with these addresses in the caller's network namespace.
pub fn tcp_diag(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<TcpDiag>> {
    let (local, remote) = (plain(local), plain(remote));
    let words = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0u8; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    };
    // inet_diag_req_v2
    let mut body = vec![
        if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
        libc::IPPROTO_TCP as u8,
        0,
        0,
    ];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    // The kernel looks up a packet's socket by its addresses, where "source" is the socket's own.
    body.extend_from_slice(&local.port().to_be_bytes());
    body.extend_from_slice(&remote.port().to_be_bytes());
    body.extend_from_slice(&words(local.ip()));
    body.extend_from_slice(&words(remote.ip()));
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    let Some(reply) = diagnose(&body)? else {
        return Ok(None);
    };
    // inet_diag_msg: the lookup falls back to listening sockets, whose remote port is zero.
    let remote_port = reply.get(6..8).ok_or(INVALID)?;
    if remote_port != remote.port().to_be_bytes() {
        return Ok(None);
    }
    Ok(Some(TcpDiag {
        state: *reply.get(1).ok_or(INVALID)?,
        receive_queue: u32_at(&reply, 56)?,
        inode: u32_at(&reply, 68)?,
    }))
}

/// A TCP socket that [`tcp_at_port`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtPort {
    /// One of [`state`].
    pub state: u8,
    /// Its address.
    pub local: SocketAddr,
    /// What it is or was connected to.
    pub remote: SocketAddr,
}

/// The TCP sockets of a port in the caller's network namespace, those of connections that have ended among them.
pub fn tcp_at_port(port: u16) -> io::Result<Vec<AtPort>> {
    let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // inet_diag_req_v2, of which lists mind family, protocol, states and ports.
        let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        body.extend_from_slice(&u32::MAX.to_ne_bytes());
        body.extend_from_slice(&port.to_be_bytes());
        body.extend_from_slice(&[0; 2 + 16 + 16 + 4]);
        body.extend_from_slice(&[0xff; 8]);
        for reply in netlink.list(SOCK_DIAG_BY_FAMILY, &body)? {
            // inet_diag_msg
            let address = |port_at: usize, ip_at: usize| -> io::Result<SocketAddr> {
                let port = reply.get(port_at..port_at + 2).ok_or(INVALID)?;
                let ip = reply
                    .get(ip_at..ip_at + 16)
                    .and_then(|ip| ip.first_chunk::<16>())
                    .ok_or(INVALID)?;
                let ip = match family {
                    libc::AF_INET => IpAddr::from([ip[0], ip[1], ip[2], ip[3]]),
                    _ => IpAddr::from(*ip),
                };
                Ok(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])))
            };
            found.push(AtPort {
                state: *reply.get(1).ok_or(INVALID)?,
                local: address(4, 8)?,
                remote: address(6, 24)?,
            });
        }
    }
    Ok(found)
}

/// Whether an address is one of this network namespace's own.
pub fn is_local(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let probe = create(family, libc::SOCK_DGRAM, 0);
    probe.is_ok_and(|probe| rustix::net::bind(&probe, &SocketAddr::new(ip, 0)).is_ok())
}

/// The unspecified or loopback address of a family.
pub fn loopback(family: i32) -> IpAddr {
    if family == libc::AF_INET {
        Ipv4Addr::LOCALHOST.into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    }
}

/// Address of a netlink socket: port and the first 32 groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetlinkAddress {
    /// Port number, 0 when not bound.
    pub port: u32,
    /// Multicast groups 1 to 32, bit n-1 for group n.
    pub groups: u32,
}

type NetlinkGetter = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn netlink_address(socket: BorrowedFd<'_>, get: NetlinkGetter) -> io::Result<NetlinkAddress> {
    // SAFETY: sockaddr_nl is plain numbers, for which all zeros is a valid value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: `get` is getsockname or getpeername, which store at most `length` bytes, the size of `address`.
    checked(unsafe { get(socket.as_raw_fd(), (&raw mut address).cast(), &mut length) })?;
    Ok(NetlinkAddress {
        port: address.nl_pid,
        groups: address.nl_groups,
    })
}

/// The address a netlink socket is bound to.
pub fn netlink_name(socket: BorrowedFd<'_>) -> io::Result<NetlinkAddress> {
    netlink_address(socket, libc::getsockname)
}

/// The address a netlink socket is connected to; zeros (the kernel) unless it was.
pub fn netlink_peer(socket: BorrowedFd<'_>) -> io::Result<NetlinkAddress> {
    netlink_address(socket, libc::getpeername)
}

fn netlink_sockaddr(address: NetlinkAddress) -> (libc::sockaddr_nl, libc::socklen_t) {
    // SAFETY: sockaddr_nl is plain numbers, for which all zeros is a valid value.
    let mut raw: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    raw.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    raw.nl_pid = address.port;
    raw.nl_groups = address.groups;
    (raw, size_of::<libc::sockaddr_nl>() as libc::socklen_t)
}

/// Binds a netlink socket.
pub fn netlink_bind(socket: BorrowedFd<'_>, address: NetlinkAddress) -> io::Result<()> {
    let (raw, length) = netlink_sockaddr(address);
    // SAFETY: `raw` is a sockaddr_nl of `length` bytes that lives through the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) }).map(drop)
}

/// Connects a netlink socket.
pub fn netlink_connect(socket: BorrowedFd<'_>, address: NetlinkAddress) -> io::Result<()> {
    let (raw, length) = netlink_sockaddr(address);
    // SAFETY: `raw` is a sockaddr_nl of `length` bytes that lives through the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), length) }).map(drop)
}

/// Dissolves the association of a datagram socket: connect(2) to AF_UNSPEC.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    crate::socket::disconnect(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn diag_finds_connections_that_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino as u32;
        let found = tcp_diag(here, there).unwrap().unwrap();
        assert_eq!((found.state, found.inode), (state::ESTABLISHED, inode(client.as_fd())));
        let waiting = tcp_diag(there, here).unwrap().unwrap();
        assert_eq!((waiting.state, waiting.inode), (state::ESTABLISHED, 0));
        assert_eq!(tcp_info(listener.as_fd()).unwrap().waiting, 1);
        let (server, _) = listener.accept().unwrap();
        let found = tcp_diag(there, here).unwrap().unwrap();
        assert_eq!((found.inode, found.receive_queue), (inode(server.as_fd()), 0));
        drop((client, server));
        let other = SocketAddr::new(here.ip(), 1);
        assert_eq!(tcp_diag(there, other).unwrap(), None);
        let name = tcp_info(listener.as_fd()).unwrap();
        assert_eq!((name.state, name.waiting), (state::LISTEN, 0));
    }

    // XGCP-CHAN-7
    #[test]
    fn what_was_written_and_what_was_received_differ_by_what_is_on_its_way() {
        use std::io::{Read, Write};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let count = |of: &TcpStream| {
            let info = tcp_info(of.as_fd()).unwrap();
            (info.written, info.received)
        };
        assert_eq!((count(&client), count(&server)), ((0, 0), (0, 0)));
        client.write_all(b"hello").unwrap();
        let mut heard = [0; 3];
        server.read_exact(&mut heard).unwrap();
        assert_eq!((count(&client).0, count(&server).1), (5, 5), "whether read or not");
        // Until nothing more goes in.
        client.set_nonblocking(true).unwrap();
        let mut written = 5;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while let Ok(some) = client.write(&[7; 65536]) {
            written += some as u64;
            assert!(std::time::Instant::now() < deadline);
        }
        // What has been received is acknowledged a little later.
        let on_its_way = loop {
            let (sent, got) = (count(&client).0, count(&server).1);
            assert_eq!(sent, written);
            let queued = unacknowledged(client.as_fd()).unwrap() as u64;
            if sent - got == queued {
                break queued;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{sent} sent, {got} received, {queued} queued"
            );
            std::thread::yield_now();
        };
        assert!(on_its_way > 0, "nobody reads it");
        // Neither end's end is a byte.
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!((count(&server).1, rest.len() as u64 + 3), (written, written));
    }

    #[test]
    fn own_addresses_and_namespaces_are_known() {
        assert!(is_local(IpAddr::from([127, 0, 0, 1])) && !is_local(IpAddr::from([192, 0, 2, 1])));
        let one = create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let other = create(libc::AF_NETLINK, libc::SOCK_RAW, 0).unwrap();
        assert_eq!(
            network_cookie(one.as_fd()).unwrap(),
            network_cookie(other.as_fd()).unwrap()
        );
        assert_eq!(filter(one.as_fd()).unwrap(), None);
        drop_incoming(one.as_fd()).unwrap();
        assert_eq!(filter(one.as_fd()).unwrap().unwrap(), [6, 0, 0, 0, 0, 0, 0, 0]);
        netlink_bind(other.as_fd(), NetlinkAddress { port: 0, groups: 1 }).unwrap();
        let name = netlink_name(other.as_fd()).unwrap();
        assert!(name.port != 0 && name.groups == 1);
    }
}
