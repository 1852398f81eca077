//! Lists: which jobs, checkpoints and events are asked for, page by page.

use std::collections::{BTreeMap, BTreeSet};

use cpr_api::model::{Arriving, Checkpoint, Event, Job, JobState, Node, Page, Usage, Waiting};
use cpr_types::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::AnyConnection;

use crate::caller::Caller;
use crate::db::{self, Value};
use crate::grid::Grid;

/// Items of a page where nothing is said, and at most.
const PAGE: i64 = 100;
const LONGEST_PAGE: i64 = 1000;
/// Numbers in one statement.
const ID_CHUNK: usize = 500;

/// Which jobs. Conditions that are given all have to hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobQuery {
    /// States, separated by commas.
    pub state: Option<String>,
    /// Owner's login name.
    pub owner: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Node that has it.
    pub node: Option<String>,
    /// The array it is of.
    pub array: Option<i64>,
    /// Submitted at this time or later, and before that one; milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// The other end.
    pub until_ms: Option<i64>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Items of the page, at most 1000.
    pub limit: Option<i64>,
    /// Fields to tell, separated by commas; all where nothing is said.
    pub fields: Option<String>,
}

/// Which jobs that wait.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueQuery {
    /// Owner's login name.
    pub owner: Option<String>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Items of the page, at most 1000.
    pub limit: Option<i64>,
}

/// Which checkpoints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointQuery {
    /// The job.
    pub job: Option<i64>,
    /// States, separated by commas.
    pub state: Option<String>,
    /// Owner's login name.
    pub owner: Option<String>,
    /// Node that made it.
    pub node: Option<String>,
    /// Node that holds a copy; `store` for the store that all nodes share. The images of checkpoints that have several
    /// are found, too.
    pub location: Option<String>,
    /// Only the images of this checkpoint, which has several.
    pub images_of: Option<i64>,
    /// Asked for at this time or later, and before that one; milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// The other end.
    pub until_ms: Option<i64>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Items of the page, at most 1000.
    pub limit: Option<i64>,
    /// Fields to tell, separated by commas; all where nothing is said.
    pub fields: Option<String>,
}

/// Which events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventQuery {
    /// About this job.
    pub job: Option<i64>,
    /// About this node.
    pub node: Option<String>,
    /// Of this kind, or of all kinds that begin with it and a dot.
    pub kind: Option<String>,
    /// `next` of the page before, or the number of the last event that is known already.
    pub after: Option<String>,
    /// Items of the page, at most 1000.
    pub limit: Option<i64>,
}

/// A statement under way.
struct Select {
    conditions: Vec<String>,
    values: Vec<Value>,
}

impl Select {
    fn new() -> Select {
        Select {
            conditions: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Adds a condition, in which `?` is the value.
    fn with(mut self, condition: &str, value: Option<impl Into<Value>>) -> Select {
        if let Some(value) = value {
            self.values.push(value.into());
            self.conditions
                .push(condition.replace('?', &format!("${}", self.values.len())));
        }
        self
    }

    fn any_of(mut self, column: &str, values: &[String]) -> Select {
        if !values.is_empty() {
            let from = self.values.len() + 1;
            let marks: Vec<String> = (from..from + values.len()).map(|n| format!("${n}")).collect();
            self.conditions.push(format!("{column} IN ({})", marks.join(", ")));
            self.values
                .extend(values.iter().map(|value| Value::from(value.as_str())));
        }
        self
    }

    /// One page of records in the order of their numbers.
    async fn page<T: DeserializeOwned>(
        self,
        connection: &mut AnyConnection,
        table: &str,
        after: Option<&str>,
        limit: Option<i64>,
        id: impl Fn(&T) -> i64,
    ) -> Result<Page<T>> {
        let (after, limit) = page_of(after, limit)?;
        let select = self.with("id > ?", Some(after));
        let sql = format!(
            "SELECT doc FROM {table} WHERE {} ORDER BY id LIMIT {}",
            select.conditions.join(" AND "),
            limit + 1
        );
        let mut items: Vec<T> = db::docs(connection, &sql, &select.values).await?;
        let more = items.len() as i64 > limit;
        items.truncate(limit as usize);
        let next = items.last().filter(|_| more).map(|last| id(last).to_string());
        Ok(Page { items, next })
    }
}

/// Which page: after which number, and how many items.
pub(crate) fn page_of(after: Option<&str>, limit: Option<i64>) -> Result<(i64, i64)> {
    let after = match after {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| Error::new(ErrorKind::Usage, format!("there is no page after {text:?}")))?,
    };
    Ok((after, limit_of(limit)?))
}

/// How many items a page has.
pub(crate) fn limit_of(limit: Option<i64>) -> Result<i64> {
    let limit = limit.unwrap_or(PAGE);
    if !(1..=LONGEST_PAGE).contains(&limit) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("a page has 1 to {LONGEST_PAGE} items, not {limit}"),
        ));
    }
    Ok(limit)
}

