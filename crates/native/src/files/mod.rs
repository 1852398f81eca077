//! Open files: every open file description of a job, what it is open on, and how to open it again.
//!
//! Saving works from outside, on descriptors that pidfd_getfd(2) gives of the stopped processes' own descriptions.
//! Restoring opens all descriptions in the restarter, which hands them to the processes; only what the kernel ties to
//! the process itself ([`finish`]) is done inside.
//!
//! Descriptions that several descriptors or processes share are found with kcmp(2) among those that look alike, and
//! shared again after restart.

pub mod drain;
mod ending;
pub mod epoll;
pub mod eventfd;
pub mod fanotify;
pub mod inet;
pub mod inotify;
pub mod io_uring;
pub mod meet;
pub mod mqueue;
pub mod netlink;
pub mod packet;
pub mod pidfd;
mod segment;
pub mod signalfd;
pub mod socket;
pub mod tcp;
pub mod terminal;
pub mod timerfd;
pub mod unix;
mod unix_infos;
mod unix_names;

mod check;
mod device;
mod kind;
mod locks;
mod multicast;
mod pipe;
mod policies;
mod ports;
mod regular;
mod restore;
mod save;
mod saved;
mod shared_memory;
mod sockopt;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cpr_image::model::{
    ByteString, FileId, FilePolicy, InetSocket, IoUring, Manifest, MountNamespaceId, OpenFile, PacketSocket, Pipe,
    PipeId, SavedFileId, Terminal, UnixSocket,
};
use cpr_kernel::proc::{FdInfo, ProcDir};
use cpr_kernel::process::PidFd;
use cpr_types::{Context, Error, ErrorKind, Result};

use self::terminal::JobControl;
use crate::TcpPolicy;
use crate::devices::DevicePlugins;
use crate::networks::Networks;
use crate::sink::PageSource;
use crate::views::Views;

pub use check::{Found, Surroundings, check};
pub use drain::{Channels, Outward};
pub use ending::reset_when_closed;
pub use meet::{Meeting, channels};
pub use policies::{Backups, Changes, SaveState as PolicyState, violations};
pub use regular::{dead_process, other_name, save_deleted_directory};
pub use restore::{break_leases, finish, open_all, with_roots_rights};
pub use save::{ask_about_exec, get, save};
pub use saved::{
    ReadMemory, SHARED_ANONYMOUS_NAME, SavedFiles, copy_file, create_saved, fill_extents, open_saved, seal_last,
};
pub use shared_memory::{SharedMemory, find as find_shared_memory, has as has_shared_memory};

/// The times of a file, to be set again.
pub(crate) fn times_of(stat: &rustix::fs::Stat) -> rustix::fs::Timestamps {
    let time = |tv_sec, tv_nsec: u64| rustix::fs::Timespec {
        tv_sec,
        tv_nsec: tv_nsec as i64,
    };
    rustix::fs::Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// A process being saved (zombies excluded).
#[derive(Debug)]
pub struct Target {
    /// The process.
    pub pid: i32,
    /// Its directory in /proc.
    pub proc: ProcDir,
    /// pidfd_open(2) of it, or of the thread that acts for it ([`ProcDir::acting`]).
    pub pidfd: OwnedFd,
}

impl Target {
    /// A process; none for one that has ended.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(pid: i32) -> Result<Option<Target>> {
        let Ok(proc) = ProcDir::open_living(pid) else {
            return Ok(None);
        };
        match proc.stat() {
            Ok(stat) if stat.state != b'Z' => {}
            _ => return Ok(None),
        }
        let Some(pidfd) = open_acting(pid, proc.acting())? else {
            return Ok(None);
        };
        let pidfd = pidfd
            .fd()
            .try_clone_to_owned()
            .context(|| format!("copy the descriptor of process {pid}"))?;
        Ok(Some(Target { pid, proc, pidfd }))
    }
}

/// A pidfd by which descriptors of process `pid` can be had, through its thread `acting` where its main thread has
/// ended; none of a process that has ended.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the main thread has ended and the kernel has no pidfds of threads.
pub fn open_acting(pid: i32, acting: i32) -> Result<Option<PidFd>> {
    let opened = match acting == pid {
        true => PidFd::open(pid),
        false => PidFd::open_thread(acting),
    };
    match opened {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && acting != pid => Err(Error::new(
            ErrorKind::Unsupported,
            format!("process {pid}: its main thread has ended, and its descriptors cannot be had before Linux 6.9"),
        )),
        Err(error) => Err(error).context(|| format!("open process {pid}")),
    }
}

