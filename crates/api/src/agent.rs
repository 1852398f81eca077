//! What a node's agent and the grid service say to each other, with every heartbeat: the agent tells all it has, the
//! service answers with all it wants.
//!
//! Both are whole states, not changes: a report or an answer that is lost, repeated or late does no harm, and either
//! side may be killed and started again at any time.

use cpr_types::{Connection, ConnectionEnd, ErrorKind, Links};
use serde::{Deserialize, Serialize};

use crate::model::{JobSpec, NodeInfo, Owner, Step, Used};

/// A start of a job: its number, and how many starts there had been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Incarnation {
    /// The job.
    pub job: i64,
    /// Its how-manieth start, from 1.
    pub number: u32,
    /// The unit, of a job that has several.
    #[serde(default)]
    pub unit: Option<u32>,
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.job, self.number)?;
        self.unit.map_or(Ok(()), |unit| write!(f, ".{unit}"))
    }
}

/// `POST /v1/agent/heartbeat`: what a node has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Report {
    /// What it says of itself.
    pub info: NodeInfo,
    /// Tells agents of one name apart.
    pub instance: String,
    /// Grows with every report of an agent, also when it is started again; of two reports the lower one is old.
    pub sequence: u64,
    /// Every incarnation it has anything of.
    pub jobs: Vec<JobReport>,
    /// Checkpoints it was told to make, and has tried to.
    #[serde(default)]
    pub checkpoints: Vec<CheckpointReport>,
    /// How far it is with checkpoints that are made step by step.
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// The newest image of each incarnation that its program has made when it liked, with its number on the node.
    #[serde(default)]
    pub own: Vec<OwnImage>,
    /// Every image it holds whole.
    #[serde(default)]
    pub images: Vec<i64>,
    /// Images it was told to fetch and could not, or holds and found damaged.
    #[serde(default)]
    pub bad_images: Vec<BadImage>,
    /// Images it has compared with their hashes since its last report, and found good.
    #[serde(default)]
    pub verified: Vec<i64>,
    /// What is wrong with the node, as its detector says.
    #[serde(default)]
    pub fault: Option<String>,
    /// Images that it is fetching, and how much of each it has.
    #[serde(default)]
    pub fetching: Vec<Fetching>,
    /// Images it was told to put into the store that all nodes share, and has.
    #[serde(default)]
    pub in_store: Vec<i64>,
    /// The mark of the last orders it has seen; the answer comes as soon as there are others.
    #[serde(default)]
    pub seen: String,
}

/// An image that a program has made when it liked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OwnImage {
    /// Of which start of a job.
    pub incarnation: Incarnation,
    /// Its number among the images of that.
    pub number: u64,
}

/// An image on its way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Fetching {
    /// The checkpoint.
    pub id: i64,
    /// Bytes that are there.
    pub bytes: u64,
}

/// How an incarnation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobReport {
    /// Which.
    pub incarnation: Incarnation,
    /// How.
    pub phase: Phase,
    /// The last signal that it was given, by its number among those of the job; 0 where it was given none.
    #[serde(default)]
    pub signalled: u64,
    /// What this start of it has used, as far as that was seen.
    #[serde(default)]
    pub usage: Option<Used>,
}

/// A signal for an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SignalOrder {
    /// Its number among those of the job.
    pub id: u64,
    /// The signal.
    pub number: i32,
}

/// How an incarnation is on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Being started.
    Starting,
    /// Its image is there; it is made again when it is told what becomes of its connections to other units.
    Ready,
    /// Made again from its image; it runs when it may.
    Built,
    /// Runs.
    Running,
    /// Its program has ended.
    Exited {
        /// Exit code, 128 + signal where a signal ended it.
        code: i32,
        /// Signal that ended it.
        signal: Option<i32>,
    },
    /// Its program has ended with exit code 0, and its files could not be brought away.
    Kept {
        /// Which, and why.
        message: String,
    },
    /// Ended by a checkpoint.
    Stopped,
    /// Killed by the agent, on order or because the lease lapsed.
    Killed,
    /// Ended with its supervisor or the machine: a failure of the system.
    Lost,
    /// Could not be started.
    Failed {
        /// Class of the cause.
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        kind: ErrorKind,
        /// Cause.
        message: String,
    },
}