/// Jobs that have to finish before this one starts for the first time.
async fn unfinished(connection: &mut AnyConnection, job: &Job) -> Result<Vec<i64>> {
    let mut needs = Vec::new();
    for id in job.spec.after.iter().filter(|_| job.incarnation == 0) {
        let needed = db::job(connection, *id).await?;
        if needed.is_none_or(|needed| needed.state != JobState::Finished) {
            needs.push(*id);
        }
    }
    Ok(needs)
}

fn why_it_waits(job: &Job, needs: &[i64], now_ms: i64) -> String {
    if !needs.is_empty() {
        let needs: Vec<String> = needs.iter().map(i64::to_string).collect();
        return format!("waits until these jobs have finished: {}", needs.join(", "));
    }
    let why = job.reason.as_deref().unwrap_or("it has just come");
    match job.not_before_ms.saturating_sub(now_ms) {
        pause if pause > 0 => format!("{why}; it is tried again in {} s", (pause + 999) / 1000),
        _ => why.to_string(),
    }
}

fn list(text: Option<&str>) -> Vec<String> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .map(str::to_string)
        .collect()
}

impl Grid {
    /// What users have had done and what their checkpoints take, by name: the caller, or everybody for operators.
    pub async fn usage(&self, caller: &Caller) -> Result<Vec<Usage>> {
        let mut connection = self.db.read().await?;
        let only = caller.restriction();
        let sql = "SELECT owner, operations, images, bytes_stored, bytes_moved FROM accounts ORDER BY owner";
        let mut all = Vec::new();
        for row in db::rows(&mut connection, sql, &[]).await? {
            let owner = db::text(&row, 0)?;
            if only.as_ref().is_none_or(|only| *only == owner) {
                all.push(Usage {
                    operations: db::number(&row, 1)?,
                    images: db::number(&row, 2)?,
                    bytes_stored: db::number(&row, 3)?,
                    bytes_moved: db::number(&row, 4)?,
                    bytes_held: 0,
                    owner,
                });
            }
        }
        for usage in &mut all {
            let sql = "SELECT doc FROM checkpoints WHERE owner = $1 AND state IN ('stored', 'complete')";
            let held: Vec<Checkpoint> = db::docs(&mut connection, sql, &[usage.owner.as_str().into()]).await?;
            // What has several images has no copies of its own.
            let bytes = |c: &Checkpoint| c.bytes.saturating_mul(c.locations.len() as u64);
            let bytes = held.iter().map(bytes).fold(0, u64::saturating_add);
            usage.bytes_held = i64::try_from(bytes).unwrap_or(i64::MAX);
        }
        Ok(all)
    }

    /// Jobs that the caller may see (GFD93-SM-10).
    pub async fn jobs(&self, caller: &Caller, query: &JobQuery) -> Result<Page<Job>> {
        let states = list(query.state.as_deref());
        for state in &states {
            state.parse::<JobState>()?;
        }
        Select::new()
            .with("owner = ?", caller.restriction().as_deref())
            .with("owner = ?", query.owner.as_deref())
            .with("name = ?", query.name.as_deref())
            .with(
                "(node = ? OR id IN (SELECT job FROM units WHERE node = ?))",
                query.node.as_deref(),
            )
            .with("part_of = ?", query.array)
            .with("submitted_ms >= ?", query.since_ms)
            .with("submitted_ms < ?", query.until_ms)
            .any_of("state", &states)
            .page(
                &mut *self.db.read().await?,
                "jobs",
                query.after.as_deref(),
                query.limit,
                |job: &Job| job.id,
            )
            .await
    }

