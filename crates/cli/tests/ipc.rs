//! Communication between processes through named objects: POSIX shared memory, and objects of the machine's IPC
//! namespace. What a job has in a namespace of its own is in `state.rs`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::victim::{Victim, compile};
use support::{As, Cpr, skip, wait_until};

/// The job uses something that cannot be checkpointed.
const UNSUPPORTED: i32 = 69;

/// POSIX shared memory: after a restart it is as it was at the checkpoint, whether it is still there, was written to
/// since, or is gone.
mod shared_memory {
    use super::*;

    const PAGE: u64 = 4096;

    fn paths(mode: &str) -> [PathBuf; 2] {
        [
            format!("/dev/shm/cpr-memory-{mode}"),
            format!("/dev/shm/sem.cpr-semaphore-{mode}"),
        ]
        .map(PathBuf::from)
    }

    /// Removes what a failed test has left.
    struct Names(String);

    impl Drop for Names {
        fn drop(&mut self) {
            for path in paths(&self.0) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn survives(test: &str, user: As, lost: bool) {
        let Some(cpr) = Cpr::new(test, user) else { return };
        let names = Names(format!("{}-{user:?}-{lost}", std::process::id()));
        let mode = &names.0;
        let program = compile(&cpr, "shared_memory");
        let victim = Victim::start(&cpr, &program, "on", &[mode]);
        cpr.checkpoint(victim.job, &[]);
        victim.check();
        let victim = Victim::start(&cpr, &program, "again", &[mode]);
        for _ in 0..2 {
            cpr.checkpoint(victim.job, &["--stop"]);
            if lost {
                for path in paths(mode) {
                    fs::remove_file(path).expect("the victim's memory has a name");
                }
                // A restart that fails leaves none behind.
                let aside = program.with_extension("aside");
                fs::rename(&program, &aside).expect("the program is there");
                let ended = cpr.cpr(["restart", "-d", victim.job]);
                assert_ne!(ended.code, 0, "{}", ended.text());
                for path in paths(mode) {
                    assert!(!path.exists(), "{} was left", path.display());
                }
                fs::rename(&aside, &program).expect("it was put aside");
            } else {
                let file = fs::File::options().write(true).open(&paths(mode)[0]);
                let file = file.expect("the victim's memory has a name");
                use std::os::unix::fs::FileExt;
                file.write_all_at(b"later", 3 * PAGE + 3).expect("it can be written to");
            }
            cpr.restart(victim.job);
        }
        victim.check();
    }

    #[test]
    fn kept_as_root() {
        survives("shared_memory::kept_as_root", As::Root, false);
    }

    #[test]
    fn kept_as_user() {
        survives("shared_memory::kept_as_user", As::User, false);
    }

    #[test]
    fn lost_as_root() {
        survives("shared_memory::lost_as_root", As::Root, true);
    }

    #[test]
    fn lost_as_user() {
        survives("shared_memory::lost_as_user", As::User, true);
    }
}

/// What root's job makes of the limits of its own IPC namespace is still so after a restart; a file of the job's says so,
/// for the machine has others.
#[test]
fn limits_that_a_job_has_set() {
    let Some(cpr) = Cpr::new("limits_that_a_job_has_set", As::Root) else {
        return;
    };
    let script = r#"cd /proc/sys
        if ! echo 4321 > kernel/msgmax || ! echo 77 > fs/mqueue/msg_max; then echo denied; exit; fi
        echo 1804289383 846930886 1681692777 7985 > kernel/sem
        echo ready
        until [ -e "$0" ]; do sleep 0.1; done
        cat kernel/msgmax fs/mqueue/msg_max kernel/sem"#;
    let go = cpr.work.join("go");
    cpr.run_detached(
        "limits",
        &[],
        &["sh", "-c", script, go.to_str().expect("the path is text")],
    );
    wait_until(Duration::from_secs(30), "the job has set its limits", || {
        !cpr.logs("limits").is_empty()
    });
    if cpr.logs("limits").starts_with(b"denied") {
        skip!("limits_that_a_job_has_set", "root may not set limits of IPC here");
    }
    for _ in 0..2 {
        cpr.checkpoint("limits", &["--stop"]);
        cpr.restart("limits");
    }
    fs::write(&go, "").expect("the directory is there");
    assert_eq!(cpr.wait("limits"), 0);
    assert_eq!(
        String::from_utf8_lossy(&cpr.logs("limits")),
        "ready\n4321\n77\n1804289383\t846930886\t1681692777\t7985\n"
    );
    let machines = fs::read_to_string("/proc/sys/kernel/msgmax").expect("there is /proc/sys");
    assert_ne!(machines, "4321\n");
}

/// An identifier that a job has asked for is that of the next object, whatever a restart has to make before; in an IPC
/// namespace that it has made, too.
#[test]
fn identifiers_that_a_job_has_chosen_for_its_next_objects() {
    let test = "identifiers_that_a_job_has_chosen";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let script = r#"cd /proc/sys/kernel
        if ! ipcmk -Q >/dev/null || ! echo 4711 > msg_next_id; then echo denied; exit; fi
        unshare --ipc sh -c 'ipcmk -S 2; echo 815 > sem_next_id; echo inside >&2
            until [ -e "$0" ]; do sleep 0.1; done
            cat sem_next_id; ipcmk -S 1; cat sem_next_id' "$0" &
        until [ -e "$0" ]; do sleep 0.1; done
        wait
        cat shm_next_id msg_next_id; ipcmk -Q; cat msg_next_id"#;
    let go = cpr.work.join("go");
    cpr.run_detached(
        "next",
        &[],
        &["sh", "-c", script, go.to_str().expect("the path is text")],
    );
    wait_until(Duration::from_secs(30), "the job has chosen", || {
        let said = cpr.logs("next");
        said.starts_with(b"denied") || said.ends_with(b"inside\n")
    });
    if cpr.logs("next").starts_with(b"denied") {
        skip!(test, "root may not choose identifiers here");
    }
    for _ in 0..2 {
        cpr.checkpoint("next", &["--stop"]);
        cpr.restart("next");
    }
    fs::write(&go, "").expect("the directory is there");
    assert_eq!(cpr.wait("next"), 0);
    let said = String::from_utf8_lossy(&cpr.logs("next")).into_owned();
    let after = said.split_once("inside\n").map(|(_, after)| after);
    let inside = "815\nSemaphore id: 815\n-1\n";
    let outside = "-1\n4711\nMessage queue id: 4711\n-1\n";
    assert_eq!(after, Some(format!("{inside}{outside}").as_str()), "{said}");
}

/// System V objects of jobs that share the machine's IPC namespace.
mod shared_ipc {
    use super::*;

