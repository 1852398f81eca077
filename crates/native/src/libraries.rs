//! Programs and libraries whose contents go into the image, so that a restart does not need the files (LBNL-3.6.8.5.1).
//!
//! A file is saved once, whole. Its mappings become anonymous memory in the image whose pages are the file's where the
//! process has none of its own: neither the format nor a restart knows more than that.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

use cpr_image::model::{ByteString, Extent};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::files::copy_file;
use crate::sink::PageSink;

/// Which files a checkpoint saves besides what it has to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Libraries, and whatever else is mapped as a program, but for the programs the processes run.
    pub libraries: bool,
    /// The programs the processes run.
    pub executables: bool,
}

/// Device and inode as /proc/PID/maps has them.
type Key = ((u32, u32), u64);

fn key(map: &MapEntry) -> Key {
    (map.dev, map.inode)
}

/// The files saved so far.
#[derive(Debug, Default)]
pub struct Libraries {
    keep: Keep,
    /// What is mapped as program text somewhere, and what somebody runs.
    code: HashSet<Key>,
    executables: HashSet<Key>,
    saved: HashMap<Key, Vec<Extent>>,
}

impl Libraries {
    /// Nothing saved yet.
    pub fn new(keep: Keep) -> Libraries {
        Libraries {
            keep,
            ..Libraries::default()
        }
    }

    /// Notes what is program text in a process.
    pub fn note(&mut self, proc: &ProcDir, maps: &[MapEntry]) {
        if self.keep == Keep::default() {
            return;
        }
        let executable = proc.read_link("exe").unwrap_or_default();
        for map in maps.iter().filter(|map| map.kind() == MapKind::File && !map.shared) {
            if map.path == executable {
                self.executables.insert(key(map));
            } else if map.exec {
                self.code.insert(key(map));
            }
        }
    }

    /// Whether the file mapped here is to be saved.
    pub fn wants(&self, map: &MapEntry) -> bool {
        if self.executables.contains(&key(map)) {
            self.keep.executables
        } else {
            self.keep.libraries && self.code.contains(&key(map))
        }
    }

    /// Saves the files of a running process that are wanted, so that less is to be done while it is stopped.
    ///
    /// # Errors
    /// `sink` fails.
    pub fn save_early(&mut self, proc: &ProcDir, sink: &mut dyn PageSink) -> Result<()> {
        let Ok(maps) = proc.maps() else {
            return Ok(());
        };
        self.note(proc, &maps);
        for map in maps.iter().filter(|map| map.kind() == MapKind::File && !map.shared) {
            if self.wants(map) && !map.deleted {
                // What has been replaced meanwhile is seen to when the process stands still.
                match self.save(map, sink) {
                    Err(error) if error.kind() == ErrorKind::Incompatible => {}
                    result => drop(result?),
                }
            }
        }
        Ok(())
    }

    /// Where the contents of the file mapped here are in the image: offsets in the file. Saved now if they are not yet.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] when another file has its name; it cannot be read.
    pub fn save(&mut self, map: &MapEntry, sink: &mut dyn PageSink) -> Result<&[Extent]> {
        let vacant = match self.saved.entry(key(map)) {
            Entry::Occupied(known) => return Ok(known.into_mut()),
            Entry::Vacant(vacant) => vacant,
        };
        let path = ByteString(map.path.clone());
        let what = || format!("save the contents of {path}");
        let fd = rustix::fs::open(path.as_path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .context(what)?;
        let stat = rustix::fs::fstat(&fd).map_err(std::io::Error::from).context(what)?;
        if stat.st_ino != map.inode {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("{path} has been replaced since it was mapped"),
            ));
        }
        let extents = copy_file(fd.as_fd(), true, stat.st_size as u64, sink).context(what)?;
        Ok(vacant.insert(extents))
    }
}

/// The pages of a mapping from `start` to `end`: its own ones, and elsewhere those of the file from `offset` on.
/// All extents are in ascending order.
pub fn overlay(file: &[Extent], own: &[Extent], start: u64, end: u64, offset: u64) -> Vec<Extent> {
    let length = end - start;
    let mut all = own.to_vec();
    for extent in file {
        let from = extent.start.max(offset);
        let to = (extent.start + extent.length).min(offset + length);
        let mut at = from;
        while at < to {
            let address = start + (at - offset);
            // The first own run that ends behind here.
            let next = own.partition_point(|run| run.start + run.length <= address);
            let run = own.get(next).map(|run| (run.start, run.start + run.length));
            let (until, resume) = match run {
                Some((first, last)) if first <= address => (at, offset + (last - start)),
                Some((first, _)) => (to.min(offset + (first - start)), to.min(offset + (first - start))),
                None => (to, to),
            };
            if until > at {
                all.push(Extent {
                    start: address,
                    length: until - at,
                    offset: extent.offset + (at - extent.start),
                });
            }
            at = resume;
        }
    }
    all.sort_unstable_by_key(|extent| extent.start);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pages_cover_those_of_the_file() {
        let extent = |start, length, offset| Extent { start, length, offset };
        let page = 0x1000;
        // File pages 0 to 3 and 5; pages 1 to 5 are mapped at 0x10000; the process has its own second and fifth page.
        let file = [extent(0, 4 * page, 0x100000), extent(5 * page, page, 0x104000)];
        let own = [extent(0x11000, page, 0x200000), extent(0x14000, page, 0x201000)];
        assert_eq!(
            overlay(&file, &own, 0x10000, 0x15000, page),
            [
                extent(0x10000, page, 0x101000),
                extent(0x11000, page, 0x200000),
                extent(0x12000, page, 0x103000),
                extent(0x14000, page, 0x201000),
            ]
        );
        assert_eq!(
            overlay(&file, &[], 0x10000, 0x11000, 5 * page),
            [extent(0x10000, page, 0x104000)]
        );
        assert_eq!(overlay(&[], &own, 0x10000, 0x15000, page), own);
    }
}
