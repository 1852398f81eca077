//! What stands in the way of a checkpoint, looked at while the job runs.

use std::collections::HashSet;

use cpr_image::model::Network;
use cpr_kernel::namespace::Place;
use cpr_types::{Error, ErrorKind, Result};

use super::request::Surroundings;
use crate::beside::beside;
use crate::blockers::Home;
use crate::files::io_uring::UNREACHABLE;
use crate::files::{self, Target};
use crate::freeze::{self, Members, Scope};
use crate::memory;
use crate::networks::{self, Networks};
use crate::visits::Visits;
use crate::{Blocker, blockers, cgroups, ipc};

/// With so many processes, another thread looks at each while this one looks at what they have together.
const MANY: usize = 4;
/// How often something has to be seen in a running job before it counts.
const LOOKS: usize = 5;

/// Names everything that would make a checkpoint of `pid` and its descendants fail, without stopping anything
/// (a look at a running job: objects that come and go may be missed).
///
/// # Errors
/// [`ErrorKind::Gone`] when there is no such process.
pub fn check(pid: i32, session: Option<i32>, around: Surroundings<'_>) -> Result<Vec<Blocker>> {
    let members = match session {
        Some(sid) => Members::Session(sid),
        None if pid == 1 || around.own_pid_namespace => Members::Namespace,
        None => Members::below(pid, around.adopter),
    };
    let scope = Scope {
        members,
        requester: None,
    };
    find_blockers(scope, pid, around)
}

/// What blocks in several looks: a process that starts or ends another one is seen in odd states for moments.
pub(super) fn find_blockers(scope: Scope, root: i32, around: Surroundings<'_>) -> Result<Vec<Blocker>> {
    let mut first = look(scope, root, around)?;
    for _ in 1..LOOKS {
        if first.found.is_empty() && first.elsewhere.is_empty() {
            break;
        }
        let again = look(scope, root, around)?;
        first.found.retain(|blocker| again.found.contains(blocker));
        first.elsewhere.retain(|blocker| again.elsewhere.contains(blocker));
        first.is_settled |= again.is_settled;
    }
    if first.is_settled {
        first.found.append(&mut first.elsewhere);
    }
    Ok(first.found)
}

/// What one look at a running job finds.
pub(super) struct Look {
    pub(super) found: Vec<Blocker>,
    /// Those that count where it `is_settled` only; else they are found, or not, when the job stands still.
    pub(super) elsewhere: Vec<Blocker>,
    /// No process was born meanwhile.
    pub(super) is_settled: bool,
}

pub(super) fn look(scope: Scope, root: i32, around: Surroundings<'_>) -> Result<Look> {
    let last_pid = cpr_kernel::proc::last_pid().ok();
    let mut targets = Vec::new();
    let home = Home::of(scope, root).with_mounts(around.mounts);
    for pid in freeze::members(scope)? {
        targets.extend(Target::open(pid)?);
    }
    let (themselves, together) = beside(
        targets.len() >= MANY,
        || of_each(&targets, &home),
        || of_all(&targets, &home, root, scope, around),
    )?;
    let (together, elsewhere, open) = together?;
    let mut found = themselves.blockers;
    found.extend(together);
    let unreachable = themselves.rings.into_iter().filter(|(_, inode)| !open.contains(inode));
    found.extend(unreachable.map(|(blocker, _)| blocker));
    Ok(Look {
        found,
        elsewhere,
        is_settled: cpr_kernel::proc::last_pid().ok() == last_pid,
    })
}

/// What there is in each process by itself.
#[derive(Default)]
struct Each {
    /// What stands in the way.
    blockers: Vec<Blocker>,
    /// What does where no descriptor is open on the io_uring instance with this inode number.
    rings: Vec<(Blocker, u64)>,
}

