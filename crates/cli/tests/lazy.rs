//! Jobs that run before their memory is back.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;

use support::victim::{Victim, compile};
use support::{As, Cpr, PATIENCE, wait_until};

/// Exit code of a damaged image.
const DAMAGED: i32 = 65;

/// A victim with 192 MiB of known contents, saved and ended; the image.
fn saved(cpr: &Cpr, mode: &str, options: &[&str]) -> String {
    let program = compile(cpr, "restless_memory");
    let victim = Victim::start(cpr, &program, "job", &[mode]);
    let image = format!("{}/image.cpr", cpr.work.display());
    cpr.checkpoint(victim.job, &[&["--stop", "-o", &image], options].concat());
    image
}

fn go(cpr: &Cpr) {
    fs::write(cpr.work.join("go-job"), "").expect("the test's directory can be written");
}

fn restart(cpr: &Cpr, image: &str, name: &str) {
    let said = cpr.cpr(["restart", "-d", "--lazy", "--name", name, image]).good();
    assert!(!said.stderr.contains("note"), "{}", said.stderr);
}

#[track_caller]
fn ends_well(cpr: &Cpr, name: &str) {
    let code = cpr.wait(name);
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&cpr.logs(name)));
}

fn state(cpr: &Cpr, job: &str) -> serde_json::Value {
    let path = cpr.state_dir.join("jobs").join(job).join("state.json");
    serde_json::from_slice(&fs::read(path).expect("the job has a state")).expect("it is JSON")
}

/// Memory that is missing.
fn is_coming(cpr: &Cpr, job: &str) -> bool {
    cpr.state_dir.join("jobs").join(job).join("pages.sock").exists()
}

/// Whatever the program does to its memory while it is still missing, it finds what it should.
#[test]
fn memory_is_right_whatever_is_done_to_it() {
    for options in [&[][..], &["--compress"]] {
        let Some(cpr) = Cpr::new("memory_is_right_whatever_is_done_to_it", As::Root) else {
            return;
        };
        let image = saved(&cpr, "change", options);
        go(&cpr);
        for name in ["one", "two", "three"] {
            restart(&cpr, &image, name);
            ends_well(&cpr, name);
        }
    }
}

/// A checkpoint asked for at once waits for all memory, and its image has it all; so does an increment made on it.
#[test]
fn checkpoints_have_what_was_missing() {
    let Some(cpr) = Cpr::new("checkpoints_have_what_was_missing", As::Root) else {
        return;
    };
    let image = saved(&cpr, "", &[]);
    restart(&cpr, &image, "again");
    let next = format!("{}/next.cpr", cpr.work.display());
    cpr.checkpoint("again", &["-o", &next]);
    let report = cpr.checkpoint("again", &["--incremental"]);
    let last = report["image"].as_str().expect("a path").to_owned();
    assert!(!is_coming(&cpr, "again"));
    let copy = format!("{}/last.cpr", cpr.work.display());
    cpr.cpr(["merge", &last, "-o", &copy]).good();
    cpr.cpr(["kill", "again", "--signal", "KILL"]).good();
    cpr.wait("again");
    go(&cpr);
    for (name, image) in [("next", &next), ("last", &copy)] {
        cpr.cpr(["restart", "-d", "--name", name, image]).good();
        ends_well(&cpr, name);
    }
}

/// An increment and the image it needs are both read from when memory is touched.
#[test]
fn memory_comes_from_a_chain_of_images() {
    let Some(cpr) = Cpr::new("memory_comes_from_a_chain_of_images", As::Root) else {
        return;
    };
    let program = compile(&cpr, "restless_memory");
    let victim = Victim::start(&cpr, &program, "job", &["change"]);
    cpr.checkpoint(victim.job, &["--incremental"]);
    let report = cpr.checkpoint(victim.job, &["--incremental", "--stop"]);
    assert!(report["parent"].is_string(), "{report}");
    go(&cpr);
    cpr.cpr(["restart", "-d", "--lazy", "job"]).good();
    ends_well(&cpr, "job");
}

