//! `cpr verify`

use cpr_node::{ImageState, StateDir};
use cpr_types::{Error, ErrorKind, Result};
use gridcpr::image::Bundle;
use serde_json::json;

use crate::args::images::Verify;
use crate::output::{Output, clean, size};
use crate::target;

pub fn verify(output: Output, args: &Verify) -> Result<u8> {
    let path = target::image_path(&args.image)?;
    if let Some(bundle) = Bundle::recognise(&path)? {
        if args.restore {
            let engine = &bundle.record().engine;
            let what = format!("an image of engine {engine} cannot be restarted in a sandbox");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        bundle.verify()?;
        let name = path.display().to_string();
        output.done(
            || json!({"image": path, "valid": true, "bytes": bundle.length(), "restored": null}),
            || format!("{}: {}, every hash is right\n", clean(&name), size(bundle.length())),
        )?;
        return Ok(0);
    }
    let (path, mut image) = target::image(&args.image)?;
    image.open_ancestors()?;
    // First, while this process has no threads and may fork.
    let proof = if args.restore {
        output.detail(|| format!("restarting image {} in a sandbox", image.id()));
        Some(cpr_node::prove(&image)?)
    } else {
        None
    };
    let mut progress = output.progress();
    image.verify_data(&mut |done, total| progress.update("verify", done, total))?;
    progress.finish();
    let state = if args.restore {
        ImageState::Proven
    } else {
        ImageState::Verified
    };
    // What was found out holds whether or not it can be noted.
    if let Err(error) = StateDir::open().and_then(|dir| dir.note_image(&image, &path, state)) {
        output.note(format!("this could not be noted for `cpr images`: {}", error.chain()));
    }
    output.done(
        || json!({"image": path, "valid": true, "bytes": image.length(), "restored": proof}),
        || {
            let name = path.display().to_string();
            let hashes = format!("{}: {}, every hash is right", clean(&name), size(image.length()));
            match &proof {
                None => format!("{hashes}\n"),
                Some(proof) => format!(
                    "{hashes}; restarted in a sandbox, where all {} threads of {} processes ran\n",
                    proof.threads, proof.processes
                ),
            }
        },
    )?;
    Ok(0)
}
