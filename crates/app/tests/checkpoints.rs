//! Generations are written, read, kept and removed as documented; nothing that is torn, altered or hostile is taken for
//! a checkpoint.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_app::part::{CHUNK, Part, file_name};
use cpr_app::{
    Background, ElementType, GenerationState, Kind, Options, Order, PartInfo, Progress, Store, Target, Variable, part,
};
use cpr_types::ErrorKind;

fn bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn field(step: u64, length: u64) -> Vec<u8> {
    bytes(&(0..length).map(|i| (i * 7 + step) as f64).collect::<Vec<_>>())
}

/// Writes a step and an array.
fn write(store: &mut Store, step: u64, data: &[u8]) -> cpr_app::Written {
    let shape = [data.len() as u64 / 8];
    let step = step.to_ne_bytes();
    let variables = [
        Variable {
            name: "step",
            element: ElementType::Uint64,
            shape: &[],
            order: Order::C,
            data: &step,
        },
        Variable {
            name: "field",
            element: ElementType::Float64,
            shape: &shape,
            order: Order::C,
            data,
        },
    ];
    store.write(&variables).unwrap()
}

/// Reads them again: the generation, what was skipped, and both.
fn read(store: &mut Store, length: u64) -> Option<(u64, Vec<u64>, u64, Vec<u8>)> {
    let mut step = [0u8; 8];
    let mut data = vec![0u8; length as usize * 8];
    let shape = [length];
    let mut targets = [
        Target {
            name: "step",
            element: ElementType::Uint64,
            shape: &[],
            order: Order::C,
            data: &mut step,
        },
        Target {
            name: "field",
            element: ElementType::Float64,
            shape: &shape,
            order: Order::C,
            data: &mut data,
        },
    ];
    let restored = store.restore(&mut targets).unwrap()?;
    let skipped = restored.skipped.iter().map(|(g, _)| *g).collect();
    Some((restored.generation, skipped, u64::from_ne_bytes(step), data))
}

fn options(base: &Path) -> Options {
    Options::new(base, "run")
}

fn part_of(base: &Path, generation: u64, rank: u32) -> PathBuf {
    base.join("run").join(format!("{generation:06}")).join(file_name(rank))
}

fn numbers(store: &Store) -> Vec<u64> {
    store
        .generations()
        .unwrap()
        .iter()
        .map(|info| info.generation)
        .collect()
}

// GFD93-INT-CPRwrite, GFD93-INT-CPRread
#[test]
fn the_newest_sound_generation_is_read() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    assert!(read(&mut store, 5).is_none(), "there is none yet");
    for step in 1..=3 {
        let written = write(&mut store, step, &field(step, 300_000));
        assert_eq!(
            (written.generation, written.complete, written.bytes),
            (step, true, 2_400_008)
        );
    }
    assert_eq!(read(&mut store, 300_000), Some((3, vec![], 3, field(3, 300_000))));
    // Altered in the middle of the array: an older one is taken, and the reader learns of it.
    let path = part_of(base.path(), 3, 0);
    let mut altered = fs::read(&path).unwrap();
    altered[1_200_000] ^= 1;
    fs::write(&path, altered).unwrap();
    assert_eq!(read(&mut store, 300_000), Some((2, vec![3], 2, field(2, 300_000))));
    // Torn.
    let path = part_of(base.path(), 2, 0);
    fs::write(&path, &fs::read(&path).unwrap()[..1_000_000]).unwrap();
    assert_eq!(read(&mut store, 300_000), Some((1, vec![3, 2], 1, field(1, 300_000))));
    // What is written next comes after all of them, and is what is read then.
    assert_eq!(write(&mut store, 9, &field(9, 300_000)).generation, 4);
    assert_eq!(read(&mut store, 300_000), Some((4, vec![], 9, field(9, 300_000))));
    fs::remove_file(part_of(base.path(), 1, 0)).unwrap();
    fs::remove_dir_all(base.path().join("run/000004")).unwrap();
    let mut data = vec![0u8; 2_400_000];
    let mut target = [Target {
        name: "field",
        element: ElementType::Float64,
        shape: &[300_000],
        order: Order::C,
        data: &mut data,
    }];
    let error = store.restore(&mut target).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

