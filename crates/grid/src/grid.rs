//! The service as a whole, and the steps that requests, reports and time have in common.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError, RwLock};

use cpr_api::agent::{Fetching, Incarnation};
use cpr_api::model::{Checkpoint, CheckpointState, Job, JobState, NodeState, Used};
use cpr_types::{Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::db::{self, About, Db, Write};
use crate::interval;
use crate::lifecycle::{self, Change};
use crate::retention;
use crate::units::{self, is_settled};

/// Failures of the system are counted for so long.
const LATELY_MS: i64 = 30 * 24 * 3600 * 1000;

/// What an operator can choose.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A node that has not been heard of for so long is lost, milliseconds.
    pub lease_ms: u64,
    /// A node gives up so much earlier than the service gives it up: time for its jobs to end.
    pub margin_ms: u64,
    /// Nodes that are to hold each image where there is no common store.
    pub copies: usize,
    /// What the checkpoints of one user may take, bytes; none: as much as there is.
    pub quota: Option<u64>,
    /// The same for users for whom something else is said.
    pub quotas: BTreeMap<String, u64>,
    /// Records of checkpoints that are gone are kept for so long after their job has finished, milliseconds; none: for
    /// ever.
    pub records_ms: Option<i64>,
    /// Jobs of lower priority are saved and queued again where one of higher priority would have to wait.
    pub preempt: bool,
    /// Jobs that have run for so long are saved and queued again where one of the same priority waits for their room,
    /// milliseconds; none: never.
    pub slice_ms: Option<u64>,
    /// Whether there is a user of this name on the machine of the service.
    pub is_user: fn(&str) -> bool,
    /// How long all units of a job may take to get ready, to stop, and to empty their connections, milliseconds.
    pub step_ms: u64,
    /// How long all may take to save themselves, and to have their images hashed, milliseconds.
    pub save_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            lease_ms: 10_000,
            margin_ms: 4_000,
            copies: 2,
            quota: None,
            quotas: BTreeMap::new(),
            records_ms: None,
            preempt: false,
            slice_ms: None,
            is_user: |_| false,
            step_ms: 60_000,
            save_ms: 900_000,
        }
    }
}

/// When a node was last heard of.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) instance: String,
    pub(crate) sequence: u64,
    /// By the steady clock.
    pub(crate) heard_ms: u64,
    /// It has lapsed; only a transaction gives the node another one.
    pub(crate) lapsed: bool,
    /// What is wrong with the node, as its detector has last said.
    pub(crate) fault: Option<String>,
    /// Images on their way to the node, as it has last told.
    pub(crate) fetching: Vec<Fetching>,
    /// What incarnations on the node have used, as it has last told.
    pub(crate) usage: HashMap<Incarnation, Used>,
}

/// The grid service.
#[derive(Debug)]
pub struct Grid {
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    policy: RwLock<Policy>,
    /// Of every node that is not lost. Not in the database: a clock that never jumps has no meaning there.
    pub(crate) leases: Mutex<HashMap<String, Lease>>,
    /// Makes tickets for images; another one with every start.
    ticket_key: [u8; 32],
    /// Makes secrets of restarts, of which a unit may hear before and another after a start of the service.
    link_key: [u8; 32],
    /// When old records were last looked through, by the steady clock.
    pub(crate) swept_ms: Mutex<Option<u64>>,
}

impl Grid {
    /// Takes over the grid in a database. Nodes have a whole lease from now on: whatever an earlier service gave them
    /// ends before that.
    pub async fn open(db: Db, policy: Policy, clock: Clock) -> Result<Grid> {
        let mut leases = HashMap::new();
        for node in db::nodes(&mut *db.read().await?).await? {
            if node.state != NodeState::Lost {
                let lease = Lease {
                    instance: node.instance,
                    sequence: 0,
                    heard_ms: clock.steady_ms(),
                    lapsed: false,
                    fault: None,
                    fetching: Vec::new(),
                    usage: HashMap::new(),
                };
                leases.insert(node.info.name, lease);
            }
        }
        Ok(Grid {
            ticket_key: db::random()?,
            link_key: db.secret("links").await?,
            db,
            clock,
            policy: RwLock::new(policy),
            leases: Mutex::new(leases),
            swept_ms: Mutex::new(None),
        })
    }

