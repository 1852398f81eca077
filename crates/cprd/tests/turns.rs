//! Jobs of several units that take turns on nodes where only one of them fits.

#![allow(clippy::unwrap_used)]

mod support;

use support::*;

// LBNL-1.2.4.1.c
#[test]
fn jobs_of_several_units_take_turns_together_and_come_to_the_same_end() {
    let mut site = Site::new();
    // Of four slots.
    site.configure_all("slice_s = 1");
    site.start("all", "all");
    let last = 50;
    let options = ["--units", "2", "--slots", "2"];
    let jobs = ["a", "b"].map(|name| site.submit(&format!("{name}-%u"), &options, &counter(last)));
    wait_until("both have come to their end", || {
        // Both as they are at one moment.
        let listed = site.json(&["jobs", "--all"]);
        let states: Vec<&str> = listed["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|job| job["state"].as_str())
            .collect();
        let present = states.iter().filter(|state| ["starting", "running"].contains(*state));
        assert!(present.count() <= 1, "both have the node: {listed}");
        assert!(!states.contains(&"failed"), "{listed}{}", site.told());
        states == ["finished"; 2]
    });
    for (id, name) in jobs.iter().zip(["a", "b"]) {
        let job = site.job(id);
        assert!(job["incarnation"].as_u64().unwrap() >= 2, "{job}");
        assert_eq!(job["failures"], 0, "{job}");
        for unit in 0..2 {
            assert_eq!(site.output(&format!("{name}-{unit}")), counted(last), "{name}-{unit}");
        }
    }
    let told = site.text(&["events", "--kind", "job.preempted"]);
    for (id, other) in [(&jobs[0], &jobs[1]), (&jobs[1], &jobs[0])] {
        let line = format!("job {id} makes room for job {other}");
        assert!(told.contains(&line), "{told}");
    }
}
