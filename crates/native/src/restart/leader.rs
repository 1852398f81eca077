//! Main threads that have ended before their process.
//!
//! Somebody has to be there for the number of the process to be taken, and to make the other threads: a thread that does
//! all that is to be done in the process, and ends when nothing is left, before any other runs. Like the one that was
//! saved it then waits, as a zombie, for the last thread to end (exit_notify in kernel/exit.c).

use cpr_image::model::{Manifest, Process, Seccomp, Thread};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::ptrace::SeizeOptions;
use cpr_kernel::remote;
use cpr_types::{Context, Result};

use super::filters::When;
use super::identity::{self, Rights};
use super::stub::Workshop;

/// Whether the thread has filters that are suspended: those that all threads share.
fn is_filtered(process: &Process, filters: When) -> bool {
    filters == When::Now && process.threads.iter().any(|thread| thread.seccomp != Seccomp::Off)
}

/// Whether the thread that makes the children of a process is to end: the kernel sends them the signals of
/// prctl(PR_SET_PDEATHSIG) then.
pub(super) fn is_to_end(manifest: &Manifest, parent: i32) -> bool {
    let mut processes = manifest.processes.iter();
    processes.any(|process| process.pid == parent && process.ended_leader.is_some())
}

/// Makes of the first thread what others see of one that has ended: its name and its credentials.
pub(super) fn rebuild(workshop: &Workshop, process: &Process, rights: Rights, filters: When) -> Result<()> {
    let Some(ended) = &process.ended_leader else {
        return Ok(());
    };
    let pid = process.pid;
    let what = || format!("restore the main thread of process {pid}, which has ended");
    if is_filtered(process, filters) {
        let options = SeizeOptions {
            kill_on_exit: true,
            follow: false,
        };
        workshop.stub(pid)?.tracee.suspend_seccomp(options).context(what)?;
    }
    let mut batch = Batch::new();
    let mut name = ended.name.0.clone();
    name.truncate(15);
    let name = batch.string(&name);
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name]);
    // Nothing of the program's memory may be written to at its end.
    batch.must(
        libc::SYS_set_tid_address,
        &[Arg::from(0)],
        "forget the address of its number",
    );
    batch.must(
        libc::SYS_set_robust_list,
        &[Arg::from(0), Arg::from(24)],
        "forget robust locks",
    );
    let thread = Thread {
        tid: pid,
        credentials: ended.credentials.clone(),
        ..Thread::default()
    };
    identity::credentials(&thread, process, rights, &mut batch);
    workshop.run(pid, &batch).context(what).map(drop)
}

/// Ends the first thread of a process where that is to be. `instruction`: a system call instruction of the process.
pub(super) fn end(workshop: &Workshop, process: &Process, instruction: u64, filters: When) -> Result<()> {
    let Some(ended) = &process.ended_leader else {
        return Ok(());
    };
    let stub = workshop.stub(process.pid)?;
    remote::end_thread(
        stub.tracee,
        &stub.base,
        instruction,
        i32::from(ended.exit_code),
        is_filtered(process, filters),
        workshop.deadline,
    )
    .context(|| format!("end the main thread of process {}", process.pid))
}
