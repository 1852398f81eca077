//! Restarting a job from an image.
//!
//! # Order
//! Look at everything that could fail; make all processes as stopped stubs, parents first; open all files in our own
//! process; rebuild memory, descriptors, threads and kernel state of each process by batches of system calls run in
//! it; check every byte of the image; only then let all threads go at once. A lazy restart leaves memory out and
//! has it come later ([`lazy`]).
//!
//! # Crash consistency
//! Until then every stub dies with us (PTRACE_O_EXITKILL), and an error kills them all ([`stub::Workshop`]).

mod aio;
mod check;
mod filters;
mod host_names;
mod huge;
mod identity;
mod inherit;
mod ipc;
mod lazy;
mod log;
mod memory_files;
mod mount_tree;
mod mounts;
mod numbers;
mod plan;
mod space;
mod spaces;
mod stub;
mod trust;
mod users;
mod vdso;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Manifest, MappedFile, Mapping, MappingKind, Process, ProcessState, SavedFileId};
use cpr_kernel::arch::Registers;
use cpr_kernel::batch::{Arg, Batch, OutId};
use cpr_kernel::memory::PAGE;
use cpr_kernel::process::{self, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, FileIdentity, PidFd, Without};
use cpr_kernel::ptrace::{Tracee, block_child_signals};
use cpr_kernel::remote::{self, Deferred};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::callbacks::{Rebirth, tell_restart};
use crate::files::terminal::JobControl;
use crate::files::{self, Meeting, RestoreContext, SharedMemory};
use crate::views::Views;
use crate::{cgroups, freeze, mapped, networks};
use filters::When;
use identity::Rights;
use plan::Step;
use space::Sources;
use spaces::{Inside, Spaces};
use stub::Workshop;

/// Refuses an image whose processes no order of steps would make.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the process.
pub fn refuse_unplanned(manifest: &Manifest) -> Result<()> {
    plan::of(manifest)
        .map(drop)
        .map_err(|error| error.with_kind(ErrorKind::Unsupported))
}

pub use check::{available_memory, check_restart};
pub use lazy::{LazyRequest, Pages};

/// Longest any single step of a restart may take.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// Most descriptors handed over at a time.
const HANDED: usize = 64;
/// PR_TIMER_CREATE_RESTORE_IDS (Linux 6.16) and its values.
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// SIGEV_THREAD_ID.
const NOTIFY_THREAD: i32 = 4;
/// Linux 6.3.
const PR_SET_MDWE: i32 = 65;

/// What to restart, and with what.
pub struct RestartRequest<'a> {
    /// The image.
    pub image: &'a Image,
    /// Standard streams for the job.
    pub streams: [Option<OwnedFd>; 3],
    /// The job's terminal.
    pub terminal: Option<OwnedFd>,
    /// What the caller is to that terminal.
    pub job_control: JobControl,
    /// We are init of a PID namespace made for the job.
    pub own_pid_namespace: bool,
    /// What programs that use libgridcpr are told; the image is put in here.
    pub rebirth: Rebirth,
    /// Where the output of this job goes when it is in the background. What went into the log of the job that was saved
    /// goes to the standard streams of this one, unless it is the same file.
    pub log: Option<PathBuf>,
    /// Let the job run before its memory is there.
    pub lazy: Option<LazyRequest>,
    /// Called when all is there, before files are changed and anything runs. Where it fails nothing is left.
    pub hold: Option<&'a dyn Fn() -> Result<()>>,
    /// With the jobs that connections of the image lead to; they are restarted at the same time.
    pub meeting: Option<Meeting<'a>>,
}

/// What runs again.
#[derive(Debug)]
pub struct Restarted {
    /// The root process.
    pub root_pid: i32,
    /// Processes made.
    pub processes: usize,
    /// From the request until the job ran.
    pub total_ns: u64,
    /// Brings the memory that is still missing; to be held until it has ended, or the job has.
    pub pages: Option<Pages>,
}

