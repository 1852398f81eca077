//! What is on its way in a terminal.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::Terminal;
use cpr_kernel::terminal::{self as kernel, Attributes};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;

const VEOL2: usize = 16;
const VEOL: usize = 11;
const VSTOP: usize = 9;
const VMIN: usize = 6;
const VTIME: usize = 5;
const VEOF: usize = 4;
const IEXTEN: u32 = 0o100000;
const ECHO: u32 = 0o10;
// c_lflag and c_cc of <asm-generic/termbits.h>.
const ICANON: u32 = 0o2;
/// How long putting data back may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What its largest terminal buffer holds.
const LAST: usize = 3584;
/// What the kernel's smallest terminal buffer holds.
const BUFFER: usize = 512;

/// What is under way on a terminal.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// To the slave. In canonical mode an end of file is the character that makes one.
    pub(super) input: Vec<u8>,
    /// To the master.
    pub(super) output: Vec<u8>,
}

impl Queues {
    /// Reads both queues until they are empty.
    pub(super) fn take(
        &mut self,
        master: BorrowedFd<'_>,
        slave: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<()> {
        if attributes.local & ICANON != 0 {
            // Line by line: how much one read gives is what has to be kept.
            while let Some(line) = read(slave)? {
                let ended = line.last().is_some_and(|last| ends_line(*last, attributes));
                self.input.extend_from_slice(&line);
                if !ended {
                    self.input.push(attributes.characters[VEOF]);
                }
            }
        }
        // The rest: an unfinished line, or everything in non-canonical mode, whatever VMIN says.
        let mut raw = *attributes;
        raw.local &= !ICANON;
        raw.characters[VMIN] = 1;
        raw.characters[VTIME] = 0;
        kernel::set_attributes(master, &raw).context(|| "leave canonical mode")?;
        while let Some(bytes) = read(slave)? {
            self.input.extend_from_slice(&bytes);
        }
        while poll(master, PollFlags::IN, Duration::ZERO)?.contains(PollFlags::IN) {
            match read(master)? {
                Some(bytes) => self.output.extend_from_slice(&bytes),
                None => break,
            }
        }
        Ok(())
    }

    /// Puts both queues, which must be empty, into the state `self` has. Leaves settings that do not change data.
    pub(super) fn put(&self, master: BorrowedFd<'_>, slave: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
        let quiet = quiet(attributes);
        kernel::set_attributes(master, &quiet).context(|| "switch character processing off")?;
        if !self.input.is_empty() {
            self.put_input(master, slave, attributes, &quiet)
                .context(|| format!("put back {} bytes of input", self.input.len()))?;
        }
        self.put_output(slave)
            .context(|| format!("put back {} bytes of output", self.output.len()))
    }

    /// Writes the output so that it takes no more of the kernel's memory than it did, however it was written before.
    /// The kernel limits that memory, not the number of bytes. It puts a write into the last buffer if that has room
    /// for the whole write, else into a new one, of [`BUFFER`] bytes for small writes and up to [`LAST`] for large
    /// ones; and only the last buffer may go beyond the limit.
    pub(super) fn put_output(&self, slave: BorrowedFd<'_>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = self.output.as_slice();
        while !rest.is_empty() {
            let size = if rest.len() > LAST { BUFFER / 2 } else { rest.len() };
            match rustix::io::write(slave, &rest[..size]) {
                Ok(count) => rest = &rest[count..],
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                    wait(slave, PollFlags::OUT, deadline).context(|| format!("the last {} bytes", rest.len()))?;
                }
                Err(error) => return Err(std::io::Error::from(error)).context(|| "write"),
            }
        }
        Ok(())
    }

