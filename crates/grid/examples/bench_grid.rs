//! Measures the service with 10 000 jobs and 100 000 checkpoints in its database: how long lists, queries and
//! submissions take, as its users see them without the network. `make bench-grid` runs it; an argument names another
//! database than a SQLite file in the working directory's `target`, which has to be an empty one.
//!
//! The records are written past the service, because making them the long way takes an hour.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has to stop")]

use std::time::{Duration, Instant};

use cpr_api::model::{Checkpoint, CheckpointState, Job, JobSpec, JobState, Location, Owner};
use cpr_grid::{Caller, CheckpointQuery, Clock, Db, EventQuery, Grid, JobQuery, Policy, Role};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, Connection};

const JOBS: i64 = 10_000;
const CHECKPOINTS_PER_JOB: i64 = 10;
const USERS: i64 = 50;
const ROUNDS: i64 = 500;
/// What the 99th percentile of everything has to be below.
const LIMIT: Duration = Duration::from_millis(50);

fn owner(number: i64) -> Owner {
    Owner {
        name: format!("user{number}"),
        uid: 1000 + number as u32,
        gid: 1000,
    }
}

fn caller(number: i64) -> Caller {
    Caller {
        name: owner(number).name,
        user: Some(owner(number)),
        role: Role::User,
    }
}

fn spec() -> JobSpec {
    JobSpec {
        name: Some("sim".into()),
        command: vec!["./sim".into(), "input.dat".into()],
        directory: "/home/ada".into(),
        environment: (0..30)
            .map(|n| (format!("VARIABLE_{n}"), "some value".into()))
            .collect(),
        every_s: Some(600),
        ..JobSpec::default()
    }
}

/// One job in ten is queued, the others are over.
fn job(sample: &Job, id: i64) -> Job {
    Job {
        id,
        owner: owner(id % USERS),
        state: if id % 10 == 0 {
            JobState::Queued
        } else {
            JobState::Failed
        },
        submitted_ms: id * 1000,
        ended_ms: (id % 10 != 0).then_some(id * 1000),
        ..sample.clone()
    }
}

fn checkpoint(id: i64, job: &Job) -> Checkpoint {
    Checkpoint {
        id,
        job: job.id,
        owner: job.owner.clone(),
        incarnation: 1,
        generation: (id % CHECKPOINTS_PER_JOB + 1) as u32,
        state: if id % 5 == 0 {
            CheckpointState::Complete
        } else {
            CheckpointState::Freed
        },
        stop: false,
        parent: None,
        engine: "native".into(),
        node: format!("n{}", id % 20),
        bytes: 5 << 20,
        blake3: "0".repeat(64),
        cost_ms: None,
        took_ms: None,
        created_ms: id * 100,
        stored_ms: Some(id * 100 + 50),
        reason: None,
        locations: vec![Location {
            node: format!("n{}", id % 20),
            verified_ms: id * 100,
        }],
        arriving: Vec::new(),
        units: Vec::new(),
        name: None,
        ttl_s: None,
        coordination: None,
        part: None,
        own: None,
    }
}

