//! Tells others of what happens in the grid: every event is posted to them, in its order, signed with a secret that
//! both know (GCA-GCS-6).
//!
//! How far each has been told is in the database, so that nothing is left out when the service is started again; an
//! event may then come twice, and is known by its number. Whoever does not answer for too long misses an event, and the
//! log says so: nobody can hold up the others, or the grid.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpr_api::Client;
use cpr_api::model::Event;
use cpr_grid::{Caller, EventQuery, Grid, Role};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::config::WebhookConfig;
use crate::{log, outside};

/// Attempts to post an event.
const ATTEMPTS: u32 = 8;
/// Pause before the second; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an answer may take.
const SILENCE: Duration = Duration::from_secs(10);
/// Pause where the database does not answer.
const LATER: Duration = Duration::from_secs(5);

/// One that is told.
struct Hook {
    config: WebhookConfig,
    client: Client,
    path: String,
}

/// Whether events of this kind are wanted, as for [`EventQuery::kind`].
fn is_wanted(kinds: &[String], kind: &str) -> bool {
    let begins = |wanted: &String| {
        kind.strip_prefix(wanted.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    kinds.is_empty() || kinds.iter().any(begins)
}

/// What shows that a body at a time comes from somebody who knows the secret: HMAC-SHA256 of both, in hexadecimal
/// digits.
fn signature(secret: &[u8], at_ms: u128, body: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let mut context = ring::hmac::Context::with_key(&key);
    context.update(format!("{at_ms}.").as_bytes());
    context.update(body);
    let mut text = String::new();
    for byte in context.sign().as_ref() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Hook {
    fn new(config: WebhookConfig) -> Result<Hook> {
        let url = outside::url(&config.url)?;
        let client = outside::client(&url, config.ca.as_deref())?.with_silence(SILENCE);
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_string(),
        };
        let hook = Hook { config, client, path };
        hook.secret()?;
        Ok(hook)
    }

    fn secret(&self) -> Result<Vec<u8>> {
        let path = &self.config.secret_file;
        let text = std::fs::read(path).context(|| format!("read {}", path.display()))?;
        let secret = text.trim_ascii();
        if secret.len() < 16 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the secret in {} is too short", path.display()),
            )
            .with_hint("it has to have 16 characters at least"));
        }
        Ok(secret.to_vec())
    }

    /// Posts an event once.
    fn post(&self, event: &Event) -> Result<()> {
        let body = serde_json::to_vec(event)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode an event").with_source(error))?;
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let headers = [
            ("gridcpr-event", event.id.to_string()),
            ("gridcpr-time", now_ms.to_string()),
            (
                "gridcpr-signature",
                format!("sha256={}", signature(&self.secret()?, now_ms, &body)),
            ),
        ];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = self.client.exchange("POST", &self.path, Some(&body), &headers)?;
        match answer.status {
            200..=299 => Ok(()),
            status => Err(Error::new(ErrorKind::Io, format!("it answers with status {status}"))),
        }
    }
}

/// Posts an event until it is taken, or for too long.
async fn deliver(hook: &Arc<Hook>, event: Event) {
    let id = event.id;
    let mut pause = PAUSE;
    for attempt in 1..=ATTEMPTS {
        let (hook, event) = (hook.clone(), event.clone());
        let address = hook.config.url.clone();
        let posted = tokio::task::spawn_blocking(move || hook.post(&event)).await;
        let error = match posted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.chain(),
            Err(error) => error.to_string(),
        };
        if attempt == ATTEMPTS {
            log(format!("webhook {address}: event {id} is given up: {error}"));
        } else {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Tells one of everything that happens, for ever.
async fn tell(grid: Arc<Grid>, hook: Arc<Hook>) -> Result<()> {
    let own = Caller {
        name: "cprd".to_string(),
        user: None,
        role: Role::Admin,
    };
    let name = format!("webhook {}", hook.config.url);
    let mut changes = grid.changes();
    let mut told = match grid.mark(&name).await? {
        Some(told) => told,
        None => grid.newest_event().await?,
    };
    loop {
        changes.borrow_and_update();
        let query = EventQuery {
            after: Some(told.to_string()),
            ..EventQuery::default()
        };
        let events = match grid.events(&own, &query).await {
            Ok(page) => page.items,
            Err(error) => {
                log(format!("webhook {}: {}", hook.config.url, error.chain()));
                tokio::time::sleep(LATER).await;
                continue;
            }
        };
        if events.is_empty() {
            if changes.changed().await.is_err() {
                return Ok(());
            }
            continue;
        }
        for event in events {
            told = event.id;
            if is_wanted(&hook.config.kinds, &event.kind) {
                deliver(&hook, event).await;
                note(&grid, &name, told).await;
            }
        }
        note(&grid, &name, told).await;
    }
}

/// Writes down how far somebody has been told. Where that fails they hear of it again after the next start.
async fn note(grid: &Grid, name: &str, told: i64) {
    if let Err(error) = grid.set_mark(name, told).await {
        log(format!("{name}: {}", error.chain()));
    }
}

/// Begins to tell everybody who wants to know.
pub fn start(parts: &mut tokio::task::JoinSet<Result<()>>, grid: &Arc<Grid>, hooks: &[WebhookConfig]) -> Result<()> {
    for config in hooks {
        let hook = Hook::new(config.clone()).context(|| format!("prepare webhook {}", config.url))?;
        parts.spawn(tell(grid.clone(), Arc::new(hook)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_chosen_whole_or_by_their_beginning() {
        let kinds = ["node".to_string(), "job.failed".to_string()];
        for (kind, wanted) in [
            ("node.lost", true),
            ("job.failed", true),
            ("job.failed.twice", true),
            ("job.finished", false),
            ("nodes.lost", false),
        ] {
            assert_eq!(is_wanted(&kinds, kind), wanted, "{kind}");
        }
        assert!(is_wanted(&[], "job.running"));
    }

    #[test]
    fn signatures_are_hmacs_of_time_and_body() {
        // printf '17.{}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let expected = "47fbe0b0fc46f5c1c83c07456c70992bb9ad376f5f8bd7e3c695a76445ac2cbc";
        assert_eq!(signature(b"0123456789abcdef", 17, b"{}"), expected);
    }
}
