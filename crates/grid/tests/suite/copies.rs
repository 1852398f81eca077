//! Copies that users ask for, what becomes of a checkpoint from when it is asked for to when it goes, and what is
//! counted.

use cpr_api::agent::{CheckpointReport, CheckpointResult};
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, Policy};
use cpr_types::ErrorKind;

use super::support::*;

fn to(node: &str, cancel: bool) -> CopyRequest {
    CopyRequest {
        to: node.into(),
        cancel,
    }
}

fn places(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.locations.iter().map(|place| place.node.as_str()).collect()
}

// GFD93-INT-CPRtransfer, GFD93-API-6
#[test]
fn a_copy_that_is_asked_for_is_followed_on_its_way_given_up_or_brought_to_the_end() {
    with_each_database("copies", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let on = JobSpec {
            node: Some("n1".into()),
            ..spec()
        };
        let id = grid.submit(&ada, on, None).await.unwrap().id;
        let [one, two, three] = &mut nodes;
        settle(&place, &grid, &mut [one, two]).await;
        let made = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [one, two]).await;
        let before = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!(
            (before.state, places(&before)),
            (CheckpointState::Complete, vec!["n1", "n2"])
        );
        settle(&place, &grid, &mut [one, two, three]).await;

        // Only its owner may, and it is known what for.
        let operations =
            async |who: &cpr_grid::Caller| grid.usage(who).await.unwrap().pop().map(|usage| usage.operations);
        assert_eq!(operations(&ada).await, Some(2));
        let refused = grid.copy(&eve, made, to("n3", false)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        assert_eq!((operations(&ada).await, operations(&eve).await), (Some(2), None));
        assert_eq!(
            grid.copy(&ada, made, to("n9", false)).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );

        // It is on its way.
        three.stuck_at = Some(3);
        let asked = grid.copy(&ada, made, to("n3", false)).await.unwrap();
        assert_eq!((asked.arriving[0].node.as_str(), asked.arriving[0].bytes), ("n3", 0));
        settle(&place, &grid, &mut [one, two, three]).await;
        let under_way = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!((under_way.arriving[0].bytes, under_way.bytes), (3, 7));
        let listed = grid.checkpoints(&ada, &CheckpointQuery::default()).await.unwrap().items;
        assert_eq!(listed[0].arriving, under_way.arriving);
        assert_eq!((operations(&ada).await, operations(&eve).await), (Some(3), None));
        // It is given up.
        let given_up = grid.copy(&ada, made, to("n3", true)).await.unwrap();
        assert!(given_up.arriving.is_empty());
        settle(&place, &grid, &mut [one, two, three]).await;
        assert!(three.orders.images.is_empty(), "its node is told");
        // Another one comes to its end, and is the user's.
        let moved = async || grid.usage(&ada).await.unwrap()[0].bytes_moved;
        let so_far = moved().await;
        grid.copy(&ada, made, to("n3", false)).await.unwrap();
        three.stuck_at = None;
        settle(&place, &grid, &mut [one, two, three]).await;
        let there = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!((places(&there), there.arriving.len()), (vec!["n1", "n2", "n3"], 0));
        assert_eq!(moved().await, so_far + 7);
        // Where it is already nothing is done, and a lost node gets none.
        let again = grid.copy(&ada, made, to("n3", false)).await.unwrap();
        assert_eq!(again, there);
        place.pass(11_000);
        settle(&place, &grid, &mut [one, two]).await;
        let next = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        let refused = grid.copy(&ada, next, to("n2", false)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Gone, "there is nothing yet");
        let refused = grid.copy(&ada, made, to("n3", false)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
    });
}

