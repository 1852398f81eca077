//! Containers that somebody else runs are saved by their first process.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};

use support::{As, Cpr, PATIENCE, skip, wait_until};

/// `Denied` of docs/exit-codes.md.
const DENIED: i32 = 77;
/// `Unsupported`.
const UNSUPPORTED: i32 = 69;

/// Says how far it has come, and by which number it knows itself.
const COUNTS: &str = r#"
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec pause = {.tv_nsec = 20000000};
    for (int count = 0;; count++) {
        printf("%d of %d\n", count, getpid());
        fflush(stdout);
        nanosleep(&pause, NULL);
    }
}
"#;

/// A container of a runtime, which somebody waits for in the foreground.
struct Container {
    runtime: Child,
    /// Its first process.
    pid: String,
}

impl Container {
    /// None where the runtime is missing, or runs none here.
    fn run(cpr: &Cpr, runtime: &str) -> Option<Container> {
        let bundle = cpr.work.join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).expect("the test's directory can be written");
        let spec = Command::new(runtime).arg("spec").current_dir(&bundle).output();
        if !spec.is_ok_and(|output| output.status.success()) {
            return None;
        }
        fs::write(cpr.work.join("counts.c"), COUNTS).expect("the test's directory can be written");
        let program = bundle.join("rootfs/counts").display().to_string();
        cpr.program(&["cc", "-static", "-o", &program, "counts.c"]).good();
        let place = bundle.join("config.json");
        let text = fs::read(&place).expect("the runtime has written it");
        let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/counts"]);
        fs::write(&place, config.to_string()).expect("the test's directory can be written");
        let output = fs::File::create(cpr.work.join("output")).expect("the test's directory can be written");
        let name = format!("cpr-alone-{}", std::process::id());
        let root = cpr.work.join("runtime").display().to_string();
        let mut command = Command::new(runtime);
        command.args(["--root", &root, "run", &name]).current_dir(&bundle);
        // The runtime copies what comes through a pipe: the program's output leads to outside.
        let runs = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            .spawn()
            .ok()?;
        let mut container = Container {
            runtime: runs,
            pid: String::new(),
        };
        let begun = support::poll(PATIENCE, || {
            let state = Command::new(runtime).args(["--root", &root, "state", &name]).output();
            let state: Option<serde_json::Value> = serde_json::from_slice(&state.ok()?.stdout).ok();
            let has_ended = container.runtime.try_wait().ok()?.is_some();
            let runs = state.filter(|state| state["status"] == "running");
            match runs {
                Some(state) => Some(state["pid"].as_u64()),
                None => has_ended.then_some(None),
            }
        });
        container.pid = begun.flatten()?.to_string();
        Some(container)
    }
}

/// Ends a process.
fn kill(pid: &str) {
    if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

impl Container {
    /// Another program in it, as runtimes start them: who waits for it, and its PID.
    fn exec(&self) -> (Child, String) {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = of(&self.pid).expect("it lives");
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &self.pid, "-p", "sleep", "1000"]);
        let child = enter.stdin(Stdio::null()).spawn().expect("nsenter can be run");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let inside = support::poll(PATIENCE, || {
            let pid = fs::read_to_string(&children).ok()?.trim().to_owned();
            (of(&pid)? == own).then_some(pid)
        });
        (child, inside.expect("there is a process from outside"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.runtime.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill(&self.pid);
        }
        let _ = self.runtime.wait();
    }
}

/// The last whole line that a job has said: how far it is, and who it is.
fn last(cpr: &Cpr, job: &str) -> Option<(u64, String)> {
    let said = String::from_utf8_lossy(&cpr.logs(job)).into_owned();
    let line = said.lines().last()?.to_owned();
    let (count, who) = line.split_once(" of ")?;
    Some((count.parse().ok()?, who.to_owned()))
}

/// It goes on beside a checkpoint; from the image a job goes on that is the same inside: the first process of its PID
/// namespace, in its own mounts. What it prints goes to the job's log, and it is saved again as any job.
#[test]
fn a_container_is_saved_by_its_first_process() {
    let test = "a_container_is_saved_by_its_first_process";
    let mut done = 0;
    for runtime in ["runc", "crun"] {
        let Some(cpr) = Cpr::new(test, As::Root) else { return };
        let Some(container) = Container::run(&cpr, runtime) else {
            continue;
        };
        let user = Cpr::new(test, As::User).expect("root can be a user");
        let refused = user.cpr(["checkpoint", "-o", "image.cpr", &container.pid]);
        assert_eq!(refused.code, DENIED, "{}", refused.stderr);
        // What is in there from outside would be lost with it.
        let (mut waits, stranger) = container.exec();
        for arguments in [&["check"][..], &["checkpoint", "--stop", "-o", "image.cpr"]] {
            let refused = cpr.cpr(arguments.iter().chain([&container.pid.as_str()]));
            let said = [refused.stdout.as_slice(), refused.stderr.as_bytes()].concat();
            let said = String::from_utf8_lossy(&said);
            assert_eq!(refused.code, UNSUPPORTED, "{said}");
            assert!(
                said.contains(&format!("process {stranger}")) && said.contains("from outside"),
                "{said}"
            );
        }
        kill(&stranger);
        waits.wait().expect("it is ours");
        cpr.cpr(["check", &container.pid]).good();
        cpr.cpr(["checkpoint", "-o", "on.cpr", &container.pid]).good();
        cpr.cpr(["checkpoint", "--stop", "-o", "image.cpr", &container.pid])
            .good();
        drop(container);
        cpr.cpr(["verify", "--restore", "image.cpr"]).good();
        for namespace in ["never", "always"] {
            let options = [
                "restart",
                "-d",
                "--namespace",
                namespace,
                "--name",
                namespace,
                "image.cpr",
            ];
            cpr.cpr(options).good();
            let runs_on = |from: u64| {
                wait_until(PATIENCE, "it counts on", || {
                    last(&cpr, namespace).is_some_and(|(count, who)| count > from && who == "1")
                });
            };
            runs_on(0);
            cpr.checkpoint(namespace, &["--stop"]);
            let (count, _) = last(&cpr, namespace).expect("it has said something");
            cpr.restart(namespace);
            runs_on(count);
            cpr.cpr(["kill", "-s", "KILL", namespace]).good();
            cpr.wait(namespace);
        }
        done += 1;
    }
    if done == 0 {
        skip!(
            test,
            "neither runc(8) nor crun(1) found, or they run no containers here"
        );
    }
}
