//! `cpr rm`

use std::path::{Path, PathBuf};

use cpr_node::StateDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::image::{Bundle, Image};
use serde_json::json;

use crate::args::Rm;
use crate::output::Output;
use crate::target::{Kept, job_or_image};

/// Removes what can be removed of all that is named, and says of the rest why it cannot.
pub fn rm(output: Output, args: &Rm) -> Result<u8> {
    let mut removed: Vec<&Path> = Vec::new();
    let mut left: Vec<&Path> = args.targets.iter().map(PathBuf::as_path).collect();
    let mut failures = Vec::new();
    // What another one needed can be removed when that is gone.
    while !left.is_empty() {
        let before = removed.len();
        failures.clear();
        left.retain(|target| match remove(target, args.force) {
            Ok(()) => {
                removed.push(target);
                false
            }
            Err(error) => {
                failures.push(error);
                true
            }
        });
        if removed.len() == before {
            break;
        }
    }
    if !removed.is_empty() {
        let line = |target: &&Path| format!("{} removed\n", target.display());
        output.done(|| json!({"removed": removed}), || removed.iter().map(line).collect())?;
    }
    match &failures[..] {
        [] => Ok(0),
        [first, _, ..] => {
            let all: Vec<String> = failures.iter().map(Error::chain).collect();
            Err(Error::new(first.kind(), all.join("; ")))
        }
        [_] => failures.pop().map_or(Ok(0), Err),
    }
}

fn remove(target: &Path, force: bool) -> Result<()> {
    match job_or_image(target)? {
        Kept::Job(job) => job.remove(force).map_err(|error| match error.kind() {
            ErrorKind::Busy if !force => error.with_hint("end it first, or remove it all the same with --force"),
            _ => error,
        }),
        Kept::Image(path) => remove_image(&path, force),
    }
}

/// Removes images and nothing else: with `force`, whatever is called one.
fn remove_image(path: &Path, force: bool) -> Result<()> {
    let named_so = path.extension().is_some_and(|extension| extension == "cpr");
    if !matches!(Bundle::recognise(path), Ok(Some(_)))
        && let Err(error) = Image::open(path)
        && (error.kind() == ErrorKind::NotFound || !(force && named_so))
    {
        return Err(if named_so && error.kind() == ErrorKind::Damaged {
            error.with_hint("--force removes it all the same")
        } else {
            error
        });
    }
    if !force && let Some(other) = cpr_node::needed_by(path)? {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("image {} is needed by {}", path.display(), other.display()),
        )
        .with_hint("`cpr merge` makes a full image of that one; --force removes this one all the same"));
    }
    std::fs::remove_file(path).context(|| format!("remove {}", path.display()))?;
    // A user without a place for jobs has noted nothing.
    StateDir::open().map_or(Ok(()), |state| state.forget_image(path))
}
