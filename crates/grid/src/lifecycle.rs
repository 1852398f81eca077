//! The life of a job: a pure function from its record and what happened to its next record.
//!
//! ```text
//!              place            began
//!   queued ───────────▶ starting ─────▶ running ──▶ finished, failed (ended by itself)
//!     ▲ ▲                   │             │ │ └───▶ suspended (stopped by a checkpoint)
//!     │ └───────────────────┴─────────────┘ └─────▶ queued (stopped, to go on elsewhere)
//!     │       the system failed                     cancelled
//!     └──── recover, resume ── suspended, failed, cancelled
//! ```

use cpr_api::model::{Intent, Job, JobState, Unit};
use cpr_types::{Error, ErrorKind, Result};

use crate::units;

/// First pause before another attempt after the second failure in a row; it doubles with each.
const FIRST_PAUSE_MS: i64 = 2_000;
/// Longest pause.
const LONGEST_PAUSE_MS: i64 = 300_000;

/// What can happen to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is given to a node, to go on from a checkpoint, or from the beginning.
    Place { node: String, from: Option<i64> },
    /// Its units are given to nodes, each to go on from its image; none for units that have finished.
    PlaceUnits {
        places: Vec<Option<(String, Option<i64>)>>,
        from: Option<i64>,
    },
    /// It runs.
    Began,
    /// Its program ended.
    Exited { code: i32, signal: Option<i32> },
    /// A checkpoint ended it.
    Stopped,
    /// The system failed under it: it may be started again.
    Broke { why: String },
    /// It cannot be run at all.
    Refused { why: String },
    /// Its node ended it on order.
    Killed,
    /// It is to be ended.
    End(Intent),
    /// The checkpoint that was to end it failed, so that it goes on.
    GoOn,
    /// Somebody wants it to go on, from a checkpoint or on a node of their choice.
    Recover { from: Option<i64>, on: Option<String> },
}

/// Pause before the next attempt, after so many failures in a row.
pub(crate) fn pause_ms(failures: u32) -> i64 {
    match failures {
        0 | 1 => 0,
        n => (FIRST_PAUSE_MS << (n - 2).min(16)).min(LONGEST_PAUSE_MS),
    }
}

