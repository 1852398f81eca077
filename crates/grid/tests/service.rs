//! The service with its database, once with SQLite and once with PostgreSQL.

#![allow(clippy::unwrap_used)]

#[path = "suite/apart.rs"]
mod apart;
#[path = "suite/engines.rs"]
mod engines;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/names.rs"]
mod names;
#[path = "suite/signals.rs"]
mod signals;
mod support;
#[path = "suite/turns.rs"]
mod turns;
#[path = "suite/units.rs"]
mod units;

use cpr_api::agent::Phase;
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, EventQuery, JobQuery, Policy, QueueQuery};
use cpr_types::ErrorKind;
use support::*;

// GFD93-SM-1, GFD93-SM-4, GFD93-WF-5.1, GFD93-WF-5.2, GCA-GCS-10
#[test]
fn a_job_runs_is_checkpointed_and_ends_and_all_of_it_survives_the_service() {
    with_each_database("a_job_runs", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let job = grid.submit(&ada, spec(), None).await.unwrap();
        assert_eq!(job.state, JobState::Queued);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(state(&grid, job.id).await, JobState::Running);
        let asked = grid.request_checkpoint(&ada, job.id, None).await.unwrap();
        assert_eq!(asked.state, CheckpointState::Pending);

        // The service is killed and started again; nothing is forgotten.
        drop(grid);
        let grid = place.open().await;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let made = grid.checkpoint(&ada, asked.id).await.unwrap();
        assert_eq!(made.state, CheckpointState::Complete);
        assert_eq!(made.locations.len(), 2, "a copy on another node");
        assert_eq!((made.generation, made.incarnation), (1, 1));

        let runner = if one.jobs.is_empty() { &mut two } else { &mut one };
        *runner.jobs.values_mut().next().unwrap() = Phase::Exited { code: 0, signal: None };
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let job = grid.job(&ada, job.id).await.unwrap();
        assert_eq!((job.state, job.exit_code), (JobState::Finished, Some(0)));
        assert_eq!(
            grid.checkpoint(&ada, asked.id).await.unwrap().state,
            CheckpointState::Freed
        );
        assert!(
            one.images.is_empty() && two.images.is_empty(),
            "its images are gone from the nodes"
        );
        let kinds: Vec<String> = grid
            .events(
                &ada,
                &EventQuery {
                    job: Some(job.id),
                    kind: Some("job".into()),
                    ..Default::default()
                },
            )
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|event| event.kind)
            .collect();
        assert_eq!(kinds, ["job.queued", "job.starting", "job.running", "job.finished"]);
    });
}

