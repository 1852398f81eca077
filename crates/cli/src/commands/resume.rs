//! `cpr resume`

use cpr_node::StateDir;
use cpr_types::Result;
use serde_json::json;

use crate::args::Stand;
use crate::commands::grid;
use crate::commands::suspend::numbers;
use crate::output::Output;
use crate::target::{Live, live};

pub fn resume(output: Output, args: &Stand) -> Result<u8> {
    if let Some(id) = args.target.as_deref().and_then(grid::grid_job) {
        return grid::resume(output, id);
    }
    let (name, numbers) = match live(args.target.as_deref(), args.session)? {
        Live::Job(job) => {
            job.resume()?;
            (job.name().to_string(), json!({"job": job.name()}))
        }
        Live::Bare(bare) => {
            cpr_node::resume_bare(&StateDir::open()?, bare)?;
            (bare.to_string(), numbers(bare))
        }
    };
    output.done(
        || json!({"job": numbers["job"], "pid": numbers["pid"], "session": numbers["session"]}),
        || format!("{name} goes on\n"),
    )?;
    Ok(0)
}
