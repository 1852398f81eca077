//! A job's own terminal: relayed to the caller's terminal in the foreground, to `attach` when the job is detached.
//!
//! `attach` talks to the supervisor over a UNIX socket in the job's directory. From client to supervisor go frames: a
//! kind byte (`d` data, `w` window size), a 16-bit big-endian length, and the payload (four 16-bit big-endian numbers
//! for `w`). The other way goes what the terminal shows, as it is, until the job ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cpr_kernel::spawn;
use cpr_kernel::terminal_relay::{self, Pair, RawMode};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::job::{Job, SOCKET};
use crate::outcome::Outcome;
use crate::wire::{wait, write_all};

/// Key that leaves `attach`: Ctrl-].
pub const DETACH_KEY: u8 = 0x1d;
/// SIGWINCH.
pub(crate) const WINDOW: i32 = 28;
/// Most bytes kept for a client that does not read; then it is dropped.
const CLIENT_BACKLOG: usize = 1 << 20;
const FRAME_HEADER: usize = 3;

struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    output: VecDeque<u8>,
    dead: bool,
}

/// The supervisor's side of a job's terminal.
pub(crate) struct Relay {
    /// The slave stays open here, so that the terminal does not hang up between two programs of the job.
    pub(crate) pair: Pair,
    /// Typed, not yet taken by the terminal.
    pending: VecDeque<u8>,
    local: Option<Local>,
    listener: Option<OwnedFd>,
    clients: Vec<Client>,
}

struct Local {
    input: Option<OwnedFd>,
    output: OwnedFd,
    _raw: Option<RawMode>,
}

/// What a descriptor of [`Relay::polled`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Master,
    Local,
    Listener,
    Client(usize),
}

impl Relay {
    /// A terminal shown on the caller's standard streams.
    pub(crate) fn foreground() -> Result<Relay> {
        let what = || "relay the terminal";
        let pair = terminal_relay::open_pair().context(|| "make a terminal for the job")?;
        let input = io::stdin().as_fd().try_clone_to_owned().context(what)?;
        let output = io::stdout().as_fd().try_clone_to_owned().context(what)?;
        let mut raw = None;
        if rustix::termios::isatty(&input) {
            // The job's terminal begins like the caller's; where that fails it has the kernel's defaults.
            let _ = terminal_relay::copy_settings(input.as_fd(), pair.slave.as_fd());
            raw = Some(RawMode::enter(input.as_fd()).context(what)?);
        }
        let relay = Relay {
            pair,
            pending: VecDeque::new(),
            local: Some(Local {
                input: Some(input),
                output,
                _raw: raw,
            }),
            listener: None,
            clients: Vec::new(),
        };
        relay.resize_from_local();
        Ok(relay)
    }

    /// A terminal that waits for `attach`.
    pub(crate) fn detached(job: &Job) -> Result<Relay> {
        let pair = terminal_relay::open_pair().context(|| "make a terminal for the job")?;
        terminal_relay::set_window_size(pair.master.as_fd(), [24, 80, 0, 0]).context(|| "size the terminal")?;
        Ok(Relay {
            pair,
            pending: VecDeque::new(),
            local: None,
            listener: Some(listen(job)?),
            clients: Vec::new(),
        })
    }

    /// Gives the job's terminal the size of the caller's.
    pub(crate) fn resize_from_local(&self) {
        let Some(local) = &self.local else { return };
        // Not every caller has a terminal.
        if let Ok(size) = terminal_relay::window_size(local.output.as_fd()) {
            let _ = terminal_relay::set_window_size(self.pair.master.as_fd(), size);
        }
    }

