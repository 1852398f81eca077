//! Packet sockets, packet(7): what packet_diag says of them, their addresses, and the rings they share with a program.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::inet::{create, set_option};
use crate::netlink::{Netlink, attributes};
use crate::socket::{INVALID, SOCK_DIAG_BY_FAMILY, checked, u32_at};

/// SOL_PACKET
pub const LEVEL: i32 = 263;
/// SOCK_PACKET: the old kind, with an address of its own.
pub const OLD_KIND: i32 = 10;
const ADD_MEMBERSHIP: i32 = 1;
/// The option PACKET_RX_RING.
pub const RECEIVE_RING: i32 = 5;
/// The option PACKET_TX_RING.
pub const SEND_RING: i32 = 13;
/// Bytes of a hardware address in a membership (MAX_ADDR_LEN).
const ADDRESS: usize = 32;
/// Bytes of `struct packet_diag_mclist`.
const MEMBERSHIP: usize = 44;
/// An Ethernet protocol for experiments (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;

/// A membership: what a socket has an interface receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Number of the interface.
    pub interface: u32,
    /// How often it was asked for.
    pub count: u32,
    /// PACKET_MR_*
    pub kind: u16,
    /// Hardware address.
    pub address: Vec<u8>,
}

/// How a ring is made: `struct tpacket_req3`, of which versions 1 and 2 take the first four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingShape {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames.
    pub frames: u32,
}

impl RingShape {
    /// Bytes it takes.
    pub fn size(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.blocks)
    }

    /// Where a frame begins.
    pub fn frame(&self, index: u32) -> u64 {
        let per_block = self.block_size.checked_div(self.frame_size).unwrap_or(1).max(1);
        let (block, within) = (index / per_block, index % per_block);
        u64::from(block) * u64::from(self.block_size) + u64::from(within) * u64::from(self.frame_size)
    }
}

/// What packet_diag says of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PacketDiag {
    /// Protocol, as a number and not as it stands in a packet; 0 for none.
    pub protocol: u16,
    /// Number of the interface it is bound to; 0 for all, -1 for one that has gone.
    pub interface: i32,
    /// PACKET_COPY_THRESH.
    pub copy_threshold: u32,
    /// Memberships.
    pub memberships: Vec<Membership>,
    /// Ring for packets that come.
    pub receive_ring: Option<RingShape>,
    /// Ring for packets that go.
    pub send_ring: Option<RingShape>,
}

/// What packet_diag says of the packet socket with an inode number in the caller's network namespace.
pub fn diagnose(inode: u32) -> io::Result<Option<PacketDiag>> {
    /// PACKET_SHOW_INFO, _MCLIST and _RING_CFG.
    const SHOWN: u32 = 1 | 2 | 4;
    const INFO: u16 = 0;
    const MEMBERSHIPS: u16 = 1;
    const RECEIVE: u16 = 2;
    const SEND: u16 = 3;
    // packet_diag_req: it knows lists only.
    let mut body = vec![libc::AF_PACKET as u8, 0, 0, 0];
    body.extend_from_slice(&inode.to_ne_bytes());
    body.extend_from_slice(&SHOWN.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    for reply in Netlink::open(libc::NETLINK_SOCK_DIAG)?.list(SOCK_DIAG_BY_FAMILY, &body)? {
        // packet_diag_msg
        if u32_at(&reply, 4)? != inode {
            continue;
        }
        let mut found = PacketDiag {
            protocol: u16::from_ne_bytes([*reply.get(2).ok_or(INVALID)?, *reply.get(3).ok_or(INVALID)?]),
            ..PacketDiag::default()
        };
        for (kind, value) in attributes(reply.get(16..).ok_or(INVALID)?)? {
            match kind {
                INFO => {
                    found.interface = u32_at(&value, 0)? as i32;
                    found.copy_threshold = u32_at(&value, 12)?;
                }
                MEMBERSHIPS => {
                    for one in value.chunks_exact(MEMBERSHIP) {
                        let short = |at: usize| u16::from_ne_bytes([one[at], one[at + 1]]);
                        let length = usize::from(short(10)).min(ADDRESS);
                        found.memberships.push(Membership {
                            interface: u32_at(one, 0)?,
                            count: u32_at(one, 4)?,
                            kind: short(8),
                            address: one[12..12 + length].to_vec(),
                        });
                    }
                }
                RECEIVE => found.receive_ring = Some(shape(&value)?),
                SEND => found.send_ring = Some(shape(&value)?),
                _ => {}
            }
        }
        return Ok(Some(found));
    }
    Ok(None)
}

fn shape(value: &[u8]) -> io::Result<RingShape> {
    Ok(RingShape {
        block_size: u32_at(value, 0)?,
        blocks: u32_at(value, 4)?,
        frame_size: u32_at(value, 8)?,
        frames: u32_at(value, 12)?,
    })
}

/// The name of an interface of a socket's network namespace.
pub fn interface_name(socket: BorrowedFd<'_>, number: u32) -> io::Result<String> {
    Ok(rustix::net::netdevice::index_to_name(socket, number)?)
}

/// The number of an interface of a socket's network namespace.
pub fn interface_number(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

fn link_address(protocol: u16, interface: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain numbers, for which all zeros is a valid value.
    let mut raw: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    raw.sll_family = libc::AF_PACKET as u16;
    raw.sll_protocol = protocol.to_be();
    raw.sll_ifindex = interface as i32;
    raw
}

/// Binds a socket to a protocol and an interface; 0 for none and for all.
pub fn bind(socket: BorrowedFd<'_>, protocol: u16, interface: u32) -> io::Result<()> {
    let raw = link_address(protocol, interface);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `raw` is a sockaddr_ll of `length` bytes that lives through the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) }).map(drop)
}

