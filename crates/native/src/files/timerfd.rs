//! timerfd_create(2): clock, time left, period and expirations not yet read.
//!
//! Time stands still for a job between checkpoint and restart, so a timer has as much time left as it had, also one
//! that was set to an absolute time; that one stays absolute (and goes on following the clock when somebody sets it).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cpr_image::model::{Object, OpenFile};
use cpr_kernel::proc::{FdInfoKind, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::eventfd::is_nonblocking;
use super::{Description, RestoreContext, SaveContext};

const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_REALTIME_ALARM: i32 = 8;
const CLOCK_BOOTTIME_ALARM: i32 = 9;

/// Saves a timer.
///
/// # Errors
/// The timer cannot be read, or `description` is none.
pub fn save(description: &Description, _context: &mut SaveContext<'_>) -> Result<Object> {
    read(description.handle.as_fd()).context(|| format!("{}: save the timer", description.label()))
}

/// Reads a timer through a descriptor of our own.
///
/// # Errors
/// The timer cannot be read, or `handle` is none.
pub fn read(handle: BorrowedFd<'_>) -> Result<Object> {
    let own = ProcDir::open(std::process::id() as i32).context(|| "open our own /proc directory")?;
    loop {
        // Asking for the time makes the kernel count the periods that have passed and start the next one; only then do
        // the numbers in fdinfo belong together.
        let left = rustix::time::timerfd_gettime(handle)
            .map_err(std::io::Error::from)
            .context(|| "ask for the time left")?
            .it_value;
        let info = own.fdinfo(handle.as_raw_fd()).context(|| "read fdinfo")?;
        let FdInfoKind::TimerFd {
            clock,
            ticks,
            settime_flags,
            it_value_ns,
            it_interval_ns,
        } = info.kind
        else {
            return Err(Error::new(ErrorKind::Internal, "no timer"));
        };
        if it_interval_ns > 0 && it_value_ns == 0 && (left.tv_sec, left.tv_nsec) != (0, 0) {
            continue; // it ran out between the two looks; a disarmed one would show nothing both times
        }
        return Ok(Object::TimerFd {
            clock,
            ticks,
            settime_flags,
            value_ns: it_value_ns,
            interval_ns: it_interval_ns,
        });
    }
}

/// Makes a timer in that state; it runs from now on.
///
/// # Errors
/// The kernel makes none (the alarm clocks take CAP_WAKE_ALARM), or does not take the state.
pub fn restore(
    file: &OpenFile,
    clock: i32,
    ticks: u64,
    settime_flags: i32,
    value_ns: u64,
    interval_ns: u64,
    _context: &mut RestoreContext<'_>,
) -> Result<OwnedFd> {
    make(clock, ticks, settime_flags, value_ns, interval_ns, is_nonblocking(file))
}

/// Makes a timer in that state; it runs from now on.
///
/// # Errors
/// As [`restore`].
pub fn make(
    clock: i32,
    ticks: u64,
    settime_flags: i32,
    value_ns: u64,
    interval_ns: u64,
    nonblocking: bool,
) -> Result<OwnedFd> {
    let io = std::io::Error::from;
    let (timer_clock, now_clock) = match clock {
        CLOCK_REALTIME => (TimerfdClockId::Realtime, ClockId::Realtime),
        CLOCK_MONOTONIC => (TimerfdClockId::Monotonic, ClockId::Monotonic),
        CLOCK_BOOTTIME => (TimerfdClockId::Boottime, ClockId::Boottime),
        CLOCK_REALTIME_ALARM => (TimerfdClockId::RealtimeAlarm, ClockId::Realtime),
        CLOCK_BOOTTIME_ALARM => (TimerfdClockId::BoottimeAlarm, ClockId::Boottime),
        _ => {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("a timer of the image uses clock {clock}, which is not known"),
            ));
        }
    };
    let mut flags = TimerfdFlags::CLOEXEC;
    flags.set(TimerfdFlags::NONBLOCK, nonblocking);
    let fd = rustix::time::timerfd_create(timer_clock, flags)
        .map_err(io)
        .context(|| format!("make a timer of clock {clock}"))?;
    let settime = TimerfdTimerFlags::from_bits_retain(settime_flags as u32)
        & (TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET);
    let mut value = i128::from(value_ns);
    if value > 0 && settime.contains(TimerfdTimerFlags::ABSTIME) {
        let now = rustix::time::clock_gettime(now_clock);
        value += i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    }
    let setting = Itimerspec {
        it_interval: timespec(interval_ns.into()),
        it_value: timespec(value),
    };
    rustix::time::timerfd_settime(&fd, settime, &setting)
        .map_err(io)
        .context(|| format!("set a timer of clock {clock}"))?;
    if ticks > 0 {
        cpr_kernel::event::set_timer_ticks(fd.as_fd(), ticks)
            .context(|| format!("give a timer {ticks} expirations"))
            .map_err(|e| e.with_hint("the kernel needs CONFIG_CHECKPOINT_RESTORE"))?;
    }
    Ok(fd)
}

fn timespec(nanoseconds: i128) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}