/// Restarts a job. The caller becomes the parent of its root process.
///
/// # Errors
/// [`ErrorKind::InUse`] for a PID, lock or address that is taken, [`ErrorKind::Incompatible`] for a missing or changed
/// file or another kind of machine, [`ErrorKind::Damaged`] for an altered image. No process is left then.
pub fn restart(request: RestartRequest<'_>) -> Result<Restarted> {
    let begun = Instant::now();
    let image = request.image;
    let all_rights = rights()?;
    // Another owner than us may not open our job's log, so it gets our descriptor of it.
    let foreign = all_rights.privileged && image.manifest().checkpoint.owner_uid != 0;
    let own_log = request.log.as_deref().filter(|_| !foreign);
    let redirected = log::redirect(image.manifest(), own_log);
    let manifest = redirected.as_ref().unwrap_or(image.manifest());
    block_child_signals().context(|| "block SIGCHLD")?;
    check::machine(manifest)?;
    let renewal = vdso::renew(image, manifest)?;
    let manifest = renewal.as_ref().map_or(manifest, |renewal| &renewal.manifest);
    // The old vdso is written to before the pager is there.
    let lazy = request.lazy.filter(|_| renewal.is_none());
    process::raise_descriptor_limit().context(|| "raise the limit on descriptors")?;
    let rights = trust::limit(image, all_rights)?;
    let roots_own = rights.privileged && trust::is_roots_own(image)?;
    let checkpoint = &manifest.checkpoint;
    // Files are opened with the rights of the image's owner, whoever restarts it.
    let as_owner = || {
        (rights.privileged && checkpoint.owner_uid != 0)
            .then(|| FileIdentity::assume(checkpoint.owner_uid, checkpoint.owner_gid))
    };
    let deadline = begun + STEP_LIMIT;
    std::thread::scope(|scope| {
        let identity = as_owner();
        if let Some((_, error)) = files::violations(manifest).into_iter().next() {
            return Err(error);
        }
        let shared_memory = SharedMemory::create(manifest, image)?;
        let mut backups = files::Backups::default();
        let mut saved = files::create_saved(manifest, image, &mut backups)?;
        close_programs(manifest, &mut saved)?;
        let mapped = open_mapped(manifest, &saved, roots_own)?;
        drop(identity);
        let mut workshop = Workshop::new(manifest, rights, deadline)?;
        workshop.keeps_vdso = renewal.is_some();
        let spaces = Spaces::make(manifest, rights.may_administer(), &mut workshop, image)?;
        let bodies = image
            .bodies()
            .map(|file| file.try_clone().map(OwnedFd::from))
            .collect::<std::io::Result<Vec<_>>>()
            .context(|| "copy the descriptor of the image")?;
        let window = rustix::fs::memfd_create("cpr-window", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .context(|| "make a file in memory")?;
        let window = std::fs::File::from(window);
        // An image whose word is not enough for capabilities gets no sockets that take them.
        let network = 1 << CAP_NET_ADMIN | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_RAW;
        let modest = || Without::capabilities(network & !rights.capabilities).context(|| "give capabilities up");
        let (modesty, identity) = (modest()?, as_owner());
        let packet_sockets = files::packet::create(manifest, &spaces.networks)?;
        drop((modesty, identity));
        let sources = Sources {
            packet_sockets: &packet_sockets,
            image,
            bodies: &bodies,
            window: &window,
            mapped: &mapped,
            saved: &saved,
            segments: &manifest.ipc.segments,
            huge_pages: huge::are_allowed(),
        };
        let copies = saved
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<std::io::Result<Vec<_>>>()
            .context(|| "copy descriptors of saved files")?;
        let mut context = RestoreContext::new(
            manifest,
            image,
            &request.streams,
            request.terminal.as_ref(),
            roots_own,
            copies,
            &spaces.networks,
        );
        context.job_control = request.job_control;
        context.terminal_systems = Some(&spaces.terminals);
        context.meeting = request.meeting.as_ref();
        context.packet_sockets = &packet_sockets;
        files::terminal::create_all(&mut context)?;
        let mut objects = ipc::create(&manifest.ipc, &spaces.ipc, image)?;
        context.queues = std::mem::take(&mut objects.queues);
        if !request.own_pid_namespace {
            numbers::await_burials(manifest)?;
        }
        let (mut built, views) = make_processes(&mut workshop, manifest, &context, &sources, &spaces, rights)?;
        let identity = as_owner();
        open_elsewhere(manifest, &mapped, &views, roots_own)?;
        drop(identity);
        hand_out(&workshop, manifest, &mapped)?;
        context.views = views;
        foreground(&workshop, manifest, &context)?;
        networks::restore::fill_all(manifest, &spaces.networks)?;
        // Threads of ours take numbers of the job's PID namespace: only now are all that the job needs taken.
        let later = match &lazy {
            Some(_) => built.untouched(manifest),
            None => HashSet::new(),
        };
        let skipped = later.clone();
        let verification = scope.spawn(move || {
            if skipped.is_empty() {
                return image.verify_data(&mut |_, _| {});
            }
            // The pager compares the rest.
            let is_later = |space: usize, mapping: &Mapping| skipped.contains(&space) && lazy::is_lazy(mapping);
            image.verify_extents(manifest.extents_but(is_later))
        });
        let identity = as_owner();
        let modesty = modest()?;
        let opened = files::open_all(&mut context)?;
        let mut changes = files::Changes::prepare(manifest, &opened, &saved, backups)?;
        drop((modesty, identity));
        let mut absent = Vec::new();
        for process in living(manifest) {
            let is_lazy = process.address_space.is_some_and(|id| later.contains(&id.index()));
            built.rebuild(&workshop, manifest, process, is_lazy, &sources)?;
            if let (Some(renewal), Some(space)) = (&renewal, process.address_space) {
                let memory = &workshop.stub(process.pid)?.memory;
                renewal.apply(memory, space.index(), workshop.vdso())?;
            }
            if is_lazy {
                absent.extend(lazy::register(
                    &workshop,
                    process.pid,
                    address_space(manifest, process)?,
                )?);
            }
        }
        // From here on the kernel may look at memory of the job.
        let pages = match lazy {
            Some(lazy) if !absent.is_empty() => Some(Pages::start(lazy, absent)?),
            _ => None,
        };
        files::seal_last(manifest, &saved)?;
        ipc::operate(&workshop, manifest)?;
        for process in living(manifest) {
            enter(&workshop, manifest, process, &sources, rights)?;
        }
        let mut plans = Vec::new();
        for process in living(manifest) {
            if let Some(user) = process.login_user.filter(|_| roots_own) {
                log_in(&workshop, process.pid, user);
            }
            plans.push(rebuild(&mut workshop, manifest, process, &opened, rights)?);
        }
        match verification.join() {
            Ok(result) => result?,
            Err(_) => return Err(Error::new(ErrorKind::Internal, "the verifying thread panicked")),
        }
        for (process, plan) in living(manifest).zip(&mut plans) {
            prepare(&workshop, manifest, process, plan)?;
        }
        let rebirth = Rebirth {
            image: image.id().to_string(),
            ..request.rebirth
        };
        for process in living(manifest) {
            tell_restart(manifest, process, &workshop.stub(process.pid)?.memory, &rebirth)?;
        }
        if let Some(hold) = request.hold {
            hold()?;
        }
        let identity = if roots_own { None } else { as_owner() };
        let groups = cgroups::restore(manifest)?;
        drop(identity);
        let identity = as_owner();
        changes.apply()?;
        drop(identity);
        shared_memory.keep(manifest, &saved, image)?;
        ipc::remove_again(&manifest.ipc, &spaces.ipc)?;
        objects.keep();
        let_go(&mut workshop, manifest, plans)?;
        groups.keep();
        changes.keep();
        drop(context);
        Ok(Restarted {
            root_pid: checkpoint.root_pid,
            processes: manifest.processes.len(),
            total_ns: begun.elapsed().as_nanos() as u64,
            pages,
        })
    })
}

fn living(manifest: &Manifest) -> impl Iterator<Item = &Process> {
    manifest.processes.iter().filter(|p| !p.threads.is_empty())
}

fn address_space<'a>(manifest: &'a Manifest, process: &Process) -> Result<&'a AddressSpace> {
    let space = process
        .address_space
        .and_then(|id| manifest.address_spaces.get(id.index()));
    space.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("process {} has no memory", process.pid)))
}

