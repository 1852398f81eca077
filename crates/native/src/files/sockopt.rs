//! Options of IP and netlink sockets: which are saved, and in what order they are set again.
//!
//! Only what differs from a new socket of the same kind is saved. Nothing is set that is not in [`KNOWN`], whatever an
//! image says.

use std::os::fd::BorrowedFd;

use cpr_image::model::{Bytes, SocketOption};
use cpr_kernel::inet as kernel;
use cpr_types::{Context, Error, ErrorKind, Result};

const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const UDPLITE: i32 = libc::IPPROTO_UDPLITE;
const ICMPV6: i32 = libc::IPPROTO_ICMPV6;
const RAW: i32 = 255;
const NETLINK: i32 = 270;
const PACKET: i32 = cpr_kernel::packet::LEVEL;

/// SO_BUF_LOCK (Linux 5.14): which buffer sizes the program has set; the kernel looks after the others.
const SO_BUF_LOCK: i32 = 72;
const SNDBUF_LOCK: i32 = 1;
const RCVBUF_LOCK: i32 = 2;
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
/// A classic BPF program, whose instructions are the option's value here.
const SO_ATTACH_FILTER: i32 = libc::SO_ATTACH_FILTER;
const SO_LOCK_FILTER: i32 = 44;
/// Most a buffer is enlarged to while queues are filled.
const FILL_BUFFER: i32 = 64 << 20;

/// When an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before the socket is bound.
    Early,
    /// When its queues are as they were.
    Late,
}

use Phase::{Early, Late};

