//! `cpr kill`

use cpr_types::Result;
use serde_json::json;

use crate::args::Kill;
use crate::output::Output;
use crate::signal::signal_name;
use crate::target;

pub fn kill(output: Output, args: &Kill) -> Result<u8> {
    let job = target::job(&args.job)?;
    let reset = match args.reset {
        true => job.reset_connections(),
        false => Ok(()),
    };
    // Whatever became of that.
    job.kill(args.signal)?;
    let name = signal_name(args.signal);
    output.done(
        || json!({"job": job.name(), "signal": args.signal}),
        || format!("sent {name} to {}\n", job.name()),
    )?;
    if let Err(error) = reset {
        output.note(format!(
            "connections may keep their ports for some time: {}",
            error.chain()
        ));
    }
    Ok(0)
}
