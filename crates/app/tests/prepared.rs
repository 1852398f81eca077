//! Memory for background writes is got beforehand where a program wants that. A test alone in its process, since it
//! counts the page faults of the whole process.
#![allow(clippy::unwrap_used)]

use cpr_app::{Background, ElementType, Options, Order, Store, Variable};

const LENGTH: usize = 64 << 20;

/// Page faults of the process so far that needed no disk.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Page faults of one copy.
fn begin(store: Store, variables: &[Variable<'_>]) -> u64 {
    let before = faults();
    let background = Background::start(store, variables).unwrap();
    let taken = faults() - before;
    background.wait().unwrap().1.unwrap();
    taken
}

#[test]
fn a_prepared_store_copies_into_memory_that_is_there() {
    let base = tempfile::tempdir().unwrap();
    let data = vec![3u8; LENGTH];
    let shape = [LENGTH as u64];
    let variables = [Variable {
        name: "field",
        element: ElementType::Bytes,
        shape: &shape,
        order: Order::C,
        data: &data,
    }];
    let open = |name: &str| Store::open(Options::new(base.path(), name)).unwrap();
    // Where the kernel gives huge pages by itself there are few faults either way.
    let fresh = begin(open("fresh"), &variables);
    let mut store = open("prepared");
    Background::prepare(&mut store, &variables);
    let prepared = begin(store, &variables);
    assert!(prepared <= fresh.max(64 * 8) / 8, "{prepared} and {fresh} page faults");
}
