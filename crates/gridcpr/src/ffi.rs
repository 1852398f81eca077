//! The C interface, `include/gridcpr.h`: pointers in, numbers out.
//!
//! The only file of this crate with `unsafe` code. What a pointer has to point at is written in the header; here it is
//! turned into a reference or slice at once. No panic leaves a function.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cpr_image::Image;
use cpr_image::edit::Edit;
use cpr_image::model::{Extent, MappingKind, Object, Process};
use cpr_types::{Error, ErrorKind, Result};

use crate::callbacks::{self, CallbackId, Context, Notice, Verdict};
use crate::checkpoint::{self, CheckpointOptions, Outcome};
use crate::{command, process, sections};

/// `gridcpr_notice`
#[repr(C)]
pub struct CNotice {
    size: u32,
    event: i32,
    failed: i32,
    restarts: u32,
    checkpoint: u64,
    reason: *const c_char,
}

/// `gridcpr_restart`
#[repr(C)]
pub struct CRestart {
    size: u32,
    times: u32,
    image: [u8; 40],
    job: [u8; 72],
}

/// `gridcpr_image_info`
#[repr(C)]
pub struct CInfo {
    size: u32,
    processes: u32,
    time_ns: u64,
    bytes: u64,
    initiator_uid: u32,
    owner_uid: u32,
    owner_gid: u32,
    root_pid: i32,
    id: [u8; 40],
    edited_from: [u8; 40],
    job: [u8; 72],
    architecture: [u8; 24],
    sysname: [u8; 65],
    nodename: [u8; 65],
    release: [u8; 65],
    version: [u8; 129],
    machine: [u8; 65],
}

/// `gridcpr_process`
#[repr(C)]
pub struct CProcess {
    pid: i32,
    ppid: i32,
    pgid: i32,
    sid: i32,
    threads: u32,
    descriptors: u32,
    regions: u32,
    uid: u32,
    name: [u8; 32],
    cwd: [u8; 4096],
}

/// `gridcpr_thread`
#[repr(C)]
pub struct CThread {
    tid: i32,
    reserved: u32,
    program_counter: u64,
    stack_pointer: u64,
    blocked_signals: u64,
    name: [u8; 32],
}

/// `gridcpr_region`
#[repr(C)]
pub struct CRegion {
    start: u64,
    end: u64,
    protection: u32,
    reserved: u32,
    saved: u64,
    kind: [u8; 24],
    path: [u8; 4096],
}

/// `gridcpr_file`
#[repr(C)]
pub struct CFile {
    fd: i32,
    flags: i32,
    position: u64,
    kind: [u8; 24],
    path: [u8; 4096],
}

type Callback = extern "C" fn(*const CNotice, *mut c_void) -> c_int;

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
    static CODE: Cell<c_int> = const { Cell::new(0) };
}

/// Keeps the error for `gridcpr_error` and gives its number.
fn fail(error: &Error) -> c_int {
    let mut text = error.chain();
    if let Some(hint) = error.hint() {
        text.push_str(" (");
        text.push_str(hint);
        text.push(')');
    }
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    ERROR.with(|slot| slot.replace(text));
    let code = -c_int::from(error.kind().exit_code());
    CODE.set(code);
    code
}

/// Runs a function of the interface that gives a number of 64 bits.
pub(crate) fn run_wide(work: impl FnOnce() -> Result<i64>) -> i64 {
    let mut number = 0;
    let failed = run(|| {
        number = work()?;
        Ok(0)
    });
    if failed < 0 { i64::from(failed) } else { number }
}

/// Runs a function of the interface.
pub(crate) fn run(work: impl FnOnce() -> Result<c_int>) -> c_int {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(number)) => number,
        Ok(Err(error)) => fail(&error),
        Err(_) => fail(&Error::new(ErrorKind::Internal, "the library panicked")),
    }
}

pub(crate) fn usage(what: &str) -> Error {
    Error::new(ErrorKind::Usage, what)
}

