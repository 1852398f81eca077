//! What is mapped in a stopped process, and its pages.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use cpr_image::model::{
    AddressSpace, Extent, IoUring, MappedFile, MappedFileId, Mapping, MappingKind, MemoryLayout, PacketSocket,
    SegmentId,
};
use cpr_image::model::{ByteString, IpcNamespaceId, MountNamespaceId, SavedFileId, SavedFileKind};
use cpr_kernel::memory::{Memory, PAGE_GUARD, PAGE_PRESENT, PageRegion, Pagemap};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir, VmFlags};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::files::io_uring::{self, SaveState as RingState};
use crate::files::packet::{SaveState as PacketState, mapped_size};
use crate::files::{PolicyState, SavedFiles, find_shared_memory};
use crate::freeze::{Process, Space};
use crate::libraries::{Libraries, overlay};
use crate::live::{Copied, Place};
use crate::mapped;
use crate::scans::{Found, Scans};
use crate::sink::{PAGE_SIZE, PIECE, PageSink, Part, in_parts};
use crate::views::{Views, deleted_kind};

/// So many bytes are worth a look whether they can be read in the faster way.
const WORTH_ASKING: usize = 64 << 10;

/// VmFlags of /proc/PID/smaps that a restart sets again.
const KEPT_FLAGS: [&[u8; 2]; 14] = [
    b"gd", b"lo", b"lf", b"hg", b"nh", b"dc", b"dd", b"wf", b"mg", b"nr", b"sl", b"sr", b"rr", b"dp",
];

/// Mapping flags by address, read before the job is stopped because reading them is slow.
#[derive(Debug, Default)]
pub struct FlagTable(HashMap<(i32, u64, u64), VmFlags>);

impl FlagTable {
    /// Reads the flags of all mappings of process `pid`.
    pub fn add(&mut self, proc: &ProcDir) {
        self.note(proc.pid(), proc.smaps_flags().unwrap_or_default());
    }

    /// Notes the flags of mappings of process `pid`.
    pub fn note(&mut self, pid: i32, mappings: Vec<VmFlags>) {
        let mappings = mappings.into_iter();
        self.0.extend(mappings.map(|map| ((pid, map.start, map.end), map)));
    }

    /// Whether those of this mapping of process `pid` are known.
    pub fn has(&self, pid: i32, map: &MapEntry) -> bool {
        self.0.contains_key(&(pid, map.start, map.end))
    }

    fn get(&self, pid: i32, map: &MapEntry) -> &[[u8; 2]] {
        let found = self.0.get(&(pid, map.start, map.end));
        found.map_or(&[], |found| found.flags.as_slice())
    }

    /// The memory protection key that a program has given a mapping; memory that can be executed only has one of the
    /// kernel's.
    fn key(&self, pid: i32, map: &MapEntry) -> Option<u32> {
        let found = self.0.get(&(pid, map.start, map.end))?;
        let of_kernel = map.exec && !map.read && !map.write;
        (found.key != 0 && !of_kernel).then_some(found.key)
    }
}

/// Files mapped anywhere in the job.
#[derive(Debug, Default)]
pub struct MappedFiles {
    /// By [`MappedFileId`].
    pub files: Vec<MappedFile>,
    /// System V segments by their IPC namespaces and the inode numbers that mappings have.
    segments: HashMap<(Option<IpcNamespaceId>, u64), SegmentId>,
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
    fn intern(&mut self, path: &[u8], view: View<'_>, writable: bool, unchangeable: bool) -> Result<MappedFileId> {
        let View(views, namespace) = view;
        let key = (namespace, path.to_vec(), writable, unchangeable);
        if let Some(id) = self.by_key.get(&key) {
            return Ok(*id);
        }
        let fd: OwnedFd = views
            .open(namespace, path, OFlags::PATH)
            .context(|| format!("open mapped file {}", String::from_utf8_lossy(path)))?;
        let mut file = mapped::describe(path, std::os::fd::AsFd::as_fd(&fd), writable, unchangeable)?;
        file.mount_namespace = namespace;
        let id = MappedFileId(self.files.len() as u32);
        self.files.push(file);
        self.by_key.insert(key, id);
        Ok(id)
    }
}

/// Where a path is looked up.
#[derive(Debug, Clone, Copy)]
struct View<'a>(&'a Views, Option<MountNamespaceId>);

