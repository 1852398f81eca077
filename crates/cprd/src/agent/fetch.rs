//! Fetching an image: from the store that nodes share, or from another node; gone on with where it was interrupted; and
//! checked from end to end before it is called by its name (GFD93-CT-11).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_api::agent::{BadImage, ImageOrder, Source};
use cpr_api::{Client, Endpoint};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::Agent;
use super::images::for_each_piece;
use crate::durable::sync_directory;
use crate::log;

/// Pause between rounds over all sources.
const PAUSE: Duration = Duration::from_secs(2);

/// A connection to a node that was cut, or an answer that is none, says nothing of the image: only its hash does.
fn not_whole(error: Error, source: &Source) -> Error {
    match error.kind() {
        ErrorKind::Damaged if !source.node.is_empty() => {
            Error::new(ErrorKind::Io, "it did not come as a whole").with_source(error)
        }
        _ => error,
    }
}

/// What a source is called.
fn place(source: &Source) -> &str {
    match source.node.as_str() {
        "" => "the store",
        node => node,
    }
}

impl Agent {
    /// Begins to fetch an image, unless that was tried a moment ago.
    pub(super) fn begin_fetch(self: &Arc<Self>, image: &ImageOrder) {
        {
            let mut state = self.state();
            let early = state
                .missed
                .get(&image.id)
                .is_some_and(|(_, last)| last.elapsed() < PAUSE);
            if early || image.sources.is_empty() || !state.fetching.insert(image.id) {
                return;
            }
        }
        let id = image.id;
        let image = image.clone();
        let begun = self.beside(move |agent| {
            let had = agent.fetch(&image);
            let mut state = agent.state();
            state.fetching.remove(&id);
            if had {
                state.missed.remove(&id);
            } else {
                let rounds = state.missed.get(&id).map_or(0, |(rounds, _)| *rounds);
                state.missed.insert(id, (rounds + 1, Instant::now()));
            }
        });
        if !begun {
            self.state().fetching.remove(&id);
        }
    }

    /// Tries one source after the other; false where none could give the image.
    fn fetch(&self, image: &ImageOrder) -> bool {
        for source in &image.sources {
            let path = self.layout.incoming(image.id);
            let resumed = fs::metadata(&path).is_ok_and(|part| part.len() > 0);
            let mut fetched = self.fetch_from(image, source);
            if resumed && fetched.as_ref().is_err_and(|error| error.kind() == ErrorKind::Damaged) {
                // What came before, from somebody else perhaps, may be what is damaged.
                let _ = fs::remove_file(&path);
                fetched = self.fetch_from(image, source);
            }
            let Err(error) = fetched else {
                return true;
            };
            if error.kind() == ErrorKind::Cancelled {
                let _ = fs::remove_file(&path);
                return true;
            }
            log(format!(
                "fetching checkpoint {} from {}: {}",
                image.id,
                place(source),
                error.chain()
            ));
            // Another source, or another time, begins anew, unless the connection was cut.
            let missing = error.kind() == ErrorKind::NotFound;
            if missing || error.kind() == ErrorKind::Damaged {
                let _ = fs::remove_file(&path);
            }
            // Whether an image is missing from the store is not ours to say: perhaps it is we who do not reach it.
            let damaged = error.kind() == ErrorKind::Damaged || (missing && !source.node.is_empty());
            if damaged {
                self.state().bad.push(BadImage {
                    id: image.id,
                    location: source.node.clone(),
                    damaged,
                    message: error.chain(),
                });
            }
        }
        false
    }

    fn fetch_from(&self, image: &ImageOrder, source: &Source) -> Result<()> {
        let path = self.layout.incoming(image.id);
        let what = || format!("write {}", path.display());
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .context(what)?;
        // What is there already is hashed again: it is no more trusted than what comes.
        let mut hasher = blake3::Hasher::new();
        for_each_piece(&mut file, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        if hasher.count() < image.bytes {
            let reader = self
                .open_source(image, source, hasher.count())
                .map_err(|error| not_whole(error, source))?;
            // One byte more, so that it is seen where there are too many.
            let mut reader = reader.take(image.bytes - hasher.count() + 1);
            let came = for_each_piece(&mut reader, |piece| {
                hasher.update(piece);
                self.pace.pass(piece.len());
                if !self.state().known.contains_key(&image.id) {
                    return Err(Error::new(ErrorKind::Cancelled, "nobody wants the image any more"));
                }
                file.write_all(piece).context(what)
            });
            came.map_err(|error| not_whole(error, source))?;
        }
        if hasher.count() > image.bytes {
            return Err(Error::new(ErrorKind::Damaged, "the image is longer than it should be"));
        }
        if hasher.count() < image.bytes {
            return Err(Error::new(ErrorKind::Damaged, "the image is shorter than it should be"));
        }
        if hasher.finalize().to_hex().as_str() != image.blake3 {
            return Err(Error::new(
                ErrorKind::Damaged,
                "the image has another hash than it should have",
            ));
        }
        file.sync_all().context(what)?;
        self.layout.prepare(&image.owner)?;
        self.layout.give(&path, &image.owner)?;
        let target = self.layout.image(image.owner.uid, image.id);
        fs::rename(&path, &target).context(|| format!("write {}", target.display()))?;
        target.parent().map_or(Ok(()), sync_directory)?;
        let place = place(source);
        log(format!(
            "image {} has come from {place}, has the hash that it should have, and is on disk",
            image.id
        ));
        Ok(())
    }

    /// The image from its byte `offset` on.
    fn open_source(&self, image: &ImageOrder, source: &Source, offset: u64) -> Result<Box<dyn Read>> {
        if source.node.is_empty() {
            let Some(store) = &self.store else {
                return Err(Error::new(ErrorKind::Unsupported, "this node does not reach the store"));
            };
            return Ok(Box::new(store.read(image.id, offset)?));
        }
        let endpoint = match &self.tls {
            Some(_) => Endpoint::Tls(source.address.clone()),
            None => Endpoint::Tcp(source.address.clone()),
        };
        let client = Client::new(endpoint, Some(image.ticket.clone())).with_tls(self.tls.clone());
        Ok(Box::new(client.open(&format!("/v1/images/{}", image.id), offset)?))
    }
}
