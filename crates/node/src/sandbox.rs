//! Restarting an image where it can do no harm, to see that it runs.
//!
//! The sandbox has user, PID, mount, network and IPC namespaces of its own. Everything mounted is read-only there, but
//! for directories in which the restart or the job has files to write: those are covered by an overlay that keeps all
//! changes in memory. What is open for reading only is the real file. When the job has taken its first steps the
//! sandbox ends, and the kernel ends and removes all that was in it.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, FileContent, Manifest, Mounted, Object, ProcessState, SavedFileKind};
use cpr_kernel::spawn::{self, Namespaces};
use cpr_kernel::{namespace, terminal_relay};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::engine::{Image, JobControl, Rebirth};
use crate::init::{JobTerminal, Manner, ipc_limits, prepare_ipc, start_image};
use crate::restart::require_owner;
use crate::wire::{Receiver, WireError, send, wait};

/// How long all threads may take to take their first steps.
const FIRST_STEPS: Duration = Duration::from_secs(30);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Time on a processor that a thread must have had since it was let go, where it does not wait for anything.
const RUN_NS: u64 = 500_000;
/// Longest that restarting may take.
const RESTART: Duration = Duration::from_secs(900);
/// SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: what a process gets that was restored wrongly.
const FATAL: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];
/// Where the memory for changes is mounted while overlays are made; any directory does.
const PLACES: [&CStr; 4] = [c"/tmp", c"/mnt", c"/run", c"/var"];

/// What was seen of a job in its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Processes restarted.
    pub processes: usize,
    /// Threads that took their first steps.
    pub threads: usize,
    /// From the request until the job was seen to run, milliseconds.
    pub total_ms: u64,
}

#[derive(Serialize, Deserialize)]
enum Word {
    Runs(Proof),
    Failed(WireError),
}

/// Restarts the image in a sandbox, sees all its threads take their first steps, and removes everything.
///
/// # Errors
/// Those of a restart; [`ErrorKind::Damaged`] where a process dies of a fault as soon as it runs,
/// [`ErrorKind::Unsupported`] where the files that it writes cannot be protected here.
pub fn prove(image: &Image) -> Result<Proof> {
    let begun = Instant::now();
    require_owner(image)?;
    refuse_devices(image.manifest())?;
    let (read, write) = crate::wire::pipe()?;
    let unprivileged = !namespace::is_admin();
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let namespaces = Namespaces {
        user: unprivileged,
        pid: true,
        mount: true,
        ipc: true,
    };
    let limits = ipc_limits();
    let mut read = Some(read);
    let child = spawn::fork(namespaces, || {
        // With our end open here too, our end would not show.
        read.take();
        let result = inside(image, unprivileged.then_some(ids), &limits, &write);
        let word = match result {
            Ok((processes, threads)) => Word::Runs(Proof {
                processes,
                threads,
                total_ms: begun.elapsed().as_millis() as u64,
            }),
            Err(error) => Word::Failed(WireError::from(&error)),
        };
        // Nobody listens any more: the sandbox ends all the same.
        let _ = send(write.as_fd(), &word);
        0
    })
    .context(|| "make the sandbox's namespaces")?;
    drop(write);
    let read = read.ok_or_else(|| crate::wire::internal("the pipe is gone"))?;
    let mut words = Receiver::new(read).context(|| "listen to the sandbox")?;
    let mut said = None;
    let deadline = begun + RESTART;
    while !words.ended() && said.is_none() {
        if !words.wait(Some(deadline)).context(|| "listen to the sandbox")? {
            break;
        }
        said = words.receive().context(|| "listen to the sandbox")?.into_iter().next();
    }
    // It is over one way or the other; with its first process all others end.
    let _ = spawn::signal_pidfd(child.pidfd.as_fd(), libc_signal::KILL);
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitpid(Pid::from_raw(child.pid), WaitOptions::empty()) {}
    match said {
        Some(Word::Runs(proof)) => Ok(proof),
        Some(Word::Failed(error)) => Err(Error::from(error)).context(|| "restart in a sandbox"),
        None if Instant::now() >= deadline => Err(Error::new(ErrorKind::TimedOut, "restart in a sandbox")),
        None => Err(crate::wire::internal("the sandbox ended without a word")),
    }
}

