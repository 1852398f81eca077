//! Critical sections

use std::ffi::c_int;

use super::run;
use crate::sections;

/// Enters a critical section: until gridcpr_unblock() no checkpoint is taken; one that is asked for waits, up to its
/// time limit. They nest, and belong to the calling thread. gridcpr_block() waits while a checkpoint is being taken.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_block() -> c_int {
    run(|| sections::block().map(|()| 0))
}

/// Leaves the innermost section of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn gridcpr_unblock() -> c_int {
    run(|| sections::unblock().map(|()| 0))
}
