//! Moving a job to another host: its image streams to a `cpr restart` there, and it ends here when it runs there.
//!
//! Memory is copied while the job runs; only what it writes last is copied, and sent, while it stands still. The other
//! side is reached by a program like ssh(1), whose standard input the image goes to. Its exit code decides: 0 means
//! that the job runs there; any other one of `cpr` that it does not, and it goes on here. Where the connection is lost
//! after all was sent, nobody knows: the job is stopped here, so that it never runs twice.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointOptions, Checkpointed, Progress, Task};
use crate::engine::{CheckpointReport, Compression, Handover, Verdict};
use crate::job::Job;
use crate::wire::wait;

/// Most that is read of what the other side prints.
const LONGEST: u64 = 64 << 10;
/// How long the connection may take to end once it has nothing more to do.
const FAREWELL: Duration = Duration::from_secs(10);
/// The exit code of ssh(1) when the connection failed.
const NO_CONNECTION: i32 = 255;
/// From this exit code of a shell on, a signal ended the `cpr` there, perhaps when the job ran.
const KILLED: i32 = 128;

/// How to move a job.
pub struct MigrateOptions {
    /// The host, as the program that reaches it knows it.
    pub host: OsString,
    /// That program with its arguments; the host and one command for a shell there are added.
    pub ssh: Vec<OsString>,
    /// `cpr` there.
    pub remote_cpr: OsString,
    /// Name of the job there; the same as here unless given.
    pub name: Option<String>,
    /// Let it run there before its memory is in place.
    pub lazy: bool,
    /// Compress page data on the way.
    pub compression: Option<Compression>,
    /// How long stopping all threads may take.
    pub timeout: Duration,
    /// How long the other side may take without any progress, and to restart the job.
    pub patience: Duration,
    /// Shows progress.
    pub progress: Option<Progress>,
}

/// A job that was moved.
#[derive(Debug, Clone, Serialize)]
pub struct Migrated {
    /// Its name there.
    pub name: String,
    /// What the engine says of the image; the freeze lasted until the job ran there.
    pub report: CheckpointReport,
}

/// What `cpr restart --detach --json` prints.
#[derive(Deserialize)]
struct Running {
    job: String,
}

/// The program that reaches the other side. Dropping it ends it.
struct Connection {
    child: Child,
    pidfd: OwnedFd,
    output: Option<File>,
}

impl Connection {
    fn open(options: &MigrateOptions, job: &str) -> Result<(Connection, File)> {
        let program = options.ssh.first().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no program is given that reaches the other host")
                .with_hint("see --ssh and GRIDCPR_SSH")
        })?;
        let name = options.name.as_deref().unwrap_or(job);
        let mut words: Vec<&OsStr> = vec![&options.remote_cpr];
        words.extend(["restart", "--detach", "--json", "--name", name].map(OsStr::new));
        if options.lazy {
            words.push(OsStr::new("--lazy"));
        }
        words.push(OsStr::new("-"));
        let mut command = Command::new(program);
        command
            .args(&options.ssh[1..])
            .arg(&options.host)
            .arg(shell_command(&words));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let what = || format!("run {}", program.display());
        let mut child = command.spawn().context(what)?;
        let pid = Pid::from_raw(child.id() as i32);
        let pidfd = pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        let (Some(Ok(pidfd)), Some(input), Some(output)) = (pidfd, child.stdin.take(), child.stdout.take()) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::new(ErrorKind::Internal, what()));
        };
        let connection = Connection {
            child,
            pidfd,
            output: Some(File::from(OwnedFd::from(output))),
        };
        Ok((connection, File::from(OwnedFd::from(input))))
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context(|| "wait for the connection to end")
    }

    /// How it ended, once it has; after a while it is made to.
    fn end(&mut self) -> Result<ExitStatus> {
        let _ = wait(&[(self.pidfd.as_fd(), PollFlags::IN)], Some(Instant::now() + FAREWELL));
        if self.ended()?.is_none() {
            let _ = self.child.kill();
        }
        self.child.wait().context(|| "wait for the connection to end")
    }

    /// The job that runs there, if it said so.
    fn running(&mut self) -> Option<String> {
        let mut said = Vec::new();
        self.output.take()?.take(LONGEST).read_to_end(&mut said).ok()?;
        // What a login there prints comes before.
        let line = said.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty())?;
        serde_json::from_slice::<Running>(line).ok().map(|running| running.job)
    }
}

