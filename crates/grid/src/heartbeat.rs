//! Heartbeats: what a node reports. What it is told to have is in `orders.rs`.
//!
//! A report without news costs no transaction.

use std::collections::{BTreeSet, HashMap};

use cpr_api::agent::{
    BadImage, CheckpointReport, CheckpointResult, Incarnation, JobReport, OwnImage, Phase, Report, StepReport,
};
use cpr_api::model::{
    Checkpoint, CheckpointState, Intent, Job, JobState, Location, Node, NodeInfo, NodeState, UnitPhase, Used,
};
use cpr_types::{Error, ErrorKind, Result};
use sqlx::AnyConnection;

use crate::caller::Caller;
use crate::db::{self, About, Account, Write};
use crate::grid::{Grid, Lease, new_checkpoint};
use crate::lifecycle::Change;
use crate::signals;
use crate::units::Happened;

/// Jobs that a node has or may have.
pub(crate) async fn placed(connection: &mut AnyConnection, node: &str) -> Result<Vec<Job>> {
    let sql = "SELECT doc FROM jobs WHERE node = $1 AND state IN ('starting', 'running') ORDER BY id";
    db::docs(connection, sql, &[node.into()]).await
}

/// Checkpoints that a node makes.
pub(crate) async fn pending(connection: &mut AnyConnection, node: &str) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE state = 'pending' AND node = $1 ORDER BY id";
    db::docs(connection, sql, &[node.into()]).await
}

/// Checkpoints a node holds (`held`) or is to hold.
pub(crate) async fn located(connection: &mut AnyConnection, node: &str, held: bool) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT c.doc FROM locations l JOIN checkpoints c ON c.id = l.checkpoint \
               WHERE l.node = $1 AND l.held = $2 AND c.state IN ('stored', 'complete') ORDER BY c.id";
    db::docs(connection, sql, &[node.into(), i64::from(held).into()]).await
}

/// What a job is called on its node, or one of its units.
pub(crate) fn incarnation(job: &Job, unit: Option<u32>) -> Incarnation {
    Incarnation {
        job: job.id,
        number: unit.map_or(job.incarnation, |unit| job.incarnation_of(unit)),
        unit,
    }
}

/// What a report says that is not known yet.
#[derive(Default)]
struct News {
    jobs: Vec<(Job, Option<u32>, Phase)>,
    steps: Vec<StepReport>,
    made: Vec<(Checkpoint, CheckpointReport)>,
    arrived: Vec<i64>,
    in_store: Vec<i64>,
    vanished: Vec<Checkpoint>,
    verified: Vec<i64>,
    bad: Vec<BadImage>,
    own: Vec<(Job, OwnImage)>,
    signalled: Vec<JobReport>,
}

