//! `/proc/PID/cgroup`, and where its groups are in the file tree (cgroups(7)).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Mount;

/// A process's group in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The hierarchy: controllers separated by commas, or `name=` and a name; empty for version 2.
    pub hierarchy: Vec<u8>,
    /// Path of the group, relative to the root of the reader's cgroup namespace; begins with a slash.
    pub path: Vec<u8>,
}

/// Parses `/proc/PID/cgroup`; lines of other forms are passed over.
pub fn parse(text: &[u8]) -> Vec<Cgroup> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        Some(Cgroup {
            hierarchy: fields.next()?.to_vec(),
            path: fields.next()?.to_vec(),
        })
    });
    lines.collect()
}

impl Cgroup {
    /// Whether the hierarchy is of version 2.
    pub fn is_unified(&self) -> bool {
        self.hierarchy.is_empty()
    }

    /// Whether the hierarchy is one of version 1 with this controller.
    pub fn has(&self, controller: &str) -> bool {
        list(&self.hierarchy).any(|name| name == controller.as_bytes())
    }

    /// Whether this is a mount of its hierarchy.
    pub fn is_of(&self, mount: &Mount) -> bool {
        if self.is_unified() {
            return mount.fs_type == b"cgroup2";
        }
        let mounted = |name: &[u8]| list(&mount.super_options).any(|option| option == name);
        mount.fs_type == b"cgroup" && list(&self.hierarchy).all(mounted)
    }

    /// The group's directory, where its hierarchy is among `mounts`.
    pub fn directory(&self, mounts: &[Mount]) -> Option<PathBuf> {
        let mount = mounts.iter().find(|mount| self.is_of(mount))?;
        let below = match mount.root.as_slice() {
            b"/" => self.path.as_slice(),
            root => self.path.strip_prefix(root)?,
        };
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        Some(path(&mount.mount_point).join(path(below.strip_prefix(b"/").unwrap_or(below))))
    }
}

fn list(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b',')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proc::mountinfo;

    #[test]
    fn groups_are_found_where_their_hierarchies_are_mounted() {
        let mounts = b"30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            32 1 0:28 /outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let mounts = mountinfo::parse("mountinfo", mounts).unwrap();
        let groups = parse(b"3:memory:/outer/a:b\n2:cpu,cpuacct:/\n1:pids:/x\n0::/user/1\nnonsense\n");
        let found: Vec<Option<PathBuf>> = groups.iter().map(|group| group.directory(&mounts)).collect();
        let expected = [
            Some("/sys/fs/cgroup/memory/a:b"),
            Some("/sys/fs/cgroup/cpu,cpuacct/"),
            None,
            Some("/sys/fs/cgroup/unified/user/1"),
        ];
        assert_eq!(found, expected.map(|path| path.map(PathBuf::from)));
        assert!(groups[1].has("cpu") && !groups[1].has("cp") && groups[3].is_unified());
        let elsewhere = Cgroup {
            path: b"/other".to_vec(),
            ..groups[0].clone()
        };
        assert_eq!(elsewhere.directory(&mounts), None, "not below what is mounted");
    }
}
