//! `cpr verify`

use cpr_types::Result;
use serde_json::json;

use crate::args::ImageName;
use crate::output::{Output, clean, size};
use crate::target;

pub fn verify(output: Output, args: &ImageName) -> Result<u8> {
    let (path, mut image) = target::image(&args.image)?;
    image.open_ancestors()?;
    let mut progress = output.progress();
    image.verify_data(&mut |done, total| progress.update("verify", done, total))?;
    progress.finish();
    output.done(
        || json!({"image": path, "valid": true, "bytes": image.length()}),
        || {
            let name = path.display().to_string();
            format!("{}: {}, every hash is right\n", clean(&name), size(image.length()))
        },
    )?;
    Ok(0)
}
