//! The first process of a job's PID namespace.
//!
//! A fork of the supervisor that runs no other program: in a user namespace the capabilities it was born with would be
//! gone after an exec. It sets the namespaces up, starts or restarts the job, reaps, tells the supervisor what
//! happens, and ends when no process of the job is left. When the supervisor dies, it dies, and the job with it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_engines::Pager;
use cpr_kernel::fd::{SENT_TOGETHER, send_descriptors};
use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::{kill_all_others, scatter_numbers};
use cpr_kernel::spawn::{self, Namespaces, SignalMask};
use cpr_kernel::{namespace, terminal_relay};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::engine::{
    Image, JobControl, LazyRequest, Pages, Rebirth, RestartRequest, Restarted, devices, outside, restart,
};
use crate::foreign::Building;
use crate::gate::Gate;
use crate::job::LOG;
use crate::shared_terminal;
use crate::wire::{Receiver, WireError, send, wait};

/// SIGCHLD and SIGPIPE.
pub(crate) const CHILD: i32 = 17;
pub(crate) const PIPE: i32 = 13;
/// Name of the job, for its programs.
pub(crate) const JOB_VARIABLE: &str = "GRIDCPR_JOB";
/// The job's directory, for its programs.
const DIRECTORY_VARIABLE: &str = "GRIDCPR_JOB_DIR";
/// Where a program puts checkpoints that it writes itself (SAGA CPR, section 2.2; [`OWN_CHECKPOINTS`]).
const BASE_VARIABLE: &str = "SAGA_CPR_BASE_LOCATION";
/// The same for libgridcpr alone, which goes first there.
const APP_BASE_VARIABLE: &str = "GRIDCPR_APP_BASE";
/// Which of them are full and which increments.
const SEQUENCE_VARIABLE: &str = "SAGA_CPR_SEQUENCE";
/// For how many seconds one is kept.
const LIFETIME_VARIABLE: &str = "SAGA_CPR_TIME_TO_LIVE";
/// Below the job's directory, so that they go with the job; made by the program that writes any.
pub(crate) const OWN_CHECKPOINTS: &str = "app";
/// How long workers of ours in the namespace may take to finish once the job has ended.
const WORKER_GRACE: Duration = Duration::from_secs(10);
/// The least number that a job's first process follows, and how many more there are to choose from: every host has
/// numbers below 32768, and the kernel itself begins with 300 again.
const LEAST_NUMBER: u32 = 300;
const NUMBERS: u32 = 30_000;
/// Where more are mounted, it is not noted which were before the job was there.
const MOST_MOUNTS: usize = 20_000;

/// What init tells its supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The job runs; PID of its root process.
    Started { root: i32 },
    /// What is mounted before the job is there ([`outside::name`]).
    Mounted(Vec<String>),
    /// It could not be started, or cannot go on.
    Failed(WireError),
    /// All memory of a lazily restarted job is there.
    Complete,
    /// The root process has ended with this wait(2) status.
    RootEnded { status: i32 },
    /// It has ended with the exit code that says that it has saved itself, and is to be started again.
    Saved,
}

/// What the supervisor tells init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Send this signal to the root process, or, when that has ended, to those that are left.
    Signal(i32),
    /// Start the program again, which has saved itself.
    Again,
    /// Do not.
    Over,
}

/// What a job starts from.
pub(crate) enum Start {
    /// A program.
    Command(Vec<OsString>),
    /// An image.
    Image(Arc<Image>),
    /// The files of another engine.
    Foreign(Box<Building>),
}

