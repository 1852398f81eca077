//! The interface of all engines: the six primitives of XtreemGCP (section 4.1), and the order they go in.
//!
//! [`Steps`] is what callers use. It lets no primitive out of turn, looks after what an engine says it has done, and
//! lets the job go on where a step fails (XGCP-API-7).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::PidFd;
use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::application::Application;
use crate::criu::Criu;
use crate::descriptor::{Descriptor, Driver};
use crate::dmtcp::Dmtcp;
use crate::external::External;
use crate::pager::Pager;
use crate::qemu::Qemu;

/// SIGCONT.
const CONTINUE: i32 = 18;
/// How often it is looked whether processes have stopped.
const LOOK: Duration = Duration::from_millis(2);

/// A job unit: everything in the caller's PID namespace but its init and processes from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Name of the job.
    pub job: String,
    /// Its root process.
    pub root: i32,
    /// All its processes.
    pub processes: Vec<i32>,
    /// A directory of the job that outlives its processes.
    pub job_directory: PathBuf,
    /// Where the engine's files are, or are to be.
    pub files: PathBuf,
    /// The control group of version 2 that names all its processes, where there is one that may be frozen.
    pub group: Option<PathBuf>,
}

/// The kind of group an engine takes a unit for (XGCP-PG-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// One process.
    Process,
    /// A process with all its descendants.
    Tree,
    /// A POSIX session.
    Session,
    /// A PID namespace.
    PidNamespace,
    /// A control group.
    Cgroup,
}

impl GroupKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Process => "process",
            GroupKind::Tree => "tree",
            GroupKind::Session => "session",
            GroupKind::PidNamespace => "pid-namespace",
            GroupKind::Cgroup => "cgroup",
        }
    }
}

/// What an engine has found to address a unit by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What it is.
    pub kind: GroupKind,
    /// Which one: a PID, a session ID, a path.
    pub id: String,
    /// The processes in it, as the engine sees them.
    pub processes: Vec<i32>,
}

/// What is there after a rebuild.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebuilt {
    /// The processes, stopped; this is their root.
    Root(i32),
    /// What the program needs is in place: start it anew, by its own command or this one.
    Start(Option<Vec<OsString>>),
}

/// An engine at work on one unit. Errors say what failed; [`Steps`] adds which step of which engine it was.
pub trait Engine {
    /// Finds a group that the engine can address and that contains all processes of the unit (XGCP-API-1).
    ///
    /// # Errors
    /// There is none; the engine cannot save the unit.
    fn prepare(&mut self, unit: &Unit) -> Result<Group>;

    /// Between `prepare` and `stop`: copies memory of the unit while it runs, so that less is left for the stop, until
    /// that is not worth it any more or `wanted` says no. Gives how much was copied, bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the engine cannot; it fails.
    fn copy_ahead(&mut self, _wanted: &mut dyn FnMut() -> bool) -> Result<u64> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "it copies memory while the job is stopped",
        ))
    }

    /// Stops the unit (XGCP-API-2).
    ///
    /// # Errors
    /// It cannot be stopped.
    fn stop(&mut self) -> Result<()>;

    /// Whether the processes of a unit stand still between `stop` and `resume_after_checkpoint`. Where a program saves
    /// itself they do not.
    fn holds(&self) -> bool;

    /// Saves the unit to its directory of files (XGCP-API-3).
    ///
    /// # Errors
    /// It cannot be saved.
    fn checkpoint(&mut self) -> Result<()>;

    /// Whether anything was saved.
    fn has_saved(&self, unit: &Unit) -> bool {
        has_contents(&unit.files)
    }

    /// Lets the unit go on (XGCP-API-4).
    ///
    /// # Errors
    /// It does not go on.
    fn resume_after_checkpoint(&mut self) -> Result<()>;

    /// Gives up between `stop` and `resume_after_checkpoint`, in good order where that can be had.
    fn abandon(&mut self);

    /// Builds the unit again from its files, and leaves it stopped (XGCP-API-5). The unit's `root` and `processes` are
    /// those that were saved.
    ///
    /// # Errors
    /// It cannot be built.
    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt>;

    /// Before `rebuild`: has the unit go on before its memory is there, which a [`Pager`] brings then.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the engine cannot.
    fn come_later(&mut self) -> Result<()> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "it reads all memory before the job runs",
        ))
    }

    /// What brings the memory of the unit, once it goes on; none where all is there.
    fn pager(&mut self) -> Option<Pager> {
        None
    }

    /// Lets the rebuilt unit go on (XGCP-API-6).
    ///
    /// # Errors
    /// It does not go on.
    fn resume_after_restart(&mut self) -> Result<()>;
}

