//! Processes under construction: stopped, traced, and running nothing but our batches.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cpr_image::model::{Manifest, MappingKind, PidNamespaceId, UserNamespaceId};
use cpr_kernel::arch::{Registers, USER_ADDRESS_END};
use cpr_kernel::batch::{Arg, Batch, CallFailed, OutId, Outcome};
use cpr_kernel::fd::send_descriptors;
use cpr_kernel::memory::{Memory, PAGE};
use cpr_kernel::namespace;
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_kernel::process::{CLONE_ARGUMENTS_SIZE, CloneArguments, PidFd, spawn_stub};
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_kernel::remote::{self, Arena, Deferred, INJECTION_MASK};
use cpr_kernel::spawn::Namespaces;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::users::{self, Users};
use super::{huge, identity::Rights, numbers, robust, with_descriptor};
use crate::pid_namespaces::Levels;

/// Room for one batch in a stub.
pub const BATCH_ROOM: u64 = 1 << 20;

/// Where the search for a hole in all address spaces begins: below that, programs that are not position independent
/// and their heaps lie.
const HOLES_FROM: u64 = 1 << 32;

/// Offset of `set_tid` in `struct clone_args`.
const SET_TID_OFFSET: usize = 64;

const CLONE_PTRACE: u64 = 0x2000;
const CLONE_FILES: u64 = 0x400;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const RSEQ_UNREGISTER: i32 = 1;

/// A part of the kernel's vdso in the parking place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Which part.
    pub kind: MappingKind,
    /// Where it is now.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What all stubs have in common.
#[derive(Debug)]
pub struct Workshop {
    /// Where batches run, in every stub.
    pub arena: Arena,
    /// The vdso's parts, beside the arena.
    pub parked: Vec<Parked>,
    /// Where huge pages can be put together: [`huge::STAGING`] bytes that every stub has nothing at.
    pub staging: u64,
    /// A `syscall` instruction in the parked vdso.
    instruction: u64,
    /// When waits end.
    pub deadline: Instant,
    /// Our end of the socket that descriptors go through.
    channel: OwnedFd,
    /// Processes keep the vdso where it is parked, since what they knew as one is memory of their own.
    pub keeps_vdso: bool,
    /// See [`super::RestartRequest::in_sandbox`].
    pub in_sandbox: bool,
    /// Robust lists of threads that have theirs.
    pub robust: robust::Lists,
    /// The stubs' end, in our table and so in theirs at first.
    pub channel_stub: OwnedFd,
    /// By PID. Dropping them kills what they are.
    pub stubs: HashMap<i32, Stub>,
    /// Numbers in PID namespaces.
    levels: Levels,
    /// User namespaces.
    pub users: Users,
    /// How many processes were made for ends of our own.
    spares: usize,
    /// Processes that say in a PID namespace which number is the next.
    registrars: HashMap<PidNamespaceId, i32>,
}

/// A process under construction.
#[derive(Debug)]
pub struct Stub {
    /// Its first thread.
    pub tracee: Tracee,
    /// Its memory.
    pub memory: Memory,
    /// Registers its batches start from.
    pub base: Registers,
    /// Further threads and their registers.
    pub threads: Vec<(Tracee, Registers)>,
    pidfd: PidFd,
    ours: bool,
    /// The PID namespace it is in.
    namespace: Option<PidNamespaceId>,
    /// The one that its children are born into.
    children: Option<PidNamespaceId>,
    /// The user namespace it is in.
    user: Option<UserNamespaceId>,
}

