//! MPI programs over several nodes, as units of one job.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::lab::Lab;
use support::*;

/// An implementation of MPI as Debian has it.
struct Implementation {
    /// The end of its commands.
    name: &'static str,
    /// What they are told besides.
    options: &'static [&'static str],
    /// Ranks for each of two units.
    ranks: &'static str,
    /// Ranks in all.
    all: &'static str,
}

const OPEN_MPI: Implementation = Implementation {
    name: "openmpi",
    options: &["--mca", "mpi_yield_when_idle", "1"],
    ranks: "2",
    all: "4",
};
/// Its ranks never sleep: with more of them than processors nothing gets on.
const MPICH: Implementation = Implementation {
    name: "mpich",
    options: &[],
    ranks: "1",
    all: "2",
};

/// The rounds that rank 0 has counted.
fn rounds(lab: &Lab) -> u64 {
    lab.site.output("rounds").trim().parse().unwrap_or_default()
}

/// A job of two units with ranks in each; the node of one is lost, and it goes on elsewhere to the same result.
fn goes_on_elsewhere(mpi: &Implementation) {
    let (name, options) = (mpi.name, mpi.options);
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let (compiler, starter) = (format!("mpicc.{name}"), format!("mpiexec.{name}"));
    for program in [&compiler, &starter] {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$1\"", "sh", program])
            .output();
        if !found.unwrap().status.success() {
            return skipped(&format!("MPI over several nodes: {program} not found"));
        }
    }
    let mut lab = Lab::new(3, "", "");
    for node in ["n1", "n2", "n3"] {
        // Ranks of Open MPI connect to each other both at once, and close one of the two connections: a job that has
        // run for less than a minute would wait until its ports are free (TIME_WAIT).
        let mut command = lab.node_command(node);
        command.args(["sysctl", "-q", "-w", "net.ipv4.tcp_max_tw_buckets=0"]);
        let set = command.output().unwrap();
        assert!(set.status.success(), "{set:?}");
    }
    let work = lab.site.path("work");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads/mpi_heat/heat.c");
    let mut compile = Command::new(compiler);
    let compiled = compile
        .arg("-O1")
        .arg("-o")
        .arg(work.join("heat"))
        .arg(source)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    // As nothing interrupts it.
    fs::write(work.join("go"), "").unwrap();
    let mut undisturbed = Command::new("setpriv");
    undisturbed
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", &starter])
        .args(options)
        .args(if name == "openmpi" {
            &["--oversubscribe"][..]
        } else {
            &[]
        })
        .args(["-n", mpi.all, "./heat"])
        .current_dir(&work);
    let undisturbed = undisturbed.output().unwrap();
    assert!(undisturbed.status.success(), "{undisturbed:?}");
    let right = String::from_utf8(undisturbed.stdout).unwrap();
    assert!(right.lines().count() > 30, "{right}");
    fs::remove_file(work.join("go")).unwrap();
    fs::remove_file(work.join("rounds")).unwrap();

    let cpr = lab.site.path("cpr");
    // Nobody has a shell here, as on a node without people.
    let mut command = vec!["env", "SHELL=/usr/sbin/nologin"];
    command.extend([cpr.to_str().unwrap(), "mpi", "--ranks", mpi.ranks, &starter]);
    command.extend(options);
    command.extend(["-n", mpi.all, "./heat"]);
    let id = lab.site.submit("u-%u", &["--units", "2"], &command);
    wait_until("the ranks talk", || rounds(&lab) > 20);
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    assert_eq!(made["units"].as_array().unwrap().len(), 2, "{made}");
    // A process and a script are asked for in the same way.
    for command in [
        &["/usr/bin/sleep", "1000"][..],
        &["/bin/sh", "-c", "while :; do sleep 1; done"],
    ] {
        let other = lab.site.submit("other", &[], command);
        lab.site.wait_for_state(&other, "running");
        let made = lab.site.json(&["checkpoint", &format!("@{other}")]);
        assert_eq!(made["job"].to_string(), other, "{made}");
        lab.site.text(&["cancel", &other]);
    }
    let at = rounds(&lab);
    wait_until("they go on", || rounds(&lab) > at + 20);
    let units = |lab: &Lab| -> Vec<String> {
        let job = lab.site.job(&id);
        let units = job["units"].as_array().unwrap().iter();
        units
            .map(|unit| unit["node"].as_str().unwrap_or_default().to_string())
            .collect()
    };
    let before = units(&lab);
    assert_ne!(before[0], before[1]);
    lab.cut(&before[1]);
    lab.crash(&before[1]);
    wait_until("it is started again", || lab.site.job(&id)["incarnation"] == 2);
    fs::write(work.join("rounds"), format!("{:020}\n", 0)).unwrap();
    let again = lab.site.wait_for_state(&id, "running");
    assert_eq!(again["from"], made["id"]);
    assert_ne!(units(&lab)[1], before[1]);
    wait_until("they go on elsewhere", || rounds(&lab) > at);
    fs::write(work.join("go"), "").unwrap();
    lab.site.wait_for_state(&id, "finished");
    assert_eq!(lab.site.output("u-0"), right, "u-1: {}", lab.site.output("u-1"));
    // Nothing stays of where they met.
    let left = fs::read_dir(&work).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().starts_with(".cpr-mpi")),
        "{left:?}"
    );
}

#[test]
fn units_on_one_machine_find_each_other_there() {
    let mut site = Site::new();
    site.configure_all("");
    site.start("all", "all");
    let cpr = site.path("cpr");
    let show = "cat $HYDRA_HOST_FILE; echo $GRIDCPR_UNITS_ID";
    let command = [cpr.to_str().unwrap(), "mpi", "--ranks", "3", "sh", "-c", show];
    let id = site.submit("u-%u", &["--units", "2"], &command);
    site.wait_for_state(&id, "finished");
    assert_eq!(site.output("u-0"), format!("127.0.0.1:6\n{id}.1\n"));
    assert_eq!(site.output("u-1"), "");
    if !am_root() {
        return skipped("a directory of somebody else where units would meet: only root can make one");
    }
    let next: i64 = id.parse::<i64>().unwrap() + 1;
    let prepared = site.path("work").join(format!(".cpr-mpi-{next}.1"));
    fs::create_dir(&prepared).unwrap();
    fs::set_permissions(&prepared, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = site.submit("v-%u", &["--units", "2"], &command);
    assert_eq!(refused, next.to_string());
    site.wait_for_state(&refused, "failed");
    let said = site.output("v-0") + &site.output("v-1");
    assert!(said.contains("it is not a directory of ours alone"), "{said}");
}

// LBNL-1.2.3.1, GCA-DEF-4
#[test]
fn ranks_of_open_mpi_on_several_nodes_go_on_elsewhere() {
    goes_on_elsewhere(&OPEN_MPI);
}

// XGCP-APPL-2
#[test]
fn ranks_of_mpich_on_several_nodes_go_on_elsewhere() {
    goes_on_elsewhere(&MPICH);
}
