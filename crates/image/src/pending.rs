//! Publishing an image file at once or not at all.
//!
//! # Crash consistency
//! The file is written under a hidden temporary name next to its final one. [`PendingImage::publish`] makes contents
//! and attributes durable, renames, and makes the name durable, in this order. So the final name always stands for a
//! complete image: the old one until the rename and the new one after it. A crash can leave a file named
//! `.NAME.XXXXXXXX.part` behind, never anything else; nothing reads those, and anybody may delete them.
//!
//! All steps go through a descriptor of the directory, so that a renamed directory does no harm.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::format::ImageId;
use crate::writer::full;

/// A file that becomes an image of the given name when it is published, and nothing when it is dropped.
///
/// Write to it through [`PendingImage::file`], or through `&PendingImage` or `PendingImage`, which are
/// [`std::io::Write`].
#[derive(Debug)]
pub struct PendingImage {
    path: PathBuf,
    directory: OwnedFd,
    /// The directory could be opened for reading, as fsync(2) on it needs.
    can_sync: bool,
    name: OsString,
    file: File,
    /// The temporary name, as long as there is one.
    temporary: Option<OsString>,
    /// The process that removes the temporary file when it gives up; none while it is handed to a child.
    keeper: Option<u32>,
}

impl PendingImage {
    /// Makes the temporary file in the directory of `path`, readable and writable by nobody else.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without that directory, [`ErrorKind::Denied`] when it cannot be written,
    /// [`ErrorKind::Usage`] when `path` names no file.
    pub fn create(path: &Path) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(
                ErrorKind::Usage,
                format!("cannot write an image to {}: {what}", path.display()),
            )
        };
        let name = path
            .file_name()
            .ok_or_else(|| wrong("it names no file"))?
            .to_os_string();
        if path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir() {
            return Err(wrong("it is a directory"));
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (directory, can_sync) = match rustix::fs::open(parent, flags | OFlags::RDONLY, Mode::empty()) {
            Err(Errno::ACCESS) => (rustix::fs::open(parent, flags | OFlags::PATH, Mode::empty()), false),
            directory => (directory, true),
        };
        let directory = directory
            .map_err(io::Error::from)
            .context(|| format!("open directory {}", parent.display()))?;
        let (temporary, file) = loop {
            let temporary = temporary_name(&name)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => break (temporary, File::from(file)),
                Err(Errno::EXIST) => {}
                Err(error) => {
                    return Err(full(
                        error.into(),
                        format!("create a file in {} for {}", parent.display(), path.display()),
                    ));
                }
            }
        };
        Ok(PendingImage {
            path: path.to_path_buf(),
            directory,
            can_sync,
            name,
            file,
            temporary: Some(temporary),
            keeper: Some(std::process::id()),
        })
    }

    /// The temporary file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name the image will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the image its name, in place of an older file of that name, after making it readable by its owner only
    /// and durable. `owner` is the user and group it shall belong to, if not to whoever made it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the disk is full, [`ErrorKind::Denied`] when the image may not be given to `owner`.
    /// An older file of that name is then still there, unless making the new name durable was what failed.
    pub fn publish(mut self, owner: Option<(u32, u32)>) -> Result<()> {
        let path = self.path.display().to_string();
        rustix::fs::fchmod(&self.file, Mode::RUSR)
            .map_err(io::Error::from)
            .context(|| format!("make image {path} readable by its owner only"))?;
        if let Some((uid, gid)) = owner {
            self.give_to(uid, gid)?;
        }
        self.file
            .sync_all()
            .map_err(|error| full(error, format!("write image {path} to disk")))?;
        let temporary = self
            .temporary
            .take()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "image published twice"))?;
        if let Err(error) = rustix::fs::renameat(&self.directory, &temporary, &self.directory, &self.name) {
            self.temporary = Some(temporary);
            return Err(full(error.into(), format!("give image {path} its name")));
        }
        self.sync_directory()
            .map_err(|error| full(error, format!("write the name of image {path} to disk")))
    }

    /// Prepares for a fork: neither copy removes the temporary file until one is adopted.
    pub fn hand_over(&mut self) {
        self.keeper = None;
    }

    /// Takes charge of the temporary file in the process that goes on with it after a fork.
    pub fn adopt(&mut self) {
        self.keeper = Some(std::process::id());
    }

    /// Removes the temporary file; the same as dropping it.
    pub fn discard(self) {}

    fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        let what = || format!("give image {} to user {uid} and group {gid}", self.path.display());
        // All bits set mean "leave as it is" to chown(2).
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{}: no such user or group", what()),
            ));
        }
        let now = rustix::fs::fstat(&self.file).map_err(io::Error::from).context(what)?;
        let user = (now.st_uid != uid).then(|| Uid::from_raw(uid));
        let group = (now.st_gid != gid).then(|| Gid::from_raw(gid));
        if user.is_none() && group.is_none() {
            return Ok(());
        }
        rustix::fs::fchown(&self.file, user, group)
            .map_err(io::Error::from)
            .context(what)
    }

    fn sync_directory(&self) -> io::Result<()> {
        if !self.can_sync {
            // The directory may be written but not read; this is heavier, but does it.
            return rustix::fs::syncfs(&self.file).map_err(io::Error::from);
        }
        match rustix::fs::fsync(&self.directory) {
            // Some file systems cannot do this, and keep names without it as well as they can.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
            result => result.map_err(io::Error::from),
        }
    }
}

impl Drop for PendingImage {
    fn drop(&mut self) {
        if self.keeper != Some(std::process::id()) {
            return;
        }
        if let Some(temporary) = self.temporary.take() {
            // Nobody could do anything about a failure; the name says what it is.
            let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
        }
    }
}

impl Write for &PendingImage {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for PendingImage {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn temporary_name(name: &OsStr) -> Result<OsString> {
    let random = ImageId::random()?.to_string();
    let name = name.as_bytes();
    // 255 bytes are the most a name can have.
    let kept = &name[..name.len().min(255 - ".".len() - ".XXXXXXXX.part".len())];
    let mut temporary = OsString::from(".");
    temporary.push(OsStr::from_bytes(kept));
    temporary.push(format!(".{}.part", &random[..8]));
    Ok(temporary)
}
