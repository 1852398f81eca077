//! `/proc/PID/mountinfo`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::SeekFrom;

use super::{lines, read_all, split_once, unescape};

/// One mount. All texts have the file's octal escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount; `mnt_id` in `fdinfo`.
    pub id: i32,
    /// Number of the mount it is on; its own or an unlisted one at the top.
    pub parent: i32,
    /// Major and minor device number, the `st_dev` of its files on most file systems.
    pub dev: (u32, u32),
    /// Directory of the file system that is the root of the mount.
    pub root: Vec<u8>,
    /// Where it is mounted, relative to the process's root.
    pub mount_point: Vec<u8>,
    /// Options of the mount, separated by commas.
    pub options: Vec<u8>,
    /// Fields such as `shared:1` and `master:2`.
    pub optional: Vec<Vec<u8>>,
    /// File-system type, perhaps with a subtype after a dot.
    pub fs_type: Vec<u8>,
    /// What is mounted; depends on the file system, and may be empty.
    pub source: Vec<u8>,
    /// Options of the file system, separated by commas.
    pub super_options: Vec<u8>,
}

/// What is mounted in a mount namespace, now and later.
#[derive(Debug)]
pub struct MountTable {
    file: OwnedFd,
    label: String,
}

impl MountTable {
    /// Of an open `/proc/PID/mountinfo`; `label` is its name in errors.
    pub(super) fn new(file: OwnedFd, label: String) -> Self {
        MountTable { file, label }
    }

    /// What is mounted now.
    ///
    /// # Errors
    /// Those of a read.
    pub fn read(&self) -> io::Result<Vec<Mount>> {
        rustix::fs::seek(&self.file, SeekFrom::Start(0))?;
        parse(&self.label, &read_all(&self.file)?)
    }

    /// Whether anything was mounted, unmounted or changed since the last call, or since this was opened: the kernel says
    /// so to whoever polls (proc_pid_mountinfo(5)).
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_changed(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.file, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)))?;
        Ok(polled[0].revents().intersects(PollFlags::PRI | PollFlags::ERR))
    }
}

/// Parses `/proc/PID/mountinfo`.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Vec<Mount>> {
    let plain = |word: &[u8]| unescape(word, |_| true);
    let mut mounts = Vec::new();
    for (at, line) in lines(file, text) {
        // Exactly one blank separates the fields: a source may be empty.
        let mut fields = line.split(|&b| b == b' ');
        let mut field = |name: &str| at.need(fields.next(), name);
        let id = at.decimal(field("mount number")?, "mount number")?;
        let parent = at.decimal(field("parent")?, "parent")?;
        let (major, minor) = at.need(split_once(field("device")?, b':'), "device")?;
        let dev = (at.decimal(major, "device")?, at.decimal(minor, "device")?);
        let root = plain(field("root")?);
        let mount_point = plain(field("mount point")?);
        let options = plain(field("options")?);
        let mut optional = Vec::new();
        loop {
            match field("separator \"-\"")? {
                b"-" => break,
                tag => optional.push(plain(tag)),
            }
        }
        let fs_type = plain(field("file-system type")?);
        let source = plain(field("source")?);
        let super_options = plain(field("file-system options")?);
        mounts.push(Mount {
            id,
            parent,
            dev,
            root,
            mount_point,
            options,
            optional,
            fs_type,
            source,
            super_options,
        });
    }
    Ok(mounts)
}
