//! The database: SQLite or PostgreSQL behind the same statements, migrations, and transactions of one writer at a time.
//!
//! It knows how records are kept and nothing of what they mean. Whoever opens the database last owns it: a transaction
//! of an earlier owner fails, also when two of them run at once on different hosts.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use cpr_api::model::{Checkpoint, Event, Job, JobState, Node, Unit, UnitPhase};
use cpr_types::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, Executor, Row, Transaction};
use tokio::sync::{Mutex, MutexGuard, watch};

/// Statements of each version of the schema.
const MIGRATIONS: [&str; 6] = [
    include_str!("../migrations/0001.sql"),
    include_str!("../migrations/0002.sql"),
    include_str!("../migrations/0003.sql"),
    include_str!("../migrations/0004.sql"),
    include_str!("../migrations/0005.sql"),
    include_str!("../migrations/0006.sql"),
];
/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// [`due`] of a job to which nothing is going to happen by itself.
pub(crate) const NEVER: i64 = i64::MAX;

/// A value of a statement.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_string())
    }
}

/// An open database.
#[derive(Debug)]
pub struct Db {
    pool: AnyPool,
    is_sqlite: bool,
    /// Says whether we are still the owner.
    token: i64,
    writer: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// Turns a failure of the database into one of ours.
pub(crate) fn failed(what: &str) -> impl FnOnce(sqlx::Error) -> Error + '_ {
    move |error| {
        let kind = match &error {
            sqlx::Error::PoolTimedOut => ErrorKind::TimedOut,
            sqlx::Error::Io(error) => ErrorKind::of_io(error),
            sqlx::Error::Database(error) if error.message().contains("full") => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error::new(kind, what.to_string()).with_source(error)
    }
}

fn encode(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::Internal, "encode a record").with_source(error))
}

pub(crate) fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Damaged, "a record of the database is not understood").with_source(error)
    })
}

fn bind<'q>(sql: &'q str, values: &'q [Value]) -> Query<'q, Any, sqlx::any::AnyArguments<'q>> {
    values.iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Int(value) => query.bind(*value),
        Value::Text(value) => query.bind(value.as_str()),
    })
}

/// Runs a statement; gives the number of rows it changed.
pub(crate) async fn execute(connection: &mut AnyConnection, sql: &str, values: &[Value]) -> Result<u64> {
    let done = bind(sql, values).execute(connection).await;
    Ok(done.map_err(failed("change the database"))?.rows_affected())
}

/// Rows of a query.
pub(crate) async fn rows(connection: &mut AnyConnection, sql: &str, values: &[Value]) -> Result<Vec<AnyRow>> {
    bind(sql, values)
        .fetch_all(connection)
        .await
        .map_err(failed("read the database"))
}

/// A text column, by its index.
pub(crate) fn text(row: &AnyRow, index: usize) -> Result<String> {
    row.try_get(index).map_err(failed("read the database"))
}

/// A number column, by its index.
pub(crate) fn number(row: &AnyRow, index: usize) -> Result<i64> {
    row.try_get(index).map_err(failed("read the database"))
}

/// The records in the first column of a query.
pub(crate) async fn docs<T: DeserializeOwned>(
    connection: &mut AnyConnection,
    sql: &str,
    values: &[Value],
) -> Result<Vec<T>> {
    rows(connection, sql, values)
        .await?
        .iter()
        .map(|row| decode(&text(row, 0)?))
        .collect()
}

/// The one record with this number, of a table whose key is `id`.
async fn by_id<T: DeserializeOwned>(connection: &mut AnyConnection, table: &str, id: i64) -> Result<Option<T>> {
    let sql = format!("SELECT doc FROM {table} WHERE id = $1");
    Ok(docs(connection, &sql, &[id.into()]).await?.pop())
}

/// A job.
pub(crate) async fn job(connection: &mut AnyConnection, id: i64) -> Result<Option<Job>> {
    by_id(connection, "jobs", id).await
}

/// A checkpoint.
pub(crate) async fn checkpoint(connection: &mut AnyConnection, id: i64) -> Result<Option<Checkpoint>> {
    by_id(connection, "checkpoints", id).await
}

