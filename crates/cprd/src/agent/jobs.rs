//! Jobs: started, watched, checkpointed, ended and forgotten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cpr_api::agent::{
    CheckpointReport, CheckpointResult, Incarnation, JobOrder, JobReport, Orders, Phase, SignalOrder,
};
use cpr_api::model::{NATIVE, Owner};
use cpr_node::{JobStatus, LEASE_LAPSED, Phase as Local, StateDir};
use cpr_types::{Error, ErrorKind, Result};

use super::hooks::When;
use super::layout::{Record, Results};
use super::process::{Call, Runner};
use super::{Agent, images};
use crate::log;

/// How long a job may take to start, and an image to be made or restarted.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// How long `cpr` may take for anything else.
const SHORT: Duration = Duration::from_secs(60);
/// Rounds in which an image could be had from nowhere, until its job cannot be restarted here.
const MOST_ROUNDS: u32 = 3;

impl Agent {
    /// How `cpr` says the job of an incarnation is; none where there is no such job.
    pub(super) fn status(&self, incarnation: Incarnation, uid: u32) -> Option<JobStatus> {
        let state = StateDir::look(&self.layout.state(uid), uid).ok()?;
        state.job(&incarnation.to_string()).and_then(|job| job.status()).ok()
    }

    pub(super) fn phase(&self, incarnation: Incarnation, record: &Record, busy: bool) -> Phase {
        if self.state().built.contains(&incarnation) {
            return Phase::Built;
        }
        if self.state().ready.contains(&incarnation) {
            return Phase::Ready;
        }
        if let Some((kind, message)) = &record.failed {
            return Phase::Failed {
                kind: *kind,
                message: message.clone(),
            };
        }
        let Some(status) = self.status(incarnation, record.owner.uid) else {
            return match (record.began, record.killed) {
                // In case it is being killed it is about to be there.
                _ if busy => Phase::Starting,
                (_, true) => Phase::Killed,
                (false, _) => Phase::Starting,
                (true, _) => Phase::Lost,
            };
        };
        let lapsed = status.error.as_deref() == Some(LEASE_LAPSED);
        match (status.phase, status.exit_code) {
            (Local::Created | Local::Starting, _) => Phase::Starting,
            (Local::Running | Local::Suspended, _) => Phase::Running,
            (Local::Stopped, _) => Phase::Stopped,
            (Local::Crashed, _) if lapsed || record.killed => Phase::Killed,
            (Local::Exited | Local::Crashed, Some(code)) => match &record.results {
                // Staging is part of its life (GFD.90).
                Some(Results::Here) if !record.killed => Phase::Running,
                Some(Results::Kept(message)) if code == 0 => Phase::Kept {
                    message: message.clone(),
                },
                _ => Phase::Exited {
                    code,
                    signal: status.signal,
                },
            },
            // Its supervisor did not live to see it end.
            (Local::Exited | Local::Crashed, None) => Phase::Lost,
            (Local::Failed, _) => Phase::Failed {
                kind: ErrorKind::Internal,
                message: status.error.unwrap_or_default(),
            },
        }
    }

    /// How everything is.
    pub(super) fn job_reports(&self) -> Vec<JobReport> {
        let state = self.state();
        let records: Vec<(Incarnation, Record, bool)> = state
            .records
            .iter()
            .map(|(incarnation, record)| (*incarnation, record.clone(), state.busy.contains(incarnation)))
            .collect();
        let usage = state.usage.clone();
        drop(state);
        records
            .into_iter()
            .map(|(incarnation, record, busy)| JobReport {
                incarnation,
                phase: self.phase(incarnation, &record, busy),
                signalled: record.signalled,
                usage: usage.get(&incarnation).copied(),
            })
            .collect()
    }

    /// Changes a record, on disk first.
    pub(super) fn put(&self, incarnation: Incarnation, record: Record) -> Result<()> {
        self.layout.put_record(incarnation, &record)?;
        self.state().records.insert(incarnation, record);
        Ok(())
    }

