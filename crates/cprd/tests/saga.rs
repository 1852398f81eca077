//! What SAGA says of jobs and their descriptions (GFD.90 and its extension for checkpoints), as far as `cpr submit` and
//! its kin have it.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use support::*;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

// SAGA-JOB-checkpoint-1, SAGA-JOB-checkpoint-3, SAGA-JOB-list_checkpoints, SAGA-JOB-recover-1, SAGA-JS-9
// SAGA-JOB-Core-suspend, SAGA-JOB-Core-resume, SAGA-JOB-Core-wait, SAGA-JOB-Core-get_job_description
// SAGA-JOB-Core-attr-times, SAGA-JOB-Core-attr-ExitCode, SAGA-JD-Core-CPUArchitecture
#[test]
fn a_job_is_what_it_was_described_as_and_goes_through_the_states_it_should() {
    let mut site = Site::new();
    site.configure_all("");
    site.start("all", "all");
    let begun = now_ms();
    let arch = format!("arch={}", std::env::consts::ARCH);
    // From some count on it waits, so that it does not end before that is wanted.
    let count = "i=0; while [ $i -lt 80 ]; do i=$((i+1)); echo $i; sleep 0.05; \
                 while [ $i -ge 40 ] && [ ! -e finish ]; do sleep 0.05; done; done; exit 7";
    let command = ["sh", "-c", count].map(String::from);
    let id = site.submit("out", &["--keep", "9", "--name", "sim", "--require", &arch], &command);
    let job = format!("@{id}");
    let elsewhere = site.submit("none", &["--require", "arch=pdp11"], &["true"]);
    site.wait_for_state(&id, "running");
    let mut made = Vec::new();
    for number in [5, 10, 15] {
        site.wait_for_count("out", number);
        made.push(site.json(&["checkpoint", &job])["id"].clone());
    }
    let listed = site.json(&["checkpoints", &id]);
    let listed: Vec<_> = listed["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["id"].clone())
        .collect();
    assert_eq!(listed, made);
    let spec = site.job(&id)["spec"].clone();
    assert_eq!(spec["command"], json!(command));
    assert_eq!((&spec["name"], &spec["keep"]), (&json!("sim"), &json!(9)));

    // What does not run is not saved: before it starts, while it is suspended, and when it has ended.
    let waiting = site.job(&elsewhere);
    assert_eq!(waiting["state"], "queued");
    assert!(waiting["reason"].as_str().unwrap().contains("arch=pdp11"), "{waiting}");
    assert!(!site.cpr(&["checkpoint", &format!("@{elsewhere}")]).status.success());
    site.text(&["suspend", &job]);
    wait_until("nothing of it runs", || site.job_processes().is_empty());
    let still = site.output("out");
    assert_eq!(site.job(&id)["state"], "suspended");
    assert!(!site.cpr(&["checkpoint", &job]).status.success());
    assert_eq!(site.output("out"), still);

    // From the one that is chosen, and from the newest.
    site.text(&["recover", &id, "--from", &made[0].to_string()]);
    site.wait_for_state(&id, "running");
    assert_eq!(site.job(&id)["from"], made[0]);
    site.text(&["suspend", &job]);
    let newest = site.json(&["checkpoints", &id]);
    let newest = newest["checkpoints"].as_array().unwrap().last().unwrap()["id"].clone();
    site.text(&["resume", &job]);
    site.wait_for_state(&id, "running");
    assert_eq!(site.job(&id)["from"], newest);

    let waited = site.cpr(&["wait", "--timeout", "100ms", &job]);
    assert!(
        !waited.status.success() && waited.status.code() != Some(7),
        "{waited:?}"
    );
    assert_eq!(site.job(&id)["state"], "running");
    std::fs::write(site.path("work/finish"), "").unwrap();
    assert_eq!(site.cpr(&["wait", &job]).status.code(), Some(7));
    let ended = site.wait_for_state(&id, "failed");
    assert_eq!(ended["exit_code"], 7);
    assert_eq!(site.output("out"), counted(80), "no count is lost");
    assert!(!site.cpr(&["checkpoint", &job]).status.success());
    let times = ["submitted_ms", "ended_ms"].map(|name| ended[name].as_i64().unwrap());
    assert!(
        begun - 1000 <= times[0] && times[0] < times[1] && times[1] <= now_ms() + 1000,
        "{ended}"
    );
    let all = site.json(&["jobs", "--all"]);
    let all: Vec<String> = all["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["id"].to_string())
        .collect();
    assert_eq!(all, [id, elsewhere]);
}
