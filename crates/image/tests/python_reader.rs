//! The format document is enough to write a reader: one in Python, written from it alone, lists an image as we do.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::*;
use cpr_image::Image;
use serde_json::{Value, json};

/// Runs the Python reader; none without Python.
fn reader(bytes: &[u8], arguments: &[&str]) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/cpr_image_reader.py");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    match Command::new("python3")
        .arg(script)
        .args(arguments)
        .arg(file.path())
        .output()
    {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: needs python3, which cannot be run here: {error}");
            None
        }
    }
}

/// The name of a variant as serde shows it.
fn variant(value: &impl serde::Serialize) -> Value {
    match serde_json::to_value(value).unwrap() {
        Value::Object(map) => map.keys().next().unwrap().as_str().into(),
        name => name,
    }
}

fn listing(image: &Image) -> Value {
    let manifest = image.manifest();
    let processes: Vec<Value> = manifest
        .processes
        .iter()
        .map(|process| {
            let space = process.address_space.map(|id| &manifest.address_spaces[id.index()]);
            let mappings = space.map_or(&[][..], |space| &space.mappings).iter().map(|mapping| {
                json!({
                    "start": mapping.start,
                    "end": mapping.end,
                    "kind": variant(&mapping.kind),
                    "protection": mapping.protection,
                })
            });
            let descriptors = process.descriptors.iter().map(|open| {
                let object = &manifest.files[open.file.index()].object;
                json!({ "fd": open.fd, "object": variant(object) })
            });
            json!({
                "pid": process.pid,
                "ppid": process.ppid,
                "threads": process.threads.iter().map(|thread| thread.tid).collect::<Vec<_>>(),
                "mappings": mappings.collect::<Vec<_>>(),
                "descriptors": descriptors.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "checkpoint": manifest.checkpoint, "processes": processes })
}

/// LBNL-1.2.3.3: an independent reader lists processes, memory areas and descriptors identically.
#[test]
fn lbnl_1_2_3_3_independent_reader_lists_the_same() {
    // Two chunks, the second partial.
    let bytes = write(&manifest(), &pages(300)).unwrap().0;
    let Some(output) = reader(&bytes, &["--verify"]) else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs, listing(&open(&bytes).unwrap()));
    assert_eq!(theirs["processes"].as_array().unwrap().len(), 3);
}

/// What we refuse as damaged, it refuses too; so hashes and positions are described as they are.
#[test]
fn it_refuses_what_we_refuse() {
    let sound = image();
    let trailer = sound.len() - TRAILER;
    let mut cases: Vec<Vec<u8>> = vec![
        vec![],
        sound[..sound.len() / 2].to_vec(),
        sound[..4].to_vec(),
        vec![b'x'; 9000],
    ];
    for at in [
        3,
        9,
        30,
        4000,
        4090,
        5000,
        4096 * 5 + 3,
        4096 * 5 + 100,
        trailer + 2,
        trailer + 30,
        trailer + 150,
    ] {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        cases.push(bytes);
    }
    let mut newer = sound.clone();
    newer[12] = 2;
    seal(&mut newer);
    let mut feature = sound.clone();
    feature[64] = 1;
    feature[66..68].copy_from_slice(b"\x01z");
    seal(&mut feature);
    cases.extend([
        newer,
        feature,
        with_metadata(&sound, b"\xa1\x00\x00"),
        with_metadata(&sound, b"\xa0\xa0"),
    ]);
    for (index, bytes) in cases.iter().enumerate() {
        refusal(bytes);
        let Some(output) = reader(bytes, &["--verify"]) else {
            return;
        };
        assert_eq!(
            output.status.code(),
            Some(65),
            "case {index}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "case {index}");
    }
}

#[test]
fn a_compressed_image_is_listed_and_verified_too() {
    let options = cpr_image::WriteOptions {
        compression: Some(cpr_image::Compression::Level(3)),
        incremental: false,
    };
    let mut writer = cpr_image::ImageWriter::with_options(Vec::new(), "x86_64", options).unwrap();
    writer.append(&pages(4)).unwrap();
    let (mut bytes, summary) = writer.finish(&manifest()).unwrap();
    assert!(summary.length < 4 * 4096 + summary.manifest_bytes);
    let Some(output) = reader(&bytes, &["--verify"]) else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bytes[4100] ^= 1;
    if let Some(output) = reader(&bytes, &["--verify"]) {
        assert!(!output.status.success());
    }
}
