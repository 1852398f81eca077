//! What a process is besides its memory and descriptors that no checkpoint can save, as far as /proc and kcmp(2) tell.
//! Nothing is stopped or changed by looking.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::os::fd::AsFd;

use cpr_kernel::namespace::Place;
use cpr_kernel::proc::{Mount, MountTable, ProcDir, Status};
use cpr_kernel::process::{self, KCMP_FS, KCMP_SIGHAND, KCMP_VM};
use cpr_types::{Error, ErrorKind, Result};

use crate::Blocker;
use crate::beside::beside;
use crate::files::Target;
use crate::freeze::{Members, Scope};
use crate::outside::Outside;

/// With so many threads in a process, two threads of ours look at them.
const MANY: usize = 64;

/// What memory shared with another process is called; vfork(2) makes it for moments.
pub const MEMORY: &str = "memory";

/// Why filtered system calls block.
pub const FILTERED: &str = "it filters its system calls with seccomp, and only root can read and suspend the filters";
/// What can be done about it.
pub const FILTERED_HINT: &str = "let root take the checkpoint, or start the program without its sandbox";

/// Kinds of namespaces, as files of /proc/PID/ns, and how they are called.
const NAMESPACES: [(&str, &str); 8] = [
    ("pid", "PID"),
    ("mnt", "mount"),
    ("user", "user"),
    ("net", "network"),
    ("ipc", "IPC"),
    ("uts", "UTS"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// The kinds that are saved; those for which it takes the right to enter or make them.
const SAVED: [&str; 2] = ["uts", "time"];
const VISITED: [&str; 6] = ["net", "ipc", "cgroup", "pid", "user", "mnt"];

/// Kinds that a restart leaves as they are: a job without an init of its own gets those of who restarts it.
const INHERITED: [&str; 4] = ["net", "ipc", "uts", "cgroup"];

/// The namespaces a job lives in: those of its init or, without one, of its root process and ourselves. All members
/// must be in them.
#[derive(Debug)]
pub struct Home {
    /// A process that is in all of them.
    init: i32,
    /// The first process of the job that is in the control groups the job lives in.
    first: i32,
    /// How many PID namespaces deep the reader of /proc is.
    depth: usize,
    /// We can enter namespaces that belong to the job's user namespace.
    may_visit: bool,
    /// We are not in that: paths there are whatever its owner likes, and not for us to follow.
    is_outside: bool,
    /// We can see and suspend system call filters.
    may_suspend_filters: bool,
    /// A thread of ours could not come back from another IPC namespace.
    ipc_is_one_way: bool,
    /// Numbers of mounts that the job has made in the mount namespace it lives in.
    made: HashSet<i32>,
    /// That is saved as one that the job has made.
    has_mounted: bool,
    /// Mount namespaces that were looked at.
    mounted: crate::mount_namespaces::Looks,
    /// By the names of [`NAMESPACES`]; none where the kernel does not tell.
    namespaces: [Option<Vec<u8>>; NAMESPACES.len()],
}

impl Home {
    /// Whether this is the job's own namespace of a kind, by its link in /proc.
    pub fn has(&self, kind: &str, link: &[u8]) -> bool {
        let kinds = NAMESPACES.iter().zip(&self.namespaces);
        let own = kinds
            .filter(|((file, _), _)| *file == kind)
            .find_map(|(_, own)| own.as_deref());
        own.is_none_or(|own| own == link)
    }

    /// What is mounted in the job's own mount namespace, but for what it has mounted there itself, as a restart finds it:
    /// what is mounted there shows nowhere else.
    ///
    /// # Errors
    /// The process that shows it has gone.
    pub fn mounts(&self) -> std::io::Result<Vec<Mount>> {
        let mut mounts = ProcDir::open_living(self.init)?.mountinfo()?;
        mounts.retain(|mount| !self.made.contains(&mount.id));
        if self.has_mounted {
            for mount in &mut mounts {
                mount.optional.retain(|tag| !is_shared(tag));
            }
        }
        Ok(mounts)
    }

    /// What is mounted there, with that which the job has mounted.
    ///
    /// # Errors
    /// The process that shows it has gone.
    pub fn mount_table(&self) -> std::io::Result<MountTable> {
        ProcDir::open_living(self.init)?.mount_table()
    }

    /// Numbers of mounts that the job has made there.
    pub fn made(&self) -> &HashSet<i32> {
        &self.made
    }

    /// The same home, which knows what is mounted `outside`, where a restart makes a new one. A mount namespace in which
    /// the job has mounted anything is none that a restart finds: it is saved as one that the job has made.
    #[must_use]
    pub fn with_mounts(mut self, outside: Option<&Outside>) -> Self {
        let Some(outside) = outside.filter(|_| !self.is_outside) else {
            return self;
        };
        let made = self.mount_table().and_then(|inside| outside.made(&inside));
        self.made = made.unwrap_or_default().iter().map(|mount| mount.id).collect();
        let inside = self.mounts().unwrap_or_default();
        // Where a job is started, mounts follow those of the machine, and nobody follows them.
        let shared = |mount: &Mount| mount.optional.iter().any(|tag| is_shared(tag));
        self.has_mounted = !self.made.is_empty() || inside.iter().any(shared);
        if self.has_mounted {
            let kinds = NAMESPACES.iter().zip(&mut self.namespaces);
            kinds
                .filter(|((file, _), _)| *file == "mnt")
                .for_each(|(_, own)| *own = Some(Vec::new()));
        }
        self
    }

    /// The root directory of the job, opened with O_PATH.
    ///
    /// # Errors
    /// The process that shows it has gone.
    pub fn root(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        ProcDir::open_living(self.init)?.open_file("root", rustix::fs::OFlags::PATH)
    }

    /// Mount namespaces that were looked at so far.
    pub fn mounted(&self) -> &crate::mount_namespaces::Looks {
        &self.mounted
    }

    /// A process that is in all of them, but perhaps that of time.
    pub fn init(&self) -> i32 {
        self.init
    }

    /// A process of the job, or its init, that is in the control groups that the job lives in.
    pub fn in_groups(&self) -> i32 {
        self.first
    }

    /// How many PID namespaces deep the reader of /proc is.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Whether a namespace of a process can be entered, and left again where that is needed.
    pub fn may_visit_kind(&self, process: &ProcDir, kind: &str) -> bool {
        let never = kind == "mnt" && self.is_outside || kind == Place::Ipc.file() && self.ipc_is_one_way;
        !never && self.may_visit(process)
    }

    /// Whether namespaces of a process can be entered: it is in the job's user namespace, or in one within that.
    pub fn may_visit(&self, process: &ProcDir) -> bool {
        self.may_visit && self.is_below(process).unwrap_or_default()
    }

    fn is_below(&self, process: &ProcDir) -> std::io::Result<bool> {
        if self.has("user", &process.read_link("ns/user")?) {
            return Ok(true);
        }
        let mut namespace = process.open_file("ns/user", rustix::fs::OFlags::RDONLY)?;
        loop {
            // It ends with an error at our own.
            namespace = cpr_kernel::namespace::parent(namespace.as_fd())?;
            let inode = rustix::fs::fstat(&namespace)?.st_ino;
            if self.has("user", format!("user:[{inode}]").as_bytes()) {
                return Ok(true);
            }
        }
    }

    /// Looks at the job with this scope and root process.
    pub fn of(scope: Scope, root: i32) -> Self {
        let us = std::process::id() as i32;
        let (init, first) = match scope.members {
            Members::Namespace => (1, 1),
            // The first process of a PID namespace, as of a container, with all that it has of its own, lives where we do.
            Members::Tree(_) | Members::Adopted { .. } if is_apart(root) => (us, root),
            Members::Tree(_) | Members::Adopted { .. } | Members::Session(_) => (root, root),
        };
        let (proc, own) = (ProcDir::open_living(init), ProcDir::open(us));
        let has_init = scope.members == Members::Namespace;
        let namespaces = NAMESPACES.map(|(file, _)| {
            let proc = if has_init || !INHERITED.contains(&file) {
                &proc
            } else {
                &own
            };
            // The clocks of a job that was restarted can be others than those of its init.
            if file == "time" && has_init {
                return time_namespace(scope, root);
            }
            proc.as_ref()
                .ok()
                .and_then(|proc| proc.read_link(&format!("ns/{file}")).ok())
        });
        let user = |dir: &std::io::Result<ProcDir>| dir.as_ref().ok().and_then(|dir| dir.read_link("ns/user").ok());
        let is_outside = user(&proc) != user(&own);
        // Users of another namespace have other numbers, but where it has only users with the numbers that they have
        // here.
        let same_users = !is_outside || proc.as_ref().is_ok_and(keeps_numbers);
        let own_status = own.and_then(|dir| dir.status());
        let may_suspend_filters =
            cpr_kernel::namespace::is_admin_of_machine() && own_status.as_ref().is_ok_and(|status| status.seccomp == 0);
        let depth = own_status.map_or(1, |status| status.ns_pid.len());
        let ipc = Place::Ipc.here();
        let ipc_is_one_way = ipc.and_then(|here| cpr_kernel::namespace::owner(here.as_fd())).is_err();
        Home {
            init,
            first,
            made: HashSet::new(),
            has_mounted: false,
            mounted: crate::mount_namespaces::Looks::default(),
            ipc_is_one_way,
            depth,
            may_visit: cpr_kernel::namespace::is_admin() && same_users,
            is_outside,
            may_suspend_filters,
            namespaces,
        }
    }
}

/// Whether a process is in another PID namespace than we are.
fn is_apart(pid: i32) -> bool {
    let link = |pid: i32| ProcDir::open_living(pid).and_then(|proc| proc.read_link("ns/pid")).ok();
    link(pid)
        .zip(link(std::process::id() as i32))
        .is_some_and(|(theirs, own)| theirs != own)
}

/// The time namespace of a job: that of its root process, or of another one where that has ended.
fn time_namespace(scope: Scope, root: i32) -> Option<Vec<u8>> {
    let of = |pid: i32| ProcDir::open_living(pid).ok()?.read_link("ns/time").ok();
    of(root).or_else(|| crate::freeze::members(scope).ok()?.into_iter().find_map(of))
}

/// Whether all users and groups of a process's user namespace have the same numbers in ours, which must be around it.
fn keeps_numbers(proc: &ProcDir) -> bool {
    let keeps = |name: &str| {
        let text = proc.read(name).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let same = |line: &str| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|inside| words.next() == Some(inside))
        };
        !text.is_empty() && text.lines().all(same)
    };
    cpr_kernel::namespace::is_admin_of_machine() && keeps("uid_map") && keeps("gid_map")
}

