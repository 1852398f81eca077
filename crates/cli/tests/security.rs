//! Nobody gains anything by a checkpoint or a restart: not by programs with privileges, not by edited images, not by
//! names that lead elsewhere. `docs/security.md` says which threat each test is about.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gridcpr::image::model::{Network, NetworkId, Object, UserNamespace, UserNamespaceId};
use support::image::edited;
use support::{As, Cpr, PATIENCE, am_root, finish, skip, wait_until};

/// `Denied` of docs/exit-codes.md.
const DENIED: i32 = 77;
/// `Incompatible`.
const INCOMPATIBLE: i32 = 78;
/// The user of `As::User`.
const USER: u32 = 65534;
const PYTHON: &str = "/usr/bin/python3";
/// Counts into the file `out`, five milliseconds a line.
const COUNT: &str = "import time\nwith open('out', 'w', buffering=1) as out:\n n = 0\n while True:\n  n += 1\n  \
                     out.write('%d\\n' % n)\n  time.sleep(0.005)\n";

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(cpr: &Cpr) -> usize {
    fs::read(cpr.work.join("out")).map_or(0, |bytes| bytes.split(|b| *b == b'\n').count())
}

fn await_progress(cpr: &Cpr) {
    let before = lines(cpr);
    wait_until(PATIENCE, "the job goes on", || lines(cpr) > before + 2);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// An image of a counting job of `cpr`, which has ended.
fn stopped_image(cpr: &Cpr) -> PathBuf {
    cpr.run_detached("count", &[], &[PYTHON, "-c", COUNT]);
    await_progress(cpr);
    let image = cpr.work.join("count.cpr");
    cpr.cpr(["checkpoint", "--stop", "-o", text(&image), "count"]).good();
    image
}

/// The value of a line of /proc/PID/status.
fn status(pid: i64, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// LBNL-3.6.2.1: a program that runs with more rights than its caller cannot be saved by the caller, whose image would
/// hold what only the program may read.
#[test]
fn a_set_user_id_program_is_not_the_callers_to_save() {
    const TEST: &str = "a_set_user_id_program_is_not_the_callers_to_save";
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    if !am_root() {
        skip!(TEST, "needs root to make a set-user-ID program");
    }
    let program = cpr.work.join("sleeper");
    fs::copy("/bin/sleep", &program).expect("a program can be copied");
    chown(&program, Some(0), Some(0)).expect("root can do that");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("root can do that");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(&program).arg("1000").stdin(Stdio::null());
    let process = Killed(command.spawn().expect("a program can be started"));
    let pid = i64::from(process.0.id());
    wait_until(PATIENCE, "the program has its rights", || {
        status(pid, "Name") == "sleeper" && status(pid, "Uid").split_whitespace().nth(1) == Some("0")
    });
    let image = cpr.work.join("image.cpr");
    let ended = cpr.cpr(["checkpoint", "-o", text(&image), &pid.to_string()]);
    assert_eq!(ended.code, DENIED, "{}", ended.stderr);
    assert!(!image.exists());
    assert_eq!(status(pid, "TracerPid"), "0");
    assert!(status(pid, "State").starts_with('S'));
}

/// LBNL-3.9.3.4.3, LBNL-2.2.4A: an image edited to claim root and all capabilities gives its restarter nothing.
#[test]
fn an_edited_image_gives_a_user_no_rights() {
    const TEST: &str = "an_edited_image_gives_a_user_no_rights";
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    let image = stopped_image(&cpr);
    let image = edited(&image, Some((USER, USER)), |manifest| {
        for thread in manifest.processes.iter_mut().flat_map(|p| &mut p.threads) {
            let credentials = &mut thread.credentials;
            credentials.uids = [0; 4];
            credentials.gids = [0; 4];
            credentials.groups = vec![0];
            for set in [
                &mut credentials.effective,
                &mut credentials.permitted,
                &mut credentials.inheritable,
                &mut credentials.ambient,
            ] {
                *set = u64::MAX >> 23;
            }
        }
        for process in &mut manifest.processes {
            for limit in &mut process.limits {
                (limit.soft, limit.hard) = (u64::MAX, u64::MAX);
            }
        }
    });
    cpr.give(&image);
    let ended = cpr.cpr(["restart", "-d", "--name", "edited", text(&image)]);
    // Refused, or nothing gained.
    if ended.code == 0 {
        await_progress(&cpr);
        let jobs = cpr.cpr(["ps", "--json"]).good().json();
        let pid = jobs["jobs"][0]["pid"].as_i64().expect("the job lives");
        let user = if am_root() { USER } else { own_uid() };
        assert_eq!(status(pid, "Uid"), [user; 4].map(|uid| uid.to_string()).join("\t"));
        assert_eq!(u64::from_str_radix(&status(pid, "CapEff"), 16), Ok(0));
        assert_eq!(u64::from_str_radix(&status(pid, "CapPrm"), 16), Ok(0));
        cpr.cpr(["kill", "--signal", "KILL", "edited"]).good();
    }
}

/// A file that root has taken away from the owner of an image since, and an image that is somebody else's.
// XGCP-SEC-4, GFD93-SEC-4
#[test]
fn what_an_owner_may_not_read_any_more_is_not_given_back_by_a_restart() {
    const TEST: &str = "what_an_owner_may_not_read_any_more";
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    if !am_root() {
        skip!(TEST, "needs root to take a file away");
    }
    let data = cpr.work.join("data");
    fs::write(&data, "as it was").expect("the directory can be written");
    chown(&data, Some(0), Some(0)).expect("root can do that");
    let mode = |mode| fs::set_permissions(&data, fs::Permissions::from_mode(mode)).expect("root can do that");
    mode(0o644);
    let program = COUNT.replace("import time", "import time\nheld = open('data')");
    cpr.run_detached("count", &[], &[PYTHON, "-c", &program]);
    await_progress(&cpr);
    let image = cpr.work.join("count.cpr");
    cpr.checkpoint("count", &["--stop", "-o", text(&image)]);
    mode(0o600);
    let refused = |named: &str, options: &[&str]| {
        let ended = cpr.cpr([&["restart", "-d", "--name", "again"], options, &[text(&image)]].concat());
        assert_eq!(ended.code, DENIED, "{}", ended.stderr);
        assert!(ended.stderr.contains(named), "{}", ended.stderr);
        assert!(!cpr.is_running("again"));
    };
    refused(text(&data), &[]);
    refused(text(&data), &["--lazy"]);
    let told = cpr
        .cpr(["--json", "restart", "-d", "--name", "again", text(&image)])
        .json();
    assert_eq!(
        (&told["error"]["kind"], &told["error"]["class"]),
        (&"denied".into(), &"permission".into())
    );
    mode(0o644);
    // Somebody else's: it cannot even be read.
    chown(&image, Some(65533), Some(65533)).expect("root can do that");
    refused(text(&image), &[]);
    cpr.give(&image);
    cpr.cpr(["restart", "-d", "--name", "again", text(&image)]).good();
    await_progress(&cpr);
    cpr.cpr(["kill", "--signal", "KILL", "again"]).good();
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").expect("there is a /proc").uid()
}

/// LBNL-2.2.3: root that restarts a user's image opens, reads, cuts and writes nothing the user could not: here the
/// image was edited to hold a file of root's open for writing.
#[test]
fn a_users_image_makes_root_touch_nothing_of_roots() {
    const TEST: &str = "a_users_image_makes_root_touch_nothing_of_roots";
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    let image = stopped_image(&cpr);
    let secret = root.work.join("secret");
    fs::write(&secret, "x".repeat(100_000)).expect("the directory can be written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("root can do that");
    let image = edited(&image, Some((USER, USER)), |manifest| {
        for file in &mut manifest.files {
            if let Object::Regular(regular) = &mut file.object
                && regular.path.0.ends_with(b"/out")
            {
                regular.path = text(&secret).into();
            }
        }
    });
    let ended = root.cpr(["restart", "-d", "--name", "edited", text(&image)]);
    assert_eq!(ended.code, DENIED, "{}", ended.stderr);
    assert_eq!(fs::read(&secret).expect("root can read").len(), 100_000);
    // The same by a symbolic link where the user's file was.
    let image = cpr.work.join("count.cpr");
    fs::remove_file(cpr.work.join("out")).expect("root can do that");
    symlink(&secret, cpr.work.join("out")).expect("root can do that");
    let ended = root.cpr(["restart", "-d", "--name", "link", text(&image)]);
    assert_eq!(ended.code, INCOMPATIBLE, "{}", ended.stderr);
    assert_eq!(fs::read(&secret).expect("root can read").len(), 100_000);
}

/// Namespaces are made, and the kernel's settings changed in them, for images of root's own only.
#[test]
fn a_users_image_makes_root_set_up_no_network() {
    const TEST: &str = "a_users_image_makes_root_set_up_no_network";
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    let image = stopped_image(&cpr);
    let image = edited(&image, Some((USER, USER)), |manifest| {
        manifest.networks = vec![Network {
            settings: vec![("net/core/somaxconn".into(), "12345".into())],
            ..Network::default()
        }];
        for process in &mut manifest.processes {
            process.network = Some(NetworkId(0));
        }
    });
    let ended = root.cpr(["restart", "-d", "--name", "edited", text(&image)]);
    assert_eq!(ended.code, DENIED, "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("a network, IPC, cgroup, PID, mount or user namespace of its own"),
        "{}",
        ended.stderr
    );
}

/// Somebody's image says that his user namespace has root as a user, and that another has made it.
#[test]
fn a_user_namespace_has_no_users_that_its_maker_may_not_have() {
    let test = "a_user_namespace_has_no_users_that_its_maker_may_not_have";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    let image = stopped_image(&cpr);
    for (owner, range) in [(USER, (0, 0, 1)), (0, (0, 0, u32::MAX - 1)), (0, (0, USER, 2))] {
        let image = edited(&image, Some((USER, USER)), |manifest| {
            manifest.user_namespaces = vec![UserNamespace {
                owner,
                uids: vec![range],
                ..UserNamespace::default()
            }];
            for process in &mut manifest.processes {
                process.user_namespace = Some(UserNamespaceId(0));
            }
        });
        let ended = cpr.cpr(["restart", "-d", "--name", "edited", text(&image)]);
        assert_eq!(ended.code, DENIED, "{range:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("make user namespace 0 again"), "{}", ended.stderr);
    }
}

/// An image is written to a new file and takes the place of what had its name: a link that somebody has put there
/// leads nowhere.
#[test]
fn a_symbolic_link_in_the_place_of_an_image_is_not_followed() {
    const TEST: &str = "a_symbolic_link_in_the_place_of_an_image_is_not_followed";
    let Some(cpr) = Cpr::new(TEST, As::Root) else { return };
    let precious = cpr.work.join("precious");
    fs::write(&precious, "precious").expect("the directory can be written");
    let place = cpr.work.join("image.cpr");
    symlink(&precious, &place).expect("the directory can be written");
    cpr.run_detached("count", &[], &[PYTHON, "-c", COUNT]);
    await_progress(&cpr);
    let ended = cpr.cpr(["checkpoint", "-o", text(&place), "count"]);
    assert_eq!(fs::read(&precious).expect("it is there"), b"precious");
    if ended.code == 0 {
        assert!(fs::symlink_metadata(&place).expect("it is there").is_file());
        cpr.cpr(["verify", text(&place)]).good();
    }
    await_progress(&cpr);
}

/// LBNL-3.6.2.5: what a process may not read of another's it cannot have restarted either: the image is open to its
/// owner alone, and a copy that was made readable is refused to others (`images_belong_to_the_owner_of_the_job` in
/// hostile.rs). Here: a reader without rights to the file.
#[test]
fn an_image_of_roots_is_not_restarted_by_a_user() {
    const TEST: &str = "an_image_of_roots_is_not_restarted_by_a_user";
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    let image = stopped_image(&root);
    for command in ["restart", "inspect", "verify"] {
        let mut run = cpr.command(cpr.binary());
        run.arg(command).arg(&image);
        let ended = finish(&root.work, run, PATIENCE);
        assert_eq!(ended.code, DENIED, "{command}: {}", ended.stderr);
    }
}
