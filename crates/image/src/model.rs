//! The schema of an image's metadata: every object a checkpoint saves.
//!
//! Encoded as one CBOR map (see `docs/image-format.md`); field names are the schema. Readers ignore fields they do not
//! know and give fields they miss their default, so both old and new readers survive; an unknown *variant* of an
//! enumeration is an object the reader cannot restore, and is refused by name.
//!
//! Identifiers are those of the checkpointed job's own PID namespace. Times are nanoseconds unless a name says
//! otherwise. Page data are not here: [`Extent`]s point into the data area of the file.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Raw bytes: a CBOR byte string; hexadecimal in JSON.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

/// A path or name as the kernel has it: any bytes. A CBOR byte string; text in JSON (lossy where it is not UTF-8).
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteString(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.0.len())
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl ByteString {
    /// The bytes as a path.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

impl<T: AsRef<std::ffi::OsStr> + ?Sized> From<&T> for ByteString {
    fn from(text: &T) -> Self {
        use std::os::unix::ffi::OsStrExt;
        ByteString(text.as_ref().as_bytes().to_vec())
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
        Ok(v.to_vec())
    }

    fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(v)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            let mut text = String::with_capacity(self.0.len() * 2);
            for byte in &self.0 {
                text.push_str(&format!("{byte:02x}"));
            }
            s.serialize_str(&text)
        } else {
            s.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            if !text.is_ascii() || text.len() % 2 != 0 {
                return Err(serde::de::Error::custom("not an even number of hexadecimal digits"));
            }
            (0..text.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(serde::de::Error::custom))
                .collect::<Result<Vec<u8>, _>>()
                .map(Bytes)
        } else {
            d.deserialize_byte_buf(BytesVisitor).map(Bytes)
        }
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.serialize_str(&String::from_utf8_lossy(&self.0))
        } else {
            s.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d).map(|s| ByteString(s.into_bytes()))
        } else {
            d.deserialize_byte_buf(BytesVisitor).map(ByteString)
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into the manifest's table of that name.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(
    /// Index into [`Manifest::files`].
    FileId
);
id!(
    /// Index into [`Manifest::address_spaces`].
    AddressSpaceId
);
id!(
    /// Index into [`Manifest::mapped_files`].
    MappedFileId
);
id!(
    /// Index into [`Manifest::saved_files`].
    SavedFileId
);
id!(
    /// Index into [`Manifest::pipes`].
    PipeId
);
id!(
    /// Index into [`Manifest::sockets`].
    SocketId
);
id!(
    /// Index into [`Manifest::inet_sockets`].
    InetSocketId
);
id!(
    /// Index into [`Manifest::packet_sockets`].
    PacketSocketId
);
id!(
    /// Index into [`Manifest::terminals`].
    TerminalId
);
id!(
    /// Index into [`Manifest::host_names`].
    HostNamesId
);
id!(
    /// Index into [`Manifest::networks`].
    NetworkId
);
id!(
    /// Index into [`Manifest::ipc_namespaces`].
    IpcNamespaceId
);
id!(
    /// Which one of [`Manifest::cgroup_namespaces`] it is.
    CgroupNamespaceId
);
id!(
    /// Index into [`Manifest::pid_namespaces`].
    PidNamespaceId
);
id!(
    /// Index into [`Manifest::user_namespaces`].
    UserNamespaceId
);
id!(
    /// Index into [`Manifest::mount_namespaces`].
    MountNamespaceId
);
id!(
    /// Index into [`Ipc::segments`].
    SegmentId
);
id!(
    /// Index into [`Ipc::posix_queues`].
    PosixQueueId
);

/// Everything an image says besides page data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Manifest {
    /// When, where, by and of whom.
    pub checkpoint: Checkpoint,
    /// All processes, every parent before its children.
    pub processes: Vec<Process>,
    /// Address spaces, one per process that is not a zombie.
    pub address_spaces: Vec<AddressSpace>,
    /// Files that are mapped, and what they must look like at restart.
    pub mapped_files: Vec<MappedFile>,
    /// Open file descriptions; descriptors refer to them, so sharing is kept.
    pub files: Vec<OpenFile>,
    /// Files whose contents the image carries: deleted files, memfds, shared anonymous memory.
    pub saved_files: Vec<SavedFile>,
    /// Pipes and FIFOs with the data in them.
    pub pipes: Vec<Pipe>,
    /// UNIX sockets.
    pub sockets: Vec<UnixSocket>,
    /// IP sockets.
    pub inet_sockets: Vec<InetSocket>,
    /// Packet sockets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packet_sockets: Vec<PacketSocket>,
    /// Pseudo-terminals.
    pub terminals: Vec<Terminal>,
    /// System V and POSIX objects for communication between processes.
    pub ipc: Ipc,
    /// Files whose contents are treated as was asked for, whether they are open or not (LBNL-3.9.8.2).
    pub file_policies: Vec<FilePolicy>,
    /// Processes that are in a control group below that of the job's first one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<CgroupMember>,
    /// Namespaces for host names (UTS) that the job has made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_names: Vec<HostNames>,
    /// Network namespaces that the job has made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// IPC namespaces that the job has made. What is in them is in `ipc`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipc_namespaces: Vec<IpcNamespace>,
    /// How many cgroup namespaces the job has made. The root of each is the group that the job's first process is in.
    pub cgroup_namespaces: u32,
    /// PID namespaces that the job has made, each after the one it is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pid_namespaces: Vec<PidNamespace>,
    /// User namespaces that the job has made, each after the one it is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_namespaces: Vec<UserNamespace>,
    /// The user namespace that each of the cgroup namespaces belongs to, where any belongs to one that is not the job's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroup_namespace_owners: Vec<Option<UserNamespaceId>>,
    /// Mount namespaces that the job has made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount_namespaces: Vec<MountNamespace>,
    /// Images whose page data this one refers to: the one it was made after, then all that one refers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

