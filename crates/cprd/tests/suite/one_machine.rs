//! `cprd all`, and `cpr` as its users see it: real jobs, real checkpoints, real crashes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::new_site;
use crate::support::*;

fn site() -> Option<Site> {
    let mut site = new_site()?;
    site.configure_all("");
    site.start("all", "all");
    Some(site)
}

// GFD93-INT-USERqueue, GFD93-INT-JMlaunch, GFD93-JM-2, GFD93-WF-1.1, GFD93-WF-1.3, GCA-ENV-5
#[test]
fn a_job_runs_as_its_user_with_its_environment_arguments_and_directory() {
    let Some(site) = site() else { return };
    let script = r#"id -u; pwd; echo "$COLOUR"; echo "$1"; cat /proc/self/status | grep CapEff; exit 7"#;
    let mut command = site.command(&["submit", "-o", "out", "--", "sh", "-c", script, "sh", "a  b\n'c'"]);
    let submitted = command.env("COLOUR", "deep blue").output().unwrap();
    let id = String::from_utf8(submitted.stdout).unwrap().trim().to_string();
    let job = site.wait_for_state(&id, "failed");
    assert_eq!(job["exit_code"], 7);
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let work = site.path("work").canonicalize().unwrap();
    let text = site.output("out");
    let expected = format!("{uid}\n{}\ndeep blue\na  b\n'c'\n", work.display());
    assert!(text.starts_with(&expected), "{text}");
    if am_root() {
        assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    }
    assert_eq!(fs::metadata(work.join("out")).unwrap().uid(), uid);
    let another = site.submit("out2", &[], &["true"]);
    assert_ne!(another, id);
    assert!(site.cpr(&["wait", &format!("@{another}")]).status.success());
}

// XGCP-USE-3, GCA-UC-5.2.6, GCA-UC-5.2.8, GCA-UC-5.2.10, GCA-UC-5.3.4, GCA-UC-5.3.9, GCA-UC-5.3.10, GFD93-SCOPE-2
// GFD93-SM-5
#[test]
fn a_job_is_checkpointed_suspended_and_recovered_from_the_checkpoint_of_ones_choice() {
    let Some(site) = site() else { return };
    let id = site.submit("out", &["--keep", "5"], &counter(200));
    let grid_job = format!("@{id}");
    site.wait_for_state(&id, "running");
    let mut made = Vec::new();
    for number in [5, 15, 25] {
        site.wait_for_count("out", number);
        let checkpoint = site.json(&["checkpoint", &grid_job]);
        assert_eq!(checkpoint["state"], "complete");
        assert_eq!(checkpoint["generation"], made.len() + 1);
        assert_eq!(checkpoint["node"], "n1");
        assert!(checkpoint["bytes"].as_u64().unwrap() > 0);
        made.push((checkpoint["id"].to_string(), site.output("out").lines().count()));
    }
    // What is an option for jobs of this machine is not left out quietly.
    assert_eq!(site.cpr(&["checkpoint", "--stop", &grid_job]).status.code(), Some(64));
    let suspended = site.json(&["suspend", &grid_job]);
    assert_eq!(suspended["state"], "suspended");
    // What removes its directory may be at work still.
    wait_until("nothing of it runs", || site.job_processes().is_empty());
    let (first, at_first) = &made[0];
    site.text(&["recover", &id, "--from", first]);
    site.wait_for_state(&id, "running");
    assert_eq!(site.job(&id)["from"].to_string(), *first);
    // What it had written after that checkpoint is written again.
    let length = site.output("out").lines().count();
    assert!(length <= at_first + 30, "{length} {at_first}");
    site.text(&["checkpoint", &grid_job]);
    assert!(site.cpr(&["wait", &grid_job]).status.success());
    assert_eq!(site.output("out"), counted(200));
    let left = site.json(&["checkpoints", &id]);
    assert_eq!(
        left["checkpoints"].as_array().unwrap().len(),
        0,
        "freed after a good end"
    );
}

// GFD93-SM-4
#[test]
fn killed_daemons_cost_nothing_while_the_lease_lasts() {
    let Some(mut site) = site() else { return };
    let id = site.submit("out", &["--every", "1s"], &counter(200));
    site.wait_for_state(&id, "running");
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(130 * round));
        site.kill("all");
        site.start("all", "all");
    }
    assert!(site.cpr(&["wait", &format!("@{id}")]).status.success());
    assert_eq!(site.output("out"), counted(200));
    assert_eq!(site.job(&id)["incarnation"], 1, "it was never restarted");
}

