//! A grid of hosts that are cut off, crash, come back and lose images, while jobs have to come to the right end.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use support::lab::Lab;
use support::*;

/// A lab, where we may make one.
fn lab(nodes: usize, grid: &str, node: &str) -> Option<Lab> {
    if !am_root() {
        skipped("hosts that are namespaces: only root can make them");
        return None;
    }
    Some(Lab::new(nodes, grid, node))
}

/// The node that has a job.
fn node_of(lab: &Lab, id: &str) -> String {
    let job = lab.site.wait_for_state(id, "running");
    job["node"].as_str().unwrap().to_string()
}

// GFD93-JM-4, GFD93-EH-3, GFD93-EH-5, GFD93-SM-6, GFD93-RES-5, XGCP-USE-4, LBNL-1.2.4.2.d
// GFD93-EH-10, GFD93-WF-2.3, GFD93-WF-3.1, GFD93-WF-4.1, GFD93-INT-EHqueue, GCA-UC-5.3.1
#[test]
fn jobs_of_a_crashed_node_go_on_elsewhere_and_the_node_can_come_back() {
    let Some(mut lab) = lab(3, "", "") else { return };
    let id = lab.site.submit("out", &[], &counter(300));
    let job = format!("@{id}");
    let node = node_of(&lab, &id);
    lab.site.wait_for_count("out", 20);
    let made = lab.site.json(&["checkpoint", &job]);
    assert_eq!(made["state"], "complete");
    let holders = made["locations"].as_array().unwrap().len();
    assert_eq!(holders, 2, "a complete checkpoint outlives its node: {made}");

    lab.crash(&node);
    let crashed = Instant::now();
    assert!(lab.site.job_processes().is_empty(), "all of the host is gone");
    wait_until("it runs elsewhere", || {
        lab.others(&node).iter().any(|other| lab.counts_on(other))
    });
    let took = crashed.elapsed();
    assert!(took < Duration::from_millis(LEASE_MS + 2000), "{took:?}");
    assert_eq!(lab.node_state(&node), "lost");

    lab.start(&node);
    wait_until("the node is back", || lab.node_state(&node) == "ready");
    assert!(lab.site.cpr(&["wait", &job]).status.success(), "{}", lab.site.told());
    assert_eq!(lab.site.output("out"), counted(300));
    let ended = lab.site.job(&id);
    assert_eq!(ended["incarnation"], 2);
    assert_eq!(ended["from"], made["id"]);
    // What it had of the job is removed, and so are all images once the job is done.
    for name in ["n1", "n2", "n3"] {
        let user = lab.site.path(&format!("{name}/users/{NOBODY}"));
        let count = |what: &str| fs::read_dir(user.join(what)).map_or(0, Iterator::count);
        wait_until("nothing is left on the nodes", || {
            count("state/jobs") + count("images") == 0
        });
    }
}

/// An engine for programs that save themselves on SIGUSR1, and a class that it alone is of.
const KEEPER: &str = "
name = 'keeper'
driver = 'application'
trigger = 'external'
restart = 'anywhere'
images = 'any'
classes = ['kept', 'kept-too']
[properties]
kept = 'yes'
[application]
signal = 10
directory = '%JOB_DIRECTORY%/app'
";

const KEPT: &str = "
name = 'kept'
description = 'Programs that keep themselves'
requires = { kept = 'yes' }
";

const KEPT_TOO: &str = "
name = 'kept-too'
requires = { kept = 'yes', trigger = 'external' }
";

/// Checkpointers, by their names and by the ways to them.
const CHECKPOINTERS: [&str; 5] = ["criu", "qemu", "qmp", "dmtcp", "cpr_native"];
/// What a checkpointer may take a job for.
const GROUPS: [&str; 3] = ["groupkind", "pid-namespace", "cgroup"];

/// A crate has no code for a checkpointer, or for how its jobs are grouped.
fn no_engine_is_known_to(crate_name: &str, words: &[&str]) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(crate_name);
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("cpr-native"), "{manifest}");
    let mut pending = vec![root.join("src")];
    let mut files = 0;
    while let Some(directory) = pending.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap().to_lowercase();
            for word in words {
                assert!(!text.contains(*word), "{} knows of {word}", path.display());
            }
        }
    }
    assert!(files > 3);
}

/// Counts, and remembers in a file that it has open.
const COUNT_IN_FILE: &str = include_str!("../../../tests/victims/count_in_file.py");

/// One job for each kind of driver, two of them of the guest's and the program's own, asked for by two clients: each
/// goes on on the other host when its own is lost, from an image that comes from the store.
// GCA-GCS-9, GCA-VMM-2, GCA-VMM-9, GCA-VMM-10
#[test]
fn jobs_of_four_kinds_of_engines_go_on_on_another_host() {
    let (kernel, initrd) = match support::guest::files() {
        Ok(files) => files,
        Err(reason) => return skipped(&format!("jobs of four kinds of engines: {reason}")),
    };
    let Some(mut lab) = lab(2, "store = 'DIR/store'", "store = 'DIR/store'") else {
        return;
    };
    fs::create_dir(lab.site.path("store")).unwrap();
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for name in ["n1", "n2"] {
        let directory = lab.engines_of(name).join("engines.d");
        fs::create_dir_all(&directory).unwrap();
        for file in [
            "engine/open-files.toml",
            "engine/open_files.py",
            "machine/machine.toml",
            "machine/vm-run",
        ] {
            let from = examples.join(file);
            fs::copy(&from, directory.join(from.file_name().unwrap())).unwrap();
        }
        fs::write(
            directory.join("keeper.toml"),
            KEEPER
                .replace("'kept', 'kept-too'", "'application'")
                .replace("kept = 'yes'", "level = 'application'"),
        )
        .unwrap();
    }
    for (from, name) in [(kernel, "kernel"), (initrd, "initrd")] {
        fs::copy(from, lab.site.path("work").join(name)).unwrap();
    }
    let engines = ["native", "keeper", "open-files", "in-a-machine"];
    wait_until("the engines are known", || {
        let listed = lab.site.json(&["nodes"]);
        let nodes = listed["nodes"].as_array().unwrap();
        nodes.iter().all(|node| {
            engines
                .iter()
                .all(|engine| node["info"]["abilities"][engine].is_object())
        })
    });
    let in_guest = "i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done";
    let commands: [Vec<String>; 4] = [
        counter(10_000).to_vec(),
        keeps_itself(10_000).to_vec(),
        ["python3", "-c", COUNT_IN_FILE].map(String::from).to_vec(),
        ["sh", "-c", in_guest].map(String::from).to_vec(),
    ];
    let numbers = |lab: &Lab, name: &str| -> Vec<u32> {
        let text = lab.site.output(name);
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        // A console ends its lines in its own way.
        text[..end]
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    };
    // All are on one host, and the other one has seen nothing of them.
    lab.crash("n2");
    wait_until("it is missed", || lab.node_state("n2") == "lost");
    let mut jobs = Vec::new();
    for (engine, command) in engines.iter().zip(&commands) {
        let mut submit = lab.site.command(&["submit", "--engine", engine, "-o", engine, "--"]);
        submit
            .args(command)
            .env("MACHINE_KERNEL", "kernel")
            .env("MACHINE_INITRD", "initrd");
        let output = submit.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        jobs.push(String::from_utf8(output.stdout).unwrap().trim().to_string());
    }
    for (engine, id) in engines.iter().zip(&jobs) {
        let deadline = Instant::now() + PATIENCE;
        while numbers(&lab, engine).last() <= Some(&5) {
            let told = || format!("{engine} does not count: {}{}", lab.site.job(id), lab.site.told());
            assert!(Instant::now() < deadline, "{}", told());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    lab.start("n2");
    wait_until("the other host is back", || lab.node_state("n2") == "ready");
    lab.site.issue("ca", &["nobody"]);
    let key = lab.site.path("ca-issued/nobody.key");
    std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut made = Vec::new();
    for (number, id) in jobs.iter().enumerate() {
        let arguments = ["checkpoint", "--json", &format!("@{id}")];
        // Here and over the network.
        let mut asked = match number % 2 {
            0 => lab.site.command(&arguments),
            _ => lab.cpr_on("n2", "nobody", &arguments),
        };
        let output = asked.output().unwrap();
        assert!(output.status.success(), "{output:?}{}", lab.site.told());
        let checkpoint: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&checkpoint["state"], &checkpoint["engine"]),
            (&"complete".into(), &engines[number].into())
        );
        let image = lab.site.path("store").join(format!("{}.cpr", checkpoint["id"]));
        wait_until("it is in the store", || image.exists());
        made.push(checkpoint["id"].clone());
    }
    let cache = lab.site.path(&format!("n2/users/{NOBODY}/images"));
    assert!(
        !cache.exists() || fs::read_dir(&cache).unwrap().next().is_none(),
        "the other host has none"
    );
    lab.crash("n1");
    // That engine has its jobs print into the log of the new job.
    let reached = |lab: &Lab, engine: &str| match engine {
        "open-files" => {
            let count = fs::read_to_string(lab.site.path("work/count"));
            count.ok().and_then(|text| text.trim().parse().ok())
        }
        _ => numbers(lab, engine).last().copied(),
    };
    let at_crash = engines.map(|engine| reached(&lab, engine));
    for (number, engine) in engines.iter().enumerate() {
        let id = &jobs[number];
        wait_until("it goes on elsewhere", || {
            let job = lab.site.job(id);
            job["node"] == "n2" && job["state"] == "running"
        });
        assert_eq!(lab.site.job(id)["from"], made[number], "{engine}");
        wait_until(&format!("{engine} counts on"), || {
            reached(&lab, engine) > at_crash[number].map(|reached| reached + 5)
        });
        let begun = numbers(&lab, engine).into_iter().filter(|number| *number == 1).count();
        assert_eq!(begun, 1, "{engine} has begun anew");
        lab.site.text(&["cancel", id]);
    }
}

