//! Errors

use std::ffi::{c_char, c_int};

use cpr_types::ErrorKind;

use super::{CODE, ERROR, run};
use crate::process;

/// The call makes no sense: an argument is NULL, unknown or out of bounds.
pub const GRIDCPR_E_USAGE: c_int = -64;
/// Bytes of an image or checkpoint are altered or missing.
pub const GRIDCPR_E_DAMAGED: c_int = -65;
/// What is named is not there.
pub const GRIDCPR_E_NOT_FOUND: c_int = -66;
/// It is there already, and is not replaced.
pub const GRIDCPR_E_ALREADY_EXISTS: c_int = -67;
/// It has ended meanwhile.
pub const GRIDCPR_E_GONE: c_int = -68;
/// That cannot be saved or restored.
pub const GRIDCPR_E_UNSUPPORTED: c_int = -69;
/// A fault of the library.
pub const GRIDCPR_E_INTERNAL: c_int = -70;
/// Something that is needed belongs to somebody else now, such as a PID.
pub const GRIDCPR_E_IN_USE: c_int = -71;
/// The disk or the memory is full.
pub const GRIDCPR_E_NO_SPACE: c_int = -73;
/// A disk or another device fails.
pub const GRIDCPR_E_IO: c_int = -74;
/// Not now: something else is under way.
pub const GRIDCPR_E_BUSY: c_int = -75;
/// It has taken too long.
pub const GRIDCPR_E_TIMED_OUT: c_int = -76;
/// The caller lacks the right.
pub const GRIDCPR_E_DENIED: c_int = -77;
/// It belongs to another machine, version, type or shape.
pub const GRIDCPR_E_INCOMPATIBLE: c_int = -78;
/// Whoever asked for it has given up.
pub const GRIDCPR_E_CANCELLED: c_int = -80;

/// The number of an error.
pub(super) fn code(kind: ErrorKind) -> c_int {
    match kind {
        ErrorKind::Usage => GRIDCPR_E_USAGE,
        ErrorKind::Damaged => GRIDCPR_E_DAMAGED,
        ErrorKind::NotFound => GRIDCPR_E_NOT_FOUND,
        ErrorKind::AlreadyExists => GRIDCPR_E_ALREADY_EXISTS,
        ErrorKind::Gone => GRIDCPR_E_GONE,
        ErrorKind::Unsupported => GRIDCPR_E_UNSUPPORTED,
        ErrorKind::Internal => GRIDCPR_E_INTERNAL,
        ErrorKind::InUse => GRIDCPR_E_IN_USE,
        ErrorKind::NoSpace => GRIDCPR_E_NO_SPACE,
        ErrorKind::Io => GRIDCPR_E_IO,
        ErrorKind::Busy => GRIDCPR_E_BUSY,
        ErrorKind::TimedOut => GRIDCPR_E_TIMED_OUT,
        ErrorKind::Denied => GRIDCPR_E_DENIED,
        ErrorKind::Incompatible => GRIDCPR_E_INCOMPATIBLE,
        ErrorKind::Cancelled => GRIDCPR_E_CANCELLED,
    }
}

/// Why the last function that failed in this thread did; never NULL. Valid until the next call in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_error() -> *const c_char {
    ERROR.with(|slot| slot.borrow().as_ptr())
}

/// Its number, GRIDCPR_E_*; for functions that give NULL. 0 where none has failed yet.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_error_code() -> c_int {
    CODE.get()
}

/// Version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Starts the library: one page of memory and one sleeping thread. Every other function does so too. A program that
/// calls none before its first checkpoint cannot be told of a restart.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_init() -> c_int {
    run(|| process::start().map(|()| 0))
}
