//! What users and operators may ask for. Every call says who asks, and is refused before it has any effect where they
//! may not.

use cpr_api::model::{
    Array, ArrayRequest, Checkpoint, CheckpointState, CopyRequest, Element, Intent, Job, JobSpec, JobState,
    MigrateRequest, Naming, Node, NodeState, Owner, PolicyRequest, RecoverRequest, check_path,
};
use cpr_types::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::caller::Caller;
use crate::db::{self, About, Account, Write};
use crate::grid::{Grid, is_blocked};
use crate::heartbeat::failing;
use crate::lifecycle::Change;
use crate::retention;

/// Longest key of a request that may be repeated.
const LONGEST_KEY: usize = 200;
/// Longest reason for which a node is failing, characters: what programs can be told is 255 bytes.
const LONGEST_REASON: usize = 120;
/// Most jobs of an array.
const MOST_ELEMENTS: i64 = 1000;
/// What says to a job which element of its array it is.
const ARRAY_INDEX: &str = "GRIDCPR_ARRAY_INDEX";

fn unknown_node(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("the grid has no node {name:?}")).with_hint("`cpr nodes` lists them")
}

fn named(nodes: Vec<Node>, name: &str) -> Result<Node> {
    let found = nodes.into_iter().find(|node| node.info.name == name);
    found.ok_or_else(|| unknown_node(name))
}

fn require_checkpoint(caller: &Caller, id: i64, found: Option<Checkpoint>) -> Result<Checkpoint> {
    found
        .filter(|checkpoint| caller.may_use(&checkpoint.owner))
        .ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the grid has no checkpoint {id} of yours"))
                .with_hint("`cpr checkpoints` lists them")
        })
}

/// Refuses a checkpoint that nothing can go on from.
fn may_go_on_from(checkpoint: &Checkpoint) -> Result<()> {
    let id = checkpoint.id;
    if let Some(part) = &checkpoint.part {
        let text = format!(
            "checkpoint {id} is the image of unit {} in checkpoint {}",
            part.unit, part.of
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if !checkpoint.state.is_usable() {
        let state = checkpoint.state.name();
        return Err(Error::new(ErrorKind::Gone, format!("checkpoint {id} is {state}")));
    }
    Ok(())
}

/// Fills in what stands for the job in its environment, where its checkpoints have names.
fn fill_environment(job: &mut Job) {
    if job.spec.names.is_some() {
        let filled = |(name, value): (&String, &String)| (name.clone(), Naming::fill(value, job));
        job.spec.environment = job.spec.environment.iter().map(filled).collect();
    }
}

/// The answer given to an earlier request with this key.
async fn earlier<T: DeserializeOwned>(
    write: &mut Write<'_>,
    caller: &Caller,
    key: Option<&str>,
    request: &str,
) -> Result<Option<T>> {
    let Some(key) = key else { return Ok(None) };
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("an idempotency key has 1 to {LONGEST_KEY} bytes"),
        ));
    }
    let sql = "SELECT request, answer FROM requests WHERE owner = $1 AND key = $2";
    let rows = db::rows(&mut write.tx, sql, &[caller.name.as_str().into(), key.into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if db::text(row, 0)? != request {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("idempotency key {key:?} was used for another request"),
        ));
    }
    db::decode(&db::text(row, 1)?).map(Some)
}

/// Keeps an answer for requests with the same key.
async fn remember(
    grid: &Grid,
    write: &mut Write<'_>,
    caller: &Caller,
    key: Option<&str>,
    request: &str,
    answer: &impl Serialize,
) -> Result<()> {
    let Some(key) = key else { return Ok(()) };
    let sql = "INSERT INTO requests (owner, key, request, answer, at_ms) VALUES ($1, $2, $3, $4, $5)";
    let values = [
        caller.name.as_str().into(),
        key.into(),
        request.into(),
        encode(answer)?.as_str().into(),
        grid.clock.wall_ms().into(),
    ];
    db::execute(&mut write.tx, sql, &values).await.map(drop)
}

