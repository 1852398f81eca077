//! What cannot be checkpointed is named, by `cpr check` and by `cpr checkpoint`, and the job goes on unharmed.
//!
//! The program `tests/victims/refused.c` holds one such object at a time, and counts, so that a job that stands still
//! is noticed. What the machine does not have, or the user may not make, is skipped.

mod support;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::steps::Steps;
use support::{As, Cpr, PATIENCE, finish, poll, skip, wait_until};

/// `Unsupported` of docs/exit-codes.md.
const UNSUPPORTED: i32 = 69;
/// Numbers in the file `beat`.
const BEATS: usize = 8;
const CLONE_NEWTIME: u32 = 0x80;

/// Compiles `tests/victims/NAME.c` into the test's directory; none where the compiler cannot.
fn compile(cpr: &Cpr, name: &str, options: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/victims")
        .join(name)
        .with_extension("c");
    let program = cpr.work.join(name);
    let mut command = Command::new("cc");
    command.args([
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
    ]);
    command.args(options).arg("-o").arg(&program).arg(source);
    let ended = finish(&cpr.work, command, PATIENCE);
    if ended.code != 0 {
        eprintln!("{}", ended.stderr);
        return None;
    }
    cpr.give(&program);
    Some(program)
}

/// The state of a process that a refused checkpoint must not change.
#[derive(Debug, PartialEq, Eq)]
struct Traits {
    maps: String,
    descriptors: Vec<String>,
    /// Of each thread: number, whether it is stopped, tracer, signals blocked, caught and ignored, system call filter.
    threads: Vec<Vec<String>>,
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn traits(pid: i32) -> Traits {
    const KEPT: [&str; 6] = ["TracerPid:", "SigBlk:", "SigIgn:", "SigCgt:", "Seccomp:", "NoNewPrivs:"];
    let threads = names(&format!("/proc/{pid}/task")).into_iter().map(|tid| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
        let stopped = status
            .lines()
            .any(|l| l.starts_with("State:\tT") || l.starts_with("State:\tt"));
        let kept = status.lines().filter(|l| KEPT.iter().any(|k| l.starts_with(k)));
        let first = [tid, stopped.to_string()];
        first.into_iter().chain(kept.map(str::to_owned)).collect()
    });
    Traits {
        threads: threads.collect(),
        maps: fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default(),
        descriptors: names(&format!("/proc/{pid}/fd")),
    }
}

/// A process and all below it, as numbered here.
fn family(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for tid in names(&format!("/proc/{pid}/task")) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
        }
    }
    all
}

fn beats(cpr: &Cpr) -> [u64; BEATS] {
    let bytes = fs::read(cpr.work.join("beat")).unwrap_or_default();
    let mut beats = [0; BEATS];
    for (beat, raw) in beats.iter_mut().zip(bytes.chunks_exact(8)) {
        *beat = raw.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    beats
}

/// Everything that counted goes on counting.
#[track_caller]
fn require_beats(cpr: &Cpr) {
    let before = beats(cpr);
    assert!(before.iter().any(|beat| *beat > 0), "nothing counts");
    wait_until(PATIENCE, "all of the job goes on", || {
        let now = beats(cpr);
        (0..BEATS).all(|i| before[i] == 0 || now[i] > before[i])
    });
}

/// A command that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a refusal has to say.
struct Refusal<'a> {
    /// Part of the name of the object; empty where it shows only when the job stands still.
    object: &'a str,
    /// Part of the reason.
    reason: &'a str,
}

/// How the victim gets what it holds.
enum Given {
    Nothing,
    /// As standard input of the command that starts the job.
    Descriptor(OwnedFd),
}

