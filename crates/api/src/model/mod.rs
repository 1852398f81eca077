//! Jobs, checkpoints, nodes and events as users of the interface see them.
//!
//! Times ending in `_ms` are milliseconds since the epoch, by the clock of the grid service.

mod checkpoints;
mod jobs;
mod names;
mod nodes;
mod requests;

use cpr_types::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

pub(crate) use jobs::native;

pub use checkpoints::{Arriving, Checkpoint, CheckpointState, Coordination, Location, Part, Step, UnitImage};
pub use jobs::{
    Array, ArrayRequest, Element, Ending, Intent, Job, JobSignal, JobSpec, JobState, Unit, UnitPhase, UnitSpec, Used,
};
pub use names::{
    ChangeName, CheckpointRequest, MakeName, Metric, MetricRequest, Name, NameKind, NameLock, NameRequest, NamedFile,
    Naming, check_path,
};
pub use nodes::{Abilities, Node, NodeInfo, NodeState};
pub use requests::{
    CopyRequest, DrainRequest, FaultRequest, MigrateRequest, PolicyRequest, RecoverRequest, SignalRequest, Usage,
};

/// The engine that jobs are saved by that ask for no other.
pub const NATIVE: &str = "native";

/// Whose job it is: who may do what with it, and as whom it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Owner {
    /// Login name.
    pub name: String,
    /// User ID its processes have.
    pub uid: u32,
    /// Their primary group.
    pub gid: u32,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// Ascending number.
    pub id: i64,
    /// When.
    pub at_ms: i64,
    /// What, as `job.running`, `checkpoint.complete` or `node.lost`.
    pub kind: String,
    /// The job it is about.
    #[serde(default)]
    pub job: Option<i64>,
    /// The node it is about.
    #[serde(default)]
    pub node: Option<String>,
    /// Login name of the job's owner.
    #[serde(default)]
    pub owner: Option<String>,
    /// In words.
    pub text: String,
}

/// A job that waits, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Waiting {
    /// Place among all jobs that wait, also those of others, from 1.
    pub place: i64,
    /// The job.
    pub job: Job,
    /// Jobs that have to finish first.
    #[serde(default)]
    pub needs: Vec<i64>,
    /// Why it waits, for people.
    pub why: String,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// What to give as `after` for the next page; none where this is the last one.
    #[serde(default)]
    pub next: Option<String>,
}

/// An error as the interface tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Kind, as in `docs/exit-codes.md`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub kind: ErrorKind,
    /// What failed and why.
    pub message: String,
    /// What can be done.
    #[serde(default)]
    pub hint: Option<String>,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Problem {
            kind: error.kind(),
            message: error.chain(),
            hint: error.hint().map(str::to_string),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let error = Error::new(problem.kind, problem.message);
        match problem.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}
