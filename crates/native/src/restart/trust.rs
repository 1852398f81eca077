//! What root may restart for a user: an image that belongs to a user can have been written by that user, whatever it
//! says, so it gets nothing the user could not get (LBNL-2.2.3, LBNL-2.2.4A).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use cpr_image::Image;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::identity::Rights;

/// Whether the image file belongs to root: nobody else can have written what it says.
///
/// # Errors
/// The file cannot be looked at.
pub fn is_roots_own(image: &Image) -> Result<bool> {
    let metadata = image.file().metadata();
    Ok(metadata.context(|| format!("look at image {}", image.name()))?.uid() == 0)
}

/// Limits `rights` to those of the user the image file belongs to, where that is not root.
///
/// # Errors
/// [`ErrorKind::Denied`] when the image claims users or groups that are not its owner's.
pub fn limit(image: &Image, rights: Rights) -> Result<Rights> {
    if !rights.privileged {
        return Ok(rights);
    }
    let owner = image
        .file()
        .metadata()
        .context(|| format!("look at image {}", image.name()))?
        .uid();
    if owner == 0 {
        return Ok(rights);
    }
    let manifest = image.manifest();
    let refuse = |what: String| {
        Err(Error::new(
            ErrorKind::Denied,
            format!("image {} belongs to user {owner} and {what}", image.name()),
        )
        .with_hint("restart it as that user; if you trust it, make the file root's first"))
    };
    let allowed = groups_of(owner);
    for process in &manifest.processes {
        for credentials in process.credentials() {
            if let Some(uid) = credentials.uids.iter().find(|uid| **uid != owner) {
                return refuse(format!("claims user {uid} for process {}", process.pid));
            }
            let claimed = credentials.gids.iter().chain(&credentials.groups);
            if let Some(gid) = claimed.into_iter().find(|gid| !allowed.contains(gid)) {
                return refuse(format!("claims group {gid} for process {}", process.pid));
            }
        }
    }
    if manifest.checkpoint.owner_uid != owner {
        return refuse(format!(
            "says that it belongs to user {}",
            manifest.checkpoint.owner_uid
        ));
    }
    Ok(Rights {
        capabilities: 0,
        ..rights
    })
}

/// The groups that /etc/passwd and /etc/group give a user.
fn groups_of(uid: u32) -> BTreeSet<u32> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut groups = BTreeSet::new();
    let mut names = BTreeSet::new();
    for line in read("/etc/passwd").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [name, _, id, group, ..] = fields[..]
            && id.parse() == Ok(uid)
        {
            names.insert(name.to_owned());
            groups.extend(group.parse::<u32>());
        }
    }
    for line in read("/etc/group").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [_, _, id, members] = fields[..]
            && members.split(',').any(|member| names.contains(member))
        {
            groups.extend(id.parse::<u32>());
        }
    }
    groups
}
