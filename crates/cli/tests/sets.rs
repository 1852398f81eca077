//! Several jobs saved in one stop, whatever engines they are for, and restarted together.
//!
//! `CRIU=PATH` names a CRIU to test instead of the one that is found.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::steps::Steps;
use support::{As, Cpr, Ended, PATIENCE, copy_tree, note_skip, poll, wait_until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Counts in memory, fast, and shows everybody how far; while there is a file `quiet` it only says how far it is.
const LEAD: &str = "
import os, time
n = 0
shown = os.open('n', os.O_RDWR | os.O_CREAT, 0o600)
while True:
    time.sleep(0.001)
    print(n, flush=True)
    if os.path.exists('quiet'):
        open('lead.state', 'w').write('%d.' % n)
        continue
    n += 1
    os.pwrite(shown, b'%8d' % n, 0)
";

/// Remembers in memory the last number that it has seen. What it has read when `quiet` comes may be of another time.
const FOLLOW: &str = "
import os, time
seen = 0
while True:
    time.sleep(0.001)
    print(seen, flush=True)
    now = int(open('n').read())
    if os.path.exists('quiet'):
        open('follow.state', 'w').write('%d.' % seen)
        continue
    seen = now
";

/// The same, in a file that it has open.
const FOLLOW_IN_FILE: &str = "
import os, time
file = os.fdopen(os.open('seen', os.O_RDWR | os.O_CREAT, 0o600), 'r+')
seen = int(file.read() or 0)
while True:
    time.sleep(0.001)
    print(seen, flush=True)
    now = int(open('n').read())
    if os.path.exists('quiet'):
        open('follow.state', 'w').write('%d.' % seen)
        continue
    seen = now
    file.seek(0); file.write(str(seen)); file.flush()
";

/// The example engine with another step.
const VARIANT: &str = "#!/usr/bin/env python3
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location('engine', os.path.join(os.path.dirname(__file__), 'open_files.py'))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
class Variant(module.Engine):
    def STEP(self, request):
        BODY
        return super().STEP(request)
module.Engine = Variant
module.main()
";

struct Lab {
    cpr: Cpr,
    config: PathBuf,
}

impl Lab {
    fn new(test: &str, user: As) -> Option<Lab> {
        let cpr = Cpr::new(test, user)?;
        let config = cpr.work.join("config");
        copy_tree(&Path::new(ROOT).join("examples/engine"), &config.join("engines.d"));
        cpr.give(&config);
        Some(Lab { cpr, config })
    }

    /// An engine that is the example with another `step`.
    fn add(&self, name: &str, step: &str, body: &str) {
        let program = self.config.join(format!("engines.d/{name}.py"));
        fs::write(&program, VARIANT.replace("STEP", step).replace("BODY", body)).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "name = \"{name}\"\ndriver = \"external\"\nprogram = [\"./{name}.py\"]\n[deadlines]\ncheckpoint = 1\n"
        );
        fs::write(self.config.join(format!("engines.d/{name}.toml")), text).unwrap();
        self.cpr.give(&self.config);
    }

    fn cpr(&self, arguments: &[&str]) -> Ended {
        self.cpr.cpr_with_config(&self.config, arguments)
    }

    fn start(&self, job: &str, engine: &str, program: &str) {
        let all = [
            "run",
            "-d",
            "--name",
            job,
            "--engine",
            engine,
            "--",
            "/usr/bin/python3",
            "-c",
            program,
        ];
        self.cpr(&all).good();
        self.grows(job);
    }

    fn numbers(&self, job: &str) -> Vec<u64> {
        let text = String::from_utf8_lossy(&self.cpr.logs(job)).into_owned();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// What a job says that it remembers, and no more of it.
    fn state(&self, job: &str) -> u64 {
        let path = self.cpr.work.join(format!("{job}.state"));
        let said = || fs::read_to_string(&path).ok()?.strip_suffix('.')?.parse().ok();
        let said = poll(PATIENCE, said).unwrap_or_else(|| panic!("job {job} does not say what it remembers"));
        fs::remove_file(&path).unwrap();
        said
    }

    /// It runs.
    fn grows(&self, job: &str) {
        let had = self.numbers(job).len();
        wait_until(PATIENCE, &format!("job {job} goes on"), || {
            self.numbers(job).len() > had + 5
        });
    }

    fn phase(&self, job: &str) -> Value {
        let jobs = self.cpr(&["ps", "-a", "--json"]).good().json();
        let jobs = jobs["jobs"].as_array().unwrap().clone();
        let found = jobs.into_iter().find(|found| found["name"] == job);
        found.map_or(Value::Null, |job| job["phase"].clone())
    }

    fn kill_all(&self, jobs: &[&str]) {
        for job in jobs {
            self.cpr(&["kill", "-s", "KILL", job]).good();
            self.cpr.wait(job);
        }
    }
}

/// What the one has seen of the other is no later than what the other remembers of itself, again and again.
fn is_one(test: &str, user: As, engine: &str, follow: &str) {
    let Some(lab) = Lab::new(test, user) else { return };
    let shown = lab.cpr(&["engines", "show", engine, "--json"]).good().json();
    if shown["works"] != true {
        note_skip(test, shown["reason"].as_str().unwrap());
        return;
    }
    lab.start("lead", "native", LEAD);
    lab.start("follow", engine, follow);
    // Takes its time, while the others wait.
    lab.add("slow", "stop", "time.sleep(0.3)");
    lab.start(
        "between",
        "slow",
        "import time\nwhile True: print(1, flush=True); time.sleep(0.01)",
    );
    let all = ["lead", "between", "follow"];
    for round in 0..3 {
        let set = format!("set{round}");
        let made = lab
            .cpr(&[&["checkpoint", "-o", &set, "--json"][..], &all].concat())
            .good()
            .json();
        assert!(made["together_ms"].as_f64().unwrap() > 0.0, "{made}");
        assert_eq!(made["units"][0]["engine"], "native");
        assert_eq!(made["units"][2]["engine"], engine);
        assert!(
            made["units"]
                .as_array()
                .unwrap()
                .iter()
                .all(|unit| unit["freeze_ms"].as_f64() > Some(0.0))
        );
        // Both go on.
        lab.grows("lead");
        lab.grows("follow");
        lab.kill_all(&all);
        let quiet = lab.cpr.work.join("quiet");
        fs::write(&quiet, "").unwrap();
        let restarted = lab.cpr(&["restart", "--json", &format!("./{set}")]).good().json();
        assert_eq!(restarted["jobs"], serde_json::json!(all));
        let (lead, follow) = (lab.state("lead"), lab.state("follow"));
        assert!(
            follow <= lead,
            "one has seen {follow}, and the other goes on with {lead}"
        );
        assert!(follow > 1, "it began again");
        fs::remove_file(&quiet).unwrap();
        lab.grows("lead");
        lab.grows("follow");
    }
    // All end together, and each image is one like any other.
    lab.cpr(&[&["checkpoint", "--stop", "-o", "last"][..], &all].concat())
        .good();
    assert_eq!(
        (lab.phase("lead"), lab.phase("follow")),
        ("stopped".into(), "stopped".into())
    );
    for job in ["lead", "follow"] {
        lab.cpr(&["verify", &format!("last/{job}.cpr")]).good();
    }
    lab.cpr(&["restart", "last"]).good();
    lab.grows("lead");
    lab.grows("follow");
    assert_eq!(lab.cpr(&["restart", "last"]).code, 75);
    // It is on another node as well, where nobody knows of the jobs.
    lab.kill_all(&all);
    for job in all {
        lab.cpr(&["rm", job]).good();
    }
    lab.cpr(&["restart", "last"]).good();
    lab.grows("lead");
    lab.grows("follow");
}

// XGCP-USE-6, XGCP-COORD-9, XGCP-COORD-11, GCA-CTS-5
#[test]
fn a_native_job_and_one_of_the_example_engine_are_one() {
    is_one(
        "a_native_job_and_one_of_the_example",
        As::User,
        "open-files",
        FOLLOW_IN_FILE,
    );
}

// XGCP-USE-6, XGCP-JUCP-5
#[test]
fn a_native_job_and_one_of_criu_are_one() {
    is_one("a_native_job_and_one_of_criu_are_one", As::Root, "criu", FOLLOW);
}

// XGCP-JUCP-7, XGCP-COORD-12
#[test]
fn where_one_cannot_be_saved_all_go_on_and_nothing_is_left() {
    const HOLD: &str = "import ctypes,time
assert ctypes.CDLL(None).syscall(323, 1) >= 0
while True: print(1, flush=True); time.sleep(0.01)";
    let Some(lab) = Lab::new("where_one_cannot_be_saved_all_go_on", As::User) else {
        return;
    };
    lab.add("crash", "checkpoint", "sys.exit('out of paint')");
    lab.add("hang", "checkpoint", "time.sleep(1000)");
    lab.start("good", "native", LEAD);
    lab.start("other", "open-files", FOLLOW_IN_FILE);
    lab.start("bad", "native", HOLD);
    lab.start("crash", "crash", FOLLOW_IN_FILE);
    lab.start("hang", "hang", FOLLOW_IN_FILE);
    for (bad, said) in [("bad", "userfaultfd"), ("crash", "out of paint"), ("hang", "in time")] {
        for stop in [&[][..], &["--stop"]] {
            let all = [&["checkpoint", "-o", "set", "good", bad, "other"][..], stop].concat();
            let failed = lab.cpr(&all);
            assert!(
                failed.code >= 64 && failed.stderr.contains(said),
                "{bad}: {} {}",
                failed.code,
                failed.stderr
            );
            assert!(failed.stderr.contains(&format!("job {bad}")), "{}", failed.stderr);
            for job in ["good", "other", bad] {
                assert_eq!(lab.phase(job), "running");
                lab.grows(job);
            }
            let left: Vec<_> = fs::read_dir(&lab.cpr.work)
                .unwrap()
                .flatten()
                .map(|e| e.file_name())
                .collect();
            assert!(
                !left.iter().any(|name| name.to_string_lossy().contains("set")),
                "{left:?}"
            );
        }
    }
    // And it can be saved afterwards.
    lab.cpr(&["checkpoint", "-o", "set", "good", "other"]).good();
    assert_eq!(
        lab.cpr(&["checkpoint", "-o", "set", "good", "other"]).code,
        67,
        "not again under that name"
    );
    assert_eq!(lab.cpr(&["checkpoint", "-o", "two", "good", "good"]).code, 64);
    assert_eq!(
        lab.cpr(&["checkpoint", "good", "other"]).code,
        64,
        "it has to have a name"
    );
    // Where one cannot be restarted, none is.
    lab.kill_all(&["good", "other"]);
    let image = lab.cpr.work.join("set/other.cpr");
    let mut bytes = fs::read(&image).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::remove_file(&image).unwrap();
    fs::write(&image, &bytes).unwrap();
    lab.cpr.give(&image);
    let refused = lab.cpr(&["restart", "./set"]);
    assert_eq!(refused.code, 65, "{}", refused.stderr);
    wait_until(Duration::from_secs(20), "none runs", || {
        lab.phase("good") != "running" && lab.phase("other") != "running"
    });
}

// XGCP-COORD-12
#[test]
fn where_one_cannot_be_built_again_none_of_the_others_has_run() {
    let Some(lab) = Lab::new("where_one_cannot_be_built_again", As::User) else {
        return;
    };
    let counting = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)";
    // It is the last one, and takes its time before it fails; nothing is printed by the others meanwhile.
    lab.add("brittle", "rebuild", "time.sleep(0.5); sys.exit('out of paint')");
    let before = [("native", LEAD), ("open-files", FOLLOW_IN_FILE), ("brittle", counting)];
    let all = ["lead", "follow", "brittle"];
    for (job, (engine, program)) in all.iter().zip(before) {
        lab.start(job, engine, program);
    }
    lab.cpr(&[&["checkpoint", "--stop", "-o", "set"][..], &all].concat())
        .good();
    let had: Vec<usize> = all.iter().map(|job| lab.numbers(job).len()).collect();
    let file = fs::read(lab.cpr.work.join("n")).unwrap();
    for _ in 0..2 {
        let refused = lab.cpr(&["restart", "./set"]);
        assert!(
            refused.code >= 64 && refused.stderr.contains("out of paint"),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("job brittle with the others"),
            "{}",
            refused.stderr
        );
        let has: Vec<usize> = all.iter().map(|job| lab.numbers(job).len()).collect();
        assert_eq!(has, had, "one of them has run");
        assert_eq!(fs::read(lab.cpr.work.join("n")).unwrap(), file);
        for job in all {
            assert!(!lab.cpr.is_running(job), "{job}");
        }
    }
    // Nor is anything left of jobs that were made for it.
    for job in all {
        lab.cpr(&["rm", job]).good();
    }
    assert!(lab.cpr(&["restart", "./set"]).code >= 64);
    assert_eq!(
        lab.cpr(&["ps", "-a", "--json"]).good().json()["jobs"],
        serde_json::json!([])
    );
    // With an engine that is mended all go on.
    lab.add("brittle", "rebuild", "pass");
    lab.cpr(&["restart", "./set"]).good();
    lab.grows("lead");
    lab.grows("brittle");
}

