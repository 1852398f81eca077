//! Sockets.

use serde::{Deserialize, Serialize};
use std::fmt;

use super::{ByteString, Bytes, FileId, InetSocketId, MountNamespaceId, NetworkId, SocketId};

/// A UNIX socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5.
    pub kind: i32,
    /// What it is connected to.
    pub state: SocketState,
    /// Bound address as in sun_path (an abstract name starts with a zero byte); empty when unbound.
    #[serde(default)]
    pub address: ByteString,
    /// The mount namespace that its address is a path of, where that is not the job's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// Working directory that a relative address was bound in. Of an absolute one below /proc, which leads elsewhere by
    /// now, the directory that its file is in.
    #[serde(default)]
    pub bind_directory: ByteString,
    /// shutdown(2): bit 0 receive side, bit 1 send side.
    #[serde(default)]
    pub shutdown: u32,
    /// Socket options that are restored: SOL_SOCKET option number and value.
    #[serde(default)]
    pub options: Vec<(i32, i64)>,
    /// Messages waiting to be received.
    #[serde(default)]
    pub queue: Vec<SocketMessage>,
    /// Socket file: mode, owner, group; none where there is no file.
    #[serde(default)]
    pub node: Option<(u32, u32, u32)>,
    /// Name of that file in its directory, where it is not the one in `address`: it was renamed (rename(2)), or linked
    /// and removed.
    #[serde(default, skip_serializing_if = "ByteString::is_empty")]
    pub file_name: ByteString,
}

/// Connection state of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketState {
    /// Not connected, perhaps bound.
    Unconnected,
    /// Connected to another socket of the image (for a pair each names the other).
    Connected(SocketId),
    /// Was connected; the peer has closed.
    PeerClosed,
    /// Listening; the backlog, and sockets connected but not yet accepted.
    Listening {
        /// listen(2) backlog.
        backlog: u32,
        /// Client ends waiting to be accepted, oldest first.
        pending: Vec<SocketId>,
    },
}

/// A message in a socket's receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SocketMessage {
    /// Contents.
    pub data: Bytes,
    /// Open file descriptions in flight (SCM_RIGHTS).
    pub files: Vec<FileId>,
    /// Sender's bound address, for datagrams.
    pub sender: ByteString,
}

/// A socket option: level, number, and the value as getsockopt(2) gives it.
pub type SocketOption = (i32, i32, Bytes);

/// An IP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InetSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// AF_INET 2, AF_INET6 10.
    pub family: i32,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3.
    pub kind: i32,
    /// IPPROTO_*.
    pub protocol: i32,
    /// What it is connected to.
    pub state: InetState,
    /// Address and port it is bound to.
    #[serde(default)]
    pub local: Option<Endpoint>,
    /// Options that differ from those of a new socket.
    #[serde(default)]
    pub options: Vec<SocketOption>,
    /// Of a stream: bytes received and not yet read.
    #[serde(default)]
    pub received: Bytes,
    /// Of others: datagrams received and not yet read.
    #[serde(default)]
    pub queue: Vec<Datagram>,
    /// Multicast groups that it is a member of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub multicast: Vec<MulticastMembership>,
    /// shutdown(2): bit 0 receive side, bit 1 send side.
    #[serde(default)]
    pub shutdown: u32,
}

/// Membership of a socket in a multicast group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MulticastMembership {
    /// Name of the interface.
    pub interface: ByteString,
    /// Address of the group: 4 or 16 bytes.
    pub group: Bytes,
    /// Only what the senders send is heard, otherwise what all others send.
    #[serde(default)]
    pub only: bool,
    /// Addresses of senders.
    #[serde(default)]
    pub senders: Vec<Bytes>,
}

/// An address and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Four or sixteen bytes.
    pub address: Bytes,
    /// Port number.
    pub port: u16,
    /// Interface of a link-local IPv6 address, else zero.
    #[serde(default)]
    pub scope: u32,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::net::{IpAddr, SocketAddr};
        let bytes = self.address.0.as_slice();
        let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        match ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)) {
            Ok(ip) => SocketAddr::new(ip.to_canonical(), self.port).fmt(f),
            Err(_) => f.write_str("an impossible address"),
        }
    }
}

/// A datagram in a receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Contents.
    pub data: Bytes,
    /// Where it came from.
    pub sender: Endpoint,
}

