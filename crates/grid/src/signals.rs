//! Signals for jobs, and what jobs use: how either gets from a node to the record of a job.

use cpr_api::agent::{Incarnation, JobReport, SignalOrder};
use cpr_api::model::{Job, JobSignal, SignalRequest, UnitPhase, Used};
use cpr_types::{Error, ErrorKind, Result};

use crate::caller::Caller;
use crate::db::{self, About, Account, Write};
use crate::grid::Grid;

/// Signals that may wait for one job.
const MOST: usize = 64;
/// Those that no program has a handler for, and those that the C library uses (signal(7)).
const REFUSED: [i32; 4] = [9, 19, 32, 33];

fn usage(text: String, hint: &'static str) -> Error {
    Error::new(ErrorKind::Usage, text).with_hint(hint)
}

/// The signals of a job, or of a unit of it, as its node is told of them.
pub(crate) fn orders(job: &Job, unit: Option<u32>) -> Vec<SignalOrder> {
    let is_for = |signal: &&JobSignal| unit.is_none_or(|unit| signal.units.contains(&unit));
    let signals = job.signals.iter().filter(is_for);
    signals
        .map(|signal| SignalOrder {
            id: signal.id,
            number: signal.number,
        })
        .collect()
}

/// Whether a node says that it has given a job, or a unit of it, a signal that is on record as waiting.
pub(crate) fn is_news(job: &Job, told: &JobReport) -> bool {
    orders(job, told.incarnation.unit)
        .iter()
        .any(|signal| signal.id <= told.signalled)
}

impl Grid {
    /// Has a signal sent to the first process of a job, or of each unit that has not finished: at once, or as soon as
    /// it runs (GFD.90, job, `signal`).
    pub async fn signal(&self, caller: &Caller, id: i64, request: SignalRequest) -> Result<Job> {
        let number = request.number;
        if !(1..=64).contains(&number) || REFUSED.contains(&number) {
            let text = format!("signal {number} cannot be sent to a job");
            return Err(usage(text, "`cpr cancel` ends jobs, and `cpr suspend` stops them"));
        }
        let mut write = self.db.write().await?;
        let mut job = caller.require_job(id, db::job(&mut write.tx, id).await?)?;
        if job.state.is_over() {
            let state = job.state.name();
            return Err(Error::new(
                ErrorKind::Gone,
                format!("job {id} is {state}, and gets no signals"),
            ));
        }
        if job.signals.len() >= MOST {
            let text = format!("{MOST} signals wait for job {id} already");
            return Err(Error::new(ErrorKind::Busy, text).with_hint("ask again when it runs"));
        }
        job.signal_count += 1;
        let unfinished = (0..)
            .zip(&job.units)
            .filter(|(_, unit)| unit.phase != UnitPhase::Finished);
        job.signals.push(JobSignal {
            id: job.signal_count,
            number,
            units: unfinished.map(|(number, _)| number).collect(),
        });
        let blocked = crate::grid::is_blocked(&mut write, &job).await?;
        write.put_job(&job, blocked).await?;
        write.account(&job.owner.name, Account::OPERATION).await?;
        write.commit().await?;
        Ok(job)
    }

    /// A node has given signals to a job, or to a unit of it.
    pub(crate) async fn signalled(&self, write: &mut Write<'_>, told: &JobReport, node: &str) -> Result<()> {
        let Some(mut job) = db::job(&mut write.tx, told.incarnation.job).await? else {
            return Ok(());
        };
        let unit = told.incarnation.unit;
        let mut given = Vec::new();
        let finished: Vec<bool> = job.units.iter().map(|unit| unit.phase == UnitPhase::Finished).collect();
        for signal in &mut job.signals {
            let is_for = unit.is_none_or(|unit| signal.units.contains(&unit));
            if signal.id <= told.signalled && is_for {
                given.push(signal.number);
                let waits = |other: &u32| Some(*other) != unit && finished.get(*other as usize) == Some(&false);
                signal.units.retain(waits);
            }
        }
        job.signals
            .retain(|signal| signal.id > told.signalled || !signal.units.is_empty());
        if given.is_empty() {
            return Ok(());
        }
        write.put_job(&job, false).await?;
        for number in given {
            let about = About {
                job: Some(&job),
                node: Some(node),
            };
            let of = unit.map_or(String::new(), |unit| format!("unit {unit} of "));
            let text = format!("signal {number} was sent to {of}job {}", job.id);
            write.note(self.clock.wall_ms(), "job.signalled", about, text).await?;
        }
        Ok(())
    }

    /// What an incarnation uses, as its node has last told.
    fn usage_of(&self, node: Option<&str>, incarnation: Incarnation) -> Used {
        let leases = self.leases();
        let lease = node.and_then(|node| leases.get(node));
        lease
            .and_then(|lease| lease.usage.get(&incarnation).copied())
            .unwrap_or_default()
    }

    /// Adds to what a job has used what it uses now (GFD.90, job, metrics).
    pub(crate) fn tell_usage(&self, job: &mut Job) {
        let mut now = Used::default();
        if job.state.is_placed() && job.units.is_empty() {
            now.add(self.usage_of(job.node.as_deref(), whole(job)));
        }
        for (number, unit) in (0..).zip(&job.units).filter(|(_, unit)| unit.phase.is_placed()) {
            now.add(self.usage_of(unit.node.as_deref(), part(job, number)));
        }
        job.used.add(now);
    }

    /// What the start of a job has used that has ended is kept.
    pub(crate) fn keep_usage(&self, before: &Job, job: &mut Job) {
        if before.units.is_empty() {
            job.used
                .add(self.usage_of(before.node.as_deref(), whole(before)).over());
        }
    }

    /// The same of a unit.
    pub(crate) fn keep_usage_of_unit(&self, before: &Job, job: &mut Job, number: u32) {
        let node = before.units.get(number as usize).and_then(|unit| unit.node.as_deref());
        job.used.add(self.usage_of(node, part(before, number)).over());
    }
}

fn whole(job: &Job) -> Incarnation {
    Incarnation {
        job: job.id,
        number: job.incarnation,
        unit: None,
    }
}

fn part(job: &Job, unit: u32) -> Incarnation {
    Incarnation {
        job: job.id,
        number: job.incarnation_of(unit),
        unit: Some(unit),
    }
}
