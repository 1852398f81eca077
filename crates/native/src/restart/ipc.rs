//! Making System V objects and POSIX message queues again.
//!
//! A job that had IPC namespaces of its own gets them in new ones, where all identifiers are free. Elsewhere an
//! identifier can be taken: then the restart fails, unless what has it is the very segment that the job left behind.

use std::os::fd::OwnedFd;

use cpr_image::model::{Ipc, IpcNamespaceId, Manifest, Segment, SemaphoreSet, SysvIdentity, SysvQueue};
use cpr_kernel::batch::Batch;
use cpr_kernel::proc;
use cpr_kernel::sysv::{self, Attachment, Kind, Ownership, SemaphoreStep};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use crate::files;
use crate::ipc::{SHM_DEST, SHM_LOCKED, adjusting_steps, label};
use crate::settings;
use crate::sink::PageSource;
use crate::visits::Visits;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Objects made for a job. Dropped before [`Objects::keep`], they are removed.
#[derive(Debug, Default)]
pub struct Objects {
    made: Vec<(Kind, i32)>,
    names: Vec<Vec<u8>>,
    /// POSIX queues by their number in the image; taken by whoever opens descriptors.
    pub queues: Vec<OwnedFd>,
}

impl Objects {
    /// They are the job's now.
    pub fn keep(mut self) {
        self.made.clear();
        self.names.clear();
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // On failure there is nobody to tell that one more thing failed.
        for (kind, id) in self.made.drain(..) {
            let _ = sysv::remove(kind, id);
        }
        for name in self.names.drain(..) {
            let _ = cpr_kernel::mqueue::unlink(&name);
        }
    }
}

fn owner(identity: &SysvIdentity) -> Ownership {
    Ownership {
        uid: identity.uid,
        gid: identity.gid,
        mode: identity.mode,
    }
}

fn place(namespace: Option<IpcNamespaceId>) -> Option<usize> {
    namespace.map(IpcNamespaceId::index)
}

