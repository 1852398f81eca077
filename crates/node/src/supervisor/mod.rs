//! The supervisor of a job: `cpr run` itself in the foreground, a daemon for a detached job.
//!
//! One thread, one poll loop: signals, init's reports, the job's terminal, the checkpoint that runs, the time of the
//! next one. It holds the job's lock as long as it lives and is the only writer of `state.json`.

mod start;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpr_kernel::spawn;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::process::{Pid, WaitOptions};

use crate::checkpoint::{CheckpointOptions, Checkpointed, Task};
use crate::engine::Basis;
use crate::gate::Gate;
use crate::group::{self, Group};
use crate::init::{CHILD, Manner, Order, Report, Start};
use crate::job::{Exit, Job, KILL, LOCK, Phase, State};
use crate::lease::{LEASE_LAPSED, Lease};
use crate::outcome::Outcome;
use crate::own::OwnCheckpoints;
use crate::paging::Paging;
use crate::policies;
use crate::requests::{self, Request, Requests};
use crate::shared_terminal::SharedTerminal;
use crate::state::now_ms;
use crate::target::{Identity, Target};
use crate::terminal::{Relay, Source, WINDOW};
use crate::vault::Vault;
use crate::wire::{Receiver, send, wait};

use start::start;

/// Signals passed on to the job: HUP, INT, QUIT, USR1, USR2, ALRM, TERM, URG, XCPU, XFSZ, VTALRM, PROF, IO, PWR, and
/// those from [`REAL_TIME`] on. CONT is left to the kernel.
const FORWARDED: [i32; 14] = [1, 2, 3, 10, 12, 14, 15, 23, 24, 25, 26, 27, 29, 30];
/// Real-time signals, as the C library counts them.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
/// Those a terminal sends to its whole foreground group, and so to the job directly: HUP, INT, QUIT.
const FROM_TERMINAL: [i32; 3] = [1, 2, 3];
/// When a job is tried again to be saved and ended, of which somebody else is making a checkpoint.
const SAVE_AGAIN: Duration = Duration::from_millis(200);
/// Most requests that wait until all memory is there.
const POSTPONED: usize = 16;

/// Refuses signals that would never come to whoever watches over a job.
pub(crate) fn require_watched(signals: &[i32]) -> Result<()> {
    let watched = |signal: &i32| FORWARDED.contains(signal) || REAL_TIME.contains(signal);
    match signals.iter().find(|signal| !watched(signal)) {
        Some(signal) => Err(Error::new(
            ErrorKind::Usage,
            format!("a job cannot be saved on signal {signal}: it is not one that a program can wait for in peace"),
        )
        .with_hint("take for example USR1 or TERM")),
        None => Ok(()),
    }
}

/// How a job is to be started.
pub(crate) struct Launch<'a> {
    pub(crate) job: &'a Job,
    pub(crate) start: Start,
    /// In a PID namespace of its own rather than in ours.
    pub(crate) own_namespace: bool,
    /// With it, in an IPC namespace of its own.
    pub(crate) own_ipc: bool,
    /// We are a daemon.
    pub(crate) detached: bool,
    /// Give the job a terminal of its own.
    pub(crate) terminal: bool,
    pub(crate) restarted_from: Option<PathBuf>,
    /// Let it run before its memory is there; in a PID namespace of its own only.
    pub(crate) lazy: bool,
    pub(crate) manner: Manner,
    /// Jobs that are restarted with this one wait for each other there.
    pub(crate) gate: Option<&'a Gate>,
}

struct Supervisor<'a> {
    job: &'a Job,
    state: State,
    signals: OwnedFd,
    /// Init's channel and PID; none for a job in our own PID namespace.
    init: Option<(Receiver, i32)>,
    /// Status of the root process once it has ended.
    root_status: Option<i32>,
    relay: Option<Relay>,
    /// The terminal of our standard input is also the job's.
    shares_terminal: bool,
    /// That terminal, where the job was started in its foreground.
    shared_terminal: Option<SharedTerminal>,
    task: Option<Task<'a>>,
    /// What programs of the job ask for comes here.
    requests: Requests,
    /// The request that the running task is for.
    nonce: Option<String>,
    vault: Vault,
    /// Memory of the job is still coming.
    paging: Option<Paging>,
    /// Requests that wait for it.
    postponed: Vec<Request>,
    /// Checkpoints of its own begun so far.
    count: usize,
    next: Option<Instant>,
    /// It is to be saved and ended, from this time on.
    save: Option<Instant>,
    lease: Option<Lease>,
    /// The program saves itself when it likes.
    own: Option<OwnCheckpoints>,
    /// It has, and ended to be started again.
    ended_saved: bool,
    /// It is not to be: somebody has sent it a signal meanwhile.
    over: bool,
    /// The task makes an image of what it has saved.
    registering: bool,
    complaint: Option<String>,
    /// The job's control group, where it has one of its own.
    group: Option<Group>,
}

