//! A grid for tests: a database of its own, clocks that stand still, and nodes that are played.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this module"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpr_api::agent::{
    CheckpointReport, CheckpointResult, Fetching, Incarnation, JobOrder, JobReport, Orders, Phase, Report, StepReport,
};
use cpr_api::model::{Abilities, JobSpec, JobState, NodeInfo, Owner, Step, Used};
use cpr_grid::{Caller, Clock, Db, Grid, Policy, Role};
use cpr_types::ConnectionEnd;

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

/// A unit that takes part in a checkpoint.
#[derive(Debug, Clone)]
pub struct Taking {
    pub incarnation: Incarnation,
    pub done: Step,
    /// From when on it stands still, where it does.
    pub since: Option<u64>,
}

/// When a unit stood still for an image, was saved, and went on; `u64::MAX` for what has not happened.
#[derive(Debug, Clone, Copy)]
pub struct Stand {
    pub stopped: u64,
    pub saved: u64,
    pub released: u64,
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
    /// Engines that work on it, with what they can do, and their classes.
    pub abilities: BTreeMap<String, Abilities>,
    pub classes: BTreeMap<String, Vec<String>>,
    /// What its detector says is wrong.
    pub fault: Option<String>,
    /// Bytes that it has of every image it is to fetch, where it does not come to an end with them.
    pub stuck_at: Option<u64>,
    /// It reaches a store that all nodes share, and that takes images.
    pub has_store: bool,
    pub store_works: bool,
    /// The lease holds until then.
    pub lease_until: u64,
    pub orders: Orders,
    /// What it does for checkpoints of several units.
    pub taking: BTreeMap<i64, Taking>,
    /// When units stood still for which image.
    pub stands: BTreeMap<i64, Stand>,
    /// TCP connections that lead out of its units.
    pub connections: Vec<ConnectionEnd>,
    /// The next unit that should do this step fails.
    pub fails: Option<Step>,
    /// Signals that its jobs have got; the first of them have been another start's where it has missed some.
    pub signals: BTreeMap<Incarnation, Vec<i32>>,
    /// What its jobs use.
    pub usage: BTreeMap<Incarnation, Used>,
    /// Counts what happens, on all nodes that share it.
    pub moment: Arc<AtomicU64>,
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
            abilities: BTreeMap::from([("native".into(), Abilities::default())]),
            classes: BTreeMap::new(),
            fault: None,
            stuck_at: None,
            has_store: false,
            store_works: true,
            lease_until: 0,
            orders: Orders::default(),
            taking: BTreeMap::new(),
            stands: BTreeMap::new(),
            connections: Vec::new(),
            fails: None,
            signals: BTreeMap::new(),
            usage: BTreeMap::new(),
            moment: Arc::new(AtomicU64::new(0)),
        }
    }

    fn now(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Units that stand still.
    pub fn standing(&self) -> usize {
        self.taking.values().filter(|taking| taking.since.is_some()).count()
    }

    /// A unit does not stand still any more: it goes on, or has ended.
    fn release(&mut self, id: i64) {
        let now = self.now();
        if self.taking.remove(&id).is_some_and(|taking| taking.since.is_some())
            && let Some(stand) = self.stands.get_mut(&id)
        {
            stand.released = now;
        }
    }

    fn release_all(&mut self, what: impl Fn(i64, &Taking) -> bool) {
        let over = self.taking.iter().filter(|(id, taking)| what(**id, taking));
        let over: Vec<i64> = over.map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.release(id));
    }

    /// Its agent is killed and started again: units that stand still go on by themselves.
    pub fn restart_agent(&mut self) {
        self.release_all(|_, _| true);
        self.results.clear();
        for phase in self.jobs.values_mut() {
            if *phase == Phase::Built {
                *phase = Phase::Lost;
            }
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
                has_units: true,
                memory_mb: 1000,
                engines: self.abilities.keys().cloned().collect(),
                classes: self.classes.clone(),
                abilities: self.abilities.clone(),
                has_store: self.has_store,
                ..NodeInfo::default()
            },
            instance: self.instance.clone(),
            sequence: self.sequence,
            jobs: jobs
                .map(|(incarnation, phase)| JobReport {
                    incarnation: *incarnation,
                    phase: phase.clone(),
                    signalled: self.signals.get(incarnation).map_or(0, |given| given.len() as u64),
                    usage: self.usage.get(incarnation).copied(),
                })
                .collect(),
            checkpoints: self.results.clone(),
            steps: self
                .taking
                .iter()
                .map(|(id, taking)| StepReport {
                    id: *id,
                    done: taking.done,
                    connections: (taking.done >= Step::Stop).then(|| self.connections.clone()),
                })
                .collect(),
            images: self.images.clone(),
            own: Vec::new(),
            bad_images: Vec::new(),
            verified: std::mem::take(&mut self.verified),
            fault: self.fault.clone(),
            fetching: self.fetching(),
            in_store: if self.store_works {
                let to_store = self.orders.images.iter().filter(|image| image.to_store);
                to_store.map(|image| image.id).collect()
            } else {
                Vec::new()
            },
            seen: String::new(),
        }
    }

    /// Says anew what it has, as after a start of its agent.
    pub fn begin_anew(&mut self) {
        self.sequence = ((self.sequence >> 32) + 1) << 32;
    }

    /// Images that it is to have and has not.
    fn fetching(&self) -> Vec<Fetching> {
        let wanted = self
            .orders
            .images
            .iter()
            .filter(|image| !self.images.contains(&image.id));
        let bytes = self.stuck_at.unwrap_or(0);
        wanted.map(|image| Fetching { id: image.id, bytes }).collect()
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

    /// Takes part in a checkpoint of several units, one step at a time.
    fn take_part(&mut self, order: &JobOrder, id: i64, stop: bool, upto: Step) {
        if self.results.iter().any(|told| told.id == id) && !self.taking.contains_key(&id) {
            return;
        }
        let runs = self.jobs.get(&order.incarnation) == Some(&Phase::Running);
        let next = match self.taking.get(&id).map(|taking| taking.done) {
            None if upto == Step::Prepare && runs => Step::Prepare,
            None => return self.tell_failed(id),
            Some(Step::Prepare) => Step::Stop,
            Some(Step::Stop) if upto == Step::Drain => Step::Drain,
            Some(Step::Stop | Step::Drain) => Step::Save,
            Some(Step::Save | Step::Resume) => Step::Resume,
        };
        if next > upto || (stop && next == Step::Resume) {
            return;
        }
        if self.fails == Some(next) {
            self.fails = None;
            self.release(id);
            return self.tell_failed(id);
        }
        let now = self.now();
        let taking = self.taking.entry(id).or_insert(Taking {
            incarnation: order.incarnation,
            done: next,
            since: None,
        });
        taking.done = next;
        match next {
            // These units say nothing to each other.
            Step::Prepare | Step::Drain => {}
            Step::Stop => {
                taking.since = Some(now);
                let stand = Stand {
                    stopped: now,
                    saved: u64::MAX,
                    released: u64::MAX,
                };
                self.stands.insert(id, stand);
            }
            Step::Save => {
                self.images.push(id);
                if let Some(stand) = self.stands.get_mut(&id) {
                    stand.saved = now;
                }
            }
            Step::Resume => self.release(id),
        }
        if next == Step::Resume || (stop && next == Step::Save) {
            let result = self.stored();
            self.results.push(CheckpointReport { id, result });
        }
    }

    fn stored(&self) -> CheckpointResult {
        CheckpointResult::Stored {
            bytes: 7,
            blake3: "00".into(),
            cost_ms: Some(self.cost_ms),
            took_ms: Some(self.cost_ms),
        }
    }

    fn tell_failed(&mut self, id: i64) {
        let result = CheckpointResult::Failed {
            message: "out of paint".into(),
        };
        self.results.push(CheckpointReport { id, result });
    }

    fn obey(&mut self, orders: &Orders) {
        let asked = |id: i64| {
            orders
                .jobs
                .iter()
                .flat_map(|order| &order.checkpoints)
                .any(|c| c.id == id)
        };
        let ends = |of: Incarnation| !orders.jobs.iter().any(|order| order.incarnation == of && !order.kill);
        self.release_all(|id, taking| ends(taking.incarnation) || !asked(id));
        self.jobs
            .retain(|known, _| orders.jobs.iter().any(|order| order.incarnation == *known));
        self.results.retain(|told| !orders.noted.contains(&told.id));
        let own = self.results.iter().map(|told| told.id);
        let own: Vec<i64> = own.chain(self.taking.keys().copied()).collect();
        self.images
            .retain(|id| own.contains(id) || orders.images.iter().any(|image| image.id == *id));
        for image in &orders.images {
            if !self.images.contains(&image.id) && !image.sources.is_empty() && self.stuck_at.is_none() {
                self.images.push(image.id);
            }
        }
        for order in &orders.jobs {
            let phase = self.jobs.entry(order.incarnation).or_insert(Phase::Starting);
            if order.kill {
                *phase = Phase::Killed;
            }
            if *phase == Phase::Built && order.go {
                *phase = Phase::Running;
            }
            if *phase == Phase::Starting && order.from.is_none_or(|from| self.images.contains(&from)) {
                *phase = match (order.incarnation.unit, order.from) {
                    (Some(_), Some(_)) => Phase::Built,
                    _ => Phase::Running,
                };
            }
            if *phase == Phase::Running {
                let given = self.signals.entry(order.incarnation).or_default();
                let known = given.len() as u64;
                for signal in order.signals.iter().filter(|signal| signal.id > known) {
                    given.resize(signal.id as usize - 1, 0);
                    given.push(signal.number);
                }
            }
            for asked in &order.checkpoints {
                if let Some(step) = asked.step {
                    self.take_part(order, asked.id, asked.stop, step);
                    continue;
                }
                let phase = self.jobs.entry(order.incarnation).or_insert(Phase::Starting);
                if *phase == Phase::Running && !self.results.iter().any(|told| told.id == asked.id) {
                    if asked.stop {
                        *phase = Phase::Stopped;
                    }
                    let result = self.stored();
                    self.results.push(CheckpointReport { id: asked.id, result });
                    self.images.push(asked.id);
                }
            }
        }
    }

    /// The lease is looked at: without one, every job is ended.
    pub fn fence(&mut self, now: u64) {
        if now >= self.lease_until {
            for phase in self.jobs.values_mut() {
                if matches!(phase, Phase::Starting | Phase::Built | Phase::Running) {
                    *phase = Phase::Killed;
                }
            }
            self.release_all(|_, _| true);
        }
    }

    /// Power off and on again: the disk stays.
    pub fn crash(&mut self) {
        for phase in self.jobs.values_mut() {
            if matches!(phase, Phase::Starting | Phase::Built | Phase::Running) {
                *phase = Phase::Lost;
            }
        }
        self.restart_agent();
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
