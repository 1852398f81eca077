//! Addresses, routes and rules as rtnetlink(7) has them: which parts say what there is, and which only what was.

use cpr_image::model::{Bytes, NetworkEntry};
use cpr_kernel::netlink::{self, Netlink};
use cpr_types::{Context, Error, ErrorKind, Result};

/// What can be listed, made and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of interfaces.
    Address,
    /// But those that follow from addresses.
    Route,
    /// Which table of routes counts for what.
    Rule,
}

/// Attributes that are kept, by their kind (<linux/if_addr.h>, <linux/rtnetlink.h>, <linux/fib_rules.h>).
const OF_ADDRESS: [u16; 8] = [1, 2, 3, 4, 5, 8, 9, 11];
const OF_ROUTE: [u16; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 18, 20];
const OF_RULE: [u16; 18] = [1, 2, 3, 4, 6, 10, 11, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24];
/// Attributes that only tell what was, or nothing: times, and a tunnel's number of zero.
const IFA_CACHEINFO: u16 = 6;
const RTA_CACHEINFO: u16 = 12;
const FRA_TUN_ID: u16 = 12;
const RTA_TTL_PROPAGATE: u16 = 26;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// IFA_F_*: no search for others with the address; and what the kernel finds out.
const NO_SEARCH: u32 = 0x02;
const ADDRESS_STATE: u32 = 0x80 | 0x40 | 0x20 | 0x08 | 0x04 | 0x01;

const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RTA_MULTIPATH: u16 = 9;
const CLONED: u32 = 0x200;
const ON_LINK: u32 = 0x4;
const TABLE_LOCAL: u8 = 255;
const MADE_BY_KERNEL: u8 = 2;
const FOREVER: u32 = u32::MAX;

impl Kind {
    /// Types of the messages that make, remove and list one.
    fn types(self) -> (u16, u16, u16) {
        let first = match self {
            Kind::Address => 20,
            Kind::Route => 24,
            Kind::Rule => 32,
        };
        (first, first + 1, first + 2)
    }

    fn header(self) -> usize {
        match self {
            Kind::Address => 8,
            Kind::Route | Kind::Rule => 12,
        }
    }

    fn kept(self) -> &'static [u16] {
        match self {
            Kind::Address => &OF_ADDRESS,
            Kind::Route => &OF_ROUTE,
            Kind::Rule => &OF_RULE,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Address => "address",
            Kind::Route => "route",
            Kind::Rule => "routing rule",
        }
    }

    /// All that there are in the namespace this thread is in.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one that could not be made again.
    pub fn list(self, route: &Netlink) -> Result<Vec<NetworkEntry>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![0; self.header()];
            body[0] = family as u8;
            let listed = match route.list(self.types().2, &body) {
                // A kernel without that family, or without rules.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                listed => listed.context(|| format!("list every {}", self.name()))?,
            };
            for body in listed {
                // A kernel that does not have the family lists another's.
                if body.first() == Some(&(family as u8)) {
                    found.extend(self.read(&body)?);
                }
            }
        }
        Ok(found)
    }

    fn read(self, body: &[u8]) -> Result<Option<NetworkEntry>> {
        let what = || format!("read of a {}", self.name());
        let short = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        let (header, rest) = body.split_at_checked(self.header()).ok_or_else(short).context(what)?;
        let mut header = header.to_vec();
        let attributes = netlink::attributes(rest).context(what)?;
        let value = |kind: u16| {
            attributes
                .iter()
                .find(|(other, _)| *other == kind)
                .map(|(_, value)| value.as_slice())
        };
        match self {
            Kind::Address => header[2] &= !(ADDRESS_STATE as u8),
            Kind::Route => {
                let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
                let follows = header[4] == TABLE_LOCAL && header[5] == MADE_BY_KERNEL;
                if follows || flags & CLONED != 0 {
                    return Ok(None);
                }
                header[8..].copy_from_slice(&(flags & ON_LINK).to_ne_bytes());
            }
            Kind::Rule => {}
        }
        let mut kept = Vec::new();
        for (kind, value) in &attributes {
            let passing = match (self, *kind) {
                (Kind::Address, IFA_CACHEINFO) => is_forever(value),
                (Kind::Route, RTA_CACHEINFO | RTA_TTL_PROPAGATE) => true,
                (Kind::Rule, FRA_TUN_ID) => value.iter().all(|byte| *byte == 0),
                _ => false,
            };
            if passing {
                continue;
            }
            if !self.kept().contains(kind) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("a {} with attribute {kind} is not supported", self.name()),
                ));
            }
            let mut value = value.clone();
            if (self, *kind) == (Kind::Address, IFA_FLAGS)
                && let Some(flags) = value.first_chunk_mut::<4>()
            {
                *flags = (u32::from_ne_bytes(*flags) & !ADDRESS_STATE).to_ne_bytes();
            }
            kept.push((*kind, Bytes(value)));
        }
        if self == Kind::Route && value(RTA_CACHEINFO).is_some_and(expires) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a route that expires is not supported",
            ));
        }
        Ok(Some(NetworkEntry {
            header: Bytes(header),
            attributes: kept,
        }))
    }

    /// Whether two are one: the same, or addresses that differ in how they are used.
    fn same(self, one: &NetworkEntry, other: &NetworkEntry) -> bool {
        let value = |entry: &NetworkEntry, kind: u16| {
            entry
                .attributes
                .iter()
                .find(|(of, _)| *of == kind)
                .map(|(_, value)| value.0.clone())
        };
        let key = |entry: &NetworkEntry| {
            let mut header = entry.header.0.clone();
            header[2..4].fill(0);
            (header, value(entry, IFA_ADDRESS), value(entry, IFA_LOCAL))
        };
        match self {
            Kind::Address => key(one) == key(other),
            Kind::Route | Kind::Rule => one == other,
        }
    }

    /// Has those that there are be these.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for one that no checkpoint makes; the kernel refuses one.
    pub fn become_these(self, route: &Netlink, wanted: &[NetworkEntry]) -> Result<()> {
        for entry in wanted {
            let known = entry.attributes.iter().all(|(kind, _)| self.kept().contains(kind));
            if !known || entry.header.0.len() != self.header() {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!("the image has an impossible {}", self.name()),
                ));
            }
        }
        let (make, remove, _) = self.types();
        let there = self.list(route)?;
        for entry in there
            .iter()
            .filter(|entry| !wanted.iter().any(|one| self.same(one, entry)))
        {
            match route.ask(remove, 0, &message(entry)) {
                // It went with another one.
                Err(error)
                    if [libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENOENT]
                        .contains(&error.raw_os_error().unwrap_or(0)) => {}
                done => done.context(|| format!("remove {} {}", self.name(), describe(entry)))?,
            }
        }
        let mut missing: Vec<&NetworkEntry> = wanted
            .iter()
            .filter(|entry| !there.iter().any(|one| self.same(one, entry)))
            .collect();
        // A gateway must be within reach before a route leads there.
        missing.sort_by_key(|entry| self == Kind::Route && has_gateway(entry));
        for entry in missing {
            let mut entry = entry.clone();
            if self == Kind::Address && entry.header.0[0] == libc::AF_INET6 as u8 {
                without_search(&mut entry);
            }
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            match route.ask(make, flags, &message(&entry)) {
                // The kernel was faster.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                done => done.context(|| format!("make {} {}", self.name(), describe(&entry)))?,
            }
        }
        Ok(())
    }
}

