//! A directory of generations.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::background::Progress;
use crate::directory;
use crate::files;
use crate::part::{self, Part, PartInfo, file_name};
use crate::variable::{ElementType, Order, Variable};

/// The file that says that all parts of a generation are there.
const COMPLETE: &str = "complete";
/// Attributes and lifetime that were changed after writing.
const RECORD: &str = "record";

/// What a generation refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing: it can be read without any other.
    #[default]
    Full,
    /// The last full one.
    SinceFull,
    /// The last one, and what that refers to.
    SinceLast,
}

impl Kind {
    /// Parses a sequence as in `SAGA_CPR_SEQUENCE`: letters F, I and i. Whatever it begins with, the first generation
    /// is a full one.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for other letters, and for none.
    pub fn sequence(text: &str) -> Result<Vec<Kind>> {
        let letters = text.chars().map(|letter| match letter {
            'F' => Some(Kind::Full),
            'I' => Some(Kind::SinceFull),
            'i' => Some(Kind::SinceLast),
            _ => None,
        });
        let sequence: Option<Vec<Kind>> = letters.collect();
        match sequence {
            Some(sequence) if !sequence.is_empty() => Ok(sequence),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("{text:?} is no sequence: it is of letters F, I and i"),
            )),
        }
    }
}

/// How a store is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Directory of all checkpoints.
    pub base: PathBuf,
    /// Name of the checkpoint.
    pub name: String,
    /// Which part is ours, from 0.
    pub rank: u32,
    /// How many parts there are.
    pub ranks: u32,
    /// How many complete generations are kept; none for all.
    pub keep: Option<u32>,
    /// How long a generation is kept; none for ever. The newest complete one is kept in any case.
    pub lifetime: Option<Duration>,
    /// Kinds of the generations, used in turn.
    pub sequence: Vec<Kind>,
    /// Which run of a program with several ranks this is, the same for all of them: parts that another run has left
    /// behind do not complete a generation of this one.
    pub session: String,
}

impl Options {
    /// One part, everything kept, full generations.
    pub fn new(base: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Options {
            base: base.into(),
            name: name.into(),
            rank: 0,
            ranks: 1,
            keep: None,
            lifetime: None,
            sequence: vec![Kind::Full],
            session: String::new(),
        }
    }

    /// The same with what the environment says: base directory, sequence, lifetime and number of generations from
    /// `GRIDCPR_APP_BASE`, `GRIDCPR_APP_SEQUENCE`, `GRIDCPR_APP_LIFETIME` (seconds) and `GRIDCPR_APP_KEEP`, or else
    /// `SAGA_CPR_BASE_LOCATION`, `SAGA_CPR_SEQUENCE` and `SAGA_CPR_TIME_TO_LIVE`. An empty base is the working
    /// directory.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a variable that makes no sense.
    pub fn from_environment(base: &Path, name: &str) -> Result<Self> {
        let find = |names: &[&str]| {
            names.iter().find_map(|name| {
                let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
                Some(((*name).to_owned(), value))
            })
        };
        let number = |found: Option<(String, String)>| {
            found
                .map(|(name, value)| {
                    let wrong = || Error::new(ErrorKind::Usage, format!("{name}={value}: that is no number"));
                    value.parse::<u64>().map_err(|_| wrong())
                })
                .transpose()
        };
        let mut options = Options::new(base, name);
        if base.as_os_str().is_empty() {
            let found = find(&["GRIDCPR_APP_BASE", "SAGA_CPR_BASE_LOCATION"]);
            let place = found.map_or_else(|| ".".to_owned(), |(_, value)| value);
            options.base = PathBuf::from(place.strip_prefix("file://").unwrap_or(&place));
        }
        if let Some((name, value)) = find(&["GRIDCPR_APP_SEQUENCE", "SAGA_CPR_SEQUENCE"]) {
            options.sequence =
                Kind::sequence(&value).map_err(|error| Error::new(ErrorKind::Usage, name).with_source(error))?;
        }
        let lifetime = number(find(&["GRIDCPR_APP_LIFETIME", "SAGA_CPR_TIME_TO_LIVE"]))?;
        options.lifetime = lifetime.map(Duration::from_secs);
        options.session = session(&|name| std::env::var(name).ok());
        options.keep = number(find(&["GRIDCPR_APP_KEEP"]))?.map(|keep| u32::try_from(keep).unwrap_or(u32::MAX));
        Ok(options)
    }
}

