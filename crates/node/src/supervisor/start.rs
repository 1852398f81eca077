//! Starting or restarting a job under its supervisor.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use cpr_kernel::namespace;
use cpr_kernel::spawn::{self, Namespaces, SignalMask};
use cpr_types::{Context, ErrorKind, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use super::{Launch, Supervisor, reap, reap_the_dead};
use crate::engine::{JobControl, Rebirth};
use crate::group::{self, Group};
use crate::init::{self, JobTerminal, Report, Setting, Start};
use crate::job::{Job, Phase, State};
use crate::lease::Lease;
use crate::own::OwnCheckpoints;
use crate::paging::Paging;
use crate::requests::{self, Requests};
use crate::shared_terminal::{self, SharedTerminal};
use crate::target::Identity;
use crate::terminal::Relay;
use crate::vault::Vault;
use crate::wire::Receiver;

pub(super) fn start<'a>(
    launch: &Launch<'a>,
    state: &mut State,
    watched: &[i32],
    mask: SignalMask,
) -> Result<Supervisor<'a>> {
    let job = launch.job;
    let signals = spawn::signal_fd(watched).context(|| "watch for signals")?;
    let relay = match (launch.terminal, launch.detached) {
        (false, _) => None,
        (true, false) => Some(Relay::foreground()?),
        (true, true) => Some(Relay::detached(job)?),
    };
    let terminal = relay.as_ref().map(|r| r.pair.slave.as_fd());
    let shares = relay.is_none() && !launch.detached;
    let outer = shared_terminal::of_streams().filter(|_| shares);
    let job_control = outer.as_ref().map_or(JobControl::None, shared_terminal::job_control);
    let shared_terminal = outer
        .filter(|_| job_control == JobControl::Foreground)
        .and_then(SharedTerminal::note);
    requests::remove_answers(job)?;
    let requests = Requests::listen(job)?;
    let own = OwnCheckpoints::watch(job)?;
    let mut init = None;
    let mut ended = None;
    let mut paging = None;
    let mut complete = false;
    // A job without one is no worse for it: its PID namespace names its processes, too.
    let mut group = Err("it has no PID namespace of its own".to_string());
    if launch.own_namespace {
        group = Group::make(job).map_err(|error| error.chain());
        let keeper = match launch.lazy {
            true => {
                let (ours, theirs) = Paging::begin(&job.directory)?;
                paging = Some(ours);
                Some(theirs)
            }
            false => None,
        };
        let (channel, pid) = start_init(
            launch,
            (terminal, job_control),
            mask,
            &mut paging,
            keeper,
            own.as_ref().and_then(|own| own.exit_code),
            &mut group,
        )?;
        let mut channel = Receiver::new(channel).context(|| "talk to the job's init")?;
        let result = await_start(&mut channel, &mut state.mounts);
        match result {
            Ok((root, status, is_complete)) => {
                state.root = Some(root);
                ended = status;
                complete = is_complete;
            }
            Err(error) => {
                // It has ended or is about to: nothing of a job is left that did not start.
                reap(pid);
                if let Ok(group) = &group {
                    group::remove(group.path());
                }
                if let Some(paging) = paging {
                    paging.end(&job.directory)?;
                }
                return Err(error);
            }
        }
        state.init = Some(Identity::of(pid)?);
        let namespace = namespace::identity(&pid.to_string(), "pid");
        state.pid_namespace = Some(namespace.context(|| "look at the job's namespace")?);
        init = Some((channel, pid));
    } else {
        let Start::Image(image) = &launch.start else {
            return Err(crate::wire::internal(
                "a program can only be started in a namespace of its own",
            ));
        };
        // Orphans of the job come to us, so that we know when the last process has ended.
        let own = Pid::from_raw(std::process::id() as i32);
        rustix::process::set_child_subreaper(own)
            .map_err(std::io::Error::from)
            .context(|| "adopt the job's orphans")?;
        let terminal = JobTerminal::choose(terminal, job_control);
        let root = init::start_image(image, terminal, false, about(job), None, launch.gate, launch.manner)
            .inspect_err(|_| reap_the_dead())?
            .root_pid;
        state.root = Some(root);
        // It may have ended by now; it was not waited for, so that its PID is still its own.
        state.root_here = Some(Identity::of(root)?);
    }
    let group = match group {
        Ok(group) => {
            state.own_cgroup = Some(group.path().to_path_buf());
            Some(group)
        }
        Err(reason) => {
            state.no_cgroup = Some(reason);
            None
        }
    };
    state.phase = Phase::Running;
    job.write_state(state)?;
    let mut supervisor = Supervisor {
        job,
        state: state.clone(),
        signals,
        init,
        root_status: None,
        shares_terminal: shares,
        shared_terminal,
        relay,
        task: None,
        requests,
        nonce: None,
        vault: Vault::open(&job.directory)?,
        paging,
        postponed: Vec::new(),
        count: 0,
        save: None,
        next: job.spec().every.map(|every| Instant::now() + every),
        lease: job.spec().lease.as_deref().map(Lease::watch).transpose()?,
        own,
        ended_saved: false,
        over: false,
        registering: false,
        complaint: None,
        group,
    };
    match ended {
        Some(Ended::With(status)) => supervisor.root_ended(status),
        Some(Ended::Saved) => supervisor.ended_saved = true,
        None => {}
    }
    if complete {
        supervisor.memory_complete();
    }
    Ok(supervisor)
}

