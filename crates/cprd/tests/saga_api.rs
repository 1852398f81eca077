//! The SAGA CPR API for Python, `gridcpr.saga`: checks in `bindings/python/tests/saga`, each of which says what it shows,
//! run against grids that run.

#![allow(clippy::unwrap_used)]

#[path = "../../grid/tests/support/postgres.rs"]
mod postgres;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use postgres::Postgres;
use support::lab::Lab;
use support::s3::Server;
use support::*;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// A user of every Debian besides the one whose jobs they are.
const DAEMON: u32 = 1;

/// Puts the package and its checks where programs of all users find them; gives the directory.
fn package(site: &Site) -> PathBuf {
    let to = site.path("python");
    fs::create_dir(&to).unwrap();
    let checks = fs::read_dir(format!("{ROOT}/bindings/python/tests/saga")).unwrap();
    let mut command = Command::new("cp");
    command.arg("-r").arg(format!("{ROOT}/bindings/python/gridcpr"));
    command.args(checks.map(|entry| entry.unwrap().path())).arg(&to);
    assert!(command.status().unwrap().success());
    to
}

/// Readies a command that runs a module of checks.
fn check(command: &mut Command, package: &Path, module: &str) {
    command
        .arg(package.join(module))
        .env("PYTHONPATH", package)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SAGA_USER", user());
}

/// The login name of the user whose jobs they are.
fn user() -> String {
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let known = nix::unistd::User::from_uid(uid.into()).unwrap();
    known.map_or(uid.to_string(), |user| user.name)
}

#[track_caller]
fn good(output: &Output, site: &Site) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{told}{}", site.told());
    text
}

/// Runs a module of checks as the user whose jobs they are; gives what it prints.
#[track_caller]
fn run(site: &Site, package: &Path, module: &str, arguments: &[&str]) -> String {
    let mut command = site.python();
    check(&mut command, package, module);
    command.env("GRIDCPR_GRID", format!("unix:{}", site.path("cprd.sock").display()));
    good(&command.args(arguments).output().unwrap(), site)
}

