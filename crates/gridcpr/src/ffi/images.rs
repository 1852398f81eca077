//! Images

use std::ffi::{c_char, c_int, c_void};

use cpr_image::Image;
use cpr_image::edit::Edit;
use cpr_image::model::{Extent, MappingKind, Object, Process};
use cpr_types::{Error, ErrorKind, Result};

use super::{copy_out, field, file, fill, run, usage, utf8};

/// An opened image, with the changes made to it so far.
pub struct CImage(Edit);

/// # Safety
/// `image` is null, or came from `gridcpr_image_open` and was not closed, and nobody changes it meanwhile.
unsafe fn shown<'a>(image: *const CImage) -> Result<&'a Edit> {
    // SAFETY: the caller of this function vouches for it.
    unsafe { image.as_ref() }
        .map(|image| &image.0)
        .ok_or_else(|| usage("the image is NULL"))
}

/// # Safety
/// As [`shown`], and nobody looks at it meanwhile.
unsafe fn changed<'a>(image: *mut CImage) -> Result<&'a mut Edit> {
    // SAFETY: the caller of this function vouches for it.
    unsafe { image.as_mut() }
        .map(|image| &mut image.0)
        .ok_or_else(|| usage("the image is NULL"))
}

/// What an image says of itself.
#[repr(C)]
pub struct CInfo {
    /// sizeof(gridcpr_image_info) of the library.
    pub size: u32,
    /// How many processes it has.
    pub processes: u32,
    /// When the job was stopped: nanoseconds since the epoch.
    pub time_ns: u64,
    /// Length of the image.
    pub bytes: u64,
    /// Who asked for the checkpoint.
    pub initiator_uid: u32,
    /// Whom the processes belonged to.
    pub owner_uid: u32,
    /// Their group.
    pub owner_gid: u32,
    /// The process above all others.
    pub root_pid: i32,
    /// Identifier of the image.
    pub id: [c_char; 40],
    /// Identifier of the image it was made from by editing, or empty.
    pub edited_from: [c_char; 40],
    /// Name of the job, or empty.
    pub job: [c_char; 72],
    /// Of the processor: x86_64.
    pub architecture: [c_char; 24],
    /// From uname(2), as the four that follow: name of the system.
    pub sysname: [c_char; 65],
    /// Name of the host.
    pub nodename: [c_char; 65],
    /// Release of the kernel.
    pub release: [c_char; 65],
    /// Version of the kernel.
    pub version: [c_char; 129],
    /// Kind of the machine.
    pub machine: [c_char; 65],
}

/// A process in an image.
#[repr(C)]
pub struct CProcess {
    /// Process ID.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// How many threads it has; 0 for a zombie.
    pub threads: u32,
    /// How many open descriptors.
    pub descriptors: u32,
    /// How many mappings.
    pub regions: u32,
    /// Real user ID, or UINT32_MAX for a zombie.
    pub uid: u32,
    /// Its name.
    pub name: [c_char; 32],
    /// Its working directory.
    pub cwd: [c_char; 4096],
}

/// A thread in an image.
#[repr(C)]
pub struct CThread {
    /// Thread ID.
    pub tid: i32,
    /// Nothing.
    pub reserved: u32,
    /// Where it was.
    pub program_counter: u64,
    /// Where its stack was.
    pub stack_pointer: u64,
    /// Signal mask; bit 0 is signal 1.
    pub blocked_signals: u64,
    /// Its name.
    pub name: [c_char; 32],
}

/// A mapping of a process in an image.
#[repr(C)]
pub struct CRegion {
    /// First address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub protection: u32,
    /// Nothing.
    pub reserved: u32,
    /// Bytes of it in the image.
    pub saved: u64,
    /// What it is, such as anonymous, file or stack.
    pub kind: [c_char; 24],
    /// The file that is mapped, or empty.
    pub path: [c_char; 4096],
}

/// A descriptor of a process in an image.
#[repr(C)]
pub struct CFile {
    /// Its number.
    pub fd: i32,
    /// How it was opened: O_*.
    pub flags: i32,
    /// Where the next read or write would be.
    pub position: u64,
    /// What it is, such as regular, pipe or socket.
    pub kind: [c_char; 24],
    /// Its path, or empty.
    pub path: [c_char; 4096],
}

