//! Unmodified programs go on as if nothing had happened: their results are the same to the last byte.
//!
//! Each workload of the table runs once without `cpr`; its tests share that result:
//! - `NAME::restart_as_{root,user}`: ended by a checkpoint after about 40 % of its output, restarted, compared;
//! - `NAME::ten_checkpoints_as_{root,user}`: checkpointed ten times in the course of the run, compared.
//!
//! Progress is measured by how much the workload has written, so a loaded machine changes nothing. All programs are in
//! `tests/workloads`; each was shown to give the same bytes twice before it was entered here. A workload whose programs
//! are missing is skipped and says so. `GRIDCPR_WORKLOAD_SCALE=PERCENT` makes all of them longer or shorter, and
//! `GRIDCPR_SLOW=1` restarts each of them ten times instead of once, and runs all variants: without it each is
//! restarted as a user and has ten checkpoints as root.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{As, Cpr, Lock, PATIENCE, copy_tree, finish, run_directory, skip, wait_until};

/// `Gone` of docs/exit-codes.md.
const GONE: i32 = 68;
/// The name of the job in each test.
const JOB: &str = "job";
/// In a workload's list of outputs: what it wrote to its standard output.
const STDOUT: &str = "stdout";
/// Debian's interpreter before any other: it is the one that Debian's NumPy is for.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

/// A program that gives the same bytes every time.
struct Workload {
    /// Name of the module of its tests.
    name: &'static str,
    /// Folder below `tests/workloads`; its files are copied to where the program runs.
    folder: &'static str,
    /// Programs it needs.
    needs: &'static [&'static str],
    /// A shell command that builds it, if it is built.
    build: &'static str,
    /// The command; `{size}` and `{python}` are replaced.
    command: &'static [&'static str],
    /// About four seconds of work on one core of 2020s hardware.
    size: u32,
    /// Files it writes, the first one steadily: that is its progress.
    outputs: &'static [&'static str],
}

/// What the uninterrupted run left.
struct Reference {
    /// What the workload needs to run.
    input: PathBuf,
    /// Where it ran.
    result: PathBuf,
    /// Path of the interpreter, for those that need one.
    python: &'static str,
}

impl Workload {
    fn command(&self, python: &str) -> Vec<String> {
        let scale = std::env::var("GRIDCPR_WORKLOAD_SCALE").map_or(100, |s| s.parse().expect("a number of percent"));
        let size = (u64::from(self.size) * scale / 100).max(1).to_string();
        let fill = |word: &&str| word.replace("{size}", &size).replace("{python}", python);
        self.command.iter().map(fill).collect()
    }

    /// What is missing to run it as this user.
    fn missing(&self, cpr: &Cpr) -> Option<String> {
        let missing: Vec<&str> = self
            .needs
            .iter()
            .copied()
            .filter(|program| {
                let script = r#"command -v "$1""#;
                cpr.program(&["sh", "-c", script, "sh", program]).code != 0
            })
            .collect();
        if !missing.is_empty() {
            return Some(format!("{} not found", missing.join(", ")));
        }
        let python = self.python()?;
        (cpr.program(&[python, "-c", self.imports()]).code != 0).then(|| format!("no {python} with what it needs"))
    }

