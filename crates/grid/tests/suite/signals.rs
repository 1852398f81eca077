//! Signals for jobs, and what jobs are seen to use.

use cpr_api::model::*;
use cpr_types::ErrorKind;

use super::support::*;
use super::units::{ada, beat, beats, save, units};

#[test]
fn a_signal_reaches_every_unit_once_and_what_does_not_run_when_it_does() {
    with_each_database("signals", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2"].map(FakeNode::new);
        let id = grid.submit(&ada(), units(2), None).await.unwrap().id;
        let send = async |number| grid.signal(&ada(), id, SignalRequest { number }).await;
        let got = |nodes: &[FakeNode; 2]| {
            let given = nodes
                .iter()
                .flat_map(|node| node.running().map(|i| node.signals.get(&i).cloned()));
            given.map(Option::unwrap_or_default).collect::<Vec<_>>()
        };
        // Before it runs, and while it does.
        send(10).await.unwrap();
        assert_eq!(state(&grid, id).await, JobState::Queued);
        beats(&place, &grid, &mut nodes, 6).await;
        assert_eq!(got(&nodes), [[10], [10]]);
        send(12).await.unwrap();
        beats(&place, &grid, &mut nodes, 6).await;
        assert_eq!(got(&nodes), [[10, 12], [10, 12]]);
        let job = grid.job(&ada(), id).await.unwrap();
        assert_eq!((job.signals, job.signal_count), (vec![], 2));
        let told = cpr_grid::EventQuery {
            job: Some(id),
            kind: Some("job.signalled".into()),
            ..Default::default()
        };
        assert_eq!(grid.events(&ada(), &told).await.unwrap().items.len(), 4);
        // While it is suspended: another start gets it, and none of those before.
        grid.suspend(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 14).await;
        assert_eq!(state(&grid, id).await, JobState::Suspended);
        send(1).await.unwrap();
        let grid = place.open().await;
        grid.recover(&ada(), id, RecoverRequest::default()).await.unwrap();
        beats(&place, &grid, &mut nodes, 10).await;
        assert_eq!(state(&grid, id).await, JobState::Running);
        assert_eq!(got(&nodes), [[0, 0, 1], [0, 0, 1]]);
        assert!(grid.job(&ada(), id).await.unwrap().signals.is_empty());
        for number in [-1, 0, 9, 19, 32, 65] {
            let refused = grid.signal(&ada(), id, SignalRequest { number }).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Usage, "{number}");
        }
        let theirs = grid.signal(&user("bob", 1001), id, SignalRequest { number: 1 }).await;
        assert_eq!(theirs.unwrap_err().kind(), ErrorKind::NotFound);
        grid.cancel(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        let late = grid.signal(&ada(), id, SignalRequest { number: 1 }).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Gone);
    });
}

#[test]
fn what_a_job_has_used_is_of_all_its_starts_and_units() {
    with_each_database("usage", |place| async move {
        let grid = place.open().await;
        let mut nodes = ["n1", "n2"].map(FakeNode::new);
        beat(&place, &grid, &mut nodes).await;
        let id = grid.submit(&ada(), units(2), None).await.unwrap().id;
        beats(&place, &grid, &mut nodes, 4).await;
        let use_up = |nodes: &mut [FakeNode; 2], cpu_ms, memory| {
            for node in nodes {
                let running: Vec<_> = node.running().collect();
                let used = Used {
                    cpu_ms,
                    memory,
                    most_memory: memory * 2,
                    ..Used::default()
                };
                node.usage.extend(running.into_iter().map(|i| (i, used)));
            }
        };
        let used = async |grid: &cpr_grid::Grid| {
            let used = grid.job(&ada(), id).await.unwrap().used;
            (used.cpu_ms, used.memory, used.most_memory)
        };
        let mut changes = grid.changes();
        changes.borrow_and_update();
        use_up(&mut nodes, 700, 10);
        beats(&place, &grid, &mut nodes, 2).await;
        assert_eq!(used(&grid).await, (1400, 20, 20));
        assert!(!changes.has_changed().unwrap(), "nothing is written for it");
        save(&place, &grid, &mut nodes, id).await;
        nodes[0].crash();
        beats(&place, &grid, &mut nodes, 1).await;
        assert_eq!(used(&grid).await.0, 1400, "of what is lost, too");
        place.pass(3_000);
        beats(&place, &grid, &mut nodes, 10).await;
        assert_eq!(state(&grid, id).await, JobState::Running);
        use_up(&mut nodes, 50, 3);
        beats(&place, &grid, &mut nodes, 2).await;
        let (cpu_ms, memory, most) = used(&grid).await;
        assert_eq!((cpu_ms, memory), (1500, 6));
        assert!(most >= 20, "{most}");
        grid.cancel(&ada(), id).await.unwrap();
        beats(&place, &grid, &mut nodes, 4).await;
        let grid = place.open().await;
        let (cpu_ms, memory, most) = used(&grid).await;
        assert_eq!((cpu_ms, memory), (1500, 0));
        assert!(most >= 20, "{most}");
    });
}
