//! The interface of the service: HTTP and JSON below `/v1`, over a UNIX socket and TCP.
//!
//! It finds out who calls and passes calls on; what may be done, and what it does, is decided in `cpr-grid`.

mod answer;
mod auth;
mod events;
mod routes;

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use cpr_grid::Grid;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::log;
use crate::reload::Current;
use crate::server::{Limits, Listener, serve};
use crate::tls::{self, ServerTls};

/// What handlers share.
pub struct Service {
    pub grid: Arc<Grid>,
    pub config: Current,
    pub limits: Limits,
    /// How callers on the network are known; none where they are known by tokens only.
    pub tls: Option<Arc<ServerTls>>,
}

fn router(service: Arc<Service>) -> Router {
    let v1 = Router::new()
        .route("/jobs", get(routes::jobs).post(routes::submit))
        .route("/arrays", post(routes::submit_array))
        .route("/arrays/{id}/cancel", post(routes::cancel_array))
        .route("/queue", get(routes::queue))
        .route("/jobs/{id}", get(routes::job))
        .route("/jobs/{id}/cancel", post(routes::cancel))
        .route("/jobs/{id}/suspend", post(routes::suspend))
        .route("/jobs/{id}/signal", post(routes::signal))
        .route("/jobs/{id}/recover", post(routes::recover))
        .route("/jobs/{id}/migrate", post(routes::migrate))
        .route("/jobs/{id}/policy", post(routes::policy))
        .route("/jobs/{id}/checkpoint", post(routes::request_checkpoint))
        .route(
            "/jobs/{id}/metrics",
            get(routes::metrics_of).post(routes::change_metric),
        )
        .route("/names", get(routes::names).post(routes::change_name))
        .route("/usage", get(routes::usage))
        .route("/checkpoints", get(routes::checkpoints))
        .route("/checkpoints/{id}", get(routes::checkpoint))
        .route("/checkpoints/{id}/copies", post(routes::copy))
        .route("/checkpoints/{id}/free", post(routes::free))
        .route("/nodes", get(routes::nodes))
        .route("/nodes/{name}/drain", post(routes::drain))
        .route("/nodes/{name}/fault", post(routes::fault))
        .route("/events", get(events::events))
        .route("/events/stream", get(events::stream))
        .route("/agent/heartbeat", post(routes::heartbeat))
        .layer(from_fn_with_state(service.clone(), auth::identified));
    Router::new()
        .nest("/v1", v1)
        .route("/openapi.json", get(routes::openapi))
        .route("/healthz", get(routes::healthz))
        .route("/readyz", get(routes::readyz))
        .route("/metrics", get(routes::metrics))
        .fallback(routes::nothing)
        .with_state(service)
}

/// The OpenAPI description.
pub fn openapi_json() -> Result<String> {
    routes::description()
        .to_pretty_json()
        .map_err(|error| Error::new(ErrorKind::Internal, "write the description").with_source(error))
}

/// The JSON schema of a checkpoint's record, with everything that it refers to.
pub fn schema_json() -> Result<String> {
    let what = |error| Error::new(ErrorKind::Internal, "write the schema").with_source(error);
    let all = serde_json::to_value(routes::description()).map_err(what)?;
    let all = all.pointer("/components/schemas").and_then(Value::as_object);
    let all = all.ok_or_else(|| Error::new(ErrorKind::Internal, "the description has no schemas"))?;
    let mut schema = serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What a grid knows of a checkpoint",
        "$ref": "#/$defs/Checkpoint",
        "$defs": {},
    });
    let mut waiting = vec!["Checkpoint".to_string()];
    while let Some(name) = waiting.pop() {
        let Some(found) = all.get(&name) else {
            return Err(Error::new(ErrorKind::Internal, format!("there is no schema of {name}")));
        };
        if schema["$defs"].get(&name).is_some() {
            continue;
        }
        let text = found.to_string();
        let names = text.split("#/components/schemas/").skip(1);
        waiting.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_string())));
        let text = text.replace("#/components/schemas/", "#/$defs/");
        schema["$defs"][&name] = serde_json::from_str(&text).map_err(what)?;
    }
    serde_json::to_string_pretty(&schema).map_err(what)
}

/// Listens at every address of the configuration.
pub async fn start(parts: &mut JoinSet<Result<()>>, config: &Config, current: Current, grid: Arc<Grid>) -> Result<()> {
    let files = config.tls.files().filter(|_| !config.grid.listen.is_empty());
    let service = Arc::new(Service {
        grid,
        config: current,
        limits: config.limits.limits(),
        tls: files.map(tls::service).transpose()?.map(Arc::new),
    });
    let limits = service.limits.clone();
    let tls = service.tls.clone();
    let router = router(service);
    let socket = listen_unix(&config.grid.socket)?;
    log(format!("listening on {}", config.grid.socket.display()));
    parts.spawn(serve(Listener::Unix(socket), router.clone(), limits.clone()));
    for address in &config.grid.listen {
        let what = || format!("listen on {address}");
        let socket = TcpListener::bind(address).await.context(what)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        log(format!(
            "listening on {scheme}://{}",
            socket.local_addr().context(what)?
        ));
        parts.spawn(serve(
            Listener::Tcp(socket, tls.clone()),
            router.clone(),
            limits.clone(),
        ));
    }
    Ok(())
}

/// A socket that everybody on this machine can reach, in the place of one that a killed service has left.
fn listen_unix(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let what = || format!("listen on {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .context(what)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(
            ErrorKind::InUse,
            format!("another cprd listens on {}", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(what),
        _ => {}
    }
    let listener = UnixListener::bind(path).context(what)?;
    // Who calls is known by credentials, so that everybody may.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).context(what)?;
    Ok(listener)
}
