//! Which checkpoints are no longer needed: a pure function.

use cpr_api::model::{Checkpoint, CheckpointState, Job, JobState};

/// How long the checkpoints of jobs that failed or were cancelled stay, milliseconds.
pub(crate) const AFTERLIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// Checkpoints of a job that can go, with the reason, and oldest first (GFD93-SM-6, GFD93-SM-7, GFD93-SM-15).
///
/// While the job may yet go on, the newest `keep` complete ones stay, everything that is newer than them, and the one
/// it runs from or is to go on from.
pub(crate) fn surplus(job: &Job, checkpoints: &[Checkpoint], now_ms: i64) -> Vec<(i64, &'static str)> {
    let all = |reason| {
        let held = checkpoints.iter().filter(|c| c.state.is_usable());
        held.map(|c| (c.id, reason)).collect()
    };
    match job.state {
        JobState::Finished => return all("the job has finished"),
        JobState::Failed | JobState::Cancelled if job.ended_ms.is_some_and(|end| end + AFTERLIFE_MS <= now_ms) => {
            return all("the job ended long ago");
        }
        _ => {}
    }
    let mut complete: Vec<i64> = checkpoints
        .iter()
        .filter(|c| c.state == CheckpointState::Complete)
        .map(|c| c.id)
        .collect();
    complete.sort_unstable();
    let Some(oldest_kept) = complete
        .len()
        .checked_sub(job.spec.keep())
        .and_then(|first| complete.get(first))
    else {
        return Vec::new();
    };
    let needed = [job.from.filter(|_| job.state.is_placed()), job.next_from];
    checkpoints
        .iter()
        .filter(|c| c.state.is_usable() && c.id < *oldest_kept && !needed.contains(&Some(c.id)))
        .map(|c| (c.id, "newer ones are complete"))
        .collect()
}
