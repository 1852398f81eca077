//! Memory of processes.

use serde::{Deserialize, Serialize};

use super::{
    ByteString, Bytes, IoUringId, MappedFileId, MemoryPolicy, MountNamespaceId, PacketSocketId, SavedFileId, SegmentId,
};

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
    /// mbind(2); none where the policy is that of the thread that touches a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<MemoryPolicy>,
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
    /// Shared mapping of an io_uring instance. The offset says of what: IORING_OFF_SQ_RING, _CQ_RING or _SQES.
    IoUring(IoUringId),
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
