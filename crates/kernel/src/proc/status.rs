//! `/proc/PID/status`.

use std::io;

use super::{At, decimal, hex, lines, octal, split_once, words};

/// The fields of `/proc/PID/status` that GridCPR uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The thread's name, with the file's escapes of newline and backslash undone.
    pub name: Vec<u8>,
    /// File mode creation mask; `None` for a zombie.
    pub umask: Option<u32>,
    /// State letter, as in [`super::Stat::state`].
    pub state: u8,
    /// Thread group, that is the process.
    pub tgid: i32,
    /// NUMA group, where the kernel has them.
    pub ngid: Option<i32>,
    /// The process or thread number.
    pub pid: i32,
    /// Parent process.
    pub ppid: i32,
    /// Tracing process, 0 for none.
    pub tracer_pid: i32,
    /// Real, effective, saved and file-system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Thread number in each PID namespace, from that of the `/proc` mount to the innermost.
    pub ns_pid: Vec<i32>,
    /// Process number in each PID namespace.
    pub ns_tgid: Vec<i32>,
    /// Process group in each PID namespace.
    pub ns_pgid: Vec<i32>,
    /// Session in each PID namespace.
    pub ns_sid: Vec<i32>,
    /// Peak resident size in KiB; 0 without an address space.
    pub vm_hwm_kib: u64,
    /// Resident memory that is no file's, KiB (`RssAnon` and `RssShmem`).
    pub rss_own_kib: u64,
    /// Locked memory in KiB; 0 without an address space.
    pub vm_lck_kib: u64,
    /// Number of threads of the process.
    pub threads: u32,
    /// Signals pending for the thread.
    pub sig_pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Blocked signals.
    pub sig_blocked: u64,
    /// Ignored signals.
    pub sig_ignored: u64,
    /// Signals with a handler.
    pub sig_caught: u64,
    /// Inheritable capabilities.
    pub cap_inheritable: u64,
    /// Permitted capabilities.
    pub cap_permitted: u64,
    /// Effective capabilities.
    pub cap_effective: u64,
    /// Capability bounding set.
    pub cap_bounding: u64,
    /// Ambient capabilities.
    pub cap_ambient: u64,
    /// The `no_new_privs` attribute.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Whether transparent huge pages are allowed; `None` if the kernel does not say or there is no address space.
    pub thp_enabled: Option<bool>,
}

