//! Checkpoint engines behind one interface.
//!
//! An engine is known by its [`Descriptor`]: what it is called, how it is driven and what it can do, as free key-value
//! properties. A [`Class`] is a name for properties that its members have; who is a member is computed, never only
//! claimed. The [`Registry`] holds what is compiled in and what a site and a user have added, and chooses by what is
//! needed. A probe ([`Descriptor::probe`]) says whether an engine works on this node.
//!
//! [`Engine`] is what a driver has to do, and [`Steps`] is how it is made to, one step after the other.
//!
//! Of the native engine only what stands still together with others goes this way ([`Native`]).
//!
//! [`Devices`] are plug-ins for devices that the native engine does not know.
//!
//! This crate knows nothing of jobs and their directories.

mod application;
mod class;
mod configuration;
mod criu;
mod descriptor;
mod devices;
mod dmtcp;
mod engine;
mod external;
mod native;
mod pager;
mod probe;
mod program;
mod property;
mod protobuf;
mod qemu;
mod qmp;
mod registry;
mod rounds;

pub use application::{PUT_BACK, is_unfinished, save_own};
pub use class::Class;
pub use configuration::{Problem, VARIABLE as CONFIG_VARIABLE};
pub use descriptor::{Asks, Deadlines, Descriptor, Driver, Images, Place, SAVE_NOTICE, Trigger, fill};
pub use devices::{DevicePlugin, Devices};
pub use engine::{Engine, Group, GroupKind, Rebuilt, Steps, Unit};
pub use native::Native;
pub use pager::Pager;
pub use probe::Probe;
pub use property::{Condition, Properties, Values};
pub use registry::{Choice, Considered, NATIVE, Registry, Request, Verdict};
