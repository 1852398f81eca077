//! Gives images to other nodes, which show the ticket that the service has given them for it, and with TLS also that
//! they are nodes.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cpr_api::model::Problem;
use cpr_grid::Role;
use cpr_types::{Context, Error, ErrorKind, Result};
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Agent, describe, images};
use crate::config::Config;
use crate::log;
use crate::server::{Listener, Peer, serve};
use crate::tls::{self, ServerTls};

/// Bytes of one piece of an answer.
const PIECE: usize = 256 << 10;

/// What the handler needs.
struct Shared {
    agent: Arc<Agent>,
    tls: Option<Arc<ServerTls>>,
}

/// Listens at the address of the configuration, where there is one.
pub async fn start(parts: &mut JoinSet<Result<()>>, config: &Config, agent: Arc<Agent>) -> Result<()> {
    let Some(address) = config.node.listen else {
        return Ok(());
    };
    let what = || format!("listen on {address}");
    let tls = config.tls.files().map(tls::agent).transpose()?.map(Arc::new);
    let listener = TcpListener::bind(address).await.context(what)?;
    log(format!("giving images at {}", listener.local_addr().context(what)?));
    let shared = Arc::new(Shared {
        agent,
        tls: tls.clone(),
    });
    let router = Router::new()
        .route("/v1/images/{id}", get(image))
        .route("/v1/node", get(node))
        .with_state(shared);
    parts.spawn(serve(Listener::Tcp(listener, tls), router, config.limits.limits()));
    Ok(())
}

/// With TLS, refuses who is no node; gives its name, as far as that is known.
fn require_node(shared: &Shared, peer: &Peer) -> Result<String> {
    let (Some(tls), Peer::Remote { certificates }) = (&shared.tls, peer) else {
        return Ok("a node".into());
    };
    match tls.get()?.identify(certificates)? {
        Some((name, Role::Node)) => Ok(format!("node {name}")),
        _ => Err(Error::new(ErrorKind::Denied, "images are for nodes of the grid")),
    }
}

/// `GET /v1/node`: what the node says of itself, to whoever has a certificate where there are any.
async fn node(State(shared): State<Arc<Shared>>, Extension(peer): Extension<Peer>) -> Response {
    let known = match (&shared.tls, &peer) {
        (Some(tls), Peer::Remote { certificates }) => tls.get().and_then(|tls| tls.identify(certificates)),
        _ => Ok(Some((String::new(), Role::User))),
    };
    let refused = match known {
        Ok(Some(_)) => {
            let config = shared.agent.current.borrow().clone();
            return Json(describe(&config, &shared.agent.engines())).into_response();
        }
        Ok(None) => Error::new(ErrorKind::Denied, "whoever asks needs a certificate of this grid"),
        Err(error) => error,
    };
    (StatusCode::FORBIDDEN, Json(Problem::from(&refused))).into_response()
}

/// `GET /v1/images/{id}`, from a byte on: `Range: bytes=N-`.
async fn image(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Response {
    let opened = match require_node(&shared, &peer) {
        Ok(reader) => open(&shared.agent, id, &headers)
            .await
            .inspect(|_| log(format!("audit: {reader} reads image {id} with a ticket for it"))),
        Err(error) => Err(error),
    };
    match opened {
        Ok(response) => response,
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::Denied => StatusCode::FORBIDDEN,
                ErrorKind::NotFound => StatusCode::NOT_FOUND,
                ErrorKind::Usage => StatusCode::RANGE_NOT_SATISFIABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, Json(Problem::from(&error))).into_response()
        }
    }
}

async fn open(agent: &Agent, id: i64, headers: &HeaderMap) -> Result<Response> {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let ticket = agent.state().tickets.get(&id).cloned();
    // Compared by their hashes, which takes the same time for all.
    let good = shown
        .zip(ticket)
        .is_some_and(|(shown, ticket)| blake3::hash(shown.as_bytes()) == blake3::hash(ticket.as_bytes()));
    if !good {
        return Err(Error::new(
            ErrorKind::Denied,
            format!("this is no ticket for image {id}"),
        ));
    }
    let missing = || Error::new(ErrorKind::NotFound, format!("image {id} is not here"));
    let path = agent.layout.images().remove(&id).ok_or_else(missing)?;
    let what = || format!("read image {}", path.display());
    let mut file = tokio::fs::File::from_std(images::open_held(&path)?);
    let length = file.metadata().await.context(what)?.len();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let offset = match range {
        None => 0,
        Some(text) => text
            .strip_prefix("bytes=")
            .and_then(|text| text.strip_suffix('-')?.parse().ok())
            .filter(|offset| *offset <= length)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Usage,
                    format!("there is no range {text:?} of {length} bytes"),
                )
            })?,
    };
    file.seek(SeekFrom::Start(offset)).await.context(what)?;
    let pieces = stream::unfold(file, async |mut file| {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(count) => {
                piece.truncate(count);
                Some((Ok(Bytes::from(piece)), file))
            }
            // The connection is cut, so that the other side sees it.
            Err(error) => Some((Err(error), file)),
        }
    });
    let status = if range.is_some() {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let last = length.saturating_sub(1);
    let head = [
        (header::CONTENT_TYPE, "application/octet-stream".to_string()),
        (header::CONTENT_LENGTH, (length - offset).to_string()),
        (header::CONTENT_RANGE, format!("bytes {offset}-{last}/{length}")),
    ];
    Ok((status, head, Body::from_stream(pieces)).into_response())
}
