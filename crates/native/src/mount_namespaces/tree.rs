//! What is mounted in a namespace that is no copy of the job's own: bind mounts of what the job's own shows, and new
//! file systems of some kinds, on and over each other.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use cpr_image::model::{
    ByteString, MountNamespaceId, MountOption, MountPoint, Mounted, NetworkId, PidNamespaceId, Propagation,
};
use cpr_kernel::mounts;
use cpr_kernel::proc::{Cgroup, Mount, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use super::{contents, layers};
use crate::blockers::Home;
use crate::cgroups;
use crate::paths::{below, join};
use crate::pid_namespaces;
use crate::sink::PageSink;
use crate::visits::Visits;

/// As many mounts as an image may have of one namespace.
const MOST: usize = 4096;

/// Options of mounts and their MOUNT_ATTR_*. What is not known is refused.
const ATTRIBUTES: [(&[u8], u64); 10] = [
    (b"rw", 0),
    (b"ro", 1),
    (b"nosuid", 2),
    (b"nodev", 4),
    (b"noexec", 8),
    (b"noatime", 0x10),
    (b"nodiratime", 0x80),
    (b"relatime", 0),
    (b"nosymfollow", 0x20_0000),
    (b"strictatime", 0x20),
];
/// MOUNT_ATTR_NOATIME and MOUNT_ATTR_STRICTATIME: without either, and without `relatime`, it is the latter.
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;

/// A mount namespace, looked at.
#[derive(Debug)]
pub struct Tree {
    /// Its root directory.
    pub root: OwnedFd,
    /// What is mounted, in the order of [`Tree::points`].
    pub mounts: Vec<Mount>,
    /// The same for an image, without the contents of file systems and without PID namespaces.
    pub points: Vec<MountPoint>,
}

/// The job's own mount namespace, as a restart finds it.
#[derive(Debug)]
pub struct Base {
    root: OwnedFd,
    mounts: Vec<Mount>,
    /// With those that the job has made there itself; none where there are none.
    all: Vec<Mount>,
    /// Control groups are those that this process is in.
    groups: Vec<Cgroup>,
}

impl Base {
    /// Looks at it.
    ///
    /// # Errors
    /// The process that shows it has gone.
    pub fn of(home: &Home) -> std::io::Result<Base> {
        let all = match home.made().is_empty() {
            true => Vec::new(),
            false => ProcDir::open_living(home.init())?.mountinfo()?,
        };
        Ok(Base {
            root: home.root()?,
            mounts: home.mounts()?,
            all,
            groups: ProcDir::open_living(home.in_groups())?.cgroups()?,
        })
    }

    /// What is mounted there.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Where a restart finds what a path of it leads to now: the job may have mounted something over it.
    pub(super) fn locate(&self, path: &[u8]) -> Option<Vec<u8>> {
        let found = mounts::open_below(self.root.as_fd(), path, OFlags::PATH).ok()?;
        let id = mounts::mount_of(&found).ok()?;
        let place = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        let mount = self.mounts.iter().chain(&self.all).find(|mount| mount.id == id)?;
        let below_it = below(place.as_os_str().as_bytes(), &mount.mount_point)?;
        self.find(mount.dev, &join(&mount.root, below_it)).map(|(path, _)| path)
    }

    /// Where a part of a file system is seen: the path, and the number of the mount.
    fn find(&self, dev: (u32, u32), root: &[u8]) -> Option<(Vec<u8>, &Mount)> {
        self.mounts.iter().filter(|mount| mount.dev == dev).find_map(|mount| {
            let path = join(&mount.mount_point, below(root, &mount.root)?);
            self.shows(mount, &path).then_some((path, mount))
        })
    }

    /// Whether a path leads to a place of a mount, and not to something mounted over it.
    fn shows(&self, mount: &Mount, path: &[u8]) -> bool {
        if self.all.is_empty() {
            return is_on(&self.root, path, mount.id);
        }
        // What the job has mounted is not in the way where it is restarted.
        let is_root = |mount: &&Mount| {
            !self
                .mounts
                .iter()
                .any(|other| other.id == mount.parent && other.id != mount.id)
        };
        let mut at = self.mounts.iter().find(is_root);
        let mut left = self.mounts.len();
        while let Some(on) = at {
            let next = self
                .children(on, b"/")
                .filter(|child| below(path, &child.mount_point).is_some());
            // The first on the way; what lies over it comes after that.
            match next.min_by_key(|child| child.mount_point.len()) {
                Some(next) if left > 0 => at = Some(next),
                _ => return on.id == mount.id,
            }
            left -= 1;
        }
        false
    }

    /// What is mounted below a path of a mount, on that itself.
    fn children<'a>(&'a self, mount: &'a Mount, path: &'a [u8]) -> impl Iterator<Item = &'a Mount> {
        let on_it = self.mounts.iter().filter(|child| child.parent == mount.id);
        on_it.filter(|child| child.id != mount.id && below(&child.mount_point, path).is_some())
    }
}

