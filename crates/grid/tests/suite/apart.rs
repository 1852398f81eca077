//! Independent units that are saved while another one waits for a node.

use cpr_api::model::*;
use cpr_grid::{Grid, Policy};
use cpr_types::ErrorKind;

use super::support::*;
use super::units::{ada, beat, beats, checkpoint, phases, save, units};

/// A grid of three nodes, which keeps so many copies, on which a job of three independent units runs, each of which
/// fills its node.
async fn running(place: &Place, copies: usize) -> (Grid, [FakeNode; 3], i64) {
    let policy = Policy {
        copies,
        ..Policy::default()
    };
    let grid = place.open_with(policy).await;
    let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
    beat(place, &grid, &mut nodes).await;
    let wanted = JobSpec {
        independent: true,
        slots: Some(2),
        keep: Some(1),
        retries: Some(9),
        ..units(3)
    };
    let id = grid.submit(&ada(), wanted, None).await.unwrap().id;
    beats(place, &grid, &mut nodes, 4).await;
    assert_eq!(phases(&grid, id).await, [UnitPhase::Running; 3]);
    (grid, nodes, id)
}

/// Time passes until the second node is lost; gives the number of its unit.
async fn lose_second(place: &Place, grid: &Grid, nodes: &mut [FakeNode; 3], id: i64) -> usize {
    let unit = nodes[1].running().next().unwrap().unit.unwrap() as usize;
    for _ in 0..4 {
        place.pass(3_000);
        grid.tick().await.unwrap();
        for number in [0, 2] {
            beats(place, grid, &mut nodes[number..=number], 1).await;
        }
    }
    nodes[1].fence(u64::MAX);
    let job = grid.job(&ada(), id).await.unwrap();
    assert_eq!(
        (job.state, job.units[unit].phase),
        (JobState::Running, UnitPhase::Waiting)
    );
    unit
}

async fn beat_others(place: &Place, grid: &Grid, nodes: &mut [FakeNode; 3], number: usize) {
    for _ in 0..number {
        for node in [0, 2] {
            beats(place, grid, &mut nodes[node..=node], 1).await;
        }
    }
}

/// The image of a unit in a checkpoint.
fn image(of: &Checkpoint, unit: usize) -> i64 {
    of.units
        .iter()
        .find(|image| image.unit as usize == unit)
        .unwrap()
        .checkpoint
}

#[test]
fn while_a_unit_waits_the_others_are_saved_and_its_image_before_stands_for_it() {
    with_each_database("a_unit_waits", |place| async move {
        let (grid, mut nodes, id) = running(&place, 1).await;
        let first = save(&place, &grid, &mut nodes, id).await;
        let unit = lose_second(&place, &grid, &mut nodes, id).await;
        assert_eq!(grid.suspend(&ada(), id).await.unwrap_err().kind(), ErrorKind::Busy);
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        beat_others(&place, &grid, &mut nodes, 6).await;
        let second = checkpoint(&grid, asked.id).await;
        assert_eq!(second.state, CheckpointState::Complete, "{second:?}");
        assert_eq!(second.units.len(), 3);
        for other in 0..3 {
            assert_eq!(
                image(&second, other) == image(&first, other),
                other == unit,
                "unit {other}"
            );
        }
        // Only the newest is to be kept, and it has an image of the one before.
        assert_eq!(checkpoint(&grid, first.id).await.state, CheckpointState::Complete);
        let stays = grid.free_checkpoint(&ada(), first.id).await.unwrap_err();
        assert_eq!(stays.kind(), ErrorKind::InUse);
        // One of which nothing is needed but that image goes, and the image stays.
        let lost = image(&first, (unit + 1) % 3);
        nodes
            .iter_mut()
            .for_each(|node| node.images.retain(|image| *image != lost));
        beat_others(&place, &grid, &mut nodes, 2).await;
        assert_eq!(checkpoint(&grid, first.id).await.state, CheckpointState::Lost);
        let stands = checkpoint(&grid, image(&first, unit)).await;
        assert!(stands.state.is_usable(), "{stands:?}");
        // As a whole it goes on with every unit, the one that waited from where it was saved.
        grid.cancel(&ada(), id).await.unwrap();
        beat_others(&place, &grid, &mut nodes, 4).await;
        assert_eq!(state(&grid, id).await, JobState::Cancelled);
        beats(&place, &grid, &mut nodes, 2).await;
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        beats(&place, &grid, &mut nodes, 8).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.state, job.from), (JobState::Running, Some(second.id)));
        for (number, unit) in job.units.iter().enumerate() {
            assert_eq!(unit.from, Some(image(&second, number)));
        }
        // With an image that stands in it the checkpoint is lost.
        let lost = image(&second, unit);
        nodes
            .iter_mut()
            .for_each(|node| node.images.retain(|image| *image != lost));
        beats(&place, &grid, &mut nodes, 2).await;
        assert_eq!(checkpoint(&grid, second.id).await.state, CheckpointState::Lost);
        let third = save(&place, &grid, &mut nodes, id).await;
        assert!((0..3).all(|unit| checkpoint_is_newer(&third, &second, unit)));
    });
}

fn checkpoint_is_newer(one: &Checkpoint, other: &Checkpoint, unit: usize) -> bool {
    image(one, unit) > image(other, unit)
}

#[test]
fn a_unit_that_is_lost_while_all_are_saved_keeps_none_of_the_others_from_it() {
    with_each_database("lost_while_saved", |place| async move {
        let (grid, mut nodes, id) = running(&place, 2).await;
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        beats(&place, &grid, &mut nodes[..1], 2).await;
        let unit = lose_second(&place, &grid, &mut nodes, id).await;
        beat_others(&place, &grid, &mut nodes, 6).await;
        let made = checkpoint(&grid, asked.id).await;
        assert_eq!(made.state, CheckpointState::Complete, "{made:?}");
        assert_eq!(image(&made, unit), 0, "it had never been saved");
        // It is no unit that has finished.
        grid.cancel(&ada(), id).await.unwrap();
        beat_others(&place, &grid, &mut nodes, 4).await;
        beats(&place, &grid, &mut nodes, 2).await;
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        beats(&place, &grid, &mut nodes, 8).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(job.state, JobState::Running);
        for (number, placed) in job.units.iter().enumerate() {
            let from = Some(image(&made, number)).filter(|from| *from != 0);
            assert_eq!((placed.phase, placed.from), (UnitPhase::Running, from));
        }
        // When it runs again while the others are being saved it is not waited for.
        let asked = grid.request_checkpoint(&ada(), id, None).await.unwrap();
        let others = [0, 2].map(|node: usize| nodes[node].running().next().unwrap());
        lose_second(&place, &grid, &mut nodes, id).await;
        beats(&place, &grid, &mut nodes, 8).await;
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!(phases(&grid, id).await, [UnitPhase::Running; 3]);
        assert_eq!(checkpoint(&grid, asked.id).await.state, CheckpointState::Complete);
        for other in others {
            assert_eq!(job.incarnation_of(other.unit.unwrap()), other.number);
        }
    });
}
