//! The terminal that a job in the foreground has in common with whoever started it.
//!
//! A shell in the job makes its own process group the terminal's foreground one, and programs change the settings. Both
//! go with an image: a restart in the foreground gives the group the terminal again (LBNL-3.3.5). When the job has
//! ended without having put them back, as one does that a checkpoint ended, we do.

use std::os::fd::{AsFd, OwnedFd};

use cpr_kernel::terminal::{self, Attributes};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

use crate::engine::JobControl;

/// The first of our standard streams that is a terminal.
pub(crate) fn of_streams() -> Option<OwnedFd> {
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [input.as_fd(), output.as_fd(), errors.as_fd()];
    let found = streams.into_iter().find(|fd| rustix::termios::isatty(fd))?;
    found.try_clone_to_owned().ok()
}

/// What we are to a terminal.
pub(crate) fn job_control(terminal: &OwnedFd) -> JobControl {
    match tcgetpgrp(terminal) {
        Ok(group) if group == getpgrp() => JobControl::Foreground,
        Ok(_) => JobControl::Background,
        // ENOTTY: it is not our controlling terminal.
        Err(_) => JobControl::None,
    }
}

/// A terminal in whose foreground we are.
pub(crate) struct SharedTerminal {
    terminal: OwnedFd,
    settings: Attributes,
}

impl SharedTerminal {
    /// With the settings it has now.
    pub(crate) fn note(terminal: OwnedFd) -> Option<SharedTerminal> {
        let settings = terminal::attributes(terminal.as_fd()).ok()?;
        Some(SharedTerminal { terminal, settings })
    }

    /// When the job has ended: takes the terminal back where nobody is in its foreground any more, and puts its
    /// settings back where the job was `killed`, so that it could not. Somebody else's terminal is left alone.
    pub(crate) fn take_back(&self, killed: bool) {
        let fd = self.terminal.as_fd();
        let is_ours = match tcgetpgrp(fd) {
            Ok(group) if group == getpgrp() => true,
            Ok(group) if rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH) => {
                terminal::come_to_foreground(fd).is_ok()
            }
            Ok(_) | Err(_) => false,
        };
        if is_ours && killed {
            // The terminal may be gone.
            let _ = terminal::set_attributes_blocking_ttou(fd, &self.settings);
        }
    }
}
