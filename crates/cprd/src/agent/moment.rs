//! When a job is best saved: when it has just come to use little memory, where its user wants that and nothing presses
//! (XtreemGCP, section 3.2: the decision is the node's, with regard to the state of the unit).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cpr_api::agent::Incarnation;
use cpr_api::model::Owner;

use super::Agent;

/// How often it is looked how much memory is in use.
const LOOK: Duration = Duration::from_millis(100);
/// Processes of one job that are looked at, at most.
const MOST_PROCESSES: usize = 4096;

/// What has just become little stays so for a while, it is hoped: so long after that it is still a good moment.
const FRESH: Duration = Duration::from_secs(1);

/// What has been seen of a job so far.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    least: u64,
    most: u64,
}

impl Seen {
    /// Takes down what is in use now, bytes.
    fn add(seen: Option<Seen>, now: u64) -> Seen {
        let Seen { least, most } = seen.unwrap_or(Seen { least: now, most: now });
        Seen {
            least: least.min(now),
            most: most.max(now),
        }
    }

    /// Whether that is little: in the lowest quarter of what has been seen.
    fn is_little(self, now: u64) -> bool {
        now <= self.least + (self.most - self.least) / 4
    }

    /// Whether it is always much the same, so that nothing is gained by waiting.
    fn is_flat(self) -> bool {
        self.most - self.least <= self.most / 10
    }
}

impl Agent {
    /// Waits until a job uses little memory, for `limit` at most: half of that is spent on seeing what is little. Comes
    /// back at once where the checkpoint is not wanted any more, or another one waits for it.
    pub(super) fn await_little(&self, id: i64, incarnation: Incarnation, owner: &Owner, limit: Duration) {
        let begun = Instant::now();
        let mut seen: Option<Seen> = None;
        // When it was last more than little.
        let mut much: Option<Instant> = None;
        while begun.elapsed() < limit && self.state().said.may_wait(id) {
            // A job that has ended is for whoever saves it to find.
            let Some(now) = self.memory_of(incarnation, owner) else {
                return;
            };
            let so_far = Seen::add(seen, now);
            seen = Some(so_far);
            if !so_far.is_little(now) {
                much = Some(Instant::now());
            }
            let fresh = so_far.is_little(now) && much.is_some_and(|much| much.elapsed() <= FRESH);
            if begun.elapsed() >= limit / 2 && (fresh || so_far.is_flat()) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Memory that the processes of a job have written to and is in use, bytes; none where there are none.
    fn memory_of(&self, incarnation: Incarnation, owner: &Owner) -> Option<u64> {
        let processes = self.processes_of(incarnation, owner)?;
        Some(processes.into_iter().filter_map(written_by).sum())
    }

    /// The processes of a job, as far as they can be found; none where it does not run.
    pub(super) fn processes_of(&self, incarnation: Incarnation, owner: &Owner) -> Option<Vec<i32>> {
        let root = self.status(incarnation, owner.uid)?.pid?;
        let mut pids = vec![root];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied().filter(|_| pids.len() < MOST_PROCESSES) {
            at += 1;
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten();
            for task in tasks {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
        Some(pids)
    }

    /// Does something that may wait for a long time, for which heartbeats need not be frequent; false where too much
    /// does.
    pub(super) fn patiently(self: &Arc<Self>, task: impl FnOnce(&Arc<Agent>) + Send + 'static) -> bool {
        self.spawn(|agent| &agent.patient, super::MOST_COORDINATED, task)
    }

    /// The end of that wait: the service is to hear soon of what is done now.
    pub(super) fn in_motion<T>(&self, task: impl FnOnce() -> T) -> T {
        self.tasks.fetch_add(1, Ordering::SeqCst);
        let result = task();
        self.tasks.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// Memory of a process that is no file's, bytes (proc_pid_status(5): RssAnon).
fn written_by(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_what_is_near_the_least_that_was_seen() {
        let seen = [50, 900, 100]
            .into_iter()
            .fold(None, |seen, now| Some(Seen::add(seen, now)));
        let seen = seen.unwrap_or_default();
        assert!(seen.is_little(50) && seen.is_little(200) && !seen.is_little(500));
        assert!(!seen.is_flat());
        assert!(Seen::add(Some(Seen::add(None, 1000)), 1050).is_flat());
    }

    #[test]
    fn memory_of_a_process_is_known() {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        assert!(written_by(own).is_some_and(|bytes| bytes > 4096));
        assert_eq!(written_by(-1), None);
    }
}
