//! Finding all open file descriptions of stopped processes, and saving them.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use cpr_image::model::{Descriptor, FileId, Object, OpenFile, PosixLock};
use cpr_kernel::batch::{Batch, CallId};
use cpr_kernel::proc::{FdInfo, LockLine, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{OFlags, Stat};
use rustix::process::PidfdGetfdFlags;

use super::epoll::Holder;
use super::kind::{self, Kind};
use super::{Description, PolicyState, SaveContext, Target};
use super::{
    device, epoll, eventfd, fanotify, inotify, io_uring, locks, mqueue, pidfd, pipe, regular, signalfd, socket,
    terminal, timerfd,
};
use crate::freeze::Process;

/// A description and what has become of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub description: Arc<Description>,
    kind: Kind,
    /// It leads out of the job and is this standard stream of the root process.
    stream: Option<i32>,
    object: Option<Object>,
}

/// What descriptions must have in common to be one.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    position: u64,
    flags: i32,
    link: Vec<u8>,
}

impl Key {
    fn new(link: &[u8], info: &FdInfo, stat: &Stat) -> Key {
        Key {
            device: stat.st_dev,
            inode: stat.st_ino,
            position: info.pos,
            flags: kind::flags(info),
            link: link.to_vec(),
        }
    }
}

/// Descriptions by what they look like; those that look alike in the order of kcmp(2).
#[derive(Default)]
struct Index(HashMap<Key, Vec<usize>>);

