//! Looking at running processes for what would make a checkpoint fail.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use cpr_kernel::proc::{FdInfo, FdInfoKind};
use cpr_types::{Error, ErrorKind, Result};
use rustix::fs::Stat;

use super::drain::Channels;
use super::kind::{self, Ends, Kind, Streams};
use super::{Target, device, inet, io_uring, mqueue, packet, regular, save, socket, unix};
use crate::concealed;
use crate::devices::DevicePlugins;
use crate::networks::Networks;
use crate::views::Views;
use crate::visits::Visits;
use crate::{Blocker, TcpPolicy};

/// A descriptor of a running process.
struct Seen<'a> {
    target: &'a Target,
    fd: i32,
    link: Vec<u8>,
    info: FdInfo,
    stat: Stat,
    kind: Kind,
}

impl Seen<'_> {
    fn object(&self) -> String {
        format!("descriptor {} ({})", self.fd, String::from_utf8_lossy(&self.link))
    }

    fn blocker(&self, reason: impl Into<String>, hint: Option<&str>) -> Blocker {
        Blocker {
            pid: self.target.pid,
            object: self.object(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
            passes: false,
        }
    }
}

/// What a look at descriptors has to know of what is around them.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The process the checkpoint was asked for.
    pub root_pid: i32,
    /// Nobody else uses the IPC namespace that is the job's home.
    pub own_ipc: bool,
    /// What becomes of TCP connections to outside.
    pub tcp: TcpPolicy,
    /// See [`super::SaveContext::channels`].
    pub channels: Option<&'a Channels>,
    /// See [`super::SaveContext::requester`].
    pub requester: Option<i32>,
    /// See [`super::SaveContext::devices`].
    pub devices: Option<&'a dyn DevicePlugins>,
    /// Where sockets can be.
    pub networks: &'a Networks,
    /// IPC namespaces that the job has made.
    pub ipc: &'a Visits,
}

/// What of a job's descriptors would make a checkpoint fail.
#[derive(Debug, Default)]
pub struct Found {
    /// Because of what they are.
    pub themselves: Vec<Blocker>,
    /// Because what belongs to them is in no process that was looked at. One that was born meanwhile may have it.
    pub elsewhere: Vec<Blocker>,
    /// Inode numbers of io_uring instances.
    pub rings: HashSet<u64>,
}

/// Names every descriptor that would make a checkpoint fail. The processes may be running: what they close meanwhile is
/// left out.
pub fn check(targets: &[Target], around: Surroundings<'_>) -> Found {
    let Surroundings {
        root_pid,
        requester,
        networks,
        ..
    } = around;
    let mut blockers = Vec::new();
    let (mut streams, mut ends) = (Streams::default(), Ends::default());
    if let Some(pid) = requester {
        ends.add_pipes_of(pid);
    }
    let mut all = Vec::new();
    for target in targets {
        match look(target) {
            Ok(seen) => {
                for one in &seen {
                    ends.add(&one.kind, &one.info, &one.stat, &Views::default());
                    if target.pid == root_pid {
                        streams.note(one.fd, &one.stat);
                    }
                }
                all.extend(seen);
            }
            Err(error) if is_gone(&error) => {}
            // It is made accessible when it is stopped.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && concealed::may_reveal(&target.proc) => {}
            Err(error) => blockers.push(Blocker {
                pid: target.pid,
                object: "descriptors".to_owned(),
                reason: format!("they cannot be looked at: {error}"),
                hint: (error.kind() == io::ErrorKind::PermissionDenied)
                    .then(|| "only root and the job's own user may checkpoint it".to_owned()),
                passes: false,
            }),
        }
    }
    if let Ok(shared) = save::shared_tables(targets) {
        blockers.extend(shared.refused.into_iter().map(|(pid, reason)| Blocker {
            pid,
            object: "descriptor table".to_owned(),
            reason,
            hint: None,
            passes: false,
        }));
    }
    // Descriptors in messages under way cannot be looked at while processes run: the missing end may be there.
    let in_flight = all.iter().any(|seen| seen.info.scm_fds.is_some_and(|n| n > 0));
    let pids: HashSet<i32> = targets.iter().map(|target| target.pid).collect();
    let has_queues = all.iter().any(|seen| seen.kind == Kind::MessageQueue);
    let own_queues = match has_queues {
        true => mqueue::devices(around.ipc, around.own_ipc).unwrap_or_default(),
        false => HashSet::new(),
    };
    let scene = Scene {
        networks,
        devices: around.devices,
        pids,
        streams,
        ends,
        in_flight,
        own_queues,
    };
    let mut elsewhere = Vec::new();
    for seen in &all {
        match seen.kind {
            Kind::Pipe | Kind::PidFd | Kind::Proc(..) => elsewhere.extend(scene.blocks(seen)),
            _ => blockers.extend(scene.blocks(seen)),
        }
    }
    elsewhere.extend(unix_sockets(&all, &scene, networks));
    elsewhere.extend(inet_sockets(&all, &scene, around));
    let instances = all.iter().filter(|seen| seen.kind == Kind::IoUring);
    Found {
        themselves: blockers,
        elsewhere,
        rings: instances.map(|seen| seen.stat.st_ino).collect(),
    }
}

