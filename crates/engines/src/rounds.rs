//! Memory that CRIU has copied while a job ran (pre-dump), in rounds, each of what was written since the one before.
//!
//! A round has a directory of its own among the engine's files, `before-1` and so on. CRIU finds the round before, of
//! each and of the job itself, by a link `parent`. An image has no links, so they are made again for a restart; that
//! they follow from the names is all that is believed of an image.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Result};

/// Most rounds.
const MOST: u32 = 6;
/// So little of a round shows that another one is not worth its stop, bytes.
const FEW: u64 = 4 << 20;
/// What the directory of a round is called, before its number.
const NAME: &str = "before-";
/// How CRIU finds what was copied before (`CR_PARENT_LINK`).
const PARENT: &str = "parent";
/// What files with memory are called (`pages-NUMBER.img`).
const PAGES: (&str, &str) = ("pages-", ".img");

/// The rounds among the files of an engine.
#[derive(Debug)]
pub(crate) struct Rounds {
    files: PathBuf,
    count: u32,
    /// What the last two have copied, bytes.
    copied: (Option<u64>, u64),
}

impl Rounds {
    /// Those that are there.
    pub(crate) fn of(files: &Path) -> Rounds {
        let mut rounds = Rounds {
            files: files.to_path_buf(),
            count: 0,
            copied: (None, 0),
        };
        while rounds.count < MOST && rounds.directory(rounds.count + 1).is_dir() {
            rounds.count += 1;
        }
        rounds
    }

    fn directory(&self, number: u32) -> PathBuf {
        self.files.join(format!("{NAME}{number}"))
    }

    /// A directory for another round, and where CRIU finds the one before from there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn begin(&mut self) -> Result<(PathBuf, Option<String>)> {
        let before = (self.count > 0).then(|| format!("../{NAME}{}", self.count));
        let directory = self.directory(self.count + 1);
        std::fs::create_dir(&directory).context(|| format!("make directory {}", directory.display()))?;
        self.count += 1;
        Ok((directory, before))
    }

    /// Looks at what the last round has copied: whether another one is worth it.
    ///
    /// # Errors
    /// Its files cannot be looked at.
    pub(crate) fn judge(&mut self) -> Result<bool> {
        let copied = pages(&self.directory(self.count))?;
        self.copied = (Some(self.copied.1).filter(|_| self.count > 1), copied);
        // What is written again as fast as it is copied would only be in the image once more.
        let settles = self.copied.0.is_none_or(|before| copied <= before / 4 * 3);
        Ok(copied > FEW && settles && self.count < MOST)
    }

    /// Where CRIU finds the last round from the files of the job itself; none where there is none.
    pub(crate) fn last(&self) -> Option<String> {
        (self.count > 0).then(|| format!("{NAME}{}", self.count))
    }

    /// Length of what the rounds have copied, bytes.
    ///
    /// # Errors
    /// Their files cannot be looked at.
    pub(crate) fn bytes(&self) -> Result<u64> {
        (1..=self.count).map(|number| pages(&self.directory(number))).sum()
    }

    /// Every directory with a round before it, and where that is.
    fn links(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let own = self.last().map(|last| (self.files.join(PARENT), last));
        let between = (2..=self.count).map(|number| {
            let link = self.directory(number).join(PARENT);
            (link, format!("../{NAME}{}", number - 1))
        });
        own.into_iter().chain(between)
    }

    /// Removes the links to the rounds before.
    ///
    /// # Errors
    /// One cannot be removed.
    pub(crate) fn untie(&self) -> Result<()> {
        for (link, _) in self.links() {
            match std::fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).context(|| format!("remove {}", link.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the links again.
    ///
    /// # Errors
    /// One cannot be made.
    pub(crate) fn tie(&self) -> Result<()> {
        for (link, to) in self.links() {
            symlink(to, &link).context(|| format!("make link {}", link.display()))?;
        }
        Ok(())
    }
}

/// Length of the memory in a directory of CRIU's files, bytes.
fn pages(directory: &Path) -> Result<u64> {
    let what = || format!("look at {}", directory.display());
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).context(what)? {
        let entry = entry.context(what)?;
        let name = entry.file_name();
        let is_memory = name
            .to_str()
            .is_some_and(|name| name.starts_with(PAGES.0) && name.ends_with(PAGES.1));
        if is_memory {
            bytes += entry.metadata().context(what)?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Rounds that copy so much each; how many there were.
    fn rounds_of(files: &Path, copied: &[u64]) -> u32 {
        let mut rounds = Rounds::of(files);
        for bytes in copied {
            let (directory, before) = rounds.begin().unwrap();
            assert_eq!(before.is_some(), rounds.count > 1);
            let pages = std::fs::File::create(directory.join("pages-1.img")).unwrap();
            pages.set_len(*bytes).unwrap();
            std::fs::write(directory.join("pagemap-1.img"), vec![0; 1 << 20]).unwrap();
            if let Some(before) = before {
                symlink(before, directory.join(PARENT)).unwrap();
            }
            if !rounds.judge().unwrap() {
                break;
            }
        }
        rounds.count
    }

    #[test]
    fn rounds_end_when_little_is_left_or_as_much_is_written_as_copied() {
        const MIB: u64 = 1 << 20;
        for (copied, count) in [
            (&[MIB / 8, 0][..], 1),
            (&[100 * MIB, MIB / 8, 0], 2),
            (&[100 * MIB, 80 * MIB, 0], 2),
            (&[100 * MIB, 60 * MIB, 20 * MIB, 19 * MIB, 0], 4),
            (&[512 * MIB, 256 * MIB, 128 * MIB, 64 * MIB, 32 * MIB, 16 * MIB, 0], 6),
        ] {
            let files = tempfile::tempdir().unwrap();
            assert_eq!(rounds_of(files.path(), copied), count, "{copied:?}");
            let sum: u64 = copied[..count as usize].iter().sum();
            assert_eq!(Rounds::of(files.path()).bytes().unwrap(), sum);
        }
    }

    #[test]
    fn links_are_taken_away_and_made_again() {
        let files = tempfile::tempdir().unwrap();
        assert_eq!(Rounds::of(files.path()).last(), None);
        rounds_of(files.path(), &[9 << 20, 6 << 20, 4 << 20]);
        let rounds = Rounds::of(files.path());
        let own = files.path().join(PARENT);
        symlink(rounds.last().unwrap(), &own).unwrap();
        let third = files.path().join("before-3/parent");
        let first = files.path().join("parent/parent/parent/pages-1.img");
        for _ in 0..2 {
            assert_eq!(first.metadata().unwrap().len(), 9 << 20);
            rounds.untie().unwrap();
            assert!(!own.is_symlink() && !third.is_symlink());
            rounds.tie().unwrap();
        }
    }
}