/// Refuses devices that plug-ins have saved: there is one of each, and to open it may do something already.
fn refuse_devices(manifest: &Manifest) -> Result<()> {
    let found = manifest.files.iter().find_map(|file| match &file.object {
        Object::Device {
            path,
            plugin: Some(plugin),
            ..
        } => Some((path, &plugin.name)),
        _ => None,
    });
    found.map_or(Ok(()), |(path, plugin)| {
        let text = format!("the image has device {path} (plug-in {plugin}), and a sandbox would act on the real one");
        Err(Error::new(ErrorKind::Unsupported, text).with_hint(
            "`cpr verify` without --restore checks the image; a restart where the device is free shows the rest",
        ))
    })
}

mod libc_signal {
    pub(super) const KILL: i32 = 9;
    pub(super) const CHILD: i32 = 17;
}

/// As first process of the sandbox: processes and threads that run.
fn inside(
    image: &Image,
    map: Option<(u32, u32)>,
    limits: &[(&'static str, Vec<u8>)],
    front: &OwnedFd,
) -> Result<(usize, usize)> {
    if let Some((uid, gid)) = map {
        namespace::map_only(uid, gid).context(|| "set up the sandbox's user namespace")?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(std::io::Error::from)
        .context(|| "tie the sandbox to its maker")?;
    // Had the front died before that call, nobody would have the other end.
    if is_alone(front)? {
        return Err(Error::new(ErrorKind::Cancelled, "the command has ended"));
    }
    namespace::leave_network().context(|| "leave the network")?;
    namespace::make_mounts_slave().context(|| "make the sandbox's mounts its own")?;
    namespace::mount_proc().context(|| "mount /proc for the sandbox")?;
    let manifest = image.manifest();
    protect(manifest)?;
    prepare_ipc(limits)?;
    namespace::raise_loopback().context(|| "bring the sandbox's loopback up")?;
    for family in ["ipv4", "ipv6"] {
        // Sockets may be bound to addresses of this machine that the sandbox has not; where the kernel does not allow
        // it the restart says which.
        let _ = std::fs::write(format!("/proc/sys/net/{family}/ip_nonlocal_bind"), "1");
    }
    let null: OwnedFd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context(|| "open /dev/null")?
        .into();
    for stream in 0..=2 {
        spawn::set_standard_stream(null.as_fd(), stream).context(|| "set standard streams")?;
    }
    spawn::default_signal(libc_signal::CHILD).context(|| "watch for children")?;
    rustix::process::setsid()
        .map_err(std::io::Error::from)
        .context(|| "begin a session")?;
    let terminal = manifest.terminals.iter().any(|terminal| terminal.external);
    let pair = terminal.then(terminal_relay::open_pair).transpose();
    let pair = pair.context(|| "make a terminal")?;
    let root = start_image(
        image,
        JobTerminal::choose(pair.as_ref().map(|pair| pair.slave.as_fd()), JobControl::None),
        true,
        Rebirth::default(),
        None,
        None,
        Manner {
            in_sandbox: true,
            own_cgroups: true,
        },
    )?
    .root_pid;
    let threads = first_steps(manifest, root, front)?;
    Ok((manifest.processes.len(), threads))
}

/// Whether the command that reads from the other end has ended.
fn is_alone(front: &OwnedFd) -> Result<bool> {
    let now = wait(&[(front.as_fd(), PollFlags::empty())], Some(Instant::now())).context(|| "test the command")?;
    Ok(now[0])
}

/// Makes everything read-only, but for overlays over directories that are written to.
fn protect(manifest: &Manifest) -> Result<()> {
    let read_only =
        |path, on, below| namespace::set_read_only(path, on, below).context(|| "make the sandbox's mounts read-only");
    let (directories, wishes) = written(manifest);
    let mut mounts = mount_points()?;
    // What layers have is not to be hidden by a cover, and is not understood through one.
    mounts.extend(layers(manifest));
    mounts.sort();
    mounts.dedup();
    read_only(c"/", true, true)?;
    // Ours: writing there changes nothing outside. Terminals are devices, but their nodes change owner and mode.
    read_only(c"/proc", false, false)?;
    if mounts.iter().any(|mount| mount == Path::new("/dev/pts")) {
        read_only(c"/dev/pts", false, false)?;
    }
    let place = PLACES.into_iter().find(|place| path_of(place).is_dir());
    let place = place.ok_or_else(|| Error::new(ErrorKind::Unsupported, "there is no directory to mount memory at"))?;
    // Opened before memory hides some of them.
    let mut covered: Vec<PathBuf> = Vec::new();
    let mut covers = Vec::new();
    for (directory, required) in directories
        .iter()
        .map(|d| (d, true))
        .chain(wishes.iter().map(|d| (d, false)))
    {
        let is_under = |above: &PathBuf| {
            let between =
                |mount: &&PathBuf| mount.starts_with(above) && *mount != above && directory.starts_with(mount);
            directory.starts_with(above) && !mounts.iter().any(|mount| between(&mount))
        };
        if covered.iter().any(is_under) {
            continue;
        }
        match Cover::open(directory, &mounts) {
            Ok(cover) => {
                covered.push(directory.clone());
                covers.push(cover);
            }
            // What is not there is the restart's to complain about.
            Err(error) if !required || error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    namespace::mount_memory(place).context(|| "mount memory for changes")?;
    std::env::set_current_dir(path_of(place)).context(|| "enter the memory for changes")?;
    for (number, cover) in covers.iter().enumerate() {
        cover.mount(number)?;
    }
    std::env::set_current_dir("/").context(|| "leave the memory for changes")?;
    namespace::detach_mount(place).context(|| "hide the memory for changes")?;
    covers.iter().try_for_each(Cover::show_mounts)
}

fn path_of(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

/// A directory to be covered by an overlay, held.
struct Cover {
    path: PathBuf,
    directory: OwnedFd,
    metadata: std::fs::Metadata,
    /// What is mounted directly below it, which an overlay does not show.
    below: Vec<(PathBuf, OwnedFd)>,
}

impl Cover {
    fn open(path: &Path, mounts: &[PathBuf]) -> Result<Cover> {
        let what = || format!("protect directory {}", path.display());
        if path == Path::new("/") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "files directly in / cannot be protected from the job",
            ));
        }
        let hold = |path: &Path, flags: OFlags| {
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())
                .map_err(std::io::Error::from)
                .context(what)
        };
        let directory = hold(path, OFlags::DIRECTORY)?;
        let metadata = std::fs::metadata(path).context(what)?;
        let mut below: Vec<(PathBuf, OwnedFd)> = Vec::new();
        for mount in mounts.iter().filter(|mount| mount.starts_with(path) && *mount != path) {
            if !below.iter().any(|(known, _)| mount.starts_with(known)) {
                below.push((mount.clone(), hold(mount, OFlags::empty())?));
            }
        }
        Ok(Cover {
            path: path.to_path_buf(),
            directory,
            metadata,
            below,
        })
    }

    /// Covers it; the working directory is where changes go.
    fn mount(&self, number: usize) -> Result<()> {
        let what = || format!("protect directory {}", self.path.display());
        let (upper, work) = (format!("changes-{number}"), format!("work-{number}"));
        for directory in [&upper, &work] {
            std::fs::create_dir(directory).context(what)?;
        }
        // The overlay's top has owner and mode of this one. What cannot be given away stays ours, which may do less.
        let _ = chown(&upper, Some(self.metadata.uid()), Some(self.metadata.gid()));
        std::fs::set_permissions(&upper, self.metadata.permissions()).context(what)?;
        namespace::mount_overlay(self.directory.as_fd(), &upper, &work)
            .context(what)
            .map_err(|error| error.with_hint("the sandbox needs a kernel and file system that overlayfs works with"))
    }

    /// Shows what is mounted below it again; nothing may hide it any more.
    fn show_mounts(&self) -> Result<()> {
        let what = || format!("protect directory {}", self.path.display());
        for (path, held) in &self.below {
            let to = CString::new(path.as_os_str().as_bytes())
                .map_err(|_| crate::wire::internal("a mount point with a zero in it"))?;
            namespace::bind(held.as_fd(), &to).context(what)?;
        }
        Ok(())
    }
}

/// Directories in which the restart or the job writes to files it has; and those in which it may well make new ones.
fn written(manifest: &Manifest) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let mut found = BTreeSet::new();
    let mut add = |path: &Path| {
        if let Some(parent) = path.parent().filter(|parent| parent.is_absolute()) {
            found.insert(parent.to_path_buf());
        }
    };
    let locked: BTreeSet<usize> = manifest
        .processes
        .iter()
        .flat_map(|process| {
            let holds = |fd: i32| process.posix_locks.iter().any(|lock| lock.fd == fd);
            let descriptors = process.descriptors.iter().filter(move |d| holds(d.fd));
            descriptors.map(|d| d.file.index()).collect::<Vec<_>>()
        })
        .collect();
    for (index, file) in manifest.files.iter().enumerate() {
        // Locks that the job itself may hold at this very moment.
        let locks = file.flock.is_some() || !file.ofd_locks.is_empty() || locked.contains(&index);
        match &file.object {
            Object::Regular(regular) if file.flags & 3 != 0 || locks => add(regular.path.as_path()),
            Object::Fifo(fifo) => add(fifo.path.as_path()),
            _ => {}
        }
    }
    for file in manifest.mapped_files.iter().filter(|file| file.writable) {
        add(file.path.as_path());
    }
    for file in &manifest.saved_files {
        match &file.kind {
            SavedFileKind::Deleted { path }
            | SavedFileKind::DeletedDirectory { path }
            | SavedFileKind::DeletedLink { path, .. }
            | SavedFileKind::SharedMemory { path }
            | SavedFileKind::Backup { path } => add(path.as_path()),
            SavedFileKind::Memfd { .. } | SavedFileKind::SharedAnonymous => {}
        }
    }
    for policy in &manifest.file_policies {
        if policy.truncate == Some(true) || policy.content == FileContent::BackupRestore {
            add(policy.path.as_path());
        }
    }
    for socket in manifest.sockets.iter().filter(|socket| socket.node.is_some()) {
        let bound = socket.bind_directory.as_path().join(socket.address.as_path());
        if !socket.file_name.is_empty() {
            add(&bound.with_file_name(socket.file_name.as_path()));
        }
        add(&bound);
        // Of one with an absolute name, the directory its file is in.
        add(socket.bind_directory.as_path());
    }
    let pseudo = |path: &PathBuf| path.starts_with("/proc") || path.starts_with("/sys") || path == Path::new("/dev");
    found.retain(|path| !pseudo(path));
    let working = manifest.processes.iter().map(|process| &process.cwd);
    let wishes = working
        .filter(|cwd: &&ByteString| cwd.0.len() > 1)
        .map(|cwd| cwd.as_path().to_path_buf());
    (found, wishes.filter(|path| !pseudo(path)).collect())
}

/// Directories that are layers of file systems of the job's (overlay), as far as they are there.
fn layers(manifest: &Manifest) -> Vec<PathBuf> {
    let points = manifest.mount_namespaces.iter().flat_map(|namespace| &namespace.tree);
    let directories = points.flat_map(|point| match &point.mounted {
        Mounted::Layers { lower, data, upper, .. } => lower
            .iter()
            .chain(data)
            .chain(upper.iter().map(|(upper, _)| upper))
            .collect(),
        _ => Vec::new(),
    });
    directories
        .filter_map(|directory| std::fs::canonicalize(directory.as_path()).ok())
        .collect()
}

/// Mount points that can be seen, in ascending order.
fn mount_points() -> Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    let lines = text.split(|byte| *byte == b'\n');
    let mut points: Vec<PathBuf> = lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsStr::from_bytes(&unescaped(field))))
        .collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// Space, tab, line feed and backslash are written as `\ooo`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