impl View<'_> {
    /// Whether another file has the mapped file's name now.
    fn replaced(self, map: &MapEntry) -> bool {
        // The device number is not compared: some file systems show another one in maps than in stat(2).
        self.0
            .stat(self.1, &map.path)
            .map_or(true, |stat| stat.st_ino != map.inode)
    }

    fn is_exact(self, dev: u64, ino: u64, path: &[u8]) -> bool {
        let found = self.0.stat(self.1, path);
        found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (dev, ino))
    }

    /// Another name of a mapped file.
    fn other_name(self, map: &MapEntry) -> Option<Vec<u8>> {
        match self.1 {
            None => crate::files::other_name(&map.path, map.inode),
            Some(view) => self.0.other_name(view, &map.path, map.inode),
        }
    }
}

/// Mappings that cannot be saved, as far as a look at a running process tells.
pub fn blockers(proc: &ProcDir) -> Blockers {
    let maps = proc.maps().unwrap_or_default();
    let refused = maps
        .iter()
        .filter_map(|map| refuse(map).map(|reason| (label(map), reason)));
    let rings = maps.iter().filter(|map| io_uring::is_mapping(map));
    Blockers {
        mappings: refused.collect(),
        rings: rings.map(|map| (label(map), map.inode)).collect(),
    }
}

/// What a look at the mappings of a running process finds.
#[derive(Debug, Default)]
pub struct Blockers {
    /// Mappings that cannot be saved, and why.
    pub mappings: Vec<(String, String)>,
    /// Mappings of io_uring instances with the inode numbers of these, which a descriptor has to be open on.
    pub rings: Vec<(String, u64)>,
}

fn label(map: &MapEntry) -> String {
    let name = if map.raw_path.is_empty() {
        "anonymous".to_owned()
    } else {
        String::from_utf8_lossy(&map.raw_path).into_owned()
    };
    format!("mapping at {:#x} ({name})", map.start)
}

fn refuse(map: &MapEntry) -> Option<String> {
    let reason = match map.kind() {
        MapKind::SecretMemory => "secret memory cannot be read",
        MapKind::AnonInode(_) if io_uring::is_mapping(map) => return None,
        MapKind::AnonInode(_) | MapKind::Pseudo(_) => "this kind of kernel object is not supported",
        MapKind::Uprobes => "the process is being probed",
        MapKind::Special(_) => "this kind of special mapping is not known",
        MapKind::File if map.path.starts_with(b"/dev/") && is_device(map) => "mapped devices are not supported",
        _ => return None,
    };
    Some(reason.to_owned())
}

fn is_device(map: &MapEntry) -> bool {
    if map.path == b"/dev/zero" {
        return false;
    }
    let path = ByteString(map.path.clone());
    rustix::fs::stat(path.as_path()).is_ok_and(|stat| {
        matches!(
            rustix::fs::FileType::from_raw_mode(stat.st_mode),
            rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice
        )
    })
}

/// A mapping together with what has to be copied of it.
struct Plan {
    mapping: Mapping,
    pages: Pages,
    /// The pages of the file below the process's own are in the image.
    library: bool,
}

/// What saving the memory of all processes has in common.
pub struct Shared<'a> {
    /// Flags of mappings.
    pub flags: &'a mut FlagTable,
    /// Files that are mapped.
    pub files: &'a mut MappedFiles,
    /// Mount namespaces that paths can be of.
    pub views: &'a Views,
    /// That of the process whose memory is saved, where paths lead elsewhere there than in the job's own.
    pub view: Option<MountNamespaceId>,
    /// Files whose contents are saved.
    pub saved: &'a mut SavedFiles,
    /// Packet sockets, which are mapped for their rings.
    pub packet_sockets: (&'a PacketState, &'a [PacketSocket]),
    /// io_uring instances, which are mapped for their rings.
    pub io_urings: (&'a RingState, &'a [IoUring]),
    /// Files with a policy of their own.
    pub policies: &'a mut PolicyState,
    /// Programs and libraries that are saved.
    pub libraries: &'a mut Libraries,
    /// The programs that processes run are saved.
    pub keep_executables: bool,
}

