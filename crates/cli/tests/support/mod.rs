//! Runs `cpr` for tests: a state directory and a working directory of its own for each test, as root or as an ordinary
//! user, and nothing left running at the end.
//!
//! - Every command has a deadline; waiting is always for a condition.
//! - Standard streams of commands are files, not pipes: a daemon that keeps one open cannot block a test.
//! - Whatever a test started is found again by `GRIDCPR_STATE_DIR` in its environment and is killed on drop, also when
//!   the test panics.
//!
//! Variables: `GRIDCPR_NO_SKIP=1` turns skips into failures, `GRIDCPR_SKIP_LOG=FILE` collects them,
//! `GRIDCPR_KEEP=1` leaves the directories of failed tests behind.

#![allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "each test program uses its own part of this module"
)]

pub mod guest;
pub mod image;
pub mod library;
pub mod lock;
pub mod machine;
pub mod net;
pub mod steps;
pub mod victim;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use lock::Lock;

/// Who plays the ordinary user when the tests run as root.
const NOBODY: u32 = 65534;
/// How long any one thing may take. Generous: machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// How long a command of `cpr` may take that does not wait for a job.
const PROMPT: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// As whom a test runs `cpr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// As root; skipped where the tests do not run as root.
    Root,
    /// As a user without any privilege.
    User,
}

/// Ends a test that cannot run here, saying so where it is seen.
macro_rules! skip {
    ($test:expr, $($reason:tt)+) => {{
        $crate::support::note_skip($test, &format!($($reason)+));
        return;
    }};
}
pub(crate) use skip;

/// See [`skip!`].
pub fn note_skip(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    // Not eprint!: the harness would keep it to itself.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("GRIDCPR_SKIP_LOG")
        && let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = log.write_all(line.as_bytes());
    }
    assert!(std::env::var_os("GRIDCPR_NO_SKIP").is_none(), "{line}");
}

/// Where programs are looked for: first where the engines are that `CRIU` and `DMTCP` name, by the path of `criu` and
/// that of `dmtcp_launch`.
pub fn path() -> OsString {
    let named = ["CRIU", "DMTCP"].into_iter().filter_map(std::env::var_os);
    let mut places: Vec<PathBuf> = named
        .filter_map(|program| Some(Path::new(&program).parent()?.to_owned()))
        .collect();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&usual));
    std::env::join_paths(places).expect("no colon is in these paths")
}

