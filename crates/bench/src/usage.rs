//! What a tool costs while a command of it runs: memory and processor time of all processes of its program.
//!
//! Workers that leave the command's process tree are found by their executable. Nothing is seen of a process between
//! the last look and its end, [`LOOK`] at most; time the tool spends inside the victim counts as the victim's. A round
//! that is sampled is not timed, because looking costs time itself.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::cpu_time_ns;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Serialize;

/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What a command cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Largest sum of the resident sizes of the tool's processes at a time, bytes.
    pub peak_bytes: u64,
    /// Processor time, milliseconds.
    pub cpu_ms: f64,
}

/// Looks at the processes of a program until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

/// Processor time of one process, nanoseconds.
#[derive(Debug, Default)]
struct Time {
    /// What it had used before the command.
    base: u64,
    last: u64,
}

impl Sampler {
    /// Starts to look. What the tool's processes have used before does not count.
    pub fn start(program: &Path) -> Result<Sampler> {
        let what = || format!("look at {}", program.display());
        let metadata = fs::metadata(program).context(what)?;
        let identity = (metadata.dev(), metadata.ino());
        let mut seen = HashMap::new();
        look(identity, &mut seen, true);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::Builder::new()
            .spawn(move || {
                let mut usage = Usage::default();
                while !asked.load(Ordering::Acquire) {
                    usage.peak_bytes = usage.peak_bytes.max(look(identity, &mut seen, false));
                    std::thread::sleep(LOOK);
                }
                look(identity, &mut seen, false);
                let time: u64 = seen
                    .values()
                    .map(|process| process.last.saturating_sub(process.base))
                    .sum();
                usage.cpu_ms = time as f64 / 1e6;
                usage
            })
            .context(|| "start a thread")?;
        Ok(Sampler { stop, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the thread has panicked.
    pub fn finish(self) -> Result<Usage> {
        self.stop.store(true, Ordering::Release);
        let failed = |_| Error::new(ErrorKind::Internal, "the sampling thread has failed");
        self.thread.join().map_err(failed)
    }
}

/// One look at all processes; gives the resident bytes of the tool's.
fn look(identity: (u64, u64), seen: &mut HashMap<(i32, u64), Time>, first: bool) -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut resident = 0;
    for pid in pids {
        // Asked each time, because exec makes another program of a process.
        match fs::metadata(format!("/proc/{pid}/exe")) {
            Ok(exe) if (exe.dev(), exe.ino()) == identity => {}
            _ => continue,
        }
        let Ok(stat) = ProcDir::open(pid).and_then(|directory| directory.stat()) else {
            continue;
        };
        let time = seen.entry((pid, stat.starttime)).or_default();
        time.last = cpu_time_ns(pid).unwrap_or(time.last);
        if first {
            time.base = time.last;
        }
        resident += stat.rss * rustix::param::page_size() as u64;
    }
    resident
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_of_this_program_is_seen() {
        let sampler = Sampler::start(&std::env::current_exe().unwrap()).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::hint::black_box(begun.elapsed());
        }
        let usage = sampler.finish().unwrap();
        assert!(usage.peak_bytes > 100 << 10, "{usage:?}");
        assert!(usage.cpu_ms > 0.0, "{usage:?}");
    }
}
