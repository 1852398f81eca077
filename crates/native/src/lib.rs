//! The native engine: checkpoints and restarts process trees from outside, with ptrace, /proc and pidfds.
//!
//! A checkpoint runs in a process of its own inside the job's namespaces ([`checkpoint()`]); a restart runs in the
//! process that becomes the parent of the job ([`restart()`]). The engine decides first and touches processes only
//! then: what cannot be saved is found by [`check()`] before anything is stopped, where it can be.
//!
//! Invariants: a failed checkpoint leaves the job running as before, with nothing in it; a failed restart leaves no
//! process behind; nothing of the job runs before everything is in place and every byte of the image was verified (of
//! memory that comes later, before it comes).

mod aio;
mod beside;
mod blockers;
mod callbacks;
mod cgroups;
mod checkpoint;
mod concealed;
mod confined;
pub mod devices;
mod extended;
pub mod files;
mod freeze;
mod host_names;
mod ipc;
mod keyrings;
mod libraries;
mod live;
mod mapped;
mod memory;
mod memory_policies;
mod mount_namespaces;
pub mod networks;
pub mod outside;
mod paths;
mod pid_namespaces;
mod pieces;
mod pipeline;
mod places;
pub mod policy;
mod restart;
mod scans;
mod settings;
mod sink;
mod snapshot;
mod state;
mod time_namespaces;
mod user_namespaces;
mod userfault;
pub mod views;
pub mod visits;
mod write_behind;

pub use callbacks::{Rebirth, tell};
pub use checkpoint::{
    ALL_STOPPED, After, CheckpointReport, CheckpointRequest, Destination, Event, Handover, Method, Observer, Requester,
    Surroundings, Verdict, check, checkpoint,
};
pub use files::terminal::JobControl;
pub use files::{Channels, Meeting, Outward, channels};
pub use libraries::Keep;
pub use live::{Basis, Earlier, Tracked};
pub use restart::{LazyRequest, Pages, RestartRequest, Restarted, check_restart, restart};
pub use settings::IPC_LIMITS;
pub use sink::{PAGE_SIZE, PageSink, PageSource};

use serde::{Deserialize, Serialize};

/// What becomes of TCP connections to outside the job. Those between its own processes are always saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpPolicy {
    /// A job with such a connection is not checkpointed.
    #[default]
    Refuse,
    /// After a restart they have been reset.
    Close,
    /// After a restart they go on. Between checkpoint and restart the other side must hear nothing of this machine.
    Keep,
}

/// Something that stands in the way of a checkpoint or a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The process concerned; zero when it is none in particular.
    pub pid: i32,
    /// The object, for example `descriptor 7 (anon_inode:[io_uring])`.
    pub object: String,
    /// Why it blocks.
    pub reason: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// It passes by itself when the program goes on.
    #[serde(skip)]
    pub passes: bool,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pid != 0 {
            write!(f, "process {}, ", self.pid)?;
        }
        write!(f, "{}: {}", self.object, self.reason)
    }
}
