//! `cpr merge`

use std::fs::File;

use cpr_types::{Context, Result};
use gridcpr::image::{ImageWriter, PendingImage, WriteOptions, merge as merge_image};
use serde_json::json;

use crate::args::images::Merge;
use crate::output::{Output, clean, size};
use crate::target;

pub fn merge(output: Output, args: &Merge) -> Result<u8> {
    let (_, mut image) = target::image(&args.image)?;
    image.open_ancestors()?;
    let mut progress = output.progress();
    image.verify_data(&mut |done, total| progress.update("verify", done, total))?;
    let path = std::path::absolute(&args.output).context(|| format!("resolve {}", args.output.display()))?;
    let pending = PendingImage::create(&path)?;
    let file: File = pending
        .file()
        .try_clone()
        .context(|| "copy the descriptor of the image")?;
    let options = WriteOptions {
        compression: args.compress,
        incremental: false,
    };
    let writer = ImageWriter::with_options(file, &image.header().architecture, options)?;
    let (_, summary) = merge_image(&image, writer, &mut |done, total| progress.update("merge", done, total))?;
    let checkpoint = &image.manifest().checkpoint;
    pending.publish(Some((checkpoint.owner_uid, checkpoint.owner_gid)))?;
    progress.finish();
    output.done(
        || json!({"image": path, "image_id": summary.id.to_string(), "bytes": summary.length}),
        || {
            let name = path.display().to_string();
            format!("{}: {}, needs no other image\n", clean(&name), size(summary.length))
        },
    )?;
    Ok(0)
}
