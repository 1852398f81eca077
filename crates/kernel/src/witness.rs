//! A child of some user without any privilege, which does nothing but be there to be looked at.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;

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
    /// to be another than ours. It may be looked at by whoever has the same ones there, and has nothing of our memory.
    ///
    /// # Errors
    /// What memfd_create(2), clone(2), setresgid(2), setresuid(2), setns(2), capset(2) and execveat(2) give.
    pub fn start(user: u32, group: u32, namespace: Option<BorrowedFd<'_>>) -> io::Result<Witness> {
        let namespace = namespace.map_or(-1, |namespace| namespace.as_raw_fd());
        let program = program()?;
        let program = program.as_raw_fd();
        let (mut told, tell) = io::pipe()?;
        let word = tell.as_raw_fd();
        let nothing = [0u32; 6];
        let parent = i64::from(std::process::id());
        let arguments = [c"cpr-witness".as_ptr(), std::ptr::null()];
        // SAFETY: without CLONE_VM the child gets a copy of our memory and continues here on its own copy of this
        // stack. It makes only raw system calls, so no lock that another thread of ours may have held is touched.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: raw system calls with numbers and addresses of local variables and constants only, in a copy of
            // our memory; the descriptors are open in the copy of our table. It ends with another program, or ends.
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
                // Or else who is root there would be given capabilities with the other program.
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                }
                // A change of user forgets it.
                if rc == 0 {
                    rc = libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                }
                // A parent that died before that sends nothing any more.
                if rc == 0 && libc::syscall(libc::SYS_getppid) == parent {
                    let (empty, at) = (c"".as_ptr(), arguments.as_ptr());
                    libc::syscall(
                        libc::SYS_execveat,
                        program,
                        empty,
                        at,
                        arguments.as_ptr().add(1),
                        libc::AT_EMPTY_PATH,
                    );
                }
                let error = *libc::__errno_location();
                libc::syscall(libc::SYS_write, word, &raw const error, size_of::<i32>());
                libc::syscall(libc::SYS_exit_group, 1);
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
        let mut error = Vec::new();
        // It ends without a word when the other program runs.
        io::Read::read_to_end(&mut told, &mut error)?;
        match error.first_chunk() {
            None => Ok(witness),
            Some(error) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*error))),
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

/// A file with the smallest program that waits: an ELF header, one segment to be loaded (elf(5)), and a loop.
fn program() -> io::Result<OwnedFd> {
    const LOAD_AT: u64 = 0x40_0000;
    let loops = crate::arch::PAUSE;
    let length = (64 + 56 + loops.len()) as u64;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, the machine, EV_CURRENT.
    bytes.extend_from_slice(&2u16.to_le_bytes());
    bytes.extend_from_slice(&crate::arch::ELF_MACHINE.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    // Entry, where the segments are, and no sections; flags.
    for word in [LOAD_AT + 64 + 56, 64, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&0u32.to_le_bytes());
    // Sizes of the header and of the entry of a segment, of which there is one; no sections.
    for half in [64u16, 56, 1, 0, 0, 0] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD, to be read and executed; offset, addresses, lengths, alignment.
    for half in [1u32, 4 | 1] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0, LOAD_AT, LOAD_AT, length, length, 4096] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(loops);
    // MFD_EXEC is known since Linux 6.3.
    let make = |flags| rustix::fs::memfd_create("cpr-witness", flags);
    let file = make(MemfdFlags::CLOEXEC | MemfdFlags::EXEC).or_else(|_| make(MemfdFlags::CLOEXEC))?;
    let mut file = File::from(file);
    file.write_all(&bytes)?;
    // What is open for writing cannot be run.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(File::open(path)?.into())
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
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", witness.pid())).unwrap();
        let own = std::env::current_exe().unwrap().display().to_string();
        assert!(
            !maps.contains(&own) && !maps.contains("[heap]"),
            "it has memory of ours: {maps}"
        );
        drop(witness);
        assert!(std::fs::read_to_string(&status).is_err());
    }
}
