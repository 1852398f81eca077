//! One function for each path of the interface, with what the OpenAPI description says of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use cpr_api::agent::{Orders, Report};
use cpr_api::model::*;
use cpr_grid::{CheckpointQuery, JobQuery, NameQuery, QueueQuery};
use cpr_types::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use utoipa::OpenApi;

use super::Service;
use super::answer::{Answer, Failure, selected, whole};
use super::auth::Identified;

/// A heartbeat is answered after so long where there is nothing new.
const HOLD: Duration = Duration::from_millis(400);

type Shared = State<Arc<Service>>;

/// The body of a request; an empty one is all defaults.
fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(ErrorKind::Usage, "the request is not understood").with_source(error))
}

fn key(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str();
    text.map(Some)
        .map_err(|error| Error::new(ErrorKind::Usage, "the idempotency key is no text").with_source(error))
}

/// Jobs.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = Page<Job>)), params(
    ("state" = Option<String>, Query, description = "states, separated by commas"),
    ("owner" = Option<String>, Query, description = "login name"),
    ("name" = Option<String>, Query, description = "name"),
    ("node" = Option<String>, Query, description = "node that has it"),
    ("array" = Option<i64>, Query, description = "array it is of"),
    ("since_ms" = Option<i64>, Query, description = "submitted then or later"),
    ("until_ms" = Option<i64>, Query, description = "submitted before"),
    ("after" = Option<String>, Query, description = "`next` of the page before"),
    ("limit" = Option<i64>, Query, description = "items of a page"),
    ("fields" = Option<String>, Query, description = "fields to tell, separated by commas")))]
pub async fn jobs(State(service): Shared, Identified(caller): Identified, Query(query): Query<JobQuery>) -> Answer {
    selected(&service.grid.jobs(&caller, &query).await?, query.fields.as_deref())
}

/// Jobs that wait, in the order in which they are given to nodes, and why each of them waits.
#[utoipa::path(get, path = "/v1/queue", responses((status = 200, body = Page<Waiting>)), params(
    ("owner" = Option<String>, Query, description = "login name"),
    ("after" = Option<String>, Query, description = "`next` of the page before"),
    ("limit" = Option<i64>, Query, description = "items of a page")))]
pub async fn queue(State(service): Shared, Identified(caller): Identified, Query(query): Query<QueueQuery>) -> Answer {
    whole(&service.grid.queue(&caller, &query).await?)
}

/// Submits a job. With a header `Idempotency-Key` a repeated request is done once.
#[utoipa::path(post, path = "/v1/jobs", request_body = JobSpec, responses((status = 200, body = Job), (status = 400, body = Problem)))]
pub async fn submit(
    State(service): Shared,
    Identified(caller): Identified,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.submit(&caller, body(&bytes)?, key(&headers)?).await?)
}

/// Submits an array of jobs, all or none, with `Idempotency-Key` as for one.
#[utoipa::path(post, path = "/v1/arrays", request_body = ArrayRequest, responses((status = 200, body = Array), (status = 400, body = Problem)))]
pub async fn submit_array(
    State(service): Shared,
    Identified(caller): Identified,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let array = service.grid.submit_array(&caller, body(&bytes)?, key(&headers)?);
    whole(&array.await?)
}

/// Ends all jobs of an array for good.
#[utoipa::path(post, path = "/v1/arrays/{id}/cancel", params(("id" = i64, Path)), responses((status = 200, body = Array)))]
pub async fn cancel_array(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.cancel_array(&caller, id).await?)
}

/// A job.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = i64, Path)), responses((status = 200, body = Job), (status = 404, body = Problem)))]
pub async fn job(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.job(&caller, id).await?)
}

/// Ends a job for good.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", params(("id" = i64, Path)), responses((status = 200, body = Job)))]
pub async fn cancel(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.cancel(&caller, id).await?)
}

/// Saves a running job and ends it, until it is recovered.
#[utoipa::path(post, path = "/v1/jobs/{id}/suspend", params(("id" = i64, Path)), responses((status = 200, body = Job)))]
pub async fn suspend(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.suspend(&caller, id).await?)
}

/// Has a signal sent to a job.
#[utoipa::path(post, path = "/v1/jobs/{id}/signal", params(("id" = i64, Path)), request_body = SignalRequest, responses((status = 200, body = Job)))]
pub async fn signal(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.signal(&caller, id, body(&bytes)?).await?)
}

/// Lets a suspended, failed or cancelled job go on.
#[utoipa::path(post, path = "/v1/jobs/{id}/recover", params(("id" = i64, Path)), request_body = RecoverRequest, responses((status = 200, body = Job)))]
pub async fn recover(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.recover(&caller, id, body(&bytes)?).await?)
}

/// Lets a running job go on elsewhere.
#[utoipa::path(post, path = "/v1/jobs/{id}/migrate", params(("id" = i64, Path)), request_body = MigrateRequest, responses((status = 200, body = Job)))]
pub async fn migrate(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.migrate(&caller, id, body(&bytes)?).await?)
}

