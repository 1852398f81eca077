//! Making time namespaces again that the job had made.

use std::os::fd::{AsFd, OwnedFd};

use cpr_image::model::{Manifest, TimeNamespaceId};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::clocks::{CLONE_NEWTIME, Offsets};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, with_descriptor};

/// Puts processes into time namespaces whose clocks are as far ahead of the job's as they were: those of the job's own
/// user namespace, or, with `of_others`, those of user namespaces that it has made, which their processes must have
/// entered by now. There must be no threads yet: a process of several cannot change. `allowed`: the image may make
/// namespaces.
///
/// # Errors
/// [`ErrorKind::Denied`] where it may not.
pub fn enter(workshop: &Workshop, manifest: &Manifest, of_others: bool, allowed: bool) -> Result<()> {
    for (index, namespace) in (0..).zip(&manifest.time_namespaces) {
        let id = Some(TimeNamespaceId(index));
        if namespace.owner.is_some() != of_others {
            continue;
        }
        let maker = living(manifest).find(|process| process.time_namespace_of_children == id);
        let maker = maker.or_else(|| living(manifest).find(|process| process.time_namespace == id));
        let Some(maker) = maker.map(|process| process.pid) else {
            continue;
        };
        if !allowed {
            let text = format!("process {maker} has made a time namespace, which takes CAP_SYS_ADMIN");
            return Err(Error::new(ErrorKind::Denied, text).with_hint("let root restart it, from an image of root's"));
        }
        let what = || format!("make the time namespace of process {maker}");
        let file = maker.to_string();
        let home = Offsets::of_children(&file).context(what)?;
        let mut batch = Batch::new();
        batch.must(libc::SYS_unshare, &[Arg::from(CLONE_NEWTIME)], "make a time namespace");
        workshop.run(maker, &batch).context(what)?;
        let offsets = Offsets {
            monotonic_ns: home.monotonic_ns.saturating_add(namespace.monotonic_ns),
            boottime_ns: home.boottime_ns.saturating_add(namespace.boottime_ns),
        };
        offsets.give_children(&file).context(what)?;
        let made = std::fs::File::open(format!("/proc/{maker}/ns/time_for_children"));
        let made: OwnedFd = made.context(what)?.into();
        for process in living(manifest).filter(|process| process.time_namespace == id) {
            with_descriptor(workshop, process.pid, made.as_fd(), |batch, fd| {
                let arguments = [fd.into(), CLONE_NEWTIME.into()];
                batch.must(libc::SYS_setns, &arguments, "join a time namespace");
            })
            .context(|| format!("give process {} its time namespace", process.pid))?;
        }
    }
    Ok(())
}
