//! Taking a checkpoint: look, stop, save, let go on, write.
//!
//! # Order
//! Everything that can fail without the job being stopped is done first. A job that goes on is stopped twice: for a
//! moment to begin tracking its writes, and, when nearly all its memory has been copied while it ran ([`crate::live`]),
//! for the rest of its state. A job that is to end is stopped once, and all is copied then.
//!
//! While the job is stopped, page data go into memory (up to [`crate::pipeline::BUFFERED`]) and are hashed and written
//! by a second thread; the job goes on when all is read, and the rest is written behind it. Only when the image is
//! durable is the job ended or signalled, where that was asked. A job that is handed over stays stopped until the other
//! side has said that it runs there; only then it is ended here.
//!
//! # Crash consistency
//! The image has no name until it is complete and synced. If this process dies the kernel lets the job go on.

mod collect;
mod holes;
mod locks;
mod look;
mod owner;
mod request;
mod running;

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cpr_image::model::{Checkpoint, Manifest, Uname};
use cpr_image::{Image, ImageWriter, PendingImage, WriteOptions};
use cpr_kernel::arch;
use cpr_kernel::clocks::Offsets;
use cpr_kernel::process::{PidFd, clock_ns};
use cpr_kernel::ptrace::block_child_signals;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::ClockId;

use crate::blockers::Home;
use crate::callbacks::{self, Asked, GoOn};
use crate::freeze::{self, Frozen, Members, Purpose, Scope};
use crate::live::{Copied, Earlier, Tracked};
use crate::pipeline::{Pipeline, nobody_waits};
use crate::sink::PAGE_SIZE;
use crate::{files, memory, state, time_namespaces};

use collect::{HeldSockets, Looked, Snapshots, Taken, collect, ended};
use look::{find_blockers, refuse_blocked};
use owner::owner_of_image;
use running::{Resident, copy_running, early_libraries, ended_meanwhile, has_living, take_up};

pub use look::check;
pub use request::{
    After, CheckpointReport, CheckpointRequest, Destination, Event, Handover, Method, Requester, Surroundings, Verdict,
};

/// The phase that begins when the job stands still, where [`CheckpointRequest::hold`] asks for it.
pub const ALL_STOPPED: &str = "all stopped";

/// Is told of events; breaks when nobody waits for the checkpoint any more. It is then given up, unless the image has
/// its name already.
pub type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// How long a program is given to read events of inotify and messages of netlink, which cannot be saved. It has to have
/// read them at the moment in which it is stopped: where more comes all the time, on a busy machine, that takes many
/// tries.
const READING_PATIENCE: Duration = Duration::from_secs(5);

/// How long a job is let go on and stopped again while what cannot be saved is of the moment: a connection that was not
/// accepted yet, a message under way. As much time as a busy server takes for a few requests.
const PASSING_PATIENCE: Duration = Duration::from_secs(2);
/// The first and the longest time it is let go on for.
const PASSING_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

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
    let scope = scope_of(request);
    let lived = has_living(scope);
    save(scope, request, destination, earlier, observer).map_err(|error| match lived && !has_living(scope) {
        true => ended_meanwhile(error),
        false => error,
    })
}

