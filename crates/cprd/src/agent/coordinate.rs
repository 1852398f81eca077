//! Units of jobs that have several: what their coordinator says is passed on to `cpr`, step by step, and how far it is
//! to the coordinator.
//!
//! A unit that stands still goes on by itself where the coordinator has given the checkpoint up, where the service is
//! silent, and where this agent is killed: `cpr` sees that nobody is there any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_api::agent::{CheckpointOrder, CheckpointReport, CheckpointResult, Incarnation, JobOrder, Orders, Phase};
use cpr_api::model::Step;
use cpr_types::{Connection, ConnectionEnd, Error, ErrorKind, Links, Result};

use super::hooks::When;
use super::jobs::{LONG, stored, text};
use super::layout::Record;
use super::process::{Call, Front};
use super::{Agent, State};
use crate::log;

/// How long `cpr` waits for a word of ours; longer than any step of other units may take.
const PATIENCE: &str = "30m";
/// Looks whether a unit has gone on by itself at least so often, in case nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// What the service has said in its last answer, as far as units wait for it.
#[derive(Default)]
pub(super) struct Said {
    /// Incarnations that we are to have.
    units: BTreeMap<Incarnation, Fate>,
    /// Checkpoints that are asked for, and whether nothing else of their job waits for them.
    asked: BTreeMap<i64, bool>,
    /// How far checkpoints may be.
    steps: BTreeMap<i64, Step>,
    /// Connections to other units that are to be emptied for them.
    channels: BTreeMap<i64, Vec<Connection>>,
    /// When that was, and how long it holds.
    heard: Option<(Instant, Duration)>,
}

/// What is to become of a unit.
struct Fate {
    /// It may run.
    go: bool,
    /// It is to be ended.
    kill: bool,
    /// What becomes of its connections to others.
    links: Option<Links>,
}

impl Said {
    pub(super) fn new(orders: &Orders) -> Said {
        let asked = || orders.jobs.iter().flat_map(|order| &order.checkpoints);
        let alone = |order: &JobOrder| {
            let alone = order.checkpoints.len() == 1 && !order.kill;
            order
                .checkpoints
                .iter()
                .map(|asked| (asked.id, alone))
                .collect::<Vec<_>>()
        };
        let fate = |order: &JobOrder| Fate {
            go: order.go,
            kill: order.kill,
            links: order.links.clone(),
        };
        Said {
            units: orders
                .jobs
                .iter()
                .map(|order| (order.incarnation, fate(order)))
                .collect(),
            asked: orders.jobs.iter().flat_map(alone).collect(),
            steps: asked().filter_map(|asked| Some((asked.id, asked.step?))).collect(),
            channels: asked().map(|asked| (asked.id, asked.channels.clone())).collect(),
            heard: Some((Instant::now(), Duration::from_millis(orders.lease_ms))),
        }
    }

    /// How far a checkpoint may be; none where it is given up, or done.
    pub(super) fn step(&self, id: i64) -> Option<Step> {
        self.steps.get(&id).copied()
    }

    /// Whether a checkpoint is still asked for, and nothing presses.
    pub(super) fn may_wait(&self, id: i64) -> bool {
        self.asked.get(&id).copied().unwrap_or(false)
    }

    /// Whether the unit is not ours any more, or is to be ended.
    fn ends(&self, incarnation: Incarnation) -> bool {
        self.units.get(&incarnation).is_none_or(|fate| fate.kill)
    }

    fn may_go(&self, incarnation: Incarnation) -> bool {
        self.units.get(&incarnation).is_some_and(|fate| fate.go && !fate.kill)
    }

    fn links(&self, incarnation: Incarnation) -> Option<&Links> {
        self.units.get(&incarnation).and_then(|fate| fate.links.as_ref())
    }

    fn channels(&self, id: i64) -> Vec<Connection> {
        self.channels.get(&id).cloned().unwrap_or_default()
    }

    /// How long the service may still be silent before it is better to go on: a while before the lease lapses, with
    /// which jobs are ended.
    fn patience(&self) -> Duration {
        let left = |(heard, lease): (Instant, Duration)| (lease * 3 / 4).saturating_sub(heard.elapsed());
        self.heard.map_or(Duration::ZERO, left)
    }
}

/// What became of a wait for the coordinator.
enum Heard {
    Go,
    /// It is given up.
    GivenUp,
    /// The unit is to be ended as it stands.
    Ends,
    /// The service is silent.
    Silent,
}

