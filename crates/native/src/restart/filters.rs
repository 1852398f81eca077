//! System call filters of threads (seccomp(2), LBNL-3.9.1.M16).
//!
//! Who may suspend them installs them while there is still something to do in a thread. For others they come last: no
//! system call of ours is made in a thread that has them. The kernel takes filters of those only that have given up
//! gaining privileges, or have them.

use cpr_image::model::{AddressSpace, MappingKind, Process, Seccomp, SeccompFilter, Thread};
use cpr_kernel::arch::Registers;
use cpr_kernel::batch::Batch;
use cpr_kernel::memory::PAGE;
use cpr_kernel::ptrace::{SeizeOptions, Tracee};
use cpr_kernel::remote::{self, Deferred};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::identity::Rights;
use super::stub::Workshop;
use crate::freeze;

const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// SECCOMP_FILTER_FLAG_TSYNC and SECCOMP_FILTER_FLAG_TSYNC_ESRCH: an error, and not a number, where a thread cannot
/// have it.
const FOR_ALL_THREADS: u64 = 1 | 1 << 4;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW: speculation is restored by itself.
const SPEC_ALLOW: u64 = 4;
/// SECCOMP_FILTER_FLAG_LOG.
const LOG: u64 = 2;
/// struct sock_fprog: length in instructions, pointer.
const HEADER: usize = 16;
/// PROT_READ and PROT_WRITE.
const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

/// When the filters of a process come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// They are there, and suspended, or there are none.
    Now,
    /// When nothing else is left to do.
    Last,
}

/// Whether all threads of a process have the same filters: one can later give all of them another
/// (SECCOMP_FILTER_FLAG_TSYNC) only if they share them.
fn are_shared(threads: &[Thread]) -> bool {
    let same = |thread: &Thread| {
        threads.first().is_some_and(|first| {
            thread.seccomp == first.seccomp && thread.credentials.no_new_privs == first.credentials.no_new_privs
        })
    };
    threads.iter().all(same)
}

/// Installs the filters of the thread at `index`, by `run` in it. They are suspended until the thread is let go.
///
/// # Errors
/// [`ErrorKind::Denied`] where the image's owner could not have installed them.
pub fn install(
    process: &Process,
    index: usize,
    tracee: Tracee,
    rights: Rights,
    run: &mut dyn FnMut(&Batch) -> Result<()>,
) -> Result<When> {
    let Some(thread) = process
        .threads
        .get(index)
        .filter(|thread| thread.seccomp != Seccomp::Off)
    else {
        return Ok(When::Now);
    };
    let tid = thread.tid;
    if !thread.credentials.no_new_privs && !rights.may_administer() {
        // A filter made by somebody without privileges must not reach programs that have some.
        return Err(Error::new(
            ErrorKind::Denied,
            format!("thread {tid} has a seccomp filter without no_new_privs, which takes root's rights"),
        ));
    }
    let options = SeizeOptions {
        kill_on_exit: true,
        follow: false,
    };
    match tracee.suspend_seccomp(options) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(When::Last),
        Err(error) => return Err(error).context(|| format!("suspend the seccomp filters of thread {tid}")),
    }
    let Seccomp::Filters(filters) = &thread.seccomp else {
        let mut batch = Batch::new();
        batch.must(
            libc::SYS_prctl,
            &[libc::PR_SET_SECCOMP.into(), libc::SECCOMP_MODE_STRICT.into()],
            "enter strict seccomp mode",
        );
        return run(&batch).map(|()| When::Now);
    };
    let shared = are_shared(&process.threads);
    if shared && index > 0 {
        return Ok(When::Now);
    }
    for filter in filters {
        let mut batch = Batch::new();
        let header = batch.data(&header(filter, 0));
        let program = batch.data(&filter.program.0);
        batch.point(header, 8, program);
        batch.must(
            libc::SYS_seccomp,
            &[SECCOMP_SET_MODE_FILTER.into(), flags(filter, shared).into(), header],
            format!("install a seccomp filter in thread {tid}"),
        );
        run(&batch)?;
    }
    Ok(When::Now)
}