/// A program for it, which counts.
fn keeps_itself(last: u32) -> [String; 3] {
    let script = format!(
        "d=$SAGA_CPR_BASE_LOCATION; mkdir -p $d; trap 'echo $i >$d/n.tmp; mv $d/n.tmp $d/n' USR1; i=0; if [ -e $d/n ]; then i=$(cat $d/n); \
         fi; while [ $i -lt {last} ]; do i=$((i+1)); echo $i; sleep 0.05; done"
    );
    ["sh".into(), "-c".into(), script]
}

// GCA-ENV-2, GCA-CLASS-7, GCA-UC-5.1.0, GCA-UC-5.1.1, GCA-UC-5.2.0, GCA-UC-5.3.2, GCA-UC-5.3.3, GCA-UC-5.4.2 GCA-CS-4,
// GCA-UC-5.5.0, GCA-UC-5.5.4, GCA-UC-5.5.6, GCA-CTS-13, GCA-CTS-22, GCA-GCS-2, XGCP-JUCP-4, XGCP-PG-3, XGCP-JOB-6
#[test]
fn jobs_go_to_nodes_whose_engines_fit_and_go_on_on_such() {
    for name in ["api", "grid", "cprd"] {
        no_engine_is_known_to(name, &[&CHECKPOINTERS[..], &GROUPS].concat());
    }
    no_engine_is_known_to("cli", &CHECKPOINTERS);
    let Some(mut lab) = lab(3, "", "") else { return };
    // One node finds them when it starts, the other while it runs.
    for name in ["n2", "n3"] {
        let directory = lab.engines_of(name);
        let files = [
            ("classes.d/kept.toml", KEPT),
            ("classes.d/kept-too.toml", KEPT_TOO),
            ("engines.d/keeper.toml", KEEPER),
        ];
        for (file, text) in files {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        if name == "n2" {
            lab.crash(name);
            lab.start(name);
        }
    }
    let members = |lab: &Lab, name: &str| {
        let listed = lab.site.json(&["nodes"]);
        let mut nodes = listed["nodes"].as_array().unwrap().iter();
        let node = nodes.find(|node| node["info"]["name"] == name).unwrap();
        node["info"]["classes"]["kept"].clone()
    };
    wait_until("the engines are known", || {
        ["n2", "n3"]
            .iter()
            .all(|name| members(&lab, name) == serde_json::json!(["keeper"]))
    });
    assert_eq!(members(&lab, "n1"), serde_json::Value::Null);
    // What it can do is published, and of how it is run nothing.
    let listed = lab.site.json(&["nodes"]);
    let third = listed["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["info"]["name"] == "n3")
        .unwrap();
    let info = &third["info"];
    let words = |name: &str| info["abilities"]["keeper"]["properties"][name].clone();
    assert_eq!(
        (words("kept"), words("driver")),
        (serde_json::json!(["yes"]), serde_json::json!(["application"]))
    );
    assert_eq!(
        info["classes"]["kept-too"],
        serde_json::json!(["keeper"]),
        "of two classes"
    );
    let text = listed.to_string();
    assert!(!text.contains("JOB_DIRECTORY") && !text.contains("/app"), "{text}");
    let told = lab.site.text(&["events", "--node", "n3", "--kind", "node.engines"]);
    assert!(told.contains("keeper"), "{told}");
    // By the engine, its class, what it can do, and how it is driven.
    let ways: [&[&str]; 4] = [
        &["--engine", "keeper", "--node", "n3"],
        &["--class", "kept"],
        &["--need", "kept=yes", "--need", "trigger=external"],
        &["--need", "driver=application", "--need", "kept=yes"],
    ];
    for (number, options) in ways.iter().enumerate() {
        let name = format!("way-{number}");
        let id = lab.site.submit(&name, options, &keeps_itself(10_000));
        assert_ne!(node_of(&lab, &id), "n1");
        lab.site.wait_for_count(&name, 2);
        let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
        assert_eq!(
            (&made["engine"], &made["node"]),
            (&"keeper".into(), &lab.site.job(&id)["node"])
        );
        lab.site.text(&["cancel", &id]);
        lab.site.wait_for_state(&id, "cancelled");
    }

    let never = lab
        .site
        .submit("never", &["--engine", "keeper", "--node", "n1"], &counter(1));
    wait_until("it is said why it waits", || {
        let reason = lab.site.job(&never)["reason"].to_string();
        reason.contains("n1 has no engine=keeper")
    });
    let id = lab.site.submit("out", &["--class", "kept"], &keeps_itself(200));
    let job = format!("@{id}");
    let node = node_of(&lab, &id);
    assert_ne!(node, "n1");
    assert_eq!(lab.site.job(&id)["engine"], "keeper");
    lab.site.wait_for_count("out", 20);
    let made = lab.site.json(&["checkpoint", &job]);
    assert_eq!(
        (&made["state"], &made["engine"]),
        (&"complete".into(), &"keeper".into())
    );

    // What is wanted of checkpoints can be in a file; without one nothing is.
    let words = keeps_itself(10_000);
    let text = format!(
        "every_s = 600\nkeep = 4\nneeds = {{ kept = 'yes' }}\ncommand = ['sh', '-c', \"\"\"{}\"\"\"]\n",
        words[2]
    );
    let file = lab.site.path("work/needs.toml");
    fs::write(&file, text).unwrap();
    let with = lab
        .site
        .text(&["submit", "--file", file.to_str().unwrap(), "-o", "with"]);
    let without = lab.site.submit("without", &[], &counter(10_000));
    let found = [with.trim(), without.as_str()].map(|id| {
        node_of(&lab, id);
        let job = lab.site.job(id);
        lab.site.text(&["cancel", id]);
        (
            job["engine"].clone(),
            job["spec"]["every_s"].clone(),
            job["spec"]["keep"].clone(),
        )
    });
    assert_eq!(found[0], ("keeper".into(), 600.into(), 4.into()));
    assert_eq!(
        found[1],
        ("native".into(), serde_json::Value::Null, serde_json::Value::Null)
    );
    lab.crash(&node);
    let other = if node == "n2" { "n3" } else { "n2" };
    // Whoever asks now, and has never heard of it, finds which engine it was.
    let known = lab.site.json(&["checkpoints", &id]);
    assert_eq!(known["checkpoints"][0]["engine"], "keeper");
    wait_until("it goes on elsewhere", || {
        let now = lab.site.job(&id);
        now["node"] == other && now["from"] == made["id"]
    });
    assert!(lab.site.cpr(&["wait", &job]).status.success(), "{}", lab.site.told());
    let output = lab.site.output("out");
    assert_eq!(output.lines().last(), Some("200"));
    let begun = output.lines().filter(|line| *line == "1").count();
    assert_eq!(begun, 1, "it has gone on and not begun anew: {output}");
    lab.site.text(&["cancel", &never]);
    // Who saves itself when it likes cannot be asked to, and goes on.
    let own = lab
        .site
        .submit("own", &["--engine", "self-checkpointing"], &counter(10_000));
    lab.site.wait_for_count("own", 5);
    let asked = lab.site.cpr(&["checkpoint", &format!("@{own}")]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(
        !asked.status.success() && said.contains("begun by the program itself only"),
        "{said}"
    );
    let before = lab.site.output("own").lines().count();
    lab.site.wait_for_count("own", before as u32 + 5);
    lab.site.text(&["cancel", &own]);
    // It is withdrawn without a restart, too.
    fs::remove_file(lab.engines_of(other).join("engines.d/keeper.toml")).unwrap();
    wait_until("nobody has it any more", || {
        members(&lab, other) == serde_json::Value::Null
    });
}

/// Counts to a number, and saves itself with every tenth.
const SAVES_ITSELF: &str = "
import os, time
path = os.path.join(os.environ['SAGA_CPR_BASE_LOCATION'], 'count')
count = int(open(path).read()) if os.path.exists(path) else 0
print('from', count, flush=True)
while count < 400:
    count += 1
    print(count, flush=True)
    time.sleep(0.05)
    if count % 10 == 0:
        with open(path + '.tmp', 'w') as out:
            out.write(str(count))
        os.rename(path + '.tmp', path)
";

// GCA-UC-5.1.8
#[test]
fn what_a_program_saves_when_it_likes_is_known_to_the_grid_copied_and_outlives_its_node() {
    let Some(mut lab) = lab(2, "", "") else { return };
    let program = ["/usr/bin/python3", "-c", SAVES_ITSELF];
    let id = lab
        .site
        .submit("out", &["--engine", "self-checkpointing", "--keep", "1"], &program);
    let node = node_of(&lab, &id);
    // Nobody has asked for it.
    let newest = |lab: &Lab| {
        let all = lab.site.json(&["checkpoints", &id]);
        let all = all["checkpoints"].as_array().unwrap().clone();
        all.into_iter().rfind(|checkpoint| checkpoint["state"] == "complete")
    };
    wait_until("one of its own is complete, and not the first", || {
        newest(&lab).is_some_and(|checkpoint| checkpoint["generation"].as_u64().unwrap() >= 2)
    });
    let made = newest(&lab).unwrap();
    assert_eq!(made["engine"], "self-checkpointing");
    assert!(made["own"].is_u64(), "{made}");
    assert_eq!(made["locations"].as_array().unwrap().len(), 2, "{made}");
    let events = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.own"]);
    assert!(events.contains("was made by its program"), "{events}");
    lab.crash(&node);
    wait_until("it goes on from what it had saved", || {
        lab.site.output("out").matches("from ").count() == 2
    });
    lab.site.wait_for_state(&id, "finished");
    let out = lab.site.output("out");
    let again: u32 = out
        .rsplit_once("from ")
        .unwrap()
        .1
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(again >= 20 && again.is_multiple_of(10), "it goes on from {again}");
    assert_eq!(lab.site.job(&id)["incarnation"], 2);
    assert!(out.ends_with("\n400\n"));
}

// The fence.
#[test]
fn a_node_that_is_cut_off_ends_its_jobs_before_they_start_elsewhere() {
    let Some(lab) = lab(2, "", "") else { return };
    let id = lab.site.submit("out", &[], &counter(300));
    let job = format!("@{id}");
    let node = node_of(&lab, &id);
    let other = lab.others(&node).remove(0);
    lab.site.wait_for_count("out", 20);
    lab.site.text(&["checkpoint", &job]);
    lab.cut(&node);
    assert!(lab.counts_on(&node), "it knows nothing of it yet");
    let mut ended = None;
    let mut both = false;
    let mut elsewhere = false;
    wait_until("it runs elsewhere", || {
        // In this order: had it moved between the two looks, that would not be seen as running twice.
        let (here, there) = (lab.counts_on(&node), lab.counts_on(&other));
        both |= here && there;
        elsewhere |= there;
        if !here {
            ended.get_or_insert_with(Instant::now);
        }
        there
    });
    assert!(elsewhere && !both, "it ran twice");
    let pause = ended.unwrap().elapsed();
    assert!(pause > Duration::from_millis(500), "they kept a distance: {pause:?}");
    lab.rejoin(&node);
    wait_until("the node is back", || {
        assert!(!lab.counts_on(&node), "what it had is not started again");
        lab.node_state(&node) == "ready"
    });
    assert!(lab.site.cpr(&["wait", &job]).status.success(), "{}", lab.site.told());
    assert_eq!(lab.site.output("out"), counted(300));
    assert_eq!(lab.site.job(&id)["incarnation"], 2);
}

// LBNL-1.2.4.1.e, LBNL-1.2.5.c, GFD93-SCOPE-3
#[test]
fn jobs_are_moved_by_their_user_and_by_an_operator_who_drains_their_node() {
    let Some(mut lab) = lab(3, "operators = ['nobody']", "") else {
        return;
    };
    let id = lab.site.submit("out", &[], &counter(400));
    let job = format!("@{id}");
    let first = node_of(&lab, &id);
    let second = lab.others(&first).remove(0);
    lab.site.wait_for_count("out", 10);
    let moved = lab.site.json(&["migrate", &job, &second]);
    assert_eq!(moved["node"], second.as_str());
    assert!(!lab.counts_on(&first));
    assert_eq!(lab.site.cpr(&["migrate", &job, "n9"]).status.code(), Some(66));
    lab.site.text(&["drain", &second]);
    wait_until("the node is empty", || {
        !lab.counts_on(&second) && lab.site.job(&id)["incarnation"] == 3
    });
    assert_ne!(node_of(&lab, &id), second);
    assert_eq!(lab.node_state(&second), "draining");
    // It is started anew, and nothing of the job knows of that.
    lab.crash(&second);
    wait_until("the node is missed", || lab.node_state(&second) == "lost");
    lab.start(&second);
    wait_until("it is back, and drained still", || {
        lab.node_state(&second) == "draining"
    });
    assert_eq!(lab.site.job(&id)["incarnation"], 3);
    let held_back = lab.site.submit("held", &["--node", &second], &["true"]);
    let waits = || {
        lab.site.job(&held_back)["reason"]
            .as_str()
            .is_some_and(|why| why.contains("waits for a node"))
    };
    wait_until("it is said why a job waits", waits);
    lab.site.text(&["drain", "--undo", &second]);
    lab.site.wait_for_state(&held_back, "finished");
    assert!(lab.site.cpr(&["wait", &job]).status.success());
    assert_eq!(lab.site.output("out"), counted(400));
}

// GFD93-SM-12
#[test]
fn a_job_whose_newest_image_is_damaged_everywhere_goes_on_from_an_older_one() {
    let Some(mut lab) = lab(2, "", "") else { return };
    let id = lab.site.submit("out", &[], &counter(200));
    let job = format!("@{id}");
    lab.site.wait_for_state(&id, "running");
    lab.site.wait_for_count("out", 10);
    let older = lab.site.json(&["checkpoint", &job]);
    let copy = |name: &str, id: &serde_json::Value| lab.site.path(&format!("{name}/users/{NOBODY}/images/{id}.cpr"));
    // A copy that is lost is noticed, and made again.
    fs::remove_file(copy("n1", &older["id"])).unwrap();
    wait_until("the loss is noticed", || {
        let events = lab
            .site
            .text(&["events", "--job", &id, "--kind", "checkpoint.copy-lost"]);
        events.contains(&format!("checkpoint {}", older["id"]))
    });
    wait_until("there is another copy", || copy("n1", &older["id"]).exists());
    lab.site.wait_for_count("out", 40);
    let newest = lab.site.json(&["checkpoint", &job]);
    let mut damaged = 0;
    for name in ["n1", "n2"] {
        let path = lab
            .site
            .path(&format!("{name}/users/{NOBODY}/images/{}.cpr", newest["id"]));
        if let Ok(mut bytes) = fs::read(&path) {
            let middle = bytes.len() / 2;
            bytes[middle..].iter_mut().take(4096).for_each(|byte| *byte ^= 0x55);
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 2);
    let node = node_of(&lab, &id);
    lab.crash(&node);
    assert!(lab.site.cpr(&["wait", &job]).status.success(), "{}", lab.site.told());
    assert_eq!(lab.site.output("out"), counted(200));
    assert_eq!(lab.site.job(&id)["from"], older["id"]);
    let events = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.lost"]);
    assert!(events.contains(&format!("checkpoint {}", newest["id"])), "{events}");
}

// GFD93-SM-8
#[test]
fn with_a_common_store_a_job_goes_on_from_it_and_nothing_stays_there_that_is_not_needed() {
    let Some(mut lab) = lab(2, "store = 'DIR/store'", "store = 'DIR/store'") else {
        return;
    };
    let store = lab.site.path("store");
    fs::create_dir(&store).unwrap();
    fs::write(store.join("README"), "not an image").unwrap();
    fs::write(store.join("4711.cpr"), "of a checkpoint that nobody knows").unwrap();
    let id = lab.site.submit("out", &["--keep", "1"], &counter(600));
    let job = format!("@{id}");
    let node = node_of(&lab, &id);
    lab.site.wait_for_count("out", 10);
    let first = lab.site.json(&["checkpoint", &job]);
    let second = lab.site.json(&["checkpoint", &job]);
    let places: Vec<&str> = second["locations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| place["node"].as_str().unwrap())
        .collect();
    assert_eq!(places, [node.as_str(), ""], "on its node and in the store: {second}");
    let image = |checkpoint: &serde_json::Value| store.join(format!("{}.cpr", checkpoint["id"]));
    wait_until("what is not kept is removed", || !image(&first).exists());
    let metadata = fs::metadata(image(&second)).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (NOBODY, 0o600));

    lab.crash(&node);
    assert!(lab.site.cpr(&["wait", &job]).status.success(), "{}", lab.site.told());
    assert_eq!(lab.site.output("out"), counted(600));
    assert_eq!(lab.site.job(&id)["from"], second["id"]);
    wait_until("the store is empty", || !image(&second).exists());
    let mut left: Vec<_> = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["4711.cpr", "README"]);
}

// GFD93-SM-12
#[test]
fn a_copy_that_nobody_reads_is_looked_at_and_made_again_when_it_is_damaged() {
    let Some(lab) = lab(2, "", "[verify]\nevery_s = 2") else {
        return;
    };
    let id = lab.site.submit("out", &[], &counter(10_000));
    let job = format!("@{id}");
    lab.site.wait_for_count("out", 5);
    let made = lab.site.json(&["checkpoint", &job]);
    let copy = |name: &str| {
        let path = format!("{name}/users/{NOBODY}/images/{}.cpr", made["id"]);
        lab.site.path(&path)
    };
    let good = fs::read(copy("n1")).unwrap();
    assert_eq!(good, fs::read(copy("n2")).unwrap());
    // One bit, and neither size nor name tells of it.
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(copy("n2"), bytes).unwrap();
    wait_until("the damage is found", || {
        let events = lab
            .site
            .text(&["events", "--job", &id, "--kind", "checkpoint.copy-lost"]);
        events.contains(&format!("checkpoint {}", made["id"])) && events.contains("hash")
    });
    wait_until("there is a good copy again", || {
        fs::read(copy("n2")).is_ok_and(|bytes| bytes == good)
    });
    wait_until("the grid knows it, and when both were last looked at", || {
        let now = lab.site.json(&["checkpoints", &id])["checkpoints"][0].clone();
        let places = now["locations"].as_array().unwrap();
        let later = |place: &serde_json::Value| place["verified_ms"].as_i64() > made["stored_ms"].as_i64();
        now["state"] == "complete" && places.len() == 2 && places.iter().all(later)
    });
    lab.site.text(&["cancel", &id]);
}

// GFD93-SM-12
#[test]
fn what_is_damaged_or_gone_in_the_store_is_put_there_again_and_an_empty_store_is_not_believed() {
    let Some(lab) = lab(1, "store = 'DIR/store'\n[verify]\nevery_s = 2", "store = 'DIR/store'") else {
        return;
    };
    let store = lab.site.path("store");
    fs::create_dir(&store).unwrap();
    let id = lab.site.submit("out", &[], &counter(10_000));
    let job = format!("@{id}");
    lab.site.wait_for_count("out", 5);
    let image = |checkpoint: &serde_json::Value| store.join(format!("{}.cpr", checkpoint["id"]));
    let made = [
        lab.site.json(&["checkpoint", &job]),
        lab.site.json(&["checkpoint", &job]),
    ];
    let good = made.each_ref().map(|made| fs::read(image(made)).unwrap());
    let mut bytes = good[0].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(image(&made[0]), bytes).unwrap();
    wait_until("a good copy is in the place of the damaged one", || {
        fs::read(image(&made[0])).is_ok_and(|bytes| bytes == good[0])
    });
    fs::remove_file(image(&made[1])).unwrap();
    wait_until("there is another one for that which is gone", || {
        fs::read(image(&made[1])).is_ok_and(|bytes| bytes == good[1])
    });
    let lost = lab
        .site
        .text(&["events", "--job", &id, "--kind", "checkpoint.copy-lost"]);
    assert!(lost.contains("hash") && lost.contains("gone from the store"), "{lost}");
    let whole = || {
        let now = lab.site.json(&["checkpoints", &id]);
        let list = now["checkpoints"].as_array().unwrap().clone();
        let in_store = |known: &serde_json::Value| {
            let mut places = known["locations"].as_array().unwrap().iter();
            known["state"] == "complete" && places.any(|place| place["node"] == "")
        };
        list.len() == 2 && list.iter().all(in_store)
    };
    wait_until("both are on record again", whole);
    // As when its file system is not mounted.
    fs::rename(&store, lab.site.path("elsewhere")).unwrap();
    fs::create_dir(&store).unwrap();
    wait_until("it is said that it is empty", || {
        let told = fs::read_to_string(lab.site.path("grid.log")).unwrap();
        told.contains("2 images should be in it")
    });
    assert!(whole(), "none is given up for that");
    lab.site.text(&["cancel", &id]);
}

/// What an agent says, on the host of the service, with a certificate `issued/NAME` and believing this CA.
fn agent_says(lab: &Lab, ca: &str, issued: &str, wanted: &str) {
    let path = |name: &str| lab.site.path(name).display().to_string();
    lab.site.configure(
        "stranger.toml",
        &format!(
            "[node]\nname = 'n9'\ngrid = 'https://10.98.0.254:7700'\ndirectory = 'DIR/stranger'\n[tls]\nca = '{}'\n\
             certificate = '{}'\nkey = '{}'\n",
            path(&format!("{ca}/ca.pem")),
            path(&format!("{issued}.pem")),
            path(&format!("{issued}.key"))
        ),
    );
    let log = lab.site.path("stranger.said");
    let mut command = lab.service_command();
    command
        .arg(lab.site.path("cprd"))
        .args(["--config", &path("stranger.toml"), "node"]);
    let mut agent = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    wait_until(wanted, || fs::read_to_string(&log).unwrap().contains(wanted));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.id())).unwrap();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        );
    }
    let _ = agent.kill();
    agent.wait().unwrap();
}

