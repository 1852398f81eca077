//! `cpr wait`

use cpr_node::Outcome;
use cpr_types::Result;
use serde_json::json;

use crate::args::Wait;
use crate::commands::{conclude, grid};
use crate::output::Output;
use crate::target;

pub fn wait(output: Output, args: &Wait) -> Result<u8> {
    if let Some(id) = grid::grid_job(args.job.as_ref()) {
        return grid::wait(output, id, args.timeout);
    }
    let job = target::job(&args.job)?;
    let outcome = job.wait(args.timeout)?;
    if output.is_json() {
        let (end, signal, image) = match &outcome {
            Outcome::Exited { signal: None, .. } => ("exited", None, None),
            Outcome::Exited { signal, .. } => ("signalled", *signal, None),
            Outcome::StoppedByCheckpoint { image } => ("stopped", None, Some(image)),
            Outcome::Detached { .. } => ("running", None, None),
        };
        let image = image.filter(|path| !path.as_os_str().is_empty());
        let code = outcome.exit_code();
        output.answer(
            || json!({"job": job.name(), "end": end, "exit_code": code, "signal": signal, "image": image}),
            String::new,
        )?;
    }
    conclude(output, &outcome)
}
