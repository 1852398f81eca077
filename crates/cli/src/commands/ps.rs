//! `cpr ps`

use std::io::{self, IsTerminal};
use std::time::SystemTime;

use cpr_node::{JobStatus, Phase, StateDir};
use cpr_types::{ErrorKind, Result};
use serde_json::{Value, json};

use crate::args::Ps;
use crate::output::{Output, Table, ago, command_line, duration, from_ms, timestamp};
use crate::signal::signal_name;

pub fn ps(output: Output, args: &Ps) -> Result<u8> {
    let mut jobs = Vec::new();
    let mut ended = 0;
    for job in StateDir::open()?.jobs()? {
        let status = match job.status() {
            Ok(status) => status,
            // Removed just now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if args.all || lives(status.phase) {
            jobs.push(status);
        } else {
            ended += 1;
        }
    }
    output.answer(
        || json!({"jobs": jobs.iter().map(entry).collect::<Vec<_>>()}),
        || match output.is_quiet() {
            true => jobs.iter().map(|job| format!("{}\n", job.name)).collect(),
            false => table(&jobs),
        },
    )?;
    // A hint for people, not for scripts.
    if ended > 0 && !output.is_json() && io::stderr().is_terminal() {
        let (jobs, have) = if ended == 1 { ("job", "has") } else { ("jobs", "have") };
        output.note(format!("{ended} more {jobs} {have} ended; `cpr ps -a` lists all"));
    }
    Ok(0)
}

fn lives(phase: Phase) -> bool {
    match phase {
        Phase::Starting | Phase::Running | Phase::Suspended => true,
        Phase::Created | Phase::Stopped | Phase::Exited | Phase::Crashed | Phase::Failed => false,
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Suspended => "suspended",
        Phase::Stopped => "stopped",
        Phase::Exited => "exited",
        Phase::Crashed => "crashed",
        Phase::Failed => "failed",
    }
}

fn entry(job: &JobStatus) -> Value {
    let time = |ms: Option<u64>| ms.map(|ms| timestamp(from_ms(ms)));
    json!({
        "name": job.name,
        "phase": phase_name(job.phase),
        "pid": job.pid,
        "command": job.command,
        "directory": job.directory,
        "created": timestamp(from_ms(job.created_ms)),
        "started": time(job.started_ms),
        "finished": time(job.finished_ms),
        "exit_code": job.exit_code,
        "every_ms": job.every_ms,
        "keep": job.keep,
        "checkpoints": job.images,
        "last_checkpoint": job.last_checkpoint.as_ref().map(|last| json!({
            "time": timestamp(from_ms(last.time_ms)),
            "image": last.image,
            "error": last.error,
        })),
        "error": job.error,
        "cgroup": job.cgroup,
        "no_cgroup": job.no_cgroup,
    })
}

fn table(jobs: &[JobStatus]) -> String {
    let headings = [
        "NAME",
        "PHASE",
        "PID",
        "STARTED",
        "EVERY",
        "IMAGES",
        "LAST CHECKPOINT",
        "COMMAND",
    ];
    let mut table = Table::new(&headings, &[2, 5]);
    let now = SystemTime::now();
    let dash = || "-".to_string();
    for job in jobs {
        let phase = match (job.phase, job.signal, job.exit_code) {
            (Phase::Crashed, Some(signal), _) => format!("crashed ({})", signal_name(signal)),
            (Phase::Exited, _, Some(code)) => format!("exited ({code})"),
            (phase, ..) => phase_name(phase).to_string(),
        };
        let last = job.last_checkpoint.as_ref().map(|last| {
            let time = ago(from_ms(last.time_ms), now);
            if last.error.is_some() {
                format!("failed {time}")
            } else {
                time
            }
        });
        table.row([
            job.name.clone(),
            phase,
            job.pid.map_or_else(dash, |pid| pid.to_string()),
            job.started_ms.map_or_else(dash, |ms| ago(from_ms(ms), now)),
            job.every_ms
                .map_or_else(dash, |ms| duration(ms.saturating_mul(1_000_000))),
            job.images.to_string(),
            last.unwrap_or_else(dash),
            command_line(&job.command),
        ]);
    }
    table.render()
}
