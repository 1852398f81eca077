//! Opens any bytes as an image.

#![no_main]

#[path = "../../crates/image/tests/common/mod.rs"]
mod common;

use cpr_image::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    // Hashes that are wrong keep the rest from being looked at.
    if bytes.len() >= common::HEADER + common::TRAILER && bytes.len() % 2 == 0 {
        common::seal(&mut bytes);
    }
    if let Ok(image) = common::open(&bytes) {
        let _ = image.verify_data(&mut |_, _| {});
    }
    let _ = Image::from_stream(&mut &bytes[..], "stream");
});
