//! The store that nodes share: a directory of a file system. An image is in it whole, or not.
//!
//! Whoever reads compares with the hash that the grid has on record: nothing a store gives is believed.

pub mod clean;
mod directory;

pub use directory::Directory;
