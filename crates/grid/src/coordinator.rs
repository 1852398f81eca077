//! The coordinator of a checkpoint of several units: a pure function from how far the units are to what is next.
//!
//! ```text
//!   prepare ──▶ stop ──▶ save ──▶ resume ──▶ the checkpoint counts
//!                           └──────────────▶ the same, where the job ends with it: no unit goes on
//! ```
//!
//! A step begins when every unit has done the one before (XtreemGCP, section 3.2). So there is a moment at which all stand
//! still, and each image is of that moment: it was begun after the last had stopped, and nobody is told to go on before all
//! are saved. Units that are independent are saved each by itself, and wait for nobody. Where a unit fails or a step takes too long the checkpoint is given up as a whole; units go on by themselves
//! when nobody wants anything of them any more.

use cpr_api::model::{Checkpoint, CheckpointState, Coordination, Step};

/// How long all units may take to get ready, and to stop.
const SHORT_MS: i64 = 60_000;
/// How long all may take to save themselves, and to have their images hashed.
const LONG_MS: i64 = 900_000;

/// What is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Not all units are so far.
    Wait,
    /// All are to do this.
    Step(Coordination),
    /// Every image is on disk and known.
    Made,
    /// It is given up.
    Fail(String),
}

/// A checkpoint at its beginning.
pub(crate) fn begin(independent: bool, now_ms: i64) -> Coordination {
    match independent {
        true => Coordination {
            independent,
            ..at(Step::Save, now_ms)
        },
        false => at(Step::Prepare, now_ms),
    }
}

fn at(step: Step, now_ms: i64) -> Coordination {
    let limit_ms = match step {
        Step::Prepare | Step::Stop => SHORT_MS,
        Step::Save | Step::Resume => LONG_MS,
    };
    Coordination {
        step,
        deadline_ms: now_ms.saturating_add(limit_ms),
        independent: false,
    }
}

/// What is next for a checkpoint that is being made, given those of its units.
pub(crate) fn next(coordination: &Coordination, stop: bool, parts: &[Checkpoint], now_ms: i64) -> Next {
    if let Some(part) = parts.iter().find(|part| part.state.is_gone()) {
        let unit = part.part.as_ref().map_or(0, |part| part.unit);
        let why = part.reason.as_deref().unwrap_or("it has failed");
        return Next::Fail(format!("unit {unit} on {}: {why}", part.node));
    }
    if !parts.is_empty() && parts.iter().all(|part| part.state.is_usable()) {
        return Next::Made;
    }
    let step = coordination.step;
    let done = |part: &&Checkpoint| {
        let done = part.part.as_ref().and_then(|part| part.done);
        part.state.is_usable() || (done >= Some(step) && !coordination.independent)
    };
    if let Some(late) = parts.iter().find(|part| !done(part)) {
        if now_ms < coordination.deadline_ms {
            return Next::Wait;
        }
        let unit = late.part.as_ref().map_or(0, |part| part.unit);
        let what = match step {
            Step::Prepare => "get ready",
            Step::Stop => "stop",
            Step::Save => "save itself",
            Step::Resume => "go on",
        };
        return Next::Fail(format!("unit {unit} on {} did not {what} in time", late.node));
    }
    match step {
        Step::Prepare => Next::Step(at(Step::Stop, now_ms)),
        Step::Stop => Next::Step(at(Step::Save, now_ms)),
        Step::Save if !stop => Next::Step(at(Step::Resume, now_ms)),
        // Their images are being hashed.
        Step::Save | Step::Resume if now_ms < coordination.deadline_ms => Next::Wait,
        Step::Save | Step::Resume => Next::Fail("an image was not hashed in time".into()),
    }
}