/// Everything about one process.
pub fn of_process(proc: &ProcDir, home: &Home) -> Vec<(String, String)> {
    match proc.status() {
        Ok(status) => of_known(proc, &status, proc.auxv().ok().as_deref(), home),
        Err(_) => Vec::new(),
    }
}

/// The same of a process whose status and auxiliary vector have been read.
pub fn of_known(proc: &ProcDir, status: &Status, auxv: Option<&[u8]>, home: &Home) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |object: &str, reason: &str| found.push((object.to_owned(), reason.to_owned()));
    if !home.may_suspend_filters && filtered(proc) {
        add("seccomp filter", FILTERED);
    }
    if status.tracer_pid != 0 {
        let error = crate::freeze::traced(status.pid, status.tracer_pid);
        add("tracer", error.message());
    }
    for ((file, name), shared) in NAMESPACES.iter().zip(&home.namespaces) {
        let object = format!("{name} namespace");
        let Ok(own) = proc.read_link(&format!("ns/{file}")) else {
            continue;
        };
        let is_saved = || SAVED.contains(file) || VISITED.contains(file) && home.may_visit_kind(proc, file);
        if shared.as_ref().is_some_and(|shared| *shared != own) && !is_saved() {
            add(&object, &format!("the process is in a {name} namespace of its own"));
        }
        if !["pid", "time"].contains(file) {
            continue;
        }
        // The namespace of children has no link while it is empty.
        let later = match proc.read_link(&format!("ns/{file}_for_children")) {
            Ok(later) if later == own => continue,
            Ok(later) => Some(later),
            // A process on its way out has none, either, nor any other namespaces.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && proc.read_link("ns/uts").is_ok() => None,
            Err(_) => continue,
        };
        match later {
            _ if !is_saved() => add(
                &object,
                &format!("the process has made a {name} namespace for its children"),
            ),
            Some(_) if *file == "time" && shared.as_ref().is_some_and(|shared| *shared != own) => add(
                &object,
                "the process is in one of its own and has made another one for its children",
            ),
            Some(later) if *file == "pid" && !is_inhabited(&later) => add(&object, crate::pid_namespaces::ABANDONED),
            _ => {}
        }
    }
    if let Some(reason) = crate::mount_namespaces::blocker(proc, home) {
        add("mount namespace", &reason);
    }
    if auxv.is_some_and(is_32_bit) {
        add("program", "32-bit programs are not supported");
    }
    found
}