impl News {
    async fn find(connection: &mut AnyConnection, report: &Report) -> Result<News> {
        let name = report.info.name.as_str();
        let mut news = News::default();
        let told = |incarnation: Incarnation| {
            let told = report.jobs.iter().find(|told| told.incarnation == incarnation);
            told.map(|told| told.phase.clone())
        };
        let given = |incarnation: Incarnation| report.jobs.iter().find(|told| told.incarnation == incarnation);
        for job in placed(connection, name).await? {
            let given = given(incarnation(&job, None)).filter(|told| signals::is_news(&job, told));
            news.signalled.extend(given.cloned());
            match (told(incarnation(&job, None)), job.state) {
                (Some(Phase::Starting | Phase::Ready | Phase::Built), _)
                | (Some(Phase::Running), JobState::Running) => {}
                // It may not have been told of the job so far.
                (None, JobState::Starting) => {}
                (None, _) => news.jobs.push((job, None, Phase::Lost)),
                (Some(phase), _) => news.jobs.push((job, None, phase)),
            }
        }
        for (job, number) in db::units_on(connection, name).await? {
            let Some(known) = job.units.get(number as usize).map(|unit| unit.phase) else {
                continue;
            };
            let given = given(incarnation(&job, Some(number))).filter(|told| signals::is_news(&job, told));
            news.signalled.extend(given.cloned());
            match (told(incarnation(&job, Some(number))), known) {
                (Some(Phase::Starting), _) => {}
                (Some(Phase::Ready), UnitPhase::Ready | UnitPhase::Built) => {}
                (Some(Phase::Built), UnitPhase::Built) | (Some(Phase::Running), UnitPhase::Running) => {}
                (None, UnitPhase::Starting) => {}
                (None, _) => news.jobs.push((job, Some(number), Phase::Lost)),
                (Some(phase), _) => news.jobs.push((job, Some(number), phase)),
            }
        }
        if !report.checkpoints.is_empty() || !report.steps.is_empty() {
            for checkpoint in pending(connection, name).await? {
                let before = checkpoint.part.as_ref().map(|part| part.done);
                let told = report.steps.iter().find(|told| told.id == checkpoint.id);
                if let Some((told, before)) = told.zip(before)
                    && Some(told.done) > before
                {
                    news.steps.push(told.clone());
                }
                if let Some(told) = report.checkpoints.iter().find(|told| told.id == checkpoint.id) {
                    news.made.push((checkpoint, told.clone()));
                }
            }
        }
        for own in &report.own {
            if let Some(job) = db::job(connection, own.incarnation.job).await?
                && is_news(connection, &job, *own, name).await?
            {
                news.own.push((job, *own));
            }
        }
        let images: BTreeSet<i64> = report.images.iter().copied().collect();
        let held = located(connection, name, true).await?;
        let is_in_store = |c: &Checkpoint| c.locations.iter().any(|place| place.node.is_empty());
        news.in_store = held
            .iter()
            .filter(|c| report.in_store.contains(&c.id) && !is_in_store(c))
            .map(|c| c.id)
            .collect();
        news.verified = held
            .iter()
            .map(|c| c.id)
            .filter(|id| report.verified.contains(id))
            .collect();
        news.vanished = held.into_iter().filter(|c| !images.contains(&c.id)).collect();
        let wanted = located(connection, name, false).await?;
        news.arrived = wanted.iter().map(|c| c.id).filter(|id| images.contains(id)).collect();
        for bad in report.bad_images.iter().filter(|bad| bad.damaged) {
            let held = located(connection, &bad.location, true).await?;
            if held.iter().any(|c| c.id == bad.id) {
                news.bad.push(bad.clone());
            }
        }
        Ok(news)
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.steps.is_empty()
            && self.made.is_empty()
            && self.arrived.is_empty()
            && self.in_store.is_empty()
            && self.vanished.is_empty()
            && self.verified.is_empty()
            && self.bad.is_empty()
            && self.own.is_empty()
            && self.signalled.is_empty()
    }
}

impl Grid {
    /// Takes a node's report. Whoever gets no error may give the node its lease, counted from when the report was sent.
    pub async fn report(&self, caller: &Caller, report: &Report) -> Result<()> {
        let name = report.info.name.as_str();
        caller.require_node(name)?;
        let good =
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !good {
            return Err(
                Error::new(ErrorKind::Usage, format!("{name:?} cannot be the name of a node"))
                    .with_hint("use 1 to 64 letters, digits, `.`, `_` or `-`"),
            );
        }
        if !self.renew(report)? {
            self.admit(report).await?;
        }
        let news = News::find(&mut *self.db.read().await?, report).await?;
        if !news.is_empty() {
            self.take(report).await?;
        }
        self.hear_detector(report).await
    }

    /// Takes down what the detector of a node says, when it says something else than before (GFD93-EH-9).
    async fn hear_detector(&self, report: &Report) -> Result<()> {
        let name = &report.info.name;
        let known = self.leases().get(name).and_then(|lease| lease.fault.clone());
        if known == report.fault {
            return Ok(());
        }
        if let Some(reason) = &report.fault {
            self.report_fault(name, reason, "its detector").await?;
        }
        if let Some(lease) = self.leases().get_mut(name) {
            lease.fault.clone_from(&report.fault);
        }
        Ok(())
    }

