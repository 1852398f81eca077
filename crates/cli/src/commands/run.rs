//! `cpr run`

use std::ffi::{OsStr, OsString};
use std::path::Path;

use cpr_engines::{Considered, Descriptor, Driver, Registry, Trigger, Verdict};
use cpr_node::{EngineUse, JobSpec, Outcome, StateDir};
use cpr_types::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{OnExit, Run, Wanted};
use crate::commands::conclude;
use crate::output::{Output, clean, to_json};
use crate::target::require_job_name;

pub fn run(output: Output, args: Run) -> Result<u8> {
    require_job_name(args.name.as_deref())?;
    if args.wanted.explain {
        return explain(output, &args.wanted);
    }
    let chosen = chosen_engine(output, &args.wanted)?;
    if args.every.is_some() {
        require_asked(chosen.as_ref(), "--every")?;
    }
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
        lifetime: args.lifetime,
        terminal: args.terminal,
        share_ipc: args.share_ipc,
        tcp: args.tcp.into(),
        save_on: args.save_on,
        lease: args.lease,
        wrapper: wrapper(chosen.as_ref())?,
        engine: chosen,
        directory: None,
        output: args.output,
    };
    output.detail(|| format!("jobs are kept in {}", state.path().display()));
    let outcome = cpr_node::run(&state, spec, args.detach)?;
    if let Some(name) = name {
        remove_on_exit(output, &state, &name, &outcome, args.on_exit)?;
    }
    conclude(output, &outcome)
}

/// Removes a job that has ended well, where that is wanted.
pub fn remove_on_exit(output: Output, state: &StateDir, name: &str, outcome: &Outcome, what: OnExit) -> Result<()> {
    if what == OnExit::Remove && matches!(outcome, Outcome::Exited { code: 0, signal: None }) {
        state.job(name)?.remove(false)?;
        output.detail(|| format!("job {name} removed"));
    }
    Ok(())
}

/// The engine that is wanted; none for the native one.
pub fn chosen_engine(output: Output, wanted: &Wanted) -> Result<Option<EngineUse>> {
    if wanted.request().is_empty() {
        return Ok(None);
    }
    let registry = Registry::load()?;
    let choice = registry.choose(&wanted.request(), Descriptor::probe)?;
    let engine = choice.require()?;
    output.detail(|| format!("the engine is {}", engine.name));
    Ok((engine.driver != Driver::Native).then(|| EngineUse {
        name: engine.name.clone(),
        version: choice.version.clone(),
    }))
}

/// What the descriptor of the engine has run in place of a job.
pub fn wrapper(chosen: Option<&EngineUse>) -> Result<Vec<OsString>> {
    match chosen {
        Some(chosen) => Ok(Registry::load()?.engine(&chosen.name)?.wrapper()),
        None => Ok(Vec::new()),
    }
}

/// Refuses `what` where checkpoints are begun by the program itself only.
pub fn require_asked(chosen: Option<&EngineUse>, what: &str) -> Result<()> {
    let Some(chosen) = chosen else { return Ok(()) };
    if Registry::load()?.engine(&chosen.name)?.trigger == Trigger::External {
        return Ok(());
    }
    let name = &chosen.name;
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("checkpoints of engine {name} are begun by the program itself only, which does not go with {what}"),
    ))
}

/// Says which engine would be used and why.
pub fn explain(output: Output, wanted: &Wanted) -> Result<u8> {
    let registry = Registry::load()?;
    let choice = registry.choose(&wanted.request(), Descriptor::probe)?;
    let line = |considered: &Considered| {
        let verdict = match &considered.verdict {
            Verdict::Chosen => "chosen: it has what is asked for, and works here".to_string(),
            Verdict::Spare => "would do, and comes after the one chosen".to_string(),
            Verdict::Unfit(reason) => format!("not chosen: {reason}"),
            Verdict::Broken(reason) => format!("does not work here: {reason}"),
        };
        format!("{}: {}\n", considered.engine, clean(&verdict))
    };
    let considered = to_json(&choice.considered)?;
    output.answer(
        || json!({"engine": choice.engine.map(|engine| &engine.name), "considered": considered}),
        || choice.considered.iter().map(line).collect(),
    )?;
    choice.require().map(|_| 0)
}

/// The command's name and our PID: no other job can have it while this one runs.
fn passing_name(command: &OsStr) -> String {
    let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
    let base: String = base.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let base = if base.is_empty() { "job" } else { &base };
    format!("{base}-{}", std::process::id())
}