/// Changes the record of a job. An error says that this cannot happen to a job in its state, and leaves it as it was.
pub(crate) fn apply(job: &mut Job, change: Change, now_ms: i64) -> Result<()> {
    let placed = job.state.is_placed();
    match change {
        Change::Place { node, from } if job.state == JobState::Queued => {
            start(job, from);
            job.node = Some(node);
        }
        Change::PlaceUnits { places, from } if job.state == JobState::Queued => {
            start(job, from);
            units::place(&mut job.units, job.incarnation, places);
        }
        Change::Began if job.state == JobState::Starting => {
            job.state = JobState::Running;
            job.started_ms = Some(now_ms);
            job.bad_starts.clear();
        }
        // Told again.
        Change::Began if job.state == JobState::Running => {}
        Change::Exited { code, signal } if placed => {
            let why = match signal {
                Some(signal) => format!("ended by signal {signal}"),
                None => format!("ended with exit code {code}"),
            };
            job.exit_code = Some(code);
            job.signal = signal;
            if job.state == JobState::Starting {
                // It ended before anybody saw it run.
                job.started_ms = Some(now_ms);
            }
            match job.intent {
                // It may have caught the signal.
                Some(Intent::Cancel) => over(job, JobState::Cancelled, "cancelled".into(), now_ms),
                Some(Intent::Expire) => over(job, JobState::Failed, "its time limit passed".into(), now_ms),
                _ if code == 0 => over(job, JobState::Finished, why, now_ms),
                _ => over(job, JobState::Failed, why, now_ms),
            }
        }
        Change::Stopped if placed => match job.intent.take() {
            Some(Intent::Suspend) => {
                leave(job);
                collect_units(job);
                job.state = JobState::Suspended;
                job.reason = Some("suspended to a checkpoint".into());
            }
            Some(Intent::Cancel) => over(job, JobState::Cancelled, "cancelled".into(), now_ms),
            Some(Intent::Expire) => over(job, JobState::Failed, "its time limit passed".into(), now_ms),
            Some(Intent::Move(node)) => {
                queue(job, "it goes on elsewhere".into(), now_ms);
                job.next_node = node;
            }
            // Somebody on the node did it.
            None => queue(job, "a checkpoint ended it".into(), now_ms),
        },
        Change::Broke { why } if placed => match &job.intent {
            Some(Intent::Cancel) => over(job, JobState::Cancelled, format!("cancelled; {why}"), now_ms),
            Some(Intent::Expire) => over(job, JobState::Failed, "its time limit passed".into(), now_ms),
            _ => {
                job.failures += 1;
                if job.failures > job.spec.retries() {
                    let times = job.failures;
                    over(
                        job,
                        JobState::Failed,
                        format!("given up after {times} failures of the system: {why}"),
                        now_ms,
                    );
                } else {
                    let suspend = job.intent == Some(Intent::Suspend);
                    let pause = pause_ms(job.failures);
                    queue(job, why, now_ms + pause);
                    if suspend {
                        job.state = JobState::Suspended;
                    }
                }
            }
        },
        Change::Refused { why } if placed || job.state == JobState::Queued => over(job, JobState::Failed, why, now_ms),
        Change::Killed if placed => match &job.intent {
            Some(Intent::Cancel) => over(job, JobState::Cancelled, "cancelled".into(), now_ms),
            Some(Intent::Expire) => over(job, JobState::Failed, "its time limit passed".into(), now_ms),
            _ => {
                return apply(
                    job,
                    Change::Broke {
                        why: "its node ended it".into(),
                    },
                    now_ms,
                );
            }
        },
        Change::End(Intent::Cancel) if matches!(job.state, JobState::Queued | JobState::Suspended) => {
            over(job, JobState::Cancelled, "cancelled".into(), now_ms);
        }
        // Cancelled again, which is no mistake.
        Change::End(Intent::Cancel) if job.state == JobState::Cancelled => {}
        Change::End(intent @ (Intent::Cancel | Intent::Expire)) if placed => job.intent = Some(intent),
        Change::End(intent @ (Intent::Suspend | Intent::Move(_))) if job.state == JobState::Running => {
            match &job.intent {
                None if job.ending.is_some() => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("units of job {} are being ended", job.id),
                    ));
                }
                None => job.intent = Some(intent),
                Some(before) if *before == intent => {}
                Some(_) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("job {} is being ended already", job.id),
                    ));
                }
            }
        }
        Change::GoOn if placed && matches!(job.intent, Some(Intent::Suspend | Intent::Move(_))) => job.intent = None,
        Change::GoOn => {}
        Change::Recover { from, on }
            if matches!(
                job.state,
                JobState::Suspended | JobState::Failed | JobState::Cancelled | JobState::Queued
            ) =>
        {
            queue(job, "recovery was asked for".into(), now_ms);
            job.failures = 0;
            job.bad_starts.clear();
            job.exit_code = None;
            job.signal = None;
            job.ended_ms = None;
            job.next_from = from;
            job.next_node = on;
        }
        change => {
            let what = match change {
                Change::Recover { .. } => "recovered",
                Change::End(Intent::Suspend) => "suspended",
                Change::End(Intent::Move(_)) => "moved",
                Change::End(_) => "ended",
                _ => "changed like this",
            };
            let state = job.state.name();
            return Err(Error::new(
                if job.state.is_over() {
                    ErrorKind::Gone
                } else {
                    ErrorKind::Busy
                },
                format!("job {} is {state} and cannot be {what}", job.id),
            ));
        }
    }
    Ok(())
}

fn start(job: &mut Job, from: Option<i64>) {
    job.state = JobState::Starting;
    job.reason = None;
    job.from = from;
    job.next_from = None;
    job.next_node = None;
    job.incarnation += 1;
    job.started_ms = None;
    job.checkpoint_begun_ms = None;
}

fn leave(job: &mut Job) {
    job.node = None;
    job.ending = None;
    job.intent = None;
    job.started_ms = None;
}

/// Its units are where they were before it was ever started.
fn collect_units(job: &mut Job) {
    for unit in &mut job.units {
        *unit = Unit {
            engine: std::mem::take(&mut unit.engine),
            ..Unit::default()
        };
    }
}

fn queue(job: &mut Job, why: String, not_before_ms: i64) {
    leave(job);
    collect_units(job);
    job.state = JobState::Queued;
    job.reason = Some(why);
    job.not_before_ms = not_before_ms;
}

fn over(job: &mut Job, state: JobState, why: String, now_ms: i64) {
    let started_ms = job.started_ms;
    leave(job);
    job.started_ms = started_ms;
    job.state = state;
    job.reason = Some(why);
    job.ended_ms = Some(now_ms);
}

