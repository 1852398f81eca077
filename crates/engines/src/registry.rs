//! All engines and classes: those compiled in, and what a site and a user have added; and the choice among them.
//!
//! A user's file goes before a site's, and that before what is compiled in, where they name the same engine or class;
//! only `native` and the classes compiled in cannot be replaced. A file that is wrong is a [`Problem`] and takes
//! nothing else with it. Descriptors name programs that will be run, so only files that nobody else can write to count.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cpr_types::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::class::Class;
use crate::configuration::{MOST_FILES, Problem, directories, files, site_directories};
use crate::descriptor::Descriptor;
use crate::probe::Probe;
use crate::property::Condition;

/// Where classes are described in a directory of configuration.
const CLASSES: &str = "classes.d";
/// Where engines are.
const ENGINES: &str = "engines.d";
/// The engine used where nothing else is asked for.
pub const NATIVE: &str = "native";

/// All engines and classes that are known here.
#[derive(Debug)]
pub struct Registry {
    engines: Vec<Descriptor>,
    classes: Vec<Class>,
    /// Files that could not be used.
    pub problems: Vec<Problem>,
}

/// What is wanted of an engine; everything at once.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// This very engine.
    pub engine: Option<String>,
    /// A member of all these classes.
    pub classes: Vec<String>,
    /// One that has all these properties.
    pub needs: Vec<Condition>,
}

impl Request {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.engine.is_none() && self.classes.is_empty() && self.needs.is_empty()
    }
}

/// What became of an engine in a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// It was chosen.
    Chosen,
    /// It has not what is asked for.
    Unfit(String),
    /// It does not work on this node.
    Broken(String),
    /// It would do, and a better one was found before.
    Spare,
}

/// One engine of a choice.
#[derive(Debug, Clone, Serialize)]
pub struct Considered {
    /// Its name.
    pub engine: String,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// A choice, with its reasons.
#[derive(Debug, Clone)]
pub struct Choice<'a> {
    /// The engine.
    pub engine: Option<&'a Descriptor>,
    /// Its version, where it is known.
    pub version: Option<String>,
    /// Every engine in the order of preference.
    pub considered: Vec<Considered>,
}

impl Registry {
    /// What is compiled in, and what site and user have added.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where what is compiled in is wrong.
    pub fn load() -> Result<Registry> {
        Registry::load_from(&directories())
    }

    /// What is compiled in, and what the site has added: what every user of this host finds.
    ///
    /// # Errors
    /// As [`Registry::load`].
    pub fn of_site() -> Result<Registry> {
        Registry::load_from(&site_directories())
    }

    /// Changes when a file of the site comes, goes or is changed: names, places, sizes and times of them all.
    pub fn site_mark() -> u64 {
        let mut hasher = DefaultHasher::new();
        for directory in site_directories() {
            for part in [CLASSES, ENGINES] {
                let entries = std::fs::read_dir(directory.join(part)).into_iter().flatten().flatten();
                let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
                paths.sort();
                for path in paths.iter().take(MOST_FILES) {
                    path.hash(&mut hasher);
                    if let Ok(found) = std::fs::metadata(path) {
                        let place = (found.dev(), found.ino(), found.mode(), found.uid());
                        let time = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
                        (place, found.len(), time).hash(&mut hasher);
                    }
                }
            }
        }
        hasher.finish()
    }

    /// The same with these directories, the most important one first.
    ///
    /// # Errors
    /// As [`Registry::load`].
    pub fn load_from(directories: &[PathBuf]) -> Result<Registry> {
        let mut registry = Registry {
            engines: Vec::new(),
            classes: Class::built_in()?,
            problems: Vec::new(),
        };
        for directory in directories {
            for (path, text) in files(&directory.join(CLASSES), &mut registry.problems) {
                if let Err(error) = Class::parse(&text).and_then(|class| registry.add_class(class)) {
                    registry.problems.push(Problem { path, error });
                }
            }
        }
        // Classes first: engines claim to be in them.
        for directory in directories {
            for (path, text) in files(&directory.join(ENGINES), &mut registry.problems) {
                let added = Descriptor::parse(&text).and_then(|mut engine| {
                    engine.file = Some(path.clone());
                    registry.add_engine(engine)
                });
                if let Err(error) = added {
                    registry.problems.push(Problem { path, error });
                }
            }
        }
        let added = std::mem::take(&mut registry.engines);
        for engine in Descriptor::built_in()? {
            engine.require_claims(&registry.classes)?;
            if added.iter().all(|other| other.name != engine.name) {
                registry.engines.push(engine);
            }
        }
        registry.engines.extend(added);
        Ok(registry)
    }