    /// What the operator has chosen.
    pub fn policy(&self) -> Policy {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes by another policy from now on; leases stay as they were given.
    pub fn set_policy(&self, policy: Policy) {
        let mut current = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *current = Policy {
            lease_ms: current.lease_ms,
            margin_ms: current.margin_ms,
            ..policy
        };
    }

    /// A number that is kept under a name; none where there is none.
    pub async fn mark(&self, name: &str) -> Result<Option<i64>> {
        let mut connection = self.db.read().await?;
        let sql = "SELECT value FROM counters WHERE name = $1";
        let rows = db::rows(&mut connection, sql, &[name.into()]).await?;
        rows.first().map(|row| db::number(row, 0)).transpose()
    }

    /// Keeps a number under a name.
    pub async fn set_mark(&self, name: &str, value: i64) -> Result<()> {
        let mut write = self.db.write().await?;
        let sql = "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2";
        db::execute(&mut write.tx, sql, &[name.into(), value.into()]).await?;
        write.commit().await
    }

    /// Tells of everything that changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.db.changes()
    }

    pub(crate) fn leases(&self) -> std::sync::MutexGuard<'_, HashMap<String, Lease>> {
        // Whoever panicked had changed single entries only.
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What units that are made again show each other before they take up their connections, in this start of their
    /// job.
    pub(crate) fn link_secret(&self, job: i64, incarnation: u32) -> [u8; 32] {
        let text = format!("link {job} {incarnation}");
        *blake3::keyed_hash(&self.link_key, text.as_bytes()).as_bytes()
    }

    /// What shows that its holder may have an image.
    pub(crate) fn ticket(&self, checkpoint: i64) -> String {
        blake3::keyed_hash(&self.ticket_key, &checkpoint.to_le_bytes())
            .to_hex()
            .to_string()
    }

    /// Lets something happen to a job, with everything that follows from it.
    pub(crate) async fn change(&self, write: &mut Write<'_>, job: &mut Job, change: Change) -> Result<()> {
        let now = self.clock.wall_ms();
        let before = job.clone();
        lifecycle::apply(job, change, now)?;
        if *job == before {
            return Ok(());
        }
        if before.state.is_placed() && !job.state.is_placed() {
            self.keep_usage(&before, job);
        }
        if job.state.is_over() {
            job.signals.clear();
        }
        let blocked = is_blocked(write, job).await?;
        write.put_job(job, blocked).await?;
        if before.state.is_placed() && !job.state.is_placed() {
            self.close_incarnation(write, &before, job).await?;
        }
        if before.state != job.state {
            let node = job.node.as_deref().or(before.node.as_deref());
            let reason = job.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            let place = job
                .node
                .as_deref()
                .map(|node| format!(" on {node}"))
                .unwrap_or_default();
            let about = About { job: Some(job), node };
            let kind = format!("job.{}", job.state.name());
            write
                .note(
                    now,
                    &kind,
                    about,
                    format!("job {} is {}{place}{reason}", job.id, job.state.name()),
                )
                .await?;
        }
        if job.state.is_over() && !before.state.is_over() {
            self.release_dependents(write, job).await?;
            self.free_surplus(write, job).await?;
        }
        Ok(())
    }

    /// Writes down how an incarnation ended. Checkpoints of it that are not complete on its node never will be.
    async fn close_incarnation(&self, write: &mut Write<'_>, before: &Job, after: &Job) -> Result<()> {
        let sql = "UPDATE incarnations SET ended_ms = $3, outcome = $4, broken = $5 WHERE job = $1 AND number = $2";
        let values = [
            before.id.into(),
            i64::from(before.incarnation).into(),
            self.clock.wall_ms().into(),
            after.reason.as_deref().unwrap_or_default().into(),
            i64::from(after.failures > before.failures).into(),
        ];
        db::execute(&mut write.tx, sql, &values).await?;
        for mut checkpoint in db::checkpoints_of(&mut write.tx, before.id).await? {
            if checkpoint.state == CheckpointState::Pending {
                let why = "its job ended before it was made".to_string();
                self.end_checkpoint(write, after, &mut checkpoint, CheckpointState::Failed, why)
                    .await?;
            }
        }
        Ok(())
    }

    /// Jobs that waited for this one may start, or never will.
    async fn release_dependents(&self, write: &mut Write<'_>, job: &Job) -> Result<()> {
        let sql =
            "SELECT j.doc FROM dependencies d JOIN jobs j ON j.id = d.job WHERE d.needs = $1 AND j.state = 'queued'";
        for mut dependent in db::docs::<Job>(&mut write.tx, sql, &[job.id.into()]).await? {
            if job.state == JobState::Finished {
                let blocked = is_blocked(write, &dependent).await?;
                write.put_job(&dependent, blocked).await?;
            } else if dependent.incarnation == 0 {
                let why = format!("job {}, which it waits for, is {}", job.id, job.state.name());
                // Boxed: what waits for this one is told in the same way.
                Box::pin(self.change(write, &mut dependent, Change::Refused { why })).await?;
            }
        }
        Ok(())
    }

