//! x86_64: registers, the system-call instruction, and the interpreter that walks a batch of system calls.

use std::arch::global_asm;

/// Name of the architecture as images carry it.
pub const NAME: &str = "x86_64";

/// First address no user mapping may reach (47-bit address space less the guard page).
pub const USER_ADDRESS_END: u64 = 0x7fff_ffff_f000;

/// `e_machine` of its programs (elf(5)): EM_X86_64.
pub const ELF_MACHINE: u16 = 62;

/// Code that waits for a signal, again and again: `mov $34, %eax; syscall` (pause(2)); `jmp` to its beginning.
pub const PAUSE: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// The `syscall` instruction.
pub const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Bytes of [`jump`].
pub const JUMP_SIZE: usize = 14;

/// Code that jumps to an address wherever it stands, and changes no register: `jmp *0(%rip)`, then the address.
pub fn jump(address: u64) -> [u8; JUMP_SIZE] {
    let mut code = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    code[6..].copy_from_slice(&address.to_le_bytes());
    code
}

/// `mov $NUMBER, %eax; syscall; ret`: a function that is a system call of up to three arguments.
const fn plain_call(number: u8, high: u8) -> [u8; 8] {
    [0xb8, number, high, 0, 0, 0x0f, 0x05, 0xc3]
}
/// `mov $-38, %rax; ret`: -ENOSYS.
const NOT_HERE: [u8; 8] = [0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3];
const CLOCK_GETTIME: [u8; 8] = plain_call(228, 0);
const CLOCK_GETRES: [u8; 8] = plain_call(229, 0);
const GETTIMEOFDAY: [u8; 8] = plain_call(96, 0);
const TIME: [u8; 8] = plain_call(201, 0);
/// 309.
const GETCPU: [u8; 8] = plain_call(0x35, 1);
/// `cmp $-1, %r8; je 1f; mov $318, %eax; syscall; ret; 1: mov $-38, %rax; ret`: as getrandom(2), whatever state the
/// caller has for it. The question how large that is has no answer, so that nobody makes one.
const GETRANDOM: [u8; 22] = [
    0x49, 0x83, 0xf8, 0xff, 0x74, 0x08, 0xb8, 0x3e, 1, 0, 0, 0x0f, 0x05, 0xc3, 0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff,
    0xff, 0xc3,
];

/// Code that stands wherever it is put for a function of the vdso that this kernel does not have: it makes the system
/// call of the same meaning, or says that there is none. Whoever is in an enclave cannot be saved, so that nobody needs
/// to enter one again. None of a function that is not known.
pub fn without_vdso(function: &str) -> Option<&'static [u8]> {
    let code: &[u8] = match function.strip_prefix("__vdso_").unwrap_or(function) {
        "clock_gettime" => &CLOCK_GETTIME,
        "clock_getres" => &CLOCK_GETRES,
        "gettimeofday" => &GETTIMEOFDAY,
        "time" => &TIME,
        "getcpu" => &GETCPU,
        "getrandom" => &GETRANDOM,
        "sgx_enter_enclave" => &NOT_HERE,
        _ => return None,
    };
    Some(code)
}

/// A component of the extended state that is not at the same place on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedPart {
    /// Its number in XCR0.
    pub component: u32,
    /// Where it is, in the XSAVE standard format, bytes.
    pub offset: usize,
    /// How long it is, bytes.
    pub length: usize,
}

/// Component of the rights of memory protection keys (PKRU).
pub const PROTECTION_KEYS: u32 = 9;
/// Rights that Linux gives a program that has asked for no keys (`init_pkru_value`).
pub const NO_PROTECTION_KEYS: u32 = 0x5555_5554;