impl Manifest {
    /// All extents: of mappings, saved files and System V segments.
    pub fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents_but(|_, _| false)
    }

    /// The same without those of mappings that `skip` tells of, given the number of the address space and the mapping.
    pub fn extents_but(&self, skip: impl Fn(usize, &Mapping) -> bool) -> impl Iterator<Item = &Extent> {
        let spaces = self.address_spaces.iter().enumerate();
        let mappings = spaces.flat_map(|(number, space)| space.mappings.iter().map(move |mapping| (number, mapping)));
        let mapped = mappings
            .filter(move |(number, mapping)| !skip(*number, mapping))
            .flat_map(|(_, mapping)| &mapping.extents);
        let segments = self.ipc.segments.iter().flat_map(|segment| &segment.extents);
        let points = self.mount_namespaces.iter().flat_map(|namespace| &namespace.tree);
        let in_memory = points.flat_map(|point| match &point.mounted {
            Mounted::Memory { files, .. } => files.as_slice(),
            _ => &[],
        });
        let in_memory = in_memory.filter_map(|file| match &file.kind {
            MemoryFileKind::Regular { extents, .. } => Some(extents),
            _ => None,
        });
        mapped
            .chain(self.saved_files.iter().flat_map(|file| &file.extents))
            .chain(segments)
            .chain(in_memory.flatten())
    }

    pub(crate) fn extents_mut(&mut self) -> impl Iterator<Item = &mut Extent> {
        let spaces = self.address_spaces.iter_mut().flat_map(|space| &mut space.mappings);
        let mapped = spaces.flat_map(|mapping| &mut mapping.extents);
        let segments = self.ipc.segments.iter_mut().flat_map(|segment| &mut segment.extents);
        let namespaces = self.mount_namespaces.iter_mut();
        let points = namespaces.flat_map(|namespace| &mut namespace.tree);
        let in_memory = points.flat_map(|point| match &mut point.mounted {
            Mounted::Memory { files, .. } => files.as_mut_slice(),
            _ => &mut [],
        });
        let in_memory = in_memory.filter_map(|file| match &mut file.kind {
            MemoryFileKind::Regular { extents, .. } => Some(extents),
            _ => None,
        });
        mapped
            .chain(self.saved_files.iter_mut().flat_map(|file| &mut file.extents))
            .chain(segments)
            .chain(in_memory.flatten())
    }
}

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
    /// All that is mounted in it, the root first; empty for a copy of the job's own namespace. Then `private` and `proc`
    /// say nothing.
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
}

/// An option of a file system: its name and value.
pub type MountOption = (String, String);

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

/// Users or groups that a user namespace has: the first one's number there, the same one's in the namespace around it, and
/// how many there are.
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

/// An image that another one refers to. Extents with an offset of `n` times [`crate::ANCESTOR_STRIDE`] and more, `n`
/// from 1 on, refer to ancestor `n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Ancestor {
    /// Identifier, 16 bytes.
    pub id: Bytes,
    /// Root hash, 32 bytes.
    pub root_hash: Bytes,
    /// Absolute path at the time.
    pub path: ByteString,
    /// Page data in it, before they were compressed, bytes.
    pub data_bytes: u64,
}

/// Facts about the checkpoint as a whole (LBNL-3.6.3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Checkpoint {
    /// Wall-clock time at which the job was stopped, nanoseconds since the epoch.
    pub time_ns: u64,
    /// CLOCK_MONOTONIC of the job at the same instant.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME, likewise.
    pub boottime_ns: u64,
    /// Version of the program that wrote the image.
    pub tool_version: String,
    /// Name of the engine that wrote it: `native`.
    pub engine: String,
    /// Name of the job, empty for a checkpoint of a bare process.
    pub job: String,
    /// File that the output of a job in the background went into; restarted as another job, it goes to that one's. Empty
    /// where there is none.
    pub log: ByteString,
    /// Real user ID of who asked for the checkpoint.
    pub initiator_uid: u32,
    /// User the image belongs to: the real user ID of the root process.
    pub owner_uid: u32,
    /// Group of that user.
    pub owner_gid: u32,
    /// uname(2).
    pub uname: Uname,
    /// Machine architecture, for example `x86_64`.
    pub architecture: String,
    /// XSAVE components enabled on the machine (XCR0).
    pub xstate_features: u64,
    /// Processor features (`flags` of /proc/cpuinfo) the machine had.
    pub cpu_flags: Vec<String>,
    /// Page size in bytes.
    pub page_size: u32,
    /// The job lived in a PID namespace of its own.
    pub own_pid_namespace: bool,
    /// The job lived in an IPC namespace of its own.
    pub own_ipc_namespace: bool,
    /// PID of the process the checkpoint was asked for.
    pub root_pid: i32,
    /// Session the checkpoint was asked for; zero for that of a process.
    pub session: i32,
    /// Length in bytes of the `[vdso]` mapping and of the vvar mappings before it; restart needs the same layout.
    pub vdso_length: u64,
    /// Hash (BLAKE3) of the vdso's contents.
    pub vdso_hash: Bytes,
    /// How long the job was stopped, nanoseconds; zero when it was ended by the checkpoint.
    pub freeze_ns: u64,
    /// Identifier of the image that this one was made from by editing; empty for one that a checkpoint wrote.
    pub edited_from: String,
}

/// uname(2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Uname {
    pub sysname: String,
    pub nodename: String,
    pub release: String,
    pub version: String,
    pub machine: String,
}

/// What a process was doing when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// Running or blocked in a system call.
    #[default]
    Running,
    /// Stopped by this job-control signal.
    Stopped(i32),
    /// Dead and not yet waited for; the wait(2) status.
    Zombie(i32),
}

