//! The control group of a job: one of version 2 that names all its processes, below the group of its supervisor
//! (cgroups(7); XGCP-PG-6).
//!
//! It has no limits of its own: those of the groups above hold. Where none can be made a job runs as well; what a job
//! is then follows from its PID namespace alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::job::Job;

/// What the names of the groups of jobs begin with.
const PREFIX: &str = "gridcpr-";
/// Groups within groups that are looked into when one is removed.
const DEEPEST: usize = 32;

/// The group of a job that is being started.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// Makes the group of a job. One of the same name is of an earlier run of it that could not be tidied up.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where no hierarchy of version 2 is mounted; [`ErrorKind::Denied`] where ours is
    /// somebody else's, or cannot be written to.
    pub(crate) fn make(job: &Job) -> Result<Group> {
        let path = own_group()?.join(name(job)?);
        remove(&path);
        match std::fs::create_dir(&path) {
            // Somebody is still in it: of a job whose supervisor was killed a moment ago.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => thaw(&path)?,
            result => result.context(|| format!("make cgroup {}", path.display()))?,
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(std::io::Error::from);
        let directory = directory.context(|| format!("open cgroup {}", path.display()))?;
        Ok(Group { path, directory })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The directory of the group that we are in.
fn own_group() -> Result<PathBuf> {
    group_of(std::process::id() as i32)
}

/// The directory of the group that a process is in.
fn group_of(pid: i32) -> Result<PathBuf> {
    let process = ProcDir::open(pid).context(|| format!("open /proc/{pid}"))?;
    let groups = process.cgroups().context(|| format!("read /proc/{pid}/cgroup"))?;
    let own = ProcDir::open(std::process::id() as i32).and_then(|own| own.mountinfo());
    let mounts = own.context(|| "read our mounts")?;
    let unified = groups.iter().find(|group| group.is_unified());
    let directory = unified.and_then(|group| group.directory(&mounts));
    directory.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "no hierarchy of cgroups of version 2 is mounted",
        )
    })
}

/// Jobs of other users, and of other directories of state, may have the same name.
fn name(job: &Job) -> Result<String> {
    let of_directory = std::fs::metadata(job.path()).context(|| format!("look at {}", job.path().display()))?;
    Ok(format!(
        "{PREFIX}{}-{:x}-{:x}",
        job.name(),
        of_directory.dev(),
        of_directory.ino()
    ))
}

/// Removes a group with those that its job has made below it, as far as nobody is in them.
pub(crate) fn remove(path: &Path) {
    remove_below(path, DEEPEST);
}

fn remove_below(path: &Path, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        // Not where a link leads.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path(), depth);
        }
    }
    // One that somebody is in stays; an empty group is in nobody's way.
    let _ = std::fs::remove_dir(path);
}

/// Removes the group of a job that is removed, where its supervisor could not.
pub(crate) fn forget(job: &Job) {
    if let Ok(path) = own_group().and_then(|own| Ok(own.join(name(job)?))) {
        remove(&path);
    }
}

/// Removes the group of a job whose supervisor was killed, as its state says where that is. Only what could be it, and
/// only for whoever the job belongs to: others do not believe what is written there.
pub(crate) fn tidy(job: &Job, path: &Path) {
    let own = std::fs::metadata(job.path()).is_ok_and(|of| of.uid() == rustix::process::geteuid().as_raw());
    let named = name(job).is_ok_and(|name| path.file_name().is_some_and(|known| *known == *name));
    if own && named {
        remove(path);
    }
}

/// Lets a group go on that whoever froze it has left so.
///
/// # Errors
/// It cannot be written to.
pub(crate) fn thaw(path: &Path) -> Result<()> {
    let file = path.join("cgroup.freeze");
    std::fs::write(&file, "0").context(|| format!("write {}", file.display()))
}

/// The group of a job, by its init: what the kernel says of that, and not what is written in a file. None where it is
/// in no group of its own.
pub(crate) fn of_init(init: i32, job: &str) -> Option<PathBuf> {
    let path = group_of(init).ok()?;
    let own = path
        .file_name()?
        .to_str()?
        .strip_prefix(PREFIX)?
        .starts_with(&format!("{job}-"));
    own.then_some(path)
}

/// Whether we are in a group or below it: who freezes it freezes himself.
pub(crate) fn is_around_us(path: &Path) -> bool {
    own_group().is_ok_and(|own| own.starts_with(path))
}
