//! Virtual machines as jobs: which one is saved, and what of one cannot be.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::guest::{APPEND, MACHINE, install};
use support::{As, Cpr, PATIENCE, copy_tree, finish, note_skip, wait_until};

const UNSUPPORTED: i32 = 69;

fn works(cpr: &Cpr, test: &str) -> bool {
    let shown = cpr.cpr(["engines", "show", "qemu", "--json"]).good().json();
    if shown["works"] != true {
        note_skip(test, shown["reason"].as_str().unwrap());
        return false;
    }
    install(cpr, test)
}

fn start(cpr: &Cpr, job: &str, more: &[&str]) {
    let monitor = format!("unix:{job}.qmp,server=on,wait=off");
    let machine = [&MACHINE[..], &[APPEND, "-qmp", &monitor], more].concat();
    cpr.run_detached(job, &["--class", "virtual-machine"], &machine);
}

fn numbers(cpr: &Cpr, job: &str) -> Vec<u64> {
    let text = String::from_utf8_lossy(&cpr.logs(job)).into_owned();
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end].lines().filter_map(|line| line.parse().ok()).collect()
}

/// Of two the one that is meant is ended with its image, and the other knows nothing of it.
// GCA-VMM-1, GCA-VMM-7, GCA-VMM-8, GCA-VMM-11
#[test]
fn the_machine_of_the_job_is_saved_and_no_other() {
    let test = "the_machine_of_the_job_is_saved_and_no_other";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    if !works(&cpr, test) {
        return;
    }
    for job in ["one", "two"] {
        start(&cpr, job, &[]);
    }
    for job in ["one", "two"] {
        wait_until(PATIENCE, &format!("the guest of {job} counts"), || {
            numbers(&cpr, job).last() > Some(&5)
        });
    }
    cpr.checkpoint("one", &["--stop"]);
    let had = *numbers(&cpr, "one").last().unwrap();
    let other = numbers(&cpr, "two").len();
    wait_until(PATIENCE, "the other one goes on", || {
        numbers(&cpr, "two").len() > other + 3
    });
    assert!(!cpr.is_running("one"));
    let lines = numbers(&cpr, "one").len();
    cpr.restart("one");
    wait_until(PATIENCE, "the guest goes on", || numbers(&cpr, "one").len() > lines + 3);
    assert_eq!(numbers(&cpr, "one")[lines], had + 1);
}

#[test]
fn a_machine_that_writes_to_a_disk_is_refused() {
    let test = "a_machine_that_writes_to_a_disk_is_refused";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    if !works(&cpr, test) {
        return;
    }
    for (name, option) in [("disk", ""), ("fixed", ",readonly=on")] {
        let path = cpr.work.join(name);
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        cpr.give(&path);
        let drive = format!("file={name},format=raw,if=virtio{option}");
        start(&cpr, name, &["-drive", &drive]);
    }
    wait_until(PATIENCE, "both guests count", || {
        ["disk", "fixed"].iter().all(|job| numbers(&cpr, job).last() > Some(&1))
    });
    let refused = cpr.cpr(["checkpoint", "disk"]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    assert!(refused.stderr.contains("its disk virtio0"), "{}", refused.stderr);
    let lines = numbers(&cpr, "disk").len();
    wait_until(PATIENCE, "it goes on", || numbers(&cpr, "disk").len() > lines + 3);
    cpr.checkpoint("fixed", &[]);
}

/// With the descriptor and the wrapper of `examples/machine`: the job is a command like any other.
// GCA-VMM-3, GCA-VMM-5, GCA-CTS-23, GCA-CTS-25, GCA-WRAP-5
#[test]
fn a_job_is_put_into_a_machine_that_is_started_for_it() {
    let test = "a_job_is_put_into_a_machine";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    if !works(&cpr, test) {
        return;
    }
    let config = cpr.work.join("config");
    let example = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("examples/machine");
    copy_tree(&example, &config.join("engines.d"));
    cpr.give(&config);
    let with = |arguments: &[&str]| {
        let mut command = cpr.command(cpr.binary());
        let variables = [
            ("GRIDCPR_CONFIG_DIRS", config.as_os_str()),
            ("MACHINE_KERNEL", "kernel".as_ref()),
        ];
        command.envs(variables).env("MACHINE_INITRD", "initrd").args(arguments);
        finish(&cpr.work, command, PATIENCE)
    };
    // What it says comes from the guest: its first process, and a word that is quoted.
    let say =
        "cat /proc/1/cmdline; echo; echo \"$0\"; i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; usleep 50000; done";
    let job = ["sh", "-c", say, "it's a word"];
    let engine = ["run", "-d", "--engine", "in-a-machine", "--name", "inside", "--"];
    with(&[&engine[..], &job].concat()).good();
    wait_until(PATIENCE, "the job counts", || numbers(&cpr, "inside").last() > Some(&5));
    let text = String::from_utf8_lossy(&cpr.logs("inside")).into_owned();
    assert!(text.contains("/init") && text.contains("it's a word"), "{text}");
    with(&["checkpoint", "--stop", "inside"]).good();
    let lines = numbers(&cpr, "inside").len();
    with(&["restart", "-d", "inside"]).good();
    // It ends by itself, and the machine with it.
    assert_eq!(cpr.wait("inside"), 0);
    let all = numbers(&cpr, "inside");
    assert!(all.len() > lines && all == (1..=60).collect::<Vec<u64>>(), "{all:?}");
}