// The fence: no daemon is left that could end the job, and it ends all the same.
#[test]
fn a_job_ends_by_itself_when_nobody_renews_its_lease_and_goes_on_when_somebody_is_back() {
    let Some(mut site) = site() else { return };
    let id = site.submit("out", &[], &counter(300));
    site.wait_for_count("out", 10);
    site.text(&["checkpoint", &format!("@{id}")]);
    site.kill("all");
    let killed = Instant::now();
    assert!(!site.job_processes().is_empty());
    wait_until("the job has ended", || site.job_processes().is_empty());
    assert!(
        killed.elapsed() < Duration::from_millis(LEASE_MS),
        "{:?}",
        killed.elapsed()
    );
    site.start("all", "all");
    site.wait_for_state(&id, "running");
    assert!(site.cpr(&["wait", &format!("@{id}")]).status.success());
    assert_eq!(site.output("out"), counted(300));
    let job = site.job(&id);
    assert_eq!(job["incarnation"], 2);
    assert!(job["from"].is_i64(), "{job}");
}

// GFD93-EH-6, GFD93-EH-8, GFD93-JM-5, GFD93-GLO-1
#[test]
fn a_job_that_the_system_failed_goes_on_and_one_that_failed_by_itself_does_not() {
    let Some(site) = site() else { return };
    let own = site.submit("own", &[], &["sh", "-c", "exit 3"]);
    let crashed = site.submit("crashed", &[], &["sh", "-c", "kill -SEGV $$"]);
    let good = site.submit("good", &[], &counter(150));
    let lost = site.submit("lost", &[], &counter(150));
    site.wait_for_count("lost", 10);
    site.text(&["checkpoint", &format!("@{lost}")]);
    // Its supervisor dies, and it with that, as when the kernel runs out of memory.
    let name = format!("{lost}.1");
    let supervisor = site.job_processes().into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&name.as_bytes()) && words.contains(&b"run".as_slice())
    });
    let supervisor = rustix::process::Pid::from_raw(supervisor.unwrap()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert_eq!(site.wait_for_state(&own, "failed")["incarnation"], 1);
    let crashed = site.wait_for_state(&crashed, "failed");
    assert_eq!((&crashed["incarnation"], &crashed["signal"]), (&1.into(), &11.into()));
    assert!(crashed["reason"].as_str().unwrap().contains("signal 11"));
    let lost = site.wait_for_state(&lost, "finished");
    assert_eq!(lost["incarnation"], 2);
    assert_eq!(site.wait_for_state(&good, "finished")["incarnation"], 1);
    assert_eq!(site.output("lost"), counted(150));
}

#[test]
fn a_job_of_lower_priority_makes_room_and_goes_on_from_where_it_was() {
    let Some(mut site) = new_site() else { return };
    site.configure_all("preempt = true");
    site.start("all", "all");
    let low = site.submit("low", &["--slots", "3"], &counter(150));
    site.wait_for_count("low", 10);
    let same = site.submit("same", &["--slots", "3"], &["true"]);
    wait_until("an equal waits", || {
        site.job(&same)["reason"]
            .as_str()
            .is_some_and(|why| why.contains("full"))
    });
    assert_eq!(site.job(&low)["state"], "running");
    let high = site.submit("high", &["--slots", "4", "--priority", "7"], &counter(40));
    assert!(site.cpr(&["wait", &format!("@{high}")]).status.success());
    assert_eq!(site.output("high"), counted(40));
    assert!(
        site.cpr(&["wait", &format!("@{low}")]).status.success(),
        "{}",
        site.told()
    );
    assert_eq!(site.output("low"), counted(150), "nothing is done twice or left out");
    let ended = site.job(&low);
    assert_eq!((&ended["incarnation"], &ended["failures"]), (&2.into(), &0.into()));
    assert!(ended["from"].is_i64(), "{ended}");
    let told = site.text(&["events", "--job", &low, "--kind", "job.preempted"]);
    assert!(told.contains(&format!("job {low} makes room for job {high}")), "{told}");
    site.wait_for_state(&same, "finished");
}

