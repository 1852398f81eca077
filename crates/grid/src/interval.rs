//! How often a job is best saved: a pure function.

/// Shortest and longest time between checkpoints, milliseconds.
const SHORTEST_MS: f64 = 10_000.0;
const LONGEST_MS: f64 = 86_400_000.0;
/// Making a checkpoint takes no more than this part of the time, so that disks and networks have time for others.
const MOST_BUSY: f64 = 0.1;
/// Before anything is known: one failure in a day.
const PRIOR_MS: f64 = 86_400_000.0;

/// Mean time between failures of the system, where jobs have run for so long and failed so often because of it.
pub(crate) fn mean_time_to_failure_ms(ran_ms: i64, failures: i64) -> f64 {
    (ran_ms.max(0) as f64 + PRIOR_MS) / (failures.max(0) as f64 + 1.0)
}

/// Time between checkpoints with which a job gets on fastest. A checkpoint costs it `cost_ms` and takes `took_ms` to
/// make.
///
/// J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation Computer
/// Systems 22 (2006) 303-312, equation 37; its first term is Young's.
pub(crate) fn best_ms(cost_ms: u64, took_ms: u64, failure_ms: f64) -> i64 {
    let cost = cost_ms.max(1) as f64;
    let best = if cost < 2.0 * failure_ms {
        let ratio = cost / (2.0 * failure_ms);
        (2.0 * cost * failure_ms).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - cost
    } else {
        failure_ms
    };
    best.max(took_ms as f64 / MOST_BUSY).clamp(SHORTEST_MS, LONGEST_MS) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a job with a checkpoint every `interval` takes for each unit of work, where failures come at random: Daly's
    /// exact solution, without the time of a restart.
    fn pace(interval: f64, cost: f64, failure: f64) -> f64 {
        failure / interval * (((interval + cost) / failure).exp() - 1.0)
    }

    // XGCP-ADAPT-4
    #[test]
    fn no_fixed_interval_is_better_by_more_than_a_hundredth() {
        for failure_h in [1.0, 10.0, 100.0, 1000.0] {
            let failure = failure_h * 3_600_000.0;
            for cost in [100, 1_000, 10_000, 60_000] {
                let own = best_ms(cost, 0, failure) as f64;
                if own >= LONGEST_MS || own <= SHORTEST_MS {
                    continue;
                }
                let own = pace(own, cost as f64, failure);
                let mut fixed = 1_000.0;
                while fixed < LONGEST_MS {
                    let other = pace(fixed, cost as f64, failure);
                    assert!(
                        own <= other * 1.01,
                        "{failure_h} h, {cost} ms: {own} where {fixed} has {other}"
                    );
                    fixed *= 1.1;
                }
            }
        }
    }

    #[test]
    fn intervals_follow_cost_and_failures_within_limits() {
        let day = mean_time_to_failure_ms(0, 0);
        assert!(best_ms(100, 0, day) < best_ms(10_000, 0, day));
        assert!(best_ms(1_000, 0, mean_time_to_failure_ms(0, 9)) < best_ms(1_000, 0, day));
        assert!(best_ms(1_000, 0, mean_time_to_failure_ms(30 * 86_400_000, 0)) > best_ms(1_000, 0, day));
        assert_eq!(best_ms(0, 0, 1.0), SHORTEST_MS as i64);
        assert_eq!(best_ms(u64::MAX, u64::MAX, f64::MAX), LONGEST_MS as i64);
        assert_eq!(best_ms(1, 60_000, 3_600_000.0), 600_000, "a tenth of the time at most");
    }
}
