//! Commands on processes and sessions that `cpr` did not start, and checkpoints that are asked for from inside.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{As, Cpr, PATIENCE, poll, wait_until};

/// The distribution's: another one in PATH may be for its owner only.
const PYTHON: &str = "/usr/bin/python3";
const NOT_FOUND: i32 = 66;
const WRONG_USAGE: i32 = 64;
const BUSY: i32 = 75;
const DENIED: i32 = 77;

/// A program that no job is of; ended and waited for on drop.
struct Bare(Child);

impl Bare {
    fn start(cpr: &Cpr, program: &[&str], output: &str) -> Bare {
        let file = File::create(cpr.work.join(output)).expect("the test's directory can be written");
        cpr.give(&cpr.work.join(output));
        let mut command = cpr.command(program[0]);
        command
            .args(&program[1..])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(file);
        Bare(command.spawn().expect("the program can be started"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits for it to end.
    fn reap(&mut self) {
        let ended = poll(PATIENCE, || self.0.try_wait().expect("a child can be waited for"));
        assert!(ended.is_some(), "process {} does not end", self.pid());
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fields of /proc/PID/stat after the name: state, parent, group, session, ….
fn stat(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_ascii_whitespace().map(str::to_owned).collect()
}

fn number(fields: &[String], index: usize) -> i32 {
    fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(-1)
}

/// PID to parent, group and state of all processes of a session here.
fn session(sid: i32) -> BTreeMap<i32, (i32, i32, String)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc can be read").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let fields = stat(pid);
        if number(&fields, 3) == sid {
            found.insert(pid, (number(&fields, 1), number(&fields, 2), fields[0].clone()));
        }
    }
    found
}

/// Processor time, in clock ticks.
fn time(pid: i32) -> i32 {
    let fields = stat(pid);
    number(&fields, 11) + number(&fields, 12)
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn image_of(report: &Value) -> String {
    report["image"]
        .as_str()
        .unwrap_or_else(|| panic!("{report}"))
        .to_owned()
}

fn whole_session(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let script = "set -m; sleep 1000 | sleep 1001 & sleep 1002 & wait";
    let mut leader = Bare::start(&cpr, &["setsid", "bash", "-c", script], "out");
    let sid = leader.pid();
    let expected = poll(PATIENCE, || Some(session(sid)).filter(|all| all.len() == 4)).expect("four processes run");
    assert_eq!(cpr.cpr(["check", "--session", &sid.to_string()]).good().code, 0);
    let image = cpr.work.join("session.cpr").display().to_string();
    let report = cpr
        .cpr([
            "checkpoint",
            "--json",
            "--session",
            &sid.to_string(),
            "--stop",
            "-o",
            &image,
        ])
        .good()
        .json();
    assert_eq!((&report["session"], &report["processes"]), (&sid.into(), &4.into()));
    leader.reap();
    wait_until(PATIENCE, "all processes have ended", || session(sid).is_empty());
    let listing = cpr.cpr(["inspect", "--json", &image]).good().json();
    let saved = listing["manifest"]["processes"]
        .as_array()
        .expect("there are processes");
    let known: BTreeMap<i32, (i32, i32)> = saved
        .iter()
        .map(|p| {
            let field = |name: &str| p[name].as_i64().unwrap_or_default() as i32;
            assert_eq!(field("sid"), sid);
            (field("pid"), (field("ppid"), field("pgid")))
        })
        .collect();
    let before: BTreeMap<i32, (i32, i32)> = expected
        .iter()
        .map(|(pid, (parent, group, _))| (*pid, (*parent, *group)))
        .collect();
    assert_eq!(known, before);
    cpr.cpr(["restart", "-d", "--name", "back", &image]).good();
    if user == As::Root {
        // Where PIDs can be chosen they are those of before, here.
        let after: BTreeMap<i32, (i32, i32)> = session(sid)
            .iter()
            .map(|(pid, (parent, group, _))| (*pid, (*parent, *group)))
            .collect();
        for (pid, (parent, group)) in &before {
            let now = after
                .get(pid)
                .unwrap_or_else(|| panic!("process {pid} is missing: {after:?}"));
            assert_eq!(now.1, *group, "group of {pid}");
            if *pid != sid {
                assert_eq!(now.0, *parent, "parent of {pid}");
            }
        }
        assert_eq!(after.len(), before.len());
    } else {
        let again = cpr.checkpoint("back", &[]);
        assert_eq!(again["processes"], 4);
        let listing = cpr.cpr(["inspect", "--json", &image_of(&again)]).good().json();
        for process in listing["manifest"]["processes"]
            .as_array()
            .expect("there are processes")
        {
            let pid = process["pid"].as_i64().unwrap_or_default() as i32;
            assert_eq!(
                (&process["sid"], &process["pgid"]),
                (&sid.into(), &before[&pid].1.into())
            );
        }
    }
    cpr.cpr(["rm", "--force", "back"]).good();
    assert_eq!(cpr.cpr(["checkpoint", "--session", &sid.to_string()]).code, NOT_FOUND);
}

// LBNL-3.6.1.3, LBNL-3.6.1.4, LBNL-2.2.4B.10, LBNL-3.9.5.3.1, LBNL-3.9.5.4.1
#[test]
fn a_session_is_checkpointed_and_restarted_root() {
    whole_session("a_session_is_checkpointed_and_restarted_root", As::Root);
}

#[test]
fn a_session_is_checkpointed_and_restarted_user() {
    whole_session("a_session_is_checkpointed_and_restarted_user", As::User);
}

fn one_process(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let mut sleeper = Bare::start(&cpr, &["sleep", "1000"], "out");
    let pid = sleeper.pid();
    wait_until(PATIENCE, "it sleeps", || {
        text(format!("/proc/{pid}/cmdline").into()).starts_with("sleep")
    });
    let image = cpr.work.join("sleep.cpr").display().to_string();
    cpr.cpr(["checkpoint", &pid.to_string(), "--stop", "-o", &image]).good();
    sleeper.reap();
    cpr.cpr(["restart", "-d", "--name", "back", &image]).good();
    let status = cpr.cpr(["checkpoint", "--json", "back"]).good().json();
    let listing = cpr.cpr(["inspect", "--json", &image_of(&status)]).good().json();
    assert_eq!(listing["manifest"]["processes"][0]["pid"], pid);
    cpr.cpr(["rm", "--force", "back"]).good();
}

// LBNL-3.6.1.1, LBNL-3.6.1.2
#[test]
fn a_process_is_checkpointed_and_restarted_root() {
    one_process("a_process_is_checkpointed_and_restarted_root", As::Root);
}

#[test]
fn a_process_is_checkpointed_and_restarted_user() {
    one_process("a_process_is_checkpointed_and_restarted_user", As::User);
}

/// Once there is a file `now`, starts a process that nobody waits for, in a session of its own, which counts into
/// `count`.
const DAEMON: &str = "while [ ! -e now ]; do sleep 0.02; done
(setsid sh -c 'i=0; while sleep 0.02; do i=$((i + 1)); echo $i >count; done' &)
while sleep 1; do :; done";

/// A process in the machine's PID namespace that goes on as a job there: what it leaves to others from then on is the
/// job's, too.
#[test]
fn orphans_of_a_process_that_goes_on_as_a_job_are_saved_with_it() {
    let Some(cpr) = Cpr::new("orphans_of_a_process_that_goes_on_as_a_job_are_saved_with_it", As::Root) else {
        return;
    };
    let mut program = Bare::start(&cpr, &["sh", "-c", DAEMON], "out");
    let image = cpr.work.join("daemon.cpr").display().to_string();
    cpr.cpr(["checkpoint", &program.pid().to_string(), "--stop", "-o", &image])
        .good();
    program.reap();
    cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "back", &image])
        .good();
    fs::write(cpr.work.join("now"), "").expect("the test's directory can be written");
    let count = || text(cpr.work.join("count")).trim().parse::<u64>().unwrap_or_default();
    let counts_on = |what: &str| {
        let from = count();
        wait_until(PATIENCE, what, || count() > from + 2);
    };
    counts_on("the daemon counts");
    for _ in 0..2 {
        let saved = cpr.cpr(["checkpoint", "--json", "back"]).good().json();
        assert!(saved["processes"].as_u64() >= Some(3), "{saved}");
        counts_on("the daemon goes on");
        assert_eq!(cpr.cpr(["check", "back"]).code, 0);
        cpr.cpr(["checkpoint", "--stop", "back"]).good();
        let stopped = count();
        cpr.cpr(["restart", "-d", "back"]).good();
        wait_until(PATIENCE, "the daemon counts again", || count() > stopped + 2);
    }
    cpr.cpr(["rm", "--force", "back"]).good();
}

/// Counts into a file for all to see, and holds 64 MB.
const COUNTER: &str = "
import sys
held = b'x' * (64 << 20)
count = 0
while True:
    count += 1
    if count % 100000 == 0:
        print(count, flush=True)
";

fn stands_still(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let counter = Bare::start(&cpr, &[PYTHON, "-c", COUNTER], "count");
    let pid = counter.pid();
    let count = || {
        text(cpr.work.join("count"))
            .lines()
            .last()
            .and_then(|l| l.parse::<u64>().ok())
            .unwrap_or(0)
    };
    wait_until(PATIENCE, "it counts", || count() > 0);
    let argument = pid.to_string();
    let argument = argument.as_str();
    assert_eq!(cpr.cpr(["resume", argument]).code, WRONG_USAGE, "it is not suspended");
    let report = cpr.cpr(["suspend", "--json", argument]).good().json();
    assert_eq!(
        (&report["pid"], &report["processes"], &report["job"]),
        (&pid.into(), &1.into(), &Value::Null)
    );
    let resident = |name: &str| report[name].as_u64().expect("it is a number");
    assert!(resident("resident_after") <= resident("resident_before"), "{report}");
    if report["note"].is_null() {
        assert!(
            resident("resident_after") < resident("resident_before") / 10,
            "{report}"
        );
    }
    let (ticks, reached) = (time(pid), count());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((time(pid), count()), (ticks, reached), "it stands still");
    assert_eq!(cpr.cpr(["suspend", argument]).code, BUSY, "it is suspended already");
    if report["method"] == "cgroup" {
        assert_eq!(cpr.cpr(["checkpoint", argument]).code, BUSY);
    }
    cpr.cpr(["resume", argument]).good();
    wait_until(PATIENCE, "it counts again", || count() > reached && time(pid) > ticks);
    assert_eq!(cpr.cpr(["resume", argument]).code, WRONG_USAGE, "it goes on already");
    // Numbers of before mean nothing for another process. (In a frozen cgroup of version 1 nobody can die.)
    if report["method"] == "signal" {
        cpr.cpr(["suspend", argument]).good();
    }
    drop(counter);
    assert_eq!(cpr.cpr(["resume", argument]).code, NOT_FOUND);
}

// LBNL-1.2.4.1.b, LBNL-2.2.1.3, LBNL-3.6.1.5, LBNL-3.6.1.6, LBNL-2.2.1.4
#[test]
fn a_process_is_suspended_and_resumed_root() {
    stands_still("a_process_is_suspended_and_resumed_root", As::Root);
}

#[test]
fn a_process_is_suspended_and_resumed_user() {
    stands_still("a_process_is_suspended_and_resumed_user", As::User);
}

fn pipeline(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    // It uses its processor until it may end.
    let count = "import os\nfor i in range(200000):\n print(i % 977, flush=i % 100 == 0)\n\
                 while not os.path.exists(\"go\"): pass";
    let script = format!("python3 -c '{count}' | sort -n | uniq -c > result.new && mv result.new result; sleep 1000");
    fs::write(cpr.work.join("go"), "").expect("a file");
    let plain = cpr
        .program(&["sh", "-c", &format!("python3 -c '{count}' | sort -n | uniq -c")])
        .good();
    fs::remove_file(cpr.work.join("go")).expect("it is there");
    let leader = Bare::start(&cpr, &["setsid", "sh", "-c", &script], "out");
    let sid = leader.pid().to_string();
    wait_until(PATIENCE, "the pipeline runs", || session(leader.pid()).len() == 4);
    let report = cpr.cpr(["suspend", "--json", "--session", &sid]).good().json();
    assert_eq!(report["session"], leader.pid());
    let ticks = || session(leader.pid()).keys().map(|pid| time(*pid)).sum::<i32>();
    let before = ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ticks(), before, "all of it stands still");
    if report["method"] == "signal" {
        assert!(session(leader.pid()).values().all(|(_, _, state)| state == "T"));
    }
    assert!(!cpr.work.join("result").exists());
    cpr.cpr(["resume", "--session", &sid]).good();
    fs::write(cpr.work.join("go"), "").expect("a file");
    wait_until(PATIENCE, "the pipeline ends", || cpr.work.join("result").exists());
    assert_eq!(
        fs::read(cpr.work.join("result")).expect("there is a result"),
        plain.stdout
    );
}

// LBNL-3.6.1.7, LBNL-3.6.1.8
#[test]
fn a_session_is_suspended_and_resumed_root() {
    pipeline("a_session_is_suspended_and_resumed_root", As::Root);
}

#[test]
fn a_session_is_suspended_and_resumed_user() {
    pipeline("a_session_is_suspended_and_resumed_user", As::User);
}

// LBNL-3.6.2.1, LBNL-3.6.2.3, LBNL-3.6.2.4
#[test]
fn only_who_may_signal_a_process_may_do_anything_with_it() {
    let Some(root) = Cpr::new("only_who_may_signal", As::Root) else {
        return;
    };
    let Some(user) = Cpr::new("only_who_may_signal", As::User) else {
        return;
    };
    let sleeper = Bare::start(&root, &["setsid", "sleep", "1000"], "out");
    let pid = sleeper.pid().to_string();
    let pid = pid.as_str();
    wait_until(PATIENCE, "it leads a session", || session(sleeper.pid()).len() == 1);
    let denied = |arguments: &[&str]| {
        let result = user.cpr(arguments);
        assert_eq!(result.code, DENIED, "{arguments:?}: {}", result.stderr);
    };
    for arguments in [["checkpoint", pid], ["suspend", pid]] {
        denied(&arguments);
    }
    for verb in ["checkpoint", "suspend", "resume"] {
        denied(&[verb, "--session", pid]);
    }
    root.cpr(["suspend", pid]).good();
    denied(&["resume", pid]);
    root.cpr(["resume", pid]).good();
    assert_eq!(stat(sleeper.pid())[0], "S", "it goes on undisturbed");
}

// LBNL-3.6.2.7, LBNL-3.6.3.4.b
#[test]
fn the_image_of_a_session_belongs_to_its_leaders_user() {
    let Some(cpr) = Cpr::new("the_image_of_a_session", As::Root) else {
        return;
    };
    const LEADER: u32 = 65534;
    let script = "import os,subprocess,time
os.setsid()
other = subprocess.Popen(['sleep', '1000'])
os.setgid(65534); os.setuid(65534)
print('READY', flush=True)
time.sleep(1000)";
    let leader = Bare::start(&cpr, &[PYTHON, "-c", script], "out");
    wait_until(PATIENCE, "the session is there", || {
        text(cpr.work.join("out")) == "READY\n"
    });
    let image = cpr.work.join("session.cpr");
    let path = image.display().to_string();
    cpr.cpr(["checkpoint", "--session", &leader.pid().to_string(), "-o", &path])
        .good();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&image).expect("there is an image").uid(), LEADER);
    let listing = cpr.cpr(["inspect", "--json", &path]).good().json();
    let checkpoint = &listing["manifest"]["checkpoint"];
    assert_eq!(
        (&checkpoint["owner_uid"], &checkpoint["initiator_uid"]),
        (&LEADER.into(), &0.into())
    );
}

