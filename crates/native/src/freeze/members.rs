//! Which processes a job has.

use std::collections::HashMap;

use cpr_kernel::proc::{self, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

/// Which processes belong to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// This process and its descendants.
    Tree(i32),
    /// The same with all other children of a process that adopts the job's orphans, and their descendants; without
    /// those that are called as we are, which are there to save the job.
    Adopted {
        /// The first process.
        root: i32,
        /// Who adopts (PR_SET_CHILD_SUBREAPER); not of the job itself.
        by: i32,
    },
    /// All descendants of the PID namespace's init, which itself stays out.
    Namespace,
    /// Everything in this POSIX session, with all descendants.
    Session(i32),
}

impl Members {
    /// A process and all below it, with those whom `adopter` has adopted where there is one.
    pub fn below(root: i32, adopter: Option<i32>) -> Members {
        adopter.map_or(Members::Tree(root), |by| Members::Adopted { root, by })
    }
}

/// What is checkpointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Which processes belong to the job.
    pub members: Members,
    /// Our parent, where it asks for the checkpoint from inside the job: it has to go on and waits for us.
    pub requester: Option<i32>,
}

impl Scope {
    /// The process that asks from inside the job, if there is one.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub fn requester(self) -> Result<Option<i32>> {
        let Some(pid) = self.live_requester() else {
            return Ok(None);
        };
        Ok(everybody(self.members)?.contains(&pid).then_some(pid))
    }

    /// A requester that has ended is our parent no longer, and its number may be anybody's.
    pub(super) fn live_requester(self) -> Option<i32> {
        let parent = i32::try_from(std::os::unix::process::parent_id()).ok();
        self.requester.filter(|pid| Some(*pid) == parent)
    }
}

/// PIDs of the job, every parent before its children; without us, and without who asks.
///
/// # Errors
/// [`ErrorKind::Gone`] when the root is not there.
pub fn members(scope: Scope) -> Result<Vec<i32>> {
    let own = std::process::id() as i32;
    let requester = scope.live_requester();
    let mut all = everybody(scope.members)?;
    all.retain(|&pid| pid != own && Some(pid) != requester);
    Ok(all)
}

pub(super) fn everybody(members: Members) -> Result<Vec<i32>> {
    match members {
        Members::Tree(root) => descendants(root),
        Members::Adopted { root, by } => family(root, by),
        Members::Namespace => inhabitants(),
        Members::Session(sid) => session(sid),
    }
}

/// The processes of a session and all below them. Zombies that a process outside has to wait for are left to it.
pub(super) fn session(sid: i32) -> Result<Vec<i32>> {
    let mut parents: HashMap<i32, i32> = HashMap::new();
    let mut inside: Vec<i32> = Vec::new();
    for pid in cpr_kernel::proc::pids().context(|| "list /proc")? {
        if let Ok(stat) = proc::stat_of(pid) {
            parents.insert(pid, stat.ppid);
            if stat.session == sid && !stat.is_zombie() {
                inside.push(pid);
            }
        }
    }
    if inside.is_empty() {
        return Err(Error::new(ErrorKind::Gone, format!("session {sid} has no process")));
    }
    // Nobody can be below himself, but what was read one after the other may say so.
    let is_root = |pid: &i32| parents.get(pid).is_none_or(|parent| !inside.contains(parent));
    let mut all: Vec<i32> = inside.iter().copied().filter(is_root).collect();
    all.sort_unstable();
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        next += 1;
        let mut children: Vec<i32> = parents
            .iter()
            .filter(|(child, parent)| **parent == pid && !all.contains(child))
            .map(|(child, _)| *child)
            .collect();
        children.sort_unstable();
        all.extend(children);
    }
    Ok(all)
}

/// A process and all below it, found downwards.
pub(super) fn descendants(root: i32) -> Result<Vec<i32>> {
    let mut all = vec![root];
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        next += 1;
        match ProcDir::open(pid).and_then(|dir| dir.children()) {
            Ok(children) => all.extend(children),
            Err(error) if pid == root => {
                return Err(Error::new(ErrorKind::Gone, format!("process {pid} does not exist")).with_source(error));
            }
            // It ended meanwhile.
            Err(_) => {}
        }
    }
    Ok(all)
}

/// A process with its descendants, and those whom another one has adopted. Zombies among these are for that to wait for.
fn family(root: i32, adopter: i32) -> Result<Vec<i32>> {
    let own = proc::stat_of(std::process::id() as i32).context(|| "look at this process")?;
    let mut all = descendants(root)?;
    // Afterwards: an orphan that comes to it meanwhile must not be missed.
    let children = ProcDir::open(adopter).and_then(|dir| dir.children());
    let mut children = children.context(|| format!("list the children of process {adopter}"))?;
    children.sort_unstable();
    for orphan in children {
        let Ok(stat) = proc::stat_of(orphan) else { continue };
        if all.contains(&orphan) || stat.is_zombie() || stat.comm == own.comm {
            continue;
        }
        for pid in descendants(orphan).unwrap_or_default() {
            if !all.contains(&pid) {
                all.push(pid);
            }
        }
    }
    Ok(all)
}

/// All processes of our PID namespace that descend from its init. Found by listing and not from parent to child: an
/// orphan that gets a new parent meanwhile must not be missed.
pub(super) fn inhabitants() -> Result<Vec<i32>> {
    let pids = cpr_kernel::proc::pids().context(|| "list /proc")?;
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids {
        if let Ok(stat) = proc::stat_of(pid) {
            children.entry(stat.ppid).or_default().push(pid);
        }
    }
    let mut all = vec![1];
    let mut next = 0;
    while next < all.len() {
        all.extend(children.remove(&all[next]).unwrap_or_default());
        next += 1;
    }
    // Processes from outside have no parent here (0); a parent that died between two looks is as good as init.
    let strangers: Vec<i32> = children.remove(&0).unwrap_or_default();
    let mut lost: Vec<i32> = children
        .into_iter()
        .filter(|(parent, _)| !strangers.contains(parent))
        .flat_map(|(_, orphans)| orphans)
        .collect();
    lost.sort_unstable();
    all.extend(lost);
    all.remove(0);
    Ok(all)
}

/// Whether only the main thread of a process has ended.
pub(super) fn is_without_leader(pid: i32) -> bool {
    proc::stat_of(pid).is_ok_and(|stat| stat.state == b'Z' && stat.num_threads > 1)
}