/// A string of the caller.
///
/// # Safety
/// `text` is null, or a string with a zero at its end that outlives the result.
unsafe fn string<'a>(text: *const c_char) -> Result<&'a CStr> {
    if text.is_null() {
        return Err(usage("a string is NULL"));
    }
    // SAFETY: the caller of this function vouches for it.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// # Safety
/// As [`string`].
pub(crate) unsafe fn utf8<'a>(text: *const c_char) -> Result<&'a str> {
    // SAFETY: as for this function.
    let text = unsafe { string(text) }?;
    text.to_str().map_err(|_| usage("a string is not UTF-8"))
}

/// # Safety
/// As [`string`].
pub(crate) unsafe fn path<'a>(text: *const c_char) -> Result<&'a Path> {
    // SAFETY: as for this function.
    Ok(Path::new(OsStr::from_bytes(unsafe { string(text) }?.to_bytes())))
}

/// # Safety
/// `image` is null, or came from `gridcpr_image_open` and was not closed, and nobody changes it meanwhile.
unsafe fn shown<'a>(image: *const Edit) -> Result<&'a Edit> {
    // SAFETY: the caller of this function vouches for it.
    unsafe { image.as_ref() }.ok_or_else(|| usage("the image is NULL"))
}

/// # Safety
/// As [`shown`], and nobody looks at it meanwhile.
unsafe fn changed<'a>(image: *mut Edit) -> Result<&'a mut Edit> {
    // SAFETY: the caller of this function vouches for it.
    unsafe { image.as_mut() }.ok_or_else(|| usage("the image is NULL"))
}

/// Writes `text` with a zero at its end, cut to what fits.
fn put(field: &mut [u8], text: &[u8]) {
    field.fill(0);
    let room = field.len().saturating_sub(1).min(text.len());
    field[..room].copy_from_slice(&text[..room]);
}

fn field<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    put(&mut field, text);
    field
}

