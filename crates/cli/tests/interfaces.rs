//! libgridcpr from other angles: used wrongly, by a layer under a program, and to see everything that an image holds.

mod support;

use std::fs;
use std::time::Duration;

use support::library::{ROOT, compile_with_library};
use support::{As, Cpr, wait_until};

/// Every call that makes no sense is an error with a message, and no byte is read or written that is not the caller's.
#[test]
fn wrong_use_is_an_error_and_nothing_else() {
    let Some(cpr) = Cpr::new("wrong use", As::User) else {
        return;
    };
    let program = compile_with_library(&cpr, "tests/library/wrong.c", "wrong");
    cpr.run_detached("j", &[], &["sleep", "1000"]);
    let report = cpr.checkpoint("j", &["--stop"]);
    let image = report["image"].as_str().expect("an image");
    let base = |name: &str| {
        let directory = cpr.work.join(name);
        fs::create_dir(&directory).expect("a directory can be made");
        cpr.give(&directory);
        directory.display().to_string()
    };
    let said = cpr.program(&[&program, &base("plain"), image]).good().text();
    let refused: u32 = said.trim().parse().expect("a number");
    assert!(refused > 80, "{refused} wrong calls");
    let valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"];
    if std::process::Command::new("valgrind")
        .arg("--version")
        .output()
        .is_err()
    {
        return support::note_skip("wrong use", "needs valgrind");
    }
    let leaks = "--errors-for-leak-kinds=definite";
    let watched = base("watched");
    let words = [&valgrind[..], &[leaks, &program, &watched, image]].concat();
    assert_eq!(cpr.program(&words).good().text(), said);
}

/// A program with one of everything that images describe.
const OBJECTS: &str = r#"
import array, fcntl, mmap, os, pty, resource, signal, socket, sys, threading, time
os.umask(0o027)
os.setpriority(os.PRIO_PROCESS, 0, 3)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
signal.signal(signal.SIGUSR1, lambda *unused: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGUSR2)
signal.setitimer(signal.ITIMER_REAL, 1000, 2000)
signal.signal(signal.SIGALRM, lambda *unused: None)
kept = open('kept.txt', 'w+')
kept.write('0123456789')
kept.flush()
fcntl.lockf(kept, fcntl.LOCK_EX, 4, 2)
gone = open('gone.txt', 'w+')
gone.write('deleted')
gone.flush()
os.unlink('gone.txt')
reader, writer = os.pipe()
os.write(writer, b'in the pipe')
left, right = socket.socketpair()
left.send(b'in the socket')
listener = socket.create_server(('127.0.0.1', 0))
master, slave = pty.openpty()
shared = mmap.mmap(-1, 8192)
shared[:6] = b'shared'
private = array.array('d', range(100000))
directory = os.open('.', os.O_RDONLY)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.fork() == 0:
    os.setpgid(0, 0)
    time.sleep(1000)
print('ready', flush=True)
time.sleep(1000)
"#;

/// Through the C interface every kind of object can be reached that an image holds.
// LBNL-3.6.3.3
#[test]
fn every_object_of_an_image_can_be_reached_from_c() {
    let Some(cpr) = Cpr::new("objects", As::User) else {
        return;
    };
    let tool = compile_with_library(&cpr, "tests/library/image.c", "image");
    cpr.run_detached("j", &[], &["/usr/bin/python3", "-c", OBJECTS]);
    wait_until(Duration::from_secs(30), "ready", || cpr.logs("j") == b"ready\n");
    let report = cpr.checkpoint("j", &["--stop"]);
    let image = report["image"].as_str().expect("an image");
    let shown = cpr.program(&[&tool, "show", image]).good().text();
    for line in ["file", "region", "thread", "process"] {
        assert!(
            shown.lines().any(|shown| shown.starts_with(&format!("{line} "))),
            "no {line}: {shown}"
        );
    }
    let json = shown
        .lines()
        .find_map(|line| line.strip_prefix("json "))
        .expect("everything as JSON");
    let all: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let list = |pointer: &str| {
        all.pointer(pointer)
            .and_then(|value| value.as_array())
            .map_or(0, Vec::len)
    };
    // What there has to be, at least how often.
    for (pointer, least) in [
        ("/processes", 2),
        ("/processes/0/threads", 2),
        ("/processes/0/descriptors", 12),
        ("/processes/0/limits", 16),
        ("/processes/0/signal_actions", 2),
        ("/processes/0/interval_timers", 1),
        ("/processes/0/posix_locks", 1),
        ("/address_spaces", 2),
        ("/address_spaces/0/mappings", 20),
        ("/mapped_files", 3),
        ("/files", 12),
        ("/saved_files", 2),
        ("/pipes", 1),
        ("/sockets", 2),
        ("/inet_sockets", 1),
        ("/terminals", 1),
    ] {
        assert!(list(pointer) >= least, "{pointer}: {} of {least}", list(pointer));
    }
    let number = |pointer: &str| all.pointer(pointer).and_then(serde_json::Value::as_u64);
    assert_eq!(number("/processes/0/umask"), Some(0o027));
    let limits = all["processes"][0]["limits"].as_array().expect("limits");
    let files = limits
        .iter()
        .find(|limit| limit["resource"] == 7)
        .expect("RLIMIT_NOFILE");
    assert_eq!((files["soft"].as_u64(), files["hard"].as_u64()), (Some(100), Some(200)));
    let parent = number("/processes/0/pid");
    assert_eq!(number("/processes/1/ppid"), parent);
    assert_eq!(
        number("/processes/1/pgid"),
        number("/processes/1/pid"),
        "a process group of its own"
    );
    for pointer in [
        "/processes/0/cwd",
        "/processes/0/sid",
        "/processes/0/pending_signals",
        "/processes/0/accounting",
        "/processes/0/threads/0/cpu",
        "/processes/0/threads/0/blocked_signals",
        "/processes/0/threads/0/scheduling",
        "/processes/0/threads/0/credentials",
        "/address_spaces/0/layout",
        "/terminals/0/attributes",
        "/ipc",
        "/checkpoint/time_ns",
    ] {
        assert!(
            all.pointer(pointer).is_some_and(|value| !value.is_null()),
            "{pointer} is missing"
        );
    }
}

