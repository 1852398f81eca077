//! `cpr suspend`

use cpr_node::{Bare, StateDir};
use cpr_types::Result;
use serde_json::{Value, json};

use crate::args::Stand;
use crate::commands::grid;
use crate::output::{Output, size};
use crate::target::{Live, live};

pub fn suspend(output: Output, args: &Stand) -> Result<u8> {
    if let Some(id) = args.target.as_deref().and_then(grid::grid_job) {
        return grid::suspend(output, id);
    }
    let (name, numbers, report) = match live(args.target.as_deref(), args.session)? {
        Live::Job(job) => (job.name().to_string(), json!({"job": job.name()}), job.suspend()?),
        Live::Bare(bare) => {
            let report = cpr_node::suspend_bare(&StateDir::open()?, bare)?;
            (bare.to_string(), numbers(bare), report)
        }
    };
    output.done(
        || {
            json!({
                "job": numbers["job"],
                "pid": numbers["pid"],
                "session": numbers["session"],
                "processes": report.processes,
                "method": report.method,
                "resident_before": report.resident_before,
                "resident_after": report.resident_after,
                "note": report.note,
            })
        },
        || {
            format!(
                "{} suspended; resident memory {} before, {} now\n",
                name,
                size(report.resident_before),
                size(report.resident_after)
            )
        },
    )?;
    if let Some(note) = &report.note {
        output.note(note);
    }
    Ok(0)
}

/// What processes that are no job are known by.
pub fn numbers(bare: Bare) -> Value {
    match bare {
        Bare::Process(pid) => json!({"pid": pid}),
        Bare::Session(sid) => json!({"session": sid}),
    }
}
