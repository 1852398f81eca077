//! Jobs and their units.

use std::collections::BTreeMap;

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::names::Naming;
use super::{NATIVE, Owner};
use crate::staging::{self, Staging};

/// Most bytes of all words and variables together; below what execve(2) takes.
const MOST_BYTES: usize = 1 << 20;
/// What says to a unit how many there are.
const UNITS: &str = "GRIDCPR_UNITS";
/// What says to a unit which one it is.
const UNIT: &str = "GRIDCPR_UNIT";
/// What says to a unit where each of them runs.
const UNIT_HOSTS: &str = "GRIDCPR_UNIT_HOSTS";
/// What all units of one start have in common, and no other start.
const UNITS_ID: &str = "GRIDCPR_UNITS_ID";
/// Most units of a job.
const MOST_UNITS: usize = 256;
/// Longest time that a node may put off a checkpoint, seconds; the service gives up those of units after 900.
const LONGEST_PATIENCE_S: u64 = 600;
/// Seconds between checkpoints where that is to be adapted and nothing is known.
const ADAPT_FROM_S: u64 = 600;
/// Most words of a command line, and variables of an environment.
const MOST_WORDS: usize = 16_384;

pub(crate) fn native() -> String {
    NATIVE.into()
}

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
    /// Seconds after which a complete checkpoint may go, though fewer than `keep` stay; the newest one stays while the
    /// job may go on. No limit where nothing is said; those of a job that failed or was cancelled stay for a week then.
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
    /// Properties that the engine must have which is to save it; several words of one, separated by commas, all at
    /// once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<String, String>,
    /// Jobs that must have finished with exit code 0 before this one starts.
    #[serde(default)]
    pub after: Vec<i64>,
    /// Seconds a run may take before it is ended; counted again after each restart.
    #[serde(default)]
    pub time_limit_s: Option<u64>,
    /// Time on processors that it is thought to take, seconds: for people and for whoever plans by it. Nothing of the
    /// grid does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time_s: Option<u64>,
    /// How often the job is started again after failures of the system; 5 where nothing is said.
    #[serde(default)]
    pub retries: Option<u32>,
    /// Parts of the job that run at the same time, each on a node: all are started or none is, all are saved in one
    /// stop, and all go on together. A job without is one whole on one node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitSpec>,
    /// Its units need not be of one moment, because they say nothing to each other: each is saved by itself while the
    /// others run, and goes on by itself where the system fails under it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
    /// Seconds that its node may put off a checkpoint until the job, or the unit of independent ones, uses little
    /// memory; 600 at most. At once where nothing is said, and where the checkpoint is to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_low_s: Option<u64>,
    /// Files that are brought to its node before it starts: from the grid's area for files, or from elsewhere on the
    /// node, to below its working directory. On a node where it goes on they are brought if they are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_in: Vec<Staging>,
    /// Files that are brought away from below its working directory when it has ended. It has finished only when all
    /// are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_out: Vec<Staging>,
    /// Where its checkpoints have names in the grid's name space. They are kept for `ttl_s` then, also when it has
    /// ended, and all of them where `keep` says nothing. In its environment `#JobID#` and `#UserID#` are filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Naming>,
    /// A checkpoint, also of another job of the same user, that it begins from instead of at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    /// It does not start before, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
}

/// What is different for one unit of a job; everything that is not said is as the job says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UnitSpec {
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// More environment. `GRIDCPR_UNIT`, from 0, `GRIDCPR_UNITS`, `GRIDCPR_UNIT_HOSTS` and `GRIDCPR_UNITS_ID` are
    /// there anyway.
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

    /// Says to a unit, when it is started from the beginning, which start it is of and where each unit runs: for each
    /// the host that its node is reached at, empty where that is not known.
    pub fn tell_unit(&mut self, job: i64, start: u32, hosts: &[String]) {
        self.environment.insert(UNITS_ID.into(), format!("{job}.{start}"));
        self.environment.insert(UNIT_HOSTS.into(), hosts.join(","));
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

    pub(super) fn check_whole(&self) -> Result<()> {
        if let Some(names) = &self.names {
            names.check()?;
        }
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
        let named = self.names.is_some();
        self.keep
            .map_or(if named { usize::MAX } else { 2 }, |keep| keep as usize)
    }

    /// Starts after failures of the system.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(5)
    }
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

pub(super) fn one() -> i64 {
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

/// What a job has used, as its nodes have last seen it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Used {
    /// Time on processors, of all its processes and all its starts, milliseconds.
    pub cpu_ms: u64,
    /// Memory in use now, bytes; what processes share is counted for each.
    pub memory: u64,
    /// The most that was seen.
    pub most_memory: u64,
    /// Address space now, bytes.
    pub virtual_memory: u64,
    /// The most that was seen.
    pub most_virtual_memory: u64,
}

impl Used {
    /// What a start or unit has used comes to what was used before.
    pub fn add(&mut self, other: Used) {
        self.cpu_ms = self.cpu_ms.saturating_add(other.cpu_ms);
        self.memory = self.memory.saturating_add(other.memory);
        self.virtual_memory = self.virtual_memory.saturating_add(other.virtual_memory);
        self.most_memory = self.most_memory.max(other.most_memory).max(self.memory);
        self.most_virtual_memory = self
            .most_virtual_memory
            .max(other.most_virtual_memory)
            .max(self.virtual_memory);
    }

    /// The same when nothing of it runs any more.
    #[must_use]
    pub fn over(self) -> Used {
        Used {
            memory: 0,
            virtual_memory: 0,
            ..self
        }
    }
}

/// A signal that a job is to get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobSignal {
    /// Its number among those of the job, from 1.
    pub id: u64,
    /// The signal.
    pub number: i32,
    /// The units that have not got it so far, of a job that has several.
    #[serde(default)]
    pub units: Vec<u32>,
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
    /// Signals that it is to get and has not got so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<JobSignal>,
    /// Signals that it was ever to get.
    #[serde(default)]
    pub signal_count: u64,
    /// What it has used.
    #[serde(default)]
    pub used: Used,
}

impl Job {
    /// Which start of the job that of a unit is.
    pub fn incarnation_of(&self, unit: u32) -> u32 {
        let alone = self.units.get(unit as usize).and_then(|unit| unit.incarnation);
        alone.unwrap_or(self.incarnation)
    }

    /// A job as it is when it is submitted.
    pub fn new(id: i64, owner: Owner, spec: JobSpec, submitted_ms: i64) -> Job {
        let not_before_ms = spec.not_before_ms;
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
            not_before_ms: not_before_ms.unwrap_or(0),
            intent: None,
            exit_code: None,
            signal: None,
            submitted_ms,
            started_ms: None,
            ended_ms: None,
            interval_ms: None,
            checkpoint_begun_ms: None,
            signals: Vec::new(),
            signal_count: 0,
            used: Used::default(),
        }
    }

    /// Time between its checkpoints; none where none are made by schedule.
    pub fn every_ms(&self) -> Option<i64> {
        let begin_s = self.spec.every_s.or(self.spec.adapt.then_some(ADAPT_FROM_S));
        let begin_ms = begin_s.map(|every| i64::try_from(every.saturating_mul(1000)).unwrap_or(i64::MAX));
        self.interval_ms.filter(|_| self.spec.adapt).or(begin_ms)
    }
}
