//! The name space of checkpoints, which all users of a grid share, and the metrics by which programs tell each other of
//! checkpoints (SAGA CPR API, sections 2.2 and 2.3.2).

use std::collections::BTreeMap;

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{Job, Owner};

/// Where checkpoints of a job get names, and which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Naming {
    /// The directory; made where it is missing. `#JobID#` and `#UserID#` stand for the number of the job and the login
    /// name of its owner.
    pub location: String,
    /// What each is called in it. `#Generation#` stands for its number among those of the job, from 0. One of the same
    /// name is replaced.
    pub name: String,
}

impl Naming {
    /// Fills in what stands for the job.
    pub fn fill(text: &str, job: &Job) -> String {
        text.replace("#JobID#", &job.id.to_string())
            .replace("#UserID#", &job.owner.name)
    }

    /// The path of a checkpoint.
    pub fn path(&self, job: &Job, generation: i64) -> String {
        let path = format!("{}/{}", self.location.trim_end_matches('/'), self.name);
        Naming::fill(&path, job).replace("#Generation#", &generation.to_string())
    }

    /// Refuses what could not be a path whatever is filled in.
    pub fn check(&self) -> Result<()> {
        let path = format!("{}/{}", self.location.trim_end_matches('/'), self.name);
        let plain = ["#JobID#", "#UserID#", "#Generation#"]
            .iter()
            .fold(path, |path, wildcard| path.replace(wildcard, "0"));
        if plain.contains('#') {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{:?} has a wildcard that is not known", self.location),
            ));
        }
        check_path(&plain)
    }
}

/// Refuses what is no path of the name space: absolute, without empty, `.` and `..` parts.
pub fn check_path(path: &str) -> Result<()> {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.chars().any(char::is_control)
    };
    let parts = path.strip_prefix('/').map(|rest| rest.split('/'));
    let good = path == "/" || (path.len() <= 4096 && parts.is_some_and(|mut parts| parts.all(part)));
    match good {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Usage,
            format!("{path:?} is no path of the name space"),
        )),
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NameKind {
    /// A directory.
    Directory,
    /// A checkpoint.
    Checkpoint,
    /// Another name.
    Link,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NamedFile {
    /// Its number, which no other file of the checkpoint has or will have.
    pub index: u32,
    /// Where it is.
    pub url: String,
}

/// An advisory lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NameLock {
    /// What its holder is called by itself.
    pub holder: String,
    /// It does not hold any more then.
    pub until_ms: i64,
}

/// An entry of the name space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Name {
    /// Number that no other entry has or will have; it stays when the entry is moved.
    pub id: i64,
    /// Its path.
    pub path: String,
    /// What it stands for.
    pub kind: NameKind,
    /// Whose it is.
    pub owner: Owner,
    /// When it was made.
    pub created_ms: i64,
    /// The path that a link leads to.
    #[serde(default)]
    pub target: Option<String>,
    /// The checkpoint of the grid; none where a program has made it, or it is none.
    #[serde(default)]
    pub checkpoint: Option<i64>,
    /// The job it is of.
    #[serde(default)]
    pub job: Option<i64>,
    /// The time of the checkpoint.
    #[serde(default)]
    pub time_ms: i64,
    /// Seconds after which it may go; none: no limit.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// `full`, `inc 1` (what has changed since the last full one) or `inc 2` (since the last one).
    #[serde(default)]
    pub mode: String,
    /// The entry of the checkpoint before.
    #[serde(default)]
    pub parent: Option<i64>,
    /// Its path.
    #[serde(default)]
    pub parent_path: Option<String>,
    /// Paths of the checkpoints after it.
    #[serde(default)]
    pub children: Vec<String>,
    /// Its files, in the order of their numbers; first the images that the grid keeps.
    #[serde(default)]
    pub files: Vec<NamedFile>,
    /// Number of the next file.
    #[serde(default)]
    pub next_file: u32,
    /// What users have written down of it.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// What others may do, by `user:NAME`, `group:NUMBER` or `*`: the sum of 1 (query), 2 (read), 4 (write), 8 (execute:
    /// nothing more) and 16 (as its owner).
    #[serde(default)]
    pub permissions: BTreeMap<String, u32>,
    /// Who has locked it.
    #[serde(default)]
    pub lock: Option<NameLock>,
}