#[test]
fn jobs_of_lower_priority_make_room_and_go_on_later_and_no_more_of_them_than_needed() {
    with_each_database("preemption", |place| async move {
        let mut grid = place
            .open_with(Policy {
                preempt: true,
                ..Policy::default()
            })
            .await;
        // Nodes of two slots each.
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let with = |priority, slots| JobSpec {
            priority,
            slots: Some(slots),
            ..spec()
        };
        let mut low = Vec::new();
        for priority in [1, 2, 1, 3] {
            low.push(grid.submit(&ada, with(priority, 1), None).await.unwrap().id);
        }
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let high = grid.submit(&ada, with(5, 1), None).await.unwrap().id;
        let same = grid.submit(&ada, with(1, 1), None).await.unwrap().id;
        grid.tick().await.unwrap();
        let mut changes = grid.changes();
        changes.borrow_and_update();
        grid.tick().await.unwrap();
        assert!(
            !changes.has_changed().unwrap(),
            "nothing is written while they are saved"
        );
        // The service is started again in the middle of it.
        drop(grid);
        grid = place
            .open_with(Policy {
                preempt: true,
                ..Policy::default()
            })
            .await;
        for _ in 0..4 {
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        assert_eq!(state(&grid, high).await, JobState::Running);
        assert_eq!(state(&grid, same).await, JobState::Queued, "an equal makes no room");
        let mut queued = Vec::new();
        for id in &low {
            if state(&grid, *id).await == JobState::Queued {
                queued.push(*id);
            }
        }
        assert_eq!(queued.len(), 1, "one had to go: {queued:?}");
        let gone = grid.job(&ada, queued[0]).await.unwrap();
        assert_eq!(
            (gone.spec.priority, gone.failures),
            (1, 0),
            "of the lowest, and it is no failure"
        );
        // It goes on from the checkpoint that was made for it, before the one that came later.
        for node in [&mut one, &mut two] {
            for (incarnation, phase) in &mut node.jobs {
                if incarnation.job == high {
                    *phase = Phase::Exited { code: 0, signal: None };
                }
            }
        }
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let back = grid.job(&ada, gone.id).await.unwrap();
        assert_eq!((back.state, back.incarnation), (JobState::Running, 2));
        let from = grid.checkpoint(&ada, back.from.unwrap()).await.unwrap();
        assert!(from.stop);
        // Without it, everybody waits.
        drop(grid);
        let grid = place.open().await;
        let high = grid.submit(&ada, with(9, 1), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(state(&grid, high).await, JobState::Queued);
    });
}

// GFD93-EH-2, GFD93-EH-3, GFD93-EH-7, GFD93-JM-4, GFD93-WF-3.2, GFD93-WF-3.4, GFD93-INT-EHupdate
#[test]
fn jobs_of_a_lost_node_go_on_elsewhere_from_their_newest_good_checkpoint() {
    with_each_database("jobs_of_a_lost_node", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let on = |node: &str| JobSpec {
            node: None,
            name: Some(node.into()),
            ..spec()
        };
        settle(&place, &grid, &mut [&mut one]).await;
        let victim = grid.submit(&ada, on("n1"), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one]).await;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let other = grid
            .submit(
                &ada,
                JobSpec {
                    node: Some("n2".into()),
                    ..spec()
                },
                None,
            )
            .await
            .unwrap()
            .id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let first = grid.request_checkpoint(&ada, victim, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let second = grid.request_checkpoint(&ada, victim, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert!(first < second);

        // A node that is late by less than its lease is not lost.
        place.pass(9_000);
        two.beat(&grid, 0).await.unwrap();
        grid.tick().await.unwrap();
        assert_eq!(state(&grid, victim).await, JobState::Running);
        place.pass(1_001);
        settle(&place, &grid, &mut [&mut two]).await;
        let job = grid.job(&ada, victim).await.unwrap();
        assert_eq!(
            (job.node.as_deref(), job.state, job.from),
            (Some("n2"), JobState::Running, Some(second))
        );
        assert_eq!(job.incarnation, 2);
        let untouched = grid.job(&ada, other).await.unwrap();
        assert_eq!((untouched.state, untouched.incarnation), (JobState::Running, 1));
        let nodes = grid.nodes().await.unwrap();
        assert_eq!(nodes[0].state, NodeState::Lost);
        let query = EventQuery {
            job: Some(victim),
            kind: Some("job.queued".into()),
            ..Default::default()
        };
        let events = grid.events(&ada, &query).await.unwrap().items;
        assert!(
            events.last().unwrap().text.contains("node n1 was not heard of"),
            "{events:?}"
        );
        // What was known of it at each time.
        let query = EventQuery {
            job: Some(victim),
            kind: Some("job".into()),
            ..Default::default()
        };
        let events = grid.events(&ada, &query).await.unwrap().items;
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        let life = ["job.queued", "job.starting", "job.running"];
        assert_eq!(kinds, [life, life].concat());

        // The node comes back, and is told to have nothing.
        assert!(one.running().count() == 1);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(one.running().count(), 0);
        assert_eq!(grid.nodes().await.unwrap()[0].state, NodeState::Ready);
    });
}

#[test]
fn an_array_is_submitted_as_a_whole_and_ended_as_a_whole_by_its_owner() {
    with_each_database("array", |place| async move {
        let grid = place.open().await;
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let wanted = ArrayRequest {
            spec: JobSpec {
                output: Some("out-%a.txt".into()),
                ..spec()
            },
            first: 2,
            last: 9,
            step: 3,
        };
        let array = grid.submit_array(&ada, wanted.clone(), Some("once")).await.unwrap();
        assert_eq!(array.jobs.len(), 3);
        assert_eq!(
            grid.submit_array(&ada, wanted.clone(), Some("once")).await.unwrap(),
            array
        );
        let query = JobQuery {
            array: Some(array.id),
            ..JobQuery::default()
        };
        let jobs = grid.jobs(&ada, &query).await.unwrap().items;
        let seen: Vec<(i64, String, String)> = jobs
            .iter()
            .map(|job| {
                let index = job.spec.environment["GRIDCPR_ARRAY_INDEX"].clone();
                (job.array.unwrap().index, index, job.spec.output.clone().unwrap())
            })
            .collect();
        let expected = [2, 5, 8].map(|index: i64| (index, index.to_string(), format!("out-{index}.txt")));
        assert_eq!(seen, expected);
        assert!(grid.jobs(&eve, &query).await.unwrap().items.is_empty());
        let refused = grid.cancel_array(&eve, array.id).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        for (first, last, step) in [(1, 0, 1), (0, 9, 0), (0, 5000, 1), (i64::MIN, i64::MAX, 1)] {
            let bad = ArrayRequest {
                first,
                last,
                step,
                ..wanted.clone()
            };
            assert_eq!(
                grid.submit_array(&ada, bad, None).await.unwrap_err().kind(),
                ErrorKind::Usage
            );
        }
        let bad = ArrayRequest {
            spec: JobSpec {
                after: vec![4711],
                ..spec()
            },
            ..wanted
        };
        assert!(grid.submit_array(&ada, bad, None).await.is_err());
        assert_eq!(
            grid.jobs(&admin(), &JobQuery::default()).await.unwrap().items.len(),
            3,
            "all or none"
        );
        grid.cancel(&ada, array.jobs[0]).await.unwrap();
        let ended = grid.cancel_array(&ada, array.id).await.unwrap();
        assert_eq!(ended.jobs, array.jobs[1..]);
        for id in array.jobs {
            assert_eq!(state(&grid, id).await, JobState::Cancelled);
        }
    });
}

// GFD93-JM-1
#[test]
fn the_queue_says_who_is_next_and_why_everybody_waits() {
    with_each_database("queue", |place| async move {
        let grid = place.open().await;
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let with = |priority, after| JobSpec {
            priority,
            after,
            ..spec()
        };
        let first = grid.submit(&ada, with(0, vec![]), None).await.unwrap().id;
        let high = grid.submit(&eve, with(3, vec![]), None).await.unwrap().id;
        let after = grid.submit(&ada, with(0, vec![first]), None).await.unwrap().id;
        grid.tick().await.unwrap();
        let query = QueueQuery::default();
        let all = grid.queue(&admin(), &query).await.unwrap().items;
        let places: Vec<(i64, i64)> = all.iter().map(|waiting| (waiting.place, waiting.job.id)).collect();
        assert_eq!(places, [(1, high), (2, first), (3, after)]);
        assert!(all[0].why.contains("waits for a node"), "{}", all[0].why);
        assert_eq!(all[2].needs, [first]);
        assert!(
            all[2].why.contains(&format!("have finished: {first}")),
            "{}",
            all[2].why
        );
        let own = grid.queue(&ada, &query).await.unwrap().items;
        let own: Vec<(i64, i64)> = own.iter().map(|waiting| (waiting.place, waiting.job.id)).collect();
        assert_eq!(own, [(2, first), (3, after)], "others are counted and not shown");
        let page = |after: &str| QueueQuery {
            after: Some(after.into()),
            limit: Some(1),
            ..QueueQuery::default()
        };
        let one = grid.queue(&admin(), &page("1")).await.unwrap();
        assert_eq!((one.items[0].job.id, one.next.as_deref()), (first, Some("2")));
        let last = grid.queue(&admin(), &page("2")).await.unwrap();
        assert_eq!((last.items[0].job.id, last.next), (after, None));
        // After failures it says when it is tried again.
        let mut node = FakeNode::new("n1");
        settle(&place, &grid, &mut [&mut node]).await;
        for _ in 0..2 {
            node.crash();
            node.beat(&grid, 0).await.unwrap();
            grid.tick().await.unwrap();
            node.beat(&grid, 0).await.unwrap();
        }
        let waits = grid.queue(&admin(), &query).await.unwrap().items;
        assert!(
            waits.iter().any(|waiting| waiting.why.contains("tried again in 2 s")),
            "{waits:?}"
        );
    });
}

// GFD93-AUTH-2, GFD93-AUTH-3
#[test]
fn nobody_reaches_anothers_job() {
    with_each_database("nobody_reaches", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let id = grid.submit(&ada, spec(), None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one]).await;
        let checkpoint = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        let gone = |result: cpr_types::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
        gone(grid.job(&eve, id).await.map(drop));
        gone(grid.cancel(&eve, id).await.map(drop));
        gone(grid.suspend(&eve, id).await.map(drop));
        gone(grid.recover(&eve, id, RecoverRequest::default()).await.map(drop));
        gone(grid.migrate(&eve, id, MigrateRequest::default()).await.map(drop));
        gone(grid.request_checkpoint(&eve, id, None).await.map(drop));
        gone(grid.checkpoint(&eve, checkpoint).await.map(drop));
        gone(
            grid.submit(
                &eve,
                JobSpec {
                    after: vec![id],
                    ..spec()
                },
                None,
            )
            .await
            .map(drop),
        );
        assert!(grid.jobs(&eve, &JobQuery::default()).await.unwrap().items.is_empty());
        let asked = JobQuery {
            owner: Some("ada".into()),
            ..Default::default()
        };
        assert!(grid.jobs(&eve, &asked).await.unwrap().items.is_empty());
        assert!(
            grid.checkpoints(&eve, &CheckpointQuery::default())
                .await
                .unwrap()
                .items
                .is_empty()
        );
        let events = grid.events(&eve, &EventQuery::default()).await.unwrap().items;
        assert!(events.iter().all(|event| event.job.is_none()), "{events:?}");
        assert_eq!(
            grid.drain(&eve, "n1", false).await.unwrap_err().kind(),
            ErrorKind::Denied
        );
        assert_eq!(
            grid.report(&eve, &one.report()).await.unwrap_err().kind(),
            ErrorKind::Denied
        );
        let mut stranger = eve.clone();
        stranger.user = None;
        assert_eq!(
            grid.submit(&stranger, spec(), None).await.unwrap_err().kind(),
            ErrorKind::Denied
        );
    });
}