    /// What its interpreter has to be able to do.
    fn imports(&self) -> &'static str {
        if self.folder == "python_numpy" {
            "import numpy"
        } else {
            ""
        }
    }

    /// The interpreter: the same for every user, so that the results can be compared.
    fn python(&self) -> Option<&'static str> {
        let works = |python: &&&str| {
            let mut command = Command::new(python);
            command.args(["-c", self.imports()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|s| s.success())
        };
        let wanted = self.command.contains(&"{python}");
        wanted.then(|| *PYTHONS.iter().find(works).unwrap_or(&PYTHONS[0]))
    }

    /// Builds and runs it without `cpr`, once for all its tests.
    fn reference(&self) -> Reference {
        let place = run_directory().join(self.name);
        fs::create_dir_all(&place).expect("the build's temporary directory can be written");
        let _lock = Lock::take(&place.join("lock"));
        let reference = Reference {
            input: place.join("input"),
            result: place.join("result"),
            python: self.python().unwrap_or_default(),
        };
        let done = place.join("done");
        if done.exists() {
            return reference;
        }
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads");
        for directory in [&reference.input, &reference.result] {
            let _ = fs::remove_dir_all(directory);
        }
        if self.folder.is_empty() {
            fs::create_dir_all(&reference.input).expect("the build's temporary directory can be written");
        } else {
            copy_tree(&sources.join(self.folder), &reference.input);
        }
        if !self.build.is_empty() {
            let mut build = Command::new("sh");
            build.args(["-c", self.build]).current_dir(&reference.input);
            finish(&place, build, PATIENCE).good();
        }
        copy_tree(&reference.input, &reference.result);
        let words = self.command(reference.python);
        let mut run = Command::new(&words[0]);
        run.args(&words[1..])
            .current_dir(&reference.result)
            .env("LC_ALL", "C.UTF-8");
        let ended = finish(&place, run, PATIENCE).good();
        fs::write(reference.result.join(STDOUT), ended.stdout).expect("the build's temporary directory can be written");
        fs::write(done, "").expect("the build's temporary directory can be written");
        reference
    }
}

/// One run of a workload under `cpr`, to be compared.
struct Run<'a> {
    workload: &'a Workload,
    reference: Reference,
    cpr: Cpr,
    /// Bytes of the first output when it is complete.
    all: u64,
}

impl<'a> Run<'a> {
    /// Starts it. None, after saying so, where it cannot run.
    fn start(workload: &'a Workload, variant: &str, user: As, options: &[&str]) -> Option<Run<'a>> {
        let test = format!("{}::{variant}", workload.name);
        let cpr = Cpr::new(&test, user)?;
        if let Some(missing) = workload.missing(&cpr) {
            support::note_skip(&test, &missing);
            return None;
        }
        let reference = workload.reference();
        copy_tree(&reference.input, &cpr.work);
        cpr.give(&cpr.work);
        let all = fs::metadata(reference.result.join(workload.outputs[0])).map_or(0, |m| m.len());
        assert!(all > 0, "{} writes nothing", workload.name);
        cpr.run_detached(JOB, options, &workload.command(reference.python));
        Some(Run {
            workload,
            reference,
            cpr,
            all,
        })
    }

    fn written(&self) -> u64 {
        let first = self.workload.outputs[0];
        if first == STDOUT {
            return self.cpr.logs(JOB).len() as u64;
        }
        fs::metadata(self.cpr.work.join(first)).map_or(0, |m| m.len())
    }

    /// Waits until that part of the output is there.
    fn await_progress(&self, thousandths: u64) {
        let wanted = (self.all * thousandths / 1000).max(1);
        let mut looks = 0;
        wait_until(PATIENCE, &format!("{wanted} of {} bytes are written", self.all), || {
            looks += 1;
            if self.written() >= wanted {
                return true;
            }
            // Now and then: a job that has failed will never get there.
            assert!(looks % 200 != 0 || self.cpr.is_running(JOB), "the job has ended");
            false
        });
    }

    /// Waits for the end and compares everything.
    fn compare(self) {
        assert_eq!(self.cpr.wait(JOB), 0, "exit code of {}", self.workload.name);
        for output in self.workload.outputs {
            let expected = fs::read(self.reference.result.join(output)).expect("the reference is there");
            let actual = if *output == STDOUT {
                self.cpr.logs(JOB)
            } else {
                fs::read(self.cpr.work.join(output)).unwrap_or_else(|e| panic!("{output}: {e}"))
            };
            assert_same(output, &expected, &actual);
        }
    }
}

/// Requires equal bytes, and shows the first place where they differ.
fn assert_same(name: &str, expected: &[u8], actual: &[u8]) {
    if expected == actual {
        return;
    }
    let at = expected
        .iter()
        .zip(actual)
        .position(|(e, a)| e != a)
        .unwrap_or(expected.len().min(actual.len()));
    let around = |bytes: &[u8]| {
        let from = at.saturating_sub(60).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..(at + 60).min(bytes.len())]).into_owned()
    };
    panic!(
        "{name} differs at byte {at} (lengths {} and {})\nexpected …{}…\nfound    …{}…",
        expected.len(),
        actual.len(),
        around(expected),
        around(actual)
    );
}

fn slow() -> bool {
    std::env::var_os("GRIDCPR_SLOW").is_some()
}

