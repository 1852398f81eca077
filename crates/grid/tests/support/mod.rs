//! A grid for tests: a database of its own, clocks that stand still, and nodes that are played.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this module"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpr_api::agent::{CheckpointReport, CheckpointResult, Incarnation, JobReport, Orders, Phase, Report};
use cpr_api::model::{JobSpec, JobState, NodeInfo, Owner};
use cpr_grid::{Caller, Clock, Db, Grid, Policy, Role};

pub mod postgres;

use postgres::Postgres;

pub fn user(name: &str, uid: u32) -> Caller {
    let user = Owner {
        name: name.into(),
        uid,
        gid: uid,
    };
    Caller {
        name: name.into(),
        user: Some(user),
        role: Role::User,
    }
}

pub fn admin() -> Caller {
    let user = Owner {
        name: "root".into(),
        uid: 0,
        gid: 0,
    };
    Caller {
        name: "root".into(),
        user: Some(user),
        role: Role::Admin,
    }
}

pub fn spec() -> JobSpec {
    JobSpec {
        command: vec!["sim".into()],
        directory: "/".into(),
        ..JobSpec::default()
    }
}

/// Says where it is seen that something was not tested, as the tests of `cpr` do.
pub fn skipped(what: &str) {
    use std::io::Write;
    let line = format!("SKIPPED {what}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("GRIDCPR_SKIP_LOG")
        && let Ok(mut log) = std::fs::File::options().create(true).append(true).open(path)
    {
        let _ = log.write_all(line.as_bytes());
    }
    assert!(std::env::var_os("GRIDCPR_NO_SKIP").is_none(), "{line}");
}

/// A database that can be opened again.
pub struct Place {
    pub url: String,
    pub now: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
    _postgres: Option<Arc<Postgres>>,
}

impl Place {
    pub fn sqlite() -> Place {
        let directory = tempfile::tempdir().unwrap();
        Place {
            url: format!("sqlite://{}", directory.path().join("grid.db").display()),
            now: Arc::new(AtomicU64::new(1_000_000)),
            _directory: directory,
            _postgres: None,
        }
    }

    /// None where there is no PostgreSQL.
    pub fn postgres() -> Option<Place> {
        let postgres = Postgres::shared()?;
        Some(Place {
            url: postgres.database(),
            now: Arc::new(AtomicU64::new(1_000_000)),
            _directory: tempfile::tempdir().unwrap(),
            _postgres: Some(postgres),
        })
    }

    pub async fn open(&self) -> Grid {
        self.open_with(Policy::default()).await
    }

    pub async fn open_with(&self, policy: Policy) -> Grid {
        let db = Db::open(&self.url).await.unwrap();
        Grid::open(db, policy, Clock::Manual(self.now.clone())).await.unwrap()
    }

    pub fn pass(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }
}

/// A node as the protocol wants it to behave; what its jobs do is up to the test.
pub struct FakeNode {
    pub name: String,
    pub instance: String,
    pub sequence: u64,
    pub jobs: BTreeMap<Incarnation, Phase>,
    pub images: Vec<i64>,
    pub results: Vec<CheckpointReport>,
    /// What it has looked at since its last report.
    pub verified: Vec<i64>,
    /// What a checkpoint costs.
    pub cost_ms: u64,
    /// It reaches a store that all nodes share, and that takes images.
    pub has_store: bool,
    pub store_works: bool,
    /// The lease holds until then.
    pub lease_until: u64,
    pub orders: Orders,
}

impl FakeNode {
    pub fn new(name: &str) -> FakeNode {
        FakeNode {
            name: name.into(),
            instance: format!("{name}-disk"),
            sequence: 1,
            jobs: BTreeMap::new(),
            images: Vec::new(),
            results: Vec::new(),
            verified: Vec::new(),
            cost_ms: 10,
            has_store: false,
            store_works: true,
            lease_until: 0,
            orders: Orders::default(),
        }
    }

    pub fn report(&mut self) -> Report {
        self.sequence += 1;
        let jobs = self.jobs.iter();
        Report {
            info: NodeInfo {
                name: self.name.clone(),
                address: format!("{}:1", self.name),
                slots: 2,
                memory_mb: 1000,
                engines: vec!["native".into()],
                has_store: self.has_store,
                ..NodeInfo::default()
            },
            instance: self.instance.clone(),
            sequence: self.sequence,
            jobs: jobs
                .map(|(incarnation, phase)| JobReport {
                    incarnation: *incarnation,
                    phase: phase.clone(),
                })
                .collect(),
            checkpoints: self.results.clone(),
            images: self.images.clone(),
            bad_images: Vec::new(),
            verified: std::mem::take(&mut self.verified),
            in_store: if self.store_works {
                let to_store = self.orders.images.iter().filter(|image| image.to_store);
                to_store.map(|image| image.id).collect()
            } else {
                Vec::new()
            },
            seen: String::new(),
        }
    }

    /// Jobs that run here now.
    pub fn running(&self) -> impl Iterator<Item = Incarnation> + '_ {
        let live = self
            .jobs
            .iter()
            .filter(|(_, phase)| matches!(phase, Phase::Starting | Phase::Running));
        live.map(|(incarnation, _)| *incarnation)
    }

    /// Sends a report, and does what it is told.
    pub async fn beat(&mut self, grid: &Grid, now: u64) -> cpr_types::Result<()> {
        let report = self.report();
        grid.report(&admin(), &report).await?;
        let orders = grid.orders(&report).await?;
        self.lease_until = now + orders.lease_ms;
        self.obey(&orders);
        self.orders = orders;
        Ok(())
    }

    fn obey(&mut self, orders: &Orders) {
        self.jobs
            .retain(|known, _| orders.jobs.iter().any(|order| order.incarnation == *known));
        self.results.retain(|told| !orders.noted.contains(&told.id));
        let own: Vec<i64> = self.results.iter().map(|told| told.id).collect();
        self.images
            .retain(|id| own.contains(id) || orders.images.iter().any(|image| image.id == *id));
        for image in &orders.images {
            if !self.images.contains(&image.id) && !image.sources.is_empty() {
                self.images.push(image.id);
            }
        }
        for order in &orders.jobs {
            let phase = self.jobs.entry(order.incarnation).or_insert(Phase::Starting);
            if order.kill {
                *phase = Phase::Killed;
            }
            if *phase == Phase::Starting && order.from.is_none_or(|from| self.images.contains(&from)) {
                *phase = Phase::Running;
            }
            for asked in &order.checkpoints {
                if *phase == Phase::Running && !self.results.iter().any(|told| told.id == asked.id) {
                    let result = CheckpointResult::Stored {
                        bytes: 7,
                        blake3: "00".into(),
                        cost_ms: Some(self.cost_ms),
                        took_ms: Some(self.cost_ms),
                    };
                    self.results.push(CheckpointReport { id: asked.id, result });
                    self.images.push(asked.id);
                    if asked.stop {
                        *phase = Phase::Stopped;
                    }
                }
            }
        }
    }

    /// The lease is looked at: without one, every job is ended.
    pub fn fence(&mut self, now: u64) {
        if now >= self.lease_until {
            for phase in self.jobs.values_mut() {
                if matches!(phase, Phase::Starting | Phase::Running) {
                    *phase = Phase::Killed;
                }
            }
        }
    }

    /// Power off and on again: the disk stays.
    pub fn crash(&mut self) {
        for phase in self.jobs.values_mut() {
            if matches!(phase, Phase::Starting | Phase::Running) {
                *phase = Phase::Lost;
            }
        }
    }
}

/// Runs a test with each kind of database.
pub fn with_each_database<F: Future<Output = ()>>(name: &str, test: impl Fn(Place) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(Place::sqlite()));
    match Place::postgres() {
        Some(place) => runtime.block_on(test(place)),
        None => skipped(&format!("{name} with PostgreSQL: it is not installed")),
    }
}

pub async fn state(grid: &Grid, id: i64) -> JobState {
    grid.job(&admin(), id).await.unwrap().state
}

/// A few heartbeats of everybody.
pub async fn settle(place: &Place, grid: &Grid, nodes: &mut [&mut FakeNode]) {
    for _ in 0..4 {
        grid.tick().await.unwrap();
        for node in nodes.iter_mut() {
            node.beat(grid, place.now.load(Ordering::SeqCst)).await.unwrap();
        }
    }
    grid.tick().await.unwrap();
}
