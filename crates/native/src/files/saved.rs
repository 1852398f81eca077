//! Files whose contents the image carries: deleted files, memfds, shared anonymous memory.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cpr_image::model::{ByteString, Extent, Manifest, SavedFile, SavedFileId, SavedFileKind};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::policies::Backups;
use crate::sink::{PAGE_SIZE, PageSink, PageSource};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// Owner of a file that only its mappings are known of.
pub(super) const UNKNOWN: u32 = u32::MAX;
/// Name of the memfd that stands in for shared anonymous memory after a restart.
pub const SHARED_ANONYMOUS_NAME: &[u8] = b"shared-anonymous";

/// Reads the memory of a process: process, address, where to.
pub type ReadMemory<'a> = dyn FnMut(i32, u64, &mut [u8]) -> Result<()> + 'a;

/// Files to be saved with their contents, by device and inode number.
#[derive(Debug, Default)]
pub struct SavedFiles {
    entries: Vec<Entry>,
    by_inode: HashMap<(u64, u64), SavedFileId>,
    present: Present,
}

/// Where there are pages of mappings, by process and address: ranges of bytes from the start of the mapping.
type Present = HashMap<(i32, u64), Vec<Range<u64>>>;

#[derive(Debug)]
struct Entry {
    kind: SavedFileKind,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_ns: Option<i64>,
    label: String,
    source: Source,
    /// Size of its pages where they are explicit huge pages, else 0.
    huge_pages: u64,
}

#[derive(Debug)]
enum Source {
    /// A descriptor of our own; whether its offset is ours to move.
    File(OwnedFd, bool),
    /// Mappings: process, address, offset in the file, length.
    Memory(Vec<(i32, u64, u64, u64)>),
}

fn io(error: Errno) -> std::io::Error {
    error.into()
}

fn mtime_ns(stat: &Stat) -> i64 {
    stat.st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add(stat.st_mtime_nsec as i64)
}

/// Opens what `handle` is open on once more, for reading; where that is not allowed, gives a copy of a readable
/// `handle` (and false: its offset is the job's).
fn open_readable(handle: BorrowedFd<'_>) -> Result<(OwnedFd, bool)> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok((fd, true)),
        Err(error) => {
            let flags = rustix::fs::fcntl_getfl(handle)
                .map_err(io)
                .context(|| "get the flags")?;
            let plain = !flags.intersects(OFlags::DIRECT | OFlags::PATH | OFlags::WRONLY);
            if !plain {
                return Err(io(error)).context(|| "open it for reading");
            }
            handle
                .try_clone_to_owned()
                .context(|| "copy its descriptor")
                .map(|fd| (fd, false))
        }
    }
}

impl SavedFiles {
    /// The entry for the file `handle` is open on, made if it is new. `label` names it in messages.
    ///
    /// # Errors
    /// The file cannot be opened for reading.
    pub fn intern_descriptor(
        &mut self,
        stat: &Stat,
        handle: BorrowedFd<'_>,
        kind: SavedFileKind,
        label: &str,
    ) -> Result<SavedFileId> {
        let key = (stat.st_dev, stat.st_ino);
        let known = self.by_inode.get(&key).copied();
        if let Some(id) = known
            && matches!(
                self.entries.get(id.index()),
                Some(Entry {
                    source: Source::File(..),
                    ..
                })
            )
        {
            return Ok(id);
        }
        let (fd, ours) = open_readable(handle).context(|| format!("{label}: save the contents"))?;
        let entry = Entry {
            kind,
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ns: Some(mtime_ns(stat)),
            label: label.to_owned(),
            source: Source::File(fd, ours),
            huge_pages: huge_pages(handle),
        };
        match known.and_then(|id| self.entries.get_mut(id.index()).map(|slot| (id, slot))) {
            Some((id, slot)) => {
                *slot = entry;
                Ok(id)
            }
            None => Ok(self.push(key, entry)),
        }
    }