/// A thread that is waited for.
struct Walker {
    pid: i32,
    tid: i32,
    /// Its time on a processor when it was first looked at.
    before: Option<u64>,
}

/// Waits until every thread has run a while, or waits for something, or has ended; gives their number.
fn first_steps(manifest: &Manifest, root: i32, front: &OwnedFd) -> Result<usize> {
    let mut walkers: Vec<Walker> = Vec::new();
    for process in &manifest.processes {
        walkers.extend(process.threads.iter().map(|thread| Walker {
            pid: process.pid,
            tid: thread.tid,
            before: None,
        }));
    }
    let all = walkers.len();
    let deadline = Instant::now() + FIRST_STEPS;
    // A second look after all have moved: a thread that faults does so at once.
    let mut quiet = 0;
    while quiet < 2 {
        walkers.retain_mut(|walker| !has_moved(walker));
        if walkers.is_empty() {
            quiet += 1;
        }
        if reap(root, manifest)? {
            break;
        }
        if let Some(walker) = walkers.first()
            && Instant::now() >= deadline
        {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("thread {} of process {} has not run", walker.tid, walker.pid),
            ));
        }
        if is_alone(front)? {
            return Err(Error::new(ErrorKind::Cancelled, "the command has ended"));
        }
        wait(&[], Some(Instant::now() + LOOK)).context(|| "wait for the job")?;
    }
    Ok(all)
}