fn find(edit: &Edit, pid: c_int) -> Result<&Process> {
    let found = edit.manifest().processes.iter().find(|p| p.pid == pid);
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the image has no process {pid}")))
}

/// Kind and path of an open object.
fn describe(object: &Object) -> (&'static str, &[u8]) {
    match object {
        Object::Regular(file) => ("regular", &file.path.0),
        Object::Directory { path } => ("directory", &path.0),
        Object::Fifo(fifo) => ("fifo", &fifo.path.0),
        Object::Device { path, .. } => ("device", &path.0),
        Object::Proc { path, .. } | Object::DeadProc { path, .. } => ("proc", &path.0),
        Object::Saved(_) => ("saved", b""),
        Object::Pipe(_) => ("pipe", b""),
        Object::EventFd { .. } => ("event-fd", b""),
        Object::TimerFd { .. } => ("timer-fd", b""),
        Object::SignalFd { .. } => ("signal-fd", b""),
        Object::Epoll { .. } => ("epoll", b""),
        Object::Inotify { .. } => ("inotify", b""),
        Object::PidFd { .. } => ("pid-fd", b""),
        Object::DeadPidFd { .. } => ("dead-pid-fd", b""),
        Object::Socket(_) => ("socket", b""),
        Object::InetSocket(_) => ("inet-socket", b""),
        Object::NetlinkSocket(_) => ("netlink-socket", b""),
        Object::PacketSocket(_) => ("packet-socket", b""),
        Object::Fanotify(_) => ("fanotify", b""),
        Object::IoUring(_) => ("io-uring", b""),
        Object::TerminalSlave(_) => ("terminal-slave", b""),
        Object::TerminalMaster(_) => ("terminal-master", b""),
        Object::MessageQueue(_) => ("message-queue", b""),
        Object::Inherited { .. } => ("inherited", b""),
    }
}

/// Opens an image; NULL on failure. To be used by one thread at a time.
///
/// # Safety
/// `path` is null, or a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_open(path: *const c_char) -> *mut CImage {
    let mut opened = std::ptr::null_mut();
    run(|| {
        // SAFETY: the caller vouches for it.
        let image = Image::open(unsafe { file(path) }?)?;
        opened = Box::into_raw(Box::new(CImage(Edit::new(image)?)));
        Ok(0)
    });
    opened
}

/// Closes an image, and forgets its changes; NULL does nothing.
///
/// # Safety
/// `image` is null, or came from `gridcpr_image_open` and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_close(image: *mut CImage) {
    if !image.is_null() {
        // SAFETY: it is the box that was made there, and nobody else has it.
        drop(unsafe { Box::from_raw(image) });
    }
}

/// Compares every hash in it.
///
/// # Safety
/// As [`shown`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_verify(image: *const CImage) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        unsafe { shown(image) }?.image().verify_data(&mut |_, _| {})?;
        Ok(0)
    })
}

/// Fills in what an image says of itself.
///
/// # Safety
/// As [`shown`]; `info` is null, or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_info_get(image: *const CImage, info: *mut CInfo) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        if info.is_null() {
            return Err(usage("the structure is NULL"));
        }
        let c = &edit.manifest().checkpoint;
        let value = CInfo {
            size: size_of::<CInfo>() as u32,
            processes: edit.manifest().processes.len() as u32,
            time_ns: c.time_ns,
            bytes: edit.image().length(),
            initiator_uid: c.initiator_uid,
            owner_uid: c.owner_uid,
            owner_gid: c.owner_gid,
            root_pid: c.root_pid,
            id: field(edit.image().id().to_string().as_bytes()),
            edited_from: field(c.edited_from.as_bytes()),
            job: field(c.job.as_bytes()),
            architecture: field(c.architecture.as_bytes()),
            sysname: field(c.uname.sysname.as_bytes()),
            nodename: field(c.uname.nodename.as_bytes()),
            release: field(c.uname.release.as_bytes()),
            version: field(c.uname.version.as_bytes()),
            machine: field(c.uname.machine.as_bytes()),
        };
        // SAFETY: the caller vouches for it.
        unsafe { info.write(value) };
        Ok(0)
    })
}