    /// The entry for a deleted directory or symbolic link, made if it is new.
    pub fn intern_empty(&mut self, stat: &Stat, kind: SavedFileKind) -> SavedFileId {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(id) = self.by_inode.get(&key) {
            return *id;
        }
        let entry = Entry {
            kind,
            size: 0,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ns: Some(mtime_ns(stat)),
            label: String::new(),
            source: Source::Memory(Vec::new()),
            huge_pages: 0,
        };
        self.push(key, entry)
    }

    /// The entry for the file that process `pid` has mapped from `start` to `end` with `offset` in the file; `dev` is
    /// as makedev(3) makes it. Contents come from a descriptor where there is one, else from all mappings given here.
    #[allow(clippy::too_many_arguments)]
    pub fn intern_mapping(
        &mut self,
        dev: u64,
        ino: u64,
        kind: SavedFileKind,
        pid: i32,
        start: u64,
        end: u64,
        offset: u64,
    ) -> SavedFileId {
        let key = (dev, ino);
        let length = end.saturating_sub(start);
        if let Some(id) = self.by_inode.get(&key).copied() {
            if let Some(entry) = self.entries.get_mut(id.index())
                && let Source::Memory(ranges) = &mut entry.source
            {
                ranges.push((pid, start, offset, length));
                entry.size = entry.size.max(offset.saturating_add(length));
            }
            return id;
        }
        let label = format!("process {pid}, mapping at {start:#x}");
        // Whoever may open it directly (it takes CAP_CHECKPOINT_RESTORE) sees holes, and what is not mapped.
        let path = format!("/proc/{}/map_files/{start:x}-{end:x}", cpr_kernel::proc::acting(pid));
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
        let mut kind = kind;
        if matches!(&kind, SavedFileKind::Memfd { name, .. } if name.0 == SHARED_ANONYMOUS_NAME) {
            kind = SavedFileKind::SharedAnonymous; // as an earlier restart made it
        }
        let entry = match opened.and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat))) {
            Ok((fd, stat)) => Entry {
                kind: with_seals(kind, fd.as_fd()),
                size: stat.st_size as u64,
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime_ns: Some(mtime_ns(&stat)),
                label,
                huge_pages: huge_pages(fd.as_fd()),
                source: Source::File(fd, true),
            },
            Err(_) => Entry {
                kind,
                size: offset.saturating_add(length),
                mode: 0o600,
                uid: UNKNOWN,
                gid: UNKNOWN,
                mtime_ns: None,
                label,
                source: Source::Memory(vec![(pid, start, offset, length)]),
                huge_pages: 0,
            },
        };
        self.push(key, entry)
    }

    /// Notes that a file consists of explicit huge pages of so many bytes.
    pub fn note_huge_pages(&mut self, id: SavedFileId, size: u64) {
        if let Some(entry) = self.entries.get_mut(id.index()) {
            entry.huge_pages = size;
        }
    }

    /// An entry of its own for the file at `path`, which `handle` is open on: it is put back in place at restart.
    ///
    /// # Errors
    /// The file cannot be opened for reading.
    pub fn add_backup(&mut self, stat: &Stat, handle: BorrowedFd<'_>, path: ByteString) -> Result<SavedFileId> {
        let label = path.to_string();
        let (fd, ours) = open_readable(handle).context(|| format!("{label}: save the contents"))?;
        let id = SavedFileId(self.entries.len() as u32);
        self.entries.push(Entry {
            kind: SavedFileKind::Backup { path },
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ns: Some(mtime_ns(stat)),
            label,
            source: Source::File(fd, ours),
            huge_pages: 0,
        });
        Ok(id)
    }

    /// The entry for a program that `file` is open on; `name` is shown where its path was.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn intern_program(&mut self, file: OwnedFd, name: &[u8]) -> Result<SavedFileId> {
        let label = format!("program {}", String::from_utf8_lossy(name));
        let stat = rustix::fs::fstat(&file)
            .map_err(io)
            .context(|| format!("look at {label}"))?;
        // Apart from mappings and descriptors of the same file: nobody may have it open for writing at restart.
        let key = (stat.st_dev, !stat.st_ino);
        if let Some(id) = self.by_inode.get(&key) {
            return Ok(*id);
        }
        let entry = Entry {
            kind: SavedFileKind::Memfd {
                name: ByteString(name.to_vec()),
                seals: 0,
            },
            size: stat.st_size as u64,
            mode: 0o755,
            uid: UNKNOWN,
            gid: UNKNOWN,
            mtime_ns: None,
            label,
            source: Source::File(file, true),
            huge_pages: 0,
        };
        Ok(self.push(key, entry))
    }

    fn push(&mut self, key: (u64, u64), entry: Entry) -> SavedFileId {
        let id = SavedFileId(self.entries.len() as u32);
        self.entries.push(entry);
        self.by_inode.insert(key, id);
        id
    }

    /// The entry for a file that a descriptor of the job is open on.
    pub fn known(&self, dev: u64, ino: u64) -> Option<SavedFileId> {
        let id = self.by_inode.get(&(dev, ino)).copied()?;
        let entry = self.entries.get(id.index())?;
        matches!(entry.source, Source::File(..)).then_some(id)
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is to be read through mappings: process, address and length of each.
    pub fn read_through_mappings(&self) -> Vec<(i32, u64, u64)> {
        // Of explicit huge pages nothing tells which there are.
        let mappings = self.entries.iter().filter_map(|entry| match &entry.source {
            Source::Memory(ranges) if entry.huge_pages == 0 => Some(ranges),
            _ => None,
        });
        let all = mappings.flatten();
        all.map(|(pid, address, _, length)| (*pid, *address, *length)).collect()
    }

    /// Notes where there are pages of one of them, as ranges of bytes from its start; all else are holes.
    pub fn note_present(&mut self, pid: i32, address: u64, pages: Vec<Range<u64>>) {
        self.present.insert((pid, address), pages);
    }

    /// Writes the contents of all files. Holes and pages of zeros take no space.
    ///
    /// # Errors
    /// A file or memory cannot be read, or `sink` fails.
    pub fn write_contents(
        &mut self,
        sink: &mut dyn PageSink,
        read_memory: &mut ReadMemory<'_>,
    ) -> Result<Vec<SavedFile>> {
        self.entries
            .iter()
            .map(|entry| {
                let extents = match &entry.source {
                    Source::File(file, ours) => copy_file(file.as_fd(), *ours, entry.size, sink),
                    Source::Memory(ranges) => copy_memory(ranges, &self.present, sink, read_memory),
                }
                .context(|| format!("{}: save the contents", entry.label))?;
                Ok(SavedFile {
                    kind: entry.kind.clone(),
                    size: entry.size,
                    mode: entry.mode,
                    uid: entry.uid,
                    gid: entry.gid,
                    extents,
                    mtime_ns: entry.mtime_ns,
                    huge_pages: entry.huge_pages,
                })
            })
            .collect()
    }
}

