//! Where the tracking of a job's writes is kept between checkpoints: with its supervisor.
//!
//! A checkpoint that is asked for connects to the supervisor over a UNIX socket in the job's directory and takes over
//! what is kept; its worker gives back what is to be kept of the new image over the same connection. Whatever goes
//! wrong, nothing is kept, and the next image is a full one. What is handed over comes as messages with descriptors (a
//! file in memory with a description as JSON, then one descriptor for each process), ended by one without.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_kernel::fd::{SENT_TOGETHER, send_descriptors};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::engine::{CheckpointReport, Earlier, Image, Tracked};
use crate::wire::wait;

const SOCKET: &str = "tracking.sock";
/// Most descriptors taken from anybody.
const MOST: usize = 1 << 16;
/// Longest description.
const LONGEST: u64 = 16 << 20;
/// How long the supervisor is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is kept: which image it goes on from, and the descriptors that hold the tracking up.
#[derive(Debug)]
pub(crate) struct Kept {
    description: Description,
    descriptors: Vec<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    image: PathBuf,
    root_hash: String,
    /// PID in the job's namespace, and start time.
    processes: Vec<(i32, u64)>,
}

impl Kept {
    pub(crate) fn new(image: &Path, report: &CheckpointReport, tracked: Vec<Tracked>) -> Kept {
        Kept {
            description: Description {
                image: image.to_path_buf(),
                root_hash: report.root_hash.clone(),
                processes: tracked.iter().map(|tracked| (tracked.pid, tracked.start)).collect(),
            },
            descriptors: tracked.into_iter().map(|tracked| tracked.descriptor).collect(),
        }
    }

    /// With the image it goes on from; an error where that is gone, changed, or misses one it needs.
    pub(crate) fn open(self) -> Result<Earlier> {
        let mut image = Image::open(&self.description.image)?;
        let hash: String = image.root_hash().iter().map(|byte| format!("{byte:02x}")).collect();
        if hash != self.description.root_hash {
            let path = self.description.image.display();
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("image {path} is another one now"),
            ));
        }
        image.open_ancestors()?;
        let processes = self.description.processes.into_iter().zip(self.descriptors);
        Ok(Earlier {
            path: self.description.image,
            image,
            processes: processes
                .map(|((pid, start), descriptor)| Tracked { pid, start, descriptor })
                .collect(),
        })
    }
}

/// One end of the way between a checkpoint and the supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    arrived: Vec<OwnedFd>,
}

enum Arrival {
    /// Not all of it so far.
    Waiting,
    /// This, if anything.
    Complete(Option<Kept>),
    /// The other end is closed.
    Closed,
}

impl Link {
    fn new(socket: OwnedFd) -> Self {
        Link {
            socket,
            arrived: Vec::new(),
        }
    }

    /// Hands something over, or the message that there is nothing. Never waits.
    pub(crate) fn give(&self, kept: Option<&Kept>) -> Result<()> {
        let what = || "hand over the tracking of writes";
        if let Some(kept) = kept {
            let memory = rustix::fs::memfd_create("cpr-tracking", MemfdFlags::CLOEXEC)
                .map_err(io::Error::from)
                .context(what)?;
            let mut memory = File::from(memory);
            let text = serde_json::to_vec(&kept.description)
                .map_err(|error| crate::wire::internal("encode what is tracked").with_source(error))?;
            memory.write_all(&text).context(what)?;
            let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(memory.as_fd())
                .chain(kept.descriptors.iter().map(AsFd::as_fd))
                .collect();
            for together in descriptors.chunks(SENT_TOGETHER) {
                send_descriptors(self.socket.as_fd(), together).context(what)?;
            }
        }
        send_descriptors(self.socket.as_fd(), &[]).context(what)
    }

    fn receive(&mut self) -> Arrival {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_TOGETHER))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut buffers = [IoSliceMut::new(&mut byte)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut buffers, &mut control, flags) {
                Ok(message) if message.bytes > 0 => {}
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Arrival::Waiting,
                Ok(_) | Err(_) => return Arrival::Closed,
            }
            let before = self.arrived.len();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.arrived.extend(descriptors);
                }
            }
            if self.arrived.len() == before {
                return Arrival::Complete(understand(std::mem::take(&mut self.arrived)));
            }
            if self.arrived.len() > MOST {
                return Arrival::Closed;
            }
        }
    }
}

fn understand(descriptors: Vec<OwnedFd>) -> Option<Kept> {
    let mut descriptors = descriptors.into_iter();
    let mut memory = File::from(descriptors.next()?);
    let mut text = Vec::new();
    memory.rewind().ok()?;
    memory.take(LONGEST).read_to_end(&mut text).ok()?;
    let description: Description = serde_json::from_slice(&text).ok()?;
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    (descriptors.len() == description.processes.len()).then_some(Kept {
        description,
        descriptors,
    })
}

/// The supervisor's side.
#[derive(Debug)]
pub(crate) struct Vault {
    listener: OwnedFd,
    links: Vec<Link>,
    kept: Option<Kept>,
}

fn address(directory: &Directory) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(directory.short_path(SOCKET))?)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

impl Vault {
    /// Listens in the job's directory.
    pub(crate) fn open(directory: &Directory) -> Result<Vault> {
        directory.remove(SOCKET)?;
        let listen = || -> io::Result<OwnedFd> {
            let listener = socket()?;
            rustix::net::bind(&listener, &address(directory)?)?;
            let private = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::chmodat(directory, SOCKET, private, rustix::fs::AtFlags::empty())?;
            rustix::net::listen(&listener, 16)?;
            Ok(listener)
        };
        Ok(Vault {
            listener: listen().context(|| "listen for checkpoints of the job")?,
            links: Vec::new(),
            kept: None,
        })
    }

    /// What to wait for.
    pub(crate) fn polled(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.links.iter().map(|link| link.socket.as_fd()))
    }

    /// Takes in what has come, then answers those who ask.
    pub(crate) fn serve(&mut self) {
        self.take_in();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            let own = rustix::process::geteuid();
            let trusted =
                rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
            let link = Link::new(socket);
            if trusted && link.give(self.kept.take().as_ref()).is_ok() {
                self.links.push(link);
            }
        }
    }

    fn take_in(&mut self) {
        let mut arrived = None;
        self.links.retain_mut(|link| match link.receive() {
            Arrival::Waiting => true,
            Arrival::Closed => false,
            Arrival::Complete(kept) => {
                arrived = kept;
                false
            }
        });
        if arrived.is_some() {
            self.kept = arrived;
        }
    }

    /// For a checkpoint of the supervisor's own: what is kept, and the way back.
    pub(crate) fn hand_out(&mut self) -> Result<(Link, Option<Kept>)> {
        self.take_in();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io::Error::from)
            .context(|| "make a channel to the worker")?;
        self.links.push(Link::new(ours));
        Ok((Link::new(theirs), self.kept.take()))
    }
}

/// For a checkpoint from outside: what the job's supervisor keeps, and the way back. None where it does not answer.
pub(crate) fn ask(directory: &Directory) -> Option<(Link, Option<Kept>)> {
    let socket = socket().ok()?;
    rustix::net::connect(&socket, &address(directory).ok()?).ok()?;
    let deadline = Instant::now() + PATIENCE;
    let mut link = Link::new(socket);
    loop {
        match link.receive() {
            Arrival::Complete(kept) => return Some((link, kept)),
            Arrival::Closed => return None,
            Arrival::Waiting => {
                let ready = wait(&[(link.socket.as_fd(), PollFlags::IN)], Some(deadline)).ok()?;
                if !ready[0] {
                    return None;
                }
            }
        }
    }
}
