//! Processes under construction: stopped, traced, and running nothing but our batches.

mod births;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cpr_image::model::{Manifest, MappingKind, PidNamespaceId, UserNamespaceId};
use cpr_kernel::arch::{Registers, USER_ADDRESS_END};
use cpr_kernel::batch::{Arg, Batch, CallFailed, OutId, Outcome};
use cpr_kernel::fd::send_descriptors;
use cpr_kernel::memory::{Memory, PAGE};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_kernel::process::PidFd;
use cpr_kernel::ptrace::{Stop, Tracee};
use cpr_kernel::remote::{self, Arena, Deferred};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::users::Users;
use super::{huge, identity::Rights, robust};
use crate::pid_namespaces::Levels;

/// Room for one batch in a stub.
pub const BATCH_ROOM: u64 = 1 << 20;

/// Where the search for a hole in all address spaces begins: below that, programs that are not position independent
/// and their heaps lie.
const HOLES_FROM: u64 = 1 << 32;

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
