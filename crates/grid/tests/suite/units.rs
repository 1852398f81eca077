//! Jobs of several units: placed together, saved in one stop, and started together again.

use cpr_api::agent::{Incarnation, Phase};
use cpr_api::model::*;
use cpr_grid::{Caller, CheckpointQuery, EventQuery, Grid};
use cpr_types::{Connection, ConnectionEnd, ErrorKind};

use super::support::*;

pub fn units(number: usize) -> JobSpec {
    JobSpec {
        units: vec![UnitSpec::default(); number],
        ..spec()
    }
}

pub fn ada() -> Caller {
    user("ada", 1000)
}

/// A grid of three nodes on which a job of three units runs.
async fn running(place: &Place) -> (Grid, [FakeNode; 3], i64) {
    let grid = place.open().await;
    let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
    beat(place, &grid, &mut nodes).await;
    let id = grid.submit(&ada(), units(3), None).await.unwrap().id;
    beats(place, &grid, &mut nodes, 4).await;
    assert_eq!(state(&grid, id).await, JobState::Running);
    (grid, nodes, id)
}

/// One heartbeat of everybody who is not lost.
pub async fn beat(place: &Place, grid: &Grid, nodes: &mut [FakeNode]) {
    grid.tick().await.unwrap();
    for node in nodes {
        let now = place.now.load(std::sync::atomic::Ordering::SeqCst);
        node.beat(grid, now).await.unwrap();
    }
}

pub async fn beats(place: &Place, grid: &Grid, nodes: &mut [FakeNode], number: usize) {
    for _ in 0..number {
        beat(place, grid, nodes).await;
    }
}

pub async fn phases(grid: &Grid, id: i64) -> Vec<UnitPhase> {
    let job = grid.job(&ada(), id).await.unwrap();
    job.units.iter().map(|unit| unit.phase).collect()
}

pub async fn checkpoint(grid: &Grid, id: i64) -> Checkpoint {
    grid.checkpoint(&ada(), id).await.unwrap()
}

pub async fn save(place: &Place, grid: &Grid, nodes: &mut [FakeNode], job: i64) -> Checkpoint {
    let asked = grid.request_checkpoint(&ada(), job, None).await.unwrap();
    beats(place, grid, nodes, 12).await;
    let made = checkpoint(grid, asked.id).await;
    assert_eq!(made.state, CheckpointState::Complete, "{made:?}");
    made
}

#[test]
fn units_are_placed_all_at_once_or_not_at_all() {
    with_each_database("units_are_placed", |place| async move {
        let grid = place.open().await;
        // Nodes of two slots each.
        let mut nodes = ["n1", "n2"].map(FakeNode::new);
        beat(&place, &grid, &mut nodes).await;
        let before = grid.submit(&ada(), spec(), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 2).await;
        let id = grid.submit(&ada(), units(4), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 3).await;
        let waits = grid.job(&ada(), id).await.unwrap();
        assert_eq!(waits.state, JobState::Queued, "there is room for three of four");
        assert!(waits.reason.unwrap().contains("unit 3"));
        assert_eq!(nodes.iter().flat_map(FakeNode::running).count(), 1);
        // What they would have got is there for others.
        let small = grid.submit(&ada(), units(3), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 4).await;
        assert_eq!(state(&grid, small).await, JobState::Running);
        grid.cancel(&ada(), before).await.unwrap();
        grid.cancel(&ada(), small).await.unwrap();
        beats(&place, &grid, &mut nodes, 6).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(job.state, JobState::Running);
        let on = |name: &str| {
            job.units
                .iter()
                .filter(|unit| unit.node.as_deref() == Some(name))
                .count()
        };
        assert_eq!((on("n1"), on("n2")), (2, 2), "spread");
        let listed = |node: &str| cpr_grid::JobQuery {
            node: Some(node.into()),
            ..Default::default()
        };
        let found = grid.jobs(&ada(), &listed("n2")).await.unwrap().items;
        assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), [id]);
        assert!(grid.jobs(&ada(), &listed("n3")).await.unwrap().items.is_empty());
    });
}

