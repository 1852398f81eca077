//! Runs `cprd` and `cpr` for tests, in a directory of their own, and leaves nothing behind.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this module"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../../../cli/tests/support/guest.rs"]
pub mod guest;
pub mod lab;
#[path = "../../../cli/tests/support/lock.rs"]
pub mod lock;
pub mod s3;

/// How long anything may take: machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The lease of the tests' grids, milliseconds.
pub const LEASE_MS: u64 = 4000;
/// Who plays the ordinary user when the tests run as root.
pub const NOBODY: u32 = 65534;

pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says where it is seen that something was not tested, as the tests of `cpr` do.
pub fn skipped(what: &str) {
    use std::io::Write;
    let line = format!("SKIPPED {what}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("GRIDCPR_SKIP_LOG")
        && let Ok(mut log) = fs::File::options().create(true).append(true).open(path)
    {
        let _ = log.write_all(line.as_bytes());
    }
    assert!(std::env::var_os("GRIDCPR_NO_SKIP").is_none(), "{line}");
}

#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `cpr`, built from the present sources: cargo builds only the programs of this package for its tests.
fn cpr() -> PathBuf {
    static BUILD: Once = Once::new();
    let path = Path::new(env!("CARGO_BIN_EXE_cprd")).with_file_name("cpr");
    BUILD.call_once(|| {
        let mut command = Command::new(env!("CARGO"));
        // With the features that the whole workspace has: most of it is built already then. And the library, for
        // programs.
        command.args(["build", "--quiet", "--workspace", "--lib", "--bin", "cpr"]);
        // What cargo says to its tests would have it build things again that are built without.
        let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
            command.env_remove(name);
        }
        if path.parent().is_some_and(|directory| directory.ends_with("release")) {
            command.arg("--release");
        }
        assert!(command.status().unwrap().success(), "cpr cannot be built");
    });
    path
}

/// A program that counts, a line for each number, and ends with code 0 when it comes to `last`.
pub fn counter(last: u32) -> [String; 3] {
    let script = format!("i=0; while [ $i -lt {last} ]; do i=$((i+1)); echo $i; sleep 0.05; done");
    ["sh".into(), "-c".into(), script]
}

/// What such a program has written when it is done.
pub fn counted(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

/// Processes that belong to jobs of the site in this directory.
pub fn job_processes_below(directory: &Path) -> Vec<i32> {
    let mark = format!(
        "GRIDCPR_STATE_DIR={}/",
        directory.display().to_string().trim_end_matches('/')
    );
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable.starts_with(mark.as_bytes()))
    })
    .collect()
}

/// A directory with daemons in it.
pub struct Site {
    pub directory: tempfile::TempDir,
    daemons: Vec<(String, Child)>,
    /// Address of the database; SQLite's default where there is none.
    pub database: Option<String>,
    /// More of the node's section of `all`.
    pub node: String,
    /// What daemons are run by: what enters the host that they are to be on.
    pub entry: Vec<String>,
    /// Dropped after the daemons.
    kept: Vec<Box<dyn std::any::Any>>,
}

