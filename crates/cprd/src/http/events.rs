//! Events: page by page, and as they happen (server-sent events, WHATWG HTML section 9.2).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use cpr_api::model::Event;
use cpr_grid::{Caller, EventQuery, Grid};
use futures_util::stream;
use tokio::sync::watch;

use super::Service;
use super::answer::{Answer, whole};
use super::auth::Identified;

/// Something is sent at least so often, so that either side finds out when the other has gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// `GET /v1/events`
pub async fn events(
    State(service): State<Arc<Service>>,
    Identified(caller): Identified,
    Query(query): Query<EventQuery>,
) -> Answer {
    whole(&service.grid.events(&caller, &query).await?)
}

struct Listener {
    grid: Arc<Grid>,
    caller: Caller,
    query: EventQuery,
    changes: watch::Receiver<u64>,
    waiting: VecDeque<Event>,
}

impl Listener {
    /// The next event; none when the service ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.query.after = Some(event.id.to_string());
                return Some(event);
            }
            self.changes.borrow_and_update();
            match self.grid.events(&self.caller, &self.query).await {
                Ok(page) if page.items.is_empty() => self.changes.changed().await.ok()?,
                Ok(page) => self.waiting.extend(page.items),
                // The listener comes again, and says what it had last.
                Err(_) => return None,
            }
        }
    }
}

/// `GET /v1/events/stream`: from now on, or from the event after `after` or `Last-Event-ID` (GCA-GCS-6).
pub async fn stream(
    State(service): State<Arc<Service>>,
    Identified(caller): Identified,
    Query(mut query): Query<EventQuery>,
    headers: HeaderMap,
) -> Answer {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    query.after = match last.map(str::to_string).or(query.after) {
        Some(after) => Some(after),
        None => Some(service.grid.newest_event().await?.to_string()),
    };
    // A mistake in the query is told at once.
    service.grid.events(&caller, &query).await?;
    let listener = Listener {
        grid: service.grid.clone(),
        caller,
        query,
        changes: service.grid.changes(),
        waiting: VecDeque::new(),
    };
    let events = stream::unfold(listener, async |mut listener| {
        let event = listener.next().await?;
        let text = serde_json::to_string(&event).unwrap_or_default();
        let sent = Sent::default().id(event.id.to_string()).event(event.kind).data(text);
        Some((Ok::<_, Infallible>(sent), listener))
    });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE))
        .into_response())
}
