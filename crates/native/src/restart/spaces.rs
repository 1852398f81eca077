//! Having processes live in the network and IPC namespaces they were in.
//!
//! The namespaces are made, and filled, by ourselves before there is any process. A process goes into its own as soon as
//! it is made: before it has memory, some of which can be segments of its IPC namespace, and threads, which would stay
//! behind.

use std::collections::HashMap;

use cpr_image::model::{IpcNamespaceId, Manifest, NetworkId, Process};
use cpr_kernel::namespace::Place;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, with_descriptor};
use crate::networks::{self, Networks};
use crate::settings;
use crate::visits::Visits;

/// The namespaces of an image.
#[derive(Debug)]
pub struct Spaces {
    /// Network namespaces.
    pub networks: Networks,
    /// IPC namespaces.
    pub ipc: Visits,
}

/// Where stubs are: by PID the numbers of the network and of the IPC namespace. Those at home are left out.
#[derive(Debug, Default)]
pub struct Inside(HashMap<i32, (Option<usize>, Option<usize>)>);

impl Spaces {
    /// Makes the namespaces of an image. `allowed`: it may have some, which takes root's rights.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] where it may not; the kernel refuses what is in one.
    pub fn make(manifest: &Manifest, allowed: bool) -> Result<Spaces> {
        let strange = |process: &&Process| process.network.is_some() || process.ipc_namespace.is_some();
        if let Some(process) = living(manifest).find(strange).filter(|_| !allowed) {
            let text = format!(
                "process {} is in a network or IPC namespace of its own, which takes CAP_SYS_ADMIN",
                process.pid
            );
            return Err(Error::new(ErrorKind::Denied, text).with_hint("let root restart it, from an image of root's"));
        }
        let mut ipc = Visits::new(Place::Ipc);
        if !allowed {
            // Nobody would live in them.
            return Ok(Spaces {
                networks: Networks::home()?,
                ipc,
            });
        }
        for namespace in &manifest.ipc_namespaces {
            let index = ipc.make()?;
            ipc.within(Some(index), || settings::set(&namespace.settings, settings::is_of_ipc))
                .context(|| format!("make IPC namespace {index} again"))?;
        }
        Ok(Spaces {
            networks: networks::restore::make(manifest)?,
            ipc,
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
        let wanted = living(manifest)
            .find(|process| process.pid == pid)
            .map_or(now, |process| {
                (
                    process.network.map(NetworkId::index),
                    process.ipc_namespace.map(IpcNamespaceId::index),
                )
            });
        for (place, visits, now, wanted) in [
            (Place::Network, spaces.networks.visits(), now.0, wanted.0),
            (Place::Ipc, &spaces.ipc, now.1, wanted.1),
        ] {
            if now == wanted {
                continue;
            }
            let what = || format!("have process {pid} enter its namespace ({})", place.file());
            let namespace = visits.namespace(wanted);
            let namespace = namespace.ok_or_else(|| Error::new(ErrorKind::Damaged, "there is no such namespace"));
            with_descriptor(
                workshop,
                pid,
                std::os::fd::AsFd::as_fd(namespace.context(what)?),
                |batch, fd| {
                    batch.must(libc::SYS_setns, &[fd.into(), place.flag().into()], "enter a namespace");
                },
            )
            .context(what)?;
        }
        if wanted != (None, None) {
            self.0.insert(pid, wanted);
        }
        Ok(())
    }
}