/// The size of the explicit huge pages that a file consists of, 0 for other files.
fn huge_pages(file: BorrowedFd<'_>) -> u64 {
    match rustix::fs::fstatfs(file) {
        Ok(found) if found.f_type as u64 == super::kind::HUGETLBFS_MAGIC => found.f_bsize as u64,
        _ => 0,
    }
}

/// A memfd's kind with the seals it has.
fn with_seals(mut kind: SavedFileKind, fd: BorrowedFd<'_>) -> SavedFileKind {
    if let (SavedFileKind::Memfd { seals, .. }, Ok(found)) = (&mut kind, rustix::fs::fcntl_get_seals(fd)) {
        *seals = found.bits();
    }
    kind
}

/// Appends the pages of `data` (padded with zeros to whole pages) that are not zero; `start` is where they belong.
fn append(data: &mut Vec<u8>, start: u64, extents: &mut Vec<Extent>, sink: &mut dyn PageSink) -> Result<()> {
    data.resize(data.len().next_multiple_of(PAGE_SIZE), 0);
    let is_zero = |page: usize| data[page * PAGE_SIZE..(page + 1) * PAGE_SIZE].iter().all(|&b| b == 0);
    let pages = data.len() / PAGE_SIZE;
    let mut page = 0;
    while page < pages {
        if is_zero(page) {
            page += 1;
            continue;
        }
        let first = page;
        while page < pages && !is_zero(page) {
            page += 1;
        }
        let mut start = start + (first * PAGE_SIZE) as u64;
        sink.place(&data[first * PAGE_SIZE..page * PAGE_SIZE], &mut |length, offset| {
            let length = length as u64;
            match extents.last_mut() {
                Some(last) if last.start + last.length == start && last.offset + last.length == offset => {
                    last.length += length;
                }
                _ => extents.push(Extent { start, length, offset }),
            }
            start += length;
        })?;
    }
    Ok(())
}