/// A job for tests, as it is when it is submitted.
#[cfg(test)]
pub(crate) fn new_job(id: i64, spec: cpr_api::model::JobSpec) -> Job {
    let owner = cpr_api::model::Owner {
        name: "ada".into(),
        uid: 1,
        gid: 1,
    };
    Job::new(id, owner, spec, 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cpr_api::model::JobSpec;

    fn job(state: JobState) -> Job {
        let placed = state.is_placed();
        let spec = JobSpec {
            retries: Some(2),
            ..JobSpec::default()
        };
        Job {
            state,
            node: placed.then(|| "n1".into()),
            incarnation: u32::from(placed),
            ..new_job(1, spec)
        }
    }

    fn place() -> Change {
        Change::Place {
            node: "n2".into(),
            from: Some(7),
        }
    }

    fn broke() -> Change {
        Change::Broke {
            why: "node n1 was lost".into(),
        }
    }

    #[test]
    fn a_job_is_placed_only_while_it_is_queued() {
        for state in JobState::ALL {
            let mut job = job(state);
            let before = job.clone();
            assert_eq!(
                apply(&mut job, place(), 5).is_ok(),
                state == JobState::Queued,
                "{state:?}"
            );
            if state != JobState::Queued {
                assert_eq!(job, before, "a refused change leaves the job as it was");
            }
        }
    }

    // GFD93-EH-6, GFD93-EH-8: what failed by itself is not started again, what the system failed is, up to a limit.
    #[test]
    fn only_failures_of_the_system_are_retried_and_not_for_ever() {
        let mut own = job(JobState::Running);
        apply(&mut own, Change::Exited { code: 3, signal: None }, 9).unwrap();
        assert_eq!(
            (own.state, own.exit_code, own.ended_ms),
            (JobState::Failed, Some(3), Some(9))
        );
        let mut well = job(JobState::Running);
        apply(&mut well, Change::Exited { code: 0, signal: None }, 9).unwrap();
        assert_eq!(well.state, JobState::Finished);

        let mut lost = job(JobState::Running);
        let mut pauses = Vec::new();
        for round in 1..=3 {
            apply(&mut lost, broke(), 100).unwrap();
            assert_eq!(lost.failures, round);
            if round < 3 {
                assert_eq!(lost.state, JobState::Queued);
                pauses.push(lost.not_before_ms - 100);
                apply(&mut lost, place(), 200).unwrap();
            }
        }
        assert_eq!(pauses, [0, FIRST_PAUSE_MS]);
        assert_eq!(lost.state, JobState::Failed);
        assert!(lost.reason.unwrap().contains("node n1 was lost"));
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        assert!((1..60).all(|n| pause_ms(n) <= pause_ms(n + 1)));
        assert_eq!(pause_ms(u32::MAX), LONGEST_PAUSE_MS);
    }

    #[test]
    fn whoever_is_ended_on_purpose_is_not_started_again() {
        for change in [
            broke(),
            Change::Killed,
            Change::Stopped,
            Change::Exited {
                code: 137,
                signal: Some(9),
            },
        ] {
            let mut job = job(JobState::Running);
            apply(&mut job, Change::End(Intent::Cancel), 1).unwrap();
            assert_eq!(job.state, JobState::Running, "until its node says that it has ended");
            apply(&mut job, change, 2).unwrap();
            assert_eq!(job.state, JobState::Cancelled);
        }
    }

    #[test]
    fn a_stopped_job_goes_where_it_was_meant_to() {
        let mut moved = job(JobState::Running);
        apply(&mut moved, Change::End(Intent::Move(Some("n3".into()))), 1).unwrap();
        assert!(apply(&mut moved, Change::End(Intent::Suspend), 1).is_err());
        apply(&mut moved, Change::Stopped, 2).unwrap();
        assert_eq!(
            (moved.state, moved.next_node.as_deref()),
            (JobState::Queued, Some("n3"))
        );
        let mut saved = job(JobState::Running);
        apply(&mut saved, Change::End(Intent::Suspend), 1).unwrap();
        apply(&mut saved, Change::Stopped, 2).unwrap();
        assert_eq!(saved.state, JobState::Suspended);
        apply(&mut saved, Change::Recover { from: None, on: None }, 3).unwrap();
        assert_eq!(saved.state, JobState::Queued);
    }
}
