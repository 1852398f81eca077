//! In which order processes are made, so that parents, sessions and process groups come out as they were.
//!
//! A pure function of the image: it makes nothing.
//!
//! A session can only be entered by being born into it, so a process whose session is not its parent's present one has
//! to be made before the parent made its own. Sessions and groups whose leader has died are made by *helpers*, which
//! take the leader's number for a while. A group whose leader is outside of a process's PID namespace has no number in
//! it, so that the process has to be put into it by a parent outside, or born into it.

use std::collections::{HashMap, HashSet};

use cpr_image::model::{Manifest, PidNamespaceId, Process, ProcessState};
use cpr_types::{Error, ErrorKind, Result};

use crate::pid_namespaces::Levels;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make a process; `by` makes it, or (none) the restarter.
    Create {
        /// Number.
        pid: i32,
        /// Parent.
        by: Option<i32>,
        /// It stands in for a dead leader and ends when all others exist.
        helper: bool,
    },
    /// setsid(2).
    NewSession {
        /// Who.
        pid: i32,
    },
    /// setpgid(2).
    JoinGroup {
        /// Who.
        pid: i32,
        /// The group; its own number makes a new one.
        group: i32,
        /// Who calls: itself, or its parent.
        by: i32,
    },
    /// End a helper and, if it has a parent in the image, have it waited for.
    EndHelper {
        /// Which.
        pid: i32,
        /// Its parent.
        parent: Option<i32>,
    },
    /// End a process that is a zombie, with its wait status.
    Die {
        /// Which.
        pid: i32,
        /// wait(2) status.
        status: i32,
    },
}

struct Planner<'a> {
    by_pid: HashMap<i32, &'a Process>,
    children: HashMap<i32, Vec<&'a Process>>,
    steps: Vec<Step>,
    /// Session each made process is in; none for the restarter's.
    session: HashMap<i32, Option<i32>>,
    group: HashMap<i32, Option<i32>>,
    helpers: Vec<(i32, Option<i32>)>,
    external: HashSet<i32>,
    levels: &'a Levels,
    /// PID namespaces of those made.
    namespaces: HashMap<i32, Option<PidNamespaceId>>,
    /// Children of first processes of PID namespaces, which have come to them as orphans.
    orphans: Vec<&'a Process>,
}

/// Plans the creation of the processes of an image.
///
/// # Errors
/// As [`plan`].
pub fn of(manifest: &Manifest) -> Result<Vec<Step>> {
    let whole = manifest.checkpoint.own_pid_namespace || manifest.checkpoint.session != 0;
    let levels = Levels::of(manifest);
    plan(&manifest.processes, whole, manifest.checkpoint.root_pid, &levels)
}

/// Plans the creation of `processes`; `whole` tells that the sessions they are in are the job's own.
///
/// # Errors
/// [`ErrorKind::Damaged`] when no order of steps leads to the saved relations.
fn plan(processes: &[Process], whole: bool, root: i32, levels: &Levels) -> Result<Vec<Step>> {
    let by_pid: HashMap<i32, &Process> = processes.iter().map(|p| (p.pid, p)).collect();
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in processes {
        if by_pid.contains_key(&process.ppid) {
            children.entry(process.ppid).or_default().push(process);
        }
    }
    let mut external: HashSet<i32> = [0, 1].into();
    if !whole && let Some(root) = by_pid.get(&root) {
        // The session and group it was started in stay behind; it gets the restarter's (LBNL-3.9.5.3.6,
        // LBNL-3.9.5.4.3).
        external.extend([root.sid, root.pgid].into_iter().filter(|id| !by_pid.contains_key(id)));
    }
    let mut planner = Planner {
        by_pid,
        children,
        steps: Vec::new(),
        session: HashMap::new(),
        group: HashMap::new(),
        helpers: Vec::new(),
        external,
        levels,
        namespaces: HashMap::new(),
        orphans: Vec::new(),
    };
    let roots: Vec<&Process> = processes
        .iter()
        .filter(|p| !planner.by_pid.contains_key(&p.ppid))
        .collect();
    // Those that make their own session or stay in ours first: others may have to be born into theirs.
    let (plain, adopted): (Vec<&Process>, Vec<&Process>) = roots
        .into_iter()
        .partition(|p| planner.birth_session(p).is_none_or(|s| s.is_none()));
    for process in plain {
        planner.create(process, None)?;
    }
    for process in adopted {
        planner.adopt(process)?;
    }
    let mut orphans = std::mem::take(&mut planner.orphans);
    while !orphans.is_empty() {
        for process in orphans {
            planner.adopt(process)?;
        }
        orphans = std::mem::take(&mut planner.orphans);
    }
    planner.groups(processes)?;
    for (pid, parent) in std::mem::take(&mut planner.helpers).into_iter().rev() {
        planner.steps.push(Step::EndHelper { pid, parent });
    }
    for process in processes {
        if let ProcessState::Zombie(status) = process.state {
            planner.steps.push(Step::Die {
                pid: process.pid,
                status,
            });
        }
    }
    Ok(planner.steps)
}

