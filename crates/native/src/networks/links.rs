//! Interfaces as rtnetlink(7) has them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use cpr_image::model::{ByteString, Bytes, LinkKind, NetworkId, NetworkLink};
use cpr_kernel::netlink::{self, Attributes, Netlink};
use cpr_types::{Context, Error, ErrorKind, Result};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const GET_NUMBER: u16 = 90;

/// IFLA_* (<linux/if_link.h>).
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const OTHER_END: u16 = 5;
const MASTER: u16 = 10;
const QUEUE_LENGTH: u16 = 13;
const STATE: u16 = 16;
const INFO: u16 = 18;
const ALIAS: u16 = 20;
const GROUP: u16 = 27;
const NAMESPACE: u16 = 28;
const OTHER_NETWORK: u16 = 37;
const XDP: u16 = 43;
/// Within IFLA_INFO.
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// Within the data of a cable.
const PEER: u16 = 1;
/// Within IFLA_XDP.
const XDP_ATTACHED: u16 = 2;
/// NETNSA_*.
const NUMBER: u16 = 1;
const OF_DESCRIPTOR: u16 = 3;

/// IF_OPER_UP.
const CARRIES: u8 = 6;

/// Flags that can be set: up, no ARP, promiscuous, all multicast, multicast, dynamic.
const SETTABLE: u32 = UP | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;
const UP: u32 = 1;

/// An interface as it was found.
#[derive(Debug, Clone)]
pub struct Found {
    pub index: u32,
    pub name: Vec<u8>,
    /// `veth` and the like; empty for hardware and the loopback.
    pub kind: Vec<u8>,
    flags: u32,
    attributes: Attributes,
}

/// The fixed part of a message about an interface (`struct ifinfomsg`).
fn header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for word in [index, flags, change] {
        header.extend_from_slice(&word.to_ne_bytes());
    }
    header
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |raw| u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

impl Found {
    fn read(body: &[u8]) -> std::io::Result<Found> {
        let rest = body.get(16..).ok_or(std::io::ErrorKind::InvalidData)?;
        let attributes = netlink::attributes(rest)?;
        let mut found = Found {
            index: word(body, 4),
            flags: word(body, 8),
            name: Vec::new(),
            kind: Vec::new(),
            attributes,
        };
        let text = |value: &[u8]| value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        found.name = text(found.value(NAME));
        let info = netlink::attributes(found.value(INFO))?;
        found.kind = info
            .iter()
            .find(|(kind, _)| *kind == INFO_KIND)
            .map(|(_, kind)| text(kind))
            .unwrap_or_default();
        Ok(found)
    }

    fn value(&self, kind: u16) -> &[u8] {
        self.attributes
            .iter()
            .find(|(other, _)| *other == kind)
            .map_or(&[], |(_, value)| value)
    }

    /// Its name, for messages.
    pub fn label(&self) -> String {
        format!("interface {}", String::from_utf8_lossy(&self.name))
    }

    /// Whether it is one that every namespace has.
    pub fn is_one_of(&self, given: &[Found]) -> bool {
        given
            .iter()
            .any(|other| (&other.name, &other.kind, other.index) == (&self.name, &self.kind, self.index))
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{} {why}", self.label()))
    }

    /// Refuses what has programs, masters or names of its own.
    pub fn refuse_unknown(&self) -> Result<()> {
        let attached = netlink::attributes(self.value(XDP)).unwrap_or_default();
        if attached
            .iter()
            .any(|(kind, value)| *kind == XDP_ATTACHED && value.iter().any(|byte| *byte != 0))
        {
            return Err(self.refuse("has an XDP program, which is not supported"));
        }
        if word(self.value(MASTER), 0) != 0 {
            return Err(self.refuse("belongs to another interface, which is not supported"));
        }
        if !self.value(ALIAS).is_empty() {
            return Err(self.refuse("has an alias, which is not supported"));
        }
        Ok(())
    }

    /// Whether packets can be sent.
    pub fn carries(&self) -> bool {
        self.value(STATE) == [CARRIES]
    }

    /// The number of the other end of a cable, and what its namespace is called in this one, if it is another.
    pub fn other_end(&self) -> (u32, Option<u32>) {
        let network = self.value(OTHER_NETWORK);
        (
            word(self.value(OTHER_END), 0),
            (network.len() == 4).then(|| word(network, 0)),
        )
    }