/// Where the components of the extended state are on this machine (CPUID leaf 13), beyond those of the legacy region.
pub fn extended_parts() -> Vec<ExtendedPart> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const LEAF: u32 = 13;
    if __cpuid(0).eax < LEAF {
        return Vec::new();
    }
    let supported = __cpuid_count(LEAF, 0);
    let supported = u64::from(supported.eax) | u64::from(supported.edx) << 32;
    let parts = (2..63)
        .filter(|component| supported >> component & 1 == 1)
        .map(|component| {
            let found = __cpuid_count(LEAF, component);
            ExtendedPart {
                component,
                offset: found.ebx as usize,
                length: found.eax as usize,
            }
        });
    parts.collect()
}

/// NT_X86_XSTATE, the ELF note type of the XSAVE register set.
pub const NT_EXTENDED: u32 = 0x202;

/// Largest XSAVE area we accept (XSAVE with AMX tiles is 11 KiB; leave room for the future).
pub const EXTENDED_MAX: usize = 64 * 1024;

/// Of that the legacy region and the header, which are always there, bytes.
pub const EXTENDED_MIN: usize = 576;

/// General registers as PTRACE_GETREGSET(NT_PRSTATUS) gives them: `struct user_regs_struct`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

const _: () = assert!(size_of::<Registers>() == REGISTERS_SIZE);

/// Size of [`Registers`] in bytes.
pub const REGISTERS_SIZE: usize = 27 * 8;

/// Code segment of 64-bit user code.
const USER64_CS: u64 = 0x33;
/// Stack and data segment of user code.
const USER_DS: u64 = 0x2b;

impl Registers {
    /// The kernel's byte layout.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words().iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    /// From the kernel's byte layout; `None` unless the length is right.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != REGISTERS_SIZE {
            return None;
        }
        let mut w = [0u64; 27];
        for (word, chunk) in w.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut raw = [0u8; 8];
            raw.copy_from_slice(chunk);
            *word = u64::from_ne_bytes(raw);
        }
        Some(Registers {
            r15: w[0],
            r14: w[1],
            r13: w[2],
            r12: w[3],
            rbp: w[4],
            rbx: w[5],
            r11: w[6],
            r10: w[7],
            r9: w[8],
            r8: w[9],
            rax: w[10],
            rcx: w[11],
            rdx: w[12],
            rsi: w[13],
            rdi: w[14],
            orig_rax: w[15],
            rip: w[16],
            cs: w[17],
            eflags: w[18],
            rsp: w[19],
            ss: w[20],
            fs_base: w[21],
            gs_base: w[22],
            ds: w[23],
            es: w[24],
            fs: w[25],
            gs: w[26],
        })
    }

    fn words(&self) -> [u64; 27] {
        [
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.rbp,
            self.rbx,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rax,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.orig_rax,
            self.rip,
            self.cs,
            self.eflags,
            self.rsp,
            self.ss,
            self.fs_base,
            self.gs_base,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        ]
    }

    /// Program counter.
    pub fn program_counter(&self) -> u64 {
        self.rip
    }

    /// Stack pointer.
    pub fn stack_pointer(&self) -> u64 {
        self.rsp
    }

    /// Number of the system call the thread was in, if it was stopped in one.
    pub fn interrupted_syscall(&self) -> Option<i64> {
        let number = self.orig_rax as i64;
        (number >= 0).then_some(number)
    }

    /// Result register of a system call.
    pub fn syscall_result(&self) -> i64 {
        self.rax as i64
    }

    /// Sets the result register, keeping the thread inside its interrupted system call so that the kernel acts on
    /// `-ERESTART*` codes when it runs again.
    pub fn set_syscall_result(&mut self, value: i64) {
        self.rax = value as u64;
    }

    /// Arguments of the interrupted system call.
    pub fn syscall_arguments(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// Whether the thread runs 64-bit code (not i386 compatibility code).
    pub fn is_native(&self) -> bool {
        self.cs == USER64_CS
    }

    /// These registers set up to execute one system call at `instruction` (a `syscall` instruction).
    pub fn for_syscall(&self, instruction: u64, number: i64, arguments: [u64; 6]) -> Registers {
        let mut regs = *self;
        regs.rip = instruction;
        regs.rax = number as u64;
        // No system call to restart when the thread is resumed.
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = arguments;
        regs
    }

    /// These registers set up to run the interpreter at `code` over `count` entries at `entries`.
    pub fn for_interpreter(&self, code: u64, entries: u64, count: u64) -> Registers {
        let mut regs = *self;
        regs.rip = code;
        regs.rbx = entries;
        regs.r12 = count;
        regs.orig_rax = u64::MAX;
        regs
    }

    /// What the interpreter left: the number of entries it did not complete.
    pub fn interpreter_rest(&self) -> u64 {
        self.r12
    }

    /// Makes registers from an image harmless to the kernel and to us: segment selectors are those of 64-bit user
    /// code and only arithmetic, direction, trap-free flags are kept. Returns an error text if they cannot be.
    pub fn sanitize(&mut self) -> Result<(), &'static str> {
        if self.cs != USER64_CS {
            return Err("the thread does not run 64-bit code");
        }
        if self.rip >= USER_ADDRESS_END || self.fs_base >= USER_ADDRESS_END || self.gs_base >= USER_ADDRESS_END {
            return Err("a register points outside user memory");
        }
        self.ss = USER_DS;
        // CF PF AF ZF SF DF OF, AC, ID; interrupts on, reserved bit 1.
        self.eflags = (self.eflags & 0x0024_0cd5) | 0x202;
        Ok(())
    }
}

