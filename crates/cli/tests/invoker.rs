//! What restarted processes take over from whoever restarts them: users and groups, parent, session and root
//! directory.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::image::edited;
use support::{As, Cpr, PATIENCE, finish, poll, wait_until};

/// The distribution's: another one in PATH may be for its owner only.
const PYTHON: &str = "/usr/bin/python3";
/// The user of `As::User`.
const USER: u32 = 65534;
/// Ends when the file `go` appears.
const WAITER: &str = "import os, sys, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nsys.exit(7)\n";

/// A program that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn start(cpr: &Cpr, arguments: &[&str]) -> Killed {
        Killed::start_into(cpr, arguments, "out")
    }

    /// Starts a program with its output in a file of the working directory.
    fn start_into(cpr: &Cpr, arguments: &[&str], output: &str) -> Killed {
        let file = File::create(cpr.work.join(output)).expect("the test's directory can be written");
        let errors = file.try_clone().expect("a descriptor can be copied");
        let mut command = cpr.command(arguments[0]);
        command.args(&arguments[1..]).stdin(Stdio::null());
        command.stdout(file).stderr(errors);
        Killed(command.spawn().expect("a program can be started"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// The exit code, once it has ended.
    fn code(&mut self) -> Option<i32> {
        let status = poll(PATIENCE, || self.0.try_wait().expect("a child can be waited for"));
        status.expect("it ends").code()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths of tests are text").to_owned()
}

/// Parent, group and session of a process; none where it does not live.
fn relations(pid: i32) -> Option<[i32; 3]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    (fields[0] != "Z").then_some([number(1)?, number(2)?, number(3)?])
}

/// A line of /proc/PID/status.
fn status(pid: i64, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// The PID of the only job.
fn pid_of_job(cpr: &Cpr) -> i64 {
    let jobs = cpr.cpr(["ps", "--json"]).good().json();
    jobs["jobs"][0]["pid"].as_i64().expect("the job lives")
}

/// Saves a process that no job is of, and ends it.
fn saved(cpr: &Cpr, program: &[&str], selector: &[&str]) -> (i32, String) {
    let mut process = Killed::start(cpr, program);
    let pid = process.pid();
    wait_until(PATIENCE, "it runs", || text_of(cpr, "out") == "READY\n");
    let image = text(&cpr.work.join("image.cpr"));
    let pid_text = pid.to_string();
    let mut arguments = vec!["checkpoint", "--stop", "-o", &image];
    arguments.extend(selector);
    arguments.push(&pid_text);
    cpr.cpr(&arguments).good();
    process.code();
    (pid, image)
}

fn text_of(cpr: &Cpr, name: &str) -> String {
    fs::read_to_string(cpr.work.join(name)).unwrap_or_default()
}

fn waiter() -> String {
    format!("print('READY', flush=True)\n{WAITER}")
}

/// Restarts `image` as a user who has group 5001 now and is in `GROUPS`; what /proc says of the groups then.
fn groups_after(cpr: &Cpr, image: &Path, with_right: bool) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=5001", "--groups=5001,5002,5004"]);
    if with_right {
        command.args(["--inh-caps=+setgid", "--ambient-caps=+setgid"]);
    }
    command.arg("--").arg(cpr.binary());
    command.args(["restart", "-d", "--name", "again"]).arg(image);
    command.current_dir(&cpr.work).env("GRIDCPR_STATE_DIR", &cpr.state_dir);
    finish(&cpr.work, command, PATIENCE).good();
    let pid = pid_of_job(cpr);
    for (key, id) in [("Uid", USER), ("Gid", 5001)] {
        assert_eq!(status(pid, key), [id; 4].map(|id| id.to_string()).join("\t"));
    }
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, key), "0000000000000000", "{key}");
    }
    let groups = status(pid, "Groups");
    cpr.cpr(["rm", "--force", "again"]).good();
    groups
}

/// An image that claims users, groups and capabilities is restarted by a user who was in other groups since. Who may
/// not change groups keeps those he has, and gains none.
// LBNL-3.9.3.1.3, LBNL-3.9.3.2.3, LBNL-3.9.3.3.3, LBNL-3.9.3.4.2
#[test]
fn users_groups_and_capabilities_are_the_invokers() {
    const TEST: &str = "users_groups_and_capabilities_are_the_invokers";
    const NET_RAW: u64 = 1 << 13;
    let (Some(_root), Some(cpr)) = (Cpr::new(TEST, As::Root), Cpr::new(TEST, As::User)) else {
        return;
    };
    cpr.run_detached("waiter", &[], &[PYTHON, "-c", WAITER]);
    let image = cpr.work.join("image.cpr");
    cpr.cpr(["checkpoint", "--stop", "-o", &text(&image), "waiter"]).good();
    let image = edited(&image, Some((USER, USER)), |manifest| {
        for thread in manifest.processes.iter_mut().flat_map(|p| &mut p.threads) {
            let credentials = &mut thread.credentials;
            credentials.uids = [USER, 0, USER, USER];
            credentials.gids = [USER, 0, USER, USER];
            credentials.groups = vec![5002, 5003];
            credentials.permitted |= NET_RAW;
            credentials.effective |= NET_RAW;
            credentials.inheritable |= NET_RAW;
            credentials.ambient |= NET_RAW;
        }
    });
    assert_eq!(groups_after(&cpr, &image, true), "5002");
    assert_eq!(groups_after(&cpr, &image, false), "5001 5002 5004");
}

