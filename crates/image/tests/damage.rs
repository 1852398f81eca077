//! Every altered or cut image is refused, and the message says what is wrong where.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;

use common::*;
use cpr_image::Image;
use cpr_types::ErrorKind;

/// LBNL-3.6.4.5.2: an empty file, a truncated image, one with a flipped byte and a random file give four distinct
/// errors.
#[test]
fn lbnl_3_6_4_5_2_invalid_images_are_refused_with_the_reason() {
    let sound = image();
    let mut flipped = sound.clone();
    flipped[5000] ^= 0x10;
    let random: Vec<u8> = (0..20_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let cases: [(&[u8], &str); 4] = [
        (&[], "is empty"),
        (&sound[..sound.len() / 2], "is truncated"),
        (&flipped, "page data (16384 bytes at offset 4096) are altered"),
        (&random, "is not an image"),
    ];
    let mut messages = HashSet::new();
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.message().contains(expected) && error.message().contains("a.cpr"),
            "{error}"
        );
        messages.insert(error.message().to_string());
    }
    assert_eq!(messages.len(), 4);
}

#[test]
fn cut_at_any_length() {
    let sound = image();
    let trailer = sound.len() - TRAILER;
    let borders = [
        0,
        7,
        8,
        11,
        12,
        64,
        HEADER,
        HEADER + TRAILER,
        HEADER + 4 * 4096,
        trailer,
        sound.len(),
    ];
    let near = borders
        .iter()
        .flat_map(|border| border.saturating_sub(2)..(border + 2).min(sound.len()));
    for length in near.chain((0..sound.len()).step_by(97)) {
        let error = refusal(&sound[..length]);
        assert_eq!(error.kind(), ErrorKind::Damaged, "cut to {length}");
        let expected = if length == 0 { "is empty" } else { "is truncated" };
        assert!(error.message().contains(expected), "cut to {length}: {error}");
        let streamed = Image::from_stream(&mut &sound[..length], "-").unwrap_err();
        assert!(streamed.message().contains(expected), "cut to {length}: {streamed}");
    }
}

#[test]
fn something_appended() {
    for length in [1, 208, 4096] {
        let mut bytes = image();
        bytes.resize(bytes.len() + length, 0);
        assert_eq!(refusal(&bytes).kind(), ErrorKind::Damaged);
    }
    // Even another image.
    let mut bytes = image();
    bytes.extend_from_slice(&image());
    assert_eq!(refusal(&bytes).kind(), ErrorKind::Damaged);
}

/// A flipped bit anywhere: the part is named.
#[test]
fn one_flipped_bit_anywhere() {
    let sound = image();
    let trailer = sound.len() - TRAILER;
    let metadata = get(&sound, trailer + 48) as usize;
    let table = get(&sound, trailer + 32) as usize;
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = sound.clone();
    // Every byte of all but the page data, and those at a stride.
    for at in (0..HEADER).chain((HEADER..table).step_by(61)).chain(table..sound.len()) {
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(path.path(), &bytes).unwrap();
        let image = Image::open(path.path());
        let error = match image {
            Ok(image) => image.verify_data(&mut |_, _| {}).expect_err("flipped bit not noticed"),
            Err(error) => error,
        };
        bytes[at] = sound[at];
        let expected = match at {
            0..8 => "not an image",
            _ if at < HEADER => "its header",
            _ if at < table => "its page data",
            _ if at < metadata => "its table of hashes",
            _ if at < trailer => "its metadata",
            _ if at < trailer + 8 => "end mark",
            _ => "its trailer",
        };
        assert_eq!(error.kind(), ErrorKind::Damaged, "byte {at}");
        assert!(error.message().contains(expected), "byte {at}: {error}");
    }
}

/// Of several altered pieces the first is named, whichever thread finds it.
#[test]
fn the_first_altered_piece_is_named() {
    let mut bytes = write(&manifest(), &pages(2000)).unwrap().0;
    for chunk in [7, 2, 5] {
        bytes[4096 + chunk * (1 << 20) + 77] ^= 1;
    }
    let image = open(&bytes).unwrap();
    let error = image.verify_data(&mut |_, _| {}).unwrap_err();
    let offset = 4096 + 2 * (1 << 20);
    assert!(
        error
            .message()
            .contains(&format!("(1048576 bytes at offset {offset}) are altered")),
        "{error}"
    );
}

