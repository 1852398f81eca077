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
    let Some(cpr) = Cpr::new("users_get_all_memory_at_once", As::User) else {
        return;
    };
    let image = saved(&cpr, "change", &[]);
    go(&cpr);
    let said = cpr.cpr(["restart", "-d", "--lazy", "--name", "again", &image]).good();
    assert!(
        said.stderr.contains("note: all memory is read before the job runs"),
        "{}",
        said.stderr
    );
    ends_well(&cpr, "again");
}