impl Index {
    /// Position of the description that `compare` finds equal, or where to insert it among its like.
    fn find(&self, key: &Key, mut compare: impl FnMut(usize) -> Result<Ordering>) -> Result<Result<usize, usize>> {
        let alike = self.0.get(key).map_or(&[][..], Vec::as_slice);
        let (mut low, mut high) = (0, alike.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match compare(alike[middle])? {
                Ordering::Equal => return Ok(Ok(alike[middle])),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }
}

/// Saves all files of the processes, which must all be stopped. Per target: its descriptors and record locks.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for the first thing that cannot be saved; others when a process has gone.
pub fn save(context: &mut SaveContext<'_>) -> Result<Vec<(Vec<Descriptor>, Vec<PosixLock>)>> {
    let tables = shared_tables(context.targets)?;
    if let Some((_, why)) = tables.refused.into_iter().next() {
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    context.table_of_parent = tables.with_parent;
    let mut processes = collect(context)?;
    if let Some(pid) = context.requester {
        context.ends.add_pipes_of(pid);
    }
    // Sockets first, since messages under way can hold any other file.
    for index in 0..context.entries.len() {
        if context.entries[index].kind == Kind::Socket {
            save_socket(index, context)?;
        }
    }
    socket::finish(context)?;
    find_streams(context)?;
    split_streams(context, &mut processes);
    let watches = |kind: &Kind| matches!(kind, Kind::Inotify | Kind::Fanotify);
    let later = |kind: &Kind| matches!(kind, Kind::Epoll | Kind::ControllingTerminal) || watches(kind);
    save_objects(context, |kind| !later(kind))?;
    save_objects(context, watches)?;
    save_objects(context, |kind| *kind == Kind::ControllingTerminal)?;
    terminal::finish(context)?;
    save_objects(context, |kind| *kind == Kind::Epoll)?;
    let policies = &context.policies;
    let files = context.entries.iter().map(|entry| open_file(entry, policies));
    context.files = files.collect::<Result<_>>()?;
    Ok(processes)
}

/// Descriptors a process is asked about at a time.
const ASKED: usize = 64;

/// Finds out which descriptors of a stopped process exec(2) closes, where /proc does not tell: some calls that take
/// O_CLOEXEC (TIOCGPTPEER, epoll_create1, eventfd, timerfd_create) leave it with the flags of the open file, and then
/// /proc shows it for all descriptors of that, copies that are not closed among them.
///
/// # Errors
/// The process cannot be asked.
pub fn ask_about_exec(
    context: &SaveContext<'_>,
    process: &mut Process,
    descriptors: &mut [Descriptor],
    deadline: Instant,
) -> Result<()> {
    let is_doubtful = |descriptor: &&mut Descriptor| {
        let entry = context.entries.get(descriptor.file.index());
        let flags = entry.and_then(|entry| rustix::fs::fcntl_getfl(&entry.description.handle).ok());
        descriptor.close_on_exec && flags.is_some_and(|flags| flags.contains(OFlags::CLOEXEC))
    };
    let mut doubtful: Vec<&mut Descriptor> = descriptors.iter_mut().filter(is_doubtful).collect();
    for group in doubtful.chunks_mut(ASKED) {
        let mut batch = Batch::new();
        let ask = |descriptor: &&mut Descriptor| {
            let arguments = [descriptor.fd.into(), libc::F_GETFD.into()];
            batch.must(
                libc::SYS_fcntl,
                &arguments,
                format!("look at descriptor {}", descriptor.fd),
            )
        };
        let calls: Vec<CallId> = group.iter().map(ask).collect();
        let outcome = process.run(0, &batch, deadline)?;
        for (descriptor, call) in group.iter_mut().zip(calls) {
            descriptor.close_on_exec = outcome.raw(call) & i64::from(libc::FD_CLOEXEC) != 0;
        }
    }
    Ok(())
}

/// Which processes share their table of descriptors with another.
#[derive(Debug, Default)]
pub(super) struct SharedTables {
    /// Processes that have their parent's table.
    pub with_parent: HashSet<i32>,
    /// What cannot be made again: the process and why.
    pub refused: Vec<(i32, String)>,
}

/// Processes that share a table, and processes whose threads have tables of their own. A table can be shared again by
/// being born with it, so only with one's parent.
pub(super) fn shared_tables(targets: &[Target]) -> Result<SharedTables> {
    let mut found = SharedTables::default();
    let mut sorted: Vec<i32> = Vec::with_capacity(targets.len());
    // Of a process whose main thread has ended another one is compared.
    let acting: HashMap<i32, i32> = targets.iter().map(|one| (one.pid, one.proc.acting())).collect();
    let acting = |pid: i32| acting.get(&pid).copied().unwrap_or(pid);
    let compare = |one: i32, other: i32| {
        cpr_kernel::fd::compare_tables(acting(one), acting(other))
            .context(|| format!("compare the descriptor tables of {one} and {other}"))
            .map_err(|e| e.with_hint("the kernel needs CONFIG_KCMP"))
    };
    for target in targets {
        let (mut low, mut high) = (0, sorted.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match compare(sorted[middle], target.pid)? {
                Ordering::Equal => {
                    let other = sorted[middle];
                    let parent = target.proc.stat().map_or(0, |stat| stat.ppid);
                    let in_job = targets.iter().any(|one| one.pid == parent);
                    if in_job && compare(parent, target.pid)? == Ordering::Equal {
                        found.with_parent.insert(target.pid);
                    } else {
                        let why = format!("processes {other} and {} share one table of descriptors", target.pid);
                        found.refused.push((target.pid, why));
                    }
                    break;
                }
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        if low == high {
            sorted.insert(low, target.pid);
        }
        let threads = target
            .proc
            .tasks()
            .context(|| format!("list the threads of {}", target.pid))?;
        for thread in threads.into_iter().filter(|tid| *tid != target.pid) {
            if compare(target.pid, thread)? != Ordering::Equal {
                let why = format!("thread {thread} of process {} has descriptors of its own", target.pid);
                found.refused.push((target.pid, why));
            }
        }
    }
    Ok(found)
}

/// Finds all descriptors and the descriptions behind them.
fn collect(context: &mut SaveContext<'_>) -> Result<Vec<(Vec<Descriptor>, Vec<PosixLock>)>> {
    let own = std::process::id() as i32;
    let mut index = Index::default();
    let mut processes = Vec::with_capacity(context.targets.len());
    for target in context.targets {
        let mut descriptors = Vec::new();
        let mut posix = Vec::new();
        if context.table_of_parent.contains(&target.pid) {
            processes.push((descriptors, Vec::new()));
            continue;
        }
        let numbers = target
            .proc
            .descriptors()
            .context(|| format!("process {}: list the descriptors", target.pid))?;
        for fd in numbers {
            let what = || format!("process {}, descriptor {fd}: look at it", target.pid);
            let link = target.proc.fd_link(fd).context(what)?;
            let info = target.proc.fdinfo(fd).context(what)?;
            let stat = target.proc.fd_stat(fd).context(what)?;
            if target.pid == context.root_pid {
                context.streams.note(fd, &stat);
            }
            locks::posix_locks(fd, &info, &mut posix);
            let close_on_exec = OFlags::from_bits_retain(info.flags as u32).contains(OFlags::CLOEXEC);
            let key = Key::new(&link, &info, &stat);
            let place = index.find(&key, |known| {
                let handle = context.entries[known].description.handle.as_raw_fd();
                cpr_kernel::fd::compare_files(own, handle, target.proc.acting(), fd)
                    .context(|| format!("process {}, descriptor {fd}: compare it with others", target.pid))
                    .map_err(|e| e.with_hint("the kernel needs CONFIG_KCMP"))
            })?;
            let id = match place {
                Ok(known) => known,
                Err(place) => {
                    let handle = get(target, fd)?;
                    let kind = kind::classify(target.pid, fd, &link, &info, &stat);
                    let description = Description {
                        view: context.views.of_mount(info.mnt_id),
                        pid: target.pid,
                        fd,
                        link,
                        info,
                        stat,
                        handle: Arc::new(handle),
                    };
                    let id = add(context, kind, description);
                    index.0.entry(key).or_default().insert(place, id);
                    id
                }
            };
            let file = FileId(id as u32);
            context.holders.push(Holder {
                pid: target.pid,
                fd,
                file,
            });
            descriptors.push(Descriptor {
                fd,
                file,
                close_on_exec,
            });
        }
        processes.push((descriptors, checked_locks(target.pid, posix)?));
    }
    Ok(processes)
}

fn checked_locks(pid: i32, locks: Vec<(LockLine, PosixLock)>) -> Result<Vec<PosixLock>> {
    match locks.iter().find(|(_, lock)| lock.fd < 0) {
        Some((line, _)) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "process {pid} holds a lock on inode {} that none of its descriptors can take",
                line.inode
            ),
        )),
        None => Ok(locks.into_iter().map(|(_, lock)| lock).collect()),
    }
}

/// A descriptor of ours for the description behind descriptor `fd` of a process.
///
/// # Errors
/// The process has closed it, or there is no room for another descriptor.
pub fn get(target: &Target, fd: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_getfd(&target.pidfd, fd, PidfdGetfdFlags::empty())
        .map_err(std::io::Error::from)
        .context(|| format!("process {}, descriptor {fd}: get a copy of it", target.pid))
        .map_err(|e| match e.kind() {
            ErrorKind::NoSpace => e.with_hint("raise the limit on open files (ulimit -n)"),
            _ => e,
        })
}

fn add(context: &mut SaveContext<'_>, kind: Kind, description: Description) -> usize {
    let views = &context.views;
    context.ends.add(&kind, &description.info, &description.stat, views);
    context.entries.push(Entry {
        description: Arc::new(description),
        kind,
        stream: None,
        object: None,
    });
    context.entries.len() - 1
}

impl SaveContext<'_> {
    /// The entry for a description found in a message under way; `handle` is a descriptor of ours for it.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn intern_description(&mut self, handle: OwnedFd) -> Result<FileId> {
        let own = std::process::id() as i32;
        let fd = handle.as_raw_fd();
        let what = || "look at a descriptor in a message under way";
        let proc = ProcDir::open(own).context(what)?;
        let link = proc.fd_link(fd).context(what)?;
        let info = proc.fdinfo(fd).context(what)?;
        let stat = rustix::fs::fstat(&handle).map_err(std::io::Error::from).context(what)?;
        let key = Key::new(&link, &info, &stat);
        for (id, entry) in self.entries.iter().enumerate() {
            let other = &entry.description;
            if Key::new(&other.link, &other.info, &other.stat) == key {
                let order = cpr_kernel::fd::compare_files(own, other.handle.as_raw_fd(), own, fd).context(what)?;
                if order == Ordering::Equal {
                    return Ok(FileId(id as u32));
                }
            }
        }
        let kind = kind::classify(own, fd, &link, &info, &stat);
        let is_socket = kind == Kind::Socket;
        let description = Description {
            view: self.views.of_mount(info.mnt_id),
            pid: 0,
            fd,
            link,
            info,
            stat,
            handle: Arc::new(handle),
        };
        let id = add(self, kind, description);
        if is_socket {
            save_socket(id, self)?;
        }
        Ok(FileId(id as u32))
    }
}