/// Changes how a job is saved from now on.
#[utoipa::path(post, path = "/v1/jobs/{id}/policy", params(("id" = i64, Path)), request_body = PolicyRequest, responses((status = 200, body = Job)))]
pub async fn policy(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.change_policy(&caller, id, body(&bytes)?).await?)
}

/// What the caller has had done and what their checkpoints take; for operators that of every user.
#[utoipa::path(get, path = "/v1/usage", responses((status = 200, body = Page<Usage>)))]
pub async fn usage(State(service): Shared, Identified(caller): Identified) -> Answer {
    let items = service.grid.usage(&caller).await?;
    whole(&Page { items, next: None })
}

/// Asks for a checkpoint of a running job, with `Idempotency-Key` as at submission.
#[utoipa::path(post, path = "/v1/jobs/{id}/checkpoint", params(("id" = i64, Path)), request_body = CheckpointRequest, responses((status = 200, body = Checkpoint)))]
pub async fn request_checkpoint(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let request: CheckpointRequest = body(&bytes)?;
    let made = service
        .grid
        .request_named_checkpoint(&caller, id, request.name, key(&headers)?);
    whole(&made.await?)
}

/// What programs of a job and others tell each other.
#[utoipa::path(get, path = "/v1/jobs/{id}/metrics", params(("id" = i64, Path)), responses((status = 200, body = Page<Metric>)))]
pub async fn metrics_of(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.metrics(&caller, id).await?)
}

/// Adds, sets, fires or removes a metric of a job. One that is fired is an event `metric.NAME`, whose text is its value.
#[utoipa::path(post, path = "/v1/jobs/{id}/metrics", params(("id" = i64, Path)), request_body = MetricRequest, responses((status = 200, body = Metric)))]
pub async fn change_metric(
    State(service): Shared,
    Identified(caller): Identified,
    Path(id): Path<i64>,
    bytes: Bytes,
) -> Answer {
    whole(&service.grid.change_metric(&caller, id, body(&bytes)?).await?)
}

/// Entries of the name space of checkpoints: one, those in a directory, in the order of their paths, or those of a job.
#[utoipa::path(get, path = "/v1/names", responses((status = 200, body = Page<Name>), (status = 403, body = Problem), (status = 404, body = Problem)), params(
    ("path" = Option<String>, Query, description = "path of one"),
    ("below" = Option<String>, Query, description = "path of a directory"),
    ("recursive" = Option<bool>, Query, description = "with everything below its directories"),
    ("job" = Option<i64>, Query, description = "checkpoints of this job"),
    ("after" = Option<String>, Query, description = "`next` of the page before"),
    ("limit" = Option<i64>, Query, description = "items of a page")))]
pub async fn names(State(service): Shared, Identified(caller): Identified, Query(query): Query<NameQuery>) -> Answer {
    whole(&service.grid.names(&caller, &query).await?)
}

/// Makes, changes, moves, removes, locks or unlocks an entry of the name space.
#[utoipa::path(post, path = "/v1/names", request_body = NameRequest, responses((status = 200, body = Name), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn change_name(State(service): Shared, Identified(caller): Identified, bytes: Bytes) -> Answer {
    whole(&service.grid.change_name(&caller, body(&bytes)?).await?)
}

/// Checkpoints.
#[utoipa::path(get, path = "/v1/checkpoints", responses((status = 200, body = Page<Checkpoint>)), params(
    ("job" = Option<i64>, Query, description = "of this job"),
    ("state" = Option<String>, Query, description = "states, separated by commas"),
    ("owner" = Option<String>, Query, description = "login name"),
    ("node" = Option<String>, Query, description = "node that made it"),
    ("location" = Option<String>, Query, description = "node that holds a copy, or `store`; images then"),
    ("images_of" = Option<i64>, Query, description = "the images of this checkpoint, which has several"),
    ("since_ms" = Option<i64>, Query, description = "asked for then or later"),
    ("until_ms" = Option<i64>, Query, description = "asked for before"),
    ("after" = Option<String>, Query, description = "`next` of the page before"),
    ("limit" = Option<i64>, Query, description = "items of a page"),
    ("fields" = Option<String>, Query, description = "fields to tell, separated by commas")))]
pub async fn checkpoints(
    State(service): Shared,
    Identified(caller): Identified,
    Query(query): Query<CheckpointQuery>,
) -> Answer {
    selected(
        &service.grid.checkpoints(&caller, &query).await?,
        query.fields.as_deref(),
    )
}

/// A checkpoint.
#[utoipa::path(get, path = "/v1/checkpoints/{id}", params(("id" = i64, Path)), responses((status = 200, body = Checkpoint), (status = 404, body = Problem)))]
pub async fn checkpoint(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.checkpoint(&caller, id).await?)
}

/// Has a node get a copy of a checkpoint, or not after all.
#[utoipa::path(post, path = "/v1/checkpoints/{id}/copies", params(("id" = i64, Path)), request_body = CopyRequest, responses((status = 200, body = Checkpoint)))]
pub async fn copy(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>, bytes: Bytes) -> Answer {
    whole(&service.grid.copy(&caller, id, body(&bytes)?).await?)
}

