//! Looks at images that nobody reads: one after the other, slowly, they are compared with their hashes (GFD93-SM-12).
//!
//! A damaged one is removed and reported, so that the service has another copy made while there is one to be made from.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cpr_api::agent::BadImage;
use cpr_types::{ErrorKind, Result};

use super::Agent;
use super::images::{for_each_piece, open_held};
use super::pace::Pace;
use crate::log;

/// How often it is looked whether something is due.
const PAUSE: Duration = Duration::from_secs(1);

/// Compares what can be read with size and hash, not faster than so many MiB a second.
pub fn is_whole(reader: &mut impl Read, bytes: u64, blake3: &str, mb_per_s: u64) -> Result<bool> {
    let pace = Pace::new(Some(mb_per_s));
    let mut hasher = blake3::Hasher::new();
    for_each_piece(reader, |piece| {
        hasher.update(piece);
        pace.pass(piece.len());
        Ok(())
    })?;
    Ok(hasher.count() == bytes && hasher.finalize().to_hex().as_str() == blake3)
}

impl Agent {
    /// Looks at one image after the other, for ever.
    pub(super) fn scrub(&self) {
        let mut looked: BTreeMap<i64, Instant> = BTreeMap::new();
        loop {
            std::thread::sleep(PAUSE);
            let config = self.current.borrow().verify.clone();
            if config.every_s == 0 {
                continue;
            }
            let period = Duration::from_secs(config.every_s);
            let known = self.state().known.clone();
            let held = self.layout.images();
            looked.retain(|id, _| known.contains_key(id));
            let now_ms = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as i64);
            let due = known.iter().find(|(id, image)| {
                let long_ago = now_ms.saturating_sub(image.verified_ms) >= period.as_millis() as i64;
                // The service may not have written down so far what we have told it.
                let told = looked.get(id).is_some_and(|at| at.elapsed() < period);
                held.contains_key(id) && long_ago && !told
            });
            let Some((id, path, image)) = due.and_then(|(id, image)| Some((*id, held.get(id)?, image))) else {
                continue;
            };
            looked.insert(id, Instant::now());
            match open_held(path).and_then(|mut file| is_whole(&mut file, image.bytes, &image.blake3, config.mb_per_s))
            {
                Ok(true) => self.state().verified.push(id),
                Ok(false) => self.discard(id, path),
                // It was removed meanwhile, which heartbeats tell.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => log(format!("looking at image {id}: {}", error.chain())),
            }
        }
    }

    /// Removes a damaged copy, and says so.
    pub(super) fn discard(&self, id: i64, path: &Path) {
        let message = "it does not have the hash that it should have".to_string();
        log(format!("image {id}: {message}"));
        if let Err(error) = fs::remove_file(path) {
            log(format!("image {id}: {error}"));
        }
        self.state().bad.push(BadImage {
            id,
            location: self.name.clone(),
            damaged: true,
            message,
        });
    }

    /// Begins to look at images.
    pub(super) fn begin_scrub(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = self.clone();
        let thread = std::thread::Builder::new().name("scrub".into());
        thread.spawn(move || agent.scrub()).map(drop)
    }
}
