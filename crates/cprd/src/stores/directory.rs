//! A store in a directory of a file system that all nodes share.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use cpr_api::model::Owner;
use cpr_types::{Context, Result};

use crate::agent::open_image;
use crate::durable::sync_directory;

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

/// The directory.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    pub fn new(path: &Path) -> Directory {
        Directory { path: path.into() }
    }

    fn place(&self, id: i64) -> PathBuf {
        self.path.join(name(id))
    }

    /// Copies an image into the store. `writer` is the name of the node that does it.
    pub fn put(&self, id: i64, image: &mut File, owner: &Owner, writer: &str) -> Result<()> {
        let target = self.place(id);
        let aside = self.path.join(format!(".{id}.{writer}.part"));
        let what = || format!("write {}", aside.display());
        let mut to = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .context(what)?;
        io::copy(image, &mut to).context(what)?;
        if rustix::process::geteuid().is_root() {
            chown(&aside, Some(owner.uid), Some(owner.gid)).context(what)?;
        }
        to.sync_all().context(what)?;
        fs::rename(&aside, &target).context(|| format!("write {}", target.display()))?;
        sync_directory(&self.path)
    }

    /// An image from its byte `offset` on.
    pub fn read(&self, id: i64, offset: u64) -> Result<impl Read + use<>> {
        let mut file = open_image(&self.place(id))?;
        file.seek(SeekFrom::Start(offset)).context(|| "read an image")?;
        Ok(file)
    }

    /// What there is: names, with the checkpoint each is of.
    pub fn list(&self) -> Result<Vec<(String, i64)>> {
        let what = || format!("list {}", self.path.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).context(what)? {
            let name = entry.context(what)?.file_name().to_string_lossy().into_owned();
            if let Some(id) = checkpoint(&name) {
                found.push((name, id));
            }
        }
        Ok(found)
    }

    /// Removes something by its name, where it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.context(|| format!("remove {}", path.display())),
        }
    }
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