/// Starts the job, calls `started` once it runs, and stays until it has ended.
pub(crate) fn supervise(launch: &Launch<'_>, started: &mut dyn FnMut() -> Result<()>) -> Result<Outcome> {
    let job = launch.job;
    let _lock = job
        .directory
        .try_lock(LOCK)?
        .ok_or_else(|| Error::new(ErrorKind::Busy, format!("job {} is running already", job.name())))?;
    if let Some(lease) = &job.spec().lease {
        Lease::require(lease)?;
    }
    job.set_stop_intent(None)?;
    // Of a suspended job that died with the machine or its supervisor.
    job.thaw()?;
    let mut state = State {
        phase: Phase::Starting,
        supervisor: Some(Identity::own()?),
        init: None,
        root: None,
        pid_namespace: None,
        root_here: None,
        boot: None,
        started_ms: now_ms(),
        finished_ms: None,
        exit: None,
        restarted_from: launch.restarted_from.clone(),
        stopped_into: None,
        error: None,
        no_cgroup: None,
        own_cgroup: None,
        mounts: Vec::new(),
    };
    job.write_state(&state)?;
    // Children that end must be seen, whatever our caller had set.
    spawn::default_signal(CHILD).context(|| "watch for children")?;
    let mut watched: Vec<i32> = FORWARDED
        .into_iter()
        .chain(REAL_TIME)
        .filter(|s| !spawn::is_ignored(*s))
        .collect();
    watched.extend([CHILD, WINDOW]);
    let mask = spawn::block_signals(&watched).context(|| "block signals")?;
    let result = start(launch, &mut state, &watched, mask).and_then(|mut supervisor| {
        started()?;
        supervisor.attend()?;
        supervisor.conclude()
    });
    if let Err(error) = &result {
        state.phase = Phase::Failed;
        state.finished_ms = Some(now_ms());
        state.error = Some(error.chain());
        // The first error is the one to report.
        let _ = job.write_state(&state);
    }
    spawn::set_signal_mask(&mask).context(|| "restore the signal mask")?;
    result
}

/// Waits for all children that have ended: a restart that failed has killed what it made, and numbers are in use until
/// somebody has waited for them. Init may take its time.
fn reap_the_dead() {
    while let Ok(Some(_)) | Err(rustix::io::Errno::INTR) = rustix::process::wait(WaitOptions::NOHANG) {}
}

fn reap(pid: i32) {
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty()) {}
}

/// What a polled descriptor is.
enum Tag {
    Signals,
    Init,
    Task,
    Request,
    Vault,
    Lease,
    Own,
    Terminal(Source),
}

