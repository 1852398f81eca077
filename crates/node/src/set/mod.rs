//! Several jobs saved as one: with one stop that they all share, whatever engines they are for (XtreemGCP, section 3).
//!
//! Every job has a worker of its own inside its namespaces; here is who says what they do and when, phase by phase. No
//! job goes on before all have stopped and all are saved, so that there is a moment of which all images are. Where one
//! fails all go on, and nothing is left. A worker whose front is gone lets its job go on.
//!
//! What is made is a directory with one image for each job and a list of them. It has its name when it is complete.

mod restart;
mod unit;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cpr_engines::Registry;
use cpr_image::{Bundle, ImageId, PendingImage};
use cpr_kernel::process::PidFd;
use cpr_types::{Connection, ConnectionEnd, Context, Error, ErrorKind, Result, inner_connections};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointOptions, Ready};
use crate::directory::Directory;
use crate::engine::{Channels, CheckpointReport, CheckpointRequest, Event, Image, Observer};
use crate::foreign::Saving;
use crate::gate::Gate;
use crate::job::{Job, JobSpec, KILL, LastCheckpoint, StopIntent};
use crate::restart::{RestartOptions, restart_from};
use crate::state::{StateDir, now_ms, write_json};
use crate::wire::{Receiver, pipe, send, wait};
use crate::worker::{self, Worker};

use unit::Unitary;

pub(crate) use unit::Held;

pub use restart::restart_set;

/// The list in the directory of a set.
const LIST: &str = "set.json";
/// What the list is of, and how it is written.
const VERSION: u32 = 1;
/// How long a job may take to end once it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// `set.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct List {
    set: u32,
    created_ms: u64,
    units: Vec<Listed>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listed {
    job: String,
    image: String,
    image_id: String,
    engine: String,
}

/// One job of a set that was made.
#[derive(Debug, Clone, Serialize)]
pub struct SetUnit {
    /// Name of the job.
    pub job: String,
    /// Its engine.
    pub engine: String,
    /// Its image.
    pub image: PathBuf,
    /// What the engine says of it.
    pub report: CheckpointReport,
}

/// A set that was made.
#[derive(Debug, Clone, Serialize)]
pub struct SetMade {
    /// Its directory.
    pub path: PathBuf,
    /// For how long all stood still together, nanoseconds.
    pub together_ns: u64,
    /// Its jobs.
    pub units: Vec<SetUnit>,
}

/// What a worker is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The worker tells which connections lead out of the job then.
    Stop,
    /// Wait until nothing is on its way in these connections.
    Drain(Vec<Connection>),
    Save,
    Resume,
    /// Make what the engine has saved an image.
    Publish,
    /// Kill the job as it stands.
    End,
    /// There is no more to do. A job that still stands goes on.
    Leave,
}

impl Order {
    /// The phase that a worker tells of when it has carried the order out.
    pub(crate) fn phase(&self) -> &'static str {
        match self {
            Order::Stop => "stopped",
            Order::Drain(_) => "drained",
            Order::Save => "saved",
            Order::Resume => "resumed",
            Order::Publish => "published",
            Order::End => "ended",
            Order::Leave => "left",
        }
    }
}

/// The phase before the first order.
pub(crate) const PREPARED: &str = "prepared";

/// How the job of a worker is saved.
enum Way {
    Native(Box<CheckpointRequest>, PendingImage),
    Foreign(Box<Saving>, PendingImage),
}

/// What is left to do to get the image.
enum How {
    /// The engine writes it itself, and tells when the job goes on.
    Native(mpsc::Receiver<CheckpointReport>),
    Foreign(Box<Saving>, Option<PendingImage>, usize),
}

/// The directory under way; removed unless it is published.
struct Pending {
    aside: PathBuf,
    path: PathBuf,
    directory: Directory,
    done: bool,
}

impl Pending {
    fn create(path: &Path) -> Result<Pending> {
        let path = std::path::absolute(path).context(|| format!("resolve {}", path.display()))?;
        let exists = || Error::new(ErrorKind::AlreadyExists, format!("{} exists already", path.display()));
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name =
            name.ok_or_else(|| Error::new(ErrorKind::Usage, format!("{} names no directory", path.display())))?;
        let random = ImageId::random()?.to_string();
        let aside = path.with_file_name(format!(".{name}.{}.part", &random[..8]));
        let what = || format!("make directory {}", aside.display());
        std::fs::DirBuilder::new().mode(0o700).create(&aside).context(what)?;
        let directory = match Directory::open_private(&aside) {
            Ok(directory) => directory,
            Err(error) => {
                // Nothing is in it so far.
                let _ = std::fs::remove_dir(&aside);
                return Err(error);
            }
        };
        Ok(Pending {
            aside,
            path,
            directory,
            done: false,
        })
    }

    fn publish(&mut self, list: &List) -> Result<()> {
        let what = || format!("name the set {}", self.path.display());
        write_json(&self.directory, LIST, list)?;
        std::fs::rename(&self.aside, &self.path).context(what)?;
        self.done = true;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .context(what)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            // Its name says what it is.
            let _ = std::fs::remove_dir_all(&self.aside);
        }
    }
}

