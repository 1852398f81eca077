//! Starting a job: from a program, or again from an image.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cpr_image::Bundle;
use cpr_kernel::spawn::{self, Namespaces};
use cpr_kernel::{demand_paging, namespace};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::engine::Image;
use crate::foreign::{Building, EngineUse};
use crate::gate::Gate;
use crate::init::{Manner, Start};
use crate::job::{Job, JobSpec, LOG};
use crate::outcome::Outcome;
use crate::state::{StateDir, check_name};
use crate::supervisor::{Launch, require_watched, supervise};
use crate::wire::{Receiver, WireError, send};

/// What a group is called in an image of a job with a user namespace that does not know it (the kernel's overflowgid).
const UNKNOWN_GROUP: u32 = 65534;

/// Whether a restarted job gets a PID namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespaceChoice {
    /// As it had when it was checkpointed; one of its own also where we may not choose PIDs in ours.
    #[default]
    Auto,
    /// One of its own.
    Always,
    /// Ours.
    Never,
}

/// How to restart.
#[derive(Debug, Clone, Default)]
pub struct RestartOptions {
    /// In the background.
    pub detach: bool,
    /// Name of the new job an image is restarted as.
    pub name: Option<String>,
    /// Whether it gets a PID namespace of its own.
    pub namespace: NamespaceChoice,
    /// Give it a new terminal of its own.
    pub terminal: bool,
    /// Let it run at once; memory comes when it is touched, the rest behind it. Takes root and a PID namespace of its
    /// own, and is not done otherwise, which a line on standard error says.
    pub lazy: bool,
    /// Where processes were in control groups below those of whoever saved them, the first one is in those of whoever
    /// restarts it all the same.
    pub own_cgroups: bool,
    /// The lease that a new job runs under, as [`crate::grant_lease`] writes it.
    pub lease: Option<PathBuf>,
}

/// What a daemon tells the command that started it.
#[derive(Serialize, Deserialize)]
enum Word {
    Running,
    Failed(WireError),
}

/// Runs a new job; in the foreground, until it ends.
pub fn run(state: &StateDir, spec: JobSpec, detach: bool) -> Result<Outcome> {
    if spec.command.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "there is no command to run"));
    }
    require_period(spec.every)?;
    require_watched(&spec.save_on)?;
    run_as(&state.create_job(spec.clone())?, &spec, detach)
}

/// Runs the command of a job that was made for it.
pub(crate) fn run_as(job: &Job, spec: &JobSpec, detach: bool) -> Result<Outcome> {
    let start = Start::Command(spec.whole_command(job.name(), job.path()));
    let launch = Launch {
        job,
        start,
        own_namespace: true,
        own_ipc: !job.spec().share_ipc,
        detached: detach,
        terminal: job.spec().terminal,
        restarted_from: None,
        lazy: false,
        manner: Manner::default(),
        gate: None,
    };
    launch_new(&launch)
}

/// Refuses what would leave a job no time to run.
pub(crate) fn require_period(every: Option<Duration>) -> Result<()> {
    match every {
        Some(every) if every < Duration::from_millis(10) => Err(Error::new(
            ErrorKind::Usage,
            "a job cannot be checkpointed more often than a hundred times a second",
        )),
        _ => Ok(()),
    }
}

/// Launches a job made for this; where it never starts nothing is left of it.
fn launch_new(launch: &Launch<'_>) -> Result<Outcome> {
    let mut running = false;
    let result = launch_any(launch, &mut running);
    if result.is_err() && !running {
        launch.job.discard();
    }
    result
}

fn launch_any(launch: &Launch<'_>, running: &mut bool) -> Result<Outcome> {
    if launch.detached {
        return daemonise(launch, running);
    }
    supervise(launch, &mut || {
        *running = true;
        Ok(())
    })
}