async fn fill(connection: &mut AnyConnection, sample: &Job) {
    let mut tx = connection.begin().await.unwrap();
    let mut id = 0;
    for number in 2..=JOBS + 1 {
        let job = job(sample, number);
        let sql = "INSERT INTO jobs (id, owner, name, state, node, priority, submitted_ms, due_ms, doc) \
                   VALUES ($1, $2, 'sim', $3, '', 0, $4, $5, $6)";
        sqlx::query(sql)
            .bind(job.id)
            .bind(job.owner.name.as_str())
            .bind(job.state.name())
            .bind(job.submitted_ms)
            .bind(if job.state == JobState::Queued { 0 } else { i64::MAX })
            .bind(serde_json::to_string(&job).unwrap())
            .execute(&mut *tx)
            .await
            .unwrap();
        for _ in 0..CHECKPOINTS_PER_JOB {
            id += 1;
            let checkpoint = checkpoint(id, &job);
            let sql = "INSERT INTO checkpoints (id, job, owner, state, node, created_ms, doc) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7)";
            sqlx::query(sql)
                .bind(id)
                .bind(job.id)
                .bind(job.owner.name.as_str())
                .bind(checkpoint.state.name())
                .bind(checkpoint.node.as_str())
                .bind(checkpoint.created_ms)
                .bind(serde_json::to_string(&checkpoint).unwrap())
                .execute(&mut *tx)
                .await
                .unwrap();
            if checkpoint.state == CheckpointState::Complete {
                let sql = "INSERT INTO locations (node, checkpoint, held) VALUES ($1, $2, 1)";
                sqlx::query(sql)
                    .bind(checkpoint.node.as_str())
                    .bind(id)
                    .execute(&mut *tx)
                    .await
                    .unwrap();
            }
        }
    }
    for (name, value) in [("job", JOBS + 1), ("checkpoint", id)] {
        let sql = "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2";
        sqlx::query(sql).bind(name).bind(value).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Does something again and again; false where the 99th percentile is too high.
async fn measure<F: Future<Output = usize>>(what: &str, run: impl Fn(i64) -> F) -> bool {
    let mut times = Vec::new();
    let mut items = 0;
    for round in 0..ROUNDS {
        let begun = Instant::now();
        items = run(round).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    let (half, most) = (at(50), at(99));
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("| {what} | {items} | {:.2} | {:.2} |", ms(half), ms(most));
    most < LIMIT
}

async fn run() -> bool {
    let directory = std::path::Path::new("target/bench-grid");
    let url = match std::env::args().nth(1) {
        Some(url) => url,
        None => {
            let _ = std::fs::remove_dir_all(directory);
            std::fs::create_dir_all(directory).unwrap();
            let path = directory.canonicalize().unwrap().join("grid.db");
            format!("sqlite://{}", path.display())
        }
    };
    let grid = Grid::open(Db::open(&url).await.unwrap(), Policy::default(), Clock::system())
        .await
        .unwrap();
    let sample = grid.submit(&caller(1), spec(), None).await.unwrap();
    assert_eq!(sample.id, 1, "the database is not empty");
    let pool = AnyPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    fill(&mut pool.acquire().await.unwrap(), &sample).await;
    pool.close().await;

    let grid = &grid;
    println!("| what | items | median ms | 99th percentile ms |\n|---|---:|---:|---:|");
    let mut good = measure("list jobs of one user", |n| async move {
        let jobs = grid.jobs(&caller(n % USERS), &JobQuery::default()).await.unwrap();
        jobs.items.len()
    })
    .await;
    good &= measure("list queued jobs of one user", |n| async move {
        let query = JobQuery {
            state: Some("queued".into()),
            ..JobQuery::default()
        };
        // Users whose number ends with 0 have them.
        grid.jobs(&caller(n % 5 * 10), &query).await.unwrap().items.len()
    })
    .await;
    good &= measure("list complete checkpoints of one user", |n| async move {
        let query = CheckpointQuery {
            state: Some("complete".into()),
            ..CheckpointQuery::default()
        };
        grid.checkpoints(&caller(n % USERS), &query).await.unwrap().items.len()
    })
    .await;
    good &= measure("list checkpoints of one job", |n| async move {
        let id = 2 + n * 17 % JOBS;
        let query = CheckpointQuery {
            job: Some(id),
            ..CheckpointQuery::default()
        };
        grid.checkpoints(&caller(id % USERS), &query).await.unwrap().items.len()
    })
    .await;
    good &= measure("list checkpoints on one node", |n| async move {
        let query = CheckpointQuery {
            location: Some(format!("n{}", n % 4 * 5)),
            ..CheckpointQuery::default()
        };
        let operator = Caller {
            role: Role::Operator,
            ..caller(1)
        };
        grid.checkpoints(&operator, &query).await.unwrap().items.len()
    })
    .await;
    good &= measure("query one job", |n| async move {
        let id = 2 + n * 13 % JOBS;
        usize::from(grid.job(&caller(id % USERS), id).await.is_ok())
    })
    .await;
    good &= measure("submit a job", |n| async move {
        usize::from(grid.submit(&caller(n % USERS), spec(), None).await.is_ok())
    })
    .await;
    good &= measure("list events of one user", |n| async move {
        let events = grid.events(&caller(n % USERS), &EventQuery::default()).await.unwrap();
        events.items.len()
    })
    .await;
    good
}

fn main() -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if runtime.block_on(run()) {
        std::process::ExitCode::SUCCESS
    } else {
        eprintln!("something takes longer than {} ms", LIMIT.as_millis());
        std::process::ExitCode::FAILURE
    }
}
