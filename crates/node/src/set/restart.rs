//! Restarting a set.

use std::path::{Path, PathBuf};

use cpr_image::Bundle;
use cpr_types::{Connection, ConnectionEnd, Context, Error, ErrorKind, Links, Renewal, Result, inner_connections};

use super::{LIST, List, Listed, VERSION, begin, end};
use crate::directory::Directory;
use crate::engine::{Image, channels};
use crate::foreign::{EngineUse, fitting_engine};
use crate::gate::Gate;
use crate::job::{Job, JobSpec};
use crate::restart::RestartOptions;
use crate::state::{StateDir, read_json};

/// Restarts all jobs of a set in the background, or none; gives their names.
///
/// # Errors
/// [`ErrorKind::Busy`] where one of them runs; as [`crate::restart_image`] and [`crate::restart_bundle`] for any of
/// them: those that were started before it are ended.
pub fn restart_set(state: &StateDir, path: &Path) -> Result<Vec<String>> {
    let directory = Directory::open_existing(path)?;
    let missing = || Error::new(ErrorKind::NotFound, format!("{} is not a set", path.display()));
    let list: List = read_json(&directory, LIST)?.ok_or_else(missing)?;
    if list.set != VERSION {
        let text = format!(
            "{} is of version {}, and this reads version {VERSION}",
            path.display(),
            list.set
        );
        return Err(Error::new(ErrorKind::Incompatible, text));
    }
    let mut planned = Vec::new();
    for unit in &list.units {
        planned.push(plan(state, path, unit)?);
    }
    let options = RestartOptions {
        detach: true,
        ..RestartOptions::default()
    };
    let refuse = |unit: &Listed, error: Error| {
        let text = format!("restart job {} with the others", unit.job);
        Error::new(error.kind(), text).with_source(error)
    };
    let links = links(&list, &planned)?;
    // All are there before the first of them runs.
    let gate = Gate::new(links)?;
    let mut there: Vec<(Job, bool)> = Vec::new();
    let mut failed = None;
    for (number, plan) in planned.into_iter().enumerate() {
        match begin(state, plan.spec, &plan.image, &options, &gate) {
            Ok(job) => there.push(job),
            Err(error) => {
                failed = Some((number, error));
                break;
            }
        }
    }
    if let Some((number, error)) = failed.or_else(|| gate.await_all(None).err()) {
        gate.shut();
        for (job, _) in there.into_iter().filter(|(_, new)| *new) {
            job.discard();
        }
        return Err(match list.units.get(number) {
            Some(unit) => refuse(unit, error),
            None => error,
        });
    }
    let begun = gate.open()?;
    let failed = list
        .units
        .iter()
        .zip(begun)
        .find_map(|(unit, result)| Some((unit, result.err()?)));
    if let Some((unit, error)) = failed {
        for (job, new) in there {
            end(job, new)?;
        }
        return Err(refuse(unit, error));
    }
    Ok(list.units.into_iter().map(|unit| unit.job).collect())
}

/// One job of a set that is to be restarted.
pub(super) struct Planned {
    pub(super) spec: JobSpec,
    pub(super) image: PathBuf,
    /// Its connections to others of the set.
    pub(super) ends: Vec<ConnectionEnd>,
}

/// How the jobs of a set find each other again: at the addresses that they had.
pub(super) fn links(list: &List, planned: &[Planned]) -> Result<Option<Links>> {
    let lists: Vec<Vec<ConnectionEnd>> = planned.iter().map(|plan| plan.ends.clone()).collect();
    for ((unit, plan), inner) in list.units.iter().zip(planned).zip(inner_connections(&lists)) {
        if let Some(end) = plan.ends.iter().find(|end| !inner.contains(&end.connection)) {
            let Connection { local, remote } = end.connection;
            let text = format!(
                "the set's image of job {}: its connection from {local} to {remote} leads to no job of the set",
                unit.job
            );
            return Err(Error::new(ErrorKind::Damaged, text));
        }
    }
    let all: Vec<ConnectionEnd> = lists.into_iter().flatten().collect();
    if all.is_empty() {
        return Ok(None);
    }
    let mut renewals = Vec::new();
    for (number, end) in all.iter().enumerate() {
        let other = all[number..]
            .iter()
            .find(|other| other.connection == end.connection.reversed());
        renewals.extend(
            other
                .map(|other| Renewal::of(*end, *other, end.connection))
                .into_iter()
                .flatten(),
        );
    }
    let secret = secret()?;
    Ok(Some(Links { secret, renewals }))
}

pub(super) fn secret() -> Result<[u8; 32]> {
    let mut secret = [0u8; 32];
    let mut filled = 0;
    while filled < secret.len() {
        match rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(|| "make a secret"),
        }
    }
    Ok(secret)
}

/// Looks at everything that can be known before anything is started.
pub(super) fn plan(state: &StateDir, directory: &Path, unit: &Listed) -> Result<Planned> {
    let what = || format!("the set's image of job {}", unit.job);
    if Path::new(&unit.image).components().count() != 1 || unit.image.starts_with('.') {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{} is in no file of the set", what()),
        ));
    }
    let image = directory.join(&unit.image);
    match state.job(&unit.job) {
        Ok(job) if job.is_alive()? => {
            return Err(Error::new(ErrorKind::Busy, format!("job {} is running", unit.job)));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut spec = JobSpec {
        name: Some(unit.job.clone()),
        command: vec![unit.job.clone().into()],
        ..JobSpec::default()
    };
    let mut ends = Vec::new();
    let found = match Bundle::recognise(&image)? {
        Some(bundle) => {
            let record = bundle.record();
            fitting_engine(record, Some(&image))?;
            spec.command = record.command.iter().map(Into::into).collect();
            spec.directory = Some(record.directory.clone());
            spec.engine = Some(EngineUse {
                name: record.engine.clone(),
                version: record.version.clone(),
            });
            record.id.clone()
        }
        None => {
            let image = Image::open(&image)?;
            ends = channels(&image.manifest().inet_sockets)?;
            image.id().to_string()
        }
    };
    if found != unit.image_id {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{} is another one than was saved", what()),
        ));
    }
    Ok(Planned { spec, image, ends })
}