impl Site {
    pub fn new() -> Site {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The build may lie where only root can reach it.
        for program in [cpr(), env!("CARGO_BIN_EXE_cprd").into()] {
            let reachable = directory.path().join(program.file_name().unwrap());
            if fs::hard_link(&program, &reachable).is_err() {
                fs::copy(&program, &reachable).unwrap();
            }
        }
        let site = Site {
            directory,
            daemons: Vec::new(),
            database: None,
            node: String::new(),
            entry: Vec::new(),
            kept: Vec::new(),
        };
        let work = site.path("work");
        fs::create_dir(&work).unwrap();
        if am_root() {
            chown(&work, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whether its network is ours.
    pub fn is_here(&self) -> bool {
        self.entry.is_empty()
    }

    /// Whether its node takes jobs of several units.
    pub fn has_units(&self) -> bool {
        self.node.is_empty()
    }

    /// Keeps something as long as the daemons may need it.
    pub fn keep(&mut self, what: impl std::any::Any) {
        self.kept.push(Box::new(what));
    }

    /// Writes a configuration file of this name, in which `DIR` is our directory.
    pub fn configure(&self, name: &str, text: &str) {
        let text = text.replace("DIR", self.directory.path().to_str().unwrap());
        fs::write(self.path(name), text).unwrap();
    }

    /// `all` on this machine.
    pub fn configure_all(&self, more: &str) {
        let database = self.database.as_ref();
        let database = database.map_or(String::new(), |url| format!("database = '{url}'\n"));
        self.configure(
            "all.toml",
            &format!(
                "[grid]\ndirectory = 'DIR/grid'\nsocket = 'DIR/cprd.sock'\ntokens = 'DIR/tokens'\n\
                 lease_ms = {LEASE_MS}\nmargin_ms = 1500\n{database}{more}\n\
                 [node]\nname = 'n1'\ndirectory = 'DIR/node'\nslots = 4\n{}",
                self.node
            ),
        );
    }

    pub fn cprd(&self, arguments: &[&str]) -> Command {
        let cprd = self.path("cprd");
        let mut words = self.entry.iter().map(std::ffi::OsStr::new).chain([cprd.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a CA in a directory of this name.
    #[track_caller]
    pub fn ca(&self, name: &str, arguments: &[&str]) {
        let directory = self.path(name);
        let all = [&["ca", "--dir", directory.to_str().unwrap()], arguments].concat();
        let output = self.cprd(&all).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// Issues a certificate of that CA; gives the directory `NAME-issued` that it is in.
    #[track_caller]
    pub fn issue(&self, ca: &str, arguments: &[&str]) -> PathBuf {
        let to = self.path(&format!("{ca}-issued"));
        fs::create_dir_all(&to).unwrap();
        self.ca(ca, &[&["issue", "--to", to.to_str().unwrap()], arguments].concat());
        to
    }

    /// Starts a daemon with the configuration `NAME.toml`, and waits until it is ready.
    pub fn start(&mut self, name: &str, verb: &str) {
        let config = self.path(&format!("{name}.toml"));
        let command = self.cprd(&["--config", config.to_str().unwrap(), verb]);
        self.start_command(name, command);
    }

    pub fn start_command(&mut self, name: &str, mut command: Command) {
        let log_path = self.path(&format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(&log_path).unwrap();
        let before = log.metadata().unwrap().len() as usize;
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.daemons.push((name.to_string(), child));
        wait_until(&format!("{name} is ready"), || {
            fs::read_to_string(&log_path).unwrap()[before..].contains("ready")
        });
    }

    /// Has a daemon read its configuration again.
    pub fn hang_up(&self, name: &str) {
        let (_, child) = self.daemons.iter().find(|(known, _)| known == name).unwrap();
        // On another host it is the child of what has entered that.
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let entered = fs::read_to_string(path).unwrap_or_default();
        let entered = entered.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let pid = entered.filter(|_| !self.entry.is_empty()).unwrap_or(child.id() as i32);
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// Kills a daemon at once.
    pub fn kill(&mut self, name: &str) {
        let at = self.daemons.iter().position(|(known, _)| known == name).unwrap();
        let (_, mut child) = self.daemons.remove(at);
        // On a host of the lab it is the child of a process that has entered it.
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let children = fs::read_to_string(path).unwrap_or_default();
        let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        for pid in children.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until(&format!("{name} is gone"), || {
            let lives = |pid: &i32| fs::exists(format!("/proc/{pid}")).unwrap_or(true);
            !children.iter().any(lives)
        });
    }

    /// `cpr` of the user whose jobs they are.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_as(NOBODY, arguments)
    }

    /// `cpr` of another user, where we can be one.
    pub fn command_as(&self, uid: u32, arguments: &[&str]) -> Command {
        let mut command = self.program_as(uid, &self.path("cpr"));
        command
            .args(arguments)
            .env("GRIDCPR_GRID", format!("unix:{}", self.path("cprd.sock").display()))
            .stdin(Stdio::null());
        command
    }

    /// Debian's Python as the user whose jobs they are, who may not be allowed to run one that comes first on PATH.
    pub fn python(&self) -> Command {
        self.program_as(NOBODY, Path::new("/usr/bin/python3"))
    }

    fn program_as(&self, uid: u32, program: &Path) -> Command {
        let mut command = Command::new(if am_root() { Path::new("setpriv") } else { program });
        if am_root() {
            command
                .args([format!("--reuid={uid}"), format!("--regid={uid}")])
                .args(["--clear-groups", "--"])
                .arg(program);
        }
        command.current_dir(self.path("work"));
        command
    }

    pub fn cpr(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.cpr(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stderr),
            self.told()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Submits a job whose output is in `work/NAME`; gives its number.
    #[track_caller]
    pub fn submit<S: AsRef<str>>(&self, name: &str, options: &[&str], command: &[S]) -> String {
        let mut arguments = vec!["submit", "-o", name];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(command.iter().map(AsRef::as_ref));
        self.text(&arguments).trim().to_string()
    }

    /// What a job has printed.
    pub fn output(&self, name: &str) -> String {
        fs::read_to_string(self.path("work").join(name)).unwrap_or_default()
    }

    /// A job as the service has it.
    #[track_caller]
    pub fn job(&self, id: &str) -> Value {
        self.json(&["jobs", id])["jobs"][0].clone()
    }

    #[track_caller]
    pub fn wait_for_state(&self, id: &str, state: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let job = self.job(id);
            if job["state"] == state {
                return job;
            }
            assert!(
                Instant::now() < deadline,
                "job {id} is not {state}: {job}{}",
                self.told()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a counter has come to `number`, and until the service has heard that it runs, where there is a
    /// service: a program may write before its node has told of it.
    #[track_caller]
    pub fn wait_for_count(&self, name: &str, number: u32) {
        let line = format!("{number}\n");
        wait_until(&format!("{name} comes to {number}"), || {
            let text = self.output(name);
            text == line || text.ends_with(&format!("\n{line}")) || text.contains(&format!("\n{line}"))
        });
        wait_until("no job is being started", || {
            let listed = self.cpr(&["jobs", "--json"]);
            let jobs: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
            let mut jobs = jobs["jobs"].as_array().into_iter().flatten();
            !listed.status.success() || jobs.all(|job| job["state"] != "starting")
        });
    }

    /// What the daemons have said, for a test that fails.
    pub fn told(&self) -> String {
        let logs = fs::read_dir(self.directory.path()).unwrap().flatten();
        let logs = logs
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"));
        logs.map(|path| format!("\n--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap()))
            .collect()
    }

    /// Processes that belong to jobs of this site.
    pub fn job_processes(&self) -> Vec<i32> {
        job_processes_below(self.directory.path())
    }

    pub fn kill_jobs(&self) {
        wait_until("jobs are gone", || {
            let pids = self.job_processes();
            for pid in &pids {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            pids.is_empty()
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (_, child) in &mut self.daemons {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.told());
        }
        self.kill_jobs();
    }
}
