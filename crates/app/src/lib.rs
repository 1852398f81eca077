//! Checkpoints that a program writes itself: named variables, in generations that count only when they are complete.
//!
//! A [`Store`] is a directory of generations of one name; a generation has one *part* for each rank of the program
//! ([`part`], docs/app-format.md), and counts when all parts are there and synced. Reading takes the newest generation
//! whose data are sound ([`Store::restore`]). A part says which byte order it is in and what its variables are, so that
//! it can be read on another kind of machine.
//!
//! Nothing here knows of the kernel, nor of images of processes.

mod background;
mod directory;
pub mod files;
pub mod npy;
pub mod npz;
pub mod part;
mod retention;
mod store;
mod strided;
mod transfer;
mod variable;

pub use background::{Background, Progress};
pub use files::FileInfo;
pub use part::{PartInfo, VariableInfo};
pub use store::{GenerationInfo, GenerationState, Kind, Options, Restored, Store, Target, Written};
pub use strided::{gather, scatter};
pub use variable::{ElementType, Order, Variable};
