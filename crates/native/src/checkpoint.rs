//! Taking a checkpoint: look, stop, save, let go on, write.
//!
//! # Order
//! Everything that can fail without the job being stopped is done first. A job that goes on is stopped twice: for a
//! moment to begin tracking its writes, and, when nearly all its memory has been copied while it ran ([`crate::live`]),
//! for the rest of its state. A job that is to end is stopped once, and all is copied then.
//!
//! While the job is stopped, page data go into memory (up to [`crate::pipeline::BUFFERED`]) and are hashed and written
//! by a second thread; the job goes on when all is read, and the rest is written behind it. Only when the image is durable is the
//! job ended or signalled, where that was asked. A job that is handed over stays stopped until the other side has said
//! that it runs there; only then it is ended here.
//!
//! # Crash consistency
//! The image has no name until it is complete and synced. If this process dies the kernel lets the job go on.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpr_image::model::{
    ByteString, Bytes, CgroupNamespaceId, Checkpoint, IpcNamespaceId, Manifest, Mounted, Network, NetworkId, Object,
    Process, ProcessState, Thread, Uname,
};
use cpr_image::{Compression, Image, ImageWriter, PendingImage, WriteOptions};
use cpr_kernel::arch;
use cpr_kernel::clocks::Offsets;
use cpr_kernel::namespace::Place;
use cpr_kernel::proc::{MapKind, Mount, ProcDir};
use cpr_kernel::process::{FileIdentity, PidFd, clock_ns, xstate_features};
use cpr_kernel::ptrace::block_child_signals;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, AtFlags};
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::blockers::Home;
use crate::callbacks::{self, Asked, GoOn};
use crate::cgroups;
use crate::files::{self, Channels, PolicyState, SaveContext, Target};
use crate::freeze::{self, Frozen, Members, Purpose, Scope};
use crate::libraries::{Keep, Libraries};
use crate::live::{self, Basis, Copied, Earlier, Known, Tracked};
use crate::memory::{self, FlagTable, Later, MappedFiles, Shared};
use crate::networks::{self, Networks};
use crate::pid_namespaces;
use crate::pipeline::{Pipeline, nobody_waits};
use crate::policy::FileRule;
use crate::restart::available_memory;
use crate::sink::{PAGE_SIZE, PageSink};
use crate::snapshot::{self, Snapshot};
use crate::visits::Visits;
use crate::{Blocker, TcpPolicy, aio, blockers, host_names, ipc, mount_namespaces, state, user_namespaces};

/// What becomes of the job once its image is complete and durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on as soon as its state has been read.
    Continue,
    /// It is killed without having run on (LBNL-3.6.4.2).
    Kill,
    /// All its processes get this signal, and run on.
    Signal(i32),
}

/// What to checkpoint, and how.
#[derive(Debug, Clone)]
pub struct CheckpointRequest {
    /// Root process, in the caller's PID namespace.
    pub pid: i32,
    /// What becomes of the job.
    pub after: After,
    /// Copy memory while the job runs, also where it does not go on.
    pub live: bool,
    /// What a job in the background prints goes into this file; empty where there is none.
    pub log: ByteString,
    /// Name of the job, for the image; may be empty.
    pub job: String,
    /// Who asked.
    pub initiator_uid: u32,
    /// The job is everything in the caller's PID namespace but its init and processes from outside.
    pub own_pid_namespace: bool,
    /// Nobody but the job uses the caller's IPC namespace.
    pub own_ipc_namespace: bool,
    /// For a job with a mount namespace of its own: what is mounted where that was made, as in [`Surroundings`].
    pub mounts: Option<Vec<Mount>>,
    /// The job is everything in this POSIX session; `pid` is its leader, or any process of it.
    pub session: Option<i32>,
    /// A control group of version 2 that names all processes of the job, and none of whoever saves it.
    pub group: Option<PathBuf>,
    /// Our parent, which waits for us, where it may be a process of the job itself. It is left alone, and is in the image
    /// as a process that has just ended.
    pub requester: Option<Requester>,
    /// How long to wait for the job to stop.
    pub stop_timeout: Duration,
    /// Compress page data.
    pub compression: Option<Compression>,
    /// Which other images it may refer to.
    pub basis: Basis,
    /// Go on tracking the job's writes, for an image that refers to this one.
    pub keep_tracking: bool,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// Those that lead to jobs that are saved in the same stop; to be told before what [`ALL_STOPPED`] holds up goes on.
    pub channels: Option<Channels>,
    /// How the contents of files are treated; later ones win.
    pub files: Vec<FileRule>,
    /// What is saved of programs and libraries.
    pub keep: Keep,
    /// Compare the image with a copy of the job's memory made in the same stop.
    pub compare: bool,
    /// Others are saved in the same stop: the observer is told of the phase [`ALL_STOPPED`] when the job stands still, and
    /// of [`Event::Durable`] before it goes on. What it takes to answer the job waits; where it breaks, the job goes on.
    pub hold: bool,
}

/// The phase that begins when the job stands still, where [`CheckpointRequest::hold`] asks for it.
pub const ALL_STOPPED: &str = "all stopped";

/// What a look at a job has to know of what is around it.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Nobody else uses the job's IPC namespace, which is also ours.
    pub own_ipc: bool,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// See [`CheckpointRequest::channels`].
    pub channels: Option<&'a Channels>,
    /// For a job with a mount namespace of its own: what is mounted where a restart makes it a new one. Other mounts
    /// would be missing then.
    pub mounts: Option<&'a [Mount]>,
}

impl CheckpointRequest {
    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            own_ipc: self.own_ipc_namespace,
            tcp: self.tcp,
            channels: self.channels.as_ref(),
            mounts: self.mounts.as_deref(),
        }
    }
}

/// Who asks for a checkpoint from inside the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requester {
    /// PID, in our PID namespace.
    pub pid: i32,
    /// Exit code that its parent gets to see after a restart.
    pub exit_code: u8,
}