fn save_socket(index: usize, context: &mut SaveContext<'_>) -> Result<()> {
    let Some(description) = context.description(index) else {
        return Ok(());
    };
    let handle = description.handle.as_fd();
    let stream = context.streams.find(description.fd, &description.stat);
    if stream.is_some()
        && context
            .ends
            .is_external_socket(&description.stat, handle, context.networks)?
    {
        context.entries[index].stream = stream;
        return Ok(());
    }
    let object = socket::save(&description, context)?;
    context.entries[index].object = Some(object);
    Ok(())
}

/// Finds descriptions that lead out of the job: they must be standard streams.
fn find_streams(context: &mut SaveContext<'_>) -> Result<()> {
    for entry in &mut context.entries {
        let description = &entry.description;
        let is_pipe = entry.kind == Kind::Pipe;
        let external = match &entry.kind {
            Kind::Pipe => {
                let handle = description.handle.as_fd();
                let flags = description.info.flags;
                context
                    .ends
                    .is_external_pipe(flags, &description.stat, handle)
                    .context(|| description.label())?
            }
            Kind::Terminal(side) => {
                let system = context.views.terminals(description.stat.st_dev);
                // One of another file system than the job's own is nobody's standard stream.
                system.is_none()
                    && context.ends.is_external_terminal(*side, system)
                    && !terminal::is_hung_up(description.handle.as_fd())?
            }
            Kind::OtherDevice(_) => device::plugin(&description.link, context.devices.as_deref()).is_none(),
            _ => false,
        };
        if !external {
            continue;
        }
        entry.stream = context.streams.find(description.fd, &description.stat);
        if is_pipe && entry.stream.is_none() {
            return Err(external_pipe(&description.label()));
        }
    }
    Ok(())
}

