//! Jobs, checkpoints, nodes and events as users of the interface see them.
//!
//! Times ending in `_ms` are milliseconds since the epoch, by the clock of the grid service.

use std::collections::BTreeMap;

use cpr_types::{ConnectionEnd, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::staging::{self, Staging};

/// Most words of a command line, and variables of an environment.
const MOST_WORDS: usize = 16_384;
/// Seconds between checkpoints where that is to be adapted and nothing is known.
const ADAPT_FROM_S: u64 = 600;
/// Longest time that a node may put off a checkpoint, seconds; the service gives up those of units after 900.
const LONGEST_PATIENCE_S: u64 = 600;
/// The engine that jobs are saved by that ask for no other.
pub const NATIVE: &str = "native";

pub(crate) fn native() -> String {
    NATIVE.into()
}
/// Most units of a job.
const MOST_UNITS: usize = 256;
/// What says to a unit which one it is.
const UNIT: &str = "GRIDCPR_UNIT";
/// What says to a unit how many there are.
const UNITS: &str = "GRIDCPR_UNITS";
/// Most bytes of all words and variables together; below what execve(2) takes.
const MOST_BYTES: usize = 1 << 20;

/// What a job is to be, as its user submits it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name for people; it need not be unique.
    #[serde(default)]
    pub name: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory, absolute.
    pub directory: String,
    /// Environment. `PATH` has a default.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// File that standard output and error are appended to, absolute or below the working directory; `cpr-ID.out`
    /// where there is none.
    #[serde(default)]
    pub output: Option<String>,
    /// Seconds between checkpoints; none are made by schedule without it.
    #[serde(default)]
    pub every_s: Option<u64>,
    /// The time between checkpoints follows from what they cost and from how often the system fails; `every_s`, or ten
    /// minutes, is what it begins with.
    #[serde(default)]
    pub adapt: bool,
    /// Number of complete checkpoints kept while the job runs; 2 where nothing is said.
    #[serde(default)]
    pub keep: Option<u32>,
    /// Seconds after which a complete checkpoint may go, though fewer than `keep` stay; the newest one stays while the job
    /// may go on. No limit where nothing is said; those of a job that failed or was cancelled stay for a week then.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Jobs with higher numbers go first.
    #[serde(default)]
    pub priority: i32,
    /// Slots of a node the job takes; 1 where nothing is said.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Memory of a node the job takes, MiB.
    #[serde(default)]
    pub memory_mb: u64,
    /// The only node it may run on.
    #[serde(default)]
    pub node: Option<String>,
    /// Properties a node must publish.
    #[serde(default)]
    pub requires: BTreeMap<String, String>,
    /// Properties that the engine must have which is to save it; several words of one, separated by commas, all at once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<String, String>,
    /// Jobs that must have finished with exit code 0 before this one starts.
    #[serde(default)]
    pub after: Vec<i64>,
    /// Seconds a run may take before it is ended; counted again after each restart.
    #[serde(default)]
    pub time_limit_s: Option<u64>,
    /// How often the job is started again after failures of the system; 5 where nothing is said.
    #[serde(default)]
    pub retries: Option<u32>,
    /// Parts of the job that run at the same time, each on a node: all are started or none is, all are saved in one stop,
    /// and all go on together. A job without is one whole on one node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitSpec>,
    /// Its units need not be of one moment, because they say nothing to each other: each is saved by itself while the
    /// others run, and goes on by itself where the system fails under it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
    /// Seconds that its node may put off a checkpoint until the job, or the unit of independent ones, uses little memory;
    /// 600 at most. At once where nothing is said, and where the checkpoint is to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_low_s: Option<u64>,
    /// Files that are brought to its node before it starts: from the grid's area for files, or from elsewhere on the node, to
    /// below its working directory. On a node where it goes on they are brought if they are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_in: Vec<Staging>,
    /// Files that are brought away from below its working directory when it has ended. It has finished only when all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_out: Vec<Staging>,
}

