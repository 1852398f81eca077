//! Processes held by pidfd, and what /proc says of them. A PID alone is never trusted across a gap: the pidfd is opened
//! first, then the identity is compared.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use cpr_kernel::namespace;
use cpr_kernel::proc::ProcDir;
use cpr_kernel::spawn::signal_pidfd;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A PID that cannot be mistaken for a later process of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// PID in the namespace of whoever recorded it.
    pub(crate) pid: i32,
    /// Start time, clock ticks since boot (field 22 of /proc/PID/stat).
    pub(crate) start: u64,
}

impl Identity {
    /// Of this process.
    pub(crate) fn own() -> Result<Identity> {
        Identity::of(std::process::id() as i32)
    }

    /// Of a process that is known to be there (our child, not yet waited for).
    pub(crate) fn of(pid: i32) -> Result<Identity> {
        Ok(Identity {
            pid,
            start: start_time(pid)?,
        })
    }
}

/// A process held by its pidfd.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

fn gone(pid: i32) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no process {pid}"))
}

impl Target {
    /// Holds process `pid`.
    pub(crate) fn open(pid: i32) -> Result<Target> {
        let raw = if pid > 0 { Pid::from_raw(pid) } else { None };
        let raw = raw.ok_or_else(|| Error::new(ErrorKind::Usage, format!("{pid} is no process ID")))?;
        match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Target { pid, pidfd }),
            Err(rustix::io::Errno::SRCH) => Err(gone(pid)),
            // A thread that is not the leader of its process.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Err(Error::new(
                ErrorKind::Usage,
                format!("{pid} is a thread, not a process"),
            )),
            Err(error) => Err(std::io::Error::from(error)).context(|| format!("open process {pid}")),
        }
    }

    /// Holds the process that was recorded as `identity`; an error of kind `Gone` where it has ended.
    pub(crate) fn open_same(identity: Identity) -> Result<Target> {
        let ended = || Error::new(ErrorKind::Gone, format!("process {} has ended", identity.pid));
        let target = Target::open(identity.pid).map_err(|_| ended())?;
        match start_time(identity.pid) {
            Ok(start) if start == identity.start => Ok(target),
            _ => Err(ended()),
        }
    }

    /// Holds the same process once more.
    pub(crate) fn try_clone(&self) -> Result<Target> {
        let (pid, pidfd) = (self.pid, self.pidfd.try_clone());
        let pidfd = pidfd.context(|| format!("hold process {pid}"))?;
        Ok(Target { pid, pidfd })
    }

    /// Whether it has ended, or is about to: waits a moment for one that may just have been killed.
    pub(crate) fn is_ending(&self) -> bool {
        const MOMENT: Duration = Duration::from_secs(1);
        let ending = || cpr_kernel::proc::stat_of(self.pid).map_or(true, |stat| stat.is_ending());
        ending() || self.wait(Some(Instant::now() + MOMENT)).unwrap_or(false) || ending()
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        signal_pidfd(self.pidfd(), signal).map_err(|error| match error.raw_os_error() {
            Some(libc_errno::ESRCH) => Error::new(ErrorKind::Gone, format!("process {} has ended", self.pid)),
            Some(libc_errno::EPERM) => Error::new(
                ErrorKind::Denied,
                format!("process {} belongs to somebody else: you may not signal it", self.pid),
            ),
            _ => Error::new(ErrorKind::of_io(&error), format!("signal process {}", self.pid)).with_source(error),
        })
    }

    /// Requires that we may signal the process (LBNL-3.6.2.1).
    pub(crate) fn require_may_signal(&self) -> Result<()> {
        self.signal(0)
    }

    /// Waits for its end; false when `deadline` passed first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let ready = crate::wire::wait(&[(self.pidfd(), PollFlags::IN)], deadline)
            .context(|| format!("wait for process {}", self.pid))?;
        Ok(ready.iter().any(|r| *r))
    }
}

/// Numbers of `<asm-generic/errno-base.h>`.
mod libc_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ESRCH: i32 = 3;
}

fn read(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    match cpr_kernel::proc::record_of(pid, name) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if matches!(error.raw_os_error(), Some(2 | libc_errno::ESRCH)) => {
            Err(Error::new(ErrorKind::Gone, format!("process {pid} has ended")))
        }
        Err(error) => Err(error).context(|| format!("read {path}")),
    }
}

