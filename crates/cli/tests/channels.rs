//! What programs of several jobs say to each other, while the jobs are saved in one stop; and what becomes of all
//! processes of a job in each step.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use support::library::compile_with_library;
use support::steps::Steps;
use support::{As, Cpr, PATIENCE, note_skip, wait_until};

fn number(cpr: &Cpr, name: &str) -> u64 {
    let text = fs::read_to_string(cpr.work.join(name)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn grows(cpr: &Cpr, name: &str) {
    let had = number(cpr, name);
    wait_until(PATIENCE, &format!("{name} counts"), || number(cpr, name) > had + 2);
}

/// What callbacks have been called for, and how often.
fn called(cpr: &Cpr) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(cpr.work.join("callbacks")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        *found.entry(line.to_string()).or_default() += 1;
    }
    found
}

fn once(words: &[&str]) -> BTreeMap<String, usize> {
    words.iter().map(|word| (word.to_string(), 1)).collect()
}

// XGCP-API-2, XGCP-COORD-4, XGCP-COORD-6, XGCP-COORD-8, XGCP-COORD-13
#[test]
fn every_process_is_called_once_and_all_stand_still_then_also_those_that_came_late() {
    let Some(cpr) = Cpr::new("every_process_is_called_once", As::User) else {
        return;
    };
    let program = compile_with_library(&cpr, "tests/library/pair.c", "pair");
    cpr.run_detached("pair", &[], &[&program]);
    let all = ["one", "two", "three"];
    all[..2].iter().for_each(|name| grows(&cpr, name));
    let mut steps = Steps::new(&cpr, &["checkpoint", "--steps", "60s", "-o", "pair.cpr", "pair"]);
    steps.says("prepared");
    assert_eq!(called(&cpr), BTreeMap::new(), "it may yet come to nothing");
    all[..2].iter().for_each(|name| grows(&cpr, name));
    // One more comes between the two steps.
    fs::write(cpr.work.join("fork"), "").unwrap();
    wait_until(PATIENCE, "there are three", || number(&cpr, "three") > 0);
    steps.say("stop");
    steps.says("stopped");
    assert_eq!(called(&cpr), once(&["before one", "before two", "before three"]));
    let had = all.map(|name| number(&cpr, name));
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(all.map(|name| number(&cpr, name)), had, "they stand still");
    // Whoever sits before it has been told before that.
    let said = String::from_utf8_lossy(&cpr.logs("pair")).into_owned();
    assert_eq!(said, "temporarily unavailable\n");
    steps.say("save");
    steps.says("saved");
    assert_eq!(all.map(|name| number(&cpr, name)), had, "and stand still yet");
    steps.say("resume");
    assert_eq!(steps.end(), 0);
    all.iter().for_each(|name| grows(&cpr, name));
    let mut words: Vec<String> = all.iter().map(|name| format!("before {name}")).collect();
    words.extend(all.iter().map(|name| format!("continue {name}")));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    wait_until(PATIENCE, "all know that they go on", || called(&cpr) == once(&words));
    let shown = cpr.cpr(["inspect", "pair.cpr", "--json"]).good().json();
    assert_eq!(shown["manifest"]["processes"].as_array().unwrap().len(), 3);
    cpr.cpr(["kill", "-s", "KILL", "pair"]).good();
    cpr.wait("pair");

    // Where what is known of them is damaged nobody is made.
    let image = fs::read(cpr.work.join("pair.cpr")).unwrap();
    let at = image
        .windows(program.len())
        .position(|part| part == program.as_bytes())
        .unwrap();
    let mut damaged = image.clone();
    damaged[at + 2] ^= 1;
    for (name, bytes) in [("flipped.cpr", &damaged[..]), ("cut.cpr", &image[..image.len() - 100])] {
        fs::write(cpr.work.join(name), bytes).unwrap();
        cpr.give(&cpr.work.join(name));
        fs::remove_file(cpr.work.join("callbacks")).unwrap_or_default();
        let refused = cpr.cpr(["restart", "-d", "--name", "damaged", &format!("./{name}")]);
        assert!(
            refused.code == 65 && refused.stderr.contains(name),
            "{}",
            refused.stderr
        );
        assert!(!cpr.is_running("damaged"));
        assert_eq!(called(&cpr), BTreeMap::new(), "nothing of it has run");
    }
    cpr.cpr(["restart", "-d", "--name", "again", "./pair.cpr"]).good();
    wait_until(PATIENCE, "all know that they are restarted", || {
        called(&cpr) == once(&["restart one", "restart two", "restart three"])
    });
    all.iter().for_each(|name| grows(&cpr, name));
    cpr.cpr(["kill", "-s", "KILL", "again"]).good();
}

/// A port that nobody has.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

fn end(cpr: &Cpr, jobs: &[&str]) {
    for job in jobs {
        // One may end with the other.
        let _ = cpr.cpr(["kill", "-s", "KILL", job]);
        cpr.wait(job);
    }
}

fn numbers(cpr: &Cpr, job: &str) -> Vec<u64> {
    let text = String::from_utf8_lossy(&cpr.logs(job)).into_owned();
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end]
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

fn says_more(cpr: &Cpr, job: &str) {
    let had = numbers(cpr, job).len();
    wait_until(PATIENCE, &format!("{job} says more"), || {
        numbers(cpr, job).len() > had + 5
    });
}

// XGCP-CHAN-5
#[test]
fn programs_that_know_nothing_of_it_keep_their_connection() {
    let test = "programs_that_know_nothing_of_it";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    if !["redis-server", "redis-cli"]
        .iter()
        .all(|name| std::process::Command::new(name).arg("--version").output().is_ok())
    {
        return note_skip(test, "there is no redis");
    }
    let port = free_port();
    let server = [
        "redis-server",
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    cpr.run_detached("server", &[], &server);
    wait_until(PATIENCE, "the server answers", || {
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()
    });
    let client = ["redis-cli", "-p", &port, "-r", "1000000", "-i", "0.005", "incr", "x"];
    cpr.run_detached("client", &[], &client);
    let jobs = ["server", "client"];
    says_more(&cpr, "client");
    for round in 0..2 {
        let set = format!("set{round}");
        let at = numbers(&cpr, "client").len();
        cpr.cpr([&["checkpoint", "-o", &set][..], &jobs].concat()).good();
        says_more(&cpr, "client");
        end(&cpr, &jobs);
        // What the client has said after the checkpoint is taken back with it.
        cpr.cpr(["restart", &format!("./{set}")]).good();
        wait_until(PATIENCE, "it goes on", || numbers(&cpr, "client").len() > at + 100);
        // Each answer is of one request, and none is missing or comes again.
        let all = numbers(&cpr, "client");
        assert!(
            all.windows(2).all(|pair| pair[1] == pair[0] + 1) && all[0] == 1,
            "{all:?}"
        );
    }
    end(&cpr, &jobs);
}

/// Sends and receives in this pattern, as one of three.
const PATTERN: &str = "
import os, socket, threading, time
me, pattern = ME, 'PATTERN'
pairs = {'ring': [(0, 1), (1, 2), (2, 0)], 'all': [(a, b) for a in range(3) for b in range(3) if a != b],
         'ping-pong': [(0, 1), (1, 2)], 'flood': [(0, 1), (0, 2)]}[pattern]
where = lambda a, b: '%s-%d-%d' % (pattern, a, b)
heard = [0]
def alone(act, *all):
    # The others end with the test.
    try: act(*all)
    except OSError: os._exit(3)
def send(s):
    while True: s.sendall(b'x' * 65536)
def receive(s):
    while True:
        data = s.recv(100 if pattern == 'flood' else 1 << 16)
        if not data: os._exit(3)
        heard[0] += 1
        if pattern == 'flood': time.sleep(0.02)
def ask(s):
    while True:
        s.sendall(b'ping'); heard[0] += len(s.recv(4, socket.MSG_WAITALL)) == 4
def reply(s):
    while True:
        s.sendall(s.recv(4, socket.MSG_WAITALL)); heard[0] += 1
listeners = {}
for a, b in pairs:
    if b == me:
        listeners[a] = socket.create_server(('127.0.0.1', 0))
        listeners[a].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        open('new-%d' % me, 'w').write(str(listeners[a].getsockname()[1])); os.rename('new-%d' % me, where(a, b))
threads = []
for a, b in pairs:
    if a == me:
        while not os.path.exists(where(a, b)): time.sleep(0.01)
        s = socket.create_connection(('127.0.0.1', int(open(where(a, b)).read())))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        threads.append((ask if pattern == 'ping-pong' else send, s))
for a, b in pairs:
    if b == me: threads.append((reply if pattern == 'ping-pong' else receive, listeners[a].accept()[0]))
for act, s in threads: threading.Thread(target=alone, args=(act, s), daemon=True).start()
n = 0
while True:
    time.sleep(0.02)
    if pattern == 'flood' and me == 0: heard[0] += 1
    if heard[0] > n: n = heard[0]; print(n, flush=True)
";

// XGCP-CHAN-11
#[test]
fn connections_are_emptied_whoever_talks_to_whom() {
    let Some(cpr) = Cpr::new("connections_are_emptied_whoever_talks", As::User) else {
        return;
    };
    for pattern in ["ring", "all", "ping-pong", "flood"] {
        let names: Vec<String> = (0..3).map(|me| format!("{pattern}-job-{me}")).collect();
        for (me, name) in names.iter().enumerate() {
            let program = PATTERN.replace("ME", &me.to_string()).replace("PATTERN", pattern);
            // Each has a directory of its own for what it writes, and all see the ports.
            cpr.run_detached(name, &[], &["/usr/bin/python3", "-c", &program]);
        }
        let jobs: Vec<&str> = names.iter().map(String::as_str).collect();
        jobs.iter().for_each(|job| says_more(&cpr, job));
        let set = format!("set-{pattern}");
        let made = cpr
            .cpr([&["checkpoint", "--json", "-o", &set][..], &jobs].concat())
            .good()
            .json();
        assert_eq!(made["units"].as_array().unwrap().len(), 3, "{pattern}");
        jobs.iter().for_each(|job| says_more(&cpr, job));
        end(&cpr, &jobs);
    }
}

// XGCP-CHAN-2
#[test]
fn jobs_that_send_datagrams_go_on_though_some_may_be_lost() {
    let Some(cpr) = Cpr::new("jobs_that_send_datagrams", As::User) else {
        return;
    };
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hears = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', {port}))\n\
         while True: print(int(s.recv(100)), flush=True)"
    );
    let says = format!(
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nn = 0\nwhile True:\n    n += 1\n    \
         s.sendto(b'%d' % n, ('127.0.0.1', {port}))\n    print(n, flush=True)\n    time.sleep(0.005)"
    );
    for (job, program) in [("hears", hears), ("says", says)] {
        cpr.run_detached(job, &[], &["/usr/bin/python3", "-c", &program]);
    }
    let jobs = ["hears", "says"];
    jobs.iter().for_each(|job| says_more(&cpr, job));
    cpr.cpr([&["checkpoint", "--stop", "-o", "set"][..], &jobs].concat())
        .good();
    let had = jobs.map(|job| numbers(&cpr, job));
    cpr.cpr(["restart", "./set"]).good();
    jobs.iter().for_each(|job| says_more(&cpr, job));
    let [heard, said] = jobs.map(|job| numbers(&cpr, job));
    assert!(said.windows(2).all(|pair| pair[1] == pair[0] + 1), "{said:?}");
    // Some may be missing in between, and none comes again.
    assert!(heard.windows(2).all(|pair| pair[1] > pair[0]), "{heard:?}");
    assert!(heard.len() > had[0].len() + 5 && heard.last() > had[1].last());
    end(&cpr, &jobs);
}

/// Whoever has sent a datagram that nobody has read may still have its address when the job is restarted.
#[test]
fn an_unread_datagram_of_somebody_who_goes_on_is_no_reason_not_to_restart() {
    let Some(cpr) = Cpr::new("an_unread_datagram", As::User) else {
        return;
    };
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hears = format!(
        "import os, socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', {port}))\n\
         open('bound', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n\
         while True: print(s.recv(100).decode(), flush=True)"
    );
    cpr.run_detached("hears", &[], &["/usr/bin/python3", "-c", &hears]);
    wait_until(PATIENCE, "it has its port", || cpr.work.join("bound").exists());
    let says = UdpSocket::bind("127.0.0.1:0").unwrap();
    says.send_to(b"one", ("127.0.0.1", port)).unwrap();
    cpr.checkpoint("hears", &["--stop"]);
    cpr.restart("hears");
    fs::write(cpr.work.join("go"), "").unwrap();
    says.send_to(b"two", ("127.0.0.1", port)).unwrap();
    let log = || String::from_utf8_lossy(&cpr.logs("hears")).into_owned();
    wait_until(PATIENCE, "it hears more", || log().lines().any(|line| line == "two"));
    assert!(!log().lines().any(|line| line == "one"), "{}", log());
    assert!(
        log().contains("cpr: note: unread messages of datagram socket 0"),
        "{}",
        log()
    );
    end(&cpr, &["hears"]);
}

// XGCP-CHAN-7
#[test]
fn both_ends_of_a_connection_say_how_much_is_on_its_way() {
    let Some(cpr) = Cpr::new("both_ends_of_a_connection_say", As::User) else {
        return;
    };
    let port = free_port();
    let reader = format!(
        "import socket, time\nl = socket.create_server(('127.0.0.1', {port}))\ns = l.accept()[0]\ns.recv(1000, socket.MSG_WAITALL)\n\
         n = 0\nwhile True: n += 1; print(n, flush=True); time.sleep(0.01)"
    );
    let writer = format!(
        "import socket, time\nwhile True:\n    try: s = socket.create_connection(('127.0.0.1', {port})); break\n    \
         except OSError: time.sleep(0.01)\ns.settimeout(1)\nn = 0\ntry:\n    while True: n += s.send(bytes(65536))\n\
         except OSError: pass\nopen('written', 'w').write(str(n))\nwhile True: print(n, flush=True); time.sleep(0.01)"
    );
    for (job, program) in [("reader", reader), ("writer", writer)] {
        cpr.run_detached(job, &[], &["/usr/bin/python3", "-c", &program]);
    }
    wait_until(PATIENCE, "no more goes in", || number(&cpr, "written") > 1000);
    says_more(&cpr, "reader");
    let mut all: Vec<Steps> = ["reader", "writer"]
        .iter()
        .map(|job| {
            let image = format!("{job}.cpr");
            Steps::new(&cpr, &["checkpoint", "--json", "--steps", "60s", "-o", &image, job])
        })
        .collect();
    all.iter_mut().for_each(|steps| drop(steps.says_with("prepared")));
    all.iter_mut().for_each(|steps| steps.say("stop"));
    let told: Vec<serde_json::Value> = all.iter_mut().map(|steps| steps.says_with("stopped")).collect();
    let count = |end: usize, what: &str| told[end][0]["traffic"][what].as_u64().unwrap();
    assert_eq!(count(1, "written"), number(&cpr, "written"), "{told:?}");
    assert_eq!((count(0, "written"), count(1, "received")), (0, 0));
    // What the kernel still holds of it at the end that wrote it.
    let hexadecimal = format!(":{:04X}", port.parse::<u16>().unwrap());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let queued = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_writers = words[2].ends_with(&hexadecimal) && words[3] == "01";
        is_writers.then(|| u64::from_str_radix(words[4].split_once(':').unwrap().0, 16).unwrap())
    });
    assert_eq!(Some(count(1, "written") - count(0, "received")), queued, "{told:?}");
    assert!(queued > Some(0), "nobody reads");
    for steps in all {
        assert_ne!(steps.end(), 0);
    }
    ["reader", "writer"].iter().for_each(|job| says_more(&cpr, job));
    end(&cpr, &["reader", "writer"]);
}