fn image_file(job: &Job) -> String {
    format!("{}.cpr", job.name())
}

fn engine_of(job: &Job) -> String {
    let engine = job.spec().engine.as_ref();
    engine.map_or(cpr_engines::NATIVE, |engine| &engine.name).to_string()
}

/// Saves several jobs with one stop, into a new directory. With `options.stop` all end then, otherwise all go on.
///
/// # Errors
/// As [`Job::checkpoint`], for any of them: all go on then, and there is no directory.
pub fn checkpoint_set(jobs: &[Job], path: &Path, options: &CheckpointOptions) -> Result<SetMade> {
    let names: BTreeSet<&str> = jobs.iter().map(Job::name).collect();
    if names.len() < jobs.len() {
        return Err(Error::new(ErrorKind::Usage, "a job is named twice"));
    }
    let mut ready = Vec::new();
    for job in jobs {
        crate::paging::await_pages(&job.directory)?;
        let one = Ready::new(job)?;
        if one.is_around_us() {
            let text = format!(
                "this command is a process of job {}, which would have to stop",
                job.name()
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        ready.push(one);
    }
    let mut pending = Pending::create(path)?;
    let result = make(jobs, &ready, &mut pending, options);
    for job in jobs {
        let last = LastCheckpoint {
            time_ms: now_ms(),
            image: result.is_ok().then(|| pending.path.join(image_file(job))),
            error: result.as_ref().err().map(Error::chain),
        };
        // The set is what it is, whether or not this can be noted.
        let _ = job.set_last_checkpoint(&last);
        if options.stop && !pending.done {
            job.set_stop_intent(None)?;
        }
    }
    let made = result?;
    if options.stop {
        for job in jobs {
            job.await_end(Some(END_TIMEOUT))?;
        }
    }
    Ok(made)
}

fn make(jobs: &[Job], ready: &[Ready<'_>], pending: &mut Pending, options: &CheckpointOptions) -> Result<SetMade> {
    let mut units = Vec::new();
    let result = drive(jobs, ready, pending, options, &mut units);
    let reports: Vec<Result<CheckpointReport>> = units.into_iter().map(Held::leave).collect();
    let together_ns = result?;
    let mut made = Vec::new();
    for (job, report) in jobs.iter().zip(reports) {
        made.push(SetUnit {
            job: job.name().to_string(),
            engine: engine_of(job),
            image: pending.path.join(image_file(job)),
            report: report.map_err(|error| of_unit(job, error))?,
        });
    }
    Ok(SetMade {
        path: pending.path.clone(),
        together_ns,
        units: made,
    })
}

/// Phase by phase; gives for how long all stood still together.
fn drive(
    jobs: &[Job],
    ready: &[Ready<'_>],
    pending: &mut Pending,
    options: &CheckpointOptions,
    units: &mut Vec<Held>,
) -> Result<u64> {
    let front = PidFd::open(std::process::id() as i32).context(|| "open our own process")?;
    for (job, ready) in jobs.iter().zip(ready) {
        if options.stop {
            let image = pending.path.join(image_file(job));
            job.set_stop_intent(Some(&StopIntent::new(Some(image))))?;
        }
        let image = pending.aside.join(image_file(job));
        let unit = start(job, ready, &image, options, &front).map_err(|error| of_unit(job, error))?;
        units.push(unit);
    }
    await_all(jobs, units, PREPARED)?;
    let carry_out = |units: &mut [Held], order: Order| {
        for unit in units.iter() {
            // Where its worker has ended, its last word says why.
            let _ = send(unit.orders.as_fd(), &order);
        }
        await_all(jobs, units, order.phase())
    };
    carry_out(units, Order::Stop)?;
    let together = Instant::now();
    let mut ends = Vec::new();
    for (job, unit) in jobs.iter().zip(units.iter_mut()) {
        ends.push(unit.take_ends().map_err(|error| of_unit(job, error))?);
    }
    let channels = inner_connections(&ends);
    if channels.iter().any(|channels| !channels.is_empty()) {
        for (unit, channels) in units.iter().zip(channels) {
            let _ = send(unit.orders.as_fd(), &Order::Drain(channels));
        }
        await_all(jobs, units, Order::Drain(Vec::new()).phase())?;
    }
    carry_out(units, Order::Save)?;
    let together = together.elapsed();
    if !options.stop {
        carry_out(units, Order::Resume)?;
    }
    carry_out(units, Order::Publish)?;
    let listed = |job: &Job, image_id: String| Listed {
        job: job.name().to_string(),
        image: image_file(job),
        image_id,
        engine: engine_of(job),
    };
    let list = List {
        set: VERSION,
        created_ms: now_ms(),
        units: jobs
            .iter()
            .map(|job| Ok(listed(job, identifier(&pending.aside.join(image_file(job)))?)))
            .collect::<Result<_>>()?,
    };
    pending.publish(&list)?;
    if options.stop {
        carry_out(units, Order::End)?;
    }
    Ok(together.as_nanos() as u64)
}

fn of_unit(job: &Job, error: Error) -> Error {
    let hint = error.hint().map(str::to_string);
    let outer = Error::new(error.kind(), format!("save job {} with the others", job.name())).with_source(error);
    match hint {
        Some(hint) => outer.with_hint(hint),
        None => outer,
    }
}

fn identifier(path: &Path) -> Result<String> {
    Ok(match Bundle::recognise(path)? {
        Some(bundle) => bundle.record().id.clone(),
        None => Image::open(path)?.id().to_string(),
    })
}

/// Starts the worker of a job, which makes its image.
pub(crate) fn start(
    job: &Job,
    ready: &Ready<'_>,
    image: &Path,
    options: &CheckpointOptions,
    front: &PidFd,
) -> Result<Held> {
    let mut image = PendingImage::create(image)?;
    let channels = Channels::default();
    // The worker sees to it that nothing is left of it.
    image.hand_over();
    let mut way = Some(match ready.saving(options)? {
        Some(saving) => Way::Foreign(Box::new(saving), image),
        None => {
            let mut request = ready.request(options)?;
            request.own_ipc_namespace = worker::plan(ready.at_home())?.ipc;
            request.channels = Some(channels.clone());
            Way::Native(Box::new(request), image)
        }
    });
    let registry = Registry::load()?;
    let deadlines = registry.engine(cpr_engines::NATIVE)?.deadlines.clone();
    let (theirs, ours) = pipe()?;
    let mut ours = Some(ours);
    let mut theirs = Some(theirs);
    let (ends, tell_ends) = pipe()?;
    rustix::io::ioctl_fionbio(&tell_ends, true)
        .map_err(std::io::Error::from)
        .context(|| "set up the pipe to the front")?;
    let front = front.fd().try_clone_to_owned().context(|| "copy a descriptor")?;
    let (root, own_namespace) = (ready.inner(), ready.has_namespace());
    let name = job.name().to_string();
    let worker = Worker::start(ready.at_home(), |events| {
        drop(ours.take());
        let gone = || crate::wire::internal("the worker has nothing to do");
        let way = way.take().ok_or_else(gone)?;
        let orders = Receiver::new(theirs.take().ok_or_else(gone)?).context(|| "listen to the front")?;
        let mut unit = Unitary::prepare(way, &name, root, own_namespace, &deadlines, channels.clone())?;
        let result = unit.obey(orders, (&front, &tell_ends), events, (root, own_namespace));
        // Whatever it was that failed.
        unit.steps.abandon_if_begun();
        unit.tidy();
        result
    })?;
    drop(theirs);
    let orders = ours.ok_or_else(|| crate::wire::internal("the pipe to the worker is gone"))?;
    let ends = Receiver::new(ends).context(|| "listen to the worker")?;
    Ok(Held {
        worker,
        orders,
        ends,
        group: ready.group().map(Path::to_owned),
    })
}

fn tell(events: &mut Observer<'_>, phase: &str) {
    // A front that is gone is seen otherwise.
    let _ = events(Event::Progress {
        phase: phase.to_string(),
        done: 0,
        total: 0,
    });
}

/// Tells the front which connections lead out of the job, unless it is gone.
fn tell_front(front: &OwnedFd, to: &OwnedFd, ends: &[ConnectionEnd]) -> Result<()> {
    let what = || "tell the front of connections";
    let mut line = serde_json::to_vec(ends).map_err(std::io::Error::from).context(what)?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        let ready = wait(&[(to.as_fd(), PollFlags::OUT), (front.as_fd(), PollFlags::IN)], None).context(what)?;
        if ready[1] {
            return Err(Error::new(ErrorKind::Cancelled, what()));
        }
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(what),
        }
    }
    Ok(())
}

/// Waits until all workers have come to a phase.
fn await_all(jobs: &[Job], units: &mut [Held], phase: &str) -> Result<()> {
    for (job, unit) in jobs.iter().zip(units) {
        unit.await_phase(phase).map_err(|error| of_unit(job, error))?;
    }
    Ok(())
}

/// Whether a directory is a set.
pub fn is_set(path: &Path) -> bool {
    path.join(LIST).is_file()
}

/// Whether the job is a new one comes with it.
fn begin(state: &StateDir, spec: JobSpec, image: &Path, options: &RestartOptions, gate: &Gate) -> Result<(Job, bool)> {
    let name = spec.name.clone().unwrap_or_default();
    let (job, new) = match state.create_job(spec) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => (state.job(&name)?, false),
        result => (result?, true),
    };
    restart_from(&job, image, options, new, Some(gate))?;
    Ok((job, new))
}

/// Ends a job that another one could not be restarted with.
fn end(job: Job, new: bool) -> Result<()> {
    if new {
        return job.remove(true);
    }
    match job.kill(KILL) {
        Err(error) if error.kind() != ErrorKind::Gone => Err(error),
        _ => job.await_end(Some(END_TIMEOUT)),
    }
}
