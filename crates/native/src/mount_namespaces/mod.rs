//! Mount namespaces that a job has made.
//!
//! Those that are copies of its own, with a /proc of a PID namespace of theirs at most, are saved as such: every path
//! leads to the same file in all of them, but for those below /proc. Of others all that is mounted in them is saved
//! ([`tree`]), and paths are theirs ([`crate::views::Views`]).

mod contents;
mod groups;
mod layers;
mod tree;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use cpr_image::model::{MountNamespace, MountNamespaceId, Mounted, ProcMount, UserNamespaceId};
use cpr_kernel::proc::{Mount, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::blockers::Home;
use crate::outside::LOOKS;
use crate::sink::PageSink;
use crate::views::Views;
use crate::visits::Visits;
use crate::{pid_namespaces, user_namespaces};
use tree::{Base, Tree};

/// Options of a mount and the flags of mount(2) for them. Others are not known.
const OPTIONS: [(&[u8], u64); 8] = [
    (b"rw", 0),
    (b"ro", libc::MS_RDONLY),
    (b"nosuid", libc::MS_NOSUID),
    (b"nodev", libc::MS_NODEV),
    (b"noexec", libc::MS_NOEXEC),
    (b"noatime", libc::MS_NOATIME),
    (b"nodiratime", libc::MS_NODIRATIME),
    (b"relatime", libc::MS_RELATIME),
];

/// Those found so far.
#[derive(Debug, Default)]
pub struct Saved {
    /// By [`MountNamespaceId`].
    pub namespaces: Vec<MountNamespace>,
    by_link: HashMap<Vec<u8>, MountNamespaceId>,
    base: Option<Base>,
    trees: BTreeMap<MountNamespaceId, Tree>,
}

/// What namespaces of other kinds are known of a job.
#[derive(Debug)]
pub struct Known<'a> {
    /// Where the job lives.
    pub home: &'a Home,
    /// PID namespaces: all of them.
    pub pids: &'a pid_namespaces::Saved,
    /// Network namespaces: all of them.
    pub networks: &'a Visits,
}

