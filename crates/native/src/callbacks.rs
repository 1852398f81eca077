//! Asking the processes of a job before a checkpoint, and telling them how it went: libgridcpr's other side
//! (LBNL-3.6.7).
//!
//! # Protocol
//! A process that uses the library has a control page ([`cpr_kernel::control`]) and a thread that waits for its request
//! word to change. We write the word through /proc/PID/mem and stop that thread for an instant, which makes it look at
//! the word again; answers are read the same way. First every process is asked to run its callbacks; when all have,
//! and just before the job is stopped, to let nobody into a critical section. At the stop each page must say so still.
//! While the job is stopped the next word is written, "continue", which it finds when it goes on; the restarter writes
//! "restart" into the new process's memory before it lets it go.
//!
//! # When somebody dies or hangs
//! A request carries a lease that we renew; a process that sees it run out goes on by itself, and we see that at the
//! stop. Everything a process does is bounded by our deadline, after which the checkpoint fails and all are told so.
//! Pages are a process's own memory: what is read is checked, and what is written stays within that page.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use cpr_image::model::{Manifest, MappingKind, Process, SavedFileKind};
use cpr_kernel::clocks::Offsets;
use cpr_kernel::control::{self, Request, Status, Verb, View};
use cpr_kernel::memory::Memory;
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_kernel::process::{PidFd, clock_ns};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::time::ClockId;

use crate::freeze::{self, Frozen, Scope};

/// How long a process believes in a request that is not renewed.
const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(1);
/// How often answers are looked at. A look is one read of two microseconds.
const LOOK: Duration = Duration::from_millis(1);
/// How often it is asked whether anybody still waits for the checkpoint.
const WANTED: Duration = Duration::from_millis(100);
/// How much longer than a process's own deadline we wait for its answer.
const GRACE: Duration = Duration::from_secs(1);
/// PROT_WRITE of a saved mapping.
const PROT_WRITE: u32 = 2;

/// Asked now and then while we wait: an error gives the checkpoint up.
pub type GoOn<'a> = dyn FnMut() -> Result<()> + 'a;

/// A process with a control page.
#[derive(Debug)]
struct Party {
    pid: i32,
    pidfd: PidFd,
    memory: Memory,
    address: u64,
    tid: i32,
    request: Request,
    /// How far its CLOCK_MONOTONIC is ahead of ours.
    ahead_ns: i64,
}

/// The processes that were asked, until they are told how it went: dropping it tells them that there is no checkpoint.
#[derive(Debug)]
pub struct Asked {
    parties: Vec<Party>,
    limit: Duration,
    /// Ends the thread that renews leases when dropped.
    renewal: Option<Sender<()>>,
}

/// A control page: where, and what it says.
fn page_of(maps: &[MapEntry], memory: &Memory, pid: i32) -> Option<(u64, View)> {
    let fits = |map: &&MapEntry| {
        map.end - map.start == control::LENGTH as u64
            && map.read
            && map.write
            && !map.shared
            && map.kind() == MapKind::Memfd(control::NAME.as_bytes())
    };
    maps.iter().filter(fits).find_map(|map| {
        let view = view(memory, map.start)?;
        // A copy made by fork(2) has the parent's: the library is not at work here.
        (view.pid == pid).then_some((map.start, view))
    })
}

fn view(memory: &Memory, address: u64) -> Option<View> {
    let mut bytes = [0u8; control::VIEW];
    memory.read(address, &mut bytes).ok()?;
    View::parse(&bytes)
}

/// PID of a process in its own PID namespace, which is what it knows of itself.
fn inner_pid(proc: &ProcDir) -> Option<i32> {
    proc.status().ok()?.ns_pid.last().copied()
}

/// Stops a process's waiting thread for an instant, so that it looks at its words again.
fn wake(party: &Party) -> Result<()> {
    freeze::nudge(party.pid, party.tid, Instant::now() + GRACE)
}

impl Party {
    /// The party of a process, none where it has no page or is about to end.
    fn find(pid: i32) -> Option<(Party, View)> {
        let pidfd = PidFd::open(pid).ok()?;
        let proc = ProcDir::open_living(pid).ok()?;
        let inner = inner_pid(&proc)?;
        let memory = Memory::open(proc.as_fd()).ok()?;
        let (address, view) = page_of(&proc.maps().ok()?, &memory, inner)?;
        // The page speaks of threads as the process sees them: by position in its list of namespaces.
        let tid = proc.tasks().ok()?.into_iter().find(|tid| {
            let status = ProcDir::open_task(pid, *tid).and_then(|task| task.status());
            status.is_ok_and(|status| status.ns_pid.last() == Some(&view.tid))
        })?;
        let party = Party {
            pid,
            pidfd,
            memory,
            address,
            tid,
            request: view.request,
            ahead_ns: Offsets::ahead_of_us(proc.acting()).ok()?.monotonic_ns,
        };
        Some((party, view))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let what = || format!("write the control page of process {}", self.pid);
        self.memory.write(self.address + offset, bytes).context(what)
    }

