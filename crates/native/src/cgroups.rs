//! Control groups: which processes are deeper in the hierarchy than whoever the job belongs to (cgroups(7);
//! LBNL-3.9.1.M18).
//!
//! In which group a job itself is, is for whoever starts or restarts it to say. What is saved is where a process is
//! below the group of that one: the init of a job, who restarted it, or who saves a process that was started by hand.
//! After a restart it is as far below the group of whoever restarts it. Where the job's first process is not below that
//! group, what counts is where others are below the first process.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_image::model::{ByteString, CgroupMember, HIERARCHY_OPTIONS, Manifest, MountOption, Mounted};
use cpr_kernel::proc::{Cgroup, Mount, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::paths;
use crate::visits::Visits;

fn groups(proc: &ProcDir) -> Result<Vec<Cgroup>> {
    let pid = proc.pid();
    proc.cgroups().context(|| format!("read /proc/{pid}/cgroup"))
}

fn of_hierarchy<'a>(groups: &'a [Cgroup], hierarchy: &[u8]) -> Option<&'a Cgroup> {
    groups.iter().find(|group| group.hierarchy == hierarchy)
}

/// What remains of a group's path below another one; none where it is not strictly below that.
fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    let rest = paths::below(path, above).filter(|rest| !rest.is_empty())?;
    // A group outside of our cgroup namespace begins with these.
    (!rest.split(|byte| *byte == b'/').any(|part| part == b"..")).then_some(rest)
}

/// Where processes are below `above`, in hierarchies in which the job's first one, `root`, is below that itself; in
/// others, and where there is nobody above, below the first one.
///
/// # Errors
/// /proc cannot be read.
pub fn save(root: &ProcDir, above: Option<&ProcDir>, processes: &[&ProcDir]) -> Result<Vec<CgroupMember>> {
    let first = groups(root)?;
    let mut home = first.clone();
    for above in above.map(groups).transpose()?.unwrap_or_default() {
        let own = home.iter_mut().find(|own| own.hierarchy == above.hierarchy);
        if let Some(own) = own.filter(|own| below(&own.path, &above.path).is_some()) {
            *own = above;
        }
    }
    let mut members = Vec::new();
    for proc in processes {
        for Cgroup { hierarchy, path } in groups(proc)? {
            let below = of_hierarchy(&home, &hierarchy).and_then(|home| below(&path, &home.path));
            if let Some(below) = below {
                members.push(CgroupMember {
                    pid: proc.pid(),
                    path: ByteString(below.to_vec()),
                    hierarchy: ByteString(hierarchy),
                });
            }
        }
    }
    members.sort_by(|left, right| (left.pid, &left.hierarchy.0).cmp(&(right.pid, &right.hierarchy.0)));
    Ok(members)
}

