//! Every kind of kernel state a process has survives a checkpoint, whether the job goes on or is restarted.
//!
//! The programs are in `tests/victims`, one for each kind; they check themselves. Each of them is run twice: one goes
//! on after [`CHECKPOINTS`] checkpoints, the other goes on once, is ended by a checkpoint and restarted, twice over.

mod support;

use std::path::Path;

use support::victim::{Victim, compile};
use support::{As, Cpr};

/// How many checkpoints a job goes on after.
const CHECKPOINTS: usize = 5;
/// The job uses something that cannot be checkpointed.
const UNSUPPORTED: i32 = 69;

fn goes_on(cpr: &Cpr, program: &Path, mode: &str) {
    let victim = Victim::start(cpr, program, "on", &[mode]);
    for _ in 0..CHECKPOINTS {
        cpr.checkpoint(victim.job, &[]);
    }
    victim.check();
}

fn restarts(cpr: &Cpr, program: &Path, mode: &str) {
    let victim = Victim::start(cpr, program, "again", &[mode]);
    for _ in 0..2 {
        cpr.checkpoint(victim.job, &[]);
        cpr.checkpoint(victim.job, &["--stop"]);
        cpr.restart(victim.job);
    }
    victim.check();
}

fn survives_as(test: &str, user: As, name: &str, mode: &str) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, name);
    goes_on(&cpr, &program, mode);
    restarts(&cpr, &program, mode);
}

/// Tests of a victim: as root, and as an ordinary user.
macro_rules! survive {
    ($($(#[$comment:meta])* $name:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn as_root() {
                survives_as(concat!(stringify!($name), "::as_root"), As::Root, stringify!($name), "");
            }

            #[test]
            fn as_user() {
                survives_as(concat!(stringify!($name), "::as_user"), As::User, stringify!($name), "");
            }
        }
    )*};
}

survive! {
    // LBNL-2.2.4B.10, LBNL-3.9.5.1.2, LBNL-3.9.5.2.2, LBNL-3.9.5.3.2, LBNL-3.9.5.3.4
    tree;
    // LBNL-3.9.1.M20
    zombies;
    // LBNL-2.2.4B.4, LBNL-3.9.9.1.2, LBNL-3.9.9.3.2
    signals;
    // LBNL-2.2.4B.7, LBNL-3.9.9.2.2, LBNL-3.9.1.M13
    timers;
    // LBNL-3.7.1.1, LBNL-3.7.1.2, LBNL-3.7.1.3
    blocked;
    // LBNL-2.2.4B.11, LBNL-2.2.4B.12, LBNL-3.9.6.2.2
    pipes;
    // LBNL-3.9.1.M10
    sockets;
    // LBNL-2.2.4B.5, LBNL-3.9.1.M11
    tcp;
    // LBNL-3.9.1.M11
    udp;
    given_up;
    netlink;
    // LBNL-3.9.1.M5, LBNL-3.9.1.M6, LBNL-3.9.1.M8
    descriptors;
    // LBNL-3.9.1.M21, LBNL-3.9.8.1.2, LBNL-3.9.8.1.8, LBNL-3.9.8.6.2, LBNL-3.9.8.11.2,
    // LBNL-3.9.8.1.7
    files;
    // LBNL-2.2.4B.20, LBNL-3.9.8.8.3
    locks;
    // LBNL-2.2.4B.20
    leases;
    // LBNL-3.9.8.1.2
    gone;
    cow;
    ptys;
    registered;
    tables;
    // LBNL-2.2.4B.16, LBNL-2.2.4B.18, LBNL-3.9.8.4.2, LBNL-3.9.8.4.4, LBNL-3.9.8.4.5, LBNL-3.9.8.4.6, LBNL-3.9.8.4.7
    devices;
    // LBNL-3.9.1.M4, LBNL-3.9.10.4.2
    layout;
    // LBNL-2.2.4B.15, LBNL-2.2.4B.21, LBNL-2.2.4B.22, LBNL-3.9.1.M19, LBNL-3.9.8.5.1, LBNL-3.9.8.5.2, LBNL-3.9.10.6A.3,
    // LBNL-3.9.10.3.2, LBNL-3.9.10.6A.2, LBNL-3.9.10.6B.2, LBNL-3.9.10.6B.3
    memory;
    // LBNL-2.2.4B.9, LBNL-3.9.1.M1, LBNL-3.9.10.2.2
    threads;
    // LBNL-2.2.4B.6, LBNL-3.9.1.M12
    sysv;
    // LBNL-3.9.1.M12
    mqueue;
    madvise;
    // LBNL-3.9.1.M15, LBNL-3.9.8.7.2, LBNL-3.9.8.9.2
    attributes;
}

/// LBNL-3.9.1.M16. An ordinary user cannot have filters saved: see the refusals.
#[test]
fn filters_as_root() {
    survives_as("filters_as_root", As::Root, "filters", "");
}

/// A reader whose buffer is full: what was written to it and has not arrived is kept, too.
#[test]
fn tcp_with_data_under_way() {
    survives_as("tcp_with_data_under_way", As::Root, "tcp", "full");
}

/// What cannot be checkpointed is told by name, and the job goes on as if nothing had happened.
#[test]
fn a_blocked_sigtrap_is_refused_and_kept() {
    for user in [As::Root, As::User] {
        let Some(cpr) = Cpr::new("a_blocked_sigtrap_is_refused_and_kept", user) else {
            continue;
        };
        let victim = Victim::start(&cpr, &compile(&cpr, "trapped"), "trapped", &[]);
        for options in [vec!["checkpoint", victim.job], vec!["checkpoint", "--stop", victim.job]] {
            let ended = cpr.cpr(options);
            assert_eq!(ended.code, UNSUPPORTED, "{}", ended.stderr);
            assert!(ended.stderr.contains("SIGTRAP"), "{}", ended.stderr);
        }
        victim.check();
    }
}
