//! Suspend and resume: a job stands still and gives its memory back without an image (LBNL-2.2.1.3).
//!
//! Where a cgroup can be frozen the job notices nothing; elsewhere its processes get SIGSTOP, which their parents can
//! see. Memory is then paged out: clean file pages are dropped, others go to the swap, as far as there is one.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Bare;
use crate::directory::Directory;
use crate::job::{CHECKPOINT_LOCK, Job, State};
use crate::state::{StateDir, read_json, write_json};
use crate::target::{self, Identity, Target};

const FILE: &str = "suspend.json";
const STOP: i32 = 19;
const CONTINUE: i32 = 18;
/// How long freezing may take.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the processes were stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Method {
    /// A cgroup of ours of version 1 (controller `freezer`) or 2.
    Cgroup {
        /// The group.
        group: PathBuf,
        /// Where its processes came from.
        parent: PathBuf,
        version: u8,
    },
    /// SIGSTOP, to these processes (those that stood still before are not among them).
    Signal { stopped: Vec<Identity> },
}

/// Processes that stand still together.
pub(crate) enum Whole<'a> {
    Job(&'a Job, &'a State),
    Bare(Bare),
}

impl Whole<'_> {
    pub(crate) fn processes(&self) -> Result<Vec<Target>> {
        match self {
            Whole::Job(job, state) => job.processes(state),
            Whole::Bare(Bare::Process(pid)) => target::tree(Target::open(*pid)?),
            Whole::Bare(Bare::Session(sid)) => {
                let mut found: Vec<Target> = Vec::new();
                for member in target::session_members(*sid)? {
                    for process in target::tree(member)? {
                        if !found.iter().any(|known| known.pid == process.pid) {
                            found.push(process);
                        }
                    }
                }
                Ok(found)
            }
        }
    }

    /// Name of the cgroup they get.
    fn group(&self) -> String {
        match self {
            Whole::Job(job, state) => {
                let supervisor = state.supervisor.map_or(0, |s| s.pid);
                format!("gridcpr-{}-{supervisor}", job.name())
            }
            Whole::Bare(bare) => format!("gridcpr-{}", record(*bare).trim_end_matches(".json")),
        }
    }
}

/// Name of the file that says how processes that are no job were suspended.
fn record(bare: Bare) -> String {
    match bare {
        Bare::Process(pid) => format!("process-{pid}.json"),
        Bare::Session(sid) => format!("session-{sid}.json"),
    }
}

/// `suspended/process-PID.json`, `suspended/session-SID.json`: there while the processes are suspended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BareSuspension {
    /// The processes at that time; numbers may be others' by now.
    members: Vec<Identity>,
    method: Method,
}

/// How processes that are no job were suspended, if they are. What was said of others that had the number is removed.
fn bare_suspension(directory: &Directory, bare: Bare) -> Result<Option<BareSuspension>> {
    let name = record(bare);
    let Some(suspension) = read_json::<BareSuspension>(directory, &name)? else {
        return Ok(None);
    };
    if suspension
        .members
        .iter()
        .any(|member| Target::open_same(*member).is_ok())
    {
        return Ok(Some(suspension));
    }
    undo(&suspension.method)?;
    directory.remove(&name)?;
    Ok(None)
}

/// Refuses processes in a frozen cgroup: they cannot be stopped in a way that could be saved.
///
/// # Errors
/// [`ErrorKind::Busy`] for those.
pub(crate) fn refuse_suspended(bare: Bare) -> Result<()> {
    // A user without a place for jobs has suspended nothing.
    let Ok(directory) = StateDir::open().and_then(|state| state.suspended()) else {
        return Ok(());
    };
    match bare_suspension(&directory, bare)? {
        Some(BareSuspension {
            method: Method::Cgroup { .. },
            ..
        }) => Err(Error::new(ErrorKind::Busy, format!("{bare} is suspended")).with_hint("`cpr resume` it first")),
        _ => Ok(()),
    }
}

