//! PID namespaces that a job has made within its own.
//!
//! Everywhere else processes have the numbers of the job's own namespace.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use cpr_image::model::{Manifest, PidNamespace, PidNamespaceId, ProcessState, UserNamespaceId};
use cpr_kernel::namespace;
use cpr_kernel::proc::{ProcDir, Status};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::blockers::Home;
use crate::freeze::Process;
use crate::user_namespaces;

/// Those found so far.
#[derive(Debug, Default)]
pub struct Saved {
    found: Vec<Found>,
    by_link: HashMap<Vec<u8>, PidNamespaceId>,
}

#[derive(Debug)]
struct Found {
    parent: Option<PidNamespaceId>,
    owner: Option<UserNamespaceId>,
    numbers: BTreeMap<i32, i32>,
}

fn link_of(namespace: &File) -> std::io::Result<Vec<u8>> {
    Ok(format!("pid:[{}]", namespace.metadata()?.ino()).into_bytes())
}

impl Saved {
    /// The namespace of a stopped process, which may be a zombie, where it is not the job's.
    ///
    /// # Errors
    /// The process cannot be looked at.
    pub fn of(
        &mut self,
        process: &Process,
        home: &Home,
        users: &mut user_namespaces::Saved,
    ) -> Result<Option<PidNamespaceId>> {
        let levels = process.status.ns_pid.len().saturating_sub(home.depth());
        if levels == 0 {
            return Ok(None);
        }
        let what = || format!("look at the PID namespace of process {}", process.pid);
        let opened = process.proc.open_file("ns/pid", OFlags::RDONLY).context(what)?;
        let mut chain: Vec<File> = vec![opened.into()];
        while let Some(inner) = chain.last().filter(|_| chain.len() < levels) {
            let around = namespace::parent(inner.as_fd()).context(what)?;
            chain.push(around.into());
        }
        let mut ids = Vec::with_capacity(levels);
        for namespace in chain.iter().rev() {
            let link = link_of(namespace).context(what)?;
            let id = match self.by_link.get(&link) {
                Some(known) => *known,
                None => {
                    let owner = users.owner(namespace, home).context(what)?;
                    self.add(ids.last().copied(), owner)
                }
            };
            self.by_link.insert(link, id);
            ids.push(id);
        }
        self.note(&ids, &process.status, home)?;
        let tids = process.threads.iter().map(|thread| thread.tracee.tid());
        for tid in tids.filter(|tid| *tid != process.pid) {
            let status = ProcDir::open_task(process.pid, tid).and_then(|task| task.status());
            self.note(&ids, &status.context(|| format!("look at thread {tid}"))?, home)?;
        }
        Ok(ids.last().copied())
    }

    /// The namespace with this link in /proc, where it is one of these.
    pub fn by_link(&self, link: &[u8]) -> Option<PidNamespaceId> {
        self.by_link.get(link).copied()
    }

    fn add(&mut self, parent: Option<PidNamespaceId>, owner: Option<UserNamespaceId>) -> PidNamespaceId {
        let id = PidNamespaceId(self.found.len() as u32);
        self.found.push(Found {
            parent,
            owner,
            numbers: BTreeMap::new(),
        });
        id
    }

    /// Notes the numbers that a thread, its process group and its session have in the namespaces `ids`, outermost
    /// first.
    fn note(&mut self, ids: &[PidNamespaceId], status: &Status, home: &Home) -> Result<()> {
        for numbers in [&status.ns_pid, &status.ns_pgid, &status.ns_sid] {
            let Some((outside, within)) = numbers.get(home.depth() - 1).zip(numbers.get(home.depth()..)) else {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "process {}: this kernel does not tell its numbers in PID namespaces",
                        status.pid
                    ),
                ));
            };
            // What is led from outside of a namespace has no number in it.
            for (id, number) in ids.iter().zip(within).filter(|(_, number)| **number != 0) {
                if let Some(found) = self.found.get_mut(id.index()) {
                    found.numbers.insert(*outside, *number);
                }
            }
        }
        Ok(())
    }

    /// The namespace that the children of a process are born into, where that is not its own. All processes must be
    /// known.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one whose first process has ended.
    pub fn of_children(
        &mut self,
        process: &Process,
        own: Option<PidNamespaceId>,
        user: Option<UserNamespaceId>,
    ) -> Result<Option<PidNamespaceId>> {
        if process.threads.is_empty() {
            return Ok(None);
        }
        let link = match process.proc.read_link("ns/pid_for_children") {
            Ok(link) => link,
            // It has no process yet. Nothing tells whose it is; who has changed users since could use it no more.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(self.add(own, user))),
            Err(error) => return Err(error).context(|| format!("look at the namespaces of process {}", process.pid)),
        };
        let own = process.proc.read_link("ns/pid");
        if own.context(|| format!("look at the namespaces of process {}", process.pid))? == link {
            return Ok(None);
        }
        match self.by_link.get(&link) {
            Some(id) => Ok(Some(*id)),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("process {}: PID namespace: {ABANDONED}", process.pid),
            )),
        }
    }

    /// All of them.
    pub fn namespaces(self) -> Vec<PidNamespace> {
        let namespace = |found: Found| PidNamespace {
            parent: found.parent,
            owner: found.owner,
            numbers: found.numbers.into_iter().collect(),
        };
        self.found.into_iter().map(namespace).collect()
    }
}

