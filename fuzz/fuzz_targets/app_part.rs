//! A part of a checkpoint that a program has written: no file makes the reader panic.
#![no_main]

use std::io::Write;

use cpr_app::part::Part;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new() else {
        return;
    };
    if file.write_all(data).is_err() {
        return;
    }
    if let Ok(mut part) = Part::open(file.path()) {
        let _ = part.verify();
        let _ = part.read(0, 0, &mut [0; 16]);
    }
});