// LBNL-3.9.5.1.3
#[test]
fn the_leader_of_a_session_is_a_child_of_the_command() {
    const TEST: &str = "the_leader_of_a_session_is_a_child_of_the_command";
    let Some(cpr) = Cpr::new(TEST, As::Root) else { return };
    let (sid, image) = saved(&cpr, &["setsid", PYTHON, "-c", &waiter()], &["--session"]);
    let binary = text(cpr.binary());
    let mut command = Killed::start_into(&cpr, &[&binary, "restart", "--name", "again", &image], "again");
    wait_until(PATIENCE, "it leads its session, as a child of the command", || {
        relations(sid) == Some([command.pid(), sid, sid])
    });
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(command.code(), Some(7), "{}", text_of(&cpr, "again"));
}

/// A process that was saved by itself goes into group and session of the command, wherever it came from.
// LBNL-3.9.5.1.4, LBNL-3.9.5.3.6, LBNL-3.9.5.4.3
#[test]
fn a_single_process_joins_the_command() {
    const TEST: &str = "a_single_process_joins_the_command";
    let Some(cpr) = Cpr::new(TEST, As::Root) else { return };
    let (pid, image) = saved(&cpr, &[PYTHON, "-c", &waiter()], &[]);
    let binary = text(cpr.binary());
    let command = ["setsid", &binary, "restart", "--name", "again", &image];
    let mut command = Killed::start_into(&cpr, &command, "again");
    let leader = command.pid();
    wait_until(PATIENCE, "it is a child of the command", || {
        relations(pid) == Some([leader, leader, leader])
    });
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(command.code(), Some(7), "{}", text_of(&cpr, "again"));
}

/// A user with the one capability that lets him choose PIDs has a process of his own back with its PID.
// LBNL-3.9.1.M22
#[test]
fn a_user_who_may_choose_pids_needs_no_more() {
    const TEST: &str = "a_user_who_may_choose_pids_needs_no_more";
    let (Some(_root), Some(cpr)) = (Cpr::new(TEST, As::Root), Cpr::new(TEST, As::User)) else {
        return;
    };
    let (pid, image) = saved(&cpr, &["setsid", PYTHON, "-c", &waiter()], &[]);
    cpr.give(&cpr.work.join("out"));
    let restart = |capabilities: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(capabilities).arg("--").arg(cpr.binary());
        command.args(["restart", "-d", "--namespace", "never", "--name", "again", &image]);
        command.current_dir(&cpr.work).env("GRIDCPR_STATE_DIR", &cpr.state_dir);
        finish(&cpr.work, command, PATIENCE)
    };
    const DENIED: i32 = 77;
    assert_eq!(restart(&[]).code, DENIED);
    restart(&["--inh-caps=+checkpoint_restore", "--ambient-caps=+checkpoint_restore"]).good();
    assert!(relations(pid).is_some(), "it has its PID");
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid.into(), key), "0000000000000000", "{key}");
    }
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("again"), 7);
}

/// The whole machine seen from a directory is another root directory, with everything at its place.
// LBNL-3.9.8.10.2
#[test]
fn the_root_directory_is_the_invokers() {
    let Some(cpr) = Cpr::new("the_root_directory_is_the_invokers", As::Root) else {
        return;
    };
    let (pid, image) = saved(&cpr, &[PYTHON, "-c", &waiter()], &[]);
    let jail = cpr.work.join("jail");
    fs::create_dir(&jail).expect("the test's directory can be written");
    let script = r#"mount --rbind --make-rprivate / "$1" && exec chroot "$1" sh -c 'cd "$1"; shift; exec "$@"' sh "$2" "$3" restart \
                    --namespace never --name again "$4""#;
    let (jail_text, work, binary) = (text(&jail), text(&cpr.work), text(cpr.binary()));
    let command = [
        "unshare", "-m", "sh", "-c", script, "sh", &jail_text, &work, &binary, &image,
    ];
    let mut command = Killed::start_into(&cpr, &command, "again");
    wait_until(PATIENCE, "it runs again", || relations(pid).is_some());
    let root = |pid: i32| fs::read_link(format!("/proc/{pid}/root")).expect("the process lives");
    let identity = |pid: i32| {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(format!("/proc/{pid}/root/")).expect("the process lives");
        (metadata.dev(), metadata.ino())
    };
    assert_eq!(
        (root(pid), identity(pid)),
        (root(command.pid()), identity(command.pid()))
    );
    assert_eq!(root(pid), jail);
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    assert_eq!(command.code(), Some(7), "{}", text_of(&cpr, "again"));
}