fn external_pipe(label: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{label}: the other end of the pipe is outside the job"),
    )
    .with_hint("checkpoint both sides together, or use one of the standard streams for it")
}

/// Gives each standard stream a file of its own where one description serves several: a restart may be given different
/// ones.
fn split_streams(context: &mut SaveContext<'_>, processes: &mut [(Vec<Descriptor>, Vec<PosixLock>)]) {
    let mut split: HashMap<(usize, i32), FileId> = HashMap::new();
    let all = processes.iter_mut().flat_map(|(descriptors, _)| descriptors.iter_mut());
    for (descriptor, holder) in all.zip(&mut context.holders) {
        let index = descriptor.file.index();
        let Some(first) = context.entries[index].stream else {
            continue;
        };
        let description = Arc::clone(&context.entries[index].description);
        let Some(stream) = context
            .streams
            .find(descriptor.fd, &description.stat)
            .filter(|s| *s != first)
        else {
            continue;
        };
        let id = *split.entry((index, stream)).or_insert_with(|| {
            let kind = context.entries[index].kind.clone();
            context.entries.push(Entry {
                description,
                kind,
                stream: Some(stream),
                object: None,
            });
            FileId(context.entries.len() as u32 - 1)
        });
        (descriptor.file, holder.file) = (id, id);
    }
}

/// Saves the objects of those kinds that have not been saved.
fn save_objects(context: &mut SaveContext<'_>, wanted: impl Fn(&Kind) -> bool) -> Result<()> {
    let mut index = 0;
    while let Some(description) = context.description(index) {
        let entry = &context.entries[index];
        let (kind, stream) = (entry.kind.clone(), entry.stream);
        if entry.object.is_none() && wanted(&kind) {
            let object = match stream {
                Some(stream) => {
                    if matches!(kind, Kind::Terminal(_)) {
                        // Its settings are saved all the same.
                        terminal::save(&description, context)?;
                    }
                    Object::Inherited { stream }
                }
                None => save_object(&description, &kind, context)?,
            };
            context.entries[index].object = Some(object);
        }
        index += 1;
    }
    Ok(())
}

