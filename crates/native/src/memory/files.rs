//! Files that are mapped anywhere in the job, and where their paths lead.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use cpr_image::model::{IpcNamespaceId, MappedFile, MappedFileId, MountNamespaceId, SegmentId};
use cpr_kernel::proc::MapEntry;
use cpr_types::{Context, Result};
use rustix::fs::OFlags;

use crate::mapped;
use crate::views::Views;

/// Files mapped anywhere in the job.
#[derive(Debug, Default)]
pub struct MappedFiles {
    /// By [`MappedFileId`].
    pub files: Vec<MappedFile>,
    /// System V segments by their IPC namespaces and the inode numbers that mappings have.
    pub(super) segments: HashMap<(Option<IpcNamespaceId>, u64), SegmentId>,
    /// That of the process whose memory is saved.
    pub namespace: Option<IpcNamespaceId>,
    by_key: HashMap<(Option<MountNamespaceId>, Vec<u8>, bool, bool), MappedFileId>,
}

impl MappedFiles {
    /// None yet; `segments` are from [`crate::ipc::segment_ids`].
    pub fn new(segments: HashMap<(Option<IpcNamespaceId>, u64), SegmentId>) -> Self {
        MappedFiles {
            segments,
            ..MappedFiles::default()
        }
    }

    /// The entry for the file at a path of the job's own mount namespace or another.
    pub(super) fn intern(
        &mut self,
        path: &[u8],
        view: View<'_>,
        writable: bool,
        unchangeable: bool,
    ) -> Result<MappedFileId> {
        let View(views, namespace) = view;
        let key = (namespace, path.to_vec(), writable, unchangeable);
        if let Some(id) = self.by_key.get(&key) {
            return Ok(*id);
        }
        let fd: OwnedFd = views
            .open(namespace, path, OFlags::PATH)
            .context(|| format!("open mapped file {}", String::from_utf8_lossy(path)))?;
        let mut file = mapped::describe(path, fd.as_fd(), writable, unchangeable)?;
        file.mount_namespace = namespace;
        let id = MappedFileId(self.files.len() as u32);
        self.files.push(file);
        self.by_key.insert(key, id);
        Ok(id)
    }
}

/// Where a path is looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a>(pub &'a Views, pub Option<MountNamespaceId>);

impl View<'_> {
    /// Whether another file has the mapped file's name now.
    pub(super) fn replaced(self, map: &MapEntry) -> bool {
        // The device number is not compared: some file systems show another one in maps than in stat(2).
        self.0
            .stat(self.1, &map.path)
            .map_or(true, |stat| stat.st_ino != map.inode)
    }

    pub(super) fn is_exact(self, dev: u64, ino: u64, path: &[u8]) -> bool {
        let found = self.0.stat(self.1, path);
        found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (dev, ino))
    }

    /// Another name of a mapped file.
    pub(super) fn other_name(self, map: &MapEntry) -> Option<Vec<u8>> {
        match self.1 {
            None => crate::files::other_name(&map.path, map.inode),
            Some(view) => self.0.other_name(view, &map.path, map.inode),
        }
    }
}
