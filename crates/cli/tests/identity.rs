//! Users, groups, capabilities, limits and accounting: what an image holds of them, and what a restart gives.
//!
//! Root only: nobody else can have a process with so many different users. What an image holds is compared with what
//! /proc showed of the process before.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{As, Cpr, PATIENCE, finish, skip, wait_until};

const JOB: &str = "identity";

/// Starts `tests/victims/identity.c` and waits until its state is set up; the file it waits for.
fn start(cpr: &Cpr, mode: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/victims/identity.c");
    let program = cpr.work.join("identity");
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]);
    command.arg(&program).arg(source);
    finish(&cpr.work, command, PATIENCE).good();
    let go = cpr.work.join("go");
    cpr.run_detached(JOB, &[], &[program.as_os_str(), go.as_os_str(), mode.as_ref()]);
    wait_until(PATIENCE, "the victim is ready", || {
        let said = String::from_utf8_lossy(&cpr.logs(JOB)).into_owned();
        assert!(!said.contains("FAIL"), "{said}");
        said.contains("READY")
    });
    go
}

/// Has the victim check itself.
fn check(cpr: &Cpr, go: &Path) {
    fs::write(go, "").expect("the test's directory can be written");
    let code = cpr.wait(JOB);
    let said = String::from_utf8_lossy(&cpr.logs(JOB)).into_owned();
    assert!(code == 0 && said == "READY\nOK\n", "ended with {code}: {said}");
}

/// Fields of a line of /proc/PID/task/TID/status, as numbers.
fn status(pid: i64, tid: &str, key: &str, base: u32) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).expect("the process lives");
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let fields = line.unwrap_or_default().split_ascii_whitespace();
    fields
        .map(|n| u64::from_str_radix(n, base).expect("a number"))
        .collect()
}

fn numbers(value: &Value) -> Vec<u64> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect()
}

