//! Netlink sockets: protocol, port, groups and options. Only those with an empty queue are saved: an answer that is
//! under way describes a moment that will have passed.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::{Manifest, NetlinkSocket, NetworkId, Object};
use cpr_kernel::inet::{self as kernel, NetlinkAddress};
use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::save::get;
use super::sockopt::{self, Phase};
use super::{Description, Target, inet};
use crate::networks::Networks;

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// How often the queues of a running program are looked at while it is given time to read them.
const LOOK: Duration = Duration::from_millis(1);

/// What is ready on a socket, at once.
pub(super) fn ready(socket: BorrowedFd<'_>) -> std::io::Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(
        socket,
        PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP,
    )];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents())
}

/// One of these running processes for each network namespace that they are in.
pub fn of_each_network(pids: impl IntoIterator<Item = i32>) -> Vec<ProcDir> {
    let mut seen = HashSet::new();
    let new = |pid| {
        let proc = ProcDir::open(pid).ok()?;
        seen.insert(proc.read_link("ns/net").ok()?).then_some(proc)
    };
    pids.into_iter().filter_map(new).collect()
}

/// Netlink sockets of these processes that hold messages; `networks` shows their network namespaces.
pub fn unread(networks: &[ProcDir], pids: impl IntoIterator<Item = i32>) -> Vec<OwnedFd> {
    let full = networks
        .iter()
        .flat_map(|proc| proc.unread_netlink_sockets().unwrap_or_default());
    let full: HashSet<Vec<u8>> = full.map(|inode| format!("socket:[{inode}]").into_bytes()).collect();
    let mut found = Vec::new();
    if full.is_empty() {
        return found;
    }
    for pid in pids {
        let Ok(proc) = ProcDir::open(pid) else { continue };
        let mut fds = proc.descriptors().unwrap_or_default();
        fds.retain(|&fd| proc.fd_link(fd).is_ok_and(|link| full.contains(&link)));
        if !fds.is_empty()
            && let Ok(Some(target)) = Target::open(pid)
        {
            found.extend(fds.into_iter().filter_map(|fd| get(&target, fd).ok()));
        }
    }
    found
}

/// Waits for a program that runs to read all messages of these sockets, until `deadline`.
pub fn wait_until_read(sockets: &[OwnedFd], deadline: Instant) {
    let holds = |socket: &OwnedFd| ready(socket.as_fd()).is_ok_and(|found| found.contains(PollFlags::IN));
    // Nothing tells when a queue becomes empty.
    while sockets.iter().any(holds) && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}

/// Saves a netlink socket.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one with unread messages or lost ones.
pub fn save(description: &Description, networks: &Networks) -> Result<Object> {
    let handle = description.handle.as_fd();
    let label = description.label();
    let network = networks.of_socket(handle, &label)?;
    networks
        .within(network, || look(handle, &label, network))
        .context(|| format!("{label}: save the netlink socket"))
        .map(Object::NetlinkSocket)
}

fn look(handle: BorrowedFd<'_>, label: &str, network: Option<NetworkId>) -> Result<NetlinkSocket> {
    sockopt::refuse_filter(handle, label)?;
    let refuse = |what: &str| Err(Error::new(ErrorKind::Unsupported, what).with_hint("try again a little later"));
    let found = ready(handle).context(|| "poll it")?;
    if found.contains(PollFlags::ERR) {
        return refuse("it has lost messages, and the program does not know yet");
    }
    if found.contains(PollFlags::IN) {
        return refuse("it holds messages that were not read");
    }
    let (_, kind, protocol) = inet::identity(handle)?;
    let name = kernel::netlink_name(handle).context(|| "ask for its port")?;
    let peer = kernel::netlink_peer(handle).context(|| "ask for its peer")?;
    // A bit for each group.
    let members = kernel::option(handle, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS).unwrap_or_default();
    let groups = (0..members.len() as u32 * 8).filter(|bit| members[*bit as usize / 8] >> (bit % 8) & 1 == 1);
    let new = sockopt::new_socket(libc::AF_NETLINK, kind, protocol)?;
    Ok(NetlinkSocket {
        network,
        kind,
        protocol,
        port: name.port,
        groups: groups.map(|bit| bit + 1).collect(),
        peer: Some((peer.port, peer.groups)).filter(|peer| *peer != (0, 0)),
        options: sockopt::save(handle, new.as_fd(), false)?,
    })
}

/// Whether a port number looks like one of the kernel's choice.
fn kernel_chose(port: u32, manifest: &Manifest) -> bool {
    let number = port as i32;
    number < 0 || manifest.processes.iter().any(|process| process.pid == number)
}

/// Makes a netlink socket again. A port number that the kernel had chosen may be another one then.
///
/// # Errors
/// [`ErrorKind::InUse`] when somebody else has its port number.
pub fn restore(socket: &NetlinkSocket, manifest: &Manifest) -> Result<OwnedFd> {
    let new = sockopt::new_socket(libc::AF_NETLINK, socket.kind, socket.protocol)?;
    sockopt::set(new.as_fd(), &socket.options, Phase::Early, 0)?;
    if socket.port != 0 {
        let address = NetlinkAddress {
            port: socket.port,
            groups: 0,
        };
        let what = || format!("bind a netlink socket to port {}", socket.port);
        let bound = match kernel::netlink_bind(new.as_fd(), address) {
            // The kernel numbers by process ID, or below zero where that is taken: it chooses again.
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && kernel_chose(socket.port, manifest) => {
                kernel::netlink_bind(new.as_fd(), NetlinkAddress { port: 0, groups: 0 })
            }
            other => other,
        };
        bound.context(what).map_err(inet::in_use)?;
    }
    for group in &socket.groups {
        let what = || format!("join netlink group {group}");
        kernel::set_number(new.as_fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, *group as i32).context(what)?;
    }
    if let Some((port, groups)) = socket.peer {
        let address = NetlinkAddress { port, groups };
        kernel::netlink_connect(new.as_fd(), address).context(|| "connect a netlink socket")?;
    }
    sockopt::set(new.as_fd(), &socket.options, Phase::Late, 0)?;
    Ok(new)
}
