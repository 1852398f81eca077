//! Making namespaces for host names again.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cpr_image::model::{HostNames, HostNamesId, Manifest};
use cpr_kernel::batch::{Arg, Batch};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, with_descriptor};

/// Puts all processes that had one into a namespace with its names. They must have no threads yet, which would stay
/// behind. `allowed`: the image may make namespaces; programs of root's that decide by the name of the host see those.
///
/// # Errors
/// [`ErrorKind::Denied`] where it may not.
pub fn enter(workshop: &Workshop, manifest: &Manifest, allowed: bool) -> Result<()> {
    let mut made: HashMap<HostNamesId, OwnedFd> = HashMap::new();
    for process in living(manifest) {
        let (pid, Some(id)) = (process.pid, process.host_names) else {
            continue;
        };
        if !allowed {
            let text = format!("process {pid} is in a UTS namespace of its own, which takes CAP_SYS_ADMIN");
            return Err(Error::new(ErrorKind::Denied, text).with_hint("let root restart it, from an image of root's"));
        }
        let what = || format!("give process {pid} its UTS namespace");
        if let Some(namespace) = made.get(&id) {
            join(workshop, pid, namespace.as_fd()).context(what)?;
            continue;
        }
        let names = manifest.host_names.get(id.index());
        let names = names.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("there are no host names {}", id.0)))?;
        if let Some(owner) = names.owner {
            let holder = workshop.users.holder(owner)?;
            make(workshop, holder, names).context(what)?;
            let namespace = std::fs::File::open(format!("/proc/{holder}/ns/uts")).context(what)?;
            join(workshop, pid, namespace.as_fd()).context(what)?;
            made.insert(id, namespace.into());
            continue;
        }
        make(workshop, pid, names).context(what)?;
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/uts")).context(what)?;
        made.insert(id, namespace.into());
    }
    Ok(())
}

fn join(workshop: &Workshop, pid: i32, namespace: BorrowedFd<'_>) -> Result<()> {
    with_descriptor(workshop, pid, namespace, |batch, fd| {
        let arguments = [fd.into(), libc::CLONE_NEWUTS.into()];
        batch.must(libc::SYS_setns, &arguments, "join a UTS namespace");
    })
}

fn make(workshop: &Workshop, pid: i32, names: &HostNames) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(
        libc::SYS_unshare,
        &[Arg::from(libc::CLONE_NEWUTS)],
        "make a UTS namespace",
    );
    for (call, name) in [
        (libc::SYS_sethostname, &names.host),
        (libc::SYS_setdomainname, &names.domain),
    ] {
        let length = name.0.len();
        let name = batch.data(&name.0);
        batch.must(call, &[name, length.into()], "set the host name");
    }
    workshop.run(pid, &batch).map(drop)
}
