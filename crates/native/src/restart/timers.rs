//! POSIX timers (timer_create(2)), with the numbers they had.
//!
//! A process can choose them since Linux 6.16. Before, it counts its timers from nought: numbers are gone past with
//! timers that are made and removed at once.

use cpr_image::model::{PosixTimer, Process};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::process;
use cpr_types::{Error, ErrorKind, Result};

use super::stub::Workshop;

/// SIGEV_THREAD_ID.
const NOTIFY_THREAD: i32 = 4;
/// The most numbers that are gone past, one at a time: some tenths of a second.
const MOST_PASSED: i32 = 200_000;

/// Makes the timers of a process, and starts those that ran. Where their numbers can be chosen that is left to `batch`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a number that is too far away; a call fails.
pub(super) fn restore(workshop: &Workshop, process: &Process, batch: &mut Batch) -> Result<()> {
    if process.posix_timers.is_empty() {
        return Ok(());
    }
    if process::may_choose_timer_numbers() {
        choose_numbers(batch, true);
        for timer in &process.posix_timers {
            make(workshop, process, timer, batch)?;
        }
        choose_numbers(batch, false);
        return Ok(());
    }
    let mut timers: Vec<&PosixTimer> = process.posix_timers.iter().collect();
    timers.sort_by_key(|timer| timer.id);
    let mut next = 0;
    let mut own = Batch::new();
    for timer in timers {
        if timer.id > MOST_PASSED {
            let text = format!(
                "make timer {}: Linux before 6.16 counts to it in the program's time",
                timer.id
            );
            return Err(Error::new(ErrorKind::Unsupported, text).with_hint("restart it on Linux 6.16 or later"));
        }
        for number in next..timer.id {
            if own.size() > workshop.arena.capacity() / 2 {
                workshop.run(process.pid, &own)?;
                own = Batch::new();
            }
            let id = own.data(&number.to_ne_bytes());
            let clock = libc::CLOCK_MONOTONIC.into();
            own.must(
                libc::SYS_timer_create,
                &[clock, Arg::from(0), id],
                "go past a timer's number",
            );
            own.must(libc::SYS_timer_delete, &[number.into()], "go past a timer's number");
        }
        next = timer.id.saturating_add(1);
        make(workshop, process, timer, &mut own)?;
    }
    workshop.run(process.pid, &own).map(drop)
}

fn choose_numbers(batch: &mut Batch, on: bool) {
    batch.must(
        libc::SYS_prctl,
        &[
            process::PR_TIMER_CREATE_RESTORE_IDS.into(),
            i32::from(on).into(),
            Arg::from(0),
            Arg::from(0),
            Arg::from(0),
        ],
        "choose timer numbers",
    );
}

/// Makes a timer, whose number is chosen or the next one, and starts it.
fn make(workshop: &Workshop, process: &Process, timer: &PosixTimer, batch: &mut Batch) -> Result<()> {
    // struct sigevent: value, signo, notify, tid.
    let mut event = [0u8; 64];
    event[..8].copy_from_slice(&timer.value.to_ne_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_ne_bytes());
    event[12..16].copy_from_slice(&timer.notify.to_ne_bytes());
    if timer.notify == NOTIFY_THREAD {
        let thread = workshop.seen(process.pid, timer.thread)?;
        event[16..20].copy_from_slice(&thread.to_ne_bytes());
    }
    let event = batch.data(&event);
    let id = batch.data(&timer.id.to_ne_bytes());
    batch.must(
        libc::SYS_timer_create,
        &[timer.clock.into(), event, id],
        format!("make timer {}", timer.id),
    );
    let words = [
        timer.interval_ns / 1_000_000_000,
        timer.interval_ns % 1_000_000_000,
        timer.value_ns / 1_000_000_000,
        timer.value_ns % 1_000_000_000,
    ];
    let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let value = batch.data(&raw);
    batch.must(
        libc::SYS_timer_settime,
        &[timer.id.into(), Arg::from(0), value, Arg::from(0)],
        format!("start timer {}", timer.id),
    );
    Ok(())
}