/// Entry of a batch, as the interpreter reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Entry {
    /// System call number.
    pub number: u64,
    /// Arguments.
    pub arguments: [u64; 6],
    /// Written by the interpreter.
    pub result: u64,
    /// Address where the result is stored a second time (an argument of a later entry), or zero.
    pub forward: u64,
    /// Bit 0: stop the batch here if the call fails.
    pub flags: u64,
}

/// Size of an [`Entry`] in bytes.
pub const ENTRY_SIZE: usize = size_of::<Entry>();

const _: () = assert!(ENTRY_SIZE == 80);

/// `Entry::flags`: stop on failure.
pub const ENTRY_MUST_SUCCEED: u64 = 1;

impl Entry {
    /// The byte layout the interpreter reads.
    pub fn to_bytes(&self) -> [u8; ENTRY_SIZE] {
        let mut out = [0u8; ENTRY_SIZE];
        let words = [
            self.number,
            self.arguments[0],
            self.arguments[1],
            self.arguments[2],
            self.arguments[3],
            self.arguments[4],
            self.arguments[5],
            self.result,
            self.forward,
            self.flags,
        ];
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

// The interpreter: rbx = next entry, r12 = entries left. It needs no stack and touches no memory but the entries.
// It ends with int3: r12 is zero when all entries were made, else the failed entry is counted as not completed.
global_asm!(
    ".pushsection .rodata.cpr_interpreter, \"a\"",
    ".globl cpr_interpreter_start",
    ".globl cpr_interpreter_end",
    "cpr_interpreter_start:",
    "2: test r12, r12",
    "jz 5f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "mov [rbx + 56], rax",
    "mov rcx, [rbx + 64]",
    "test rcx, rcx",
    "jz 3f",
    "mov [rcx], rax",
    "3: test dword ptr [rbx + 72], 1",
    "jz 4f",
    "cmp rax, -4096",
    "ja 5f",
    "4: add rbx, 80",
    "dec r12",
    "jmp 2b",
    "5: int3",
    "cpr_interpreter_end:",
    ".popsection",
);

unsafe extern "C" {
    static cpr_interpreter_start: u8;
    static cpr_interpreter_end: u8;
}

/// The interpreter's position-independent machine code.
pub fn interpreter() -> &'static [u8] {
    // SAFETY: both symbols are defined by the global_asm block above in this order within one read-only section, so
    // the bytes between them are initialised, immutable and live as long as the program.
    unsafe {
        let start = &raw const cpr_interpreter_start;
        let end = &raw const cpr_interpreter_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

/// System calls that return EINTR after any stop, even one that no signal handler sees. They can be restarted when
/// the stop was ours (kernel.md section 6); the rest of their timeout starts anew.
pub fn is_eintr_only(syscall: i64) -> bool {
    [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_msgrcv,
        libc::SYS_msgsnd,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
        libc::SYS_io_uring_enter,
    ]
    .contains(&syscall)
}

/// System calls in which a thread may wait, uninterruptibly, for a child that it has made to call exec or end first
/// (CLONE_VFORK).
pub fn may_wait_for_child(syscall: i64) -> bool {
    [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3].contains(&syscall)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code in memory that may be run.
    fn placed(code: &[u8]) -> *mut libc::c_void {
        // SAFETY: a new mapping, which nobody else knows, is written within its length.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(code.as_ptr(), at.cast(), code.len());
            at
        }
    }

    #[test]
    fn functions_that_a_vdso_lacks_do_what_they_should() {
        let code = |name| placed(without_vdso(name).unwrap());
        type GetRandom = extern "C" fn(*mut u8, usize, u32, *mut u8, usize) -> isize;
        type GetTime = extern "C" fn(i32, *mut libc::timespec) -> i64;
        type GetCpu = extern "C" fn(*mut u32, *mut u32, usize) -> i64;
        type Time = extern "C" fn(*mut libc::time_t) -> libc::time_t;
        // SAFETY: each is code of this very signature, and is given addresses of what it writes to.
        let (random, time, resolution, cpu, now) = unsafe {
            (
                std::mem::transmute::<*mut libc::c_void, GetRandom>(code("__vdso_getrandom")),
                std::mem::transmute::<*mut libc::c_void, GetTime>(code("__vdso_clock_gettime")),
                std::mem::transmute::<*mut libc::c_void, GetTime>(code("clock_getres")),
                std::mem::transmute::<*mut libc::c_void, GetCpu>(code("getcpu")),
                std::mem::transmute::<*mut libc::c_void, Time>(code("__vdso_time")),
            )
        };
        let mut state = [0u8; 144];
        let mut bytes = [0u8; 64];
        assert_eq!(random(bytes.as_mut_ptr(), 64, 0, state.as_mut_ptr(), 144), 64);
        assert_ne!(bytes, [0; 64]);
        assert_eq!(random(std::ptr::null_mut(), 0, 0, state.as_mut_ptr(), usize::MAX), -38);
        assert_eq!(state, [0; 144]);
        let mut found = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(time(libc::CLOCK_REALTIME, &raw mut found), 0);
        assert!((found.tv_sec - now(std::ptr::null_mut())).abs() < 60 && found.tv_sec > 1 << 30);
        assert_eq!(resolution(libc::CLOCK_MONOTONIC, &raw mut found), 0);
        assert_eq!(found.tv_sec, 0);
        assert_eq!(resolution(-1000, &raw mut found), -i64::from(libc::EINVAL));
        let mut number = u32::MAX;
        assert_eq!(cpu(&raw mut number, std::ptr::null_mut(), 0), 0);
        assert_ne!(number, u32::MAX);
        assert_eq!(without_vdso("__vdso_of_tomorrow"), None);
    }

    #[test]
    fn parts_of_the_extended_state_are_where_they_do_not_overlap() {
        let mut parts = extended_parts();
        parts.sort_by_key(|part| part.offset);
        let mut end = EXTENDED_MIN;
        for part in parts {
            assert!(part.offset >= end && part.length > 0, "{part:?}");
            end = part.offset + part.length;
        }
        assert!(end <= EXTENDED_MAX);
    }

    #[test]
    fn registers_round_trip_through_the_kernel_layout() {
        let bytes: Vec<u8> = (0..REGISTERS_SIZE).map(|i| i as u8).collect();
        assert_eq!(Registers::from_bytes(&bytes).map(|r| r.to_bytes()), Some(bytes));
        assert_eq!(Registers::from_bytes(&[0; 10]), None);
    }

    #[test]
    fn the_interpreter_is_small_and_ends_in_a_trap() {
        let code = interpreter();
        assert!(code.len() < 128, "{}", code.len());
        assert_eq!(code.last(), Some(&0xcc));
    }
}