/// How often a workload is restarted in its own test: once in the quick suite.
fn usual_restarts() -> u64 {
    if slow() { 10 } else { 1 }
}

/// Whether a test is left to the slow suite: the quick one restarts as a user and makes ten checkpoints as root.
fn is_for_the_slow_suite() -> bool {
    if !slow() {
        support::note_skip(
            "workloads restarted as root, and with ten checkpoints as a user",
            "GRIDCPR_SLOW=1 runs them, too",
        );
    }
    !slow()
}

/// Saved, ended and restarted that many times, evenly over the run; once is at 40 %.
fn restarts(workload: &Workload, variant: &str, user: As, times: u64) {
    let Some(run) = Run::start(workload, variant, user, &["--keep", "2"]) else {
        return;
    };
    for number in 1..=times {
        run.await_progress(if times == 1 { 400 } else { number * 850 / times });
        run.cpr.checkpoint(JOB, &["--stop"]);
        run.cpr.restart(JOB);
    }
    run.compare();
}

/// Saved ten times, evenly over most of the run, and let go on.
fn ten_checkpoints(workload: &Workload, variant: &str, user: As) {
    let Some(run) = Run::start(workload, variant, user, &["--keep", "2"]) else {
        return;
    };
    for number in 1..=10 {
        // The rest of the run is for the last checkpoints, which on a loaded machine may take long to be started.
        run.await_progress(number * 60);
        let ended = run.cpr.cpr(["checkpoint", JOB]);
        if number > 2 && ended.code == GONE {
            // Not the program was slow, but the machine: its result is compared all the same.
            break;
        }
        ended.good();
    }
    run.compare();
}

