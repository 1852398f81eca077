//! Checkpoints: the front that asks, the worker that does, and what is kept afterwards.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cpr_image::model::ByteString;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Serialize;

use crate::engine::{
    After, Basis, Blocker, CheckpointReport, CheckpointRequest, Compression, Destination, Earlier, Event, FileRule,
    Handover, Keep, Outside, PendingImage, Requester, Surroundings, TcpPolicy, check, checkpoint, devices,
};
use crate::foreign::{Addressed, Saving};
use crate::group;
use crate::job::{CHECKPOINT_LOCK, Job, KILL, LastCheckpoint, State, StopIntent, image_name};
use crate::outsider::outsider;
use crate::paging::await_pages;
use crate::policies;
use crate::state::now_ms;
use crate::suspend::refuse_suspended;
use crate::target::{self, Target};
use crate::vault::{self, Kept, Link, Vault};
use crate::wire::WireError;
use crate::worker::{self, Message, Worker};

/// How long stopping all threads of a job may take unless asked otherwise.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What the engine calls a tracer among the objects that block.
const TRACER: &str = "tracer";
/// What to do about one.
const TRACED_HINT: &str = "detach the debugger or tracer first";

/// Called with the name of a phase, the bytes done and the bytes in all.
pub type Progress = Box<dyn FnMut(&str, u64, u64)>;

/// Where an image goes, other than into the job's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// This file.
    Path(PathBuf),
    /// Standard output, as a stream.
    Stdout,
}

/// How to checkpoint.
pub struct CheckpointOptions {
    /// End the job once its image is complete and durable.
    pub stop: bool,
    /// Send this signal to every process once the image is complete and durable.
    pub signal: Option<i32>,
    /// Copy memory while the job runs, also where it does not go on: it takes longer in all, and the job stands still
    /// for less of it.
    pub live: bool,
    /// Where the image goes; the job's own directory, or for a bare process `cpr-PID.cpr` here, unless given.
    pub output: Option<Output>,
    /// How long stopping all threads may take.
    pub timeout: Duration,
    /// Compress page data.
    pub compression: Option<Compression>,
    /// Which other images it may refer to.
    pub basis: Basis,
    /// What becomes of TCP connections to outside; as the job was started with, unless given.
    pub tcp: Option<TcpPolicy>,
    /// How the contents of files are treated, after what the job was started with; later ones win.
    pub files: Vec<FileRule>,
    /// What is saved of programs and libraries, besides what the job was started with.
    pub keep: Keep,
    /// Compare the image with a copy of the job's memory made in the same stop, and fail where a page differs.
    pub compare: bool,
    /// Exit code that this process has for its parent in a restarted job, where it is a process of the job.
    pub restarted_exit_code: u8,
    /// Shows progress.
    pub progress: Option<Progress>,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        CheckpointOptions {
            stop: false,
            signal: None,
            live: false,
            output: None,
            timeout: STOP_TIMEOUT,
            compression: None,
            basis: Basis::Full,
            tcp: None,
            files: Vec::new(),
            keep: Keep::default(),
            compare: false,
            restarted_exit_code: 0,
            progress: None,
        }
    }
}

/// A checkpoint that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Checkpointed {
    /// The image, unless it went into a stream.
    pub image: Option<PathBuf>,
    /// What the engine says of it.
    pub report: CheckpointReport,
}

/// A job that can be checkpointed now, and by nobody else.
pub(crate) struct Ready<'a> {
    job: &'a Job,
    state: State,
    /// One checkpoint of a job at a time.
    lock: OwnedFd,
    /// Its root process, held, and what that is called in its own namespace.
    root: Target,
    inner: i32,
    /// Its init, where it has one.
    init: Option<Target>,
    /// Its control group, where it has one that we are not in ourselves.
    group: Option<PathBuf>,
}

