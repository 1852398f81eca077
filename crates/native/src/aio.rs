//! Contexts of kernel asynchronous I/O, as a checkpoint finds them and a restart brings them to their place.
//!
//! What a context has completed is in its ring, and so in memory. What is under way is seen nowhere, and would be lost.
//! So the context is filled up with requests that do nothing: if there is room for as many as there is without any
//! under way, there are none. Then the ring is brought round to where it was, and gets back what was waiting in it.

use std::time::{Duration, Instant};

use cpr_kernel::aio::{self, Completion, ENTRY, HEAD_AT, Header};
use cpr_kernel::batch::{Batch, Outcome};
use cpr_kernel::memory::Memory;
use cpr_kernel::proc::MapKind;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::files::io_uring::is_mapping;
use crate::freeze::{Process, Space};

/// How long requests may take to be completed when the process has stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// What completions of our own requests have; no program has them at addresses of our own memory.
const LABEL: u64 = 0x4752_4944_4350_5221;

/// Whether the process has contexts, or instances of io_uring: what is read into its memory behind the back of the page
/// tables shows nowhere.
pub fn uses(space: &Space) -> bool {
    space
        .maps
        .iter()
        .any(|map| map.kind() == MapKind::Aio || is_mapping(map))
}

/// The ring of a context.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Its address, by which the context is known.
    pub address: u64,
    /// Its length in bytes.
    pub length: u64,
    /// A descriptor in the process, of a file that requests can read nothing from.
    pub file: i32,
}

/// Runs system calls in the process.
type Run<'a> = dyn FnMut(&Batch) -> Result<Outcome> + 'a;

impl Ring {
    /// Reads its header.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where it is of a kind not known.
    pub fn header(self, memory: &Memory) -> Result<Header> {
        let mut raw = [0u8; ENTRY];
        memory.read(self.address, &mut raw).context(|| "read its ring")?;
        Header::parse(&raw, self.length).ok_or_else(|| unsupported("its ring is of a kind that is not known"))
    }

    fn set_head(self, memory: &Memory, head: u32) -> Result<()> {
        memory
            .write(self.address + HEAD_AT, &head.to_ne_bytes())
            .context(|| "write its ring")
    }

    /// Writes completions from `at` on.
    fn put(self, memory: &Memory, header: Header, at: u32, completions: &[[u8; ENTRY]]) -> Result<()> {
        for (index, raw) in (0u32..).zip(completions) {
            let place = (at + index) % header.slots;
            let place = self.address + ENTRY as u64 * (1 + u64::from(place));
            memory.write(place, raw).context(|| "write its ring")?;
        }
        Ok(())
    }

    /// Makes requests that do nothing until the head of the ring is at `head`, and `waiting` completions after it.
    /// Where it puts the next one the kernel remembers by itself, so that there is no other way. Nothing may be under
    /// way, and what is in the ring is lost. Room is kept by processors: the process must stay on one.
    ///
    /// # Errors
    /// The kernel has no room for so many.
    pub fn bring(self, run: &mut Run<'_>, memory: &Memory, head: u32, waiting: u32) -> Result<()> {
        let start = self.header(memory)?;
        let slots = start.slots;
        // All are taken out up to the head; what comes after it stays.
        let before = start.before(head, start.tail);
        let mut done = 0;
        self.set_head(memory, start.tail)?;
        while done < before + waiting {
            let limit = if done < before { before } else { before + waiting };
            let mut batch = Batch::new();
            let call = aio::submit_call(&mut batch, self.address, self.file, limit - done, LABEL);
            let taken = run(&batch)?.result(call).context(|| "bring its ring to its place")?;
            done += taken as u32;
            self.set_head(memory, (start.tail + done.min(before)) % slots)?;
        }
        match self.header(memory)?.waiting() == waiting {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Internal,
                "the kernel counts completions in another way",
            )),
        }
    }
}

/// A process that stays on one processor.
#[derive(Debug)]
pub struct Pinned {
    thread: Option<Pid>,
    allowed: CpuSet,
}

impl Pinned {
    /// Pins a thread to the first processor it may run on.
    ///
    /// # Errors
    /// That is not allowed.
    pub fn new(tid: i32) -> Result<Self> {
        let thread = Pid::from_raw(tid);
        let allowed = sched_getaffinity(thread).map_err(std::io::Error::from);
        let allowed = allowed.context(|| "ask for the processors it may run on")?;
        let pinned = Pinned { thread, allowed };
        pinned.move_to((0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap_or(0));
        Ok(pinned)
    }

    /// Moves it; tells whether that processor is there.
    fn move_to(&self, processor: usize) -> bool {
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(self.thread, &one).is_ok()
    }

    /// Lets it run where it ran before.
    ///
    /// # Errors
    /// That is not allowed.
    pub fn undo(self) -> Result<()> {
        let undone = sched_setaffinity(self.thread, &self.allowed).map_err(std::io::Error::from);
        undone.context(|| "let it run on all its processors again")
    }
}

/// Waits until nothing is under way in any context of the stopped process. It must have an arena.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when requests are still under way after some seconds.
pub fn settle(process: &mut Process, deadline: Instant) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    let rings = space.maps.iter().filter(|map| map.kind() == MapKind::Aio);
    let rings: Vec<(u64, u64)> = rings.map(|map| (map.start, map.len())).collect();
    if rings.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    let name = batch.string(b"cpr-aio");
    let made = batch.must(
        libc::SYS_memfd_create,
        &[name, libc::MFD_CLOEXEC.into()],
        "make a file in memory to look at asynchronous I/O with",
    );
    let file = process.run(0, &batch, deadline)?.raw(made) as i32;
    let settled = rings.into_iter().try_for_each(|(address, length)| {
        let ring = Ring { address, length, file };
        let pid = process.pid;
        let settled = settle_one(process, ring, deadline);
        settled.context(|| format!("process {pid}: asynchronous I/O context at {address:#x}"))
    });
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[file.into()]);
    process.run(0, &batch, deadline)?;
    settled
}

