//! `cpr checkpoint`

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use cpr_node::{
    Bare, Basis, CheckpointOptions, Checkpointed, Conductor, Job, Method, Output as Destination, Phase, Reached,
    SetUnit, StateDir,
};
use cpr_types::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::args::Checkpoint;
use crate::commands::every::every;
use crate::commands::{grid, step};
use crate::output::{Output, clean, duration, milliseconds, size};
use crate::target::{self, Live, live};

pub fn checkpoint(output: Output, args: Checkpoint) -> Result<u8> {
    if args.all {
        return all(output, &args);
    }
    if !args.more.is_empty() {
        return several(output, &args).map(|()| 0);
    }
    if let Some(id) = args.target.as_deref().and_then(grid::grid_job) {
        grid::require_plain(&args, &[format!("@{id}").as_ref()])?;
        return grid::checkpoint(output, id);
    }
    if let (Some(patience), Some(target), Some(path)) = (args.steps, &args.target, &args.output) {
        let job = target::job(&target.to_string_lossy())?;
        return in_steps(output, &args, &job, path, patience).map(|()| 0);
    }
    if args.output.as_deref().is_none_or(|path| path.as_os_str() != "-") {
        let destination = args.output.clone().map(Destination::Path);
        return make(output, args, destination).map(|()| 0);
    }
    if io::stdout().is_terminal() {
        return Err(Error::new(ErrorKind::Usage, "an image is not written to a terminal")
            .with_hint("write it to a file or a pipe: `cpr checkpoint -o - JOB | ssh HOST cpr restart -`"));
    }
    if args.compare {
        return Err(Error::new(
            ErrorKind::Usage,
            "--compare reads the image back, which cannot be done with a stream",
        )
        .with_hint("write the image to a file"));
    }
    // Whoever reads the image from standard output must find nothing else there, error or not.
    let output = output.beside_stream();
    match make(output, args, Some(Destination::Stdout)) {
        Ok(()) => Ok(0),
        Err(error) => {
            output.error(&error);
            Ok(error.kind().exit_code())
        }
    }
}

/// Saves several jobs in one stop.
fn several(output: Output, args: &Checkpoint) -> Result<()> {
    let directory = args.output.as_deref().filter(|path| path.as_os_str() != "-");
    let directory = directory.ok_or_else(|| {
        Error::new(ErrorKind::Usage, "several jobs are saved into a directory").with_hint("give its name with -o")
    })?;
    let names = args.target.iter().chain(&args.more);
    let jobs = names
        .map(|name| target::job(&name.to_string_lossy()))
        .collect::<Result<Vec<_>>>()?;
    let options = CheckpointOptions {
        stop: args.stop,
        timeout: args.timeout,
        keep: args.contents.keep(),
        ..CheckpointOptions::default()
    };
    let made = cpr_node::checkpoint_set(&jobs, directory, &options)?;
    let unit = |unit: &SetUnit| {
        let report = &unit.report;
        json!({
            "job": unit.job,
            "engine": unit.engine,
            "image": unit.image,
            "image_id": report.image_id,
            "bytes": report.image_bytes,
            "freeze_ms": milliseconds(report.freeze_ns),
            "total_ms": milliseconds(report.total_ns),
            "processes": report.processes,
            "threads": report.threads,
        })
    };
    output.done(
        || {
            json!({
                "set": made.path,
                "together_ms": milliseconds(made.together_ns),
                "units": made.units.iter().map(unit).collect::<Vec<_>>(),
            })
        },
        || {
            let line = |unit: &SetUnit| {
                let made = Checkpointed {
                    image: Some(unit.image.clone()),
                    report: unit.report.clone(),
                };
                report_text(&unit.job, &made)
            };
            made.units.iter().map(line).collect()
        },
    )
}

/// Saves a job step by step.
fn in_steps(output: Output, args: &Checkpoint, job: &Job, path: &Path, patience: Duration) -> Result<()> {
    let mut tell = |reached: &Reached<'_>| step(output, reached);
    let mut conductor = Conductor::new(patience, &mut tell)?;
    let options = CheckpointOptions {
        progress: None,
        ..options(output, args, None)
    };
    let report = cpr_node::checkpoint_in_steps(job, path, &options, &mut conductor)?;
    let made = Checkpointed {
        image: Some(path.to_path_buf()),
        report,
    };
    output.done(
        || report_json(Some(job.name()), None, None, &made),
        || report_text(job.name(), &made),
    )
}

/// Saves every job that runs.
fn all(output: Output, args: &Checkpoint) -> Result<u8> {
    let mut jobs = StateDir::open()?.jobs()?;
    // Those that have ended since are told as such.
    jobs.retain(|job| job.status().is_ok_and(|status| status.phase == Phase::Running));
    every(output, jobs, &mut |job| {
        let made = job.checkpoint(options(output, args, None))?;
        Ok((
            report_json(Some(job.name()), None, None, &made),
            report_text(job.name(), &made),
        ))
    })
}