/// Whether a path leads to a place of the mount with this number.
fn is_on(root: &OwnedFd, path: &[u8], id: i32) -> bool {
    let found = mounts::open_below(root.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW);
    found.and_then(mounts::mount_of).is_ok_and(|found| found == id)
}

pub(super) fn name(mount: &Mount) -> String {
    let point = String::from_utf8_lossy(&mount.mount_point);
    format!("{point} ({})", String::from_utf8_lossy(&mount.fs_type))
}

impl Tree {
    /// Looks at a namespace; nothing need be stopped. `others`: those of the job that come before it, and belong to the
    /// same user namespace.
    ///
    /// # Errors
    /// Why it cannot be saved.
    pub fn of(
        namespace: &File,
        base: &Base,
        others: &[(MountNamespaceId, &Tree)],
    ) -> std::result::Result<Tree, String> {
        let unreadable = |error: std::io::Error| format!("its mounts cannot be listed ({error})");
        let (root, found) = mounts::look(namespace.as_fd()).map_err(unreadable)?;
        let mounts = in_order(found)?;
        // First of all: no path leads through a file system that could keep us waiting.
        let known = |mount: &&Mount| {
            let new = [&b"proc"[..], b"devpts", b"mqueue", b"tmpfs", b"sysfs"].contains(&mount.fs_type.as_slice());
            // What is in layers is in directories that the job's own namespace shows.
            let layers = || mount.fs_type == b"overlay" && layers::of(mount, base).is_ok();
            let groups = || mount.root == b"/" && matches!(cgroups::mounted(mount, &base.groups), Ok(Some(_)));
            new || layers() || groups() || base.mounts.iter().any(|other| other.dev == mount.dev)
        };
        if let Some(mount) = mounts.iter().find(|mount| !known(mount)) {
            return Err(match mount.fs_type.as_slice() {
                b"overlay" => layers::of(mount, base).err().unwrap_or_default(),
                b"cgroup" | b"cgroup2" => {
                    let why = cgroups::mounted(mount, &base.groups).err();
                    why.unwrap_or_else(|| format!("{} is mounted in it", name(mount)))
                }
                _ => format!("{} is mounted in it", name(mount)),
            });
        }
        let mut finder = Finder {
            base,
            others,
            is_ours: is_ours(namespace).map_err(unreadable)?,
            root: &root,
            mounts: &mounts,
            points: Vec::new(),
            from: HashMap::new(),
        };
        for index in 0..mounts.len() {
            let point = finder.point(index)?;
            finder.points.push(point);
        }
        finder.along()?;
        finder.refuse_gains()?;
        let points = finder.points;
        Ok(Tree { root, mounts, points })
    }

    /// What it is in an image: with the contents of file systems in memory. The job must be stopped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for contents that cannot be saved; contents cannot be read.
    pub fn save(
        &self,
        namespace: &File,
        home: &Home,
        pids: &pid_namespaces::Saved,
        networks: &Visits,
        sink: &mut dyn PageSink,
    ) -> Result<Vec<MountPoint>> {
        let mut points = self.points.clone();
        let mut shown: Option<Option<PidNamespaceId>> = None;
        for (mount, point) in self.mounts.iter().zip(&mut points) {
            let place = String::from_utf8_lossy(&mount.mount_point);
            match &mut point.mounted {
                Mounted::Processes { pid_namespace, .. } => {
                    *pid_namespace = processes(namespace, mount, home, pids)?;
                    if *shown.get_or_insert(*pid_namespace) != *pid_namespace {
                        let text =
                            format!("{place} shows processes of another PID namespace than others mounted there");
                        return Err(Error::new(ErrorKind::Unsupported, text));
                    }
                }
                Mounted::Memory { files, .. } => {
                    let what = || format!("look into {place}");
                    let copy = mounts::copy(namespace.as_fd(), &mount.mount_point, mount.id).context(what)?;
                    *files = contents::save(&copy, &place, sink)?;
                }
                Mounted::System { network } => *network = network_of(mount, networks)?,
                _ => {}
            }
        }
        Ok(points)
    }

