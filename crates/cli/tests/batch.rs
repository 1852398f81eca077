//! Programs that manage jobs of others through libgridcpr: a small one in C, and the batch system of `examples/batch`;
//! and shell scripts that do it with `cpr`.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Child, Stdio};

use serde_json::Value;
use support::library::{ROOT, compile_with_library, library};
use support::{As, Cpr, Ended, PATIENCE, finish, wait_until};

const PYTHON: &str = "/usr/bin/python3";

/// A program that no job is of; ended and waited for on drop.
struct Killed(Child);

impl Killed {
    fn start(cpr: &Cpr, arguments: &[&str], output: &str) -> Killed {
        let mut command = cpr.command(arguments[0]);
        let file = File::create(cpr.work.join(output)).expect("the test's directory can be written");
        cpr.give(&cpr.work.join(output));
        command
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::null());
        Killed(command.spawn().expect("a program can be started"))
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(cpr: &Cpr, name: &str) -> String {
    fs::read_to_string(cpr.work.join(name)).unwrap_or_default()
}

/// A process, a session and an image, through one function.
// LBNL-2.1.1, LBNL-3.6.4.1, LBNL-3.6.4.5, LBNL-3.6.8.2
#[test]
fn a_c_program_saves_others_and_lets_them_go_on() {
    let Some(cpr) = Cpr::new("a_c_program_saves_others_and_lets_them_go_on", As::User) else {
        return;
    };
    let program = compile_with_library(&cpr, "tests/library/control.c", "control");
    fs::write(cpr.work.join("data"), "data").expect("the test's directory can be written");
    cpr.give(&cpr.work.join("data"));
    let holder = "import time; held = open('data'); print('READY', flush=True); time.sleep(1000)";
    let process = Killed::start(&cpr, &[PYTHON, "-c", holder], "process");
    let session = Killed::start(
        &cpr,
        &["setsid", "sh", "-c", "sleep 1000 & echo READY; wait"],
        "session",
    );
    wait_until(PATIENCE, "both run", || {
        ["process", "session"].iter().all(|name| text(&cpr, name) == "READY\n")
    });
    let (pid, sid) = (process.0.id(), session.0.id());
    let data = cpr.work.join("data").display().to_string();
    let mut command = cpr.command(&program);
    command.args([pid.to_string(), sid.to_string(), data.clone()]);
    command.env("GRIDCPR_CPR", cpr.binary());
    let said = finish(&cpr.work, command, PATIENCE).good().text();
    let line = |what: &str| -> String {
        let line = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {what} in {said}")).to_owned()
    };
    let result = |what: &str| -> Value {
        let line = line(what);
        let json = line.strip_prefix("1 ").unwrap_or_else(|| panic!("{what}: {line}"));
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{what}: {error}: {line}"))
    };
    assert_eq!(
        (&result("process")["pid"], &result("process")["processes"]),
        (&pid.into(), &1.into())
    );
    assert_eq!(
        (&result("session")["session"], &result("session")["processes"]),
        (&sid.into(), &2.into())
    );
    assert!(line("gone").starts_with("failed -68 "), "{said}");
    assert!(line("none").starts_with("failed -64 "), "{said}");
    assert_eq!(result("again")["job"], "again");
    let jobs = result("list");
    let again = jobs["jobs"][0]["pid"].as_i64().expect("the new process has a number");
    assert!(fs::metadata(format!("/proc/{again}")).is_ok(), "{said}");
    let listing = cpr.cpr(["inspect", "--json", "process.cpr"]).good().json();
    let policies = listing["manifest"]["file_policies"].as_array().expect("policies");
    assert!(policies.iter().any(|policy| policy["path"] == data), "{policies:?}");
}

/// Runs the example on a queue, with `cpr` on PATH; what its log says, and what else it said.
fn batch(cpr: &Cpr, queue: &str, options: &[&str]) -> Vec<(f64, String, String)> {
    fs::write(cpr.work.join("queue"), queue).expect("the test's directory can be written");
    let mut command = cpr.command(PYTHON);
    command
        .arg(format!("{ROOT}/examples/batch/batch.py"))
        .args(["queue", "batch.log"])
        .args(options);
    command
        .env("GRIDCPR_LIBRARY", library(cpr))
        .env("PYTHONPATH", format!("{ROOT}/bindings/python"));
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("GRIDCPR_CPR", cpr.binary());
    let ended: Ended = finish(&cpr.work, command, PATIENCE);
    let log = text(cpr, "batch.log");
    assert_eq!(ended.code, 0, "{log}{}", ended.stderr);
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (
            fields[0].parse().expect("a time"),
            fields[1].to_owned(),
            fields[2].to_owned(),
        )
    };
    log.lines().map(line).collect()
}

