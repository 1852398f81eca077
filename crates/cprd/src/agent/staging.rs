//! Files of jobs: brought to their working directories before they start, and away from there when they have ended.
//!
//! Everything that is reached by a path that a user has said is reached by a process that is that user's
//! (`crates/cprd/src/files.rs`). With a bucket the agent speaks itself; what it brings waits in the user's own place.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use cpr_api::agent::{Incarnation, JobOrder};
use cpr_api::model::{JobSpec, Owner};
use cpr_api::staging::{Outside, Staging, outside};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::{Agent, images};
use crate::files::{Copying, Place};
use crate::log;
use crate::stores::area::{self, Area};

/// Attempts to bring a file away; who asks for a job's result would rather wait than have none.
const ATTEMPTS: u32 = 6;
/// Pause before the second one; it doubles.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether another attempt may help.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::Gone
    )
}

/// Which job it is for.
struct For<'a> {
    incarnation: Incarnation,
    owner: &'a Owner,
    directory: &'a Path,
}

impl Agent {
    /// Brings a job's files before it starts. Where it goes on, only those that are not there: it may have written to
    /// others.
    pub(super) fn stage_in(&self, order: &JobOrder) -> Result<()> {
        let job = For {
            incarnation: order.incarnation,
            owner: &order.owner,
            directory: Path::new(&order.spec.directory),
        };
        let again = order.from.is_some();
        // What one has made of which another appends to.
        let mut made = BTreeSet::new();
        for staged in &order.spec.stage_in {
            let what = || format!("stage in {} as {}", staged.from, staged.to);
            let if_missing = again && !made.contains(staged.to.as_str());
            if let Some(bytes) = self.bring_in(&job, staged, if_missing).context(what)? {
                made.insert(staged.to.as_str());
                let Staging { from, to, .. } = staged;
                log(format!(
                    "job {}: {bytes} bytes of {from} are there as {to}",
                    job.incarnation
                ));
            }
        }
        Ok(())
    }

    /// Brings away what a job has made.
    pub(super) fn stage_out(&self, incarnation: Incarnation, owner: &Owner, spec: &JobSpec) -> Result<()> {
        let directory = Path::new(&spec.directory);
        let job = For {
            incarnation,
            owner,
            directory,
        };
        for staged in &spec.stage_out {
            let what = || format!("stage out {} as {}", staged.from, staged.to);
            let mut pause = PAUSE;
            let mut attempt = 1;
            let bytes = loop {
                match self.bring_out(&job, staged) {
                    Err(error) if may_pass(&error) && attempt < ATTEMPTS => {
                        log(format!("job {incarnation}: {}: {}", what(), error.chain()));
                        std::thread::sleep(pause);
                        pause *= 2;
                        attempt += 1;
                    }
                    done => break done.context(what)?,
                }
            };
            log(format!(
                "job {incarnation}: {bytes} bytes of {} are at {}",
                staged.from, staged.to
            ));
        }
        Ok(())
    }

    fn area(&self) -> Result<&Area> {
        let none = || Error::new(ErrorKind::NotFound, "this node reaches no area for files");
        self.area.as_ref().ok_or_else(none)
    }

    fn bring_in(&self, job: &For<'_>, staged: &Staging, if_missing: bool) -> Result<Option<u64>> {
        let to = Place {
            below: Some(job.directory.to_path_buf()),
            path: (&staged.to).into(),
        };
        let place = outside(&staged.from);
        let Some(Outside::Area(path)) = place else {
            let from = Place {
                below: None,
                path: (&staged.from).into(),
            };
            return self.copy_as(job, from, to, staged.append, if_missing);
        };
        match self.area()? {
            Area::Directory(directory) => {
                let from = Place {
                    below: Some(area::directory_of(directory, job.owner)?),
                    path: path.into(),
                };
                self.copy_as(job, from, to, staged.append, if_missing)
            }
            Area::Bucket(bucket) => {
                let (aside, waiting) = self.layout.staged(job.incarnation, job.owner)?;
                let what = || format!("write {}", aside.display());
                let (mut object, length) = area::read(bucket, path, job.owner)?;
                let mut file = File::create(&aside).context(what)?;
                let came = io::copy(&mut object, &mut file).context(what)?;
                if came != length {
                    let text = format!("{came} bytes of {length} came");
                    return Err(Error::new(ErrorKind::Io, text));
                }
                self.layout.give(&aside, job.owner)?;
                fs::rename(&aside, &waiting).context(what)?;
                let from = Place {
                    below: None,
                    path: waiting.clone(),
                };
                let copied = self.copy_as(job, from, to, staged.append, if_missing);
                let _ = fs::remove_file(&waiting);
                copied
            }
        }
    }

    fn bring_out(&self, job: &For<'_>, staged: &Staging) -> Result<u64> {
        let from = Place {
            below: Some(job.directory.to_path_buf()),
            path: (&staged.from).into(),
        };
        let Some(Outside::Area(path)) = outside(&staged.to) else {
            let to = Place {
                below: None,
                path: (&staged.to).into(),
            };
            return Ok(self.copy_as(job, from, to, staged.append, false)?.unwrap_or(0));
        };
        match self.area()? {
            Area::Directory(directory) => {
                let to = Place {
                    below: Some(area::directory_of(directory, job.owner)?),
                    path: path.into(),
                };
                Ok(self.copy_as(job, from, to, staged.append, false)?.unwrap_or(0))
            }
            Area::Bucket(_) if staged.append => Err(Error::new(
                ErrorKind::Unsupported,
                "the area is in a bucket, where nothing can be appended to",
            )),
            Area::Bucket(bucket) => {
                let (_, waiting) = self.layout.staged(job.incarnation, job.owner)?;
                let to = Place {
                    below: None,
                    path: waiting.clone(),
                };
                self.copy_as(job, from, to, false, false)?;
                let put = images::open_held(&waiting).and_then(|mut file| {
                    let bytes = file.metadata().context(|| "examine what is staged out")?.len();
                    let name = area::object_of(path, job.owner)?;
                    bucket.put_object(&name, &mut file, bytes).map(|()| bytes)
                });
                let _ = fs::remove_file(&waiting);
                put
            }
        }
    }

    /// Copies a file as the user whose job it is.
    fn copy_as(&self, job: &For<'_>, from: Place, to: Place, append: bool, if_missing: bool) -> Result<Option<u64>> {
        let copying = Copying {
            from,
            to,
            append,
            if_missing,
            tag: format!("cpr-{}", job.incarnation),
        };
        let state = self.layout.state(job.owner.uid);
        let done = self.runner.copy(job.owner, &state, &copying)?;
        let skipped = done.get("skipped").and_then(serde_json::Value::as_bool);
        let bytes = done.get("bytes").and_then(serde_json::Value::as_u64);
        Ok(bytes.filter(|_| skipped != Some(true)))
    }
}
