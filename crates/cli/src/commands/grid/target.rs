//! What commands of single jobs do with one of the grid, which is written `@ID`.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::grid::model::{Checkpoint, CheckpointState, Job, JobState, MigrateRequest, RecoverRequest, SignalRequest};
use serde_json::json;

use super::client;
use super::jobs::told;
use crate::output::{Output, size, to_json};
use crate::signal::signal_name;

/// How often the service is asked whether something is done.
const POLL: Duration = Duration::from_millis(100);
/// How long a checkpoint may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The number of a job of the grid, where the argument names one.
pub fn grid_job(argument: &Path) -> Option<i64> {
    argument.to_str()?.strip_prefix('@')?.parse().ok()
}

/// Refuses options besides the arguments `words`: they are for jobs of this machine.
pub fn require_plain<A: clap::Args + Debug>(args: &A, words: &[&OsStr]) -> Result<()> {
    let command = A::augment_args(clap::Command::new("cpr").no_binary_name(true));
    let plain = command
        .try_get_matches_from(words)
        .and_then(|matches| A::from_arg_matches(&matches));
    if plain.is_ok_and(|plain| format!("{plain:?}") == format!("{args:?}")) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        "options are for jobs of this machine, and not for those of a grid",
    ))
}

/// Asks again and again, until there is something.
pub(super) fn poll<T>(patience: Option<Duration>, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        if patience.is_some_and(|patience| start.elapsed() >= patience) {
            return Err(Error::new(ErrorKind::TimedOut, format!("{what} takes too long")));
        }
        std::thread::sleep(POLL);
    }
}

/// `cpr checkpoint @ID`: until it is durable at as many places as it has to be.
pub fn checkpoint(output: Output, id: i64) -> Result<u8> {
    let client = client()?;
    let asked: Checkpoint = client.post(&format!("/v1/jobs/{id}/checkpoint"), &json!({}), None)?;
    let path = format!("/v1/checkpoints/{}", asked.id);
    let made: Checkpoint = poll(Some(PATIENCE), "the checkpoint", || {
        let now: Checkpoint = client.get(&path)?;
        Ok((!matches!(now.state, CheckpointState::Pending | CheckpointState::Stored)).then_some(now))
    })?;
    if made.state != CheckpointState::Complete {
        let reason = made.reason.unwrap_or_default();
        return Err(Error::new(
            ErrorKind::Gone,
            format!("checkpoint {} is {}: {reason}", made.id, made.state.name()),
        ));
    }
    let value = to_json(&made)?;
    output.done(
        || value,
        || format!("checkpoint {} of job {id}: {}\n", made.id, size(made.bytes)),
    )?;
    Ok(0)
}

/// `cpr kill @ID`
pub fn signal(output: Output, id: i64, number: i32) -> Result<u8> {
    let job: Job = client()?.post(&format!("/v1/jobs/{id}/signal"), &SignalRequest { number }, None)?;
    let value = to_json(&job)?;
    let name = signal_name(number);
    output.done(|| value, || format!("{name} is sent to job {id}\n"))?;
    Ok(0)
}

/// `cpr suspend @ID`
pub fn suspend(output: Output, id: i64) -> Result<u8> {
    let client = client()?;
    let _: Job = client.post(&format!("/v1/jobs/{id}/suspend"), &json!({}), None)?;
    let path = format!("/v1/jobs/{id}");
    let job: Job = poll(Some(PATIENCE), "the checkpoint", || {
        let now: Job = client.get(&path)?;
        let settled = !now.state.is_placed() || now.intent.is_none();
        Ok(settled.then_some(now))
    })?;
    if job.state != JobState::Suspended {
        let state = job.state.name();
        return Err(Error::new(
            ErrorKind::Gone,
            format!("job {id} could not be suspended and is {state}"),
        )
        .with_hint(format!("`cpr events --job {id}` tells why")));
    }
    told(output, &job)
}

/// `cpr resume @ID`
pub fn resume(output: Output, id: i64) -> Result<u8> {
    let job: Job = client()?.post(&format!("/v1/jobs/{id}/recover"), &RecoverRequest::default(), None)?;
    told(output, &job)
}

/// `cpr migrate @ID NODE`: until it runs there.
pub fn migrate(output: Output, id: i64, node: &str) -> Result<u8> {
    let client = client()?;
    let request = MigrateRequest {
        to: Some(node.to_string()),
    };
    let before: Job = client.post(&format!("/v1/jobs/{id}/migrate"), &request, None)?;
    let path = format!("/v1/jobs/{id}");
    let job: Job = poll(Some(PATIENCE), "moving the job", || {
        let now: Job = client.get(&path)?;
        let stays = now.incarnation == before.incarnation && now.state == JobState::Running && now.intent.is_none();
        let runs = now.incarnation > before.incarnation && now.state == JobState::Running;
        Ok((stays || runs || now.state.is_over()).then_some(now))
    })?;
    if job.state == JobState::Running && job.incarnation == before.incarnation {
        return Err(Error::new(
            ErrorKind::Gone,
            format!("job {id} could not be moved and goes on where it was"),
        )
        .with_hint(format!("`cpr events --job {id}` tells why")));
    }
    told(output, &job)
}

/// `cpr wait @ID`: until it is over; gives its exit code.
pub fn wait(output: Output, id: i64, timeout: Option<Duration>) -> Result<u8> {
    let client = client()?;
    let path = format!("/v1/jobs/{id}");
    let job: Job = poll(timeout, "the job", || {
        let now: Job = client.get(&path)?;
        Ok(now.state.is_over().then_some(now))
    })?;
    told(output, &job)?;
    match (job.state, job.exit_code) {
        (_, Some(code)) => Ok((code & 0xff) as u8),
        (JobState::Finished, None) => Ok(0),
        (state, None) => {
            let reason = job.reason.unwrap_or_default();
            Err(Error::new(
                ErrorKind::Gone,
                format!("job {id} is {}: {reason}", state.name()),
            ))
        }
    }
}
