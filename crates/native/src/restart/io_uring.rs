//! Making io_uring instances again, each in the thread that it belongs to.
//!
//! How many requests and completions there were, modulo 2^32, the kernel remembers by itself. So as many requests for
//! nothing are made, those without a completion at the end; then the memory of the rings gets back what was in it.
//!
//! Who made an instance is asked for the memory that is locked for it, and a thread that takes requests out has its
//! maker's rights: it is made with those that its thread will have.

use std::time::Instant;

use cpr_image::model::{Bytes, FileId, IoUring, IoUringId, Manifest, Mapping, MappingKind, Object, Process, Thread};
use cpr_kernel::arch::{Registers, USER_ADDRESS_END};
use cpr_kernel::batch::{Arg, Batch, Outcome};
use cpr_kernel::io_uring::{self as kernel, Layout, Parameters};
use cpr_kernel::proc::{MapEntry, ProcDir};
use cpr_kernel::ptrace::Tracee;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use super::identity::{self, Rights};
use super::stub::{Stub, Workshop};
use super::{address_space, living, space};

/// Most calls in a batch that fit the arena with room to spare.
const CALLS: u32 = 8000;

/// Makes all instances. The processes have their threads, memory and descriptors; in the place of those of instances
/// are others.
///
/// # Errors
/// [`ErrorKind::Incompatible`] for a kernel that makes other instances, [`ErrorKind::Denied`] where none may be made.
pub(super) fn restore_all(workshop: &Workshop, manifest: &Manifest, rights: Rights) -> Result<()> {
    for (index, instance) in manifest.io_urings.iter().enumerate() {
        let id = IoUringId(index as u32);
        restore(workshop, manifest, id, instance, rights).context(|| format!("restore io_uring instance {index}"))?;
    }
    Ok(())
}

/// The thread that makes an instance.
struct Maker<'a> {
    workshop: &'a Workshop,
    process: &'a Process,
    thread: &'a Thread,
    stub: &'a Stub,
    tracee: Tracee,
    base: Registers,
}

impl<'a> Maker<'a> {
    fn find(workshop: &'a Workshop, manifest: &'a Manifest, owner: i32) -> Result<Self> {
        let missing = || Error::new(ErrorKind::Damaged, format!("there is no thread {owner}"));
        let place = |process: &Process| process.threads.iter().position(|thread| thread.tid == owner);
        let found = living(manifest).find_map(|process| Some((process, place(process)?)));
        let (process, index) = found.ok_or_else(missing)?;
        let stub = workshop.stub(process.pid)?;
        let (tracee, base) = match index.checked_sub(1) {
            None => (stub.tracee, stub.base),
            Some(further) => *stub.threads.get(further).ok_or_else(missing)?,
        };
        Ok(Maker {
            workshop,
            process,
            thread: process.threads.get(index).ok_or_else(missing)?,
            stub,
            tracee,
            base,
        })
    }

    fn run(&self, batch: &Batch) -> Result<Outcome> {
        self.workshop.run_thread(self.stub, self.tracee, &self.base, batch)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.stub.memory.write(address, bytes).context(|| "fill its rings")
    }

    fn word(&self, address: u64) -> Result<u32> {
        let mut raw = [0; 4];
        self.stub.memory.read(address, &mut raw).context(|| "read its rings")?;
        Ok(u32::from_ne_bytes(raw))
    }

    /// The number of a descriptor of the process that is open on a file.
    fn descriptor(&self, file: FileId) -> Result<i32> {
        let found = self
            .process
            .descriptors
            .iter()
            .find(|descriptor| descriptor.file == file);
        let missing = || Error::new(ErrorKind::Damaged, "a registered file is not open");
        found.map(|descriptor| descriptor.fd).ok_or_else(missing)
    }
}

/// An instance that was made, as its maker knows it.
#[derive(Debug, Clone, Copy)]
struct Made {
    ring: i32,
    /// Address and length of both rings and of the requests.
    rings: (u64, u64),
    queue: (u64, u64),
    layout: Layout,
}

