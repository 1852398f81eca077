//! Vocabulary shared by every layer: the error type with its cause classes and exit codes, and connections between
//! jobs.
//!
//! This crate does no I/O and knows nothing of Linux, images or jobs.
//!
//! An [`Error`] says what was being done and to which object, why it failed (its source chain), which class of cause
//! it belongs to ([`ErrorKind`]) and, where we know one, what the user can do ([`Error::hint`]).

mod connection;
mod error;

pub use connection::{Connection, ConnectionEnd, Links, Renewal, Traffic, inner_connections};
pub use error::{Context, Error, ErrorKind, Result};
