//! Threads, children and accounting: `/proc/PID/task`, `io` and `sched`.

use std::io;

use rustix::io::Errno;

use super::{At, ProcDir, lines, split_once, words};

/// With fewer threads than this their lists of children are read, however many processes there are.
const MANY: usize = 64;

/// The counters of `/proc/PID/io`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Bytes read by system calls.
    pub rchar: u64,
    /// Bytes written by system calls.
    pub wchar: u64,
    /// Reading system calls.
    pub syscr: u64,
    /// Writing system calls.
    pub syscw: u64,
    /// Bytes fetched from storage.
    pub read_bytes: u64,
    /// Bytes sent to storage.
    pub write_bytes: u64,
    /// Bytes whose writing was made unnecessary by truncation.
    pub cancelled_write_bytes: u64,
}

/// Parses `/proc/PID/io`.
pub fn parse_io(file: &str, text: &[u8]) -> io::Result<IoCounters> {
    const KEYS: [&str; 7] = [
        "rchar",
        "wchar",
        "syscr",
        "syscw",
        "read_bytes",
        "write_bytes",
        "cancelled_write_bytes",
    ];
    let mut values = [None; KEYS.len()];
    let mut last = At { file, line: 1 };
    for (at, line) in lines(file, text) {
        last = at;
        let (key, value) = at.need(split_once(line, b':'), "counter")?;
        for (slot, name) in values.iter_mut().zip(KEYS) {
            if name.as_bytes() == key {
                *slot = Some(at.decimal(value.strip_prefix(b" ").unwrap_or(value), name)?);
            }
        }
    }
    let get = |i: usize| values[i].ok_or_else(|| last.bad(format_args!("the file ends without {}", KEYS[i])));
    Ok(IoCounters {
        rchar: get(0)?,
        wchar: get(1)?,
        syscr: get(2)?,
        syscw: get(3)?,
        read_bytes: get(4)?,
        write_bytes: get(5)?,
        cancelled_write_bytes: get(6)?,
    })
}

/// Parses `se.exec_start` of `/proc/PID/sched`, in nanoseconds. `None` if there is no such line.
pub fn parse_exec_start(file: &str, text: &[u8]) -> io::Result<Option<u64>> {
    // The heading contains the task's name, which may contain newlines but is shorter than this rule.
    let rule = |line: &[u8]| line.len() > 16 && line.iter().all(|&b| b == b'-');
    for (at, line) in lines(file, text).skip_while(|(_, line)| !rule(line)) {
        let Some((key, value)) = split_once(line, b':') else {
            continue;
        };
        if key.trim_ascii_end() == b"se.exec_start" {
            return at.need(milliseconds(value.trim_ascii()), "se.exec_start").map(Some);
        }
    }
    Ok(None)
}

/// Milliseconds with exactly six decimals, as nanoseconds.
fn milliseconds(text: &[u8]) -> Option<u64> {
    let (whole, part) = split_once(text, b'.')?;
    if part.len() != 6 {
        return None;
    }
    super::decimal::<u64>(whole)?
        .checked_mul(1_000_000)?
        .checked_add(super::decimal(part)?)
}

/// Parses the third number of `/proc/PID/task/TID/schedstat`: how often the thread has been put on a processor.
pub fn parse_runs(file: &str, text: &[u8]) -> io::Result<u64> {
    let at = At { file, line: 1 };
    let runs = words(text.trim_ascii_end()).nth(2);
    at.decimal(runs.unwrap_or_default(), "number of runs")
}

/// Parses `/proc/PID/task/TID/children`.
pub fn parse_children(file: &str, text: &[u8]) -> io::Result<Vec<i32>> {
    let at = At { file, line: 1 };
    words(text.trim_ascii_end())
        .map(|word| at.decimal(word, "child"))
        .collect()
}

/// Whether a read failed because the task is gone (or the file is not there).
fn gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::SRCH]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// See [`ProcDir::children`].
pub(super) fn children(process: &ProcDir) -> io::Result<Vec<i32>> {
    // It takes as long to read the list of one thread as to look at one process.
    let threads = usize::try_from(process.stat()?.num_threads).unwrap_or_default();
    if threads > MANY && threads > super::pids()?.len() {
        return search(process);
    }
    let mut children = Vec::new();
    for tid in process.tasks()? {
        let name = format!("task/{tid}/children");
        match process.read(&name) {
            Ok(text) => children.extend(parse_children(&process.label(&name), &text)?),
            Err(e) if gone(&e) => match process.read(&format!("task/{tid}/stat")) {
                Ok(_) => return search(process),
                Err(e) if gone(&e) => {} // The thread ended meanwhile.
                Err(e) => return Err(e),
            },
            Err(e) => return Err(e),
        }
    }
    children.sort_unstable();
    children.dedup();
    Ok(children)
}

/// Finds the children by the parent that all processes name.
fn search(process: &ProcDir) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for pid in super::pids()? {
        match super::stat_of(pid) {
            Ok(stat) if stat.ppid == process.pid => children.push(pid),
            Err(e) if !gone(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(children)
}