// What it shows is said in `test_descriptions.py`, `test_names.py` and `test_jobs.py`.
#[test]
fn the_programmers_interface_does_on_one_machine_what_its_draft_says() {
    let mut site = Site::new();
    site.configure_all("");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let slots = "slots = 16\nproperties = { 'queue.long' = 'yes' }";
    fs::write(site.path("all.toml"), config.replace("slots = 4", slots)).unwrap();
    site.start("all", "all");
    let package = package(&site);
    for module in ["test_descriptions.py", "test_names.py", "test_jobs.py"] {
        let said = run(&site, &package, module, &[]);
        assert!(said.matches("ok test_").count() >= 8, "{said}");
    }
    // The example of the guide, as it stands there.
    let guide = fs::read_to_string(format!("{ROOT}/docs/saga.md")).unwrap();
    let example = guide.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(example.contains("recover("), "{example}");
    fs::write(package.join("example.py"), example).unwrap();
    fs::write(
        site.path("work/sim.sh"),
        "#!/bin/sh\nwhile :; do date; sleep 0.1; done\n",
    )
    .unwrap();
    fs::set_permissions(site.path("work/sim.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let said = run(&site, &package, "example.py", &[]);
    assert!(said.contains("gridcpr://localhost/"), "{said}");
}

#[test]
fn the_name_space_is_the_same_on_postgresql() {
    let Some(server) = Postgres::shared() else {
        return skipped("the name space on PostgreSQL: it is not installed");
    };
    let mut site = Site::new();
    site.database = Some(server.database());
    site.keep(server);
    site.configure_all("");
    site.start("all", "all");
    let package = package(&site);
    run(&site, &package, "test_names.py", &[]);
    let only = "test_programs_are_asked_for_checkpoints_and_recovery";
    run(&site, &package, "test_jobs.py", &[only]);
}

// SAGA-SEC-2, SAGA-PERM-1, SAGA-ERR-PermissionDenied, SAGA-CTX-2, SAGA-SEC-1, SAGA-ERR-AuthorizationFailed
// SAGA-ERR-AuthenticationFailed
#[test]
fn users_do_what_they_may_and_nothing_else() {
    if !am_root() {
        return skipped("two users of a grid: only root can be both");
    }
    let mut site = Site::new();
    site.ca("ca", &["init"]);
    let issued = site.issue("ca", &["grid", "--role", "service", "--host", "127.0.0.1"]);
    for name in ["nobody", "daemon", "stranger-without-account"] {
        site.issue("ca", &[name]);
    }
    site.ca("strange", &["init"]);
    let strange = site.issue("strange", &["nobody"]).join("nobody");
    for end in ["pem", "key"] {
        fs::copy(strange.with_extension(end), issued.join(format!("strange.{end}"))).unwrap();
    }
    site.configure_all("listen = ['127.0.0.1:0']");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let tls = format!(
        "[tls]\nca = 'DIR/ca/ca.pem'\ncertificate = '{0}/grid.pem'\nkey = '{0}/grid.key'\n",
        issued.display()
    );
    site.configure("all.toml", &format!("{config}\n{tls}"));
    site.start("all", "all");
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    let at = log.rsplit("listening on https://").next().unwrap();
    let address = format!("https://{}", at.split_whitespace().next().unwrap());
    fs::copy(site.path("ca/ca.pem"), issued.join("ca.pem")).unwrap();
    let config = site.path("all.toml");
    let token = site
        .cprd(&["--config", config.to_str().unwrap(), "token", "nobody"])
        .output()
        .unwrap();
    fs::write(issued.join("nobody.token"), good(&token, &site)).unwrap();
    // One program with the credentials of two users has to be able to read both.
    for entry in fs::read_dir(&issued).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let package = package(&site);
    let mut at = Vec::new();
    for (uid, part) in [(NOBODY, "owner"), (DAEMON, "other"), (NOBODY, "credentials")] {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--", "/usr/bin/python3"])
            .current_dir(site.path("work"))
            .env("ISSUED", &issued)
            .env("SERVICE", &address);
        check(&mut command, &package, "test_users.py");
        command.env("GRIDCPR_GRID", format!("unix:{}", site.path("cprd.sock").display()));
        at.push(good(&command.arg(part).output().unwrap(), &site));
    }
    assert!(at.iter().all(|said| said.contains("all of ")), "{at:?}");
}

// SAGA-MON-9, SAGA-JOB-Core-migrate, SAGA-JOB-Core-attr-ExecutionHosts, SAGA-JD-Core-CandidateHosts
// SAGA-JD-Core-ProcessesPerHost
// SAGA-JOB-cpr_stage_out-1, SAGA-JOB-cpr_stage_out-2, SAGA-JOB-cpr_stage_in-1, SAGA-JOB-cpr_stage_in-2
#[test]
fn jobs_on_other_hosts_are_moved_staged_and_asked() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let mut lab = Lab::new(2, "copies = 1", "");
    lab.site.issue("ca", &["nobody"]);
    let key = lab.site.path("ca-issued/nobody.key");
    std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    let package = package(&lab.site);
    let run = |lab: &Lab, part: &str| {
        let mut command = lab.user_on("n2", "nobody", Path::new("/usr/bin/python3"));
        check(&mut command, &package, "test_hosts.py");
        good(&command.arg(part).output().unwrap(), &lab.site)
    };
    let said = run(&lab, "together");
    assert!(said.contains("all of together"), "{said}");
    lab.crash("n1");
    let said = run(&lab, "elsewhere");
    assert!(said.contains("all of elsewhere"), "{said}");
}

#[test]
fn checkpoints_are_staged_to_a_bucket() {
    let mut site = Site::new();
    let Some(server) = Server::start(&site) else {
        return skipped("staging to a bucket: s3s-fs is not installed");
    };
    site.configure_all("");
    site.start("all", "all");
    let package = package(&site);
    let mut command = site.python();
    check(&mut command, &package, "test_bucket.py");
    command
        .env("GRIDCPR_GRID", format!("unix:{}", site.path("cprd.sock").display()))
        .env("AWS_ENDPOINT_URL", format!("http://{}", server.address))
        .env("AWS_ACCESS_KEY_ID", "ACCESS")
        .env("AWS_SECRET_ACCESS_KEY", "SECRET");
    good(&command.output().unwrap(), &site);
    let put = site.path("s3/images/staged/part.0");
    assert_eq!(fs::read(put).unwrap(), b"of the bucket");
    assert!(fs::read_dir(site.path("s3/images/staged")).unwrap().count() >= 2);
}
