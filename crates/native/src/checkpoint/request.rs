//! What a checkpoint is asked for, and what it tells.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cpr_image::model::ByteString;
use cpr_image::{Compression, PendingImage};
use serde::{Deserialize, Serialize};

use crate::TcpPolicy;
use crate::devices::DevicePlugins;
use crate::files::Channels;
use crate::libraries::Keep;
use crate::live::Basis;
use crate::outside::Outside;
use crate::policy::FileRule;

/// What becomes of the job once its image is complete and durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on as soon as its state has been read.
    Continue,
    /// It is killed without having run on (LBNL-3.6.4.2).
    Kill,
    /// All its processes get this signal, and run on.
    Signal(i32),
}

/// What to checkpoint, and how.
#[derive(Debug, Clone)]
pub struct CheckpointRequest {
    /// Root process, in the caller's PID namespace.
    pub pid: i32,
    /// What becomes of the job.
    pub after: After,
    /// Copy memory while the job runs, also where it does not go on.
    pub live: bool,
    /// What a job in the background prints goes into this file; empty where there is none.
    pub log: ByteString,
    /// Name of the job, for the image; may be empty.
    pub job: String,
    /// Who asked.
    pub initiator_uid: u32,
    /// The job is everything in the caller's PID namespace but its init and processes from outside.
    pub own_pid_namespace: bool,
    /// Who adopts the orphans of a job without a PID namespace of its own, as its other children; these are the job's
    /// then. Nobody where orphans are not the job's.
    pub adopter: Option<i32>,
    /// Nobody but the job uses the caller's IPC namespace.
    pub own_ipc_namespace: bool,
    /// For a job with a mount namespace of its own: what is mounted where that was made, as in [`Surroundings`].
    pub mounts: Option<Arc<Outside>>,
    /// The job is everything in this POSIX session; `pid` is its leader, or any process of it.
    pub session: Option<i32>,
    /// A control group of version 2 that names all processes of the job, and none of whoever saves it.
    pub group: Option<PathBuf>,
    /// Our parent, which waits for us, where it may be a process of the job itself. It is left alone, and is in the
    /// image as a process that has just ended.
    pub requester: Option<Requester>,
    /// How long to wait for the job to stop.
    pub stop_timeout: Duration,
    /// Compress page data.
    pub compression: Option<Compression>,
    /// Which other images it may refer to.
    pub basis: Basis,
    /// Go on tracking the job's writes, for an image that refers to this one.
    pub keep_tracking: bool,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// Those that lead to jobs that are saved in the same stop; to be told before what [`ALL_STOPPED`] holds up goes
    /// on.
    pub channels: Option<Channels>,
    /// Who knows devices that we do not.
    pub devices: Option<Arc<dyn DevicePlugins>>,
    /// How the contents of files are treated; later ones win.
    pub files: Vec<FileRule>,
    /// What is saved of programs and libraries.
    pub keep: Keep,
    /// Compare the image with a copy of the job's memory made in the same stop.
    pub compare: bool,
    /// Others are saved in the same stop: the observer is told of the phase [`ALL_STOPPED`] when the job stands still,
    /// and of [`Event::Durable`] before it goes on. What it takes to answer the job waits; where it breaks, the job
    /// goes on.
    pub hold: bool,
}

/// What a look at a job has to know of what is around it.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Nobody else uses the job's IPC namespace, which is also ours.
    pub own_ipc: bool,
    /// See [`CheckpointRequest::own_pid_namespace`].
    pub own_pid_namespace: bool,
    /// See [`CheckpointRequest::adopter`].
    pub adopter: Option<i32>,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// See [`CheckpointRequest::channels`].
    pub channels: Option<&'a Channels>,
    /// See [`CheckpointRequest::devices`].
    pub devices: Option<&'a dyn DevicePlugins>,
    /// For a job with a mount namespace of its own: what is mounted where a restart makes it a new one. Other mounts
    /// would be missing then.
    pub mounts: Option<&'a Outside>,
}

impl CheckpointRequest {
    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            own_ipc: self.own_ipc_namespace,
            own_pid_namespace: self.own_pid_namespace,
            adopter: self.adopter,
            tcp: self.tcp,
            channels: self.channels.as_ref(),
            devices: self.devices.as_deref(),
            mounts: self.mounts.as_deref(),
        }
    }
}

/// Who asks for a checkpoint from inside the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requester {
    /// PID, in our PID namespace.
    pub pid: i32,
    /// Exit code that its parent gets to see after a restart.
    pub exit_code: u8,
}

/// Where the image goes.
#[derive(Debug)]
pub enum Destination {
    /// A file that gets its name when it is complete and durable.
    File(PendingImage),
    /// A stream, such as a pipe.
    Stream(File),
    /// Somebody who is to take the job over.
    Handover(Handover),
}

/// Where a job goes that is to end here only when it runs elsewhere.
#[derive(Debug)]
pub struct Handover {
    /// The image goes here.
    pub stream: File,
    /// One byte is read from here when the image has gone: the [`Verdict`].
    pub word: OwnedFd,
}

/// Whether a job was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs elsewhere, and is to end here.
    Taken,
    /// It does not, and goes on here.
    Refused,
    /// Nobody knows. It is stopped (SIGSTOP), so that it never runs twice.
    Unknown,
}

impl Verdict {
    /// The byte that says it.
    pub fn byte(self) -> u8 {
        match self {
            Verdict::Taken => b'y',
            Verdict::Refused => b'n',
            Verdict::Unknown => b'u',
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Identifier of the image, 32 hexadecimal digits.
    pub image_id: String,
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Page data in it, bytes.
    pub data_bytes: u64,
    /// How long the job was stopped; for a job that was ended, until all its state was read.
    pub freeze_ns: u64,
    /// From the request to the end.
    pub total_ns: u64,
    /// Processes saved, zombies included.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// Identifier of the image before, where this one refers to it or to what that refers to: it is an increment.
    pub parent: Option<String>,
    /// Hash that stands for the image as a whole, in hexadecimal.
    pub root_hash: String,
    /// How the job's memory was copied.
    pub method: Method,
    /// Page data copied while the job was stopped, bytes.
    pub stopped_bytes: u64,
    /// Pages that were compared with a copy of the job's memory, where that was asked for.
    pub compared_pages: Option<u64>,
}

/// How a job's memory is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// While it ran, all but what it wrote last.
    Live,
    /// It wrote faster than could be copied: what was left, from a snapshot made while it was stopped.
    Snapshot,
    /// While it was stopped: because it is about to end, nothing better can be done here, or so little of it is written
    /// so fast that it takes no longer than a snapshot.
    Stop,
}

/// Told while a checkpoint is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far a phase has come, in its own units (bytes where `total` is not zero).
    Progress {
        /// Name of the phase.
        phase: String,
        /// Done so far.
        done: u64,
        /// In all; zero if not known.
        total: u64,
    },
    /// The image is complete and durable.
    Durable,
}