impl<'a> Shared<'a> {
    /// Where the path of something mapped is looked up: in the job's own mount namespace if it leads there, too.
    fn place(&self, dev: u64, ino: u64, path: &[u8], deleted: bool) -> View<'a> {
        let (home, own) = (View(self.views, None), View(self.views, self.view));
        let is_home = || {
            let exact = home.is_exact(dev, ino, path);
            exact || !own.is_exact(dev, ino, path) && self.views.stat(None, path).is_ok_and(|stat| stat.st_ino == ino)
        };
        match self.view.is_some() && (deleted || !is_home()) {
            true => own,
            false => home,
        }
    }
}

enum Pages {
    /// Nothing: it is in a file or belongs to the kernel.
    None,
    /// Pages that are the process's own (not a file's).
    Own,
    /// All readable pages: the file they came from is gone.
    All,
}

/// Pages of a mapping that are read when the job runs again, from a copy of its memory.
#[derive(Debug)]
pub struct Later {
    /// Index of the mapping in its address space.
    mapping: usize,
    runs: Vec<(u64, u64)>,
    skip_zeros: bool,
}

/// Reads what was left for later.
///
/// # Errors
/// The memory cannot be read, or the image not be written.
pub fn save_later(later: Vec<Later>, memory: &Memory, space: &mut AddressSpace, sink: &mut dyn PageSink) -> Result<()> {
    let mut buffer = Vec::new();
    for Later {
        mapping,
        runs,
        skip_zeros,
    } in later
    {
        let Some(mapping) = space.mappings.get_mut(mapping) else {
            continue;
        };
        let mut extents = std::mem::take(&mut mapping.extents);
        for run in runs {
            let read = |at: u64, piece: &mut [u8]| memory.read(at, piece).is_ok();
            in_parts(run, sink, &read, &mut |at, part, sink| {
                let Some(length) = left_of(part, at, &mut extents) else {
                    return Ok(());
                };
                buffer.resize(length as usize, 0);
                let read = memory.read(at, &mut buffer);
                read.context(|| format!("read {length} bytes at {at:#x} of the copy"))?;
                place(&mut buffer, at, skip_zeros, &mut extents, sink)
            })?;
        }
        mapping.extents = ordered(extents);
    }
    Ok(())
}

/// Places whole pages; gives another buffer for them.
fn place(
    buffer: &mut Vec<u8>,
    at: u64,
    skip_zeros: bool,
    extents: &mut Vec<Extent>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    if skip_zeros && buffer.chunks_exact(PAGE_SIZE).any(is_zero) {
        return append(buffer, at, true, extents, sink);
    }
    let mut start = at;
    *buffer = sink.place_buffer(std::mem::take(buffer), &mut |length, offset| {
        push(extents, start, length as u64, offset);
        start += length as u64;
    })?;
    Ok(())
}

/// Describes and copies the address space of `process`. With `later`, pages that a copy of the process has as well are
/// only listed there.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming a mapping that cannot be saved.
pub fn save(
    process: &Process,
    layout: MemoryLayout,
    shared: &mut Shared<'_>,
    copied: Option<&Copied>,
    mut later: Option<&mut Vec<Later>>,
    sink: &mut dyn PageSink,
) -> Result<AddressSpace> {
    let pid = process.pid;
    let Some(space) = &process.space else {
        return Ok(AddressSpace::default());
    };
    if space.maps.iter().any(|map| !shared.flags.has(pid, map)) {
        shared.flags.add(&process.proc);
    }
    let (executable, saved_executable) = executable(process, shared)?;
    let mut scans = Scans::new(space, copied).context(|| format!("look at the memory of process {pid}"))?;
    let mut mappings = Vec::new();
    for map in &space.maps {
        let Some(plan) = plan(process, map, shared)? else {
            continue;
        };
        let Plan {
            mut mapping,
            pages,
            library,
        } = plan;
        let what = || format!("process {pid}: save {}", label(map));
        let put_off = match &mut later {
            Some(later) if can_wait(&mapping, &pages, library) => Some((&mut **later, mappings.len())),
            _ => None,
        };
        let size = match &mapping.kind {
            MappingKind::PrivateFile(id) => shared.files.files.get(id.index()).map(|file| file.size),
            _ if library => shared.views.stat(None, &map.path).ok().map(|stat| stat.st_size as u64),
            _ => None,
        };
        let behind = size.map(|size| size.saturating_sub(map.offset));
        copy(
            process,
            &mut mapping,
            pages,
            (library, behind),
            &mut scans,
            put_off,
            sink,
        )
        .context(what)?;
        if library {
            let file = shared.libraries.save(map, sink).context(what)?;
            mapping.extents = overlay(file, &mapping.extents, map.start, map.end, map.offset);
        }
        mappings.push(mapping);
    }
    let lock_future = lock_future(process)?;
    let is_ring = |mapping: &Mapping| matches!(mapping.kind, MappingKind::IoUring(_));
    if lock_future != 0 && mappings.iter().any(is_ring) {
        let text = format!("process {pid}: io_uring together with mlockall(MCL_FUTURE) is not supported");
        return Err(Error::new(ErrorKind::Unsupported, text).with_hint(io_uring::HINT));
    }
    Ok(AddressSpace {
        layout,
        executable,
        saved_executable,
        mappings,
        lock_future,
    })
}

