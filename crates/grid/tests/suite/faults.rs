//! Failures that somebody reports, or a node's detector, and who is told of them.

use cpr_api::model::*;
use cpr_grid::{EventQuery, Grid, JobQuery};
use cpr_types::ErrorKind;

use super::support::*;

/// Kinds and texts of events about failures, and what became of jobs by them.
async fn told(grid: &Grid, kinds: &[&str]) -> Vec<(String, Option<i64>, String)> {
    let events = grid.events(&admin(), &EventQuery::default()).await.unwrap().items;
    let wanted = events.into_iter().filter(|event| kinds.contains(&event.kind.as_str()));
    wanted.map(|event| (event.kind, event.job, event.text)).collect()
}

/// What the jobs of a node are told now.
fn tells(node: &FakeNode) -> Vec<(i64, Option<&str>)> {
    let orders = node.orders.jobs.iter();
    orders
        .map(|order| (order.incarnation.job, order.tell.as_deref()))
        .collect()
}

// GFD93-INT-EHdetect, GFD93-API-3
#[test]
fn a_failure_that_is_reported_is_told_to_the_jobs_that_it_may_harm_and_they_leave() {
    with_each_database("reported failure", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let ada = user("ada", 1000);
        let mut ids = Vec::new();
        for node in ["n1", "n2", "n1"] {
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
            // Bound to nothing later on.
            let on = JobSpec {
                node: Some(node.into()).filter(|node| node == "n2"),
                ..spec()
            };
            ids.push(grid.submit(&ada, on, None).await.unwrap().id);
        }
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let on = async |node: &str| {
            let query = JobQuery {
                node: Some(node.into()),
                ..JobQuery::default()
            };
            let found = grid.jobs(&admin(), &query).await.unwrap().items;
            found.iter().map(|job| job.id).collect::<Vec<_>>()
        };
        let affected = on("n1").await;
        assert!(!affected.is_empty() && affected.len() < 3, "{affected:?}");
        let refused = grid.fault(&ada, "n1", "fire").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
        assert_eq!(
            grid.fault(&admin(), "n9", "fire").await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(
            grid.fault(&admin(), "n1", " ").await.unwrap_err().kind(),
            ErrorKind::Usage
        );
        let node = grid.fault(&admin(), "n1", "its memory has errors").await.unwrap();
        assert_eq!(
            (node.state, node.fault.as_deref()),
            (NodeState::Draining, Some("its memory has errors"))
        );
        let reason = "node n1 is failing: its memory has errors";
        one.beat(&grid, 0).await.unwrap();
        two.beat(&grid, 0).await.unwrap();
        assert_eq!(
            tells(&one),
            affected.iter().map(|id| (*id, Some(reason))).collect::<Vec<_>>()
        );
        assert!(tells(&two).iter().all(|(_, told)| told.is_none()));
        for _ in 0..4 {
            settle(&place, &grid, &mut [&mut one, &mut two]).await;
        }
        // They are saved there, and go on elsewhere as far as there is room.
        assert_eq!(on("n1").await, Vec::<i64>::new());
        for id in &affected {
            let job = grid.job(&ada, *id).await.unwrap();
            assert_eq!((job.failures, job.state == JobState::Failed), (0, false));
        }
        let untouched = ids.iter().find(|id| !affected.contains(id)).unwrap();
        assert_eq!(grid.job(&ada, *untouched).await.unwrap().incarnation, 1);
        // What was detected, who was told, and what was revised.
        let trace = told(&grid, &["node.fault", "job.warned", "job.queued"]).await;
        let at = trace.iter().position(|(kind, ..)| kind == "node.fault").unwrap();
        assert_eq!(trace[at].2, format!("{reason}, as root says"));
        let warned: Vec<_> = trace[at + 1..]
            .iter()
            .filter(|(kind, ..)| kind == "job.warned")
            .collect();
        let expected = affected.iter().map(|id| format!("job {id} is told: {reason}"));
        assert_eq!(
            warned.iter().map(|(_, _, text)| text.clone()).collect::<Vec<_>>(),
            expected.collect::<Vec<_>>()
        );
        let queued = trace[at + 1..].iter().filter(|(kind, ..)| kind == "job.queued");
        assert_eq!(queued.map(|(_, job, _)| job.unwrap()).collect::<Vec<_>>(), affected);
        // It is known until somebody says that it is over, also by a service that is started anew.
        drop(grid);
        let grid = place.open().await;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert!(grid.nodes().await.unwrap()[0].fault.is_some());
        let node = grid.drain(&admin(), "n1", true).await.unwrap();
        assert_eq!((node.state, node.fault), (NodeState::Ready, None));
    });
}

#[test]
fn what_the_detector_of_a_node_says_counts_once_until_it_says_something_else() {
    with_each_database("detector", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        one.fault = Some("the disk is\nfull".into());
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let states = async || {
            let nodes = grid.nodes().await.unwrap().into_iter();
            nodes.map(|node| (node.state, node.fault)).collect::<Vec<_>>()
        };
        let ready = (NodeState::Ready, None);
        let full = (NodeState::Draining, Some("the disk isfull".to_string()));
        assert_eq!(states().await, [full, ready.clone()]);
        // An operator knows better.
        grid.drain(&admin(), "n1", true).await.unwrap();
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(states().await[0], ready);
        one.fault = None;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        one.fault = Some("the disk is full".into());
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        assert_eq!(states().await[0].0, NodeState::Draining);
        let faults = told(&grid, &["node.fault"]).await;
        assert_eq!(faults.len(), 2);
        assert!(faults[1].2.ends_with("as its detector says"));
    });
}
