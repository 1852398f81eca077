//! What the agent keeps, and where.
//!
//! ```text
//! lease                         how long jobs may run
//! instance, starts              who we are, and how often we were started
//! records/JOB.NUMBER.json       every incarnation we have been told to have; JOB.NUMBER.UNIT where it is a unit
//! incoming/ID.part              images on their way
//! users/UID/state               the user's jobs, as `cpr` keeps them; the user's own
//! users/UID/images/ID.cpr       images; the user's own
//! users/UID/staged/JOB.NUMBER   files on their way between a bucket and the user's job; the user's own
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cpr_api::agent::{Fetching, Incarnation};
use cpr_api::model::Owner;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::durable::write;

/// Mode of files that are the agent's only.
const PRIVATE: u32 = 0o600;

/// What is known of an incarnation besides what its job directory says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub owner: Owner,
    /// Its start was begun.
    pub began: bool,
    /// It was ended on order, or before it began.
    pub killed: bool,
    /// Why it could not be started.
    pub failed: Option<(ErrorKind, String)>,
    /// What becomes of the files that it makes; none where none are to be brought away.
    #[serde(default)]
    pub results: Option<Results>,
    /// Its program may save itself when it likes.
    #[serde(default)]
    pub saves_itself: bool,
    /// The last signal that it was given, by its number among those of the job.
    #[serde(default)]
    pub signalled: u64,
}

/// Files that are to be brought away when a job has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Results {
    /// They are here yet.
    Here,
    /// They have been brought away.
    Away,
    /// They could not be, and why.
    Kept(String),
}

/// An incarnation by the name of its job directory.
fn incarnation(name: &str) -> Option<Incarnation> {
    let mut numbers = name.split('.');
    let found = Incarnation {
        job: numbers.next()?.parse().ok()?,
        number: numbers.next()?.parse().ok()?,
        unit: numbers.next().map(str::parse).transpose().ok()?,
    };
    numbers.next().is_none().then_some(found)
}

/// Places below the agent's directory.
pub struct Layout {
    directory: PathBuf,
    /// Files are given to their users.
    is_root: bool,
}

/// Makes a directory, where it is missing, with this mode.
fn ensure(path: &Path, mode: u32) -> Result<()> {
    let what = || format!("make directory {}", path.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .context(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context(what)
}

/// The text of a file, where there is one.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", path.display())),
    }
}

impl Layout {
    /// Opens the agent's directory, made where it is missing.
    pub fn open(directory: &Path) -> Result<Layout> {
        // Users reach their own places below it, and nothing else.
        ensure(directory, 0o711)?;
        ensure(&directory.join("users"), 0o711)?;
        ensure(&directory.join("records"), 0o700)?;
        ensure(&directory.join("incoming"), 0o700)?;
        Ok(Layout {
            directory: directory.to_path_buf(),
            is_root: rustix::process::geteuid().is_root(),
        })
    }

    /// The lease that jobs run under.
    pub fn lease(&self) -> PathBuf {
        self.directory.join("lease")
    }

    /// Who we are: the same as long as this directory is.
    pub fn instance(&self) -> Result<String> {
        let path = self.directory.join("instance");
        if let Some(text) = read(&path)? {
            return Ok(text.trim().to_string());
        }
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(io::Error::from)
            .context(|| "get random bytes")?;
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        write(&path, text.as_bytes(), PRIVATE)?;
        Ok(text)
    }

    /// Counts this start; gives its number.
    pub fn count_start(&self) -> Result<u64> {
        let path = self.directory.join("starts");
        let before = read(&path)?
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        write(&path, (before + 1).to_string().as_bytes(), PRIVATE)?;
        Ok(before + 1)
    }

    fn record(&self, incarnation: Incarnation) -> PathBuf {
        self.directory.join("records").join(format!("{incarnation}.json"))
    }