/// All checkpoints of a job, oldest first.
pub(crate) async fn checkpoints_of(connection: &mut AnyConnection, job: i64) -> Result<Vec<Checkpoint>> {
    docs(
        connection,
        "SELECT doc FROM checkpoints WHERE job = $1 AND part_of = 0 ORDER BY id",
        &[job.into()],
    )
    .await
}

/// The checkpoints of a job that are being made, or can be had.
pub(crate) async fn present_of(connection: &mut AnyConnection, job: i64) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE job = $1 AND part_of = 0 \
               AND state IN ('pending', 'stored', 'complete') ORDER BY id";
    docs(connection, sql, &[job.into()]).await
}

/// The checkpoints of a job that are being made.
pub(crate) async fn pending_of(connection: &mut AnyConnection, job: i64) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE job = $1 AND part_of = 0 AND state = 'pending' ORDER BY id";
    docs(connection, sql, &[job.into()]).await
}

/// The images of a checkpoint of several units.
pub(crate) async fn parts_of(connection: &mut AnyConnection, checkpoint: i64) -> Result<Vec<Checkpoint>> {
    let sql = "SELECT doc FROM checkpoints WHERE part_of = $1 ORDER BY id";
    docs(connection, sql, &[checkpoint.into()]).await
}

/// The images that a checkpoint of several units consists of: those that were made for it, and of units that were not
/// there the ones that stand for them, from earlier checkpoints.
pub(crate) async fn images_of(connection: &mut AnyConnection, set: &Checkpoint) -> Result<Vec<Checkpoint>> {
    let named = |id: i64| set.units.iter().any(|image| image.checkpoint == id);
    let mut images = parts_of(connection, set.id).await?;
    images.retain(|image| named(image.id));
    for image in &set.units {
        if image.checkpoint != 0
            && !images.iter().any(|known| known.id == image.checkpoint)
            && let Some(earlier) = checkpoint(connection, image.checkpoint).await?
        {
            images.push(earlier);
        }
    }
    Ok(images)
}

/// Units that a node has or may have, with their jobs.
pub(crate) async fn units_on(connection: &mut AnyConnection, node: &str) -> Result<Vec<(Job, u32)>> {
    let sql = "SELECT j.doc, u.unit FROM units u JOIN jobs j ON j.id = u.job WHERE u.node = $1 ORDER BY u.job, u.unit";
    let unit = |row: &AnyRow| {
        let unit = u32::try_from(number(row, 1)?);
        let unit = unit.map_err(|_| Error::new(ErrorKind::Damaged, "a record of the database is not understood"))?;
        Ok((decode(&text(row, 0)?)?, unit))
    };
    rows(connection, sql, &[node.into()]).await?.iter().map(unit).collect()
}

/// All nodes, by name.
pub(crate) async fn nodes(connection: &mut AnyConnection) -> Result<Vec<Node>> {
    docs(connection, "SELECT doc FROM nodes ORDER BY name", &[]).await
}

/// When something may have to be done about a job without anybody asking: its next attempt, checkpoint or time limit.
fn due(job: &Job, blocked: bool) -> i64 {
    match job.state {
        JobState::Queued if blocked => NEVER,
        JobState::Queued => job.not_before_ms,
        JobState::Running => {
            let after = |seconds: u64| i64::try_from(seconds.saturating_mul(1000)).unwrap_or(NEVER);
            let started = job.started_ms.unwrap_or(0);
            let begun = job.checkpoint_begun_ms.unwrap_or(started);
            let next = job.every_ms().map_or(NEVER, |every| begun.saturating_add(every));
            let end = job
                .spec
                .time_limit_s
                .map_or(NEVER, |limit| started.saturating_add(after(limit)));
            next.min(end)
        }
        _ => NEVER,
    }
}

