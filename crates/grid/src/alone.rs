//! Units that go on alone, because their job's units say nothing to each other: from the newest image of each that can
//! be had, while the others run on (XtreemGCP, section 3.2).

use std::collections::BTreeSet;

use cpr_api::model::{
    Checkpoint, CheckpointState, Ending, Intent, Job, JobState, Node, NodeState, UnitImage, UnitPhase,
};
use cpr_types::Result;

use crate::db::{self, About, Write};
use crate::grid::Grid;
use crate::lifecycle::Change;
use crate::placement::{self, Free};
use crate::tick::{ATTEMPTS, engine_on, want_image};
use crate::units;

/// Where a unit goes on.
#[derive(Debug, PartialEq, Eq)]
enum Start<'a> {
    From(&'a Checkpoint),
    /// It has never been saved.
    Afresh,
    /// Its images are on nodes that are not there.
    Wait,
    /// It cannot: the job as a whole has to go back.
    Never(&'static str),
}

/// The newest good image of a unit, given all that were ever made of its job's units.
fn choose<'a>(job: &Job, number: u32, images: &'a [Checkpoint], nodes: &[Node]) -> Start<'a> {
    let live = |name: &str| name.is_empty() || nodes.iter().any(|n| n.info.name == name && n.state != NodeState::Lost);
    let held = |c: &&&Checkpoint| c.locations.iter().any(|place| live(&place.node));
    let tried = |c: &&&Checkpoint| job.bad_starts.iter().filter(|id| **id == c.id).count() < ATTEMPTS;
    let is_of = |c: &&Checkpoint| c.part.as_ref().is_some_and(|part| part.unit == number);
    let own: Vec<&Checkpoint> = images.iter().filter(is_of).collect();
    let usable: Vec<&Checkpoint> = own.iter().copied().filter(|c| c.state.is_usable()).collect();
    let newest = usable.iter().filter(held).filter(tried).max_by_key(|c| c.id);
    let connected = |c: &Checkpoint| {
        let part = c.part.as_ref();
        part.is_some_and(|part| part.connections.as_ref().is_some_and(|all| !all.is_empty()))
    };
    match newest {
        Some(image) if connected(image) => Start::Never("its newest image has connections to other units"),
        Some(image) => Start::From(image),
        None if !usable.iter().any(|c| tried(&c)) && !usable.is_empty() => {
            Start::Never("it could be started from none of its images")
        }
        None if !usable.is_empty() => Start::Wait,
        None if own.iter().any(|c| c.state == CheckpointState::Lost) => Start::Never("its images are lost"),
        None => Start::Afresh,
    }
}

/// Every image that was ever made of a unit of a job.
async fn images_of_units(write: &mut Write<'_>, job: &Job) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE job = $1 AND part_of <> 0 ORDER BY id";
    db::docs(&mut write.tx, sql, &[job.id.into()]).await
}

/// What stands for a unit that does not run in a checkpoint of the others: the image that it goes on from, or 0 where
/// it begins afresh. None where its job has to go back as a whole.
fn stands_for(job: &Job, number: u32, images: &[Checkpoint], nodes: &[Node]) -> Option<i64> {
    let unit = job.units.get(number as usize)?;
    if unit.phase.is_placed() && unit.phase != UnitPhase::Running {
        return Some(unit.from.unwrap_or(0));
    }
    match choose(job, number, images, nodes) {
        Start::From(image) => Some(image.id),
        Start::Afresh => Some(0),
        Start::Wait => {
            let is_of = |c: &&Checkpoint| c.part.as_ref().is_some_and(|part| part.unit == number);
            let own = images.iter().filter(is_of).filter(|c| c.state.is_usable());
            own.map(|c| c.id).max()
        }
        Start::Never(_) => None,
    }
}

impl Grid {
    /// What stands for each unit of a job that neither runs nor has finished. None where nothing can for one of them.
    pub(crate) async fn standing(&self, write: &mut Write<'_>, job: &Job) -> Result<Option<Vec<UnitImage>>> {
        let missing = (0..).zip(&job.units).filter(|(_, unit)| !units::is_settled(unit));
        let missing: Vec<u32> = missing.map(|(number, _)| number).collect();
        self.stand_in(write, job, &missing).await
    }

    /// The same for these units.
    pub(crate) async fn stand_in(
        &self,
        write: &mut Write<'_>,
        job: &Job,
        missing: &[u32],
    ) -> Result<Option<Vec<UnitImage>>> {
        if missing.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let nodes = db::nodes(&mut write.tx).await?;
        let images = images_of_units(write, job).await?;
        let stands = |number: &u32| {
            let checkpoint = stands_for(job, *number, &images, &nodes)?;
            Some(UnitImage {
                unit: *number,
                checkpoint,
            })
        };
        Ok(missing.iter().map(stands).collect())
    }

