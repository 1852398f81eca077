//! Editing: a new image made of an old one and changes (LBNL-3.6.3.2). The old one is never written.
//!
//! Changes are kept in memory until [`Edit::save`] copies the image with them. What comes out has an identifier and
//! hashes of its own, names the image it was made from, and passes the same checks as any other before it is written.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::format::PAGE;
use crate::model::{
    AddressSpace, ByteString, Extent, Manifest, Mapping, MappingKind, Object, Process, SavedFileId, SavedFileKind,
    SegmentId, Thread,
};
use crate::{Image, ImageSummary, ImageWriter, PendingImage};

/// Positions of changed pages, until they are written: beyond all that an image and its ancestors can have.
const CHANGED: u64 = 1 << 62;
/// Longest environment looked at, bytes.
const ENVIRONMENT: u64 = 4 << 20;

/// General registers of x86_64 in the order of `struct user_regs_struct`, eight bytes each.
const REGISTERS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];

/// An image with changes that are not written yet.
#[derive(Debug)]
pub struct Edit {
    image: Image,
    manifest: Manifest,
    /// Changed pages, by their positions from [`CHANGED`] on. The page that one takes the place of stays as it is,
    /// since it may be another's, too.
    pages: BTreeMap<u64, Vec<u8>>,
}

/// Where a page of a process is.
enum Place {
    /// At this position; in this list of extents it begins with this.
    At(u64, Owner, u64),
    /// Nowhere, since it is all zeros.
    Zeros(Owner, u64),
    /// In a file that is not in the image.
    Outside,
}

/// Whose extents.
#[derive(Clone, Copy)]
enum Owner {
    Mapping(usize, usize),
    File(SavedFileId),
    Segment(SegmentId),
}

impl Edit {
    /// Begins without changes. What is made of an increment is a full image.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when an image that this one needs is missing or altered.
    pub fn new(mut image: Image) -> Result<Self> {
        image.open_ancestors()?;
        let manifest = image.manifest().clone();
        Ok(Edit {
            image,
            manifest,
            pages: BTreeMap::new(),
        })
    }

