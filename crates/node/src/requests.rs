//! What a program asks of its own job, through libgridcpr: a checkpoint (LBNL-3.6.1), or how files are treated by those
//! to come.
//!
//! A request is one datagram to a socket in the job's directory, and its answer a file there, named by the request. So
//! no connection to the outside exists while the job is saved. Only the job's user can reach the directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpointed;
use crate::job::Job;
use crate::state::write_json;
use crate::wire::WireError;

/// Name of the socket in the job's directory.
pub(crate) const SOCKET: &str = "requests.sock";
/// Longest datagram.
const LONGEST: usize = 4096;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Chosen by who asks: 32 hexadecimal digits.
    pub(crate) nonce: String,
    /// End the job with the checkpoint.
    #[serde(default)]
    pub(crate) stop: bool,
    /// No checkpoint: `PATTERN=POLICY` for those to come.
    #[serde(default)]
    pub(crate) policy: Option<String>,
}

/// What became of it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    image: Option<&'a std::path::Path>,
    image_id: Option<&'a str>,
    error: Option<WireError>,
}

/// The socket of a job.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: OwnedFd,
}

impl Requests {
    /// Listens in the directory of `job`, whose lock the caller holds.
    pub(crate) fn listen(job: &Job) -> Result<Requests> {
        let what = || format!("listen for requests of job {}", job.name());
        // Left by a supervisor that was killed.
        job.directory.remove(SOCKET)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .map_err(io::Error::from)
            .context(what)?;
        let address = SocketAddrUnix::new(job.directory.short_path(SOCKET))
            .map_err(io::Error::from)
            .context(what)?;
        rustix::net::bind(&socket, &address)
            .map_err(io::Error::from)
            .context(what)?;
        let (mode, flags) = (rustix::fs::Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty());
        rustix::fs::chmodat(&job.directory, SOCKET, mode, flags)
            .map_err(io::Error::from)
            .context(what)?;
        Ok(Requests { socket })
    }

    /// The next request, none when there is no more. What is no request is passed over.
    pub(crate) fn receive(&self) -> Result<Option<Request>> {
        let mut buffer = [0u8; LONGEST];
        loop {
            let length = match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error)).context(|| "receive a request of the job"),
            };
            if let Ok(request) = serde_json::from_slice::<Request>(&buffer[..length])
                && is_nonce(&request.nonce)
            {
                return Ok(Some(request));
            }
        }
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// It becomes part of a file name.
fn is_nonce(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Tells who asked what became of it.
pub(crate) fn answer(job: &Job, nonce: &str, result: Result<Option<&Checkpointed>, &Error>) -> Result<()> {
    let answer = match result {
        Ok(made) => Answer {
            image: made.and_then(|made| made.image.as_deref()),
            image_id: made.map(|made| made.report.image_id.as_str()),
            error: None,
        },
        Err(error) => Answer {
            image: None,
            image_id: None,
            error: Some(WireError::from(error)),
        },
    };
    write_json(&job.directory, &file_name(nonce), &answer)
}

/// Removes answers that nobody has fetched: their programs have ended, or were saved before they could.
pub(crate) fn remove_answers(job: &Job) -> Result<()> {
    for name in job.directory.names()? {
        if let Some(name) = name.to_str()
            && name
                .strip_prefix("answer-")
                .and_then(|n| n.strip_suffix(".json"))
                .is_some_and(is_nonce)
        {
            job.directory.remove(name)?;
        }
    }
    Ok(())
}

fn file_name(nonce: &str) -> String {
    format!("answer-{nonce}.json")
}

/// The error for a request while a checkpoint is under way.
pub(crate) fn busy(job: &Job) -> Error {
    Error::new(ErrorKind::Busy, format!("job {} is being checkpointed", job.name()))
}
