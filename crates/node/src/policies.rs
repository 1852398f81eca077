//! How checkpoints of a job treat single files, where its programs have said so through libgridcpr (LBNL-3.6.8.4).
//!
//! They are kept beside what `cpr run` was told, which never changes, and come after that: later rules win.

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::engine::FileRule;
use crate::job::Job;
use crate::state::{read_json, write_json};

/// Their file in the job's directory.
const FILE: &str = "policies.json";
/// Most of them: who says more says them for every single file, and patterns are meant for that.
const MOST: usize = 256;

/// The rules of the programs of a job, in their order.
pub(crate) fn of(job: &Job) -> Result<Vec<FileRule>> {
    let rules = read_json(&job.directory, FILE).context(|| format!("read the file policies of job {}", job.name()))?;
    Ok(rules.unwrap_or_default())
}

/// Adds `PATTERN=POLICY`, in place of an older one for the same pattern. Only the job's supervisor may.
pub(crate) fn add(job: &Job, text: &str) -> Result<()> {
    if let Some(engine) = &job.spec().engine {
        let what = format!("engine {} cannot treat single files in their own ways", engine.name);
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let rule = FileRule::parse(text, "/")?;
    let mut rules = of(job)?;
    rules.retain(|older| older.pattern != rule.pattern);
    if rules.len() >= MOST {
        let what = format!("the programs of job {} have said more than {MOST} policies", job.name());
        return Err(Error::new(ErrorKind::Usage, what).with_hint("use patterns that fit several files"));
    }
    rules.push(rule);
    write_json(&job.directory, FILE, &rules)
}
