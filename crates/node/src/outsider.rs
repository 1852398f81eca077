//! Processes that are no jobs of ours, and from where they are saved.

use cpr_kernel::namespace;
use cpr_types::{Error, ErrorKind, Result};

use crate::checkpoint::Bare;
use crate::target::{self, Target};

/// Processes of somebody else's making, as the engine needs them.
pub(crate) struct Outsider {
    /// One of them, held.
    pub(crate) target: Target,
    /// Its PID in the PID namespace that it is saved from: its own, or ours where its own goes with it.
    pub(crate) inner: i32,
    /// The session in that namespace, where one was named.
    pub(crate) session: Option<i32>,
    /// That is not ours.
    pub(crate) foreign: bool,
}

/// Looks at a process, or at one of a session.
///
/// # Errors
/// [`ErrorKind::Usage`] for this command itself and for the first process of a PID namespace, where that is not for us to
/// save; it has ended, or is not ours.
pub(crate) fn outsider(bare: Bare) -> Result<Outsider> {
    let target = bare.representative()?;
    let pid = target.pid;
    if pid == std::process::id() as i32 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("process {pid} is this command itself"),
        ));
    }
    let pids = target::namespace_pids(pid)?;
    let own = target::namespace_pids(std::process::id() as i32)?;
    let inner = pids.last().copied().unwrap_or(pid);
    let foreign = pids.len() > own.len();
    let is_first = foreign && inner == 1;
    if is_first && !(namespace::is_admin_of_machine() && target::brings_namespace(pid)) {
        let text = format!("process {pid} is the init of a PID namespace, not a job");
        let hint = "name the job, or the process below it; only root can save a container by its first process, and \
                    only one without users of its own";
        return Err(Error::new(ErrorKind::Usage, text).with_hint(hint));
    }
    // Its PID namespace goes with it.
    let (inner, foreign) = if is_first { (pid, false) } else { (inner, foreign) };
    let session = match bare {
        Bare::Process(_) => None,
        Bare::Session(sid) if is_first => Some(sid),
        Bare::Session(_) => Some(target::inner_session(pid)?),
    };
    // The pidfd was opened first: if the process still lives, what was read is of it.
    target.require_may_signal()?;
    Ok(Outsider {
        target,
        inner,
        session,
        foreign,
    })
}