/// An open file description found in the tree.
#[derive(Debug)]
pub struct Description {
    /// A process that holds it; zero for one that is only in a message under way.
    pub pid: i32,
    /// Its number there; a number of our own for one under way.
    pub fd: i32,
    /// The text of the link /proc/PID/fd/N.
    pub link: Vec<u8>,
    /// /proc/PID/fdinfo/N.
    pub info: FdInfo,
    /// stat(2) of it.
    pub stat: rustix::fs::Stat,
    /// A descriptor of ours for the same description. A job may have as many as there is room for: who keeps it shares it.
    pub handle: Arc<OwnedFd>,
    /// The mount namespace that its path is of, where that is not the job's own.
    pub view: Option<MountNamespaceId>,
}

impl Description {
    /// Process, descriptor and object, for messages.
    pub fn label(&self) -> String {
        let link = String::from_utf8_lossy(&self.link);
        match self.pid {
            0 => format!("descriptor in a message under way ({link})"),
            pid => format!("process {pid}, descriptor {} ({link})", self.fd),
        }
    }
}

/// What is gathered while files are saved.
#[derive(Debug)]
pub struct SaveContext<'a> {
    /// The processes.
    pub targets: &'a [Target],
    /// The process the checkpoint was asked for.
    pub root_pid: i32,
    /// Processes of the job that have ended and not been waited for.
    pub zombies: Vec<i32>,
    /// Processes that share their parent's table of descriptors.
    pub table_of_parent: HashSet<i32>,
    /// Files whose contents are saved.
    pub saved: SavedFiles,
    /// Pipes and FIFOs.
    pub pipes: Vec<Pipe>,
    /// UNIX sockets.
    pub sockets: Vec<UnixSocket>,
    /// IP sockets.
    pub inet_sockets: Vec<InetSocket>,
    /// Packet sockets.
    pub packet_sockets: Vec<PacketSocket>,
    /// io_uring instances.
    pub io_urings: Vec<IoUring>,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// Those that lead to jobs that are saved in the same stop.
    pub channels: Option<Channels>,
    /// Who knows devices that we do not.
    pub devices: Option<Arc<dyn DevicePlugins>>,
    /// The job is ended when its image is complete.
    pub ends_job: bool,
    /// What to do with sockets just before that.
    pub endings: Vec<tcp::Ending>,
    /// Connections that take nothing more until then.
    pub deaf: Vec<tcp::Deaf>,
    /// Terminals.
    pub terminals: Vec<Terminal>,
    /// Open file descriptions; complete when [`save`] returns.
    pub files: Vec<OpenFile>,
    /// Files with a policy of their own.
    pub policies: policies::SaveState,
    /// The process of the job that asks for the checkpoint: its ends of pipes count as closed by the job.
    pub requester: Option<i32>,
    /// UNIX sockets noted so far.
    pub socket_state: unix::SaveState,
    /// IP sockets noted so far.
    pub inet_state: inet::SaveState,
    /// Packet sockets by what mappings of them show.
    pub packet_state: packet::SaveState,
    /// io_uring instances by what mappings of them show.
    pub io_uring_state: io_uring::SaveState,
    /// Terminals noted so far; find a controlling terminal's number in it.
    pub terminal_state: terminal::SaveState,
    /// POSIX message queues of the job's own IPC namespaces.
    pub queue_state: mqueue::SaveState,
    /// Where its sockets can be.
    pub networks: &'a Networks,
    /// Mount namespaces that paths can be of.
    pub views: Views,
    /// Processes that are in one of those, but for the job's own.
    pub apart: HashMap<i32, MountNamespaceId>,
    pipe_state: pipe::SaveState,
    entries: Vec<save::Entry>,
    holders: Vec<epoll::Holder>,
    streams: kind::Streams,
    ends: kind::Ends,
}

impl<'a> SaveContext<'a> {
    /// For these processes, nothing gathered yet.
    pub fn new(targets: &'a [Target], root_pid: i32, tcp: TcpPolicy, ends_job: bool, networks: &'a Networks) -> Self {
        SaveContext {
            targets,
            root_pid,
            zombies: Vec::new(),
            table_of_parent: HashSet::new(),
            saved: SavedFiles::default(),
            pipes: Vec::new(),
            sockets: Vec::new(),
            inet_sockets: Vec::new(),
            packet_sockets: Vec::new(),
            io_urings: Vec::new(),
            tcp,
            channels: None,
            devices: None,
            ends_job,
            endings: Vec::new(),
            deaf: Vec::new(),
            terminals: Vec::new(),
            files: Vec::new(),
            policies: policies::SaveState::default(),
            requester: None,
            socket_state: unix::SaveState::default(),
            inet_state: inet::SaveState::default(),
            packet_state: packet::SaveState::default(),
            io_uring_state: io_uring::SaveState::default(),
            terminal_state: terminal::SaveState::default(),
            queue_state: mqueue::SaveState::default(),
            networks,
            views: Views::default(),
            apart: HashMap::new(),
            pipe_state: pipe::SaveState::default(),
            entries: Vec::new(),
            holders: Vec::new(),
            streams: kind::Streams::default(),
            ends: kind::Ends::default(),
        }
    }

