//! `cpr inspect`

use cpr_types::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::Inspect;
use crate::inspect::render;
use crate::output::{Output, timestamp, to_json};
use crate::target;

pub fn inspect(output: Output, args: &Inspect) -> Result<u8> {
    if output.is_json() && !args.sections.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "--section cannot be used with --json")
            .with_hint("the JSON is the whole of the image; take what you need from it with jq"));
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