/// Why a namespace for children without processes blocks.
pub const ABANDONED: &str = "no process is left in the PID namespace that it has made for its children";

/// Refuses what cannot be made again of the namespaces of an image.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a first process that a signal has killed, and relations that no order of making
/// processes leads to.
pub fn refuse_unmakeable(manifest: &Manifest) -> Result<()> {
    if manifest.pid_namespaces.is_empty() {
        return Ok(());
    }
    let levels = Levels::of(manifest);
    for process in &manifest.processes {
        let first = levels.seen(process.pid_namespace, process.pid) == Some(1);
        if let ProcessState::Zombie(status) = process.state
            && process.pid_namespace.is_some()
            && first
            && status & 0x7f != 0
        {
            let text = "the first process of a PID namespace was killed, and its parent has not waited for it yet";
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("process {}: {text}", process.pid),
            ));
        }
    }
    crate::restart::refuse_unplanned(manifest)
}

/// What numbers mean in which PID namespace.
#[derive(Debug, Default)]
pub struct Levels {
    owners: Vec<Option<UserNamespaceId>>,
    parents: Vec<Option<PidNamespaceId>>,
    /// For each namespace, numbers in it by those of the job's own.
    tables: Vec<HashMap<i32, i32>>,
    processes: HashMap<i32, PidNamespaceId>,
    /// The highest number of the job's own namespace, and of each of the others.
    highest: i32,
    processes_made: usize,
    highest_inside: Vec<i32>,
}

impl Levels {
    /// Those of an image that was validated.
    pub fn of(manifest: &Manifest) -> Levels {
        let namespaces = &manifest.pid_namespaces;
        let table = |namespace: &PidNamespace| namespace.numbers.iter().copied().collect::<HashMap<i32, i32>>();
        let most = |namespace: &PidNamespace| namespace.numbers.iter().map(|(_, inside)| *inside).max();
        let processes = &manifest.processes;
        let tids = processes
            .iter()
            .flat_map(|process| &process.threads)
            .map(|thread| thread.tid);
        let known = processes
            .iter()
            .flat_map(|process| [process.pid, process.pgid, process.sid]);
        Levels {
            owners: namespaces.iter().map(|namespace| namespace.owner).collect(),
            parents: namespaces.iter().map(|namespace| namespace.parent).collect(),
            tables: namespaces.iter().map(table).collect(),
            processes: processes
                .iter()
                .filter_map(|process| Some((process.pid, process.pid_namespace?)))
                .collect(),
            // Each process has one helper at most.
            processes_made: 2 * manifest.processes.len(),
            highest: tids.chain(known).max().unwrap_or(1),
            highest_inside: namespaces
                .iter()
                .map(|namespace| most(namespace).unwrap_or(1))
                .collect(),
        }
    }

    /// The namespace that a process of the image is in.
    pub fn namespace(&self, pid: i32) -> Option<PidNamespaceId> {
        self.processes.get(&pid).copied()
    }

    /// The one around a namespace.
    pub fn around(&self, namespace: PidNamespaceId) -> Option<PidNamespaceId> {
        self.parents.get(namespace.index()).copied().flatten()
    }

    /// The user namespace that a namespace belongs to.
    pub fn owner(&self, namespace: PidNamespaceId) -> Option<UserNamespaceId> {
        self.owners.get(namespace.index()).copied().flatten()
    }

    /// A number that nothing of the image has, nor the first processes that a restart makes for its own ends.
    pub fn spare(&self, index: usize) -> i32 {
        self.highest + (self.processes_made + index) as i32 + 1
    }

    /// The number by which a process, group or session of the job is known in a namespace, if it is; a number that
    /// nothing of the image has gets one that nothing has there.
    pub fn seen(&self, namespace: Option<PidNamespaceId>, number: i32) -> Option<i32> {
        let Some(namespace) = namespace else {
            return Some(number);
        };
        let beyond = number - self.highest;
        match self.tables.get(namespace.index())?.get(&number) {
            Some(inside) => Some(*inside),
            None if beyond > 0 => Some(self.highest_inside.get(namespace.index())? + beyond),
            None => None,
        }
    }

    /// All numbers of a process, that in its own namespace first and that in the job's last.
    pub fn numbers(&self, mut namespace: Option<PidNamespaceId>, number: i32) -> Option<Vec<i32>> {
        let mut numbers = Vec::new();
        while let Some(id) = namespace {
            numbers.push(self.seen(namespace, number)?);
            namespace = self.around(id);
        }
        numbers.push(number);
        Some(numbers)
    }

    /// The first process of a namespace.
    pub fn first(&self, namespace: PidNamespaceId) -> Option<i32> {
        let table = self.tables.get(namespace.index())?;
        table
            .iter()
            .find_map(|(outside, inside)| (*inside == 1).then_some(*outside))
    }

    /// How deep a namespace is below the job's own.
    pub fn depth(&self, mut namespace: Option<PidNamespaceId>) -> usize {
        let mut depth = 0;
        while let Some(id) = namespace {
            depth += 1;
            namespace = self.around(id);
        }
        depth
    }
}
