//! Other jobs, processes and sessions

use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt;

use super::{copy_out, run_wide, string, usage};
use crate::command;

/// Does what the command cpr does, with its rights and its errors: `arguments` are those of the command, ended by NULL,
/// and --json is added. {"checkpoint", "--session", "4711", "--stop", "-o", "s.cpr", NULL} saves a session and ends it.
/// Gives the length of the result without the zero at the end, and writes at most `size` bytes of it, zero included,
/// like snprintf(3): a JSON object as docs/commands.md has it. The command is cpr on PATH, or what GRIDCPR_CPR names;
/// no shell takes part. Waits as long as the command takes.
///
/// # Safety
/// `arguments` is null, or an array of strings with zeros at their ends that is ended by a null pointer; `result` is
/// null, or has room for `size` bytes.
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
