//! Metrics of jobs: what programs of a job and others tell each other (SAGA CPR API, section 2.2, metrics of `cpr_job`).
//!
//! The four of the draft are there for every job. Who listens gets an event of the kind `metric.NAME`.

use cpr_api::model::{Metric, MetricRequest, Page};
use cpr_types::{Error, ErrorKind, Result};

use crate::caller::Caller;
use crate::db::{self, About, Write};
use crate::grid::Grid;

/// Those that every job has: name, type, and what it says.
const BUILT_IN: [(&str, &str, &str); 4] = [
    ("Checkpoint", "String", "an application-level checkpoint is requested"),
    ("Checkpointed", "Trigger", "an application-level checkpoint is finished"),
    ("Recover", "String", "an application-level recovery is requested"),
    ("Recovered", "Trigger", "an application-level recovery is finished"),
];
/// Most metrics of a job, and bytes of each text.
const MOST: usize = 100;
const LONGEST: usize = 64 << 10;

fn built_in(name: &str) -> Option<Metric> {
    let found = BUILT_IN.iter().find(|(known, ..)| *known == name)?;
    Some(Metric {
        name: found.0.into(),
        description: format!("to be fired when {}", found.2),
        mode: "ReadWrite".into(),
        unit: "1".into(),
        kind: found.1.into(),
        value: String::new(),
        fired: 0,
    })
}

fn check(metric: &Metric) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::Usage, format!("metric {:?} {what}", metric.name)));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if metric.name.is_empty() || metric.name.len() > 100 || !metric.name.chars().all(plain) {
        return refuse("is no name of letters, digits, _, - and .");
    }
    if metric.value.len() + metric.description.len() + metric.unit.len() > LONGEST {
        return refuse("is too long");
    }
    if !["ReadOnly", "ReadWrite", "Final"].contains(&metric.mode.as_str()) {
        return refuse("is neither ReadOnly nor ReadWrite nor Final");
    }
    Ok(())
}

async fn put(write: &mut Write<'_>, job: i64, metric: &Metric) -> Result<()> {
    check(metric)?;
    let doc = serde_json::to_string(metric)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode a metric").with_source(error))?;
    let sql = "INSERT INTO metrics (job, name, doc) VALUES ($1, $2, $3) ON CONFLICT (job, name) DO UPDATE SET doc = $3";
    let values = [job.into(), metric.name.as_str().into(), doc.as_str().into()];
    db::execute(&mut write.tx, sql, &values).await.map(drop)
}

impl Grid {
    /// Metrics of a job.
    pub async fn metrics(&self, caller: &Caller, id: i64) -> Result<Page<Metric>> {
        let mut connection = self.db.read().await?;
        caller.require_job(id, db::job(&mut connection, id).await?)?;
        let sql = "SELECT doc FROM metrics WHERE job = $1 ORDER BY name";
        let mut items: Vec<Metric> = db::docs(&mut connection, sql, &[id.into()]).await?;
        let missing = BUILT_IN
            .iter()
            .filter(|(name, ..)| !items.iter().any(|metric| metric.name == *name));
        let missing: Vec<Metric> = missing.filter_map(|(name, ..)| built_in(name)).collect();
        items.extend(missing);
        Ok(Page { items, next: None })
    }

    /// Adds, sets, fires or removes a metric of a job; gives it as it is then.
    pub async fn change_metric(&self, caller: &Caller, id: i64, request: MetricRequest) -> Result<Metric> {
        let mut write = self.db.write().await?;
        let job = caller.require_job(id, db::job(&mut write.tx, id).await?)?;
        let sql = "SELECT doc FROM metrics WHERE job = $1 ORDER BY name";
        let all: Vec<Metric> = db::docs(&mut write.tx, sql, &[id.into()]).await?;
        let find = |name: &str| {
            let found = all.iter().find(|metric| metric.name == name).cloned();
            found
                .or_else(|| built_in(name))
                .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("job {id} has no metric {name:?}")))
        };
        let metric = match request {
            MetricRequest::Add { metric } => {
                if find(&metric.name).is_ok() {
                    let text = format!("job {id} has a metric {:?} already", metric.name);
                    return Err(Error::new(ErrorKind::AlreadyExists, text));
                }
                if all.len() >= MOST {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("a job has {MOST} metrics at most"),
                    ));
                }
                metric
            }
            MetricRequest::Set { name, value } => Metric { value, ..find(&name)? },
            MetricRequest::Fire { name, value } => {
                let mut metric = find(&name)?;
                if job.state.is_over() {
                    let text = format!("job {id} is {}, and nobody there hears of {name:?}", job.state.name());
                    return Err(Error::new(ErrorKind::Gone, text));
                }
                metric.value = value.unwrap_or(metric.value);
                metric.fired += 1;
                let about = About {
                    job: Some(&job),
                    node: None,
                };
                let kind = format!("metric.{name}");
                check(&metric)?;
                write
                    .note(self.clock.wall_ms(), &kind, about, metric.value.clone())
                    .await?;
                metric
            }
            MetricRequest::Remove { name } => {
                let metric = find(&name)?;
                if built_in(&name).is_some() {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("every job has the metric {name:?}"),
                    ));
                }
                let sql = "DELETE FROM metrics WHERE job = $1 AND name = $2";
                db::execute(&mut write.tx, sql, &[id.into(), name.as_str().into()]).await?;
                write.commit().await?;
                return Ok(metric);
            }
        };
        put(&mut write, id, &metric).await?;
        write.commit().await?;
        Ok(metric)
    }
}
