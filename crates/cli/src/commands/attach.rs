//! `cpr attach`

use cpr_node::Outcome;
use cpr_types::Result;

use crate::args::JobName;
use crate::commands::conclude;
use crate::output::Output;
use crate::target;

pub fn attach(output: Output, args: &JobName) -> Result<u8> {
    let job = target::job(&args.job)?;
    let outcome = job.attach()?;
    if let Outcome::Detached { name } = &outcome {
        output.note(format!("{name} runs on; `cpr attach {name}` comes back to it"));
        return Ok(0);
    }
    conclude(output, &outcome)
}
