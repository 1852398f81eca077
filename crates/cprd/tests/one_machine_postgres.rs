//! The same as `one_machine` with PostgreSQL, and what is PostgreSQL's own: a server that goes away and comes back.

#![allow(clippy::unwrap_used)]

#[path = "../../grid/tests/support/postgres.rs"]
mod postgres;
mod support;

#[path = "suite/one_machine.rs"]
mod one_machine;

use std::fs;
use std::time::{Duration, Instant};

use postgres::Postgres;
use support::*;

/// A site that is not started yet, with a database of its own; none where there is no PostgreSQL.
pub fn new_site() -> Option<Site> {
    let Some(server) = Postgres::shared() else {
        skipped("cprd on PostgreSQL: it is not installed");
        return None;
    };
    let mut site = Site::new();
    site.database = Some(server.database());
    site.keep(server);
    Some(site)
}

// GFD93-SM-4
#[test]
fn a_database_that_crashes_and_comes_back_costs_nothing_and_one_that_stays_away_no_more_than_a_restart() {
    let Some(server) = Postgres::start() else {
        return skipped("cprd on PostgreSQL: it is not installed");
    };
    let mut site = Site::new();
    site.database = Some(server.database());
    site.configure_all("");
    // On a busy machine the server takes seconds to start.
    let lease_ms = 3 * LEASE_MS;
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let longer = config.replace(&format!("lease_ms = {LEASE_MS}"), &format!("lease_ms = {lease_ms}"));
    assert_ne!(longer, config);
    fs::write(site.path("all.toml"), longer).unwrap();
    site.start("all", "all");
    let id = site.submit("out", &["--every", "1s"], &counter(400));
    let job = format!("@{id}");
    site.wait_for_count("out", 10);
    // Three times for a moment: nobody is asked in the middle of it, and requests that fail are repeated.
    for round in 0..3 {
        std::thread::sleep(Duration::from_millis(300 * round));
        server.crash();
        server.go_on();
        wait_until("the service is there again", || site.cpr(&["jobs"]).status.success());
        let made = site.json(&["checkpoint", &job]);
        assert_eq!(made["state"], "complete", "{made}");
    }
    assert_eq!(site.job(&id)["incarnation"], 1, "it was never restarted{}", site.told());
    // For longer than the lease: the job ends by itself, as if the service were gone.
    server.crash();
    let gone = Instant::now();
    wait_until("the job has ended", || site.job_processes().is_empty());
    assert!(gone.elapsed() < Duration::from_millis(lease_ms), "{:?}", gone.elapsed());
    let refused = site.cpr(&["submit", "--", "true"]);
    assert!(!refused.status.success(), "nothing is accepted that is not kept");
    server.go_on();
    let waited = site.cpr(&["wait", &job]);
    assert!(waited.status.success(), "{waited:?}{}", site.told());
    assert_eq!(site.output("out"), counted(400));
    let ended = site.job(&id);
    assert_eq!(ended["incarnation"], 2, "{ended}");
    assert!(ended["from"].is_i64(), "{ended}");
    assert!(fs::read_to_string(site.path("all.log")).unwrap().contains("database"));
}
