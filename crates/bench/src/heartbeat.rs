//! The page that a victim and the bench share: the victim's heartbeat, and what the bench asks of it.
//!
//! The victim beats every [`INTERVAL`] and keeps the largest time between two of its beats. Both sides read the same
//! monotonic clock. The page is a file, so that a restarted victim maps the same page again; it needs no system call,
//! so that watching does not disturb. `victims/heartbeat.py` and `victims/Victim.java` know the same words.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use cpr_kernel::process::clock_ns;
use cpr_kernel::shared_words::SharedWords;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::time::ClockId;

use crate::command::Alive;
use crate::interrupt;

/// How long a victim sleeps between two beats.
pub const INTERVAL: Duration = Duration::from_micros(100);
/// How often the bench looks.
const LOOK: Duration = Duration::from_micros(50);
/// How often the bench asks whether the victim is still there.
const CHECK_ALIVE: Duration = Duration::from_millis(50);

/// Places in the page.
#[derive(Debug, Clone, Copy)]
pub enum Word {
    /// Processes of the victim that hold their memory.
    Ready = 0,
    /// Beats since the start.
    Beats = 1,
    /// Monotonic time of the last beat, nanoseconds.
    Last = 2,
    /// Largest time between two beats since the watch began, nanoseconds.
    Gap = 3,
    /// Number of the watch the bench wants …
    Watch = 4,
    /// … and of the one the victim keeps.
    Watching = 5,
    /// An [`Order`] in the low byte, its number above: a new number is a new order.
    Order = 6,
    /// Processes that have carried out an order, in all.
    Done = 7,
    /// Pages found altered.
    Wrong = 8,
    /// Bytes written by the writer.
    Written = 9,
}

/// What the bench can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Order {
    /// Exit.
    End = 1,
    /// Compare all memory with what it has to be.
    Verify = 2,
    /// Write the share of the memory anew that the victim was started with (`--rewrite-percent`).
    Rewrite = 3,
}

/// Both sides' view of the page.
#[derive(Debug)]
pub struct Heartbeat {
    shared: SharedWords,
}

impl Heartbeat {
    /// Maps the page; `create` makes the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path, create: bool) -> Result<Heartbeat> {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .open(path)
            .context(|| format!("open {}", path.display()))?;
        let shared = SharedWords::map(&file).context(|| format!("map {}", path.display()))?;
        Ok(Heartbeat { shared })
    }

    /// A word as it is now.
    pub fn get(&self, word: Word) -> u64 {
        self.shared.words()[word as usize].load(Acquire)
    }

    /// Sets a word.
    pub fn set(&self, word: Word, value: u64) {
        self.shared.words()[word as usize].store(value, Release);
    }

    /// Adds to a word.
    pub fn add(&self, word: Word, value: u64) {
        self.shared.words()[word as usize].fetch_add(value, Release);
    }

    /// The victim's next beat. `last` is its own memory of the last one, as saved with it.
    pub fn beat(&self, last: &mut u64) {
        let now = clock_ns(ClockId::Monotonic);
        let wanted = self.get(Word::Watch);
        if wanted == self.get(Word::Watching) {
            let gap = now.saturating_sub(*last);
            self.shared.words()[Word::Gap as usize].fetch_max(gap, Relaxed);
        } else {
            self.set(Word::Gap, 0);
            self.set(Word::Watching, wanted);
        }
        *last = now;
        self.set(Word::Last, now);
        self.add(Word::Beats, 1);
    }

    /// Begins to watch: the largest gap counts from here.
    pub fn watch(&self, victim: &Alive) -> Result<()> {
        let number = self.get(Word::Watch) + 1;
        self.set(Word::Watch, number);
        self.wait(victim, "the victim's heartbeat", PROMPT, || {
            self.get(Word::Watching) == number
        })
    }

    /// The largest gap since [`Heartbeat::watch`], once there was a beat more: a gap that lasts has ended then.
    pub fn largest_gap(&self, victim: &Alive) -> Result<Duration> {
        // Two: the first may have begun before this look.
        let beats = self.get(Word::Beats);
        self.wait(victim, "the victim's heartbeat", PROMPT, || {
            self.get(Word::Beats) >= beats + 2
        })?;
        Ok(Duration::from_nanos(self.get(Word::Gap)))
    }

    /// Tells all `processes` of the victim to do something, and waits until they have.
    pub fn order(&self, victim: &Alive, order: Order, processes: u64, patience: Duration) -> Result<()> {
        let done = self.get(Word::Done);
        self.send(order);
        self.wait(victim, "the victim to carry out an order", patience, || {
            self.get(Word::Done) >= done + processes
        })
    }

    /// Tells the victim to do something.
    pub fn send(&self, order: Order) {
        let number = (self.get(Word::Order) >> 8) + 1;
        self.set(Word::Order, number << 8 | order as u64);
    }

    /// Waits for a condition on the page.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when the victim ends, [`ErrorKind::TimedOut`], [`ErrorKind::Cancelled`] on Ctrl-C.
    pub fn wait(
        &self,
        victim: &Alive,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut check = begun;
        while !condition() {
            let now = Instant::now();
            if now >= check {
                interrupt::check()?;
                if !victim.is_alive() {
                    return Err(Error::new(
                        ErrorKind::Gone,
                        format!("the victim ended while waiting for {what}"),
                    ));
                }
                check = now + CHECK_ALIVE;
            }
            if now - begun > patience {
                let text = format!("waited longer than {} s for {what}", patience.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// How long a living victim may take for a beat: far longer than any stop that is worth measuring.
pub const PROMPT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gap_counts_from_the_watch_on() {
        let place = tempfile::tempdir().unwrap();
        let page = Heartbeat::open(&place.path().join("page"), true).unwrap();
        let mut last = 0;
        page.beat(&mut last);
        assert!(page.get(Word::Gap) > 0, "since the epoch of the clock");
        page.set(Word::Watch, 1);
        page.beat(&mut last);
        assert_eq!((page.get(Word::Gap), page.get(Word::Watching)), (0, 1));
        last -= 5_000_000;
        page.beat(&mut last);
        assert!(page.get(Word::Gap) >= 5_000_000);
        assert_eq!(page.get(Word::Beats), 3);
    }
}
