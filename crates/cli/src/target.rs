//! What an argument means: a job, a process or an image.

use std::path::{Path, PathBuf};

use cpr_node::{Bare, Job, StateDir};
use cpr_types::{Error, ErrorKind, Result};
use gridcpr::image::Image;

/// What runs.
#[derive(Debug)]
pub enum Live {
    Job(Box<Job>),
    Bare(Bare),
}

/// What is kept.
#[derive(Debug)]
pub enum Kept {
    Job(Box<Job>),
    Image(PathBuf),
}

/// Whether the argument can only be an image.
pub fn is_image(argument: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = argument.as_os_str().as_bytes();
    bytes.contains(&b'/') || bytes.ends_with(b".cpr")
}

/// Refuses names under which a job could not be addressed.
pub fn require_job_name(name: Option<&str>) -> Result<()> {
    match name {
        Some(name) if is_image(Path::new(name)) => Err(Error::new(
            ErrorKind::Usage,
            format!("{name:?} cannot be the name of a job"),
        )
        .with_hint("names with a `/` in them or ending in .cpr are those of images")),
        _ => Ok(()),
    }
}

fn text(argument: &Path) -> Result<&str> {
    argument.to_str().ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no job {}", argument.display()))
            .with_hint("names of jobs are letters, digits, `.`, `_` and `-`")
    })
}

fn pid(argument: &str) -> Option<i32> {
    let digits = argument.bytes().all(|b| b.is_ascii_digit());
    argument.parse().ok().filter(|pid| digits && *pid > 0)
}

/// What an argument or `--session` names; the command line has one of them.
pub fn live(argument: Option<&Path>, session: Option<i32>) -> Result<Live> {
    match (argument, session) {
        (_, Some(sid)) => Ok(Live::Bare(Bare::Session(sid))),
        (Some(argument), None) => job_or_pid(argument),
        (None, None) => Err(Error::new(ErrorKind::Usage, "there is no job, PID or session named")),
    }
}

/// A job or, where no job has that number for a name, a PID.
fn job_or_pid(argument: &Path) -> Result<Live> {
    let argument = text(argument)?;
    if let Some(pid) = pid(argument) {
        // A user without a place for jobs has no jobs.
        return match StateDir::open().and_then(|state| state.job(argument)) {
            Ok(job) => Ok(Live::Job(Box::new(job))),
            Err(_) => Ok(Live::Bare(Bare::Process(pid))),
        };
    }
    job(argument).map(|job| Live::Job(Box::new(job)))
}

/// The directory of a set, where the argument is one and no job's name.
pub fn set(argument: &Path) -> Option<PathBuf> {
    let is_job = || argument.to_str().is_some_and(|name| job(name).is_ok());
    (cpr_node::is_set(argument) && (is_image(argument) || !is_job())).then(|| argument.to_path_buf())
}

/// A job or an image.
pub fn job_or_image(argument: &Path) -> Result<Kept> {
    if is_image(argument) {
        return Ok(Kept::Image(argument.to_path_buf()));
    }
    job(text(argument)?).map(|job| Kept::Job(Box::new(job)))
}

/// The job of that name.
pub fn job(name: &str) -> Result<Job> {
    if is_image(Path::new(name)) {
        return Err(Error::new(ErrorKind::Usage, format!("{name} is an image, not a job"))
            .with_hint("give the name of a job; `cpr ps -a` lists all"));
    }
    StateDir::open()?.job(name)
}

/// Where the image is that an argument of [`image`] names.
pub fn image_path(argument: &Path) -> Result<PathBuf> {
    if is_image(argument) {
        return Ok(argument.to_path_buf());
    }
    let newest = job(text(argument)?).and_then(|job| job.images());
    // Where there is none, `image` says why.
    let newest = newest.ok().and_then(|mut images| images.pop());
    Ok(newest.map_or_else(|| argument.to_path_buf(), |newest| newest.path))
}

/// An image, or the newest of a job. Also a file without our suffix, where there is no job of that name.
pub fn image(argument: &Path) -> Result<(PathBuf, Image)> {
    let open = |path: PathBuf| Ok((path.clone(), Image::open(&path)?));
    if is_image(argument) {
        return open(argument.to_path_buf());
    }
    let missing = match job(text(argument)?) {
        Ok(job) => {
            let newest = job.images()?.pop().ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("job {} has no image", job.name()))
                    .with_hint(format!("`cpr checkpoint {}` makes one", job.name()))
            })?;
            return open(newest.path);
        }
        Err(error) => error,
    };
    if argument.is_file() {
        return open(argument.to_path_buf());
    }
    Err(missing)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn images_by_their_looks() {
        for image in ["a.cpr", "./a", "/x/y", "7/8"] {
            assert!(is_image(Path::new(image)), "{image}");
        }
        for other in ["a", "4711", "a.cpr2", "-", "cpr"] {
            assert!(!is_image(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn pids_by_their_looks() {
        assert_eq!(pid("4711"), Some(4711));
        for other in ["0", "-1", "+1", "", "99999999999", "1a"] {
            assert_eq!(pid(other), None, "{other}");
        }
    }
}