/// State letter and start time from /proc/PID/stat.
fn stat(pid: i32) -> Result<(char, u64)> {
    let text = read(pid, "stat")?;
    let parse = || {
        let rest = &text[text.rfind(')')? + 1..];
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let state = match (fields.first()?.chars().next()?, fields.get(17)?.parse::<u32>().ok()?) {
            // Only the main thread has ended.
            ('Z', 2..) => 'S',
            (state, _) => state,
        };
        Some((state, fields.get(19)?.parse().ok()?))
    };
    parse().ok_or_else(|| crate::wire::internal(format!("/proc/{pid}/stat is not understood")))
}

fn start_time(pid: i32) -> Result<u64> {
    Ok(stat(pid)?.1)
}

/// The session a process is in, as its number here.
pub(crate) fn session(pid: i32) -> Result<i32> {
    let text = read(pid, "stat")?;
    let field = text
        .rfind(')')
        .and_then(|at| text[at + 1..].split_ascii_whitespace().nth(3));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| crate::wire::internal(format!("/proc/{pid}/stat is not understood")))
}

/// The processes of a session, held; its leader first, where that lives.
pub(crate) fn session_members(sid: i32) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for pid in all_pids()? {
        if !session(pid).is_ok_and(|s| s == sid) {
            continue;
        }
        // Held first, and asked again: the number may have gone to another process.
        if let Ok(target) = Target::open(pid)
            && session(pid).is_ok_and(|s| s == sid)
            && state(pid).is_ok_and(|s| s != 'Z')
        {
            found.push(target);
        }
    }
    found.sort_by_key(|target| (target.pid != sid, target.pid));
    Ok(found)
}

/// A process and all below it, held.
pub(crate) fn tree(root: Target) -> Result<Vec<Target>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all_pids()? {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(above) = found.get(next).map(|target| target.pid) {
        next += 1;
        for pid in children.remove(&above).unwrap_or_default() {
            if let Ok(target) = Target::open(pid)
                && parent(pid) == Some(above)
            {
                found.push(target);
            }
        }
    }
    Ok(found)
}

/// Whether `pid` is `ancestor` or below it.
pub(crate) fn descends_from(pid: i32, ancestor: i32) -> bool {
    let mut at = Some(pid);
    while let Some(pid) = at.filter(|pid| *pid > 0) {
        if pid == ancestor {
            return true;
        }
        at = parent(pid);
    }
    false
}

/// State letter of /proc/PID/stat: `R`, `S`, `T`, `Z`…
pub(crate) fn state(pid: i32) -> Result<char> {
    Ok(stat(pid)?.0)
}

/// A line of /proc/PID/status.
pub(crate) fn status_line(pid: i32, key: &str) -> Result<Option<String>> {
    let text = read(pid, "status")?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(|v| v.trim().to_string())))
}

/// The PID in each PID namespace, from /proc's down to the process's own.
pub(crate) fn namespace_pids(pid: i32) -> Result<Vec<i32>> {
    let line = status_line(pid, "NSpid")?.unwrap_or_default();
    let pids: Vec<i32> = line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    if pids.is_empty() {
        return Err(crate::wire::internal(format!("/proc/{pid}/status has no NSpid")));
    }
    Ok(pids)
}

/// Whether a process is the first one of a PID namespace of its own, as that of a container, which is saved with it. The
/// init of a job of ours is no part of the job; and in namespaces of other users than ours we have no business.
pub(crate) fn brings_namespace(pid: i32) -> bool {
    let user = |process: &str| namespace::identity(process, "user").ok();
    let is_ours = || status_line(pid, "Name").is_ok_and(|name| name.as_deref() == Some("cpr-init"));
    namespace_pids(pid).is_ok_and(|pids| pids.len() > 1 && pids.last() == Some(&1))
        && !is_ours()
        && user("self").is_some_and(|own| user(&pid.to_string()) == Some(own))
}

/// The session of a process, as its number in the process's own PID namespace.
pub(crate) fn inner_session(pid: i32) -> Result<i32> {
    let line = status_line(pid, "NSsid")?.unwrap_or_default();
    let last = line.split_ascii_whitespace().last().and_then(|n| n.parse().ok());
    last.ok_or_else(|| crate::wire::internal(format!("/proc/{pid}/status has no NSsid")))
}

/// All process IDs in /proc.
pub(crate) fn all_pids() -> Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc").context(|| "list /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// The parent of the process `pid`.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    status_line(pid, "PPid").ok().flatten()?.parse().ok()
}

/// A process of a PID namespace seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// PID here.
    pub(crate) pid: i32,
    /// PID in the namespace.
    pub(crate) inner: i32,
}