/// Appends the first `size` bytes of a file, without holes and pages of zeros; `ours` tells that its offset may be
/// moved.
///
/// # Errors
/// The file cannot be read, or `sink` fails.
pub fn copy_file(file: BorrowedFd<'_>, ours: bool, size: u64, sink: &mut dyn PageSink) -> Result<Vec<Extent>> {
    let page = PAGE_SIZE as u64;
    let mut extents = Vec::new();
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let mut end = size;
        if ours {
            match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => at = data / page * page,
                Err(Errno::NXIO) => break, // nothing but a hole up to the end
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => {}
                Err(error) => return Err(io(error)).context(|| "look for data"),
            }
            if let Ok(hole) = rustix::fs::seek(file, SeekFrom::Hole(at))
                && hole > at
            {
                end = hole.next_multiple_of(page).min(size);
            }
        }
        while at < end {
            let wanted = (end - at).min(CHUNK as u64) as usize;
            buffer.resize(wanted, 0);
            let mut filled = 0;
            while filled < wanted {
                let n =
                    rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer[filled..], at + filled as u64))
                        .map_err(io)
                        .context(|| format!("read {wanted} bytes at {at}"))?;
                if n == 0 {
                    break; // shorter than it was: the rest reads as zeros
                }
                filled += n;
            }
            buffer.truncate(filled);
            append(&mut buffer, at, &mut extents, sink)?;
            at += wanted as u64;
        }
    }
    Ok(extents)
}

fn copy_memory(
    ranges: &[(i32, u64, u64, u64)],
    present: &Present,
    sink: &mut dyn PageSink,
    read_memory: &mut ReadMemory<'_>,
) -> Result<Vec<Extent>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| range.2);
    let mut extents = Vec::new();
    let mut buffer = Vec::new();
    let mut done = 0; // everything below this offset has been saved
    for (pid, address, offset, length) in ranges {
        let whole = 0..length;
        let known = present.get(&(pid, address));
        let parts = known.map_or(std::slice::from_ref(&whole), Vec::as_slice);
        for part in parts {
            let end = offset + part.end.min(length);
            let mut at = (offset + part.start).max(done);
            while at < end {
                let wanted = (end - at).min(CHUNK as u64);
                buffer.clear();
                buffer.resize(wanted as usize, 0);
                read_memory(pid, address + (at - offset), &mut buffer)?;
                append(&mut buffer, at, &mut extents, sink)?;
                at += wanted;
            }
        }
        done = done.max(offset + length);
    }
    Ok(extents)
}

/// Makes all saved files of the image with their contents; by [`SavedFileId`]. All are open for reading and writing.
/// `backups` keeps those that are to take the place of others.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when the directory a deleted file was in is missing.
pub fn create_saved(manifest: &Manifest, source: &dyn PageSource, backups: &mut Backups) -> Result<Vec<OwnedFd>> {
    manifest
        .saved_files
        .iter()
        .map(|file| create(file, source, backups).context(|| format!("make {} again", describe(&file.kind))))
        .collect()
}

