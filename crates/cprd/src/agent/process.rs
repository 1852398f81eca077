//! Runs `cpr` as the user whose job it is.
//!
//! The agent is root's, and nothing a user says may act with root's rights: user and groups are changed by setpriv(1)
//! with an environment of ours, and only then does a process of ours, `cprd become`, take over the user's environment
//! and directory. What it is to become comes by its standard input, so that nobody reads it in the list of processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use cpr_api::model::Owner;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// PATH of jobs that bring none.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a process is to become.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    program: PathBuf,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: PathBuf,
}

/// Becomes what standard input describes; gives the error where that fails.
pub fn become_described() -> Error {
    let error = try_become();
    // As `cpr --json` would say it.
    let problem = serde_json::json!({"error": {"kind": error.kind(), "message": error.chain()}});
    println!("{problem}");
    error
}

fn try_become() -> Error {
    let mut text = String::new();
    let read = std::io::stdin()
        .read_to_string(&mut text)
        .context(|| "read what to become");
    if let Err(error) = read {
        return error;
    }
    let description: Description = match serde_json::from_str(&text) {
        Ok(description) => description,
        Err(error) => return Error::new(ErrorKind::Internal, "what to become is not understood").with_source(error),
    };
    let error = std::process::Command::new(&description.program)
        .args(&description.arguments)
        .env_clear()
        .envs(&description.environment)
        .current_dir(&description.directory)
        .stdin(Stdio::null())
        .exec();
    let directory = &description.directory;
    // The working directory and the program fail alike: say which it was.
    if let Err(error) = std::env::set_current_dir(directory) {
        return Error::new(
            ErrorKind::of_io(&error),
            format!("enter directory {}", directory.display()),
        )
        .with_source(error);
    }
    let program = description.program.display();
    Error::new(ErrorKind::of_io(&error), format!("run {program}")).with_source(error)
}

/// Runs `cpr`.
pub struct Runner {
    cpr: PathBuf,
    own: PathBuf,
    uid: u32,
    runtime: tokio::runtime::Handle,
}

/// One call of `cpr`.
pub struct Call<'a> {
    pub owner: &'a Owner,
    pub state: &'a Path,
    pub directory: &'a Path,
    pub environment: Option<&'a BTreeMap<String, String>>,
    pub arguments: Vec<String>,
    /// It is killed when it takes longer.
    pub limit: Duration,
}

impl Runner {
    /// Uses this `cpr`, or the one beside us, or that on PATH. To be called on a runtime.
    pub fn new(cpr: Option<&Path>) -> Result<Runner> {
        let own = std::env::current_exe().context(|| "find our own program")?;
        let beside = own.with_file_name("cpr");
        let cpr = match cpr {
            Some(path) => path.to_path_buf(),
            None if beside.exists() => beside,
            None => PathBuf::from("cpr"),
        };
        Ok(Runner {
            cpr,
            own,
            uid: rustix::process::geteuid().as_raw(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Runs `cpr --json` to its end; gives what it printed.
    pub fn run(&self, call: Call<'_>) -> Result<Value> {
        let owner = call.owner;
        if self.uid != 0 && owner.uid != self.uid {
            let name = &owner.name;
            return Err(
                Error::new(ErrorKind::Denied, format!("this node runs no jobs of {name}"))
                    .with_hint("an agent that is not root's runs jobs of its own user only"),
            );
        }
        let known = nix::unistd::User::from_uid(owner.uid.into()).ok().flatten();
        let description = Description {
            program: self.cpr.clone(),
            arguments: call.arguments.clone(),
            environment: environment(&call, known.as_ref()),
            directory: call.directory.to_path_buf(),
        };
        let input = serde_json::to_vec(&description)
            .map_err(|error| Error::new(ErrorKind::Internal, "describe a process").with_source(error))?;
        let mut command: Vec<OsString> = Vec::new();
        if self.uid == 0 {
            command.push("setpriv".into());
            command.push(format!("--reuid={}", owner.uid).into());
            command.push(format!("--regid={}", owner.gid).into());
            command.push(
                if known.is_some() {
                    "--init-groups"
                } else {
                    "--clear-groups"
                }
                .into(),
            );
            command.push("--".into());
        }
        command.push(self.own.clone().into());
        command.push("become".into());
        let what = format!(
            "run cpr {} as {}",
            call.arguments.first().map_or("", String::as_str),
            owner.name
        );
        let output = self
            .runtime
            .block_on(run_with_limit(&command, &input, call.limit))
            .context(|| what.clone())?;
        understand(&output).context(|| what)
    }
}

fn environment(call: &Call<'_>, user: Option<&nix::unistd::User>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("PATH".to_string(), DEFAULT_PATH.to_string())]);
    if let Some(user) = user {
        all.insert("HOME".into(), user.dir.to_string_lossy().into_owned());
        all.insert("SHELL".into(), user.shell.to_string_lossy().into_owned());
        all.insert("USER".into(), user.name.clone());
        all.insert("LOGNAME".into(), user.name.clone());
    }
    all.extend(
        call.environment
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    all.insert("GRIDCPR_STATE_DIR".into(), call.state.to_string_lossy().into_owned());
    all
}

async fn run_with_limit(command: &[OsString], input: &[u8], limit: Duration) -> Result<Output> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::new(ErrorKind::Internal, "there is no command"));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(|| "start a process")?;
    let stdin = child.stdin.take();
    let run = async {
        if let Some(mut stdin) = stdin {
            // Where it has ended already, its output says why.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await.context(|| "wait for a process")
    };
    match tokio::time::timeout(limit, run).await {
        Ok(output) => output,
        Err(_) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("it took longer than {} s", limit.as_secs()),
        )),
    }
}

/// What `cpr --json` printed: a result, or an error of its own.
fn understand(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).ok());
    let failure = last.as_ref().and_then(|value| value.get("error"));
    if let Some(failure) = failure {
        let kind = failure
            .get("kind")
            .and_then(|kind| serde_json::from_value(kind.clone()).ok());
        let message = failure.get("message").and_then(Value::as_str).unwrap_or("it failed");
        let causes = failure.get("causes").and_then(Value::as_array).into_iter().flatten();
        let chain = causes
            .filter_map(Value::as_str)
            .fold(message.to_string(), |text, cause| format!("{text}: {cause}"));
        return Err(Error::new(kind.unwrap_or(ErrorKind::Internal), chain));
    }
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let told: String = told.lines().last().unwrap_or_default().chars().take(500).collect();
        return Err(Error::new(
            ErrorKind::Internal,
            format!("it ended with {}: {told}", output.status),
        ));
    }
    Ok(last.unwrap_or(Value::Null))
}
