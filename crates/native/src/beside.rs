//! Two things done at the same time, where they need nothing of each other.
//!
//! What is asked of /proc takes no tracer: another thread can ask while the tracer has the job make system calls.

use cpr_types::{Error, ErrorKind, Result};

/// Runs `other` in a thread of its own while the calling one runs `own`, where that is worth a thread; else, and where
/// there is none to be had, one after the other.
///
/// # Errors
/// `other` has panicked.
pub fn beside<A: Send, B>(is_worth: bool, other: impl Fn() -> A + Sync, own: impl FnOnce() -> B) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cpr-look".to_owned());
        let running = is_worth.then(|| thread.spawn_scoped(scope, &other).ok()).flatten();
        let Some(running) = running else {
            let first = other();
            return Ok((first, own()));
        };
        let mine = own();
        match running.join() {
            Ok(theirs) => Ok((theirs, mine)),
            Err(_) => Err(Error::new(
                ErrorKind::Internal,
                "a thread that looks at the job panicked",
            )),
        }
    })
}

/// Most threads that look at a job.
const THREADS: usize = 4;

/// Looks at each of some things, of at least `many` with a thread for each processor; gives what was found in their
/// order.
///
/// # Errors
/// A thread has panicked.
pub fn each<T: Sync, R: Send>(many: usize, things: &[T], look: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if things.len() < many {
        1
    } else {
        processors.min(THREADS)
    };
    each_of(threads, things, &look)
}

fn each_of<T: Sync, R: Send>(threads: usize, things: &[T], look: &(impl Fn(&T) -> R + Sync)) -> Result<Vec<R>> {
    let (first, rest) = things.split_at(things.len().div_ceil(threads));
    if rest.is_empty() {
        return Ok(first.iter().map(look).collect());
    }
    let (rest, own) = beside(
        true,
        || each_of(threads - 1, rest, look),
        || first.iter().map(look).collect::<Vec<R>>(),
    )?;
    let mut found = own;
    found.extend(rest?);
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_has_the_order_of_the_things() {
        for (count, threads) in [(0, 4), (1, 4), (3, 4), (10, 4), (10, 3), (7, 1)] {
            let things: Vec<usize> = (0..count).collect();
            let found = each_of(threads, &things, &|thing| thing * 2).unwrap();
            assert_eq!(found, (0..count).map(|thing| thing * 2).collect::<Vec<usize>>());
        }
    }
}
