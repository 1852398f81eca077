//! Having processes live in the network, IPC and cgroup namespaces they were in.
//!
//! The namespaces are made before there is any process, and networks are filled before there is any socket. A process
//! goes into its own as soon as it is made: before it has memory, some of which can be segments of its IPC namespace,
//! and threads, which would stay behind.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;

use cpr_image::model::{CgroupNamespaceId, IpcNamespaceId, Manifest, NetworkId, Process, UserNamespaceId};
use cpr_kernel::namespace::Place;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, mount_tree, users, with_descriptor};
use crate::files::terminal::TerminalSystems;
use crate::networks::Networks;
use crate::sink::PageSource;
use crate::visits::Visits;
use crate::{cgroups, settings};

/// The namespaces of an image.
#[derive(Debug)]
pub struct Spaces {
    /// Network namespaces.
    pub networks: Networks,
    /// IPC namespaces.
    pub ipc: Visits,
    /// Cgroup namespaces.
    groups: Visits,
    /// File systems of terminals in mount namespaces, where terminals of theirs are in use.
    pub terminals: TerminalSystems,
}

/// The number of the network, the IPC and the cgroup namespace.
type Numbers = [Option<usize>; 3];

/// Where stubs are, by PID. Those at home are left out.
#[derive(Debug, Default)]
pub struct Inside(HashMap<i32, Numbers>);

fn numbers(process: &Process) -> Numbers {
    [
        process.network.map(NetworkId::index),
        process.ipc_namespace.map(IpcNamespaceId::index),
        process.cgroup_namespace.map(CgroupNamespaceId::index),
    ]
}

impl Spaces {
    /// Makes the namespaces of an image. `allowed`: it may have some, which takes root's rights. `places`: where its
    /// processes are to be in control groups.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] where it may not; the kernel refuses what is in one.
    pub fn make(
        manifest: &Manifest,
        allowed: bool,
        workshop: &mut Workshop,
        source: &dyn PageSource,
        places: &cgroups::Places,
    ) -> Result<Spaces> {
        let strange = |process: &&Process| {
            let pid = process.pid_namespace.is_some() || process.pid_namespace_of_children.is_some();
            pid || process.user_namespace.is_some()
                || process.mount_namespace.is_some()
                || numbers(process) != Numbers::default()
        };
        if let Some(process) = living(manifest).find(strange).filter(|_| !allowed) {
            let text = format!(
                "process {} is in a network, IPC, cgroup, PID, mount or user namespace of its own, which takes CAP_SYS_ADMIN",
                process.pid
            );
            return Err(Error::new(ErrorKind::Denied, text).with_hint("let root restart it, from an image of root's"));
        }
        let (mut ipc, mut groups) = (Visits::new(Place::Ipc), Visits::new(Place::Cgroup));
        if !allowed {
            // Nobody would live in them.
            return Ok(Spaces {
                networks: Networks::home(),
                ipc,
                groups,
                terminals: TerminalSystems::new(),
            });
        }
        users::make(workshop, manifest)?;
        let mut networks = Visits::new(Place::Network);
        let first = manifest.checkpoint.root_pid;
        let mut one = |visits: &mut Visits, place: Place, owner: Option<UserNamespaceId>| {
            visits.adopt(users::new_namespace(workshop, owner, place, &|maker| match place {
                // Its root is where who makes it is.
                Place::Cgroup => places.put_like(first, maker),
                _ => Ok(()),
            })?)
        };
        for index in 0..manifest.cgroup_namespaces as usize {
            let owner = manifest.cgroup_namespace_owners.get(index).copied().flatten();
            one(&mut groups, Place::Cgroup, owner)?;
        }
        for network in &manifest.networks {
            one(&mut networks, Place::Network, network.owner)?;
        }
        for namespace in &manifest.ipc_namespaces {
            let index = one(&mut ipc, Place::Ipc, namespace.owner)?;
            ipc.within(Some(index), || settings::set_ipc_limits(&namespace.settings))
                .context(|| format!("make IPC namespace {index} again"))?;
        }
        let mut terminals = TerminalSystems::new();
        for system in manifest.terminals.iter().filter_map(|terminal| terminal.file_system) {
            if let Entry::Vacant(place) = terminals.entry(system) {
                let (id, index) = system;
                let missing = || Error::new(ErrorKind::Damaged, "there is no such mount namespace");
                let namespace = manifest.mount_namespaces.get(id.index()).ok_or_else(missing)?;
                place.insert(mount_tree::make_terminals(workshop, namespace, index as usize, source)?);
            }
        }
        Ok(Spaces {
            terminals,
            networks: Networks::new(networks),
            ipc,
            groups,
        })
    }
}

impl Inside {
    /// Has a new process, which `by` has made, go where it was; a helper stays.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn settle(
        &mut self,
        workshop: &Workshop,
        manifest: &Manifest,
        spaces: &Spaces,
        pid: i32,
        by: Option<i32>,
    ) -> Result<()> {
        let now = by.and_then(|by| self.0.get(&by).copied()).unwrap_or_default();
        let process = living(manifest).find(|process| process.pid == pid);
        let wanted = process.map_or(now, numbers);
        let places = [
            (Place::Network, spaces.networks.visits()),
            (Place::Ipc, &spaces.ipc),
            (Place::Cgroup, &spaces.groups),
        ];
        for ((place, visits), (now, wanted)) in places.into_iter().zip(now.into_iter().zip(wanted)) {
            if now == wanted {
                continue;
            }
            let what = || format!("have process {pid} enter its namespace ({})", place.file());
            let namespace = visits.namespace(wanted);
            let missing = || Error::new(ErrorKind::Damaged, "there is no such namespace");
            let namespace = namespace.ok_or_else(missing).context(what)?;
            with_descriptor(workshop, pid, namespace.as_fd(), |batch, fd| {
                batch.must(libc::SYS_setns, &[fd.into(), place.flag().into()], "enter a namespace");
            })
            .context(what)?;
        }
        if wanted != Numbers::default() {
            self.0.insert(pid, wanted);
        }
        Ok(())
    }
}