impl Db {
    /// Opens the database at `url`, `sqlite:///PATH` or `postgres://…`, made or brought up to date where needed, and
    /// becomes its owner.
    pub async fn open(url: &str) -> Result<Db> {
        sqlx::any::install_default_drivers();
        let what = "open the database";
        let is_sqlite = url.starts_with("sqlite:");
        let options = AnyConnectOptions::from_str(url).map_err(|error| {
            Error::new(ErrorKind::Usage, "the address of the database is not understood").with_source(error)
        })?;
        if let Some(path) = url.strip_prefix("sqlite://") {
            create_private(Path::new(path.split('?').next().unwrap_or(path)))?;
        }
        let pool = AnyPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(PATIENCE)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_sqlite {
                        // FULL: what is committed survives a power cut in WAL mode, too (sqlite.org/pragma.html).
                        let pragmas =
                            "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
                        connection.execute(pragmas).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(failed(what))?;
        let db = Db {
            pool,
            is_sqlite,
            token: i64::from_le_bytes(random()?),
            writer: Mutex::new(()),
            changed: watch::Sender::new(0),
        };
        db.migrate().await?;
        Ok(db)
    }

    /// Begins a transaction that is going to write.
    ///
    /// With SQLite it waits for whoever writes before it reads anything. One that has read is refused at once when it
    /// comes to write while another connection does, as that of an earlier owner that takes its last changes back
    /// (sqlite.org/lang_transaction.html).
    async fn begin(&self) -> sqlx::Result<Transaction<'static, Any>> {
        match self.is_sqlite {
            true => self.pool.begin_with("BEGIN IMMEDIATE").await,
            false => self.pool.begin().await,
        }
    }

    async fn migrate(&self) -> Result<()> {
        let what = "bring the database up to date";
        let mut tx = self.begin().await.map_err(failed(what))?;
        let version = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)";
        tx.execute(version).await.map_err(failed(what))?;
        if !self.is_sqlite {
            // Nobody else does it at the same time. SQLite has one writer anyway.
            tx.execute("LOCK TABLE schema_version IN EXCLUSIVE MODE")
                .await
                .map_err(failed(what))?;
        }
        let found = rows(&mut tx, "SELECT COALESCE(MAX(version), 0) FROM schema_version", &[]).await?;
        let version = found.first().map_or(Ok(0), |row| number(row, 0))?;
        if version > MIGRATIONS.len() as i64 {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!(
                    "the database has schema {version}; this program knows up to {}",
                    MIGRATIONS.len()
                ),
            )
            .with_hint("use the newer cprd, or restore a backup from before the upgrade"));
        }
        for (number, statements) in (1..).zip(MIGRATIONS).skip(version as usize) {
            // Comments first: they may have semicolons in them.
            let lines = statements.lines().filter(|line| !line.starts_with("--"));
            let statements = lines.collect::<Vec<_>>().join("\n");
            for statement in statements.split(';').filter(|s| !s.trim().is_empty()) {
                tx.execute(statement).await.map_err(failed(what))?;
            }
            execute(
                &mut tx,
                "INSERT INTO schema_version (version) VALUES ($1)",
                &[number.into()],
            )
            .await?;
        }
        let own = "INSERT INTO counters (name, value) VALUES ('owner', $1) ON CONFLICT (name) DO UPDATE SET value = $1";
        execute(&mut tx, own, &[self.token.into()]).await?;
        tx.commit().await.map_err(failed(what))
    }

    /// The secret of this name, made where there is none: the same for every service that has the database.
    pub(crate) async fn secret(&self, name: &str) -> Result<[u8; 32]> {
        let mut write = self.write().await?;
        let new = blake3::Hash::from_bytes(random()?).to_hex();
        let sql = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        execute(&mut write.tx, sql, &[name.into(), new.as_str().into()]).await?;
        let found = rows(
            &mut write.tx,
            "SELECT value FROM secrets WHERE name = $1",
            &[name.into()],
        )
        .await?;
        write.commit().await?;
        let text = found.first().map_or(Ok(String::new()), |row| text(row, 0))?;
        let secret = blake3::Hash::from_hex(&text)
            .map_err(|error| Error::new(ErrorKind::Damaged, "a secret of the database is none").with_source(error))?;
        Ok(*secret.as_bytes())
    }

    /// A connection for reading.
    pub(crate) async fn read(&self) -> Result<PoolConnection<Any>> {
        self.pool.acquire().await.map_err(failed("reach the database"))
    }

    /// Begins a transaction. Dropped without [`Write::commit`] it changes nothing.
    pub(crate) async fn write(&self) -> Result<Write<'_>> {
        let guard = self.writer.lock().await;
        let mut tx = self.begin().await.map_err(failed("reach the database"))?;
        // Locks the row, so that no two owners write at once.
        let own = "UPDATE counters SET value = value WHERE name = 'owner' AND value = $1";
        if execute(&mut tx, own, &[self.token.into()]).await? == 0 {
            return Err(Error::new(ErrorKind::Gone, "another cprd has taken over the database")
                .with_hint("one `cprd grid` at a time may use it; this one has to be stopped"));
        }
        Ok(Write {
            tx,
            changed: &self.changed,
            _guard: guard,
        })
    }

    /// Tells of every transaction that has changed something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        done += rustix::rand::getrandom(&mut bytes[done..], flags)
            .map_err(|error| Error::new(ErrorKind::Io, "get random bytes").with_source(error))?;
    }
    Ok(bytes)
}

