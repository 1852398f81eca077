//! `cpr checkpoints`

use std::time::SystemTime;

use cpr_api::model::Checkpoint;
use cpr_types::Result;
use serde_json::json;

use super::{all, client};
use crate::grid_args::Checkpoints;
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
                let places = match checkpoint.units.len() {
                    0 => places.collect::<Vec<_>>().join(", "),
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