/// Makes an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MakeName {
    /// Its path.
    pub path: String,
    /// What it is to stand for.
    pub kind: NameKind,
    /// The path that a link is to lead to.
    #[serde(default)]
    pub target: Option<String>,
    /// Directories that are missing are made.
    #[serde(default)]
    pub parents: bool,
    /// It takes the place of a checkpoint or link of this path.
    #[serde(default)]
    pub overwrite: bool,
    /// Path of a checkpoint that it is to be a copy of.
    #[serde(default)]
    pub copy_of: Option<String>,
    /// Path of its parent.
    #[serde(default)]
    pub parent: Option<String>,
    /// The job it is of.
    #[serde(default)]
    pub job: Option<i64>,
    /// Where its files are; those of a copy, without images that the grid keeps.
    #[serde(default)]
    pub files: Vec<String>,
    /// Seconds after which it may go.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// As in [`Name`]; `full` where nothing is said.
    #[serde(default)]
    pub mode: Option<String>,
    /// What is to be written down of it.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Changes an entry. What is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChangeName {
    /// Its path.
    pub path: String,
    /// Seconds after which it may go.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// As in [`Name`].
    #[serde(default)]
    pub mode: Option<String>,
    /// Path of its parent; none where it is empty.
    #[serde(default)]
    pub parent: Option<String>,
    /// What is to be written down of it, or nothing any more.
    #[serde(default)]
    pub attributes: BTreeMap<String, Option<String>>,
    /// More files.
    #[serde(default)]
    pub add_files: Vec<String>,
    /// Files that do not belong to it any more.
    #[serde(default)]
    pub remove_files: Vec<u32>,
    /// Files that are elsewhere.
    #[serde(default)]
    pub update_files: Vec<NamedFile>,
    /// What others may do, as in [`Name`]; 0: nothing.
    #[serde(default)]
    pub permissions: BTreeMap<String, u32>,
}

/// `POST /v1/names`: what is to be done to an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum NameRequest {
    /// It is made.
    Make(MakeName),
    /// It is changed.
    Change(ChangeName),
    /// It, and all below it, is called otherwise.
    Move {
        /// Its path.
        path: String,
        /// Its new path.
        to: String,
        /// It takes the place of a checkpoint or link that has that path.
        #[serde(default)]
        overwrite: bool,
    },
    /// It is removed, with the images that only it names.
    Remove {
        /// Its path.
        path: String,
        /// A directory with all below it.
        #[serde(default)]
        recursive: bool,
    },
    /// It is locked, where nobody else has it locked.
    Lock {
        /// Its path.
        path: String,
        /// What the caller calls itself.
        holder: String,
        /// For so long.
        seconds: u32,
    },
    /// It is not locked any more by this holder.
    Unlock {
        /// Its path.
        path: String,
        /// Who has locked it.
        holder: String,
    },
}

/// What a program tells others of itself, or others it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// In words.
    #[serde(default)]
    pub description: String,
    /// `ReadOnly`, `ReadWrite` or `Final`.
    #[serde(default)]
    pub mode: String,
    /// Unit of the value.
    #[serde(default)]
    pub unit: String,
    /// Type of the value, as SAGA calls it: `String`, `Int`, `Enum`, `Float`, `Bool`, `Time` or `Trigger`.
    #[serde(default)]
    pub kind: String,
    /// Value.
    #[serde(default)]
    pub value: String,
    /// How often it was fired.
    #[serde(default)]
    pub fired: u64,
}

/// `POST /v1/jobs/{id}/metrics`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum MetricRequest {
    /// There is another one from now on.
    Add {
        /// As it is to be.
        metric: Metric,
    },
    /// It has another value, of which nobody is told.
    Set {
        /// Which.
        name: String,
        /// Value.
        value: String,
    },
    /// All who listen are told, by an event of the kind `metric.NAME` whose text is the value.
    Fire {
        /// Which.
        name: String,
        /// Another value, before.
        #[serde(default)]
        value: Option<String>,
    },
    /// There is no such one any more.
    Remove {
        /// Which.
        name: String,
    },
}

/// `POST /v1/jobs/{id}/checkpoint`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// Its path in the name space; as the job has it where nothing is said.
    #[serde(default)]
    pub name: Option<String>,
}
