//! The tools that are measured, each as the commands a user would give.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::{WaitOptions, wait};
use serde_json::Value;

use crate::cases::Case;
use crate::command::{Alive, run, run_regardless};

/// How long any one command may take.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How long a victim may take to end.
pub const FAREWELL: Duration = Duration::from_secs(20);
/// How often children are looked for.
const LOOK: Duration = Duration::from_millis(5);

/// A tool with one victim in its care. Dropping it ends the victim.
pub trait Tool {
    /// The program whose processes are the tool.
    fn program(&self) -> &Path;
    /// Starts the victim.
    fn start(&mut self, victim: &[OsString]) -> Result<()>;
    /// The victim.
    fn victim(&self) -> Result<&Alive>;
    /// The command that makes a checkpoint.
    fn checkpoint(&mut self, stop: bool) -> Result<Command>;
    /// Learns from what that command printed; gives the image, a file or a directory.
    fn checkpointed(&mut self, output: &str, stop: bool) -> Result<PathBuf>;
    /// The command that restarts the newest image.
    fn restart(&mut self) -> Result<Command>;
    /// Learns who the victim is after that command.
    fn restarted(&mut self) -> Result<()>;
    /// Ends the victim. Whatever it owns is gone afterwards.
    fn end(&mut self);
}

/// Our own.
#[derive(Debug)]
pub struct Cpr {
    program: PathBuf,
    state: PathBuf,
    lazy: bool,
    incremental: bool,
    victim: Option<Alive>,
}

/// What the victim is called.
const JOB: &str = "bench";

impl Cpr {
    /// The victim of a case, with its images below `place`.
    pub fn new(program: &Path, place: &Path, case: &Case) -> Cpr {
        Cpr {
            program: program.to_owned(),
            state: place.join("state"),
            lazy: case.lazy,
            incremental: case.rewrite_percent > 0,
            victim: None,
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env("GRIDCPR_STATE_DIR", &self.state);
        command
    }

    /// Asks who the job's first process is.
    fn find_victim(&mut self) -> Result<()> {
        let listed = run(self.command(&["ps", "--json"]), PATIENCE)?.output;
        let listed: Value = parse(&listed)?;
        let jobs = listed["jobs"].as_array().into_iter().flatten();
        let pid = jobs
            .filter(|job| job["name"] == JOB)
            .find_map(|job| job["pid"].as_i64());
        let pid = pid.ok_or_else(|| Error::new(ErrorKind::Gone, "the victim does not run"))?;
        self.victim = Some(Alive::of(pid as i32)?);
        Ok(())
    }
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Damaged, format!("cpr printed what is not JSON: {text}")).with_source(error)
    })
}

impl Tool for Cpr {
    fn program(&self) -> &Path {
        &self.program
    }

    fn start(&mut self, victim: &[OsString]) -> Result<()> {
        let mut command = self.command(&["run", "--detach", "--name", JOB]);
        command.arg("--").args(victim);
        run(command, PATIENCE)?;
        self.find_victim()
    }