/// Every option that is saved: level, number, when to set it. Of the late ones, priority comes after the type of
/// service, which changes it, and what holds data back or limits blocking comes last.
const KNOWN: &[(i32, i32, Phase)] = &[
    (SOCKET, libc::SO_REUSEADDR, Early),
    (SOCKET, libc::SO_REUSEPORT, Early),
    (SOCKET, libc::SO_BINDTODEVICE, Early),
    (SOCKET, libc::SO_MARK, Early),
    (SOCKET, libc::SO_NO_CHECK, Early),
    (IP, 15, Early),     // IP_FREEBIND
    (IP, 19, Early),     // IP_TRANSPARENT
    (IP, 24, Early),     // IP_BIND_ADDRESS_NO_PORT
    (IPV6, 26, Early),   // IPV6_V6ONLY
    (IPV6, 75, Early),   // IPV6_TRANSPARENT
    (IPV6, 78, Early),   // IPV6_FREEBIND
    (PACKET, 10, Early), // PACKET_VERSION
    (PACKET, 12, Early), // PACKET_RESERVE
    (PACKET, 14, Early), // PACKET_LOSS
    (PACKET, 15, Early), // PACKET_VNET_HDR
    (PACKET, 24, Early), // PACKET_VNET_HDR_SZ
    (PACKET, 17, Early), // PACKET_TIMESTAMP
    (PACKET, 19, Early), // PACKET_TX_HAS_OFF
    (PACKET, 8, Late),   // PACKET_AUXDATA
    (PACKET, 9, Late),   // PACKET_ORIGDEV
    (PACKET, 20, Late),  // PACKET_QDISC_BYPASS
    (PACKET, 23, Late),  // PACKET_IGNORE_OUTGOING
    (IP, 1, Late),       // IP_TOS
    (IP, 2, Late),       // IP_TTL
    (IP, 3, Late),       // IP_HDRINCL
    (IP, 6, Late),       // IP_RECVOPTS
    (IP, 7, Late),       // IP_RETOPTS
    (IP, 8, Late),       // IP_PKTINFO
    (IP, 10, Late),      // IP_MTU_DISCOVER
    (IP, 11, Late),      // IP_RECVERR
    (IP, 12, Late),      // IP_RECVTTL
    (IP, 13, Late),      // IP_RECVTOS
    (IP, 18, Late),      // IP_PASSSEC
    (IP, 20, Late),      // IP_RECVORIGDSTADDR
    (IP, 21, Late),      // IP_MINTTL
    (IP, 22, Late),      // IP_NODEFRAG
    (IP, 23, Late),      // IP_CHECKSUM
    (IP, 25, Late),      // IP_RECVFRAGSIZE
    (IP, 26, Late),      // IP_RECVERR_RFC4884
    (IP, 32, Late),      // IP_MULTICAST_IF
    (IP, 33, Late),      // IP_MULTICAST_TTL
    (IP, 34, Late),      // IP_MULTICAST_LOOP
    (IP, 49, Late),      // IP_MULTICAST_ALL
    (IP, 50, Late),      // IP_UNICAST_IF
    (IP, 51, Late),      // IP_LOCAL_PORT_RANGE
    (IPV6, 7, Late),     // IPV6_CHECKSUM
    (IPV6, 11, Late),    // IPV6_FLOWINFO
    (IPV6, 16, Late),    // IPV6_UNICAST_HOPS
    (IPV6, 17, Late),    // IPV6_MULTICAST_IF
    (IPV6, 18, Late),    // IPV6_MULTICAST_HOPS
    (IPV6, 19, Late),    // IPV6_MULTICAST_LOOP
    (IPV6, 23, Late),    // IPV6_MTU_DISCOVER
    (IPV6, 25, Late),    // IPV6_RECVERR
    (IPV6, 29, Late),    // IPV6_MULTICAST_ALL
    (IPV6, 31, Late),    // IPV6_RECVERR_RFC4884
    (IPV6, 36, Late),    // IPV6_HDRINCL
    (IPV6, 49, Late),    // IPV6_RECVPKTINFO
    (IPV6, 51, Late),    // IPV6_RECVHOPLIMIT
    (IPV6, 53, Late),    // IPV6_RECVHOPOPTS
    (IPV6, 56, Late),    // IPV6_RECVRTHDR
    (IPV6, 58, Late),    // IPV6_RECVDSTOPTS
    (IPV6, 60, Late),    // IPV6_RECVPATHMTU
    (IPV6, 62, Late),    // IPV6_DONTFRAG
    (IPV6, 66, Late),    // IPV6_RECVTCLASS
    (IPV6, 67, Late),    // IPV6_TCLASS
    (IPV6, 70, Late),    // IPV6_AUTOFLOWLABEL
    (IPV6, 72, Late),    // IPV6_ADDR_PREFERENCES
    (IPV6, 73, Late),    // IPV6_MINHOPCOUNT
    (IPV6, 74, Late),    // IPV6_RECVORIGDSTADDR
    (IPV6, 76, Late),    // IPV6_UNICAST_IF
    (IPV6, 77, Late),    // IPV6_RECVFRAGSIZE
    (RAW, 1, Late),      // ICMP_FILTER
    (ICMPV6, 1, Late),   // ICMPV6_FILTER
    (UDP, 101, Late),    // UDP_NO_CHECK6_TX
    (UDP, 102, Late),    // UDP_NO_CHECK6_RX
    (UDP, 103, Late),    // UDP_SEGMENT
    (UDP, 104, Late),    // UDP_GRO
    (UDPLITE, 10, Late), // UDPLITE_SEND_CSCOV
    (UDPLITE, 11, Late), // UDPLITE_RECV_CSCOV
    (TCP, libc::TCP_CONGESTION, Late),
    (TCP, libc::TCP_NODELAY, Late),
    (TCP, libc::TCP_MAXSEG, Late),
    (TCP, libc::TCP_KEEPIDLE, Late),
    (TCP, libc::TCP_KEEPINTVL, Late),
    (TCP, libc::TCP_KEEPCNT, Late),
    (TCP, libc::TCP_SYNCNT, Late),
    (TCP, libc::TCP_LINGER2, Late),
    (TCP, libc::TCP_DEFER_ACCEPT, Late),
    (TCP, libc::TCP_WINDOW_CLAMP, Late),
    (TCP, 16, Late), // TCP_THIN_LINEAR_TIMEOUTS
    (TCP, libc::TCP_USER_TIMEOUT, Late),
    (TCP, libc::TCP_FASTOPEN, Late),
    (TCP, 25, Late),     // TCP_NOTSENT_LOWAT
    (TCP, 27, Late),     // TCP_SAVE_SYN
    (TCP, 30, Late),     // TCP_FASTOPEN_CONNECT
    (TCP, 34, Late),     // TCP_FASTOPEN_NO_COOKIE
    (TCP, 36, Late),     // TCP_INQ
    (TCP, 37, Late),     // TCP_TX_DELAY
    (TCP, 44, Late),     // TCP_RTO_MAX_MS
    (TCP, 45, Late),     // TCP_RTO_MIN_US
    (TCP, 46, Late),     // TCP_DELACK_MAX_US
    (NETLINK, 3, Late),  // NETLINK_PKTINFO
    (NETLINK, 4, Late),  // NETLINK_BROADCAST_ERROR
    (NETLINK, 5, Late),  // NETLINK_NO_ENOBUFS
    (NETLINK, 8, Late),  // NETLINK_LISTEN_ALL_NSID
    (NETLINK, 10, Late), // NETLINK_CAP_ACK
    (NETLINK, 11, Late), // NETLINK_EXT_ACK
    (NETLINK, 12, Late), // NETLINK_GET_STRICT_CHK
    (SOCKET, libc::SO_DONTROUTE, Late),
    (SOCKET, libc::SO_BROADCAST, Late),
    (SOCKET, libc::SO_KEEPALIVE, Late),
    (SOCKET, libc::SO_OOBINLINE, Late),
    (SOCKET, libc::SO_PRIORITY, Late),
    (SOCKET, libc::SO_LINGER, Late),
    (SOCKET, libc::SO_PASSCRED, Late),
    (SOCKET, libc::SO_TIMESTAMP, Late),
    (SOCKET, 35, Late), // SO_TIMESTAMPNS
    (SOCKET, 37, Late), // SO_TIMESTAMPING
    (SOCKET, 40, Late), // SO_RXQ_OVFL
    (SOCKET, 45, Late), // SO_SELECT_ERR_QUEUE
    (SOCKET, 46, Late), // SO_BUSY_POLL
    (SOCKET, 47, Late), // SO_MAX_PACING_RATE
    (SOCKET, 60, Late), // SO_ZEROCOPY
    (SOCKET, 61, Late), // SO_TXTIME
    (SOCKET, 69, Late), // SO_PREFER_BUSY_POLL
    (SOCKET, 74, Late), // SO_TXREHASH
    (SOCKET, 75, Late), // SO_RCVMARK
    (SOCKET, 82, Late), // SO_RCVPRIORITY
    (SOCKET, libc::SO_SNDBUF, Late),
    (SOCKET, libc::SO_RCVBUF, Late),
    (SOCKET, libc::SO_RCVLOWAT, Late),
    (SOCKET, libc::SO_PEEK_OFF, Late),
    (UDP, 1, Late), // UDP_CORK
    (TCP, libc::TCP_CORK, Late),
    (SOCKET, SO_ATTACH_FILTER, Late),
    (SOCKET, SO_LOCK_FILTER, Late),
    (SOCKET, libc::SO_RCVTIMEO, Late),
    (SOCKET, libc::SO_SNDTIMEO, Late),
];