// GFD93-INT-CPRread
#[test]
fn variables_are_read_in_pieces_and_refused_where_they_differ() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    let data = field(1, 400_000);
    write(&mut store, 1, &data);
    let mut part = store.part(1, 0).unwrap();
    for (offset, length) in [(0, 8), (CHUNK - 16, 32), (3_199_992, 8), (1, 3_000_000)] {
        let mut piece = vec![0u8; length];
        part.read(1, offset, &mut piece).unwrap();
        assert_eq!(piece, data[offset as usize..offset as usize + length]);
    }
    assert_eq!(
        part.read(1, 3_199_999, &mut [0; 2]).unwrap_err().kind(),
        ErrorKind::Usage
    );
    assert_eq!(part.read(2, 0, &mut [0; 2]).unwrap_err().kind(), ErrorKind::Usage);
    let mut place = vec![0u8; 8];
    for (name, element, shape) in [
        ("field", ElementType::Int64, vec![400_000]),
        ("field", ElementType::Float64, vec![399_999]),
        ("nothing", ElementType::Float64, vec![400_000]),
    ] {
        let mut targets = [Target {
            name,
            element,
            shape: &shape,
            order: Order::C,
            data: &mut place,
        }];
        assert_eq!(store.restore(&mut targets).unwrap_err().kind(), ErrorKind::Incompatible);
    }
}

#[test]
fn a_generation_counts_when_every_rank_has_written() {
    let base = tempfile::tempdir().unwrap();
    let rank = |rank| Options {
        rank,
        ranks: 3,
        ..options(base.path())
    };
    let mut stores: Vec<Store> = (0..3).map(|r| Store::open(rank(r)).unwrap()).collect();
    assert_eq!(Store::open(rank(1)).unwrap_err().kind(), ErrorKind::Busy);
    for store in &mut stores {
        write(store, 1, &field(1, 100));
    }
    assert!(!write(&mut stores[2], 2, &field(2, 100)).complete);
    assert!(!write(&mut stores[0], 2, &field(2, 100)).complete);
    assert_eq!(stores[0].generation(2).unwrap().state, GenerationState::Incomplete);
    assert_eq!(
        stores[0].validate(2).unwrap().len(),
        2,
        "incomplete, and a part is missing"
    );
    drop(stores);
    // The program dies here, and starts again.
    let again = |r| Options {
        session: "second run".to_owned(),
        ..rank(r)
    };
    let mut stores: Vec<Store> = (0..3).map(|r| Store::open(again(r)).unwrap()).collect();
    assert_eq!(read(&mut stores[1], 100).unwrap().0, 1);
    // What rank 2 left behind is of another run.
    assert!(!write(&mut stores[0], 7, &field(7, 100)).complete);
    assert!(!write(&mut stores[1], 7, &field(7, 100)).complete);
    assert!(write(&mut stores[2], 7, &field(7, 100)).complete);
    for store in &mut stores {
        assert_eq!(read(store, 100).unwrap(), (2, vec![], 7, field(7, 100)));
    }
}

// SAGA-JD-CPRTimeToLive-3, SAGA-JD-CPRSequence-6, SAGA-SEM-9, GFD93-INT-CPRfree
#[test]
fn increments_hold_only_what_changed_and_keep_what_they_need() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(Options {
        sequence: Kind::sequence("FIi").unwrap(),
        keep: Some(1),
        ..options(base.path())
    })
    .unwrap();
    let mut data = field(1, 1_000_000);
    let whole = data.len() as u64 + 8;
    assert_eq!(write(&mut store, 1, &data).bytes, whole);
    data[5_000_000] ^= 0xff;
    let second = write(&mut store, 1, &data);
    assert_eq!((second.kind, second.bytes), (Kind::SinceFull, CHUNK));
    data[100] ^= 0xff;
    let third = write(&mut store, 1, &data);
    assert_eq!((third.kind, third.bytes), (Kind::SinceLast, CHUNK));
    // Of three only the last is to be kept, but it needs the others.
    assert_eq!(numbers(&store), [1, 2, 3]);
    assert_eq!(store.free(1).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(read(&mut store, 1_000_000).unwrap().3, data);
    assert_eq!(store.validate(3).unwrap(), [""; 0]);
    let elsewhere = tempfile::tempdir().unwrap();
    store.transfer(3, elsewhere.path()).unwrap();
    // A full one makes them superfluous.
    assert_eq!(write(&mut store, 2, &data).kind, Kind::Full);
    assert_eq!(numbers(&store), [4]);
    // What was brought elsewhere needs nothing.
    let mut there = Store::open(options(elsewhere.path())).unwrap();
    assert_eq!(read(&mut there, 1_000_000).unwrap(), (3, vec![], 1, data));
    store.transfer(4, elsewhere.path()).unwrap();
    assert_eq!(
        store.transfer(4, elsewhere.path()).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    store.free(4).unwrap();
    assert_eq!(numbers(&store), [0; 0]);
    let left = base.path().join("run").read_dir().unwrap().count();
    assert_eq!(left, 1, "only the lock is left");
}

/// An increment to the last full generation has all that has changed since then, also what an increment before has.
// SAGA-JD-CPRSequence-2, SAGA-JD-CPRSequence-4, SAGA-JD-CPRSequence-5
#[test]
fn increments_to_the_full_generation_need_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let sequence = Kind::sequence("FII").unwrap();
    let mut store = Store::open(Options {
        sequence,
        ..options(base.path())
    })
    .unwrap();
    let mut data = field(1, 1_000_000);
    let mut kinds = Vec::new();
    for round in 0..6 {
        data[round * 1_100_000] ^= 0xff;
        let written = write(&mut store, 1, &data);
        kinds.push((
            written.kind,
            written.bytes / CHUNK,
            store.generation(written.generation).unwrap().needs,
        ));
    }
    let needs = |full: u64| std::collections::BTreeSet::from([full]);
    let none = std::collections::BTreeSet::new();
    let circle = |full| {
        [
            (Kind::Full, 7, none.clone()),
            (Kind::SinceFull, 1, needs(full)),
            (Kind::SinceFull, 2, needs(full)),
        ]
    };
    assert_eq!(kinds, [circle(1), circle(4)].concat());
    let mut full = Store::open(Options::new(base.path(), "full")).unwrap();
    for _ in 0..3 {
        assert_eq!(write(&mut full, 1, &data).kind, Kind::Full);
    }
}

