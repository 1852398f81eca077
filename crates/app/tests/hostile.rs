//! Parts whose hashes are right and whose metadata are not: refused or read, without panic, and without more memory
//! than they are long. The same numbers on every run; `fuzz` has targets that do it for hours.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{bare, metadata, with_metadata};
use cpr_app::part::{Part, file_name};
use cpr_app::{ElementType, Options, Order, Store, Target, Variable};

/// Numbers that are the same on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

fn options(base: &Path) -> Options {
    Options::from_environment(base, "hostile").unwrap()
}

/// A store with one generation, and the path of its only part.
fn sound(base: &Path) -> std::path::PathBuf {
    let mut store = Store::open(options(base)).unwrap();
    store.set_attribute("step", "7");
    let data = [7u8; 64];
    let variables = [("one", ElementType::Float64, 8), ("two", ElementType::Bytes, 64)];
    let shapes: Vec<[u64; 1]> = variables.iter().map(|variable| [variable.2]).collect();
    let variables: Vec<Variable<'_>> = variables
        .iter()
        .zip(&shapes)
        .map(|((name, element, _), shape)| Variable {
            name,
            element: *element,
            shape,
            order: Order::C,
            data: &data,
        })
        .collect();
    store.write(&variables).unwrap();
    let directory = base.join("hostile");
    let generations = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let parts = generations.map(|generation| generation.join(file_name(0)));
    parts.into_iter().find(|part| part.exists()).unwrap()
}

/// Everything that reads a part.
fn read_all(base: &Path, path: &Path) -> bool {
    let opened = Part::open(path).is_ok_and(|mut part| {
        let variables = part.info().variables.len();
        for variable in 0..variables.min(8) {
            let _ = part.read(variable, 0, &mut [0; 16]);
            let _ = part.read(variable, u64::MAX - 7, &mut [0; 16]);
        }
        part.verify().is_ok()
    });
    let mut store = Store::open(options(base)).unwrap();
    let mut data = [0u8; 64];
    let mut targets = [Target {
        name: "one",
        element: ElementType::Float64,
        shape: &[8],
        order: Order::C,
        data: &mut data,
    }];
    let _ = store.restore(&mut targets);
    let _ = store.generations();
    let _ = store.validate(1);
    opened
}

#[test]
fn altered_metadata_are_refused_or_read() {
    let base = tempfile::tempdir().unwrap();
    let path = sound(base.path());
    let part = fs::read(&path).unwrap();
    assert!(read_all(base.path(), &path), "the sound one");
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut read = 0;
    for _ in 0..2000 {
        let mut altered = metadata(&part).to_vec();
        for _ in 0..=numbers.next(3) {
            let at = numbers.next(altered.len());
            match numbers.next(4) {
                0 => altered[at] = numbers.next(256) as u8,
                1 => altered[at] ^= 1 << numbers.next(8),
                // The longest numbers and lengths of CBOR.
                2 => altered[at] = [0x1b, 0x3b, 0x5b, 0x7b, 0x9b, 0xbb, 0xff][numbers.next(7)],
                _ => altered.truncate(at.max(1)),
            }
        }
        fs::write(&path, with_metadata(&part, &altered)).unwrap();
        read += usize::from(read_all(base.path(), &path));
    }
    // Some changes are in names and attributes, and do no harm; that all were refused would mean that the seal is
    // broken.
    assert!((10..1000).contains(&read), "{read}");
}

#[test]
fn rubbish_as_metadata_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let path = sound(base.path());
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for length in 0..500 {
        let rubbish: Vec<u8> = (0..length).map(|_| numbers.next(256) as u8).collect();
        fs::write(&path, bare(&rubbish)).unwrap();
        assert!(!read_all(base.path(), &path), "{length} bytes");
    }
}
