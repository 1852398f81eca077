//! Which checkpoints are no longer needed: a pure function.

use cpr_api::model::{Checkpoint, CheckpointState, Job, JobState};

/// How long the checkpoints of jobs that failed or were cancelled stay, milliseconds.
pub(crate) const AFTERLIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// Checkpoints of a job that can go, with the reason, and oldest first (GFD93-SM-6, GFD93-SM-7, GFD93-SM-15).
///
/// While the job may yet go on, the newest `keep` complete ones stay as long as they are not too old, the newest of
/// them in any case, everything that is newer, and the one it runs from or is to go on from.
pub(crate) fn surplus(job: &Job, checkpoints: &[Checkpoint], now_ms: i64) -> Vec<(i64, &'static str)> {
    let usable = || checkpoints.iter().filter(|c| c.state.is_usable());
    let is_old = |c: &Checkpoint| {
        let ttl_s = c.ttl_s.or(job.spec.ttl_s);
        let ttl_ms = ttl_s.map(|s| i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX));
        let age_ms = now_ms.saturating_sub(c.stored_ms.unwrap_or(now_ms));
        ttl_ms.is_some_and(|ttl| age_ms >= ttl)
    };
    if job.spec.names.is_some() {
        return surplus_of_named(job, checkpoints, is_old);
    }
    match job.state {
        JobState::Finished => return usable().map(|c| (c.id, "the job has finished")).collect(),
        JobState::Failed | JobState::Cancelled if job.spec.ttl_s.is_some() => {
            let old = usable().filter(|c| is_old(c));
            return old.map(|c| (c.id, "it is older than the job wanted")).collect();
        }
        JobState::Failed | JobState::Cancelled if job.ended_ms.is_some_and(|end| end + AFTERLIFE_MS <= now_ms) => {
            return usable().map(|c| (c.id, "the job ended long ago")).collect();
        }
        _ => {}
    }
    let mut complete: Vec<&Checkpoint> = usable().filter(|c| c.state == CheckpointState::Complete).collect();
    complete.sort_unstable_by_key(|c| std::cmp::Reverse(c.id));
    let young = complete.iter().skip(1).filter(|c| !is_old(c)).count();
    let by_age = young + 1 < job.spec.keep().min(complete.len());
    if complete.len() < job.spec.keep() && !by_age {
        return Vec::new();
    }
    let kept = job.spec.keep().min(young + 1);
    let Some(oldest_kept) = kept.checked_sub(1).and_then(|last| complete.get(last)) else {
        return Vec::new();
    };
    let why = match by_age {
        true => "it is older than the job wanted, and there is a newer one",
        false => "newer ones are complete",
    };
    usable()
        .filter(|c| c.id < oldest_kept.id && !is_needed(job, c) && !stands_in(checkpoints, c))
        .map(|c| (c.id, why))
        .collect()
}

/// The same of a job whose checkpoints have names: each stays for its time, whatever has become of the job, or until
/// there are `keep` newer ones (SAGA CPR API, CPRTimeToLive and CPRHistoryLength).
fn surplus_of_named(
    job: &Job,
    checkpoints: &[Checkpoint],
    is_old: impl Fn(&Checkpoint) -> bool,
) -> Vec<(i64, &'static str)> {
    let mut complete: Vec<&Checkpoint> = checkpoints
        .iter()
        .filter(|c| c.state == CheckpointState::Complete)
        .collect();
    complete.sort_unstable_by_key(|c| std::cmp::Reverse(c.id));
    let newest = |rank: usize| rank == 0 && !job.state.is_over();
    let ranked = complete.into_iter().enumerate();
    let mut surplus: Vec<(i64, &'static str)> = ranked
        .filter(|(rank, c)| !newest(*rank) && !is_needed(job, c) && !stands_in(checkpoints, c))
        .filter_map(|(rank, c)| match is_old(c) {
            true => Some((c.id, "its lifetime is over")),
            false => (rank >= job.spec.keep()).then_some((c.id, "newer ones are complete")),
        })
        .collect();
    surplus.reverse();
    surplus
}

/// Why a checkpoint cannot go though its user wants that, given all of its job: the job may yet need it.
pub(crate) fn cannot_go(job: &Job, checkpoints: &[Checkpoint], id: i64) -> Option<&'static str> {
    if checkpoints.iter().any(|c| c.id == id && is_needed(job, c)) {
        return Some("its job runs from it, or is to go on from it");
    }
    if checkpoints.iter().any(|c| c.id == id && stands_in(checkpoints, c)) {
        return Some("an image of it stands for a unit in a newer one");
    }
    let complete = checkpoints.iter().filter(|c| c.state == CheckpointState::Complete);
    let is_newest = complete.map(|c| c.id).max() == Some(id);
    (is_newest && !job.state.is_over()).then_some("it is the newest complete one of a job that is not over")
}

