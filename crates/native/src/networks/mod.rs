//! Network namespaces that a job has made: interfaces, addresses, routes, rules and settings.
//!
//! Saved is what makes a namespace differ from a new one, as [`Fresh`] shows it. Interfaces come in three kinds: those
//! that every namespace has, dummies, and cables (veth) with both ends in namespaces of the job. Other interfaces,
//! packet filters, queueing disciplines, encryption and everything else that passes packets on are refused by name.
//!
//! Limits: hardware addresses and sizes are kept, offload features are those of new interfaces; a neighbour that the
//! kernel has found is found again.

mod links;
mod messages;
pub mod restore;
mod save;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use cpr_image::model::NetworkId;
use cpr_kernel::inet as kernel;
use cpr_kernel::namespace::Place;
use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::blockers::Home;
use crate::files::{Target, get};
use crate::visits::Visits;

pub use save::save;

/// The networks that sockets of a job can be in: this thread's own, and those of [`Visits`].
#[derive(Debug)]
pub struct Networks {
    visits: Visits,
    /// By the kernel's number for a namespace, once one is asked for.
    by_cookie: OnceLock<HashMap<u64, Option<NetworkId>>>,
}

/// Adds the networks where a process has sockets and lives no more: it made them, or went there, and came back.
///
/// # Errors
/// One of them cannot be looked at.
pub fn include_those_of_sockets(process: &ProcDir, home: &Home, visits: &mut Visits) -> Result<()> {
    let is_socket = |fd: &i32| process.fd_link(*fd).is_ok_and(|link| link.starts_with(b"socket:["));
    let mut sockets = process.descriptors().unwrap_or_default();
    sockets.retain(is_socket);
    if sockets.is_empty() || !home.may_visit_kind(process, Place::Network.file()) {
        return Ok(());
    }
    let Ok(Some(target)) = Target::open(process.pid()) else {
        return Ok(());
    };
    // Whatever cannot be looked at has gone, or is refused when it is saved.
    let mut known: HashSet<u64> = cookie().into_iter().collect();
    for fd in sockets {
        let Ok(socket) = get(&target, fd) else { continue };
        let is_new = kernel::network_cookie(socket.as_fd()).is_ok_and(|cookie| known.insert(cookie));
        if let Some(network) = is_new.then(|| kernel::network_of(socket.as_fd()).ok()).flatten() {
            visits.include(network, process, home)?;
        }
    }
    Ok(())
}

/// The kernel's number of the namespace this thread is in.
fn cookie() -> Result<u64> {
    let socket = kernel::create(libc::AF_INET, libc::SOCK_DGRAM, 0).context(|| "make a socket")?;
    kernel::network_cookie(socket.as_fd()).context(|| "ask for the network namespace of a socket")
}

fn number(id: Option<NetworkId>) -> Option<usize> {
    id.map(NetworkId::index)
}

impl Networks {
    /// These, and this thread's own.
    pub fn new(visits: Visits) -> Self {
        Networks {
            visits,
            by_cookie: OnceLock::new(),
        }
    }

    /// No other than this thread's own.
    pub fn home() -> Self {
        Self::new(Visits::new(Place::Network))
    }

    /// Asks for all numbers: to be called at home.
    fn cookies(&self) -> Result<&HashMap<u64, Option<NetworkId>>> {
        if let Some(known) = self.by_cookie.get() {
            return Ok(known);
        }
        let mut found = HashMap::new();
        found.insert(self.visits.within(None, cookie)?, None);
        for index in 0..self.visits.len() {
            found.insert(self.visits.within(Some(index), cookie)?, Some(NetworkId(index as u32)));
        }
        Ok(self.by_cookie.get_or_init(|| found))
    }

    /// The network of a socket.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one where no process of the job lives: nothing could be found out about its
    /// peers.
    pub fn of_socket(&self, socket: BorrowedFd<'_>, label: &str) -> Result<Option<NetworkId>> {
        let cookie = kernel::network_cookie(socket);
        let cookie = cookie.context(|| format!("{label}: ask for the network namespace"))?;
        self.cookies()?.get(&cookie).copied().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{label}: the socket is in another network namespace than cpr and the job's processes"),
            )
            .with_hint("run cpr in the network namespace of the job (ip netns exec, nsenter --net)")
        })
    }

    /// Does something in a network, and comes home.
    ///
    /// # Errors
    /// It takes CAP_SYS_ADMIN over the namespace; what `act` gives.
    pub fn within<T: Send>(&self, to: Option<NetworkId>, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.visits.within(number(to), act)
    }

    /// Makes a socket in a network; none is home. A socket stays in the network it was made in, whoever uses it.
    ///
    /// # Errors
    /// As [`Networks::within`].
    pub fn socket(&self, to: Option<NetworkId>, family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
        self.within(to, || {
            kernel::create(family, kind, protocol)
                .context(|| format!("make a socket of family {family}, type {kind}, protocol {protocol}"))
        })
    }

    /// The namespaces.
    pub fn visits(&self) -> &Visits {
        &self.visits
    }
}