fn rights() -> Result<Rights> {
    let sets = process::capabilities().context(|| "ask for our capabilities")?;
    Ok(Rights {
        privileged: rustix::process::geteuid().is_root() && sets.effective >> process::CAP_SETUID & 1 == 1,
        capabilities: sets.permitted,
    })
}

/// Opens all mapped files; those whose contents are put back, as they will be. Those of mount namespaces that are not there
/// yet only get their numbers.
fn open_mapped(manifest: &Manifest, saved: &[OwnedFd], roots_own: bool) -> Result<Vec<OwnedFd>> {
    let views = Views::default();
    let open = |file: &MappedFile| {
        if file.mount_namespace.is_some() {
            let null = std::fs::File::open("/dev/null").context(|| "open /dev/null")?;
            return Ok(null.into());
        }
        let policy = manifest.file_policies.iter().find(|policy| policy.path == file.path);
        match policy.and_then(|policy| saved.get(policy.saved?.index())) {
            Some(saved) => {
                let flags = if file.writable { libc::O_RDWR } else { libc::O_RDONLY };
                files::open_saved(saved.as_fd(), flags).context(|| format!("open mapped file {}", file.path))
            }
            None => files::with_roots_rights(roots_own, || mapped::open(file, &views)),
        }
    };
    manifest.mapped_files.iter().map(open).collect()
}

/// Opens mapped files of mount namespaces of the job's, at the numbers they have got.
fn open_elsewhere(manifest: &Manifest, mapped: &[OwnedFd], views: &Views, roots_own: bool) -> Result<()> {
    for (file, number) in manifest.mapped_files.iter().zip(mapped) {
        if file.mount_namespace.is_some() {
            let opened = files::with_roots_rights(roots_own, || mapped::open(file, views))?;
            cpr_kernel::fd::replace(number.as_fd(), opened.as_fd()).context(|| "copy a descriptor")?;
        }
    }
    Ok(())
}

/// Mapped files of mount namespaces of the job's that an address space has.
fn elsewhere(manifest: &Manifest, space: &AddressSpace) -> BTreeSet<usize> {
    let of_mappings = space.mappings.iter().filter_map(|mapping| match mapping.kind {
        MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => Some(id),
        _ => None,
    });
    let all = of_mappings.chain(space.executable).map(|id| id.index());
    let files = &manifest.mapped_files;
    all.filter(|id| files.get(*id).is_some_and(|file| file.mount_namespace.is_some()))
        .collect()
}

/// Gives processes the files that were opened when they had their descriptors already.
fn hand_out(workshop: &Workshop, manifest: &Manifest, mapped: &[OwnedFd]) -> Result<()> {
    for process in living(manifest) {
        for index in elsewhere(manifest, address_space(manifest, process)?) {
            let missing = || Error::new(ErrorKind::Damaged, "there is no such mapped file");
            let file = mapped.get(index).ok_or_else(missing)?;
            with_descriptor(workshop, process.pid, file.as_fd(), |batch, fd| {
                let arguments = [fd.into(), stub::number(file).into(), libc::O_CLOEXEC.into()];
                batch.must(libc::SYS_dup3, &arguments, "put a mapped file in its place");
            })?;
        }
    }
    Ok(())
}

/// Opens programs from the image for reading only: the kernel takes no file for one that can be written.
fn close_programs(manifest: &Manifest, saved: &mut [OwnedFd]) -> Result<()> {
    for id in manifest
        .address_spaces
        .iter()
        .filter_map(|space| space.saved_executable)
    {
        if let Some(file) = saved.get_mut(id.index()) {
            *file = files::open_saved(file.as_fd(), libc::O_RDONLY).context(|| "open the saved program")?;
        }
    }
    Ok(())
}

/// Whose memory each stub has: its own once that is rebuilt, until then what it was born with, if anything.
#[derive(Default)]
struct Built(HashMap<i32, i32>);

