//! `cprd all` with SQLite, its database where nothing else is said.

mod support;

#[path = "suite/one_machine.rs"]
mod one_machine;

/// A site that is not started yet.
pub fn new_site() -> Option<support::Site> {
    Some(support::Site::new())
}
