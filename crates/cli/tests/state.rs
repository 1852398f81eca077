//! Every kind of kernel state a process has survives a checkpoint, whether the job goes on or is restarted.
//!
//! The programs are in `tests/victims`, one for each kind; they check themselves. Each of them is run twice: one goes
//! on after [`CHECKPOINTS`] checkpoints, the other goes on once, is ended by a checkpoint and restarted, twice over.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::steps::Steps;
use support::victim::{Victim, compile, compile_with};
use support::{As, Cpr, PATIENCE, knows_file_system, skip, wait_until};

/// How many checkpoints a job goes on after.
const CHECKPOINTS: usize = 5;
/// The job uses something that cannot be checkpointed.
const UNSUPPORTED: i32 = 69;
/// It may not be done.
const DENIED: i32 = 77;

fn goes_on(cpr: &Cpr, program: &Path, mode: &str) {
    let victim = Victim::start(cpr, program, "on", &[mode]);
    for _ in 0..CHECKPOINTS {
        cpr.checkpoint(victim.job, &[]);
    }
    victim.check();
}

fn restarts(cpr: &Cpr, program: &Path, mode: &str) {
    let victim = Victim::start(cpr, program, "again", &[mode]);
    for _ in 0..2 {
        cpr.checkpoint(victim.job, &[]);
        cpr.checkpoint(victim.job, &["--stop"]);
        cpr.restart(victim.job);
    }
    victim.check();
}

/// An image of it is restarted in a sandbox, and it goes on.
fn is_proven(cpr: &Cpr, program: &Path, mode: &str) {
    let victim = Victim::start(cpr, program, "proven", &[mode]);
    cpr.checkpoint(victim.job, &[]);
    cpr.cpr(["verify", "--restore", victim.job]).good();
    victim.check();
}

fn survives_as(test: &str, user: As, name: &str, mode: &str) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, name);
    goes_on(&cpr, &program, mode);
    restarts(&cpr, &program, mode);
}

/// Tests of a victim: as root, and as an ordinary user.
macro_rules! survive {
    ($($(#[$comment:meta])* $name:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn as_root() {
                survives_as(concat!(stringify!($name), "::as_root"), As::Root, stringify!($name), "");
            }

            #[test]
            fn as_user() {
                survives_as(concat!(stringify!($name), "::as_user"), As::User, stringify!($name), "");
            }
        }
    )*};
}

survive! {
    time_namespaces;
    // LBNL-2.2.4B.10, LBNL-3.9.5.1.2, LBNL-3.9.5.2.2, LBNL-3.9.5.3.2, LBNL-3.9.5.3.4, XGCP-TL-5
    tree;
    // LBNL-3.9.1.M20
    zombies;
    // LBNL-2.2.4B.4, LBNL-3.9.9.1.2, LBNL-3.9.9.3.2
    signals;
    // LBNL-2.2.4B.7, LBNL-3.9.9.2.2, LBNL-3.9.1.M13
    timers;
    // LBNL-3.7.1.1, LBNL-3.7.1.2, LBNL-3.7.1.3
    blocked;
    // LBNL-2.2.4B.11, LBNL-2.2.4B.12, LBNL-3.9.6.2.2
    pipes;
    // LBNL-3.9.1.M10
    sockets;
    // LBNL-2.2.4B.5, LBNL-3.9.1.M11
    tcp;
    // LBNL-3.9.1.M11
    udp;
    // LBNL-3.9.1.M11
    multicast;
    given_up;
    netlink;
    packet;
    fanotify;
    // LBNL-3.9.1.M5, LBNL-3.9.1.M6, LBNL-3.9.1.M8
    descriptors;
    // LBNL-3.9.1.M21, LBNL-3.9.8.1.2, LBNL-3.9.8.1.8, LBNL-3.9.8.6.2, LBNL-3.9.8.11.2,
    // LBNL-3.9.8.1.7
    files;
    // LBNL-2.2.4B.20, LBNL-3.9.8.8.3
    locks;
    // LBNL-2.2.4B.20
    leases;
    // LBNL-3.9.8.1.2
    gone;
    cow;
    exits;
    faults;
    limited;
    sparse;
    watches;
    ptys;
    registered;
    tables;
    // LBNL-2.2.4B.16, LBNL-2.2.4B.18, LBNL-3.9.8.4.2, LBNL-3.9.8.4.4, LBNL-3.9.8.4.5, LBNL-3.9.8.4.6, LBNL-3.9.8.4.7
    devices;
    // LBNL-3.9.1.M4, LBNL-3.9.10.4.2
    layout;
    // LBNL-2.2.4B.15, LBNL-2.2.4B.21, LBNL-2.2.4B.22, LBNL-3.9.1.M19, LBNL-3.9.8.5.1, LBNL-3.9.8.5.2, LBNL-3.9.10.6A.3,
    // LBNL-3.9.10.3.2, LBNL-3.9.10.6A.2, LBNL-3.9.10.6B.2, LBNL-3.9.10.6B.3
    memory;
    // LBNL-2.2.4B.9, LBNL-3.9.1.M1, LBNL-3.9.10.2.2
    threads;
    leaderless;
    // LBNL-3.9.1.M2
    vectors;
    // LBNL-2.2.4B.6, LBNL-3.9.1.M12, XGCP-RES-1
    sysv;
    // LBNL-3.9.1.M12
    mqueue;
    // LBNL-2.4.12
    aio;
    // LBNL-2.2.4B.17, LBNL-2.4.12
    io_uring;
    madvise;
    // LBNL-3.9.1.M15, LBNL-3.9.8.7.2, LBNL-3.9.8.9.2
    attributes;
    user_namespaces;
    cgroup_namespaces;
    mount_namespaces;
    mount_trees;
    mount_groups;
}

