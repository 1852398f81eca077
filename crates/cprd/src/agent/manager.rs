//! Starting jobs through the site's own resource manager, as Slurm, which counts and limits what they use (GFD93-JM-6).
//!
//! What speaks to the manager is a program of the operator's, the adapter, which has three verbs; `docs/slurm.md`
//! describes them. It has a command run on this node, as the user whose job it is, and that command is a `cpr` in the
//! foreground: from then on the job is watched, saved and ended as any other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_api::agent::{Incarnation, JobOrder};
use cpr_api::model::Owner;
use cpr_node::Phase as Local;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::Agent;
use super::process::Call;
use crate::log;

/// How often the manager is asked how far it is.
const ASK: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

impl Agent {
    /// The adapter, where jobs are started by one.
    fn manager(&self) -> Option<Vec<String>> {
        Some(self.current.borrow().node.manager.clone()).filter(|command| !command.is_empty())
    }

    /// Whether this process starts jobs itself.
    pub(super) fn forks(&self) -> bool {
        self.manager().is_none()
    }

    /// Has the manager run a call of `cpr`, and waits until the job runs, or has run.
    ///
    /// # Errors
    /// What `cpr` or the adapter says, and [`ErrorKind::TimedOut`] where the manager has no room for it for too long;
    /// it does not run then.
    pub(super) fn start_managed(&self, order: &JobOrder, call: &Call<'_>, cpr: &Path) -> Result<()> {
        let name = order.incarnation.to_string();
        let mut arguments = vec!["start".to_string(), name, "--".into(), super::jobs::text(cpr)?];
        arguments.extend(call.arguments.iter().cloned());
        let mut environment = call.environment.cloned().unwrap_or_default();
        environment.insert("GRIDCPR_MEMORY_MB".into(), order.spec.memory_mb.to_string());
        self.ask(&Call {
            environment: Some(&environment),
            arguments,
            limit: ANSWER,
            ..*call
        })?;
        self.await_managed(order.incarnation, &order.owner)
    }

    /// Waits until a job that was given to the manager runs, or has run, or need not any more.
    fn await_managed(&self, incarnation: Incarnation, owner: &Owner) -> Result<()> {
        let begun = Instant::now();
        let limit = Duration::from_secs(self.current.borrow().node.manager_wait_s);
        let has_run = || {
            let status = self.status(incarnation, owner.uid);
            status.is_some_and(|status| !matches!(status.phase, Local::Created | Local::Starting))
        };
        loop {
            let killed = self.state().records.get(&incarnation).is_some_and(|known| known.killed);
            if killed {
                return self.tell_manager("cancel", incarnation, owner);
            }
            if has_run() {
                return Ok(());
            }
            if let Err(error) = self.tell_manager("check", incarnation, owner) {
                // It may have come and gone meanwhile.
                return if has_run() { Ok(()) } else { Err(error) };
            }
            if begun.elapsed() > limit {
                self.tell_manager("cancel", incarnation, owner)?;
                let message = format!("its manager has not started it within {} s", limit.as_secs());
                return if has_run() {
                    Ok(())
                } else {
                    Err(Error::new(ErrorKind::TimedOut, message))
                };
            }
            std::thread::sleep(ASK);
        }
    }

    /// Takes a job from the manager, where it has it.
    pub(super) fn cancel_managed(&self, incarnation: Incarnation, owner: &Owner) -> Result<()> {
        match self.forks() {
            true => Ok(()),
            false => self.tell_manager("cancel", incarnation, owner),
        }
    }

    /// Waits on for jobs that an agent before us had given to the manager.
    pub(super) fn await_managed_again(self: &std::sync::Arc<Self>) {
        if self.forks() {
            return;
        }
        let records = self.state().records.clone();
        for (incarnation, mut record) in records {
            let waits = record.began && !record.killed && record.failed.is_none();
            if !waits || self.status(incarnation, record.owner.uid).is_some() {
                continue;
            }
            self.busy_with(incarnation, move |agent| {
                if let Err(error) = agent.await_managed(incarnation, &record.owner) {
                    log(format!("starting job {incarnation}: {}", error.chain()));
                    record.failed = Some((error.kind(), error.chain()));
                    if let Err(error) = agent.put(incarnation, record) {
                        log(format!("noting why job {incarnation} did not start: {}", error.chain()));
                    }
                }
            });
        }
    }

    fn tell_manager(&self, verb: &str, incarnation: Incarnation, owner: &Owner) -> Result<()> {
        self.ask(&Call {
            owner,
            state: &self.layout.state(owner.uid),
            directory: Path::new("/"),
            environment: None,
            arguments: vec![verb.to_string(), incarnation.to_string()],
            limit: ANSWER,
        })
    }

    fn ask(&self, call: &Call<'_>) -> Result<()> {
        let Some(command) = self.manager() else {
            return Err(Error::new(ErrorKind::Internal, "there is no manager any more"));
        };
        let Some((program, options)) = command.split_first() else {
            return Err(Error::new(ErrorKind::Internal, "the manager has no program"));
        };
        let mut arguments = options.to_vec();
        arguments.extend(call.arguments.iter().cloned());
        let what = || format!("ask {program} as {}", call.owner.name);
        let call = Call { arguments, ..*call };
        self.runner
            .run_program(&PathBuf::from(program), &call)
            .context(what)
            .map(drop)
    }
}