/// Writes the first `count` processes to `processes`, and gives how many there are.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_processes(
    image: *const CImage,
    processes: *mut CProcess,
    count: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        let spaces = &edit.manifest().address_spaces;
        let all = edit.manifest().processes.iter().map(|p| {
            let leader = p.threads.first();
            let space = p.address_space.and_then(|id| spaces.get(id.index()));
            CProcess {
                pid: p.pid,
                ppid: p.ppid,
                pgid: p.pgid,
                sid: p.sid,
                threads: p.threads.len() as u32,
                descriptors: p.descriptors.len() as u32,
                regions: space.map_or(0, |s| s.mappings.len() as u32),
                uid: leader.map_or(u32::MAX, |t| t.credentials.uids[0]),
                name: field(leader.map_or(&[], |t| &t.name.0)),
                cwd: field(&p.cwd.0),
            }
        });
        // SAFETY: the caller vouches for it.
        unsafe { fill(all, processes, count) }
    })
}

/// The same for the threads of a process.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_threads(
    image: *const CImage,
    pid: c_int,
    threads: *mut CThread,
    count: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let process = find(unsafe { shown(image) }?, pid)?;
        let all = process.threads.iter().map(|t| CThread {
            tid: t.tid,
            reserved: 0,
            program_counter: t.cpu.program_counter,
            stack_pointer: t.cpu.stack_pointer,
            blocked_signals: t.blocked_signals,
            name: field(&t.name.0),
        });
        // SAFETY: the caller vouches for it.
        unsafe { fill(all, threads, count) }
    })
}

/// The same for its mappings.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_regions(
    image: *const CImage,
    pid: c_int,
    regions: *mut CRegion,
    count: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        let manifest = edit.manifest();
        let id = find(edit, pid)?.address_space;
        let space = id.and_then(|id| manifest.address_spaces.get(id.index()));
        let mappings = space.map_or(&[][..], |space| &space.mappings);
        let all = mappings.iter().map(|m| {
            let (kind, file) = match m.kind {
                MappingKind::Anonymous => ("anonymous", None),
                MappingKind::Stack => ("stack", None),
                MappingKind::Vdso => ("vdso", None),
                MappingKind::Vvar => ("vvar", None),
                MappingKind::VvarClock => ("vvar-clock", None),
                MappingKind::PrivateFile(file) => ("private-file", Some(file)),
                MappingKind::SharedFile(file) => ("shared-file", Some(file)),
                MappingKind::SharedSaved(_) => ("shared-saved", None),
                MappingKind::PrivateSaved(_) => ("private-saved", None),
                MappingKind::SysvSegment(_) => ("sysv-segment", None),
                MappingKind::HugePages(_) => ("huge-pages", None),
                MappingKind::AioRing => ("aio-ring", None),
                MappingKind::IoUring(_) => ("io-uring", None),
                MappingKind::SharedSocket(_) => ("shared-socket", None),
                MappingKind::PrivateSocket(_) => ("private-socket", None),
            };
            let path = file.and_then(|file| manifest.mapped_files.get(file.index()));
            CRegion {
                start: m.start,
                end: m.end,
                protection: m.protection,
                reserved: 0,
                saved: m.extents.iter().map(|extent: &Extent| extent.length).sum(),
                kind: field(kind.as_bytes()),
                path: field(path.map_or(&[], |file| &file.path.0)),
            }
        });
        // SAFETY: the caller vouches for it.
        unsafe { fill(all, regions, count) }
    })
}

/// The same for its descriptors.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_files(
    image: *const CImage,
    pid: c_int,
    files: *mut CFile,
    count: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        let open = &edit.manifest().files;
        let all = find(edit, pid)?.descriptors.iter().map(|d| {
            let file = open.get(d.file.index());
            let (kind, path) = file.map_or(("", &b""[..]), |file| describe(&file.object));
            CFile {
                fd: d.fd,
                flags: file.map_or(0, |file| file.flags),
                position: file.map_or(0, |file| file.position),
                kind: field(kind.as_bytes()),
                path: field(path),
            }
        });
        // SAFETY: the caller vouches for it.
        unsafe { fill(all, files, count) }
    })
}

