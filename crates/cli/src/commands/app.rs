//! `cpr app`: checkpoints that programs write themselves.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cpr_app::{GenerationInfo, GenerationState, Options, Store, npy};
use cpr_types::{Context, Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{App, AppStore, AppVerb};
use crate::output::{Output, clean, size};

/// Bytes of a variable exported at a time; of every element type a multiple.
const PIECE: usize = 1 << 20;

pub fn app(output: Output, args: App) -> Result<u8> {
    match args.verb {
        AppVerb::List(place) => list(output, &place),
        AppVerb::Inspect { place, generation } => inspect(output, &place, generation),
        AppVerb::Verify { place, generation } => verify(output, &place, generation),
        AppVerb::Export {
            place,
            variable,
            generation,
            rank,
            raw,
            output: file,
        } => {
            let (store, generation) = find(&place, generation)?;
            let bytes = export(&store, generation, rank, &variable, raw, &file)?;
            output.done(
                || json!({"generation": generation, "rank": rank, "variable": variable, "file": file, "bytes": bytes}),
                || {
                    format!(
                        "{}: {} of generation {generation}\n",
                        clean(&file.display().to_string()),
                        size(bytes)
                    )
                },
            )
        }
        AppVerb::Free { place, generation } => {
            store(&place)?.free(generation)?;
            output.done(|| json!({"freed": generation}), String::new)
        }
        AppVerb::Transfer { place, generation, to } => {
            let (store, generation) = find(&place, generation)?;
            store.transfer(generation, &to)?;
            output.done(|| json!({"generation": generation, "to": to}), String::new)
        }
    }?;
    Ok(0)
}

fn store(place: &AppStore) -> Result<Store> {
    let store = Store::look(Options::new(&place.base, &place.name))?;
    if store.generations()?.is_empty() {
        let text = format!("there is no checkpoint {} in {}", place.name, place.base.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    Ok(store)
}

/// The generation that was asked for, or the newest complete one.
fn find(place: &AppStore, generation: Option<u64>) -> Result<(Store, u64)> {
    let store = store(place)?;
    let newest = || -> Result<u64> {
        let all = store.generations()?;
        let complete = all.iter().rev().find(|info| info.state == GenerationState::Complete);
        let none = || {
            Error::new(
                ErrorKind::NotFound,
                format!("no generation of {} is complete", place.name),
            )
        };
        Ok(complete.ok_or_else(none)?.generation)
    };
    let generation = generation.map_or_else(newest, Ok)?;
    Ok((store, generation))
}

fn state(info: &GenerationInfo) -> &'static str {
    match info.state {
        GenerationState::Complete => "complete",
        GenerationState::Incomplete => "incomplete",
        GenerationState::Damaged => "damaged",
    }
}

fn list(output: Output, place: &AppStore) -> Result<()> {
    let all = store(place)?.generations()?;
    output.answer(
        || json!(all),
        || {
            let mut text = format!(
                "{:>10}  {:10}  {:>9}  {:>10}  NEEDS\n",
                "GENERATION", "STATE", "PARTS", "SIZE"
            );
            for info in &all {
                let needs: Vec<String> = info.needs.iter().map(u64::to_string).collect();
                text.push_str(&format!(
                    "{:>10}  {:10}  {:>9}  {:>10}  {}\n",
                    info.generation,
                    state(info),
                    format!("{}/{}", info.parts.0, info.parts.1),
                    size(info.bytes),
                    if needs.is_empty() {
                        "-".to_owned()
                    } else {
                        needs.join(",")
                    }
                ));
            }
            text
        },
    )
}

fn inspect(output: Output, place: &AppStore, generation: Option<u64>) -> Result<()> {
    let (store, generation) = find(place, generation)?;
    let info = store.generation(generation)?;
    let mut parts = Vec::new();
    for rank in 0..info.parts.1 {
        parts.push(store.part(generation, rank)?.info().clone());
    }
    output.answer(
        || {
            let described: Vec<_> = parts
                .iter()
                .map(|part| {
                    let variables: Vec<_> = part
                        .variables
                        .iter()
                        .map(|v| json!({"name": v.name, "element": v.element, "shape": v.shape, "order": v.order, "bytes": v.bytes}))
                        .collect();
                    json!({"rank": part.rank, "host": part.host, "created_ns": part.created_ns,
                        "little_endian": part.little_endian, "session": part.session, "variables": variables})
                })
                .collect();
            json!({"generation": info, "parts": described})
        },
        || {
            let mut text = format!("generation {generation}: {}, {}\n", state(&info), size(info.bytes));
            for (key, value) in &info.attributes {
                text.push_str(&format!("  {} = {}\n", clean(key), clean(value)));
            }
            for part in &parts {
                text.push_str(&format!("part {} of {}, written on {}\n", part.rank, part.ranks, clean(&part.host)));
                for variable in &part.variables {
                    let shape: Vec<String> = variable.shape.iter().map(u64::to_string).collect();
                    text.push_str(&format!(
                        "  {}: {} [{}], {}\n",
                        clean(&variable.name),
                        variable.element.name(),
                        shape.join(", "),
                        size(variable.bytes)
                    ));
                }
            }
            text
        },
    )
}

fn verify(output: Output, place: &AppStore, generation: Option<u64>) -> Result<()> {
    let store = store(place)?;
    let wanted = match generation {
        Some(one) => vec![one],
        None => store.generations()?.iter().map(|info| info.generation).collect(),
    };
    let mut checked = Vec::new();
    for number in wanted {
        // Being written, perhaps: no fault unless it was asked for.
        let unfinished = generation.is_none() && store.generation(number)?.state == GenerationState::Incomplete;
        if !unfinished {
            checked.push((number, store.validate(number)?));
        }
    }
    let bad: Vec<&(u64, Vec<String>)> = checked.iter().filter(|(_, problems)| !problems.is_empty()).collect();
    if let Some((generation, problems)) = bad.first() {
        let text = format!("generation {generation} is not sound: {}", problems.join("; "));
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    let numbers: Vec<u64> = checked.iter().map(|(generation, _)| *generation).collect();
    output.done(
        || json!({"sound": numbers}),
        || {
            numbers
                .iter()
                .map(|number| format!("generation {number} is sound\n"))
                .collect()
        },
    )
}

/// Writes a variable to a file that must not be there yet.
fn export(store: &Store, generation: u64, rank: u32, variable: &str, raw: bool, path: &Path) -> Result<u64> {
    let mut part = store.part(generation, rank)?;
    let index = part.info().variables.iter().position(|v| v.name == variable);
    let missing = || {
        Error::new(
            ErrorKind::NotFound,
            format!("generation {generation} has no variable {variable}"),
        )
    };
    let index = index.ok_or_else(missing)?;
    let info = part.info().variables[index].clone();
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .context(what)?;
    let mut write = || -> Result<()> {
        if !raw {
            file.write_all(&npy::header(&info)).context(what)?;
        }
        let mut buffer = vec![0u8; PIECE];
        let mut at = 0;
        while at < info.bytes {
            let length = PIECE.min((info.bytes - at) as usize);
            part.read(index, at, &mut buffer[..length])?;
            file.write_all(&buffer[..length]).context(what)?;
            at += length as u64;
        }
        file.sync_all().context(what)
    };
    if let Err(error) = write() {
        // Half an array must not be taken for one.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(info.bytes)
}
