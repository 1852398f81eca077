//! Mount namespaces that paths of a job can be of: its own, and those that it has filled with mounts of their own.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cpr_image::model::{ByteString, MountNamespaceId, SavedFileKind};
use cpr_kernel::mounts;
use rustix::fs::{AtFlags, Mode, OFlags, SealFlags, Stat};

/// Those of a job. Its own has no number.
#[derive(Debug, Default)]
pub struct Views {
    /// Root directories.
    roots: HashMap<MountNamespaceId, OwnedFd>,
    /// What is mounted in them, by the numbers of mounts.
    mounts: HashMap<i32, MountNamespaceId>,
    /// Where file systems of message queues are mounted in them: a place in a tree, and their device numbers.
    queues: Vec<((MountNamespaceId, u32), u64)>,
    /// File systems of terminals that are mounted in them, by their device numbers.
    terminals: HashMap<u64, TerminalSystem>,
    /// Mounts that the job's own namespace has now, and a restart does not find: nothing there has a path of it.
    hidden: HashSet<i32>,
    /// What stat(2) gave: many mappings are of the same few files.
    looked_at: RefCell<HashMap<PathOf, Stat>>,
}

/// A path, and the mount namespace it is looked up in.
type PathOf = (Option<MountNamespaceId>, Vec<u8>);

/// A file system of terminals: the mount namespace, and what is mounted there (an index into its tree).
pub type TerminalSystem = (MountNamespaceId, u32);

impl Views {
    /// Adds a namespace with its root directory and the numbers of what is mounted in it.
    pub fn add(&mut self, id: MountNamespaceId, root: OwnedFd, mounts: impl Iterator<Item = i32>) {
        self.roots.insert(id, root);
        self.mounts.extend(mounts.map(|mount| (mount, id)));
    }

    /// Says which mounts of the job's own namespace are not to be looked at as its own.
    pub fn hide(&mut self, mounts: HashSet<i32>) {
        self.hidden = mounts;
    }

    /// Whether a path leads to one of those.
    pub fn hides(&self, path: &[u8]) -> bool {
        !self.hidden.is_empty() && self.open(None, path, OFlags::PATH).is_err()
    }

    /// Adds a file system of message queues of a namespace.
    pub fn add_queues(&mut self, device: (u32, u32), place: (MountNamespaceId, u32)) {
        self.queues.push((place, rustix::fs::makedev(device.0, device.1)));
    }

    /// Where file systems of message queues are mounted, and their device numbers.
    pub fn queues(&self) -> &[((MountNamespaceId, u32), u64)] {
        &self.queues
    }

    /// Adds a file system of terminals of a namespace.
    pub fn add_terminals(&mut self, device: (u32, u32), system: TerminalSystem) {
        let device = rustix::fs::makedev(device.0, device.1);
        self.terminals.entry(device).or_insert(system);
    }

    /// The file system of terminals with this device number, where that is not the job's own.
    pub fn terminals(&self, device: u64) -> Option<TerminalSystem> {
        self.terminals.get(&device).copied()
    }

    /// The namespace that a mount is in, where that is not the job's own.
    pub fn of_mount(&self, mount: i32) -> Option<MountNamespaceId> {
        self.mounts.get(&mount).copied()
    }

    /// The namespace of a process, where paths in that lead elsewhere than in the job's own.
    pub fn of_process(&self, namespace: Option<MountNamespaceId>) -> Option<MountNamespaceId> {
        namespace.filter(|id| self.roots.contains_key(id))
    }

    /// The root directory of a namespace that is not the job's own.
    pub fn root(&self, view: MountNamespaceId) -> Option<BorrowedFd<'_>> {
        self.roots.get(&view).map(AsFd::as_fd)
    }

    /// Opens a path of a namespace.
    ///
    /// # Errors
    /// What open(2) gives; `ENOENT` where there is no such namespace.
    pub fn open(&self, view: Option<MountNamespaceId>, path: &[u8], flags: OFlags) -> std::io::Result<OwnedFd> {
        match view {
            None => {
                let path = Path::new(std::ffi::OsStr::from_bytes(path));
                let opened = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
                if !self.hidden.is_empty() && self.hidden.contains(&mounts::mount_of(&opened)?) {
                    return Err(std::io::Error::from_raw_os_error(libc::ENOENT));
                }
                Ok(opened)
            }
            Some(id) => {
                let root = self.roots.get(&id);
                let root = root.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))?;
                mounts::open_below(root.as_fd(), path, flags)
            }
        }
    }

    /// stat(2) of a path of a namespace, following symbolic links; what was there when it was first asked for.
    ///
    /// # Errors
    /// As [`Views::open`].
    pub fn stat(&self, view: Option<MountNamespaceId>, path: &[u8]) -> std::io::Result<Stat> {
        let key = (view, path.to_vec());
        if let Some(stat) = self.looked_at.borrow().get(&key) {
            return Ok(*stat);
        }
        let stat = self.look(view, path, OFlags::PATH)?;
        self.looked_at.borrow_mut().insert(key, stat);
        Ok(stat)
    }

    /// lstat(2) of a path of a namespace.
    ///
    /// # Errors
    /// As [`Views::open`].
    pub fn lstat(&self, view: Option<MountNamespaceId>, path: &[u8]) -> std::io::Result<Stat> {
        self.look(view, path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn look(&self, view: Option<MountNamespaceId>, path: &[u8], flags: OFlags) -> std::io::Result<Stat> {
        Ok(rustix::fs::fstat(self.open(view, path, flags)?)?)
    }

    /// Another name of a file of a namespace, in the directory it was in, or in one above in the same file system.
    pub fn other_name(&self, view: MountNamespaceId, path: &[u8], inode: u64) -> Option<Vec<u8>> {
        let (mut above, mut device) = (path, None);
        while let Some(end) = above.iter().rposition(|&byte| byte == b'/') {
            above = &above[..end];
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let place = if above.is_empty() { b"/" } else { above };
            // It may be gone as well.
            let Ok(directory) = self.open(Some(view), place, flags) else {
                continue;
            };
            let own = rustix::fs::fstat(&directory).ok()?.st_dev;
            if *device.get_or_insert(own) != own {
                return None;
            }
            for entry in rustix::fs::Dir::read_from(&directory).ok()?.flatten() {
                let stat = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
                let is_it = |stat: Stat| (stat.st_dev, stat.st_ino) == (own, inode);
                if entry.ino() == inode && stat.is_ok_and(is_it) {
                    return Some([above, b"/", entry.file_name().to_bytes()].concat());
                }
            }
        }
        None
    }
}

/// How to make a deleted file again: where it was or, for one of another namespace than the job's own, which is not
/// there yet when files are made, in memory.
pub fn deleted_kind(view: Option<MountNamespaceId>, path: ByteString) -> SavedFileKind {
    /// What memfd_create(2) allows.
    const LONGEST: usize = 200;
    if view.is_none() {
        return SavedFileKind::Deleted { path };
    }
    let name = path.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    SavedFileKind::Memfd {
        name: ByteString(name[..name.len().min(LONGEST)].to_vec()),
        seals: SealFlags::SEAL.bits(),
    }
}