/// Whether the kernel says that a socket of this kind has no such option.
fn is_unknown(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTCONN)
    )
}

/// What [`libc::TCP_MAXSEG`] and the window clamp say of a connected socket is the connection's.
fn belongs_to_connection(level: i32, name: i32) -> bool {
    level == TCP && [libc::TCP_MAXSEG, libc::TCP_WINDOW_CLAMP].contains(&name)
}

/// Options that the kernel gives streams for no use, and lets nobody set there.
fn is_multicast(level: i32, name: i32) -> bool {
    (level == IP && [32, 33, 34, 49].contains(&name)) || (level == IPV6 && [17, 18, 19, 29].contains(&name))
}

/// The options of `socket` that differ from those of `new`, a new one of its kind.
///
/// # Errors
/// The kernel does not tell one of them.
pub(super) fn save(socket: BorrowedFd<'_>, new: BorrowedFd<'_>, connected: bool) -> Result<Vec<SocketOption>> {
    let locked = kernel::number(socket, SOCKET, SO_BUF_LOCK).context(|| "ask for option SO_BUF_LOCK")?;
    let stream = kernel::number(new, SOCKET, libc::SO_TYPE).context(|| "ask for the type")? == libc::SOCK_STREAM;
    let mut options = Vec::new();
    for (level, name, _) in KNOWN.iter().copied() {
        let unlocked = |option, lock| (level, name) == (SOCKET, option) && locked & lock == 0;
        if unlocked(libc::SO_SNDBUF, SNDBUF_LOCK)
            || unlocked(libc::SO_RCVBUF, RCVBUF_LOCK)
            || (connected && belongs_to_connection(level, name))
            || (stream && is_multicast(level, name))
        {
            continue;
        }
        if (level, name) == (SOCKET, SO_ATTACH_FILTER) {
            let filter = kernel::filter(socket).context(|| "ask for the socket's filter program")?;
            options.extend(filter.map(|code| (level, name, Bytes(code))));
            continue;
        }
        let value = match kernel::option(socket, level, name) {
            Ok(value) => value,
            Err(error) if is_unknown(&error) => continue,
            Err(error) => return Err(error).context(|| format!("ask for option {name} of level {level}")),
        };
        let is_buffer = level == SOCKET && [libc::SO_SNDBUF, libc::SO_RCVBUF].contains(&name);
        let default = kernel::option(new, level, name).ok();
        if is_buffer || default.as_ref() != Some(&value) {
            options.push((level, name, Bytes(value)));
        }
    }
    Ok(options)
}

