//! Robust locks of a job that a restart makes nothing of.
//!
//! When a thread ends, the kernel marks the locks on its list (set_robust_list(2)) as a dead owner's, also in files that
//! are mapped, where others find the mark. But the thread is none of theirs before it runs, and the locks are held as
//! they were when the job was saved.

use cpr_image::model::{Manifest, MappingKind, Process, Thread};

use super::stub::Stub;

/// Lists in memory that is a process's own: its PID, and the address of the head.
#[derive(Debug, Default)]
pub struct Lists(Vec<(i32, u64)>);

impl Lists {
    /// Takes note of a thread that has been given its list. What others see as well is not ours to change.
    pub fn note(&mut self, manifest: &Manifest, process: &Process, thread: &Thread) {
        let head = thread.robust_list.0;
        if head != 0 && is_private(manifest, process, head) {
            self.0.push((process.pid, head));
        }
    }

    /// Makes those of a process that is about to be killed empty (struct robust_list_head of <linux/futex.h>).
    pub fn empty(&self, pid: i32, stub: &Stub) {
        for (_, head) in self.0.iter().filter(|(of, _)| *of == pid) {
            // What cannot be written the kernel cannot read, or it is gone.
            let _ = stub.memory.write(*head, &head.to_ne_bytes());
            let _ = stub.memory.write(head.saturating_add(16), &0u64.to_ne_bytes());
        }
    }
}

/// Whether memory of a process is nobody else's.
fn is_private(manifest: &Manifest, process: &Process, address: u64) -> bool {
    let space = super::address_space(manifest, process).ok();
    let mapping = space.and_then(|space| space.mappings.iter().find(|m| (m.start..m.end).contains(&address)));
    mapping.is_some_and(|mapping| {
        matches!(
            mapping.kind,
            MappingKind::Anonymous
                | MappingKind::Stack
                | MappingKind::PrivateFile(_)
                | MappingKind::PrivateSaved(_)
                | MappingKind::HugePages(_)
        )
    })
}