/// Parses `/proc/PID/status`.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Status> {
    let mut found = Status {
        name: Vec::new(),
        umask: None,
        state: 0,
        tgid: 0,
        ngid: None,
        pid: 0,
        ppid: 0,
        tracer_pid: 0,
        uids: [0; 4],
        gids: [0; 4],
        groups: Vec::new(),
        ns_pid: Vec::new(),
        ns_tgid: Vec::new(),
        ns_pgid: Vec::new(),
        ns_sid: Vec::new(),
        vm_hwm_kib: 0,
        rss_own_kib: 0,
        vm_lck_kib: 0,
        threads: 0,
        sig_pending: 0,
        shared_pending: 0,
        sig_blocked: 0,
        sig_ignored: 0,
        sig_caught: 0,
        cap_inheritable: 0,
        cap_permitted: 0,
        cap_effective: 0,
        cap_bounding: 0,
        cap_ambient: 0,
        no_new_privs: false,
        seccomp: 0,
        thp_enabled: None,
    };
    // Lines every process has; the rest depends on the kernel's configuration or on an address space.
    const REQUIRED: [&str; 20] = [
        "Name",
        "State",
        "Tgid",
        "Pid",
        "PPid",
        "TracerPid",
        "Uid",
        "Gid",
        "Groups",
        "Threads",
        "SigPnd",
        "ShdPnd",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
    ];
    let mut seen = [false; REQUIRED.len()];
    let mut last = At { file, line: 1 };
    for (at, line) in lines(file, text) {
        last = at;
        let Some((key, value)) = split_once(line, b':') else {
            return Err(at.bad("no colon"));
        };
        let value = value.strip_prefix(b"\t").unwrap_or(value);
        let first = words(value).next().unwrap_or_default();
        if let Some(i) = REQUIRED.iter().position(|name| name.as_bytes() == key) {
            seen[i] = true;
        }
        match key {
            b"Name" => found.name = unescape_name(value),
            b"Umask" => found.umask = Some(at.need(octal(value), "Umask")?),
            b"State" => found.state = at.need(first.first().copied().filter(|_| first.len() == 1), "State")?,
            b"Tgid" => found.tgid = at.decimal(value, "Tgid")?,
            b"Ngid" => found.ngid = Some(at.decimal(value, "Ngid")?),
            b"Pid" => found.pid = at.decimal(value, "Pid")?,
            b"PPid" => found.ppid = at.decimal(value, "PPid")?,
            b"TracerPid" => found.tracer_pid = at.decimal(value, "TracerPid")?,
            b"Uid" => found.uids = four(at, value, "Uid")?,
            b"Gid" => found.gids = four(at, value, "Gid")?,
            b"Groups" => found.groups = list(at, value, "Groups")?,
            b"NSpid" => found.ns_pid = list(at, value, "NSpid")?,
            b"NStgid" => found.ns_tgid = list(at, value, "NStgid")?,
            b"NSpgid" => found.ns_pgid = list(at, value, "NSpgid")?,
            b"NSsid" => found.ns_sid = list(at, value, "NSsid")?,
            b"VmHWM" => found.vm_hwm_kib = at.decimal(first, "VmHWM")?,
            b"RssAnon" | b"RssShmem" => {
                found.rss_own_kib = found.rss_own_kib.saturating_add(at.decimal(first, "Rss")?);
            }
            b"VmLck" => found.vm_lck_kib = at.decimal(first, "VmLck")?,
            b"Threads" => found.threads = at.decimal(value, "Threads")?,
            b"SigPnd" => found.sig_pending = mask(at, value, "SigPnd")?,
            b"ShdPnd" => found.shared_pending = mask(at, value, "ShdPnd")?,
            b"SigBlk" => found.sig_blocked = mask(at, value, "SigBlk")?,
            b"SigIgn" => found.sig_ignored = mask(at, value, "SigIgn")?,
            b"SigCgt" => found.sig_caught = mask(at, value, "SigCgt")?,
            b"CapInh" => found.cap_inheritable = mask(at, value, "CapInh")?,
            b"CapPrm" => found.cap_permitted = mask(at, value, "CapPrm")?,
            b"CapEff" => found.cap_effective = mask(at, value, "CapEff")?,
            b"CapBnd" => found.cap_bounding = mask(at, value, "CapBnd")?,
            b"CapAmb" => found.cap_ambient = mask(at, value, "CapAmb")?,
            b"NoNewPrivs" => found.no_new_privs = flag(at, value, "NoNewPrivs")?,
            b"Seccomp" => found.seccomp = at.decimal(value, "Seccomp")?,
            b"THP_enabled" => found.thp_enabled = Some(flag(at, value, "THP_enabled")?),
            _ => {}
        }
    }
    if let Some(missing) = seen.iter().position(|&seen| !seen) {
        return Err(last.bad(format_args!("the file ends without {}", REQUIRED[missing])));
    }
    // A kernel without PID namespaces has the one list that can be.
    if found.ns_pid.is_empty() {
        found.ns_pid.push(found.pid);
    }
    if found.ns_tgid.is_empty() {
        found.ns_tgid.push(found.tgid);
    }
    Ok(found)
}

/// Undoes `\n` and `\\`.
fn unescape_name(text: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return name,
            [b'\\', b'n', after @ ..] => {
                name.push(b'\n');
                after
            }
            [b'\\', b'\\', after @ ..] => {
                name.push(b'\\');
                after
            }
            [byte, after @ ..] => {
                name.push(*byte);
                after
            }
        };
    }
}

fn list<T: std::str::FromStr>(at: At<'_>, value: &[u8], field: &str) -> io::Result<Vec<T>> {
    words(value).map(|word| at.need(decimal(word), field)).collect()
}

fn four(at: At<'_>, value: &[u8], field: &str) -> io::Result<[u32; 4]> {
    at.need(list(at, value, field)?.try_into().ok(), field)
}

/// A set of 64 bits, written in full: a shorter number is a truncated one.
fn mask(at: At<'_>, value: &[u8], field: &str) -> io::Result<u64> {
    at.need(hex(value).filter(|_| value.len() == 16), field)
}

fn flag(at: At<'_>, value: &[u8], field: &str) -> io::Result<bool> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(at.bad(format_args!("no valid {field}"))),
    }
}
