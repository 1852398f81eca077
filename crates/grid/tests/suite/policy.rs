//! How a job is saved, changed while it runs.

use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, EventQuery};
use cpr_types::ErrorKind;

use super::support::*;

// XGCP-ADAPT-1, XGCP-JOB-8
#[test]
fn how_often_a_running_job_is_saved_and_how_much_is_kept_can_be_changed() {
    with_each_database("policy", |place| async move {
        let grid = place.open().await;
        let (mut one, mut two) = (FakeNode::new("n1"), FakeNode::new("n2"));
        let (ada, eve) = (user("ada", 1000), user("eve", 1001));
        let wanted = JobSpec {
            every_s: Some(10),
            keep: Some(3),
            ..spec()
        };
        let id = grid.submit(&ada, wanted, None).await.unwrap().id;
        settle(&place, &grid, &mut [&mut one, &mut two]).await;
        let count = async |state: &str| {
            let query = CheckpointQuery {
                job: Some(id),
                state: Some(state.into()),
                ..CheckpointQuery::default()
            };
            grid.checkpoints(&ada, &query).await.unwrap().items.len()
        };
        let mut seconds = 0;
        let mut pass = async |more: u64| {
            for _ in 0..more {
                place.pass(1000);
                seconds += 1;
                settle(&place, &grid, &mut [&mut one, &mut two]).await;
            }
            seconds
        };
        pass(55).await;
        assert_eq!((count("complete").await, count("complete,freed").await), (3, 5));
        // Nobody else's business.
        let less = PolicyRequest {
            every_s: Some(30),
            keep: Some(1),
            ..PolicyRequest::default()
        };
        let refused = grid.change_policy(&eve, id, less.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        let changed = grid.change_policy(&ada, id, less).await.unwrap();
        assert_eq!((changed.state, changed.incarnation), (JobState::Running, 1));
        assert_eq!(count("complete").await, 1, "what is not kept goes at once");
        pass(24).await;
        assert_eq!(count("complete,freed").await, 5);
        pass(31).await;
        assert_eq!((count("complete").await, count("complete,freed").await), (1, 7));
        let other = PolicyRequest {
            every_s: Some(0),
            adapt: Some(true),
            ..PolicyRequest::default()
        };
        let changed = grid.change_policy(&ada, id, other).await.unwrap();
        assert_eq!((changed.spec.every_s, changed.spec.keep), (None, Some(1)));
        assert_eq!(changed.every_ms(), Some(600_000), "as any that adapts begins");
        let never = PolicyRequest {
            adapt: Some(false),
            ..PolicyRequest::default()
        };
        grid.change_policy(&ada, id, never).await.unwrap();
        pass(40).await;
        assert_eq!(count("complete,freed").await, 7);
        for bad in [
            PolicyRequest {
                keep: Some(0),
                ..PolicyRequest::default()
            },
            PolicyRequest {
                independent: Some(true),
                ..PolicyRequest::default()
            },
        ] {
            let refused = grid.change_policy(&ada, id, bad).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Usage);
        }
        grid.cancel(&ada, id).await.unwrap();
        pass(2).await;
        let refused = grid
            .change_policy(&ada, id, PolicyRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Gone);
        let query = EventQuery {
            job: Some(id),
            kind: Some("job.policy".into()),
            ..EventQuery::default()
        };
        let told = grid.events(&ada, &query).await.unwrap().items;
        assert_eq!(told.len(), 3);
        assert!(told[0].text.contains("as ada wants"));
    });
}
