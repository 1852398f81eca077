//! Which job goes to which node: a pure function.

use std::collections::BTreeSet;

use cpr_api::model::{Job, NodeInfo};

/// A node that takes jobs, and what of it is free.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    pub(crate) info: NodeInfo,
    pub(crate) slots: u32,
    pub(crate) memory_mb: u64,
}

/// Why a node cannot have a job, or that it can (GCA-UC-5.1.1).
fn objection(job: &Job, node: &Free) -> Option<String> {
    let info = &node.info;
    let wanted = job.next_node.as_ref().or(job.spec.node.as_ref());
    if let Some(wanted) = wanted.filter(|wanted| **wanted != info.name) {
        return Some(format!("only {wanted} may have it"));
    }
    let lacking = job.spec.requires.iter().find(|(key, value)| match key.as_str() {
        "engine" => !info.engines.contains(value),
        key => info.properties.get(key) != Some(value),
    });
    if let Some((key, value)) = lacking {
        return Some(format!("{} has no {key}={value}", info.name));
    }
    if job.spec.slots() > info.slots || job.spec.memory_mb > info.memory_mb {
        return Some(format!("{} is too small", info.name));
    }
    if job.spec.slots() > node.slots || job.spec.memory_mb > node.memory_mb {
        return Some(format!("{} is full", info.name));
    }
    None
}

/// The node for a job, which gets its slots and memory; or why there is none. Among those that can have it, one that
/// holds the image already comes first, then the one with most free slots.
pub(crate) fn choose(job: &Job, nodes: &mut [Free], holders: &BTreeSet<String>) -> Result<String, String> {
    let mut objections = Vec::new();
    let mut best: Option<&mut Free> = None;
    for node in nodes.iter_mut() {
        if let Some(reason) = objection(job, node) {
            objections.push(reason);
            continue;
        }
        let key = |node: &Free| (holders.contains(&node.info.name), node.slots, node.memory_mb);
        if best.as_ref().is_none_or(|best| key(node) > key(best)) {
            best = Some(node);
        }
    }
    match best {
        Some(node) => {
            node.slots -= job.spec.slots();
            node.memory_mb -= job.spec.memory_mb;
            Ok(node.info.name.clone())
        }
        None if objections.is_empty() => Err("waits for a node: there is none".into()),
        None => {
            objections.sort();
            objections.dedup();
            objections.truncate(8);
            Err(format!("waits for a node: {}", objections.join(", ")))
        }
    }
}