#[test]
fn a_repeated_request_is_done_once() {
    with_each_database("a_repeated_request", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let first = grid.submit(&ada, spec(), Some("k1")).await.unwrap().id;
        assert_eq!(grid.submit(&ada, spec(), Some("k1")).await.unwrap().id, first);
        assert_ne!(grid.submit(&ada, spec(), Some("k2")).await.unwrap().id, first);
        assert_ne!(grid.submit(&eve, spec(), Some("k1")).await.unwrap().id, first);
        let other = JobSpec { priority: 1, ..spec() };
        assert_eq!(
            grid.submit(&ada, other, Some("k1")).await.unwrap_err().kind(),
            ErrorKind::Usage
        );
        settle(&place, &grid, &mut [&mut one]).await;
        let made = grid.request_checkpoint(&ada, first, Some("k3")).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(grid.request_checkpoint(&ada, first, Some("k3")).await.unwrap().id, made);
        assert_ne!(grid.request_checkpoint(&ada, first, None).await.unwrap().id, made);
    });
}

// GFD93-SM-10
#[test]
fn any_subset_of_the_jobs_can_be_asked_for_page_by_page() {
    with_each_database("any_subset", |place| async move {
        let grid = place.open().await;
        let people = [user("ada", 1000), user("eve", 1001)];
        let mut all = Vec::new();
        for number in 0..30 {
            let name = Some(format!("name{}", number % 3));
            let job = grid
                .submit(&people[number % 2], JobSpec { name, ..spec() }, None)
                .await
                .unwrap();
            if number % 5 == 0 {
                grid.cancel(&admin(), job.id).await.unwrap();
            }
            all.push(grid.job(&admin(), job.id).await.unwrap());
            place.pass(10);
        }
        let middle = all[14].submitted_ms;
        for owner in [None, Some("ada"), Some("eve")] {
            for name in [None, Some("name1")] {
                for state in [None, Some("cancelled"), Some("queued,cancelled"), Some("running")] {
                    for since in [None, Some(middle)] {
                        let text = |value: Option<&str>| value.map(str::to_string);
                        let mut query = JobQuery {
                            owner: text(owner),
                            name: text(name),
                            state: text(state),
                            since_ms: since,
                            limit: Some(4),
                            ..Default::default()
                        };
                        let mut found = Vec::new();
                        loop {
                            let page = grid.jobs(&admin(), &query).await.unwrap();
                            assert!(page.items.len() <= 4);
                            found.extend(page.items);
                            query.after = page.next;
                            if query.after.is_none() {
                                break;
                            }
                        }
                        let mut expected = all.clone();
                        expected.retain(|job| {
                            owner.is_none_or(|owner| job.owner.name == owner)
                                && name.is_none_or(|name| job.spec.name.as_deref() == Some(name))
                                && state.is_none_or(|states| states.split(',').any(|s| s == job.state.name()))
                                && since.is_none_or(|since| job.submitted_ms >= since)
                        });
                        assert_eq!(found, expected, "{owner:?} {name:?} {state:?} {since:?}");
                    }
                }
            }
        }
        for bad in [
            JobQuery {
                state: Some("nonsense".into()),
                ..Default::default()
            },
            JobQuery {
                limit: Some(0),
                ..Default::default()
            },
            JobQuery {
                after: Some("x'; DROP TABLE jobs".into()),
                ..Default::default()
            },
        ] {
            assert_eq!(grid.jobs(&admin(), &bad).await.unwrap_err().kind(), ErrorKind::Usage);
        }
    });
}

