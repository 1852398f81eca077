//! User namespaces that a job has made within its own: their users and groups, and what belongs to them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use cpr_image::model::{IdRange, Manifest, UserNamespace, UserNamespaceId};
use cpr_kernel::namespace;
use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::Settler;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::blockers::Home;
use crate::pid_namespaces::Levels;

/// Those found so far.
#[derive(Debug, Default)]
pub struct Saved {
    /// By [`UserNamespaceId`].
    pub namespaces: Vec<UserNamespace>,
    /// The users and groups of each, by numbers of the job's own namespace instead of those of the one around it.
    at_home: Vec<[Vec<IdRange>; 2]>,
    by_inode: HashMap<u64, UserNamespaceId>,
}

impl Saved {
    /// The namespace of a process that is stopped, where it is not the job's.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(&mut self, process: &ProcDir, home: &Home) -> Result<Option<UserNamespaceId>> {
        let what = || format!("look at the user namespace of process {}", process.pid());
        let link = process.read_link("ns/user").context(what)?;
        if home.has("user", &link) {
            return Ok(None);
        }
        let namespace = process.open_file("ns/user", OFlags::RDONLY).context(what)?;
        self.add(namespace.into(), home).context(what)
    }

    /// The namespace that one of another kind belongs to, where it is not the job's.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn owner(&mut self, namespace: &File, home: &Home) -> Result<Option<UserNamespaceId>> {
        let what = || "look at the user namespace that a namespace belongs to";
        let owner = namespace::owner(namespace.as_fd()).context(what)?;
        self.add(owner.into(), home).context(what)
    }

    fn add(&mut self, namespace: File, home: &Home) -> Result<Option<UserNamespaceId>> {
        let what = || "look at a user namespace";
        let inode = namespace.metadata().context(what)?.ino();
        if home.has("user", format!("user:[{inode}]").as_bytes()) {
            return Ok(None);
        }
        if let Some(known) = self.by_inode.get(&inode) {
            return Ok(Some(*known));
        }
        // The kernel gives an error at our own, and there are 32 of them at most.
        let around = namespace::parent(namespace.as_fd()).context(what)?;
        let parent = self.add(around.into(), home)?;
        // Nobody need be in it.
        let settler = Settler::send(namespace.as_fd()).context(|| "enter a user namespace")?;
        let proc = ProcDir::open(settler.pid).context(what)?;
        let read = |name: &str| proc.read(name).context(what);
        let at_home = [ranges(&read("uid_map")?)?, ranges(&read("gid_map")?)?];
        let [uids, gids] = [0, 1].map(|kind| match parent {
            None => Some(at_home[kind].clone()),
            Some(id) => within(&at_home[kind], &self.at_home[id.index()][kind]),
        });
        let (Some(uids), Some(gids)) = (uids, gids) else {
            let text = "a user namespace has users that the one around it does not have";
            return Err(Error::new(ErrorKind::Unsupported, text));
        };
        let id = UserNamespaceId(self.namespaces.len() as u32);
        self.namespaces.push(UserNamespace {
            parent,
            owner: namespace::maker(namespace.as_fd()).context(what)?,
            uids,
            gids,
            setgroups_denied: read("setgroups")?.starts_with(b"deny"),
        });
        self.at_home.push(at_home);
        self.by_inode.insert(inode, id);
        Ok(Some(id))
    }
}

/// Parses /proc/PID/uid_map.
fn ranges(text: &[u8]) -> Result<Vec<IdRange>> {
    let text = String::from_utf8_lossy(text);
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let mut number = || numbers.next().flatten();
        let range = (number()?, number()?, number()?);
        // The kernel shows that our namespace has no number for it.
        (range.1 != u32::MAX).then_some(range)
    };
    let all: Option<Vec<IdRange>> = text.lines().map(range).collect();
    all.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "a user namespace has users that its job has not",
        )
    })
}

/// The same ranges with numbers of the namespace around instead of those of the job's own; `around` are that one's.
fn within(ranges: &[IdRange], around: &[IdRange]) -> Option<Vec<IdRange>> {
    let mut found = Vec::new();
    for &(mut inside, mut home, mut left) in ranges {
        while left > 0 {
            let holds = |range: &&IdRange| range.1 <= home && home - range.1 < range.2;
            let (first, start, count) = around.iter().find(holds)?;
            let some = left.min(count - (home - start));
            found.push((inside, first + (home - start), some));
            (inside, home, left) = (inside + some, home + some, left - some);
        }
    }
    Some(found)
}

