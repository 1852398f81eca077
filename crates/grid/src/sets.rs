//! Jobs of several units and their checkpoints, as far as the database goes: what units and parts come to is decided by
//! `units.rs` and `coordinator.rs`.

use std::net::SocketAddr;

use cpr_api::agent::StepReport;
use cpr_api::model::{Checkpoint, CheckpointState, Ending, Job, JobState, Node, Part, Step, UnitImage, UnitPhase};
use cpr_types::{Links, Result};
use sqlx::AnyConnection;

use crate::coordinator::{self, Limits, Next};
use crate::db::{self, About, Write};
use crate::grid::{Grid, new_checkpoint};
use crate::lifecycle::{Change, pause_ms};
use crate::units::{self, Happened};

impl Grid {
    /// Lets something happen to a unit, with everything that follows from it.
    pub(crate) async fn unit_changed(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        number: u32,
        happened: Happened,
    ) -> Result<()> {
        let before = job.clone();
        let change = units::apply(job, number as usize, happened);
        if change.is_none() && *job == before {
            return Ok(());
        }
        let was = before.units.get(number as usize);
        let is_there = |job: &Job| {
            let unit = job.units.get(number as usize);
            unit.is_some_and(|unit| unit.phase.is_placed())
        };
        if is_there(&before) && !is_there(job) {
            self.keep_usage_of_unit(&before, job, number);
        }
        if let Some(unit) = job.units.get(number as usize)
            && was.is_some_and(|was| was.phase != unit.phase)
        {
            let node = unit.node.as_deref();
            let about = About { job: Some(job), node };
            let what = match unit.phase {
                UnitPhase::Waiting => format!(
                    "unit {number} of job {} is to go on alone: {}",
                    job.id,
                    job.reason.as_deref().unwrap_or_default()
                ),
                phase => {
                    let place = node.unwrap_or("no node");
                    format!("unit {number} of job {} is {} on {place}", job.id, phase.name())
                }
            };
            let kind = format!("unit.{}", unit.phase.name());
            write.note(self.clock.wall_ms(), &kind, about, what).await?;
        }
        let others = job.units.iter().any(|unit| unit.phase.is_placed());
        if let (Some(Ending::Broken { why }), None, true) = (&job.ending, &before.ending, others) {
            let about = About {
                job: Some(job),
                node: None,
            };
            let what = format!("job {} is told: failure of {why}", job.id);
            write.note(self.clock.wall_ms(), "job.warned", about, what).await?;
        }
        let alone = units::are_settled(&before) && !units::are_settled(job) && job.ending.is_none();
        if alone {
            job.not_before_ms = self.clock.wall_ms() + pause_ms(job.failures);
        }
        let is_waiting = |job: &Job| {
            let unit = job.units.get(number as usize);
            unit.is_some_and(|unit| unit.phase == UnitPhase::Waiting)
        };
        let waits = is_waiting(job) && !is_waiting(&before) && job.ending.is_none();
        if (job.ending.is_some() && before.ending.is_none()) || waits {
            // There is no moment any more of which all could be saved together.
            for mut set in db::pending_of(&mut write.tx, job.id).await? {
                if waits && self.go_without(write, job, &mut set, number).await? {
                    continue;
                }
                let why = format!("unit {number} has ended");
                self.end_checkpoint(write, job, &mut set, CheckpointState::Failed, why)
                    .await?;
            }
        }
        match change {
            Some(change) => self.change(write, job, change).await,
            None => write.put_job(job, false).await,
        }
    }

    /// Lets a checkpoint of independent units go on without one that the system has failed under: what it goes on from
    /// stands for it. False where that cannot be, or where no other unit is being saved.
    async fn go_without(&self, write: &mut Write<'_>, job: &Job, set: &mut Checkpoint, number: u32) -> Result<bool> {
        if !set.coordination.as_ref().is_some_and(|at| at.independent) {
            return Ok(false);
        }
        let parts = db::images_of(&mut write.tx, set).await?;
        let is_own = |c: &&Checkpoint| c.part.as_ref().is_some_and(|part| part.of == set.id);
        let is_its = |c: &&Checkpoint| c.part.as_ref().is_some_and(|part| part.unit == number);
        let Some(mut part) = parts.iter().filter(is_own).find(is_its).cloned() else {
            return Ok(true);
        };
        let others = parts.iter().filter(is_own).any(|c| !is_its(&c));
        if part.state.is_usable() {
            // It was saved before.
            return Ok(true);
        }
        let stands = self.stand_in(write, job, &[number]).await?;
        let Some(image) = stands.and_then(|mut all| all.pop()).filter(|_| others) else {
            return Ok(false);
        };
        if let Some(entry) = set.units.iter_mut().find(|entry| entry.unit == number) {
            *entry = image;
        }
        write.put_checkpoint(set, &[]).await?;
        let why = format!("unit {number} has ended");
        self.end_checkpoint(write, job, &mut part, CheckpointState::Failed, why)
            .await?;
        // It may have been the last that was waited for.
        Box::pin(self.settle_set(write, set.id)).await?;
        Ok(true)
    }

