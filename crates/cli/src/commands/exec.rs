//! `cpr exec`

use cpr_node::{JobSpec, Recovery, StateDir};
use cpr_types::{Error, ErrorKind, Result};

use crate::args::Exec;
use crate::commands::{conclude, run};
use crate::output::Output;
use crate::target::require_job_name;

pub fn exec(output: Output, args: Exec) -> Result<u8> {
    require_job_name(Some(&args.name))?;
    if args.wanted.explain {
        return run::explain(output, &args.wanted);
    }
    let chosen = run::chosen_engine(output, &args.wanted)?;
    let spec = JobSpec {
        name: Some(args.name.clone()),
        keep_files: args.contents.keep(),
        files: args.contents.files,
        command: args.command,
        keep: args.keep,
        tcp: args.tcp.into(),
        save_on: args.save_on,
        wrapper: run::wrapper(chosen.as_ref())?,
        engine: chosen,
        ..JobSpec::default()
    };
    run::require_asked(spec.engine.as_ref(), "`cpr exec`: nobody is there to see it")?;
    let state = StateDir::open()?;
    if args.recover {
        let recovery = Recovery {
            image: args.image,
            fetch: args.fetch,
        };
        if let Some(outcome) = cpr_node::recover(&state, &spec, &recovery)? {
            return conclude(output, &outcome);
        }
        if spec.command.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("job {} has no image to go on from", args.name),
            )
            .with_hint("give the command to begin with"));
        }
        output.detail(|| format!("job {} has no image to go on from, and begins", args.name));
        if spec.save_on.is_some() {
            // Whoever is to hear of the signal stays.
            return conclude(output, &cpr_node::stand_in(&state, &spec)?);
        }
    }
    let never = cpr_node::become_job(&state, &spec, args.recover)?;
    match never {}
}
