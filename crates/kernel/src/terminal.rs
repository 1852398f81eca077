//! Terminal ioctls as a checkpoint needs them: whole `termios2`, pseudo-terminal state, and one's own SIGTTOU.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Size of the kernel's `struct termios2`.
pub const ATTRIBUTES_SIZE: usize = 44;

/// The kernel's `struct termios2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_cflag.
    pub control: u32,
    /// c_lflag.
    pub local: u32,
    /// c_line.
    pub line: u8,
    /// c_cc.
    pub characters: [u8; 19],
    /// c_ispeed.
    pub input_speed: u32,
    /// c_ospeed.
    pub output_speed: u32,
}

impl Attributes {
    /// As the kernel's structure.
    pub fn to_bytes(&self) -> [u8; ATTRIBUTES_SIZE] {
        let mut bytes = [0u8; ATTRIBUTES_SIZE];
        for (at, word) in [
            (0, self.input),
            (4, self.output),
            (8, self.control),
            (12, self.local),
            (36, self.input_speed),
            (40, self.output_speed),
        ] {
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes[16] = self.line;
        bytes[17..36].copy_from_slice(&self.characters);
        bytes
    }

    /// From the kernel's structure; none if `bytes` is not as long as one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ATTRIBUTES_SIZE] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut characters = [0u8; 19];
        characters.copy_from_slice(&bytes[17..36]);
        Some(Attributes {
            input: word(0),
            output: word(4),
            control: word(8),
            local: word(12),
            line: bytes[16],
            characters,
            input_speed: word(36),
            output_speed: word(40),
        })
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An ioctl that stores one `int`.
fn get_int(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: callers in this module pass only requests that store one int, and `value` is one.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &mut value) })?;
    Ok(value)
}

/// An ioctl that reads one `int`.
fn set_int(fd: BorrowedFd<'_>, request: libc::Ioctl, value: i32) -> io::Result<()> {
    let value: libc::c_int = value;
    // SAFETY: callers in this module pass only requests that read one int, and `value` is one.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &value) }).map(drop)
}

/// An ioctl without argument, or with a number for one.
fn plain(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: callers in this module pass only requests that take a number, so no memory is touched.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// TCGETS2; on a pseudo-terminal's master gives the slave's.
pub fn attributes(fd: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut bytes = [0u8; ATTRIBUTES_SIZE];
    // SAFETY: TCGETS2 stores one `struct termios2` of 44 bytes, the length of `bytes`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TCGETS2, bytes.as_mut_ptr()) })?;
    Ok(Attributes::from_bytes(&bytes).unwrap_or_default())
}

/// TCSETS2: at once, leaving queues alone.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    let bytes = attributes.to_bytes();
    // SAFETY: TCSETS2 reads one `struct termios2` of 44 bytes, the length of `bytes`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TCSETS2, bytes.as_ptr()) }).map(drop)
}

/// [`set_attributes`] with SIGTTOU blocked, so that it works and does not stop the caller in a background group.
pub fn set_attributes_blocking_ttou(fd: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    blocking_ttou(|| set_attributes(fd, attributes))
}

/// TIOCSPGRP with SIGTTOU blocked: makes our own process group the foreground one of our controlling terminal, also
/// from the background.
pub fn come_to_foreground(fd: BorrowedFd<'_>) -> io::Result<()> {
    blocking_ttou(|| set_int(fd, libc::TIOCSPGRP, rustix::process::getpgrp().as_raw_nonzero().get()))
}