/// One process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Process {
    /// PID in the job's PID namespace.
    pub pid: i32,
    /// Parent; for the root process and for orphans a PID that is not in the image.
    pub ppid: i32,
    /// Process group; may name a group without leader, or (0 or a foreign number) one outside the job.
    pub pgid: i32,
    /// Session; like `pgid`.
    pub sid: i32,
    /// State.
    pub state: ProcessState,
    /// Threads, the leader first. Empty for a zombie.
    pub threads: Vec<Thread>,
    /// Memory; none for a zombie.
    pub address_space: Option<AddressSpaceId>,
    /// Open descriptors in ascending order.
    pub descriptors: Vec<Descriptor>,
    /// It shares its parent's table of descriptors (CLONE_FILES); `descriptors` is empty then.
    pub shares_descriptors: bool,
    /// Working directory.
    pub cwd: ByteString,
    /// The working directory where it has been deleted: an empty one, made again and removed. `cwd` then has
    /// its former path.
    pub cwd_saved: Option<SavedFileId>,
    /// Root directory.
    pub root: ByteString,
    /// The root directory where nothing is in it any more: an empty one, made again and removed. `root` then has its
    /// former path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_saved: Option<SavedFileId>,
    /// The namespace for host names it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_names: Option<HostNamesId>,
    /// The network namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// The IPC namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc_namespace: Option<IpcNamespaceId>,
    /// The cgroup namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_namespace: Option<CgroupNamespaceId>,
    /// The PID namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<PidNamespaceId>,
    /// The PID namespace that its children are born into, where that is not its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace_of_children: Option<PidNamespaceId>,
    /// The mount namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// The user namespace it is in, where that is not the job's. Its credentials are those that the job's sees, but for
    /// its capabilities, which are over its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespaceId>,
    /// File mode creation mask.
    pub umask: u32,
    /// The sixteen resource limits in the kernel's order.
    pub limits: Vec<Limit>,
    /// Signal actions that are not the default.
    pub signal_actions: Vec<SignalAction>,
    /// siginfo_t (128 bytes) of signals pending for the whole process.
    pub pending_signals: Vec<Bytes>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub interval_timers: Vec<IntervalTimer>,
    /// timer_create(2) timers.
    pub posix_timers: Vec<PosixTimer>,
    /// POSIX record locks (fcntl F_SETLK) held by the process.
    pub posix_locks: Vec<PosixLock>,
    /// prctl(PR_SET_DUMPABLE).
    pub dumpable: u32,
    /// prctl(PR_SET_CHILD_SUBREAPER).
    pub child_subreaper: bool,
    /// Kinds of membarrier(2) the process has registered for: a sum of MEMBARRIER_CMD_REGISTER_*.
    pub membarrier: u32,
    /// prctl(PR_SET_THP_DISABLE).
    pub thp_disabled: bool,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/PID/loginuid; none where no user has logged in.
    pub login_user: Option<u32>,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// personality(2).
    pub personality: u64,
    /// prctl(PR_SET_MDWE).
    pub memory_deny_write_execute: u32,
    /// Nice value of the session's autogroup; only of session leaders.
    pub autogroup_nice: i32,
    /// Whether the process has a controlling terminal, and which.
    pub controlling_terminal: Option<TerminalId>,
    /// Resources used so far (LBNL-3.9.7.1.1); informational, accounting restarts from zero.
    pub accounting: Accounting,
}

/// Resources used before the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Accounting {
    pub user_ns: u64,
    pub system_ns: u64,
    pub children_user_ns: u64,
    pub children_system_ns: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub peak_rss_kib: u64,
    /// Nanoseconds from the start of the process to the checkpoint.
    pub elapsed_ns: u64,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Thread {
    /// Thread ID.
    pub tid: i32,
    /// /proc/PID/task/TID/comm.
    pub name: ByteString,
    /// Processor state, with interrupted system calls already set up to be restarted.
    pub cpu: Cpu,
    /// How the interrupted system call goes on.
    pub sleep: Option<TimedSleep>,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked_signals: u64,
    /// siginfo_t of signals pending for this thread.
    pub pending_signals: Vec<Bytes>,
    /// sigaltstack(2): address, flags, size.
    pub alternate_stack: (u64, i32, u64),
    /// set_robust_list(2): head and length.
    pub robust_list: (u64, u64),
    /// set_tid_address(2).
    pub clear_child_tid: u64,
    /// Restartable-sequence registration; none if not registered.
    pub rseq: Option<Rseq>,
    /// Scheduling.
    pub scheduling: Scheduling,
    /// prctl(PR_SET_PDEATHSIG).
    pub parent_death_signal: i32,
    /// prctl(PR_SET_TIMERSLACK), nanoseconds.
    pub timer_slack_ns: u64,
    /// Credentials.
    pub credentials: Credentials,
    /// Working directory, root and umask of a thread that does not share its process's.
    pub directories: Option<Directories>,
    /// System calls it may make.
    pub seccomp: Seccomp,
    /// set_mempolicy(2): where its new pages go.
    pub memory_policy: MemoryPolicy,
    /// prctl(PR_SET_TSC, PR_TSC_SIGSEGV): reading the time-stamp counter is refused.
    pub tsc_refused: bool,
    /// arch_prctl(ARCH_SET_CPUID, 0): the CPUID instruction is refused.
    pub cpuid_refused: bool,
    /// prctl(PR_MCE_KILL): 0 late, 1 early; none where it is the machine's.
    pub machine_check_policy: Option<u32>,
    /// prctl(PR_SET_IO_FLUSHER).
    pub io_flusher: bool,
    /// prctl(PR_GET_SPECULATION_CTRL) of store bypass, indirect branches and L1D flush, in this order.
    pub speculation: Vec<u32>,
}

/// Where paths begin, and the file mode creation mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Directories {
    /// Working directory.
    pub cwd: ByteString,
    /// Root directory.
    pub root: ByteString,
    /// File mode creation mask.
    pub umask: u32,
}

