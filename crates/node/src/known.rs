//! What has been found out about an image, kept beside it and believed only as long as the file is the very same.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cpr_types::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::engine::Image;
use crate::job::Job;
use crate::state::{StateDir, now_ms, read_json, write_json};

/// How much is known of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// It is complete, and its metadata are sound.
    Written,
    /// Every hash in it was right.
    Verified,
    /// It was restarted in a sandbox and ran.
    Proven,
}

/// `images/NUMBER.known.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    state: ImageState,
    time_ms: u64,
    seen: Seen,
}

/// What tells a file apart from a changed one and from every other.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Root hash of the image, which stands for all of it, in hexadecimal digits.
    root_hash: String,
    /// The image, and those it refers to.
    files: Vec<SeenFile>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SeenFile {
    device: u64,
    inode: u64,
    bytes: u64,
    /// ctime, which no program can set: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Seen {
    fn of(image: &Image) -> Result<Seen> {
        let look = |file: &File| {
            let metadata = file.metadata().context(|| format!("look at image {}", image.name()))?;
            Ok(SeenFile {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        Ok(Seen {
            root_hash: image.root_hash().iter().map(|byte| format!("{byte:02x}")).collect(),
            files: image.bodies().map(look).collect::<Result<_>>()?,
        })
    }
}

/// The file for what is known of the image `name`.
pub(crate) fn record_of(name: &str) -> Option<String> {
    Some(format!("{}.known.json", name.strip_suffix(".cpr")?))
}

impl Job {
    /// How much is known of one of this job's images, open as `image` with its ancestors. What was noted of another
    /// file is not believed.
    ///
    /// # Errors
    /// The image or the directory cannot be looked at.
    pub fn image_state(&self, image: &Image, path: &Path) -> Result<ImageState> {
        let Some(record) = path.file_name().and_then(|name| record_of(name.to_str()?)) else {
            return Ok(ImageState::Written);
        };
        // What cannot be understood is as good as nothing.
        let known: Option<Known> = read_json(&self.image_directory()?, &record).unwrap_or_default();
        let seen = Seen::of(image)?;
        Ok(known
            .filter(|known| known.seen == seen)
            .map_or(ImageState::Written, |known| known.state))
    }
}

impl StateDir {
    /// The job that an image is one of, and the name of the file for what is known of it.
    fn job_of(&self, path: &Path) -> Result<Option<(Job, String)>> {
        let name = path.file_name().and_then(|name| record_of(name.to_str()?));
        let parent = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
        let (Some(name), Some(parent)) = (name, parent) else {
            return Ok(None);
        };
        for job in self.jobs()? {
            let directory = job.image_directory()?;
            if std::fs::canonicalize(directory.path()).is_ok_and(|own| own == parent) {
                return Ok(Some((job, name)));
            }
        }
        Ok(None)
    }

    /// Notes what was found out about an image, where it is one of a job's; less than is known already changes nothing.
    ///
    /// # Errors
    /// It cannot be noted.
    pub fn note_image(&self, image: &Image, path: &Path, state: ImageState) -> Result<()> {
        let path = std::path::absolute(path).context(|| format!("resolve {}", path.display()))?;
        let Some((job, record)) = self.job_of(&path)? else {
            return Ok(());
        };
        let known = Known {
            state: state.max(job.image_state(image, &path)?),
            time_ms: now_ms(),
            seen: Seen::of(image)?,
        };
        write_json(&job.image_directory()?, &record, &known)
    }

    /// Forgets what was noted of an image that has been removed.
    ///
    /// # Errors
    /// The note cannot be removed.
    pub fn forget_image(&self, path: &Path) -> Result<()> {
        let path = std::path::absolute(path).context(|| format!("resolve {}", path.display()))?;
        match self.job_of(&path)? {
            Some((job, record)) => job.image_directory()?.remove(&record),
            None => Ok(()),
        }
    }
}