impl Saved {
    /// The namespace of a stopped process, where it is not the job's.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what a restart does not make again, by name.
    pub fn of(
        &mut self,
        process: &ProcDir,
        known: &Known<'_>,
        users: &mut user_namespaces::Saved,
        sink: &mut dyn PageSink,
    ) -> Result<Option<MountNamespaceId>> {
        let home = known.home;
        let pid = process.pid();
        let what = || format!("look at the mounts of process {pid}");
        let link = process.read_link("ns/mnt").context(what)?;
        if home.has("mnt", &link) {
            return Ok(None);
        }
        let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("process {pid}: mount namespace: {why}"));
        if !home.may_visit_kind(process, "mnt") {
            return Err(refuse("it is not ours to enter".to_owned()));
        }
        let id = match self.by_link.get(&link) {
            Some(id) => *id,
            None => {
                let namespace = process.open_file("ns/mnt", OFlags::RDONLY).context(what)?.into();
                let id = MountNamespaceId(self.namespaces.len() as u32);
                let owner = users.owner(&namespace, home)?;
                let saved = self.add(id, process, (&namespace, owner), known, sink)?;
                self.namespaces.push(MountNamespace { owner, ..saved });
                self.by_link.insert(link, id);
                id
            }
        };
        if let Some(tree) = self.trees.get(&id) {
            let has = |id: i32| tree.mounts.iter().any(|mount| mount.id == id);
            outside(process, &has).map_or(Ok(()), |why| Err(refuse(why)))?;
        }
        Ok(Some(id))
    }

    fn add(
        &mut self,
        id: MountNamespaceId,
        process: &ProcDir,
        (namespace, owner): (&File, Option<UserNamespaceId>),
        known: &Known<'_>,
        sink: &mut dyn PageSink,
    ) -> Result<MountNamespace> {
        let (home, pids) = (known.home, known.pids);
        let pid = process.pid();
        let what = || format!("look at the mounts of process {pid}");
        let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("process {pid}: mount namespace: {why}"));
        // What another user namespace has mounted is locked in one within that, and would not be.
        let mut others: Vec<(MountNamespaceId, &Tree)> = self.trees.iter().map(|(id, tree)| (*id, tree)).collect();
        others.retain(|(id, _)| {
            self.namespaces
                .get(id.index())
                .is_some_and(|other| other.owner == owner)
        });
        let Differences { private, proc } = match look(process, namespace, home, &others).map_err(refuse)? {
            Found::Copy(differences) => differences,
            Found::Tree(tree, base) => {
                self.base = Some(base);
                let points = tree.save(namespace, home, pids, known.networks, sink).context(what)?;
                self.trees.insert(id, tree);
                let trees: Vec<&Tree> = self.trees.values().collect();
                Tree::refuse_common(&trees).context(what)?;
                return Ok(MountNamespace {
                    tree: points,
                    ..MountNamespace::default()
                });
            }
        };
        let proc = match proc {
            None => None,
            Some(flags) => {
                // The first process of its PID namespace, as it shows that.
                let shown = process.read_link("root/proc/1/ns/pid").context(what)?;
                let known = pids.by_link(&shown);
                let own = home.has("pid", &shown);
                if known.is_none() && !own {
                    return Err(refuse("its /proc is of a PID namespace outside the job".to_owned()));
                }
                Some(ProcMount {
                    pid_namespace: known,
                    flags,
                })
            }
        };
        Ok(MountNamespace {
            private,
            proc,
            ..MountNamespace::default()
        })
    }

    /// The namespaces found, and how paths of those are looked up that are no copies of the job's own.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for mounts that show those of others in a way that a restart does not make again.
    pub fn finish(mut self) -> Result<(Vec<MountNamespace>, Views)> {
        let mut views = Views::default();
        if let Some(base) = &self.base {
            groups::assign(&mut self.namespaces, &self.trees, base.mounts())
                .map_err(|why| Error::new(ErrorKind::Unsupported, format!("mount namespace: {why}")))?;
        }
        for (id, Tree { root, mounts, points }) in self.trees {
            for (index, (mount, point)) in (0..).zip(mounts.iter().zip(&points)) {
                match point.mounted {
                    Mounted::Terminals { .. } => views.add_terminals(mount.dev, (id, index)),
                    Mounted::Queues { .. } => views.add_queues(mount.dev, (id, index)),
                    _ => {}
                }
            }
            views.add(id, root, mounts.iter().map(|mount| mount.id));
        }
        Ok((self.namespaces, views))
    }
}

/// Mount namespaces that were looked at, by their links in /proc: what is mounted in those that are no copies of the
/// job's own, or why they cannot be saved.
pub type Looks = Mutex<HashMap<Vec<u8>, std::result::Result<Option<HashSet<i32>>, String>>>;

/// Why the namespace of a process cannot be saved, if it is not the job's own.
pub fn blocker(process: &ProcDir, home: &Home) -> Option<String> {
    // What has gone is no hindrance.
    let link = process.read_link("ns/mnt").ok()?;
    if home.has("mnt", &link) || !home.may_visit_kind(process, "mnt") {
        return None;
    }
    let mut looks = home.mounted().lock().unwrap_or_else(PoisonError::into_inner);
    if !looks.contains_key(&link) {
        let namespace = process.open_file("ns/mnt", OFlags::RDONLY).ok()?.into();
        let mounts = look(process, &namespace, home, &[]).map(|found| match found {
            Found::Copy(_) => None,
            Found::Tree(tree, _) => Some(tree.mounts.iter().map(|mount| mount.id).collect()),
        });
        looks.insert(link.clone(), mounts);
    }
    match looks.get(&link)? {
        Ok(None) => None,
        Ok(Some(mounts)) => outside(process, &|mount| mounts.contains(&mount)),
        Err(why) => Some(why.clone()),
    }
}

/// What a mount namespace is.
enum Found {
    /// A copy of the job's own, but for this.
    Copy(Differences),
    /// Another one, compared with that.
    Tree(Tree, Base),
}