fn options(output: Output, args: &Checkpoint, destination: Option<Destination>) -> CheckpointOptions {
    let mut progress = output.progress();
    CheckpointOptions {
        stop: args.stop,
        signal: args.signal,
        live: args.live,
        compare: args.compare,
        output: destination,
        timeout: args.timeout,
        compression: args.compress,
        basis: if args.incremental {
            Basis::SinceLast
        } else {
            Basis::Full
        },
        tcp: args.tcp.map(Into::into),
        files: args.contents.files.clone(),
        keep: args.contents.keep(),
        restarted_exit_code: args.restarted_code,
        progress: Some(Box::new(move |phase, done, total| progress.update(phase, done, total))),
    }
}

fn make(output: Output, args: Checkpoint, destination: Option<Destination>) -> Result<()> {
    let options = options(output, &args, destination);
    let (name, job, pid, made) = match live(args.target.as_deref(), args.session)? {
        Live::Job(job) => {
            // Only JSON tells it, and finding it takes time.
            let pid = if output.is_json() { job.status()?.pid } else { None };
            let name = job.name().to_string();
            (name.clone(), Some(name), pid, job.checkpoint(options)?)
        }
        Live::Bare(bare) => {
            let pid = match bare {
                Bare::Process(pid) => Some(pid),
                Bare::Session(_) => None,
            };
            (bare.to_string(), None, pid, cpr_node::checkpoint_bare(bare, options)?)
        }
    };
    output.done(
        || report_json(job.as_deref(), pid, args.session, &made),
        || report_text(&name, &made),
    )
}

fn report_json(job: Option<&str>, pid: Option<i32>, session: Option<i32>, made: &Checkpointed) -> Value {
    let report = &made.report;
    json!({
        "image": made.image,
        "job": job,
        "pid": pid,
        "session": session,
        "image_id": report.image_id,
        "bytes": report.image_bytes,
        "data_bytes": report.data_bytes,
        "freeze_ms": milliseconds(report.freeze_ns),
        "total_ms": milliseconds(report.total_ns),
        "processes": report.processes,
        "threads": report.threads,
        "parent": report.parent,
        "mode": report.method,
        "stopped_bytes": report.stopped_bytes,
        "compared_pages": report.compared_pages,
    })
}

fn report_text(name: &str, made: &Checkpointed) -> String {
    let report = &made.report;
    let image = match &made.image {
        Some(path) => path.display().to_string(),
        None => "standard output".to_string(),
    };
    let how = match report.method {
        Method::Snapshot => " (snapshot: it writes memory faster than can be copied)",
        Method::Live | Method::Stop => "",
    };
    let compared = match report.compared_pages {
        Some(pages) => format!("; {pages} pages are what they were in memory"),
        None => String::new(),
    };
    let plural = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
    format!(
        "{}: {}: {}{}, {}, {}; stopped for {}{how}, {} in all{compared}\n",
        clean(name),
        clean(&image),
        size(report.image_bytes),
        if report.parent.is_some() { " (increment)" } else { "" },
        plural(report.processes, "process", "processes"),
        plural(report.threads, "thread", "threads"),
        duration(report.freeze_ns),
        duration(report.total_ns),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cpr_node::CheckpointReport;
    use std::path::PathBuf;

    #[test]
    fn the_report_is_as_documented() {
        let made = Checkpointed {
            image: Some(PathBuf::from(
                "/home/ada/.local/state/gridcpr/jobs/sim/images/000002.cpr",
            )),
            report: CheckpointReport {
                image_id: "0123456789abcdef0123456789abcdef".to_string(),
                image_bytes: 5_246_976,
                data_bytes: 5_234_688,
                freeze_ns: 4_300_000,
                total_ns: 12_500_000,
                processes: 1,
                threads: 1,
                parent: None,
                root_hash: String::new(),
                method: Method::Live,
                stopped_bytes: 188_416,
                compared_pages: None,
            },
        };
        let documents = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
        let text = std::fs::read_to_string(documents).unwrap();
        let section = text.split("\n## cpr checkpoint\n").nth(1).unwrap();
        let example = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
        let example: Value = serde_json::from_str(example).unwrap();
        assert_eq!(report_json(Some("sim"), Some(4711), None, &made), example);
        let text = report_text("sim", &made);
        assert!(
            text.ends_with("000002.cpr: 5.25 MB, 1 process, 1 thread; stopped for 4.3 ms, 12.5 ms in all\n"),
            "{text}"
        );
    }
}