/// Forks a daemon that supervises the job, and waits until the job runs; where there is a gate, whoever opens it waits.
fn daemonise(launch: &Launch<'_>, running: &mut bool) -> Result<Outcome> {
    let (read, write) = crate::wire::pipe()?;
    let log = launch.job.directory.append(LOG)?;
    let null = std::fs::File::options()
        .read(true)
        .open("/dev/null")
        .context(|| "open /dev/null")?;
    let mut write = Some(write);
    let daemon = spawn::fork(Namespaces::NONE, || {
        let mut write = write.take();
        let mut running = false;
        let result = settle(&null.into(), &log).and_then(|()| {
            if let Some(gate) = launch.gate {
                gate.leave_front();
            }
            supervise(launch, &mut || {
                running = true;
                if let Some(gate) = launch.gate {
                    gate.leave();
                }
                // The command that started us may have been interrupted; the job goes on.
                let _ = write.take().map(|to| send(to.as_fd(), &Word::Running));
                Ok(())
            })
        });
        let Err(error) = result else { return 0 };
        if running {
            eprintln!("cpr: job {}: {}", launch.job.name(), error.chain());
        }
        let _ = write
            .take()
            .map(|to| send(to.as_fd(), &Word::Failed(WireError::from(&error))));
        1
    })
    .context(|| "fork the supervisor")?;
    drop(write);
    let daemon = Daemon {
        words: Receiver::new(read).context(|| "wait for the job to start")?,
        pid: daemon.pid,
    };
    let name = launch.job.name().to_string();
    if let Some(gate) = launch.gate {
        gate.keep(daemon);
        return Ok(Outcome::Detached { name });
    }
    daemon.await_running()?;
    *running = true;
    Ok(Outcome::Detached { name })
}

/// A daemon that has not said yet that its job runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    words: Receiver,
    pid: i32,
}

impl AsFd for Daemon {
    /// Readable when it says something, or has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

impl Daemon {
    /// Waits until it says so.
    ///
    /// # Errors
    /// Why it does not run; the daemon has ended then.
    pub(crate) fn await_running(mut self) -> Result<()> {
        while !self.words.ended() {
            // Restarting a big image takes its time; the daemon's death ends this too.
            self.words.wait(None).context(|| "wait for the job to start")?;
            let words = self.words.receive().context(|| "wait for the job to start")?;
            match words.into_iter().next() {
                Some(Word::Running) => return Ok(()),
                Some(Word::Failed(error)) => {
                    let _ = rustix::process::waitpid(Pid::from_raw(self.pid), WaitOptions::empty());
                    return Err(error.into());
                }
                None => {}
            }
        }
        Err(crate::wire::internal("the supervisor was killed before the job ran"))
    }
}

/// In the daemon: a session of its own, and standard streams that outlive the caller's terminal.
fn settle(null: &OwnedFd, log: &OwnedFd) -> Result<()> {
    let what = || "detach from the terminal";
    rustix::process::setsid().map_err(std::io::Error::from).context(what)?;
    for (fd, stream) in [(null, 0), (log, 1), (log, 2)] {
        spawn::set_standard_stream(fd.as_fd(), stream).context(what)?;
    }
    spawn::close_others_on_exec().context(what)
}

/// Restarts a job from its newest good image.
pub fn restart_job(state: &StateDir, name: &str, options: RestartOptions) -> Result<Outcome> {
    let job = state.job(name)?;
    if options.name.is_some() {
        return Err(Error::new(ErrorKind::Usage, "a job that is restarted keeps its name")
            .with_hint("restart one of its images to get another job"));
    }
    if job.is_alive()? {
        return Err(Error::new(ErrorKind::Busy, format!("job {name} is running")));
    }
    let images = job.images()?;
    let mut first = None;
    for entry in images.iter().rev() {
        match restart_from(&job, &entry.path, &options, false, None) {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                eprintln!(
                    "cpr: {}: {}; trying the image before it",
                    entry.path.display(),
                    error.chain()
                );
                first = first.or(Some(error));
            }
            result => return result,
        }
    }
    Err(first.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("job {name} has no image to restart from"))
            .with_hint("checkpoint it while it runs, or run it with --every")
    }))
}

