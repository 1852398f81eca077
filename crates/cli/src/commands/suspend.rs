//! `cpr suspend`

use cpr_types::Result;
use serde_json::json;

use crate::args::JobName;
use crate::output::{Output, size};
use crate::target;

pub fn suspend(output: Output, args: &JobName) -> Result<u8> {
    let job = target::job(&args.job)?;
    let report = job.suspend()?;
    output.done(
        || {
            json!({
                "job": job.name(),
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
                job.name(),
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
