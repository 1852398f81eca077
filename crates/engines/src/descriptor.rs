//! What is said of an engine, as a file of `engines.d` has it (GCA section 3.3).

use std::path::PathBuf;

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::property::{Properties, Values, first_bad, is_word};

/// The engines compiled in, best first.
const BUILT_IN: [&str; 1] = [include_str!("../builtin/native.toml")];

/// How an engine is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The checkpointer of this program.
    Native,
}

impl Driver {
    /// As descriptors write it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Native => "native",
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
    /// The file it was read from; none for one that is compiled in.
    #[serde(skip)]
    pub file: Option<PathBuf>,
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
