//! Jobs of several kinds on several nodes: what a checkpoint asks of which node, and what becomes of all when nodes are
//! lost.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::lab::Lab;
use support::*;

fn nodes_of(lab: &Lab, id: &str) -> Vec<String> {
    let job = lab.site.wait_for_state(id, "running");
    let units = job["units"].as_array().unwrap().iter();
    units.map(|unit| unit["node"].as_str().unwrap().to_string()).collect()
}

fn lines(lab: &Lab, name: &str) -> usize {
    lab.site.output(name).lines().count()
}

fn goes_on(lab: &Lab, name: &str) {
    let had = lines(lab, name);
    wait_until(&format!("{name} goes on"), || lines(lab, name) > had + 3);
}

/// An engine for programs that save themselves on SIGUSR1.
const KEEPER: &str = "
name = 'keeper'
driver = 'application'
trigger = 'external'
restart = 'anywhere'
images = 'any'
classes = ['application']
[properties]
level = 'application'
programs = 'own-checkpoints'
[application]
signal = 10
directory = '%JOB_DIRECTORY%/app'
";

/// A program for it, which counts.
fn keeps_itself() -> [String; 3] {
    let script = "d=$SAGA_CPR_BASE_LOCATION; mkdir -p $d; trap 'echo $i >$d/n.tmp; mv $d/n.tmp $d/n' USR1; i=0; \
                  while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    ["sh".into(), "-c".into(), script.into()]
}