fn describe(kind: &SavedFileKind) -> String {
    match kind {
        SavedFileKind::Deleted { path } => format!("deleted file {path}"),
        SavedFileKind::DeletedDirectory { path } => format!("deleted directory {path}"),
        SavedFileKind::DeletedLink { path, .. } => format!("deleted link {path}"),
        SavedFileKind::Memfd { name, .. } => format!("memfd {name}"),
        SavedFileKind::SharedMemory { path } => format!("shared memory {path}"),
        SavedFileKind::SharedAnonymous => "shared anonymous memory".to_owned(),
        SavedFileKind::Backup { path } => path.to_string(),
    }
}

fn create(file: &SavedFile, source: &dyn PageSource, backups: &mut Backups) -> Result<OwnedFd> {
    let huge = match file.huge_pages {
        0 => MemfdFlags::empty(),
        // The size is there as in MAP_HUGE_2MB.
        size => MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(size.trailing_zeros() << libc::MAP_HUGE_SHIFT),
    };
    let memfd = |name: &[u8], flags: MemfdFlags| {
        rustix::fs::memfd_create(name, flags | huge | MemfdFlags::CLOEXEC)
            .map_err(io)
            .context(|| "make a memfd")
    };
    let fd = match &file.kind {
        SavedFileKind::Deleted { path } => create_deleted(path.as_path())?,
        // What there was is filled when nothing can fail any more; what was missing has been made.
        SavedFileKind::SharedMemory { path } => return super::shared_memory::open(path),
        SavedFileKind::DeletedDirectory { path } => {
            let fd = create_directory(path.as_path())?;
            set_owner(fd.as_fd(), file)?;
            return Ok(fd);
        }
        SavedFileKind::DeletedLink { path, target } => return create_link(path.as_path(), target),
        SavedFileKind::Memfd { name, seals } if *seals == SealFlags::SEAL.bits() => {
            memfd(&name.0, MemfdFlags::empty())?
        }
        SavedFileKind::Memfd { name, .. } => memfd(&name.0, MemfdFlags::ALLOW_SEALING)?,
        SavedFileKind::SharedAnonymous => memfd(SHARED_ANONYMOUS_NAME, MemfdFlags::empty())?,
        SavedFileKind::Backup { path } => backups.create(path)?,
    };
    rustix::fs::ftruncate(&fd, file.size)
        .map_err(io)
        .context(|| format!("make it {} bytes long", file.size))?;
    fill(fd.as_fd(), file, source)?;
    set_owner(fd.as_fd(), file)?;
    if let (Some(mtime_ns), false) = (file.mtime_ns, file.kind == SavedFileKind::SharedAnonymous) {
        set_mtime(fd.as_fd(), mtime_ns)?;
    }
    if let SavedFileKind::Memfd { seals, .. } = &file.kind
        && seals & SealFlags::FUTURE_WRITE.bits() == 0
    {
        seal(fd.as_fd(), *seals)?;
    }
    Ok(fd)
}

/// Writes the saved ranges of a file.
pub(super) fn fill(fd: BorrowedFd<'_>, file: &SavedFile, source: &dyn PageSource) -> Result<()> {
    match file.huge_pages {
        0 => fill_extents(fd, file.size, &file.extents, source),
        page => fill_with(file.size, &file.extents, source, &mut |data, at| {
            cpr_kernel::huge_file::write(fd, at, data, page)
                .context(|| format!("write {} bytes at {at} in huge pages", data.len()))
                .map_err(|error| error.with_hint("see vm.nr_hugepages"))
        }),
    }
}

/// Writes saved ranges of a file that is `size` bytes long.
///
/// # Errors
/// It cannot be written, or the image not be read.
pub fn fill_extents(fd: BorrowedFd<'_>, size: u64, extents: &[Extent], source: &dyn PageSource) -> Result<()> {
    fill_with(size, extents, source, &mut |data, at| write_at(fd, data, at))
}

