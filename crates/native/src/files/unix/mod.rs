//! UNIX sockets: names, connections, queued messages with the descriptors in them, waiting connections.
//!
//! Saving takes two steps. [`save`] only notes a socket; [`finish`], once all descriptors are known, looks at the
//! queues (which may bring more descriptors to light) and finds out who is connected with whom.
//!
//! Restoring takes two steps, too. [`Sockets::create`] makes all sockets, binds and connects them; [`Sockets::fill`]
//! puts the messages back when all open files exist, since messages can carry any of them.
//!
//! Limits: SO_PEERCRED and the credentials of queued messages name the process that restarts the job, with the right
//! user. An empty datagram that was looked at by one checkpoint is passed over by the next, which is how SO_PEEK_OFF
//! works.

mod restore;
mod save;

use cpr_image::model::UnixSocket;

use super::unix_names::show;

pub(super) use restore::new_socket_in;

pub use restore::{Sockets, restore};
pub use save::{Queued, SaveState, finish, save};

const STREAM: i32 = 1;
pub(super) const DGRAM: i32 = 2;
const SEQPACKET: i32 = 5;
// Options of level SOL_SOCKET, <asm-generic/socket.h>.
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_PASSCRED: i32 = 16;
const SO_RCVLOWAT: i32 = 18;
const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;
const SO_TIMESTAMP: i32 = 29;
const SO_PASSSEC: i32 = 34;
const SO_TIMESTAMPNS: i32 = 35;
const SO_PEEK_OFF: i32 = 42;
const SO_PASSPIDFD: i32 = 76;
/// Linux 6.16.
const SO_PASSRIGHTS: i32 = 83;
/// Options that are plain numbers and only worth saving when they differ from a new socket's value.
const NUMBERS: [(i32, i32); 8] = [
    (SO_PASSCRED, 0),
    (SO_PASSSEC, 0),
    (SO_PASSPIDFD, 0),
    (SO_PASSRIGHTS, 1),
    (SO_RCVLOWAT, 1),
    (SO_TIMESTAMP, 0),
    (SO_TIMESTAMPNS, 0),
    (SO_PEEK_OFF, -1),
];

fn label(index: usize, socket: &UnixSocket) -> String {
    if socket.address.0.is_empty() {
        format!("UNIX socket {index}")
    } else {
        format!("UNIX socket {index} ({})", show(&socket.address.0))
    }
}
