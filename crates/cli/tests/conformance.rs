//! The conformance suite: what every engine has to do, with a job that it can save, and what becomes of a job when an
//! engine hangs, crashes, lies or prints garbage.
//!
//! `CRIU=PATH` names a CRIU to test instead of the one that is found, `DMTCP=PATH` a dmtcp_launch. What cannot be
//! tested here is named as `SKIPPED`.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::guest;
use support::{As, Cpr, Ended, PATIENCE, note_skip, wait_until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Counts, and remembers in memory how far.
const COUNT_IN_MEMORY: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

/// Counts, and remembers in a file that it has open.
const COUNT_IN_FILE: &str = include_str!("../../../tests/victims/count_in_file.py");

/// Counts, and saves how far when SIGUSR1 comes.
const COUNT_AND_SAVE: &str = r#"
import os, signal, time
base = os.environ["SAGA_CPR_BASE_LOCATION"]
path = os.path.join(base, "count")
count = int(open(path).read()) if os.path.exists(path) else 0
def save(*_):
    os.makedirs(base, exist_ok=True)
    with open(path + ".tmp", "w") as file:
        file.write(str(count))
    os.rename(path + ".tmp", path)
signal.signal(signal.SIGUSR1, save)
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.05)
"#;

/// An engine, a job that it can save, and one that it cannot.
struct Case {
    engine: &'static str,
    user: As,
    /// Puts what the job needs into the test's directory; false, after saying so, where it cannot be had.
    install: fn(&Cpr, &str) -> bool,
    job: &'static [&'static str],
    unsupported: &'static [&'static str],
}

const HOLD_USERFAULTFD: &str = "import ctypes,time
assert ctypes.CDLL(None).syscall(323, 1) >= 0
print(1, flush=True)
time.sleep(1000)";

const NATIVE: Case = Case {
    engine: "native",
    user: As::User,
    install: nothing,
    job: &["sh", "-c", COUNT_IN_MEMORY],
    // A userfaultfd is not saved.
    unsupported: &["python3", "-c", HOLD_USERFAULTFD],
};
const CRIU: Case = Case {
    engine: "criu",
    user: As::Root,
    install: nothing,
    job: &["sh", "-c", COUNT_IN_MEMORY],
    // The other process is in no tree with the first one.
    unsupported: &["sh", "-c", "(sleep 1000 &); echo 1; exec sleep 1000"],
};
const APPLICATION: Case = Case {
    engine: "application",
    user: As::User,
    install: nothing,
    job: &["python3", "-c", COUNT_AND_SAVE],
    // It would die of the signal.
    unsupported: &["sh", "-c", "echo 1; exec sleep 1000"],
};
const EXTERNAL: Case = Case {
    engine: "open-files",
    user: As::User,
    install: nothing,
    job: &["python3", "-c", COUNT_IN_FILE],
    unsupported: &["sh", "-c", "sleep 1000 & echo 1; sleep 1000"],
};

const QEMU: Case = Case {
    engine: "qemu",
    user: As::User,
    install: support::install_guest,
    job: &{
        let mut job = [""; 18];
        let mut at = 0;
        while at < guest::MACHINE.len() {
            job[at] = guest::MACHINE[at];
            at += 1;
        }
        job[15] = guest::APPEND;
        job[16] = "-qmp";
        job[17] = "unix:qmp,server=on,wait=off";
        job
    },
    // It is no virtual machine.
    unsupported: &["sh", "-c", "echo 1; exec sleep 1000"],
};

/// DMTCP 5.0 stands still where a program forks while a checkpoint begins, as a shell that sleeps does.
const COUNT_WITHOUT_FORK: &str = "import itertools,time
for number in itertools.count(1):
    print(number, flush=True)
    time.sleep(0.05)";
const DMTCP: Case = Case {
    engine: "dmtcp",
    user: As::User,
    install: busybox,
    job: &["python3", "-c", COUNT_WITHOUT_FORK],
    // It is linked statically.
    unsupported: &["busybox", "sh", "-c", "echo 1; busybox sleep 1000; true"],
};

fn busybox(_: &Cpr, test: &str) -> bool {
    let found = Path::new("/bin/busybox").exists();
    if !found {
        note_skip(test, "needs busybox-static");
    }
    found
}

fn nothing(_: &Cpr, _: &str) -> bool {
    true
}

