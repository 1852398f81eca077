//! Two things done at the same time, where they need nothing of each other.
//!
//! What is asked of /proc takes no tracer: another thread can ask while the tracer has the job make system calls.

use cpr_types::{Error, ErrorKind, Result};

/// Runs `other` in a thread of its own while the calling one runs `own`, where that is worth a thread; else, and where
/// there is none to be had, one after the other.
///
/// # Errors
/// `other` has panicked.
pub fn beside<A: Send, B>(is_worth: bool, other: impl Fn() -> A + Sync, own: impl FnOnce() -> B) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cpr-look".to_owned());
        let running = is_worth.then(|| thread.spawn_scoped(scope, &other).ok()).flatten();
        let Some(running) = running else {
            let first = other();
            return Ok((first, own()));
        };
        let mine = own();
        match running.join() {
            Ok(theirs) => Ok((theirs, mine)),
            Err(_) => Err(Error::new(
                ErrorKind::Internal,
                "a thread that looks at the job panicked",
            )),
        }
    })
}
