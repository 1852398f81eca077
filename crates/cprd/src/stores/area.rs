//! The grid's area for files of users: a directory, or a part of a bucket, in which every user has a part.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use cpr_api::model::Owner;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::s3::Bucket;
use crate::config::Config;

/// Where it is.
pub enum Area {
    Directory(PathBuf),
    Bucket(Box<Bucket>),
}

impl Area {
    /// The area that `place` names, `/DIRECTORY` or `s3://BUCKET/PREFIX`.
    pub fn open(place: &str, config: &Config) -> Result<Area> {
        Ok(match place.strip_prefix("s3://") {
            Some(place) => Area::Bucket(Box::new(Bucket::open(place, &config.s3)?)),
            None => Area::Directory(place.into()),
        })
    }
}

/// What a user's part of it is called.
fn part(owner: &Owner) -> Result<&str> {
    match owner.name.as_str() {
        "" | "." | ".." => Err(owner),
        name if name.contains('/') => Err(owner),
        name => Ok(name),
    }
    .map_err(|owner| {
        Error::new(
            ErrorKind::Denied,
            format!("{:?} can have no part of the area for files", owner.name),
        )
    })
}

/// The directory of a user in that of the area, made where it is missing.
pub fn directory_of(area: &Path, owner: &Owner) -> Result<PathBuf> {
    let path = area.join(part(owner)?);
    let what = || format!("make directory {}", path.display());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => {
            made.context(what)?;
            if rustix::process::geteuid().is_root() {
                chown(&path, Some(owner.uid), Some(owner.gid)).context(what)?;
            }
        }
    }
    Ok(path)
}

/// A user's object.
pub fn object_of(path: &str, owner: &Owner) -> Result<String> {
    Ok(format!("{}/{path}", part(owner)?))
}

/// Opens an object of a user, with its size.
pub fn read(bucket: &Bucket, path: &str, owner: &Owner) -> Result<(Box<dyn Read>, u64)> {
    bucket.read_object(&object_of(path, owner)?)
}