    /// Renews the lease of a node that has one; false where it has none.
    fn renew(&self, report: &Report) -> Result<bool> {
        let mut leases = self.leases();
        let Some(lease) = leases.get_mut(&report.info.name).filter(|lease| !lease.lapsed) else {
            return Ok(false);
        };
        if lease.instance != report.instance {
            return Err(
                Error::new(ErrorKind::InUse, format!("there is another node {}", report.info.name)).with_hint(
                    "give each node a name of its own; after a reinstallation wait until the old lease has lapsed",
                ),
            );
        }
        if report.sequence <= lease.sequence {
            return Err(Error::new(ErrorKind::Gone, "the report came late, after a newer one"));
        }
        let known = lease.sequence > 0;
        lease.sequence = report.sequence;
        lease.heard_ms = self.clock.steady_ms();
        lease.fetching.clone_from(&report.fetching);
        lease.usage = usage(report);
        // What it says of itself may have changed with a start of its agent or of the service.
        Ok(known && report.sequence & 0xffff_ffff != 1)
    }

    /// Writes down that a node is there, or is back.
    async fn admit(&self, report: &Report) -> Result<()> {
        let name = &report.info.name;
        let now = self.clock.wall_ms();
        let mut write = self.db.write().await?;
        let known = db::nodes(&mut write.tx)
            .await?
            .into_iter()
            .find(|node| node.info.name == *name);
        let drain = known.as_ref().is_some_and(|node| node.drain);
        let node = Node {
            info: report.info.clone(),
            state: if drain { NodeState::Draining } else { NodeState::Ready },
            drain,
            fault: known.as_ref().and_then(|node| node.fault.clone()),
            instance: report.instance.clone(),
            first_seen_ms: known.as_ref().map_or(now, |node| node.first_seen_ms),
            last_seen_ms: now,
        };
        write.put_node(&node).await?;
        if let Some(known) = known
            .as_ref()
            .filter(|known| has_other_engines(&known.info, &node.info))
        {
            let gone = known
                .info
                .engines
                .iter()
                .filter(|name| !node.info.engines.contains(name));
            let gone: Vec<&str> = gone.map(String::as_str).collect();
            let gone = match gone.is_empty() {
                true => String::new(),
                false => format!(", and no longer {}", gone.join(", ")),
            };
            let about = About {
                job: None,
                node: Some(name),
            };
            let what = format!("node {name} has the engines {}{gone}", node.info.engines.join(", "));
            write.note(now, "node.engines", about, what).await?;
        }
        if known.is_none_or(|known| known.state != node.state) {
            let about = About {
                job: None,
                node: Some(name),
            };
            write
                .note(
                    now,
                    &format!("node.{}", node.state.name()),
                    about,
                    format!("node {name} is there"),
                )
                .await?;
        }
        write.commit().await?;
        let lease = Lease {
            instance: report.instance.clone(),
            sequence: report.sequence,
            heard_ms: self.clock.steady_ms(),
            lapsed: false,
            fault: None,
            fetching: report.fetching.clone(),
            usage: usage(report),
        };
        self.leases().insert(name.clone(), lease);
        Ok(())
    }

    /// Writes down what is new in a report.
    async fn take(&self, report: &Report) -> Result<()> {
        let name = report.info.name.as_str();
        let mut write = self.db.write().await?;
        // Looked for again: much may have happened before we could write.
        let news = News::find(&mut write.tx, report).await?;
        for told in &news.signalled {
            self.signalled(&mut write, told, name).await?;
        }
        for told in news.steps {
            self.step_done(&mut write, told).await?;
        }
        for (job, own) in news.own {
            self.own_begun(&mut write, &job, own).await?;
        }
        for (checkpoint, told) in news.made {
            self.checkpoint_made(&mut write, checkpoint, told).await?;
        }
        for id in news.arrived {
            self.copy_arrived(&mut write, id, name).await?;
        }
        for id in news.in_store {
            self.copy_arrived(&mut write, id, "").await?;
        }
        for bad in news.bad {
            self.copy_gone(&mut write, bad.id, &bad.location, &bad.message).await?;
        }
        for checkpoint in news.vanished {
            self.copy_gone(&mut write, checkpoint.id, name, "it is gone from its place")
                .await?;
        }
        for id in news.verified {
            self.copy_verified(&mut write, id, name).await?;
        }
        for (job, unit, phase) in news.jobs {
            // As the steps before have left it.
            let Some(now) = db::job(&mut write.tx, job.id).await? else {
                continue;
            };
            match unit {
                None => self.phase_changed(&mut write, now, phase, name).await?,
                // Of the same start; another unit may have been the last.
                Some(unit) if now.incarnation_of(unit) == job.incarnation_of(unit) && now.state.is_placed() => {
                    self.unit_phase_changed(&mut write, now, unit, phase, name).await?;
                }
                Some(_) => {}
            }
        }
        write.commit().await
    }

