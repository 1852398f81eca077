//! A checkpoint of the program's own job, and what a program can know of its restarts.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cpr_kernel::control;
use cpr_types::{Error, ErrorKind, Result};
use serde_json::json;

use crate::process::started;
use crate::requests::{self, Answer, LOOK};
use crate::run::wait_while;
use crate::sections;

/// How to checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// End the job with the checkpoint: it goes on when it is restarted.
    pub stop: bool,
    /// How long to wait for the checkpoint; one that takes longer is not undone.
    pub timeout: Duration,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        CheckpointOptions {
            stop: false,
            timeout: Duration::from_secs(3600),
        }
    }
}

/// How a program goes on after a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the process that asked for it.
    Continued {
        /// The image.
        image: PathBuf,
    },
    /// In a process restarted from the image.
    Restarted,
}

/// The newest restart of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// How often the process has been restarted.
    pub times: u32,
    /// Identifier of the image, 32 hexadecimal digits.
    pub image: String,
    /// Name of the job.
    pub job: String,
    /// Number of the checkpoint that the image is of, as callbacks were told ([`crate::Notice::checkpoint`]).
    pub generation: u32,
}

/// Whether this process is a restarted one, and from what. It knows only if it had called the library before the
/// checkpoint, see [`crate::start`].
///
/// # Errors
/// The library cannot be started.
pub fn restarted() -> Result<Option<Restart>> {
    let page = started()?;
    let times = page.restarts.load(Ordering::Acquire);
    let text = |field: &[std::sync::atomic::AtomicU8]| String::from_utf8_lossy(&control::get(field)).into_owned();
    Ok((times > 0).then(|| Restart {
        times,
        image: text(&page.image),
        job: text(&page.job),
        generation: page.generation.load(Ordering::Acquire),
    }))
}

/// Checkpoints the job that this process is part of. Returns twice, as it were: in this process, and in every process
/// restarted from the image.
///
/// # Errors
/// [`ErrorKind::NotFound`] in a program that no `cpr run` or `cpr restart` has started, [`ErrorKind::Usage`] in a
/// critical section or callback, [`ErrorKind::TimedOut`], and everything that `cpr checkpoint` can fail with.
pub fn checkpoint(options: &CheckpointOptions) -> Result<Outcome> {
    let page = started()?;
    if sections::is_busy() {
        return Err(Error::new(
            ErrorKind::Usage,
            "a checkpoint cannot be waited for in a critical section or in a callback",
        ));
    }
    let directory = requests::directory(page)?;
    let restarts = page.restarts.load(Ordering::Acquire);
    let request = json!({"stop": options.stop});
    let asked = {
        let _section = sections::enter()?;
        requests::ask(&directory, request)?
    };
    let deadline = Instant::now().checked_add(options.timeout);
    loop {
        let seen = page.request.load(Ordering::Acquire);
        if page.restarts.load(Ordering::Acquire) != restarts {
            return Ok(Outcome::Restarted);
        }
        let found = {
            let _section = sections::enter()?;
            // The section may have been entered after the checkpoint, and in another process.
            if page.restarts.load(Ordering::Acquire) != restarts {
                return Ok(Outcome::Restarted);
            }
            asked.fetch()?
        };
        if let Some(answer) = found {
            return understand(answer);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "the checkpoint is not finished in time",
            ));
        }
        wait_while(&page.request, seen, Some(LOOK));
    }
}

fn understand(answer: Answer) -> Result<Outcome> {
    match answer.good()? {
        Some(image) => Ok(Outcome::Continued { image }),
        None => Err(Error::new(ErrorKind::Internal, "the checkpoint has no image")),
    }
}