/// PID in its own namespace, command line and state of a process here.
fn process(pid: &str) -> Option<(i32, Vec<u8>, char)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let inner = line("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some((inner, command, line("State:")?.chars().next()?))
}

// XGCP-API-5
#[test]
fn jobs_that_are_built_have_their_processes_and_stand_still_until_all_are_there() {
    let Some(lab) = Lab::new("built_and_standing_still", As::User) else {
        return;
    };
    let counting = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)";
    // It says that it is at it, and waits for a file.
    let patient = "open('begun', 'w').close()
        deadline = time.monotonic() + 60
        while not os.path.exists('go') and time.monotonic() < deadline: time.sleep(0.01)";
    let (begun, go) = (lab.cpr.work.join("begun"), lab.cpr.work.join("go"));
    let patient = patient
        .replace("'begun'", &format!("'{}'", begun.display()))
        .replace("'go'", &format!("'{}'", go.display()));
    lab.add("patient", "rebuild", &patient);
    // Other tests have jobs of the same program.
    lab.start("lead", "native", &format!("{LEAD}\n# stands still"));
    lab.start("last", "patient", counting);
    let jobs = lab.cpr(&["ps", "--json"]).good().json();
    let lead = jobs["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["name"] == "lead");
    let (inner, command, _) = process(&lead.unwrap()["pid"].to_string()).unwrap();
    lab.cpr(&["checkpoint", "--stop", "-o", "set", "lead", "last"]).good();
    let had = lab.numbers("lead").len();
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| lab.cpr(&["restart", "./set"]).good().code);
        wait_until(PATIENCE, "the second job is being built", || begun.exists());
        let all = fs::read_dir("/proc").unwrap().flatten();
        let processes = all.filter_map(|entry| process(&entry.file_name().to_string_lossy()));
        let states: Vec<char> = processes
            .filter(|(pid, words, _)| (*pid, words) == (inner, &command))
            .map(|(.., state)| state)
            .collect();
        assert!(
            matches!(states[..], ['t' | 'T']),
            "the first one is there, and stands still: {states:?}"
        );
        assert_eq!(lab.numbers("lead").len(), had);
        assert!(!restart.is_finished());
        fs::write(&go, "").unwrap();
        assert_eq!(restart.join().unwrap(), 0);
    });
    lab.grows("lead");
    lab.grows("last");
}