    /// Begins a checkpoint of all units that run. `standing`: what stands for those that do not, and have not finished.
    pub(crate) async fn begin_set(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        set: &mut Checkpoint,
        standing: Vec<UnitImage>,
    ) -> Result<()> {
        let now = self.clock.wall_ms();
        // All end at one moment where they end.
        let independent = job.spec.independent && !set.stop;
        let mut begun = coordinator::begin(independent, now, Limits::of(&self.policy()));
        if independent {
            // So long they may be put off.
            let put_off = job.spec.save_low_s.unwrap_or(0).saturating_mul(1000);
            begun.deadline_ms = begun
                .deadline_ms
                .saturating_add(i64::try_from(put_off).unwrap_or(i64::MAX));
        }
        set.coordination = Some(begun);
        let running = (0..)
            .zip(&job.units)
            .filter(|(_, unit)| unit.phase == UnitPhase::Running);
        for (number, unit) in running {
            let id = write.next("checkpoint").await?;
            let part = Checkpoint {
                node: unit.node.clone().unwrap_or_default(),
                engine: unit.engine.clone(),
                part: Some(Part {
                    of: set.id,
                    unit: number,
                    done: None,
                    connections: None,
                }),
                incarnation: job.incarnation_of(number),
                ..new_checkpoint(id, job, set.generation, set.stop, now)
            };
            write.put_checkpoint(&part, &[]).await?;
            set.units.push(UnitImage {
                unit: number,
                checkpoint: id,
            });
        }
        set.units.extend(standing);
        set.units.sort_by_key(|image| image.unit);
        write.put_checkpoint(set, &[]).await
    }

    /// What becomes of the connections of a unit that is made again, once all are ready for that.
    pub(crate) async fn links(
        &self,
        connection: &mut AnyConnection,
        job: &Job,
        number: u32,
        nodes: &[Node],
    ) -> Result<Option<Links>> {
        if job.state != JobState::Starting || !units::may_link(job) {
            return Ok(None);
        }
        let mut parts = Vec::new();
        for (at, unit) in (0..).zip(&job.units) {
            if let (Some(from), Some(node)) = (unit.from, &unit.node)
                && let Some(part) = db::checkpoint(connection, from).await?
            {
                parts.push((at, part, node));
            }
        }
        let Some(of) = parts.iter().position(|(at, ..)| *at == number) else {
            return Ok(None);
        };
        let address = |name: &str| {
            let node = nodes.iter().find(|node| node.info.name == name)?;
            Some(node.info.address.parse::<SocketAddr>().ok()?.ip())
        };
        let places = parts.iter().map(|(_, part, node)| coordinator::Place {
            part,
            node,
            address: address(node),
        });
        let renewals = coordinator::renewals(&places.collect::<Vec<_>>(), of);
        let secret = self.link_secret(job.id, job.incarnation);
        // Where an address is missing its node finds out which connection cannot be made.
        let part = parts[of].1.part.as_ref();
        let connected = part.is_some_and(|part| part.connections.as_ref().is_some_and(|all| !all.is_empty()));
        Ok(connected.then_some(Links { secret, renewals }))
    }

    /// A node has done a step of a part.
    pub(crate) async fn step_done(&self, write: &mut Write<'_>, told: StepReport) -> Result<()> {
        let StepReport { id, done, connections } = told;
        let Some(mut checkpoint) = db::checkpoint(&mut write.tx, id).await? else {
            return Ok(());
        };
        let Some(part) = checkpoint.part.as_mut().filter(|part| part.done < Some(done)) else {
            return Ok(());
        };
        part.done = Some(done);
        part.connections = connections.or(part.connections.take());
        let set = part.of;
        write.put_checkpoint(&checkpoint, &[]).await?;
        self.settle_set(write, set).await
    }

    /// Does what follows for a checkpoint of several units from how its parts are.
    pub(crate) async fn settle_set(&self, write: &mut Write<'_>, id: i64) -> Result<()> {
        let Some(mut set) = db::checkpoint(&mut write.tx, id)
            .await?
            .filter(|set| !set.state.is_gone())
        else {
            return Ok(());
        };
        let job = db::job(&mut write.tx, set.job).await?;
        let (Some(coordination), Some(mut job)) = (set.coordination.clone(), job) else {
            return Ok(());
        };
        let now = self.clock.wall_ms();
        let mut parts = db::parts_of(&mut write.tx, id).await?;
        // Of a unit that it does without it has no image of its own.
        parts.retain(|part| set.units.iter().any(|image| image.checkpoint == part.id));
        if set.state == CheckpointState::Pending {
            let limits = Limits::of(&self.policy());
            match coordinator::next(&coordination, set.stop, &parts, now, limits) {
                Next::Wait => return Ok(()),
                Next::Step(next) => {
                    let step = next.step;
                    set.coordination = Some(next);
                    write.put_checkpoint(&set, &[]).await?;
                    return self.note_step(write, &job, &set, step).await;
                }
                Next::Fail(why) => {
                    self.end_checkpoint(write, &job, &mut set, CheckpointState::Failed, why)
                        .await?;
                    if set.stop {
                        self.change(write, &mut job, Change::GoOn).await?;
                    }
                    return Ok(());
                }
                Next::Made => self.set_made(write, &mut job, &mut set, &parts).await?,
            }
        }
        let state = coordinator::state(&parts);
        if state == set.state {
            return Ok(());
        }
        set.state = state;
        write.put_checkpoint(&set, &[]).await?;
        if state == CheckpointState::Complete {
            self.completed(write, &job, &set).await?;
        }
        Ok(())
    }