    /// The interface as the image has it.
    pub fn image(&self, kind: LinkKind) -> NetworkLink {
        NetworkLink {
            index: self.index,
            name: ByteString(self.name.clone()),
            kind,
            flags: self.flags & SETTABLE,
            mtu: word(self.value(MTU), 0),
            queue_length: word(self.value(QUEUE_LENGTH), 0),
            group: word(self.value(GROUP), 0),
            address: Bytes(self.value(ADDRESS).to_vec()),
        }
    }
}

/// All interfaces of the namespace that the socket is of.
///
/// # Errors
/// The kernel does not tell.
pub fn list(route: &Netlink) -> Result<Vec<Found>> {
    let what = || "list the interfaces of a network namespace";
    let bodies = route.list(GET_LINK, &header(0, 0, 0)).context(what)?;
    bodies
        .iter()
        .map(|body| Found::read(body))
        .collect::<std::io::Result<_>>()
        .context(what)
}

/// What another namespace is called in that of the socket; none where it has no name.
///
/// # Errors
/// The kernel does not tell.
pub fn number_of(route: &Netlink, other: &File) -> Result<Option<u32>> {
    // struct rtgenmsg, padded.
    let mut body = vec![0; 4];
    netlink::add(&mut body, OF_DESCRIPTOR, &other.as_fd().as_raw_fd().to_ne_bytes());
    let what = || "ask what a network namespace is called in another one";
    let answer = route.get(GET_NUMBER, &body).context(what)?;
    let attributes = netlink::attributes(answer.get(4..).unwrap_or_default()).context(what)?;
    let number = attributes
        .iter()
        .find(|(kind, _)| *kind == NUMBER)
        .map(|(_, value)| word(value, 0) as i32);
    Ok(number.and_then(|number| u32::try_from(number).ok()))
}

/// Attributes of a new interface, or one end of a cable.
fn describe(link: &NetworkLink, message: &mut Vec<u8>) {
    let name = [link.name.0.as_slice(), b"\0"].concat();
    netlink::add(message, NAME, &name);
    if !link.address.0.is_empty() {
        netlink::add(message, ADDRESS, &link.address.0);
    }
    netlink::add(message, MTU, &link.mtu.to_ne_bytes());
}

/// Makes an interface in the namespace of the socket; of a cable, both ends. `other`: the other end, and the namespace
/// it is in.
///
/// # Errors
/// The kernel refuses it.
pub fn make(route: &Netlink, link: &NetworkLink, other: Option<(&NetworkLink, &File)>) -> Result<()> {
    let mut message = header(link.index, 0, 0);
    describe(link, &mut message);
    let mut info = Vec::new();
    match (&link.kind, other) {
        (LinkKind::Given, _) => return Ok(()),
        (LinkKind::Dummy, _) => netlink::add(&mut info, INFO_KIND, b"dummy"),
        (LinkKind::Veth { .. }, None) => return Ok(()),
        (LinkKind::Veth { .. }, Some((other, namespace))) => {
            let mut peer = header(other.index, 0, 0);
            describe(other, &mut peer);
            netlink::add(&mut peer, NAMESPACE, &namespace.as_fd().as_raw_fd().to_ne_bytes());
            let mut data = Vec::new();
            netlink::add(&mut data, PEER, &peer);
            netlink::add(&mut info, INFO_KIND, b"veth");
            netlink::add(&mut info, INFO_DATA, &data);
        }
    }
    netlink::add(&mut message, INFO, &info);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    route
        .ask(NEW_LINK, flags, &message)
        .context(|| format!("make interface {}", link.name))
}

/// Gives an interface its settings, and brings it up if it was.
///
/// # Errors
/// The kernel refuses a value.
pub fn set(route: &Netlink, link: &NetworkLink) -> Result<()> {
    let mut message = header(link.index, link.flags & SETTABLE, SETTABLE);
    for (kind, value) in [(MTU, link.mtu), (QUEUE_LENGTH, link.queue_length), (GROUP, link.group)] {
        netlink::add(&mut message, kind, &value.to_ne_bytes());
    }
    route
        .ask(NEW_LINK, 0, &message)
        .context(|| format!("set interface {} up", link.name))
}

/// Whether an interface is up.
pub fn is_up(link: &NetworkLink) -> bool {
    link.flags & UP != 0
}

/// Whether this end of a cable is the one that makes both.
pub fn makes(here: NetworkId, link: &NetworkLink) -> Option<(NetworkId, u32)> {
    match link.kind {
        LinkKind::Veth { network, index } if (here, link.index) < (network, index) => Some((network, index)),
        _ => None,
    }
}
