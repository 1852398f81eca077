//! `cpr inspect`

use std::path::Path;

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::image::Bundle;
use serde_json::json;

use crate::args::images::Inspect;
use crate::inspect::render;
use crate::output::{Output, clean, command_line, from_ms, size, timestamp, to_json};
use crate::target;

pub fn inspect(output: Output, args: &Inspect) -> Result<u8> {
    if output.is_json() && !args.sections.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "--section cannot be used with --json")
            .with_hint("the JSON is the whole of the image; take what you need from it with jq"));
    }
    let path = target::image_path(&args.image)?;
    if let Some(bundle) = Bundle::recognise(&path)? {
        return of_other_engine(output, args, &path, &bundle);
    }
    let (path, image) = target::image(&args.image)?;
    let header = image.header();
    let manifest = if output.is_json() {
        to_json(image.manifest())?
    } else {
        json!(null)
    };
    output.answer(
        || {
            let created = std::time::Duration::from_nanos(header.created_ns);
            json!({
                "image": path,
                "bytes": image.length(),
                "header": {
                    "version": [header.version.0, header.version.1],
                    "id": header.id.to_string(),
                    "created": timestamp(std::time::UNIX_EPOCH + created),
                    "architecture": header.architecture,
                    "page_size": header.page_size,
                    "flags": header.flags,
                    "required_features": header.required_features,
                },
                "manifest": manifest,
            })
        },
        || render(&image, &args.sections),
    )?;
    Ok(0)
}

/// An image of another engine: what it is of, and the engine's files, which only the engine understands.
fn of_other_engine(output: Output, args: &Inspect, path: &Path, bundle: &Bundle) -> Result<u8> {
    let record = bundle.record();
    if !args.sections.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("an image of engine {} has no sections", record.engine),
        ));
    }
    let (described, files) = (to_json(record)?, to_json(&bundle.files())?);
    let version = record.version.as_deref().unwrap_or("of unknown version");
    output.answer(
        || json!({"image": path, "bytes": bundle.length(), "engine": described, "files": files}),
        || {
            let mut text = format!("image {} of engine {} {version}\n", record.id, clean(&record.engine));
            text.push_str(&format!("  job {} of user {}, ", clean(&record.job), record.owner_uid));
            let time = timestamp(from_ms(record.time_ns / 1_000_000));
            text.push_str(&format!("saved at {time} on {}\n", clean(&record.node)));
            text.push_str(&format!("  command: {}\n", command_line(&record.command)));
            let pids: Vec<String> = record.processes.iter().map(ToString::to_string).collect();
            let (kind, id) = &record.group;
            let group = format!("{kind} {id}");
            text.push_str(&format!("  processes: {}, as {}\n", pids.join(" "), clean(&group)));
            for file in bundle.files() {
                let name = file.path.display().to_string();
                text.push_str(&format!("  {:>9}  {}\n", size(file.length), clean(&name)));
            }
            text
        },
    )?;
    Ok(0)
}
