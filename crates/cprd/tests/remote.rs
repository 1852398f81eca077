//! The network: who is let in, and what those who are not can do.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::*;

/// The `https` or `http` address that a daemon said it listens on.
fn address(site: &Site) -> String {
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    let at = log.rsplit("listening on http").next().unwrap();
    let at = at.split_whitespace().next().unwrap();
    at.trim_start_matches('s').trim_start_matches("://").to_string()
}

/// Who runs these tests.
fn own_name() -> String {
    let uid = rustix::process::geteuid().as_raw();
    nix::unistd::User::from_uid(uid.into()).unwrap().unwrap().name
}

/// A site whose CA is `ca` and whose service is reached with TLS.
fn site_with_tls(limits: &str) -> Site {
    let mut site = Site::new();
    site.ca("ca", &["init"]);
    let issued = site.issue("ca", &["grid", "--role", "service", "--host", "127.0.0.1"]);
    fs::copy(site.path("ca/revoked.pem"), site.path("revoked.pem")).unwrap();
    site.configure_all("listen = ['127.0.0.1:0']");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let issued = issued.display();
    site.configure(
        "all.toml",
        &format!(
            "{config}\n[tls]\nca = 'DIR/ca/ca.pem'\ncertificate = '{issued}/grid.pem'\nkey = '{issued}/grid.key'\n\
             revoked = 'DIR/revoked.pem'\n{limits}\n"
        ),
    );
    site.start("all", "all");
    site
}

/// `cpr` with a certificate `NAME` of the directory `issued`, or with none, over the network.
fn remote(site: &Site, ca: &str, certificate: Option<(&Path, &str)>, arguments: &[&str]) -> Output {
    let mut command = Command::new(site.path("cpr"));
    command
        .args(arguments)
        .env("GRIDCPR_GRID", format!("https://{}", address(site)))
        .env("GRIDCPR_CA", site.path(ca).join("ca.pem"))
        .current_dir(site.path("work"));
    if let Some((issued, name)) = certificate {
        command.env("GRIDCPR_CERTIFICATE", issued.join(format!("{name}.pem")));
        command.env("GRIDCPR_KEY", issued.join(format!("{name}.key")));
    }
    command.output().unwrap()
}

const DENIED: Option<i32> = Some(77);

