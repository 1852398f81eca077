//! The units of a job that has several: a pure function from what happens to one to what becomes of all.
//!
//! A unit that ends with code 0 has done its part, and the others go on. Every other end of one is the end of all: what
//! happened to the first is kept, the others are ended, and when the last is gone it happens to the job. So a job never
//! has units of two starts, except where they are independent: there nothing that the others have done depends on what
//! a unit has lost with its node, and it waits for a node of its own while they run on (XtreemGCP, section 3.2).

use cpr_api::model::{Ending, Job, JobState, Unit, UnitPhase};

use crate::lifecycle::Change;

/// What can happen to a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Its image is there, and it waits for the others to make connections again.
    Ready,
    /// It has been made again from its image, and waits for the others.
    Built,
    /// It runs.
    Began,
    /// Its program ended.
    Exited { code: i32, signal: Option<i32> },
    /// The system failed under it.
    Broke { why: String },
    /// It cannot be run at all.
    Refused { why: String },
    /// Its node ended it on order.
    Killed,
}

/// Changes a unit of a job; gives what happens to the job by that.
pub(crate) fn apply(job: &mut Job, number: usize, happened: Happened) -> Option<Change> {
    let alone = may_go_alone(job);
    let unit = job.units.get_mut(number).filter(|unit| unit.phase.is_placed())?;
    if alone && matches!(happened, Happened::Broke { .. } | Happened::Killed) {
        *unit = Unit {
            engine: std::mem::take(&mut unit.engine),
            ..Unit::default()
        };
        job.failures += 1;
        job.reason = Some(format!("unit {number}: {}", happened.why()));
        return None;
    }
    let ending = match happened {
        Happened::Ready => {
            unit.phase = UnitPhase::Ready;
            None
        }
        Happened::Built => {
            unit.phase = UnitPhase::Built;
            None
        }
        Happened::Began => {
            unit.phase = UnitPhase::Running;
            if job.state == JobState::Running && are_settled(job) {
                job.reason = None;
                job.bad_starts.clear();
            }
            None
        }
        Happened::Exited { code, signal } => {
            unit.exit_code = Some(code);
            unit.signal = signal;
            unit.phase = match code {
                0 => UnitPhase::Finished,
                _ => UnitPhase::Failed,
            };
            (code != 0).then_some(Ending::Failed { code, signal })
        }
        Happened::Broke { why } => {
            unit.phase = UnitPhase::Lost;
            Some(Ending::Broken {
                why: format!("unit {number}: {why}"),
            })
        }
        Happened::Refused { why } => {
            unit.phase = UnitPhase::Failed;
            Some(Ending::Refused {
                why: format!("unit {number}: {why}"),
            })
        }
        Happened::Killed => {
            unit.phase = UnitPhase::Ended;
            Some(Ending::Killed)
        }
    };
    // The first is the cause; what comes after it follows from it.
    job.ending = job.ending.take().or(ending);
    let placed = || job.units.iter().filter(|unit| unit.phase.is_placed());
    if placed().next().is_none() {
        if job.ending.is_none() && !are_settled(job) {
            // Those that wait for a node go on.
            return None;
        }
        return Some(end(job.ending.take()));
    }
    let begins = job.state == JobState::Starting && placed().all(|unit| unit.phase == UnitPhase::Running);
    (begins && job.ending.is_none()).then_some(Change::Began)
}

impl Happened {
    /// In words.
    fn why(&self) -> &str {
        match self {
            Happened::Broke { why } | Happened::Refused { why } => why,
            Happened::Killed => "its node ended it",
            Happened::Exited { .. } => "it has ended",
            Happened::Ready | Happened::Built | Happened::Began => "",
        }
    }
}

/// Whether a unit under which the system fails goes on alone: its job runs, nobody wants it to end, and its units say
/// nothing to each other. Where the system has failed too often the job is given up as any other.
fn may_go_alone(job: &Job) -> bool {
    let wanted = job.intent.is_none() && job.ending.is_none();
    job.spec.independent && job.state == JobState::Running && wanted && job.failures < job.spec.retries()
}

/// Whether every unit of a job that runs does, or has done its part: none waits for a node, or is being started.
pub(crate) fn are_settled(job: &Job) -> bool {
    job.units.iter().all(is_settled)
}

/// The same of one unit.
pub(crate) fn is_settled(unit: &Unit) -> bool {
    matches!(unit.phase, UnitPhase::Running | UnitPhase::Finished)
}

/// Whether a checkpoint can be made: all units are there, or those that are do without the others, which say nothing to
/// them. What ends a job (`stop`) ends all.
pub(crate) fn may_be_saved(job: &Job, stop: bool) -> bool {
    let apart = job.spec.independent && !stop;
    are_settled(job) || (apart && job.units.iter().any(|unit| unit.phase == UnitPhase::Running))
}