/// What is said and heard for a checkpoint.
const SAID: [&str; 3] = ["prepared", "stopped", "saved"];
const HEARD: [&str; 3] = ["stop", "save", "resume"];

// XGCP-COORD-7, XGCP-COORD-12, XGCP-API-3
#[test]
fn a_job_is_saved_step_by_step_and_goes_on_by_itself_when_nobody_says_so() {
    let Some(lab) = Lab::new("a_job_is_saved_step_by_step", As::User) else {
        return;
    };
    lab.start("lead", "native", LEAD);
    let image = lab.cpr.work.join("lead.cpr");
    let begin = |patience: &str| Steps::new(&lab.cpr, &["checkpoint", "--steps", patience, "-o", "lead.cpr", "lead"]);
    for (given_up, last) in SAID.iter().enumerate() {
        let mut steps = begin("60s");
        for (said, heard) in SAID.iter().zip(HEARD).take(given_up) {
            steps.says(said);
            steps.say(heard);
        }
        steps.says(last);
        assert_eq!(image.exists(), given_up == 2, "it is there when it is saved");
        if given_up > 0 {
            let had = lab.numbers("lead").len();
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(lab.numbers("lead").len(), had, "it stands still");
        }
        assert_ne!(steps.end(), 0);
        assert!(!image.exists(), "{given_up}: nothing is left");
        lab.grows("lead");
    }
    // Nor does it stand still for ever, or for a word that is none.
    let mut late = begin("100ms");
    late.says("prepared");
    late.say("stop");
    late.says("stopped");
    lab.grows("lead");
    assert_ne!(late.end(), 0);
    let mut wrong = begin("60s");
    wrong.says("prepared");
    wrong.say("save");
    assert_eq!(wrong.end(), 64);
    let mut killed = begin("60s");
    killed.says("prepared");
    killed.say("stop");
    killed.says("stopped");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    lab.grows("lead");

    wait_until(PATIENCE, "the next one may begin", || {
        let mut steps = begin("60s");
        let first = steps.said.next().and_then(Result::ok);
        if first.as_deref() != Some(SAID[0]) {
            return false;
        }
        steps.say(HEARD[0]);
        for (said, heard) in SAID.iter().zip(HEARD).skip(1) {
            steps.says(said);
            steps.say(heard);
        }
        steps.end() == 0
    });
    lab.grows("lead");
    lab.cpr(&["verify", "lead.cpr"]).good();
}