    async fn note_step(&self, write: &mut Write<'_>, job: &Job, set: &Checkpoint, step: Step) -> Result<()> {
        let what = match step {
            Step::Prepare => "are to get ready",
            Step::Stop => "are ready and are to stop",
            Step::Drain => "stand still and are to empty their connections",
            Step::Save => "stand still and are to be saved",
            Step::Resume => "are saved and are to go on",
        };
        let about = About {
            job: Some(job),
            node: None,
        };
        let text = format!("checkpoint {} of job {}: all units {what}", set.id, job.id);
        write.note(self.clock.wall_ms(), "checkpoint.step", about, text).await
    }

    /// Every image of a checkpoint is on disk.
    async fn set_made(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        set: &mut Checkpoint,
        parts: &[Checkpoint],
    ) -> Result<()> {
        let now = self.clock.wall_ms();
        set.state = CheckpointState::Stored;
        set.bytes = parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        // What the slowest has cost all have waited for.
        set.cost_ms = parts.iter().filter_map(|part| part.cost_ms).max();
        set.took_ms = parts.iter().filter_map(|part| part.took_ms).max();
        set.stored_ms = Some(now);
        write.put_checkpoint(set, &[]).await?;
        let about = About {
            job: Some(job),
            node: None,
        };
        let what = format!("checkpoint {} of job {} is stored", set.id, job.id);
        write.note(now, "checkpoint.stored", about, what).await?;
        // It has got further: what failed before does not count any more.
        job.failures = 0;
        if set.stop {
            job.ending = job.ending.take().or(Some(Ending::Saved));
        }
        write.put_job(job, false).await?;
        match job.spec.adapt && set.cost_ms.is_some() {
            true => self.adapt(write, job, set).await,
            false => Ok(()),
        }
    }

    /// With one image the checkpoint is lost, failed or freed as a whole.
    pub(crate) async fn part_ended(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        part: &Checkpoint,
        why: String,
    ) -> Result<()> {
        let Some(Part { unit, .. }) = part.part else {
            return Ok(());
        };
        let why = format!("unit {unit} on {}: {why}", part.node);
        for set in db::present_of(&mut write.tx, part.job).await? {
            // As those before have left it.
            if set.units.iter().any(|image| image.checkpoint == part.id)
                && let Some(mut set) = db::checkpoint(&mut write.tx, set.id)
                    .await?
                    .filter(|set| !set.state.is_gone())
            {
                // Boxed: the other parts are told in the same way.
                Box::pin(self.end_checkpoint(write, job, &mut set, part.state, why.clone())).await?;
            }
        }
        Ok(())
    }

    /// With the checkpoint goes every image that it still has, but for those that stand for a unit in another one.
    pub(crate) async fn end_parts(&self, write: &mut Write<'_>, job: &Job, set: &Checkpoint, why: &str) -> Result<()> {
        let mut others = db::present_of(&mut write.tx, set.job).await?;
        others.retain(|other| other.id != set.id);
        let stays = |part: &Checkpoint| {
            let is_in = |other: &Checkpoint| other.units.iter().any(|image| image.checkpoint == part.id);
            let of = part.part.as_ref().map(|part| part.of);
            others.iter().any(|other| Some(other.id) == of || is_in(other))
        };
        for mut part in db::images_of(&mut write.tx, set).await? {
            if stays(&part) {
                continue;
            }
            let state = match part.state {
                CheckpointState::Pending => CheckpointState::Failed,
                state if state.is_usable() => CheckpointState::Freed,
                _ => continue,
            };
            Box::pin(self.end_checkpoint(write, job, &mut part, state, why.to_string())).await?;
        }
        Ok(())
    }

    /// Checkpoints of several units of which a step takes too long.
    pub(crate) async fn run_deadlines(&self) -> Result<()> {
        let now = self.clock.wall_ms();
        let sql = "SELECT doc FROM checkpoints WHERE state = 'pending' AND part_of = 0 ORDER BY id";
        let pending: Vec<Checkpoint> = db::docs(&mut *self.db.read().await?, sql, &[]).await?;
        let late = |set: &Checkpoint| set.coordination.as_ref().is_some_and(|at| at.deadline_ms <= now);
        for set in pending.into_iter().filter(late) {
            let mut write = self.db.write().await?;
            self.settle_set(&mut write, set.id).await?;
            write.commit().await?;
        }
        Ok(())
    }
}