/// Stops a process with its descendants, or a session, and frees the memory as far as the machine allows.
pub fn suspend_bare(state: &StateDir, bare: Bare) -> Result<SuspendReport> {
    bare.representative()?;
    let whole = Whole::Bare(bare);
    let own = std::process::id() as i32;
    let processes = whole.processes()?;
    for process in &processes {
        match process.require_may_signal() {
            // It has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::Gone => {}
            result => result?,
        }
    }
    if processes.iter().any(|process| process.pid == own) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{bare} cannot be suspended by one of its own processes"),
        ));
    }
    let directory = state.suspended()?;
    if bare_suspension(&directory, bare)?.is_some() {
        return Err(Error::new(ErrorKind::Busy, format!("{bare} is suspended already")));
    }
    let method = freeze(&whole).or_else(|_| stop_by_signal(&whole))?;
    let stopped = whole.processes()?;
    let suspension = BareSuspension {
        members: stopped.iter().filter_map(|p| Identity::of(p.pid).ok()).collect(),
        method,
    };
    if let Err(error) = write_json(&directory, &record(bare), &suspension) {
        undo(&suspension.method)?;
        return Err(error);
    }
    Ok(free(&suspension.method, &stopped))
}

/// Lets processes that [`suspend_bare`] has stopped go on.
pub fn resume_bare(state: &StateDir, bare: Bare) -> Result<()> {
    bare.representative()?;
    let directory = state.suspended()?;
    let suspension = bare_suspension(&directory, bare)?;
    let suspension =
        suspension.ok_or_else(|| Error::new(ErrorKind::Usage, format!("{bare} was not suspended by `cpr suspend`")))?;
    undo(&suspension.method)?;
    directory.remove(&record(bare))
}

/// Pages out what stands still.
fn free(method: &Method, processes: &[Target]) -> SuspendReport {
    let resident = || processes.iter().map(|p| resident(p.pid)).sum();
    let resident_before = resident();
    let mut note = None;
    for process in processes {
        if let Err(error) = page_out(process) {
            note = Some(match error.kind() {
                ErrorKind::Denied => {
                    "paging out memory of other processes needs CAP_SYS_NICE (root): none was freed".to_string()
                }
                _ => error.chain(),
            });
        }
    }
    if note.is_none() && !has_swap() {
        note = Some("there is no swap: only memory that mirrors files could be freed".to_string());
    }
    SuspendReport {
        method: match method {
            Method::Cgroup { .. } => "cgroup",
            Method::Signal { .. } => "signal",
        },
        processes: processes.len(),
        resident_before,
        resident_after: resident(),
        note,
    }
}

/// `suspend.json`: there while the job is suspended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Suspension {
    /// Supervisor at that time: a restarted job is another one.
    supervisor: Option<Identity>,
    method: Method,
}

/// What suspending achieved.
#[derive(Debug, Clone, Serialize)]
pub struct SuspendReport {
    /// `cgroup` or `signal`.
    pub method: &'static str,
    /// Processes stopped.
    pub processes: usize,
    /// Resident memory before, bytes (pages shared by several processes count in each).
    pub resident_before: u64,
    /// Resident memory after.
    pub resident_after: u64,
    /// Why not all memory could be freed.
    pub note: Option<String>,
}

impl Job {
    fn suspension(&self) -> Result<Option<Suspension>> {
        read_json(&self.directory, FILE)
    }

    /// Whether the job is suspended.
    pub(crate) fn is_suspended(&self) -> Result<bool> {
        let Some(suspension) = self.suspension()? else {
            return Ok(false);
        };
        Ok(self
            .state()?
            .is_some_and(|state| state.supervisor == suspension.supervisor))
    }

