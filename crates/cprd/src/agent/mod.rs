//! The agent of a node: has the jobs and images that the service orders, and reports what it has.
//!
//! One thread sends heartbeats and compares what is ordered with what is there; everything that takes longer is done
//! beside it. Everything it knows is on disk or can be seen, so that it may be killed and started again while jobs run.
//!
//! Fencing is not the agent's: it writes the lease down, and the supervisor of every job watches it.

mod coordinate;
mod engines;
mod facts;
mod fetch;
mod health;
mod hooks;
mod images;
mod jobs;
mod layout;
mod manager;
mod moment;
mod own;
mod pace;
mod process;
mod scrub;
mod serve;
mod staging;
mod upload;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cpr_api::Client;
use cpr_api::agent::{BadImage, CheckpointReport, ImageOrder, Incarnation, Orders, Report, StepReport};
use cpr_api::model::{NodeInfo, Step, Used};
use cpr_api::tls::ClientTls;
use cpr_node::{grant_lease, lease_clock};
use cpr_types::{ConnectionEnd, Context, Error, ErrorKind, Result};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::log;
use crate::reload::Current;
use crate::stores::Store;
use crate::stores::area::Area;
use coordinate::Said;
use engines::Published;
use layout::{Layout, Record};
use pace::Pace;
use process::Runner;

pub use images::open as open_image;
pub use process::become_described;
pub use scrub::is_whole;

/// How long the service may keep silent before a heartbeat is sent again; shorter than any lease.
const SILENCE: Duration = Duration::from_secs(3);
/// Pause after a heartbeat that failed.
const PAUSE: Duration = Duration::from_millis(300);
/// Heartbeats are at least so far apart, whatever the service answers.
const SPACING: Duration = Duration::from_millis(20);
/// The same while something is going on here, of whose end the service is to hear at once.
const SPACING_IN_MOTION: Duration = Duration::from_millis(100);
/// Things that are done beside the heartbeats, at most.
const MOST_TASKS: usize = 16;

/// Units that are coordinated at once, at most.
const MOST_COORDINATED: usize = 512;

/// What is going on.
#[derive(Default)]
struct State {
    records: BTreeMap<Incarnation, Record>,
    /// Incarnations being started, killed or forgotten.
    busy: BTreeSet<Incarnation>,
    /// Checkpoints being made.
    making: BTreeSet<i64>,
    /// How they went, until the service has noted it.
    results: BTreeMap<i64, CheckpointReport>,
    /// Images being fetched.
    fetching: BTreeSet<i64>,
    /// Rounds in which an image could not be had from anywhere, and when the last one was.
    missed: BTreeMap<i64, (u32, Instant)>,
    /// Copies found bad since the last heartbeat.
    bad: Vec<BadImage>,
    /// Images we are to hold, as they have to be.
    known: BTreeMap<i64, ImageOrder>,
    /// Images found whole since the last heartbeat.
    verified: Vec<i64>,
    /// Images on their way to the store.
    uploading: BTreeSet<i64>,
    /// Images that we have put there, until the service has noted it.
    uploaded: BTreeSet<i64>,
    /// How often that failed, and when it did last.
    upload_failures: BTreeMap<i64, (u32, Instant)>,
    /// What is wrong with this node, as the detector says.
    fault: Option<String>,
    /// What programs of jobs have been told.
    told: BTreeSet<(Incarnation, String)>,
    /// What jobs have used, as far as that was seen.
    usage: BTreeMap<Incarnation, Used>,
    /// Who may fetch what.
    tickets: BTreeMap<i64, String>,
    /// What the service has said last that coordinated units wait for.
    said: Said,
    /// The last step that is done of checkpoints that are made step by step.
    done: BTreeMap<i64, Step>,
    /// Connections that lead out of the units that stand still for them.
    connections: BTreeMap<i64, Vec<ConnectionEnd>>,
    /// Units that take part in a checkpoint.
    conducting: BTreeSet<Incarnation>,
    /// Units that wait for others to make the connections to them again.
    ready: BTreeSet<Incarnation>,
    /// Units that have been made again and may not run so far.
    built: BTreeSet<Incarnation>,
}

/// The agent.
pub struct Agent {
    name: String,
    current: Current,
    client: Client,
    /// How other nodes are reached; none: as they are.
    tls: Option<Arc<ClientTls>>,
    layout: Layout,
    runner: Runner,
    store: Option<Arc<Store>>,
    /// The grid's area for files.
    area: Option<Area>,
    pace: Pace,
    instance: String,
    state: Mutex<State>,
    /// The engines that work here, as they were last looked for.
    engines: Mutex<Published>,
    tasks: AtomicUsize,
    coordinated: AtomicUsize,
    /// Checkpoints that wait for a good moment.
    patient: AtomicUsize,
    /// The service has answered.
    answered: Condvar,
}

