//! Processes that have confined themselves with Landlock, or that another security module confines like this.
//!
//! The kernel shows nobody that a process is in a Landlock domain, nor what the domain forbids, so it can only be
//! refused: restarted, the process could do again what it had given up. It gives itself away: it may look at no process
//! outside its domain. So it is made to ask for something that takes the right to look at (get_robust_list(2)), of a
//! process of its own user without any privilege, which any other process may have.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

use cpr_image::model::Manifest;
use cpr_kernel::batch::{Batch, CallId, Outcome};
use cpr_kernel::witness::{Witness, has_landlock};
use cpr_types::{Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::freeze::Process;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The question whether somebody may look at a process.
pub struct Question(CallId);

impl Question {
    fn about(pid: i32, batch: &mut Batch) -> Self {
        let (head, _) = batch.out(8);
        let (length, _) = batch.out(8);
        Question(batch.call(libc::SYS_get_robust_list, &[pid.into(), head, length]))
    }

    /// Whether he may not; `None` where he does not see the process at all.
    pub fn is_kept_from(&self, outcome: &Outcome) -> Option<bool> {
        match outcome.result(self.0) {
            Ok(_) => Some(false),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Some(true),
            Err(_) => None,
        }
    }
}

/// Adds the question whether a process may look at us, if that is worth asking: root's process may, if it has all that
/// we have.
pub fn ask(has_landlock: bool, batch: &mut Batch) -> Option<Question> {
    let asks = has_landlock && rustix::process::geteuid().is_root();
    asks.then(|| Question::about(std::process::id() as i32, batch))
}

/// Whether `process` may not look at `pid`; `None` where it does not see it at all.
fn is_kept_from(process: &mut Process, pid: i32, deadline: Instant) -> Result<Option<bool>> {
    let mut batch = Batch::new();
    let question = Question::about(pid, &mut batch);
    Ok(question.is_kept_from(&process.run(0, &batch, deadline)?))
}

/// Whether the process is under the same rules of other security modules as we are.
fn has_our_label(process: &Process) -> bool {
    let own = std::fs::read("/proc/self/attr/current").unwrap_or_default();
    process.proc.read("attr/current").unwrap_or_default() == own
}

/// Refuses processes that are in a Landlock domain that we are not in. What is in a user or PID namespace that the job
/// has made is not found out.
///
/// # Errors
/// [`ErrorKind::Unsupported`], naming the process.
pub fn refuse(processes: &mut [Process], live: &[usize], manifest: &Manifest, deadline: Instant) -> Result<()> {
    if !has_landlock() {
        return Ok(());
    }
    let mut witnesses: HashMap<(u32, u32, Vec<u8>), Option<Witness>> = HashMap::new();
    let ours = std::fs::read_link("/proc/self/ns/user").ok();
    let ours = ours.map(|link| link.into_os_string().into_vec());
    let as_root = rustix::process::geteuid().is_root();
    for &index in live {
        let (Some(process), Some(saved)) = (processes.get_mut(index), manifest.processes.get(index)) else {
            continue;
        };
        // Root's process may look at us, if it has all that we have.
        if as_root && process.is_kept_from_us.is_some_and(|answer| answer != Some(true)) {
            continue;
        }
        // A domain is entered with one of these; only root's processes can have given them up since.
        let status = &process.status;
        let could = status.no_new_privs || status.cap_permitted & CAP_SYS_ADMIN != 0 || as_root;
        let elsewhere = saved.user_namespace.is_some() || saved.pid_namespace.is_some();
        if !could || elsewhere || process.space.is_none() || !has_our_label(process) {
            continue;
        }
        // A job of a user is in a user namespace, and root beside it is not.
        let (Ok(home), (user, group)) = (process.proc.read_link("ns/user"), (status.uids[0], status.gids[0])) else {
            continue;
        };
        let namespace = match ours.as_ref() == Some(&home) {
            true => None,
            false => match process.proc.open_file("ns/user", OFlags::RDONLY) {
                Ok(namespace) => Some(namespace),
                Err(_) => continue,
            },
        };
        let ourselves = std::process::id() as i32;
        let was_asked = process.is_kept_from_us.is_some();
        if as_root && !was_asked && is_kept_from(process, ourselves, deadline)? != Some(true) {
            continue;
        }
        let witness = witnesses
            .entry((user, group, home))
            .or_insert_with(|| Witness::start(user, group, namespace.as_ref().map(AsFd::as_fd)).ok());
        let Some(witness) = witness else {
            continue;
        };
        if is_kept_from(process, witness.pid(), deadline)? == Some(true) {
            let text = format!(
                "process {}: it is confined by Landlock (or by another security module), which cannot be restored",
                process.pid
            );
            return Err(Error::new(ErrorKind::Unsupported, text)
                .with_hint("let the program run without it where it shall be checkpointed"));
        }
    }
    Ok(())
}