    /// Jobs that wait, in the order in which they are given to nodes, and why each of them waits.
    pub async fn queue(&self, caller: &Caller, query: &QueueQuery) -> Result<Page<Waiting>> {
        let (after, limit) = page_of(query.after.as_deref(), query.limit)?;
        let select = Select::new()
            .with("owner = ?", caller.restriction().as_deref())
            .with("owner = ?", query.owner.as_deref())
            .with("place > ?", Some(after));
        let sql = format!(
            "SELECT doc, place FROM (SELECT doc, owner, ROW_NUMBER() OVER (ORDER BY {}) AS place \
             FROM jobs WHERE state = 'queued') AS waiting WHERE {} ORDER BY place LIMIT {}",
            self.order_of_queue(),
            select.conditions.join(" AND "),
            limit + 1
        );
        let mut connection = self.db.read().await?;
        let rows = db::rows(&mut connection, &sql, &select.values).await?;
        let mut items = Vec::new();
        for row in rows.iter().take(limit as usize) {
            let job: Job = db::decode(&db::text(row, 0)?)?;
            let needs = unfinished(&mut connection, &job).await?;
            let why = why_it_waits(&job, &needs, self.clock.wall_ms());
            items.push(Waiting {
                place: db::number(row, 1)?,
                job,
                needs,
                why,
            });
        }
        let next = items.last().filter(|_| rows.len() as i64 > limit);
        let next = next.map(|last| last.place.to_string());
        Ok(Page { items, next })
    }

    /// Checkpoints of jobs that the caller may see (GCA-GCS-3).
    pub async fn checkpoints(&self, caller: &Caller, query: &CheckpointQuery) -> Result<Page<Checkpoint>> {
        let location = query
            .location
            .as_deref()
            .map(|name| if name == "store" { "" } else { name });
        let mut select = Select::new();
        // Numbers first, in their order, and so many records then as the page has: without the limit, which is none,
        // PostgreSQL reads the records of all copies on the node and sorts these.
        let mut table = "checkpoints";
        // What a node makes or holds are images.
        let by_image = query.location.is_some() || query.node.is_some();
        let of = query.images_of.or((!by_image).then_some(0));
        if let Some(node) = location {
            select.values.push(node.into());
            table = "(SELECT checkpoint AS held_at FROM locations WHERE node = $1 AND held = 1 \
                     ORDER BY checkpoint LIMIT 9223372036854775807) AS held JOIN checkpoints ON id = held_at";
        }
        let select = select
            .with("owner = ?", caller.restriction().as_deref())
            .with("owner = ?", query.owner.as_deref())
            .with("job = ?", query.job)
            .with("part_of = ?", of)
            .with("node = ?", query.node.as_deref())
            .with("created_ms >= ?", query.since_ms)
            .with("created_ms < ?", query.until_ms)
            .any_of("state", &list(query.state.as_deref()));
        let mut connection = self.db.read().await?;
        let (after, limit) = (query.after.as_deref(), query.limit);
        let mut page = select
            .page(&mut connection, table, after, limit, |c: &Checkpoint| c.id)
            .await?;
        self.tell_arriving(&mut connection, &mut page.items).await?;
        Ok(page)
    }

