//! The C interface, `include/gridcpr.h`: pointers in, numbers out.
//!
//! `tests/header.rs` makes the header from the files here: first lines are its headings, descriptions its comments, but
//! for what they say under Safety. The only files of this crate with `unsafe` code: what a pointer has to point at is
//! written in the header, and turned into a reference or slice at once. No panic leaves a function.
#![allow(unsafe_code)]

mod app;
mod callbacks;
mod checkpoints;
mod commands;
mod errors;
mod images;
mod protected;
mod sections;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cpr_types::{Error, ErrorKind, Result};

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
    let code = errors::code(error.kind());
    CODE.set(code);
    code
}

/// Runs a function of the interface that gives a number of 64 bits.
fn run_wide(work: impl FnOnce() -> Result<i64>) -> i64 {
    let mut number = 0;
    let failed = run(|| {
        number = work()?;
        Ok(0)
    });
    if failed < 0 { i64::from(failed) } else { number }
}

/// Runs a function of the interface.
fn run(work: impl FnOnce() -> Result<c_int>) -> c_int {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(number)) => number,
        Ok(Err(error)) => fail(&error),
        Err(_) => fail(&Error::new(ErrorKind::Internal, "the library panicked")),
    }
}

fn usage(what: &str) -> Error {
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
unsafe fn utf8<'a>(text: *const c_char) -> Result<&'a str> {
    // SAFETY: as for this function.
    let text = unsafe { string(text) }?;
    text.to_str().map_err(|_| usage("a string is not UTF-8"))
}

/// # Safety
/// As [`string`].
unsafe fn file<'a>(text: *const c_char) -> Result<&'a Path> {
    // SAFETY: as for this function.
    Ok(Path::new(OsStr::from_bytes(unsafe { string(text) }?.to_bytes())))
}

/// `text` with a zero at its end, cut to what fits.
fn field<const N: usize>(text: &[u8]) -> [c_char; N] {
    let mut field = [0; N];
    let room = field.iter_mut().take(N.saturating_sub(1));
    for (place, byte) in room.zip(text) {
        *place = *byte as c_char;
    }
    field
}

/// Writes the first `count` of `all`; gives how many there are.
///
/// # Safety
/// `out` is null, or has room for `count` of them.
unsafe fn fill<T>(all: impl ExactSizeIterator<Item = T>, out: *mut T, count: usize) -> Result<c_int> {
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

/// Copies text with a zero at its end, cut to what fits.
///
/// # Safety
/// `out` is null, or has room for `size` bytes.
unsafe fn copy_out(text: &[u8], out: *mut c_char, size: usize) {
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

#[cfg(test)]
mod tests {
    use std::ffi::c_void;

    use super::app::{CGeneration, COptions};
    use super::callbacks::{CNotice, gridcpr_explain, gridcpr_register, gridcpr_unregister};
    use super::checkpoints::{CRestart, gridcpr_checkpoint};
    use super::errors::gridcpr_error;
    use super::images::*;
    use super::sections::{gridcpr_block, gridcpr_unblock};
    use super::*;

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
        let committed = include_str!("../../include/gridcpr.abi");
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
    fn errors_have_the_numbers_of_exit_codes() {
        for kind in ErrorKind::ALL {
            assert_eq!(errors::code(kind), -c_int::from(kind.exit_code()), "{kind:?}");
        }
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