impl Workshop {
    /// Finds a place that is free in all address spaces of the image and in ours.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] when the kernel's vdso has another layout than the image's.
    pub fn new(manifest: &Manifest, rights: Rights, deadline: Instant) -> Result<Self> {
        let own = ProcDir::open(std::process::id() as i32)
            .and_then(|dir| dir.maps())
            .context(|| "read /proc/self/maps")?;
        let mut parked = Vec::new();
        for map in &own {
            if let Some(kind) = special(map) {
                parked.push(Parked {
                    kind,
                    address: 0,
                    length: map.end - map.start,
                });
            }
        }
        let special_length: u64 = parked.iter().map(|p| p.length).sum();
        let arena_length = PAGE + BATCH_ROOM;
        let length = arena_length + special_length + huge::HUGE + huge::STAGING;
        let address = hole(manifest, &own, length)?;
        let mut at = address + arena_length;
        for part in &mut parked {
            part.address = at;
            at += part.length;
        }
        let (channel, channel_stub) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .map_err(std::io::Error::from)
        .context(|| "make a socket pair")?;
        Ok(Workshop {
            arena: Arena {
                address,
                length: arena_length,
            },
            parked,
            staging: at.next_multiple_of(huge::HUGE),
            instruction: 0,
            keeps_vdso: false,
            in_sandbox: false,
            robust: robust::Lists::default(),
            deadline,
            channel,
            channel_stub,
            stubs: HashMap::new(),
            levels: Levels::of(manifest),
            users: Users::of(manifest, rights),
            spares: 0,
            registrars: HashMap::new(),
        })
    }

    /// Where the vdso is parked.
    pub fn vdso(&self) -> u64 {
        let parked = self.parked.iter().find(|part| part.kind == MappingKind::Vdso);
        parked.map_or(0, |part| part.address)
    }

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

    /// Removes everything from a copy of ourselves but the arena and the vdso, which moves beside it.
    fn strip(&mut self, stub: &mut Stub, proc: &ProcDir) -> Result<()> {
        let pid = proc.pid();
        let maps = proc.maps().context(|| format!("read /proc/{pid}/maps"))?;
        let vdso = maps.iter().find(|m| m.kind() == MapKind::Vdso);
        let vdso = vdso.ok_or_else(|| Error::new(ErrorKind::Incompatible, "this kernel gives processes no vdso"))?;
        let mut code = vec![0u8; (vdso.end - vdso.start) as usize];
        stub.memory.read(vdso.start, &mut code).context(|| "read the vdso")?;
        let at = remote::find_syscall_instruction(&code)
            .ok_or_else(|| Error::new(ErrorKind::Incompatible, "the vdso has no system call instruction"))?;
        let mut deferred = Deferred::default();
        Arena::map(
            stub.tracee,
            &stub.base,
            vdso.start + at,
            &stub.memory,
            self.arena.address,
            BATCH_ROOM,
            self.deadline,
            &mut deferred,
        )
        .context(|| format!("map a page in new process {pid}"))?;
        let rseq = stub.tracee.rseq().unwrap_or_default();
        let mut batch = Batch::new();
        if rseq.address != 0 {
            batch.must(
                libc::SYS_rseq,
                &[
                    rseq.address.into(),
                    rseq.size.into(),
                    RSEQ_UNREGISTER.into(),
                    rseq.signature.into(),
                ],
                "unregister restartable sequences",
            );
        }
        batch.must(
            libc::SYS_set_robust_list,
            &[Arg::from(0), Arg::from(24)],
            "drop the robust list",
        );
        batch.call(libc::SYS_set_tid_address, &[Arg::from(0)]);
        let mut end = self.arena.address + self.arena.length;
        for part in &self.parked {
            let from = maps.iter().find(|m| special(m).as_ref() == Some(&part.kind));
            let Some(from) = from.filter(|m| m.end - m.start == part.length) else {
                return Err(Error::new(ErrorKind::Internal, "the vdso changed its layout"));
            };
            batch.must(
                libc::SYS_mremap,
                &[
                    from.start.into(),
                    part.length.into(),
                    part.length.into(),
                    (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).into(),
                    part.address.into(),
                ],
                "move the vdso",
            );
            if part.kind == MappingKind::Vdso {
                self.instruction = part.address + at;
            }
            end = end.max(part.address + part.length);
        }
        batch.must(
            libc::SYS_munmap,
            &[Arg::from(0), self.arena.address.into()],
            "unmap the copy of cpr",
        );
        batch.must(
            libc::SYS_munmap,
            &[end.into(), (USER_ADDRESS_END - end).into()],
            "unmap the copy of cpr",
        );
        self.run_in(stub, &batch).map(drop)
    }

    fn run_in(&self, stub: &Stub, batch: &Batch) -> Result<Outcome> {
        self.run_thread(stub, stub.tracee, &stub.base, batch)
    }

