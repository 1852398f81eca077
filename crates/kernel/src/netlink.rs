//! Requests by netlink(7), and messages as headers and attributes. What the messages mean is not known here.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Interfaces, addresses and routes.
pub const ROUTE: i32 = libc::NETLINK_ROUTE;
/// Encryption of packets.
pub const TRANSFORM: i32 = libc::NETLINK_XFRM;
/// Packet filters.
pub const NETFILTER: i32 = libc::NETLINK_NETFILTER;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACKNOWLEDGE: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
/// Bytes of a message's own header, and of an attribute's.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// Most that the kernel sends at a time.
const RECEIVED: usize = 64 << 10;
/// How often a list is asked for that changes meanwhile.
const TRIES: usize = 8;
/// Set in the type of an attribute that consists of attributes, or has network byte order.
const TYPE: u16 = 0x3fff;

/// A socket to the kernel, of the network namespace it was made in.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

/// Attributes: type and value.
pub type Attributes = Vec<(u16, Vec<u8>)>;

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let raw = bytes.get(at..at + 2).ok_or_else(invalid)?;
    Ok(u16::from_ne_bytes([raw[0], raw[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let raw = bytes.get(at..at + 4).ok_or_else(invalid)?;
    Ok(u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

impl Netlink {
    /// A socket for a protocol in the namespace that this thread is in.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let protocol = NonZeroU32::new(protocol as u32).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Netlink(socket))
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Messages of one datagram: type, flags and body.
    fn receive(&self) -> io::Result<Vec<(u16, u16, Vec<u8>)>> {
        let mut buffer = vec![0u8; RECEIVED];
        let (_, length) = rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
        let mut rest = buffer.get(..length).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut found = Vec::new();
        while rest.len() >= HEADER {
            let length = u32_at(rest, 0)? as usize;
            let body = rest.get(HEADER..length).ok_or_else(invalid)?;
            found.push((u16_at(rest, 4)?, u16_at(rest, 6)?, body.to_vec()));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(found)
    }

    /// Everything of a kind: the bodies of the answers.
    pub fn list(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..TRIES {
            if let Some(found) = self.try_list(kind, body)? {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn try_list(&self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.send(kind, DUMP, body)?;
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            for (kind, flags, body) in self.receive()? {
                whole &= flags & INTERRUPTED == 0;
                match kind {
                    ERROR => return Err(io::Error::from_raw_os_error(-(u32_at(&body, 0)? as i32))),
                    // It may say why the list has ended.
                    DONE => match u32_at(&body, 0).unwrap_or(0) as i32 {
                        0.. => return Ok(whole.then_some(found)),
                        error => return Err(io::Error::from_raw_os_error(-error)),
                    },
                    _ => found.push(body),
                }
            }
        }
    }

    /// Has something done. `flags`: NLM_F_CREATE and the like.
    pub fn ask(&self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.send(kind, ACKNOWLEDGE | flags as u16, body)?;
        for (kind, _, body) in self.receive()? {
            if kind == ERROR {
                return match -(u32_at(&body, 0)? as i32) {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error)),
                };
            }
        }
        Err(invalid())
    }

    /// Asks for one thing: the body of the answer.
    pub fn get(&self, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        self.send(kind, 0, body)?;
        match self.receive()?.into_iter().next() {
            Some((ERROR, _, body)) => Err(io::Error::from_raw_os_error(-(u32_at(&body, 0)? as i32))),
            Some((_, _, body)) => Ok(body),
            None => Err(invalid()),
        }
    }
}

/// The attributes after the fixed part of a message, or within an attribute.
pub fn attributes(mut rest: &[u8]) -> io::Result<Attributes> {
    let mut found = Vec::new();
    while rest.len() >= ATTRIBUTE {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(ATTRIBUTE..length).ok_or_else(invalid)?;
        found.push((u16_at(rest, 2)? & TYPE, value.to_vec()));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// Adds an attribute to a message.
pub fn add(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.resize(message.len().next_multiple_of(4), 0);
    message.extend_from_slice(&((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET_LINK: u16 = 18;
    const NAME: u16 = 3;

    #[test]
    fn interfaces_are_listed() {
        let route = Netlink::open(ROUTE).unwrap();
        let links = route.list(GET_LINK, &[0; 16]).unwrap();
        let named = |body: &Vec<u8>| {
            let all = attributes(&body[16..]).unwrap();
            all.iter().any(|(kind, value)| *kind == NAME && value == b"lo\0")
        };
        assert!(links.iter().any(named));
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let route = Netlink::open(ROUTE).unwrap();
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&0x7fff_fff0_u32.to_ne_bytes());
        let error = route.get(GET_LINK, &body).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut message = vec![1, 2];
        add(&mut message, 7, b"abc");
        add(&mut message, 8, b"");
        let all = attributes(&message[4..]).unwrap();
        assert_eq!(all, [(7, b"abc".to_vec()), (8, Vec::new())]);
        assert!(attributes(&[200, 0, 1, 0]).is_err());
    }
}
