//! Virtual machines as jobs: which one is saved, and what of one cannot be.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use support::guest::{APPEND, MACHINE};
use support::{As, Cpr, Ended, PATIENCE, copy_tree, finish, install_guest, note_skip, wait_until};

const UNSUPPORTED: i32 = 69;

fn works(cpr: &Cpr, test: &str) -> bool {
    let shown = cpr.cpr(["engines", "show", "qemu", "--json"]).good().json();
    if shown["works"] != true {
        note_skip(test, shown["reason"].as_str().unwrap());
        return false;
    }
    install_guest(cpr, test)
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

/// Counts in a guest, after it has said who its first process is, and a word that is quoted.
const SAY: &str = "cat /proc/1/cmdline; echo; echo \"$0\"; i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; usleep 50000; done; exit 3";

/// `examples/machine` as a user has it.
struct Machines {
    cpr: Cpr,
    config: PathBuf,
    gate: &'static str,
    pool: Option<Child>,
}

impl Machines {
    fn new(test: &str, gate: &'static str) -> Option<Machines> {
        let cpr = Cpr::new(test, As::User)?;
        if !works(&cpr, test) {
            return None;
        }
        let config = cpr.work.join("config");
        let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("examples/machine");
        copy_tree(&example, &config.join("engines.d"));
        cpr.give(&config);
        Some(Machines {
            cpr,
            config,
            gate,
            pool: None,
        })
    }

    fn command(&self, program: &Path) -> std::process::Command {
        let mut command = self.cpr.command(program);
        command
            .env("GRIDCPR_CONFIG_DIRS", &self.config)
            .env("MACHINE_GATE", self.gate);
        for (name, file) in [("KERNEL", "kernel"), ("INITRD", "initrd"), ("POOL", "pool")] {
            command.env(format!("MACHINE_{name}"), self.cpr.work.join(file));
        }
        command
    }

    fn cpr(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(self.cpr.binary());
        command.args(arguments);
        finish(&self.cpr.work, command, PATIENCE)
    }

    fn keep_pool(&mut self) {
        let mut command = self.command(&self.config.join("engines.d/vm-run"));
        command.args(["--pool", "1"]).stdin(Stdio::null());
        self.pool = Some(command.spawn().unwrap());
        wait_until(PATIENCE, "the machine of the pool runs", || {
            self.cpr.work.join("pool/0/qmp").exists()
        });
    }

    fn numbers(&self, job: &str) -> Vec<u64> {
        numbers(&self.cpr, job)
    }

    /// A job goes into a machine, is saved with it, and goes on to its end.
    fn runs_a_job(&self, engine: &str) {
        let job = ["sh", "-c", SAY, "it's a word"];
        let started = ["run", "-d", "--engine", engine, "--name", "inside", "--"];
        self.cpr(&[&started[..], &job].concat()).good();
        wait_until(PATIENCE, "the job counts", || self.numbers("inside").last() > Some(&5));
        let text = String::from_utf8_lossy(&self.cpr.logs("inside")).into_owned();
        assert!(text.contains("/init") && text.contains("it's a word"), "{text}");
        self.cpr(&["checkpoint", "--stop", "inside"]).good();
        let lines = self.numbers("inside").len();
        self.cpr(&["restart", "-d", "inside"]).good();
        // It ends by itself, and the machine with it.
        assert_eq!(self.cpr.wait("inside"), 0);
        let all = self.numbers("inside");
        assert!(all.len() > lines && all == (1..=60).collect::<Vec<u64>>(), "{all:?}");
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // What it has started is ended with the test's directory.
        if let Some(pool) = &mut self.pool {
            let _ = pool.kill();
            let _ = pool.wait();
        }
    }
}

/// With the descriptors and the wrapper of `examples/machine`: the job is a command like any other. The machine has no
/// network, and the gate is reached by a port of the monitor.
// GCA-VMM-3, GCA-VMM-4, GCA-VMM-5, GCA-VMM-6, GCA-CTS-23, GCA-CTS-25, GCA-WRAP-5
#[test]
fn a_job_is_put_into_a_machine_that_is_started_for_it() {
    let Some(machines) = Machines::new("a_job_is_put_into_a_machine", "serial") else {
        return;
    };
    machines.runs_a_job("in-a-machine");
}

// GCA-VMM-6
#[test]
fn a_gate_is_reached_over_the_network_of_its_machine() {
    let Some(machines) = Machines::new("a_gate_is_reached_over_the_network", "network") else {
        return;
    };
    machines.runs_a_job("in-a-machine");
}

/// The machine runs already; what is saved goes on in a machine like it, and the next job finds it as new.
// GCA-VMM-4
#[test]
fn a_job_is_put_into_a_machine_of_a_pool() {
    let Some(mut machines) = Machines::new("a_job_is_put_into_a_machine_of_a_pool", "serial") else {
        return;
    };
    machines.keep_pool();
    machines.runs_a_job("in-a-pool");
    let ran = machines.cpr(&[
        "run",
        "--engine",
        "in-a-pool",
        "--",
        "sh",
        "-c",
        "echo from the pool; exit 7",
    ]);
    assert_eq!((ran.code, ran.text().trim()), (7, "from the pool"), "{}", ran.stderr);
    // And once more, from its gate at once.
    let ran = machines.cpr(&["run", "--engine", "in-a-pool", "--", "sh", "-c", "echo again"]);
    assert_eq!((ran.code, ran.text().trim()), (0, "again"), "{}", ran.stderr);
}

/// Nothing of the job is there, neither its files nor its images; the image comes from where it was put away.
// GCA-VMM-9, GCA-VMM-10
#[test]
fn a_machine_is_recovered_on_another_host_from_an_image_that_was_put_away() {
    let test = "a_machine_is_recovered_on_another_host";
    let Some(machines) = Machines::new(test, "serial") else {
        return;
    };
    let started = ["run", "-d", "--engine", "in-a-machine", "--name", "inside", "--"];
    machines
        .cpr(&[&started[..], &["sh", "-c", SAY, "word"]].concat())
        .good();
    wait_until(PATIENCE, "the job counts", || {
        machines.numbers("inside").last() > Some(&5)
    });
    machines
        .cpr(&["checkpoint", "--stop", "-o", "archived.cpr", "inside"])
        .good();
    let had = *machines.numbers("inside").last().unwrap();
    machines.cpr(&["rm", "inside"]).good();
    // Another host by its name, with a state of its own.
    let elsewhere = machines.cpr.work.join("elsewhere");
    let mut recover = machines.command(Path::new("unshare"));
    let script = r#"hostname other && exec "$0" exec --recover --name inside --engine in-a-machine --image archived \
        --fetch 'echo $(hostname) $GRIDCPR_IMAGE >fetched; cat $GRIDCPR_IMAGE.cpr'"#;
    recover
        .args(["--user", "--map-root-user", "--uts", "sh", "-c", script])
        .arg(machines.cpr.binary())
        .env("GRIDCPR_STATE_DIR", &elsewhere);
    let recovered = finish(&machines.cpr.work, recover, PATIENCE).good();
    let text = recovered.text();
    let all: Vec<u64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(all, (had + 1..=60).collect::<Vec<u64>>(), "{text}");
    assert_eq!(
        fs::read_to_string(machines.cpr.work.join("fetched")).unwrap(),
        "other archived\n"
    );
}