/// Waits for its child and says how that ended.
const PARENT: &str = "
import os, signal, sys, time
child = os.fork()
if child == 0:
    if len(sys.argv) > 1:
        def handler(number, frame):
            print('handled', os.path.exists(sys.argv[1]), flush=True)
            os._exit(3)
        signal.signal(signal.SIGTERM, handler)
    while True:
        time.sleep(0.01)
print(child, flush=True)
pid, status = os.waitpid(child, 0)
print('ended', status, flush=True)
";

/// Runs the parent, checkpoints its child with these options, and gives what was said.
fn ended_by(cpr: &Cpr, output: &str, with_handler: bool, options: &[&str]) -> String {
    let image = cpr.work.join(format!("{output}.cpr")).display().to_string();
    let mut program = vec![PYTHON, "-c", PARENT];
    if with_handler {
        program.push(&image);
    }
    let mut parent = Bare::start(cpr, &program, output);
    let said = || text(cpr.work.join(output));
    wait_until(PATIENCE, "the child runs", || said().ends_with('\n'));
    let child = said().trim().to_owned();
    // A program just started may not have its handler yet.
    let caught = || {
        text(format!("/proc/{child}/status").into())
            .lines()
            .filter_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:\t")?, 16).ok())
            .any(|signals| signals & 1 << (15 - 1) != 0)
    };
    wait_until(PATIENCE, "the handler is set", || !with_handler || caught());
    let mut arguments = vec!["checkpoint", child.as_str(), "-o", image.as_str()];
    arguments.extend(options);
    cpr.cpr(arguments).good();
    parent.reap();
    said().lines().skip(1).collect::<Vec<_>>().join("\n")
}