/// There is nothing that the first one could be an increment to; and what is listed can be had at any time.
// SAGA-JD-CPRSequence-3, SAGA-JD-CPRHistoryLength-3
#[test]
fn the_first_generation_is_full_and_none_is_kept_without_what_it_needs() {
    let base = tempfile::tempdir().unwrap();
    for sequence in ["i", "I"] {
        let mut store = Store::open(Options {
            sequence: Kind::sequence(sequence).unwrap(),
            ..Options::new(base.path(), format!("only-{sequence}"))
        })
        .unwrap();
        let since = Kind::sequence(sequence).unwrap()[0];
        let kinds = [1, 2, 3, 4].map(|step| write(&mut store, step, &field(step, 1000)).kind);
        assert_eq!(kinds, [Kind::Full, since, since, since]);
    }
    let mut store = Store::open(Options {
        sequence: Kind::sequence("Fiii").unwrap(),
        keep: Some(2),
        ..options(base.path())
    })
    .unwrap();
    let mut most = 0;
    // As they were at each step.
    let mut all = vec![field(0, 400_000)];
    for step in 1..=10 {
        let mut data = all[step - 1].clone();
        data[step % 3 * CHUNK as usize + 5] ^= 0xff;
        let kind = write(&mut store, 1, &data).kind;
        assert_eq!(kind == Kind::Full, step % 4 == 1, "{step}");
        all.push(data);
        let listed = numbers(&store);
        most = most.max(listed.len());
        for generation in listed {
            let known = &all[generation as usize];
            let mut restored = vec![0; known.len()];
            store.read(generation, 0, "field", 0, &mut restored).unwrap();
            assert!(restored == *known, "{generation} after {step}");
        }
    }
    assert_eq!(most, 5, "no more than two and what they need");
}

