//! The state directory: where jobs are kept.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpr_types::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::directory::Directory;
use crate::engine::{FileRule, TcpPolicy};
use crate::foreign::EngineUse;
use crate::job::{Job, JobSpec};

/// Longest job name.
const LONGEST_NAME: usize = 64;
const SPEC_FILE: &str = "job.json";

/// The directory that holds all jobs of one user.
///
/// `$GRIDCPR_STATE_DIR`; else for root `/var/lib/gridcpr`, for everybody else `$XDG_STATE_HOME/gridcpr` or
/// `~/.local/state/gridcpr`. Everything in it is closed to other users.
#[derive(Debug)]
pub struct StateDir {
    root: Directory,
    jobs: Arc<Directory>,
}

/// `job.json`: what a job was asked to be. Never changed after the job was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredSpec {
    pub(crate) command: Vec<String>,
    pub(crate) directory: PathBuf,
    #[serde(default)]
    pub(crate) every_ms: Option<u64>,
    #[serde(default)]
    pub(crate) sequence: Option<String>,
    #[serde(default)]
    pub(crate) keep: Option<usize>,
    #[serde(default)]
    pub(crate) lifetime_s: Option<u64>,
    #[serde(default)]
    pub(crate) terminal: bool,
    #[serde(default)]
    pub(crate) share_ipc: bool,
    #[serde(default)]
    pub(crate) tcp: TcpPolicy,
    #[serde(default)]
    pub(crate) files: Vec<FileRule>,
    #[serde(default)]
    pub(crate) save_libraries: bool,
    #[serde(default)]
    pub(crate) save_executable: bool,
    #[serde(default, deserialize_with = "one_or_several")]
    pub(crate) save_on: Vec<i32>,
    #[serde(default)]
    pub(crate) lease: Option<PathBuf>,
    #[serde(default)]
    pub(crate) engine: Option<EngineUse>,
    pub(crate) created_ms: u64,
}

/// Signals; jobs of older versions have one or none, as a number or null.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<i32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Signals {
        One(Option<i32>),
        Several(Vec<i32>),
    }
    Ok(match Signals::deserialize(deserializer)? {
        Signals::One(one) => one.into_iter().collect(),
        Signals::Several(several) => several,
    })
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_millis() as u64
}

/// Reads a JSON file of a directory; none where it is missing.
pub(crate) fn read_json<T: DeserializeOwned>(directory: &Directory, name: &str) -> Result<Option<T>> {
    let Some(bytes) = directory.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let path = directory.path().join(name);
        Error::new(ErrorKind::Damaged, format!("{} is not understood", path.display())).with_source(error)
    })
}

/// Writes a JSON file of a directory.
pub(crate) fn write_json<T: Serialize>(directory: &Directory, name: &str, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| crate::wire::internal(format!("encode {name}")).with_source(error))?;
    bytes.push(b'\n');
    directory.write(name, &bytes)
}

/// Requires that `name` can be the name of a job: 1 to 64 of `[A-Za-z0-9._-]`, not beginning with `.` or `-`.
pub fn check_name(name: &str) -> Result<()> {
    let good = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err(
        Error::new(ErrorKind::Usage, format!("{name:?} cannot be the name of a job"))
            .with_hint("use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter, digit or `_`"),
    )
}

/// A name made from that of the command, without a number.
fn stem(command: &OsStr) -> String {
    let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
    let stem: String = base
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(LONGEST_NAME - 12)
        .collect();
    let stem = stem.trim_start_matches(['.', '-']);
    if stem.is_empty() {
        "job".to_string()
    } else {
        stem.to_string()
    }
}

