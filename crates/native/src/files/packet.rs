//! Packet sockets, packet(7): protocol and interface, memberships, options, fanout groups, and rings with their
//! contents.
//!
//! What waits in the queue of a socket without a ring is not saved: a socket that sees what passes by misses what
//! passes between checkpoint and restart, too. Counters (PACKET_STATISTICS) begin at zero, since looking at them
//! changes them.
//!
//! The kernel tells nowhere which frame of a ring it fills next. It is the one after that with the newest time, where
//! the times of all frames rise around the ring up to there, and the first where none was filled. A ring in which they
//! do not is refused, and so are rings of the third version, whose blocks the kernel numbers and closes by the clock,
//! and rings for sending that were used: where the kernel looks for the next packet in those shows nowhere. At restart
//! the kernel gets to that frame by filling those before it with packets of ours; then all get their contents.
//!
//! A mapped ring is a mapping of the socket. Since processes are born with what they map, a socket is made before them
//! ([`create`]) and becomes what it was with all other files.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, Bytes, NetworkId, PacketMembership, PacketRing, PacketSocket, PacketSocketId};
use cpr_image::model::{Manifest, Object, OpenFile};
use cpr_kernel::inet as kernel;
use cpr_kernel::packet::{
    self, Echo, LEVEL, Membership, OLD_KIND, PacketDiag, RECEIVE_RING, RingShape, Rings, SEND_RING,
};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use super::sockopt::{self, Phase};
use super::{Description, RestoreContext, SaveContext, inet};
use crate::networks::Networks;

const VERSION: i32 = 10;
const FANOUT: i32 = 18;
const STATISTICS: i32 = 6;
/// Fanout by a program of the job's (PACKET_FANOUT_CBPF, _EBPF).
const BY_PROGRAM: [i32; 2] = [6, 7];
const PAGE: usize = 4096;
/// Longest wait for a packet of ours within this machine.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Where in the header of a frame its length and time are: by version.
const FRAME: [(usize, usize); 2] = [(8, 20), (4, 16)];

/// Sockets saved so far, by the inode numbers that mappings of them have.
#[derive(Debug, Default)]
pub struct SaveState {
    by_inode: HashMap<u64, PacketSocketId>,
}

impl SaveState {
    /// The socket with an inode number.
    pub fn of_mapping(&self, inode: u64) -> Option<PacketSocketId> {
        self.by_inode.get(&inode).copied()
    }
}

/// Saves a packet socket.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that could not be made again.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let (handle, inode) = (description.handle.as_fd(), description.stat.st_ino);
    let label = description.label();
    let network = context.networks.of_socket(handle, &label)?;
    let saved = context
        .networks
        .within(network, || look(handle, inode, network, true))
        .context(|| format!("{label}: save the packet socket"))?;
    let id = PacketSocketId(context.packet_sockets.len() as u32);
    context.packet_sockets.push(saved);
    context.packet_state.by_inode.insert(inode, id);
    Ok(Object::PacketSocket(id))
}

/// What makes a packet socket impossible to save, as far as it shows while the job runs.
///
/// # Errors
/// As [`save`].
pub(super) fn blocker(handle: BorrowedFd<'_>, inode: u64, label: &str, networks: &Networks) -> Result<()> {
    let network = networks.of_socket(handle, label)?;
    networks
        .within(network, || look(handle, inode, network, false))
        .context(|| label.to_owned())
        .map(drop)
}

