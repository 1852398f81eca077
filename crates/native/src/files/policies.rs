//! Files with a policy of their own (LBNL-3.9.8.2): what is kept of them at a checkpoint, and what is done about them
//! at restart.
//!
//! Nothing is changed before [`Changes::apply`], which is made when nothing else can fail, and undone where the restart
//! fails all the same. New contents are written beside a file and exchanged with it, never through a symbolic link.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cpr_image::model::{ByteString, Bytes, FileContent, FilePolicy, Manifest, Object};
use cpr_kernel::process::FileIdentity;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::kind;
use super::regular;
use super::saved::SavedFiles;
use crate::policy::{FileRule, Verdict, verdict};

/// Counters of a Java virtual machine, which it shares with jps(1) and jstat(1): memory that happens to have a name.
/// The next one that the same user starts removes those of machines that do not run, as of a job that was ended by its
/// checkpoint.
const JAVA_COUNTERS: &str = "/tmp/hsperfdata_*/[0-9]*";

fn io(error: Errno) -> io::Error {
    error.into()
}

/// Files with a policy, as they are found while a job is saved.
#[derive(Debug, Default)]
pub struct SaveState {
    rules: Vec<FileRule>,
    /// The job's user and group, with whose rights files are opened that the job has not open.
    owner: Option<(u32, u32)>,
    found: Vec<FilePolicy>,
    known: HashSet<Vec<u8>>,
}

impl SaveState {
    /// For these rules, and before them what is known of files that are memory. Symbolic links in the plain part of a
    /// pattern are resolved here and now, as the kernel shows paths of open files without them.
    pub fn new(rules: &[FileRule], owner: Option<(u32, u32)>) -> SaveState {
        SaveState {
            rules: std::iter::once(&java_counters()).chain(rules).map(resolved).collect(),
            owner,
            ..SaveState::default()
        }
    }

    /// What the rules say about the file at `path`.
    pub fn verdict(&self, path: &[u8]) -> Option<Verdict> {
        verdict(&self.rules, path)
    }

    /// Whether a file becomes one without name at restart.
    pub fn is_anonymous(&self, path: &[u8]) -> bool {
        self.verdict(path)
            .is_some_and(|v| v.content == FileContent::BackupAnonymous)
    }

    /// Notes the file at `path`, which `handle` is open on, if a rule is about it.
    ///
    /// # Errors
    /// Its contents cannot be read.
    pub fn note(&mut self, path: &[u8], stat: &Stat, handle: BorrowedFd<'_>, saved: &mut SavedFiles) -> Result<()> {
        let Some(verdict) = self.verdict(path) else {
            return Ok(());
        };
        if !self.known.insert(path.to_vec()) {
            return Ok(());
        }
        let size = stat.st_size as u64;
        let name = String::from_utf8_lossy(path);
        let path = ByteString(path.to_vec());
        let hash = if verdict.content == FileContent::Check {
            hash(handle, size).context(|| format!("read {name}"))?.to_vec()
        } else {
            Vec::new()
        };
        let contents = if verdict.content == FileContent::BackupRestore {
            Some(saved.add_backup(stat, handle, path.clone())?)
        } else {
            None
        };
        self.found.push(FilePolicy {
            path,
            content: verdict.content,
            truncate: verdict.truncate,
            size,
            mtime_ns: mtime(stat),
            hash: Bytes(hash),
            saved: contents,
        });
        Ok(())
    }

    /// Notes the file at `path` if a rule is about it; one that the job need not have open.
    ///
    /// # Errors
    /// It cannot be opened or read with the rights of the job's user.
    pub fn note_path(&mut self, path: &Path, saved: &mut SavedFiles) -> Result<()> {
        let bytes = path.as_os_str().as_bytes();
        if self.known.contains(bytes) || self.verdict(bytes).is_none() {
            return Ok(());
        }
        let _identity = self.owner.map(|(uid, gid)| FileIdentity::assume(uid, gid));
        let what = || format!("open {}", path.display());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::open(path, flags, Mode::empty()).map_err(io).context(what)?;
        let stat = rustix::fs::fstat(&node).map_err(io).context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        self.note(bytes, &stat, node.as_fd(), saved)
    }