    /// Does something with an incarnation beside the heartbeats, unless something is done with it already.
    pub(super) fn busy_with(
        self: &Arc<Self>,
        incarnation: Incarnation,
        task: impl FnOnce(&Arc<Agent>) + Send + 'static,
    ) {
        if !self.state().busy.insert(incarnation) {
            return;
        }
        let task = move |agent: &Arc<Agent>| {
            task(agent);
            agent.state().busy.remove(&incarnation);
        };
        // A unit may wait for others.
        let begun = match incarnation.unit {
            Some(_) => self.coordinated(task),
            None => self.beside(task),
        };
        if !begun {
            self.state().busy.remove(&incarnation);
        }
    }

    /// Brings jobs to where they are ordered to be.
    pub(super) fn obey_jobs(self: &Arc<Self>, orders: &Orders, held: &BTreeMap<i64, PathBuf>) -> Result<()> {
        for order in &orders.jobs {
            self.obey_job(order, held)?;
        }
        let known: Vec<(Incarnation, Record)> = self
            .state()
            .records
            .iter()
            .map(|(i, record)| (*i, record.clone()))
            .collect();
        // Also those that are only on disk: an agent that was killed may have left a start behind that ended later.
        let known = known
            .into_iter()
            .map(|(incarnation, record)| (incarnation, record.owner));
        let known: BTreeMap<Incarnation, Owner> = self.layout.jobs().into_iter().chain(known).collect();
        for (incarnation, owner) in known {
            if !orders.jobs.iter().any(|order| order.incarnation == incarnation) {
                self.busy_with(incarnation, move |agent| {
                    if let Err(error) = agent.forget(incarnation, &owner) {
                        log(format!("removing job {incarnation}: {}", error.chain()));
                    }
                });
            }
        }
        Ok(())
    }

    fn obey_job(self: &Arc<Self>, order: &JobOrder, held: &BTreeMap<i64, PathBuf>) -> Result<()> {
        let incarnation = order.incarnation;
        let known = self.state().records.get(&incarnation).cloned();
        let mut record = known.unwrap_or_else(|| Record {
            owner: order.owner.clone(),
            began: false,
            killed: false,
            failed: None,
            results: (!order.spec.stage_out.is_empty()).then_some(Results::Here),
            saves_itself: Agent::saves_itself(&order.engine),
            signalled: 0,
        });
        let busy = self.state().busy.contains(&incarnation);
        if let Some(text) = order.tell.clone().filter(|_| !record.killed)
            && !self.state().told.contains(&(incarnation, text.clone()))
            && self.phase(incarnation, &record, busy) == Phase::Running
        {
            // Before it is saved or ended: while it is told it could not be. The next orders are heard soon.
            let owner = order.owner.clone();
            self.busy_with(incarnation, move |agent| {
                agent.tell(incarnation, &owner, &text);
                agent.state().told.insert((incarnation, text));
            });
            return Ok(());
        }
        if order.kill {
            if !record.killed {
                record.killed = true;
                self.put(incarnation, record.clone())?;
            }
            if matches!(
                self.phase(incarnation, &record, false),
                Phase::Starting | Phase::Running
            ) {
                let owner = order.owner.clone();
                self.busy_with(incarnation, move |agent| {
                    if let Err(error) = agent.kill(incarnation, &owner) {
                        log(format!("ending job {incarnation}: {}", error.chain()));
                    }
                });
            }
            return Ok(());
        }
        if !record.began && !record.killed && record.failed.is_none() && !busy {
            return self.begin(order, record, held);
        }
        if record.results == Some(Results::Here) && !busy && self.has_exited(incarnation, &record) {
            self.bring_away(order, record);
            return Ok(());
        }
        // What ends it may have read its state already: the signal is for its next start then.
        let ends = order.checkpoints.iter().any(|checkpoint| checkpoint.stop);
        let signal = order.signals.iter().find(|signal| signal.id > record.signalled);
        if let Some(signal) = signal.filter(|_| !busy && !ends)
            && self.phase(incarnation, &record, busy) == Phase::Running
        {
            self.signal(order, record.clone(), *signal);
        }
        if matches!(self.phase(incarnation, &record, busy), Phase::Running) || !order.checkpoints.is_empty() {
            self.obey_checkpoints(order, &record, held);
        }
        Ok(())
    }

