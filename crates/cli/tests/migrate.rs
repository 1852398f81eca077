//! Jobs that move to another host: another state directory, reached by something like ssh, or by ssh between two
//! network namespaces.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::net::Net;
use support::{As, Cpr, Ended, PATIENCE, finish, skip, wait_until};

/// Exit codes of docs/exit-codes.md.
const NOT_FOUND: i32 = 66;
const IO: i32 = 74;
const TIMED_OUT: i32 = 76;
const CANCELLED: i32 = 80;

/// Counts into `out`, and says so, until there is a file `enough`; has 32 MiB that it looks at in the end.
const COUNT: &str = r#"
import hashlib, os, time
ballast = os.urandom(32 << 20)
digest = hashlib.sha256(ballast).hexdigest()
number = 0
with open("out", "w", buffering=1) as out:
    while not os.path.exists("enough"):
        number += 1
        out.write("%d\n" % number)
        print("said", number, flush=True)
        time.sleep(0.003)
assert hashlib.sha256(ballast).hexdigest() == digest
print("DONE", flush=True)
"#;

const PYTHON: &str = "/usr/bin/python3";

/// A job here, and a place that is another host.
struct Hosts {
    cpr: Cpr,
    there: PathBuf,
}

impl Hosts {
    fn new(test: &str, user: As) -> Option<Hosts> {
        let cpr = Cpr::new(test, user)?;
        if !Path::new(PYTHON).exists() {
            support::note_skip(test, "python3 not found");
            return None;
        }
        let there = cpr.work.join("there");
        fs::create_dir(&there).expect("the test's directory can be written");
        cpr.give(&there);
        let hosts = Hosts { cpr, there };
        let program = hosts.cpr.work.join("count.py");
        fs::write(&program, COUNT).expect("the test's directory can be written");
        hosts.cpr.run_detached("job", &[], &[PYTHON, "count.py"]);
        hosts.counts();
        Some(hosts)
    }