    fn send(&mut self, request: Request) -> Result<()> {
        self.request = request;
        self.write(control::offset::REQUEST, &request.word().to_ne_bytes())
    }

    /// Has exited or begun another program.
    fn is_gone(&self) -> bool {
        view(&self.memory, self.address).is_none() || self.pidfd.signal(0).is_err()
    }
}

impl AsFd for Party {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.fd()
    }
}

/// Asks all processes of `scope` to run their callbacks, and waits until all have. Those that a process in it starts
/// meanwhile are asked, too.
///
/// # Errors
/// [`ErrorKind::Unsupported`] or [`ErrorKind::Busy`] with the message of a callback that refuses, [`ErrorKind::Busy`]
/// when callbacks of another checkpoint still run, [`ErrorKind::TimedOut`] after `limit`; what `go_on` says. All have
/// been told then.
pub fn ask(scope: Scope, limit: Duration, go_on: &mut GoOn<'_>) -> Result<Asked> {
    let mut asked = Asked {
        parties: Vec::new(),
        limit,
        renewal: None,
    };
    asked.ask_new(scope, go_on)?;
    Ok(asked)
}

impl Asked {
    /// Asks those that have not been asked.
    fn ask_new(&mut self, scope: Scope, go_on: &mut GoOn<'_>) -> Result<()> {
        let deadline = Instant::now() + self.limit + GRACE;
        loop {
            self.parties.retain(|party| !party.is_gone());
            let known = self.parties.len();
            for pid in freeze::members(scope)? {
                if !self.parties.iter().any(|party| party.pid == pid)
                    && let Some((party, view)) = Party::find(pid)
                {
                    self.ask_one(party, &view, Verb::Prepare)?;
                }
            }
            if self.parties.len() == known {
                return Ok(());
            }
            self.renew()?;
            self.await_all(Status::Ready, deadline, go_on)?;
        }
    }

    fn ask_one(&mut self, mut party: Party, view: &View, verb: Verb) -> Result<()> {
        let pid = party.pid;
        let busy = |why: &str| Error::new(ErrorKind::Busy, format!("process {pid} {why}"));
        let now = now(party.ahead_ns);
        if view.answer.1 != Status::Idle && view.lease_ns > now {
            return Err(busy("is being checkpointed, or its callbacks still run").with_hint("try again later"));
        }
        let stopped = ProcDir::open_living(pid)
            .and_then(|proc| proc.stat())
            .is_ok_and(|s| s.state == b'T');
        if stopped && view.callbacks == 0 && view.sections == 0 {
            // It has nothing to do, and could not.
            return Ok(());
        }
        if stopped {
            return Err(busy("is stopped by a signal and cannot run its callbacks")
                .with_hint(format!("let it go on first: kill -CONT {pid}")));
        }
        party.write(control::offset::LIMIT, &(self.limit.as_nanos() as u64).to_ne_bytes())?;
        party.write(control::offset::LEASE, &lease(party.ahead_ns).to_ne_bytes())?;
        party.send(Request {
            verb,
            ..party.request.next()
        })?;
        self.parties.push(party);
        match self.parties.last() {
            Some(party) => wake(party),
            None => Ok(()),
        }
    }

    /// Lets nobody into critical sections any more, and waits until all have been left (LBNL-3.6.7.4). To be called
    /// just before the job is stopped.
    ///
    /// # Errors
    /// As [`ask`]; [`ErrorKind::Busy`] names a process that stays in a critical section.
    pub fn close(&mut self, scope: Scope, go_on: &mut GoOn<'_>) -> Result<()> {
        self.ask_new(scope, go_on)?;
        for party in &mut self.parties {
            party.write(control::offset::LEASE, &lease(party.ahead_ns).to_ne_bytes())?;
            party.send(Request {
                verb: Verb::Close,
                ..party.request
            })?;
            wake(party)?;
        }
        self.await_all(Status::Closed, Instant::now() + self.limit, go_on)
    }

