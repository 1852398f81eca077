//! Files that belong to a generation as they are: a program that writes files of its own gives them to the library,
//! which makes them count together with its variables. They lie beside the part of their rank, in a directory of their
//! own, and the part says how long they are and what their hash is.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::directory;
use crate::store::Store;

/// Most bytes of a file's name.
const NAME_MAX: usize = 200;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A file of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name, unique in a part.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3, 64 hexadecimal digits.
    pub hash: String,
}

/// The directory of a rank's files, below that of the generation.
pub fn directory_name(rank: u32) -> String {
    format!("files-{rank:05}")
}

/// Whether something can be the name of a file: it must not lead out of the directory.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub fn check_name(name: &str) -> Result<()> {
    let wrong = name.is_empty() || name.len() > NAME_MAX || name.starts_with('.') || name.contains('/');
    if wrong || name.chars().any(char::is_control) {
        let text = format!("{name:?} cannot be the name of a file in a checkpoint");
        let hint = format!("use 1 to {NAME_MAX} bytes without slashes and no dot at the beginning");
        return Err(Error::new(ErrorKind::Usage, text).with_hint(hint));
    }
    Ok(())
}

/// Length and hash of a file, and the file itself, with everything of it on disk if `sync`.
fn measure(path: &Path, name: &str, sync: bool) -> Result<FileInfo> {
    let what = || format!("read file {}", path.display());
    // Not through a link, and without waiting for what is no file.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .context(what)?;
    if !file.metadata().context(what)?.is_file() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is no regular file", path.display()),
        ));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; PIECE];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut buffer).context(what)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        bytes += length as u64;
    }
    if sync {
        file.sync_all().context(|| format!("sync file {}", path.display()))?;
    }
    Ok(FileInfo {
        name: name.to_owned(),
        bytes,
        hash: hasher.finalize().to_hex().to_string(),
    })
}

/// Measures what the program has written, and makes it durable. Without names nothing stays there.
pub(crate) fn seal(directory: &Path, names: &[String]) -> Result<Vec<FileInfo>> {
    if names.is_empty() {
        clear(directory)?;
        return Ok(Vec::new());
    }
    let measured = names
        .iter()
        .map(|name| measure(&directory.join(name), name, true))
        .collect::<Result<Vec<FileInfo>>>()?;
    directory::sync(directory)?;
    Ok(measured)
}

/// Removes what a writer that died has left behind.
fn clear(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a file is what a part says of it.
///
/// # Errors
/// [`ErrorKind::Damaged`].
pub(crate) fn verify(directory: &Path, info: &FileInfo) -> Result<PathBuf> {
    let path = directory.join(&info.name);
    let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("{} is damaged: {what}", path.display()));
    let found = measure(&path, &info.name, false).map_err(|error| damaged("it cannot be read").with_source(error))?;
    if found != *info {
        return Err(damaged("its bytes are altered"));
    }
    Ok(path)
}

impl Store {
    /// Where to write a file that is to belong to the next generation; it does when [`Store::write`] returns. What was
    /// there from a writer that died is removed.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a name that cannot be one; the directory cannot be made.
    pub fn route(&mut self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        let directory = self.files_of(self.next()?, self.options.rank);
        if self.routed.is_empty() {
            clear(&directory)?;
            directory::create(&directory)?;
        }
        if !self.routed.iter().any(|known| known == name) {
            self.routed.push(name.to_owned());
        }
        Ok(directory.join(name))
    }

    /// Where a file of a generation is, for reading; it is compared with its hash first.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Damaged`].
    pub fn file(&self, generation: u64, name: &str) -> Result<PathBuf> {
        self.file_of(generation, self.options.rank, name)
    }

    /// The same of any rank.
    ///
    /// # Errors
    /// As [`Store::file`].
    pub fn file_of(&self, generation: u64, rank: u32, name: &str) -> Result<PathBuf> {
        let part = self.part(generation, rank)?;
        let missing = || {
            Error::new(
                ErrorKind::NotFound,
                format!("generation {generation} has no file {name}"),
            )
        };
        let info = part.info().files.iter().find(|file| file.name == name);
        verify(&self.files_of(generation, rank), info.ok_or_else(missing)?)
    }

    /// The directory of a rank's files.
    pub(crate) fn files_of(&self, generation: u64, rank: u32) -> PathBuf {
        self.place(generation).join(directory_name(rank))
    }
}
