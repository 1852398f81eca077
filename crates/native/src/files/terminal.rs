//! Terminals: pseudo-terminals of the job, and the terminal it was started on.
//!
//! A terminal whose master is held by a process of the job belongs to the job: both sides are made again, with
//! settings, window size and what is under way in both directions. Queues of a terminal cannot be looked at, so they
//! are read and put back while all processes are stopped ([`SaveState::finish`]); whatever makes it impossible to put
//! them back exactly is refused before anything is read.
//!
//! Any other terminal is *external*: restart supplies one ([`Terminals`]), which gets the saved line settings but keeps
//! its own window size and its own queues. Where it has none, a console or a serial line is opened again.
//!
//! The number below /dev/pts may be another one after restart.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, Bytes, FileId, MountNamespaceId, Object, OpenFile, Terminal, TerminalId};
use cpr_kernel::terminal::{self as kernel, Attributes};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::termios::Winsize;

use super::{Description, RestoreContext, SaveContext};
use crate::views::TerminalSystem;

/// File systems of terminals in mount namespaces of the job's own.
pub type TerminalSystems = HashMap<TerminalSystem, OwnedFd>;

/// The most unread input that is put back: above it, part of the input may not have reached the line discipline yet.
const INPUT_LIMIT: usize = 3900;
/// What the kernel's smallest terminal buffer holds.
const BUFFER: usize = 512;
/// What its largest terminal buffer holds.
const LAST: usize = 3584;
/// How long putting data back may take.
const PATIENCE: Duration = Duration::from_secs(5);

// c_lflag and c_cc of <asm-generic/termbits.h>.
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const IEXTEN: u32 = 0o100000;
const EXTPROC: u32 = 0o200000;
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VEOL2: usize = 16;

/// Which side of which terminal a device number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// /dev/ptmx.
    Master,
    /// /dev/pts/N.
    Slave(u32),
    /// A virtual console, a serial line or the like; always external.
    Line(u64),
}

/// Tells terminals from other character devices by `st_rdev`. /dev/tty is none: it stands for whatever terminal the
/// process that opens it has.
pub fn side(rdev: u64) -> Option<Side> {
    match (rustix::fs::major(rdev), rustix::fs::minor(rdev)) {
        (5, 2) => Some(Side::Master),
        (136, minor) => Some(Side::Slave(minor)),
        // Virtual consoles and serial lines, /dev/console, ttyAMA and its like, USB serial lines, hypervisor consoles.
        (4, _) | (5, 1) | (204, _) | (188, _) | (229, _) => Some(Side::Line(rdev)),
        _ => None,
    }
}

/// Terminals noted so far.
#[derive(Debug, Default)]
pub struct SaveState {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: Side,
    /// The file system it is of, where that is not the job's own.
    system: Option<TerminalSystem>,
    /// Process and descriptor it was first seen at, for messages.
    label: String,
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    /// File system of the slave: there can be several /dev/pts.
    device: Option<u64>,
    /// Where a console or serial line is.
    path: Option<ByteString>,
}

/// What a process knows of its controlling terminal, from /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The process.
    pub pid: i32,
    /// Its session.
    pub session: i32,
    /// Device number of its controlling terminal as in /proc/PID/stat; zero for none.
    pub terminal: i32,
    /// The terminal's foreground group.
    pub foreground: i32,
    /// The mount namespace it is in, where that has paths of its own.
    pub view: Option<MountNamespaceId>,
}

