//! `/proc/PID/timers`: the timers made with timer_create(2).

use std::io;

use super::{At, decimal, lines, split_once};

/// One POSIX timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Its number in the process.
    pub id: i32,
    /// Signal it sends, also present if `notify` is [`TimerNotify::None`].
    pub signal: i32,
    /// The `sigev_value`, as the bits of a pointer.
    pub value: u64,
    /// How expiry is notified.
    pub notify: TimerNotify,
    /// Who is notified.
    pub target: TimerTarget,
    /// The clock; negative for processor-time clocks of a process or thread.
    pub clock: i32,
}

/// The `sigev_notify` of a timer, without `SIGEV_THREAD_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerNotify {
    /// `SIGEV_NONE`
    None,
    /// `SIGEV_SIGNAL`
    Signal,
    /// `SIGEV_THREAD`
    Thread,
}

/// Whom a timer signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerTarget {
    /// The process with this number.
    Process(i32),
    /// `SIGEV_THREAD_ID`: the thread with this number, 0 if it has ended.
    Thread(i32),
}

/// Parses `/proc/PID/timers`; the result is sorted by the timers' numbers.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Vec<Timer>> {
    let mut timers = Vec::new();
    let mut lines = lines(file, text);
    while let Some((at, line)) = lines.next() {
        let id = at.need(line.strip_prefix(b"ID: ").and_then(decimal), "ID")?;
        let mut value = |key: &str| -> io::Result<(At<'_>, &[u8])> {
            let ended = || at.bad(format_args!("the timer that starts here has no \"{key}\""));
            let (at, line) = lines.next().ok_or_else(ended)?;
            Ok((at, at.need(line.strip_prefix(key.as_bytes()), key)?))
        };
        let (at, line) = value("signal: ")?;
        let (signal, pointer) = at.need(split_once(line, b'/'), "signal")?;
        let (signal, pointer) = (at.decimal(signal, "signal")?, at.hex(pointer, "signal value")?);
        let (at, line) = value("notify: ")?;
        let (notify, target) = at.need(notification(line), "notify")?;
        let (at, line) = value("ClockID: ")?;
        let clock = at.decimal(line, "ClockID")?;
        timers.push(Timer {
            id,
            signal,
            value: pointer,
            notify,
            target,
            clock,
        });
    }
    timers.sort_unstable_by_key(|timer| timer.id);
    Ok(timers)
}

fn notification(text: &[u8]) -> Option<(TimerNotify, TimerTarget)> {
    let (how, who) = split_once(text, b'/')?;
    let notify = match how {
        b"none" => TimerNotify::None,
        b"signal" => TimerNotify::Signal,
        b"thread" => TimerNotify::Thread,
        _ => return None,
    };
    let (kind, number) = split_once(who, b'.')?;
    let number = decimal(number)?;
    match kind {
        b"pid" => Some((notify, TimerTarget::Process(number))),
        b"tid" => Some((notify, TimerTarget::Thread(number))),
        _ => None,
    }
}