// LBNL-3.6.4.2, LBNL-3.6.4.6
#[test]
fn who_waits_for_a_process_is_told_how_a_checkpoint_ended_it() {
    let Some(cpr) = Cpr::new("who_waits_for_a_process", As::User) else {
        return;
    };
    assert_eq!(ended_by(&cpr, "killed", false, &["--stop"]), "ended 9");
    assert_eq!(ended_by(&cpr, "terminated", false, &["--signal", "TERM"]), "ended 15");
    assert_eq!(ended_by(&cpr, "interrupted", false, &["--signal", "USR1"]), "ended 10");
    // The handler runs when the image is there.
    assert_eq!(
        ended_by(&cpr, "handled", true, &["--signal", "TERM"]),
        "handled True\nended 768"
    );
}

/// A job that checkpoints itself, and goes on when it is told to.
fn checkpoints_itself(test: &str, user: As, stop: bool) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let binary = cpr.binary().display().to_string();
    let stop = if stop { "--stop" } else { "" };
    // Its output goes through a pipe of the job: one end is held by nobody but the command.
    let script = format!(
        "while [ ! -e start ]; do sleep 0.05; done; echo begun; {binary} checkpoint {stop} --restarted-code 7 self 2>&1 | cat >said; \
         echo code ${{PIPESTATUS[0]}}; while [ ! -e go ]; do sleep 0.05; done; echo done"
    );
    cpr.run_detached("self", &[], &["bash", "-c", &script]);
    // Only a job that is known to run can be checkpointed.
    fs::write(cpr.work.join("start"), "").expect("the test's directory can be written");
    if stop.is_empty() {
        wait_until(PATIENCE, "it has checkpointed itself", || {
            cpr.logs("self") == b"begun\ncode 0\n"
        });
        assert!(
            text(cpr.work.join("said")).contains("processes"),
            "{}",
            text(cpr.work.join("said"))
        );
        cpr.cpr(["kill", "--signal", "KILL", "self"]).good();
    }
    const STOPPED: i32 = 79;
    let end = cpr.wait("self");
    assert_eq!(
        end,
        if stop.is_empty() { 137 } else { STOPPED },
        "{}",
        String::from_utf8_lossy(&cpr.logs("self"))
    );
    let listing = cpr.cpr(["inspect", "--json", "self"]).good().json();
    let processes = listing["manifest"]["processes"]
        .as_array()
        .expect("there are processes")
        .clone();
    let zombies: Vec<_> = processes.iter().filter(|p| p["state"].is_object()).collect();
    assert_eq!((processes.len(), zombies.len()), (3, 1), "{processes:#?}");
    assert_eq!(zombies[0]["state"]["zombie"], 7 << 8);
    cpr.restart("self");
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("self"), 0);
    assert_eq!(cpr.logs("self"), b"begun\ncode 7\ndone\n");
}