fn encode(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::Internal, "encode a request").with_source(error))
}

impl Grid {
    /// Queues a job (GFD93-INT-USERqueue). With the key of an earlier request gives that one's job.
    pub async fn submit(&self, caller: &Caller, spec: JobSpec, key: Option<&str>) -> Result<Job> {
        let owner = caller.owner()?;
        spec.check()?;
        let request = format!("submit {}", encode(&spec)?);
        let mut write = self.db.write().await?;
        if let Some(job) = earlier(&mut write, caller, key, &request).await? {
            return Ok(job);
        }
        self.may_come_after(&mut write, caller, &spec).await?;
        self.may_begin_from(&mut write, caller, &owner, &spec).await?;
        let mut job = Job::new(write.next("job").await?, owner, spec, self.clock.wall_ms());
        fill_environment(&mut job);
        self.enqueue(&mut write, caller, &job).await?;
        remember(self, &mut write, caller, key, &request, &job).await?;
        write.commit().await?;
        Ok(job)
    }

    /// Queues an array of jobs, all or none, with the key as [`Grid::submit`].
    pub async fn submit_array(&self, caller: &Caller, wanted: ArrayRequest, key: Option<&str>) -> Result<Array> {
        let owner = caller.owner()?;
        wanted.spec.check()?;
        if wanted.step < 1 || wanted.last < wanted.first {
            return Err(Error::new(ErrorKind::Usage, "the array has no jobs"));
        }
        let more = wanted.last.saturating_sub(wanted.first) / wanted.step;
        if more >= MOST_ELEMENTS {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("an array has {MOST_ELEMENTS} jobs at most"),
            ));
        }
        let request = format!("array {}", encode(&wanted)?);
        let mut write = self.db.write().await?;
        if let Some(array) = earlier(&mut write, caller, key, &request).await? {
            return Ok(array);
        }
        self.may_come_after(&mut write, caller, &wanted.spec).await?;
        self.may_begin_from(&mut write, caller, &owner, &wanted.spec).await?;
        let mut array = Array {
            id: 0,
            jobs: Vec::new(),
        };
        for number in 0..=more {
            let index = wanted.first + number * wanted.step;
            let mut spec = wanted.spec.clone();
            spec.environment.insert(ARRAY_INDEX.to_string(), index.to_string());
            let outputs = spec.units.iter_mut().map(|unit| &mut unit.output);
            for output in outputs.chain([&mut spec.output]).flatten() {
                *output = output.replace("%a", &index.to_string());
            }
            spec.number_staged("%a", &index.to_string());
            let id = write.next("job").await?;
            if number == 0 {
                array.id = id;
            }
            let mut job = Job::new(id, owner.clone(), spec, self.clock.wall_ms());
            job.array = Some(Element { id: array.id, index });
            fill_environment(&mut job);
            self.enqueue(&mut write, caller, &job).await?;
            array.jobs.push(id);
        }
        remember(self, &mut write, caller, key, &request, &array).await?;
        write.commit().await?;
        Ok(array)
    }

    /// Ends all jobs of an array that are not over yet; gives those.
    pub async fn cancel_array(&self, caller: &Caller, id: i64) -> Result<Array> {
        let mut write = self.db.write().await?;
        let sql = "SELECT doc FROM jobs WHERE part_of = $1 ORDER BY id";
        let all: Vec<Job> = db::docs(&mut write.tx, sql, &[id.into()]).await?;
        if !all.first().is_some_and(|job| caller.may_use(&job.owner)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the grid has no array {id} of yours"),
            ));
        }
        let mut array = Array { id, jobs: Vec::new() };
        for job in all {
            // As those that waited for others of the array have been left.
            let Some(mut job) = db::job(&mut write.tx, job.id).await?.filter(|job| !job.state.is_over()) else {
                continue;
            };
            self.change(&mut write, &mut job, Change::End(Intent::Cancel)).await?;
            write.account(&job.owner.name, Account::OPERATION).await?;
            array.jobs.push(job.id);
        }
        write.commit().await?;
        Ok(array)
    }

    /// Refuses a job that would wait for one that never finishes, or is not the caller's.
    async fn may_come_after(&self, write: &mut Write<'_>, caller: &Caller, spec: &JobSpec) -> Result<()> {
        for id in &spec.after {
            let needed = caller.require_job(*id, db::job(&mut write.tx, *id).await?)?;
            if matches!(needed.state, JobState::Failed | JobState::Cancelled) {
                let state = needed.state.name();
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("job {id}, which it should wait for, is {state}"),
                ));
            }
        }
        Ok(())
    }

    /// Refuses a job that would begin from a checkpoint that is not there, or not of the same user.
    async fn may_begin_from(
        &self,
        write: &mut Write<'_>,
        caller: &Caller,
        owner: &Owner,
        spec: &JobSpec,
    ) -> Result<()> {
        let Some(id) = spec.from else { return Ok(()) };
        let found = require_checkpoint(caller, id, db::checkpoint(&mut write.tx, id).await?)?;
        if found.owner.uid != owner.uid {
            let text = format!("checkpoint {id} is of {}, as whom the job would run", found.owner.name);
            return Err(Error::new(ErrorKind::Denied, text));
        }
        may_go_on_from(&found)
    }

    async fn enqueue(&self, write: &mut Write<'_>, caller: &Caller, job: &Job) -> Result<()> {
        let blocked = is_blocked(write, job).await?;
        write.put_job(job, blocked).await?;
        for id in &job.spec.after {
            let sql = "INSERT INTO dependencies (job, needs) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            db::execute(&mut write.tx, sql, &[job.id.into(), (*id).into()]).await?;
        }
        let about = About {
            job: Some(job),
            node: None,
        };
        write.account(&job.owner.name, Account::OPERATION).await?;
        let what = format!("job {} is submitted by {}", job.id, caller.name);
        write.note(job.submitted_ms, "job.queued", about, what).await
    }

    /// A job.
    pub async fn job(&self, caller: &Caller, id: i64) -> Result<Job> {
        let mut job = caller.require_job(id, db::job(&mut *self.db.read().await?, id).await?)?;
        self.tell_usage(&mut job);
        Ok(job)
    }

    /// A checkpoint.
    pub async fn checkpoint(&self, caller: &Caller, id: i64) -> Result<Checkpoint> {
        let mut connection = self.db.read().await?;
        let mut found = [require_checkpoint(
            caller,
            id,
            db::checkpoint(&mut connection, id).await?,
        )?];
        self.tell_arriving(&mut connection, &mut found).await?;
        let [checkpoint] = found;
        Ok(checkpoint)
    }

    /// Has a node get a copy of a checkpoint's image, or of all its images, or not get it after all
    /// (GFD93-INT-CPRtransfer). It is there when it is among the locations; how far it is can be asked for.
    pub async fn copy(&self, caller: &Caller, id: i64, request: CopyRequest) -> Result<Checkpoint> {
        let mut write = self.db.write().await?;
        let checkpoint = require_checkpoint(caller, id, db::checkpoint(&mut write.tx, id).await?)?;
        if !checkpoint.state.is_usable() {
            let state = checkpoint.state.name();
            return Err(Error::new(ErrorKind::Gone, format!("checkpoint {id} is {state}")));
        }
        let nodes = db::nodes(&mut write.tx).await?;
        let node = named(nodes, &request.to)?;
        if node.state == NodeState::Lost && !request.cancel {
            let text = format!("node {} is lost; it gets no copies", request.to);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let images = match checkpoint.is_set() {
            true => db::images_of(&mut write.tx, &checkpoint).await?,
            false => vec![checkpoint],
        };
        let mut changed = false;
        for image in images.iter().filter(|image| image.state.is_usable()) {
            let mut wanted = write.wanted(image.id).await?;
            let is_wanted = wanted.contains(&request.to);
            let held = image.locations.iter().any(|place| place.node == request.to);
            if held || is_wanted != request.cancel {
                continue;
            }
            match request.cancel {
                true => wanted.retain(|name| *name != request.to),
                false => wanted.push(request.to.clone()),
            }
            write.put_checkpoint(image, &wanted).await?;
            changed = true;
        }
        if changed {
            let job = db::job(&mut write.tx, images[0].job).await?;
            let about = About {
                job: job.as_ref(),
                node: Some(&request.to),
            };
            let (kind, what) = match request.cancel {
                true => ("checkpoint.copy-cancelled", "is not to hold a copy of"),
                false => ("checkpoint.copy-wanted", "is to hold a copy of"),
            };
            let text = format!("{} {what} checkpoint {id}, as {} wants", request.to, caller.name);
            write.note(self.clock.wall_ms(), kind, about, text).await?;
            write.account(&images[0].owner.name, Account::OPERATION).await?;
            write.commit().await?;
        } else {
            drop(write);
        }
        self.checkpoint(caller, id).await
    }

    /// Lets a checkpoint go that its user has no need of any more, wherever its images are (GFD93-INT-CPRfree). What
    /// its job may yet need stays.
    pub async fn free_checkpoint(&self, caller: &Caller, id: i64) -> Result<Checkpoint> {
        let mut write = self.db.write().await?;
        let mut checkpoint = require_checkpoint(caller, id, db::checkpoint(&mut write.tx, id).await?)?;
        if let Some(part) = &checkpoint.part {
            let text = format!(
                "checkpoint {id} is the image of unit {} in checkpoint {}, and goes with that",
                part.unit, part.of
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        match checkpoint.state {
            CheckpointState::Freed => return Ok(checkpoint),
            CheckpointState::Pending => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("checkpoint {id} is being made yet"),
                ));
            }
            state if !state.is_usable() => {
                return Err(Error::new(
                    ErrorKind::Gone,
                    format!("checkpoint {id} is {}", state.name()),
                ));
            }
            _ => {}
        }
        let job = caller.require_job(checkpoint.job, db::job(&mut write.tx, checkpoint.job).await?)?;
        let all = db::checkpoints_of(&mut write.tx, job.id).await?;
        if let Some(why) = retention::cannot_go(&job, &all, id) {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("checkpoint {id} cannot go: {why}"),
            ));
        }
        let why = format!("{} has no need of it any more", caller.name);
        self.end_checkpoint(&mut write, &job, &mut checkpoint, CheckpointState::Freed, why)
            .await?;
        write.account(&checkpoint.owner.name, Account::OPERATION).await?;
        write.commit().await?;
        Ok(checkpoint)
    }

    /// A job of the caller's, changed by `change`.
    async fn change_job(&self, caller: &Caller, id: i64, change: Change) -> Result<Job> {
        let mut write = self.db.write().await?;
        let mut job = caller.require_job(id, db::job(&mut write.tx, id).await?)?;
        let before = job.clone();
        let stops = matches!(change, Change::End(Intent::Suspend | Intent::Move(_)));
        self.change(&mut write, &mut job, change).await?;
        if stops && job.intent.is_some() {
            self.begin_checkpoint(&mut write, &mut job, true).await?;
        }
        if job != before {
            write.account(&job.owner.name, Account::OPERATION).await?;
            write.commit().await?;
        }
        Ok(job)
    }

    /// Changes how a job is saved from now on (XGCP-ADAPT-1, XGCP-ADAPT-2). A checkpoint that is being made is not
    /// disturbed.
    pub async fn change_policy(&self, caller: &Caller, id: i64, request: PolicyRequest) -> Result<Job> {
        let mut write = self.db.write().await?;
        let mut job = caller.require_job(id, db::job(&mut write.tx, id).await?)?;
        if job.state.is_over() {
            let text = format!("job {id} is {}, and not saved any more", job.state.name());
            return Err(Error::new(ErrorKind::Gone, text));
        }
        let before = job.spec.clone();
        request.apply(&mut job.spec);
        job.spec.check()?;
        if job.spec == before {
            return Ok(job);
        }
        let blocked = is_blocked(&mut write, &job).await?;
        write.put_job(&job, blocked).await?;
        let about = About {
            job: Some(&job),
            node: job.node.as_deref(),
        };
        let what = format!("job {id} is saved in another way, as {} wants", caller.name);
        write.note(self.clock.wall_ms(), "job.policy", about, what).await?;
        write.account(&job.owner.name, Account::OPERATION).await?;
        self.free_surplus(&mut write, &job).await?;
        write.commit().await?;
        Ok(job)
    }

    /// Ends a job for good. It has ended once its state says so.
    pub async fn cancel(&self, caller: &Caller, id: i64) -> Result<Job> {
        self.change_job(caller, id, Change::End(Intent::Cancel)).await
    }

    /// Saves a running job to a checkpoint and ends it, until it is recovered.
    pub async fn suspend(&self, caller: &Caller, id: i64) -> Result<Job> {
        self.change_job(caller, id, Change::End(Intent::Suspend)).await
    }

    /// Lets a running job go on elsewhere (GFD93-SCOPE-3).
    pub async fn migrate(&self, caller: &Caller, id: i64, request: MigrateRequest) -> Result<Job> {
        if let Some(name) = &request.to {
            self.require_node(name).await?;
            self.require_whole(caller, id).await?;
        }
        self.change_job(caller, id, Change::End(Intent::Move(request.to))).await
    }

    /// Refuses to put all units of a job on one node.
    async fn require_whole(&self, caller: &Caller, id: i64) -> Result<()> {
        match self.job(caller, id).await?.units.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Usage,
                format!("job {id} has several units, which have nodes of their own"),
            )
            .with_hint("name no node; drain the one that they should leave")),
        }
    }

    async fn require_node(&self, name: &str) -> Result<()> {
        let known = self.nodes().await?.into_iter().any(|node| node.info.name == *name);
        if known { Ok(()) } else { Err(unknown_node(name)) }
    }

    /// Lets a suspended, failed or cancelled job go on from its newest good checkpoint, or from one that is named
    /// (GCA-UC-5.3.4).
    pub async fn recover(&self, caller: &Caller, id: i64, request: RecoverRequest) -> Result<Job> {
        if let Some(name) = &request.on {
            self.require_node(name).await?;
            self.require_whole(caller, id).await?;
        }
        if let Some(from) = request.from {
            let checkpoint = self.checkpoint(caller, from).await?;
            let job = self.job(caller, id).await?;
            if checkpoint.job != id && !request.of_any_job {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("checkpoint {from} is of job {}", checkpoint.job),
                ));
            }
            if checkpoint.owner.uid != job.owner.uid {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "checkpoint {from} is of {}, not of the user of job {id}",
                        checkpoint.owner.name
                    ),
                ));
            }
            may_go_on_from(&checkpoint)?;
        }
        let change = Change::Recover {
            from: request.from,
            on: request.on,
        };
        self.change_job(caller, id, change).await
    }

    /// Asks for a checkpoint of a running job; it is made when its state says so (GCA-UC-5.2.2). With the key of an
    /// earlier request gives that one's checkpoint.
    pub async fn request_checkpoint(&self, caller: &Caller, id: i64, key: Option<&str>) -> Result<Checkpoint> {
        self.request_named_checkpoint(caller, id, None, key).await
    }

    /// The same, with a path in the name space.
    pub async fn request_named_checkpoint(
        &self,
        caller: &Caller,
        id: i64,
        name: Option<String>,
        key: Option<&str>,
    ) -> Result<Checkpoint> {
        if let Some(name) = &name {
            check_path(name)?;
        }
        let request = match &name {
            Some(name) => format!("checkpoint {id} {name}"),
            None => format!("checkpoint {id}"),
        };
        let mut write = self.db.write().await?;
        if let Some(made) = earlier::<Checkpoint>(&mut write, caller, key, &request).await? {
            return Ok(db::checkpoint(&mut write.tx, made.id).await?.unwrap_or(made));
        }
        let mut job = caller.require_job(id, db::job(&mut write.tx, id).await?)?;
        let ended = job.intent.is_some() || job.ending.is_some();
        if job.state != JobState::Running || ended {
            let kind = if job.state.is_over() {
                ErrorKind::Gone
            } else {
                ErrorKind::Busy
            };
            let how = if ended { "being ended" } else { job.state.name() };
            return Err(Error::new(
                kind,
                format!("job {id} is {how}; only a running job can be checkpointed"),
            ));
        }
        let mut checkpoint = self.begin_checkpoint(&mut write, &mut job, false).await?;
        if name.is_some() && checkpoint.name != name {
            let wanted = write.wanted(checkpoint.id).await?;
            checkpoint.name = name;
            write.put_checkpoint(&checkpoint, &wanted).await?;
        }
        write.account(&job.owner.name, Account::OPERATION).await?;
        remember(self, &mut write, caller, key, &request, &checkpoint).await?;
        write.commit().await?;
        Ok(checkpoint)
    }

    /// Lets a node's jobs go elsewhere and gives it no more, or with `undo` gives it jobs again.
    pub async fn drain(&self, caller: &Caller, name: &str, undo: bool) -> Result<Node> {
        caller.require_operator()?;
        let mut write = self.db.write().await?;
        let nodes = db::nodes(&mut write.tx).await?;
        let mut node = named(nodes, name)?;
        if node.drain != undo {
            return Ok(node);
        }
        node.drain = !undo;
        node.fault = node.fault.filter(|_| !undo);
        node.state = match (node.state, undo) {
            (NodeState::Lost, _) => NodeState::Lost,
            (_, true) => NodeState::Ready,
            (_, false) => NodeState::Draining,
        };
        write.put_node(&node).await?;
        let what = if undo { "takes jobs again" } else { "is drained" };
        let about = About {
            job: None,
            node: Some(name),
        };
        let kind = format!("node.{}", node.state.name());
        let text = format!("node {name} {what}, as {} wants", caller.name);
        write.note(self.clock.wall_ms(), &kind, about, text).await?;
        write.commit().await?;
        Ok(node)
    }

    /// Takes down that something is wrong with a node (GFD93-INT-EHdetect): its jobs are told, and leave it.
    pub async fn fault(&self, caller: &Caller, name: &str, reason: &str) -> Result<Node> {
        caller.require_operator()?;
        self.report_fault(name, reason, &caller.name).await
    }

    /// The same, whoever has found it out.
    pub(crate) async fn report_fault(&self, name: &str, reason: &str, who: &str) -> Result<Node> {
        let reason: String = reason
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST_REASON)
            .collect();
        if reason.trim().is_empty() {
            return Err(Error::new(ErrorKind::Usage, "it has to be said what is wrong"));
        }
        let mut write = self.db.write().await?;
        let nodes = db::nodes(&mut write.tx).await?;
        let mut node = named(nodes, name)?;
        if node.state == NodeState::Ready {
            node.state = NodeState::Draining;
        }
        node.drain = true;
        node.fault = Some(reason.clone());
        write.put_node(&node).await?;
        let now = self.clock.wall_ms();
        let about = About {
            job: None,
            node: Some(name),
        };
        let text = failing(name, &reason);
        write
            .note(now, "node.fault", about, format!("{text}, as {who} says"))
            .await?;
        let sql = "SELECT doc FROM jobs WHERE node = $1 AND state IN ('starting', 'running') ORDER BY id";
        let mut affected: Vec<Job> = db::docs(&mut write.tx, sql, &[name.into()]).await?;
        affected.extend(db::units_on(&mut write.tx, name).await?.into_iter().map(|(job, _)| job));
        affected.dedup_by_key(|job| job.id);
        for job in &affected {
            let about = About {
                job: Some(job),
                node: Some(name),
            };
            write
                .note(now, "job.warned", about, format!("job {} is told: {text}", job.id))
                .await?;
        }
        write.commit().await?;
        Ok(node)
    }
}