    /// Runs a batch in any thread of a stub.
    pub fn run_thread(&self, stub: &Stub, tracee: Tracee, base: &Registers, batch: &Batch) -> Result<Outcome> {
        let mut deferred = Deferred::default();
        self.arena
            .run(tracee, base, &stub.memory, batch, self.deadline, &mut deferred)
            .map_err(|failed| failure(tracee, failed))
    }

    /// The stub with this PID.
    pub fn stub(&self, pid: i32) -> Result<&Stub> {
        self.stubs
            .get(&pid)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("process {pid} was not made")))
    }

    /// Runs a batch in the first thread of a process.
    pub fn run(&self, pid: i32, batch: &Batch) -> Result<Outcome> {
        self.run_in(self.stub(pid)?, batch)
    }

    /// Starts a batch in the first thread of a process, and does not wait.
    pub fn start(&self, pid: i32, batch: &Batch) -> Result<()> {
        let stub = self.stub(pid)?;
        let started = self.arena.start(stub.tracee, &stub.base, &stub.memory, batch);
        started.context(|| format!("thread {pid}: run {} system calls", batch.len()))
    }

    /// Waits for the end of a batch that was started.
    pub fn finish(&self, pid: i32, batch: &Batch) -> Result<Outcome> {
        let stub = self.stub(pid)?;
        let mut deferred = Deferred::default();
        let ended = self
            .arena
            .finish(stub.tracee, &stub.memory, batch, self.deadline, &mut deferred);
        ended.map_err(|failed| failure(stub.tracee, failed))
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
        for process in super::living(manifest) {
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

    /// Sends a descriptor to whichever stub receives next.
    pub fn send(&self, fd: BorrowedFd<'_>) -> Result<()> {
        send_descriptors(self.channel.as_fd(), &[fd]).context(|| "hand a descriptor over")
    }

    /// Adds the receiving of one descriptor to a batch; [`received`] tells its number afterwards.
    pub fn receive(&self, batch: &mut Batch, channel: i32, close_on_exec: bool) -> OutId {
        let header = batch.data(&[0u8; 56]);
        let (byte, _) = batch.out(8);
        let vector = batch.data(&[0u8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        batch.point(vector, 0, byte);
        let (control, out) = batch.out(24);
        // struct msghdr: iov, iovlen, control, controllen at 16, 24, 32, 40.
        let mut raw = [0u8; 56];
        raw[24] = 1;
        raw[40] = 24;
        batch.set(header, &raw);
        batch.point(header, 16, vector);
        batch.point(header, 32, control);
        let flags = libc::MSG_DONTWAIT | if close_on_exec { libc::MSG_CMSG_CLOEXEC } else { 0 };
        batch.must(
            libc::SYS_recvmsg,
            &[channel.into(), header, flags.into()],
            "receive a descriptor",
        );
        out
    }

    /// Kills a stub and waits for its end; `parent` then waits for it, too, where it is a stub.
    pub fn end(&mut self, pid: i32, parent: Option<i32>) -> Result<()> {
        let known = parent.map(|parent| self.seen(parent, pid)).transpose()?;
        let Some(stub) = self.stubs.remove(&pid) else {
            return Ok(());
        };
        stub.kill(self.deadline);
        if let Some((parent, known)) = parent.zip(known) {
            let mut batch = Batch::new();
            batch.call(
                libc::SYS_wait4,
                &[known.into(), Arg::from(0), libc::__WALL.into(), Arg::from(0)],
            );
            self.run(parent, &batch)?;
        }
        Ok(())
    }

    /// Lets a process die with this wait status; it stays a zombie of its parent.
    pub fn die(&mut self, pid: i32, status: i32) -> Result<()> {
        let mut batch = Batch::new();
        let signal = status & 0x7f;
        if signal == 0 {
            batch.call(libc::SYS_exit_group, &[Arg::from((status >> 8) & 0xff)]);
        } else {
            // No second core dump.
            let limit = batch.data(&[0u8; 16]);
            batch.call(
                libc::SYS_prlimit64,
                &[Arg::from(0), libc::RLIMIT_CORE.into(), limit, Arg::from(0)],
            );
            let action = batch.data(&[0u8; 32]);
            batch.call(
                libc::SYS_rt_sigaction,
                &[signal.into(), action, Arg::from(0), Arg::from(8)],
            );
            let empty = batch.data(&[0u8; 8]);
            let own = self.seen(pid, pid)?;
            batch.call(libc::SYS_kill, &[own.into(), signal.into()]);
            batch.call(
                libc::SYS_rt_sigprocmask,
                &[libc::SIG_SETMASK.into(), empty, Arg::from(0), Arg::from(8)],
            );
        }
        let Some(stub) = self.stubs.remove(&pid) else {
            return Ok(());
        };
        let entries = self.arena.start(stub.tracee, &stub.base, &stub.memory, &batch);
        entries.context(|| format!("end process {pid}"))?;
        loop {
            match stub.tracee.wait(self.deadline) {
                Ok(Stop::Exited(_) | Stop::Killed(_)) => return Ok(()),
                Ok(Stop::Signal(signal)) => stub.tracee.cont(signal),
                Ok(_) => stub.tracee.cont(0),
                // Its parent is somebody else: told by its going.
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                Err(error) => Err(error),
            }
            .context(|| format!("end process {pid}"))?;
        }
    }

    /// Forgets all stubs: they are processes of their own now.
    pub fn release(&mut self) {
        self.stubs.clear();
    }

    /// The address of a `syscall` instruction in every stub until its vdso has its final place.
    pub fn instruction(&self) -> u64 {
        self.instruction
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let mut stubs: Vec<(i32, Stub)> = self.stubs.drain().collect();
        // The first process of a PID namespace ends when nobody is left in it.
        stubs.sort_by_key(|(pid, stub)| {
            let leads = stub.namespace.filter(|id| self.levels.first(*id) == Some(*pid));
            leads.map_or(0, |_| usize::MAX - self.levels.depth(stub.namespace))
        });
        for (pid, stub) in &stubs {
            self.robust.empty(*pid, stub);
            // ESRCH: it is dead already.
            let _ = stub.pidfd.signal(libc::SIGKILL);
        }
        for (_, stub) in &stubs {
            stub.kill(Instant::now() + std::time::Duration::from_secs(5));
        }
    }
}

impl Stub {
    fn kill(&self, deadline: Instant) {
        // ESRCH: it is dead already.
        let _ = self.pidfd.signal(libc::SIGKILL);
        for tracee in self.threads.iter().map(|(t, _)| *t).chain([self.tracee]) {
            while let Ok(stop) = tracee.wait(deadline) {
                if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                    break;
                }
                let _ = tracee.cont(0);
            }
        }
        if self.ours {
            // Seen as tracer above; the same wait reaps our own child.
            let _ = cpr_kernel::ptrace::poll(self.tracee.tid());
        }
    }
}

/// The error of a batch in a thread.
fn failure(tracee: Tracee, failed: CallFailed) -> Error {
    let kind = ErrorKind::of_io(&failed.error);
    Error::new(kind, format!("thread {}: {}", tracee.tid(), failed.what)).with_source(failed.error)
}

/// The number a descriptor got that was received into `out`.
pub fn received(outcome: &Outcome, out: OutId) -> i32 {
    outcome.word32(out, 16) as i32
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

/// The part of the vdso a mapping is.
pub fn special(map: &MapEntry) -> Option<MappingKind> {
    match map.kind() {
        MapKind::Vdso => Some(MappingKind::Vdso),
        MapKind::Vvar => Some(MappingKind::Vvar),
        MapKind::VvarVclock => Some(MappingKind::VvarClock),
        _ => None,
    }
}

/// The lowest place of `length` bytes that no address space of the image, nor ours, has anything at.
fn hole(manifest: &Manifest, own: &[MapEntry], length: u64) -> Result<u64> {
    let mut taken: Vec<(u64, u64)> = own.iter().map(|m| (m.start, m.end)).collect();
    for space in &manifest.address_spaces {
        taken.extend(space.mappings.iter().map(|m| (m.start, m.end)));
    }
    taken.sort_unstable();
    let mut at = HOLES_FROM;
    for (start, end) in taken {
        if start >= at + length {
            break;
        }
        // A guard page beside what is there, so that mappings do not grow together.
        at = at.max(end.saturating_add(PAGE));
    }
    if at + length > USER_ADDRESS_END {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the job's address spaces leave no common hole",
        ));
    }
    Ok(at)
}

/// Our descriptors as numbers that stubs made from us know them by.
pub fn number(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}