/// Compares the namespace of a process with the job's own.
///
/// What is mounted on the machine shows in both and comes and goes meanwhile; what only one of them seems to have may be
/// such a thing. So this looks again until nothing has changed between the two. Where that never happens, a look that
/// finds them alike is right, and otherwise the one that finds least.
///
/// # Errors
/// Why it cannot be saved.
fn look(
    process: &ProcDir,
    namespace: &File,
    home: &Home,
    others: &[(MountNamespaceId, &Tree)],
) -> std::result::Result<Found, String> {
    let unreadable = |error: std::io::Error| format!("its mounts cannot be listed ({error})");
    let tables = [home.mount_table(), process.mount_table()];
    let [at_home, inside] = tables.map(|table| table.map_err(unreadable));
    let (at_home, inside) = (at_home?, inside?);
    let have_changed = || -> std::result::Result<bool, String> {
        Ok(at_home.has_changed().map_err(unreadable)? | inside.has_changed().map_err(unreadable)?)
    };
    let mut least: Option<(Tree, Base)> = None;
    let mut why = String::new();
    for _ in 0..LOOKS {
        if let Ok(differences) = differences(process, &home.mounts().map_err(unreadable)?) {
            return Ok(Found::Copy(differences));
        }
        let base = Base::of(home).map_err(unreadable)?;
        let tree = Tree::of(namespace, &base, others);
        let is_over = !have_changed()?;
        match tree {
            Ok(tree) if is_over => return Ok(Found::Tree(tree, base)),
            Ok(tree) => {
                let is_less = |(least, _): &(Tree, Base)| tree.mounts.len() < least.mounts.len();
                if least.as_ref().is_none_or(is_less) {
                    least = Some((tree, base));
                }
            }
            Err(error) if is_over => return Err(error),
            Err(error) => why = error,
        }
    }
    least.map(|(tree, base)| Found::Tree(tree, base)).ok_or(why)
}

/// Why a process that lives in a namespace cannot be put into it again. `has`: whether a mount is in that.
fn outside(process: &ProcDir, has: &dyn Fn(i32) -> bool) -> Option<String> {
    let strange = |name: &str| {
        let place = process.open_file(name, OFlags::PATH);
        place.and_then(cpr_kernel::mounts::mount_of).is_ok_and(|on| !has(on))
    };
    let directories = [("cwd", "working"), ("root", "root")];
    let (_, kind) = directories.into_iter().find(|(name, _)| strange(name))?;
    Some(format!("the {kind} directory of the process is outside of it"))
}

/// In what a mount namespace differs from the job's own.
#[derive(Debug, PartialEq, Eq)]
struct Differences {
    /// Mounts elsewhere do not show in it.
    private: bool,
    /// It has a /proc more, mounted with these flags.
    proc: Option<u64>,
}

fn differences(process: &ProcDir, home: &[Mount]) -> std::result::Result<Differences, String> {
    let unreadable = |error: std::io::Error| format!("its mounts cannot be listed ({error})");
    let root = process.read_link("root").map_err(unreadable)?;
    if root != b"/" {
        // What it does not see of its mounts is not listed.
        return Err(format!("its root directory is {}", String::from_utf8_lossy(&root)));
    }
    compare(&process.mountinfo().map_err(unreadable)?, home)
}

