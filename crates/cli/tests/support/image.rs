//! Images that say something else than what was saved.

use std::path::{Path, PathBuf};

use gridcpr::image::model::Manifest;
use gridcpr::image::{Image, ImageWriter, PendingImage};

/// The same image after `edit`, sealed again beside it; it belongs to `owner`, if anybody is named.
pub fn edited(from: &Path, owner: Option<(u32, u32)>, edit: impl FnOnce(&mut Manifest)) -> PathBuf {
    edited_with_pages(from, owner, edit, |_, _| {})
}

/// The same, with each page of data changed by `pages`, which is told its position in the image.
pub fn edited_with_pages(
    from: &Path,
    owner: Option<(u32, u32)>,
    edit: impl FnOnce(&mut Manifest),
    pages: impl Fn(u64, &mut [u8]),
) -> PathBuf {
    let image = Image::open(from).expect("the image is good");
    let mut manifest = image.manifest().clone();
    edit(&mut manifest);
    let path = from.with_file_name("edited.cpr");
    let pending = PendingImage::create(&path).expect("the directory can be written");
    let mut writer = ImageWriter::new(&pending, "x86_64").expect("the image can be written");
    let mut page = vec![0; 4096];
    for at in (0..image.data_bytes()).step_by(page.len()) {
        image.read_data(4096 + at, &mut page).expect("the image is good");
        pages(4096 + at, &mut page);
        writer.append(&page).expect("the image can be written");
    }
    writer.finish(&manifest).expect("the image can be written");
    pending.publish(owner).expect("the image can be written");
    path
}
