//! Heartbeats: what a node reports, and what it is told to have.
//!
//! A report without news costs no transaction.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use cpr_api::agent::Incarnation;
use cpr_api::agent::{
    BadImage, CheckpointOrder, CheckpointReport, CheckpointResult, ImageOrder, JobOrder, JobReport, Orders, Phase,
    Report, Source,
};
use cpr_api::model::{Checkpoint, CheckpointState, Intent, Job, JobState, Location, Node, NodeState};
use cpr_types::{Error, ErrorKind, Result};
use sqlx::AnyConnection;

use crate::caller::Caller;
use crate::db::{self, About, Write};
use crate::grid::{Grid, Lease};
use crate::lifecycle::Change;

/// Jobs that a node has or may have.
async fn placed(connection: &mut AnyConnection, node: &str) -> Result<Vec<Job>> {
    let sql = "SELECT doc FROM jobs WHERE node = $1 AND state IN ('starting', 'running') ORDER BY id";
    db::docs(connection, sql, &[node.into()]).await
}

/// Checkpoints that a node makes.
async fn pending(connection: &mut AnyConnection, node: &str) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE state = 'pending' AND node = $1 ORDER BY id";
    db::docs(connection, sql, &[node.into()]).await
}

/// Checkpoints a node holds (`held`) or is to hold.
async fn located(connection: &mut AnyConnection, node: &str, held: bool) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT c.doc FROM locations l JOIN checkpoints c ON c.id = l.checkpoint \
               WHERE l.node = $1 AND l.held = $2 AND c.state IN ('stored', 'complete') ORDER BY c.id";
    db::docs(connection, sql, &[node.into(), i64::from(held).into()]).await
}

fn is_of(job: &Job, report: &JobReport) -> bool {
    report.incarnation.job == job.id && report.incarnation.number == job.incarnation
}

/// What a report says that is not known yet.
#[derive(Default)]
struct News {
    jobs: Vec<(Job, Phase)>,
    made: Vec<(Checkpoint, CheckpointReport)>,
    arrived: Vec<i64>,
    in_store: Vec<i64>,
    vanished: Vec<Checkpoint>,
    verified: Vec<i64>,
    bad: Vec<BadImage>,
}