    /// Gives units that wait alone to nodes.
    pub(crate) async fn place_units_alone(&self) -> Result<()> {
        let sql = "SELECT doc FROM jobs WHERE state = 'running' AND id IN (SELECT job FROM units WHERE node = '') \
                   ORDER BY priority DESC, id";
        let waiting: Vec<Job> = db::docs(&mut *self.db.read().await?, sql, &[]).await?;
        for job in waiting {
            let mut write = self.db.write().await?;
            let Some(mut job) = db::job(&mut write.tx, job.id).await? else {
                continue;
            };
            if job.state == JobState::Running && self.place_those_of(&mut write, &mut job).await? {
                write.commit().await?;
            }
        }
        Ok(())
    }

    /// Those of one job; true where something was written.
    async fn place_those_of(&self, write: &mut Write<'_>, job: &mut Job) -> Result<bool> {
        let placed = job.units.iter().any(|unit| unit.phase.is_placed());
        if matches!(job.intent, Some(Intent::Cancel | Intent::Expire)) && !placed {
            // No node has anything of it that could be ended.
            self.change(write, job, Change::Killed).await?;
            return Ok(true);
        }
        if job.intent.is_some() || job.ending.is_some() || job.not_before_ms > self.clock.wall_ms() {
            return Ok(false);
        }
        let nodes = db::nodes(&mut write.tx).await?;
        let mut free = self.free(write, &nodes).await?;
        let images = images_of_units(write, job).await?;
        let waiting = (0..)
            .zip(&job.units)
            .filter(|(_, unit)| unit.phase == UnitPhase::Waiting);
        let waiting: Vec<u32> = waiting.map(|(number, _)| number).collect();
        let mut changed = false;
        for number in waiting {
            changed |= match choose(job, number, &images, &nodes) {
                Start::From(image) => {
                    self.place_alone(write, job, number, Some(image), &nodes, &mut free)
                        .await?
                }
                Start::Afresh => self.place_alone(write, job, number, None, &nodes, &mut free).await?,
                Start::Wait => {
                    let why = format!("unit {number}: waits for a node that holds an image of it");
                    self.wait(write, job, why).await?
                }
                Start::Never(why) => {
                    let why = format!("unit {number}: {why}");
                    match placed {
                        true => {
                            job.ending = Some(Ending::Broken { why });
                            write.put_job(job, false).await?;
                        }
                        false => self.change(write, job, Change::Broke { why }).await?,
                    }
                    return Ok(true);
                }
            };
        }
        Ok(changed)
    }

    async fn place_alone(
        &self,
        write: &mut Write<'_>,
        job: &mut Job,
        number: u32,
        image: Option<&Checkpoint>,
        nodes: &[Node],
        free: &mut [Free],
    ) -> Result<bool> {
        let at = number as usize;
        let places = image.iter().flat_map(|c| &c.locations);
        let holders: BTreeSet<String> = places.map(|place| place.node.clone()).collect();
        let spec = placement::needs(&job.spec.unit(at), image);
        let chosen = placement::choose_all(&[Some((spec.clone(), holders))], free);
        let node = match chosen.map(|all| all.into_iter().flatten().next()) {
            Ok(Some(node)) => node,
            Ok(None) => return Ok(false),
            Err(why) => {
                // It is the only one that was asked for.
                let why = why.strip_prefix("unit 0: ").unwrap_or(&why);
                return self.wait(write, job, format!("unit {number}: {why}")).await;
            }
        };
        if let Some(image) = image {
            want_image(write, image, &node).await?;
        }
        self.close_start(write, job).await?;
        if let Some(unit) = job.units.get_mut(at) {
            unit.engine = engine_on(&spec, nodes, &node);
        }
        units::place_alone(job, at, node.clone(), image.map(|image| image.id));
        write.put_job(job, false).await?;
        self.open_incarnation(write, job, &node).await?;
        let about = About {
            job: Some(job),
            node: Some(&node),
        };
        let from = image.map_or("the beginning".to_string(), |image| format!("image {}", image.id));
        let what = format!("unit {number} of job {} goes on alone on {node}, from {from}", job.id);
        write.note(self.clock.wall_ms(), "unit.starting", about, what).await?;
        Ok(true)
    }

    /// Writes down that a failure of the system has ended what a job was till now.
    async fn close_start(&self, write: &mut Write<'_>, job: &Job) -> Result<()> {
        let sql = "UPDATE incarnations SET ended_ms = $3, outcome = $4, broken = 1 \
                   WHERE job = $1 AND number = $2 AND ended_ms = 0";
        let values = [
            job.id.into(),
            i64::from(job.incarnation).into(),
            self.clock.wall_ms().into(),
            job.reason.as_deref().unwrap_or_default().into(),
        ];
        db::execute(&mut write.tx, sql, &values).await.map(drop)
    }
}