#[test]
fn jobs_of_an_array_know_their_numbers_and_adapt_when_they_are_saved() {
    let Some(site) = site() else { return };
    let script = r#"echo "number $GRIDCPR_ARRAY_INDEX""#;
    let submit = |arguments: &[&str]| -> Value {
        serde_json::from_str(&site.text(&[&["submit", "--json", "--array"], arguments].concat())).unwrap()
    };
    let submitted = submit(&["1-7:3", "-o", "out-%a", "--", "sh", "-c", script]);
    let jobs = submitted["jobs"].as_array().unwrap().clone();
    assert_eq!((jobs.len(), &submitted["array"]), (3, &jobs[0]));
    for (job, index) in jobs.iter().zip([1, 4, 7]) {
        site.wait_for_state(&job.to_string(), "finished");
        assert_eq!(site.output(&format!("out-{index}")), format!("number {index}\n"));
    }
    let listed = site.json(&["jobs", "--all", "--array", &submitted["array"].to_string()]);
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 3);
    let long = submit(&["0-1", "-o", "long-%a", "--", "sleep", "1000"]);
    let array = long["array"].to_string();
    let ended = site.json(&["cancel", "--array", &array]);
    assert_eq!(ended["jobs"], long["jobs"]);
    for job in long["jobs"].as_array().unwrap() {
        site.wait_for_state(&job.to_string(), "cancelled");
    }
    assert_eq!(
        site.cpr(&["submit", "--array", "3-1", "--", "true"]).status.code(),
        Some(64)
    );
    let id = site.submit("adapt", &["--adapt"], &counter(10_000));
    site.wait_for_count("adapt", 3);
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    assert!(
        made["cost_ms"].as_u64() <= made["took_ms"].as_u64() && made["cost_ms"].is_u64(),
        "{made}"
    );
    let every = site.job(&id)["interval_ms"].as_i64().unwrap();
    assert!((10_000..600_000).contains(&every), "{every}");
    site.text(&["cancel", &id]);
}