impl SaveState {
    /// Notes one side of a terminal of a file system (none for the job's own); none if `stat` is not of a terminal.
    ///
    /// # Errors
    /// The terminal cannot be asked for its number, or two of different /dev/pts have the same.
    pub fn note(
        &mut self,
        handle: BorrowedFd<'_>,
        stat: &rustix::fs::Stat,
        label: &str,
        system: Option<TerminalSystem>,
    ) -> Result<Option<Object>> {
        let what = || format!("{label}: look at the terminal");
        let Some(side) = side(stat.st_rdev) else {
            return Ok(None);
        };
        let key = match side {
            Side::Master => Side::Slave(kernel::slave_index(handle).context(what)?),
            other => other,
        };
        let index = match self
            .entries
            .iter()
            .position(|entry| (entry.key, entry.system) == (key, system))
        {
            Some(index) => index,
            None => {
                self.entries.push(Entry {
                    key,
                    system,
                    label: label.to_owned(),
                    master: None,
                    slave: None,
                    device: None,
                    path: line_path(handle, side),
                });
                self.entries.len() - 1
            }
        };
        let id = TerminalId(index as u32);
        let entry = &mut self.entries[index];
        if side == Side::Master {
            if entry.master.is_none() {
                entry.master = Some(handle.try_clone_to_owned().context(what)?);
            }
            return Ok(Some(Object::TerminalMaster(id)));
        }
        if *entry.device.get_or_insert(stat.st_dev) != stat.st_dev {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{label}: terminal {} exists twice, in different /dev/pts", entry.name()),
            ));
        }
        if entry.slave.is_none() {
            entry.slave = Some(handle.try_clone_to_owned().context(what)?);
        }
        Ok(Some(Object::TerminalSlave(id)))
    }

    /// The terminal with this number in /proc/PID/stat of a process in a mount namespace, if it is open in the job. Where
    /// several have it, it is that of the process's own file system.
    pub fn find(&self, terminal: i32, view: Option<MountNamespaceId>) -> Option<TerminalId> {
        let has_number = |(_, entry): &(usize, &Entry)| entry.device_number() == terminal;
        let mut all = self.entries.iter().enumerate().filter(has_number);
        let own = all.clone().find(|(_, entry)| entry.system.map(|(id, _)| id) == view);
        let (index, _) = own.or_else(|| all.next())?;
        Some(TerminalId(index as u32))
    }

    /// The images of all terminals. Reads queues and puts them back, so all processes must be stopped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when a queue cannot be put back as it was; then nothing was touched.
    pub fn finish(&self, members: &[Member]) -> Result<Vec<Terminal>> {
        let owned = |index: usize| {
            let is_of = |member: &&Member| {
                member.terminal != 0 && self.find(member.terminal, member.view) == Some(TerminalId(index as u32))
            };
            members.iter().filter(is_of).copied().collect::<Vec<_>>()
        };
        let each = self.entries.iter().enumerate();
        each.map(|(index, entry)| entry.image(&owned(index), members)).collect()
    }
}

/// The path of a console or serial line, if it leads there.
fn line_path(handle: BorrowedFd<'_>, side: Side) -> Option<ByteString> {
    let Side::Line(rdev) = side else { return None };
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", handle.as_raw_fd()), Vec::new()).ok()?;
    let path = ByteString(link.into_bytes());
    let there = rustix::fs::stat(path.as_path()).ok()?;
    (there.st_rdev == rdev).then_some(path)
}

/// Opens a console or serial line; none if it is gone, or another one has its place.
fn open_line(path: &ByteString, rdev: u64) -> Option<OwnedFd> {
    // With O_PATH nothing is done to a device that is not the one.
    let (node, stat) = super::regular::locate(path).ok()?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() || stat.st_rdev != rdev || !is_line(rdev) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let open = |access| {
        rustix::fs::open(
            &path,
            access | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).ok()
}

fn is_line(rdev: u64) -> bool {
    matches!(side(rdev), Some(Side::Line(_)))
}

/// Notes one side of a terminal; [`finish`] saves it.
///
/// # Errors
/// As [`SaveState::note`], and [`ErrorKind::Internal`] when `description` is no terminal.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let label = description.label();
    context
        .terminal_state
        .note(
            description.handle.as_fd(),
            &description.stat,
            &label,
            context.views.terminals(description.stat.st_dev),
        )?
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{label}: no terminal")))
}

/// Saves all terminals noted. All processes must be stopped.
///
/// # Errors
/// As [`SaveState::finish`].
pub fn finish(context: &mut SaveContext<'_>) -> Result<()> {
    let members: Vec<Member> = context
        .targets
        .iter()
        .map(|target| {
            let stat = target
                .proc
                .stat()
                .context(|| format!("read the session of process {}", target.pid))?;
            Ok(Member {
                pid: target.pid,
                session: stat.session,
                terminal: stat.tty_nr,
                foreground: stat.tpgid,
                view: context.apart.get(&target.pid).copied(),
            })
        })
        .collect::<Result<_>>()?;
    context.terminals = context.terminal_state.finish(&members)?;
    Ok(())
}

