//! Images: held as long as the service wants them, and hashed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cpr_api::agent::Orders;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use super::Agent;
use crate::log;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Opens an image for reading; never through a symbolic link, which its user could have put there.
pub fn open(path: &Path) -> Result<File> {
    // A FIFO in its place is found out below, and is not waited for.
    const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);
    let what = || format!("open image {}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(FLAGS.bits() as i32)
        .open(path)
        .context(what)?;
    if !file.metadata().context(what)?.is_file() {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{} is not a file", path.display()),
        ));
    }
    Ok(file)
}

/// Opens an image in its user's directory. It must be the user's: we may be root, and what they have linked there could
/// be a file that they cannot read.
pub fn open_held(path: &Path) -> Result<File> {
    let file = open(path)?;
    let what = || format!("examine image {}", path.display());
    let own = path.parent().map(fs::symlink_metadata).transpose().context(what)?;
    if own.is_none_or(|own| file.metadata().is_ok_and(|file| file.uid() != own.uid())) {
        return Err(Error::new(
            ErrorKind::Denied,
            format!("{} belongs to somebody else", path.display()),
        ));
    }
    Ok(file)
}

/// Passes everything that can be read to `each`, piece by piece.
pub fn for_each_piece(reader: &mut impl Read, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&piece[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "read an image"),
        }
    }
}

/// Size and BLAKE3 of an image.
pub fn hash(path: &Path) -> Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    for_each_piece(&mut open_held(path)?, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

impl Agent {
    /// Fetches images that are wanted, and removes those that are not.
    pub(super) fn obey_images(self: &Arc<Self>, orders: &Orders, held: BTreeMap<i64, PathBuf>) -> Result<()> {
        let mut wanted: BTreeSet<i64> = orders.images.iter().map(|image| image.id).collect();
        wanted.extend(
            orders
                .jobs
                .iter()
                .flat_map(|job| &job.checkpoints)
                .map(|asked| asked.id),
        );
        {
            let state = self.state();
            wanted.extend(&state.making);
            wanted.extend(state.results.keys());
        }
        for (id, path) in held.iter().filter(|(id, _)| !wanted.contains(id)) {
            if let Err(error) = fs::remove_file(path).context(|| format!("remove {}", path.display())) {
                log(format!("image {id}: {}", error.chain()));
            }
        }
        self.state().missed.retain(|id, _| wanted.contains(id));
        for image in orders.images.iter().filter(|image| !held.contains_key(&image.id)) {
            self.begin_fetch(image);
        }
        Ok(())
    }
}
