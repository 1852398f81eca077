//! TCP connections between jobs, or units of one job, that are saved in one stop and restarted together.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A TCP connection as one end sees it. IPv4 addresses are written as such, whatever family a socket is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
}

impl Connection {
    /// As the other end sees it.
    #[must_use]
    pub fn reversed(self) -> Connection {
        Connection {
            local: self.remote,
            remote: self.local,
        }
    }

    /// Whether it stays within one machine, so that others may have one of the same addresses.
    #[must_use]
    pub fn is_within_machine(self) -> bool {
        self.local.ip().is_loopback() || self.remote.ip().is_loopback()
    }
}

/// One end of a connection that leads out of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEnd {
    /// The connection.
    pub connection: Connection,
    /// Its socket shares its port (SO_REUSEADDR), as those do that a server has accepted.
    #[serde(default)]
    pub shares_port: bool,
    /// What went through it so far, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// What went through one end of a connection since it was made, or made again, bytes. What one end has written and the
/// other has not received is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Written by the program.
    pub written: u64,
    /// Received by the kernel, whether or not the program has read it.
    pub received: u64,
}

/// One end of a connection that is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// What it was.
    pub former: Connection,
    /// What it is to be.
    pub now: Connection,
    /// This end listens, and the other one connects.
    pub listens: bool,
}

impl Renewal {
    /// Both ends of a connection; `now` is what the first is to be. A server's end listens: its port can be listened at
    /// while connections that have just ended still have it.
    #[must_use]
    pub fn of(one: ConnectionEnd, other: ConnectionEnd, now: Connection) -> [Renewal; 2] {
        let rank = |end: ConnectionEnd| (!end.shares_port, end.connection.local);
        let listens = rank(one) < rank(other);
        [
            Renewal {
                former: one.connection,
                now,
                listens,
            },
            Renewal {
                former: other.connection,
                now: now.reversed(),
                listens: !listens,
            },
        ]
    }
}

/// How jobs that are restarted together find each other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Known to those that are restarted together, and to nobody else. Of this restart only.
    pub secret: [u8; 32],
    /// Their connections.
    pub renewals: Vec<Renewal>,
}

impl Links {
    /// What becomes of an end.
    #[must_use]
    pub fn find(&self, former: Connection) -> Option<&Renewal> {
        self.renewals.iter().find(|renewal| renewal.former == former)
    }
}

impl std::fmt::Debug for Links {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links")
            .field("renewals", &self.renewals)
            .finish_non_exhaustive()
    }
}

/// Pairs ends that belong together: for each list, those of its ends whose other end is in another list.
#[must_use]
pub fn inner_connections(lists: &[Vec<ConnectionEnd>]) -> Vec<Vec<Connection>> {
    let inner = |at: usize, end: &ConnectionEnd| {
        let wanted = end.connection.reversed();
        let has = |other: &ConnectionEnd| other.connection == wanted;
        lists
            .iter()
            .enumerate()
            .any(|(number, list)| number != at && list.iter().any(has))
    };
    lists
        .iter()
        .enumerate()
        .map(|(at, list)| {
            let ends = list.iter().filter(|end| inner(at, end));
            ends.map(|end| end.connection).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(local: u16, remote: u16, shares_port: bool) -> ConnectionEnd {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        ConnectionEnd {
            connection: Connection {
                local: at(local),
                remote: at(remote),
            },
            shares_port,
            traffic: None,
        }
    }

    #[test]
    fn only_ends_in_different_lists_are_a_pair() {
        let lists = [
            vec![end(1, 2, false), end(5, 6, false), end(6, 5, false)],
            vec![end(2, 1, false), end(3, 4, false)],
        ];
        let found = inner_connections(&lists);
        assert_eq!(
            found,
            [vec![end(1, 2, false).connection], vec![end(2, 1, false).connection]]
        );
    }

    #[test]
    fn exactly_one_end_listens_whoever_comes_first() {
        for (one, other) in [
            (end(1, 2, true), end(2, 1, false)),
            (end(1, 2, false), end(2, 1, false)),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                let [first, second] = Renewal::of(one, other, one.connection);
                assert_ne!(first.listens, second.listens);
                let listening = if first.listens { first } else { second };
                assert_eq!(listening.former.local.port(), 1);
                assert_eq!(second.now, one.connection.reversed());
            }
        }
        let [server, _] = Renewal::of(end(2, 1, true), end(1, 2, false), end(2, 1, true).connection);
        assert!(server.listens, "a server's end listens, whatever its port");
    }
}