    /// A program has saved itself: the node is to bring the image where all are kept, and it is a checkpoint like
    /// others then (GCA-UC-5.1.8).
    async fn own_begun(&self, write: &mut Write<'_>, job: &Job, own: OwnImage) -> Result<()> {
        let known = db::checkpoints_of(&mut write.tx, job.id).await?;
        let generation = known.last().map_or(1, |last| last.generation + 1);
        let now = self.clock.wall_ms();
        let checkpoint = Checkpoint {
            own: Some(own.number),
            ..new_checkpoint(write.next("checkpoint").await?, job, generation, false, now)
        };
        write.put_checkpoint(&checkpoint, &[]).await?;
        let about = About {
            job: Some(job),
            node: job.node.as_deref(),
        };
        let what = format!("checkpoint {} of job {} was made by its program", checkpoint.id, job.id);
        write.note(now, "checkpoint.own", about, what).await
    }

    async fn checkpoint_made(
        &self,
        write: &mut Write<'_>,
        checkpoint: Checkpoint,
        told: CheckpointReport,
    ) -> Result<()> {
        let now = self.clock.wall_ms();
        // As the steps before have left it.
        let known = db::checkpoint(&mut write.tx, checkpoint.id).await?;
        let Some(mut checkpoint) = known.filter(|c| c.state == CheckpointState::Pending) else {
            return Ok(());
        };
        let Some(mut job) = db::job(&mut write.tx, checkpoint.job).await? else {
            return Ok(());
        };
        match told.result {
            CheckpointResult::Stored {
                bytes,
                blake3,
                cost_ms,
                took_ms,
            } => {
                checkpoint.state = CheckpointState::Stored;
                checkpoint.bytes = bytes;
                checkpoint.blake3 = blake3;
                checkpoint.cost_ms = cost_ms;
                checkpoint.took_ms = took_ms;
                checkpoint.stored_ms = Some(now);
                checkpoint.locations = vec![Location {
                    node: checkpoint.node.clone(),
                    verified_ms: now,
                }];
                write.put_checkpoint(&checkpoint, &[]).await?;
                let more = Account {
                    images: 1,
                    bytes_stored: bytes,
                    ..Account::default()
                };
                write.account(&checkpoint.owner.name, more).await?;
                if let Some(set) = checkpoint.part.as_ref().map(|part| part.of) {
                    self.settle_copies(write, &job, checkpoint).await?;
                    return self.settle_set(write, set).await;
                }
                let about = About {
                    job: Some(&job),
                    node: Some(&checkpoint.node),
                };
                let what = format!("checkpoint {} of job {} is stored", checkpoint.id, job.id);
                write.note(now, "checkpoint.stored", about, what).await?;
                // It has got further: what failed before does not count any more.
                job.failures = 0;
                write.put_job(&job, false).await?;
                if job.spec.adapt && cost_ms.is_some() {
                    self.adapt(write, &mut job, &checkpoint).await?;
                }
                self.settle_copies(write, &job, checkpoint).await
            }
            CheckpointResult::Failed { message } => {
                let stop = checkpoint.stop;
                self.end_checkpoint(write, &job, &mut checkpoint, CheckpointState::Failed, message)
                    .await?;
                if stop {
                    self.change(write, &mut job, Change::GoOn).await?;
                }
                Ok(())
            }
        }
    }

    /// There is a copy at another place: a node, or the store (``).
    async fn copy_arrived(&self, write: &mut Write<'_>, id: i64, node: &str) -> Result<()> {
        // As the steps before have left it.
        let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await? else {
            return Ok(());
        };
        if !checkpoint.state.is_usable() {
            return Ok(());
        }
        checkpoint.locations.push(Location {
            node: node.to_string(),
            verified_ms: self.clock.wall_ms(),
        });
        let mut wanted = write.wanted(checkpoint.id).await?;
        wanted.retain(|name| name != node);
        write.put_checkpoint(&checkpoint, &wanted).await?;
        let more = Account {
            bytes_moved: checkpoint.bytes,
            ..Account::default()
        };
        write.account(&checkpoint.owner.name, more).await?;
        if let Some(job) = db::job(&mut write.tx, checkpoint.job).await? {
            let about = About {
                job: Some(&job),
                node: Some(node).filter(|node| !node.is_empty()),
            };
            let holder = about.node.unwrap_or("the store");
            let what = format!("{holder} holds a copy of checkpoint {id} of job {}", job.id);
            write
                .note(self.clock.wall_ms(), "checkpoint.copied", about, what)
                .await?;
            self.settle_copies(write, &job, checkpoint).await?;
        }
        Ok(())
    }