impl StateDir {
    /// Opens the state directory of this user, made where it is missing.
    pub fn open() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = if let Some(path) = variable("GRIDCPR_STATE_DIR") {
            path
        } else if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib/gridcpr")
        } else if let Some(path) = variable("XDG_STATE_HOME").filter(|p| p.is_absolute()) {
            path.join("gridcpr")
        } else if let Some(home) = variable("HOME") {
            home.join(".local/state/gridcpr")
        } else {
            return Err(
                Error::new(ErrorKind::Usage, "there is no place to keep jobs: HOME is not set")
                    .with_hint("set GRIDCPR_STATE_DIR to a directory of your own"),
            );
        };
        Self::open_at(&path)
    }

    /// Opens the state directory at `path`, made where it is missing.
    pub fn open_at(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)
            .map_err(|e| Error::new(ErrorKind::of_io(&e), format!("resolve {}", path.display())).with_source(e))?;
        let root = Directory::open_private(&path)?;
        let jobs = Arc::new(root.ensure_sub("jobs")?);
        Ok(StateDir { root, jobs })
    }

    /// Opens the state directory of another user, which exists, to look at their jobs.
    pub fn look(path: &Path, uid: u32) -> Result<Self> {
        let root = Directory::open_of(path, uid)?;
        let jobs = Arc::new(root.sub("jobs")?);
        Ok(StateDir { root, jobs })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Where it is noted which processes that are no jobs are suspended.
    pub(crate) fn suspended(&self) -> Result<Directory> {
        self.root.ensure_sub("suspended")
    }

    /// All jobs, by name.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for name in self.jobs.names()? {
            let Some(name) = name.to_str().filter(|n| check_name(n).is_ok()) else {
                continue;
            };
            match self.job(name) {
                Ok(job) => jobs.push(job),
                // Removed or not yet complete.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(jobs)
    }

    /// The job of that name.
    pub fn job(&self, name: &str) -> Result<Job> {
        check_name(name)?;
        let missing = || {
            Error::new(ErrorKind::NotFound, format!("there is no job {name}")).with_hint("`cpr ps -a` lists all jobs")
        };
        let directory = match self.jobs.sub(name) {
            Ok(directory) => directory,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(error),
        };
        let stored: StoredSpec = read_json(&directory, SPEC_FILE)?.ok_or_else(missing)?;
        Ok(Job::new(Arc::clone(&self.jobs), directory, name.to_string(), stored))
    }

    /// Makes a new job, not yet started. Without a name in `spec` it is called after its command, `sim-1`, `sim-2`….
    pub fn create_job(&self, spec: JobSpec) -> Result<Job> {
        let (name, directory) = match &spec.name {
            Some(name) => {
                check_name(name)?;
                (name.clone(), self.create(name)?)
            }
            None => self.create_unnamed(&spec)?,
        };
        let stored = StoredSpec {
            command: spec
                .whole_command(&name, directory.path())
                .iter()
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            directory: match &spec.directory {
                Some(directory) => directory.clone(),
                None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            },
            every_ms: spec.every.map(|d| d.as_millis() as u64),
            sequence: spec.sequence.as_ref().map(ToString::to_string),
            keep: spec.keep,
            lifetime_s: spec.lifetime.map(|lifetime| lifetime.as_secs()),
            terminal: spec.terminal,
            share_ipc: spec.share_ipc,
            tcp: spec.tcp,
            files: spec.files.clone(),
            save_libraries: spec.keep_files.libraries,
            save_executable: spec.keep_files.executables,
            save_on: spec.save_on.clone(),
            lease: spec.lease.clone(),
            engine: spec.engine.clone(),
            created_ms: now_ms(),
        };
        let made = directory
            .create_sub("images")
            .and_then(|_| write_json(&directory, SPEC_FILE, &stored));
        if let Err(error) = made {
            let _ = self.jobs.remove_tree(&name);
            return Err(error);
        }
        Ok(Job::new(Arc::clone(&self.jobs), directory, name, stored))
    }

    fn create(&self, name: &str) -> Result<Directory> {
        match self.jobs.create_sub(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(
                    Error::new(ErrorKind::AlreadyExists, format!("there is a job {name} already")).with_hint(format!(
                        "choose another name, or remove the old job with `cpr rm {name}`"
                    )),
                )
            }
            result => result,
        }
    }

    fn create_unnamed(&self, spec: &JobSpec) -> Result<(String, Directory)> {
        let stem = spec.command.first().map_or_else(|| "job".to_string(), |c| stem(c));
        let prefix = format!("{stem}-");
        let taken = self.jobs.names()?;
        let highest = taken
            .iter()
            .filter_map(|n| n.to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok())
            .max()
            .unwrap_or(0);
        let mut number = highest;
        loop {
            number = number
                .checked_add(1)
                .ok_or_else(|| Error::new(ErrorKind::Usage, "no job number is left; give a name"))?;
            let name = format!("{prefix}{number}");
            match self.create(&name) {
                Ok(directory) => return Ok((name, directory)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "sim-1", "A.b_c-9", &"x".repeat(64)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad:?}");
        }
        for command in ["/usr/bin/sim", "-x", "...", "a b/ü", &"y".repeat(300), "/"] {
            check_name(&format!("{}-4294967295", stem(OsStr::new(command)))).unwrap();
        }
    }
}
