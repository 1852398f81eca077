//! What is written is what is read.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use ciborium::Value;
use common::*;
use cpr_image::model::*;
use cpr_image::{ChunkWriter, HASH_CHUNK, Image, ImageId, ImageWriter};
use cpr_types::ErrorKind;

#[test]
fn everything_comes_back() {
    let manifest = manifest_with_ipc();
    let data = pages(4);
    let (bytes, summary) = write(&manifest, &data).unwrap();
    assert_eq!(summary.length, bytes.len() as u64);
    assert_eq!(summary.data_bytes, data.len() as u64);
    assert_eq!(summary.root_hash, bytes[bytes.len() - 32..]);
    let image = open(&bytes).unwrap();
    assert_eq!(image.manifest(), &manifest);
    assert_eq!(image.id(), summary.id);
    assert_eq!(image.root_hash(), summary.root_hash);
    assert_eq!(image.length(), summary.length);
    assert_eq!(image.manifest_bytes(), summary.manifest_bytes);
    assert_eq!(image.header().architecture, "x86_64");
    assert_eq!(image.header().version, (1, 0));
    assert!(image.header().created_ns > 1_600_000_000_000_000_000);
    assert_eq!(image.id().to_string().parse::<ImageId>().unwrap(), image.id());
    let mut page = vec![0; 4096];
    image.read_data(4096 + 8192, &mut page).unwrap();
    assert_eq!(page, data[8192..12288]);
}

#[test]
fn two_images_differ_in_identifier() {
    assert_ne!(open(&image()).unwrap().id(), open(&image()).unwrap().id());
}

/// Appended in pieces of many sizes, below and above what is hashed in another thread, the hashes are the same.
#[test]
fn data_of_several_chunks_in_any_pieces() {
    let data = pages(3 * 256 + 17);
    let manifest = manifest();
    let mut tails = Vec::new();
    for piece in [1, 100, 128, 255, 256, 257, 700, 2000] {
        let mut writer = ImageWriter::new(Vec::new(), "x86_64").unwrap();
        let mut at = 4096;
        for part in data.chunks(piece * 4096) {
            assert_eq!(writer.append(part).unwrap(), at);
            at += part.len() as u64;
        }
        assert_eq!(writer.append(&[]).unwrap(), at);
        assert_eq!(writer.data_bytes(), data.len() as u64);
        let (bytes, summary) = writer.finish(&manifest).unwrap();
        let table = &bytes[4096 + data.len()..][..4 * 32];
        let expected: Vec<u8> = data
            .chunks(HASH_CHUNK as usize)
            .flat_map(|chunk| *blake3::hash(chunk).as_bytes())
            .collect();
        assert_eq!(table, expected);
        tails.push(table.to_vec());
        let image = open(&bytes).unwrap();
        let mut calls = Vec::new();
        image.verify_data(&mut |done, total| calls.push((done, total))).unwrap();
        assert_eq!(calls.last(), Some(&(summary.data_bytes, summary.data_bytes)));
        assert!(
            calls
                .iter()
                .all(|(done, total)| done <= total && *total == summary.data_bytes)
        );
    }
    assert!(tails.iter().all(|tail| *tail == tails[0]));
}

