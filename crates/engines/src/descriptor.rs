//! What is said of an engine, as a file of `engines.d` has it (GCA section 3.3).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::configuration::command;
use crate::engine::Unit;
use crate::property::{Properties, Values, first_bad, is_word};

/// The engines compiled in, best first.
const BUILT_IN: [&str; 6] = [
    include_str!("../builtin/native.toml"),
    include_str!("../builtin/criu.toml"),
    include_str!("../builtin/qemu.toml"),
    include_str!("../builtin/dmtcp.toml"),
    include_str!("../builtin/application.toml"),
    include_str!("../builtin/self-checkpointing.toml"),
];

/// How an engine is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The checkpointer of this program.
    Native,
    /// CRIU, by its own protocol.
    Criu,
    /// A virtual machine, by QEMU's monitor.
    Qemu,
    /// DMTCP, by its coordinator.
    Dmtcp,
    /// The program saves itself.
    Application,
    /// A program that speaks the protocol of `docs/engines.md`.
    External,
}

impl Driver {
    /// As descriptors write it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Native => "native",
            Driver::Criu => "criu",
            Driver::Qemu => "qemu",
            Driver::Dmtcp => "dmtcp",
            Driver::Application => "application",
            Driver::External => "external",
        }
    }
}

/// Who begins a checkpoint (GCA-CTS-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Anybody who asks.
    External,
    /// The engine or the program only.
    Own,
}

/// Where an image can be restarted (GCA-CTS-15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On any node that has the engine.
    Anywhere,
    /// On the node it was made on.
    Here,
}

/// Which images can be restarted (GCA-CTS-16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Images {
    /// Any.
    Any,
    /// The newest only.
    Newest,
}

/// What is said of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Descriptor {
    /// Its name, by which it is asked for and which its images carry.
    pub name: String,
    /// Its version, where the descriptor and not the engine itself knows it.
    #[serde(default)]
    pub version: Option<String>,
    /// What it is, in one line.
    #[serde(default)]
    pub description: String,
    /// How it is driven.
    pub driver: Driver,
    /// Who begins a checkpoint.
    #[serde(default = "external")]
    pub trigger: Trigger,
    /// Where an image can be restarted.
    #[serde(default = "anywhere")]
    pub restart: Place,
    /// Which images can be restarted.
    #[serde(default = "any")]
    pub images: Images,
    /// Classes it says it belongs to; it is refused where its properties do not bear that out.
    #[serde(default)]
    pub classes: Vec<String>,
    /// What it can do.
    #[serde(default)]
    pub properties: Properties,
    /// The program that is the engine, with its arguments. `%JOB%`, `%ROOT%`, `%IMAGE%` and `%JOB_DIRECTORY%` in them
    /// stand for the job's name, its root process, the directory of the engine's files and the job's own (GCA-CTS-24).
    #[serde(default)]
    pub program: Vec<String>,
    /// A program that is run in place of a job of this engine, with its arguments; those of the job come after
    /// (GCA-CTS-23). Placeholders are as in `program`.
    #[serde(default)]
    pub wrapper: Vec<String>,
    /// How a program is made to save itself.
    #[serde(default)]
    pub application: Option<Asks>,
    /// How long each step may take.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// The file it was read from; none for one that is compiled in.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// How long each step of an engine may take, seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deadlines {
    probe: u32,
    prepare: u32,
    stop: u32,
    checkpoint: u32,
    resume: u32,
    rebuild: u32,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            probe: 10,
            prepare: 30,
            stop: 30,
            checkpoint: 3600,
            resume: 30,
            rebuild: 3600,
        }
    }
}

impl Deadlines {
    pub(crate) fn probe(&self) -> Duration {
        Duration::from_secs(self.probe.into())
    }