#[test]
fn jobs_wait_for_the_jobs_they_depend_on() {
    with_each_database("jobs_wait", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        let ada = user("ada", 1000);
        let first = grid.submit(&ada, spec(), None).await.unwrap().id;
        let second = grid
            .submit(
                &ada,
                JobSpec {
                    after: vec![first],
                    ..spec()
                },
                None,
            )
            .await
            .unwrap()
            .id;
        let third = grid
            .submit(
                &ada,
                JobSpec {
                    after: vec![second],
                    ..spec()
                },
                None,
            )
            .await
            .unwrap()
            .id;
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(state(&grid, second).await, JobState::Queued);
        *one.jobs.values_mut().next().unwrap() = Phase::Exited { code: 0, signal: None };
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(state(&grid, second).await, JobState::Running);
        *one.jobs.values_mut().next().unwrap() = Phase::Exited { code: 1, signal: None };
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(state(&grid, second).await, JobState::Failed);
        let last = grid.job(&ada, third).await.unwrap();
        assert_eq!(last.state, JobState::Failed);
        assert!(last.reason.unwrap().contains(&format!("job {second}")));
    });
}

#[test]
fn schedules_time_limits_suspension_and_draining() {
    with_each_database("schedules", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let timed = JobSpec {
            every_s: Some(60),
            time_limit_s: Some(150),
            ..spec()
        };
        let id = grid.submit(&ada, timed, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let count = async || {
            grid.checkpoints(&ada, &CheckpointQuery::default())
                .await
                .unwrap()
                .items
                .len()
        };
        for second in 1..=149 {
            place.pass(1000);
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
            assert_eq!(count().await, second / 60, "after {second} s");
        }
        assert_eq!(state(&grid, id).await, JobState::Running);
        place.pass(1000);
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let job = grid.job(&ada, id).await.unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert!(job.reason.unwrap().contains("time limit"));

        let id = grid
            .submit(&ada, JobSpec { node: None, ..spec() }, None)
            .await
            .unwrap()
            .id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        grid.suspend(&ada, id).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        assert_eq!(one.running().count() + two.running().count(), 0);
        grid.recover(&ada, id, RecoverRequest::default()).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let job = grid.job(&ada, id).await.unwrap();
        assert_eq!(job.state, JobState::Running);
        assert!(job.from.is_some());

        let here = job.node.unwrap();
        grid.drain(&admin(), &here, false).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let job = grid.job(&ada, id).await.unwrap();
        assert_eq!(job.state, JobState::Running);
        assert_ne!(job.node.unwrap(), here);
    });
}

