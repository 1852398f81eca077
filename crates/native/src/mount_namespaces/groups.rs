//! Groups of mounts that show what is mounted below each other, and mounts that follow such a group (mount_namespaces(7)).
//!
//! The kernel numbers groups, and shows the numbers in mountinfo. A group that other mounts of the job are in, or follow,
//! gets a number in the image; of one that is in a group by itself only that is saved.

use std::collections::{BTreeMap, HashSet};

use cpr_image::model::{MountNamespace, MountNamespaceId, Propagation};
use cpr_kernel::proc::Mount;

use super::tree::{Tree, name};
use crate::paths::below;

/// A mount of the job: the namespace, the place in its tree, and what the kernel tells of it.
type Entry<'a> = (usize, usize, &'a Mount);

fn number<'a>(mount: &'a Mount, kind: &[u8]) -> Option<&'a [u8]> {
    mount.optional.iter().find_map(|tag| tag.strip_prefix(kind))
}

fn peers(mount: &Mount) -> Option<&[u8]> {
    number(mount, b"shared:")
}

fn master(mount: &Mount) -> Option<&[u8]> {
    number(mount, b"master:")
}

/// Says of all mounts which groups they are in and follow. `home`: what is mounted in the job's own mount namespace.
///
/// # Errors
/// Why that cannot be made again.
pub fn assign(
    namespaces: &mut [MountNamespace],
    trees: &BTreeMap<MountNamespaceId, Tree>,
    home: &[Mount],
) -> Result<(), String> {
    let all: Vec<Entry<'_>> = trees
        .iter()
        .flat_map(|(id, tree)| {
            tree.mounts
                .iter()
                .enumerate()
                .map(|(index, mount)| (id.index(), index, mount))
        })
        .collect();
    let at_home: HashSet<&[u8]> = home.iter().filter_map(peers).collect();
    let followed: HashSet<&[u8]> = home.iter().filter_map(master).chain(at_home.iter().copied()).collect();
    let mut members: BTreeMap<&[u8], Vec<Entry<'_>>> = BTreeMap::new();
    for entry in &all {
        if let Some(group) = peers(entry.2) {
            if at_home.contains(group) {
                return Err(format!(
                    "{} shares what is mounted below it with the job's own mount namespace",
                    name(entry.2)
                ));
            }
            members.entry(group).or_default().push(*entry);
        }
    }
    let numbers: Vec<&[u8]> = members.keys().copied().collect();
    let of = |group: &[u8]| {
        numbers
            .iter()
            .position(|known| *known == group)
            .map(|index| index as u32)
    };
    for (namespace, index, mount) in &all {
        let Some(point) = namespaces
            .get_mut(*namespace)
            .and_then(|namespace| namespace.tree.get_mut(*index))
        else {
            continue;
        };
        let (group, follows) = (peers(mount).and_then(of), master(mount));
        let known = follows.and_then(of);
        if let Some(follows) = follows.filter(|_| known.is_none())
            && !followed.contains(follows)
        {
            return Err(format!("{} follows what is mounted outside of the job", name(mount)));
        }
        point.follows = known;
        let alone = peers(mount).is_some_and(|group| {
            let others = all.iter().any(|(_, _, other)| master(other) == Some(group));
            !others && members.get(group).is_some_and(|members| members.len() == 1)
        });
        point.propagation = match () {
            () if follows.is_some() && known.is_none() => Propagation::Follows,
            () if group.is_some() && alone && follows.is_none() => Propagation::Shared,
            () if mount.optional.iter().any(|tag| tag == b"unbindable") => Propagation::Unbindable,
            () => Propagation::Private,
        };
        if point.propagation != Propagation::Shared {
            point.peers = group;
        }
    }
    rehearse(&all, &members)
}

/// A mount is put into a group by one that shows at least as much of the file system: refuses where there is none.
fn rehearse(all: &[Entry<'_>], members: &BTreeMap<&[u8], Vec<Entry<'_>>>) -> Result<(), String> {
    let wider = |from: &Mount, to: &Mount| from.dev == to.dev && below(&to.root, &from.root).is_some();
    let refuse = |mount: &Mount| {
        format!(
            "{} shows more of its file system than the mounts whose mounts it shows, too",
            name(mount)
        )
    };
    for group in members.values() {
        let all_by = |leader: &Entry<'_>| group.iter().all(|member| wider(leader.2, member.2));
        let led = |leader: &&Entry<'_>| {
            let lead = master(leader.2).and_then(|followed| members.get(followed));
            all_by(leader) && lead.is_none_or(|above| above.iter().any(|from| wider(from.2, leader.2)))
        };
        if group.iter().find(led).is_none() {
            return Err(group.first().map_or_else(String::new, |first| refuse(first.2)));
        }
    }
    for (_, _, mount) in all.iter().filter(|(_, _, mount)| peers(mount).is_none()) {
        let above = master(mount).and_then(|followed| members.get(followed));
        if above.is_some_and(|above| !above.iter().any(|from| wider(from.2, mount))) {
            return Err(refuse(mount));
        }
    }
    Ok(())
}