    fn processes(&self, state: &State) -> Result<Vec<Target>> {
        match state.init {
            Some(init) => {
                Target::open_same(init)?;
                let members = target::members(init.pid)?;
                let targets = members
                    .iter()
                    .filter(|m| m.pid != init.pid)
                    .filter_map(|m| Target::open(m.pid).ok());
                Ok(targets.collect())
            }
            None => self.host_members(state),
        }
    }

    /// Stops the job and frees its memory as far as the machine allows.
    pub fn suspend(&self) -> Result<SuspendReport> {
        let state = self.living()?;
        // Neither beside a checkpoint nor beside another suspension.
        let busy = || Error::new(ErrorKind::Busy, format!("job {} is being checkpointed", self.name()));
        let _lock = self.directory.try_lock(CHECKPOINT_LOCK)?.ok_or_else(busy)?;
        if self.is_suspended()? {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("job {} is suspended already", self.name()),
            ));
        }
        for process in self.processes(&state)? {
            process.require_may_signal()?;
        }
        let whole = Whole::Job(self, &state);
        let method = freeze(&whole).or_else(|_| stop_by_signal(&whole))?;
        let suspension = Suspension {
            supervisor: state.supervisor,
            method,
        };
        if let Err(error) = write_json(&self.directory, FILE, &suspension) {
            undo(&suspension.method)?;
            return Err(error);
        }
        let processes = self.processes(&state)?;
        Ok(free(&suspension.method, &processes))
    }

    /// Lets a suspended job go on.
    pub fn resume(&self) -> Result<()> {
        self.living()?;
        if !self.is_suspended()? {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("job {} is not suspended", self.name()),
            ));
        }
        self.thaw()
    }

    /// Undoes a suspension if there is one.
    pub(crate) fn thaw(&self) -> Result<()> {
        if let Some(suspension) = self.suspension()? {
            undo(&suspension.method)?;
            self.directory.remove(FILE)?;
        }
        Ok(())
    }
}

/// Puts the processes into a cgroup below their present one and freezes it.
fn freeze(whole: &Whole<'_>) -> Result<Method> {
    let processes = whole.processes()?;
    let first = processes
        .first()
        .ok_or_else(|| Error::new(ErrorKind::Gone, "no process is left"))?;
    let (parent, version) = cgroup_of(first.pid)?;
    let group = parent.join(whole.group());
    std::fs::create_dir(&group).context(|| format!("make cgroup {}", group.display()))?;
    let method = Method::Cgroup {
        group: group.clone(),
        parent,
        version,
    };
    let frozen = fill_and_freeze(whole, &group, version);
    match frozen {
        Ok(()) => Ok(method),
        Err(error) => {
            undo(&method)?;
            Err(error)
        }
    }
}

fn fill_and_freeze(whole: &Whole<'_>, group: &Path, version: u8) -> Result<()> {
    // Children of processes moved are born in the group; two rounds without a newcomer are enough.
    let mut quiet = 0;
    while quiet < 2 {
        let inside = std::fs::read_to_string(group.join("cgroup.procs")).context(|| "read the cgroup")?;
        let inside: Vec<i32> = inside.lines().filter_map(|l| l.parse().ok()).collect();
        quiet += 1;
        for process in whole.processes()? {
            if !inside.contains(&process.pid) && target::state(process.pid).is_ok_and(|s| s != 'Z') {
                quiet = 0;
                match std::fs::write(group.join("cgroup.procs"), process.pid.to_string()) {
                    Err(error) if error.raw_os_error() != Some(3) => {
                        return Err(error).context(|| format!("move process {} to a cgroup", process.pid));
                    }
                    _ => {}
                }
            }
        }
    }
    set_frozen(group, version, true)
}

fn stop_by_signal(whole: &Whole<'_>) -> Result<Method> {
    let mut stopped: Vec<Identity> = Vec::new();
    loop {
        let mut news = false;
        for process in whole.processes()? {
            let Ok(identity) = Identity::of(process.pid) else {
                continue;
            };
            if stopped.contains(&identity) || target::state(process.pid).is_ok_and(|s| "TZX".contains(s)) {
                continue;
            }
            if process.signal(STOP).is_ok() {
                stopped.push(identity);
                news = true;
            }
        }
        if !news {
            return Ok(Method::Signal { stopped });
        }
    }
}

