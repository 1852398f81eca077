//! Sockets.

use std::collections::HashSet;

use cpr_types::Result;

use super::{Check, SOCK_DGRAM, SOCK_RAW, Verdict, in_table, path, within, wrong};
use crate::model::*;

const AF_INET6: i32 = 10;
const AF_INET: i32 = 2;
/// More often nobody asks an interface for the same thing.
const MAX_MEMBERSHIPS: u32 = 1 << 16;
/// The old kind of packet sockets.
const SOCK_PACKET: i32 = 10;
const SOCK_SEQPACKET: i32 = 5;
const SOCK_STREAM: i32 = 1;
/// Largest sun_path.
const MAX_SOCKET_NAME: usize = 108;
/// NAME_MAX of <linux/limits.h>.
const MAX_FILE_NAME: usize = 255;

pub(super) fn options(options: &[SocketOption]) -> Verdict {
    within(options.len() <= 256, "number of options")?;
    within(
        options.iter().all(|(_, _, value)| value.0.len() <= 4096),
        "length of an option",
    )
}

impl Check<'_> {
    pub(super) fn packet_sockets(&self) -> Result<()> {
        for (index, socket) in self.manifest.packet_sockets.iter().enumerate() {
            self.packet_socket(socket)
                .map_err(|what| wrong(format!("packet socket {index}: {what}")))?;
        }
        Ok(())
    }

    pub(super) fn packet_socket(&self, socket: &PacketSocket) -> Verdict {
        self.network(socket.network)?;
        within([SOCK_DGRAM, SOCK_RAW, SOCK_PACKET].contains(&socket.kind), "type")?;
        within(socket.protocol <= 0xffff, "protocol")?;
        for one in &socket.memberships {
            within(one.address.0.len() <= 32 && one.kind <= 0xffff, "membership")?;
            within(one.count <= MAX_MEMBERSHIPS, "count of a membership")?;
        }
        let mut size = 0;
        for ring in socket.receive_ring.iter().chain(&socket.send_ring) {
            within(
                ring.frame_size > 0 && ring.block_size.is_multiple_of(4096),
                "size of a ring's parts",
            )?;
            within(ring.next == 0 || ring.next < ring.frames, "frame of a ring")?;
            let blocks = u64::from(ring.block_size) * u64::from(ring.blocks);
            within(
                u64::from(ring.frame_size) * u64::from(ring.frames) <= blocks,
                "size of a ring",
            )?;
            size += blocks;
        }
        for (start, bytes) in &socket.ring_contents {
            let end = start.checked_add(bytes.0.len() as u64);
            within(end.is_some_and(|end| end <= size), "contents of a ring")?;
            within(
                start.is_multiple_of(8) && bytes.0.len().is_multiple_of(8),
                "contents of a ring",
            )?;
        }
        options(&socket.options)
    }

    pub(super) fn inet_sockets(&self) -> Result<()> {
        for (index, socket) in self.manifest.inet_sockets.iter().enumerate() {
            self.inet_socket(index, socket)
                .map_err(|what| wrong(format!("IP socket {index}: {what}")))?;
        }
        // Two open files would be two ends of one.
        let mut used = HashSet::new();
        for (index, file) in self.manifest.files.iter().enumerate() {
            if let Object::InetSocket(id) = &file.object
                && !used.insert(*id)
            {
                return Err(wrong(format!("open file {index}: IP socket {} is open twice", id.0)));
            }
        }
        Ok(())
    }

    pub(super) fn inet_socket(&self, index: usize, socket: &InetSocket) -> Verdict {
        let sockets = &self.manifest.inet_sockets;
        self.network(socket.network)?;
        within([AF_INET, AF_INET6].contains(&socket.family), "address family")?;
        within([SOCK_STREAM, SOCK_DGRAM, SOCK_RAW].contains(&socket.kind), "type")?;
        // There are numbers beyond those of the IP header, such as that of multipath TCP.
        within((0..512).contains(&socket.protocol), "protocol")?;
        within(socket.shutdown <= 3, "shutdown state")?;
        for one in &socket.multicast {
            let is_address = |bytes: &Bytes| [4, 16].contains(&bytes.0.len());
            within(socket.kind != SOCK_STREAM, "multicast groups of a stream")?;
            within(is_address(&one.group), "multicast group")?;
            within(
                one.senders.iter().all(|sender| sender.0.len() == one.group.0.len()),
                "senders to a multicast group",
            )?;
        }
        options(&socket.options)?;
        let endpoint = |endpoint: &Endpoint| {
            let length = if socket.family == AF_INET { 4 } else { 16 };
            within(endpoint.address.0.len() == length, "address")
        };
        socket.local.iter().try_for_each(endpoint)?;
        let stream = socket.kind == SOCK_STREAM;
        within(stream || socket.received.0.is_empty(), "stream data")?;
        within(!stream || socket.queue.is_empty(), "datagrams in a stream")?;
        for datagram in &socket.queue {
            endpoint(&datagram.sender)?;
            within(datagram.data.0.len() <= 65535, "length of a datagram")?;
        }
        match &socket.state {
            InetState::Unconnected => Ok(()),
            InetState::Associated { remote } => {
                within(!stream, "state of a stream")?;
                endpoint(remote)
            }
            _ if !stream => Err("only streams have connections".to_owned()),
            InetState::Listening { .. } | InetState::Ended { .. } => Ok(()),
            InetState::Inner { peer, remote } => {
                endpoint(remote)?;
                in_table(peer.index(), sockets, "IP socket")?;
                within(socket.local.is_some(), "connection without an address")?;
                match &sockets[peer.index()].state {
                    InetState::Inner { peer: back, .. } if back.index() == index && peer.index() != index => Ok(()),
                    _ => Err(format!("IP socket {} is not connected to it", peer.0)),
                }
            }
            InetState::Waiting { listener, remote } => {
                endpoint(remote)?;
                in_table(listener.index(), sockets, "IP socket")?;
                within(socket.local.is_some(), "connection without an address")?;
                within(
                    sockets[listener.index()].network == socket.network,
                    "connection across networks",
                )?;
                match &sockets[listener.index()].state {
                    InetState::Listening { .. } => Ok(()),
                    _ => Err(format!("IP socket {} does not listen", listener.0)),
                }
            }
            InetState::PeerClosed { remote } | InetState::Connecting { remote } => endpoint(remote),
            InetState::Channel { remote } => {
                endpoint(remote)?;
                within(socket.network.is_none(), "network of a connection to another job")?;
                within(socket.local.is_some(), "connection without an address")
            }
            InetState::Outer(connection) => {
                endpoint(&connection.remote)?;
                within(socket.local.is_some(), "connection without an address")?;
                within(
                    connection.unsent as usize <= connection.send_queue.0.len(),
                    "length of what was not sent",
                )?;
                within(
                    connection.send_scale <= 14 && connection.receive_scale <= 14,
                    "window scale",
                )?;
                within(connection.max_segment <= 65535, "segment size")
            }
        }
    }

    pub(super) fn sockets(&self) -> Result<()> {
        let mut waiting = HashSet::new();
        for (index, socket) in self.manifest.sockets.iter().enumerate() {
            self.socket(index, socket, &mut waiting)
                .map_err(|what| wrong(format!("socket {index}: {what}")))?;
        }
        Ok(())
    }

    /// Checks a socket; `waiting` are those found in some listener's queue so far.
    pub(super) fn socket(&self, index: usize, socket: &UnixSocket, waiting: &mut HashSet<SocketId>) -> Verdict {
        let sockets = &self.manifest.sockets;
        self.network(socket.network)?;
        self.place(socket.mount_namespace)?;
        within(
            socket.mount_namespace.is_none() || socket.node.is_some(),
            "mount namespace of a socket without a file",
        )?;
        within([SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET].contains(&socket.kind), "type")?;
        within(socket.address.0.len() <= MAX_SOCKET_NAME, "address")?;
        path(&socket.bind_directory)?;
        let file_name = socket.file_name.0.as_slice();
        within(
            file_name.is_empty() || (socket.node.is_some() && file_name.len() <= MAX_FILE_NAME),
            "file name",
        )?;
        within(
            !file_name.iter().any(|byte| [0, b'/'].contains(byte)) && ![b".".as_slice(), b".."].contains(&file_name),
            "file name",
        )?;
        within(socket.shutdown <= 3, "shutdown state")?;
        for message in &socket.queue {
            within(message.sender.0.len() <= MAX_SOCKET_NAME, "sender")?;
            // SCM_MAX_FD.
            within(message.files.len() <= 253, "number of descriptors in a message")?;
            for file in &message.files {
                in_table(file.index(), &self.manifest.files, "open file")?;
            }
        }
        match &socket.state {
            SocketState::Unconnected | SocketState::PeerClosed => Ok(()),
            SocketState::Connected(id) => {
                in_table(id.index(), sockets, "socket")?;
                let peer = &sockets[id.index()];
                within(peer.kind == socket.kind, "peer of another type")?;
                // A datagram socket may be connected to any other, and to itself.
                let mutual = match &peer.state {
                    _ if socket.kind == SOCK_DGRAM => true,
                    SocketState::Connected(back) => back.index() == index && id.index() != index,
                    SocketState::Listening { pending, .. } => pending.iter().any(|client| client.index() == index),
                    SocketState::Unconnected | SocketState::PeerClosed => false,
                };
                if mutual {
                    Ok(())
                } else {
                    Err(format!("socket {} is not connected to it", id.0))
                }
            }
            SocketState::Listening { pending, .. } => {
                within(socket.kind != SOCK_DGRAM, "listening datagram socket")?;
                for client in pending {
                    in_table(client.index(), sockets, "socket")?;
                    let other = &sockets[client.index()];
                    let agreed = matches!(&other.state, SocketState::Connected(id) if id.index() == index);
                    if !agreed || other.kind != socket.kind {
                        return Err(format!("socket {} waits but is not connected to it", client.0));
                    }
                    within(waiting.insert(*client), "client waiting twice")?;
                }
                Ok(())
            }
        }
    }
}