fn restore(workshop: &Workshop, manifest: &Manifest, id: IoUringId, instance: &IoUring, rights: Rights) -> Result<()> {
    let maker = Maker::find(workshop, manifest, instance.owner)?;
    let made = make(&maker, instance, rights)?;
    match instance.flags & kernel::SETUP_THREAD == 0 {
        true => advance(&maker, instance, made)?,
        false => advance_thread(&maker, instance, made)?,
    }
    // A thread that takes requests out says there whether it sleeps.
    let flags = u64::from(made.layout.submission_flags);
    fill(&maker, &instance.rings, made.rings.0, Some(flags))?;
    fill(&maker, &instance.queue, made.queue.0, None)?;
    let mut batch = Batch::new();
    for (address, length) in [made.rings, made.queue] {
        batch.must(libc::SYS_munmap, &[address.into(), length.into()], "unmap its rings");
    }
    let files = instance
        .files
        .iter()
        .map(|file| file.map_or(Ok(-1), |file| maker.descriptor(file)));
    let files = files.collect::<Result<Vec<i32>>>()?;
    if !files.is_empty() {
        kernel::register_files_call(&mut batch, made.ring, &files);
    }
    if !instance.buffers.is_empty() {
        kernel::register_buffers_call(&mut batch, made.ring, &instance.buffers);
    }
    maker.run(&batch)?;
    // Its maker last, for it closes the descriptor that others get theirs from.
    let (own, others): (Vec<_>, Vec<_>) = living(manifest).partition(|process| process.pid == maker.process.pid);
    for process in others.into_iter().chain(own) {
        hand_out(&maker, manifest, id, made.ring, process)?;
    }
    Ok(())
}

fn make(maker: &Maker<'_>, instance: &IoUring, rights: Rights) -> Result<Made> {
    let parameters = Parameters::new(instance.entries, instance.completions, instance.flags);
    let mut batch = Batch::new();
    let status = ProcDir::open_task(maker.process.pid, maker.thread.tid).and_then(|task| task.status());
    let status = status.context(|| "ask for the rights of its thread")?;
    let make = |batch: &mut Batch| kernel::setup_call(batch, &parameters);
    let (call, out) = identity::with_final_rights(maker.thread, maker.process, rights, &status, &mut batch, make);
    let outcome = maker.run(&batch)?;
    let (ring, made) = (outcome.raw(call) as i32, Parameters::from_bytes(outcome.output(out)));
    let layout = made.layout();
    let missing = instance.features & !made.features();
    let same = made.room() == (instance.entries, instance.completions) && layout.numbers() == *instance.layout;
    if !same || missing != 0 {
        let text = format!("this kernel makes io_uring instances of another kind (features missing: {missing:#x})");
        return Err(Error::new(ErrorKind::Incompatible, text));
    }
    let rings = layout.size(instance.entries, instance.completions);
    let queue = kernel::ENTRY_SIZE * u64::from(instance.entries);
    let mut batch = Batch::new();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = |offset: u64, length: u64| {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let arguments = [
            Arg::from(0),
            length.into(),
            protection.into(),
            flags.into(),
            ring.into(),
            offset.into(),
        ];
        batch.must(libc::SYS_mmap, &arguments, "map its rings")
    };
    let places = [map(kernel::RINGS, rings), map(kernel::ENTRIES, queue)];
    let outcome = maker.run(&batch)?;
    let [first, second] = places.map(|place| outcome.raw(place) as u64);
    Ok(Made {
        ring,
        rings: (first, rings),
        queue: (second, queue),
        layout,
    })
}

/// Has as many requests and completions counted as there were.
fn advance(maker: &Maker<'_>, instance: &IoUring, made: Made) -> Result<()> {
    let at = |offset: u32| made.rings.0 + u64::from(offset);
    let Layout {
        submission_head,
        submission_tail,
        completion_head,
        completion_tail,
        ..
    } = made.layout;
    // All entries, and all numbers in the array, are zero: the first request, which is for nothing.
    let whole = instance.entries;
    let rounds = |mut left: u32, and_take: bool| -> Result<()> {
        while left >= whole {
            let calls = (left / whole).min(CALLS / 2);
            let mut batch = Batch::new();
            for _ in 0..calls {
                kernel::submit_call(&mut batch, made.ring, whole);
                if and_take {
                    kernel::add_call(&mut batch, at(completion_head), whole.trailing_zeros());
                }
            }
            maker.run(&batch)?;
            left -= calls * whole;
        }
        if left > 0 {
            let mut batch = Batch::new();
            kernel::submit_call(&mut batch, made.ring, left);
            maker.run(&batch)?;
        }
        Ok(())
    };
    maker.write(at(submission_tail), &instance.completed.to_ne_bytes())?;
    rounds(instance.completed, true)?;
    maker.write(at(completion_head), &instance.completed.to_ne_bytes())?;
    if instance.submitted != instance.completed {
        maker.write(made.queue.0 + kernel::ENTRY_FLAGS, &[kernel::ENTRY_SILENT])?;
        maker.write(at(submission_tail), &instance.submitted.to_ne_bytes())?;
        rounds(instance.submitted.wrapping_sub(instance.completed), false)?;
        maker.write(made.queue.0 + kernel::ENTRY_FLAGS, &[0])?;
    }
    let now = (maker.word(at(submission_head))?, maker.word(at(completion_tail))?);
    match now == (instance.submitted, instance.completed) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Internal,
            format!("the kernel counts {} requests and {} completions", now.0, now.1),
        )),
    }
}

