//! Who calls: by the credentials of a UNIX socket, or a token over TCP.

use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use cpr_api::model::Owner;
use cpr_grid::{Caller, Role};
use cpr_types::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, UnixListener};

use super::Service;
use super::answer::Failure;
use crate::{log, tokens};

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

/// Finds out who calls before anything else is done, and writes down what they changed or were refused: the audit log.
pub async fn identified(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<Peer>>();
    let peer = peer.map_or(Peer::Unknown, |ConnectInfo(peer)| *peer);
    // The path is the one below `/v1`, where this layer is.
    let what = format!("{} /v1{}", parts.method, parts.uri.path());
    // Heartbeats change what nodes themselves are known to have, several times a second.
    let changes = parts.method != Method::GET && !parts.uri.path().ends_with("/agent/heartbeat");
    let (name, response) = match identify(&service, peer, &parts) {
        Ok(caller) => {
            let name = caller.name.clone();
            parts.extensions.insert(caller);
            (name, next.run(Request::from_parts(parts, body)).await)
        }
        Err(error) => ("somebody".to_string(), Failure(error).into_response()),
    };
    if changes || response.status() == StatusCode::FORBIDDEN {
        log(format!("audit: {name} {what}: {}", response.status().as_u16()));
    }
    response
}

/// The caller, as an argument of handlers below [`identified`].
pub struct Identified(pub Caller);

impl<S: Sync> FromRequestParts<S> for Identified {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller
            .map(Identified)
            .ok_or_else(|| Failure(Error::new(ErrorKind::Internal, "nobody found out who calls")))
    }
}
