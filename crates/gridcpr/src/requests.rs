//! What is asked of the job's supervisor: by a datagram, answered with a file, both in the job's directory. Neither is
//! open when the job is stopped: what touches them has to be a critical section.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use cpr_image::ImageId;
use cpr_kernel::control::{self, Page};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde_json::Value;

/// The job's directory, for its programs.
const DIRECTORY_VARIABLE: &str = "GRIDCPR_JOB_DIR";
const SOCKET: &str = "requests.sock";
/// Longest request that is listened to.
const LONGEST: usize = 4096;
/// How often the answer is looked for.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// The supervisor's answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    image: Option<PathBuf>,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Answer {
    /// The image, if there is one; an error where that is the answer.
    pub(crate) fn good(self) -> Result<Option<PathBuf>> {
        let Some(failure) = self.error else {
            return Ok(self.image);
        };
        let error = Error::new(failure.kind, failure.message);
        Err(match failure.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        })
    }
}

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Asked {
    answer: PathBuf,
}

/// The directory of the job: of the one it was restarted as, or of the one it was started as.
pub(crate) fn directory(page: &Page) -> Result<PathBuf> {
    let directory = if page.restarts.load(Ordering::Acquire) > 0 {
        OsString::from_vec(control::get(&page.directory))
    } else {
        std::env::var_os(DIRECTORY_VARIABLE).unwrap_or_default()
    };
    if directory.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "this program is not part of a job")
            .with_hint("start it with `cpr run`, or have it checkpointed with `cpr checkpoint PID`"));
    }
    Ok(PathBuf::from(directory))
}

/// Sends a request, an object.
pub(crate) fn ask(job: &Path, mut request: Value) -> Result<Asked> {
    let what = || format!("ask the supervisor of the job in {}", job.display());
    let nonce = ImageId::random()?.to_string();
    request["nonce"] = nonce.as_str().into();
    let request = request.to_string();
    if request.len() > LONGEST {
        return Err(Error::new(ErrorKind::Usage, "what is asked is too long"));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(job, flags, Mode::empty())
        .map_err(io::Error::from)
        .context(what)?;
    // A socket's address has 108 bytes, and paths are longer.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
        .map_err(io::Error::from)
        .context(what)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .context(what)?;
    rustix::net::sendto(&socket, request.as_bytes(), SendFlags::DONTWAIT, &address)
        .map_err(io::Error::from)
        .context(what)?;
    Ok(Asked {
        answer: job.join(format!("answer-{nonce}.json")),
    })
}

impl Asked {
    /// The answer, if it is there; it is removed then.
    pub(crate) fn fetch(&self) -> Result<Option<Answer>> {
        let what = || format!("read {}", self.answer.display());
        let bytes = match std::fs::read(&self.answer) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(what),
        };
        // What stays is removed with the next start of the job.
        let _ = std::fs::remove_file(&self.answer);
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::new(ErrorKind::Internal, what()).with_source(error))
    }
}