impl<'a> Ready<'a> {
    pub(crate) fn new(job: &'a Job) -> Result<Ready<'a>> {
        let name = job.name();
        let state = job.living()?;
        if job.is_suspended()? {
            return Err(Error::new(ErrorKind::Busy, format!("job {name} is suspended"))
                .with_hint(format!("`cpr resume {name}` first")));
        }
        let lock = job.directory.try_lock(CHECKPOINT_LOCK)?;
        let lock = lock.ok_or_else(|| Error::new(ErrorKind::Busy, format!("job {name} is being checkpointed")))?;
        let root = job.root_target(&state)?;
        root.require_may_signal()?;
        if let Some(traced) = job.traced(&state)?.first() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("process {} of job {name} is {}", traced.inner, traced.reason),
            )
            .with_hint(TRACED_HINT));
        }
        // What is left then is in nobody's way.
        let _ = job.remove_parts();
        let inner = state.root.unwrap_or(root.pid);
        let init = job.init_target(&state)?;
        let group = job.group(&state).filter(|group| !group::is_around_us(group));
        Ok(Ready {
            job,
            state,
            lock,
            root,
            inner,
            init,
            group,
        })
    }

    /// For a job of another engine than ours.
    pub(crate) fn saving(&self, options: &CheckpointOptions) -> Result<Option<Saving>> {
        let Some(engine) = &self.job.spec().engine else {
            return Ok(None);
        };
        // Where the root process has ended before the rest of the job, that is another one.
        let pids = target::namespace_pids(self.root.pid)?;
        let inner = pids.last().copied().unwrap_or(self.inner);
        let own_namespace = self.state.init.is_some();
        let unit = Addressed {
            root: inner,
            own_namespace,
            group: self.group.clone(),
        };
        Saving::new(self.job, engine, options, unit, after(options)).map(Some)
    }

    /// The job's control group, where it has one that we are not in ourselves.
    pub(crate) fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// For a job of ours.
    pub(crate) fn request(&self, options: &CheckpointOptions) -> Result<CheckpointRequest> {
        let spec = self.job.spec();
        let tcp = options.tcp.unwrap_or(spec.tcp);
        let mut request = request(options, self.inner, self.job.name(), self.state.init.is_some(), tcp);
        let of_programs = policies::of(self.job)?;
        let all = spec.files.iter().chain(&of_programs).chain(&options.files);
        request.files = all.cloned().collect();
        request.keep.libraries |= spec.keep_files.libraries;
        request.keep.executables |= spec.keep_files.executables;
        request.mounts = self.job.mounts_outside(&self.state).map(Arc::new);
        request.adopter = self.job.adopter(&self.state);
        request.group = self.group.clone();
        request.log = std::fs::canonicalize(self.job.log_path())
            .map(|path| ByteString::from(&path))
            .unwrap_or_default();
        Ok(request)
    }

    /// A process in all namespaces that are the job's.
    pub(crate) fn at_home(&self) -> &Target {
        self.init.as_ref().unwrap_or(&self.root)
    }

    /// Its root process, as its own namespace numbers it.
    pub(crate) fn inner(&self) -> i32 {
        self.inner
    }

    /// Whether it has a PID namespace to itself.
    pub(crate) fn has_namespace(&self) -> bool {
        self.state.init.is_some()
    }

    /// Whether we are a process of the job.
    pub(crate) fn is_around_us(&self) -> bool {
        self.job.is_around_us(&self.state)
    }
}

/// A checkpoint under way, seen from the front.
pub(crate) struct Task<'a> {
    worker: Worker,
    /// One checkpoint of a job at a time.
    _lock: Option<OwnedFd>,
    job: Option<&'a Job>,
    image: Option<PathBuf>,
    in_job_directory: bool,
    stop: bool,
    /// We are the job's supervisor, and cannot wait for our own end.
    of_supervisor: bool,
    /// We are a process of the job ourselves.
    inside: bool,
    /// The job's control group, which whoever saves it may have frozen.
    group: Option<PathBuf>,
    result: Option<Result<CheckpointReport>>,
}