impl Supervisor<'_> {
    /// Until no process of the job is left.
    fn attend(&mut self) -> Result<()> {
        // What has ended already gave no signal that we still could read.
        if self.reap()? {
            return Ok(());
        }
        self.register_when_due();
        loop {
            let (tags, ready) = self.wait()?;
            let mut sources = Vec::new();
            let mut ended = false;
            for (tag, _) in tags.into_iter().zip(ready).filter(|(_, ready)| *ready) {
                match tag {
                    Tag::Signals => ended |= self.take_signals()?,
                    Tag::Init => self.hear_init()?,
                    Tag::Task => self.pump_task(),
                    Tag::Request => self.hear_requests()?,
                    Tag::Vault => self.vault.serve(),
                    Tag::Lease => self.end_without_lease(),
                    Tag::Own => self.look_at_own(),
                    Tag::Terminal(source) => sources.push(source),
                }
            }
            if let Some(relay) = &mut self.relay {
                relay.serve(&sources);
            }
            if ended {
                return Ok(());
            }
            self.save_when_asked();
            self.checkpoint_when_due();
            self.register_when_due();
        }
    }

    fn wait(&self) -> Result<(Vec<Tag>, Vec<bool>)> {
        let mut tags = vec![Tag::Signals];
        let mut polled = vec![(self.signals.as_fd(), PollFlags::IN)];
        tags.push(Tag::Request);
        polled.push((self.requests.as_fd(), PollFlags::IN));
        if let Some((channel, _)) = self.init.as_ref().filter(|(channel, _)| !channel.ended()) {
            tags.push(Tag::Init);
            polled.push((channel.as_fd(), PollFlags::IN));
        }
        if let Some(task) = &self.task {
            tags.push(Tag::Task);
            polled.push((task.as_fd(), PollFlags::IN));
        }
        for fd in self.vault.polled() {
            tags.push(Tag::Vault);
            polled.push((fd, PollFlags::IN));
        }
        if let Some(lease) = &self.lease {
            tags.push(Tag::Lease);
            polled.push((lease.as_fd(), PollFlags::IN));
        }
        if let Some(own) = &self.own {
            tags.push(Tag::Own);
            polled.push((own.as_fd(), PollFlags::IN));
        }
        for (source, fd, flags) in self.relay.iter().flat_map(Relay::polled) {
            tags.push(Tag::Terminal(source));
            polled.push((fd, flags));
        }
        let deadline = if self.task.is_none() && self.root_status.is_none() && self.paging.is_none() {
            self.next.into_iter().chain(self.save).min()
        } else {
            None
        };
        let registered = self
            .own
            .as_ref()
            .and_then(OwnCheckpoints::due)
            .filter(|_| self.task.is_none());
        let deadline = deadline.into_iter().chain(registered).min();
        let ready = wait(&polled, deadline).context(|| "wait for the job")?;
        Ok((tags, ready))
    }

    /// True when the job has ended.
    fn take_signals(&mut self) -> Result<bool> {
        let mut children = false;
        while let Some(received) = spawn::read_signal(self.signals.as_fd()).context(|| "read a signal")? {
            match received.signal {
                CHILD => children = true,
                WINDOW => {
                    if let Some(relay) = &self.relay {
                        relay.resize_from_local();
                    }
                }
                signal => {
                    let direct =
                        self.shares_terminal && received.from_kernel && FROM_TERMINAL.contains(&received.signal);
                    if self.job.spec().save_on.contains(&signal) {
                        self.save = self.save.or(Some(Instant::now()));
                    } else if !direct {
                        self.forward(signal);
                    }
                }
            }
        }
        if children { self.reap() } else { Ok(false) }
    }

    /// Ends the job where its lease has lapsed: somebody else may be running it by now.
    fn end_without_lease(&mut self) {
        let lapsed = self.lease.as_mut().map(Lease::has_lapsed);
        match lapsed {
            Some(Ok(true)) => {}
            Some(Err(error)) => return self.complain("looking at its lease", &error),
            Some(Ok(false)) | None => return,
        }
        // Killed first: the disk may be slow.
        if let Err(error) = self.job.kill(KILL)
            && error.kind() != ErrorKind::Gone
        {
            self.complain("ending it", &error);
        }
        self.state.error = Some(LEASE_LAPSED.to_string());
        self.record();
    }

    fn forward(&mut self, signal: i32) {
        self.over |= self.ended_saved;
        // The job may be ending right now.
        match &self.init {
            Some((channel, _)) => {
                let _ = send(channel.as_fd(), &Order::Signal(signal));
            }
            None if self.root_status.is_none() => {
                // Our child, and not waited for: the PID is its own.
                if let Some(root) = self.state.root {
                    let _ = Target::open(root).and_then(|t| t.signal(signal));
                }
            }
            None => {
                for process in self.job.host_members(&self.state).unwrap_or_default() {
                    let _ = process.signal(signal);
                }
            }
        }
    }

    fn hear_init(&mut self) -> Result<()> {
        let Some((channel, _)) = &mut self.init else {
            return Ok(());
        };
        let reports: Vec<Report> = channel.receive().context(|| "listen to the job's init")?;
        let mut ended = None;
        for report in reports {
            match report {
                Report::RootEnded { status } => ended = Some(status),
                Report::Saved => self.ended_saved = true,
                Report::Complete => self.memory_complete(),
                Report::Failed(error) => {
                    let error = Error::from(error);
                    self.complain("going on", &error);
                    self.state.error = Some(error.chain());
                }
                // Only before the job is started.
                Report::Mounted(_) => {}
                Report::Started { root } => {
                    self.state.root = Some(root);
                    self.record();
                }
            }
        }
        if let Some(status) = ended {
            self.root_ended(status);
        }
        Ok(())
    }

    /// Checkpoints can be made from now on.
    fn memory_complete(&mut self) {
        self.end_paging();
        for request in std::mem::take(&mut self.postponed) {
            self.begin_requested(request);
        }
    }

    fn end_paging(&mut self) {
        if let Some(paging) = self.paging.take()
            && let Err(error) = paging.end(&self.job.directory)
        {
            self.complain("tidying up after a lazy restart", &error);
        }
    }

    fn root_ended(&mut self, status: i32) {
        self.root_status = Some(status);
        self.state.exit = Some(Exit::of_status(status));
        self.record();
    }

    /// Writes the state. A full disk must not cost the job its supervisor, and so its life.
    fn record(&mut self) {
        if let Err(error) = self.job.write_state(&self.state) {
            self.complain("recording the state", &error);
        }
    }

    /// Collects children that have ended; true when the job has.
    fn reap(&mut self) -> Result<bool> {
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => (pid.as_raw_nonzero().get(), status.as_raw()),
                Ok(None) => return Ok(false),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Ok(true),
            };
            let init = self.init.as_ref().map(|(_, pid)| *pid);
            if init == Some(pid) {
                self.hear_init()?;
                return Ok(true);
            }
            if init.is_none() && self.state.root == Some(pid) {
                self.root_ended(status);
            }
        }
    }

    /// Saves and ends the job, after what is under way; where that fails it runs on.
    fn save_when_asked(&mut self) {
        let due = self.save.is_some_and(|due| due <= Instant::now());
        if !due || self.task.is_some() || self.root_status.is_some() || self.paging.is_some() {
            return;
        }
        self.save = None;
        let options = CheckpointOptions {
            stop: true,
            ..CheckpointOptions::default()
        };
        match Task::for_job(self.job, &options, Some(&mut self.vault)) {
            Ok(task) => self.task = Some(task.of_supervisor()),
            // Somebody else is making one.
            Err(error) if error.kind() == ErrorKind::Busy => self.save = Some(Instant::now() + SAVE_AGAIN),
            Err(error) => self.complain("a checkpoint", &error),
        }
    }

    fn checkpoint_when_due(&mut self) {
        let Some(every) = self.job.spec().every else { return };
        if self.task.is_some()
            || self.root_status.is_some()
            || self.paging.is_some()
            || self.next.is_none_or(|next| next > Instant::now())
        {
            return;
        }
        self.next = Some(Instant::now() + every.max(Duration::from_millis(1)));
        if self.job.is_suspended().unwrap_or(false) {
            return;
        }
        let basis = match &self.job.spec().sequence {
            Some(sequence) => sequence.basis(self.count),
            None => Basis::Full,
        };
        let options = CheckpointOptions {
            basis,
            ..CheckpointOptions::default()
        };
        self.count += 1;
        match Task::for_job(self.job, &options, Some(&mut self.vault)) {
            Ok(task) => self.task = Some(task),
            // Somebody else is making one.
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => self.complain("a checkpoint", &error),
        }
    }

    fn look_at_own(&mut self) {
        if let Some(own) = &mut self.own
            && let Err(error) = own.look()
        {
            self.own = None;
            self.complain("watching for its own checkpoints", &error);
        }
    }

    /// Makes what the program has saved an image, and has it started again where it has ended for that.
    fn register_when_due(&mut self) {
        if self.task.is_some() {
            return;
        }
        if self.ended_saved {
            // What it wrote last may not have been seen so far.
            self.look_at_own();
        }
        let Some(own) = &mut self.own else {
            if std::mem::take(&mut self.ended_saved) {
                self.go_on_after_saving(false);
            }
            return;
        };
        let new = own.due();
        if new.is_some_and(|due| self.ended_saved || due <= Instant::now()) {
            own.take();
            match Task::for_own(self.job) {
                Ok(task) => {
                    self.task = Some(task);
                    self.registering = true;
                }
                Err(error) => self.complain("an image of its own checkpoint", &error),
            }
        }
        if self.task.is_none() && std::mem::take(&mut self.ended_saved) {
            let saved = self.own.as_mut().is_some_and(OwnCheckpoints::has_saved);
            if !saved {
                eprintln!(
                    "cpr: job {}: it has ended to be started again, and has saved nothing",
                    self.job.name()
                );
            }
            self.go_on_after_saving(saved);
        }
    }

    fn go_on_after_saving(&mut self, well: bool) {
        let order = match well && !std::mem::take(&mut self.over) {
            true => Order::Again,
            false => Order::Over,
        };
        if let Some((channel, _)) = &self.init {
            // Where init has ended, so has the job.
            let _ = send(channel.as_fd(), &order);
        }
    }

    /// What was saved last, by a program that ended then.
    fn register_last(&mut self) {
        self.look_at_own();
        if self.own.as_mut().is_some_and(|own| own.due().is_some()) {
            match Task::for_own(self.job).and_then(Task::finish_waiting) {
                Ok(_) => {}
                Err(error) => self.complain("an image of its own checkpoint", &error),
            }
        }
    }

    fn pump_task(&mut self) {
        let Some(task) = &mut self.task else { return };
        let done = task.pump(&mut |_, _, _| {});
        if !matches!(done, Ok(false))
            && let Some(task) = self.task.take()
        {
            self.task_ended(task.finish());
        }
    }

    /// Answers who asked for the checkpoint, or says why it failed where nobody did.
    fn task_ended(&mut self, result: Result<Checkpointed>) {
        if std::mem::take(&mut self.registering)
            && let Some(own) = &mut self.own
        {
            own.registered(result.is_ok());
        }
        if let Some(nonce) = self.nonce.take() {
            self.answer(&nonce, result.as_ref().map(Some));
            return;
        }
        match result {
            Ok(_) => self.complaint = None,
            Err(error) => self.complain("a checkpoint", &error),
        }
    }

    fn answer(&mut self, nonce: &str, result: Result<Option<&Checkpointed>, &Error>) {
        if let Err(error) = requests::answer(self.job, nonce, result) {
            self.complain("answering a request of the job", &error);
        }
    }

    /// A program of the job asks for a checkpoint, or says how files are to be treated.
    fn hear_requests(&mut self) -> Result<()> {
        while let Some(request) = self.requests.receive()? {
            if let Some(policy) = &request.policy {
                let added = policies::add(self.job, policy);
                self.answer(&request.nonce, added.as_ref().map(|()| None));
            } else if self.paging.is_some() && self.postponed.len() < POSTPONED {
                self.postponed.push(request);
            } else {
                self.begin_requested(request);
            }
        }
        Ok(())
    }

    fn begin_requested(&mut self, request: Request) {
        let options = CheckpointOptions {
            stop: request.stop,
            ..CheckpointOptions::default()
        };
        let task = match self.task.is_some() || self.paging.is_some() {
            true => Err(requests::busy(self.job)),
            false => Task::for_job(self.job, &options, Some(&mut self.vault)),
        };
        match task {
            Ok(task) => {
                self.task = Some(task.of_supervisor());
                self.nonce = Some(request.nonce);
            }
            Err(error) => self.answer(&request.nonce, Err(&error)),
        }
    }

    /// Says why something failed, once until the reason changes. Standard error of a detached job is its log.
    fn complain(&mut self, what: &str, error: &Error) {
        let reason = error.chain();
        if self.complaint.as_ref() != Some(&reason) {
            eprintln!("cpr: job {}: {what} failed: {reason}", self.job.name());
            if let Some(hint) = error.hint() {
                eprintln!("cpr: hint: {hint}");
            }
            self.complaint = Some(reason);
        }
    }

    /// Records how the job ended.
    fn conclude(&mut self) -> Result<Outcome> {
        if let Some(relay) = &mut self.relay {
            relay.drain();
        }
        // Restores the caller's terminal before anything more is said.
        self.relay = None;
        self.end_paging();
        if let Some(task) = self.task.take() {
            match task.finish_waiting() {
                Err(error) if error.kind() == ErrorKind::Gone => {}
                result => self.task_ended(result),
            }
        }
        self.register_last();
        // Killed with its namespace, init could tell nothing.
        let exit = Exit::of_status(self.root_status.unwrap_or(KILL));
        if let Some(terminal) = self.shared_terminal.take() {
            terminal.take_back(exit.signal.is_some());
        }
        self.state.exit = Some(exit);
        self.state.finished_ms = Some(now_ms());
        let stopped = self
            .job
            .stop_intent()?
            .filter(|intent| exit.signal == Some(KILL) && intent.is_complete());
        let outcome = match stopped {
            Some(intent) => {
                self.state.phase = Phase::Stopped;
                self.state.stopped_into = intent.image.clone();
                Outcome::StoppedByCheckpoint {
                    image: intent.image.unwrap_or_default(),
                }
            }
            None => {
                self.state.phase = if exit.signal.is_some() {
                    Phase::Crashed
                } else {
                    Phase::Exited
                };
                Outcome::Exited {
                    code: exit.code,
                    signal: exit.signal,
                }
            }
        };
        self.record();
        if let Some(group) = &self.group {
            group::remove(group.path());
        }
        Ok(outcome)
    }
}
