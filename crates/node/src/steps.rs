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
use cpr_types::{ConnectionEnd, Context, Error, ErrorKind, Links, Result};
use rustix::event::PollFlags;

use crate::checkpoint::{CheckpointOptions, Ready};
use crate::engine::{CheckpointReport, channels};
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
    tell: &'a mut dyn FnMut(&Reached<'_>) -> Result<()>,
}

/// A step that is done.
#[derive(Debug, Clone, Copy)]
pub struct Reached<'a> {
    /// Its name.
    pub step: &'a str,
    /// Connections that may lead to jobs that are saved or restarted together with this one.
    pub connections: &'a [ConnectionEnd],
}

impl<'a> Conductor<'a> {
    /// Words come from standard input, each within `patience`; `tell` passes on which step has been done.
    ///
    /// # Errors
    /// Where there is no standard input.
    pub fn new(patience: Duration, tell: &'a mut dyn FnMut(&Reached<'_>) -> Result<()>) -> Result<Conductor<'a>> {
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
    fn reach(&mut self, step: &str, next: &[&'static str], worker: Option<&mut Held>) -> Result<&'static str> {
        let reached = Reached { step, connections: &[] };
        self.reach_with(&reached, next, worker).map(|(word, _)| word)
    }

    /// The same, with what follows the word.
    fn reach_with(
        &mut self,
        reached: &Reached<'_>,
        next: &[&'static str],
        mut worker: Option<&mut Held>,
    ) -> Result<(&'static str, String)> {
        let what = || format!("wait for the word {}", next.join(" or "));
        (self.tell)(reached)?;
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(line) = self.heard.pop_front() {
                let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
                if let Some(known) = next.iter().find(|known| **known == word) {
                    return Ok((known, rest.to_string()));
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
            true => Err(self.worker.lost()),
            false => Ok(()),
        }
    }
}

/// What follows a word, as it is meant.
fn understand<T: serde::de::DeserializeOwned>(word: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("what follows {word} is not understood")).with_source(error)
    })
}

/// Saves a job that goes on then. It says that it is `prepared`, `stopped` and `saved`, and wants to hear `stop`,
/// `save` and `resume` then. With `stopped` it tells of connections out of the job; where `drain` comes instead of
/// `save`, with a list of those that lead to jobs saved in the same stop, nothing is on its way in them when it is
/// `drained`. The image is there, and on disk, when it is `saved`. Where it hears `keep` instead of `resume` it is
/// `kept`, whatever becomes of the job, which stands still further.
///
/// # Errors
/// As [`Job::checkpoint`]; [`ErrorKind::Cancelled`] or [`ErrorKind::TimedOut`] where a word does not come. The job goes
/// on then, and there is no image unless it was kept.
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
    let ends = unit.take_ends()?;
    let stopped = Reached {
        step: "stopped",
        connections: &ends,
    };
    let (word, channels) = conductor.reach_with(&stopped, &["save", "drain"], Some(unit))?;
    if word == "drain" {
        unit.carry_out(Order::Drain(understand(word, &channels)?))?;
        conductor.reach("drained", &["save"], Some(unit))?;
    }
    unit.carry_out(Order::Save)?;
    unit.carry_out(Order::Publish)?;
    *kept = conductor.reach("saved", &["resume", "keep"], Some(unit))? == "keep";
    if *kept {
        conductor.reach("kept", &["resume"], Some(unit))?;
    }
    unit.carry_out(Order::Resume)
}

/// Restarts an image as a new job in the background. Where it has connections to other jobs it says first that it is
/// `unconnected`, tells of them, and wants to hear `link` with what [`Links`] says. It says that it is `built` when all
/// of the job is there, and the job runs when it hears `go`.
///
/// # Errors
/// As [`crate::restart_image`]; [`ErrorKind::Cancelled`] or [`ErrorKind::TimedOut`] where the word does not come.
/// Nothing is left of the job then.
pub fn restart_in_steps(
    state: &StateDir,
    path: &Path,
    options: &RestartOptions,
    conductor: &mut Conductor<'_>,
) -> Result<String> {
    let (former, connections) = match Bundle::recognise(path)? {
        Some(bundle) => (bundle.record().job.clone(), Vec::new()),
        None => {
            let image = Image::open(path)?;
            let manifest = image.manifest();
            (manifest.checkpoint.job.clone(), channels(&manifest.inet_sockets)?)
        }
    };
    let links: Option<Links> = match connections.as_slice() {
        [] => None,
        connections => {
            let step = "unconnected";
            let (word, links) = conductor.reach_with(&Reached { step, connections }, &["link"], None)?;
            Some(understand(word, &links)?)
        }
    };
    let gate = Gate::new(links)?;
    let job = restart_at_gate(state, path, &former, options, &gate)?;
    let name = job.name().to_string();
    // Nothing is to be heard before the job is there, unless that is not wanted any more.
    let there = gate
        .await_all(Some(conductor.words.as_fd()))
        .map_err(|(_, error)| error);
    match there.and_then(|()| conductor.reach("built", &["go"], None)) {
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