/// Where the image goes.
#[derive(Debug)]
pub enum Destination {
    /// A file that gets its name when it is complete and durable.
    File(PendingImage),
    /// A stream, such as a pipe.
    Stream(File),
    /// Somebody who is to take the job over.
    Handover(Handover),
}

/// Where a job goes that is to end here only when it runs elsewhere.
#[derive(Debug)]
pub struct Handover {
    /// The image goes here.
    pub stream: File,
    /// One byte is read from here when the image has gone: the [`Verdict`].
    pub word: OwnedFd,
}

/// Whether a job was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs elsewhere, and is to end here.
    Taken,
    /// It does not, and goes on here.
    Refused,
    /// Nobody knows. It is stopped (SIGSTOP), so that it never runs twice.
    Unknown,
}

impl Verdict {
    /// The byte that says it.
    pub fn byte(self) -> u8 {
        match self {
            Verdict::Taken => b'y',
            Verdict::Refused => b'n',
            Verdict::Unknown => b'u',
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Identifier of the image, 32 hexadecimal digits.
    pub image_id: String,
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Page data in it, bytes.
    pub data_bytes: u64,
    /// How long the job was stopped; for a job that was ended, until all its state was read.
    pub freeze_ns: u64,
    /// From the request to the end.
    pub total_ns: u64,
    /// Processes saved, zombies included.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// Identifier of the image before, where this one refers to it or to what that refers to: it is an increment.
    pub parent: Option<String>,
    /// Hash that stands for the image as a whole, in hexadecimal.
    pub root_hash: String,
    /// How the job's memory was copied.
    pub method: Method,
    /// Page data copied while the job was stopped, bytes.
    pub stopped_bytes: u64,
    /// Pages that were compared with a copy of the job's memory, where that was asked for.
    pub compared_pages: Option<u64>,
}

/// How a job's memory is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// While it ran, all but what it wrote last.
    Live,
    /// It wrote faster than could be copied: what was left, from a snapshot made while it was stopped.
    Snapshot,
    /// While it was stopped: because it is about to end, nothing better can be done here, or so little of it is written
    /// so fast that it takes no longer than a snapshot.
    Stop,
}

/// Told while a checkpoint is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far a phase has come, in its own units (bytes where `total` is not zero).
    Progress {
        /// Name of the phase.
        phase: String,
        /// Done so far.
        done: u64,
        /// In all; zero if not known.
        total: u64,
    },
    /// The image is complete and durable.
    Durable,
}

/// Is told of events; breaks when nobody waits for the checkpoint any more. It is then given up, unless the image has
/// its name already.
pub type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// Names everything that would make a checkpoint of `pid` and its descendants fail, without stopping anything
/// (a look at a running job: objects that come and go may be missed).
///
/// # Errors
/// [`ErrorKind::Gone`] when there is no such process.
pub fn check(pid: i32, session: Option<i32>, around: Surroundings<'_>) -> Result<Vec<Blocker>> {
    let members = match session {
        Some(sid) => Members::Session(sid),
        None if pid == 1 => Members::Namespace,
        None => Members::Tree(pid),
    };
    let scope = Scope {
        members,
        requester: None,
    };
    find_blockers(scope, pid, around)
}

/// A process with less memory than this, bytes, is copied while it stands still, unless later images are to refer to its
/// pages: to find out what it has written since a copy was made takes as long.
const SMALL: u64 = 512 << 10;

/// What copying memory of a stopped job is taken to reach where it was not measured, bytes a second.
const UNMEASURED_RATE: u64 = 1 << 30;

/// How long a program is given to read events of inotify, which cannot be saved.
const INOTIFY_PATIENCE: Duration = Duration::from_secs(1);

/// How often something has to be seen in a running job before it counts.
const LOOKS: usize = 5;

/// What blocks in several looks: a process that starts or ends another one is seen in odd states for moments.
fn find_blockers(scope: Scope, root: i32, around: Surroundings<'_>) -> Result<Vec<Blocker>> {
    let mut first = look(scope, root, around)?;
    for _ in 1..LOOKS {
        if first.found.is_empty() && first.elsewhere.is_empty() {
            break;
        }
        let again = look(scope, root, around)?;
        first.found.retain(|blocker| again.found.contains(blocker));
        first.elsewhere.retain(|blocker| again.elsewhere.contains(blocker));
        first.is_settled |= again.is_settled;
    }
    if first.is_settled {
        first.found.append(&mut first.elsewhere);
    }
    Ok(first.found)
}

/// What one look at a running job finds.
struct Look {
    found: Vec<Blocker>,
    /// Those that count where it `is_settled` only; else they are found, or not, when the job stands still.
    elsewhere: Vec<Blocker>,
    /// No process was born meanwhile.
    is_settled: bool,
}