/// What a process that gives a job a terminal is to it in the sense of job control (tcsetpgrp(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JobControl {
    /// It is not its controlling terminal, or there is none.
    #[default]
    None,
    /// The terminal is in use by others: the job leaves its settings alone.
    Background,
    /// The terminal is the job's: it gets the saved settings, and the group that was in its foreground is there again.
    Foreground,
}

/// Makes all terminals of the image, unless that has been done.
///
/// # Errors
/// As [`Terminals::create`].
pub fn create_all(context: &mut RestoreContext<'_>) -> Result<()> {
    if context.terminals.is_some() {
        return Ok(());
    }
    let objects = context.manifest.files.iter().map(|file| &file.object);
    let adopts = context.job_control != JobControl::Background;
    let terminals = Terminals::create(
        &context.manifest.terminals,
        objects,
        context.terminal.map(AsFd::as_fd),
        adopts,
        context.terminal_systems,
    )?;
    context.terminals = Some(terminals);
    Ok(())
}

/// Opens a side of a terminal made by [`create_all`]. A standard stream of an external terminal becomes whatever the
/// restart was given for it.
///
/// # Errors
/// As [`Terminals::open`], and [`ErrorKind::Incompatible`] when the job needs a terminal and there is none.
pub fn restore(file: &OpenFile, id: FileId, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let Some(terminals) = &context.terminals else {
        return Err(Error::new(
            ErrorKind::Internal,
            "terminals are opened before they are made",
        ));
    };
    if let Some(fd) = terminals.open(&context.manifest.terminals, file)? {
        return Ok(fd);
    }
    let users = || {
        let all = context.manifest.processes.iter();
        all.flat_map(|process| process.descriptors.iter().map(move |d| (process.pid, d)))
            .filter(|(_, descriptor)| descriptor.file == id)
    };
    for (_, descriptor) in users() {
        let stream = usize::try_from(descriptor.fd)
            .ok()
            .and_then(|fd| context.streams.get(fd));
        if let Some(Some(stream)) = stream {
            return stream.try_clone().context(|| "copy a standard stream");
        }
    }
    let user = users().next().map_or_else(
        || "a descriptor in flight".to_owned(),
        |(pid, descriptor)| format!("process {pid} descriptor {}", descriptor.fd),
    );
    Err(Error::new(ErrorKind::Incompatible, format!("{user} needs a terminal"))
        .with_hint("restart it on a terminal or with -t"))
}

/// Puts back what was under way on the job's terminals, when all open files of the image exist.
///
/// # Errors
/// As [`Terminals::fill`].
pub fn fill_queues(context: &mut RestoreContext<'_>) -> Result<()> {
    match &mut context.terminals {
        Some(terminals) => terminals.fill(&context.manifest.terminals),
        None => Ok(()),
    }
}

/// A descriptor of terminal `id`, to make it the controlling terminal of a session with.
pub fn slave_for<'a>(id: TerminalId, context: &'a RestoreContext<'_>) -> Option<BorrowedFd<'a>> {
    context.terminals.as_ref()?.slave_for(id)
}

impl Entry {
    fn name(&self) -> String {
        match self.key {
            Side::Slave(index) => format!("/dev/pts/{index}"),
            Side::Line(rdev) => format!("device {}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            Side::Master => "/dev/ptmx".to_owned(),
        }
    }

    /// The kernel's new_encode_dev().
    fn device_number(&self) -> i32 {
        let (major, minor) = match self.key {
            Side::Slave(index) => (136, index),
            Side::Line(rdev) => (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            Side::Master => return -1,
        };
        ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)) as i32
    }