/// Whether any process is in this PID namespace.
fn is_inhabited(namespace: &[u8]) -> bool {
    let link = |pid: i32| ProcDir::open(pid).and_then(|proc| proc.read_link("ns/pid")).ok();
    let pids = cpr_kernel::proc::pids().unwrap_or_default();
    pids.into_iter().any(|pid| link(pid).as_deref() == Some(namespace))
}

/// Threads in namespaces other than their process's, which a thread can enter or make by itself. (User namespaces and
/// those of time are entered by processes of one thread, and no thread changes its own PID namespace: setns(2).)
pub fn of_threads(proc: &ProcDir) -> Vec<(String, String)> {
    let pid = proc.pid();
    let kinds: Vec<(&str, &str)> = NAMESPACES
        .into_iter()
        .filter(|(file, _)| !["pid", "user", "time"].contains(file))
        .collect();
    let link = |directory: &str, file: &str| proc.read_link(&format!("{directory}ns/{file}")).ok();
    let mut others: Vec<i32> = proc.tasks().unwrap_or_default();
    others.retain(|tid| *tid != pid);
    if others.is_empty() {
        return Vec::new();
    }
    let own: Vec<Option<Vec<u8>>> = kinds.iter().map(|(file, _)| link("", file)).collect();
    let own_pids = link("", "pid");
    let look = |tids: &[i32]| {
        let mut found = Vec::new();
        for tid in tids {
            let directory = format!("task/{tid}/");
            for ((file, name), own) in kinds.iter().zip(&own) {
                let thread = link(&directory, file);
                if own.is_some() && thread.is_some() && *own != thread {
                    let reason = format!("thread {tid} is in a {name} namespace of its own");
                    found.push((format!("{name} namespace"), reason));
                }
            }
            // A process that has made one for its children can start no threads.
            let later = link(&directory, "pid_for_children");
            if own_pids.is_some() && later.is_some() && own_pids != later {
                let reason = format!("thread {tid} has made a PID namespace for its children");
                found.push(("PID namespace".to_owned(), reason));
            }
        }
        found
    };
    let (first, second) = others.split_at(others.len() / 2);
    let halves = beside(others.len() >= MANY, || look(first), || look(second));
    let (mut found, rest) = halves.unwrap_or_else(|_| (look(first), look(second)));
    found.extend(rest);
    found
}