macro_rules! workloads {
    ($($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {$(
        mod $name {
            use super::*;

            pub(super) const WORKLOAD: Workload = Workload { name: stringify!($name), $($field: $value),* };

            #[test]
            fn restart_as_root() {
                if is_for_the_slow_suite() {
                    return;
                }
                restarts(&WORKLOAD, "restart_as_root", As::Root, usual_restarts());
            }

            #[test]
            fn restart_as_user() {
                restarts(&WORKLOAD, "restart_as_user", As::User, usual_restarts());
            }

            #[test]
            fn ten_checkpoints_as_root() {
                ten_checkpoints(&WORKLOAD, "ten_checkpoints_as_root", As::Root);
            }

            #[test]
            fn ten_checkpoints_as_user() {
                if is_for_the_slow_suite() {
                    return;
                }
                ten_checkpoints(&WORKLOAD, "ten_checkpoints_as_user", As::User);
            }
        }
    )*};
}

// The nine scripting environments, each restarted in mid-run:
// LBNL-3.3.3, LBNL-3.3.3.2
//
// Unmodified bash, python3, perl, gzip and sqlite3:
// LBNL-1.2.3.5
workloads! {
    // Producers piped to sort and uniq, arrays, process substitution, wait, signals and job control:
    // LBNL-3.3.3.2.c, LBNL-2.2.2.3
    bash_pipeline {
        folder: "bash_pipeline",
        needs: &["bash", "sort", "uniq", "paste", "sha256sum"],
        build: "",
        command: &["bash", "pipeline.bash", "{size}", "out"],
        size: 75,
        outputs: &["out"],
    }

    // A loop with pipelines and traps:
    // LBNL-3.3.3.2.a
    dash_script {
        folder: "dash_script",
        needs: &["dash", "awk", "sha256sum", "mkfifo"],
        build: "",
        command: &["dash", "script.sh", "-o", "out", "{size}"],
        size: 200,
        outputs: &["out"],
    }

    // Co-processes:
    // LBNL-3.3.3.2.b
    ksh_coprocess {
        folder: "ksh_coprocess",
        needs: &["ksh", "bc"],
        build: "",
        command: &["ksh", "coprocess.ksh", "{size}", "out"],
        size: 3000,
        outputs: &["out"],
    }

    // A loop with a background job:
    // LBNL-3.3.3.2.d
    csh_background {
        folder: "csh_background",
        needs: &["csh", "sha256sum"],
        build: "",
        command: &["csh", "-f", "background.csh", "{size}", "out"],
        size: 60,
        outputs: &["out"],
    }

    // Aliases and a pipeline:
    // LBNL-3.3.3.2.e
    tcsh_aliases {
        folder: "tcsh_aliases",
        needs: &["tcsh", "awk", "sha256sum"],
        build: "",
        command: &["tcsh", "-f", "aliases.tcsh", "{size}", "out"],
        size: 70,
        outputs: &["out"],
    }

    // Forked workers and their pipes:
    // LBNL-3.3.3.2.f
    perl_workers {
        folder: "perl_workers",
        needs: &["perl"],
        build: "",
        command: &["perl", "workers.pl", "{size}"],
        size: 1300,
        outputs: &[STDOUT],
    }

    python_plain {
        folder: "python_plain",
        needs: &[],
        build: "",
        command: &["{python}", "plain.py", "{size}", "out"],
        size: 650,
        outputs: &["out"],
    }

    python_threads {
        folder: "python_threads",
        needs: &[],
        build: "",
        command: &["{python}", "threads.py", "{size}", "out"],
        size: 8000,
        outputs: &["out"],
    }

    // Threads, NumPy arrays and a multiprocessing pool:
    // LBNL-3.3.3.2.g
    python_numpy {
        folder: "python_numpy",
        needs: &[],
        build: "",
        command: &["{python}", "arrays.py", "{size}", "out"],
        size: 240,
        outputs: &["out"],
    }

    // An event loop with timers and a file event:
    // LBNL-3.3.3.2.h
    tcl_events {
        folder: "tcl_events",
        needs: &["tclsh"],
        build: "",
        command: &["tclsh", "events.tcl", "{size}", "out"],
        size: 1700,
        outputs: &["out"],
    }

    // Several threads, a warm compiler, and a heap in motion:
    // LBNL-3.3.3.2.i
    java_workers {
        folder: "java_workers",
        needs: &["java", "javac"],
        build: "javac Workers.java",
        command: &["java", "-Xmx256m", "Workers", "{size}", "out"],
        size: 250,
        outputs: &["out"],
    }

    node_async {
        folder: "node_async",
        needs: &["node"],
        build: "",
        command: &["node", "async.js", "{size}", "out"],
        size: 650,
        outputs: &["out"],
    }

    // A solver built with gcc -O2 against glibc, and below against musl; LU in C here and in Fortran below:
    // LBNL-3.3.1, LBNL-2.2.4B.1
    c_lu {
        folder: "lu",
        needs: &["gcc"],
        build: "gcc -O2 -o lu lu.c -lm",
        command: &["./lu", "{size}", "out"],
        size: 5500,
        outputs: &["out"],
    }

    // LBNL-3.3.1
    c_lu_musl {
        folder: "lu",
        needs: &["musl-gcc"],
        build: "musl-gcc -O2 -o lu lu.c -lm",
        command: &["./lu", "{size}", "out"],
        size: 5500,
        outputs: &["out"],
    }

    // LBNL-2.2.4B.1
    fortran_lu {
        folder: "lu",
        needs: &["gfortran"],
        build: "gfortran -O2 -o lu lu.f90",
        command: &["./lu", "{size}", "out"],
        size: 7000,
        outputs: &["out"],
    }

    // A formatted and an unformatted unit stay open:
    // LBNL-3.3.2
    fortran_nbody {
        folder: "fortran_nbody",
        needs: &["gfortran"],
        build: "gfortran -O2 -o nbody nbody.f90",
        command: &["./nbody", "{size}", "out", "out.bin"],
        size: 2200,
        outputs: &["out", "out.bin"],
    }

    // 200 threads with mutexes, condition variables and thread-local data; it checks its own invariants:
    // LBNL-2.2.4B.9
    c_threads {
        folder: "c_threads",
        needs: &["gcc"],
        build: "gcc -O2 -pthread -o threads threads.c",
        command: &["./threads", "{size}", "out"],
        size: 3500,
        outputs: &["out"],
    }

    c_sieve {
        folder: "c_sieve",
        needs: &["gcc"],
        build: "gcc -O2 -o sieve sieve.c",
        command: &["./sieve", "{size}"],
        size: 2600,
        outputs: &[STDOUT],
    }

    gzip {
        folder: "",
        needs: &["awk", "gzip"],
        build: "",
        command: &[
            "sh",
            "-c",
            "awk 'BEGIN { for (i = 0; i < {size}; i++) { s = (s * 69069 + 1) % 16777216; printf \"%d %d\\n\", i, s } }' |
                gzip -9nc >out.gz",
        ],
        size: 1_800_000,
        outputs: &["out.gz"],
    }

    // Transactions with a write-ahead log and its shared memory.
    sqlite_wal {
        folder: "sqlite_wal",
        needs: &["sqlite3"],
        build: "",
        command: &["sh", "wal.sh", "{size}", "w.db", "out"],
        size: 300,
        outputs: &["out", "w.db"],
    }

    // A video is encoded by several threads. x264's threaded lookahead decides by who comes first: it is off.
    ffmpeg_x264 {
        folder: "",
        needs: &["ffmpeg"],
        build: "",
        command: &[
            "sh",
            "-c",
            "exec ffmpeg -v error -nostdin -f lavfi -i testsrc2=size=320x240:rate=25:duration={size} \
             -c:v libx264 -preset medium -threads 2 -x264-params sync-lookahead=0 -flags +bitexact -fflags +bitexact \
             -flush_packets 1 -f matroska out.mkv",
        ],
        size: 90,
        outputs: &["out.mkv"],
    }

    // Molecular dynamics with all digits of every atom. Alone it needs nothing of MPI, whose launcher daemon would be
    // started otherwise and hold TCP connections.
    lammps_lj {
        folder: "lammps_lj",
        needs: &["lmp"],
        build: "",
        command: &[
            "env", "OMPI_MCA_ess_singleton_isolated=1", "OMPI_MCA_btl=self",
            "lmp", "-in", "in.lj", "-log", "none", "-screen", "none", "-var", "t", "{size}",
        ],
        size: 7000,
        outputs: &["lj.dump"],
    }
}

// A shell script with subshells and pipes, saved and restarted at ten points:
// LBNL-2.2.4B.2
#[test]
fn dash_script_ten_restarts_as_user() {
    restarts(&dash_script::WORKLOAD, "dash_script_ten_restarts_as_user", As::User, 10);
}

// The same results plain, checkpointed ten times, and restarted ten times:
// LBNL-1.2.4.2.b
#[test]
fn solver_ten_checkpoints_and_ten_restarts_as_user() {
    let test = "solver_ten_checkpoints_and_ten_restarts_as_user";
    ten_checkpoints(&fortran_nbody::WORKLOAD, test, As::User);
    restarts(&fortran_nbody::WORKLOAD, test, As::User, 10);
}

// A simple serial program at one hundred random moments:
// LBNL-2.2.2.1
#[test]
fn sieve_a_hundred_restarts_as_user() {
    let test = "sieve_a_hundred_restarts_as_user";
    // Most of the run is spent on this: the sieve has to last.
    let long = Workload {
        name: "c_sieve_long",
        size: 3 * c_sieve::WORKLOAD.size,
        ..c_sieve::WORKLOAD
    };
    let Some(run) = Run::start(&long, test, As::User, &["--keep", "2"]) else {
        return;
    };
    let mut random = u64::from(std::process::id());
    println!("seed {random}");
    let mut moments: Vec<u64> = (0..100)
        .map(|_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % 900
        })
        .collect();
    moments.sort_unstable();
    for moment in moments {
        run.await_progress(moment);
        run.cpr.checkpoint(JOB, &["--stop"]);
        run.cpr.restart(JOB);
    }
    run.compare();
}

// Everything is killed at some moment; the newest complete image of the periodic ones goes on:
// LBNL-1.2.4.2.d
#[test]
fn solver_recovers_from_a_crash_as_user() {
    let test = "solver_recovers_from_a_crash_as_user";
    let workload = &fortran_nbody::WORKLOAD;
    let Some(run) = Run::start(workload, test, As::User, &["--every", "1s", "--keep", "3"]) else {
        return;
    };
    wait_until(PATIENCE, "there is an image", || {
        run.cpr.cpr(["images", JOB, "--json"]).good().text().contains(".cpr")
    });
    run.await_progress(400 + u64::from(std::process::id()) % 300);
    run.cpr.crash();
    run.cpr.restart(JOB);
    run.compare();
}

/// A server goes on with all its data.
fn redis(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    for program in ["redis-server", "redis-cli"] {
        if cpr.program(&["sh", "-c", r#"command -v "$1""#, "sh", program]).code != 0 {
            skip!(test, "{program} not found");
        }
    }
    let socket = cpr.work.join("redis.sock");
    let socket = socket.to_str().expect("our paths are text");
    let ask = |words: &[&str]| {
        let line = [&["redis-cli", "-s", socket], words].concat();
        cpr.program(&line).good().text().trim().to_string()
    };
    let answers = || {
        let ended = cpr.program(&["redis-cli", "-s", socket, "ping"]);
        ended.text().trim() == "PONG"
    };
    let server = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""];
    cpr.run_detached(JOB, &[], &[&server[..], &["--enable-debug-command", "yes"]].concat());
    wait_until(PATIENCE, "redis answers", answers);
    let fill = "for i = 1, 20000 do \
                  redis.call('set', 'string:' .. i, string.rep(i, 9)) \
                  redis.call('rpush', 'list:' .. i % 100, i) \
                  redis.call('hset', 'hash:' .. i % 50, i, i * i) \
                end \
                return redis.call('dbsize')";
    assert_eq!(ask(&["eval", fill, "0"]), "20150");
    assert_eq!(ask(&["incrby", "counter", "41"]), "41");
    let digest = ask(&["debug", "digest"]);
    assert_eq!(digest.len(), 40, "{digest}");
    for times in 1..=3 {
        cpr.checkpoint(JOB, &[]);
        assert_eq!(ask(&["debug", "digest"]), digest, "after checkpoint {times}");
    }
    cpr.checkpoint(JOB, &["--stop"]);
    assert!(!answers(), "a stopped server answers");
    cpr.restart(JOB);
    wait_until(PATIENCE, "redis answers after the restart", answers);
    assert_eq!(ask(&["debug", "digest"]), digest, "after the restart");
    assert_eq!(ask(&["incr", "counter"]), "42");
    cpr.program(&["redis-cli", "-s", socket, "shutdown", "nosave"]);
    assert_eq!(cpr.wait(JOB), 0);
}

#[test]
fn redis_restart_as_root() {
    redis("redis_restart_as_root", As::Root);
}

#[test]
fn redis_restart_as_user() {
    redis("redis_restart_as_user", As::User);
}

/// Talks to the job on a terminal, step by step.
fn dialogue(cpr: &Cpr, steps: &str) {
    let binary = cpr.binary().to_str().expect("our paths are text");
    dialogue_with(cpr, &[binary, "attach", JOB], steps);
}

/// The same with a command on a terminal of its own.
fn dialogue_with(cpr: &Cpr, command: &[&str], steps: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads/terminal/terminal.py");
    fs::copy(script, cpr.work.join("terminal.py")).expect("the test's directory can be written");
    fs::write(cpr.work.join("steps"), steps).expect("the test's directory can be written");
    cpr.give(&cpr.work);
    let mut arguments = vec!["sh", "-c", r#"exec "$@" <steps"#, "sh", PYTHONS[0], "terminal.py"];
    arguments.extend(command);
    cpr.program(&arguments).good();
}

/// An editor that is stopped in the background of an interactive shell is brought back on another terminal, draws its
/// screen anew and saves what was typed.
fn editor(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    for program in [PYTHONS[0], "vi"] {
        if cpr.program(&["sh", "-c", r#"command -v "$1""#, "sh", program]).code != 0 {
            skip!(test, "{program} not found");
        }
    }
    cpr.run_detached(JOB, &["-t"], &["bash", "--norc", "--noprofile", "-i"]);
    dialogue(
        &cpr,
        r"> PS1='ready'':: ' TERM=xterm
< ready::
> vi -u NONE -n notes
< \[New
> ia line of a note
< a line of a note
^[
^Z \[1\]\+ +Stopped +vi -u NONE -n notes
< ready::
^]
.
",
    );
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    dialogue(
        &cpr,
        r"> fg
< vi -u NONE -n notes
< a line of a note
> :wq
< written
< ready::
> exit 7
.
",
    );
    assert_eq!(cpr.wait(JOB), 7, "exit code of the shell");
    let notes = fs::read_to_string(cpr.work.join("notes")).expect("the editor has written it");
    assert_eq!(notes, "a line of a note\n\n");
}

// LBNL-3.3.5
#[test]
fn editor_in_the_background_as_root() {
    editor("editor_in_the_background_as_root", As::Root);
}

// LBNL-3.3.5
#[test]
fn editor_in_the_background_as_user() {
    editor("editor_in_the_background_as_user", As::User);
}

/// An interactive shell with background jobs and a history moves to another terminal.
fn interactive_bash(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    if cpr.program(&[PYTHONS[0], "-c", ""]).code != 0 {
        skip!(test, "{} not found", PYTHONS[0]);
    }
    cpr.run_detached(JOB, &["-t"], &["bash", "--norc", "--noprofile", "-i"]);
    dialogue(
        &cpr,
        r"> PS1='ready'':: '
< ready::
> answer=forty-two
< ready::
> sleep 10001 &
< \[1\] [0-9]+
< ready::
> sleep 10002
< sleep 10002
^Z \[2\]\+ +Stopped +sleep 10002
< ready::
> bg
< \[2\]\+ sleep 10002 &
< ready::
> jobs
< \[1\]-? +Running +sleep 10001 &
< \[2\]\+? +Running +sleep 10002 &
< ready::
^]
.
",
    );
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    dialogue(
        &cpr,
        r"> jobs
< \[1\]-? +Running +sleep 10001 &
< \[2\]\+? +Running +sleep 10002 &
< ready::
> fg %1
< sleep 10001
^Z \[1\]\+ +Stopped +sleep 10001
< ready::
> bg
< \[1\]\+ sleep 10001 &
< ready::
> fg %2
< sleep 10002
^C ready::
> history
< answer=forty-two
< ready::
> echo the answer is $answer
< the answer is forty-two
> kill %1; exit 7
.
",
    );
    assert_eq!(cpr.wait(JOB), 7, "exit code of the shell");
}

/// A shell that has made its group the foreground one of the terminal it shares with whoever started it has the
/// foreground of another terminal after a restart, also where a program of it was there. Who started it has his
/// terminal back, with its settings, when a checkpoint ends it.
fn shell_in_the_foreground(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let binary = cpr.binary().to_str().expect("our paths are text").to_owned();
    let outer = format!("{binary} run --name {JOB} -- $1; stty -a; read answer; echo got $answer");
    for shell in ["bash --norc --noprofile -i", "dash -i"] {
        dialogue_with(
            &cpr,
            &["sh", "-c", &outer, "sh", shell],
            &format!(
                r"> PS1='ready'':: '
< ready::
> sh -c 'stty -echo -icanon; {binary} checkpoint --stop {JOB}; stty echo icanon; echo again; read word; echo read $word'
< ended by a checkpoint
< [^-]icanon
< [^-]echo[^a-z]
> yes
< got yes
.
"
            ),
        );
        dialogue_with(
            &cpr,
            &[&binary, "restart", JOB],
            r"< again
> some
< read some
< ready::
> echo sleeps''; sleep 10003
< sleeps[^']
^Z Stopped
< ready::
> kill -KILL %1; exec true
.
",
        );
        cpr.cpr(["rm", JOB]).good();
    }
}

// LBNL-3.3.5, LBNL-2.2.2.4
#[test]
fn shell_in_the_foreground_as_root() {
    shell_in_the_foreground("shell_in_the_foreground_as_root", As::Root);
}

// LBNL-3.3.5, LBNL-2.2.2.4
#[test]
fn shell_in_the_foreground_as_user() {
    shell_in_the_foreground("shell_in_the_foreground_as_user", As::User);
}

// A shell on a controlling terminal with background jobs and a history, restarted on another terminal, with jobs and
// fg; stopping and continuing jobs is told the same way before and after:
// LBNL-2.2.2.4, LBNL-2.2.4B.3, LBNL-3.3.3.1
#[test]
fn interactive_bash_restart_as_root() {
    interactive_bash("interactive_bash_restart_as_root", As::Root);
}

// LBNL-2.2.2.4, LBNL-2.2.4B.3, LBNL-3.3.3.1
#[test]
fn interactive_bash_restart_as_user() {
    interactive_bash("interactive_bash_restart_as_user", As::User);
}