// XGCP-JCP-1
#[test]
fn each_job_has_one_coordinator_and_no_second_one() {
    with_each_database("each_job_has_one_coordinator", |place| async move {
        let grid = place.open().await;
        let mut nodes: Vec<FakeNode> = (0..10).map(|number| FakeNode::new(&format!("n{number}"))).collect();
        beat(&place, &grid, &mut nodes).await;
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(grid.submit(&ada(), units(1), None).await.unwrap().id);
        }
        beats(&place, &grid, &mut nodes, 5).await;
        let mut coordinated = std::collections::BTreeMap::new();
        for id in &ids {
            assert_eq!(state(&grid, *id).await, JobState::Running);
            let asked = grid.request_checkpoint(&ada(), *id, None).await.unwrap();
            assert!(asked.coordination.is_some());
            // Who asks meanwhile gets the same one.
            let again = grid.request_checkpoint(&ada(), *id, None).await.unwrap();
            assert_eq!(again.id, asked.id);
            coordinated.insert(asked.id, *id);
        }
        assert_eq!(coordinated.len(), 20);
        let pending = || async {
            let query = CheckpointQuery {
                state: Some("pending".into()),
                ..Default::default()
            };
            let found = grid.checkpoints(&ada(), &query).await.unwrap().items;
            found
                .iter()
                .map(|c| (c.id, c.job))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(pending().await, coordinated);
        // One that ends its job takes the place of the one before.
        grid.suspend(&ada(), ids[0]).await.unwrap();
        let now = pending().await;
        assert_eq!(now.values().filter(|job| **job == ids[0]).count(), 1);
        assert!(!now.keys().any(|id| coordinated.get(id) == Some(&ids[0])));
        beats(&place, &grid, &mut nodes, 14).await;
        assert!(pending().await.is_empty());
        for (id, job) in &coordinated {
            if *job != ids[0] {
                assert_eq!(checkpoint(&grid, *id).await.state, CheckpointState::Complete);
            }
        }
    });
}

// XGCP-COORD-10, XGCP-JCP-11, XGCP-FILE-1
#[test]
fn a_checkpoint_is_of_all_units_step_by_step_and_all_go_on_from_it_together() {
    with_each_database("a_checkpoint_is_of_all_units", |place| async move {
        let (grid, mut nodes, id) = running(&place).await;
        let made = save(&place, &grid, &mut nodes, id).await;
        let of: Vec<u32> = made.units.iter().map(|image| image.unit).collect();
        assert_eq!((of, made.bytes), (vec![0, 1, 2], 21));
        assert_eq!(nodes.iter().map(FakeNode::standing).sum::<usize>(), 0);
        let query = EventQuery {
            job: Some(id),
            kind: Some("checkpoint".into()),
            ..Default::default()
        };
        let events = grid.events(&ada(), &query).await.unwrap().items;
        let told: Vec<&str> = events
            .iter()
            .map(|event| event.text.rsplit(": ").next().unwrap())
            .collect();
        assert_eq!(
            told[1..4],
            [
                "all units are ready and are to stop",
                "all units stand still and are to be saved",
                "all units are saved and are to go on",
            ]
        );
        // They are listed as one, and each image by itself when it is asked for.
        let all = grid
            .checkpoints(&ada(), &CheckpointQuery::default())
            .await
            .unwrap()
            .items;
        assert_eq!(all.iter().map(|c| c.id).collect::<Vec<_>>(), [made.id]);
        let query = CheckpointQuery {
            images_of: Some(made.id),
            ..Default::default()
        };
        let images = grid.checkpoints(&ada(), &query).await.unwrap().items;
        let of = |image: &Checkpoint| image.part.as_ref().map(|part| (part.of, part.unit));
        let parts: Vec<_> = images.iter().filter_map(of).collect();
        assert_eq!(
            parts,
            [(made.id, 0), (made.id, 1), (made.id, 2)],
            "with what each is of"
        );
        assert!(images.iter().all(|image| image.locations.len() == 2), "{images:?}");
        assert!(images.iter().all(|image| image.generation == made.generation));
        let from = Some(images[0].id);
        let request = RecoverRequest {
            from,
            ..RecoverRequest::default()
        };
        let refused = grid.recover(&ada(), id, request).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Usage);

        // A fresh service has nothing but what is in the database.
        drop(grid);
        let grid = place.open().await;
        beat(&place, &grid, &mut nodes).await;
        // With one node all units are lost, and none runs before all are there again.
        let [one, two, three] = nodes;
        let mut left = [two, three];
        let _gone = one;
        place.pass(8000);
        beat(&place, &grid, &mut left).await;
        place.pass(3000);
        beat(&place, &grid, &mut left).await;
        // Until they are placed again; then one node takes its time.
        for _ in 0..20 {
            if grid.job(&ada(), id).await.unwrap().incarnation == 2 {
                break;
            }
            beat(&place, &grid, &mut left).await;
        }
        beats(&place, &grid, &mut left[..1], 6).await;
        let now = phases(&grid, id).await;
        assert!(
            now.contains(&UnitPhase::Built) && now.contains(&UnitPhase::Starting),
            "{now:?}"
        );
        assert!(!now.contains(&UnitPhase::Running), "{now:?}");
        assert!(!left[0].jobs.values().any(|phase| *phase == Phase::Running));
        beats(&place, &grid, &mut left, 6).await;
        let again = grid.job(&ada(), id).await.unwrap();
        assert_eq!((again.state, again.incarnation), (JobState::Running, 2));
        assert_eq!(again.from, Some(made.id));
        let from: Vec<Option<i64>> = again.units.iter().map(|unit| unit.from).collect();
        assert_eq!(
            from,
            made.units
                .iter()
                .map(|image| Some(image.checkpoint))
                .collect::<Vec<_>>()
        );
    });
}

