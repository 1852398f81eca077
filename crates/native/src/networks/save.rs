//! Saving what is in network namespaces.

use std::collections::HashSet;
use std::sync::OnceLock;

use cpr_image::model::{ByteString, LinkKind, Network, NetworkEntry, NetworkId, Setting};
use cpr_kernel::namespace::Place;
use cpr_kernel::netlink::{self, Netlink};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::links::{self, Found};
use super::messages::Kind;
use crate::settings::{self, Values};
use crate::visits::{Visits, within_new};

const GET_QUEUEING: u16 = 38;
const GET_NEIGHBOUR: u16 = 30;
const GET_NEXT_HOP: u16 = 106;
const GET_FIREWALL_TABLE: u16 = 10 << 8 | 1;
const GET_SECURITY_ASSOCIATION: u16 = 0x12;
const GET_SECURITY_POLICY: u16 = 0x15;
/// NUD_PERMANENT and NTF_PROXY.
const PERMANENT: u16 = 0x80;
const PROXY: u8 = 0x08;
/// Tables of iptables and the like that a namespace has.
const OLD_TABLES: [&str; 3] = ["ip_tables_names", "ip6_tables_names", "arp_tables_names"];

/// What a new network namespace has on this machine.
struct Fresh {
    links: Vec<Found>,
    settings: Values,
    rules: Vec<NetworkEntry>,
}

/// Looked at once by every process, before its job is stopped.
static FRESH: OnceLock<Fresh> = OnceLock::new();

impl Fresh {
    fn known() -> Result<&'static Fresh> {
        if let Some(known) = FRESH.get() {
            return Ok(known);
        }
        let fresh = Fresh::look()?;
        Ok(FRESH.get_or_init(|| fresh))
    }

    fn look() -> Result<Fresh> {
        within_new(Place::Network, || {
            let route = route()?;
            Ok(Fresh {
                links: links::list(&route)?,
                settings: settings::below("net")?,
                rules: Kind::Rule.list(&route)?,
            })
        })
    }
}

pub(super) fn route() -> Result<Netlink> {
    Netlink::open(netlink::ROUTE).context(|| "open a netlink socket")
}

/// The network namespaces of the job; `job` are its processes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming what could not be made again.
pub fn save(visits: &Visits, job: &HashSet<i32>) -> Result<Vec<Network>> {
    if visits.is_empty() {
        return Ok(Vec::new());
    }
    if let Some((_, pid)) = visits.strangers(job).first() {
        let text = format!("process {pid}, which is not part of the job, is in a network namespace of the job's");
        return Err(Error::new(ErrorKind::Unsupported, text).with_hint("checkpoint all processes of it together"));
    }
    let fresh = Fresh::known()?;
    let mut networks = Vec::new();
    for index in 0..visits.len() {
        let pid = visits.someone_in(index);
        let network = visits.within(Some(index), || one(index, visits, fresh));
        networks.push(network.context(|| format!("network namespace of process {pid}"))?);
    }
    agree(&networks)?;
    Ok(networks)
}

fn one(index: usize, visits: &Visits, fresh: &Fresh) -> Result<Network> {
    let route = route()?;
    refuse_filters()?;
    refuse_others(&route)?;
    let mut network = Network {
        settings: changed(&fresh.settings)?,
        addresses: Kind::Address.list(&route)?,
        routes: Kind::Route.list(&route)?,
        rules: Kind::Rule.list(&route)?,
        ..Network::default()
    };
    if network.rules == fresh.rules {
        network.rules.clear();
    }
    for found in links::list(&route)? {
        found.refuse_unknown()?;
        let kind = match found.kind.as_slice() {
            _ if found.is_one_of(&fresh.links) => LinkKind::Given,
            b"dummy" => LinkKind::Dummy,
            b"veth" => veth(&found, index, visits, &route)?,
            other => {
                let kind = match other {
                    b"" => "hardware".into(),
                    kind => format!("kind {}", String::from_utf8_lossy(kind)),
                };
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{} is of {kind}, which is not supported", found.label()),
                ));
            }
        };
        network.links.push(found.image(kind));
    }
    Ok(network)
}