// SAGA-JD-CPRTimeToLive-2, SAGA-CP-attr-ttl, GFD93-INT-CPRupdate, GFD93-INT-CPRquery
#[test]
fn generations_are_described_updated_and_expire() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(Options {
        lifetime: Some(Duration::ZERO),
        ..options(base.path())
    })
    .unwrap();
    store.set_attribute("code", "heat 1.2");
    write(&mut store, 1, &field(1, 10));
    store
        .update(1, &[("step", "400")], Some(Duration::from_secs(3600)))
        .unwrap();
    write(&mut store, 2, &field(2, 10));
    write(&mut store, 3, &field(3, 10));
    // The first was given an hour; of the others only the newest stays.
    assert_eq!(numbers(&store), [1, 3]);
    let first = store.generation(1).unwrap();
    let expected = BTreeMap::from([("code", "heat 1.2"), ("step", "400")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert_eq!(
        (first.attributes, first.lifetime_s, first.parts),
        (expected, Some(3600), (1, 1))
    );
    assert_eq!(store.update(9, &[], None).unwrap_err().kind(), ErrorKind::NotFound);
}

// GFD93-INT-SMvalidate
#[test]
fn good_altered_and_missing_data_are_told_apart() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    for step in 1..=3 {
        write(&mut store, step, &field(step, 1000));
    }
    let path = part_of(base.path(), 2, 0);
    let mut altered = fs::read(&path).unwrap();
    altered[9000] ^= 1;
    fs::write(&path, altered).unwrap();
    fs::remove_file(part_of(base.path(), 3, 0)).unwrap();
    assert_eq!(store.validate(1).unwrap(), [""; 0]);
    assert!(store.validate(2).unwrap()[0].contains("altered"));
    assert!(store.validate(3).unwrap()[0].contains("part-00000"));
    assert_eq!(store.generation(3).unwrap().state, GenerationState::Damaged);
    assert_eq!(store.validate(4).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_a_background_writer_copied_does_not_change_any_more() {
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(options(base.path())).unwrap();
    let mut data = field(1, 500_000);
    let shape = [500_000];
    let variables = [Variable {
        name: "field",
        element: ElementType::Float64,
        shape: &shape,
        order: Order::C,
        data: &data,
    }];
    let writing = Background::start(store, &variables).unwrap();
    let before = data.clone();
    data.fill(0);
    let (mut store, written) = writing.wait().unwrap();
    assert!(written.unwrap().complete);
    assert_eq!(store.progress().get(), (4_000_000, 4_000_000));
    let mut found = vec![0u8; data.len()];
    store.part(1, 0).unwrap().read(0, 0, &mut found).unwrap();
    assert_eq!(found, before);
    // The memory of the copy is used again, and as much of it as there is now.
    for (step, length) in [(2, 500_000), (3, 700_000), (4, 300_000)] {
        let data = field(step, length);
        let shape = [length];
        let variables = [Variable {
            name: "field",
            element: ElementType::Float64,
            shape: &shape,
            order: Order::C,
            data: &data,
        }];
        let (again, written) = Background::start(store, &variables).unwrap().wait().unwrap();
        let mut found = vec![0u8; data.len()];
        again
            .read(written.unwrap().generation, 0, "field", 0, &mut found)
            .unwrap();
        assert_eq!(found, data);
        store = again;
    }
}

#[test]
fn another_byte_order_is_turned_round() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join(file_name(0));
    let foreign: Vec<u8> = [1.5f32, -2.25, 3.0, 0.5]
        .iter()
        .flat_map(|n| {
            let mut bytes = n.to_ne_bytes();
            bytes.reverse();
            bytes
        })
        .collect();
    let info = PartInfo {
        name: "run".to_owned(),
        generation: 1,
        rank: 0,
        ranks: 1,
        session: String::new(),
        created_ns: 0,
        host: String::new(),
        little_endian: !cfg!(target_endian = "little"),
        attributes: BTreeMap::new(),
        variables: Vec::new(),
        files: Vec::new(),
    };
    let variables = [
        Variable {
            name: "z",
            element: ElementType::Complex64,
            shape: &[2],
            order: Order::C,
            data: &foreign,
        },
        Variable {
            name: "raw",
            element: ElementType::Bytes,
            shape: &[16],
            order: Order::C,
            data: &foreign,
        },
    ];
    part::write(&path, info, &variables, None, &Progress::default()).unwrap();
    let mut part = Part::open(&path).unwrap();
    let mut found = vec![0u8; 16];
    part.read(0, 0, &mut found).unwrap();
    let expected: Vec<u8> = [1.5f32, -2.25, 3.0, 0.5].iter().flat_map(|n| n.to_ne_bytes()).collect();
    assert_eq!(found, expected);
    part.read(1, 0, &mut found).unwrap();
    assert_eq!(found, foreign, "bytes stay as they are");
}

/// No file, however it came to be, makes the reader panic or believe it.
#[test]
fn torn_and_altered_parts_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    write(&mut store, 1, &field(1, 20));
    let path = part_of(base.path(), 1, 0);
    let sound = fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Part::open(&path).and_then(|mut part| part.verify())
    };
    read(&sound).unwrap();
    let step = sound.len() / 400 + 1;
    for length in (0..sound.len()).step_by(step) {
        assert_eq!(
            read(&sound[..length]).unwrap_err().kind(),
            ErrorKind::Damaged,
            "{length} bytes"
        );
    }
    let mut unnoticed = Vec::new();
    for at in 0..sound.len() {
        let mut altered = sound.clone();
        altered[at] ^= 0x10;
        if at % 5 == 0 && read(&altered).is_ok() {
            unnoticed.push(at);
        }
    }
    // Only what fills the gaps between header, variables and metadata is of no account.
    assert!(
        unnoticed.iter().all(|at| (12..4096).contains(at) || sound[*at] == 0),
        "{unnoticed:?}"
    );
}

