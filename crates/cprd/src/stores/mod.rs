//! Stores that nodes share: a directory, or a bucket of an S3 service. An image is in a store whole, or not.
//!
//! Whoever reads compares with the hash that the grid has on record: nothing a store gives is believed.

pub mod area;
pub mod clean;
mod directory;
mod s3;
mod seal;

use std::io::{self, Read};

use cpr_api::model::Owner;
use cpr_types::Result;

use crate::config::Config;
use directory::Directory;
use s3::Bucket;
use seal::{Keys, sealed_length};

/// A store, with the keys that images are sealed with, where they are.
pub struct Store {
    place: Place,
    keys: Option<Keys>,
}

/// Where it is.
enum Place {
    Directory(Directory),
    Bucket(Box<Bucket>),
}

impl Store {
    /// The store that `place` names, `/DIRECTORY` or `s3://BUCKET/PREFIX`.
    pub fn open(place: &str, config: &Config) -> Result<Store> {
        Ok(Store {
            place: match place.strip_prefix("s3://") {
                Some(place) => Place::Bucket(Box::new(Bucket::open(place, &config.s3)?)),
                None => Place::Directory(Directory::new(place)),
            },
            keys: Keys::read(&config.encryption)?,
        })
    }

    /// Copies an image of `bytes` bytes into the store. `writer` is the name of the node that does it.
    pub fn put(&self, id: i64, image: &mut dyn Read, bytes: u64, owner: &Owner, writer: &str) -> Result<()> {
        let Some(keys) = &self.keys else {
            return self.put_as_it_is(id, image, bytes, owner, writer);
        };
        let mut sealing = keys.seal(image, id, bytes)?;
        self.put_as_it_is(id, &mut sealing, sealed_length(bytes), owner, writer)
    }

    fn put_as_it_is(&self, id: i64, image: &mut dyn Read, bytes: u64, owner: &Owner, writer: &str) -> Result<()> {
        match &self.place {
            Place::Directory(directory) => directory.put(id, image, owner, writer),
            Place::Bucket(bucket) => bucket.put(id, image, bytes),
        }
    }

    /// An image from its byte `offset` on. An error of the class `Damaged` says that it is not what was put there.
    pub fn read(&self, id: i64, offset: u64) -> Result<Box<dyn Read>> {
        let read = |from: u64| {
            let raw = match &self.place {
                Place::Directory(directory) => directory.read(id, from),
                Place::Bucket(bucket) => bucket.read(id, from),
            };
            raw.map(Raw)
        };
        match &self.keys {
            Some(keys) => keys.open(id, offset, read),
            None => Ok(Box::new(read(offset)?)),
        }
    }

    /// What there is: names, with the checkpoint each is of.
    pub fn list(&self) -> Result<Vec<(String, i64)>> {
        match &self.place {
            Place::Directory(directory) => directory.list(),
            Place::Bucket(bucket) => bucket.list(),
        }
    }

    /// Removes something by its name, where it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match &self.place {
            Place::Directory(directory) => directory.remove(name),
            Place::Bucket(bucket) => bucket.remove(name),
        }
    }
}

/// What comes from a store. That it does not come as a whole says nothing of the image.
struct Raw(Box<dyn Read>);

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => io::Error::other(error),
            _ => error,
        })
    }
}

/// Name of an image.
pub fn name(id: i64) -> String {
    format!("{id}.cpr")
}

/// The checkpoint whose image, whole (`ID.cpr`) or on its way (`.ID.NODE.part`), has this name.
fn checkpoint(name: &str) -> Option<i64> {
    let whole = name.strip_suffix(".cpr");
    let part = || {
        name.strip_suffix(".part")?
            .strip_prefix('.')?
            .split_once('.')
            .map(|(id, _)| id)
    };
    whole.or_else(part)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_names() {
        for (name, id) in [
            ("17.cpr", Some(17)),
            (".17.n1.part", Some(17)),
            (".17.rack-2.n1.part", Some(17)),
            ("17", None),
            ("x.cpr", None),
            (".part", None),
            (".x.n1.part", None),
            ("README", None),
        ] {
            assert_eq!(checkpoint(name), id, "{name}");
        }
    }
}