// LBNL-3.6.4.3
#[test]
fn a_job_checkpoints_itself_root() {
    checkpoints_itself("a_job_checkpoints_itself_root", As::Root, false);
}

#[test]
fn a_job_checkpoints_itself_user() {
    checkpoints_itself("a_job_checkpoints_itself_user", As::User, false);
}

#[test]
fn a_job_ends_itself_by_a_checkpoint_root() {
    checkpoints_itself("a_job_ends_itself_by_a_checkpoint_root", As::Root, true);
}

#[test]
fn a_job_ends_itself_by_a_checkpoint_user() {
    checkpoints_itself("a_job_ends_itself_by_a_checkpoint_user", As::User, true);
}

fn own_session(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let binary = cpr.binary().display().to_string();
    let image = cpr.work.join("own.cpr").display().to_string();
    // The last of the pipeline asks.
    let script = format!(
        "sleep 1000 | bash -c '{binary} checkpoint --restarted-code 9 --session $(ps -o sid= $$) -o {image}; echo code $? >>codes; \
         while [ ! -e go ]; do sleep 0.05; done; pkill -P $PPID sleep; echo done >>codes'"
    );
    let mut leader = Bare::start(&cpr, &["setsid", "bash", "-c", &script], "out");
    let sid = leader.pid();
    let codes = || text(cpr.work.join("codes"));
    wait_until(PATIENCE, "the session has checkpointed itself", || {
        codes() == "code 0\n"
    });
    cpr.program(&["pkill", "-KILL", "-s", &sid.to_string()]).good();
    leader.reap();
    wait_until(PATIENCE, "all processes have ended", || session(sid).is_empty());
    let listing = cpr.cpr(["inspect", "--json", &image]).good().json();
    let processes = listing["manifest"]["processes"]
        .as_array()
        .expect("there are processes");
    assert_eq!(processes.len(), 4, "{processes:#?}");
    assert_eq!(listing["manifest"]["checkpoint"]["session"], sid);
    cpr.cpr(["restart", "-d", "--name", "back", &image]).good();
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    cpr.wait("back");
    assert_eq!(codes(), "code 0\ncode 9\ndone\n");
}

