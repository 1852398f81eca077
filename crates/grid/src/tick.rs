//! What happens by itself: leases lapse, jobs are placed, checkpoints fall due, copies are made, nodes are emptied, old
//! records go.

use std::collections::{BTreeMap, BTreeSet};

use cpr_api::model::{Checkpoint, CheckpointState, Intent, Job, JobSpec, JobState, NATIVE, Node, NodeState};
use cpr_types::{ErrorKind, Result};

use crate::db::{self, About, NEVER, Write};
use crate::grid::Grid;
use crate::lifecycle::Change;
use crate::placement::{self, Free, GiveWay, Room, Tenant};
use crate::retention::AFTERLIFE_MS;
use crate::units::{self, Happened};

/// Queued jobs that are looked at in one go.
const LOOK_AHEAD: i64 = 500;
/// Old records and checkpoints are looked for so often.
const SWEEP_MS: u64 = 600_000;
/// A job that could not be saved is left alone so long.
const PAUSE_MS: i64 = 60_000;
/// Where an image is not in the store after so long, copies on nodes have to do for the time being.
const STORE_MS: i64 = 30_000;
/// Answers are kept so long for requests that are repeated.
const REPEATABLE_MS: i64 = 24 * 3600 * 1000;

impl Grid {
    /// Does what is due. To be called whenever something has changed, and a few times a second.
    pub async fn tick(&self) -> Result<()> {
        self.lose_nodes().await?;
        self.run_schedules().await?;
        self.run_deadlines().await?;
        self.empty_nodes().await?;
        self.copy_images().await?;
        self.place_jobs().await?;
        self.place_units_alone().await?;
        self.expire_names().await?;
        self.sweep().await
    }

    /// Nodes whose lease has lapsed lose their jobs, which are queued again (GFD93-EH-1, GFD93-EH-3, GFD93-EH-5).
    async fn lose_nodes(&self) -> Result<()> {
        let now = self.clock.steady_ms();
        let mut lapsed = Vec::new();
        for (name, lease) in self.leases().iter_mut() {
            lease.lapsed |= now.saturating_sub(lease.heard_ms) > self.policy().lease_ms;
            if lease.lapsed {
                lapsed.push(name.clone());
            }
        }
        for name in lapsed {
            self.lose_node(&name).await?;
        }
        Ok(())
    }

    async fn lose_node(&self, name: &str) -> Result<()> {
        let mut write = self.db.write().await?;
        // It may have come back before we could write.
        if !self.leases().get(name).is_some_and(|lease| lease.lapsed) {
            return Ok(());
        }
        let now = self.clock.wall_ms();
        let why = format!("node {name} was not heard of for {} ms", self.policy().lease_ms);
        if let Some(mut node) = db::nodes(&mut write.tx)
            .await?
            .into_iter()
            .find(|n| n.info.name == name)
        {
            node.state = NodeState::Lost;
            node.last_seen_ms = now - self.policy().lease_ms as i64;
            write.put_node(&node).await?;
            let about = About {
                job: None,
                node: Some(name),
            };
            write.note(now, "node.lost", about, why.clone()).await?;
        }
        let sql = "SELECT doc FROM jobs WHERE node = $1 AND state IN ('starting', 'running') ORDER BY id";
        for mut job in db::docs::<Job>(&mut write.tx, sql, &[name.into()]).await? {
            self.change(&mut write, &mut job, Change::Broke { why: why.clone() })
                .await?;
        }
        for (job, unit) in db::units_on(&mut write.tx, name).await? {
            // As the units before have left it.
            if let Some(mut job) = db::job(&mut write.tx, job.id).await? {
                let happened = Happened::Broke { why: why.clone() };
                self.unit_changed(&mut write, &mut job, unit, happened).await?;
            }
        }
        write.commit().await?;
        // Unless it has come back since.
        self.leases().retain(|known, lease| known != name || !lease.lapsed);
        Ok(())
    }