/// What the programs of a job are told of it.
pub(super) fn about(job: &Job) -> Rebirth {
    Rebirth {
        image: String::new(),
        job: job.name().to_string(),
        directory: job.path().as_os_str().as_bytes().to_vec(),
    }
}

/// Forks init; gives our end of the channel and its PID.
pub(super) fn start_init(
    launch: &Launch<'_>,
    (terminal, job_control): (Option<std::os::fd::BorrowedFd<'_>>, JobControl),
    mask: SignalMask,
    paging: &mut Option<Paging>,
    keeper: Option<OwnedFd>,
    saved_code: Option<u8>,
    group: &mut Result<Group, String>,
) -> Result<(OwnedFd, i32)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(std::io::Error::from)
        .context(|| "make the channel to the job's init")?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let unprivileged = !namespace::is_admin();
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let setting = Setting {
        start: &launch.start,
        map: unprivileged.then_some(ids),
        new_session: launch.detached && !launch.terminal,
        terminal,
        job_control,
        mask,
        ipc_limits: if launch.own_ipc { init::ipc_limits() } else { Vec::new() },
        own_ipc: launch.own_ipc,
        about: about(launch.job),
        sequence: launch
            .job
            .spec()
            .sequence
            .as_ref()
            .map_or_else(|| "F".to_owned(), ToString::to_string),
        lifetime: launch
            .job
            .spec()
            .lifetime
            .map_or_else(String::new, |lifetime| lifetime.as_secs().to_string()),
        foreign: launch.job.spec().engine.is_some(),
        saved_code,
        gate: launch.gate,
        keeper,
        manner: launch.manner,
    };
    let mut held = paging.take();
    let namespaces = Namespaces {
        user: unprivileged,
        pid: true,
        mount: true,
        ipc: launch.own_ipc,
    };
    let mut run = || {
        // In the child: with our end open here too, the supervisor's death would not show.
        ours.take();
        // Else its end would show nobody that all memory is there.
        held.take();
        match theirs.take() {
            Some(channel) => init::run(&setting, channel),
            None => spawn::PANIC_CODE,
        }
    };
    let mut refused = None;
    let born = match &*group {
        Ok(place) => spawn::fork_into(namespaces, Some(place.as_fd()), &mut run).or_else(|error| {
            // The kernel would not have it there; without, what else is wrong shows.
            refused = Some(format!("start a process in cgroup {}: {error}", place.path().display()));
            group::remove(place.path());
            spawn::fork(namespaces, &mut run)
        }),
        Err(_) => spawn::fork(namespaces, &mut run),
    };
    if let Some(refused) = refused {
        *group = Err(refused);
    }
    let child = born
        .context(|| "make the job's namespaces")
        .map_err(|error| match error.kind() {
            ErrorKind::Denied | ErrorKind::NoSpace if unprivileged => error.with_hint(
                "unprivileged user namespaces are off or used up here: see sysctl user.max_user_namespaces, \
             kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns",
            ),
            _ => error,
        })?;
    drop(theirs);
    *paging = held;
    match ours {
        Some(ours) => Ok((ours, child.pid)),
        None => Err(crate::wire::internal("the channel is gone")),
    }
}

/// How the root process has ended, which has only just been started.
pub(super) enum Ended {
    With(i32),
    Saved,
}

/// Takes note of what is `mounts` before the job is there; gives the PID of the root process, its wait(2) status where it has ended already, and whether all memory is there.
pub(super) fn await_start(channel: &mut Receiver, mounts: &mut Vec<String>) -> Result<(i32, Option<Ended>, bool)> {
    let what = || "wait for the job to start";
    loop {
        let mut started = None;
        let mut ended = None;
        let mut complete = false;
        for report in channel.receive().context(what)? {
            match report {
                Report::Mounted(all) => *mounts = all,
                Report::Started { root } => started = Some(root),
                Report::RootEnded { status } => ended = Some(Ended::With(status)),
                Report::Saved => ended = Some(Ended::Saved),
                Report::Failed(error) => return Err(error.into()),
                Report::Complete => complete = true,
            }
        }
        if let Some(root) = started {
            return Ok((root, ended, complete));
        }
        if channel.ended() {
            return Err(crate::wire::internal("the job's init ended without a word"));
        }
        channel.wait(None).context(what)?;
    }
}