/// Gives the namespace that was made for the job the limits it had; those that it cannot be given are noted.
///
/// # Errors
/// [`ErrorKind::Damaged`] for what is no such limit.
pub fn set_limits(ipc: &Ipc, notes: &mut Vec<String>) -> Result<()> {
    for limit in &ipc.limits {
        match settings::set_ipc_limits(std::slice::from_ref(limit)) {
            Err(error) if error.kind() == ErrorKind::Damaged => return Err(error),
            Err(error) => notes.push(format!("a limit of the job's IPC namespace is another one: {error}")),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Has the next objects get the identifiers that the job had chosen for them, where it has IPC namespaces to itself:
/// the one that was made for it, where that may have `own` limits, and those that it has made.
///
/// # Errors
/// The kernel refuses it.
pub fn choose_next(manifest: &Manifest, visits: &Visits, own: bool) -> Result<()> {
    if own {
        settings::choose_next(&manifest.ipc.limits)?;
    }
    for (index, namespace) in manifest.ipc_namespaces.iter().enumerate() {
        visits.within(Some(index), || settings::choose_next(&namespace.settings))?;
    }
    Ok(())
}

/// Makes all objects of the image, each in its namespace.
///
/// # Errors
/// [`ErrorKind::InUse`] for an identifier, key or name that is taken.
pub fn create(ipc: &Ipc, visits: &Visits, source: &dyn PageSource) -> Result<Objects> {
    let mut objects = Objects::default();
    for segment in &ipc.segments {
        visits.go(place(segment.identity.namespace))?;
        create_segment(segment, source, &mut objects)
            .context(|| format!("make {} again", label("segment", &segment.identity)))?;
    }
    for set in &ipc.semaphores {
        visits.go(place(set.identity.namespace))?;
        create_semaphores(set, &mut objects)
            .context(|| format!("make {} again", label("semaphore set", &set.identity)))?;
    }
    for queue in &ipc.queues {
        visits.go(place(queue.identity.namespace))?;
        create_queue(queue, &mut objects)
            .context(|| format!("make {} again", label("message queue", &queue.identity)))?;
    }
    // A queue without name may have had one that another has now: it is first to use it.
    let mut queues: Vec<_> = ipc.posix_queues.iter().enumerate().collect();
    queues.sort_by_key(|(_, queue)| !queue.unlinked);
    let mut made = Vec::with_capacity(queues.len());
    for (index, queue) in queues {
        visits.go(place(queue.namespace))?;
        made.push((index, files::mqueue::create(queue)?));
        // Others go with their namespaces.
        if !queue.unlinked && queue.namespace.is_none() {
            objects.names.push(queue.name.0.clone());
        }
    }
    visits.go(None)?;
    made.sort_by_key(|(index, _)| *index);
    objects.queues = made.into_iter().map(|(_, fd)| fd).collect();
    Ok(objects)
}

/// Makes an object with its old identifier and key; with its size goes that of explicit huge pages that it consists of.
fn make(kind: Kind, identity: &SysvIdentity, (size, huge_pages): (u64, u64), objects: &mut Objects) -> Result<()> {
    let wanted = identity.id;
    // What was removed while attached has lost its key to whoever wants it.
    let key = if identity.mode & SHM_DEST != 0 { 0 } else { identity.key };
    let requested = sysv::request_id(kind, wanted);
    let made = sysv::create(kind, key, size, 0o600, huge_pages);
    if requested.is_ok() && made.is_err() {
        // The wish would be granted to whoever makes the next one.
        let _ = sysv::request_id(kind, -1);
    }
    let id = made.context(|| "create it").map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::new(ErrorKind::InUse, "its key is in use")
            .with_hint("remove what has it with ipcrm(1), or restart with --namespace always"),
        _ => error,
    })?;
    // Others go with their namespaces.
    if identity.namespace.is_none() {
        objects.made.push((kind, id));
    }
    if id == wanted {
        return Ok(());
    }
    Err(match requested {
        Ok(()) => Error::new(ErrorKind::InUse, "its identifier is in use")
            .with_hint("remove what has it with ipcrm(1), or restart with --namespace always"),
        Err(error) => Error::new(ErrorKind::Denied, "it cannot be given its old identifier")
            .with_source(error)
            .with_hint("restart as root, or run the job with an IPC namespace of its own (without --share-ipc)"),
    })
}

/// Whether the segment is there as the job left it, attached nowhere.
fn left_behind(segment: &Segment) -> Result<bool> {
    let all = proc::sysv_segments().context(|| "list System V segments")?;
    let then = &segment.identity;
    Ok(all.iter().any(|now| {
        let object = &now.object;
        let same = (object.id, object.key, object.uid, object.gid) == (then.id, then.key, then.uid, then.gid);
        same && object.ctime == then.ctime && now.size == segment.size && now.attached == 0
    }))
}

fn create_segment(segment: &Segment, source: &dyn PageSource, objects: &mut Objects) -> Result<()> {
    let id = segment.identity.id;
    let there = left_behind(segment)?;
    if !there {
        let size = (segment.size, segment.huge_pages);
        make(Kind::Memory, &segment.identity, size, objects).map_err(|error| match segment.huge_pages {
            0 => error,
            _ => error
                .with_hint("it consists of huge pages: see vm.nr_hugepages; root or vm.hugetlb_shm_group may make it"),
        })?;
    }
    let memory = Attachment::new(id, segment.size as usize, false).context(|| "attach it")?;
    if there {
        clear(segment, &memory)?;
    }
    let mut buffer = vec![0; CHUNK as usize];
    for extent in &segment.extents {
        // The last page of an extent can go beyond the end.
        let end = (extent.start + extent.length).min(segment.size);
        let mut at = extent.start;
        while at < end {
            let piece = &mut buffer[..(end - at).min(CHUNK) as usize];
            source.read(extent.offset + (at - extent.start), piece)?;
            write(segment, &memory, at, piece).context(|| "fill it")?;
            at += piece.len() as u64;
        }
    }
    if there {
        return Ok(());
    }
    if segment.identity.mode & SHM_LOCKED != 0 {
        sysv::lock_memory(id).context(|| "lock it into RAM (see `ulimit -l`)")?;
    }
    sysv::own_memory(id, owner(&segment.identity)).context(|| "set its owner")
}

fn write(segment: &Segment, memory: &Attachment, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    match segment.huge_pages {
        0 => memory.write(at as usize, bytes),
        _ => memory.write_huge(at as usize, bytes),
    }
}

/// Writes zeros to what the image has no data of.
fn clear(segment: &Segment, memory: &Attachment) -> Result<()> {
    let page = cpr_kernel::memory::PAGE;
    let resident = match segment.huge_pages {
        0 => memory.resident().context(|| "ask which pages are used")?,
        // Of these it does not show.
        _ => vec![true; segment.size.div_ceil(page) as usize],
    };
    for (at, _) in (0..)
        .step_by(page as usize)
        .zip(resident)
        .filter(|(_, resident)| *resident)
    {
        let length = (segment.size - at).min(page);
        let covered = segment.extents.iter().any(|e| e.start <= at && at < e.start + e.length);
        if !covered {
            write(segment, memory, at, &vec![0; length as usize]).context(|| "clear it")?;
        }
    }
    Ok(())
}

fn create_semaphores(set: &SemaphoreSet, objects: &mut Objects) -> Result<()> {
    make(
        Kind::Semaphores,
        &set.identity,
        (set.semaphores.len() as u64, 0),
        objects,
    )?;
    let values: Vec<u16> = set.semaphores.iter().map(|(value, _)| *value).collect();
    sysv::set_semaphore_values(set.identity.id, &values).context(|| "set its values")?;
    sysv::own_semaphores(set.identity.id, owner(&set.identity)).context(|| "set its owner")
}

fn create_queue(queue: &SysvQueue, objects: &mut Objects) -> Result<()> {
    let id = queue.identity.id;
    make(Kind::Messages, &queue.identity, (0, 0), objects)?;
    let own = |mode: u32| {
        let ownership = Ownership {
            mode,
            ..owner(&queue.identity)
        };
        sysv::own_queue(id, ownership, queue.capacity).context(|| "set its owner and size (see kernel.msgmnb)")
    };
    own(0o600)?;
    for (kind, text) in &queue.messages {
        sysv::send_message(id, *kind, &text.0).context(|| "fill it")?;
    }
    own(queue.identity.mode)
}

/// What processes have done to semaphores is done again by them: adjustments for their end, and who was last.
///
/// # Errors
/// A process may not.
pub fn operate(workshop: &Workshop, manifest: &Manifest) -> Result<()> {
    for set in &manifest.ipc.semaphores {
        let inside = super::living(manifest).filter(|process| process.ipc_namespace == set.identity.namespace);
        let living: Vec<i32> = inside.map(|process| process.pid).collect();
        let id = set.identity.id;
        let what = || format!("restore {}", label("semaphore set", &set.identity));
        let mut calls: Vec<(i32, Vec<SemaphoreStep>)> = Vec::new();
        for &(pid, index, amount) in set.undo.iter().filter(|(pid, ..)| living.contains(pid)) {
            let (value, _) = set.semaphores.get(usize::from(index)).copied().unwrap_or_default();
            calls.push((pid, adjusting_steps(index, value, amount)));
        }
        let last = |(index, &(value, pid)): (usize, &(u16, i32))| (index as u16, value, pid);
        let last: Vec<_> = set.semaphores.iter().enumerate().map(last).collect();
        if !set.operated {
            for &(index, value, pid) in last.iter().filter(|(.., pid)| living.contains(pid)) {
                let mut batch = Batch::new();
                let call = sysv::set_value_call(&mut batch, id, usize::from(index), value);
                let outcome = workshop.run(pid, &batch).context(what)?;
                outcome.result(call).context(what)?;
            }
            continue;
        }
        let touches = last.iter().filter(|(.., pid)| living.contains(pid));
        let before = calls.len();
        calls.extend(touches.map(|&(index, value, pid)| (pid, touch(index, value))));
        if let (true, Some(first), Some(&(index, value, _))) = (calls.len() == before, living.first(), last.first()) {
            calls.push((*first, touch(index, value)));
        }
        for (pid, steps) in calls {
            let mut batch = Batch::new();
            let call = sysv::operate_call(&mut batch, id, &steps);
            let outcome = workshop.run(pid, &batch).context(what)?;
            outcome.result(call).context(what)?;
        }
    }
    Ok(())
}

/// Steps that change nothing but who was last, and when.
fn touch(index: u16, value: u16) -> Vec<SemaphoreStep> {
    let change = if value == 0 { 1 } else { -1 };
    [change, -change]
        .map(|change| SemaphoreStep {
            index,
            change,
            undo: false,
        })
        .to_vec()
}

/// Removes what had been removed: all processes have attached it now.
///
/// # Errors
/// It cannot be removed.
pub fn remove_again(ipc: &Ipc, visits: &Visits) -> Result<()> {
    for segment in ipc.segments.iter().filter(|s| s.identity.mode & SHM_DEST != 0) {
        visits.go(place(segment.identity.namespace))?;
        sysv::remove(Kind::Memory, segment.identity.id)
            .context(|| format!("remove {} again", label("segment", &segment.identity)))?;
    }
    visits.go(None)
}
