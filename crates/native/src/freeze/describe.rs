//! What is known of a process that is stopped.

use std::collections::HashMap;
use std::time::Instant;

use cpr_image::model::{ByteString, Credentials, EndedLeader};
use cpr_kernel::proc::{ProcDir, Stat, Status};
use cpr_kernel::remote::Deferred;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::attach::{Attached, Seized};
use super::early::Early;
use super::process::{Process, Space, Thread};
use super::stop::Stopped;

/// What anybody may see of a process that is stopped, or dead.
pub(super) struct Look {
    proc: ProcDir,
    stat: Stat,
    status: Status,
    space: Result<Space>,
}

impl Look {
    pub(super) fn at(pid: i32, tids: &[i32], stopped: &HashMap<i32, Stopped>) -> Result<Look> {
        let leads = matches!(stopped.get(&pid), Some(Stopped::Here { .. }));
        let proc = match leads || tids.is_empty() {
            true => ProcDir::open(pid),
            false => ProcDir::open_living(pid),
        };
        let proc = proc.context(|| format!("open /proc/{pid}"))?;
        let stat = proc.stat().context(|| format!("read /proc/{pid}/stat"))?;
        let status = proc.status().context(|| format!("read /proc/{pid}/status"))?;
        let is_here = |tid: &i32| matches!(stopped.get(tid), Some(Stopped::Here { .. }));
        let space = match tids.iter().any(is_here) {
            true => Space::open(&proc),
            false => Err(Error::new(ErrorKind::Gone, format!("process {pid} has ended"))),
        };
        Ok(Look {
            proc,
            stat,
            status,
            space,
        })
    }
}

/// Everything about a process that is stopped, or dead, with these threads; none for one that was dead already, and has
/// been reaped meanwhile by a parent outside the job.
pub(super) fn describe(
    pid: i32,
    attached: &Attached,
    mut tids: Vec<i32>,
    look: Result<Look>,
    stopped: &HashMap<i32, Stopped>,
    early: &mut HashMap<i32, Early>,
    deadline: Instant,
) -> Result<Option<Process>> {
    let leads = matches!(stopped.get(&pid), Some(Stopped::Here { .. }));
    let Look {
        proc,
        stat,
        status,
        space,
    } = match look {
        Ok(found) => found,
        Err(_)
            if !tids
                .iter()
                .any(|tid| matches!(stopped.get(tid), Some(Stopped::Here { .. }))) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut threads = Vec::new();
    let mut stopped_by = None;
    tids.sort_by_key(|&tid| (tid != pid, tid));
    for tid in tids {
        let Some(Stopped::Here { group }) = stopped.get(&tid) else {
            continue;
        };
        let Some(Seized {
            tracee,
            asleep_since,
            asleep_in,
            ..
        }) = attached.get(tid).cloned()
        else {
            continue;
        };
        stopped_by = stopped_by.or(*group);
        if let Some(early) = early.remove(&tid) {
            threads.push(Thread {
                deferred: early.deferred,
                told: early.told,
                ..Thread::early(tracee, early.registers, early.mask)
            });
            continue;
        }
        let registers = tracee
            .registers()
            .context(|| format!("read the registers of thread {tid}"))?;
        let mask = tracee
            .signal_mask()
            .context(|| format!("read the signal mask of thread {tid}"))?;
        threads.push(Thread {
            tracee,
            registers,
            mask,
            asleep_since,
            asleep_in,
            injected: false,
            in_syscall_exit: false,
            deferred: Deferred::default(),
            is_early: false,
            told: None,
        });
    }
    let ended_leader = match threads.is_empty() || leads {
        true => None,
        false => Some(ended_leader(pid)?),
    };
    let mut process = Process {
        ended_leader,
        pid,
        proc,
        stat,
        status,
        threads,
        space: None,
        stopped_by,
        concealed: None,
        bound: None,
        is_kept_from_us: None,
    };
    process.take_space(space, deadline)?;
    Ok(Some(process))
}

/// What is left of the main thread of a process that others of it have outlived.
fn ended_leader(pid: i32) -> Result<EndedLeader> {
    let what = || format!("look at the main thread of process {pid}, which has ended");
    let task = ProcDir::open_task(pid, pid).context(what)?;
    let (stat, status) = (task.stat().context(what)?, task.status().context(what)?);
    Ok(EndedLeader {
        // A signal would have ended all threads.
        exit_code: (stat.exit_code >> 8 & 0xff) as u8,
        // Of securebits only a living thread tells.
        credentials: credentials(&status, 0),
        name: ByteString(status.name),
    })
}

/// Users, groups and capabilities of a thread.
pub fn credentials(status: &Status, securebits: u32) -> Credentials {
    Credentials {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        effective: status.cap_effective,
        permitted: status.cap_permitted,
        inheritable: status.cap_inheritable,
        bounding: status.cap_bounding,
        ambient: status.cap_ambient,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}
