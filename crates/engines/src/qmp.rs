//! QEMU's monitor (QMP, docs/interop/qmp-spec.rst of QEMU): one JSON object per line over a UNIX socket.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

/// Longest line that is taken.
const LONGEST: usize = 4 << 20;
/// How often a socket is looked for that is not there so far.
const LOOK: Duration = Duration::from_millis(20);

/// A connection to a monitor that is ready for commands.
pub(crate) struct Monitor {
    stream: UnixStream,
    pending: Vec<u8>,
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, "QEMU's monitor has not answered in time")
        .with_hint("it serves one client at a time: is another one connected?")
}

impl Monitor {
    /// Connects; with `patient` also where nobody listens so far.
    pub(crate) fn connect(path: &Path, deadline: Instant, patient: bool) -> Result<Monitor> {
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error)
                    if patient
                        && Instant::now() < deadline
                        && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
                {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(error).context(|| format!("connect to QEMU's monitor {}", path.display())),
            }
        };
        let mut monitor = Monitor {
            stream,
            pending: Vec::new(),
        };
        let greeting = monitor.object(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is no monitor of QEMU that speaks QMP", path.display()),
            ));
        }
        monitor.ask("qmp_capabilities", json!({}), deadline)?;
        Ok(monitor)
    }

    /// Carries out a command; gives what it returns.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value, deadline: Instant) -> Result<Value> {
        self.send(command, &arguments, &mut SendAncillaryBuffer::default(), deadline)?;
        self.answer(command, deadline)
    }

    /// The same for one to which a descriptor belongs.
    pub(crate) fn ask_with(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: impl AsFd,
        deadline: Instant,
    ) -> Result<Value> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Error::new(
                ErrorKind::Internal,
                "a descriptor does not fit into a message",
            ));
        }
        self.send(command, &arguments, &mut ancillary, deadline)?;
        self.answer(command, deadline)
    }

    fn send(
        &mut self,
        command: &str,
        arguments: &Value,
        ancillary: &mut SendAncillaryBuffer<'_, '_, '_>,
        deadline: Instant,
    ) -> Result<()> {
        let what = || format!("tell QEMU's monitor: {command}");
        let limit = deadline.saturating_duration_since(Instant::now());
        let limit = limit.max(Duration::from_millis(1));
        self.stream.set_write_timeout(Some(limit)).context(what)?;
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        // Lines are far shorter than what a socket takes at once.
        let sent = rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(line.as_bytes())],
            ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(io::Error::from)
        .context(what)?;
        match sent == line.len() {
            true => Ok(()),
            false => Err(late()),
        }
    }

    fn answer(&mut self, command: &str, deadline: Instant) -> Result<Value> {
        loop {
            let mut object = self.object(deadline)?;
            if let Some(error) = object.get("error") {
                let why = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("it does not say why");
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("QEMU refuses {command}: {why}"),
                ));
            }
            if let Some(value) = object.get_mut("return") {
                return Ok(value.take());
            }
            // An event.
        }
    }

    /// The next object that it says.
    fn object(&mut self, deadline: Instant) -> Result<Value> {
        let garbage = || Error::new(ErrorKind::Io, "what QEMU's monitor says is not understood");
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| garbage().with_source(error));
            }
            if self.pending.len() > LONGEST {
                return Err(garbage());
            }
            let limit = deadline.saturating_duration_since(Instant::now());
            if limit.is_zero() {
                return Err(late());
            }
            let what = || "listen to QEMU's monitor";
            self.stream.set_read_timeout(Some(limit)).context(what)?;
            let mut piece = [0; 16384];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Error::new(ErrorKind::Gone, "QEMU has ended")),
                Ok(read) => self.pending.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Error::new(ErrorKind::Gone, "QEMU has ended"));
                }
                Err(error) => return Err(error).context(what),
            }
        }
    }
}

/// The socket of the monitor that a QEMU with these arguments has: that of `-qmp unix:PATH,…`.
pub(crate) fn socket_of(arguments: &[String]) -> Option<PathBuf> {
    let named = |pair: &[String]| {
        matches!(pair[0].as_str(), "-qmp" | "--qmp")
            .then(|| pair[1].strip_prefix("unix:"))
            .flatten()
            .and_then(|rest| rest.split(',').next())
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    arguments.windows(2).find_map(named)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_in_the_arguments() {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let found = |text: &str| socket_of(&words(text));
        assert_eq!(
            found("qemu -m 64 -qmp unix:/a/b,server=on,wait=off -S"),
            Some("/a/b".into())
        );
        assert_eq!(found("qemu --qmp unix:b"), Some("b".into()));
        for none in [
            "qemu -m 64",
            "qemu -qmp tcp:localhost:1",
            "qemu -qmp unix:,server=on",
            "qemu -qmp",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