    pub(super) fn put_input(
        &self,
        master: BorrowedFd<'_>,
        slave: BorrowedFd<'_>,
        attributes: &Attributes,
        quiet: &Attributes,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        if attributes.local & ICANON == 0 {
            write_all(master, &self.input)?;
            return wait_readable(slave, self.input.len(), deadline);
        }
        let ends_here = |byte: &u8| ends_line(*byte, attributes) || is(*byte, attributes.characters[VEOF]);
        let cut = self.input.iter().rposition(ends_here).map_or(0, |last| last + 1);
        let (lines, unfinished) = self.input.split_at(cut);
        if !lines.is_empty() {
            write_all(master, lines)?;
            let ends = |byte: &&u8| is(**byte, attributes.characters[VEOF]);
            wait_readable(slave, lines.len() - lines.iter().filter(ends).count(), deadline)?;
            wait(slave, PollFlags::IN, deadline)?;
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        if lines.is_empty() {
            write_all(master, unfinished)?;
            // Where no line is complete, poll(2) waits for the kernel's worker to have taken in everything.
            poll(slave, PollFlags::IN, Duration::ZERO)?;
            return Ok(());
        }
        // Nothing tells how long the unfinished line behind others has become; its echo does.
        let mut echoing = *quiet;
        echoing.local |= ECHO;
        kernel::set_attributes(master, &echoing).context(|| "switch echo on")?;
        write_all(master, unfinished)?;
        let mut echoed = 0;
        while echoed < unfinished.len() {
            wait(master, PollFlags::IN, deadline)?;
            echoed += read(master)?.map_or(0, |bytes| bytes.len());
        }
        kernel::set_attributes(master, quiet).context(|| "switch echo off")
    }
}

/// Puts queues back and stops the output again, by the means it had been stopped with.
pub(super) fn put_stopped(
    queues: &Queues,
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    attributes: &Attributes,
) -> Result<()> {
    // Leaving IXON undoes control-S.
    kernel::set_attributes(master, &quiet(attributes)).context(|| "switch character processing off")?;
    let by_ioctl = !poll(slave, PollFlags::OUT, Duration::ZERO)?.contains(PollFlags::OUT);
    if by_ioctl {
        kernel::set_output_stopped(slave, false).context(|| "start the output")?;
    }
    queues.put(master, slave, attributes)?;
    kernel::set_attributes(master, attributes).context(|| "put the settings back")?;
    if by_ioctl {
        kernel::set_output_stopped(slave, true).context(|| "stop the output")
    } else {
        write_all(master, &attributes.characters[VSTOP..=VSTOP])
    }
}

/// Settings under which data pass unchanged, canonical or not as before.
pub(super) fn quiet(attributes: &Attributes) -> Attributes {
    let mut quiet = *attributes;
    quiet.input = 0;
    quiet.output = 0;
    quiet.local &= ICANON | IEXTEN;
    quiet.characters = [0; 19];
    if attributes.local & ICANON != 0 {
        for which in [VEOF, VEOL, VEOL2] {
            quiet.characters[which] = attributes.characters[which];
        }
    } else {
        quiet.characters[VMIN] = 1;
    }
    quiet
}

/// Whether `byte` is the special character `special`; zero is none.
pub(super) fn is(byte: u8, special: u8) -> bool {
    special != 0 && byte == special
}

pub(super) fn ends_line(byte: u8, attributes: &Attributes) -> bool {
    byte == b'\n'
        || is(byte, attributes.characters[VEOL])
        || (attributes.local & IEXTEN != 0 && is(byte, attributes.characters[VEOL2]))
}

/// Whether the other side of a terminal has been closed for good.
///
/// # Errors
/// It cannot be polled.
pub(in crate::files) fn is_hung_up(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(poll(fd, PollFlags::empty(), Duration::ZERO)?.contains(PollFlags::HUP))
}

/// Another, non-blocking description of the slave.
pub(super) fn own_slave(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, image: &Terminal) -> Result<OwnedFd> {
    let flags = (OFlags::RDWR | OFlags::NONBLOCK).bits() as i32;
    if image.locked {
        kernel::set_locked(master, false).context(|| "unlock")?;
    }
    if image.exclusive {
        kernel::set_exclusive(slave, false).context(|| "leave exclusive mode")?;
    }
    let own = kernel::open_slave(master, flags).context(|| "open the slave side");
    if image.exclusive {
        kernel::set_exclusive(slave, true).context(|| "go back to exclusive mode")?;
    }
    if image.locked {
        kernel::set_locked(master, true).context(|| "lock again")?;
    }
    own
}

pub(super) fn poll(fd: BorrowedFd<'_>, events: PollFlags, timeout: Duration) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    let timeout = rustix::time::Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    loop {
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) => return Ok(fds[0].revents()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "poll"),
        }
    }
}

pub(super) fn timed_out() -> Error {
    Error::new(ErrorKind::TimedOut, "the terminal does not take its data back")
}

pub(super) fn wait(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> Result<()> {
    // In slices, because the kernel wakes nobody when its worker makes room by moving data on.
    while !poll(fd, events, Duration::from_millis(1))?.contains(events) {
        if Instant::now() > deadline {
            return Err(timed_out());
        }
    }
    Ok(())
}

/// Waits until exactly `count` bytes can be read.
pub(super) fn wait_readable(slave: BorrowedFd<'_>, count: usize, deadline: Instant) -> Result<()> {
    while kernel::readable(slave).context(|| "get the length of the input")? < count {
        if Instant::now() > deadline {
            return Err(timed_out());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// One read; none if there is nothing (now).
pub(super) fn read(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 8192]; // more than a line discipline holds
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(buffer));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(std::io::Error::from(error)).context(|| "read what is under way"),
        }
    }
}

pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "write"),
        }
    }
    Ok(())
}