fn save(
    scope: Scope,
    request: &CheckpointRequest,
    destination: Destination,
    earlier: Option<Earlier>,
    observer: &mut Observer<'_>,
) -> Result<(CheckpointReport, Vec<Tracked>)> {
    let begun = Instant::now();
    block_child_signals().context(|| "block SIGCHLD")?;
    // Every shared mapping and open file takes one of ours.
    cpr_kernel::process::raise_descriptor_limit().context(|| "raise the limit on descriptors")?;
    // First: a callback may do away with what else would be refused (LBNL-2.4.1).
    let mut asked = callbacks::ask(scope, request.stop_timeout, &mut || waited_for(observer, "callbacks"))?;
    refuse_what_blocks(scope, request)?;
    let resident = Resident::of(scope)?;
    let mut manifest = Manifest {
        checkpoint: about(request)?,
        ..Manifest::default()
    };
    let Outlet { pending, stream, word } = Outlet::of(destination)?;
    let (known, mut copied) = take_up(earlier, request.basis);
    let options = WriteOptions {
        compression: request.compression,
        incremental: !known.ancestors.is_empty(),
    };
    let writer = ImageWriter::with_options(stream, arch::NAME, options)?;
    let file = pending.as_ref().map(|pending| pending.file().try_clone()).transpose();
    let file = file.context(|| "copy the descriptor of the image")?;
    let mut writer = Pipeline::start(writer, file, observer, resident.all(), options.incremental)?;
    let libraries = early_libraries(scope, request.keep, &mut writer)?;
    let mut running = copy_running(scope, request, &resident, &known, &mut copied, &mut writer)?;
    let left = resident.without(&copied) + running.written;
    let snapshots = request.after == After::Continue && resident.is_worth_snapshots(request.pid, left, running.rate);
    for copied in &mut copied {
        copied.keep = request.keep_tracking;
    }
    // What a copy of a process does not have depends on them.
    let flags = running.flags(scope, snapshots)?;
    let before_stop = writer.placed();
    writer.enter("stop")?;
    if request.after == After::Continue && !snapshots {
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
    note_time(&frozen, request.pid, &mut manifest)?;
    let mut looked = Looked {
        flags,
        libraries,
        copied,
        snapshots: match (request.compare, snapshots) {
            // What is read from a copy is no check of it.
            (true, _) => Snapshots::ToCompare,
            (false, true) => Snapshots::Wanted,
            (false, false) => Snapshots::None,
        },
        taken: Vec::new(),
    };
    let requester = scope.requester()?;
    let (mut pause, until) = (PASSING_PAUSES.0, Instant::now() + PASSING_PATIENCE);
    let sockets = loop {
        let about = manifest.clone();
        match collect(&mut frozen, request, requester, &mut looked, &mut manifest, &mut writer) {
            // Jobs that are saved together stand still together.
            Err(error) if error.is_passing() && !request.hold && Instant::now() < until => {
                frozen.resume()?;
                // It lets go of what is still stopped when it is dropped, so that has to be before the next stop.
                drop(frozen);
                std::thread::sleep(pause);
                pause = (pause * 2).min(PASSING_PAUSES.1);
                frozen = stop(scope, request, &mut asked, &mut || writer.enter("stop"))?;
                manifest = about;
                note_time(&frozen, request.pid, &mut manifest)?;
            }
            saved => break saved?,
        }
    };
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
    let keeps_tracking = request.keep_tracking && request.after == After::Continue;
    let untracking = match request.after {
        After::Continue if !keeps_tracking => untrack(std::mem::take(&mut looked.copied)),
        _ => None,
    };
    // The longest time without a step of the job.
    let mut freeze_ns = running.first_stop_ns.max(frozen.since.elapsed().as_nanos() as u64);
    manifest.checkpoint.freeze_ns = freeze_ns;
    let method = match write_later(&mut looked.taken, &mut manifest, &mut writer)? {
        true => Method::Snapshot,
        false => running.method,
    };
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
        hand_over(&word, &mut frozen, observer)?;
        freeze_ns = freeze_ns.max(frozen.since.elapsed().as_nanos() as u64);
    }
    // From here on the image is there, and what was asked is done to the end.
    if observer(Event::Durable).is_break() && request.hold {
        return Err(Error::new(
            ErrorKind::Cancelled,
            "what was to be saved with the job was not",
        ));
    }
    end(frozen, request.after, &sockets, &manifest, &mut asked)?;
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
    // Who tracks next finds nothing that is tracked still.
    let _ = untracking.map(JoinHandle::join);
    let kept = if keeps_tracking {
        looked.copied.into_iter().map(Copied::into_tracked).collect()
    } else {
        Vec::new()
    };
    Ok((report, kept))
}

/// Ends the tracking of writes beside what is still to be done: the kernel looks at every page for that.
fn untrack(copied: Vec<Copied>) -> Option<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("cpr-untrack".to_owned());
    // Without a thread it has happened here.
    thread.spawn(move || drop(copied)).ok()
}

fn scope_of(request: &CheckpointRequest) -> Scope {
    Scope {
        members: match request.session {
            Some(sid) => Members::Session(sid),
            None if request.own_pid_namespace => Members::Namespace,
            None => Members::below(request.pid, request.adopter),
        },
        requester: request.requester.map(|requester| requester.pid),
    }
}

fn refuse_what_blocks(scope: Scope, request: &CheckpointRequest) -> Result<()> {
    let mut blocked = find_blockers(scope, request.pid, request.surroundings())?;
    // What cannot be looked at is mostly on its way out; what stays is found again when the job has stopped.
    // So is what passes, such as memory that vfork(2) shares.
    blocked.retain(|blocker| blocker.object != "descriptors" && !blocker.passes);
    refuse_blocked(blocked)
}

/// Where an image goes, its name if it is to get one, and who tells whether the job was taken over.
struct Outlet {
    pending: Option<PendingImage>,
    stream: File,
    word: Option<OwnedFd>,
}

impl Outlet {
    fn of(destination: Destination) -> Result<Self> {
        let (pending, stream, word) = match destination {
            Destination::File(pending) => {
                let file = pending.file().try_clone();
                let file = file.context(|| "copy the descriptor of the image")?;
                (Some(pending), file, None)
            }
            Destination::Stream(file) => (None, file, None),
            Destination::Handover(Handover { stream, word }) => (None, stream, Some(word)),
        };
        Ok(Outlet { pending, stream, word })
    }
}

