//! libgridcpr: what a program can have to do with its own checkpoints.
//!
//! - [`register`]: callbacks before a checkpoint, after it, and after a restart (LBNL-3.6.7).
//! - [`enter`]: critical sections, in which no checkpoint is taken.
//! - [`checkpoint()`] and [`restarted`]: a checkpoint of the program's own job, and whether this is a restart.
//! - [`file_policy`]: how checkpoints of the job treat files (LBNL-3.6.8.4).
//! - [`command()`]: checkpoints, restarts and whatever else `cpr` does, of other jobs, processes and sessions
//!   (LBNL-2.1.1).
//! - [`image`]: images, to be read and edited (LBNL-3.6.3).
//! - [`app`]: checkpoints that a program writes itself (GFD.93, section 2.3).
//! - [`grid`]: the service of a grid. `cpr` reaches images, checkpoints of programs and grids through these modules,
//!   and in no other way (GFD93-LIB-9).
//!
//! Nothing happens before the first call: that maps one page and starts one thread, which sleeps until a checkpointer
//! wakes it. The library uses no descriptor, no file and no daemon, and a signal only for callbacks that ask for one.
//! The C interface is `include/gridcpr.h`; `docs/library.md` describes both.

mod callbacks;
mod checkpoint;
mod command;
mod ffi;
mod policies;
mod process;
mod requests;
mod run;
mod sections;
mod supervisor;

pub use callbacks::{CallbackId, Context, Event, Notice, Verdict, explain, register, unregister};
pub use checkpoint::{CheckpointOptions, Outcome, Restart, checkpoint, restarted};
pub use command::command;
pub use cpr_types::{Error, ErrorKind, Result};
pub use policies::file_policy;
pub use process::start;
pub use sections::{Section, enter};

/// Checkpoints that a program writes itself: named variables, in generations.
pub mod app {
    pub use cpr_app::*;
}

/// Images: opened, looked into, and edited into new ones.
pub mod image {
    pub use cpr_image::edit::Edit;
    pub use cpr_image::*;
}

/// Grids: jobs, checkpoints, nodes and events of a service, over its HTTP interface.
pub mod grid {
    pub use cpr_api::{Client, Endpoint, model, staging, tls};
}