impl<'a> Task<'a> {
    /// Starts a checkpoint of a job.
    ///
    /// What is tracked is with `vault`, or else with the job's supervisor.
    pub(crate) fn for_job(job: &'a Job, options: &CheckpointOptions, vault: Option<&mut Vault>) -> Result<Task<'a>> {
        if options.basis != Basis::Full && options.output == Some(Output::Stdout) {
            return Err(
                Error::new(ErrorKind::Usage, "an increment cannot be written to standard output")
                    .with_hint("write a full image there, or the increment to a file"),
            );
        }
        let destination = || destination(options.output.as_ref(), || next_image(job));
        Task::begin(job, options, destination, vault)
    }

    /// Starts the last checkpoint of a job here, which somebody else takes over.
    pub(crate) fn for_handover(job: &'a Job, options: &CheckpointOptions, handover: Handover) -> Result<Task<'a>> {
        Task::begin(job, options, || Ok((Destination::Handover(handover), None)), None)
    }

    fn begin(
        job: &'a Job,
        options: &CheckpointOptions,
        destination: impl FnOnce() -> Result<(Destination, Option<PathBuf>)>,
        vault: Option<&mut Vault>,
    ) -> Result<Task<'a>> {
        if vault.is_none() {
            await_pages(&job.directory)?;
        }
        let ready = Ready::new(job)?;
        let saving = ready.saving(options)?;
        let (destination, image) = destination()?;
        let stop = ends_job(options);
        if stop {
            job.set_stop_intent(Some(&StopIntent::new(image.clone())))?;
        }
        let inside = ready.is_around_us();
        let native = |destination: Destination| {
            let mut request = ready.request(options)?;
            request.requester = inside.then(|| requester(options));
            let (link, kept) = match vault {
                Some(vault) => vault.hand_out().map(|(link, kept)| (Some(link), kept))?,
                None => vault::ask(&job.directory).map_or((None, None), |(link, kept)| (Some(link), kept)),
            };
            // Where the image before is gone, tracking begins anew.
            let earlier = kept.and_then(|kept| kept.open().ok());
            let incremental = options.basis != Basis::Full;
            let wanted = incremental || job.spec().sequence.is_some() || earlier.is_some();
            request.keep_tracking = wanted && (incremental || options.output.is_none()) && !stop;
            let keep = link.zip(image.clone()).filter(|_| request.keep_tracking);
            start(ready.at_home(), request, destination, earlier, keep)
        };
        let worker = match saving {
            Some(saving) => start_saving(ready.at_home(), saving, destination),
            None => native(destination),
        };
        if worker.is_err() && stop {
            job.set_stop_intent(None)?;
        }
        Ok(Task {
            worker: worker?,
            _lock: Some(ready.lock),
            job: Some(job),
            image,
            in_job_directory: options.output.is_none(),
            stop,
            of_supervisor: false,
            inside,
            group: ready.group,
            result: None,
        })
    }

    /// Starts making an image of what the program of a job has saved itself; for its supervisor.
    pub(crate) fn for_own(job: &'a Job) -> Result<Task<'a>> {
        let state = job.living()?;
        let lock = job.directory.try_lock(CHECKPOINT_LOCK)?;
        let lock = lock.ok_or_else(|| crate::requests::busy(job))?;
        let engine = job.spec().engine.as_ref();
        let engine = engine.ok_or_else(|| crate::wire::internal("a job of ours does not save itself"))?;
        let saving = Saving::own(job, engine, state.root.unwrap_or(0))?;
        let (mut destination, image) = destination(None, || next_image(job))?;
        if let Destination::File(pending) = &mut destination {
            pending.hand_over();
        }
        let us = Target::open(std::process::id() as i32)?;
        let worker = Worker::start(&us, move |events| {
            if let Destination::File(pending) = &mut destination {
                pending.adopt();
            }
            saving.register(destination, events).map(Message::Checkpointed)
        })?;
        Ok(Task {
            worker,
            _lock: Some(lock),
            job: Some(job),
            image,
            in_job_directory: true,
            stop: false,
            of_supervisor: true,
            inside: false,
            group: None,
            result: None,
        })
    }

    /// Starts a checkpoint of processes that are no job.
    fn for_bare(bare: Bare, options: &CheckpointOptions) -> Result<Task<'a>> {
        if options.basis != Basis::Full {
            return Err(Error::new(
                ErrorKind::Usage,
                "only jobs have increments: nobody tracks other processes",
            )
            .with_hint("start the program with `cpr run`"));
        }
        refuse_suspended(bare)?;
        let found = outsider(bare)?;
        let own_path = || Ok(PathBuf::from(format!("cpr-{}.cpr", bare.number())));
        let (destination, image) = destination(options.output.as_ref(), own_path)?;
        let tcp = options.tcp.unwrap_or_default();
        let mut request = request(options, found.inner, "", found.foreign, tcp);
        request.session = found.session;
        request.requester = (!found.foreign).then(|| requester(options));
        Ok(Task {
            worker: start(&found.target, request, destination, None, None)?,
            _lock: None,
            job: None,
            image,
            in_job_directory: false,
            stop: ends_job(options),
            of_supervisor: false,
            inside: false,
            group: None,
            result: None,
        })
    }

    /// Takes in what the worker has reported; true when it has no more to say.
    pub(crate) fn pump(&mut self, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<bool> {
        let messages: Vec<Message> = self.worker.reports.receive().context(|| "listen to the worker")?;
        for message in messages {
            match message {
                Message::Event(Event::Progress { phase, done, total }) => progress(&phase, done, total),
                Message::Event(Event::Durable) => {}
                Message::Checkpointed(report) => self.result = Some(Ok(report)),
                Message::Failed(error) => self.result = Some(Err(error.into())),
                Message::Blockers(_) => {}
            }
        }
        Ok(self.worker.reports.ended())
    }

    /// The same, run by the supervisor of the job itself.
    pub(crate) fn of_supervisor(mut self) -> Self {
        self.of_supervisor = true;
        self
    }

    /// Waits for the end.
    pub(crate) fn finish_waiting(mut self) -> Result<Checkpointed> {
        self.run(&mut |_, _, _| {})?;
        self.finish()
    }

    fn run(&mut self, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<()> {
        // No deadline here: the engine has those that matter, and ends by itself.
        while !self.pump(progress)? {
            self.worker.reports.wait(None).context(|| "listen to the worker")?;
        }
        Ok(())
    }

    /// Records the result and removes images that are no longer to be kept.
    pub(crate) fn finish(self) -> Result<Checkpointed> {
        let result = self.result.unwrap_or_else(|| Err(self.worker.lost()));
        self.worker.reap();
        if let Some(group) = self.group.filter(|_| result.is_err()) {
            // Of a worker or an engine that was killed at such an instant. A group that is gone needs nothing.
            let _ = group::thaw(&group);
        }
        let Some(job) = self.job else {
            return result.map(|report| Checkpointed {
                image: self.image,
                report,
            });
        };
        if result.is_err() && self.stop && !job.stop_intent()?.is_some_and(|i| i.image.is_some() && i.is_complete()) {
            job.set_stop_intent(None)?;
        }
        let last = LastCheckpoint {
            time_ms: now_ms(),
            image: self.image.clone().filter(|_| result.is_ok()),
            error: result.as_ref().err().map(Error::chain),
        };
        // The checkpoint is what it is, whether or not this can be noted.
        let noted = job.set_last_checkpoint(&last);
        let report = result?;
        noted?;
        // A job does not end before its processes do, and we may be one.
        if self.stop && !self.of_supervisor && !self.inside {
            // The supervisor notes the end; until it has, the job counts as running.
            job.await_end(Some(STOP_TIMEOUT))?;
        }
        if let Some(keep) = job.spec().keep.filter(|_| self.in_job_directory) {
            job.prune(keep)?;
        }
        Ok(Checkpointed {
            image: self.image,
            report,
        })
    }
}

impl AsFd for Task<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.worker.reports.as_fd()
    }
}

/// `keep` is where what is tracked goes when the image at this path is complete.
fn start(
    target: &Target,
    mut request: CheckpointRequest,
    mut destination: Destination,
    earlier: Option<Earlier>,
    keep: Option<(Link, PathBuf)>,
) -> Result<Worker> {
    if let Destination::File(pending) = &mut destination {
        pending.hand_over();
    }
    request.own_ipc_namespace = worker::plan(target)?.ipc;
    Worker::start(target, move |events| {
        if let Destination::File(pending) = &mut destination {
            pending.adopt();
        }
        let (report, tracked) = checkpoint(&request, destination, earlier, events)?;
        if let Some((link, path)) = keep.filter(|_| !tracked.is_empty()) {
            // Without a supervisor that takes it, the next image is a full one.
            let _ = link.give(Some(&Kept::new(&path, &report, tracked)));
        }
        Ok(Message::Checkpointed(report))
    })
}

/// The same for a job of another engine.
fn start_saving(target: &Target, saving: Saving, mut destination: Destination) -> Result<Worker> {
    if let Destination::File(pending) = &mut destination {
        pending.hand_over();
    }
    Worker::start(target, move |events| {
        if let Destination::File(pending) = &mut destination {
            pending.adopt();
        }
        saving.save(destination, events).map(Message::Checkpointed)
    })
}

fn after(options: &CheckpointOptions) -> After {
    match options.signal {
        _ if ends_job(options) => After::Kill,
        Some(signal) => After::Signal(signal),
        None => After::Continue,
    }
}

fn ends_job(options: &CheckpointOptions) -> bool {
    options.stop || options.signal == Some(KILL)
}

fn request(
    options: &CheckpointOptions,
    pid: i32,
    job: &str,
    own_pid_namespace: bool,
    tcp: TcpPolicy,
) -> CheckpointRequest {
    CheckpointRequest {
        pid,
        after: after(options),
        live: options.live,
        log: ByteString::default(),
        job: job.to_string(),
        initiator_uid: rustix::process::getuid().as_raw(),
        own_pid_namespace,
        adopter: None,
        own_ipc_namespace: false,
        mounts: None,
        session: None,
        group: None,
        requester: None,
        stop_timeout: options.timeout,
        compression: options.compression,
        basis: options.basis,
        keep_tracking: false,
        tcp,
        channels: None,
        devices: Some(devices()),
        files: options.files.clone(),
        keep: options.keep,
        compare: options.compare,
        hold: false,
    }
}

/// Us, for a worker that sees our PID as we do.
fn requester(options: &CheckpointOptions) -> Requester {
    Requester {
        pid: std::process::id() as i32,
        exit_code: options.restarted_exit_code,
    }
}

/// Where the next image of a job goes that is kept with it.
fn next_image(job: &Job) -> Result<PathBuf> {
    let number = job.images()?.last().map_or(1, |image| image.number + 1);
    Ok(job.image_directory()?.path().join(image_name(number)))
}

/// Opens the destination here, before any namespace is entered; gives its absolute path unless it is a stream.
fn destination(
    output: Option<&Output>,
    own_path: impl FnOnce() -> Result<PathBuf>,
) -> Result<(Destination, Option<PathBuf>)> {
    let path = match output {
        Some(Output::Stdout) => {
            let stream = std::io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .context(|| "open standard output")?;
            return Ok((Destination::Stream(File::from(stream)), None));
        }
        Some(Output::Path(path)) => path.clone(),
        None => own_path()?,
    };
    let path = std::path::absolute(&path).context(|| format!("resolve {}", path.display()))?;
    Ok((Destination::File(PendingImage::create(&path)?), Some(path)))
}

/// Processes that are no job, by numbers as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// A process with all its descendants, by its PID.
    Process(i32),
    /// A POSIX session with all descendants of its processes, by its ID.
    Session(i32),
}

