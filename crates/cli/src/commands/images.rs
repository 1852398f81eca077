//! `cpr images`

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpr_engines::NATIVE;
use cpr_node::{ImageEntry, ImageState, Job, StateDir};
use cpr_types::{ErrorKind, Result};
use gridcpr::image::{Bundle, Image, ImageId};
use serde_json::json;

use crate::args::images::Images;
use crate::output::{Output, Table, ago, size, timestamp};
use crate::target;

struct Found {
    job: String,
    entry: ImageEntry,
    time: SystemTime,
    /// None of an image that cannot be read.
    processes: Option<usize>,
    id: Option<ImageId>,
    /// Of an increment, the image it refers to first.
    parent: Option<ImageId>,
    /// In a tree, how many images are above it.
    depth: usize,
    state: Option<ImageState>,
    /// Name of the engine that made it; none of an image that cannot be read.
    engine: Option<String>,
}

pub fn images(output: Output, args: &Images) -> Result<u8> {
    let jobs = match &args.job {
        Some(name) => vec![target::job(name)?],
        None => StateDir::open()?.jobs()?,
    };
    let mut entries = Vec::new();
    for job in &jobs {
        entries.extend(list(job)?.into_iter().map(|entry| (job, entry)));
    }
    if output.is_quiet() && !output.is_json() {
        output.answer(
            || json!(null),
            || entries.iter().map(|(_, e)| format!("{}\n", e.path.display())).collect(),
        )?;
        return Ok(0);
    }
    let mut found: Vec<Found> = entries
        .into_iter()
        .filter_map(|(job, entry)| examine(job, entry))
        .collect();
    if args.tree {
        found = tree(found);
    }
    output.answer(
        || {
            let images = found.iter().map(|image| {
                json!({
                    "path": image.entry.path,
                    "job": image.job,
                    "time": timestamp(image.time),
                    "bytes": image.entry.bytes,
                    "processes": image.processes,
                    "valid": image.processes.is_some(),
                    "image_id": image.id.map(|id| id.to_string()),
                    "parent": image.parent.map(|id| id.to_string()),
                    "state": image.state,
                    "engine": image.engine,
                })
            });
            json!({"images": images.collect::<Vec<_>>()})
        },
        || table(&found),
    )?;
    Ok(0)
}

fn list(job: &Job) -> Result<Vec<ImageEntry>> {
    match job.images() {
        // Removed just now.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

fn of_other_engine(job: &Job, entry: ImageEntry, bundle: &Bundle) -> Found {
    let record = bundle.record();
    let bytes = u128::from_str_radix(&record.id, 16).ok();
    Found {
        job: job.name().to_string(),
        entry,
        time: UNIX_EPOCH
            .checked_add(Duration::from_nanos(record.time_ns))
            .unwrap_or(UNIX_EPOCH),
        processes: Some(record.processes.len()),
        id: bytes.map(|id| ImageId(id.to_be_bytes())),
        parent: None,
        depth: 0,
        state: Some(ImageState::Written),
        engine: Some(record.engine.clone()),
    }
}

/// None where it has been removed just now.
fn examine(job: &Job, entry: ImageEntry) -> Option<Found> {
    if let Ok(Some(bundle)) = Bundle::recognise(&entry.path) {
        return Some(of_other_engine(job, entry, &bundle));
    }
    let mut image = match Image::open(&entry.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        result => result.ok(),
    };
    let state = image.as_mut().map(|image| {
        // What an increment needs belongs to it: without that nothing is known of it.
        let known = image
            .open_ancestors()
            .and_then(|()| job.image_state(image, &entry.path));
        known.unwrap_or(ImageState::Written)
    });
    let time = match &image {
        Some(image) => Duration::from_nanos(image.manifest().checkpoint.time_ns),
        None => Duration::from_secs(u64::try_from(entry.time).unwrap_or(0)),
    };
    Some(Found {
        job: job.name().to_string(),
        state,
        engine: image.as_ref().map(|_| NATIVE.to_string()),
        time: UNIX_EPOCH.checked_add(time).unwrap_or(UNIX_EPOCH),
        processes: image.as_ref().map(|image| image.manifest().processes.len()),
        id: image.as_ref().map(Image::id),
        parent: image.and_then(|image| {
            let parent = image.manifest().ancestors.first()?;
            Some(ImageId(parent.id.0.as_slice().try_into().ok()?))
        }),
        depth: 0,
        entry,
    })
}

/// Every image below the one it was made after; those whose parent is not among them come first, as before.
fn tree(found: Vec<Found>) -> Vec<Found> {
    let known: BTreeSet<ImageId> = found.iter().filter_map(|image| image.id).collect();
    let (mut waiting, mut rest): (Vec<Found>, Vec<Found>) = found
        .into_iter()
        .partition(|image| image.parent.is_none_or(|parent| !known.contains(&parent)));
    // The last of it is the next to be shown.
    waiting.reverse();
    let mut sorted = Vec::new();
    while let Some(image) = waiting.pop() {
        let (children, others) = rest
            .into_iter()
            .partition(|other| image.id.is_some() && other.parent == image.id);
        rest = others;
        let children: Vec<Found> = children;
        waiting.extend(children.into_iter().rev().map(|mut child| {
            child.depth = image.depth + 1;
            child
        }));
        sorted.push(image);
    }
    sorted
}

fn table(found: &[Found]) -> String {
    let mut table = Table::new(&["JOB", "TIME", "SIZE", "PROCESSES", "STATE", "IMAGE"], &[2, 3]);
    let now = SystemTime::now();
    for image in found {
        table.row([
            image.job.clone(),
            ago(image.time, now),
            size(image.entry.bytes),
            image.processes.map_or_else(|| "-".to_string(), |n| n.to_string()),
            match image.state {
                None => "damaged",
                Some(ImageState::Written) => "written",
                Some(ImageState::Verified) => "verified",
                Some(ImageState::Proven) => "proven",
            }
            .to_string(),
            format!("{}{}", "  ".repeat(image.depth), image.entry.path.display()),
        ]);
    }
    table.render()
}