// XGCP-JCP-10
#[test]
fn a_job_is_built_and_runs_only_when_it_may_and_nothing_is_left_where_it_may_not() {
    let Some(lab) = Lab::new("a_job_is_built_and_runs_only", As::User) else {
        return;
    };
    lab.start("lead", "native", LEAD);
    // One that is kept stays whatever becomes of the job.
    let mut steps = Steps::new(&lab.cpr, &["checkpoint", "--steps", "60s", "-o", "lead.cpr", "lead"]);
    for (said, heard) in SAID.iter().zip(["stop", "save", "keep"]) {
        steps.says(said);
        steps.say(heard);
    }
    steps.says("kept");
    lab.kill_all(&["lead"]);
    assert_ne!(steps.end(), 0);
    let had = lab.numbers("lead").len();
    let restart = ["restart", "-d", "--name", "again", "--steps", "60s", "./lead.cpr"];
    let mut refused = Steps::new(&lab.cpr, &restart);
    refused.says("built");
    assert_ne!(refused.end(), 0);
    assert_eq!(lab.phase("again"), Value::Null, "nothing is left");
    let mut steps = Steps::new(&lab.cpr, &restart);
    steps.says("built");
    std::thread::sleep(Duration::from_millis(50));
    assert!(lab.numbers("again").is_empty(), "it has not run");
    steps.say("go");
    steps.says("again");
    assert_eq!(steps.end(), 0);
    lab.grows("again");
    assert!(lab.numbers("again")[0] + 1 >= had as u64, "it goes on");
}