    /// What to wait for.
    pub(crate) fn polled(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut list = Vec::new();
        let room = self.pending.is_empty();
        let master = if room {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        list.push((Source::Master, self.pair.master.as_fd(), master));
        if let Some(input) = self.local.as_ref().and_then(|l| l.input.as_ref()).filter(|_| room) {
            list.push((Source::Local, input.as_fd(), PollFlags::IN));
        }
        if let Some(listener) = &self.listener {
            list.push((Source::Listener, listener.as_fd(), PollFlags::IN));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if room {
                flags |= PollFlags::IN;
            }
            if !client.output.is_empty() {
                flags |= PollFlags::OUT;
            }
            list.push((Source::Client(index), client.socket.as_fd(), flags));
        }
        list
    }

    /// Does what can be done without waiting.
    pub(crate) fn serve(&mut self, ready: &[Source]) {
        for source in ready {
            match source {
                Source::Master => {
                    self.flush_input();
                    self.drain();
                }
                Source::Local => self.read_local(),
                Source::Listener => self.accept(),
                Source::Client(index) => self.serve_client(*index),
            }
        }
        self.clients.retain(|c| !c.dead);
    }

    fn flush_input(&mut self) {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match rustix::io::write(&self.pair.master, front) {
                Ok(n) => {
                    self.pending.drain(..n);
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Shows everything the job has written so far.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0u8; 16384];
        loop {
            match rustix::io::read(&self.pair.master, &mut buffer) {
                Ok(0) => break,
                Ok(n) => self.show(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        match &self.local {
            Some(local) => {
                // The caller's terminal may have gone; the job goes on.
                let _ = write_all(local.output.as_fd(), bytes);
            }
            None => {
                // Detached: standard output is the log.
                let _ = write_all(io::stdout().as_fd(), bytes);
            }
        }
        for client in &mut self.clients {
            client.output.extend(bytes);
            flush_client(client);
        }
    }

    fn read_local(&mut self) {
        let Some(local) = &mut self.local else { return };
        let Some(input) = &local.input else { return };
        let mut buffer = [0u8; 4096];
        match rustix::io::read(input, &mut buffer) {
            Ok(0) => {
                // End of the caller's input: end of file for whoever reads the terminal line by line.
                self.pending.push_back(4);
                local.input = None;
            }
            Ok(n) => self.pending.extend(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => local.input = None,
        }
        self.flush_input();
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(listener, flags) else {
            return;
        };
        let own = rustix::process::geteuid();
        let permitted = rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|c| c.uid == own || c.uid.is_root());
        if permitted {
            self.clients.push(Client {
                socket,
                input: Vec::new(),
                output: VecDeque::new(),
                dead: false,
            });
        }
    }

    fn serve_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        flush_client(client);
        let mut buffer = [0u8; 4096];
        match rustix::io::read(&client.socket, &mut buffer) {
            Ok(0) => client.dead = true,
            Ok(n) => client.input.extend_from_slice(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => client.dead = true,
        }
        while let Some((kind, payload)) = take_frame(&mut client.input) {
            match kind {
                b'd' => self.pending.extend(payload),
                b'w' if payload.len() == 8 => {
                    let number = |i: usize| u16::from_be_bytes([payload[2 * i], payload[2 * i + 1]]);
                    let size = [number(0), number(1), number(2), number(3)];
                    let _ = terminal_relay::set_window_size(self.pair.master.as_fd(), size);
                }
                _ => client.dead = true,
            }
        }
        self.flush_input();
    }
}

fn flush_client(client: &mut Client) {
    while !client.output.is_empty() {
        let (front, _) = client.output.as_slices();
        match rustix::net::send(&client.socket, front, rustix::net::SendFlags::NOSIGNAL) {
            Ok(n) => {
                client.output.drain(..n);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                client.dead |= client.output.len() > CLIENT_BACKLOG;
                return;
            }
            Err(_) => {
                client.dead = true;
                return;
            }
        }
    }
}

fn take_frame(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let header = input.get(..FRAME_HEADER)?;
    let length = usize::from(u16::from_be_bytes([header[1], header[2]]));
    let kind = header[0];
    let payload = input.get(FRAME_HEADER..FRAME_HEADER + length)?.to_vec();
    input.drain(..FRAME_HEADER + length);
    Some((kind, payload))
}

fn send_frame(socket: BorrowedFd<'_>, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u16::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = vec![kind];
    frame.extend(length.to_be_bytes());
    frame.extend(payload);
    write_all(socket, &frame)
}

fn address(job: &Job) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(job.directory.short_path(SOCKET))
        .map_err(io::Error::from)
        .context(|| "name the job's socket")
}

fn socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .context(|| "make a socket")
}

fn listen(job: &Job) -> Result<OwnedFd> {
    let what = || format!("listen for `cpr attach {}`", job.name());
    // Left by a supervisor that was killed; we hold the job's lock.
    job.directory.remove(SOCKET)?;
    let socket = socket()?;
    rustix::net::bind(&socket, &address(job)?)
        .map_err(io::Error::from)
        .context(what)?;
    rustix::fs::chmodat(
        &job.directory,
        SOCKET,
        rustix::fs::Mode::from_raw_mode(0o600),
        rustix::fs::AtFlags::empty(),
    )
    .map_err(io::Error::from)
    .context(what)?;
    rustix::net::listen(&socket, 8).map_err(io::Error::from).context(what)?;
    rustix::io::ioctl_fionbio(&socket, true)
        .map_err(io::Error::from)
        .context(what)?;
    Ok(socket)
}

impl Job {
    /// Shows the terminal of a detached job on the caller's, until the job ends or [`DETACH_KEY`] is typed.
    pub fn attach(&self) -> Result<Outcome> {
        if !self.spec().terminal {
            return Err(
                Error::new(ErrorKind::Usage, format!("job {} has no terminal", self.name()))
                    .with_hint(format!("`cpr logs {}` shows its output", self.name())),
            );
        }
        self.living()?;
        let what = || format!("attach to job {}", self.name());
        let socket = socket()?;
        rustix::net::connect(&socket, &address(self)?)
            .map_err(io::Error::from)
            .context(what)
            .map_err(|e| e.with_hint("a job in the foreground shows its terminal where it was started"))?;
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let terminal = rustix::termios::isatty(stdin.as_fd());
        let raw = if terminal {
            Some(RawMode::enter(stdin.as_fd()).context(what)?)
        } else {
            None
        };
        let before = spawn::block_signals(&[WINDOW]).context(what)?;
        let signals = spawn::signal_fd(&[WINDOW]).context(what)?;
        let end = relay_client(socket.as_fd(), stdin.as_fd(), stdout.as_fd(), signals.as_fd()).context(what);
        spawn::set_signal_mask(&before).context(what)?;
        drop(raw);
        match end? {
            End::Detached => Ok(Outcome::Detached {
                name: self.name().to_string(),
            }),
            End::Closed => self.wait(None),
        }
    }
}

enum End {
    Detached,
    Closed,
}

fn relay_client(
    socket: BorrowedFd<'_>,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
) -> io::Result<End> {
    let resize = || match terminal_relay::window_size(output) {
        Ok(size) => send_frame(socket, b'w', &size.map(u16::to_be_bytes).concat()),
        Err(_) => Ok(()),
    };
    // A supervisor that has just ended is noticed below.
    let _ = resize();
    let mut open = true;
    let mut buffer = [0u8; 4096];
    loop {
        let mut polled = vec![(socket, PollFlags::IN), (signals, PollFlags::IN)];
        if open {
            polled.push((input, PollFlags::IN));
        }
        let ready = wait(&polled, None)?;
        if ready[0] {
            match rustix::io::read(socket, &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(End::Closed),
                Ok(n) => write_all(output, &buffer[..n])?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if ready[1] && spawn::read_signal(signals)?.is_some() {
            let _ = resize();
        }
        if ready.get(2) == Some(&true) {
            match rustix::io::read(input, &mut buffer) {
                Ok(0) => open = false,
                Ok(n) => {
                    let typed = &buffer[..n];
                    let end = typed.iter().position(|&b| b == DETACH_KEY);
                    let _ = send_frame(socket, b'd', &typed[..end.unwrap_or(n)]);
                    if end.is_some() {
                        return Ok(End::Detached);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => open = false,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_whole() {
        let mut input = vec![b'd', 0, 3, b'a', b'b'];
        assert!(take_frame(&mut input).is_none());
        input.extend(b"cw\0\0x");
        assert_eq!(take_frame(&mut input), Some((b'd', b"abc".to_vec())));
        assert_eq!(take_frame(&mut input), Some((b'w', Vec::new())));
        assert!(take_frame(&mut input).is_none());
    }
}
