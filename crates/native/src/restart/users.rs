//! Making user namespaces again, and having processes enter theirs.
//!
//! A namespace cannot be without anybody in it who could make others that belong to it: each has a *holder*, a process
//! that ends when the job is complete. Processes become the users they were before they enter, while they have the
//! restarter's rights; in a namespace they have all capabilities over it, until they get those they had.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use cpr_image::model::{IdRange, Manifest, Process, UserNamespace, UserNamespaceId};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::namespace::Place;
use cpr_kernel::process::{CapabilitySets, capset_arguments};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::identity::{ALL_CAPABILITIES, Rights};
use super::stub::Workshop;
use super::{living, with_descriptor};
use crate::user_namespaces::inside;

/// Users and groups of a process, by numbers of the job's own user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
}

/// User namespaces and who is in them.
#[derive(Debug, Default)]
pub struct Users {
    namespaces: Vec<UserNamespace>,
    holders: Vec<i32>,
    files: Vec<File>,
    /// Of the living processes of an image with user namespaces.
    identities: HashMap<i32, Identity>,
    rights: Option<Rights>,
}

impl Users {
    /// Nobody is in any yet. `rights`: those of the restarter.
    pub fn of(manifest: &Manifest, rights: Rights) -> Users {
        if manifest.user_namespaces.is_empty() {
            return Users::default();
        }
        let identity = |process: &Process| {
            let credentials = process.threads.first().map(|thread| thread.credentials.clone());
            let credentials = credentials.unwrap_or_default();
            let identity = Identity {
                uids: credentials.uids,
                gids: credentials.gids,
                groups: credentials.groups,
            };
            (process.pid, identity)
        };
        Users {
            namespaces: manifest.user_namespaces.clone(),
            identities: living(manifest).map(identity).collect(),
            rights: Some(rights),
            ..Users::default()
        }
    }

    /// The process that holds a namespace.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where there is none.
    pub fn holder(&self, namespace: UserNamespaceId) -> Result<i32> {
        let missing = || Error::new(ErrorKind::Damaged, "there is no such user namespace");
        self.holders.get(namespace.index()).copied().ok_or_else(missing)
    }

    /// The number that a group of the job's own user namespace has in another.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where it has none.
    pub fn group_inside(&self, of: Option<UserNamespaceId>, group: u32) -> Result<u32> {
        let missing = || {
            Error::new(
                ErrorKind::Damaged,
                format!("a user namespace does not have group {group}"),
            )
        };
        inside(&self.namespaces, of, |namespace| &namespace.gids, group).ok_or_else(missing)
    }

    /// Whether a namespace is `top` or lies within it.
    pub fn is_at_or_below(&self, namespace: Option<UserNamespaceId>, top: Option<UserNamespaceId>) -> bool {
        crate::user_namespaces::is_at_or_below(&self.namespaces, namespace, top)
    }
}

/// Makes all user namespaces of the image, with a holder for each.
///
/// # Errors
/// The kernel refuses it.
pub fn make(workshop: &mut Workshop, manifest: &Manifest) -> Result<()> {
    for (index, namespace) in manifest.user_namespaces.iter().enumerate() {
        hold(workshop, index, namespace).context(|| format!("make user namespace {index} again"))?;
    }
    Ok(())
}

fn hold(workshop: &mut Workshop, index: usize, namespace: &UserNamespace) -> Result<()> {
    let holder = workshop.spare();
    workshop.spawn(holder)?;
    // Who makes a namespace has to be known in the one around it.
    let group = namespace.parent.map_or_else(
        || Some(rustix::process::getegid().as_raw()),
        |around| some_group(&workshop.users.namespaces, around),
    );
    let missing = || Error::new(ErrorKind::Incompatible, "the user namespace around it has no groups");
    let group = group.ok_or_else(missing)?;
    let maker = Identity {
        uids: [namespace.owner; 4],
        gids: [group; 4],
        groups: Vec::new(),
    };
    become_user(workshop, holder, &maker)?;
    if let Some(around) = namespace.parent {
        enter(workshop, holder, around)?;
    }
    let mut batch = Batch::new();
    let flags = [Arg::from(libc::CLONE_NEWUSER)];
    batch.must(libc::SYS_unshare, &flags, "make a user namespace");
    be_open(&mut batch);
    workshop.run(holder, &batch)?;
    let path = format!("/proc/{holder}/ns/user");
    let file = File::open(&path).context(|| format!("open {path}"))?;
    let mut texts = Vec::new();
    if namespace.setgroups_denied {
        texts.push(("setgroups", "deny".to_owned()));
    }
    for (name, ranges) in [("uid_map", &namespace.uids), ("gid_map", &namespace.gids)] {
        if !ranges.is_empty() {
            let line = |range: &IdRange| format!("{} {} {}\n", range.0, range.1, range.2);
            texts.push((name, ranges.iter().map(line).collect::<String>()));
        }
    }
    for (name, text) in texts {
        let path = format!("/proc/{holder}/{name}");
        let what = || format!("write {} to {path}", text.trim_end());
        let Some(around) = namespace.parent.filter(|_| name != "setgroups") else {
            let mut file = File::options().write(true).open(&path).context(what)?;
            file.write_all(text.as_bytes()).context(what)?;
            continue;
        };
        // The kernel takes it from somebody in the namespace around only.
        let writer = workshop.users.holder(around)?;
        write_in(workshop, writer, &path, &text).context(what)?;
    }
    workshop.users.holders.push(holder);
    workshop.users.files.push(file);
    workshop.set_user(holder, Some(UserNamespaceId(index as u32)));
    Ok(())
}

