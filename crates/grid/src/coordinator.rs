//! The coordinator of a checkpoint of several units: a pure function from how far the units are to what is next.
//!
//! ```text
//!   prepare ──▶ stop ──▶ drain ──▶ save ──▶ resume ──▶ the checkpoint counts
//!                                     └──────────────▶ the same, where the job ends with it: no unit goes on
//! ```
//!
//! A step begins when every unit has done the one before (XtreemGCP, section 3.2). So there is a moment at which all
//! stand still, and each image is of that moment: it was begun after the last had stopped, and nobody is told to go on
//! before all are saved. Units between which there are TCP connections empty them first (section 4.4): nobody writes
//! any more, and what was written arrives, before anybody saves what has arrived. Units that are independent are saved
//! each by itself, and wait for nobody. Where a unit fails or a step takes too long the checkpoint is given up as a
//! whole; units go on by themselves when nobody wants anything of them any more.

use std::net::{IpAddr, SocketAddr};

use cpr_api::model::{Checkpoint, CheckpointState, Coordination, Step};
use cpr_types::{Connection, ConnectionEnd, Renewal, inner_connections};

use crate::grid::Policy;

/// How long steps may take, milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// To get ready, to stop, and to empty connections.
    pub(crate) step_ms: i64,
    /// To be saved, and to have images hashed.
    pub(crate) save_ms: i64,
}

impl Limits {
    pub(crate) fn of(policy: &Policy) -> Limits {
        let limit = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        Limits {
            step_ms: limit(policy.step_ms),
            save_ms: limit(policy.save_ms),
        }
    }
}

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
pub(crate) fn begin(independent: bool, now_ms: i64, limits: Limits) -> Coordination {
    match independent {
        true => Coordination {
            independent,
            ..at(Step::Save, now_ms, limits)
        },
        false => at(Step::Prepare, now_ms, limits),
    }
}

fn at(step: Step, now_ms: i64, limits: Limits) -> Coordination {
    let limit_ms = match step {
        Step::Prepare | Step::Stop | Step::Drain => limits.step_ms,
        Step::Save | Step::Resume => limits.save_ms,
    };
    Coordination {
        step,
        deadline_ms: now_ms.saturating_add(limit_ms),
        independent: false,
    }
}

/// What is next for a checkpoint that is being made, given those of its units.
pub(crate) fn next(coordination: &Coordination, stop: bool, parts: &[Checkpoint], now_ms: i64, limits: Limits) -> Next {
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
            Step::Drain => "empty its connections",
            Step::Save => "save itself",
            Step::Resume => "go on",
        };
        return Next::Fail(format!("unit {unit} on {} did not {what} in time", late.node));
    }
    match step {
        Step::Prepare => Next::Step(at(Step::Stop, now_ms, limits)),
        Step::Stop if channels(parts).iter().any(|channels| !channels.is_empty()) => {
            Next::Step(at(Step::Drain, now_ms, limits))
        }
        Step::Stop | Step::Drain => Next::Step(at(Step::Save, now_ms, limits)),
        Step::Save if !stop => Next::Step(at(Step::Resume, now_ms, limits)),
        // Their images are being hashed.
        Step::Save | Step::Resume if now_ms < coordination.deadline_ms => Next::Wait,
        Step::Save | Step::Resume => Next::Fail("an image was not hashed in time".into()),
    }
}

/// The TCP connections of each unit that lead to other ones. There are none where a node does not tell of its unit's.
pub(crate) fn channels(parts: &[Checkpoint]) -> Vec<Vec<Connection>> {
    let lists: Option<Vec<Vec<ConnectionEnd>>> = parts
        .iter()
        .map(|part| part.part.as_ref()?.connections.clone())
        .collect();
    let Some(mut lists) = lists else {
        return vec![Vec::new(); parts.len()];
    };
    // Others have the same addresses on other nodes.
    let all = lists.clone();
    for (list, part) in lists.iter_mut().zip(parts) {
        let here = || all.iter().zip(parts).filter(|(_, other)| other.node == part.node);
        list.retain(|end| {
            let is_other = |other: &ConnectionEnd| other.connection == end.connection.reversed();
            !end.connection.is_within_machine() || here().any(|(list, _)| list.iter().any(is_other))
        });
    }
    inner_connections(&lists)
}

/// A unit that is made again: its part of the checkpoint, its node, and an address of that.
pub(crate) struct Place<'a> {
    pub(crate) part: &'a Checkpoint,
    pub(crate) node: &'a str,
    pub(crate) address: Option<IpAddr>,
}