/// Has saved ranges of something that is `size` bytes long written: bytes, and where they belong.
fn fill_with(
    size: u64,
    extents: &[Extent],
    source: &dyn PageSource,
    write: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; (CHUNK as u64).min(size).next_multiple_of(PAGE_SIZE as u64) as usize];
    for extent in extents {
        // The last page of an extent can go beyond the end of the file.
        let end = (extent.start.saturating_add(extent.length)).min(size);
        let mut at = extent.start;
        while at < end {
            let length = (end - at).min(CHUNK as u64) as usize;
            let piece = &mut buffer[..length];
            source.read(extent.offset + (at - extent.start), piece)?;
            write(piece, at)?;
            at += length as u64;
        }
    }
    Ok(())
}

fn write_at(fd: BorrowedFd<'_>, data: &[u8], at: u64) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        done += rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, &data[done..], at + done as u64))
            .map_err(io)
            .context(|| format!("write {} bytes at {at}", data.len()))?;
    }
    Ok(())
}

pub(super) fn set_owner(fd: BorrowedFd<'_>, file: &SavedFile) -> Result<()> {
    if file.kind == SavedFileKind::SharedAnonymous {
        return Ok(());
    }
    let stat = rustix::fs::fstat(fd).map_err(io).context(|| "look at it")?;
    if file.uid != UNKNOWN && (stat.st_uid, stat.st_gid) != (file.uid, file.gid) {
        let (user, group) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
        rustix::fs::fchown(fd, Some(user), Some(group))
            .map_err(io)
            .context(|| format!("give it to user {} and group {}", file.uid, file.gid))?;
    }
    if stat.st_mode & 0o7777 != file.mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(file.mode & 0o7777))
            .map_err(io)
            .context(|| format!("set its mode to {:o}", file.mode))?;
    }
    Ok(())
}

fn seal(fd: BorrowedFd<'_>, seals: u32) -> Result<()> {
    let now = rustix::fs::fcntl_get_seals(fd)
        .map_err(io)
        .context(|| "get its seals")?;
    let wanted = SealFlags::from_bits_retain(seals);
    if now.contains(wanted) {
        return Ok(());
    }
    rustix::fs::fcntl_add_seals(fd, wanted)
        .map_err(io)
        .context(|| format!("set its seals to {seals:#x}"))
}

/// Sets the seals that must come after all writable mappings exist (F_SEAL_FUTURE_WRITE). `saved` is what
/// [`create_saved`] gave.
///
/// # Errors
/// The kernel refuses a seal.
pub fn seal_last(manifest: &Manifest, saved: &[OwnedFd]) -> Result<()> {
    for (file, fd) in manifest.saved_files.iter().zip(saved) {
        if let SavedFileKind::Memfd { seals, .. } = &file.kind {
            seal(fd.as_fd(), *seals).context(|| format!("make {} again", describe(&file.kind)))?;
        }
    }
    Ok(())
}

fn set_mtime(fd: BorrowedFd<'_>, mtime_ns: i64) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        },
    };
    rustix::fs::futimens(fd, &times)
        .map_err(io)
        .context(|| "set the time of its last modification")
}

/// Directories made for a moment because something deleted was in them; dropping it removes them again.
#[derive(Default)]
struct Scaffold(Vec<PathBuf>);

impl Drop for Scaffold {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            // Somebody may have put something in it meanwhile; then it stays.
            let _ = rustix::fs::rmdir(directory);
        }
    }
}

/// Makes the directories above a deleted object that are missing: they have been deleted, too.
fn scaffold(parent: &Path) -> Result<Scaffold> {
    let mut missing = Vec::new();
    let mut at = Some(parent);
    while let Some(directory) = at.filter(|directory| !directory.exists()) {
        missing.push(directory.to_owned());
        at = directory.parent();
    }
    let mut made = Scaffold::default();
    for directory in missing.into_iter().rev() {
        match rustix::fs::mkdir(&directory, Mode::RWXU) {
            Ok(()) => made.0.push(directory),
            Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(io(error))
                    .context(|| format!("make directory {} for a moment", directory.display()))
                    .map_err(|e| e.with_kind(ErrorKind::Incompatible));
            }
        }
    }
    Ok(made)
}

