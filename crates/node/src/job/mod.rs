//! One job: what it was asked to be, how it is, and everything that can be done with it.

mod records;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_image::Bundle;
use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::directory::Directory;
use crate::engine::{Image, Keep, Outside};
use crate::known::record_of;
use crate::outcome::Outcome;
use crate::state::{StoredSpec, read_json, write_json};
use crate::target::{self, Target, Traced};
use crate::wire::wait;

pub(crate) use records::{Exit, State, StopIntent};

pub use records::{ImageEntry, JobSpec, JobStatus, LastCheckpoint, Phase, Sequence};

pub(crate) const LOCK: &str = "lock";
pub(crate) const CHECKPOINT_LOCK: &str = "checkpoint.lock";
pub(crate) const LOG: &str = "log";
pub(crate) const SOCKET: &str = "control.sock";
const STATE: &str = "state.json";
const STOP: &str = "stop.json";
const LAST: &str = "checkpoint.json";
/// What our workers are called in /proc.
const WORKER_NAME: &str = "cpr-worker";
/// SIGKILL.
pub(crate) const KILL: i32 = 9;
/// How long whoever wants something of a job that is being started waits for it.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// How long a job may take to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// Runs a command with its output in a file.
const REDIRECT: &str = r#"exec "$@" >>"$0" 2>&1"#;

/// What of a job's command says that its output goes to a file; nothing where it does not.
pub(crate) fn redirection(command: &[OsString]) -> &[OsString] {
    match command.get(..4) {
        Some(begin) if begin[..3] == ["/bin/sh", "-c", REDIRECT] => begin,
        _ => &[],
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::symlink_metadata(path).ok()?.ino())
}

/// One job of a state directory.
#[derive(Debug)]
pub struct Job {
    jobs: Arc<Directory>,
    pub(crate) directory: Directory,
    name: String,
    spec: JobSpec,
    pub(crate) stored: StoredSpec,
}