    /// `own`: those whose controlling terminal it is.
    fn image(&self, own: &[Member], members: &[Member]) -> Result<Terminal> {
        let what = || format!("{}: save terminal {}", self.label, self.name());
        let Some(any) = self.slave.as_ref().or(self.master.as_ref()).map(AsFd::as_fd) else {
            return Err(Error::new(ErrorKind::Internal, what()));
        };
        if let (Side::Slave(index), None) = (self.key, &self.master)
            && is_hung_up(any)?
        {
            // Nothing is left of it but that every use fails.
            return Ok(Terminal {
                index,
                file_system: self.system,
                hung_up: true,
                attributes: Bytes(Attributes::default().to_bytes().to_vec()),
                ..Terminal::default()
            });
        }
        let attributes = kernel::attributes(any).context(what)?;
        let window = rustix::termios::tcgetwinsize(any)
            .map_err(std::io::Error::from)
            .context(what)?;
        let stat = rustix::fs::fstat(any).map_err(std::io::Error::from).context(what)?;
        if self.system.is_some() && self.master.is_none() {
            return Err(self.refuse("is of a file system of the job's own, and its other side is outside the job"));
        }
        let member = own.first();
        let owned = |member: &&Member| members.iter().any(|leader| leader.pid == member.session);
        let mut image = Terminal {
            index: match self.key {
                Side::Slave(index) => index,
                Side::Line(rdev) => rustix::fs::minor(rdev),
                Side::Master => 0,
            },
            line: match self.key {
                Side::Line(rdev) => self.path.clone().map(|path| (path, rdev)),
                _ => None,
            },
            file_system: self.system,
            external: self.master.is_none(),
            attributes: Bytes(attributes.to_bytes().to_vec()),
            window: (window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel),
            session: member.filter(owned).map_or(0, |member| member.session),
            foreground_group: member.map_or(0, |member| member.foreground.max(0)),
            exclusive: kernel::exclusive(any).context(what)?,
            ..Terminal::default()
        };
        if self.slave.is_some() {
            image.node = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        }
        let Some(master) = self.master.as_ref().map(AsFd::as_fd) else {
            return Ok(image);
        };
        image.locked = kernel::locked(master).context(what)?;
        image.packet_mode = kernel::packet_mode(master).context(what)?;
        (image.input, image.output) = match &self.slave {
            Some(slave) => self.queues(master, slave.as_fd(), &attributes, &image).context(what)?,
            None => {
                image.slave_closed = self.without_slave(master).context(what)?;
                Default::default()
            }
        };
        Ok(image)
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!("{}: terminal {} {why}", self.label, self.name()),
        )
        .with_hint("try again when the program has gone on")
    }

    /// A master alone: nothing can be under way, or it would have to be seen from the other side.
    /// Tells whether the slave has been open, and was closed.
    fn without_slave(&self, master: BorrowedFd<'_>) -> Result<bool> {
        let events = poll(master, PollFlags::IN | PollFlags::PRI, Duration::ZERO)?;
        if events.intersects(PollFlags::IN | PollFlags::PRI) {
            return Err(self.refuse("holds data of a process that has closed its side"));
        }
        Ok(events.contains(PollFlags::HUP))
    }

    /// Both queues, read and put back.
    fn queues(
        &self,
        master: BorrowedFd<'_>,
        slave: BorrowedFd<'_>,
        attributes: &Attributes,
        image: &Terminal,
    ) -> Result<(Bytes, Bytes)> {
        if kernel::line_discipline(slave).context(|| "get the line discipline")? != 0 {
            return Err(self.refuse("has a line discipline other than N_TTY"));
        }
        if attributes.local & EXTPROC != 0 {
            return Err(self.refuse("processes lines outside (EXTPROC)"));
        }
        if poll(master, PollFlags::PRI, Duration::ZERO)?.contains(PollFlags::PRI) {
            return Err(self.refuse("holds a packet-mode status that has not been read"));
        }
        let unread = kernel::readable(master).context(|| "get the length of the output")?;
        let writable = poll(slave, PollFlags::OUT, Duration::ZERO)?.contains(PollFlags::OUT);
        if !writable && unread < INPUT_LIMIT {
            return Err(self.refuse("has its output stopped (control-S)"));
        }
        let input = kernel::readable(slave).context(|| "get the length of the input")?;
        if input > INPUT_LIMIT {
            return Err(self.refuse(&format!("holds {input} bytes of unread input")));
        }
        // A description of our own, so that the job's status flags stay as they are.
        let slave = own_slave(master, slave, image)?;
        let slave = slave.as_fd();
        if image.packet_mode {
            kernel::set_packet_mode(master, false).context(|| "leave packet mode")?;
        }
        let mut queues = Queues::default();
        let taken = queues.take(master, slave, attributes);
        // Output that was full has room now; output that is stopped has none.
        let stopped = !writable && !poll(slave, PollFlags::OUT, Duration::ZERO)?.contains(PollFlags::OUT);
        // Whatever was read goes back, even when reading went wrong halfway.
        let put = if stopped {
            let put = put_stopped(&queues, master, slave, attributes);
            put.and(Err(self.refuse("has its output stopped (control-S)")))
        } else {
            queues.put(master, slave, attributes)
        };
        let settings = kernel::set_attributes(master, attributes).context(|| "put the settings back");
        if image.packet_mode {
            kernel::set_packet_mode(master, true).context(|| "go back to packet mode")?;
        }
        taken.and(put).and(settings)?;
        Ok((Bytes(queues.input), Bytes(queues.output)))
    }
}

