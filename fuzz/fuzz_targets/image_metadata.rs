//! Opens images whose metadata are any bytes, with all hashes right.

#![no_main]

#[path = "../../crates/image/tests/common/mod.rs"]
mod common;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|metadata: &[u8]| {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    let image = IMAGE.get_or_init(common::image);
    let _ = common::open(&common::with_metadata(image, metadata));
});