/// What the service answers, with its status, to what somebody with a certificate posts.
fn post(site: &Site, certificate: Option<(&Path, &str)>, path: &str, body: &str) -> String {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--write-out", " %{http_code}", "--cacert"])
        .arg(site.path("ca/ca.pem"))
        .args(["--data", body])
        .arg(format!("https://{}{path}", address(site)));
    if let Some((issued, name)) = certificate {
        command.arg("--cert").arg(issued.join(format!("{name}.pem")));
        command.arg("--key").arg(issued.join(format!("{name}.key")));
    }
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

// GFD93-AUTH-1, XGCP-SEC-2, GCA-SEC-5, GFD93-WF-1.2, GCA-UC-5.6.1, GCA-UC-5.6.2, GCA-SEC-2
#[test]
fn a_certificate_says_who_calls_and_one_that_expired_was_revoked_or_is_a_strangers_is_refused() {
    let site = site_with_tls("");
    let own = own_name();
    let issued = site.issue("ca", &[&own]);
    site.issue("ca", &["n9", "--role", "node", "--host", "127.0.0.1"]);
    site.issue("ca", &["oscar", "--role", "operator"]);
    let jobs = |ca: &str, certificate: Option<(&Path, &str)>| remote(&site, ca, certificate, &["jobs"]).status.code();
    // Somebody, as whom a job then runs.
    let submitted = remote(
        &site,
        "ca",
        Some((&issued, &own)),
        &["submit", "-o", "out", "--", "id", "-u"],
    );
    assert!(submitted.status.success(), "{submitted:?}");
    let id = String::from_utf8(submitted.stdout).unwrap().trim().to_string();
    let waited = remote(&site, "ca", Some((&issued, &own)), &["wait", &format!("@{id}")]);
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(site.output("out"), format!("{}\n", rustix::process::geteuid().as_raw()));
    // What the service tells is believed where it is the service, and not from a stranger.
    let events = remote(&site, "ca", Some((&issued, &own)), &["events", "--job", &id]);
    assert!(
        String::from_utf8_lossy(&events.stdout).contains("job.finished"),
        "{events:?}"
    );
    site.ca("false", &["init"]);
    let events = remote(&site, "false", Some((&issued, &own)), &["events", "--follow"]);
    assert_eq!((events.status.code(), events.stdout.len()), (DENIED, 0), "{events:?}");
    // Roles.
    let drain = |name: &str| {
        remote(&site, "ca", Some((&issued, name)), &["drain", "n1"])
            .status
            .code()
    };
    assert_eq!(drain(&own), DENIED);
    assert_eq!(drain("n9"), DENIED);
    assert_eq!(drain("oscar"), Some(0));
    // Nobody, and a token instead.
    assert_eq!(jobs("ca", None), DENIED);
    let config = site.path("all.toml");
    let token = site
        .cprd(&["--config", config.to_str().unwrap(), "token", &own])
        .output()
        .unwrap();
    fs::write(site.path("token"), token.stdout).unwrap();
    let with_token = Command::new(site.path("cpr"))
        .args(["jobs"])
        .env("GRIDCPR_GRID", format!("https://{}", address(&site)))
        .env("GRIDCPR_CA", site.path("ca/ca.pem"))
        .env("GRIDCPR_TOKEN_FILE", site.path("token"))
        .output()
        .unwrap();
    assert!(with_token.status.success(), "{with_token:?}");
    // A stranger, who says to be the same; and a service that is a stranger to us.
    site.ca("strange", &["init"]);
    let strange = site.issue("strange", &[&own]);
    let refused = remote(&site, "ca", Some((&strange, &own)), &["jobs"]);
    assert_eq!(refused.status.code(), DENIED, "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("does not believe our certificate"), "{text}");
    let refused = remote(&site, "strange", Some((&strange, &own)), &["jobs"]);
    assert_eq!(refused.status.code(), DENIED, "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("certificate of the other side is not believed"), "{text}");
    // The service under a name that its certificate does not have.
    let elsewhere = Command::new(site.path("cpr"))
        .args(["jobs"])
        .env(
            "GRIDCPR_GRID",
            format!("https://localhost:{}", address(&site).rsplit(':').next().unwrap()),
        )
        .env("GRIDCPR_CA", site.path("ca/ca.pem"))
        .env("GRIDCPR_CERTIFICATE", issued.join(format!("{own}.pem")))
        .env("GRIDCPR_KEY", issued.join(format!("{own}.key")))
        .output()
        .unwrap();
    assert_eq!(elsewhere.status.code(), DENIED, "{elsewhere:?}");
    // The certificate of the service is none of a caller, nor one of a user that of a server.
    assert_eq!(jobs("ca", Some((&issued, "grid"))), DENIED);
    // One that expires, and is good before.
    site.issue("ca", &["brief", "--role", "operator", "--valid", "4s"]);
    let made = Instant::now();
    assert_eq!(jobs("ca", Some((&issued, "brief"))), Some(0));
    wait_until("it expires", || jobs("ca", Some((&issued, "brief"))) == DENIED);
    assert!(made.elapsed() >= Duration::from_secs(3));
    // One that is revoked: without a restart.
    assert_eq!(jobs("ca", Some((&issued, &own))), Some(0));
    site.ca("ca", &["revoke", &own]);
    assert_eq!(
        jobs("ca", Some((&issued, &own))),
        Some(0),
        "the service does not know of it yet"
    );
    fs::copy(site.path("ca/revoked.pem"), site.path("revoked.new")).unwrap();
    fs::rename(site.path("revoked.new"), site.path("revoked.pem")).unwrap();
    assert_eq!(jobs("ca", Some((&issued, &own))), DENIED);
    assert_eq!(jobs("ca", Some((&issued, "oscar"))), Some(0));
    site.issue("ca", &[&own]);
    assert_eq!(
        jobs("ca", Some((&issued, &own))),
        Some(0),
        "another one for the same name is good"
    );
    // Without TLS nothing is said.
    let plain = raw(&address(&site), b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(!plain.contains("HTTP"), "{plain}");
}

// GCA-SEC-3, XGCP-USE-7, XGCP-TL-2
#[test]
fn a_job_is_looked_after_from_a_machine_without_a_daemon_and_only_nodes_speak_as_nodes() {
    let site = site_with_tls("");
    let own = if am_root() { "nobody".to_string() } else { own_name() };
    let issued = site.issue("ca", &[&own]);
    site.issue("ca", &["n9", "--role", "node", "--host", "127.0.0.1"]);
    site.ca("strange", &["init"]);
    let strange = site.issue("strange", &["n9", "--role", "node", "--host", "127.0.0.1"]);
    let cpr = |arguments: &[&str]| {
        let output = remote(&site, "ca", Some((&issued, &own)), arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    let id = cpr(&[
        &["submit", "-o", "out", "--"],
        counter(100_000).each_ref().map(String::as_str).as_slice(),
    ]
    .concat());
    let job = format!("@{id}");
    site.wait_for_count("out", 5);
    let made: serde_json::Value = serde_json::from_str(&cpr(&["checkpoint", &job, "--json"])).unwrap();
    // Whoever the certificate names is somebody of the node, whose the job and its images are.
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert_eq!(
        (&made["owner"]["name"], &made["owner"]["uid"]),
        (&own.as_str().into(), &uid.into())
    );
    let image = fs::metadata(site.path(&format!("node/users/{uid}/images/{}.cpr", made["id"]))).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&image), uid);
    cpr(&["suspend", &job]);
    cpr(&["recover", &id, "--from", &made["id"].to_string()]);
    wait_until("it goes on", || cpr(&["jobs", &id]).contains("running"));
    cpr(&["cancel", &id]);
    wait_until("it has ended", || cpr(&["jobs", &id]).contains("cancelled"));

    let report = |name: &str| {
        serde_json::json!({"info": {"name": name, "slots": 1, "memory_mb": 1}, "instance": "x", "sequence": 1, "jobs": []})
            .to_string()
    };
    let beat = |who: Option<(&Path, &str)>, name: &str| post(&site, who, "/v1/agent/heartbeat", &report(name));
    let known = beat(Some((&issued, "n9")), "n9");
    assert!(known.ends_with(" 200") && known.contains("lease_ms"), "{known}");
    for said in [
        beat(Some((&issued, "n9")), "n1"),
        beat(Some((&issued, &own)), "n9"),
        beat(None, "n9"),
    ] {
        assert!(said.ends_with(" 403"), "{said}");
    }
    let said = beat(Some((&strange, "n9")), "n9");
    assert!(said.ends_with(" 000"), "there is not even an answer: {said}");
    // A user is heard as a user, and a node is none.
    let submit = serde_json::json!({"command": ["true"], "directory": "/"}).to_string();
    let said = post(&site, Some((&issued, &own)), "/v1/jobs", &submit);
    assert!(said.ends_with(" 200"), "{said}");
    assert!(post(&site, Some((&issued, "n9")), "/v1/jobs", &submit).ends_with(" 403"));
}

#[test]
fn a_connection_that_is_open_ends_with_the_certificate_it_came_with_and_new_ones_need_no_restart() {
    let site = site_with_tls("");
    let issued = site.issue("ca", &["oscar", "--role", "operator"]);
    // openssl(1) keeps one connection open, on which one request follows the other.
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &address(&site), "-CAfile"])
        .arg(site.path("ca/ca.pem"))
        .arg("-cert")
        .arg(issued.join("oscar.pem"))
        .arg("-key")
        .arg(issued.join("oscar.key"))
        .stdin(std::process::Stdio::piped())
        .stdout(fs::File::create(site.path("answers")).unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut ask = |count: usize| {
        let input = client.stdin.as_mut().unwrap();
        input.write_all(b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        input.flush().unwrap();
        let answers = || fs::read_to_string(site.path("answers")).unwrap();
        wait_until("it is answered", || answers().matches("HTTP/1.1 ").count() == count);
        answers().rsplit("HTTP/1.1 ").next().unwrap()[..3].to_string()
    };
    assert_eq!(ask(1), "200");
    assert_eq!(ask(2), "200");
    site.ca("ca", &["revoke", "oscar"]);
    fs::copy(site.path("ca/revoked.pem"), site.path("revoked.new")).unwrap();
    fs::rename(site.path("revoked.new"), site.path("revoked.pem")).unwrap();
    assert_eq!(ask(3), "403");
    client.kill().unwrap();
    client.wait().unwrap();

    // A new certificate of the service: the old one is revoked for this user.
    let issued = site.issue("ca", &["olga", "--role", "operator"]);
    site.ca("ca", &["revoke", "grid"]);
    let jobs = || {
        Command::new(site.path("cpr"))
            .args(["jobs"])
            .env("GRIDCPR_GRID", format!("https://{}", address(&site)))
            .env("GRIDCPR_CA", site.path("ca/ca.pem"))
            .env("GRIDCPR_REVOKED", site.path("ca/revoked.pem"))
            .env("GRIDCPR_CERTIFICATE", issued.join("olga.pem"))
            .env("GRIDCPR_KEY", issued.join("olga.key"))
            .output()
            .unwrap()
    };
    assert_eq!(jobs().status.code(), DENIED, "{:?}", jobs());
    // One that is no good changes nothing, and is told of.
    let certificate = issued.join("grid.pem");
    let good = fs::read(&certificate).unwrap();
    fs::write(&certificate, "nonsense").unwrap();
    assert_eq!(
        remote(&site, "ca", Some((&issued, "olga")), &["jobs"]).status.code(),
        Some(0)
    );
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    assert!(log.contains("certificates are not read anew"), "{log}");
    fs::write(&certificate, good).unwrap();
    site.issue("ca", &["grid", "--role", "service", "--host", "127.0.0.1"]);
    assert!(jobs().status.success(), "{:?}", jobs());
}

#[test]
fn without_tls_nobody_listens_on_a_network_unless_that_is_wanted() {
    let site = Site::new();
    let refused = |more: &str| {
        site.configure_all("listen = ['0.0.0.0:0']");
        let config = fs::read_to_string(site.path("all.toml")).unwrap();
        fs::write(site.path("all.toml"), format!("{config}\n{more}\n")).unwrap();
        let config = site.path("all.toml");
        let check = site.cprd(&["--config", config.to_str().unwrap(), "config", "check"]);
        { check }.output().unwrap().status.code()
    };
    assert_eq!(refused(""), Some(64));
    assert_eq!(refused("[tls]\nallow_plain_http = true"), Some(0));
    let config = site.path("all.toml");
    site.configure_all("listen = ['0.0.0.0:0']");
    let started = site
        .cprd(&["--config", config.to_str().unwrap(), "all"])
        .output()
        .unwrap();
    assert_eq!(started.status.code(), Some(64), "it does not even start: {started:?}");
    let told = Command::new(site.path("cpr"))
        .args(["jobs"])
        .env("GRIDCPR_GRID", "http://192.0.2.1:7700")
        .output()
        .unwrap();
    assert_eq!(told.status.code(), Some(64), "{told:?}");
}

/// Sends bytes, and gives everything that comes back.
fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = Vec::new();
    // Where it is cut off, what came counts.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends `head`, then a byte of `drops` every so often, until the other side has had enough; gives what it said, and
/// after how long.
fn drip(address: &str, head: &[u8], drops: u8) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(head).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut text = Vec::new();
    loop {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if stream.write_all(&[drops]).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
        assert!(begun.elapsed() < PATIENCE, "it is listened to for ever");
    }
    (String::from_utf8_lossy(&text).into_owned(), begun.elapsed())
}

#[test]
fn who_is_slow_silent_or_greedy_loses_the_connection_and_others_are_served() {
    let mut site = Site::new();
    site.configure_all("listen = ['127.0.0.1:0']");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let limits = "[limits]\nconnections = 40\nconnections_per_peer = 20\npatience_ms = 2000\n";
    fs::write(site.path("all.toml"), format!("{config}\n{limits}")).unwrap();
    site.start("all", "all");
    let address = address(&site);
    let config = site.path("all.toml");
    let token = site
        .cprd(&["--config", config.to_str().unwrap(), "token", &own_name()])
        .output()
        .unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n",
        token.trim()
    );
    let patience = Duration::from_millis(2000);
    let good = |took: Duration| took >= patience / 2 && took < 5 * patience;

    // Heads that never end, connections that say nothing, bodies that trickle.
    let (_, took) = drip(&address, b"GET /healthz HTTP/1.1\r\nx: ", b'x');
    assert!(good(took), "{took:?}");
    let silent = TcpStream::connect(&address).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let begun = Instant::now();
    let _ = (&silent).read(&mut [0; 1]);
    assert!(good(begun.elapsed()), "{:?}", begun.elapsed());
    let (said, took) = drip(&address, format!("{head}content-length: 1000\r\n\r\n").as_bytes(), b' ');
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(good(took), "{took:?}");
    let (said, took) = drip(
        &address,
        format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes(),
        b'0',
    );
    assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    assert!(took < 5 * patience, "{took:?}");
    // An answer, and then nothing more is asked.
    let mut idle = TcpStream::connect(&address).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let begun = Instant::now();
    let mut said = String::new();
    let _ = idle.read_to_string(&mut said);
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(good(begun.elapsed()), "{:?}", begun.elapsed());

    // Too much of everything.
    let long = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(!raw(&address, long.as_bytes()).starts_with("HTTP/1.1 200"));
    let many = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    assert!(!raw(&address, many.as_bytes()).starts_with("HTTP/1.1 200"));
    for length in ["99999999999999999999999", "-1", "x"] {
        let said = raw(&address, format!("{head}content-length: {length}\r\n\r\n").as_bytes());
        assert!(said.starts_with("HTTP/1.1 400") || said.is_empty(), "{said}");
    }
    let huge = format!("{head}content-length: {}\r\n\r\n", u64::MAX / 2);
    let (said, _) = drip(&address, huge.as_bytes(), b'x');
    assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    // Who is nobody is refused before the body is looked at.
    let nobody = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n";
    let begun = Instant::now();
    let said = raw(&address, nobody);
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
    // Garbage of all sorts.
    let mut state = 12345_u64;
    for length in [1, 10, 1000, 100_000] {
        let mut garbage = vec![0; length];
        for byte in &mut garbage {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
        assert!(!raw(&address, &garbage).starts_with("HTTP/1.1 200"));
    }

    // One host that takes all it can get leaves the rest to others.
    let held: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    wait_until("it has no more than its share", || {
        let mut one_more = TcpStream::connect(&address).unwrap();
        one_more.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = one_more.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut said = String::new();
        let _ = one_more.read_to_string(&mut said);
        said.is_empty()
    });
    assert!(site.cpr(&["jobs"]).status.success(), "users of this machine");
    drop(held);
    wait_until("it is served again", || {
        raw(
            &address,
            b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .ends_with("ok\n")
    });
    // The service has lived through all of it.
    let id = site.submit("out", &[], &["true"]);
    site.wait_for_state(&id, "finished");
}

/// Adds to the configuration of `all`.
fn add(site: &Site, more: &str) {
    let config = std::fs::read_to_string(site.path("all.toml")).unwrap();
    site.configure("all.toml", &format!("{config}{more}"));
}

#[test]
fn a_configuration_that_is_read_again_holds_at_once_and_what_needs_a_restart_is_named() {
    let mut site = Site::new();
    site.configure_all("");
    site.start("all", "all");
    let id = site.submit("out", &[], &counter(10_000));
    site.wait_for_count("out", 5);
    let log = || std::fs::read_to_string(site.path("all.log")).unwrap();
    let drained = || site.cpr(&["drain", "n9"]).status.code();
    assert!(!am_root() || drained() != Some(66), "nobody is no operator");
    site.configure_all("preempt = true\noperators = ['nobody']\ncopies = 3\nlisten = ['127.0.0.1:0']");
    add(&site, "transfer_mb_per_s = 7\n[node.properties]\ncolour = 'blue'\n");
    let text = std::fs::read_to_string(site.path("all.toml")).unwrap();
    std::fs::write(site.path("all.toml"), text.replace("slots = 4", "slots = 3")).unwrap();
    site.hang_up("all");
    wait_until("the node has other slots and properties", || {
        let node = site.json(&["nodes"])["nodes"][0].clone();
        node["info"]["slots"] == 3 && node["info"]["properties"]["colour"] == "blue"
    });
    let told = log();
    assert!(told.contains("changed, but needs a restart: grid.listen"), "{told}");
    let changed =
        "changed: grid.copies, grid.operators, grid.preempt, node.properties, node.slots, node.transfer_mb_per_s";
    assert!(told.contains(changed), "{told}");
    assert_eq!(drained(), Some(66), "there is no n9, and nobody is an operator");
    std::fs::write(site.path("all.toml"), "[grid]\nlease_ms = 1\n").unwrap();
    site.hang_up("all");
    wait_until("it is said that it is no good", || log().contains("nothing is changed"));
    assert_eq!(site.json(&["nodes"])["nodes"][0]["info"]["slots"], 3);
    let job = site.job(&id);
    assert_eq!((&job["state"], &job["incarnation"]), (&"running".into(), &1.into()));
    site.text(&["cancel", &id]);
}

/// Heads and bodies of requests.
type Heard = std::sync::Arc<std::sync::Mutex<Vec<(String, String)>>>;

/// Takes requests, and refuses the first of them; gives its port, and what it hears.
fn listener(refuse: usize) -> (u16, Heard) {
    use std::io::{BufRead, BufReader, Read, Write};
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let to = heard.clone();
    std::thread::spawn(move || {
        for (count, stream) in socket.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            to.lock().unwrap().push((head, String::from_utf8(body).unwrap()));
            let status = if count < refuse { "500 Later" } else { "204 Good" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, heard)
}

// GCA-GCS-6
#[test]
fn a_webhook_hears_of_every_event_that_it_wants_though_it_or_the_service_was_away_and_can_tell_who_says_so() {
    let mut site = Site::new();
    let (port, heard) = listener(2);
    let secret = "0123456789abcdef";
    std::fs::write(site.path("secret"), format!("{secret}\n")).unwrap();
    site.configure_all("");
    add(
        &site,
        &format!(
            "[[webhook]]\nurl = 'http://127.0.0.1:{port}/hook?x=1'\nsecret_file = 'DIR/secret'\nkinds = ['job']\n"
        ),
    );
    site.start("all", "all");
    let finished = |id: &str| {
        let heard = heard.lock().unwrap();
        let is_it = |body: &str| {
            let event: serde_json::Value = serde_json::from_str(body).unwrap();
            event["kind"] == "job.finished" && event["job"].as_i64() == id.parse().ok()
        };
        heard.iter().any(|(_, body)| is_it(body))
    };
    let first = site.submit("out", &[], &["true"]);
    wait_until("the end of the first job is heard of", || finished(&first));
    site.kill("all");
    site.start("all", "all");
    let second = site.submit("out", &[], &["true"]);
    wait_until("the end of the second job is heard of", || finished(&second));
    let heard = heard.lock().unwrap().clone();
    let number = |body: &str| {
        serde_json::from_str::<serde_json::Value>(body).unwrap()["id"]
            .as_i64()
            .unwrap()
    };
    let numbers: Vec<i64> = heard.iter().map(|(_, body)| number(body)).collect();
    assert_eq!(
        (numbers[0], numbers[1]),
        (numbers[1], numbers[2]),
        "it is told again until it answers"
    );
    assert!(numbers.is_sorted(), "{numbers:?}");
    let mut told: Vec<i64> = numbers.clone();
    told.dedup();
    let all = site.text(&["events", "--kind", "job", "--json"]);
    let all: Vec<i64> = all.lines().map(number).collect();
    assert_eq!(told, all, "nothing else, and nothing left out");
    for (head, body) in &heard {
        assert!(head.starts_with("POST /hook?x=1 "), "{head}");
        let field = |name: &str| {
            let found = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            found.unwrap().trim().to_string()
        };
        std::fs::write(site.path("signed"), format!("{}.{body}", field("gridcpr-time"))).unwrap();
        let digest = std::process::Command::new("openssl")
            .args(["dgst", "-sha256", "-hmac", secret])
            .arg(site.path("signed"))
            .output()
            .unwrap();
        let digest = String::from_utf8(digest.stdout).unwrap();
        let digest = digest.split_whitespace().last().unwrap();
        assert_eq!(field("gridcpr-signature"), format!("sha256={digest}"));
        assert_eq!(field("gridcpr-event"), number(body).to_string());
    }
}