/// `cpr` with a configuration of its own.
struct Lab {
    cpr: Cpr,
    config: PathBuf,
    path: String,
}

impl Lab {
    fn new(test: &str, user: As) -> Option<Lab> {
        let cpr = Cpr::new(test, user)?;
        let config = cpr.work.join("config");
        fs::create_dir_all(config.join("engines.d")).unwrap();
        let path = support::path().into_string().unwrap();
        let lab = Lab { cpr, config, path };
        let example = Path::new(ROOT).join("examples/engine");
        for name in ["open-files.toml", "open_files.py"] {
            lab.write(name, &fs::read_to_string(example.join(name)).unwrap());
        }
        lab.cpr.give(&lab.config);
        Some(lab)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.config.join("engines.d").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        for directory in [&self.config, &self.config.join("engines.d")] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.cpr.give(&path);
    }

    fn cpr(&self, arguments: &[&str]) -> Ended {
        self.cpr_in(&self.config, arguments)
    }

    fn cpr_in(&self, config: &Path, arguments: &[&str]) -> Ended {
        let config = format!("GRIDCPR_CONFIG_DIRS={}", config.display());
        let path = format!("PATH={}", self.path);
        let binary = self.cpr.binary().display().to_string();
        let mut all = vec!["env", &config, &path, &binary];
        all.extend(arguments);
        self.cpr.program(&all)
    }

    fn start(&self, engine: &str, job: &str, command: &[&str]) {
        let mut all = vec!["run", "-d", "--engine", engine, "--name", job, "--"];
        all.extend(command);
        self.cpr(&all).good();
        self.wait_for(job, 0, 1);
    }

    /// Asks for a checkpoint of a job, and is killed as soon as somebody works at it.
    fn asks_and_is_killed(&self, job: &str) {
        let mut command = self.cpr.command(self.cpr.binary());
        command
            .env("GRIDCPR_CONFIG_DIRS", &self.config)
            .args(["checkpoint", job]);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut asking = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", asking.id());
        let works = || fs::read_to_string(&children).is_ok_and(|list| !list.is_empty());
        wait_until(PATIENCE, "somebody works at it", || {
            works() || asking.try_wait().unwrap().is_some()
        });
        let _ = asking.kill();
        asking.wait().unwrap();
        // What was begun comes to an end without it.
        wait_until(PATIENCE, "another one can be asked for", || {
            let asked = self.cpr(&["checkpoint", job]);
            assert!(asked.code == 0 || asked.code == 75, "{}", asked.stderr);
            asked.code == 0
        });
    }