fn look(scope: Scope, root: i32, around: Surroundings<'_>) -> Result<Look> {
    let Surroundings {
        own_ipc,
        tcp,
        channels,
        mounts,
    } = around;
    let last_pid = cpr_kernel::proc::last_pid().ok();
    let mut targets = Vec::new();
    let mut found = Vec::new();
    let home = Home::of(scope, root);
    let (mut networks, mut groups) = (Visits::new(Place::Network), Visits::new(Place::Cgroup));
    for pid in freeze::members(scope)? {
        let Some(target) = Target::open(pid)? else {
            found.extend(freeze::runs_without_leader(pid).map(|reason| Blocker {
                pid,
                object: "main thread".to_owned(),
                reason,
                hint: None,
            }));
            continue;
        };
        for (object, reason) in blockers::of_process(&target.proc, &home)
            .into_iter()
            .chain(blockers::of_threads(&target.proc))
            .chain(memory::blockers(&target.proc))
        {
            found.push(Blocker {
                pid,
                object,
                reason,
                hint: None,
            });
        }
        // One that has just gone is in none.
        let _ = networks
            .of(&target.proc, &home)
            .and_then(|_| groups.of(&target.proc, &home))
            .and_then(|_| networks::include_those_of_sockets(&target.proc, &home, &mut networks));
        targets.push(target);
    }
    found.extend(blockers::sharing(&targets));
    let mut ipc = Visits::new(Place::Ipc);
    found.extend(ipc::blockers(&targets, own_ipc, &mut ipc, &home)?);
    found.extend(namespace_blocker("network", save_networks(&networks, &targets)));
    let first = targets.iter().find(|target| target.pid == root).or(targets.first());
    if let Some(first) = first {
        found.extend(namespace_blocker(
            "cgroup",
            cgroups::refuse_other_roots(&groups, &first.proc),
        ));
    }
    let networks = Networks::new(networks);
    let files::Found { themselves, elsewhere } = files::check(
        &targets,
        files::Surroundings {
            root_pid: root,
            own_ipc,
            tcp,
            channels,
            requester: scope.requester()?,
            networks: &networks,
            ipc: &ipc,
        },
    );
    found.extend(themselves);
    if let Some(mounts) = mounts {
        found.extend(blockers::mounts(&home, root, mounts));
    }
    Ok(Look {
        found,
        elsewhere,
        is_settled: cpr_kernel::proc::last_pid().ok() == last_pid,
    })
}

fn save_networks(visits: &Visits, targets: &[Target]) -> Result<Vec<Network>> {
    let job = targets.iter().map(|target| target.pid);
    networks::save(visits, &job.chain([std::process::id() as i32]).collect())
}

/// What of the namespaces that a job has made cannot be made again: the first thing that there is.
fn namespace_blocker<T>(kind: &str, saved: Result<T>) -> Option<Blocker> {
    let error = saved.err()?;
    Some(Blocker {
        pid: 0,
        object: format!("{kind} namespace"),
        reason: error.chain(),
        hint: error.hint().map(str::to_owned),
    })
}

