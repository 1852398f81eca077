//! What `cpr` does, for programs: they checkpoint, restart and suspend other jobs, processes and sessions with it.
//!
//! It runs the command, so that a program needs no rights of its own kind, and is told the same errors.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Deserialize;

/// Names the command to run instead of `cpr` on `PATH`.
const VARIABLE: &str = "GRIDCPR_CPR";

/// What `cpr` prints where it fails.
#[derive(Deserialize)]
struct Failure {
    error: Report,
}

#[derive(Deserialize)]
struct Report {
    message: String,
    #[serde(default)]
    causes: Vec<String>,
    #[serde(default)]
    hint: Option<String>,
    exit_code: u8,
}

/// Runs `cpr` with these arguments and `--json`, and gives what it prints: an object as docs/commands.md has it. Waits
/// as long as the command takes.
///
/// # Errors
/// Those of the command; [`ErrorKind::NotFound`] where there is none.
pub fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Result<String> {
    let Some((verb, rest)) = arguments.split_first() else {
        return Err(Error::new(ErrorKind::Usage, "no command is named"));
    };
    let program = std::env::var_os(VARIABLE).unwrap_or_else(|| OsString::from("cpr"));
    let what = || format!("run {} {}", program.to_string_lossy(), verb.as_ref().to_string_lossy());
    let output = Command::new(&program)
        .arg(verb)
        .arg("--json")
        .args(rest)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context(what)?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if let Ok(Failure { error }) = serde_json::from_str(&text) {
        let kind = ErrorKind::ALL
            .into_iter()
            .find(|kind| kind.exit_code() == error.exit_code);
        let message = std::iter::once(error.message)
            .chain(error.causes)
            .collect::<Vec<_>>()
            .join(": ");
        let failed = Error::new(kind.unwrap_or(ErrorKind::Internal), message);
        return Err(match error.hint {
            Some(hint) => failed.with_hint(hint),
            None => failed,
        });
    }
    // The exit code of `wait` is that of the job.
    if text.starts_with('{') || output.status.success() {
        return Ok(text);
    }
    Err(Error::new(ErrorKind::Internal, what()).with_source(format!("it ended with {}", output.status)))
}
