//! `cpr context`: grids that have a name, one of which is chosen. They are kept in a file of the user's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cpr_types::{Context as _, Error, ErrorKind, Result};
use gridcpr::grid::Endpoint;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Access;
use crate::args::grid::{Context, ContextSet, ContextVerb};
use crate::output::{Output, Table, to_json};

/// What is known of a grid.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    grid: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    revoked: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    allow_plain_http: bool,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Contexts {
    chosen: Option<String>,
    grids: BTreeMap<String, Known>,
}

/// Where it is: below `XDG_CONFIG_HOME`, or `~/.config`; none where neither is known.
fn path() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    base.map(|base| base.join("gridcpr/contexts.json"))
}

fn load() -> Result<Contexts> {
    let Some(path) = path() else {
        return Ok(Contexts::default());
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
        Err(error) => return Err(error).context(|| format!("read {}", path.display())),
    };
    serde_json::from_str(&text).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("{} is not understood", path.display()))
            .with_source(error)
            .with_hint("put it right, or remove it and name the grids anew")
    })
}

/// Writes the file aside and moves it to its place.
fn store(contexts: &Contexts) -> Result<()> {
    let path = path().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "there is no place for the names of grids")
            .with_hint("set HOME or XDG_CONFIG_HOME")
    })?;
    let what = || format!("write {}", path.display());
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .context(what)?;
    let text = serde_json::to_vec_pretty(contexts)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode the names of grids").with_source(error))?;
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&aside)
        .context(what)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&aside, &path))
        .and_then(|()| File::open(directory)?.sync_all())
        .context(what)
}

/// How the chosen grid is reached; none where none is chosen.
pub(super) fn chosen() -> Result<Option<Access>> {
    let mut contexts = load()?;
    let Some(name) = contexts.chosen else { return Ok(None) };
    let known = contexts.grids.remove(&name).ok_or_else(|| unknown(&name))?;
    Ok(Some(Access {
        endpoint: known.grid.parse()?,
        ca: known.ca,
        certificate: known.certificate,
        key: known.key,
        revoked: known.revoked,
        token_file: known.token_file,
        allow_plain_http: known.allow_plain_http,
    }))
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no grid called {name:?}"))
        .with_hint("`cpr context` lists them; `cpr context set` names one")
}

/// `cpr context`
pub fn context(output: Output, args: Context) -> Result<u8> {
    let mut contexts = load()?;
    match args.verb {
        None => return list(output, &contexts),
        Some(ContextVerb::Use { name, .. }) => {
            if let Some(name) = name.as_ref().filter(|name| !contexts.grids.contains_key(*name)) {
                return Err(unknown(name));
            }
            contexts.chosen = name;
        }
        Some(ContextVerb::Set(set)) => {
            let (name, known) = described(set)?;
            contexts.grids.insert(name, known);
        }
        Some(ContextVerb::Rm { name }) => {
            contexts.grids.remove(&name).ok_or_else(|| unknown(&name))?;
            contexts.chosen = contexts.chosen.filter(|chosen| *chosen != name);
        }
    }
    store(&contexts)?;
    let chosen = contexts.chosen.clone();
    output.done(
        || json!({"context": chosen}),
        || match &contexts.chosen {
            Some(name) => format!("commands are for the grid {name}\n"),
            None => "commands are for the grid of this machine\n".to_string(),
        },
    )?;
    Ok(0)
}

/// What a user says of a grid, with paths that hold wherever a command is given.
fn described(set: ContextSet) -> Result<(String, Known)> {
    if set.name.is_empty() || set.name.len() > 64 || set.name.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{:?} cannot be the name of a grid", set.name),
        ));
    }
    let endpoint: Endpoint = set.grid.parse()?;
    let absolute = |path: Option<PathBuf>| {
        let found = path.map(std::path::absolute).transpose();
        found.context(|| "find the working directory")
    };
    let known = Known {
        grid: endpoint.to_string(),
        ca: absolute(set.ca)?,
        certificate: absolute(set.certificate)?,
        key: absolute(set.key)?,
        revoked: absolute(set.revoked)?,
        token_file: absolute(set.token_file)?,
        allow_plain_http: set.allow_plain_http,
    };
    Ok((set.name, known))
}

fn list(output: Output, contexts: &Contexts) -> Result<u8> {
    let grids = to_json(&contexts.grids)?;
    output.answer(
        || json!({"context": contexts.chosen, "grids": grids}),
        || {
            if output.is_quiet() {
                return contexts.grids.keys().map(|name| format!("{name}\n")).collect();
            }
            let mut table = Table::new(&["NAME", "GRID", "CHOSEN"], &[]);
            for (name, known) in &contexts.grids {
                let chosen = contexts.chosen.as_ref() == Some(name);
                table.row([
                    name.clone(),
                    known.grid.clone(),
                    if chosen { "yes" } else { "-" }.to_string(),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}