    /// Numbers that the job has printed.
    fn numbers(&self, job: &str) -> Vec<u64> {
        let text = String::from_utf8_lossy(&self.cpr.logs(job)).into_owned();
        // The last line may be half written.
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Waits until the job, of whose output `skip` numbers are old, has printed one of at least `least`.
    fn wait_for(&self, job: &str, skip: usize, least: u64) -> Vec<u64> {
        let new = || -> Vec<u64> { self.numbers(job).into_iter().skip(skip).collect() };
        wait_until(PATIENCE, &format!("job {job} has printed {least}"), || {
            new().last().is_some_and(|last| *last >= least)
        });
        new()
    }

    /// Restarts, and requires that the job goes on from what it had at least, and not from the beginning.
    fn restarts(&self, what: &str, job: &str, had: u64) {
        let skip = self.numbers(job).len();
        self.cpr(&["restart", "-d", what]).good();
        let new = self.wait_for(job, skip, had + 3);
        assert!(new[0] + 1 >= had, "{what} goes on from {} and had {had}", new[0]);
        assert!(new.windows(2).all(|pair| pair[1] == pair[0] + 1), "{new:?}");
    }

    fn kill(&self, job: &str) {
        self.cpr(&["kill", "-s", "KILL", job]).good();
        self.cpr.wait(job);
    }
}

/// Everything an engine has to do.
// XGCP-API-3, XGCP-API-4, XGCP-API-8, GCA-CTS-2
fn conforms(test: &str, case: &Case) {
    let Some(lab) = Lab::new(test, case.user) else { return };
    let shown = lab.cpr(&["engines", "show", case.engine, "--json"]).good().json();
    if shown["works"] != true {
        note_skip(test, shown["reason"].as_str().unwrap());
        return;
    }
    if !(case.install)(&lab.cpr, test) {
        return;
    }
    let last = |job: &str| *lab.numbers(job).last().unwrap();
    // Start; checkpoint and go on.
    lab.start(case.engine, "sim", case.job);
    lab.wait_for("sim", 0, 5);
    let had = last("sim");
    let report = lab.cpr(&["checkpoint", "sim", "--json"]).good().json();
    let first = report["image"].as_str().unwrap().to_string();
    assert!(
        report["bytes"].as_u64().unwrap() > 0 && report["processes"].as_u64().unwrap() > 0,
        "{report}"
    );
    let all = lab.wait_for("sim", 0, had + 5);
    assert!(
        all.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "it has lost a step: {all:?}"
    );
    let images = lab.cpr(&["images", "--json"]).good().json();
    assert_eq!(images["images"][0]["engine"], case.engine, "{images}");
    lab.cpr(&["verify", &first]).good();
    lab.cpr(&["inspect", &first]).good();
    lab.cpr(&["inspect", "--json", "sim"]).good();
    // Whoever asked is killed in the middle.
    let before = lab.numbers("sim").len();
    for _ in 0..3 {
        lab.asks_and_is_killed("sim");
    }
    let all = lab.wait_for("sim", before, had + 10);
    assert!(
        all.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "it has lost a step: {all:?}"
    );
    // Checkpoint and stop.
    let had_at_stop = last("sim");
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    assert!(!lab.cpr.is_running("sim"));
    // Restart, and once more, and by an older image, which makes a job of its own.
    lab.restarts("sim", "sim", had_at_stop);
    lab.kill("sim");
    lab.restarts("sim", "sim", had_at_stop);
    // A restarted job can be saved.
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    lab.cpr(&["restart", "-d", "--name", "copy", &first]).good();
    let new = lab.wait_for("copy", 0, had + 3);
    assert!(new[0] + 1 >= had && new[0] <= had + 50, "{new:?}, and had {had}");
    lab.kill("copy");
    // A wrong image and a missing one.
    let mut bytes = fs::read(&first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let wrong = lab.cpr.work.join("wrong.cpr");
    fs::write(&wrong, &bytes).unwrap();
    lab.cpr.give(&wrong);
    let refused = lab.cpr(&["restart", "-d", wrong.to_str().unwrap()]);
    assert_eq!(refused.code, 65, "{}", refused.stderr);
    fs::write(&wrong, &bytes[..middle]).unwrap();
    assert_eq!(lab.cpr(&["restart", "-d", wrong.to_str().unwrap()]).code, 65);
    assert_eq!(lab.cpr(&["restart", "-d", "./missing.cpr"]).code, 66);
    // A job that it cannot save goes on.
    lab.start(case.engine, "odd", case.unsupported);
    let refused = lab.cpr(&["checkpoint", "odd"]);
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(lab.cpr.is_running("odd"));
    let status = lab.cpr(&["ps", "--json"]).good().json();
    let job = status["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["name"] == "odd")
        .unwrap()
        .clone();
    assert_eq!(job["phase"], "running", "{job}");
}

/// What a user can have written is never run as root, whatever it says.
#[test]
fn root_restarts_no_image_that_is_a_users() {
    const DENIED: i32 = 77;
    let Some(lab) = Lab::new("root_restarts_no_image_that_is_a_users", As::Root) else {
        return;
    };
    lab.start(APPLICATION.engine, "sim", APPLICATION.job);
    lab.wait_for("sim", 0, 5);
    let image = lab.cpr.work.join("sim.cpr");
    let path = image.to_str().unwrap();
    lab.cpr(&["checkpoint", "--stop", "-o", path, "sim"]).good();
    std::os::unix::fs::chown(&image, Some(65534), None).unwrap();
    let refused = lab.cpr(&["restart", "-d", "--name", "theirs", path]);
    assert_eq!(refused.code, DENIED, "{}", refused.stderr);
    assert!(refused.stderr.contains("belongs to user 65534"), "{}", refused.stderr);
    std::os::unix::fs::chown(&image, Some(0), None).unwrap();
    lab.cpr(&["restart", "-d", "--name", "ours", path]).good();
    lab.kill("ours");
}

#[test]
fn native_conforms() {
    conforms("native_conforms", &NATIVE);
}

// GCA-CS-2, XGCP-COORD-15
#[test]
fn criu_conforms() {
    conforms("criu_conforms", &CRIU);
}

// GCA-CS-1
#[test]
fn programs_that_save_themselves_conform() {
    conforms("programs_that_save_themselves_conform", &APPLICATION);
}

// XGCP-TL-6, GCA-VMM-1
#[test]
fn virtual_machines_conform() {
    conforms("virtual_machines_conform", &QEMU);
}

// GCA-CS-2
#[test]
fn dmtcp_conforms() {
    conforms("dmtcp_conforms", &DMTCP);
}

// GCA-CTS-3, GCA-CTS-33
#[test]
fn the_external_example_conforms() {
    conforms("the_external_example_conforms", &EXTERNAL);
}

/// A process and three children with pipes between them; the first counts, and the last writes to a file as well.
const GROUP: &str = r#"
import itertools, os, time
(first, to_second), (second, to_third) = os.pipe(), os.pipe()
def count():
    for number in itertools.count(1):
        os.write(to_second, b"%d\n" % number)
        time.sleep(0.05)
def pass_on():
    while True: os.write(to_third, os.read(first, 4096))
def keep():
    copy = open("copy", "wb", 0)
    while True:
        data = os.read(second, 4096)
        copy.write(data)
        os.write(1, data)
for work in (count, pass_on, keep):
    if os.fork() == 0: work()
os.wait()
"#;

// XGCP-TL-4
#[test]
fn a_group_with_pipes_and_files_goes_on_as_one() {
    let test = "a_group_with_pipes_and_files";
    for case in [&NATIVE, &CRIU] {
        let Some(lab) = Lab::new(test, case.user) else { continue };
        let shown = lab.cpr(&["engines", "show", case.engine, "--json"]).good().json();
        if shown["works"] != true {
            note_skip(test, shown["reason"].as_str().unwrap());
            continue;
        }
        lab.start(case.engine, "sim", &["python3", "-c", GROUP]);
        lab.wait_for("sim", 0, 10);
        let report = lab.cpr(&["checkpoint", "--stop", "sim", "--json"]).good().json();
        assert_eq!(report["processes"], 4, "{report}");
        let had = *lab.numbers("sim").last().unwrap();
        lab.restarts("sim", "sim", had);
        lab.kill("sim");
        // None is lost and none comes twice: what was in the pipes has come out of them.
        let written = fs::read_to_string(lab.cpr.work.join("copy")).unwrap();
        let end = written.rfind('\n').map_or(0, |end| end + 1);
        let numbers: Vec<u64> = written[..end].lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.len() as u64 > had && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}

/// Its child has a child that counts, and ends before it is saved.
const CHAIN: &str = "sh -c '(i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done) & wait' & middle=$!
    until [ -e go ]; do sleep 0.01; done; kill -9 $middle; wait $middle; touch killed; sleep 1000";

// XGCP-PG-5
#[test]
fn the_loss_of_a_process_in_the_middle_loses_none_of_its_children() {
    let Some(lab) = Lab::new("loss_in_the_middle", As::User) else {
        return;
    };
    lab.start("native", "sim", &["sh", "-c", CHAIN]);
    fs::write(lab.cpr.work.join("go"), "").unwrap();
    wait_until(PATIENCE, "the one in the middle is killed", || {
        lab.cpr.work.join("killed").exists()
    });
    let had = *lab.numbers("sim").last().unwrap();
    lab.wait_for("sim", 0, had + 3);
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    let had = *lab.numbers("sim").last().unwrap();
    lab.restarts("sim", "sim", had);
    lab.kill("sim");
}

// GCA-CTS-30
#[test]
fn an_image_is_restarted_by_its_engine_or_not_at_all() {
    let Some(lab) = Lab::new("an_image_is_restarted_by_its_engine", As::User) else {
        return;
    };
    lab.start(EXTERNAL.engine, "sim", EXTERNAL.job);
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    let empty = lab.cpr.work.join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = lab.cpr_in(&empty, &["restart", "-d", "sim"]);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("engine open-files, which is not here"),
        "{}",
        refused.stderr
    );
    lab.restarts("sim", "sim", 1);
}

/// A process of two levels and its four descendants, by the root alone; two descriptors of one engine are two engines.
// XGCP-API-1, XGCP-PG-4, XGCP-FILE-9, GCA-CTS-4
#[test]
fn the_group_of_a_job_is_found_and_written_down() {
    let test = "the_group_of_a_job_is_found_and_written_down";
    let Some(lab) = Lab::new(test, As::Root) else { return };
    for name in ["criu-day", "criu-night"] {
        lab.write(
            &format!("{name}.toml"),
            &format!("name = \"{name}\"\ndriver = \"criu\"\n[deadlines]\nstop = 20\n"),
        );
        let shown = lab.cpr(&["engines", "show", name, "--json"]).good().json();
        if shown["works"] != true {
            note_skip(test, shown["reason"].as_str().unwrap());
            return;
        }
        let two_levels = "sh -c 'sleep 1000 & sleep 1000 & echo 1; wait' & wait";
        lab.start(name, name, &["sh", "-c", two_levels]);
        let image = lab.cpr(&["checkpoint", "--stop", name, "--json"]).good().json()["image"].clone();
        let record = lab.cpr(&["inspect", "--json", image.as_str().unwrap()]).good().json();
        let text = record.to_string();
        let record = find(&record, "group").unwrap_or_else(|| panic!("no group in {text}"));
        assert_eq!(
            record["group"],
            serde_json::json!(["tree", record["root"].to_string()]),
            "{text}"
        );
        assert_eq!(record["processes"].as_array().unwrap().len(), 4, "{text}");
        assert_eq!(record["engine"], name);
        assert!(record["version"].is_string(), "{text}");
        lab.cpr(&["restart", "-d", name]).good();
        assert!(lab.cpr.is_running(name));
    }
}

/// The object that has a key, wherever it is.
fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(map) if map.contains_key(key) => Some(value),
        serde_json::Value::Object(map) => map.values().find_map(|inner| find(inner, key)),
        serde_json::Value::Array(list) => list.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

// GCA-CTS-16
#[test]
fn an_engine_of_newest_images_restarts_no_older_one() {
    let Some(lab) = Lab::new("an_engine_of_newest_images", As::User) else {
        return;
    };
    let text = fs::read_to_string(lab.config.join("engines.d/open-files.toml")).unwrap();
    let text = text
        .replace("open-files", "newest")
        .replace("driver =", "images = \"newest\"\ndriver =");
    lab.write("newest.toml", &text);
    lab.start("newest", "sim", EXTERNAL.job);
    let older = lab.cpr(&["checkpoint", "sim", "--json"]).good().json()["image"]
        .as_str()
        .unwrap()
        .to_string();
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    let refused = lab.cpr(&["restart", "-d", &older]);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("restarts the newest image only"),
        "{}",
        refused.stderr
    );
    lab.restarts("sim", "sim", 1);
}

/// The example with a fault at one step.
const FAULTY: &str = r#"#!/usr/bin/env python3
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("engine", os.path.join(os.path.dirname(__file__), "open_files.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
fault, where = "FAULT", "STEP"
class Faulty(module.Engine):
    pass
def make(step, good):
    def act(self, request):
        if step != where:
            return good(self, request)
        if fault == "hang":
            time.sleep(1000)
        if fault == "crash":
            sys.exit("out of paint")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "garbage":
            os.write(1, b"\xff\xfe{{{\n")
            return {}
        if fault == "other":
            print('{"step": "dance", "ok": true}', flush=True)
            return {}
        if fault == "flood":
            while True:
                os.write(1, b"x" * 65536)
        # A lie: nothing is done.
        if step == "prepare":
            return {"group": {"kind": "tree", "id": "1", "processes": [request["root"], 1]}}
        return {"root": 31999}
    return act
for step in ["prepare", "stop", "checkpoint", "resume_after_checkpoint", "rebuild", "resume_after_restart"]:
    setattr(Faulty, step, make(step, getattr(module.Engine, step)))
module.Engine = Faulty
module.main()
"#;

const CHECKPOINT_STEPS: [(&str, &str); 4] = [
    ("prepare", "prepare"),
    ("stop", "stop"),
    ("checkpoint", "checkpoint"),
    ("resume_after_checkpoint", "resume after the checkpoint"),
];

fn add_faulty(lab: &Lab, fault: &str, step: &str) -> String {
    let name = format!("{fault}-{}", step.replace('_', "-"));
    lab.write(
        &format!("{name}.py"),
        &FAULTY.replace("FAULT", fault).replace("STEP", step),
    );
    let text = format!(
        "name = \"{name}\"\ndriver = \"external\"\nprogram = [\"./{name}.py\"]\n[deadlines]\n\
         prepare = 1\nstop = 1\ncheckpoint = 1\nresume = 1\nrebuild = 1\n"
    );
    // Python takes a moment to start.
    let text = text
        .replace("prepare = 1", "prepare = 5")
        .replace("rebuild = 1", "rebuild = 5");
    lab.write(&format!("{name}.toml"), &text);
    name
}

/// Whatever an engine does, the job goes on, and the user learns which step of which engine it was.
#[test]
fn a_faulty_engine_does_not_harm_the_job() {
    let Some(lab) = Lab::new("a_faulty_engine_does_not_harm_the_job", As::User) else {
        return;
    };
    for fault in ["hang", "crash", "kill", "garbage", "other", "flood", "lie"] {
        for (step, said) in CHECKPOINT_STEPS {
            let engine = add_faulty(&lab, fault, step);
            let job = format!("job-{engine}");
            lab.start(&engine, &job, EXTERNAL.job);
            let failed = lab.cpr(&["checkpoint", &job]);
            assert!(failed.code >= 64, "{engine}: {} {}", failed.code, failed.stderr);
            assert!(
                failed.stderr.contains(&format!("engine {engine}: {said}: ")),
                "{}",
                failed.stderr
            );
            if fault == "crash" {
                assert!(failed.stderr.contains("it said: out of paint"), "{}", failed.stderr);
            }
            let had = *lab.numbers(&job).last().unwrap();
            lab.wait_for(&job, 0, had + 3);
            assert!(lab.cpr(&["images", "-q", &job]).good().text().is_empty());
            lab.kill(&job);
        }
    }
}

#[test]
fn a_faulty_engine_leaves_no_half_restarted_job() {
    let Some(lab) = Lab::new("a_faulty_engine_leaves_no_half_restarted_job", As::User) else {
        return;
    };
    for fault in ["hang", "crash", "garbage", "lie"] {
        for (step, said) in [
            ("rebuild", "rebuild"),
            ("resume_after_restart", "resume after the restart"),
        ] {
            if fault == "lie" && step != "rebuild" {
                continue;
            }
            let engine = add_faulty(&lab, fault, step);
            let job = format!("job-{engine}");
            lab.start(&engine, &job, EXTERNAL.job);
            lab.cpr(&["checkpoint", "--stop", &job]).good();
            let failed = lab.cpr(&["restart", "-d", &job]);
            assert!(failed.code >= 64, "{engine}: {} {}", failed.code, failed.stderr);
            assert!(
                failed.stderr.contains(&format!("engine {engine}: {said}: ")),
                "{}",
                failed.stderr
            );
            assert!(!lab.cpr.is_running(&job));
        }
    }
}

// GCA-CTS-24
#[test]
fn placeholders_are_filled_in() {
    let Some(lab) = Lab::new("placeholders_are_filled_in", As::User) else {
        return;
    };
    lab.write(
        "args.py",
        "#!/usr/bin/env python3\nimport sys\nsys.exit(\"args \" + \" \".join(sys.argv[1:]))\n",
    );
    // Probed by the engine of the same name with another program: only a checkpoint shows arguments.
    lab.write(
        "args.toml",
        "name = \"args\"\ndriver = \"external\"\nprogram = [\"./args.py\", \"--job=%JOB%\", \"--image=%IMAGE%\"]\n",
    );
    let probed = lab.cpr(&["engines", "show", "args", "--json"]).good().json();
    assert_eq!(probed["works"], false, "{probed}");
    assert!(
        probed["reason"].as_str().unwrap().contains("it said: args --job=%JOB%"),
        "{probed}"
    );
    // As the engine of a job that was started while it worked.
    lab.write(
        "args.py",
        &fs::read_to_string(lab.config.join("engines.d/open_files.py")).unwrap(),
    );
    lab.start("args", "sim", EXTERNAL.job);
    lab.write(
        "args.py",
        "#!/usr/bin/env python3\nimport sys\nsys.exit(\"args \" + \" \".join(sys.argv[1:]))\n",
    );
    let failed = lab.cpr(&["checkpoint", "sim"]);
    assert!(failed.stderr.contains("args --job=sim --image=/"), "{}", failed.stderr);
}

/// Each engine has its own, which is told what is known before the job runs, and tells the job.
// GCA-WRAP-4, GCA-UC-5.1.5
#[test]
fn the_wrapper_of_its_engine_is_run_in_place_of_a_job() {
    let Some(lab) = Lab::new("the_wrapper_of_its_engine", As::User) else {
        return;
    };
    for name in ["day", "night"] {
        lab.write(
            &format!("{name}.sh"),
            &format!("#!/bin/sh\necho {name} wraps $1, with $#\nexport PLACE=$2\nshift 2\nexec \"$@\"\n"),
        );
        lab.write(
            &format!("{name}.toml"),
            &format!(
                "name = \"{name}\"\ndriver = \"external\"\nprogram = [\"./open_files.py\"]\n\
                 wrapper = [\"./{name}.sh\", \"%JOB%\", \"at-%JOB_DIRECTORY%\"]\n"
            ),
        );
    }
    for name in ["day", "night"] {
        let job = format!("job-of-{name}");
        let program = "echo place $PLACE job $GRIDCPR_JOB \"$1\"";
        let ran = lab.cpr(&[
            "run", "--engine", name, "--name", &job, "--", "sh", "-c", program, "x", "a  b",
        ]);
        let said = ran.good().text();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], format!("{name} wraps {job}, with 7"), "{said}");
        let (place, rest) = lines[1].strip_prefix("place at-").unwrap().split_once(' ').unwrap();
        assert!(place.starts_with('/') && place.contains(&job), "{said}");
        assert_eq!(rest, format!("job {job} a  b"), "{said}");
    }
}

/// The program of an engine is there while it is needed, and not before or after.
// XGCP-JUCP-6
#[test]
fn an_engine_is_started_for_a_checkpoint_and_ends_with_it() {
    let Some(lab) = Lab::new("an_engine_is_started_for_a_checkpoint", As::User) else {
        return;
    };
    let engine = add_faulty(&lab, "hang", "checkpoint");
    // In this test's directory: others may have one of that name.
    let (directory, name) = (lab.config.display().to_string(), format!("/{engine}.py"));
    let runs = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let mut words = lines.flat_map(|line| {
            let words = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned());
            words.collect::<Vec<_>>()
        });
        words.any(|word| word.starts_with(&directory) && word.ends_with(&name))
    };
    lab.start(&engine, "sim", EXTERNAL.job);
    assert!(!runs());
    let mut command = lab.cpr.command(lab.cpr.binary());
    command
        .env("GRIDCPR_CONFIG_DIRS", &lab.config)
        .args(["checkpoint", "sim"]);
    let mut asked = command.spawn().unwrap();
    wait_until(PATIENCE, "its engine runs", runs);
    assert!(!asked.wait().unwrap().success(), "it hangs");
    wait_until(PATIENCE, "its engine has ended", || !runs());
    assert!(lab.cpr.is_running("sim"));
}

