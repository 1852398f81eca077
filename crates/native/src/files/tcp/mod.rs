//! TCP connections: with both ends in the job, with one end closed, and to the outside.
//!
//! A connection within the job is made again by connecting the same two addresses on this machine, and what either side
//! had not read yet is sent again. That takes no privilege, and sequence numbers do not matter to anybody. A connection
//! to the outside is refused, or saved as one that was reset, or continued with TCP_REPAIR, as [`TcpPolicy`] says. One
//! to a job that is saved in the same stop is emptied by [`super::drain`] and made again by [`super::meet`].
//!
//! What was written and has not arrived (the reader's buffer is full) can be seen in repair mode only, which takes
//! CAP_NET_ADMIN over the network namespace. Who lacks it cannot checkpoint a connection with such data.
//!
//! Limits: a connection that has ended, and whose other end is not in the job, keeps neither its addresses nor its
//! error (which becomes ECONNRESET); window sizes and congestion state are those of a new connection.

mod arrival;
mod links;
mod restore;
mod save;

pub(super) use arrival::Arrival;
pub(super) use links::{Streams, link, links};
pub(super) use restore::{Builder, fill, share_port, shut_down};
pub(super) use save::{make_room, save};

pub use save::{Deaf, Ending};

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
/// IP_LOCAL_PORT_RANGE (Linux 6.3).
pub(super) const IP_LOCAL_PORT_RANGE: i32 = 51;
pub(super) const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
/// shutdown(2) of the receiving and of the sending side.
pub(super) const RECEIVE: u32 = 1;
pub(super) const SEND: u32 = 2;
