//! Processes as text: what they are, whose, what signals they get and what they may use.

use gridcpr::image::model::{Credentials, Limit, Manifest, ProcessState, Scheduling, Thread};

use super::{Text, address_space, or_none, range, saved_file, signal_set, timer_times};
use crate::output::{duration, size};
use crate::signal::signal_name;

/// Names of the resource limits in the kernel's order.
const LIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

pub(super) fn processes(text: &mut Text, manifest: &Manifest) {
    text.heading("processes");
    for process in &manifest.processes {
        let state = match process.state {
            ProcessState::Running => "running".to_string(),
            ProcessState::Stopped(signal) => format!("stopped by {}", signal_name(signal)),
            ProcessState::Zombie(status) => format!("dead, wait status {status:#x}"),
        };
        text.line(
            1,
            format!(
                "process {}: parent {}, group {}, session {}, {state}",
                process.pid, process.ppid, process.pgid, process.sid
            ),
        );
        if let Some(space) = address_space(manifest, process) {
            let file = space.executable.and_then(|id| manifest.mapped_files.get(id.index()));
            if let Some(file) = file {
                text.line(2, format!("executable {}", file.path));
            }
            if let Some(file) = space
                .saved_executable
                .and_then(|id| manifest.saved_files.get(id.index()))
            {
                text.line(2, format!("executable in the image: {}", saved_file(file)));
            }
            text.line(
                2,
                format!(
                    "directory {}, root {}, umask {:03o}",
                    process.cwd, process.root, process.umask
                ),
            );
        }
        if let Some(terminal) = process.controlling_terminal {
            text.line(2, format!("controlling terminal: terminal {}", terminal.0));
        }
        let used = &process.accounting;
        text.line(
            2,
            format!(
                "used {} in user mode, {} in the kernel; peak memory {}",
                duration(used.user_ns),
                duration(used.system_ns),
                size(used.peak_rss_kib.saturating_mul(1024))
            ),
        );
        for thread in &process.threads {
            let sleep = match &thread.sleep {
                Some(sleep) => {
                    let left = duration(sleep.remaining_ns);
                    format!(", in system call {} with {left} left", sleep.syscall)
                }
                None => String::new(),
            };
            text.line(
                2,
                format!(
                    "thread {} {:?}: program counter {:#x}, stack pointer {:#x}{sleep}",
                    thread.tid,
                    thread.name.to_string(),
                    thread.cpu.program_counter,
                    thread.cpu.stack_pointer
                ),
            );
        }
    }
}

pub(super) fn credentials(text: &mut Text, manifest: &Manifest) {
    text.heading("credentials");
    for process in &manifest.processes {
        let mut told: Option<&Credentials> = None;
        for thread in &process.threads {
            let c = &thread.credentials;
            // Threads of a process nearly always have the same.
            if told == Some(c) {
                continue;
            }
            told = Some(c);
            let who = match thread.tid == process.pid {
                true => format!("process {}", process.pid),
                false => format!("process {}, thread {} and following", process.pid, thread.tid),
            };
            text.line(1, who);
            let four = |ids: &[u32; 4]| {
                format!(
                    "real {}, effective {}, saved {}, file system {}",
                    ids[0], ids[1], ids[2], ids[3]
                )
            };
            text.line(2, format!("user: {}", four(&c.uids)));
            text.line(2, format!("group: {}", four(&c.gids)));
            let groups: Vec<String> = c.groups.iter().map(u32::to_string).collect();
            text.line(2, format!("supplementary groups: {}", or_none(&groups.join(" "))));
            text.line(
                2,
                format!(
                    "capabilities: effective {:#x}, permitted {:#x}, inheritable {:#x}, bounding {:#x}, ambient {:#x}",
                    c.effective, c.permitted, c.inheritable, c.bounding, c.ambient
                ),
            );
            let new = if c.no_new_privs { ", no new privileges" } else { "" };
            text.line(2, format!("securebits {:#x}{new}", c.securebits));
        }
    }
}