/// What mlockall(2) asked for mappings to come, told from what became of our own: the kernel shows it nowhere.
fn lock_future(process: &Process) -> Result<u32> {
    const MCL_FUTURE: u32 = 2;
    const MCL_ONFAULT: u32 = 4;
    let what = || format!("look at locked memory of process {}", process.pid);
    let locked = process.proc.status().context(what)?.vm_lck_kib;
    if locked <= process.status.vm_lck_kib {
        return Ok(0);
    }
    let flags = process.proc.smaps_flags().context(what)?;
    let arena = process.space.as_ref().and_then(|space| space.arena);
    let ours = flags
        .iter()
        .find(|f| arena.is_some_and(|arena| (f.start..f.end).contains(&arena.address)));
    let on_fault = ours.is_some_and(|f| f.has(b"lf"));
    Ok(MCL_FUTURE | if on_fault { MCL_ONFAULT } else { 0 })
}

/// The program a process runs: by name, or with its contents where those are wanted or have no name any more.
fn executable(process: &Process, shared: &mut Shared<'_>) -> Result<(Option<MappedFileId>, Option<SavedFileId>)> {
    let pid = process.pid;
    let path = process
        .proc
        .read_link("exe")
        .context(|| format!("read /proc/{pid}/exe"))?;
    let deleted = path.strip_suffix(b" (deleted)");
    if deleted.is_none() && !shared.keep_executables {
        let stat = process.proc.link_stat("exe");
        let stat = stat.context(|| format!("look at /proc/{pid}/exe"))?;
        let view = shared.place(stat.st_dev, stat.st_ino, &path, false);
        // Of a file that is mounted nowhere (open_tree(2)), as runtimes of containers run themselves, no path is known.
        if view
            .0
            .stat(view.1, &path)
            .is_ok_and(|found| found.st_ino == stat.st_ino)
        {
            return Ok((Some(shared.files.intern(&path, view, false, true)?), None));
        }
    }
    let name = deleted.unwrap_or(&path);
    let name = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    let name = name.strip_prefix(b"memfd:").unwrap_or(name);
    let what = || format!("process {pid}: save its program");
    let file = rustix::fs::open(
        format!("/proc/{}/exe", process.proc.acting()),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(std::io::Error::from)
    .context(what)?;
    // What memfd_create(2) allows.
    let name = &name[..name.len().min(200)];
    Ok((None, Some(shared.saved.intern_program(file, name).context(what)?)))
}

fn plan(process: &Process, map: &MapEntry, shared: &mut Shared<'_>) -> Result<Option<Plan>> {
    let makedev = rustix::fs::makedev(map.dev.0, map.dev.1);
    let view = match map.kind() {
        MapKind::File => shared.place(makedev, map.inode, &map.path, map.deleted),
        _ => View(shared.views, None),
    };
    let at_home = view.1.is_none();
    let Shared {
        flags,
        files,
        saved,
        policies,
        libraries,
        packet_sockets,
        io_urings,
        ..
    } = shared;
    let pid = process.pid;
    let unsupported = |reason: &str| {
        Error::new(
            ErrorKind::Unsupported,
            format!("process {pid}: {}: {reason}", label(map)),
        )
    };
    if let Some(reason) = refuse(map) {
        return Err(unsupported(&reason));
    }
    let vm = flags.get(pid, map);
    let has = |code: &[u8; 2]| vm.contains(code);
    let huge = has(b"ht");
    match map.kind() {
        MapKind::HugePages | MapKind::SysvShm { .. } => {}
        MapKind::Memfd(_) if map.shared => {}
        _ if huge => return Err(unsupported("explicit huge pages of a file are not supported")),
        _ => {}
    }
    let kernels_own = matches!(map.kind(), MapKind::Vvar | MapKind::VvarVclock | MapKind::Vdso);
    if (has(b"io") || has(b"pf")) && !kernels_own && !io_uring::is_mapping(map) {
        return Err(unsupported("mapped devices are not supported"));
    }
    if has(b"um") || has(b"ui") {
        return Err(unsupported("its page faults are handled by userfaultfd"));
    }
    if has(b"ss") {
        return Err(unsupported("shadow stacks are not supported"));
    }
    if let Some(key) = flags.key(pid, map) {
        return Err(unsupported(&format!(
            "it has memory protection key {key}, which is not supported"
        )));
    }
    let library = map.kind() == MapKind::File
        && !map.shared
        && !map.deleted
        && at_home
        && (libraries.wants(map) || policies.is_anonymous(&map.path))
        && !view.replaced(map);
    let anonymous = if has(b"gd") {
        MappingKind::Stack
    } else {
        MappingKind::Anonymous
    };
    let shared_memory = match map.kind() {
        MapKind::File if map.shared && has(b"mw") => shared_memory(map, files, View(shared.views, None), saved)?,
        _ => None,
    };
    let (kind, pages) = match (map.kind(), shared_memory) {
        (_, Some(id)) => (MappingKind::SharedFile(id), Pages::None),
        (MapKind::Vsyscall, None) => return Ok(None),
        // For a restart under a kernel that has another one.
        (MapKind::Vdso, None) => (MappingKind::Vdso, Pages::All),
        (MapKind::Vvar, None) => (MappingKind::Vvar, Pages::None),
        (MapKind::HugePages, None) if map.shared => {
            let kind = SavedFileKind::SharedAnonymous;
            let id = saved.intern_mapping(makedev, map.inode, kind, pid, map.start, map.end, map.offset);
            (MappingKind::SharedSaved(id), Pages::None)
        }
        (MapKind::HugePages, None) => (MappingKind::HugePages(page_size(&process.proc, map)?), Pages::Own),
        (MapKind::Aio, None) => (MappingKind::AioRing, Pages::All),
        (MapKind::VvarVclock, None) => (MappingKind::VvarClock, Pages::None),
        (MapKind::Stack, None) => (MappingKind::Stack, Pages::Own),
        // The kernel may empty it at any time (MAP_DROPPABLE), and so may we.
        (MapKind::Anonymous | MapKind::AnonNamed(_), None) if has(b"dp") => (anonymous, Pages::None),
        (MapKind::Anonymous | MapKind::Heap | MapKind::AnonNamed(_), None) if !map.shared => (anonymous, Pages::Own),
        (MapKind::SharedAnonymous | MapKind::AnonShmemNamed(_) | MapKind::Anonymous, None) if map.shared => {
            let id = saved.intern_mapping(
                makedev,
                map.inode,
                SavedFileKind::SharedAnonymous,
                pid,
                map.start,
                map.end,
                map.offset,
            );
            (MappingKind::SharedSaved(id), Pages::None)
        }
        // Another's shared mapping of /dev/zero, mapped privately through /proc/PID/map_files.
        (MapKind::SharedAnonymous, None) => {
            let kind = SavedFileKind::SharedAnonymous;
            let id = saved.intern_mapping(makedev, map.inode, kind, pid, map.start, map.end, map.offset);
            (MappingKind::PrivateSaved(id), Pages::Own)
        }
        (MapKind::Memfd(name), None) => {
            let kind = SavedFileKind::Memfd {
                name: ByteString(name.to_vec()),
                seals: 0,
            };
            let id = saved.intern_mapping(makedev, map.inode, kind, pid, map.start, map.end, map.offset);
            if map.shared {
                (MappingKind::SharedSaved(id), Pages::None)
            } else {
                (MappingKind::PrivateSaved(id), Pages::Own)
            }
        }
        (MapKind::File, None) if map.path == b"/dev/zero" && !map.shared => (anonymous, Pages::Own),
        (MapKind::File, None)
            if at_home && map.shared && !map.deleted && policies.is_anonymous(&map.path) && !view.replaced(map) =>
        {
            let kind = SavedFileKind::Deleted {
                path: ByteString(map.path.clone()),
            };
            policies.note_path(ByteString(map.path.clone()).as_path(), saved)?;
            let id = saved.intern_mapping(makedev, map.inode, kind, pid, map.start, map.end, map.offset);
            (MappingKind::SharedSaved(id), Pages::None)
        }
        (MapKind::File, None) if map.deleted || view.replaced(map) => {
            if let Some(other) = map.shared.then(|| view.other_name(map)).flatten() {
                let id = files.intern(&other, view, has(b"mw"), false)?;
                (MappingKind::SharedFile(id), Pages::None)
            } else if map.shared {
                let kind = deleted_kind(view.1, ByteString(map.path.clone()));
                let id = saved.intern_mapping(makedev, map.inode, kind, pid, map.start, map.end, map.offset);
                (MappingKind::SharedSaved(id), Pages::None)
            } else if let Some(id) = saved.known(makedev, map.inode) {
                // What is written through the descriptor shows in pages that the process has not written to.
                (MappingKind::PrivateSaved(id), Pages::Own)
            } else {
                (MappingKind::Anonymous, Pages::All)
            }
        }
        (MapKind::SysvShm { .. }, None) => {
            let id = files.segments.get(&(files.namespace, map.inode));
            let id = id.ok_or_else(|| unsupported("the segment is of another IPC namespace"))?;
            (MappingKind::SysvSegment(*id), Pages::None)
        }
        (MapKind::Socket, None) => {
            let id = packet_sockets.0.of_mapping(map.inode);
            let id = id.ok_or_else(|| unsupported("no descriptor is open on the socket"))?;
            let size = packet_sockets.1.get(id.index()).map(mapped_size);
            if (map.offset, Some(map.end - map.start)) != (0, size) {
                return Err(unsupported("only a part of a socket's rings is mapped in this way"));
            }
            match map.shared {
                true => (MappingKind::SharedSocket(id), Pages::None),
                false => (MappingKind::PrivateSocket(id), Pages::Own),
            }
        }
        (MapKind::AnonInode(_), None) if io_uring::is_mapping(map) => {
            let id = io_urings.0.of_mapping(map.inode);
            let id = id.ok_or_else(|| unsupported(io_uring::UNREACHABLE))?;
            let size = io_urings
                .1
                .get(id.index())
                .map(|one| io_uring::mapped_size(one, map.offset));
            if !map.shared || size.is_none_or(|size| map.len() > size) {
                return Err(unsupported(
                    "io_uring with entries of twice the usual size is not supported",
                ));
            }
            (MappingKind::IoUring(id), Pages::None)
        }
        (MapKind::File, None) if map.shared => {
            if at_home {
                policies.note_path(ByteString(map.path.clone()).as_path(), saved)?;
            }
            let id = files.intern(&map.path, view, has(b"mw"), false)?;
            (MappingKind::SharedFile(id), Pages::None)
        }
        (MapKind::File, None) if library => (MappingKind::Anonymous, Pages::Own),
        (MapKind::File, None) => (
            MappingKind::PrivateFile(files.intern(&map.path, view, false, true)?),
            Pages::Own,
        ),
        _ => return Err(unsupported("this kind of mapping is not supported")),
    };
    if let MappingKind::SharedSaved(id) = kind
        && huge
    {
        saved.note_huge_pages(id, page_size(&process.proc, map)?);
    }
    let offset = match kind {
        MappingKind::Anonymous | MappingKind::Stack | MappingKind::HugePages(_) => 0,
        _ => map.offset,
    };
    let bit = |on: bool, value: u32| if on { value } else { 0 };
    Ok(Some(Plan {
        mapping: Mapping {
            start: map.start,
            end: map.end,
            protection: bit(map.read, 1) | bit(map.write, 2) | bit(map.exec, 4),
            kind,
            offset,
            flags: KEPT_FLAGS
                .iter()
                .chain([b"mw"].iter().filter(|_| matches!(map.kind(), MapKind::SysvShm { .. })))
                .filter(|code| has(code))
                .map(|code| String::from_utf8_lossy(&code[..]).into_owned())
                .collect(),
            extents: Vec::new(),
            guards: Vec::new(),
            policy: None,
        },
        pages,
        library,
    }))
}

/// Size of the huge pages of a mapping, in bytes.
fn page_size(proc: &ProcDir, map: &MapEntry) -> Result<u64> {
    let what = || format!("ask for the page size of {}", label(map));
    let size = proc.page_size_at(map.start).context(what)?;
    size.ok_or_else(|| Error::new(ErrorKind::Gone, format!("{} is gone", label(map))))
}

/// Whether a process has memory in explicit huge pages. A copy of the process would need as many again, which are few.
pub fn has_huge_pages(space: &Space) -> bool {
    space.maps.iter().any(|map| map.kind() == MapKind::HugePages)
}

/// The file that a mapping of POSIX shared memory is of, to be saved with its contents.
fn shared_memory(
    map: &MapEntry,
    files: &mut MappedFiles,
    home: View<'_>,
    saved: &mut SavedFiles,
) -> Result<Option<MappedFileId>> {
    let Some((fd, path)) = find_shared_memory(map) else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&fd).map_err(std::io::Error::from);
    let stat = stat.context(|| format!("look at {path}"))?;
    let id = files.intern(&path.0, home, true, false)?;
    let kind = SavedFileKind::SharedMemory { path };
    let contents = saved.intern_descriptor(&stat, std::os::fd::AsFd::as_fd(&fd), kind, &label(map))?;
    if let Some(file) = files.files.get_mut(id.index()) {
        file.contents = Some(contents);
    }
    Ok(Some(id))
}

