//! Leases: permission for a job to run, which ends by itself unless whoever gave it renews it.
//!
//! A lease is a file with the boot it is for and the time it ends, by CLOCK_BOOTTIME, which never jumps and goes on
//! while the machine is suspended (clock_gettime(2)). The job's own supervisor watches it, so that nothing else has to
//! be alive for the job to end in time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

/// What [`crate::JobStatus::error`] says of a job that was ended because its lease had lapsed.
pub const LEASE_LAPSED: &str = "its lease has lapsed";

/// Longest file that can be a lease.
const LONGEST: usize = 256;
/// A job that could not be killed is killed again after this time.
const AGAIN: Duration = Duration::from_millis(100);

/// Time since boot, by the clock of leases.
pub fn lease_clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Which boot of the machine this is.
pub(crate) fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
    Ok(text.trim().to_string())
}

/// Writes a lease that lasts until `end`, by [`lease_clock`], over the one that is there.
pub fn grant_lease(path: &Path, end: Duration) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let what = || format!("write lease {}", path.display());
    let aside = path.with_extension("new");
    std::fs::write(&aside, format!("{} {}\n", boot()?, end.as_nanos())).context(what)?;
    // Jobs of every user read it. It need not be durable: it is worth nothing after a crash of the machine.
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o644)).context(what)?;
    std::fs::rename(&aside, path).context(what)
}

/// When a lease ends; [`Duration::ZERO`] where it is of another boot.
fn read(path: &Path) -> Result<Duration> {
    let what = || format!("read lease {}", path.display());
    let text = std::fs::read_to_string(path).context(what)?;
    let bad = || Error::new(ErrorKind::Damaged, format!("{} is not a lease", path.display()));
    if text.len() > LONGEST {
        return Err(bad());
    }
    let (of, end) = text.trim_end().split_once(' ').ok_or_else(bad)?;
    let end: u64 = end.parse().map_err(|_| bad())?;
    Ok(if of == boot()? {
        Duration::from_nanos(end)
    } else {
        Duration::ZERO
    })
}

/// A lease that is watched.
pub(crate) struct Lease {
    path: PathBuf,
    end: Duration,
    timer: OwnedFd,
}

impl Lease {
    /// Refuses a lease that has lapsed.
    pub(crate) fn require(path: &Path) -> Result<()> {
        if read(path)? > lease_clock() {
            return Ok(());
        }
        Err(
            Error::new(ErrorKind::Denied, format!("lease {} has lapsed", path.display()))
                .with_hint("a job of a grid is started by the grid: `cpr recover`"),
        )
    }

    /// Watches a lease.
    pub(crate) fn watch(path: &Path) -> Result<Lease> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)
            .map_err(io::Error::from)
            .context(|| "make a timer")?;
        let mut lease = Lease {
            path: path.to_path_buf(),
            end: read(path)?,
            timer,
        };
        lease.set_timer(lease.end)?;
        Ok(lease)
    }

    fn set_timer(&mut self, at: Duration) -> Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A time of 0 would stop the timer; one that has passed makes it ready at once.
        let at = at.max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: at.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(at.subsec_nanos()),
        };
        let time = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time)
            .map_err(io::Error::from)
            .context(|| "set a timer")?;
        Ok(())
    }

    /// Whether it has lapsed; to be asked when it is ready to be read. A file that cannot be read renews nothing.
    pub(crate) fn has_lapsed(&mut self) -> Result<bool> {
        if let Ok(end) = read(&self.path) {
            self.end = self.end.max(end);
        }
        let now = lease_clock();
        let lapsed = self.end <= now;
        self.set_timer(if lapsed { now + AGAIN } else { self.end })?;
        Ok(lapsed)
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_until_its_end_and_what_is_no_lease_renews_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lease");
        assert!(Lease::require(&path).is_err());
        grant_lease(&path, lease_clock() + Duration::from_secs(60)).unwrap();
        Lease::require(&path).unwrap();
        let mut lease = Lease::watch(&path).unwrap();
        assert!(!lease.has_lapsed().unwrap());
        for bad in ["", "x", "a b\n", &"9".repeat(1000)] {
            std::fs::write(&path, bad).unwrap();
            assert!(Lease::require(&path).is_err());
            assert!(!lease.has_lapsed().unwrap(), "what was given stays given");
        }
        grant_lease(&path, lease_clock()).unwrap();
        assert!(Lease::require(&path).is_err());
        assert!(Lease::watch(&path).unwrap().has_lapsed().unwrap());
        std::fs::write(&path, format!("another-boot {}\n", u64::MAX)).unwrap();
        assert!(Lease::require(&path).is_err());
    }
}
