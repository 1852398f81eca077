//! io_uring instances.

use serde::{Deserialize, Serialize};

use super::{Bytes, FileId};

/// An io_uring(7) instance in which no request is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct IoUring {
    /// The thread that makes it: the one that may submit (IORING_SETUP_SINGLE_ISSUER), or any that has it.
    pub owner: i32,
    /// Room for requests, a power of two.
    pub entries: u32,
    /// Room for completions, a power of two.
    pub completions: u32,
    /// IORING_SETUP_*.
    pub flags: u32,
    /// IORING_FEAT_* that the program was told of.
    pub features: u32,
    /// Where things are in the rings: the offsets of `struct io_uring_params` for the head, tail, flags, dropped and
    /// array of the submission ring, and for the head, tail, overflow and entries of the completion ring.
    pub layout: Vec<u32>,
    /// Requests that the kernel has taken out, modulo 2^32.
    pub submitted: u32,
    /// Completions that the kernel has put in, modulo 2^32.
    pub completed: u32,
    /// Memory of both rings: offsets and bytes there; the rest is zeros.
    pub rings: Vec<(u64, Bytes)>,
    /// Memory of the submission queue entries, in the same way.
    pub queue: Vec<(u64, Bytes)>,
    /// Registered files, by number; the process that `owner` is of has them open.
    pub files: Vec<Option<FileId>>,
    /// Registered memory of that process, by number: address and length.
    pub buffers: Vec<Option<(u64, u64)>>,
}