/// Whether a job runs from a checkpoint or is to go on from it, or a unit of it that has gone on alone does
/// (XGCP-FILE-8).
fn is_needed(job: &Job, checkpoint: &Checkpoint) -> bool {
    let placed = job.state.is_placed();
    let of_job = [job.from.filter(|_| placed), job.next_from].contains(&Some(checkpoint.id));
    let images = || checkpoint.units.iter().map(|image| Some(image.checkpoint));
    let of_unit = || job.units.iter().any(|unit| images().any(|image| image == unit.from));
    of_job || (placed && of_unit())
}

/// Whether a newer checkpoint has an image of this one, of a unit that was not there to be saved.
fn stands_in(checkpoints: &[Checkpoint], checkpoint: &Checkpoint) -> bool {
    let has = |other: &Checkpoint, id: i64| other.units.iter().any(|image| image.checkpoint == id);
    let shares = |other: &Checkpoint| {
        let images = checkpoint.units.iter().filter(|image| image.checkpoint != 0);
        images.clone().any(|image| has(other, image.checkpoint))
    };
    let mut newer = checkpoints
        .iter()
        .filter(|other| other.job == checkpoint.job && other.id > checkpoint.id && !other.state.is_gone());
    newer.any(shares)
}

/// Complete checkpoints of one user that have to go because all of theirs take more than `allowed` bytes, oldest first;
/// and how many bytes are still too many then. The newest complete one of each job stays, and what it runs from. What a
/// job was moved or suspended with is the system's, and not counted, until the job has a newer one.
pub(crate) fn over_quota(jobs: &[Job], checkpoints: &[Checkpoint], allowed: u64) -> (Vec<i64>, u64) {
    let newer = |c: &Checkpoint| {
        let mut others = checkpoints.iter().filter(|other| other.state.is_usable());
        others.any(|other| other.job == c.job && other.id > c.id)
    };
    let held = || {
        checkpoints
            .iter()
            .filter(|c| c.state.is_usable() && (!c.stop || newer(c)))
    };
    let mut bytes: u64 = held().map(|c| c.bytes).fold(0, u64::saturating_add);
    let complete = || held().filter(|c| c.state == CheckpointState::Complete);
    let stays = |c: &&Checkpoint| {
        let newest = complete()
            .filter(|other| other.job == c.job)
            .map(|other| other.id)
            .max();
        let job = jobs.iter().find(|job| job.id == c.job);
        newest == Some(c.id) || stands_in(checkpoints, c) || job.is_none_or(|job| is_needed(job, c))
    };
    let mut candidates: Vec<&Checkpoint> = complete().filter(|c| !stays(c)).collect();
    candidates.sort_unstable_by_key(|c| (c.stored_ms, c.id));
    let mut go = Vec::new();
    for candidate in candidates {
        if bytes <= allowed {
            break;
        }
        bytes = bytes.saturating_sub(candidate.bytes);
        go.push(candidate.id);
    }
    (go, bytes.saturating_sub(allowed))
}