/// Everything a new job needs from outside its namespace.
pub(crate) struct Setting<'a> {
    pub(crate) start: &'a Start,
    /// User and group to map in the new user namespace, where there is one.
    pub(crate) map: Option<(u32, u32)>,
    /// Begin a session of its own.
    pub(crate) new_session: bool,
    /// Slave side of the job's terminal.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
    /// What the supervisor is to the terminal of its standard streams, where the job has that.
    pub(crate) job_control: JobControl,
    /// Signal mask the job begins with.
    pub(crate) mask: SignalMask,
    /// There is a new IPC namespace.
    pub(crate) own_ipc: bool,
    /// Limits of the IPC namespace we come from: files below /proc/sys, and what is in them.
    pub(crate) ipc_limits: Vec<(&'static str, Vec<u8>)>,
    /// What the job is told of itself.
    pub(crate) about: Rebirth,
    /// Which of its periodic checkpoints are full, and which increments: letters F, I and i.
    pub(crate) sequence: String,
    /// Seconds for which checkpoints that it writes itself are kept; empty where that was not said.
    pub(crate) lifetime: String,
    /// Another engine than ours checkpoints the job.
    pub(crate) foreign: bool,
    /// The program ends with this exit code when it has saved itself, and is to be started again.
    pub(crate) saved_code: Option<u8>,
    /// Jobs that are restarted with this one wait for each other there.
    pub(crate) gate: Option<&'a Gate>,
    /// Restart lazily; the pager's descriptors are sent here.
    pub(crate) keeper: Option<OwnedFd>,
    pub(crate) manner: Manner,
}

/// A job that runs.
struct Started {
    /// PID of its root process.
    root: i32,
    /// Memory that is still missing.
    coming: Option<Coming>,
}

/// Who brings memory that is missing. Readable when that has ended.
enum Coming {
    /// A thread of ours.
    Thread(Pages),
    /// A program of the engine's, a child of ours; how it has ended, once we have waited for it.
    Program(Pager, Option<WaitStatus>),
}

impl AsFd for Coming {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Coming::Thread(pages) => pages.as_fd(),
            Coming::Program(pager, _) => pager.as_fd(),
        }
    }
}

impl Coming {
    /// It has ended.
    ///
    /// # Errors
    /// Not all memory is there.
    fn finish(self, start: &Start) -> Result<()> {
        let (pager, status) = match self {
            Coming::Thread(pages) => return pages.finish(),
            Coming::Program(pager, status) => (pager, status),
        };
        let status = match status {
            Some(status) => status,
            None => {
                rustix::process::waitpid(Some(pager.pid()), WaitOptions::empty())
                    .map_err(std::io::Error::from)
                    .context(|| "wait for what brings the job's memory")?
                    .ok_or_else(|| crate::wire::internal("a process has ended and has not"))?
                    .1
            }
        };
        if let Start::Foreign(building) = start {
            building.tidy();
        }
        if status.exit_status() == Some(0) {
            return Ok(());
        }
        let text = "what brings the job's memory has ended before all was there";
        Err(Error::new(ErrorKind::Gone, text))
    }
}

/// Whether we die with our supervisor. While memory of the job is missing we must not: the kernel closes what we have
/// open before it ends the job. The end of the channel tells of the supervisor's then, and we end the job first.
fn tie_to_supervisor(tie: bool) -> Result<()> {
    rustix::process::set_parent_process_death_signal(tie.then_some(Signal::KILL))
        .map_err(std::io::Error::from)
        .context(|| "tie the job to its supervisor")
}

/// The limits of our IPC namespace.
pub(crate) fn ipc_limits() -> Vec<(&'static str, Vec<u8>)> {
    let read = |name| Some((name, std::fs::read(format!("/proc/sys/{name}")).ok()?));
    cpr_native::IPC_LIMITS.into_iter().filter_map(read).collect()
}