/// seccomp(2) of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// All calls.
    #[default]
    Off,
    /// SECCOMP_MODE_STRICT: only read, write, _exit and rt_sigreturn.
    Strict,
    /// Filters, the first installed first.
    Filters(Vec<SeccompFilter>),
}

/// One seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SeccompFilter {
    /// SECCOMP_FILTER_FLAG_* it was installed with, as far as they last.
    pub flags: u64,
    /// Array of `struct sock_filter`, 8 bytes each.
    pub program: Bytes,
}

/// set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_* flags; zero is the default.
    pub mode: u32,
    /// Mask of memory nodes.
    pub nodes: Bytes,
}

/// A relative-timeout system call that had this much time left when the thread was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TimedSleep {
    /// System call number.
    pub syscall: i64,
    /// Time left in nanoseconds.
    pub remaining_ns: u64,
}

/// Processor state of a thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Cpu {
    /// NT_PRSTATUS register set: `struct user_regs_struct`.
    pub general: Bytes,
    /// NT_X86_XSTATE register set: XSAVE area in standard format, without the zeros at its end.
    pub extended: Bytes,
    /// Program counter, for listings.
    pub program_counter: u64,
    /// Stack pointer, for listings.
    pub stack_pointer: u64,
}

/// Restartable sequences, rseq(2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// sched_getattr(2), affinity, nice and I/O priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Scheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub io_priority: i32,
    /// CPU mask as sched_getaffinity(2) gives it.
    pub affinity: Bytes,
}

/// Identity and privileges of a thread (LBNL-3.9.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Credentials {
    /// Real, effective, saved, file-system user ID.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system group ID.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets as bit masks.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient set.
    pub ambient: u64,
    /// prctl(PR_GET_SECUREBITS).
    pub securebits: u32,
    /// prctl(PR_GET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
}

/// A file descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// Open file description.
    pub file: FileId,
    /// FD_CLOEXEC.
    #[serde(default)]
    pub close_on_exec: bool,
}

/// A resource limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Limit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// The kernel's `struct sigaction` for one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SignalAction {
    pub signal: i32,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// setitimer(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct IntervalTimer {
    /// ITIMER_REAL (0), ITIMER_VIRTUAL (1), ITIMER_PROF (2).
    pub which: i32,
    /// Time left in microseconds; zero when disarmed.
    pub value_us: u64,
    /// Period in microseconds.
    pub interval_us: u64,
}

/// A timer_create(2) timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PosixTimer {
    /// Kernel timer ID.
    pub id: i32,
    /// Clock ID as the kernel has it (CPU clocks are negative numbers holding a PID).
    pub clock: i32,
    /// SIGEV_SIGNAL (0), SIGEV_NONE (1) or SIGEV_SIGNAL|SIGEV_THREAD_ID (4).
    pub notify: i32,
    /// Signal sent.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread notified with SIGEV_THREAD_ID.
    pub thread: i32,
    /// Time left, nanoseconds; zero when disarmed.
    pub value_ns: u64,
    /// Period, nanoseconds.
    pub interval_ns: u64,
    /// Overrun count at checkpoint (informational).
    pub overrun: i32,
}

/// A POSIX record lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PosixLock {
    /// A descriptor of the process open on the locked file.
    pub fd: i32,
    /// Exclusive (F_WRLCK) rather than shared (F_RDLCK).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Number of bytes; zero is to the end of file.
    pub length: u64,
}

/// Memory of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct AddressSpace {
    /// prctl(PR_SET_MM_MAP): code, data, heap, stack, argument and environment bounds.
    pub layout: MemoryLayout,
    /// The executable (/proc/PID/exe).
    pub executable: Option<MappedFileId>,
    /// The executable where its contents are in the image.
    pub saved_executable: Option<SavedFileId>,
    /// Mappings in ascending order.
    pub mappings: Vec<Mapping>,
    /// mlockall(2) flags for mappings to come: MCL_FUTURE 2, with MCL_ONFAULT 4; zero for none.
    pub lock_future: u32,
}

/// `struct prctl_mm_map`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct MemoryLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: Bytes,
}

/// One mapping of an address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub protection: u32,
    /// What is mapped.
    pub kind: MappingKind,
    /// Offset of `start` in the mapped object, bytes.
    #[serde(default)]
    pub offset: u64,
    /// VmFlags of /proc/PID/smaps that matter at restart, two letters each (`gd`, `lo`, `hg`, …).
    #[serde(default)]
    pub flags: Vec<String>,
    /// Saved pages: addresses. Pages without extent are untouched (zero, or as in the file).
    #[serde(default)]
    pub extents: Vec<Extent>,
    /// Pages guarded by MADV_GUARD_INSTALL: address and length in bytes.
    #[serde(default)]
    pub guards: Vec<(u64, u64)>,
}

/// What a mapping maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MappingKind {
    /// Private anonymous memory, heap included.
    Anonymous,
    /// A stack that grows down (MAP_GROWSDOWN).
    Stack,
    /// The kernel's vdso code.
    Vdso,
    /// The kernel's vvar data.
    Vvar,
    /// The kernel's vvar_vclock data.
    VvarClock,
    /// Private (copy-on-write) mapping of a file.
    PrivateFile(MappedFileId),
    /// Shared mapping of a file; its pages live in the file.
    SharedFile(MappedFileId),
    /// Shared mapping of a file whose contents the image carries (memfd, shared anonymous, deleted).
    SharedSaved(SavedFileId),
    /// Private mapping of such a file.
    PrivateSaved(SavedFileId),
    /// Private memory in explicit huge pages (MAP_HUGETLB) of so many bytes.
    HugePages(u64),
    /// A System V segment, or a part of it; `mw` among the flags: attached for writing.
    SysvSegment(SegmentId),
    /// Shared mapping of a packet socket: its rings, both as a whole.
    SharedSocket(PacketSocketId),
    /// Private mapping of a packet socket.
    PrivateSocket(PacketSocketId),
    /// The ring of a context for kernel asynchronous I/O (io_setup), in which nothing is under way; all its pages are
    /// saved.
    AioRing,
}