    fn await_all(&mut self, wanted: Status, deadline: Instant, go_on: &mut GoOn<'_>) -> Result<()> {
        let mut ask_again = Instant::now() + WANTED;
        loop {
            let mut waiting = None;
            self.parties.retain(|party| !party.is_gone());
            for party in &self.parties {
                let Some(view) = view(&party.memory, party.address) else {
                    continue;
                };
                let (sequence, status) = view.answer;
                let new = sequence == party.request.sequence;
                match status {
                    Status::Refused | Status::Later | Status::Late if new => return Err(refusal(party.pid, &view)),
                    // Further than asked for, by an earlier round.
                    Status::Closed if new => {}
                    _ if new && status == wanted => {}
                    _ => waiting = waiting.or(Some((party.pid, status))),
                }
            }
            let Some((pid, status)) = waiting else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(late(pid, status, wanted, self.limit));
            }
            if Instant::now() > ask_again {
                go_on()?;
                ask_again = Instant::now() + WANTED;
            }
            self.pause()?;
        }
    }

    /// Waits a moment, or until one of the processes ends.
    fn pause(&self) -> Result<()> {
        let mut polled: Vec<PollFd<'_>> = self
            .parties
            .iter()
            .map(|party| PollFd::new(party, PollFlags::IN))
            .collect();
        let moment = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut polled, Some(&moment)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(std::io::Error::from(error)).context(|| "wait for callbacks"),
        }
    }

    /// Keeps the leases of all that are asked now from running out, until dropped or called again.
    fn renew(&mut self) -> Result<()> {
        let mut pages = Vec::new();
        for party in &self.parties {
            let memory = party
                .memory
                .try_clone()
                .context(|| format!("copy the descriptor of the memory of process {}", party.pid))?;
            pages.push((memory, party.address, party.ahead_ns));
        }
        let (stop, stopped) = channel::<()>();
        std::thread::Builder::new()
            .name("cpr-lease".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                    for (memory, address, ahead_ns) in &pages {
                        // It may have ended.
                        let _ = memory.write(address + control::offset::LEASE, &lease(*ahead_ns).to_ne_bytes());
                    }
                }
            })
            .context(|| "start the thread that renews leases")?;
        self.renewal = Some(stop);
        Ok(())
    }

    /// Whether every process that has a control page at the stop says that it is ready. Where one does not, because it
    /// was started in the last moment or has given up waiting, the job has to be let go, asked and stopped again.
    pub fn holds(&self, frozen: &Frozen) -> bool {
        frozen.processes.iter().all(|process| {
            let Some(space) = &process.space else { return true };
            let Some(inner) = process.status.ns_pid.last() else {
                return true;
            };
            match page_of(&space.maps, &space.memory, *inner) {
                None => true,
                Some((_, view)) if process.stopped_by.is_some() && view.callbacks == 0 && view.sections == 0 => true,
                Some((address, view)) => self.parties.iter().any(|party| {
                    party.pid == process.pid
                        && party.address == address
                        && view.answer == (party.request.sequence, Status::Closed)
                        && view.sections == control::CLOSED
                }),
            }
        })
    }

    /// While the job is stopped: tells all that it goes on after a checkpoint (LBNL-3.6.7.2).
    pub fn tell_continue(&mut self) {
        self.renewal = None;
        for party in &mut self.parties {
            let request = Request {
                verb: Verb::Continue,
                ..party.request
            };
            // One that cannot be told sees its lease run out.
            let _ = party.send(request);
        }
        self.parties.clear();
    }

    /// All are dead.
    pub fn forget(&mut self) {
        self.renewal = None;
        self.parties.clear();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.renewal = None;
        for party in &mut self.parties {
            let request = Request {
                verb: Verb::Fail,
                ..party.request
            };
            // One that cannot be told sees its lease run out.
            let _ = party.send(request).and_then(|()| wake(party));
        }
    }
}

/// CLOCK_MONOTONIC of those whose clock is ahead of ours by that much.
fn now(ahead_ns: i64) -> u64 {
    clock_ns(ClockId::Monotonic).saturating_add_signed(ahead_ns)
}

/// A lease that begins now, by their clock.
fn lease(ahead_ns: i64) -> u64 {
    now(ahead_ns).saturating_add(LEASE.as_nanos() as u64)
}

fn refusal(pid: i32, view: &View) -> Error {
    let reason = if view.message.is_empty() {
        String::new()
    } else {
        format!(": {}", view.message)
    };
    match view.answer.1 {
        Status::Later => Error::new(
            ErrorKind::Busy,
            format!("process {pid} cannot be checkpointed just now{reason}"),
        )
        .with_hint("its program asks to try again later"),
        Status::Late => Error::new(
            ErrorKind::TimedOut,
            format!("process {pid} does not get ready for a checkpoint{reason}"),
        )
        .with_hint("raise --timeout if the callback needs longer; the job goes on"),
        _ => Error::new(
            ErrorKind::Unsupported,
            format!("process {pid} refuses to be checkpointed{reason}"),
        )
        .with_hint("its program says so, through libgridcpr"),
    }
}