/// What launchers of parallel programs say that is the same for all ranks of a run, and another in the next.
fn session(find: &dyn Fn(&str) -> Option<String>) -> String {
    const NAMES: [&str; 6] = [
        "GRIDCPR_APP_SESSION",
        "PMIX_NAMESPACE",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_RESTART_COUNT",
        "PBS_JOBID",
    ];
    let said: Vec<String> = NAMES.iter().filter_map(|name| find(name)).collect();
    said.join("/")
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Number of the generation.
    pub generation: u64,
    /// What it refers to.
    pub kind: Kind,
    /// Bytes of variables in this part that were written; the others are in earlier generations.
    pub bytes: u64,
    /// All parts are there. Otherwise it does not count until they are.
    pub complete: bool,
}

/// A place for a variable's bytes.
#[derive(Debug)]
pub struct Target<'a> {
    /// Name of the variable.
    pub name: &'a str,
    /// Type it has to have.
    pub element: ElementType,
    /// Shape it has to have.
    pub shape: &'a [u64],
    /// Order it has to have; of no account for fewer than two dimensions.
    pub order: Order,
    /// Its bytes go here.
    pub data: &'a mut [u8],
}

/// Where variables came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The generation.
    pub generation: u64,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// Newer generations that could not be used, and why.
    pub skipped: Vec<(u64, String)>,
}

/// Whether a generation can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationState {
    /// All parts are there.
    Complete,
    /// Parts are missing: it is being written, or its writer died.
    Incomplete,
    /// It says that it is complete, and parts are missing or cannot be read.
    Damaged,
}

/// A generation, as a query gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: u64,
    /// Whether it can be used.
    pub state: GenerationState,
    /// How many parts there are, and how many there have to be.
    pub parts: (u32, u32),
    /// Nanoseconds since the epoch when it was begun; of the first part.
    pub created_ns: u64,
    /// Seconds for which it is kept, where that was said.
    pub lifetime_s: Option<u64>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Other generations that it needs.
    pub needs: BTreeSet<u64>,
    /// What the program wanted to be remembered.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    attributes: BTreeMap<String, String>,
    lifetime_s: Option<u64>,
}

/// The name of a generation's directory.
pub(crate) fn directory_name(generation: u64) -> String {
    format!("{generation:06}")
}

/// A checkpoint's generations. One process at a time can write a rank's parts.
#[derive(Debug)]
pub struct Store {
    pub(crate) options: Options,
    pub(crate) directory: PathBuf,
    /// Held as long as we are a writer.
    lock: Option<File>,
    next: u64,
    count: usize,
    attributes: BTreeMap<String, String>,
    full: Option<PartInfo>,
    last: Option<PartInfo>,
    /// Generations that could not be restored: they do not count among those that are kept.
    pub(crate) unsound: BTreeSet<u64>,
    /// Names of files that are to belong to the next generation.
    pub(crate) routed: Vec<String>,
    /// Memory that background writes have used.
    pub(crate) spare: Vec<Vec<u8>>,
    progress: Arc<Progress>,
}

impl Store {
    /// Opens a store for writing and reading, and makes its directory if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for names and numbers that make no sense, [`ErrorKind::Busy`] while another process has
    /// this rank open.
    pub fn open(options: Options) -> Result<Self> {
        let mut store = Store::look(options)?;
        directory::create(&store.directory)?;
        let path = store.directory.join(format!(".lock-{:05}", store.options.rank));
        let what = || format!("lock {}", path.display());
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let lock = rustix::fs::open(&path, flags, mode)
            .map_err(std::io::Error::from)
            .context(what)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => store.lock = Some(File::from(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let text = format!(
                    "rank {} of {} is open in another process",
                    store.options.rank, store.options.name
                );
                return Err(Error::new(ErrorKind::Busy, text));
            }
            Err(error) => return Err(std::io::Error::from(error)).context(what),
        }
        store.next = store
            .numbers()?
            .into_iter()
            .filter(|g| store.is_complete(*g))
            .max()
            .unwrap_or(0)
            + 1;
        Ok(store)
    }

