//! Jobs that do much at once, jobs that have much of one kind, and a job that is checkpointed very often.
//!
//! `GRIDCPR_SLOW=1` makes them larger and longer.

mod support;

use std::fs;

use support::victim::{Victim, compile};
use support::{As, Cpr, skip};

fn slow() -> bool {
    std::env::var_os("GRIDCPR_SLOW").is_some()
}

/// A busy job goes on after twenty checkpoints and is restarted five times.
fn storm(test: &str, user: As, mode: &str) {
    busy(test, user, "storm", mode, [5, if slow() { 40 } else { 4 }]);
}

/// A job goes on after so many checkpoints before each of so many restarts.
fn busy(test: &str, user: As, program: &'static str, mode: &str, [restarts, checkpoints]: [u32; 2]) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let victim = Victim::start(&cpr, &compile(&cpr, program), program, &[mode]);
    for _ in 0..restarts {
        for _ in 0..checkpoints {
            cpr.checkpoint(victim.job, &[]);
        }
        cpr.checkpoint(victim.job, &["--stop"]);
        cpr.restart(victim.job);
    }
    victim.check();
}

/// A large job goes on after a checkpoint, and is restarted.
fn large(test: &str, user: As, mode: &str, count: u32) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, "storm");
    let victim = Victim::start(&cpr, &program, "large", &[mode, &count.to_string()]);
    cpr.checkpoint(victim.job, &[]);
    cpr.checkpoint(victim.job, &["--stop"]);
    cpr.restart(victim.job);
    cpr.checkpoint(victim.job, &[]);
    victim.check();
}

macro_rules! as_everyone {
    ($($name:ident => $body:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn as_root() {
                let body: fn(&str, As) = $body;
                body(concat!(stringify!($name), "::as_root"), As::Root);
            }

            #[test]
            fn as_user() {
                let body: fn(&str, As) = $body;
                body(concat!(stringify!($name), "::as_user"), As::User);
            }
        }
    )*};
}

as_everyone! {
    signals => |test, user| storm(test, user, "signals");
    // Signals are sent faster than they could be looked at one by one.
    deluge => |test, user| large(test, user, "deluge", 0);
    mappings => |test, user| storm(test, user, "mappings");
    openings => |test, user| storm(test, user, "openings");
    // LBNL-3.3.6
    creation => |test, user| storm(test, user, "creation");
    faults => |test, user| storm(test, user, "faults");
    successors => |test, user| storm(test, user, "successors");
    // LBNL-3.2.3.1
    processors => processors;
    many_processes => |test, user| large(test, user, "many processes", if slow() { 1000 } else { 200 });
    many_threads => |test, user| large(test, user, "many threads", 1000);
    many_mappings => |test, user| large(test, user, "many mappings", 20_000);
    many_descriptors => |test, user| large(test, user, "many descriptors", 5000);
    many_sockets => |test, user| large(test, user, "many sockets", if slow() { 5000 } else { 400 });
    many_connections => |test, user| large(test, user, "many connections", if slow() { 9000 } else { 4000 });
    very_often => very_often;
    // Another thread changes names, priorities and processors of threads that sleep, and sends them signals.
    sleepers => |test, user| sleeping(test, user, "changed");
    // A program of many sleeping threads is replaced by itself (execve(2)) all the time.
    replaced => |test, user| sleeping(test, user, "replaced");
}

/// A job of many sleeping threads.
fn sleeping(test: &str, user: As, mode: &str) {
    busy(test, user, "sleepers", mode, [3, if slow() { 40 } else { 6 }]);
}

/// Sixteen threads that compute all the time, on a machine with several processors.
fn processors(test: &str, user: As) {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip!(test, "the machine has one processor");
    }
    storm(test, user, "processors");
}

/// Nothing is left in the job, nor in its supervisor, by a checkpoint, however many there are.
fn very_often(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, "pipes");
    let victim = Victim::start(&cpr, &program, "often", &[]);
    let held = || -> Vec<String> {
        let state = fs::read_to_string(cpr.state_dir.join("jobs/often/state.json")).expect("the job has a state");
        let state: serde_json::Value = serde_json::from_str(&state).expect("the state is JSON");
        let mut held = Vec::new();
        for who in ["supervisor", "init"] {
            let pid = state[who]["pid"].as_i64().expect("it lives");
            let count = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count();
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
            held.push(format!("{who}: {count} descriptors, {} mappings", maps.lines().count()));
        }
        held
    };
    let command = |times: usize| {
        for _ in 0..times {
            cpr.checkpoint(victim.job, &[]);
        }
    };
    command(10);
    let before = held();
    command(if slow() { 990 } else { 190 });
    assert_eq!(held(), before);
    victim.check();
}