/// Whether a copy that fork(2) makes of the process has these pages, too.
fn can_wait(mapping: &Mapping, pages: &Pages, library: bool) -> bool {
    let has = |code: &str| mapping.flags.iter().any(|flag| flag == code);
    // Not copied (MADV_DONTFORK), or emptied (MADV_WIPEONFORK).
    let lost = has("dc") || has("wf");
    // Pages beyond the end of a file would have to be told apart.
    let anonymous = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Stack);
    matches!(pages, Pages::Own) && !library && anonymous && !lost
}

/// How many bytes of a part at `at` have still to be placed; one that has been is noted.
fn left_of(part: Part, at: u64, extents: &mut Vec<Extent>) -> Option<u64> {
    match part {
        Part::Placed(offset) => {
            push(extents, at, PIECE as u64, offset);
            None
        }
        Part::Left(length) => Some(length),
    }
}

/// `behind`: how much of the file that is mapped privately is behind the beginning of the mapping.
fn copy(
    process: &Process,
    mapping: &mut Mapping,
    pages: Pages,
    (library, behind): (bool, Option<u64>),
    scans: &mut Scans<'_>,
    put_off: Option<(&mut Vec<Later>, usize)>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    let Found { regions, known } = match pages {
        Pages::None => return Ok(()),
        Pages::All => Found {
            regions: vec![PageRegion {
                start: mapping.start,
                end: mapping.end,
                categories: PAGE_PRESENT,
            }],
            known: Vec::new(),
        },
        Pages::Own => scans.own_pages(mapping.start, mapping.end)?,
    };
    // A page of zeros hides what the file has there.
    let skip_zeros = !library
        && matches!(
            mapping.kind,
            MappingKind::Anonymous | MappingKind::Stack | MappingKind::HugePages(_)
        );
    let mut buffer = Vec::new();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut extents = Vec::new();
    for &(start, end, place) in &known {
        match place {
            Place::At(offset) => push(&mut extents, start, end - start, offset),
            Place::Zeros if skip_zeros => {}
            _ => runs.push((start, end)),
        }
    }
    for region in &regions {
        if region.categories & PAGE_GUARD != 0 {
            mapping.guards.push((region.start, region.end - region.start));
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == region.start => *end = region.end,
            _ => runs.push((region.start, region.end)),
        }
    }
    if let Some((later, index)) = put_off {
        later.push(Later {
            mapping: index,
            runs,
            skip_zeros,
        });
        mapping.extents = extents;
        return Ok(());
    }
    let reader = Reader {
        pid: process.pid,
        memory: &space.memory,
        pagemap: &space.pagemap,
    };
    for run in runs {
        let read = |at: u64, piece: &mut [u8]| reader.read(at, piece).is_ok();
        in_parts(run, sink, &read, &mut |at, part, sink| {
            let Some(length) = left_of(part, at, &mut extents) else {
                return Ok(());
            };
            buffer.resize(length as usize, 0);
            match reader.read(at, &mut buffer) {
                Ok(()) => place(&mut buffer, at, skip_zeros, &mut extents, sink),
                Err(_) if matches!(pages, Pages::All) => readable_pages(process, at, &mut buffer, &mut extents, sink),
                Err(error) => {
                    // Write protection marks pages beyond the end of a mapped file, too: there is nothing in them.
                    let readable = match file_end(mapping, behind) {
                        Some(end) if end < at + length => end.saturating_sub(at),
                        _ => return Err(error).context(|| format!("read {length} bytes at {at:#x}")),
                    };
                    buffer.truncate(readable as usize);
                    space
                        .memory
                        .read(at, &mut buffer)
                        .context(|| format!("read {readable} bytes at {at:#x}"))?;
                    append(&buffer, at, skip_zeros, &mut extents, sink)
                }
            }
        })?;
    }
    mapping.extents = ordered(extents);
    Ok(())
}