/// The same by the kernel's thread, which takes requests out as soon as it sees them.
fn advance_thread(maker: &Maker<'_>, instance: &IoUring, made: Made) -> Result<()> {
    let at = |offset: u32| made.rings.0 + u64::from(offset);
    let layout = made.layout;
    let mut done = 0;
    let silent = instance.submitted.wrapping_sub(instance.completed);
    for (flags, mut left) in [(0, instance.completed), (kernel::ENTRY_SILENT, silent)] {
        maker.write(made.queue.0 + kernel::ENTRY_FLAGS, &[flags])?;
        while left > 0 {
            let count = left.min(instance.entries);
            done += count;
            left -= count;
            maker.write(at(layout.submission_tail), &done.to_ne_bytes())?;
            await_thread(maker, made, done)?;
            let tail = maker.word(at(layout.completion_tail))?;
            maker.write(at(layout.completion_head), &tail.to_ne_bytes())?;
        }
    }
    maker.write(made.queue.0 + kernel::ENTRY_FLAGS, &[0])?;
    let now = maker.word(at(layout.completion_tail))?;
    match now == instance.completed {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Internal,
            format!("the kernel counts {now} completions"),
        )),
    }
}

/// Waits until the kernel's thread has taken out `count` requests, all there are, and has completed them.
fn await_thread(maker: &Maker<'_>, made: Made, count: u32) -> Result<()> {
    let at = |offset: u32| made.rings.0 + u64::from(offset);
    loop {
        if maker.word(at(made.layout.submission_head))? == count {
            return Ok(());
        }
        if maker.word(at(made.layout.submission_flags))? & kernel::FLAG_ASLEEP != 0 {
            let mut batch = Batch::new();
            kernel::wake_call(&mut batch, made.ring);
            maker.run(&batch)?;
        }
        if Instant::now() > maker.workshop.deadline {
            return Err(Error::new(ErrorKind::TimedOut, "its thread takes no requests"));
        }
        std::thread::yield_now();
    }
}

/// Writes what there was in memory of an instance, but for the word at `spared`.
fn fill(maker: &Maker<'_>, pieces: &[(u64, Bytes)], start: u64, spared: Option<u64>) -> Result<()> {
    const WORD: u64 = 4;
    for (offset, bytes) in pieces {
        let inside = spared.and_then(|at| at.checked_sub(*offset));
        let at = inside
            .and_then(|at| usize::try_from(at).ok())
            .filter(|at| *at < bytes.0.len());
        let (before, after) = bytes.0.split_at(at.unwrap_or(bytes.0.len()));
        maker.write(start + offset, before)?;
        if let Some(rest) = after.get(WORD as usize..) {
            maker.write(start + offset + before.len() as u64 + WORD, rest)?;
        }
    }
    Ok(())
}

/// Gives a process the descriptors and mappings of an instance that it has.
fn hand_out(maker: &Maker<'_>, manifest: &Manifest, id: IoUringId, ring: i32, process: &Process) -> Result<()> {
    let mappings = address_space(manifest, process)?.mappings.iter();
    let mappings: Vec<_> = mappings
        .filter(|mapping| mapping.kind == MappingKind::IoUring(id))
        .collect();
    let file = |file: FileId| manifest.files.get(file.index());
    let is_it = |id_of: FileId| file(id_of).is_some_and(|file| file.object == Object::IoUring(id));
    let descriptors: Vec<_> = process.descriptors.iter().filter(|one| is_it(one.file)).collect();
    let is_maker = process.pid == maker.process.pid;
    if !is_maker && mappings.is_empty() && descriptors.is_empty() {
        return Ok(());
    }
    let (workshop, pid) = (maker.workshop, process.pid);
    let fd = match is_maker {
        true => ring,
        false => {
            let mut batch = Batch::new();
            let known = workshop.seen(pid, maker.process.pid)?;
            let opened = batch.must(
                libc::SYS_pidfd_open,
                &[known.into(), Arg::from(0)],
                "open the process that made it",
            );
            let pidfd = workshop.run(pid, &batch)?.raw(opened);
            let mut batch = Batch::new();
            let arguments = [pidfd.into(), ring.into(), Arg::from(0)];
            let got = batch.must(
                libc::SYS_pidfd_getfd,
                &arguments,
                "get it from the process that made it",
            );
            batch.must(libc::SYS_close, &[pidfd.into()], "close a descriptor");
            workshop.run(pid, &batch)?.raw(got) as i32
        }
    };
    map_all(workshop, pid, fd, &mappings)?;
    let mut batch = Batch::new();
    for descriptor in descriptors {
        let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
        let number = descriptor.fd;
        batch.must(
            libc::SYS_dup3,
            &[fd.into(), number.into(), flags.into()],
            format!("give descriptor {number} its number"),
        );
        let flags = file(descriptor.file).map_or(0, |file| file.flags) as u32;
        if is_maker && OFlags::from_bits_retain(flags).contains(OFlags::NONBLOCK) {
            batch.call(
                libc::SYS_fcntl,
                &[number.into(), libc::F_SETFL.into(), libc::O_NONBLOCK.into()],
            );
        }
    }
    batch.must(libc::SYS_close, &[fd.into()], "close a descriptor");
    workshop.run(pid, &batch).map(drop)
}