/// The last step of a checkpoint that a node has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StepReport {
    /// The checkpoint.
    pub id: i64,
    /// The step.
    pub done: Step,
    /// TCP connections that lead out of the unit, once it stands still.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<Object>>))]
    pub connections: Option<Vec<ConnectionEnd>>,
}

/// How a checkpoint went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CheckpointReport {
    /// Which.
    pub id: i64,
    /// How.
    pub result: CheckpointResult,
}

/// How a checkpoint went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointResult {
    /// The image is on disk.
    Stored {
        /// Size, bytes.
        bytes: u64,
        /// BLAKE3, in hexadecimal digits.
        blake3: String,
        /// How long the job stood still for it, milliseconds; none where that is not known any more.
        #[serde(default)]
        cost_ms: Option<u64>,
        /// How long it took to make, milliseconds.
        #[serde(default)]
        took_ms: Option<u64>,
    },
    /// There is none.
    Failed {
        /// Why.
        message: String,
    },
}

/// An image that is not to be had on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BadImage {
    /// The checkpoint.
    pub id: i64,
    /// The node whose copy it is; empty for the store that all nodes share.
    pub location: String,
    /// The copy is there and damaged, or is missing though its holder answers; else its holder could not be reached.
    pub damaged: bool,
    /// In words.
    pub message: String,
}

/// The answer to a report: what a node is to have and do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Orders {
    /// The node may run jobs for so long from when it *sent* its report; then it has to end them all by itself.
    pub lease_ms: u64,
    /// Changes with the orders.
    pub mark: String,
    /// Every incarnation it is to have. What it has besides is to be ended, and forgotten.
    pub jobs: Vec<JobOrder>,
    /// Images it is to hold: what it does not hold is to be fetched, what it holds besides is to be removed.
    pub images: Vec<ImageOrder>,
    /// Checkpoint results that the service has written down, so that they need not be told again.
    #[serde(default)]
    pub noted: Vec<i64>,
}

/// One incarnation a node is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobOrder {
    /// Which.
    pub incarnation: Incarnation,
    /// As whom.
    pub owner: Owner,
    /// What.
    pub spec: JobSpec,
    /// The engine that saves it.
    #[serde(default = "crate::model::native")]
    pub engine: String,
    /// The image to go on from; it is among [`Orders::images`].
    #[serde(default)]
    pub from: Option<i64>,
    /// It may run when it has been made again from its image.
    #[serde(default = "yes")]
    pub go: bool,
    /// What its programs are to be told, once, before anything else is done with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tell: Option<String>,
    /// What becomes of its connections to other units, once all are ready to make them again.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub links: Option<Links>,
    /// Signals for its first process, in this order, each once and as soon as it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SignalOrder>,
    /// It is to be ended.
    #[serde(default)]
    pub kill: bool,
    /// Checkpoints to make, in this order.
    #[serde(default)]
    pub checkpoints: Vec<CheckpointOrder>,
}

/// A checkpoint to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CheckpointOrder {
    /// Number the image will have.
    pub id: i64,
    /// The job is to end with it. A unit stands still when it is saved, until it is ended.
    pub stop: bool,
    /// It is made step by step, together with others, and so far by now.
    #[serde(default)]
    pub step: Option<Step>,
    /// The program has made it already: the image that has this number on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<u64>,
    /// TCP connections of the unit that lead to others of the job.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<Object>))]
    pub channels: Vec<Connection>,
}

fn yes() -> bool {
    true
}

/// An image a node is to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ImageOrder {
    /// The checkpoint.
    pub id: i64,
    /// Whose it is.
    pub owner: Owner,
    /// Size, bytes.
    pub bytes: u64,
    /// BLAKE3, in hexadecimal digits.
    pub blake3: String,
    /// When the copy of this node was last known to be whole; 0 where it has none.
    #[serde(default)]
    pub verified_ms: i64,
    /// The node is to put it into the store that all nodes share.
    #[serde(default)]
    pub to_store: bool,
    /// Whoever shows this may fetch the image from a node that holds it.
    pub ticket: String,
    /// Where to fetch it from, best first.
    pub sources: Vec<Source>,
}

/// Where an image can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Source {
    /// The node; empty for the store that all nodes share.
    pub node: String,
    /// Its address, as `HOST:PORT`.
    pub address: String,
}
