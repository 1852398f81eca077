//! DMTCP, by its coordinator: a job is started under `dmtcp_launch`, which is the wrapper of its descriptor, saved by
//! `dmtcp_command` and started again by `dmtcp_restart`.
//!
//! Each job has a coordinator to itself, among its own processes; its port is in a file of the job's directory. DMTCP
//! stops the processes, saves them and lets them go on by itself, so that they do not stand still before and after.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::application::copy;
use crate::descriptor::{Deadlines, Descriptor};
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};
use crate::program::Program;

/// Where the coordinator has put its port, below the job's directory; the built-in descriptor says so, too.
const PORT: &str = "dmtcp.port";
/// Where DMTCP's images are made and restarted from, below the job's directory; the built-in descriptor says so, too.
const IMAGES: &str = "dmtcp";
/// How DMTCP's images are called.
const IMAGE: &str = "dmtcp";
/// The directory of files that DMTCP has saved with an image is called as that, and ends so.
const SAVED_FILES: &str = "_files";
const COORDINATOR: &str = "dmtcp_coordinator";
const PROGRAMS: [&str; 3] = ["dmtcp_launch", "dmtcp_command", "dmtcp_restart"];

/// DMTCP at work on one unit.
pub(crate) struct Dmtcp {
    deadlines: Deadlines,
    unit: Option<Unit>,
}

impl Dmtcp {
    pub(crate) fn new(descriptor: &Descriptor) -> Dmtcp {
        Dmtcp {
            deadlines: descriptor.deadlines.clone(),
            unit: None,
        }
    }

    /// Looks whether DMTCP is here; gives its version.
    pub(crate) fn probe(descriptor: &Descriptor) -> Result<Option<String>> {
        let deadline = Instant::now() + descriptor.deadlines.probe();
        let mut version = None;
        for name in PROGRAMS {
            let mut program = Program::start(&[name.into(), "--version".into()])?;
            // "dmtcp_launch (DMTCP) 4.0.0"
            let line = program.line(deadline)?;
            let found = line.contains("DMTCP").then(|| line.rsplit(' ').next()).flatten();
            let found = found.ok_or_else(|| program.garbage("it does not tell its version"))?;
            version = version.or(Some(found.to_string()));
            // It is known, however it ends.
            let _ = program.finish(deadline);
        }
        Ok(version)
    }

    fn unit(&self) -> Result<&Unit> {
        let unit = self.unit.as_ref();
        unit.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no unit"))
    }

    /// Has the job's coordinator do something; gives what `dmtcp_command` prints.
    fn command(&self, what: &str, limit: Duration) -> Result<Vec<String>> {
        let path = self.unit()?.job_directory.join(PORT);
        let port = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        let port = port.lines().next().unwrap_or_default().trim().to_string();
        if port.parse::<u16>().is_err() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{} has no port in it", path.display()),
            ));
        }
        let words = [
            "dmtcp_command",
            "--coord-host",
            "localhost",
            "--coord-port",
            &port,
            what,
        ];
        let command: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        Program::run(&command, Instant::now() + limit)
    }

    /// The processes that the coordinator knows.
    fn clients(&self) -> Result<Vec<i32>> {
        let lines = self.command("--list", self.deadlines.prepare())?;
        Ok(lines.iter().filter_map(|line| client(line)).collect())
    }
}

/// A line of `dmtcp_command --list`: `1, sh[40000:4922]@host, 98ff-40000-d476bece84, WorkerState::RUNNING,`, where the
/// second number is the process's own.
fn client(line: &str) -> Option<i32> {
    let (before, _) = line.split_once("]@")?;
    let (_, pids) = before.rsplit_once('[')?;
    pids.rsplit(':').next()?.parse().ok()
}

fn is_coordinator(pid: i32) -> bool {
    // Its name says its port, too.
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|program| program.file_name() == Some(COORDINATOR.as_ref()))
}

/// What a checkpoint has left in a directory: images, and directories of files that belong to them.
fn left(directory: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("list directory {}", directory.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).context(what)? {
        let entry = entry.context(what)?;
        let kind = entry.file_type().context(what)?;
        let path = entry.path();
        let is_image = kind.is_file() && path.extension().is_some_and(|extension| extension == IMAGE);
        if is_image || kind.is_dir() && path.to_string_lossy().ends_with(SAVED_FILES) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

impl Engine for Dmtcp {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        self.unit = Some(unit.clone());
        let no_coordinator = |error: Error| match error.kind() {
            ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, "the job was not started under DMTCP").with_source(error)
            }
            _ => error,
        };
        let mut processes = self.clients().map_err(no_coordinator)?;
        processes.extend(unit.processes.iter().filter(|pid| is_coordinator(**pid)));
        Ok(Group {
            kind: GroupKind::Tree,
            id: unit.root.to_string(),
            processes,
        })
    }

    fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    fn holds(&self) -> bool {
        false
    }

    fn checkpoint(&mut self) -> Result<()> {
        let unit = self.unit()?;
        let images = unit.job_directory.join(IMAGES);
        let what = || format!("take DMTCP's files from {}", images.display());
        remove(&images)?;
        std::fs::create_dir(&images).context(what)?;
        self.command("--bcheckpoint", self.deadlines.checkpoint())?;
        for path in left(&images)? {
            let name = path.file_name().unwrap_or_default();
            let target = unit.files.join(name);
            match path.is_dir() {
                true => copy(&path, &target, 0)?,
                false => drop(std::fs::copy(&path, &target).context(what)?),
            }
        }
        remove(&images)
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt> {
        let images = unit.job_directory.join(IMAGES);
        let port = unit.job_directory.join(PORT);
        match std::fs::remove_file(&port) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("remove {}", port.display()));
            }
            _ => {}
        }
        remove(&images)?;
        copy(&unit.files, &images, 0)?;
        let mut command: Vec<OsString> = vec!["dmtcp_restart".into(), "--new-coordinator".into()];
        let options: [(&str, &Path); 3] = [
            ("--port-file", &port),
            ("--ckptdir", &images),
            ("--tmpdir", &unit.job_directory),
        ];
        command.extend(["--coord-port", "0", "--no-strict-checking", "-q", "-q"].map(OsString::from));
        for (option, path) in options {
            command.extend([option.into(), path.as_os_str().to_owned()]);
        }
        let files = left(&images)?;
        command.extend(
            files
                .into_iter()
                .filter(|path| !path.is_dir())
                .map(PathBuf::into_os_string),
        );
        // It reads them while it becomes the job; the next checkpoint removes them.
        Ok(Rebuilt::Start(Some(command)))
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Removes a directory that may not be there.
fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::client;

    #[test]
    fn the_list_of_a_coordinator_is_understood() {
        assert_eq!(
            client("9, sleep[48000:4985]@vm, 98ff-48000-d4de95d09e, WorkerState::RUNNING, "),
            Some(4985)
        );
        assert_eq!(
            client("2, a[b]c[40000]@vm, 98ff-40000-d4de95d09e, RUNNING"),
            Some(40000)
        );
        assert_eq!(
            client("#, PROG[virtPID:realPID]@HOST, DMTCP-UNIQUEPID, STATE, BARRIER"),
            None
        );
        assert_eq!(client("Coordinator:"), None);
    }
}