    /// Checkpoints by schedule (XGCP-JCP-8), and time limits.
    async fn run_schedules(&self) -> Result<()> {
        let now = self.clock.wall_ms();
        let sql = "SELECT id FROM jobs WHERE state = 'running' AND due_ms <= $1";
        let due = db::rows(&mut *self.db.read().await?, sql, &[now.into()]).await?;
        for row in due {
            let mut write = self.db.write().await?;
            let Some(mut job) = db::job(&mut write.tx, db::number(&row, 0)?).await? else {
                continue;
            };
            if job.state != JobState::Running {
                continue;
            }
            let ran_ms = now - job.started_ms.unwrap_or(now);
            let limit = job
                .spec
                .time_limit_s
                .map(|s| i64::try_from(s.saturating_mul(1000)).unwrap_or(NEVER));
            if limit.is_some_and(|limit| ran_ms >= limit)
                && !matches!(job.intent, Some(Intent::Cancel | Intent::Expire))
            {
                self.change(&mut write, &mut job, Change::End(Intent::Expire)).await?;
            } else if !units::may_be_saved(&job, false) {
                // When it runs again.
                continue;
            } else if job.intent.is_none() && job.ending.is_none() && job.every_ms().is_some() {
                let begun = job.checkpoint_begun_ms;
                match self.begin_checkpoint(&mut write, &mut job, false).await {
                    // A unit that is not there can only go on with all others.
                    Err(error) if error.kind() == ErrorKind::Busy => continue,
                    begun => begun?,
                };
                if job.checkpoint_begun_ms == begun {
                    // The one before is not made yet: the next one is due after another period.
                    job.checkpoint_begun_ms = Some(now);
                    write.put_job(&job, false).await?;
                }
            } else {
                continue;
            }
            write.commit().await?;
        }
        Ok(())
    }

    /// Running jobs of nodes that are drained go elsewhere.
    async fn empty_nodes(&self) -> Result<()> {
        let sql = "SELECT doc FROM jobs WHERE state = 'running' AND id IN \
                   (SELECT j.id FROM nodes n JOIN jobs j ON j.node = n.name WHERE n.state = 'draining' \
                   UNION SELECT u.job FROM nodes n JOIN units u ON u.node = n.name WHERE n.state = 'draining') ORDER BY id";
        let running: Vec<Job> = db::docs(&mut *self.db.read().await?, sql, &[]).await?;
        let free_to_go = |job: &Job| job.intent.is_none() && job.ending.is_none() && units::are_settled(job);
        for job in running.into_iter().filter(free_to_go) {
            let mut write = self.db.write().await?;
            let Some(mut job) = db::job(&mut write.tx, job.id).await? else {
                continue;
            };
            if job.state != JobState::Running || !free_to_go(&job) || !self.may_try_to_move(&mut write, &job).await? {
                continue;
            }
            self.change(&mut write, &mut job, Change::End(Intent::Move(None)))
                .await?;
            self.begin_checkpoint(&mut write, &mut job, true).await?;
            write.commit().await?;
        }
        Ok(())
    }

    /// Where a job could not be saved lately, it is left alone for a while.
    async fn may_try_to_move(&self, write: &mut Write<'_>, job: &Job) -> Result<bool> {
        let checkpoints = db::checkpoints_of(&mut write.tx, job.id).await?;
        let last = checkpoints.iter().rfind(|c| c.stop && c.incarnation == job.incarnation);
        Ok(last.is_none_or(|last| last.created_ms + PAUSE_MS <= self.clock.wall_ms()))
    }

    /// Images of which there are not enough copies get more (GFD93-WF-2.3).
    async fn copy_images(&self) -> Result<()> {
        let sql = "SELECT doc FROM checkpoints WHERE state = 'stored' ORDER BY id LIMIT 1000";
        let mut stored: Vec<Checkpoint> = db::docs(&mut *self.db.read().await?, sql, &[]).await?;
        let ready = self.ready_nodes().await?;
        // Those that need nothing more, or for which nothing can be done now, cost no transaction.
        stored.retain(|checkpoint| !checkpoint.is_set());
        stored.retain(|checkpoint| self.lacks(checkpoint, &ready) == 0 || !self.targets(checkpoint, &ready).is_empty());
        for checkpoint in stored {
            let mut write = self.db.write().await?;
            let Some(checkpoint) = db::checkpoint(&mut write.tx, checkpoint.id).await? else {
                continue;
            };
            let Some(job) = db::job(&mut write.tx, checkpoint.job).await? else {
                continue;
            };
            if checkpoint.state != CheckpointState::Stored {
                continue;
            }
            let lacks = self.lacks(&checkpoint, &ready);
            let mut wanted = write.wanted(checkpoint.id).await?;
            let known = wanted.len();
            let live = wanted.iter().filter(|name| ready.contains_key(*name)).count();
            let more = self
                .targets(&checkpoint, &ready)
                .into_iter()
                .filter(|name| !wanted.contains(name));
            let more: Vec<String> = more.take(lacks.saturating_sub(live)).collect();
            wanted.extend(more);
            if lacks == 0 {
                self.settle_copies(&mut write, &job, checkpoint).await?;
            } else if wanted.len() > known {
                write.put_checkpoint(&checkpoint, &wanted).await?;
            } else {
                continue;
            }
            write.commit().await?;
        }
        Ok(())
    }