/// Where a unit is between the primitives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Prepared,
    Stopped,
    Saved,
    Rebuilt,
    Done,
}

/// An engine at work, one primitive after the other.
pub struct Steps {
    name: String,
    engine: Box<dyn Engine>,
    unit: Unit,
    stage: Stage,
    /// Processes that stood still before we came.
    still: BTreeSet<i32>,
    stop_deadline: Duration,
    resume_deadline: Duration,
}

impl Steps {
    /// For one unit with the engine of this descriptor.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for the native engine: [`crate::Native`] needs more than a descriptor says.
    pub fn new(descriptor: &Descriptor, unit: Unit) -> Result<Steps> {
        let engine: Box<dyn Engine> = match descriptor.driver {
            Driver::Native => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("engine {} is no foreign engine", descriptor.name),
                ));
            }
            Driver::External => Box::new(External::new(descriptor)),
            Driver::Application => Box::new(Application::new(descriptor)?),
            Driver::Criu => Box::new(Criu::new(descriptor)),
            Driver::Qemu => Box::new(Qemu::new(descriptor)),
            Driver::Dmtcp => Box::new(Dmtcp::new(descriptor)),
        };
        Ok(Steps::with(
            &descriptor.name,
            engine,
            unit,
            descriptor.deadlines.stop(),
            descriptor.deadlines.resume(),
        ))
    }

    /// For one unit with an engine at hand. Where it says that all is done, it is given so long to show it.
    pub fn with(name: &str, engine: Box<dyn Engine>, unit: Unit, stop: Duration, resume: Duration) -> Steps {
        Steps {
            name: name.to_string(),
            engine,
            unit,
            stage: Stage::New,
            still: BTreeSet::new(),
            stop_deadline: stop,
            resume_deadline: resume,
        }
    }

    fn turn(&self, step: &str, stage: Stage) -> Result<()> {
        if self.stage == stage {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!("engine {}: {step} is out of turn", self.name),
        ))
    }

    /// Says which step of which engine failed. Before that lets the job go on, and ends the engine.
    fn fail(&mut self, step: &str, error: Error) -> Error {
        if matches!(self.stage, Stage::Prepared | Stage::Stopped | Stage::Saved) {
            self.abandon();
        }
        self.stage = Stage::Done;
        let hint = error.hint().map(str::to_string);
        let outer = Error::new(error.kind(), format!("engine {}: {step}", self.name)).with_source(error);
        match hint {
            Some(hint) => outer.with_hint(hint),
            None => outer,
        }
    }

    fn abandon(&mut self) {
        self.engine.abandon();
        // What the engine has left stopped.
        for pid in stopped(&self.unit.processes) {
            if !self.still.contains(&pid)
                && let Ok(process) = PidFd::open(pid)
            {
                // It may have ended just now.
                let _ = process.signal(CONTINUE);
            }
        }
    }

    /// Finds the group of the unit, and compares it with the unit: none too many and none too few (XGCP-PG-2).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where they differ; as [`Engine::prepare`].
    pub fn prepare(&mut self) -> Result<Group> {
        const STEP: &str = "prepare";
        self.turn(STEP, Stage::New)?;
        let group = match self.engine.prepare(&self.unit) {
            Ok(group) => group,
            Err(error) => return Err(self.fail(STEP, error)),
        };
        let ours: BTreeSet<i32> = self.unit.processes.iter().copied().collect();
        let theirs: BTreeSet<i32> = group.processes.iter().copied().collect();
        let list = |pids: Vec<&i32>| pids.iter().map(|pid| pid.to_string()).collect::<Vec<_>>().join(", ");
        let missing: Vec<&i32> = ours.difference(&theirs).collect();
        let foreign: Vec<&i32> = theirs.difference(&ours).collect();
        let mismatch = match (missing.is_empty(), foreign.is_empty()) {
            (true, true) => None,
            (false, _) => Some(format!("does not contain process {} of the job", list(missing))),
            (true, false) => Some(format!("contains process {}, which is not of the job", list(foreign))),
        };
        if let Some(mismatch) = mismatch {
            let what = format!("its {} {} {mismatch}", group.kind.name(), group.id);
            return Err(self.fail(STEP, Error::new(ErrorKind::Unsupported, what)));
        }
        self.still = stopped(&self.unit.processes).into_iter().collect();
        self.stage = Stage::Prepared;
        Ok(group)
    }

    /// Copies memory of the unit while it runs. Processes may have come and gone when that is done.
    ///
    /// # Errors
    /// As [`Engine::copy_ahead`].
    pub fn copy_ahead(&mut self, wanted: &mut dyn FnMut() -> bool) -> Result<u64> {
        const STEP: &str = "copy memory while the job runs";
        self.turn(STEP, Stage::Prepared)?;
        self.engine.copy_ahead(wanted).map_err(|error| self.fail(STEP, error))
    }

    /// Stops the unit, and sees that it stands still.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where it does not; as [`Engine::stop`].
    pub fn stop(&mut self) -> Result<()> {
        const STEP: &str = "stop";
        self.turn(STEP, Stage::Prepared)?;
        if let Err(error) = self.engine.stop() {
            return Err(self.fail(STEP, error));
        }
        let deadline = Instant::now() + self.stop_deadline;
        if self.engine.holds()
            && let Some(pid) = moving(&self.unit.processes, true, deadline)
        {
            let what = format!("it says that the job is stopped, and process {pid} is not");
            return Err(self.fail(STEP, Error::new(ErrorKind::TimedOut, what)));
        }
        self.stage = Stage::Stopped;
        Ok(())
    }

    /// Saves the unit, and sees that there is something.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where there is nothing; as [`Engine::checkpoint`].
    pub fn checkpoint(&mut self) -> Result<()> {
        const STEP: &str = "checkpoint";
        self.turn(STEP, Stage::Stopped)?;
        if let Err(error) = self.engine.checkpoint() {
            return Err(self.fail(STEP, error));
        }
        if !self.engine.has_saved(&self.unit) {
            let what = "it says that the job is saved, and there is not a byte of it";
            return Err(self.fail(STEP, Error::new(ErrorKind::Io, what)));
        }
        self.stage = Stage::Saved;
        Ok(())
    }

    /// Lets the unit go on after a checkpoint, and sees that it does.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where it did not, and was made to; as [`Engine::resume_after_checkpoint`].
    pub fn resume_after_checkpoint(&mut self) -> Result<()> {
        const STEP: &str = "resume after the checkpoint";
        self.turn(STEP, Stage::Saved)?;
        if let Err(error) = self.engine.resume_after_checkpoint() {
            return Err(self.fail(STEP, error));
        }
        let deadline = Instant::now() + self.resume_deadline;
        let running: Vec<i32> = self
            .unit
            .processes
            .iter()
            .copied()
            .filter(|pid| !self.still.contains(pid))
            .collect();
        if self.engine.holds()
            && let Some(pid) = moving(&running, false, deadline)
        {
            let what = format!("it says that the job goes on, and process {pid} stands still");
            return Err(self.fail(STEP, Error::new(ErrorKind::TimedOut, what)));
        }
        self.stage = Stage::Done;
        Ok(())
    }

    /// Gives up after `stop` and lets the unit go on.
    pub fn give_up(mut self) {
        self.abandon_if_begun();
    }

    /// Lets a unit go on that was not let go on or ended so far.
    pub fn abandon_if_begun(&mut self) {
        if matches!(self.stage, Stage::Prepared | Stage::Stopped | Stage::Saved) {
            self.abandon();
        }
        self.stage = Stage::Done;
    }

    /// After a checkpoint: the caller has ended all processes of the unit instead of letting them go on.
    pub fn ended(&mut self) {
        self.stage = Stage::Done;
        self.engine.abandon();
    }

    /// Builds the unit again, and sees that its root is there.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] where it is not; as [`Engine::rebuild`].
    pub fn rebuild(&mut self) -> Result<Rebuilt> {
        const STEP: &str = "rebuild";
        self.turn(STEP, Stage::New)?;
        let rebuilt = match self.engine.rebuild(&self.unit) {
            Ok(rebuilt) => rebuilt,
            Err(error) => return Err(self.fail(STEP, error)),
        };
        if let Rebuilt::Root(pid) = rebuilt
            && !(pid > 1 && lives(pid))
        {
            let what = format!("it says that the root of the job is process {pid}, which is not there");
            return Err(self.fail(STEP, Error::new(ErrorKind::Gone, what)));
        }
        self.stage = Stage::Rebuilt;
        Ok(rebuilt)
    }

    /// Has the unit go on before its memory is there.
    ///
    /// # Errors
    /// As [`Engine::come_later`].
    pub fn come_later(&mut self) -> Result<()> {
        const STEP: &str = "rebuild";
        self.turn(STEP, Stage::New)?;
        self.engine.come_later().map_err(|error| self.fail(STEP, error))
    }

    /// What brings the rest of its memory.
    pub fn pager(&mut self) -> Option<Pager> {
        self.engine.pager()
    }

    /// Lets the rebuilt unit go on.
    ///
    /// # Errors
    /// As [`Engine::resume_after_restart`].
    pub fn resume_after_restart(&mut self) -> Result<()> {
        const STEP: &str = "resume after the restart";
        self.turn(STEP, Stage::Rebuilt)?;
        self.engine
            .resume_after_restart()
            .map_err(|error| self.fail(STEP, error))?;
        self.stage = Stage::Done;
        Ok(())
    }
}

