//! Wrappers: commands that stand in for a job in the script of somebody else's batch system (GCA section 3.4).
//!
//! A job that begins is registered, and the wrapper becomes its program by exec: it is what it would have been, with
//! the PID that whoever started it knows. A job that goes on from an image is supervised by the wrapper, which stays.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpr_image::{Bundle, PendingImage};
use cpr_kernel::spawn;
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::init::{JOB_VARIABLE, OWN_CHECKPOINTS, PIPE, offered};
use crate::job::{Job, JobSpec, LOCK, Phase, State, image_name};
use crate::lease::boot;
use crate::outcome::Outcome;
use crate::restart::{NamespaceChoice, RestartOptions, require_period, restart_from, restart_job, run_as};
use crate::state::{StateDir, now_ms};
use crate::supervisor::require_watched;
use crate::target::Identity;

/// Which image a command is to fetch, where that was said.
const FETCH_IMAGE: &str = "GRIDCPR_IMAGE";

/// What a job is to go on from.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// This image: a file, or for `fetch` whatever that understands. The newest good one of the job unless given.
    pub image: Option<OsString>,
    /// A command of the shell that prints the image, or nothing where there is none so far.
    pub fetch: Option<OsString>,
}

fn running(job: &Job) -> Error {
    Error::new(ErrorKind::Busy, format!("job {} is running already", job.name()))
}

