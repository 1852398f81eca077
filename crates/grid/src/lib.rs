//! The state of a grid: jobs, checkpoints, nodes and events in a database, and what becomes of them.
//!
//! [`Grid`] is the whole service without a network: what users may ask is in `requests.rs`, what nodes report in
//! `heartbeat.rs`, what happens by itself in `tick.rs`. What follows from what is decided by pure functions:
//! `lifecycle.rs` for jobs, `units.rs` for the units of one, `coordinator.rs` for their checkpoints, `placement.rs` for
//! nodes, `retention.rs` for checkpoints. What checkpoints are called is in `names.rs`.
//!
//! Invariants: every change of state is one transaction, and is answered only when it is durable; whoever calls is
//! checked here, whatever way the call came; no incarnation of a job is placed while another may run.

mod alone;
mod caller;
mod clock;
mod coordinator;
mod db;
mod grid;
mod heartbeat;
mod interval;
mod lifecycle;
mod metrics;
mod names;
mod orders;
mod placement;
mod query;
mod requests;
mod retention;
mod rights;
mod sets;
mod signals;
mod tick;
mod units;

pub use caller::{Caller, Role};
pub use clock::Clock;
pub use db::Db;
pub use grid::{Grid, Policy};
pub use names::NameQuery;
pub use query::{CheckpointQuery, EventQuery, JobQuery, QueueQuery};
