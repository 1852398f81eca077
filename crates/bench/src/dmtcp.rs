//! DMTCP as a tool to be measured: a coordinator of its own, which tells the victim to save and load itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::command::{Alive, run, run_regardless};
use crate::tool::{FAREWELL, PATIENCE, Tool, adopt_orphans, reap, reap_ended};

/// DMTCP with one victim. What it does inside the victim counts as the victim's: memory and processor time are those of
/// the coordinator.
#[derive(Debug)]
pub struct Dmtcp {
    /// Where its programs are.
    programs: PathBuf,
    coordinator: PathBuf,
    place: PathBuf,
    port: String,
    victim: Option<Alive>,
}

impl Dmtcp {
    /// With `program`, its `dmtcp_launch`, and a victim whose images go below `place`. Restarted victims become
    /// children of this process.
    ///
    /// # Errors
    /// The coordinator does not start.
    pub fn new(program: &Path, place: &Path) -> Result<Dmtcp> {
        adopt_orphans()?;
        let programs = program.parent().unwrap_or(Path::new("/")).to_owned();
        let mut tool = Dmtcp {
            coordinator: programs.join("dmtcp_coordinator"),
            programs,
            place: place.join("dmtcp"),
            port: String::new(),
            victim: None,
        };
        std::fs::create_dir_all(&tool.place).context(|| format!("make {}", tool.place.display()))?;
        let port = place.join("port");
        let mut command = Command::new(&tool.coordinator);
        command
            .args(["--daemon", "--quiet", "--interval", "0", "--port", "0", "--port-file"])
            .arg(&port)
            .arg("--ckptdir")
            .arg(&tool.place);
        run(command, PATIENCE)?;
        let text = std::fs::read_to_string(&port).context(|| format!("read {}", port.display()))?;
        tool.port = text.trim().to_owned();
        Ok(tool)
    }

    /// Whether it can work here; otherwise why not.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn check(program: &Path) -> Result<String> {
        let mut command = Command::new(program);
        command.arg("--version");
        let version = run(command, PATIENCE)?.output;
        let version = version.lines().next().unwrap_or_default();
        let number = version.rsplit(' ').next().unwrap_or_default();
        Ok(format!("dmtcp {number}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.args(["--coord-host", "localhost", "--coord-port", &self.port]);
        command
    }

    /// Asks the coordinator who the victim's first process is: the one with the smallest number of its own numbering.
    /// Each line has `NAME[NUMBER:PID]@HOST`.
    fn find_victim(&mut self) -> Result<()> {
        let mut command = self.command("dmtcp_command");
        command.arg("--list");
        let listed = run(command, PATIENCE)?.output;
        let numbers = listed.lines().filter_map(|line| {
            let inside = line.split_once('[')?.1.split_once(']')?.0;
            let (own, real) = inside.split_once(':')?;
            Some((own.parse::<i32>().ok()?, real.parse::<i32>().ok()?))
        });
        let first = numbers.min().map(|(_, pid)| pid);
        let first = first.ok_or_else(|| Error::new(ErrorKind::Gone, format!("DMTCP lists no victim: {listed}")))?;
        self.victim = Some(Alive::of(first)?);
        Ok(())
    }
}

impl Tool for Dmtcp {
    fn program(&self) -> &Path {
        &self.coordinator
    }

    fn start(&mut self, victim: &[OsString]) -> Result<()> {
        let mut command = self.command("dmtcp_launch");
        command
            .args([
                "--join-coordinator",
                "--quiet",
                "--no-gzip",
                "--interval",
                "0",
                "--ckptdir",
            ])
            .arg(&self.place)
            .args(victim)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/");
        let child = command.spawn().context(|| "start the victim")?;
        self.victim = Some(Alive::of(child.id() as i32)?);
        Ok(())
    }

    fn victim(&self) -> Result<&Alive> {
        self.victim
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Gone, "the victim was not started"))
    }

    fn checkpoint(&mut self, stop: bool) -> Result<Command> {
        std::fs::create_dir_all(&self.place).context(|| format!("make {}", self.place.display()))?;
        let mut command = self.command("dmtcp_command");
        command.arg(if stop { "--kcheckpoint" } else { "--bcheckpoint" });
        Ok(command)
    }

    fn checkpointed(&mut self, _output: &str, stop: bool) -> Result<PathBuf> {
        if stop {
            if !self.victim()?.ended_within(FAREWELL) {
                return Err(Error::new(ErrorKind::TimedOut, "the victim does not end"));
            }
            // The coordinator goes on; and DMTCP gives its processes numbers of its own.
            reap_ended();
        }
        Ok(self.place.clone())
    }

    fn restart(&mut self) -> Result<Command> {
        let files = std::fs::read_dir(&self.place).context(|| format!("list {}", self.place.display()))?;
        let images = files
            .flatten()
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "dmtcp"));
        // It becomes the victim, and would keep us waiting.
        let mut command = Command::new("sh");
        command
            .args(["-c", "setsid \"$@\" </dev/null >/dev/null 2>&1 &", "sh"])
            .arg(self.programs.join("dmtcp_restart"))
            .args([
                "--join-coordinator",
                "--quiet",
                "--coord-host",
                "localhost",
                "--coord-port",
            ])
            .arg(&self.port)
            .args(images);
        Ok(command)
    }

    fn restarted(&mut self) -> Result<()> {
        self.find_victim()
    }

    fn end(&mut self) {
        if let Some(victim) = self.victim.take() {
            victim.kill();
            victim.ended_within(FAREWELL);
        }
        if !self.port.is_empty() {
            let mut command = self.command("dmtcp_command");
            command.arg("--quit");
            // Where it is gone already there is nothing to end.
            let _ = run_regardless(command, FAREWELL);
            self.port.clear();
            reap();
        }
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

impl Drop for Dmtcp {
    fn drop(&mut self) {
        self.end();
    }
}
