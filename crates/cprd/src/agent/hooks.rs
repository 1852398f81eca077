//! Commands of the operator's that are run around jobs and after checkpoints (GFD93-JM-3, GCA-UC-5.2.7).
//!
//! They run as the agent does, and nothing that a user has written reaches them: neither arguments nor environment.

use std::time::Duration;

use cpr_api::agent::Incarnation;
use cpr_api::model::Owner;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::Agent;
use crate::config::HooksConfig;
use crate::log;

/// When a command is run.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    /// Before a job starts, or starts again.
    BeforeJob,
    /// When it has ended on this node, however it did.
    AfterJob,
    /// When a checkpoint of it is on disk.
    AfterCheckpoint,
}

impl When {
    fn command(self, hooks: &HooksConfig) -> &[String] {
        match self {
            When::BeforeJob => &hooks.before_job,
            When::AfterJob => &hooks.after_job,
            When::AfterCheckpoint => &hooks.after_checkpoint,
        }
    }

    fn name(self) -> &'static str {
        match self {
            When::BeforeJob => "hooks.before_job",
            When::AfterJob => "hooks.after_job",
            When::AfterCheckpoint => "hooks.after_checkpoint",
        }
    }
}

impl Agent {
    /// Runs the operator's command where there is one, and waits until it has ended. `checkpoint` is that which it is
    /// about.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where it does not end with exit code 0, with the last line that it said.
    pub(super) fn hook(
        &self,
        when: When,
        incarnation: Incarnation,
        owner: &Owner,
        checkpoint: Option<i64>,
    ) -> Result<()> {
        let hooks = self.current.borrow().hooks.clone();
        let command = when.command(&hooks);
        if command.is_empty() {
            return Ok(());
        }
        let mut about = vec![
            ("GRIDCPR_JOB", incarnation.job.to_string()),
            ("GRIDCPR_START", incarnation.number.to_string()),
            ("GRIDCPR_USER", owner.name.clone()),
            ("GRIDCPR_UID", owner.uid.to_string()),
            ("GRIDCPR_GID", owner.gid.to_string()),
        ];
        about.extend(incarnation.unit.map(|unit| ("GRIDCPR_UNIT", unit.to_string())));
        if let Some(id) = checkpoint {
            let image = self.layout.image(owner.uid, id).display().to_string();
            about.extend([("GRIDCPR_CHECKPOINT", id.to_string()), ("GRIDCPR_IMAGE", image)]);
        }
        let limit = Duration::from_secs(hooks.limit_s);
        let what = || format!("run {} for job {incarnation}", when.name());
        let output = self.runner.command(command, &about, limit).context(what)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.lines().last().unwrap_or_default().chars().take(500).collect();
        let how = format!("it ended with {}: {said}", output.status);
        Err(Error::new(ErrorKind::Io, how)).context(what)
    }

    /// The same, where nothing depends on how it ends.
    pub(super) fn try_hook(&self, when: When, incarnation: Incarnation, owner: &Owner, checkpoint: Option<i64>) {
        if let Err(error) = self.hook(when, incarnation, owner, checkpoint) {
            log(error.chain());
        }
    }
}