fn header(filter: &SeccompFilter, program: u64) -> [u8; HEADER] {
    let mut raw = [0u8; HEADER];
    raw[..2].copy_from_slice(&((filter.program.0.len() / 8) as u16).to_ne_bytes());
    raw[8..].copy_from_slice(&program.to_ne_bytes());
    raw
}

fn flags(filter: &SeccompFilter, for_all: bool) -> u64 {
    let all = if for_all { FOR_ALL_THREADS } else { 0 };
    filter.flags & LOG | SPEC_ALLOW | all
}

/// Installs the filters of the thread at `index` when everything else is done but setting its registers. `instruction`
/// is a system call instruction of the process. Threads that share filters get them with the first one, which comes
/// last, and whose `space` has lost our memory already: the program's own is borrowed.
///
/// # Errors
/// The kernel refuses a filter.
pub fn install_last(
    workshop: &Workshop,
    process: &Process,
    index: usize,
    tracee: Tracee,
    base: &Registers,
    instruction: u64,
    space: &AddressSpace,
) -> Result<()> {
    let Some(thread) = process.threads.get(index) else {
        return Ok(());
    };
    let shared = are_shared(&process.threads);
    let what = || format!("install the seccomp filters of thread {}", thread.tid);
    let mut deferred = Deferred::default();
    let mut call = |number, arguments| {
        remote::syscall(
            tracee,
            base,
            instruction,
            number,
            arguments,
            workshop.deadline,
            &mut deferred,
        )
        .map(drop)
    };
    match &thread.seccomp {
        Seccomp::Off => return Ok(()),
        Seccomp::Filters(_) if shared && index > 0 => return Ok(()),
        Seccomp::Strict => {
            let strict = [
                libc::PR_SET_SECCOMP as u64,
                libc::SECCOMP_MODE_STRICT.into(),
                0,
                0,
                0,
                0,
            ];
            call(libc::SYS_prctl, strict).context(what)?;
        }
        Seccomp::Filters(filters) => {
            let memory = &workshop.stub(process.pid)?.memory;
            let longest = filters.iter().map(|filter| filter.program.0.len()).max().unwrap_or(0);
            let mut kept = vec![0; HEADER + longest];
            let room = match index {
                0 => borrowed(space, thread, kept.len() as u64).context(what)?,
                _ => workshop.arena.address + PAGE,
            };
            memory.read(room, &mut kept).context(what)?;
            for filter in filters {
                let mut raw = header(filter, room + HEADER as u64).to_vec();
                raw.extend_from_slice(&filter.program.0);
                memory.write(room, &raw).context(what)?;
                let arguments = [SECCOMP_SET_MODE_FILTER, flags(filter, shared), room, 0, 0, 0];
                call(libc::SYS_seccomp, arguments).context(what)?;
            }
            memory.write(room, &kept).context(what)?;
        }
    }
    freeze::park(tracee, workshop.deadline).context(what)?;
    Ok(())
}

/// Memory of a process that it can write to: its stack if that will do.
fn borrowed(space: &AddressSpace, thread: &Thread, length: u64) -> Result<u64> {
    let stack = Registers::from_bytes(&thread.cpu.general.0).map_or(0, |registers| registers.stack_pointer());
    let will_do = |mapping: &&cpr_image::model::Mapping| {
        matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Stack)
            && mapping.guards.is_empty()
            && mapping.protection & READ_WRITE == READ_WRITE
            && mapping.end - mapping.start >= length
    };
    let mut all = space.mappings.iter().filter(will_do);
    let own = all
        .clone()
        .find(|mapping| (mapping.start..mapping.end).contains(&stack));
    own.or_else(|| all.next()).map(|mapping| mapping.start).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "the process has no memory that its filters can be read from",
        )
    })
}
