//! Runs `cpr` as the user whose job it is.
//!
//! The agent is root's, and nothing a user says may act with root's rights: user and groups are changed by setpriv(1)
//! with an environment of ours, and only then does a process of ours, `cprd become`, take over the user's environment
//! and directory. What it is to become comes by its standard input, so that nobody reads it in the list of processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use cpr_api::model::Owner;
use cpr_engines::CONFIG_VARIABLE;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use crate::files::Copying;

/// PATH of jobs that bring none.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How often it is seen whether what is waited for is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// How long a file may take that is staged in or out.
const LONGEST_COPY: Duration = Duration::from_secs(24 * 3600);

/// Most bytes that are kept of what a process says on standard error.
const MOST_TOLD: u64 = 64 << 10;

/// What a process is to become.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    program: PathBuf,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: PathBuf,
    /// What follows this description on standard input is for it.
    keep_input: bool,
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
    // One line; what else there may be comes when it is asked for.
    let read = std::io::stdin().read_line(&mut text).context(|| "read what to become");
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
        .stdin(match description.keep_input {
            true => Stdio::inherit(),
            false => Stdio::null(),
        })
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
        let (command, input) = self.prepare(&call, false)?;
        let what = call.describe();
        let output = self
            .runtime
            .block_on(run_with_limit(&command, &input, call.limit))
            .context(|| what.clone())?;
        understand(&output).context(|| what)
    }

    /// Runs another program to its end that answers as `cpr --json` does; gives what it printed.
    pub fn run_program(&self, program: &Path, call: &Call<'_>) -> Result<Value> {
        let (command, input) = self.prepare_program(program, call, false)?;
        let output = self.runtime.block_on(run_with_limit(&command, &input, call.limit))?;
        understand(&output)
    }

    /// The `cpr` that it runs.
    pub fn cpr(&self) -> &Path {
        &self.cpr
    }

    /// Copies a file as a user; gives what is said of it.
    pub fn copy(&self, owner: &Owner, state: &Path, copying: &Copying) -> Result<Value> {
        let what = serde_json::to_string(copying)
            .map_err(|error| Error::new(ErrorKind::Internal, "write down what to copy").with_source(error))?;
        let call = Call {
            owner,
            state,
            directory: Path::new("/"),
            environment: None,
            arguments: vec!["copy-file".into(), what],
            limit: LONGEST_COPY,
        };
        let (command, input) = self.prepare_program(&self.own, &call, false)?;
        let output = self.runtime.block_on(run_with_limit(&command, &input, call.limit))?;
        understand(&output)
    }

    /// Runs a command as ourselves to its end, with these variables and no others.
    pub fn command(&self, words: &[String], variables: &[(&str, String)], limit: Duration) -> Result<Output> {
        let mut command: Vec<OsString> = vec!["env".into()];
        command.extend(variables.iter().map(|(name, value)| format!("{name}={value}").into()));
        command.extend(words.iter().map(OsString::from));
        self.runtime.block_on(run_with_limit(&command, &[], limit))
    }

    /// Starts `cpr --json` with `--steps`, to be told what to do.
    pub fn open(&self, call: &Call<'_>) -> Result<Front> {
        let (command, mut input) = self.prepare(call, true)?;
        let what = call.describe();
        input.push(b'\n');
        let open = async {
            let mut child = start(&command)?;
            let gone = || Error::new(ErrorKind::Internal, "it has no streams");
            let mut words = child.stdin.take().ok_or_else(gone)?;
            let lines = BufReader::new(child.stdout.take().ok_or_else(gone)?).lines();
            let told = child.stderr.take().ok_or_else(gone)?;
            // Where it has ended already, its output says why.
            let _ = words.write_all(&input).await;
            let told = tokio::spawn(async move {
                let mut text = Vec::new();
                let _ = told.take(MOST_TOLD).read_to_end(&mut text).await;
                text
            });
            Ok::<_, Error>((child, words, lines, told))
        };
        let (child, words, lines, told) = self.runtime.block_on(open).context(|| what.clone())?;
        Ok(Front {
            what,
            limit: call.limit,
            runtime: self.runtime.clone(),
            child,
            words: Some(words),
            lines,
            told,
        })
    }

    /// The command of a call, and what it reads.
    fn prepare(&self, call: &Call<'_>, keep_input: bool) -> Result<(Vec<OsString>, Vec<u8>)> {
        self.prepare_program(&self.cpr, call, keep_input)
    }

    /// The same of another program.
    fn prepare_program(&self, program: &Path, call: &Call<'_>, keep_input: bool) -> Result<(Vec<OsString>, Vec<u8>)> {
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
            program: program.to_path_buf(),
            arguments: call.arguments.clone(),
            environment: environment(call, known.as_ref()),
            directory: call.directory.to_path_buf(),
            keep_input,
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
        Ok((command, input))
    }
}

impl Call<'_> {
    fn describe(&self) -> String {
        let verb = self.arguments.first().map_or("", String::as_str);
        format!("run cpr {verb} as {}", self.owner.name)
    }
}

/// A `cpr --steps` that waits to be told what to do. Where it is dropped it is killed, and puts everything back in
/// order.
pub struct Front {
    what: String,
    limit: Duration,
    runtime: tokio::runtime::Handle,
    child: Child,
    words: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it says on standard error.
    told: JoinHandle<Vec<u8>>,
}