/// Has a process write a file.
pub fn write_in(workshop: &Workshop, pid: i32, path: &str, text: &str) -> Result<()> {
    let mut batch = Batch::new();
    let name = batch.string(path.as_bytes());
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let open = [Arg::from(libc::AT_FDCWD), name, flags.into(), Arg::from(0)];
    let file = batch.must(libc::SYS_openat, &open, format!("open {path}"));
    let outcome = workshop.run(pid, &batch)?;
    let file = outcome.result(file).context(|| format!("open {path}"))?;
    let mut batch = Batch::new();
    let bytes = batch.data(text.as_bytes());
    let arguments = [Arg::from(file), bytes, text.len().into()];
    batch.must(libc::SYS_write, &arguments, format!("write {path}"));
    batch.call(libc::SYS_close, &[Arg::from(file)]);
    workshop.run(pid, &batch).map(drop)
}

/// A group of a namespace, by its number in the job's own.
fn some_group(namespaces: &[UserNamespace], of: UserNamespaceId) -> Option<u32> {
    let namespace = namespaces.get(of.index())?;
    let mut group = namespace.gids.first()?.1;
    let mut around = namespace.parent;
    while let Some(namespace) = around.and_then(|id| namespaces.get(id.index())) {
        let holds = |range: &&IdRange| range.0 <= group && group - range.0 < range.2;
        let range = namespace.gids.iter().find(holds)?;
        group = range.1 + (group - range.0);
        around = namespace.parent;
    }
    Some(group)
}

/// Makes a new namespace of another kind that belongs to a user namespace, which is the restarter's if none is given.
/// `ready` is told which process makes it.
///
/// # Errors
/// The kernel makes none; what `ready` gives.
pub fn new_namespace(
    workshop: &mut Workshop,
    owner: Option<UserNamespaceId>,
    place: Place,
    ready: &dyn Fn(i32) -> Result<()>,
) -> Result<File> {
    let (flag, file) = (place.flag(), place.file());
    let maker = match owner {
        Some(owner) => workshop.users.holder(owner)?,
        None => {
            let spare = workshop.spare();
            workshop.spawn(spare)?;
            spare
        }
    };
    ready(maker)?;
    let mut batch = Batch::new();
    batch.must(
        libc::SYS_unshare,
        &[Arg::from(flag)],
        format!("make a namespace ({file})"),
    );
    workshop.run(maker, &batch)?;
    let path = format!("/proc/{maker}/ns/{file}");
    let namespace = File::open(&path).context(|| format!("open {path}"))?;
    if owner.is_none() {
        workshop.end(maker, None)?;
    }
    Ok(namespace)
}

/// Lets others of the same user look at a process whose user has changed.
fn be_open(batch: &mut Batch) {
    batch.call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), Arg::from(1)]);
}

/// Has a process enter a user namespace.
///
/// # Errors
/// It may not, or is not there yet.
pub fn enter(workshop: &mut Workshop, pid: i32, namespace: UserNamespaceId) -> Result<()> {
    let what = || format!("have process {pid} enter a user namespace");
    let missing = || Error::new(ErrorKind::Damaged, "there is no such user namespace");
    let file = workshop.users.files.get(namespace.index()).ok_or_else(missing)?;
    with_descriptor(workshop, pid, file.as_fd(), |batch, fd| {
        let arguments = [fd.into(), libc::CLONE_NEWUSER.into()];
        batch.must(libc::SYS_setns, &arguments, "enter a user namespace");
        be_open(batch);
    })
    .context(what)?;
    workshop.set_user(pid, Some(namespace));
    Ok(())
}

/// Gives a process users and groups. It keeps its capabilities.
fn become_user(workshop: &Workshop, pid: i32, identity: &Identity) -> Result<()> {
    let Some(rights) = workshop.users.rights.filter(|rights| rights.privileged) else {
        // It is its maker's, as everything else of the job.
        return Ok(());
    };
    let mut batch = Batch::new();
    let keep = |batch: &mut Batch, on: i32| {
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_KEEPCAPS.into(), on.into()],
            "keep capabilities",
        )
    };
    keep(&mut batch, 1);
    set_ids(&mut batch, identity);
    keep(&mut batch, 0);
    let all = CapabilitySets {
        effective: rights.capabilities,
        permitted: rights.capabilities,
        inheritable: 0,
    };
    let (header, data) = capset_arguments(all);
    let (header, data) = (batch.data(&header), batch.data(&data));
    batch.must(libc::SYS_capset, &[header, data], "use the capabilities");
    be_open(&mut batch);
    workshop.run(pid, &batch).map(drop)
}