    /// A copy has been looked at and is whole.
    async fn copy_verified(&self, write: &mut Write<'_>, id: i64, node: &str) -> Result<()> {
        let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await? else {
            return Ok(());
        };
        let Some(place) = checkpoint.locations.iter_mut().find(|place| place.node == node) else {
            return Ok(());
        };
        place.verified_ms = self.clock.wall_ms();
        let wanted = write.wanted(id).await?;
        write.put_checkpoint(&checkpoint, &wanted).await
    }

    /// Takes down how the copy in the store that nodes share was found: whole, or why not (GFD93-SM-12).
    pub async fn store_checked(&self, id: i64, problem: Option<&str>) -> Result<()> {
        let mut write = self.db.write().await?;
        match problem {
            None => self.copy_verified(&mut write, id, "").await?,
            Some(why) => self.copy_gone(&mut write, id, "", why).await?,
        }
        write.commit().await
    }

    /// A copy is not there any more. With the last one the checkpoint is lost (GFD93-SM-12).
    async fn copy_gone(&self, write: &mut Write<'_>, id: i64, node: &str, why: &str) -> Result<()> {
        let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await? else {
            return Ok(());
        };
        let known = checkpoint.locations.len();
        checkpoint.locations.retain(|place| place.node != node);
        if checkpoint.locations.len() == known {
            // It was told before, perhaps in the same report with another reason.
            return Ok(());
        }
        let Some(job) = db::job(&mut write.tx, checkpoint.job).await? else {
            return Ok(());
        };
        if checkpoint.locations.is_empty() {
            return self
                .end_checkpoint(write, &job, &mut checkpoint, CheckpointState::Lost, why.to_string())
                .await;
        }
        // To be copied once more.
        checkpoint.state = CheckpointState::Stored;
        let mut wanted = write.wanted(id).await?;
        wanted.retain(|name| name != node);
        write.put_checkpoint(&checkpoint, &wanted).await?;
        if let Some(part) = &checkpoint.part {
            self.settle_set(write, part.of).await?;
        }
        let about = About {
            job: Some(&job),
            node: Some(node),
        };
        let what = format!("a copy of checkpoint {id} of job {} is lost: {why}", job.id);
        write
            .note(self.clock.wall_ms(), "checkpoint.copy-lost", about, what)
            .await
    }

    /// Whether a job was ended by a checkpoint of which the node has not told the result so far: it may be hashing the
    /// image. Going on without it would lose what the job has done since the checkpoint before.
    async fn awaits_last_checkpoint(&self, write: &mut Write<'_>, job: &Job) -> Result<bool> {
        if !matches!(job.intent, Some(Intent::Suspend | Intent::Move(_))) {
            return Ok(false);
        }
        let mut checkpoints = db::checkpoints_of(&mut write.tx, job.id).await?.into_iter();
        Ok(checkpoints.any(|c| c.stop && c.state == CheckpointState::Pending && c.incarnation == job.incarnation))
    }

    async fn phase_changed(&self, write: &mut Write<'_>, mut job: Job, phase: Phase, node: &str) -> Result<()> {
        let change = match phase {
            Phase::Starting | Phase::Ready | Phase::Built => return Ok(()),
            Phase::Running => Change::Began,
            Phase::Exited { code, signal } => Change::Exited { code, signal },
            Phase::Kept { message } => Change::Refused { why: kept(&message) },
            Phase::Stopped if self.awaits_last_checkpoint(write, &job).await? => return Ok(()),
            Phase::Stopped => Change::Stopped,
            Phase::Killed => Change::Killed,
            Phase::Lost => Change::Broke {
                why: format!("it vanished from node {node}"),
            },
            Phase::Failed { kind, message } => {
                self.start_failed(write, &job, job.from, kind, &message).await?;
                // Written down with the change below. That there was no room for it says nothing of its image.
                if kind != ErrorKind::TimedOut {
                    job.bad_starts.extend(job.from);
                }
                let own_fault = matches!(kind, ErrorKind::Usage | ErrorKind::NotFound | ErrorKind::Denied);
                let why = format!("it could not be started on {node}: {message}");
                match own_fault && job.from.is_none() {
                    true => Change::Refused { why },
                    false => Change::Broke { why },
                }
            }
        };
        self.change(write, &mut job, change).await
    }