#[test]
fn two_services_never_share_a_database() {
    with_each_database("two_services", |place| async move {
        let old = place.open().await;
        let new = place.open().await;
        let ada = user("ada", 1000);
        new.submit(&ada, spec(), None).await.unwrap();
        assert_eq!(
            old.submit(&ada, spec(), None).await.unwrap_err().kind(),
            ErrorKind::Gone
        );
        assert_eq!(new.jobs(&ada, &JobQuery::default()).await.unwrap().items.len(), 1);
    });
}

// XGCP-JUCP-1
#[test]
fn a_second_node_of_a_name_and_late_reports_are_refused() {
    with_each_database("a_second_node", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        one.beat(&grid, 0).await.unwrap();
        let mut twin = FakeNode::new("n1");
        twin.instance = "another disk".into();
        assert_eq!(twin.beat(&grid, 0).await.unwrap_err().kind(), ErrorKind::InUse);
        let late = one.report();
        one.beat(&grid, 0).await.unwrap();
        assert_eq!(grid.report(&admin(), &late).await.unwrap_err().kind(), ErrorKind::Gone);
    });
}

// GFD93-SM-2
#[test]
fn exactly_those_jobs_are_found_that_are_active_or_that_ended_badly() {
    with_each_database("active jobs", |place| async move {
        let grid = place.open().await;
        let mut nodes: Vec<FakeNode> = (1..=5).map(|n| FakeNode::new(&format!("n{n}"))).collect();
        let ada = user("ada", 1000);
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(grid.submit(&ada, spec(), None).await.unwrap().id);
        }
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        let (killed, finished) = (&ids[..3], &ids[3..7]);
        for (incarnation, phase) in nodes.iter_mut().flat_map(|node| &mut node.jobs) {
            if killed.contains(&incarnation.job) {
                let (code, signal) = (137, Some(9));
                *phase = Phase::Exited { code, signal };
            } else if finished.contains(&incarnation.job) {
                *phase = Phase::Exited { code: 0, signal: None };
            }
        }
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        for (state, expected) in [
            ("starting,running", &ids[7..]),
            ("failed", killed),
            ("finished", finished),
        ] {
            let query = JobQuery {
                state: Some(state.into()),
                ..JobQuery::default()
            };
            let found = grid.jobs(&ada, &query).await.unwrap().items;
            let found: Vec<i64> = found.iter().map(|job| job.id).collect();
            assert_eq!(found, expected, "{state}");
        }
    });
}