    /// Gives a checkpoint its last state, in which it has no copies.
    pub(crate) async fn end_checkpoint(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        checkpoint: &mut Checkpoint,
        state: CheckpointState,
        why: String,
    ) -> Result<()> {
        checkpoint.state = state;
        checkpoint.locations.clear();
        checkpoint.reason = Some(why.clone());
        write.put_checkpoint(checkpoint, &[]).await?;
        if checkpoint.part.is_some() {
            return self.part_ended(write, job, checkpoint, why).await;
        }
        if checkpoint.is_set() {
            self.end_parts(write, job, checkpoint, &why).await?;
        }
        if state == CheckpointState::Freed {
            self.unregister(write, checkpoint).await?;
        }
        let about = About {
            job: Some(job),
            node: Some(&checkpoint.node),
        };
        let what = format!(
            "checkpoint {} of job {} is {}: {why}",
            checkpoint.id,
            job.id,
            state.name()
        );
        write
            .note(
                self.clock.wall_ms(),
                &format!("checkpoint.{}", state.name()),
                about,
                what,
            )
            .await
    }

    /// Frees the checkpoints of a job that are no longer needed.
    pub(crate) async fn free_surplus(&self, write: &mut Write<'_>, job: &Job) -> Result<()> {
        let mut checkpoints = db::checkpoints_of(&mut write.tx, job.id).await?;
        for (id, why) in retention::surplus(job, &checkpoints, self.clock.wall_ms()) {
            if let Some(checkpoint) = checkpoints.iter_mut().find(|c| c.id == id) {
                self.end_checkpoint(write, job, checkpoint, CheckpointState::Freed, why.to_string())
                    .await?;
            }
        }
        Ok(())
    }

    /// Adapts the time between a job's checkpoints to what the newest one cost, and to how often the system has failed
    /// under jobs lately.
    pub(crate) async fn adapt(&self, write: &mut Write<'_>, job: &mut Job, made: &Checkpoint) -> Result<()> {
        let (cost_ms, took_ms) = (made.cost_ms.unwrap_or(0), made.took_ms.unwrap_or(0));
        let now = self.clock.wall_ms();
        let sql = "SELECT CAST(COALESCE(SUM(broken), 0) AS BIGINT), CAST(COALESCE(SUM(CASE WHEN ended_ms = 0 \
                   THEN CAST($1 AS BIGINT) ELSE ended_ms END - placed_ms), 0) AS BIGINT) FROM incarnations WHERE placed_ms > $2";
        let rows = db::rows(&mut write.tx, sql, &[now.into(), (now - LATELY_MS).into()]).await?;
        let (failures, ran_ms) = match rows.first() {
            Some(row) => (db::number(row, 0)?, db::number(row, 1)?),
            None => (0, 0),
        };
        let failure_ms = interval::mean_time_to_failure_ms(ran_ms, failures);
        let best_ms = interval::best_ms(cost_ms, took_ms, failure_ms);
        let before = job.interval_ms.replace(best_ms);
        write.put_job(job, false).await?;
        if before == Some(best_ms) {
            return Ok(());
        }
        let about = About {
            job: Some(job),
            node: job.node.as_deref(),
        };
        let what = format!(
            "job {} is to be saved every {} s: checkpoint {} of {} bytes cost {cost_ms} ms and took {took_ms} ms, and \
             the system fails every {:.0} s",
            job.id,
            best_ms / 1000,
            made.id,
            made.bytes,
            failure_ms / 1000.0
        );
        write.note(now, "job.adapted", about, what).await
    }