/// The state of a checkpoint whose images are all there.
pub(crate) fn state(parts: &[Checkpoint]) -> CheckpointState {
    match parts.iter().all(|part| part.state == CheckpointState::Complete) {
        true => CheckpointState::Complete,
        false => CheckpointState::Stored,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cpr_api::model::Part;

    fn part(unit: u32, done: Option<Step>, state: CheckpointState) -> Checkpoint {
        let job = crate::lifecycle::new_job(1, cpr_api::model::JobSpec::default());
        Checkpoint {
            node: format!("n{unit}"),
            state,
            part: Some(Part { of: 7, unit, done }),
            ..crate::grid::new_checkpoint(10 + i64::from(unit), &job, 1, false, 0)
        }
    }

    fn pending(done: [Option<Step>; 2]) -> [Checkpoint; 2] {
        [0, 1].map(|unit| part(unit, done[unit as usize], CheckpointState::Pending))
    }

    // XGCP-COORD-9
    #[test]
    fn no_step_begins_before_every_unit_has_done_the_one_before() {
        let mut now = begin(false, 0);
        for (step, following) in [
            (Step::Prepare, Step::Stop),
            (Step::Stop, Step::Save),
            (Step::Save, Step::Resume),
        ] {
            assert_eq!(now.step, step);
            let before = [None, Some(Step::Prepare), Some(Step::Stop), Some(Step::Save)];
            for late in before.into_iter().filter(|done| *done < Some(step)) {
                assert_eq!(next(&now, false, &pending([Some(step), late]), 1), Next::Wait);
            }
            let Next::Step(then) = next(&now, false, &pending([Some(step); 2]), 1) else {
                panic!("{step:?}");
            };
            assert_eq!(then.step, following);
            now = then;
        }
        let all = [0, 1].map(|unit| part(unit, Some(Step::Resume), CheckpointState::Stored));
        assert_eq!(next(&now, false, &all, 1), Next::Made);
    }

    #[test]
    fn units_of_a_job_that_ends_are_not_told_to_go_on() {
        let saving = at(Step::Save, 0);
        assert_eq!(next(&saving, true, &pending([Some(Step::Save); 2]), 1), Next::Wait);
        let one = [
            part(0, Some(Step::Save), CheckpointState::Stored),
            part(1, Some(Step::Save), CheckpointState::Pending),
        ];
        assert_eq!(next(&saving, true, &one, 1), Next::Wait);
        assert!(matches!(next(&saving, true, &one, i64::MAX), Next::Fail(_)));
    }

    // XGCP-COORD-12
    #[test]
    fn a_unit_that_fails_or_is_late_in_any_step_ends_it_as_a_whole() {
        for step in [Step::Prepare, Step::Stop, Step::Save, Step::Resume] {
            let now = at(step, 1000);
            let mut parts = pending([Some(step), None]);
            assert_eq!(next(&now, false, &parts, now.deadline_ms - 1), Next::Wait);
            let Next::Fail(why) = next(&now, false, &parts, now.deadline_ms) else {
                panic!("{step:?} has no end");
            };
            assert!(why.contains("unit 1 on n1"), "{why}");
            parts[1].state = CheckpointState::Failed;
            parts[1].reason = Some("its disk is full".into());
            let Next::Fail(why) = next(&now, false, &parts, 1000) else {
                panic!("{step:?}");
            };
            assert_eq!(why, "unit 1 on n1: its disk is full");
        }
    }

    // XGCP-UNCOORD-1
    #[test]
    fn independent_units_are_told_nothing_and_wait_for_nobody() {
        let now = begin(true, 0);
        let one = [
            part(0, None, CheckpointState::Stored),
            part(1, None, CheckpointState::Pending),
        ];
        assert_eq!(next(&now, false, &one, 1), Next::Wait);
        let Next::Fail(why) = next(&now, false, &one, now.deadline_ms) else {
            panic!("it has no end");
        };
        assert!(why.contains("unit 1 on n1 did not save itself"), "{why}");
        let both = [0, 1].map(|unit| part(unit, None, CheckpointState::Stored));
        assert_eq!(next(&now, false, &both, 1), Next::Made);
    }

    #[test]
    fn it_is_complete_when_every_image_is() {
        let mut parts = [0, 1].map(|unit| part(unit, None, CheckpointState::Complete));
        assert_eq!(state(&parts), CheckpointState::Complete);
        parts[1].state = CheckpointState::Stored;
        assert_eq!(state(&parts), CheckpointState::Stored);
    }
}
