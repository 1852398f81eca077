//! The control group of a job: it names all its processes, and stops them together.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{As, Cpr, PATIENCE, copy_tree, finish, note_skip, skip, wait_until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const NOBODY: u32 = 65534;

/// A process, a child, one in a session and a group of its own, and a daemon that has forked twice; all count.
/// A line is one write, whatever Python's environment says of buffers.
const SPREAD: &str = r#"
import os, time
def count(name):
    number = 0
    while True:
        number += 1
        os.write(1, f"{name} {number}\n".encode())
        time.sleep(0.05)
if os.fork() == 0: count("child")
if os.fork() == 0:
    os.setsid()
    count("session")
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        count("daemon")
    os._exit(0)
os.waitpid(middle, 0)
count("root")
"#;

/// Starts two processes again and again, each of which starts another one and ends.
const FORKS: &str = r#"
import os, time
print("ready", flush=True)
for _ in range(12):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
while True: time.sleep(0.01)
"#;

/// Says each time that something about a group has changed (`cgroup.events`).
const WATCH: &str = r#"
import select, sys
events = open(sys.argv[1])
poll = select.poll()
poll.register(events, select.POLLPRI | select.POLLERR)
events.read()
print("watching", flush=True)
while True:
    poll.poll()
    events.seek(0)
    print(events.read().replace("\n", " "), flush=True)
"#;

/// The group that we are in, where another one can be made below it by `uid`.
fn writable(test: &str) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    let mount = mounts
        .iter()
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| fields[1]);
    let group = path
        .zip(mount)
        .map(|(path, mount)| Path::new(mount).join(path.trim_start_matches('/')));
    let trial = group
        .as_ref()
        .map(|group| group.join(format!("gridcpr-trial-{}", std::process::id())));
    if trial.is_some_and(|trial| fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)).is_ok()) {
        return group;
    }
    note_skip(test, "no cgroups of version 2 that can be written to");
    None
}

fn status(cpr: &Cpr, job: &str) -> serde_json::Value {
    let jobs = cpr.cpr(["ps", "-a", "--json"]).good().json();
    let found = jobs["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|known| known["name"] == job)
        .cloned();
    found.unwrap_or_else(|| panic!("no {job} in {jobs}"))
}

fn group_of(cpr: &Cpr, job: &str) -> PathBuf {
    let status = status(cpr, job);
    PathBuf::from(
        status["cgroup"]
            .as_str()
            .unwrap_or_else(|| panic!("no group: {status}")),
    )
}

fn inside(group: &Path) -> BTreeSet<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The processes of a job by its PID namespace, but for its init.
fn of_namespace(pid: i32) -> BTreeSet<i32> {
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/pid")).map(|file| file.ino()).ok();
    let wanted = namespace(&pid.to_string());
    assert!(wanted.is_some() && wanted != namespace("self"));
    let is_init = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    };
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let members = names.filter(|name| name.parse::<i32>().is_ok() && namespace(name) == wanted && !is_init(name));
    members.map(|name| name.parse().unwrap()).collect()
}

fn said(cpr: &Cpr, job: &str, what: &str) -> bool {
    String::from_utf8_lossy(&cpr.logs(job)).lines().any(|line| line == what)
}

/// Whatever sessions and process groups they make, before a restart and after one; the group is gone with the job.
fn names_all(cpr: &Cpr) {
    for (round, last) in [3, 30].into_iter().enumerate() {
        for name in ["root", "child", "session", "daemon"] {
            wait_until(PATIENCE, "all count", || said(cpr, "sim", &format!("{name} {last}")));
        }
        let group = group_of(cpr, "sim");
        let pid = status(cpr, "sim")["pid"].as_i64().unwrap() as i32;
        let (named, members) = (inside(&group), of_namespace(pid));
        assert_eq!(members.len(), 4, "{members:?}");
        assert!(named.is_superset(&members), "{named:?} and {members:?}");
        // And the job's init, which is no part of it.
        assert_eq!(named.len(), 5, "{named:?} and {members:?}");
        cpr.checkpoint("sim", &["--stop"]);
        wait_until(PATIENCE, "the group goes with the job", || !group.exists());
        assert!(status(cpr, "sim")["cgroup"].is_null());
        if round == 0 {
            cpr.restart("sim");
        }
    }
}

// XGCP-PG-6
#[test]
fn the_group_of_a_job_names_all_its_processes() {
    let test = "the_group_of_a_job_names_all_its_processes";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if writable(test).is_none() {
        return;
    }
    cpr.run_detached("sim", &[], &["python3", "-c", SPREAD]);
    names_all(&cpr);
}