    fn add_class(&mut self, class: Class) -> Result<()> {
        if self.classes.iter().any(|other| other.name == class.name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there is a class {} already", class.name),
            ));
        }
        self.classes.push(class);
        Ok(())
    }

    fn add_engine(&mut self, engine: Descriptor) -> Result<()> {
        if engine.name == NATIVE || self.engines.iter().any(|other| other.name == engine.name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there is an engine {} already", engine.name),
            ));
        }
        engine.require_claims(&self.classes)?;
        self.engines.push(engine);
        Ok(())
    }

    /// All engines in the order of preference: what is compiled in, then a user's, then a site's.
    pub fn engines(&self) -> &[Descriptor] {
        &self.engines
    }

    /// All classes.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The engine of that name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn engine(&self, name: &str) -> Result<&Descriptor> {
        let found = self.engines.iter().find(|engine| engine.name == name);
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no engine {name}"))
                .with_hint("`cpr engines` lists all, and says which files could not be used")
        })
    }

    /// The class of that name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn class(&self, name: &str) -> Result<&Class> {
        let found = self.classes.iter().find(|class| class.name == name);
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no class {name}")).with_hint("`cpr classes` lists all")
        })
    }

    /// Chooses the first engine that has what is asked for and works here, by `probe`. Engines after it are not probed.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where an engine or class is asked for that does not exist.
    pub fn choose(&self, request: &Request, mut probe: impl FnMut(&Descriptor) -> Probe) -> Result<Choice<'_>> {
        if let Some(name) = &request.engine {
            self.engine(name)?;
        }
        let classes = request.classes.iter().map(|name| self.class(name));
        let classes = classes.collect::<Result<Vec<_>>>()?;
        let mut chosen = None;
        let mut version = None;
        let mut considered = Vec::new();
        for engine in &self.engines {
            let verdict = if let Some(reason) = unfit(engine, request, &classes) {
                Verdict::Unfit(reason)
            } else if chosen.is_some() {
                Verdict::Spare
            } else {
                let probe = probe(engine);
                match probe.reason {
                    Some(reason) => Verdict::Broken(reason),
                    None => {
                        chosen = Some(engine);
                        version = probe.version;
                        Verdict::Chosen
                    }
                }
            };
            considered.push(Considered {
                engine: engine.name.clone(),
                verdict,
            });
        }
        Ok(Choice {
            engine: chosen,
            version,
            considered,
        })
    }
}

impl<'a> Choice<'a> {
    /// The engine.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where there is none, with what is wrong with each.
    pub fn require(&self) -> Result<&'a Descriptor> {
        self.engine.ok_or_else(|| {
            let reasons: Vec<String> = self
                .considered
                .iter()
                .map(|considered| match &considered.verdict {
                    Verdict::Unfit(reason) => format!("{}: {reason}", considered.engine),
                    Verdict::Broken(reason) => format!("{} does not work here: {reason}", considered.engine),
                    Verdict::Chosen | Verdict::Spare => considered.engine.clone(),
                })
                .collect();
            Error::new(
                ErrorKind::Unsupported,
                format!("no engine here has what is asked for ({})", reasons.join("; ")),
            )
            .with_hint("`cpr engines` lists what there is")
        })
    }
}

/// Why an engine is not what is asked for.
fn unfit(engine: &Descriptor, request: &Request, classes: &[&Class]) -> Option<String> {
    if request.engine.as_ref().is_some_and(|name| *name != engine.name) {
        return Some("another one is asked for by name".to_string());
    }
    for class in classes {
        if let Some(condition) = class.unmet(&engine.properties) {
            return Some(format!(
                "it is not in class {}: {}",
                class.name,
                condition.refusal(&engine.properties)
            ));
        }
    }
    let need = request.needs.iter().find(|need| !need.holds(&engine.properties))?;
    Some(need.refusal(&engine.properties))
}
