//! Bringing a generation to another place.

use std::fs::File;
use std::path::Path;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::background::Progress;
use crate::directory;
use crate::part::{self, PartInfo, file_name};
use crate::store::{GenerationState, Options, Store};
use crate::variable::Variable;

/// Copies a file, durably.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).context(|| format!("open file {}", from.display()))?;
    let mut pending = directory::Pending::create(to)?;
    std::io::copy(&mut source, &mut pending.file).context(|| format!("write file {}", to.display()))?;
    pending.publish()
}

impl Store {
    /// Copies a complete generation to another base directory, under the same name and number. It needs no other
    /// generation there. Every byte is compared with its hash on the way.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]; [`ErrorKind::Damaged`] for a generation that is not sound. It does not count there
    /// then.
    pub fn transfer(&self, generation: u64, base: &Path) -> Result<()> {
        let info = self.generation(generation)?;
        if info.state != GenerationState::Complete {
            let text = format!("generation {generation} of {} is not complete", self.options.name);
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        let there = Store::look(Options::new(base, &self.options.name))?;
        if there.is_complete(generation) {
            let text = format!("generation {generation} is in {} already", there.directory.display());
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let place = there.place(generation);
        directory::create(&place)?;
        for rank in 0..info.parts.1 {
            let mut part = self.part(generation, rank)?;
            let old = part.info().clone();
            let mut contents = Vec::with_capacity(old.variables.len());
            for (index, variable) in old.variables.iter().enumerate() {
                let mut data = Vec::new();
                let room = usize::try_from(variable.bytes)
                    .ok()
                    .filter(|&n| data.try_reserve_exact(n).is_ok());
                let room = room.ok_or_else(|| {
                    let text = format!(
                        "variable {} has {} bytes: too many for this machine",
                        variable.name, variable.bytes
                    );
                    Error::new(ErrorKind::NoSpace, text)
                })?;
                data.resize(room, 0);
                part.read(index, 0, &mut data)?;
                contents.push(data);
            }
            let variables: Vec<Variable<'_>> = old
                .variables
                .iter()
                .zip(&contents)
                .map(|(variable, data)| Variable {
                    name: &variable.name,
                    element: variable.element,
                    shape: &variable.shape,
                    order: variable.order,
                    data,
                })
                .collect();
            for file in &old.files {
                let from = crate::files::verify(&self.files_of(generation, rank), file)?;
                let to = there.files_of(generation, rank);
                directory::create(&to)?;
                copy(&from, &to.join(&file.name))?;
                crate::files::verify(&to, file)?;
            }
            let new = PartInfo {
                little_endian: cfg!(target_endian = "little"),
                attributes: info.attributes.clone(),
                variables: Vec::new(),
                ..old
            };
            part::write(
                &place.join(file_name(rank)),
                new,
                &variables,
                None,
                &Progress::default(),
            )?;
        }
        directory::sync(&there.directory)?;
        there.declare_complete(generation, info.parts.1)
    }
}