/// The number that a user (or group) of the job's own namespace has in another, if any. `kind`: users or groups.
pub fn inside(
    namespaces: &[UserNamespace],
    of: Option<UserNamespaceId>,
    kind: impl Fn(&UserNamespace) -> &[IdRange] + Copy,
    id: u32,
) -> Option<u32> {
    let Some(namespace) = of.and_then(|of| namespaces.get(of.index())) else {
        return Some(id);
    };
    let around = inside(namespaces, namespace.parent, kind, id)?;
    let range = kind(namespace)
        .iter()
        .find(|range| range.1 <= around && around - range.1 < range.2)?;
    Some(range.0 + (around - range.1))
}

/// Whether a namespace is `top` or lies within it.
pub fn is_at_or_below(
    namespaces: &[UserNamespace],
    mut namespace: Option<UserNamespaceId>,
    top: Option<UserNamespaceId>,
) -> bool {
    loop {
        if namespace == top {
            return true;
        }
        let Some(id) = namespace else { return false };
        namespace = namespaces.get(id.index()).and_then(|namespace| namespace.parent);
    }
}

/// Refuses what cannot be made again of the user namespaces of an image.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the process.
pub fn refuse_unmakeable(manifest: &Manifest) -> Result<()> {
    let namespaces = &manifest.user_namespaces;
    if namespaces.is_empty() {
        return Ok(());
    }
    let refuse = |pid: i32, what: &str| {
        let text = format!("process {pid}: user namespace: {what}");
        Err(Error::new(ErrorKind::Unsupported, text))
    };
    let levels = Levels::of(manifest);
    // Where they can enter a namespace from: the first process of a PID namespace, and all below it, are made in the
    // user namespace that this belongs to.
    let mut births: HashMap<i32, Option<UserNamespaceId>> = HashMap::new();
    for process in &manifest.processes {
        let pid = process.pid;
        let parent = births.get(&process.ppid).copied().flatten();
        let first = process.pid_namespace.filter(|id| levels.first(*id) == Some(pid));
        let birth = first.map_or(parent, |id| levels.owner(id));
        births.insert(pid, birth);
        if !is_at_or_below(namespaces, birth, parent) {
            return refuse(pid, "its PID namespace belongs to one that its parent cannot enter");
        }
        let Some(leader) = process.threads.first() else {
            continue;
        };
        if !is_at_or_below(namespaces, process.user_namespace, birth) {
            return refuse(pid, "it is not within the one that its PID namespace belongs to");
        }
        let differs = |own: &cpr_image::model::Credentials| {
            let first = &leader.credentials;
            (own.uids, own.gids, &own.groups) != (first.uids, first.gids, &first.groups)
        };
        if process.user_namespace.is_some() && process.credentials().any(differs) {
            return refuse(pid, "its threads belong to different users or groups");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_namespace_around() {
        // Outer: 0-9 are 1000-1009 and 10-19 are 5000-5009; inner: 0-3 are 8-11 of it.
        let outer = [(0, 1000, 10), (10, 5000, 10)];
        let inner_at_home = [(0, 1008, 2), (2, 5000, 2)];
        let inner = within(&inner_at_home, &outer).unwrap();
        assert_eq!(inner, [(0, 8, 2), (2, 10, 2)]);
        assert_eq!(within(&[(0, 1009, 2)], &outer), None);
        let namespaces = [
            UserNamespace {
                uids: outer.to_vec(),
                ..UserNamespace::default()
            },
            UserNamespace {
                parent: Some(UserNamespaceId(0)),
                uids: inner,
                ..UserNamespace::default()
            },
        ];
        let uid = |id| inside(&namespaces, Some(UserNamespaceId(1)), |n| &n.uids, id);
        assert_eq!(
            [1008, 1009, 5000, 5001, 5002].map(uid),
            [Some(0), Some(1), Some(2), Some(3), None]
        );
        assert!(is_at_or_below(&namespaces, Some(UserNamespaceId(1)), None));
        assert!(!is_at_or_below(&namespaces, None, Some(UserNamespaceId(1))));
    }
}
