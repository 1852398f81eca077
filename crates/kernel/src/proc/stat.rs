//! `/proc/PID/stat`.

use std::io;
use std::str::FromStr;

use super::At;

/// The fields of `/proc/PID/stat` (see proc_pid_stat(5)).
///
/// The addresses and `exit_code` are 0 (`end_code` and `start_code` 0 or 1) for a reader without ptrace access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The process or thread number.
    pub pid: i32,
    /// The thread's name, as it is: any bytes except NUL.
    pub comm: Vec<u8>,
    /// State letter: `R`, `S`, `D`, `Z`, `T` (stopped), `t` (stopped by a tracer), `X`, `I`, ...
    pub state: u8,
    /// Parent process.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal, 0 for none.
    pub tty_nr: i32,
    /// Foreground process group of the controlling terminal, -1 for none.
    pub tpgid: i32,
    /// The kernel's `PF_*` flags.
    pub flags: u32,
    /// Minor faults.
    pub minflt: u64,
    /// Minor faults of waited-for children.
    pub cminflt: u64,
    /// Major faults.
    pub majflt: u64,
    /// Major faults of waited-for children.
    pub cmajflt: u64,
    /// User time in clock ticks.
    pub utime: u64,
    /// System time in clock ticks.
    pub stime: u64,
    /// User time of waited-for children in clock ticks.
    pub cutime: u64,
    /// System time of waited-for children in clock ticks.
    pub cstime: u64,
    /// Priority as the kernel shows it; negative for real-time policies.
    pub priority: i32,
    /// Nice value.
    pub nice: i32,
    /// Number of threads of the process.
    pub num_threads: i32,
    /// Start time in clock ticks since boot.
    pub starttime: u64,
    /// Size of the address space in bytes.
    pub vsize: u64,
    /// Resident pages.
    pub rss: u64,
    /// Start of the program text.
    pub start_code: u64,
    /// End of the program text.
    pub end_code: u64,
    /// Start of the main stack.
    pub start_stack: u64,
    /// Start of initialised and uninitialised data.
    pub start_data: u64,
    /// End of initialised and uninitialised data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Start of the arguments.
    pub arg_start: u64,
    /// End of the arguments.
    pub arg_end: u64,
    /// Start of the environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// Status in the form of waitpid(2).
    pub exit_code: i32,
    /// Signal for the parent when the process ends; -1 in threads other than the leader.
    pub exit_signal: i32,
    /// Processor it last ran on.
    pub processor: i32,
    /// Real-time priority, 0 for ordinary policies.
    pub rt_priority: u32,
    /// Scheduling policy (`SCHED_*`).
    pub policy: u32,
}

impl Stat {
    /// Whether the process has ended, with all its threads, and waits for its parent. One of which only the first thread
    /// has ended shows the same state.
    pub fn is_zombie(&self) -> bool {
        self.state == b'Z' && self.num_threads <= 1
    }

    /// Whether the thread, or the first one of the process, has ended or is about to: it runs no more of its program.
    pub fn is_ending(&self) -> bool {
        // From include/linux/sched.h, since Linux 2.6; set before the rest of a PID namespace is ended by the kernel.
        const PF_EXITING: u32 = 0x4;
        self.flags & PF_EXITING != 0 || matches!(self.state, b'Z' | b'X')
    }
}

/// Parses `/proc/PID/stat`.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Stat> {
    let at = At { file, line: 1 };
    // The name may contain anything, a newline and parentheses included, but only numbers follow it.
    let open = at.need(text.iter().position(|&b| b == b'('), "name")?;
    let close = at.need(
        text.iter().rposition(|&b| b == b')').filter(|&close| close > open),
        "name",
    )?;
    let rest: Vec<&[u8]> = text[close + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .collect();
    let pid = text[..open].strip_suffix(b" ").unwrap_or_default();
    let fields = Fields { at, rest };
    let state = match fields.rest.first() {
        Some([state]) => *state,
        _ => return Err(at.bad("no valid state")),
    };
    Ok(Stat {
        pid: at.decimal(pid, "pid")?,
        comm: text[open + 1..close].to_vec(),
        state,
        ppid: fields.get(4)?,
        pgrp: fields.get(5)?,
        session: fields.get(6)?,
        tty_nr: fields.get(7)?,
        tpgid: fields.get(8)?,
        flags: fields.get(9)?,
        minflt: fields.get(10)?,
        cminflt: fields.get(11)?,
        majflt: fields.get(12)?,
        cmajflt: fields.get(13)?,
        utime: fields.get(14)?,
        stime: fields.get(15)?,
        cutime: fields.get(16)?,
        cstime: fields.get(17)?,
        priority: fields.get(18)?,
        nice: fields.get(19)?,
        num_threads: fields.get(20)?,
        starttime: fields.get(22)?,
        vsize: fields.get(23)?,
        rss: fields.get(24)?,
        start_code: fields.get(26)?,
        end_code: fields.get(27)?,
        start_stack: fields.get(28)?,
        exit_signal: fields.get(38)?,
        processor: fields.get(39)?,
        rt_priority: fields.get(40)?,
        policy: fields.get(41)?,
        start_data: fields.get(45)?,
        end_data: fields.get(46)?,
        start_brk: fields.get(47)?,
        arg_start: fields.get(48)?,
        arg_end: fields.get(49)?,
        env_start: fields.get(50)?,
        env_end: fields.get(51)?,
        exit_code: fields.get(52)?,
    })
}

struct Fields<'a> {
    at: At<'a>,
    rest: Vec<&'a [u8]>,
}

impl Fields<'_> {
    /// Field `number`, counted from 1 as in the manual page; the state is field 3.
    fn get<T: FromStr>(&self, number: usize) -> io::Result<T> {
        let value = self.rest.get(number - 3).and_then(|word| super::decimal(word));
        value.ok_or_else(|| self.at.bad(format_args!("no valid field {number}")))
    }
}