    /// Whether its program has ended by itself.
    fn has_exited(&self, incarnation: Incarnation, record: &Record) -> bool {
        let status = self.status(incarnation, record.owner.uid);
        status.is_some_and(|status| {
            let lapsed = status.error.as_deref() == Some(LEASE_LAPSED);
            matches!(status.phase, Local::Exited | Local::Crashed) && status.exit_code.is_some() && !lapsed
        })
    }

    /// Brings away what a job has made that has ended.
    fn bring_away(self: &Arc<Self>, order: &JobOrder, mut record: Record) {
        let (incarnation, spec) = (order.incarnation, order.spec.clone());
        self.busy_with(incarnation, move |agent| {
            record.results = Some(match agent.stage_out(incarnation, &record.owner, &spec) {
                Ok(()) => Results::Away,
                Err(error) => {
                    log(format!("job {incarnation}: {}", error.chain()));
                    Results::Kept(error.chain())
                }
            });
            // It may have been ended meanwhile.
            let killed = agent
                .state()
                .records
                .get(&incarnation)
                .is_some_and(|known| known.killed);
            record.killed |= killed;
            if let Err(error) = agent.put(incarnation, record) {
                log(format!(
                    "noting what became of the files of job {incarnation}: {}",
                    error.chain()
                ));
            }
        });
    }

    /// Starts a job, as soon as its image is there.
    fn begin(self: &Arc<Self>, order: &JobOrder, mut record: Record, held: &BTreeMap<i64, PathBuf>) -> Result<()> {
        let incarnation = order.incarnation;
        if let Some(from) = order.from.filter(|from| !held.contains_key(from)) {
            let rounds = self.state().missed.get(&from).map_or(0, |(rounds, _)| *rounds);
            if rounds >= MOST_ROUNDS {
                self.state().missed.remove(&from);
                let message = format!("the image of checkpoint {from} could be had from nowhere");
                record.failed = Some((ErrorKind::Io, message));
            }
            return self.put(incarnation, record);
        }
        record.began = true;
        self.put(incarnation, record.clone())?;
        let order = order.clone();
        self.busy_with(incarnation, move |agent| {
            if let Err(error) = agent.start(&order) {
                log(format!("starting job {incarnation}: {}", error.chain()));
                record.failed = Some((error.kind(), error.chain()));
                if let Err(error) = agent.put(incarnation, record) {
                    log(format!("noting why job {incarnation} did not start: {}", error.chain()));
                }
            }
        });
        Ok(())
    }