fn set_ids(batch: &mut Batch, identity: &Identity) {
    let groups: Vec<u8> = identity.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let place = batch.data(&groups);
    let arguments = [identity.groups.len().into(), place];
    batch.must(libc::SYS_setgroups, &arguments, "set the supplementary groups");
    let [real, effective, set, file] = identity.gids;
    let arguments = [real.into(), effective.into(), set.into()];
    batch.must(libc::SYS_setresgid, &arguments, "set the group");
    batch.call(libc::SYS_setfsgid, &[file.into()]);
    let [real, effective, set, file] = identity.uids;
    let arguments = [real.into(), effective.into(), set.into()];
    batch.must(libc::SYS_setresuid, &arguments, "set the user");
    batch.call(libc::SYS_setfsuid, &[file.into()]);
}

/// Has `pid` become the user that process `whose` of the image is, while it is in the restarter's user namespace.
///
/// # Errors
/// The kernel refuses it.
pub fn become_like(workshop: &Workshop, pid: i32, whose: i32) -> Result<()> {
    match workshop.users.identities.get(&whose) {
        Some(identity) => become_user(workshop, pid, identity),
        None => Ok(()),
    }
}

/// Has every process become the user it was and enter its user namespace. They must have no threads yet, which would
/// stay behind.
///
/// # Errors
/// The kernel refuses it.
pub fn enter_all(workshop: &mut Workshop, manifest: &Manifest) -> Result<()> {
    for process in living(manifest) {
        let (pid, Some(wanted)) = (process.pid, process.user_namespace) else {
            continue;
        };
        let what = || format!("restore the user of process {pid}");
        match workshop.user(pid)? {
            None => become_like(workshop, pid, pid).context(what)?,
            Some(born) => change_inside(workshop, process, born).context(what)?,
        }
        if workshop.user(pid)? != Some(wanted) {
            enter(workshop, pid, wanted)?;
        }
    }
    Ok(())
}

/// Gives a process that was made in a user namespace the users and groups it had, by the numbers of that, where they
/// are others than those of whom it comes from.
fn change_inside(workshop: &Workshop, process: &Process, born: UserNamespaceId) -> Result<()> {
    let users = &workshop.users;
    let first = process.pid_namespace.and_then(|id| workshop.first_of(id));
    let wanted = users.identities.get(&process.pid);
    let Some(wanted) = wanted.filter(|wanted| first.and_then(|first| users.identities.get(&first)) != Some(wanted))
    else {
        return Ok(());
    };
    if users.rights.is_none_or(|rights| !rights.privileged) {
        return Ok(());
    }
    let missing = || {
        Error::new(
            ErrorKind::Damaged,
            "its user namespace does not have its users and groups",
        )
    };
    let uid = |id: u32| inside(&users.namespaces, Some(born), |namespace| &namespace.uids, id).ok_or_else(missing);
    let gid = |id: u32| inside(&users.namespaces, Some(born), |namespace| &namespace.gids, id).ok_or_else(missing);
    let all = |ids: [u32; 4], of: &dyn Fn(u32) -> Result<u32>| -> Result<[u32; 4]> {
        Ok([of(ids[0])?, of(ids[1])?, of(ids[2])?, of(ids[3])?])
    };
    let inner = Identity {
        uids: all(wanted.uids, &uid)?,
        gids: all(wanted.gids, &gid)?,
        groups: wanted.groups.iter().map(|id| gid(*id)).collect::<Result<_>>()?,
    };
    let mut batch = Batch::new();
    let keep = [Arg::from(libc::PR_SET_KEEPCAPS), Arg::from(1)];
    batch.must(libc::SYS_prctl, &keep, "keep capabilities");
    set_ids(&mut batch, &inner);
    let (header, data) = capset_arguments(CapabilitySets {
        effective: ALL_CAPABILITIES,
        permitted: ALL_CAPABILITIES,
        inheritable: 0,
    });
    let (header, data) = (batch.data(&header), batch.data(&data));
    batch.must(libc::SYS_capset, &[header, data], "use the capabilities");
    be_open(&mut batch);
    workshop.run(process.pid, &batch).map(drop)
}

/// Ends all holders.
///
/// # Errors
/// [`ErrorKind::TimedOut`].
pub fn release(workshop: &mut Workshop) -> Result<()> {
    for holder in std::mem::take(&mut workshop.users.holders) {
        workshop.end(holder, None)?;
    }
    Ok(())
}