/// State letters of all threads of a process; none once it has ended.
fn thread_states(pid: i32) -> Option<Vec<u8>> {
    let tasks = ProcDir::open(pid).and_then(|proc| proc.tasks()).ok()?;
    let state = |tid: i32| {
        ProcDir::open_task(pid, tid)
            .and_then(|task| task.stat())
            .map(|stat| stat.state)
    };
    Some(tasks.into_iter().filter_map(|tid| state(tid).ok()).collect())
}

/// Whether a thread in this state stands still: stopped by a signal or a tracer, or ended.
fn stands_still(state: u8) -> bool {
    matches!(state, b'T' | b't' | b'Z' | b'X')
}

fn lives(pid: i32) -> bool {
    thread_states(pid).is_some_and(|states| states.iter().any(|state| !matches!(state, b'Z' | b'X')))
}

/// Those of the processes that live and of which a thread is stopped, or will be as soon as it sees to its signals.
fn stopped(pids: &[i32]) -> Vec<i32> {
    /// SIGSTOP in a mask.
    const STOP: u64 = 1 << 18;
    // Looked at in this order, since a signal that is no longer pending has stopped the process.
    let has_stopped = |pid: &i32| {
        let status = ProcDir::open(*pid).and_then(|proc| proc.status());
        let pending = status.is_ok_and(|status| (status.sig_pending | status.shared_pending) & STOP != 0);
        pending || thread_states(*pid).is_some_and(|states| states.iter().any(|state| matches!(state, b'T' | b't')))
    };
    pids.iter().copied().filter(has_stopped).collect()
}

