//! Processes that keep others from looking at them: with prctl(PR_SET_DUMPABLE), as agents for keys do, or because who
//! runs a program may not read it.
//!
//! Files in their /proc directory then belong to the root of the whole system, and only that opens them. Whoever may
//! trace them nevertheless, as one who has power over the user namespace that they were started in, makes them
//! accessible for the time of a stop by a system call of their own.

use std::time::Instant;

use cpr_kernel::arch::Registers;
use cpr_kernel::memory;
use cpr_kernel::proc::ProcDir;
use cpr_kernel::ptrace::Tracee;
use cpr_kernel::remote::{self, Deferred};
use cpr_types::{Context, Error, ErrorKind, Result};

/// Most bytes of the vdso that are looked through.
const VDSO_MAX: u64 = 1 << 16;

/// What a concealed process was before it was made accessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concealed {
    /// What PR_GET_DUMPABLE said: 0, or 2 where only root may have a core dump.
    pub dumpable: u32,
    /// The address of a `syscall` instruction.
    instruction: u64,
}

/// Whether a process is traced with more right than there is to its files in /proc.
pub fn may_reveal(proc: &ProcDir) -> bool {
    instruction(proc).is_ok()
}

/// The address of a `syscall` instruction in the process's vdso, found without a file that only its owner may read.
fn instruction(proc: &ProcDir) -> Result<u64> {
    let pid = proc.pid();
    let maps = proc.maps().context(|| format!("read /proc/{pid}/maps"))?;
    let none = || {
        let text =
            format!("process {pid} lets nobody look at it, and has no system call instruction to change that with");
        Error::new(ErrorKind::Denied, text)
    };
    let vdso = maps.iter().find(|map| map.path == b"[vdso]").ok_or_else(none)?;
    let mut code = vec![0; (vdso.end - vdso.start).min(VDSO_MAX) as usize];
    memory::read_of(proc.acting(), vdso.start, &mut code).context(|| format!("read the vdso of process {pid}"))?;
    let at = remote::find_syscall_instruction(&code).ok_or_else(none)?;
    Ok(vdso.start + at)
}

/// A stopped thread of the process that makes the calls.
pub struct Caller<'a> {
    /// The thread, which must be ready to make system calls for us.
    pub tracee: Tracee,
    /// Its registers.
    pub registers: &'a Registers,
    /// Where signals that arrive meanwhile are noted.
    pub deferred: &'a mut Deferred,
    /// When it has to be back.
    pub deadline: Instant,
}

impl Caller<'_> {
    fn prctl(&mut self, instruction: u64, option: i32, value: u64) -> std::io::Result<u64> {
        remote::syscall(
            self.tracee,
            self.registers,
            instruction,
            libc::SYS_prctl,
            [option as u64, value, 0, 0, 0, 0],
            self.deadline,
            self.deferred,
        )
    }

    /// Makes the process accessible.
    ///
    /// # Errors
    /// It may not be traced, or it dies.
    pub fn reveal(&mut self, proc: &ProcDir) -> Result<Concealed> {
        let what = || format!("make process {} accessible, which lets nobody look at it", proc.pid());
        let instruction = instruction(proc).context(what)?;
        let dumpable = self.prctl(instruction, libc::PR_GET_DUMPABLE, 0).context(what)? as u32;
        self.prctl(instruction, libc::PR_SET_DUMPABLE, 1).context(what)?;
        Ok(Concealed { dumpable, instruction })
    }

    /// Makes it inaccessible again. What only root may read (2) cannot be set by anybody, and becomes 0.
    ///
    /// # Errors
    /// It dies.
    pub fn conceal(&mut self, concealed: Concealed, pid: i32) -> Result<()> {
        self.prctl(concealed.instruction, libc::PR_SET_DUMPABLE, 0)
            .map(drop)
            .context(|| format!("make process {pid} inaccessible again"))
    }
}