/// What is different for one unit of a job; everything that is not said is as the job says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UnitSpec {
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// More environment. `GRIDCPR_UNIT`, from 0, and `GRIDCPR_UNITS` are there anyway.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// File that its output is appended to. `%u` in it, and in that of the job, stands for the number of the unit.
    #[serde(default)]
    pub output: Option<String>,
    /// Slots of its node that it takes.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Memory of its node that it takes, MiB.
    #[serde(default)]
    pub memory_mb: Option<u64>,
    /// The only node it may run on.
    #[serde(default)]
    pub node: Option<String>,
    /// More properties that its node must publish.
    #[serde(default)]
    pub requires: BTreeMap<String, String>,
}

impl JobSpec {
    /// What one unit is to be, as a job by itself.
    pub fn unit(&self, number: usize) -> JobSpec {
        let mut whole = JobSpec {
            units: Vec::new(),
            independent: false,
            ..self.clone()
        };
        if let Some(unit) = self.units.get(number) {
            if !unit.command.is_empty() {
                whole.command.clone_from(&unit.command);
            }
            whole.environment.extend(unit.environment.clone());
            whole.requires.extend(unit.requires.clone());
            let output = unit.output.as_ref().or(self.output.as_ref());
            whole.output = output.map(|output| output.replace("%u", &number.to_string()));
            whole.slots = unit.slots.or(self.slots);
            whole.memory_mb = unit.memory_mb.unwrap_or(self.memory_mb);
            whole.number_staged("%u", &number.to_string());
            whole.node = unit.node.clone().or(self.node.clone());
        }
        whole.environment.insert(UNIT.into(), number.to_string());
        whole.environment.insert(UNITS.into(), self.units.len().to_string());
        whole
    }

    /// Refuses what could not be run, and what is too large to be kept (GFD93-SM-11).
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Usage, format!("job is refused: {what}")));
        if self.units.is_empty() && self.independent {
            return refuse("it is independent, and has no units".into());
        }
        if !self.units.is_empty() && !self.independent && self.save_low_s.is_some() {
            return refuse("its units are saved in one stop, and cannot each wait until they use little memory".into());
        }
        if self.units.is_empty() {
            return self.check_whole();
        }
        if self.units.len() > MOST_UNITS {
            return refuse(format!("it has more than {MOST_UNITS} units"));
        }
        let texts = |unit: &UnitSpec| {
            let words = unit.command.iter().map(String::len).sum::<usize>();
            let pairs = unit.environment.iter().chain(&unit.requires);
            words + pairs.map(|(name, value)| name.len() + value.len()).sum::<usize>()
        };
        if self.units.iter().map(texts).sum::<usize>() > MOST_BYTES {
            return refuse("what its units differ in is too long".into());
        }
        for number in 0..self.units.len() {
            self.unit(number)
                .check_whole()
                .map_err(|error| Error::new(error.kind(), format!("unit {number}")).with_source(error))?;
        }
        Ok(())
    }

    fn check_whole(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Usage, format!("job is refused: {what}")));
        let words = || self.command.iter().map(String::as_str);
        let variables = || {
            self.environment
                .iter()
                .flat_map(|(name, value)| [name.as_str(), value.as_str()])
        };
        let all = || {
            words()
                .chain(variables())
                .chain([self.directory.as_str()])
                .chain(self.output.as_deref())
        };
        if self.command.first().is_none_or(String::is_empty) {
            return refuse("there is no command".into());
        }
        if !self.directory.starts_with('/') {
            return refuse(format!("working directory {:?} is not absolute", self.directory));
        }
        if all().count() > MOST_WORDS || all().map(str::len).sum::<usize>() > MOST_BYTES {
            return refuse("command and environment are too long".into());
        }
        if all().any(|text| text.contains('\0')) {
            return refuse("command, environment or paths contain a null byte".into());
        }
        if let Some(name) = self
            .environment
            .keys()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return refuse(format!("{name:?} cannot be the name of a variable"));
        }
        if self
            .name
            .as_ref()
            .is_some_and(|name| name.len() > 200 || name.chars().any(char::is_control))
        {
            return refuse("the name is longer than 200 bytes or contains control characters".into());
        }
        if self
            .save_low_s
            .is_some_and(|patience| !(1..=LONGEST_PATIENCE_S).contains(&patience))
        {
            return refuse(format!("save_low_s is 1 to {LONGEST_PATIENCE_S}"));
        }
        let times = [self.every_s, self.ttl_s, self.time_limit_s];
        if self.slots == Some(0) || self.keep == Some(0) || times.contains(&Some(0)) {
            return refuse("slots, every_s, keep, ttl_s and time_limit_s cannot be 0".into());
        }
        self.stage_in.iter().try_for_each(|staged| staged.check(true))?;
        self.stage_out.iter().try_for_each(|staged| staged.check(false))?;
        if self.stage_in.len().max(self.stage_out.len()) > staging::MOST {
            return refuse(format!("more than {} files are staged", staging::MOST));
        }
        let conditions = self.requires.len() + self.needs.len();
        if self.memory_mb > 1 << 40 || conditions > 100 || self.after.len() > 1000 {
            return refuse("it asks for too much".into());
        }
        Ok(())
    }

    /// Puts a number in place of its mark in what is staged.
    pub fn number_staged(&mut self, mark: &str, number: &str) {
        for staged in self.stage_in.iter_mut().chain(&mut self.stage_out) {
            *staged = staged.numbered(mark, number);
        }
    }

    /// Whether it needs a node that reaches the grid's area for files.
    pub fn uses_area(&self) -> bool {
        self.stage_in.iter().chain(&self.stage_out).any(Staging::uses_area)
    }

    /// Slots it takes.
    pub fn slots(&self) -> u32 {
        self.slots.unwrap_or(1)
    }

    /// Complete checkpoints that are kept while it runs.
    pub fn keep(&self) -> usize {
        self.keep.unwrap_or(2) as usize
    }

    /// Starts after failures of the system.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(5)
    }
}

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

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Waits for a node, a dependency, or the time of its next attempt.
    Queued,
    /// A node has been told to start it.
    Starting,
    /// Runs.
    Running,
    /// Saved to a checkpoint and ended by its user; `resume` queues it.
    Suspended,
    /// Ended with exit code 0.
    Finished,
    /// Ended by its own fault, or by failures of the system too often.
    Failed,
    /// Ended by its user or an operator.
    Cancelled,
}