impl Agent {
    /// Waits until `decide` has an answer to what the service says. A unit that stands still does not wait for one that
    /// is silent.
    fn hear(&self, stands: bool, mut decide: impl FnMut(&State) -> Option<Heard>) -> Heard {
        let mut state = self.state();
        loop {
            if let Some(heard) = decide(&state) {
                return heard;
            }
            let patience = state.said.patience();
            if stands && patience.is_zero() {
                return Heard::Silent;
            }
            let waited = self
                .answered
                .wait_timeout(state, patience.clamp(Duration::from_millis(1), LOOK));
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn hear_step(&self, incarnation: Incarnation, id: i64, step: Step) -> Result<()> {
        let heard = self.hear(step > Step::Stop, |state| match state.said.step(id) {
            _ if state.said.ends(incarnation) => Some(Heard::Ends),
            None => Some(Heard::GivenUp),
            Some(now) => (now >= step).then_some(Heard::Go),
        });
        let why = match heard {
            Heard::Go => return Ok(()),
            Heard::GivenUp => "it was given up",
            Heard::Ends => "its unit is ended",
            Heard::Silent => "the service is silent",
        };
        Err(Error::new(ErrorKind::Cancelled, why))
    }

    /// Restarts a unit: it runs when all units of its job are there.
    pub(super) fn start_unit(&self, order: &JobOrder, call: &Call<'_>) -> Result<()> {
        let incarnation = order.incarnation;
        let mut front = self.runner.open(call)?;
        if front.await_one_of(&["unconnected", "built"], || true)?.0 == "unconnected"
            && !self.link(incarnation, &mut front)?
        {
            front.give_up();
            return Ok(());
        }
        self.state().built.insert(incarnation);
        let heard = self.hear(false, |state| match state.said.ends(incarnation) {
            true => Some(Heard::Ends),
            false => state.said.may_go(incarnation).then_some(Heard::Go),
        });
        let result = match heard {
            Heard::Go => front.say("go").and_then(|()| front.finish()).map(drop),
            _ => {
                front.give_up();
                Ok(())
            }
        };
        self.state().built.remove(&incarnation);
        result
    }

    /// Has a unit make its connections to others again, when all are ready for it; whether it has. Where they are not
    /// wanted any more it is left.
    fn link(&self, incarnation: Incarnation, front: &mut Front) -> Result<bool> {
        self.state().ready.insert(incarnation);
        let heard = self.hear(false, |state| match state.said.ends(incarnation) {
            true => Some(Heard::Ends),
            false => state.said.links(incarnation).is_some().then_some(Heard::Go),
        });
        let links = self.state().said.links(incarnation).cloned();
        let result = match (heard, links) {
            (Heard::Go, Some(links)) => {
                let links = serde_json::to_string(&links)
                    .map_err(|error| Error::new(ErrorKind::Internal, "write down connections").with_source(error))?;
                front.say(&format!("link {links}"))?;
                let wanted = || !self.state().said.ends(incarnation);
                match front.await_one_of(&["built"], wanted) {
                    Err(error) if error.kind() == ErrorKind::Cancelled => Ok(false),
                    result => result.map(|_| true),
                }
            }
            _ => Ok(false),
        };
        self.state().ready.remove(&incarnation);
        result
    }

    /// How `cpr` is told that it is told everything step by step.
    pub(super) fn step_options() -> [String; 2] {
        ["--steps".into(), PATIENCE.into()]
    }

    /// Begins to take part in a checkpoint of several units.
    pub(super) fn obey_step(self: &Arc<Self>, order: &JobOrder, record: &Record, asked: &CheckpointOrder, held: bool) {
        let (id, incarnation, stop) = (asked.id, order.incarnation, asked.stop);
        let busy = {
            let state = self.state();
            if state.results.contains_key(&id) || state.conducting.contains(&incarnation) {
                return;
            }
            state.busy.contains(&incarnation)
        };
        let result = match (asked.step, self.phase(incarnation, record, busy)) {
            // It was made before we were killed, and all units may go on.
            (Some(Step::Resume), _) if held => None,
            (Some(Step::Prepare), Phase::Running) => None,
            (_, Phase::Starting | Phase::Ready | Phase::Built) => return,
            (_, Phase::Running) => Some("the agent of its node was started again"),
            _ => Some("its unit has ended"),
        };
        if let Some(message) = result {
            let message = message.to_string();
            let result = CheckpointResult::Failed { message };
            self.state().results.insert(id, CheckpointReport { id, result });
            return;
        }
        {
            let mut state = self.state();
            state.making.insert(id);
            state.conducting.insert(incarnation);
        }
        let order = order.clone();
        let begun = self.coordinated(move |agent| {
            let result = match held {
                true => stored(&agent.layout.image(order.owner.uid, id), &serde_json::Value::Null),
                false => agent.take_part(&order, id, stop),
            };
            if let Err(error) = &result {
                log(format!("checkpoint {id} of unit {incarnation}: {}", error.chain()));
            }
            let result = result.unwrap_or_else(|error| CheckpointResult::Failed { message: error.chain() });
            let made = matches!(result, CheckpointResult::Stored { .. });
            let mut state = agent.state();
            state.results.insert(id, CheckpointReport { id, result });
            state.making.remove(&id);
            state.conducting.remove(&incarnation);
            drop(state);
            if made {
                agent.try_hook(When::AfterCheckpoint, incarnation, &order.owner, Some(id));
            }
        });
        if !begun {
            let mut state = self.state();
            state.making.remove(&id);
            state.conducting.remove(&incarnation);
        }
    }

    fn take_part(&self, order: &JobOrder, id: i64, stop: bool) -> Result<CheckpointResult> {
        let incarnation = order.incarnation;
        let path = self.layout.image(order.owner.uid, id);
        let mut arguments: Vec<String> = ["checkpoint", "--json", "-o"].map(String::from).into();
        arguments.push(text(&path)?);
        arguments.extend(Agent::step_options());
        arguments.push(incarnation.to_string());
        let mut front = self.with_cpr(&order.owner, arguments, LONG, |runner, call| runner.open(&call))?;
        let mut conduct = || {
            front.await_step("prepared")?;
            self.step_done(id, Step::Prepare);
            self.hear_step(incarnation, id, Step::Stop)?;
            front.say("stop")?;
            let (_, stopped) = front.await_one_of(&["stopped"], || true)?;
            let connections = stopped.get("connections").cloned().unwrap_or_default();
            let connections: Vec<ConnectionEnd> = serde_json::from_value(connections).map_err(|error| {
                Error::new(ErrorKind::Internal, "connections are not understood").with_source(error)
            })?;
            self.state().connections.insert(id, connections);
            self.step_done(id, Step::Stop);
            self.hear_step(incarnation, id, Step::Drain)?;
            let channels = self.state().said.channels(id);
            if !channels.is_empty() {
                let channels = serde_json::to_string(&channels)
                    .map_err(|error| Error::new(ErrorKind::Internal, "write down connections").with_source(error))?;
                front.say(&format!("drain {channels}"))?;
                front.await_step("drained")?;
            }
            self.step_done(id, Step::Drain);
            self.hear_step(incarnation, id, Step::Save)?;
            front.say("save")?;
            front.await_step("saved")?;
            if stop {
                // All are known before any is ended, and then `cpr` sees nothing but that its job is gone.
                front.say("keep")?;
                front.await_step("kept")?;
                let result = stored(&path, &serde_json::Value::Null)?;
                self.state().results.insert(id, CheckpointReport { id, result });
                return Ok(());
            }
            self.step_done(id, Step::Save);
            self.hear_step(incarnation, id, Step::Resume)?;
            front.say("resume")
        };
        match conduct() {
            Ok(()) if stop => self.stand(front, incarnation, id, &path),
            Ok(()) => stored(&path, &front.finish()?),
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                front.give_up();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Has a unit that is saved stand still until it is ended with all others.
    fn stand(
        &self,
        front: Front,
        incarnation: Incarnation,
        id: i64,
        path: &std::path::Path,
    ) -> Result<CheckpointResult> {
        let heard = self.hear(true, |state| match state.said.step(id) {
            _ if state.said.ends(incarnation) => Some(Heard::Ends),
            None => Some(Heard::GivenUp),
            Some(_) => None,
        });
        match heard {
            Heard::Ends => {
                let result = stored(path, &serde_json::Value::Null);
                front.await_end();
                result
            }
            Heard::Silent => {
                front.give_up();
                Err(Error::new(ErrorKind::Cancelled, "the service is silent"))
            }
            Heard::Go | Heard::GivenUp => {
                front.give_up();
                Err(Error::new(ErrorKind::Cancelled, "it was given up"))
            }
        }
    }

    fn step_done(&self, id: i64, step: Step) {
        self.state().done.insert(id, step);
    }
}