impl Front {
    /// Waits until it has done a step.
    pub fn await_step(&mut self, step: &str) -> Result<()> {
        self.await_one_of(&[step], || true).map(drop)
    }

    /// Waits until it has done one of these steps, as long as that is `wanted`; gives which, and all that it says then.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] where that is not wanted any more.
    pub fn await_one_of<'s>(&mut self, steps: &[&'s str], wanted: impl Fn() -> bool) -> Result<(&'s str, Value)> {
        let said = self.next_while(wanted)?;
        let done = said.get("step").and_then(Value::as_str);
        match steps.iter().find(|step| done == Some(step)) {
            Some(step) => Ok((step, said)),
            None => Err(Error::new(
                ErrorKind::Internal,
                format!("{}: it is not {}", self.what, steps.join(" or ")),
            )),
        }
    }

    /// Has it do the next step.
    pub fn say(&mut self, word: &str) -> Result<()> {
        let what = || self.what.clone();
        let Some(words) = &mut self.words else {
            return Err(Error::new(ErrorKind::Internal, what()));
        };
        let line = format!("{word}\n");
        match self.runtime.block_on(words.write_all(line.as_bytes())) {
            // It has ended, and its output says why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context(what),
        }
    }

    /// Waits until it has ended; gives what it said last.
    pub fn finish(mut self) -> Result<Value> {
        self.next()
    }

    /// Tells it that nothing more comes, and waits until it has put everything back in order.
    pub fn give_up(mut self) {
        self.words = None;
        self.await_end();
    }

    /// Waits until it has ended, because what it works on has.
    pub fn await_end(mut self) {
        let end = async { tokio::time::timeout(self.limit, self.child.wait()).await };
        // It is killed otherwise.
        let _ = self.runtime.block_on(end);
    }

    /// The next thing that it says, or why it has ended.
    fn next(&mut self) -> Result<Value> {
        self.next_while(|| true)
    }

    /// The same, as long as that is wanted.
    fn next_while(&mut self, wanted: impl Fn() -> bool) -> Result<Value> {
        let (limit, what) = (self.limit, self.what.clone());
        let runtime = self.runtime.clone();
        let begun = Instant::now();
        let said = runtime.block_on(async {
            loop {
                match tokio::time::timeout(LOOK.min(limit), self.lines.next_line()).await {
                    Ok(line) => return line.context(|| "read what it says"),
                    Err(_) if begun.elapsed() > limit => return Err(took_too_long(limit)),
                    Err(_) if wanted() => {}
                    Err(_) => return Err(Error::new(ErrorKind::Cancelled, "it is not wanted any more")),
                }
            }
        });
        let said = said.context(|| what.clone())?;
        if let Some(line) = said {
            let value: Value = serde_json::from_str(&line)
                .map_err(|error| Error::new(ErrorKind::Internal, "what it says is not understood").with_source(error))
                .context(|| what.clone())?;
            return failure(&value).map_or(Ok(value), Err).context(|| what);
        }
        let ended = runtime.block_on(async {
            let status = self.child.wait().await.context(|| "wait for a process")?;
            let told = (&mut self.told).await.unwrap_or_default();
            Ok(ended_with(status, &told))
        });
        Err(ended.unwrap_or_else(|error| error)).context(|| what)
    }
}

fn took_too_long(limit: Duration) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!("it took longer than {} s", limit.as_secs()),
    )
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
    // The engines that we say there are.
    if let Ok(directories) = std::env::var(CONFIG_VARIABLE) {
        all.insert(CONFIG_VARIABLE.into(), directories);
    }
    all
}

fn start(command: &[OsString]) -> Result<Child> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::new(ErrorKind::Internal, "there is no command"));
    };
    tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(|| "start a process")
}

async fn run_with_limit(command: &[OsString], input: &[u8], limit: Duration) -> Result<Output> {
    let mut child = start(command)?;
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
        Err(_) => Err(took_too_long(limit)),
    }
}

/// What `cpr --json` printed: a result, or an error of its own.
fn understand(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).ok());
    if let Some(error) = last.as_ref().and_then(failure) {
        return Err(error);
    }
    if !output.status.success() {
        return Err(ended_with(output.status, &output.stderr));
    }
    Ok(last.unwrap_or(Value::Null))
}

fn ended_with(status: ExitStatus, told: &[u8]) -> Error {
    let told = String::from_utf8_lossy(told);
    let told: String = told.lines().last().unwrap_or_default().chars().take(500).collect();
    Error::new(ErrorKind::Internal, format!("it ended with {status}: {told}"))
}

/// The error that `cpr --json` has printed, where this is one.
fn failure(value: &Value) -> Option<Error> {
    let failure = value.get("error")?;
    let kind = failure
        .get("kind")
        .and_then(|kind| serde_json::from_value(kind.clone()).ok());
    let message = failure.get("message").and_then(Value::as_str).unwrap_or("it failed");
    let causes = failure.get("causes").and_then(Value::as_array).into_iter().flatten();
    let chain = causes
        .filter_map(Value::as_str)
        .fold(message.to_string(), |text, cause| format!("{text}: {cause}"));
    Some(Error::new(kind.unwrap_or(ErrorKind::Internal), chain))
}
