//! A child of some user without any privilege, which does nothing but be there to be looked at.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::process::{PidFd, end_passing};

/// A child that waits; it ends when this is dropped, and with the calling thread.
#[derive(Debug)]
pub struct Witness {
    pid: i32,
    process: PidFd,
}

/// `struct __user_cap_header_struct` of version 3, for the calling thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

impl Witness {
    /// Starts one with this real, effective and saved user and group, in a user namespace that this user owns, if it is
    /// to be another than ours. It may be looked at by whoever has the same ones there (PR_SET_DUMPABLE).
    ///
    /// # Errors
    /// What clone(2), setresgid(2), setresuid(2), setns(2) and capset(2) give.
    pub fn start(user: u32, group: u32, namespace: Option<BorrowedFd<'_>>) -> io::Result<Witness> {
        let namespace = namespace.map_or(-1, |namespace| namespace.as_raw_fd());
        let (told, tell) = io::pipe()?;
        let word = tell.as_raw_fd();
        let nothing = [0u32; 6];
        let parent = i64::from(std::process::id());
        // SAFETY: without CLONE_VM the child gets a copy of our memory and continues here on its own copy of this
        // stack. It makes only raw system calls, so no lock that another thread of ours may have held is touched.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: raw system calls with numbers and addresses of local variables only, in a copy of our memory;
            // the descriptors are open in the copy of our table. The loop ends with the process alone.
            unsafe {
                let mut rc = libc::syscall(libc::SYS_setresgid, group, group, group);
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_setresuid, user, user, user);
                }
                if rc == 0 && namespace >= 0 {
                    rc = libc::syscall(libc::SYS_setns, namespace, libc::CLONE_NEWUSER);
                }
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_capset, CAPABILITY_HEADER.as_ptr(), nothing.as_ptr());
                }
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
                }
                // A change of user forgets it.
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                }
                let error = if rc < 0 { *libc::__errno_location() } else { 0 };
                libc::syscall(libc::SYS_write, word, &raw const error, size_of::<i32>());
                // A parent that died before that sends nothing any more.
                if error != 0 || libc::syscall(libc::SYS_getppid) != parent {
                    libc::syscall(libc::SYS_exit_group, 1);
                }
                loop {
                    libc::syscall(libc::SYS_pause);
                }
            }
        }
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(tell);
        let pid = child as i32;
        // We have not waited for it, so that the number is its own.
        let witness = Witness {
            pid,
            process: PidFd::open(pid)?,
        };
        let mut error = [0; size_of::<i32>()];
        io::Read::read_exact(&mut &told, &mut error)?;
        match i32::from_ne_bytes(error) {
            0 => Ok(witness),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Its process number, in the PID namespace of the caller.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = end_passing(self.pid, &self.process);
    }
}

/// Whether this kernel has Landlock, and uses it.
pub fn has_landlock() -> bool {
    /// LANDLOCK_CREATE_RULESET_VERSION.
    const VERSION: u32 = 1;
    let none: *const u8 = std::ptr::null();
    // SAFETY: without attributes, whose size is zero, the kernel only tells its version; no descriptor is made.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, VERSION) > 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_it_is_dropped() {
        // SAFETY: both calls only tell numbers.
        let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
        let witness = Witness::start(user, group, None).unwrap();
        let status = format!("/proc/{}/status", witness.pid());
        let text = std::fs::read_to_string(&status).unwrap();
        assert!(text.contains("CapEff:\t0000000000000000\n"), "{text}");
        drop(witness);
        assert!(std::fs::read_to_string(&status).is_err());
    }
}
