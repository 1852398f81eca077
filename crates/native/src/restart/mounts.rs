//! Making mount namespaces again, and having processes enter theirs.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use cpr_image::model::{Manifest, MountNamespace, MountNamespaceId};
use cpr_kernel::batch::{Arg, Batch};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::{living, users, with_descriptor};

/// Has every process enter its mount namespace. They must have no threads yet, and be in the user namespaces they were
/// made in: what they enter later need not have power over their mounts.
///
/// # Errors
/// The kernel refuses it.
pub fn enter_all(workshop: &mut Workshop, manifest: &Manifest) -> Result<()> {
    let mut made: HashMap<MountNamespaceId, File> = HashMap::new();
    for process in living(manifest) {
        let (pid, Some(id)) = (process.pid, process.mount_namespace) else {
            continue;
        };
        let what = || format!("have process {pid} enter its mount namespace");
        let file = match made.get(&id) {
            Some(file) => file,
            None => {
                let missing = || Error::new(ErrorKind::Damaged, "there is no such mount namespace");
                let namespace = manifest.mount_namespaces.get(id.index()).ok_or_else(missing)?;
                let file = make(workshop, namespace).context(|| format!("make mount namespace {} again", id.0))?;
                made.entry(id).or_insert(file)
            }
        };
        with_descriptor(workshop, pid, file.as_fd(), |batch, fd| {
            let arguments = [fd.into(), libc::CLONE_NEWNS.into()];
            batch.must(libc::SYS_setns, &arguments, "enter a mount namespace");
        })
        .context(what)?;
    }
    Ok(())
}

/// Makes one, by a process in the PID namespace that its /proc is of.
fn make(workshop: &mut Workshop, namespace: &MountNamespace) -> Result<File> {
    let builder = workshop.spare();
    workshop.spawn_in(builder, namespace.proc.as_ref().and_then(|proc| proc.pid_namespace))?;
    if let Some(owner) = namespace.owner {
        users::enter(workshop, builder, owner)?;
    }
    let mut batch = Batch::new();
    let flags = [Arg::from(libc::CLONE_NEWNS)];
    batch.must(libc::SYS_unshare, &flags, "make a mount namespace");
    if namespace.private {
        let (none, root) = (batch.string(b"none"), batch.string(b"/"));
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        let arguments = [none, root, Arg::from(0), flags.into(), Arg::from(0)];
        batch.must(libc::SYS_mount, &arguments, "keep mounts private");
    }
    if let Some(proc) = &namespace.proc {
        let (kind, place) = (batch.string(b"proc"), batch.string(b"/proc"));
        let arguments = [kind, place, kind, proc.flags.into(), Arg::from(0)];
        batch.must(libc::SYS_mount, &arguments, "mount /proc");
    }
    workshop.run(builder, &batch)?;
    let path = format!("/proc/{builder}/ns/mnt");
    let file = File::open(&path).context(|| format!("open {path}"))?;
    workshop.end(builder, None)?;
    Ok(file)
}