/// File systems of layers, as containers have them.
#[test]
fn layers() {
    if !knows_file_system("overlay") {
        skip!("layers", "this kernel has no overlay file system (overlay)");
    }
    for user in [As::Root, As::User] {
        survives_as("layers", user, "layers", "");
    }
}

/// What root's job mounts in the mount namespace it was started in is mounted again.
#[test]
fn mounted() {
    survives_as("mounted", As::Root, "mounted", "");
    let Some(cpr) = Cpr::new("mounted", As::Root) else {
        return;
    };
    // Where the sandbox has mounted something over the directory, too.
    is_proven(&cpr, &compile(&cpr, "mounted"), "");
}

/// Where nothing comes of a restart, robust locks in a file are held as they were: others find no mark of a dead owner.
// LBNL-2.2.4B.20
#[test]
fn locks_of_a_restart_that_came_to_nothing() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("locks_of_a_restart_that_came_to_nothing", user) else {
            continue;
        };
        let victim = Victim::start(&cpr, &compile(&cpr, "locks"), "again", &[]);
        let report = cpr.checkpoint(victim.job, &["--stop"]);
        let image = report["image"].as_str().expect("there is an image");
        let held = || {
            let files = fs::read_dir(&cpr.work).expect("the directory can be read").flatten();
            let mut files = files.map(|entry| entry.path());
            let file = files.find(|path| path.extension().is_some_and(|end| end == "robust"));
            fs::read(file.expect("the victim has made it")).expect("it can be read")
        };
        let before = held();
        assert!(before.iter().any(|byte| *byte != 0), "the victim holds its locks");
        let mut given_up = Steps::new(&cpr, &["restart", "-d", "--name", "given-up", "--steps", "60s", image]);
        given_up.says("built");
        assert_ne!(given_up.end(), 0);
        assert!(before == held(), "locks were marked");
        cpr.restart(victim.job);
        victim.check();
    }
}

/// Servers that use multipath TCP where their clients do, as those of Go do by themselves.
// LBNL-3.9.1.M11
#[test]
fn multipath() {
    let enabled = fs::read_to_string("/proc/sys/net/mptcp/enabled").unwrap_or_default();
    if enabled.trim() != "1" {
        skip!("multipath", "this kernel has no multipath TCP (net.mptcp.enabled)");
    }
    for user in [As::Root, As::User] {
        survives_as("multipath", user, "multipath", "");
    }
}

