//! Random operations, crashes, cuts and restarts, and what must hold whatever happens.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use cpr_api::agent::Phase;
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, Grid, JobQuery, Policy};
use support::*;

/// xorshift64: the same steps for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// Jobs make room for others: that must not lose any.
fn policy() -> Policy {
    Policy {
        preempt: true,
        ..Policy::default()
    }
}

struct World {
    place: Place,
    grid: Grid,
    nodes: Vec<FakeNode>,
    /// No packet reaches or leaves the node.
    cut: Vec<bool>,
    jobs: Vec<i64>,
    /// Checkpoints that the service has called complete.
    acknowledged: BTreeMap<i64, i64>,
    /// Checkpoints of units that stood still together.
    together: BTreeSet<i64>,
}

impl World {
    async fn new() -> World {
        let place = Place::sqlite();
        let grid = place.open_with(policy()).await;
        let mut nodes: Vec<FakeNode> = (1..=4).map(|n| FakeNode::new(&format!("n{n}"))).collect();
        let moment = nodes[0].moment.clone();
        for node in &mut nodes {
            node.moment = moment.clone();
        }
        World {
            place,
            grid,
            nodes,
            cut: vec![false; 4],
            jobs: Vec::new(),
            acknowledged: BTreeMap::new(),
            together: BTreeSet::new(),
        }
    }

    fn now(&self) -> u64 {
        self.place.now.load(Ordering::SeqCst)
    }

    async fn step(&mut self, dice: &mut Dice) {
        let number = dice.roll(4) as usize;
        let job = self
            .jobs
            .get(dice.roll(self.jobs.len().max(1) as u64) as usize)
            .copied();
        let ada = user("ada", 1000);
        match dice.roll(40) {
            0..=2 if self.jobs.len() < 12 => {
                let every_s = (dice.roll(2) == 0).then_some(3);
                // One, two or three units; or none, and the job is a whole.
                let units = vec![UnitSpec::default(); dice.roll(4) as usize];
                let job = self
                    .grid
                    .submit(
                        &ada,
                        JobSpec {
                            every_s,
                            priority: dice.roll(3) as i32,
                            retries: Some(1000),
                            independent: !units.is_empty() && dice.roll(4) == 0,
                            units,
                            ..spec()
                        },
                        None,
                    )
                    .await;
                self.jobs.push(job.unwrap().id);
            }
            3 => self.cut[number] = true,
            4..=6 => self.cut[number] = false,
            7 => self.nodes[number].crash(),
            8 => self.grid = self.place.open_with(policy()).await,
            9 | 10 => {
                if let Some(job) = job {
                    // May be refused, which has no effect.
                    let _ = self.grid.request_checkpoint(&ada, job, None).await;
                }
            }
            11 => {
                if let Some(job) = job {
                    let _ = self.grid.migrate(&ada, job, MigrateRequest::default()).await;
                }
            }
            12 => {
                if let Some(job) = job {
                    let _ = self.grid.suspend(&ada, job).await;
                    let _ = self.grid.recover(&ada, job, RecoverRequest::default()).await;
                }
            }
            13 if dice.roll(4) == 0 => {
                if let Some(job) = job {
                    let _ = self.grid.cancel(&ada, job).await;
                }
            }
            14 => {
                let undo = dice.roll(2) == 0;
                let _ = self.grid.drain(&admin(), &format!("n{}", number + 1), undo).await;
            }
            15 => {
                if let Some(phase) = self.nodes[number]
                    .jobs
                    .values_mut()
                    .find(|phase| **phase == Phase::Running)
                {
                    *phase = Phase::Exited { code: 0, signal: None };
                }
            }
            16 => {
                let steps = [Step::Prepare, Step::Stop, Step::Save, Step::Resume];
                self.nodes[number].fails = Some(steps[dice.roll(4) as usize]);
            }
            17 => self.nodes[number].restart_agent(),
            // A unit fails by itself, which ends the job.
            18 if dice.roll(3) == 0 => {
                if let Some((_, phase)) = self.nodes[number]
                    .jobs
                    .iter_mut()
                    .find(|(incarnation, phase)| incarnation.unit.is_some() && **phase == Phase::Running)
                {
                    *phase = Phase::Exited { code: 3, signal: None };
                }
            }
            _ => {}
        }
        self.place.pass(dice.roll(1500));
        self.grid.tick().await.unwrap();
        for (node, cut) in self.nodes.iter_mut().zip(&self.cut) {
            let now = self.place.now.load(Ordering::SeqCst);
            node.fence(now);
            if !cut {
                if dice.roll(8) == 0 {
                    // The answer does not arrive.
                    let report = node.report();
                    let _ = self.grid.report(&admin(), &report).await;
                } else {
                    // May be refused, to come again.
                    let _ = node.beat(&self.grid, now).await;
                }
            }
        }
        self.check().await;
    }

