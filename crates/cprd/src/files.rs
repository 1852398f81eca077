//! Copies one file for a user: run as that user, by the agent of a node, so that nothing is reached that the user could
//! not reach. A file is there as a whole, or as it was before.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

/// Permissions of a file that others may see as they see that which it was copied from.
const PERMISSIONS: u32 = 0o777;
/// Directories that are made.
const DIRECTORY: u32 = 0o777;

/// A file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// The directory that it is below, whatever symbolic links there are; none where that may be anywhere.
    pub below: Option<PathBuf>,
    pub path: PathBuf,
}

/// What is to be copied.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copying {
    pub from: Place,
    pub to: Place,
    /// It is appended to what is there.
    pub append: bool,
    /// Nothing is done where there is something already.
    pub if_missing: bool,
    /// Tells what several jobs have begun to copy apart.
    pub tag: String,
}

/// Copies; prints how much, or why not, as `cpr --json` would say it.
pub fn run(text: &str) -> u8 {
    let done = serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::Internal, "what to copy is not understood").with_source(error))
        .and_then(|copying: Copying| copy(&copying));
    match done {
        Ok(bytes) => {
            println!(
                "{}",
                serde_json::json!({"bytes": bytes.unwrap_or(0), "skipped": bytes.is_none()})
            );
            0
        }
        Err(error) => {
            let problem = serde_json::json!({"error": {"kind": error.kind(), "message": error.chain()}});
            println!("{problem}");
            error.kind().exit_code()
        }
    }
}

impl Place {
    fn show(&self) -> String {
        match &self.below {
            Some(below) => below.join(&self.path).display().to_string(),
            None => self.path.display().to_string(),
        }
    }

    /// The directory, and the names on the way from it.
    fn begin(&self) -> Result<(OwnedFd, PathBuf)> {
        let (base, rest) = match &self.below {
            Some(below) => (below.as_path(), self.path.as_path()),
            None => (Path::new("/"), self.path.strip_prefix("/").unwrap_or(&self.path)),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(base, flags, Mode::empty()).map_err(io::Error::from);
        let opened = opened.context(|| format!("enter directory {}", base.display()))?;
        Ok((opened, rest.to_path_buf()))
    }

    /// Where nobody has said what it is to be below, symbolic links may lead anywhere.
    fn rules(&self) -> ResolveFlags {
        match &self.below {
            Some(_) => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            None => ResolveFlags::NO_MAGICLINKS,
        }
    }

    fn open(&self) -> Result<File> {
        let what = || format!("open {}", self.show());
        let (base, path) = self.begin()?;
        // A FIFO is found out, and not waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(base.as_fd(), &path, flags, self.rules()).context(what)?;
        let file = File::from(file);
        match file.metadata().context(what)?.is_file() {
            true => Ok(file),
            false => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} is not a file", self.show()),
            )),
        }
    }

    /// The directory that it is in, made where that is missing; and its name.
    fn parent(&self) -> Result<(OwnedFd, String)> {
        let what = || format!("make the directory of {}", self.show());
        let (mut at, path) = self.begin()?;
        let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
        let parts = parts.unwrap_or_default();
        let Some((name, directories)) = parts.split_last() else {
            return Err(Error::new(ErrorKind::Usage, format!("{} has no name", self.show())));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for (number, part) in directories.iter().enumerate() {
            // From the beginning, so that `..` in a link is looked at as what it is.
            let (base, _) = self.begin()?;
            let way: PathBuf = directories[..=number].iter().collect();
            let opened = openat(base.as_fd(), &way, flags, self.rules());
            at = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&at, *part, Mode::from_raw_mode(DIRECTORY)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(io::Error::from(error)).context(what),
                    }
                    openat(base.as_fd(), &way, flags, self.rules()).context(what)?
                }
                opened => opened.context(what)?,
            };
        }
        Ok((at, (*name).to_string()))
    }
}

fn openat(base: BorrowedFd<'_>, path: &Path, flags: OFlags, rules: ResolveFlags) -> io::Result<OwnedFd> {
    rustix::fs::openat2(base, path, flags, Mode::empty(), rules).map_err(|error| match error {
        // What openat2(2) says of a link that leads out of the directory.
        rustix::io::Errno::XDEV => io::Error::new(io::ErrorKind::PermissionDenied, "it leads out of its directory"),
        error => io::Error::from(error),
    })
}