// XGCP-COORD-12
#[test]
fn where_a_unit_fails_in_any_step_all_go_on_and_the_checkpoint_before_is_good() {
    with_each_database("where_a_unit_fails", |place| async move {
        let (grid, mut nodes, id) = running(&place).await;
        let before = save(&place, &grid, &mut nodes, id).await;
        for step in [Step::Prepare, Step::Stop, Step::Save, Step::Resume] {
            nodes[1].fails = Some(step);
            let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
            beats(&place, &grid, &mut nodes, 12).await;
            let failed = checkpoint(&grid, asked.id).await;
            assert_eq!(failed.state, CheckpointState::Failed, "{step:?}");
            assert!(failed.reason.unwrap().contains("out of paint"));
            assert_eq!(nodes.iter().map(FakeNode::standing).sum::<usize>(), 0, "{step:?}");
            assert_eq!(phases(&grid, id).await, [UnitPhase::Running; 3]);
            for image in failed.units {
                let held = |node: &FakeNode| node.images.contains(&image.checkpoint);
                assert!(!nodes.iter().any(held), "{step:?}: nothing is left of it");
            }
        }
        assert_eq!(checkpoint(&grid, before.id).await.state, CheckpointState::Complete);
        // One that was to end the job does not.
        nodes[2].fails = Some(Step::Save);
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 12).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.state, job.intent), (JobState::Running, None));
    });
}

// XGCP-JCP-4, XGCP-COORD-12
#[test]
fn a_service_that_is_killed_in_any_step_takes_over_and_one_that_comes_too_late_gives_up() {
    with_each_database("a_service_that_is_killed", |place| async move {
        let (mut grid, mut nodes, id) = running(&place).await;
        for heartbeats in 1..10 {
            let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
            beats(&place, &grid, &mut nodes, heartbeats).await;
            drop(grid);
            grid = place.open().await;
            beats(&place, &grid, &mut nodes, 12).await;
            let made = checkpoint(&grid, asked.id).await;
            assert_eq!(made.state, CheckpointState::Complete, "after {heartbeats}: {made:?}");
        }
        // A node that is alive and does nothing.
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        for _ in 0..70 {
            place.pass(1000);
            grid.tick().await.unwrap();
            let now = place.now.load(std::sync::atomic::Ordering::SeqCst);
            for node in &mut nodes[..2] {
                node.beat(&grid, now).await.unwrap();
            }
            let report = nodes[2].report();
            grid.report(&admin(), &report).await.unwrap();
        }
        let late = checkpoint(&grid, asked.id).await;
        assert_eq!(late.state, CheckpointState::Failed);
        assert!(late.reason.unwrap().contains("did not get ready in time"));
        beats(&place, &grid, &mut nodes, 3).await;
        assert_eq!(phases(&grid, id).await, [UnitPhase::Running; 3]);
    });
}