impl Built {
    /// To be called before `by` makes `child`: gives `by` its memory if the two have pages in common.
    fn before_birth(
        &mut self,
        workshop: &Workshop,
        manifest: &Manifest,
        child: i32,
        by: i32,
        sources: &Sources<'_>,
    ) -> Result<()> {
        let find = |pid: i32| living(manifest).find(|process| process.pid == pid);
        if let (Some(parent), Some(child)) = (find(by), find(child))
            && self.0.get(&by) != Some(&by)
            && inherit::is_worth_it(address_space(manifest, parent)?, address_space(manifest, child)?)
            // Files of mount namespaces are there when all processes are.
            && elsewhere(manifest, address_space(manifest, parent)?).is_empty()
        {
            self.rebuild(workshop, manifest, parent, false, sources)?;
        }
        if let Some(owner) = self.0.get(&by).copied() {
            self.0.insert(child, owner);
        }
        Ok(())
    }

    /// The address spaces of processes that have nothing of their memory so far, nor anything of another's.
    fn untouched(&self, manifest: &Manifest) -> HashSet<usize> {
        living(manifest)
            .filter(|process| !self.0.contains_key(&process.pid))
            // For calls of the kernel to wait for a page takes rights outside.
            .filter(|process| process.user_namespace.is_none())
            .filter_map(|process| process.address_space.map(|id| id.index()))
            .collect()
    }

    /// Gives a process its memory, unless it has it; `is_lazy` leaves out what may come later.
    fn rebuild(
        &mut self,
        workshop: &Workshop,
        manifest: &Manifest,
        process: &Process,
        is_lazy: bool,
        sources: &Sources<'_>,
    ) -> Result<()> {
        let owner = self.0.insert(process.pid, process.pid);
        if owner == Some(process.pid) {
            return Ok(());
        }
        let origin = living(manifest).find(|p| Some(p.pid) == owner);
        let origin = origin.map(|p| address_space(manifest, p)).transpose()?;
        space::rebuild(
            workshop,
            process,
            address_space(manifest, process)?,
            origin,
            is_lazy,
            sources,
        )
    }
}

/// Makes all processes and threads, zombies dead, helpers gone.
fn make_processes(
    workshop: &mut Workshop,
    manifest: &Manifest,
    context: &RestoreContext<'_>,
    sources: &Sources<'_>,
    spaces: &Spaces,
    rights: Rights,
) -> Result<(Built, Views)> {
    let mut built = Built::default();
    let mut inside = Inside::default();
    for step in plan::of(manifest)? {
        match step {
            Step::Create { pid, by: None, .. } => {
                workshop.spawn(pid)?;
                inside.settle(workshop, manifest, spaces, pid, None)?;
            }
            Step::Create { pid, by: Some(by), .. } => {
                built.before_birth(workshop, manifest, pid, by, sources)?;
                let shares = |p: &Process| p.pid == pid && p.ppid == by && p.shares_descriptors;
                workshop.fork(pid, by, manifest.processes.iter().any(shares))?;
                inside.settle(workshop, manifest, spaces, pid, Some(by))?;
            }
            Step::NewSession { pid } => {
                let mut batch = Batch::new();
                batch.must(libc::SYS_setsid, &[], "make a session");
                workshop.run(pid, &batch)?;
                take_terminal(workshop, manifest, pid, context)?;
            }
            Step::JoinGroup { pid, group, by } => {
                let mut batch = Batch::new();
                let (who, led) = (workshop.seen(by, pid)?, workshop.seen(by, group)?);
                batch.must(
                    libc::SYS_setpgid,
                    &[who.into(), led.into()],
                    format!("join process group {group}"),
                );
                workshop.run(by, &batch)?;
            }
            Step::EndHelper { pid, parent } => workshop.end(pid, parent)?,
            Step::Die { pid, status } => workshop.die(pid, status)?,
        }
    }
    host_names::enter(workshop, manifest, rights.may_administer())?;
    let views = mounts::enter_all(workshop, manifest, sources.image, spaces)?;
    users::enter_all(workshop, manifest)?;
    for process in living(manifest) {
        let tids: Vec<i32> = process.threads.iter().skip(1).map(|t| t.tid).collect();
        workshop
            .threads(process.pid, &tids)
            .context(|| format!("restore process {}", process.pid))?;
    }
    workshop.turn_all(manifest)?;
    workshop.dismiss()?;
    Ok((built, views))
}

/// Gives a new session leader its controlling terminal, before others are born into the session.
fn take_terminal(workshop: &Workshop, manifest: &Manifest, pid: i32, context: &RestoreContext<'_>) -> Result<()> {
    let process = manifest.processes.iter().find(|p| p.pid == pid);
    let Some(id) = process.and_then(|p| p.controlling_terminal) else {
        return Ok(());
    };
    let Some(slave) = files::terminal::slave_for(id, context) else {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("process {pid} needs a controlling terminal"),
        )
        .with_hint("restart it with -t"));
    };
    with_descriptor(workshop, pid, slave, |batch, fd| {
        batch.must(
            libc::SYS_ioctl,
            &[fd.into(), libc::TIOCSCTTY.into(), Arg::from(0)],
            "take the controlling terminal",
        );
    })
}

/// Hands a descriptor to a stub, makes calls with it, and closes it there.
fn with_descriptor(
    workshop: &Workshop,
    pid: i32,
    fd: BorrowedFd<'_>,
    calls: impl FnOnce(&mut Batch, i32),
) -> Result<()> {
    workshop.send(fd)?;
    let mut batch = Batch::new();
    let out = workshop.receive(&mut batch, stub::number(&workshop.channel_stub), true);
    let outcome = workshop.run(pid, &batch)?;
    let number = stub::received(&outcome, out);
    let mut batch = Batch::new();
    calls(&mut batch, number);
    batch.call(libc::SYS_close, &[number.into()]);
    workshop.run(pid, &batch).map(drop)
}