/// Whether this says that a mount and others show each other's mounts.
fn is_shared(tag: &[u8]) -> bool {
    tag.starts_with(b"shared:")
}

/// Mounts that a job has made in its mount namespace, where that is not ours to look into: they are not saved.
pub fn mounts(home: &Home, root: i32, outside: &Outside) -> Vec<Blocker> {
    if !home.is_outside {
        return Vec::new();
    }
    let made = home.mount_table().and_then(|inside| outside.made(&inside));
    made.unwrap_or_default()
        .iter()
        .map(|mount| Blocker {
            pid: root,
            object: format!("mount {}", String::from_utf8_lossy(&mount.mount_point)),
            reason: format!(
                "the job has mounted it ({}), and who is not in its user namespace cannot save that",
                String::from_utf8_lossy(&mount.fs_type)
            ),
            hint: Some("mount it before the job is started, or unmount it first".to_owned()),
            passes: false,
        })
        .collect()
}

/// Processes that were put from outside into the PID namespace that the job's first process leads, as into a container:
/// they are no descendants of it, so that they are not saved, but end with it.
pub fn strangers(home: &Home, targets: &[Target]) -> Vec<Blocker> {
    let link = |pid: i32| ProcDir::open(pid).and_then(|proc| proc.read_link("ns/pid")).ok();
    let Some(own) = link(home.first).filter(|_| home.init != home.first) else {
        return Vec::new();
    };
    let pids = cpr_kernel::proc::pids().unwrap_or_default().into_iter();
    let others = pids.filter(|pid| !targets.iter().any(|target| target.pid == *pid));
    others
        .filter(|pid| link(*pid).as_ref() == Some(&own))
        .map(|pid| Blocker {
            pid,
            object: "process".to_owned(),
            reason: format!(
                "it was put from outside into the PID namespace that process {} leads, and would end with that",
                home.first
            ),
            hint: Some("wait for its end: runtimes run commands in containers that way (exec)".to_owned()),
            passes: false,
        })
        .collect()
}