#[test]
fn a_grid_with_a_name_is_chosen_for_all_further_commands_and_the_queue_says_why_a_job_waits() {
    let Some(site) = site() else { return };
    let config = site.path("work/config");
    let cpr = |arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env_remove("GRIDCPR_GRID").env("XDG_CONFIG_HOME", &config);
        command.output().unwrap()
    };
    let text = |arguments: &[&str]| {
        let output = cpr(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let address = format!("unix:{}", site.path("cprd.sock").display());
    text(&["context", "set", "here", "--grid", &address]);
    text(&[
        "context",
        "set",
        "there",
        "--grid",
        "unix:/no/such/socket",
        "--ca",
        "ca.pem",
    ]);
    text(&["context", "use", "here"]);
    let id = text(&["submit", "-o", "out", "--node", "n9", "--", "true"])
        .trim()
        .to_string();
    let queue: Value = serde_json::from_str(&text(&["queue", "--json"])).unwrap();
    assert_eq!(
        (&queue["queue"][0]["place"], &queue["queue"][0]["job"]["id"]),
        (&1.into(), &id.parse::<i64>().unwrap().into())
    );
    let waits = || text(&["queue"]).contains("only n9 may have it");
    wait_until("it is said why it waits", waits);
    let mode = fs::metadata(config.join("gridcpr/contexts.json")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed: Value = serde_json::from_str(&text(&["context", "--json"])).unwrap();
    assert_eq!(listed["context"], "here");
    let ca = listed["grids"]["there"]["ca"].as_str().unwrap();
    assert!(ca.starts_with('/') && ca.ends_with("work/ca.pem"), "{ca}");
    text(&["context", "use", "there"]);
    assert_eq!(cpr(&["jobs"]).status.code(), Some(66), "it is another grid now");
    let named = site
        .command(&["jobs", &id])
        .env("XDG_CONFIG_HOME", &config)
        .output()
        .unwrap();
    assert!(named.status.success(), "GRIDCPR_GRID comes first");
    assert_eq!(cpr(&["context", "use", "nowhere"]).status.code(), Some(66));
    assert_eq!(
        cpr(&["context", "set", "x", "--grid", "ftp://x"]).status.code(),
        Some(64)
    );
    text(&["context", "rm", "there"]);
    let listed: Value = serde_json::from_str(&text(&["context", "--json"])).unwrap();
    assert_eq!(listed["context"], Value::Null, "what is gone is not chosen");
    text(&["context", "use", "--none"]);
}

#[test]
fn what_cannot_be_started_fails_with_the_reason() {
    let Some(site) = site() else { return };
    let id = site.submit("out", &[], &["/no/such/program"]);
    assert_eq!(site.wait_for_state(&id, "failed")["exit_code"], 127);
    fs::create_dir(site.path("gone")).unwrap();
    let output = site
        .command(&["submit", "--", "true"])
        .current_dir(site.path("gone"))
        .output()
        .unwrap();
    let id = String::from_utf8(output.stdout).unwrap().trim().to_string();
    // It may have been quick enough.
    let _ = fs::remove_dir(site.path("gone"));
    wait_until("it is over", || {
        ["failed", "finished"].contains(&site.job(&id)["state"].as_str().unwrap())
    });
    let cancelled = site.submit("out", &[], &counter(10_000));
    site.wait_for_state(&cancelled, "running");
    site.text(&["cancel", &cancelled]);
    site.wait_for_state(&cancelled, "cancelled");
    wait_until("nothing is left", || site.job_processes().is_empty());
    let refused = site.cpr(&["checkpoint", &format!("@{cancelled}")]);
    assert_eq!(refused.status.code(), Some(68));
    assert_eq!(site.cpr(&["jobs", "4711"]).status.code(), Some(66));
}

/// Sends bytes, and gives everything that comes back.
fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = Vec::new();
    // Where it is cut off, what came counts.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn the_network_is_served_with_a_token_only_and_nothing_that_comes_from_it_does_harm() {
    let Some(mut site) = new_site() else { return };
    site.configure_all("listen = ['127.0.0.1:0']");
    site.start("all", "all");
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    let address = log
        .split("http://")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_string();
    let config = site.path("all.toml");
    let config = config.to_str().unwrap();
    let issue = |name: &str, role: &str| {
        let made = site
            .cprd(&["--config", config, "token", name, "--role", role])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::write(site.path(name), made.stdout).unwrap();
        site.path(name)
    };
    let uid = rustix::process::geteuid();
    let own = nix::unistd::User::from_uid(uid.as_raw().into()).unwrap().unwrap().name;
    let files = [
        issue(&own, "user"),
        issue("no-such-account", "user"),
        issue("n9", "node"),
    ];
    let remote = |file: Option<&std::path::Path>, arguments: &[&str]| {
        let mut command = std::process::Command::new(site.path("cpr"));
        command
            .args(arguments)
            .env("GRIDCPR_GRID", format!("http://{address}"))
            .current_dir(site.path("work"));
        if let Some(file) = file {
            command.env("GRIDCPR_TOKEN_FILE", file);
        }
        command.output().unwrap()
    };
    let denied = Some(77);
    let submit = ["submit", "-o", "out", "--", "sh", "-c", "id -u"];
    assert_eq!(remote(None, &["jobs"]).status.code(), denied);
    fs::write(site.path("unknown"), "0123456789abcdef").unwrap();
    assert_eq!(remote(Some(&site.path("unknown")), &["jobs"]).status.code(), denied);
    assert_eq!(remote(Some(&site.path("all.toml")), &["jobs"]).status.code(), Some(64));
    let accepted = remote(Some(&files[0]), &submit);
    assert!(accepted.status.success(), "{accepted:?}");
    assert_eq!(remote(Some(&files[1]), &submit).status.code(), denied);
    assert_eq!(remote(Some(&files[2]), &submit).status.code(), denied);
    let id = String::from_utf8(accepted.stdout).unwrap().trim().to_string();
    let waited = remote(Some(&files[0]), &["wait", &format!("@{id}")]);
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(site.output("out"), format!("{}\n", uid.as_raw()));
    let listed: Value = serde_json::from_slice(&remote(Some(&files[0]), &["jobs", "-a", "--json"]).stdout).unwrap();
    assert_eq!(listed["jobs"][0]["id"].to_string(), id);
    assert_eq!(remote(Some(&files[1]), &["cancel", &id]).status.code(), Some(66));
    assert_eq!(remote(Some(&files[0]), &["drain", "n1"]).status.code(), denied);

    let token = fs::read_to_string(&files[0]).unwrap();
    let head = format!(
        "Host: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n",
        token.trim()
    );
    let post = |body: &str| {
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        raw(&address, request.as_bytes())
    };
    for body in [
        "",
        "{",
        "[]",
        "{\"command\": 7}",
        r#"{"command": [], "directory": "/"}"#,
        r#"{"command": ["a"], "directory": "relative"}"#,
        r#"{"command": ["a\u0000"], "directory": "/"}"#,
        r#"{"command": ["a"], "directory": "/", "unknown": 1}"#,
        r#"{"command": ["a"], "directory": "/", "after": [99]}"#,
    ] {
        let answer = post(body);
        assert!(answer.starts_with("HTTP/1.1 4"), "{body}: {answer}");
        assert!(answer.contains("\"kind\""), "{answer}");
    }
    assert!(post(&"x".repeat(17 << 20)).starts_with("HTTP/1.1 413"));
    raw(&address, b"\x00\xff\x16\x03\x01 nonsense\r\n\r\n");
    raw(
        &address,
        format!("GET /v1/jobs?limit=99999999999999999999 HTTP/1.1\r\n{head}\r\n").as_bytes(),
    );
    raw(&address, format!("GET /v1/jobs/%00 HTTP/1.1\r\n{head}\r\n").as_bytes());
    let get = |path: &str| raw(&address, format!("GET {path} HTTP/1.1\r\n{head}\r\n").as_bytes());
    assert!(get("/healthz").ends_with("ok\n"));
    assert!(get("/readyz").ends_with("ready\n"));
    assert!(get("/metrics").contains("gridcpr_jobs{state=\"finished\"} 1"));
    let described = get("/openapi.json");
    for path in ["/v1/jobs", "/v1/checkpoints/{id}", "/v1/nodes/{name}/drain", "JobSpec"] {
        assert!(described.contains(path), "{path}");
    }
    let some = get("/v1/jobs?fields=id,state");
    assert!(
        some.ends_with(&format!(
            r#"{{"items":[{{"id":{id},"state":"finished"}}],"next":null}}"#
        )),
        "{some}"
    );
    assert!(get("/v1/jobs?fields=id,nonsense").starts_with("HTTP/1.1 400"));
}

// GCA-GCS-6, GCA-GCS-7, XGCP-JCP-8
#[test]
fn subscribers_hear_of_everything_that_happens_to_a_job() {
    let Some(site) = site() else { return };
    let id = site.submit("out", &["--every", "1s"], &counter(100));
    let heard = site.path("heard");
    let mut listener = site
        .command(&["events", "--follow", "--json", "--job", &id])
        .stdout(fs::File::create(&heard).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    site.wait_for_state(&id, "finished");
    let kinds = || -> Vec<String> {
        let text = fs::read_to_string(&heard).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .map(|event| event["kind"].as_str().unwrap().to_string())
            .collect()
    };
    wait_until("the end is heard of", || {
        kinds().iter().any(|kind| kind == "job.finished")
    });
    listener.kill().unwrap();
    listener.wait().unwrap();
    let made = kinds().iter().filter(|kind| *kind == "checkpoint.complete").count();
    let listed = site.json(&["checkpoints", "-a", &id]);
    assert!(made > 0);
    assert_eq!(
        made,
        listed["checkpoints"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|c| c["state"] == "freed")
            .count()
    );
}

// GFD93-INT-JMauth, XGCP-SEC-1
#[test]
fn a_stranger_neither_sees_nor_changes_a_job_and_cannot_read_its_images() {
    if !am_root() {
        return skipped("two users: only root can be both");
    }
    let Some(site) = site() else { return };
    let id = site.submit("out", &[], &counter(10_000));
    let job = format!("@{id}");
    site.wait_for_state(&id, "running");
    let made = site.json(&["checkpoint", &job]);
    let stranger = |arguments: &[&str]| site.command_as(65533, arguments).output().unwrap();
    let all: [&[&str]; 7] = [
        &["jobs", &id],
        &["cancel", &id],
        &["recover", &id],
        &["checkpoint", &job],
        &["suspend", &job],
        &["migrate", &job, "n1"],
        &["wait", &job],
    ];
    for arguments in all {
        let output = stranger(arguments);
        assert_eq!(output.status.code(), Some(66), "{arguments:?}: {output:?}");
        let other = |word: &&str| match word.trim_start_matches('@') == id {
            true => word.replace(&id, "4711"),
            false => word.to_string(),
        };
        let words: Vec<String> = arguments.iter().map(other).collect();
        let unknown = stranger(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).replace("4711", &id);
        assert_eq!(told(&output), told(&unknown), "whether it exists is not told");
    }
    for list in [["jobs", "-a"], ["checkpoints", "-a"]] {
        let output = stranger(&[list[0], list[1], "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value[list[0]].as_array().unwrap().len(), 0, "{value}");
    }
    let events = String::from_utf8(stranger(&["events"]).stdout).unwrap();
    assert!(events.contains("node.ready") && !events.contains("job"), "{events}");
    assert_eq!(stranger(&["drain", "n1"]).status.code(), Some(77));
    let image = site.path(&format!("node/users/{NOBODY}/images/{}.cpr", made["id"]));
    assert!(image.exists());
    let read = std::process::Command::new("setpriv")
        .args(["--reuid=65533", "--regid=65533", "--clear-groups", "--", "cat"])
        .args([&image, &site.path("grid/grid.db")])
        .output()
        .unwrap();
    assert!(!read.status.success() && read.stdout.is_empty());
    assert_eq!(site.job(&id)["state"], "running");
    let root = site.command_as(0, &["cancel", &id]).output().unwrap();
    assert!(root.status.success(), "an administrator may: {root:?}");
    site.wait_for_state(&id, "cancelled");
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    for line in [
        format!("audit: 65533 POST /v1/jobs/{id}/cancel: 404"),
        "audit: 65533 POST /v1/nodes/n1/drain: 403".to_string(),
        format!("audit: root POST /v1/jobs/{id}/cancel: 200"),
    ] {
        assert!(log.contains(&line), "{line}: {log}");
    }
}

#[test]
fn jobs_start_by_priority_after_those_they_need_and_end_at_their_time_limit() {
    let Some(site) = site() else { return };
    let gate = site.submit(
        "gate",
        &["--slots", "4"],
        &["sh", "-c", "while [ ! -e go ]; do sleep 0.05; done"],
    );
    site.wait_for_state(&gate, "running");
    let says = |word: &str| ["sh".to_string(), "-c".into(), format!("echo {word} >>order")];
    let low = site.submit("low", &["--slots", "4"], &says("low"));
    let high = site.submit("high", &["--slots", "4", "--priority", "5"], &says("high"));
    let after = site.submit("after", &["--after", &high, "--priority", "9"], &says("after"));
    assert!(site.job(&low)["reason"].as_str().is_none_or(|why| why.contains("full")));
    let doomed = site.submit("doomed", &["--slots", "4", "--priority", "-5"], &says("doomed"));
    let widow = site.submit("widow", &["--after", &doomed], &says("widow"));
    site.text(&["cancel", &doomed]);
    let widow = site.wait_for_state(&widow, "failed");
    assert!(widow["reason"].as_str().unwrap().contains("cancelled"), "{widow}");
    let too_big = site.submit("big", &["--slots", "5"], &says("big"));
    wait_until("it is said why it waits", || {
        site.job(&too_big)["reason"]
            .as_str()
            .is_some_and(|why| why.contains("too small"))
    });
    site.text(&["cancel", &too_big]);
    fs::write(site.path("work/go"), "").unwrap();
    for id in [&low, &after] {
        site.wait_for_state(id, "finished");
    }
    assert_eq!(site.output("order"), "high\nafter\nlow\n");
    let endless = site.submit("endless", &["--time-limit", "1s"], &counter(10_000));
    let ended = site.wait_for_state(&endless, "failed");
    assert_eq!(ended["reason"], "its time limit passed");
    wait_until("nothing of it runs", || site.job_processes().is_empty());
    // The same word submits the same job.
    let again = ["--key", "one"];
    let first = site.submit("key", &again, &["true"]);
    assert_eq!(site.submit("key", &again, &["true"]), first);
    assert_eq!(
        site.cpr(&["submit", "--key", "one", "--", "false"]).status.code(),
        Some(64)
    );
}

#[test]
fn systemd_understands_the_units() {
    if std::process::Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return skipped("systemd units: there is no systemd-analyze");
    }
    let site = Site::new();
    fs::create_dir(site.path("bin")).unwrap();
    fs::copy(site.path("cprd"), site.path("bin/cprd")).unwrap();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let target = site.path(path.file_stem().unwrap().to_str().unwrap());
        fs::write(
            &target,
            text.replace("@PREFIX@", site.path("").to_str().unwrap().trim_end_matches('/')),
        )
        .unwrap();
        let verified = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&target)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !told.contains(".service:"), "{told}");
    }
}
