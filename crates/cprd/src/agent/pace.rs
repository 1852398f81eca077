//! Keeps transfers from taking more of the network than they are granted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A rate that all transfers of a node share.
pub struct Pace {
    /// Bytes a second; 0: as fast as it goes.
    rate: AtomicU64,
    /// When the next bytes may pass.
    next: Mutex<Instant>,
}

impl Pace {
    pub fn new(mb_per_s: Option<u64>) -> Pace {
        let pace = Pace {
            rate: AtomicU64::new(0),
            next: Mutex::new(Instant::now()),
        };
        pace.set(mb_per_s);
        pace
    }

    /// Grants another rate from now on.
    pub fn set(&self, mb_per_s: Option<u64>) {
        let rate = mb_per_s.map_or(0, |rate| rate.max(1).saturating_mul(1 << 20));
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Waits until so many bytes have had their time.
    pub fn pass(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *next
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_transfers_together_are_not_faster_than_the_rate() {
        let pace = Pace::new(Some(10));
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..4).for_each(|_| pace.pass(256 << 10)));
            }
        });
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(199), "2 MiB took {took:?}");
        Pace::new(None).pass(usize::MAX);
    }
}