/// Takes a checkpoint of a process tree. The calling thread becomes the tracer of the job for that time. `earlier` is
/// what was kept of the checkpoint before; what is kept of this one comes with the report.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming everything that cannot be saved; [`ErrorKind::Denied`], [`ErrorKind::Gone`],
/// [`ErrorKind::TimedOut`], [`ErrorKind::NoSpace`], [`ErrorKind::Cancelled`]. The job then runs on as before.
pub fn checkpoint(
    request: &CheckpointRequest,
    destination: Destination,
    earlier: Option<Earlier>,
    observer: &mut Observer<'_>,
) -> Result<(CheckpointReport, Vec<Tracked>)> {
    let begun = Instant::now();
    let members = match request.session {
        Some(sid) => Members::Session(sid),
        None if request.own_pid_namespace => Members::Namespace,
        None => Members::Tree(request.pid),
    };
    let scope = Scope {
        members,
        requester: request.requester.map(|requester| requester.pid),
    };
    block_child_signals().context(|| "block SIGCHLD")?;
    // Every shared mapping and open file takes one of ours.
    cpr_kernel::process::raise_descriptor_limit().context(|| "raise the limit on descriptors")?;
    // First: a callback may do away with what else would be refused (LBNL-2.4.1).
    let mut asked = callbacks::ask(scope, request.stop_timeout, &mut || waited_for(observer, "callbacks"))?;
    let mut blocked = find_blockers(scope, request.pid, request.surroundings())?;
    // What cannot be looked at is mostly on its way out; what stays is found again when the job has stopped.
    // So is memory that vfork(2) shares.
    blocked.retain(|blocker| blocker.object != "descriptors" && blocker.object != blockers::MEMORY);
    refuse_blocked(blocked)?;
    let mut own = HashMap::new();
    for pid in freeze::members(scope)? {
        if let Ok(status) = cpr_kernel::proc::status_of(pid) {
            own.insert(pid, status.rss_own_kib * 1024);
        }
    }
    let expected = own.values().sum();
    let mut manifest = Manifest {
        checkpoint: about(request)?,
        ..Manifest::default()
    };
    let (pending, stream, word) = match destination {
        Destination::File(pending) => {
            let file = pending
                .file()
                .try_clone()
                .context(|| "copy the descriptor of the image")?;
            (Some(pending), file, None)
        }
        Destination::Stream(file) => (None, file, None),
        Destination::Handover(Handover { stream, word }) => (None, stream, Some(word)),
    };
    let mut known = Known::default();
    let mut copied = Vec::new();
    if let Some(earlier) = earlier {
        known = Known::new(&earlier, request.basis);
        copied = live::take_up(earlier.processes);
        live::register(&mut copied, &known);
        if copied.is_empty() {
            known = Known::default();
        }
    }
    let options = WriteOptions {
        compression: request.compression,
        incremental: !known.ancestors.is_empty(),
    };
    let writer = ImageWriter::with_options(stream, arch::NAME, options)?;
    let mut writer = Pipeline::start(writer, observer, expected, options.incremental)?;
    let mut libraries = Libraries::new(request.keep);
    if request.keep != Keep::default() {
        for pid in freeze::members(scope)? {
            if let Ok(proc) = ProcDir::open(pid) {
                libraries.save_early(&proc, &mut writer)?;
            }
        }
    }
    // A job that goes on is copied while it runs, all but what it writes in the last moments.
    let mut first_stop_ns = 0;
    let mut method = Method::Stop;
    let mut rate = UNMEASURED_RATE;
    let mut written = 0;
    if request.after == After::Continue || request.live || !copied.is_empty() {
        writer.enter("copy")?;
        let tracked = |pid: i32| copied.iter().any(|copied: &Copied| copied.pid() == pid);
        let is_large = |pid: i32| request.keep_tracking || own.get(&pid).is_none_or(|bytes| *bytes >= SMALL);
        if freeze::members(scope)?
            .into_iter()
            .any(|pid| !tracked(pid) && is_large(pid) && !is_zombie(pid))
        {
            let mut frozen = freeze::freeze(scope, Purpose::Call, request.stop_timeout, request.group.as_deref())?;
            let deadline = frozen.deadline();
            live::track(&mut frozen, &mut copied, is_large, deadline);
            frozen.resume()?;
            first_stop_ns = frozen.since.elapsed().as_nanos() as u64;
            live::register(&mut copied, &known);
        }
        if !copied.is_empty() {
            let rounds = live::copy_while_running(&mut copied, &mut writer)?;
            if rounds.settled {
                method = Method::Live;
            }
            rate = rounds.rate;
            written = rounds.left;
        }
        writer.drain()?;
    }
    let is_tracked = |pid: &i32| copied.iter().any(|copied| copied.pid() == *pid);
    let untracked: u64 = own
        .iter()
        .filter(|(pid, _)| !is_tracked(pid))
        .map(|(_, bytes)| bytes)
        .sum();
    let left = untracked + written;
    // The job must not die of what a checkpoint takes: neither of the machine's limit nor of its own.
    let room = || {
        let own = ProcDir::open(request.pid)
            .ok()
            .and_then(|proc| cgroups::memory_left(&proc))?;
        Some(available_memory()?.min(own))
    };
    let wanted = request.after == After::Continue && snapshot::pays(left, rate, expected, own.len(), room());
    for copied in &mut copied {
        copied.keep = request.keep_tracking;
    }
    // Read last, because tracking joins mappings that were apart.
    let mut flags = FlagTable::default();
    for pid in freeze::members(scope)? {
        if let Ok(proc) = ProcDir::open(pid) {
            flags.add(&proc);
        }
    }
    let before_stop = writer.placed();
    writer.enter("stop")?;
    if request.after == After::Continue && !wanted {
        writer.make_ready(left);
    }
    writer.hurry(request.after == After::Continue);
    let mut frozen = stop(scope, request, &mut asked, &mut || writer.enter("stop"))?;
    if request.hold {
        writer.enter(ALL_STOPPED)?;
    }
    // Zombies alone are nothing that could go on.
    if frozen.processes.iter().all(|process| process.threads.is_empty()) {
        return Err(Error::new(ErrorKind::Gone, "the job has ended"));
    }
    manifest.checkpoint.time_ns = clock_ns(ClockId::Realtime);
    let stopped = frozen.processes.iter().find(|process| !process.threads.is_empty());
    let ahead = stopped.map(|process| Offsets::ahead_of_us(process.pid));
    let ahead = ahead.transpose().context(|| "read the offsets of the job's clocks")?;
    let Offsets {
        monotonic_ns,
        boottime_ns,
    } = ahead.unwrap_or_default();
    manifest.checkpoint.monotonic_ns = clock_ns(ClockId::Monotonic).saturating_add_signed(monotonic_ns);
    manifest.checkpoint.boottime_ns = clock_ns(ClockId::Boottime).saturating_add_signed(boottime_ns);
    let mut looked = Looked {
        flags,
        libraries,
        copied,
        snapshots: match (request.compare, wanted) {
            // What is read from a copy is no check of it.
            (true, _) => Snapshots::ToCompare,
            (false, true) => Snapshots::Wanted,
            (false, false) => Snapshots::None,
        },
        taken: Vec::new(),
    };
    let requester = scope.requester()?;
    let sockets = collect(&mut frozen, request, requester, &mut looked, &mut manifest, &mut writer)?;
    if let Some(requester) = request.requester.filter(|r| Some(r.pid) == requester) {
        ended(requester, &mut manifest)?;
    }
    let parent = known.ancestors.first().map(|ancestor| hexadecimal(&ancestor.id.0));
    manifest.ancestors = known.ancestors;
    let stopped_bytes = writer.placed() - before_stop;
    let threads = manifest.processes.iter().map(|p| p.threads.len()).sum();
    if request.after == After::Continue {
        asked.tell_continue();
        frozen.resume()?;
    }
    writer.hurry(false);
    // The longest time without a step of the job.
    let mut freeze_ns = first_stop_ns.max(frozen.since.elapsed().as_nanos() as u64);
    manifest.checkpoint.freeze_ns = freeze_ns;
    for taken in &mut looked.taken {
        let later = std::mem::take(&mut taken.later);
        if later.is_empty() {
            continue;
        }
        method = Method::Snapshot;
        writer.enter("copy")?;
        let space = manifest.address_spaces.get_mut(taken.space.index());
        let space = space.ok_or_else(|| Error::new(ErrorKind::Internal, "a snapshot is of no address space"))?;
        memory::save_later(later, &taken.snapshot.memory, space, &mut writer)?;
    }
    if !request.compare {
        // They hold memory that the job has changed since.
        looked.taken.clear();
    }
    writer.enter("write")?;
    let owner = owner_of_image(&manifest);
    let processes = manifest.processes.len();
    let (mut stream, summary) = writer.finish(&manifest)?;
    let compared_pages = match request.compare {
        true => Some(compare(&looked.taken, &manifest, &stream)?),
        false => None,
    };
    match pending {
        Some(pending) => pending.publish(Some(owner))?,
        None => stream.flush().context(|| "write the image")?,
    }
    if let Some(word) = word {
        // Its end tells the other side that it has all.
        drop(stream);
        match await_verdict(&word, observer)? {
            Verdict::Taken => freeze_ns = freeze_ns.max(frozen.since.elapsed().as_nanos() as u64),
            Verdict::Refused => return Err(Error::new(ErrorKind::Cancelled, "the job was not taken over")),
            Verdict::Unknown => {
                frozen.resume_stopped()?;
                let text = "nobody said whether the job was taken over; it is stopped here";
                return Err(Error::new(ErrorKind::Cancelled, text));
            }
        }
    }
    // From here on the image is there, and what was asked is done to the end.
    if observer(Event::Durable).is_break() && request.hold {
        return Err(Error::new(
            ErrorKind::Cancelled,
            "what was to be saved with the job was not",
        ));
    }
    match request.after {
        After::Continue => {}
        After::Kill => {
            sockets.endings.iter().for_each(files::tcp::Ending::prepare);
            frozen.kill()?;
            asked.forget();
        }
        After::Signal(signal) => {
            asked.tell_continue();
            for process in &frozen.processes {
                if process.space.is_some() {
                    PidFd::open(process.pid)
                        .and_then(|fd| fd.signal(signal))
                        .context(|| format!("send signal {signal} to process {}", process.pid))?;
                }
            }
            frozen.resume()?;
        }
    }
    let report = CheckpointReport {
        image_id: summary.id.to_string(),
        image_bytes: summary.length,
        data_bytes: summary.data_bytes,
        freeze_ns,
        total_ns: begun.elapsed().as_nanos() as u64,
        processes,
        threads,
        parent,
        root_hash: hexadecimal(&summary.root_hash),
        method,
        stopped_bytes,
        compared_pages,
    };
    let kept = if request.keep_tracking && request.after == After::Continue {
        looked.copied.into_iter().map(Copied::into_tracked).collect()
    } else {
        Vec::new()
    };
    Ok((report, kept))
}

