//! The schema of an image's metadata: every object a checkpoint saves.
//!
//! Encoded as one CBOR map (see `docs/image-format.md`); field names are the schema. Readers ignore fields they do not
//! know and give fields they miss their default, so both old and new readers survive; an unknown *variant* of an
//! enumeration is an object the reader cannot restore, and is refused by name.
//!
//! Identifiers are those of the checkpointed job's own PID namespace. Times are nanoseconds unless a name says
//! otherwise. Page data are not here: [`Extent`]s point into the data area of the file.

use serde::{Deserialize, Serialize};

mod bytes;
mod files;
mod ids;
mod io_uring;
mod ipc;
mod memory;
mod namespaces;
mod process;
mod sockets;

pub use bytes::{ByteString, Bytes};
pub use files::{
    DevicePlugin, EpollTarget, Fanotify, FanotifyMark, FanotifyMarkKind, Fifo, FileContent, FileOwner, FilePolicy,
    FlockKind, InotifyWatch, Lease, LeaseTarget, Object, OpenFile, Pipe, RegularFile, SavedFile, SavedFileKind,
    Terminal,
};
pub use ids::{
    AddressSpaceId, CgroupNamespaceId, FileId, HostNamesId, InetSocketId, IoUringId, IpcNamespaceId, MappedFileId,
    MountNamespaceId, NetworkId, PacketSocketId, PidNamespaceId, PipeId, PosixQueueId, SavedFileId, SegmentId,
    SocketId, TerminalId, TimeNamespaceId, UserNamespaceId,
};
pub use io_uring::IoUring;
pub use ipc::{Ipc, PosixQueue, Segment, SemaphoreSet, SysvIdentity, SysvQueue};
pub use memory::{AddressSpace, Extent, MappedFile, Mapping, MappingKind, MemoryLayout};
pub use namespaces::{
    CgroupMember, HIERARCHY_OPTIONS, HostNames, IdRange, IpcNamespace, LAYER_OPTIONS, LinkKind, MemoryFile,
    MemoryFileKind, MountNamespace, MountOption, MountPoint, Mounted, Network, NetworkEntry, NetworkLink, PidNamespace,
    ProcMount, Propagation, Setting, TimeNamespace, UserNamespace,
};
pub use process::{
    Accounting, Cpu, Credentials, Descriptor, Directories, EndedLeader, IntervalTimer, Limit, MemoryPolicy, PosixLock,
    PosixTimer, Process, ProcessState, Rseq, Scheduling, Seccomp, SeccompFilter, SignalAction, Thread, TimedSleep,
};
pub use sockets::{
    Datagram, Endpoint, InetSocket, InetState, MulticastMembership, NetlinkSocket, PacketMembership, PacketRing,
    PacketSocket, PeerEnd, SocketMessage, SocketOption, SocketState, TcpConnection, UnixSocket,
};

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
    /// io_uring instances, in which nothing is under way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_urings: Vec<IoUring>,
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
    /// Time namespaces that the job has made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub time_namespaces: Vec<TimeNamespace>,
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
    /// The user namespace that each of the cgroup namespaces belongs to, where any belongs to one that is not the
    /// job's.
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
    /// File that the output of a job in the background went into; restarted as another job, it goes to that one's.
    /// Empty where there is none.
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
    /// Where XSAVE components are in the extended registers of threads; empty where it is not known.
    pub xstate_parts: Vec<XstatePart>,
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

/// Where an XSAVE component is in the standard format of the machine's processor, which may differ from that of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct XstatePart {
    /// Its number in XCR0.
    pub component: u32,
    /// Where it begins, bytes.
    pub offset: u32,
    /// How long it is, bytes.
    pub length: u32,
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

/// Whether a number is not written, since that is what it is when it is missing.
fn is_zero(number: &u64) -> bool {
    *number == 0
}
