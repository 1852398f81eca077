//! Making the processes of a job.

use std::collections::{HashMap, HashSet};

use cpr_image::model::{Manifest, Mapping, Process};
use cpr_kernel::batch::Batch;
use cpr_types::{Context, Result};

use super::identity::Rights;
use super::opened::elsewhere;
use super::plan::Step;
use super::space::{Sources, UnderWay};
use super::spaces::{Inside, Spaces};
use super::stub::Workshop;
use super::terminals::take_terminal;
use super::{address_space, host_names, inherit, living, mounts, plan, space, time_namespaces, users};
use crate::files::RestoreContext;
use crate::views::Views;

/// Whose memory each stub has: its own once that is rebuilt, until then what it was born with, if anything.
#[derive(Default)]
pub(super) struct Built(HashMap<i32, i32>);

impl Built {
    /// To be called before `by` makes `child`: gives `by` its memory if the two have pages in common.
    pub(super) fn before_birth(
        &mut self,
        workshop: &Workshop,
        manifest: &Manifest,
        child: i32,
        by: i32,
        sources: &Sources<'_>,
    ) -> Result<()> {
        let find = |pid: i32| living(manifest).find(|process| process.pid == pid);
        if let (Some(parent), Some(child)) = (find(by), find(child))
            && self.0.get(&by) != Some(&by)
            && inherit::is_worth_it(address_space(manifest, parent)?, address_space(manifest, child)?)
            // Files of mount namespaces are there when all processes are.
            && elsewhere(manifest, address_space(manifest, parent)?).is_empty()
            && let Some(under_way) = self.rebuild(workshop, manifest, parent, |_| false, sources)?
        {
            under_way.finish(workshop)?;
        }
        if let Some(owner) = self.0.get(&by).copied() {
            self.0.insert(child, owner);
        }
        Ok(())
    }

    /// The address spaces of processes that have nothing of their memory so far, nor anything of another's.
    pub(super) fn untouched(&self, manifest: &Manifest) -> HashSet<usize> {
        living(manifest)
            .filter(|process| !self.0.contains_key(&process.pid))
            // For calls of the kernel to wait for a page takes rights outside.
            .filter(|process| process.user_namespace.is_none())
            .filter_map(|process| process.address_space.map(|id| id.index()))
            .collect()
    }

    /// Gives a process its memory, unless it has it; mappings that `stays_empty` tells of get no pages. Gives what the
    /// process is still at.
    pub(super) fn rebuild(
        &mut self,
        workshop: &Workshop,
        manifest: &Manifest,
        process: &Process,
        stays_empty: fn(&Mapping) -> bool,
        sources: &Sources<'_>,
    ) -> Result<Option<UnderWay>> {
        let owner = self.0.insert(process.pid, process.pid);
        if owner == Some(process.pid) {
            return Ok(None);
        }
        let origin = living(manifest).find(|p| Some(p.pid) == owner);
        let origin = origin.map(|p| address_space(manifest, p)).transpose()?;
        space::rebuild(
            workshop,
            process,
            address_space(manifest, process)?,
            origin,
            stays_empty,
            sources,
        )
    }
}

/// Makes all processes and threads, zombies dead, helpers gone.
pub(super) fn make_processes(
    workshop: &mut Workshop,
    manifest: &Manifest,
    context: &RestoreContext<'_>,
    sources: &Sources<'_>,
    spaces: &Spaces,
    rights: Rights,
) -> Result<(Built, Views)> {
    let mut built = Built::default();
    let mut inside = Inside::default();
    for step in plan::of(manifest)? {
        match step {
            Step::Create { pid, by: None, .. } => {
                workshop.spawn(pid)?;
                inside.settle(workshop, manifest, spaces, pid, None)?;
            }
            Step::Create { pid, by: Some(by), .. } => {
                built.before_birth(workshop, manifest, pid, by, sources)?;
                let shares = |p: &Process| p.pid == pid && p.ppid == by && p.shares_descriptors;
                workshop.fork(pid, by, manifest.processes.iter().any(shares))?;
                inside.settle(workshop, manifest, spaces, pid, Some(by))?;
            }
            Step::NewSession { pid } => {
                let mut batch = Batch::new();
                batch.must(libc::SYS_setsid, &[], "make a session");
                workshop.run(pid, &batch)?;
                take_terminal(workshop, manifest, pid, context)?;
            }
            Step::JoinGroup { pid, group, by } => {
                let mut batch = Batch::new();
                let (who, led) = (workshop.seen(by, pid)?, workshop.seen(by, group)?);
                batch.must(
                    libc::SYS_setpgid,
                    &[who.into(), led.into()],
                    format!("join process group {group}"),
                );
                workshop.run(by, &batch)?;
            }
            Step::EndHelper { pid, parent } => workshop.end(pid, parent)?,
            Step::Die { pid, status } => workshop.die(pid, status)?,
        }
    }
    host_names::enter(workshop, manifest, rights.may_administer())?;
    time_namespaces::enter(workshop, manifest, false, rights.may_administer())?;
    let views = mounts::enter_all(workshop, manifest, sources.image, spaces)?;
    users::enter_all(workshop, manifest)?;
    time_namespaces::enter(workshop, manifest, true, rights.may_administer())?;
    for process in living(manifest) {
        let tids = process.threads.iter().map(|thread| thread.tid);
        let tids: Vec<i32> = tids.filter(|tid| *tid != process.pid).collect();
        workshop
            .threads(process.pid, &tids)
            .context(|| format!("restore process {}", process.pid))?;
    }
    workshop.turn_all(manifest)?;
    workshop.dismiss()?;
    Ok((built, views))
}