/// Whether the directory that `cwd` or `root` leads to was deleted. Its link count tells; a name may end in anything.
pub fn is_deleted(proc: &ProcDir, name: &str) -> bool {
    proc.link_stat(name).is_ok_and(|stat| stat.st_nlink == 0)
}

/// Whether any thread filters its system calls.
fn filtered(proc: &ProcDir) -> bool {
    let seccomp = |tid| {
        ProcDir::open_task(proc.pid(), tid)
            .and_then(|task| task.status())
            .is_ok_and(|status| status.seccomp != 0)
    };
    proc.tasks().unwrap_or_default().into_iter().any(seccomp)
}

/// Tells an auxiliary vector of 32-bit words: keys are small, and the first value is not zero.
fn is_32_bit(auxv: &[u8]) -> bool {
    auxv.get(4..8).is_some_and(|high| high != [0; 4])
}

/// Processes that share with another what only threads can share after a restart.
pub fn sharing(targets: &[Target]) -> Vec<Blocker> {
    const KINDS: [(i32, &str, &str); 3] = [
        (KCMP_VM, MEMORY, "its memory"),
        (KCMP_FS, "working directory", "its working directory"),
        (KCMP_SIGHAND, "signal handlers", "its signal handlers"),
    ];
    let mut found = Vec::new();
    for (kind, object, what) in KINDS {
        let mut sorted: Vec<&Target> = Vec::with_capacity(targets.len());
        for target in targets {
            let compare = |other: &&Target| process::compare(kind, other.proc.acting(), target.proc.acting());
            let at = sorted.binary_search_by(|other| compare(other).unwrap_or(Ordering::Less));
            match at {
                Err(at) => sorted.insert(at, target),
                Ok(at) => found.push(Blocker {
                    pid: target.pid,
                    object: object.to_owned(),
                    reason: format!("it shares {what} with process {}", sorted[at].pid),
                    hint: None,
                    passes: object == MEMORY,
                }),
            }
        }
    }
    found
}

/// Refuses processes that share with another what only threads can share. All must be stopped.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the first.
pub fn refuse_sharing(targets: &[Target]) -> Result<()> {
    match sharing(targets).into_iter().next() {
        None => Ok(()),
        Some(blocker) => {
            let error = Error::new(ErrorKind::Unsupported, blocker.to_string());
            Err(match blocker.object.as_str() {
                MEMORY => error
                    .with_hint("try again; if it stays so, the program uses clone(CLONE_VM) without threads")
                    .passing(),
                _ => error,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_vectors_of_both_sizes() {
        let own = ProcDir::open(std::process::id() as i32).unwrap().auxv().unwrap();
        assert!(!is_32_bit(&own));
        // AT_SYSINFO with an address.
        assert!(is_32_bit(&[32, 0, 0, 0, 0x90, 0x15, 0xf3, 0xf7]));
        assert!(!is_32_bit(&[]));
    }
}