fn is_forever(cache: &[u8]) -> bool {
    let word = |at: usize| {
        cache
            .get(at..at + 4)
            .map(|raw| u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]))
    };
    word(0) == Some(FOREVER) && word(4) == Some(FOREVER)
}

/// Whether a `struct rta_cacheinfo` has a time to live.
fn expires(cache: &[u8]) -> bool {
    cache.get(8..12).is_some_and(|raw| raw != [0; 4])
}

fn has_gateway(entry: &NetworkEntry) -> bool {
    entry
        .attributes
        .iter()
        .any(|(kind, _)| [RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH].contains(kind))
}

/// Nobody else has had the address while the job was away: it is good at once.
fn without_search(entry: &mut NetworkEntry) {
    let flags = entry.attributes.iter_mut().find(|(kind, _)| *kind == IFA_FLAGS);
    match flags.and_then(|(_, value)| value.0.first_chunk_mut::<4>()) {
        Some(flags) => *flags = (u32::from_ne_bytes(*flags) | NO_SEARCH).to_ne_bytes(),
        None => entry
            .attributes
            .push((IFA_FLAGS, Bytes(NO_SEARCH.to_ne_bytes().to_vec()))),
    }
}

fn message(entry: &NetworkEntry) -> Vec<u8> {
    let mut message = entry.header.0.clone();
    for (kind, value) in &entry.attributes {
        netlink::add(&mut message, *kind, &value.0);
    }
    message
}

/// Its first attribute that looks like an address, for messages.
fn describe(entry: &NetworkEntry) -> String {
    let length = entry.header.0.get(1).copied().unwrap_or(0);
    let address = entry.attributes.iter().find(|(kind, _)| *kind == IFA_ADDRESS);
    match address.map(|(_, value)| value.0.as_slice()) {
        Some(value) if value.len() == 4 => format!("{}.{}.{}.{}/{length}", value[0], value[1], value[2], value[3]),
        Some(value) => match <[u8; 16]>::try_from(value) {
            Ok(v6) => format!("{}/{length}", std::net::Ipv6Addr::from(v6)),
            Err(_) => format!("of length {length}"),
        },
        None => "to everywhere".to_owned(),
    }
}
