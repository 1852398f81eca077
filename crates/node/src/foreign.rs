//! Jobs of engines other than our own: saving them in a worker, and starting them again in the job's init.
//!
//! Both run inside the job's namespaces, so that the engine sees the PIDs that are in its files. The engine's files are
//! in a directory of the job while it works; what a user gets is one image ([`cpr_image::Bundle`]).

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_engines::{Descriptor, Images, Pager, Place, Rebuilt, Registry, Steps, Trigger, Unit};
use cpr_image::{Bundle, BundleRecord, BundleSummary, ImageId, write_bundle};
use cpr_kernel::process::PidFd;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointOptions;
use crate::engine::{After, Basis, CheckpointReport, Destination, Event, Method, Observer};
use crate::gate::Gate;
use crate::job::{Job, KILL, redirection};
use crate::target;

/// How often the processes of a job that keep coming and going are looked for.
const LOOKS: usize = 5;

/// The engine's files, below the job's directory.
const FILES: &str = "engine-files";
/// Programs of an engine that builds a job again get higher PIDs than this, so that the job finds its own free.
const HIGH_PID: i32 = 20_000;

/// The engine that a job is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineUse {
    /// Its name.
    pub name: String,
    /// Its version, where it is known.
    pub version: Option<String>,
}

/// What the processes of a job are known by.
pub(crate) struct Addressed {
    /// The root process, in the job's own namespace.
    pub(crate) root: i32,
    /// The job has a PID namespace to itself.
    pub(crate) own_namespace: bool,
    /// The control group that names them all.
    pub(crate) group: Option<PathBuf>,
}

/// One checkpoint.
pub(crate) struct Saving {
    descriptor: Descriptor,
    record: BundleRecord,
    files: PathBuf,
    job_directory: PathBuf,
    /// The job has a PID namespace to itself.
    own_namespace: bool,
    /// The job's control group.
    group: Option<PathBuf>,
    after: After,
    /// Memory is copied while the job runs.
    live: bool,
    /// How much of it was, bytes.
    ahead: u64,
}

/// One restart.
pub(crate) struct Building {
    descriptor: Descriptor,
    record: BundleRecord,
    files: PathBuf,
    job_directory: PathBuf,
}

/// An empty directory for the engine's files.
fn fresh_files(job: &Job) -> Result<PathBuf> {
    // Of a checkpoint or restart that was killed.
    match job.directory.remove_tree(FILES) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    job.directory.create_sub(FILES)?;
    Ok(job.path().join(FILES))
}

/// Removes the engine's files of a checkpoint or restart.
fn remove_files(files: &Path) {
    // The next one tries again.
    let _ = std::fs::remove_dir_all(files);
}

fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Refuses what only the native engine can do.
fn require_plain(descriptor: &Descriptor, options: &CheckpointOptions) -> Result<()> {
    let engine = &descriptor.name;
    let asked = if options.basis != Basis::Full {
        "an increment"
    } else if options.compare {
        "--compare"
    } else if options.compression.is_some() {
        "--compress"
    } else if options.tcp.is_some() {
        "--tcp"
    } else if !options.files.is_empty() {
        "--file"
    } else if options.live {
        return descriptor.require_live();
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("engine {engine} cannot do what is asked for: {asked}"),
    ))
}

