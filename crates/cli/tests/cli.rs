//! The command from outside: arguments, exit codes, messages, JSON, help, and the documents that describe them.
//!
//! What needs a checkpoint is in `workloads.rs`. `UPDATE_REFERENCE=1` rewrites `reference.txt`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cpr_types::ErrorKind;
use gridcpr::image::ImageWriter;
use gridcpr::image::model::*;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A state directory of its own; jobs left in it are ended.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        Lab {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cpr"));
        command
            .args(arguments)
            .env("GRIDCPR_STATE_DIR", self.path("state"))
            .env_remove("COLUMNS")
            .stdin(Stdio::null());
        command
    }

    fn cpr(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.cpr(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments)).unwrap()
    }

    fn image(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let names = stdout(&self.cpr(&["ps", "-aq"]));
        for name in names.lines() {
            self.cpr(&["rm", "--force", name]);
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}", output.status))
}

/// One error on standard error, in our form.
fn assert_refused(output: &Output, kind: ErrorKind, message: &str) {
    let text = stderr(output);
    assert_eq!(code(output), i32::from(kind.exit_code()), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("cpr: error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(errors[0].contains(message), "{text}");
    assert!(!errors[0].ends_with('.') || errors[0].ends_with("..."), "{text}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(name: &str) -> String {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of all commands that `cpr --help` shows.
fn verbs(lab: &Lab) -> Vec<String> {
    let help = lab.text(&["--help"]);
    let list = help
        .split("\nCommands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    list.lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .map(|line| line.split_whitespace().next().unwrap().to_string())
        .collect()
}

/// An image of two processes, with 8 KiB of page data.
fn sample() -> (Manifest, Vec<u8>) {
    let mut writer = ImageWriter::new(Vec::new(), "x86_64").unwrap();
    let offset = writer.append(&[7; 8192]).unwrap();
    let thread = |tid: i32, uid: u32| Thread {
        tid,
        name: "worker\x1b[31m".into(),
        credentials: Credentials {
            uids: [uid, uid + 1, uid + 2, uid + 3],
            gids: [uid + 10, uid + 11, uid + 12, uid + 13],
            groups: vec![uid + 20, uid + 21],
            effective: u64::from(uid) << 4,
            ..Credentials::default()
        },
        ..Thread::default()
    };
    let mapping = |start: u64, kind: MappingKind| Mapping {
        start,
        end: start + 8192,
        protection: 3,
        kind,
        offset: 0,
        flags: Vec::new(),
        extents: Vec::new(),
        guards: Vec::new(),
        policy: None,
    };
    let open = |object: Object| OpenFile {
        flags: 2,
        position: 42,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: Vec::new(),
        mount_namespace: None,
        object,
    };
    let descriptor = |fd: i32, file: u32| Descriptor {
        fd,
        file: FileId(file),
        close_on_exec: false,
    };
    let process = |pid: i32, ppid: i32, space: u32, threads: Vec<Thread>, descriptors: Vec<Descriptor>| Process {
        pid,
        ppid,
        pgid: pid,
        sid: 10,
        threads,
        address_space: Some(AddressSpaceId(space)),
        descriptors,
        cwd: "/var/tmp".into(),
        root: "/".into(),
        ..Process::default()
    };
    let mut heap = mapping(0x5000_0000, MappingKind::Anonymous);
    heap.extents = vec![Extent {
        start: 0x5000_0000,
        length: 8192,
        offset,
    }];
    let manifest = Manifest {
        checkpoint: Checkpoint {
            time_ns: 1_000_000_000_000_000_000,
            job: "sim".to_string(),
            architecture: "x86_64".to_string(),
            root_pid: 10,
            own_pid_namespace: true,
            owner_uid: 1234,
            ..Checkpoint::default()
        },
        processes: vec![
            process(
                10,
                1,
                0,
                vec![thread(10, 500), thread(11, 500)],
                vec![descriptor(0, 0), descriptor(7, 1)],
            ),
            process(12, 10, 1, vec![thread(12, 600)], vec![descriptor(3, 2)]),
        ],
        address_spaces: vec![
            AddressSpace {
                executable: Some(MappedFileId(0)),
                mappings: vec![mapping(0x1_0000, MappingKind::PrivateFile(MappedFileId(0))), heap],
                ..AddressSpace::default()
            },
            AddressSpace {
                mappings: vec![mapping(0x7000_0000, MappingKind::Stack)],
                ..AddressSpace::default()
            },
        ],
        mapped_files: vec![MappedFile {
            path: "/opt/sim/bin/sim".into(),
            size: 8192,
            ..MappedFile::default()
        }],
        files: vec![
            open(Object::Inherited { stream: 0 }),
            open(Object::Regular(RegularFile {
                path: "/data/input.dat".into(),
                size: 123_456,
                ..RegularFile::default()
            })),
            open(Object::Pipe(PipeId(0))),
        ],
        pipes: vec![Pipe {
            capacity: 65536,
            data: vec![Bytes(b"queued".to_vec())],
        }],
        ..Manifest::default()
    };
    let (bytes, _) = writer.finish(&manifest).unwrap();
    (manifest, bytes)
}

/// The same image, of a format of the far future.
fn of_the_future(image: &[u8]) -> Vec<u8> {
    const HASHED: usize = 4096 - 32;
    let mut bytes = image.to_vec();
    bytes[12..14].copy_from_slice(&9999_u16.to_le_bytes());
    let hash = blake3::hash(&bytes[..HASHED]);
    bytes[HASHED..4096].copy_from_slice(hash.as_bytes());
    bytes
}

#[test]
fn wrong_arguments_are_refused() {
    let lab = Lab::new();
    let cases: &[(&[&str], &str)] = &[
        (&["nonsense"], "nonsense"),
        (&["--nonsense"], "--nonsense"),
        (&["run"], "<COMMAND>"),
        (&["run", "--nonsense", "true"], "--nonsense"),
        (&["run", "--every", "10", "true"], "not a duration"),
        (&["run", "--every", "1us", "true"], "hundred times a second"),
        (&["run", "--keep", "0", "true"], "at least one image"),
        (&["run", "--name", "a/b", "true"], "cannot be the name of a job"),
        (&["run", "--name", "a.cpr", "true"], "cannot be the name of a job"),
        (&["run", "--name", ".a", "true"], "cannot be the name of a job"),
        (&["run", "-d", "--on-exit", "remove", "true"], "--on-exit"),
        (&["checkpoint"], "<JOB|PID>"),
        (&["checkpoint", "--stop", "--signal", "TERM", "a"], "--signal"),
        (&["checkpoint", "--signal", "NONE", "a"], "not a signal"),
        (&["checkpoint", "a.cpr"], "is an image, not a job"),
        (&["restart"], "<JOB|IMAGE>"),
        (&["restart", "--namespace", "perhaps", "a"], "perhaps"),
        (&["suspend", "./a"], "is an image, not a job"),
        (&["kill", "--signal", "99", "a"], "not a signal"),
        (&["inspect", "--section", "soul", "a"], "soul"),
        (&["--json", "inspect", "--section", "memory", "a"], "--section"),
        (&["-q", "-v", "ps"], "--verbose"),
        (&["completions", "cmd.exe"], "cmd.exe"),
    ];
    for (arguments, message) in cases {
        let output = lab.cpr(arguments);
        assert_refused(&output, ErrorKind::Usage, message);
        assert!(
            stderr(&output).contains("\nhint: ") || stderr(&output).contains("hundred"),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let bare = lab.cpr(&[]);
    assert_eq!(code(&bare), 64);
    assert!(stderr(&bare).contains("Usage: cpr"));
    assert_eq!(stdout(&bare), "");
}

/// LBNL-3.6.1.11: ten different failures, ten distinct documented codes, each with its reason.
#[test]
fn every_cause_has_its_own_code() {
    let lab = Lab::new();
    let (_, bytes) = sample();
    let future = lab.image("future.cpr", &of_the_future(&bytes));
    let short = lab.image("short.cpr", &bytes[..bytes.len() / 2]);
    lab.text(&["run", "-d", "--name", "busy", "--", "sleep", "60"]);
    assert_eq!(code(&lab.cpr(&["run", "--name", "over", "true"])), 0);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let somebody_else = fs::metadata(lab.directory.path()).unwrap().uid() + 1;
    let foreign = if std::os::unix::fs::chown(lab.directory.path(), Some(somebody_else), None).is_ok() {
        lab.directory.path()
    } else {
        // Not root: the root directory is somebody else's.
        Path::new("/")
    };
    let provoked = [
        (
            ErrorKind::Usage,
            "not a signal",
            lab.cpr(&["kill", "-s", "NONE", "over"]),
        ),
        (ErrorKind::Damaged, "short.cpr", lab.cpr(&["verify", &short])),
        (
            ErrorKind::NotFound,
            "there is no job absent",
            lab.cpr(&["checkpoint", "absent"]),
        ),
        (
            ErrorKind::AlreadyExists,
            "there is a job over already",
            lab.cpr(&["run", "--name", "over", "true"]),
        ),
        (ErrorKind::Gone, "job over is not running", lab.cpr(&["kill", "over"])),
        (
            ErrorKind::NoSpace,
            "No space left on device",
            lab.command(&["ps"]).stdout(full).output().unwrap(),
        ),
        (ErrorKind::Busy, "job busy is running", lab.cpr(&["rm", "busy"])),
        (
            ErrorKind::TimedOut,
            "job busy has not ended",
            lab.cpr(&["wait", "--timeout", "20ms", "busy"]),
        ),
        (
            ErrorKind::Denied,
            "not to us",
            lab.command(&["ps"]).env("GRIDCPR_STATE_DIR", foreign).output().unwrap(),
        ),
        (ErrorKind::Incompatible, "future.cpr", lab.cpr(&["restart", &future])),
    ];
    let mut codes = BTreeSet::new();
    for (kind, message, output) in &provoked {
        assert_refused(output, *kind, message);
        codes.insert(code(output));
    }
    assert_eq!(codes.len(), 10);
    let table = document("exit-codes.md");
    for code in codes {
        assert!(table.contains(&format!("\n| {code} |")), "{code} is not documented");
    }
}

#[test]
fn images_that_are_none_are_refused_by_every_command() {
    let lab = Lab::new();
    let (_, bytes) = sample();
    let mut altered = bytes.clone();
    let middle = bytes.len() - 300;
    altered[middle] ^= 1;
    let cases = [
        (
            lab.image("other.cpr", b"#!/bin/sh\nexit 0\n"),
            ErrorKind::Damaged,
            "not an image",
        ),
        (lab.image("empty.cpr", b""), ErrorKind::Damaged, "empty"),
        (lab.image("short.cpr", &bytes[..5000]), ErrorKind::Damaged, "short.cpr"),
        (lab.image("altered.cpr", &altered), ErrorKind::Damaged, "altered"),
        (
            lab.image("future.cpr", &of_the_future(&bytes)),
            ErrorKind::Incompatible,
            "9999",
        ),
        (
            lab.path("absent.cpr").display().to_string(),
            ErrorKind::NotFound,
            "No such file",
        ),
        (
            lab.directory.path().display().to_string(),
            ErrorKind::Damaged,
            "directory",
        ),
    ];
    for (path, kind, message) in &cases {
        for verb in ["restart", "inspect", "check", "verify", "rm"] {
            assert_refused(&lab.cpr(&[verb, path]), *kind, message);
        }
    }
    assert!(lab.path("empty.cpr").exists());
    lab.text(&["rm", "--force", lab.path("empty.cpr").to_str().unwrap()]);
    assert!(!lab.path("empty.cpr").exists());
    let text = lab.image("notes.txt", b"dear diary");
    assert_refused(&lab.cpr(&["rm", "--force", &text]), ErrorKind::Damaged, "not an image");
    assert!(Path::new(&text).exists());
    // A stream is refused the same way.
    let stream = fs::File::open(&cases[0].0).unwrap();
    let output = lab.command(&["restart", "-"]).stdin(stream).output().unwrap();
    assert_refused(&output, ErrorKind::Damaged, "standard input");
    assert_eq!(lab.text(&["ps", "-aq"]), "", "nothing was started");
}

#[test]
fn altered_page_data_are_found_by_verify() {
    let lab = Lab::new();
    let (_, mut bytes) = sample();
    let good = lab.image("good.cpr", &bytes);
    bytes[5000] ^= 1;
    let bad = lab.image("bad.cpr", &bytes);
    let answer = lab.json(&["verify", "--json", &good]);
    assert_eq!(
        answer,
        json!({"image": good, "valid": true, "restored": null, "bytes": bytes.len()})
    );
    assert_shape(&answer, &example("verify"), "verify");
    assert_refused(&lab.cpr(&["verify", &bad]), ErrorKind::Damaged, "bad.cpr");
}

/// LBNL-3.6.1.10: every process, thread, descriptor, mapping and credential is listed, as text and as JSON.
#[test]
fn inspect_lists_everything() {
    let lab = Lab::new();
    let (manifest, bytes) = sample();
    let path = lab.image("sim.cpr", &bytes);
    let text = lab.text(&["inspect", &path]);
    for expected in [
        "process 10: parent 1, group 10, session 10",
        "process 12: parent 10, group 12, session 10",
        "thread 10 ",
        "thread 11 ",
        "thread 12 ",
        "executable /opt/sim/bin/sim",
        "directory /var/tmp",
        "user: real 500, effective 501, saved 502, file system 503",
        "group: real 510, effective 511, saved 512, file system 513",
        "supplementary groups: 520 521",
        "effective 0x1f40,",
        "user: real 600, effective 601, saved 602, file system 603",
        "0: standard input of whoever restarts",
        "7: /data/input.dat (123 kB), read and write, position 42",
        "3: pipe 0",
        "000000010000-000000012000 rw-p",
        "000050000000-000050002000 rw-p  8.19 kB, saved  8.19 kB  anonymous",
        "000070000000-000070002000 rw-p",
        "6 bytes queued",
        "2001-09-09T01:46:40Z",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "escape sequences reach the terminal");
    let json = lab.json(&["--json", "inspect", &path]);
    let listed: Manifest = serde_json::from_value(json["manifest"].clone()).unwrap();
    assert_eq!(listed, manifest);
    assert_eq!(json["header"]["architecture"], "x86_64");
    assert_eq!(json["bytes"], bytes.len());
    assert_shape(&json, &example("inspect"), "inspect");
    let part = lab.text(&["inspect", "--section", "files", &path]);
    assert!(part.contains("/data/input.dat") && !part.contains("saved"));
    // Without a suffix it is an image, too, where no job has that name.
    fs::rename(&path, lab.path("plain")).unwrap();
    let output = lab
        .command(&["inspect", "plain"])
        .current_dir(lab.directory.path())
        .output()
        .unwrap();
    assert_eq!(code(&output), 0);
}

#[test]
fn images_are_not_written_to_or_read_from_a_terminal() {
    let lab = Lab::new();
    let pair = cpr_kernel::terminal_relay::open_pair().unwrap();
    let slave = || Stdio::from(pair.slave.try_clone().unwrap());
    let mut command = lab.command(&["checkpoint", "-o", "-", "1"]);
    let child = command.stdout(slave()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_refused(&output, ErrorKind::Usage, "not written to a terminal");
    assert!(stderr(&output).contains("hint: "));
    let output = lab.command(&["restart", "-"]).stdin(slave()).output().unwrap();
    assert_refused(&output, ErrorKind::Usage, "not read from a terminal");
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let lab = Lab::new();
    let cases: &[(&[&str], ErrorKind)] = &[
        (&["--json", "nonsense"], ErrorKind::Usage),
        (&["wait", "--json"], ErrorKind::Usage),
        (&["--json", "wait", "absent"], ErrorKind::NotFound),
        (&["restart", "--json", "/nonexistent.cpr"], ErrorKind::NotFound),
        (&["--json", "inspect", "/etc/passwd"], ErrorKind::Damaged),
    ];
    for (arguments, kind) in cases {
        let output = lab.cpr(arguments);
        assert_refused(&output, *kind, "");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = &answer["error"];
        assert_eq!(error["exit_code"], kind.exit_code());
        assert_eq!(error["class"], kind.class());
        assert_eq!(error["kind"], serde_json::to_value(kind).unwrap());
        assert!(
            stderr(&output).contains(error["message"].as_str().unwrap()),
            "{arguments:?}"
        );
        assert_shape(&answer, &example("Errors"), "error");
    }
    // An image on standard output is not followed by an error.
    let output = lab.cpr(&["--json", "checkpoint", "-o", "-", "absent"]);
    assert_refused(&output, ErrorKind::NotFound, "absent");
    assert_eq!(stdout(&output), "");
    // The command's own --json is not ours.
    let output = lab.cpr(&["run", "--nonsense", "--", "true", "--json"]);
    assert_eq!(stdout(&output), "");
}

#[test]
fn run_and_wait_pass_on_how_the_job_ended() {
    let lab = Lab::new();
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143)] {
        assert_eq!(code(&lab.cpr(&["run", "--", "sh", "-c", script])), expected, "{script}");
    }
    let output = lab.cpr(&["run", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!((code(&output), stderr(&output).contains("signal KILL")), (137, true));
    let output = lab.cpr(&["run", "-q", "--", "sh", "-c", "echo out; echo err >&2; kill -KILL $$"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("out\n", "err\n"));
    assert_refused(
        &lab.cpr(&["run", "/nonexistent/program"]),
        ErrorKind::NotFound,
        "/nonexistent/program",
    );
    assert_eq!(lab.text(&["ps", "-q"]), "");
    // Programs take their number for one that nobody else has.
    let numbers = [(); 3].map(|()| stdout(&lab.cpr(&["run", "-q", "--", "sh", "-c", "echo $$"])));
    assert!(numbers.iter().any(|number| *number != numbers[0]), "{numbers:?}");

    lab.text(&["run", "-d", "--name", "later", "--", "sh", "-c", "sleep 0.3; exit 9"]);
    assert_eq!(code(&lab.cpr(&["wait", "later"])), 9);
    let output = lab.cpr(&["wait", "--json", "later"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code(&output), answer["exit_code"].as_i64()), (9, Some(9)));
    assert_shape(&answer, &example("wait"), "wait");
}

#[test]
fn on_exit_remove_keeps_what_failed() {
    let lab = Lab::new();
    assert_eq!(code(&lab.cpr(&["run", "--on-exit", "remove", "true"])), 0);
    assert_eq!(
        code(&lab.cpr(&["run", "--on-exit", "remove", "--name", "mine", "true"])),
        0
    );
    assert_eq!(lab.text(&["ps", "-aq"]), "");
    assert_eq!(
        code(&lab.cpr(&["run", "--on-exit", "remove", "--name", "bad", "false"])),
        1
    );
    assert_eq!(lab.text(&["ps", "-aq"]), "bad\n");
}

#[test]
fn the_life_of_a_job_in_the_background() {
    let lab = Lab::new();
    let script = "echo first; echo second >&2; trap 'echo asked; exit 5' TERM; while :; do sleep 0.05; done";
    let started = lab.json(&[
        "--json", "run", "-d", "--name", "bg", "--every", "1h", "--", "sh", "-c", script,
    ]);
    assert_eq!(started, json!({"job": "bg"}));
    assert_shape(&started, &example("run"), "run");

    let listed = lab.json(&["list", "--json"]);
    assert_shape(&listed, &example("ps"), "ps");
    let job = &listed["jobs"][0];
    assert_eq!((&job["name"], &job["phase"]), (&json!("bg"), &json!("running")));
    assert_eq!(job["command"], json!(["sh", "-c", script]));
    assert_eq!(job["every_ms"], 3_600_000);
    assert!(job["pid"].as_i64().unwrap() > 1);
    let created = job["created"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    let table = lab.text(&["ps"]);
    assert!(table.contains("running") && table.contains("1 h 0 min"), "{table}");
    assert_eq!(lab.json(&["images", "bg", "--json"]), json!({"images": []}));

    let suspended = lab.json(&["suspend", "bg", "--json"]);
    assert_shape(&suspended, &example("suspend"), "suspend");
    assert_eq!(lab.json(&["ps", "--json"])["jobs"][0]["phase"], "suspended");
    assert_shape(&lab.json(&["resume", "bg", "--json"]), &example("resume"), "resume");

    // The trap must be set before the signal comes.
    let deadline = Instant::now() + PATIENCE;
    while !lab.text(&["logs", "bg"]).contains("second") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut follower = lab
        .command(&["logs", "-f", "bg"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let killed = lab.json(&["kill", "bg", "--json"]);
    assert_shape(&killed, &example("kill"), "kill");
    assert_eq!(killed["signal"], 15);
    assert_eq!(code(&lab.cpr(&["wait", "bg"])), 5);
    let mut followed = String::new();
    follower.stdout.take().unwrap().read_to_string(&mut followed).unwrap();
    assert!(follower.wait().unwrap().success());
    assert_eq!(followed, "first\nsecond\nasked\n");
    assert_eq!(lab.json(&["ps", "-a", "--json"])["jobs"][0]["exit_code"], 5);
    assert_refused(&lab.cpr(&["restart", "bg"]), ErrorKind::NotFound, "no image");
    assert_refused(&lab.cpr(&["inspect", "bg"]), ErrorKind::NotFound, "no image");
    assert_shape(&lab.json(&["rm", "bg", "--json"]), &example("rm"), "rm");
    assert_eq!(lab.json(&["ps", "-a", "--json"]), json!({"jobs": []}));
}

#[test]
fn images_of_jobs_are_listed() {
    let lab = Lab::new();
    lab.text(&["run", "--name", "sim", "true"]);
    let (_, bytes) = sample();
    let directory = lab.path("state/jobs/sim/images");
    fs::write(directory.join("000001.cpr"), &bytes).unwrap();
    fs::write(directory.join("000002.cpr"), &bytes[..bytes.len() - 1]).unwrap();
    let answer = lab.json(&["images", "--json"]);
    assert_shape(&answer, &example("images"), "images");
    let (good, bad) = (&answer["images"][0], &answer["images"][1]);
    assert_eq!((&good["valid"], &good["processes"]), (&json!(true), &json!(2)));
    assert_eq!(
        (&good["job"], &good["time"]),
        (&json!("sim"), &json!("2001-09-09T01:46:40Z"))
    );
    assert_eq!((&bad["valid"], &bad["processes"]), (&json!(false), &Value::Null));
    assert!(lab.text(&["images", "sim"]).contains("damaged"));
    assert_eq!(lab.text(&["images", "-q"]).lines().count(), 2);
    // A job stands for its newest image.
    assert_refused(&lab.cpr(&["verify", "sim"]), ErrorKind::Damaged, "000002.cpr");
    fs::remove_file(directory.join("000002.cpr")).unwrap();
    assert!(lab.text(&["verify", "sim"]).contains("000001.cpr"));
}

#[test]
fn a_number_is_a_pid_unless_a_job_is_called_so() {
    let lab = Lab::new();
    let absent = (4 << 20).to_string();
    let output = lab.cpr(&["check", &absent]);
    assert!(
        stderr(&output).contains(&format!("process {absent}")),
        "{}",
        stderr(&output)
    );
    lab.text(&["run", "--name", &absent, "true"]);
    let output = lab.cpr(&["check", &absent]);
    assert!(
        stderr(&output).contains(&format!("job {absent} is not running")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let lab = Lab::new();
    for arguments in [["completions", "bash"], ["ps", "-a"]] {
        let mut child = lab
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(stderr(&output), "");
        assert!(
            output.status.success() || output.status.signal() == Some(13),
            "{}",
            output.status
        );
    }
}

#[test]
fn man_pages_and_completions_cover_every_command() {
    let lab = Lab::new();
    let verbs = verbs(&lab);
    assert!(verbs.len() >= 16, "{verbs:?}");
    let pages = lab.path("man");
    lab.text(&["man", "--dir", pages.to_str().unwrap()]);
    let found: BTreeSet<String> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: BTreeSet<String> = verbs.iter().map(|verb| format!("cpr-{verb}.1")).collect();
    expected.insert("cpr.1".to_string());
    for verb in [
        "list", "write", "restore", "update", "inspect", "verify", "export", "free", "transfer",
    ] {
        expected.insert(format!("cpr-app-{verb}.1"));
    }
    for page in [
        "cpr-engines-show.1",
        "cpr-context-use.1",
        "cpr-context-set.1",
        "cpr-context-rm.1",
    ] {
        expected.insert(page.to_string());
    }
    assert_eq!(found, expected);
    for page in &found {
        assert!(
            fs::read_to_string(pages.join(page)).unwrap().contains(".SH NAME"),
            "{page}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = lab.text(&["completions", shell]);
        for verb in &verbs {
            assert!(script.contains(verb.as_str()), "{shell}: {verb}");
        }
    }
}

/// Every change of the interface shows in review.
#[test]
fn help_is_as_in_the_reference() {
    let lab = Lab::new();
    let mut text = lab.text(&["--help"]);
    for verb in verbs(&lab) {
        let help = lab.text(&[&verb, "--help"]);
        text.push_str(&format!("\n{}\n$ cpr {verb} --help\n\n{help}", "=".repeat(100)));
    }
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference.txt");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let reference = fs::read_to_string(&path).unwrap();
    assert!(
        text == reference,
        "the help has changed; look at it, then run this test with UPDATE_REFERENCE=1 and commit {}\n{text}",
        path.display()
    );
}

#[test]
fn the_documents_cover_every_command_and_every_exit_code() {
    let lab = Lab::new();
    let commands = document("commands.md");
    for verb in verbs(&lab) {
        assert!(
            commands.contains(&format!("\n## cpr {verb}\n")),
            "docs/commands.md: {verb}"
        );
    }
    let table = document("exit-codes.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for kind in ErrorKind::ALL {
        let code = kind.exit_code().to_string();
        let row = rows.iter().find(|row| row[0] == code);
        let row = row.unwrap_or_else(|| panic!("docs/exit-codes.md: {code} is missing"));
        let name = serde_json::to_value(kind).unwrap();
        assert_eq!((row[1], row[2]), (name.as_str().unwrap(), kind.class()), "{code}");
    }
    let known: BTreeSet<String> = ErrorKind::ALL.iter().map(|kind| kind.exit_code().to_string()).collect();
    for row in rows
        .iter()
        .filter(|row| row[0].parse().is_ok_and(|code: u8| (64..=80).contains(&code)))
    {
        assert!(
            known.contains(row[0]) || row[0] == "79",
            "docs/exit-codes.md: what is {}?",
            row[0]
        );
    }
}

/// The JSON example of a section of docs/commands.md.
fn example(section: &str) -> Value {
    let document = document("commands.md");
    let headings = [format!("\n## cpr {section}\n"), format!("\n## {section}\n")];
    let body = headings
        .iter()
        .find_map(|heading| document.split(heading).nth(1))
        .unwrap();
    let body = body.split("\n## ").next().unwrap();
    let block = body.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    serde_json::from_str(block).unwrap_or_else(|error| panic!("{section}: {error}"))
}

/// Both have the same keys; null stands for anything, and an object without keys for any object.
fn assert_shape(actual: &Value, documented: &Value, place: &str) {
    match (actual, documented) {
        (Value::Object(_), Value::Object(expected)) if expected.is_empty() => {}
        (Value::Object(found), Value::Object(expected)) => {
            let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(keys(found), keys(expected), "{place}");
            for (key, value) in found {
                assert_shape(value, &expected[key], &format!("{place}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            for (value, model) in found.iter().zip(expected.iter().cycle()) {
                assert_shape(value, model, &format!("{place}[]"));
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        (found, expected) => assert_eq!(
            std::mem::discriminant(found),
            std::mem::discriminant(expected),
            "{place}: {found} is not like {expected}"
        ),
    }
}
