//! Messages between our own processes: one JSON value per line over a pipe or socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line taken from a peer. Lists of blockers are the longest messages.
const LONGEST: usize = 16 << 20;

/// An [`Error`] on its way through a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireError {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        WireError {
            kind: error.kind(),
            message: error.chain(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let error = Error::new(wire.kind, wire.message);
        match wire.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// A defect of ours.
pub(crate) fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, message)
}

/// Writes all of `bytes`, waiting where a non-blocking descriptor is full.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                wait(&[(fd, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends one message.
pub(crate) fn send<T: Serialize>(fd: BorrowedFd<'_>, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write_all(fd, &line)
}

/// The receiving end of a line of messages.
#[derive(Debug)]
pub(crate) struct Receiver {
    fd: OwnedFd,
    buffer: Vec<u8>,
    ended: bool,
}

impl Receiver {
    /// Takes over `fd` and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Receiver {
            fd,
            buffer: Vec::new(),
            ended: false,
        })
    }

    /// The peer has closed its end and everything it sent was given out.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Reads what is there without waiting and gives the complete messages.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Vec<T>> {
        let lines = self.lines()?;
        let messages = lines.iter().map(|line| serde_json::from_slice(line));
        Ok(messages.collect::<serde_json::Result<_>>()?)
    }

    /// The same, of lines that are no messages.
    pub(crate) fn lines(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut chunk = [0u8; 16384];
        loop {
            match rustix::io::read(&self.fd, &mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::CONNRESET) => {
                    self.ended = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            if self.buffer.len() > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some(end) = self.buffer[start..].iter().position(|&b| b == b'\n') {
            lines.push(self.buffer[start..start + end].to_vec());
            start += end + 1;
        }
        self.buffer.drain(..start);
        Ok(lines)
    }

    /// Waits until something can be received or `deadline` has passed; false when it has.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        Ok(wait(&[(self.fd.as_fd(), PollFlags::IN)], deadline)?.iter().any(|r| *r))
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the descriptors is ready (or hung up) or `deadline` has passed; tells which are.
pub(crate) fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    loop {
        let timeout = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) => return Ok(polled.iter().map(|p| !p.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A close-on-exec pipe: reading end, writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .context(|| "make a pipe")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_errors_pass() {
        let (read, write) = pipe().unwrap();
        let mut receiver = Receiver::new(read).unwrap();
        assert!(receiver.receive::<WireError>().unwrap().is_empty());
        let error = Error::new(ErrorKind::Busy, "a").with_hint("b");
        send(write.as_fd(), &WireError::from(&error)).unwrap();
        rustix::io::write(&write, b"{\"kind\":").unwrap();
        let got: Vec<WireError> = receiver.receive().unwrap();
        assert_eq!(got.len(), 1);
        let back = Error::from(got[0].clone());
        assert_eq!((back.kind(), back.hint()), (ErrorKind::Busy, Some("b")));
        drop(write);
        assert!(receiver.wait(Some(Instant::now() + Duration::from_secs(5))).unwrap());
        assert!(receiver.receive::<WireError>().unwrap().is_empty() && receiver.ended());
    }
}
