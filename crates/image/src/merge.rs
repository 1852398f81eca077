//! Making one full image of an increment and what it refers to.

use std::collections::BTreeMap;
use std::io::Write;

use cpr_types::Result;

use crate::format::HASH_CHUNK;
use crate::model::{Extent, Manifest};
use crate::reader::Image;
use crate::writer::{ImageSummary, ImageWriter};

/// Writes an image that needs no other and is otherwise the same, with an identifier of its own. The ancestors of
/// `image` are open, and its page data have been verified. `progress` is told of bytes done and bytes in all.
///
/// # Errors
/// A page cannot be read, or the new image cannot be written.
pub fn merge<W: Write>(
    image: &Image,
    writer: ImageWriter<W>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(W, ImageSummary)> {
    let read = |offset: u64, buffer: &mut [u8]| image.read_data(offset, buffer);
    copy(image.manifest().clone(), &read, writer, progress)
}

/// Writes an image with these metadata and all page data that they refer to, which `read` gives by their positions.
pub(crate) fn copy<W: Write>(
    mut manifest: Manifest,
    read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
    mut writer: ImageWriter<W>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(W, ImageSummary)> {
    let runs = used(&manifest);
    let total = runs.values().sum();
    // Of every run, where it is in the new image.
    let mut moved = BTreeMap::new();
    let mut buffer = Vec::new();
    for (&offset, &length) in &runs {
        let mut done = 0;
        while done < length {
            buffer.resize((length - done).min(HASH_CHUNK) as usize, 0);
            read(offset + done, &mut buffer)?;
            let place = writer.append(&buffer)?;
            moved.entry(offset).or_insert(place);
            done += buffer.len() as u64;
            progress(writer.data_bytes(), total);
        }
    }
    for extent in manifest.extents_mut() {
        if let Some((offset, place)) = moved.range(..=extent.offset).next_back() {
            extent.offset = place + (extent.offset - offset);
        }
    }
    manifest.ancestors.clear();
    writer.finish(&manifest)
}

/// Page data that are used, each once: position and length of runs that do not touch.
fn used(manifest: &Manifest) -> BTreeMap<u64, u64> {
    let mut extents: Vec<&Extent> = manifest.extents().collect();
    extents.sort_unstable_by_key(|extent| extent.offset);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in extents {
        let end = extent.offset.saturating_add(extent.length);
        match runs.last_mut() {
            Some((offset, length)) if offset.saturating_add(*length) >= extent.offset => {
                *length = (*length).max(end - *offset)
            }
            _ => runs.push((extent.offset, extent.length)),
        }
    }
    runs.into_iter().collect()
}
