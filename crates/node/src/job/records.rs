//! What is written down of a job.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_engines::{Unit, fill};
use cpr_types::Result;
use serde::{Deserialize, Serialize};

use super::{REDIRECT, inode};
use crate::engine::{Basis, FileRule, Keep, TcpPolicy};
use crate::foreign::EngineUse;
use crate::lease::boot;
use crate::target::{Identity, Target};

/// What a job's own checkpoints refer to, in a circle: `F` a full image, `I` an increment to the last full one, `i` an
/// increment to the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence(String);

impl Sequence {
    /// Of the checkpoint with this number, counted from 0.
    pub(crate) fn basis(&self, number: usize) -> Basis {
        match self.0.as_bytes()[number % self.0.len()] {
            b'I' => Basis::SinceFull,
            b'i' => Basis::SinceLast,
            _ => Basis::Full,
        }
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Sequence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('F') || !text.bytes().all(|b| b"FIi".contains(&b)) {
            return Err(
                "write F for full images, I for increments to the last full one and i for increments to the \
                 last one, beginning with F: FIiii"
                    .to_string(),
            );
        }
        Ok(Sequence(text.to_string()))
    }
}

/// What a job is to be.
#[derive(Debug, Clone, Default)]
pub struct JobSpec {
    /// Name; made from the command where there is none.
    pub name: Option<String>,
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Checkpoint again and again after this time.
    pub every: Option<Duration>,
    /// What its own checkpoints refer to, one after the other.
    pub sequence: Option<Sequence>,
    /// Keep only that many images, the newest ones, and those they need.
    pub keep: Option<usize>,
    /// How long checkpoints that its programs write themselves are kept, as these are told.
    pub lifetime: Option<Duration>,
    /// Give the job a terminal of its own.
    pub terminal: bool,
    /// Leave the job in the IPC namespace of whoever runs it.
    pub share_ipc: bool,
    /// What checkpoints do with TCP connections to outside.
    pub tcp: TcpPolicy,
    /// How the contents of files are treated in its checkpoints; later ones win.
    pub files: Vec<FileRule>,
    /// What its checkpoints save of programs and libraries.
    pub keep_files: Keep,
    /// Save it and end it when its supervisor gets one of these signals, which are not passed on then.
    pub save_on: Vec<i32>,
    /// The lease it runs under, as [`crate::grant_lease`] writes it; it is ended when that lapses.
    pub lease: Option<PathBuf>,
    /// The engine that checkpoints it, where that is not the native one.
    pub engine: Option<EngineUse>,
    /// What is run in place of the command, which comes after it, with placeholders as descriptors of engines have
    /// them.
    pub wrapper: Vec<OsString>,
    /// The directory it is started in, where that is not ours.
    pub directory: Option<PathBuf>,
    /// The file that what it prints is written to the end of, where that is not the output of whoever starts it.
    pub output: Option<PathBuf>,
}

impl JobSpec {
    /// The command with what is run in its place.
    pub(crate) fn whole_command(&self, name: &str, directory: &Path) -> Vec<OsString> {
        let unit = Unit {
            job: name.to_string(),
            root: 0,
            processes: Vec::new(),
            job_directory: directory.to_path_buf(),
            files: PathBuf::new(),
            group: None,
        };
        let mut whole = Vec::new();
        if let Some(output) = &self.output {
            // Around the wrapper: what that starts may be in another machine.
            whole.extend(["/bin/sh", "-c", REDIRECT].map(OsString::from));
            whole.push(output.clone().into_os_string());
        }
        whole.extend(fill(&self.wrapper, &unit));
        whole.extend(self.command.iter().cloned());
        whole
    }
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Made, and never started so far.
    Created,
    /// On its way to its first instruction.
    Starting,
    /// Running.
    Running,
    /// Stopped by `suspend` until `resume`.
    Suspended,
    /// Ended by a checkpoint; restart goes on.
    Stopped,
    /// Ended by itself.
    Exited,
    /// Ended by a signal, or with the machine.
    Crashed,
    /// Could not be started.
    Failed,
}