/// Makes the file of a SQLite database, closed to others, where it is missing.
fn create_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    cpr_types::Context::context(file.map(drop), || format!("open database {}", path.display()))
}

/// A transaction.
pub(crate) struct Write<'a> {
    pub(crate) tx: Transaction<'static, Any>,
    changed: &'a watch::Sender<u64>,
    _guard: MutexGuard<'a, ()>,
}

/// What is to be added to a user's account.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) operations: i64,
    pub(crate) images: i64,
    pub(crate) bytes_stored: u64,
    pub(crate) bytes_moved: u64,
}

impl Account {
    /// A request that was done.
    pub(crate) const OPERATION: Account = Account {
        operations: 1,
        images: 0,
        bytes_stored: 0,
        bytes_moved: 0,
    };
}

/// What an event is about.
#[derive(Default)]
pub(crate) struct About<'a> {
    pub(crate) job: Option<&'a Job>,
    pub(crate) node: Option<&'a str>,
}

impl Write<'_> {
    /// Makes it durable.
    pub(crate) async fn commit(self) -> Result<()> {
        self.tx.commit().await.map_err(failed("write the database"))?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// The next number of a counter, from 1.
    pub(crate) async fn next(&mut self, counter: &str) -> Result<i64> {
        let sql = "INSERT INTO counters (name, value) VALUES ($1, 1) \
                   ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value";
        let rows = rows(&mut self.tx, sql, &[counter.into()]).await?;
        number(
            rows.first()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a counter has no value"))?,
            0,
        )
    }

    /// Writes a job down. `blocked`: it waits for other jobs.
    pub(crate) async fn put_job(&mut self, job: &Job, blocked: bool) -> Result<()> {
        let sql = "INSERT INTO jobs (id, owner, name, state, node, priority, submitted_ms, due_ms, doc, part_of) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO UPDATE SET \
                   state = $4, node = $5, priority = $6, due_ms = $8, doc = $9";
        let values = [
            job.id.into(),
            job.owner.name.as_str().into(),
            job.spec.name.as_deref().unwrap_or_default().into(),
            job.state.name().into(),
            job.node.as_deref().unwrap_or_default().into(),
            i64::from(job.spec.priority).into(),
            job.submitted_ms.into(),
            due(job, blocked).into(),
            encode(job)?.as_str().into(),
            job.array.map_or(0, |array| array.id).into(),
        ];
        execute(&mut self.tx, sql, &values).await?;
        if job.units.is_empty() {
            return Ok(());
        }
        execute(&mut self.tx, "DELETE FROM units WHERE job = $1", &[job.id.into()]).await?;
        // Those that wait alone for a node are found by having none.
        let runs = job.state == JobState::Running;
        let is_here = |unit: &Unit| unit.phase.is_placed() || (runs && unit.phase == UnitPhase::Waiting);
        for (number, unit) in (0..).zip(&job.units).filter(|(_, unit)| is_here(unit)) {
            let sql = "INSERT INTO units (job, unit, node) VALUES ($1, $2, $3)";
            let node = unit.node.as_deref().unwrap_or_default();
            execute(&mut self.tx, sql, &[job.id.into(), Value::Int(number), node.into()]).await?;
        }
        Ok(())
    }

    /// Writes a checkpoint down, with its locations, and those it is to have (`wanted`).
    pub(crate) async fn put_checkpoint(&mut self, checkpoint: &Checkpoint, wanted: &[String]) -> Result<()> {
        let sql = "INSERT INTO checkpoints (id, job, owner, state, node, created_ms, doc, part_of) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET state = $4, doc = $7";
        let values = [
            checkpoint.id.into(),
            checkpoint.job.into(),
            checkpoint.owner.name.as_str().into(),
            checkpoint.state.name().into(),
            checkpoint.node.as_str().into(),
            checkpoint.created_ms.into(),
            encode(checkpoint)?.as_str().into(),
            checkpoint.part.as_ref().map_or(0, |part| part.of).into(),
        ];
        execute(&mut self.tx, sql, &values).await?;
        let remove = "DELETE FROM locations WHERE checkpoint = $1";
        execute(&mut self.tx, remove, &[checkpoint.id.into()]).await?;
        let held = checkpoint.locations.iter().map(|place| (place.node.as_str(), 1));
        let wanted = wanted.iter().map(|node| (node.as_str(), 0));
        for (node, held) in held.chain(wanted) {
            let sql = "INSERT INTO locations (node, checkpoint, held) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            execute(
                &mut self.tx,
                sql,
                &[node.into(), checkpoint.id.into(), i64::from(held).into()],
            )
            .await?;
        }
        Ok(())
    }

    /// Nodes that are to get a copy of a checkpoint and have none yet.
    pub(crate) async fn wanted(&mut self, checkpoint: i64) -> Result<Vec<String>> {
        let sql = "SELECT node FROM locations WHERE checkpoint = $1 AND held = 0 ORDER BY node";
        rows(&mut self.tx, sql, &[checkpoint.into()])
            .await?
            .iter()
            .map(|row| text(row, 0))
            .collect()
    }

    /// Adds to what a user has had done (GFD93-AUTH-6).
    pub(crate) async fn account(&mut self, owner: &str, more: Account) -> Result<()> {
        let sql = "INSERT INTO accounts (owner, operations, images, bytes_stored, bytes_moved) \
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (owner) DO UPDATE SET \
                   operations = accounts.operations + $2, images = accounts.images + $3, \
                   bytes_stored = accounts.bytes_stored + $4, bytes_moved = accounts.bytes_moved + $5";
        let bytes = |count: u64| Value::Int(i64::try_from(count).unwrap_or(i64::MAX));
        let values = [
            owner.into(),
            more.operations.into(),
            more.images.into(),
            bytes(more.bytes_stored),
            bytes(more.bytes_moved),
        ];
        execute(&mut self.tx, sql, &values).await.map(drop)
    }

    /// Writes a node down.
    pub(crate) async fn put_node(&mut self, node: &Node) -> Result<()> {
        let sql = "INSERT INTO nodes (name, state, doc) VALUES ($1, $2, $3) \
                   ON CONFLICT (name) DO UPDATE SET state = $2, doc = $3";
        let values = [
            node.info.name.as_str().into(),
            node.state.name().into(),
            encode(node)?.as_str().into(),
        ];
        execute(&mut self.tx, sql, &values).await.map(drop)
    }

    /// Writes down that something happened.
    pub(crate) async fn note(&mut self, at_ms: i64, kind: &str, about: About<'_>, what: String) -> Result<()> {
        let event = Event {
            id: self.next("event").await?,
            at_ms,
            kind: kind.to_string(),
            job: about.job.map(|job| job.id),
            node: about.node.map(str::to_string),
            owner: about.job.map(|job| job.owner.name.clone()),
            text: what,
        };
        let sql = "INSERT INTO events (id, at_ms, kind, job, node, owner, doc) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let values = [
            event.id.into(),
            at_ms.into(),
            kind.into(),
            event.job.unwrap_or(0).into(),
            about.node.unwrap_or_default().into(),
            event.owner.as_deref().unwrap_or_default().into(),
            encode(&event)?.as_str().into(),
        ];
        execute(&mut self.tx, sql, &values).await.map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_takes_over_waits_for_what_the_one_before_is_writing() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("grid.db").display());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let before = Db::open(&url).await.unwrap();
            let writing = before.write().await.unwrap();
            let open = Db::open(&url);
            tokio::pin!(open);
            let early = tokio::time::timeout(Duration::from_millis(300), &mut open).await;
            assert!(early.is_err(), "it has not waited: {early:?}");
            drop(writing);
            let after = open.await.unwrap();
            after.write().await.unwrap().commit().await.unwrap();
            assert!(before.write().await.is_err(), "it has been taken over");
        });
    }
}
