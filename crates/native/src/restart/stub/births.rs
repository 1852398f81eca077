//! Making processes and threads with the numbers they had, in the PID namespaces they were in.

use std::os::fd::{AsFd, BorrowedFd};

use cpr_image::model::{Manifest, PidNamespaceId, UserNamespaceId};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::memory::Memory;
use cpr_kernel::namespace;
use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::{CLONE_ARGUMENTS_SIZE, CloneArguments, PidFd, spawn_stub};
use cpr_kernel::ptrace::{SeizeOptions, Tracee};
use cpr_kernel::remote::INJECTION_MASK;
use cpr_kernel::spawn::Namespaces;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::{Stub, Workshop};
use crate::restart::{living, numbers, users, with_descriptor};

/// Offset of `set_tid` in `struct clone_args`.
const SET_TID_OFFSET: usize = 64;

const CLONE_PTRACE: u64 = 0x2000;
const CLONE_FILES: u64 = 0x400;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_NEWPID: u64 = 0x2000_0000;

impl Workshop {
    /// Makes a process from a copy of ourselves and strips it.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when its PID is taken, [`ErrorKind::Denied`] without the right to choose PIDs.
    pub fn spawn(&mut self, pid: i32) -> Result<()> {
        self.spawn_in(pid, self.levels.namespace(pid))
    }

    /// The same in a PID namespace, for a process that is none of the job's.
    ///
    /// # Errors
    /// As [`Workshop::spawn`].
    pub fn spawn_in(&mut self, pid: i32, namespace: Option<PidNamespaceId>) -> Result<()> {
        let numbers = self.numbers(namespace, pid)?;
        let new = namespace.filter(|id| self.levels.first(*id) == Some(pid));
        if let Some(owner) = new.and_then(|id| self.levels.owner(id)) {
            let midwife = self.spare();
            self.spawn_in(midwife, None)?;
            return self.deliver(pid, midwife, None, owner, false);
        }
        let spawned = match namespace.filter(|_| new.is_none()) {
            None => spawn_stub(&numbers, new.is_some()),
            Some(id) => {
                let what = || format!("go where process {pid} is to be born");
                let home = std::fs::File::open("/proc/self/ns/pid").context(what)?;
                turn_ourselves(self.namespace_file(id)?.as_fd()).context(what)?;
                let spawned = spawn_stub(&numbers, false);
                turn_ourselves(home.as_fd()).context(what)?;
                spawned
            }
        };
        spawned.map_err(|error| numbers::refusal(pid, error))?;
        let pidfd = PidFd::open(pid).context(|| format!("open process {pid}"))?;
        let options = SeizeOptions {
            kill_on_exit: true,
            follow: false,
        };
        let what = || format!("attach to new process {pid}");
        let tracee = Tracee::seize(pid, options).context(what)?;
        tracee.interrupt().context(what)?;
        tracee.wait_interrupted(self.deadline).context(what)?;
        tracee.set_signal_mask(INJECTION_MASK).context(what)?;
        let proc = ProcDir::open(pid).context(what)?;
        let memory = Memory::open(proc.as_fd()).context(what)?;
        let base = tracee.registers().context(what)?;
        let mut stub = Stub {
            tracee,
            memory,
            base,
            threads: Vec::new(),
            pidfd,
            ours: true,
            namespace,
            children: namespace,
            user: None,
        };
        self.strip(&mut stub, &proc)?;
        self.stubs.insert(pid, stub);
        Ok(())
    }