/// Copies; gives how many bytes, none where there was something already that is to stay.
fn copy(copying: &Copying) -> Result<Option<u64>> {
    let Copying { from, to, .. } = copying;
    let (directory, name) = to.parent()?;
    let exists = rustix::fs::statat(&directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if copying.if_missing && exists {
        return Ok(None);
    }
    let mut source = from.open()?;
    let metadata = source.metadata().context(|| format!("examine {}", from.show()))?;
    let aside = format!(".{name}.{}.part", copying.tag);
    let what = || format!("write {}", to.show());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&directory, aside.as_str(), flags, Mode::from_raw_mode(0o600));
    let mut target = File::from(made.map_err(io::Error::from).context(what)?);
    let mut write = || {
        if copying.append && exists {
            let mut before = to.open()?;
            io::copy(&mut before, &mut target).context(what)?;
        }
        let bytes = copy_all(&mut source, &mut target).context(what)?;
        if bytes != metadata.len() {
            return Err(
                Error::new(ErrorKind::Io, format!("{} has changed meanwhile", from.show()))
                    .with_hint("whatever writes to it has to be done first"),
            );
        }
        let mode = metadata.permissions().mode() & PERMISSIONS;
        target.set_permissions(Permissions::from_mode(mode)).context(what)?;
        target.sync_all().context(what)?;
        rustix::fs::renameat(&directory, aside.as_str(), &directory, name.as_str())
            .map_err(io::Error::from)
            .context(what)?;
        Ok(bytes)
    };
    let written = write();
    if written.is_err() {
        // Why it could not be written is told.
        let _ = rustix::fs::unlinkat(&directory, aside.as_str(), AtFlags::empty());
    }
    let bytes = written?;
    sync(&directory).context(what)?;
    Ok(Some(bytes))
}

/// Copies from where a file is read to its end. Errors that say that there is no room any more keep their meaning.
fn copy_all(source: &mut File, target: &mut File) -> io::Result<u64> {
    source.rewind()?;
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = match source.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        target.write_all(piece.get(..count).unwrap_or_default())?;
        bytes += count as u64;
    }
}

/// Has the name of a file on disk, too.
fn sync(directory: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    Ok(rustix::fs::fsync(opened)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn copying(directory: &Path, from: &str, to: &str) -> Copying {
        let below = Some(directory.to_path_buf());
        Copying {
            from: Place {
                below: None,
                path: directory.join(from),
            },
            to: Place { below, path: to.into() },
            append: false,
            if_missing: false,
            tag: "1.1".into(),
        }
    }

    #[test]
    fn a_file_is_copied_whole_with_its_permissions_and_appended_where_that_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("a"), "one\n").unwrap();
        fs::set_permissions(at("a"), Permissions::from_mode(0o750)).unwrap();
        let mut copying = copying(directory.path(), "a", "new/deep/b");
        assert_eq!(copy(&copying).unwrap(), Some(4));
        assert_eq!(fs::read_to_string(at("new/deep/b")).unwrap(), "one\n");
        assert_eq!(
            fs::metadata(at("new/deep/b")).unwrap().permissions().mode() & 0o777,
            0o750
        );
        copying.append = true;
        copy(&copying).unwrap();
        assert_eq!(fs::read_to_string(at("new/deep/b")).unwrap(), "one\none\n");
        copying.append = false;
        copying.if_missing = true;
        assert_eq!(copy(&copying).unwrap(), None);
        assert_eq!(
            fs::read_dir(at("new/deep")).unwrap().count(),
            1,
            "nothing is left aside"
        );
    }

    #[test]
    fn nothing_leads_out_of_a_directory_and_what_is_there_stays_when_a_copy_fails() {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| directory.path().join(name);
        fs::write(at("a"), "new").unwrap();
        symlink(outside.path(), at("out")).unwrap();
        let refused = copy(&copying(directory.path(), "a", "out/b")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{}", refused.chain());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        // In the file's own place a link is replaced, and what it leads to stays.
        fs::write(outside.path().join("kept"), "kept").unwrap();
        symlink(outside.path().join("kept"), at("b")).unwrap();
        copy(&copying(directory.path(), "a", "b")).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(at("b")).unwrap(), "new");
        // The other way round.
        let mut back = copying(directory.path(), "a", "c");
        back.from = Place {
            below: Some(directory.path().into()),
            path: "out/kept".into(),
        };
        assert_eq!(copy(&back).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(
            copy(&copying(directory.path(), "missing", "b")).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(fs::read_to_string(at("b")).unwrap(), "new");
        fs::create_dir(at("d")).unwrap();
        assert!(
            copy(&copying(directory.path(), "d", "e")).is_err(),
            "a directory is no file"
        );
    }
}
