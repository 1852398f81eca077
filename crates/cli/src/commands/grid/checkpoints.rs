//! `cpr checkpoints`, `cpr transfer` and `cpr free`

use std::time::{Duration, SystemTime};

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::grid::model::{Checkpoint, CopyRequest, Page};
use serde_json::json;

use super::target::poll;
use super::{all, client};
use crate::args::grid::{Checkpoints, Free, Transfer};
use crate::output::{Output, Table, ago, from_ms, size, to_json};

/// `cpr checkpoints`
pub fn checkpoints(output: Output, args: &Checkpoints) -> Result<u8> {
    let pairs = [
        ("job", args.job.map(|job| job.to_string())),
        ("state", (!args.all).then(|| "pending,stored,complete".to_string())),
        ("location", args.location.clone()),
        ("images_of", args.images_of.map(|checkpoint| checkpoint.to_string())),
    ];
    let found: Vec<Checkpoint> = all(&client()?, "/v1/checkpoints", &pairs)?;
    let list = to_json(&found)?;
    output.answer(
        || json!({"checkpoints": list}),
        || {
            if output.is_quiet() {
                return found.iter().map(|checkpoint| format!("{}\n", checkpoint.id)).collect();
            }
            let headings = ["ID", "JOB", "NUMBER", "STATE", "SIZE", "MADE", "COPIES"];
            let mut table = Table::new(&headings, &[0, 1, 2, 4]);
            let now = SystemTime::now();
            for checkpoint in &found {
                let places = checkpoint.locations.iter().map(|place| match place.node.as_str() {
                    "" => "store",
                    node => node,
                });
                let arriving = checkpoint.arriving.iter();
                let arriving = arriving.map(|copy| format!("{} ({} so far)", copy.node, size(copy.bytes)));
                let places = match checkpoint.units.len() {
                    0 => places
                        .map(str::to_string)
                        .chain(arriving)
                        .collect::<Vec<_>>()
                        .join(", "),
                    units => format!("of {units} units"),
                };
                table.row([
                    checkpoint.id.to_string(),
                    checkpoint.job.to_string(),
                    checkpoint.generation.to_string(),
                    checkpoint.state.name().to_string(),
                    size(checkpoint.bytes),
                    ago(from_ms(checkpoint.created_ms.unsigned_abs()), now),
                    if places.is_empty() { "-".to_string() } else { places },
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// `cpr transfer`
pub fn transfer(output: Output, args: &Transfer) -> Result<u8> {
    let client = client()?;
    let (id, node) = (args.checkpoint, &args.node);
    let request = CopyRequest {
        to: node.clone(),
        cancel: args.cancel,
    };
    let mut checkpoint: Checkpoint = client.post(&format!("/v1/checkpoints/{id}/copies"), &request, None)?;
    if args.wait {
        let images = match checkpoint.units.is_empty() {
            true => format!("/v1/checkpoints/{id}"),
            false => format!("/v1/checkpoints?images_of={id}&limit=1000"),
        };
        checkpoint = poll(Some(PATIENCE), "the copy", || {
            let now: Vec<Checkpoint> = match checkpoint.units.is_empty() {
                true => vec![client.get(&images)?],
                false => client.get::<Page<Checkpoint>>(&images)?.items,
            };
            let held = |c: &Checkpoint| c.locations.iter().any(|place| place.node == *node);
            if now.iter().all(held) {
                return client.get(&format!("/v1/checkpoints/{id}")).map(Some);
            }
            let arrives = |c: &Checkpoint| held(c) || c.arriving.iter().any(|copy| copy.node == *node);
            match now.iter().all(arrives) {
                true => Ok(None),
                false => Err(Error::new(
                    ErrorKind::Gone,
                    format!("the copy of checkpoint {id} for {node} was given up"),
                )),
            }
        })?;
    }
    let value = to_json(&checkpoint)?;
    let how = match (args.cancel, args.wait) {
        (true, _) => "is not brought",
        (_, true) => "has been brought",
        _ => "is being brought",
    };
    output.done(|| value, || format!("checkpoint {id} {how} to {node}\n"))?;
    Ok(0)
}

/// `cpr free`
pub fn free(output: Output, args: &Free) -> Result<u8> {
    let client = client()?;
    let mut freed = Vec::new();
    for id in &args.checkpoints {
        let one: Checkpoint = client.post(&format!("/v1/checkpoints/{id}/free"), &json!({}), None)?;
        freed.push(one);
    }
    let list = to_json(&freed)?;
    output.done(
        || json!({"checkpoints": list}),
        || {
            let lines = freed.iter();
            lines
                .map(|one| format!("checkpoint {} of job {} is freed\n", one.id, one.job))
                .collect()
        },
    )?;
    Ok(0)
}