    /// Has process `by` make a child, with its own table of descriptors or that of `by`.
    ///
    /// # Errors
    /// As [`Workshop::spawn`].
    pub fn fork(&mut self, pid: i32, by: i32, shared_table: bool) -> Result<()> {
        let (by_namespace, user) = (self.stub(by)?.namespace, self.stub(by)?.user);
        // A helper is wherever who makes it is.
        let namespace = self.levels.namespace(pid).or(by_namespace);
        let numbers = self.numbers(namespace, pid)?;
        let mut flags = CLONE_PTRACE | if shared_table { CLONE_FILES } else { 0 };
        match namespace.filter(|id| namespace != by_namespace && self.levels.first(*id) == Some(pid)) {
            Some(id) if self.levels.around(id) == by_namespace => {
                self.turn(by, by_namespace)?;
                let owner = self.levels.owner(id);
                if let Some(owner) = owner.filter(|_| owner != user) {
                    let midwife = self.spare();
                    self.fork(midwife, by, shared_table)?;
                    return self.deliver(pid, midwife, Some(by), owner, shared_table);
                }
                flags |= CLONE_NEWPID;
            }
            Some(_) => {
                let text = format!("the PID namespace of process {pid} is not within its parent's");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            None => self.turn(by, namespace)?,
        }
        self.clone_process(pid, by, &numbers, namespace, flags)?;
        self.take_on(pid, namespace, user, false)
    }

    /// Has a process, whose numbers are all to be as they were, made by another.
    fn clone_process(
        &mut self,
        pid: i32,
        by: i32,
        numbers: &[i32],
        namespace: Option<PidNamespaceId>,
        flags: u64,
    ) -> Result<()> {
        let chosen = self.choose_numbers(by, namespace, numbers)?;
        let mut batch = Batch::new();
        // The kernel wants none for one that has its maker's parent: it is told as its maker would be.
        let signal = if flags & CLONE_PARENT == 0 {
            libc::SIGCHLD as u64
        } else {
            0
        };
        let call = clone(&mut batch, &numbers[..chosen], flags, signal);
        let outcome = self.run(by, &batch)?;
        outcome.result(call).map_err(|error| numbers::refusal(pid, error))?;
        self.require_numbers(pid, numbers, chosen)
    }

    /// Has the first process of a PID namespace made that belongs to another user namespace than its parent can make
    /// namespaces for: by a midwife in that user namespace, whose parent it gets. `by`: the parent; we are it else.
    fn deliver(
        &mut self,
        pid: i32,
        midwife: i32,
        by: Option<i32>,
        owner: UserNamespaceId,
        shared_table: bool,
    ) -> Result<()> {
        if self.stub(midwife)?.user.is_none() {
            users::become_like(self, midwife, pid)?;
        }
        users::enter(self, midwife, owner)?;
        let namespace = self.levels.namespace(pid);
        let numbers = self.numbers(namespace, pid)?;
        let shared = if shared_table { CLONE_FILES } else { 0 };
        let flags = CLONE_PTRACE | CLONE_PARENT | CLONE_NEWPID | shared;
        self.clone_process(pid, midwife, &numbers, namespace, flags)?;
        self.take_on(pid, namespace, Some(owner), by.is_none())?;
        self.end(midwife, by)
    }

    /// Takes over a process that a stub has made.
    fn take_on(
        &mut self,
        pid: i32,
        namespace: Option<PidNamespaceId>,
        user: Option<UserNamespaceId>,
        ours: bool,
    ) -> Result<()> {
        let what = || format!("attach to new process {pid}");
        let tracee = Tracee::born(pid);
        tracee.wait_interrupted(self.deadline).context(what)?;
        tracee.set_signal_mask(INJECTION_MASK).context(what)?;
        let proc = ProcDir::open(pid).context(what)?;
        let stub = Stub {
            tracee,
            memory: Memory::open(proc.as_fd()).context(what)?,
            base: tracee.registers().context(what)?,
            threads: Vec::new(),
            pidfd: PidFd::open(pid).context(what)?,
            ours,
            namespace,
            children: namespace,
            user,
        };
        self.stubs.insert(pid, stub);
        Ok(())
    }

    /// How many of the numbers of a new process or thread, the innermost first, who makes it may choose. The kernel is
    /// told that the others are the next ones. `namespace`: the innermost one, which is new where its first process is
    /// made.
    fn choose_numbers(&mut self, by: i32, namespace: Option<PidNamespaceId>, numbers: &[i32]) -> Result<usize> {
        let user = self.stub(by)?.user;
        let mut at = namespace;
        let mut chosen = 0;
        for &number in numbers {
            let owner = at.and_then(|id| self.levels.owner(id));
            if self.users.is_at_or_below(owner, user) {
                chosen += 1;
            } else {
                self.announce(at, number)?;
            }
            at = at.and_then(|id| self.levels.around(id));
        }
        Ok(chosen)
    }

    /// Has the next process in a PID namespace get this number.
    fn announce(&mut self, namespace: Option<PidNamespaceId>, number: i32) -> Result<()> {
        const LAST: &str = "/proc/sys/kernel/ns_last_pid";
        let text = (number - 1).to_string();
        let what = || format!("have the next process get PID {number}");
        let Some(id) = namespace else {
            return std::fs::write(LAST, text).context(what);
        };
        let registrar = match self.registrars.get(&id) {
            Some(registrar) => *registrar,
            None => {
                let registrar = self.spare();
                self.spawn_in(registrar, namespace)?;
                self.registrars.insert(id, registrar);
                registrar
            }
        };
        users::write_in(self, registrar, LAST, &text).context(what)
    }

    /// Makes sure that a new process or thread has its numbers, of which the first ones were chosen.
    fn require_numbers(&self, pid: i32, numbers: &[i32], chosen: usize) -> Result<()> {
        if chosen == numbers.len() {
            return Ok(());
        }
        let status = ProcDir::open(pid).and_then(|proc| proc.status());
        let right = status.is_ok_and(|status| status.ns_pid.iter().rev().take(numbers.len()).eq(numbers));
        match right {
            true => Ok(()),
            false => Err(numbers::refusal(pid, std::io::Error::from_raw_os_error(libc::EEXIST))),
        }
    }

    /// A number for a process that we make for our own ends, which nobody has here.
    pub fn spare(&mut self) -> i32 {
        loop {
            self.spares += 1;
            let number = self.levels.spare(self.spares);
            if ProcDir::open(number).is_err() {
                return number;
            }
        }
    }

    /// The first process of a PID namespace.
    pub fn first_of(&self, namespace: PidNamespaceId) -> Option<i32> {
        self.levels.first(namespace)
    }

    /// The user namespace a process is in.
    pub fn user(&self, pid: i32) -> Result<Option<UserNamespaceId>> {
        Ok(self.stub(pid)?.user)
    }

    /// Notes the user namespace that a process is in.
    pub fn set_user(&mut self, pid: i32, user: Option<UserNamespaceId>) {
        if let Some(stub) = self.stubs.get_mut(&pid) {
            stub.user = user;
        }
    }

    /// Ends all processes that were made for our own ends.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`].
    pub fn dismiss(&mut self) -> Result<()> {
        for (_, registrar) in std::mem::take(&mut self.registrars) {
            self.end(registrar, None)?;
        }
        users::release(self)
    }

    /// The numbers of a process, that in its own PID namespace first.
    fn numbers(&self, namespace: Option<PidNamespaceId>, pid: i32) -> Result<Vec<i32>> {
        let missing = || {
            Error::new(
                ErrorKind::Damaged,
                format!("process {pid} has no number in its PID namespace"),
            )
        };
        self.levels.numbers(namespace, pid).ok_or_else(missing)
    }

    /// The number by which process `by` knows a process, process group or session of the job.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where it cannot know it.
    pub fn seen(&self, by: i32, number: i32) -> Result<i32> {
        let missing = || Error::new(ErrorKind::Damaged, format!("process {by} cannot know process {number}"));
        self.levels.seen(self.stub(by)?.namespace, number).ok_or_else(missing)
    }

    /// A PID namespace whose first process has been made.
    fn namespace_file(&self, id: PidNamespaceId) -> Result<std::fs::File> {
        let missing = || Error::new(ErrorKind::Damaged, "a PID namespace has no first process");
        let first = self.levels.first(id).filter(|first| self.stubs.contains_key(first));
        let path = format!("/proc/{}/ns/pid", first.ok_or_else(missing)?);
        std::fs::File::open(&path).context(|| format!("open {path}"))
    }

    /// Has the children of a process be born into a PID namespace: its own, or one within that.
    fn turn(&mut self, pid: i32, namespace: Option<PidNamespaceId>) -> Result<()> {
        let stub = self.stub(pid)?;
        if stub.children == namespace {
            return Ok(());
        }
        let what = || format!("choose the PID namespace of children of process {pid}");
        let file = match namespace.filter(|_| stub.namespace != namespace) {
            Some(id) => self.namespace_file(id)?,
            None => std::fs::File::open(format!("/proc/{pid}/ns/pid")).context(what)?,
        };
        with_descriptor(self, pid, file.as_fd(), |batch, fd| {
            let arguments = [fd.into(), libc::CLONE_NEWPID.into()];
            batch.must(libc::SYS_setns, &arguments, "choose the PID namespace of children");
        })
        .context(what)?;
        if let Some(stub) = self.stubs.get_mut(&pid) {
            stub.children = namespace;
        }
        Ok(())
    }

    /// Has the children of all processes be born where they are to be. Those that have a PID namespace ready that
    /// nobody is in yet get a new one. There must be no threads to be made any more: the kernel makes none then.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn turn_all(&mut self, manifest: &Manifest) -> Result<()> {
        for process in living(manifest) {
            let pid = process.pid;
            let Some(id) = process.pid_namespace_of_children else {
                self.turn(pid, process.pid_namespace)?;
                continue;
            };
            if self.levels.first(id).is_some() {
                self.turn(pid, Some(id))?;
                continue;
            }
            self.turn(pid, process.pid_namespace)?;
            let mut batch = Batch::new();
            let flags = [Arg::from(libc::CLONE_NEWPID)];
            batch.must(libc::SYS_unshare, &flags, "make a PID namespace for children");
            self.run(pid, &batch)?;
        }
        Ok(())
    }

