//! How a thread is scheduled, asked from outside: what anybody with the right to may change of another's.

use std::io;

/// Size of `struct sched_attr` up to `sched_period`.
pub const ATTRIBUTES_SIZE: usize = 48;
/// Bytes of a CPU mask: 8192 processors.
pub const MASK_SIZE: usize = 1024;
/// IOPRIO_WHO_PROCESS.
const IOPRIO_WHO_PROCESS: i32 = 1;

/// `struct sched_attr` of thread `tid`: sched_getattr(2).
pub fn attributes(tid: i32) -> io::Result<[u8; ATTRIBUTES_SIZE]> {
    let mut attributes = [0; ATTRIBUTES_SIZE];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are, which is the length of the array.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            attributes.as_mut_ptr(),
            ATTRIBUTES_SIZE,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes)
}

/// The processors that thread `tid` may run on, as sched_getaffinity(2) gives them: as many bytes as the kernel has.
pub fn affinity(tid: i32) -> io::Result<Vec<u8>> {
    let mut mask = vec![0; MASK_SIZE];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are, which is the length of the vector.
    let length = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, MASK_SIZE, mask.as_mut_ptr()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    mask.truncate(length);
    Ok(mask)
}

/// The I/O priority of thread `tid`: ioprio_get(2).
pub fn io_priority(tid: i32) -> io::Result<i32> {
    // SAFETY: two numbers; no memory is passed.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) } {
        -1 => Err(io::Error::last_os_error()),
        priority => Ok(priority as i32),
    }
}