// XGCP-COORD-2, XGCP-COORD-3, XGCP-JOB-5
#[test]
fn only_nodes_with_units_of_a_job_are_asked_and_all_of_them_can_or_none_stops() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let lab = Lab::new(5, "copies = 1", "");
    let all = ["n1", "n2", "n3", "n4", "n5"];
    for name in all {
        let engines = lab.engines_of(name).join("engines.d");
        fs::create_dir_all(&engines).unwrap();
        fs::write(engines.join("keeper.toml"), KEEPER).unwrap();
    }
    let has = |name: &str| {
        let listed = lab.site.json(&["nodes"]);
        let node = listed["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["info"]["name"] == name)
            .cloned();
        let engines = node.unwrap()["info"]["engines"].clone();
        engines.as_array().unwrap().contains(&"keeper".into())
    };
    wait_until("all have the engine", || all.iter().all(|name| has(name)));
    // Two units on two of five nodes, and a job besides on one of these.
    let id = lab.site.submit("u-%u", &["--units", "2"], &counter(10_000));
    let nodes = nodes_of(&lab, &id);
    assert_ne!(nodes[0], nodes[1]);
    let other = lab.site.submit("other", &["--node", &nodes[0]], &counter(10_000));
    for name in ["u-0", "u-1", "other"] {
        lab.site.wait_for_count(name, 5);
    }
    let made = lab.site.json(&["checkpoint", &format!("@{id}")]);
    let parts = lab.site.json(&["checkpoints", "--images-of", &made["id"].to_string()]);
    let asked: Vec<&str> = parts["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["node"].as_str().unwrap())
        .collect();
    assert_eq!(asked, nodes);
    for name in all {
        let images = lab.site.path(&format!("{name}/users/{NOBODY}/images"));
        let found = fs::read_dir(images).map_or(0, Iterator::count);
        assert_eq!(found, usize::from(nodes.contains(&name.to_string())), "{name}");
    }
    // The units are ended where they are, and nothing else.
    lab.site.text(&["suspend", &format!("@{id}")]);
    lab.site.wait_for_state(&id, "suspended");
    let had = [lines(&lab, "u-0"), lines(&lab, "u-1")];
    goes_on(&lab, "other");
    assert_eq!([lines(&lab, "u-0"), lines(&lab, "u-1")], had, "they have ended");
    assert_eq!(lab.site.job(&other)["incarnation"], 1);
    lab.site.text(&["cancel", &id]);
    lab.site.text(&["cancel", &other]);

    // Two units for an engine that one of their nodes does not have any more.
    let id = lab
        .site
        .submit("k-%u", &["--units", "2", "--engine", "keeper"], &keeps_itself());
    let nodes = nodes_of(&lab, &id);
    let job = format!("@{id}");
    for name in ["k-0", "k-1"] {
        lab.site.wait_for_count(name, 5);
    }
    let made = lab.site.json(&["checkpoint", &job]);
    assert_eq!(made["units"].as_array().unwrap().len(), 2, "both can: {made}");
    let steps = || {
        lab.site
            .text(&["events", "--job", &id, "--kind", "checkpoint.step"])
            .lines()
            .count()
    };
    let before = steps();
    assert!(before >= 3);
    fs::remove_file(lab.engines_of(&nodes[1]).join("engines.d/keeper.toml")).unwrap();
    wait_until("it is gone there", || !has(&nodes[1]));
    let refused = lab.site.cpr(&["checkpoint", &job]);
    assert!(!refused.status.success(), "{refused:?}");
    let events = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.failed"]);
    assert!(
        events.contains(&format!("unit 1 on {}", nodes[1])) && events.contains("keeper"),
        "{events}"
    );
    assert_eq!(steps(), before, "nobody was told to stop");
    goes_on(&lab, "k-0");
    goes_on(&lab, "k-1");
    assert_eq!(lab.site.job(&id)["incarnation"], 1);
    lab.site.text(&["cancel", &id]);
}

/// Programs take their time until there is a file `finish`.
const PACE: &str = "
import os, time
paces = 0
def pace():
    global paces
    paces += 1
    time.sleep(0.003 if os.path.exists('finish') else 0.2 if paces < 100 else 2)
";

/// Finds the primes up to a number.
const SIEVE: &str = "
last, found = 3000, []
sieve = bytearray([1]) * (last + 1)
for n in range(2, last + 1):
    if n % 10 == 0: pace()
    if sieve[n]:
        found.append(n)
        sieve[n * n::n] = bytes(len(range(n * n, last + 1, n)))
        print(n, flush=True)
print('primes', len(found), sum(found), flush=True)
";

/// Three threads that each solve a part, and wait for each other in every round.
const SOLVER: &str = "
import threading
N, ROUNDS = 3, 300
x = [1.0, 2.0, 3.0]
meet = threading.Barrier(N)
def part(i):
    for n in range(ROUNDS):
        mine = (x[(i - 1) % N] + x[(i + 1) % N]) / 2
        meet.wait()
        x[i] = mine
        meet.wait()
        if i == 0: print(n, flush=True); pace()
threads = [threading.Thread(target=part, args=(i,)) for i in range(N)]
for t in threads: t.start()
for t in threads: t.join()
print('solved', ['%.6f' % v for v in x], flush=True)
";

/// One serves, and two others ask it for squares, over TCP.
const SQUARES: &str = "
import socket, struct, threading
unit = int(os.environ['GRIDCPR_UNIT'])
route = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
route.connect(('10.98.0.254', 9))
own = route.getsockname()[0]; route.close()
def whole(s, length):
    data = b''
    while len(data) < length:
        more = s.recv(length - len(data))
        if not more: return None
        data += more
    return data
def serve(s):
    while data := whole(s, 8): s.sendall(struct.pack('>Q', struct.unpack('>Q', data)[0] ** 2))
if unit == 0:
    listener = socket.create_server((own, 0))
    open('where.new', 'w').write('%s %d' % listener.getsockname()); os.rename('where.new', 'where')
    threads = [threading.Thread(target=serve, args=(listener.accept()[0],)) for _ in range(2)]
    for t in threads: t.start()
    n = 0
    while any(t.is_alive() for t in threads):
        n += 1; print(n, flush=True); time.sleep(0.05)
else:
    while not os.path.exists('where'): time.sleep(0.01)
    host, port = open('where').read().split()
    s = socket.create_connection((host, int(port)))
    for n in range(1, 401):
        s.sendall(struct.pack('>Q', n))
        assert struct.unpack('>Q', whole(s, 8))[0] == n * n, n
        print(n, flush=True); pace()
";

// XGCP-USE-1, XGCP-COORD-16
#[test]
fn a_sequential_a_parallel_and_a_distributed_program_go_on_from_the_store_on_nodes_that_are_new_to_them() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let shared = "store = 'DIR/store'";
    let mut lab = Lab::with(6, shared, shared, |site| fs::create_dir(site.path("store")).unwrap());
    let python = |program: &str| {
        [
            "/usr/bin/python3".to_string(),
            "-c".to_string(),
            format!("{PACE}{program}"),
        ]
    };
    let units = lab.site.submit("u-%u", &["--units", "3"], &python(SQUARES));
    let nodes = nodes_of(&lab, &units);
    let different: std::collections::BTreeSet<&String> = nodes.iter().collect();
    assert_eq!(different.len(), 3, "{nodes:?}");
    let alone =
        [("sieve", SIEVE), ("solver", SOLVER)].map(|(name, program)| lab.site.submit(name, &[], &python(program)));
    let [sieve, solver] = &alone;
    for name in ["u-0", "u-1", "u-2", "sieve", "solver"] {
        goes_on(&lab, name);
    }
    // They are lost with these nodes, too.
    for (id, node) in alone.iter().zip(&nodes) {
        if lab.site.job(id)["node"] != node.as_str() {
            lab.site.json(&["migrate", &format!("@{id}"), node]);
        }
    }
    let mut made = Vec::new();
    for id in [&units, sieve, solver] {
        let checkpoint = lab.site.json(&["checkpoint", &format!("@{id}")]);
        assert_eq!(checkpoint["state"], "complete");
        made.push(checkpoint["id"].clone());
    }
    for name in &nodes {
        lab.cut(name);
        lab.crash(name);
    }
    wait_until("it is started again", || lab.site.job(&units)["incarnation"] == 2);
    let after = nodes_of(&lab, &units);
    assert!(!after.iter().any(|node| nodes.contains(node)), "{nodes:?} {after:?}");
    assert_eq!(lab.site.job(&units)["from"], made[0]);
    fs::write(lab.site.path("work/finish"), "").unwrap();
    for id in [&units, sieve, solver] {
        assert!(
            lab.site.cpr(&["wait", &format!("@{id}")]).status.success(),
            "{}",
            lab.site.told()
        );
    }
    assert_eq!(lab.site.job(sieve)["from"], made[1]);
    assert_eq!(lab.site.job(solver)["from"], made[2]);
    for unit in [1, 2] {
        let output = lab.site.output(&format!("u-{unit}"));
        let numbers: Vec<u32> = output.lines().map(|line| line.parse().unwrap()).collect();
        let all: std::collections::BTreeSet<u32> = numbers.iter().copied().collect();
        assert!(all.into_iter().eq(1..=400), "{numbers:?}");
        assert_eq!(
            numbers.iter().filter(|number| **number == 1).count(),
            1,
            "it did not begin anew"
        );
    }
    // As Eratosthenes has it, and as three numbers that become their mean.
    assert!(
        lab.site.output("sieve").ends_with("\nprimes 430 593823\n"),
        "{}",
        lab.site.output("sieve")
    );
    let solved = lab.site.output("solver");
    assert!(
        solved.ends_with("\nsolved ['2.000000', '2.000000', '2.000000']\n"),
        "{solved}"
    );
    for name in ["sieve", "solver"] {
        let output = lab.site.output(name);
        let first = output.lines().next().unwrap().to_string();
        assert_eq!(
            output.lines().filter(|line| *line == first).count(),
            1,
            "it did not begin anew"
        );
    }
}
