//! Where Slurm runs the jobs of the node: only the configuration says so. In a slow run, the same as `one_machine`.

#![allow(clippy::unwrap_used)]

#[path = "../../cli/tests/support/slurm.rs"]
mod cluster;
mod support;

#[path = "suite/one_machine.rs"]
mod one_machine;

use std::fs;
use std::path::Path;
use std::rc::Rc;

use cluster::Cluster;
use serde_json::Value;
use support::*;

/// A site that is not started yet, on a host with a Slurm of its own; in a slow run only.
pub fn new_site() -> Option<Site> {
    if std::env::var_os("GRIDCPR_SLOW").is_none() {
        skipped("the suite of one machine with Slurm: GRIDCPR_SLOW is not set");
        return None;
    }
    Some(with_slurm()?.0)
}

fn with_slurm() -> Option<(Site, Rc<Cluster>)> {
    if let Some(reason) = cluster::missing() {
        skipped(&format!("cprd with Slurm: {reason}"));
        return None;
    }
    let mut site = Site::new();
    let more = "KillWait=5\nPartitionName=all Nodes=ALL Default=YES";
    let cluster = Rc::new(Cluster::new(&site.path("slurm"), NOBODY, 1, 8, more));
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integrations/slurm/gridcpr-manager");
    // The sources may lie where only root can reach them.
    fs::copy(adapter, site.path("gridcpr-manager")).unwrap();
    let words = "'/usr/bin/env', 'SLURM_CONF=DIR/slurm/slurm.conf', 'DIR/gridcpr-manager', '--partition=all'";
    site.node = format!("manager = [{words}]\n");
    site.entry = cluster.entry(1);
    site.keep(cluster.clone());
    Some((site, cluster))
}

/// What is told of jobs, but for numbers of checkpoints, times and bytes, which differ from run to run.
fn told_of_jobs(site: &Site) -> Vec<Value> {
    let report = |id: &str| {
        let job = site.job(id);
        let events = site.text(&["events", "--job", id, "--json"]);
        let kinds = events.lines().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["kind"].as_str().unwrap().to_string()
        });
        serde_json::json!({
            "state": job["state"], "exit_code": job["exit_code"], "signal": job["signal"], "node": job["node"],
            "incarnation": job["incarnation"], "failures": job["failures"], "reason": job["reason"],
            // One that is over at once may not have been seen to run.
            "kinds": kinds.filter(|kind| kind != "job.running").collect::<Vec<String>>(),
        })
    };
    // Saved, ended, recovered and finished; ended by itself in three ways; cancelled; a program that is not there.
    let id = site.submit("out", &[], &counter(60));
    let job = format!("@{id}");
    site.wait_for_count("out", 5);
    site.json(&["checkpoint", &job]);
    site.json(&["suspend", &job]);
    site.json(&["resume", &job]);
    assert!(site.cpr(&["wait", &job]).status.success(), "{}", site.told());
    assert_eq!(site.output("out"), counted(60));
    let mut told = vec![report(&id)];
    for script in ["exit 0", "exit 3", "kill -TERM $$"] {
        let id = site.submit("short", &[], &["sh", "-c", script]);
        site.cpr(&["wait", &format!("@{id}")]);
        told.push(report(&id));
    }
    let id = site.submit("long", &[], &counter(10_000));
    site.wait_for_count("long", 5);
    site.text(&["cancel", &id]);
    site.wait_for_state(&id, "cancelled");
    told.push(report(&id));
    let id = site.submit("none", &[], &["/no/such/program"]);
    site.wait_for_state(&id, "failed");
    told.push(report(&id));
    told
}

// GCA-ENV-6, GFD93-JM-6
#[test]
fn jobs_that_slurm_runs_are_saved_recovered_and_told_of_as_those_that_the_agent_starts() {
    let Some((mut site, cluster)) = with_slurm() else {
        return;
    };
    site.configure_all("");
    site.start("all", "all");
    let queue = || cluster.text(&["squeue", "--noheader", "--format", "%j %T %u"]);

    // While Slurm has no room for a job it waits, whatever becomes of the agent, and starts once.
    cluster.root(1, "scontrol update NodeName=n1 State=DRAIN Reason=test");
    let id = site.submit("waits", &[], &counter(10_000));
    let never = site.submit("never", &[], &counter(10_000));
    wait_until("Slurm has both", || queue().matches("PENDING nobody").count() == 2);
    assert_eq!(site.job(&id)["state"], "starting");
    site.text(&["cancel", &never]);
    wait_until("one is taken back", || queue().lines().count() == 1);
    site.kill("all");
    site.start("all", "all");
    cluster.root(1, "scontrol update NodeName=n1 State=RESUME");
    site.wait_for_count("waits", 5);
    assert_eq!(queue(), format!("gridcpr-{id}.1 RUNNING nobody"));
    assert_eq!(site.job(&id)["incarnation"], 1, "{}", site.told());
    // Slurm counts what is Slurm's.
    let pids = || cluster.text(&["scontrol", "listpids"]);
    assert!(pids().lines().count() > 1, "{}", pids());
    site.text(&["cancel", &id]);
    wait_until("nothing is left of it", || queue().is_empty());
    assert!(site.output("never").is_empty());

    let by_slurm = told_of_jobs(&site);
    wait_until("Slurm has no job", || queue().is_empty());
    let mut other = Site::new();
    other.configure_all("");
    other.start("all", "all");
    assert_eq!(by_slurm, told_of_jobs(&other));
}
