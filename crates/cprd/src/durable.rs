//! Files that are on disk when the call that wrote them returns.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Result};

/// Makes the entries of a directory durable.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .context(|| format!("write directory {}", path.display()))
}

/// The same for the directory that a file is in.
fn sync_place(path: &Path) -> Result<()> {
    match path.parent() {
        Some(place) if place.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(place) => sync_directory(place),
        None => Ok(()),
    }
}

/// Writes a file aside, and moves it to its place when it is on disk.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    // Of an earlier try, perhaps with another mode.
    let _ = fs::remove_file(&aside);
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&aside)
        .context(what)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).context(what)?;
    fs::rename(&aside, path).context(what)?;
    sync_place(path)
}

/// Adds to a file that only its owner may read; makes it where there is none.
pub fn append(path: &Path, line: &str) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .context(what)?;
    file.write_all(line.as_bytes())
        .and_then(|()| file.sync_all())
        .context(what)?;
    sync_place(path)
}
