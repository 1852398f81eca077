//! Programs that save themselves: when a signal comes, when a command or a callback asks them to, or when they like.
//!
//! The program keeps its checkpoints in one directory, and puts every file there aside and renames it into place, so
//! that a file that is new or another one is a complete one. That is what is waited for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::PidFd;
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::descriptor::{Descriptor, SAVE_NOTICE, SaveOn, fill};
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};
use crate::program::Program;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Most directories below one another.
const DEEPEST: usize = 32;

/// A program that saves itself.
pub(crate) struct Application {
    on: SaveOn,
    directory: OsString,
    limit: Duration,
    unit: Option<Unit>,
}

/// Which file it is: device, inode.
type Identity = (u64, u64);

impl Application {
    pub(crate) fn new(descriptor: &Descriptor) -> Result<Application> {
        let asks = descriptor.application.clone().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("engine {} has no table `application`", descriptor.name),
            )
        })?;
        Ok(Application {
            on: asks.on(descriptor.trigger)?,
            directory: asks.directory.into(),
            limit: descriptor.deadlines.checkpoint(),
            unit: None,
        })
    }

    fn directory(&self, unit: &Unit) -> PathBuf {
        PathBuf::from(fill(std::slice::from_ref(&self.directory), unit).remove(0))
    }

    fn unit(&self) -> Result<&Unit> {
        let unit = self.unit.as_ref();
        unit.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no unit"))
    }
}

impl Engine for Application {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        if let SaveOn::Signal(signal) = self.on
            && !catches(unit.root, signal)?
        {
            let what = format!(
                "process {} does not catch signal {signal}, and would end of it",
                unit.root
            );
            return Err(
                Error::new(ErrorKind::Unsupported, what).with_hint("this engine is for programs that save themselves")
            );
        }
        self.unit = Some(unit.clone());
        // The program speaks for all its processes.
        Ok(Group {
            kind: GroupKind::Tree,
            id: unit.root.to_string(),
            processes: unit.processes.clone(),
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
        let directory = self.directory(unit);
        let before = identities(&directory)?;
        let deadline = Instant::now() + self.limit;
        let root = PidFd::open(unit.root).context(|| format!("open process {}", unit.root))?;
        match &self.on {
            SaveOn::Signal(signal) => root
                .signal(*signal)
                .context(|| format!("send signal {signal} to process {}", unit.root))?,
            SaveOn::Command(command) => {
                let program = Program::start(&fill(command, unit))?;
                match program.finish(deadline)? {
                    Some(status) if status.success() => {}
                    Some(status) => {
                        let what = format!("its command says that the program was not saved ({status})");
                        return Err(Error::new(ErrorKind::Unsupported, what));
                    }
                    None => return Err(Error::new(ErrorKind::TimedOut, "its command has not ended in time")),
                }
            }
            SaveOn::Callback => {
                if cpr_native::tell(&unit.processes, SAVE_NOTICE, self.limit)? == 0 {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "no process of the job has registered a callback",
                    )
                    .with_hint("this engine is for programs that save themselves with libgridcpr"));
                }
            }
            SaveOn::Own => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the program saves itself when it likes, and cannot be asked to",
                ));
            }
        }
        loop {
            let now = identities(&directory)?;
            if now.iter().any(|(path, identity)| before.get(path) != Some(identity)) {
                return copy(&directory, &unit.files, 0);
            }
            if root.signal(0).is_err() {
                return Err(Error::new(
                    ErrorKind::Gone,
                    "the program has ended and left no new file; does it know that it is to save itself?",
                ));
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("the program has put no new file into {}", directory.display()),
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt> {
        let directory = self.directory(unit);
        let what = || format!("put the program's files into {}", directory.display());
        // What is there now is of a later time, or of another try. The directory itself may be watched.
        match std::fs::read_dir(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(what),
            Err(_) => {}
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.context(what)?;
                    match entry.file_type().context(what)?.is_dir() {
                        true => std::fs::remove_dir_all(entry.path()).context(what)?,
                        false => std::fs::remove_file(entry.path()).context(what)?,
                    }
                }
            }
        }
        copy(&unit.files, &directory, 0)?;
        let mark = directory.join(PUT_BACK);
        std::fs::File::create(&mark).context(what)?;
        std::fs::remove_file(&mark).context(what)?;
        Ok(Rebuilt::Start(None))
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Copies what a program has saved itself to the files of the unit.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where there is nothing.
pub fn save_own(descriptor: &Descriptor, unit: &Unit) -> Result<()> {
    let nothing = || Error::new(ErrorKind::Unsupported, "the program has saved nothing");
    let directory = descriptor.own_directory(unit).ok_or_else(nothing)?;
    if identities(&directory)?.is_empty() {
        return Err(nothing());
    }
    copy(&directory, &unit.files, 0)
}

/// Whether a process has a handler for a signal.
fn catches(pid: i32, signal: i32) -> Result<bool> {
    let status = ProcDir::open(pid).and_then(|proc| proc.status());
    let status = status.context(|| format!("look at process {pid}"))?;
    Ok(status.sig_caught >> (signal - 1) & 1 == 1)
}

/// A file of this name is made, and removed, when what a program has saved was put back: who watches the directory
/// knows by it that the files before it are nothing new.
pub const PUT_BACK: &str = ".gridcpr-put-back";

/// Whether a file is one that is still written, by its name.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with('.') || [".tmp", ".part", ".new"].iter().any(|end| name.ends_with(end))
}

/// All finished files below a directory.
fn identities(directory: &Path) -> Result<BTreeMap<PathBuf, Identity>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(directory.to_path_buf(), 0)];
    while let Some((path, depth)) = waiting.pop() {
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            // Not made so far, or removed just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(|| format!("list directory {}", path.display())),
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if is_unfinished(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if metadata.is_dir() && depth < DEEPEST {
                waiting.push((entry.path(), depth + 1));
            } else if metadata.is_file() {
                found.insert(entry.path(), (metadata.dev(), metadata.ino()));
            }
        }
    }
    Ok(found)
}

/// Copies the finished files of a directory and of those below it.
pub(crate) fn copy(from: &Path, to: &Path, depth: usize) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    if depth > DEEPEST {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is too deep", from.display()),
        ));
    }
    std::fs::create_dir_all(to).context(what)?;
    for entry in std::fs::read_dir(from).context(what)? {
        let entry = entry.context(what)?;
        let kind = entry.file_type().context(what)?;
        let target = to.join(entry.file_name());
        if is_unfinished(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if kind.is_dir() {
            copy(&entry.path(), &target, depth + 1)?;
        } else if kind.is_file() {
            match std::fs::copy(entry.path(), &target) {
                // An older checkpoint that the program has just removed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => drop(result.context(what)?),
            }
        }
    }
    Ok(())
}