impl Bare {
    /// The PID or session ID.
    pub fn number(self) -> i32 {
        match self {
            Bare::Process(number) | Bare::Session(number) => number,
        }
    }

    /// One of its processes, held, that stands for all: the root, or the session's leader where it lives.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is none; [`ErrorKind::Denied`] where one of them may not be signalled.
    pub(crate) fn representative(self) -> Result<Target> {
        match self {
            Bare::Process(pid) => {
                let target = Target::open(pid)?;
                target.require_may_signal()?;
                Ok(target)
            }
            Bare::Session(sid) => {
                let own = std::process::id() as i32;
                let members = target::session_members(sid)?;
                for member in &members {
                    match member.require_may_signal() {
                        // It has ended meanwhile.
                        Err(error) if error.kind() == ErrorKind::Gone => {}
                        result => result?,
                    }
                }
                let first = members.into_iter().find(|member| member.pid != own);
                first.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no session {sid}")))
            }
        }
    }
}

impl std::fmt::Display for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bare::Process(pid) => write!(f, "process {pid}"),
            Bare::Session(sid) => write!(f, "session {sid}"),
        }
    }
}

fn run(mut task: Task<'_>, progress: Option<Progress>) -> Result<Checkpointed> {
    let mut progress = progress.unwrap_or_else(|| Box::new(|_, _, _| {}));
    task.run(&mut *progress)?;
    task.finish()
}