/// The kernel has file systems of this type, as far as it can be told without loading a module.
pub fn knows_file_system(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// The tests run as root.
pub fn am_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Waits until `condition` gives something; none once `patience` is over.
pub fn poll<T>(patience: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        // Looked at before the clock, so that it is looked at once more at the end.
        let late = Instant::now() >= deadline;
        if let Some(value) = condition() {
            return Some(value);
        }
        if late {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds and panics with `what` when it does not in time.
#[track_caller]
pub fn wait_until(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let good = poll(patience, || condition().then_some(()));
    assert!(good.is_some(), "not in {} s: {what}", patience.as_secs());
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit code; 128 + signal for a command killed by one.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
    command: String,
}

impl Ended {
    /// Requires success.
    #[track_caller]
    pub fn good(self) -> Ended {
        assert!(
            self.code == 0,
            "`{}` ended with {}\n{}{}",
            self.command,
            self.code,
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("`{}` printed no JSON: {e}\n{}", self.command, self.text()))
    }
}

/// Runs a command to its end, with its streams in `directory`.
#[track_caller]
pub fn finish(directory: &Path, mut command: Command, patience: Duration) -> Ended {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = |stream| directory.join(format!("command-{number}.{stream}"));
    let open = |stream| File::create(name(stream)).expect("the test's directory can be written");
    command.stdin(Stdio::null()).stdout(open("out")).stderr(open("err"));
    let text = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {text}: {e}"));
    let status = poll(patience, || child.try_wait().expect("a child can be waited for"));
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let read = |stream| {
        let bytes = fs::read(name(stream)).unwrap_or_default();
        let _ = fs::remove_file(name(stream));
        bytes
    };
    let stdout = read("out");
    let stderr = String::from_utf8_lossy(&read("err")).into_owned();
    let Some(status) = status else {
        panic!(
            "`{text}` did not end in {} s\n{}{stderr}",
            patience.as_secs(),
            String::from_utf8_lossy(&stdout)
        );
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ended {
        code,
        stdout,
        stderr,
        command: text,
    }
}

/// `cpr` for one test, with a state directory and a working directory of its own.
pub struct Cpr {
    /// `$GRIDCPR_STATE_DIR`.
    pub state_dir: PathBuf,
    /// Where commands run and jobs put their files.
    pub work: PathBuf,
    user: As,
    base: PathBuf,
    binary: PathBuf,
}

impl Cpr {
    /// A fresh place for `test`. None, after saying so, where the tests cannot run `cpr` as `user`.
    pub fn new(test: &str, user: As) -> Option<Cpr> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if user == As::Root && !am_root() {
            note_skip(test, "needs root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("gridcpr-test-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&base)
            .expect("a temporary directory can be made");
        let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_cpr"));
        if user == As::User && am_root() {
            // The build may lie where only root can reach it.
            let reachable = base.join("cpr");
            if fs::hard_link(&binary, &reachable).is_err() {
                fs::copy(&binary, &reachable).expect("cpr can be copied");
            }
            binary = reachable;
        }
        let cpr = Cpr {
            state_dir: base.join("state"),
            work: base.join("work"),
            user,
            base,
            binary,
        };
        for (directory, mode) in [(&cpr.state_dir, 0o700), (&cpr.work, 0o755)] {
            fs::DirBuilder::new()
                .mode(mode)
                .create(directory)
                .expect("a directory can be made");
            cpr.give(directory);
        }
        Some(cpr)
    }

    /// Makes a file or a whole directory the user's own.
    pub fn give(&self, path: &Path) {
        if self.user != As::User || !am_root() {
            return;
        }
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root can give files away");
        if path.is_dir() {
            for entry in fs::read_dir(path).expect("a directory can be read") {
                self.give(&entry.expect("a directory can be read").path());
            }
        }
    }

    /// `program`, to be run as the user in the working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if self.user == As::User && am_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            command
                .args(["--bounding-set=-all", "--no-new-privs", "--"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(&self.work)
            .env("GRIDCPR_STATE_DIR", &self.state_dir)
            .env("HOME", &self.work)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PYTHONUNBUFFERED")
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .env("PATH", path());
        command
    }

    /// Runs a program as the user to its end.
    #[track_caller]
    pub fn program(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments[0]);
        command.args(&arguments[1..]);
        finish(&self.base, command, PATIENCE)
    }

    /// The path of `cpr` for this user.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs `cpr` with these arguments, which do not let it wait for a job.
    #[track_caller]
    pub fn cpr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let mut command = self.command(&self.binary);
        command.args(arguments);
        finish(&self.base, command, PROMPT)
    }

    /// The same with a directory of configuration of its own; it may wait for a job.
    #[track_caller]
    pub fn cpr_with_config<S: AsRef<OsStr>>(&self, config: &Path, arguments: impl IntoIterator<Item = S>) -> Ended {
        let mut command = self.command(&self.binary);
        command.env("GRIDCPR_CONFIG_DIRS", config).args(arguments);
        finish(&self.base, command, PATIENCE)
    }

    /// `cpr run -d --name JOB OPTIONS -- COMMAND`.
    #[track_caller]
    pub fn run_detached<S: AsRef<OsStr>>(&self, job: &str, options: &[&str], command: &[S]) {
        let mut arguments: Vec<OsString> = vec!["run".into(), "-d".into(), "--name".into(), job.into()];
        arguments.extend(options.iter().map(Into::into));
        arguments.push("--".into());
        arguments.extend(command.iter().map(|a| a.as_ref().to_owned()));
        self.cpr(arguments).good();
    }

    /// `cpr checkpoint JOB --json OPTIONS`: the report, which is checked for what it has to say at least.
    #[track_caller]
    pub fn checkpoint(&self, job: &str, options: &[&str]) -> serde_json::Value {
        let report = self
            .cpr(["checkpoint", job, "--json"].iter().chain(options))
            .good()
            .json();
        let image = report["image"]
            .as_str()
            .unwrap_or_else(|| panic!("no image in {report}"));
        let length = fs::metadata(image).unwrap_or_else(|e| panic!("{image}: {e}")).len();
        assert!(length > 0, "{image} is empty");
        assert!(report["bytes"].as_u64().is_some_and(|n| n > 0), "{report}");
        assert!(report["processes"].as_u64().is_some_and(|n| n > 0), "{report}");
        let (freeze, total) = (report["freeze_ms"].as_f64(), report["total_ms"].as_f64());
        assert!(freeze > Some(0.0) && total >= freeze, "{report}");
        report
    }

    /// `cpr restart -d --json JOB_OR_IMAGE`.
    #[track_caller]
    pub fn restart(&self, what: &str) -> serde_json::Value {
        self.cpr(["restart", "-d", "--json", what]).good().json()
    }

    /// `cpr wait JOB`: how the job ended.
    #[track_caller]
    pub fn wait(&self, job: &str) -> i32 {
        let mut command = self.command(&self.binary);
        command.args(["wait", job]);
        finish(&self.base, command, PATIENCE).code
    }

    /// The job has not ended.
    #[track_caller]
    pub fn is_running(&self, job: &str) -> bool {
        const TIMED_OUT: i32 = 76;
        self.cpr(["wait", job, "--timeout", "1ms"]).code == TIMED_OUT
    }

    /// What the job has written so far.
    #[track_caller]
    pub fn logs(&self, job: &str) -> Vec<u8> {
        self.cpr(["logs", job]).good().stdout
    }

    /// Ends every process of the test at once, as a crash of the machine would: supervisors first.
    #[track_caller]
    pub fn crash(&self) {
        assert!(self.kill_all(), "processes of the test survive SIGKILL");
    }

    /// PIDs of everything that runs with a state directory of the test in its environment, oldest first.
    fn processes(&self) -> Vec<String> {
        let mark = [b"GRIDCPR_STATE_DIR=", self.base.as_os_str().as_encoded_bytes(), b"/"].concat();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse::<u32>() else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|v| v.starts_with(&mark)) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found.iter().map(u32::to_string).collect()
    }

    fn kill_all(&self) -> bool {
        poll(Duration::from_secs(20), || {
            let pids = self.processes();
            if pids.is_empty() {
                return Some(());
            }
            let _ = Command::new("kill")
                .arg("-KILL")
                .args(&pids)
                .stderr(Stdio::null())
                .status();
            None
        })
        .is_some()
    }

    /// What is known about the jobs, for the report of a failed test.
    fn tell(&self) {
        for job in fs::read_dir(self.state_dir.join("jobs"))
            .into_iter()
            .flatten()
            .flatten()
        {
            for name in ["state.json", "checkpoint.json", "log"] {
                let path = job.path().join(name);
                let Ok(bytes) = fs::read(&path) else { continue };
                let tail = &bytes[bytes.len().saturating_sub(2000)..];
                eprintln!("--- {}\n{}", path.display(), String::from_utf8_lossy(tail));
            }
        }
    }
}

impl Drop for Cpr {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.tell();
        }
        let gone = self.kill_all();
        if failed && std::env::var_os("GRIDCPR_KEEP").is_some() {
            eprintln!("kept: {}", self.base.display());
        } else {
            let _ = fs::remove_dir_all(&self.base);
        }
        if !gone {
            eprintln!("still there after SIGKILL: {:?}", self.processes());
            assert!(failed, "processes of the test survive SIGKILL");
        }
    }
}

/// Puts `kernel` and `initrd` of a guest into the test's directory; false, after saying so, where that cannot be.
pub fn install_guest(cpr: &Cpr, test: &str) -> bool {
    match guest::files() {
        Ok((kernel, initrd)) => {
            for (from, name) in [(kernel, "kernel"), (initrd, "initrd")] {
                let to = cpr.work.join(name);
                fs::copy(&from, &to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
                cpr.give(&to);
            }
            true
        }
        Err(reason) => {
            note_skip(test, &reason);
            false
        }
    }
}

/// Copies a directory's files and folders.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|e| panic!("make {}: {e}", to.display()));
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("read {}: {e}", from.display())) {
        let entry = entry.expect("a directory can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap_or_else(|e| panic!("copy to {}: {e}", target.display()));
        }
    }
}

/// A directory shared by all tests of one run of the suite. Those of earlier runs are removed once they are old.
pub fn run_directory() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reference");
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let own = all.join(run);
    fs::create_dir_all(&own).expect("the build's temporary directory can be written");
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| t.elapsed().ok());
        if entry.path() != own && age > Some(Duration::from_secs(2 * 3600)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    own
}
