//! A store in a directory of a file system that all nodes share.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use cpr_api::model::Owner;
use cpr_types::{Context, Result};

use super::{checkpoint, name};
use crate::agent::open_image;
use crate::durable::sync_directory;

/// The directory.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    pub fn new(path: &str) -> Directory {
        Directory { path: path.into() }
    }

    fn place(&self, id: i64) -> PathBuf {
        self.path.join(name(id))
    }

    pub fn put(&self, id: i64, image: &mut dyn Read, owner: &Owner, writer: &str) -> Result<()> {
        let target = self.place(id);
        let aside = self.path.join(format!(".{id}.{writer}.part"));
        let done = write(&aside, image, owner)
            .and_then(|()| fs::rename(&aside, &target).context(|| format!("write {}", target.display())));
        if done.is_err() {
            // Where that fails, too, the service removes it when the checkpoint is no longer needed.
            let _ = fs::remove_file(&aside);
        }
        done?;
        sync_directory(&self.path)
    }

    pub fn read(&self, id: i64, offset: u64) -> Result<Box<dyn Read>> {
        let mut file = open_image(&self.place(id))?;
        file.seek(SeekFrom::Start(offset)).context(|| "read an image")?;
        Ok(Box::new(file))
    }

    pub fn list(&self) -> Result<Vec<(String, i64)>> {
        let what = || format!("list {}", self.path.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).context(what)? {
            let name = entry.context(what)?.file_name().to_string_lossy().into_owned();
            if let Some(id) = checkpoint(&name) {
                found.push((name, id));
            }
        }
        Ok(found)
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.context(|| format!("remove {}", path.display())),
        }
    }
}

/// Writes a file that is on disk, and its owner's, when this returns.
fn write(path: &Path, image: &mut dyn Read, owner: &Owner) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut to = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .context(what)?;
    io::copy(image, &mut to).context(what)?;
    if rustix::process::geteuid().is_root() {
        chown(path, Some(owner.uid), Some(owner.gid)).context(what)?;
    }
    to.sync_all().context(what)
}