    /// The image as it was opened.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The metadata with all changes so far.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn process(&self, pid: i32) -> Result<&Process> {
        let found = self.manifest.processes.iter().find(|p| p.pid == pid);
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("image {} has no process {pid}", self.image.name()),
            )
        })
    }

    fn space(&self, pid: i32) -> Result<(usize, &AddressSpace)> {
        let id = self.process(pid)?.address_space;
        let space = id.and_then(|id| Some((id.index(), self.manifest.address_spaces.get(id.index())?)));
        space.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("process {pid} of the image has no memory")))
    }

    fn place(&self, pid: i32, page: u64) -> Result<Place> {
        let (index, space) = self.space(pid)?;
        let after = space.mappings.partition_point(|mapping| mapping.start <= page);
        let found = after.checked_sub(1).and_then(|at| Some((at, space.mappings.get(at)?)));
        let Some((number, mapping)) = found.filter(|(_, mapping)| page < mapping.end) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("process {pid} has no memory at {page:#x}"),
            ));
        };
        let own = Owner::Mapping(index, number);
        if let Some(at) = position(&mapping.extents, page) {
            return Ok(Place::At(at, own, page));
        }
        let start = mapping.offset.saturating_add(page - mapping.start);
        let of = |owner: Owner, at: Option<u64>| match at {
            Some(at) => Place::At(at, owner, start),
            None => Place::Zeros(owner, start),
        };
        Ok(match mapping.kind {
            MappingKind::Anonymous | MappingKind::Stack | MappingKind::HugePages(_) => Place::Zeros(own, page),
            MappingKind::SharedSaved(file) => of(Owner::File(file), self.saved(file, mapping, page)),
            MappingKind::SysvSegment(id) => {
                let segment = self.manifest.ipc.segments.get(id.index());
                let at = segment.and_then(|segment| position(&segment.extents, start));
                of(Owner::Segment(id), at)
            }
            // A write goes into a page of its own; without extent it shows the file.
            MappingKind::PrivateSaved(file) if self.saved(file, mapping, page).is_none() => Place::Zeros(own, page),
            _ => Place::Outside,
        })
    }

    /// Position of the contents of a saved file that a page of a mapping shows.
    fn saved(&self, file: SavedFileId, mapping: &Mapping, page: u64) -> Option<u64> {
        let file = self.manifest.saved_files.get(file.index())?;
        position(&file.extents, mapping.offset + (page - mapping.start))
    }

    /// The page at a position in the image, with changes.
    fn page_at(&self, at: u64) -> Result<Vec<u8>> {
        if let Some(page) = self.pages.get(&at) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        self.image.read_data(at, &mut page)?;
        Ok(page)
    }

    /// Reads memory of a process with all changes so far.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where it has none, [`ErrorKind::Unsupported`] where it shows a file that is not in the
    /// image.
    pub fn read_memory(&self, pid: i32, address: u64, buffer: &mut [u8]) -> Result<()> {
        for (page, from, range) in pieces(address, buffer.len())? {
            let contents = match self.place(pid, page)? {
                Place::At(at, ..) => self.page_at(at)?,
                Place::Zeros(..) => vec![0; PAGE as usize],
                Place::Outside => match self.private(pid, page)? {
                    Some(at) => self.page_at(at)?,
                    None => return Err(outside(pid, page)),
                },
            };
            let length = range.len();
            buffer[range].copy_from_slice(&contents[from..from + length]);
        }
        Ok(())
    }

    /// What a private mapping of a saved file shows where it was not written.
    fn private(&self, pid: i32, page: u64) -> Result<Option<u64>> {
        let (_, space) = self.space(pid)?;
        let mapping = space.mappings.iter().find(|m| m.start <= page && page < m.end);
        Ok(mapping.and_then(|mapping| match mapping.kind {
            MappingKind::PrivateSaved(file) => self.saved(file, mapping, page),
            _ => None,
        }))
    }

    /// Changes memory of a process.
    ///
    /// # Errors
    /// As [`Edit::read_memory`]; then nothing is changed.
    pub fn write_memory(&mut self, pid: i32, address: u64, bytes: &[u8]) -> Result<()> {
        let mut before = vec![0; bytes.len()];
        self.read_memory(pid, address, &mut before)?;
        for (page, from, range) in pieces(address, bytes.len())? {
            let (at, mut contents) = match self.place(pid, page)? {
                Place::At(at, ..) if at >= CHANGED => (at, self.page_at(at)?),
                Place::At(at, owner, start) => (self.add(owner, start)?, self.page_at(at)?),
                Place::Zeros(owner, start) => (self.add(owner, start)?, vec![0; PAGE as usize]),
                Place::Outside => return Err(outside(pid, page)),
            };
            contents[from..from + range.len()].copy_from_slice(&bytes[range]);
            self.pages.insert(at, contents);
        }
        Ok(())
    }

    /// Gives a page a position of its own.
    fn add(&mut self, owner: Owner, start: u64) -> Result<u64> {
        let manifest = &mut self.manifest;
        let extents = match owner {
            Owner::Mapping(space, number) => manifest
                .address_spaces
                .get_mut(space)
                .and_then(|space| space.mappings.get_mut(number))
                .map(|mapping| &mut mapping.extents),
            Owner::File(file) => manifest.saved_files.get_mut(file.index()).map(|f| &mut f.extents),
            Owner::Segment(id) => manifest.ipc.segments.get_mut(id.index()).map(|s| &mut s.extents),
        };
        let extents = extents.ok_or_else(|| Error::new(ErrorKind::Internal, "a mapping has gone"))?;
        // With room between them: neighbours are not taken for one run.
        let offset = CHANGED + self.pages.len() as u64 * 2 * PAGE;
        let mut place = extents.partition_point(|extent| extent.start < start);
        // The extent that holds the page, if any, is split around it.
        let holder = extents
            .iter()
            .position(|e| e.start <= start && start - e.start < e.length);
        if let Some(index) = holder {
            let whole = extents.remove(index);
            place = index;
            let before = start - whole.start;
            if before > 0 {
                extents.insert(
                    place,
                    Extent {
                        length: before,
                        ..whole
                    },
                );
                place += 1;
            }
            let after = before + PAGE;
            if after < whole.length {
                let rest = Extent {
                    start: whole.start + after,
                    length: whole.length - after,
                    offset: whole.offset + after,
                };
                extents.insert(place, rest);
            }
        }
        let length = PAGE;
        extents.insert(place, Extent { start, length, offset });
        Ok(offset)
    }

    fn thread_mut(&mut self, pid: i32, tid: i32) -> Result<&mut Thread> {
        let processes = self.manifest.processes.iter_mut().filter(|p| p.pid == pid);
        let found = processes.flat_map(|p| &mut p.threads).find(|t| t.tid == tid);
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the image has no thread {tid} of process {pid}"),
            )
        })
    }

    /// A general register of a thread, by its name in lower case.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a thread or register that is not there.
    pub fn register(&self, pid: i32, tid: i32, name: &str) -> Result<u64> {
        let range = self.register_range(name)?;
        let found = self.process(pid)?.threads.iter().find(|t| t.tid == tid);
        let bytes = found.and_then(|thread| thread.cpu.general.0.get(range));
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes)),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("the image has no thread {tid} of process {pid}"),
            )),
        }
    }

    fn register_range(&self, name: &str) -> Result<std::ops::Range<usize>> {
        let architecture = &self.manifest.checkpoint.architecture;
        if architecture != "x86_64" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("registers of {architecture} have no names here"),
            ));
        }
        match REGISTERS.iter().position(|register| *register == name) {
            Some(index) => Ok(index * 8..index * 8 + 8),
            None => Err(
                Error::new(ErrorKind::NotFound, format!("there is no register {name:?}"))
                    .with_hint(format!("there are {}", REGISTERS.join(", "))),
            ),
        }
    }

    /// Changes a general register of a thread.
    ///
    /// # Errors
    /// As [`Edit::register`].
    pub fn set_register(&mut self, pid: i32, tid: i32, name: &str, value: u64) -> Result<()> {
        let range = self.register_range(name)?;
        self.register(pid, tid, name)?;
        let cpu = &mut self.thread_mut(pid, tid)?.cpu;
        if let Some(slot) = cpu.general.0.get_mut(range) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        match name {
            "rip" => cpu.program_counter = value,
            "rsp" => cpu.stack_pointer = value,
            _ => {}
        }
        Ok(())
    }

    /// Changes a variable of the environment a process was started with, in place: the program sees it where it has
    /// not copied it before.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the variable is not there, [`ErrorKind::Unsupported`] when the new value is longer
    /// than the old one, since there is no room.
    pub fn set_environment(&mut self, pid: i32, name: &str, value: &str) -> Result<()> {
        let layout = &self.space(pid)?.1.layout;
        let (start, end) = (layout.env_start, layout.env_end);
        let length = end.saturating_sub(start).min(ENVIRONMENT);
        let mut bytes = vec![0; length as usize];
        self.read_memory(pid, start, &mut bytes)?;
        let wanted = format!("{name}=");
        let mut at = 0;
        for string in bytes.split(|byte| *byte == 0) {
            if string.starts_with(wanted.as_bytes()) {
                let room = string.len() - wanted.len();
                if value.len() > room || value.contains('\0') {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("variable {name} of process {pid} has room for {room} bytes"),
                    ));
                }
                let mut new = value.as_bytes().to_vec();
                new.resize(room, 0);
                return self.write_memory(pid, start + (at + wanted.len()) as u64, &new);
            }
            at += string.len() + 1;
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!("process {pid} has no variable {name} in its environment"),
        ))
    }

    /// Changes every path that is `old` or below it: of open and mapped files, directories, sockets and working
    /// directories. Gives how many.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Usage`] when one of the two is not absolute.
    pub fn replace_path(&mut self, old: &Path, new: &Path) -> Result<usize> {
        if !old.is_absolute() || !new.is_absolute() {
            return Err(Error::new(ErrorKind::Usage, "only absolute paths can be replaced"));
        }
        let mut count = 0;
        for path in paths(&mut self.manifest) {
            if let Ok(rest) = path.as_path().strip_prefix(old) {
                let changed = if rest.as_os_str().is_empty() {
                    new.to_path_buf()
                } else {
                    new.join(rest)
                };
                *path = ByteString::from(changed.as_os_str());
                count += 1;
            }
        }
        if count == 0 {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the image has no path {}", old.display()),
            ));
        }
        Ok(count)
    }

    /// Changes any field of the metadata. `pointer` is a JSON pointer (RFC 6901) into what [`Edit::to_json`] gives.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such field, [`ErrorKind::Usage`] when the value does not fit.
    pub fn set(&mut self, pointer: &str, value: serde_json::Value) -> Result<()> {
        let decode = |tree: serde_json::Value| serde_json::from_value::<Manifest>(tree);
        let mut tree = self.to_json()?;
        if decode(tree.clone()).ok().as_ref() != Some(&self.manifest) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the image has names that are not UTF-8, which would be lost",
            ));
        }
        let slot = tree.pointer_mut(pointer).filter(|_| !pointer.is_empty());
        *slot.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the image has no field {pointer}")))? = value;
        self.manifest = decode(tree).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("the value does not fit field {pointer}")).with_source(error)
        })?;
        Ok(())
    }

    /// All metadata with all changes so far, as `cpr inspect --json` shows them.
    ///
    /// # Errors
    /// None that an image which could be opened leads to.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.manifest)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode the metadata as JSON").with_source(error))
    }

    /// Writes the changed image as a new one, with an identifier and hashes of its own. It appears under its name when
    /// it is complete, and belongs to whom the old one belongs to, where we may give it away.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the old one is, [`ErrorKind::Usage`] when the changes contradict each other,
    /// [`ErrorKind::AlreadyExists`] when there is a file of that name.
    pub fn save(&self, path: &Path) -> Result<ImageSummary> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{} exists already", path.display()),
            ));
        }
        // A new seal must not cover old damage.
        self.image.verify_data(&mut |_, _| {})?;
        let mut manifest = self.manifest.clone();
        manifest.checkpoint.edited_from = self.image.id().to_string();
        let pending = PendingImage::create(path)?;
        let file = pending
            .file()
            .try_clone()
            .context(|| "copy the descriptor of the new image")?;
        let writer = ImageWriter::new(file, &self.image.header().architecture)?;
        let read = |offset: u64, buffer: &mut [u8]| {
            if offset < CHANGED {
                return self.image.read_data(offset, buffer);
            }
            let page = self.pages.get(&offset).filter(|page| page.len() == buffer.len());
            let page = page.ok_or_else(|| contradiction().with_hint(format!("there is no page {offset:#x}")))?;
            buffer.copy_from_slice(page);
            Ok(())
        };
        let (_, summary) = crate::merge::copy(manifest, &read, writer, &mut |_, _| {}).map_err(|error| {
            if error.kind() == ErrorKind::Internal {
                contradiction().with_source(error)
            } else {
                error
            }
        })?;
        let owner = self.image.file().metadata().context(|| "look at the old image")?;
        let mine = rustix::process::geteuid();
        let give = mine.is_root().then_some((owner.uid(), owner.gid()));
        pending.publish(give)?;
        Ok(summary)
    }
}