    /// A segment of the machine's namespace; removed at the end, whatever happens.
    struct Segment(String);

    impl Segment {
        fn remove(&self) {
            let _ = Command::new("ipcrm").args(["-M", &self.0]).output();
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            self.remove();
        }
    }

    fn start<'a>(cpr: &'a Cpr, program: &Path, job: &'static str, mode: &str) -> Victim<'a> {
        Victim::start_with(cpr, program, job, &[mode], &["--share-ipc"])
    }

    fn checkpoint_refused(cpr: &Cpr, job: &str, words: &[&str]) {
        for command in ["checkpoint", "check"] {
            let ended = cpr.cpr([command, job]);
            let said = format!("{}{}", ended.text(), ended.stderr);
            assert_eq!(ended.code, UNSUPPORTED, "{said}");
            for word in words {
                assert!(said.contains(word), "no {word:?} in {said}");
            }
        }
    }

    fn segment(test: &str, user: As) {
        let Some(cpr) = Cpr::new(test, user) else { return };
        let key = 0x4350_0000 + (std::process::id() as i32 & 0xffff) * 2 + i32::from(user == As::Root);
        let (key, named) = (Segment(key.to_string()), format!("key {key:#x}"));
        let program = compile(&cpr, "segment");
        let first = start(&cpr, &program, "first", &key.0);
        let second = start(&cpr, &program, "second", &key.0);
        checkpoint_refused(&cpr, "first", &["segment", &named, "outside the job"]);
        second.check();
        // What the job leaves behind when it is ended is taken up again.
        for _ in 0..2 {
            cpr.checkpoint("first", &["--stop"]);
            cpr.restart("first");
        }
        cpr.checkpoint("first", &["--stop"]);
        key.remove();
        let ended = cpr.cpr(["restart", "-d", "first"]);
        if user == As::Root {
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            first.check();
        } else {
            // Only by chance could it get the same identifier.
            assert!(
                ended.code != 0 && ended.stderr.contains("identifier"),
                "{}",
                ended.stderr
            );
            let left = Command::new("ipcs").arg("-m").output().expect("ipcs runs");
            let hexadecimal = named.trim_start_matches("key ");
            assert!(!String::from_utf8_lossy(&left.stdout).contains(hexadecimal), "{left:?}");
        }
    }

    // LBNL-2.4.6, LBNL-2.2.4B.6
    #[test]
    fn segment_as_root() {
        segment("shared_ipc::segment_as_root", As::Root);
    }

    #[test]
    fn segment_as_user() {
        segment("shared_ipc::segment_as_user", As::User);
    }

    #[test]
    fn message_queue_is_refused() {
        let Some(cpr) = Cpr::new("shared_ipc::message_queue_is_refused", As::User) else {
            return;
        };
        let program = compile(&cpr, "refused_ipc");
        let victim = start(&cpr, &program, "queue", "queue");
        checkpoint_refused(&cpr, "queue", &["System V message queue", "--share-ipc"]);
        victim.check();
    }
}

/// What cannot be saved is refused by name, and the job goes on.
mod refused {
    use super::*;

    fn refused(mode: &'static str, words: &[&str]) {
        refused_program("refused_ipc", mode, words);
    }

    fn refused_program(program: &'static str, mode: &'static str, words: &[&str]) {
        let test = format!("refused::{mode}");
        let Some(cpr) = Cpr::new(&test, As::Root) else { return };
        let program = compile(&cpr, program);
        let victim = Victim::start(&cpr, &program, "job", &[mode]);
        if let Some(reason) = victim.said().strip_prefix("MISSING ") {
            skip!(&test, "this machine lacks it: {reason}");
        }
        let ended = cpr.cpr(["checkpoint", "job"]);
        assert_eq!(ended.code, UNSUPPORTED, "{}{}", ended.text(), ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "no {word:?} in {}", ended.stderr);
        }
        victim.check();
    }

    /// Private memory of a file in explicit huge pages.
    #[test]
    fn huge_pages() {
        refused("huge-memfd", &["explicit huge pages of a file"]);
    }

    #[test]
    fn secret_memory() {
        refused("secret", &["secret memory"]);
    }

    // LBNL-2.4.12
    #[test]
    fn asynchronous_io_under_way() {
        refused_program("aio", "busy", &["asynchronous I/O", "a request is under way"]);
    }

    #[test]
    fn userfaultfd() {
        refused("userfaultfd", &["userfaultfd"]);
    }

    #[test]
    fn message_notification() {
        refused("notify", &["/cpr-notify", "mq_notify"]);
    }
}