impl Job {
    pub(crate) fn new(jobs: Arc<Directory>, directory: Directory, name: String, stored: StoredSpec) -> Job {
        let spec = JobSpec {
            name: Some(name.clone()),
            command: stored.command.iter().map(OsString::from).collect(),
            every: stored.every_ms.map(Duration::from_millis),
            sequence: stored.sequence.as_deref().and_then(|text| text.parse().ok()),
            keep: stored.keep,
            lifetime: stored.lifetime_s.map(Duration::from_secs),
            terminal: stored.terminal,
            share_ipc: stored.share_ipc,
            tcp: stored.tcp,
            files: stored.files.clone(),
            keep_files: Keep {
                libraries: stored.save_libraries,
                executables: stored.save_executable,
            },
            save_on: stored.save_on.clone(),
            lease: stored.lease.clone(),
            engine: stored.engine.clone(),
            // It is part of the command that is kept.
            wrapper: Vec::new(),
            directory: Some(stored.directory.clone()),
            // So is this.
            output: None,
        };
        Job {
            jobs,
            directory,
            name,
            spec,
            stored,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was asked to be.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The file its output goes to when it runs detached.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join(LOG)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn state(&self) -> Result<Option<State>> {
        read_json(&self.directory, STATE)
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        write_json(&self.directory, STATE, state)
    }

    pub(crate) fn stop_intent(&self) -> Result<Option<StopIntent>> {
        read_json(&self.directory, STOP)
    }

    pub(crate) fn set_stop_intent(&self, intent: Option<&StopIntent>) -> Result<()> {
        match intent {
            Some(intent) => write_json(&self.directory, STOP, intent),
            None => self.directory.remove(STOP),
        }
    }

    pub(crate) fn last_checkpoint(&self) -> Result<Option<LastCheckpoint>> {
        read_json(&self.directory, LAST)
    }

    pub(crate) fn set_last_checkpoint(&self, last: &LastCheckpoint) -> Result<()> {
        write_json(&self.directory, LAST, last)
    }

    /// Whether the job lives: its supervisor or the first process of its namespace holds the lock, or the process that
    /// was registered is there.
    pub fn is_alive(&self) -> Result<bool> {
        if self.directory.is_locked(LOCK)? {
            return Ok(true);
        }
        Ok(self.state()?.is_some_and(|state| state.registered().is_some()))
    }

    /// Of a job that was registered and has ended: the image it was stopped into by a checkpoint.
    fn stopped_registered(&self) -> Result<Option<PathBuf>> {
        let intent = self.stop_intent()?.filter(StopIntent::is_complete);
        Ok(intent.map(|intent| intent.image.unwrap_or_default()))
    }

    /// The state of a job that lives.
    pub(crate) fn living(&self) -> Result<State> {
        let dead = || {
            Error::new(ErrorKind::Gone, format!("job {} is not running", self.name))
                .with_hint(format!("`cpr restart {}` goes on from its newest image", self.name))
        };
        if !self.is_alive()? {
            return Err(dead());
        }
        let state = self.settled_state()?.ok_or_else(dead)?;
        match state.phase {
            _ if state.is_starting() && self.is_alive()? => Err(Error::new(
                ErrorKind::Busy,
                format!("job {} is being started", self.name),
            )),
            _ if state.is_starting() => Err(dead()),
            Phase::Running | Phase::Suspended => Ok(state),
            _ => Err(dead()),
        }
    }

    /// The state, once the job is no longer being started: what a program does first may be to ask for a checkpoint of
    /// itself, before its supervisor has written down that it runs.
    fn settled_state(&self) -> Result<Option<State>> {
        let is_starting = |state: &Option<State>| state.as_ref().is_some_and(State::is_starting);
        let state = self.state()?;
        if !is_starting(&state) {
            return Ok(state);
        }
        let what = || format!("wait until job {} is started", self.name);
        let deadline = Instant::now() + START_PATIENCE;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .context(what)?;
        inotify::add_watch(&watch, self.path(), WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)
            .map_err(std::io::Error::from)
            .context(what)?;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        loop {
            let state = self.state()?;
            let changed = || wait(&[(watch.as_fd(), PollFlags::IN)], Some(deadline)).context(what);
            if !is_starting(&state) || !self.is_alive()? || !changed()?[0] {
                return Ok(state);
            }
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            while events.next().is_ok() {}
        }
    }

    /// The root process, found here and verified; when that has ended before the rest of the job, as of a daemon, the
    /// oldest of the processes that init has adopted.
    pub(crate) fn root_target(&self, state: &State) -> Result<Target> {
        let gone = || {
            Error::new(
                ErrorKind::Gone,
                format!("the root process of job {} has ended", self.name),
            )
        };
        let inner = state.root.ok_or_else(gone)?;
        let ended = state.exit.is_some();
        let Some(init) = state.init else {
            if ended {
                return Err(gone());
            }
            return Target::open_same(state.root_here.ok_or_else(gone)?).map_err(|_| gone());
        };
        if self.shares_namespace(state) {
            // Its number is as recorded, and is taken while the namespace's init has not seen it end.
            let adopted = |pid: &i32| target::parent(*pid) == Some(1) && target::state(*pid).is_ok_and(|s| s != 'Z');
            let pid = if ended {
                target::all_pids()?.into_iter().find(adopted).ok_or_else(gone)?
            } else {
                inner
            };
            return Target::open(pid).map_err(|_| gone());
        }
        let held = Target::open_same(init)?;
        let lives = |m: &&target::Member| target::state(m.pid).is_ok_and(|s| s != 'Z');
        let root = |members: &[target::Member]| {
            let root = members.iter().find(|m| !ended && m.inner == inner);
            root.filter(lives).map(|m| m.pid)
        };
        let find = || -> Result<Option<i32>> {
            let root_itself = |member: target::Member| !ended && member.inner == inner;
            if let Some(member) = target::find_below(init.pid, root_itself).filter(|member| lives(&member)) {
                return Ok(Some(member.pid));
            }
            let mut members = target::members(init.pid)?;
            members.retain(|m| m.pid != init.pid);
            // It may have ended a moment ago, which the supervisor has not written down yet.
            let adopted = |m: &&target::Member| target::parent(m.pid) == Some(init.pid) && lives(m);
            Ok(root(&members).or_else(|| members.iter().find(adopted).map(|m| m.pid)))
        };
        let pid = find()?.ok_or_else(gone)?;
        let target = Target::open(pid)?;
        // Between the search and the opening the PID may have gone to another process: search again, now held.
        if find()? != Some(pid) || !held_alive(&held) {
            return Err(gone());
        }
        Ok(target)
    }

    /// The job's init, where it has one and we may look at it: whose namespaces are the job's. Its root process may
    /// have gone into others.
    pub(crate) fn init_target(&self, state: &State) -> Result<Option<Target>> {
        let Some(init) = state.init else {
            return Ok(None);
        };
        if !self.shares_namespace(state) {
            return Target::open_same(init).map(Some);
        }
        // It has rights over the job that an ordinary user's process in it has not.
        match cpr_kernel::namespace::identity("1", "pid") {
            Ok(_) => Target::open(1).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// What is mounted where a restart would make the job a mount namespace; none where the job has none of its own, or
    /// its supervisor is gone.
    pub(crate) fn mounts_outside(&self, state: &State) -> Option<Outside> {
        state.init?;
        let supervisor = Target::open_same(state.supervisor?).ok()?;
        let now = ProcDir::open(supervisor.pid).and_then(|proc| proc.mount_table());
        Some(Outside::new(now.ok()?, state.mounts.iter().cloned()))
    }

    /// The job's control group, where it has one.
    pub(crate) fn group(&self, state: &State) -> Option<PathBuf> {
        let init = self.init_target(state).ok().flatten()?;
        let group = crate::group::of_init(init.pid, &self.name)?;
        // It was of this process if that still lives.
        init.signal(0).is_ok().then_some(group)
    }

    /// Whether we are in the job's own PID namespace: numbers recorded outside mean nothing here.
    fn shares_namespace(&self, state: &State) -> bool {
        let own = cpr_kernel::namespace::identity("self", "pid").ok();
        state.init.is_some() && own.is_some() && state.pid_namespace == own
    }

    /// Whether we are a process of the job.
    pub(crate) fn is_around_us(&self, state: &State) -> bool {
        match state.init {
            Some(_) => self.shares_namespace(state),
            None => {
                let own = std::process::id() as i32;
                state.root_here.is_some_and(|root| target::descends_from(own, root.pid))
            }
        }
    }

    /// Those of its processes that somebody outside its PID namespace traces.
    pub(crate) fn traced(&self, state: &State) -> Result<Vec<Traced>> {
        match state.init {
            Some(_) if self.shares_namespace(state) => target::traced(None, WORKER_NAME),
            Some(init) => target::traced(Some(init.pid), WORKER_NAME),
            // The engine sees for itself.
            None => Ok(Vec::new()),
        }
    }

    /// How it is.
    pub fn status(&self) -> Result<JobStatus> {
        let mut alive = self.is_alive()?;
        let state = self.state()?;
        let is_starting = alive && state.as_ref().is_some_and(State::is_starting);
        // It may have ended in between.
        alive = alive && (!is_starting || self.is_alive()?);
        let phase = match &state {
            None => Phase::Created,
            Some(_) if alive && is_starting => Phase::Starting,
            Some(state) if alive => match state.phase {
                Phase::Running if self.is_suspended()? => Phase::Suspended,
                phase => phase,
            },
            Some(state) if state.is_registered() => match self.stopped_registered()? {
                Some(_) => Phase::Stopped,
                None => Phase::Exited,
            },
            // The supervisor could not write how it ended: it was killed, or the machine went down.
            Some(state) => match state.phase {
                Phase::Starting | Phase::Running | Phase::Suspended => Phase::Crashed,
                phase => phase,
            },
        };
        if phase == Phase::Crashed
            && let Some(group) = state.as_ref().and_then(|s| s.own_cgroup.as_deref())
        {
            // Its supervisor could not.
            crate::group::tidy(self, group);
        }
        let exit = state.as_ref().and_then(|s| s.exit);
        let pid = state
            .as_ref()
            .filter(|_| alive)
            .and_then(|s| self.root_target(s).ok())
            .map(|t| t.pid);
        let state = state.as_ref();
        Ok(JobStatus {
            name: self.name.clone(),
            phase,
            pid,
            inner_pid: state.filter(|_| alive).and_then(|s| s.root),
            supervisor: state.filter(|_| alive).and_then(|s| s.supervisor).map(|s| s.pid),
            command: self.stored.command.clone(),
            directory: self.stored.directory.clone(),
            every_ms: self.stored.every_ms,
            keep: self.stored.keep,
            terminal: self.stored.terminal,
            created_ms: self.stored.created_ms,
            started_ms: state.map(|s| s.started_ms),
            finished_ms: state.and_then(|s| s.finished_ms),
            exit_code: exit.map(|e| e.code),
            signal: exit.and_then(|e| e.signal),
            restarted_from: state.and_then(|s| s.restarted_from.clone()),
            stopped_into: match state {
                Some(state) if !alive && state.is_registered() => self.stopped_registered()?,
                _ => state.and_then(|s| s.stopped_into.clone()),
            },
            images: self.images()?.len(),
            last_checkpoint: self.last_checkpoint()?,
            error: state.and_then(|s| s.error.clone()),
            cgroup: state.filter(|_| alive).and_then(|s| self.group(s)),
            no_cgroup: state.filter(|_| alive).and_then(|s| s.no_cgroup.clone()),
        })
    }

    pub(crate) fn image_directory(&self) -> Result<Directory> {
        self.directory.ensure_sub("images")
    }

    /// Its images in the order they were made.
    pub fn images(&self) -> Result<Vec<ImageEntry>> {
        // Not made here, for the reason that `Directory::is_locked` makes no lock.
        let directory = match self.directory.sub("images") {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            result => result?,
        };
        let mut images: Vec<ImageEntry> = directory
            .names()?
            .iter()
            .filter_map(|name| {
                let number = image_number(name)?;
                let (bytes, time) = directory.file_size(name)?;
                let path = directory.path().join(name);
                Some(ImageEntry {
                    number,
                    path,
                    bytes,
                    time,
                })
            })
            .collect();
        images.sort_by_key(|image| image.number);
        Ok(images)
    }

    /// Removes what checkpoints that were killed have left of images without a name yet. The caller holds the
    /// checkpoint lock, so that nobody is writing one.
    pub(crate) fn remove_parts(&self) -> Result<()> {
        let directory = self.image_directory()?;
        for name in directory.names()? {
            if let Some(name) = name.to_str().filter(|name| is_part(name)) {
                directory.remove(name)?;
            }
        }
        Ok(())
    }

    /// Removes all but the newest `keep` images and those they need; at least one always stays. Where one that stays
    /// cannot be read, so that nobody knows what it needs, nothing is removed.
    pub(crate) fn prune(&self, keep: usize) -> Result<()> {
        let images = self.images()?;
        let surplus = images.len().saturating_sub(keep.max(1));
        if surplus == 0 {
            return Ok(());
        }
        let mut needed = BTreeSet::new();
        for image in &images[surplus..] {
            // One of another engine needs no other image.
            if matches!(Bundle::recognise(&image.path), Ok(Some(_))) {
                continue;
            }
            let Ok(image) = Image::open(&image.path) else {
                return Ok(());
            };
            needed.extend(needs(&image));
        }
        let directory = self.image_directory()?;
        for image in &images[..surplus] {
            if let Some(name) = image.path.file_name().filter(|name| !needed.contains(*name))
                && let Some(name) = name.to_str()
            {
                directory.remove(name)?;
                if let Some(record) = record_of(name) {
                    directory.remove(&record)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a signal: SIGKILL to all processes of the job, every other to its root process.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let state = self.living()?;
        if signal != KILL {
            return self.root_target(&state)?.signal(signal);
        }
        match state.init {
            // The kernel ends all processes of a PID namespace with its first one.
            Some(init) => Target::open_same(init)?.signal(KILL)?,
            None => {
                for target in self.host_members(&state)? {
                    match target.signal(KILL) {
                        Err(error) if error.kind() != ErrorKind::Gone => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        // A frozen cgroup of version 1 lets nobody die.
        self.thaw()
    }

    /// Has the TCP connections of the job be reset when it ends, so that their ports are free at once.
    ///
    /// # Errors
    /// Of a process that lets nobody look at it; what can be done is done.
    pub fn reset_connections(&self) -> Result<()> {
        let state = self.living()?;
        let members = match state.init {
            Some(init) => target::tree(Target::open_same(init)?)?,
            None => self.host_members(&state)?,
        };
        let each = members
            .iter()
            .map(|member| cpr_native::files::reset_when_closed(member.pid, member.pidfd()));
        each.fold(Ok(()), Result::and)
    }

    /// The processes of a job that lives in our PID namespace: the descendants of its supervisor, which adopts the
    /// job's orphans, except workers.
    pub(crate) fn host_members(&self, state: &State) -> Result<Vec<Target>> {
        if state.is_registered() {
            return target::tree(self.root_target(state)?);
        }
        let gone = || {
            Error::new(
                ErrorKind::Gone,
                format!("the supervisor of job {} has ended", self.name),
            )
        };
        let supervisor = Target::open_same(state.supervisor.ok_or_else(gone)?)?;
        let all = target::all_pids()?;
        let mut parents = vec![supervisor.pid];
        let mut members: Vec<Target> = Vec::new();
        while let Some(parent) = parents.pop() {
            for &pid in &all {
                if members.iter().any(|m| m.pid == pid) {
                    continue;
                }
                let Ok(target) = Target::open(pid) else { continue };
                let is_child = target::status_line(pid, "PPid").ok().flatten() == Some(parent.to_string());
                let worker = parent == supervisor.pid
                    && state.root != Some(pid)
                    && target::status_line(pid, "Name").ok().flatten().as_deref() == Some(WORKER_NAME);
                if is_child && !worker {
                    parents.push(pid);
                    members.push(target);
                }
            }
        }
        Ok(members)
    }

    /// Waits until the job ends, or the time has passed.
    pub(crate) fn await_end(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let late = || Error::new(ErrorKind::TimedOut, format!("job {} has not ended", self.name));
        if let Some(state) = self.state()?.filter(|_| self.is_alive().unwrap_or(true)) {
            // Supervisor first: it writes the result just before it ends. Where it was killed its init follows.
            for identity in [state.supervisor, state.init].into_iter().flatten() {
                if let Ok(target) = Target::open_same(identity)
                    && !target.wait(deadline)?
                {
                    return Err(late());
                }
            }
            if let Some(target) = state.registered()
                && !target.wait(deadline)?
            {
                return Err(late());
            }
        }
        Ok(())
    }

    /// Waits until the job ends, or the time has passed; tells how it ended.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Outcome> {
        self.await_end(timeout)?;
        let state = self
            .state()?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("job {} was never started", self.name)))?;
        if state.is_registered() {
            let unknown = || {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "job {} has ended, and only who started it knows its exit code",
                        self.name
                    ),
                )
            };
            let image = self.stopped_registered()?.ok_or_else(unknown)?;
            return Ok(Outcome::StoppedByCheckpoint { image });
        }
        Ok(match (state.phase, state.exit) {
            (Phase::Stopped, _) => Outcome::StoppedByCheckpoint {
                image: state.stopped_into.unwrap_or_default(),
            },
            (Phase::Exited | Phase::Crashed, Some(exit)) => Outcome::Exited {
                code: exit.code,
                signal: exit.signal,
            },
            (Phase::Failed, _) => {
                let why = state.error.unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("job {} could not be started: {why}", self.name),
                ));
            }
            // It died without a word, with its supervisor.
            _ => Outcome::Exited {
                code: 128 + KILL,
                signal: Some(KILL),
            },
        })
    }

    /// Removes the job with its images and log. A living one only when `force` is given: it is killed first.
    pub fn remove(self, force: bool) -> Result<()> {
        if self.is_alive()? {
            if !force {
                return Err(Error::new(ErrorKind::Busy, format!("job {} is running", self.name))
                    .with_hint("end it first, or remove it by force"));
            }
            match self.kill(KILL) {
                Err(error) if error.kind() != ErrorKind::Gone => return Err(error),
                _ => {}
            }
            self.await_end(Some(KILL_TIMEOUT))?;
        }
        self.thaw()?;
        let _lock = self
            .directory
            .try_lock(LOCK)?
            .ok_or_else(|| Error::new(ErrorKind::Busy, format!("job {} is being started", self.name)))?;
        crate::group::forget(&self);
        self.jobs.remove_tree(&self.name)
    }

    /// Removes it though we hold its lock: it was made and could not be started.
    pub(crate) fn discard(&self) {
        let _ = self.jobs.remove_tree(&self.name);
    }
}

/// File names of the images an image refers to.
fn needs(image: &Image) -> impl Iterator<Item = OsString> + '_ {
    let ancestors = image.manifest().ancestors.iter();
    ancestors.filter_map(|ancestor| ancestor.path.as_path().file_name().map(OsStr::to_os_string))
}

/// The image beside this one that needs it, if there is one: another image whose ancestor it is.
pub fn needed_by(path: &Path) -> Result<Option<PathBuf>> {
    if Bundle::recognise(path)?.is_some() {
        return Ok(None);
    }
    let own = Image::open(path)?.id();
    let path = std::path::absolute(path).context(|| format!("resolve {}", path.display()))?;
    let Some(directory) = path.parent() else {
        return Ok(None);
    };
    let what = || format!("list directory {}", directory.display());
    for entry in std::fs::read_dir(directory).context(what)? {
        let other = entry.context(what)?.path();
        if other == path || other.extension().is_none_or(|extension| extension != "cpr") {
            continue;
        }
        // What cannot be read needs nothing any more.
        let Ok(image) = Image::open(&other) else { continue };
        if image.manifest().ancestors.iter().any(|ancestor| ancestor.id.0 == own.0) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

fn held_alive(target: &Target) -> bool {
    target.signal(0).is_ok()
}

/// Whether this is `.NUMBER.cpr.XXXXXXXX.part`, as [`crate::engine::PendingImage`] calls an image under way.
fn is_part(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|n| n.strip_suffix(".part"));
    inner
        .and_then(|n| n.rsplit_once('.'))
        .is_some_and(|(image, random)| random.len() == 8 && image_number(OsStr::new(image)).is_some())
}

/// `000012.cpr` is 12.
fn image_number(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".cpr")?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// The file name of image `number`.
pub(crate) fn image_name(number: u64) -> String {
    format!("{number:06}.cpr")
}