fn compare(inside: &[Mount], home: &[Mount]) -> std::result::Result<Differences, String> {
    type Key<'a> = ((u32, u32), &'a [u8], &'a [u8], &'a [u8], &'a [u8]);
    fn key(mount: &Mount) -> Key<'_> {
        (
            mount.dev,
            &mount.root,
            &mount.mount_point,
            &mount.fs_type,
            &mount.options,
        )
    }
    let name = |mount: &Mount| {
        let point = String::from_utf8_lossy(&mount.mount_point);
        format!("{point} ({})", String::from_utf8_lossy(&mount.fs_type))
    };
    // Of mounts at one place, the one that is seen comes last.
    let mut missing: HashMap<Key<'_>, Vec<&Mount>> = HashMap::new();
    for mount in home {
        missing.entry(key(mount)).or_default().push(mount);
    }
    let mut pairs = Vec::new();
    let mut proc = None;
    for mount in inside {
        if let Some(at_home) = missing.get_mut(&key(mount)).and_then(Vec::pop) {
            pairs.push((mount, at_home));
        } else if mount.fs_type != b"proc" || mount.mount_point != b"/proc" || mount.root != b"/" {
            return Err(format!("{} is mounted in it, or with other options", name(mount)));
        } else if proc.replace(mount).is_some() {
            return Err("/proc is mounted more than once in it".to_owned());
        }
    }
    if let Some(mount) = missing.values().flatten().next() {
        return Err(format!("{} is not mounted in it", name(mount)));
    }
    let private = pairs.iter().all(|(mount, _)| mount.optional.is_empty());
    let as_copied = |(mount, at_home): &(&Mount, &Mount)| mount.optional.is_empty() == at_home.optional.is_empty();
    if !private && !pairs.iter().all(as_copied) {
        return Err("some of its mounts take part in those elsewhere, and some do not".to_owned());
    }
    let flags = proc.map(|mount| {
        if !mount.optional.is_empty() || !matches!(mount.super_options.as_slice(), b"rw" | b"ro") {
            return Err("its /proc has options of its own".to_owned());
        }
        let read_only: u64 = if mount.super_options == b"ro" {
            libc::MS_RDONLY
        } else {
            0
        };
        let flag = |option: &[u8]| {
            OPTIONS
                .iter()
                .find(|(known, _)| *known == option)
                .map(|(_, flag)| *flag)
        };
        let flags: Option<u64> = mount.options.split(|byte| *byte == b',').map(flag).sum();
        let flags = flags.ok_or_else(|| "its /proc is mounted with unknown options".to_owned())?;
        // It is the file system's, too, where it was given as it was mounted.
        match flags & libc::MS_RDONLY == read_only {
            true => Ok(flags),
            false => Err("its /proc was made read-only later".to_owned()),
        }
    });
    Ok(Differences {
        private,
        proc: flags.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, fs_type: &str, options: &str, optional: &str) -> Mount {
        Mount {
            id: 1,
            parent: 1,
            dev: (0, fs_type.len() as u32),
            root: b"/".to_vec(),
            mount_point: point.as_bytes().to_vec(),
            options: options.as_bytes().to_vec(),
            optional: optional.split_whitespace().map(|tag| tag.as_bytes().to_vec()).collect(),
            fs_type: fs_type.as_bytes().to_vec(),
            source: b"none".to_vec(),
            super_options: b"rw".to_vec(),
        }
    }

    #[test]
    fn what_a_namespace_has_beyond_a_copy() {
        let home = [
            mount("/", "ext4", "rw,relatime", "master:1"),
            mount("/tmp", "tmpfs", "rw", "master:2"),
        ];
        let private = |mounts: &[Mount]| {
            let mut mounts = mounts.to_vec();
            mounts.iter_mut().for_each(|mount| mount.optional.clear());
            mounts
        };
        let same = |private, proc| Ok(Differences { private, proc });
        assert_eq!(compare(&home, &home), same(false, None));
        assert_eq!(compare(&private(&home), &home), same(true, None));
        let mut more = private(&home);
        more.push(mount("/proc", "proc", "rw,nosuid,nodev,noexec,relatime", ""));
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
        assert_eq!(compare(&more, &home), same(true, Some(flags)));
        let refused = |mounts: &[Mount], why: &str| {
            let text = compare(mounts, &home).unwrap_err();
            assert!(text.contains(why), "{text}");
        };
        let with = |extra: Mount| [more.as_slice(), &[extra]].concat();
        refused(&with(mount("/proc", "proc", "rw", "")), "more than once");
        refused(&with(mount("/mnt", "proc", "rw", "")), "/mnt (proc)");
        refused(&with(mount("/tmp", "overlay", "rw", "")), "/tmp (overlay)");
        refused(&[home[0].clone()], "/tmp (tmpfs) is not mounted");
        refused(
            &[home[0].clone(), mount("/tmp", "tmpfs", "ro", "master:2")],
            "with other options",
        );
        refused(&[home[0].clone(), mount("/tmp", "tmpfs", "rw", "")], "take part");
        refused(
            &[private(&home), vec![mount("/proc", "proc", "rw,idmapped", "")]].concat(),
            "unknown options",
        );
    }
}
