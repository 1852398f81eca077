//! The process that runs the engine on a job: a fork in a session of its own, inside the job's namespaces.
//!
//! It is not the command the user sees, so that Ctrl-C there or its death cannot leave a job half stopped: the worker
//! sees that nobody listens any more and puts everything back in order.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cpr_kernel::namespace;
use cpr_kernel::spawn::{self, Namespaces, SignalMask};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::engine::{Blocker, CheckpointReport, Event, Observer};
use crate::target::{self, Target};
use crate::wire::{Receiver, WireError, send};

/// HUP, INT, QUIT, USR1, USR2, ALRM, TERM, TSTP, TTIN, TTOU.
const DEAF: [i32; 10] = [1, 2, 3, 10, 12, 14, 15, 20, 21, 22];

/// What a worker tells its front.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Message {
    Event(Event),
    Checkpointed(CheckpointReport),
    Blockers(Vec<Blocker>),
    Failed(WireError),
}

/// A worker and the pipe it reports through.
#[derive(Debug)]
pub(crate) struct Worker {
    child: spawn::Child,
    pub(crate) reports: Receiver,
    /// Whose namespaces it works in.
    target: Target,
}

/// The namespaces a worker enters before it works.
///
/// A user enters all of his job's. Root, who needs no user namespace to have power over it, enters only the PID and IPC
/// namespaces of a job with a user namespace of its own: in a mount namespace whose owner may put anything at any path,
/// root has no business. It gets a `/proc` of its own instead.
///
/// The first process of a PID namespace that is no job's, as of a container, is taken from outside: all its namespaces
/// go with it.
pub(crate) fn plan(target: &Target) -> Result<Namespaces> {
    // The namespaces of a process whose main thread has ended are seen by another thread.
    let pid = cpr_kernel::proc::acting(target.pid).to_string();
    let differs = |kind: &str| -> Result<bool> {
        let what = || format!("read the {kind} namespace of process {pid}");
        let theirs = namespace::identity(&pid, kind)
            .context(what)
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::new(ErrorKind::Gone, format!("process {pid} has ended")),
                _ => error,
            })?;
        Ok(theirs != namespace::identity("self", kind).context(what)?)
    };
    // An ordinary process is taken from outside, whatever else it has of its own.
    if !differs("pid")? || target::brings_namespace(target.pid) {
        return Ok(Namespaces::NONE);
    }
    let other_user = differs("user")?;
    let powerful = rustix::process::geteuid().is_root() && namespace::is_admin();
    Ok(Namespaces {
        user: other_user && !powerful,
        pid: true,
        mount: differs("mnt")? && !(other_user && powerful),
        ipc: differs("ipc")?,
    })
}