/// Compares the image with the copies that were made of the job's memory; gives the number of pages.
fn compare(taken: &[Taken], manifest: &Manifest, stream: &File) -> Result<u64> {
    let file = stream.try_clone().context(|| "copy the descriptor of the image")?;
    let mut image = Image::from_file(file, "just made").context(|| "read the image back, to compare it")?;
    image.open_ancestors()?;
    let mut pages = 0;
    for taken in taken {
        if let Some(space) = manifest.address_spaces.get(taken.space.index()) {
            pages += taken.snapshot.compare(space, &image)?;
        }
    }
    Ok(pages)
}

/// Waits for the word of the other side. Where there is none because its speaker has ended, nobody knows.
fn await_verdict(word: &OwnedFd, observer: &mut Observer<'_>) -> Result<Verdict> {
    /// How often it is seen that somebody still waits.
    const LOOK: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let what = || "wait until the job was taken over";
    let _ = waited_for(observer, "hand over");
    loop {
        let mut polled = [PollFd::new(word, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&LOOK)) {
            Ok(0) => {
                if waited_for(observer, "hand over").is_err() {
                    return Ok(Verdict::Unknown);
                }
            }
            Ok(_) => {
                let mut byte = [0];
                let got = rustix::io::retry_on_intr(|| rustix::io::read(word, &mut byte));
                return Ok(match got.map_err(std::io::Error::from).context(what)? {
                    1 if byte[0] == Verdict::Taken.byte() => Verdict::Taken,
                    1 if byte[0] == Verdict::Refused.byte() => Verdict::Refused,
                    _ => Verdict::Unknown,
                });
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(what),
        }
    }
}

fn is_zombie(pid: i32) -> bool {
    cpr_kernel::proc::stat_of(pid).is_ok_and(|stat| stat.state == b'Z')
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells the observer of a phase before anything is written.
fn waited_for(observer: &mut Observer<'_>, phase: &str) -> Result<()> {
    let event = Event::Progress {
        phase: phase.to_owned(),
        done: 0,
        total: 0,
    };
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(nobody_waits()),
    }
}

/// Stops the job while nobody is in a critical section and all callbacks have run.
fn stop(scope: Scope, request: &CheckpointRequest, asked: &mut Asked, go_on: &mut GoOn<'_>) -> Result<Frozen> {
    let deadline = Instant::now() + request.stop_timeout;
    let read_by = deadline.min(Instant::now() + INOTIFY_PATIENCE);
    let queues = files::inotify::queues(freeze::members(scope)?);
    loop {
        asked.close(scope, go_on)?;
        let mut frozen = freeze::freeze(scope, Purpose::Save, request.stop_timeout, request.group.as_deref())?;
        if asked.holds(&frozen) {
            if Instant::now() > read_by || files::inotify::all_are_read(&queues) {
                return Ok(frozen);
            }
            frozen.resume()?;
            files::inotify::wait_until_read(&queues, read_by);
            continue;
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "stop the job: it starts processes with callbacks faster than they can be run",
            )
            .with_hint("raise --timeout"));
        }
    }
}

/// One error that names everything that blocks.
fn refuse_blocked(found: Vec<Blocker>) -> Result<()> {
    let Some(first) = found.first() else {
        return Ok(());
    };
    let hint = found.iter().find_map(|b| b.hint.clone());
    let rest: Vec<String> = found.iter().map(ToString::to_string).collect();
    let text = if found.len() == 1 {
        first.to_string()
    } else {
        format!("{} objects cannot be saved: {}", found.len(), rest.join("; "))
    };
    let error = Error::new(ErrorKind::Unsupported, text);
    Err(match hint {
        Some(hint) => error.with_hint(hint),
        None => error.with_hint("see `cpr check` for everything that cannot be saved"),
    })
}

fn about(request: &CheckpointRequest) -> Result<Checkpoint> {
    let uname = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    let cpuinfo = cpr_kernel::proc::cpu_flags().unwrap_or_default();
    Ok(Checkpoint {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: "native".to_owned(),
        job: request.job.clone(),
        initiator_uid: request.initiator_uid,
        uname: Uname {
            sysname: text(uname.sysname()),
            nodename: text(uname.nodename()),
            release: text(uname.release()),
            version: text(uname.version()),
            machine: text(uname.machine()),
        },
        architecture: arch::NAME.to_owned(),
        cpu_flags: cpuinfo,
        page_size: PAGE_SIZE as u32,
        own_pid_namespace: request.own_pid_namespace,
        own_ipc_namespace: request.own_ipc_namespace,
        session: request.session.unwrap_or(0),
        log: request.log.clone(),
        ..Checkpoint::default()
    })
}

/// What was found out before the stop.
struct Looked {
    flags: FlagTable,
    libraries: Libraries,
    copied: Vec<Copied>,
    snapshots: Snapshots,
    /// Those that were taken.
    taken: Vec<Taken>,
}