// LBNL-3.6.4.4
#[test]
fn a_session_checkpoints_itself_root() {
    own_session("a_session_checkpoints_itself_root", As::Root);
}

#[test]
fn a_session_checkpoints_itself_user() {
    own_session("a_session_checkpoints_itself_user", As::User);
}

#[test]
fn nobody_suspends_himself() {
    let Some(cpr) = Cpr::new("nobody_suspends_himself", As::User) else {
        return;
    };
    let binary = cpr.binary().display().to_string();
    let said = cpr.program(&["sh", "-c", &format!("{binary} suspend $$; echo $?")]);
    assert_eq!(said.text(), format!("{WRONG_USAGE}\n"), "{}", said.stderr);
}

// LBNL-3.6.4.2.1
#[test]
fn a_process_goes_on_after_a_checkpoint_unless_told_otherwise() {
    let Some(cpr) = Cpr::new("a_process_goes_on_after_a_checkpoint", As::User) else {
        return;
    };
    let counter = Bare::start(&cpr, &[PYTHON, "-c", COUNTER], "count");
    let lines = || text(cpr.work.join("count")).lines().count();
    wait_until(PATIENCE, "it counts", || lines() > 0);
    for round in 0..3 {
        let image = cpr.work.join(format!("{round}.cpr")).display().to_string();
        cpr.cpr(["checkpoint", &counter.pid().to_string(), "-o", &image]).good();
        let reached = lines();
        wait_until(PATIENCE, "it counts on", || lines() > reached + 3);
    }
    drop(counter);
    let counted: Vec<usize> = text(cpr.work.join("count"))
        .lines()
        .map(|l| l.parse().expect("it is a number"))
        .collect();
    assert!(
        counted.iter().zip(1..).all(|(count, line)| *count == line * 100_000),
        "counts are missing"
    );
}