fn look(handle: BorrowedFd<'_>, inode: u64, network: Option<NetworkId>, stopped: bool) -> Result<PacketSocket> {
    let unsupported = |what: &str| Error::new(ErrorKind::Unsupported, what).with_hint(super::socket::HINT);
    sockopt::refuse_filter(handle, "packet socket")?;
    let (_, kind, _) = inet::identity(handle)?;
    let found = u32::try_from(inode).ok().map(packet::diagnose).transpose();
    let found = found
        .context(|| "ask the kernel about it")
        .map_err(|e| e.with_hint("the kernel needs CONFIG_PACKET_DIAG"))?;
    let Some(found) = found.flatten() else {
        return Err(unsupported("the kernel does not list it"));
    };
    let name = |number: u32| {
        packet::interface_name(handle, number)
            .map(|name| ByteString(name.into_bytes()))
            .context(|| format!("ask for the name of interface {number}"))
    };
    let interface = match found.interface {
        0 => None,
        number => Some(u32::try_from(number).map_err(|_| unsupported("its interface has gone"))?),
    };
    let new = sockopt::new_socket(libc::AF_PACKET, kind, 0)?;
    let options = sockopt::save(handle, new.as_fd(), false)?;
    let fanout = match kind {
        OLD_KIND => 0,
        _ => kernel::number(handle, LEVEL, FANOUT).context(|| "ask for its fanout group")?,
    };
    if fanout != 0 && BY_PROGRAM.contains(&(fanout >> 16 & 0xff)) {
        return Err(unsupported("a fanout group with a program is not supported"));
    }
    let memberships = found.memberships.iter().map(|one| {
        Ok(PacketMembership {
            interface: name(one.interface)?,
            count: one.count,
            kind: u32::from(one.kind),
            address: Bytes(one.address.clone()),
        })
    });
    let mut saved = PacketSocket {
        network,
        kind,
        protocol: u32::from(found.protocol),
        interface: interface.map(&name).transpose()?,
        memberships: memberships.collect::<Result<_>>()?,
        copy_threshold: found.copy_threshold,
        fanout: fanout as u32,
        receive_ring: None,
        send_ring: None,
        ring_contents: Vec::new(),
        options,
    };
    look_at_rings(handle, &found, &mut saved, stopped)?;
    Ok(saved)
}

fn look_at_rings(handle: BorrowedFd<'_>, found: &PacketDiag, saved: &mut PacketSocket, stopped: bool) -> Result<()> {
    if found.receive_ring.is_none() && found.send_ring.is_none() {
        return Ok(());
    }
    let unsupported = |what: &str| Error::new(ErrorKind::Unsupported, what).with_hint(super::socket::HINT);
    let version = sockopt::number(&saved.options, LEVEL, VERSION);
    let Some(header) = usize::try_from(version).ok().and_then(|version| FRAME.get(version)) else {
        return Err(unsupported(
            "it has a ring of version 3 (TPACKET_V3), which is not supported",
        ));
    };
    let size = |ring: &Option<RingShape>| ring.as_ref().map_or(0, RingShape::size);
    let (first, second) = (size(&found.receive_ring), size(&found.send_ring));
    let contents = Rings::map(handle, first + second)
        .context(|| "look at its ring")?
        .read();
    let frames = |ring: &RingShape, base: u64| -> Vec<Frame> {
        let at = |index| Frame::read(&contents, base + ring.frame(index), *header);
        (0..ring.frames).map(at).collect()
    };
    saved.receive_ring = found.receive_ring.as_ref().map(|ring| image_of(ring, 0));
    saved.send_ring = found.send_ring.as_ref().map(|ring| image_of(ring, 0));
    if let (Some(ring), Some(image)) = (&found.receive_ring, &mut saved.receive_ring) {
        let next = next_frame(&frames(ring, 0));
        // While it runs, frames are being filled.
        image.next = match next {
            Some(next) => next,
            None if stopped => {
                return Err(unsupported("where the kernel goes on in its ring does not show"));
            }
            None => 0,
        };
    }
    if let Some(ring) = &found.send_ring
        && frames(ring, first).iter().any(|frame| frame.length != 0)
    {
        return Err(unsupported(
            "it has a ring for sending that was used, which is not supported",
        ));
    }
    let pages = contents.chunks(PAGE).enumerate();
    let pages = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    saved.ring_contents = pages
        .map(|(index, page)| ((index * PAGE) as u64, Bytes(page.to_vec())))
        .collect();
    Ok(())
}

/// What of a frame's header is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Frame {
    length: u32,
    /// Seconds, and their parts.
    time: (u32, u32),
}