impl Saving {
    /// Everything that has to be known before the job's namespaces are entered.
    pub(crate) fn new(
        job: &Job,
        engine: &EngineUse,
        options: &CheckpointOptions,
        unit: Addressed,
        after: After,
    ) -> Result<Saving> {
        let registry = Registry::load()?;
        let descriptor = registry.engine(&engine.name)?.clone();
        require_plain(&descriptor, options)?;
        if descriptor.trigger == Trigger::Own {
            let text = format!(
                "checkpoints of engine {} are begun by the program itself only",
                engine.name
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let mut saving = Saving::with(job, engine, descriptor, unit, after)?;
        saving.live = options.live;
        Ok(saving)
    }

    /// For what the program has saved itself.
    pub(crate) fn own(job: &Job, engine: &EngineUse, root: i32) -> Result<Saving> {
        let registry = Registry::load()?;
        let descriptor = registry.engine(&engine.name)?.clone();
        let unit = Addressed {
            root,
            own_namespace: false,
            group: None,
        };
        Saving::with(job, engine, descriptor, unit, After::Continue)
    }

    fn with(job: &Job, engine: &EngineUse, descriptor: Descriptor, unit: Addressed, after: After) -> Result<Saving> {
        Ok(Saving {
            record: BundleRecord {
                id: ImageId::random()?.to_string(),
                engine: engine.name.clone(),
                version: engine.version.clone(),
                job: job.name().to_string(),
                owner_uid: rustix::process::geteuid().as_raw(),
                time_ns: crate::state::now_ms().saturating_mul(1_000_000),
                node: node_name(),
                command: job.stored.command.clone(),
                directory: job.stored.directory.clone(),
                root: unit.root,
                processes: Vec::new(),
                group: (String::new(), String::new()),
            },
            descriptor,
            files: fresh_files(job)?,
            job_directory: job.path().to_path_buf(),
            own_namespace: unit.own_namespace,
            group: unit.group,
            after,
            live: false,
            ahead: 0,
        })
    }

    /// In the worker: saves the job.
    pub(crate) fn save(mut self, destination: Destination, events: &mut Observer<'_>) -> Result<CheckpointReport> {
        let result = self.save_files(destination, events);
        remove_files(&self.files);
        result
    }

    /// Makes an image of what the program has saved itself. Nothing is asked, and nothing stands still.
    pub(crate) fn register(self, destination: Destination, events: &mut Observer<'_>) -> Result<CheckpointReport> {
        let began = Instant::now();
        let saved = cpr_engines::save_own(&self.descriptor, &self.unit());
        let summary = saved.and_then(|()| self.publish(destination, events));
        remove_files(&self.files);
        Ok(self.report(&summary?, 0, Duration::ZERO, began.elapsed()))
    }

    fn unit(&self) -> Unit {
        Unit {
            job: self.record.job.clone(),
            root: self.record.root,
            processes: self.record.processes.clone(),
            job_directory: self.job_directory.clone(),
            files: self.files.clone(),
            group: self.group.clone(),
        }
    }

    /// Finds the job's processes, and has the engine find them. Where the two differ both look again: processes may
    /// have come or gone between them.
    pub(crate) fn prepare(&mut self) -> Result<Steps> {
        let mut looks = 0;
        loop {
            self.record.processes = members_of(self.record.root, self.own_namespace)?;
            let mut steps = Steps::new(&self.descriptor, self.unit())?;
            let error = match steps.prepare() {
                Ok(group) => {
                    self.record.group = (group.kind.name().to_string(), group.id);
                    return Ok(steps);
                }
                Err(error) => error,
            };
            looks += 1;
            if error.kind() != ErrorKind::Unsupported || looks == LOOKS {
                return Err(error);
            }
        }
    }

    fn save_files(&mut self, destination: Destination, events: &mut Observer<'_>) -> Result<CheckpointReport> {
        let began = Instant::now();
        let mut steps = self.prepare()?;
        if self.live {
            self.ahead = steps.copy_ahead(&mut || !nobody_waits(events, "copy"))?;
            if nobody_waits(events, "checkpoint") {
                return Err(cancelled());
            }
            // Processes may have come and gone meanwhile.
            steps = self.prepare()?;
        }
        let processes = self.record.processes.clone();
        let stopping = Instant::now();
        steps.stop()?;
        let threads = processes.iter().map(|pid| threads(*pid)).sum();
        if nobody_waits(events, "checkpoint") {
            steps.give_up();
            return Err(cancelled());
        }
        steps.checkpoint()?;
        let (freeze, summary) = match self.after {
            After::Kill => {
                let freeze = stopping.elapsed();
                match self.publish(destination, events) {
                    Ok(summary) => {
                        signal_all(&processes, KILL);
                        steps.ended();
                        (freeze, summary)
                    }
                    Err(error) => {
                        steps.give_up();
                        return Err(error);
                    }
                }
            }
            After::Continue | After::Signal(_) => {
                steps.resume_after_checkpoint()?;
                let freeze = stopping.elapsed();
                let summary = self.publish(destination, events)?;
                if let After::Signal(signal) = self.after {
                    signal_all(&processes, signal);
                }
                (freeze, summary)
            }
        };
        Ok(self.report(&summary, threads, freeze, began.elapsed()))
    }

    /// What there is to tell of a checkpoint.
    pub(crate) fn report(
        &self,
        summary: &BundleSummary,
        threads: usize,
        freeze: Duration,
        total: Duration,
    ) -> CheckpointReport {
        CheckpointReport {
            image_id: self.record.id.clone(),
            image_bytes: summary.length,
            data_bytes: summary.data_bytes,
            freeze_ns: freeze.as_nanos() as u64,
            total_ns: total.as_nanos() as u64,
            processes: self.record.processes.len(),
            threads,
            parent: None,
            root_hash: summary.root_hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            method: if self.live { Method::Live } else { Method::Stop },
            stopped_bytes: summary.data_bytes.saturating_sub(self.ahead),
            compared_pages: None,
        }
    }

    /// Processes and threads that are saved, once prepared.
    pub(crate) fn processes(&self) -> (Vec<i32>, usize) {
        let processes = &self.record.processes;
        (processes.clone(), processes.iter().map(|pid| threads(*pid)).sum())
    }

    /// Removes the engine's own files.
    pub(crate) fn tidy(&self) {
        remove_files(&self.files);
    }

    /// Makes the engine's files an image that is complete and durable.
    pub(crate) fn publish(&self, destination: Destination, events: &mut Observer<'_>) -> Result<BundleSummary> {
        if nobody_waits(events, "write") {
            return Err(cancelled());
        }
        match destination {
            Destination::File(pending) => {
                let summary = write_bundle(&pending, &self.files, self.record.clone())?;
                pending.publish(None)?;
                Ok(summary)
            }
            Destination::Stream(stream) => write_bundle(stream, &self.files, self.record.clone()),
            Destination::Handover(_) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("engine {} cannot hand a running job over", self.record.engine),
            )),
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "nobody waits for the checkpoint any more")
}

fn nobody_waits(events: &mut Observer<'_>, phase: &str) -> bool {
    let progress = Event::Progress {
        phase: phase.to_string(),
        done: 0,
        total: 0,
    };
    matches!(events(progress), ControlFlow::Break(()))
}

/// The processes of a job: of the PID namespace that it has to itself and we are in, or else its root with all
/// descendants.
pub(crate) fn members_of(root: i32, own_namespace: bool) -> Result<Vec<i32>> {
    match own_namespace {
        true => members(),
        false => descendants(root),
    }
}

/// The processes of the job whose PID namespace we are in: all but its init, and those whose parent is outside.
fn members() -> Result<Vec<i32>> {
    let own = std::process::id() as i32;
    let mut found: Vec<i32> = target::all_pids()?
        .into_iter()
        .filter(|pid| *pid != 1 && *pid != own)
        .filter(|pid| target::parent(*pid).is_some_and(|parent| parent != 0))
        .filter(|pid| target::state(*pid).is_ok_and(|state| state != 'Z'))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// A process with its descendants, without us, who may be one.
fn descendants(root: i32) -> Result<Vec<i32>> {
    let own = std::process::id() as i32;
    let mut found: Vec<i32> = target::tree(target::Target::open(root)?)?
        .iter()
        .map(|process| process.pid)
        .filter(|pid| *pid != own && target::state(*pid).is_ok_and(|state| state != 'Z'))
        .collect();
    found.sort_unstable();
    Ok(found)
}

fn threads(pid: i32) -> usize {
    let line = target::status_line(pid, "Threads").ok().flatten();
    line.and_then(|number| number.parse().ok()).unwrap_or(1)
}

pub(crate) fn signal_all(processes: &[i32], signal: i32) {
    for pid in processes {
        // It may have ended by now.
        let _ = PidFd::open(*pid).and_then(|process| process.signal(signal));
    }
}

impl Building {
    /// Finds the engine that an image names, and puts its files where it looks for them.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] where the engine is not here, does not work here, or must not restart this image
    /// here; [`ErrorKind::Denied`] for somebody else's image. Root may restart none whose file is a user's: engines
    /// restore what their files say, or start a command, with the rights they have (LBNL-2.2.4A).
    pub(crate) fn new(job: &Job, bundle: &Bundle, path: Option<&Path>) -> Result<Building> {
        let record = bundle.record().clone();
        let own = rustix::process::geteuid();
        let file_owner = bundle.file_owner()?;
        if own.is_root() && file_owner != 0 {
            let text = format!(
                "the image file belongs to user {file_owner}, and engine {} would run it as root",
                record.engine
            );
            return Err(Error::new(ErrorKind::Denied, text)
                .with_hint("restart it as that user; if you trust it, make the file root's first"));
        }
        if !own.is_root() && own.as_raw() != record.owner_uid {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "the image is of a job of user {}; only that user or root may restart it",
                    record.owner_uid
                ),
            ));
        }
        let descriptor = fitting_engine(&record, path)?;
        let files = fresh_files(job)?;
        if let Err(error) = bundle.extract(&files) {
            remove_files(&files);
            return Err(error);
        }
        Ok(Building {
            descriptor,
            record,
            files,
            job_directory: job.path().to_path_buf(),
        })
    }

    /// The program that was started.
    pub(crate) fn command(&self) -> Vec<OsString> {
        self.record.command.iter().map(OsString::from).collect()
    }

    /// Requires that the job can go on before its memory is there.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] saying why it cannot.
    pub(crate) fn require_lazy(&self) -> Result<()> {
        self.descriptor
            .require_lazy()
            .inspect_err(|_| remove_files(&self.files))
    }

    /// Removes the engine's files, which nobody needs any more.
    pub(crate) fn tidy(&self) {
        remove_files(&self.files);
    }

    /// In the job's init: builds the job again. `start` starts a program anew, with this command. With `later` the job
    /// goes on before its memory is there; what brings that needs the engine's files until it ends.
    pub(crate) fn build(
        &self,
        gate: Option<&Gate>,
        later: bool,
        start: impl FnOnce(&[OsString]) -> Result<i32>,
    ) -> Result<(i32, Option<Pager>)> {
        let unit = Unit {
            job: self.record.job.clone(),
            root: self.record.root,
            processes: self.record.processes.clone(),
            job_directory: self.job_directory.clone(),
            files: self.files.clone(),
            group: None,
        };
        let highest = unit.processes.iter().copied().max().unwrap_or(0);
        let mut steps = Steps::new(&self.descriptor, unit)?;
        // Where it cannot be set, a PID that is taken is found out by the engine.
        let _ = std::fs::write(
            "/proc/sys/kernel/ns_last_pid",
            highest.saturating_add(100).max(HIGH_PID).to_string(),
        );
        if later {
            steps.come_later()?;
        }
        let rebuilt = steps.rebuild()?;
        if let Some(gate) = gate {
            gate.hold()?;
        }
        let root = match rebuilt {
            Rebuilt::Root(root) => {
                steps.resume_after_restart()?;
                self.require_adopted(root)?;
                root
            }
            Rebuilt::Start(command) => {
                std::env::set_current_dir(&self.record.directory)
                    .context(|| format!("enter directory {}", self.record.directory.display()))?;
                let saved = self.command();
                let root = match command {
                    Some(command) => start(&[redirection(&saved), &command].concat())?,
                    None => start(&saved)?,
                };
                steps.resume_after_restart()?;
                root
            }
        };
        let pager = steps.pager();
        if pager.is_none() {
            remove_files(&self.files);
        }
        Ok((root, pager))
    }

    /// Requires that the root process is our child, so that its end is seen; it may be one that has ended by now.
    fn require_adopted(&self, root: i32) -> Result<()> {
        let own = std::process::id().to_string();
        if target::status_line(root, "PPid").ok().flatten().as_deref() == Some(own.as_str()) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "engine {}: resume after the restart: the job's root process {root} is not left to the job's init",
                self.record.engine
            ),
        ))
    }
}

