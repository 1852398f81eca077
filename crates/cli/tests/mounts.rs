//! What is mounted on the machine comes and goes, whatever jobs do.

mod support;

use std::process::{Child, Command, Stdio};

use support::{As, Cpr, Ended, PATIENCE, finish, skip, wait_until};

/// Mounts and unmounts memory at a directory as fast as it can.
const BUSY: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
place = sys.argv[1].encode()
while True:
    if libc.mount(b"busy", place, b"tmpfs", 0, None) != 0 or libc.umount2(place, 2) != 0:
        sys.exit(f"error {ctypes.get_errno()}")
"#;

/// A mount namespace that stands for a machine, as long as it lives.
struct Machine<'a>(&'a Cpr, Child);

impl<'a> Machine<'a> {
    /// Its mounts show those of jobs, and the other way round, as `propagation` says; `command` runs in it.
    fn new(cpr: &'a Cpr, propagation: &str, command: &[&str]) -> Machine<'a> {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "--propagation", propagation]).args(command);
        let child = unshare.current_dir(&cpr.work).stdin(Stdio::null()).spawn();
        let machine = Machine(cpr, child.expect("unshare can be run"));
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        wait_until(PATIENCE, "there is a machine", || {
            of(&machine.1.id().to_string()).is_some_and(|theirs| Some(theirs) != of("self"))
        });
        machine
    }

    /// Runs a command there, as root.
    fn root(&self, command: &[&str]) -> Ended {
        let mut enter = self.enter();
        enter.args(command);
        finish(&self.0.work, enter, PATIENCE)
    }

    /// Runs `cpr` there, as the user.
    fn cpr(&self, arguments: &[&str]) -> Ended {
        let plain = self.0.command(self.0.binary());
        let mut enter = self.enter();
        enter.arg(plain.get_program()).args(plain.get_args()).args(arguments);
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => enter.env(name, value),
                None => enter.env_remove(name),
            };
        }
        finish(&self.0.work, enter, PATIENCE)
    }

    fn enter(&self) -> Command {
        let mut enter = Command::new("nsenter");
        let work = format!("--wdns={}", self.0.work.display());
        enter.args(["-t", &self.1.id().to_string(), "-m", &work, "--"]);
        enter
    }

    /// What is mounted in namespaces of a job's own, by its newest image.
    fn mounted(&self, job: &str) -> Vec<serde_json::Value> {
        let image = self.cpr(&["inspect", "--json", job]).good().json();
        let namespaces = image["manifest"]["mount_namespaces"].as_array().cloned();
        namespaces.unwrap_or_default()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

/// Mounts that come and go while a job is saved are not taken for the job's own, neither in the namespace it was started
/// in nor in those that it has made: one that is a copy, and one in which it has mounted something.
fn comes_and_goes(test: &str, user: As) {
    if Cpr::new(test, As::Root).is_none() {
        return;
    }
    let Some(cpr) = Cpr::new(test, user) else { return };
    for name in ["comes", "tree"] {
        std::fs::create_dir(cpr.work.join(name)).expect("a directory can be made");
        cpr.give(&cpr.work.join(name));
    }
    let place = cpr.work.join("comes").display().to_string();
    let machine = Machine::new(&cpr, "shared", &["python3", "-c", BUSY, &place]);
    let unshare = match user {
        As::Root => "unshare -m --propagation slave",
        As::User => "unshare -Urm --propagation slave",
    };
    let job = format!(
        "{unshare} sleep 1000 & \
         exec {unshare} sh -c 'mount -t tmpfs own tree && echo READY && exec sleep 1001'"
    );
    machine
        .cpr(&["run", "-d", "--name", "job", "--", "sh", "-c", &job])
        .good();
    wait_until(PATIENCE, "the job has mounted something", || {
        cpr.logs("job") == b"READY\n"
    });
    wait_until(PATIENCE, "both have namespaces of their own", || {
        machine.cpr(&["checkpoint", "job"]).good();
        machine.mounted("job").len() == 2
    });
    for _ in 0..8 {
        machine.cpr(&["check", "job"]).good();
        machine.cpr(&["checkpoint", "job"]).good();
        let own: Vec<usize> = machine
            .mounted("job")
            .iter()
            .map(|namespace| {
                let tree = namespace["tree"].as_array().cloned().unwrap_or_default();
                tree.iter()
                    .filter(|point| point["mounted"]["memory"].is_object())
                    .count()
            })
            .collect();
        assert_eq!(own.iter().sum::<usize>(), 1, "{own:?}");
    }
    machine.cpr(&["checkpoint", "--stop", "job"]).good();
    machine.cpr(&["restart", "-d", "job"]).good();
    machine.cpr(&["checkpoint", "--stop", "job"]).good();
}

#[test]
fn mounts_of_the_machine_come_and_go_root() {
    comes_and_goes("mounts_of_the_machine_come_and_go_root", As::Root);
}

#[test]
fn mounts_of_the_machine_come_and_go_user() {
    comes_and_goes("mounts_of_the_machine_come_and_go_user", As::User);
}

/// What was mounted when a job was started is not the job's when it is gone outside: on a machine whose mounts show
/// nobody's, the job has it still.
#[test]
fn what_was_there_before_a_job_is_not_its_own() {
    let test = "what_was_there_before_a_job_is_not_its_own";
    if Cpr::new(test, As::Root).is_none() {
        skip!(test, "needs root");
    }
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new(test, user) else { return };
        std::fs::create_dir(cpr.work.join("there")).expect("a directory can be made");
        let machine = Machine::new(&cpr, "private", &["sleep", "1000"]);
        machine.root(&["mount", "-t", "tmpfs", "early", "there"]).good();
        machine
            .cpr(&["run", "-d", "--name", "job", "--", "sleep", "1000"])
            .good();
        machine.root(&["umount", "there"]).good();
        machine.cpr(&["checkpoint", "job"]).good();
        assert_eq!(machine.mounted("job"), Vec::<serde_json::Value>::new());
        machine.cpr(&["checkpoint", "--stop", "job"]).good();
        machine.cpr(&["restart", "-d", "job"]).good();
        machine.cpr(&["checkpoint", "--stop", "job"]).good();
    }
}