fn note_time(frozen: &Frozen, root: i32, manifest: &mut Manifest) -> Result<()> {
    let (home, ours) = (Home::of(frozen.scope, root), Offsets::of_children("self"));
    let ours = ours.context(|| "read the offsets of our clocks")?;
    // Where nobody shows them, they are not needed: there is nothing to go on by them, or it is refused.
    let theirs = time_namespaces::base(frozen, &home)?.unwrap_or(ours);
    let monotonic_ns = theirs.monotonic_ns.saturating_sub(ours.monotonic_ns);
    let boottime_ns = theirs.boottime_ns.saturating_sub(ours.boottime_ns);
    let checkpoint = &mut manifest.checkpoint;
    checkpoint.time_ns = clock_ns(ClockId::Realtime);
    checkpoint.monotonic_ns = clock_ns(ClockId::Monotonic).saturating_add_signed(monotonic_ns);
    checkpoint.boottime_ns = clock_ns(ClockId::Boottime).saturating_add_signed(boottime_ns);
    Ok(())
}

/// Writes from copies what the job did not wait for; tells whether there was any.
fn write_later(taken: &mut [Taken], manifest: &mut Manifest, writer: &mut Pipeline<'_, '_>) -> Result<bool> {
    let mut any = false;
    for taken in taken {
        let later = std::mem::take(&mut taken.later);
        if later.is_empty() {
            continue;
        }
        any = true;
        writer.enter("copy")?;
        let space = manifest.address_spaces.get_mut(taken.space.index());
        let space = space.ok_or_else(|| Error::new(ErrorKind::Internal, "a snapshot is of no address space"))?;
        memory::save_later(later, &taken.snapshot.memory, space, writer)?;
    }
    Ok(any)
}

/// Waits until somebody else has taken the job over.
fn hand_over(word: &OwnedFd, frozen: &mut Frozen, observer: &mut Observer<'_>) -> Result<()> {
    match await_verdict(word, observer)? {
        Verdict::Taken => Ok(()),
        Verdict::Refused => Err(Error::new(ErrorKind::Cancelled, "the job was not taken over")),
        Verdict::Unknown => {
            frozen.resume_stopped()?;
            let text = "nobody said whether the job was taken over; it is stopped here";
            Err(Error::new(ErrorKind::Cancelled, text))
        }
    }
}

/// What becomes of the job now that its image is there.
fn end(mut frozen: Frozen, after: After, sockets: &HeldSockets, manifest: &Manifest, asked: &mut Asked) -> Result<()> {
    match after {
        After::Continue => Ok(()),
        After::Kill => {
            sockets.endings.iter().for_each(files::tcp::Ending::prepare);
            locks::keep(&frozen, manifest);
            frozen.kill()?;
            asked.forget();
            Ok(())
        }
        After::Signal(signal) => {
            asked.tell_continue();
            for process in frozen.processes.iter().filter(|process| process.space.is_some()) {
                PidFd::open(process.pid)
                    .and_then(|fd| fd.signal(signal))
                    .context(|| format!("send signal {signal} to process {}", process.pid))?;
            }
            frozen.resume()
        }
    }
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
    let read_by = deadline.min(Instant::now() + READING_PATIENCE);
    let members = freeze::members(scope)?;
    let networks = files::netlink::of_each_network(members.iter().copied());
    let queues = files::inotify::queues(members);
    let questions = state::questions_of_threads();
    loop {
        asked.close(scope, go_on)?;
        let mut frozen = match freeze::freeze(
            scope,
            Purpose::Save(&questions),
            request.stop_timeout,
            request.group.as_deref(),
        ) {
            // A process has ended; the others go on, and are stopped again without it.
            Err(error) if error.is_passing() && Instant::now() < deadline => continue,
            stopped => stopped?,
        };
        if asked.holds(&frozen) {
            if Instant::now() > read_by {
                return Ok(frozen);
            }
            let pids = frozen.processes.iter().map(|process| process.pid);
            let messages = files::netlink::unread(&networks, pids);
            if messages.is_empty() && files::inotify::all_are_read(&queues) {
                return Ok(frozen);
            }
            frozen.resume()?;
            files::inotify::wait_until_read(&queues, read_by);
            files::netlink::wait_until_read(&messages, read_by);
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
        xstate_parts: crate::extended::parts_here(),
        cpu_flags: cpuinfo,
        page_size: PAGE_SIZE as u32,
        own_pid_namespace: request.own_pid_namespace,
        own_ipc_namespace: request.own_ipc_namespace,
        session: request.session.unwrap_or(0),
        log: request.log.clone(),
        ..Checkpoint::default()
    })
}

fn root(frozen: &Frozen, request: &CheckpointRequest) -> i32 {
    if frozen.processes.iter().any(|p| p.pid == request.pid) {
        request.pid
    } else {
        frozen.processes.first().map_or(0, |p| p.pid)
    }
}
