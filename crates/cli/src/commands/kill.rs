//! `cpr kill`

use std::path::Path;

use cpr_types::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::Kill;
use crate::commands::grid;
use crate::output::Output;
use crate::signal::signal_name;
use crate::target;

pub fn kill(output: Output, args: &Kill) -> Result<u8> {
    if let Some(id) = grid::grid_job(Path::new(&args.job)) {
        if args.reset {
            return Err(Error::new(
                ErrorKind::Usage,
                "--reset is for jobs of this machine, and not for those of a grid",
            ));
        }
        return grid::signal(output, id, args.signal);
    }
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