/// Two programs that send each other numbers over TCP as fast as they can, and know which one comes next. While there
/// is a file `slow` they read next to nothing.
const TALK: &str = "
import os, socket, struct, sys, threading, time
def fail(why):
    print('broken', why, flush=True); os._exit(1)
def alone(act, *all):
    # The other is gone, with the test or in the middle of it.
    try: act(*all)
    except OSError: os._exit(3)
def send(s):
    n = 0
    while True:
        s.sendall(struct.pack('>512Q', *range(n, n + 512))); n += 512
def receive(s, shown):
    n, rest = 0, b''
    while True:
        data = s.recv(100 if os.path.exists('slow') else 1 << 18)
        if not data: os._exit(3)
        rest += data
        whole = len(rest) // 8 * 8
        got = struct.unpack('>%dQ' % (whole // 8), rest[:whole])
        if got != tuple(range(n, n + len(got))): fail('%d comes at %d' % (got[0], n))
        n, rest = n + len(got), rest[whole:]
        if shown: print(n, flush=True)
        if os.path.exists('slow'): time.sleep(0.05)
def talk(s, shown):
    if LIMIT: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
    threading.Thread(target=alone, args=(send, s), daemon=True).start()
    alone(receive, s, shown)
def wait_for(name):
    while not os.path.exists(name): time.sleep(0.01)
";

/// One that is connected to: twice for numbers, and once by one who has said all and hears later.
const SERVER: &str = "
l = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)
open('port.new', 'w').write(str(l.getsockname()[1])); os.rename('port.new', 'port')
first, second, half = (l.accept()[0] for _ in range(3))
def answer():
    wait_for('answer')
    heard = half.recv(100) + half.recv(100)
    half.sendall(b'heard ' + heard); half.close()
    open('answered', 'w').close()
    again = l.accept()[0]
    again.sendall(b'welcome'); again.close()
threading.Thread(target=answer, daemon=True).start()
threading.Thread(target=talk, args=(second, False), daemon=True).start()
talk(first, True)
";

/// One that connects.
const CLIENT: &str = "
wait_for('port')
at = int(open('port').read())
first = socket.create_connection(('127.0.0.1', at))
second = socket.socket(socket.AF_INET6); second.connect(('::ffff:127.0.0.1', at))
half = socket.create_connection(('127.0.0.1', at))
half.sendall(b'everything'); half.shutdown(socket.SHUT_WR)
def answer():
    wait_for('answered')
    heard = b''
    while data := half.recv(100): heard += data
    again = socket.create_connection(('127.0.0.1', at))
    open('heard', 'wb').write(heard + b', ' + again.recv(100))
threading.Thread(target=answer, daemon=True).start()
threading.Thread(target=talk, args=(second, False), daemon=True).start()
talk(first, True)
";

impl Lab {
    /// What the kernel says of connections of a port: bytes not yet received, and not yet read.
    fn queues(&self, port: &str) -> Vec<(u64, u64)> {
        let port = format!(":{:04X}", port.parse::<u16>().unwrap());
        let mut found = Vec::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            for line in fs::read_to_string(table).unwrap().lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let established = words[3] == "01";
                if established && (words[1].ends_with(&port) || words[2].ends_with(&port)) {
                    let (sent, received) = words[4].split_once(':').unwrap();
                    let number = |text| u64::from_str_radix(text, 16).unwrap();
                    found.push((number(sent), number(received)));
                }
            }
        }
        found
    }

    /// Ends jobs, of which one may end with the other.
    fn end(&self, jobs: &[&str]) {
        for job in jobs {
            let _ = self.cpr(&["kill", "-s", "KILL", job]);
            self.cpr.wait(job);
        }
    }

    /// Both have come to numbers beyond whatever was on its way, bytes, and none was missing or came again.
    #[track_caller]
    fn talk(&self, jobs: &[&str], on_its_way: u64) {
        for job in jobs {
            let before = self.numbers(job).last().copied().unwrap_or_default();
            wait_until(PATIENCE, &format!("job {job} gets numbers"), || {
                let text = String::from_utf8_lossy(&self.cpr.logs(job)).into_owned();
                assert!(!text.contains("broken") && !text.contains("Error"), "{job}: {text}");
                self.numbers(job).last() > Some(&(before + on_its_way / 8 + 100_000))
            });
        }
    }
}

