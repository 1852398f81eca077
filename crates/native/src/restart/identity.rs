//! Threads: everything that is a thread's own, credentials last.

use cpr_image::model::{ByteString, Bytes, Credentials, Directories, Process, Thread};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::proc::Status;
use cpr_kernel::process::{CapabilitySets, capset_arguments};

const PR_SET_IO_FLUSHER: u64 = 57;
const PR_SET_SPECULATION_CTRL: u64 = 53;
/// PR_SPEC_PRCTL.
const SPECULATION_SETTABLE: u32 = 1;
/// PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, PR_SPEC_DISABLE_NOEXEC.
const SPECULATION_CHANGED: u32 = 4 | 8 | 16;
const ARCH_SET_CPUID: i32 = 0x1012;
const CAP_SETPCAP: u32 = 8;
const CAP_SYS_ADMIN: u32 = 21;
const SECBIT_KEEP_CAPS: u32 = 1 << 4;

/// PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE.
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: i32 = 2;
const PR_CAPBSET_READ_MAX: u32 = 40;
/// Those up to it.
pub const ALL_CAPABILITIES: u64 = u64::MAX >> (63 - PR_CAPBSET_READ_MAX);
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

impl Rights {
    /// Whether it may do what takes CAP_SYS_ADMIN.
    pub fn may_administer(self) -> bool {
        self.capabilities >> CAP_SYS_ADMIN & 1 == 1
    }
}

/// Adds everything that belongs to one thread but its signals, credentials and registers.
pub fn thread(thread: &Thread, batch: &mut Batch) {
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
    switches(thread, batch);
}

/// Adds pending signals of the thread that runs the batch. `numbers`: of its process and of itself, as it knows them.
pub fn signals(pending: &[Bytes], numbers: [i32; 2], batch: &mut Batch) {
    for info in pending {
        let signal = signal_of(&info.0);
        let info = batch.data(&info.0);
        batch.must(
            libc::SYS_rt_tgsigqueueinfo,
            &[numbers[0].into(), numbers[1].into(), signal.into(), info],
            format!("queue signal {signal}"),
        );
    }
}

/// Adds a thread's switches of prctl(2) and its kin. Where the machine or our rights lack one, it stays as it is.
fn switches(thread: &Thread, batch: &mut Batch) {
    let mut prctl = |arguments: &[u64]| {
        let five: Vec<Arg> = (0..5)
            .map(|i| Arg::from(arguments.get(i).copied().unwrap_or(0)))
            .collect();
        batch.call(libc::SYS_prctl, &five);
    };
    if thread.tsc_refused {
        prctl(&[libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64]);
    }
    if let Some(policy) = thread.machine_check_policy {
        prctl(&[
            libc::PR_MCE_KILL as u64,
            libc::PR_MCE_KILL_SET as u64,
            u64::from(policy),
        ]);
    }
    if thread.io_flusher {
        prctl(&[PR_SET_IO_FLUSHER, 1]);
    }
    for (which, state) in (0u64..).zip(&thread.speculation) {
        if state & SPECULATION_SETTABLE != 0 && state & SPECULATION_CHANGED != 0 {
            prctl(&[PR_SET_SPECULATION_CTRL, which, u64::from(state & SPECULATION_CHANGED)]);
        }
    }
    if thread.cpuid_refused {
        batch.call(libc::SYS_arch_prctl, &[ARCH_SET_CPUID.into(), Arg::from(0)]);
    }
    if thread.memory_policy.mode != 0 {
        let nodes = &thread.memory_policy.nodes.0;
        let mask = batch.data(nodes);
        batch.call(
            libc::SYS_set_mempolicy,
            &[thread.memory_policy.mode.into(), mask, (nodes.len() * 8).into()],
        );
    }
}

/// Adds working directory, root and umask of a thread that does not share its process's. Paths are followed with the
/// rights of `owner`, where that is somebody else.
pub fn directories(own: &Directories, owner: Option<u32>, batch: &mut Batch) {
    batch.must(
        libc::SYS_unshare,
        &[libc::CLONE_FS.into()],
        "give the thread its own working directory",
    );
    batch.must(libc::SYS_umask, &[own.umask.into()], "set the umask");
    enter((&own.cwd, None), (&own.root, None), owner, batch);
}

