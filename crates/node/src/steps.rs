//! A job that is saved or restarted step by step, when somebody else says so: who coordinates jobs of several hosts.
//!
//! Each step is a word on standard input. Where that ends, or the next word does not come in time, the job goes on and
//! nothing is saved; or it never ran, and nothing is left of it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_image::{Bundle, Image};
use cpr_kernel::process::PidFd;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;

use crate::checkpoint::{CheckpointOptions, Ready};
use crate::engine::CheckpointReport;
use crate::gate::Gate;
use crate::job::{Job, LastCheckpoint};
use crate::restart::{RestartOptions, restart_at_gate};
use crate::set::{self, Held, Order, PREPARED};
use crate::state::{StateDir, now_ms};
use crate::wire::{Receiver, wait};
use crate::worker::Message;

/// Who says what is to be done, and hears what was.
pub struct Conductor<'a> {
    words: Receiver,
    heard: VecDeque<String>,
    patience: Duration,
    tell: &'a mut dyn FnMut(&str) -> Result<()>,
}

impl<'a> Conductor<'a> {
    /// Words come from standard input, each within `patience`; `tell` passes on which step has been done.
    ///
    /// # Errors
    /// Where there is no standard input.
    pub fn new(patience: Duration, tell: &'a mut dyn FnMut(&str) -> Result<()>) -> Result<Conductor<'a>> {
        let what = || "listen to standard input";
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().context(what)?;
        Ok(Conductor {
            words: Receiver::new(stdin).context(what)?,
            heard: VecDeque::new(),
            patience,
            tell,
        })
    }

    /// Tells that a step is done, and waits for one of these words, which it gives. A worker must not end meanwhile.
    fn reach(&mut self, step: &str, next: &[&'static str], mut worker: Option<&mut Held>) -> Result<&'static str> {
        let what = || format!("wait for the word {}", next.join(" or "));
        (self.tell)(step)?;
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(word) = self.heard.pop_front() {
                if let Some(known) = next.iter().find(|known| **known == word) {
                    return Ok(known);
                }
                return Err(Error::new(ErrorKind::Usage, format!("{}: {word:?} came", what())));
            }
            if self.words.ended() {
                return Err(Error::new(ErrorKind::Cancelled, what()));
            }
            let mut polled = vec![(self.words.as_fd(), PollFlags::IN)];
            polled.extend(worker.as_ref().map(|held| (held.worker.reports.as_fd(), PollFlags::IN)));
            let ready = wait(&polled, Some(deadline)).context(what)?;
            if !ready.contains(&true) {
                return Err(Error::new(ErrorKind::TimedOut, what()));
            }
            if ready.get(1) == Some(&true)
                && let Some(held) = &mut worker
            {
                held.require_alive()?;
            }
            let lines = self.words.lines().context(what)?;
            self.heard
                .extend(lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()));
        }
    }
}

impl Held {
    /// Nothing is to be heard from a worker that waits, unless it has failed.
    fn require_alive(&mut self) -> Result<()> {
        let what = || "listen to a worker";
        for message in self.worker.reports.receive::<Message>().context(what)? {
            if let Message::Failed(error) = message {
                return Err(error.into());
            }
        }
        match self.worker.reports.ended() {
            true => Err(crate::wire::internal("the worker was killed before it could report")),
            false => Ok(()),
        }
    }
}

/// Saves a job that goes on then. It says that it is `prepared`, `stopped` and `saved`, and wants to hear `stop`, `save`
/// and `resume` then. The image is there, and on disk, when it is `saved`. Where it hears `keep` instead of `resume` it is
/// `kept`, whatever becomes of the job, which stands still further.
///
/// # Errors
/// As [`Job::checkpoint`]; [`ErrorKind::Cancelled`] or [`ErrorKind::TimedOut`] where a word does not come. The job goes on
/// then, and there is no image unless it was kept.
pub fn checkpoint_in_steps(
    job: &Job,
    path: &Path,
    options: &CheckpointOptions,
    conductor: &mut Conductor<'_>,
) -> Result<CheckpointReport> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("{} exists already", path.display()),
        ));
    }
    crate::paging::await_pages(&job.directory)?;
    let ready = Ready::new(job)?;
    if ready.is_around_us() {
        let text = format!(
            "this command is a process of job {}, which would have to stop",
            job.name()
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let front = PidFd::open(std::process::id() as i32).context(|| "open our own process")?;
    let mut unit = set::start(job, &ready, path, options, &front)?;
    let mut kept = false;
    let result = conduct(&mut unit, conductor, &mut kept);
    let last = unit.leave();
    let result = result.and(last);
    if result.is_err() && !kept {
        // It may not be there yet.
        let _ = std::fs::remove_file(path);
    }
    let last = LastCheckpoint {
        time_ms: now_ms(),
        image: (result.is_ok() || kept).then(|| path.to_path_buf()),
        error: result.as_ref().err().map(Error::chain),
    };
    // The image is what it is, whether or not this can be noted.
    let _ = job.set_last_checkpoint(&last);
    result
}

fn conduct(unit: &mut Held, conductor: &mut Conductor<'_>, kept: &mut bool) -> Result<()> {
    unit.await_phase(PREPARED)?;
    conductor.reach(PREPARED, &["stop"], Some(unit))?;
    unit.carry_out(Order::Stop)?;
    conductor.reach("stopped", &["save"], Some(unit))?;
    unit.carry_out(Order::Save)?;
    unit.carry_out(Order::Publish)?;
    *kept = conductor.reach("saved", &["resume", "keep"], Some(unit))? == "keep";
    if *kept {
        conductor.reach("kept", &["resume"], Some(unit))?;
    }
    unit.carry_out(Order::Resume)
}

/// Restarts an image as a new job in the background. It says that it is `built` when all of the job is there, and the job
/// runs when it hears `go`.
///
/// # Errors
/// As [`crate::restart_image`]; [`ErrorKind::Cancelled`] or [`ErrorKind::TimedOut`] where the word does not come. Nothing
/// is left of the job then.
pub fn restart_in_steps(
    state: &StateDir,
    path: &Path,
    options: &RestartOptions,
    conductor: &mut Conductor<'_>,
) -> Result<String> {
    let former = match Bundle::recognise(path)? {
        Some(bundle) => bundle.record().job.clone(),
        None => Image::open(path)?.manifest().checkpoint.job.clone(),
    };
    let gate = Gate::new()?;
    let job = restart_at_gate(state, path, &former, options, &gate)?;
    let name = job.name().to_string();
    match conductor.reach("built", &["go"], None) {
        Ok(_) => match gate.open()?.into_iter().find_map(Result::err) {
            None => Ok(name),
            Some(error) => {
                job.discard();
                Err(error)
            }
        },
        Err(error) => {
            gate.shut();
            job.discard();
            Err(error)
        }
    }
}