/// Writes the first `count` of `all`; gives how many there are.
///
/// # Safety
/// `out` is null, or has room for `count` of them.
pub(crate) unsafe fn fill<T>(all: impl ExactSizeIterator<Item = T>, out: *mut T, count: usize) -> Result<c_int> {
    let total = all.len();
    if count > 0 && out.is_null() {
        return Err(usage("the array is NULL"));
    }
    for (index, item) in all.take(count).enumerate() {
        // SAFETY: `index` is less than `count`, for which the caller vouches; what was there is overwritten unread.
        unsafe { out.add(index).write(item) };
    }
    c_int::try_from(total).map_err(|_| usage("there are too many"))
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_error() -> *const c_char {
    ERROR.with(|slot| slot.borrow().as_ptr())
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_error_code() -> c_int {
    CODE.get()
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_init() -> c_int {
    run(|| process::start().map(|()| 0))
}

fn call(callback: Callback, data: usize, notice: &Notice) -> Verdict {
    let plain = CNotice {
        size: size_of::<CNotice>() as u32,
        event: notice.event as i32,
        failed: i32::from(notice.failed),
        restarts: notice.restarts,
        checkpoint: u64::from(notice.checkpoint),
        reason: notice.text.as_ptr(),
    };
    match callback(&plain, data as *mut c_void) {
        0 => Verdict::Ready,
        1 => Verdict::Later,
        _ => Verdict::Refuse,
    }
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_register(callback: Option<Callback>, data: *mut c_void, context: c_int) -> c_int {
    run(|| {
        let callback = callback.ok_or_else(|| usage("the callback is NULL"))?;
        let context = match context {
            0 => Context::Thread,
            1 => Context::Signal,
            _ => return Err(usage("there is no such context")),
        };
        // A number: what it means only the program knows.
        let data = data as usize;
        let id = callbacks::register(context, move |notice| call(callback, data, notice))?;
        Ok(id.0 as c_int)
    })
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_unregister(number: c_int) -> c_int {
    run(|| {
        let id = u32::try_from(number).map_err(|_| usage("there is no such callback"))?;
        callbacks::unregister(CallbackId(id)).map(|()| 0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// `reason` is null, or a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_explain(reason: *const c_char) {
    if !reason.is_null() {
        // SAFETY: the caller vouches for it. Nothing is allocated: this may be a signal handler.
        let reason = unsafe { CStr::from_ptr(reason) };
        callbacks::explain_bytes(reason.to_bytes());
    }
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_block() -> c_int {
    run(|| sections::block().map(|()| 0))
}

/// See `gridcpr.h`.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_unblock() -> c_int {
    run(|| sections::unblock().map(|()| 0))
}

/// See `gridcpr.h`.
///
/// # Safety
/// `image` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_checkpoint(flags: u32, image: *mut c_char, size: usize) -> c_int {
    run(|| {
        if flags & !1 != 0 {
            return Err(usage("there is no such flag"));
        }
        let options = CheckpointOptions {
            stop: flags & 1 != 0,
            ..CheckpointOptions::default()
        };
        match checkpoint::checkpoint(&options)? {
            Outcome::Continued { image: path } => {
                // SAFETY: the caller vouches for it.
                unsafe { copy_out(path.as_os_str().as_bytes(), image, size) };
                Ok(0)
            }
            Outcome::Restarted => Ok(1),
        }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// `arguments` is null, or an array of strings with zeros at their ends that is ended by a null pointer; `result` is null,
/// or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_command(arguments: *const *const c_char, result: *mut c_char, size: usize) -> i64 {
    run_wide(|| {
        if arguments.is_null() {
            return Err(usage("the array is NULL"));
        }
        let mut words = Vec::new();
        for index in 0.. {
            // SAFETY: the array goes on to its null pointer, for which the caller vouches, and it has not come yet.
            let word = unsafe { *arguments.add(index) };
            if word.is_null() {
                break;
            }
            // SAFETY: the caller vouches for it.
            words.push(OsStr::from_bytes(unsafe { string(word) }?.to_bytes()));
        }
        let text = command::command(&words)?;
        // SAFETY: the caller vouches for it.
        unsafe { copy_out(text.as_bytes(), result, size) };
        i64::try_from(text.len()).map_err(|_| usage("the result is too long"))
    })
}

/// Copies text with a zero at its end, cut to what fits.
///
/// # Safety
/// `out` is null, or has room for `size` bytes.
pub(crate) unsafe fn copy_out(text: &[u8], out: *mut c_char, size: usize) {
    if out.is_null() || size == 0 {
        return;
    }
    let length = text.len().min(size - 1);
    // SAFETY: `length` and the zero fit in `size` bytes; the two do not overlap, since `text` is ours.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, length);
        *out.add(length) = 0;
    }
}

/// See `gridcpr.h`.
///
/// # Safety
/// `restart` is null, or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_restarted(restart: *mut CRestart) -> c_int {
    run(|| {
        let found = checkpoint::restarted()?;
        if !restart.is_null() {
            let known = found.as_ref();
            let value = CRestart {
                size: size_of::<CRestart>() as u32,
                times: known.map_or(0, |r| r.times),
                image: field(known.map_or("", |r| &r.image).as_bytes()),
                job: field(known.map_or("", |r| &r.job).as_bytes()),
            };
            // SAFETY: the caller vouches for it.
            unsafe { restart.write(value) };
        }
        Ok(c_int::from(found.is_some()))
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// `name` is null, or a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_open(name: *const c_char) -> *mut Edit {
    let mut opened = std::ptr::null_mut();
    run(|| {
        // SAFETY: the caller vouches for it.
        let image = Image::open(unsafe { path(name) }?)?;
        opened = Box::into_raw(Box::new(Edit::new(image)?));
        Ok(0)
    });
    opened
}

/// See `gridcpr.h`.
///
/// # Safety
/// `image` is null, or came from `gridcpr_image_open` and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_close(image: *mut Edit) {
    if !image.is_null() {
        // SAFETY: it is the box that was made there, and nobody else has it.
        drop(unsafe { Box::from_raw(image) });
    }
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_verify(image: *const Edit) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        unsafe { shown(image) }?.image().verify_data(&mut |_, _| {})?;
        Ok(0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`]; `info` is null, or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_info_get(image: *const Edit, info: *mut CInfo) -> c_int {
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

fn find(edit: &Edit, pid: c_int) -> Result<&Process> {
    let found = edit.manifest().processes.iter().find(|p| p.pid == pid);
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the image has no process {pid}")))
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_processes(image: *const Edit, out: *mut CProcess, count: usize) -> c_int {
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
        unsafe { fill(all, out, count) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_threads(
    image: *const Edit,
    pid: c_int,
    out: *mut CThread,
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
        unsafe { fill(all, out, count) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_regions(
    image: *const Edit,
    pid: c_int,
    out: *mut CRegion,
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
        unsafe { fill(all, out, count) }
    })
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
        Object::TerminalSlave(_) => ("terminal-slave", b""),
        Object::TerminalMaster(_) => ("terminal-master", b""),
        Object::MessageQueue(_) => ("message-queue", b""),
        Object::Inherited { .. } => ("inherited", b""),
    }
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_files(image: *const Edit, pid: c_int, out: *mut CFile, count: usize) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let edit = unsafe { shown(image) }?;
        let files = &edit.manifest().files;
        let all = find(edit, pid)?.descriptors.iter().map(|d| {
            let file = files.get(d.file.index());
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
        unsafe { fill(all, out, count) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`string`]; `value` is null, or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_register(
    image: *const Edit,
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`]; `buffer` is null, or has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_read(
    image: *const Edit,
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`]; `buffer` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_json(image: *const Edit, buffer: *mut c_char, size: usize) -> i64 {
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`changed`]; `bytes` is null, or points at `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_write(
    image: *mut Edit,
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set_register(
    image: *mut Edit,
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set_environment(
    image: *mut Edit,
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

/// See `gridcpr.h`.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_replace_path(image: *mut Edit, from: *const c_char, to: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, from, to) = unsafe { (changed(image)?, path(from)?, path(to)?) };
        Ok(c_int::try_from(edit.replace_path(from, to)?).unwrap_or(c_int::MAX))
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`changed`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_set(image: *mut Edit, pointer: *const c_char, json: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, pointer, json) = unsafe { (changed(image)?, utf8(pointer)?, utf8(json)?) };
        let value = serde_json::from_str(json).map_err(|error| usage("the value is no JSON").with_source(error))?;
        edit.set(pointer, value).map(|()| 0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`shown`] and [`string`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_image_save(image: *const Edit, name: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (edit, name) = unsafe { (shown(image)?, path(name)?) };
        edit.save(name).map(|_| 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi_app::{CGeneration, COptions};

    /// The lines of `gridcpr.abi` for a structure.
    macro_rules! layout {
        ($lines:ident, $type:ident, $name:literal, $($field:ident)*) => {
            $lines.push(format!("struct {} {}", $name, size_of::<$type>()));
            $($lines.push(format!(
                "field {} {} {}", $name, stringify!($field), std::mem::offset_of!($type, $field)
            ));)*
        };
    }

    #[test]
    fn structures_are_as_committed() {
        let mut lines: Vec<String> = Vec::new();
        layout!(lines, CNotice, "gridcpr_notice", size event failed restarts checkpoint reason);
        layout!(lines, CRestart, "gridcpr_restart", size times image job);
        layout!(lines, CInfo, "gridcpr_image_info", size processes time_ns bytes initiator_uid owner_uid owner_gid root_pid id edited_from job architecture sysname nodename release version machine);
        layout!(lines, CProcess, "gridcpr_process", pid ppid pgid sid threads descriptors regions uid name cwd);
        layout!(lines, CThread, "gridcpr_thread", tid reserved program_counter stack_pointer blocked_signals name);
        layout!(lines, CRegion, "gridcpr_region", start end protection reserved saved kind path);
        layout!(lines, CFile, "gridcpr_file", fd flags position kind path);
        layout!(lines, COptions, "gridcpr_app_options", size rank ranks keep lifetime sequence session);
        layout!(lines, CGeneration, "gridcpr_app_generation", generation time_ns bytes lifetime state parts ranks needs);
        let committed = include_str!("../include/gridcpr.abi");
        let mut committed: Vec<&str> = committed
            .lines()
            .filter(|l| !l.starts_with(['#', 's']) || l.starts_with("struct"))
            .collect();
        lines.sort();
        committed.sort_unstable();
        assert_eq!(lines, committed);
    }

    extern "C" fn nothing(_: *const CNotice, _: *mut c_void) -> c_int {
        0
    }

    #[test]
    fn wrong_use_is_an_error() {
        const USAGE: c_int = -64;
        assert_eq!(gridcpr_register(None, std::ptr::null_mut(), 0), USAGE);
        assert_eq!(gridcpr_register(Some(nothing), std::ptr::null_mut(), 7), USAGE);
        assert_eq!(gridcpr_unregister(-1), USAGE);
        assert_eq!(gridcpr_unregister(4711), -66);
        assert_eq!(gridcpr_unblock(), USAGE);
        // SAFETY: null is among what these functions take.
        unsafe {
            gridcpr_explain(std::ptr::null());
            assert_eq!(gridcpr_checkpoint(2, std::ptr::null_mut(), 0), USAGE);
            assert!(gridcpr_image_open(std::ptr::null()).is_null());
            assert_eq!(gridcpr_image_save(std::ptr::null(), std::ptr::null()), USAGE);
            gridcpr_image_close(std::ptr::null_mut());
        }
        assert_eq!((gridcpr_block(), gridcpr_block()), (0, 0));
        assert_eq!((gridcpr_unblock(), gridcpr_unblock(), gridcpr_unblock()), (0, 0, USAGE));
        // SAFETY: the function gives a string with a zero at its end, valid until the next call.
        let text = unsafe { CStr::from_ptr(gridcpr_error()) };
        assert!(text.to_string_lossy().contains("no critical section"));
    }
}
