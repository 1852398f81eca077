//! While the memory of a lazily restarted job is still coming.
//!
//! The pager is a thread of the job's init; here is what others do about it. The supervisor holds a second set of the
//! pager's descriptors, so that the death of init alone never lets the job read zeros where memory is missing, and a
//! socket in the job's directory that is closed when all is there: whoever wants to checkpoint the job connects to it
//! and waits for that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::directory::Directory;
use crate::wire::wait;

const SOCKET: &str = "pages.sock";
/// How many may wait at a time.
const WAITING: i32 = 1024;
/// How long the memory of a job may take to come before a checkpoint of it is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// The supervisor's part.
#[derive(Debug)]
pub(crate) struct Paging {
    /// Full of descriptors that nobody takes out.
    _keeper: OwnedFd,
    _listener: OwnedFd,
}

impl Paging {
    /// Begins; gives also what init sends the pager's descriptors to.
    pub(crate) fn begin(directory: &Directory) -> Result<(Paging, OwnedFd)> {
        directory.remove(SOCKET)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || -> io::Result<(Paging, OwnedFd)> {
            let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&listener, &SocketAddrUnix::new(directory.short_path(SOCKET))?)?;
            let private = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::chmodat(directory, SOCKET, private, rustix::fs::AtFlags::empty())?;
            rustix::net::listen(&listener, WAITING)?;
            let paging = Paging {
                _keeper: ours,
                _listener: listener,
            };
            Ok((paging, theirs))
        };
        open().context(|| "prepare for memory that comes later")
    }

    /// All memory is there.
    pub(crate) fn end(self, directory: &Directory) -> Result<()> {
        directory.remove(SOCKET).map(drop)
    }
}

/// Waits until all memory of a job is there, if it was restarted lazily.
///
/// # Errors
/// [`ErrorKind::TimedOut`].
pub(crate) fn await_pages(directory: &Directory) -> Result<()> {
    let what = || "wait for the job's memory";
    let connect = || -> io::Result<Option<OwnedFd>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(directory.short_path(SOCKET))?) {
            Ok(()) => Ok(Some(socket)),
            // There is no such socket, or one that a supervisor left behind.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let Some(socket) = connect().context(what)? else {
        return Ok(());
    };
    let ready = wait(&[(socket.as_fd(), PollFlags::IN)], Some(Instant::now() + PATIENCE)).context(what)?;
    if ready[0] {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TimedOut,
        "memory of the job is still coming from the image it was restarted from",
    ))
}
