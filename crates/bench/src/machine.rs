//! Where it was measured: processor, memory, kernel and file systems, as the kernel tells them.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Load averages over 1, 5 and 15 minutes when the bench began.
    pub load: String,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Machine {
            cpu: model
                .map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(0, |number| number.get()),
            memory_bytes: meminfo("MemTotal"),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load: load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        format!(
            "{}, {} cores, {:.0} GiB memory, Linux {}, load {}",
            self.cpu,
            self.cores,
            self.memory_bytes as f64 / (1u64 << 30) as f64,
            self.kernel,
            self.load
        )
    }
}

/// Memory that could be had without swapping, bytes.
pub fn available_memory() -> u64 {
    meminfo("MemAvailable")
}

fn meminfo(name: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Its type, such as ext4.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

impl FileSystem {
    /// The one a directory is on.
    pub fn of(directory: &Path) -> FileSystem {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        find(&mounts, &directory).unwrap_or_else(|| FileSystem {
            kind: "unknown".into(),
            source: "unknown".into(),
        })
    }

    /// Files in it are memory.
    pub fn is_memory(&self) -> bool {
        self.kind == "tmpfs" || self.kind == "ramfs"
    }
}

/// The last mount whose mount point is the longest prefix.
fn find(mounts: &str, directory: &Path) -> Option<FileSystem> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let mut after = after.split(' ');
        let found = FileSystem {
            kind: after.next()?.to_owned(),
            source: after.next()?.to_owned(),
        };
        directory.starts_with(&point).then_some((point.len(), found))
    };
    mounts
        .lines()
        .filter_map(mount)
        .max_by_key(|(length, _)| *length)
        .map(|(_, found)| found)
}

/// Bytes an ordinary user can still write there.
pub fn free_space(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_counts() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      25 22 0:24 / /dev/shm rw shared:5 - tmpfs shm rw\n\
                      26 22 0:25 / /dev\\040x rw - xfs /dev/vdb rw\n";
        let kind = |path| find(mounts, Path::new(path)).map(|found| found.kind);
        assert_eq!(kind("/dev/shm/a").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/dev/shmother").as_deref(), Some("ext4"));
        assert_eq!(kind("/dev x").as_deref(), Some("xfs"));
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20, "{machine:?}");
        assert!(available_memory() > 0);
        assert_ne!(FileSystem::of(Path::new("/proc")).kind, "unknown");
    }
}
