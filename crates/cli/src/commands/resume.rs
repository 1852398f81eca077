//! `cpr resume`

use cpr_types::Result;
use serde_json::json;

use crate::args::JobName;
use crate::output::Output;
use crate::target;

pub fn resume(output: Output, args: &JobName) -> Result<u8> {
    let job = target::job(&args.job)?;
    job.resume()?;
    output.done(|| json!({"job": job.name()}), || format!("{} goes on\n", job.name()))?;
    Ok(0)
}
