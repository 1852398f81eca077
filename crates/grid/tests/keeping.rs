//! Checkpoints in the service: where their copies are, how long they are kept, when they are made, and what is done
//! when they cannot be had. Once with SQLite and once with PostgreSQL.

#![allow(clippy::unwrap_used)]

#[path = "suite/copies.rs"]
mod copies;
#[path = "suite/policy.rs"]
mod policy;
mod support;

use cpr_api::agent::{CheckpointReport, CheckpointResult, Phase};
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, EventQuery, Grid, Policy};
use cpr_types::ErrorKind;
use support::*;

#[test]
fn a_copy_that_was_looked_at_has_the_time_of_it_on_record() {
    with_each_database("verified copies", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let job = grid.submit(&ada, spec(), None).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let made = grid.request_checkpoint(&ada, job.id, None).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let before = grid.checkpoint(&ada, made.id).await.unwrap();
        place.pass(1000);
        one.verified = vec![made.id, 4711];
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let after = grid.checkpoint(&ada, made.id).await.unwrap();
        let at = |checkpoint: &Checkpoint, node: &str| {
            let found = checkpoint.locations.iter().find(|place| place.node == node);
            found.unwrap().verified_ms
        };
        assert_eq!(at(&after, "n1"), at(&before, "n1") + 1000);
        assert_eq!(at(&after, "n2"), at(&before, "n2"));
        let own = one.orders.images.iter().find(|image| image.id == made.id).unwrap();
        assert_eq!(own.verified_ms, at(&after, "n1"), "its node is told");
    });
}

// GFD93-WF-4.6, GFD93-SM-9
#[test]
fn a_bad_checkpoint_is_given_up_for_the_one_before_until_none_is_left() {
    with_each_database("a_bad_checkpoint", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let ada = user("ada", 1000);
        let id = grid
            .submit(
                &ada,
                JobSpec {
                    retries: Some(10),
                    ..spec()
                },
                None,
            )
            .await
            .unwrap()
            .id;
        let mut made = Vec::new();
        settle(&place, &grid, &mut [&mut one]).await;
        for _ in 0..2 {
            made.push(grid.request_checkpoint(&ada, id, None).await.unwrap().id);
            settle(&place, &grid, &mut [&mut one]).await;
        }
        one.crash();
        settle(&place, &grid, &mut [&mut one]).await;
        for expected in made.into_iter().rev() {
            let job = grid.job(&ada, id).await.unwrap();
            assert_eq!(job.from, Some(expected));
            let failed = Phase::Failed {
                kind: ErrorKind::Damaged,
                message: "bad hash".into(),
            };
            *one.jobs.values_mut().next().unwrap() = failed;
            one.beat(&grid, 0).await.unwrap();
            place.pass(1_000_000);
            // Its lease lapsed meanwhile; it has nothing.
            one.jobs.clear();
            settle(&place, &grid, &mut [&mut one]).await;
            assert_eq!(
                grid.checkpoint(&ada, expected).await.unwrap().state,
                CheckpointState::Lost
            );
        }
        let job = grid.job(&ada, id).await.unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert!(job.reason.unwrap().contains("every checkpoint"));
    });
}