fn blocking_ttou(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is a valid object for sigemptyset to set.
    let (mut block, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both sets are ours and live through the calls; the mask is the calling thread's own.
    let result = unsafe {
        libc::sigemptyset(&mut block);
        libc::sigaddset(&mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &block, &mut before)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let outcome = act();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    outcome
}

/// TIOCGETD: the line discipline; 0 is N_TTY.
pub fn line_discipline(fd: BorrowedFd<'_>) -> io::Result<i32> {
    get_int(fd, libc::TIOCGETD)
}

/// TIOCGPTN on a master: the number of its slave below /dev/pts.
pub fn slave_index(master: BorrowedFd<'_>) -> io::Result<u32> {
    get_int(master, libc::TIOCGPTN).map(|n| n as u32)
}

/// TIOCGPTPEER: opens the slave of `master` with these `open` flags, without a path.
pub fn open_slave(master: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    // O_CLOEXEC would stay with the flags of the open file, where fcntl(2) shows it.
    let flags = (flags | libc::O_NOCTTY) & !libc::O_CLOEXEC;
    let fd = plain(master, libc::TIOCGPTPEER, flags as libc::c_ulong)?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC)?;
    Ok(slave)
}

/// TIOCGPTLCK: whether opening the slave is forbidden.
pub fn locked(master: BorrowedFd<'_>) -> io::Result<bool> {
    get_int(master, libc::TIOCGPTLCK).map(|v| v != 0)
}

/// TIOCSPTLCK.
pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> io::Result<()> {
    set_int(master, libc::TIOCSPTLCK, i32::from(locked))
}

/// TIOCGPKT: whether a master is in packet mode.
pub fn packet_mode(master: BorrowedFd<'_>) -> io::Result<bool> {
    get_int(master, libc::TIOCGPKT).map(|v| v != 0)
}

/// TIOCPKT.
pub fn set_packet_mode(master: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_int(master, libc::TIOCPKT, i32::from(on))
}

/// TIOCGEXCL: whether further opens are refused.
pub fn exclusive(fd: BorrowedFd<'_>) -> io::Result<bool> {
    get_int(fd, libc::TIOCGEXCL).map(|v| v != 0)
}

/// TIOCEXCL or TIOCNXCL.
pub fn set_exclusive(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    const TIOCNXCL: libc::Ioctl = 0x540D;
    plain(fd, if on { libc::TIOCEXCL } else { TIOCNXCL }, 0).map(drop)
}

/// TCXONC: stops (TCOOFF) or starts (TCOON) a slave's output, independently of control-S and control-Q.
pub fn set_output_stopped(slave: BorrowedFd<'_>, stopped: bool) -> io::Result<()> {
    let action = if stopped { libc::TCOOFF } else { libc::TCOON };
    plain(slave, libc::TCXONC, action as libc::c_ulong).map(drop)
}

/// FIONREAD: bytes a read would give; in canonical mode those of complete lines.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<usize> {
    get_int(fd, libc::FIONREAD).map(|n| n.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_survive_bytes_and_the_kernel() {
        let pair = crate::terminal_relay::open_pair().unwrap();
        let mut wanted = attributes(pair.slave.as_fd()).unwrap();
        assert_eq!(Attributes::from_bytes(&wanted.to_bytes()), Some(wanted));
        wanted.local &= !libc::ECHO;
        wanted.characters[libc::VEOF] = 7;
        set_attributes(pair.master.as_fd(), &wanted).unwrap();
        assert_eq!(attributes(pair.slave.as_fd()).unwrap(), wanted);
        assert_eq!(Attributes::from_bytes(&[0; 43]), None);
    }

    #[test]
    fn pseudo_terminal_state() {
        let pair = crate::terminal_relay::open_pair().unwrap();
        assert!(!locked(pair.master.as_fd()).unwrap());
        assert!(!packet_mode(pair.master.as_fd()).unwrap());
        set_packet_mode(pair.master.as_fd(), true).unwrap();
        assert!(packet_mode(pair.master.as_fd()).unwrap());
        set_exclusive(pair.slave.as_fd(), true).unwrap();
        assert!(exclusive(pair.slave.as_fd()).unwrap());
        set_exclusive(pair.slave.as_fd(), false).unwrap();
        let again = open_slave(pair.master.as_fd(), libc::O_RDONLY).unwrap();
        assert_eq!(line_discipline(again.as_fd()).unwrap(), 0);
    }
}
