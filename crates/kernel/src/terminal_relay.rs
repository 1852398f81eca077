//! Pseudo-terminals: making a pair, taking one as controlling terminal, and raw mode on the caller's own terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Pair {
    /// The side of the terminal emulator. Non-blocking.
    pub master: OwnedFd,
    /// The side of the programs.
    pub slave: OwnedFd,
}

/// Makes a pseudo-terminal; takes it as nobody's controlling terminal.
pub fn open_pair() -> io::Result<Pair> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok(Pair { master, slave })
}

/// Makes `slave` the controlling terminal of this process, which must be a session leader without one.
pub fn make_controlling(slave: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(slave)?)
}

/// Window size: rows, columns, horizontal and vertical pixels.
pub fn window_size(terminal: BorrowedFd<'_>) -> io::Result<[u16; 4]> {
    let w = rustix::termios::tcgetwinsize(terminal)?;
    Ok([w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel])
}

/// Sets the window size; processes in its foreground get SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: [u16; 4]) -> io::Result<()> {
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = size;
    let size = Winsize {
        ws_row,
        ws_col,
        ws_xpixel,
        ws_ypixel,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Copies the line settings of one terminal to another.
pub fn copy_settings(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let settings = rustix::termios::tcgetattr(from)?;
    Ok(rustix::termios::tcsetattr(to, OptionalActions::Now, &settings)?)
}

/// Raw mode on a terminal until dropped.
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Switches `terminal` to raw mode.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<RawMode> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = rustix::termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(RawMode { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done where the terminal has gone away.
        let _ = rustix::termios::tcsetattr(self.terminal.as_fd(), OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pair_carries_data_and_size() {
        let pair = open_pair().unwrap();
        set_window_size(pair.master.as_fd(), [30, 100, 0, 0]).unwrap();
        assert_eq!(window_size(pair.slave.as_fd()).unwrap(), [30, 100, 0, 0]);
        rustix::io::write(&pair.slave, b"hello\n").unwrap();
        let mut buffer = [0u8; 16];
        let n = rustix::io::read(&pair.master, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"hello\r\n");
        let raw = RawMode::enter(pair.slave.as_fd()).unwrap();
        rustix::io::write(&pair.slave, b"x\n").unwrap();
        let n = rustix::io::read(&pair.master, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"x\n");
        drop(raw);
    }
}
