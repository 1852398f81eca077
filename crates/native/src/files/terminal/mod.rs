//! Terminals: pseudo-terminals of the job, and the terminal it was started on.
//!
//! A terminal whose master is held by a process of the job belongs to the job: both sides are made again, with
//! settings, window size and what is under way in both directions. Queues of a terminal cannot be looked at, so they
//! are read and put back while all processes are stopped ([`SaveState::finish`]); whatever makes it impossible to put
//! them back exactly is refused before anything is read.
//!
//! Any other terminal is *external*: restart supplies one ([`Terminals`]), which gets the saved line settings but keeps
//! its own window size and its own queues. Where it has none, a console or a serial line is opened again.
//!
//! A terminal has its number below /dev/pts again after a restart, unless somebody else has it by then; that is told.

mod queues;
mod restore;
mod save;

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use crate::views::TerminalSystem;

pub(super) use queues::is_hung_up;

pub use restore::{JobControl, Terminals, create_all, fill_queues, restore, slave_for};
pub use save::{Member, SaveState, Side, finish, save, side};

/// File systems of terminals in mount namespaces of the job's own.
pub type TerminalSystems = HashMap<TerminalSystem, OwnedFd>;