impl JobState {
    /// All, in the order of a life.
    pub const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Starting,
        JobState::Running,
        JobState::Suspended,
        JobState::Finished,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// As it is written in the interface.
    pub const fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Starting => "starting",
            JobState::Running => "running",
            JobState::Suspended => "suspended",
            JobState::Finished => "finished",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// A node has it, or may have it.
    pub const fn is_placed(self) -> bool {
        matches!(self, JobState::Starting | JobState::Running)
    }

    /// Nothing will happen to it by itself.
    pub const fn is_over(self) -> bool {
        matches!(self, JobState::Finished | JobState::Failed | JobState::Cancelled)
    }
}

impl std::str::FromStr for JobState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = JobState::ALL.into_iter().find(|state| state.name() == text);
        found.ok_or_else(|| {
            let all = JobState::ALL.map(JobState::name).join(", ");
            Error::new(ErrorKind::Usage, format!("there is no job state {text:?}"))
                .with_hint(format!("states are {all}"))
        })
    }
}

/// Why a job that a node has is being ended, and so what becomes of it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// It stays ended until `resume`.
    Suspend,
    /// It goes on elsewhere; on this node, where one is named.
    Move(Option<String>),
    /// It is ended without a checkpoint, because its user wants it so.
    Cancel,
    /// It is ended without a checkpoint, because its time is over.
    Expire,
}

/// Where a unit of a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UnitPhase {
    /// No node has it.
    #[default]
    Waiting,
    /// Its node has been told to start it.
    Starting,
    /// Its image is there; it is made again, with its connections to others, when all are so far.
    Ready,
    /// It has been made again from its image, and goes on when all units have been.
    Built,
    /// Runs.
    Running,
    /// Ended with exit code 0.
    Finished,
    /// Ended by its own fault, or could not be started.
    Failed,
    /// Ended by the grid, with the job.
    Ended,
    /// The system failed under it.
    Lost,
}

impl UnitPhase {
    /// As it is written in the interface.
    pub const fn name(self) -> &'static str {
        match self {
            UnitPhase::Waiting => "waiting",
            UnitPhase::Starting => "starting",
            UnitPhase::Ready => "ready",
            UnitPhase::Built => "built",
            UnitPhase::Running => "running",
            UnitPhase::Finished => "finished",
            UnitPhase::Failed => "failed",
            UnitPhase::Ended => "ended",
            UnitPhase::Lost => "lost",
        }
    }

    /// A node has it, or may have it.
    pub const fn is_placed(self) -> bool {
        matches!(
            self,
            UnitPhase::Starting | UnitPhase::Ready | UnitPhase::Built | UnitPhase::Running
        )
    }
}

