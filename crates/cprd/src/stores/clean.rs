//! The store as the service sees it: images that nobody needs any more are removed from it, and the others are compared
//! with their hashes from time to time (GFD93-SM-12).
//!
//! What the database does not know is left alone: it may have been brought back from a copy that is older.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cpr_api::model::Checkpoint;
use cpr_grid::Grid;
use cpr_types::{Error, ErrorKind, Result};

use super::{Store, name};
use crate::agent::is_whole;
use crate::config::VerifyConfig;
use crate::log;
use crate::reload::Current;

/// How often it is looked through.
const PAUSE: Duration = Duration::from_secs(15);

/// Looks through the store again and again, for ever.
pub async fn keep_clean(grid: Arc<Grid>, store: Arc<Store>, current: Current) -> Result<()> {
    let mut complaint = String::new();
    loop {
        let verify = current.borrow().verify.clone();
        let text = look_through(&grid, &store, &verify)
            .await
            .err()
            .map(|error| error.chain())
            .unwrap_or_default();
        if text != complaint && !text.is_empty() {
            log(format!("looking after the store: {text}"));
        }
        complaint = text;
        // Not later than images are to be looked at again.
        let period = Duration::from_secs(verify.every_s);
        tokio::time::sleep(if period.is_zero() { PAUSE } else { PAUSE.min(period) }).await;
    }
}

/// Does something with the store, which blocks.
async fn with<T: Send + 'static>(
    store: &Arc<Store>,
    task: impl FnOnce(&Store) -> Result<T> + Send + 'static,
) -> Result<T> {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || task(&store)).await;
    done.map_err(|error| Error::new(ErrorKind::Internal, "look after the store").with_source(error))?
}

/// Whether it is time to look at the copy of a checkpoint in the store.
fn is_due(checkpoint: &Checkpoint, verify: &VerifyConfig) -> bool {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    let place = checkpoint.locations.iter().find(|place| place.node.is_empty());
    let period_ms = i64::try_from(verify.every_s.saturating_mul(1000)).unwrap_or(i64::MAX);
    let long_ago = place.is_some_and(|place| now_ms.saturating_sub(place.verified_ms) >= period_ms);
    verify.every_s > 0 && checkpoint.state.is_usable() && long_ago
}

/// Compares an image with its hash. One that is damaged is removed.
async fn look_at(grid: &Grid, store: &Arc<Store>, checkpoint: Checkpoint, verify: &VerifyConfig) -> Result<()> {
    let mb_per_s = verify.mb_per_s;
    let id = checkpoint.id;
    let looked = with(store, move |store| {
        is_whole(&mut store.read(id, 0)?, checkpoint.bytes, &checkpoint.blake3, mb_per_s)
    });
    let problem = match looked.await {
        Ok(true) => None,
        Ok(false) => Some("it does not have the hash that it should have"),
        Err(error) if error.kind() == ErrorKind::Damaged => Some("it is not what was put there"),
        Err(error) if error.kind() == ErrorKind::NotFound => Some("it is gone from the store"),
        Err(error) => return Err(error),
    };
    // Written down first: an image that is on record is never one that we have removed.
    grid.store_checked(id, problem).await?;
    if let Some(problem) = problem {
        log(format!("image {id} in the store: {problem}"));
        with(store, move |store| store.remove(&name(id))).await?;
    }
    Ok(())
}

/// Removes what nobody needs, and then looks at images that it is time to look at, or that seem to be gone, until it is
/// time to clean again.
async fn look_through(grid: &Grid, store: &Arc<Store>, verify: &VerifyConfig) -> Result<()> {
    // In this order: what is on record now was there before, and has to be in the list.
    let mut ids = grid.in_store().await?;
    let found = with(store, Store::list).await?;
    if found.is_empty() && !ids.is_empty() {
        let what = format!("it is empty, and {} images should be in it", ids.len());
        return Err(
            Error::new(ErrorKind::Io, what).with_hint("perhaps it is another one, or its file system is not mounted")
        );
    }
    let there: BTreeSet<i64> = found.iter().map(|(_, id)| *id).collect();
    ids.extend(&there);
    let known = grid.known_checkpoints(&ids.into_iter().collect::<Vec<_>>()).await?;
    let is_gone = |id: &i64| known.get(id).is_some_and(|known| known.state.is_gone());
    for (name, _) in found.into_iter().filter(|(_, id)| is_gone(id)) {
        with(store, move |store| store.remove(&name)).await?;
    }
    let began = Instant::now();
    let is_due = |known: &Checkpoint| is_due(known, verify) || (known.state.is_usable() && !there.contains(&known.id));
    for checkpoint in known.into_values().filter(is_due) {
        look_at(grid, store, checkpoint, verify).await?;
        if began.elapsed() >= PAUSE {
            break;
        }
    }
    Ok(())
}