/// Restarts a job from this image; a `new` one that does not start is removed.
pub(crate) fn restart_from(
    job: &Job,
    path: &std::path::Path,
    options: &RestartOptions,
    new: bool,
    gate: Option<&Gate>,
) -> Result<Outcome> {
    let opened = match Bundle::recognise(path) {
        Ok(Some(bundle)) => return restart_foreign(job, &bundle, Some(path), options, new, gate),
        Ok(None) => Image::open(path),
        Err(error) => Err(error),
    };
    match opened {
        Ok(image) => restart_into(job, image, Some(path), options, new, gate),
        Err(error) => {
            if new {
                job.discard();
            }
            Err(error)
        }
    }
}

/// Begins to restart an image as a new job in the background, as far as the gate.
pub(crate) fn restart_at_gate(
    state: &StateDir,
    path: &std::path::Path,
    former: &str,
    options: &RestartOptions,
    gate: &Gate,
) -> Result<Job> {
    let spec = match Bundle::recognise(path)? {
        Some(bundle) => spec_of(bundle.record(), options),
        None => plain_spec(former, options),
    };
    let job = create_like(state, spec, former, options.name.as_deref())?;
    restart_from(&job, path, options, true, Some(gate))?;
    Ok(job)
}

/// What the job of an image is.
fn plain_spec(former: &str, options: &RestartOptions) -> JobSpec {
    let command = if former.is_empty() { "restarted" } else { former };
    JobSpec {
        command: vec![command.into()],
        terminal: options.terminal,
        lease: options.lease.clone(),
        ..JobSpec::default()
    }
}

/// What the job of an image of another engine is.
fn spec_of(record: &cpr_image::BundleRecord, options: &RestartOptions) -> JobSpec {
    JobSpec {
        command: record.command.iter().map(Into::into).collect(),
        directory: Some(record.directory.clone()),
        terminal: options.terminal,
        engine: Some(EngineUse {
            name: record.engine.clone(),
            version: record.version.clone(),
        }),
        lease: options.lease.clone(),
        ..JobSpec::default()
    }
}

/// Restarts an image as a new job, called after the job it is of unless `options` has a name.
pub fn restart_image(state: &StateDir, image: Image, options: RestartOptions) -> Result<Outcome> {
    let former = image.manifest().checkpoint.job.clone();
    let job = create_like(state, plain_spec(&former, &options), &former, options.name.as_deref())?;
    restart_into(&job, image, None, &options, true, None)
}

/// Restarts an image of another engine, by that engine, as a new job.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where the engine is not here or does not work here.
pub fn restart_bundle(
    state: &StateDir,
    bundle: &Bundle,
    path: Option<&std::path::Path>,
    options: RestartOptions,
) -> Result<Outcome> {
    let record = bundle.record();
    let job = create_like(state, spec_of(record, &options), &record.job, options.name.as_deref())?;
    restart_foreign(&job, bundle, path, &options, true, None)
}

/// Makes a job of this name, or else of its former name where no other job has that, or else of a new one.
fn create_like(state: &StateDir, spec: JobSpec, former: &str, name: Option<&str>) -> Result<Job> {
    let named = |name: Option<&str>| JobSpec {
        name: name.map(str::to_string),
        ..spec.clone()
    };
    if name.is_some() {
        return state.create_job(named(name));
    }
    if check_name(former).is_ok() {
        match state.create_job(named(Some(former))) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            result => return result,
        }
    }
    state.create_job(named(None))
}

fn restart_foreign(
    job: &Job,
    bundle: &Bundle,
    path: Option<&std::path::Path>,
    options: &RestartOptions,
    new: bool,
    gate: Option<&Gate>,
) -> Result<Outcome> {
    let building = match options.namespace {
        NamespaceChoice::Never => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "engine {} cannot do what is asked for: --namespace never",
                bundle.record().engine
            ),
        )),
        _ => Building::new(job, bundle, path),
    };
    let building = building.and_then(|building| match options.lazy {
        true => building.require_lazy().map(|()| building),
        false => Ok(building),
    });
    let building = match building {
        Ok(building) => building,
        Err(error) => {
            if new {
                job.discard();
            }
            return Err(error);
        }
    };
    let launch = Launch {
        job,
        own_namespace: true,
        own_ipc: !job.spec().share_ipc,
        detached: options.detach,
        terminal: options.terminal || job.spec().terminal,
        restarted_from: path.map(PathBuf::from),
        lazy: options.lazy,
        manner: Manner::default(),
        gate,
        start: Start::Foreign(Box::new(building)),
    };
    if new {
        launch_new(&launch)
    } else {
        launch_any(&launch, &mut false)
    }
}