/// Chunks that others write in any order, behind and before page data that are appended, are the same image.
#[test]
fn chunks_that_are_written_at_their_places() {
    let chunk = HASH_CHUNK as usize;
    let data = pages(4 * 256 + 5);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let file = std::fs::File::create(&path).unwrap();
    let chunks = ChunkWriter::new(file.try_clone().unwrap());
    let mut writer = ImageWriter::new(file, "x86_64").unwrap();
    assert_eq!(writer.pass_over(HASH_CHUNK).unwrap_err().kind(), ErrorKind::Internal);
    let mut hashing = writer.take_hashing().unwrap();
    writer.append(&data[..chunk]).unwrap();
    hashing.add(&data[..chunk]);
    let mut hashes: Vec<[u8; 32]> = (1..4)
        .rev()
        .map(|number| {
            let part = &data[number * chunk..(number + 1) * chunk];
            chunks.write(part, 4096 + number as u64 * HASH_CHUNK).unwrap();
            cpr_image::hash(part)
        })
        .collect();
    hashes.reverse();
    writer.pass_over(3 * HASH_CHUNK).unwrap();
    hashing.add_chunks(&hashes).unwrap();
    assert_eq!(writer.append(&data[4 * chunk..]).unwrap(), 4096 + 4 * HASH_CHUNK);
    hashing.add(&data[4 * chunk..]);
    assert_eq!(hashing.add_chunks(&hashes).unwrap_err().kind(), ErrorKind::Internal);
    writer.give_back(hashing).unwrap();
    let (_, summary) = writer.finish(&manifest()).unwrap();
    assert_eq!(summary.data_bytes, data.len() as u64);
    let image = Image::open(&path).unwrap();
    assert_eq!(image.root_hash(), summary.root_hash);
    image.verify_data(&mut |_, _| {}).unwrap();
    let mut read = vec![0; data.len()];
    image.read_data(4096, &mut read).unwrap();
    assert!(read == data);
}

#[test]
fn an_image_without_page_data() {
    let writer = ImageWriter::new(Vec::new(), "x86_64").unwrap();
    let (bytes, _) = writer.finish(&Manifest::default()).unwrap();
    let image = open(&bytes).unwrap();
    image.verify_data(&mut |_, _| {}).unwrap();
    assert_eq!(image.manifest(), &Manifest::default());
    assert_eq!(image.read_data(4096, &mut [0]).unwrap_err().kind(), ErrorKind::Damaged);
}

/// Writer and reader work through a pipe, where nothing can seek.
#[test]
fn through_a_pipe() {
    let mut cat = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sink, mut source) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let data = pages(700);
    let read = std::thread::spawn(move || Image::from_stream(&mut source, "standard input"));
    let mut writer = ImageWriter::new(sink, "x86_64").unwrap();
    writer.append(&data).unwrap();
    let (sink, summary) = writer.finish(&manifest()).unwrap();
    drop(sink);
    let image = read.join().unwrap().unwrap();
    cat.wait().unwrap();
    assert_eq!(image.root_hash(), summary.root_hash);
    image.verify_data(&mut |_, _| {}).unwrap();
    let mut last = vec![0; 4096];
    image.read_data(4096 * 700, &mut last).unwrap();
    assert_eq!(last, data[699 * 4096..]);
}

/// A stream that is no image is refused without waiting for its end.
#[test]
fn an_endless_stream_of_rubbish_is_refused_at_once() {
    let error = Image::from_stream(&mut std::io::repeat(b'x'), "standard input").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let mut endless = image()[..4096].to_vec();
    endless[100] ^= 1;
    let error = Image::from_stream(&mut endless.chain(std::io::repeat(0)), "standard input").unwrap_err();
    assert!(error.message().contains("header"), "{error}");
    for length in [0, 5, 100, 4095] {
        let error = Image::from_stream(&mut &image()[..length], "standard input").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
}

/// The same metadata can be shown as JSON and read back from it, but for names that are not UTF-8.
#[test]
fn json_shows_the_same() {
    let mut manifest = manifest();
    manifest.saved_files[1].kind = SavedFileKind::SharedAnonymous;
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    assert!(text.contains("\"/usr/bin/sum\""));
}

/// What is wrong is not written in the first place.
#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = ImageWriter::new(Vec::new(), "x86_64").unwrap();
    assert_eq!(writer.append(&[0; 100]).unwrap_err().kind(), ErrorKind::Internal);
    // The manifest points at page data that were not appended.
    assert_eq!(writer.finish(&manifest()).unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(
        ImageWriter::new(Vec::new(), "").err().unwrap().kind(),
        ErrorKind::Internal
    );
    let writer = ImageWriter::new(Vec::new(), "aarch64").unwrap();
    assert_eq!(writer.finish(&manifest()).unwrap_err().kind(), ErrorKind::Internal);
}

/// A full disk is reported as such, at once and for good.
#[test]
fn a_full_disk() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or_else(|| std::io::Error::from_raw_os_error(28))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for data in [pages(4), pages(300)] {
        let mut writer = ImageWriter::new(Full(4096 + 4095), "x86_64").unwrap();
        let error = writer.append(&data).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.hint().is_some());
        assert!(writer.append(&data[..4096]).is_err());
        assert!(writer.finish(&Manifest::default()).is_err());
    }
}

