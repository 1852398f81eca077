//! Properties: what an engine can do, as keys with one or several words each, and conditions on them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest key or word.
const LONGEST: usize = 64;

/// The words of one property: `"yes"`, or `["close", "keep"]` where several hold at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One word.
    One(String),
    /// Several words.
    Many(Vec<String>),
}

impl Values {
    /// All words.
    pub fn words(&self) -> &[String] {
        match self {
            Values::One(word) => std::slice::from_ref(word),
            Values::Many(words) => words,
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(","))
    }
}

/// Properties by key (GCA-CTS-19).
pub type Properties = BTreeMap<String, Values>;

/// That a property has a word among its own: `tcp=keep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The property.
    pub key: String,
    /// The word.
    pub value: String,
}

impl Condition {
    /// Whether the properties meet it.
    pub fn holds(&self, properties: &Properties) -> bool {
        let words = properties.get(&self.key).map(Values::words).unwrap_or_default();
        words.contains(&self.value)
    }

    /// Why the properties do not meet it: what they say instead.
    pub fn refusal(&self, properties: &Properties) -> String {
        match properties.get(&self.key) {
            Some(values) => format!("it has {}={values}, not {}", self.key, self.value),
            None => format!("it has no property {}", self.key),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if is_word(key) && is_word(value) => Ok(Condition {
                key: key.to_string(),
                value: value.to_string(),
            }),
            _ => Err("write PROPERTY=VALUE, for example threads=yes".to_string()),
        }
    }
}

/// Whether this can be a key, a word or a name: 1 to 64 letters, digits, `.`, `_`, `-`, `+`, not beginning with `.` or
/// `-`.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte))
        && !text.starts_with(['.', '-'])
}

/// The first key or word that can be none.
pub(crate) fn first_bad(properties: &Properties) -> Option<&str> {
    let texts = properties
        .iter()
        .flat_map(|(key, values)| std::iter::once(key).chain(values.words()));
    texts.map(String::as_str).find(|text| !is_word(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let properties: Properties = [
            ("threads".to_string(), Values::One("yes".to_string())),
            (
                "tcp".to_string(),
                Values::Many(vec!["close".to_string(), "keep".to_string()]),
            ),
        ]
        .into();
        let condition = |text: &str| text.parse::<Condition>().unwrap();
        assert!(condition("threads=yes").holds(&properties));
        assert!(condition("tcp=keep").holds(&properties));
        assert!(!condition("tcp=drop").holds(&properties));
        assert!(!condition("gpu=yes").holds(&properties));
        assert_eq!(
            condition("tcp=drop").refusal(&properties),
            "it has tcp=close,keep, not drop"
        );
        assert_eq!(condition("gpu=yes").refusal(&properties), "it has no property gpu");
        for bad in ["", "threads", "=yes", "threads=", "a b=c", "-a=b", "a=b=c"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }
}