/// Makes the saved process groups the foreground groups of their terminals.
fn foreground(workshop: &Workshop, manifest: &Manifest, context: &RestoreContext<'_>) -> Result<()> {
    let root = manifest.processes.first();
    let is_led_here = |number| manifest.processes.iter().any(|p| p.pid == number);
    for (index, terminal) in manifest.terminals.iter().enumerate() {
        let id = cpr_image::model::TerminalId(index as u32);
        // In a session that is led from outside the terminal is that of whoever restarts.
        let is_given = terminal.external && context.job_control == JobControl::Foreground;
        let is_outer = |p: &Process| root.is_some_and(|root| p.sid == root.sid) && !is_led_here(p.sid);
        let may = |p: &&Process| p.controlling_terminal == Some(id) && (p.pid == p.sid || is_given && is_outer(p));
        let Some(member) = living(manifest).find(may) else {
            continue;
        };
        let group = terminal.foreground_group;
        // The group that the job was born into is now that of whoever restarts, and where it should be.
        let is_inherited = root.is_some_and(|root| group == root.pgid) && !is_led_here(group);
        let exists = manifest.processes.iter().any(|p| p.pgid == group) && !is_inherited;
        let Some(slave) = files::terminal::slave_for(id, context).filter(|_| exists) else {
            continue;
        };
        let group = workshop.seen(member.pid, group)?;
        with_descriptor(workshop, member.pid, slave, |batch, fd| {
            let group = batch.data(&group.to_ne_bytes());
            batch.must(
                libc::SYS_ioctl,
                &[fd.into(), libc::TIOCSPGRP.into(), group],
                "set the foreground process group",
            );
        })?;
    }
    Ok(())
}

/// What is left to do for a process when everything else is in place.
struct Plan {
    /// The thread handles with their final registers, the first thread first.
    threads: Vec<(Tracee, Registers)>,
    /// When their system call filters come.
    filters: When,
}

/// Has a process enter its directories and take over its executable, the vdso and the bounds of its memory. Needs
/// descriptors of ours, so comes before any process, which may share its table, gets its own.
fn enter(
    workshop: &Workshop,
    manifest: &Manifest,
    process: &Process,
    sources: &Sources<'_>,
    rights: Rights,
) -> Result<()> {
    let pid = process.pid;
    let what = || format!("restore process {pid}");
    let space = address_space(manifest, process)?;
    // The executable's descriptor is still open now, and the vdso is needed no more by its parking place.
    let mut batch = Batch::new();
    batch.must(libc::SYS_umask, &[process.umask.into()], "set the umask");
    // Directories are entered with the rights of the image's owner.
    // In a user namespace of its own it is who it was already.
    let owned = rights.privileged && process.user_namespace.is_none();
    let owner = owned.then_some(manifest.checkpoint.owner_uid);
    let number = |id: Option<SavedFileId>| {
        let missing = || Error::new(ErrorKind::Damaged, format!("process {pid} has no directory"));
        id.map(|id| sources.saved.get(id.index()).map(stub::number).ok_or_else(missing))
            .transpose()
    };
    let (cwd, root) = (number(process.cwd_saved)?, number(process.root_saved)?);
    identity::enter((&process.cwd, cwd), (&process.root, root), owner, &mut batch);
    space::finish(workshop, space, sources, &mut batch)?;
    workshop.run(pid, &batch).context(what).map(drop)
}

/// Gives a process its login user, which it can set itself only. Who lacks CAP_AUDIT_CONTROL keeps the restarter's.
fn log_in(workshop: &Workshop, pid: i32, user: u32) {
    let Ok(file) = std::fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/loginuid"))
    else {
        return;
    };
    let _ = with_descriptor(workshop, pid, file.as_fd(), |batch, fd| {
        let text = user.to_string();
        let length = text.len();
        let text = batch.data(text.as_bytes());
        batch.call(libc::SYS_write, &[fd.into(), text, length.into()]);
    });
}

/// Gives a process its descriptors, threads and kernel state.
fn rebuild(
    workshop: &mut Workshop,
    manifest: &Manifest,
    process: &Process,
    opened: &[OwnedFd],
    rights: Rights,
) -> Result<Plan> {
    let pid = process.pid;
    // In a user namespace of its own it is who it was already.
    let owned = rights.privileged && process.user_namespace.is_none();
    let owner = owned.then_some(manifest.checkpoint.owner_uid);
    let what = || format!("restore process {pid}");
    if !process.shares_descriptors {
        place_descriptors(workshop, process, opened).context(what)?;
    }
    let mut batch = Batch::new();
    files::finish(process, manifest, &mut batch)?;
    if !batch.is_empty() {
        workshop.run(pid, &batch).map_err(in_use).context(what)?;
    }
    files::break_leases(process, manifest, opened).context(what)?;
    write_proc(process)?;
    let mut batch = Batch::new();
    signals_and_timers(workshop, process, &mut batch)?;
    limits(process, &mut batch)?;
    workshop.run(pid, &batch).context(what)?;
    let handles: Vec<(Tracee, Registers)> = {
        let stub = workshop.stub(pid)?;
        std::iter::once((stub.tracee, stub.base))
            .chain(stub.threads.iter().copied())
            .collect()
    };
    let mut plan = Plan {
        threads: Vec::new(),
        filters: When::Now,
    };
    for (index, (thread, (tracee, base))) in process.threads.iter().zip(handles).enumerate() {
        let stub = workshop.stub(pid)?;
        let mut run = |batch: &Batch| workshop.run_thread(stub, tracee, &base, batch).map(drop);
        if filters::install(process, index, tracee, rights, &mut run).context(what)? == When::Last {
            plan.filters = When::Last;
        }
        let mut batch = Batch::new();
        if let Some(own) = &thread.directories {
            identity::directories(own, owner, &mut batch);
        }
        let numbers = [workshop.seen(pid, pid)?, workshop.seen(pid, thread.tid)?];
        identity::thread(thread, numbers, &mut batch);
        identity::credentials(thread, process, rights, &mut batch);
        workshop.run_thread(stub, tracee, &base, &batch).context(what)?;
        let registers = Registers::from_bytes(&thread.cpu.general.0)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("thread {} has no registers", thread.tid)))?;
        plan.threads.push((tracee, registers));
    }
    Ok(plan)
}