/// Lets a checkpoint go; one that its job may yet need stays.
#[utoipa::path(post, path = "/v1/checkpoints/{id}/free", params(("id" = i64, Path)), responses((status = 200, body = Checkpoint), (status = 404, body = Problem)))]
pub async fn free(State(service): Shared, Identified(caller): Identified, Path(id): Path<i64>) -> Answer {
    whole(&service.grid.free_checkpoint(&caller, id).await?)
}

/// Nodes.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Page<Node>)))]
pub async fn nodes(State(service): Shared, Identified(_): Identified) -> Answer {
    let items = service.grid.nodes().await?;
    whole(&Page { items, next: None })
}

/// Lets a node's jobs go elsewhere, or gives it jobs again.
#[utoipa::path(post, path = "/v1/nodes/{name}/drain", params(("name" = String, Path)), request_body = DrainRequest, responses((status = 200, body = Node)))]
pub async fn drain(
    State(service): Shared,
    Identified(caller): Identified,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer {
    let request: DrainRequest = body(&bytes)?;
    whole(&service.grid.drain(&caller, &name, request.undo).await?)
}

/// Takes down that something is wrong with a node: its jobs are told, and leave it.
#[utoipa::path(post, path = "/v1/nodes/{name}/fault", params(("name" = String, Path)), request_body = FaultRequest, responses((status = 200, body = Node)))]
pub async fn fault(
    State(service): Shared,
    Identified(caller): Identified,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Answer {
    let request: FaultRequest = body(&bytes)?;
    whole(&service.grid.fault(&caller, &name, &request.reason).await?)
}

/// Events.
#[utoipa::path(get, path = "/v1/events", responses((status = 200, body = Page<Event>)), params(
    ("job" = Option<i64>, Query, description = "about this job"),
    ("node" = Option<String>, Query, description = "about this node"),
    ("kind" = Option<String>, Query, description = "of this kind, or all that begin with it and a dot"),
    ("after" = Option<String>, Query, description = "`next` of the page before"),
    ("limit" = Option<i64>, Query, description = "items of a page")))]
#[allow(dead_code, reason = "the description of `events::events`")]
pub fn events() {}

/// Events as they happen, as server-sent events whose data are [`Event`]s; the query is as for `/v1/events`.
#[utoipa::path(get, path = "/v1/events/stream", responses((status = 200, content_type = "text/event-stream")))]
#[allow(dead_code, reason = "the description of `events::stream`")]
pub fn stream() {}

/// A node's report, and what it is to have and do. Answered when there are orders that it has not seen, or soon.
#[utoipa::path(post, path = "/v1/agent/heartbeat", request_body = Report, responses((status = 200, body = Orders)))]
pub async fn heartbeat(State(service): Shared, Identified(caller): Identified, bytes: Bytes) -> Answer {
    let report: Report = body(&bytes)?;
    let mut changes = service.grid.changes();
    service.grid.report(&caller, &report).await?;
    let deadline = Instant::now() + HOLD;
    loop {
        changes.borrow_and_update();
        let orders = service.grid.orders(&report).await?;
        let waited = orders.mark != report.seen || !orders.noted.is_empty() || Instant::now() >= deadline;
        if waited {
            return whole(&orders);
        }
        // Ends early where something has changed.
        let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
    }
}

/// The OpenAPI description.
pub async fn openapi() -> Answer {
    let text = super::openapi_json()?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// The program runs.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers.
pub async fn readyz(State(service): Shared) -> Answer {
    match service.grid.newest_event().await {
        Ok(_) => Ok("ready\n".into_response()),
        Err(error) => Ok((StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", error.chain())).into_response()),
    }
}

/// Figures for Prometheus, in its text format 0.0.4.
pub async fn metrics(State(service): Shared) -> Answer {
    let mut text = String::new();
    let mut last = "";
    for (what, state, count) in service.grid.counts().await? {
        if what != last {
            text.push_str(&format!(
                "# HELP gridcpr_{what} Number of {what} by state.\n# TYPE gridcpr_{what} gauge\n"
            ));
            last = what;
        }
        text.push_str(&format!("gridcpr_{what}{{state=\"{state}\"}} {count}\n"));
    }
    let newest = service.grid.newest_event().await?;
    text.push_str("# HELP gridcpr_events_total Events so far.\n# TYPE gridcpr_events_total counter\n");
    text.push_str(&format!("gridcpr_events_total {newest}\n"));
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// Every other path.
pub async fn nothing() -> Failure {
    Failure(
        Error::new(ErrorKind::NotFound, "there is nothing at this path").with_hint("/openapi.json says what there is"),
    )
}

/// The description of the interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "GridCPR",
        description = "Jobs of a grid, their checkpoints, its nodes, and what happens."
    ),
    paths(
        jobs,
        queue,
        submit,
        submit_array,
        cancel_array,
        job,
        cancel,
        suspend,
        signal,
        recover,
        migrate,
        policy,
        usage,
        request_checkpoint,
        metrics_of,
        change_metric,
        names,
        change_name,
        checkpoints,
        checkpoint,
        copy,
        free,
        nodes,
        drain,
        fault,
        events,
        stream,
        heartbeat
    )
)]
struct Description;

/// The description of the interface.
pub fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}