/// What was done, without times.
fn deeds(log: &[(f64, String, String)]) -> Vec<String> {
    log.iter().map(|(_, what, job)| format!("{what} {job}")).collect()
}

/// Counts to a number, in so many seconds.
const COUNT: &str = "import sys, time
name, to, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with open(name + '.out', 'w') as out:
    for number in range(1, to + 1):
        print(number, file=out, flush=True)
        time.sleep(seconds / to)
";

fn counted(cpr: &Cpr, name: &str, to: u32) {
    let expected: String = (1..=to).map(|n| format!("{n}\n")).collect();
    assert_eq!(
        text(cpr, &format!("{name}.out")),
        expected,
        "{name} has lost or repeated work"
    );
}

/// A long job gives the slot to a short one that is worth more, and then goes on.
// LBNL-2.3.5, LBNL-1.2.5.a
#[test]
fn a_batch_system_preempts_by_checkpoint() {
    let Some(cpr) = Cpr::new("a_batch_system_preempts_by_checkpoint", As::Root) else {
        return;
    };
    fs::write(cpr.work.join("count.py"), COUNT).expect("the test's directory can be written");
    let queue = format!(
        "long 1 0 - - {PYTHON} count.py long 300 6\n\
         short 5 2 - - {PYTHON} count.py short 20 1\n"
    );
    let log = batch(&cpr, &queue, &[]);
    let expected = [
        "start long",
        "preempt long",
        "start short",
        "end short",
        "resume long",
        "end long",
    ];
    assert_eq!(deeds(&log), expected);
    // Within seconds of its submission, though the other one had many to go.
    assert!(log[2].0 < log[5].0 - 1.0, "{log:?}");
    counted(&cpr, "long", 300);
    counted(&cpr, "short", 20);
    let source = fs::read_to_string(format!("{ROOT}/examples/batch/batch.py")).expect("the example is there");
    assert!(source.lines().count() < 300 && !source.contains("subprocess"));
}

/// Jobs of several priorities come at different times, and some share the slot in turn; each begins once.
// LBNL-1.2.5.b
#[test]
fn jobs_are_swapped_in_any_order_and_none_begins_again() {
    let Some(cpr) = Cpr::new("jobs_are_swapped_in_any_order_and_none_begins_again", As::Root) else {
        return;
    };
    fs::write(cpr.work.join("count.py"), COUNT).expect("the test's directory can be written");
    let jobs = [
        ("a", 1, 0.0, "0.7"),
        ("b", 1, 0.0, "0.7"),
        ("d", 2, 1.0, "-"),
        ("c", 3, 1.5, "-"),
        ("e", 3, 2.2, "0.5"),
    ];
    let lines = jobs.iter().map(|(name, priority, arrival, slice)| {
        format!("{name} {priority} {arrival} - {slice} {PYTHON} count.py {name} 100 2\n")
    });
    let log = batch(&cpr, &lines.collect::<String>(), &[]);
    for (name, ..) in jobs {
        counted(&cpr, name, 100);
        let started = log
            .iter()
            .filter(|(_, what, job)| what == "start" && job == name)
            .count();
        assert_eq!(started, 1, "{log:?}");
    }
    let preempted: BTreeSet<&str> = log
        .iter()
        .filter(|(_, what, _)| what == "preempt")
        .map(|l| l.2.as_str())
        .collect();
    assert!(preempted.len() >= 3, "{log:?}");
}

/// Four processes that count together and write down when they run.
const GANG: &str = "import os, sys, time
name, steps = sys.argv[1], int(sys.argv[2])
children = []
for rank in range(4):
    child = os.fork()
    if child == 0:
        with open('%s.%d' % (name, rank), 'w') as out:
            for step in range(steps):
                print(step, time.time(), file=out, flush=True)
                time.sleep(0.02)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
";

// LBNL-1.2.4.1.c
#[test]
fn gangs_take_turns_and_never_run_at_the_same_time() {
    let Some(cpr) = Cpr::new("gangs_take_turns_and_never_run_at_the_same_time", As::Root) else {
        return;
    };
    fs::write(cpr.work.join("gang.py"), GANG).expect("the test's directory can be written");
    let gang = |name: &str| format!("{name} 1 0 - 0.5 {PYTHON} gang.py {name} 150\n");
    let log = batch(&cpr, &(gang("one") + &gang("two")), &[]);
    let slices = log
        .iter()
        .filter(|(_, what, _)| what == "start" || what == "resume")
        .count();
    assert!(slices >= 10, "{log:?}");
    // Who ran when, over all processes: it changes as often as the slot does, and no more.
    let mut moments = Vec::new();
    for name in ["one", "two"] {
        for rank in 0..4 {
            let text = text(&cpr, &format!("{name}.{rank}"));
            let steps: Vec<(usize, f64)> = text
                .lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(step, time)| (step.parse().expect("a number"), time.parse().expect("a time")))
                .collect();
            assert!(
                steps.iter().map(|(step, _)| *step).eq(0..150),
                "{name}.{rank} has lost or repeated a step"
            );
            moments.extend(steps.into_iter().map(|(_, time)| (time, name)));
        }
    }
    moments.sort_by(|a, b| a.0.total_cmp(&b.0));
    let changes = moments.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    assert!(changes < slices, "{changes} changes in {slices} slices: {log:?}");
}