/// EAGAIN of a lock means that somebody else has it.
fn in_use(error: Error) -> Error {
    if error.kind() == ErrorKind::Busy {
        error
            .with_kind(ErrorKind::InUse)
            .with_hint("another process holds the lock; end it, then restart")
    } else {
        error
    }
}

/// Puts every descriptor at its number. Nothing else stays open.
fn place_descriptors(workshop: &Workshop, process: &Process, opened: &[OwnedFd]) -> Result<()> {
    let pid = process.pid;
    let wanted: BTreeSet<i32> = process.descriptors.iter().map(|d| d.fd).collect();
    let from = stub::number(&workshop.channel_stub);
    let channel = (0..).find(|n| !wanted.contains(n) && *n != from).unwrap_or(i32::MAX);
    let mut batch = Batch::new();
    batch.must(
        libc::SYS_dup3,
        &[from.into(), channel.into(), libc::O_CLOEXEC.into()],
        "move the channel",
    );
    if channel > 0 {
        batch.must(
            libc::SYS_close_range,
            &[Arg::from(0), (channel - 1).into(), Arg::from(0)],
            "close our descriptors",
        );
    }
    batch.must(
        libc::SYS_close_range,
        &[(channel + 1).into(), Arg::from(u32::MAX), Arg::from(0)],
        "close our descriptors",
    );
    workshop.run(pid, &batch)?;
    let mut open: BTreeSet<i32> = [channel].into();
    for group in process.descriptors.chunks(HANDED) {
        let mut batch = Batch::new();
        let mut expected: Vec<(OutId, i32)> = Vec::new();
        for descriptor in group {
            let file = opened
                .get(descriptor.file.index())
                .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("descriptor {} has no file", descriptor.fd)))?;
            workshop.send(file.as_fd())?;
            // The kernel gives the lowest free number.
            let number = (0..).find(|n| !open.contains(n)).unwrap_or(i32::MAX);
            let out = workshop.receive(&mut batch, channel, descriptor.close_on_exec);
            expected.push((out, number));
            if number != descriptor.fd {
                let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
                batch.must(
                    libc::SYS_dup3,
                    &[number.into(), descriptor.fd.into(), flags.into()],
                    format!("give descriptor {} its number (see `ulimit -n`)", descriptor.fd),
                );
                batch.must(libc::SYS_close, &[number.into()], "close a descriptor");
            }
            open.insert(descriptor.fd);
        }
        let outcome = workshop.run(pid, &batch)?;
        if expected
            .iter()
            .any(|&(out, number)| stub::received(&outcome, out) != number)
        {
            return Err(Error::new(ErrorKind::Internal, "descriptors arrived out of order"));
        }
    }
    let mut batch = Batch::new();
    batch.must(libc::SYS_close, &[channel.into()], "close the channel");
    workshop.run(pid, &batch).map(drop)
}

/// What is set through /proc, by us.
fn write_proc(process: &Process) -> Result<()> {
    let pid = process.pid;
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{pid}/{name}"), text);
    write("coredump_filter", format!("{:#x}", process.coredump_filter))
        .context(|| format!("set the core dump filter of process {pid}"))?;
    if process.autogroup_nice != 0 {
        // Raising the priority takes CAP_SYS_NICE.
        let _ = write("autogroup", process.autogroup_nice.to_string());
    }
    // Lowering it takes CAP_SYS_RESOURCE; who lacks it keeps the restarter's.
    let _ = write("oom_score_adj", process.oom_score_adj.to_string());
    Ok(())
}

