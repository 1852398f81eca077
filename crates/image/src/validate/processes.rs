//! Processes and threads.

use std::collections::{HashMap, HashSet};

use cpr_types::Result;

use super::{
    Check, MAX_FILE, MAX_PID, MAX_SIGNAL, Verdict, blob, descriptor, in_table, path, pid, siginfos, signal, within,
    wrong,
};
use crate::model::*;

/// SIGEV_THREAD_ID.
const NOTIFY_THREAD: i32 = 4;

impl Check<'_> {
    /// Checks all processes and returns their PIDs.
    pub(super) fn processes(&self) -> Result<HashSet<i32>> {
        let processes = &self.manifest.processes;
        let mut order = HashMap::with_capacity(processes.len());
        let mut tids = HashSet::new();
        let mut spaces = HashSet::new();
        for (index, process) in processes.iter().enumerate() {
            let this = |what: String| wrong(format!("process {}: {what}", process.pid));
            pid(process.pid).map_err(this)?;
            if order.insert(process.pid, index).is_some() {
                return Err(this("it is listed twice".to_string()));
            }
            // A leader that has ended, alone or with all others, is not listed, but its ID is taken all the same.
            let ended = process.threads.is_empty() || process.ended_leader.is_some();
            let leader = ended.then_some(process.pid);
            for tid in process.threads.iter().map(|thread| thread.tid).chain(leader) {
                pid(tid).map_err(this)?;
                if !tids.insert(tid) {
                    return Err(this(format!("thread {tid} is listed twice")));
                }
            }
            if process.address_space.is_some_and(|id| !spaces.insert(id)) {
                return Err(this("its address space belongs to another process".to_string()));
            }
            self.process(process).map_err(this)?;
        }
        for (index, process) in processes.iter().enumerate() {
            if order.get(&process.ppid).is_some_and(|parent| *parent >= index) {
                let what = format!(
                    "process {}: its parent {} does not come before it",
                    process.pid, process.ppid
                );
                return Err(wrong(what));
            }
        }
        for process in processes.iter().filter(|process| process.shares_descriptors) {
            let parent = order.get(&process.ppid).and_then(|index| processes.get(*index));
            if !process.descriptors.is_empty() || parent.is_none_or(|parent| parent.threads.is_empty()) {
                return Err(wrong(format!(
                    "process {} cannot share descriptors with its parent {}",
                    process.pid, process.ppid
                )));
            }
        }
        let root = self.manifest.checkpoint.root_pid;
        if root != 0 && !order.contains_key(&root) {
            return Err(wrong(format!("there is no process {root}, of which the checkpoint is")));
        }
        Ok(order.into_keys().collect())
    }

    pub(super) fn process(&self, process: &Process) -> Verdict {
        match process.state {
            ProcessState::Zombie(_) => {
                within(
                    process.threads.is_empty() && process.address_space.is_none() && process.ended_leader.is_none(),
                    "zombie with threads or memory",
                )?;
            }
            ProcessState::Running | ProcessState::Stopped(_) => {
                let leader = process.threads.first().ok_or("it has no threads")?;
                within(
                    leader.tid == process.pid || process.ended_leader.is_some(),
                    "leading thread",
                )?;
                let space = process.address_space.ok_or("it has no address space")?;
                in_table(space.index(), &self.manifest.address_spaces, "address space")?;
            }
        }
        if let ProcessState::Stopped(number) = process.state {
            signal(number)?;
        }
        for (id, what) in [
            (process.ppid, "parent"),
            (process.pgid, "process group"),
            (process.sid, "session"),
        ] {
            within((0..=MAX_PID).contains(&id), what)?;
        }
        let mut last = -1;
        for open in &process.descriptors {
            descriptor(open.fd)?;
            if open.fd <= last {
                return Err(format!("descriptor {} is out of order or listed twice", open.fd));
            }
            last = open.fd;
            in_table(open.file.index(), &self.manifest.files, "open file")?;
        }
        path(&process.cwd)?;
        path(&process.root)?;
        within(process.umask <= 0o7777, "umask")?;
        let mut resources = HashSet::new();
        for limit in &process.limits {
            within(
                limit.resource < 64 && resources.insert(limit.resource),
                "resource limit",
            )?;
        }
        let mut signals = HashSet::new();
        for action in &process.signal_actions {
            signal(action.signal)?;
            within(signals.insert(action.signal), "second action for one signal")?;
        }
        siginfos(&process.pending_signals)?;
        for timer in &process.interval_timers {
            within((0..=2).contains(&timer.which), "interval timer")?;
        }
        let mut timers = HashSet::new();
        for timer in &process.posix_timers {
            within(timer.id >= 0 && timers.insert(timer.id), "timer ID")?;
            within((0..=MAX_SIGNAL).contains(&timer.signal), "timer signal")?;
            if timer.notify == NOTIFY_THREAD && !process.threads.iter().any(|thread| thread.tid == timer.thread) {
                return Err(format!("timer {} is of a thread that is missing", timer.id));
            }
        }
        for lock in &process.posix_locks {
            if process
                .descriptors
                .binary_search_by_key(&lock.fd, |open| open.fd)
                .is_err()
            {
                return Err(format!("there is no descriptor {} for a file lock", lock.fd));
            }
            within(
                lock.start
                    .checked_add(lock.length)
                    .is_some_and(|end| end - 1.min(end) <= MAX_FILE),
                "file lock",
            )?;
        }
        within((-1000..=1000).contains(&process.oom_score_adj), "oom_score_adj")?;
        for saved in process.cwd_saved.iter().chain(&process.root_saved) {
            in_table(saved.index(), &self.manifest.saved_files, "saved file")?;
        }
        if let Some(names) = process.host_names {
            in_table(names.index(), &self.manifest.host_names, "namespace for host names")?;
        }
        for id in process.time_namespace.iter().chain(&process.time_namespace_of_children) {
            in_table(id.index(), &self.manifest.time_namespaces, "time namespace")?;
        }
        self.network(process.network)?;
        self.ipc_namespace(process.ipc_namespace)?;
        if let Some(CgroupNamespaceId(id)) = process.cgroup_namespace {
            within(id < self.manifest.cgroup_namespaces, "cgroup namespace")?;
        }
        for namespace in [process.pid_namespace, process.pid_namespace_of_children] {
            namespace.map_or(Ok(()), |id| {
                in_table(id.index(), &self.manifest.pid_namespaces, "PID namespace")
            })?;
        }
        process.mount_namespace.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.mount_namespaces, "mount namespace")
        })?;
        if let Some(terminal) = process.controlling_terminal {
            in_table(terminal.index(), &self.manifest.terminals, "terminal")?;
        }
        if let Some(ended) = &process.ended_leader {
            within(ended.name.0.len() <= 64 && !ended.name.0.contains(&0), "name")?;
            within(ended.credentials.groups.len() <= 65536, "number of groups")?;
        }
        for thread in &process.threads {
            self.thread(thread)
                .map_err(|what| format!("thread {}: {what}", thread.tid))?;
        }
        Ok(())
    }

    pub(super) fn thread(&self, thread: &Thread) -> Verdict {
        if let Some(own) = &thread.directories {
            path(&own.cwd)?;
            path(&own.root)?;
            within(own.umask <= 0o7777, "umask")?;
        }
        if let Seccomp::Filters(filters) = &thread.seccomp {
            // The kernel limits what all filters of a thread take together to 32768 instructions.
            within(filters.len() <= 32768, "number of seccomp filters")?;
            for filter in filters {
                let length = filter.program.0.len();
                within(
                    length.is_multiple_of(8) && (8..=4096 * 8).contains(&length),
                    "seccomp filter",
                )?;
            }
        }
        within(thread.memory_policy.nodes.0.len() <= 8192, "memory policy")?;
        within(thread.speculation.len() <= 3, "speculation controls")?;
        within(thread.name.0.len() <= 64 && !thread.name.0.contains(&0), "name")?;
        blob(&thread.cpu.general, "register set")?;
        blob(&thread.cpu.extended, "register set")?;
        siginfos(&thread.pending_signals)?;
        within(
            (0..=MAX_SIGNAL).contains(&thread.parent_death_signal),
            "parent-death signal",
        )?;
        blob(&thread.scheduling.affinity, "processor mask")?;
        within((-20..=19).contains(&thread.scheduling.nice), "nice value")?;
        // NGROUPS_MAX.
        within(thread.credentials.groups.len() <= 65536, "number of groups")
    }
}