/// The members of an image with the job's first process in the group of who restarts it, and others as far below that
/// as they were below the first one.
fn below_first(manifest: &Manifest) -> Vec<CgroupMember> {
    let root = manifest.checkpoint.root_pid;
    let of_first = manifest.cgroups.iter().filter(|member| member.pid == root);
    let of_first: HashMap<&ByteString, &[u8]> = of_first
        .map(|member| (&member.hierarchy, member.path.0.as_slice()))
        .collect();
    let members = manifest.cgroups.iter().filter_map(|member| {
        let path = match of_first.get(&member.hierarchy) {
            Some(first) => ByteString(below(&member.path.0, first)?.to_vec()),
            None => member.path.clone(),
        };
        Some(CgroupMember { path, ..member.clone() })
    });
    members.collect()
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

/// The type of a hierarchy as a file system, and what it is mounted with.
pub fn mounting(hierarchy: &ByteString, options: &[MountOption]) -> (&'static CStr, Vec<MountOption>) {
    if hierarchy.0.is_empty() {
        return (c"cgroup2", options.to_vec());
    }
    let text = String::from_utf8_lossy(&hierarchy.0);
    let mut all: Vec<MountOption> = text
        .split(',')
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    if all.iter().all(|(key, _)| key == "name") {
        all.push(("none".to_owned(), String::new()));
    }
    all.extend_from_slice(options);
    (c"cgroup", all)
}

/// Which hierarchy is mounted somewhere, of those that somebody is in groups of, and the options that are no part of its
/// name.
///
/// # Errors
/// An option that is not known.
pub fn mounted(
    mount: &Mount,
    groups: &[Cgroup],
) -> std::result::Result<Option<(ByteString, Vec<MountOption>)>, String> {
    let kinds = [&b"cgroup"[..], b"cgroup2"];
    let known = |group: &&Cgroup| kinds.contains(&mount.fs_type.as_slice()) && group.is_of(mount);
    let Some(group) = groups.iter().find(known) else {
        return Ok(None);
    };
    let part_of_name = |option: &&[u8]| group.hierarchy.split(|byte| *byte == b',').any(|part| part == *option);
    let rest = mount.super_options.split(|byte| *byte == b',');
    let options = rest.filter(|option| !option.is_empty() && *option != b"rw" && !part_of_name(option));
    let options = options.map(|option| {
        let option = String::from_utf8_lossy(option).into_owned();
        match HIERARCHY_OPTIONS.contains(&option.as_str()) {
            true => Ok((option, String::new())),
            false => Err(format!(
                "{} is mounted with option {option}",
                String::from_utf8_lossy(&mount.mount_point)
            )),
        }
    });
    Ok(Some((
        ByteString(group.hierarchy.clone()),
        options.collect::<std::result::Result<_, _>>()?,
    )))
}

/// How long groups are waited for that a process has just ended in, and how often they are tried.
const EMPTYING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// The groups of an image. Those that were made for it are removed again unless they are kept.
#[derive(Debug, Default)]
pub struct Places {
    /// Made by us, each after the one it is in.
    made: Vec<PathBuf>,
    /// Processes, and the directories of their groups.
    members: Vec<(i32, PathBuf)>,
    /// Hierarchies that are mounted nowhere that we see, by their names.
    mounted: Vec<(ByteString, OwnedFd)>,
}

impl Drop for Places {
    /// To be dropped when the processes in them have ended.
    fn drop(&mut self) {
        let until = Instant::now() + EMPTYING;
        for path in self.made.iter().rev() {
            // The kernel takes a process out some time after others see its end; an empty group is in nobody's way.
            while std::fs::remove_dir(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
                && Instant::now() < until
            {
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Places {
    /// Makes the groups of an image that are missing, below our own. `all`: the job's first process goes where it was,
    /// too, and not only what was below that.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] and [`ErrorKind::Incompatible`] where that cannot be done, naming the group.
    pub fn make(manifest: &Manifest, all: bool) -> Result<Places> {
        let members = match all {
            true => manifest.cgroups.clone(),
            false => below_first(manifest),
        };
        let mut places = Places::default();
        if members.is_empty() {
            return Ok(places);
        }
        let own = ProcDir::open(std::process::id() as i32).context(|| "open our /proc entry")?;
        let mounts = own.mountinfo().context(|| "read our mounts")?;
        if all {
            places.mount_those_of_job(manifest, &members, &mounts)?;
        }
        let home = groups(&own)?;
        for CgroupMember { pid, hierarchy, path } in members {
            let what = || format!("put process {pid} into cgroup {path}");
            // Nobody else's process is moved, whatever the image says, and to nowhere else.
            let plain = path
                .as_path()
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            let ours = manifest
                .processes
                .iter()
                .any(|process| process.pid == pid && !process.threads.is_empty());
            if !plain || !ours {
                let text = format!("the image puts process {pid} into cgroup {path}: there is no such process or path");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            let place = of_hierarchy(&home, &hierarchy.0)
                .and_then(|group| group.directory(&mounts).or_else(|| places.directory(group)));
            let mut group = place.ok_or_else(|| {
                Error::new(ErrorKind::Incompatible, what())
                    .with_hint("mount its hierarchy of cgroups first; see also --cgroup own")
            })?;
            for part in path.as_path().components() {
                group.push(part);
                places.make_one(&group).context(what)?;
            }
            places.members.push((pid, group));
        }
        Ok(places)
    }

    /// Mounts hierarchies for ourselves that the job has mounted where we do not see it.
    fn mount_those_of_job(&mut self, manifest: &Manifest, members: &[CgroupMember], mounts: &[Mount]) -> Result<()> {
        let trees = manifest.mount_namespaces.iter().flat_map(|namespace| &namespace.tree);
        for point in trees {
            let Mounted::Hierarchy { hierarchy, options } = &point.mounted else {
                continue;
            };
            let one = Cgroup {
                hierarchy: hierarchy.0.clone(),
                path: b"/".to_vec(),
            };
            let wanted = members.iter().any(|member| member.hierarchy == *hierarchy);
            if !wanted || one.directory(mounts).is_some() || self.directory(&one).is_some() {
                continue;
            }
            let what = || format!("mount the hierarchy of cgroups {hierarchy}");
            let (kind, options) = mounting(hierarchy, options);
            let text = |text: String| CString::new(text).map_err(std::io::Error::from).context(what);
            let options = options.into_iter().map(|(key, value)| {
                let value = (!value.is_empty()).then(|| text(value)).transpose()?;
                Ok((text(key)?, value))
            });
            let options = options.collect::<Result<Vec<_>>>()?;
            let mount = cpr_kernel::mounts::detached(kind, &options).context(what)?;
            self.mounted.push((hierarchy.clone(), mount));
        }
        Ok(())
    }

    /// The directory of a group of ours in a hierarchy that we have mounted.
    fn directory(&self, group: &Cgroup) -> Option<PathBuf> {
        let (_, mount) = self
            .mounted
            .iter()
            .find(|(hierarchy, _)| hierarchy.0 == group.hierarchy)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Some(root.join(OsStr::from_bytes(group.path.strip_prefix(b"/")?)))
    }

    fn make_one(&mut self, group: &Path) -> Result<()> {
        match std::fs::create_dir(group) {
            Ok(()) => self.made.push(group.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error).context(|| format!("make {}", group.display())),
        }
        // Nobody can be in a new group of a cpuset of version 1 until it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (here, above) = (group.join(file), group.parent().map(|above| above.join(file)));
            let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
            if group.join("tasks").exists() && here.exists() && read(&here).trim().is_empty() {
                let value = above.map_or_else(String::new, |above| read(&above));
                std::fs::write(&here, value.trim()).context(|| format!("write {}", here.display()))?;
            }
        }
        Ok(())
    }

    /// Puts a process that is none of the job's where a process of the job was, as far as that was anywhere.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn put_like(&self, like: i32, pid: i32) -> Result<()> {
        let theirs = self.members.iter().filter(|(member, _)| *member == like);
        theirs.into_iter().try_for_each(|(_, group)| put(pid, group))
    }

    /// Puts the processes of the job where they were.
    ///
    /// # Errors
    /// The kernel refuses it, naming the group.
    pub fn settle(&self) -> Result<()> {
        self.members.iter().try_for_each(|(pid, group)| put(*pid, group))
    }

    /// The job runs in them.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

fn put(pid: i32, group: &Path) -> Result<()> {
    let procs = group.join("cgroup.procs");
    let written = std::fs::write(&procs, pid.to_string()).context(|| format!("write {}", procs.display()));
    written.context(|| format!("put process {pid} into cgroup {}", group.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_strictly_below_others() {
        assert_eq!(below(b"/a/b", b"/"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"b"[..]));
        for (path, above) in [
            ("/a", "/a"),
            ("/ab", "/a"),
            ("/", "/"),
            ("/../other", "/"),
            ("/b", "/a"),
        ] {
            assert_eq!(below(path.as_bytes(), above.as_bytes()), None, "{path} and {above}");
        }
    }

    #[test]
    fn without_its_own_place_a_job_keeps_those_of_others_below_it() {
        let member = |pid, hierarchy: &str, path: &str| CgroupMember {
            pid,
            hierarchy: ByteString::from(hierarchy),
            path: ByteString::from(path),
        };
        let mut manifest = Manifest::default();
        manifest.checkpoint.root_pid = 7;
        manifest.cgroups = vec![
            member(7, "", "a"),
            member(8, "", "a/b"),
            member(8, "pids", "c"),
            member(9, "", "d"),
        ];
        assert_eq!(below_first(&manifest), [member(8, "", "b"), member(8, "pids", "c")]);
    }
}