impl Worker {
    /// Starts a worker in the PID and mount namespaces of `target`; there it runs `work`, and tells its result.
    pub(crate) fn start(target: &Target, work: impl FnOnce(&mut Observer<'_>) -> Result<Message>) -> Result<Worker> {
        let journey = plan(target)?;
        let held = target.try_clone()?;
        let (read, write) = crate::wire::pipe()?;
        // A front that is slow or stopped must not hold up a worker that holds up a job.
        rustix::io::ioctl_fionbio(&write, true)
            .map_err(std::io::Error::from)
            .context(|| "set up the pipe to the worker")?;
        let mut read = Some(read);
        let child = spawn::fork(Namespaces::NONE, || {
            // Else nobody would see that the front is gone.
            drop(read.take());
            let result = travel(target, journey, &write, work);
            if let Err(error) = result {
                report(write.as_fd(), &Message::Failed(WireError::from(&error)));
            }
            0
        })
        .context(|| "fork a worker")?;
        drop(write);
        let read = read.ok_or_else(|| crate::wire::internal("the pipe to the worker is gone"))?;
        let reports = Receiver::new(read).context(|| "listen to the worker")?;
        Ok(Worker {
            child,
            reports,
            target: held,
        })
    }

    /// The error of a worker that has ended without a last word. The kernel kills it with everything else in the PID
    /// namespace of a job when the job's init ends.
    pub(crate) fn lost(&self) -> Error {
        match self.target.is_ending() {
            true => Error::new(ErrorKind::Gone, "the job ended while it was being saved"),
            false => crate::wire::internal("the worker was killed before it could report"),
        }
    }

    /// After the end of its reports: waits for the process itself. The supervisor's loop may have done so already.
    pub(crate) fn reap(self) {
        loop {
            match rustix::process::waitpid(Pid::from_raw(self.child.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

/// The last word. A front that has gone away does not keep the worker from finishing.
fn report(to: BorrowedFd<'_>, message: &Message) {
    let _ = send(to, message);
}

/// Tells of an event, or skips it when the front is behind (such a line is written whole or not at all). Breaks when
/// there is no front any more.
fn observe(to: BorrowedFd<'_>, event: Event) -> ControlFlow<()> {
    let Ok(mut line) = serde_json::to_vec(&Message::Event(event)) else {
        return ControlFlow::Continue(());
    };
    line.push(b'\n');
    match rustix::io::write(to, &line) {
        Err(rustix::io::Errno::PIPE) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

fn travel(
    target: &Target,
    journey: Namespaces,
    write: &OwnedFd,
    work: impl FnOnce(&mut Observer<'_>) -> Result<Message>,
) -> Result<()> {
    rustix::process::setsid()
        .map_err(std::io::Error::from)
        .context(|| "leave the caller's session")?;
    // Inside, processes of the job can signal us (kill -1): what was begun must be ended in order.
    spawn::set_signal_mask(&SignalMask::of(&DEAF)).context(|| "set the signal mask")?;
    // A name only helps whoever lists processes.
    let _ = rustix::thread::set_name(c"cpr-worker");
    let work = move || {
        let result = work(&mut |event| observe(write.as_fd(), event));
        let message = result.unwrap_or_else(|error| Message::Failed(WireError::from(&error)));
        report(write.as_fd(), &message);
    };
    if !journey.pid {
        work();
        return Ok(());
    }
    let join = |namespaces: Namespaces| {
        namespace::join(target.pidfd(), namespaces)
            .context(|| format!("enter the namespaces of process {}", target.pid))
            .map_err(|error| match error.kind() {
                ErrorKind::Denied => error.with_hint("only its owner or root can enter the namespaces of a process"),
                _ => error,
            })
    };
    if journey.user {
        let user = true;
        join(Namespaces {
            user,
            ..Namespaces::NONE
        })?;
    }
    let pid = true;
    join(Namespaces {
        pid,
        ipc: journey.ipc,
        ..Namespaces::NONE
    })?;
    // The joined PID namespace is that of the next child.
    let child = spawn::fork(Namespaces::NONE, || {
        let entered = (|| {
            if journey.mount {
                let mount = true;
                join(Namespaces {
                    mount,
                    ..Namespaces::NONE
                })?;
            }
            require_own_proc()
        })();
        match entered {
            Ok(()) => work(),
            Err(error) => report(write.as_fd(), &Message::Failed(WireError::from(&error))),
        }
        0
    })
    .context(|| "fork a worker inside the job")?;
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitpid(Pid::from_raw(child.pid), WaitOptions::empty()) {}
    Ok(())
}

/// Makes sure that /proc is that of our PID namespace, by a mount of our own where it is not.
fn require_own_proc() -> Result<()> {
    let own = std::process::id().to_string();
    let shown = std::fs::read_link("/proc/self").ok();
    if shown.as_deref() == Some(std::path::Path::new(&own)) {
        return Ok(());
    }
    namespace::new_mount_namespace().context(|| "make a mount namespace")?;
    namespace::make_mounts_slave().context(|| "keep mounts to ourselves")?;
    namespace::mount_proc().context(|| "mount /proc of the job's PID namespace")
}