#[test]
fn names_numbers_and_shapes_that_make_no_sense_are_refused() {
    let base = tempfile::tempdir().unwrap();
    for name in ["", ".hidden", "a/b", "..", "a\nb"] {
        let error = Store::open(Options::new(base.path(), name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
    }
    let wrong = Options {
        rank: 2,
        ranks: 2,
        ..options(base.path())
    };
    assert_eq!(Store::open(wrong).unwrap_err().kind(), ErrorKind::Usage);
    assert!(Kind::sequence("xF").is_err() && Kind::sequence("Fx").is_err() && Kind::sequence("").is_err());
    let mut store = Store::open(options(base.path())).unwrap();
    let variable = |name, shape| Variable {
        name,
        element: ElementType::Int32,
        shape,
        order: Order::C,
        data: &[0; 8],
    };
    for variables in [
        vec![variable("a", &[3])],
        vec![variable("a", &[u64::MAX, 2])],
        vec![variable("", &[2])],
        vec![variable("a", &[2]), variable("a", &[2])],
    ] {
        assert_eq!(store.write(&variables).unwrap_err().kind(), ErrorKind::Usage);
    }
    assert_eq!(
        numbers(&store).len(),
        1,
        "an empty directory of the generation that failed"
    );
    assert!(write(&mut store, 1, &field(1, 10)).complete);
    let mut looking = Store::look(options(base.path())).unwrap();
    let error = looking.write(&[variable("a", &[2])]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
}

/// Files that a program writes itself count, are kept, moved and lost together with its variables.
// GFD93-INT-CPRwrite
#[test]
fn files_belong_to_their_generation() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    for step in 1..=2 {
        let path = store.route("state.h5").unwrap();
        fs::write(path, format!("step {step}")).unwrap();
        write(&mut store, step, &field(step, 100));
    }
    let text = |store: &Store, generation| fs::read_to_string(store.file(generation, "state.h5").unwrap()).unwrap();
    assert_eq!(
        (text(&store, 1), text(&store, 2)),
        ("step 1".to_owned(), "step 2".to_owned())
    );
    assert_eq!(store.file(2, "other").unwrap_err().kind(), ErrorKind::NotFound);
    // The next one has none, and the file is counted.
    assert_eq!(write(&mut store, 3, &field(3, 100)).generation, 3);
    assert_eq!(store.file(3, "state.h5").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.generation(2).unwrap().bytes > store.generation(3).unwrap().bytes + 6);
    fs::remove_dir_all(base.path().join("run/000003")).unwrap();
    // It goes with a transfer, and one that is altered makes the generation unsound.
    let elsewhere = tempfile::tempdir().unwrap();
    store.transfer(2, elsewhere.path()).unwrap();
    let there = Store::look(options(elsewhere.path())).unwrap();
    assert_eq!(text(&there, 2), "step 2");
    assert!(there.validate(2).unwrap().is_empty());
    fs::write(base.path().join("run/000002/files-00000/state.h5"), "step 3").unwrap();
    assert_eq!(store.file(2, "state.h5").unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(store.validate(2).unwrap().len(), 1);
    assert_eq!(read(&mut store, 100), Some((1, vec![2], 1, field(1, 100))));
    // What was routed has to be written.
    store.route("missing").unwrap();
    let error = store.write(&[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for name in ["", "..", ".x", "a/b", "/etc/passwd", "a\nb"] {
        assert_eq!(store.route(name).unwrap_err().kind(), ErrorKind::Usage, "{name:?}");
    }
    // What a writer that died has left behind is not there for the next.
    drop(store);
    let mut store = Store::open(options(base.path())).unwrap();
    fs::write(store.route("half").unwrap(), "half").unwrap();
    drop(store);
    let mut store = Store::open(options(base.path())).unwrap();
    let generation = write(&mut store, 4, &field(4, 100)).generation;
    assert!(!base.path().join(format!("run/{generation:06}/files-00000")).exists());
    store.forget().unwrap();
    assert_eq!(numbers(&store), [0u64; 0]);
}

/// A link in the place of a file leads nowhere.
#[test]
fn links_are_not_followed_for_files() {
    let base = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(base.path())).unwrap();
    let secret = base.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let path = store.route("notes").unwrap();
    std::os::unix::fs::symlink(&secret, &path).unwrap();
    assert!(store.write(&[]).is_err());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "secret").unwrap();
    store.write(&[]).unwrap();
    store.file(1, "notes").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&secret, &path).unwrap();
    assert_eq!(store.file(1, "notes").unwrap_err().kind(), ErrorKind::Damaged);
}