    fn start(&self, order: &JobOrder) -> Result<()> {
        let spec = &order.spec;
        let name = order.incarnation.to_string();
        self.layout.prepare(&order.owner)?;
        self.hook(When::BeforeJob, order.incarnation, &order.owner, None)?;
        self.stage_in(order)?;
        let lease = self.layout.lease();
        let mut arguments: Vec<String> = match order.from {
            None => vec!["run".into()],
            Some(_) => vec!["restart".into()],
        };
        let forks = self.forks();
        // A manager would end what leaves its hands.
        let background: &[&str] = if forks { &["--detach"] } else { &[] };
        let rest = ["--json", "--name", &name, "--lease"];
        arguments.extend(background.iter().chain(&rest).map(ToString::to_string));
        arguments.push(text(&lease)?);
        // An image knows its engine.
        if order.from.is_none() && order.engine != NATIVE {
            arguments.extend(["--engine".to_string(), order.engine.clone()]);
        }
        let steps = order.from.is_some() && order.incarnation.unit.is_some();
        if steps {
            arguments.extend(Agent::step_options());
        }
        match order.from {
            Some(from) => arguments.push(text(&self.layout.image(order.owner.uid, from))?),
            None => {
                let job = order.incarnation.job;
                let output = spec.output.clone().unwrap_or_else(|| match order.incarnation.unit {
                    None => format!("cpr-{job}.out"),
                    Some(unit) => format!("cpr-{job}-{unit}.out"),
                });
                let output = Path::new(&spec.directory).join(output);
                arguments.extend(["--output".to_string(), text(&output)?, "--".to_string()]);
                arguments.extend(spec.command.iter().cloned());
            }
        }
        let call = Call {
            owner: &order.owner,
            state: &self.layout.state(order.owner.uid),
            directory: Path::new(&spec.directory),
            environment: Some(&spec.environment),
            arguments,
            limit: LONG,
        };
        match steps {
            true => self.start_unit(order, &call),
            false if forks => self.runner.run(call).map(drop),
            false => self.start_managed(order, &call, self.runner.cpr()),
        }
    }