// GCA-GCS-4, GCA-GCS-5, GCA-UC-5.2.3, GFD93-INT-EHquery, GCA-UC-5.3.11
#[test]
fn requests_reach_the_node_of_their_job_and_a_node_tells_what_is_on_it() {
    with_each_database("routing", |place| async move {
        let grid = place.open().await;
        let mut nodes: Vec<FakeNode> = (1..=3).map(|n| FakeNode::new(&format!("n{n}"))).collect();
        let ada = user("ada", 1000);
        let mut ids = Vec::new();
        for number in 1..=3 {
            let on = JobSpec {
                node: (number == 3).then(|| "n3".into()),
                slots: Some(2),
                ..spec()
            };
            ids.push(grid.submit(&ada, on, None).await.unwrap().id);
        }
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        for id in &ids {
            let node = grid.job(&ada, *id).await.unwrap().node.unwrap();
            let made = grid.request_checkpoint(&ada, *id, None).await.unwrap();
            assert_eq!(made.node, node);
            for known in &mut nodes {
                let report = known.report();
                grid.report(&admin(), &report).await.unwrap();
                let orders = grid.orders(&report).await.unwrap();
                let asked = orders.jobs.iter().flat_map(|job| &job.checkpoints);
                let asked: Vec<i64> = asked.map(|asked| asked.id).collect();
                let expected = if known.name == node { vec![made.id] } else { Vec::new() };
                assert_eq!(asked, expected, "job {id} is on {node}");
            }
            settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        }
        let unknown = grid.request_checkpoint(&ada, 4711, None).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::NotFound);
        // What a failure of n3 may harm.
        let on = JobQuery {
            node: Some("n3".into()),
            ..JobQuery::default()
        };
        let jobs = grid.jobs(&admin(), &on).await.unwrap().items;
        assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[2]]);
        let at = CheckpointQuery {
            location: Some("n3".into()),
            ..CheckpointQuery::default()
        };
        let found = grid.checkpoints(&admin(), &at).await.unwrap().items;
        let found: Vec<i64> = found.iter().map(|checkpoint| checkpoint.id).collect();
        let mut held = nodes[2].images.clone();
        held.sort_unstable();
        assert_eq!(found, held);
        assert!(!found.is_empty());
        // Who is in charge of a job is another one after it has been moved.
        let first = grid.job(&ada, ids[0]).await.unwrap().node.unwrap();
        grid.cancel(&ada, ids[1]).await.unwrap();
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        grid.migrate(&ada, ids[0], MigrateRequest::default()).await.unwrap();
        grid.drain(&admin(), &first, false).await.unwrap();
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        let now = grid.job(&ada, ids[0]).await.unwrap();
        assert_eq!(now.state, JobState::Running);
        assert_ne!(now.node, Some(first));
    });
}