    pub(crate) fn prepare(&self) -> Duration {
        Duration::from_secs(self.prepare.into())
    }

    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop.into())
    }

    pub(crate) fn checkpoint(&self) -> Duration {
        Duration::from_secs(self.checkpoint.into())
    }

    pub(crate) fn resume(&self) -> Duration {
        Duration::from_secs(self.resume.into())
    }

    pub(crate) fn rebuild(&self) -> Duration {
        Duration::from_secs(self.rebuild.into())
    }
}

/// How a program is made to save itself, and where it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Asks {
    /// This signal, by its number.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Or this command, whose success says that it is done.
    #[serde(default)]
    pub command: Vec<String>,
    /// Or the callbacks that it has registered with libgridcpr, which are told [`SAVE_NOTICE`].
    #[serde(default)]
    pub callback: bool,
    /// Where the program saves itself when it likes: it ends with this code to be started again.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// The directory its checkpoints are in.
    pub directory: String,
}

/// What makes a program save itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SaveOn {
    /// A signal to its root process.
    Signal(i32),
    /// A command.
    Command(Vec<OsString>),
    /// Callbacks of libgridcpr in its processes.
    Callback,
    /// Nobody but itself.
    Own,
}

/// What callbacks are told that are to save their program.
pub const SAVE_NOTICE: &str = "checkpoint";

impl Asks {
    /// Which of them it is.
    pub(crate) fn on(&self, trigger: Trigger) -> Result<SaveOn> {
        let wrong = |what: &str| Err(Error::new(ErrorKind::Usage, format!("the table `application` {what}")));
        match (trigger, self.signal, &self.command[..], self.callback) {
            (Trigger::Own, None, [], false) => Ok(SaveOn::Own),
            (Trigger::Own, ..) => wrong("says how a program is asked, and the trigger is its own"),
            _ if self.exit_code.is_some() => {
                wrong("has an exit code, which takes a program that is the trigger itself")
            }
            (_, Some(signal @ 1..=64), [], false) => Ok(SaveOn::Signal(signal)),
            (_, None, [_, ..], false) => Ok(SaveOn::Command(self.command.iter().map(OsString::from).collect())),
            (_, None, [], true) => Ok(SaveOn::Callback),
            _ => wrong("has to have either a signal from 1 to 64, or a command, or `callback = true`"),
        }
    }
}

/// Puts what is known of a unit in place of `%JOB%`, `%ROOT%`, `%IMAGE%` and `%JOB_DIRECTORY%`.
pub fn fill(template: &[OsString], unit: &Unit) -> Vec<OsString> {
    let values: [(&[u8], Vec<u8>); 4] = [
        (b"%JOB%", unit.job.clone().into_bytes()),
        (b"%ROOT%", unit.root.to_string().into_bytes()),
        (b"%IMAGE%", unit.files.as_os_str().as_bytes().to_vec()),
        (b"%JOB_DIRECTORY%", unit.job_directory.as_os_str().as_bytes().to_vec()),
    ];
    let fill = |word: &OsString| {
        let mut rest = word.as_bytes();
        let mut filled = Vec::new();
        while let Some((first, after)) = rest.split_first() {
            match values.iter().find(|(name, _)| rest.starts_with(name)) {
                Some((name, value)) => {
                    filled.extend_from_slice(value);
                    rest = &rest[name.len()..];
                }
                None => {
                    filled.push(*first);
                    rest = after;
                }
            }
        }
        OsString::from_vec(filled)
    };
    template.iter().map(fill).collect()
}

fn external() -> Trigger {
    Trigger::External
}

fn anywhere() -> Place {
    Place::Anywhere
}

fn any() -> Images {
    Images::Any
}