/// Gives a unit that waits to a node, in a start of the job that is its own.
pub(crate) fn place_alone(job: &mut Job, number: usize, node: String, from: Option<i64>) {
    // Records of an earlier version do not say which start their units are of.
    let before = Some(job.incarnation);
    job.units
        .iter_mut()
        .for_each(|unit| unit.incarnation = unit.incarnation.or(before));
    job.incarnation += 1;
    let incarnation = Some(job.incarnation);
    if let Some(unit) = job.units.get_mut(number) {
        *unit = Unit {
            phase: UnitPhase::Starting,
            node: Some(node),
            engine: std::mem::take(&mut unit.engine),
            from,
            incarnation,
            ..Unit::default()
        };
    }
}

/// What happens to the job when its last unit has ended.
fn end(ending: Option<Ending>) -> Change {
    match ending {
        None => Change::Exited { code: 0, signal: None },
        Some(Ending::Failed { code, signal }) => Change::Exited { code, signal },
        Some(Ending::Saved) => Change::Stopped,
        Some(Ending::Broken { why }) => Change::Broke { why },
        Some(Ending::Refused { why }) => Change::Refused { why },
        Some(Ending::Killed) => Change::Killed,
    }
}

/// Gives each unit that has not finished to a node, with the image that it goes on from.
pub(crate) fn place(units: &mut [Unit], incarnation: u32, places: Vec<Option<(String, Option<i64>)>>) {
    for (unit, place) in units.iter_mut().zip(places) {
        *unit = match place {
            Some((node, from)) => Unit {
                phase: UnitPhase::Starting,
                node: Some(node),
                engine: std::mem::take(&mut unit.engine),
                from,
                incarnation: Some(incarnation),
                ..Unit::default()
            },
            None => Unit {
                phase: UnitPhase::Finished,
                engine: std::mem::take(&mut unit.engine),
                exit_code: Some(0),
                ..Unit::default()
            },
        };
    }
}

/// Whether units that have been made again may run: all are there, or it goes on alone in a job that runs.
pub(crate) fn may_go(job: &Job) -> bool {
    if job.state == JobState::Running {
        return true;
    }
    let waits = |unit: &Unit| matches!(unit.phase, UnitPhase::Starting | UnitPhase::Ready);
    !job.units.iter().any(waits)
}