/// Connection state of an IP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InetState {
    /// Not connected, perhaps bound.
    Unconnected,
    /// Not a stream, and connect(2)ed: takes datagrams from there only.
    Associated {
        /// The other side.
        remote: Endpoint,
    },
    /// A stream that listens.
    Listening {
        /// listen(2) backlog.
        backlog: u32,
    },
    /// A stream whose other end is in the image, too.
    Inner {
        /// The other end; both name each other.
        peer: InetSocketId,
        /// Its address as this end sees it.
        remote: Endpoint,
    },
    /// A stream whose other end is in another job that was saved in the same stop. Nothing was on its way then.
    Channel {
        /// The other end's address as this end sees it.
        remote: Endpoint,
    },
    /// A stream on which connect(2) has begun; it begins again.
    Connecting {
        /// The other side.
        remote: Endpoint,
    },
    /// A stream that waits to be accepted from a listening socket of the image; nothing was sent yet.
    Waiting {
        /// The listening socket.
        listener: InetSocketId,
        /// Its address as this end sees it.
        remote: Endpoint,
    },
    /// A stream whose other end no process has open any more; this side can still be open.
    PeerClosed {
        /// Address the other end had.
        remote: Endpoint,
    },
    /// A stream that has ended in both directions.
    Ended {
        /// The next operation fails with ECONNRESET, as after a reset.
        reset: bool,
    },
    /// A stream to outside the job, to be continued.
    Outer(Box<TcpConnection>),
}

/// A TCP connection as TCP_REPAIR takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// The other side.
    pub remote: Endpoint,
    /// Sequence number after the last byte written.
    pub send_sequence: u32,
    /// Sequence number after the last byte received.
    pub receive_sequence: u32,
    /// Bytes written and not acknowledged.
    #[serde(default)]
    pub send_queue: Bytes,
    /// How many bytes at the end of `send_queue` were not sent yet.
    #[serde(default)]
    pub unsent: u32,
    /// TCPI_OPT_*: 1 timestamps, 2 selective acknowledgements, 4 window scaling.
    #[serde(default)]
    pub options: u32,
    /// Shift of the windows the other side announces.
    #[serde(default)]
    pub send_scale: u32,
    /// Shift of the windows announced to the other side.
    #[serde(default)]
    pub receive_scale: u32,
    /// Largest segment the other side takes.
    #[serde(default)]
    pub max_segment: u32,
    /// TCP_TIMESTAMP.
    #[serde(default)]
    pub timestamp: u32,
    /// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    #[serde(default)]
    pub window: [u32; 5],
    /// Whether the other side has sent its end. `receive_sequence` does not count it.
    #[serde(default)]
    pub peer_end: PeerEnd,
}

/// The end of what the other side of a connection sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerEnd {
    /// It has not come.
    #[default]
    Open,
    /// It came before our own was sent, if that was: CLOSE_WAIT, LAST_ACK.
    First,
    /// It came when our own was under way: CLOSING.
    Crossed,
}

/// A netlink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_RAW 3 or SOCK_DGRAM 2.
    pub kind: i32,
    /// NETLINK_*.
    pub protocol: i32,
    /// Port number it is bound to, 0 when not bound.
    #[serde(default)]
    pub port: u32,
    /// Multicast groups it is a member of.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Port number and groups it is connected to.
    #[serde(default)]
    pub peer: Option<(u32, u32)>,
    /// Options that differ from those of a new socket.
    #[serde(default)]
    pub options: Vec<SocketOption>,
}

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PacketSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_RAW 3, SOCK_DGRAM 2, or SOCK_PACKET 10.
    pub kind: i32,
    /// ETH_P_* it is bound to, 0 for none.
    pub protocol: u32,
    /// Name of the interface it is bound to; none for all.
    pub interface: Option<ByteString>,
    /// What interfaces receive for it.
    pub memberships: Vec<PacketMembership>,
    /// PACKET_COPY_THRESH.
    pub copy_threshold: u32,
    /// PACKET_FANOUT as the kernel shows it: number, type and flags; 0 for none.
    pub fanout: u32,
    /// Ring for packets that come.
    pub receive_ring: Option<PacketRing>,
    /// Ring for packets that go.
    pub send_ring: Option<PacketRing>,
    /// What is in the rings, which lie one behind the other: pieces and where they begin. The rest is zeros.
    pub ring_contents: Vec<(u64, Bytes)>,
    /// Options that differ from those of a new socket.
    pub options: Vec<SocketOption>,
}

/// What an interface receives for a packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketMembership {
    /// Name of the interface.
    pub interface: ByteString,
    /// How often it was asked for.
    pub count: u32,
    /// PACKET_MR_*
    pub kind: u32,
    /// Hardware address.
    #[serde(default)]
    pub address: Bytes,
}

/// A ring that a packet socket shares with its program: `struct tpacket_req`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRing {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames.
    pub frames: u32,
    /// The frame that the kernel fills next.
    #[serde(default)]
    pub next: u32,
}
