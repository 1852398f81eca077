//! Running commands and watching processes: every wait ends, at its deadline or on Ctrl-C at the latest.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::interrupt;

/// How often a wait looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

/// A process that can be asked whether it lives, whoever's child it is.
#[derive(Debug)]
pub struct Alive {
    pidfd: OwnedFd,
}

impl Alive {
    /// # Errors
    /// [`ErrorKind::Gone`] when there is no such process.
    pub fn of(pid: i32) -> Result<Alive> {
        let what = || format!("open process {pid}");
        let number = Pid::from_raw(pid).ok_or_else(|| Error::new(ErrorKind::Gone, what()))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())
            .map_err(std::io::Error::from)
            .context(what)?;
        Ok(Alive { pidfd })
    }

    /// It has not ended.
    pub fn is_alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    /// Waits until it has ended; false when it has not in time.
    pub fn ended_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).ok();
        matches!(
            poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], time.as_ref()),
            Ok(1)
        )
    }

    /// Kills it.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

/// A command that was started and is over when this is dropped, at the latest.
#[derive(Debug)]
pub struct Running {
    text: String,
    child: Child,
    alive: Alive,
    output: File,
    errors: File,
    begun: Instant,
    ended: bool,
}

/// What a command that succeeded has left.
#[derive(Debug)]
pub struct Ended {
    /// Standard output.
    pub output: String,
    /// From just before it was started until it had ended.
    pub wall: Duration,
    /// When it had ended.
    pub at: Instant,
}

impl Running {
    /// Starts a command, in a process group of its own so that Ctrl-C reaches only us. Its output goes to files: what
    /// it leaves in the background cannot block us.
    pub fn start(mut command: Command) -> Result<Running> {
        let text = format!("{command:?}").replace('"', "");
        let output = tempfile::tempfile().context(|| "make a temporary file")?;
        let errors = tempfile::tempfile().context(|| "make a temporary file")?;
        let copy = |file: &File| file.try_clone().context(|| "copy a descriptor");
        command
            .stdin(Stdio::null())
            .stdout(copy(&output)?)
            .stderr(copy(&errors)?)
            .process_group(0);
        let begun = Instant::now();
        let child = command.spawn().context(|| format!("start {text}"))?;
        let alive = Alive::of(child.id() as i32)?;
        Ok(Running {
            text,
            child,
            alive,
            output,
            errors,
            begun,
            ended: false,
        })
    }

    /// When it was started.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Whether it has ended with an error.
    pub fn has_failed(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if !status.success())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`], [`ErrorKind::Cancelled`], and any other end than success, with what it said.
    pub fn finish(self, patience: Duration) -> Result<Ended> {
        self.wait(patience, interrupt::check)
    }

    fn wait(mut self, patience: Duration, go_on: fn() -> Result<()>) -> Result<Ended> {
        let deadline = self.begun + patience;
        while !self.alive.ended_within(LOOK) {
            go_on()?;
            if Instant::now() > deadline {
                let text = format!("{} takes longer than {} s", self.text, patience.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
        }
        let at = Instant::now();
        let status = self.child.wait().context(|| format!("wait for {}", self.text))?;
        self.ended = true;
        let output = text_of(&mut self.output)?;
        if !status.success() {
            return Err(self.failure(status));
        }
        Ok(Ended {
            output,
            wall: at - self.begun,
            at,
        })
    }

    fn failure(&mut self, status: ExitStatus) -> Error {
        let said = text_of(&mut self.errors).unwrap_or_default();
        let text = format!("{} ended with {status}: {}", self.text, said.trim());
        Error::new(ErrorKind::Io, text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.alive.kill();
            let _ = self.child.wait();
        }
    }
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    let what = || "read what a command has printed";
    file.rewind().context(what)?;
    file.read_to_end(&mut bytes).context(what)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command to its end.
///
/// # Errors
/// As [`Running::finish`].
pub fn run(command: Command, patience: Duration) -> Result<Ended> {
    Running::start(command)?.finish(patience)
}

/// Runs a command to its end also after Ctrl-C, to clean up.
///
/// # Errors
/// As [`Running::finish`], but never [`ErrorKind::Cancelled`].
pub fn run_regardless(command: Command, patience: Duration) -> Result<Ended> {
    Running::start(command)?.wait(patience, || Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such luck >&2; exit 3"]);
        let error = run(command, Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let running = Running::start(command).unwrap();
        let alive = Alive::of(running.child.id() as i32).unwrap();
        let error = running.finish(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!alive.is_alive());
    }
}