/// A run of bytes saved in the data area of an image. Encoded as an array of three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u64)", into = "(u64, u64, u64)")]
pub struct Extent {
    /// Address in the mapping's process, or offset in the saved file. A multiple of the page size.
    pub start: u64,
    /// Length in bytes, a multiple of the page size.
    pub length: u64,
    /// Position in the image file, a multiple of the page size.
    pub offset: u64,
}

impl From<(u64, u64, u64)> for Extent {
    fn from((start, length, offset): (u64, u64, u64)) -> Self {
        Extent { start, length, offset }
    }
}

impl From<Extent> for (u64, u64, u64) {
    fn from(e: Extent) -> Self {
        (e.start, e.length, e.offset)
    }
}

/// A file that is mapped, by name, with what must be unchanged at restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MappedFile {
    /// Absolute path.
    pub path: ByteString,
    /// Open for writing (needed by shared writable mappings).
    pub writable: bool,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// GNU build ID, empty where the file has none.
    pub build_id: Bytes,
    /// The contents must be the same at restart (programs and libraries), not only long enough.
    pub unchangeable: bool,
    /// The image carries its contents: POSIX shared memory, made again or filled again at restart.
    pub contents: Option<SavedFileId>,
    /// The mount namespace that the path is of, where that is not the job's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
}

/// An open file description (`struct file`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// O_* access mode and status flags as F_GETFL gives them, without O_CLOEXEC.
    pub flags: i32,
    /// File offset; zero where the object has none.
    #[serde(default)]
    pub position: u64,
    /// F_SETOWN_EX and F_SETSIG, where set.
    #[serde(default)]
    pub owner: Option<FileOwner>,
    /// flock(2) lock or lease-free lock held by the description.
    #[serde(default)]
    pub flock: Option<FlockKind>,
    /// The process that called flock(2) or took the lease; zero if not known.
    #[serde(default)]
    pub locker: i32,
    /// Lease (fcntl F_SETLEASE) of this description.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// Open-file-description locks (F_OFD_SETLK): exclusive, start, length.
    #[serde(default)]
    pub ofd_locks: Vec<(bool, u64, u64)>,
    /// The mount namespace that its path is of, where that is not the job's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// What is open.
    pub object: Object,
}

/// flock(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum FlockKind {
    Shared,
    Exclusive,
}

/// A lease on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// A write lease, as opposed to a read lease.
    pub exclusive: bool,
    /// What it has to become, where somebody waits for it to be given up.
    #[serde(default)]
    pub breaking: Option<LeaseTarget>,
}

/// What a lease that is being broken has to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseTarget {
    /// A read lease.
    Read,
    /// None.
    None,
}

/// fcntl F_SETOWN_EX, F_SETSIG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// Identifier.
    pub id: i32,
    /// F_SETSIG signal.
    pub signal: i32,
}

/// The kernel object behind an open file description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// A regular file with a name.
    Regular(RegularFile),
    /// A directory.
    Directory {
        /// Absolute path.
        path: ByteString,
    },
    /// A file whose contents the image carries: deleted, or a memfd.
    Saved(SavedFileId),
    /// One end of a pipe; the access mode in `flags` says which.
    Pipe(PipeId),
    /// A FIFO, by name.
    Fifo(Fifo),
    /// A character device that keeps no state: null, zero, full, random, urandom, tty.
    Device {
        /// Path it was opened by.
        path: ByteString,
        /// Device number, makedev(3).
        rdev: u64,
        /// Mode, owner and group of a node whose name is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<(u32, u32, u32)>,
    },
    /// A file below /proc/PID of a process in the image, or of /proc itself.
    Proc {
        /// The process, none for a file that belongs to no process (such as /proc/meminfo).
        pid: Option<i32>,
        /// Path below /proc/PID/, or below /proc/.
        path: ByteString,
    },
    /// The same, open for reading, of a process that had ended and been waited for.
    DeadProc {
        /// The process.
        pid: i32,
        /// Path below /proc/PID/; empty for the directory itself.
        path: ByteString,
    },
    /// eventfd(2).
    EventFd {
        /// Counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// timerfd(2).
    TimerFd {
        /// Clock ID.
        clock: i32,
        /// Expirations not yet read.
        ticks: u64,
        /// TFD_TIMER_* flags of timerfd_settime.
        settime_flags: i32,
        /// Time left, nanoseconds; zero when disarmed.
        value_ns: u64,
        /// Period, nanoseconds.
        interval_ns: u64,
    },
    /// signalfd(2).
    SignalFd {
        /// Signals accepted, bit n-1 for signal n.
        mask: u64,
    },
    /// epoll(7).
    Epoll {
        /// Registered descriptors.
        targets: Vec<EpollTarget>,
    },
    /// inotify(7).
    Inotify {
        /// Watches.
        watches: Vec<InotifyWatch>,
        /// Events queued and not read, as read(2) would return them.
        queued: Bytes,
    },
    /// pidfd_open(2) of a process in the image.
    PidFd {
        /// The process.
        pid: i32,
    },
    /// pidfd_open(2) of a process that had ended and been waited for.
    DeadPidFd {
        /// Descriptors of the same process have the same number.
        process: u64,
    },
    /// A UNIX socket.
    Socket(SocketId),
    /// An IP socket: TCP, UDP, ping or raw.
    InetSocket(InetSocketId),
    /// A netlink socket whose queue was empty.
    NetlinkSocket(NetlinkSocket),
    /// A packet socket.
    PacketSocket(PacketSocketId),
    /// A fanotify(7) group.
    Fanotify(Fanotify),
    /// The slave side of a pseudo-terminal.
    TerminalSlave(TerminalId),
    /// The master side of a pseudo-terminal.
    TerminalMaster(TerminalId),
    /// A POSIX message queue.
    MessageQueue(PosixQueueId),
    /// A standard stream (0, 1 or 2) that belongs to whoever started the job: its terminal or a pipe to outside.
    /// Restart puts the stream of whoever restarts in its place (LBNL-3.9.8.1.3, LBNL-3.9.8.1.4).
    Inherited {
        /// 0, 1 or 2.
        stream: i32,
    },
}