    /// An image from which something could not be started is lost where it is that which is no good.
    async fn start_failed(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        from: Option<i64>,
        kind: ErrorKind,
        message: &str,
    ) -> Result<()> {
        if kind == ErrorKind::Damaged
            && let Some(from) = from
            && let Some(mut checkpoint) = db::checkpoint(&mut write.tx, from).await?
            && checkpoint.state.is_usable()
        {
            // Its bytes are those that were written, and yet they are no good.
            let why = format!("it cannot be restarted: {message}");
            self.end_checkpoint(write, job, &mut checkpoint, CheckpointState::Lost, why)
                .await?;
        }
        Ok(())
    }

    async fn unit_phase_changed(
        &self,
        write: &mut Write<'_>,
        mut job: Job,
        number: u32,
        phase: Phase,
        node: &str,
    ) -> Result<()> {
        let happened = match phase {
            Phase::Starting => return Ok(()),
            Phase::Ready => Happened::Ready,
            Phase::Built => Happened::Built,
            Phase::Running => Happened::Began,
            Phase::Exited { code, signal } => Happened::Exited { code, signal },
            Phase::Kept { message } => Happened::Refused { why: kept(&message) },
            Phase::Stopped => Happened::Broke {
                why: "a checkpoint of it alone ended it".into(),
            },
            Phase::Killed => Happened::Killed,
            Phase::Lost => Happened::Broke {
                why: format!("it vanished from node {node}"),
            },
            Phase::Failed { kind, message } => {
                let from = job.units.get(number as usize).and_then(|unit| unit.from);
                self.start_failed(write, &job, from, kind, &message).await?;
                if job.ending.is_none() {
                    // Once for each start, and written down with the change below.
                    job.bad_starts.extend(match job.state {
                        JobState::Running => from,
                        _ => job.from,
                    });
                }
                let own_fault = matches!(kind, ErrorKind::Usage | ErrorKind::NotFound | ErrorKind::Denied);
                let why = format!("it could not be started on {node}: {message}");
                match own_fault && from.is_none() {
                    true => Happened::Refused { why },
                    false => Happened::Broke { why },
                }
            }
        };
        self.unit_changed(write, &mut job, number, happened).await
    }
}

/// What incarnations of a node have used.
fn usage(report: &Report) -> HashMap<Incarnation, Used> {
    let used = |told: &JobReport| Some((told.incarnation, told.usage?));
    report.jobs.iter().filter_map(used).collect()
}

/// What becomes of a job that is done, but for its files.
fn kept(message: &str) -> String {
    format!("its program has ended with exit code 0, but {message}")
}

/// What jobs of a node are told with which something is wrong.
pub(crate) fn failing(node: &str, reason: &str) -> String {
    format!("node {node} is failing: {reason}")
}

/// Whether engines or what they can do have changed.
fn has_other_engines(before: &NodeInfo, now: &NodeInfo) -> bool {
    before.engines != now.engines || before.classes != now.classes || before.abilities != now.abilities
}

/// Whether an image that a program has made is one of a job that runs there, and not known so far.
async fn is_news(connection: &mut AnyConnection, job: &Job, own: OwnImage, node: &str) -> Result<bool> {
    let runs = job.state == JobState::Running && job.node.as_deref() == Some(node) && job.intent.is_none();
    if !runs || incarnation(job, None) != own.incarnation {
        return Ok(false);
    }
    let known = db::checkpoints_of(connection, job.id).await?;
    let mut of_start = known.iter().filter(|c| c.incarnation == job.incarnation);
    Ok(!of_start.any(|c| c.own >= Some(own.number)))
}
