//! `cpr submit`, `cpr jobs`, `cpr policy`, `cpr cancel` and `cpr recover`

use std::path::Path;
use std::time::SystemTime;

use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::grid::Client;
use gridcpr::grid::model::{Array, ArrayRequest, Job, JobSpec, PolicyRequest, RecoverRequest, Unit, UnitSpec, Waiting};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{all, client, unique};
use crate::args::grid::{Cancel, Jobs, Policy, Queue, Recover, Submit};
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
    let mut spec = match &args.file {
        Some(path) => described(path)?,
        None => JobSpec::default(),
    };
    if spec.directory.is_empty() {
        spec.directory = directory.ok_or_else(|| Error::new(ErrorKind::Usage, "the working directory is not UTF-8"))?;
    }
    for (name, value) in environment {
        spec.environment.entry(name).or_insert(value);
    }
    if !args.command.is_empty() {
        spec.command = args.command;
    }
    spec.name = args.name.or(spec.name);
    spec.output = args.output.or(spec.output);
    spec.every_s = args.every.map(|every| every.as_secs()).or(spec.every_s);
    spec.adapt |= args.adapt;
    spec.keep = args.keep.or(spec.keep);
    spec.ttl_s = args.ttl.map(|ttl| ttl.as_secs()).or(spec.ttl_s);
    spec.priority = args.priority.unwrap_or(spec.priority);
    spec.slots = args.slots.or(spec.slots);
    spec.memory_mb = args.memory.unwrap_or(spec.memory_mb);
    spec.node = args.node.or(spec.node);
    spec.requires.extend(args.require);
    let engine = args.engine.map(|engine| ("engine".to_string(), engine));
    let class = args.class.map(|class| ("class".to_string(), class));
    spec.requires.extend(engine.into_iter().chain(class));
    spec.needs.extend(args.need);
    spec.after.extend(args.after);
    spec.stage_in.extend(args.stage_in);
    spec.stage_out.extend(args.stage_out);
    spec.time_limit_s = args.time_limit.map(|limit| limit.as_secs()).or(spec.time_limit_s);
    spec.retries = args.retries.or(spec.retries);
    spec.independent |= args.independent;
    spec.save_low_s = args.save_low.map(|limit| limit.as_secs()).or(spec.save_low_s);
    if let Some(units) = args.units {
        spec.units = vec![UnitSpec::default(); units as usize];
    }
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

/// What a file says that a job is to be.
fn described(path: &Path) -> Result<JobSpec> {
    let what = || format!("read job description {}", path.display());
    let text = std::fs::read_to_string(path).context(what)?;
    let wrong = |error| Error::new(ErrorKind::Usage, what()).with_source(error);
    let mut table: toml::Table = text.parse().map_err(wrong)?;
    // Of what a job must have, options and surroundings can say the rest.
    table.entry("command").or_insert(toml::Value::Array(Vec::new()));
    table.entry("directory").or_insert(toml::Value::String(String::new()));
    table.try_into().map_err(wrong)
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

/// The node that has a job, or those that have its units.
fn nodes(job: &Job) -> String {
    let units = job.units.iter().filter(|unit| unit.phase.is_placed());
    let mut names: Vec<&str> = units.filter_map(|unit| unit.node.as_deref()).collect();
    names.extend(job.node.as_deref());
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "-".to_string(),
        false => names.join(","),
    }
}

/// Slots that a job takes, on one node or on several.
fn slots(job: &Job) -> u64 {
    let units = (0..job.units.len()).map(|unit| u64::from(job.spec.unit(unit).slots()));
    match job.units.is_empty() {
        true => job.spec.slots().into(),
        false => units.sum(),
    }
}

/// The units of a job.
fn units(units: &[Unit]) -> String {
    let mut table = Table::new(&["UNIT", "STATE", "NODE", "ENGINE", "EXIT"], &[0, 4]);
    for (number, unit) in units.iter().enumerate() {
        table.row([
            number.to_string(),
            unit.phase.name().to_string(),
            unit.node.clone().unwrap_or_else(|| "-".to_string()),
            unit.engine.clone(),
            unit.exit_code.map_or_else(|| "-".to_string(), |code| code.to_string()),
        ]);
    }
    table.render()
}

/// What a job is doing, in a few words.
fn about(job: &Job) -> String {
    match &job.reason {
        Some(reason) => reason.clone(),
        None if job.units.is_empty() => command_line(&job.spec.command),
        None => format!("{} units: {}", job.units.len(), command_line(&job.spec.unit(0).command)),
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
                    nodes(job),
                    job.incarnation.to_string(),
                    ago(from_ms(job.submitted_ms.unsigned_abs()), now),
                    about(job),
                ]);
            }
            match jobs.first() {
                Some(job) if args.id.is_some() && !job.units.is_empty() => table.render() + "\n" + &units(&job.units),
                _ => table.render(),
            }
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
                    slots(job).to_string(),
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
        of_any_job: false,
    };
    let job: Job = client()?.post(&format!("/v1/jobs/{}/recover", args.id), &request, None)?;
    told(output, &job)
}

/// `cpr policy`
pub fn policy(output: Output, args: &Policy) -> Result<u8> {
    let request = PolicyRequest {
        every_s: args.every.map(|every| every.as_secs()),
        adapt: args.adapt,
        keep: args.keep,
        ttl_s: args.ttl.map(|ttl| ttl.as_secs()),
        independent: args.independent,
        save_low_s: args.save_low.map(|limit| limit.as_secs()),
    };
    let job: Job = client()?.post(&format!("/v1/jobs/{}/policy", args.id), &request, None)?;
    told(output, &job)
}
