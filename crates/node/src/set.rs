//! Several jobs saved as one: with one stop that they all share, whatever engines they are for (XtreemGCP, section 3).
//!
//! Every job has a worker of its own inside its namespaces; here is who says what they do and when, phase by phase. No job
//! goes on before all have stopped and all are saved, so that there is a moment of which all images are. Where one fails
//! all go on, and nothing is left. A worker whose front is gone lets its job go on.
//!
//! What is made is a directory with one image for each job and a list of them. It has its name when it is complete.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cpr_engines::{Native, Registry, Steps, Unit};
use cpr_image::{Bundle, ImageId, PendingImage};
use cpr_kernel::process::PidFd;
use cpr_types::{Connection, ConnectionEnd, Context, Error, ErrorKind, Links, Renewal, Result, inner_connections};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointOptions, Ready};
use crate::directory::Directory;
use crate::engine::{
    Channels, CheckpointReport, CheckpointRequest, Destination, Event, Image, Observer, Outward, channels,
};
use crate::foreign::{EngineUse, Saving, fitting_engine, members_of, signal_all};
use crate::gate::Gate;
use crate::group;
use crate::job::{Job, JobSpec, KILL, LastCheckpoint, StopIntent};
use crate::restart::{RestartOptions, restart_from};
use crate::state::{StateDir, now_ms, read_json, write_json};
use crate::wire::{Receiver, pipe, send, wait};
use crate::worker::{self, Message, Worker};

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

/// The worker's side.
struct Unitary {
    steps: Steps,
    processes: Vec<i32>,
    how: How,
    /// Connections out of the job, from when it stands still; of a job of another engine there are none that count.
    outward: Option<Outward>,
    /// Those to jobs of the same set.
    channels: Channels,
}

/// What is left to do to get the image.
enum How {
    /// The engine writes it itself, and tells when the job goes on.
    Native(mpsc::Receiver<CheckpointReport>),
    Foreign(Box<Saving>, Option<PendingImage>, usize),
}

/// A worker and the way to it.
pub(crate) struct Held {
    pub(crate) worker: Worker,
    pub(crate) orders: OwnedFd,
    ends: Receiver,
    /// The job's control group, which the worker may have frozen.
    group: Option<PathBuf>,
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

impl Unitary {
    fn prepare(
        way: Way,
        name: &str,
        root: i32,
        own_namespace: bool,
        deadlines: &cpr_engines::Deadlines,
        channels: Channels,
    ) -> Result<Unitary> {
        match way {
            Way::Foreign(mut saving, mut image) => {
                image.adopt();
                let steps = match saving.prepare() {
                    Ok(steps) => steps,
                    Err(error) => {
                        saving.tidy();
                        return Err(error);
                    }
                };
                let (processes, threads) = saving.processes();
                Ok(Unitary {
                    steps,
                    processes,
                    how: How::Foreign(saving, Some(image), threads),
                    outward: None,
                    channels,
                })
            }
            Way::Native(request, mut image) => {
                image.adopt();
                let processes = members_of(root, own_namespace)?;
                let unit = Unit {
                    job: name.to_string(),
                    root,
                    processes: processes.clone(),
                    job_directory: PathBuf::new(),
                    files: PathBuf::new(),
                    group: request.group.clone(),
                };
                let stop = request.stop_timeout;
                let (engine, reports) = Native::new(*request, Destination::File(image), deadlines);
                let mut steps = Steps::with(cpr_engines::NATIVE, Box::new(engine), unit, stop, stop);
                steps.prepare()?;
                Ok(Unitary {
                    steps,
                    processes,
                    how: How::Native(reports),
                    outward: None,
                    channels,
                })
            }
        }
    }