/// Sets up a new IPC namespace: the limits of the one we come from, as far as we may, and its queues at /dev/mqueue.
pub(crate) fn prepare_ipc(limits: &[(&'static str, Vec<u8>)]) -> Result<()> {
    for (name, value) in limits {
        // Only root may; a user's job has the kernel's own limits then.
        let path = format!("/proc/sys/{name}");
        if std::fs::read(&path).is_ok_and(|now| now != *value) {
            let _ = std::fs::write(&path, value);
        }
    }
    if std::path::Path::new("/dev/mqueue").is_dir() {
        namespace::mount_mqueue().context(|| "mount /dev/mqueue for the job")?;
    }
    Ok(())
}

/// Runs init until the job has ended; gives the exit code of the process.
pub(crate) fn run(setting: &Setting<'_>, channel: OwnedFd) -> i32 {
    match prepare(setting, &channel).and_then(|signals| Ok((begin(setting)?, signals))) {
        Ok((mut started, signals)) => match attend(setting, &mut started, signals, &channel) {
            Ok(()) => 0,
            Err(error) => {
                // Not one step more, before the pager ends with us: memory that is missing would read as zeros.
                let _ = kill_all_others();
                let _ = send(channel.as_fd(), &Report::Failed(WireError::from(&error)));
                1
            }
        },
        Err(error) => {
            // Without supervisor there is nobody to tell.
            let _ = send(channel.as_fd(), &Report::Failed(WireError::from(&error)));
            1
        }
    }
}

fn prepare(setting: &Setting<'_>, channel: &OwnedFd) -> Result<OwnedFd> {
    if let Some((uid, gid)) = setting.map {
        namespace::map_only(uid, gid).context(|| "set up the job's user namespace")?;
    }
    tie_to_supervisor(true)?;
    // Had the supervisor died before that call, its end of the channel would be closed by now.
    let hung_up = wait(&[(channel.as_fd(), PollFlags::IN)], Some(Instant::now())).context(|| "test the supervisor")?;
    if hung_up[0] {
        return Err(Error::new(ErrorKind::Cancelled, "the supervisor has ended"));
    }
    namespace::make_mounts_slave().context(|| "make the job's mounts its own")?;
    namespace::mount_proc()
        .context(|| "mount /proc for the job")
        .map_err(|e| {
            e.with_hint(
                "in a container, /proc must not be masked: run the container with an unmasked /proc, or as root",
            )
        })?;
    if setting.own_ipc {
        prepare_ipc(&setting.ipc_limits)?;
    }
    // What cannot be told would be taken for the job's if it went outside, and saved with it.
    let own = ProcDir::open(std::process::id() as i32).and_then(|own| own.mountinfo());
    if let Ok(mounts) = own
        && mounts.len() <= MOST_MOUNTS
    {
        let names = mounts.iter().map(outside::name).collect();
        send(channel.as_fd(), &Report::Mounted(names)).context(|| "talk to the supervisor")?;
    }
    // A name only helps whoever lists processes.
    let _ = rustix::thread::set_name(c"cpr-init");
    let signals = [CHILD];
    spawn::block_signals(&signals).context(|| "block signals")?;
    let signals = spawn::signal_fd(&signals).context(|| "watch for children")?;
    if setting.new_session {
        rustix::process::setsid()
            .map_err(std::io::Error::from)
            .context(|| "begin a session")?;
    }
    Ok(signals)
}

fn begin(setting: &Setting<'_>) -> Result<Started> {
    let image = match setting.start {
        Start::Command(command) => {
            choose_first_number();
            return start_command(command, setting).map(|root| Started { root, coming: None });
        }
        Start::Foreign(building) => {
            // They become the job's.
            crate::streams::reopen();
            if setting.keeper.is_some() {
                tie_to_supervisor(false)?;
            }
            let start = |command: &[OsString]| start_command(command, setting);
            let (root, pager) = building.build(setting.gate, setting.keeper.is_some(), start)?;
            match (&pager, &setting.keeper) {
                (Some(pager), Some(keeper)) => {
                    let descriptors = pager.descriptors()?;
                    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                    for together in descriptors.chunks(SENT_TOGETHER) {
                        send_descriptors(keeper.as_fd(), together).context(|| "have descriptors of the pager kept")?;
                    }
                }
                _ => tie_to_supervisor(true)?,
            }
            let coming = pager.map(|pager| Coming::Program(pager, None));
            return Ok(Started { root, coming });
        }
        Start::Image(image) => image,
    };
    let keeper = setting.keeper.as_ref().map(OwnedFd::try_clone).transpose();
    let keeper = keeper.context(|| "copy a descriptor")?;
    if keeper.is_some() {
        tie_to_supervisor(false)?;
    }
    let lazy = keeper.map(|keeper| LazyRequest {
        image: Arc::clone(image),
        keeper,
    });
    let terminal = JobTerminal::choose(setting.terminal, setting.job_control);
    let restarted = start_image(
        image,
        terminal,
        true,
        setting.about.clone(),
        lazy,
        setting.gate,
        setting.manner,
    )?;
    if restarted.pages.is_none() {
        tie_to_supervisor(true)?;
    }
    Ok(Started {
        root: restarted.root_pid,
        coming: restarted.pages.map(Coming::Thread),
    })
}

/// What becomes a restarted job's terminal.
pub(crate) enum JobTerminal<'a> {
    /// This one, which is nobody's yet.
    Given(BorrowedFd<'a>),
    /// That of our standard streams, if one is.
    OfStreams(JobControl),
}

impl<'a> JobTerminal<'a> {
    pub(crate) fn choose(given: Option<BorrowedFd<'a>>, job_control: JobControl) -> JobTerminal<'a> {
        given.map_or(JobTerminal::OfStreams(job_control), JobTerminal::Given)
    }
}

/// What a restart leaves out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Nothing outside is to change.
    pub(crate) in_sandbox: bool,
    /// The job's first process is in our control groups, wherever it was.
    pub(crate) own_cgroups: bool,
}

/// Restarts from an image; this process becomes the parent of the root process.
pub(crate) fn start_image(
    image: &Image,
    terminal: JobTerminal<'_>,
    own_pid_namespace: bool,
    rebirth: Rebirth,
    lazy: Option<LazyRequest>,
    gate: Option<&Gate>,
    manner: Manner,
) -> Result<Restarted> {
    let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().ok();
    let own = [
        duplicate(std::io::stdin().as_fd()),
        duplicate(std::io::stdout().as_fd()),
        duplicate(std::io::stderr().as_fd()),
    ];
    let (streams, terminal, job_control) = match terminal {
        JobTerminal::Given(terminal) => {
            let streams = [(); 3].map(|()| duplicate(terminal));
            (streams, duplicate(terminal), JobControl::None)
        }
        JobTerminal::OfStreams(job_control) => (own, shared_terminal::of_streams(), job_control),
    };
    let directory = Path::new(OsStr::from_bytes(&rebirth.directory));
    let hold = gate.map(|gate| || gate.hold());
    let meeting = gate.map(Gate::meeting).transpose()?.flatten();
    let devices = devices();
    let restarted = restart(RestartRequest {
        image,
        streams,
        terminal,
        job_control,
        own_pid_namespace,
        log: std::fs::canonicalize(directory.join(LOG)).ok(),
        rebirth,
        lazy,
        hold: hold.as_ref().map(|hold| hold as &dyn Fn() -> Result<()>),
        meeting,
        devices: Some(devices.as_ref()),
        in_sandbox: manner.in_sandbox,
        own_cgroups: manner.own_cgroups,
    })?;
    // Only now: the log of a detached job has been cut back to what it was.
    for note in &restarted.notes {
        eprintln!("cpr: note: {note}");
    }
    Ok(restarted)
}

/// Why the program could not be run, as one line of its pipe.
#[derive(Serialize, Deserialize)]
struct ExecFailure {
    errno: i32,
}

/// Has the process numbers of the job begin somewhere. Programs take their number for one that nobody else has, in names
/// of files and of shared memory for example, and jobs have these together.
fn choose_first_number() {
    // Where it cannot be set, they begin with 2.
    scatter_numbers(|random| LEAST_NUMBER + random % NUMBERS);
}

/// Forks and runs the program; comes back when it runs.
fn start_command(command: &[OsString], setting: &Setting<'_>) -> Result<i32> {
    let (read, write) = crate::wire::pipe()?;
    let mut receiver = Receiver::new(read).context(|| "watch the program start")?;
    let child = spawn::fork(Namespaces::NONE, || {
        let error = become_program(command, setting);
        let errno = error.raw_os_error().unwrap_or(0);
        let _ = send(write.as_fd(), &ExecFailure { errno });
        127
    })
    .context(|| "fork the job's root process")?;
    drop(write);
    let mut failure = None;
    while !receiver.ended() {
        receiver.wait(None).context(|| "watch the program start")?;
        let messages: Vec<ExecFailure> = receiver.receive().context(|| "watch the program start")?;
        failure = failure.or(messages.into_iter().next());
    }
    let Some(failure) = failure else {
        return Ok(child.pid);
    };
    let _ = rustix::process::waitpid(Pid::from_raw(child.pid), WaitOptions::empty());
    let error = std::io::Error::from_raw_os_error(failure.errno);
    let program = command
        .first()
        .map(|c| c.to_string_lossy().into_owned())
        .unwrap_or_default();
    Err(Error::new(ErrorKind::of_io(&error), format!("run {program}")).with_source(error))
}

/// In the root process: everything up to and including exec. Returns only on failure.
fn become_program(command: &[OsString], setting: &Setting<'_>) -> std::io::Error {
    let steps = || -> std::io::Result<()> {
        if let Some(terminal) = setting.terminal {
            rustix::process::setsid()?;
            terminal_relay::make_controlling(terminal)?;
            for stream in 0..=2 {
                spawn::set_standard_stream(terminal, stream)?;
            }
        }
        if setting.foreign {
            crate::streams::reopen();
        }
        // The Rust runtime ignores it; programs expect to die of it.
        spawn::default_signal(PIPE)?;
        spawn::set_signal_mask(&setting.mask)
    };
    match steps() {
        Ok(()) => {
            let directory = OsStr::from_bytes(&setting.about.directory);
            let base = std::path::Path::new(directory).join(OWN_CHECKPOINTS);
            let mut variables = vec![
                (JOB_VARIABLE, OsStr::new(&setting.about.job)),
                (DIRECTORY_VARIABLE, directory),
            ];
            let (sequence, lifetime) = (OsStr::new(&setting.sequence), OsStr::new(&setting.lifetime));
            variables.extend(offered(base.as_os_str(), sequence, lifetime));
            spawn::exec(command, &variables)
        }
        Err(error) => error,
    }
}

/// Variables for programs that write checkpoints themselves; what the user has said holds.
pub(crate) fn offered<'a>(
    base: &'a OsStr,
    sequence: &'a OsStr,
    lifetime: &'a OsStr,
) -> impl Iterator<Item = (&'static str, &'a OsStr)> {
    // A base that is a name of a grid is no directory.
    let named = std::env::var_os(BASE_VARIABLE).is_some_and(|base| base.as_bytes().starts_with(b"gridcpr:"));
    let all = [
        (if named { APP_BASE_VARIABLE } else { BASE_VARIABLE }, base),
        (SEQUENCE_VARIABLE, sequence),
        (LIFETIME_VARIABLE, lifetime),
    ];
    all.into_iter()
        .filter(|(name, value)| !value.is_empty() && std::env::var_os(name).is_none())
}

/// Reaps and obeys until no process of the job is left.
fn attend(setting: &Setting<'_>, started: &mut Started, signals: OwnedFd, channel: &OwnedFd) -> Result<()> {
    let mut root = started.root;
    let channel = channel.try_clone().context(|| "copy a descriptor")?;
    let mut channel = Receiver::new(channel).context(|| "talk to the supervisor")?;
    let tell = |channel: &Receiver, report: &Report| send(channel.as_fd(), report).context(|| "talk to the supervisor");
    tell(&channel, &Report::Started { root })?;
    if started.coming.is_none() {
        tell(&channel, &Report::Complete)?;
    }
    let mut root_alive = true;
    // It has ended, and may be started again: how it has ended.
    let mut saved: Option<i32> = None;
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if root_alive && pid.as_raw_nonzero().get() == root => {
                    root_alive = false;
                    if status
                        .exit_status()
                        .is_some_and(|code| setting.saved_code.map(i32::from) == Some(code))
                    {
                        saved = Some(status.as_raw());
                        tell(&channel, &Report::Saved)?;
                        continue;
                    }
                    tell(
                        &channel,
                        &Report::RootEnded {
                            status: status.as_raw(),
                        },
                    )?;
                }
                Ok(Some((pid, status))) => {
                    if let Some(Coming::Program(pager, ended)) = &mut started.coming
                        && pager.pid() == pid
                    {
                        *ended = Some(status);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                // Nothing is left, until the supervisor has said how it goes on.
                Err(_) if saved.is_some() => break,
                Err(_) if root_alive => return Err(crate::wire::internal("the root process was never seen to end")),
                Err(_) => return wait_for_workers(),
            }
        }
        let mut polled = vec![(signals.as_fd(), PollFlags::IN), (channel.as_fd(), PollFlags::IN)];
        polled.extend(started.coming.iter().map(|coming| (coming.as_fd(), PollFlags::IN)));
        let ready = wait(&polled, None).context(|| "wait for the job")?;
        if ready.get(2) == Some(&true)
            && let Some(coming) = started.coming.take()
        {
            coming.finish(setting.start)?;
            tie_to_supervisor(true)?;
            tell(&channel, &Report::Complete)?;
        }
        if ready[0] {
            while spawn::read_signal(signals.as_fd())
                .context(|| "read a signal")?
                .is_some()
            {}
        }
        if ready[1] {
            for order in channel.receive().context(|| "listen to the supervisor")? {
                match order {
                    Order::Signal(signal) if root_alive => signal_child(root, signal),
                    Order::Signal(signal) => signal_rest(signal),
                    Order::Again | Order::Over => {
                        let Some(status) = saved.take() else { continue };
                        match start_again(setting, order == Order::Again) {
                            Ok(Some(again)) => {
                                root = again;
                                root_alive = true;
                                tell(&channel, &Report::Started { root })?;
                            }
                            Ok(None) => tell(&channel, &Report::RootEnded { status })?,
                            Err(error) => {
                                tell(&channel, &Report::Failed(WireError::from(&error)))?;
                                tell(&channel, &Report::RootEnded { status })?;
                            }
                        }
                    }
                }
            }
            if channel.ended() {
                return Err(Error::new(ErrorKind::Cancelled, "the supervisor has ended"));
            }
        }
    }
}