    /// Refuses file systems that two of the job's namespaces have made for themselves alone: they would be two.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] naming the first.
    pub fn refuse_common(trees: &[&Tree]) -> Result<()> {
        let mut seen = HashSet::new();
        for tree in trees {
            let mut own = HashSet::new();
            for (mount, point) in tree.mounts.iter().zip(&tree.points) {
                let new = matches!(point.mounted, Mounted::Memory { .. } | Mounted::Terminals { .. });
                if new && own.insert(mount.dev) && !seen.insert(mount.dev) {
                    let text = format!("{} is mounted in two mount namespaces of the job", name(mount));
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
            }
        }
        Ok(())
    }
}

/// Whether a mount namespace belongs to the user namespace that we are in.
fn is_ours(namespace: &File) -> std::io::Result<bool> {
    let owner = rustix::fs::fstat(cpr_kernel::namespace::owner(namespace.as_fd())?)?;
    let own = rustix::fs::stat("/proc/self/ns/user")?;
    Ok((owner.st_dev, owner.st_ino) == (own.st_dev, own.st_ino))
}

/// Whose processes a /proc shows: by the first process that there is in it.
fn processes(
    namespace: &File,
    mount: &Mount,
    home: &Home,
    pids: &pid_namespaces::Saved,
) -> Result<Option<PidNamespaceId>> {
    let what = || format!("look at {}", String::from_utf8_lossy(&mount.mount_point));
    let proc = mounts::copy(namespace.as_fd(), &mount.mount_point, mount.id).context(what)?;
    let first = rustix::fs::readlinkat(&proc, "1/ns/pid", Vec::new())
        .map_err(std::io::Error::from)
        .context(what)?;
    let known = pids.by_link(first.as_bytes());
    if known.is_none() && !home.has("pid", first.as_bytes()) {
        let text = format!("{} is of a PID namespace outside the job", name(mount));
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(known)
}

/// Whose interfaces a sysfs shows: each network namespace has one of its own.
fn network_of(mount: &Mount, networks: &Visits) -> Result<Option<NetworkId>> {
    for index in (0..networks.len()).map(Some).chain([None]) {
        let device = networks.within(index, || {
            mounts::device_of_sysfs().context(|| format!("find out whose interfaces {} shows", name(mount)))
        });
        if device? == mount.dev {
            return Ok(index.map(|index| NetworkId(index as u32)));
        }
    }
    let text = format!("{} is of a network namespace outside the job", name(mount));
    Err(Error::new(ErrorKind::Unsupported, text))
}

/// Every mount after what it is on, and after those that lie further down there, which it may cover; otherwise as they
/// are listed, which is the order they were made in.
fn in_order(mut left: Vec<Mount>) -> std::result::Result<Vec<Mount>, String> {
    if left.len() > MOST {
        return Err(format!("more than {MOST} file systems are mounted in it"));
    }
    let ids: HashSet<i32> = left.iter().map(|mount| mount.id).collect();
    let is_root = |mount: &Mount| mount.parent == mount.id || !ids.contains(&mount.parent);
    if left.iter().filter(|mount| is_root(mount)).count() != 1 {
        return Err("its mounts have no common root".to_owned());
    }
    let mut placed = HashSet::new();
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let before = left.len();
        let mut later = Vec::new();
        let places: Vec<(i32, i32, Vec<u8>)> = left
            .iter()
            .map(|mount| (mount.id, mount.parent, mount.mount_point.clone()))
            .collect();
        for mount in left {
            let covers = |(id, parent, point): &(i32, i32, Vec<u8>)| {
                let further =
                    *parent == mount.parent && below(point, &mount.mount_point).is_some_and(|rest| !rest.is_empty());
                further && *id != mount.id && !placed.contains(id)
            };
            if is_root(&mount) || placed.contains(&mount.parent) && !places.iter().any(covers) {
                placed.insert(mount.id);
                ordered.push(mount);
            } else {
                later.push(mount);
            }
        }
        if later.len() == before {
            return Err("its mounts lie on each other in a circle".to_owned());
        }
        left = later;
    }
    Ok(ordered)
}

struct Finder<'a> {
    base: &'a Base,
    /// It belongs to our own user namespace, so that mounts can be taken away in a copy of it.
    is_ours: bool,
    others: &'a [(MountNamespaceId, &'a Tree)],
    root: &'a OwnedFd,
    mounts: &'a [Mount],
    points: Vec<MountPoint>,
    /// Where bind mounts come from in the job's own namespace: the mount there, and the path.
    from: HashMap<usize, (&'a Mount, Vec<u8>)>,
}