/// What copies of processes are made for in the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Snapshots {
    /// None are made.
    None,
    /// To read the memory from. Where one cannot be made, it is read from the process as ever.
    Wanted,
    /// To compare the image with.
    ToCompare,
}

/// A copy of a process's memory, and what is to be read from it.
struct Taken {
    snapshot: Snapshot,
    space: cpr_image::model::AddressSpaceId,
    later: Vec<Later>,
}

/// Reads the whole state of the stopped job.
fn collect(
    frozen: &mut Frozen,
    request: &CheckpointRequest,
    requester: Option<i32>,
    looked: &mut Looked,
    manifest: &mut Manifest,
    sink: &mut dyn PageSink,
) -> Result<HeldSockets> {
    let deadline = frozen.deadline();
    let mut layouts = Vec::new();
    let home = Home::of(frozen.scope, request.pid);
    let mut host_names = host_names::Saved::default();
    let (mut places, mut ipc_places) = (Visits::new(Place::Network), Visits::new(Place::Ipc));
    let mut group_places = Visits::new(Place::Cgroup);
    let mut pid_namespaces = pid_namespaces::Saved::default();
    let mut users = user_namespaces::Saved::default();
    for process in &mut frozen.processes {
        let (mut saved, layout) = state::save(process, &home, deadline)?;
        saved.host_names = host_names.of(process, &home, &mut users, deadline)?;
        let number = |index: usize| index as u32;
        saved.network = places.of_process(process, &home)?.map(number).map(NetworkId);
        saved.ipc_namespace = ipc_places.of_process(process, &home)?.map(number).map(IpcNamespaceId);
        let group = group_places.of_process(process, &home)?;
        saved.cgroup_namespace = group.map(number).map(CgroupNamespaceId);
        saved.pid_namespace = pid_namespaces.of(process, &home, &mut users)?;
        if !process.threads.is_empty() {
            saved.user_namespace = users.of(&process.proc, &home)?;
        }
        if !process.threads.is_empty() {
            networks::include_those_of_sockets(&process.proc, &home, &mut places)?;
        }
        aio::settle(process, deadline)?;
        manifest.processes.push(saved);
        layouts.push(layout);
    }
    let mut mounts = mount_namespaces::Saved::default();
    for (process, saved) in frozen.processes.iter().zip(&mut manifest.processes) {
        if !process.threads.is_empty() {
            saved.mount_namespace = mounts.of(&process.proc, &home, &pid_namespaces, &mut users, sink)?;
        }
        saved.pid_namespace_of_children =
            pid_namespaces.of_children(process, saved.pid_namespace, saved.user_namespace)?;
    }
    let (mount_namespaces, views) = mounts.finish();
    manifest.mount_namespaces = mount_namespaces;
    manifest.pid_namespaces = pid_namespaces.namespaces();
    let mut owners = |places: &Visits| {
        let files = (0..places.len()).filter_map(|index| places.namespace(Some(index)));
        files.map(|file| users.owner(file, &home)).collect::<Result<Vec<_>>>()
    };
    let (network_owners, ipc_owners) = (owners(&places)?, owners(&ipc_places)?);
    manifest.cgroup_namespace_owners = owners(&group_places)?;
    if manifest.cgroup_namespace_owners.iter().all(Option::is_none) {
        manifest.cgroup_namespace_owners.clear();
    }
    manifest.user_namespaces = users.namespaces;
    manifest.host_names = host_names.namespaces;
    let root_pid = root(frozen, request);
    manifest.checkpoint.root_pid = root_pid;
    pid_namespaces::refuse_unmakeable(manifest)?;
    user_namespaces::refuse_unmakeable(manifest)?;
    let live: Vec<usize> = (0..frozen.processes.len())
        .filter(|&i| frozen.processes[i].space.is_some())
        .collect();
    let mut targets = Vec::new();
    for &index in &live {
        let pid = frozen.processes[index].pid;
        let target =
            Target::open(pid)?.ok_or_else(|| Error::new(ErrorKind::Gone, format!("process {pid} has ended")))?;
        targets.push(target);
    }
    blockers::refuse_sharing(&targets)?;
    if let Some(first) = targets.iter().find(|target| target.pid == root_pid) {
        let all: Vec<&ProcDir> = targets.iter().map(|target| &target.proc).collect();
        manifest.cgroups = cgroups::save(&first.proc, &all)?;
        cgroups::refuse_other_roots(&group_places, &first.proc)?;
        manifest.cgroup_namespaces = group_places.len() as u32;
    }
    let job = manifest.processes.iter().map(|process| process.pid);
    manifest.networks = networks::save(&places, &job.chain([std::process::id() as i32]).collect())?;
    for (network, owner) in manifest.networks.iter_mut().zip(network_owners) {
        network.owner = owner;
    }
    let places = Networks::new(places);
    let mut context = SaveContext::new(&targets, root_pid, request.tcp, request.after == After::Kill, &places);
    context.queue_state = files::mqueue::SaveState::of(&ipc_places, request.own_ipc_namespace, deadline)?;
    for ((id, index), device) in views.queues() {
        let point = manifest.mount_namespaces[id.index()].tree.get_mut(*index as usize);
        if let Some(point) = point {
            let ipc_namespace = context.queue_state.namespace_of(*device).ok_or_else(|| {
                let text = format!(
                    "what is mounted at {} of a mount namespace is of an IPC namespace outside the job",
                    point.at
                );
                Error::new(ErrorKind::Unsupported, text)
            })?;
            point.mounted = Mounted::Queues { ipc_namespace };
        }
    }
    context.zombies = frozen
        .processes
        .iter()
        .filter(|p| p.space.is_none())
        .map(|p| p.pid)
        .collect();
    // A user's own files are opened with the user's rights, also where root asked.
    let owner = owner_of(manifest).filter(|(uid, _)| *uid != rustix::process::geteuid().as_raw());
    context.requester = requester;
    for process in &manifest.processes {
        if let Some(view) = views.of_process(process.mount_namespace) {
            context.apart.insert(process.pid, view);
        }
    }
    context.views = views;
    context.channels.clone_from(&request.channels);
    context.policies = PolicyState::new(&request.files, owner);
    let descriptors = files::save(&mut context)?;
    for &index in &live {
        let view = context.views.of_process(manifest.processes[index].mount_namespace);
        let (proc, saved) = (&frozen.processes[index].proc, &mut manifest.processes[index]);
        let mut save = |name| files::save_deleted_directory(proc, name, view, &mut context.saved);
        (saved.cwd_saved, saved.root_saved) = (save("cwd")?, save("root")?);
        if saved.root_saved.is_some() {
            let root = &saved.root.0;
            saved.root = ByteString(root.strip_suffix(b" (deleted)").unwrap_or(root).to_vec());
        }
    }
    for (&index, (descriptors, locks)) in live.iter().zip(descriptors) {
        manifest.processes[index].descriptors = descriptors;
        manifest.processes[index].posix_locks = locks;
        let pid = manifest.processes[index].pid;
        manifest.processes[index].shares_descriptors = context.table_of_parent.contains(&pid);
        let tty = frozen.processes[index].stat.tty_nr;
        if tty != 0 {
            manifest.processes[index].controlling_terminal =
                context.terminal_state.find(tty, context.apart.get(&pid).copied());
        }
    }
    (manifest.ipc, manifest.ipc_namespaces) =
        ipc::save(frozen, request.own_ipc_namespace, &ipc_places, &home, deadline, sink)?;
    for (namespace, owner) in manifest.ipc_namespaces.iter_mut().zip(ipc_owners) {
        namespace.owner = owner;
    }
    manifest.ipc.posix_queues = std::mem::take(&mut context.queue_state.queues);
    let mut mapped = MappedFiles::new(ipc::segment_ids(&manifest.ipc));
    for &index in &live {
        let process = &frozen.processes[index];
        if let Some(space) = &process.space {
            looked.libraries.note(&process.proc, &space.maps);
        }
    }
    let mut shared = Shared {
        flags: &mut looked.flags,
        files: &mut mapped,
        views: &context.views,
        view: None,
        saved: &mut context.saved,
        packet_sockets: (&context.packet_state, &context.packet_sockets),
        policies: &mut context.policies,
        libraries: &mut looked.libraries,
        keep_executables: request.keep.executables,
    };
    // A copy would become a child of who adopts orphans, and he would be told of its end.
    let adopted = manifest.processes.iter().any(|process| process.child_subreaper);
    // Nor could we tell what number a copy has that is made in another PID namespace than ours.
    let nested = |manifest: &Manifest, index: usize| {
        let process = &manifest.processes[index];
        process.pid_namespace.is_some() || process.pid_namespace_of_children.is_some()
    };
    let huge = |process: &freeze::Process| process.space.as_ref().is_some_and(memory::has_huge_pages);
    for &index in &live {
        let snapshot = match looked.snapshots {
            Snapshots::ToCompare if adopted => {
                let text = "no copy is made of a job that adopts orphans (PR_SET_CHILD_SUBREAPER), so that nothing can be \
                            compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::ToCompare if huge(&frozen.processes[index]) => {
                let text = "no copy is made of a process with explicit huge pages, so that nothing can be compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::ToCompare if nested(manifest, index) => {
                let text =
                    "no copy is made of a process in a PID namespace of its own, so that nothing can be compared";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint("leave --compare out"));
            }
            Snapshots::Wanted if adopted || huge(&frozen.processes[index]) || nested(manifest, index) => None,
            Snapshots::None => None,
            Snapshots::Wanted => Snapshot::take(&mut frozen.processes[index], deadline).ok(),
            Snapshots::ToCompare => Some(Snapshot::take(&mut frozen.processes[index], deadline)?),
        };
        let process = &frozen.processes[index];
        let layout = std::mem::take(&mut layouts[index]);
        let id = cpr_image::model::AddressSpaceId(manifest.address_spaces.len() as u32);
        // What is read into memory behind the back of the page tables is not tracked.
        let tracked = !process.space.as_ref().is_some_and(aio::uses);
        let copy = looked.copied.iter().find(|c| tracked && c.pid() == process.pid);
        shared.files.namespace = manifest.processes[index].ipc_namespace;
        shared.view = shared.views.of_process(manifest.processes[index].mount_namespace);
        let mut later = Vec::new();
        let put_off = (snapshot.is_some() && looked.snapshots == Snapshots::Wanted).then_some(&mut later);
        let saved = memory::save(process, layout, &mut shared, copy, put_off, sink);
        if let Some(snapshot) = &snapshot {
            snapshot.reap(&mut frozen.processes[index], deadline)?;
        }
        let space = saved?;
        if let Some(snapshot) = snapshot {
            looked.taken.push(Taken {
                snapshot,
                space: id,
                later,
            });
        }
        manifest.address_spaces.push(space);
        manifest.processes[index].address_space = Some(id);
    }
    manifest.mapped_files = mapped.files;
    let processes = &frozen.processes;
    let mut read = |pid: i32, address: u64, buffer: &mut [u8]| -> Result<()> {
        let space = processes.iter().find(|p| p.pid == pid).and_then(|p| p.space.as_ref());
        let space = space.ok_or_else(|| Error::new(ErrorKind::Internal, format!("no memory of process {pid}")))?;
        match space.memory.read(address, buffer) {
            // Beyond the end of the object: never written.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                for (index, page) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
                    let at = address + (index * PAGE_SIZE) as u64;
                    if space.memory.read(at, page).is_err() {
                        page.fill(0);
                    }
                }
                Ok(())
            }
            other => other.context(|| format!("read the memory of process {pid} at {address:#x}")),
        }
    };
    manifest.file_policies = std::mem::take(&mut context.policies).finish(&mut context.saved)?;
    manifest.saved_files = context.saved.write_contents(sink, &mut read)?;
    manifest.files = context.files;
    manifest.pipes = context.pipes;
    manifest.sockets = context.sockets;
    manifest.inet_sockets = context.inet_sockets;
    manifest.packet_sockets = context.packet_sockets;
    manifest.terminals = context.terminals;
    let sockets = HeldSockets {
        endings: context.endings,
        _deaf: context.deaf,
    };
    machine(frozen, manifest)?;
    Ok(sockets)
}