    /// Something that is called as ssh is, and does this with the command in `$command`.
    fn ssh(&self, text: &str) -> String {
        let script = self.cpr.work.join("ssh");
        let text = format!(
            "#!/bin/sh\nexport GRIDCPR_STATE_DIR='{}'\nhost=$1 command=$2\n{text}\n",
            self.there.display()
        );
        fs::write(&script, text).expect("the test's directory can be written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
        script.display().to_string()
    }

    #[track_caller]
    fn migrate(&self, ssh: &str, options: &[&str]) -> Ended {
        let binary = self.cpr.binary().to_str().expect("our paths are text");
        let words = ["migrate", "job", "other", "--ssh", ssh, "--cpr", binary];
        self.cpr.cpr(words.iter().chain(options))
    }

    fn out(&self) -> Vec<String> {
        let text = fs::read_to_string(self.cpr.work.join("out")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The job runs, wherever.
    #[track_caller]
    fn counts(&self) {
        let before = self.out().len();
        wait_until(PATIENCE, "the job counts", || self.out().len() > before + 3);
    }

    /// `cpr` there.
    #[track_caller]
    fn remote(&self, words: &[&str]) -> Ended {
        let mut command = self.cpr.command(self.cpr.binary());
        command.args(words).env("GRIDCPR_STATE_DIR", &self.there);
        finish(&self.cpr.work, command, PATIENCE)
    }

    /// The job runs there only, to its end, and has counted without a gap.
    #[track_caller]
    fn runs_there(&self, name: &str) {
        self.counts();
        assert!(!self.cpr.is_running("job"));
        let said_here = self.cpr.logs("job");
        self.finish();
        let ended = self.remote(&["wait", name]);
        let said = self.remote(&["logs", name]).text();
        assert_eq!(ended.code, 0, "{said}");
        assert!(said.ends_with("DONE\n"), "{said}");
        // Each line was said in one place.
        let all = [String::from_utf8_lossy(&said_here).into_owned(), said].concat();
        let numbers: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("said ")).collect();
        assert_eq!(numbers, self.out());
    }

    /// The job goes on here, and nothing of it is there.
    #[track_caller]
    fn goes_on_here(&self) {
        self.counts();
        assert_eq!(
            self.remote(&["ps", "--all", "--json"]).good().json()["jobs"]
                .as_array()
                .map(Vec::len),
            Some(0)
        );
        self.finish();
        assert_eq!(self.cpr.wait("job"), 0);
    }

    fn finish(&self) {
        fs::write(self.cpr.work.join("enough"), "").expect("the test's directory can be written");
        wait_until(PATIENCE, "the job has ended", || !self.cpr.is_running("job"));
        let out = self.out();
        let expected: Vec<String> = (1..=out.len()).map(|number| number.to_string()).collect();
        assert_eq!(out, expected);
    }

    /// The state of the job's process, as `ps` shows it.
    fn state(&self) -> String {
        let listed = self.cpr.cpr(["ps", "--json"]).good().json();
        let pid = listed["jobs"][0]["pid"].as_i64().expect("a number").to_string();
        self.cpr
            .program(&["ps", "-o", "state=", "-p", &pid])
            .text()
            .trim()
            .to_owned()
    }

    /// The job is stopped where it is, and goes on when it is told to.
    #[track_caller]
    fn is_stopped_here(&self) {
        wait_until(PATIENCE, "the job is stopped", || self.state() == "T");
        self.cpr.cpr(["kill", "--signal", "CONT", "job"]).good();
        self.goes_on_here();
    }
}

fn moves(test: &str, user: As, options: &[&str], name: &str) {
    let Some(hosts) = Hosts::new(test, user) else { return };
    let ssh = hosts.ssh(r#"sh -c "$command""#);
    let report = hosts.migrate(&ssh, &[&["--json"], options].concat()).good().json();
    assert_eq!(report["name"], name, "{report}");
    let (standstill, total) = (report["standstill_ms"].as_f64(), report["total_ms"].as_f64());
    assert!(standstill > Some(0.0) && total >= standstill, "{report}");
    hosts.runs_there(name);
}

#[test]
fn a_job_moves_as_user() {
    moves("a_job_moves_as_user", As::User, &[], "job");
}

#[test]
fn a_job_moves_compressed_under_another_name_as_root() {
    let options = ["--compress", "--name", "it's another"];
    let Some(hosts) = Hosts::new("a_job_moves_compressed_under_another_name_as_root", As::Root) else {
        return;
    };
    let refused = hosts.migrate("ssh", &options);
    assert!(refused.stderr.contains("name"), "{}", refused.stderr);
    hosts.goes_on_here();
    let options = ["--compress", "--name", "another"];
    moves(
        "a_job_moves_compressed_under_another_name_as_root",
        As::Root,
        &options,
        "another",
    );
}

#[test]
fn a_job_moves_and_runs_before_its_memory_is_there() {
    moves(
        "a_job_moves_and_runs_before_its_memory_is_there",
        As::Root,
        &["--lazy"],
        "job",
    );
}

/// The long form: pre-copy rounds through a pipe.
#[test]
fn a_live_stream_restarts() {
    let Some(hosts) = Hosts::new("a_live_stream_restarts", As::User) else {
        return;
    };
    let mut command = hosts.cpr.command("sh");
    let binary = hosts.cpr.binary().display();
    command.arg("-c").arg(format!(
        "{binary} checkpoint --json --live --stop -o - job 2>report | GRIDCPR_STATE_DIR='{}' {binary} restart -d -",
        hosts.there.display()
    ));
    finish(&hosts.cpr.work, command, PATIENCE).good();
    let report = fs::read_to_string(hosts.cpr.work.join("report")).expect("there is a report");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_else(|e| panic!("{e}: {report}"));
    assert_eq!(report["mode"], "live", "{report}");
    // Nearly all was sent while the job ran.
    assert!(report["stopped_bytes"].as_u64() < Some(8 << 20), "{report}");
    hosts.runs_there("job");
}

/// Whatever goes wrong before the other side has it all, or when it says no, the job goes on here.
#[test]
fn a_job_that_is_not_taken_goes_on() {
    for (what, ssh, code) in [
        ("refused at once", "exit 77", 77),
        ("refused when all was read", "cat >/dev/null; exit 78", 78),
        (
            "the connection breaks on the way",
            "head -c 3000000 >/dev/null; exit 255",
            IO,
        ),
        ("there is no cpr", "exec /nonexistent/cpr", IO),
        ("something else answers", "cat >/dev/null; echo hello", IO),
        (
            "the other side has no room",
            r#"sh -c "ulimit -f 100; $command" 2>/dev/null"#,
            0,
        ),
    ] {
        let Some(hosts) = Hosts::new("a_job_that_is_not_taken_goes_on", As::User) else {
            return;
        };
        let ended = hosts.migrate(&hosts.ssh(ssh), &[]);
        assert!(
            ended.code != 0 && (code == 0 || ended.code == code),
            "{what}: {ended:?}"
        );
        assert!(ended.stderr.contains("job goes on here"), "{what}: {}", ended.stderr);
        hosts.goes_on_here();
    }
    let Some(hosts) = Hosts::new("a_job_that_is_not_taken_goes_on", As::User) else {
        return;
    };
    assert_eq!(hosts.migrate("/nonexistent/ssh", &[]).code, NOT_FOUND);
    hosts.goes_on_here();
}

/// Where nothing moves for too long the job goes on here: the other side cannot have it all.
#[test]
fn a_stalled_connection_is_given_up() {
    let Some(hosts) = Hosts::new("a_stalled_connection_is_given_up", As::User) else {
        return;
    };
    let ended = hosts.migrate(&hosts.ssh("exec sleep 1000"), &["--patience", "1s"]);
    assert_eq!(ended.code, TIMED_OUT, "{ended:?}");
    hosts.goes_on_here();
}

/// Where nobody knows whether the other side runs it, the job is stopped here.
#[test]
fn a_job_that_may_run_elsewhere_is_stopped() {
    let test = "a_job_that_may_run_elsewhere_is_stopped";
    for (ssh, options) in [
        ("cat >/dev/null; exit 255", &[][..]),
        ("cat >/dev/null; exit 137", &[]),
        ("cat >/dev/null; exec sleep 1000", &["--patience", "1s"]),
    ] {
        let Some(hosts) = Hosts::new(test, As::User) else {
            return;
        };
        let ended = hosts.migrate(&hosts.ssh(ssh), options);
        assert_eq!(ended.code, CANCELLED, "{ssh}: {ended:?}");
        for word in ["may run there", "--signal CONT job", "rm --force job"] {
            assert!(ended.stderr.contains(word), "{}", ended.stderr);
        }
        hosts.is_stopped_here();
    }
}

/// The command is killed: while the image is sent the job goes on; when all was sent it is stopped.
#[test]
fn a_killed_command_leaves_the_job_running_or_stopped() {
    let test = "a_killed_command_leaves_the_job_running_or_stopped";
    for (ssh, complete) in [
        ("head -c 1000000 >/dev/null; : >sent; exec sleep 1000", false),
        ("cat >/dev/null; : >sent; exec sleep 1000", true),
    ] {
        let Some(hosts) = Hosts::new(test, As::User) else {
            return;
        };
        let ssh = hosts.ssh(ssh);
        let mut command = hosts.cpr.command(hosts.cpr.binary());
        let binary = hosts.cpr.binary().to_str().expect("our paths are text");
        command.args(["migrate", "job", "other", "--ssh", &ssh, "--cpr", binary]);
        let mut front = command.stdin(Stdio::null()).spawn().expect("cpr can be run");
        wait_until(PATIENCE, "the image is on its way", || {
            hosts.cpr.work.join("sent").exists()
        });
        front.kill().expect("it can be killed");
        let _ = front.wait();
        if complete {
            hosts.is_stopped_here();
        } else {
            hosts.goes_on_here();
        }
    }
}

/// A daemon that ends with the test.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// LBNL-1.2.4.1.e: two hosts with a wire between them, and ssh.
#[test]
fn a_job_moves_over_ssh_between_two_hosts() {
    let test = "a_job_moves_over_ssh_between_two_hosts";
    let sshd = Path::new("/usr/sbin/sshd");
    if !sshd.exists() || !Path::new("/usr/bin/ssh").exists() {
        skip!(test, "openssh-server or openssh-client not found");
    }
    let Some(hosts) = Hosts::new(test, As::Root) else {
        return;
    };
    let cpr = &hosts.cpr;
    let [here, there] = Net::pair(cpr, "10.98.0");
    let file = |name: &str| cpr.work.join(name).display().to_string();
    for key in ["host", "user"] {
        cpr.program(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file(key)])
            .good();
    }
    fs::create_dir_all("/run/sshd").expect("root can make /run/sshd");
    fs::write(
        cpr.work.join("sshd_config"),
        format!(
            "ListenAddress 10.98.0.2:2222\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n",
            file("host"),
            file("user.pub")
        ),
    )
    .expect("the test's directory can be written");
    let line = there.command(&["/usr/sbin/sshd", "-D", "-e", "-f", &file("sshd_config")]);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stderr(Stdio::null());
    let _daemon = Daemon(command.spawn().expect("sshd can be run"));
    let remote = cpr.work.join("cpr-there");
    let text = format!(
        "#!/bin/sh\nGRIDCPR_STATE_DIR='{}' exec '{}' \"$@\"\n",
        hosts.there.display(),
        cpr.binary().display()
    );
    fs::write(&remote, text).expect("the test's directory can be written");
    fs::set_permissions(&remote, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let ssh = format!(
        "ssh -F none -p 2222 -i {} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={}",
        file("user"),
        file("known")
    );
    let words: Vec<&str> = ssh.split(' ').chain(["root@10.98.0.2", "true"]).collect();
    wait_until(PATIENCE, "sshd answers", || here.run(cpr, &words).code == 0);
    let binary = cpr.binary().to_str().expect("our paths are text");
    let remote = remote.to_str().expect("our paths are text");
    let migrate = [
        binary,
        "migrate",
        "job",
        "root@10.98.0.2",
        "--ssh",
        &ssh,
        "--cpr",
        remote,
    ];
    // A wire that is cut is no host.
    there.run(cpr, &["ip", "link", "set", "vb", "down"]).good();
    let unreachable = format!("{ssh} -o ConnectTimeout=1");
    let cut = [
        binary,
        "migrate",
        "job",
        "root@10.98.0.2",
        "--ssh",
        &unreachable,
        "--cpr",
        remote,
    ];
    let ended = here.run(cpr, &cut);
    assert_eq!(ended.code, IO, "{ended:?}");
    assert!(ended.stderr.contains("could not be reached"), "{}", ended.stderr);
    there.run(cpr, &["ip", "link", "set", "vb", "up"]).good();
    hosts.counts();
    here.run(cpr, &migrate).good();
    hosts.runs_there("job");
}