    /// Frees older checkpoints of a user who has more than they may. `job` is the one that has got another.
    pub(crate) async fn keep_to_quota(&self, write: &mut Write<'_>, job: &Job) -> Result<()> {
        let policy = self.policy();
        let Some(allowed) = policy.quotas.get(&job.owner.name).copied().or(policy.quota) else {
            return Ok(());
        };
        let owner = [job.owner.name.as_str().into()];
        let sql = "SELECT doc FROM checkpoints WHERE owner = $1 AND state IN ('stored', 'complete') AND part_of = 0 ORDER BY id";
        let mut held: Vec<Checkpoint> = db::docs(&mut write.tx, sql, &owner).await?;
        let sql = "SELECT doc FROM jobs WHERE owner = $1 AND id IN \
                   (SELECT job FROM checkpoints WHERE owner = $1 AND state IN ('stored', 'complete'))";
        let jobs: Vec<Job> = db::docs(&mut write.tx, sql, &owner).await?;
        let (go, too_many) = retention::over_quota(&jobs, &held, allowed);
        for checkpoint in held.iter_mut().filter(|c| go.contains(&c.id)) {
            let Some(of) = jobs.iter().find(|known| known.id == checkpoint.job) else {
                continue;
            };
            let why = format!("{} has more than the quota", job.owner.name);
            self.end_checkpoint(write, of, checkpoint, CheckpointState::Freed, why)
                .await?;
        }
        if too_many > 0 {
            let about = About {
                job: Some(job),
                node: None,
            };
            let what = format!(
                "checkpoints of {} take {too_many} bytes more than the quota, and none of them can go",
                job.owner.name
            );
            write
                .note(self.clock.wall_ms(), "checkpoint.over-quota", about, what)
                .await?;
        }
        Ok(())
    }

    /// Asks for a checkpoint of a running job; one that is asked for already and not begun as far as we know serves
    /// both.
    pub(crate) async fn begin_checkpoint(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        stop: bool,
    ) -> Result<Checkpoint> {
        let missing = job.units.iter().enumerate().find(|(_, unit)| !is_settled(unit));
        let standing = match units::may_be_saved(job, stop) {
            true => self.standing(write, job).await?,
            false => None,
        };
        if let (Some((number, unit)), None) = (missing, &standing) {
            let state = unit.phase.name();
            return Err(Error::new(
                ErrorKind::Busy,
                format!("unit {number} of job {} is {state}, and is to go on alone", job.id),
            )
            .with_hint("ask again when it runs, as `cpr jobs ID` tells"));
        }
        let known = db::checkpoints_of(&mut write.tx, job.id).await?;
        let waiting = known
            .iter()
            .find(|c| c.state == CheckpointState::Pending && c.stop == stop && c.own.is_none());
        if let Some(waiting) = waiting {
            return Ok(waiting.clone());
        }
        let now = self.clock.wall_ms();
        let generation = known.last().map_or(1, |last| last.generation + 1);
        let mut checkpoint = new_checkpoint(write.next("checkpoint").await?, job, generation, stop, now);
        if job.units.is_empty() {
            write.put_checkpoint(&checkpoint, &[]).await?;
        } else {
            for mut earlier in known.into_iter().filter(|c| c.state == CheckpointState::Pending) {
                let why = "another one is to end the job".to_string();
                self.end_checkpoint(write, job, &mut earlier, CheckpointState::Failed, why)
                    .await?;
            }
            self.begin_set(write, job, &mut checkpoint, standing.unwrap_or_default())
                .await?;
        }
        job.checkpoint_begun_ms = Some(now);
        write.put_job(job, false).await?;
        let about = About {
            job: Some(job),
            node: job.node.as_deref(),
        };
        let what = format!("checkpoint {} of job {} is asked for", checkpoint.id, job.id);
        write.note(now, "checkpoint.pending", about, what).await?;
        Ok(checkpoint)
    }
}

/// A checkpoint as it is when it is asked for.
pub(crate) fn new_checkpoint(id: i64, job: &Job, generation: u32, stop: bool, now_ms: i64) -> Checkpoint {
    Checkpoint {
        id,
        job: job.id,
        owner: job.owner.clone(),
        incarnation: job.incarnation,
        generation,
        state: CheckpointState::Pending,
        own: None,
        name: None,
        ttl_s: None,
        stop,
        parent: job.from,
        engine: job.engine.clone(),
        node: job.node.clone().unwrap_or_default(),
        bytes: 0,
        blake3: String::new(),
        cost_ms: None,
        took_ms: None,
        created_ms: now_ms,
        stored_ms: None,
        reason: None,
        locations: Vec::new(),
        arriving: Vec::new(),
        units: Vec::new(),
        coordination: None,
        part: None,
    }
}

/// Whether a job waits for others.
pub(crate) async fn is_blocked(write: &mut Write<'_>, job: &Job) -> Result<bool> {
    if job.state != JobState::Queued || job.incarnation > 0 {
        return Ok(false);
    }
    for needed in &job.spec.after {
        let needed = db::job(&mut write.tx, *needed).await?;
        if needed.is_none_or(|job| job.state != JobState::Finished) {
            return Ok(true);
        }
    }
    Ok(false)
}