/// Reads pages of a process in the fastest way that does not make it grow.
pub struct Reader<'a> {
    /// The process.
    pub pid: i32,
    /// Its memory.
    pub memory: &'a Memory,
    /// Its page table.
    pub pagemap: &'a Pagemap,
}

impl Reader<'_> {
    /// Reads whole pages.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let end = address + buffer.len() as u64;
        let exclusive = buffer.len() >= WORTH_ASKING && self.pagemap.are_exclusive(address, end).unwrap_or(false);
        if exclusive && self.memory.read_pinned(self.pid, address, buffer).is_ok() {
            return Ok(());
        }
        self.memory.read(address, buffer)
    }
}

/// Where the last page of the file lies that is mapped privately here. Truncating a file takes private copies of its
/// pages away as well (truncate_pagecache in mm/truncate.c), so that nothing can be behind it.
fn file_end(mapping: &Mapping, behind: Option<u64>) -> Option<u64> {
    Some(mapping.start + behind?.next_multiple_of(PAGE_SIZE as u64))
}

/// Extents in ascending order, neighbours joined.
fn ordered(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_unstable_by_key(|extent| extent.start);
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        push(&mut joined, extent.start, extent.length, extent.offset);
    }
    joined
}

/// Adds a run of pages, to the last extent where it goes on there.
fn push(extents: &mut Vec<Extent>, start: u64, length: u64, offset: u64) {
    match extents.last_mut() {
        Some(last) if last.start + last.length == start && last.offset + last.length == offset => {
            last.length += length;
        }
        _ => extents.push(Extent { start, length, offset }),
    }
}

