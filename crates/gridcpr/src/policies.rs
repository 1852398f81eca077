//! How checkpoints of the program's own job treat files (LBNL-3.6.8.4).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde_json::json;

use crate::process::started;
use crate::requests::{self, LOOK};
use crate::sections;

/// How long the supervisor may take to take it in.
const ANSWERED: Duration = Duration::from_secs(30);

/// Says how checkpoints of the job that this process is part of treat files, from the next one on and whoever asks for
/// them: as `cpr run --file PATTERN=POLICY` does, of which it is the later word. A pattern that does not begin with `/`
/// is taken below the working directory. It stays with the job, and not with an image that is restarted as another one.
///
/// # Errors
/// [`ErrorKind::Usage`] for what is no pattern or policy, [`ErrorKind::NotFound`] in a program that no `cpr run` or
/// `cpr restart` has started, [`ErrorKind::Unsupported`] where another engine than ours checkpoints the job.
pub fn file_policy(pattern: &str, policy: &str) -> Result<()> {
    if policy.contains('=') {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{policy:?} is not a policy for files"),
        ));
    }
    let directory = requests::directory(started()?)?;
    let pattern = match pattern.starts_with('/') {
        true => pattern.to_owned(),
        false => below(
            &std::env::current_dir().context(|| "find the working directory")?,
            pattern,
        )?,
    };
    // No checkpoint comes between the question and the answer.
    let _section = sections::enter()?;
    let asked = requests::ask(&directory, json!({"policy": format!("{pattern}={policy}")}))?;
    let deadline = Instant::now() + ANSWERED;
    loop {
        if let Some(answer) = asked.fetch()? {
            return answer.good().map(drop);
        }
        if Instant::now() > deadline {
            return Err(Error::new(ErrorKind::TimedOut, "the job's supervisor does not answer"));
        }
        std::thread::sleep(LOOK);
    }
}

/// A pattern below a directory, in whose own name nothing is a wildcard.
fn below(directory: &Path, pattern: &str) -> Result<String> {
    let name = std::str::from_utf8(directory.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::Usage, "the working directory's name is not UTF-8"))?;
    let mut whole = String::new();
    for character in name.chars() {
        if matches!(character, '*' | '?' | '[' | '\\') {
            whole.push('\\');
        }
        whole.push(character);
    }
    Ok(format!("{}/{pattern}", whole.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_a_directory_are_none() {
        let good = |directory: &str| below(Path::new(directory), "*.log").ok();
        assert_eq!(good("/a/b").as_deref(), Some("/a/b/*.log"));
        assert_eq!(good("/").as_deref(), Some("/*.log"));
        assert_eq!(good("/run[1]/x*\\").as_deref(), Some("/run\\[1]/x\\*\\\\/*.log"));
    }
}
