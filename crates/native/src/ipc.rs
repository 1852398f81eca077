//! System V shared memory, semaphores and message queues.
//!
//! Where the job has IPC namespaces of its own, everything in them is the job's and is saved. In a namespace shared
//! with others, segments that only the job has attached are; sets and queues that a process of the job was the last to
//! use are refused by name, because nobody can tell who else uses them.
//!
//! What an ending process will add to semaphores (SEM_UNDO) is shown nowhere. It is found by having the process try
//! operations that cannot be carried out: see [`undo`].

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use cpr_image::model::{
    Bytes, Extent, Ipc, IpcNamespace, IpcNamespaceId, Segment, SegmentId, SemaphoreSet, SysvIdentity, SysvQueue,
};
use cpr_kernel::batch::Batch;
use cpr_kernel::proc::{self, MapEntry, MapKind, ProcDir, SysvObject, SysvSegment};
use cpr_kernel::sysv::{self, Attachment, SEMAPHORE_MAX, SemaphoreStep};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::blockers::Home;
use crate::files::Target;
use crate::freeze::{Frozen, Process};
use crate::memory::is_zero;
use crate::sink::{PAGE_SIZE, PageSink};
use crate::visits::Visits;
use crate::{Blocker, settings};

/// Flags of a segment beside its permissions (<linux/shm.h>).
pub const SHM_DEST: u32 = 0o1000;
pub const SHM_LOCKED: u32 = 0o2000;
/// Most that one step of a probe changes a semaphore by.
const STEP: i32 = 16_000;
/// Semaphores looked at in one go.
const TOGETHER: usize = 32;
/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
const SHARED_HINT: &str = "run the job with an IPC namespace of its own (`cpr run` without --share-ipc)";

/// `segment 5 (key 0x1234)` and the like.
pub fn label(what: &str, object: &SysvIdentity) -> String {
    format!("System V {what} {} (key {:#x})", object.id, object.key)
}

fn identity(object: &SysvObject, namespace: Option<IpcNamespaceId>) -> SysvIdentity {
    SysvIdentity {
        namespace,
        id: object.id,
        key: object.key,
        mode: object.mode,
        uid: object.uid,
        gid: object.gid,
        ctime: object.ctime,
    }
}

/// How many of the mappings are of which segment.
fn attachments<'a>(maps: impl Iterator<Item = &'a MapEntry>) -> HashMap<u64, u64> {
    let mut found = HashMap::new();
    for map in maps.filter(|map| matches!(map.kind(), MapKind::SysvShm { .. })) {
        *found.entry(map.inode).or_default() += 1;
    }
    found
}

/// Why a segment cannot be saved that the job has attached `used` times.
fn refuse(segment: &SysvSegment, used: u64) -> Option<&'static str> {
    (segment.attached > used).then_some("processes outside the job have it attached")
}

/// Whether a segment is the job's.
fn belongs(segment: &SysvSegment, used: u64, members: &HashSet<i32>, own: bool) -> bool {
    own || used > 0 || members.contains(&segment.creator)
}

/// Semaphore sets and queues of a shared namespace that one of these processes was the last to use.
fn shared_objects(members: &HashSet<i32>) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for set in proc::sysv_semaphores()? {
        // A set of somebody else's that may not be read is not the job's.
        let pid = |index: u64| sysv::semaphore_pid(set.object.id, index as usize).unwrap_or(0);
        if (0..set.count).any(|index| members.contains(&pid(index))) {
            found.push(label("semaphore set", &identity(&set.object, None)));
        }
    }
    for queue in proc::sysv_queues()? {
        if queue.users.iter().any(|pid| members.contains(pid)) {
            found.push(label("message queue", &identity(&queue.object, None)));
        }
    }
    Ok(found)
}