impl<'a> Finder<'a> {
    fn point(&mut self, index: usize) -> std::result::Result<MountPoint, String> {
        let mount = &self.mounts[index];
        let parent = self.mounts[..index].iter().position(|other| other.id == mount.parent);
        let at = match parent {
            None => Vec::new(),
            Some(parent) => {
                let on = below(&mount.mount_point, &self.mounts[parent].mount_point);
                on.ok_or_else(|| format!("{} lies outside of what it is mounted on", name(mount)))?
                    .to_vec()
            }
        };
        if mount.root.ends_with(b"//deleted") {
            return Err(format!("what is mounted at {} has been deleted", name(mount)));
        }
        Ok(MountPoint {
            parent: parent.map(|parent| parent as u32),
            at: ByteString(at),
            attributes: attributes(mount)?,
            propagation: propagation(mount),
            // Which groups the job's mounts are in shows when all are known.
            peers: None,
            follows: None,
            mounted: self.mounted(index)?,
        })
    }

    fn mounted(&mut self, index: usize) -> std::result::Result<Mounted, String> {
        let mount = &self.mounts[index];
        let bind = |path: Vec<u8>| Mounted::Bind {
            path: ByteString(path),
            recursive: false,
        };
        if let Some(child) = self.came_along(mount) {
            self.from.insert(index, (child, child.mount_point.clone()));
            return Ok(Mounted::Along);
        }
        if let Some((path, from)) = self.base.find(mount.dev, &mount.root) {
            self.from.insert(index, (from, path.clone()));
            let is_group = [&b"cgroup"[..], b"cgroup2"].contains(&mount.fs_type.as_slice()) && mount.root != b"/";
            if let Some(group) = self.base.groups.iter().find(|group| is_group && group.is_of(mount)) {
                return Ok(Mounted::Groups {
                    path: ByteString(path),
                    hierarchy: ByteString(group.hierarchy.clone()),
                });
            }
            return Ok(bind(path));
        }
        if self.base.mounts.iter().any(|other| other.dev == mount.dev) {
            return Err(format!(
                "{} shows {}, which nothing in the job's own mount namespace shows",
                name(mount),
                String::from_utf8_lossy(&mount.root)
            ));
        }
        if let Some((of, path)) = part(&self.mounts[..index], mount)? {
            return Ok(Mounted::Part { of, path });
        }
        if [&b"tmpfs"[..], b"devpts", b"overlay"].contains(&mount.fs_type.as_slice()) {
            for (namespace, other) in self.others {
                if let Some((of, path)) = part(&other.mounts, mount)? {
                    return Ok(Mounted::Elsewhere {
                        namespace: *namespace,
                        of,
                        path,
                    });
                }
            }
        }
        let seen = is_on(self.root, &mount.mount_point, mount.id);
        let options = |known: &[&str], left_out: &[&str]| options(mount, known, left_out);
        match mount.fs_type.as_slice() {
            b"proc" | b"tmpfs" if !seen && !self.is_ours => Err(format!(
                "{} has something mounted over it, and belongs to another user namespace",
                name(mount)
            )),
            b"proc" | b"tmpfs" if propagation(mount) == Propagation::Unbindable && !self.is_ours => Err(format!(
                "{} cannot be mounted elsewhere (unbindable), and belongs to another user namespace",
                name(mount)
            )),
            b"devpts" if !seen => Err(format!("{} has something mounted over it", name(mount))),
            b"proc" if mount.root == b"/" => Ok(Mounted::Processes {
                pid_namespace: None,
                options: options(&["hidepid", "subset", "gid"], &[])?,
            }),
            b"devpts" if mount.root == b"/" => Ok(Mounted::Terminals {
                options: options(&["mode", "ptmxmode", "gid", "max"], &["newinstance"])?,
            }),
            // Which namespace's they are shows later.
            b"sysfs" if mount.root == b"/" => Ok(Mounted::System { network: None }),
            b"overlay" => layers::of(mount, self.base),
            b"cgroup" | b"cgroup2" if !self.is_ours => Err(format!(
                "{} is mounted in it, and belongs to another user namespace",
                name(mount)
            )),
            b"cgroup" | b"cgroup2" if mount.root == b"/" => {
                let known = cgroups::mounted(mount, &self.base.groups)?;
                let (hierarchy, options) = known.ok_or_else(|| format!("{} is mounted in it", name(mount)))?;
                Ok(Mounted::Hierarchy { hierarchy, options })
            }
            b"mqueue" if mount.root == b"/" => Ok(Mounted::Queues { ipc_namespace: None }),
            b"tmpfs" => Ok(Mounted::Memory {
                path: ByteString(below(&mount.root, b"/").unwrap_or_default().to_vec()),
                options: options(
                    &["size", "nr_inodes", "huge", "noswap", "ro"],
                    &["mode", "uid", "gid", "inode32", "inode64"],
                )?,
                files: Vec::new(),
            }),
            _ => Err(format!("{} is mounted in it", name(mount))),
        }
    }

