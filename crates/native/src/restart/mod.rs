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

mod opened;
mod processes;
mod state;
mod terminals;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Manifest, Mapping, Process};
use cpr_kernel::process::{self, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, FileIdentity, Without};
use cpr_kernel::ptrace::block_child_signals;
use cpr_types::{Context, Error, ErrorKind, Result};
use filling::Filling;
use identity::Rights;
use space::Sources;
use spaces::Spaces;
use stub::Workshop;

use crate::callbacks::{Rebirth, tell_restart};
use crate::devices::DevicePlugins;
use crate::files::terminal::JobControl;
use crate::files::{self, Meeting, RestoreContext, SharedMemory};
use crate::{cgroups, extended, networks};

use opened::{close_programs, hand_out, open_elsewhere, open_mapped};
use processes::make_processes;
use state::{enter, let_go, log_in, place, prepare, rebuild};
use terminals::{foreground, with_descriptor};

pub use check::{available_memory, check_restart};
pub use lazy::{LazyRequest, Pages};

mod aio;

mod check;

mod clocks;

mod filling;

mod filters;

mod host_names;

mod huge;

mod identity;

mod inherit;

mod instructions;

mod io_uring;

mod ipc;

mod lazy;

mod leader;

mod log;

mod memory_files;

mod mount_groups;
mod mount_tree;

mod mounts;

mod numbers;

mod pace;

mod plan;

mod robust;

mod space;

mod spaces;

mod stub;

mod time_namespaces;

mod timers;

mod trust;

mod users;

mod vdso;

/// Refuses an image whose processes no order of steps would make.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the process.
pub fn refuse_unplanned(manifest: &Manifest) -> Result<()> {
    plan::of(manifest)
        .map(drop)
        .map_err(|error| error.with_kind(ErrorKind::Unsupported))
}