/// What cannot be saved, as far as a look at running processes tells. `own`: their home is an IPC namespace of the
/// job's.
///
/// # Errors
/// A namespace cannot be entered.
pub fn blockers(targets: &[Target], own: bool, visits: &mut Visits, home: &Home) -> Result<Vec<Blocker>> {
    let blocker = |pid: i32, object: String, reason: &str, hint: Option<&str>| Blocker {
        pid,
        object,
        reason: reason.to_owned(),
        hint: hint.map(str::to_owned),
        passes: false,
    };
    let mut by_namespace: HashMap<Option<usize>, Vec<&Target>> = HashMap::new();
    for target in targets {
        // One that has gone has no namespace.
        let namespace = visits.of(&target.proc, home).unwrap_or_default();
        by_namespace.entry(namespace).or_default().push(target);
    }
    let mut found = Vec::new();
    for namespace in std::iter::once(None).chain((0..visits.len()).map(Some)) {
        let targets = by_namespace.remove(&namespace).unwrap_or_default();
        let own = own || namespace.is_some();
        let members: HashSet<i32> = targets.iter().map(|target| target.pid).collect();
        let maps: Vec<MapEntry> = targets.iter().filter_map(|t| t.proc.maps().ok()).flatten().collect();
        let used = attachments(maps.iter());
        visits.go(namespace)?;
        for segment in proc::sysv_segments().unwrap_or_default() {
            let used = used.get(&(segment.object.id as u64)).copied().unwrap_or(0);
            if let Some(reason) = refuse(&segment, used).filter(|_| belongs(&segment, used, &members, own)) {
                let hint = Some("checkpoint all processes that use it together");
                found.push(blocker(
                    0,
                    label("segment", &identity(&segment.object, None)),
                    reason,
                    hint,
                ));
            }
        }
        if !own {
            let reason = "whether only the job uses it cannot be told";
            let objects = shared_objects(&members).unwrap_or_default();
            found.extend(objects.into_iter().map(|o| blocker(0, o, reason, Some(SHARED_HINT))));
        }
    }
    visits.go(None)?;
    let mut members: HashSet<i32> = targets.iter().map(|target| target.pid).collect();
    members.insert(std::process::id() as i32);
    found.extend(visits.strangers(&members).into_iter().map(|(_, pid)| {
        let reason = format!("process {pid}, which is not part of the job, is in it, too");
        blocker(0, "IPC namespace".to_owned(), &reason, None)
    }));
    Ok(found)
}

/// Saves all objects of the stopped job. `own`: its home is an IPC namespace of its own; all others are.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming an object that cannot be saved.
pub fn save(
    frozen: &mut Frozen,
    own: bool,
    visits: &Visits,
    home: &Home,
    deadline: Instant,
    sink: &mut dyn PageSink,
) -> Result<(Ipc, Vec<IpcNamespace>)> {
    let mut members: HashSet<i32> = frozen.processes.iter().map(|process| process.pid).collect();
    members.insert(std::process::id() as i32);
    if let Some((_, pid)) = visits.strangers(&members).first() {
        let text = format!("process {pid}, which is not part of the job, is in an IPC namespace of the job's");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let mut of = HashMap::new();
    for process in frozen.processes.iter().filter(|process| !process.threads.is_empty()) {
        of.insert(process.pid, visits.known(&process.proc, home)?);
    }
    let mut ipc = Ipc::default();
    let mut namespaces = Vec::new();
    for namespace in std::iter::once(None).chain((0..visits.len()).map(Some)) {
        visits.go(namespace)?;
        let mut scene = Scene {
            frozen,
            own: own || namespace.is_some(),
            members: of
                .iter()
                .filter(|(_, other)| **other == namespace)
                .map(|(pid, _)| *pid)
                .collect(),
            namespace: namespace.map(|index| IpcNamespaceId(index as u32)),
            deadline,
        };
        scene.save(&mut ipc, sink)?;
        if namespace.is_none() && own {
            ipc.limits = settings::of_ipc()?;
        }
        if namespace.is_some() {
            namespaces.push(IpcNamespace {
                settings: settings::of_ipc()?,
                ..IpcNamespace::default()
            });
        }
    }
    visits.go(None)?;
    Ok((ipc, namespaces))
}

/// One namespace, which this thread is in, and the processes in it.
struct Scene<'a> {
    frozen: &'a mut Frozen,
    own: bool,
    members: HashSet<i32>,
    namespace: Option<IpcNamespaceId>,
    deadline: Instant,
}

