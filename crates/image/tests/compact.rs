//! Compressed images, and images that refer to others.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::*;
use cpr_image::model::*;
use cpr_image::{ANCESTOR_STRIDE, Compression, HASH_CHUNK, Image, ImageWriter, WriteOptions};
use cpr_types::ErrorKind;

fn compressed(data: &[u8], compression: Compression) -> Vec<u8> {
    let options = WriteOptions {
        compression: Some(compression),
        incremental: false,
    };
    let mut writer = ImageWriter::with_options(Vec::new(), "x86_64", options).unwrap();
    let mut at = 4096;
    for part in data.chunks(300 * 4096) {
        assert_eq!(writer.append(part).unwrap(), at);
        at += part.len() as u64;
    }
    writer.finish(&manifest()).unwrap().0
}

/// Bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut data = Vec::with_capacity(length);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data
}

#[test]
fn compressed_data_come_back_from_anywhere() {
    let mut data = vec![7; 3 * HASH_CHUNK as usize];
    data.extend(noise(2 * HASH_CHUNK as usize + 5 * 4096));
    for compression in [Compression::Fast, Compression::Level(1), Compression::Level(9)] {
        let bytes = compressed(&data, compression);
        let image = open(&bytes).unwrap();
        assert_eq!(image.data_bytes(), data.len() as u64);
        image.verify_data(&mut |_, _| {}).unwrap();
        if compression != Compression::Fast {
            assert!(bytes.len() < 2 * HASH_CHUNK as usize + (200 << 10), "{}", bytes.len());
        }
        for (at, length) in [
            (0, 4096),
            (4096, 2 << 20),
            (data.len() - 4096, 4096),
            (100 * 4096, 4 << 20),
        ] {
            let mut read = vec![0; length];
            image.read_data(4096 + at as u64, &mut read).unwrap();
            assert!(read == data[at..at + length], "{at}");
        }
        let mut page = [0; 4096];
        let end = 4096 + data.len() as u64;
        assert_eq!(image.read_data(end, &mut page).unwrap_err().kind(), ErrorKind::Damaged);
        let pieces = [(4096, 5 << 20), (4096 + (5 << 20), 4096), (8192, 4096)];
        let read = std::sync::Mutex::new(pieces.map(|(_, length)| vec![0; length as usize]));
        let take = |index: usize, done: u64, part: &[u8]| {
            read.lock().unwrap()[index][done as usize..done as usize + part.len()].copy_from_slice(part);
            Ok(())
        };
        image.read_pieces(&pieces, &take).unwrap();
        for ((offset, length), read) in pieces.iter().zip(read.into_inner().unwrap()) {
            let at = (offset - 4096) as usize;
            assert!(read == data[at..at + *length as usize]);
        }
    }
}

#[test]
fn pieces_are_taken_from_what_was_verified() {
    let data = noise(3 * HASH_CHUNK as usize + 5 * 4096);
    let mut writer = ImageWriter::new(Vec::new(), "x86_64").unwrap();
    writer.append(&data).unwrap();
    let plain = writer.finish(&manifest()).unwrap().0;
    let end = 4096 + data.len() as u64;
    // The last one begins in one chunk and ends in the next but one; the first two are the same pages.
    let pieces = [
        (4096, 4096),
        (4096, 4096),
        (end - 4096, 4096),
        (4096 + (1 << 20) - 8192, (1 << 20) + 16384),
    ];
    for bytes in [plain, compressed(&data, Compression::Level(1))] {
        let read = std::sync::Mutex::new(pieces.map(|(_, length)| (vec![0; length as usize], 0)));
        let take = |index: usize, done: u64, part: &[u8]| {
            let (buffer, taken) = &mut read.lock().unwrap()[index];
            buffer[done as usize..done as usize + part.len()].copy_from_slice(part);
            *taken += part.len();
            Ok(())
        };
        let image = open(&bytes).unwrap();
        image.verify_and_take(&pieces, &take).unwrap();
        for ((offset, length), (read, taken)) in pieces.iter().zip(read.into_inner().unwrap()) {
            let at = (offset - 4096) as usize;
            assert_eq!(taken, read.len(), "each byte is given once");
            assert!(read == data[at..at + *length as usize]);
        }
        for outside in [(0, 4096), (end, 4096), (end - 4096, 8192)] {
            let error = image.verify_and_take(&[outside], &|_, _, _| Ok(())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
        }
        let refusal = |_: usize, _: u64, _: &[u8]| Err(cpr_types::Error::new(ErrorKind::NoSpace, "no room"));
        let error = image.verify_and_take(&pieces[..1], &refusal).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        // In the second chunk, which is asked for, and in the third, of which nothing is.
        for chunk in [1, 2] {
            let mut altered = bytes.clone();
            altered[4096 + chunk * (1 << 20) + 4096 * 77] ^= 1;
            let error = open(&altered).unwrap().verify_and_take(&pieces[3..], &|_, _, part| {
                assert!(chunk == 2 || part.len() != 1 << 20, "bytes that are altered are given");
                Ok(())
            });
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
            let error = open(&altered).unwrap().verify_and_take(&pieces[..1], &|_, _, _| Ok(()));
            assert_eq!(
                error.unwrap_err().kind(),
                ErrorKind::Damaged,
                "what nobody asks for is verified, too"
            );
        }
    }
}

#[test]
fn every_flipped_bit_of_a_compressed_image_is_noticed() {
    let data = [vec![1; 4 * 4096], noise(4 * 4096)].concat();
    let bytes = compressed(&data, Compression::Level(3));
    for at in (0..bytes.len()).step_by(61) {
        let mut altered = bytes.clone();
        altered[at] ^= 4;
        if let Ok(image) = open(&altered) {
            let error = image.verify_data(&mut |_, _| {}).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "byte {at}");
            assert!(image.read_data(4096, &mut vec![0; data.len()]).is_err(), "byte {at}");
        }
    }
    assert!(
        ImageWriter::with_options(
            Vec::new(),
            "x86_64",
            WriteOptions {
                compression: Some(Compression::Level(99)),
                incremental: false
            }
        )
        .is_err()
    );
}