/// Longest any single step of a restart may take.
const STEP_LIMIT: Duration = Duration::from_secs(600);

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
    /// Who knows devices that we do not.
    pub devices: Option<&'a dyn DevicePlugins>,
    /// Nothing outside is to change: what the job changes in file systems of layers stays in memory, and its processes
    /// are in our control groups.
    pub in_sandbox: bool,
    /// The job's first process is in our control groups, wherever it was.
    pub own_cgroups: bool,
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
    /// What is not as it was, in words.
    pub notes: Vec<String>,
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
    let adapted = extended::adapt(manifest)?;
    let manifest = adapted.as_ref().unwrap_or(manifest);
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
        // Dropped after the workshop, which ends who is in them.
        let identity = if roots_own { None } else { as_owner() };
        let mut groups = match request.in_sandbox {
            true => cgroups::Places::default(),
            false => cgroups::Places::make(manifest, rights.privileged && roots_own && !request.own_cgroups)?,
        };
        drop(identity);
        let mut workshop = Workshop::new(manifest, rights, deadline)?;
        workshop.keeps_vdso = renewal.is_some();
        workshop.in_sandbox = request.in_sandbox;
        let spaces = Spaces::make(manifest, rights.may_administer(), &mut workshop, image, &groups)?;
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
            pace: Mutex::default(),
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
        context.devices = request.devices;
        context.packet_sockets = &packet_sockets;
        files::terminal::create_all(&mut context)?;
        let mut notes = Vec::new();
        // Nobody but root can have changed them, nor may.
        let own_limits = roots_own && request.own_pid_namespace && manifest.checkpoint.own_ipc_namespace;
        if own_limits {
            ipc::set_limits(&manifest.ipc, &mut notes)?;
        }
        let mut objects = ipc::create(&manifest.ipc, &spaces.ipc, image)?;
        context.queues = std::mem::take(&mut objects.queues);
        if !request.own_pid_namespace {
            numbers::await_burials(manifest)?;
        }
        let (mut built, views) = clocks::going_on(manifest, &mut notes, || {
            make_processes(&mut workshop, manifest, &context, &sources, &spaces, rights)
        })?;
        if request.own_pid_namespace {
            numbers::go_on(manifest)?;
        }
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
        let apart = match lazy.is_none() && !sources.huge_pages {
            true => filling::worth_it(manifest, built.untouched(manifest)),
            false => HashSet::new(),
        };
        let skipped = later.clone();
        let verify = move || {
            if skipped.is_empty() {
                return image.verify_data(&mut |_, _| {});
            }
            // The pager compares the rest.
            let is_later = |space: usize, mapping: &Mapping| skipped.contains(&space) && lazy::is_lazy(mapping);
            image.verify_extents(manifest.extents_but(is_later))
        };
        let thread = || std::thread::Builder::new().name("cpr-verify".to_owned());
        // Where memory is filled as it is verified, it has to be mapped first.
        let mut verification = match apart.is_empty() {
            true => Some(thread().spawn_scoped(scope, verify).context(|| "start a thread")?),
            false => None,
        };
        let identity = as_owner();
        let modesty = modest()?;
        let opened = files::open_all(&mut context)?;
        let mut changes = files::Changes::prepare(manifest, &opened, &saved, backups)?;
        drop((modesty, identity));
        let (mut absent, mut filling, mut under_way) = (Vec::new(), Filling::default(), Vec::new());
        for process in living(manifest) {
            let is_among = |set: &HashSet<usize>| process.address_space.is_some_and(|id| set.contains(&id.index()));
            let (is_lazy, is_apart) = (is_among(&later), is_among(&apart));
            let stays_empty = match (is_lazy, is_apart) {
                (true, _) => lazy::is_lazy,
                (_, true) => filling::is_apart,
                _ => |_: &Mapping| false,
            };
            let rest = built.rebuild(&workshop, manifest, process, stays_empty, &sources)?;
            if !is_lazy && !is_apart && renewal.is_none() {
                under_way.extend(rest);
                continue;
            }
            if let Some(rest) = rest {
                rest.finish(&workshop)?;
            }
            if let (Some(renewal), Some(space)) = (&renewal, process.address_space) {
                let memory = &workshop.stub(process.pid)?.memory;
                renewal.apply(memory, space.index(), workshop.vdso())?;
            }
            if is_apart {
                filling.add(&workshop, process.pid, address_space(manifest, process)?)?;
            }
            if is_lazy {
                absent.extend(lazy::register(
                    &workshop,
                    process.pid,
                    address_space(manifest, process)?,
                )?);
            }
        }
        for rest in under_way {
            rest.finish(&workshop)?;
        }
        if !apart.is_empty() {
            let fill = move || filling.run(image);
            verification = Some(thread().spawn_scoped(scope, fill).context(|| "start a thread")?);
        }
        // From here on the kernel may look at memory of the job, but where it is filled from outside.
        let pages = match lazy {
            Some(lazy) if !absent.is_empty() => Some(Pages::start(lazy, absent)?),
            _ => None,
        };
        files::seal_last(manifest, &saved)?;
        ipc::operate(&workshop, manifest)?;
        for process in living(manifest) {
            enter(&workshop, manifest, process, &sources, rights)?;
        }
        for process in living(manifest) {
            // First: with its own descriptors it has no more of ours.
            if let Some(user) = process.login_user.filter(|_| roots_own) {
                log_in(&workshop, process.pid, user);
            }
            place(&workshop, process, &opened)?;
        }
        if !apart.is_empty() {
            verified(verification.take())?;
        }
        io_uring::restore_all(&workshop, manifest, rights)?;
        let mut plans = Vec::new();
        for process in living(manifest) {
            plans.push(rebuild(&mut workshop, manifest, process, &opened, rights)?);
        }
        verified(verification)?;
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
        groups.settle()?;
        drop(identity);
        let identity = as_owner();
        changes.apply()?;
        drop(identity);
        shared_memory.keep(manifest, &saved, image)?;
        ipc::remove_again(&manifest.ipc, &spaces.ipc)?;
        ipc::choose_next(manifest, &spaces.ipc, own_limits)?;
        objects.keep();
        let_go(&mut workshop, manifest, plans)?;
        groups.keep();
        changes.keep();
        notes.append(&mut context.notes);
        drop(context);
        Ok(Restarted {
            notes,
            root_pid: checkpoint.root_pid,
            processes: manifest.processes.len(),
            total_ns: begun.elapsed().as_nanos() as u64,
            pages,
        })
    })
}

/// Waits until the page data have been verified, if somebody is at it still.
fn verified(thread: Option<ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    match thread.map(ScopedJoinHandle::join) {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(Error::new(ErrorKind::Internal, "the verifying thread panicked")),
        None => Ok(()),
    }
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
