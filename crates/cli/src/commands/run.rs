//! `cpr run`

use std::ffi::OsStr;
use std::path::Path;

use cpr_node::{JobSpec, Outcome, StateDir};
use cpr_types::Result;

use crate::args::{OnExit, Run};
use crate::commands::conclude;
use crate::output::Output;
use crate::target::require_job_name;

pub fn run(output: Output, args: Run) -> Result<u8> {
    require_job_name(args.name.as_deref())?;
    let state = StateDir::open()?;
    let mut name = args.name;
    if args.on_exit == OnExit::Remove && name.is_none() {
        // To be found again when it has ended.
        name = args.command.first().map(|command| passing_name(command));
    }
    let spec = JobSpec {
        name: name.clone(),
        keep_files: args.contents.keep(),
        files: args.contents.files,
        command: args.command,
        every: args.every,
        sequence: args.sequence,
        keep: args.keep,
        terminal: args.terminal,
        share_ipc: args.share_ipc,
        tcp: args.tcp.into(),
    };
    output.detail(|| format!("jobs are kept in {}", state.path().display()));
    let outcome = cpr_node::run(&state, spec, args.detach)?;
    let success = matches!(outcome, Outcome::Exited { code: 0, signal: None });
    if let Some(name) = name.filter(|_| success && args.on_exit == OnExit::Remove) {
        state.job(&name)?.remove(false)?;
        output.detail(|| format!("job {name} removed"));
    }
    conclude(output, &outcome)
}

/// The command's name and our PID: no other job can have it while this one runs.
fn passing_name(command: &OsStr) -> String {
    let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
    let base: String = base.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let base = if base.is_empty() { "job" } else { &base };
    format!("{base}-{}", std::process::id())
}