#[test]
fn a_unit_that_has_finished_stays_so_and_one_that_fails_ends_all() {
    with_each_database("a_unit_that_has_finished", |place| async move {
        let (grid, mut nodes, id) = running(&place).await;
        let job = grid.job(&ada(), id).await.unwrap();
        let node = |unit: usize| job.units[unit].node.clone().unwrap();
        let end = |nodes: &mut [FakeNode; 3], unit: usize, code: i32| {
            let node = nodes.iter_mut().find(|known| known.name == node(unit)).unwrap();
            *node.jobs.values_mut().next().unwrap() = Phase::Exited { code, signal: None };
        };
        end(&mut nodes, 1, 0);
        beats(&place, &grid, &mut nodes, 3).await;
        let now = [UnitPhase::Running, UnitPhase::Finished, UnitPhase::Running];
        assert_eq!(phases(&grid, id).await, now);
        // XGCP-USE-3
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 12).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        assert_eq!(nodes.iter().flat_map(FakeNode::running).count(), 0);
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        beats(&place, &grid, &mut nodes, 8).await;
        assert_eq!(state(&grid, id).await, JobState::Running);
        assert_eq!(phases(&grid, id).await, now, "it is not started again");
        let of_first = |node: &&mut FakeNode| node.jobs.keys().any(|incarnation| incarnation.unit == Some(0));
        let node = nodes.iter_mut().find(of_first).unwrap();
        *node.jobs.values_mut().next().unwrap() = Phase::Exited { code: 4, signal: None };
        beats(&place, &grid, &mut nodes, 4).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(4)));
        assert_eq!(nodes.iter().flat_map(FakeNode::running).count(), 0, "all have ended");
        let ends = [UnitPhase::Failed, UnitPhase::Finished, UnitPhase::Ended];
        assert_eq!(phases(&grid, id).await, ends);
    });
}

// XGCP-UNCOORD-1, XGCP-JOB-7
#[test]
fn independent_units_are_saved_each_by_itself_and_end_together() {
    with_each_database("independent_units", |place| async move {
        let (grid, mut nodes, first) = running(&place).await;
        grid.cancel(&ada(), first).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        let wanted = JobSpec {
            independent: true,
            ..units(3)
        };
        let id = grid.submit(&ada(), wanted, None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 4).await;
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        // One after the other: none waits for the others, though they do nothing for it so far.
        for number in 0..3 {
            place.pass(1000);
            beats(&place, &grid, &mut nodes[number..=number], 2).await;
            let images = CheckpointQuery {
                images_of: Some(asked.id),
                ..Default::default()
            };
            let images = grid.checkpoints(&ada(), &images).await.unwrap().items;
            let made = images.iter().filter(|image| image.state.is_usable()).count();
            assert_eq!(made, number + 1);
            assert_eq!(nodes.iter().map(FakeNode::standing).sum::<usize>(), 0);
            let whole = checkpoint(&grid, asked.id).await.state.is_usable();
            assert_eq!(whole, number == 2, "it counts when all are");
        }
        beats(&place, &grid, &mut nodes, 4).await;
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 12).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        let steps = EventQuery {
            job: Some(id),
            kind: Some("checkpoint.step".into()),
            ..Default::default()
        };
        assert_eq!(
            grid.events(&ada(), &steps).await.unwrap().items.len(),
            2,
            "that one is of one moment"
        );
    });
}

/// A job of three independent units that run, one on each node.
async fn apart(place: &Place, grid: &Grid, nodes: &mut [FakeNode; 3], retries: u32) -> i64 {
    let wanted = JobSpec {
        independent: true,
        retries: Some(retries),
        ..units(3)
    };
    let id = grid.submit(&ada(), wanted, None).await.unwrap().id;
    beats(place, grid, nodes, 4).await;
    assert_eq!(phases(grid, id).await, [UnitPhase::Running; 3]);
    id
}

