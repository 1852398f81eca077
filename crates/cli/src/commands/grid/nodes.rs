//! `cpr nodes`, `cpr drain` and `cpr fault`

use cpr_types::Result;
use gridcpr::grid::model::{DrainRequest, FaultRequest, Node, Page};
use serde_json::json;

use super::{client, escape};
use crate::args::grid::{Drain, Fault};
use crate::output::{Output, Table, to_json};

/// `cpr nodes`
pub fn nodes(output: Output) -> Result<u8> {
    let page: Page<Node> = client()?.get("/v1/nodes")?;
    let list = to_json(&page.items)?;
    output.answer(
        || json!({"nodes": list}),
        || {
            if output.is_quiet() {
                return page.items.iter().map(|node| format!("{}\n", node.info.name)).collect();
            }
            let mut table = Table::new(&["NAME", "STATE", "SLOTS", "MEMORY MIB", "PROPERTIES"], &[2, 3]);
            for node in &page.items {
                let properties = node
                    .info
                    .properties
                    .iter()
                    // There are many, of which `--json` tells.
                    .filter(|(name, _)| !name.starts_with("tool."))
                    .map(|(name, value)| format!("{name}={value}"));
                table.row([
                    node.info.name.clone(),
                    match &node.fault {
                        Some(fault) => format!("{}: {fault}", node.state.name()),
                        None => node.state.name().to_string(),
                    },
                    node.info.slots.to_string(),
                    node.info.memory_mb.to_string(),
                    properties.collect::<Vec<_>>().join(" "),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

/// `cpr drain`
pub fn drain(output: Output, args: &Drain) -> Result<u8> {
    let path = format!("/v1/nodes/{}/drain", escape(&args.node));
    let node: Node = client()?.post(&path, &DrainRequest { undo: args.undo }, None)?;
    let value = to_json(&node)?;
    let text = || format!("node {} is {}\n", node.info.name, node.state.name());
    output.done(|| value, text)?;
    Ok(0)
}

/// `cpr fault`
pub fn fault(output: Output, args: &Fault) -> Result<u8> {
    let path = format!("/v1/nodes/{}/fault", escape(&args.node));
    let reason = args.reason.clone();
    let node: Node = client()?.post(&path, &FaultRequest { reason }, None)?;
    let value = to_json(&node)?;
    let text = || format!("node {} is {}\n", node.info.name, node.state.name());
    output.done(|| value, text)?;
    Ok(0)
}
