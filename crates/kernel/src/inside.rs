//! What a library needs of the process it is loaded into: fork handlers, a signal of its own, its thread's number.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// pthread_atfork(3): `prepare` runs before fork(2) in the parent, `parent` and `child` after it.
pub fn on_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> io::Result<()> {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> libc::c_int;
    }
    // SAFETY: the three are functions without arguments that live as long as the program.
    match unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// What runs in the handler.
static HANDLER: std::sync::OnceLock<fn()> = std::sync::OnceLock::new();
/// The signal taken, zero for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

extern "C" fn handle(_signal: libc::c_int) {
    // SAFETY: __errno_location gives the address of this thread's errno, which is an int.
    let errno = unsafe { *libc::__errno_location() };
    if let Some(handler) = HANDLER.get() {
        handler();
    }
    // SAFETY: as above. The program that was interrupted must find it as it was.
    unsafe { *libc::__errno_location() = errno };
}

/// Takes the highest real-time signal that the program has left at its default, and runs `handler` on it from then on,
/// with interrupted system calls restarted. Gives the signal; the one taken before where there is one.
///
/// # Errors
/// `EBUSY` when all are in use.
pub fn take_signal(handler: fn()) -> io::Result<i32> {
    let taken = SIGNAL.load(Ordering::Acquire);
    if taken != 0 {
        return Ok(taken);
    }
    let _ = HANDLER.set(handler);
    for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
        // SAFETY: sigaction is a structure of integers and pointers that may all be zero; with a null new action the
        // call only writes the old one to it.
        let (rc, mut action) = unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            (libc::sigaction(signal, std::ptr::null(), &mut old), old)
        };
        if rc != 0 || action.sa_sigaction != libc::SIG_DFL {
            continue;
        }
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: `action` is a whole structure whose handler lives as long as the program and does only what
        // `handler` does, which its giver has made safe for signal handlers.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        SIGNAL.store(signal, Ordering::Release);
        return Ok(signal);
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// tgkill(2) to a thread of this process.
pub fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: tgkill takes three numbers; the signal goes to a thread of this process only.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    static COUNT: AtomicU32 = AtomicU32::new(0);

    fn count() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn one_signal_is_taken_and_comes_to_the_thread() {
        let signal = take_signal(count).unwrap();
        assert_eq!(take_signal(count).unwrap(), signal);
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        signal_thread(tid, signal).unwrap();
        // A signal to the calling thread is delivered before the call returns.
        assert_eq!(COUNT.load(Ordering::Relaxed), 1);
        assert!(signal_thread(i32::MAX, signal).is_err());
    }
}