impl Scene<'_> {
    fn identity(&self, object: &SysvObject) -> SysvIdentity {
        identity(object, self.namespace)
    }

    fn save(&mut self, ipc: &mut Ipc, sink: &mut dyn PageSink) -> Result<()> {
        self.segments(ipc, sink)?;
        if !self.own {
            return match shared_objects(&self.members)
                .context(|| "list System V objects")?
                .first()
            {
                None => Ok(()),
                Some(object) => Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{object}: whether only the job uses it cannot be told"),
                )
                .with_hint(SHARED_HINT)),
            };
        }
        self.semaphores(ipc)?;
        self.queues(ipc)
    }

    fn segments(&self, ipc: &mut Ipc, sink: &mut dyn PageSink) -> Result<()> {
        let inside = self
            .frozen
            .processes
            .iter()
            .filter(|process| self.members.contains(&process.pid));
        let maps = inside.filter_map(|process| process.space.as_ref());
        let used = attachments(maps.flat_map(|space| &space.maps));
        for segment in proc::sysv_segments().context(|| "list System V segments")? {
            let used = used.get(&(segment.object.id as u64)).copied().unwrap_or(0);
            if !belongs(&segment, used, &self.members, self.own) {
                continue;
            }
            let what = label("segment", &self.identity(&segment.object));
            // A process that has gone to another namespace since keeps what it has attached.
            let stays = (used > segment.attached).then_some("processes have one of another IPC namespace attached");
            if let Some(reason) = refuse(&segment, used).or(stays) {
                return Err(Error::new(ErrorKind::Unsupported, format!("{what}: {reason}")));
            }
            let identity = self.identity(&segment.object);
            ipc.segments
                .push(save_segment(&segment, identity, sink).context(|| format!("save {what}"))?);
        }
        Ok(())
    }

    fn semaphores(&mut self, ipc: &mut Ipc) -> Result<()> {
        for set in proc::sysv_semaphores().context(|| "list System V semaphores")? {
            let id = set.object.id;
            let identity = self.identity(&set.object);
            let what = || format!("save {}", label("semaphore set", &identity));
            let values = sysv::semaphore_values(id, set.count as usize).context(what)?;
            let mut semaphores = Vec::with_capacity(values.len());
            for (index, &value) in values.iter().enumerate() {
                semaphores.push((value, sysv::semaphore_pid(id, index).context(what)?));
            }
            let mut undone = Vec::new();
            // Only semop(2) makes adjustments.
            if set.otime != 0 {
                let members = &self.members;
                let inside = self.frozen.processes.iter_mut().filter(|p| members.contains(&p.pid));
                for process in inside.filter(|p| p.space.is_some()) {
                    let amounts = undo(process, id, &values, self.deadline).context(what)?;
                    undone.extend(amounts.into_iter().map(|(index, amount)| (process.pid, index, amount)));
                }
            }
            ipc.semaphores.push(SemaphoreSet {
                identity,
                operated: set.otime != 0,
                semaphores,
                undo: undone,
            });
        }
        Ok(())
    }

    fn queues(&self, ipc: &mut Ipc) -> Result<()> {
        for queue in proc::sysv_queues().context(|| "list System V message queues")? {
            let id = queue.object.id;
            let identity = self.identity(&queue.object);
            let what = || format!("save {}", label("message queue", &identity));
            let mut messages = Vec::new();
            while let Some((kind, text)) =
                sysv::peek_message(id, messages.len() as i64, queue.bytes as usize).context(what)?
            {
                messages.push((kind, Bytes(text)));
            }
            ipc.queues.push(SysvQueue {
                capacity: sysv::queue_capacity(id).context(what)?,
                identity,
                messages,
            });
        }
        Ok(())
    }
}

/// Numbers in the image of the segments that mappings name by their inode.
pub fn segment_ids(ipc: &Ipc) -> HashMap<(Option<IpcNamespaceId>, u64), SegmentId> {
    let numbered = ipc.segments.iter().zip(0..);
    numbered
        .map(|(segment, index)| {
            let identity = &segment.identity;
            ((identity.namespace, identity.id as u64), SegmentId(index))
        })
        .collect()
}