/// Neither when init is killed nor when the supervisor is, the program sees memory that is not there.
#[test]
fn nobody_reads_zeros_when_the_job_is_killed() {
    let Some(cpr) = Cpr::new("nobody_reads_zeros_when_the_job_is_killed", As::Root) else {
        return;
    };
    let image = saved(&cpr, "watch", &[]);
    go(&cpr);
    for who in ["init", "supervisor"] {
        let mut shown = 0;
        for attempt in 0..40 {
            let name = format!("{who}{attempt}");
            restart(&cpr, &image, &name);
            let pid = state(&cpr, &name)[who]["pid"].as_i64().expect("a number");
            let coming = is_coming(&cpr, &name);
            let killed = cpr.program(&["kill", "-KILL", &pid.to_string()]);
            assert_eq!(killed.code, 0, "{}", killed.stderr);
            wait_until(PATIENCE, "the job has ended", || !cpr.is_running(&name));
            let said = fs::read_to_string(cpr.work.join("FAIL")).unwrap_or_default();
            assert_eq!(said, "", "{who}");
            cpr.cpr(["rm", &name]).good();
            shown += u32::from(coming);
            if shown == 5 {
                break;
            }
        }
        assert!(shown > 0, "all memory was always there before the kill of the {who}");
    }
}

/// Where the image turns out to be damaged, the job is ended before it sees any of it, and it is said why.
#[test]
fn a_damaged_image_ends_the_job() {
    let Some(cpr) = Cpr::new("a_damaged_image_ends_the_job", As::Root) else {
        return;
    };
    let image = saved(&cpr, "", &[]);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&image)
        .expect("the image can be opened");
    let at = 100 << 20;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the image can be read");
    file.write_all_at(&[!byte[0]], at).expect("the image can be written");
    go(&cpr);
    restart(&cpr, &image, "again");
    assert_ne!(cpr.wait("again"), 0);
    let said = String::from_utf8_lossy(&cpr.logs("again")).into_owned();
    assert!(said.contains("altered"), "{said}");
    assert!(!said.contains("FAIL") && !said.contains("OK"), "{said}");
    assert!(!is_coming(&cpr, "again"), "nobody is to wait for a job that has ended");
    // Without --lazy it is found before anything runs.
    assert_eq!(cpr.cpr(["restart", "-d", "--name", "eager", &image]).code, DAMAGED);
}

/// Who may not have faults served gets all memory at once, and is told.
#[test]
fn users_get_all_memory_at_once() {
    for options in [&[][..], &["--compress"]] {
        let Some(cpr) = Cpr::new("users_get_all_memory_at_once", As::User) else {
            return;
        };
        let image = saved(&cpr, "change", options);
        go(&cpr);
        let said = cpr.cpr(["restart", "-d", "--lazy", "--name", "again", &image]).good();
        assert!(
            said.stderr.contains("note: all memory is read before the job runs"),
            "{}",
            said.stderr
        );
        ends_well(&cpr, "again");
    }
}

/// Keeps 256 MiB that it knows, and says again and again that they are right.
const KNOWS: &str = "
import hashlib, itertools, time
data = bytearray(256 << 20)
for place in range(0, len(data), 4096): data[place:place + 8] = place.to_bytes(8, 'little')
right = hashlib.sha256(data).digest()
for number in itertools.count(1):
    if number % 20 == 0: assert hashlib.sha256(data).digest() == right, 'other memory'
    print(number, flush=True)
    time.sleep(0.01)
";