    fn victim(&self) -> Result<&Alive> {
        self.victim
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Gone, "the victim was not started"))
    }

    fn checkpoint(&mut self, stop: bool) -> Result<Command> {
        let mut command = self.command(&["checkpoint", "--json", JOB]);
        if stop {
            command.arg("--stop");
        } else if self.incremental {
            command.arg("--incremental");
        }
        Ok(command)
    }

    fn checkpointed(&mut self, output: &str, stop: bool) -> Result<PathBuf> {
        if stop {
            // Its supervisor takes note of the end, and a restart has to find that done.
            run(self.command(&["wait", "--timeout", "60s", JOB]), PATIENCE)
                .map(drop)
                .or_else(|error| if self.victim()?.is_alive() { Err(error) } else { Ok(()) })?;
        }
        let report = parse(output)?;
        let image = report["image"].as_str().map(PathBuf::from);
        image.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("cpr names no image: {output}")))
    }

    fn restart(&mut self) -> Result<Command> {
        let mut command = self.command(&["restart", "--detach", JOB]);
        if self.lazy {
            command.arg("--lazy");
        }
        Ok(command)
    }

    fn restarted(&mut self) -> Result<()> {
        self.find_victim()
    }

    fn end(&mut self) {
        if self.victim.is_none() && !self.state.exists() {
            return;
        }
        // Where this fails the job has ended already, or is killed next.
        let _ = run_regardless(self.command(&["rm", "--force", JOB]), FAREWELL);
        if let Some(victim) = self.victim.take() {
            victim.kill();
            victim.ended_within(FAREWELL);
        }
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

impl Drop for Cpr {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whoever inherits a restarted victim has to reap it, or its PID stays taken: this process does from now on.
///
/// # Errors
/// What prctl(2) gives.
pub fn adopt_orphans() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(std::io::Error::from)
        .context(|| "become a subreaper")
}

/// Waits until no process of the victim is left, not even as a zombie that keeps its PID. To be called while no command
/// of ours runs, so that all children of this process are the victim's.
pub fn reap() {
    let deadline = Instant::now() + FAREWELL;
    while let Ok(found) = wait(WaitOptions::NOHANG) {
        if Instant::now() > deadline {
            return;
        }
        if found.is_none() {
            std::thread::sleep(LOOK);
        }
    }
}

/// Forgets about those children that have ended.
pub fn reap_ended() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// CRIU, as root, on a process that leads its own session.
#[derive(Debug)]
pub struct Criu {
    program: PathBuf,
    place: PathBuf,
    images: u64,
    pid: i32,
    victim: Option<Alive>,
}

impl Criu {
    /// A victim with its images below `place`. Restarted victims become children of this process.
    pub fn new(program: &Path, place: &Path) -> Result<Criu> {
        adopt_orphans()?;
        Ok(Criu {
            program: program.to_owned(),
            place: place.join("criu"),
            images: 0,
            pid: 0,
            victim: None,
        })
    }

    /// Whether it can work here; otherwise why not.
    pub fn check(program: &Path) -> Result<String> {
        let mut command = Command::new(program);
        command.arg("--version");
        let version = run(command, PATIENCE)?.output;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(ErrorKind::Denied, "CRIU needs root here"));
        }
        let mut command = Command::new(program);
        command.arg("check");
        run(command, PATIENCE)?;
        let version = version.lines().next().unwrap_or_default().trim();
        Ok(format!("criu {}", version.trim_start_matches("Version: ")))
    }

    fn image(&self) -> PathBuf {
        self.place.join(self.images.to_string())
    }
}

impl Tool for Criu {
    fn program(&self) -> &Path {
        &self.program
    }

    fn start(&mut self, victim: &[OsString]) -> Result<()> {
        let mut command = Command::new("setsid");
        command
            .args(victim)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/");
        let child = command.spawn().context(|| "start the victim")?;
        self.pid = child.id() as i32;
        self.victim = Some(Alive::of(self.pid)?);
        Ok(())
    }

    fn victim(&self) -> Result<&Alive> {
        self.victim
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Gone, "the victim was not started"))
    }

    fn checkpoint(&mut self, stop: bool) -> Result<Command> {
        self.images += 1;
        let image = self.image();
        std::fs::create_dir_all(&image).context(|| format!("make {}", image.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(["dump", "-v1", "--tree", &self.pid.to_string(), "--images-dir"])
            .arg(&image);
        if !stop {
            command.arg("--leave-running");
        }
        Ok(command)
    }

    fn checkpointed(&mut self, _output: &str, stop: bool) -> Result<PathBuf> {
        if stop {
            if !self.victim()?.ended_within(FAREWELL) {
                return Err(Error::new(ErrorKind::TimedOut, "the victim does not end"));
            }
            reap();
        }
        Ok(self.image())
    }

    fn restart(&mut self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .args(["restore", "-v1", "--restore-detached", "--images-dir"])
            .arg(self.image());
        Ok(command)
    }

    fn restarted(&mut self) -> Result<()> {
        self.victim = Some(Alive::of(self.pid)?);
        Ok(())
    }

    fn end(&mut self) {
        if let Some(victim) = self.victim.take() {
            // Its other processes end when they see that it is gone.
            victim.kill();
            victim.ended_within(FAREWELL);
            reap();
        }
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        self.end();
    }
}
