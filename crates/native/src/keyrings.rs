//! Keys that a process keeps to itself, in its process keyring and in those of its threads: keyctl(2).
//!
//! Only the process can ask for them, and who restarts it would have to give them to the kernel again, whose types of
//! keys are not all readable. So a process with such keys is refused by name. Keyrings of sessions and users are those
//! of whoever starts a job, and restarts it.

use std::time::Instant;

use cpr_kernel::batch::{Arg, Batch, CallId, Outcome};
use cpr_types::{Error, ErrorKind, Result};

use crate::freeze::Process;

// <linux/keyctl.h>
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEYCTL_DESCRIBE: i32 = 6;
const KEYCTL_READ: i32 = 11;
const KEY_SPEC_THREAD_KEYRING: i32 = -1;
const KEY_SPEC_PROCESS_KEYRING: i32 = -2;
/// Longest description of a key that is shown.
const DESCRIPTION: usize = 256;

/// The questions whether a thread has a keyring, and its process.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    thread: CallId,
    process: CallId,
}

/// Adds the questions to a batch. Nothing is created by them.
pub fn ask(batch: &mut Batch) -> Asked {
    let mut of = |which: i32| {
        let arguments = [KEYCTL_GET_KEYRING_ID.into(), which.into(), Arg::from(0)];
        batch.call(libc::SYS_keyctl, &arguments)
    };
    Asked {
        thread: of(KEY_SPEC_THREAD_KEYRING),
        process: of(KEY_SPEC_PROCESS_KEYRING),
    }
}

/// Refuses a stopped process whose threads, the first one first, have answered so, if one of the keyrings holds
/// anything.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the keyring and a key.
pub fn refuse(process: &mut Process, answers: &[(Asked, &Outcome)], deadline: Instant) -> Result<()> {
    for (index, (asked, outcome)) in answers.iter().enumerate() {
        // The keyring of the process is the same for all its threads.
        let process_wide = (index == 0).then_some((asked.process, "process"));
        for (call, kind) in [Some((asked.thread, "thread")), process_wide].into_iter().flatten() {
            if let Ok(ring) = outcome.result(call) {
                refuse_keys(process, index, ring as i32, kind, deadline)?;
            }
        }
    }
    Ok(())
}

fn refuse_keys(process: &mut Process, thread: usize, ring: i32, kind: &str, deadline: Instant) -> Result<()> {
    let mut batch = Batch::new();
    let (keys, keys_out) = batch.out(8);
    let read = batch.call(libc::SYS_keyctl, &[KEYCTL_READ.into(), ring.into(), keys, Arg::from(4)]);
    let outcome = process.run(thread, &batch, deadline)?;
    if outcome.result(read).is_ok_and(|bytes| bytes == 0) {
        return Ok(());
    }
    let mut batch = Batch::new();
    let (text, text_out) = batch.out(DESCRIPTION);
    let key = outcome.word32(keys_out, 0) as i32;
    let described = batch.call(
        libc::SYS_keyctl,
        &[KEYCTL_DESCRIBE.into(), key.into(), text, DESCRIPTION.into()],
    );
    let outcome = process.run(thread, &batch, deadline)?;
    let known = outcome.result(described).unwrap_or(0) as usize;
    let answer = outcome.output(text_out);
    let description = String::from_utf8_lossy(answer.get(..known).unwrap_or(answer)).into_owned();
    // Type, user, group, permissions and name.
    let name = match description.trim_end_matches('\0').split(';').collect::<Vec<_>>()[..] {
        [of_type, _, _, _, ref name @ ..] => format!("the {of_type} key {}", name.join(";")),
        _ => format!("key {key}"),
    };
    let (pid, tid) = (
        process.pid,
        process.threads.get(thread).map_or(0, |thread| thread.tracee.tid()),
    );
    let whose = match kind {
        "thread" => format!("process {pid}: the keyring of thread {tid}"),
        _ => format!("process {pid}: its process keyring"),
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("{whose} holds {name}, and keys are not saved"),
    )
    .with_hint(
        "keys of the session's or the user's keyring are no hindrance; a restart finds those of whoever asks for it",
    ))
}
