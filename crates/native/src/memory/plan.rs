//! What becomes of a mapping: what it is in the image, and which pages of it go there.

use std::os::fd::AsFd;

use cpr_image::model::{ByteString, MappedFileId, Mapping, MappingKind, SavedFileKind};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::Shared;
use super::files::{MappedFiles, View};
use super::flags::KEPT_FLAGS;
use crate::files::io_uring;
use crate::files::packet::mapped_size;
use crate::files::{SavedFiles, find_shared_memory};
use crate::freeze::Process;
use crate::views::deleted_kind;

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

pub(super) fn label(map: &MapEntry) -> String {
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
pub(super) struct Plan {
    pub mapping: Mapping,
    pub pages: Pages,
    /// The pages of the file below the process's own are in the image.
    pub library: bool,
}

/// Which pages of a mapping are copied.
pub(super) enum Pages {
    /// Nothing: it is in a file or belongs to the kernel.
    None,
    /// Pages that are the process's own (not a file's).
    Own,
    /// All readable pages: the file they came from is gone.
    All,
}

/// Decides about one mapping; none where nothing of it is saved.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that cannot be saved.
pub(super) fn plan(process: &Process, map: &MapEntry, shared: &mut Shared<'_>) -> Result<Option<Plan>> {
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
    let contents = saved.intern_descriptor(&stat, fd.as_fd(), kind, &label(map))?;
    if let Some(file) = files.files.get_mut(id.index()) {
        file.contents = Some(contents);
    }
    Ok(Some(id))
}