// XGCP-UNCOORD-7, XGCP-FILE-8
#[test]
fn of_independent_units_one_whose_node_is_lost_goes_on_alone_and_its_image_stays_as_long() {
    with_each_database("one goes on alone", |place| async move {
        let (grid, mut nodes, first) = running(&place).await;
        grid.cancel(&ada(), first).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        let id = apart(&place, &grid, &mut nodes, 5).await;
        let made = save(&place, &grid, &mut nodes, id).await;
        let before = grid.job(&ada(), id).await.unwrap();
        let lost = nodes[1].running().next().unwrap();
        let others: Vec<Incarnation> = [0, 2].iter().flat_map(|n: &usize| nodes[*n].running()).collect();
        nodes[1].crash();
        beats(&place, &grid, &mut nodes[1..2], 1).await;
        assert_eq!(grid.job(&ada(), id).await.unwrap().state, JobState::Running);
        // There is no moment with which all could end.
        assert_eq!(grid.suspend(&ada(), id).await.unwrap_err().kind(), ErrorKind::Busy);
        beats(&place, &grid, &mut nodes, 6).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(phases(&grid, id).await, [UnitPhase::Running; 3]);
        let number = lost.unit.unwrap();
        for other in &others {
            let unit = other.unit.unwrap() as usize;
            assert_eq!(job.units[unit], before.units[unit], "it has stayed as it was");
        }
        let still: Vec<Incarnation> = nodes
            .iter()
            .flat_map(FakeNode::running)
            .filter(|i| others.contains(i))
            .collect();
        assert_eq!(still.len(), 2);
        let image = made.units.iter().find(|image| image.unit == number).unwrap().checkpoint;
        assert_eq!(job.units[number as usize].from, Some(image));
        assert_eq!((job.incarnation, job.incarnation_of(number), job.failures), (2, 2, 1));
        // What it runs from cannot go, though the job as a whole has not gone on from it.
        let newer = save(&place, &grid, &mut nodes, id).await;
        assert_eq!(checkpoint(&grid, newer.id).await.state, CheckpointState::Complete);
        let stays = grid.free_checkpoint(&ada(), made.id).await.unwrap_err();
        assert_eq!(stays.kind(), ErrorKind::InUse);
        assert_eq!(grid.job(&ada(), id).await.unwrap().failures, 0, "it has got further");
        // As a whole it goes on from the newest one.
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 12).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        beats(&place, &grid, &mut nodes, 8).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.state, job.incarnation), (JobState::Running, 3));
        assert!((0..3).all(|unit| job.incarnation_of(unit) == 3));
    });
}