/// Sockets of a job that is about to end.
struct HeldSockets {
    endings: Vec<files::tcp::Ending>,
    /// After `endings`: closed connections need nobody's attention.
    _deaf: Vec<files::tcp::Deaf>,
}

fn root(frozen: &Frozen, request: &CheckpointRequest) -> i32 {
    if frozen.processes.iter().any(|p| p.pid == request.pid) {
        request.pid
    } else {
        frozen.processes.first().map_or(0, |p| p.pid)
    }
}

/// Adds who asked as a process that has ended and waits for its parent to notice.
fn ended(requester: Requester, manifest: &mut Manifest) -> Result<()> {
    let pid = requester.pid;
    let what = || format!("look at process {pid}, which asks for the checkpoint");
    let proc = ProcDir::open(pid).context(what)?;
    let stat = proc.stat().context(what)?;
    let uid = proc.status().context(what)?.uids[0];
    let exit_code = i32::from(requester.exit_code);
    if let Some(parent) = manifest.processes.iter_mut().find(|p| p.pid == stat.ppid) {
        let signal_of = |info: &Bytes| info.0.first_chunk().map(|raw| i32::from_ne_bytes(*raw));
        if !parent
            .pending_signals
            .iter()
            .any(|info| signal_of(info) == Some(libc::SIGCHLD))
        {
            // siginfo_t of a child that has exited: signal, error, code, and from byte 16 on PID, user and exit code.
            let mut info = vec![0u8; 128];
            for (at, value) in [
                (0, libc::SIGCHLD),
                (8, libc::CLD_EXITED),
                (16, pid),
                (20, uid as i32),
                (24, exit_code),
            ] {
                info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            parent.pending_signals.push(Bytes(info));
        }
    }
    manifest.processes.push(Process {
        pid,
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        state: ProcessState::Zombie(exit_code << 8),
        ..Process::default()
    });
    Ok(())
}

/// The first thread of the root process, or of the first process that lives.
fn leading_thread(manifest: &Manifest) -> Option<&Thread> {
    let root = manifest.checkpoint.root_pid;
    let mut living = manifest.processes.iter().filter(|p| !p.threads.is_empty());
    let saved = living.clone().find(|p| p.pid == root).or_else(|| living.next());
    saved.and_then(|process| process.threads.first())
}

/// The user and group the job belongs to.
fn owner_of(manifest: &Manifest) -> Option<(u32, u32)> {
    let credentials = &leading_thread(manifest)?.credentials;
    Some((credentials.uids[0], credentials.gids[0]))
}

/// The user and group the image's file is to belong to: those of the job. It stays with root, who makes it, where they
/// could do nothing with it and root would not believe it once it was theirs: processes are of several users, or have
/// files open that its user could not open again, as a daemon has that gave root's rights up.
fn owner_of_image(manifest: &Manifest) -> (u32, u32) {
    let owner = (manifest.checkpoint.owner_uid, manifest.checkpoint.owner_gid);
    let threads = manifest.processes.iter().flat_map(|process| &process.threads);
    let mut users = threads.flat_map(|thread| thread.credentials.uids);
    // That of a session is its leader's in any case (LBNL-3.6.2.7).
    if manifest.checkpoint.session != 0 || !rustix::process::geteuid().is_root() {
        return owner;
    }
    let roots = users.any(|user| user != owner.0) || !can_reopen(manifest, owner);
    if roots { (0, 0) } else { owner }
}

/// Whether this user could open the job's files again.
fn can_reopen(manifest: &Manifest, (uid, gid): (u32, u32)) -> bool {
    let _identity = FileIdentity::assume(uid, gid);
    manifest.files.iter().all(|file| {
        let path = match &file.object {
            Object::Regular(regular) if regular.path != manifest.checkpoint.log => &regular.path,
            Object::Directory { path } => path,
            _ => return true,
        };
        let wanted = match file.flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::READ_OK,
            libc::O_WRONLY => Access::WRITE_OK,
            _ => Access::READ_OK | Access::WRITE_OK,
        };
        let asked = rustix::fs::accessat(rustix::fs::CWD, path.as_path(), wanted, AtFlags::EACCESS);
        // Whatever else is wrong is told by the restart, whose ever it is.
        file.flags & libc::O_PATH != 0 || asked != Err(rustix::io::Errno::ACCESS)
    })
}

/// What the restart machine must have in common with this one, and to whom the image belongs.
fn machine(frozen: &Frozen, manifest: &mut Manifest) -> Result<()> {
    let owner = owner_of(manifest);
    let features = leading_thread(manifest).map(|thread| xstate_features(&thread.cpu.extended.0));
    let checkpoint = &mut manifest.checkpoint;
    (checkpoint.owner_uid, checkpoint.owner_gid) = owner.unwrap_or_default();
    checkpoint.xstate_features = features.unwrap_or_default();
    let Some(space) = frozen.processes.iter().find_map(|p| p.space.as_ref()) else {
        return Ok(());
    };
    for map in &space.maps {
        match map.kind() {
            MapKind::Vdso => {
                let mut code = vec![0u8; (map.end - map.start) as usize];
                space.memory.read(map.start, &mut code).context(|| "read the vdso")?;
                checkpoint.vdso_length += map.end - map.start;
                checkpoint.vdso_hash = Bytes(cpr_image::hash(&code).to_vec());
            }
            MapKind::Vvar | MapKind::VvarVclock => checkpoint.vdso_length += map.end - map.start,
            _ => {}
        }
    }
    Ok(())
}
