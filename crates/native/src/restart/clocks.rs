//! Clocks that count from the start of the machine, and go on after a restart on one that was started since
//! (LBNL-3.9.1.M14).
//!
//! The processes of the job are made in a time namespace for that. It is left before any thread is made: Linux before
//! 6.3 makes none for a process whose children are to be in another time namespace (`copy_process` in kernel/fork.c).

use std::io;
use std::time::Duration;

use cpr_image::model::Manifest;
use cpr_kernel::clocks::{self, Offsets, Own};
use cpr_kernel::process::clock_ns;
use cpr_types::{Context, Result};
use rustix::time::ClockId;

/// By how much the time since the start of the machine and the wall clock may have drifted apart, or the latter been
/// set, since a checkpoint that was made on the same machine before it was started anew.
const SAME_BOOT: Duration = Duration::from_secs(10);

/// Does `make` with processes that it makes in a time namespace where the clocks go on as they were at the checkpoint,
/// so that a program that waits for a moment by them waits as long as it would have. Where they have gone on since,
/// the machine has not been started anew, and it is done as it is.
///
/// Not everybody may make a time namespace, and not every kernel can: then the clocks are the machine's, and one of
/// the `notes` says so where they are set back. Clocks that are merely ahead are what a program sees that was not given a
/// processor for long.
///
/// # Errors
/// Those of `make`; our own time namespace cannot be entered again.
pub(super) fn going_on<T>(manifest: &Manifest, notes: &mut Vec<String>, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(offsets) = offsets(manifest) else {
        return make();
    };
    let entered = enter(offsets);
    let made = make();
    match entered {
        Ok(way_back) => {
            let returned = way_back.map_or(Ok(()), |own| own.restore());
            returned.context(|| "leave the job's time namespace")?;
        }
        Err(error) if offsets.monotonic_ns > 0 => {
            notes.push(format!(
                "the monotonic clock of the job is set back: make a time namespace: {error}"
            ));
        }
        Err(_) => {}
    }
    made
}

/// How far ahead the clocks have to be of ours, if the machine was started since the checkpoint.
fn offsets(manifest: &Manifest) -> Option<Offsets> {
    let checkpoint = &manifest.checkpoint;
    let number = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    let ahead = |saved: u64, clock: ClockId| number(saved).saturating_sub(number(clock_ns(clock)));
    let boottime_ns = ahead(checkpoint.boottime_ns, ClockId::Boottime);
    let by_the_wall_ns = ahead(checkpoint.time_ns, ClockId::Realtime);
    (boottime_ns.abs_diff(by_the_wall_ns) >= SAME_BOOT.as_nanos() as u64).then(|| Offsets {
        monotonic_ns: ahead(checkpoint.monotonic_ns, ClockId::Monotonic),
        boottime_ns,
    })
}

/// Has processes made in a time namespace from now on; gives the way back, if there is one.
fn enter(ahead: Offsets) -> io::Result<Option<Own>> {
    let own = Own::hold()?;
    let may_return = match own.restore() {
        Ok(()) => true,
        // A user in a user namespace may leave the machine's time namespace, but not come back.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && clocks::lets_threads_be_made() => false,
        Err(error) => return Err(error),
    };
    let before = Offsets::of_children("self")?;
    let made = clocks::new_namespace(Offsets {
        monotonic_ns: before.monotonic_ns.saturating_add(ahead.monotonic_ns),
        boottime_ns: before.boottime_ns.saturating_add(ahead.boottime_ns),
    });
    if made.is_err() && may_return {
        // There may be one whose clocks could not be set.
        own.restore()?;
    }
    made.map(|()| may_return.then_some(own))
}