#[test]
fn a_unit_that_waits_alone_goes_on_from_the_beginning_is_cancelled_with_its_job_and_outlives_the_service() {
    with_each_database("it waits alone", |place| async move {
        let (grid, mut nodes, first) = running(&place).await;
        grid.cancel(&ada(), first).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        let id = apart(&place, &grid, &mut nodes, 10).await;
        let unit = nodes[1].running().next().unwrap().unit.unwrap() as usize;
        nodes[1].crash();
        beats(&place, &grid, &mut nodes[1..2], 1).await;
        let grid = place.open().await;
        beats(&place, &grid, &mut nodes, 6).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(
            (job.state, job.units[unit].from),
            (JobState::Running, None),
            "it had never been saved"
        );
        // All are lost at once: each goes on, and nobody takes the job for finished.
        nodes.iter_mut().for_each(FakeNode::crash);
        for node in &mut nodes {
            let now = place.now.load(std::sync::atomic::Ordering::SeqCst);
            node.beat(&grid, now).await.unwrap();
        }
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(job.state, JobState::Running);
        assert!(job.units.iter().any(|unit| unit.phase == UnitPhase::Waiting));
        grid.cancel(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        assert_eq!(state(&grid, id).await, JobState::Cancelled);
        assert_eq!(nodes.iter().flat_map(FakeNode::running).count(), 0);
    });
}

// XGCP-JCP-6, XGCP-JCP-7, XGCP-JUCP-2
#[test]
fn a_checkpoint_is_made_when_it_is_asked_for_and_on_the_nodes_of_the_job_only() {
    with_each_database("only on its nodes", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2", "n3", "n4"].map(FakeNode::new);
        beat(&place, &grid, &mut nodes).await;
        let id = grid.submit(&ada(), units(3), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 4).await;
        let job = grid.job(&ada(), id).await.unwrap();
        let on: Vec<&str> = job.units.iter().filter_map(|unit| unit.node.as_deref()).collect();
        let all = CheckpointQuery {
            job: Some(id),
            ..Default::default()
        };
        // By itself nothing is saved, however long it runs.
        for _ in 0..20 {
            place.pass(5_000);
            beats(&place, &grid, &mut nodes, 2).await;
        }
        assert!(grid.checkpoints(&ada(), &all).await.unwrap().items.is_empty());
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        let mut told: std::collections::BTreeMap<String, Vec<Step>> = Default::default();
        for _ in 0..12 {
            beat(&place, &grid, &mut nodes).await;
            for node in &nodes {
                let orders = node.orders.jobs.iter().flat_map(|order| &order.checkpoints);
                let steps = told.entry(node.name.clone()).or_default();
                steps.extend(orders.filter_map(|order| order.step));
                steps.dedup();
            }
        }
        assert_eq!(checkpoint(&grid, asked.id).await.state, CheckpointState::Complete);
        for (name, steps) in &told {
            let expected: &[Step] = match on.contains(&name.as_str()) {
                true => &[Step::Prepare, Step::Stop, Step::Save, Step::Resume],
                false => &[],
            };
            assert_eq!(steps, expected, "{name}");
        }
        let stood = |node: &FakeNode| !node.stands.is_empty();
        let stood: Vec<&str> = nodes
            .iter()
            .filter(|node| stood(node))
            .map(|node| node.name.as_str())
            .collect();
        assert_eq!(stood.len(), 3, "{stood:?}");
        assert!(stood.iter().all(|name| on.contains(name)));
        // What the grid decides is carried out: a node is to be emptied.
        grid.drain(&admin(), on[0], false).await.unwrap();
        beats(&place, &grid, &mut nodes, 24).await;
        let made = grid.checkpoints(&ada(), &all).await.unwrap().items;
        assert_eq!((made.len(), made[1].stop), (2, true));
        assert_eq!(grid.job(&ada(), id).await.unwrap().from, Some(made[1].id));
    });
}

// XGCP-ADAPT-2
#[test]
fn units_can_be_saved_in_another_way_while_they_run_and_go_on_from_what_either_has_left() {
    with_each_database("another way", |place| async move {
        let (grid, mut nodes, id) = running(&place).await;
        let together = save(&place, &grid, &mut nodes, id).await;
        let steps = async || {
            let query = EventQuery {
                job: Some(id),
                kind: Some("checkpoint.step".into()),
                ..Default::default()
            };
            grid.events(&ada(), &query).await.unwrap().items.len()
        };
        assert_eq!(steps().await, 3);
        let change = async |independent: bool| {
            let request = PolicyRequest {
                independent: Some(independent),
                ..PolicyRequest::default()
            };
            grid.change_policy(&ada(), id, request).await.unwrap()
        };
        assert!(change(true).await.spec.independent);
        let apart = save(&place, &grid, &mut nodes, id).await;
        assert_eq!(steps().await, 3, "no unit has waited for another");
        assert_eq!(apart.units.len(), 3);
        // A node fails; what it had goes on from the newer one.
        let crash = async |grid: &Grid, nodes: &mut [FakeNode; 3]| {
            let unit = nodes[0].running().next().unwrap().unit.unwrap();
            nodes[0].crash();
            beats(&place, grid, nodes, 6).await;
            // The pause before another attempt.
            place.pass(3_000);
            beats(&place, grid, nodes, 16).await;
            let job = grid.job(&ada(), id).await.unwrap();
            assert_eq!(job.state, JobState::Running);
            (unit as usize, job.units[unit as usize].from)
        };
        let (unit, from) = crash(&grid, &mut nodes).await;
        assert_eq!(from, Some(apart.units[unit].checkpoint));
        // Of that an image is lost everywhere; the one before has every unit.
        let lost = apart.units[1].checkpoint;
        for node in &mut nodes {
            node.images.retain(|image| *image != lost);
        }
        beats(&place, &grid, &mut nodes, 2).await;
        assert_eq!(checkpoint(&grid, apart.id).await.state, CheckpointState::Lost);
        let (unit, from) = crash(&grid, &mut nodes).await;
        assert_eq!(from, Some(together.units[unit].checkpoint));
        assert!(!change(false).await.spec.independent);
        save(&place, &grid, &mut nodes, id).await;
        assert_eq!(steps().await, 6, "in one stop again");
    });
}

