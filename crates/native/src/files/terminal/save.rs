//! Reading terminals.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cpr_image::model::{ByteString, Bytes, MountNamespaceId, Object, Terminal, TerminalId};
use cpr_kernel::terminal::{self as kernel, Attributes};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags};

use super::queues::{Queues, is_hung_up, own_slave, poll, put_stopped};
use crate::files::{Description, SaveContext};
use crate::views::TerminalSystem;

const EXTPROC: u32 = 0o200000;
/// The most unread input that is put back: above it, part of the input may not have reached the line discipline yet.
const INPUT_LIMIT: usize = 3900;

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
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Side,
    /// The file system it is of, where that is not the job's own.
    pub(super) system: Option<TerminalSystem>,
    /// Process and descriptor it was first seen at, for messages.
    pub(super) label: String,
    pub(super) master: Option<OwnedFd>,
    pub(super) slave: Option<OwnedFd>,
    /// File system of the slave: there can be several /dev/pts.
    pub(super) device: Option<u64>,
    /// Where a console or serial line is.
    pub(super) path: Option<ByteString>,
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

    /// The terminal with this number in /proc/PID/stat of a process in a mount namespace, if it is open in the job.
    /// Where several have it, it is that of the process's own file system.
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
pub(super) fn line_path(handle: BorrowedFd<'_>, side: Side) -> Option<ByteString> {
    let Side::Line(rdev) = side else { return None };
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", handle.as_raw_fd()), Vec::new()).ok()?;
    let path = ByteString(link.into_bytes());
    let there = rustix::fs::stat(path.as_path()).ok()?;
    (there.st_rdev == rdev).then_some(path)
}

/// Opens a console or serial line; none if it is gone, or another one has its place.
pub(super) fn open_line(path: &ByteString, rdev: u64) -> Option<OwnedFd> {
    // With O_PATH nothing is done to a device that is not the one.
    let (node, stat) = crate::files::regular::locate(path).ok()?;
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

pub(super) fn is_line(rdev: u64) -> bool {
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

impl Entry {
    pub(super) fn name(&self) -> String {
        match self.key {
            Side::Slave(index) => format!("/dev/pts/{index}"),
            Side::Line(rdev) => format!("device {}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            Side::Master => "/dev/ptmx".to_owned(),
        }
    }

    /// The kernel's new_encode_dev().
    pub(super) fn device_number(&self) -> i32 {
        let (major, minor) = match self.key {
            Side::Slave(index) => (136, index),
            Side::Line(rdev) => (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            Side::Master => return -1,
        };
        ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)) as i32
    }

    /// `own`: those whose controlling terminal it is.
    pub(super) fn image(&self, own: &[Member], members: &[Member]) -> Result<Terminal> {
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

    pub(super) fn refuse(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!("{}: terminal {} {why}", self.label, self.name()),
        )
        .with_hint("try again when the program has gone on")
        .passing()
    }

    /// A master alone: nothing can be under way, or it would have to be seen from the other side.
    /// Tells whether the slave has been open, and was closed.
    pub(super) fn without_slave(&self, master: BorrowedFd<'_>) -> Result<bool> {
        let events = poll(master, PollFlags::IN | PollFlags::PRI, Duration::ZERO)?;
        if events.intersects(PollFlags::IN | PollFlags::PRI) {
            return Err(self.refuse("holds data of a process that has closed its side"));
        }
        Ok(events.contains(PollFlags::HUP))
    }

    /// Both queues, read and put back.
    pub(super) fn queues(
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