fn late(pid: i32, status: Status, wanted: Status, limit: Duration) -> Error {
    let limit = format!("{} ms", limit.as_millis());
    if wanted == Status::Closed && status == Status::Ready {
        return Error::new(
            ErrorKind::Busy,
            format!("process {pid} is in a critical section, and did not leave it in {limit}"),
        )
        .with_hint("raise --timeout, or try again later");
    }
    Error::new(
        ErrorKind::TimedOut,
        format!("process {pid} did not get ready for a checkpoint in {limit}"),
    )
    .with_hint("raise --timeout; a thread of libgridcpr in the process answers, unless the process is stopped")
}

/// Tells these processes that something has happened, and waits until their callbacks have run; gives how many have
/// been told. One that does not use libgridcpr, or has no callbacks, is left out.
///
/// # Errors
/// [`ErrorKind::Busy`] for a process that is being checkpointed or is stopped, [`ErrorKind::TimedOut`] after `limit`.
/// Some may have been told then.
pub fn tell(pids: &[i32], notice: &str, limit: Duration) -> Result<usize> {
    let mut text = [0u8; control::NOTICE];
    // Cut at a character.
    let end = (0..control::NOTICE).rev().find(|&end| notice.is_char_boundary(end));
    let said = notice.as_bytes().get(..end.unwrap_or(0)).unwrap_or_default();
    text[..said.len()].copy_from_slice(said);
    let mut asked = Asked {
        parties: Vec::new(),
        limit,
        renewal: None,
    };
    for &pid in pids {
        if let Some((party, view)) = Party::find(pid)
            && view.callbacks > 0
        {
            party.write(control::offset::NOTICE, &text)?;
            asked.ask_one(party, &view, Verb::Tell)?;
        }
    }
    let told = asked.parties.len();
    asked.renew()?;
    asked.await_all(Status::Idle, Instant::now() + limit + GRACE, &mut || Ok(()))?;
    asked.renewal = None;
    for party in &mut asked.parties {
        // A checkpointer of before this verb does not understand a page that has it.
        let request = Request {
            verb: Verb::None,
            ..party.request
        };
        // One that has ended meanwhile has been told.
        let _ = party.send(request);
    }
    asked.parties.clear();
    Ok(told)
}

/// What a restarted process is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebirth {
    /// The image, 32 hexadecimal digits.
    pub image: String,
    /// Name of the job; may be empty.
    pub job: String,
    /// The job's directory; may be empty.
    pub directory: Vec<u8>,
}

/// Writes into the memory of a new process that this is a restart, before anything of it runs (LBNL-3.6.7.3).
///
/// # Errors
/// The memory cannot be written.
pub fn tell_restart(manifest: &Manifest, process: &Process, memory: &Memory, rebirth: &Rebirth) -> Result<()> {
    let space = process
        .address_space
        .and_then(|id| manifest.address_spaces.get(id.index()));
    for mapping in space.iter().flat_map(|space| &space.mappings) {
        let MappingKind::PrivateSaved(file) = mapping.kind else {
            continue;
        };
        let named = manifest.saved_files.get(file.index()).is_some_and(
            |file| matches!(&file.kind, SavedFileKind::Memfd { name, .. } if name.0 == control::NAME.as_bytes()),
        );
        let whole = mapping.end - mapping.start == control::LENGTH as u64 && mapping.protection & PROT_WRITE != 0;
        if !named || !whole {
            continue;
        }
        let Some(view) = view(memory, mapping.start) else {
            continue;
        };
        let put = |offset: u64, bytes: &[u8]| {
            memory
                .write(mapping.start + offset, bytes)
                .context(|| format!("write the control page of process {}", process.pid))
        };
        let text = |bytes: &[u8], room: usize| {
            // What does not fit is left out as a whole: half a path is the path of something else.
            let mut field = vec![0u8; room];
            if bytes.len() < room {
                field[..bytes.len()].copy_from_slice(bytes);
            }
            field
        };
        let mut image = [0u8; 32];
        if rebirth.image.len() == image.len() {
            image.copy_from_slice(rebirth.image.as_bytes());
        }
        put(control::offset::IMAGE, &image)?;
        put(control::offset::JOB, &text(rebirth.job.as_bytes(), control::JOB))?;
        put(control::offset::DIRECTORY, &text(&rebirth.directory, control::PATH))?;
        put(control::offset::GENERATION, &view.request.sequence.to_ne_bytes())?;
        put(control::offset::RESTARTS, &view.restarts.wrapping_add(1).to_ne_bytes())?;
        let request = Request {
            verb: Verb::Restart,
            ..view.request
        };
        put(control::offset::REQUEST, &request.word().to_ne_bytes())?;
    }
    Ok(())
}
