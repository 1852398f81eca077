//! Images that older versions wrote stay readable, and the format document is true.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use ciborium::Value;
use common::*;

/// An image of [`common::manifest`] with four pages, as the first version of the program wrote it. Never written
/// again: a newer format gets a file of its own.
const FORMAT_1_0: &[u8] = include_bytes!("golden/format-1.0.bin");
const DOCUMENT: &str = include_str!("../../../docs/image-format.md");

#[test]
fn an_image_of_format_1_0_reads_as_ever() {
    let image = open(FORMAT_1_0).unwrap();
    image.verify_data(&mut |_, _| {}).unwrap();
    assert_eq!(image.header().version, (1, 0));
    assert_eq!(image.manifest(), &manifest());
    let mut data = vec![0; 4 * 4096];
    image.read_data(4096, &mut data).unwrap();
    assert_eq!(data, pages(4));
}

/// Every key and every variant that is written is in the document, in code quotes.
#[test]
fn the_document_names_every_key_and_variant() {
    fn collect(value: &Value, names: &mut BTreeSet<String>) {
        match value {
            Value::Map(map) => {
                for (key, value) in map {
                    names.insert(key.as_text().unwrap().to_string());
                    collect(value, names);
                }
            }
            Value::Array(array) => array.iter().for_each(|value| collect(value, names)),
            _ => {}
        }
    }
    let mut names = BTreeSet::new();
    collect(&ciborium::from_reader(metadata(&image())).unwrap(), &mut names);
    let unit_variants = [
        "running",
        "shared",
        "exclusive",
        "anonymous",
        "stack",
        "vdso",
        "vvar",
        "vvar-clock",
        "unconnected",
    ];
    names.extend(unit_variants.map(str::to_string));
    names.extend(["peer-closed", "shared-anonymous"].map(str::to_string));
    assert!(names.len() > 150, "{names:?}");
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| !DOCUMENT.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/image-format.md: {missing:?}");
}

/// The bytes shown in the document are those of the golden image.
#[test]
fn the_document_shows_real_bytes() {
    let mut lines = 0;
    for line in DOCUMENT.lines() {
        let Some((offset, rest)) = line.split_once("  ").filter(|(offset, _)| offset.len() == 8) else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        let hex = rest.split('|').next().unwrap();
        for (index, byte) in hex.split_whitespace().enumerate() {
            assert_eq!(
                u8::from_str_radix(byte, 16).unwrap(),
                FORMAT_1_0[offset + index],
                "{line}"
            );
        }
        lines += 1;
    }
    assert!(lines >= 20, "the document shows {lines} lines of the example");
}
