//! Making network namespaces again. They are complete before any process or socket is in them.

use std::time::{Duration, Instant};

use cpr_image::model::{LinkKind, Manifest, Network, NetworkId, NetworkLink};
use cpr_kernel::netlink::Netlink;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::messages::Kind;
use super::{Networks, links, save};
use crate::settings;
use crate::visits::Visits;

/// Longest wait for a cable whose ends are both up.
const CARRIER_LIMIT: Duration = Duration::from_secs(10);

/// Fills the network namespaces of the image, which are new. Threads of ours may be made for it, so all processes must
/// have their numbers.
///
/// # Errors
/// The kernel refuses what is in one.
pub fn fill_all(manifest: &Manifest, networks: &Networks) -> Result<()> {
    let visits = networks.visits();
    let what = |index: usize| move || format!("make network namespace {index} again");
    let each = || manifest.networks.iter().enumerate();
    for (index, network) in each() {
        visits
            .within(Some(index), || interfaces(index, network, &manifest.networks, visits))
            .context(what(index))?;
    }
    for (index, network) in each() {
        visits.within(Some(index), || set(network)).context(what(index))?;
    }
    // Cables have both ends up now.
    for (index, network) in each() {
        visits.within(Some(index), || fill(network)).context(what(index))?;
    }
    for (index, network) in each() {
        let wait = || await_cables(network, &manifest.networks);
        visits.within(Some(index), wait).context(what(index))?;
    }
    Ok(())
}

/// Waits until the cables carry packets that have both ends up: what is sent before that is lost.
fn await_cables(network: &Network, all: &[Network]) -> Result<()> {
    let route = save::route()?;
    let is_connected = |link: &&NetworkLink| match link.kind {
        LinkKind::Veth { network, index } => {
            let other = all.get(network.index()).and_then(|network| find(network, index));
            links::is_up(link) && other.is_some_and(links::is_up)
        }
        _ => false,
    };
    let connected: Vec<&NetworkLink> = network.links.iter().filter(is_connected).collect();
    let deadline = Instant::now() + CARRIER_LIMIT;
    loop {
        let found = links::list(&route)?;
        let carries = |link: &&&NetworkLink| found.iter().any(|found| found.index == link.index && found.carries());
        match connected.iter().find(|link| !carries(link)) {
            None => return Ok(()),
            Some(link) if Instant::now() > deadline => {
                let text = format!("interface {} is up and carries nothing", link.name);
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
            Some(_) => std::thread::yield_now(),
        }
    }
}

/// Makes the interfaces of one, and other ends of cables elsewhere.
fn interfaces(index: usize, network: &Network, all: &[Network], visits: &Visits) -> Result<()> {
    let route = save::route()?;
    let here = NetworkId(index as u32);
    for link in &network.links {
        match (&link.kind, links::makes(here, link)) {
            (LinkKind::Veth { .. }, None) => {}
            (_, None) => links::make(&route, link, None)?,
            (_, Some((there, other))) => {
                let end = all.get(there.index()).and_then(|network| find(network, other));
                let (Some(end), Some(namespace)) = (end, visits.namespace(Some(there.index()))) else {
                    let text = format!("interface {} has no other end", link.name);
                    return Err(Error::new(ErrorKind::Damaged, text));
                };
                links::make(&route, link, Some((end, namespace)))?;
            }
        }
    }
    Ok(())
}

fn find(network: &Network, index: u32) -> Option<&NetworkLink> {
    network.links.iter().find(|link| link.index == index)
}

/// Settings come first, since some say what an interface does when it comes up.
fn set(network: &Network) -> Result<()> {
    let route: Netlink = save::route()?;
    settings::set(&network.settings, |name| name.starts_with(b"net/"))?;
    network.links.iter().try_for_each(|link| links::set(&route, link))
}

fn fill(network: &Network) -> Result<()> {
    let route = save::route()?;
    Kind::Address.become_these(&route, &network.addresses)?;
    Kind::Route.become_these(&route, &network.routes)?;
    match network.rules.as_slice() {
        [] => Ok(()),
        rules => Kind::Rule.become_these(&route, rules),
    }
}