/// A process that lets nobody look at it goes on, and is restarted, as one. The kernel then asks for power over the
/// user namespace that the restarter was started in, so that only root saves it again.
#[test]
fn concealed() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("concealed", user) else {
            continue;
        };
        let program = compile(&cpr, "concealed");
        goes_on(&cpr, &program, "");
        let victim = Victim::start(&cpr, &program, "again", &[]);
        cpr.checkpoint(victim.job, &["--stop"]);
        cpr.restart(victim.job);
        let again = cpr.cpr(["checkpoint", victim.job]);
        match user {
            As::Root => drop(again.good()),
            As::User => {
                assert_eq!(again.code, DENIED, "{}", again.stderr);
                assert!(again.stderr.contains("lets nobody look at it"), "{}", again.stderr);
            }
        }
        victim.check();
    }
}

// LBNL-3.7.1.4
#[test]
fn a_call_that_cannot_be_made_again_ends_with_eintr() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("a_call_that_cannot_be_made_again_ends_with_eintr", user) else {
            continue;
        };
        let victim = Victim::start(&cpr, &compile(&cpr, "eintr"), "eintr", &[]);
        cpr.checkpoint(victim.job, &["--stop"]);
        cpr.restart(victim.job);
        victim.check();
    }
}

/// LBNL-3.9.1.M16. An ordinary user cannot have filters saved: see the refusals.
#[test]
fn filters_as_root() {
    survives_as("filters_as_root", As::Root, "filters", "");
}

/// The process of a job, as numbered here.
fn pid_of(cpr: &Cpr, job: &str) -> String {
    let listed = cpr.cpr(["ps", "--json"]).good().stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
    let mut jobs = listed["jobs"].as_array().expect("a list of jobs").iter();
    let found = jobs.find(|listed| listed["name"] == job).expect("the job is listed");
    found["pid"].as_i64().expect("it runs").to_string()
}

/// Root does not go where a user may have mounted anything.
#[test]
fn root_enters_no_mount_namespace_of_a_users_job() {
    const TEST: &str = "root_enters_no_mount_namespace_of_a_users_job";
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(user) = Cpr::new(TEST, As::User) else { return };
    let command = ["unshare", "--user", "--map-root-user", "--mount", "sleep", "1000"];
    user.run_detached("mounted", &[], &command);
    let pid = pid_of(&user, "mounted");
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_until(PATIENCE, "it sleeps", || name() == "sleep\n");
    let image = user.work.join("image.cpr").display().to_string();
    let refused = root.cpr(["checkpoint", "-o", &image, &pid]);
    assert_eq!(refused.code, UNSUPPORTED, "{refused:?}");
    assert!(
        refused.stderr.contains("in a mount namespace of its own"),
        "{refused:?}"
    );
    user.cpr(["checkpoint", "--stop", "mounted"]).good();
}

/// Root saves a user's program with filters, and one that has them in namespaces of its own; the user restarts both,
/// who cannot suspend what he has put into force.
#[test]
fn filters_of_a_user_that_root_has_saved() {
    const TEST: &str = "filters_of_a_user_that_root_has_saved";
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(user) = Cpr::new(TEST, As::User) else { return };
    let program = compile(&user, "filters");
    let script = user.work.join("unshared.sh");
    let options = "--user --map-root-user --pid --fork --ipc --net --cgroup --kill-child";
    let text = format!("#!/bin/sh\nexec unshare {options} {} \"$@\"\n", program.display());
    fs::write(&script, text).expect("the test's directory can be written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    for (job, program) in [("plain", &program), ("unshared", &script)] {
        Victim::start(&user, program, job, &[]);
        let pid = pid_of(&user, job);
        let image = user.work.join(format!("{job}.cpr")).display().to_string();
        root.cpr(["checkpoint", "--stop", "-o", &image, &pid]).good();
        let again = format!("{job}-again");
        user.cpr(["restart", "--detach", "--name", &again, &image]).good();
        fs::write(user.work.join(format!("go-{job}")), "").expect("the test's directory can be written");
        assert_eq!(user.wait(&again), 0);
        assert_eq!(String::from_utf8_lossy(&user.logs(job)), "READY\nOK\n");
    }
}