pub(super) fn signals(text: &mut Text, manifest: &Manifest) {
    text.heading("signals and timers");
    for process in &manifest.processes {
        text.line(1, format!("process {}", process.pid));
        for action in &process.signal_actions {
            let what = match action.handler {
                0 => "default".to_string(),
                1 => "ignored".to_string(),
                address => format!("handler {address:#x}"),
            };
            let flags = action.flags;
            let mask = signal_set(action.mask);
            text.line(
                2,
                format!("{}: {what}, flags {flags:#x}, mask {mask}", signal_name(action.signal)),
            );
        }
        if !process.pending_signals.is_empty() {
            text.line(2, format!("pending: {}", pending(&process.pending_signals)));
        }
        for thread in &process.threads {
            if thread.blocked_signals != 0 || !thread.pending_signals.is_empty() {
                let blocked = signal_set(thread.blocked_signals);
                let waiting = or_none(&pending(&thread.pending_signals)).to_string();
                text.line(
                    2,
                    format!("thread {}: blocked {blocked}, pending {waiting}", thread.tid),
                );
            }
        }
        for timer in &process.interval_timers {
            let name = ["ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"];
            let name = usize::try_from(timer.which)
                .ok()
                .and_then(|n| name.get(n))
                .unwrap_or(&"timer");
            let left = timer_times(
                timer.value_us.saturating_mul(1000),
                timer.interval_us.saturating_mul(1000),
            );
            text.line(2, format!("{name}: {left}"));
        }
        for timer in &process.posix_timers {
            let left = timer_times(timer.value_ns, timer.interval_ns);
            let signal = signal_name(timer.signal);
            text.line(
                2,
                format!("timer {}: clock {}, signal {signal}, {left}", timer.id, timer.clock),
            );
        }
    }
}

pub(super) fn limits(text: &mut Text, manifest: &Manifest) {
    text.heading("limits and scheduling");
    for process in &manifest.processes {
        text.line(
            1,
            format!("process {}: oom_score_adj {}", process.pid, process.oom_score_adj),
        );
        let limits: Vec<String> = process.limits.iter().map(limit).collect();
        text.line(2, format!("limits: {}", or_none(&limits.join(", "))));
        let mut told: Option<&Scheduling> = None;
        for thread in &process.threads {
            if told != Some(&thread.scheduling) {
                told = Some(&thread.scheduling);
                text.line(2, format!("thread {}: {}", thread.tid, scheduling(thread)));
            }
        }
        for lock in &process.posix_locks {
            let kind = if lock.exclusive { "exclusive" } else { "shared" };
            let range = range(lock.start, lock.length);
            text.line(2, format!("record lock: descriptor {}, {kind}, {range}", lock.fd));
        }
    }
}

fn scheduling(thread: &Thread) -> String {
    let s = &thread.scheduling;
    let policy = match s.policy {
        0 => "other",
        1 => "fifo",
        2 => "round robin",
        3 => "batch",
        5 => "idle",
        6 => "deadline",
        _ => "unknown",
    };
    let processors: u32 = s.affinity.0.iter().map(|byte| byte.count_ones()).sum();
    format!(
        "policy {policy}, nice {}, priority {}, may run on {processors} processors",
        s.nice, s.priority
    )
}

fn limit(limit: &Limit) -> String {
    let value = |value: u64| match value {
        u64::MAX => "unlimited".to_string(),
        value => value.to_string(),
    };
    let name = LIMITS.get(limit.resource as usize).unwrap_or(&"unknown");
    match limit.soft == limit.hard {
        true => format!("{name} {}", value(limit.soft)),
        false => format!("{name} {} (hard {})", value(limit.soft), value(limit.hard)),
    }
}

/// Names of the signals in a list of siginfo_t, which begin with the number.
fn pending(list: &[gridcpr::image::model::Bytes]) -> String {
    let numbers = list.iter().filter_map(|info| info.0.first_chunk::<4>());
    let names: Vec<String> = numbers.map(|bytes| signal_name(i32::from_le_bytes(*bytes))).collect();
    names.join(" ")
}