/// What is to be done to a CBOR map.
type Change<'a> = dyn Fn(&mut Vec<(Value, Value)>) + 'a;

/// Gives the CBOR map at the end of `path` to `edit`; numbers are indices.
fn edit(value: &mut Value, path: &[&str], edit: &Change<'_>) {
    let Some((first, rest)) = path.split_first() else {
        return edit(value.as_map_mut().unwrap());
    };
    let next = match first.parse::<usize>() {
        Ok(index) => &mut value.as_array_mut().unwrap()[index],
        Err(_) => {
            let map = value.as_map_mut().unwrap();
            &mut map.iter_mut().find(|(key, _)| key.as_text() == Some(first)).unwrap().1
        }
    };
    self::edit(next, rest, edit);
}

fn edited(edits: &[(&[&str], &Change<'_>)]) -> Vec<u8> {
    let image = image();
    let mut value: Value = ciborium::from_reader(metadata(&image)).unwrap();
    for (path, change) in edits {
        edit(&mut value, path, change);
    }
    let mut encoded = Vec::new();
    ciborium::into_writer(&value, &mut encoded).unwrap();
    with_metadata(&image, &encoded)
}

/// A newer writer's additional fields are passed over, and an older one's missing fields have their defaults.
#[test]
fn unknown_and_missing_fields() {
    let add = |map: &mut Vec<(Value, Value)>| {
        let nested = Value::Array(vec![
            Value::Map(vec![("x".into(), Value::Bytes(vec![1; 9000]))]),
            Value::Null,
        ]);
        map.insert(0, ("introduced_in_1_1".into(), nested));
        map.push(("another".into(), Value::Text("y".repeat(9000))));
    };
    let remove = |map: &mut Vec<(Value, Value)>| map.retain(|(key, _)| key.as_text() != Some("umask"));
    let remove_table = |map: &mut Vec<(Value, Value)>| map.retain(|(key, _)| key.as_text() != Some("terminals"));
    let mut bytes = edited(&[
        (&[], &add),
        (&["checkpoint"], &add),
        (&["processes", "0"], &add),
        (&["processes", "0", "descriptors", "0"], &add),
        (&["address_spaces", "0", "mappings", "1"], &add),
        (&["processes", "1"], &remove),
    ]);
    // Of a newer minor version, too.
    bytes[14] = 9;
    seal(&mut bytes);
    let image = open(&bytes).unwrap();
    assert_eq!(image.header().version, (1, 9));
    let mut expected = manifest();
    expected.processes[1].umask = 0;
    assert_eq!(image.manifest(), &expected);
    // The table is missing, but something refers to it.
    let error = open(&edited(&[(&[], &remove_table)])).unwrap_err();
    assert!(error.chain().contains("there is no terminal 0"), "{}", error.chain());
}

/// An object of a kind this program does not know is refused by name, with or without contents.
#[test]
fn unknown_variants_are_refused_by_name() {
    for object in [
        "wormhole".into(),
        Value::Map(vec![("wormhole".into(), Value::Map(vec![]))]),
    ] {
        let change = |map: &mut Vec<(Value, Value)>| {
            map.iter_mut()
                .find(|(key, _)| key.as_text() == Some("object"))
                .unwrap()
                .1 = object.clone();
        };
        let error = open(&edited(&[(&["files", "3"], &change)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{}", error.chain());
        assert!(error.chain().contains("wormhole"), "{}", error.chain());
        assert!(error.hint().is_some());
    }
    // A known name with contents of another form is damage.
    for object in ["epoll".into(), Value::Map(vec![("epoll".into(), 5.into())])] {
        let change = |map: &mut Vec<(Value, Value)>| {
            map.iter_mut()
                .find(|(key, _)| key.as_text() == Some("object"))
                .unwrap()
                .1 = object.clone();
        };
        let error = open(&edited(&[(&["files", "3"], &change)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
    }
}