/// The size of the explicit huge pages that a segment consists of, 0 for ordinary ones. Only mappings show it.
fn huge_pages(memory: &Attachment) -> std::io::Result<u64> {
    let own = ProcDir::open(std::process::id() as i32)?;
    let flags = own.smaps_flags()?;
    let mapping = flags.iter().find(|flags| flags.start == memory.address());
    match mapping.is_some_and(|flags| flags.has(b"ht")) {
        false => Ok(0),
        true => own
            .page_size_at(memory.address())?
            .ok_or_else(|| std::io::ErrorKind::NotFound.into()),
    }
}

fn save_segment(segment: &SysvSegment, identity: SysvIdentity, sink: &mut dyn PageSink) -> Result<Segment> {
    let size = segment.size as usize;
    let memory = Attachment::new(segment.object.id, size, true).context(|| "attach it")?;
    let huge_pages = huge_pages(&memory).context(|| "look at it")?;
    // Reading a page that was never written would make one. Pages swapped out do not show, so then all are read.
    // Nor do huge pages that we have not touched.
    let resident = match segment.swapped {
        0 if huge_pages == 0 => memory.resident().context(|| "ask which pages are used")?,
        _ => vec![true; size.div_ceil(PAGE_SIZE)],
    };
    let mut extents: Vec<Extent> = Vec::new();
    let mut buffer = Vec::new();
    let mut page = 0;
    while page < resident.len() {
        let run = resident[page..]
            .iter()
            .take(CHUNK / PAGE_SIZE)
            .take_while(|r| **r)
            .count();
        let start = page * PAGE_SIZE;
        buffer.resize((run * PAGE_SIZE).min(size - start), 0);
        match huge_pages {
            0 => memory.read(start, &mut buffer),
            // There may be none left for one that was never touched, which would be the end of who reads it.
            _ => memory.read_huge(start, &mut buffer),
        }
        .context(|| "read it")?;
        buffer.resize(run * PAGE_SIZE, 0);
        for (index, data) in buffer.chunks(PAGE_SIZE).enumerate().filter(|(_, data)| !is_zero(data)) {
            let start = (start + index * PAGE_SIZE) as u64;
            sink.place(data, &mut |length, offset| {
                let length = length as u64;
                match extents.last_mut() {
                    Some(last) if last.start + last.length == start && last.offset + last.length == offset => {
                        last.length += length;
                    }
                    _ => extents.push(Extent { start, length, offset }),
                }
            })?;
        }
        page += run.max(1);
    }
    Ok(Segment {
        identity,
        size: segment.size,
        extents,
        huge_pages,
    })
}

/// Operations on one semaphore that leave its value as it is and add `amount` to the adjustment of whoever makes them.
pub fn adjusting_steps(index: u16, value: u16, amount: i32) -> Vec<SemaphoreStep> {
    let mut steps = Vec::new();
    let mut left = amount.abs();
    while left > 0 {
        let change = left.min(STEP) as i16;
        // An operation with SEM_UNDO is undone by its opposite.
        let up = SemaphoreStep {
            index,
            change,
            undo: amount < 0,
        };
        let down = SemaphoreStep {
            index,
            change: -change,
            undo: amount > 0,
        };
        // The value must stay within its limits on the way.
        steps.extend(if i32::from(value) <= SEMAPHORE_MAX - STEP {
            [up, down]
        } else {
            [down, up]
        });
        left -= i32::from(change);
    }
    steps
}

/// What the process would add to each of the semaphores with these values at its end, where that is not nothing.
///
/// semop(2) is all or nothing, and refuses what would move an adjustment out of its range with ERANGE, at once
/// (perform_atomic_semop_slow in ipc/sem.c). So the process is made to move its adjustment as far as it must not go if
/// it was above (or below) some bound, and then to do what cannot be done: EAGAIN means that it was not. Nothing is
/// ever changed by such a call.
fn undo(process: &mut Process, id: i32, values: &[u16], deadline: Instant) -> Result<Vec<(u16, i32)>> {
    let mut found = Vec::new();
    for (group, values) in values.chunks(TOGETHER).enumerate() {
        let first = group * TOGETHER;
        let probes: Vec<Probe> = (first..)
            .zip(values)
            .flat_map(|(index, &value)| {
                [1, -1].map(|sign| Probe {
                    index: index as u16,
                    value,
                    sign,
                    bound: 0,
                })
            })
            .collect();
        let Some(answers) = ask(process, id, &probes, deadline)? else {
            return Ok(Vec::new());
        };
        for (probe, _) in probes.into_iter().zip(answers).filter(|(_, beyond)| *beyond) {
            // Beyond `low`, and not beyond `high`.
            let (mut low, mut high) = (0, SEMAPHORE_MAX + 1);
            while high - low > 1 {
                let bound = low + (high - low) / 2;
                let answers = ask(process, id, &[Probe { bound, ..probe }], deadline)?.unwrap_or_default();
                if answers.first() == Some(&true) {
                    low = bound;
                } else {
                    high = bound;
                }
            }
            found.push((probe.index, probe.sign * high));
        }
    }
    Ok(found)
}