    /// Opens a store for looking at it only; it may be missing.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for names and numbers that make no sense.
    pub fn look(options: Options) -> Result<Self> {
        let name = &options.name;
        if name.is_empty() || name.starts_with('.') || name.contains('/') || name.chars().any(char::is_control) {
            let text = format!("{name:?} cannot be the name of a checkpoint");
            return Err(Error::new(ErrorKind::Usage, text).with_hint("use letters, digits, - and _"));
        }
        if options.rank >= options.ranks {
            let text = format!("there is no rank {} among {}", options.rank, options.ranks);
            return Err(Error::new(ErrorKind::Usage, text).with_hint("ranks are numbered from 0"));
        }
        if options.sequence.is_empty() || options.keep == Some(0) {
            return Err(Error::new(
                ErrorKind::Usage,
                "a sequence has at least one letter, and at least one generation is kept",
            ));
        }
        Ok(Store {
            directory: options.base.join(name),
            options,
            lock: None,
            next: 1,
            count: 0,
            attributes: BTreeMap::new(),
            full: None,
            last: None,
            unsound: BTreeSet::new(),
            routed: Vec::new(),
            spare: Vec::new(),
            progress: Arc::default(),
        })
    }

    /// How far writing has come.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// What generations written from now on remember under `key`.
    pub fn set_attribute(&mut self, key: &str, value: &str) {
        self.attributes.insert(key.to_owned(), value.to_owned());
    }

