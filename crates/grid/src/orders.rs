//! What a node is told to have and to do, with every answer to its heartbeat.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use cpr_api::agent::{CheckpointOrder, ImageOrder, JobOrder, Orders, Report, Source};
use cpr_api::model::{Checkpoint, Ending, Intent, Job, Location, Node, NodeState, Step, Unit};
use cpr_types::{Error, ErrorKind, Links, Result};

use crate::coordinator;
use crate::db;
use crate::grid::Grid;
use crate::heartbeat::{failing, incarnation, located, pending, placed};
use crate::signals;
use crate::units;

impl Grid {
    /// What a node is to have and to do now (GCA-GCS-5).
    pub async fn orders(&self, report: &Report) -> Result<Orders> {
        let mut connection = self.db.read().await?;
        let name = report.info.name.as_str();
        let nodes = db::nodes(&mut connection).await?;
        let own = nodes.iter().find(|node| node.info.name == name);
        let fault = own.and_then(|node| Some(failing(name, node.fault.as_ref()?)));
        let pending = pending(&mut connection, name).await?;
        let mut jobs: Vec<JobOrder> = Vec::new();
        for job in placed(&mut connection, name).await? {
            jobs.push(JobOrder {
                tell: fault.clone(),
                ..job_order(job, None, &pending, None, None)
            });
        }
        for (job, unit) in db::units_on(&mut connection, name).await? {
            // Also of one that is saved already, while it waits for others.
            let (mut parts, mut step) = (Vec::new(), None);
            for set in db::pending_of(&mut connection, job.id).await? {
                parts.extend(db::parts_of(&mut connection, set.id).await?);
                step = set.coordination.filter(|at| !at.independent).map(|at| at.step);
            }
            let links = self.links(&mut connection, &job, unit, &nodes).await?;
            let lost = match &job.ending {
                Some(Ending::Broken { why }) => Some(format!("failure of {why}")),
                _ => None,
            };
            let hosts = unit_hosts(&job, &nodes);
            let mut order = job_order(job, Some(unit), &parts, step, links);
            order
                .spec
                .tell_unit(order.incarnation.job, order.incarnation.number, &hosts);
            jobs.push(JobOrder {
                tell: lost.or_else(|| fault.clone()),
                ..order
            });
        }
        let mut images = located(&mut connection, name, true).await?;
        images.extend(located(&mut connection, name, false).await?);
        let still_pending: BTreeSet<i64> = pending.iter().map(|c| c.id).collect();
        let mut orders = Orders {
            lease_ms: self.policy().lease_ms.saturating_sub(self.policy().margin_ms),
            mark: String::new(),
            jobs,
            images: images
                .iter()
                .map(|checkpoint| image_order(checkpoint, self.ticket(checkpoint.id), name, &nodes))
                .collect(),
            noted: Vec::new(),
        };
        let told = report.checkpoints.iter().map(|told| told.id);
        orders.noted = told.filter(|id| !still_pending.contains(id)).collect();
        let text = serde_json::to_string(&orders)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode orders").with_source(error))?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        orders.mark = format!("{:016x}", hasher.finish());
        Ok(orders)
    }
}

/// Whether a checkpoint is to be made of a job, or of this unit of it.
fn is_made_by(checkpoint: &Checkpoint, job: &Job, unit: Option<u32>) -> bool {
    let of = checkpoint.part.as_ref().map(|part| part.unit);
    let incarnation = unit.map_or(job.incarnation, |unit| job.incarnation_of(unit));
    checkpoint.job == job.id && checkpoint.incarnation == incarnation && of == unit
}

