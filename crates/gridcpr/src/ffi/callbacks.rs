//! Callbacks

use std::ffi::{CStr, c_char, c_int, c_void};

use super::{run, usage};
use crate::callbacks::{self, CallbackId, Context, Event, Notice, Verdict};

/// A checkpoint is about to be taken; the callback can refuse it.
pub const GRIDCPR_BEFORE: c_int = 1;
/// The program goes on after a checkpoint, or after one that failed.
pub const GRIDCPR_CONTINUE: c_int = 2;
/// The program goes on from an image.
pub const GRIDCPR_RESTART: c_int = 3;
/// Something has happened: `reason` says what (cpr notify). Nothing else changes.
pub const GRIDCPR_TOLD: c_int = 4;
/// What a callback returns with GRIDCPR_BEFORE: the checkpoint can be taken.
pub const GRIDCPR_READY: c_int = 0;
/// Not now: the checkpoint fails as busy.
pub const GRIDCPR_LATER: c_int = 1;
/// It must not be taken. Other values mean the same.
// Whatever is none of the others is taken for it.
#[allow(dead_code)]
pub const GRIDCPR_REFUSE: c_int = 2;
/// The callback runs in a thread of the library, with signals blocked.
pub const GRIDCPR_THREAD: c_int = 0;
/// It runs in a signal handler of the calling thread: it can do what signal handlers can.
pub const GRIDCPR_SIGNAL: c_int = 1;

/// What a callback is told. `size` tells which fields are there: more may come at the end.
#[repr(C)]
pub struct CNotice {
    /// sizeof(gridcpr_notice) of the library.
    pub size: u32,
    /// What happens: GRIDCPR_BEFORE to GRIDCPR_TOLD.
    pub event: i32,
    /// With GRIDCPR_CONTINUE: there is no checkpoint after all.
    pub failed: i32,
    /// How often the program was restarted.
    pub restarts: u32,
    /// Number of the checkpoint, the same before and after it; the numbers grow.
    pub checkpoint: u64,
    /// With GRIDCPR_TOLD: what has happened (255 bytes at most); else empty. Gone after.
    pub reason: *const c_char,
}

/// A callback. `data` is what it was registered with; what it returns is looked at with GRIDCPR_BEFORE only.
pub type CCallback = Option<extern "C" fn(notice: *const CNotice, data: *mut c_void) -> c_int>;

fn call(callback: extern "C" fn(*const CNotice, *mut c_void) -> c_int, data: usize, notice: &Notice) -> Verdict {
    let plain = CNotice {
        size: size_of::<CNotice>() as u32,
        event: match notice.event {
            Event::Before => GRIDCPR_BEFORE,
            Event::Continue => GRIDCPR_CONTINUE,
            Event::Restart => GRIDCPR_RESTART,
            Event::Told => GRIDCPR_TOLD,
        },
        failed: i32::from(notice.failed),
        restarts: notice.restarts,
        checkpoint: u64::from(notice.checkpoint),
        reason: notice.text.as_ptr(),
    };
    match callback(&plain, data as *mut c_void) {
        GRIDCPR_READY => Verdict::Ready,
        GRIDCPR_LATER => Verdict::Later,
        _ => Verdict::Refuse,
    }
}

/// Registers a callback and gives its number, 1 or more. Before a checkpoint callbacks run in the opposite order of
/// their registration, those with GRIDCPR_THREAD first; afterwards the other way round.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_register(callback: CCallback, data: *mut c_void, context: c_int) -> c_int {
    run(|| {
        let callback = callback.ok_or_else(|| usage("the callback is NULL"))?;
        let context = match context {
            GRIDCPR_THREAD => Context::Thread,
            GRIDCPR_SIGNAL => Context::Signal,
            _ => return Err(usage("there is no such context")),
        };
        // A number: what it means only the program knows.
        let data = data as usize;
        let id = callbacks::register(context, move |notice| call(callback, data, notice))?;
        Ok(id.0 as c_int)
    })
}

/// Removes it; one that runs now runs to its end.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_unregister(number: c_int) -> c_int {
    run(|| {
        let id = u32::try_from(number).map_err(|_| usage("there is no such callback"))?;
        callbacks::unregister(CallbackId(id)).map(|()| 0)
    })
}

/// In a callback that refuses: why. Can be used in signal handlers. Cut to 255 bytes.
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