/// Another engine brings memory later, too, and a checkpoint waits until it is there.
#[test]
fn criu_lets_a_job_run_before_its_memory_is_back() {
    let test = "criu_lets_a_job_run_before_its_memory_is_back";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let shown = cpr.cpr(["engines", "show", "criu", "--json"]).good().json();
    if shown["works"] != true {
        support::skip!(test, "{}", shown["reason"]);
    }
    let numbers = || -> Vec<u64> {
        let text = String::from_utf8_lossy(&cpr.logs("sim")).into_owned();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    cpr.run_detached("sim", &["--engine", "criu"], &["python3", "-c", KNOWS]);
    wait_until(PATIENCE, "it counts", || numbers().last() > Some(&20));
    // Where the kernel does not track writes, memory is not copied while it runs, and the job goes on.
    let live = cpr.cpr(["checkpoint", "--live", "sim"]);
    if live.code != 0 {
        assert_eq!(live.code, 69, "{}", live.stderr);
        assert!(live.stderr.contains("soft-dirty"), "{}", live.stderr);
        assert!(cpr.is_running("sim"));
    }
    cpr.checkpoint("sim", &["--stop"]);
    let had = *numbers().last().expect("it has counted");
    let socket = cpr.state_dir.join("jobs/sim/engine-files/lazy-pages.socket");
    let seen = std::thread::scope(|scope| {
        let watch = scope.spawn(|| support::poll(PATIENCE, || socket.exists().then_some(())).is_some());
        let restarted = cpr.cpr(["restart", "-d", "--lazy", "sim"]);
        if restarted.code == 69 && restarted.stderr.contains("userfaultfd") {
            std::fs::create_dir_all(socket.parent().expect("it has one")).expect("a directory can be made");
            fs::write(&socket, "").expect("a file can be written");
            assert!(watch.join().expect("it has not panicked"));
            return None;
        }
        restarted.good();
        Some(watch.join().expect("it has not panicked"))
    });
    let Some(seen) = seen else {
        support::skip!(test, "the kernel does not let CRIU answer page faults");
    };
    assert!(seen, "something brings memory");
    // It waits for the memory, and is right.
    cpr.checkpoint("sim", &["--stop"]);
    assert!(!socket.exists(), "what brought it has ended");
    cpr.restart("sim");
    wait_until(PATIENCE, "it goes on with the right memory", || {
        numbers().last() > Some(&(had + 40))
    });
    assert!(cpr.is_running("sim"));
    cpr.cpr(["kill", "-s", "KILL", "sim"]).good();
}

/// A job whose memory does not come any more ends, and reads no zeros instead.
#[test]
fn a_job_ends_when_criu_brings_its_memory_no_more() {
    let test = "a_job_ends_when_criu_brings_its_memory_no_more";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let shown = cpr.cpr(["engines", "show", "criu", "--json"]).good().json();
    if shown["works"] != true {
        support::skip!(test, "{}", shown["reason"]);
    }
    let said = || String::from_utf8_lossy(&cpr.logs("sim")).into_owned();
    cpr.run_detached("sim", &["--engine", "criu"], &["python3", "-c", KNOWS]);
    wait_until(PATIENCE, "it counts", || said().contains("\n21\n"));
    cpr.checkpoint("sim", &["--stop"]);
    let restarted = cpr.cpr(["restart", "-d", "--lazy", "sim"]);
    if restarted.code == 69 {
        support::skip!(test, "{}", restarted.stderr);
    }
    restarted.good();
    let files = cpr.state_dir.join("jobs/sim/engine-files");
    let files = files.to_str().expect("it is UTF-8");
    let pager = fs::read_dir("/proc").expect("there is one").flatten().find(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&&b"lazy-pages"[..]) && words.contains(&files.as_bytes())
    });
    let Some(pager) = pager else {
        support::skip!(test, "all memory was there at once");
    };
    let killed = cpr.program(&["kill", "-KILL", &pager.file_name().to_string_lossy()]);
    // It may have done its work just now.
    if killed.code == 0 && cpr.wait("sim") == 0 {
        panic!("it has ended well: {}", said());
    }
    assert!(!said().contains("other memory"), "{}", said());
}