    /// Carries out orders until there are no more.
    fn obey(
        &mut self,
        mut orders: Receiver,
        (front, tell_ends): (&OwnedFd, &OwnedFd),
        events: &mut Observer<'_>,
        (root, own_namespace): (i32, bool),
    ) -> Result<Message> {
        let what = || "listen to the front";
        let began = Instant::now();
        let mut stopped = began;
        let mut freeze = Duration::ZERO;
        let mut report = None;
        tell(events, PREPARED);
        'orders: loop {
            for order in orders.receive::<Order>().context(what)? {
                match &order {
                    Order::Stop => {
                        stopped = Instant::now();
                        self.steps.stop()?;
                        if let How::Native(_) = self.how {
                            self.outward = Some(Outward::of(&members_of(root, own_namespace)?)?);
                        }
                    }
                    Order::Drain(channels) => {
                        self.channels.tell(channels);
                        let outward = self.outward.take();
                        outward.map(|outward| outward.drain(channels)).transpose()?;
                    }
                    Order::Save => {
                        self.channels.tell(&[]);
                        self.steps.checkpoint()?;
                    }
                    Order::Resume => {
                        self.steps.resume_after_checkpoint()?;
                        freeze = stopped.elapsed();
                    }
                    Order::Publish => {
                        if let How::Foreign(saving, image, threads) = &mut self.how
                            && let Some(image) = image.take()
                        {
                            let summary = saving.publish(Destination::File(image), events)?;
                            report = Some(saving.report(&summary, *threads, freeze, began.elapsed()));
                        }
                    }
                    Order::End => {
                        freeze = stopped.elapsed();
                        match &self.how {
                            // It was told so when it was made.
                            How::Native(_) => self.steps.resume_after_checkpoint()?,
                            How::Foreign(..) => {
                                signal_all(&self.processes, KILL);
                                self.steps.ended();
                            }
                        }
                    }
                    Order::Leave => break 'orders,
                }
                tell(events, order.phase());
                if order == Order::Stop {
                    let ends = self.outward.as_ref().map(Outward::ends).unwrap_or_default();
                    tell_front(front, tell_ends, &ends)?;
                }
            }
            if orders.ended() {
                break;
            }
            let polled = [(orders.as_fd(), PollFlags::IN), (front.as_fd(), PollFlags::IN)];
            if wait(&polled, None).context(what)?[1] {
                break;
            }
        }
        self.steps.abandon_if_begun();
        if let How::Native(reports) = &self.how {
            report = reports.try_recv().ok();
        }
        let mut report = report.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the set is given up"))?;
        report.freeze_ns = report.freeze_ns.max(freeze.as_nanos() as u64);
        report.total_ns = began.elapsed().as_nanos() as u64;
        Ok(Message::Checkpointed(report))
    }

    fn tidy(&self) {
        if let How::Foreign(saving, ..) = &self.how {
            saving.tidy();
        }
    }
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

impl Held {
    /// Has the worker carry out an order, and waits until it has.
    pub(crate) fn carry_out(&mut self, order: Order) -> Result<()> {
        // Where the worker has ended, its last word says why.
        let _ = send(self.orders.as_fd(), &order);
        self.await_phase(order.phase())
    }