// GFD93-AUTH-1, GFD93-AUTH-4, GFD93-INT-CTauth, GFD93-CT-7, GFD93-SEC-1, GCA-SEC-4, GCA-UC-5.5.5
#[test]
fn images_are_given_to_nodes_only_and_to_them_only_with_a_ticket() {
    let Some(lab) = lab(2, "", "") else { return };
    let id = lab.site.submit("out", &[], &counter(10_000));
    lab.site.wait_for_count("out", 5);
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    lab.site.ca("strange", &["init"]);
    lab.site
        .issue("strange", &["n2", "--role", "node", "--host", "10.98.0.2"]);
    lab.site.issue("ca", &["nobody"]);
    lab.site
        .issue("ca", &["n3", "--role", "node", "--host", "10.98.0.3", "--valid", "1s"]);
    // What the agent of n1 says to somebody in the network of the grid, with a certificate or without.
    let ask = |certificate: Option<&str>| {
        let mut command = lab.service_command();
        command.args(["openssl", "s_client", "-quiet", "-connect", "10.98.0.1:7701", "-CAfile"]);
        command.arg(lab.site.path("ca/ca.pem"));
        if let Some(name) = certificate {
            command.arg("-cert").arg(lab.site.path(&format!("{name}.pem")));
            command.arg("-key").arg(lab.site.path(&format!("{name}.key")));
        }
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let request = format!(
            "GET /v1/images/{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer 0123\r\n\r\n",
            made["id"]
        );
        // Whoever is refused has nobody who reads it.
        let _ = std::io::Write::write_all(child.stdin.as_mut().unwrap(), request.as_bytes());
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    };
    let another_node = ask(Some("ca-issued/n2"));
    assert!(
        another_node.starts_with("HTTP/1.1 403") && another_node.contains("no ticket"),
        "{another_node}"
    );
    let user = ask(Some("ca-issued/nobody"));
    assert!(user.starts_with("HTTP/1.1 403") && user.contains("for nodes"), "{user}");
    assert_eq!(ask(None), "");
    assert_eq!(ask(Some("strange-issued/n2")), "");
    wait_until("a certificate has expired", || ask(Some("ca-issued/n3")).is_empty());
    // Nor as another user of the machines.
    for name in ["n1", "n2"] {
        let image = lab
            .site
            .path(&format!("{name}/users/{NOBODY}/images/{}.cpr", made["id"]));
        assert!(image.exists(), "{image:?}");
        let mut read = std::process::Command::new("setpriv");
        read.args(["--reuid=65533", "--regid=65533", "--clear-groups", "--", "cat"]);
        let read = read.args([&image, &lab.site.path("grid/grid.db")]).output().unwrap();
        assert!(!read.status.success() && read.stdout.is_empty());
    }
    let listed = lab
        .site
        .command_as(65533, &["checkpoints", "-a", "--json"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), r#"{"checkpoints":[]}"#);
    // A node whose certificate is a stranger's is no node, and one that comes to a stranger's service takes nothing
    // from it.
    lab.site
        .issue("strange", &["n9", "--role", "node", "--host", "10.98.0.254"]);
    lab.site.issue("ca", &["n9", "--role", "node", "--host", "10.98.0.254"]);
    agent_says(&lab, "ca", "strange-issued/n9", "does not believe our certificate");
    agent_says(
        &lab,
        "strange",
        "ca-issued/n9",
        "certificate of the other side is not believed",
    );
    // A node may not be another one.
    agent_says(&lab, "ca", "ca-issued/n2", "n2 is not node n9");
    let nodes = lab.site.json(&["nodes"])["nodes"].as_array().unwrap().len();
    assert_eq!(nodes, 2);
    lab.site.text(&["cancel", &id]);
}

// GCA-CTS-10, GCA-CTS-28, GFD93-RES-3, GFD93-GLO-7, GFD93-CT-5, GCA-SEC-1, GFD93-SEC-2
#[test]
fn a_job_goes_round_all_nodes_by_its_number_alone_and_nobody_on_the_network_reads_anything_of_it() {
    let Some(lab) = lab(3, "copies = 1", "") else { return };
    let tap = lab.tap();
    let script = "import time\nsecret = 'never-to-be-' + 'read' * 3\nfor i in range(1, 100000):\n    \
                  print(i, flush=True)\n    time.sleep(0.02)";
    let id = lab.site.submit(
        "out",
        &["--name", "name-of-the-job"],
        &["/usr/bin/python3", "-c", script],
    );
    let job = format!("@{id}");
    let image =
        |node: &str, made: &serde_json::Value| lab.site.path(&format!("{node}/users/{NOBODY}/images/{made}.cpr"));
    let mut node = node_of(&lab, &id);
    let mut bytes = 0;
    let mut seen = std::collections::BTreeSet::from([node.clone()]);
    for round in 1..=3 {
        lab.site.wait_for_count("out", 20 * round);
        lab.site.json(&["suspend", &job]);
        let list = lab.site.json(&["checkpoints", &id]);
        let made = list["checkpoints"].as_array().unwrap().last().unwrap().clone();
        bytes += made["bytes"].as_u64().unwrap();
        let next = lab
            .others(&node)
            .into_iter()
            .find(|other| round == 3 || !seen.contains(other))
            .unwrap();
        assert!(image(&node, &made["id"]).exists());
        assert!(!image(&next, &made["id"]).exists(), "it is on its own node only");
        let had = lab.site.output("out").lines().count() as u32;
        lab.site.text(&["recover", &id, "--on", &next]);
        wait_until("it runs on the other node", || {
            let now = lab.site.job(&id);
            now["state"] == "running" && now["node"] == next.as_str()
        });
        assert_eq!(lab.site.job(&id)["from"], made["id"]);
        assert!(image(&next, &made["id"]).exists(), "the image has come to it");
        lab.site.wait_for_count("out", had + 3);
        seen.insert(next.clone());
        node = next;
    }
    assert_eq!(seen.len(), 3);
    let output = lab.site.output("out");
    let numbers: Vec<u32> = output.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    // The service moves it, too.
    let next = lab.others(&node).remove(0);
    let moved = lab.site.json(&["migrate", &job, &next]);
    assert_eq!(moved["node"], next.as_str());
    let last = lab.site.json(&["checkpoint", &job]);
    lab.site.text(&["cancel", &id]);
    lab.site.wait_for_state(&id, "cancelled");
    wait_until("nothing of it runs", || lab.site.job_processes().is_empty());
    // All of it went over the network, and nothing can be read there.
    let said = tap.said();
    let total: usize = said.values().map(Vec::len).sum();
    assert!(total as u64 > bytes, "{total} bytes, and images of {bytes}");
    for (who, said) in &said {
        assert_eq!(said[..2], [0x16, 0x03], "{who:?} does not begin as TLS does");
        for word in [
            "HTTP/1.1",
            "/v1/",
            "name-of-the-job",
            "never-to-be-read",
            "print(i, flush",
            "\"owner\"",
        ] {
            let found = said.windows(word.len()).any(|at| at == word.as_bytes());
            assert!(!found, "{word} can be read in what {who:?} says");
        }
    }
    // The file alone, in the hand of its user, on a machine that knows nothing of a grid.
    let by_hand = lab.site.path("work/by-hand.cpr");
    fs::copy(image(&next, &last["id"]), &by_hand).unwrap();
    std::os::unix::fs::chown(&by_hand, Some(NOBODY), Some(NOBODY)).unwrap();
    let own = |arguments: &[&str]| {
        let mut command = lab.site.command(arguments);
        command
            .env_remove("GRIDCPR_GRID")
            .env("GRIDCPR_STATE_DIR", lab.site.path("work/state"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let had = lab.site.output("out").lines().count();
    own(&["restart", "--detach", "--name", "hand", by_hand.to_str().unwrap()]);
    wait_until("it goes on", || lab.site.output("out").lines().count() > had + 5);
    own(&["kill", "--signal", "KILL", "hand"]);
}

/// A program that has so many MiB of memory that cannot be made smaller, and counts.
fn heavy(mib: u32) -> [String; 3] {
    let script = format!(
        "import os, time\nheld = os.urandom({mib} << 20)\nfor i in range(1, 100000):\n    print(i, flush=True)\n    \
         time.sleep(0.02)"
    );
    ["python3".into(), "-c".into(), script]
}

// GFD93-CT-1, GFD93-RES-7, GFD93-WF-2.4, GFD93-INT-CPRtransfer
#[test]
fn a_copy_comes_whole_though_the_connection_is_cut_and_the_job_runs_on_and_it_takes_no_more_than_it_is_granted() {
    let Some(mut lab) = lab(3, "copies = 1", "transfer_mb_per_s = 12") else {
        return;
    };
    let id = lab.site.submit("out", &["--node", "n1"], &heavy(48));
    lab.site.wait_for_count("out", 5);
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    let bytes = made["bytes"].as_u64().unwrap();
    let number = made["id"].to_string();
    let root = lab.site.path("");
    let copy = |name: &str| root.join(format!("{name}/users/{NOBODY}/images/{number}.cpr"));
    let (here, there) = (copy("n1"), copy("n2"));
    let arriving = |site: &Site, node: &str| -> Option<u64> {
        let list = site.json(&["checkpoints", &id]);
        let mut copies = list["checkpoints"][0]["arriving"]
            .as_array()
            .cloned()
            .unwrap_or_default()
            .into_iter();
        copies.find(|copy| copy["node"] == node)?["bytes"].as_u64()
    };
    let count = |site: &Site| site.output("out").lines().count();
    let (before, began) = (count(&lab.site), Instant::now());
    lab.site.text(&["transfer", &number, "n2"]);
    // How far it is, is seen; and twice whoever gives it is killed in the middle.
    let mut had = 0;
    for part in 1..=2 {
        let site = &lab.site;
        wait_until("a part of it is there", || {
            let now = arriving(site, "n2").unwrap();
            assert!(now >= had, "it goes on where it was: {now} and {had}");
            had = now;
            now > part * bytes / 4
        });
        assert!(count(site) > before, "the job runs on meanwhile");
        lab.site.kill("n1");
        lab.start_agent("n1");
    }
    wait_until("it is there", || there.exists());
    let took = began.elapsed();
    assert_eq!(fs::read(&here).unwrap(), fs::read(&there).unwrap());
    assert!(
        took.as_secs_f64() >= bytes as f64 / f64::from(12 << 20),
        "{bytes} bytes took {took:?}"
    );
    let log = fs::read_to_string(lab.site.path("n2.log")).unwrap();
    assert!(
        log.matches(&format!("fetching checkpoint {number} from n1")).count() >= 2,
        "{log}"
    );
    wait_until("the grid knows it", || {
        let places = lab.site.json(&["checkpoints", &id])["checkpoints"][0]["locations"].clone();
        places.as_array().unwrap().len() == 2
    });
    // Another one is given up, and nothing of it stays.
    lab.site.text(&["transfer", &number, "n3"]);
    wait_until("a part of it is there", || arriving(&lab.site, "n3").unwrap() > 0);
    lab.site.text(&["transfer", "--cancel", &number, "n3"]);
    assert_eq!(arriving(&lab.site, "n3"), None);
    let incoming = lab.site.path("n3/incoming");
    wait_until("nothing of it is left", || {
        fs::read_dir(&incoming).unwrap().count() == 0
    });
    assert!(!copy("n3").exists());
    // And one is waited for.
    lab.site.json(&["transfer", "--wait", &number, "n3"]);
    assert_eq!(fs::read(copy("n3")).unwrap(), fs::read(&here).unwrap());
    lab.site.text(&["cancel", &id]);
}

// XGCP-USE-2, XGCP-JOB-1, XGCP-JOB-4
#[test]
fn numbers_of_jobs_are_the_grids_on_every_node_and_a_job_of_two_units_is_moved_to_two_other_nodes() {
    let Some(lab) = lab(4, "operators = ['nobody']", "") else {
        return;
    };
    lab.site.issue("ca", &["nobody"]);
    let key = lab.site.path("ca-issued/nobody.key");
    std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    let names = ["n1", "n2", "n3", "n4"];
    let text = |output: std::process::Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // From all nodes at once.
    let asking: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = lab.cpr_on(name, "nobody", &["submit", "-o", "/dev/null", "--", "sleep", "1000"]);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ids: std::collections::BTreeSet<String> = asking
        .into_iter()
        .map(|child| text(child.wait_with_output().unwrap()).trim().to_string())
        .collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
    for id in &ids {
        let node = node_of(&lab, id);
        for name in names {
            let known = text(lab.cpr_on(name, "nobody", &["jobs", id, "--json"]).output().unwrap());
            let known: serde_json::Value = serde_json::from_str(&known).unwrap();
            let job = &known["jobs"][0];
            assert_eq!(
                (job["id"].to_string(), job["node"].as_str()),
                (id.clone(), Some(node.as_str()))
            );
        }
        lab.site.text(&["cancel", id]);
    }
    // Two units, and the two nodes that they are on are emptied.
    let program = IN_STEP.replace("LAST", "400");
    let id = lab
        .site
        .submit("u-%u", &["--units", "2"], &["/usr/bin/python3", "-c", &program]);
    lab.site.wait_for_count("u-0", 10);
    let before = nodes_of(&lab, &id);
    assert_ne!(before[0], before[1]);
    for node in &before {
        lab.site.text(&["drain", node]);
    }
    wait_until("it is on two others", || {
        let job = lab.site.job(&id);
        let units = job["units"].as_array().unwrap();
        let moved = |unit: &serde_json::Value| {
            unit["phase"] == "running" && !before.iter().any(|node| unit["node"] == node.as_str())
        };
        units.len() == 2 && units.iter().all(moved)
    });
    let after = nodes_of(&lab, &id);
    assert_ne!(after[0], after[1]);
    assert!(
        lab.site.cpr(&["wait", &format!("@{id}")]).status.success(),
        "{}",
        lab.site.told()
    );
    for unit in 0..2 {
        assert_eq!(lab.site.output(&format!("u-{unit}")), counted(400));
    }
}

/// Counts in step with the other units of its job, by files that all see; while there is a file `quiet` it only says
/// how far it is.
const IN_STEP: &str = "
import os, time
unit, units, n = int(os.environ['GRIDCPR_UNIT']), int(os.environ['GRIDCPR_UNITS']), 0
own = os.open('at-%d' % unit, os.O_RDWR | os.O_CREAT, 0o600)
def at(other):
    try: return int(open('at-%d' % other).read())
    except (OSError, ValueError): return -1
while n < LAST:
    time.sleep(0.005)
    os.pwrite(own, b'%8d' % n, 0)
    if os.path.exists('quiet'):
        open('state-%d' % unit, 'w').write('%d.' % n)
        continue
    if all(at(other) >= n for other in range(units)):
        n += 1
        print(n, flush=True)
";

/// A job of three units that count in step to a number.
fn in_step(lab: &Lab, last: u32) -> String {
    let program = IN_STEP.replace("LAST", &last.to_string());
    let id = lab
        .site
        .submit("u-%u", &["--units", "3"], &["/usr/bin/python3", "-c", &program]);
    lab.site.wait_for_count("u-0", 10);
    id
}

fn nodes_of(lab: &Lab, id: &str) -> Vec<String> {
    let job = lab.site.wait_for_state(id, "running");
    let units = job["units"].as_array().unwrap().iter();
    units.map(|unit| unit["node"].as_str().unwrap().to_string()).collect()
}

/// All have counted to the end, and nothing twice.
fn all_counted(lab: &Lab, id: &str, last: u32) {
    let ended = lab.site.cpr(&["wait", &format!("@{id}")]);
    assert!(ended.status.success(), "{}", lab.site.told());
    for unit in 0..3 {
        assert_eq!(lab.site.output(&format!("u-{unit}")), counted(last), "unit {unit}");
    }
}

/// How far a step of the checkpoints of a job has come, as events tell it.
fn steps_of(lab: &Lab, id: &str) -> usize {
    let events = lab.site.text(&["events", "--job", id, "--kind", "checkpoint.step"]);
    events.lines().count()
}

// XGCP-COORD-11, XGCP-JCP-9, XGCP-JCP-10, GFD93-SCOPE-4, XGCP-JOB-2
#[test]
fn units_on_several_nodes_are_saved_in_one_stop_and_go_on_together_when_a_node_is_lost() {
    let Some(mut lab) = lab(4, "", "") else { return };
    let id = in_step(&lab, 400);
    let nodes = nodes_of(&lab, &id);
    let different: std::collections::BTreeSet<&String> = nodes.iter().collect();
    assert_eq!(different.len(), 3, "{nodes:?}");
    for round in 1..=2 {
        lab.site.wait_for_count("u-1", 20 * round);
        let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
        assert_eq!(made["units"].as_array().unwrap().len(), 3, "{made}");
        // The coordinator has told all of them to do each step, one after the other.
        let steps = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.step"]);
        let own = format!("checkpoint {} of job {id}: all units ", made["id"]);
        let steps: Vec<&str> = steps
            .lines()
            .filter_map(|line| Some(line.split_once(&own)?.1))
            .collect();
        let words = ["are to stop", "are to be saved", "are to go on"];
        assert_eq!(steps.len(), 3, "{steps:?}");
        assert!(
            steps.iter().zip(words).all(|(step, word)| step.contains(word)),
            "{steps:?}"
        );
        lab.site.wait_for_count("u-2", 20 * round + 10);
        // What each remembers is of one moment.
        let quiet = lab.site.path("work/quiet");
        fs::write(&quiet, "").unwrap();
        let node = nodes_of(&lab, &id)[1].clone();
        lab.crash(&node);
        wait_until("it is started again", || lab.site.job(&id)["incarnation"] == 1 + round);
        let again = lab.site.wait_for_state(&id, "running");
        assert_eq!(again["from"], made["id"]);
        for unit in 0..3 {
            // What the start before has said.
            let _ = fs::remove_file(lab.site.path(&format!("work/state-{unit}")));
        }
        let state = |unit: u32| -> Option<u32> {
            lab.site
                .output(&format!("state-{unit}"))
                .strip_suffix('.')?
                .parse()
                .ok()
        };
        wait_until("all say how far they are", || (0..3).all(|unit| state(unit).is_some()));
        let states = [0, 1, 2].map(|unit| state(unit).unwrap());
        let (least, most) = (states.iter().min().unwrap(), states.iter().max().unwrap());
        assert!(most - least <= 1 && *least >= 10, "{states:?}");
        lab.start(&node);
        wait_until("the node is back", || lab.node_state(&node) == "ready");
        fs::remove_file(&quiet).unwrap();
    }
    all_counted(&lab, &id, 400);
}

/// Says what it is told by a callback of libgridcpr, and ends then, while the program waits for what never comes.
const LISTENS: &str = "
import ctypes, os, signal
library = ctypes.CDLL('LIBRARY')
class Notice(ctypes.Structure):
    _fields_ = [('size', ctypes.c_uint32), ('event', ctypes.c_int32), ('failed', ctypes.c_int32),
                ('restarts', ctypes.c_uint32), ('checkpoint', ctypes.c_uint64), ('reason', ctypes.c_char_p)]
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Notice), ctypes.c_void_p)
def called(notice, data):
    if notice.contents.event == 4:
        os.write(1, b'told: ' + notice.contents.reason + b'\\n')
        if ENDS: os._exit(0)
    return 0
assert library.gridcpr_register(called, None, 0) > 0
os.write(1, b'ready\\n')
nothing, never = os.pipe()
os.read(nothing, 1)
";

fn listens(lab: &Lab, ends: bool) -> String {
    let built = std::path::Path::new(env!("CARGO_BIN_EXE_cprd")).with_file_name("libgridcpr.so");
    let library = lab.site.path("libgridcpr.so");
    if !library.exists() {
        fs::copy(built, &library).unwrap();
    }
    let program = LISTENS.replace("LIBRARY", library.to_str().unwrap());
    program.replace("ENDS", if ends { "True" } else { "False" })
}

// GFD93-EH-4, GFD93-WF-3.3
#[test]
fn units_that_are_left_when_a_node_is_lost_are_told_which_and_can_end_themselves() {
    let Some(mut lab) = lab(3, "", "") else { return };
    let program = listens(&lab, true);
    let id = lab
        .site
        .submit("u-%u", &["--units", "3"], &["/usr/bin/python3", "-c", &program]);
    let nodes = nodes_of(&lab, &id);
    for unit in 0..3 {
        wait_until("it waits", || lab.site.output(&format!("u-{unit}")) == "ready\n");
    }
    // Another job, which has nothing to do with it.
    let other = lab
        .site
        .submit("other", &["--node", &nodes[0]], &["/usr/bin/python3", "-c", &program]);
    wait_until("it waits", || lab.site.output("other") == "ready\n");
    lab.crash(&nodes[1]);
    let began = Instant::now();
    for unit in [0, 2] {
        let said = || lab.site.output(&format!("u-{unit}"));
        wait_until("the others are told", || said().contains("told: "));
        let said = said();
        assert!(
            said.contains(&format!("told: failure of unit 1: node {} was not heard of", nodes[1])),
            "{said}"
        );
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(5 * LEASE_MS), "{took:?}");
    let warned = lab.site.text(&["events", "--kind", "job.warned"]);
    assert!(warned.contains(&format!("job {id} is told")), "{warned}");
    assert!(!warned.contains(&format!("job {other} is told")), "{warned}");
    assert_eq!(lab.site.output("other"), "ready\n");
    for id in [id, other] {
        lab.site.text(&["cancel", &id]);
    }
}

// GFD93-EH-9
#[test]
fn a_detector_of_the_operators_has_the_jobs_of_a_failing_node_told_and_go_on_elsewhere() {
    let detector = "[detector]\nevery_s = 1\ncommand = ['/bin/sh', '-c', 'test ! -e DIR/fails-$GRIDCPR_NODE || \
                    { echo looked; echo the memory of it has errors; exit 3; }']";
    let Some(lab) = lab(2, "operators = ['nobody']", detector) else {
        return;
    };
    let program = listens(&lab, false);
    let id = lab.site.submit("told", &[], &["/usr/bin/python3", "-c", &program]);
    let node = node_of(&lab, &id);
    let other = lab.others(&node).remove(0);
    let counts = lab.site.submit("out", &["--node", &node], &counter(400));
    let apart = lab
        .site
        .submit("apart", &["--node", &other], &["/usr/bin/python3", "-c", &program]);
    for name in ["told", "apart"] {
        wait_until("it waits", || lab.site.output(name) == "ready\n");
    }
    lab.site.wait_for_count("out", 10);
    assert_eq!(lab.node_state(&node), "ready");
    fs::write(lab.site.path(&format!("fails-{node}")), "").unwrap();
    wait_until("it is seen", || lab.node_state(&node) == "draining");
    let reason = format!("node {node} is failing: the memory of it has errors");
    let faults = lab.site.text(&["events", "--kind", "node.fault"]);
    assert!(faults.contains(&format!("{reason}, as its detector says")), "{faults}");
    wait_until("the program there is told", || {
        lab.site.output("told").contains(&reason)
    });
    wait_until("it goes on elsewhere", || {
        let now = lab.site.job(&id);
        now["node"] == other.as_str() && now["state"] == "running" && now["from"].is_i64()
    });
    let failed = lab.site.text(&["events", "--kind", "checkpoint.failed"]);
    assert_eq!(
        failed, "",
        "they are told before they are saved, and not at the same time"
    );
    assert_eq!(lab.site.output("apart"), "ready\n", "what runs elsewhere is not told");
    assert_eq!(lab.site.job(&apart)["incarnation"], 1);
    // One that may run nowhere else waits until somebody says that all is well again; nothing of it is lost.
    wait_until("it waits", || lab.site.job(&counts)["state"] == "queued");
    fs::remove_file(lab.site.path(&format!("fails-{node}"))).unwrap();
    lab.site.text(&["drain", "--undo", &node]);
    assert!(
        lab.site.cpr(&["wait", &format!("@{counts}")]).status.success(),
        "{}",
        lab.site.told()
    );
    assert_eq!(lab.site.output("out"), counted(400));
    // By hand it is the same.
    lab.site.text(&["fault", &other, "smoke"]);
    wait_until("it is told", || {
        lab.site
            .output("apart")
            .contains(&format!("told: node {other} is failing: smoke"))
    });
    for id in [id, apart] {
        lab.site.text(&["cancel", &id]);
    }
}

// XGCP-COORD-12, XGCP-JCP-4
#[test]
fn whatever_is_lost_in_any_step_of_a_checkpoint_the_job_comes_to_its_end() {
    let Some(mut lab) = lab(4, "", "") else { return };
    let id = in_step(&lab, 1000);
    let job = format!("@{id}");
    lab.site.json(&["checkpoint", &job]);
    for step in 1..=3 {
        for service in [true, false] {
            let before = steps_of(&lab, &id);
            let node = nodes_of(&lab, &id)[step % 3].clone();
            let incarnation = lab.site.job(&id)["incarnation"].clone();
            let mut asking = lab.site.command(&["checkpoint", &job]);
            asking.stdout(std::process::Stdio::null());
            let mut asking = asking.stderr(std::process::Stdio::null()).spawn().unwrap();
            wait_until("the step has begun", || steps_of(&lab, &id) >= before + step);
            if service {
                lab.site.kill("grid");
                lab.start_service();
            } else {
                lab.crash(&node);
                wait_until("the node is missed", || lab.node_state(&node) == "lost");
                lab.start(&node);
                wait_until("the node is back", || lab.node_state(&node) == "ready");
                // The start before is said to run until its last unit has been ended.
                wait_until("the job is started again", || {
                    lab.site.job(&id)["incarnation"] != incarnation
                });
            }
            let _ = asking.wait();
            wait_until("nothing is under way any more", || {
                let all = lab.site.json(&["checkpoints", &id]);
                let all = all["checkpoints"].as_array().unwrap().clone();
                all.iter().all(|checkpoint| checkpoint["state"] == "complete")
            });
            lab.site.wait_for_state(&id, "running");
        }
    }
    all_counted(&lab, &id, 1000);
}

// XGCP-COORD-12
#[test]
fn where_one_unit_cannot_be_saved_all_go_on_and_the_job_is_described_by_a_file() {
    let Some(lab) = lab(3, "", "") else { return };
    // The last one holds an object that cannot be saved.
    let hold = "import ctypes, time\nassert ctypes.CDLL(None).syscall(323, 1) >= 0\n\
                n = 0\nwhile n < 100000:\n    n += 1\n    print(n, flush=True)\n    time.sleep(0.01)";
    let count = counter(100_000);
    let text = format!(
        "name = 'coupled'\noutput = 'u-%u'\nrequires = {{ arch = '{}' }}\n\
         [[units]]\ncommand = ['sh', '-c', '''{}''']\n[[units]]\ncommand = ['sh', '-c', '''{}''']\nslots = 2\n\
         [[units]]\ncommand = ['/usr/bin/python3', '-c', '''{hold}''']\nnode = 'n3'\n",
        std::env::consts::ARCH,
        count[2],
        count[2]
    );
    let file = lab.site.path("work/job.toml");
    fs::write(&file, text).unwrap();
    let id = lab
        .site
        .text(&["submit", "--file", file.to_str().unwrap()])
        .trim()
        .to_string();
    let nodes = nodes_of(&lab, &id);
    assert_eq!(nodes[2], "n3");
    let shown = lab.site.text(&["jobs", &id]);
    assert!(shown.contains("coupled") && shown.contains("UNIT"), "{shown}");
    for round in 1..=2 {
        for unit in 0..3 {
            lab.site.wait_for_count(&format!("u-{unit}"), 20 * round);
        }
        let what = if round == 1 { "checkpoint" } else { "suspend" };
        let refused = lab.site.cpr(&[what, &format!("@{id}")]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{said}");
        let events = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.failed"]);
        assert!(
            events.contains("unit 2 on n3") && events.contains("userfaultfd"),
            "{events}"
        );
        let had: Vec<usize> = (0..3).map(|unit| lab.site.output(&format!("u-{unit}")).len()).collect();
        wait_until("all go on", || {
            (0..3).all(|unit: usize| lab.site.output(&format!("u-{unit}")).len() > had[unit] + 20)
        });
    }
    assert_eq!(lab.site.job(&id)["incarnation"], 1);
    // What ends one ends all.
    lab.site.text(&["cancel", &id]);
    lab.site.wait_for_state(&id, "cancelled");
    wait_until("all have ended", || lab.site.job_processes().is_empty());
}

/// A unit that is connected with every other one over TCP, and sends and gets numbers as fast as it can. While there is
/// a file `slow` it reads next to nothing; it says when it can write no more.
const ALL_TO_ALL: &str = "
import os, socket, struct, threading, time
unit, units = int(os.environ['GRIDCPR_UNIT']), int(os.environ['GRIDCPR_UNITS'])
route = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
route.connect(('10.98.0.254', 9))
own = route.getsockname()[0]; route.close()
listener = socket.create_server((own, 0))
def write(name, text):
    open(name + '.new', 'w').write(text); os.rename(name + '.new', name)
write('where-%d' % unit, '%s %d' % listener.getsockname())
def where(other):
    while not os.path.exists('where-%d' % other): time.sleep(0.01)
    host, port = open('where-%d' % other).read().split()
    return host, int(port)
sent, got = {}, {}
# Written in place and always as long: whenever it is saved, what is open is there later, and as it was.
os.close(os.open('got-%d' % unit, os.O_WRONLY | os.O_CREAT, 0o644))
def tell(text):
    file = os.open('got-%d' % unit, os.O_WRONLY)
    os.pwrite(file, text.ljust(40).encode(), 0); os.close(file)
def alone(act, *all):
    # The others end with the job.
    try: act(*all)
    except OSError: os._exit(3)
def send(other, s):
    n = 0
    while True:
        s.sendall(struct.pack('>512Q', *range(n, n + 512))); n += 512; sent[other] = n
def receive(other, s):
    n, rest = 0, b''
    while True:
        data = s.recv(100 if os.path.exists('slow') else 1 << 18)
        if not data: os._exit(3)
        rest += data
        whole = len(rest) // 8 * 8
        now = struct.unpack('>%dQ' % (whole // 8), rest[:whole])
        if now != tuple(range(n, n + len(now))):
            write('broken-%d-%d' % (unit, other), '%d comes at %d' % (now[0], n)); os._exit(1)
        n, rest = n + len(now), rest[whole:]
        got[other] = n
        if os.path.exists('slow'): time.sleep(0.05)
def talk(other, s):
    # No reader is so fast that it gets the largest buffer there is.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for act in send, receive: threading.Thread(target=alone, args=(act, other, s), daemon=True).start()
for other in range(unit):
    s = socket.create_connection(where(other)); s.sendall(bytes([unit])); talk(other, s)
for _ in range(unit + 1, units):
    s = listener.accept()[0]; talk(s.recv(1)[0], s)
before = {}
while True:
    time.sleep(0.3)
    if os.path.exists('slow') and before == sent and not os.path.exists('full-%d' % unit): os.mkdir('full-%d' % unit)
    before = dict(sent)
    at = [h for s in [listener] for h in s.getsockname()]
    tell('%020d %s' % (min(got.get(other, 0) for other in range(units) if other != unit), at[0]))
";

/// How far a unit is, and what it takes its address to be.
fn got(lab: &Lab, unit: usize) -> (u64, String) {
    let text = lab.site.output(&format!("got-{unit}"));
    let (number, address) = text.split_once(' ').unwrap_or(("0", ""));
    (number.parse().unwrap_or_default(), address.trim().to_string())
}

/// Every unit has got this many more numbers from every other one: more than were on their way.
#[track_caller]
fn all_talk(lab: &Lab, since: &[u64; 3]) {
    let deadline = Instant::now() + PATIENCE;
    while !(0..3).all(|unit| got(lab, unit).0 > since[unit] + 1_000_000) {
        let broken = fs::read_dir(lab.site.path("work")).unwrap().flatten();
        let broken = broken.filter(|file| file.file_name().to_string_lossy().starts_with("broken"));
        let found: Vec<_> = broken
            .map(|file| (file.file_name(), fs::read_to_string(file.path()).unwrap_or_default()))
            .collect();
        assert!(found.is_empty(), "{found:?}");
        if Instant::now() > deadline {
            let said = [0, 1, 2].map(|unit| lab.site.output(&format!("u-{unit}")));
            let at = [0, 1, 2].map(|unit| got(lab, unit));
            let jobs = lab.site.text(&["jobs", "--all", "--json"]);
            panic!("not in time: all get numbers from all since {since:?}: {at:?}, {said:?}, {jobs}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn all_got(lab: &Lab) -> [u64; 3] {
    [0, 1, 2].map(|unit| got(lab, unit).0)
}

// XGCP-CHAN-1, XGCP-CHAN-8, XGCP-CHAN-13, XGCP-COORD-1
#[test]
fn units_that_talk_over_tcp_miss_nothing_and_hear_nothing_twice_wherever_they_go_on() {
    let Some(mut lab) = lab(5, "", "") else { return };
    let id = lab
        .site
        .submit("u-%u", &["--units", "3"], &["/usr/bin/python3", "-c", ALL_TO_ALL]);
    all_talk(&lab, &[0; 3]);
    let slow = lab.site.path("work/slow");
    for round in 1..=2 {
        fs::write(&slow, "").unwrap();
        wait_until("all buffers are full", || {
            (0..3).all(|unit| lab.site.path(&format!("work/full-{unit}")).exists())
        });
        let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
        assert_eq!(made["units"].as_array().unwrap().len(), 3, "{made}");
        let events = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.step"]);
        assert!(events.contains("empty their connections"), "{events}");
        // The counters of all ends are known to whoever asks the grid.
        let parts = lab.site.json(&["checkpoints", "--images-of", &made["id"].to_string()]);
        let parts = parts["checkpoints"].as_array().unwrap().clone();
        let ends: Vec<&serde_json::Value> = parts
            .iter()
            .flat_map(|part| part["part"]["connections"].as_array().unwrap())
            .collect();
        assert_eq!(ends.len(), 6, "{ends:?}");
        for end in &ends {
            let at = |end: &serde_json::Value, side: &str| end["connection"][side].clone();
            let is_other = |other: &&&serde_json::Value| {
                (at(other, "local"), at(other, "remote")) == (at(end, "remote"), at(end, "local"))
            };
            let other = ends.iter().find(is_other);
            let count = |end: &serde_json::Value, what: &str| end["traffic"][what].as_u64().unwrap();
            let (written, received) = (count(end, "written"), count(other.unwrap(), "received"));
            assert!(written > received && received > 0, "all buffers were full: {ends:?}");
        }
        let at = all_got(&lab);
        fs::remove_file(&slow).unwrap();
        // They go on as if nothing had been.
        all_talk(&lab, &at);
        let before = nodes_of(&lab, &id);
        let address = got(&lab, round - 1).1;
        // A host that loses its power says nothing to anybody.
        lab.cut(&before[round - 1]);
        lab.crash(&before[round - 1]);
        wait_until("it is started again", || lab.site.job(&id)["incarnation"] == 1 + round);
        // What the units of the start before have said counts no more.
        for unit in 0..3 {
            let file = fs::File::options()
                .write(true)
                .open(lab.site.path(&format!("work/got-{unit}")));
            file.unwrap().write_all(&[b'0'; 20]).unwrap();
        }
        let again = lab.site.wait_for_state(&id, "running");
        assert_eq!(again["from"], made["id"]);
        let after = nodes_of(&lab, &id);
        assert_ne!(after[round - 1], before[round - 1]);
        all_talk(&lab, &at);
        let now = got(&lab, round - 1).1;
        assert_ne!(now, address, "it has the address of its new host");
        assert_eq!(format!("n{}", now.rsplit_once('.').unwrap().1), after[round - 1]);
        // Saved while it was full, a unit may have said so once more.
        for unit in 0..3 {
            fs::remove_dir(lab.site.path(&format!("work/full-{unit}"))).unwrap();
        }
    }
    // Suspended, they leave nothing that keeps them from going on where they were.
    lab.site.text(&["suspend", &format!("@{id}")]);
    lab.site.wait_for_state(&id, "suspended");
    let at = all_got(&lab);
    lab.site.text(&["resume", &format!("@{id}")]);
    lab.site.wait_for_state(&id, "running");
    all_talk(&lab, &at);
    lab.site.text(&["cancel", &id]);
    lab.site.wait_for_state(&id, "cancelled");
}