/// Where a user may make groups he has them, too, and where he may not his jobs run as well and it is said why.
#[test]
fn a_users_jobs_are_in_groups_where_he_may_make_some() {
    let test = "a_users_jobs_are_in_groups";
    if !support::am_root() {
        skip!(test, "needs root");
    }
    let (Some(cpr), Some(own)) = (Cpr::new(test, As::User), writable(test)) else {
        return;
    };
    cpr.run_detached("plain", &[], &["sh", "-c", "echo ready; exec sleep 1000"]);
    let shown = status(&cpr, "plain");
    assert!(shown["cgroup"].is_null(), "{shown}");
    assert!(shown["no_cgroup"].as_str().unwrap().contains("make cgroup"), "{shown}");
    wait_until(PATIENCE, "it runs", || said(&cpr, "plain", "ready"));
    cpr.checkpoint("plain", &["--stop"]);
    // A part of the hierarchy that is his.
    let delegated = own.join(format!("gridcpr-delegated-{}", std::process::id()));
    fs::create_dir(&delegated).unwrap();
    for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(delegated.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let within = |arguments: &[&str]| {
        let mut inner = cpr.command(cpr.binary());
        inner.args(arguments);
        let mut outer = Command::new("sh");
        let script = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", delegated.display());
        let words = [inner.get_program()].into_iter().chain(inner.get_args());
        outer.args(["-c", &script, "sh"]).args(words.map(OsString::from));
        outer.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        outer.current_dir(&cpr.work);
        finish(&cpr.work, outer, PATIENCE).good()
    };
    within(&["run", "-d", "--name", "sim", "--", "python3", "-c", SPREAD]);
    let group = group_of(&cpr, "sim");
    assert!(group.starts_with(&delegated), "{}", group.display());
    cpr.checkpoint("sim", &["--stop"]);
    within(&["restart", "-d", "sim"]);
    assert_eq!(group_of(&cpr, "sim"), group);
    cpr.cpr(["kill", "-s", "KILL", "sim"]).good();
    cpr.wait("sim");
    wait_until(PATIENCE, "nobody is left in it", || fs::remove_dir(&delegated).is_ok());
}

/// Saves a job while somebody watches its group, and ends it; gives what was seen.
fn stopped_while_watched(cpr: &Cpr, engine: &str, program: &str) -> Vec<String> {
    cpr.run_detached("sim", &["--engine", engine], &["python3", "-c", program]);
    wait_until(PATIENCE, "it runs", || said(cpr, "sim", "ready"));
    let group = group_of(cpr, "sim");
    let mut watcher = Command::new("python3")
        .args(["-c", WATCH])
        .arg(group.join("cgroup.events"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "watching");
    cpr.checkpoint("sim", &[]);
    assert_eq!(
        fs::read_to_string(group.join("cgroup.freeze")).unwrap(),
        "0\n",
        "it goes on"
    );
    cpr.checkpoint("sim", &["--stop"]);
    wait_until(PATIENCE, "nobody has escaped", || !group.exists());
    let _ = watcher.kill();
    let seen: Vec<String> = lines.map_while(Result::ok).collect();
    watcher.wait().unwrap();
    seen
}

/// A supervisor that is killed cannot remove it.
#[test]
fn the_group_of_a_job_whose_supervisor_was_killed_goes_when_jobs_are_listed() {
    let test = "the_group_of_a_killed_supervisor";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if writable(test).is_none() {
        return;
    }
    cpr.cpr(["run", "-d", "--name", "sim", "--", "sleep", "1000"]).good();
    let group = group_of(&cpr, "sim");
    let parent = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        line.trim().to_string()
    };
    // Of the job's init.
    let supervisor = parent(&parent(&status(&cpr, "sim")["pid"].to_string()));
    assert!(
        Command::new("kill")
            .args(["-KILL", &supervisor])
            .status()
            .unwrap()
            .success()
    );
    wait_until(PATIENCE, "nobody is in it", || inside(&group).is_empty());
    wait_until(PATIENCE, "it is known to have ended", || {
        cpr.cpr(["ps", "--all"]).good();
        !group.exists()
    });
}

/// As long as anybody is in it, what changes about a group is only whether it is frozen.
// XGCP-PG-7
#[test]
fn a_job_that_keeps_forking_is_stopped_by_its_group() {
    let test = "a_job_that_keeps_forking";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if writable(test).is_none() {
        return;
    }
    let seen = stopped_while_watched(&cpr, "native", FORKS);
    assert!(seen.iter().any(|line| line.contains("populated 1")), "{seen:?}");
    let restarted = cpr.restart("sim");
    assert!(cpr.is_running("sim"), "{restarted}");
    cpr.cpr(["kill", "-s", "KILL", "sim"]).good();
}

/// How a wrapper makes known what a job is found by is its own business: its PID, or a group that holds what it will
/// start.
const BY_PID: &str = "#!/bin/sh\necho pid $$ >\"$1/id\"\nshift\nexec \"$@\"\n";
const BY_GROUP: &str = r#"#!/bin/sh
own=$(sed -n 's/^0:://p' /proc/self/cgroup)
mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
group=$mount$own/of-the-wrapper
mkdir "$group"
echo cgroup "$group" >"$1/id"
shift
# Not this process: what it starts, whose number it does not know.
(echo 0 >"$group/cgroup.procs"; exec "$@") &
wait
"#;
const ENGINE: &str = r#"#!/usr/bin/env python3
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("engine", os.path.join(os.path.dirname(__file__), "open_files.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
class Found(module.Engine):
    def prepare(self, request):
        kind, where = open(os.path.join(request["job_directory"], "id")).read().split()
        pids = [int(where)] if kind == "pid" else list(map(int, open(where + "/cgroup.procs")))
        print("found", kind, pids, file=open(os.path.join(request["job_directory"], "found"), "a"))
        self.root, self.files = pids[0], request["files"]
        # A wrapper that waits for what it has started is of the job, too.
        self.held = sorted({request["root"], *pids})
        return {"group": {"kind": kind.replace("pid", "process"), "id": where, "processes": self.held}}
    def stop(self, request):
        for pid in self.held: os.kill(pid, module.signal.SIGSTOP)
        return {}
    def resume_after_checkpoint(self, request):
        for pid in self.held: os.kill(pid, module.signal.SIGCONT)
        return {}
module.Engine = Found
module.main()
"#;

/// Counts, and remembers in a file that it has open.
const COUNT_IN_FILE: &str = include_str!("../../../tests/victims/count_in_file.py");

/// The driver's interface is the same for both, and so is the engine's program.
// GCA-WRAP-7, GCA-WRAP-8
#[test]
fn a_wrapper_says_by_a_pid_or_by_a_group_what_the_job_is() {
    let test = "a_wrapper_says_by_a_pid_or_by_a_group";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if writable(test).is_none() {
        return;
    }
    let engines = cpr.work.join("config/engines.d");
    copy_tree(&Path::new(ROOT).join("examples/engine"), &engines);
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(engines.join(name), text).unwrap();
        fs::set_permissions(engines.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("found.py", ENGINE);
    for (name, wrapper) in [("by-pid", BY_PID), ("by-group", BY_GROUP)] {
        write(&format!("{name}.sh"), wrapper);
        write(
            &format!("{name}.toml"),
            &format!(
                "name = \"{name}\"\ndriver = \"external\"\nprogram = [\"./found.py\"]\n\
                 wrapper = [\"./{name}.sh\", \"%JOB_DIRECTORY%\"]\n"
            ),
        );
    }
    let with = |arguments: &[&str]| {
        let mut command = cpr.command(cpr.binary());
        command
            .env("GRIDCPR_CONFIG_DIRS", cpr.work.join("config"))
            .args(arguments);
        finish(&cpr.work, command, PATIENCE).good()
    };
    for (name, kind, processes) in [("by-pid", "pid", 1), ("by-group", "cgroup", 2)] {
        let counter = ["--", "python3", "-c", COUNT_IN_FILE];
        with(&[&["run", "-d", "--engine", name, "--name", name][..], &counter].concat());
        wait_until(PATIENCE, "it counts", || said(&cpr, name, "3"));
        let report = with(&["checkpoint", name, "--json"]).json();
        assert_eq!(report["processes"], processes, "{report}");
        let found = fs::read_to_string(cpr.state_dir.join("jobs").join(name).join("found")).unwrap();
        assert!(
            found.lines().last().unwrap().starts_with(&format!("found {kind} [")),
            "{found}"
        );
        cpr.cpr(["kill", "-s", "KILL", name]).good();
        cpr.wait(name);
        fs::remove_file(cpr.work.join("count")).unwrap();
    }
}

/// Goes into a group, and a child of it into one below; says where both are when it is told to.
const BY_HAND: &str = r#"
import os, sys, time
child = os.fork()
if child == 0:
    for group in sys.argv[1:]:
        os.makedirs(group + "/inner", exist_ok=True)
        open(group + "/inner/cgroup.procs", "w").write("0")
read = open("input")
os.write(1, b"ready\n")
while not os.path.exists("go"):
    time.sleep(0.01)
if child == 0:
    os.write(1, b"child\n" + open("/proc/self/cgroup", "rb").read())
    os._exit(0)
os.waitpid(child, 0)
os.write(1, b"first\n" + open("/proc/self/cgroup", "rb").read())
"#;

/// A group of each hierarchy that we may make groups in, below our own; removed on drop.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn make(name: &str) -> Groups {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut found = Vec::new();
        for (hierarchy, path) in own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')) {
            let of_it = |fields: &Vec<&str>| match hierarchy {
                "" => fields[2] == "cgroup2",
                _ => fields[2] == "cgroup" && fields[3].split(',').any(|option| option == hierarchy),
            };
            let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let Some(mount) = mounts.filter(of_it).map(|fields| fields[1].to_owned()).next() else {
                continue;
            };
            let group = Path::new(&mount).join(path.trim_start_matches('/')).join(name);
            if fs::create_dir(&group).is_ok() {
                found.push(group);
            }
        }
        // Nobody can be in a new group of a cpuset of version 1.
        found.retain(|group| {
            let usable = fs::read_to_string(group.join("cpuset.cpus")).is_ok_and(|cpus| !cpus.trim().is_empty());
            let keep = usable || !group.join("cpuset.sched_load_balance").exists();
            if !keep {
                fs::remove_dir(group).unwrap();
            }
            keep
        });
        Groups(found)
    }

    /// Removes them as soon as nobody is in them any more.
    fn remove(&self) {
        for group in self.0.iter().flat_map(|group| [group.join("inner"), group.clone()]) {
            wait_until(PATIENCE, "a group is empty", || {
                !group.exists() || fs::remove_dir(&group).is_ok()
            });
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.remove();
        }
    }
}

/// A process that was started by hand in groups below ours is there again, as are others below it, also when it is
/// restarted once more. What was made for a restart that fails is removed. With `apart` in a cgroup namespace.
fn by_hand(test: &str, apart: bool) {
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let groups = Groups::make(&format!("gridcpr-hand-{}-{apart}", std::process::id()));
    if groups.0.is_empty() {
        skip!(test, "no cgroups that can be written to");
    }
    fs::write(cpr.work.join("input"), "x").unwrap();
    let enter: String = groups
        .0
        .iter()
        .map(|group| format!("echo 0 >{}/cgroup.procs && ", group.display()))
        .collect();
    let unshare = if apart { "unshare --cgroup " } else { "" };
    let script = format!("{enter}exec {unshare}/usr/bin/python3 -c \"$0\" \"$@\"");
    let mut command = cpr.command("setsid");
    command.args(["sh", "-c", &script, BY_HAND]).args(&groups.0);
    let out = cpr.work.join("out");
    command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap());
    let mut program = command.spawn().unwrap();
    let said = || fs::read_to_string(&out).unwrap();
    wait_until(PATIENCE, "both are ready", || said().matches("ready").count() == 2);
    let (pid, image) = (
        program.id().to_string(),
        cpr.work.join("hand.cpr").display().to_string(),
    );
    cpr.cpr(["checkpoint", &pid, "--stop", "-o", &image]).good();
    program.wait().unwrap();
    groups.remove();
    // A file that it reads is not what it was.
    fs::write(cpr.work.join("input"), "longer").unwrap();
    let refused = cpr.cpr(["restart", "-d", "--name", "hand", &image]);
    assert_ne!(refused.code, 0);
    let left: Vec<_> = groups.0.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "a restart that fails leaves {left:?}");
    fs::write(cpr.work.join("input"), "x").unwrap();
    let inside = |group: &Path| {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        text.lines().count()
    };
    cpr.cpr(["restart", "-d", "--name", "hand", &image]).good();
    for again in [true, false] {
        for group in &groups.0 {
            assert_eq!(
                (inside(group), inside(&group.join("inner"))),
                (1, 1),
                "{}",
                group.display()
            );
        }
        if again {
            cpr.checkpoint("hand", &["--stop"]);
            groups.remove();
            cpr.restart("hand");
        }
    }
    fs::write(cpr.work.join("go"), "").unwrap();
    assert_eq!(cpr.wait("hand"), 0);
    let text = said();
    let (child, first) = text.split_once("child\n").unwrap().1.split_once("first\n").unwrap();
    let is_in = |seen: &str, group: &Path| {
        let name = group.file_name().unwrap().to_str().unwrap();
        let (inner, outer) = match apart {
            true => (":/inner".to_owned(), ":/".to_owned()),
            false => (format!("/{name}/inner"), format!("/{name}")),
        };
        let count = |end: &str| seen.lines().filter(|line| line.ends_with(end)).count();
        (count(&inner), count(&outer))
    };
    let all = groups.0.len();
    assert_eq!(is_in(child, &groups.0[0]).0, all, "{text}");
    assert!(is_in(first, &groups.0[0]).1 >= all, "{text}");
}