/// Checkpoints a process with its descendants, or a session.
pub fn checkpoint_bare(bare: Bare, mut options: CheckpointOptions) -> Result<Checkpointed> {
    let progress = options.progress.take();
    run(Task::for_bare(bare, &options)?, progress)
}

fn blockers(
    target: &Target,
    inner: i32,
    session: Option<i32>,
    adopter: Option<i32>,
    tcp: TcpPolicy,
    (is_job, mounts): (bool, Option<Outside>),
) -> Result<Vec<Blocker>> {
    let journey = worker::plan(target)?;
    let mut worker = Worker::start(target, move |_| {
        let (mounts, devices) = (mounts.as_ref(), devices());
        let around = Surroundings {
            own_ipc: journey.ipc,
            // From inside it, we would be of the job ourselves.
            own_pid_namespace: is_job && journey.pid,
            adopter,
            tcp,
            channels: None,
            devices: Some(devices.as_ref()),
            mounts,
        };
        check(inner, session, around).map(Message::Blockers)
    })?;
    let mut result: Option<Result<Vec<Blocker>, WireError>> = None;
    while !worker.reports.ended() {
        worker.reports.wait(None).context(|| "listen to the worker")?;
        for message in worker.reports.receive().context(|| "listen to the worker")? {
            match message {
                Message::Blockers(list) => result = Some(Ok(list)),
                Message::Failed(error) => result = Some(Err(error)),
                Message::Event(_) | Message::Checkpointed(_) => {}
            }
        }
    }
    let result = result.map_or_else(|| Err(worker.lost()), |result| result.map_err(Error::from));
    worker.reap();
    result
}

