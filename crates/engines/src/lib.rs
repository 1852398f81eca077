//! Checkpoint engines behind one interface.
//!
//! An engine is known by its [`Descriptor`]: what it is called, how it is driven and what it can do, as free key-value
//! properties. A [`Class`] is a name for properties that its members have; who is a member is computed, never only
//! claimed. The [`Registry`] holds what is compiled in and what a site and a user have added, and chooses by what is
//! needed. A probe ([`Descriptor::probe`]) says whether an engine works on this node.
//!
//! This crate knows nothing of jobs and their directories.

mod class;
mod descriptor;
mod probe;
mod property;
mod registry;

pub use class::Class;
pub use descriptor::{Descriptor, Driver, Images, Place, Trigger};
pub use probe::Probe;
pub use property::{Condition, Properties, Values};
pub use registry::{Choice, Considered, Problem, Registry, Request, Verdict};