    /// The description behind a descriptor of the job.
    pub fn find_file(&self, pid: i32, fd: i32) -> Option<FileId> {
        self.holders.iter().find(|h| (h.pid, h.fd) == (pid, fd)).map(|h| h.file)
    }

    /// All descriptors of the job.
    pub fn holders(&self) -> Vec<epoll::Holder> {
        self.holders.clone()
    }

    /// All descriptions found so far.
    fn descriptions(&self) -> impl Iterator<Item = &Description> {
        self.entries.iter().map(|entry| &*entry.description)
    }

    /// The description at a position.
    fn description(&self, index: usize) -> Option<Arc<Description>> {
        self.entries.get(index).map(|entry| Arc::clone(&entry.description))
    }
}

/// What is needed and kept while files are opened again. Must live until all processes have their descriptors.
pub struct RestoreContext<'a> {
    /// What the image says.
    pub manifest: &'a Manifest,
    /// The image's page data.
    pub image: &'a dyn PageSource,
    /// Standard streams for the job, where whoever restarts gives any.
    pub streams: &'a [Option<OwnedFd>; 3],
    /// The terminal for the job, if there is one.
    pub terminal: Option<&'a OwnedFd>,
    /// What whoever restarts is to that terminal.
    pub job_control: JobControl,
    /// Root restarts an image that belongs to root.
    pub roots_own: bool,
    /// Where sockets are made.
    pub networks: &'a Networks,
    /// Mount namespaces that paths can be of.
    pub views: Views,
    /// With the jobs that its connections lead to.
    pub meeting: Option<&'a Meeting<'a>>,
    /// Who knows devices that we do not.
    pub devices: Option<&'a dyn DevicePlugins>,
    /// Saved files by [`cpr_image::model::SavedFileId`], from [`create_saved`].
    pub saved: Vec<OwnedFd>,
    /// POSIX message queues by [`cpr_image::model::PosixQueueId`], once made.
    pub queues: Vec<OwnedFd>,
    /// UNIX sockets, once made.
    pub sockets: Option<unix::Sockets>,
    /// IP sockets, once made.
    pub inet_sockets: Option<inet::Sockets>,
    /// Packet sockets by [`cpr_image::model::PacketSocketId`], from [`packet::create`].
    pub packet_sockets: &'a [OwnedFd],
    /// File systems of terminals in mount namespaces of the job's own.
    pub terminal_systems: Option<&'a terminal::TerminalSystems>,
    /// Terminals, once made.
    pub terminals: Option<terminal::Terminals>,
    /// What is not as it was, in words, for whoever restarts.
    pub notes: Vec<String>,
    pipes: HashMap<PipeId, pipe::Ends>,
    fifos: HashMap<PipeId, OwnedFd>,
    written: HashSet<ByteString>,
    /// Pidfds of processes that are no more, by their numbers in the image.
    dead: HashMap<u64, OwnedFd>,
    /// Memfds whose first description a descriptor has got.
    memfds_given: HashSet<SavedFileId>,
    policies: HashMap<&'a ByteString, &'a FilePolicy>,
}

impl<'a> RestoreContext<'a> {
    /// For this image; `saved` is what [`create_saved`] gave.
    pub fn new(
        manifest: &'a Manifest,
        image: &'a dyn PageSource,
        streams: &'a [Option<OwnedFd>; 3],
        terminal: Option<&'a OwnedFd>,
        roots_own: bool,
        saved: Vec<OwnedFd>,
        networks: &'a Networks,
    ) -> Self {
        RestoreContext {
            manifest,
            image,
            roots_own,
            networks,
            views: Views::default(),
            meeting: None,
            devices: None,
            terminal_systems: None,
            streams,
            terminal,
            job_control: JobControl::None,
            saved,
            queues: Vec::new(),
            sockets: None,
            inet_sockets: None,
            packet_sockets: &[],
            terminals: None,
            notes: Vec::new(),
            pipes: HashMap::new(),
            fifos: HashMap::new(),
            written: regular::written(manifest),
            dead: HashMap::new(),
            memfds_given: HashSet::new(),
            policies: policies::by_path(manifest),
        }
    }
}
