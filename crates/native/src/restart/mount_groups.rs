//! Having mounts show what is mounted below each other again (mount_namespaces(7)), when all are in their places: until
//! then nothing shows anywhere else.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use cpr_image::model::{MountNamespaceId, MountPoint, Propagation};
use cpr_kernel::mounts::{self, Propagation as Set};
use cpr_types::{Context, Error, ErrorKind, Result};

/// A mount that is in a group, or follows one.
#[derive(Debug)]
pub struct Member {
    /// For messages.
    place: String,
    peers: Option<u32>,
    follows: Option<u32>,
    /// It follows what the job's own mount namespace has mounted.
    from_home: bool,
    mount: OwnedFd,
}

impl Member {
    /// The mount at a place of a mount namespace's tree.
    pub fn of(namespace: MountNamespaceId, index: usize, point: &MountPoint, mount: OwnedFd) -> Self {
        Member {
            place: format!("mount {index} (at {}) of mount namespace {}", point.at, namespace.0),
            peers: point.peers,
            follows: point.follows,
            from_home: point.propagation == Propagation::Follows,
            mount,
        }
    }

    fn set(&self, to: Set) -> Result<()> {
        let what = || format!("set what {} shows", self.place);
        mounts::set_propagation(self.mount.as_fd(), to).context(what)
    }

    /// Joins the group that one of these is in.
    fn join(&self, any: &[&Member]) -> Result<()> {
        let mut last = None;
        for other in any {
            match mounts::join_group(self.mount.as_fd(), other.mount.as_fd()) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        let what = || format!("have {} show what is mounted elsewhere", self.place);
        match last {
            Some(error) => Err(error).context(what),
            None => Err(Error::new(ErrorKind::Damaged, "there is nothing it could follow")).context(what),
        }
    }

    /// Becomes the first of its group, which follows `above`, if any.
    fn lead(&self, above: Option<&[&Member]>) -> Result<()> {
        if let Some(above) = above {
            self.join(above)?;
            self.set(Set::Slave)?;
        }
        self.set(Set::Shared)
    }
}

/// Puts all mounts into their groups, and has those follow that do.
///
/// # Errors
/// [`ErrorKind::Damaged`] for groups that follow each other in a circle; the kernel refuses it.
pub fn join(members: &[Member]) -> Result<()> {
    let mut groups: HashMap<u32, Vec<&Member>> = HashMap::new();
    for member in members {
        if let Some(group) = member.peers {
            groups.entry(group).or_default().push(member);
        }
    }
    let mut left: Vec<u32> = groups.keys().copied().collect();
    left.sort_unstable();
    while !left.is_empty() {
        let waits = |group: &u32| {
            let mut all = groups.get(group).into_iter().flatten();
            all.any(|member| member.follows.is_some_and(|above| left.contains(&above)))
        };
        let (later, ready): (Vec<u32>, Vec<u32>) = left.iter().copied().partition(waits);
        if ready.is_empty() {
            return Err(Error::new(
                ErrorKind::Damaged,
                "groups of mounts follow each other in a circle",
            ));
        }
        for group in ready.iter().filter_map(|group| groups.get(group)) {
            let above = group.iter().find_map(|member| member.follows);
            gather(
                group,
                above.map(|above| groups.get(&above).map_or(&[][..], Vec::as_slice)),
            )?;
        }
        left = later;
    }
    for member in members.iter().filter(|member| member.peers.is_none()) {
        if let Some(above) = member.follows {
            member.join(groups.get(&above).map_or(&[][..], Vec::as_slice))?;
            member.set(Set::Slave)?;
        }
    }
    Ok(())
}

/// Makes one group. Its first mount has to show as much of the file system as any other.
fn gather(group: &[&Member], above: Option<&[&Member]>) -> Result<()> {
    let attempt = |leader: usize| {
        let Some(first) = group.get(leader) else {
            return Ok(());
        };
        let others = || group.iter().enumerate().filter(|(index, _)| *index != leader);
        others()
            .filter(|(_, member)| member.from_home)
            .try_for_each(|(_, member)| member.set(Set::Private))?;
        first.lead(above)?;
        others().try_for_each(|(_, member)| member.join(&[first]))
    };
    let mut result = attempt(0);
    // What followed the job's own mount namespace does so no more after an attempt.
    if group.iter().any(|member| member.from_home) {
        return result;
    }
    for leader in 1..group.len() {
        if result.is_ok() {
            break;
        }
        group.iter().try_for_each(|member| member.set(Set::Private))?;
        result = attempt(leader);
    }
    result
}