    /// A call of `cpr` for a job's user, where nothing of the job's own surroundings matters.
    pub(super) fn with_cpr<T>(
        &self,
        owner: &Owner,
        arguments: Vec<String>,
        limit: Duration,
        call: impl FnOnce(&Runner, Call<'_>) -> Result<T>,
    ) -> Result<T> {
        let prepared = Call {
            owner,
            state: &self.layout.state(owner.uid),
            directory: Path::new("/"),
            environment: None,
            arguments,
            limit,
        };
        call(&self.runner, prepared)
    }

    pub(super) fn cpr(&self, owner: &Owner, arguments: &[&str], limit: Duration) -> Result<serde_json::Value> {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.with_cpr(owner, arguments, limit, Runner::run)
    }

    /// Sends a signal to the first process of a job, once.
    fn signal(self: &Arc<Self>, order: &JobOrder, mut record: Record, signal: SignalOrder) {
        let incarnation = order.incarnation;
        self.busy_with(incarnation, move |agent| {
            // On disk first: rather not at all than twice.
            record.signalled = signal.id;
            let owner = record.owner.clone();
            let number = signal.number.to_string();
            let name = incarnation.to_string();
            let sent = agent
                .put(incarnation, record)
                .and_then(|()| agent.cpr(&owner, &["kill", "--json", "--signal", &number, &name], SHORT));
            match sent {
                Err(error) if matches!(error.kind(), ErrorKind::Gone | ErrorKind::NotFound) => {}
                Err(error) => log(format!("signalling job {incarnation}: {}", error.chain())),
                Ok(_) => {}
            }
        });
    }

    /// Ends a job, where it lives, and waits until it has ended.
    fn kill(&self, incarnation: Incarnation, owner: &Owner) -> Result<()> {
        let name = incarnation.to_string();
        match self.cpr(owner, &["kill", "--json", "--reset", "--signal", "KILL", &name], SHORT) {
            Err(error) if matches!(error.kind(), ErrorKind::Gone | ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    /// Ends a job and removes everything of it.
    fn forget(&self, incarnation: Incarnation, owner: &Owner) -> Result<()> {
        self.cancel_managed(incarnation, owner)?;
        if self.layout.state(owner.uid).exists() {
            match self.cpr(owner, &["rm", "--json", "--force", &incarnation.to_string()], SHORT) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let began = self.state().records.get(&incarnation).is_none_or(|record| record.began);
        if began {
            self.try_hook(When::AfterJob, incarnation, owner, None);
        }
        self.layout.remove_record(incarnation)?;
        self.state().records.remove(&incarnation);
        Ok(())
    }

    /// Makes the first of the checkpoints that are asked for; at once they would only be in each other's way. One whose
    /// image is there already was made before we were killed.
    fn obey_checkpoints(self: &Arc<Self>, order: &JobOrder, record: &Record, held: &BTreeMap<i64, PathBuf>) {
        let Some(asked) = order.checkpoints.first() else {
            return;
        };
        if asked.step.is_some() {
            return self.obey_step(order, record, asked, held.contains_key(&asked.id));
        }
        let incarnation = order.incarnation;
        let (id, stop, own) = (asked.id, asked.stop, asked.own);
        let made = held.contains_key(&id);
        let busy = {
            let state = self.state();
            if state.results.contains_key(&id) || state.making.contains(&id) {
                return;
            }
            state.busy.contains(&incarnation)
        };
        match self.phase(incarnation, record, busy) {
            _ if made => {}
            Phase::Running => {}
            Phase::Starting | Phase::Ready | Phase::Built => return,
            _ => {
                let message = "its job has ended".to_string();
                let result = CheckpointResult::Failed { message };
                self.state().results.insert(id, CheckpointReport { id, result });
                return;
            }
        }
        self.state().making.insert(id);
        let owner = order.owner.clone();
        // What ends a job is copied while it runs, where its engine can.
        let how: &[&str] = match stop {
            true if self.engines().is_live(&order.engine) => &["--stop", "--live"],
            true => &["--stop"],
            false => &[],
        };
        let patience = order
            .spec
            .save_low_s
            .filter(|_| !made && !stop && own.is_none())
            .map(Duration::from_secs);
        let save = move |agent: &Arc<Agent>| {
            if let Some(patience) = patience {
                agent.await_little(id, incarnation, &owner, patience);
            }
            let result = agent.in_motion(|| match own {
                Some(number) if !made => agent.take_own(incarnation, &owner, id, number),
                _ => agent.checkpoint(incarnation, &owner, id, how, made),
            });
            let result = result.unwrap_or_else(|error| {
                log(format!("checkpoint {id} of job {incarnation}: {}", error.chain()));
                CheckpointResult::Failed { message: error.chain() }
            });
            let made = matches!(result, CheckpointResult::Stored { .. });
            let mut state = agent.state();
            state.results.insert(id, CheckpointReport { id, result });
            state.making.remove(&id);
            drop(state);
            if made {
                agent.try_hook(When::AfterCheckpoint, incarnation, &owner, Some(id));
            }
        };
        let begun = match patience {
            Some(_) => self.patiently(save),
            None => self.beside(save),
        };
        if !begun {
            self.state().making.remove(&id);
        }
    }

    fn checkpoint(
        &self,
        incarnation: Incarnation,
        owner: &Owner,
        id: i64,
        how: &[&str],
        made: bool,
    ) -> Result<CheckpointResult> {
        let path = self.layout.image(owner.uid, id);
        let mut told = serde_json::Value::Null;
        if !made {
            let name = incarnation.to_string();
            let output = text(&path)?;
            let mut arguments = vec!["checkpoint", "--json", "-o", output.as_str()];
            arguments.extend(how);
            arguments.push(name.as_str());
            told = self.cpr(owner, &arguments, LONG)?;
        }
        stored(&path, &told)
    }
}

/// An image that is there, of which `cpr` has told this.
pub(super) fn stored(path: &Path, told: &serde_json::Value) -> Result<CheckpointResult> {
    let milliseconds = |name: &str| told.get(name)?.as_f64().map(|ms| ms.max(0.0).ceil() as u64);
    let (bytes, blake3) = images::hash(path)?;
    Ok(CheckpointResult::Stored {
        bytes,
        blake3,
        cost_ms: milliseconds("freeze_ms"),
        took_ms: milliseconds("total_ms"),
    })
}

pub(super) fn text(path: &Path) -> Result<String> {
    let text = path.to_str();
    text.map(str::to_string)
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("path {} is not UTF-8", path.display())))
}