/// A unit that hears how its connections are made again before the service is started again, and one that hears it
/// after.
#[test]
fn units_find_each_other_though_the_service_is_started_again_between_them() {
    with_each_database("units_find_each_other", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2"].map(FakeNode::new);
        let ends = [["10.0.0.1:5000", "10.0.0.2:40000"], ["10.0.0.2:40000", "10.0.0.1:5000"]];
        for (node, [local, remote]) in nodes.iter_mut().zip(ends) {
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            node.connections.push(ConnectionEnd {
                connection: Connection { local, remote },
                shares_port: false,
                traffic: None,
            });
        }
        beat(&place, &grid, &mut nodes).await;
        let id = grid.submit(&ada(), units(2), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 4).await;
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 14).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        let secret = |node: &FakeNode| {
            node.orders
                .jobs
                .iter()
                .find_map(|order| Some(order.links.as_ref()?.secret))
        };
        // Both are made again from their images, and the one hears of the other.
        let mut first = None;
        for _ in 0..8 {
            beat(&place, &grid, &mut nodes).await;
            first = nodes.iter().find_map(secret);
            if first.is_some() {
                break;
            }
        }
        let grid = place.open().await;
        for node in &mut nodes {
            // It has not heard of it so far.
            node.orders = Default::default();
            node.jobs.values_mut().for_each(|phase| *phase = Phase::Built);
        }
        beats(&place, &grid, &mut nodes[..1], 1).await;
        assert_eq!(secret(&nodes[0]), first);
        assert!(first.is_some());
    });
}

// LBNL-1.2.4.1.e, XGCP-JCP-5
#[test]
fn a_node_that_is_drained_sends_all_units_elsewhere() {
    with_each_database("a_node_that_is_drained", |place| async move {
        let (grid, mut nodes, id) = running(&place).await;
        let to = Some("n1".to_string());
        let refused = grid.migrate(&ada(), id, MigrateRequest { to }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Usage);
        grid.drain(&admin(), "n2", false).await.unwrap();
        beats(&place, &grid, &mut nodes, 24).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.state, job.incarnation, job.failures), (JobState::Running, 2, 0));
        assert!(job.from.is_some());
        assert!(job.units.iter().all(|unit| unit.node.as_deref() != Some("n2")));
        assert_eq!(nodes[1].running().count(), 0);
    });
}

#[test]
fn what_units_are_to_be_is_looked_at_before_they_are_queued() {
    let mut good = units(2);
    good.output = Some("part-%u".into());
    good.units[1] = UnitSpec {
        command: vec!["other".into()],
        slots: Some(2),
        ..UnitSpec::default()
    };
    good.check().unwrap();
    let (first, second) = (good.unit(0), good.unit(1));
    assert_eq!(
        (first.command[0].as_str(), second.command[0].as_str()),
        ("sim", "other")
    );
    assert_eq!((first.slots(), second.slots()), (1, 2));
    assert_eq!(second.output.as_deref(), Some("part-1"));
    assert_eq!(second.environment["GRIDCPR_UNIT"], "1");
    assert_eq!(second.environment["GRIDCPR_UNITS"], "2");
    let mut bad = good.clone();
    bad.units[1].slots = Some(0);
    assert!(bad.check().unwrap_err().chain().contains("unit 1"));
    assert!(units(257).check().is_err());
    let alone = JobSpec {
        independent: true,
        ..spec()
    };
    assert!(alone.check().unwrap_err().chain().contains("no units"));
    // A node of an earlier version would not understand it: those that have none do not say so.
    assert!(!serde_json::to_string(&spec()).unwrap().contains("units"));
}
