//! Making terminals again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cpr_image::model::{FileId, Object, OpenFile, Terminal, TerminalId};
use cpr_kernel::terminal::{self as kernel, Attributes};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::termios::Winsize;

use super::TerminalSystems;
use super::queues::Queues;
use super::save::open_line;
use crate::files::RestoreContext;

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
    context.notes.extend(terminals.renamed(&context.manifest.terminals));
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

/// The terminals of an image, made again.
#[derive(Debug)]
pub struct Terminals {
    pub(super) pairs: Vec<Option<Pair>>,
    /// Consoles and serial lines, opened because restart was given no terminal.
    pub(super) lines: Vec<Option<OwnedFd>>,
    /// What replaces external terminals.
    pub(super) external: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) master: OwnedFd,
    /// A description of our own; none where the image has the master alone, for which closing it would be a hang-up.
    pub(super) slave: Option<OwnedFd>,
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

    /// Names the terminals that have another number now, since somebody else had theirs.
    fn renamed(&self, terminals: &[Terminal]) -> Vec<String> {
        let renamed = |(terminal, pair): (&Terminal, &Option<Pair>)| {
            let (had, has) = (terminal.index, kernel::slave_index(pair.as_ref()?.master.as_fd()).ok()?);
            let text = format!("terminal /dev/pts/{had} of the job is /dev/pts/{has} now: the number was taken");
            (had != has).then_some(text)
        };
        terminals.iter().zip(&self.pairs).filter_map(renamed).collect()
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
    pub(super) fn outer(&self, id: TerminalId) -> Option<&OwnedFd> {
        let line = self.lines.get(id.index()).and_then(Option::as_ref);
        self.external.as_ref().or(line)
    }
}

/// So many terminals are opened to get at the number of the next.
const MOST_LOWER: usize = 1024;

/// Flags that matter when a terminal is opened.
pub(super) const OPEN_FLAGS: i32 = 0o3 | 0o4000 | 0o100000; // O_ACCMODE, O_NONBLOCK, O_LARGEFILE

fn describe(terminal: &Terminal, verb: &str) -> String {
    format!("{verb} terminal /dev/pts/{} of the image", terminal.index)
}

pub(super) fn attributes(terminal: &Terminal) -> Result<Attributes> {
    Attributes::from_bytes(&terminal.attributes.0)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, describe(terminal, "decode the settings of")))
}

/// A new terminal with the number it had, or with the lowest free one above: the kernel gives the lowest free one.
pub(super) fn numbered(open: impl Fn() -> std::io::Result<OwnedFd>, index: u32) -> Result<OwnedFd> {
    let mut lower: Vec<OwnedFd> = Vec::new();
    loop {
        let master = match (open(), lower.pop()) {
            (Err(error), None) => return Err(error).context(|| "open ptmx"),
            // There are no more terminals or descriptors to be had.
            (Err(_), Some(last)) => return Ok(last),
            (Ok(master), last) => {
                lower.extend(last);
                master
            }
        };
        let number = kernel::slave_index(master.as_fd()).context(|| "ask for its number")?;
        if number >= index || lower.len() >= MOST_LOWER {
            return Ok(master);
        }
        lower.push(master);
    }
}

/// Opens ptmx in a file system of terminals, or that of the machine.
pub(super) fn open_master(system: Option<BorrowedFd<'_>>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match system {
        Some(system) => rustix::fs::openat(system, "ptmx", flags, Mode::empty()),
        None => rustix::pty::openpt(
            rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
        ),
    };
    opened.map_err(std::io::Error::from)
}

pub(super) fn make(terminal: &Terminal, has_slave: bool, system: Option<BorrowedFd<'_>>) -> Result<Pair> {
    let master = numbered(|| open_master(system), terminal.index)?;
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
    pub(super) fn fill(&self, terminal: &Terminal) -> Result<()> {
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
pub(super) fn reopen(terminal: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let flags = OFlags::from_bits_retain((flags & OPEN_FLAGS) as u32) | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(_) => terminal.try_clone_to_owned().context(|| "copy its descriptor"),
    }
}