/// A regular file with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct RegularFile {
    /// Absolute path.
    pub path: ByteString,
    /// Size at checkpoint, bytes.
    pub size: u64,
    /// Modification time at checkpoint, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Mode bits.
    pub mode: u32,
}

/// What becomes of a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum FileContent {
    /// As for files without a policy.
    #[default]
    Default,
    /// They must be the same at restart.
    Check,
    /// They may have changed.
    Nocheck,
    /// They may have changed; the job goes on at the end.
    Append,
    /// They are in the image, and are put back in place at restart.
    BackupRestore,
    /// They are in the image; a restarted job has them as a file without name.
    BackupAnonymous,
}

/// How one file is treated, and what it was like at the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct FilePolicy {
    /// Absolute path.
    pub path: ByteString,
    /// What becomes of the contents.
    pub content: FileContent,
    /// Whether the file gets its saved length at restart; none as for files without a policy.
    pub truncate: Option<bool>,
    /// Size at checkpoint, bytes.
    pub size: u64,
    /// Modification time at checkpoint, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// BLAKE3 hash of the contents, with `check`; else empty.
    pub hash: Bytes,
    /// The contents, with `backup-restore`.
    pub saved: Option<SavedFileId>,
}

/// A named pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fifo {
    /// Absolute path.
    pub path: ByteString,
    /// Mode, owner and group, to create it again if it is missing (LBNL-3.9.6.1.4).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Its contents.
    pub pipe: PipeId,
}

/// One registration in an epoll set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// Descriptor number used at registration.
    pub fd: i32,
    /// Open file description registered.
    pub file: FileId,
    /// EPOLL* events and flags.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// One inotify watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// IN_* mask.
    pub mask: u32,
    /// Path watched; of a deleted file where it was.
    pub path: ByteString,
    /// A deleted file that the job has open.
    pub saved: Option<SavedFileId>,
}

/// A fanotify group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanotify {
    /// FAN_* of fanotify_init(2).
    pub flags: u32,
    /// O_* of descriptors that come with events.
    #[serde(default)]
    pub event_flags: u32,
    /// What is watched.
    #[serde(default)]
    pub marks: Vec<FanotifyMark>,
}

/// One mark of a fanotify group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanotifyMark {
    /// What it is on.
    pub kind: FanotifyMarkKind,
    /// Path of that; of a deleted file where it was, of a mount or file system where it is mounted.
    pub path: ByteString,
    /// A deleted file that the job has open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<SavedFileId>,
    /// FAN_MARK_* that say how it is treated.
    #[serde(default)]
    pub flags: u32,
    /// Events that are wanted, FAN_*.
    #[serde(default)]
    pub mask: u64,
    /// Events that are not.
    #[serde(default)]
    pub ignored_mask: u64,
}

/// What a fanotify mark is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FanotifyMarkKind {
    /// A file or directory.
    Inode,
    /// A mount.
    Mount,
    /// A file system.
    FileSystem,
}

/// A file whose contents are in the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedFile {
    /// How to make it again.
    pub kind: SavedFileKind,
    /// Size in bytes.
    pub size: u64,
    /// Mode bits.
    #[serde(default)]
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
    /// Saved ranges: file offsets. Ranges without extent are holes.
    #[serde(default)]
    pub extents: Vec<Extent>,
    /// Time of the last modification, nanoseconds since 1970.
    #[serde(default)]
    pub mtime_ns: Option<i64>,
}

/// Kinds of [`SavedFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedFileKind {
    /// A file that was deleted while open or mapped; where it was.
    Deleted {
        /// Former absolute path; its directory must exist.
        path: ByteString,
    },
    /// A deleted directory; empty.
    DeletedDirectory {
        /// Where it was.
        path: ByteString,
    },
    /// A deleted symbolic link, open with O_PATH.
    DeletedLink {
        /// Where it was.
        path: ByteString,
        /// What it says.
        target: ByteString,
    },
    /// memfd_create(2).
    Memfd {
        /// Name without the `memfd:` prefix.
        name: ByteString,
        /// F_ADD_SEALS seals.
        seals: u32,
    },
    /// Shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS).
    SharedAnonymous,
    /// A file of /dev/shm: shm_open(3), sem_open(3).
    SharedMemory {
        /// Absolute path.
        path: ByteString,
    },
    /// A file with a name, which is put back in its place at restart.
    Backup {
        /// Absolute path; its directory must exist.
        path: ByteString,
    },
}

/// A pipe's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Pipe {
    /// Capacity in bytes (F_GETPIPE_SZ).
    pub capacity: u32,
    /// Queued data; one element per packet for an O_DIRECT pipe, else a single element or none.
    pub data: Vec<Bytes>,
}