// GFD93-AUTH-6
#[test]
fn what_users_have_done_and_what_they_take_is_counted_for_each_of_them() {
    with_each_database("accounts", |place| async move {
        let mut grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let first = grid.submit(&ada, spec(), Some("once")).await.unwrap().id;
        grid.submit(&ada, spec(), Some("once")).await.unwrap();
        let other = grid.submit(&eve, spec(), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        for _ in 0..2 {
            grid.request_checkpoint(&ada, first, None).await.unwrap();
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        grid.suspend(&eve, other).await.unwrap();
        // Nothing of it is lost with the service.
        drop(grid);
        grid = place.open().await;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let usage = |owner: &str, operations, images, bytes_stored, bytes_moved, bytes_held| Usage {
            owner: owner.into(),
            operations,
            images,
            bytes_stored,
            bytes_moved,
            bytes_held,
        };
        // Images are of 7 bytes, and each is copied to the other node.
        let of_ada = usage("ada", 3, 2, 14, 14, 28);
        let of_eve = usage("eve", 2, 1, 7, 7, 14);
        assert_eq!(grid.usage(&ada).await.unwrap(), std::slice::from_ref(&of_ada));
        assert_eq!(grid.usage(&eve).await.unwrap(), std::slice::from_ref(&of_eve));
        assert_eq!(grid.usage(&admin()).await.unwrap(), [of_ada, of_eve.clone()]);
        // What is freed is not held any more, and was stored all the same.
        grid.cancel(&ada, first).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        place.pass(8 * 24 * 3600 * 1000);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(
            grid.usage(&admin()).await.unwrap(),
            [usage("ada", 4, 2, 14, 14, 0), of_eve]
        );
    });
}

// GFD93-SM-3, GFD93-WF-2.2, GCA-CTS-11, GFD93-GLO-3
#[test]
fn what_a_checkpoint_is_good_for_is_on_record_from_when_it_is_asked_for_to_when_it_goes() {
    with_each_database("roles", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let wanted = JobSpec {
            keep: Some(1),
            node: Some("n1".into()),
            ..spec()
        };
        let id = grid.submit(&ada, wanted, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        two.stuck_at = Some(0);
        let usable = async || {
            let query = CheckpointQuery {
                state: Some("stored,complete".into()),
                ..CheckpointQuery::default()
            };
            let found = grid.checkpoints(&ada, &query).await.unwrap().items;
            found.iter().map(|checkpoint| checkpoint.id).collect::<Vec<_>>()
        };
        let now = async |id: i64| grid.checkpoint(&ada, id).await.unwrap();
        let first = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        for _ in 0..5 {
            grid.tick().await.unwrap();
        }
        assert_eq!(now(first).await.state, CheckpointState::Pending);
        assert!(usable().await.is_empty(), "nothing is on disk so far");
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(now(first).await.state, CheckpointState::Stored, "on one node");
        assert_eq!(usable().await, [first]);
        two.stuck_at = None;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(now(first).await.state, CheckpointState::Complete);
        // One that fails takes nobody's place.
        let failed = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        grid.tick().await.unwrap();
        one.results.push(CheckpointReport {
            id: failed,
            result: CheckpointResult::Failed {
                message: "disk full".into(),
            },
        });
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(now(failed).await.state, CheckpointState::Failed);
        assert_eq!(
            (now(first).await.state, usable().await),
            (CheckpointState::Complete, vec![first])
        );
        // The third one is of a job that has gone on from the first, and supersedes it.
        one.crash();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(grid.job(&ada, id).await.unwrap().from, Some(first));
        place.pass(50);
        let third = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let third = now(third).await;
        assert_eq!(third.state, CheckpointState::Complete);
        // Where it is from, the how-manieth it is, whose, and after what.
        assert_eq!((third.job, third.node.as_str(), third.incarnation), (id, "n1", 2));
        assert_eq!((third.generation, third.engine.as_str()), (3, "native"));
        assert_eq!((third.owner.name.as_str(), third.owner.uid), ("ada", 1000));
        assert_eq!(third.parent, Some(first));
        assert!(third.created_ms <= third.stored_ms.unwrap() && third.created_ms > now(first).await.created_ms);
        let names = [third.id, first, failed];
        assert!(names.iter().collect::<std::collections::BTreeSet<_>>().len() == 3);
        // The job runs from the first: it stays until another one is complete after a start from the third.
        one.crash();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let fourth = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let superseded = now(first).await;
        assert_eq!(superseded.state, CheckpointState::Freed);
        assert!(superseded.reason.unwrap().contains("newer"));
        assert_eq!(now(fourth).await.parent, Some(third.id));
    });
}

// XGCP-FILE-4
#[test]
fn what_a_job_is_moved_with_is_nothing_of_its_users_quota() {
    with_each_database("quota of a move", |place| async move {
        let policy = Policy {
            quota: Some(14),
            ..Policy::default()
        };
        let grid = place.open_with(policy).await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let keep = JobSpec {
            keep: Some(5),
            ..spec()
        };
        let id = grid.submit(&ada, keep, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let mut made = Vec::new();
        for _ in 0..2 {
            made.push(grid.request_checkpoint(&ada, id, None).await.unwrap().id);
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        let states = async || {
            let mut states = Vec::new();
            for id in &made {
                states.push(grid.checkpoint(&ada, *id).await.unwrap().state);
            }
            states
        };
        assert_eq!(states().await, [CheckpointState::Complete; 2], "the quota is full");
        let before = grid.job(&ada, id).await.unwrap().node;
        grid.migrate(&ada, id, MigrateRequest::default()).await.unwrap();
        for _ in 0..3 {
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        let moved = grid.job(&ada, id).await.unwrap();
        assert_eq!((moved.state, moved.incarnation), (JobState::Running, 2));
        assert_ne!(moved.node, None);
        assert!(
            grid.checkpoint(&ada, moved.from.unwrap()).await.unwrap().stop,
            "{before:?}"
        );
        assert_eq!(
            states().await,
            [CheckpointState::Complete; 2],
            "nothing had to go for it"
        );
        // The next one has to find room, as any.
        grid.request_checkpoint(&ada, id, None).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(states().await[0], CheckpointState::Freed);
    });
}

// XGCP-FILE-5
#[test]
fn each_user_has_as_many_checkpoints_as_they_want_and_as_they_are_granted() {
    with_each_database("own quotas", |place| async move {
        // Images are of 7 bytes.
        let policy = Policy {
            quota: Some(7),
            quotas: [("ada".to_string(), 14), ("eve".to_string(), 28)].into(),
            ..Policy::default()
        };
        let grid = place.open_with(policy).await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let people = [(user("ada", 1000), 2), (user("eve", 1001), 5), (user("bob", 1002), 5)];
        let mut ids = Vec::new();
        for (who, keep) in &people {
            let keep = JobSpec {
                keep: Some(*keep),
                ..spec()
            };
            ids.push(grid.submit(who, keep, None).await.unwrap().id);
        }
        let mut most = [0; 3];
        for _ in 0..7 {
            for ((who, _), id) in people.iter().zip(&ids) {
                settle(&place, &grid, &mut [&mut one, &mut two]).await;
                grid.request_checkpoint(who, *id, None).await.unwrap();
            }
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
            for (number, (who, _)) in people.iter().enumerate() {
                let query = CheckpointQuery {
                    state: Some("complete".into()),
                    ..CheckpointQuery::default()
                };
                let held = grid.checkpoints(who, &query).await.unwrap().items.len();
                most[number] = held.max(most[number]);
            }
        }
        assert_eq!(most, [2, 4, 1], "as many as wanted, as granted, and as anybody is");
    });
}

// GFD93-WF-5.3
#[test]
fn records_of_what_is_gone_go_when_the_job_has_finished_and_what_they_came_to_stays() {
    with_each_database("old records", |place| async move {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let policy = Policy {
            records_ms: Some(2 * DAY_MS as i64),
            ..Policy::default()
        };
        let grid = place.open_with(policy).await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let done = grid.submit(&ada, spec(), None).await.unwrap().id;
        let goes_on = grid.submit(&ada, spec(), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        for id in [done, done, done, goes_on, goes_on, goes_on] {
            grid.request_checkpoint(&ada, id, None).await.unwrap();
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        for (incarnation, phase) in one.jobs.iter_mut().chain(&mut two.jobs) {
            if incarnation.job == done {
                *phase = cpr_api::agent::Phase::Exited { code: 0, signal: None };
            }
        }
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(state(&grid, done).await, JobState::Finished);
        let records = async |id: i64| {
            let query = CheckpointQuery {
                job: Some(id),
                ..CheckpointQuery::default()
            };
            grid.checkpoints(&ada, &query).await.unwrap().items.len()
        };
        let usage = grid.usage(&ada).await.unwrap();
        assert_eq!(usage[0].images, 6);
        place.pass(DAY_MS);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!((records(done).await, records(goes_on).await), (3, 3));
        place.pass(2 * DAY_MS);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!((records(done).await, records(goes_on).await), (0, 3));
        // The job itself, what has happened to it, and what it had made.
        assert_eq!(grid.job(&ada, done).await.unwrap().exit_code, Some(0));
        assert_eq!(grid.usage(&ada).await.unwrap(), usage);
        let query = cpr_grid::EventQuery {
            job: Some(done),
            kind: Some("checkpoint.complete".into()),
            ..Default::default()
        };
        assert_eq!(grid.events(&ada, &query).await.unwrap().items.len(), 3);
    });
}