/// `state.json`, written by the job's supervisor alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) supervisor: Option<Identity>,
    /// First process of the job's PID namespace; none where the job lives in ours.
    pub(crate) init: Option<Identity>,
    /// PID of the root process in the job's PID namespace.
    pub(crate) root: Option<i32>,
    /// The job's own PID namespace, as [`cpr_kernel::namespace::identity`] has it.
    #[serde(default)]
    pub(crate) pid_namespace: Option<(u64, u64)>,
    /// The same process here, where the job lives in our PID namespace.
    #[serde(default)]
    pub(crate) root_here: Option<Identity>,
    /// Of a job that its program is without a supervisor: the boot of the machine that these numbers are of.
    #[serde(default)]
    pub(crate) boot: Option<String>,
    pub(crate) started_ms: u64,
    pub(crate) finished_ms: Option<u64>,
    /// How the root process ended, once it has.
    pub(crate) exit: Option<Exit>,
    pub(crate) restarted_from: Option<PathBuf>,
    pub(crate) stopped_into: Option<PathBuf>,
    pub(crate) error: Option<String>,
    /// Why the job has no control group of its own.
    #[serde(default)]
    pub(crate) no_cgroup: Option<String>,
    /// The control group that was made for it.
    #[serde(default)]
    pub(crate) own_cgroup: Option<PathBuf>,
    /// What was mounted in its mount namespace before it was there, as [`crate::engine::outside::name`] has it.
    #[serde(default)]
    pub(crate) mounts: Vec<String>,
}

impl State {
    /// Whether the job was registered by a wrapper that became its program: it has no supervisor, and nobody writes
    /// down how it ends.
    pub(crate) fn is_registered(&self) -> bool {
        self.supervisor.is_none() && self.root_here.is_some()
    }

    /// Whether the job begins, or begins anew. Whoever starts one that was registered holds its lock for a moment before
    /// that is written down.
    pub(super) fn is_starting(&self) -> bool {
        self.phase == Phase::Starting || self.is_registered() && self.registered().is_none()
    }

    /// The program of such a job, while it lives.
    pub(super) fn registered(&self) -> Option<Target> {
        let root = self.root_here.filter(|_| self.is_registered())?;
        let same_boot = self.boot.is_some() && self.boot == boot().ok();
        let target = Target::open_same(root).ok().filter(|_| same_boot)?;
        // One that has ended and was not waited for is still there.
        matches!(target.wait(Some(Instant::now())), Ok(false)).then_some(target)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
}

impl Exit {
    /// From a wait(2) status.
    pub(crate) fn of_status(status: i32) -> Exit {
        let signal = status & 0x7f;
        if signal == 0 {
            let code = (status >> 8) & 0xff;
            return Exit { code, signal: None };
        }
        Exit {
            code: 128 + signal,
            signal: Some(signal),
        }
    }
}

/// `stop.json`: a checkpoint that ends the job is under way. Written by whoever asked, before the job is touched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StopIntent {
    /// The image will be here; none for a stream.
    pub(crate) image: Option<PathBuf>,
    /// Inode of the file that was there before.
    pub(crate) before: Option<u64>,
}

impl StopIntent {
    /// For an image that will be at `image`.
    pub(crate) fn new(image: Option<PathBuf>) -> StopIntent {
        let before = image.as_deref().and_then(inode);
        StopIntent { image, before }
    }

    /// The image is there: they appear only whole and durable.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.image {
            Some(path) => inode(path).is_some_and(|now| Some(now) != self.before),
            None => true,
        }
    }
}

/// `checkpoint.json`: the newest attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastCheckpoint {
    /// When it ended, milliseconds since the epoch.
    pub time_ms: u64,
    /// The image, where there is one in a file.
    pub image: Option<PathBuf>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How a job is, for `cpr ps`.
#[derive(Debug, Clone, Serialize)]
pub struct JobStatus {
    /// Name.
    pub name: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// PID of its root process here, while it lives.
    pub pid: Option<i32>,
    /// PID of its root process in its own PID namespace.
    pub inner_pid: Option<i32>,
    /// PID of its supervisor, while it lives.
    pub supervisor: Option<i32>,
    /// Program and arguments (lossy where not UTF-8).
    pub command: Vec<String>,
    /// Working directory it was started in.
    pub directory: PathBuf,
    /// Period of its own checkpoints, milliseconds.
    pub every_ms: Option<u64>,
    /// Number of images kept.
    pub keep: Option<usize>,
    /// It has a terminal of its own.
    pub terminal: bool,
    /// When it was made, milliseconds since the epoch.
    pub created_ms: u64,
    /// When it was last started or restarted.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub finished_ms: Option<u64>,
    /// Exit code, 128 + signal where a signal ended it.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Image it was last restarted from.
    pub restarted_from: Option<PathBuf>,
    /// Image that the checkpoint that ended it left.
    pub stopped_into: Option<PathBuf>,
    /// Number of images.
    pub images: usize,
    /// Newest checkpoint, failed ones included.
    pub last_checkpoint: Option<LastCheckpoint>,
    /// Why it could not be started.
    pub error: Option<String>,
    /// The control group that names all its processes, while it lives.
    pub cgroup: Option<PathBuf>,
    /// Why it has none.
    pub no_cgroup: Option<String>,
}

/// One image of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageEntry {
    /// Number, ascending with time.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Size.
    pub bytes: u64,
    /// When it was completed, seconds since the epoch.
    pub time: i64,
}