fn contradiction() -> Error {
    Error::new(ErrorKind::Usage, "the changed image would contradict itself")
}

fn outside(pid: i32, page: u64) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the memory of process {pid} at {page:#x} is that of a file, and not in the image"),
    )
}

/// Position in the image of the page that begins at `start`.
fn position(extents: &[Extent], start: u64) -> Option<u64> {
    let after = extents.partition_point(|extent| extent.start <= start);
    let extent = extents.get(after.checked_sub(1)?)?;
    let inside = start - extent.start;
    (inside < extent.length).then_some(extent.offset + inside)
}

/// One page of a range: its address, where in it the range begins, and which bytes of the buffer it has.
type Piece = (u64, usize, std::ops::Range<usize>);

/// The pages that `length` bytes at `address` lie in.
fn pieces(address: u64, length: usize) -> Result<Vec<Piece>> {
    let end = address.checked_add(length as u64);
    if end.is_none() {
        return Err(Error::new(ErrorKind::Usage, "the range has no end"));
    }
    let mut all = Vec::new();
    let mut done = 0;
    while done < length {
        let at = address + done as u64;
        let from = (at % PAGE) as usize;
        let now = (PAGE as usize - from).min(length - done);
        all.push((at - from as u64, from, done..done + now));
        done += now;
    }
    Ok(all)
}

