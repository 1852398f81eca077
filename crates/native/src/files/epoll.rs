//! epoll(7): the registered descriptors with their events and data, nesting included.
//!
//! A registration belongs to an open file description and the number it had when it was made, and the kernel takes the
//! number from the caller's own table. So [`register`] makes the calls in a process that holds the epoll set, with the
//! descriptor moved to that number for a moment where it is another one by now.
//!
//! A one-shot registration that has fired keeps reporting errors and hang-ups until it is armed again; the kernel
//! offers no way to make one that reports nothing.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{Descriptor, EpollTarget, FileId, Manifest, Object, OpenFile, Process};
use cpr_kernel::batch::Batch;
use cpr_kernel::event;
use cpr_kernel::proc::{EpollWatch, FdInfoKind};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::{Description, RestoreContext, SaveContext};

/// A descriptor of a process of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: i32,
    /// The number.
    pub fd: i32,
    /// What is open there.
    pub file: FileId,
}

/// Finds the open file description of every registration of the epoll set `handle`. `holders` are all descriptors of
/// the job, `holding` the processes that hold the set itself.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a description that is open in no process of the job, or in none that holds the set.
pub fn resolve(
    label: &str,
    handle: BorrowedFd<'_>,
    watches: &[EpollWatch],
    holders: &[Holder],
    holding: &[i32],
) -> Result<Vec<EpollTarget>> {
    let mut targets = Vec::with_capacity(watches.len());
    for (index, watch) in watches.iter().enumerate() {
        // Several descriptions can have been registered under one number; kcmp wants to know which is meant.
        let offset = watches[..index].iter().filter(|w| w.tfd == watch.tfd).count() as u32;
        let is_it = |holder: &Holder| -> Result<bool> {
            match event::is_registered(holder.pid, holder.fd, handle, watch.tfd, offset) {
                Ok(same) => Ok(same),
                // A zombie, or a descriptor of a process that is gone, is no candidate.
                Err(error) if [Some(3), Some(9)].contains(&error.raw_os_error()) => Ok(false),
                Err(error) => Err(error).context(|| {
                    format!(
                        "{label}: compare descriptor {} of process {} with epoll target {}",
                        holder.fd, holder.pid, watch.tfd
                    )
                }),
            }
        };
        let mut tried = HashSet::new();
        let mut found = None;
        // Nearly always it still is that number of a process that holds the set.
        let same_number = holders.iter().filter(|h| h.fd == watch.tfd && holding.contains(&h.pid));
        for holder in same_number.chain(holders) {
            if tried.insert(holder.file) && is_it(holder)? {
                found = Some(holder.file);
                break;
            }
        }
        let file = found.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{label}: the epoll set has a target (number {}, inode {}) that no process of the job has open",
                    watch.tfd, watch.ino
                ),
            )
        })?;
        // A set that is only in a message under way is filled by the restarter.
        if !holding.is_empty() && !holders.iter().any(|h| h.file == file && holding.contains(&h.pid)) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{label}: no process that has the epoll set open has its target (number {}) open, too",
                    watch.tfd
                ),
            ));
        }
        targets.push(EpollTarget {
            fd: watch.tfd,
            file,
            events: watch.events,
            data: watch.data,
        });
    }
    Ok(targets)
}

/// Saves an epoll set; all other files must have been saved.
///
/// # Errors
/// As [`resolve`], and [`ErrorKind::Internal`] when `description` is none.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let label = description.label();
    let FdInfoKind::Epoll(watches) = &description.info.kind else {
        return Err(Error::new(ErrorKind::Internal, format!("{label}: no epoll set")));
    };
    let holders = context.holders();
    let this = context.find_file(description.pid, description.fd);
    let holding: Vec<i32> = holders
        .iter()
        .filter(|holder| Some(holder.file) == this)
        .map(|holder| holder.pid)
        .collect();
    let targets = resolve(&label, description.handle.as_fd(), watches, &holders, &holding)?;
    Ok(Object::Epoll { targets })
}

/// Makes an empty epoll set; [`register`] fills it.
///
/// # Errors
/// The kernel makes none.
pub fn restore(_file: &OpenFile, _context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    make()
}

/// Makes an empty epoll set.
///
/// # Errors
/// The kernel makes none.
pub fn make() -> Result<OwnedFd> {
    rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)
        .map_err(std::io::Error::from)
        .context(|| "make an epoll set")
}

/// The process that makes a registration: the first that holds the set and has the file at the right number, else the
/// first that holds both.
fn registrar(manifest: &Manifest, epoll: FileId, target: &EpollTarget) -> Option<usize> {
    let has = |process: &Process, file: FileId| process.descriptors.iter().any(|d| d.file == file);
    let at_number = |process: &Process| descriptor(process, target.fd).is_some_and(|d| d.file == target.file);
    let holds = |process: &&Process| has(process, epoll);
    let position = |wanted: &dyn Fn(&Process) -> bool| {
        manifest
            .processes
            .iter()
            .position(|process| holds(&process) && wanted(process))
    };
    position(&at_number).or_else(|| position(&|process| has(process, target.file)))
}

fn descriptor(process: &Process, fd: i32) -> Option<&Descriptor> {
    process.descriptors.iter().find(|d| d.fd == fd)
}

