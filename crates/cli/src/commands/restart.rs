//! `cpr restart`

use std::io::{self, IsTerminal};
use std::path::Path;

use cpr_node::{Conductor, Job, NamespaceChoice, Outcome, Phase, Reached, RestartOptions, StateDir};
use cpr_types::{Error, ErrorKind, Result};
use gridcpr::image::{Bundle, Image};
use serde_json::json;

use crate::args::{CgroupChoice, Restart};
use crate::commands::every::every;
use crate::commands::{conclude, step};
use crate::output::Output;
use crate::target::{Kept, job_or_image, require_job_name, set};

/// Restarts the jobs of a set.
fn several(output: Output, args: &Restart, set: &Path) -> Result<u8> {
    let refused = args.lazy || args.terminal || args.name.is_some() || args.lease.is_some() || args.steps.is_some();
    if refused || NamespaceChoice::from(args.namespace) != NamespaceChoice::Auto {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{} is of several jobs, which are restarted as they were", set.display()),
        )
        .with_hint("give no option but --detach"));
    }
    let jobs = cpr_node::restart_set(&StateDir::open()?, set)?;
    let lines = || jobs.iter().map(|job| format!("{job}\n")).collect();
    output.done(|| json!({"jobs": jobs}), lines)?;
    Ok(0)
}

/// Restarts every job that a checkpoint or a crash has ended. One that has exited has nothing to go on with.
fn all(output: Output, args: &Restart) -> Result<u8> {
    let state = StateDir::open()?;
    let mut jobs = state.jobs()?;
    let waits = |job: &Job| -> Result<bool> {
        let ended = matches!(job.status()?.phase, Phase::Stopped | Phase::Crashed);
        Ok(ended && !job.images()?.is_empty())
    };
    // What cannot be looked at is told by the restart.
    jobs.retain(|job| waits(job).unwrap_or(true));
    every(output, jobs, &mut |job| {
        let options = RestartOptions {
            detach: true,
            ..options(args)
        };
        cpr_node::restart_job(&state, job.name(), options)?;
        Ok((json!({"job": job.name()}), format!("{}\n", job.name())))
    })
}

fn options(args: &Restart) -> RestartOptions {
    RestartOptions {
        detach: args.detach,
        name: args.name.clone(),
        namespace: args.namespace.into(),
        terminal: args.terminal,
        lazy: args.lazy,
        own_cgroups: args.cgroup == CgroupChoice::Own,
        lease: args.lease.clone(),
    }
}

pub fn restart(output: Output, args: Restart) -> Result<u8> {
    require_job_name(args.name.as_deref())?;
    let Some(source) = &args.source else {
        return all(output, &args);
    };
    if let Some(set) = set(source) {
        return several(output, &args, &set);
    }
    let options = options(&args);
    if let Some(patience) = args.steps {
        let mut tell = |reached: &Reached<'_>| step(output, reached);
        let mut conductor = Conductor::new(patience, &mut tell)?;
        let name = cpr_node::restart_in_steps(&StateDir::open()?, source, &options, &mut conductor)?;
        return conclude(output, &Outcome::Detached { name });
    }
    if source.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            return Err(Error::new(ErrorKind::Usage, "an image is not read from a terminal")
                .with_hint("let a command write it: `cpr checkpoint -o - JOB | cpr restart -`"));
        }
        let image = Image::from_stream(&mut io::stdin().lock(), "standard input")?;
        output.detail(|| format!("restarting image {} from standard input", image.id()));
        return conclude(output, &cpr_node::restart_image(&StateDir::open()?, image, options)?);
    }
    let outcome = match job_or_image(source)? {
        Kept::Image(path) => match Bundle::recognise(&path)? {
            Some(bundle) => {
                let record = bundle.record();
                output.detail(|| format!("restarting image {} by engine {}", record.id, record.engine));
                cpr_node::restart_bundle(&StateDir::open()?, &bundle, Some(&path), options)?
            }
            None => {
                let image = Image::open(&path)?;
                output.detail(|| format!("restarting image {} from {}", image.id(), path.display()));
                cpr_node::restart_image(&StateDir::open()?, image, options)?
            }
        },
        Kept::Job(job) => {
            output.detail(|| format!("restarting job {}", job.name()));
            cpr_node::restart_job(&StateDir::open()?, job.name(), options)?
        }
    };
    conclude(output, &outcome)
}