impl<'a> Planner<'a> {
    fn session_of(&self, process: &Process) -> Option<i32> {
        (!self.external.contains(&process.sid)).then_some(process.sid)
    }

    /// The session a process has to be born into; none where it does not matter.
    fn birth_session(&self, process: &Process) -> Option<Option<i32>> {
        if process.sid != process.pid {
            return Some(self.session_of(process));
        }
        let children = self.children.get(&process.pid)?;
        children
            .iter()
            .filter(|child| !self.is_orphan(child, process))
            .filter_map(|child| self.birth_session(child))
            .find(|session| *session != Some(process.pid))
    }

    /// Whether a child of the first process of a PID namespace was made by another process in it, which has ended: it
    /// is in a session of the namespace that is not its parent's.
    fn is_orphan(&self, child: &Process, parent: &Process) -> bool {
        let namespace = self.levels.namespace(parent.pid);
        namespace.is_some_and(|inner| self.levels.first(inner) == Some(parent.pid))
            && self.levels.namespace(child.pid) == namespace
            && child.sid != child.pid
            && child.sid != parent.sid
            && self.levels.seen(namespace, child.sid).is_some()
    }

    fn create(&mut self, process: &'a Process, by: Option<i32>) -> Result<()> {
        let namespace = self.levels.namespace(process.pid);
        self.namespaces.insert(process.pid, namespace);
        self.steps.push(Step::Create {
            pid: process.pid,
            by,
            helper: false,
        });
        let session = by.and_then(|by| self.session.get(&by).copied().flatten());
        let group = by.and_then(|by| self.group.get(&by).copied().flatten());
        self.session.insert(process.pid, session);
        self.group.insert(process.pid, group);
        self.put_into_group(process, by)?;
        self.populate(process)
    }