/// Every path in the metadata that is looked up at restart.
fn paths(manifest: &mut Manifest) -> Vec<&mut ByteString> {
    let mut all = Vec::new();
    for process in &mut manifest.processes {
        all.push(&mut process.cwd);
        all.push(&mut process.root);
    }
    all.extend(manifest.mapped_files.iter_mut().map(|file| &mut file.path));
    for file in &mut manifest.files {
        match &mut file.object {
            Object::Regular(regular) => all.push(&mut regular.path),
            Object::Fifo(fifo) => all.push(&mut fifo.path),
            Object::Directory { path } | Object::Device { path, .. } => all.push(path),
            Object::Inotify { watches, .. } => all.extend(watches.iter_mut().map(|watch| &mut watch.path)),
            _ => {}
        }
    }
    for file in &mut manifest.saved_files {
        if let SavedFileKind::Deleted { path } | SavedFileKind::Backup { path } = &mut file.kind {
            all.push(path);
        }
    }
    all.extend(manifest.file_policies.iter_mut().map(|policy| &mut policy.path));
    for socket in &mut manifest.sockets {
        all.push(&mut socket.bind_directory);
        // Abstract names begin with a zero byte and are no paths.
        if socket.address.0.first() == Some(&b'/') {
            all.push(&mut socket.address);
        }
    }
    all
}