// XGCP-FILE-6, GFD93-SM-16
#[test]
fn checkpoints_go_when_they_take_too_much_or_are_too_old_and_the_newest_stays() {
    with_each_database("quota and ttl", |place| async move {
        let mut grid = place
            .open_with(Policy {
                quota: Some(20),
                ..Policy::default()
            })
            .await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let keep = |ttl_s| JobSpec {
            keep: Some(5),
            ttl_s,
            ..spec()
        };
        let mut jobs = Vec::new();
        for (who, ttl) in [(&ada, None), (&ada, None), (&ada, Some(60)), (&eve, None)] {
            jobs.push(grid.submit(who, keep(ttl), None).await.unwrap().id);
        }
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        // Images are of 7 bytes each: two are within the quota, and three are not.
        let mut made = Vec::new();
        for job in [jobs[0], jobs[0], jobs[3], jobs[3], jobs[1], jobs[1]] {
            let who = if job == jobs[3] { &eve } else { &ada };
            made.push(grid.request_checkpoint(who, job, None).await.unwrap().id);
            place.pass(100);
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        let mut states = Vec::new();
        for id in &made {
            states.push(grid.checkpoint(&admin(), *id).await.unwrap().state);
        }
        use CheckpointState::{Complete, Freed};
        assert_eq!(
            states,
            [Freed, Complete, Complete, Complete, Freed, Complete],
            "the oldest of those that are not the newest of their jobs, and nobody else's"
        );
        grid.request_checkpoint(&ada, jobs[2], None).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let query = EventQuery {
            kind: Some("checkpoint.over-quota".into()),
            ..EventQuery::default()
        };
        let told = grid.events(&ada, &query).await.unwrap().items;
        assert_eq!(told.len(), 1);
        assert!(told[0].text.contains("1 bytes more"), "{}", told[0].text);

        grid = place.open().await;
        let second = grid.request_checkpoint(&ada, jobs[2], None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let left = async |grid: &Grid| -> Vec<i64> {
            let query = CheckpointQuery {
                job: Some(jobs[2]),
                state: Some("complete".into()),
                ..CheckpointQuery::default()
            };
            let page = grid.checkpoints(&ada, &query).await.unwrap();
            page.items.into_iter().map(|c| c.id).collect()
        };
        assert_eq!(left(&grid).await.len(), 2);
        for _ in 0..10 {
            place.pass(7_000);
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        let third = grid.request_checkpoint(&ada, jobs[2], None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(left(&grid).await, [third], "{second} is too old");
        grid.cancel(&ada, jobs[2]).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(left(&grid).await, [third], "it may be recovered");
        place.pass(700_000);
        grid.tick().await.unwrap();
        assert!(left(&grid).await.is_empty(), "not for ever");
        assert_eq!(
            grid.checkpoint(&ada, made[5]).await.unwrap().state,
            Complete,
            "the newest of a job that may go on"
        );
    });
}

// XGCP-ADAPT-3, XGCP-ADAPT-5
#[test]
fn the_time_between_checkpoints_follows_their_cost_and_the_failures() {
    with_each_database("adaptive", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let ada = user("ada", 1000);
        let adapt = JobSpec {
            adapt: true,
            retries: Some(100),
            ..spec()
        };
        let id = grid.submit(&ada, adapt, None).await.unwrap().id;
        let other = grid.submit(&ada, spec(), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(
            grid.job(&ada, id).await.unwrap().every_ms(),
            Some(600_000),
            "to begin with"
        );
        let mut intervals = Vec::new();
        for (cost_ms, failures) in [(10, 0), (1000, 0), (1000, 9)] {
            one.cost_ms = cost_ms;
            for _ in 0..failures {
                one.crash();
                settle(&place, &grid, &mut [&mut one]).await;
                // Pauses between attempts.
                for _ in 0..50 {
                    place.pass(7_000);
                    settle(&place, &grid, &mut [&mut one]).await;
                    if state(&grid, id).await == JobState::Running {
                        break;
                    }
                }
            }
            grid.request_checkpoint(&ada, id, None).await.unwrap();
            settle(&place, &grid, &mut [&mut one]).await;
            intervals.push(grid.job(&ada, id).await.unwrap().every_ms().unwrap());
        }
        // Young: the root of twice the cost and the mean time between failures, which is a day at first.
        assert!((40_000..46_000).contains(&intervals[0]), "{intervals:?}");
        assert!((410_000..420_000).contains(&intervals[1]), "{intervals:?}");
        assert!(
            intervals[2] < intervals[1] / 2,
            "failures make it shorter: {intervals:?}"
        );
        assert_eq!(grid.job(&ada, other).await.unwrap().every_ms(), None);
        // It is said what it was decided by.
        let query = EventQuery {
            job: Some(id),
            kind: Some("job.adapted".into()),
            ..EventQuery::default()
        };
        let told = grid.events(&ada, &query).await.unwrap().items;
        assert_eq!(told.len(), 3);
        for (event, (every, cost)) in told.iter().zip(intervals.iter().zip([10, 1000, 1000])) {
            let text = &event.text;
            assert!(
                text.contains(&format!("every {} s: checkpoint", every / 1000)),
                "{text}"
            );
            assert!(
                text.contains(&format!("of 7 bytes cost {cost} ms and took {cost} ms")),
                "{text}"
            );
        }
        // And it is kept to.
        let before = grid
            .checkpoints(&ada, &CheckpointQuery::default())
            .await
            .unwrap()
            .items
            .len();
        let mut passed = 0;
        while passed < intervals[2] + 7_000 {
            place.pass(7_000);
            passed += 7_000;
            settle(&place, &grid, &mut [&mut one]).await;
        }
        let after = grid
            .checkpoints(&ada, &CheckpointQuery::default())
            .await
            .unwrap()
            .items
            .len();
        assert_eq!(after, before + 1);
    });
}

// GFD93-WF-4.6
#[test]
fn every_checkpoint_is_tried_before_a_job_is_given_up_for_those_that_cannot_be_had() {
    with_each_database("exhaustion", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let ada = user("ada", 1000);
        let keep = JobSpec {
            keep: Some(3),
            retries: Some(6),
            ..spec()
        };
        let id = grid.submit(&ada, keep, None).await.unwrap().id;
        let mut made = Vec::new();
        settle(&place, &grid, &mut [&mut one]).await;
        for _ in 0..3 {
            made.push(grid.request_checkpoint(&ada, id, None).await.unwrap().id);
            settle(&place, &grid, &mut [&mut one]).await;
        }
        one.crash();
        settle(&place, &grid, &mut [&mut one]).await;
        let mut tried = Vec::new();
        loop {
            let job = grid.job(&ada, id).await.unwrap();
            if job.state == JobState::Failed {
                assert!(job.reason.unwrap().contains("nowhere"));
                break;
            }
            tried.push(job.from.unwrap());
            let failed = Phase::Failed {
                kind: ErrorKind::Io,
                message: "it could be had from nowhere".into(),
            };
            *one.jobs.values_mut().next().unwrap() = failed;
            let report = one.report();
            grid.report(&admin(), &report).await.unwrap();
            // The pause between attempts; a node that is silent for so long has nothing afterwards.
            place.pass(1_000_000);
            one.jobs.clear();
            grid.tick().await.unwrap();
            one.beat(&grid, 0).await.unwrap();
            grid.tick().await.unwrap();
            one.beat(&grid, 0).await.unwrap();
        }
        let (oldest, middle, newest) = (made[0], made[1], made[2]);
        assert_eq!(tried, [newest, newest, middle, middle, oldest, oldest]);
    });
}

// GFD93-WF-2.6
#[test]
fn images_go_to_the_store_and_to_other_nodes_where_that_takes_too_long() {
    with_each_database("to the store", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        one.has_store = true;
        one.store_works = false;
        let ada = user("ada", 1000);
        let only_one = JobSpec {
            node: Some("n1".into()),
            ..spec()
        };
        let id = grid.submit(&ada, only_one, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let made = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let at = |checkpoint: &Checkpoint| -> Vec<String> {
            checkpoint.locations.iter().map(|place| place.node.clone()).collect()
        };
        let now = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!((now.state, at(&now)), (CheckpointState::Stored, vec!["n1".to_string()]));
        assert!(one.orders.images.iter().all(|image| image.to_store));
        assert!(two.orders.images.is_empty(), "it is not copied while it is on its way");
        assert_eq!(state(&grid, id).await, JobState::Running, "the job does not wait");
        for _ in 0..5 {
            place.pass(7_000);
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        let now = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!(now.state, CheckpointState::Complete);
        assert_eq!(at(&now), ["n1", "n2"], "nodes have to do");
        one.store_works = true;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let now = grid.checkpoint(&ada, made).await.unwrap();
        assert_eq!(at(&now), ["n1", "n2", ""], "and it gets there in the end");
        assert!(!one.orders.images.iter().any(|image| image.to_store));
        // What comes next needs no copies on nodes.
        let next = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let next = grid.checkpoint(&ada, next).await.unwrap();
        assert_eq!(next.state, CheckpointState::Complete);
        assert_eq!(at(&next), ["n1", ""]);
    });
}

// GFD93-SM-7, GFD93-SM-15, XGCP-FILE-2
#[test]
fn only_the_newest_complete_checkpoints_stay() {
    with_each_database("only_the_newest", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let id = grid
            .submit(
                &ada,
                JobSpec {
                    keep: Some(2),
                    node: Some("n1".into()),
                    ..spec()
                },
                None,
            )
            .await
            .unwrap()
            .id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let mut complete = Vec::new();
        for round in 0..10 {
            let asked = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
            if round % 2 == 1 {
                grid.tick().await.unwrap();
                let result = CheckpointResult::Failed {
                    message: "disk full".into(),
                };
                one.results.push(CheckpointReport { id: asked, result });
            } else {
                complete.push(asked);
            }
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
            let usable = CheckpointQuery {
                state: Some("stored,complete".into()),
                ..Default::default()
            };
            let left: Vec<i64> = grid
                .checkpoints(&ada, &usable)
                .await
                .unwrap()
                .items
                .iter()
                .map(|c| c.id)
                .collect();
            assert_eq!(left, complete[complete.len().saturating_sub(2)..]);
            assert!(one.images.len() <= 3 && two.images.len() <= 3);
        }
    });
}

/// The node has stopped the job and is still hashing the image: what the image holds must not be given up.
#[test]
fn a_job_that_its_last_checkpoint_has_stopped_waits_for_the_result() {
    with_each_database("waits_for_the_result", |place| async move {
        let grid = place.open().await;
        let mut node = FakeNode::new("n1");
        let ada = user("ada", 1000);
        let job = grid.submit(&ada, spec(), None).await.unwrap();
        settle(&place, &grid, &mut [&mut node]).await;
        grid.suspend(&ada, job.id).await.unwrap();
        let now = place.now.load(std::sync::atomic::Ordering::SeqCst);
        node.beat(&grid, now).await.unwrap();
        assert!(node.jobs.values().any(|phase| *phase == Phase::Stopped));
        let results = std::mem::take(&mut node.results);
        let report = node.report();
        grid.report(&admin(), &report).await.unwrap();
        grid.tick().await.unwrap();
        assert_eq!(state(&grid, job.id).await, JobState::Running);
        let orders = grid.orders(&report).await.unwrap();
        assert_eq!(orders.jobs[0].checkpoints.len(), 1, "it is asked for still");
        node.results = results;
        settle(&place, &grid, &mut [&mut node]).await;
        assert_eq!(state(&grid, job.id).await, JobState::Suspended);

        // Where it could not be made, though the job has ended, the job goes on from what there is.
        grid.recover(&ada, job.id, RecoverRequest::default()).await.unwrap();
        settle(&place, &grid, &mut [&mut node]).await;
        assert_eq!(state(&grid, job.id).await, JobState::Running);
        grid.suspend(&ada, job.id).await.unwrap();
        node.beat(&grid, now).await.unwrap();
        for told in &mut node.results {
            node.images.retain(|id| *id != told.id);
            let message = "its job has ended".to_string();
            told.result = CheckpointResult::Failed { message };
        }
        settle(&place, &grid, &mut [&mut node]).await;
        let job = grid.job(&ada, job.id).await.unwrap();
        assert_eq!((job.state, job.incarnation), (JobState::Running, 3));
        assert!(job.from.is_some());
    });
}