/// Where the other end of a cable is.
fn veth(found: &Found, here: usize, visits: &Visits, route: &Netlink) -> Result<LinkKind> {
    let (index, number) = found.other_end();
    let network = match number {
        None => Some(here),
        Some(number) => {
            let mut there = None;
            for other in 0..visits.len() {
                let Some(namespace) = visits.namespace(Some(other)) else {
                    continue;
                };
                if links::number_of(route, namespace)? == Some(number) {
                    there = Some(other);
                }
            }
            there
        }
    };
    match network {
        Some(network) => Ok(LinkKind::Veth {
            network: NetworkId(network as u32),
            index,
        }),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is connected to a network outside the job", found.label()),
        )),
    }
}

/// Refuses cables of which one end alone was found.
fn agree(networks: &[Network]) -> Result<()> {
    for (here, network) in (0..).map(NetworkId).zip(networks) {
        for link in &network.links {
            let LinkKind::Veth { network: there, index } = link.kind else {
                continue;
            };
            let back = LinkKind::Veth {
                network: here,
                index: link.index,
            };
            let other = networks.get(there.index()).map_or(&[][..], |network| &network.links);
            if !other.iter().any(|other| other.index == index && other.kind == back) {
                let text = format!("interface {} changed while it was looked at", link.name);
                return Err(Error::new(ErrorKind::Unsupported, text)
                    .with_hint("try again")
                    .passing());
            }
        }
    }
    Ok(())
}

/// Settings that a new namespace has not, or has with another value.
fn changed(fresh: &Values) -> Result<Vec<Setting>> {
    let all = settings::below("net")?;
    let differs = |(name, value): &(Vec<u8>, Vec<u8>)| fresh.get(name) != Some(value);
    let mut changed: Vec<(Vec<u8>, Vec<u8>)> = all.into_iter().filter(differs).collect();
    // What is set for all interfaces is handed down to each.
    let is_for_all = |name: &[u8]| {
        name.split(|b| *b == b'/')
            .any(|part| part == b"all" || part == b"default")
    };
    changed.sort_by_key(|(name, _)| !is_for_all(name));
    Ok(changed
        .into_iter()
        .map(|(name, value)| (ByteString(name), ByteString(value)))
        .collect())
}

fn refuse(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} not supported"))
}

/// Whether there is anything of a kind, where the kernel knows the kind.
fn any(socket: &Netlink, kind: u16, body: &[u8], counts: impl Fn(&[u8]) -> bool) -> Result<bool> {
    match socket.list(kind, body) {
        Ok(found) => Ok(found.iter().any(|body| counts(body))),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error).context(|| format!("list what there is of kind {kind:#x}")),
    }
}

/// Packet filters, and encryption of packets.
fn refuse_filters() -> Result<()> {
    let open = |protocol: i32| match Netlink::open(protocol) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
        Err(error) => Err(error).context(|| "open a netlink socket"),
    };
    if let Some(filter) = open(netlink::NETFILTER)?
        && any(&filter, GET_FIREWALL_TABLE, &[0; 4], |_| true)?
    {
        return Err(refuse("a table of nftables is"));
    }
    for name in OLD_TABLES {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        if let Some(table) = table.lines().next() {
            return Err(refuse(&format!("table {table} of iptables is")));
        }
    }
    if let Some(transform) = open(netlink::TRANSFORM)?
        && (any(&transform, GET_SECURITY_ASSOCIATION, &[], |_| true)?
            || any(&transform, GET_SECURITY_POLICY, &[], |_| true)?)
    {
        return Err(refuse("encryption of packets (xfrm) is"));
    }
    Ok(())
}

/// Queueing disciplines, neighbours and next hops that somebody has set.
fn refuse_others(route: &Netlink) -> Result<()> {
    // struct tcmsg: a handle of its own, at 8, shows that it is not the default.
    if any(route, GET_QUEUEING, &[0; 20], |body| {
        body.get(8..12).is_some_and(|handle| handle != [0; 4])
    })? {
        return Err(refuse("a queueing discipline (tc) is"));
    }
    // struct ndmsg: state at 8, flags at 10. What the kernel knows by itself needs no search, and is not permanent.
    let set = |body: &[u8]| {
        let state = body.get(8..10).map_or(0, |raw| u16::from_ne_bytes([raw[0], raw[1]]));
        state & PERMANENT != 0
    };
    let mut for_others = [0; 12];
    for_others[10] = PROXY;
    if any(route, GET_NEIGHBOUR, &[0; 12], set)? || any(route, GET_NEIGHBOUR, &for_others, |_| true)? {
        return Err(refuse("a neighbour that was set by hand is"));
    }
    if any(route, GET_NEXT_HOP, &[0; 8], |_| true)? {
        return Err(refuse("a next hop of its own is"));
    }
    Ok(())
}
