//! `cpr rm`

use std::path::Path;

use cpr_node::StateDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::image::{Bundle, Image};
use serde_json::json;

use crate::args::Rm;
use crate::output::Output;
use crate::target::{Kept, job_or_image};

pub fn rm(output: Output, args: &Rm) -> Result<u8> {
    match job_or_image(&args.target)? {
        Kept::Job(job) => job.remove(args.force).map_err(|error| match error.kind() {
            ErrorKind::Busy if !args.force => error.with_hint("end it first, or remove it all the same with --force"),
            _ => error,
        })?,
        Kept::Image(path) => remove_image(&path, args.force)?,
    }
    let name = args.target.display();
    output.done(|| json!({"removed": args.target}), || format!("{name} removed\n"))?;
    Ok(0)
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
