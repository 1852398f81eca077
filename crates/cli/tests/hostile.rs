//! What goes wrong around `cpr`: damaged images, full disks, killed commands, restless targets, other users.
//!
//! Whatever happens, a job runs on or comes back, no process is left half stopped or half made, and no broken image is
//! taken for a good one. Moments are drawn from a seed that each test prints; `GRIDCPR_SEED=N` repeats them as far as
//! the machine does.

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{As, Cpr, Ended, am_root, finish, poll, skip, wait_until};

/// How long any one command may take.
const SOON: Duration = Duration::from_secs(20);
/// The name of the job in each test.
const JOB: &str = "job";
/// Debian's interpreter: one in a home directory may start processes of its own.
const PYTHON: &str = "/usr/bin/python3";
/// `Damaged`, `Gone`, `Unsupported`, `NoSpace`, `Busy`, `Denied`, `Incompatible` and `NotFound` of docs/exit-codes.md.
const DAMAGED: i32 = 65;
const NOT_FOUND: i32 = 66;
const GONE: i32 = 68;
const UNSUPPORTED: i32 = 69;
const NO_SPACE: i32 = 73;
const BUSY: i32 = 75;
const DENIED: i32 = 77;
const INCOMPATIBLE: i32 = 78;
/// An ordinary user that is not the one of `As::User`.
const STRANGER: u32 = 65533;

/// Counts to the first argument into the file `out`, one line every five milliseconds; the second is ballast in MiB.
const COUNT: &str = r#"
import os, sys, time
ballast = os.urandom(int(sys.argv[2]) << 20)
with open("out", "w", buffering=1) as out:
    for number in range(int(sys.argv[1])):
        out.write("%d\n" % number)
        time.sleep(0.005)
"#;

/// Does one thing in a tight loop and counts it in the file `out`, until there is a file `stop`.
const RESTLESS: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static void *nothing(void *argument) { return argument; }
int main(int argc, char **argv) {
    int out = open("out", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (argc < 3 || out < 0) return 2;
    for (long number = atol(argv[2]);; number++) {
        char line[32];
        int length = snprintf(line, sizeof line, "%ld\n", number);
        if (write(out, line, length) != length) return 3;
        if (access("stop", F_OK) == 0) return 0;
        if (!strcmp(argv[1], "fork")) {
            pid_t child = fork();
            if (child < 0) return 4;
            if (child == 0) _exit(7);
            int status;
            if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7) return 5;
        } else if (!strcmp(argv[1], "thread")) {
            pthread_t thread;
            void *result = NULL;
            if (pthread_create(&thread, NULL, nothing, line) || pthread_join(thread, &result)) return 6;
            if (result != line) return 7;
        } else if (!strcmp(argv[1], "exec")) {
            char next[32];
            snprintf(next, sizeof next, "%ld", number + 1);
            close(out);
            execl(argv[0], argv[0], argv[1], next, (char *)NULL);
            return 8;
        } else {
            usleep(2000);
        }
    }
}
"#;

/// Random numbers that can be had again (xorshift64*).
struct Moments(u64);

impl Moments {
    fn new(test: &str) -> Moments {
        let seed = std::env::var("GRIDCPR_SEED").ok().and_then(|s| s.parse().ok());
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| d.as_nanos() as u64) | 1
        };
        let seed = seed.unwrap_or_else(clock).max(1);
        println!("{test}: GRIDCPR_SEED={seed}");
        Moments(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit.max(1)
    }

    fn delay(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64))
    }
}