/// Binds a socket of the old kind to an interface by name. It has got its protocol when it was made.
pub fn bind_old(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: sockaddr is plain numbers, for which all zeros is a valid value.
    let mut raw: libc::sockaddr = unsafe { std::mem::zeroed() };
    raw.sa_family = libc::AF_PACKET as u16;
    // The last byte stays zero.
    let room = raw.sa_data.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in raw.sa_data.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `raw` is a sockaddr of `length` bytes that lives through the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) }).map(drop)
}

/// Adds a membership once.
pub fn join(socket: BorrowedFd<'_>, membership: &Membership) -> io::Result<()> {
    // struct packet_mreq, with room for the longest address
    let mut value = membership.interface.to_ne_bytes().to_vec();
    value.extend_from_slice(&membership.kind.to_ne_bytes());
    value.extend_from_slice(&(membership.address.len() as u16).to_ne_bytes());
    value.extend_from_slice(&membership.address);
    value.resize(8 + ADDRESS, 0);
    set_option(socket, LEVEL, ADD_MEMBERSHIP, &value)
}

/// Gives a socket a ring, [`RECEIVE_RING`] or [`SEND_RING`].
pub fn make_ring(socket: BorrowedFd<'_>, which: i32, shape: &RingShape) -> io::Result<()> {
    let numbers = [shape.block_size, shape.blocks, shape.frame_size, shape.frames];
    let value: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    set_option(socket, LEVEL, which, &value)
}

/// The rings of a socket, mapped: the one for packets that come, and behind it the one for packets that go.
#[derive(Debug)]
pub struct Rings {
    words: &'static [AtomicU64],
}

impl Rings {
    /// Maps them; `size` is that of both together, for the kernel maps no part.
    pub fn map(socket: BorrowedFd<'_>, size: u64) -> io::Result<Rings> {
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint places the mapping where nothing else is.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, socket, 0) }?;
        // SAFETY: the address is page-aligned and maps `size` bytes, pages that the kernel keeps for as long as they
        // are mapped; they are unmapped only on drop, and no reference to the words outlives `self`. Every bit pattern
        // is a value, and the kernel's writes are seen through atomic loads only.
        let words = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), size / size_of::<AtomicU64>()) };
        Ok(Rings { words })
    }

    /// Copies everything.
    pub fn read(&self) -> Vec<u8> {
        let words = self.words.iter().map(|word| word.load(Ordering::Acquire));
        words.flat_map(u64::to_ne_bytes).collect()
    }

    /// Stores whole words from an offset on, which is a multiple of eight bytes.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let first = usize::try_from(offset).map_err(|_| INVALID)? / size_of::<AtomicU64>();
        let words = self.words.get(first..).ok_or(INVALID)?;
        let (chunks, rest) = bytes.as_chunks::<8>();
        if chunks.len() > words.len() || !rest.is_empty() || !offset.is_multiple_of(8) {
            return Err(INVALID.into());
        }
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Release);
        }
        Ok(())
    }

    /// The first four bytes of a word at an offset: a frame's status in the second version.
    pub fn first_half(&self, offset: u64) -> u32 {
        let word = self.words.get(offset as usize / size_of::<AtomicU64>());
        let value = word.map_or(0, |word| word.load(Ordering::Acquire));
        let [a, b, c, d, ..] = value.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        let length = size_of_val(self.words);
        // SAFETY: `map` made a mapping of this address and length, and nobody else unmaps it or has a reference left.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast_mut().cast(), length) };
    }
}

/// A socket that sends packets of a protocol for experiments to this machine itself.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    loopback: u32,
}

impl Echo {
    /// In the caller's network namespace.
    pub fn open() -> io::Result<Echo> {
        let socket = create(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        let loopback = interface_number(socket.as_fd(), "lo")?;
        Ok(Echo { socket, loopback })
    }

    /// Has a socket receive these packets alone.
    pub fn listen(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bind(socket, EXPERIMENT, self.loopback)
    }

    /// Sends one.
    pub fn send(&self) -> io::Result<()> {
        let mut to = link_address(EXPERIMENT, self.loopback);
        to.sll_halen = 6;
        let data = [0u8; 1];
        // SAFETY: the kernel reads one byte of `data` and a sockaddr_ll of the size that is given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                data.as_ptr().cast(),
                data.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