    /// The mount of the job's own namespace that lies at the same place of what this one's parent shows.
    fn came_along(&self, mount: &Mount) -> Option<&'a Mount> {
        let parent = self.mounts.iter().position(|other| other.id == mount.parent)?;
        let (from, path) = self.from.get(&parent)?;
        let at = below(&mount.mount_point, &self.mounts[parent].mount_point)?;
        let place = join(path, at);
        let taken: HashSet<i32> = self.from.values().map(|(mount, _)| mount.id).collect();
        let base = self.base;
        let mut on_it = base.mounts.iter().filter(|child| child.parent == from.id);
        on_it.find(|child| {
            child.mount_point == place
                && child.dev == mount.dev
                && child.root == mount.root
                && !taken.contains(&child.id)
        })
    }

    /// Refuses mounts that allow what is not allowed where they are from: a restart takes no such thing away.
    fn refuse_gains(&self) -> std::result::Result<(), String> {
        /// MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC, NOSYMFOLLOW.
        const DENIED: u64 = 1 | 2 | 4 | 8 | 0x20_0000;
        for (index, point) in self.points.iter().enumerate() {
            let Some((from, _)) = self.from.get(&index) else {
                continue;
            };
            if attributes(from)? & !point.attributes & DENIED != 0 {
                let mount = &self.mounts[index];
                return Err(format!(
                    "{} allows more than it does where it is taken from",
                    name(mount)
                ));
            }
        }
        Ok(())
    }

    /// Finds out which bind mounts were made with all that is mounted below.
    fn along(&mut self) -> std::result::Result<(), String> {
        for index in 0..self.points.len() {
            if !matches!(self.points[index].mounted, Mounted::Bind { .. }) {
                continue;
            }
            // All that a copy would bring along, and what of it is there.
            let (mut wanted, mut there) = (0, Vec::new());
            let mut queue = vec![index];
            while let Some(one) = queue.pop() {
                let Some((from, path)) = self.from.get(&one) else {
                    continue;
                };
                wanted += self.base.children(from, path).count();
                let came = (0..self.points.len()).filter(|child| {
                    let point = &self.points[*child];
                    point.parent == Some(one as u32) && matches!(point.mounted, Mounted::Along)
                });
                let came: Vec<usize> = came.collect();
                queue.extend(&came);
                there.extend(came);
            }
            let whole = wanted > 0 && there.len() == wanted;
            if let Mounted::Bind { recursive, .. } = &mut self.points[index].mounted {
                *recursive = whole;
            }
            for child in there {
                let Some((from, path)) = self.from.get(&child) else {
                    continue;
                };
                let mount = &self.mounts[child];
                if !whole {
                    if !self.base.shows(from, path) {
                        return Err(format!("{} is not seen in the job's own mount namespace", name(mount)));
                    }
                    self.points[child].mounted = Mounted::Bind {
                        path: ByteString(path.clone()),
                        recursive: false,
                    };
                    continue;
                }
                // What lies over it is there before anything can be done to it.
                let covered = self.points.iter().any(|point| {
                    point.parent == Some(child as u32)
                        && point.at.0.is_empty()
                        && matches!(point.mounted, Mounted::Along)
                });
                let differs =
                    attributes(from)? != self.points[child].attributes || propagation(mount) == Propagation::Shared;
                if covered && differs {
                    return Err(format!("{} was changed below something mounted over it", name(mount)));
                }
            }
        }
        Ok(())
    }
}