    /// Waits until the worker has come to a phase.
    pub(crate) fn await_phase(&mut self, phase: &str) -> Result<()> {
        let what = || "listen to a worker";
        loop {
            let mut there = false;
            for message in self.worker.reports.receive::<Message>().context(what)? {
                match message {
                    Message::Event(Event::Progress { phase: at, .. }) if at == phase => there = true,
                    Message::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
            if there {
                return Ok(());
            }
            if self.worker.reports.ended() {
                return Err(crate::wire::internal("the worker was killed before it could report"));
            }
            // The worker has the deadlines that matter.
            self.worker.reports.wait(None).context(what)?;
        }
    }

    /// Which connections lead out of the job: to be asked once, when it has stopped.
    pub(crate) fn take_ends(&mut self) -> Result<Vec<ConnectionEnd>> {
        let what = || "hear of connections from a worker";
        loop {
            if let Some(ends) = self.ends.receive().context(what)?.into_iter().next() {
                return Ok(ends);
            }
            if self.ends.ended() || self.worker.reports.ended() {
                return Err(crate::wire::internal("the worker was killed before it could report"));
            }
            let polled = [
                (self.ends.as_fd(), PollFlags::IN),
                (self.worker.reports.as_fd(), PollFlags::IN),
            ];
            if wait(&polled, None).context(what)?[1] {
                for message in self.worker.reports.receive::<Message>().context(what)? {
                    if let Message::Failed(error) = message {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Lets the worker end; gives its last word.
    pub(crate) fn leave(mut self) -> Result<CheckpointReport> {
        let what = || "listen to a worker";
        // Where it has ended, it has said why. Its end of the pipe may be open in workers that came later, so that ours
        // being closed tells nothing.
        let _ = send(self.orders.as_fd(), &Order::Leave);
        let mut last = None;
        while !self.worker.reports.ended() {
            self.worker.reports.wait(None).context(what)?;
            for message in self.worker.reports.receive::<Message>().context(what)? {
                match message {
                    Message::Checkpointed(report) => last = Some(Ok(report)),
                    Message::Failed(error) => last = Some(Err(error.into())),
                    _ => {}
                }
            }
        }
        self.worker.reap();
        if let Some(group) = self.group.filter(|_| !matches!(last, Some(Ok(_)))) {
            // Of a worker that was killed at such an instant. A group that is gone needs nothing.
            let _ = group::thaw(&group);
        }
        last.unwrap_or_else(|| Err(crate::wire::internal("a worker has ended without a report")))
    }
}

/// Whether a directory is a set.
pub fn is_set(path: &Path) -> bool {
    path.join(LIST).is_file()
}

/// Restarts all jobs of a set in the background, or none; gives their names.
///
/// # Errors
/// [`ErrorKind::Busy`] where one of them runs; as [`crate::restart_image`] and [`crate::restart_bundle`] for any of them:
/// those that were started before it are ended.
pub fn restart_set(state: &StateDir, path: &Path) -> Result<Vec<String>> {
    let directory = Directory::open_existing(path)?;
    let missing = || Error::new(ErrorKind::NotFound, format!("{} is not a set", path.display()));
    let list: List = read_json(&directory, LIST)?.ok_or_else(missing)?;
    if list.set != VERSION {
        let text = format!(
            "{} is of version {}, and this reads version {VERSION}",
            path.display(),
            list.set
        );
        return Err(Error::new(ErrorKind::Incompatible, text));
    }
    let mut planned = Vec::new();
    for unit in &list.units {
        planned.push(plan(state, path, unit)?);
    }
    let options = RestartOptions {
        detach: true,
        ..RestartOptions::default()
    };
    let refuse = |unit: &Listed, error: Error| {
        let text = format!("restart job {} with the others", unit.job);
        Error::new(error.kind(), text).with_source(error)
    };
    let links = links(&list, &planned)?;
    // All are there before the first of them runs.
    let gate = Gate::new(links)?;
    let mut there: Vec<(Job, bool)> = Vec::new();
    let mut failed = None;
    for (number, plan) in planned.into_iter().enumerate() {
        match begin(state, plan.spec, &plan.image, &options, &gate) {
            Ok(job) => there.push(job),
            Err(error) => {
                failed = Some((number, error));
                break;
            }
        }
    }
    if let Some((number, error)) = failed.or_else(|| gate.await_all(None).err()) {
        gate.shut();
        for (job, _) in there.into_iter().filter(|(_, new)| *new) {
            job.discard();
        }
        return Err(match list.units.get(number) {
            Some(unit) => refuse(unit, error),
            None => error,
        });
    }
    let begun = gate.open()?;
    let failed = list
        .units
        .iter()
        .zip(begun)
        .find_map(|(unit, result)| Some((unit, result.err()?)));
    if let Some((unit, error)) = failed {
        for (job, new) in there {
            end(job, new)?;
        }
        return Err(refuse(unit, error));
    }
    Ok(list.units.into_iter().map(|unit| unit.job).collect())
}

/// One job of a set that is to be restarted.
struct Planned {
    spec: JobSpec,
    image: PathBuf,
    /// Its connections to others of the set.
    ends: Vec<ConnectionEnd>,
}

/// How the jobs of a set find each other again: at the addresses that they had.
fn links(list: &List, planned: &[Planned]) -> Result<Option<Links>> {
    let lists: Vec<Vec<ConnectionEnd>> = planned.iter().map(|plan| plan.ends.clone()).collect();
    for ((unit, plan), inner) in list.units.iter().zip(planned).zip(inner_connections(&lists)) {
        if let Some(end) = plan.ends.iter().find(|end| !inner.contains(&end.connection)) {
            let Connection { local, remote } = end.connection;
            let text = format!(
                "the set's image of job {}: its connection from {local} to {remote} leads to no job of the set",
                unit.job
            );
            return Err(Error::new(ErrorKind::Damaged, text));
        }
    }
    let all: Vec<ConnectionEnd> = lists.into_iter().flatten().collect();
    if all.is_empty() {
        return Ok(None);
    }
    let mut renewals = Vec::new();
    for (number, end) in all.iter().enumerate() {
        let other = all[number..]
            .iter()
            .find(|other| other.connection == end.connection.reversed());
        renewals.extend(
            other
                .map(|other| Renewal::of(*end, *other, end.connection))
                .into_iter()
                .flatten(),
        );
    }
    let secret = secret()?;
    Ok(Some(Links { secret, renewals }))
}

fn secret() -> Result<[u8; 32]> {
    let mut secret = [0u8; 32];
    let mut filled = 0;
    while filled < secret.len() {
        match rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "make a secret"),
        }
    }
    Ok(secret)
}

/// Looks at everything that can be known before anything is started.
fn plan(state: &StateDir, directory: &Path, unit: &Listed) -> Result<Planned> {
    let what = || format!("the set's image of job {}", unit.job);
    if Path::new(&unit.image).components().count() != 1 || unit.image.starts_with('.') {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{} is in no file of the set", what()),
        ));
    }
    let image = directory.join(&unit.image);
    match state.job(&unit.job) {
        Ok(job) if job.is_alive()? => {
            return Err(Error::new(ErrorKind::Busy, format!("job {} is running", unit.job)));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut spec = JobSpec {
        name: Some(unit.job.clone()),
        command: vec![unit.job.clone().into()],
        ..JobSpec::default()
    };
    let mut ends = Vec::new();
    let found = match Bundle::recognise(&image)? {
        Some(bundle) => {
            let record = bundle.record();
            fitting_engine(record, Some(&image))?;
            spec.command = record.command.iter().map(Into::into).collect();
            spec.directory = Some(record.directory.clone());
            spec.engine = Some(EngineUse {
                name: record.engine.clone(),
                version: record.version.clone(),
            });
            record.id.clone()
        }
        None => {
            let image = Image::open(&image)?;
            ends = channels(&image.manifest().inet_sockets)?;
            image.id().to_string()
        }
    };
    if found != unit.image_id {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{} is another one than was saved", what()),
        ));
    }
    Ok(Planned { spec, image, ends })
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
