//! `cprd all`, and `cpr` as its users see it: real jobs, real checkpoints, real crashes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
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
// SAGA-JD-Core-Arguments, SAGA-JD-Core-Environment, SAGA-JD-Core-WorkingDirectory, SAGA-JD-Core-Output
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

/// Checks values against a JSON schema, by a validator of others; what it says of each that does not fit.
fn unfit(schema: &std::path::Path, values: &[Value]) -> Option<usize> {
    let script = "import json, sys\nimport jsonschema\nschema = json.load(open(sys.argv[1]))\n\
                  kind = jsonschema.validators.validator_for(schema)\nkind.check_schema(schema)\n\
                  values = json.load(sys.stdin)\nprint(sum(not kind(schema).is_valid(value) for value in values))\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(schema)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let text = serde_json::to_vec(values).unwrap();
    let _ = child.stdin.take().unwrap().write_all(&text);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named 'jsonschema'") {
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

// GFD93-GLO-4, XGCP-JUCP-3
#[test]
fn what_is_known_of_checkpoints_is_as_the_published_schema_says() {
    let Some(site) = site() else { return };
    if !site.has_units() {
        return;
    }
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let published = here.join("../../docs/checkpoint.schema.json");
    let printed = site.cprd(&["schema"]).output().unwrap();
    assert_eq!(
        fs::read_to_string(&published).unwrap(),
        String::from_utf8(printed.stdout).unwrap(),
        "`cprd schema > docs/checkpoint.schema.json` renews it"
    );
    // Of one program and of two units, complete, superseded, failed and freed.
    let id = site.submit("out", &["--keep", "1"], &counter(10_000));
    let units = site.submit("unit-%u", &["--units", "2"], &counter(10_000));
    site.wait_for_count("out", 5);
    site.wait_for_state(&units, "running");
    for id in [&id, &id, &units] {
        site.json(&["checkpoint", &format!("@{id}")]);
    }
    let own = site.submit("own", &["--engine", "self-checkpointing"], &counter(10_000));
    site.wait_for_count("own", 3);
    assert!(!site.cpr(&["checkpoint", &format!("@{own}")]).status.success());
    let mut records = Vec::new();
    let images = |of: &Value| site.json(&["checkpoints", "-a", "--images-of", &of["id"].to_string()]);
    for known in site.json(&["checkpoints", "-a"])["checkpoints"].as_array().unwrap() {
        records.push(known.clone());
        records.extend(images(known)["checkpoints"].as_array().unwrap().iter().cloned());
    }
    let states: std::collections::BTreeSet<&str> =
        records.iter().map(|record| record["state"].as_str().unwrap()).collect();
    assert_eq!(states.into_iter().collect::<Vec<_>>(), ["complete", "failed", "freed"]);
    assert_eq!(records.len(), 6, "{records:?}");
    let Some(bad) = unfit(&published, &records) else {
        return skipped("records and their schema: there is no jsonschema for python3");
    };
    assert_eq!(bad, 0, "{records:?}");
    // What is wrong is found.
    let wrong = |name: &str, value: Value| {
        let mut record = records[0].clone();
        record[name] = value;
        record
    };
    let mut without = records[0].clone();
    without.as_object_mut().unwrap().remove("owner");
    let wrong = [wrong("state", "good".into()), wrong("id", "one".into()), without];
    assert_eq!(unfit(&published, &wrong), Some(3));
    for id in [id, units, own] {
        site.text(&["cancel", &id]);
    }
    // A unit by itself is saved, and goes on from that.
    let single = site.submit("single-%u", &["--units", "1"], &counter(200));
    site.wait_for_count("single-0", 5);
    let made = site.json(&["checkpoint", &format!("@{single}")]);
    assert_eq!(made["units"].as_array().unwrap().len(), 1);
    site.json(&["suspend", &format!("@{single}")]);
    let had = site.output("single-0").lines().count();
    site.text(&["recover", &single]);
    assert!(site.cpr(&["wait", &format!("@{single}")]).status.success());
    assert!(had < 200, "it was saved before its end");
    assert_eq!(site.output("single-0"), counted(200));
}

/// Sends bodies to the service as a user, over its socket; the status and the message of each answer.
fn sent(site: &Site, bodies: &[(&str, Value)]) -> Vec<(u64, String)> {
    let script = "import http.client, json, socket, sys\nclass Unix(http.client.HTTPConnection):\n    \
                  def connect(self):\n        self.sock = socket.socket(socket.AF_UNIX)\n        self.sock.connect(sys.argv[1])\n\
                  for path, body in json.load(sys.stdin):\n    c = Unix('x')\n    \
                  c.request('POST', path, json.dumps(body), {'content-type': 'application/json'})\n    \
                  a = c.getresponse()\n    print(json.dumps([a.status, a.read().decode()]))\n";
    let mut child = site
        .python()
        .args(["-c", script])
        .arg(site.path("cprd.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(bodies).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

// GFD93-SM-11
#[test]
fn records_that_cannot_be_right_are_refused_and_it_is_said_why() {
    let Some(site) = site() else { return };
    let id = site.submit("out", &[], &counter(10_000));
    site.wait_for_count("out", 3);
    let mine = site.json(&["checkpoint", &format!("@{id}")])["id"].clone();
    let another = site.submit("another", &[], &counter(10_000));
    site.wait_for_state(&another, "running");
    let number: i64 = id.parse().unwrap();
    let job = serde_json::json!({"command": ["true"], "directory": "/", "environment": {}});
    let with = |name: &str, value: Value| {
        let mut job = job.clone();
        job[name] = value;
        job
    };
    let mut without = job.clone();
    without.as_object_mut().unwrap().remove("command");
    let recover = format!("/v1/jobs/{another}/recover");
    let bodies = [
        ("/v1/jobs", without, "command"),
        ("/v1/jobs", with("command", "true".into()), "invalid type"),
        ("/v1/jobs", with("slots", (-1).into()), "invalid value"),
        (
            "/v1/jobs",
            with("after", serde_json::json!([number, 999_999])),
            "999999",
        ),
        (recover.as_str(), serde_json::json!({"from": mine}), "is of job"),
        (
            recover.as_str(),
            serde_json::json!({"from": 999_999}),
            "no checkpoint 999999",
        ),
        (
            "/v1/checkpoints/999999/copies",
            serde_json::json!({"to": "n1"}),
            "no checkpoint 999999",
        ),
    ];
    let asked: Vec<(&str, Value)> = bodies.iter().map(|(path, body, _)| (*path, body.clone())).collect();
    let before = site.json(&["jobs", "--all"])["jobs"].as_array().unwrap().len();
    for ((status, message), (path, body, word)) in sent(&site, &asked).into_iter().zip(&bodies) {
        assert!((400..500).contains(&status), "{path} {body}: {status} {message}");
        assert!(message.contains(word), "{path} {body}: {message}");
    }
    assert_eq!(site.json(&["jobs", "--all"])["jobs"].as_array().unwrap().len(), before);
    // What is right is taken.
    assert_eq!(sent(&site, &[("/v1/jobs", job)])[0].0, 200);
    for id in [id, another] {
        site.text(&["cancel", &id]);
    }
}

// XGCP-USE-3, GCA-UC-5.1.7, GCA-UC-5.2.6, GCA-UC-5.2.8, GCA-UC-5.2.10, GCA-UC-5.3.4, GCA-UC-5.3.9, GCA-UC-5.3.10
// GFD93-SCOPE-2, GFD93-SM-5
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

/// The command lines of processes of jobs, and who they run as.
fn of_jobs(directory: &std::path::Path) -> Vec<(Vec<String>, u32)> {
    let mut found = Vec::new();
    for pid in job_processes_below(directory) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let Some(uid) = uid.and_then(|ids| ids.split_whitespace().next()?.parse().ok()) else {
            continue;
        };
        let words = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        found.push((words.collect(), uid));
    }
    found
}

// GCA-UC-5.2.1, GCA-UC-5.2.4, GCA-UC-5.2.5, GCA-UC-5.2.9, XGCP-SEC-6
#[test]
fn many_requests_at_once_leave_checkpoints_in_order_each_of_the_right_job_made_by_its_user() {
    let Some(site) = site() else { return };
    let first = site.submit("first", &["--keep", "20"], &counter(10_000));
    let second = site.submit("second", &["--keep", "20"], &counter(10_000));
    let timed = site.submit("timed", &["--keep", "20", "--every", "1s"], &counter(10_000));
    for name in ["first", "second", "timed"] {
        site.wait_for_count(name, 5);
    }
    // Whoever works for the jobs while they are saved.
    let (ended, done) = std::sync::mpsc::channel::<()>();
    let directory = site.path("");
    let watch = std::thread::spawn(move || {
        let mut seen: std::collections::BTreeSet<(String, u32)> = Default::default();
        while done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            for (words, uid) in of_jobs(&directory) {
                let verb = words.get(1).cloned().unwrap_or_default();
                seen.insert((verb, uid));
            }
        }
        seen
    });
    let asking: Vec<_> = (0..10)
        .map(|_| {
            let mut command = site.command(&["checkpoint", "--json", &format!("@{second}")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut made = std::collections::BTreeMap::new();
    for child in asking {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&answer["state"], answer["job"].to_string()),
            (&"complete".into(), second.clone())
        );
        made.insert(answer["id"].as_i64().unwrap(), answer["generation"].as_u64().unwrap());
    }
    let generations: Vec<u64> = made.values().copied().collect();
    let expected: Vec<u64> = (1..=made.len() as u64).collect();
    assert_eq!(generations, expected, "none is left out, and none is two");
    // One that ends the job waits for the one before.
    let before = site.submit("third", &["--keep", "20"], &counter(10_000));
    site.wait_for_count("third", 5);
    let mut asked = site.command(&["checkpoint", "--json", &format!("@{before}")]);
    let asked = asked.stdout(Stdio::piped()).spawn().unwrap();
    let all = |id: &str| {
        site.json(&["checkpoints", "-a", id])["checkpoints"]
            .as_array()
            .unwrap()
            .clone()
    };
    wait_until("it is asked for", || !all(&before).is_empty());
    site.json(&["suspend", &format!("@{before}")]);
    assert!(asked.wait_with_output().unwrap().status.success());
    let both = all(&before);
    let told: Vec<(bool, bool)> = both
        .iter()
        .map(|made| (made["state"] == "complete", made["stop"] == true))
        .collect();
    assert_eq!(told, [(true, false), (true, true)], "{both:?}");
    assert!(both[0]["stored_ms"].as_i64() <= both[1]["stored_ms"].as_i64());
    site.text(&["recover", &before]);
    site.wait_for_state(&before, "running");
    // By a clock, too, and the records are alike.
    wait_until("the clock has had some made", || all(&timed).len() > 1);
    let by_hand = &site.json(&["checkpoints", &second])["checkpoints"][0];
    let by_clock = &site.json(&["checkpoints", &timed])["checkpoints"][0];
    let fields = |record: &Value| record.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(by_hand), fields(by_clock));
    assert_eq!(by_clock["state"], "complete");
    let _ = ended.send(());
    let seen = watch.join().unwrap();
    for verb in ["checkpoint", "restart", "run"] {
        assert!(seen.iter().any(|(seen, _)| seen == verb), "{verb}: {seen:?}");
    }
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert!(seen.iter().all(|(_, seen)| *seen == uid), "{seen:?}");
    // Each is of the job that was asked for, and whole.
    for id in made.keys() {
        let image = site.path(&format!("node/users/{uid}/images/{id}.cpr"));
        let image = image.to_str().unwrap();
        let shown = site.json(&["inspect", image]);
        assert_eq!(shown["manifest"]["checkpoint"]["job"], format!("{second}.1"));
        let text = shown.to_string();
        let has = |name: &str| text.contains(&format!("/work/{name}\""));
        assert!(has("second") && !has("first") && !has("timed"));
        site.text(&["verify", image]);
    }
    for id in [first, second, timed, before] {
        site.text(&["cancel", &id]);
    }
}

// GCA-WRAP-3, GCA-WRAP-12, GCA-UC-5.1.2, GCA-UC-5.1.3, GCA-UC-5.1.4, GCA-UC-5.3.6, GCA-UC-5.3.7
#[test]
fn a_job_is_started_and_recovered_by_a_wrapper_that_has_its_number_and_all_that_was_said() {
    let Some(site) = site() else { return };
    let command = [&counter(10_000)[..], &["zero", "a  b\n'c'"].map(String::from)].concat();
    let id = site.submit("out", &["--engine", "native"], &command);
    site.wait_for_count("out", 5);
    let directory = site.path("");
    let wrapper = |verb: &str| {
        let has = |words: &[String], word: &str| words.iter().any(|known| known == word);
        let found = of_jobs(&directory).into_iter().find(|(words, _)| {
            let name = words.iter().position(|word| word == "--name");
            let named = name
                .and_then(|at| words.get(at + 1))
                .is_some_and(|name| name.starts_with(&format!("{id}.")));
            named && has(words, verb)
        });
        found.unwrap_or_else(|| panic!("nothing runs {verb} for it")).0
    };
    let pair =
        |words: &[String], name: &str, value: &str| words.windows(2).any(|pair| pair[0] == name && pair[1] == value);
    let words = wrapper("run");
    assert!(
        words[0].ends_with("cpr") && pair(&words, "--name", &format!("{id}.1")),
        "{words:?}"
    );
    // An empty word ends what /proc tells.
    let end = words.len() - 1;
    assert_eq!(words[end - command.len()..end], command[..], "{words:?}");
    assert!(words.iter().any(|word| word.ends_with("/work/out")), "{words:?}");
    // The node knows which process it is, and the service which node.
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let known = || {
        let mut command = site.command(&["ps", "--json"]);
        command.env("GRIDCPR_STATE_DIR", site.path(&format!("node/users/{uid}/state")));
        let listed: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        listed["jobs"].as_array().unwrap().clone()
    };
    let here = known();
    assert_eq!(
        (&here[0]["name"], &here[0]["phase"]),
        (&format!("{id}.1").into(), &"running".into())
    );
    if site.is_here() {
        let pid = here[0]["pid"].as_i64().unwrap();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.starts_with(b"sh\0-c\0i=0"), "{}", String::from_utf8_lossy(&line));
    }
    assert_eq!(
        (&site.job(&id)["node"], &site.job(&id)["engine"]),
        (&"n1".into(), &"native".into())
    );
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    site.json(&["suspend", &format!("@{id}")]);
    site.text(&["recover", &id, "--from", &made["id"].to_string()]);
    site.wait_for_state(&id, "running");
    let words = wrapper("restart");
    assert!(
        words[0].ends_with("cpr") && pair(&words, "--name", &format!("{id}.2")),
        "{words:?}"
    );
    assert!(
        words
            .iter()
            .any(|word| word.ends_with(&format!("/images/{}.cpr", made["id"]))),
        "{words:?}"
    );
    assert_eq!(known()[0]["name"], format!("{id}.2"));
    site.text(&["cancel", &id]);
}

/// Adds to the configuration of `all`.
fn add(site: &Site, more: &str) {
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    site.configure("all.toml", &format!("{config}{more}"));
}

// GFD93-JM-3, GCA-UC-5.2.7
#[test]
fn the_operators_commands_are_run_around_jobs_and_after_checkpoints() {
    let Some(mut site) = new_site() else { return };
    site.configure_all("");
    let scratch = "mkdir DIR/scratch-$GRIDCPR_JOB; echo before $GRIDCPR_JOB.$GRIDCPR_START >>DIR/said";
    let after = "rmdir DIR/scratch-$GRIDCPR_JOB; id -u >DIR/runs-as; echo after $GRIDCPR_JOB.$GRIDCPR_START >>DIR/said";
    let saved = "test -s $GRIDCPR_IMAGE; echo saved $GRIDCPR_JOB.$GRIDCPR_START $GRIDCPR_CHECKPOINT of $GRIDCPR_UID >>DIR/said; \
                 env >DIR/environment; exit 9";
    let hooks = format!(
        "[hooks]\nbefore_job = ['/bin/sh', '-ec', '{scratch}']\nafter_job = ['/bin/sh', '-ec', '{after}']\n\
         after_checkpoint = ['/bin/sh', '-ec', '{saved}']\n"
    );
    add(&site, &hooks);
    site.start("all", "all");
    let mut command = site.command(&["submit", "-o", "out", "--"]);
    let output = command.args(counter(10_000)).env("MINE", "mine").output().unwrap();
    let id = String::from_utf8(output.stdout).unwrap().trim().to_string();
    let place = site.path(&format!("scratch-{id}"));
    let said = || fs::read_to_string(site.path("said")).unwrap_or_default();
    site.wait_for_count("out", 5);
    assert!(place.exists(), "it was there before the job was");
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let first = format!("before {id}.1\nsaved {id}.1 {} of {uid}\n", made["id"]);
    wait_until("the checkpoint is told of", || said() == first);
    let log = || fs::read_to_string(site.path("all.log")).unwrap();
    wait_until("it is said that it failed", || {
        log().contains("run hooks.after_checkpoint for job") && log().contains("exit status: 9")
    });
    assert_eq!(site.job(&id)["state"], "running", "which disturbs nobody");
    let environment = fs::read_to_string(site.path("environment")).unwrap();
    assert!(
        !environment.contains("MINE") && environment.contains("GRIDCPR_USER="),
        "{environment}"
    );
    site.json(&["suspend", &format!("@{id}")]);
    wait_until("it is all put away", || {
        !place.exists() && said().contains(&format!("after {id}.1\n"))
    });
    let own = fs::read_to_string(site.path("runs-as")).unwrap();
    assert_eq!(own.trim(), rustix::process::geteuid().as_raw().to_string());
    site.text(&["recover", &id]);
    site.wait_for_state(&id, "running");
    assert!(place.exists(), "and again around its recovery");
    site.text(&["cancel", &id]);
    let order = [format!("before {id}.2\n"), format!("after {id}.2\n")];
    wait_until("it is put away again", || {
        !place.exists() && said().ends_with(&order.concat())
    });
    // A job whose place cannot be made is not run.
    site.configure_all("");
    add(
        &site,
        "[hooks]\nbefore_job = ['/bin/sh', '-c', 'echo no place >&2; exit 3']\n",
    );
    site.hang_up("all");
    wait_until("it is read again", || log().contains("changed: hooks.after_checkpoint"));
    let id = site.submit("never", &["--retries", "0"], &["touch", "made"]);
    let ended = site.wait_for_state(&id, "failed");
    let why = ended["reason"].as_str().unwrap();
    assert!(why.contains("hooks.before_job") && why.contains("no place"), "{why}");
    assert!(!site.path("work/made").exists());
}

// GFD93-SM-4, GCA-WRAP-9
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
    // The node still knows which processes they are, and the service which node.
    assert_eq!(site.job(&id)["node"], "n1");
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    assert_eq!((&made["state"], &made["node"]), (&"complete".into(), &"n1".into()));
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

// GFD93-EH-6, GFD93-EH-8, GFD93-JM-5, GFD93-GLO-1, GFD93-API-4, XGCP-JOB-3
// SAGA-JOB-Core-Failed, SAGA-JOB-Core-attr-Termsig
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
    let own = site.wait_for_state(&own, "failed");
    assert_eq!((&own["incarnation"], &own["exit_code"]), (&1.into(), &3.into()));
    let crashed = site.wait_for_state(&crashed, "failed");
    assert_eq!((&crashed["incarnation"], &crashed["signal"]), (&1.into(), &11.into()));
    assert!(crashed["reason"].as_str().unwrap().contains("signal 11"));
    let ended = site.wait_for_state(&lost, "finished");
    assert_eq!(ended["incarnation"], 2);
    // USERqueue, JMlaunch, EHqueue and JMlaunch again; before them somebody was let in who may.
    let events = site.text(&["events", "--job", &lost, "--kind", "job", "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let run = ["job.queued", "job.starting", "job.running"];
    assert_eq!(kinds, [&run[..], &run, &["job.finished"]].concat());
    assert!(events[0]["text"].as_str().unwrap().contains("is submitted by"));
    assert!(
        events[3]["text"].as_str().unwrap().contains("vanished from node n1"),
        "{}",
        events[3]
    );
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    assert!(log.contains("POST /v1/jobs: 200"), "{log}");
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

/// A client that is not ours: it asks for a checkpoint of a job, and prints the answer.
const ANOTHER_CLIENT: &str = "
import json, socket, sys
with socket.socket(socket.AF_UNIX) as end:
    end.connect(sys.argv[1])
    head = 'POST /v1/jobs/%s/checkpoint HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\ncontent-length: 0\\r\\n\\r\\n'
    end.sendall((head % sys.argv[2]).encode())
    answer = end.makefile('rb').read()
head, body = answer.split(b'\\r\\n\\r\\n', 1)
assert b' 200 ' in head.split(b'\\r\\n')[0], answer
print(json.loads(body)['id'])
";

/// Counts, and asks for a checkpoint of itself whenever there is a file `ask`.
const ASKS: &str = "i=0; while :; do i=$((i+1)); echo $i
    if [ -e ask ]; then rm ask; python3 client.py $SOCKET ${GRIDCPR_JOB%.*} >/dev/null; fi
    sleep 0.05; done";

/// By a command, by another client that speaks the interface, by a clock, and by the program itself: what becomes of
/// the image and what is known of it is the same.
// GCA-DEF-2, GCA-GCS-3, GCA-UC-5.2.2
#[test]
fn whoever_begins_a_checkpoint_it_is_known_and_kept_alike() {
    let Some(mut site) = new_site() else { return };
    let store = site.path("store");
    fs::create_dir(&store).unwrap();
    site.configure_all("store = 'DIR/store'");
    add(&site, "store = 'DIR/store'\n");
    site.start("all", "all");
    let asked = site.submit("asked", &["--keep", "30"], &counter(100_000));
    let timed = site.submit("timed", &["--keep", "30", "--every", "1s"], &counter(100_000));
    fs::write(site.path("work/client.py"), ANOTHER_CLIENT).unwrap();
    let mut submit = site.command(&["submit", "--keep", "30", "-o", "own", "--", "sh", "-c", ASKS]);
    let output = submit.env("SOCKET", site.path("cprd.sock")).output().unwrap();
    let own = String::from_utf8(output.stdout).unwrap().trim().to_string();
    for name in ["asked", "timed", "own"] {
        site.wait_for_count(name, 3);
    }
    let all = |id: &str| {
        site.json(&["checkpoints", "-a", id])["checkpoints"]
            .as_array()
            .unwrap()
            .clone()
    };
    let complete = |id: &str| {
        let known = all(id).into_iter();
        known.filter(|record| record["state"] == "complete").collect::<Vec<_>>()
    };
    let mut by_client = Vec::new();
    for number in 0..10 {
        site.json(&["checkpoint", &format!("@{asked}")]);
        let mut client = site.python();
        client.args(["-c", ANOTHER_CLIENT]);
        let output = client.arg(site.path("cprd.sock")).arg(&asked).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        by_client.push(String::from_utf8(output.stdout).unwrap().trim().to_string());
        // Its answer comes before the checkpoint is made.
        wait_until("it is made", || complete(&asked).len() == 2 * (number + 1));
    }
    wait_until("the others are made", || {
        let ended = all(&own)
            .iter()
            .all(|record| ["complete", "failed"].contains(&record["state"].as_str().unwrap()));
        let ask = site.path("work/ask");
        if complete(&own).is_empty() && ended && !ask.exists() {
            // Its connection to the service may be open still when it is saved, which is refused.
            fs::write(ask, "").unwrap();
        }
        !complete(&timed).is_empty() && !complete(&own).is_empty()
    });
    let history = all(&asked);
    let mut generations: Vec<u64> = history
        .iter()
        .map(|record| record["generation"].as_u64().unwrap())
        .collect();
    generations.sort_unstable();
    assert_eq!(
        generations,
        (1..=20).collect::<Vec<u64>>(),
        "all of twenty are known: {history:?}"
    );
    let ids: std::collections::BTreeSet<String> = history.iter().map(|record| record["id"].to_string()).collect();
    assert!(
        ids.len() == 20 && by_client.iter().all(|id| ids.contains(id)),
        "{by_client:?}"
    );
    let found = |id: &str| {
        let id: i64 = id.parse().unwrap();
        history.iter().find(|record| record["id"] == id).unwrap().clone()
    };
    let by_command = history
        .iter()
        .find(|record| !by_client.contains(&record["id"].to_string()))
        .unwrap();
    let records = [
        by_command.clone(),
        found(&by_client[0]),
        complete(&timed).remove(0),
        complete(&own).remove(0),
    ];
    let fields = |record: &Value| record.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for record in &records {
        assert_eq!(fields(record), fields(&records[0]));
        assert_eq!(
            (&record["state"], &record["owner"]),
            (&"complete".into(), &records[0]["owner"])
        );
        let image = store.join(format!("{}.cpr", record["id"]));
        wait_until("it is in the store", || image.exists());
    }
    // Who has asked for what is in the log of the service.
    let owner = site.job(&asked)["owner"]["name"].clone();
    let line = format!(
        "audit: {} POST /v1/jobs/{asked}/checkpoint: 200",
        owner.as_str().unwrap()
    );
    assert_eq!(site.told().matches(&line).count(), 20, "{}", site.told());
    assert!(!site.told().contains(&format!("/v1/jobs/{timed}/checkpoint")));
    for id in [asked, timed, own] {
        site.text(&["cancel", &id]);
    }
}

// GFD93-SCOPE-5, GCA-CTS-21, GCA-ENV-3
#[test]
fn an_installation_that_lacks_a_part_is_told_which_and_a_node_says_where_it_is_what_it_can() {
    let Some(mut site) = new_site() else { return };
    if !site.is_here() {
        return;
    }
    for place in ["bin", "lib", "store"] {
        fs::create_dir(site.path(place)).unwrap();
    }
    for program in ["cprd", "cpr"] {
        fs::hard_link(site.path(program), site.path("bin").join(program)).unwrap();
    }
    fs::write(site.path("lib/libgridcpr.so"), "").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let configure = |site: &Site, advertise: u16| {
        site.configure_all("store = 'DIR/store'");
        let more = format!("store = 'DIR/store'\nlisten = '127.0.0.1:{port}'\nadvertise = '127.0.0.1:{advertise}'\n");
        add(site, &more);
    };
    let check = |site: &Site| {
        let config = site.path("all.toml");
        let mut command = std::process::Command::new(site.path("bin/cprd"));
        let output = command.arg("--config").arg(config).arg("check").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let missing = text
            .lines()
            .filter_map(|line| Some(line.split_once(": missing")?.0.to_string()));
        (output.status.code(), missing.collect::<Vec<_>>(), text)
    };
    configure(&site, port);
    site.start("all", "all");
    wait_until("the node is there", || site.text(&["nodes"]).contains("ready"));
    let (code, missing, text) = check(&site);
    assert_eq!((code, missing.len()), (Some(0), 0), "{text}");
    assert_eq!(text.matches(": good").count(), 7, "{text}");
    // At its end point, what the node has published.
    let published = site.json(&["nodes"])["nodes"][0]["info"].clone();
    let address = published["address"].as_str().unwrap();
    let told = raw(
        address,
        b"GET /v1/node HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    let body = told.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(serde_json::from_str::<Value>(body).unwrap(), published);
    assert_eq!(
        published["abilities"]["native"]["properties"]["threads"],
        serde_json::json!(["yes"])
    );
    // It is what the tools of the machine say.
    let said = |command: &str, arguments: &[&str]| {
        let output = Command::new(command).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    let properties = &published["properties"];
    assert_eq!(properties["arch"], said("uname", &["-m"]));
    assert_eq!(properties["kernel"], said("uname", &["-r"]));
    let version = said("ldd", &["--version"]);
    let version = version.lines().next().unwrap().rsplit(' ').next().unwrap();
    assert_eq!(properties["libc"], version);
    let size = said(
        "df",
        &["--block-size=1M", "--output=size", site.path("node").to_str().unwrap()],
    );
    let size: u64 = size.lines().last().unwrap().trim().parse().unwrap();
    let storage: u64 = properties["storage-mb"].as_str().unwrap().parse().unwrap();
    assert!(storage.abs_diff(size) <= 1, "{storage} {size}");
    assert_eq!(properties["tool.python3"], "yes");
    assert!(properties["tool.no-such"].is_null());
    let free: Vec<u64> = said("free", &["-m"])
        .lines()
        .nth(1)
        .map(|line| line.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect())
        .unwrap_or_default();
    assert!(
        free.is_empty() || published["memory_mb"].as_u64().unwrap().abs_diff(free[0]) <= 1,
        "{free:?}"
    );
    let engines = site.json(&["engines"]);
    let installed = engines["engines"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|engine| engine["works"] == true);
    let installed: Vec<&Value> = installed.map(|engine| &engine["name"]).collect();
    let told: Vec<&Value> = published["engines"].as_array().unwrap().iter().collect();
    assert!(
        !told.is_empty() && told.iter().all(|name| installed.contains(name)),
        "{told:?} {installed:?}"
    );
    let lacks = |site: &Site, part: &str| {
        let (code, missing, text) = check(site);
        assert_eq!((code, missing), (Some(69), vec![part.to_string()]), "{text}");
    };
    fs::rename(site.path("store"), site.path("elsewhere")).unwrap();
    lacks(&site, "store");
    fs::rename(site.path("elsewhere"), site.path("store")).unwrap();
    fs::remove_file(site.path("lib/libgridcpr.so")).unwrap();
    lacks(&site, "library");
    fs::write(site.path("lib/libgridcpr.so"), "").unwrap();
    fs::rename(site.path("bin/cpr"), site.path("bin/other")).unwrap();
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    fs::write(site.path("all.toml"), format!("{config}cpr = '/no/such/cpr'\n")).unwrap();
    lacks(&site, "commands");
    fs::rename(site.path("bin/other"), site.path("bin/cpr")).unwrap();
    fs::write(site.path("all.toml"), config).unwrap();
    // Nobody gives images where the node says that it does.
    site.kill("all");
    configure(&site, 1);
    site.start("all", "all");
    wait_until("the node says so", || {
        site.text(&["nodes", "--json"]).contains("127.0.0.1:1\"")
    });
    lacks(&site, "transfer");
    site.kill("all");
    site.start("all", "grid");
    wait_until("the node is missed", || site.text(&["nodes"]).contains("lost"));
    lacks(&site, "nodes");
    site.kill("all");
    lacks(&site, "service");
    site.start("all", "all");
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
    // Where it is cut off, what came counts.
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn the_network_is_served_with_a_token_only_and_nothing_that_comes_from_it_does_harm() {
    let Some(mut site) = new_site() else { return };
    if !site.is_here() {
        return;
    }
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