/// The epoll sets of an image, inner ones before those they are registered in.
fn inner_first(manifest: &Manifest) -> Vec<FileId> {
    fn visit(manifest: &Manifest, id: FileId, seen: &mut HashSet<FileId>, order: &mut Vec<FileId>) {
        let Some(Object::Epoll { targets }) = manifest.files.get(id.index()).map(|file| &file.object) else {
            return;
        };
        if seen.insert(id) {
            for target in targets {
                visit(manifest, target.file, seen, order);
            }
            order.push(id);
        }
    }
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for index in 0..manifest.files.len() {
        visit(manifest, FileId(index as u32), &mut seen, &mut order);
    }
    order
}

/// Adds to `batch`, which is to be run in `process` (one of the manifest's) once all its descriptors are in place, the
/// registrations that are this process's to make. `spare` is a descriptor number that is free in the process while the
/// batch runs, see [`spare`].
///
/// # Errors
/// [`ErrorKind::Damaged`] for a registration that no process can make.
pub fn register(process: &Process, manifest: &Manifest, spare: i32, batch: &mut Batch) -> Result<()> {
    for id in inner_first(manifest) {
        let Some(Object::Epoll { targets }) = manifest.files.get(id.index()).map(|file| &file.object) else {
            continue;
        };
        for target in targets {
            if is_apart(manifest, id) {
                continue;
            }
            let chosen = registrar(manifest, id, target).and_then(|index| manifest.processes.get(index));
            match chosen {
                Some(chosen) if chosen.pid == process.pid => add(process, id, target, spare, batch),
                Some(_) => {}
                None => {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        format!(
                            "the image has epoll set {} but no process with both it and its target {}",
                            id.0, target.fd
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Whether no process has an epoll set open: it is in a message under way.
fn is_apart(manifest: &Manifest, epoll: FileId) -> bool {
    let mut descriptors = manifest.processes.iter().flat_map(|process| &process.descriptors);
    !descriptors.any(|descriptor| descriptor.file == epoll)
}

/// Makes the registrations of epoll sets that no process has open; `files` are ours for the files of the image.
///
/// # Errors
/// The kernel refuses one.
pub fn register_apart(manifest: &Manifest, files: &[Arc<OwnedFd>]) -> Result<()> {
    for id in inner_first(manifest).into_iter().filter(|id| is_apart(manifest, *id)) {
        let what = || format!("fill epoll set {}, which is in a message under way", id.0);
        let missing = || Error::new(ErrorKind::Damaged, what());
        let Some(Object::Epoll { targets }) = manifest.files.get(id.index()).map(|file| &file.object) else {
            continue;
        };
        let registrations = targets.iter().map(|target| {
            let file = files.get(target.file.index()).ok_or_else(missing)?;
            Ok(event::Registration {
                file: file.as_fd(),
                number: target.fd,
                events: target.events,
                data: target.data,
            })
        });
        let registrations = registrations.collect::<Result<Vec<_>>>()?;
        let set = files.get(id.index()).ok_or_else(missing)?;
        event::register_under_numbers(set.as_fd(), &registrations).context(what)?;
    }
    Ok(())
}

/// The lowest descriptor number from `from` on that a process of the image does not use.
pub fn spare(process: &Process, from: i32) -> i32 {
    let mut number = from;
    while descriptor(process, number).is_some() {
        number += 1;
    }
    number
}

fn add(process: &Process, epoll: FileId, target: &EpollTarget, spare: i32, batch: &mut Batch) {
    let find = |file: FileId| process.descriptors.iter().find(|d| d.file == file).map(|d| d.fd);
    // The registrar holds both.
    let (Some(mut set), Some(source)) = (find(epoll), find(target.file)) else {
        return;
    };
    let what = |verb: &str| {
        format!(
            "process {}: {verb} descriptor {} for epoll set {}",
            process.pid, target.fd, epoll.0
        )
    };
    let mut dup = |from: i32, to: i32, flags: i32, verb: &str| {
        batch.must(libc::SYS_dup3, &[from.into(), to.into(), flags.into()], what(verb));
    };
    let occupant = descriptor(process, target.fd);
    let in_place = occupant.is_some_and(|d| d.file == target.file);
    if !in_place {
        if occupant.is_some() {
            dup(target.fd, spare, libc::O_CLOEXEC, "move aside");
            if set == target.fd {
                set = spare; // it is the epoll set itself that is in the way
            }
        }
        dup(source, target.fd, libc::O_CLOEXEC, "open");
    }
    let event = batch.data(&event::epoll_event(target.events, target.data));
    batch.must(
        libc::SYS_epoll_ctl,
        &[set.into(), libc::EPOLL_CTL_ADD.into(), target.fd.into(), event],
        what("register"),
    );
    if in_place {
        return;
    }
    let unneeded = match occupant {
        Some(occupant) => {
            let flags = if occupant.close_on_exec { libc::O_CLOEXEC } else { 0 };
            batch.must(
                libc::SYS_dup3,
                &[spare.into(), target.fd.into(), flags.into()],
                what("put back"),
            );
            spare
        }
        None => target.fd,
    };
    batch.must(libc::SYS_close, &[unneeded.into()], what("close"));
}