/// Ordinary users get namespaces for host names only with user namespaces: see `user_namespaces`.
#[test]
fn host_names_as_root() {
    survives_as("host_names_as_root", As::Root, "host_names", "");
}

/// Ordinary users get PID namespaces only with user namespaces.
#[test]
fn pid_namespaces_as_root() {
    survives_as("pid_namespaces_as_root", As::Root, "pid_namespaces", "");
}

/// Ordinary users get IPC namespaces only with user namespaces.
#[test]
fn ipc_namespaces_as_root() {
    survives_as("ipc_namespaces_as_root", As::Root, "ipc_namespaces", "");
}

/// Networks with cables between them: those of an ordinary user belong to a user namespace that the job has made.
#[test]
fn networks() {
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        skip!("networks", "ip(8) not found");
    }
    for user in [As::Root, As::User] {
        survives_as("networks", user, "networks", "");
    }
}

/// Sockets of networks where their process lives no more.
#[test]
fn networks_left() {
    for user in [As::Root, As::User] {
        survives_as("networks_left", user, "networks_left", "");
    }
}

/// Programs in sandboxes of bubblewrap: with the job's files to read only, and with a root directory of their own.
#[test]
fn sandboxes() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("sandboxes", user) else {
            continue;
        };
        let work = cpr.work.display();
        let tail = format!("--proc /proc --dev /dev --tmpfs /tmp --bind {work} {work} --chdir {work}");
        let mut whole: Vec<String> = ["--ro-bind", "/", "/"].map(str::to_owned).to_vec();
        let mut part: Vec<String> = ["--ro-bind", "/usr", "/usr"].map(str::to_owned).to_vec();
        for place in ["/bin", "/lib", "/lib64"] {
            match fs::read_link(place) {
                Ok(target) => part.extend(["--symlink".to_owned(), target.display().to_string(), place.to_owned()]),
                Err(_) => part.extend(["--ro-bind-try", place, place].map(str::to_owned)),
            }
        }
        // A program that has a name there only.
        part.extend(["--ro-bind".to_owned(), work.to_string(), "/programs".to_owned()]);
        let here = work.to_string();
        for (root, name, place) in [
            (&mut whole, "threads", here.as_str()),
            (&mut part, "signals", "/programs"),
        ] {
            root.extend(tail.split(' ').map(str::to_owned));
            let options = ["--unshare-all".to_owned(), root.join(" ")].join(" ");
            compile(&cpr, name);
            let works = cpr.command("bwrap").args(options.split(' ')).arg("/bin/true").output();
            if !works.is_ok_and(|output| output.status.success()) {
                skip!("sandboxes", "bwrap(1) not found, or it may not make namespaces");
            }
            let script = cpr.work.join(format!("{name}.sh"));
            let text = format!("#!/bin/sh\nexec bwrap {options} {place}/{name} \"$@\"\n");
            fs::write(&script, text).expect("the test's directory can be written");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
            restarts(&cpr, &script, "");
            cpr.cpr(["verify", "--restore", "again"]).good();
            fs::remove_file(cpr.work.join("go-again")).expect("the victim was told to go on");
            cpr.cpr(["rm", "--force", "again"]).good();
        }
    }
}

