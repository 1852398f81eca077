//! Making mount namespaces again, and having processes enter theirs.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cpr_image::model::{IpcNamespaceId, Manifest, MountNamespace, MountNamespaceId, Mounted};
use cpr_kernel::batch::{Arg, Batch};
use cpr_types::{Context, Error, ErrorKind, Result};

use rustix::fs::{Mode, OFlags};

use super::mount_groups::Member;
use super::mount_tree::{Built, Wanted};
use super::spaces::Spaces;
use super::stub::Workshop;
use super::{living, mount_groups, mount_tree, users, with_descriptor};
use crate::sink::PageSource;
use crate::views::Views;

/// Has every process enter its mount namespace. They must have no threads yet, and be in the user namespaces they were
/// made in: what they enter later need not have power over their mounts. Gives the namespaces that paths are of.
///
/// # Errors
/// The kernel refuses it.
pub fn enter_all(
    workshop: &mut Workshop,
    manifest: &Manifest,
    source: &dyn PageSource,
    spaces: &Spaces,
) -> Result<Views> {
    let mut made: HashMap<MountNamespaceId, File> = HashMap::new();
    let mut shared = Shared::default();
    let mut views = Views::default();
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
                let what = || format!("make mount namespace {} again", id.0);
                let given = spaces.terminals.iter().filter(|((of, _), _)| *of == id);
                let mut given: HashMap<usize, BorrowedFd<'_>> = given
                    .map(|((_, index), system)| (*index as usize, system.as_fd()))
                    .collect();
                // What shows the queues of an IPC namespace is mounted from in there.
                for (index, point) in namespace.tree.iter().enumerate() {
                    if let Mounted::Queues { ipc_namespace } = &point.mounted
                        && let Some(of) = spaces.ipc.namespace(ipc_namespace.map(IpcNamespaceId::index))
                    {
                        given.insert(index, of.as_fd());
                    }
                    if let Mounted::System { network: Some(of) } = &point.mounted
                        && let Some(of) = spaces.networks.visits().namespace(Some(of.index()))
                    {
                        given.insert(index, of.as_fd());
                    }
                    if let Some(copy) = shared.copies.get(&(id, index)) {
                        given.insert(index, copy.as_fd());
                    }
                }
                let (places, wanted) = wanted(manifest, id);
                let (file, root, built) = make(workshop, namespace, source, &given, &wanted).context(what)?;
                shared.copies.extend(places.into_iter().zip(built.copies));
                for (index, mount) in built.members {
                    if let Some(point) = namespace.tree.get(index) {
                        shared.members.push(Member::of(id, index, point, mount));
                    }
                }
                if !namespace.tree.is_empty() {
                    views.add(id, root, std::iter::empty());
                }
                made.entry(id).or_insert(file)
            }
        };
        with_descriptor(workshop, pid, file.as_fd(), |batch, fd| {
            let arguments = [fd.into(), libc::CLONE_NEWNS.into()];
            batch.must(libc::SYS_setns, &arguments, "enter a mount namespace");
        })
        .context(what)?;
    }
    mount_groups::join(&shared.members)?;
    Ok(views)
}

/// What namespaces have of each other.
#[derive(Debug, Default)]
struct Shared {
    /// What is mounted in one and goes into another, by the place there.
    copies: HashMap<(MountNamespaceId, usize), OwnedFd>,
    /// Mounts that are in groups or follow some.
    members: Vec<Member>,
}

/// Which copies other namespaces want of what is mounted in one, and for which of their mounts.
fn wanted(manifest: &Manifest, from: MountNamespaceId) -> (Vec<(MountNamespaceId, usize)>, Wanted<'_>) {
    let (mut places, mut wanted) = (Vec::new(), Wanted::default());
    for (id, other) in (0..).map(MountNamespaceId).zip(&manifest.mount_namespaces) {
        for (index, point) in other.tree.iter().enumerate() {
            if let Mounted::Elsewhere { namespace, of, path } = &point.mounted
                && *namespace == from
            {
                places.push((id, index));
                wanted.copies.push((*of, path));
            }
        }
    }
    (places, wanted)
}

/// Makes one, by a process in the PID namespace that its /proc is of. `given` is what has been made already, by the
/// place in its tree: file systems of terminals, and the namespaces whose queues and interfaces are shown. Gives its root
/// directory, too.
fn make(
    workshop: &mut Workshop,
    namespace: &MountNamespace,
    source: &dyn PageSource,
    given: &HashMap<usize, BorrowedFd<'_>>,
    wanted: &Wanted<'_>,
) -> Result<(File, OwnedFd, Built)> {
    let builder = workshop.spare();
    let shown = namespace.tree.iter().find_map(|point| match &point.mounted {
        Mounted::Processes { pid_namespace, .. } => *pid_namespace,
        _ => None,
    });
    let shown = shown.or_else(|| namespace.proc.as_ref().and_then(|proc| proc.pid_namespace));
    workshop.spawn_in(builder, shown)?;
    if let Some(owner) = namespace.owner {
        users::enter(workshop, builder, owner)?;
    }
    let built = match namespace.tree.is_empty() {
        true => copy(workshop, builder, namespace).map(|()| Built::default())?,
        false => mount_tree::build(workshop, builder, namespace, source, given, wanted)?,
    };
    let path = format!("/proc/{builder}/ns/mnt");
    let file = File::open(&path).context(|| format!("open {path}"))?;
    let path = format!("/proc/{builder}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .context(|| format!("open {path}"))?;
    workshop.end(builder, None)?;
    Ok((file, root, built))
}

/// Has a process go to a copy of the namespace it is in.
fn copy(workshop: &Workshop, builder: i32, namespace: &MountNamespace) -> Result<()> {
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
    workshop.run(builder, &batch).map(drop)
}
