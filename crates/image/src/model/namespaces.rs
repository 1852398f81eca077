//! Namespaces and what is in them, and the places of processes in control groups.

use serde::{Deserialize, Serialize};

use super::{ByteString, Bytes, Extent, IpcNamespaceId, MountNamespaceId, NetworkId, PidNamespaceId, UserNamespaceId};

/// A process that is deeper in a hierarchy of control groups than the job's first one (cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct CgroupMember {
    /// PID.
    pub pid: i32,
    /// The hierarchy: controllers separated by commas, or empty for version 2.
    pub hierarchy: ByteString,
    /// Path below the group of the job's first process.
    pub path: ByteString,
}

/// What a namespace for host names (UTS) has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct HostNames {
    /// The host name.
    pub host: ByteString,
    /// The NIS domain name.
    pub domain: ByteString,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
}

/// A time namespace: what its clocks are ahead of those of the job's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TimeNamespace {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub boottime_ns: i64,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
}

/// A PID namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PidNamespace {
    /// The one it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<PidNamespaceId>,
    /// Numbers of processes, threads, process groups and sessions that are seen in it: each in the job's own PID
    /// namespace, and here. Empty where it has no process yet.
    pub numbers: Vec<(i32, i32)>,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
}

/// A mount namespace: what makes it differ from the job's own or, where it has little in common with that, all that is
/// mounted in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MountNamespace {
    /// What is mounted elsewhere does not show in it.
    pub private: bool,
    /// A file system of processes at /proc, over what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proc: Option<ProcMount>,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
    /// All that is mounted in it, the root first; empty for a copy of the job's own namespace. Then `private` and
    /// `proc` say nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tree: Vec<MountPoint>,
}

/// Something mounted in a mount namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountPoint {
    /// What it is mounted on: an index into [`MountNamespace::tree`], of one that comes before it. None for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Where on that: a path without a slash at either end; empty where it is mounted over all of it.
    #[serde(default)]
    pub at: ByteString,
    /// MOUNT_ATTR_* of mount_setattr(2).
    #[serde(default)]
    pub attributes: u64,
    /// Whether mounts elsewhere show below it.
    #[serde(default)]
    pub propagation: Propagation,
    /// The group of mounts that show each other's mounts which it is in (mount_namespaces(7), peer group): a number that
    /// means the same in all mount namespaces of an image. None where nothing else of the job is in it or follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<u32>,
    /// The group of the job's mounts whose mounts it shows, but not the other way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u32>,
    /// What is mounted.
    pub mounted: Mounted,
}

/// Whether what is mounted elsewhere shows below a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// No.
    #[default]
    Private,
    /// What is mounted where it was taken from.
    Follows,
    /// It is the only member of a group whose members show each other's mounts.
    Shared,
    /// No, and it cannot be mounted elsewhere, either.
    Unbindable,
}

/// An option of a file system: its name and value.
pub type MountOption = (String, String);

/// Options that hierarchies of control groups are mounted with again. None has a value.
pub const HIERARCHY_OPTIONS: [&str; 10] = [
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "favordynmods",
    "nsdelegate",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// Options of a file system of layers (overlay) that an image may have. Those of directories are not among them.
pub const LAYER_OPTIONS: [&str; 9] = [
    "redirect_dir",
    "index",
    "uuid",
    "nfs_export",
    "xino",
    "metacopy",
    "userxattr",
    "volatile",
    "fsync",
];

/// What is mounted somewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mounted {
    /// A directory or file of the job's own mount namespace.
    Bind {
        /// Absolute path there.
        path: ByteString,
        /// With all that is mounted below it there.
        recursive: bool,
    },
    /// What was mounted in the job's own mount namespace below that which its parent shows, and came along with it.
    Along,
    /// A directory or file of a file system that comes before it in the tree.
    Part {
        /// Index into the tree.
        of: u32,
        /// Path from the root of that mount; empty for all of it.
        path: ByteString,
    },
    /// A directory or file of a file system that is mounted in another mount namespace of the job as well.
    Elsewhere {
        /// Which: one that comes before.
        namespace: MountNamespaceId,
        /// Index into the tree of that.
        of: u32,
        /// Path from the root of that mount; empty for all of it.
        #[serde(default)]
        path: ByteString,
    },
    /// The kernel's view of its devices (sysfs).
    System {
        /// The network namespace whose interfaces it shows, where that is not the job's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<NetworkId>,
    },
    /// A group of a hierarchy of control groups (cgroup, cgroup2) that the job's own mount namespace shows.
    Groups {
        /// Absolute path there.
        path: ByteString,
        /// The hierarchy: controllers separated by commas, or empty for version 2.
        #[serde(default)]
        hierarchy: ByteString,
    },
    /// A hierarchy of control groups that the job's own mount namespace does not show, whole.
    Hierarchy {
        /// Which: controllers separated by commas, with `name=` and a name or that alone; empty for version 2.
        #[serde(default)]
        hierarchy: ByteString,
        /// What else it was mounted with, of [`HIERARCHY_OPTIONS`].
        #[serde(default)]
        options: Vec<MountOption>,
    },
    /// Directories of the job's own mount namespace, on top of each other (overlay).
    Layers {
        /// The directory of it that is mounted: a path from its root; empty for that itself.
        #[serde(default)]
        path: ByteString,
        /// The lower ones, the topmost first: absolute paths.
        lower: Vec<ByteString>,
        /// Those of them that are for data only, the topmost first: absolute paths.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        data: Vec<ByteString>,
        /// What is changed, and the directory for what is under way; none where nothing can be changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<(ByteString, ByteString)>,
        /// Other options.
        #[serde(default)]
        options: Vec<MountOption>,
    },
    /// A file system of processes (proc).
    Processes {
        /// Whose, where that is not the job's own PID namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid_namespace: Option<PidNamespaceId>,
        /// Options.
        #[serde(default)]
        options: Vec<MountOption>,
    },
    /// A new file system of pseudo-terminals (devpts).
    Terminals {
        /// Options.
        #[serde(default)]
        options: Vec<MountOption>,
    },
    /// The file system of an IPC namespace's POSIX message queues (mqueue).
    Queues {
        /// Whose, where that is not the job's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipc_namespace: Option<IpcNamespaceId>,
    },
    /// A new file system in memory (tmpfs).
    Memory {
        /// The directory of it that is mounted: a path from its root; empty for that itself.
        #[serde(default)]
        path: ByteString,
        /// Options.
        #[serde(default)]
        options: Vec<MountOption>,
        /// What is in that: the directory itself, then what is in that, each directory followed by all that is in it.
        files: Vec<MemoryFile>,
    },
}