/// A program in a container as `runc spec` would have it, of a user's and of root's, by the runtimes that are there.
#[test]
fn containers() {
    let mut done = 0;
    for (user, options, runtime) in [
        (As::User, &["spec", "--rootless"][..], "runc"),
        (As::Root, &["spec"], "runc"),
        (As::Root, &["spec"], "crun"),
    ] {
        let Some(cpr) = Cpr::new("containers", user) else {
            continue;
        };
        let bundle = cpr.work.join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).expect("the test's directory can be written");
        cpr.give(&bundle);
        let spec = cpr.command(runtime).args(options).current_dir(&bundle).output();
        if !spec.is_ok_and(|output| output.status.success()) {
            continue;
        }
        // There is nothing else in there.
        let program = compile_with(&cpr, "threads", "cc", &["-static"]).expect("a compiler");
        fs::copy(&program, bundle.join("rootfs/threads")).expect("the test's directory can be written");
        let place = bundle.join("config.json");
        let text = fs::read(&place).expect("the runtime has written it");
        let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let work = cpr.work.display().to_string();
        let shown = serde_json::json!({"destination": work, "source": work, "type": "none", "options": ["bind"]});
        config["mounts"].as_array_mut().expect("a list").push(shown);
        config["process"]["terminal"] = false.into();
        let mut tell = |program: serde_json::Value| {
            config["process"]["args"] = program;
            fs::write(&place, config.to_string()).expect("the test's directory can be written");
        };
        // Whether there are containers here at all: root's have control groups.
        tell(serde_json::json!(["/threads", format!("{work}/bundle"), ""]));
        let script = cpr.work.join("container.sh");
        let run = format!(
            "{runtime} --root {work}/runtime run cpr-container-{}",
            std::process::id()
        );
        let text = format!("#!/bin/sh\ncd {work}/bundle && exec {run}\n");
        fs::write(&script, text).expect("the test's directory can be written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
        if user == As::Root && !cpr.command(&script).output().is_ok_and(|tried| tried.status.success()) {
            continue;
        }
        tell(serde_json::json!(["/threads", format!("{work}/go-again"), ""]));
        restarts(&cpr, &script, "");
        done += 1;
    }
    if done == 0 {
        skip!(
            "containers",
            "neither runc(8) nor crun(1) found, or they run no containers here"
        );
    }
}

/// A program in a container that root has made with podman(1): of an image, on an overlay, with the runtimes that are
/// there. Podman, its monitor and the program go on together.
#[test]
fn podman() {
    let mut done = 0;
    for runtime in ["crun", "runc"] {
        let Some(cpr) = Cpr::new("podman", As::Root) else {
            return;
        };
        let work = cpr.work.display().to_string();
        let program = compile_with(&cpr, "threads", "cc", &["-static"]).expect("a compiler");
        fs::create_dir(cpr.work.join("rootfs")).expect("the test's directory can be written");
        fs::copy(&program, cpr.work.join("rootfs/threads")).expect("the test's directory can be written");
        let packed = cpr
            .command("tar")
            .args(["-C", "rootfs", "-cf", "image.tar", "."])
            .status();
        assert!(packed.is_ok_and(|status| status.success()), "tar(1) packs an image");
        let podman = format!(
            "podman --root {work}/root --runroot {work}/run --tmpdir {work}/tmp --cgroup-manager cgroupfs \
             --events-backend none --storage-driver overlay --runtime {runtime}"
        );
        // Crun makes none on a machine with control groups of both versions, and runc does not go without.
        let groups = if runtime == "crun" { "--cgroups disabled" } else { "" };
        let run = format!(
            "{podman} run --rm --network none {groups} --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
             --log-driver none -v {work}:{work} cpr-program /threads"
        );
        // What podman mounts there and leaves (its storage, over itself) is no other test's to see.
        let apart = ["-m", "--propagation", "private", "sh", "-c"];
        let shell = |text: String| cpr.command("unshare").args(apart).arg(text).output().expect("a shell");
        let tried = shell(format!(
            "{podman} import -q image.tar cpr-program && touch go && {run} {work}/go ''"
        ));
        if String::from_utf8_lossy(&tried.stdout).lines().any(|line| line == "OK") {
            let script = cpr.work.join("container.sh");
            let text = format!("#!/bin/sh\nexec {run} \"$@\"\n");
            fs::write(&script, text).expect("the test's directory can be written");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
            restarts(&cpr, &script, "");
            is_proven(&cpr, &script, "");
            done += 1;
        }
        shell(format!("{podman} rmi --all --force"));
    }
    if done == 0 {
        skip!("podman", "podman(1) not found, or it runs no containers here");
    }
}