impl Agent {
    /// Prepares the agent; nothing happens yet.
    pub fn new(config: &Config, current: Current, client: Client, tls: Option<Arc<ClientTls>>) -> Result<Arc<Agent>> {
        let layout = Layout::open(&config.node.directory)?;
        let store = config.node.store.as_deref().map(|place| Store::open(place, config));
        let store = store.transpose()?;
        let area = config.node.area.as_deref().map(|place| Area::open(place, config));
        let state = State {
            records: layout.records()?,
            ..State::default()
        };
        Ok(Arc::new(Agent {
            name: config.node.name(),
            current,
            client: client.with_silence(SILENCE),
            tls,
            runner: Runner::new(config.node.cpr.as_deref())?,
            store: store.map(Arc::new),
            area: area.transpose()?,
            pace: Pace::new(config.node.transfer_mb_per_s),
            instance: layout.instance()?,
            layout,
            state: Mutex::new(state),
            engines: Mutex::new(Published::look()),
            tasks: AtomicUsize::new(0),
            coordinated: AtomicUsize::new(0),
            patient: AtomicUsize::new(0),
            answered: Condvar::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something beside the heartbeats; false where too much is going on, so that it has to be tried again.
    fn beside(self: &Arc<Self>, task: impl FnOnce(&Arc<Agent>) + Send + 'static) -> bool {
        self.spawn(|agent| &agent.tasks, MOST_TASKS, task)
    }

    /// The same for what waits for other nodes: it must not keep other things from being done, which they may wait for.
    fn coordinated(self: &Arc<Self>, task: impl FnOnce(&Arc<Agent>) + Send + 'static) -> bool {
        self.spawn(|agent| &agent.coordinated, MOST_COORDINATED, task)
    }

    fn spawn(
        self: &Arc<Self>,
        counter: fn(&Agent) -> &AtomicUsize,
        most: usize,
        task: impl FnOnce(&Arc<Agent>) + Send + 'static,
    ) -> bool {
        if counter(self).fetch_add(1, Ordering::SeqCst) >= most {
            counter(self).fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        let agent = self.clone();
        let spawned = std::thread::Builder::new().spawn(move || {
            task(&agent);
            counter(&agent).fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            counter(self).fetch_sub(1, Ordering::SeqCst);
        }
        spawned.is_ok()
    }

    /// Sends heartbeats for ever.
    fn run(self: &Arc<Self>) -> Result<()> {
        // Numbers of this start are above those of every start before.
        let mut sequence = self.layout.count_start()? << 32;
        let mut seen = String::new();
        let mut complaint = String::new();
        let mut current = self.current.clone();
        let mut engines = self.engines();
        let mut info = describe(&current.borrow_and_update(), &engines);
        loop {
            let now = self.engines();
            if current.has_changed().unwrap_or(false) || now != engines {
                let config = current.borrow_and_update().clone();
                engines = now;
                info = describe(&config, &engines);
                self.pace.set(config.node.transfer_mb_per_s);
                // As after a start: what we say of ourselves is looked at anew.
                sequence = self.layout.count_start()? << 32;
            }
            let began = Instant::now();
            sequence += 1;
            let sent = lease_clock();
            let coordinated = self.coordinated.load(Ordering::SeqCst) > 0;
            let moves = coordinated || self.tasks.load(Ordering::SeqCst) > 0;
            // The service answers at once to whoever has seen nothing.
            let report = self.report(&info, sequence, if moves { "" } else { &seen });
            let answer = self.client.post::<Orders>("/v1/agent/heartbeat", &report, None);
            let result = answer.and_then(|orders| {
                grant_lease(&self.layout.lease(), sent + Duration::from_millis(orders.lease_ms))?;
                self.obey(&orders)?;
                Ok(orders.mark)
            });
            match result {
                Ok(mark) => {
                    if !complaint.is_empty() {
                        log("the service answers again");
                        complaint.clear();
                    }
                    seen = mark;
                    // Others may stand still until we have told how far we are.
                    let spacing = if moves && !coordinated {
                        SPACING_IN_MOTION
                    } else {
                        SPACING
                    };
                    std::thread::sleep(spacing.saturating_sub(began.elapsed()));
                }
                Err(error) => {
                    let text = error.chain();
                    if text != complaint {
                        log(format!("heartbeat: {text}"));
                        complaint = text;
                    }
                    let mut state = self.state();
                    state.bad.extend(report.bad_images);
                    state.verified.extend(report.verified);
                    drop(state);
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// What there is.
    fn report(&self, info: &NodeInfo, sequence: u64, seen: &str) -> Report {
        // Results first: an image of which a result is told is then among the images.
        let (checkpoints, steps, bad_images, verified, fault, in_store) = {
            let mut state = self.state();
            let results: Vec<CheckpointReport> = state.results.values().cloned().collect();
            let steps = state.done.iter().map(|(id, done)| StepReport {
                id: *id,
                done: *done,
                connections: state.connections.get(id).cloned(),
            });
            let steps: Vec<StepReport> = steps.collect();
            (
                results,
                steps,
                std::mem::take(&mut state.bad),
                std::mem::take(&mut state.verified),
                state.fault.clone(),
                state.uploaded.iter().copied().collect(),
            )
        };
        Report {
            info: info.clone(),
            instance: self.instance.clone(),
            sequence,
            jobs: self.job_reports(),
            checkpoints,
            steps,
            own: self.own_images(),
            images: self.layout.images().into_keys().collect(),
            bad_images,
            verified,
            fault,
            fetching: self.layout.fetched_so_far(),
            in_store,
            seen: seen.to_string(),
        }
    }

    /// Does what is ordered, or begins to.
    fn obey(self: &Arc<Self>, orders: &Orders) -> Result<()> {
        {
            let mut state = self.state();
            for id in &orders.noted {
                state.results.remove(id);
            }
            state.known = orders.images.iter().map(|image| (image.id, image.clone())).collect();
            state.tickets = orders
                .images
                .iter()
                .map(|image| (image.id, image.ticket.clone()))
                .collect();
            state.said = Said::new(orders);
            let State {
                said,
                done,
                told,
                connections,
                ..
            } = &mut *state;
            told.retain(|(incarnation, _)| orders.jobs.iter().any(|order| order.incarnation == *incarnation));
            done.retain(|id, _| said.step(*id).is_some());
            connections.retain(|id, _| said.step(*id).is_some());
        }
        self.answered.notify_all();
        let held = self.layout.images();
        self.obey_jobs(orders, &held)?;
        self.obey_uploads(orders, &held);
        self.obey_images(orders, held)
    }
}

/// The URL of a store.
fn store_url(store: &str) -> String {
    match store.starts_with('/') {
        true => format!("file://{store}"),
        false => store.to_string(),
    }
}

/// What the node says of itself (GCA-ENV-3).
fn describe(config: &Config, engines: &Published) -> NodeInfo {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram as u64 * u64::from(memory.mem_unit);
    let mut properties = facts::of_machine(&config.node.directory);
    // What the operator says holds.
    properties.extend(config.node.properties.clone());
    properties.insert("arch".into(), text(uname.machine()));
    properties.insert("kernel".into(), text(uname.release()));
    properties.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    if config.node.area.is_some() {
        properties.insert("area".into(), "yes".into());
    }
    if config.node.store.is_some() {
        let encrypted = if config.encryption.is_used() { "yes" } else { "no" };
        properties.insert("store-encrypted".into(), encrypted.into());
    }
    NodeInfo {
        name: config.node.name(),
        address: config.node.address(),
        slots: config.node.slots.unwrap_or(processors),
        memory_mb: config.node.memory_mb.unwrap_or(bytes >> 20),
        has_store: config.node.store.is_some(),
        images: config.node.directory.display().to_string(),
        store: config.node.store.as_deref().map(store_url).unwrap_or_default(),
        // A manager starts one command after the other, and units are restarted together.
        has_units: config.node.manager.is_empty(),
        engines: engines.names.clone(),
        classes: engines.classes.clone(),
        abilities: engines.abilities.clone(),
        properties,
    }
}

/// Starts the agent, and the server that other nodes fetch images from.
pub async fn start(parts: &mut JoinSet<Result<()>>, config: &Config, agent: Arc<Agent>) -> Result<()> {
    serve::start(parts, config, agent.clone()).await?;
    agent.await_managed_again();
    agent.begin_scrub().context(|| "begin to look at images")?;
    agent.watch_engines().context(|| "begin to look at engines")?;
    agent.watch_health().context(|| "begin to look at the node")?;
    agent.watch_usage().context(|| "begin to look at what jobs use")?;
    // A thread of its own rather than of the runtime's: it never ends.
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("agent".into())
        .spawn(move || ended.send(agent.run()))
        .context(|| "start the agent")?;
    parts.spawn(async {
        end.await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the agent has come upon a defect")))
    });
    Ok(())
}
