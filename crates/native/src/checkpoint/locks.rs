//! Robust locks of a job that is ended with its image.
//!
//! When a thread ends, the kernel goes through its list of robust locks (set_robust_list(2)) and marks every one that it
//! holds as its owner's death. The thread goes on after a restart, and holds them still. In memory that is saved a lock
//! is what it was then, but not in a file that is mapped: that keeps the mark, and others would take the lock away.

use cpr_image::model::Manifest;

use crate::freeze::{Frozen, Space};

/// Lets the death of these processes leave no mark on the locks that they hold. To be called right before they are
/// killed, when everything is saved: it writes to their own memory, of which nothing is left then.
///
/// A list that cannot be read or written to is left alone, as the kernel leaves it.
pub(super) fn keep(frozen: &Frozen, manifest: &Manifest) {
    for saved in &manifest.processes {
        let process = frozen.processes.iter().find(|process| process.pid == saved.pid);
        let Some(space) = process.and_then(|process| process.space.as_ref()) else {
            continue;
        };
        for thread in &saved.threads {
            empty(space, thread.robust_list.0);
        }
    }
}

/// Makes the list at `head` (struct robust_list_head of <linux/futex.h>) an empty one.
fn empty(space: &Space, head: u64) {
    let pending = head.saturating_add(16);
    // What others see as well is not ours to change.
    let own = |map: &&cpr_kernel::proc::MapEntry| map.start <= head && pending.saturating_add(8) <= map.end;
    if head == 0 || space.maps.iter().find(own).is_none_or(|map| map.shared) {
        return;
    }
    let is = |address, value| space.memory.read_u64(address).is_ok_and(|found| found == value);
    if !is(head, head) || !is(pending, 0) {
        let _ = space.memory.write(head, &head.to_ne_bytes());
        let _ = space.memory.write(pending, &0u64.to_ne_bytes());
    }
}