/// MOUNT_ATTR_* of a mount.
fn attributes(mount: &Mount) -> std::result::Result<u64, String> {
    let attribute = |option: &[u8]| {
        ATTRIBUTES
            .iter()
            .find(|(known, _)| *known == option)
            .map(|(_, attribute)| *attribute)
    };
    let all = mount
        .options
        .split(|byte| *byte == b',')
        .map(attribute)
        .sum::<Option<u64>>();
    let all = all.ok_or_else(|| format!("{} is mounted with unknown options", name(mount)))?;
    let relative = mount
        .options
        .split(|byte| *byte == b',')
        .any(|option| option == b"relatime");
    Ok(match all & NOATIME == 0 && !relative {
        true => all | STRICTATIME,
        false => all,
    })
}

/// The mount that shows a file system whole or a wider part of it, and the path from its root.
fn part(mounts: &[Mount], mount: &Mount) -> std::result::Result<Option<(u32, ByteString)>, String> {
    let mut there = (0..).zip(mounts).filter(|(_, other)| other.dev == mount.dev).peekable();
    if there.peek().is_none() {
        return Ok(None);
    }
    let found = there.find_map(|(of, other)| Some((of, ByteString(below(&mount.root, &other.root)?.to_vec()))));
    let missing = || format!("{} shows more than what was mounted before it", name(mount));
    found.ok_or_else(missing).map(Some)
}

fn propagation(mount: &Mount) -> Propagation {
    let has = |kind: &[u8]| mount.optional.iter().any(|tag| tag.starts_with(kind));
    if has(b"shared:") {
        Propagation::Shared
    } else if has(b"master:") {
        Propagation::Follows
    } else if has(b"unbindable") {
        Propagation::Unbindable
    } else {
        Propagation::Private
    }
}

/// Options of a file system, `known` to be given again and `left_out` as its contents or the kernel say them.
pub(super) fn options(
    mount: &Mount,
    known: &[&str],
    left_out: &[&str],
) -> std::result::Result<Vec<MountOption>, String> {
    let mut found = Vec::new();
    let text = String::from_utf8_lossy(&mount.super_options);
    for option in text.split(',').filter(|option| !option.is_empty() && *option != "rw") {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        if left_out.contains(&key) {
            continue;
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'%';
        if !known.contains(&key) || !value.bytes().all(plain) {
            return Err(format!("{} is mounted with option {option}", name(mount)));
        }
        found.push((key.to_owned(), value.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: i32, parent: i32, point: &str) -> Mount {
        Mount {
            id,
            parent,
            dev: (0, 1),
            root: b"/".to_vec(),
            mount_point: point.as_bytes().to_vec(),
            options: b"rw".to_vec(),
            optional: Vec::new(),
            fs_type: b"tmpfs".to_vec(),
            source: b"none".to_vec(),
            super_options: b"rw,size=4k,mode=755".to_vec(),
        }
    }

    #[test]
    fn mounts_come_after_what_they_are_on() {
        let order = |mounts: &[(i32, i32)]| {
            let mounts = mounts.iter().map(|(id, parent)| mount(*id, *parent, "/")).collect();
            in_order(mounts).map(|all| all.iter().map(|mount| mount.id).collect::<Vec<_>>())
        };
        assert_eq!(order(&[(5, 3), (3, 2), (2, 1), (4, 2)]), Ok(vec![2, 4, 3, 5]));
        assert!(order(&[(5, 1), (3, 2)]).unwrap_err().contains("no common root"));
        assert!(order(&[(2, 1), (3, 4), (4, 3)]).unwrap_err().contains("circle"));
    }

    #[test]
    fn options_that_are_not_known_are_refused() {
        let mut memory = mount(2, 1, "/tmp");
        let known = options(&memory, &["size"], &["mode"]).unwrap();
        assert_eq!(known, [("size".to_owned(), "4k".to_owned())]);
        memory.super_options = b"rw,usrquota".to_vec();
        assert!(options(&memory, &["size"], &["mode"]).unwrap_err().contains("usrquota"));
        assert_eq!(attributes(&memory), Ok(STRICTATIME));
        memory.options = b"ro,relatime".to_vec();
        assert_eq!(attributes(&memory), Ok(1));
        memory.options = b"rw,idmapped".to_vec();
        assert!(attributes(&memory).is_err());
    }
}