/// Whether units may make the connections between them again: every unit is ready for that, or has none.
pub(crate) fn may_link(job: &Job) -> bool {
    job.units.iter().all(|unit| unit.phase != UnitPhase::Starting)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::lifecycle::{self, new_job};
    use cpr_api::model::{Intent, JobSpec, UnitSpec};

    /// A job of three units that are being started.
    fn job() -> Job {
        let spec = JobSpec {
            units: vec![UnitSpec::default(); 3],
            retries: Some(5),
            ..JobSpec::default()
        };
        let mut job = new_job(1, spec);
        let places = (0..3).map(|n| Some((format!("n{n}"), Some(10 + n)))).collect();
        let change = Change::PlaceUnits { places, from: Some(9) };
        lifecycle::apply(&mut job, change, 0).unwrap();
        job
    }

    fn running() -> Job {
        let mut job = job();
        for unit in 0..3 {
            if let Some(change) = apply(&mut job, unit, Happened::Began) {
                lifecycle::apply(&mut job, change, 1).unwrap();
            }
        }
        assert_eq!(job.state, JobState::Running);
        job
    }

    fn exited(code: i32) -> Happened {
        Happened::Exited { code, signal: None }
    }

    fn broke() -> Happened {
        Happened::Broke { why: "lost".into() }
    }

    // XGCP-JCP-10
    #[test]
    fn no_unit_may_go_before_all_are_there() {
        let mut job = job();
        assert_eq!(apply(&mut job, 0, Happened::Ready), None);
        assert_eq!(apply(&mut job, 1, Happened::Ready), None);
        assert!(!may_link(&job), "one is not ready, and would not be found");
        // It has no connections.
        assert_eq!(apply(&mut job, 2, Happened::Built), None);
        assert!(may_link(&job));
        for unit in 0..2 {
            assert!(!may_go(&job));
            assert_eq!(apply(&mut job, unit, Happened::Built), None);
        }
        assert!(may_go(&job));
        assert_eq!(apply(&mut job, 0, Happened::Began), None);
        assert_eq!(job.state, JobState::Starting, "it runs when all do");
        assert_eq!(apply(&mut job, 1, Happened::Began), None);
        assert_eq!(apply(&mut job, 2, Happened::Began), Some(Change::Began));
    }

    #[test]
    fn a_job_has_finished_when_all_its_units_have() {
        let mut job = running();
        assert_eq!(apply(&mut job, 1, exited(0)), None);
        assert_eq!(apply(&mut job, 0, exited(0)), None);
        assert_eq!(job.ending, None, "the last one goes on");
        assert_eq!(
            apply(&mut job, 2, exited(0)),
            Some(Change::Exited { code: 0, signal: None })
        );
    }

    #[test]
    fn what_happens_to_the_first_happens_to_the_job_when_the_last_has_ended() {
        for (first, change) in [
            (exited(3), Change::Exited { code: 3, signal: None }),
            (
                broke(),
                Change::Broke {
                    why: "unit 1: lost".into(),
                },
            ),
            (
                Happened::Refused { why: "no".into() },
                Change::Refused {
                    why: "unit 1: no".into(),
                },
            ),
            (Happened::Killed, Change::Killed),
        ] {
            let mut job = running();
            assert_eq!(apply(&mut job, 1, first), None);
            assert!(job.ending.is_some(), "the others are to be ended");
            assert_eq!(apply(&mut job, 0, Happened::Killed), None);
            // It failed before it heard of that.
            assert_eq!(apply(&mut job, 2, exited(9)), Some(change));
            assert_eq!(apply(&mut job, 2, exited(9)), None, "told again");
        }
    }

    #[test]
    fn a_saved_job_is_saved_however_its_units_end() {
        let mut job = running();
        lifecycle::apply(&mut job, Change::End(Intent::Suspend), 1).unwrap();
        job.ending = Some(Ending::Saved);
        assert_eq!(apply(&mut job, 0, Happened::Killed), None);
        assert_eq!(apply(&mut job, 1, broke()), None);
        let change = apply(&mut job, 2, exited(0)).unwrap();
        assert_eq!(change, Change::Stopped);
        lifecycle::apply(&mut job, change, 2).unwrap();
        assert_eq!(job.state, JobState::Suspended);
        assert!(
            job.units
                .iter()
                .all(|unit| unit.phase == UnitPhase::Waiting && unit.node.is_none())
        );
    }

    fn independent(retries: u32) -> Job {
        let mut job = running();
        job.spec.independent = true;
        job.spec.retries = Some(retries);
        job
    }

    // XGCP-UNCOORD-7
    #[test]
    fn of_independent_units_only_the_one_goes_back_under_which_the_system_failed() {
        let mut job = independent(5);
        let others = [job.units[0].clone(), job.units[2].clone()];
        assert_eq!(apply(&mut job, 1, broke()), None);
        assert_eq!((job.state, &job.ending), (JobState::Running, &None));
        assert_eq!(job.units[1].phase, UnitPhase::Waiting);
        assert!(!are_settled(&job));
        assert_eq!([&job.units[0], &job.units[2]], [&others[0], &others[1]]);
        place_alone(&mut job, 1, "n9".into(), Some(77));
        assert_eq!(
            (job.incarnation_of(0), job.incarnation_of(1)),
            (1, 2),
            "the others are of the start before"
        );
        assert_eq!(apply(&mut job, 1, Happened::Built), None);
        assert!(may_go(&job));
        assert_eq!(apply(&mut job, 1, Happened::Began), None);
        assert!(are_settled(&job));
        // A fault of its own is the end of all, as ever.
        assert_eq!(apply(&mut job, 1, exited(3)), None);
        assert!(job.ending.is_some());
    }

    #[test]
    fn a_unit_that_waits_alone_keeps_its_job_from_being_over_and_not_for_ever() {
        let mut job = independent(2);
        assert_eq!(apply(&mut job, 0, broke()), None);
        assert_eq!(apply(&mut job, 1, exited(0)), None);
        assert_eq!(apply(&mut job, 2, exited(0)), None, "one waits");
        place_alone(&mut job, 0, "n9".into(), None);
        assert_eq!(apply(&mut job, 0, Happened::Killed), None, "its node ended it");
        assert_eq!(job.failures, 2);
        place_alone(&mut job, 0, "n9".into(), None);
        let change = apply(&mut job, 0, broke()).unwrap();
        lifecycle::apply(&mut job, change, 2).unwrap();
        assert_eq!(job.state, JobState::Failed);
        // Whoever wants the end of the job does not want a unit to go on.
        let mut job = independent(2);
        lifecycle::apply(&mut job, Change::End(Intent::Cancel), 1).unwrap();
        assert_eq!(apply(&mut job, 0, Happened::Killed), None);
        assert_eq!(job.units[0].phase, UnitPhase::Ended);
    }

    #[test]
    fn a_unit_that_had_finished_is_not_started_again() {
        let mut units = job().units;
        place(
            &mut units,
            2,
            vec![Some(("a".into(), Some(5))), None, Some(("b".into(), None))],
        );
        let phases: Vec<UnitPhase> = units.iter().map(|unit| unit.phase).collect();
        assert_eq!(phases, [UnitPhase::Starting, UnitPhase::Finished, UnitPhase::Starting]);
        assert!(units.iter().all(|unit| unit.engine == "native"));
    }
}
