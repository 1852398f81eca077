//! Parts whose metadata are any bytes, with all hashes right: the reader does not panic, and believes no length.
#![no_main]

#[path = "../../crates/app/tests/common/mod.rs"]
mod common;

use std::sync::OnceLock;

use cpr_app::part::Part;
use libfuzzer_sys::fuzz_target;

/// Every input is written there.
static PLACE: OnceLock<tempfile::TempDir> = OnceLock::new();

fuzz_target!(|metadata: &[u8]| {
    let place = PLACE.get_or_init(|| tempfile::tempdir().expect("a directory for inputs"));
    let path = place.path().join("part");
    std::fs::write(&path, common::bare(metadata)).expect("an input can be written");
    if let Ok(mut part) = Part::open(&path) {
        let _ = part.verify();
        for variable in 0..part.info().variables.len().min(8) {
            let _ = part.read(variable, 0, &mut [0; 16]);
            let _ = part.read(variable, u64::MAX - 7, &mut [0; 16]);
        }
    }
});
