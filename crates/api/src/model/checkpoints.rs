//! Checkpoints and where they are.

use cpr_types::ConnectionEnd;
use serde::{Deserialize, Serialize};

use super::Owner;

/// State of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointState {
    /// Asked for, or being made.
    Pending,
    /// On the disk of its node, and not yet at as many places as it has to be.
    Stored,
    /// Durable at as many places as it has to be.
    Complete,
    /// Could not be made.
    Failed,
    /// All its copies are gone or damaged.
    Lost,
    /// Removed because it is no longer needed.
    Freed,
}

impl CheckpointState {
    /// As it is written in the interface.
    pub const fn name(self) -> &'static str {
        match self {
            CheckpointState::Pending => "pending",
            CheckpointState::Stored => "stored",
            CheckpointState::Complete => "complete",
            CheckpointState::Failed => "failed",
            CheckpointState::Lost => "lost",
            CheckpointState::Freed => "freed",
        }
    }

    /// It has no image, and will never have one again.
    pub const fn is_gone(self) -> bool {
        matches!(
            self,
            CheckpointState::Failed | CheckpointState::Lost | CheckpointState::Freed
        )
    }

    /// A job can go on from it.
    pub const fn is_usable(self) -> bool {
        matches!(self, CheckpointState::Stored | CheckpointState::Complete)
    }
}

/// One copy of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Location {
    /// The node whose disk it is on; empty for the store that all nodes share.
    pub node: String,
    /// When it was last known to be whole.
    pub verified_ms: i64,
}

/// A copy of an image on its way to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Arriving {
    /// The node.
    pub node: String,
    /// Bytes that it has so far.
    pub bytes: u64,
}

/// What all units of a job do for a checkpoint, one step after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Get ready; the unit runs.
    Prepare,
    /// Stand still.
    Stop,
    /// Empty the connections between units; where there are any.
    Drain,
    /// Save what stands still.
    Save,
    /// Go on.
    Resume,
}

/// The coordination of a checkpoint of several units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Coordination {
    /// What the units do.
    pub step: Step,
    /// It is given up where not all have done it by then.
    pub deadline_ms: i64,
    /// Each unit does all steps by itself.
    #[serde(default)]
    pub independent: bool,
}

/// The image of one unit in a checkpoint of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Part {
    /// The checkpoint of all of them.
    pub of: i64,
    /// The unit.
    pub unit: u32,
    /// The last step that its node has done.
    #[serde(default)]
    pub done: Option<Step>,
    /// TCP connections that lead out of the unit, since it stands still; none where its node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<Object>>))]
    pub connections: Option<Vec<ConnectionEnd>>,
}

/// One image of a checkpoint of several units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UnitImage {
    /// The unit.
    pub unit: u32,
    /// Its number among the checkpoints, as which it can be asked for. One of an earlier checkpoint stands for an
    /// independent unit that waited for a node of its own; 0 where such a one had never been saved, and begins afresh.
    pub checkpoint: i64,
}

/// A checkpoint of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Checkpoint {
    /// Number that no other checkpoint of the grid has or will have.
    pub id: i64,
    /// The job.
    pub job: i64,
    /// Whose it is.
    pub owner: Owner,
    /// Its how-manieth start this is of.
    pub incarnation: u32,
    /// Number among the job's checkpoints, from 1.
    pub generation: u32,
    /// State.
    pub state: CheckpointState,
    /// Its program has made it when it liked: its number among the images of that start on its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<u64>,
    /// It ends the job.
    pub stop: bool,
    /// Path in the name space that was asked for; as the job has it where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seconds after which it may go, where something else holds for it than for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// The checkpoint the job had gone on from when this one was made.
    #[serde(default)]
    pub parent: Option<i64>,
    /// The engine that made it.
    pub engine: String,
    /// The node it was made on.
    pub node: String,
    /// Size of the image, bytes.
    #[serde(default)]
    pub bytes: u64,
    /// BLAKE3 of the image, in hexadecimal digits.
    #[serde(default)]
    pub blake3: String,
    /// How long the job stood still for it, milliseconds.
    #[serde(default)]
    pub cost_ms: Option<u64>,
    /// How long it took to make, milliseconds.
    #[serde(default)]
    pub took_ms: Option<u64>,
    /// When it was asked for.
    pub created_ms: i64,
    /// When it was on disk.
    #[serde(default)]
    pub stored_ms: Option<i64>,
    /// Why it failed, or was lost or freed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where its copies are; those of its images, where it has several.
    #[serde(default)]
    pub locations: Vec<Location>,
    /// Nodes that are to get a copy, and how far each is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arriving: Vec<Arriving>,
    /// Its images, where it is of a job of several units. Units that had finished have none.
    #[serde(default)]
    pub units: Vec<UnitImage>,
    /// How far the units are, while it is made.
    #[serde(default)]
    pub coordination: Option<Coordination>,
    /// Which image of which checkpoint this is, where that has several.
    #[serde(default)]
    pub part: Option<Part>,
}

impl Checkpoint {
    /// Whether it is one of several units, and has no image itself.
    pub fn is_set(&self) -> bool {
        self.coordination.is_some()
    }
}