impl Descriptor {
    /// A descriptor as a file of `engines.d` has it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the text is no TOML, or no descriptor.
    pub fn parse(text: &str) -> Result<Descriptor> {
        let mut descriptor: Descriptor = toml::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("not a descriptor: {}", error.message()))
                .with_hint("see docs/engines.md")
        })?;
        let wrong = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if !is_word(&descriptor.name) {
            return wrong(format!("{:?} cannot be the name of an engine", descriptor.name));
        }
        if let Some(bad) = first_bad(&descriptor.properties) {
            return wrong(format!(
                "engine {}: {bad:?} can be neither a property nor a word of one",
                descriptor.name
            ));
        }
        match (
            descriptor.driver,
            descriptor.program.is_empty(),
            &descriptor.application,
        ) {
            (Driver::External, true, _) => return wrong(format!("engine {}: it has no program", descriptor.name)),
            (Driver::Native | Driver::Application | Driver::Dmtcp, false, _) => {
                return wrong(format!("engine {}: its driver runs no program", descriptor.name));
            }
            (Driver::Application, _, Some(asks)) => drop(asks.on(descriptor.trigger)?),
            (Driver::Application, _, None) => {
                return wrong(format!("engine {}: it has no table `application`", descriptor.name));
            }
            (_, _, Some(_)) => {
                return wrong(format!(
                    "engine {}: its driver has no table `application`",
                    descriptor.name
                ));
            }
            _ => {}
        }
        for (key, value) in descriptor.implied() {
            if descriptor.properties.contains_key(key) {
                return wrong(format!(
                    "engine {}: the property {key} follows from what else the descriptor says",
                    descriptor.name
                ));
            }
            descriptor
                .properties
                .insert(key.to_string(), Values::One(value.to_string()));
        }
        Ok(descriptor)
    }

    pub(crate) fn built_in() -> Result<Vec<Descriptor>> {
        BUILT_IN.into_iter().map(Descriptor::parse).collect()
    }

    /// Properties that follow from the fields, so that conditions can speak of them.
    fn implied(&self) -> [(&'static str, &'static str); 4] {
        [
            ("driver", self.driver.name()),
            (
                "trigger",
                match self.trigger {
                    Trigger::External => "external",
                    Trigger::Own => "own",
                },
            ),
            (
                "restart",
                match self.restart {
                    Place::Anywhere => "anywhere",
                    Place::Here => "here",
                },
            ),
            (
                "images",
                match self.images {
                    Images::Any => "any",
                    Images::Newest => "newest",
                },
            ),
        ]
    }

    /// The engine's program with its arguments; `otherwise` where the descriptor names none. A program whose name has a
    /// `/` in it and does not begin with one is looked for beside the descriptor.
    pub(crate) fn command(&self, otherwise: &[&str]) -> Vec<OsString> {
        match self.program.is_empty() {
            true => otherwise.iter().map(OsString::from).collect(),
            false => self.beside(&self.program),
        }
    }

    /// What comes before the command of a job; nothing where it is run as it is.
    pub fn wrapper(&self) -> Vec<OsString> {
        self.beside(&self.wrapper)
    }

    fn beside(&self, words: &[String]) -> Vec<OsString> {
        command(words, self.file.as_deref())
    }

    /// The directory in which programs keep checkpoints that they make themselves.
    pub fn own_directory(&self, unit: &Unit) -> Option<PathBuf> {
        let asks = self.application.as_ref()?;
        Some(PathBuf::from(fill(&[OsString::from(&asks.directory)], unit).remove(0)))
    }

    /// Names of the classes whose conditions its properties meet.
    pub fn member_of<'a>(&self, classes: &'a [Class]) -> Vec<&'a str> {
        let member = |class: &&Class| class.unmet(&self.properties).is_none();
        classes.iter().filter(member).map(|class| class.name.as_str()).collect()
    }

    /// Requires that it has what the classes demand that it says it belongs to (GCA-CLASS-4).
    pub(crate) fn require_claims(&self, classes: &[Class]) -> Result<()> {
        for claim in &self.classes {
            let Some(class) = classes.iter().find(|class| class.name == *claim) else {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("engine {}: there is no class {claim}", self.name),
                ));
            };
            if let Some(condition) = class.unmet(&self.properties) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "engine {} cannot be in class {claim}, which requires {condition}: {}",
                        self.name,
                        condition.refusal(&self.properties)
                    ),
                ));
            }
        }
        Ok(())
    }
}