    async fn ready_nodes(&self) -> Result<BTreeMap<String, Node>> {
        let nodes = self.nodes().await?.into_iter();
        Ok(nodes
            .filter(|n| n.state == NodeState::Ready)
            .map(|n| (n.info.name.clone(), n))
            .collect())
    }

    /// Whether an image is on its way to the store that all nodes share, and has not been for too long.
    fn awaits_store(&self, checkpoint: &Checkpoint, ready: &BTreeMap<String, Node>) -> bool {
        let mut holders = checkpoint.locations.iter().filter_map(|place| ready.get(&place.node));
        let recent = checkpoint
            .stored_ms
            .is_some_and(|stored| self.clock.wall_ms() - stored < STORE_MS);
        recent && holders.any(|node| node.info.has_store)
    }

    /// Copies that are missing, given the nodes there are.
    fn lacks(&self, checkpoint: &Checkpoint, ready: &BTreeMap<String, Node>) -> usize {
        if checkpoint.locations.iter().any(|place| place.node.is_empty()) {
            return 0;
        }
        if self.awaits_store(checkpoint, ready) {
            return 1;
        }
        let able = ready.values().filter(|node| !node.info.address.is_empty());
        let able: BTreeSet<&str> = able.map(|node| node.info.name.as_str()).collect();
        let holders = checkpoint
            .locations
            .iter()
            .filter(|place| able.contains(place.node.as_str()))
            .count();
        self.policy()
            .copies
            .min(able.len())
            .saturating_sub(holders.max(usize::from(able.is_empty())))
    }

    /// Nodes that could hold another copy, in an order that spreads them.
    fn targets(&self, checkpoint: &Checkpoint, ready: &BTreeMap<String, Node>) -> Vec<String> {
        if self.awaits_store(checkpoint, ready) {
            return Vec::new();
        }
        let held = |name: &str| checkpoint.locations.iter().any(|place| place.node == name);
        let able = ready.values().filter(|node| !node.info.address.is_empty());
        let mut names: Vec<String> = able.map(|n| n.info.name.clone()).filter(|name| !held(name)).collect();
        if !names.is_empty() {
            let shift = checkpoint.job.unsigned_abs() as usize % names.len();
            names.rotate_left(shift);
        }
        names
    }

    /// Calls a checkpoint complete when it has enough copies; older ones may go then.
    pub(crate) async fn settle_copies(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        mut checkpoint: Checkpoint,
    ) -> Result<()> {
        let nodes = db::nodes(&mut write.tx).await?.into_iter();
        let ready = nodes
            .filter(|n| n.state == NodeState::Ready)
            .map(|n| (n.info.name.clone(), n))
            .collect();
        if checkpoint.state != CheckpointState::Stored || self.lacks(&checkpoint, &ready) > 0 {
            return Ok(());
        }
        checkpoint.state = CheckpointState::Complete;
        let wanted = write.wanted(checkpoint.id).await?;
        write.put_checkpoint(&checkpoint, &wanted).await?;
        match &checkpoint.part {
            Some(part) => self.settle_set(write, part.of).await,
            None => self.completed(write, job, &checkpoint).await,
        }
    }

