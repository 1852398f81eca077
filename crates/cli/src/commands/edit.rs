//! `cpr edit`

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::image::edit::Edit as Changes;
use serde_json::{Value, json};

use crate::args::images::Edit;
use crate::output::{Output, clean, size};
use crate::target;

pub fn edit(output: Output, args: &Edit) -> Result<u8> {
    let (path, image) = target::image(&args.image)?;
    let old = image.id().to_string();
    let mut changes = Changes::new(image)?;
    for (from, to) in &args.replace_path {
        changes.replace_path(from, to)?;
    }
    let root = changes.manifest().checkpoint.root_pid;
    for (name, value) in &args.environment {
        changes.set_environment(args.pid.unwrap_or(root), name, value)?;
    }
    for (pointer, value) in &args.set {
        // What is no JSON is text: `--set /checkpoint/job=sim`.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        changes.set(pointer, value)?;
    }
    let made = changes.save(&args.output)?;
    output.done(
        || {
            json!({
                "image": args.output,
                "image_id": made.id.to_string(),
                "edited_from": old,
                "bytes": made.length,
            })
        },
        || {
            let (new, old) = (args.output.display().to_string(), path.display().to_string());
            format!("{}: {}, made from {}\n", clean(&new), size(made.length), clean(&old))
        },
    )?;
    Ok(0)
}

/// Splits `NAME=VALUE` at its first `=`.
pub fn pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Error::new(ErrorKind::Usage, format!("{text:?} has no `=` in it"))),
    }
}
