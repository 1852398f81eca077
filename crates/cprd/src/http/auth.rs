//! Who calls: by the credentials of a UNIX socket, or a token over TCP.

use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use cpr_api::model::Owner;
use cpr_grid::{Caller, Role};
use cpr_types::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, UnixListener};

use super::Service;
use super::answer::Failure;
use crate::tokens;

/// The other side of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// A process of this user on this machine, by SO_PEERCRED (unix(7)).
    Local { uid: u32 },
    /// Somebody on the network.
    Remote,
    /// A local process that had gone before it could be asked.
    Unknown,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(credentials) => Peer::Local { uid: credentials.uid() },
            Err(_) => Peer::Unknown,
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Peer::Remote
    }
}

fn owner_of(user: nix::unistd::User) -> Owner {
    Owner {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }
}

fn lookup_failed(error: nix::Error) -> Error {
    Error::new(ErrorKind::Io, "look up a user").with_source(error)
}

/// A local user, who needs no name.
fn local(uid: u32) -> Result<Owner> {
    let found = nix::unistd::User::from_uid(uid.into()).map_err(lookup_failed)?;
    Ok(found.map_or_else(
        || Owner {
            name: uid.to_string(),
            uid,
            gid: uid,
        },
        owner_of,
    ))
}

fn identify(service: &Service, peer: Peer, parts: &Parts) -> Result<Caller> {
    let denied = |what: &str| Err(Error::new(ErrorKind::Denied, what.to_string()));
    let (name, user, role) = match peer {
        Peer::Unknown => return denied("the caller has gone"),
        Peer::Local { uid } => {
            let user = local(uid)?;
            let own = rustix::process::geteuid().as_raw();
            let role = if uid == 0 || uid == own {
                Role::Admin
            } else {
                Role::User
            };
            (user.name.clone(), Some(user), role)
        }
        Peer::Remote => {
            let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
                return Err(Error::new(ErrorKind::Denied, "the request has no token")
                    .with_hint("`cprd token NAME` on the grid's host makes one"));
            };
            let Some((name, role)) = tokens::identify(&service.config.tokens, token.trim())? else {
                return denied("the token is not known here");
            };
            let user = match role {
                Role::Node => None,
                _ => nix::unistd::User::from_name(&name)
                    .map_err(lookup_failed)?
                    .map(owner_of),
            };
            (name, user, role)
        }
    };
    let role = match role {
        Role::User if service.config.operators.contains(&name) => Role::Operator,
        role => role,
    };
    Ok(Caller { name, user, role })
}

/// The caller, as an argument of handlers.
pub struct Identified(pub Caller);

impl FromRequestParts<Arc<Service>> for Identified {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Failure> {
        let peer = ConnectInfo::<Peer>::from_request_parts(parts, service).await;
        let peer = peer.map_or(Peer::Unknown, |ConnectInfo(peer)| peer);
        identify(service, peer, parts).map(Identified).map_err(Failure)
    }
}