#[test]
fn other_versions_and_features() {
    let check = |change: &dyn Fn(&mut [u8]), kind: ErrorKind, expected: &str| {
        let mut bytes = image();
        change(&mut bytes);
        seal(&mut bytes);
        let error = refusal(&bytes);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(expected), "{error}");
    };
    check(&|b| b[12] = 2, ErrorKind::Incompatible, "format version 2.0");
    check(&|b| b[12] = 0, ErrorKind::Incompatible, "format version 0.0");
    check(&|b| b[17] = 0x40, ErrorKind::Incompatible, "pages of 16384 bytes");
    check(
        &|b| {
            b[64] = 2;
            b[66..79].copy_from_slice(b"\x05crypt\x06zstd-9");
        },
        ErrorKind::Incompatible,
        "`crypt`, `zstd-9`",
    );
    // Lists that do not fit, names that are not text.
    check(
        &|b| b[64..66].copy_from_slice(&[0xff, 0xff]),
        ErrorKind::Damaged,
        "feature",
    );
    check(
        &|b| b[64..68].copy_from_slice(&[1, 0, 1, 0xff]),
        ErrorKind::Damaged,
        "feature",
    );
    check(
        &|b| b[48..64].copy_from_slice(&[0xff; 16]),
        ErrorKind::Damaged,
        "architecture",
    );
    check(&|b| b[60] = b'x', ErrorKind::Damaged, "architecture");
    check(
        &|b| b[48..54].copy_from_slice(b"x86_65"),
        ErrorKind::Damaged,
        "its metadata \"x86_64\"",
    );
    // Flags and a later minor version do no harm.
    let mut bytes = image();
    bytes[14] = 7;
    bytes[20] = 0xff;
    seal(&mut bytes);
    assert_eq!(open(&bytes).unwrap().header().flags, 0xff);
}

/// A version that is not known may have a longer header; it is still told by its version.
#[test]
fn a_longer_header_of_a_later_version() {
    let mut bytes = vec![0; 8192];
    bytes[..8].copy_from_slice(b"\x89CPR\r\n\x1a\n");
    bytes[8..12].copy_from_slice(&8192_u32.to_le_bytes());
    bytes[12] = 3;
    let hash = blake3::hash(&bytes[..8192 - 32]);
    bytes[8192 - 32..].copy_from_slice(hash.as_bytes());
    let error = refusal(&bytes);
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.message().contains("format version 3.0"), "{error}");
    for length in [0, 1, 4095, 4097, 1 << 20, u32::MAX] {
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        assert_eq!(refusal(&bytes).kind(), ErrorKind::Damaged, "{length}");
    }
}

/// Absurd numbers in a trailer whose hash is right neither crash nor allocate.
#[test]
fn absurd_positions_and_lengths() {
    let sound = image();
    let trailer = sound.len() - TRAILER;
    for field in (16..80).step_by(8) {
        let old = get(&sound, trailer + field);
        let values = [
            0,
            1,
            31,
            4096,
            old ^ 1,
            old + 32,
            old.wrapping_sub(32),
            1 << 32,
            1 << 40,
            1 << 63,
        ];
        for value in values
            .into_iter()
            .chain([u64::MAX, u64::MAX - 4095, i64::MAX as u64, old + 4096])
        {
            let mut bytes = sound.clone();
            put(&mut bytes, trailer + field, value);
            seal(&mut bytes);
            if value == old {
                continue;
            }
            let error = refusal(&bytes);
            assert_eq!(error.kind(), ErrorKind::Damaged, "field {field} = {value}");
            assert!(
                error.message().contains("its trailer"),
                "field {field} = {value}: {error}"
            );
        }
    }
}

/// Offset and length fields that fit together, in a file that has a hole of that size.
#[test]
fn a_large_hole_does_not_pass_for_data() {
    let sound = image();
    let data: u64 = 1 << 36;
    let table = data / (1 << 20) * 32;
    let mut bytes = sound[sound.len() - TRAILER..].to_vec();
    let total = 4096 + data + table + 1 + 208;
    for (field, value) in [
        (24, data),
        (32, 4096 + data),
        (40, table),
        (48, 4096 + data + table),
        (56, 1),
        (64, total),
    ] {
        put(&mut bytes, field, value);
    }
    let hash = blake3::hash(&bytes[..176]);
    bytes[176..].copy_from_slice(hash.as_bytes());
    let file = file(&sound[..4096]);
    file.set_len(total).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, total - 208).unwrap();
    let error = Image::from_file(file, "hole").unwrap_err();
    assert!(error.message().contains("table of hashes"), "{error}");
}

/// Header and trailer that are each right but not of one image.
#[test]
fn parts_of_two_images() {
    let mut mixed = image();
    mixed[..HEADER].copy_from_slice(&image()[..HEADER]);
    let error = refusal(&mixed);
    assert!(error.message().contains("different images"), "{error}");
}

#[test]
fn reading_outside_the_page_data() {
    let bytes = image();
    let image = open(&bytes).unwrap();
    let mut page = [0; 4096];
    image.read_data(4096, &mut page).unwrap();
    image.read_data(4 * 4096, &mut page).unwrap();
    for offset in [0, 4095, 4 * 4096 + 1, 5 * 4096, u64::MAX, u64::MAX - 4095, 1 << 63] {
        assert_eq!(
            image.read_data(offset, &mut page).unwrap_err().kind(),
            ErrorKind::Damaged,
            "{offset}"
        );
    }
    image.file().set_len(8192).unwrap();
    let error = image.read_data(4 * 4096, &mut page).unwrap_err();
    assert!(error.message().contains("shorter"), "{error}");
    assert_eq!(
        image.verify_data(&mut |_, _| {}).unwrap_err().kind(),
        ErrorKind::Damaged
    );
}
