//! `cpr-bench` as a user runs it: its figures make sense, what it writes can be read, and it always ends, with all that
//! it has started.
//!
//! The `cpr` beside it is measured. Where there is none the tests skip, and say so; `cargo build -p cpr-cli` makes it.

#![allow(clippy::unwrap_used, reason = "tests say with unwrap that something must hold")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a run may take: machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(300);

/// A run under way, in a directory of its own; whatever is left of it is killed on drop.
struct Bench {
    place: TempDir,
    child: Child,
}

/// What a run has left.
struct Ended {
    code: Option<i32>,
    output: String,
    errors: String,
    /// PIDs of processes that go on.
    left: Vec<i32>,
    /// Names of files it has not removed.
    files: Vec<String>,
}

/// Starts it with images below a new directory; none where there is no `cpr`.
fn start(test: &str, words: &[&str]) -> Option<Bench> {
    let program = Path::new(env!("CARGO_BIN_EXE_cpr-bench"));
    if !program.with_file_name("cpr").exists() {
        let line = format!("SKIPPED {test}: no cpr beside cpr-bench\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        if let Some(path) = std::env::var_os("GRIDCPR_SKIP_LOG") {
            let mut log = File::options().create(true).append(true).open(path).unwrap();
            log.write_all(line.as_bytes()).unwrap();
        }
        assert!(std::env::var_os("GRIDCPR_NO_SKIP").is_none(), "{line}");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("images");
    fs::create_dir(&images).unwrap();
    let file = |name: &str| File::create(place.path().join(name)).unwrap();
    let child = Command::new(program)
        .args(words)
        .arg("--directory")
        .arg(&images)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(file("output"))
        .stderr(file("errors"))
        .spawn()
        .unwrap();
    Some(Bench { place, child })
}

impl Bench {
    /// Processes of the bench's jobs: they have its state directory in their environment.
    fn processes(&self) -> Vec<i32> {
        let mark = self.place.path().join("images");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| contains(&format!("/proc/{pid}/environ"), mark.as_os_str()))
            .collect()
    }

    /// The victim, once it is there.
    fn victim(&self) -> i32 {
        let is_victim = |pid: &i32| contains(&format!("/proc/{pid}/cmdline"), OsStr::new("victim\0--heartbeat\0"));
        let mut found = None;
        wait_until("there is a victim", || {
            // The command that starts it has the same words in its own line, and is no victim.
            let has_own_program =
                |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("cpr-bench"));
            found = self.processes().into_iter().filter(is_victim).find(has_own_program);
            found.is_some()
        });
        found.unwrap()
    }

    fn end(&mut self) -> Ended {
        let mut code = None;
        wait_until("the bench ends", || match self.child.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                true
            }
            None => false,
        });
        let text = |name: &str| fs::read_to_string(self.place.path().join(name)).unwrap();
        let files = fs::read_dir(self.place.path().join("images")).unwrap().flatten();
        Ended {
            code,
            output: text("output"),
            errors: text("errors"),
            left: self.processes(),
            files: files
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.place.path().join(name)).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.processes() {
            send("KILL", pid);
        }
    }
}

