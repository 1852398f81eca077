//! What jobs use of processors and memory, looked at now and then (GFD.90, job, metrics).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cpr_api::agent::Incarnation;
use cpr_api::model::{Owner, Used};

use super::Agent;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);
/// Fields of /proc/PID/stat behind the name of the program, from 0 (proc_pid_stat(5)): time in user and kernel mode, of
/// the process and of its children that were waited for.
const TIMES: std::ops::Range<usize> = 11..15;
/// Size of the address space, bytes, and pages in memory.
const SIZES: [usize; 2] = [20, 21];

impl Agent {
    /// Looks again and again.
    pub(super) fn watch_usage(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = self.clone();
        let watch = move || {
            loop {
                agent.look_at_usage();
                std::thread::sleep(LOOK);
            }
        };
        std::thread::Builder::new().name("usage".into()).spawn(watch).map(drop)
    }

    fn look_at_usage(&self) {
        let jobs: BTreeMap<Incarnation, Owner> = {
            let state = self.state();
            let owners = state.records.iter().map(|(job, record)| (*job, record.owner.clone()));
            owners.collect()
        };
        for (incarnation, owner) in &jobs {
            let now = self.processes_of(*incarnation, owner).map(|pids| used_by(&pids));
            let mut state = self.state();
            match now {
                Some(now) => {
                    let before = state.usage.get(incarnation).copied().unwrap_or_default();
                    state.usage.insert(*incarnation, seen(before, now));
                }
                // It has ended, and has used what it had used.
                None => {
                    if let Some(before) = state.usage.get_mut(incarnation) {
                        *before = before.over();
                    }
                }
            }
        }
        self.state()
            .usage
            .retain(|incarnation, _| jobs.contains_key(incarnation));
    }
}

/// What is known of a job when it is seen to use this now. A process that has ended and whose parent did not wait for
/// it takes its time with it.
fn seen(before: Used, now: Used) -> Used {
    Used {
        cpu_ms: before.cpu_ms.max(now.cpu_ms),
        most_memory: before.most_memory.max(now.memory),
        most_virtual_memory: before.most_virtual_memory.max(now.virtual_memory),
        ..now
    }
}

/// What processes use together.
fn used_by(pids: &[i32]) -> Used {
    let mut used = Used::default();
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        used.add(stat.ok().and_then(|stat| understand(&stat)).unwrap_or_default());
    }
    used
}

/// What a line of /proc/PID/stat says.
fn understand(stat: &str) -> Option<Used> {
    // The name of the program may have anything in it but ends with the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks: u64 = TIMES.filter_map(number).sum();
    let [virtual_memory, pages] = SIZES.map(number);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Used {
        cpu_ms: ticks.saturating_mul(1000) / per_second,
        memory: pages?.saturating_mul(rustix::param::page_size() as u64),
        virtual_memory: virtual_memory?,
        ..Used::default()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_read_whatever_it_is_called() {
        let stat =
            "7 (a) b) 1) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 5 3 20 0 1 0 400 8192000 25 18446744073709551615 1";
        let used = understand(stat).unwrap();
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(used.cpu_ms, 50 * 1000 / per_second);
        assert_eq!(used.virtual_memory, 8_192_000);
        assert_eq!(used.memory, 25 * rustix::param::page_size() as u64);
        assert_eq!(understand("7 (a) S 1"), None);
        let own = used_by(&[std::process::id() as i32, -1]);
        assert!(own.memory > 4096 && own.virtual_memory >= own.memory, "{own:?}");
    }

    #[test]
    fn time_that_was_seen_is_kept_and_so_is_the_most_memory() {
        let at = |cpu_ms, memory| Used {
            cpu_ms,
            memory,
            ..Used::default()
        };
        let one = seen(Used::default(), at(500, 900));
        let two = seen(one, at(300, 100));
        assert_eq!((two.cpu_ms, two.memory, two.most_memory), (500, 100, 900));
        let mut whole = two.over();
        whole.add(at(200, 50));
        assert_eq!((whole.cpu_ms, whole.memory, whole.most_memory), (700, 50, 900));
    }
}
