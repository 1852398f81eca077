//! What the machine can do without any tool: writing as many bytes to the same file system, and reading them again.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_types::{Context, Result};

use crate::interrupt;
use crate::memory::{Content, Memory};

/// Bytes in one call.
const BLOCK: usize = 1 << 20;

/// Time to write `bytes` of incompressible data to a new file in `directory` and to sync it. The file is gone after.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &Path, bytes: u64) -> Result<Duration> {
    let block = Memory::fill(BLOCK as u64, Content::Random, 0)?.to_bytes();
    let path = directory.join("limit");
    let what = || format!("write {}", path.display());
    let begun = Instant::now();
    let mut file = File::create(&path).context(what)?;
    let mut left = bytes;
    let mut result = Ok(());
    while left > 0 && result.is_ok() {
        let size = left.min(BLOCK as u64);
        result = file
            .write_all(&block[..size as usize])
            .context(what)
            .and_then(|()| interrupt::check());
        left -= size;
    }
    result = result.and_then(|()| file.sync_all().context(what));
    let time = begun.elapsed();
    drop(file);
    fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    result.map(|()| time)
}

/// Time to read an image once, as far in memory as it is.
pub fn read(image: &Path) -> Result<Duration> {
    let mut block = vec![0u8; BLOCK];
    let begun = Instant::now();
    for path in files(image)? {
        let what = || format!("read {}", path.display());
        let mut file = File::open(&path).context(what)?;
        loop {
            match file.read(&mut block) {
                Ok(0) => break,
                Ok(_) => interrupt::check()?,
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) => return Err(error).context(what),
            }
        }
    }
    Ok(begun.elapsed())
}

/// Time to make an image durable that may not be so yet; nearly none for one that was synced.
pub fn sync(image: &Path) -> Result<Duration> {
    let begun = Instant::now();
    for path in files(image)? {
        let what = || format!("sync {}", path.display());
        File::open(&path).and_then(|file| file.sync_all()).context(what)?;
    }
    Ok(begun.elapsed())
}

/// Length of an image, bytes.
pub fn length(image: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in files(image)? {
        let what = || format!("look at {}", path.display());
        sum += fs::metadata(&path).context(what)?.len();
    }
    Ok(sum)
}

/// Removes an image.
pub fn remove(image: &Path) -> Result<()> {
    let what = || format!("remove {}", image.display());
    if image.is_dir() {
        fs::remove_dir_all(image).context(what)
    } else {
        fs::remove_file(image).context(what)
    }
}

/// The files of an image: itself, or all in it.
fn files(image: &Path) -> Result<Vec<PathBuf>> {
    if !image.is_dir() {
        return Ok(vec![image.to_owned()]);
    }
    let what = || format!("list {}", image.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(image).context(what)? {
        let entry = entry.context(what)?;
        if entry.file_type().context(what)?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_takes_time_and_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        assert!(write(place.path(), (3 << 20) + 5).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_image_may_be_a_directory() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("one"), [1; 10]).unwrap();
        fs::write(place.path().join("two"), [2; 5]).unwrap();
        assert_eq!(length(place.path()).unwrap(), 15);
        read(place.path()).unwrap();
        sync(place.path()).unwrap();
    }
}
