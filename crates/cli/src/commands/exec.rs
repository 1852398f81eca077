//! `cpr exec`

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use cpr_node::{JobSpec, Outcome, Recovery, StateDir};
use cpr_types::{Error, ErrorKind, Result};

use crate::args::{Exec, OnExit};
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
        every: args.every,
        keep: args.keep,
        tcp: args.tcp.into(),
        save_on: args.save_on,
        wrapper: run::wrapper(chosen.as_ref())?,
        engine: chosen,
        ..JobSpec::default()
    };
    run::require_asked(spec.engine.as_ref(), "`cpr exec`: nobody is there to see it")?;
    let state = StateDir::open()?;
    // Somebody has to be there when it is time, when a signal comes, and when the job has ended.
    let stays =
        spec.every.is_some() || !spec.save_on.is_empty() || args.when_saved.is_some() || args.on_exit == OnExit::Remove;
    if args.recover {
        let recovery = Recovery {
            image: args.image,
            fetch: args.fetch,
        };
        let mut outcome = cpr_node::recover(&state, &spec, &recovery)?;
        if outcome.is_none() {
            if spec.command.is_empty() {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("job {} has no image to go on from", args.name),
                )
                .with_hint("give the command to begin with"));
            }
            output.detail(|| format!("job {} has no image to go on from, and begins", args.name));
            if stays {
                outcome = Some(cpr_node::stand_in(&state, &spec)?);
            }
        }
        if let Some(outcome) = outcome {
            run::remove_on_exit(output, &state, &args.name, &outcome, args.on_exit)?;
            if let (Some(command), Outcome::StoppedByCheckpoint { image }) = (&args.when_saved, &outcome) {
                when_saved(output, command, &args.name, image.as_os_str());
            }
            return conclude(output, &outcome);
        }
    }
    let never = cpr_node::become_job(&state, &spec, args.recover)?;
    match never {}
}

/// Runs what is to be done once a checkpoint has ended the job. Where that fails the job is as well saved.
fn when_saved(output: Output, command: &OsStr, job: &str, image: &OsStr) {
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("GRIDCPR_JOB", job)
        .env("GRIDCPR_IMAGE", image)
        .stdin(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => output.note(format!("the command of --when-saved ended with {status}")),
        Err(error) => output.note(format!("the command of --when-saved cannot be run: {error}")),
    }
}
