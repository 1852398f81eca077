//! Classes: names for properties that their members have (GCA-CLASS-1).

use std::collections::BTreeMap;

use cpr_types::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::property::{Condition, Properties, is_word};

/// The classes every installation has.
const BUILT_IN: &str = include_str!("../builtin/classes.toml");

/// A name for a set of conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// What it stands for, in one line.
    pub description: String,
    /// All of them hold for every member.
    pub conditions: Vec<Condition>,
}

/// A file of `classes.d`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    description: String,
    requires: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct BuiltIn {
    class: Vec<Written>,
}

impl Class {
    /// A class as a file of `classes.d` has it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the text is no TOML, or no class.
    pub fn parse(text: &str) -> Result<Class> {
        let written: Written = toml::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("not a class: {}", error.message())).with_hint("see docs/engines.md")
        })?;
        Class::of(written)
    }

    pub(crate) fn built_in() -> Result<Vec<Class>> {
        let written: BuiltIn = toml::from_str(BUILT_IN)
            .map_err(|error| Error::new(ErrorKind::Internal, "read the built-in classes").with_source(error))?;
        written.class.into_iter().map(Class::of).collect()
    }

    fn of(written: Written) -> Result<Class> {
        let wrong = |what: String| Error::new(ErrorKind::Usage, what);
        if !is_word(&written.name) {
            return Err(wrong(format!("{:?} cannot be the name of a class", written.name)));
        }
        if written.requires.is_empty() {
            return Err(wrong(format!("class {} requires nothing", written.name)));
        }
        let condition = |(key, value): (String, String)| {
            format!("{key}={value}")
                .parse()
                .map_err(|why| wrong(format!("class {}: {key} = {value:?}: {why}", written.name)))
        };
        Ok(Class {
            conditions: written.requires.into_iter().map(condition).collect::<Result<_>>()?,
            name: written.name,
            description: written.description,
        })
    }

    /// The first condition that the properties do not meet; none for those of a member.
    pub fn unmet(&self, properties: &Properties) -> Option<&Condition> {
        self.conditions.iter().find(|condition| !condition.holds(properties))
    }
}
