//! Multicast groups that an IP socket is a member of.
//!
//! The kernel lists the groups of a network namespace, and tells of a socket whether it is a member of a given one, on
//! a given interface, and which senders it hears there (RFC 3678). Interfaces are saved by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use cpr_image::model::{ByteString, Bytes, MulticastMembership};
use cpr_kernel::inet as kernel;
use cpr_kernel::packet::{interface_name, interface_number};
use cpr_types::{Context, Error, ErrorKind, Result};

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_MSFILTER: i32 = 48;
const MCAST_INCLUDE: u32 = 1;
/// `struct sockaddr_storage`.
const ADDRESS: usize = 128;
/// Where `struct group_filter`, `group_req` and `group_source_req` have the group.
const GROUP: usize = 8;
/// Where `struct group_filter` has its mode, the number of senders, and the senders.
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SENDERS: usize = COUNT + 4;
/// Senders looked at: as many as the kernel's own limits (igmp_max_msf, mld_max_msf) let be named in a usual setting.
const MOST_SENDERS: usize = 64;

fn level(group: IpAddr) -> i32 {
    match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    }
}

/// An address as `struct sockaddr_storage`.
fn raw(address: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    match address {
        IpAddr::V4(v4) => {
            put(0, &(libc::AF_INET as u16).to_ne_bytes());
            put(4, &v4.octets());
        }
        IpAddr::V6(v6) => {
            put(0, &(libc::AF_INET6 as u16).to_ne_bytes());
            put(8, &v6.octets());
        }
    }
    bytes
}

fn parsed(raw: &[u8], like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => Some(IpAddr::from(*raw.get(4..)?.first_chunk::<4>()?)),
        IpAddr::V6(_) => Some(IpAddr::from(*raw.get(8..)?.first_chunk::<16>()?)),
    }
}

fn bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes(v4.octets().to_vec()),
        IpAddr::V6(v6) => Bytes(v6.octets().to_vec()),
    }
}

fn address(bytes: &Bytes) -> Result<IpAddr> {
    let bytes = bytes.0.as_slice();
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| Error::new(ErrorKind::Damaged, "an address of the image has a wrong length"))
}

/// Interface and group of every membership in the network namespace this thread is in, that sockets of this family can
/// have.
fn groups(family: i32) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    let text = std::fs::read_to_string("/proc/thread-self/net/igmp").unwrap_or_default();
    let mut interface = 0;
    for line in text.lines().skip(1) {
        let Some(first) = line.split_whitespace().next() else {
            continue;
        };
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            // The number as it lies in memory, in network order.
            found.push((interface, IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes()))));
        }
    }
    if family != libc::AF_INET6 {
        return found;
    }
    let text = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap_or_default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [interface, _, group, ..] = words.as_slice()
            && let (Ok(interface), Ok(group)) = (interface.parse(), u128::from_str_radix(group, 16))
        {
            found.push((interface, IpAddr::V6(Ipv6Addr::from(group))));
        }
    }
    found
}

/// The multicast groups that `socket` is a member of, in whose network namespace this thread is.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a membership with more senders than are looked at; an interface has no name any more.
pub(super) fn memberships(socket: BorrowedFd<'_>, family: i32) -> Result<Vec<MulticastMembership>> {
    let mut found = Vec::new();
    for (number, group) in groups(family) {
        let mut filter = vec![0u8; SENDERS + MOST_SENDERS * ADDRESS];
        filter[..4].copy_from_slice(&number.to_ne_bytes());
        filter[GROUP..MODE].copy_from_slice(&raw(group));
        filter[COUNT..SENDERS].copy_from_slice(&(MOST_SENDERS as u32).to_ne_bytes());
        if kernel::option_with(socket, level(group), MCAST_MSFILTER, &mut filter).is_err() {
            // No member of that one.
            continue;
        }
        let word = |at: usize| {
            filter
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let count = word(COUNT) as usize;
        if count > MOST_SENDERS {
            let text = format!("it hears {count} senders of multicast group {group}, more than is supported");
            return Err(Error::new(ErrorKind::Unsupported, text).with_hint(super::socket::HINT));
        }
        let senders = filter[SENDERS..].chunks_exact(ADDRESS).take(count);
        let interface = interface_name(socket, number)
            .context(|| format!("ask for the name of interface {number}, on which it is a member of {group}"))?;
        found.push(MulticastMembership {
            interface: ByteString(interface.into_bytes()),
            group: bytes(group),
            only: word(MODE) == MCAST_INCLUDE,
            senders: senders.filter_map(|sender| parsed(sender, group)).map(bytes).collect(),
        });
    }
    Ok(found)
}

/// Makes a socket a member of its groups again.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where an interface is not there; what setsockopt(2) gives.
pub(super) fn join(socket: BorrowedFd<'_>, memberships: &[MulticastMembership]) -> Result<()> {
    for one in memberships {
        let group = address(&one.group)?;
        let name = one.interface.to_string();
        let what = || format!("join multicast group {group} on interface {name}");
        let number = interface_number(socket, &name).context(what).map_err(|error| {
            error
                .with_kind(ErrorKind::Incompatible)
                .with_hint("this machine has no interface of that name")
        })?;
        let senders = one.senders.iter().map(address).collect::<Result<Vec<IpAddr>>>()?;
        let mut head = vec![0u8; MODE];
        head[..4].copy_from_slice(&number.to_ne_bytes());
        head[GROUP..MODE].copy_from_slice(&raw(group));
        if one.only {
            for sender in &senders {
                let request = [head.as_slice(), &raw(*sender)].concat();
                kernel::set_option(socket, level(group), MCAST_JOIN_SOURCE_GROUP, &request).context(what)?;
            }
            continue;
        }
        kernel::set_option(socket, level(group), MCAST_JOIN_GROUP, &head).context(what)?;
        if !senders.is_empty() {
            let mut filter = head;
            filter.extend_from_slice(&0u32.to_ne_bytes());
            filter.extend_from_slice(&(senders.len() as u32).to_ne_bytes());
            for sender in senders {
                filter.extend_from_slice(&raw(sender));
            }
            kernel::set_option(socket, level(group), MCAST_MSFILTER, &filter).context(what)?;
        }
    }
    Ok(())
}