/// A UNIX socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5.
    pub kind: i32,
    /// What it is connected to.
    pub state: SocketState,
    /// Bound address as in sun_path (an abstract name starts with a zero byte); empty when unbound.
    #[serde(default)]
    pub address: ByteString,
    /// The mount namespace that its address is a path of, where that is not the job's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<MountNamespaceId>,
    /// Working directory that a relative address was bound in.
    #[serde(default)]
    pub bind_directory: ByteString,
    /// shutdown(2): bit 0 receive side, bit 1 send side.
    #[serde(default)]
    pub shutdown: u32,
    /// Socket options that are restored: SOL_SOCKET option number and value.
    #[serde(default)]
    pub options: Vec<(i32, i64)>,
    /// Messages waiting to be received.
    #[serde(default)]
    pub queue: Vec<SocketMessage>,
    /// Socket file: mode, owner, group; none where there is no file.
    #[serde(default)]
    pub node: Option<(u32, u32, u32)>,
}

/// Connection state of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketState {
    /// Not connected, perhaps bound.
    Unconnected,
    /// Connected to another socket of the image (for a pair each names the other).
    Connected(SocketId),
    /// Was connected; the peer has closed.
    PeerClosed,
    /// Listening; the backlog, and sockets connected but not yet accepted.
    Listening {
        /// listen(2) backlog.
        backlog: u32,
        /// Client ends waiting to be accepted, oldest first.
        pending: Vec<SocketId>,
    },
}

/// A message in a socket's receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SocketMessage {
    /// Contents.
    pub data: Bytes,
    /// Open file descriptions in flight (SCM_RIGHTS).
    pub files: Vec<FileId>,
    /// Sender's bound address, for datagrams.
    pub sender: ByteString,
}

/// A socket option: level, number, and the value as getsockopt(2) gives it.
pub type SocketOption = (i32, i32, Bytes);

/// An IP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InetSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// AF_INET 2, AF_INET6 10.
    pub family: i32,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3.
    pub kind: i32,
    /// IPPROTO_*.
    pub protocol: i32,
    /// What it is connected to.
    pub state: InetState,
    /// Address and port it is bound to.
    #[serde(default)]
    pub local: Option<Endpoint>,
    /// Options that differ from those of a new socket.
    #[serde(default)]
    pub options: Vec<SocketOption>,
    /// Of a stream: bytes received and not yet read.
    #[serde(default)]
    pub received: Bytes,
    /// Of others: datagrams received and not yet read.
    #[serde(default)]
    pub queue: Vec<Datagram>,
    /// shutdown(2): bit 0 receive side, bit 1 send side.
    #[serde(default)]
    pub shutdown: u32,
}

/// An address and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Four or sixteen bytes.
    pub address: Bytes,
    /// Port number.
    pub port: u16,
    /// Interface of a link-local IPv6 address, else zero.
    #[serde(default)]
    pub scope: u32,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::net::{IpAddr, SocketAddr};
        let bytes = self.address.0.as_slice();
        let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        match ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)) {
            Ok(ip) => SocketAddr::new(ip.to_canonical(), self.port).fmt(f),
            Err(_) => f.write_str("an impossible address"),
        }
    }
}

/// A datagram in a receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Contents.
    pub data: Bytes,
    /// Where it came from.
    pub sender: Endpoint,
}

/// Connection state of an IP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InetState {
    /// Not connected, perhaps bound.
    Unconnected,
    /// Not a stream, and connect(2)ed: takes datagrams from there only.
    Associated {
        /// The other side.
        remote: Endpoint,
    },
    /// A stream that listens.
    Listening {
        /// listen(2) backlog.
        backlog: u32,
    },
    /// A stream whose other end is in the image, too.
    Inner {
        /// The other end; both name each other.
        peer: InetSocketId,
        /// Its address as this end sees it.
        remote: Endpoint,
    },
    /// A stream whose other end is in another job that was saved in the same stop. Nothing was on its way then.
    Channel {
        /// The other end's address as this end sees it.
        remote: Endpoint,
    },
    /// A stream on which connect(2) has begun; it begins again.
    Connecting {
        /// The other side.
        remote: Endpoint,
    },
    /// A stream that waits to be accepted from a listening socket of the image; nothing was sent yet.
    Waiting {
        /// The listening socket.
        listener: InetSocketId,
        /// Its address as this end sees it.
        remote: Endpoint,
    },
    /// A stream whose other end no process has open any more; this side can still be open.
    PeerClosed {
        /// Address the other end had.
        remote: Endpoint,
    },
    /// A stream that has ended in both directions.
    Ended {
        /// The next operation fails with ECONNRESET, as after a reset.
        reset: bool,
    },
    /// A stream to outside the job, to be continued.
    Outer(Box<TcpConnection>),
}

/// A TCP connection as TCP_REPAIR takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// The other side.
    pub remote: Endpoint,
    /// Sequence number after the last byte written.
    pub send_sequence: u32,
    /// Sequence number after the last byte received.
    pub receive_sequence: u32,
    /// Bytes written and not acknowledged.
    #[serde(default)]
    pub send_queue: Bytes,
    /// How many bytes at the end of `send_queue` were not sent yet.
    #[serde(default)]
    pub unsent: u32,
    /// TCPI_OPT_*: 1 timestamps, 2 selective acknowledgements, 4 window scaling.
    #[serde(default)]
    pub options: u32,
    /// Shift of the windows the other side announces.
    #[serde(default)]
    pub send_scale: u32,
    /// Shift of the windows announced to the other side.
    #[serde(default)]
    pub receive_scale: u32,
    /// Largest segment the other side takes.
    #[serde(default)]
    pub max_segment: u32,
    /// TCP_TIMESTAMP.
    #[serde(default)]
    pub timestamp: u32,
    /// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    #[serde(default)]
    pub window: [u32; 5],
    /// Whether the other side has sent its end. `receive_sequence` does not count it.
    #[serde(default)]
    pub peer_end: PeerEnd,
}

/// The end of what the other side of a connection sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerEnd {
    /// It has not come.
    #[default]
    Open,
    /// It came before our own was sent, if that was: CLOSE_WAIT, LAST_ACK.
    First,
    /// It came when our own was under way: CLOSING.
    Crossed,
}