/// A unit of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Unit {
    /// Where it is.
    pub phase: UnitPhase,
    /// The node that has it, or had it last.
    #[serde(default)]
    pub node: Option<String>,
    /// The engine that saves it.
    pub engine: String,
    /// Its image that this start went on from.
    #[serde(default)]
    pub from: Option<i64>,
    /// Which start of the job it is of: units that go on alone have one of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u32>,
    /// Exit code, once it has ended by itself; 128 + signal where a signal ended it.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
}

/// What becomes of a job of several units when all of them have ended, because of what happened to the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// One has failed by itself.
    Failed {
        /// Exit code.
        code: i32,
        /// Signal that ended it.
        signal: Option<i32>,
    },
    /// All are saved in a checkpoint that was to end the job.
    Saved,
    /// The system failed under one.
    Broken {
        /// How.
        why: String,
    },
    /// One cannot be run at all.
    Refused {
        /// Why.
        why: String,
    },
    /// They are ended on order.
    Killed,
}

/// Which element of an array a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Element {
    /// The array: the number of its first job.
    pub id: i64,
    /// The index; the job has it in its environment as `GRIDCPR_ARRAY_INDEX`.
    pub index: i64,
}

/// `POST /v1/arrays`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ArrayRequest {
    /// What every job is to be. `%a` in `output` stands for the index.
    pub spec: JobSpec,
    /// First index.
    pub first: i64,
    /// Last index.
    pub last: i64,
    /// From one index to the next.
    #[serde(default = "one")]
    pub step: i64,
}

fn one() -> i64 {
    1
}

/// An array of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Array {
    /// Its number: that of its first job.
    pub id: i64,
    /// Its jobs, in the order of their indices.
    pub jobs: Vec<i64>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Job {
    /// Number that no other job of the grid has or will have.
    pub id: i64,
    /// Whose it is.
    pub owner: Owner,
    /// What it is to be.
    pub spec: JobSpec,
    /// Where it is in its life.
    pub state: JobState,
    /// The array it is of.
    #[serde(default)]
    pub array: Option<Element>,
    /// Why it is in this state, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// The node that has it; none where it has units, which have one each.
    #[serde(default)]
    pub node: Option<String>,
    /// Its units, where it has several.
    #[serde(default)]
    pub units: Vec<Unit>,
    /// What becomes of it when the last of its units has ended; none where they go on.
    #[serde(default)]
    pub ending: Option<Ending>,
    /// The engine that saves it, as it was chosen with its node; units have theirs.
    #[serde(default = "native")]
    pub engine: String,
    /// How often it has been started, restarts included.
    pub incarnation: u32,
    /// The checkpoint its newest start went on from; none where it began at the beginning.
    #[serde(default)]
    pub from: Option<i64>,
    /// The checkpoint its next start has to go on from, where somebody chose one.
    #[serde(default)]
    pub next_from: Option<i64>,
    /// The node its next start has to be on, where somebody chose one.
    #[serde(default)]
    pub next_node: Option<String>,
    /// Starts after failures of the system, since it last made a checkpoint.
    pub failures: u32,
    /// Checkpoints that it could not be started from since it last ran, once for each attempt.
    #[serde(default)]
    pub bad_starts: Vec<i64>,
    /// Not started before.
    #[serde(default)]
    pub not_before_ms: i64,
    /// Why it is being ended; none where it is not.
    #[serde(default)]
    pub intent: Option<Intent>,
    /// Exit code, once it has ended; 128 + signal where a signal ended it.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// When it was submitted.
    pub submitted_ms: i64,
    /// When its newest incarnation began to run.
    #[serde(default)]
    pub started_ms: Option<i64>,
    /// When it ended for good.
    #[serde(default)]
    pub ended_ms: Option<i64>,
    /// Time between its checkpoints, as it has been adapted.
    #[serde(default)]
    pub interval_ms: Option<i64>,
    /// When its newest scheduled or asked-for checkpoint was begun.
    #[serde(default)]
    pub checkpoint_begun_ms: Option<i64>,
}

