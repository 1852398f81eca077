//! Network connections: real servers with their clients in the job, and connections that lead out of it.

#[macro_use]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;

use support::net::Net;
use support::{As, Cpr, PATIENCE, wait_until};

const JOB: &str = "net";
/// The job uses something that cannot be checkpointed.
const UNSUPPORTED: i32 = 69;

fn said(cpr: &Cpr) -> String {
    String::from_utf8_lossy(&cpr.logs(JOB)).into_owned()
}

fn await_said(cpr: &Cpr, what: &str) {
    wait_until(PATIENCE, what, || {
        let said = said(cpr);
        assert!(!said.contains("Traceback"), "{said}");
        said.contains(what)
    });
}

/// Python with what follows as its program, unbuffered.
fn python(cpr: &Cpr, program: &str) -> Option<Vec<String>> {
    let path = cpr.work.join("program.py");
    fs::write(&path, program).expect("the test's directory can be written");
    cpr.give(&path);
    let works = |python: &&str| cpr.program(&[python, "-c", "import http.server"]).code == 0;
    let python = ["/usr/bin/python3", "python3"].into_iter().find(works)?;
    let path = path.to_str().expect("our paths are text").to_owned();
    Some(vec![python.to_owned(), "-u".to_owned(), path])
}

const HTTP: &str = r#"
import http.client, http.server, os, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0
    def do_GET(self):
        self.count += 1
        body = f"{self.path} {self.count}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
if os.fork() == 0:
    server.serve_forever()
port = server.server_port
server.socket.close()
client = http.client.HTTPConnection("127.0.0.1", port)
client.connect()
name = client.sock.getsockname()
number = 0
while not os.path.exists("enough"):
    number += 1
    client.request("GET", f"/page{number}")
    text = client.getresponse().read().decode()
    # The handler counts the requests of one connection.
    assert text == f"/page{number} {number}", text
    assert client.sock.getsockname() == name
    if number in (100, 200, 300):
        print("REQUESTS", number)
    time.sleep(0.002)
other = http.client.HTTPConnection("127.0.0.1", port)
other.request("GET", "/new")
assert other.getresponse().read() == b"/new 1"
print("DONE", number)
"#;

/// A web server and a client that keeps its connection.
fn http(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let Some(command) = python(&cpr, HTTP) else {
        skip!(test, "python3 not found");
    };
    cpr.run_detached(JOB, &[], &command);
    await_said(&cpr, "REQUESTS 100");
    cpr.checkpoint(JOB, &[]);
    await_said(&cpr, "REQUESTS 200");
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    await_said(&cpr, "REQUESTS 300");
    fs::write(cpr.work.join("enough"), "").expect("the test's directory can be written");
    await_said(&cpr, "DONE");
}

// LBNL-3.9.1.M10
#[test]
fn http_server_and_client_as_root() {
    http("http_server_and_client_as_root", As::Root);
}

// LBNL-3.9.1.M10
#[test]
fn http_server_and_client_as_user() {
    http("http_server_and_client_as_user", As::User);
}

/// A server that takes its time, and clients that do not wait until they are accepted: one sends, one hangs up.
const SLOW: &str = r#"
import os, socket, time

servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
servers[1].bind("socket")
servers[1].listen(5)
for number in (1, 2):
    while not os.path.exists(f"plant{number}"):
        time.sleep(0.01)
    clients = [socket.socket(server.family) for server in servers for _ in range(2)]
    for n, client in enumerate(clients):
        client.connect(servers[n // 2].getsockname())
        if n % 2 == 0:
            client.sendall(b"now")
        elif n == 1:
            client.close()
    print("PLANTED", number)
    time.sleep(0.4)
    for n, client in enumerate(clients):
        served, _ = servers[n // 2].accept()
        if n != 3:
            got = served.recv(3)
            assert got == (b"now" if n % 2 == 0 else b""), (n, got)
        served.close()
        client.close()
    print("SERVED", number)
while not os.path.exists("enough"):
    time.sleep(0.01)
"#;

/// What is of the moment keeps nobody from a checkpoint: the job is let go on until it has passed.
fn slow_server(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let Some(command) = python(&cpr, SLOW) else {
        skip!(test, "python3 not found");
    };
    cpr.run_detached(JOB, &[], &command);
    for (number, options) in [(1, &[][..]), (2, &["--stop"])] {
        fs::write(cpr.work.join(format!("plant{number}")), "").expect("the test's directory can be written");
        await_said(&cpr, &format!("PLANTED {number}"));
        cpr.checkpoint(JOB, options);
    }
    cpr.restart(JOB);
    await_said(&cpr, "SERVED 2");
    fs::write(cpr.work.join("enough"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait(JOB), 0);
}

#[test]
fn connections_that_were_not_accepted_yet_as_root() {
    slow_server("connections_that_were_not_accepted_yet_as_root", As::Root);
}

#[test]
fn connections_that_were_not_accepted_yet_as_user() {
    slow_server("connections_that_were_not_accepted_yet_as_user", As::User);
}

/// A database with a client in the same job.
fn redis(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    if cpr.program(&["redis-server", "--version"]).code != 0 {
        skip!(test, "redis-server not found");
    }
    let program = r#"
import os, socket, subprocess, sys, time
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
port = listener.getsockname()[1]
listener.close()
subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL)
for _ in range(1000):
    try:
        client = socket.create_connection(("127.0.0.1", port))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
answers = client.makefile("rb")
number = 0
while not os.path.exists("enough"):
    number += 1
    client.sendall(b"INCR counter\r\n")
    line = answers.readline()
    assert line == b":%d\r\n" % number, line
    if number in (100, 200, 300):
        print("COUNTED", number)
    time.sleep(0.002)
print("DONE")
client.sendall(b"SHUTDOWN NOSAVE\r\n")
"#;
    let Some(command) = python(&cpr, program) else {
        skip!(test, "python3 not found");
    };
    cpr.run_detached(JOB, &[], &command);
    await_said(&cpr, "COUNTED 100");
    cpr.checkpoint(JOB, &[]);
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    await_said(&cpr, "COUNTED 200");
    cpr.checkpoint(JOB, &["--stop"]);
    cpr.restart(JOB);
    await_said(&cpr, "COUNTED 300");
    fs::write(cpr.work.join("enough"), "").expect("the test's directory can be written");
    await_said(&cpr, "DONE");
    assert_eq!(cpr.wait(JOB), 0);
}

#[test]
fn redis_over_tcp_as_root() {
    redis("redis_over_tcp_as_root", As::Root);
}

#[test]
fn redis_over_tcp_as_user() {
    redis("redis_over_tcp_as_user", As::User);
}

/// A connection to outside: refused by name with the job unharmed; with `--tcp close` reset after a restart.
fn outside(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a loopback interface");
    let port = listener.local_addr().expect("it is bound").port();
    let program = format!(
        r#"
import socket
client = socket.create_connection(("127.0.0.1", {port}))
print("CONNECTED")
try:
    while True:
        text = client.recv(100)
        if not text:
            break
        client.sendall(text.upper())
except ConnectionResetError:
    print("RESET")
"#
    );
    let Some(command) = python(&cpr, &program) else {
        skip!(test, "python3 not found");
    };
    cpr.run_detached(JOB, &[], &command);
    let (mut stream, _) = listener.accept().expect("the job connects");
    let echo = |stream: &mut TcpStream| {
        stream.write_all(b"hello\n").expect("the job is connected");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("the job answers");
        assert_eq!(line, "HELLO\n");
    };
    echo(&mut stream);
    for options in [&["--tcp", "refuse"][..], &[], &["--stop"]] {
        let refused = cpr.cpr(["checkpoint", JOB].iter().chain(options));
        assert_eq!(refused.code, UNSUPPORTED, "{refused:?}");
        assert!(refused.stderr.contains("outside the job"), "{refused:?}");
        assert!(refused.stderr.contains(&format!(":{port}")), "{refused:?}");
        echo(&mut stream);
    }
    assert_eq!(cpr.cpr(["check", JOB]).code, UNSUPPORTED);
    if user == As::User {
        let refused = cpr.cpr(["checkpoint", JOB, "--tcp", "keep"]);
        assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused:?}");
        echo(&mut stream);
    }
    cpr.checkpoint(JOB, &["--tcp", "close"]);
    echo(&mut stream);
    cpr.checkpoint(JOB, &["--tcp", "close", "--stop"]);
    cpr.restart(JOB);
    await_said(&cpr, "RESET");
    assert_eq!(cpr.wait(JOB), 0);
}

#[test]
fn outside_connections_as_root() {
    outside("outside_connections_as_root", As::Root);
}

#[test]
fn outside_connections_as_user() {
    outside("outside_connections_as_user", As::User);
}

/// Runs a Python program in a namespace, and waits until it listens at port 7000.
fn serve(cpr: &Cpr, there: &Net, program: &str) -> Child {
    let served = cpr.work.join("server.py");
    fs::write(&served, program).expect("the test's directory can be written");
    let line = there.command(&["python3", "-u", served.to_str().expect("our paths are text")]);
    let peer = cpr.command(&line[0]).args(&line[1..]).spawn();
    let peer = peer.expect("the server starts");
    wait_until(PATIENCE, "the server listens", || {
        let table = there.run(cpr, &["cat", "/proc/self/net/tcp"]);
        table.text().contains(":1B58 ")
    });
    peer
}

/// A connection between two machines goes on after a restart when the network was quiet in between.
#[test]
fn outside_connections_can_be_kept() {
    let test = "outside_connections_can_be_kept";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if cpr.program(&["ip", "-V"]).code != 0 {
        skip!(test, "ip not found");
    }
    let server = r#"
import socket
listener = socket.create_server(("10.97.0.2", 7000))
peer, _ = listener.accept()
number = 0
for line in peer.makefile("rb"):
    number += 1
    assert int(line) == number, line
    peer.sendall(line)
print("SERVED", number)
"#;
    let client = r#"
import os, socket, time
server = socket.create_connection(("10.97.0.2", 7000))
answers = server.makefile("rb")
number = 0
while not os.path.exists("enough"):
    for _ in range(20):
        number += 1
        server.sendall(b"%d\n" % number)
    for back in range(19, -1, -1):
        line = answers.readline()
        assert line == b"%d\n" % (number - back), line
    if number in (200, 400, 600):
        print("COUNTED", number)
    time.sleep(0.02)
server.shutdown(socket.SHUT_WR)
assert answers.read() == b""
print("DONE", number)
"#;
    let Some(command) = python(&cpr, client) else {
        skip!(test, "python3 not found");
    };
    let [here, there] = Net::pair(&cpr, "10.97.0");
    let mut peer = serve(&cpr, &there, server);
    let binary = cpr.binary().to_str().expect("our paths are text").to_owned();
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let start = [
        &[&binary, "run", "-d", "--tcp", "keep", "--name", JOB, "--"],
        &words[..],
    ]
    .concat();
    here.run(&cpr, &start).good();
    await_said(&cpr, "COUNTED 200");
    // The job goes on, and so does the connection.
    here.run(&cpr, &[&binary, "checkpoint", JOB]).good();
    await_said(&cpr, "COUNTED 400");
    // From outside its network namespace a job's sockets cannot be understood.
    let refused = cpr.cpr(["checkpoint", JOB]);
    assert!(refused.stderr.contains("another network namespace"), "{refused:?}");
    for _ in 0..2 {
        there.run(&cpr, &["ip", "link", "set", "vb", "down"]).good();
        here.run(&cpr, &[&binary, "checkpoint", JOB, "--stop"]).good();
        here.run(&cpr, &[&binary, "restart", "-d", JOB]).good();
        there.run(&cpr, &["ip", "link", "set", "vb", "up"]).good();
    }
    await_said(&cpr, "COUNTED 600");
    fs::write(cpr.work.join("enough"), "").expect("the test's directory can be written");
    await_said(&cpr, "DONE");
    assert_eq!(cpr.wait(JOB), 0);
    assert!(peer.wait().expect("the server ends").success());
}

/// Connections whose other side has said that it sends no more: one that can still be written to (CLOSE_WAIT), and one
/// whose own end is under way, too (LAST_ACK).
#[test]
fn half_closed_outside_connections_can_be_kept() {
    let test = "half_closed_outside_connections_can_be_kept";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if cpr.program(&["ip", "-V"]).code != 0 {
        skip!(test, "ip not found");
    }
    let server = r#"
import socket
listener = socket.create_server(("10.98.0.2", 7000))
for want in (b"a late answer", b"early"):
    peer, _ = listener.accept()
    peer.sendall(b"all there is")
    peer.shutdown(socket.SHUT_WR)
    peer.settimeout(60)
    got = b""
    while part := peer.recv(100):
        got += part
    assert got == want, got
"#;
    let client = r#"
import os, socket, time
def until(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def state(s):
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
def half(s):
    while state(s) != 8:
        time.sleep(0.01)
first = socket.create_connection(("10.98.0.2", 7000))
half(first)
print("HALF CLOSED")
until("first")
assert state(first) == 8, state(first)
first.settimeout(60)
assert first.makefile("rb").read() == b"all there is"
first.sendall(b"a late answer")
first.close()
second = socket.create_connection(("10.98.0.2", 7000))
half(second)
print("HALF CLOSED AGAIN")
until("cut")
second.sendall(b"early")
second.shutdown(socket.SHUT_WR)
assert state(second) == 9, state(second)
print("ENDING")
until("second")
assert second.makefile("rb").read() == b"all there is"
while state(second) != 7:
    time.sleep(0.01)
"#;
    let Some(command) = python(&cpr, client) else {
        skip!(test, "python3 not found");
    };
    let touch = |name: &str| fs::write(cpr.work.join(name), "").expect("the test's directory can be written");
    let [here, there] = Net::pair(&cpr, "10.98.0");
    let mut peer = serve(&cpr, &there, server);
    let binary = cpr.binary().to_str().expect("our paths are text").to_owned();
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let options = [&binary, "run", "-d", "--tcp", "keep", "--name", JOB, "--"];
    here.run(&cpr, &[&options[..], &words[..]].concat()).good();
    await_said(&cpr, "HALF CLOSED");
    let again = || {
        here.run(&cpr, &[&binary, "checkpoint", JOB, "--stop"]).good();
        here.run(&cpr, &[&binary, "restart", "-d", JOB]).good();
    };
    // The second time it is a restarted connection that is saved.
    again();
    again();
    touch("first");
    await_said(&cpr, "HALF CLOSED AGAIN");
    there.run(&cpr, &["ip", "link", "set", "vb", "down"]).good();
    touch("cut");
    await_said(&cpr, "ENDING");
    again();
    there.run(&cpr, &["ip", "link", "set", "vb", "up"]).good();
    touch("second");
    assert_eq!(cpr.wait(JOB), 0);
    assert!(peer.wait().expect("the server ends").success());
}

/// What cannot be saved is named, and the job goes on.
#[test]
fn unsupported_sockets_are_named() {
    let test = "unsupported_sockets_are_named";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let program = r#"
import os, socket, struct, time
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
packet.setsockopt(263, 10, 2)
packet.setsockopt(263, 5, struct.pack("7I", 4096, 1, 2048, 2, 60, 0, 0))
asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.bind((0, 0))
asking.send(struct.pack("IHHIIB", 20, 18, 0x301, 7, 0, 0) + bytes(3))
print("READY")
while not os.path.exists("enough"):
    time.sleep(0.01)
"#;
    let Some(command) = python(&cpr, program) else {
        skip!(test, "python3 not found");
    };
    cpr.run_detached(JOB, &[], &command);
    await_said(&cpr, "READY");
    let refused = cpr.cpr(["checkpoint", JOB]);
    assert_eq!(refused.code, UNSUPPORTED, "{refused:?}");
    assert!(refused.stderr.contains("a ring of version 3"), "{refused:?}");
    fs::write(cpr.work.join("enough"), "").expect("the test's directory can be written");
    assert_eq!(cpr.wait(JOB), 0);
}

/// Network namespaces that a job has made, with one thing each that could not be made again.
#[test]
fn networks_that_cannot_be_made_again_are_named() {
    let test = "networks_that_cannot_be_made_again_are_named";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if cpr.program(&["ip", "-V"]).code != 0 {
        skip!(test, "ip(8) not found");
    }
    let cases = [
        ("ip link add br0 type bridge", "interface br0 is of kind bridge"),
        ("ip link add ifb0 type ifb", "interface ifb0 is of kind ifb"),
        (
            "ip link set lo up && ip link add va type veth peer name cpr-named netns 1",
            "interface va is connected to a network outside",
        ),
        (
            "tc qdisc add dev lo root handle 1: pfifo",
            "a queueing discipline (tc) is not supported",
        ),
        ("nft add table ip cpr", "a table of nftables is not supported"),
        (
            "ip link add va type veth peer name vb && ip link set va up && ip neigh add 10.1.1.1 lladdr 2:2:2:2:2:2 dev va",
            "a neighbour that was set by hand is not supported",
        ),
        (
            "ip link set lo up && ip nexthop add id 7 blackhole",
            "a next hop of its own is not supported",
        ),
        (
            "ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out action block",
            "encryption of packets (xfrm) is not supported",
        ),
    ];
    let mut shown = 0;
    for (number, (setup, wanted)) in cases.iter().enumerate() {
        let job = format!("case{number}");
        let script = format!("{{ {setup}; }} || echo CANNOT; echo READY; exec sleep 1000");
        let command = ["unshare", "-n", "sh", "-c", &script].map(str::to_owned);
        cpr.run_detached(&job, &[], &command);
        let said = || String::from_utf8_lossy(&cpr.logs(&job)).into_owned();
        wait_until(PATIENCE, "the namespace is set up", || said().contains("READY"));
        if said().contains("CANNOT") {
            eprintln!("this machine has nothing for {wanted:?}: {}", said());
        } else {
            for command in ["check", "checkpoint"] {
                let refused = cpr.cpr([command, &job]);
                assert_eq!(refused.code, UNSUPPORTED, "{command}: {refused:?}");
                let said = refused.stderr + &String::from_utf8_lossy(&refused.stdout);
                assert!(said.contains(wanted), "{command}: {wanted}: {said}");
            }
            shown += 1;
        }
        cpr.cpr(["kill", "-s", "KILL", &job]).good();
    }
    assert!(shown >= 2, "{shown} cases");
}

#[test]
fn a_network_that_others_are_in_is_not_the_jobs_alone() {
    let test = "a_network_that_others_are_in_is_not_the_jobs_alone";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let net = Net::new();
    let line = net.command(&["sleep", "1000"]);
    let (program, arguments) = line.split_first().expect("a command has a name");
    let mut other = std::process::Command::new(program)
        .args(arguments)
        .spawn()
        .expect("nsenter can be run");
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    wait_until(PATIENCE, "the other one is there", || {
        of(&other.id().to_string()) == of(&net.pid())
    });
    let image = cpr.work.join("net.cpr");
    let image = image.to_str().expect("our paths are text");
    let refused = cpr.cpr(["checkpoint", &net.pid(), "-o", image]);
    assert_eq!(refused.code, UNSUPPORTED, "{refused:?}");
    let named = format!("process {}, which is not part of the job", other.id());
    assert!(refused.stderr.contains(&named), "{refused:?}");
    other.kill().expect("it can be ended");
    other.wait().expect("it can be waited for");
    cpr.cpr(["checkpoint", &net.pid(), "-o", image]).good();
}