    /// Writes our part of the next generation. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for variables that make no sense or a store that was opened for looking only;
    /// [`ErrorKind::NoSpace`], [`ErrorKind::Io`]. What was there before is there still.
    pub fn write(&mut self, variables: &[Variable<'_>]) -> Result<Written> {
        let generation = self.next()?;
        let wanted = self
            .options
            .sequence
            .get(self.count % self.options.sequence.len().max(1))
            .copied();
        let basis = match wanted.unwrap_or_default() {
            Kind::Full => None,
            Kind::SinceFull => self.full.as_ref(),
            Kind::SinceLast => self.last.as_ref(),
        };
        // What it would refer to may have been freed.
        let basis = basis.filter(|basis| {
            let mut needed = basis.needs();
            needed.insert(basis.generation);
            needed.iter().all(|g| self.is_complete(*g))
        });
        let kind = wanted.filter(|_| basis.is_some()).unwrap_or_default();
        let place = self.place(generation);
        directory::create(&place)?;
        let info = PartInfo {
            name: self.options.name.clone(),
            generation,
            rank: self.options.rank,
            ranks: self.options.ranks,
            session: self.options.session.clone(),
            created_ns: now_ns(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            little_endian: cfg!(target_endian = "little"),
            attributes: self.attributes.clone(),
            variables: Vec::new(),
            files: files::seal(&self.files_of(generation, self.options.rank), &self.routed)?,
        };
        let path = place.join(file_name(self.options.rank));
        let (written, bytes) = part::write(&path, info, variables, basis, &self.progress)?;
        directory::sync(&self.directory)?;
        let complete = self.complete(generation)?;
        if kind == Kind::Full {
            self.full = Some(written.clone());
        }
        self.last = Some(written);
        self.next += 1;
        self.count += 1;
        self.routed.clear();
        if complete {
            self.retain()?;
        }
        Ok(Written {
            generation,
            kind,
            bytes,
            complete,
        })
    }

    /// Fills variables from the newest generation that is sound: complete, with all these variables in our part, and no
    /// byte of them altered. None where there is no generation.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where there are complete generations and none is sound; the variables may hold anything
    /// then. [`ErrorKind::Incompatible`] for a variable that is missing, or is of another type or shape.
    pub fn restore(&mut self, targets: &mut [Target<'_>]) -> Result<Option<Restored>> {
        let mut numbers = self.numbers()?;
        numbers.reverse();
        let mut skipped = Vec::new();
        for generation in numbers {
            if !self.is_complete(generation) {
                continue;
            }
            match self.restore_from(generation, targets) {
                Ok(attributes) => {
                    // What is written next is a full one, and comes after everything there is.
                    self.forget_basis();
                    return Ok(Some(Restored {
                        generation,
                        attributes,
                        skipped,
                    }));
                }
                Err(error) if error.kind() == ErrorKind::Incompatible => return Err(error),
                Err(error) => {
                    self.unsound.insert(generation);
                    skipped.push((generation, error.chain()));
                }
            }
        }
        if skipped.is_empty() {
            return Ok(None);
        }
        let reasons: Vec<String> = skipped.iter().map(|(g, why)| format!("{g}: {why}")).collect();
        let text = format!(
            "no generation of {} is sound ({})",
            self.options.name,
            reasons.join("; ")
        );
        Err(Error::new(ErrorKind::Damaged, text))
    }

    /// Fills variables from one generation; gives its attributes.
    ///
    /// # Errors
    /// As [`Store::restore`].
    pub fn restore_from(&self, generation: u64, targets: &mut [Target<'_>]) -> Result<BTreeMap<String, String>> {
        let mut part = self.part(generation, self.options.rank)?;
        let mut found = Vec::with_capacity(targets.len());
        for target in targets.iter() {
            let index = part.info().variables.iter().position(|v| v.name == target.name);
            let wrong = |what: String| {
                let text = format!("variable {} of generation {generation} {what}", target.name);
                Error::new(ErrorKind::Incompatible, text)
            };
            let index = index.ok_or_else(|| wrong("is missing".to_owned()))?;
            let variable = &part.info().variables[index];
            let order = variable.shape.len() < 2 || variable.order == target.order;
            if variable.element != target.element || variable.shape != target.shape || !order {
                return Err(wrong(format!(
                    "is {} {:?} and not {} {:?}, or of another order",
                    variable.element.name(),
                    variable.shape,
                    target.element.name(),
                    target.shape
                )));
            }
            found.push(index);
        }
        part.verify_files()?;
        for (target, index) in targets.iter_mut().zip(found) {
            part.read(index, 0, target.data)?;
        }
        Ok(self.attributes_of(part.info()))
    }

    /// A rank's part of a generation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Damaged`], also for a part of something else.
    pub fn part(&self, generation: u64, rank: u32) -> Result<Part> {
        let path = self.place(generation).join(file_name(rank));
        let part = Part::open(&path)?;
        if (part.info().generation, part.info().rank) != (generation, rank) {
            let text = format!("{} is a part of something else", path.display());
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        Ok(part)
    }

    /// All generations, the oldest first. Missing directories have none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn generations(&self) -> Result<Vec<GenerationInfo>> {
        let numbers = self.numbers()?;
        Ok(numbers.into_iter().filter_map(|g| self.generation(g).ok()).collect())
    }

    /// Generations that remember all these keys with these values, the oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(&self, attributes: &[(&str, &str)]) -> Result<Vec<GenerationInfo>> {
        let fits = |info: &GenerationInfo| {
            let has = |(key, value): &(&str, &str)| info.attributes.get(*key).is_some_and(|found| found == value);
            attributes.iter().all(has)
        };
        Ok(self.generations()?.into_iter().filter(fits).collect())
    }

    /// Reads bytes of a variable of one rank from `offset` on, and compares the hashes of all chunks that they are in.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Damaged`]; [`ErrorKind::Usage`] outside of the variable.
    pub fn read(&self, generation: u64, rank: u32, variable: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut part = self.part(generation, rank)?;
        let index = part.info().variables.iter().position(|v| v.name == variable);
        let missing = || {
            let text = format!("generation {generation} has no variable {variable}");
            Error::new(ErrorKind::NotFound, text)
        };
        part.read(index.ok_or_else(missing)?, offset, buffer)
    }

    /// One generation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn generation(&self, generation: u64) -> Result<GenerationInfo> {
        let place = self.place(generation);
        let what = || format!("read generation {generation} of {}", self.options.name);
        let mut info = GenerationInfo {
            generation,
            state: GenerationState::Incomplete,
            parts: (0, 0),
            created_ns: 0,
            lifetime_s: self.record(generation).lifetime_s,
            bytes: 0,
            needs: BTreeSet::new(),
            attributes: BTreeMap::new(),
        };
        let mut broken = false;
        for entry in std::fs::read_dir(&place).context(what)? {
            let entry = entry.context(what)?;
            let name = entry.file_name();
            let Some(rank) = name
                .to_str()
                .and_then(|name| name.strip_prefix("part-")?.parse::<u32>().ok())
            else {
                continue;
            };
            info.bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            match self.part(generation, rank) {
                Ok(part) => {
                    let part = part.info();
                    info.parts = (info.parts.0 + 1, info.parts.1.max(part.ranks));
                    if info.created_ns == 0 || part.created_ns < info.created_ns {
                        info.created_ns = part.created_ns;
                    }
                    info.bytes += part.files.iter().map(|file| file.bytes).sum::<u64>();
                    info.needs.extend(part.needs());
                    info.attributes.extend(self.attributes_of(part));
                }
                Err(_) => broken = true,
            }
        }
        if place.join(COMPLETE).exists() {
            let missing = info.needs.iter().any(|g| !self.is_complete(*g));
            let sound = !broken && !missing && info.parts.0 == info.parts.1 && info.parts.0 > 0;
            info.state = if sound {
                GenerationState::Complete
            } else {
                GenerationState::Damaged
            };
        }
        Ok(info)
    }

    /// Compares every hash of a generation; gives what is wrong with it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn validate(&self, generation: u64) -> Result<Vec<String>> {
        let info = self.generation(generation)?;
        let mut problems = Vec::new();
        if info.state == GenerationState::Incomplete {
            problems.push(format!("{} of {} parts are there", info.parts.0, info.parts.1));
        }
        let ranks = self.ranks(generation).unwrap_or(info.parts.1);
        for rank in 0..ranks {
            if let Err(error) = self.part(generation, rank).and_then(|mut part| part.verify()) {
                problems.push(error.chain());
            }
        }
        Ok(problems)
    }

    /// Changes what a generation remembers, and for how long it is kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn update(&self, generation: u64, attributes: &[(&str, &str)], lifetime: Option<Duration>) -> Result<()> {
        self.generation(generation)?;
        let mut record = self.record(generation);
        record.lifetime_s = lifetime.map_or(record.lifetime_s, |lifetime| Some(lifetime.as_secs()));
        for (key, value) in attributes {
            record.attributes.insert((*key).to_owned(), (*value).to_owned());
        }
        let text = serde_json::to_vec(&record)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("encode the record: {error}")))?;
        directory::write(&self.place(generation).join(RECORD), &text)
    }

    pub(crate) fn place(&self, generation: u64) -> PathBuf {
        self.directory.join(directory_name(generation))
    }

    /// The next generation is a full one, and the sequence begins anew.
    pub(crate) fn forget_basis(&mut self) {
        self.count = 0;
        (self.full, self.last) = (None, None);
    }

    /// Number of the generation that is written next.
    pub(crate) fn next(&self) -> Result<u64> {
        match self.lock {
            Some(_) => Ok(self.next),
            None => Err(Error::new(ErrorKind::Usage, "the store was opened for looking only")),
        }
    }

    /// Numbers of all generations, ascending.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>> {
        let what = || format!("read directory {}", self.directory.display());
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(what),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.context(what)?.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
            // Only as we write it.
            numbers.extend(number.filter(|number| name.to_str() == Some(&directory_name(*number))));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// How many parts a complete generation has.
    fn ranks(&self, generation: u64) -> Option<u32> {
        let text = std::fs::read_to_string(self.place(generation).join(COMPLETE)).ok()?;
        text.trim().parse().ok()
    }

    pub(crate) fn is_complete(&self, generation: u64) -> bool {
        self.ranks(generation).is_some()
    }

    /// Declares a generation complete if all its parts are there. Whoever writes the last part does; it does not matter
    /// if two do.
    fn complete(&self, generation: u64) -> Result<bool> {
        let ranks = self.options.ranks;
        let mut others = (0..ranks).filter(|rank| *rank != self.options.rank);
        // One that a run before has left behind does not count, nor one that cannot be read.
        let is_there = |rank: u32| {
            self.part(generation, rank)
                .is_ok_and(|part| part.info().ranks == ranks && part.info().session == self.options.session)
        };
        let complete = others.all(is_there);
        if complete {
            self.declare_complete(generation, ranks)?;
        }
        Ok(complete)
    }

    /// Writes down that all parts of a generation are there.
    pub(crate) fn declare_complete(&self, generation: u64, ranks: u32) -> Result<()> {
        directory::write(&self.place(generation).join(COMPLETE), format!("{ranks}\n").as_bytes())
    }

    fn record(&self, generation: u64) -> Record {
        let text = std::fs::read(self.place(generation).join(RECORD));
        text.ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn attributes_of(&self, part: &PartInfo) -> BTreeMap<String, String> {
        let mut attributes = part.attributes.clone();
        attributes.extend(self.record(part.generation).attributes);
        attributes
    }
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