    async fn check(&mut self) {
        // No job runs twice, nor does a unit, and no job has units of two starts.
        let mut running = BTreeSet::new();
        let mut starts = BTreeMap::new();
        for incarnation in self.nodes.iter().flat_map(FakeNode::running) {
            assert!(
                running.insert((incarnation.job, incarnation.unit)),
                "{incarnation} runs twice"
            );
            let job = self.grid.job(&admin(), incarnation.job).await.unwrap();
            if job.spec.independent {
                // Each goes on alone.
                continue;
            }
            let start = *starts.entry(incarnation.job).or_insert(incarnation.number);
            assert_eq!(
                start, incarnation.number,
                "job {} has been started twice",
                incarnation.job
            );
        }
        // What was acknowledged stays, until something newer is complete or the job needs it no more.
        let query = CheckpointQuery {
            limit: Some(1000),
            ..Default::default()
        };
        let checkpoints = self.grid.checkpoints(&admin(), &query).await.unwrap().items;
        for checkpoint in checkpoints.iter().filter(|c| c.state == CheckpointState::Complete) {
            let newest = self.acknowledged.entry(checkpoint.job).or_default();
            *newest = checkpoint.id.max(*newest);
        }
        // There was a moment at which all units of a checkpoint that counts stood still.
        let together = |c: &&Checkpoint| c.coordination.as_ref().is_some_and(|at| !at.independent);
        for set in checkpoints.iter().filter(|c| c.state.is_usable()).filter(together) {
            let stands = set.units.iter().map(|image| {
                let stood = self.nodes.iter().find_map(|node| node.stands.get(&image.checkpoint));
                *stood.unwrap()
            });
            let stands: Vec<Stand> = stands.collect();
            let all_stopped = stands.iter().map(|stand| stand.stopped).max().unwrap();
            let after = |moment: fn(&Stand) -> u64| stands.iter().all(|stand| moment(stand) > all_stopped);
            assert!(after(|stand| stand.released), "checkpoint {}: {stands:?}", set.id);
            // XGCP-COORD-9
            assert!(after(|stand| stand.saved), "checkpoint {}: {stands:?}", set.id);
            self.together.insert(set.id);
        }
        for (job, newest) in &self.acknowledged {
            let job = self.grid.job(&admin(), *job).await.unwrap();
            let kept = checkpoints.iter().find(|c| c.id == *newest).unwrap();
            let images = match kept.is_set() {
                true => {
                    let images_of = CheckpointQuery {
                        images_of: Some(*newest),
                        ..Default::default()
                    };
                    self.grid.checkpoints(&admin(), &images_of).await.unwrap().items
                }
                false => vec![kept.clone()],
            };
            if job.state != JobState::Finished {
                assert!(
                    kept.state.is_usable(),
                    "checkpoint {newest} of job {} is {:?}",
                    job.id,
                    kept
                );
                for image in images {
                    assert!(!image.locations.is_empty(), "{image:?}");
                    let held = image.locations.iter().all(|place| {
                        self.nodes
                            .iter()
                            .any(|node| node.name == place.node && node.images.contains(&image.id))
                    });
                    assert!(held, "copies of {newest}: {image:?}");
                }
            }
        }
    }

    /// Peace: every job gets somewhere, and nothing is left over.
    async fn heal(&mut self) {
        self.cut = vec![false; 4];
        for node in 1..=4 {
            let _ = self.grid.drain(&admin(), &format!("n{node}"), true).await;
        }
        let mut calm = Dice(1);
        for _ in 0..2000 {
            self.place.pass(500);
            self.grid.tick().await.unwrap();
            let now = self.now();
            for node in &mut self.nodes {
                node.fence(now);
                let _ = node.beat(&self.grid, now).await;
                if calm.roll(5) == 0
                    && let Some(phase) = node.jobs.values_mut().find(|phase| **phase == Phase::Running)
                {
                    *phase = Phase::Exited { code: 0, signal: None };
                }
            }
            let query = JobQuery {
                state: Some("queued,starting,running".into()),
                ..Default::default()
            };
            if self.grid.jobs(&admin(), &query).await.unwrap().items.is_empty() {
                break;
            }
        }
        for job in self
            .grid
            .jobs(
                &admin(),
                &JobQuery {
                    limit: Some(1000),
                    ..Default::default()
                },
            )
            .await
            .unwrap()
            .items
        {
            let own_fault = job.state == JobState::Failed && job.exit_code == Some(3);
            let good = matches!(
                job.state,
                JobState::Finished | JobState::Cancelled | JobState::Suspended
            ) || own_fault;
            assert!(good, "job {} is {:?}: {:?}", job.id, job.state, job.reason);
        }
        for _ in 0..3 {
            for node in &mut self.nodes {
                node.beat(&self.grid, 0).await.unwrap();
            }
        }
        let usable = CheckpointQuery {
            state: Some("stored,complete".into()),
            limit: Some(1000),
            ..Default::default()
        };
        let usable = self.grid.checkpoints(&admin(), &usable).await.unwrap().items;
        let images = usable.iter().flat_map(|c| c.units.iter().map(|image| image.checkpoint));
        let usable: BTreeSet<i64> = usable.iter().map(|c| c.id).chain(images).collect();
        for node in &self.nodes {
            assert!(node.jobs.is_empty(), "{}: {:?}", node.name, node.jobs);
            assert_eq!(node.standing(), 0, "{}: {:?}", node.name, node.taking);
            assert!(
                node.images.iter().all(|id| usable.contains(id)),
                "{} holds what nobody needs",
                node.name
            );
        }
    }
}

// XGCP-JCP-12, GFD93-SM-13
#[test]
fn whatever_happens_no_job_runs_twice_and_no_checkpoint_is_lost() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let seeds = std::env::var("GRIDCPR_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(4);
    for seed in 1..=seeds {
        eprintln!("seed {seed}");
        runtime.block_on(async {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let mut world = World::new().await;
            for _ in 0..250 {
                world.step(&mut dice).await;
            }
            world.heal().await;
            assert!(
                world.together.len() > 3,
                "it has tried too little: {:?}",
                world.together
            );
        });
    }
}