impl Frame {
    fn read(contents: &[u8], at: u64, (length, time): (usize, usize)) -> Frame {
        let word = |offset: usize| {
            let at = usize::try_from(at).unwrap_or(usize::MAX).saturating_add(offset);
            let bytes = contents
                .get(at..at.saturating_add(4))
                .and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        Frame {
            length: word(length),
            time: (word(time), word(time + 4)),
        }
    }

    fn was_filled(&self) -> bool {
        self.time != (0, 0)
    }
}

/// The frame that the kernel fills next, by the times of all; none where that cannot be said.
fn next_frame(frames: &[Frame]) -> Option<u32> {
    let count = frames.len();
    let filled = frames.iter().filter(|frame| frame.was_filled()).count();
    if filled < count {
        // The first round: one after the other from the beginning.
        let all = frames[..filled].iter().all(Frame::was_filled) && frames[..filled].is_sorted_by_key(|f| f.time);
        return all.then_some(filled as u32);
    }
    // Where time goes back is the seam. There is none where all are of one moment, or just after a round.
    let mut seams = (0..count).filter(|index| frames[*index].time < frames[(index + count - 1) % count].time);
    match (seams.next(), seams.next()) {
        (Some(seam), None) => Some(seam as u32),
        (None, _) if count == 1 => Some(0),
        _ => None,
    }
}

fn image_of(ring: &RingShape, next: u32) -> PacketRing {
    PacketRing {
        block_size: ring.block_size,
        blocks: ring.blocks,
        frame_size: ring.frame_size,
        frames: ring.frames,
        next,
    }
}

fn shape_of(ring: &PacketRing) -> RingShape {
    RingShape {
        block_size: ring.block_size,
        blocks: ring.blocks,
        frame_size: ring.frame_size,
        frames: ring.frames,
    }
}

/// Bytes that a mapping of a socket must have.
pub fn mapped_size(socket: &PacketSocket) -> u64 {
    let rings = socket.receive_ring.iter().chain(&socket.send_ring);
    rings.map(|ring| shape_of(ring).size()).sum()
}

/// Makes the packet sockets of an image, which are nothing in particular yet.
///
/// # Errors
/// [`ErrorKind::Denied`] for whoever lacks CAP_NET_RAW over the network namespace.
pub fn create(manifest: &Manifest, networks: &Networks) -> Result<Vec<OwnedFd>> {
    let sockets = manifest.packet_sockets.iter().enumerate();
    let make = |(index, socket): (usize, &PacketSocket)| {
        let protocol = match socket.kind {
            OLD_KIND => i32::from((socket.protocol as u16).to_be()),
            _ => 0,
        };
        networks
            .socket(socket.network, libc::AF_PACKET, socket.kind, protocol)
            .context(|| format!("make packet socket {index}"))
            .map_err(|e| match e.kind() {
                ErrorKind::Denied => e.with_hint("it takes CAP_NET_RAW over the network namespace: restart as root"),
                _ => e,
            })
    };
    sockets.map(make).collect()
}

/// Makes a socket what it was, and opens it.
///
/// # Errors
/// [`ErrorKind::Incompatible`] for an interface that is not there, [`ErrorKind::Denied`] for what takes a privilege.
pub fn restore(file: &OpenFile, id: PacketSocketId, context: &RestoreContext<'_>) -> Result<OwnedFd> {
    let missing = || Error::new(ErrorKind::Damaged, format!("the image has no packet socket {}", id.0));
    let socket = context.manifest.packet_sockets.get(id.index()).ok_or_else(missing)?;
    let made = context.packet_sockets.get(id.index()).ok_or_else(missing)?;
    let what = || format!("restore packet socket {}", id.0);
    context
        .networks
        .within(socket.network, || fill(made.as_fd(), socket))
        .context(what)?;
    let flags = OFlags::from_bits_retain(file.flags as u32) & OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(made, flags)
        .map_err(std::io::Error::from)
        .context(what)?;
    made.try_clone().context(what)
}

fn fill(end: BorrowedFd<'_>, socket: &PacketSocket) -> Result<()> {
    const COPY_THRESHOLD: i32 = 7;
    let number = |name: &ByteString| {
        let text = String::from_utf8_lossy(&name.0).into_owned();
        packet::interface_number(end, &text)
            .context(|| format!("find interface {text}"))
            .map_err(|e| e.with_kind(ErrorKind::Incompatible))
    };
    sockopt::set(end, &socket.options, Phase::Early, 0)?;
    if socket.copy_threshold != 0 {
        let value = socket.copy_threshold as i32;
        kernel::set_number(end, LEVEL, COPY_THRESHOLD, value).context(|| "set the copy threshold")?;
    }
    for (which, ring) in [(RECEIVE_RING, &socket.receive_ring), (SEND_RING, &socket.send_ring)] {
        if let Some(ring) = ring {
            packet::make_ring(end, which, &shape_of(ring)).context(|| "make a ring")?;
        }
    }
    fill_rings(end, socket)?;
    for one in &socket.memberships {
        let membership = Membership {
            interface: number(&one.interface)?,
            count: one.count,
            kind: one.kind as u16,
            address: one.address.0.clone(),
        };
        for _ in 0..one.count {
            packet::join(end, &membership).context(|| format!("join a group of interface {}", one.interface))?;
        }
    }
    sockopt::set(end, &socket.options, Phase::Late, 0)?;
    match (&socket.interface, socket.kind) {
        (Some(name), OLD_KIND) => {
            let text = String::from_utf8_lossy(&name.0).into_owned();
            packet::bind_old(end, &text).context(|| format!("bind to interface {text}"))?;
        }
        (None, OLD_KIND) => {}
        (name, _) => {
            let interface = name.as_ref().map(number).transpose()?.unwrap_or(0);
            packet::bind(end, socket.protocol as u16, interface).context(|| "bind")?;
        }
    }
    if socket.fanout != 0 {
        kernel::set_number(end, LEVEL, FANOUT, socket.fanout as i32).context(|| "join a fanout group")?;
    }
    Ok(())
}

/// Brings the kernel to the frame where it was, and all frames back.
fn fill_rings(end: BorrowedFd<'_>, socket: &PacketSocket) -> Result<()> {
    let size = mapped_size(socket);
    if size == 0 {
        return Ok(());
    }
    let rings = Rings::map(end, size).context(|| "map its ring")?;
    if let Some(ring) = socket.receive_ring.as_ref().filter(|ring| ring.next > 0) {
        let what = || "bring the kernel to where it was in a ring";
        let (shape, echo) = (shape_of(ring), Echo::open().context(what)?);
        echo.listen(end).context(what)?;
        for frame in 0..ring.next {
            let deadline = Instant::now() + ARRIVAL;
            echo.send()
                .context(what)
                .map_err(|e| e.with_hint("interface lo must be up"))?;
            while rings.first_half(shape.frame(frame)) == 0 {
                if Instant::now() > deadline {
                    return Err(Error::new(ErrorKind::TimedOut, what())
                        .with_hint("a packet filter on interface lo may be in the way"));
                }
                std::thread::yield_now();
            }
        }
        // Reading the counters puts them back to zero.
        kernel::option(end, LEVEL, STATISTICS).context(what)?;
        // Nothing more of that protocol is to come.
        let zeros = vec![0; usize::try_from(shape.size()).unwrap_or(0)];
        rings.write(0, &zeros).context(what)?;
    }
    for (offset, bytes) in &socket.ring_contents {
        rings
            .write(*offset, &bytes.0)
            .context(|| "put the contents of a ring back")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(seconds: &[u32]) -> Vec<Frame> {
        let frame = |second: &u32| Frame {
            length: u32::from(*second > 0),
            time: (*second, 0),
        };
        seconds.iter().map(frame).collect()
    }

    #[test]
    fn the_next_frame_shows_by_the_times_of_all() {
        for (times, next) in [
            (&[0, 0, 0][..], Some(0)),
            (&[5, 5, 0], Some(2)),
            (&[5, 6, 7], Some(0)),
            (&[8, 6, 7], Some(1)),
            (&[8, 8, 7], Some(2)),
            (&[5, 0, 5], None),
            (&[6, 5, 0], None),
            (&[8, 6, 8, 6], None),
            (&[5, 5, 5], None),
        ] {
            assert_eq!(next_frame(&frames(times)), next, "{times:?}");
        }
    }
}