/// A general register, by its name in lower case ("rip").
///
/// # Safety
/// As [`shown`] and [`string`]; `value` is null, or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_register(
    image: *const CImage,
    pid: c_int,
    tid: c_int,
    name: *const c_char,
    value: *mut u64,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, name) = unsafe { (shown(image)?, utf8(name)?) };
        let found = edit.register(pid, tid, name)?;
        if value.is_null() {
            return Err(usage("the place for the value is NULL"));
        }
        // SAFETY: the caller vouches for it.
        unsafe { value.write(found) };
        Ok(0)
    })
}

/// Memory of a process.
///
/// # Safety
/// As [`shown`]; `buffer` is null, or has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_read(
    image: *const CImage,
    pid: c_int,
    address: u64,
    buffer: *mut c_void,
    length: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        if buffer.is_null() || length > isize::MAX as usize {
            return Err(usage("the buffer is NULL or too long"));
        }
        // SAFETY: the caller vouches for the room; it is made of bytes with a value first, as a slice must be.
        let buffer = unsafe {
            std::ptr::write_bytes(buffer.cast::<u8>(), 0, length);
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
        };
        edit.read_memory(pid, address, buffer).map(|()| 0)
    })
}

/// Everything that the image says, as JSON: every object in it. Gives the length without the zero at the end, and
/// writes at most `size` bytes, zero included, like snprintf(3).
///
/// # Safety
/// As [`shown`]; `buffer` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_json(image: *const CImage, buffer: *mut c_char, size: usize) -> i64 {
    let mut length = 0;
    let result = run(|| {
        // SAFETY: the caller vouches for it.
        let text = unsafe { shown(image) }?.to_json()?.to_string();
        length = text.len() as i64;
        // SAFETY: the caller vouches for it.
        unsafe { copy_out(text.as_bytes(), buffer, size) };
        Ok(0)
    });
    if result < 0 { i64::from(result) } else { length }
}

/// Writes memory of a process. This and the functions that follow change the opened image, which shows it at once; no
/// file has it before gridcpr_image_save().
///
/// # Safety
/// As [`changed`]; `bytes` is null, or points at `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_write(
    image: *mut CImage,
    pid: c_int,
    address: u64,
    bytes: *const c_void,
    length: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { changed(image) }?;
        if bytes.is_null() || length > isize::MAX as usize {
            return Err(usage("the bytes are NULL or too many"));
        }
        // SAFETY: the caller vouches for it.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
        edit.write_memory(pid, address, bytes).map(|()| 0)
    })
}

/// Sets a general register.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set_register(
    image: *mut CImage,
    pid: c_int,
    tid: c_int,
    name: *const c_char,
    value: u64,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, name) = unsafe { (changed(image)?, utf8(name)?) };
        edit.set_register(pid, tid, name, value).map(|()| 0)
    })
}

/// Of the environment the program was started with, in place: the new value must not be longer than the old one.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set_environment(
    image: *mut CImage,
    pid: c_int,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, name, value) = unsafe { (changed(image)?, utf8(name)?, utf8(value)?) };
        edit.set_environment(pid, name, value).map(|()| 0)
    })
}

/// Every path that is `from` or below it. Gives how many.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_replace_path(
    image: *mut CImage,
    from: *const c_char,
    to: *const c_char,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, from, to) = unsafe { (changed(image)?, file(from)?, file(to)?) };
        Ok(c_int::try_from(edit.replace_path(from, to)?).unwrap_or(c_int::MAX))
    })
}

/// Any field, by a JSON pointer (RFC 6901) into what gridcpr_image_json() gives.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set(image: *mut CImage, pointer: *const c_char, json: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, pointer, json) = unsafe { (changed(image)?, utf8(pointer)?, utf8(json)?) };
        let value = serde_json::from_str(json).map_err(|error| usage("the value is no JSON").with_source(error))?;
        edit.set(pointer, value).map(|()| 0)
    })
}

/// Writes a new image with an identifier of its own. An existing file is not replaced.
///
/// # Safety
/// As [`shown`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_save(image: *const CImage, path: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, path) = unsafe { (shown(image)?, file(path)?) };
        edit.save(path).map(|_| 0)
    })
}