/// A night and a day queue, of three seconds each.
// LBNL-1.2.4.1.d
#[test]
fn jobs_run_in_the_windows_of_their_queues() {
    let Some(cpr) = Cpr::new("jobs_run_in_the_windows_of_their_queues", As::Root) else {
        return;
    };
    fs::write(cpr.work.join("count.py"), COUNT).expect("the test's directory can be written");
    let queue = format!(
        "night 1 0 0-3 - {PYTHON} count.py night 200 4\n\
         day 1 0 3-6 - {PYTHON} count.py day 200 4\n"
    );
    let log = batch(&cpr, &queue, &["6"]);
    let expected = [
        "start night",
        "preempt night",
        "start day",
        "preempt day",
        "resume night",
        "end night",
        "resume day",
        "end day",
    ];
    assert_eq!(deeds(&log), expected, "{log:?}");
    counted(&cpr, "night", 200);
    counted(&cpr, "day", 200);
}

/// Runs a shell script with `cpr` as `$CPR`; what it printed.
fn script(cpr: &Cpr, script: &str) -> String {
    let mut command = cpr.command("sh");
    command.args(["-euc", script]).env("CPR", cpr.binary());
    finish(&cpr.work, command, PATIENCE).good().text()
}

// LBNL-2.1.3
#[test]
fn a_shell_script_does_everything_with_the_command_alone() {
    let Some(cpr) = Cpr::new("a_shell_script_does_everything_with_the_command_alone", As::User) else {
        return;
    };
    fs::write(cpr.work.join("count.py"), COUNT).expect("the test's directory can be written");
    let said = script(
        &cpr,
        r#""$CPR" run -d --name sim -- /usr/bin/python3 count.py sim 200 4 >/dev/null
"$CPR" checkpoint sim -o first.cpr >/dev/null
"$CPR" checkpoint --stop sim >/dev/null
"$CPR" verify first.cpr >/dev/null
"$CPR" verify sim >/dev/null
"$CPR" images --quiet sim
"$CPR" restart -d sim >/dev/null
"$CPR" suspend sim >/dev/null
"$CPR" ps
"$CPR" resume sim >/dev/null
"$CPR" wait sim >/dev/null
"$CPR" ps --all"#,
    );
    for part in ["000001.cpr", "suspended", "exited"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    counted(&cpr, "sim", 200);
}

/// One of the jobs cannot be saved.
// LBNL-2.3.3
#[test]
fn a_shell_script_saves_all_jobs_and_tells_of_failures() {
    let Some(cpr) = Cpr::new("a_shell_script_saves_all_jobs_and_tells_of_failures", As::User) else {
        return;
    };
    let holder = "import os, time; held = os.pidfd_open(1); print('READY', flush=True); time.sleep(1000)";
    cpr.run_detached("bad", &[], &[PYTHON, "-c", holder]);
    cpr.run_detached("good", &[], &["sleep", "1000"]);
    wait_until(PATIENCE, "it holds what cannot be saved", || {
        cpr.logs("bad") == b"READY\n"
    });
    let said = script(
        &cpr,
        r#"field() { /usr/bin/python3 -c "import json, sys; print($1)"; }
for job in $("$CPR" ps --json | field "*(job['name'] for job in json.load(sys.stdin)['jobs'])"); do
    if result=$("$CPR" checkpoint --json "$job" 2>errors); then
        echo "$job $(echo "$result" | field "json.load(sys.stdin)['image']")"
    else
        echo "$job ALERT $? $(echo "$result" | field "json.load(sys.stdin)['error']['exit_code']")"
    fi
done"#,
    );
    let lines: BTreeSet<&str> = said.lines().collect();
    assert!(lines.contains("bad ALERT 69 69"), "{said}");
    let image = lines.iter().find_map(|line| line.strip_prefix("good "));
    let image = image.unwrap_or_else(|| panic!("{said}"));
    cpr.cpr(["verify", image]).good();
}