    /// Puts a process into its group where it could not join it by itself later.
    fn put_into_group(&mut self, process: &Process, by: Option<i32>) -> Result<()> {
        let (pid, group) = (process.pid, process.pgid);
        let seen = |namespace: Option<PidNamespaceId>| self.levels.seen(namespace, group).is_some();
        if self.external.contains(&group)
            || self.group.get(&pid) == Some(&Some(group))
            || seen(self.levels.namespace(pid))
        {
            return Ok(());
        }
        let parent = by.filter(|by| seen(self.namespaces.get(by).copied().flatten()));
        let (Some(parent), true) = (parent, self.session.contains_key(&group)) else {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("process {pid} cannot be put into process group {group} from its PID namespace"),
            ));
        };
        if self.group.get(&group) != Some(&Some(group)) {
            self.join(group, group, group);
        }
        self.join(pid, group, parent);
        Ok(())
    }

    fn join(&mut self, pid: i32, group: i32, by: i32) {
        self.steps.push(Step::JoinGroup { pid, group, by });
        self.group.insert(pid, Some(group));
    }

    /// Makes the children of a process, before and after it makes its own session.
    fn populate(&mut self, process: &'a Process) -> Result<()> {
        let pid = process.pid;
        let children: Vec<&'a Process> = self.children.get(&pid).cloned().unwrap_or_default();
        let (orphans, mut waiting): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|child| self.is_orphan(child, process));
        self.orphans.extend(orphans);
        let leads = process.sid == pid && self.session.get(&pid) != Some(&Some(pid));
        if leads {
            let here = self.session.get(&pid).copied().flatten();
            let (early, late): (Vec<&Process>, Vec<&Process>) = waiting
                .into_iter()
                .partition(|child| self.birth_session(child).is_some_and(|s| s == here));
            for child in early {
                self.create(child, Some(pid))?;
            }
            self.steps.push(Step::NewSession { pid });
            self.session.insert(pid, Some(pid));
            self.group.insert(pid, Some(pid));
            waiting = late;
        }
        let here = self.session.get(&pid).copied().flatten();
        for child in waiting {
            if self.birth_session(child).is_some_and(|s| s != here) {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!(
                        "process {} cannot be in session {} and be a child of {pid}",
                        child.pid, child.sid
                    ),
                ));
            }
            self.create(child, Some(pid))?;
        }
        Ok(())
    }

    /// An orphan in a session that is not its parent's: born into it by a helper that ends.
    fn adopt(&mut self, process: &'a Process) -> Result<()> {
        // Who orphans come to: the restarter, or the first process of a PID namespace.
        let reaper = self.by_pid.contains_key(&process.ppid).then_some(process.ppid);
        let Some(Some(session)) = self.birth_session(process) else {
            return self.create(process, reaper);
        };
        let by = if self.by_pid.contains_key(&session) {
            // The leader lives: a child of it makes the orphan and ends.
            if self.session.get(&session) != Some(&Some(session)) {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!("session {session} of process {} has no leader", process.pid),
                ));
            }
            let helper = self.free_pid();
            self.help(helper, Some(session));
            self.session.insert(helper, Some(session));
            let group = self.group.get(&session).copied().flatten();
            self.group.insert(helper, group);
            helper
        } else {
            if !self.session.contains_key(&session) {
                self.help(session, reaper);
                self.steps.push(Step::NewSession { pid: session });
                self.session.insert(session, Some(session));
                self.group.insert(session, Some(session));
            }
            session
        };
        let of = |pid: i32| self.namespaces.get(&pid).copied().flatten();
        if reaper.is_some_and(|reaper| of(by) != of(reaper)) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "session {session} of process {} is led from outside its PID namespace",
                    process.pid
                ),
            ));
        }
        self.create(process, Some(by))
    }

    fn help(&mut self, pid: i32, by: Option<i32>) {
        let namespace = by.and_then(|by| self.namespaces.get(&by).copied().flatten());
        self.namespaces.insert(pid, namespace);
        self.steps.push(Step::Create { pid, by, helper: true });
        self.helpers.push((pid, by));
    }

    fn free_pid(&self) -> i32 {
        let used = self
            .session
            .keys()
            .chain(self.by_pid.keys())
            .copied()
            .max()
            .unwrap_or(1);
        let threads = self.by_pid.values().flat_map(|p| p.threads.iter().map(|t| t.tid)).max();
        used.max(threads.unwrap_or(1)) + 1
    }

    fn groups(&mut self, processes: &[Process]) -> Result<()> {
        let mut wanted: Vec<(&Process, i32)> = processes
            .iter()
            .filter(|p| !self.external.contains(&p.pgid))
            .map(|p| (p, p.pgid))
            .collect();
        // Leaders first.
        wanted.sort_by_key(|(process, group)| process.pid != *group);
        for (process, group) in wanted {
            if self.group.get(&process.pid).copied().flatten() == Some(group) {
                continue;
            }
            let leader_exists = self.session.contains_key(&group);
            if group != process.pid && !leader_exists {
                self.help(group, Some(process.pid));
                let session = self.session.get(&process.pid).copied().flatten();
                self.session.insert(group, session);
                self.join(group, group, group);
            }
            self.join(process.pid, group, process.pid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Process {
        Process {
            pid,
            ppid,
            pgid,
            sid,
            ..Process::default()
        }
    }

    /// Runs the steps on a model of the kernel and checks the relations that come out.
    fn check(processes: &[Process]) {
        check_in(processes, &Levels::default());
    }

    fn check_in(processes: &[Process], levels: &Levels) {
        let steps = plan(processes, true, processes[0].pid, levels).unwrap();
        let mut now: HashMap<i32, (i32, i32, i32)> = [(1, (0, 0, 0))].into();
        for step in steps {
            match step {
                Step::Create { pid, by, .. } => {
                    let by = by.unwrap_or(1);
                    let (_, group, session) = now[&by];
                    assert!(now.insert(pid, (by, group, session)).is_none(), "{pid} twice");
                }
                Step::NewSession { pid } => {
                    let parent = now[&pid].0;
                    now.insert(pid, (parent, pid, pid));
                }
                Step::JoinGroup { pid, group, by } => {
                    let (parent, _, session) = now[&pid];
                    assert!(by == pid || by == parent);
                    let namespace = levels.namespace(by);
                    assert!(
                        [pid, group]
                            .iter()
                            .all(|number| levels.seen(namespace, *number).is_some())
                    );
                    assert!(group == pid || now.values().any(|p| p.1 == group && p.2 == session));
                    now.insert(pid, (parent, group, session));
                }
                Step::EndHelper { pid, .. } => {
                    now.remove(&pid);
                    for (child, process) in now.iter_mut().filter(|(_, p)| p.0 == pid) {
                        process.0 = levels.namespace(*child).and_then(|id| levels.first(id)).unwrap_or(1);
                    }
                }
                Step::Die { .. } => {}
            }
        }
        for p in processes {
            assert_eq!(now[&p.pid], (p.ppid, p.pgid, p.sid), "{}", p.pid);
        }
        assert_eq!(now.len(), processes.len() + 1, "helpers left");
    }

    #[test]
    fn trees_sessions_groups_and_orphans() {
        check(&[process(10, 1, 0, 0), process(11, 10, 11, 0), process(12, 10, 11, 0)]);
        check(&[process(10, 1, 10, 10), process(11, 10, 11, 10), process(12, 11, 12, 12)]);
        // A leader whose child stayed in the session before.
        check(&[process(9, 1, 9, 9), process(10, 9, 10, 10), process(11, 10, 9, 9)]);
        // Group leader dead.
        check(&[process(10, 1, 10, 10), process(12, 10, 11, 10), process(13, 10, 11, 10)]);
        // Session leader dead: a daemon.
        check(&[process(10, 1, 0, 0), process(20, 1, 19, 19), process(21, 20, 19, 19)]);
        // An orphan in the session of a living leader.
        check(&[process(10, 1, 10, 10), process(20, 1, 10, 10)]);
    }

    #[test]
    fn pid_namespaces() {
        let inner = |mut process: Process| {
            process.pid_namespace = Some(PidNamespaceId(0));
            process
        };
        let job = |processes: Vec<Process>, numbers: Vec<(i32, i32)>| {
            let manifest = Manifest {
                processes,
                pid_namespaces: vec![cpr_image::model::PidNamespace {
                    numbers,
                    ..Default::default()
                }],
                ..Manifest::default()
            };
            check_in(&manifest.processes, &Levels::of(&manifest));
        };
        // The group and the session of all of it are led from outside.
        job(
            vec![
                process(10, 1, 10, 10),
                process(11, 10, 11, 10),
                inner(process(12, 11, 11, 10)),
                inner(process(13, 12, 11, 10)),
            ],
            vec![(12, 1), (13, 2)],
        );
        // A daemon whose session's leader has ended, and an orphan in the session of one who lives.
        job(
            vec![
                process(10, 1, 0, 0),
                inner(process(12, 10, 12, 12)),
                inner(process(14, 12, 13, 13)),
                inner(process(15, 12, 15, 15)),
                inner(process(17, 12, 15, 15)),
            ],
            vec![(12, 1), (13, 2), (14, 3), (15, 4), (17, 6)],
        );
    }
}
