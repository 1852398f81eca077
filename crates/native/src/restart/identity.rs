//! Threads: everything that is a thread's own, credentials last.

use cpr_image::model::{Credentials, Process, Thread};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::process::{CapabilitySets, capset_arguments};

/// PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE.
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: i32 = 2;
const PR_CAPBSET_READ_MAX: u32 = 40;
const IOPRIO_WHO_PROCESS: i32 = 1;
const SIGINFO_SIGNAL: usize = 0;

/// What the restarter may give away.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// It is root here: users and groups are restored as saved (LBNL-3.9.3.1.2); else they are the restarter's.
    pub privileged: bool,
    /// Its permitted capabilities: nobody gets more (LBNL-3.9.3.4.3).
    pub capabilities: u64,
}

/// Adds everything that belongs to one thread but its credentials and registers.
pub fn thread(thread: &Thread, process: &Process, batch: &mut Batch) {
    batch.call(libc::SYS_set_tid_address, &[thread.clear_child_tid.into()]);
    let (head, length) = thread.robust_list;
    if head != 0 {
        batch.must(
            libc::SYS_set_robust_list,
            &[head.into(), length.into()],
            "register the robust list",
        );
    }
    let (address, flags, size) = thread.alternate_stack;
    let mut stack = [0u8; 24];
    stack[..8].copy_from_slice(&address.to_ne_bytes());
    // SS_ONSTACK is where the thread is, not what it asks for.
    stack[8..12].copy_from_slice(&(flags & !1).to_ne_bytes());
    stack[16..].copy_from_slice(&size.to_ne_bytes());
    let stack = batch.data(&stack);
    batch.must(libc::SYS_sigaltstack, &[stack, Arg::from(0)], "set the signal stack");
    if let Some(rseq) = &thread.rseq {
        batch.must(
            libc::SYS_rseq,
            &[
                rseq.address.into(),
                rseq.size.into(),
                rseq.flags.into(),
                rseq.signature.into(),
            ],
            "register restartable sequences",
        );
    }
    let mut name = thread.name.0.clone();
    name.truncate(15);
    let name = batch.string(&name);
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name]);
    let scheduling = &thread.scheduling;
    if !scheduling.affinity.0.is_empty() {
        // Processors that are not here are left out by the kernel; if none is left, all are used.
        let mask = batch.data(&scheduling.affinity.0);
        batch.call(
            libc::SYS_sched_setaffinity,
            &[Arg::from(0), scheduling.affinity.0.len().into(), mask],
        );
    }
    let mut attributes = [0u8; 48];
    attributes[..4].copy_from_slice(&48u32.to_ne_bytes());
    attributes[4..8].copy_from_slice(&scheduling.policy.to_ne_bytes());
    attributes[8..16].copy_from_slice(&scheduling.flags.to_ne_bytes());
    attributes[16..20].copy_from_slice(&scheduling.nice.to_ne_bytes());
    attributes[20..24].copy_from_slice(&scheduling.priority.to_ne_bytes());
    attributes[24..32].copy_from_slice(&scheduling.runtime.to_ne_bytes());
    attributes[32..40].copy_from_slice(&scheduling.deadline.to_ne_bytes());
    attributes[40..48].copy_from_slice(&scheduling.period.to_ne_bytes());
    let attributes = batch.data(&attributes);
    // Refused where the restarter may not give that priority: then the job keeps the restarter's.
    batch.call(libc::SYS_sched_setattr, &[Arg::from(0), attributes, Arg::from(0)]);
    batch.call(
        libc::SYS_ioprio_set,
        &[IOPRIO_WHO_PROCESS.into(), Arg::from(0), scheduling.io_priority.into()],
    );
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_TIMERSLACK.into(), thread.timer_slack_ns.into()],
    );
    for info in &thread.pending_signals {
        let signal = signal_of(&info.0);
        let info = batch.data(&info.0);
        batch.must(
            libc::SYS_rt_tgsigqueueinfo,
            &[process.pid.into(), thread.tid.into(), signal.into(), info],
            format!("queue signal {signal}"),
        );
    }
}

/// The signal number in a siginfo_t.
pub fn signal_of(info: &[u8]) -> i32 {
    let mut raw = [0u8; 4];
    if let Some(bytes) = info.get(SIGINFO_SIGNAL..SIGINFO_SIGNAL + 4) {
        raw.copy_from_slice(bytes);
    }
    i32::from_ne_bytes(raw)
}

/// Adds the credentials of a thread: never more than the restarter has itself (LBNL-2.2.3, LBNL-3.9.3).
pub fn credentials(thread: &Thread, process: &Process, rights: Rights, batch: &mut Batch) {
    let saved: &Credentials = &thread.credentials;
    if rights.privileged {
        for capability in 0..=PR_CAPBSET_READ_MAX {
            if saved.bounding >> capability & 1 == 0 {
                batch.call(libc::SYS_prctl, &[libc::PR_CAPBSET_DROP.into(), capability.into()]);
            }
        }
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_KEEPCAPS.into(), Arg::from(1)],
            "keep capabilities",
        );
        let groups: Vec<u8> = saved.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let groups = batch.data(&groups);
        batch.must(
            libc::SYS_setgroups,
            &[saved.groups.len().into(), groups],
            "set the supplementary groups",
        );
        let [real, effective, set, file] = saved.gids;
        batch.must(
            libc::SYS_setresgid,
            &[real.into(), effective.into(), set.into()],
            "set the group",
        );
        batch.call(libc::SYS_setfsgid, &[file.into()]);
        let [real, effective, set, file] = saved.uids;
        batch.must(
            libc::SYS_setresuid,
            &[real.into(), effective.into(), set.into()],
            "set the user",
        );
        batch.call(libc::SYS_setfsuid, &[file.into()]);
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_KEEPCAPS.into(), Arg::from(0)],
            "drop what was kept",
        );
    }
    let most = if rights.privileged { rights.capabilities } else { 0 };
    let sets = CapabilitySets {
        effective: saved.effective & saved.permitted & most,
        permitted: saved.permitted & most,
        inheritable: saved.inheritable & most,
    };
    if rights.privileged && saved.securebits != 0 {
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_SECUREBITS.into(), saved.securebits.into()],
            "set the secure bits",
        );
    }
    let (header, data) = capset_arguments(sets);
    let header = batch.data(&header);
    let data = batch.data(&data);
    batch.must(libc::SYS_capset, &[header, data], "set the capabilities");
    for capability in 0..=PR_CAPBSET_READ_MAX {
        if (saved.ambient & sets.permitted & sets.inheritable) >> capability & 1 == 1 {
            batch.call(
                libc::SYS_prctl,
                &[
                    PR_CAP_AMBIENT.into(),
                    PR_CAP_AMBIENT_RAISE.into(),
                    capability.into(),
                    Arg::from(0),
                    Arg::from(0),
                ],
            );
        }
    }
    if saved.no_new_privs {
        batch.must(
            libc::SYS_prctl,
            &[
                libc::PR_SET_NO_NEW_PRIVS.into(),
                Arg::from(1),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ],
            "set no_new_privs",
        );
    }
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_PDEATHSIG.into(), thread.parent_death_signal.into()],
    );
    // Changing users has cleared it; values other than 0 and 1 cannot be set.
    if thread.tid == process.pid {
        batch.call(
            libc::SYS_prctl,
            &[libc::PR_SET_DUMPABLE.into(), process.dumpable.min(1).into()],
        );
    }
}
