//! Jobs from outside, as root and as an ordinary user.
//!
//! Forking needs a process of one thread, which the usual test harness is not: this program is its own harness, and
//! calls itself (`helper …`) as the command that runs a job. Each test runs in a child process of its own user.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use cpr_node::{CheckpointOptions, JobSpec, Phase, StateDir, run};

const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "helper") {
        return helper(&arguments[1..]);
    }
    if arguments.iter().any(|a| a == "--list") {
        // Nothing is ignored.
        if !arguments.iter().any(|a| a == "--ignored") {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in TESTS {
        for user in [Some(NOBODY), None] {
            let full = format!("{name} ({})", user.map_or("this user", |_| "uid 65534"));
            if !wanted.is_empty() && !wanted.iter().any(|w| full.contains(w.as_str())) {
                continue;
            }
            if user.is_some() && !am_root() {
                println!("test {full} ... skipped: needs root to become another user");
                continue;
            }
            let lab = Lab::new(user);
            let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&lab))).is_ok();
            println!("test {full} ... {}", if good { "ok" } else { "FAILED" });
            failed += usize::from(!good);
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The command line of a small `cpr`: STATE run|kill|wait|… arguments.
fn helper(arguments: &[String]) -> ExitCode {
    let state = StateDir::open_at(Path::new(&arguments[0])).unwrap();
    let rest: Vec<&str> = arguments[2..].iter().map(String::as_str).collect();
    let flag = |f: &str| rest.iter().take_while(|a| **a != "--").any(|a| *a == f);
    let result = match arguments[1].as_str() {
        "run" => {
            let dash = rest.iter().position(|a| *a == "--").unwrap();
            let value = |f: &str| {
                let at = rest[..dash].iter().position(|a| *a == f)?;
                Some(rest[at + 1].to_string())
            };
            let spec = JobSpec {
                name: value("--name"),
                command: rest[dash + 1..].iter().map(Into::into).collect(),
                terminal: flag("-t"),
                every: value("--every").map(|ms| Duration::from_millis(ms.parse().unwrap())),
                sequence: None,
                keep: None,
                ..JobSpec::default()
            };
            run(&state, spec, flag("-d")).map(|o| o.exit_code())
        }
        "kill" => state
            .job(rest[0])
            .and_then(|j| j.kill(rest[1].parse().unwrap()))
            .map(|()| 0),
        "wait" => state
            .job(rest[0])
            .and_then(|j| j.wait(Some(PATIENCE)))
            .map(|o| o.exit_code()),
        "attach" => state.job(rest[0]).and_then(|j| j.attach()).map(|o| o.exit_code()),
        "suspend" => state.job(rest[0]).and_then(|j| j.suspend()).map(|r| {
            println!("{} {} {:?}", r.method, r.processes, r.note);
            0
        }),
        "resume" => state.job(rest[0]).and_then(|j| j.resume()).map(|()| 0),
        "checkpoint" => state
            .job(rest[0])
            .and_then(|j| j.checkpoint(CheckpointOptions::default()))
            .map(|_| 0),
        "check" => cpr_node::check_bare(cpr_node::Bare::Process(rest[0].parse().unwrap())).map(|_| 0),
        "status" => state.job(rest[0]).and_then(|j| j.status()).map(|s| {
            println!("{}", serde_json::to_string(&s).unwrap());
            0
        }),
        "rm" => state.job(rest[0]).and_then(|j| j.remove(flag("-f"))).map(|()| 0),
        other => panic!("{other}"),
    };
    match result {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// A place and a user for one test.
struct Lab {
    directory: tempfile::TempDir,
    user: Option<u32>,
}

impl Lab {
    fn new(user: Option<u32>) -> Lab {
        let directory = tempfile::Builder::new().prefix("cpr-node-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        // The program itself may lie where the user may not go.
        let program = directory.path().join("helper");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Lab { directory, user }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = self.path("helper");
        let mut command = match self.user {
            None => Command::new(program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
                command
                    .args(["--clear-groups", "--inh-caps=-all", "--no-new-privs", "--"])
                    .arg(program);
                command
            }
        };
        command.arg("helper").arg(self.path("state")).args(arguments);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Calls and requires the exit code; gives standard output.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text} {errors}");
        text
    }

    fn shell(&self, code: i32, script: &str) -> String {
        self.expect(code, &["run", "--name", "job", "--", "/bin/sh", "-c", script])
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.expect(0, &["status", "job"])).unwrap()
    }

    fn remove(&self) {
        self.expect(0, &["rm", "job", "-f"]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nothing may be left of a test that failed.
        let _ = self.call(&["rm", "job", "-f"]);
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn alive(pid: i64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

type Test = fn(&Lab);
const TESTS: &[(&str, Test)] = &[
    ("exit_codes", exit_codes),
    ("namespace", namespace),
    ("failures", failures),
    ("signals", signals),
    ("orphans", orphans),
    ("orphan_signal", orphan_signal),
    ("permission", permission),
    ("detached", detached),
    ("supervisor_killed", supervisor_killed),
    ("terminal", terminal),
    ("attach", attach),
    ("suspend", suspend),
    ("files", files),
    ("checkpoint_failure", checkpoint_failure),
];

fn exit_codes(lab: &Lab) {
    assert_eq!(lab.shell(0, "echo hello"), "hello\n");
    lab.remove();
    lab.shell(7, "exit 7");
    assert_eq!(lab.status()["phase"], "exited");
    lab.expect(7, &["wait", "job"]);
    lab.remove();
    lab.shell(128 + 9, "kill -9 $$");
    assert_eq!(lab.status()["phase"], "crashed");
    assert_eq!(lab.status()["signal"], 9);
    lab.expect(128 + 9, &["wait", "job"]);
}

fn namespace(lab: &Lab) {
    let script = "echo $$ $(id -u); grep -E '^(CapEff|NoNewPrivs|SigBlk|SigIgn):' /proc/self/status; cat /proc/1/comm; \
                  ls -l /proc/self/fd | wc -l";
    let text = lab.shell(0, script);
    let user = lab.user.unwrap_or(rustix::process::geteuid().as_raw());
    let mut lines = text.lines();
    let (number, id) = lines.next().unwrap().split_once(' ').unwrap();
    assert_eq!(id, user.to_string(), "{text}");
    // Init is 1, and the others begin somewhere.
    assert!(number.parse::<u32>().unwrap() > 300, "{text}");
    let mut line = || lines.next().unwrap().split_whitespace().last().unwrap().to_string();
    let mut values = Vec::new();
    for _ in 0..4 {
        values.push(line());
    }
    // Order in the file: SigBlk, SigIgn, CapEff, NoNewPrivs.
    assert_eq!(values[0], "0000000000000000", "signals are blocked: {text}");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = own.lines().find_map(|l| l.strip_prefix("SigIgn:")).unwrap().trim();
    // SIGPIPE is ignored here by the Rust runtime, and must not be in the job.
    let ignored = u64::from_str_radix(ignored, 16).unwrap() & !(1 << 12);
    assert_eq!(
        values[1],
        format!("{ignored:016x}"),
        "dispositions are not the caller's: {text}"
    );
    if lab.user.is_some() {
        assert_eq!(values[2], "0000000000000000", "the job has capabilities: {text}");
    }
    assert_eq!(line(), "cpr-init");
    // The same but for one: each lists the descriptor it lists with.
    let count = Command::new("/bin/sh")
        .args(["-c", "ls -l /proc/self/fd | wc -l"])
        .stdin(Stdio::null())
        .output();
    let count = String::from_utf8(count.unwrap().stdout).unwrap();
    assert_eq!(line(), count.trim(), "descriptors leaked into the job");
}

fn failures(lab: &Lab) {
    lab.expect(66, &["run", "--name", "job", "--", "/nonexistent/program"]);
    lab.expect(66, &["run", "-d", "--name", "job", "--", "/nonexistent/program"]);
    lab.expect(77, &["run", "--name", "job", "--", "/etc/passwd"]);
    lab.expect(66, &["status", "job"]);
    lab.shell(0, "true");
    lab.expect(67, &["run", "--name", "job", "--", "true"]);
    lab.expect(64, &["run", "--name", "../x", "--", "true"]);
    lab.expect(68, &["kill", "job", "15"]);
    lab.expect(68, &["checkpoint", "job"]);
}

fn signals(lab: &Lab) {
    for (signal, script, code) in [
        (
            "TERM",
            "trap 'exit 5' TERM; touch ready; while :; do sleep 0.02; done",
            5,
        ),
        (
            "USR1",
            "trap 'exit 6' USR1; touch ready; while :; do sleep 0.02; done",
            6,
        ),
        ("INT", "touch ready; exec sleep 1000", 130),
    ] {
        let mut child = lab
            .command(&["run", "--name", "job", "--", "/bin/sh", "-c", script])
            .spawn()
            .unwrap();
        until("the job runs", || lab.path("ready").exists());
        // setpriv execs: the child is the supervisor.
        let sent = Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        fs::remove_file(lab.path("ready")).unwrap();
        lab.remove();
    }
}

fn orphans(lab: &Lab) {
    let started = Instant::now();
    // The orphan outlives the root process; the job ends with it, with the root's exit code.
    lab.shell(
        3,
        "(trap '' HUP; sleep 0.5; echo late > late; sleep 0.1) >/dev/null 2>&1 & exit 3",
    );
    assert!(lab.path("late").exists() && started.elapsed() >= Duration::from_millis(600));
    assert_eq!(lab.status()["exit_code"], 3);
}

/// When the root process has ended, a signal to the supervisor reaches what is left.
fn orphan_signal(lab: &Lab) {
    let script = "sleep 1000 >/dev/null 2>&1 & exit 3";
    let mut child = lab
        .command(&["run", "--name", "job", "--", "/bin/sh", "-c", script])
        .spawn()
        .unwrap();
    until("the root ended", || {
        let output = lab.call(&["status", "job"]);
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success() && text.contains("\"exit_code\":3")
    });
    assert_eq!(lab.status()["phase"], "running");
    let sent = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// LBNL-3.6.2.1: who may not signal a process may not checkpoint it; root may, in the user's namespaces too.
fn permission(lab: &Lab) {
    lab.expect(0, &["run", "-d", "--name", "job", "--", "sleep", "1000"]);
    let pid = lab.status()["pid"].as_i64().unwrap().to_string();
    lab.expect(0, &["check", &pid]);
    if !am_root() {
        return;
    }
    let other = Lab::new(if lab.user.is_some() { None } else { Some(NOBODY) });
    other.expect(if lab.user.is_some() { 0 } else { 77 }, &["check", &pid]);
    lab.expect(66, &["check", "999999999"]);
    assert_eq!(lab.status()["phase"], "running");
}

fn detached(lab: &Lab) {
    let script = "echo out; echo err >&2; trap 'echo got; exit 4' TERM; touch ready; while :; do sleep 0.02; done";
    lab.expect(0, &["run", "-d", "--name", "job", "--", "/bin/sh", "-c", script]);
    until("the job runs", || lab.path("ready").exists());
    let status = lab.status();
    assert_eq!(status["phase"], "running");
    assert!(status["inner_pid"].as_i64().unwrap() > 300, "{status}");
    let pid = status["pid"].as_i64().unwrap();
    assert!(alive(pid));
    lab.expect(75, &["rm", "job"]);
    lab.expect(0, &["kill", "job", "15"]);
    lab.expect(4, &["wait", "job"]);
    assert!(!alive(pid));
    let log = lab.path("state/jobs/job/log");
    assert_eq!(fs::read_to_string(&log).unwrap(), "out\nerr\ngot\n");
    lab.expect(0, &["rm", "job"]);
    assert!(!log.exists());
    lab.expect(0, &["run", "-d", "--name", "job", "--", "sleep", "1000"]);
    let pid = lab.status()["pid"].as_i64().unwrap();
    lab.expect(0, &["kill", "job", "9"]);
    lab.expect(137, &["wait", "job"]);
    assert!(!alive(pid));
}

fn supervisor_killed(lab: &Lab) {
    lab.expect(
        0,
        &[
            "run",
            "-d",
            "--name",
            "job",
            "--",
            "/bin/sh",
            "-c",
            "sleep 1000 & sleep 1000",
        ],
    );
    let status = lab.status();
    let (pid, supervisor) = (status["pid"].as_i64().unwrap(), status["supervisor"].as_i64().unwrap());
    let sent = Command::new("kill")
        .args(["-9", &supervisor.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    until("the job dies with its supervisor", || !alive(pid));
    until("the lock is free", || lab.status()["phase"] == "crashed");
    lab.expect(137, &["wait", "job"]);
    lab.expect(0, &["rm", "job"]);
}

fn terminal(lab: &Lab) {
    let script = "test -t 0 && test -t 1 && tty >/dev/null && ps -o tty= -p $$ | grep -q pts && stty size && exit 9";
    let output = lab.expect(9, &["run", "-t", "--name", "job", "--", "/bin/sh", "-c", script]);
    assert!(output.contains("0 0") || output.contains("24 80"), "{output:?}");
    lab.remove();
    // What is typed arrives; Ctrl-C typed there is a signal to the job.
    let mut child = lab
        .command(&[
            "run",
            "-t",
            "--name",
            "job",
            "--",
            "/bin/sh",
            "-c",
            "read a; echo got $a; exec cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"hello\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    while !text.contains("got hello") {
        let n = stdout.read(&mut buffer).unwrap();
        assert!(n > 0, "{text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    stdin.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

fn attach(lab: &Lab) {
    let script = "echo hi; while read a; do echo \"<$a>\"; test \"$a\" = end && exit 11; done";
    lab.expect(0, &["run", "-d", "-t", "--name", "job", "--", "/bin/sh", "-c", script]);
    let socket = fs::metadata(lab.path("state/jobs/job/control.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o7777, 0o600);
    let session = |typed: &[u8], code: i32| {
        let mut child = lab
            .command(&["attach", "job"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed).unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{text:?}");
        text
    };
    session(b"one\n\x1d", 0);
    let text = session(b"end\n", 11);
    assert!(text.contains("<end>"), "{text:?}");
    let log = fs::read_to_string(lab.path("state/jobs/job/log")).unwrap();
    assert!(log.contains("hi") && log.contains("<one>"), "{log:?}");
}

fn suspend(lab: &Lab) {
    let script = "i=0; while :; do i=$((i+1)); echo $i > count.tmp; mv count.tmp count; done";
    lab.expect(0, &["run", "-d", "--name", "job", "--", "/bin/sh", "-c", script]);
    let count = || fs::read_to_string(lab.path("count")).unwrap_or_default();
    until("it counts", || !count().is_empty());
    let report = lab.expect(0, &["suspend", "job"]);
    assert_eq!(lab.status()["phase"], "suspended", "{report}");
    let before = count();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(count(), before, "{report}");
    lab.expect(75, &["suspend", "job"]);
    lab.expect(75, &["checkpoint", "job"]);
    lab.expect(0, &["resume", "job"]);
    until("it counts on", || count() != before);
    lab.expect(64, &["resume", "job"]);
    lab.expect(0, &["suspend", "job"]);
    lab.expect(0, &["kill", "job", "9"]);
    lab.expect(137, &["wait", "job"]);
}

fn files(lab: &Lab) {
    lab.expect(0, &["run", "-d", "--name", "job", "--", "sleep", "1000"]);
    let mut todo = vec![lab.path("state")];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o7777, wanted, "{}", path.display());
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    if lab.user.is_none() {
        let state = StateDir::open_at(&lab.path("state")).unwrap();
        assert_eq!(state.jobs().unwrap().len(), 1);
        let unnamed = |command: &str| JobSpec {
            command: vec![command.into()],
            ..JobSpec::default()
        };
        assert_eq!(state.create_job(unnamed("/bin/sim")).unwrap().name(), "sim-1");
        assert_eq!(state.create_job(unnamed("sim")).unwrap().name(), "sim-2");
        assert_eq!(state.job("sim-2").unwrap().status().unwrap().phase, Phase::Created);
    }
    lab.remove();
}

/// A checkpoint that fails, asked for or periodic, leaves job and supervisor alone.
fn checkpoint_failure(lab: &Lab) {
    let arguments = [
        "run",
        "-d",
        "--every",
        "50",
        "--name",
        "job",
        "--",
        "perl",
        "-e",
        "socket(S, 2, 1, 262); listen(S, 1); socket(C, 2, 1, 262); connect(C, getsockname(S)); sleep 1000",
    ];
    lab.expect(0, &arguments);
    until("a checkpoint was tried", || !lab.status()["last_checkpoint"].is_null());
    // The periodic ones may be in our way.
    until("ours was tried", || {
        lab.call(&["checkpoint", "job"]).status.code() == Some(69)
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(lab.status()["phase"], "running");
    let log = fs::read_to_string(lab.path("state/jobs/job/log")).unwrap();
    assert_eq!(
        log.matches("multipath TCP connection is not supported").count(),
        1,
        "{log}"
    );
    lab.expect(0, &["kill", "job", "9"]);
    lab.expect(137, &["wait", "job"]);
}