/// Writes an image of one process with one mapping of four pages, saved by these extents.
fn image_of(path: &Path, data: &[u8], extents: Vec<Extent>, ancestors: Vec<Ancestor>) {
    let options = WriteOptions {
        compression: None,
        incremental: !ancestors.is_empty(),
    };
    let mut writer = ImageWriter::with_options(Vec::new(), "x86_64", options).unwrap();
    writer.append(data).unwrap();
    let mapping = Mapping {
        start: 0x10000,
        end: 0x14000,
        protection: 3,
        kind: MappingKind::Anonymous,
        offset: 0,
        flags: Vec::new(),
        extents,
        guards: Vec::new(),
        policy: None,
    };
    let manifest = Manifest {
        address_spaces: vec![AddressSpace {
            mappings: vec![mapping],
            ..AddressSpace::default()
        }],
        ancestors,
        ..Manifest::default()
    };
    std::fs::write(path, writer.finish(&manifest).unwrap().0).unwrap();
}

fn extent(start: u64, pages: u64, offset: u64) -> Extent {
    Extent {
        start,
        length: pages * 4096,
        offset,
    }
}

fn ancestor(path: &Path) -> Ancestor {
    let image = Image::open(path).unwrap();
    Ancestor {
        id: Bytes(image.id().0.to_vec()),
        root_hash: Bytes(image.root_hash().to_vec()),
        path: ByteString(path.to_str().unwrap().as_bytes().to_vec()),
        data_bytes: image.data_bytes(),
    }
}

#[test]
fn data_of_ancestors_are_found_checked_and_missed() {
    let directory = tempfile::tempdir().unwrap();
    let full = directory.path().join("1.cpr");
    let increment = directory.path().join("2.cpr");
    let (old, new) = (pages(4), noise(4096));
    image_of(&full, &old, vec![extent(0x10000, 4, 4096)], Vec::new());
    let extents = vec![
        extent(0x10000, 1, ANCESTOR_STRIDE + 4096),
        extent(0x11000, 1, 4096),
        extent(0x12000, 2, ANCESTOR_STRIDE + 3 * 4096),
    ];
    image_of(&increment, &new, extents, vec![ancestor(&full)]);
    let mut image = Image::open(&increment).unwrap();
    let mut page = vec![0; 4096];
    assert!(
        image.read_data(ANCESTOR_STRIDE + 4096, &mut page).is_err(),
        "not open yet"
    );
    assert!(image.verify_data(&mut |_, _| {}).is_err());
    image.open_ancestors().unwrap();
    image.verify_data(&mut |_, _| {}).unwrap();
    image.read_data(ANCESTOR_STRIDE + 4 * 4096, &mut page).unwrap();
    assert_eq!(page, old[3 * 4096..]);
    image.read_data(4096, &mut page).unwrap();
    assert_eq!(page, new);
    assert_eq!(image.locate(ANCESTOR_STRIDE + 8192).unwrap(), Some((1, 8192)));

    // Moved together, they find each other.
    let elsewhere = tempfile::tempdir().unwrap();
    for path in [&full, &increment] {
        std::fs::copy(path, elsewhere.path().join(path.file_name().unwrap())).unwrap();
    }
    let good = std::fs::read(&full).unwrap();
    std::fs::remove_file(&full).unwrap();
    let moved = elsewhere.path().join("2.cpr");
    Image::open(&moved).unwrap().open_ancestors().unwrap();

    let error = Image::open(&increment).unwrap().open_ancestors().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("1.cpr is missing"), "{}", error.chain());
    // Another image in its place.
    image_of(&full, &old, Vec::new(), Vec::new());
    let error = Image::open(&increment).unwrap().open_ancestors().unwrap_err();
    assert!(error.chain().contains("1.cpr is another image"), "{}", error.chain());
    // Altered page data.
    let mut bad = good;
    bad[4096] ^= 1;
    std::fs::write(&full, bad).unwrap();
    let mut image = Image::open(&increment).unwrap();
    image.open_ancestors().unwrap();
    let error = image.verify_data(&mut |_, _| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("1.cpr"), "{}", error.chain());
}

#[test]
fn extents_outside_ancestors_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let full = directory.path().join("1.cpr");
    image_of(&full, &pages(4), Vec::new(), Vec::new());
    let check = |offset: u64, ancestors: Vec<Ancestor>| {
        let manifest = Manifest {
            saved_files: vec![SavedFile {
                kind: SavedFileKind::SharedAnonymous,
                size: 4096,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime_ns: None,
                extents: vec![extent(0, 1, offset)],
                huge_pages: 0,
            }],
            ancestors,
            ..Manifest::default()
        };
        manifest.validate(4096..8192)
    };
    let known = || vec![ancestor(&full)];
    check(ANCESTOR_STRIDE + 4 * 4096, known()).unwrap();
    for offset in [
        ANCESTOR_STRIDE,
        ANCESTOR_STRIDE + 5 * 4096,
        2 * ANCESTOR_STRIDE + 4096,
        u64::MAX - 4095,
    ] {
        check(offset, known()).unwrap_err();
    }
    check(ANCESTOR_STRIDE + 4096, Vec::new()).unwrap_err();
    let mut short = known();
    short[0].id.0.pop();
    check(4096, short).unwrap_err();
}
