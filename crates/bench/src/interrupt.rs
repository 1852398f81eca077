//! Ctrl-C and its kin: a request to end early, which every wait notices, so that everything started is ended.

use std::sync::atomic::{AtomicI32, Ordering};

use cpr_kernel::spawn;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, poll};

/// HUP, INT, TERM.
const SIGNALS: [i32; 3] = [1, 2, 15];

static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// Turns the signals into a request. Call it before there are threads; commands started with `std` do not inherit the
/// blocked signals.
pub fn listen() -> Result<()> {
    spawn::block_signals(&SIGNALS).context(|| "block signals")?;
    let signals = spawn::signal_fd(&SIGNALS).context(|| "make a descriptor for signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            loop {
                let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
                match spawn::read_signal(std::os::fd::AsFd::as_fd(&signals)) {
                    Ok(Some(received)) => RECEIVED.store(received.signal, Ordering::Release),
                    Ok(None) => {}
                    Err(_) => return,
                }
            }
        })
        .context(|| "start a thread")?;
    Ok(())
}

/// # Errors
/// [`ErrorKind::Cancelled`] once a signal has come.
pub fn check() -> Result<()> {
    match RECEIVED.load(Ordering::Acquire) {
        0 => Ok(()),
        signal => Err(Error::new(
            ErrorKind::Cancelled,
            format!("ended early by signal {signal}"),
        )),
    }
}
