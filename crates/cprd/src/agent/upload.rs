//! Puts images into the store that nodes share, beside everything else: a job does not wait for it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_api::agent::{ImageOrder, Orders};
use cpr_types::Result;

use super::Agent;
use super::images::open_held;
use super::pace::Pace;
use crate::log;
use crate::stores::Store;

/// Images on their way to the store at once; others wait, so that there is room for what jobs wait for.
const MOST: usize = 2;
/// Pause after a failure; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Gives the bytes of an image, and an error instead of the last ones where they are not those that they should be: so
/// that a store never has a damaged image for a good one.
struct Verified<'a, R> {
    reader: R,
    hasher: blake3::Hasher,
    image: &'a ImageOrder,
    pace: &'a Pace,
    /// Whether they were not.
    damaged: bool,
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        let ended = count == 0 && !buffer.is_empty();
        let had = self.hasher.count();
        self.damaged = had > self.image.bytes
            || (ended && had < self.image.bytes)
            || (had == self.image.bytes && self.hasher.finalize().to_hex().as_str() != self.image.blake3);
        if self.damaged {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the image does not have the hash that it should have",
            ));
        }
        self.pace.pass(count);
        Ok(count)
    }
}

impl Agent {
    /// Begins to put images into the store that are to be there.
    pub(super) fn obey_uploads(self: &Arc<Self>, orders: &Orders, held: &BTreeMap<i64, PathBuf>) {
        let Some(store) = &self.store else { return };
        let wanted = |id: &i64| orders.images.iter().any(|image| image.to_store && image.id == *id);
        {
            let mut state = self.state();
            // The service knows of it now, or does not want it any more.
            state.uploaded.retain(wanted);
            state.upload_failures.retain(|id, _| wanted(id));
        }
        for image in orders.images.iter().filter(|image| image.to_store) {
            if let Some(path) = held.get(&image.id) {
                self.begin_upload(store, image, path);
            }
        }
    }

    fn begin_upload(self: &Arc<Self>, store: &Arc<Store>, image: &ImageOrder, path: &Path) {
        let id = image.id;
        {
            let mut state = self.state();
            let early = state.upload_failures.get(&id).is_some_and(|(count, last)| {
                let pause = PAUSE.saturating_mul(1 << (*count).min(6)).min(LONGEST_PAUSE);
                last.elapsed() < pause
            });
            if early || state.uploaded.contains(&id) || state.uploading.len() >= MOST || !state.uploading.insert(id) {
                return;
            }
        }
        let (store, image, path) = (store.clone(), image.clone(), path.to_path_buf());
        let begun = self.beside(move |agent| {
            let done = agent.upload(&store, &image, &path);
            let mut state = agent.state();
            state.uploading.remove(&id);
            match done {
                Ok(()) => {
                    state.upload_failures.remove(&id);
                    state.uploaded.insert(id);
                }
                Err(error) => {
                    let count = state.upload_failures.get(&id).map_or(0, |(count, _)| *count);
                    state.upload_failures.insert(id, (count + 1, Instant::now()));
                    drop(state);
                    log(format!("checkpoint {id} is not in the store: {}", error.chain()));
                }
            }
        });
        if !begun {
            self.state().uploading.remove(&id);
        }
    }

    fn upload(&self, store: &Store, image: &ImageOrder, path: &Path) -> Result<()> {
        let mut reader = Verified {
            reader: open_held(path)?,
            hasher: blake3::Hasher::new(),
            image,
            pace: &self.pace,
            damaged: false,
        };
        let done = store.put(image.id, &mut reader, image.bytes, &image.owner, &self.name);
        if reader.damaged {
            self.discard(image.id, path);
        }
        done
    }
}