/// Pages of a mapping of a deleted file, some of which lie beyond its end.
fn readable_pages(
    process: &Process,
    start: u64,
    buffer: &mut [u8],
    extents: &mut Vec<Extent>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    for (index, page) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
        let at = start + (index * PAGE_SIZE) as u64;
        if space.memory.read(at, page).is_ok() {
            append(page, at, true, extents, sink)?;
        }
    }
    Ok(())
}

/// Whether a page is all zeros.
pub fn is_zero(page: &[u8]) -> bool {
    // Compared in words: the optimiser makes vector code of it.
    let (head, words, tail) = (
        &page[..8.min(page.len())],
        page.chunks_exact(32),
        page.chunks_exact(32).remainder(),
    );
    head.iter().all(|&b| b == 0)
        && tail.iter().all(|&b| b == 0)
        && words.into_iter().all(|w| w.iter().fold(0, |all, b| all | b) == 0)
}

/// Appends whole pages, leaving out those of zeros where they need not be kept.
fn append(data: &[u8], start: u64, skip_zeros: bool, extents: &mut Vec<Extent>, sink: &mut dyn PageSink) -> Result<()> {
    let pages = data.len() / PAGE_SIZE;
    let slice = |first: usize, end: usize| &data[first * PAGE_SIZE..end * PAGE_SIZE];
    let mut page = 0;
    while page < pages {
        if skip_zeros && is_zero(slice(page, page + 1)) {
            page += 1;
            continue;
        }
        let first = page;
        page += 1;
        while page < pages && !(skip_zeros && is_zero(slice(page, page + 1))) {
            page += 1;
        }
        let mut at = start + (first * PAGE_SIZE) as u64;
        sink.place(slice(first, page), &mut |length, offset| {
            push(extents, at, length as u64, offset);
            at += length as u64;
        })?;
    }
    Ok(())
}
