//! Engines that nodes publish, and jobs that ask for what an engine can do.

use std::collections::BTreeMap;

use cpr_api::agent::{Incarnation, Phase};
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, EventQuery};

use super::support::*;

/// What an engine of that name can do.
fn able(name: &str, words: &[(&str, &str)]) -> (String, Abilities) {
    let words = words
        .iter()
        .map(|(key, word)| (key.to_string(), vec![word.to_string()]));
    let abilities = Abilities {
        version: Some("7".into()),
        properties: words.collect(),
    };
    (name.to_string(), abilities)
}

fn needs(pairs: &[(&str, &str)]) -> JobSpec {
    JobSpec {
        needs: pairs
            .iter()
            .map(|(key, word)| (key.to_string(), word.to_string()))
            .collect(),
        ..spec()
    }
}

const THREADS: (&str, &str) = ("threads", "yes");
const PIPES: (&str, &str) = ("pipes", "yes");

// XGCP-JOB-9, XGCP-JOB-10, GCA-ENV-4, GCA-CTS-27
#[test]
fn a_job_goes_to_a_node_with_an_engine_that_can_do_what_it_needs() {
    with_each_database("needs", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
        nodes[0].abilities = BTreeMap::from([able("native", &[THREADS])]);
        nodes[1].abilities = BTreeMap::from([able("native", &[THREADS]), able("paint", &[THREADS, PIPES])]);
        nodes[2].abilities.clear();
        let ada = user("ada", 1000);
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        let both = needs(&[THREADS, PIPES]);
        let first = grid.submit(&ada, both.clone(), None).await.unwrap().id;
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        let now = grid.job(&ada, first).await.unwrap();
        assert_eq!((now.node.as_deref(), now.engine.as_str()), (Some("n2"), "paint"));
        let made = grid.request_checkpoint(&ada, first, None).await.unwrap();
        assert_eq!(made.engine, "paint");
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        // The others have room and no such engine; and what nobody can do is waited for.
        let large = JobSpec { slots: Some(2), ..both };
        let second = grid.submit(&ada, large, None).await.unwrap().id;
        let third = grid.submit(&ada, needs(&[("gpu", "yes")]), None).await.unwrap().id;
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        let why = async |id: i64| {
            let job = grid.job(&ada, id).await.unwrap();
            assert_eq!(job.state, JobState::Queued);
            job.reason.unwrap()
        };
        let told = why(second).await;
        assert!(
            told.contains("n1 has no such engine with pipes=yes threads=yes"),
            "{told}"
        );
        assert!(
            told.contains("n2 is full") && told.contains("n3 has no such engine"),
            "{told}"
        );
        let told = why(third).await;
        assert!(
            ["n1", "n2", "n3"]
                .iter()
                .all(|name| told.contains(&format!("{name} has no such engine with gpu=yes")))
        );
        // One that needs nothing runs where there is no engine, and is never saved.
        let plain = JobSpec {
            node: Some("n3".into()),
            ..spec()
        };
        let plain = grid.submit(&ada, plain, None).await.unwrap().id;
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        assert_eq!(state(&grid, plain).await, JobState::Running);
        *nodes[2].jobs.values_mut().next().unwrap() = Phase::Exited { code: 0, signal: None };
        settle(&place, &grid, &mut nodes.iter_mut().collect::<Vec<_>>()).await;
        assert_eq!(state(&grid, plain).await, JobState::Finished);
        let of_it = CheckpointQuery {
            job: Some(plain),
            ..CheckpointQuery::default()
        };
        assert!(grid.checkpoints(&ada, &of_it).await.unwrap().items.is_empty());
        // All words of a property are wanted.
        let several = Abilities {
            version: None,
            properties: BTreeMap::from([("tcp".into(), vec!["inside".into(), "close".into()])]),
        };
        let has = |words: &str| several.have(&BTreeMap::from([("tcp".into(), words.into())]));
        assert!(has("close") && has("close,inside") && !has("close,established") && !has(""));
    });
}