#[test]
fn a_process_in_other_namespaces_than_ours_gets_such_again() {
    let Some(cpr) = Cpr::new("a_process_in_other_namespaces", As::Root) else {
        return;
    };
    for (option, kind) in [("--net", "net"), ("--cgroup", "cgroup")] {
        let mut sleeper = Bare::start(&cpr, &["unshare", option, "sleep", "1000"], "out");
        let pid = sleeper.pid();
        wait_until(PATIENCE, "it sleeps", || {
            text(PathBuf::from(format!("/proc/{pid}/comm"))) == "sleep\n"
        });
        let image = cpr.work.join(format!("{kind}.cpr")).display().to_string();
        cpr.cpr(["checkpoint", &pid.to_string(), "--stop", "-o", &image]).good();
        sleeper.reap();
        cpr.cpr(["restart", "-d", "--namespace", "never", "--name", kind, &image])
            .good();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(namespace(&pid.to_string()), namespace("self"));
        cpr.cpr(["kill", kind]).good();
    }
}

/// Their process group is led by somebody who is not part of what is saved.
#[test]
fn children_in_namespaces_that_a_process_has_made_get_such_again() {
    let Some(cpr) = Cpr::new("children_in_namespaces", As::Root) else {
        return;
    };
    let options = "--user --map-root-user --pid --fork --mount-proc";
    let script = format!("unshare {options} sleep 1000; true");
    let mut shell = Bare::start(&cpr, &["sh", "-c", &script], "out");
    let child = |pid: i32| {
        let children = text(PathBuf::from(format!("/proc/{pid}/task/{pid}/children")));
        children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse::<i32>().ok())
    };
    let sleeper = poll(PATIENCE, || {
        let pid = child(child(shell.pid())?)?;
        (text(PathBuf::from(format!("/proc/{pid}/comm"))) == "sleep\n").then_some(pid)
    });
    let sleeper = sleeper.expect("it sleeps");
    let image = cpr.work.join("shell.cpr").display().to_string();
    cpr.cpr(["checkpoint", &shell.pid().to_string(), "--stop", "-o", &image])
        .good();
    shell.reap();
    cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "shell", &image])
        .good();
    assert_eq!(child(shell.pid()).and_then(child), Some(sleeper));
    for kind in ["user", "pid", "mnt"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(namespace(&sleeper.to_string()), namespace("self"));
    }
    let first = text(PathBuf::from(format!("/proc/{sleeper}/root/proc/1/comm")));
    assert_eq!(first, "sleep\n");
    cpr.cpr(["kill", "shell"]).good();
}

#[test]
fn a_host_name_that_is_not_ours_is_kept() {
    let Some(cpr) = Cpr::new("a_host_name_that_is_not_ours", As::Root) else {
        return;
    };
    let script = "hostname cpr-elsewhere && echo READY && exec sleep 1000";
    let mut sleeper = Bare::start(&cpr, &["unshare", "--uts", "sh", "-c", script], "out");
    let pid = sleeper.pid();
    wait_until(PATIENCE, "it sleeps", || {
        text(PathBuf::from(format!("/proc/{pid}/comm"))) == "sleep\n"
    });
    assert_eq!(text(cpr.work.join("out")), "READY\n");
    let image = cpr.work.join("sleeper.cpr").display().to_string();
    cpr.cpr(["checkpoint", &pid.to_string(), "--stop", "-o", &image]).good();
    sleeper.reap();
    cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "again", &image])
        .good();
    let name = cpr.program(&["nsenter", "--uts", "-t", &pid.to_string(), "hostname"]);
    assert_eq!(name.text(), "cpr-elsewhere\n", "{}", name.stderr);
    assert_ne!(cpr.program(&["hostname"]).text(), name.text());
}

/// Holds a lock on a file, and waits.
const LOCKER: &str = "
import fcntl, sys, time
held = open(sys.argv[1], 'r+')
fcntl.flock(held, fcntl.LOCK_EX)
print('READY', flush=True)
time.sleep(1000)
";