fn restart_into(
    job: &Job,
    mut image: Image,
    path: Option<&std::path::Path>,
    options: &RestartOptions,
    new: bool,
    gate: Option<&Gate>,
) -> Result<Outcome> {
    if let Err(error) = image.open_ancestors() {
        if new {
            job.discard();
        }
        return Err(error);
    }
    let own_namespace = match options.namespace {
        NamespaceChoice::Always => true,
        NamespaceChoice::Never => false,
        NamespaceChoice::Auto => image.manifest().checkpoint.own_pid_namespace || !namespace::may_choose_pids(),
    };
    let launch = Launch {
        job,
        own_namespace,
        own_ipc: own_namespace && image.manifest().checkpoint.own_ipc_namespace,
        detached: options.detach,
        terminal: options.terminal || job.spec().terminal,
        restarted_from: path.map(PathBuf::from),
        lazy: options.lazy && may_be_lazy(own_namespace),
        manner: Manner {
            own_cgroups: options.own_cgroups,
            ..Manner::default()
        },
        gate,
        start: Start::Image(Arc::new(image)),
    };
    if let Start::Image(image) = &launch.start
        && let Err(error) = require_owner(image).and_then(|()| give_up_groups(image))
    {
        if new {
            job.discard();
        }
        return Err(error);
    }
    if new {
        launch_new(&launch)
    } else {
        launch_any(&launch, &mut false)
    }
}

/// Whether memory can come later; says why not.
fn may_be_lazy(own_namespace: bool) -> bool {
    let reason = if !own_namespace {
        "the job gets no PID namespace of its own"
    } else if !demand_paging::is_available() {
        "that takes root (CAP_SYS_PTRACE in the initial user namespace)"
    } else {
        return true;
    };
    eprintln!("cpr: note: all memory is read before the job runs: {reason}");
    false
}

/// A user who may change groups keeps those that the job was in, too (LBNL-3.9.3.3.3). Who may not keeps all: the
/// kernel lets nobody give up a group, which may be what keeps others' files from him.
fn give_up_groups(image: &Image) -> Result<()> {
    let sets = rustix::thread::capabilities(None).map_err(std::io::Error::from);
    let sets = sets.context(|| "ask for our capabilities")?;
    if rustix::process::geteuid().is_root() || !sets.effective.contains(CapabilitySet::SETGID) {
        return Ok(());
    }
    let processes = image.manifest().processes.iter();
    let saved: BTreeSet<u32> = processes
        .flat_map(|process| process.credentials())
        .flat_map(|credentials| credentials.groups.iter().copied())
        .collect();
    if saved.contains(&UNKNOWN_GROUP) {
        return Ok(());
    }
    let what = || "give up groups that the job was not in";
    let mut groups = rustix::process::getgroups()
        .map_err(std::io::Error::from)
        .context(what)?;
    groups.retain(|group| saved.contains(&group.as_raw()));
    rustix::thread::set_thread_groups(&groups)
        .map_err(std::io::Error::from)
        .context(what)
}

/// Only a user who may signal the processes of an image may restart it (LBNL-3.6.2.2).
pub(crate) fn require_owner(image: &Image) -> Result<()> {
    let own = rustix::process::geteuid();
    let owner = image.manifest().checkpoint.owner_uid;
    if own.is_root() || own.as_raw() == owner {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Denied,
        format!("the image is of a job of user {owner}; only that user or root may restart it"),
    ))
}