/// Is the adjustment of a semaphore, times `sign`, greater than `bound`?
#[derive(Clone, Copy)]
struct Probe {
    index: u16,
    value: u16,
    sign: i32,
    bound: i32,
}

impl Probe {
    fn steps(self) -> Vec<SemaphoreStep> {
        // Adjustments reach from -SEMAEM - 1 to SEMAEM.
        let room = if self.sign > 0 {
            SEMAPHORE_MAX
        } else {
            SEMAPHORE_MAX + 1
        };
        let mut steps = adjusting_steps(self.index, self.value, self.sign * (room - self.bound));
        steps.push(SemaphoreStep {
            index: self.index,
            change: (-i32::from(self.value) - 1) as i16,
            undo: false,
        });
        steps
    }
}

/// Answers to probes; none when the process may not change the set, and so has no adjustments.
fn ask(process: &mut Process, id: i32, probes: &[Probe], deadline: Instant) -> Result<Option<Vec<bool>>> {
    let mut batch = Batch::new();
    let calls: Vec<_> = probes
        .iter()
        .map(|probe| sysv::operate_call(&mut batch, id, &probe.steps()))
        .collect();
    let outcome = process.run(0, &batch, deadline)?;
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        answers.push(match outcome.raw(call) as i32 {
            code if code == -libc::EAGAIN => false,
            code if code == -libc::ERANGE => true,
            code if code == -libc::EACCES => return Ok(None),
            code => {
                let error = std::io::Error::from_raw_os_error(-code);
                return Err(error).context(|| format!("ask for the adjustments of process {}", process.pid));
            }
        });
    }
    Ok(Some(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What perform_atomic_semop_slow does.
    fn operate(value: &mut i32, adjustment: &mut i32, steps: &[SemaphoreStep]) -> Result<(), i32> {
        let (mut v, mut a) = (*value, *adjustment);
        for step in steps {
            v += i32::from(step.change);
            if v < 0 {
                return Err(libc::EAGAIN);
            }
            if v > SEMAPHORE_MAX {
                return Err(libc::ERANGE);
            }
            if step.undo {
                a -= i32::from(step.change);
                if !(-SEMAPHORE_MAX - 1..=SEMAPHORE_MAX).contains(&a) {
                    return Err(libc::ERANGE);
                }
            }
        }
        (*value, *adjustment) = (v, a);
        Ok(())
    }

    #[test]
    fn probes_tell_adjustments_from_bounds_and_change_nothing() {
        for value in [0u16, 1, 16_000, 16_767, 16_768, 32_766, 32_767] {
            for adjustment in [-32_768, -32_767, -16_001, -2, -1, 0, 1, 2, 16_000, 32_766, 32_767] {
                for (sign, bound) in [(1, 0), (1, 1), (1, 16_000), (1, 32_766), (-1, 0), (-1, 1), (-1, 32_767)] {
                    let probe = Probe {
                        index: 0,
                        value,
                        sign,
                        bound,
                    };
                    let (mut v, mut a) = (i32::from(value), adjustment);
                    let result = operate(&mut v, &mut a, &probe.steps());
                    let beyond = adjustment * sign > bound;
                    let wanted = if beyond { libc::ERANGE } else { libc::EAGAIN };
                    assert_eq!(
                        result,
                        Err(wanted),
                        "value {value}, adjustment {adjustment}, {sign} {bound}"
                    );
                }
                let (mut v, mut a) = (i32::from(value), 0);
                operate(&mut v, &mut a, &adjusting_steps(0, value, adjustment)).unwrap();
                assert_eq!((v, a), (i32::from(value), adjustment));
            }
        }
    }
}