impl News {
    async fn find(connection: &mut AnyConnection, report: &Report) -> Result<News> {
        let name = report.info.name.as_str();
        let mut news = News::default();
        for job in placed(connection, name).await? {
            let told = report
                .jobs
                .iter()
                .find(|told| is_of(&job, told))
                .map(|told| told.phase.clone());
            match (told, job.state) {
                (Some(Phase::Starting), _) | (Some(Phase::Running), JobState::Running) => {}
                // It may not have been told of the job so far.
                (None, JobState::Starting) => {}
                (None, _) => news.jobs.push((job, Phase::Lost)),
                (Some(phase), _) => news.jobs.push((job, phase)),
            }
        }
        if !report.checkpoints.is_empty() {
            for checkpoint in pending(connection, name).await? {
                if let Some(told) = report.checkpoints.iter().find(|told| told.id == checkpoint.id) {
                    news.made.push((checkpoint, told.clone()));
                }
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
            && self.made.is_empty()
            && self.arrived.is_empty()
            && self.in_store.is_empty()
            && self.vanished.is_empty()
            && self.verified.is_empty()
            && self.bad.is_empty()
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
            instance: report.instance.clone(),
            first_seen_ms: known.as_ref().map_or(now, |node| node.first_seen_ms),
            last_seen_ms: now,
        };
        write.put_node(&node).await?;
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
        for (job, phase) in news.jobs {
            // As the steps before have left it.
            if let Some(job) = db::job(&mut write.tx, job.id).await? {
                self.phase_changed(&mut write, job, phase, name).await?;
            }
        }
        write.commit().await
    }

    async fn checkpoint_made(
        &self,
        write: &mut Write<'_>,
        mut checkpoint: Checkpoint,
        told: CheckpointReport,
    ) -> Result<()> {
        let now = self.clock.wall_ms();
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
                let about = About {
                    job: Some(&job),
                    node: Some(&checkpoint.node),
                };
                let what = format!("checkpoint {} of job {} is stored", checkpoint.id, job.id);
                write.note(now, "checkpoint.stored", about, what).await?;
                // It has got further: what failed before does not count any more.
                job.failures = 0;
                write.put_job(&job, false).await?;
                if let (true, Some(cost_ms)) = (job.spec.adapt, cost_ms) {
                    self.adapt(write, &mut job, cost_ms, took_ms.unwrap_or(0)).await?;
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
        if let Some(job) = db::job(&mut write.tx, checkpoint.job).await? {
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
            Phase::Starting => return Ok(()),
            Phase::Running => Change::Began,
            Phase::Exited { code, signal } => Change::Exited { code, signal },
            Phase::Stopped if self.awaits_last_checkpoint(write, &job).await? => return Ok(()),
            Phase::Stopped => Change::Stopped,
            Phase::Killed => Change::Killed,
            Phase::Lost => Change::Broke {
                why: format!("it vanished from node {node}"),
            },
            Phase::Failed { kind, message } => {
                if kind == ErrorKind::Damaged
                    && let Some(from) = job.from
                    && let Some(mut checkpoint) = db::checkpoint(&mut write.tx, from).await?
                    && checkpoint.state.is_usable()
                {
                    // Its bytes are those that were written, and yet they are no good.
                    let why = format!("it cannot be restarted: {message}");
                    self.end_checkpoint(write, &job, &mut checkpoint, CheckpointState::Lost, why)
                        .await?;
                }
                // Written down with the change below.
                job.bad_starts.extend(job.from);
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

    /// What a node is to have and to do now (GCA-GCS-5).
    pub async fn orders(&self, report: &Report) -> Result<Orders> {
        let mut connection = self.db.read().await?;
        let name = report.info.name.as_str();
        let pending = pending(&mut connection, name).await?;
        let jobs = placed(&mut connection, name).await?;
        let mut images = located(&mut connection, name, true).await?;
        images.extend(located(&mut connection, name, false).await?);
        let nodes = db::nodes(&mut connection).await?;
        let still_pending: BTreeSet<i64> = pending.iter().map(|c| c.id).collect();
        let mut orders = Orders {
            lease_ms: self.policy().lease_ms.saturating_sub(self.policy().margin_ms),
            mark: String::new(),
            jobs: jobs.into_iter().map(|job| job_order(job, &pending)).collect(),
            images: images
                .iter()
                .map(|checkpoint| image_order(checkpoint, self.ticket(checkpoint.id), name, &nodes))
                .collect(),
            noted: Vec::new(),
        };
        let told = report.checkpoints.iter().map(|told| told.id);
        orders.noted = told.filter(|id| !still_pending.contains(id)).collect();
        let text = serde_json::to_string(&orders)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode orders").with_source(error))?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        orders.mark = format!("{:016x}", hasher.finish());
        Ok(orders)
    }
}

fn job_order(job: Job, pending: &[Checkpoint]) -> JobOrder {
    use cpr_api::model::Intent;
    let checkpoints = pending
        .iter()
        .filter(|c| c.job == job.id && c.incarnation == job.incarnation)
        .map(|c| CheckpointOrder { id: c.id, stop: c.stop })
        .collect();
    JobOrder {
        incarnation: Incarnation {
            job: job.id,
            number: job.incarnation,
        },
        kill: matches!(job.intent, Some(Intent::Cancel | Intent::Expire)),
        owner: job.owner,
        spec: job.spec,
        from: job.from,
        checkpoints,
    }
}

/// The node that is to put an image into the store that all nodes share: the first that holds it and can, until it is
/// there.
fn uploader<'a>(checkpoint: &'a Checkpoint, nodes: &[Node]) -> Option<&'a str> {
    let can = |name: &str| {
        let node = nodes.iter().find(|node| node.info.name == name);
        node.is_some_and(|node| node.state != NodeState::Lost && node.info.has_store)
    };
    let mut names = checkpoint.locations.iter().map(|place| place.node.as_str());
    match names.clone().any(str::is_empty) {
        true => None,
        false => names.find(|name| can(name)),
    }
}

fn image_order(checkpoint: &Checkpoint, ticket: String, node: &str, nodes: &[Node]) -> ImageOrder {
    // The common store first: reading it burdens no other node.
    let mut places: Vec<&Location> = checkpoint.locations.iter().filter(|place| place.node != node).collect();
    places.sort_by(|a, b| a.node.cmp(&b.node));
    let sources = places.into_iter().filter_map(|place| {
        if place.node.is_empty() {
            return Some(Source {
                node: String::new(),
                address: String::new(),
            });
        }
        let holder = nodes.iter().find(|node| node.info.name == place.node)?;
        (holder.state != NodeState::Lost && !holder.info.address.is_empty()).then(|| Source {
            node: place.node.clone(),
            address: holder.info.address.clone(),
        })
    });
    let own = checkpoint.locations.iter().find(|place| place.node == node);
    ImageOrder {
        verified_ms: own.map_or(0, |place| place.verified_ms),
        to_store: uploader(checkpoint, nodes) == Some(node),
        id: checkpoint.id,
        owner: checkpoint.owner.clone(),
        bytes: checkpoint.bytes,
        blake3: checkpoint.blake3.clone(),
        ticket,
        sources: sources.collect(),
    }
}
