//! The ends of threads that are attached to, seen beside while others of their process are attached to.
//!
//! A thread that replaces its program by execve(2) ends all others, and holds the lock that ptrace(2) takes to attach
//! until their ends have been seen by whoever is attached to them (de_thread in fs/exec.c). Whoever waited for that lock
//! himself would wait for ever, and the program with him.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cpr_types::{Context, Result};

/// How often it is looked whether a thread has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Sees ends until it is dropped.
#[derive(Debug)]
pub(super) struct Ends {
    attached: Option<Sender<i32>>,
    thread: Option<JoinHandle<()>>,
}

impl Ends {
    /// Begins to see the ends of these threads.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn see(tids: Vec<i32>) -> Result<Self> {
        let (attached, others) = channel();
        let thread = std::thread::Builder::new().name("cpr-ends".to_owned());
        let thread = thread.spawn(move || look(tids, &others)).context(|| "start a thread")?;
        Ok(Ends {
            attached: Some(attached),
            thread: Some(thread),
        })
    }

    /// Sees that of this thread, too, which is attached to now.
    pub(super) fn of(&self, tid: i32) {
        if let Some(attached) = &self.attached {
            // It listens until then.
            let _ = attached.send(tid);
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.attached = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn look(mut tids: Vec<i32>, attached: &Receiver<i32>) {
    loop {
        match attached.recv_timeout(LOOK) {
            Ok(tid) => tids.push(tid),
            // Whoever waits for it later is told that it is not there, and knows then.
            Err(RecvTimeoutError::Timeout) => tids.retain(|tid| !cpr_kernel::ptrace::see_end(*tid).unwrap_or(true)),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
