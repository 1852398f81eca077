//! All jobs of a user saved before a machine is shut down, and let go on when it is there again.

mod support;

use std::fs;

use support::{As, Cpr, PATIENCE, wait_until};

/// Exit code where something cannot be saved.
const UNSUPPORTED: i32 = 69;

/// Commands that say what a whole run says, once there is a file `go`.
const JOBS: [(&str, &[&str], &str); 5] = [
    (
        "shell",
        &["sh", "-c", "n=1; until [ -e go ]; do sleep 0.05; done; echo shell $n"],
        "shell 1\n",
    ),
    (
        "pipeline",
        &[
            "sh",
            "-c",
            "(echo b; echo a; until [ -e go ]; do sleep 0.05; done) | sort",
        ],
        "a\nb\n",
    ),
    (
        "python",
        &[
            "python3",
            "-c",
            "import os, time\nx = list(range(100))\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint(sum(x))",
        ],
        "4950\n",
    ),
    (
        "threads",
        &[
            "python3",
            "-c",
            "import os, threading, time\ndef f():\n while not os.path.exists('go'): time.sleep(0.05)\nt = threading.Thread(target=f)\n\
             t.start(); t.join(); print('joined')",
        ],
        "joined\n",
    ),
    (
        "perl",
        &[
            "perl",
            "-e",
            "select(undef, undef, undef, 0.05) until -e 'go'; print 6 * 7, qq(\\n)",
        ],
        "42\n",
    ),
];

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

// LBNL-1.2.3.4
#[test]
fn all_jobs_are_ended_by_checkpoints_and_go_on() {
    let Some(cpr) = Cpr::new("all_jobs_are_ended_by_checkpoints_and_go_on", As::User) else {
        return;
    };
    for (name, command, _) in JOBS {
        cpr.run_detached(name, &[], command);
    }
    cpr.run_detached("finished", &[], &["true"]);
    assert_eq!(cpr.wait("finished"), 0);
    let saved = cpr.cpr(["checkpoint", "--all", "--stop", "--json"]).good().json();
    assert_eq!(saved["jobs"].as_array().map(Vec::len), Some(JOBS.len()), "{saved}");
    for (name, ..) in JOBS {
        wait_until(PATIENCE, "the job has ended", || !cpr.is_running(name));
    }
    let restarted = cpr.cpr(["restart", "--all"]).good();
    assert_eq!(restarted.text().lines().count(), JOBS.len(), "{}", restarted.text());
    fs::write(cpr.work.join("go"), "").expect("the test's directory can be written");
    for (name, _, output) in JOBS {
        assert_eq!(cpr.wait(name), 0, "{name}");
        assert_eq!(text(cpr.logs(name)), output, "{name}");
    }
    assert_eq!(
        cpr.cpr(["restart", "--all"]).good().text(),
        "",
        "what has finished is not restarted"
    );
}

#[test]
fn a_job_that_cannot_be_saved_goes_on_and_the_others_are_saved() {
    let Some(cpr) = Cpr::new("a_job_that_cannot_be_saved_goes_on", As::User) else {
        return;
    };
    // The job's init is no part of it.
    let holder = "import os, time
init = os.pidfd_open(1)
open('ready', 'w')
time.sleep(1000)";
    cpr.run_detached("a", &[], &["python3", "-c", holder]);
    wait_until(PATIENCE, "it holds an object", || cpr.work.join("ready").exists());
    cpr.run_detached("b", &[], &["sleep", "1000"]);
    let ended = cpr.cpr(["checkpoint", "--all", "--stop"]);
    assert_eq!(ended.code, UNSUPPORTED, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("job a: ") && ended.text().contains("b: "),
        "{}{}",
        ended.stderr,
        ended.text()
    );
    assert!(cpr.is_running("a"));
    wait_until(PATIENCE, "the other one has ended", || !cpr.is_running("b"));
    cpr.cpr(["restart", "--all", "--quiet"]).good();
    assert!(cpr.is_running("b"));
}