impl Job {
    /// Which start of the job that of a unit is.
    pub fn incarnation_of(&self, unit: u32) -> u32 {
        let alone = self.units.get(unit as usize).and_then(|unit| unit.incarnation);
        alone.unwrap_or(self.incarnation)
    }

    /// A job as it is when it is submitted.
    pub fn new(id: i64, owner: Owner, spec: JobSpec, submitted_ms: i64) -> Job {
        let unit = Unit {
            engine: NATIVE.into(),
            ..Unit::default()
        };
        Job {
            id,
            owner,
            state: JobState::Queued,
            array: None,
            reason: None,
            node: None,
            units: vec![unit; spec.units.len()],
            ending: None,
            engine: NATIVE.into(),
            spec,
            incarnation: 0,
            from: None,
            next_from: None,
            next_node: None,
            failures: 0,
            bad_starts: Vec::new(),
            not_before_ms: 0,
            intent: None,
            exit_code: None,
            signal: None,
            submitted_ms,
            started_ms: None,
            ended_ms: None,
            interval_ms: None,
            checkpoint_begun_ms: None,
        }
    }

    /// Time between its checkpoints; none where none are made by schedule.
    pub fn every_ms(&self) -> Option<i64> {
        let begin_s = self.spec.every_s.or(self.spec.adapt.then_some(ADAPT_FROM_S));
        let begin_ms = begin_s.map(|every| i64::try_from(every.saturating_mul(1000)).unwrap_or(i64::MAX));
        self.interval_ms.filter(|_| self.spec.adapt).or(begin_ms)
    }
}

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
    /// Its number among the checkpoints, as which it can be asked for.
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

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Its lease holds, and it takes jobs.
    Ready,
    /// Its lease holds; it takes no more jobs, and those it has go elsewhere.
    Draining,
    /// Its lease has lapsed.
    Lost,
}

impl NodeState {
    /// As it is written in the interface.
    pub const fn name(self) -> &'static str {
        match self {
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
            NodeState::Lost => "lost",
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Where other nodes fetch images, as `HOST:PORT`; empty where they cannot.
    #[serde(default)]
    pub address: String,
    /// Jobs it takes at once, counted in slots.
    pub slots: u32,
    /// Its memory, MiB.
    pub memory_mb: u64,
    /// It reaches the store that all nodes share.
    #[serde(default)]
    pub has_store: bool,
    /// It can have units of jobs that have several, and does step by step what their coordinator says.
    #[serde(default)]
    pub has_units: bool,
    /// Engines that work on it, the preferred one first.
    #[serde(default)]
    pub engines: Vec<String>,
    /// Classes of engines, each with the names of those of its members that work.
    #[serde(default)]
    pub classes: BTreeMap<String, Vec<String>>,
    /// What each of the engines can do.
    #[serde(default)]
    pub abilities: BTreeMap<String, Abilities>,
    /// Anything more that jobs can ask for: architecture, kernel, what its operator configured.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// What an engine can do, as its node publishes it. How it is run there is the node's business.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Abilities {
    /// Version, where it is known.
    #[serde(default)]
    pub version: Option<String>,
    /// Words of each property.
    #[serde(default)]
    pub properties: BTreeMap<String, Vec<String>>,
}

impl Abilities {
    /// Whether all these words are among those of their properties.
    pub fn have(&self, needs: &BTreeMap<String, String>) -> bool {
        needs.iter().all(|(key, words)| {
            let known = self.properties.get(key);
            words
                .split(',')
                .all(|word| known.is_some_and(|known| known.iter().any(|has| has == word)))
        })
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Node {
    /// What it says of itself.
    pub info: NodeInfo,
    /// State.
    pub state: NodeState,
    /// Whether an operator wants it drained; a lost node that comes back is then drained still.
    #[serde(default)]
    pub drain: bool,
    /// What is wrong with it, as somebody or its detector has said; it is drained for that.
    #[serde(default)]
    pub fault: Option<String>,
    /// Made anew by each start of its agent on a fresh directory; tells two agents of one name apart.
    #[serde(default)]
    pub instance: String,
    /// When it was first, and last, heard of.
    pub first_seen_ms: i64,
    /// The same; written down when its state changes, not with every heartbeat.
    pub last_seen_ms: i64,
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
