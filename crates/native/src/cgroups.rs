//! Control groups: which processes are deeper in the hierarchy than the job itself (cgroups(7); LBNL-3.9.1.M18).
//!
//! In which group a job itself is, is for whoever starts or restarts it to say. What is saved is where a process is
//! below its job's first one; after a restart it is as far below the group that the job is in then.

use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use cpr_image::model::{ByteString, CgroupMember, Manifest};
use cpr_kernel::proc::{Cgroup, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::visits::Visits;

fn groups(proc: &ProcDir) -> Result<Vec<Cgroup>> {
    let pid = proc.pid();
    proc.cgroups().context(|| format!("read /proc/{pid}/cgroup"))
}

fn of_hierarchy<'a>(groups: &'a [Cgroup], hierarchy: &[u8]) -> Option<&'a Cgroup> {
    groups.iter().find(|group| group.hierarchy == hierarchy)
}

/// Where processes are below the job's first one, `root`: those that are not in its group.
///
/// # Errors
/// /proc cannot be read.
pub fn save(root: &ProcDir, processes: &[&ProcDir]) -> Result<Vec<CgroupMember>> {
    let home = groups(root)?;
    let mut members = Vec::new();
    for proc in processes {
        for Cgroup { hierarchy, path } in groups(proc)? {
            let below = of_hierarchy(&home, &hierarchy)
                .and_then(|home| path.strip_prefix(home.path.strip_suffix(b"/").unwrap_or(&home.path)))
                .and_then(|rest| rest.strip_prefix(b"/"))
                .filter(|rest| !rest.is_empty());
            if let Some(below) = below {
                members.push(CgroupMember {
                    pid: proc.pid(),
                    hierarchy: ByteString(hierarchy),
                    path: ByteString(below.to_vec()),
                });
            }
        }
    }
    members.sort_by(|left, right| (left.pid, &left.hierarchy.0).cmp(&(right.pid, &right.hierarchy.0)));
    Ok(members)
}

/// Refuses cgroup namespaces whose root is another group than that of the job's first process, `root`: a restart makes
/// them in its own group.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming a process; a namespace cannot be entered.
pub fn refuse_other_roots(visits: &Visits, root: &ProcDir) -> Result<()> {
    for index in 0..visits.len() {
        // Paths are relative to the root of the reader's namespace.
        let seen = visits.within(Some(index), || groups(root))?;
        if let Some(other) = seen.iter().find(|group| group.path != b"/") {
            let text = format!(
                "cgroup namespace of process {}: its root is not the group that process {} is in ({} from there)",
                visits.someone_in(index),
                root.pid(),
                String::from_utf8_lossy(&other.path),
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    Ok(())
}

/// Where our own group of a hierarchy is in the mount namespace that we are in: that of restarted processes.
///
/// # Errors
/// /proc cannot be read.
pub fn here(hierarchy: &[u8]) -> Result<Option<ByteString>> {
    let own = ProcDir::open(std::process::id() as i32).context(|| "look at our own control groups")?;
    let mounts = own.mountinfo().context(|| "look at what is mounted")?;
    let directory = of_hierarchy(&groups(&own)?, hierarchy).and_then(|group| group.directory(&mounts));
    Ok(directory.map(|path| ByteString(path.into_os_string().into_vec())))
}

/// How much more memory a process's group and those above it may use, bytes; none where that cannot be found out.
pub fn memory_left(proc: &ProcDir) -> Option<u64> {
    let own = ProcDir::open(std::process::id() as i32).ok()?;
    let mounts = own.mountinfo().ok()?;
    let mut left = u64::MAX;
    for group in groups(proc).ok()? {
        let (most, used) = match group.is_unified() {
            true => ("memory.max", "memory.current"),
            false if group.has("memory") => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            false => continue,
        };
        if group.path == b"/" {
            continue;
        }
        let directory = group.directory(&mounts)?;
        for above in directory
            .ancestors()
            .take_while(|above| above.join("cgroup.procs").exists())
        {
            let number = |name: &str| {
                std::fs::read_to_string(above.join(name))
                    .ok()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            // The topmost group has no limit, and "max" is none.
            if let Some((most, used)) = number(most).zip(number(used)) {
                left = left.min(most.saturating_sub(used));
            }
        }
    }
    Some(left)
}

/// Groups that were made for a job, removed again unless they are kept.
#[derive(Debug, Default)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// The job runs in them.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The processes in it are ended after us where it is still in use; an empty group is in nobody's way.
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Puts processes where they were, below our own groups; makes groups that are missing.
///
/// # Errors
/// [`ErrorKind::Denied`] and [`ErrorKind::Incompatible`] where that cannot be done, naming the group.
pub fn restore(manifest: &Manifest) -> Result<Made> {
    let mut made = Made::default();
    if manifest.cgroups.is_empty() {
        return Ok(made);
    }
    let own = ProcDir::open(std::process::id() as i32).context(|| "open our /proc entry")?;
    let (home, mounts) = (groups(&own)?, own.mountinfo().context(|| "read our mounts")?);
    for member in &manifest.cgroups {
        let CgroupMember { pid, hierarchy, path } = member;
        let what = || format!("put process {pid} into cgroup {path}");
        // Nobody else's process is moved, whatever the image says, and to nowhere else.
        let plain = path
            .as_path()
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let ours = manifest
            .processes
            .iter()
            .any(|process| process.pid == *pid && !process.threads.is_empty());
        if !plain || !ours {
            let text = format!("the image puts process {pid} into cgroup {path}: there is no such process or path");
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        let place = of_hierarchy(&home, &hierarchy.0).and_then(|group| group.directory(&mounts));
        let place = place.ok_or_else(|| {
            Error::new(ErrorKind::Incompatible, what()).with_hint("mount its hierarchy of cgroups first")
        })?;
        let mut group = place;
        for part in path.as_path().components() {
            group.push(part);
            match std::fs::create_dir(&group) {
                Ok(()) => made.0.push(group.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(|| format!("make {}", group.display())).context(what),
            }
        }
        let procs = group.join("cgroup.procs");
        let written = std::fs::write(&procs, pid.to_string());
        written.context(|| format!("write {}", procs.display())).context(what)?;
    }
    Ok(made)
}
