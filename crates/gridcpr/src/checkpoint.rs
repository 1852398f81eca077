//! A checkpoint of the program's own job, and what a program can know of its restarts.
//!
//! The job's supervisor is asked by a datagram and answers with a file, both in the job's directory. Neither is open
//! when the job is stopped: what touches them is a critical section.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cpr_image::ImageId;
use cpr_kernel::control::{self, Page};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde_json::json;

use crate::process::started;
use crate::run::wait_while;
use crate::sections;

/// The job's directory, for its programs.
const DIRECTORY_VARIABLE: &str = "GRIDCPR_JOB_DIR";
const SOCKET: &str = "requests.sock";
/// How often the answer is looked for.
const LOOK: Duration = Duration::from_millis(2);

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
    }))
}

/// The supervisor's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    image: Option<PathBuf>,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
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
    let directory = directory(page).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "this program is not part of a job")
            .with_hint("start it with `cpr run`, or have it checkpointed with `cpr checkpoint PID`")
    })?;
    let restarts = page.restarts.load(Ordering::Acquire);
    let nonce = ImageId::random()?.to_string();
    let request = json!({"nonce": nonce, "stop": options.stop}).to_string();
    {
        let _section = sections::enter()?;
        ask(&directory, request.as_bytes())?;
    }
    let answer = directory.join(format!("answer-{nonce}.json"));
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
            fetch(&answer)?
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

/// The directory of the job: of the one it was restarted as, or of the one it was started as.
fn directory(page: &Page) -> Option<PathBuf> {
    let directory = if page.restarts.load(Ordering::Acquire) > 0 {
        OsString::from_vec(control::get(&page.directory))
    } else {
        std::env::var_os(DIRECTORY_VARIABLE)?
    };
    (!directory.is_empty()).then(|| PathBuf::from(directory))
}

fn ask(directory: &Path, request: &[u8]) -> Result<()> {
    let what = || format!("ask the supervisor of the job in {}", directory.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(io::Error::from)
        .context(what)?;
    // A socket's address has 108 bytes, and paths are longer.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
        .map_err(io::Error::from)
        .context(what)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .context(what)?;
    rustix::net::sendto(&socket, request, SendFlags::DONTWAIT, &address)
        .map_err(io::Error::from)
        .context(what)
        .map(drop)
}

/// The answer, if it is there; it is removed then.
fn fetch(path: &Path) -> Result<Option<Answer>> {
    let what = || format!("read {}", path.display());
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(what),
    };
    // What stays is removed with the next start of the job.
    let _ = std::fs::remove_file(path);
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::new(ErrorKind::Internal, what()).with_source(error))
}

fn understand(answer: Answer) -> Result<Outcome> {
    match (answer.error, answer.image) {
        (Some(failure), _) => {
            let error = Error::new(failure.kind, failure.message);
            Err(match failure.hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
        (None, Some(image)) => Ok(Outcome::Continued { image }),
        (None, None) => Err(Error::new(ErrorKind::Internal, "the checkpoint has no image")),
    }
}
