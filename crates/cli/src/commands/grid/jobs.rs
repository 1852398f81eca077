//! `cpr submit`, `cpr jobs`, `cpr cancel` and `cpr recover`

use std::time::SystemTime;

use cpr_api::Client;
use cpr_api::model::{Array, ArrayRequest, Job, JobSpec, RecoverRequest, Waiting};
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{all, client, unique};
use crate::grid_args::{Cancel, Jobs, Queue, Recover, Submit};
use crate::output::{Output, Table, ago, command_line, from_ms, to_json};

/// Attempts to submit a job while the service cannot be reached.
const ATTEMPTS: usize = 3;

/// `cpr submit`
pub fn submit(output: Output, args: Submit) -> Result<u8> {
    let directory = std::env::current_dir().context(|| "find the working directory")?;
    let directory = directory.to_str().map(str::to_string);
    // Where we are and how jobs of this machine are kept means nothing on a node.
    let own = |name: &str| name.starts_with("GRIDCPR_") || name == "PWD" || name == "OLDPWD";
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        (!own(&name) && !name.is_empty()).then_some((name, value))
    });
    let spec = JobSpec {
        name: args.name,
        command: args.command,
        directory: directory.ok_or_else(|| Error::new(ErrorKind::Usage, "the working directory is not UTF-8"))?,
        environment: environment.collect(),
        output: args.output,
        every_s: args.every.map(|every| every.as_secs()),
        adapt: args.adapt,
        keep: args.keep,
        ttl_s: args.ttl.map(|ttl| ttl.as_secs()),
        priority: args.priority,
        slots: args.slots,
        memory_mb: args.memory,
        node: args.node,
        requires: args.require.into_iter().collect(),
        after: args.after,
        time_limit_s: args.time_limit.map(|limit| limit.as_secs()),
        retries: args.retries,
    };
    let client = client()?;
    // With a key it does no harm to ask again.
    let key = args.key.unwrap_or_else(unique);
    if let Some((first, last, step)) = args.array {
        let wanted = ArrayRequest {
            spec,
            first,
            last,
            step,
        };
        let array: Array = post(&client, "/v1/arrays", &wanted, &key)?;
        let list = to_json(&array.jobs)?;
        output.done(
            || json!({"array": array.id, "jobs": list}),
            || format!("{}\n", array.id),
        )?;
        return Ok(0);
    }
    let job: Job = post(&client, "/v1/jobs", &spec, &key)?;
    output.done(|| json!({"job": job.id}), || format!("{}\n", job.id))?;
    Ok(0)
}

/// Asks for something that is done once, again where the service cannot be reached.
fn post<T: DeserializeOwned>(client: &Client, path: &str, body: &impl Serialize, key: &str) -> Result<T> {
    let mut attempt = 1;
    loop {
        match client.post(path, body, Some(key)) {
            Err(error) if error.kind() == ErrorKind::Io && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// What a job is doing, in a few words.
fn about(job: &Job) -> String {
    match &job.reason {
        Some(reason) => reason.clone(),
        None => command_line(&job.spec.command),
    }
}

/// `cpr jobs`
pub fn jobs(output: Output, args: &Jobs) -> Result<u8> {
    let client = client()?;
    let jobs: Vec<Job> = match args.id {
        Some(id) => vec![client.get(&format!("/v1/jobs/{id}"))?],
        None => {
            let living = (!args.all).then(|| "queued,starting,running,suspended".to_string());
            let pairs = [
                ("state", args.state.clone().or(living)),
                ("owner", args.owner.clone()),
                ("node", args.node.clone()),
                ("array", args.array.map(|array| array.to_string())),
            ];
            all(&client, "/v1/jobs", &pairs)?
        }
    };
    let list = to_json(&jobs)?;
    output.answer(
        || json!({"jobs": list}),
        || {
            if output.is_quiet() {
                return jobs.iter().map(|job| format!("{}\n", job.id)).collect();
            }
            let headings = ["ID", "NAME", "OWNER", "STATE", "NODE", "STARTS", "SUBMITTED", "ABOUT"];
            let mut table = Table::new(&headings, &[0, 5]);
            let now = SystemTime::now();
            for job in &jobs {
                table.row([
                    job.id.to_string(),
                    job.spec.name.clone().unwrap_or_else(|| "-".to_string()),
                    job.owner.name.clone(),
                    job.state.name().to_string(),
                    job.node.clone().unwrap_or_else(|| "-".to_string()),
                    job.incarnation.to_string(),
                    ago(from_ms(job.submitted_ms.unsigned_abs()), now),
                    about(job),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

/// `cpr queue`
pub fn queue(output: Output, args: &Queue) -> Result<u8> {
    let found: Vec<Waiting> = all(&client()?, "/v1/queue", &[("owner", args.owner.clone())])?;
    let list = to_json(&found)?;
    output.answer(
        || json!({"queue": list}),
        || {
            if output.is_quiet() {
                return found.iter().map(|waiting| format!("{}\n", waiting.job.id)).collect();
            }
            let headings = ["PLACE", "ID", "NAME", "OWNER", "PRIORITY", "SLOTS", "SUBMITTED", "WHY"];
            let mut table = Table::new(&headings, &[0, 1, 4, 5]);
            let now = SystemTime::now();
            for waiting in &found {
                let job = &waiting.job;
                table.row([
                    waiting.place.to_string(),
                    job.id.to_string(),
                    job.spec.name.clone().unwrap_or_else(|| "-".to_string()),
                    job.owner.name.clone(),
                    job.spec.priority.to_string(),
                    job.spec.slots().to_string(),
                    ago(from_ms(job.submitted_ms.unsigned_abs()), now),
                    waiting.why.clone(),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

/// Tells what state a job is in now.
pub(super) fn told(output: Output, job: &Job) -> Result<u8> {
    let value = to_json(job)?;
    output.done(
        || value,
        || {
            let reason = job.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("job {} is {}{reason}\n", job.id, job.state.name())
        },
    )?;
    Ok(0)
}

/// `cpr cancel`
pub fn cancel(output: Output, args: &Cancel) -> Result<u8> {
    let client = client()?;
    if let Some(id) = args.array {
        let array: Array = client.post(&format!("/v1/arrays/{id}/cancel"), &json!({}), None)?;
        let list = to_json(&array.jobs)?;
        let text = || format!("{} jobs of array {id} are cancelled\n", array.jobs.len());
        output.done(|| json!({"array": id, "jobs": list}), text)?;
        return Ok(0);
    }
    let id = args.id.unwrap_or_default();
    let job: Job = client.post(&format!("/v1/jobs/{id}/cancel"), &json!({}), None)?;
    told(output, &job)
}

/// `cpr recover`
pub fn recover(output: Output, args: &Recover) -> Result<u8> {
    let request = RecoverRequest {
        from: args.from,
        on: args.on.clone(),
    };
    let job: Job = client()?.post(&format!("/v1/jobs/{}/recover", args.id), &request, None)?;
    told(output, &job)
}
