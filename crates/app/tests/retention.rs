//! What goes and what stays, over many histories that nobody has thought of.
#![allow(clippy::unwrap_used)]

use cpr_app::{ElementType, GenerationState, Kind, Options, Order, Store, Target, Variable};

/// Numbers that are the same on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

// XGCP-FILE-7
#[test]
fn no_increment_that_stays_loses_what_it_needs() {
    // In memory, where it is: nothing has to outlive this test.
    let place = match tempfile::tempdir_in("/dev/shm") {
        Ok(place) => place,
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut increments = 0;
    for history in 0..1000 {
        let name = format!("h{history}");
        let mut options = Options::new(place.path(), &name);
        options.keep = Some(1 + numbers.next(3) as u32);
        options.sequence = Kind::sequence(["FI", "Fi", "FIiI", "FiiI"][numbers.next(4) as usize]).unwrap();
        let mut store = Store::open(options).unwrap();
        let mut state = 0u64;
        for _ in 0..2 + numbers.next(5) {
            if numbers.next(4) == 0 {
                let all = store.generations().unwrap();
                if let Some(some) = all.get(numbers.next(all.len() as u64 + 1) as usize) {
                    // One that another needs, or the newest complete one, may be refused.
                    let _ = store.free(some.generation);
                }
                continue;
            }
            // Every second time nothing has changed.
            state += numbers.next(2);
            let data = state.to_ne_bytes();
            let variable = Variable {
                name: "state",
                element: ElementType::Uint64,
                shape: &[],
                order: Order::C,
                data: &data,
            };
            let written = store.write(&[variable]).unwrap();
            assert!(written.complete);
            let all = store.generations().unwrap();
            let there: Vec<u64> = all.iter().map(|info| info.generation).collect();
            for info in &all {
                assert_eq!(info.state, GenerationState::Complete);
                increments += usize::from(!info.needs.is_empty());
                assert!(
                    info.needs.iter().all(|needed| there.contains(needed)),
                    "{history}: {all:?}"
                );
                assert_eq!(
                    store.validate(info.generation).unwrap(),
                    Vec::<String>::new(),
                    "{history}"
                );
            }
            let mut found = [0; 8];
            let target = Target {
                name: "state",
                element: ElementType::Uint64,
                shape: &[],
                order: Order::C,
                data: &mut found,
            };
            store.restore_from(written.generation, &mut [target]).unwrap();
            assert_eq!(u64::from_ne_bytes(found), state);
        }
        store.forget().unwrap();
    }
    assert!(increments > 500, "{increments}");
}