/// Puts the mappings of an instance in their places. The kernel lets nobody choose where one goes, but puts it where
/// there is room: so there is none anywhere else for that moment.
fn map_all(workshop: &Workshop, pid: i32, ring: i32, mappings: &[&Mapping]) -> Result<()> {
    let Some(least) = mappings.iter().map(|mapping| mapping.end - mapping.start).min() else {
        return Ok(());
    };
    let maps = ProcDir::open(pid).and_then(|proc| proc.maps());
    let maps = maps.context(|| format!("read the mappings of process {pid}"))?;
    let places: Vec<_> = mappings.iter().map(|mapping| (mapping.start, mapping.end)).collect();
    let fillers = gaps(&maps, least, &places);
    let mut batch = Batch::new();
    let make_room = |batch: &mut Batch| match batch.size() > workshop.arena.capacity() / 2 {
        true => workshop.run(pid, &std::mem::take(batch)).map(drop),
        false => Ok(()),
    };
    for (start, length) in &fillers {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        let arguments = [
            Arg::from(*start),
            (*length).into(),
            libc::PROT_NONE.into(),
            flags.into(),
            Arg::from(-1),
            Arg::from(0),
        ];
        batch.must(
            libc::SYS_mmap,
            &arguments,
            "leave its rings only one place (see `ulimit -v`)",
        );
        make_room(&mut batch)?;
    }
    workshop.run(pid, &std::mem::take(&mut batch))?;
    let mut placed = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let length = mapping.end - mapping.start;
        batch.must(
            libc::SYS_munmap,
            &[mapping.start.into(), length.into()],
            "free the place of its rings",
        );
        let arguments = [
            Arg::from(0),
            length.into(),
            mapping.protection.into(),
            libc::MAP_SHARED.into(),
            ring.into(),
            mapping.offset.into(),
        ];
        placed.push(batch.must(libc::SYS_mmap, &arguments, format!("map it at {:#x}", mapping.start)));
        for advice in space::advices(mapping) {
            batch.call(libc::SYS_madvise, &[mapping.start.into(), length.into(), advice.into()]);
        }
    }
    let outcome = workshop.run(pid, &std::mem::take(&mut batch))?;
    for (mapping, call) in mappings.iter().zip(placed) {
        let at = outcome.raw(call) as u64;
        if at != mapping.start {
            let text = format!("the kernel has mapped it at {at:#x} instead of {:#x}", mapping.start);
            return Err(Error::new(ErrorKind::Internal, text));
        }
    }
    for (start, length) in &fillers {
        let arguments = [(*start).into(), (*length).into()];
        batch.must(libc::SYS_munmap, &arguments, "make room again");
        make_room(&mut batch)?;
    }
    workshop.run(pid, &batch).map(drop)
}

/// Where between mappings, and around them, there is room for `least` bytes, and any room beside one of these places
/// (first addresses and those behind): it would become one with that. Gives addresses and lengths.
fn gaps(maps: &[MapEntry], least: u64, places: &[(u64, u64)]) -> Vec<(u64, u64)> {
    /// The lowest address that everybody can map (vm.mmap_min_addr).
    const LOWEST: u64 = 64 << 10;
    let inner = maps.iter().map(|map| (map.start, map.end));
    let all = inner
        .filter(|(start, _)| *start < USER_ADDRESS_END)
        .chain([(USER_ADDRESS_END, USER_ADDRESS_END)]);
    let mut at = LOWEST;
    let mut found = Vec::new();
    for (start, end) in all {
        let is_beside = || places.iter().any(|place| place.0 == start || place.1 == at);
        if start >= at.saturating_add(least) || start > at && is_beside() {
            found.push((at, start - at));
        }
        at = at.max(end);
    }
    found
}