/// Whether a thread has run since it was let go. One that sleeps has: it went back into its system call by itself.
fn has_moved(walker: &mut Walker) -> bool {
    let path = |name: &str| format!("/proc/{}/task/{}/{name}", walker.pid, walker.tid);
    let Ok(stat) = std::fs::read_to_string(path("stat")) else {
        return true;
    };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next());
    if state != Some(b'R') {
        return state != Some(b't');
    }
    let run = std::fs::read_to_string(path("schedstat")).unwrap_or_default();
    let Some(run) = run.split(' ').next().and_then(|n| n.parse::<u64>().ok()) else {
        return false;
    };
    let before = *walker.before.get_or_insert(run);
    run.saturating_sub(before) >= RUN_NS
}

/// Collects what has ended; true when the root process has, in a way that is its own business.
fn reap(root: i32, manifest: &Manifest) -> Result<bool> {
    let mut ended = false;
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => (pid.as_raw_nonzero().get(), status.as_raw()),
            Err(rustix::io::Errno::INTR) => continue,
            _ => return Ok(ended),
        };
        let signal = status & 0x7f;
        let was_dead = |p: &cpr_image::model::Process| p.pid == pid && matches!(p.state, ProcessState::Zombie(_));
        if FATAL.contains(&signal) && !manifest.processes.iter().any(was_dead) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("process {pid} was ended by signal {signal} as soon as it ran"),
            ));
        }
        ended |= pid == root;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_written() {
        assert_eq!(unescaped(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescaped(b"/a\\"), b"/a\\");
        let points = mount_points().unwrap();
        assert!(points.contains(&PathBuf::from("/proc")), "{points:?}");
    }
}