    /// Notes files that no process has open, and gives all policies.
    ///
    /// # Errors
    /// A file that a rule names cannot be opened or read.
    pub fn finish(mut self, saved: &mut SavedFiles) -> Result<Vec<FilePolicy>> {
        let mut closed: Vec<PathBuf> = Vec::new();
        for rule in &self.rules {
            if let Some(path) = rule.literal() {
                closed.push(PathBuf::from(path));
            } else if let Some(directory) = rule.directory() {
                let entries = match std::fs::read_dir(&directory) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error).context(|| format!("list {directory}")),
                };
                let paths = entries.flatten().map(|entry| entry.path());
                closed.extend(paths.filter(|path| rule.is_about(path.as_os_str().as_bytes())));
            }
        }
        for path in closed {
            self.note_path(&path, saved)?;
        }
        Ok(self.found)
    }
}

fn java_counters() -> FileRule {
    FileRule {
        pattern: JAVA_COUNTERS.to_owned(),
        content: Some(FileContent::BackupRestore),
        truncate: None,
    }
}

fn mtime(stat: &Stat) -> i64 {
    stat.st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add(stat.st_mtime_nsec as i64)
}

/// The rule with symbolic links resolved in the directories before the first wildcard.
fn resolved(rule: &FileRule) -> FileRule {
    let mut rule = rule.clone();
    let plain = rule
        .pattern
        .split('/')
        .take_while(|part| !part.contains(['*', '?', '[']));
    let length: usize = plain.map(|part| part.len() + 1).sum();
    let end = rule.pattern[..length.min(rule.pattern.len())].rfind('/').unwrap_or(0);
    let (directory, rest) = rule.pattern.split_at(end);
    let plain = FileRule {
        pattern: directory.to_owned(),
        ..rule.clone()
    };
    let real = plain.literal().and_then(|path| std::fs::canonicalize(path).ok());
    if let Some(real) = real.as_deref().and_then(Path::to_str).filter(|real| *real != "/") {
        let mut escaped = String::with_capacity(real.len());
        for c in real.chars() {
            if matches!(c, '*' | '?' | '[' | '\\') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        rule.pattern = format!("{escaped}{rest}");
    }
    rule
}

/// Hash of the first `length` bytes of what `handle` is open on (O_PATH, too).
fn hash(handle: BorrowedFd<'_>, length: u64) -> io::Result<[u8; 32]> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(format!("/proc/self/fd/{}", handle.as_raw_fd()), flags, Mode::empty());
    let file = match opened {
        Ok(fd) => File::from(fd),
        // No right to open it once more: the job's own description will do, by position.
        Err(_) => File::from(handle.try_clone_to_owned()?),
    };
    cpr_image::hash_reader(Positioned { file: &file, at: 0 }.take(length))
}

/// Reads a file by position, so that the offset, which may be the job's, stays where it is.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The policies of an image by path.
pub fn by_path(manifest: &Manifest) -> HashMap<&ByteString, &FilePolicy> {
    manifest
        .file_policies
        .iter()
        .map(|policy| (&policy.path, policy))
        .collect()
}

/// Names every file that is not as its policy wants it.
pub fn violations(manifest: &Manifest) -> Vec<(&ByteString, Error)> {
    let check = |policy| require(policy).err().map(|error| (&policy.path, error));
    manifest.file_policies.iter().filter_map(check).collect()
}

fn require(policy: &FilePolicy) -> Result<()> {
    let path = &policy.path;
    match policy.content {
        FileContent::Check => {}
        FileContent::BackupRestore => {
            return match place(path) {
                // It is made.
                Err(error) if error.kind() == ErrorKind::Incompatible && java_counters().is_about(&path.0) => Ok(()),
                place => place.map(drop),
            };
        }
        _ => return Ok(()),
    }
    let (node, stat) = regular::locate(path)?;
    let changed = |how: String| {
        Err(Error::new(ErrorKind::Incompatible, format!("{path} {how}"))
            .with_hint("put the file back as it was; or checkpoint with another policy for it"))
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return changed("is no regular file any more".to_owned());
    }
    let size = stat.st_size as u64;
    if size < policy.size || (size > policy.size && policy.truncate != Some(true)) {
        return changed(format!(
            "has {size} bytes now and had {} at the checkpoint",
            policy.size
        ));
    }
    let now = hash(node.as_fd(), policy.size).context(|| format!("read {path}"))?;
    if now[..] != policy.hash.0[..] {
        return changed("has been changed since the checkpoint".to_owned());
    }
    Ok(())
}

/// The directory a file belongs in, opened without following any symbolic link, and its name there. What has that name
/// now must be a regular file, or nothing.
fn place(path: &ByteString) -> Result<(OwnedFd, OsString)> {
    let full = path.as_path();
    let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
        return Err(Error::new(ErrorKind::Damaged, format!("{path} is no path of a file")));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let directory = rustix::fs::openat2(rustix::fs::CWD, parent, flags, Mode::empty(), resolve)
        .map_err(io)
        .context(|| format!("open directory {}", parent.display()))
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => e
                .with_kind(ErrorKind::Incompatible)
                .with_hint(format!("make directory {} again", parent.display())),
            _ => e,
        })?;
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
            Err(regular::changed(path, "a regular file"))
        }
        Ok(_) | Err(Errno::NOENT) => Ok((directory, name.to_owned())),
        Err(error) => Err(io(error)).context(|| format!("look at {path}")),
    }
}

