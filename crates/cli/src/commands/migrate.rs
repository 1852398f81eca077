//! `cpr migrate`

use std::ffi::OsString;

use cpr_node::{MigrateOptions, Migrated};
use cpr_types::Result;
use serde_json::{Value, json};

use crate::args::Migrate;
use crate::commands::grid;
use crate::output::{Output, clean, duration, milliseconds, size};
use crate::target;

pub fn migrate(output: Output, args: Migrate) -> Result<u8> {
    if let Some(id) = grid::grid_job(args.job.as_ref()) {
        grid::require_plain(&args, &[args.job.as_ref(), &args.host])?;
        return grid::migrate(output, id, &args.host.to_string_lossy());
    }
    target::require_job_name(args.name.as_deref())?;
    let job = target::job(&args.job)?;
    let mut progress = output.progress();
    let moved = job.migrate(MigrateOptions {
        host: args.host.clone(),
        ssh: args.ssh.split_whitespace().map(OsString::from).collect(),
        remote_cpr: args.cpr,
        name: args.name,
        lazy: args.lazy,
        compression: args.compress,
        timeout: args.timeout,
        patience: args.patience,
        progress: Some(Box::new(move |phase, done, total| progress.update(phase, done, total))),
    })?;
    let host = args.host.to_string_lossy();
    output.done(
        || report_json(job.name(), &host, &moved),
        || {
            format!(
                "{}: runs on {} as {}; {} sent, stood still for {}, {} in all\n",
                clean(job.name()),
                clean(&host),
                clean(&moved.name),
                size(moved.report.image_bytes),
                duration(moved.report.freeze_ns),
                duration(moved.report.total_ns),
            )
        },
    )?;
    Ok(0)
}

fn report_json(job: &str, host: &str, moved: &Migrated) -> Value {
    json!({
        "job": job,
        "host": host,
        "name": moved.name,
        "image_id": moved.report.image_id,
        "bytes": moved.report.image_bytes,
        "standstill_ms": milliseconds(moved.report.freeze_ns),
        "total_ms": milliseconds(moved.report.total_ns),
    })
}
