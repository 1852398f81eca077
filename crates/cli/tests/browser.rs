//! A browser in its own sandbox (user, PID and network namespaces, system call filters, no files) goes on.
//!
//! Filters are root's to see, so that root saves the user's browser. The user restarts it.

mod support;

use std::fs;
use std::process::Command;

use support::{As, Cpr, PATIENCE, skip, wait_until};

const PAGE: &str = "<script>let n = 0; setInterval(() => console.log('TICK ' + ++n), 100)</script>";
const JOB: &str = "browser";
const AGAIN: &str = "again";

/// The last number that the page has said.
fn ticks(cpr: &Cpr) -> u32 {
    let said = String::from_utf8_lossy(&cpr.logs(JOB)).into_owned();
    let after = |line: &str| line.split("TICK ").nth(1)?.split('"').next()?.parse().ok();
    said.lines().filter_map(after).next_back().unwrap_or(0)
}

fn pid(cpr: &Cpr, job: &str) -> i32 {
    let listed = cpr.cpr(["ps", "--json"]).good().stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
    let mut jobs = listed["jobs"].as_array().expect("a list of jobs").iter();
    let found = jobs.find(|listed| listed["name"] == job).expect("the job is listed");
    found["pid"].as_i64().expect("it runs") as i32
}

/// How many processes below one have system call filters.
fn filtered(pid: i32) -> usize {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    let has_filters = |pid: &&i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == "Seccomp:\t2")
    };
    all.iter().filter(has_filters).count()
}

#[test]
fn a_browser_in_its_sandbox() {
    const TEST: &str = "a_browser_in_its_sandbox";
    if Command::new("chromium").arg("--version").output().is_err() {
        skip!(TEST, "chromium not found");
    }
    let Some(root) = Cpr::new(TEST, As::Root) else { return };
    let Some(user) = Cpr::new(TEST, As::User) else { return };
    let page = user.work.join("page.html");
    fs::write(&page, PAGE).expect("the test's directory can be written");
    user.give(&page);
    let command = [
        "chromium".to_owned(),
        "--headless".to_owned(),
        "--disable-gpu".to_owned(),
        "--enable-logging=stderr".to_owned(),
        format!("--user-data-dir={}", user.work.join("profile").display()),
        format!("file://{}", page.display()),
    ];
    user.run_detached(JOB, &[], &command);
    wait_until(PATIENCE, "the page runs", || ticks(&user) > 3);
    let before = pid(&user, JOB);
    let filters = filtered(before);
    assert!(filters > 0, "it has no sandbox here");
    let image = user.work.join("image.cpr").display().to_string();
    let stop = [
        "checkpoint",
        "--stop",
        "--tcp",
        "close",
        "-o",
        &image,
        &before.to_string(),
    ];
    root.cpr(stop).good();
    user.wait(JOB);
    let said = ticks(&user);
    user.cpr(["restart", "--detach", "--name", AGAIN, &image]).good();
    wait_until(PATIENCE, "the page goes on", || ticks(&user) > said + 3);
    let all = String::from_utf8_lossy(&user.logs(JOB)).into_owned();
    let next = format!("TICK {}\"", said + 1);
    assert!(all.contains(&next), "{next} was never said");
    assert_eq!(filtered(pid(&user, AGAIN)), filters);
    user.cpr(["kill", "-s", "KILL", AGAIN]).good();
}