/// A saved option.
pub(super) fn find(options: &[SocketOption], level: i32, name: i32) -> Option<&[u8]> {
    let found = options.iter().find(|(l, n, _)| (*l, *n) == (level, name));
    found.map(|(_, _, value)| value.0.as_slice())
}

/// A saved option that is a number; zero where it was not saved.
pub(super) fn number(options: &[SocketOption], level: i32, name: i32) -> i32 {
    let value = find(options, level, name).and_then(|value| value.first_chunk::<4>());
    value.map_or(0, |value| i32::from_ne_bytes(*value))
}

/// Sets the saved options of one phase; so many bytes wait to be read.
///
/// # Errors
/// [`ErrorKind::Denied`] for an option that takes a privilege, [`ErrorKind::Damaged`] for one that is never saved.
pub(super) fn set(socket: BorrowedFd<'_>, options: &[SocketOption], phase: Phase, held: usize) -> Result<()> {
    for (level, name, _) in options {
        if !KNOWN.iter().any(|(l, n, _)| (l, n) == (level, name)) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the image has an unknown socket option {name} of level {level}"),
            ));
        }
    }
    for (level, name, _) in KNOWN.iter().filter(|known| known.2 == phase) {
        let Some(value) = find(options, *level, *name) else {
            continue;
        };
        let what = || format!("set socket option {name} of level {level}");
        if (*level, *name) == (SOCKET, SO_ATTACH_FILTER) {
            kernel::attach_filter(socket, value).context(|| "attach the socket's filter program")?;
            continue;
        }
        let buffer = match (*level, *name) {
            (SOCKET, libc::SO_SNDBUF) => Some(SO_SNDBUFFORCE),
            (SOCKET, libc::SO_RCVBUF) => Some(SO_RCVBUFFORCE),
            _ => None,
        };
        let Some(force) = buffer else {
            kernel::set_option(socket, *level, *name, value).context(what)?;
            continue;
        };
        // The kernel doubles what it is given. More than the system allows is not given, nor less than has been filled.
        let mut size = number(options, *level, *name) / 2;
        if *name == libc::SO_RCVBUF && held.saturating_mul(2) > size as usize {
            size = size.max(kernel::number(socket, SOCKET, *name).context(what)? / 2);
        }
        if kernel::set_number(socket, SOCKET, force, size).is_err() {
            kernel::set_number(socket, SOCKET, *name, size).context(what)?;
        }
    }
    Ok(())
}

