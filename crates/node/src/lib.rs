//! Jobs on one node: run, checkpoint, restart, suspend, watch and remove them.
//!
//! A job lives in PID and mount namespaces of its own, whose first process is a fork of the supervisor
//! (an unprivileged user's job in a user namespace too), so that a restart finds every PID free. The supervisor is the
//! `cpr run` or `cpr restart` process itself, or a daemon for a detached job; when it dies, the job dies. What is
//! known of a job is in its directory below the [`StateDir`].
//!
//! Checkpoints are made by a worker, a forked process that enters the job's namespaces and finishes what it began even
//! when the command that asked is killed.
//!
//! Processes are forked without exec, which is safe only while the calling process has a single thread: call [`run`],
//! [`restart_job`], [`restart_image`], [`checkpoint_bare`], [`Job::checkpoint`], [`check_bare`] and [`Job::check`] from
//! a process that has started no thread; they fail otherwise.
//!
//! The exit code of a command that ran a job in the foreground is the job's own ([`Outcome::exit_code`]), 128 + signal
//! where a signal ended the job, and [`STOPPED_EXIT_CODE`] (79) where a checkpoint did: restart it to go on.

mod checkpoint;
mod directory;
pub mod engine;
mod exec;
mod foreign;
mod gate;
mod group;
mod init;
mod job;
mod known;
mod lease;
mod migrate;
mod notify;
mod outcome;
mod outsider;
mod own;
mod paging;
mod policies;
mod requests;
mod restart;
mod sandbox;
mod set;
mod shared_terminal;
mod state;
mod steps;
mod streams;
mod supervisor;
mod suspend;
mod target;
mod terminal;
mod vault;
mod wire;
mod worker;

pub use checkpoint::{
    Bare, CheckpointOptions, Checkpointed, Output, Progress, STOP_TIMEOUT, check_bare, checkpoint_bare,
};
pub use engine::{Basis, Blocker, CheckpointReport, Compression, FileRule, Keep, Method, TcpPolicy};
pub use exec::{Recovery, become_job, recover, stand_in};
pub use foreign::EngineUse;
pub use job::{ImageEntry, Job, JobSpec, JobStatus, LastCheckpoint, Phase, Sequence, needed_by};
pub use known::ImageState;
pub use lease::{LEASE_LAPSED, grant_lease, lease_clock};
pub use migrate::{MigrateOptions, Migrated};
pub use notify::notify_bare;
pub use outcome::{Outcome, STOPPED_EXIT_CODE};
pub use restart::{NamespaceChoice, RestartOptions, restart_bundle, restart_image, restart_job, run};
pub use sandbox::{Proof, prove};
pub use set::{SetMade, SetUnit, checkpoint_set, is_set, restart_set};
pub use state::{StateDir, check_name};
pub use steps::{Conductor, Reached, checkpoint_in_steps, restart_in_steps};
pub use suspend::{SuspendReport, resume_bare, suspend_bare};
pub use terminal::DETACH_KEY;