/// What stands in the way in each process by itself.
fn of_each(targets: &[Target], home: &Home) -> Each {
    let mut found = Each::default();
    for target in targets {
        let blocker = |(object, reason): (String, String)| Blocker {
            pid: target.pid,
            object,
            reason,
            hint: None,
            passes: false,
        };
        let of_memory = memory::blockers(&target.proc);
        let own = blockers::of_process(&target.proc, home)
            .into_iter()
            .chain(blockers::of_threads(&target.proc))
            .chain(of_memory.mappings);
        found.blockers.extend(own.map(blocker));
        let rings = of_memory.rings.into_iter();
        found
            .rings
            .extend(rings.map(|(object, inode)| (blocker((object, UNREACHABLE.to_owned())), inode)));
    }
    found
}

/// What stands in the way in that which processes have together; first what counts at once, then what may count when
/// the job stands still.
fn of_all(
    targets: &[Target],
    home: &Home,
    root: i32,
    scope: Scope,
    around: Surroundings<'_>,
) -> Result<(Vec<Blocker>, Vec<Blocker>, HashSet<u64>)> {
    let Surroundings {
        own_ipc,
        own_pid_namespace: _,
        adopter: _,
        tcp,
        channels,
        devices,
        mounts,
    } = around;
    let (mut networks, mut groups) = (Visits::new(Place::Network), Visits::new(Place::Cgroup));
    for target in targets {
        // One that has just gone is in none.
        let _ = networks
            .of(&target.proc, home)
            .and_then(|_| groups.of(&target.proc, home))
            .and_then(|_| networks::include_those_of_sockets(&target.proc, home, &mut networks));
    }
    let mut found = blockers::sharing(targets);
    found.extend(blockers::strangers(home, targets));
    let mut ipc = Visits::new(Place::Ipc);
    found.extend(ipc::blockers(targets, own_ipc, &mut ipc, home)?);
    found.extend(namespace_blocker("network", save_networks(&networks, targets)));
    let first = targets.iter().find(|target| target.pid == root).or(targets.first());
    if let Some(first) = first {
        found.extend(namespace_blocker(
            "cgroup",
            cgroups::refuse_other_roots(&groups, &first.proc),
        ));
    }
    let networks = Networks::new(networks);
    let files::Found {
        themselves,
        elsewhere,
        rings,
    } = files::check(
        targets,
        files::Surroundings {
            root_pid: root,
            own_ipc,
            tcp,
            channels,
            devices,
            requester: scope.requester()?,
            networks: &networks,
            ipc: &ipc,
        },
    );
    found.extend(themselves);
    if let Some(mounts) = mounts {
        found.extend(blockers::mounts(home, root, mounts));
    }
    Ok((found, elsewhere, rings))
}

pub(super) fn save_networks(visits: &Visits, targets: &[Target]) -> Result<Vec<Network>> {
    let job = targets.iter().map(|target| target.pid);
    networks::save(visits, &job.chain([std::process::id() as i32]).collect())
}

/// What of the namespaces that a job has made cannot be made again: the first thing that there is.
pub(super) fn namespace_blocker<T>(kind: &str, saved: Result<T>) -> Option<Blocker> {
    let error = saved.err()?;
    Some(Blocker {
        pid: 0,
        object: format!("{kind} namespace"),
        reason: error.chain(),
        hint: error.hint().map(str::to_owned),
        passes: error.is_passing(),
    })
}

/// One error that names everything that blocks.
pub(super) fn refuse_blocked(found: Vec<Blocker>) -> Result<()> {
    let Some(first) = found.first() else {
        return Ok(());
    };
    let hint = found.iter().find_map(|b| b.hint.clone());
    let rest: Vec<String> = found.iter().map(ToString::to_string).collect();
    let text = if found.len() == 1 {
        first.to_string()
    } else {
        format!("{} objects cannot be saved: {}", found.len(), rest.join("; "))
    };
    let error = Error::new(ErrorKind::Unsupported, text);
    Err(match hint {
        Some(hint) => error.with_hint(hint),
        None => error.with_hint("see `cpr check` for everything that cannot be saved"),
    })
}