/// A layer between a program and its MPI library hears of a checkpoint in every rank before any of them is stopped.
// LBNL-2.1.4, LBNL-2.3.4
#[test]
fn an_mpi_layer_is_told_in_every_rank() {
    let test = "MPI layer";
    let Some(cpr) = Cpr::new(test, As::User) else {
        return;
    };
    for program in ["mpirun", "mpicc"] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            return support::note_skip(test, &format!("there is no {program}"));
        }
    }
    let library = support::library::library(&cpr).display().to_string();
    let header = format!("{ROOT}/crates/gridcpr/include");
    let place = format!("-Wl,-rpath,{}", cpr.work.display());
    let (hook, ring) = (
        cpr.work.join("hook.so").display().to_string(),
        cpr.work.join("ring").display().to_string(),
    );
    let source = format!("{ROOT}/examples/mpi/hook.c");
    let warnings = ["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"];
    let words = [
        &["mpicc"],
        &warnings[..],
        &["-I", &header, "-o", &hook, &source, &library, &place],
    ]
    .concat();
    cpr.program(&words).good();
    let source = format!("{ROOT}/tests/workloads/mpi_ring/ring.c");
    cpr.program(&["mpicc", "-O1", "-o", &ring, &source]).good();
    let log = cpr.work.join("hook.log");
    let (named, loaded) = (format!("HOOK_LOG={}", log.display()), format!("LD_PRELOAD={hook}"));
    let mpi = [
        "mpirun",
        "--oversubscribe",
        "-np",
        "2",
        "--mca",
        "btl",
        "self,vader",
        "-x",
    ];
    let words = [&["env", &named], &mpi[..], &[&loaded, &ring]].concat();
    cpr.run_detached("ring", &[], &words);
    let half = cpr.work.join("half");
    wait_until(Duration::from_secs(60), "half of it is done", || half.exists());
    let report = cpr.checkpoint("ring", &["--stop"]);
    let image = report["image"].as_str().expect("an image");
    let stopped = cpr.cpr(["inspect", "--json", image]).good().json();
    let stopped = stopped["manifest"]["checkpoint"]["time_ns"]
        .as_u64()
        .expect("when the job was stopped");
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let said = read();
    for rank in 0..2 {
        let told = format!(" rank {rank} of 2: before, 1000 messages");
        let line = said
            .lines()
            .find(|line| line.ends_with(&told))
            .unwrap_or_else(|| panic!("{told}: {said}"));
        let when: u64 = line
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .expect("a time");
        assert!(when < stopped, "{line}, and the job was stopped at {stopped}");
    }
    cpr.restart("ring");
    fs::write(cpr.work.join("go"), "").expect("a file can be made");
    assert_eq!(cpr.wait("ring"), 0);
    let said = read();
    for rank in 0..2 {
        assert!(said.contains(&format!(" rank {rank} of 2: restart, ")), "{said}");
    }
    assert_eq!(String::from_utf8_lossy(&cpr.logs("ring")).lines().count(), 2);
}