// XGCP-CHAN-1, XGCP-CHAN-4, XGCP-CHAN-12
#[test]
fn jobs_that_talk_over_tcp_miss_nothing_and_hear_nothing_twice() {
    // The kernel gives a fast reader as large a buffer as there is; nobody without privilege can make room then.
    talk_over_tcp("jobs_that_talk_over_tcp", As::User, 1 << 20, 2);
}

#[test]
fn jobs_of_root_that_talk_over_tcp_may_have_the_largest_buffers() {
    talk_over_tcp("jobs_of_root_that_talk_over_tcp", As::Root, 0, 1);
}

// XGCP-CHAN-4
#[test]
fn who_has_nothing_to_say_makes_room_for_one_who_takes_long() {
    let Some(lab) = Lab::new("who_has_nothing_to_say", As::Root) else {
        return;
    };
    // The first megabyte takes a second, and is all that there is room for.
    const RECEIVER: &str = "
import os, socket, time
l = socket.create_server(('127.0.0.1', 0))
l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
open('port.new', 'w').write(str(l.getsockname()[1])); os.rename('port.new', 'port')
s = l.accept()[0]
while not os.path.exists('read'): time.sleep(0.01)
n = 0
while data := s.recv(1 << 20):
    if data != bytes(i % 251 for i in range(n, n + len(data))): print('broken at', n, flush=True)
    n += len(data)
print(n, flush=True)";
    const SENDER: &str = "
import os, socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 32, 3 << 20)  # SO_SNDBUFFORCE
s.setsockopt(socket.SOL_SOCKET, 47, 1 << 20)  # SO_MAX_PACING_RATE
while not os.path.exists('port'): time.sleep(0.01)
s.connect(('127.0.0.1', int(open('port').read())))
s.sendall(bytes(i % 251 for i in range(3 << 20)))
open('said', 'w').close()
while not os.path.exists('read'): time.sleep(0.01)";
    for (job, program) in [("receiver", RECEIVER), ("sender", SENDER)] {
        lab.cpr(&["run", "-d", "--name", job, "--", "/usr/bin/python3", "-c", program])
            .good();
    }
    wait_until(PATIENCE, "all is said", || lab.cpr.work.join("said").exists());
    let set = ["checkpoint", "--stop", "-o", "set", "receiver", "sender"];
    lab.cpr(&set).good();
    lab.cpr(&["restart", "./set"]).good();
    fs::write(lab.cpr.work.join("read"), "").unwrap();
    lab.cpr.wait("receiver");
    assert_eq!(
        String::from_utf8_lossy(&lab.cpr.logs("receiver")).trim(),
        (3 << 20).to_string()
    );
}

