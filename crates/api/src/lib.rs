//! What `cpr`, node agents and the grid service say to each other: the types of the HTTP/JSON interface, and a client
//! for it that starts no thread and no runtime.
//!
//! It holds no state and decides nothing. Invariants: fields are added, never renamed or removed, within `/v1`; fields
//! that are not known are ignored, those that are missing have defaults, so that old and new programs understand each
//! other.

pub mod agent;
pub mod client;
pub mod http;
pub mod model;
pub mod staging;
pub mod tls;

pub use client::{Client, Endpoint};