/// A file, directory or anything else in a file system in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// The directory it is in: an index into the list it is in itself; its own for the root.
    pub parent: u32,
    /// Name; empty for the root.
    pub name: ByteString,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last access, nanoseconds since 1970.
    pub atime_ns: i64,
    /// Time of the last modification, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes: name and value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(ByteString, Bytes)>,
    /// What it is.
    pub kind: MemoryFileKind,
}

/// Kinds of [`MemoryFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Size in bytes.
        size: u64,
        /// Saved ranges: file offsets. Ranges without extent are holes.
        extents: Vec<Extent>,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: ByteString,
    },
    /// A FIFO.
    Fifo,
    /// The file of a UNIX socket, which may be bound to it or gone.
    Socket,
    /// A device.
    Device {
        /// A block device; a character device else.
        block: bool,
        /// Device number.
        rdev: u64,
    },
    /// Another name of a file.
    Same {
        /// Which one: an index that comes before.
        as_file: u32,
    },
}

/// A mounted file system of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct ProcMount {
    /// Whose processes it shows, where that is not the job's own PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<PidNamespaceId>,
    /// Flags of mount(2): MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME.
    pub flags: u64,
}

/// Users or groups that a user namespace has: the first one's number there, the same one's in the namespace around it,
/// and how many there are.
pub type IdRange = (u32, u32, u32);

/// A user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct UserNamespace {
    /// The one it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<UserNamespaceId>,
    /// Who made it: a user of the job's own user namespace.
    pub owner: u32,
    /// Its users.
    pub uids: Vec<IdRange>,
    /// Its groups.
    pub gids: Vec<IdRange>,
    /// Whether setgroups(2) is denied in it.
    pub setgroups_denied: bool,
}

/// A value below /proc/sys: its path there and the text.
pub type Setting = (ByteString, ByteString);

/// An IPC namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct IpcNamespace {
    /// Its limits.
    pub settings: Vec<Setting>,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
}

/// A network namespace: what makes it differ from a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Network {
    /// Values below /proc/sys/net.
    pub settings: Vec<Setting>,
    /// Its interfaces.
    pub links: Vec<NetworkLink>,
    /// Their addresses: RTM_NEWADDR.
    pub addresses: Vec<NetworkEntry>,
    /// Routes: RTM_NEWROUTE.
    pub routes: Vec<NetworkEntry>,
    /// Which tables of routes count for what: RTM_NEWRULE.
    pub rules: Vec<NetworkEntry>,
    /// The user namespace it belongs to, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserNamespaceId>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: ByteString,
    /// What it is.
    pub kind: LinkKind,
    /// IFF_* that can be set, such as IFF_UP.
    pub flags: u32,
    /// Longest packet.
    pub mtu: u32,
    /// Longest queue.
    pub queue_length: u32,
    /// Group.
    pub group: u32,
    /// Hardware address.
    #[serde(default)]
    pub address: Bytes,
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Every network namespace has it, such as the loopback.
    Given,
    /// It throws away what is sent.
    Dummy,
    /// One end of a cable.
    Veth {
        /// Where the other end is.
        network: NetworkId,
        /// The other end's number there.
        index: u32,
    },
}

/// The body of a message of rtnetlink(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct NetworkEntry {
    /// Its fixed part.
    pub header: Bytes,
    /// Types and values of its attributes.
    pub attributes: Vec<(u16, Bytes)>,
}
