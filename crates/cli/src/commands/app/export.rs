//! `cpr app export`, `cpr app restore`: variables and files of a generation become files of their own.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::app::part::Part;
use gridcpr::app::{ElementType, Store, VariableInfo, files, npy, npz};

/// Bytes of a variable read at a time; of every element type a multiple.
const PIECE: usize = 1 << 20;

/// A new file that only its owner may read.
fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .context(|| format!("write {}", path.display()))
}

/// Has a file written that must not be there yet. Half of it must not be taken for a whole: it is removed then.
fn whole<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let mut file = create(path)?;
    let written = write(&mut file).and_then(|written| {
        file.sync_all().context(|| format!("sync file {}", path.display()))?;
        Ok(written)
    });
    if written.is_err() {
        // What cannot be removed is named by the error all the same.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Gives a variable's bytes to `to`, piece by piece.
fn pieces(part: &mut Part, index: usize, to: &mut npz::Sink<'_>) -> Result<()> {
    let bytes = part.info().variables.get(index).map_or(0, |variable| variable.bytes);
    let mut buffer = vec![0u8; PIECE];
    let mut at = 0;
    while at < bytes {
        let length = PIECE.min((bytes - at) as usize);
        part.read(index, at, &mut buffer[..length])?;
        to(&buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Writes a variable to a file; gives its length.
pub fn variable(part: &mut Part, name: &str, raw: bool, path: &Path) -> Result<u64> {
    let index = part.info().variables.iter().position(|v| v.name == name);
    let missing = || {
        let text = format!("generation {} has no variable {name}", part.info().generation);
        Error::new(ErrorKind::NotFound, text)
    };
    let index = index.ok_or_else(missing)?;
    let info = part.info().variables[index].clone();
    let what = || format!("write {}", path.display());
    whole(path, |file| {
        if !raw {
            file.write_all(&npy::header(&info)).context(what)?;
        }
        pieces(part, index, &mut |piece| file.write_all(piece).context(what))
    })?;
    Ok(info.bytes)
}

/// Writes all variables of a part as an archive; gives their length.
pub fn archive(part: &mut Part, path: &Path) -> Result<u64> {
    let variables: Vec<VariableInfo> = part.info().variables.clone();
    whole(path, |file| {
        let mut archive = npz::Archive::new(file);
        for (index, info) in variables.iter().enumerate() {
            archive.add(&format!("{}.npy", info.name), |to| {
                to(&npy::header(info))?;
                pieces(part, index, to)
            })?;
        }
        archive.finish().map(drop)
    })?;
    Ok(variables.iter().map(|info| info.bytes).sum())
}

/// Writes all variables and files of a rank into a new directory: arrays as files of numpy, bytes as they are.
pub fn restore(store: &Store, generation: u64, rank: u32, directory: &Path) -> Result<Vec<String>> {
    let mut part = store.part(generation, rank)?;
    let mut plan = Vec::new();
    for info in &part.info().variables {
        let raw = info.element == ElementType::Bytes;
        let name = if raw {
            info.name.clone()
        } else {
            format!("{}.npy", info.name)
        };
        files::check_name(&name).map_err(|error| {
            let text = format!("variable {} cannot be a file", info.name);
            Error::new(ErrorKind::Unsupported, text)
                .with_source(error)
                .with_hint("`cpr app export` writes it under another name")
        })?;
        plan.push((info.name.clone(), name, raw));
    }
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .context(|| format!("make directory {}", directory.display()))?;
    let mut written = Vec::new();
    for (name, file, raw) in plan {
        variable(&mut part, &name, raw, &directory.join(&file))?;
        written.push(file);
    }
    for file in part.info().files.clone() {
        let mut source = File::open(store.file_of(generation, rank, &file.name)?)
            .context(|| format!("open file {} of generation {generation}", file.name))?;
        let path = directory.join(&file.name);
        whole(&path, |to| {
            std::io::copy(&mut source, to)
                .map(drop)
                .context(|| format!("write {}", path.display()))
        })?;
        written.push(file.name);
    }
    Ok(written)
}