/// The first process that at the deadline still does not stand still, or does where `still` is false. One that has
/// ended does as asked.
fn moving(pids: &[i32], still: bool, deadline: Instant) -> Option<i32> {
    loop {
        let late = Instant::now() >= deadline;
        let offends = |pid: &&i32| {
            let states = thread_states(**pid).unwrap_or_default();
            match still {
                true => states.iter().any(|state| !stands_still(*state)),
                false => states.iter().any(|state| matches!(state, b'T' | b't')),
            }
        };
        match pids.iter().find(offends) {
            Some(pid) if late => return Some(*pid),
            Some(_) => std::thread::sleep(LOOK),
            None => return None,
        }
    }
}

/// Whether there is a file with something in it below a directory.
fn has_contents(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => has_contents(&entry.path()),
        Ok(metadata) => metadata.is_file() && metadata.len() > 0,
        Err(_) => false,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Stops and lets go on by signals, saves a word, and fails where it is told to.
    struct Toy {
        process: i32,
        files: PathBuf,
        fails: &'static str,
    }

    impl Toy {
        fn act(&self, step: &str, signal: i32) -> Result<()> {
            if signal != 0 {
                PidFd::open(self.process).unwrap().signal(signal).unwrap();
            }
            if self.fails == step {
                return Err(Error::new(ErrorKind::Io, "as it was told"));
            }
            Ok(())
        }
    }

    impl Engine for Toy {
        fn prepare(&mut self, unit: &Unit) -> Result<Group> {
            self.act("prepare", 0)?;
            Ok(Group {
                kind: GroupKind::Process,
                id: unit.root.to_string(),
                processes: vec![self.process],
            })
        }

        fn stop(&mut self) -> Result<()> {
            self.act("stop", 19)
        }

        fn holds(&self) -> bool {
            true
        }

        fn checkpoint(&mut self) -> Result<()> {
            std::fs::write(self.files.join("saved"), "saved").unwrap();
            self.act("checkpoint", 0)
        }

        fn resume_after_checkpoint(&mut self) -> Result<()> {
            self.act("resume after the checkpoint", CONTINUE)
        }

        fn abandon(&mut self) {}

        fn rebuild(&mut self, _: &Unit) -> Result<Rebuilt> {
            self.act("rebuild", 0)?;
            Ok(Rebuilt::Root(self.process))
        }

        fn resume_after_restart(&mut self) -> Result<()> {
            self.act("resume after the restart", 0)
        }
    }

    struct Lab {
        child: Child,
        files: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Lab {
            Lab {
                child: Command::new("sleep").arg("1000").spawn().unwrap(),
                files: tempfile::tempdir().unwrap(),
            }
        }

        fn steps(&self, fails: &'static str) -> Steps {
            let pid = self.child.id() as i32;
            let files = self.files.path().to_path_buf();
            let unit = Unit {
                job: "sim".to_string(),
                root: pid,
                processes: vec![pid],
                job_directory: files.clone(),
                files: files.clone(),
                group: None,
            };
            let toy = Toy {
                process: pid,
                files,
                fails,
            };
            let second = Duration::from_secs(10);
            Steps::with("toy", Box::new(toy), unit, second, second)
        }

        fn runs(&self) -> bool {
            let pid = self.child.id() as i32;
            lives(pid) && moving(&[pid], false, Instant::now() + Duration::from_secs(10)).is_none()
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// One primitive of [`Steps`].
    type Step = fn(&mut Steps) -> Result<()>;
    const STEPS: [(&str, Step); 6] = [
        ("prepare", |steps| steps.prepare().map(drop)),
        ("stop", Steps::stop),
        ("checkpoint", Steps::checkpoint),
        ("resume after the checkpoint", Steps::resume_after_checkpoint),
        ("rebuild", |steps| steps.rebuild().map(drop)),
        ("resume after the restart", Steps::resume_after_restart),
    ];

    // XGCP-API-7
    #[test]
    fn primitives_out_of_turn_are_refused() {
        let lab = Lab::new();
        for done in 0..=4 {
            for (number, (name, step)) in STEPS.into_iter().enumerate() {
                let mut steps = lab.steps("");
                for (_, step) in &STEPS[..done] {
                    step(&mut steps).unwrap();
                }
                let in_turn = number == done && done < 4 || number == 4 && done == 0;
                let result = step(&mut steps);
                assert_eq!(result.is_ok(), in_turn, "{name} after {done}: {result:?}");
                steps.give_up();
                assert!(lab.runs());
            }
        }
    }

    // XGCP-API-7
    #[test]
    fn a_step_that_fails_leaves_the_unit_running() {
        for (failing, (name, _)) in STEPS[..4].iter().enumerate() {
            let lab = Lab::new();
            let mut steps = lab.steps(name);
            for (_, step) in &STEPS[..failing] {
                step(&mut steps).unwrap();
            }
            let error = STEPS[failing].1(&mut steps).unwrap_err();
            assert_eq!(error.chain(), format!("engine toy: {name}: as it was told"));
            assert!(lab.runs(), "{name}");
            // It is of no more use.
            assert!(STEPS[failing].1(&mut steps).is_err());
        }
    }

    // XGCP-PG-2
    #[test]
    fn a_group_with_other_processes_than_the_unit_is_refused() {
        let lab = Lab::new();
        for (own, said) in [
            (vec![], "contains process"),
            (vec![1, 2], "does not contain process 1, 2"),
        ] {
            let mut steps = lab.steps("");
            steps.unit.processes = own;
            let error = steps.prepare().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.chain().contains(said), "{}", error.chain());
        }
    }
}
