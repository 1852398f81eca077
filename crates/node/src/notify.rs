//! Telling programs that something has happened: those that use libgridcpr and have callbacks (GFD.93, EHnotify).

use std::time::Duration;

use cpr_types::{Error, ErrorKind, Result};

use crate::checkpoint::Bare;
use crate::job::Job;
use crate::suspend::Whole;
use crate::target::Target;

impl Job {
    /// Tells all processes of the job, and waits until their callbacks have returned; gives how many were told.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while the job is being checkpointed or is suspended, [`ErrorKind::TimedOut`].
    pub fn notify(&self, notice: &str, limit: Duration) -> Result<usize> {
        let state = self.living()?;
        if self.is_suspended()? {
            let text = format!("job {} is suspended", self.name());
            return Err(Error::new(ErrorKind::Busy, text).with_hint("`cpr resume` it first"));
        }
        tell(&Whole::Job(self, &state).processes()?, notice, limit)
    }
}

/// The same for a process with its descendants, or a session.
///
/// # Errors
/// As [`Job::notify`].
pub fn notify_bare(bare: Bare, notice: &str, limit: Duration) -> Result<usize> {
    bare.representative()?;
    tell(&Whole::Bare(bare).processes()?, notice, limit)
}

fn tell(processes: &[Target], notice: &str, limit: Duration) -> Result<usize> {
    for process in processes {
        match process.require_may_signal() {
            // It has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::Gone => {}
            result => result?,
        }
    }
    let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
    cpr_native::tell(&pids, notice, limit)
}
