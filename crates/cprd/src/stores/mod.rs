//! Stores that nodes share: a directory, or a bucket of an S3 service. An image is in a store whole, or not.
//!
//! Whoever reads compares with the hash that the grid has on record: nothing a store gives is believed.

pub mod clean;
mod directory;
mod s3;

use std::io::Read;

use cpr_api::model::Owner;
use cpr_types::Result;

use crate::config::Config;
use directory::Directory;
use s3::Bucket;

/// A store.
pub enum Store {
    Directory(Directory),
    Bucket(Bucket),
}

impl Store {
    /// The store that `place` names, `/DIRECTORY` or `s3://BUCKET/PREFIX`.
    pub fn open(place: &str, config: &Config) -> Result<Store> {
        match place.strip_prefix("s3://") {
            Some(place) => Bucket::open(place, &config.s3).map(Store::Bucket),
            None => Ok(Store::Directory(Directory::new(place))),
        }
    }

    /// Copies an image of `bytes` bytes into the store. `writer` is the name of the node that does it.
    pub fn put(&self, id: i64, image: &mut dyn Read, bytes: u64, owner: &Owner, writer: &str) -> Result<()> {
        match self {
            Store::Directory(directory) => directory.put(id, image, owner, writer),
            Store::Bucket(bucket) => bucket.put(id, image, bytes),
        }
    }

    /// An image from its byte `offset` on.
    pub fn read(&self, id: i64, offset: u64) -> Result<Box<dyn Read>> {
        match self {
            Store::Directory(directory) => directory.read(id, offset),
            Store::Bucket(bucket) => bucket.read(id, offset),
        }
    }

    /// What there is: names, with the checkpoint each is of.
    pub fn list(&self) -> Result<Vec<(String, i64)>> {
        match self {
            Store::Directory(directory) => directory.list(),
            Store::Bucket(bucket) => bucket.list(),
        }
    }

    /// Removes something by its name, where it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match self {
            Store::Directory(directory) => directory.remove(name),
            Store::Bucket(bucket) => bucket.remove(name),
        }
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