impl AsFd for Connection {
    /// Is ready when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One command line for a shell, each word quoted.
fn shell_command(words: &[&OsStr]) -> OsString {
    let mut line = OsString::new();
    for word in words {
        if !line.is_empty() {
            line.push(" ");
        }
        let quoted: Vec<u8> = word
            .as_encoded_bytes()
            .iter()
            .flat_map(|byte| match byte {
                b'\'' => b"'\\''".to_vec(),
                other => vec![*other],
            })
            .collect();
        use std::os::unix::ffi::OsStrExt;
        line.push("'");
        line.push(OsStr::from_bytes(&quoted));
        line.push("'");
    }
    line
}

impl Job {
    /// Moves the job to another host. On an error it goes on here, unless nobody knows whether it runs there.
    ///
    /// # Errors
    /// As [`Job::checkpoint`]; those of `cpr restart` there, as far as its exit code tells them; [`ErrorKind::Io`] when
    /// the connection is lost; [`ErrorKind::TimedOut`] when the other side is not heard of in time;
    /// [`ErrorKind::Cancelled`] when it is not known whether the job runs there: it is stopped then.
    pub fn migrate(&self, mut options: MigrateOptions) -> Result<Migrated> {
        let mut progress = options.progress.take().unwrap_or_else(|| Box::new(|_, _, _| {}));
        // Before anything is started there.
        self.living()?;
        let (mut connection, stream) = Connection::open(&options, self.name())?;
        let (word, speaker) = crate::wire::pipe()?;
        let request = CheckpointOptions {
            stop: true,
            live: true,
            compression: options.compression,
            timeout: options.timeout,
            ..CheckpointOptions::default()
        };
        let task = Task::for_handover(self, &request, Handover { stream, word })?;
        let outcome = attend(task, &mut connection, speaker, options.patience, &mut progress)?;
        let host = options.host.display();
        match (outcome.verdict, outcome.checkpointed) {
            (Verdict::Taken, Ok(made)) => Ok(Migrated {
                name: outcome.running.unwrap_or_default(),
                report: made.report,
            }),
            // While we listen, the worker is cancelled by that verdict only.
            (Verdict::Unknown, Err(error)) if error.kind() == ErrorKind::Cancelled => Err(Error::new(
                ErrorKind::Cancelled,
                format!(
                    "the connection to {host} was lost when all was sent; job {} may run there, and is stopped here",
                    self.name()
                ),
            )
            .with_hint(format!(
                "if it does not run there, `cpr kill --signal CONT {0}` lets it go on here; if it does, `cpr rm --force \
                 {0}` removes it here",
                self.name()
            ))),
            // Why the connection failed says more than that it is broken.
            (_, Err(error)) if error.kind() == ErrorKind::Io || error.kind() == ErrorKind::Cancelled => {
                Err(refusal(outcome.status, &host.to_string(), self.name()).with_source(error))
            }
            (_, Err(error)) => Err(error),
            (_, Ok(_)) => Err(Error::new(ErrorKind::Internal, "the job was ended though nobody has taken it over")),
        }
    }
}

/// What came of it.
struct Attended {
    verdict: Verdict,
    status: ExitStatus,
    running: Option<String>,
    checkpointed: Result<Checkpointed>,
}

/// Attends both sides until both have ended.
fn attend(
    mut task: Task<'_>,
    connection: &mut Connection,
    speaker: OwnedFd,
    patience: Duration,
    progress: &mut Progress,
) -> Result<Attended> {
    let mut speaker = Some(File::from(speaker));
    let mut verdict = Verdict::Unknown;
    let mut running = None;
    let mut latest = (String::new(), 0);
    let mut deadline = Instant::now() + patience;
    loop {
        let mut told = |phase: &str, done: u64, total: u64| {
            if latest != (phase.to_owned(), done) {
                latest = (phase.to_owned(), done);
                deadline = Instant::now() + patience;
            }
            progress(phase, done, total);
        };
        if task.pump(&mut told)? {
            break;
        }
        if speaker.is_some()
            && let Some(status) = connection.ended()?
        {
            running = connection.running();
            verdict = match status.code() {
                Some(0) if running.is_some() => Verdict::Taken,
                Some(KILLED..) | None => Verdict::Unknown,
                Some(_) => Verdict::Refused,
            };
            if let Some(mut speaker) = speaker.take() {
                // Where the worker has given up it hears nothing any more.
                let _ = speaker.write_all(&[verdict.byte()]);
            }
            continue;
        }
        let ready = match &speaker {
            Some(_) => wait(
                &[(task.as_fd(), PollFlags::IN), (connection.as_fd(), PollFlags::IN)],
                Some(deadline),
            ),
            None => wait(&[(task.as_fd(), PollFlags::IN)], None),
        }
        .context(|| "wait for the other side")?;
        if !ready.contains(&true) {
            // Too late. What it said until now is looked at once more.
            let _ = connection.child.kill();
        }
    }
    drop(speaker);
    let status = connection.end()?;
    Ok(Attended {
        verdict,
        status,
        running,
        checkpointed: task.finish(),
    })
}

/// Why the job does not run there.
fn refusal(status: ExitStatus, host: &str, job: &str) -> Error {
    let known = |code: &i32| {
        ErrorKind::ALL
            .into_iter()
            .find(|kind| i32::from(kind.exit_code()) == *code)
    };
    let (kind, how) = match status.code() {
        Some(NO_CONNECTION) => (ErrorKind::Io, format!("{host} could not be reached")),
        Some(code) => (
            known(&code).unwrap_or(ErrorKind::Io),
            format!("it was not restarted on {host} (exit code {code})"),
        ),
        None if status.signal() == Some(9) => (ErrorKind::TimedOut, format!("{host} took too long")),
        None => (ErrorKind::Io, format!("the connection to {host} was killed")),
    };
    Error::new(kind, format!("job {job} goes on here: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_other_shell_as_they_are() {
        let line = shell_command(&["a b".as_ref(), "it's".as_ref(), "$(x)".as_ref()]);
        let told = Command::new("sh")
            .arg("-c")
            .arg(format!("printf '%s|' {}", line.display()))
            .output()
            .unwrap();
        assert_eq!(told.stdout, b"a b|it's|$(x)|");
    }
}