    /// A checkpoint is complete: older ones may go.
    pub(crate) async fn completed(&self, write: &mut Write<'_>, job: &Job, checkpoint: &Checkpoint) -> Result<()> {
        let about = About {
            job: Some(job),
            node: Some(&checkpoint.node)
                .filter(|node| !node.is_empty())
                .map(String::as_str),
        };
        let what = format!("checkpoint {} of job {} is complete", checkpoint.id, job.id);
        write
            .note(self.clock.wall_ms(), "checkpoint.complete", about, what)
            .await?;
        self.register(write, job, checkpoint).await?;
        self.free_surplus(write, job).await?;
        self.keep_to_quota(write, job).await
    }

    /// Gives queued jobs to nodes, those of the highest priority first (GFD93-INT-JMlaunch).
    async fn place_jobs(&self) -> Result<()> {
        let now = self.clock.wall_ms();
        let order = self.order_of_queue();
        let sql =
            format!("SELECT doc FROM jobs WHERE state = 'queued' AND due_ms <= $1 ORDER BY {order} LIMIT {LOOK_AHEAD}");
        let queued: Vec<Job> = db::docs(&mut *self.db.read().await?, &sql, &[now.into()]).await?;
        if queued.is_empty() {
            return Ok(());
        }
        let mut write = self.db.write().await?;
        let nodes = db::nodes(&mut write.tx).await?;
        let mut free = self.free(&mut write, &nodes).await?;
        let policy = self.policy();
        let stuck = match policy.preempt || policy.slice_ms.is_some() {
            true => self.stuck(&mut write).await?,
            false => BTreeSet::new(),
        };
        let slice_ms = policy.slice_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        let give_way = GiveWay {
            lower: policy.preempt,
            since_ms: slice_ms.map(|ms| now.saturating_sub(ms)),
            stuck,
        };
        let mut changed = false;
        for job in queued {
            let Some(mut job) = db::job(&mut write.tx, job.id).await? else {
                continue;
            };
            if job.state == JobState::Queued {
                changed |= self.place(&mut write, &mut job, &nodes, &mut free, &give_way).await?;
            }
        }
        if changed { write.commit().await } else { Ok(()) }
    }

    /// What is free on the nodes that take jobs.
    pub(crate) async fn free(&self, write: &mut Write<'_>, nodes: &[Node]) -> Result<Vec<Free>> {
        let mut free = Vec::new();
        for node in nodes.iter().filter(|node| node.state == NodeState::Ready) {
            let sql = "SELECT doc FROM jobs WHERE node = $1 AND state IN ('starting', 'running')";
            let jobs: Vec<Job> = db::docs(&mut write.tx, sql, &[node.info.name.as_str().into()]).await?;
            let taken = jobs
                .iter()
                .fold(Room::default(), |taken, job| taken.plus(Room::of(job)));
            let units = db::units_on(&mut write.tx, &node.info.name).await?;
            let mut taken = taken;
            let tenant = |job: Job| Tenant {
                room: Room::of(&job),
                job,
            };
            let mut tenants: Vec<Tenant> = jobs.into_iter().map(tenant).collect();
            for (job, unit) in units {
                let room = Room::of_spec(&job.spec.unit(unit as usize));
                taken = taken.plus(room);
                match tenants.last_mut().filter(|tenant| tenant.job.id == job.id) {
                    Some(tenant) => tenant.room = tenant.room.plus(room),
                    None => tenants.push(Tenant { job, room }),
                }
            }
            tenants.retain(|tenant| tenant.job.state == JobState::Running);
            let whole = Room {
                slots: node.info.slots,
                memory_mb: node.info.memory_mb,
            };
            free.push(Free {
                info: node.info.clone(),
                room: whole.minus(taken),
                running: tenants,
                kept: Room::default(),
            });
        }
        Ok(free)
    }