    /// Makes further threads of a process.
    pub fn threads(&mut self, pid: i32, tids: &[i32]) -> Result<()> {
        /// CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | PTRACE.
        const FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | CLONE_PTRACE;
        let namespace = self.stub(pid)?.namespace;
        if !tids.is_empty() {
            self.turn(pid, namespace)?;
        }
        let user = self.stub(pid)?.user;
        // Who has to have a number announced makes one at a time.
        let most = if user.is_none() { 1000 } else { 1 };
        for group in tids.chunks(most) {
            let mut batch = Batch::new();
            let mut calls = Vec::with_capacity(group.len());
            for &tid in group {
                let numbers = self.numbers(namespace, tid)?;
                let chosen = self.choose_numbers(pid, namespace, &numbers)?;
                calls.push(clone(&mut batch, &numbers[..chosen], FLAGS, 0));
            }
            let outcome = self.run(pid, &batch)?;
            for (&tid, call) in group.iter().zip(calls) {
                outcome.result(call).map_err(|error| numbers::refusal(tid, error))?;
            }
            for &tid in group {
                let what = || format!("attach to new thread {tid}");
                let tracee = Tracee::born(tid);
                tracee.wait_interrupted(self.deadline).context(what)?;
                tracee.set_signal_mask(INJECTION_MASK).context(what)?;
                let base = tracee.registers().context(what)?;
                if let Some(stub) = self.stubs.get_mut(&pid) {
                    stub.threads.push((tracee, base));
                }
            }
        }
        Ok(())
    }
}

/// Has our own children be born into a PID namespace.
fn turn_ourselves(namespace: BorrowedFd<'_>) -> std::io::Result<()> {
    let pid = Namespaces {
        pid: true,
        ..Namespaces::NONE
    };
    namespace::join(namespace, pid)
}

fn clone(batch: &mut Batch, tids: &[i32], flags: u64, exit_signal: u64) -> cpr_kernel::batch::CallId {
    let arguments = CloneArguments {
        flags,
        exit_signal,
        set_tid_size: tids.len() as u64,
        ..CloneArguments::default()
    };
    let raw: Vec<u8> = tids.iter().flat_map(|tid| tid.to_ne_bytes()).collect();
    let place = batch.data(&arguments.to_bytes());
    if !raw.is_empty() {
        let tids = batch.data(&raw);
        batch.point(place, SET_TID_OFFSET, tids);
    }
    batch.call(libc::SYS_clone3, &[place, CLONE_ARGUMENTS_SIZE.into()])
}
