//! `cpr app`: checkpoints that programs write themselves.

mod export;
mod write;

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::app::{GenerationInfo, GenerationState, Options, Store};
use serde_json::json;

use crate::args::app::{App, AppStore, AppVerb};
use crate::output::{Output, clean, size};
use write::{Choice, Contents};

pub fn app(output: Output, args: App) -> Result<u8> {
    match args.verb {
        AppVerb::List { place, attributes } => list(output, &place, &attributes),
        AppVerb::Write {
            place,
            variables,
            files,
            attributes,
            rank,
            ranks,
            session,
            keep,
            lifetime,
        } => {
            let contents = Contents {
                variables: &variables,
                files: &files,
                attributes: &attributes,
            };
            let choice = Choice {
                rank,
                ranks,
                session,
                keep,
                lifetime,
            };
            write::write(output, &place, &contents, choice)
        }
        AppVerb::Restore {
            place,
            generation,
            rank,
            output: directory,
        } => {
            let store = store(&place)?;
            let generation = match generation {
                Some(one) => sound(&store, one)?,
                None => newest_sound(output, &store)?,
            };
            let written = export::restore(&store, generation, rank, &directory)?;
            output.done(
                || json!({"generation": generation, "rank": rank, "directory": directory, "files": written}),
                || {
                    let place = clean(&directory.display().to_string()).into_owned();
                    format!("{place}: {} of generation {generation}\n", written.join(", "))
                },
            )
        }
        AppVerb::Update {
            place,
            generation,
            attributes,
            lifetime,
        } => write::update(output, &store(&place)?, generation, &attributes, lifetime),
        AppVerb::Inspect { place, generation } => inspect(output, &place, generation),
        AppVerb::Verify { place, generation } => verify(output, &place, generation),
        AppVerb::Export {
            place,
            variable,
            generation,
            rank,
            raw,
            npz: _,
            output: file,
        } => {
            let (store, generation) = find(&place, generation)?;
            let mut part = store.part(generation, rank)?;
            let bytes = match &variable {
                Some(name) => export::variable(&mut part, name, raw, &file)?,
                None => export::archive(&mut part, &file)?,
            };
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
        AppVerb::Free {
            place,
            generation,
            all: _,
        } => {
            let mut store = store(&place)?;
            match generation {
                Some(one) => store.free(one)?,
                None => store.forget()?,
            }
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

/// A generation in which nothing is altered or missing.
fn sound(store: &Store, generation: u64) -> Result<u64> {
    let problems = store.validate(generation)?;
    if problems.is_empty() {
        return Ok(generation);
    }
    let text = format!("generation {generation} is not sound: {}", problems.join("; "));
    Err(Error::new(ErrorKind::Damaged, text))
}

/// The newest of them; says which newer ones are passed over.
fn newest_sound(output: Output, store: &Store) -> Result<u64> {
    let all = store.generations()?;
    let mut last = Error::new(ErrorKind::NotFound, "no generation is complete");
    for info in all
        .iter()
        .rev()
        .filter(|info| info.state != GenerationState::Incomplete)
    {
        match sound(store, info.generation) {
            Ok(generation) => return Ok(generation),
            Err(error) => {
                output.note(error.chain());
                last = error;
            }
        }
    }
    Err(last)
}

fn state(info: &GenerationInfo) -> &'static str {
    match info.state {
        GenerationState::Complete => "complete",
        GenerationState::Incomplete => "incomplete",
        GenerationState::Damaged => "damaged",
    }
}

fn list(output: Output, place: &AppStore, attributes: &[(String, String)]) -> Result<()> {
    let wanted: Vec<(&str, &str)> = attributes
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let all = store(place)?.find(&wanted)?;
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
                        "little_endian": part.little_endian, "session": part.session, "variables": variables,
                        "files": part.files})
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
                for file in &part.files {
                    text.push_str(&format!("  file {}, {}\n", clean(&file.name), size(file.bytes)));
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