fn look(target: &Target) -> io::Result<Vec<Seen<'_>>> {
    let mut all = Vec::new();
    for fd in target.proc.descriptors()? {
        let one = || -> io::Result<Seen<'_>> {
            let link = target.proc.fd_link(fd)?;
            let info = target.proc.fdinfo(fd)?;
            let stat = target.proc.fd_stat(fd)?;
            let kind = kind::classify(target.pid, fd, &link, &info, &stat);
            Ok(Seen {
                target,
                fd,
                link,
                info,
                stat,
                kind,
            })
        };
        match one() {
            Ok(seen) => all.push(seen),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Whether a path can be that of a file with pressure stall information; what needs no descriptor to be found out.
fn may_have_trigger(link: &[u8]) -> bool {
    link.starts_with(b"/proc/pressure/") || link.ends_with(b".pressure")
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

struct Scene<'a> {
    networks: &'a Networks,
    devices: Option<&'a dyn DevicePlugins>,
    pids: HashSet<i32>,
    streams: Streams,
    ends: Ends,
    in_flight: bool,
    /// Device numbers of message queues that are the job's.
    own_queues: HashSet<u64>,
}

impl Scene<'_> {
    /// Whether a process of the job has to wait for this one, which has ended.
    fn is_dead_child(&self, pid: i32) -> bool {
        cpr_kernel::proc::stat_of(pid).is_ok_and(|stat| stat.is_zombie() && self.pids.contains(&stat.ppid))
    }

    fn is_stream(&self, seen: &Seen<'_>) -> bool {
        self.streams.find(seen.fd, &seen.stat).is_some()
    }

    fn blocks(&self, seen: &Seen<'_>) -> Option<Blocker> {
        match &seen.kind {
            Kind::Unsupported(reason, hint) => Some(seen.blocker(reason.clone(), hint.as_deref())),
            Kind::OtherDevice(reason) => {
                let known = device::plugin(&seen.link, self.devices).is_some();
                (!known && !self.is_stream(seen)).then(|| seen.blocker(reason.clone(), Some(device::HINT)))
            }
            Kind::Regular | Kind::Proc(None, _) if kind::writable(seen.info.flags) && may_have_trigger(&seen.link) => {
                let handle = save::get(seen.target, seen.fd).ok()?;
                let refused = regular::refuse_trigger(&seen.link, seen.info.flags, handle.as_fd(), &label(seen));
                refused.err().map(|error| blocker(seen, &error))
            }
            Kind::Proc(Some(pid), _) if *pid != 1 && !self.pids.contains(pid) && !regular::is_of_dead(&seen.link) => {
                Some(seen.blocker(format!("process {pid} is not part of the job"), None))
            }
            Kind::PidFd => match seen.info.kind {
                // Those that have ended are -1.
                FdInfoKind::PidFd { pid, .. } if pid >= 0 && !self.pids.contains(&pid) && !self.is_dead_child(pid) => {
                    Some(seen.blocker("a pidfd of a process that is not part of the job", None))
                }
                _ => None,
            },
            Kind::MessageQueue if !self.own_queues.contains(&seen.stat.st_dev) => {
                Some(seen.blocker(mqueue::SHARED, Some(mqueue::SHARED_HINT)))
            }
            Kind::Pipe if !self.in_flight && self.ends.is_one_sided(&seen.stat) && !self.is_stream(seen) => {
                let handle = save::get(seen.target, seen.fd).ok()?;
                let external = self
                    .ends
                    .is_external_pipe(seen.info.flags, &seen.stat, handle.as_fd())
                    .unwrap_or(false);
                external.then(|| {
                    let hint = "checkpoint both sides together, or use one of the standard streams for it";
                    seen.blocker("the other end of the pipe is outside the job", Some(hint))
                })
            }
            Kind::IoUring => {
                let handle = save::get(seen.target, seen.fd).ok()?;
                let blocked = io_uring::blocker(handle.as_fd(), &label(seen));
                blocked.err().map(|error| blocker(seen, &error))
            }
            Kind::Socket => {
                let label = label(seen);
                let handle = save::get(seen.target, seen.fd).ok()?;
                match socket::classify(handle.as_fd()).ok()? {
                    socket::Class::Unix | socket::Class::Inet | socket::Class::Netlink => None,
                    socket::Class::Packet => packet::blocker(handle.as_fd(), seen.stat.st_ino, &label, self.networks)
                        .err()
                        .map(|error| blocker(seen, &error)),
                    socket::Class::Other(_) if self.is_stream(seen) => None,
                    socket::Class::Other(name) => {
                        Some(seen.blocker(format!("{name} is not supported"), Some(socket::HINT)))
                    }
                }
            }
            _ => None,
        }
    }
}