/// A netlink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_RAW 3 or SOCK_DGRAM 2.
    pub kind: i32,
    /// NETLINK_*.
    pub protocol: i32,
    /// Port number it is bound to, 0 when not bound.
    #[serde(default)]
    pub port: u32,
    /// Multicast groups it is a member of.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Port number and groups it is connected to.
    #[serde(default)]
    pub peer: Option<(u32, u32)>,
    /// Options that differ from those of a new socket.
    #[serde(default)]
    pub options: Vec<SocketOption>,
}

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PacketSocket {
    /// Its network namespace, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
    /// SOCK_RAW 3, SOCK_DGRAM 2, or SOCK_PACKET 10.
    pub kind: i32,
    /// ETH_P_* it is bound to, 0 for none.
    pub protocol: u32,
    /// Name of the interface it is bound to; none for all.
    pub interface: Option<ByteString>,
    /// What interfaces receive for it.
    pub memberships: Vec<PacketMembership>,
    /// PACKET_COPY_THRESH.
    pub copy_threshold: u32,
    /// PACKET_FANOUT as the kernel shows it: number, type and flags; 0 for none.
    pub fanout: u32,
    /// Ring for packets that come.
    pub receive_ring: Option<PacketRing>,
    /// Ring for packets that go.
    pub send_ring: Option<PacketRing>,
    /// What is in the rings, which lie one behind the other: pieces and where they begin. The rest is zeros.
    pub ring_contents: Vec<(u64, Bytes)>,
    /// Options that differ from those of a new socket.
    pub options: Vec<SocketOption>,
}

/// What an interface receives for a packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketMembership {
    /// Name of the interface.
    pub interface: ByteString,
    /// How often it was asked for.
    pub count: u32,
    /// PACKET_MR_*
    pub kind: u32,
    /// Hardware address.
    #[serde(default)]
    pub address: Bytes,
}

/// A ring that a packet socket shares with its program: `struct tpacket_req`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRing {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames.
    pub frames: u32,
    /// The frame that the kernel fills next.
    #[serde(default)]
    pub next: u32,
}

/// A pseudo-terminal, or the terminal the job was started on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Terminal {
    /// Number below /dev/pts.
    pub index: u32,
    /// The file system of terminals it is of, where that is not the job's own /dev/pts: a mount namespace, and what is
    /// mounted there (an index into its `tree`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<(MountNamespaceId, u32)>,
    /// Of a console or a serial line: where it is, and its device number. It is opened where restart has no terminal.
    pub line: Option<(ByteString, u64)>,
    /// The master side is outside the job: restart supplies a terminal.
    pub external: bool,
    /// `struct termios2`.
    pub attributes: Bytes,
    /// Rows, columns, horizontal and vertical pixels.
    pub window: (u16, u16, u16, u16),
    /// Session whose controlling terminal it is; zero if none or not of the job.
    pub session: i32,
    /// Foreground process group.
    pub foreground_group: i32,
    /// TIOCGPTLCK.
    pub locked: bool,
    /// TIOCGPKT packet mode.
    pub packet_mode: bool,
    /// The job has the master alone, and the slave has been open and was closed: reading the master fails.
    pub slave_closed: bool,
    /// The master has been closed: the slaves that are open are dead.
    pub hung_up: bool,
    /// TIOCGEXCL.
    pub exclusive: bool,
    /// Typed and not yet read by the slave.
    pub input: Bytes,
    /// Written by the slave and not yet read by the master.
    pub output: Bytes,
    /// Mode, owner and group of the slave's node.
    pub node: (u32, u32, u32),
}

/// Objects of IPC namespaces. All of those that are the job's own, else what can be told to be the job's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Ipc {
    /// System V shared memory.
    pub segments: Vec<Segment>,
    /// System V semaphores.
    pub semaphores: Vec<SemaphoreSet>,
    /// System V message queues.
    pub queues: Vec<SysvQueue>,
    /// POSIX message queues.
    pub posix_queues: Vec<PosixQueue>,
}

/// What System V objects have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SysvIdentity {
    /// The IPC namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<IpcNamespaceId>,
    /// Identifier.
    pub id: i32,
    /// Key; zero for IPC_PRIVATE.
    pub key: i32,
    /// Permission bits; for segments also SHM_DEST (01000) and SHM_LOCKED (02000).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, seconds since the epoch.
    pub ctime: u64,
}

/// A System V shared memory segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Segment {
    /// Identity and owner.
    pub identity: SysvIdentity,
    /// Size in bytes.
    pub size: u64,
    /// Saved pages: offsets in the segment. Ranges without extent are zeros.
    pub extents: Vec<Extent>,
}

/// A System V semaphore set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SemaphoreSet {
    /// Identity and owner.
    pub identity: SysvIdentity,
    /// semop(2) was called on it (`sem_otime` is not zero).
    pub operated: bool,
    /// Of each semaphore the value, and the PID that operated on it last.
    pub semaphores: Vec<(u16, i32)>,
    /// Adjustments made when a process ends (SEM_UNDO): PID, semaphore, amount.
    pub undo: Vec<(i32, u16, i32)>,
}

/// A System V message queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct SysvQueue {
    /// Identity and owner.
    pub identity: SysvIdentity,
    /// Most bytes it holds.
    pub capacity: u64,
    /// Its messages, the oldest first: type and text.
    pub messages: Vec<(i64, Bytes)>,
}

/// A POSIX message queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct PosixQueue {
    /// The IPC namespace it is in, where that is not the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<IpcNamespaceId>,
    /// Name without the slash.
    pub name: ByteString,
    /// It was unlinked and is only open.
    pub unlinked: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Most messages it holds.
    pub max_messages: i64,
    /// Most bytes in a message.
    pub message_size: i64,
    /// Its messages in the order they are received: priority and data.
    pub messages: Vec<(u32, Bytes)>,
}
