//! POSIX message queues: their attributes and messages, and descriptors of them.
//!
//! Only queues of IPC namespaces of the job's own are saved: nobody else can use them while the job stands still, which
//! reading them needs ([`cpr_kernel::mqueue::peek_all`]).

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cpr_image::model::{ByteString, Bytes, IpcNamespaceId, Object, OpenFile, PosixQueue, PosixQueueId};
use cpr_kernel::mqueue;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Dir, Gid, Mode, OFlags, Uid};

use super::{Description, RestoreContext, SaveContext};
use crate::visits::Visits;

/// Why queues of a shared namespace are refused.
pub(super) const SHARED: &str = "POSIX message queues are saved only for a job with an IPC namespace of its own";
/// What to do about it.
pub(super) const SHARED_HINT: &str = "run the job with `cpr run` without --share-ipc";

/// Queues noted so far.
#[derive(Debug, Default)]
pub struct SaveState {
    /// By [`PosixQueueId`].
    pub queues: Vec<PosixQueue>,
    by_inode: HashMap<(u64, u64), PosixQueueId>,
    /// Namespaces that are the job's, by the device numbers of their queues.
    namespaces: HashMap<u64, Option<IpcNamespaceId>>,
    deadline: Option<Instant>,
}

fn io(error: rustix::io::Errno) -> std::io::Error {
    error.into()
}

/// The queues' file system of the IPC namespace that this thread is in; none where the kernel has none.
fn file_system() -> Result<Option<OwnedFd>> {
    match mqueue::file_system() {
        Ok(root) => Ok(Some(root)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error).context(|| "look at POSIX message queues"),
    }
}

/// The namespaces that are the job's: all that are visited and, where it is its `own`, home.
fn own_namespaces(visits: &Visits, own: bool) -> impl Iterator<Item = Option<usize>> {
    own.then_some(None).into_iter().chain((0..visits.len()).map(Some))
}

/// Device numbers of all queues that are the job's.
///
/// # Errors
/// A namespace cannot be entered.
pub(super) fn devices(visits: &Visits, own: bool) -> Result<HashSet<u64>> {
    let mut found = HashSet::new();
    for namespace in own_namespaces(visits, own) {
        if let Some(root) = visits.within(namespace, file_system)? {
            let stat = rustix::fs::fstat(root).map_err(io);
            found.insert(stat.context(|| "look at POSIX message queues")?.st_dev);
        }
    }
    Ok(found)
}

impl SaveState {
    /// All queues that have a name in an IPC namespace of the job's. `own`: home is one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one that somebody waits to be notified of.
    pub fn of(visits: &Visits, own: bool, deadline: Instant) -> Result<Self> {
        let mut state = SaveState {
            deadline: Some(deadline),
            ..SaveState::default()
        };
        for namespace in own_namespaces(visits, own) {
            let id = namespace.map(|index| IpcNamespaceId(index as u32));
            visits.within(namespace, || state.add_all(id))?;
        }
        Ok(state)
    }

    /// The IPC namespace of the job's that a file system of queues is of; none for the job's own. None at all for
    /// others.
    pub fn namespace_of(&self, device: u64) -> Option<Option<IpcNamespaceId>> {
        self.namespaces.get(&device).copied()
    }

    /// All that have a name in the namespace that this thread is in.
    fn add_all(&mut self, namespace: Option<IpcNamespaceId>) -> Result<()> {
        let Some(root) = file_system()? else { return Ok(()) };
        let stat = rustix::fs::fstat(&root).map_err(io);
        let device = stat.context(|| "look at POSIX message queues")?.st_dev;
        self.namespaces.insert(device, namespace);
        let what = || "list POSIX message queues";
        for entry in Dir::read_from(&root).map_err(io).context(what)? {
            let entry = entry.map_err(io).context(what)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let queue = rustix::fs::openat(&root, name, flags, Mode::empty()).map_err(io);
            let queue = queue.context(|| format!("open message queue /{}", name.to_string_lossy()))?;
            self.add(queue.as_fd(), name.to_bytes(), false)?;
        }
        Ok(())
    }