fn talk_over_tcp(test: &str, user: As, limit: u32, rounds: u32) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    let jobs = ["server", "client"];
    let slow = lab.cpr.work.join("slow");
    let mut on_its_way = 0;
    for (job, program) in [("server", SERVER), ("client", CLIENT)] {
        let program = format!("LIMIT = {limit}{TALK}{program}");
        let run = ["run", "-d", "--name", job, "--", "/usr/bin/python3", "-c", &program];
        lab.cpr(&run).good();
    }
    lab.talk(&jobs, on_its_way);
    let port = fs::read_to_string(lab.cpr.work.join("port")).unwrap();
    // Alone neither can be saved, and nothing becomes of it.
    let refused = lab.cpr(&["checkpoint", "-o", "alone.cpr", "server"]);
    assert!(
        refused.code == 69 && refused.stderr.contains("outside the job"),
        "{}",
        refused.stderr
    );

    for round in 0..rounds {
        fs::write(&slow, "").unwrap();
        wait_until(PATIENCE, "all buffers are full", || {
            let queues = lab.queues(&port);
            on_its_way = queues.iter().map(|(sent, received)| sent + received).sum();
            let full = |(sent, received): &(u64, u64)| *sent > 100_000 && *received > 100_000;
            queues.len() == 4 && queues.iter().all(full)
        });
        let set = format!("set{round}");
        let made = lab
            .cpr(&["checkpoint", "--json", "-o", &set, "server", "client"])
            .good();
        assert!(made.json()["together_ms"].as_f64().is_some());
        fs::remove_file(&slow).unwrap();
        // They go on as if nothing had been.
        lab.talk(&jobs, on_its_way);
        lab.end(&jobs);
        // One image alone leads nowhere.
        let alone = lab.cpr(&["restart", "-d", "--name", "alone", &format!("./{set}/client.cpr")]);
        assert!(
            alone.code == 78 && alone.stderr.contains("restarted with this one"),
            "{} {}",
            alone.code,
            alone.stderr
        );
        assert_eq!(lab.phase("alone"), Value::Null, "nothing is left");
        lab.cpr(&["restart", &format!("./{set}")]).good();
        lab.talk(&jobs, on_its_way);
    }
    // Ended together, they leave nothing that keeps their ports from them.
    lab.cpr(&["checkpoint", "--stop", "-o", "last", "server", "client"])
        .good();
    lab.cpr(&["restart", "./last"]).good();
    lab.talk(&jobs, on_its_way);
    fs::write(lab.cpr.work.join("answer"), "").unwrap();
    let heard = poll(PATIENCE, || {
        fs::read_to_string(lab.cpr.work.join("heard"))
            .ok()
            .filter(|heard| heard.len() > 20)
    });
    assert_eq!(
        heard.as_deref(),
        Some("heard everything, welcome"),
        "each side still knows what the other has ended"
    );
    lab.end(&jobs);

    // With somebody else at the port none of them runs, and nothing is left.
    let taken = std::net::TcpListener::bind(("::", port.parse().unwrap())).unwrap();
    let begun = std::time::Instant::now();
    for job in jobs {
        lab.cpr(&["rm", job]).good();
    }
    let refused = lab.cpr(&["restart", "./last"]);
    assert!(refused.code >= 64, "{}", refused.stderr);
    assert!(begun.elapsed() < Duration::from_secs(50), "it is known at once");
    for job in jobs {
        assert_eq!(lab.phase(job), Value::Null, "nothing is left");
    }
    drop(taken);
}
