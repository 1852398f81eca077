//! Editing changes what it is told to, and nothing else.

#![allow(clippy::unwrap_used)]

use cpr_image::edit::Edit;
use cpr_image::model::*;
use cpr_image::{Image, ImageWriter, PendingImage};

const PAGE: u64 = 4096;
const START: u64 = 0x10000;

/// A process with four pages; the first two have the same contents, which are in the image once.
fn manifest() -> Manifest {
    let extent = |page: u64, count: u64, place: u64| Extent {
        start: START + page * PAGE,
        length: count * PAGE,
        offset: place * PAGE,
    };
    Manifest {
        checkpoint: Checkpoint {
            architecture: "x86_64".to_owned(),
            root_pid: 5,
            ..Checkpoint::default()
        },
        processes: vec![Process {
            pid: 5,
            ppid: 1,
            address_space: Some(AddressSpaceId(0)),
            threads: vec![Thread {
                tid: 5,
                ..Thread::default()
            }],
            cwd: "/".into(),
            root: "/".into(),
            ..Process::default()
        }],
        address_spaces: vec![AddressSpace {
            mappings: vec![Mapping {
                start: START,
                end: START + 5 * PAGE,
                protection: 3,
                kind: MappingKind::Anonymous,
                offset: 0,
                flags: Vec::new(),
                extents: vec![extent(0, 1, 1), extent(1, 1, 1), extent(2, 2, 2)],
                guards: Vec::new(),
                policy: None,
            }],
            ..AddressSpace::default()
        }],
        ..Manifest::default()
    }
}

#[test]
fn a_page_that_is_in_the_image_once_for_two_addresses_is_changed_at_one() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["old.cpr", "new.cpr"].map(|name| directory.path().join(name));
    let pending = PendingImage::create(&old).unwrap();
    let mut writer = ImageWriter::new(&pending, "x86_64").unwrap();
    writer.append(&[7; 4096]).unwrap();
    writer.append(&[8; 8192]).unwrap();
    writer.finish(&manifest()).unwrap();
    pending.publish(None).unwrap();

    let mut edit = Edit::new(Image::open(&old).unwrap()).unwrap();
    edit.write_memory(5, START + PAGE + 10, b"one").unwrap();
    edit.write_memory(5, START + PAGE + 20, b"two").unwrap();
    edit.write_memory(5, START + 2 * PAGE, b"three").unwrap();
    edit.write_memory(5, START + 4 * PAGE, b"four").unwrap();
    edit.save(&new).unwrap();

    let image = Image::open(&new).unwrap();
    image.verify_data(&mut |_, _| {}).unwrap();
    let changed = Edit::new(image).unwrap();
    let mut expected = vec![7; 2 * 4096];
    expected.extend([8; 2 * 4096]);
    expected.extend([0; 4096]);
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(4096 + 10, b"one");
    put(4096 + 20, b"two");
    put(2 * 4096, b"three");
    put(4 * 4096, b"four");
    let mut memory = vec![0; 5 * 4096];
    changed.read_memory(5, START, &mut memory).unwrap();
    assert!(memory == expected);
}
