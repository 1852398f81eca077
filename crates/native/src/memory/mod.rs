//! What is mapped in a stopped process, and its pages.

mod files;
mod flags;
mod pages;
mod plan;

use cpr_image::model::{
    AddressSpace, IoUring, MappedFileId, Mapping, MappingKind, MemoryLayout, MountNamespaceId, PacketSocket,
    SavedFileId,
};
use cpr_kernel::proc::MapKind;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

pub use files::MappedFiles;
pub use flags::FlagTable;
pub use pages::{Later, Reader, is_zero, save_later};
pub use plan::blockers;

use files::View;
use pages::{can_wait, copy};
use plan::{Plan, label, plan};

use crate::files::io_uring::{self, SaveState as RingState};
use crate::files::packet::SaveState as PacketState;
use crate::files::{PolicyState, SavedFiles};
use crate::freeze::{Process, Space};
use crate::libraries::{Libraries, overlay};
use crate::live::Copied;
use crate::scans::Scans;
use crate::sink::PageSink;
use crate::views::Views;

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

/// Whether a process has memory in explicit huge pages. A copy of the process would need as many again, which are few.
pub fn has_huge_pages(space: &Space) -> bool {
    space.maps.iter().any(|map| map.kind() == MapKind::HugePages)
}