/// Programs that are started with unshare(1) in namespaces of all kinds.
#[test]
fn unshared_programs() {
    for tool in ["unshare", "ip"] {
        if std::process::Command::new(tool).arg("-V").output().is_err() {
            skip!("unshared_programs", "unshare(1) or ip(8) not found");
        }
    }
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("unshared_programs", user) else {
            continue;
        };
        // What is about networks is shown where it is harder: of a user's, which he cannot come back from.
        let names: &[&str] = match user {
            As::Root => &["threads", "signals"],
            As::User => &["threads", "sockets", "tcp", "udp"],
        };
        for &name in names {
            let program = compile(&cpr, name);
            let script = cpr.work.join(format!("{name}.sh"));
            let options = "--user --map-root-user --pid --fork --mount-proc --ipc --uts --net --cgroup";
            let inner = format!("ip link set lo up && exec {} \"$@\"", program.display());
            let text = format!("#!/bin/sh\nexec unshare {options} sh -c '{inner}' - \"$@\"\n");
            fs::write(&script, text).expect("the test's directory can be written");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
            restarts(&cpr, &script, "");
            fs::remove_file(cpr.work.join("go-again")).expect("the victim was told to go on");
            cpr.cpr(["rm", "--force", "again"]).good();
        }
    }
}

/// Huge pages that the machine has for the time of a test.
struct HugePages {
    before: usize,
}

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn number() -> std::io::Result<usize> {
        let text = fs::read_to_string(Self::FILE)?;
        text.trim().parse().map_err(std::io::Error::other)
    }

    /// Has the machine make `count` more of them, where this user may.
    fn make(count: usize) -> std::io::Result<Self> {
        let pages = HugePages {
            before: Self::number()?,
        };
        fs::write(Self::FILE, (pages.before + count).to_string())?;
        match Self::number()? {
            now if now >= pages.before + count => Ok(pages),
            now => Err(std::io::Error::other(format!("there is memory for {now} only"))),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, self.before.to_string());
    }
}

#[test]
fn huge_pages() {
    let pages = match HugePages::make(24) {
        Ok(pages) => pages,
        Err(error) => skip!("huge_pages", "this machine gives no huge pages: {error}"),
    };
    for user in [As::Root, As::User] {
        survives_as("huge_pages", user, "huge", "");
    }
    drop(pages);
}

/// Memory is filled from outside, or in huge pages that it did not ask for, and does not ask for then.
#[test]
fn filled_memory() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("filled_memory", user) else {
            continue;
        };
        restarts(&cpr, &compile(&cpr, "filled"), "");
    }
}

/// A program that is linked in one piece, by two C libraries.
fn linked(test: &str, user: As, compiler: &str, options: &[&str], names: &[&'static str]) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    for name in names {
        let Some(program) = compile_with(&cpr, name, compiler, options) else {
            skip!(test, "there is no {compiler}");
        };
        let victim = Victim::start(&cpr, &program, name, &[]);
        for _ in 0..2 {
            cpr.checkpoint(victim.job, &["--stop"]);
            cpr.restart(victim.job);
        }
        victim.check();
    }
}

/// LBNL-2.2.4B.8
#[test]
fn static_programs_as_user() {
    linked(
        "static_programs_as_user",
        As::User,
        "cc",
        &["-static"],
        &["threads", "tree"],
    );
}

#[test]
fn static_programs_at_any_address_as_root() {
    let test = "static_programs_at_any_address_as_root";
    linked(test, As::Root, "cc", &["-static-pie", "-fPIE"], &["threads", "tree"]);
}

#[test]
fn static_programs_of_another_library_as_user() {
    let test = "static_programs_of_another_library_as_user";
    linked(test, As::User, "musl-gcc", &["-static"], &["tree", "pipes"]);
}

