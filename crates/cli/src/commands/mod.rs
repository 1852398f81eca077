//! One module for each command.

mod app;
mod attach;
mod check;
mod checkpoint;
mod classes;
mod completions;
mod devices;
pub mod edit;
mod engines;
mod every;
mod exec;
mod grid;
mod images;
mod inspect;
mod kill;
mod listen;
mod logs;
mod man;
mod merge;
mod migrate;
mod mpi;
mod notify;
mod ps;
mod restart;
mod resume;
mod rm;
mod run;
mod suspend;
mod verify;
mod wait;

use cpr_node::{NamespaceChoice, Outcome, Reached};
use cpr_types::Result;
use serde_json::json;

use crate::args::{Namespace, Verb};
use crate::output::Output;
use crate::signal::signal_name;

/// Tells a coordinator which step is done.
fn step(output: Output, reached: &Reached<'_>) -> Result<()> {
    output.done(
        || json!({"step": reached.step, "connections": reached.connections}),
        || format!("{}\n", reached.step),
    )
}

/// SIGPIPE.
const PIPE: i32 = 13;

/// Does what was asked; gives the exit code.
pub fn dispatch(output: Output, verb: Verb) -> Result<u8> {
    // Commands that only print end quietly with their reader (`cpr images | head`). The others have something to bring
    // to an end, and must not die of a pipe.
    if matches!(
        verb,
        Verb::Ps(_)
            | Verb::Logs(_)
            | Verb::Images(_)
            | Verb::Inspect(_)
            | Verb::Completions(_)
            | Verb::Classes
            | Verb::Devices
            | Verb::Jobs(_)
            | Verb::Queue(_)
            | Verb::Context(_)
            | Verb::Checkpoints(_)
            | Verb::Nodes(_)
            | Verb::Usage(_)
            | Verb::Events(_)
    ) {
        // Where this fails, a message is printed that nobody reads.
        let _ = cpr_kernel::spawn::default_signal(PIPE);
    }
    match verb {
        Verb::Run(args) => run::run(output, args),
        Verb::Exec(args) => exec::exec(output, args),
        Verb::Ps(args) => ps::ps(output, &args),
        Verb::Checkpoint(args) => checkpoint::checkpoint(output, args),
        Verb::Restart(args) => restart::restart(output, args),
        Verb::Migrate(args) => migrate::migrate(output, args),
        Verb::Suspend(args) => suspend::suspend(output, &args),
        Verb::Resume(args) => resume::resume(output, &args),
        Verb::Listen(args) => listen::listen(output, &args),
        Verb::Notify(args) => notify::notify(output, &args),
        Verb::Attach(args) => attach::attach(output, &args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Wait(args) => wait::wait(output, &args),
        Verb::Kill(args) => kill::kill(output, &args),
        Verb::Images(args) => images::images(output, &args),
        Verb::Inspect(args) => inspect::inspect(output, &args),
        Verb::Check(args) => check::check(output, &args),
        Verb::Edit(args) => edit::edit(output, &args),
        Verb::Verify(args) => verify::verify(output, &args),
        Verb::Merge(args) => merge::merge(output, &args),
        Verb::App(args) => app::app(output, args),
        Verb::Engines(args) => engines::engines(output, &args),
        Verb::Classes => classes::classes(output),
        Verb::Devices => devices::devices(output),
        Verb::Rm(args) => rm::rm(output, &args),
        Verb::Submit(args) => grid::submit(output, args),
        Verb::Mpi(args) => mpi::mpi(&args),
        Verb::Jobs(args) => grid::jobs(output, &args),
        Verb::Queue(args) => grid::queue(output, &args),
        Verb::Cancel(args) => grid::cancel(output, &args),
        Verb::Recover(args) => grid::recover(output, &args),
        Verb::Policy(args) => grid::policy(output, &args),
        Verb::Checkpoints(args) => grid::checkpoints(output, &args),
        Verb::Transfer(args) => grid::transfer(output, &args),
        Verb::Free(args) => grid::free(output, &args),
        Verb::Usage(_) => grid::usage(output),
        Verb::Nodes(_) => grid::nodes(output),
        Verb::Drain(args) => grid::drain(output, &args),
        Verb::Fault(args) => grid::fault(output, &args),
        Verb::Events(args) => grid::events(output, &args),
        Verb::Context(args) => grid::context(output, args),
        Verb::Completions(args) => completions::completions(&args),
        Verb::Man(args) => man::man(&args),
    }
}

/// Tells how running a job ended, where its exit code does not; gives the exit code.
fn conclude(output: Output, outcome: &Outcome) -> Result<u8> {
    match outcome {
        Outcome::Detached { name } => output.done(|| json!({"job": name}), || format!("{name}\n"))?,
        Outcome::Exited { signal: None, .. } => {}
        Outcome::Exited {
            signal: Some(signal), ..
        } => output.note(format!("the job was ended by signal {}", signal_name(*signal))),
        Outcome::StoppedByCheckpoint { image } if image.as_os_str().is_empty() => {
            output.note("the job was ended by a checkpoint");
        }
        Outcome::StoppedByCheckpoint { image } => {
            output.note(format!(
                "the job was ended by a checkpoint; restart {} to go on",
                image.display()
            ));
        }
    }
    // The kernel's exit codes have eight bits.
    Ok((outcome.exit_code() & 0xff) as u8)
}

impl From<Namespace> for NamespaceChoice {
    fn from(namespace: Namespace) -> Self {
        match namespace {
            Namespace::Auto => NamespaceChoice::Auto,
            Namespace::Always => NamespaceChoice::Always,
            Namespace::Never => NamespaceChoice::Never,
        }
    }
}
