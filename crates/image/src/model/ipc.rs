//! System V objects and POSIX message queues.

use serde::{Deserialize, Serialize};

use super::{ByteString, Bytes, Extent, IpcNamespaceId, Setting};

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
    /// The limits of the IPC namespace that `cpr run` has made for the job; empty where it shares one with others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Setting>,
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
    /// Size of the explicit huge pages it consists of (SHM_HUGETLB), bytes; 0 for ordinary pages.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub huge_pages: u64,
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
