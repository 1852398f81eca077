//! Namespaces and what is in them.

use std::collections::{HashMap, HashSet};

use cpr_types::Result;

use super::{Check, MAX_BLOB, MAX_FILE, Verdict, absolute, in_table, path, pid, within, wrong};
use crate::format::PAGE;
use crate::model::*;

/// SEMVMX.
const MAX_SEMAPHORE: u16 = 32767;
/// MAX_PID_NS_LEVEL.
const MAX_PID_LEVELS: usize = 32;
/// User namespaces lie in each other no deeper.
const MAX_USER_LEVELS: usize = 33;
/// More user namespaces than this no job has.
const MAX_USER_NAMESPACES: usize = 4096;
/// UID_GID_MAP_MAX_EXTENTS.
const MAX_ID_RANGES: usize = 340;
/// NAME_MAX.
const MAX_NAME: usize = 255;
/// Directories of such a file system lie in each other no deeper.
const MAX_DEPTH: usize = 256;
/// More files than these are not saved of a file system in memory.
const MAX_MEMORY_FILES: usize = 1 << 20;
/// More mounts than these no namespace of a job has.
const MAX_MOUNTS: usize = 4096;
/// OVL_MAX_STACK.
const MAX_LAYERS: usize = 500;
/// MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, STRICTATIME, NODIRATIME, NOSYMFOLLOW.
const MOUNT_ATTRIBUTES: u64 = 1 | 2 | 4 | 8 | 0x10 | 0x20 | 0x80 | 0x20_0000;
/// MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME.
const MOUNT_FLAGS: u64 = 1 | 2 | 4 | 8 | 1 << 10 | 1 << 11 | 1 << 21;

/// A path from some directory that leads nowhere but down; empty for that itself.
pub(super) fn inner_path(name: &ByteString) -> Verdict {
    path(name)?;
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    within(
        name.0.is_empty() || name.0.split(|byte| *byte == b'/').all(plain),
        "path",
    )
}

pub(super) fn mount_options(options: &[MountOption], known: &[&str]) -> Verdict {
    let mut seen = HashSet::new();
    let sound = |(name, value): &MountOption| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'%';
        known.contains(&name.as_str()) && value.len() <= 64 && value.bytes().all(plain)
    };
    within(
        options
            .iter()
            .all(|option| sound(option) && seen.insert(option.0.clone())),
        "options",
    )
}

/// A hierarchy of control groups as /proc/PID/cgroup names it. Names have letters, digits, `_`, `-` and `.` (kernel:
/// cgroup1_parse_param).
fn hierarchy_name(hierarchy: &ByteString) -> Verdict {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let part = |part: &[u8]| {
        let name = part.strip_prefix(b"name=").unwrap_or(part);
        (1..=64).contains(&name.len()) && name.iter().all(plain)
    };
    let sound = hierarchy.0.is_empty() || hierarchy.0.split(|byte| *byte == b',').all(part);
    within(sound, "name of a hierarchy")
}