/// LBNL-3.6.1.11, LBNL-3.9.1.M9, LBNL-3.9.1.M17: a job that holds something unsupported is refused by name and not
/// harmed.
fn refuses(test: &str, user: As, arguments: &[&str], given: Given, refusal: &Refusal<'_>) {
    const JOB: &str = "refused";
    let Some(cpr) = Cpr::new(test, user) else { return };
    let (options, arguments): (&[&str], _) = match arguments {
        ["static", rest @ ..] => (&["-pthread", "-static"], rest),
        all => (&["-pthread"], all),
    };
    let program = compile(&cpr, "refused", options).expect("a compiler");
    let mut arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    if arguments[0] == "exec" {
        let options = [
            "-m32",
            "-nostdlib",
            "-static",
            "-ffreestanding",
            "-fno-pie",
            "-no-pie",
            "-fno-stack-protector",
        ];
        match compile(&cpr, "refused32", &options) {
            Some(program) => arguments.push(program.display().to_string()),
            None => skip!(test, "the compiler makes no 32-bit programs"),
        }
    }
    let mut start = cpr.command(cpr.binary());
    start.args(["run", "--name", JOB, "--"]).arg(&program).args(&arguments);
    let stdin = match given {
        Given::Descriptor(descriptor) => Stdio::from(descriptor),
        Given::Nothing => Stdio::null(),
    };
    let output = cpr.work.join("said");
    let stdout = fs::File::create(&output).expect("the test's directory can be written");
    start.stdin(stdin).stdout(stdout).stderr(Stdio::null());
    let _running = Running(start.spawn().expect("cpr can be run"));
    let said = poll(PATIENCE, || {
        let said = fs::read_to_string(&output).unwrap_or_default();
        said.ends_with('\n').then_some(said)
    });
    let said = said.expect("the victim says something");
    if let Some(reason) = said.strip_prefix("SKIP ") {
        skip!(test, "{}", reason.trim_end());
    }
    let holder: i64 = said
        .strip_prefix("READY ")
        .and_then(|p| p.trim().parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    wait_until(PATIENCE, "the victim counts", || {
        beats(&cpr).iter().any(|beat| *beat > 1)
    });
    let root = poll(PATIENCE, || {
        let jobs = cpr.cpr(["ps", "--json"]).good().json();
        jobs["jobs"][0]["pid"].as_i64()
    });
    let root = root.expect("a job with a PID") as i32;
    let family = family(root);
    let before: Vec<Traits> = family.iter().map(|pid| traits(*pid)).collect();

    if !refusal.object.is_empty() {
        let check = cpr.cpr(["check", JOB, "--json"]);
        assert_eq!(check.code, UNSUPPORTED, "{}{}", check.text(), check.stderr);
        let report = check.json();
        assert_eq!(report["checkpointable"], false, "{report}");
        let has = |value: &serde_json::Value, part: &str| value.as_str().is_some_and(|text| text.contains(part));
        let named = report["blockers"].as_array().into_iter().flatten().any(|blocker| {
            has(&blocker["object"], refusal.object)
                && has(&blocker["reason"], refusal.reason)
                && blocker["pid"].as_i64() == Some(holder)
        });
        assert!(
            named,
            "process {holder}, {:?}, {:?} in {report}",
            refusal.object, refusal.reason
        );
    }

    for options in [&[][..], &["--stop"]] {
        let checkpoint = cpr.cpr(["checkpoint", JOB].iter().chain(options));
        assert_eq!(checkpoint.code, UNSUPPORTED, "{}", checkpoint.stderr);
        for part in [refusal.reason, &format!("process {holder}")] {
            assert!(checkpoint.stderr.contains(part), "no {part:?} in {}", checkpoint.stderr);
        }
        require_beats(&cpr);
    }
    let images = cpr.state_dir.join("jobs").join(JOB).join("images");
    assert!(
        names(&images.display().to_string()).is_empty(),
        "something is left in {}",
        images.display()
    );
    let after: Vec<Traits> = family.iter().map(|pid| traits(*pid)).collect();
    assert_eq!(after, before);
}

fn pipe() -> OwnedFd {
    // The other end must stay open as long as the test runs: it is left to the process.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    std::mem::forget(writer);
    reader.into()
}

fn socket() -> OwnedFd {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    std::mem::forget(ours);
    theirs.into()
}

/// Whatever could not be done then, could not be done because of that.
#[test]
fn a_process_that_ends_while_it_is_saved_is_said_to_have_ended() {
    /// `Gone` of docs/exit-codes.md.
    const GONE: i32 = 68;
    let Some(cpr) = Cpr::new("a_process_that_ends_while_it_is_saved", As::User) else {
        return;
    };
    let mut sleeps = cpr.command(cpr.binary());
    sleeps
        .args(["exec", "--name", "sleeps", "--", "sleep", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut sleeps = sleeps.spawn().expect("a program");
    let registered = cpr.state_dir.join("jobs/sleeps/state.json");
    wait_until(PATIENCE, "the job is there", || registered.exists());
    let mut steps = Steps::new(&cpr, &["checkpoint", "--steps", "60s", "-o", "sleep.cpr", "sleeps"]);
    steps.says("prepared");
    steps.say("stop");
    steps.says("stopped");
    sleeps.kill().expect("it lives");
    steps.say("save");
    let (code, said) = steps.end_with();
    assert_eq!(code, GONE, "{said}");
    assert!(said.contains("the job ended while it was being saved"), "{said}");
    sleeps.wait().expect("it has ended");
    assert!(!cpr.work.join("sleep.cpr").exists(), "nothing is left");
}

/// One test for each of these users.
macro_rules! refused {
    ($($name:ident [$($user:ident)*]: $arguments:expr $(, with $given:expr)?; $object:expr, $reason:expr;)*) => {$(
        mod $name {
            use super::*;

            fn refused(user: As) {
                let given = refused!(@given $($given)?);
                let refusal = Refusal { object: $object, reason: $reason };
                let test = format!("{}::{user:?}", stringify!($name));
                refuses(&test, user, &$arguments, given, &refusal);
            }

            $(refused!(@test $user);)*
        }
    )*};
    (@given) => { Given::Nothing };
    (@given $given:expr) => { Given::Descriptor($given) };
    (@test root) => {
        #[test]
        fn as_root() {
            refused(As::Root);
        }
    };
    (@test user) => {
        #[test]
        fn as_user() {
            refused(As::User);
        }
    };
}

refused! {
    // LBNL-2.2.4B.17
    io_uring [root user]: ["io_uring"]; "anon_inode:[io_uring]", "waits for something to happen (poll)";
    io_uring_disabled [user]: ["io_uring_disabled"]; "anon_inode:[io_uring]", "IORING_SETUP_R_DISABLED";
    io_uring_mapping [user]: ["io_uring_map"]; "mapping at 0x", "no descriptor is open on";
    performance_counter [root user]: ["perf"]; "anon_inode:[perf_event]", "performance counters are not supported";
    corked_datagram [root user]: ["corked"]; "", "holds back data that it has not sent yet";
    key [root user]: ["key"]; "", "its process keyring holds the user key secret";
    key_of_a_thread [user]: ["thread_key"]; "", "holds the user key secret, and keys are not saved";
    notices_of_a_directory [root user]: ["directory_notices"]; "", "by signal (F_NOTIFY)";
    landlock [root user]: ["landlock"]; "", "it is confined by Landlock";
    pressure_trigger [root user]: ["pressure"]; "/proc/pressure/memory", "a trigger for pressure stall information";
    multipath_connection [root user]: ["multipath"]; "socket:[", "a multipath TCP connection is not supported";
    bpf [root]: ["bpf"]; "anon_inode:bpf-map", "BPF objects are not supported";
    fanotify [root]: ["fanotify"]; "anon_inode:[fanotify]", "fanotify that permits or denies";
    kvm [root]: ["open", "/dev/kvm"]; "/dev/kvm", "virtual machines are not supported (device number 10:232)";
    fuse [root]: ["open", "/dev/fuse"]; "/dev/fuse", "serving a FUSE file system is not supported";
    tunnel [root]: ["open", "/dev/net/tun"]; "/dev/net/tun", "network tunnels are not supported";
    kernel_log [root]: ["open", "/dev/kmsg"]; "/dev/kmsg", "this device is not supported";
    // LBNL-2.4.8
    device_of_a_static_program [root]: ["static", "open", "/dev/kmsg"]; "/dev/kmsg", "this device is not supported";
    block_device [root]: ["open", "/dev/loop0"]; "/dev/loop0", "block devices are not supported";
    // The job's init is no part of it.
    pidfd_of_another [root user]: ["pidfd"]; "pidfd", "a pidfd of a process that is not part of the job";
    // LBNL-2.4.5
    pipe_to_outside [root user]: ["kept"], with pipe(); "descriptor 7 (pipe:", "the other end of the pipe is outside the job";
    socket_to_outside [root user]: ["kept"], with socket(); "descriptor 7 (socket:", "connected to a process outside the job";
    namespace_file [root user]: ["namespace_file"]; "net:[", "a namespace is held open";
    path_of_a_pipe [root user]: ["path"]; "pipe:[", "O_PATH of an object without a path";
    seccomp [user]: ["seccomp"]; "seccomp filter", "only root can read and suspend the filters";
    shared_memory_space [root user]: ["clone_vm"]; "memory", "it shares its memory with process";
    shared_working_directory [root user]: ["clone_fs"]; "working directory", "it shares its working directory with process";
    // LBNL-3.2.2.1
    program_of_32_bits [root user]: ["exec"]; "program", "32-bit";
    traced_by_the_job [root user]: ["traced"]; "tracer", "is being traced by process";
    mount_namespace [root user]: ["mounted_namespace"]; "mount namespace", "(ramfs) is mounted in it";
    covered_mount [user]: ["covered"]; "mount namespace", "has something mounted over it";
    mount [root]: ["mount"]; "mount namespace", "(ramfs) is mounted in it";
    thread_namespace [root]: ["thread_namespace"]; "UTS namespace", "is in a UTS namespace of its own";
    two_time_namespaces [root user]: ["later_namespace", &CLONE_NEWTIME.to_string()]; "time namespace", "another one for its children";
}
