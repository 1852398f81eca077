//! What is mounted around a job that has a mount namespace of its own, where a restart makes it a new one.

use std::collections::HashSet;

use cpr_kernel::proc::{Mount, MountTable};

/// How often is looked, at most, while mounts come and go.
pub const LOOKS: usize = 16;

/// What is mounted there now, and what was when the job was started.
#[derive(Debug)]
pub struct Outside {
    now: MountTable,
    at_start: HashSet<String>,
}

impl Outside {
    /// `now`: of a process there. `at_start`: [`name`] of all that was mounted in the job's namespace before the job was
    /// there; it may be gone outside by now, where neither shows the other's mounts.
    pub fn new(now: MountTable, at_start: impl IntoIterator<Item = String>) -> Self {
        let at_start = at_start.into_iter().collect();
        Outside { now, at_start }
    }

    /// Mounts that a job has made in its mount namespace, which `inside` shows: those that are not where a restart makes
    /// it a new one. /proc and /dev/mqueue are ours.
    ///
    /// Whatever is mounted outside shows inside, too, and comes and goes while we look. So this looks again until
    /// nothing has changed meanwhile; what only some looks see is not the job's.
    pub fn made(&self, inside: &MountTable) -> std::io::Result<Vec<Mount>> {
        let mut found: Option<Vec<Mount>> = None;
        for _ in 0..LOOKS {
            // From here on.
            let _ = inside.has_changed()? | self.now.has_changed()?;
            let (inside_now, outside_now) = (inside.read()?, self.now.read()?);
            let mut made: Vec<Mount> = self.made_of(&inside_now, &outside_now).cloned().collect();
            if let Some(earlier) = &found {
                made.retain(|mount| earlier.contains(mount));
            }
            let is_over = made.is_empty() || !(inside.has_changed()? | self.now.has_changed()?);
            found = Some(made);
            if is_over {
                break;
            }
        }
        Ok(found.unwrap_or_default())
    }

    fn made_of<'a>(&self, inside: &'a [Mount], outside: &[Mount]) -> impl Iterator<Item = &'a Mount> {
        type Place<'a> = ((u32, u32), &'a [u8], &'a [u8]);
        fn place(mount: &Mount) -> Place<'_> {
            (mount.dev, &mount.root, &mount.mount_point)
        }
        let known: HashSet<Place<'_>> = outside.iter().map(place).collect();
        let ours = |mount: &Mount| {
            matches!(
                (mount.mount_point.as_slice(), mount.fs_type.as_slice()),
                (b"/proc", b"proc") | (b"/dev/mqueue", b"mqueue")
            )
        };
        // What the job has mounted over ours is not ours.
        let mut found: HashSet<&[u8]> = HashSet::new();
        let is_strange = |mount: &&Mount| !known.contains(&place(mount)) && !self.at_start.contains(&name(mount));
        let strange = inside.iter().filter(is_strange);
        let strange: Vec<&Mount> = strange
            .filter(|mount| !ours(mount) || !found.insert(&mount.mount_point))
            .collect();
        strange.into_iter()
    }
}

/// By what a mount is known again: its number, and what is mounted where.
pub fn name(mount: &Mount) -> String {
    let (major, minor) = mount.dev;
    let (root, point) = (mount.root.escape_ascii(), mount.mount_point.escape_ascii());
    format!("{} {major}:{minor} {root} {point}", mount.id)
}