/// The engine that an image names (GCA-CTS-30, GCA-CTS-31).
pub(crate) fn fitting_engine(record: &BundleRecord, path: Option<&Path>) -> Result<Descriptor> {
    let name = &record.engine;
    let refuse = |why: String| Error::new(ErrorKind::Incompatible, format!("the image is of engine {name}, {why}"));
    let registry = Registry::load()?;
    let descriptor = registry
        .engine(name)
        .map_err(|_| refuse("which is not here".to_string()).with_hint("`cpr engines` lists those that are"))?;
    let here = node_name();
    if descriptor.restart == Place::Here && record.node != here {
        return Err(refuse(format!(
            "which restarts images only where they were made: on {}, and this is {here}",
            record.node
        )));
    }
    if descriptor.images == Images::Newest
        && let Some(newer) = path.and_then(newer_image)
    {
        return Err(refuse(format!(
            "which restarts the newest image only, and {} is newer",
            newer.display()
        )));
    }
    match descriptor.probe().reason {
        Some(reason) => Err(refuse(format!("which does not work here: {reason}"))),
        None => Ok(descriptor.clone()),
    }
}

/// An image beside this one with a name that comes after its own, where both are numbers.
fn newer_image(path: &Path) -> Option<PathBuf> {
    let number = |path: &Path| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let own = number(path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = std::fs::read_dir(directory.unwrap_or(Path::new("."))).ok()?;
    let images = entries.flatten().map(|entry| entry.path());
    let mut images = images.filter(|other| other.extension().is_some_and(|extension| extension == "cpr"));
    images.find(|other| number(other).is_some_and(|other| other > own))
}