/// The host of the node of each unit of a job, as its agent is reached; where nobody reaches that and all are on one
/// node, this machine.
fn unit_hosts(job: &Job, nodes: &[Node]) -> Vec<String> {
    let host = |name: &str| {
        let node = nodes.iter().find(|node| node.info.name == name)?;
        let (host, _) = node.info.address.rsplit_once(':')?;
        Some(host.trim_start_matches('[').trim_end_matches(']').to_string())
    };
    let is_one = job.units.windows(2).all(|two| two[0].node == two[1].node);
    let here = if is_one { "127.0.0.1" } else { "" };
    let of = |unit: &Unit| {
        let host = unit.node.as_deref().and_then(host);
        host.unwrap_or_else(|| here.to_string())
    };
    job.units.iter().map(of).collect()
}

/// What is to become of a job, or of a unit of one, whose checkpoint is to be at this step.
fn job_order(job: Job, unit: Option<u32>, asked: &[Checkpoint], step: Option<Step>, links: Option<Links>) -> JobOrder {
    let channels = match step {
        Some(Step::Drain) => coordinator::channels(asked),
        _ => Vec::new(),
    };
    let checkpoints = asked
        .iter()
        .zip(channels.into_iter().chain(std::iter::repeat(Vec::new())));
    let checkpoints = checkpoints.filter(|(c, _)| !c.state.is_gone() && is_made_by(c, &job, unit));
    let checkpoints = checkpoints.map(|(c, channels)| CheckpointOrder {
        id: c.id,
        stop: c.stop,
        step,
        own: c.own,
        channels,
    });
    let ended = matches!(job.intent, Some(Intent::Cancel | Intent::Expire)) || job.ending.is_some();
    JobOrder {
        incarnation: incarnation(&job, unit),
        signals: signals::orders(&job, unit),
        kill: ended,
        tell: None,
        checkpoints: checkpoints.collect(),
        go: units::may_go(&job),
        links,
        from: match unit {
            None => job.from,
            Some(unit) => job.units.get(unit as usize).and_then(|unit| unit.from),
        },
        engine: match unit.and_then(|unit| job.units.get(unit as usize)) {
            None => job.engine,
            Some(unit) => unit.engine.clone(),
        },
        spec: match unit {
            None => job.spec,
            Some(unit) => job.spec.unit(unit as usize),
        },
        owner: job.owner,
    }
}

/// The node that is to put an image into the store that all nodes share: the first that holds it and can, until it is
/// there.
fn uploader<'a>(checkpoint: &'a Checkpoint, nodes: &[Node]) -> Option<&'a str> {
    let can = |name: &str| {
        let node = nodes.iter().find(|node| node.info.name == name);
        node.is_some_and(|node| node.state != NodeState::Lost && node.info.has_store)
    };
    let mut names = checkpoint.locations.iter().map(|place| place.node.as_str());
    match names.clone().any(str::is_empty) {
        true => None,
        false => names.find(|name| can(name)),
    }
}

fn image_order(checkpoint: &Checkpoint, ticket: String, node: &str, nodes: &[Node]) -> ImageOrder {
    // The common store first: reading it burdens no other node.
    let mut places: Vec<&Location> = checkpoint.locations.iter().filter(|place| place.node != node).collect();
    places.sort_by(|a, b| a.node.cmp(&b.node));
    let sources = places.into_iter().filter_map(|place| {
        if place.node.is_empty() {
            return Some(Source {
                node: String::new(),
                address: String::new(),
            });
        }
        let holder = nodes.iter().find(|node| node.info.name == place.node)?;
        (holder.state != NodeState::Lost && !holder.info.address.is_empty()).then(|| Source {
            node: place.node.clone(),
            address: holder.info.address.clone(),
        })
    });
    let own = checkpoint.locations.iter().find(|place| place.node == node);
    ImageOrder {
        verified_ms: own.map_or(0, |place| place.verified_ms),
        to_store: uploader(checkpoint, nodes) == Some(node),
        id: checkpoint.id,
        owner: checkpoint.owner.clone(),
        bytes: checkpoint.bytes,
        blake3: checkpoint.blake3.clone(),
        ticket,
        sources: sources.collect(),
    }
}