// LBNL-3.6.4.5.1, LBNL-3.6.1.9, LBNL-3.9.5.2.3, LBNL-3.9.8.8.2, LBNL-3.9.8.8.4, XGCP-RES-2
#[test]
fn a_restart_names_what_it_lacks_and_leaves_nothing() {
    let Some(cpr) = Cpr::new("a_restart_names_what_it_lacks", As::Root) else {
        return;
    };
    const IN_USE: i32 = 71;
    const INCOMPATIBLE: i32 = 78;
    let data = cpr.work.join("data");
    fs::write(&data, "data").expect("a file can be made");
    let path = data.display().to_string();
    let mut locker = Bare::start(&cpr, &[PYTHON, "-c", LOCKER, &path], "out");
    let pid = locker.pid();
    wait_until(PATIENCE, "it holds the lock", || {
        text(cpr.work.join("out")) == "READY\n"
    });
    let image = cpr.work.join("locker.cpr").display().to_string();
    cpr.cpr(["checkpoint", &pid.to_string(), "-o", &image]).good();
    let refused = |code: i32, named: &str| {
        let result = cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "again", &image]);
        assert_eq!(result.code, code, "{}", result.stderr);
        assert!(result.stderr.contains(named), "{named}: {}", result.stderr);
        assert_eq!(
            cpr.cpr(["ps", "--all", "--json"]).good().json()["jobs"],
            serde_json::json!([])
        );
    };
    let saved = cpr.cpr(["inspect", "--json", &image]).good().text();
    let saved: String = saved.split_whitespace().collect();
    assert!(saved.contains(&format!("\"pid\":{pid},")), "{saved}");
    refused(IN_USE, &pid.to_string());
    let check = cpr.cpr(["check", "--json", "--namespace", "never", &image]);
    assert!(
        check.code == INCOMPATIBLE && check.text().contains(&format!("PID {pid}")),
        "{}",
        check.text()
    );
    cpr.cpr(["checkpoint", &pid.to_string(), "--stop", "-o", &image]).good();
    locker.reap();
    fs::rename(&data, cpr.work.join("away")).expect("the file can be renamed");
    refused(INCOMPATIBLE, &path);
    fs::rename(cpr.work.join("away"), &data).expect("the file can be renamed");
    let other = Bare::start(&cpr, &[PYTHON, "-c", LOCKER, &path], "other");
    wait_until(PATIENCE, "another process holds the lock", || {
        text(cpr.work.join("other")) == "READY\n"
    });
    refused(IN_USE, &path);
    assert!(stat(pid).is_empty(), "no process is left");
    drop(other);
    cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "again", &image])
        .good();
    assert!(!stat(pid).is_empty(), "it runs again");
}

/// Leads a session with a group whose leader has died, and tells their numbers.
const GROUPS: &str = "import os, time
def wait():
    while not os.path.exists('go'): time.sleep(0.01)
leader = os.fork()
if leader == 0:
    os.setpgid(0, 0)
    member = os.fork()
    if member == 0: wait()
    print(member, end=' ', flush=True)
    os._exit(0)
os.waitpid(leader, 0)
print(os.getpid(), leader, flush=True)
wait()
";

/// Runs a program as the leader of a session, and ends when all that was in it was waited for: until then numbers are
/// in use, and not every machine's init waits for orphans.
const REAPER: &str = "import ctypes, os, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    os.execl(sys.executable, sys.executable, '-c', *sys.argv[1:])
try:
    while True: os.wait()
except ChildProcessError: pass
";

/// Has a process with the number given begin a session or a group, another one join, and the first one end.
const HOLDER: &str = "import ctypes, os, struct, sys, time
number = ctypes.c_int(int(sys.argv[1]))
SIGCHLD, CLONE3 = 17, 435
arguments = struct.pack('11Q', 0, 0, 0, 0, SIGCHLD, 0, 0, 0, ctypes.addressof(number), 1, 0)
made = ctypes.CDLL(None, use_errno=True).syscall(CLONE3, arguments, len(arguments))
if made == 0:
    os.setsid() if sys.argv[2] == 'session' else os.setpgid(0, 0)
    if os.fork() == 0:
        while os.getppid() == number.value: time.sleep(0.01)
        print('READY', flush=True)
        while not os.path.exists(sys.argv[2] + ' over'): time.sleep(0.01)
    os._exit(0)
assert made > 0, ctypes.get_errno()
os.waitpid(made, 0)
while not os.path.exists(sys.argv[2] + ' over'): time.sleep(0.01)
";