/// What becomes of the connections of one of these units. An address that its node has no more is changed for one that
/// the new node has; ports stay.
pub(crate) fn renewals(places: &[Place<'_>], of: usize) -> Vec<Renewal> {
    let parts: Vec<Checkpoint> = places.iter().map(|place| place.part.clone()).collect();
    let channels = channels(&parts);
    let ends = |number: usize| {
        let part = parts.get(number).and_then(|part| part.part.as_ref());
        part.and_then(|part| part.connections.as_deref()).unwrap_or_default()
    };
    let find =
        |number: usize, connection: Connection| ends(number).iter().find(|end| end.connection == connection).copied();
    let mut found = Vec::new();
    for connection in channels.get(of).into_iter().flatten() {
        let is_other = |number: &usize| {
            let near = !connection.is_within_machine() || parts[*number].node == parts[of].node;
            *number != of && near && channels[*number].contains(&connection.reversed())
        };
        let Some(number) = (0..places.len()).find(is_other) else {
            continue;
        };
        let (Some(end), Some(other_end)) = (find(of, *connection), find(number, connection.reversed())) else {
            continue;
        };
        let (here, there) = (&places[of], &places[number]);
        let stays = |place: &Place<'_>, ip: IpAddr| match ip.is_loopback() {
            true => here.node == there.node,
            false => place.part.node == place.node,
        };
        let now = |place: &Place<'_>, at: SocketAddr| match stays(place, at.ip()) {
            true => Some(at),
            false => Some(SocketAddr::new(place.address?, at.port())),
        };
        if let (Some(local), Some(remote)) = (now(here, connection.local), now(there, connection.remote)) {
            found.push(Renewal::of(end, other_end, Connection { local, remote })[0]);
        }
    }
    found
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

    const LIMITS: Limits = Limits {
        step_ms: 60_000,
        save_ms: 900_000,
    };

    fn part(unit: u32, done: Option<Step>, state: CheckpointState) -> Checkpoint {
        let job = crate::lifecycle::new_job(1, cpr_api::model::JobSpec::default());
        Checkpoint {
            node: format!("n{unit}"),
            state,
            part: Some(Part {
                of: 7,
                unit,
                done,
                connections: Some(Vec::new()),
            }),
            ..crate::grid::new_checkpoint(10 + i64::from(unit), &job, 1, false, 0)
        }
    }

    fn pending(done: [Option<Step>; 2]) -> [Checkpoint; 2] {
        [0, 1].map(|unit| part(unit, done[unit as usize], CheckpointState::Pending))
    }

    // XGCP-COORD-9
    #[test]
    fn no_step_begins_before_every_unit_has_done_the_one_before() {
        let mut now = begin(false, 0, LIMITS);
        for (step, following) in [
            (Step::Prepare, Step::Stop),
            (Step::Stop, Step::Save),
            (Step::Save, Step::Resume),
        ] {
            assert_eq!(now.step, step);
            let before = [None, Some(Step::Prepare), Some(Step::Stop), Some(Step::Save)];
            for late in before.into_iter().filter(|done| *done < Some(step)) {
                assert_eq!(next(&now, false, &pending([Some(step), late]), 1, LIMITS), Next::Wait);
            }
            let Next::Step(then) = next(&now, false, &pending([Some(step); 2]), 1, LIMITS) else {
                panic!("{step:?}");
            };
            assert_eq!(then.step, following);
            now = then;
        }
        let all = [0, 1].map(|unit| part(unit, Some(Step::Resume), CheckpointState::Stored));
        assert_eq!(next(&now, false, &all, 1, LIMITS), Next::Made);
    }

    #[test]
    fn units_of_a_job_that_ends_are_not_told_to_go_on() {
        let saving = at(Step::Save, 0, LIMITS);
        assert_eq!(
            next(&saving, true, &pending([Some(Step::Save); 2]), 1, LIMITS),
            Next::Wait
        );
        let one = [
            part(0, Some(Step::Save), CheckpointState::Stored),
            part(1, Some(Step::Save), CheckpointState::Pending),
        ];
        assert_eq!(next(&saving, true, &one, 1, LIMITS), Next::Wait);
        assert!(matches!(next(&saving, true, &one, i64::MAX, LIMITS), Next::Fail(_)));
    }

    // XGCP-COORD-12
    #[test]
    fn a_unit_that_fails_or_is_late_in_any_step_ends_it_as_a_whole() {
        for step in [Step::Prepare, Step::Stop, Step::Save, Step::Resume] {
            let now = at(step, 1000, LIMITS);
            let mut parts = pending([Some(step), None]);
            assert_eq!(next(&now, false, &parts, now.deadline_ms - 1, LIMITS), Next::Wait);
            let Next::Fail(why) = next(&now, false, &parts, now.deadline_ms, LIMITS) else {
                panic!("{step:?} has no end");
            };
            assert!(why.contains("unit 1 on n1"), "{why}");
            parts[1].state = CheckpointState::Failed;
            parts[1].reason = Some("its disk is full".into());
            let Next::Fail(why) = next(&now, false, &parts, 1000, LIMITS) else {
                panic!("{step:?}");
            };
            assert_eq!(why, "unit 1 on n1: its disk is full");
        }
    }

    fn end(local: &str, remote: &str) -> ConnectionEnd {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        let connection = Connection { local, remote };
        ConnectionEnd {
            connection,
            shares_port: local.port() == 5000,
            traffic: None,
        }
    }

    fn connected(lists: [Option<Vec<ConnectionEnd>>; 2]) -> [Checkpoint; 2] {
        let mut parts = pending([Some(Step::Stop); 2]);
        for (part, list) in parts.iter_mut().zip(lists) {
            part.part.as_mut().unwrap().connections = list;
        }
        parts
    }

    // XGCP-CHAN-4
    #[test]
    fn connections_are_emptied_before_anything_is_saved_where_there_are_any() {
        let (one, other) = (
            end("10.0.0.1:5000", "10.0.0.2:40000"),
            end("10.0.0.2:40000", "10.0.0.1:5000"),
        );
        let outside = end("10.0.0.2:40001", "10.0.0.9:80");
        let stopped = at(Step::Stop, 0, LIMITS);
        let next_step = |parts: &[Checkpoint]| match next(&stopped, false, parts, 1, LIMITS) {
            Next::Step(next) => next.step,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            next_step(&connected([Some(vec![one]), Some(vec![other, outside])])),
            Step::Drain
        );
        assert_eq!(next_step(&connected([Some(vec![]), Some(vec![outside])])), Step::Save);
        // An older node would not know what to do.
        assert_eq!(next_step(&connected([Some(vec![one]), None])), Step::Save);
        // The same addresses on two nodes are two connections.
        let (near, far) = (
            end("127.0.0.1:5000", "127.0.0.1:40000"),
            end("127.0.0.1:40000", "127.0.0.1:5000"),
        );
        assert_eq!(next_step(&connected([Some(vec![near]), Some(vec![far])])), Step::Save);
        let drained = at(Step::Drain, 0, LIMITS);
        let parts = connected([Some(vec![one]), Some(vec![other])]);
        assert_eq!(next(&drained, false, &parts, 1, LIMITS), Next::Wait);
        let all = pending([Some(Step::Drain); 2]);
        let Next::Step(then) = next(&drained, false, &all, 1, LIMITS) else {
            panic!()
        };
        assert_eq!(then.step, Step::Save);
    }

    // XGCP-CHAN-13
    #[test]
    fn connections_are_made_again_between_the_new_addresses() {
        let (one, other) = (
            end("10.0.0.1:5000", "10.0.0.2:40000"),
            end("10.0.0.2:40000", "10.0.0.1:5000"),
        );
        let parts = connected([Some(vec![one]), Some(vec![other])]);
        let place = |unit: usize, node, address: &str| Place {
            part: &parts[unit],
            node,
            address: address.parse().ok(),
        };
        let places = [place(0, "n0", "10.0.0.1"), place(1, "n7", "10.0.0.7")];
        let [here, there] = [0, 1].map(|unit| renewals(&places, unit)[0]);
        assert_eq!(here.former, one.connection);
        assert_eq!(here.now, end("10.0.0.1:5000", "10.0.0.7:40000").connection);
        assert!(here.listens && !there.listens);
        assert_eq!(there.former, other.connection);
        assert_eq!(there.now, here.now.reversed());
        // Nobody guesses an address.
        assert_eq!(renewals(&[place(0, "n0", "10.0.0.1"), place(1, "n7", "")], 0), []);
    }

    // XGCP-UNCOORD-1
    #[test]
    fn independent_units_are_told_nothing_and_wait_for_nobody() {
        let now = begin(true, 0, LIMITS);
        let one = [
            part(0, None, CheckpointState::Stored),
            part(1, None, CheckpointState::Pending),
        ];
        assert_eq!(next(&now, false, &one, 1, LIMITS), Next::Wait);
        let Next::Fail(why) = next(&now, false, &one, now.deadline_ms, LIMITS) else {
            panic!("it has no end");
        };
        assert!(why.contains("unit 1 on n1 did not save itself"), "{why}");
        let both = [0, 1].map(|unit| part(unit, None, CheckpointState::Stored));
        assert_eq!(next(&now, false, &both, 1, LIMITS), Next::Made);
    }

    #[test]
    fn it_is_complete_when_every_image_is() {
        let mut parts = [0, 1].map(|unit| part(unit, None, CheckpointState::Complete));
        assert_eq!(state(&parts), CheckpointState::Complete);
        parts[1].state = CheckpointState::Stored;
        assert_eq!(state(&parts), CheckpointState::Stored);
    }
}