/// Starts the program of the job again, where it is to be; gives its PID.
fn start_again(setting: &Setting<'_>, again: bool) -> Result<Option<i32>> {
    let command = match setting.start {
        Start::Command(command) => command.clone(),
        Start::Foreign(building) => building.command(),
        Start::Image(_) => return Ok(None),
    };
    match again {
        true => start_command(&command, setting).map(Some),
        false => Ok(None),
    }
}

/// Signals a child that was not waited for yet, so that the PID is certainly its own.
fn signal_child(pid: i32, signal: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // It may have ended just now.
        let _ = spawn::signal_pidfd(pidfd.as_fd(), signal);
    }
}

/// Signals what is left of the job when its root process has ended. Our workers, whose parent is outside, are not.
fn signal_rest(signal: i32) {
    for pid in crate::target::all_pids().unwrap_or_default() {
        let Ok(process) = crate::target::Target::open(pid) else {
            continue;
        };
        let parent = crate::target::status_line(pid, "PPid").ok().flatten();
        if pid != 1 && parent.is_some_and(|p| p != "0") {
            // It may have ended just now.
            let _ = process.signal(signal);
        }
    }
}

/// A worker that has just ended the job by a checkpoint lives in the namespace, as a child of none of it; when init
/// ends, the kernel kills it. Let it finish its work and its report first.
fn wait_for_workers() -> Result<()> {
    let deadline = Instant::now() + WORKER_GRACE;
    for pid in crate::target::all_pids()? {
        if pid == 1 {
            continue;
        }
        let Ok(worker) = crate::target::Target::open(pid) else {
            continue;
        };
        if crate::target::state(pid).is_ok_and(|s| s != 'Z') && !worker.wait(Some(deadline))? {
            break;
        }
    }
    Ok(())
}
