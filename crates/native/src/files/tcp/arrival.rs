//! How long to wait until what was written to TCP connections has arrived.
//!
//! A receiver whose buffer ran over has thrown segments away, and its sender sends them again later and later: after
//! 0.2 s, 0.4 s and so on up to two minutes. That there is room now does not have it send any sooner, while a sender
//! whose last segment was acknowledged is told by the new window at once. So whoever waits looks at that timer.

use std::time::{Duration, Instant};

use cpr_types::Result;

/// A wait for data that are on their way.
#[derive(Debug)]
pub(in crate::files) struct Arrival {
    /// How long it takes at most until more arrives where no timer is in the way.
    usual: Duration,
    /// How long it may take in any case.
    longest: Duration,
    left: usize,
    since: Instant,
    deadline: Instant,
}

impl Arrival {
    pub(in crate::files) fn within(usual: Duration, longest: Duration) -> Arrival {
        let now = Instant::now();
        Arrival {
            usual,
            longest,
            left: usize::MAX,
            since: now,
            deadline: now + usual,
        }
    }

    /// Whether there is use in waiting for the bytes that are `left`. `again` is asked when that is in doubt: after how
    /// long the first of the senders tries again that have room at the other end, if one does.
    ///
    /// # Errors
    /// Those of `again`.
    pub(in crate::files) fn is_near(
        &mut self,
        left: usize,
        again: impl FnOnce() -> Result<Option<Duration>>,
    ) -> Result<bool> {
        let now = Instant::now();
        if left < self.left {
            (self.left, self.since, self.deadline) = (left, now, now + self.usual);
        }
        if now <= self.deadline {
            return Ok(true);
        }
        let next = again()?.map(|after| now + after + self.usual);
        let next = next.filter(|next| *next <= self.since + self.longest);
        self.deadline = next.unwrap_or(self.deadline);
        Ok(next.is_some())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn it_is_waited_for_as_long_as_something_comes_or_is_sent_again_in_time() {
        let mut arrival = Arrival::within(Duration::ZERO, LONG);
        let pause = || std::thread::sleep(Duration::from_millis(2));
        assert!(arrival.is_near(10, || Ok(None)).unwrap(), "the first look");
        pause();
        assert!(arrival.is_near(9, || Ok(None)).unwrap(), "something has come");
        pause();
        assert!(arrival.is_near(9, || Ok(Some(LONG / 2))).unwrap(), "it is sent again");
        assert!(arrival.is_near(9, || Ok(None)).unwrap(), "not before that time is over");
        let mut late = Arrival::within(Duration::ZERO, LONG);
        assert!(late.is_near(10, || Ok(None)).unwrap());
        pause();
        assert!(!late.is_near(10, || Ok(Some(LONG * 2))).unwrap(), "too late");
        assert!(!late.is_near(10, || Ok(None)).unwrap(), "not at all");
    }
}