fn settle_one(process: &mut Process, ring: Ring, deadline: Instant) -> Result<()> {
    let before = ring.header(memory(process)?)?;
    let mut batch = Batch::new();
    let there = aio::ask_call(&mut batch, ring.address);
    if process.run(0, &batch, deadline)?.result(there).is_err() {
        return Err(unsupported(
            "the memory was inherited from a process that has the context",
        ));
    }
    let caller = process
        .threads
        .first()
        .map_or(process.pid, |thread| thread.tracee.tid());
    let pinned = Pinned::new(caller)?;
    let settled = look(process, &pinned, ring, before, deadline);
    pinned.undo()?;
    settled
}

/// Looks whether anything is under way, and puts the ring right again, also after an error.
fn look(process: &mut Process, pinned: &Pinned, ring: Ring, before: Header, deadline: Instant) -> Result<()> {
    let processors = aio::possible_processors().context(|| "ask for the number of processors")?;
    let room = before.capacity(processors).saturating_sub(before.waiting());
    let ours = fill(process, pinned, ring, room, deadline);
    let all_ours = ours.and_then(|ours| wait(memory(process)?, ring, before, ours, room));
    let now = ring.header(memory(process)?)?;
    let kept = others(process, ring, before.head, now)?;
    let waiting = kept.len() as u32;
    // A second handle: the first is the process's, which runs the calls.
    let memory = memory(process)?.try_clone().context(|| "open its memory")?;
    let mut run = |batch: &Batch| process.run(0, batch, deadline);
    // What is under way may move the tail at any time: later than what was looked at.
    let (brought, now) = match &all_ours {
        Ok(()) => (
            ring.bring(&mut run, &memory, before.head, waiting),
            ring.header(&memory)?,
        ),
        Err(_) => (Ok(()), now),
    };
    let head = now.before(now.tail, waiting);
    ring.put(&memory, now, head, &kept)?;
    ring.set_head(&memory, head)?;
    all_ours.and(brought)
}

/// Fills the context up with requests of ours; tells how many there was room for.
fn fill(process: &mut Process, pinned: &Pinned, ring: Ring, room: u32, deadline: Instant) -> Result<u32> {
    let mut ours = 0;
    // Some of the room belongs to other processors that the process has run on.
    for processor in 0..=CpuSet::MAX_CPU {
        let there = processor == 0 || pinned.move_to(processor - 1);
        while there && ours < room {
            let mut batch = Batch::new();
            let call = aio::submit_call(&mut batch, ring.address, ring.file, room - ours, LABEL);
            match process.run(0, &batch, deadline)?.result(call) {
                Ok(taken) => ours += taken as u32,
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
                Err(error) => return Err(error).context(|| "fill it up"),
            }
        }
        if ours == room {
            break;
        }
    }
    Ok(ours)
}

/// Waits for what else there was in the context.
fn wait(memory: &Memory, ring: Ring, before: Header, ours: u32, room: u32) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        // The tail cannot go round: there is never room for as many.
        let completed = before.before(ring.header(memory)?.tail, before.tail);
        if completed >= room {
            return Ok(());
        }
        if Instant::now() > end {
            let count = room.saturating_sub(ours.max(completed));
            let text = match count {
                1 => "a request is under way".to_owned(),
                _ => format!("{count} requests are under way"),
            };
            return Err(unsupported(&text).with_hint("try again when the program does not read or write"));
        }
        std::thread::yield_now();
    }
}

/// The completions from `head` on that are not ours.
fn others(process: &Process, ring: Ring, head: u32, now: Header) -> Result<Vec<[u8; ENTRY]>> {
    let arena = process.space.as_ref().and_then(|space| space.arena);
    let is_ours = |raw: &[u8; ENTRY]| {
        let Completion { label, request } = Completion::parse(raw);
        label == LABEL && arena.is_some_and(|arena| (arena.address..arena.address + arena.length).contains(&request))
    };
    let mut bytes = vec![0; ring.length as usize];
    memory(process)?
        .read(ring.address, &mut bytes)
        .context(|| "read its ring")?;
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    let count = now.before(now.tail, head);
    let all = (0..count).filter_map(|index| entries.get(1 + ((head + index) % now.slots) as usize));
    Ok(all.filter(|raw| !is_ours(raw)).copied().collect())
}

fn memory(process: &Process) -> Result<&Memory> {
    let space = process.space.as_ref();
    let space = space.ok_or_else(|| Error::new(ErrorKind::Internal, "a process without memory has a context"))?;
    Ok(&space.memory)
}

fn unsupported(text: &str) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}