    /// Saves a queue that is open for both directions without blocking, unless it is known.
    fn add(&mut self, queue: BorrowedFd<'_>, name: &[u8], unlinked: bool) -> Result<PosixQueueId> {
        let what = || format!("save message queue /{}", String::from_utf8_lossy(name));
        let stat = rustix::fs::fstat(queue).map_err(io).context(what)?;
        let key = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.by_inode.get(&key) {
            return Ok(*known);
        }
        let attributes = mqueue::attributes(queue).context(what)?;
        if let Some(pid) = notified(queue).context(what)? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "message queue /{}: process {pid} is to be notified of messages (mq_notify)",
                    String::from_utf8_lossy(name)
                ),
            )
            .with_hint("let the program wait in mq_receive or poll instead"));
        }
        let deadline = self.deadline.unwrap_or_else(Instant::now);
        let messages = mqueue::peek_all(queue, deadline).context(what)?;
        let id = PosixQueueId(self.queues.len() as u32);
        self.queues.push(PosixQueue {
            namespace: self.namespaces.get(&stat.st_dev).copied().flatten(),
            name: ByteString(name.to_vec()),
            unlinked,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            max_messages: attributes.max_messages,
            message_size: attributes.message_size,
            messages: messages
                .into_iter()
                .map(|(priority, data)| (priority, Bytes(data)))
                .collect(),
        });
        self.by_inode.insert(key, id);
        Ok(id)
    }
}

/// The process that mq_notify(3) registered with a queue, if any: in the text that read(2) gives of it.
fn notified(queue: BorrowedFd<'_>) -> std::io::Result<Option<u32>> {
    let mut text = [0u8; 128];
    let length = rustix::io::pread(queue, &mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let pid = text
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:")?.parse().ok());
    Ok(pid.filter(|pid| *pid != 0))
}

/// Saves a descriptor's queue.
///
/// # Errors
/// [`ErrorKind::Unsupported`] in an IPC namespace that is not the job's own.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let state = &mut context.queue_state;
    if !state.namespaces.contains_key(&description.stat.st_dev) {
        return Err(
            Error::new(ErrorKind::Unsupported, format!("{}: {SHARED}", description.label())).with_hint(SHARED_HINT),
        );
    }
    let path = format!("/proc/self/fd/{}", description.handle.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = rustix::fs::open(path, flags, Mode::empty())
        .map_err(io)
        .context(|| format!("{}: open it once more", description.label()))?;
    // Only one that has lost its name is not known yet.
    let link = description
        .link
        .strip_suffix(b" (deleted)")
        .unwrap_or(&description.link);
    let name = link.rsplit(|&b| b == b'/').next().unwrap_or_default();
    state
        .add(queue.as_fd(), name, true)
        .map(Object::MessageQueue)
        .context(|| description.label())
}

/// Makes a queue with its messages, open for both directions without blocking.
///
/// # Errors
/// [`ErrorKind::InUse`] when its name is taken.
pub fn create(queue: &PosixQueue) -> Result<OwnedFd> {
    let what = || format!("make message queue /{} again", queue.name);
    let fd = mqueue::create(&queue.name.0, queue.max_messages, queue.message_size)
        .context(what)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => error
                .with_kind(ErrorKind::InUse)
                .with_hint("remove it, or restart in a namespace of its own with --namespace always"),
            _ => error.with_hint("see fs.mqueue in sysctl(8) and `ulimit -q` for the limits on queues"),
        })?;
    let fill = || -> Result<()> {
        for (priority, data) in &queue.messages {
            mqueue::send(fd.as_fd(), *priority, &data.0).context(what)?;
        }
        let stat = rustix::fs::fstat(&fd).map_err(io).context(what)?;
        if (stat.st_uid, stat.st_gid) != (queue.uid, queue.gid) {
            let (user, group) = (Uid::from_raw(queue.uid), Gid::from_raw(queue.gid));
            rustix::fs::fchown(&fd, Some(user), Some(group))
                .map_err(io)
                .context(what)?;
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(queue.mode))
            .map_err(io)
            .context(what)
    };
    let filled = fill();
    if queue.unlinked || filled.is_err() {
        mqueue::unlink(&queue.name.0).context(what)?;
    }
    filled.map(|()| fd)
}

/// A new description of a queue.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the image has none of that number.
pub fn restore(file: &OpenFile, id: PosixQueueId, context: &RestoreContext<'_>) -> Result<OwnedFd> {
    let queue = context.queues.get(id.index());
    let queue = queue.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("the image has no queue {}", id.0)))?;
    super::saved::open_saved(queue.as_fd(), file.flags).context(|| "open a message queue")
}