impl Check<'_> {
    pub(super) fn network(&self, id: Option<NetworkId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.networks, "network namespace")
        })
    }

    pub(super) fn ipc_namespace(&self, id: Option<IpcNamespaceId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.ipc_namespaces, "IPC namespace")
        })
    }

    pub(super) fn owner(&self, id: Option<UserNamespaceId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.user_namespaces, "user namespace")
        })
    }

    /// User namespaces: each within one before it, and with users and groups that are each known by one number. What
    /// belongs to them.
    pub(super) fn user_namespaces(&self) -> Result<()> {
        let manifest = self.manifest;
        let namespaces = &manifest.user_namespaces;
        within(namespaces.len() <= MAX_USER_NAMESPACES, "number of user namespaces").map_err(wrong)?;
        let mut depths: Vec<usize> = Vec::with_capacity(namespaces.len());
        for (index, namespace) in namespaces.iter().enumerate() {
            let this = |what: String| wrong(format!("user namespace {index}: {what}"));
            let depth = match namespace.parent {
                None => Some(1),
                Some(parent) => depths.get(parent.index()).map(|depth| depth + 1),
            };
            let depth = depth.ok_or_else(|| this("it is in one that does not come before it".to_owned()))?;
            within(depth <= MAX_USER_LEVELS, "depth").map_err(this)?;
            depths.push(depth);
            for ranges in [&namespace.uids, &namespace.gids] {
                within(ranges.len() <= MAX_ID_RANGES, "number of ranges").map_err(this)?;
                for side in [|range: &IdRange| range.0, |range: &IdRange| range.1] {
                    let mut spans: Vec<(u32, u32)> = ranges.iter().map(|range| (side(range), range.2)).collect();
                    spans.sort_unstable();
                    let mut free = 0u64;
                    for (first, count) in spans {
                        // The highest number stands for nobody.
                        let end = u64::from(first) + u64::from(count);
                        let sound = count > 0 && u64::from(first) >= free && end <= u64::from(u32::MAX);
                        within(sound, "range of users or groups").map_err(this)?;
                        free = end;
                    }
                }
            }
        }
        within(
            manifest.mount_namespaces.len() <= manifest.processes.len(),
            "number of mount namespaces",
        )
        .map_err(wrong)?;
        for (index, namespace) in manifest.mount_namespaces.iter().enumerate() {
            self.mount_namespace(namespace, index)
                .map_err(|what| wrong(format!("mount namespace {index}: {what}")))?;
        }
        let owners = &manifest.cgroup_namespace_owners;
        let sound = owners.is_empty() || owners.len() == manifest.cgroup_namespaces as usize;
        within(sound, "number of owners of cgroup namespaces").map_err(wrong)?;
        let owned = owners.iter().copied();
        owned
            .chain(manifest.processes.iter().map(|process| process.user_namespace))
            .chain(manifest.pid_namespaces.iter().map(|namespace| namespace.owner))
            .chain(manifest.ipc_namespaces.iter().map(|namespace| namespace.owner))
            .chain(manifest.networks.iter().map(|namespace| namespace.owner))
            .chain(manifest.host_names.iter().map(|namespace| namespace.owner))
            .chain(manifest.time_namespaces.iter().map(|namespace| namespace.owner))
            .chain(manifest.mount_namespaces.iter().map(|namespace| namespace.owner))
            .try_for_each(|owner| self.owner(owner))
            .map_err(wrong)
    }

    pub(super) fn mount_namespace(&self, around: &MountNamespace, number: usize) -> Verdict {
        let pid_namespace = |id: Option<PidNamespaceId>| {
            id.map_or(Ok(()), |id| {
                in_table(id.index(), &self.manifest.pid_namespaces, "PID namespace")
            })
        };
        if let Some(proc) = &around.proc {
            pid_namespace(proc.pid_namespace)?;
            within(proc.flags & !MOUNT_FLAGS == 0, "flags of /proc")?;
        }
        let tree = &around.tree;
        within(tree.len() <= MAX_MOUNTS, "number of mounts")?;
        let mut shown = None;
        for (index, point) in tree.iter().enumerate() {
            let this = |what: String| format!("mount {index}: {what}");
            self.mount_point(point, index, tree).map_err(this)?;
            self.group_of_mounts(point).map_err(this)?;
            if let Mounted::Elsewhere { namespace, of, path } = &point.mounted {
                inner_path(path).map_err(this)?;
                let earlier = self.manifest.mount_namespaces[..number].get(namespace.index());
                // What is mounted is locked for user namespaces within that of who has mounted it.
                let alike = |other: &&MountNamespace| other.owner == around.owner;
                let there = earlier
                    .filter(alike)
                    .is_some_and(|other| (*of as usize) < other.tree.len());
                within(there, "mount of another namespace").map_err(this)?;
            }
            if let Mounted::Processes { pid_namespace: id, .. } = &point.mounted {
                pid_namespace(*id).map_err(this)?;
                // Whoever makes it is in one of them.
                within(*shown.get_or_insert(*id) == *id, "second PID namespace").map_err(this)?;
            }
        }
        Ok(())
    }

    pub(super) fn mount_point(&self, point: &MountPoint, index: usize, tree: &[MountPoint]) -> Verdict {
        let earlier = |id: u32| tree.get(id as usize).filter(|_| (id as usize) < index);
        let parent = match point.parent {
            None => {
                within(index == 0 && point.at.0.is_empty(), "root")?;
                None
            }
            Some(id) => Some(earlier(id).ok_or("what it is on does not come before it")?),
        };
        inner_path(&point.at)?;
        within(point.attributes & !MOUNT_ATTRIBUTES == 0, "attributes")?;
        match &point.mounted {
            Mounted::Bind { path: name, .. } => absolute(name),
            Mounted::Along => {
                let goes = parent.is_some_and(|parent| {
                    matches!(parent.mounted, Mounted::Bind { recursive: true, .. } | Mounted::Along)
                });
                within(goes, "mount that came along")
            }
            Mounted::Part { of, path: name } => {
                earlier(*of).ok_or("what it is a part of does not come before it")?;
                inner_path(name)
            }
            Mounted::Elsewhere { .. } => Ok(()),
            Mounted::System { network } => self.network(*network),
            Mounted::Groups { path: name, hierarchy } => {
                absolute(name)?;
                path(hierarchy)
            }
            Mounted::Hierarchy { hierarchy, options } => {
                hierarchy_name(hierarchy)?;
                let flags = options.iter().all(|(_, value)| value.is_empty());
                within(flags, "options of a hierarchy")?;
                mount_options(options, &HIERARCHY_OPTIONS)
            }
            Mounted::Layers {
                path: name,
                lower,
                data,
                upper,
                options,
            } => {
                inner_path(name)?;
                within(
                    (1..=MAX_LAYERS).contains(&(lower.len() + data.len())),
                    "number of layers",
                )?;
                let upper = upper.iter().flat_map(|(upper, work)| [upper, work]);
                lower.iter().chain(data).chain(upper).try_for_each(absolute)?;
                mount_options(options, &LAYER_OPTIONS)
            }
            Mounted::Processes { options, .. } => mount_options(options, &["hidepid", "subset", "gid"]),
            Mounted::Queues { ipc_namespace } => self.ipc_namespace(*ipc_namespace),
            Mounted::Terminals { options } => mount_options(options, &["mode", "ptmxmode", "gid", "max"]),
            Mounted::Memory {
                path: name,
                options,
                files,
            } => {
                inner_path(name)?;
                mount_options(options, &["size", "nr_inodes", "huge", "noswap", "ro"])?;
                self.memory_files(files)
            }
        }
    }

    /// Groups are few, and nobody follows the one he is in.
    fn group_of_mounts(&self, point: &MountPoint) -> Verdict {
        let small = |group: Option<u32>| group.is_none_or(|group| (group as usize) < MAX_MOUNTS);
        let sound = small(point.peers) && small(point.follows);
        let apart = point.peers.is_none() || point.peers != point.follows;
        within(sound && apart, "group of mounts")
    }

    pub(super) fn memory_files(&self, files: &[MemoryFile]) -> Verdict {
        within(files.len() <= MAX_MEMORY_FILES, "number of files")?;
        // The directories that the present file is in, the innermost last.
        let mut around: Vec<u32> = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let name = &file.name.0;
            if index == 0 {
                within(
                    name.is_empty() && file.kind == MemoryFileKind::Directory,
                    "root of a file system",
                )?;
            } else {
                let plain = !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b"..";
                within(plain && !name.contains(&b'/') && !name.contains(&0), "name of a file")?;
                while around.last().is_some_and(|directory| *directory != file.parent) {
                    around.pop();
                }
                within(!around.is_empty(), "directory of a file")?;
            }
            within(file.mode <= 0o7777, "mode of a file")?;
            let attributes = &file.attributes;
            let sound = |(name, value): &(ByteString, Bytes)| {
                !name.0.is_empty() && name.0.len() <= MAX_NAME && !name.0.contains(&0) && value.0.len() <= MAX_BLOB
            };
            within(
                attributes.len() <= 1024 && attributes.iter().all(sound),
                "attributes of a file",
            )?;
            match &file.kind {
                MemoryFileKind::Directory => {
                    within(around.len() < MAX_DEPTH, "depth of a directory")?;
                    around.push(index as u32);
                }
                MemoryFileKind::Regular { size, extents } => {
                    within(*size <= MAX_FILE, "size")?;
                    self.extents(extents, &(0..size.next_multiple_of(PAGE)))?;
                }
                MemoryFileKind::Link { target } => path(target)?,
                MemoryFileKind::Fifo | MemoryFileKind::Socket | MemoryFileKind::Device { .. } => {}
                MemoryFileKind::Same { as_file } => {
                    let other = files[..index].get(*as_file as usize).map(|other| &other.kind);
                    let sound = !matches!(
                        other,
                        None | Some(MemoryFileKind::Directory | MemoryFileKind::Same { .. })
                    );
                    within(sound, "other name of a file")?;
                }
            }
        }
        within(!files.is_empty(), "file system without a root")
    }

    /// A mount namespace that paths are of: one with mounts of its own.
    pub(super) fn place(&self, id: Option<MountNamespaceId>) -> Verdict {
        let Some(id) = id else { return Ok(()) };
        in_table(id.index(), &self.manifest.mount_namespaces, "mount namespace")?;
        within(
            !self.manifest.mount_namespaces[id.index()].tree.is_empty(),
            "mount namespace of a path",
        )
    }

    /// PID namespaces: each within one before it, with a first process that everybody in it comes after, and a number
    /// in it for everybody in it.
    pub(super) fn pid_namespaces(&self) -> Result<()> {
        let namespaces = &self.manifest.pid_namespaces;
        let processes = &self.manifest.processes;
        // One for each process, and one for its children.
        within(namespaces.len() <= 2 * processes.len(), "number of PID namespaces").map_err(wrong)?;
        let mut tables: Vec<HashMap<i32, i32>> = Vec::with_capacity(namespaces.len());
        let mut depths: Vec<usize> = Vec::with_capacity(namespaces.len());
        for (index, namespace) in namespaces.iter().enumerate() {
            let this = |what: String| wrong(format!("PID namespace {index}: {what}"));
            let depth = match namespace.parent {
                None => Some(1),
                Some(parent) => depths.get(parent.index()).map(|depth| depth + 1),
            };
            let depth = depth.ok_or_else(|| this("it is in one that does not come before it".to_owned()))?;
            within(depth <= MAX_PID_LEVELS, "depth").map_err(this)?;
            depths.push(depth);
            let mut table = HashMap::with_capacity(namespace.numbers.len());
            let mut inside = HashSet::with_capacity(namespace.numbers.len());
            for &(outside, number) in &namespace.numbers {
                pid(outside).and_then(|()| pid(number)).map_err(this)?;
                if table.insert(outside, number).is_some() || !inside.insert(number) {
                    return Err(this(format!("number {number} for {outside} is listed twice")));
                }
            }
            tables.push(table);
        }
        let within_all = |mut id: Option<PidNamespaceId>, number: i32| {
            while let Some(at) = id {
                if !tables[at.index()].contains_key(&number) {
                    return false;
                }
                id = namespaces[at.index()].parent;
            }
            true
        };
        let by_pid: HashMap<i32, &Process> = processes.iter().map(|process| (process.pid, process)).collect();
        let mut begun = vec![false; namespaces.len()];
        for process in processes {
            let this = |what: &str| wrong(format!("process {}: {what}", process.pid));
            if let Some(later) = process.pid_namespace_of_children {
                let mut around = namespaces[later.index()].parent;
                // In its own, or deeper in a tree of which each comes after its parent.
                while let Some(at) = around.filter(|at| Some(*at) != process.pid_namespace) {
                    around = namespaces[at.index()].parent;
                }
                if around != process.pid_namespace || Some(later) == process.pid_namespace {
                    return Err(this("the PID namespace of its children is not below its own"));
                }
            }
            let tids = process.threads.iter().map(|thread| thread.tid);
            if !tids
                .chain([process.pid])
                .all(|tid| within_all(process.pid_namespace, tid))
            {
                return Err(this("it has no number in its PID namespace"));
            }
            let parent = by_pid.get(&process.ppid).and_then(|parent| parent.pid_namespace);
            let Some(own) = process.pid_namespace else {
                if parent.is_some() {
                    return Err(this("it is in a PID namespace around its parent's"));
                }
                continue;
            };
            let first = tables[own.index()].get(&process.pid) == Some(&1);
            if first {
                begun[own.index()] = true;
                if parent != namespaces[own.index()].parent {
                    return Err(this("its PID namespace is not within its parent's"));
                }
            } else if !begun[own.index()] {
                return Err(this("its PID namespace has no first process before it"));
            }
            let mut around = Some(own);
            while around != parent {
                let Some(at) = around else {
                    return Err(this("its PID namespace is not within its parent's"));
                };
                around = namespaces[at.index()].parent;
            }
        }
        Ok(())
    }

    /// Network and IPC namespaces.
    pub(super) fn namespaces(&self) -> Verdict {
        let settings = |settings: &[Setting]| {
            settings.iter().try_for_each(|(name, value)| {
                let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
                let sound = name.0.len() <= 4096 && !name.0.contains(&0) && !name.0.split(|b| *b == b'/').any(odd);
                within(sound && value.0.len() <= 65536, "setting")
            })
        };
        // One for each process at most.
        let most = self.manifest.processes.len();
        within(
            self.manifest.cgroup_namespaces as usize <= most,
            "number of cgroup namespaces",
        )?;
        for (index, namespace) in self.manifest.ipc_namespaces.iter().enumerate() {
            settings(&namespace.settings).map_err(|what| format!("IPC namespace {index}: {what}"))?;
        }
        for (index, network) in self.manifest.networks.iter().enumerate() {
            let this = |what: String| format!("network namespace {index}: {what}");
            settings(&network.settings).map_err(this)?;
            let mut numbers = HashSet::new();
            for link in &network.links {
                let number = (1..=i32::MAX as u32).contains(&link.index) && numbers.insert(link.index);
                within(number, "number of an interface").map_err(this)?;
                let name = &link.name.0;
                let sound = (1..=15).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/');
                within(sound, "name of an interface").map_err(this)?;
                within(link.address.0.len() <= 32, "hardware address").map_err(this)?;
                if let LinkKind::Veth { network, index: end } = link.kind {
                    self.network(Some(network)).map_err(this)?;
                    let other = &self.manifest.networks[network.index()].links;
                    let back = LinkKind::Veth {
                        network: NetworkId(index as u32),
                        index: link.index,
                    };
                    let itself = network.index() == index && end == link.index;
                    let agreed = !itself && other.iter().any(|other| other.index == end && other.kind == back);
                    within(agreed, "other end of an interface").map_err(this)?;
                }
            }
            for entry in network.addresses.iter().chain(&network.routes).chain(&network.rules) {
                let length: usize = entry.attributes.iter().map(|(_, value)| value.0.len() + 8).sum();
                let sound = (8..=16).contains(&entry.header.0.len()) && length <= 16384;
                within(sound, "address, route or rule").map_err(this)?;
            }
        }
        Ok(())
    }

    pub(super) fn ipc(&self) -> Verdict {
        let ipc = &self.manifest.ipc;
        let mut ids = [HashSet::new(), HashSet::new(), HashSet::new()];
        let mut identity = |kind: usize, of: &SysvIdentity| {
            self.ipc_namespace(of.namespace)?;
            within(of.id >= 0 && ids[kind].insert((of.namespace, of.id)), "identifier")?;
            within(of.mode <= 0o177_777, "mode")
        };
        for segment in &ipc.segments {
            let this = |what: String| format!("segment {}: {what}", segment.identity.id);
            identity(0, &segment.identity).map_err(this)?;
            within((1..=MAX_FILE).contains(&segment.size), "size").map_err(this)?;
            self.extents(&segment.extents, &(0..segment.size.next_multiple_of(PAGE)))
                .map_err(this)?;
        }
        for set in &ipc.semaphores {
            let this = |what: String| format!("semaphore set {}: {what}", set.identity.id);
            identity(1, &set.identity).map_err(this)?;
            let count = set.semaphores.len();
            within((1..=32000).contains(&count), "number of semaphores").map_err(this)?;
            within(set.semaphores.iter().all(|(value, _)| *value <= MAX_SEMAPHORE), "value").map_err(this)?;
            let limit = i32::from(MAX_SEMAPHORE);
            for &(pid, index, amount) in &set.undo {
                let sound = usize::from(index) < count && (-limit - 1..=limit).contains(&amount);
                within(sound, &format!("adjustment of process {pid}")).map_err(this)?;
            }
        }
        for queue in &ipc.queues {
            let this = |what: String| format!("message queue {}: {what}", queue.identity.id);
            identity(2, &queue.identity).map_err(this)?;
            within(queue.messages.iter().all(|(kind, _)| *kind > 0), "type of a message").map_err(this)?;
        }
        for queue in &ipc.posix_queues {
            let this = |what: String| format!("message queue /{}: {what}", queue.name);
            self.ipc_namespace(queue.namespace).map_err(this)?;
            let name = &queue.name.0;
            let sound = !name.is_empty() && name.len() <= 255 && !name.contains(&0) && !name.contains(&b'/');
            within(sound, "name").map_err(this)?;
            let (most, size) = (queue.max_messages, queue.message_size);
            within((1..=65536).contains(&most) && (1..=16 << 20).contains(&size), "size").map_err(this)?;
            within(queue.messages.len() as i64 <= most, "number of messages").map_err(this)?;
            let fits = |(priority, data): &(u32, Bytes)| *priority < 32768 && data.0.len() as i64 <= size;
            within(queue.messages.iter().all(fits), "message").map_err(this)?;
        }
        Ok(())
    }
}