fn signals_and_timers(workshop: &Workshop, process: &Process, batch: &mut Batch) -> Result<()> {
    // Signals that came while we built (of children that died) are none of the job's.
    let all = batch.data(&u64::MAX.to_ne_bytes());
    let now = batch.data(&[0u8; 16]);
    for _ in 0..64 {
        batch.call(libc::SYS_rt_sigtimedwait, &[all, Arg::from(0), now, Arg::from(8)]);
    }
    for signal in 1..=64i32 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let saved = process.signal_actions.iter().find(|a| a.signal == signal);
        let mut raw = [0u8; 32];
        if let Some(action) = saved {
            let words = [action.handler, action.flags, action.restorer, action.mask];
            for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
                slot.copy_from_slice(&word.to_ne_bytes());
            }
        }
        // Ours go on with SIGTRAP at its default until the end.
        if signal == libc::SIGTRAP {
            continue;
        }
        let action = batch.data(&raw);
        batch.must(
            libc::SYS_rt_sigaction,
            &[signal.into(), action, Arg::from(0), Arg::from(8)],
            format!("set the action of signal {signal}"),
        );
    }
    let own = workshop.seen(process.pid, process.pid)?;
    for info in &process.pending_signals {
        let signal = identity::signal_of(&info.0);
        let info = batch.data(&info.0);
        batch.must(
            libc::SYS_rt_sigqueueinfo,
            &[own.into(), signal.into(), info],
            format!("queue signal {signal}"),
        );
    }
    if process.child_subreaper {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), Arg::from(1)]);
    }
    if process.thp_disabled {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_THP_DISABLE.into(), Arg::from(1)]);
    }
    for bit in (0..32)
        .map(|shift| 1u32 << shift)
        .filter(|bit| process.membarrier & bit != 0)
    {
        batch.must(
            libc::SYS_membarrier,
            &[bit.into(), Arg::from(0), Arg::from(0)],
            format!("register for memory barriers of kind {bit:#x}"),
        );
    }
    batch.call(libc::SYS_personality, &[process.personality.into()]);
    if process.memory_deny_write_execute != 0 {
        batch.must(
            libc::SYS_prctl,
            &[
                PR_SET_MDWE.into(),
                process.memory_deny_write_execute.into(),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ],
            "refuse memory that is writable and executable (Linux 6.3)",
        );
    }
    for timer in &process.interval_timers {
        // A periodic timer whose signal is pending stands still until the signal is taken. Here it fires at once, into
        // the same pending signal; all signals are blocked.
        let value_us = if timer.which == libc::ITIMER_REAL && timer.value_us == 0 && timer.interval_us != 0 {
            1
        } else {
            timer.value_us
        };
        let mut raw = [0u8; 32];
        let words = [
            timer.interval_us / 1_000_000,
            timer.interval_us % 1_000_000,
            value_us / 1_000_000,
            value_us % 1_000_000,
        ];
        for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        let value = batch.data(&raw);
        batch.must(
            libc::SYS_setitimer,
            &[timer.which.into(), value, Arg::from(0)],
            "set an interval timer",
        );
    }
    posix_timers(workshop, process, batch)
}

fn posix_timers(workshop: &Workshop, process: &Process, batch: &mut Batch) -> Result<()> {
    if process.posix_timers.is_empty() {
        return Ok(());
    }
    let restore = |batch: &mut Batch, on: i32| {
        batch.must(
            libc::SYS_prctl,
            &[
                PR_TIMER_CREATE_RESTORE_IDS.into(),
                on.into(),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ],
            "choose timer numbers (Linux 6.16)",
        )
    };
    restore(batch, 1);
    for timer in &process.posix_timers {
        // struct sigevent: value, signo, notify, tid.
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&timer.value.to_ne_bytes());
        event[8..12].copy_from_slice(&timer.signal.to_ne_bytes());
        event[12..16].copy_from_slice(&timer.notify.to_ne_bytes());
        if timer.notify == NOTIFY_THREAD {
            let thread = workshop.seen(process.pid, timer.thread)?;
            event[16..20].copy_from_slice(&thread.to_ne_bytes());
        }
        let event = batch.data(&event);
        let id = batch.data(&timer.id.to_ne_bytes());
        batch.must(
            libc::SYS_timer_create,
            &[timer.clock.into(), event, id],
            format!("make timer {}", timer.id),
        );
        let words = [
            timer.interval_ns / 1_000_000_000,
            timer.interval_ns % 1_000_000_000,
            timer.value_ns / 1_000_000_000,
            timer.value_ns % 1_000_000_000,
        ];
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let value = batch.data(&raw);
        batch.must(
            libc::SYS_timer_settime,
            &[timer.id.into(), Arg::from(0), value, Arg::from(0)],
            format!("start timer {}", timer.id),
        );
    }
    restore(batch, 0);
    Ok(())
}

/// Resource limits, none above the restarter's own (LBNL-3.9.7.2.3).
fn limits(process: &Process, batch: &mut Batch) -> Result<()> {
    for limit in &process.limits {
        let (_, most) = process::limit(limit.resource).context(|| "ask for a limit")?;
        let hard = limit.hard.min(most);
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&limit.soft.min(hard).to_ne_bytes());
        raw[8..].copy_from_slice(&hard.to_ne_bytes());
        let value = batch.data(&raw);
        batch.must(
            libc::SYS_prlimit64,
            &[Arg::from(0), limit.resource.into(), value, Arg::from(0)],
            format!("set resource limit {}", limit.resource),
        );
    }
    Ok(())
}