    /// Places one job, or writes down why it has to wait. True where something was written.
    async fn place(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        nodes: &[Node],
        free: &mut [Free],
        give_way: &GiveWay,
    ) -> Result<bool> {
        let checkpoints = starts_of(write, job).await?;
        let mut parts = BTreeMap::new();
        for set in checkpoints.iter().filter(|c| c.is_set() && c.state.is_usable()) {
            parts.insert(set.id, db::images_of(&mut write.tx, set).await?);
        }
        let start = match choose_start(job, &checkpoints, &parts, nodes) {
            Start::From(checkpoint) => Some(checkpoint),
            Start::Afresh => None,
            Start::Wait(why) => return self.wait(write, job, why).await,
            Start::Never(why) => {
                self.change(write, job, Change::Refused { why }).await?;
                return Ok(true);
            }
        };
        if !job.units.is_empty() {
            let parts = start.map(|set| (set, parts.remove(&set.id).unwrap_or_default()));
            return self.place_units(write, job, nodes, free, parts, give_way).await;
        }
        let places = start.iter().flat_map(|c| &c.locations);
        let holders: BTreeSet<String> = places.map(|place| place.node.clone()).collect();
        let wanted = Job {
            spec: placement::needs(&job.spec, start),
            ..job.clone()
        };
        let node = match placement::choose(&wanted, free, &holders) {
            Ok(node) => node,
            Err(why) => {
                let victims = placement::preempt(&wanted, free, give_way);
                return self.wait_for_room(write, job, free, victims, why).await;
            }
        };
        if let Some(checkpoint) = start {
            want_image(write, checkpoint, &node).await?;
        }
        job.engine = engine_on(&wanted.spec, nodes, &node);
        let from = start.map(|checkpoint| checkpoint.id);
        let change = Change::Place {
            node: node.clone(),
            from,
        };
        self.change(write, job, change).await?;
        self.open_incarnation(write, job, &node).await?;
        Ok(true)
    }

    /// Places all units of a job that have something to do, or none. `start` is the checkpoint to go on from, with its
    /// images.
    async fn place_units(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        nodes: &[Node],
        free: &mut [Free],
        start: Option<(&Checkpoint, Vec<Checkpoint>)>,
        give_way: &GiveWay,
    ) -> Result<bool> {
        let part_of = |number: usize| {
            let (_, parts) = start.as_ref()?;
            parts
                .iter()
                .find(|c| c.part.as_ref().is_some_and(|part| part.unit as usize == number))
        };
        let mut needs = Vec::new();
        for number in 0..job.units.len() {
            let part = part_of(number);
            // One that had finished when all were saved has nothing to do any more.
            let has = |set: &Checkpoint| set.units.iter().any(|image| image.unit as usize == number);
            let idle = start.as_ref().is_some_and(|(set, _)| !has(set));
            needs.push((!idle).then(|| {
                let places = part.iter().flat_map(|c| &c.locations);
                let holders: BTreeSet<String> = places.map(|place| place.node.clone()).collect();
                (placement::needs(&job.spec.unit(number), part), holders)
            }));
        }
        let chosen = match placement::choose_all(&needs, free) {
            Ok(chosen) => chosen,
            Err(why) => {
                let victims = placement::preempt_for_all(job, &needs, free, give_way);
                return self.wait_for_room(write, job, free, victims, why).await;
            }
        };
        let mut places = Vec::new();
        for (number, node) in chosen.into_iter().enumerate() {
            if let (Some(unit), Some((spec, _)), Some(node)) = (job.units.get_mut(number), &needs[number], &node) {
                unit.engine = engine_on(spec, nodes, node);
            }
            let part = part_of(number);
            if let (Some(part), Some(node)) = (part, &node) {
                want_image(write, part, node).await?;
            }
            places.push(node.map(|node| (node, part.map(|part| part.id))));
        }
        let names: Vec<&str> = places.iter().flatten().map(|(node, _)| node.as_str()).collect();
        let names = names.join(",");
        let from = start.as_ref().map(|(set, _)| set.id);
        self.change(write, job, Change::PlaceUnits { places, from }).await?;
        self.open_incarnation(write, job, &names).await?;
        Ok(true)
    }

    /// Writes down that a job is started, and where.
    pub(crate) async fn open_incarnation(&self, write: &mut Write<'_>, job: &Job, node: &str) -> Result<()> {
        let sql = "INSERT INTO incarnations (job, number, node, checkpoint, placed_ms, ended_ms, outcome) \
                   VALUES ($1, $2, $3, $4, $5, 0, '')";
        let values = [
            job.id.into(),
            i64::from(job.incarnation).into(),
            node.into(),
            job.from.unwrap_or(0).into(),
            self.clock.wall_ms().into(),
        ];
        db::execute(&mut write.tx, sql, &values).await.map(drop)
    }

