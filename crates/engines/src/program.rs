//! A program of an engine: in a process group of its own, with a deadline on every line it reads or writes.
//!
//! What it says on standard error is kept, as far as it is the last of it, for the user to see when something fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

/// Longest line that is taken from a program.
const LONGEST_LINE: usize = 64 << 10;
/// So much of what it says on standard error is kept.
const KEPT: usize = 2000;

/// Lowest number of a copy of a standard stream.
const FIRST_STREAM: i32 = 10;

/// A program that runs. Dropped, it is killed with its process group.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    pending: Vec<u8>,
    told: Vec<u8>,
    done: bool,
}

impl Program {
    /// Starts it with pipes to and from it.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn start(command: &[OsString]) -> Result<Program> {
        Program::spawn(command, Stdio::piped(), Stdio::piped())
    }

    /// Starts it with `input` as its standard input and nothing for its standard output.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn start_with(command: &[OsString], input: OwnedFd) -> Result<Program> {
        Program::spawn(command, Stdio::from(input), Stdio::null())
    }

    fn spawn(command: &[OsString], input: Stdio, output: Stdio) -> Result<Program> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::Usage, "there is no program to run"))?;
        let name = program.to_string_lossy().into_owned();
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context(|| format!("run {name}"))?;
        let input = child.stdin.take().map(OwnedFd::from);
        let output = child.stdout.take().map(OwnedFd::from);
        let errors = child.stderr.take().map(OwnedFd::from);
        let started = Program {
            name,
            child,
            input,
            output,
            errors,
            pending: Vec::new(),
            told: Vec::new(),
            done: false,
        };
        for fd in [&started.input, &started.output, &started.errors].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)
                .map_err(io::Error::from)
                .context(|| format!("set up a pipe to {}", started.name))?;
        }
        Ok(started)
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where it is not read in time; the program has closed its input.
    pub(crate) fn tell(&mut self, line: &str, deadline: Instant) -> Result<()> {
        let bytes = format!("{line}\n").into_bytes();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some(input) = &self.input else {
                return Err(self.gone());
            };
            match rustix::io::write(input, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !self.wait(Some(PollFlags::OUT), false, deadline)? {
                        return Err(self.late());
                    }
                }
                Err(rustix::io::Errno::PIPE) => return Err(self.gone()),
                Err(error) => return Err(io::Error::from(error)).context(|| format!("write to {}", self.name)),
            }
        }
        Ok(())
    }

    /// The next line it writes.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where there is none in time; [`ErrorKind::Gone`] where it ended instead;
    /// [`ErrorKind::Io`] where it is too long or no text.
    pub(crate) fn line(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let text = String::from_utf8(line).map_err(|_| self.garbage("what it writes is no text"))?;
                return Ok(text.trim_end().to_string());
            }
            if self.pending.len() > LONGEST_LINE {
                return Err(self.garbage("it writes a line without end"));
            }
            let Some(output) = &self.output else {
                return Err(self.gone());
            };
            let mut chunk = [0; 4096];
            match rustix::io::read(output, &mut chunk) {
                Ok(0) => self.output = None,
                Ok(read) => self.pending.extend_from_slice(&chunk[..read]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !self.wait(None, true, deadline)? {
                        return Err(self.late());
                    }
                }
                Err(error) => return Err(io::Error::from(error)).context(|| format!("read from {}", self.name)),
            }
        }
    }

    /// Runs a program to its end with nothing to read; gives the lines it prints.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where it does not end in time; [`ErrorKind::Unsupported`] where it fails, with the last
    /// line that it said.
    pub(crate) fn run(command: &[OsString], deadline: Instant) -> Result<Vec<String>> {
        Program::spawn(command, Stdio::null(), Stdio::piped())?.until_it_ends(deadline)
    }

    /// The same with `input` as its standard input.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn run_on(command: &[OsString], input: OwnedFd, deadline: Instant) -> Result<Vec<String>> {
        Program::spawn(command, Stdio::from(input), Stdio::piped())?.until_it_ends(deadline)
    }

    fn until_it_ends(mut self, deadline: Instant) -> Result<Vec<String>> {
        let program = &mut self;
        let mut lines = Vec::new();
        while program.output.is_some() {
            match program.line(deadline) {
                Ok(line) => lines.push(line),
                Err(_) if program.output.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            if let Some(status) = program
                .child
                .try_wait()
                .context(|| format!("wait for {}", program.name))?
            {
                program.done = true;
                if status.success() {
                    return Ok(lines);
                }
                program.hear();
                let last = lines.iter().rev().find(|line| !line.trim().is_empty());
                if let Some(last) = last.filter(|_| program.told.is_empty()) {
                    program.told = last.clone().into_bytes();
                }
                return Err(program.with_words(
                    ErrorKind::Unsupported,
                    format!("{} has failed ({status})", program.name),
                ));
            }
            if !program.wait_end(deadline)? {
                return Err(program.late());
            }
        }
    }

    /// Waits until it has ended; false when the deadline has passed.
    fn wait_end(&mut self, deadline: Instant) -> Result<bool> {
        let pid = Pid::from_child(&self.child);
        let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
        let ended = ended.context(|| format!("watch {}", self.name))?;
        // Else a full pipe would keep it from ending.
        let mut fds = vec![(ended.as_fd(), PollFlags::IN)];
        fds.extend(self.errors.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)));
        let ready = poll(&fds, deadline).context(|| format!("wait for {}", self.name))?;
        self.hear();
        Ok(ready)
    }

    /// Waits for its pipes, and takes what it says on standard error; false when the deadline has passed.
    fn wait(&mut self, input: Option<PollFlags>, output: bool, deadline: Instant) -> Result<bool> {
        let mut fds: Vec<(BorrowedFd<'_>, PollFlags)> = Vec::new();
        fds.extend(input.and_then(|flags| Some((self.input.as_ref()?.as_fd(), flags))));
        fds.extend(
            self.output
                .as_ref()
                .filter(|_| output)
                .map(|fd| (fd.as_fd(), PollFlags::IN)),
        );
        fds.extend(self.errors.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)));
        let ready = poll(&fds, deadline).context(|| format!("wait for {}", self.name))?;
        self.hear();
        Ok(ready)
    }

    /// Takes what it has said on standard error.
    fn hear(&mut self) {
        while let Some(errors) = &self.errors {
            let mut chunk = [0; 4096];
            match rustix::io::read(errors, &mut chunk) {
                Ok(read @ 1..) => {
                    self.told.extend_from_slice(&chunk[..read]);
                    let surplus = self.told.len().saturating_sub(KEPT);
                    self.told.drain(..surplus);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Ok(_) | Err(_) => self.errors = None,
            }
        }
    }

    /// Closes its input and waits for its end. Where that does not come in time the program is killed, but nothing
    /// that it has started.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn finish(mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        self.done = true;
        self.input = None;
        loop {
            let ready = self.wait_end(deadline)?;
            if let Some(status) = self.child.try_wait().context(|| format!("wait for {}", self.name))? {
                return Ok(Some(status));
            }
            if !ready {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return Ok(None);
            }
        }
    }

    /// An error about what it does, with what it said.
    pub(crate) fn garbage(&self, what: &str) -> Error {
        self.with_words(ErrorKind::Io, format!("{}: {what}", self.name))
    }

    fn late(&mut self) -> Error {
        self.hear();
        self.with_words(ErrorKind::TimedOut, format!("{} has not answered in time", self.name))
    }

    fn gone(&mut self) -> Error {
        self.hear();
        let status = match self.child.try_wait() {
            Ok(Some(status)) => format!(" ({status})"),
            _ => String::new(),
        };
        self.with_words(
            ErrorKind::Gone,
            format!("{} has ended without an answer{status}", self.name),
        )
    }

    fn with_words(&self, kind: ErrorKind, what: String) -> Error {
        let told = String::from_utf8_lossy(&self.told);
        let last = told.lines().rev().find(|line| !line.trim().is_empty());
        match last {
            Some(last) => Error::new(kind, format!("{what}; it said: {}", last.trim())),
            None => Error::new(kind, what),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // Not yet waited for, so that the number is its own.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies of our standard streams, which are the job's, that a program we start inherits.
pub(crate) fn streams() -> Result<Vec<OwnedFd>> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let copy = |stream: BorrowedFd<'_>| {
        let copy = rustix::io::fcntl_dupfd_cloexec(stream, FIRST_STREAM)?;
        rustix::io::fcntl_setfd(&copy, FdFlags::empty())?;
        Ok(copy)
    };
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .map(copy)
        .collect::<rustix::io::Result<_>>()
        .map_err(std::io::Error::from)
        .context(|| "hand the job's standard streams over")
}

/// Waits until a descriptor is ready; false when the deadline has passed.
pub(crate) fn poll(fds: &[(BorrowedFd<'_>, PollFlags)], deadline: Instant) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    loop {
        let left: Duration = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
