//! Standard streams of a job that were opened outside its mount namespace, opened again inside.
//!
//! An engine that looks a descriptor's mount up among those of the job's namespace does not find one from outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use cpr_kernel::spawn;
use rustix::fs::{Mode, OFlags, SeekFrom};

/// Opens the standard streams again by their names, in the mount namespace we are in. Pipes, sockets, and files that
/// cannot be found by their names stay as they are.
pub(crate) fn reopen() {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for (number, stream) in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter().enumerate() {
        if let Some(again) = open_again(number, stream) {
            // Where this cannot be done the stream is the old one.
            let _ = spawn::set_standard_stream(again.as_fd(), number as i32);
        }
    }
}

fn open_again(number: usize, stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    if !path.is_absolute() || path.starts_with(Path::new("/dev/pts")) {
        return None;
    }
    let flags = rustix::fs::fcntl_getfl(stream).ok()?;
    let kept = flags & (OFlags::RWMODE | OFlags::APPEND | OFlags::NONBLOCK);
    let again = rustix::fs::open(&path, kept | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (old, new) = (rustix::fs::fstat(stream).ok()?, rustix::fs::fstat(&again).ok()?);
    if (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino) {
        return None;
    }
    if let Ok(position) = rustix::fs::seek(stream, SeekFrom::Current(0)) {
        rustix::fs::seek(&again, SeekFrom::Start(position)).ok()?;
    }
    Some(again)
}
