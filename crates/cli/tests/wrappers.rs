//! `cpr exec`: a command that stands in for a job in the script of a batch system, first and after a requeue.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use support::{As, Cpr, PATIENCE, poll, wait_until};

const NOT_FOUND: i32 = 66;
const BUSY: i32 = 75;
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Says its PID, then counts.
const COUNT: &str = "echo pid $$; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

/// Writes down the signals that come, in a process that a shell has started; ends with 3 when TERM comes.
const HEAR: &str = "
import os, signal, sys, time
for number in map(int, sys.argv[1].split(',')):
    signal.signal(number, lambda number, _: print('signal', number, flush=True))
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
print('ready', flush=True)
while True:
    signal.pause()
";

/// What a batch system has started; ended and waited for on drop.
struct Batch {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Batch {
    /// Runs `cpr exec` with these arguments.
    fn start(cpr: &Cpr, arguments: &[&str]) -> Batch {
        let mut command = cpr.command(cpr.binary());
        command.arg("exec").args(arguments);
        Batch::spawn(command)
    }

    /// Its output is a pipe, as of whoever started it: a restarted job has that of the new wrapper.
    fn spawn(mut command: Command) -> Batch {
        let (mut reader, writer) = std::io::pipe().unwrap();
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer);
        let child = command.spawn().unwrap();
        // With its copies of the pipe the end would never be seen.
        drop(command);
        let output = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&output);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut piece) {
                kept.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Batch { child, output }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    fn numbers(&self) -> Vec<u64> {
        let text = self.text();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn wait_for(&self, least: u64) -> u64 {
        poll(PATIENCE, || {
            self.numbers().last().copied().filter(|last| *last >= least)
        })
        .unwrap_or_else(|| panic!("it never came to {least}: {}", self.text()))
    }

    fn signal(&self, number: i32) {
        let status = Command::new("kill").args([format!("-{number}"), self.pid()]).status();
        assert!(status.unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        poll(PATIENCE, || self.child.try_wait().unwrap()).unwrap_or_else(|| panic!("it has not ended: {}", self.text()))
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn job(cpr: &Cpr, name: &str) -> serde_json::Value {
    let jobs = cpr.cpr(["ps", "-a", "--json"]).good().json();
    let jobs = jobs["jobs"].as_array().unwrap().clone();
    jobs.into_iter().find(|job| job["name"] == name).unwrap_or_default()
}

/// With the PID that it was started under, and nothing of cpr around it.
// GCA-WRAP-5, GCA-WRAP-6, GCA-WRAP-10, GCA-WRAP-11, GCA-WRAP-15, GCA-WRAP-16, GCA-UC-5.1.6, XGCP-PG-1
#[test]
fn the_wrapper_becomes_the_job_and_goes_on_with_it() {
    let Some(cpr) = Cpr::new("the_wrapper_becomes_the_job", As::User) else {
        return;
    };
    let mut first = Batch::start(&cpr, &["--name", "gid-7", "--", "sh", "-c", COUNT, "arg0", "a b"]);
    first.wait_for(3);
    assert!(
        first.text().contains(&format!("pid {}\n", first.pid())),
        "{}",
        first.text()
    );
    let command = fs::read(format!("/proc/{}/cmdline", first.pid())).unwrap();
    assert!(command.starts_with(b"sh\0-c\0") && command.ends_with(b"\0arg0\0a b\0"));
    let status = fs::read_to_string(format!("/proc/{}/status", first.pid())).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
    let shown = job(&cpr, "gid-7");
    assert_eq!(
        (
            shown["phase"].as_str(),
            shown["pid"].as_u64(),
            shown["supervisor"].as_u64()
        ),
        (Some("running"), Some(first.child.id().into()), None),
        "{shown}"
    );
    assert!(cpr.is_running("gid-7"));
    // The name is taken while it runs.
    let second = cpr.cpr(["exec", "--name", "gid-7", "--", "true"]);
    assert_eq!(second.code, BUSY, "{}", second.stderr);
    assert_eq!(cpr.cpr(["exec", "--recover", "--name", "gid-7"]).code, BUSY);
    // It goes on after a checkpoint, and ends by one.
    cpr.checkpoint("gid-7", &[]);
    let had = first.wait_for(first.numbers().len() as u64 + 3);
    cpr.checkpoint("gid-7", &["--stop"]);
    assert_eq!(first.ended().signal(), Some(9));
    assert_eq!(job(&cpr, "gid-7")["phase"], "stopped");
    assert_eq!(cpr.wait("gid-7"), 79);
    // The same identifier, another process; it can be saved at once.
    let mut again = Batch::start(&cpr, &["--recover", "--name", "gid-7", "--", "false"]);
    again.wait_for(had + 3);
    assert!(again.numbers()[0] >= had, "{:?} after {had}", again.numbers());
    let inner = job(&cpr, "gid-7")["pid"].as_u64().unwrap();
    assert_ne!(inner, u64::from(again.child.id()));
    cpr.checkpoint("gid-7", &["--stop"]);
    assert_eq!(again.ended().code(), Some(79), "{}", again.text());
}

/// One and the same line of a script, whatever became of the job before.
#[test]
fn the_same_line_begins_and_goes_on() {
    let Some(cpr) = Cpr::new("the_same_line_begins_and_goes_on", As::User) else {
        return;
    };
    let script = format!("exec \"$CPR\" exec --recover --name sim -- sh -c '{COUNT}'");
    let start = || {
        let mut command = cpr.command("sh");
        command.args(["-c", &script]).env("CPR", cpr.binary());
        Batch::spawn(command)
    };
    let mut first = start();
    first.wait_for(3);
    // Killed without an image: it has to begin again.
    first.signal(9);
    first.ended();
    assert_eq!(job(&cpr, "sim")["phase"], "exited");
    let mut second = start();
    let had = second.wait_for(5);
    assert_eq!(second.numbers()[0], 1);
    cpr.checkpoint("sim", &[]);
    second.signal(9);
    second.ended();
    let third = start();
    third.wait_for(had + 5);
    assert!(third.numbers()[0] >= had, "{:?} after {had}", third.numbers());
    // Only with --recover.
    drop(third);
    let refused = cpr.cpr(["exec", "--name", "sim", "--", "true"]);
    assert!(refused.stderr.contains("--recover"), "{}", refused.stderr);
}

// GCA-WRAP-18, GCA-WRAP-19, GCA-UC-5.3.12
#[test]
fn a_wrapper_that_stays_passes_on_signals_and_the_exit_code() {
    const SIGNALS: [i32; 15] = [1, 2, 3, 10, 12, 14, 23, 24, 26, 27, 29, 30, 34, 50, 64];
    let Some(cpr) = Cpr::new("a_wrapper_that_stays", As::User) else {
        return;
    };
    let numbers = SIGNALS.map(|number| number.to_string()).join(",");
    let program = ["--name", "sim", "--", "/usr/bin/python3", "-c", HEAR, numbers.as_str()];
    let mut first = Batch::start(&cpr, &program);
    wait_until(PATIENCE, "it listens", || first.text().contains("ready"));
    cpr.checkpoint("sim", &["--stop"]);
    first.ended();
    let mut again = Batch::start(&cpr, &["--recover", "--name", "sim"]);
    wait_until(PATIENCE, "it goes on", || job(&cpr, "sim")["phase"] == "running");
    for number in SIGNALS {
        again.signal(number);
        wait_until(PATIENCE, &format!("signal {number} comes"), || {
            again.text().contains(&format!("signal {number}\n"))
        });
    }
    again.signal(15);
    assert_eq!(again.ended().code(), Some(3), "{}", again.text());
}

/// On a node where nothing is known of the job.
// GCA-WRAP-13, GCA-WRAP-14, GFD93-GLO-5
#[test]
fn an_image_is_fetched_first() {
    let Some(cpr) = Cpr::new("an_image_is_fetched_first", As::User) else {
        return;
    };
    let mut first = Batch::start(&cpr, &["--name", "sim", "--", "sh", "-c", COUNT]);
    let had = first.wait_for(3);
    cpr.checkpoint("sim", &["--stop", "-o", "kept.cpr"]);
    first.ended();
    cpr.cpr(["rm", "sim"]).good();
    let fetch = "echo $GRIDCPR_JOB $GRIDCPR_IMAGE >asked; cat $GRIDCPR_IMAGE.cpr";
    let fetched = [
        "--recover",
        "--name",
        "sim",
        "--image",
        "kept",
        "--fetch",
        fetch,
        "--",
        "false",
    ];
    let mut again = Batch::start(&cpr, &fetched);
    again.wait_for(had + 3);
    assert!(again.numbers()[0] >= had, "{:?} after {had}", again.numbers());
    assert_eq!(fs::read_to_string(cpr.work.join("asked")).unwrap(), "sim kept\n");
    cpr.checkpoint("sim", &["--stop"]);
    assert_eq!(again.ended().code(), Some(79));
    cpr.cpr(["rm", "sim"]).good();
    // A file, without any command.
    let file = Batch::start(&cpr, &["--recover", "--name", "sim", "--image", "kept.cpr"]);
    file.wait_for(had + 3);
    drop(file);
    wait_until(PATIENCE, "the job is over", || job(&cpr, "sim")["phase"] != "running");
    cpr.cpr(["rm", "sim"]).good();
    // What is known of it has come with it, to a site where there is nothing else.
    let elsewhere = cpr.work.join("elsewhere");
    let there = |arguments: &[&str]| {
        let mut command = cpr.command(cpr.binary());
        command.env("GRIDCPR_STATE_DIR", &elsewhere).args(arguments);
        support::finish(&cpr.work, command, PATIENCE).good()
    };
    fs::copy(cpr.work.join("kept.cpr"), cpr.work.join("imported.cpr")).unwrap();
    cpr.give(&cpr.work.join("imported.cpr"));
    let shown = |name: &str| there(&["inspect", "--json", name]).json().to_string();
    assert_eq!(
        shown("imported.cpr").replace("imported.cpr", "kept.cpr"),
        shown("kept.cpr")
    );
    let known = there(&["inspect", "--json", "imported.cpr"]).json();
    assert_eq!(known["manifest"]["checkpoint"]["job"], "sim", "what it is of");
    assert_eq!(there(&["ps", "-a", "--json"]).json()["jobs"], serde_json::json!([]));
    there(&["restart", "-d", "--name", "guest", "imported.cpr"]);
    let said = || String::from_utf8_lossy(&there(&["logs", "guest"]).stdout).into_owned();
    wait_until(PATIENCE, "it goes on", || said().lines().count() > 3);
    let first = said().lines().next().unwrap().parse::<u64>().unwrap();
    assert!(first >= had, "{first} after {had}");
    there(&["kill", "-s", "KILL", "guest"]);
    // Nothing there so far, and what is no answer.
    let begins = [
        "exec",
        "--recover",
        "--name",
        "sim",
        "--fetch",
        "true",
        "--",
        "sh",
        "-c",
        "exit 7",
    ];
    assert_eq!(cpr.cpr(begins).code, 7);
    for (fetch, code) in [("echo no route >&2; exit 1", NOT_FOUND), ("echo no image", 65)] {
        let refused = cpr.cpr([
            "exec",
            "--recover",
            "--name",
            "other",
            "--fetch",
            fetch,
            "--",
            "sh",
            "-c",
            "exit 7",
        ]);
        assert_eq!(refused.code, code, "{}", refused.stderr);
        assert!(job(&cpr, "other").is_null());
    }
    let refused = cpr.cpr(["exec", "--recover", "--name", "other"]);
    assert_eq!(refused.code, NOT_FOUND, "{}", refused.stderr);
    assert!(job(&cpr, "other").is_null());
}

/// Whenever the wrapper is killed: a job runs only when there is a record of it.
// GCA-WRAP-1
#[test]
fn no_job_is_started_that_is_not_on_record() {
    let Some(cpr) = Cpr::new("no_job_is_started_that_is_not_on_record", As::User) else {
        return;
    };
    let (mut without, mut with) = (0, 0);
    for number in 0..60 {
        let (name, made) = (format!("job-{number}"), cpr.work.join(format!("made-{number}")));
        let mut wrapper = Batch::start(&cpr, &["--name", &name, "--", "touch", made.to_str().unwrap()]);
        thread::sleep(std::time::Duration::from_micros(250 * number));
        let _ = wrapper.child.kill();
        wrapper.ended();
        let record = job(&cpr, &name);
        assert!(!made.exists() || !record.is_null(), "{name} ran and is unknown");
        assert_ne!(record["phase"], "running", "{record}");
        match record.is_null() {
            true => without += 1,
            false => with += 1,
        }
    }
    assert!(without > 0, "none was killed early enough");
    let named = ["exec", "--name", "last", "--", "touch", "made-last"];
    assert_eq!(cpr.cpr(named).code, 0);
    assert!(
        cpr.work.join("made-last").exists() && !job(&cpr, "last").is_null(),
        "{with}"
    );
}

#[test]
fn a_program_that_cannot_be_run_leaves_no_record() {
    let Some(cpr) = Cpr::new("a_program_that_cannot_be_run", As::User) else {
        return;
    };
    let failed = cpr.cpr(["exec", "--name", "sim", "--", "./missing"]);
    assert_eq!(failed.code, NOT_FOUND, "{}", failed.stderr);
    assert!(job(&cpr, "sim").is_null());
}

/// The example engine takes a process by its PID outside of any namespace of ours, and a restarted one within.
// GCA-WRAP-17
#[test]
fn jobs_of_another_engine_are_wrapped_too() {
    const COUNT_IN_FILE: &str = include_str!("../../../tests/victims/count_in_file.py");
    let Some(cpr) = Cpr::new("jobs_of_another_engine_are_wrapped_too", As::User) else {
        return;
    };
    let config = cpr.work.join("config");
    support::copy_tree(
        &std::path::Path::new(ROOT).join("examples/engine"),
        &config.join("engines.d"),
    );
    cpr.give(&config);
    let wrapped = |arguments: &[&str]| {
        let mut command = cpr.command(cpr.binary());
        command.env("GRIDCPR_CONFIG_DIRS", &config).arg("exec").args(arguments);
        Batch::spawn(command)
    };
    let checkpoint = || {
        let mut command = cpr.command(cpr.binary());
        command
            .env("GRIDCPR_CONFIG_DIRS", &config)
            .args(["checkpoint", "--stop", "sim", "--json"]);
        support::finish(&cpr.work, command, PATIENCE).good().json()
    };
    let named = ["--name", "sim", "--engine", "open-files"];
    let program = ["--", "/usr/bin/python3", "-c", COUNT_IN_FILE];
    let mut first = wrapped(&[&named[..], &program].concat());
    first.wait_for(5);
    assert_eq!(checkpoint()["processes"], 1);
    let had = *first.numbers().last().unwrap();
    assert_eq!(first.ended().signal(), Some(9));
    let mut again = wrapped(&[&named[..], &["--recover"], &program].concat());
    again.wait_for(had + 3);
    assert!(again.numbers()[0] + 1 >= had, "{:?} after {had}", again.numbers());
    checkpoint();
    assert_eq!(again.ended().code(), Some(79), "{}", again.text());
}
