//! Jobs that make room for others: of lower priority, or because their turn is over.

use cpr_api::agent::Phase;
use cpr_api::model::*;
use cpr_grid::Policy;

use super::support::*;
use super::units::{ada, beat, beats, units};

#[test]
fn room_is_made_for_all_units_of_a_job_at_once_and_those_of_another_go_together() {
    with_each_database("units_make_room", |place| async move {
        let policy = Policy {
            preempt: true,
            ..Policy::default()
        };
        let grid = place.open_with(policy).await;
        // Nodes of two slots each.
        let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
        beat(&place, &grid, &mut nodes).await;
        let with = |priority, spec: JobSpec| JobSpec { priority, ..spec };
        let submit = async |spec: JobSpec| grid.submit(&ada(), spec, None).await.unwrap().id;
        let pair = submit(with(2, units(2))).await;
        let single = submit(with(1, spec())).await;
        let other = submit(with(3, spec())).await;
        beats(&place, &grid, &mut nodes, 4).await;
        for id in [pair, single, other] {
            assert_eq!(state(&grid, id).await, JobState::Running);
        }
        // Two slots are free; it needs a whole node for each of two units.
        let mut large = with(5, units(2));
        large.slots = Some(2);
        let large = submit(large).await;
        let equal = submit(with(1, spec())).await;
        for _ in 0..40 {
            beat(&place, &grid, &mut nodes).await;
            let taken: usize = nodes.iter().map(|node| node.running().count()).sum();
            assert!(taken <= 6, "{taken}");
        }
        let job = grid.job(&ada(), large).await.unwrap();
        assert_eq!(job.state, JobState::Running, "{:?}", job.reason);
        let whole = grid.job(&ada(), pair).await.unwrap();
        let phases: Vec<UnitPhase> = whole.units.iter().map(|unit| unit.phase).collect();
        assert!(
            phases.windows(2).all(|two| two[0] == two[1]),
            "they run together or not at all: {phases:?}"
        );
        assert_eq!(whole.failures, 0);
        assert_eq!(
            state(&grid, other).await,
            JobState::Running,
            "the highest of them had not to go"
        );
        // All of them go on from what was saved when it has ended.
        for node in &mut nodes {
            for (incarnation, phase) in &mut node.jobs {
                if incarnation.job == large {
                    *phase = Phase::Exited { code: 0, signal: None };
                }
            }
        }
        beats(&place, &grid, &mut nodes, 12).await;
        for id in [pair, single, other, equal] {
            let job = grid.job(&ada(), id).await.unwrap();
            assert_eq!((job.state, job.failures), (JobState::Running, 0), "job {id}");
            assert_eq!(job.from.is_some(), job.incarnation > 1, "job {id}");
        }
        // One of several units makes room for one of a single piece, too.
        let narrow = JobSpec {
            slots: Some(2),
            node: Some(nodes[0].name.clone()),
            ..with(9, spec())
        };
        let narrow = submit(narrow).await;
        beats(&place, &grid, &mut nodes, 40).await;
        assert_eq!(state(&grid, narrow).await, JobState::Running);
    });
}

#[test]
fn jobs_that_wait_for_the_same_room_take_turns_and_never_run_together() {
    with_each_database("turns", |place| async move {
        let policy = Policy {
            slice_ms: Some(60_000),
            ..Policy::default()
        };
        let mut grid = place.open_with(policy.clone()).await;
        let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
        beat(&place, &grid, &mut nodes).await;
        let mut jobs = Vec::new();
        for _ in 0..3 {
            let wanted = JobSpec {
                slots: Some(2),
                ..units(3)
            };
            jobs.push(grid.submit(&ada(), wanted, None).await.unwrap().id);
        }
        let mut turns: Vec<(i64, u64)> = Vec::new();
        for round in 0..100 {
            place.pass(5_000);
            beat(&place, &grid, &mut nodes).await;
            let running: Vec<i64> = nodes.iter().flat_map(|node| node.running()).map(|i| i.job).collect();
            let Some(one) = running.first() else { continue };
            assert!(running.iter().all(|other| other == one), "{running:?}");
            match turns.last_mut().filter(|(job, _)| job == one) {
                Some((_, beats)) => *beats += 1,
                None => turns.push((*one, 1)),
            }
            if round == 50 {
                grid = place.open_with(policy.clone()).await;
            }
        }
        let order: Vec<i64> = turns.iter().map(|(job, _)| *job).collect();
        assert!(order.len() >= 4, "{turns:?}");
        let expected: Vec<i64> = jobs.iter().cycle().copied().take(order.len()).collect();
        assert_eq!(order, expected);
        let whole = &turns[..turns.len() - 1];
        assert!(whole.iter().all(|(_, beats)| *beats >= 60 / 5), "{turns:?}");
        let first = grid.job(&ada(), jobs[0]).await.unwrap();
        assert!(first.incarnation > 1 && first.from.is_some() && first.failures == 0);
        // One that nobody waits for has no turn that could be over.
        grid.cancel(&ada(), jobs[0]).await.unwrap();
        grid.cancel(&ada(), jobs[1]).await.unwrap();
        for _ in 0..20 {
            place.pass(5_000);
            beat(&place, &grid, &mut nodes).await;
        }
        let last = grid.job(&ada(), jobs[2]).await.unwrap();
        for _ in 0..30 {
            place.pass(5_000);
            beat(&place, &grid, &mut nodes).await;
        }
        let now = grid.job(&ada(), jobs[2]).await.unwrap();
        assert_eq!((now.state, now.incarnation), (JobState::Running, last.incarnation));
    });
}