// LBNL-3.9.1.M18
#[test]
fn a_process_started_by_hand_is_in_its_groups_again() {
    by_hand("a_process_started_by_hand_is_in_its_groups_again", false);
}

#[test]
fn a_group_in_which_a_process_has_made_a_namespace_is_the_root_of_that_again() {
    by_hand("a_group_in_which_a_process_has_made_a_namespace", true);
}

#[test]
fn whoever_restarts_may_choose_his_own_groups() {
    let test = "whoever_restarts_may_choose_his_own_groups";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let groups = Groups::make(&format!("gridcpr-hand-{}-own", std::process::id()));
    if groups.0.is_empty() {
        skip!(test, "no cgroups that can be written to");
    }
    let script = format!("echo 0 >{}/cgroup.procs; exec sleep 1000", groups.0[0].display());
    let mut command = cpr.command("setsid");
    command
        .args(["sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut program = command.spawn().unwrap();
    let inside = || !inside(&groups.0[0]).is_empty();
    wait_until(PATIENCE, "it is in its group", inside);
    let (pid, image) = (program.id().to_string(), cpr.work.join("own.cpr").display().to_string());
    cpr.cpr(["checkpoint", &pid, "--stop", "-o", &image]).good();
    program.wait().unwrap();
    cpr.cpr(["restart", "-d", "--cgroup", "own", "--name", "own", &image])
        .good();
    assert!(cpr.is_running("own") && !inside());
    cpr.cpr(["kill", "-s", "KILL", "own"]).good();
    cpr.wait("own");
}

/// A job that mounts a hierarchy of control groups where only it sees that, and is in a group of it.
const HIERARCHY: &str = r#"
mkdir hierarchy && mount -t cgroup -o none,name="$1" none hierarchy || { echo MISSING; exit; }
mkdir -p hierarchy/outer/inner
echo $$ >hierarchy/outer/cgroup.procs
(
    echo 0 >hierarchy/outer/inner/cgroup.procs
    echo ready
    while ! [ -e go ]; do sleep 0.05; done
    grep "name=$1:" /proc/self/cgroup | cut -d: -f3
) &
exec 9<hierarchy/outer/cgroup.procs
wait
grep "name=$1:" /proc/self/cgroup | cut -d: -f3
grep -c . <&9
grep -c " $PWD/hierarchy .* - cgroup .*name=$1" /proc/self/mountinfo
"#;

/// Also where nothing of its groups is left.
#[test]
fn a_hierarchy_that_a_job_has_mounted_is_mounted_again() {
    let test = "a_hierarchy_that_a_job_has_mounted_is_mounted_again";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let name = format!("gridcpr-test-{}", std::process::id());
    cpr.run_detached("sim", &[], &["sh", "-c", HIERARCHY, "sh", &name]);
    wait_until(PATIENCE, "it is ready", || !cpr.logs("sim").is_empty());
    if cpr.logs("sim").starts_with(b"MISSING") {
        skip!(test, "no hierarchies of cgroups can be mounted");
    }
    // The hierarchy itself goes when it is unmounted everywhere, which takes the kernel as long as it likes.
    let forget = || {
        let script = format!(
            "mount -t cgroup -o none,name={name} none /mnt || exit
            for group in /mnt/outer/inner /mnt/outer; do [ ! -e $group ] || rmdir $group || exit; done"
        );
        wait_until(PATIENCE, "its groups are gone", || {
            let mut command = cpr.command("unshare");
            command.args(["--mount", "sh", "-c", &script]);
            finish(&cpr.work, command, PATIENCE).code == 0
        });
    };
    for _ in 0..2 {
        cpr.checkpoint("sim", &["--stop"]);
        forget();
        cpr.restart("sim");
    }
    fs::write(cpr.work.join("go"), "").unwrap();
    assert_eq!(cpr.wait("sim"), 0);
    assert_eq!(
        String::from_utf8_lossy(&cpr.logs("sim")),
        "ready\n/outer/inner\n/outer\n2\n1\n"
    );
    forget();
}