/// Adds entering a working directory and a root directory: paths, or descriptors where they have been deleted.
pub fn enter(cwd: (&ByteString, Option<i32>), root: (&ByteString, Option<i32>), owner: Option<u32>, batch: &mut Batch) {
    if let Some(owner) = owner {
        batch.call(libc::SYS_setfsuid, &[owner.into()]);
    }
    let what = format!("enter directory {}", cwd.0);
    let go = |batch: &mut Batch, directory: i32, what: &str| {
        batch.must(libc::SYS_fchdir, &[directory.into()], what);
    };
    match cwd.1 {
        Some(directory) => go(batch, directory, &what),
        None => {
            let path = batch.string(&cwd.0.0);
            batch.must(libc::SYS_chdir, &[path], what.as_str());
        }
    };
    let change = format!("change root to {}", root.0);
    match (root.1, cwd.1) {
        (Some(directory), Some(cwd)) => {
            go(batch, directory, &change);
            let here = batch.string(b".");
            batch.must(libc::SYS_chroot, &[here], change.as_str());
            go(batch, cwd, &what);
        }
        (Some(directory), None) => {
            let path = batch.string(format!("/proc/self/fd/{directory}").as_bytes());
            batch.must(libc::SYS_chroot, &[path], change.as_str());
        }
        (None, _) if root.0.0 != b"/" => {
            let path = batch.string(&root.0.0);
            batch.must(libc::SYS_chroot, &[path], change.as_str());
        }
        (None, _) => {}
    }
    if owner.is_some() {
        batch.call(libc::SYS_setfsuid, &[Arg::from(0)]);
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

/// Adds calls that a thread makes with the rights that [`credentials`] will give it, as far as they matter for what the
/// kernel remembers of who has made something. Afterwards it has those of now again, which `now` tells.
pub fn with_final_rights<T>(
    thread: &Thread,
    process: &Process,
    rights: Rights,
    now: &Status,
    batch: &mut Batch,
    calls: impl FnOnce(&mut Batch) -> T,
) -> T {
    let saved: &Credentials = &thread.credentials;
    let apart = process.user_namespace.is_some();
    let identified = rights.privileged && !apart;
    let turn_into = |batch: &mut Batch, groups: &[u32], gids: [u32; 3], uids: [u32; 3], is_back: bool| {
        let raw: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let place = batch.data(&raw);
        let ids = |ids: [u32; 3]| ids.map(Arg::from);
        let user = |batch: &mut Batch| {
            batch.must(libc::SYS_setresuid, &ids(uids), "change the user for a moment");
        };
        if is_back {
            user(batch);
        }
        batch.must(
            libc::SYS_setgroups,
            &[groups.len().into(), place],
            "change the groups for a moment",
        );
        batch.must(libc::SYS_setresgid, &ids(gids), "change the group for a moment");
        if !is_back {
            user(batch);
        }
    };
    let capabilities = |batch: &mut Batch, effective: u64| {
        let (header, data) = capset_arguments(CapabilitySets {
            effective,
            permitted: now.cap_permitted,
            inheritable: now.cap_inheritable,
        });
        let (header, data) = (batch.data(&header), batch.data(&data));
        batch.must(
            libc::SYS_capset,
            &[header, data],
            "change the capabilities for a moment",
        );
    };
    let first = |ids: [u32; 4]| [ids[0], ids[1], ids[2]];
    if identified {
        // The saved user is who leads back.
        let ([group, effective_group, ..], [user, effective, ..]) = (saved.gids, saved.uids);
        let gids = [group, effective_group, now.gids[2]];
        turn_into(batch, &saved.groups, gids, [user, effective, now.uids[2]], false);
    }
    let most = match (apart, rights.privileged) {
        (true, _) => ALL_CAPABILITIES,
        (false, true) => rights.capabilities,
        (false, false) => 0,
    };
    capabilities(batch, saved.effective & saved.permitted & most & now.cap_permitted);
    let result = calls(batch);
    if identified {
        turn_into(batch, &now.groups, first(now.gids), first(now.uids), true);
    }
    capabilities(batch, now.cap_effective);
    result
}

/// Adds the credentials of a thread: never more than the restarter has itself (LBNL-2.2.3, LBNL-3.9.3). In a user
/// namespace of the job's own, capabilities are over that, and it has all of them; users and groups it has already.
pub fn credentials(thread: &Thread, process: &Process, rights: Rights, batch: &mut Batch) {
    let saved: &Credentials = &thread.credentials;
    let apart = process.user_namespace.is_some();
    let identified = rights.privileged && !apart;
    if rights.privileged || apart {
        for capability in 0..=PR_CAPBSET_READ_MAX {
            if saved.bounding >> capability & 1 == 0 {
                batch.call(libc::SYS_prctl, &[libc::PR_CAPBSET_DROP.into(), capability.into()]);
            }
        }
    }
    if identified {
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
    let most = match (apart, rights.privileged) {
        (true, _) => ALL_CAPABILITIES,
        (false, true) => rights.capabilities,
        (false, false) => 0,
    };
    let sets = CapabilitySets {
        effective: saved.effective & saved.permitted & most,
        permitted: saved.permitted & most,
        inheritable: saved.inheritable & most,
    };
    let [real, effective, set, file] = saved.uids;
    let other_files = identified && ![real, effective, set].contains(&file);
    let secured = (rights.privileged || apart) && saved.securebits != 0 && most >> CAP_SETPCAP & 1 == 1;
    if other_files || secured {
        // Becoming another user has made the capabilities ineffective.
        let (header, data) = capset_arguments(CapabilitySets {
            effective: most,
            permitted: most,
            inheritable: sets.inheritable,
        });
        let header = batch.data(&header);
        let data = batch.data(&data);
        batch.must(libc::SYS_capset, &[header, data], "use the capabilities");
    }
    if other_files {
        // In vain before: it takes CAP_SETUID.
        batch.call(libc::SYS_setfsuid, &[file.into()]);
    }
    if secured {
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_SECUREBITS.into(), saved.securebits.into()],
            "set the secure bits",
        );
    } else if saved.securebits & SECBIT_KEEP_CAPS != 0 {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_KEEPCAPS.into(), Arg::from(1)]);
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
    // Changing users has cleared it, in whichever thread. A process that lets nobody look at it gets it back when
    // nothing is left to be done.
    batch.call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), Arg::from(1)]);
}
