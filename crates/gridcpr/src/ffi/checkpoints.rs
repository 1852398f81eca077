//! Checkpoints of the program's own job

use std::ffi::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use super::{copy_out, field, run, run_wide, usage, utf8};
use crate::checkpoint::{self, CheckpointOptions, Outcome};
use crate::policies;

/// The program that asked goes on.
pub const GRIDCPR_CONTINUED: c_int = 0;
/// This is a program restarted from the image.
pub const GRIDCPR_RESTARTED: c_int = 1;
/// End the job with the checkpoint; it goes on when it is restarted.
pub const GRIDCPR_STOP: u32 = 1;

/// Checkpoints the job that the program runs in (cpr run), and returns GRIDCPR_CONTINUED in the program that asked, and
/// GRIDCPR_RESTARTED in one restarted from the image. The path of the image is written to `image` where it is not NULL,
/// cut to `size` bytes.
///
/// # Safety
/// `image` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_checkpoint(flags: u32, image: *mut c_char, size: usize) -> c_int {
    run(|| {
        if flags & !GRIDCPR_STOP != 0 {
            return Err(usage("there is no such flag"));
        }
        let options = CheckpointOptions {
            stop: flags & GRIDCPR_STOP != 0,
            ..CheckpointOptions::default()
        };
        match checkpoint::checkpoint(&options)? {
            Outcome::Continued { image: path } => {
                // SAFETY: the caller vouches for it.
                unsafe { copy_out(path.as_os_str().as_bytes(), image, size) };
                Ok(GRIDCPR_CONTINUED)
            }
            Outcome::Restarted => Ok(GRIDCPR_RESTARTED),
        }
    })
}

/// What is known of the newest restart. Names are cut to what fits, with a zero at their end.
#[repr(C)]
pub struct CRestart {
    /// sizeof(gridcpr_restart) of the library.
    pub size: u32,
    /// How often the program was restarted.
    pub times: u32,
    /// Identifier of the image.
    pub image: [c_char; 40],
    /// Name of the job.
    pub job: [c_char; 72],
}

/// Says how checkpoints of the job that the program runs in treat files, from the next one on and whoever asks for
/// them, as cpr run --file PATTERN=POLICY does: "check", "nocheck", "truncate", "nottruncate", "append",
/// "backup-restore", "backup-anonymous", or several with commas between them. A pattern that does not begin with a
/// slash is taken below the working directory. It stays with the job, and not with an image that is restarted as
/// another one.
///
/// # Safety
/// Both are null, or strings with zeros at their ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_file_policy(pattern: *const c_char, policy: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (pattern, policy) = unsafe { (utf8(pattern)?, utf8(policy)?) };
        policies::file_policy(pattern, policy).map(|()| 0)
    })
}

/// In a program that was restarted: the number of the checkpoint that it goes on from, as callbacks were told around it
/// (`checkpoint` of gridcpr_notice); else 0. The first checkpoint of a program is 1, and the numbers grow across
/// restarts.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_generation() -> i64 {
    run_wide(|| Ok(checkpoint::restarted()?.map_or(0, |restart| i64::from(restart.generation))))
}

/// 1 in a program that was restarted, else 0. `restart` may be NULL.
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