    /// Adds to checkpoints which nodes are to get a copy of them, and how far each is.
    pub(crate) async fn tell_arriving(
        &self,
        connection: &mut AnyConnection,
        checkpoints: &mut [Checkpoint],
    ) -> Result<()> {
        let usable = checkpoints.iter().filter(|c| c.state.is_usable());
        let ids: Vec<i64> = usable.map(|c| c.id).collect();
        for ids in ids.chunks(ID_CHUNK) {
            let marks: Vec<String> = (1..=ids.len()).map(|n| format!("${n}")).collect();
            let sql = format!(
                "SELECT checkpoint, node FROM locations WHERE held = 0 AND checkpoint IN ({}) ORDER BY node",
                marks.join(", ")
            );
            let values: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
            for row in db::rows(connection, &sql, &values).await? {
                let (id, node) = (db::number(&row, 0)?, db::text(&row, 1)?);
                let bytes = self.leases().get(&node).and_then(|lease| {
                    let told = lease.fetching.iter().find(|told| told.id == id);
                    told.map(|told| told.bytes)
                });
                let bytes = bytes.unwrap_or(0);
                if let Some(checkpoint) = checkpoints.iter_mut().find(|c| c.id == id) {
                    checkpoint.arriving.push(Arriving { node, bytes });
                }
            }
        }
        Ok(())
    }

    /// Checkpoints of which a copy is on record in the store that all nodes share, for the service itself.
    pub async fn in_store(&self) -> Result<BTreeSet<i64>> {
        let mut connection = self.db.read().await?;
        let sql = "SELECT checkpoint FROM locations WHERE node = '' AND held = 1";
        let rows = db::rows(&mut connection, sql, &[]).await?;
        rows.iter().map(|row| db::number(row, 0)).collect()
    }

    /// Those of these checkpoints that there are, for the service itself.
    pub async fn known_checkpoints(&self, ids: &[i64]) -> Result<BTreeMap<i64, Checkpoint>> {
        let mut connection = self.db.read().await?;
        let mut known = BTreeMap::new();
        for ids in ids.chunks(ID_CHUNK) {
            let marks: Vec<String> = (1..=ids.len()).map(|n| format!("${n}")).collect();
            let sql = format!("SELECT doc FROM checkpoints WHERE id IN ({})", marks.join(", "));
            let values: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
            let found: Vec<Checkpoint> = db::docs(&mut connection, &sql, &values).await?;
            known.extend(found.into_iter().map(|checkpoint| (checkpoint.id, checkpoint)));
        }
        Ok(known)
    }

    /// Events about nodes, and about jobs that the caller may see.
    pub async fn events(&self, caller: &Caller, query: &EventQuery) -> Result<Page<Event>> {
        let kind = "(kind = ? OR substr(kind, 1, length(?) + 1) = ? || '.')";
        Select::new()
            .with("(owner = ? OR owner = '')", caller.restriction().as_deref())
            .with("job = ?", query.job)
            .with("node = ?", query.node.as_deref())
            .with(kind, query.kind.as_deref())
            .page(
                &mut *self.db.read().await?,
                "events",
                query.after.as_deref(),
                query.limit,
                |e: &Event| e.id,
            )
            .await
    }

    /// The number of the newest event; 0 where there is none.
    pub async fn newest_event(&self) -> Result<i64> {
        let mut connection = self.db.read().await?;
        let rows = db::rows(&mut connection, "SELECT COALESCE(MAX(id), 0) FROM events", &[]).await?;
        rows.first().map_or(Ok(0), |row| db::number(row, 0))
    }

    /// All nodes, by name. Everybody may see them (GCA-ENV-3).
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        db::nodes(&mut *self.db.read().await?).await
    }

    /// Numbers of jobs, checkpoints and nodes in each state, as `(what, state, number)`.
    pub async fn counts(&self) -> Result<Vec<(&'static str, String, i64)>> {
        let mut connection = self.db.read().await?;
        let mut counts = Vec::new();
        let checkpoints = "checkpoints WHERE part_of = 0";
        for (what, table) in [("jobs", "jobs"), ("checkpoints", checkpoints), ("nodes", "nodes")] {
            let sql = format!("SELECT state, COUNT(*) FROM {table} GROUP BY state ORDER BY state");
            for row in db::rows(&mut connection, &sql, &[]).await? {
                counts.push((what, db::text(&row, 0)?, db::number(&row, 1)?));
            }
        }
        Ok(counts)
    }
}
