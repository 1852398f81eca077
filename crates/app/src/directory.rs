//! Files that are there completely or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cpr_types::{Context, Result};

/// Makes a directory and those above it, for their owner only.
pub fn create(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("make directory {}", path.display()))
}

/// Makes what was done to the names in a directory durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .context(|| format!("sync directory {}", path.display()))
}

/// A file that gets its name when it is complete and synced; removed when it is dropped before.
#[derive(Debug)]
pub struct Pending {
    /// To be written.
    pub file: File,
    aside: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Pending {
    /// Makes the file, under another name in the same directory.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
        // Of a process that had our number and is dead.
        let _ = std::fs::remove_file(&aside);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .context(|| format!("make file {}", aside.display()))?;
        Ok(Pending {
            file,
            aside,
            path: path.to_owned(),
            published: false,
        })
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// The disk is full or fails; there is no such file then.
    pub fn publish(mut self) -> Result<()> {
        let path = &self.path;
        self.file
            .sync_all()
            .context(|| format!("sync file {}", path.display()))?;
        std::fs::rename(&self.aside, path).context(|| format!("give file {} its name", path.display()))?;
        self.published = true;
        sync(path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed is in nobody's way: its name begins with a dot.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut pending = Pending::create(path)?;
    pending
        .file
        .write_all(bytes)
        .context(|| format!("write file {}", path.display()))?;
    pending.publish()
}