// GCA-GCS-1, GCA-UC-5.4.3
#[test]
fn what_engines_can_do_is_published_and_who_watches_sees_them_come_and_go() {
    with_each_database("published engines", |place| async move {
        let grid = place.open().await;
        let mut one = FakeNode::new("n1");
        settle(&place, &grid, &mut [&mut one]).await;
        let ada = user("ada", 1000);
        let told = async || {
            let query = EventQuery {
                kind: Some("node.engines".into()),
                ..EventQuery::default()
            };
            let events = grid.events(&ada, &query).await.unwrap().items;
            events.into_iter().map(|event| event.text).collect::<Vec<_>>()
        };
        assert!(told().await.is_empty());
        let mut changes = grid.changes();
        changes.borrow_and_update();
        one.abilities.extend([able("paint", &[PIPES])]);
        one.classes = BTreeMap::from([("piped".into(), vec!["paint".into()])]);
        one.begin_anew();
        settle(&place, &grid, &mut [&mut one]).await;
        assert!(changes.has_changed().unwrap(), "who waits for news is told");
        assert_eq!(told().await, ["node n1 has the engines native, paint"]);
        let info = grid.nodes().await.unwrap()[0].info.clone();
        assert_eq!(info.abilities["paint"].properties["pipes"], ["yes"]);
        assert_eq!(info.abilities["paint"].version.as_deref(), Some("7"));
        assert_eq!(info.classes["piped"], ["paint"]);
        one.abilities.remove("paint");
        one.classes.clear();
        one.begin_anew();
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(told().await[1], "node n1 has the engines native, and no longer paint");
        assert!(!grid.nodes().await.unwrap()[0].info.abilities.contains_key("paint"));
        // The same once more is no news.
        one.begin_anew();
        settle(&place, &grid, &mut [&mut one]).await;
        assert_eq!(told().await.len(), 2);
    });
}

// XGCP-FILE-10, GFD93-CT-4
#[test]
fn a_service_that_knows_nothing_but_its_records_finds_node_engine_and_image_of_a_lost_job() {
    with_each_database("from records", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2", "n3"].map(FakeNode::new);
        for number in [0, 2] {
            nodes[number].abilities.extend([able("paint", &[PIPES])]);
        }
        let ada = user("ada", 1000);
        let [one, two, three] = &mut nodes;
        settle(&place, &grid, &mut [one, two]).await;
        let id = grid.submit(&ada, needs(&[PIPES]), None).await.unwrap().id;
        settle(&place, &grid, &mut [one, two]).await;
        let made = grid.request_checkpoint(&ada, id, None).await.unwrap().id;
        settle(&place, &grid, &mut [one, two]).await;
        settle(&place, &grid, &mut [two, three]).await;
        drop(grid);
        let grid = place.open().await;
        three.stuck_at = Some(0);
        for _ in 0..3 {
            place.pass(5_000);
            settle(&place, &grid, &mut [two, three]).await;
        }
        // n2 holds the image, and only n3 has the engine; it does not start before the image is there.
        let now = grid.job(&ada, id).await.unwrap();
        assert_eq!((now.node.as_deref(), now.state), (Some("n3"), JobState::Starting));
        assert_eq!((now.from, now.engine.as_str()), (Some(made), "paint"));
        let order = three.orders.jobs[0].clone();
        let incarnation = Incarnation {
            job: id,
            number: 2,
            unit: None,
        };
        assert_eq!((order.incarnation, order.from), (incarnation, Some(made)));
        assert_eq!(order.engine, "paint");
        let image = three.orders.images.iter().find(|image| image.id == made).unwrap();
        let sources: Vec<&str> = image.sources.iter().map(|source| source.node.as_str()).collect();
        assert_eq!(sources, ["n2"]);
        assert_eq!(three.jobs[&incarnation], Phase::Starting);
        three.stuck_at = None;
        settle(&place, &grid, &mut [two, three]).await;
        assert_eq!(state(&grid, id).await, JobState::Running);
    });
}
