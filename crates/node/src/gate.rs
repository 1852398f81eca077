//! Several jobs that are restarted together: none runs before all are there.
//!
//! Each job is built by a process of its own, which says that it is there and then waits at the gate until whoever
//! restarts them opens it. Where that one gives up or is gone, the gate never opens, and nothing of the jobs is left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Links, Result};
use rustix::event::PollFlags;

use crate::engine::Meeting;
use crate::restart::Daemon;
use crate::wire::{pipe, wait};

/// Longest that a job waits for the others. Each of them has deadlines of its own.
const LONGEST: Duration = Duration::from_secs(3600);

/// Both ends of both pipes. A process that forks takes out of its copy what is not its own.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Of whoever restarts the jobs: hears who is there, and lets them go.
    front: Mutex<Option<Side>>,
    /// Of the jobs: says that one is there, and hears when it may go.
    job: Mutex<Option<Side>>,
    /// At the front: the daemons of jobs that are being built, in their order.
    held: Mutex<Vec<Daemon>>,
    /// How the jobs make the connections between them again.
    links: Option<Links>,
}

#[derive(Debug)]
struct Side {
    hears: OwnedFd,
    says: OwnedFd,
}

impl Gate {
    pub(crate) fn new(links: Option<Links>) -> Result<Gate> {
        let ((front_hears, job_says), (job_hears, front_says)) = (pipe()?, pipe()?);
        let side = |hears, says| Mutex::new(Some(Side { hears, says }));
        Ok(Gate {
            front: side(front_hears, front_says),
            job: side(job_hears, job_says),
            held: Mutex::default(),
            links,
        })
    }

    /// In the process that builds a job: with the other jobs that its connections lead to.
    pub(crate) fn meeting(&self) -> Result<Option<Meeting<'_>>> {
        let Some(links) = &self.links else { return Ok(None) };
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let hears = job.as_ref().map(|side| side.hears.try_clone());
        let abandoned = hears.transpose().context(|| "copy a descriptor")?;
        Ok(Some(Meeting { links, abandoned }))
    }

    /// In the process that builds a job: with the front's end open here too, its death would not show.
    pub(crate) fn leave_front(&self) {
        take(&self.front);
        self.held().clear();
    }

    /// In a process that has forked the one that builds the job.
    pub(crate) fn leave(&self) {
        self.leave_front();
        take(&self.job);
    }

    /// In the process that has built a job: waits until it may go on.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] where it may not; [`ErrorKind::TimedOut`].
    pub(crate) fn hold(&self) -> Result<()> {
        let what = || "wait for the jobs that are restarted with this one";
        let Some(side) = take(&self.job) else {
            return Err(crate::wire::internal("the gate was left"));
        };
        rustix::io::write(&side.says, b"t")
            .map_err(std::io::Error::from)
            .context(what)?;
        let deadline = Instant::now() + LONGEST;
        if !wait(&[(side.hears.as_fd(), PollFlags::IN)], Some(deadline)).context(what)?[0] {
            return Err(Error::new(ErrorKind::TimedOut, what()));
        }
        match hear(side.hears.as_fd()).context(what)? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Cancelled,
                "one of the jobs that are restarted with this one is not there",
            )),
        }
    }

    /// At the front: a job is being built, and this is its daemon.
    pub(crate) fn keep(&self, daemon: Daemon) {
        self.held().push(daemon);
    }

    /// At the front: waits until all jobs are there. `watched` is readable, or hung up, when there is no use in
    /// waiting.
    ///
    /// # Errors
    /// The position of a job that is not, and why.
    pub(crate) fn await_all(&self, watched: Option<BorrowedFd<'_>>) -> std::result::Result<(), (usize, Error)> {
        let what = || "wait for the jobs to be there";
        let front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        let front = front
            .as_ref()
            .ok_or_else(|| (0, crate::wire::internal("the gate was left")))?;
        let mut held = self.held();
        let mut there = 0;
        while there < held.len() {
            let mut polled = vec![(front.hears.as_fd(), PollFlags::IN)];
            polled.extend(held.iter().map(|daemon| (daemon.as_fd(), PollFlags::IN)));
            polled.extend(watched.map(|fd| (fd, PollFlags::IN)));
            // No deadline: who builds a job has those that matter, and its death ends this.
            let ready = wait(&polled, None).context(what).map_err(|error| (0, error))?;
            if let Some(failed) = ready[1..=held.len()].iter().position(|ready| *ready) {
                let result = held.remove(failed).await_running();
                let astray = || crate::wire::internal("a job runs before it may");
                return Err((failed, result.err().unwrap_or_else(astray)));
            }
            if ready.get(1 + held.len()) == Some(&true) {
                return Err((0, Error::new(ErrorKind::Cancelled, what())));
            }
            if ready[0] && hear(front.hears.as_fd()).context(what).map_err(|error| (0, error))? {
                there += 1;
            }
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Vec<Daemon>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At the front: ends the jobs that are there. None of them has run.
    pub(crate) fn shut(&self) {
        take(&self.front);
        take(&self.job);
        for daemon in self.held().drain(..) {
            // That it does not run is what is wanted.
            let _ = daemon.await_running();
        }
    }

    /// At the front: lets all go on that are there; tells of each, in their order, whether it does.
    pub(crate) fn open(&self) -> Result<Vec<Result<()>>> {
        let held = std::mem::take(&mut *self.held());
        let front = take(&self.front).ok_or_else(|| crate::wire::internal("the gate was left"))?;
        take(&self.job);
        // Few bytes are written at once.
        rustix::io::write(&front.says, &vec![b'g'; held.len()])
            .map_err(std::io::Error::from)
            .context(|| "let the jobs go on")?;
        Ok(held.into_iter().map(Daemon::await_running).collect())
    }
}

fn take(side: &Mutex<Option<Side>>) -> Option<Side> {
    side.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Reads one byte; false where nobody can write one any more.
fn hear(from: BorrowedFd<'_>) -> std::io::Result<bool> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(from, &mut byte) {
            Ok(read) => return Ok(read == 1),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
