//! The only crate that talks to the Linux kernel in ways the standard library does not.
//!
//! Every `unsafe` block and raw system call of GridCPR is here, behind small functions that return [`std::io::Result`].
//! The crate decides nothing: it knows no image, job or policy.

pub mod aio;
pub mod arch;
pub mod batch;
pub mod clocks;
pub mod control;
pub mod demand_paging;
pub mod event;
pub mod fd;
pub mod huge_file;
pub mod inet;
pub mod inside;
pub mod io_uring;
pub mod memory;
pub mod mounts;
pub mod mqueue;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod page_move;
pub mod page_out;
pub mod proc;
pub mod process;
pub mod ptrace;
pub mod remote;
pub mod scheduling;
pub mod shared_words;
pub mod socket;
pub mod spawn;
pub mod sysv;
pub mod terminal;
pub mod terminal_relay;
mod userfaultfd;
pub mod witness;
pub mod write_tracking;
pub mod writeback;