/// Buffers enlarged for a while.
#[derive(Debug)]
pub(super) struct Enlarged {
    sizes: [(i32, i32, i32); 2],
    locked: i32,
}

/// Makes the buffers of a socket as large as is allowed, but never smaller.
///
/// # Errors
/// The kernel does not tell their sizes.
pub(super) fn enlarge_buffers(socket: BorrowedFd<'_>) -> Result<Enlarged> {
    let what = || "enlarge the buffers of a socket";
    let locked = kernel::number(socket, SOCKET, SO_BUF_LOCK).context(what)?;
    let mut sizes = [
        (libc::SO_SNDBUF, SO_SNDBUFFORCE, 0),
        (libc::SO_RCVBUF, SO_RCVBUFFORCE, 0),
    ];
    for (name, force, size) in &mut sizes {
        *size = kernel::number(socket, SOCKET, *name).context(what)?;
        if kernel::set_number(socket, SOCKET, *force, FILL_BUFFER).is_err() {
            kernel::set_number(socket, SOCKET, *name, FILL_BUFFER).context(what)?;
            if kernel::number(socket, SOCKET, *name).context(what)? < *size {
                kernel::set_number(socket, SOCKET, *name, *size / 2).context(what)?;
            }
        }
    }
    // A stream whose reader waits for much gets a buffer for that, up to what the kernel may give one by itself
    // (net.ipv4.tcp_rmem): more than who has no privilege may ask for.
    let least = kernel::number(socket, SOCKET, libc::SO_RCVLOWAT).context(what)?;
    for (name, value) in [
        (SO_BUF_LOCK, SNDBUF_LOCK),
        (libc::SO_RCVLOWAT, FILL_BUFFER),
        (libc::SO_RCVLOWAT, least),
    ] {
        kernel::set_number(socket, SOCKET, name, value).context(what)?;
    }
    Ok(Enlarged { sizes, locked })
}

/// Gives the buffers their sizes back, and to the kernel what was the kernel's.
///
/// # Errors
/// The kernel refuses.
pub(super) fn shrink_buffers(socket: BorrowedFd<'_>, enlarged: &Enlarged) -> Result<()> {
    give_back(socket, enlarged, &enlarged.sizes)
}

/// The same, but leaves a stream the receive buffer in which much waits: the other side was told of its size, and what
/// it sends into a smaller one is thrown away, and comes again later and later.
///
/// # Errors
/// The kernel refuses.
pub(super) fn shrink_send_buffer(socket: BorrowedFd<'_>, enlarged: &Enlarged) -> Result<()> {
    give_back(socket, enlarged, &enlarged.sizes[..1])
}

fn give_back(socket: BorrowedFd<'_>, enlarged: &Enlarged, sizes: &[(i32, i32, i32)]) -> Result<()> {
    let what = || "give a socket its buffers back";
    for (name, force, size) in sizes {
        if kernel::set_number(socket, SOCKET, *force, *size / 2).is_err() {
            kernel::set_number(socket, SOCKET, *name, *size / 2).context(what)?;
        }
    }
    kernel::set_number(socket, SOCKET, SO_BUF_LOCK, enlarged.locked).context(what)
}

/// A new socket to compare with.
///
/// # Errors
/// It cannot be made.
pub(super) fn new_socket(family: i32, kind: i32, protocol: i32) -> Result<std::os::fd::OwnedFd> {
    kernel::create(family, kind, protocol)
        .context(|| format!("make a socket of family {family}, type {kind}, protocol {protocol}"))
}

/// Forgets the saved filter program, which is one of ours.
pub(super) fn forget_filter(options: &mut Vec<SocketOption>) {
    options.retain(|(level, name, _)| (*level, *name) != (SOCKET, SO_ATTACH_FILTER));
}

/// Refuses what the options do not show: an attached eBPF program.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one.
pub(super) fn refuse_filter(socket: BorrowedFd<'_>, label: &str) -> Result<()> {
    if kernel::filter(socket).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)) {
        let text = format!("{label}: a socket with an eBPF filter program is not supported");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}