/// Whether the PID namespace of a process lies within another, which has this identity.
fn is_within(pid: i32, around: (u64, u64)) -> bool {
    let parent = |namespace: &File| {
        let parent = cpr_kernel::namespace::parent(namespace.as_fd()).map(File::from).ok()?;
        let metadata = parent.metadata().ok()?;
        Some((parent, (metadata.dev(), metadata.ino())))
    };
    let mut namespace = File::open(format!("/proc/{pid}/ns/pid")).ok();
    // It ends at our own.
    while let Some((next, identity)) = namespace.as_ref().and_then(parent) {
        if identity == around {
            return true;
        }
        namespace = Some(next);
    }
    false
}

/// The processes that live in the same PID namespace as the process `init`, that one first, or in one within that.
pub(crate) fn members(init: i32) -> Result<Vec<Member>> {
    let namespace = cpr_kernel::namespace::identity(&init.to_string(), "pid")
        .context(|| format!("read the PID namespace of process {init}"))?;
    let depth = namespace_pids(init)?.len();
    let mut members = Vec::new();
    for pid in all_pids()? {
        // A process that is not ours to see is not of our job; one that has ended no longer.
        let Ok(theirs) = cpr_kernel::namespace::identity(&pid.to_string(), "pid") else {
            continue;
        };
        let numbers = namespace_pids(pid).unwrap_or_default();
        let deeper = numbers.len() > depth && is_within(pid, namespace);
        if theirs != namespace && !deeper {
            continue;
        }
        if let Some(&inner) = numbers.get(depth - 1) {
            members.push(Member { pid, inner });
        }
    }
    members.sort_by_key(|m| (m.pid != init, m.pid));
    Ok(members)
}

/// The first `wanted` process below `init`, as far as a look at running processes tells: it may be missed while others
/// end. Quicker than [`members`], and does not see who has entered the namespace from outside.
pub(crate) fn find_below(init: i32, mut wanted: impl FnMut(Member) -> bool) -> Option<Member> {
    let depth = namespace_pids(init).map_or(1, |pids| pids.len());
    let mut found: Vec<i32> = vec![init];
    let mut seen = HashSet::from([init]);
    let mut looked_at = 0;
    while let Some(&above) = found.get(looked_at) {
        looked_at += 1;
        let children = ProcDir::open(above).and_then(|dir| dir.children()).unwrap_or_default();
        for pid in children {
            let Some(&inner) = namespace_pids(pid).ok().as_ref().and_then(|pids| pids.get(depth - 1)) else {
                continue;
            };
            if !seen.insert(pid) {
                continue;
            }
            let member = Member { pid, inner };
            if wanted(member) {
                return Some(member);
            }
            found.push(pid);
        }
    }
    None
}

/// A process of a job with a tracer, such as a debugger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traced {
    /// PID in the job's namespace.
    pub(crate) inner: i32,
    /// Who traces it, by PID here and by name.
    pub(crate) reason: String,
}

/// The processes in the PID namespace of `init` that somebody traces. Inside the namespace a tracer that lives outside
/// cannot be seen: its PID reads as 0 there. Workers of ours do not count, they are gone in a moment.
///
/// Without `init`, those of our own PID namespace.
pub(crate) fn traced(init: Option<i32>, worker_name: &str) -> Result<Vec<Traced>> {
    let members = match init {
        Some(init) => {
            let mut members = Vec::new();
            find_below(init, |member| {
                members.push(member);
                false
            });
            members
        }
        None => all_pids()?.into_iter().map(|pid| Member { pid, inner: pid }).collect(),
    };
    let mut found = Vec::new();
    for member in members {
        // What ends meanwhile is traced no longer.
        let Ok(proc) = ProcDir::open(member.pid) else {
            continue;
        };
        let tasks = proc.tasks().unwrap_or_default();
        let tracers = tasks.into_iter().filter_map(|tid| {
            let tracer = proc.task_status(tid).ok()?.tracer_pid;
            (tracer != 0).then_some(tracer)
        });
        let tracers: std::collections::BTreeSet<i32> = tracers.collect();
        for tracer in tracers {
            let name = status_line(tracer, "Name").ok().flatten().unwrap_or_default();
            if name != worker_name {
                found.push(Traced {
                    inner: member.inner,
                    reason: format!("being traced by process {tracer} ({name})"),
                });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn identity_tells_processes_apart() {
        let own = Identity::own().unwrap();
        assert_eq!(Target::open_same(own).unwrap().pid, own.pid);
        let other = Identity {
            start: own.start + 1,
            ..own
        };
        assert_eq!(Target::open_same(other).unwrap_err().kind(), ErrorKind::Gone);
        assert_eq!(Target::open(-1).unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(Target::open(i32::MAX).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(members(own.pid).unwrap().iter().any(|m| m.pid == own.pid));
    }
}
