//! Who calls: by the credentials of a UNIX socket, or a certificate or token over TCP.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cpr_api::model::Owner;
use cpr_grid::{Caller, Role};
use cpr_types::{Error, ErrorKind, Result};

use super::Service;
use super::answer::Failure;
use crate::server::Peer;
use crate::{log, tokens};

/// Longest request, bytes: a job's command and environment, or a node's report of many images.
const LONGEST_REQUEST: usize = 16 << 20;

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

/// Whom a certificate or, where it names nobody, a token stands for.
fn remote(service: &Service, peer: &Peer, parts: &Parts) -> Result<(String, Role)> {
    if let (Some(tls), Peer::Remote { certificates }) = (&service.tls, peer)
        && let Some(named) = tls.get()?.identify(certificates)?
    {
        return Ok(named);
    }
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Err(
            Error::new(ErrorKind::Denied, "the request has neither certificate nor token")
                .with_hint("`cprd ca issue NAME` or `cprd token NAME` on the grid's host makes one"),
        );
    };
    tokens::identify(&service.config.borrow().grid.tokens, token.trim())?
        .ok_or_else(|| Error::new(ErrorKind::Denied, "the token is not known here"))
}

fn identify(service: &Service, peer: &Peer, parts: &Parts) -> Result<Caller> {
    let (name, user, role) = match peer {
        Peer::Local { uid } => {
            let user = local(*uid)?;
            let own = rustix::process::geteuid().as_raw();
            let role = if *uid == 0 || *uid == own {
                Role::Admin
            } else {
                Role::User
            };
            (user.name.clone(), Some(user), role)
        }
        Peer::Remote { .. } => {
            let (name, role) = remote(service, peer, parts)?;
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
        Role::User if service.config.borrow().grid.operators.contains(&name) => Role::Operator,
        role => role,
    };
    Ok(Caller { name, user, role })
}

/// Finds out who calls before anything else is done, and writes down what they changed or were refused: the audit log.
pub async fn identified(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().cloned();
    // The path is the one below `/v1`, where this layer is.
    let what = format!("{} /v1{}", parts.method, parts.uri.path());
    // Heartbeats change what nodes themselves are known to have, several times a second.
    let changes = parts.method != Method::GET && !parts.uri.path().ends_with("/agent/heartbeat");
    let caller = match &peer {
        Some(peer) => identify(&service, peer, &parts),
        None => Err(Error::new(
            ErrorKind::Internal,
            "nobody knows where the request came from",
        )),
    };
    let (name, response) = match caller {
        Ok(caller) => {
            let name = caller.name.clone();
            parts.extensions.insert(caller);
            let response = match whole_body(&service, body).await {
                Ok(body) => next.run(Request::from_parts(parts, body)).await,
                Err(response) => response,
            };
            (name, response)
        }
        Err(error) => ("somebody".to_string(), Failure(error).into_response()),
    };
    if changes || response.status() == StatusCode::FORBIDDEN {
        log(format!("audit: {name} {what}: {}", response.status().as_u16()));
    }
    response
}

/// The body of a request once it has come; who is too slow, or sends too much, is refused.
async fn whole_body(service: &Service, body: Body) -> std::result::Result<Body, Response> {
    let refuse = |status: StatusCode, kind: ErrorKind, what: String| {
        let error = Error::new(kind, what);
        (status, axum::Json(cpr_api::model::Problem::from(&error))).into_response()
    };
    match tokio::time::timeout(service.limits.patience, to_bytes(body, LONGEST_REQUEST)).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(_)) => Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Usage,
            format!("the body of the request is cut off, or longer than {LONGEST_REQUEST} bytes"),
        )),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            ErrorKind::TimedOut,
            "the body of the request did not come in time".to_string(),
        )),
    }
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