fn save_object(description: &Description, kind: &Kind, context: &mut SaveContext<'_>) -> Result<Object> {
    if description.view.is_some() && matches!(kind, Kind::Proc(..)) {
        let text = format!(
            "{}: of what is mounted in a mount namespace of the job's own, only files, directories, FIFOs and devices that are open are saved",
            description.label()
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if description.view.is_some() && matches!(kind, Kind::Terminal(_)) && is_of_other_terminals(description, context) {
        let text = format!(
            "{}: a terminal of a file system of terminals that is mounted in no mount namespace of the job",
            description.label()
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if matches!(kind, Kind::Regular | Kind::Proc(None, _)) {
        let handle = description.handle.as_fd();
        regular::refuse_trigger(&description.link, description.info.flags, handle, &description.label())?;
    }
    match kind {
        Kind::Regular => regular::save(description, context),
        Kind::Memfd => regular::save_memfd(description, context),
        Kind::Directory => regular::save_directory(description, context),
        Kind::Path => regular::save_path(description, context),
        Kind::Device => regular::save_device(description, None, context),
        Kind::OtherDevice(reason) => device::save_other(description, reason, context),
        Kind::ControllingTerminal => regular::save_controlling_terminal(description, context),
        Kind::Proc(pid, path) => regular::save_proc(description, *pid, path, context),
        Kind::Pipe => pipe::save(description, context),
        Kind::Fifo => pipe::save_fifo(description, context),
        Kind::Terminal(_) => terminal::save(description, context),
        Kind::Socket => socket::save(description, context),
        Kind::EventFd => eventfd::save(description, context),
        Kind::TimerFd => timerfd::save(description, context),
        Kind::SignalFd => signalfd::save(description, context),
        Kind::Epoll => epoll::save(description, context),
        Kind::Inotify => inotify::save(description, context),
        Kind::Fanotify => fanotify::save(description, context),
        Kind::IoUring => io_uring::save(description, context),
        Kind::PidFd => pidfd::save(description, context),
        Kind::MessageQueue => mqueue::save(description, context),
        Kind::Unsupported(reason, hint) => {
            let error = Error::new(ErrorKind::Unsupported, format!("{}: {reason}", description.label()));
            Err(match hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
    }
}

/// Whether a terminal is of another file system of terminals than that of the job's own mount namespace, where numbers
/// mean other ones.
fn is_of_other_terminals(description: &Description, context: &SaveContext<'_>) -> bool {
    const DEVPTS_MAGIC: u64 = 0x1cd1;
    let own = context.views.stat(None, b"/dev/pts").map(|stat| stat.st_dev);
    let is_any = rustix::fs::fstatfs(&description.handle).is_ok_and(|fs| fs.f_type as u64 == DEVPTS_MAGIC);
    let device = description.stat.st_dev;
    is_any && !own.is_ok_and(|own| own == device) && context.views.terminals(device).is_none()
}

/// Whether an object is opened again by a path.
fn has_view(object: &Object) -> bool {
    matches!(
        object,
        Object::Regular(_) | Object::Directory { .. } | Object::Fifo(_) | Object::Device { node: None, .. }
    )
}

fn open_file(entry: &Entry, policies: &PolicyState) -> Result<OpenFile> {
    let description = &entry.description;
    let info = &description.info;
    let object = entry
        .object
        .clone()
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{}: not saved", description.label())))?;
    let position = match object {
        Object::Regular(_)
        | Object::Directory { .. }
        | Object::Saved(_)
        | Object::Proc { .. }
        | Object::DeadProc { .. } => info.pos,
        _ => 0,
    };
    let inherited = matches!(object, Object::Inherited { .. });
    let owner = if inherited { None } else { locks::owner(description)? };
    if matches!(object, Object::Directory { .. }) && owner.as_ref().is_some_and(|owner| owner.id != 0) {
        let text = format!(
            "{}: a process is told of changes in the directory by signal (F_NOTIFY), which is not saved",
            description.label()
        );
        return Err(Error::new(ErrorKind::Unsupported, text).with_hint("have the program use inotify(7)"));
    }
    // Rules are about files that the job's own namespace shows, too.
    let has_rule = matches!(&object, Object::Regular(file) if policies.verdict(&file.path.0).is_some());
    Ok(OpenFile {
        flags: kind::flags(info),
        position,
        owner,
        flock: locks::flock(info).filter(|_| !inherited),
        locker: locks::locker(info),
        lease: locks::lease(info).filter(|_| !inherited),
        ofd_locks: locks::ofd_locks(info),
        mount_namespace: description.view.filter(|_| has_view(&object) && !has_rule),
        object,
    })
}
