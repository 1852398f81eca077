//! Time namespaces: what a process's monotonic and boot-time clocks are ahead of the machine's (time_namespaces(7)).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How far the clocks that processes of a time namespace read are ahead of the machine's, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// CLOCK_MONOTONIC, and its coarse and raw forms.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME and CLOCK_BOOTTIME_ALARM.
    pub boottime_ns: i64,
}

impl Offsets {
    /// Those of the children that the process `pid` of our `/proc` makes, which are its own unless it has just made a
    /// time namespace for them; of kernels without time namespaces, none.
    ///
    /// # Errors
    /// The file cannot be read: most of all, there is no such process.
    pub fn of_children(pid: &str) -> io::Result<Self> {
        match fs::read_to_string(format!("/proc/{pid}/timens_offsets")) {
            Ok(text) => parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_supported() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Sets those of a time namespace that the process `pid` of our `/proc` has made for its children, and that nobody
    /// has entered.
    ///
    /// # Errors
    /// We may not (CAP_SYS_TIME in its user namespace), somebody is in it (EACCES), or a clock would be negative or too
    /// far ahead (ERANGE).
    pub fn give_children(self, pid: &str) -> io::Result<()> {
        let line = |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
        let text = line("monotonic", self.monotonic_ns) + &line("boottime", self.boottime_ns);
        // The kernel takes all lines in one write only.
        fs::write(format!("/proc/{pid}/timens_offsets"), text)
    }

    /// How far the clocks of the process `pid` of our `/proc` are ahead of ours. Neither of both may have made a time
    /// namespace for its children only.
    ///
    /// # Errors
    /// As [`Self::of_children`].
    pub fn ahead_of_us(pid: i32) -> io::Result<Self> {
        let (theirs, ours) = (Self::of_children(&pid.to_string())?, Self::of_children("self")?);
        Ok(Self {
            monotonic_ns: theirs.monotonic_ns.saturating_sub(ours.monotonic_ns),
            boottime_ns: theirs.boottime_ns.saturating_sub(ours.boottime_ns),
        })
    }
}

/// Whether this kernel has time namespaces.
pub fn is_supported() -> bool {
    fs::exists("/proc/self/timens_offsets").unwrap_or(false)
}

/// Whether a process whose children are to be in another time namespace can make threads: `copy_process` in
/// kernel/fork.c refuses it in Linux 6.1, and no more in 6.3.
pub fn lets_threads_be_made() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 3),
        _ => false,
    }
}

/// Lines of a clock's name, seconds and nanoseconds, of which only the seconds have a sign.
fn parse(text: &str) -> Option<Offsets> {
    let of = |clock: &str| -> Option<i64> {
        let mut fields = text
            .lines()
            .find_map(|line| line.strip_prefix(clock))?
            .split_ascii_whitespace();
        let seconds: i64 = fields.next()?.parse().ok()?;
        let nanoseconds: i64 = fields.next()?.parse().ok()?;
        seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
    };
    Some(Offsets {
        monotonic_ns: of("monotonic ")?,
        boottime_ns: of("boottime ")?,
    })
}

const SECOND: i64 = 1_000_000_000;
/// `CLONE_NEWTIME` of <linux/sched.h>.
pub const CLONE_NEWTIME: i32 = 0x80;

/// Makes a time namespace with these offsets; processes that this one makes from now on are in it, and it is not.
///
/// # Errors
/// The kernel has none, the caller may not (CAP_SYS_ADMIN and CAP_SYS_TIME in its user namespace), or a clock would be
/// negative or too far ahead.
pub fn new_namespace(offsets: Offsets) -> io::Result<()> {
    // SAFETY: CLONE_NEWTIME gives this thread another time namespace for its children; its own clocks, memory and
    // descriptors do not change.
    if unsafe { libc::unshare(CLONE_NEWTIME) } < 0 {
        return Err(io::Error::last_os_error());
    }
    offsets.give_children("self")
}

/// How long a thread of ours that has done its work may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// The way back from [`new_namespace`].
#[derive(Debug)]
pub struct Own(OwnedFd);

impl Own {
    /// Our own time namespace.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn hold() -> io::Result<Self> {
        Ok(Self(fs::File::open("/proc/self/ns/time")?.into()))
    }

    /// Makes children from now on be in it again. No other thread may be at work; one that has done its work may still
    /// be ending.
    ///
    /// # Errors
    /// setns(2); there are other threads (EUSERS).
    pub fn restore(&self) -> io::Result<()> {
        let deadline = Instant::now() + ENDING;
        loop {
            // SAFETY: setns gives this thread back the time namespace it never left; it touches no memory and no
            // descriptor.
            if unsafe { libc::setns(self.0.as_raw_fd(), CLONE_NEWTIME) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EUSERS) || Instant::now() > deadline {
                return Err(error);
            }
            // Nothing tells of a thread that it has left.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let text = "monotonic           0         0\nboottime           -3  500000000\n";
        let offsets = Offsets {
            monotonic_ns: 0,
            boottime_ns: -2_500_000_000,
        };
        assert_eq!(parse(text), Some(offsets));
        assert_eq!(parse("monotonic 0 0\n"), None);
        assert_eq!(parse("monotonic x 0\nboottime 0 0\n"), None);
        assert_eq!(parse("monotonic 9223372036854775807 0\nboottime 0 0\n"), None);
    }

    #[test]
    fn who_has_made_no_namespace_gives_children_its_own() {
        let first = Offsets::of_children("self").unwrap();
        assert_eq!(first, Offsets::of_children(&std::process::id().to_string()).unwrap());
        assert!(Offsets::of_children("0").is_err() || !is_supported());
    }
}