fn contains(path: &str, what: &OsStr) -> bool {
    fs::read(path).is_ok_and(|text| text.windows(what.len()).any(|window| window == what.as_bytes()))
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(signal: &str, pid: i32) {
    let _ = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

#[track_caller]
fn assert_clean(ended: &Ended) {
    assert_eq!(ended.left, [0; 0], "processes left behind");
    assert_eq!(ended.files, [""; 0], "files left behind");
}

/// Every element is closed in order.
fn is_well_formed(xml: &str) -> bool {
    let mut open = Vec::new();
    for piece in xml.split('<').skip(1) {
        let Some((tag, _)) = piece.split_once('>') else {
            return false;
        };
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn a_quick_run_gives_figures_that_make_sense() {
    let words = ["--quick", "--runs", "2", "--json", "j", "--svg", "s", "--markdown", "m"];
    let Some(mut bench) = start("a_quick_run_gives_figures_that_make_sense", &words) else {
        return;
    };
    let ended = bench.end();
    assert_eq!(ended.code, Some(0), "{}{}", ended.output, ended.errors);
    assert_clean(&ended);

    let report: Value = serde_json::from_str(&bench.read("j")).unwrap();
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for result in results {
        let case = result["case"].as_str().unwrap();
        let figure = |name: &str, which: &str| result["figures"][name][which].as_f64().unwrap();
        for name in [
            "freeze_ms",
            "undisturbed_ms",
            "checkpoint_ms",
            "durable_ms",
            "write_ms",
            "stop_ms",
            "stopped_ms",
            "restart_ms",
            "restart_command_ms",
            "read_ms",
            "image_bytes",
        ] {
            let (min, median, max) = (figure(name, "min"), figure(name, "median"), figure(name, "max"));
            assert!(
                0.0 < min && min <= median && median <= max,
                "{case}: {name}: {min} {median} {max}"
            );
            assert_eq!(result["figures"][name]["samples"].as_array().unwrap().len(), 2);
        }
        // Random memory cannot be stored in less.
        let bytes = match case {
            "5mb" => 5_000_000.0,
            "256mib" => 268_435_456.0,
            _ => 16_777_216.0,
        };
        let image = figure("image_bytes", "min");
        assert!((0.99 * bytes..bytes + 64e6).contains(&image), "{case}: {image}");
        // A victim that goes on stands still for a part of the command only, and a beat takes a tenth of a millisecond.
        assert!(figure("freeze_ms", "min") >= 0.1, "{case}");
        assert!(
            figure("freeze_ms", "min") <= figure("checkpoint_ms", "max") + 100.0,
            "{case}"
        );
        assert!(
            figure("stopped_ms", "median") <= figure("stop_ms", "max") + 1.0,
            "{case}"
        );
        assert!(
            result["figures"]["usage"]["peak_bytes"].as_u64().unwrap() > 1 << 20,
            "{case}"
        );
        assert!(result["figures"]["usage"]["cpu_ms"].as_f64().unwrap() > 0.0, "{case}");
        assert!(ended.output.contains(result["title"].as_str().unwrap()));
    }
    assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());
    assert!(report["tools"][0]["version"].as_str().unwrap().starts_with("cpr "));

    let plot = bench.read("s");
    assert!(plot.starts_with("<svg ") && is_well_formed(&plot), "{plot}");
    assert!(plot.contains("64 threads"));
    assert!(bench.read("m").contains("| 256 MiB | cpr |"));
}

#[test]
fn a_killed_victim_is_an_error_and_no_hang() {
    let words = ["--case", "256mib", "--runs", "1000"];
    let Some(mut bench) = start("a_killed_victim_is_an_error_and_no_hang", &words) else {
        return;
    };
    send("KILL", bench.victim());
    let ended = bench.end();
    assert_eq!(ended.code, Some(1), "{}{}", ended.output, ended.errors);
    assert!(ended.output.contains("FAILED: 256 MiB with cpr"), "{}", ended.output);
    assert_clean(&ended);
}

#[test]
fn ctrl_c_ends_everything() {
    let words = ["--case", "256mib", "--runs", "1000", "--json", "j"];
    let Some(mut bench) = start("ctrl_c_ends_everything", &words) else {
        return;
    };
    bench.victim();
    send("INT", bench.child.id() as i32);
    let ended = bench.end();
    assert_eq!(ended.code, Some(80), "{}{}", ended.output, ended.errors);
    assert_clean(&ended);
    let report: Value = serde_json::from_str(&bench.read("j")).unwrap();
    assert_eq!(report["results"], Value::Array(Vec::new()), "nothing was finished");
}

#[test]
fn a_missing_peer_and_a_wrong_case_are_said() {
    let words = ["--case", "5mb", "--runs", "1", "--peer", "criu=/nonexistent/criu"];
    let Some(mut bench) = start("a_missing_peer_and_a_wrong_case_are_said", &words) else {
        return;
    };
    let ended = bench.end();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(
        ended.output.contains("NOT MEASURED: criu, in all cases"),
        "{}",
        ended.output
    );
    assert!(ended.errors.contains("/nonexistent/criu"), "{}", ended.errors);

    let mut wrong = start("a_missing_peer_and_a_wrong_case_are_said", &["--case", "none"]).unwrap();
    let ended = wrong.end();
    assert_eq!(ended.code, Some(64));
    assert!(ended.errors.contains("there is no case none"), "{}", ended.errors);
}
