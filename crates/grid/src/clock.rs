//! Time: the calendar for records, and a clock that never jumps for leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clocks of the service; tests have one that they set.
#[derive(Debug, Clone)]
pub enum Clock {
    /// Those of the machine.
    System(Instant),
    /// Milliseconds, for both.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The clocks of the machine.
    pub fn system() -> Clock {
        Clock::System(Instant::now())
    }

    /// Milliseconds since the epoch; may jump.
    pub fn wall_ms(&self) -> i64 {
        match self {
            Clock::System(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as i64),
            Clock::Manual(now) => now.load(Ordering::SeqCst) as i64,
        }
    }

    /// Milliseconds since some moment; never jumps.
    pub fn steady_ms(&self) -> u64 {
        match self {
            Clock::System(start) => start.elapsed().as_millis() as u64,
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        }
    }
}