/// Removes the arena and gives all threads their registers and masks: the process is as it was, but stopped.
fn prepare(workshop: &Workshop, manifest: &Manifest, process: &Process, plan: &mut Plan) -> Result<()> {
    let pid = process.pid;
    let what = || format!("finish process {pid}");
    let stub = workshop.stub(pid)?;
    let instruction = final_instruction(workshop, process, stub)?;
    let mut deferred = Deferred::default();
    let space = address_space(manifest, process)?;
    let comes_last = plan.filters == When::Last;
    for (index, (thread, (tracee, registers))) in process.threads.iter().zip(&mut plan.threads).enumerate() {
        if let Some(sleep) = &thread.sleep
            && prime(workshop, stub, *tracee, instruction, sleep)?
        {
            // The kernel knows the rest of the sleep: let it restart that.
            registers.set_syscall_result(-516);
        }
        if index == 0 {
            continue;
        }
        if comes_last {
            let base = tracee.registers().context(what)?;
            filters::install_last(workshop, process, index, *tracee, &base, instruction, space).context(what)?;
        }
        set_thread(*tracee, thread, registers).context(what)?;
    }
    let trap = process.signal_actions.iter().find(|a| a.signal == libc::SIGTRAP);
    if let Some(action) = trap {
        let words = [action.handler, action.flags, action.restorer, action.mask];
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let place = workshop.arena.address + PAGE;
        stub.memory.write(place, &raw).context(what)?;
        remote::syscall(
            stub.tracee,
            &stub.base,
            instruction,
            libc::SYS_rt_sigaction,
            [libc::SIGTRAP as u64, place, 0, 8, 0, 0],
            workshop.deadline,
            &mut deferred,
        )
        .context(|| "set the action of signal 5")?;
    }
    workshop
        .arena
        .unmap(stub.tracee, &stub.base, instruction, workshop.deadline, &mut deferred)
        .context(what)?;
    if process.dumpable != 1 {
        // What only root may read (2) cannot be set by anybody.
        remote::syscall(
            stub.tracee,
            &stub.base,
            instruction,
            libc::SYS_prctl,
            [libc::PR_SET_DUMPABLE as u64, 0, 0, 0, 0, 0],
            workshop.deadline,
            &mut deferred,
        )
        .context(|| format!("make process {pid} inaccessible again"))?;
    }
    if let (Some(thread), Some((tracee, registers))) = (process.threads.first(), plan.threads.first()) {
        if comes_last {
            filters::install_last(workshop, process, 0, *tracee, &stub.base, instruction, space).context(what)?;
        }
        freeze::park(*tracee, workshop.deadline).context(what)?;
        set_thread(*tracee, thread, registers).context(what)?;
    }
    Ok(())
}

fn set_thread(tracee: Tracee, thread: &cpr_image::model::Thread, registers: &Registers) -> std::io::Result<()> {
    let mut registers = *registers;
    registers.sanitize().map_err(std::io::Error::other)?;
    if !thread.cpu.extended.0.is_empty() {
        tracee.set_extended(&thread.cpu.extended.0)?;
    }
    tracee.set_registers(&registers)?;
    tracee.set_signal_mask(thread.blocked_signals)
}

/// A `syscall` instruction in the finished process: in its vdso, or wherever its own code has one.
fn final_instruction(workshop: &Workshop, process: &Process, stub: &stub::Stub) -> Result<u64> {
    let parked = workshop.parked.iter().find(|p| p.kind == MappingKind::Vdso);
    let offset = parked.map_or(0, |p| workshop.instruction() - p.address);
    let proc = cpr_kernel::proc::ProcDir::open(process.pid).context(|| "open /proc")?;
    let maps = proc.maps().context(|| "read the mappings")?;
    if let Some(vdso) = maps.iter().find(|m| m.path == b"[vdso]") {
        return Ok(vdso.start + offset);
    }
    for map in maps.iter().filter(|m| m.exec && m.start != workshop.arena.address) {
        let mut code = vec![0u8; (map.end - map.start).min(1 << 20) as usize];
        if stub.memory.read(map.start, &mut code).is_ok()
            && let Some(at) = remote::find_syscall_instruction(&code)
        {
            return Ok(map.start + at);
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("process {}: no system call instruction found", process.pid),
    ))
}

/// Starts the rest of a sleep in the new process and interrupts it, so that the kernel holds its end time.
fn prime(
    workshop: &Workshop,
    stub: &stub::Stub,
    tracee: Tracee,
    instruction: u64,
    sleep: &cpr_image::model::TimedSleep,
) -> Result<bool> {
    if ![libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&sleep.syscall) {
        return Ok(false);
    }
    let what = || format!("start the sleep of thread {}", tracee.tid());
    let place = workshop.arena.address + PAGE;
    let mut time = [0u8; 16];
    time[..8].copy_from_slice(&(sleep.remaining_ns / 1_000_000_000).to_ne_bytes());
    time[8..].copy_from_slice(&(sleep.remaining_ns % 1_000_000_000).to_ne_bytes());
    stub.memory.write(place, &time).context(what)?;
    let base = tracee.registers().context(what)?;
    remote::sleep(tracee, &base, instruction, place, workshop.deadline).context(what)
}

/// The signal to stop a process with, so that its parent is told the same one as before. SIGSTOP where that one would
/// not stop it: it is caught, ignored, blocked, or the kernel ignores it in a process group without a shell.
fn stop_signal(manifest: &Manifest, process: &Process, signal: i32) -> i32 {
    let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
        && !process
            .signal_actions
            .iter()
            .any(|action| action.signal == signal && action.handler != 0)
        && process
            .threads
            .iter()
            .any(|thread| thread.blocked_signals >> (signal - 1) & 1 == 0);
    let all = &manifest.processes;
    let has_shell = all.iter().filter(|member| member.pgid == process.pgid).any(|member| {
        all.iter()
            .any(|parent| parent.pid == member.ppid && parent.pgid != member.pgid && parent.sid == member.sid)
    });
    if stops && has_shell { signal } else { libc::SIGSTOP }
}

/// Lets every thread of every process go.
fn let_go(workshop: &mut Workshop, manifest: &Manifest, plans: Vec<Plan>) -> Result<()> {
    // From here on nothing may fail half way: all are complete and need only be detached.
    for process in living(manifest) {
        if let ProcessState::Stopped(signal) = process.state {
            PidFd::open(process.pid)
                .and_then(|fd| fd.signal(stop_signal(manifest, process, signal)))
                .context(|| format!("stop process {}", process.pid))?;
        }
    }
    for plan in &plans {
        for (tracee, _) in &plan.threads {
            match tracee.detach(0) {
                // Those let go before it have ended the process already.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.context(|| format!("let thread {} go", tracee.tid()))?,
            }
        }
    }
    workshop.release();
    Ok(())
}