    /// All records. One that cannot be read is of an incarnation that we then do not have.
    pub fn records(&self) -> Result<BTreeMap<Incarnation, Record>> {
        let path = self.directory.join("records");
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&path)
            .context(|| format!("list {}", path.display()))?
            .flatten()
        {
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|name| incarnation(name.strip_suffix(".json")?));
            let text = read(&entry.path())?.unwrap_or_default();
            if let (Some(incarnation), Ok(record)) = (parsed, serde_json::from_str(&text)) {
                records.insert(incarnation, record);
            }
        }
        Ok(records)
    }

    /// Writes a record down.
    pub fn put_record(&self, incarnation: Incarnation, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode a record").with_source(error))?;
        write(&self.record(incarnation), &text, PRIVATE)
    }

    /// Forgets an incarnation.
    pub fn remove_record(&self, incarnation: Incarnation) -> Result<()> {
        let path = self.record(incarnation);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn user(&self, uid: u32) -> PathBuf {
        self.directory.join("users").join(uid.to_string())
    }

    /// Where `cpr` keeps the jobs of a user.
    pub fn state(&self, uid: u32) -> PathBuf {
        self.user(uid).join("state")
    }

    /// Where an image of a user is.
    pub fn image(&self, uid: u32, id: i64) -> PathBuf {
        self.user(uid).join("images").join(format!("{id}.cpr"))
    }

    /// Where an image is while it is fetched.
    pub fn incoming(&self, id: i64) -> PathBuf {
        self.directory.join("incoming").join(format!("{id}.part"))
    }

    /// Where a file of a job is written that comes from a bucket, which nobody else reaches; and where it waits for the
    /// user to take it, or is put by the user to go there.
    pub fn staged(&self, incarnation: Incarnation, owner: &Owner) -> Result<(PathBuf, PathBuf)> {
        self.prepare(owner)?;
        let place = self.user(owner.uid).join("staged");
        ensure(&place, 0o700)?;
        self.give(&place, owner)?;
        let aside = self.directory.join("incoming").join(format!("{incarnation}.staged"));
        Ok((aside, place.join(incarnation.to_string())))
    }

    /// How much there is of images that are not here as a whole so far.
    pub fn fetched_so_far(&self) -> Vec<Fetching> {
        let parts = fs::read_dir(self.directory.join("incoming"))
            .into_iter()
            .flatten()
            .flatten();
        let found = parts.filter_map(|entry| {
            let name = entry.file_name();
            let id = name.to_str()?.strip_suffix(".part")?.parse().ok()?;
            let bytes = entry.metadata().ok()?.len();
            Some(Fetching { id, bytes })
        });
        found.collect()
    }

    /// Makes the places of a user. Nobody else can reach what is in them, and the user cannot move them.
    pub fn prepare(&self, owner: &Owner) -> Result<()> {
        ensure(&self.user(owner.uid), 0o711)?;
        for place in [self.state(owner.uid), self.user(owner.uid).join("images")] {
            ensure(&place, 0o700)?;
            self.give(&place, owner)?;
        }
        Ok(())
    }

    /// Makes a file or directory a user's own.
    pub fn give(&self, path: &Path, owner: &Owner) -> Result<()> {
        if !self.is_root {
            return Ok(());
        }
        chown(path, Some(owner.uid), Some(owner.gid)).context(|| format!("give {} to {}", path.display(), owner.name))
    }

    /// Directories of users.
    fn users(&self) -> impl Iterator<Item = fs::DirEntry> {
        let users = fs::read_dir(self.directory.join("users"));
        users.into_iter().flatten().flatten()
    }

    /// Every incarnation that has a job directory, and whose it is.
    pub fn jobs(&self) -> BTreeMap<Incarnation, Owner> {
        let mut found = BTreeMap::new();
        for user in self.users() {
            let state = user.path().join("state");
            let Ok(metadata) = fs::symlink_metadata(&state) else {
                continue;
            };
            let owner = Owner {
                name: user.file_name().to_string_lossy().into_owned(),
                uid: metadata.uid(),
                gid: metadata.gid(),
            };
            for entry in fs::read_dir(state.join("jobs")).into_iter().flatten().flatten() {
                if let Some(incarnation) = entry.file_name().to_str().and_then(incarnation) {
                    found.insert(incarnation, owner.clone());
                }
            }
        }
        found
    }

    /// Every image that is held, and where.
    pub fn images(&self) -> BTreeMap<i64, PathBuf> {
        let mut found = BTreeMap::new();
        for user in self.users() {
            for entry in fs::read_dir(user.path().join("images")).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.strip_suffix(".cpr")?.parse().ok());
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                if let Some(id) = id.filter(|_| is_file) {
                    found.insert(id, entry.path());
                }
            }
        }
        found
    }
}