fn undo(method: &Method) -> Result<()> {
    match method {
        Method::Signal { stopped } => {
            for identity in stopped {
                // What has ended meanwhile needs nothing.
                let _ = Target::open_same(*identity).and_then(|t| t.signal(CONTINUE));
            }
        }
        Method::Cgroup { group, parent, version } => {
            if !group.exists() {
                return Ok(());
            }
            set_frozen(group, *version, false)?;
            let procs = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for _ in 0..100 {
                let inside = procs();
                if inside.is_empty() {
                    break;
                }
                for pid in inside.lines() {
                    let _ = std::fs::write(parent.join("cgroup.procs"), pid);
                }
            }
            // Zombies keep it for a moment; an empty group harms nobody.
            let _ = std::fs::remove_dir(group);
        }
    }
    Ok(())
}

fn set_frozen(group: &Path, version: u8, frozen: bool) -> Result<()> {
    let what = || format!("freeze or thaw cgroup {}", group.display());
    let (file, value) = match (version, frozen) {
        (1, true) => ("freezer.state", "FROZEN"),
        (1, false) => ("freezer.state", "THAWED"),
        (_, true) => ("cgroup.freeze", "1"),
        (_, false) => ("cgroup.freeze", "0"),
    };
    std::fs::write(group.join(file), value).context(what)?;
    if !frozen {
        return Ok(());
    }
    let deadline = Instant::now() + FREEZE_TIMEOUT;
    loop {
        let done = match version {
            1 => std::fs::read_to_string(group.join(file)).context(what)?.trim() == "FROZEN",
            _ => std::fs::read_to_string(group.join("cgroup.events"))
                .context(what)?
                .contains("frozen 1"),
        };
        if done {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::TimedOut, what()));
        }
        // Version 1 gives no event to wait for.
        crate::wire::wait(&[], Some(Instant::now() + Duration::from_millis(2))).context(what)?;
    }
}

/// Where the process is in the hierarchy that can freeze, and its version.
fn cgroup_of(pid: i32) -> Result<(PathBuf, u8)> {
    let open = |pid: i32| ProcDir::open(pid).context(|| format!("open /proc/{pid}"));
    let groups = open(pid)?.cgroups();
    let groups = groups.context(|| format!("read /proc/{pid}/cgroup"))?;
    let mounts = open(std::process::id() as i32)?.mountinfo();
    let mounts = mounts.context(|| "read /proc/self/mountinfo")?;
    // Where version 1 has the freezer, version 2 is only there for naming.
    let first = groups
        .iter()
        .filter(|group| group.has("freezer"))
        .map(|group| (group, 1));
    let second = groups.iter().filter(|group| group.is_unified()).map(|group| (group, 2));
    first
        .chain(second)
        .find_map(|(group, version)| Some((group.directory(&mounts)?, version)))
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, "no cgroup hierarchy that can freeze is mounted"))
}

fn resident(pid: i32) -> u64 {
    let line = target::status_line(pid, "VmRSS").ok().flatten().unwrap_or_default();
    let kilobytes: u64 = line.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    kilobytes * 1024
}

fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn page_out(process: &Target) -> Result<()> {
    let path = format!("/proc/{}/maps", process.pid);
    let maps = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| !line.ends_with("[vsyscall]") && !line.contains("[v"))
        .filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            Some((start, u64::from_str_radix(end, 16).ok()?.checked_sub(start)?))
        })
        .collect();
    cpr_kernel::page_out::page_out(process.pidfd().as_fd(), &ranges)
        .map(drop)
        .context(|| format!("page out memory of process {}", process.pid))
}