/// The same; where the directory of a Java virtual machine's counters is gone it is made, as the machine would.
fn make_place(path: &ByteString) -> Result<(OwnedFd, OsString)> {
    let directory = path.as_path().parent().filter(|_| java_counters().is_about(&path.0));
    if let Some(directory) = directory {
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        match rustix::fs::mkdir(directory, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io(error)).context(|| format!("make directory {}", directory.display())),
        }
    }
    place(path)
}

/// A file that is to take the place of another.
#[derive(Debug)]
struct Backup {
    path: ByteString,
    directory: OwnedFd,
    name: OsString,
    /// What it is called until then; afterwards, where there is one, the file that was there before.
    temporary: Option<OsString>,
    state: Placed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// Under its temporary name.
    No,
    /// In place; the file that was there has the temporary name.
    Exchanged,
    /// In place; nothing was there.
    New,
    /// In place of one that is gone: this file system cannot exchange names.
    Over,
}

/// Files written beside those whose place they are to take. Dropping it puts everything back, unless it is told to
/// keep.
#[derive(Debug, Default)]
pub struct Backups(Vec<Backup>);

impl Backups {
    /// An empty file that is to take the place of the one at `path`, open for reading and writing.
    pub(super) fn create(&mut self, path: &ByteString) -> Result<OwnedFd> {
        let (directory, name) = make_place(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for attempt in 0..100u32 {
            let temporary = format!(".cpr-restart-{}-{}-{attempt}", std::process::id(), self.0.len());
            let temporary = OsString::from_vec(temporary.into_bytes());
            match rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR) {
                Ok(fd) => {
                    self.0.push(Backup {
                        path: path.clone(),
                        directory,
                        name,
                        temporary: Some(temporary),
                        state: Placed::No,
                    });
                    return Ok(fd);
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(io(error)).context(|| format!("make a file beside {path}")),
            }
        }
        Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("{path}: no free name beside it"),
        ))
    }
}

