//! A program of an engine that brings the memory of a job which runs already.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::process::{ForeignRawFd, Pid, PidfdFlags, PidfdGetfdFlags, Signal};

use crate::program::poll;

/// How often it is looked whether it is ready.
const LOOK: Duration = Duration::from_millis(5);
/// What /proc calls the descriptor by which page faults are answered (userfaultfd(2)).
const FAULTS: &str = "anon_inode:[userfaultfd]";

/// It runs until all memory is there. It is a child of the caller, who has to wait for it; readable once it has ended.
#[derive(Debug)]
pub struct Pager {
    pid: Pid,
    process: OwnedFd,
}

impl Pager {
    /// Starts it, and waits until it has made `socket`.
    ///
    /// # Errors
    /// It cannot be run, ends, or is not ready in time.
    pub(crate) fn start(command: &[OsString], socket: &Path, deadline: Instant) -> Result<Pager> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::Usage, "there is no program to run"))?;
        let what = || format!("run {}", program.to_string_lossy());
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context(what)?;
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let process = process.map_err(std::io::Error::from).context(what)?;
        let pager = Pager { pid, process };
        while !socket.exists() {
            let ended = poll(&[(pager.as_fd(), PollFlags::IN)], Instant::now() + LOOK).context(what)?;
            if ended || Instant::now() >= deadline {
                pager.kill();
                return Err(Error::new(
                    ErrorKind::Io,
                    "what is to bring the job's memory does not get ready",
                ));
            }
        }
        Ok(pager)
    }

    /// Its PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Copies of the descriptors by which it answers page faults. As long as there is one, a page that is missing is
    /// waited for, and never reads as zeros, whatever becomes of the pager.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        let directory = format!("/proc/{}/fd", self.pid);
        let what = || format!("copy descriptors of process {}", self.pid);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).context(what)? {
            let entry = entry.context(what)?;
            let number = entry.file_name().to_string_lossy().parse::<ForeignRawFd>();
            if let Ok(number) = number
                && std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == FAULTS)
            {
                let copy = rustix::process::pidfd_getfd(&self.process, number, PidfdGetfdFlags::empty());
                found.push(copy.map_err(std::io::Error::from).context(what)?);
            }
        }
        Ok(found)
    }

    /// Ends it: nothing of the job has run.
    pub(crate) fn kill(&self) {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

impl AsFd for Pager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}