/// UNIX sockets that are connected to outside.
fn unix_sockets(all: &[Seen<'_>], scene: &Scene<'_>, networks: &Networks) -> Vec<Blocker> {
    if scene.in_flight {
        return Vec::new();
    }
    let mut blockers = Vec::new();
    let mut state = unix::SaveState::default();
    let mut inner: Vec<&Seen<'_>> = Vec::new();
    for seen in all.iter().filter(|seen| seen.kind == Kind::Socket) {
        let handle = match save::get(seen.target, seen.fd) {
            Ok(handle) => Arc::new(handle),
            // Without it others seem to lead out of the job.
            Err(error) if error.kind() == ErrorKind::NoSpace => return vec![blocker(seen, &error)],
            Err(_) => continue,
        };
        if socket::classify(handle.as_fd()).ok() != Some(socket::Class::Unix) {
            continue;
        }
        match scene.ends.is_external_socket(&seen.stat, handle.as_fd(), networks) {
            Ok(true) if scene.is_stream(seen) => {}
            Ok(true) => blockers.push(seen.blocker(
                "the UNIX socket is connected to a process outside the job",
                Some("checkpoint both sides together, or let the program close the connection first"),
            )),
            Ok(false) | Err(_) => {
                let cwd = seen.target.proc.read_link("cwd").unwrap_or_default();
                let cwd = PathBuf::from(std::ffi::OsString::from_vec(cwd));
                match state.note(&handle, &label(seen), (&cwd, None), networks) {
                    Ok(_) => inner.push(seen),
                    Err(error) if error.kind() == ErrorKind::Unsupported => blockers.push(blocker(seen, &error)),
                    Err(error) if error.kind() == ErrorKind::NoSpace => return vec![blocker(seen, &error)],
                    Err(_) => {}
                }
            }
        }
    }
    // What only shows when all are seen together; the message begins with the label.
    if let (true, Err(error)) = (blockers.is_empty(), resolve(&state, networks)) {
        let message = error.chain();
        if let Some(seen) = inner.iter().find(|seen| message.starts_with(&label(seen))) {
            blockers.push(blocker(seen, &error));
        }
    }
    blockers
}

/// IP sockets that cannot be saved.
fn inet_sockets(all: &[Seen<'_>], scene: &Scene<'_>, around: Surroundings<'_>) -> Vec<Blocker> {
    let networks = around.networks;
    let mut blockers = Vec::new();
    let (mut entries, mut sources) = (Vec::new(), Vec::new());
    let mut known = HashSet::new();
    for seen in all.iter().filter(|seen| seen.kind == Kind::Socket) {
        let handle = match save::get(seen.target, seen.fd) {
            Ok(handle) => handle,
            // Without it others seem to lead out of the job.
            Err(error) if error.kind() == ErrorKind::NoSpace => return vec![blocker(seen, &error)],
            Err(_) => continue,
        };
        if socket::classify(handle.as_fd()).ok() != Some(socket::Class::Inet) || !known.insert(seen.stat.st_ino) {
            continue;
        }
        match inet::Entry::look(Arc::new(handle), label(seen), networks) {
            Ok(entry) => {
                entries.push(entry);
                sources.push(seen);
            }
            Err(error) => blockers.push(blocker(seen, &error)),
        }
    }
    for (index, error) in inet::blockers(&entries, around.tcp, around.channels, networks) {
        if !(scene.is_stream(sources[index]) && entries[index].is_connected()) {
            blockers.push(blocker(sources[index], &error));
        }
    }
    blockers
}

/// An error whose message begins with the label.
fn blocker(seen: &Seen<'_>, error: &Error) -> Blocker {
    let chain = error.chain();
    let reason = chain.strip_prefix(&label(seen)).unwrap_or(&chain);
    Blocker {
        passes: error.is_passing(),
        ..seen.blocker(
            reason.trim_start_matches([':', ' ']),
            error.hint().filter(|hint| !hint.is_empty()),
        )
    }
}

fn label(seen: &Seen<'_>) -> String {
    format!("process {}, {}", seen.target.pid, seen.object())
}

fn resolve(state: &unix::SaveState, networks: &Networks) -> Result<(), Error> {
    state.resolve(networks, &Views::default()).map(drop)
}
