//! What a grid is asked for.

use serde::{Deserialize, Serialize};

use super::jobs::JobSpec;

/// `POST /v1/jobs/{id}/recover`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// The checkpoint to go on from; the newest good one where there is none.
    #[serde(default)]
    pub from: Option<i64>,
    /// The node to go on.
    #[serde(default)]
    pub on: Option<String>,
    /// `from` may be of another job of the same user, whose program the job goes on as then.
    #[serde(default)]
    pub of_any_job: bool,
}

/// `POST /v1/jobs/{id}/migrate`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The node to go on; any other where there is none.
    #[serde(default)]
    pub to: Option<String>,
}

/// `POST /v1/jobs/{id}/policy`: how a job is saved from now on. What is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Seconds between checkpoints; 0: none are made by schedule.
    #[serde(default)]
    pub every_s: Option<u64>,
    /// Whether the time between checkpoints is adapted.
    #[serde(default)]
    pub adapt: Option<bool>,
    /// Number of complete checkpoints kept.
    #[serde(default)]
    pub keep: Option<u32>,
    /// Seconds after which a complete checkpoint may go; 0: no limit.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Whether each unit is saved by itself.
    #[serde(default)]
    pub independent: Option<bool>,
    /// Seconds that a checkpoint may be put off until little memory is used; 0: it is made at once.
    #[serde(default)]
    pub save_low_s: Option<u64>,
}

impl PolicyRequest {
    /// Changes what a job is to be.
    pub fn apply(&self, spec: &mut JobSpec) {
        let or_none = |seconds: u64| Some(seconds).filter(|seconds| *seconds > 0);
        spec.every_s = self.every_s.map_or(spec.every_s, or_none);
        spec.adapt = self.adapt.unwrap_or(spec.adapt);
        spec.keep = self.keep.or(spec.keep);
        spec.ttl_s = self.ttl_s.map_or(spec.ttl_s, or_none);
        spec.independent = self.independent.unwrap_or(spec.independent);
        spec.save_low_s = self.save_low_s.map_or(spec.save_low_s, or_none);
    }
}

/// What a user has had done, and what their checkpoints take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Usage {
    /// Login name.
    pub owner: String,
    /// Requests that were done: jobs submitted, saved, suspended, recovered, moved, cancelled or changed.
    pub operations: i64,
    /// Images that were made.
    pub images: i64,
    /// Bytes of all of them.
    pub bytes_stored: i64,
    /// Bytes that were copied to other nodes and to the store.
    pub bytes_moved: i64,
    /// Bytes that images take now, every copy counted.
    pub bytes_held: i64,
}

/// `POST /v1/nodes/{name}/fault`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FaultRequest {
    /// What is wrong, in a few words.
    pub reason: String,
}

/// `POST /v1/checkpoints/{id}/copies`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// The node that is to hold a copy.
    pub to: String,
    /// It is not to get it after all.
    #[serde(default)]
    pub cancel: bool,
}

/// `POST /v1/nodes/{name}/drain`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Take jobs again instead.
    #[serde(default)]
    pub undo: bool,
}

/// `POST /v1/jobs/{id}/signal`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// The signal, 1 to 64; neither KILL nor STOP, nor those that the C library has for itself.
    pub number: i32,
}