fn existing(state: &StateDir, name: &str) -> Result<Option<Job>> {
    match state.job(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn name(spec: &JobSpec) -> Result<&str> {
    let name = spec.name.as_deref();
    name.ok_or_else(|| Error::new(ErrorKind::Usage, "the job has no name"))
}

/// Makes the job, in place of one that never ran, or, with `again`, that has left no image.
fn make(state: &StateDir, spec: &JobSpec, again: bool) -> Result<Job> {
    let error = match state.create_job(spec.clone()) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => error,
        result => return result,
    };
    let Some(old) = existing(state, name(spec)?)? else {
        return Err(error);
    };
    if old.is_alive()? {
        return Err(running(&old));
    }
    {
        // Nobody starts it meanwhile.
        let _lock = old.directory.try_lock(LOCK)?.ok_or_else(|| running(&old))?;
        let replaceable = old.state()?.is_none() || again && old.images()?.is_empty();
        if !replaceable {
            return Err(error.with_hint(format!(
                "`cpr exec --recover --name {}` goes on from its image",
                old.name()
            )));
        }
        old.discard();
    }
    state.create_job(spec.clone())
}

/// Registers this process as the job and becomes its program. Comes back only where that fails; nothing is left then.
///
/// `again` lets it take the place of a job of the same name that has ended without an image.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] where there is such a job, [`ErrorKind::Busy`] where it runs, and why the program
/// cannot be run.
pub fn become_job(state: &StateDir, spec: &JobSpec, again: bool) -> Result<Infallible> {
    let Some(program) = spec.command.first() else {
        return Err(Error::new(ErrorKind::Usage, "there is no command to run"));
    };
    let job = make(state, spec, again)?;
    let error = match register(&job) {
        Ok(_lock) => {
            let error = run(&job, &spec.whole_command(job.name(), job.path()));
            Error::new(ErrorKind::of_io(&error), format!("run {}", program.to_string_lossy())).with_source(error)
        }
        Err(error) => error,
    };
    job.discard();
    Err(error)
}

/// Runs the job's command, and stays until it has ended: for a job that is saved when a signal comes, or at intervals.
/// It takes the place of a job of the same name that has ended without an image.
///
/// # Errors
/// As [`become_job`], and [`ErrorKind::Usage`] for a signal that nobody can wait for.
pub fn stand_in(state: &StateDir, spec: &JobSpec) -> Result<Outcome> {
    require_period(spec.every)?;
    require_watched(&spec.save_on)?;
    run_as(&make(state, spec, true)?, spec, false)
}

/// Writes down which process the job is: this one. The lock is let go when the program runs.
fn register(job: &Job) -> Result<OwnedFd> {
    let lock = job.directory.try_lock(LOCK)?.ok_or_else(|| running(job))?;
    let own = Identity::own()?;
    job.write_state(&State {
        phase: Phase::Running,
        supervisor: None,
        init: None,
        root: Some(own.pid),
        pid_namespace: None,
        root_here: Some(own),
        boot: Some(boot()?),
        started_ms: now_ms(),
        finished_ms: None,
        exit: None,
        restarted_from: None,
        stopped_into: None,
        error: None,
        no_cgroup: None,
        own_cgroup: None,
        mounts: Vec::new(),
    })?;
    Ok(lock)
}

fn run(job: &Job, command: &[OsString]) -> std::io::Error {
    // The Rust runtime ignores it; programs expect to die of it.
    if let Err(error) = spawn::default_signal(PIPE) {
        return error;
    }
    let base = job.path().join(OWN_CHECKPOINTS);
    let lifetime = job
        .spec()
        .lifetime
        .map_or_else(String::new, |lifetime| lifetime.as_secs().to_string());
    let mut variables = vec![(JOB_VARIABLE, OsStr::new(job.name()))];
    variables.extend(offered(base.as_os_str(), OsStr::new("F"), OsStr::new(&lifetime)));
    spawn::exec(command, &variables)
}

/// Lets the job go on from an image, and stays until it has ended: signals are passed on. None where there is no image.
///
/// # Errors
/// [`ErrorKind::Busy`] where it runs; as [`restart_job`].
pub fn recover(state: &StateDir, spec: &JobSpec, recovery: &Recovery) -> Result<Option<Outcome>> {
    let options = RestartOptions {
        // Its PIDs may be taken by now.
        namespace: NamespaceChoice::Always,
        // In which a job is, is for the batch system to say that runs us.
        own_cgroups: true,
        ..RestartOptions::default()
    };
    let found = existing(state, name(spec)?)?;
    if let Some(job) = &found
        && job.is_alive()?
    {
        return Err(running(job));
    }
    if recovery.fetch.is_none() && recovery.image.is_none() {
        return match found {
            Some(job) if !job.images()?.is_empty() => restart_job(state, job.name(), options).map(Some),
            _ => Ok(None),
        };
    }
    let (job, new) = match found {
        Some(job) => (job, false),
        None => (state.create_job(spec.clone())?, true),
    };
    let image = match &recovery.fetch {
        Some(command) => fetch(&job, command, recovery.image.as_deref()),
        None => Ok(recovery.image.as_ref().map(PathBuf::from)),
    };
    let image = image.and_then(|image| {
        if let Some(image) = &image {
            require_engine(&job, image)?;
        }
        Ok(image)
    });
    match image {
        Ok(Some(image)) => restart_from(&job, &image, &options, new, None).map(Some),
        Ok(None) => {
            if new {
                job.discard();
            }
            Ok(None)
        }
        Err(error) => {
            if new {
                job.discard();
            }
            Err(error)
        }
    }
}

/// Requires that the image is of the engine that the job is for, so that further images are, too.
fn require_engine(job: &Job, image: &Path) -> Result<()> {
    let bundle = Bundle::recognise(image)?;
    let made = bundle.as_ref().map_or("native", |bundle| &bundle.record().engine);
    let wanted = job.spec().engine.as_ref().map_or("native", |engine| &engine.name);
    if made == wanted {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Incompatible,
        format!(
            "{} is of engine {made}, and job {} is for engine {wanted}",
            image.display(),
            job.name()
        ),
    )
    .with_hint(format!(
        "give `--engine {made}`, and where the job is here already another name"
    )))
}

/// Has a command print the image into the job's directory; none where it prints nothing.
fn fetch(job: &Job, command: &OsStr, image: Option<&OsStr>) -> Result<Option<PathBuf>> {
    let what = || format!("fetch an image of job {}", job.name());
    let number = job.images()?.last().map_or(1, |image| image.number + 1);
    let path = job.image_directory()?.path().join(image_name(number));
    let pending = PendingImage::create(&path)?;
    let mut child = Command::new("/bin/sh");
    child
        .args([OsStr::new("-c"), command])
        .env(JOB_VARIABLE, job.name())
        .stdin(Stdio::null())
        .stdout(pending.file().try_clone().context(what)?)
        .stderr(Stdio::piped());
    if let Some(image) = image {
        child.env(FETCH_IMAGE, image);
    }
    let mut child = child.spawn().context(what)?;
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What it says is for people only.
        let _ = stderr.read_to_end(&mut said);
    }
    let status = child.wait().context(what)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let said = said.trim_end().lines().last().unwrap_or("nothing");
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{}: the command ended with {status} and said: {said}", what()),
        ));
    }
    if pending.file().metadata().context(what)?.len() == 0 {
        return Ok(None);
    }
    pending.publish(None)?;
    Ok(Some(path))
}