/// The same command without the descriptors that whoever runs the tests has left open: a pipe of theirs would become
/// part of the job.
fn clean(command: &Command) -> Command {
    let script = r#"for f in /proc/$$/fd/*; do f=${f##*/}; [ "$f" -le 2 ] || eval "exec $f>&-"; done; exec "$0" "$@""#;
    let mut cleaned = Command::new("bash");
    cleaned
        .args(["-c", script])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => cleaned.env(name, value),
            None => cleaned.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        cleaned.current_dir(directory);
    }
    cleaned
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn kill(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    #[track_caller]
    fn code(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let ended = poll(SOON, || self.0.try_wait().expect("a child can be waited for"));
        let status = ended.unwrap_or_else(|| panic!("a command did not end in {} s", SOON.as_secs()));
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `cpr` for one test, and what the tests look at.
struct Lab {
    cpr: Cpr,
}

impl Lab {
    fn new(test: &str, user: As) -> Option<Lab> {
        let lab = Lab {
            cpr: Cpr::new(test, user)?,
        };
        fs::write(lab.cpr.work.join("count.py"), COUNT).expect("the test's directory can be written");
        Some(lab)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cpr.work.join(name)
    }

    fn command<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.cpr.command(self.cpr.binary());
        command.args(arguments.into_iter().map(Into::into));
        clean(&command)
    }

    /// Runs `cpr`, at most for [`SOON`].
    #[track_caller]
    fn run<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        finish(&self.cpr.work, self.command(arguments), SOON)
    }

    fn spawn<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Killed {
        spawn(self.command(arguments))
    }

    /// Starts a program that is no job.
    fn bare(&self, arguments: &[&str]) -> Killed {
        let mut command = self.cpr.command(arguments[0]);
        command.args(&arguments[1..]);
        spawn(clean(&command))
    }

    #[track_caller]
    fn start(&self, options: &[&str], command: &[&str]) {
        let mut arguments = vec!["run", "-d", "--name", JOB];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(command);
        self.run(arguments).good();
    }

    /// Starts a job that counts, and waits until it does.
    #[track_caller]
    fn count(&self, options: &[&str], to: u32, mebibytes: u32) {
        self.start(options, &[PYTHON, "count.py", &to.to_string(), &mebibytes.to_string()]);
        self.await_count(5);
    }

    /// The compiled [`RESTLESS`]; none where there is no compiler.
    fn restless(&self) -> Option<String> {
        fs::write(self.file("restless.c"), RESTLESS).expect("the test's directory can be written");
        let program = self.file("restless").display().to_string();
        let built = Command::new("cc")
            .args(["-O1", "-pthread", "-o", &program, "restless.c"])
            .current_dir(&self.cpr.work)
            .stdin(Stdio::null())
            .status();
        built.is_ok_and(|s| s.success()).then_some(program)
    }

    fn lines(&self) -> usize {
        fs::read(self.file("out")).map_or(0, |b| b.iter().filter(|b| **b == b'\n').count())
    }

    #[track_caller]
    fn await_count(&self, lines: usize) {
        wait_until(SOON, &format!("{lines} lines are written"), || self.lines() >= lines);
    }

    /// Requires that the job goes on.
    #[track_caller]
    fn require_progress(&self) {
        self.await_count(self.lines() + 3);
    }

    /// Requires that the output is every number from 0 on, `count` of them where that is known.
    #[track_caller]
    fn require_output(&self, count: Option<usize>) {
        let text = fs::read_to_string(self.file("out")).expect("the output can be read");
        for (number, line) in text.lines().enumerate() {
            assert_eq!(line, number.to_string(), "line {number} of the output");
        }
        if let Some(count) = count {
            assert_eq!(text.lines().count(), count, "lines of output");
        }
    }

    /// Process ID of the job's first process, seen from here.
    #[track_caller]
    fn pid(&self) -> i32 {
        let jobs = self.run(["ps", "--json"]).good().json();
        let jobs = jobs["jobs"].as_array().expect("a list of jobs");
        let job = jobs.iter().find(|j| j["name"] == JOB).expect("the job lives");
        job["pid"].as_i64().expect("a PID") as i32
    }

    /// PIDs of everything that this test has started and that has not ended.
    fn left(&self) -> Vec<i32> {
        let mark = format!("GRIDCPR_STATE_DIR={}", self.cpr.state_dir.display());
        let ours = |directory: &Path| {
            let environment = fs::read(directory.join("environ")).unwrap_or_default();
            let here = fs::read_link(directory.join("cwd")).is_ok_and(|d| d == self.cpr.work);
            here || environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").expect("/proc can be read").flatten();
        entries
            .filter(|entry| ours(&entry.path()))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    #[track_caller]
    fn require_nothing_left(&self, when: &str) {
        let none = poll(Duration::from_secs(10), || self.left().is_empty().then_some(()));
        if none.is_none() {
            let names: Vec<String> = self.left().iter().map(|p| describe(*p)).collect();
            panic!("{when}: left behind: {names:?}");
        }
    }

    fn images(&self) -> Vec<PathBuf> {
        let mut images: Vec<PathBuf> = names(&self.image_directory())
            .into_iter()
            .filter(|n| n.ends_with(".cpr"))
            .map(|n| self.image_directory().join(n))
            .collect();
        images.sort();
        images
    }

    fn image_directory(&self) -> PathBuf {
        self.cpr.state_dir.join("jobs").join(JOB).join("images")
    }

    /// A checkpoint into a file that ends the job.
    #[track_caller]
    fn stop_into(&self, name: &str) -> PathBuf {
        let image = self.file(name);
        self.run([
            "checkpoint".into(),
            "--stop".into(),
            "-o".into(),
            image.clone().into_os_string(),
            JOB.into(),
        ])
        .good();
        image
    }
}

fn spawn(mut command: Command) -> Killed {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Killed(command.spawn().expect("a program can be started"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn partial(directory: &Path) -> Vec<String> {
    names(directory).into_iter().filter(|n| n.ends_with(".part")).collect()
}

fn status(pid: i32, task: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

fn describe(pid: i32) -> String {
    format!("{pid} {} {}", status(pid, pid, "Name"), status(pid, pid, "State"))
}

fn tasks(pid: i32) -> Vec<i32> {
    names(Path::new(&format!("/proc/{pid}/task")))
        .iter()
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// Why the process is not as free as it was; none when it is: nobody traces it and no thread is stopped.
fn disturbed(pid: i32) -> Option<String> {
    let tasks = tasks(pid);
    if tasks.is_empty() {
        return Some(format!("process {pid} has ended"));
    }
    tasks.into_iter().find_map(|task| {
        let (state, tracer) = (status(pid, task, "State"), status(pid, task, "TracerPid"));
        let free = tracer == "0" && !state.starts_with(['t', 'T']);
        (!free && !state.is_empty()).then(|| format!("thread {task} is {state:?}, traced by {tracer}"))
    })
}

#[track_caller]
fn require_undisturbed(pid: i32) {
    if poll(Duration::from_secs(10), || disturbed(pid).is_none().then_some(())).is_none() {
        panic!("{:?}", disturbed(pid));
    }
}

fn maps(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives")
}

/// Part of `bytes` changed in one bit.
fn flipped(bytes: &[u8], at: usize, bit: u64) -> Vec<u8> {
    let mut altered = bytes.to_vec();
    altered[at] ^= 1 << bit;
    altered
}

/// LBNL-3.6.4.5.2: a damaged image is recognised, by every command that reads it, before anything runs.
fn damaged_images_start_nothing(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    let mut moments = Moments::new(test);
    lab.count(&[], 1_000_000, 1);
    let good = fs::read(lab.stop_into("good.cpr")).expect("the image can be read");
    lab.require_nothing_left("after the checkpoint");
    let jobs = lab.run(["ps", "-aq"]).good().text();
    let length = good.len();
    let cut = |to: usize| (format!("cut at {to}"), "truncated", good[..to].to_vec());
    let mut cases = vec![
        ("empty".to_owned(), "empty", Vec::new()),
        (
            "foreign".to_owned(),
            "not an image",
            fs::read("/bin/ls").expect("ls is there"),
        ),
        cut(length / 3),
        cut(length - 1),
        cut(length - 4096),
    ];
    for _ in 0..16 {
        let at = moments.below(length as u64) as usize;
        let bit = moments.below(8);
        cases.push((
            format!("bit {bit} of byte {at} of {length}"),
            "",
            flipped(&good, at, bit),
        ));
    }
    let path = text(&lab.file("damaged.cpr"));
    let mut causes = BTreeSet::new();
    for (what, message, bytes) in &cases {
        fs::write(&path, bytes).expect("the test's directory can be written");
        lab.cpr.give(Path::new(&path));
        for arguments in [&["verify", &path][..], &["inspect", &path], &["restart", "-d", &path]] {
            let ended = lab.run(arguments);
            let context = format!("{what}: {arguments:?} gave {}: {}", ended.code, ended.stderr);
            // What an image lists is sound where only its page data are not.
            let allowed: &[i32] = match (arguments[0], message.is_empty()) {
                ("inspect", true) => &[0, DAMAGED, INCOMPATIBLE],
                (_, true) => &[DAMAGED, INCOMPATIBLE],
                _ => &[DAMAGED],
            };
            assert!(allowed.contains(&ended.code), "{context}");
            assert!(ended.code == 0 || ended.stderr.starts_with("cpr: error: "), "{context}");
            assert!(ended.stderr.contains(message), "{context}");
            if !message.is_empty() {
                causes.insert(ended.stderr.clone());
            }
        }
        lab.require_nothing_left(what);
    }
    assert!(causes.len() >= 3, "three causes, three messages: {causes:?}");
    assert_eq!(lab.run(["ps", "-aq"]).good().text(), jobs, "no job was made");
}

/// A full disk costs the image and not the job.
#[test]
fn a_full_disk_costs_only_the_image() {
    const TEST: &str = "a_full_disk_costs_only_the_image";
    let Some(lab) = Lab::new(TEST, As::Root) else { return };
    let mount = "mount -t tmpfs -o size=3m,mode=700 none \"$GRIDCPR_STATE_DIR\"";
    let inside = |script: &str| {
        let mut command = lab.cpr.command("unshare");
        command.args(["-m", "--propagation", "private", "bash", "-c", script, "bash"]);
        command.arg(lab.cpr.binary());
        finish(&lab.cpr.work, clean(&command), SOON * 3)
    };
    if inside(mount).code != 0 {
        skip!(TEST, "no mount namespaces here");
    }
    // The state directory is the small disk, hidden from all others; a second image goes there by name.
    let script = format!(
        r#"{mount} || exit 90
        set -- "$1"; exe=$1; cpr() {{ timeout 20 "$exe" "$@"; }}
        cpr run -d --name job -- {PYTHON} count.py 1000000 8 || exit 91
        for i in $(seq 500); do [ -s out ] && break; sleep 0.01; done
        lines() {{ wc -l <out; }}
        onward() {{ a=$(lines); for i in $(seq 500); do [ $(lines) -gt $((a + 3)) ] && return; sleep 0.01; done; exit 92; }}
        for where in "" "-o $GRIDCPR_STATE_DIR/other.cpr"; do
            cpr checkpoint job $where; echo "full $?"
            onward
        done
        find "$GRIDCPR_STATE_DIR" -name '*.part' -o -name '*.cpr'
        dd if=/dev/zero of="$GRIDCPR_STATE_DIR/ballast" bs=1k 2>/dev/null
        cpr checkpoint job; echo "brim $?"
        onward
        rm "$GRIDCPR_STATE_DIR/ballast"
        mount -o remount,size=64m "$GRIDCPR_STATE_DIR" || exit 93
        cpr checkpoint job -q; echo "room $?"
        cpr verify job -q; echo "good $?"
        find "$GRIDCPR_STATE_DIR" -name '*.part'
        onward
        cpr kill -s KILL job -q; exit 0"#
    );
    let ended = inside(&script);
    assert_eq!(ended.code, 0, "{}{}", ended.text(), ended.stderr);
    let lines: Vec<String> = ended
        .text()
        .lines()
        .filter(|l| {
            ["full", "brim", "room", "good"].iter().any(|w| l.starts_with(w))
                || l.contains(".part")
                || l.starts_with("/")
        })
        .map(str::to_owned)
        .collect();
    let full = format!("full {NO_SPACE}");
    let expected = [
        full.as_str(),
        full.as_str(),
        &format!("brim {NO_SPACE}"),
        "room 0",
        "good 0",
    ];
    let lines: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .filter(|l| !l.ends_with("/000001.cpr"))
        .collect();
    assert_eq!(lines, expected, "{}{}", ended.text(), ended.stderr);
    lab.require_output(None);
}

/// Kills `cpr checkpoint` with SIGKILL at thirty moments.
fn a_killed_checkpoint_does_not_hurt_the_job(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    let Some(program) = lab.restless() else {
        skip!(test, "no C compiler")
    };
    let mut moments = Moments::new(test);
    lab.start(&[], &[&program, "sleep", "0"]);
    lab.await_count(5);
    let pid = lab.pid();
    let before = maps(pid);
    let begun = Instant::now();
    lab.run(["checkpoint", JOB]).good();
    let usual = begun.elapsed();
    assert_eq!(maps(pid), before, "after an ordinary checkpoint");
    for round in 0..30 {
        let delay = moments.delay(usual * 6 / 5);
        let mut command = lab.spawn(["checkpoint", JOB]);
        std::thread::sleep(delay);
        command.kill();
        require_undisturbed(pid);
        lab.require_progress();
        // Its worker finishes what it has begun.
        let next = poll(SOON, || {
            Some(lab.run(["checkpoint", JOB])).filter(|e| round % 5 != 4 || e.code != BUSY)
        });
        let next = next.expect("the job is not busy for ever");
        assert!([0, BUSY].contains(&next.code), "after {delay:?}: {}", next.stderr);
    }
    let last = poll(SOON, || Some(lab.run(["checkpoint", JOB])).filter(|e| e.code != BUSY));
    last.expect("the job is not busy for ever").good();
    require_undisturbed(pid);
    assert_eq!(maps(pid), before, "after thirty killed commands");
    assert_eq!(partial(&lab.image_directory()), Vec::<String>::new());
    for image in lab.images() {
        lab.run(["verify", &text(&image)]).good();
    }
    fs::write(lab.file("stop"), "").expect("the test's directory can be written");
    assert_eq!(lab.cpr.wait(JOB), 0);
    lab.require_output(None);
}

/// A checkpoint into a pipe that nobody reads stops the job until the command ends; then the job goes on, though it was
/// to end (LBNL-3.6.4.2 asks for its end only when the image is complete).
fn a_checkpoint_nobody_waits_for_is_given_up(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    lab.count(&[], 1_000_000, 200);
    let pid = lab.pid();
    let before = maps(pid);
    let (unread, pipe) = std::io::pipe().expect("a pipe can be made");
    let mut command = lab.command(["checkpoint", "--stop", "-o", "-", JOB]);
    command.stdin(Stdio::null()).stdout(pipe).stderr(Stdio::null());
    let mut command = Killed(command.spawn().expect("a program can be started"));
    wait_until(SOON, "the job is stopped", || disturbed(pid).is_some());
    let lines = lab.lines();
    command.kill();
    require_undisturbed(pid);
    lab.await_count(lines + 3);
    assert_eq!(maps(pid), before);
    drop(unread);
    assert_eq!(lab.images(), Vec::<PathBuf>::new());
    lab.run(["checkpoint", "--stop", JOB]).good();
    assert_eq!(lab.images().len(), 1);
}

/// A job whose init is killed while it is being saved has ended, and that is what the command says: the kernel kills the
/// checkpoint's worker with everything else in the job's PID namespace.
fn a_job_that_is_killed_during_its_checkpoint(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    lab.count(&[], 1_000_000, 200);
    let pid = lab.pid();
    let state = fs::read(lab.cpr.state_dir.join("jobs").join(JOB).join("state.json")).expect("the job has a state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("the state is JSON");
    let init = state["init"]["pid"].to_string();
    let (unread, pipe) = std::io::pipe().expect("a pipe can be made");
    let mut command = lab.command(["checkpoint", "--stop", "-o", "-", JOB]);
    command.stdin(Stdio::null()).stdout(pipe).stderr(Stdio::piped());
    let mut command = Killed(command.spawn().expect("a program can be started"));
    // It goes on only when somebody reads the image.
    wait_until(SOON, "the job is stopped", || disturbed(pid).is_some());
    let killed = lab.cpr.program(&["kill", "-KILL", &init]);
    assert_eq!(killed.code, 0, "{}", killed.stderr);
    let ended = poll(SOON, || command.0.try_wait().expect("a child can be waited for"));
    let mut said = String::new();
    let errors = command.0.stderr.as_mut().expect("it was made with a pipe");
    errors.read_to_string(&mut said).expect("it has ended");
    assert_eq!(ended.and_then(|status| status.code()), Some(GONE), "{said}");
    assert!(said.contains("the job ended while it was being saved"), "{said}");
    drop(unread);
    assert_ne!(lab.cpr.wait(JOB), 0);
    lab.require_nothing_left("after the end of the job");
}

/// A job is more than its first process: what a daemon leaves behind is checkpointed and restarted.
fn a_daemon_outlives_its_starter(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    let script = format!("setsid {PYTHON} count.py 1000000 0 </dev/null >/dev/null 2>&1 & exit 3");
    lab.start(&[], &["bash", "-c", &script]);
    lab.await_count(5);
    wait_until(SOON, "the starter has ended", || {
        fs::read_to_string(format!("/proc/{}/comm", lab.pid())).is_ok_and(|name| name.trim() == "python3")
    });
    lab.run(["checkpoint", JOB]).good();
    lab.require_progress();
    lab.run(["checkpoint", "--stop", JOB]).good();
    lab.require_nothing_left("after the checkpoint");
    lab.run(["restart", "-d", JOB]).good();
    lab.require_progress();
    lab.run(["kill", "--signal", "KILL", JOB]).good();
    lab.require_output(None);
}

/// What a checkpoint that was killed before it could clean up has left is removed by the next.
fn left_over_parts_are_removed(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&[], 1_000_000, 0);
    lab.run(["checkpoint", JOB]).good();
    let stale = lab.image_directory().join(".000002.cpr.0123abcd.part");
    let other = lab.image_directory().join(".notes.part");
    for path in [&stale, &other] {
        fs::write(path, "half").expect("the image directory can be written");
        lab.cpr.give(path);
    }
    lab.run(["checkpoint", JOB]).good();
    assert_eq!(
        partial(&lab.image_directory()),
        [".notes.part"],
        "ours is removed, what is not ours stays"
    );
}

/// Kills `cpr restart` with SIGKILL at sixteen moments, first once the job runs again, and calls `judge` each time.
fn killed_restarts(test: &str, lab: &Lab, image: &Path, judge: impl Fn(&str)) {
    let mut moments = Moments::new(test);
    let image = text(image);
    lab.require_nothing_left("before the first restart");
    let mut usual = Duration::ZERO;
    for round in 0..16 {
        let before = lab.lines();
        let begun = Instant::now();
        let mut command = lab.spawn(["restart", &image]);
        let mut delay = moments.delay(usual * 5 / 4);
        if round == 0 {
            wait_until(SOON, "the job runs again", || {
                let ended = command.0.try_wait().expect("a child can be waited for");
                assert!(ended.is_none(), "the restart has failed: {ended:?}");
                lab.lines() > before
            });
            usual = begun.elapsed();
            delay = usual;
        } else {
            std::thread::sleep(delay);
        }
        command.kill();
        judge(&format!("round {round}, killed after {delay:?} of {usual:?}"));
        lab.require_output(None);
    }
    // The image is as good as before, and nothing is in its way.
    lab.run(["restart", "-d", &image]).good();
    lab.require_progress();
    lab.require_output(None);
}

fn a_killed_restart_leaves_nothing(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    lab.count(&[], 1_000_000, 4);
    let image = lab.stop_into("image.cpr");
    killed_restarts(test, &lab, &image, |when| lab.require_nothing_left(when));
}

/// Without a namespace that ends with its init, a job that runs already outlives the command; one that is not complete
/// never runs.
#[test]
fn a_killed_restart_without_namespace_leaves_nothing_half_made() {
    const TEST: &str = "a_killed_restart_without_namespace_leaves_nothing_half_made";
    let Some(lab) = Lab::new(TEST, As::Root) else { return };
    let process = lab.bare(&[PYTHON, "count.py", "1000000", "4"]);
    lab.await_count(5);
    let image = lab.file("image.cpr");
    let pid = process.pid();
    lab.run(["checkpoint", "--stop", "-o", &text(&image), &pid.to_string()])
        .good();
    drop(process);
    killed_restarts(TEST, &lab, &image, |when| {
        let whole = || disturbed(pid).is_none() && lab.left() == [pid];
        let settled = poll(Duration::from_secs(10), || {
            let left = lab.left();
            if left.is_empty() {
                return Some(());
            }
            let lines = lab.lines();
            std::thread::sleep(Duration::from_millis(30));
            (whole() && lab.lines() > lines).then_some(())
        });
        let names: Vec<String> = lab.left().iter().map(|p| describe(*p)).collect();
        assert!(settled.is_some(), "{when}: neither gone nor whole: {names:?}");
        lab.cpr.crash();
        lab.require_nothing_left(when);
        // Whoever inherits orphans here may take its time to collect them.
        let path = format!("/proc/{pid}");
        wait_until(SOON, "the PID is free", || !Path::new(&path).exists());
    });
}

/// Twenty checkpoints of a job that never holds still.
fn restless(test: &str, user: As, mode: &str) {
    let Some(lab) = Lab::new(test, user) else { return };
    let Some(program) = lab.restless() else {
        skip!(test, "no C compiler")
    };
    lab.start(&[], &[&program, mode, "0"]);
    lab.await_count(20);
    let mut good = 0;
    for round in 0..20 {
        let ended = lab.run(["checkpoint", JOB]);
        assert!(
            [0, GONE].contains(&ended.code),
            "round {round} of {mode}: {}: {}",
            ended.code,
            ended.stderr
        );
        good += u32::from(ended.code == 0);
        lab.require_progress();
    }
    assert!(good > 0, "not one of twenty checkpoints was made");
    for image in lab.images() {
        lab.run(["verify", &text(&image)]).good();
    }
    assert_eq!(partial(&lab.image_directory()), Vec::<String>::new());
    fs::write(lab.file("stop"), "").expect("the test's directory can be written");
    assert_eq!(lab.cpr.wait(JOB), 0);
    lab.require_output(None);
}

fn a_job_that_forks_without_end(test: &str, user: As) {
    restless(test, user, "fork");
}

fn a_job_that_starts_threads_without_end(test: &str, user: As) {
    restless(test, user, "thread");
}

fn a_job_that_execs_without_end(test: &str, user: As) {
    restless(test, user, "exec");
}

/// A process that ends while it is saved is either saved or reported as gone.
fn a_process_that_ends_meanwhile(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else { return };
    let mut moments = Moments::new(test);
    for round in 0..20 {
        let mut process = lab.bare(&["sleep", "0.05"]);
        std::thread::sleep(Duration::from_millis(25) + moments.delay(Duration::from_millis(50)));
        let image = lab.file(&format!("{round}.cpr"));
        let pid = process.pid().to_string();
        let ended = lab.run(["checkpoint", "-o", &text(&image), &pid]);
        // A zombie that nobody has waited for is there, and yet nothing that could be saved.
        assert!(
            [0, GONE, NOT_FOUND].contains(&ended.code),
            "{round}: {}: {}",
            ended.code,
            ended.stderr
        );
        assert_eq!(image.exists(), ended.code == 0, "{round}: {}", ended.stderr);
        if ended.code == 0 {
            lab.run(["verify", &text(&image)]).good();
        }
        assert_eq!(process.code(), 0, "round {round}: the process ended as it would have");
    }
    assert_eq!(partial(&lab.cpr.work), Vec::<String>::new());
}

/// LBNL-2.2.4B.23, LBNL-2.4.5: a traced process is refused, its tracer named and not disturbed.
fn traced(test: &str, user: As, job: bool) {
    let Some(lab) = Lab::new(test, user) else { return };
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skip!(test, "strace not found");
    }
    let mut process = None;
    if job {
        lab.count(&[], 1_000_000, 0);
    } else {
        process = Some(lab.bare(&[PYTHON, "count.py", "1000000", "0"]));
        lab.await_count(5);
    }
    let pid = process.as_ref().map_or_else(|| lab.pid(), Killed::pid);
    let target = if job { JOB.to_owned() } else { pid.to_string() };
    let mut tracer = lab.bare(&["strace", "-qq", "-o", "trace", "-p", &pid.to_string()]);
    let attached = || status(pid, pid, "TracerPid") == tracer.pid().to_string();
    if poll(SOON, || attached().then_some(())).is_none() {
        skip!(test, "strace cannot trace here");
    }
    let image = text(&lab.file("image.cpr"));
    let ended = lab.run(["checkpoint", "-o", &image, &target]);
    assert_eq!(ended.code, UNSUPPORTED, "{}", ended.stderr);
    let name = format!("process {} (strace)", tracer.pid());
    assert!(ended.stderr.contains(&name), "no {name:?} in {}", ended.stderr);
    let check = lab.run(["check", &target]);
    assert_eq!(check.code, UNSUPPORTED, "{}{}", check.text(), check.stderr);
    assert!(check.text().contains(&name), "no {name:?} in {}", check.text());
    assert!(attached(), "the tracer has lost its process");
    let traced = || fs::metadata(lab.file("trace")).map_or(0, |m| m.len());
    let before = traced();
    wait_until(SOON, "the tracer sees more", || traced() > before);
    lab.require_progress();
    assert!(
        tracer.0.try_wait().expect("a child can be waited for").is_none(),
        "the tracer has ended"
    );
    assert!(!Path::new(&image).exists());
    tracer.kill();
    require_undisturbed(pid);
    lab.run(["checkpoint", "-o", &image, &target]).good();
    lab.require_progress();
}

fn a_traced_job_is_refused(test: &str, user: As) {
    traced(test, user, true);
}

fn a_traced_process_is_refused(test: &str, user: As) {
    traced(test, user, false);
}

/// Two checkpoints of one job at once do not get into each other's way.
fn two_checkpoints_at_once(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&[], 1_000_000, 16);
    for round in 0..10 {
        let images = [lab.file("a.cpr"), lab.file("b.cpr")];
        let mut both = images
            .each_ref()
            .map(|i| lab.spawn(["checkpoint", "-o", &text(i), JOB]));
        let codes = both.each_mut().map(Killed::code);
        assert!(codes.contains(&0), "round {round}: {codes:?}");
        for (code, image) in codes.iter().zip(&images) {
            assert!([0, BUSY].contains(code), "round {round}: {codes:?}");
            assert_eq!(*code == 0, image.exists(), "round {round}: {codes:?}");
            if *code == 0 {
                lab.run(["verify", &text(image)]).good();
                fs::remove_file(image).expect("the test's directory can be written");
            }
        }
    }
    // And without names of their own, where they could choose the same.
    let mut both = [(); 2].map(|()| lab.spawn(["checkpoint", JOB]));
    let good = both.each_mut().map(Killed::code).iter().filter(|c| **c == 0).count();
    assert_eq!(lab.images().len(), good);
    for image in lab.images() {
        lab.run(["verify", &text(&image)]).good();
    }
    lab.require_progress();
    lab.require_output(None);
}

/// A job that runs is not started a second time.
fn a_running_job_is_not_restarted(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&[], 1_000_000, 0);
    lab.run(["checkpoint", JOB]).good();
    let pid = lab.pid();
    let ended = lab.run(["restart", "-d", JOB]);
    assert_eq!(ended.code, BUSY, "{}", ended.stderr);
    assert!(ended.stderr.contains("is running"), "{}", ended.stderr);
    assert_eq!(lab.pid(), pid);
    lab.require_progress();
    lab.require_output(None);
}

/// LBNL-3.6.2.1: nobody saves a process that he may not signal, and trying does nothing to it.
#[test]
fn processes_of_others_are_not_touched() {
    const TEST: &str = "processes_of_others_are_not_touched";
    let Some(owner) = Lab::new(TEST, As::Root) else { return };
    let Some(other) = Lab::new(TEST, As::User) else { return };
    let process = owner.bare(&[PYTHON, "count.py", "1000000", "0"]);
    owner.await_count(5);
    let (pid, before) = (process.pid(), maps(process.pid()));
    let image = other.file("image.cpr");
    let ended = other.run(["checkpoint", "-o", &text(&image), &pid.to_string()]);
    assert_eq!(ended.code, DENIED, "{}", ended.stderr);
    assert_eq!(disturbed(pid), None);
    assert_eq!(maps(pid), before);
    assert!(!image.exists());
    assert_eq!(partial(&other.cpr.work), Vec::<String>::new());
    owner.require_progress();
    owner.require_output(None);
}

/// LBNL-3.6.2.5: nobody else can read an image, or look where images are kept.
fn images_are_closed_to_others(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&[], 1_000_000, 0);
    let image = lab.file("image.cpr");
    lab.run(["checkpoint", "-o", &text(&image), JOB]).good();
    lab.run(["checkpoint", JOB]).good();
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode(&image), 0o400);
    assert_eq!(lab.images().len(), 1);
    assert_eq!(mode(&lab.images()[0]), 0o400);
    let mut directory = lab.image_directory();
    while directory.starts_with(&lab.cpr.state_dir) {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
        directory.pop();
    }
    if am_root() {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={STRANGER}"), "--clear-groups", "--", "cat"])
            .arg(&image);
        assert_ne!(
            finish(&lab.cpr.work, command, SOON).code,
            0,
            "a stranger has read the image"
        );
    }
}

/// LBNL-3.6.2.6: an image that root makes of a user's process belongs to that user. LBNL-3.6.2.2: who may not signal
/// a process may not restart it, even with a copy of its image.
#[test]
fn images_belong_to_the_owner_of_the_job() {
    const TEST: &str = "images_belong_to_the_owner_of_the_job";
    let Some(root) = Lab::new(TEST, As::Root) else { return };
    let Some(user) = Lab::new(TEST, As::User) else { return };
    user.cpr.give(&user.cpr.work);
    let process = user.bare(&[PYTHON, "count.py", "1000000", "0"]);
    user.await_count(5);
    let owner = fs::metadata(format!("/proc/{}", process.pid())).expect("the process lives");
    let image = root.file("image.cpr");
    root.run(["checkpoint", "-o", &text(&image), &process.pid().to_string()])
        .good();
    let made = fs::metadata(&image).expect("the image is there");
    assert_eq!((made.uid(), made.gid()), (owner.uid(), owner.gid()));
    assert_eq!(made.permissions().mode() & 0o7777, 0o400);
    drop(process);
    let copy = user.file("copy.cpr");
    let state = user.file("stranger");
    fs::copy(&image, &copy).expect("root can copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o444)).expect("root can do that");
    fs::create_dir(&state).expect("root can do that");
    chown(&state, Some(STRANGER), Some(STRANGER)).expect("root can do that");
    let mut command = user.cpr.command("true");
    let environment: Vec<(OsString, OsString)> = command
        .get_envs()
        .filter_map(|(n, v)| Some((n.to_owned(), v?.to_owned())))
        .collect();
    command = Command::new("setpriv");
    command.args([
        &format!("--reuid={STRANGER}"),
        &format!("--regid={STRANGER}"),
        "--clear-groups",
        "--no-new-privs",
    ]);
    command
        .arg("--")
        .arg(user.cpr.binary())
        .args(["restart", "-d"])
        .arg(&copy);
    command
        .envs(environment)
        .env("GRIDCPR_STATE_DIR", &state)
        .current_dir(&user.cpr.work);
    let ended = finish(&root.cpr.work, clean(&command), SOON);
    assert_eq!(ended.code, DENIED, "{}", ended.stderr);
    assert!(ended.stderr.contains(&owner.uid().to_string()), "{}", ended.stderr);
    assert_eq!(names(&state.join("jobs")), BTreeSet::new(), "no job is left");
    user.require_nothing_left("after the refused restart");
}

/// LBNL-1.2.4.2.d: a job that is saved by itself comes back after a crash, from the newest image.
fn a_crashed_job_comes_back(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&["--every", "1s"], 800, 1);
    wait_until(SOON, "two images are there", || lab.images().len() >= 2);
    lab.cpr.crash();
    lab.require_nothing_left("after the crash");
    let newest = lab.images().pop().expect("there are images");
    let before = lab.lines();
    assert!((5..800).contains(&before), "{before} lines at the crash");
    lab.run(["restart", "-d", JOB]).good();
    assert_eq!(lab.cpr.wait(JOB), 0);
    lab.require_output(Some(800));
    let state = fs::read_to_string(lab.cpr.state_dir.join("jobs").join(JOB).join("state.json"));
    let state = state.expect("the state can be read");
    assert!(state.contains(&text(&newest)), "not from {}: {state}", newest.display());
}

/// Where the newest images are damaged the job comes back from the newest good one, and says so.
fn a_damaged_image_is_passed_over(test: &str, user: As) {
    let Some(lab) = Lab::new(test, user) else {
        return;
    };
    lab.count(&[], 600, 1);
    for _ in 0..3 {
        lab.require_progress();
        lab.run(["checkpoint", JOB]).good();
    }
    lab.cpr.crash();
    let images = lab.images();
    assert_eq!(images.len(), 3);
    for (image, cut) in [(&images[1], false), (&images[2], true)] {
        let bytes = fs::read(image).expect("the image can be read");
        let half = bytes.len() / 2;
        fs::remove_file(image).expect("the image can be removed");
        let damaged = if cut {
            bytes[..half].to_vec()
        } else {
            flipped(&bytes, half, 3)
        };
        fs::write(image, damaged).expect("the image can be written");
        lab.cpr.give(image);
    }
    let ended = lab.run(["restart", "-d", JOB]).good();
    for image in &images[1..] {
        assert!(
            ended.stderr.contains(&text(image)),
            "{} is not named: {}",
            image.display(),
            ended.stderr
        );
    }
    assert!(ended.stderr.contains("trying the image before it"), "{}", ended.stderr);
    assert_eq!(lab.cpr.wait(JOB), 0);
    lab.require_output(Some(600));
}

/// Each as root and as an ordinary user, whose jobs have user namespaces of their own.
macro_rules! as_everyone {
    ($($name:ident)*) => {$(
        mod $name {
            use crate::support::As;

            #[test]
            fn as_root() {
                super::$name(concat!(stringify!($name), "::as_root"), As::Root);
            }

            #[test]
            fn as_user() {
                super::$name(concat!(stringify!($name), "::as_user"), As::User);
            }
        }
    )*};
}
as_everyone! {
    damaged_images_start_nothing
    a_killed_checkpoint_does_not_hurt_the_job
    a_checkpoint_nobody_waits_for_is_given_up
    a_job_that_is_killed_during_its_checkpoint
    a_daemon_outlives_its_starter
    left_over_parts_are_removed
    a_killed_restart_leaves_nothing
    a_job_that_forks_without_end
    a_job_that_starts_threads_without_end
    a_job_that_execs_without_end
    a_process_that_ends_meanwhile
    a_traced_job_is_refused
    a_traced_process_is_refused
    two_checkpoints_at_once
    a_running_job_is_not_restarted
    images_are_closed_to_others
    a_crashed_job_comes_back
    a_damaged_image_is_passed_over
}