/// LBNL-3.9.10.3.1, LBNL-3.9.10.4.1: an image lists the heap, and the stack of each thread with its pages.
#[test]
fn an_image_lists_heap_and_stacks() {
    let Some(cpr) = Cpr::new("an_image_lists_heap_and_stacks", As::User) else {
        return;
    };
    let victim = Victim::start(&cpr, &compile(&cpr, "threads"), "threads", &[]);
    let image = cpr.checkpoint(victim.job, &[])["image"]
        .as_str()
        .expect("an image")
        .to_owned();
    let listing = &cpr.cpr(["inspect", "--json", &image]).good().json()["manifest"];
    let space = &listing["address_spaces"][0];
    let saved = |address: u64| {
        let found = space["mappings"].as_array().expect("mappings").iter().find(|mapping| {
            let range = mapping["start"].as_u64()..mapping["end"].as_u64();
            Some(address) >= range.start && Some(address) < range.end
        });
        let mapping = found.unwrap_or_else(|| panic!("nothing is mapped at {address:#x}"));
        let extents = mapping["extents"].as_array().expect("extents");
        let bytes: u64 = extents.iter().filter_map(|extent| extent[1].as_u64()).sum();
        assert!(bytes > 0, "nothing is saved of {mapping}");
        mapping["start"].as_u64().expect("a number")
    };
    let (start, end) = (space["layout"]["start_brk"].as_u64(), space["layout"]["brk"].as_u64());
    assert!(start < end, "the heap has a size");
    saved(start.expect("a number"));
    let threads = listing["processes"][0]["threads"].as_array().expect("threads");
    assert!(threads.len() > 2, "{} threads", threads.len());
    let mut stacks: Vec<u64> = threads
        .iter()
        .map(|thread| saved(thread["cpu"]["stack_pointer"].as_u64().expect("a number")))
        .collect();
    stacks.sort_unstable();
    stacks.dedup();
    assert_eq!(stacks.len(), threads.len(), "each thread has its own");
    victim.check();
}

/// LBNL-3.9.8.10.3: a job whose root directory is gone is not restarted, and told why.
#[test]
fn a_root_directory_that_is_gone_is_named() {
    let Some(cpr) = Cpr::new("a_root_directory_that_is_gone_is_named", As::Root) else {
        return;
    };
    let root = cpr.work.join("root");
    std::fs::create_dir(&root).expect("a directory can be made");
    let program = compile_with(&cpr, "timers", "cc", &["-static"]).expect("a compiler");
    std::fs::copy(&program, root.join("timers")).expect("a file can be copied");
    let place = root.display().to_string();
    cpr.run_detached("rooted", &[], &["chroot", &place, "/timers", "/go"]);
    support::wait_until(support::PATIENCE, "it is ready", || {
        cpr.logs("rooted").starts_with(b"READY")
    });
    cpr.checkpoint("rooted", &["--stop"]);
    let away = cpr.work.join("away");
    std::fs::rename(&root, &away).expect("a directory can be renamed");
    let ended = cpr.cpr(["restart", "-d", "rooted"]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains(&place), "{}", ended.stderr);
    std::fs::rename(&away, &root).expect("a directory can be renamed");
    cpr.restart("rooted");
    std::fs::write(root.join("go"), "").expect("a file can be made");
    assert_eq!(
        cpr.wait("rooted"),
        0,
        "{}",
        String::from_utf8_lossy(&cpr.logs("rooted"))
    );
}

/// A reader whose buffer is full: what was written to it and has not arrived is kept, too.
#[test]
fn tcp_with_data_under_way_as_root() {
    survives_as("tcp_with_data_under_way_as_root", As::Root, "tcp", "full");
}

/// Without CAP_NET_ADMIN the reader gets a larger buffer.
#[test]
fn tcp_with_data_under_way_as_user() {
    survives_as("tcp_with_data_under_way_as_user", As::User, "tcp", "full");
}

/// What cannot be checkpointed is told by name, and the job goes on as if nothing had happened.
fn refused_in_the_stop(test: &str, name: &'static str, reason: &str) {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new(test, user) else { continue };
        let victim = Victim::start(&cpr, &compile(&cpr, name), name, &[]);
        for options in [vec!["checkpoint", victim.job], vec!["checkpoint", "--stop", victim.job]] {
            let ended = cpr.cpr(options);
            assert_eq!(ended.code, UNSUPPORTED, "{}", ended.stderr);
            assert!(ended.stderr.contains(reason), "{}", ended.stderr);
        }
        victim.check();
    }
}

#[test]
fn a_blocked_sigtrap_is_refused_and_kept() {
    refused_in_the_stop("a_blocked_sigtrap_is_refused_and_kept", "trapped", "SIGTRAP");
}

#[test]
fn system_calls_that_a_program_answers_are_refused() {
    let test = "system_calls_that_a_program_answers_are_refused";
    refused_in_the_stop(test, "dispatch", "PR_SET_SYSCALL_USER_DISPATCH");
}