    /// Writes down that a job has to wait, and has others saved and queued again where that helps it: `victims`, none
    /// where enough are going already. True where something was written.
    async fn wait_for_room(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        free: &mut [Free],
        victims: Option<Vec<i64>>,
        why: String,
    ) -> Result<bool> {
        let Some(victims) = victims else {
            return self.wait(write, job, why).await;
        };
        for id in &victims {
            let mut tenants = free.iter_mut().flat_map(|node| &mut node.running);
            let Some(mut victim) = tenants
                .find(|tenant| tenant.job.id == *id)
                .map(|found| found.job.clone())
            else {
                continue;
            };
            self.change(write, &mut victim, Change::End(Intent::Move(None))).await?;
            self.begin_checkpoint(write, &mut victim, true).await?;
            let about = About {
                job: Some(&victim),
                node: victim.node.as_deref(),
            };
            let what = format!("job {id} makes room for job {}", job.id);
            write.note(self.clock.wall_ms(), "job.preempted", about, what).await?;
            // On every node where it has units.
            let tenants = free.iter_mut().flat_map(|node| &mut node.running);
            for tenant in tenants.filter(|tenant| tenant.job.id == *id) {
                tenant.job.clone_from(&victim);
            }
        }
        let why = "waits until jobs that make room for it are saved".to_string();
        Ok(self.wait(write, job, why).await? || !victims.is_empty())
    }

    /// The order in which queued jobs are given to nodes. Where they take turns, one that has just had its turn is
    /// behind those of its priority that wait already.
    pub(crate) fn order_of_queue(&self) -> &'static str {
        match self.policy().slice_ms {
            Some(_) => "priority DESC, due_ms, id",
            None => "priority DESC, id",
        }
    }

    /// Jobs that could not be saved lately.
    async fn stuck(&self, write: &mut Write<'_>) -> Result<BTreeSet<i64>> {
        let sql = "SELECT doc FROM checkpoints WHERE state = 'failed' AND created_ms > $1";
        let since = self.clock.wall_ms() - PAUSE_MS;
        let failed: Vec<Checkpoint> = db::docs(&mut write.tx, sql, &[since.into()]).await?;
        Ok(failed.iter().filter(|c| c.stop).map(|c| c.job).collect())
    }

    pub(crate) async fn wait(&self, write: &mut Write<'_>, job: &mut Job, why: String) -> Result<bool> {
        if job.reason.as_ref() == Some(&why) {
            return Ok(false);
        }
        job.reason = Some(why);
        write.put_job(job, false).await?;
        Ok(true)
    }

    /// Forgets what nobody needs any more, now and then.
    async fn sweep(&self) -> Result<()> {
        let steady = self.clock.steady_ms();
        let due = {
            let swept = self.swept_ms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            swept.is_none_or(|swept| steady.saturating_sub(swept) >= SWEEP_MS)
        };
        if !due {
            return Ok(());
        }
        let now = self.clock.wall_ms();
        let mut write = self.db.write().await?;
        let sql = "DELETE FROM requests WHERE at_ms < $1";
        db::execute(&mut write.tx, sql, &[(now - REPEATABLE_MS).into()]).await?;
        let sql = "SELECT doc FROM jobs WHERE state IN ('failed', 'cancelled') AND id IN \
                   (SELECT job FROM checkpoints WHERE state IN ('stored', 'complete') AND created_ms < $1)";
        for job in db::docs::<Job>(&mut write.tx, sql, &[(now - AFTERLIFE_MS).into()]).await? {
            self.free_surplus(&mut write, &job).await?;
        }
        let sql = "SELECT doc FROM jobs WHERE id IN (SELECT job FROM checkpoints WHERE state = 'complete')";
        let jobs: Vec<Job> = db::docs(&mut write.tx, sql, &[]).await?;
        for job in jobs
            .iter()
            .filter(|job| job.spec.ttl_s.is_some() || job.spec.names.is_some())
        {
            self.free_surplus(&mut write, job).await?;
        }
        if let Some(records_ms) = self.policy().records_ms {
            // What they have come to is on their owners' accounts.
            let sql = "DELETE FROM checkpoints WHERE state IN ('freed', 'failed', 'lost') AND created_ms < $1 \
                       AND job IN (SELECT id FROM jobs WHERE state = 'finished')";
            db::execute(&mut write.tx, sql, &[now.saturating_sub(records_ms).into()]).await?;
        }
        write.commit().await?;
        *self.swept_ms.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(steady);
        Ok(())
    }
}