/// The directory an object at `path` was in.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| p.is_absolute()).unwrap_or(Path::new("/"))
}

/// Makes something under a free name in `parent`, its former one first.
fn under_free_name<T>(path: &Path, make: impl Fn(&Path) -> std::result::Result<T, Errno>) -> Result<(PathBuf, T)> {
    let parent = parent_of(path);
    let others = (0..100u32).map(|attempt| parent.join(format!(".cpr-{}-{attempt}", std::process::id())));
    for name in std::iter::once(path.to_owned()).chain(others) {
        match make(&name) {
            Ok(made) => return Ok((name, made)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(io(error)).context(|| format!("make {}", name.display())),
        }
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!("{}: no free name", parent.display()),
    ))
}

/// An empty directory without name.
fn create_directory(path: &Path) -> Result<OwnedFd> {
    let _scaffold = scaffold(parent_of(path))?;
    let (name, ()) = under_free_name(path, |name| rustix::fs::mkdir(name, Mode::RWXU))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&name, flags, Mode::empty());
    rustix::fs::rmdir(&name)
        .map_err(io)
        .context(|| format!("remove {}", name.display()))?;
    opened.map_err(io).context(|| format!("open {}", name.display()))
}

/// A symbolic link without name, open with O_PATH.
fn create_link(path: &Path, target: &ByteString) -> Result<OwnedFd> {
    let _scaffold = scaffold(parent_of(path))?;
    let (name, ()) = under_free_name(path, |name| rustix::fs::symlink(target.as_path(), name))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&name, flags, Mode::empty());
    rustix::fs::unlink(&name)
        .map_err(io)
        .context(|| format!("remove {}", name.display()))?;
    opened.map_err(io).context(|| format!("open {}", name.display()))
}

/// A file without name in the directory `path` was in, so that it is on the same file system.
fn create_deleted(path: &Path) -> Result<OwnedFd> {
    let parent = parent_of(path);
    let _scaffold = scaffold(parent)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(parent, flags | OFlags::TMPFILE, mode) {
        Ok(fd) => return Ok(fd),
        // The owner may not make files there (any more): the file system may be another, the contents are the same.
        Err(Errno::ACCESS | Errno::ROFS) => {
            return rustix::fs::open(std::env::temp_dir(), flags | OFlags::TMPFILE, mode)
                .map_err(io)
                .context(|| format!("make a file in {}", std::env::temp_dir().display()));
        }
        // Not on this file system, or not on this kernel.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(error) => return Err(io(error)).context(|| format!("make a file in {}", parent.display())),
    }
    let (name, fd) = under_free_name(path, |name| {
        rustix::fs::open(name, flags | OFlags::CREATE | OFlags::EXCL, mode)
    })?;
    rustix::fs::unlink(&name)
        .map_err(io)
        .context(|| format!("remove {}", name.display()))?;
    Ok(fd)
}

/// A new description of a saved file, with these flags.
///
/// # Errors
/// It cannot be opened that way.
pub fn open_saved(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let gone = OFlags::TMPFILE | OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC;
    let flags = (OFlags::from_bits_retain(flags as u32) - gone) | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::ACCESS) => {
            // The mode was taken away after it was opened.
            let stat = rustix::fs::fstat(fd).map_err(io).context(|| "look at it")?;
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            let change = |mode| {
                rustix::fs::fchmod(fd, mode)
                    .map_err(io)
                    .context(|| "change its mode for a while")
            };
            change(mode | Mode::RUSR | Mode::WUSR)?;
            let opened = rustix::fs::open(&path, flags, Mode::empty());
            change(mode)?;
            opened.map_err(io).context(|| "open it")
        }
        Err(error) => Err(io(error)).context(|| "open it"),
    }
}
