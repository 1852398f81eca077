//! Units that say nothing to each other, on a grid of hosts: each is saved by itself, when it is best for it, and where
//! the system fails under one it alone goes back.

#![allow(clippy::unwrap_used)]

mod support;

use support::lab::Lab;
use support::*;

/// A lab, where we may make one.
fn lab(nodes: usize) -> Option<Lab> {
    if !am_root() {
        skipped("hosts that are namespaces: only root can make them");
        return None;
    }
    Some(Lab::new(nodes, "", ""))
}

/// The shells that count, without what they start.
fn counters(lab: &Lab) -> Vec<i32> {
    let is_shell = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sh\n");
    lab.site.job_processes().into_iter().filter(is_shell).collect()
}

// XGCP-UNCOORD-7
#[test]
fn when_a_node_is_lost_only_its_unit_goes_back_and_the_others_never_stop() {
    let Some(mut lab) = lab(3) else { return };
    let options = ["--units", "3", "--independent"];
    let id = lab.site.submit("u-%u", &options, &counter(400));
    for unit in 0..3 {
        lab.site.wait_for_count(&format!("u-{unit}"), 20);
    }
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    assert_eq!(made["state"], "complete", "{made}");
    let before = lab.site.job(&id);
    let lost = before["units"][1]["node"].as_str().unwrap().to_string();
    let processes = counters(&lab);
    lab.crash(&lost);
    let stay = counters(&lab);
    assert!(!stay.is_empty() && stay.len() < processes.len());
    wait_until("its unit runs again", || {
        let job = lab.site.job(&id);
        job["units"][1]["phase"] == "running" && job["units"][1]["node"] != lost.as_str()
    });
    let now = counters(&lab);
    assert!(
        stay.iter().all(|pid| now.contains(pid)),
        "the others have not been touched"
    );
    let job = lab.site.job(&id);
    assert_eq!(job["state"], "running");
    assert_eq!(
        [&job["units"][0], &job["units"][2]],
        [&before["units"][0], &before["units"][2]]
    );
    let image = made["units"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["unit"] == 1)
        .unwrap();
    assert_eq!(job["units"][1]["from"], image["checkpoint"]);
    // Together they are saved again, and come to their ends.
    assert_eq!(lab.site.json(&["checkpoint", &format!("@{id}")])["state"], "complete");
    lab.site.wait_for_state(&id, "finished");
    for unit in 0..3 {
        assert_eq!(lab.site.output(&format!("u-{unit}")), counted(400));
    }
    let events = lab.site.text(&["events", "--job", &id, "--kind", "unit.waiting"]);
    assert!(events.contains("unit 1") && events.contains("go on alone"), "{events}");
}

// XGCP-UNCOORD-2
#[test]
fn units_are_saved_when_they_use_little_memory() {
    let Some(lab) = lab(2) else { return };
    // Much for four seconds, then little for three.
    let sawtooth = "import os, time\nwhile True:\n    much = os.urandom(48 << 20)\n    print('much', flush=True)\n    \
                    time.sleep(4)\n    del much\n    print('little', flush=True)\n    time.sleep(3)";
    let options = ["--units", "2", "--independent", "--save-low", "20s"];
    let id = lab.site.submit("u-%u", &options, &["/usr/bin/python3", "-c", sawtooth]);
    let says = |unit: usize, word: &str| lab.site.output(&format!("u-{unit}")).ends_with(&format!("{word}\n"));
    wait_until("both have been seen to use little", || {
        (0..2).all(|unit| says(unit, "little"))
    });
    wait_until("both use much", || (0..2).all(|unit| says(unit, "much")));
    // At once it would have much to save.
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    let images = lab.site.json(&["checkpoints", "--images-of", &made["id"].to_string()]);
    let images = images["checkpoints"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    for image in images {
        assert!(image["bytes"].as_u64().unwrap() < 40 << 20, "{image}");
    }
    // What is to end it does not wait.
    wait_until("both use much", || (0..2).all(|unit| says(unit, "much")));
    lab.site.text(&["suspend", &format!("@{id}")]);
    lab.site.wait_for_state(&id, "suspended");
    let refused = lab
        .site
        .cpr(&["submit", "--units", "2", "--save-low", "5s", "--", "true"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("one stop"),
        "{refused:?}"
    );
    let refused = lab.site.cpr(&["submit", "--save-low", "11m", "--", "true"]);
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
}