/// Checkpoints of its own come by any engine.
// GCA-CTS-6
#[test]
fn periodic_checkpoints_are_made_by_the_engine() {
    let Some(lab) = Lab::new("periodic_checkpoints_are_made_by_the_engine", As::User) else {
        return;
    };
    let mut all = vec![
        "run",
        "-d",
        "--engine",
        "open-files",
        "--every",
        "300ms",
        "--keep",
        "2",
        "--name",
        "sim",
        "--",
    ];
    all.extend(EXTERNAL.job);
    lab.cpr(&all).good();
    wait_until(PATIENCE, "the third image", || {
        lab.cpr(&["images", "-q", "sim"]).good().text().contains("000003.cpr")
    });
    wait_until(Duration::from_secs(20), "the oldest is gone", || {
        !lab.cpr(&["images", "-q", "sim"]).good().text().contains("000001.cpr")
    });
}

/// What only the native engine can do is refused by name.
#[test]
fn what_an_engine_cannot_do_is_refused() {
    let Some(lab) = Lab::new("what_an_engine_cannot_do_is_refused", As::User) else {
        return;
    };
    lab.start(EXTERNAL.engine, "sim", EXTERNAL.job);
    for option in ["--incremental", "--compare", "--live", "--compress"] {
        let refused = lab.cpr(&["checkpoint", option, "sim"]);
        assert_eq!(refused.code, 69, "{option}: {}", refused.stderr);
    }
    assert_eq!(lab.cpr(&["check", "sim"]).code, 69);
    lab.cpr(&["checkpoint", "--stop", "sim"]).good();
    assert_eq!(lab.cpr(&["restart", "-d", "--lazy", "sim"]).code, 69);
    lab.restarts("sim", "sim", 1);
}