/// Numbers of sessions and groups are in use as long as they have members, also when nothing has them as its PID.
// LBNL-3.9.5.3.5, LBNL-3.9.5.4.2
#[test]
fn a_session_whose_numbers_are_in_use_is_not_restarted() {
    const IN_USE: i32 = 71;
    let test = "a_session_whose_numbers_are_in_use_is_not_restarted";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let mut reaper = Bare::start(&cpr, &[PYTHON, "-c", REAPER, GROUPS], "out");
    wait_until(PATIENCE, "it runs", || text(cpr.work.join("out")).ends_with('\n'));
    let said = text(cpr.work.join("out"));
    let numbers: Vec<&str> = said.split_whitespace().collect();
    let [member, sid, group] = numbers[..] else {
        panic!("three numbers: {said}")
    };
    let image = cpr.work.join("session.cpr").display().to_string();
    cpr.cpr(["checkpoint", "--stop", "--session", sid, "-o", &image]).good();
    reaper.reap();
    for (kind, number) in [("session", sid), ("process group", group)] {
        let mut holder = Bare::start(&cpr, &[PYTHON, "-c", REAPER, HOLDER, number, kind], kind);
        wait_until(PATIENCE, "the number is in use", || {
            text(cpr.work.join(kind)) == "READY\n"
        });
        wait_until(PATIENCE, "no process has it as its PID", || {
            stat(number.parse().expect("a number")).is_empty()
        });
        let result = cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "again", &image]);
        assert_eq!(result.code, IN_USE, "{}", result.stderr);
        let named = format!("{kind} {number} is in use: process ");
        assert!(result.stderr.contains(&named), "{named}: {}", result.stderr);
        let check = cpr.cpr(["check", "--json", "--namespace", "never", &image]);
        assert!(check.text().contains(&named), "{named}: {}", check.text());
        let over = cpr.work.join(format!("{kind} over"));
        fs::write(over, "").expect("the test's directory can be written");
        holder.reap();
        // Who has to wait for what a restart left behind when it failed need not be quick.
        assert!(stat(sid.parse().expect("a number")).is_empty());
        assert!(stat(member.parse().expect("a number")).is_empty());
    }
    cpr.cpr(["restart", "-d", "--namespace", "never", "--name", "again", &image])
        .good();
    assert_eq!(stat(sid.parse().expect("a number"))[3], sid);
}

// LBNL-3.5.4, LBNL-2.2.2.3
#[test]
fn programs_of_the_distribution_are_taken_as_they_are() {
    let Some(cpr) = Cpr::new("programs_of_the_distribution", As::User) else {
        return;
    };
    let count = "import os,sys,time
for i in range(60000):
    print(i * i)
    if i == 30000:
        sys.stdout.flush()
        while not os.path.exists('go'): time.sleep(0.01)";
    let script = format!("{PYTHON} -c \"{count}\" | tee halfway | /usr/bin/gzip -c > result.gz");
    cpr.run_detached("zip", &[], &["sh", "-c", &script]);
    wait_until(PATIENCE, "half of it is through", || {
        text(cpr.work.join("halfway")).ends_with("\n900000000\n")
    });
    cpr.checkpoint("zip", &["--stop"]);
    cpr.restart("zip");
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("zip"), 0);
    let expected: String = (0..60_000_u64).map(|i| format!("{}\n", i * i)).collect();
    assert_eq!(cpr.program(&["gzip", "-dc", "result.gz"]).good().text(), expected);
}

/// Opens terminals, writes the name of the last, and keeps them until there is a file of this name.
const HOLDS_TERMINALS: &str = "
import os, pty, sys, time
pairs = [pty.openpty() for _ in range(int(sys.argv[1]))]
open(sys.argv[2] + '-open', 'w').write(os.ttyname(pairs[-1][1]))
while not os.path.exists(sys.argv[2]): time.sleep(.01)
master, slave = pairs[-1]
os.write(os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY), b'hello')
print(os.ttyname(slave), os.read(master, 100), flush=True)
";

/// A job has the terminal's name again after a restart though lower numbers are free by then, and its user is told where
/// somebody else has it.
#[test]
fn a_terminal_has_its_number_again() {
    let test = "a_terminal_has_its_number_again";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    fs::write(cpr.work.join("holds.py"), HOLDS_TERMINALS).expect("the test's directory can be written");
    // Terminals that nobody else opens.
    let script = r#"
        set -e
        cpr() { "$CPR" "$@"; }
        mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
        mount --bind /dev/pts/ptmx /dev/ptmx
        await() { while [ ! -e "$1" ]; do sleep 0.01; done; }
        /usr/bin/python3 holds.py 3 a > /dev/null &
        await a-open
        cpr run -d --name j -- /usr/bin/python3 holds.py 1 b >&2
        await b-open
        touch a
        wait
        cpr checkpoint --stop j >&2
        cpr restart -d j >&2
        if cpr logs j | grep taken >&2; then exit 1; fi
        cpr checkpoint --stop j >&2
        /usr/bin/python3 holds.py 4 c > /dev/null &
        await c-open
        cpr restart -d j >&2
        cpr logs j | grep -o 'terminal /dev/pts/3 of the job is /dev/pts/4 now'
        touch c
        wait
        cpr checkpoint --stop j >&2
        touch b
        cpr restart -d j >&2
        cpr wait j >&2
        cpr logs j | tail -n 1
    "#;
    let binary = format!("CPR={}", cpr.binary().display());
    let done = cpr.program(&["env", &binary, "unshare", "-m", "sh", "-c", script]);
    let told = "terminal /dev/pts/3 of the job is /dev/pts/4 now\n/dev/pts/4 b'hello'\n";
    assert_eq!(done.good().text(), told);
}