/// Names everything that would keep a process with its descendants, or a session, from being checkpointed. Stops
/// nothing.
pub fn check_bare(bare: Bare) -> Result<Vec<Blocker>> {
    let found = outsider(bare)?;
    blockers(
        &found.target,
        found.inner,
        found.session,
        None,
        TcpPolicy::default(),
        (false, None),
    )
}

impl Job {
    /// Who adopts the orphans of a job that was restarted without a PID namespace of its own: its supervisor.
    fn adopter(&self, state: &State) -> Option<i32> {
        let supervisor = state
            .supervisor
            .filter(|_| state.init.is_none() && !state.is_registered())?;
        Target::open_same(supervisor).ok().map(|supervisor| supervisor.pid)
    }

    /// Checkpoints the job.
    pub fn checkpoint(&self, mut options: CheckpointOptions) -> Result<Checkpointed> {
        let progress = options.progress.take();
        run(Task::for_job(self, &options, None)?, progress)
    }

    /// Names everything that would keep the job from being checkpointed. Stops nothing.
    pub fn check(&self) -> Result<Vec<Blocker>> {
        let state = self.living()?;
        if let Some(engine) = &self.spec().engine {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "job {} is for engine {}, and only a checkpoint shows whether that can save it",
                    self.name(),
                    engine.name
                ),
            ));
        }
        let root = self.root_target(&state)?;
        root.require_may_signal()?;
        let mounts = self.mounts_outside(&state);
        let init = self.init_target(&state)?;
        let at_home = init.as_ref().unwrap_or(&root);
        let (pid, adopter) = (state.root.unwrap_or(root.pid), self.adopter(&state));
        let mut found = blockers(at_home, pid, None, adopter, self.spec().tcp, (init.is_some(), mounts))?;
        for traced in self.traced(&state)? {
            // A tracer inside the job's PID namespace was seen from there.
            if !found.iter().any(|b| b.pid == traced.inner && b.object == TRACER) {
                found.push(Blocker {
                    pid: traced.inner,
                    object: TRACER.to_string(),
                    reason: traced.reason,
                    hint: Some(TRACED_HINT.to_string()),
                    passes: false,
                });
            }
        }
        Ok(found)
    }
}
