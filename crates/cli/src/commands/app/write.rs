//! `cpr app write`, `cpr app update`: what changes a checkpoint.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::app::{ElementType, Options, Order, Store, Variable, npy};
use serde_json::json;

use crate::args::app::AppStore;
use crate::output::{Output, size};

/// What is written, and how.
pub struct Contents<'a> {
    pub variables: &'a [(String, String)],
    pub files: &'a [PathBuf],
    pub attributes: &'a [(String, String)],
}

/// How the store is opened; the base directory and the rest are as they are for programs.
pub struct Choice {
    pub rank: u32,
    pub ranks: u32,
    pub session: Option<String>,
    pub keep: Option<u32>,
    pub lifetime: Option<Duration>,
}

pub fn write(output: Output, place: &AppStore, contents: &Contents<'_>, choice: Choice) -> Result<()> {
    let mut options = Options::from_environment(&place.base, &place.name)?;
    options.rank = choice.rank;
    options.ranks = choice.ranks;
    options.keep = choice.keep.or(options.keep);
    options.lifetime = choice.lifetime.or(options.lifetime);
    options.session = choice.session.unwrap_or(options.session);
    let mut arrays = Vec::with_capacity(contents.variables.len());
    for (name, path) in contents.variables {
        arrays.push((name, array(Path::new(path))?));
    }
    let mut store = Store::open(options)?;
    for (key, value) in contents.attributes {
        store.set_attribute(key, value);
    }
    for path in contents.files {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            let text = format!("{} has no name that a file in a checkpoint can have", path.display());
            Error::new(ErrorKind::Usage, text)
        })?;
        copy(path, &store.route(name)?)?;
    }
    let variables: Vec<Variable<'_>> = arrays
        .iter()
        .map(|(name, array)| Variable {
            name,
            element: array.element,
            shape: &array.shape,
            order: array.order,
            data: &array.data,
        })
        .collect();
    let written = store.write(&variables)?;
    output.done(
        || json!(written),
        || {
            let state = if written.complete {
                "complete"
            } else {
                "parts are missing yet"
            };
            format!("generation {}: {}, {state}\n", written.generation, size(written.bytes))
        },
    )
}

pub fn update(
    output: Output,
    store: &Store,
    generation: u64,
    attributes: &[(String, String)],
    lifetime: Option<Duration>,
) -> Result<()> {
    if attributes.is_empty() && lifetime.is_none() {
        let error = Error::new(ErrorKind::Usage, "nothing is to be changed");
        return Err(error.with_hint("give --attribute or --lifetime"));
    }
    let pairs: Vec<(&str, &str)> = attributes
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    store.update(generation, &pairs, lifetime)?;
    output.done(|| json!({"updated": generation}), String::new)
}

/// What a file holds, as a variable.
fn array(path: &Path) -> Result<npy::Array> {
    let what = || format!("read file {}", path.display());
    let bytes = std::fs::read(path).context(what)?;
    match npy::parse(&bytes) {
        Ok(Some(array)) => Ok(array),
        Ok(None) => Ok(npy::Array {
            element: ElementType::Bytes,
            shape: vec![bytes.len() as u64],
            order: Order::C,
            data: bytes,
        }),
        Err(error) => Err(Error::new(error.kind(), what()).with_source(error)),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).context(|| format!("open file {}", from.display()))?;
    let what = || format!("write file {}", to.display());
    let mut target = File::create_new(to).context(what)?;
    std::io::copy(&mut source, &mut target).map(drop).context(what)
}