/// What is under way on a terminal.
#[derive(Debug, Default)]
struct Queues {
    /// To the slave. In canonical mode an end of file is the character that makes one.
    input: Vec<u8>,
    /// To the master.
    output: Vec<u8>,
}

impl Queues {
    /// Reads both queues until they are empty.
    fn take(&mut self, master: BorrowedFd<'_>, slave: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
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
    fn put(&self, master: BorrowedFd<'_>, slave: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
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
    fn put_output(&self, slave: BorrowedFd<'_>) -> Result<()> {
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

    fn put_input(
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
fn put_stopped(queues: &Queues, master: BorrowedFd<'_>, slave: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
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
fn quiet(attributes: &Attributes) -> Attributes {
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
fn is(byte: u8, special: u8) -> bool {
    special != 0 && byte == special
}

fn ends_line(byte: u8, attributes: &Attributes) -> bool {
    byte == b'\n'
        || is(byte, attributes.characters[VEOL])
        || (attributes.local & IEXTEN != 0 && is(byte, attributes.characters[VEOL2]))
}

/// Whether the other side of a terminal has been closed for good.
///
/// # Errors
/// It cannot be polled.
pub(super) fn is_hung_up(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(poll(fd, PollFlags::empty(), Duration::ZERO)?.contains(PollFlags::HUP))
}

/// Another, non-blocking description of the slave.
fn own_slave(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, image: &Terminal) -> Result<OwnedFd> {
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

fn poll(fd: BorrowedFd<'_>, events: PollFlags, timeout: Duration) -> Result<PollFlags> {
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

fn timed_out() -> Error {
    Error::new(ErrorKind::TimedOut, "the terminal does not take its data back")
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> Result<()> {
    // In slices, because the kernel wakes nobody when its worker makes room by moving data on.
    while !poll(fd, events, Duration::from_millis(1))?.contains(events) {
        if Instant::now() > deadline {
            return Err(timed_out());
        }
    }
    Ok(())
}

/// Waits until exactly `count` bytes can be read.
fn wait_readable(slave: BorrowedFd<'_>, count: usize, deadline: Instant) -> Result<()> {
    while kernel::readable(slave).context(|| "get the length of the input")? < count {
        if Instant::now() > deadline {
            return Err(timed_out());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// One read; none if there is nothing (now).
fn read(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
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

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "write"),
        }
    }
    Ok(())
}

/// The terminals of an image, made again.
#[derive(Debug)]
pub struct Terminals {
    pairs: Vec<Option<Pair>>,
    /// Consoles and serial lines, opened because restart was given no terminal.
    lines: Vec<Option<OwnedFd>>,
    /// What replaces external terminals.
    external: Option<OwnedFd>,
}

#[derive(Debug)]
struct Pair {
    master: OwnedFd,
    /// A description of our own; none where the image has the master alone, for which closing it would be a hang-up.
    slave: Option<OwnedFd>,
}

impl Terminals {
    /// Makes the job's terminals and prepares `external`, the terminal in place of the one the job was started on. It
    /// gets the saved settings if the job `adopts` it. `objects` are those of all open files of the image.
    ///
    /// # Errors
    /// A pseudo-terminal cannot be made, or settings are damaged.
    pub fn create<'a>(
        terminals: &[Terminal],
        objects: impl Iterator<Item = &'a Object>,
        external: Option<BorrowedFd<'_>>,
        adopts: bool,
        systems: Option<&TerminalSystems>,
    ) -> Result<Terminals> {
        let mut has_slave = vec![false; terminals.len()];
        for object in objects {
            if let Object::TerminalSlave(id) = object
                && let Some(slot) = has_slave.get_mut(id.index())
            {
                *slot = true;
            }
        }
        let mut pairs = Vec::with_capacity(terminals.len());
        let mut lines = Vec::with_capacity(terminals.len());
        for (terminal, has_slave) in terminals.iter().zip(has_slave) {
            if terminal.external {
                let line = match (&external, &terminal.line) {
                    (None, Some((path, rdev))) => open_line(path, *rdev),
                    _ => None,
                };
                if let Some(external) = external.filter(|_| adopts).or(line.as_ref().map(AsFd::as_fd)) {
                    kernel::set_attributes_blocking_ttou(external, &attributes(terminal)?)
                        .context(|| "set the line settings of the terminal")?;
                }
                lines.push(line);
                pairs.push(None);
            } else {
                lines.push(None);
                let open_slave = has_slave || terminal.slave_closed || terminal.hung_up;
                let missing = || Error::new(ErrorKind::Damaged, "there is no such file system of terminals");
                let system = match terminal.file_system {
                    None => None,
                    Some(system) => Some(systems.and_then(|all| all.get(&system)).ok_or_else(missing)?.as_fd()),
                };
                let pair = make(terminal, open_slave, system).context(|| describe(terminal, "make"))?;
                pairs.push(Some(pair));
            }
        }
        let external = external
            .map(|fd| fd.try_clone_to_owned())
            .transpose()
            .context(|| "copy the descriptor of the terminal")?;
        Ok(Terminals { pairs, lines, external })
    }

    /// Opens a side of a terminal with an open file's flags. For an external terminal none was given for: none.
    ///
    /// # Errors
    /// There is no such terminal, or it cannot be opened.
    pub fn open(&self, terminals: &[Terminal], file: &OpenFile) -> Result<Option<OwnedFd>> {
        let (id, master) = match file.object {
            Object::TerminalMaster(id) => (id, true),
            Object::TerminalSlave(id) => (id, false),
            _ => return Err(Error::new(ErrorKind::Internal, "an open file is no terminal")),
        };
        let (Some(terminal), Some(pair)) = (terminals.get(id.index()), self.pairs.get(id.index())) else {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the image has no terminal {}", id.0),
            ));
        };
        let what = || describe(terminal, "open");
        match pair {
            Some(pair) if master => {
                let flags = OFlags::from_bits_retain(file.flags as u32) & OFlags::NONBLOCK;
                rustix::fs::fcntl_setfl(&pair.master, flags)
                    .map_err(std::io::Error::from)
                    .context(what)?;
                pair.master.try_clone().context(what).map(Some)
            }
            Some(pair) => kernel::open_slave(pair.master.as_fd(), file.flags & OPEN_FLAGS)
                .context(what)
                .map(Some),
            None => match self.outer(id) {
                Some(external) => reopen(external.as_fd(), file.flags).context(what).map(Some),
                None => Ok(None),
            },
        }
    }

    /// Puts queues back and does what must come after: modes, owner, locks. Call it when all sides are open.
    ///
    /// # Errors
    /// A queue does not take its data, or a setting is refused.
    pub fn fill(&mut self, terminals: &[Terminal]) -> Result<()> {
        for (terminal, pair) in terminals.iter().zip(&mut self.pairs) {
            if terminal.hung_up {
                // The last descriptor of the master.
                *pair = None;
                continue;
            }
            if let Some(pair) = pair {
                pair.fill(terminal).context(|| describe(terminal, "restore"))?;
            }
        }
        Ok(())
    }

    /// A descriptor to make a terminal the controlling one of a session with.
    pub fn slave_for(&self, id: TerminalId) -> Option<BorrowedFd<'_>> {
        match self.pairs.get(id.index())? {
            Some(pair) => pair.slave.as_ref().map(AsFd::as_fd),
            None => self.outer(id).map(AsFd::as_fd),
        }
    }

    /// What replaces external terminal `id`.
    fn outer(&self, id: TerminalId) -> Option<&OwnedFd> {
        let line = self.lines.get(id.index()).and_then(Option::as_ref);
        self.external.as_ref().or(line)
    }
}

/// Flags that matter when a terminal is opened.
const OPEN_FLAGS: i32 = 0o3 | 0o4000; // O_ACCMODE, O_NONBLOCK

fn describe(terminal: &Terminal, verb: &str) -> String {
    format!("{verb} terminal /dev/pts/{} of the image", terminal.index)
}

fn attributes(terminal: &Terminal) -> Result<Attributes> {
    Attributes::from_bytes(&terminal.attributes.0)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, describe(terminal, "decode the settings of")))
}

/// A new terminal of a file system that is not the job's own, with the number it had: the kernel gives the lowest free one.
fn numbered(system: BorrowedFd<'_>, index: u32) -> Result<OwnedFd> {
    let mut lower = Vec::new();
    loop {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let master = rustix::fs::openat(system, "ptmx", flags, Mode::empty())
            .map_err(std::io::Error::from)
            .context(|| "open ptmx in a file system of terminals")?;
        if kernel::slave_index(master.as_fd()).context(|| "ask for its number")? >= index {
            return Ok(master);
        }
        lower.push(master);
    }
}

fn make(terminal: &Terminal, has_slave: bool, system: Option<BorrowedFd<'_>>) -> Result<Pair> {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let master = match system {
        Some(system) => numbered(system, terminal.index)?,
        None => rustix::pty::openpt(flags)
            .map_err(std::io::Error::from)
            .context(|| "open /dev/ptmx")?,
    };
    kernel::set_locked(master.as_fd(), false).context(|| "unlock")?;
    let slave = if has_slave {
        let flags = (OFlags::RDWR | OFlags::NONBLOCK).bits() as i32;
        Some(kernel::open_slave(master.as_fd(), flags).context(|| "open the slave side")?)
    } else {
        None
    };
    let (ws_row, ws_col, ws_xpixel, ws_ypixel) = terminal.window;
    let size = Winsize {
        ws_row,
        ws_col,
        ws_xpixel,
        ws_ypixel,
    };
    rustix::termios::tcsetwinsize(&master, size)
        .map_err(std::io::Error::from)
        .context(|| "set the window size")?;
    kernel::set_attributes(master.as_fd(), &attributes(terminal)?).context(|| "set the line settings")?;
    Ok(Pair { master, slave })
}

impl Pair {
    fn fill(&self, terminal: &Terminal) -> Result<()> {
        let attributes = attributes(terminal)?;
        let master = self.master.as_fd();
        if let Some(slave) = &self.slave {
            let queues = Queues {
                input: terminal.input.0.clone(),
                output: terminal.output.0.clone(),
            };
            queues.put(master, slave.as_fd(), &attributes)?;
            kernel::set_attributes(master, &attributes).context(|| "set the line settings")?;
            let (mode, uid, gid) = terminal.node;
            // The kernel made the node with an owner that suits; another can only be given by root.
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let _ = rustix::fs::fchown(slave, Some(user), Some(group));
            let _ = rustix::fs::fchmod(slave, Mode::from_raw_mode(mode & 0o777));
        }
        if terminal.exclusive {
            kernel::set_exclusive(self.slave.as_ref().map_or(master, AsFd::as_fd), true)
                .context(|| "set exclusive mode")?;
        }
        if terminal.locked {
            kernel::set_locked(master, true).context(|| "lock")?;
        }
        if terminal.packet_mode {
            kernel::set_packet_mode(master, true).context(|| "set packet mode")?;
        }
        Ok(())
    }
}

/// Another description of the same terminal; where that is not allowed, another descriptor of the same description.
fn reopen(terminal: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let flags = OFlags::from_bits_retain((flags & OPEN_FLAGS) as u32) | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(_) => terminal.try_clone_to_owned().context(|| "copy its descriptor"),
    }
}