impl Backup {
    fn put_in_place(&mut self) -> Result<()> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        let (directory, name) = (&self.directory, &self.name);
        let rename = |flags| rustix::fs::renameat_with(directory, temporary, directory, name, flags);
        let (result, state) = match rename(RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => (rename(RenameFlags::NOREPLACE), Placed::New),
            Err(Errno::INVAL | Errno::NOSYS) => (
                rustix::fs::renameat(directory, temporary, directory, name),
                Placed::Over,
            ),
            result => (result, Placed::Exchanged),
        };
        result.map_err(io).context(|| format!("put {} back", self.path))?;
        self.state = state;
        if state != Placed::Exchanged {
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for Backups {
    fn drop(&mut self) {
        for backup in &self.0 {
            let (directory, name) = (&backup.directory, &backup.name);
            // The error that led here is the one to report.
            if let (Placed::Exchanged, Some(temporary)) = (backup.state, &backup.temporary) {
                let _ = rustix::fs::renameat_with(directory, temporary, directory, name, RenameFlags::EXCHANGE);
            }
            if backup.state == Placed::New {
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            }
            if let Some(temporary) = &backup.temporary {
                let _ = rustix::fs::unlinkat(directory, temporary, AtFlags::empty());
            }
        }
    }
}

/// All that a restart changes about files with a name.
#[derive(Debug)]
pub struct Changes {
    /// Files to get another length: cut, or made longer, too.
    lengths: Vec<(OwnedFd, u64, ByteString, bool)>,
    backups: Backups,
}

impl Changes {
    /// Opens what has to be changed; changes nothing yet. `opened` is what [`super::open_all`] gave, `saved` what
    /// [`super::create_saved`] gave.
    ///
    /// # Errors
    /// A file cannot be opened for that.
    pub fn prepare(
        manifest: &Manifest,
        opened: &[Arc<OwnedFd>],
        saved: &[OwnedFd],
        backups: Backups,
    ) -> Result<Changes> {
        let policies = by_path(manifest);
        let mut lengths = Vec::new();
        for (file, fd) in manifest.files.iter().zip(opened) {
            let Object::Regular(regular) = &file.object else {
                continue;
            };
            let ruled = file.mount_namespace.is_none() && policies.contains_key(&regular.path);
            if ruled || !kind::writable(file.flags) || regular::is_pseudo(fd.as_fd()) {
                continue;
            }
            // What was written since will be written again.
            let fd = fd
                .try_clone()
                .context(|| format!("copy a descriptor of {}", regular.path))?;
            lengths.push((fd, regular.size, regular.path.clone(), false));
        }
        let written = regular::written(manifest);
        for policy in &manifest.file_policies {
            if let Some(id) = policy.saved {
                let fd = saved
                    .get(id.index())
                    .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("{} has no contents", policy.path)))?;
                settle(fd.as_fd(), policy)?;
                continue;
            }
            let cut = match policy.content {
                FileContent::Check | FileContent::Nocheck => policy.truncate == Some(true),
                FileContent::Default => policy.truncate.unwrap_or_else(|| written.contains(&policy.path)),
                _ => false,
            };
            if !cut {
                continue;
            }
            let (node, stat) = regular::locate(&policy.path)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(regular::changed(&policy.path, "a regular file"));
            }
            let longer = policy.content == FileContent::Nocheck;
            if stat.st_size as u64 == policy.size || (stat.st_size as u64) < policy.size && !longer {
                continue;
            }
            let path = format!("/proc/self/fd/{}", node.as_raw_fd());
            let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(io)
                .context(|| format!("open {} to give it {} bytes", policy.path, policy.size))?;
            lengths.push((fd, policy.size, policy.path.clone(), longer));
        }
        Ok(Changes { lengths, backups })
    }

    /// Makes the changes. The only step of a restart that changes files, so to be made when nothing else can fail any
    /// more.
    ///
    /// # Errors
    /// A file cannot be changed. Those put back in place are as before then.
    pub fn apply(&mut self) -> Result<()> {
        for backup in &mut self.backups.0 {
            backup.put_in_place()?;
        }
        for (fd, size, path, longer) in &self.lengths {
            let what = || format!("give {path} its {size} bytes");
            let now = rustix::fs::fstat(fd).map_err(io).context(what)?.st_size as u64;
            if now > *size || (*longer && now < *size) {
                rustix::fs::ftruncate(fd, *size).map_err(io).context(what)?;
            }
        }
        Ok(())
    }

    /// The job runs: what was replaced goes for good.
    pub fn keep(mut self) {
        for backup in &mut self.backups.0 {
            // From now on nothing is undone; only what has the temporary name is removed.
            if backup.state != Placed::No {
                backup.state = Placed::Over;
            }
        }
    }
}

/// Gives restored contents their time, and makes them durable before they take anybody's place.
fn settle(fd: BorrowedFd<'_>, policy: &FilePolicy) -> Result<()> {
    let time = Timespec {
        tv_sec: policy.mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: policy.mtime_ns.rem_euclid(1_000_000_000),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(fd, &times)
        .and_then(|()| rustix::fs::fsync(fd))
        .map_err(io)
        .context(|| format!("finish the contents of {}", policy.path))
}
