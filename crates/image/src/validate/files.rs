//! Open files, and files whose contents are in the image.

use std::collections::HashSet;

use cpr_types::Result;

use super::sockets::options;
use super::{Check, MAX_FILE, MAX_SIGNAL, SOCK_DGRAM, SOCK_RAW, Verdict, descriptor, in_table, path, within, wrong};
use crate::format::PAGE;
use crate::model::*;

/// Of BLAKE3.
const HASH_LENGTH: usize = 32;

impl Check<'_> {
    pub(super) fn saved_file(&self, file: &SavedFile) -> Verdict {
        within(
            file.huge_pages == 0 || file.huge_pages.is_power_of_two(),
            "size of huge pages",
        )?;
        match &file.kind {
            SavedFileKind::Deleted { path: name } | SavedFileKind::Backup { path: name } => path(name)?,
            SavedFileKind::DeletedDirectory { path: name } => {
                path(name)?;
                within(file.size == 0, "size")?;
            }
            SavedFileKind::DeletedLink { path: name, target } => {
                path(name)?;
                path(target)?;
                within(file.size == 0, "size")?;
            }
            // The kernel allows 249 bytes.
            SavedFileKind::Memfd { name, .. } => within(name.0.len() <= 255 && !name.0.contains(&0), "name")?,
            SavedFileKind::SharedAnonymous => {}
            SavedFileKind::SharedMemory { path: name } => {
                path(name)?;
                let inside = name.0.strip_prefix(b"/dev/shm/").is_some_and(|rest| !rest.is_empty());
                let plain = name.0.split(|&b| b == b'/').all(|part| part != b".." && part != b".");
                within(inside && plain, "path of shared memory")?;
            }
        }
        within(file.size <= MAX_FILE, "size")?;
        // i64::MAX rounded up still fits.
        self.extents(&file.extents, &(0..file.size.next_multiple_of(PAGE)))
    }

    pub(super) fn terminal(&self, terminal: &Terminal) -> Verdict {
        let Some((namespace, index)) = terminal.file_system else {
            return Ok(());
        };
        self.place(Some(namespace))?;
        let tree = &self.manifest.mount_namespaces[namespace.index()].tree;
        let mounted = tree.get(index as usize).map(|point| &point.mounted);
        let sound = matches!(mounted, Some(Mounted::Terminals { .. })) && !terminal.external && terminal.line.is_none();
        within(sound, "file system of a terminal")
    }

    pub(super) fn open_file(&self, file: &OpenFile, pids: &HashSet<i32>) -> Verdict {
        let manifest = self.manifest;
        within(file.position <= MAX_FILE, "position")?;
        self.place(file.mount_namespace)?;
        let elsewhere = matches!(
            file.object,
            Object::Regular(_) | Object::Directory { .. } | Object::Fifo(_) | Object::Device { node: None, .. }
        );
        within(file.mount_namespace.is_none() || elsewhere, "mount namespace of a file")?;
        for (_, start, length) in &file.ofd_locks {
            within(
                start
                    .checked_add(*length)
                    .is_some_and(|end| end - 1.min(end) <= MAX_FILE),
                "file lock",
            )?;
        }
        if let Some(owner) = &file.owner {
            within(
                (0..=2).contains(&owner.kind) && (0..=MAX_SIGNAL).contains(&owner.signal),
                "owner",
            )?;
        }
        let process = |number: i32| {
            if pids.contains(&number) {
                Ok(())
            } else {
                Err(format!("there is no process {number}"))
            }
        };
        match &file.object {
            Object::Regular(RegularFile { path: name, size, .. }) => {
                path(name)?;
                within(*size <= MAX_FILE, "size")
            }
            Object::Directory { path: name } | Object::Device { path: name, .. } => path(name),
            Object::Saved(id) => in_table(id.index(), &manifest.saved_files, "saved file"),
            Object::Pipe(id) => in_table(id.index(), &manifest.pipes, "pipe"),
            Object::Fifo(fifo) => {
                path(&fifo.path)?;
                in_table(fifo.pipe.index(), &manifest.pipes, "pipe")
            }
            Object::Proc { pid, path: name } => {
                path(name)?;
                // Init is not part of the job, but always there.
                pid.filter(|pid| *pid != 1).map_or(Ok(()), process)
            }
            Object::DeadProc { pid, path: name } => {
                within(*pid > 0, "process")?;
                within(
                    !name.0.contains(&0) && !name.0.split(|&b| b == b'/').any(|part| part == b".."),
                    "path",
                )
            }
            Object::EventFd { .. } | Object::TimerFd { .. } | Object::SignalFd { .. } => Ok(()),
            Object::Epoll { targets } => {
                let mut registered = HashSet::new();
                for target in targets {
                    descriptor(target.fd)?;
                    in_table(target.file.index(), &manifest.files, "open file")?;
                    within(
                        registered.insert((target.fd, target.file)),
                        "second registration of one descriptor",
                    )?;
                }
                Ok(())
            }
            Object::Inotify { watches, queued } => {
                let mut descriptors = HashSet::new();
                for watch in watches {
                    path(&watch.path)?;
                    within(watch.wd > 0 && descriptors.insert(watch.wd), "watch descriptor")?;
                }
                // 16384 events of 272 bytes: the usual fs.inotify.max_queued_events.
                within(queued.0.len() <= 64 << 20, "length of the event queue")
            }
            Object::PidFd { pid } => process(*pid),
            Object::DeadPidFd { .. } => Ok(()),
            Object::Socket(id) => in_table(id.index(), &manifest.sockets, "socket"),
            Object::InetSocket(id) => in_table(id.index(), &manifest.inet_sockets, "IP socket"),
            Object::NetlinkSocket(socket) => {
                self.network(socket.network)?;
                within([SOCK_DGRAM, SOCK_RAW].contains(&socket.kind), "type")?;
                within((0..256).contains(&socket.protocol), "protocol")?;
                within(socket.groups.iter().all(|group| (1..=65536).contains(group)), "group")?;
                options(&socket.options)
            }
            Object::IoUring(id) => in_table(id.index(), &manifest.io_urings, "io_uring instance"),
            Object::PacketSocket(id) => in_table(id.index(), &manifest.packet_sockets, "packet socket"),
            Object::Fanotify(group) => group.marks.iter().try_for_each(|mark| path(&mark.path)),
            Object::TerminalSlave(id) | Object::TerminalMaster(id) => {
                in_table(id.index(), &manifest.terminals, "terminal")
            }
            Object::MessageQueue(id) => in_table(id.index(), &manifest.ipc.posix_queues, "message queue"),
            Object::Inherited { stream } => within((0..=2).contains(stream), "standard stream"),
        }
    }

    /// Checks that no epoll set contains itself, directly or through others: the kernel refuses that with ELOOP, and
    /// whoever follows the registrations must come to an end. All targets are in range by now.
    pub(super) fn epoll_nesting(&self) -> Result<()> {
        let files = &self.manifest.files;
        let sets = |id: usize| match &files[id].object {
            Object::Epoll { targets } => targets.as_slice(),
            _ => &[],
        };
        let mut uses = vec![0_usize; files.len()];
        let all = 0..files.len();
        for target in all.clone().flat_map(sets) {
            uses[target.file.index()] += 1;
        }
        // Takes away sets that nothing left contains, until only cycles are left.
        let mut free: Vec<usize> = all.filter(|id| uses[*id] == 0).collect();
        while let Some(id) = free.pop() {
            for target in sets(id) {
                let target = target.file.index();
                uses[target] -= 1;
                if uses[target] == 0 {
                    free.push(target);
                }
            }
        }
        match uses.iter().position(|uses| *uses > 0) {
            Some(id) => Err(wrong(format!("open file {id}: epoll sets contain each other"))),
            None => Ok(()),
        }
    }

    pub(super) fn file_policies(&self) -> Result<()> {
        let mut known = HashSet::new();
        for (index, policy) in self.manifest.file_policies.iter().enumerate() {
            self.file_policy(policy, &mut known)
                .map_err(|what| wrong(format!("file policy {index}: {what}")))?;
        }
        Ok(())
    }

    pub(super) fn file_policy<'a>(&self, policy: &'a FilePolicy, known: &mut HashSet<&'a ByteString>) -> Verdict {
        path(&policy.path)?;
        within(policy.path.0.starts_with(b"/") && known.insert(&policy.path), "path")?;
        within(policy.size <= MAX_FILE, "size")?;
        let length = if policy.content == FileContent::Check {
            HASH_LENGTH
        } else {
            0
        };
        within(policy.hash.0.len() == length, "hash")?;
        within(
            policy.saved.is_some() == (policy.content == FileContent::BackupRestore),
            "contents",
        )?;
        if let Some(id) = policy.saved {
            in_table(id.index(), &self.manifest.saved_files, "saved file")?;
            let kind = &self.manifest.saved_files[id.index()].kind;
            within(
                matches!(kind, SavedFileKind::Backup { path } if *path == policy.path),
                "saved file",
            )?;
        }
        Ok(())
    }
}