/// A daemon opens what only root may open, and then gives root's rights up. Root's own image of it says so, and is
/// believed; an image that belongs to the daemon's user is not.
#[test]
fn what_was_opened_as_root_is_opened_again_from_roots_image() {
    let Some(cpr) = Cpr::new("what_was_opened_as_root_is_opened_again_from_roots_image", As::Root) else {
        return;
    };
    let program = support::victim::compile(&cpr, "dropped");
    let victim = support::victim::Victim::start(&cpr, &program, "dropped", &[]);
    let image = cpr.work.join("dropped.cpr");
    let path = image.display().to_string();
    cpr.checkpoint(victim.job, &["--stop", "-o", &path]);
    // Root's though the job is a user's: the user could not have opened them.
    assert_eq!(fs::metadata(&image).expect("the image is there").uid(), 0);
    std::os::unix::fs::chown(&image, Some(65534), Some(65534)).expect("root may");
    let refused = cpr.cpr(["restart", "-d", "--name", "users", &path]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("Permission denied"), "{}", refused.stderr);
    std::os::unix::fs::chown(&image, Some(0), Some(0)).expect("root may");
    cpr.cpr(["restart", "-d", "--name", "roots", &path]).good();
    fs::write(cpr.work.join("go-dropped"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("roots"), 0, "{}", String::from_utf8_lossy(&cpr.logs("roots")));
}

/// Waits until the job `daemon` has said its first word.
fn begun(cpr: &Cpr) {
    let has = || cpr.logs("daemon").starts_with(b"begun\n");
    wait_until(PATIENCE, "the daemon begins", has);
}

/// Lets the job `daemon` end, well; what it has said.
fn ended(cpr: &Cpr) -> String {
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    let code = cpr.wait("daemon");
    let said = String::from_utf8_lossy(&cpr.logs("daemon")).into_owned();
    assert_eq!(code, 0, "{said}");
    said
}

/// A job in the background that root has started and that has given root's rights up all over writes its log on, which
/// is in a directory of root's.
#[test]
fn a_daemon_that_gave_roots_rights_up_writes_its_log_on() {
    let Some(cpr) = Cpr::new("a_daemon_that_gave_roots_rights_up_writes_its_log_on", As::Root) else {
        return;
    };
    let script = "echo begun; until [ -e go ]; do sleep 0.05; done; echo ended";
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut run = vec!["run", "-d", "--name", "daemon", "--"];
    run.extend(nobody);
    run.extend(["sh", "-c", script]);
    cpr.cpr(&run).good();
    begun(&cpr);
    for _ in 0..2 {
        cpr.checkpoint("daemon", &["--stop"]);
        cpr.restart("daemon");
    }
    let said = ended(&cpr);
    assert_eq!(said, "begun\nended\n");
}

/// A daemon that can become root again: the image is root's, since its user could not restart it, and nobody would
/// believe the user.
#[test]
fn a_daemon_that_can_become_root_again_is_restarted() {
    let Some(cpr) = Cpr::new("a_daemon_that_can_become_root_again_is_restarted", As::Root) else {
        return;
    };
    let script = "import os, sys, time; os.setresuid(65534, 65534, 0); print('begun', flush=True)\n\
                  while not os.path.exists('go'): time.sleep(0.05)\n\
                  os.setuid(0); print(os.getresuid(), flush=True)";
    cpr.cpr(["run", "-d", "--name", "daemon", "--", "python3", "-c", script])
        .good();
    begun(&cpr);
    cpr.checkpoint("daemon", &["--stop"]);
    cpr.restart("daemon");
    ended(&cpr);
}

/// LBNL-3.9.3.1.2, LBNL-3.9.3.2.2, LBNL-3.9.3.3.2: root restores users and groups, of each thread its own.
/// LBNL-3.9.7.1.2: accounting starts from zero. LBNL-3.9.7.2.2: limits are restored.
#[test]
fn root_restores_all_of_them() {
    let Some(cpr) = Cpr::new("root_restores_all_of_them", As::Root) else {
        return;
    };
    let go = start(&cpr, "");
    for _ in 0..2 {
        cpr.checkpoint(JOB, &["--stop"]);
        cpr.restart(JOB);
    }
    check(&cpr, &go);
}

/// A process of several threads that root restarts can be looked at by its user as before: that none of them can be is
/// what changing users does to a process (PR_SET_DUMPABLE(2const)).
#[test]
fn a_users_threads_belong_to_their_user_when_root_has_restarted_them() {
    let Some(cpr) = Cpr::new(
        "a_users_threads_belong_to_their_user_when_root_has_restarted_them",
        As::Root,
    ) else {
        return;
    };
    let program = "import threading, time\n\
                   for _ in range(4): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n\
                   print('READY', flush=True)\ntime.sleep(1000)";
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    cpr.run_detached(JOB, &[], &[&user[..], &["/usr/bin/python3", "-c", program]].concat());
    wait_until(PATIENCE, "the threads run", || cpr.logs(JOB) == b"READY\n");
    let owner = || {
        let jobs = cpr.cpr(["ps", "--json"]).good().json();
        let pid = jobs["jobs"][0]["pid"].as_i64().expect("a PID");
        let shown = fs::metadata(format!("/proc/{pid}/environ"));
        shown.expect("the process lives").uid()
    };
    assert_eq!(owner(), 65534);
    for _ in 0..2 {
        cpr.checkpoint(JOB, &["--stop"]);
        cpr.restart(JOB);
        assert_eq!(owner(), 65534);
    }
}

/// LBNL-3.9.3.4.3: root without a capability gives what is left of them. LBNL-3.9.7.2.3: limits above the restarter's
/// become the restarter's.
#[test]
fn nobody_gets_more_than_the_restarter_has() {
    let Some(cpr) = Cpr::new("nobody_gets_more_than_the_restarter_has", As::Root) else {
        return;
    };
    let go = start(&cpr, "less");
    cpr.checkpoint(JOB, &["--stop"]);
    let binary = cpr.binary().display().to_string();
    let mut command = vec![
        "prlimit",
        "--core=4096:4096",
        "setpriv",
        "--bounding-set=-net_bind_service",
        "--",
    ];
    command.extend([binary.as_str(), "restart", "-d", JOB]);
    cpr.program(&command).good();
    check(&cpr, &go);
}

/// LBNL-3.9.3.1.1, LBNL-3.9.3.1.1.a, LBNL-3.9.3.1.1.b, LBNL-3.9.3.1.1.c, LBNL-3.9.3.1.1.d, LBNL-3.9.3.2.1,
/// LBNL-3.9.3.2.1.a, LBNL-3.9.3.2.1.b, LBNL-3.9.3.2.1.c, LBNL-3.9.3.2.1.d, LBNL-3.9.3.3.1, LBNL-3.9.3.4.1,
/// LBNL-3.9.5.1.1, LBNL-3.9.5.2.1, LBNL-3.9.5.3.3, LBNL-3.9.5.4.1, LBNL-3.9.7.1.1, LBNL-3.9.7.2.1, LBNL-3.9.8.7.1,
/// LBNL-3.9.8.9.1, LBNL-3.9.8.10.1, LBNL-3.9.9.1.1, LBNL-3.9.9.2.1, LBNL-3.9.9.3.1, LBNL-3.9.10.2.1,
/// LBNL-3.9.10.6A.1, LBNL-3.9.10.6B.1: an image lists all of that as the process had it.
#[test]
fn an_image_lists_what_the_process_had() {
    let Some(cpr) = Cpr::new("an_image_lists_what_the_process_had", As::Root) else {
        return;
    };
    let go = start(&cpr, "");
    let jobs = cpr.cpr(["ps", "--json"]).good().json();
    let pid = jobs["jobs"][0]["pid"].as_i64().expect("a PID");
    let image = cpr.checkpoint(JOB, &[])["image"].as_str().expect("an image").to_owned();
    let listing = &cpr.cpr(["inspect", "--json", &image]).good().json()["manifest"];
    let process = &listing["processes"][0];

    let mut tids: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("the process lives")
        .map(|entry| {
            entry
                .expect("the process lives")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    // Outside, numbers may have begun anew in between.
    tids.sort_by_key(|tid| status(pid, tid, "NSpid", 10).last().copied());
    let threads = process["threads"].as_array().expect("threads");
    assert_eq!(threads.len(), tids.len());
    for (thread, tid) in threads.iter().zip(&tids) {
        let inner = *status(pid, tid, "NSpid", 10).last().expect("a number");
        assert_eq!(thread["tid"], inner);
        let credentials = &thread["credentials"];
        assert_eq!(numbers(&credentials["uids"]), status(pid, tid, "Uid", 10));
        assert_eq!(numbers(&credentials["gids"]), status(pid, tid, "Gid", 10));
        assert_eq!(numbers(&credentials["groups"]), status(pid, tid, "Groups", 10));
        for (name, key) in [
            ("effective", "CapEff"),
            ("permitted", "CapPrm"),
            ("inheritable", "CapInh"),
            ("bounding", "CapBnd"),
            ("ambient", "CapAmb"),
        ] {
            assert_eq!(
                [credentials[name].as_u64().expect("a set")][..],
                status(pid, tid, key, 16),
                "{name}"
            );
        }
        for register in ["program_counter", "stack_pointer"] {
            assert!(thread["cpu"][register].as_u64() > Some(0), "{thread}");
        }
    }
    let own = pid.to_string();
    for (name, key) in [("pid", "NSpid"), ("pgid", "NSpgid"), ("sid", "NSsid")] {
        assert_eq!(
            process[name].as_u64(),
            status(pid, &own, key, 10).last().copied(),
            "{name}"
        );
    }
    assert_eq!(process["ppid"], 1);
    assert_eq!(process["umask"], 0o26);
    assert_eq!(process["cwd"], cpr.work.display().to_string());
    assert_eq!(process["root"], "/");

    let core = process["limits"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|l| l["resource"] == 4);
    assert_eq!(core.expect("RLIMIT_CORE")["soft"], 1 << 20);
    assert_eq!(process["limits"].as_array().map(Vec::len), Some(16));
    let accounting = &process["accounting"];
    for name in ["user_ns", "minor_faults", "peak_rss_kib", "elapsed_ns"] {
        assert!(accounting[name].as_u64() > Some(0), "{name} in {accounting}");
    }
    assert!(accounting["user_ns"].as_u64() >= Some(250_000_000), "{accounting}");

    let pending: Vec<&str> = process["pending_signals"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    // siginfo_t: the signal number first, the value at byte 24.
    let expected: Vec<(&str, String)> = (0..5).map(|value| ("25000000", format!("{value:02x}000000"))).collect();
    let found: Vec<(&str, String)> = pending
        .iter()
        .map(|info| (&info[..8], info[48..56].to_owned()))
        .collect();
    assert_eq!(found, expected);
    let timers = process["interval_timers"].as_array().expect("timers");
    for (which, timer) in (0..).zip(timers) {
        assert_eq!(timer["which"], which);
        assert_eq!(timer["interval_us"], (which + 1) * 1_000_000);
        let left = timer["value_us"].as_u64().expect("a time");
        assert!((9_000_000_000..=10_002_000_000).contains(&left), "{timer}");
    }
    let action = process["signal_actions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|a| a["signal"] == 10);
    let action = action.expect("the action of SIGUSR1");
    assert!(action["handler"].as_u64() > Some(1), "{action}");
    assert_eq!(action["mask"], 1);
    // SA_RESTART, SA_NODEFER and the library's SA_RESTORER.
    assert_eq!(action["flags"], 0x1400_0000 | 0x4000_0000_u64);

    let space = process["address_space"].as_u64().expect("memory") as usize;
    let mappings = listing["address_spaces"][space]["mappings"]
        .as_array()
        .expect("mappings");
    let at = |start: u64| mappings.iter().find(|m| m["start"] == start).expect("a mapping");
    let (closed, locked) = (at(0x2_0000_0000), at(0x2_0000_1000));
    assert_eq!(closed["protection"], 0, "{closed}");
    assert!(closed["extents"].as_array().is_some_and(|e| !e.is_empty()), "{closed}");
    assert!(locked["flags"].to_string().contains("lo"), "{locked}");
    check_goes_on(&cpr, &go);
}

/// The job that was not ended has its old accounting, so only its end is looked at.
fn check_goes_on(cpr: &Cpr, go: &Path) {
    assert!(cpr.is_running(JOB), "the job goes on");
    fs::write(go, "").expect("the test's directory can be written");
}

/// A job that has put a process of its own into a cgroup.
const GROUPED: &str = "
import os, sys, time
def mount():
    for line in open('/proc/self/mounts'):
        fields = line.split()
        if fields[2] == 'cgroup2':
            return fields[1]
own = [line.strip().split(':', 2)[2] for line in open('/proc/self/cgroup') if line.startswith('0::')]
if not mount() or not own:
    print('MISSING', flush=True)
    sys.exit()
group = mount() + own[0].rstrip('/') + '/' + sys.argv[1] + '/inner'
os.makedirs(group)
child = os.fork()
if child == 0:
    open(group + '/cgroup.procs', 'w').write(str(os.getpid()))
    print('READY', group, flush=True)
while not os.path.exists('go'):
    time.sleep(0.01)
if child == 0:
    inside = [line for line in open('/proc/self/cgroup') if line.startswith('0::')][0]
    os._exit(0 if inside.strip().endswith('/' + sys.argv[1] + '/inner') else 3)
outside = [line for line in open('/proc/self/cgroup') if line.startswith('0::')][0]
assert sys.argv[1] not in outside, outside
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

/// LBNL-3.9.1.M18: a process that was in a cgroup below its job's is so again, also where the group has to be made
/// anew.
#[test]
fn a_process_is_in_a_cgroup_below_its_jobs_again() {
    let test = "a_process_is_in_a_cgroup_below_its_jobs_again";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let name = format!("gridcpr-test-{}", std::process::id());
    cpr.run_detached("grouped", &[], &["/usr/bin/python3", "-c", GROUPED, &name]);
    let said = || String::from_utf8_lossy(&cpr.logs("grouped")).into_owned();
    wait_until(PATIENCE, "it is ready", || said().ends_with('\n'));
    let said = said();
    let Some(group) = said.strip_prefix("READY ").map(|path| PathBuf::from(path.trim())) else {
        support::skip!(test, "there are no cgroups of version 2");
    };
    let outer = group.parent().expect("it has one").to_owned();
    let remove = || {
        wait_until(PATIENCE, "the group is empty", || {
            // A process that has just ended may still be in it.
            !group.exists() || fs::remove_dir(&group).is_ok()
        });
        // They are below the job's own group, and go with that.
        wait_until(PATIENCE, "the groups are gone", || {
            !outer.exists() || fs::remove_dir(&outer).is_ok()
        });
    };
    for _ in 0..2 {
        cpr.checkpoint("grouped", &["--stop"]);
        remove();
        cpr.restart("grouped");
        let inside = fs::read_to_string(group.join("cgroup.procs")).expect("the group is there again");
        assert_eq!(inside.lines().count(), 1, "{inside}");
    }
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    let code = cpr.wait("grouped");
    remove();
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&cpr.logs("grouped")));
}

/// Makes processes that end at once, waits, and says whether any of those that it makes then has the number of one before,
/// or one of those that the kernel gives to its own processes.
const NUMBERS: &str = "
import os, sys, time
def numbers():
    made = []
    for _ in range(30):
        made.append(os.fork())
        if made[-1] == 0:
            os._exit(0)
        os.waitpid(made[-1], 0)
    return made
before = numbers()
print('READY', flush=True)
while not os.path.exists('go'):
    time.sleep(0.01)
after = numbers()
print(not set(before) & set(after) and min(after) > 300)
";

#[test]
fn new_processes_have_numbers_that_the_job_has_not_used_lately() {
    let Some(cpr) = Cpr::new("new_processes_have_numbers", As::User) else {
        return;
    };
    cpr.run_detached("job", &[], &["python3", "-c", NUMBERS]);
    wait_until(PATIENCE, "it has made processes", || cpr.logs("job") == b"READY\n");
    cpr.checkpoint("job", &["--stop"]);
    cpr.restart("job");
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("job"), 0);
    assert_eq!(cpr.logs("job"), b"READY\nTrue\n");
}

// In a user's job it stays mounted, though it is not the job's.
#[test]
fn what_was_unmounted_outside_since_is_not_the_jobs() {
    let Some(cpr) = Cpr::new("what_was_unmounted_outside", As::User) else {
        return;
    };
    let place = cpr.work.join("gone");
    fs::create_dir(&place).expect("a directory can be made");
    let outside = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&place);
        finish(&cpr.work, command, PATIENCE)
    };
    if outside(&["mount", "-t", "tmpfs", "-o", "mode=700", "none"]).code != 0 {
        skip!("what_was_unmounted_outside", "nothing can be mounted here");
    }
    let command = "while ! [ -e go ]; do sleep 0.05; done; grep -c /gone /proc/self/mountinfo; true";
    cpr.run_detached("job", &[], &["sh", "-c", command]);
    let left = outside(&["umount"]);
    fs::remove_dir(&place).expect("the directory can be removed");
    left.good();
    cpr.checkpoint("job", &[]);
    cpr.checkpoint("job", &["--stop"]);
    cpr.restart("job");
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("job"), 0);
    assert_eq!(cpr.logs("job"), b"0\n");
}