/// What a job may go on from, the oldest first: its checkpoints, and that of another one that it was to begin from or is
/// to go on from.
async fn starts_of(write: &mut Write<'_>, job: &Job) -> Result<Vec<Checkpoint>> {
    let mut all = db::checkpoints_of(&mut write.tx, job.id).await?;
    let chosen = job.next_from.filter(|id| !all.iter().any(|known| known.id == *id));
    let first = job
        .spec
        .from
        .filter(|_| !all.iter().any(|known| known.state.is_usable()));
    if let Some(id) = chosen.or(first.filter(|_| job.next_from.is_none()))
        && let Some(other) = db::checkpoint(&mut write.tx, id).await?
        && other.owner.uid == job.owner.uid
    {
        all.insert(0, other);
    }
    Ok(all)
}

/// Has a node get an image that it does not hold.
pub(crate) async fn want_image(write: &mut Write<'_>, checkpoint: &Checkpoint, node: &str) -> Result<()> {
    let mut wanted = write.wanted(checkpoint.id).await?;
    let holds = checkpoint.locations.iter().any(|place| place.node == node);
    if !holds && !wanted.iter().any(|name| name == node) {
        wanted.push(node.to_string());
        write.put_checkpoint(checkpoint, &wanted).await?;
    }
    Ok(())
}

/// Starts from one checkpoint before an older one is tried.
pub(crate) const ATTEMPTS: usize = 2;

/// Where a job goes on.
enum Start<'a> {
    From(&'a Checkpoint),
    Afresh,
    Wait(String),
    Never(String),
}

/// The engine that saves a job on the node that was chosen for it.
pub(crate) fn engine_on(spec: &JobSpec, nodes: &[Node], chosen: &str) -> String {
    let node = nodes.iter().find(|node| node.info.name == chosen);
    node.and_then(|node| placement::engine(spec, &node.info))
        .unwrap_or_else(|| NATIVE.to_string())
}

/// The newest good checkpoint that can be had now, or the one that was chosen (GFD93-SM-9, GFD93-WF-4.2, GFD93-WF-4.6).
///
/// One of several units can be had where all of its images can, which are in `parts`.
fn choose_start<'a>(
    job: &Job,
    checkpoints: &'a [Checkpoint],
    parts: &BTreeMap<i64, Vec<Checkpoint>>,
    nodes: &[Node],
) -> Start<'a> {
    let live = |name: &str| name.is_empty() || nodes.iter().any(|n| n.info.name == name && n.state != NodeState::Lost);
    let usable = checkpoints.iter().filter(|c| c.state.is_usable());
    let candidates: Vec<&Checkpoint> = match job.next_from {
        Some(chosen) => usable.filter(|c| c.id == chosen).collect(),
        None => usable.collect(),
    };
    let held = |c: &Checkpoint| c.locations.iter().any(|place| live(&place.node));
    let reachable = |c: &&&Checkpoint| match parts.get(&c.id) {
        Some(parts) => parts.iter().all(held),
        None => held(c),
    };
    let attempts = |c: &Checkpoint| job.bad_starts.iter().filter(|id| **id == c.id).count();
    // One from which it could not be started again and again is given up for older ones, until all have been tried.
    let fresh = candidates.iter().rfind(|c| reachable(c) && attempts(c) < ATTEMPTS);
    let reachable = fresh.or_else(|| candidates.iter().rfind(reachable));
    match (reachable, candidates.is_empty(), job.next_from) {
        (Some(checkpoint), ..) => Start::From(checkpoint),
        (None, false, _) => Start::Wait("waits for a node that holds a checkpoint of it".into()),
        (None, true, Some(chosen)) => Start::Never(format!("checkpoint {chosen} is gone")),
        (None, true, None) if checkpoints.iter().any(|c| c.state == CheckpointState::Lost) => {
            Start::Never("every checkpoint of it is lost or damaged".into())
        }
        (None, true, None) => Start::Afresh,
    }
}
