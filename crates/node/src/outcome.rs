//! How running or waiting for a job ended.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Exit code of `cpr run` and `cpr restart` when a checkpoint ended the job: restart it to go on.
pub const STOPPED_EXIT_CODE: i32 = 79;

/// How running or waiting for a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The job runs in the background.
    Detached {
        /// Its name.
        name: String,
    },
    /// The job has ended.
    Exited {
        /// Its exit code; 128 + signal where a signal ended it.
        code: i32,
        /// That signal.
        signal: Option<i32>,
    },
    /// A checkpoint ended the job.
    StoppedByCheckpoint {
        /// The image; empty where it went into a stream.
        image: PathBuf,
    },
}

impl Outcome {
    /// The exit code of the command.
    pub fn exit_code(&self) -> i32 {
        match self {
            Outcome::Detached { .. } => 0,
            Outcome::Exited { code, .. } => *code,
            Outcome::StoppedByCheckpoint { .. } => STOPPED_EXIT_CODE,
        }
    }
}
